"""The port through which archives are read: ranges of an object or a file.

One rule: who reads here never holds more than `STEP_BYTES` of what came.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from plugin.archive.errors import BadArchive

STEP_BYTES = 1 << 20


class Ranges(Protocol):
    """What `plugin.range_reader.RangeReader` is: one version of one object, in plain bytes."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, length: int) -> bytes:
        """What a file would give: fewer bytes at the end, none beyond."""
        ...


class FileRanges:
    """A local file, as it was when it was opened."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._file).st_size

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, max(0, min(length, self.size - offset)), offset)

    def close(self) -> None:
        os.close(self._file)


class BytesRanges:
    """Bytes in memory: a head that was read already, or what a test made."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, length: int) -> bytes:
        return self._data[offset : offset + length]


def steps(ranges: Ranges, start: int, end: int, step: int = STEP_BYTES) -> Iterator[bytes]:
    """The bytes from `start` to `end`, in pieces. BadArchive where the object ends before."""
    while start < end:
        data = ranges.read(start, min(step, end - start))
        if not data:
            raise BadArchive(f"the object ends {end - start:,} bytes too early", start)
        yield data
        start += len(data)
