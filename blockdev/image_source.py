"""Disk images that are read: a raw file or device, a raw stream, a qcow2 image.

One rule: what is not there costs nothing: holes in a file and clusters that a qcow2 image does not have are not read.
The content of a raw image is whatever its guest wrote, so an image is taken for qcow2 by its first bytes, and a qcow2
image never makes us open another file.
"""

import os
import select
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from blockdev.errors import ImageRefused, LocalDiskFailed
from blockdev.qcow2.format import MAGIC as QCOW2
from blockdev.qcow2.reader import Qcow2Reader

FORMATS = ("raw", "qcow2")
_LOOK_BYTES = 512
_WAIT_S = 0.3
_CONVERT = "qemu-img convert -O qcow2 OLD NEW makes an image that can be imported"
_UNPACK = "unpack it first"
_MAGICS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"KDMV", "a VMDK image", _CONVERT),
    (0, b"COWD", "a VMDK image", _CONVERT),
    (0, b"# Disk DescriptorFile", "the description of a VMDK image", _CONVERT),
    (0, b"vhdxfile", "a VHDX image", _CONVERT),
    (0, b"conectix", "a VHD image", _CONVERT),
    (64, b"\x7f\x10\xda\xbe", "a VDI image", _CONVERT),
    (0, b"QED\0", "a QED image", _CONVERT),
    (0, b"WithoutFreeSpace", "a Parallels image", _CONVERT),
    (0, b"WithouFreSpacExt", "a Parallels image", _CONVERT),
    (0, b"\x1f\x8b\x08", "packed with gzip", _UNPACK),
    (0, b"\xfd7zXZ\0", "packed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (0, b"PK\x03\x04", "packed with zip", _UNPACK),
)
"""(offset, bytes there, what the file is, what to do)."""


class ImageSource(Protocol):
    """The content of a disk image."""

    size_bytes: int

    def count(self, extent_bytes: int) -> int:
        """How many extents of that size `extents` will name, or at most will. Looks at all that describes the image."""
        ...

    def extents(self, extent_bytes: int) -> Iterator[int]:
        """The extents that may hold something, rising; every other one is zeros."""
        ...

    def read(self, offset: int, length: int) -> bytes | bytearray:
        """`length` bytes from `offset`, zeros behind the end. For a stream each extent that was named, once. Safe to
        call from several threads at once."""
        ...

    def verify(self) -> None:
        """Raises ImageRefused when the image has changed since it was opened, or a stream is longer than was said."""
        ...

    def close(self) -> None: ...


