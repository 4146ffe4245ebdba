"""A disk that loses and tears what was not synced, behind the port `blockdev.journal.file.DurableFile`.

The faults it is allowed:
- the process dies: everything written stays, as the kernel still has it. A write under way may be there in part, its
  beginning first.
- the host dies: each write that no completed fdatasync covers is kept, lost or torn on its own. Torn means: any of its
  512-byte sectors may be missing. What an fdatasync covered that began after the write and returned, is there.
- an fdatasync fails (on demand): the writes it should have covered are dropped from what can become durable.
- a bit flips (on demand), in what is durable and in what a reader sees.

What it is not allowed: changing what was synced, bytes nobody wrote, a file without its size.
"""

import errno
import random
from collections.abc import Callable, Sequence
from uuid import UUID

Buffer = bytes | bytearray | memoryview
SECTOR = 512


class SimFile:
    """One file. `image` is what readers see, `durable` what the platter has, `pending` the writes between the two."""

    def __init__(self, disk: "SimDisk", name: str, size: int) -> None:
        self.disk = disk
        self.name = name
        self.image = bytearray(size)
        self.durable = bytearray(size)
        self.pending: list[tuple[int, bytes]] = []
        self.fail_next_sync = False

    def open(self) -> "SimHandle":
        return SimHandle(self, self.disk.power)

    def flip(self, bit: int) -> None:
        """One bit turns over, at rest."""
        place, mask = bit // 8, 1 << bit % 8
        self.image[place] ^= mask
        self.durable[place] ^= mask

    def apply(self, offset: int, data: bytes, target: bytearray) -> None:
        end = offset + len(data)
        if len(target) < end:
            target.extend(bytes(end - len(target)))
        target[offset:end] = data

    def lose_power(self, random: random.Random) -> None:
        for offset, data in self.pending:
            fate = random.random()
            if fate < 0.4:
                self.apply(offset, data, self.durable)
            elif fate < 0.7:
                for start in _sectors(offset, len(data)):
                    if random.random() < 0.5:
                        low, high = max(start - offset, 0), min(start - offset + SECTOR, len(data))
                        self.apply(offset + low, data[low:high], self.durable)
        self.pending.clear()
        self.image = bytearray(self.durable)


class SimHandle:
    """A file as one process holds it; dead once the process is."""

    def __init__(self, file: SimFile, power: int) -> None:
        self._file = file
        self._power = power
        self.name = file.name

    def _alive(self) -> SimFile:
        if self._power != self._file.disk.power:
            raise OSError(errno.EIO, "the process that opened this file is dead", self.name)
        return self._file

    def pread(self, length: int, offset: int, /) -> bytes:
        return bytes(self._alive().image[offset : offset + length])

    def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        total = 0
        for buffer in buffers:
            data = self.pread(len(buffer), offset + total)
            buffer[: len(data)] = data
            total += len(data)
            if len(data) < len(buffer):
                break
        return total

    def pwritev(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        file = self._alive()
        data = b"".join(buffers)
        try:
            file.disk.point(f"write {self.name}")
        except SystemExit:
            # The crash falls into this call: some of it, from the front, may have reached the kernel.
            part = data[: file.disk.random.randrange(len(data) + 1)]
            file.apply(offset, part, file.image)
            file.pending.append((offset, part))
            raise
        if file.disk.writes_fail:
            raise OSError(errno.EIO, "simulated write error", self.name)
        file.apply(offset, data, file.image)
        file.pending.append((offset, data))
        return len(data)

    def begin_writing(self, length: int, offset: int, /) -> None:
        """What is pending may be durable after a crash in any case."""
        self._alive()

    def begin_sync(self) -> int:
        """An fdatasync begins: what it will cover is what is pending now."""
        return len(self._alive().pending)

    def finish_sync(self, covered: int) -> None:
        """It returns. Raises OSError when it was told to fail."""
        file = self._alive()
        file.disk.point(f"sync {self.name}")
        writes, file.pending = file.pending[:covered], file.pending[covered:]
        if file.fail_next_sync:
            file.fail_next_sync = False
            raise OSError(errno.EIO, "simulated fdatasync error", self.name)
        for offset, data in writes:
            file.apply(offset, data, file.durable)

    def fdatasync(self) -> None:
        self.finish_sync(self.begin_sync())

    def size(self) -> int:
        return len(self._alive().image)

    def close(self) -> None:
        """Nothing to give back."""


class SimDisk:
    """The files of one host. `point` marks places where a crash may fall; `power` counts the processes that died here."""

    def __init__(self, random: random.Random, point: Callable[[str], None] = lambda what: None) -> None:
        self.random = random
        self.point = point
        self.files: dict[str, SimFile] = {}
        self.notes: dict[str, tuple[UUID | None, int]] = {}
        """Small files that are synced and renamed into place: durable at once, so they are values here."""
        self.power = 0
        self.writes_fail = False

    def create(self, name: str, size: int) -> SimHandle:
        """A new file of zeros. Its name and size are durable, as after a rename into place."""
        self.files[name] = SimFile(self, name, size)
        return self.files[name].open()

    def rename(self, old: str, new: str) -> None:
        """Atomic, and durable at once (the port's `publish` syncs the folder)."""
        file = self.files.pop(old)
        file.name = new
        self.files[new] = file

    def open(self, name: str) -> SimHandle:
        """Raises FileNotFoundError."""
        if name not in self.files:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return self.files[name].open()

    def kill_process(self) -> None:
        """kill -9: handles die, nothing is lost."""
        self.power += 1

    def lose_power(self) -> None:
        self.power += 1
        for name in sorted(self.files):
            self.files[name].lose_power(self.random)


def _sectors(offset: int, length: int) -> range:
    return range(offset // SECTOR * SECTOR, offset + length, SECTOR)
