"""Disk content with holes, QEMU's qemu-img, and images in memory."""

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockdev.qcow2.format import Compression
from blockdev.qcow2.reader import Qcow2Reader
from blockdev.qcow2.writer import Qcow2Writer

Runs = list[tuple[int, bytes]]


def qemu_img(*arguments: str | Path, ok: bool = True) -> str:
    """What it says; skips, naming the package, where it is not installed."""
    path = shutil.which("qemu-img")
    if path is None:
        pytest.skip("needs qemu-img: apt-get install qemu-utils")
    done = subprocess.run([path, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode == 0) == ok, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def content(seed: int, size: int, *, runs: int = 12, unit: int = 512) -> Runs:
    """Rising runs of data, some that compress and some that do not, in a disk of `size` bytes."""
    source = random.Random(seed)
    at = 0
    made: Runs = []
    for _ in range(runs):
        at += source.randrange(0, max(1, size // runs)) // unit * unit
        length = min(source.choice([unit, 4096, 70_000, 300_000]) // unit * unit, size - at)
        if length <= 0:
            break
        data = source.choice([source.randbytes(length), b"some text, again and again. " * (length // 28 + 1)])
        made.append((at, data[:length]))
        at += length
    # The disk's last bytes as well: that is where cutting goes wrong.
    if at < size - unit:
        made.append((size - unit, source.randbytes(unit)))
    return made


def flat(runs: Runs, size: int) -> bytes:
    disk = bytearray(size)
    for at, data in runs:
        disk[at : at + len(data)] = data
    return bytes(disk)


def raw_file(path: Path, runs: Runs, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in runs:
            file.seek(at)
            file.write(data)
    return path


class MemoryImage:
    """A file in memory, for writer and reader."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)

    def pwrite(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset : offset + len(data)] = data

    def pread(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def reader(self) -> Qcow2Reader:
        return Qcow2Reader(self.pread, len(self.data), what="image")


def written(
    runs: Runs,
    size: int,
    *,
    bits: int = 16,
    compression: Compression | None = None,
    before_finish: Callable[[MemoryImage], None] = lambda image: None,
) -> MemoryImage:
    image = MemoryImage()
    writer = Qcow2Writer(image.pwrite, size, compression=compression, cluster_bits=bits)
    for at, data in runs:
        writer.write(at, data)
    before_finish(image)
    writer.finish()
    return image


def whole(reader: Qcow2Reader, *, step: int = 1 << 20) -> bytes:
    """All of the disk; what `ranges` leaves out is not read."""
    disk = bytearray(reader.size_bytes)
    for begin, end in reader.ranges():
        for at in range(begin, end, step):
            piece = min(step, end - at)
            disk[at : at + piece] = reader.read(at, piece)
    return bytes(disk)
