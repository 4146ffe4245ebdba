"""What the requirements files lock, and what the metadata of installed distributions says about it.

One rule: versions and hashes come from the files, never from what happens to be installed; who has other versions installed is
told so.
"""

import os
import re
import subprocess
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FALLBACK_EPOCH = 1_767_225_600
"""2026-01-01, where neither the environment nor git knows when."""

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)[^\S\n]*(?:;\s*([^\\\n]*?))?\s*\\?$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class ReleaseFailed(RuntimeError):
    """Something of a release could not be made; the message is for whoever ran it."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A requirement. `hashes` are SHA-256 of each file that may be installed; `marker` says where it is (PEP 508)."""

    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]


def project() -> dict[str, Any]:
    """The table `[project]`."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def normalized(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_lock(file: str) -> dict[str, Locked]:
    """By normalized name. ReleaseFailed for a line that is no pinned requirement, or one without a hash."""
    found: dict[str, Locked] = {}
    for block in re.split(r"\n(?=\S)", (ROOT / file).read_text(encoding="utf-8").strip()):
        first = block.splitlines()[0]
        match = _REQUIREMENT.match(first)
        hashes = tuple(_HASH.findall(block))
        if match is None or not hashes:
            raise ReleaseFailed(f"{file}: {first!r} is not pinned with a hash; run `make lock`")
        name = normalized(match[1])
        found[name] = Locked(name, match[2], (match[3] or "").strip(), hashes)
    return found


def needed(names: set[str], locked: dict[str, Locked]) -> set[str]:
    """`names` and what they need in turn, of what is locked, as far as installed metadata says; no extras of others."""
    found: set[str] = set()
    waiting = {name for name in map(normalized, names) if name in locked}
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(needs(name)) & locked.keys() - found
    return found


def needs(name: str) -> list[str]:
    """What a distribution asks for by itself; nothing where it is not installed."""
    try:
        asked = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []
    plain = (one for one in asked if "extra ==" not in one)
    return sorted({normalized(match[0]) for one in plain if (match := re.match(r"[A-Za-z0-9._-]+", one))})


def shipped() -> dict[str, Locked]:
    """What a host may have from us: requirements.txt, and for the extras of pyproject.toml what requirements-dev.txt pins."""
    runtime, tested = read_lock("requirements.txt"), read_lock("requirements-dev.txt")
    extras = {
        match[0]
        for requirements in project().get("optional-dependencies", {}).values()
        for one in requirements
        if (match := re.match(r"[A-Za-z0-9._-]+", one))
    }
    # `psycopg[binary]` asks for the binary part by an extra.
    extras |= {"psycopg-binary"} if "psycopg" in extras else set()
    return runtime | {name: tested[name] for name in sorted(needed(extras, tested)) if name not in runtime}


def epoch() -> int:
    """SOURCE_DATE_EPOCH, else the time of the last commit, in Unix seconds."""
    if named := os.environ.get("SOURCE_DATE_EPOCH", ""):
        return int(named)
    words = ("git", "-C", str(ROOT), "log", "-1", "--format=%ct")
    try:
        return int(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return FALLBACK_EPOCH
