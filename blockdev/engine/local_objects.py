"""Local copies of objects this host wrote or fetched whole, so that folding and re-reading cost no request.

One rule: copies are immutable, named by key, and never trusted: whoever reads one checks the frames in it and calls
`drop` when a checksum fails. Losing any of them costs a GET, nothing else; nothing here is synced.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

Buffer = bytes | bytearray | memoryview


class LocalObjects(Protocol):
    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        """Keep a copy if there is room for it under the bound; never raises for a full disk."""
        ...

    def get_range(self, key: str, offset: int, length: int) -> bytes | None: ...

    def drop(self, key: str) -> None: ...


class MemoryObjects:
    """Copies in memory up to `limit_bytes`; 0 keeps none. For tests, the simulation and the offline reader."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        if len(data) > self._limit:
            return
        with self._lock:
            self._bytes += len(data) - len(self._objects.pop(key, b""))
            self._objects[key] = data
            while self._bytes > self._limit:
                self._bytes -= len(self._objects.popitem(last=False)[1])

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        with self._lock:
            data = self._objects.get(key)
        if data is None or offset + length > len(data):
            return None
        return data[offset : offset + length]

    def drop(self, key: str) -> None:
        with self._lock:
            self._bytes -= len(self._objects.pop(key, b""))


class DirectoryObjects:
    """Copies as files in one directory, oldest use evicted first, at most `limit_bytes` in all.

    A crash leaves at worst a file cut short or a `.part`; the first is found out by its checksums, the second is
    removed at the next start."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self._path = path
        self._limit = limit_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.refused = 0
        path.mkdir(parents=True, exist_ok=True)
        found = []
        for entry in os.scandir(path):
            if entry.name.endswith(".part"):
                os.unlink(entry.path)
                continue
            stat = entry.stat()
            found.append((stat.st_mtime, entry.name, stat.st_size))
        for _, name, size in sorted(found):
            self._sizes[name] = size
            self._bytes += size

    @staticmethod
    def _name(key: str) -> str:
        return key.replace("/", "~")

    def put(self, key: str, parts: Sequence[Buffer]) -> None:
        size = sum(len(part) for part in parts)
        if size > self._limit // 2:
            return
        name = self._name(key)
        part_path = self._path / f"{name}.part"
        try:
            with open(part_path, "wb") as file:
                file.writelines(parts)
            os.replace(part_path, self._path / name)
        except OSError:
            # A full disk must not stop the commit that this copy is a by-product of; counted, and visible in metrics.
            self.refused += 1
            part_path.unlink(missing_ok=True)
            return
        with self._lock:
            self._bytes += size - self._sizes.pop(name, 0)
            self._sizes[name] = size
            victims = []
            while self._bytes > self._limit:
                victim, victim_bytes = self._sizes.popitem(last=False)
                self._bytes -= victim_bytes
                victims.append(victim)
        for victim in victims:
            (self._path / victim).unlink(missing_ok=True)

    def get_range(self, key: str, offset: int, length: int) -> bytes | None:
        name = self._name(key)
        with self._lock:
            if name not in self._sizes:
                return None
            self._sizes.move_to_end(name)
        try:
            with open(self._path / name, "rb") as file:
                data = os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            return None
        return data if len(data) == length else None

    def drop(self, key: str) -> None:
        name = self._name(key)
        with self._lock:
            self._bytes -= self._sizes.pop(name, 0)
        (self._path / name).unlink(missing_ok=True)
