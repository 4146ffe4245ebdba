"""Bounded room for bytes that S3 does not have yet: in memory while there is room, else in files without a name.

Room is given for whole parts before their first byte comes, so whoever has some can fill it and send it: uploads never wait
for each other in a ring.

One rule: the bounds hold whatever comes. Files have no name (O_TMPFILE), so a killed process leaves nothing on the disk.
"""

import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from s3core.clock import Clock, SystemClock
from s3core.content import LazyBody
from s3core.errors import StoreError, Unavailable
from s3core.store import Buffer

PIECE_BYTES = 1 << 20
_WAIT_S = 0.5
_TURNING_S = 1.0


class Room(Protocol):
    """What one part waits in: written from its beginning without gaps, and over what was written. Not for two threads at
    once."""

    capacity: int

    def write(self, offset: int, data: Buffer) -> None:
        """OSError where the disk is full."""
        ...

    def read(self, offset: int, length: int) -> bytes: ...

    def body(self, length: int) -> Buffer | LazyBody:
        """The first `length` bytes, for the bucket port; valid until `release`."""
        ...

    def release(self) -> None:
        """Give the room back. Nobody may use the body any more."""
        ...


class FileSpan(LazyBody):
    """`length` bytes from `offset` of an open file, read a piece at a time; the same ones each time while nobody writes
    there. OSError where the file has become shorter."""

    def __init__(self, file: int, offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length

    @property
    def byte_count(self) -> int:
        return self._length

    def __len__(self) -> int:
        return -(-self._length // PIECE_BYTES)

    def piece(self, at: int) -> Buffer:
        begin = at * PIECE_BYTES
        return read_exactly(self._file, self._offset + begin, min(PIECE_BYTES, self._length - begin))


class Spool:
    """`memory_bytes` and `disk_bytes` bound what is given out at once. `directory` is where the files without a name are.
    Where memory holds more parts than `parallel`, which leave at once, and turns over, it is waited for: that is as fast as the
    store is, and the disk need not be. The disk is for a store that takes nothing for a second, and for parts too large."""

    def __init__(
        self, memory_bytes: int, disk_bytes: int, directory: Path, *, parallel: int = 1, clock: Clock | None = None
    ) -> None:
        self.memory_bytes = memory_bytes
        self.disk_bytes = disk_bytes
        self._directory = directory
        self._parallel = parallel
        self._clock = clock or SystemClock()
        self._changed = threading.Condition()
        self._in_memory = 0  # given out, under _changed
        self._on_disk = 0  # likewise
        self._turned = self._clock.monotonic()  # when memory was last given out or back; under _changed
        self._kept: list[mmap.mmap] = []  # to be used again, part of _in_memory's bound; under _changed

    @property
    def largest(self) -> int:
        """The largest part of which two have room."""
        return max(self.memory_bytes, self.disk_bytes) // 2

    @property
    def used(self) -> tuple[int, int]:
        """Bytes given out in memory and on disk."""
        with self._changed:
            return self._in_memory, self._on_disk

    def room(
        self,
        capacity: int,
        patience_s: float,
        failed: Callable[[], StoreError | None] = lambda: None,
        moved: Callable[[], float] = lambda: 0.0,
    ) -> Room:
        """Room for `capacity` bytes; waits for it. Unavailable once `patience_s` passed since the call and since bytes last
        `moved` (the clock's monotonic reading), or what `failed` gives meanwhile."""
        if capacity > max(self.memory_bytes, self.disk_bytes):
            raise ValueError(f"the spool has no room for a part of {capacity:,} bytes")
        began = self._clock.monotonic()
        with self._changed:
            while True:
                error = failed()
                if error is not None:
                    raise error
                if self._in_memory + capacity <= self.memory_bytes:
                    self._in_memory += capacity
                    self._turned = self._clock.monotonic()
                    memory: mmap.mmap | None = self._mapped(capacity)
                    break
                now = self._clock.monotonic()
                turning = self.memory_bytes // capacity > self._parallel and now < self._turned + _TURNING_S
                if self._on_disk + capacity <= self.disk_bytes and not turning:
                    self._on_disk += capacity
                    memory = None
                    break
                left = max(began, moved()) + patience_s - now
                if left <= 0:
                    raise Unavailable(
                        f"the spool is full, and for {patience_s:g} s the store took nothing",
                        hint="see whether the endpoint answers",
                    )
                self._changed.wait(min(left, _WAIT_S, self._turned + _TURNING_S - now if turning else _WAIT_S))
        if memory is not None:
            return _MemoryRoom(self, capacity, memory)
        try:
            return _DiskRoom(self, capacity, _unnamed_file(self._directory))
        except OSError:
            self._back_disk(capacity)
            raise

    def _mapped(self, capacity: int) -> mmap.mmap:
        for kept in self._kept:
            if len(kept) == capacity:
                self._kept.remove(kept)
                return kept
        # Others are of no use while parts of this size are wanted.
        self._kept.clear()
        return mmap.mmap(-1, capacity)

    def _back_memory(self, memory: mmap.mmap, reusable: bool) -> None:
        with self._changed:
            self._in_memory -= len(memory)
            self._turned = self._clock.monotonic()
            if reusable:
                self._kept.append(memory)
            if not self._in_memory:
                self._kept.clear()  # nobody uploads: the memory is the system's again
            self._changed.notify_all()

    def _back_disk(self, capacity: int) -> None:
        with self._changed:
            self._on_disk -= capacity
            self._changed.notify_all()


class _MemoryRoom:
    def __init__(self, spool: Spool, capacity: int, memory: mmap.mmap) -> None:
        self.capacity = capacity
        self._spool = spool
        self._memory: mmap.mmap | None = memory

    def write(self, offset: int, data: Buffer) -> None:
        assert self._memory is not None
        self._memory[offset : offset + len(data)] = data

    def read(self, offset: int, length: int) -> bytes:
        assert self._memory is not None
        return self._memory[offset : offset + length]

    def body(self, length: int) -> Buffer:
        assert self._memory is not None
        return memoryview(self._memory)[:length]

    def release(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            self._spool._back_memory(memory, True)


class _DiskRoom:
    def __init__(self, spool: Spool, capacity: int, file: int) -> None:
        self.capacity = capacity
        self._spool = spool
        self._file = file
        self._released = False

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file, view, offset)
            view, offset = view[done:], offset + done

    def read(self, offset: int, length: int) -> bytes:
        return read_exactly(self._file, offset, length)

    def body(self, length: int) -> LazyBody:
        return FileSpan(self._file, 0, length)

    def release(self) -> None:
        if not self._released:
            self._released = True
            os.close(self._file)
            self._spool._back_disk(self.capacity)


def read_exactly(file: int, offset: int, length: int) -> bytes:
    """OSError where the file ends before."""
    data = os.pread(file, length, offset)
    while len(data) < length:
        more = os.pread(file, length - len(data), offset + len(data))
        if not more:
            raise OSError(f"the file ends at {offset + len(data):,}, inside the {length:,} bytes from {offset:,}")
        data += more
    return data


def _unnamed_file(directory: Path) -> int:
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except (IsADirectoryError, OSError):  # file systems without it
        file, name = tempfile.mkstemp(prefix="spool-", dir=directory)
        os.unlink(name)
        return file
