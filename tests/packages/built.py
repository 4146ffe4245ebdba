"""The Debian packages of this working tree, built once for whatever test asks, in whichever process.

One rule: what they are made from names them, so a change is never tested with what was built before it.
"""

import hashlib
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from tests.architecture.tree import ROOT
from tests.guest.image import find_or_build_entry

OLD = "0.0.1"
"""A version that comes before any other."""
_MADE_FROM = ("s3core", "integrity", "blockdev", "cowsync", "plugin", "envctl", "deploy", "docs")
_FILES = ("pyproject.toml", "requirements.txt", "requirements-dev.txt", "CHANGELOG.md", "LICENSE")
_EPOCH = 1_767_225_600
"""The time that their files have where SOURCE_DATE_EPOCH says none: a commit that changes nothing in them builds nothing."""
SUITE, NODE, AGENT = "bucketworks", "bucketworks-pve", "bucketworks-agent"


@lru_cache
def built(version: str = "") -> dict[str, Path]:
    """The packages by their names, of this version (that of pyproject.toml). AssertionError with what was printed."""
    digest = hashlib.sha256(f"{version} {_environment()['SOURCE_DATE_EPOCH']}".encode())
    for name in (*_FILES, *_MADE_FROM):
        place = ROOT / name
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
    # Its lock is held for as long as this process lives: somebody else's clean-up leaves it alone.
    entry, _lock = find_or_build_entry(f"packages-deb-{digest.hexdigest()[:16]}", lambda place: _make(place, version))
    return by_name(entry)


def make_packages(directory: Path, version: str = "") -> dict[str, Path]:
    """Built anew, in `directory`."""
    _make(directory, version)
    return by_name(directory)


def by_name(directory: Path) -> dict[str, Path]:
    return {file.name.partition("_")[0]: file for file in sorted(directory.glob("*.deb"))}


def version_of(package: Path) -> str:
    return package.name.split("_")[1]


def _make(directory: Path, version: str) -> None:
    words = [sys.executable, str(ROOT / "deploy/debian/make_deb.py"), "--output", str(directory), "--version", version]
    done = subprocess.run(words, env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _environment() -> dict[str, str]:
    return {"SOURCE_DATE_EPOCH": str(_EPOCH), **os.environ}
