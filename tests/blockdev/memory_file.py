"""A `DurableFile` in memory whose host can lose power: writes since the last fdatasync are then kept, lost or torn."""

import random
from collections.abc import Sequence

from blockdev.journal.file import Buffer


class MemoryFile:
    """`content` is what a reader sees, `durable` what a power cut leaves for certain."""

    def __init__(self, size: int = 0, name: str = "memory") -> None:
        self.name = name
        self.content = bytearray(size)
        self.durable = bytearray(size)
        self.pending: list[tuple[int, bytes]] = []
        self.writes = 0
        self.syncs = 0
        self.begun: list[tuple[int, int]] = []
        """Offset and length of every `begin_writing`."""
        self.fail_writes = False
        self.fail_syncs = False

    def pread(self, length: int, offset: int, /) -> bytes:
        return bytes(self.content[offset : offset + length])

    def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        total = 0
        for buffer in buffers:
            part = self.content[offset + total : offset + total + len(buffer)]
            buffer[: len(part)] = part
            total += len(part)
        return total

    def pwritev(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        if self.fail_writes:
            raise OSError(5, "Input/output error")
        data = b"".join(buffers)
        self.writes += 1
        self.pending.append((offset, data))
        _put(self.content, offset, data)
        return len(data)

    def begin_writing(self, length: int, offset: int, /) -> None:
        self.begun.append((offset, length))

    def fdatasync(self) -> None:
        self.syncs += 1
        if self.fail_syncs:
            raise OSError(5, "Input/output error")
        for offset, data in self.pending:
            _put(self.durable, offset, data)
        self.pending.clear()

    def power_cut(self, randomness: random.Random) -> "MemoryFile":
        """The file as the next start finds it."""
        after = bytearray(self.durable)
        for offset, data in self.pending:
            # Disks keep 512-byte sectors whole and promise no order.
            fate = randomness.random()
            for start in range(0, len(data), 512):
                if fate < 0.3 or (fate < 0.6 and randomness.random() < 0.5):
                    _put(after, offset + start, data[start : start + 512])
        found = MemoryFile(name=self.name)
        found.content = after
        found.durable = bytearray(after)
        return found

    def size(self) -> int:
        return len(self.content)

    def close(self) -> None:
        pass


def _put(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset + len(data):
        target.extend(bytes(offset + len(data) - len(target)))
    target[offset : offset + len(data)] = data
