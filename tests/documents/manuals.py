"""Manual pages and completions of this working tree, as `deploy/manuals.py` writes them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.architecture.tree import ROOT

# The modules beside deploy/manuals.py know each other by plain names, as they do when it is run.
sys.path.append(str(ROOT / "deploy"))


def write_manuals(directory: Path, variables: Mapping[str, str] | None = None) -> Path:
    """Run it as a package build does, and return `directory`."""
    words = [sys.executable, str(ROOT / "deploy/manuals.py"), "--output", str(directory)]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "1767225600", **(variables or {})}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory
