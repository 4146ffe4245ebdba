"""A machine for tests: a folder that stands for `/`, and an agent in it."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from envctl.agent.client import World
from envctl.agent.places import Places
from envctl.agent.service import Service
from tests.envctl.agent.console import FakeConsole

NOW = 1_000_000_000.0


class Machine:
    """`disk`: what stands for `/`. The clock moves by what is slept, and by 1 ms at each look."""

    def __init__(self, folder: Path, console: FakeConsole) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.home = self.disk / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.places = Places(
            etc=str(folder / "etc"),
            state=str(folder / "state"),
            run=str(folder / "run"),
            base=os.fsencode(self.disk) + b"/",
        )
        self.places.make()
        (folder / "etc").mkdir(exist_ok=True)
        (folder / "etc" / "seed.json").write_text(json.dumps({"console": console.address, "token": "token"}))
        self.now = NOW
        self.world = World(self.time, self.sleep, os.urandom)

    def time(self) -> float:
        self.now += 0.001
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def service(self, reached: Callable[[str], None] = lambda point: None) -> Service:
        return Service(self.places, self.world, version="test", reached=reached)

    def memory(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(self.places.memory).read_text())
        return found

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path(self.places.run, "status.json").read_text())
        return found


def seen(root: Path) -> dict[bytes, tuple[Any, ...]]:
    """Everything about the files below `root` that a restore must bring back, by path. Links are groups of paths."""
    found: dict[bytes, tuple[Any, ...]] = {}
    groups: dict[int, bytes] = {}
    top = os.fsencode(root)
    for folder, directories, files in os.walk(top):
        directories.sort()
        for name in [b"", *sorted(files), *[each for each in directories if os.path.islink(folder + b"/" + each)]]:
            path = folder + b"/" + name if name else folder
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            content: bytes = b""
            if kind == stat.S_IFREG:
                with open(path, "rb") as file:
                    content = file.read()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            xattrs = sorted(
                (each, os.getxattr(path, each, follow_symlinks=False))
                for each in os.listxattr(path, follow_symlinks=False)
            )
            group = groups.setdefault(status.st_ino, path[len(top) :]) if kind != stat.S_IFDIR else b""
            found[path[len(top) :]] = (
                kind,
                stat.S_IMODE(status.st_mode),
                status.st_uid,
                status.st_gid,
                status.st_mtime_ns,
                content,
                tuple(xattrs),
                group,
            )
    return found
