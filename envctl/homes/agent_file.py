"""The agent as one file, made from this installation's own `envctl/agent`.

One rule: the same sources give the same bytes, on every worker, so that the SHA-256 in a seed holds whoever serves the file.
"""

import hashlib
import io
import zipfile
from functools import lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

_MAIN: Final = b"""# The agent of s3-envctl, in a machine of it.
import sys

from envctl.agent.main import main

sys.exit(main())
"""
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_LEFT_OUT: Final = ("__pycache__",)


@lru_cache(1)
def agent_file() -> bytes:
    """A zip archive that Python runs (`zipapp`), beginning with the line that starts it."""
    out = io.BytesIO()
    out.write(b"#!/usr/bin/env python3\n")
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, "__main__.py", _MAIN)
        _add(archive, "envctl/__init__.py", b"")
        for name, content in _sources(files("envctl.agent"), "envctl/agent/"):
            _add(archive, name, content)
    return out.getvalue()


@lru_cache(1)
def agent_sha256() -> str:
    return hashlib.sha256(agent_file()).hexdigest()


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found = []
    for entry in sorted(folder.iterdir(), key=lambda one: one.name):
        if entry.name in _LEFT_OUT:
            continue
        if entry.is_dir():
            found += _sources(entry, f"{prefix}{entry.name}/")
        else:
            found.append((prefix + entry.name, entry.read_bytes()))
    return found


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = 0o100644 << 16
    archive.writestr(info, content)