class _File:
    """A file or block device, read in pieces. Raises ImageRefused, LocalDiskFailed, FileNotFoundError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(self.number)
            if stat.S_ISBLK(found.st_mode):
                self.size = os.lseek(self.number, 0, os.SEEK_END)
            elif stat.S_ISREG(found.st_mode):
                self.size = found.st_size
            else:
                raise ImageRefused(
                    f"{path} is neither a file nor a block device", hint="a pipe is imported as -, with --size"
                )
            self._stamp = found.st_mtime_ns, self.size
        except BaseException:
            os.close(self.number)
            raise

    def pread(self, offset: int, length: int) -> bytes:
        """That piece, shorter only at the end of the file."""
        pieces: list[bytes] = []
        while length > 0:
            try:
                piece = os.pread(self.number, length, offset)
            except OSError as error:
                raise LocalDiskFailed(f"{self._path} cannot be read at {offset}: {error.strerror or error}") from error
            if not piece:
                break
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def data(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of what is not a hole; where the file system cannot tell, all of it."""
        at = 0
        while at < self.size:
            try:
                begin = os.lseek(self.number, at, os.SEEK_DATA)
                end = os.lseek(self.number, begin, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == 6:  # ENXIO: nothing but a hole up to the end
                    return
                begin, end = at, self.size
            yield begin, min(end, self.size)
            at = end

    def verify(self) -> None:
        found = os.fstat(self.number)
        if stat.S_ISREG(found.st_mode) and self._stamp != (found.st_mtime_ns, found.st_size):
            raise ImageRefused(
                f"{self._path} changed while it was imported", hint="stop what writes to it, or import a copy"
            )

    def close(self) -> None:
        if self.number >= 0:
            os.close(self.number)
            self.number = -1


def _extents(ranges: Iterator[tuple[int, int]], extent_bytes: int) -> Iterator[int]:
    following = 0
    for begin, end in ranges:
        first = max(following, begin // extent_bytes)
        following = max(following, -(-end // extent_bytes))
        yield from range(first, following)


class RawSource:
    """A raw image in a file or on a block device."""

    def __init__(self, file: _File) -> None:
        self._file = file
        self.size_bytes = file.size

    def count(self, extent_bytes: int) -> int:
        return sum(1 for _ in self.extents(extent_bytes))

    def extents(self, extent_bytes: int) -> Iterator[int]:
        return _extents(self._file.data(), extent_bytes)

    def read(self, offset: int, length: int) -> bytes:
        return self._file.pread(offset, length).ljust(length, b"\0")

    def verify(self) -> None:
        self._file.verify()

    def close(self) -> None:
        self._file.close()


class Qcow2Source:
    """A qcow2 image in a file. Raises ImageRefused, CorruptFormat, as Qcow2Reader does."""

    def __init__(self, file: _File, what: str) -> None:
        self._file = file
        self._reader = Qcow2Reader(file.pread, file.size, what=what)
        self.size_bytes = self._reader.size_bytes

    def count(self, extent_bytes: int) -> int:
        return sum(1 for _ in self.extents(extent_bytes))

    def extents(self, extent_bytes: int) -> Iterator[int]:
        return _extents(self._reader.ranges(), extent_bytes)

    def read(self, offset: int, length: int) -> bytearray:
        return self._reader.read(offset, length)

    def verify(self) -> None:
        self._file.verify()

    def close(self) -> None:
        self._file.close()


class StreamSource:
    """A raw image out of a pipe (a stream with a file descriptor): `size_bytes` bytes, not one less or more."""

    def __init__(self, stream: BinaryIO, size_bytes: int) -> None:
        self._file = stream.fileno()
        self.size_bytes = size_bytes
        self._held: dict[int, bytes] = {}
        self._closed = False

    def count(self, extent_bytes: int) -> int:
        return -(-self.size_bytes // extent_bytes)

    def extents(self, extent_bytes: int) -> Iterator[int]:
        for offset in range(0, self.size_bytes, extent_bytes):
            wanted = min(extent_bytes, self.size_bytes - offset)
            data = self._take(wanted)
            if len(data) < wanted:
                raise ImageRefused(
                    f"standard input ended after {offset + len(data)} of {self.size_bytes} bytes",
                    hint="was what writes to it stopped? --size has to be the image's size",
                )
            self._held[offset] = data
            yield offset // extent_bytes

    def read(self, offset: int, length: int) -> bytes:
        return self._held.pop(offset).ljust(length, b"\0")

    def verify(self) -> None:
        if self._take(1):
            raise ImageRefused(
                f"standard input goes on after {self.size_bytes} bytes", hint="--size has to be the image's size"
            )

    def close(self) -> None:
        """Whoever waits for the stream on another thread stops waiting. The stream belongs to whoever opened it."""
        self._closed = True

    def _take(self, length: int) -> bytes:
        """That many bytes, fewer only at the stream's end or when closed."""
        pieces: list[bytes] = []
        waiting = select.poll()  # select knows files up to number 1,023 only
        waiting.register(self._file, select.POLLIN)
        while length > 0 and not self._closed:
            # In short waits: a stream that stalls must not keep an interrupted command from ending.
            if not waiting.poll(_WAIT_S * 1000):
                continue
            try:
                piece = os.read(self._file, length)
            except OSError as error:
                raise LocalDiskFailed(f"standard input cannot be read: {error.strerror or error}") from error
            if not piece:
                break
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)


def open_image(path: Path, form: str | None) -> ImageSource:
    """The image in `path`; `form` is one of FORMATS, None to go by its first bytes. Raises ImageRefused (another
    format, an image that is not in order), CorruptFormat, LocalDiskFailed, FileNotFoundError."""
    file = _File(path)
    try:
        if form is None:
            form = _form(file, path)
        return Qcow2Source(file, str(path)) if form == "qcow2" else RawSource(file)
    except BaseException:
        file.close()
        raise


def _form(file: _File, path: Path) -> str:
    begin = file.pread(0, _LOOK_BYTES)
    if begin.startswith(QCOW2):
        return "qcow2"
    for offset, magic, kind, cure in _MAGICS:
        if begin[offset : offset + len(magic)] == magic:
            raise ImageRefused(f"{path} is {kind}", hint=f"{cure}; --format raw takes it as it is")
    if file.pread(max(0, file.size - 512), 8) == b"conectix":
        raise ImageRefused(f"{path} is a VHD image", hint=f"{_CONVERT}; --format raw takes it as it is")
    return "raw"
