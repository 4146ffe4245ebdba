"""The source tree, for tests that look at it as text."""

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("s3core", "blockdev", "cowsync", "integrity", "plugin", "envctl")


@cache
def sources() -> tuple[Path, ...]:
    """Every module of the six packages."""
    return tuple(path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


@cache
def kept_files() -> tuple[Path, ...]:
    """Every file under version control; outside of a checkout, all that is not built or hidden."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        found = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        found = [path for folder in (*PACKAGES, "tests", "docs", "deploy") for path in (ROOT / folder).rglob("*")]
    return tuple(path for path in found if path.is_file() and "__pycache__" not in path.parts)
