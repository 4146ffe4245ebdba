"""The port to a durable local file, and its POSIX adapter.

One rule: journal and cache touch their files through this port alone, so that a simulated disk which loses and tears
writes can stand in. What was written survives the death of the process; only `fdatasync` makes it survive the host's.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from blockdev.errors import LocalDiskFailed

Buffer = bytes | bytearray | memoryview

_IOV_MAX = os.sysconf("SC_IOV_MAX") if os.sysconf("SC_IOV_MAX") > 0 else 1024
_SYNC_FILE_RANGE_WRITE = 2


def _found_sync_file_range() -> Callable[[int, int, int, int], int] | None:
    """sync_file_range(2), which Python has no name for; None where the C library has none either."""
    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        function.restype = ctypes.c_int
    return function


_sync_file_range = _found_sync_file_range()


class DurableFile(Protocol):
    """Every method but `begin_writing` may raise OSError. Only `fdatasync` may be called from another thread."""

    @property
    def name(self) -> str:
        """Where it is, for messages."""
        ...

    def pread(self, length: int, offset: int, /) -> bytes:
        """Up to `length` bytes from `offset`; fewer only at the file's end."""
        ...

    def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        """Fill the buffers from `offset`; the number of bytes read."""
        ...

    def pwritev(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        """Write all buffers end to end at `offset`: all of it, or OSError (then any part may have been written)."""
        ...

    def begin_writing(self, length: int, offset: int, /) -> None:
        """What was written here will be synced soon: begin to carry it to the disk, and do not wait for that. Promises
        nothing; an error shows at the next `fdatasync`."""
        ...

    def fdatasync(self) -> None:
        """Return once everything written before the call is durable."""
        ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class PosixFile:
    """A file opened once and kept open until `close`, or until nobody refers to it any more."""

    _fd = -1

    def __init__(self, path: str | os.PathLike[str], *, writable: bool = True) -> None:
        """Open an existing file. Raises OSError."""
        self.name = os.fspath(path)
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)

    @classmethod
    def create(cls, path: str | os.PathLike[str], size: int) -> "PosixFile":
        """A new file of `size` zero bytes, not yet durable. Raises FileExistsError, and LocalDiskFailed when the file
        system has no room for it; nothing is left behind then."""
        place = Path(path)
        # Exclusive: whoever finds the name taken has found somebody's data.
        os.close(os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            free = _free_bytes(place)
            if free < size:
                raise _no_room(place, size, size - free)
            file = cls(place)
        except BaseException:
            place.unlink()
            raise
        try:
            os.posix_fallocate(file._fd, 0, size)
        except OSError as error:
            file.close()
            place.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(place, size, max(size - _free_bytes(place), 1)) from error
            raise
        return file

    def pread(self, length: int, offset: int, /) -> bytes:
        return os.pread(self._fd, length, offset)

    def preadv(self, buffers: Sequence[bytearray | memoryview], offset: int, /) -> int:
        return os.preadv(self._fd, buffers, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int, /) -> int:
        if len(buffers) <= _IOV_MAX:
            written = os.pwritev(self._fd, buffers, offset)
            # Counting costs less than the rest of a single write, and a short write is rare but legal.
            if written == sum(map(len, buffers)):
                return written
            return written + self._write_rest(buffers, written, offset + written)
        total = 0
        for start in range(0, len(buffers), _IOV_MAX):
            total += self.pwritev(buffers[start : start + _IOV_MAX], offset + total)
        return total

    def _write_rest(self, buffers: Sequence[Buffer], skip: int, offset: int) -> int:
        total = 0
        for buffer in buffers:
            if skip >= len(buffer):
                skip -= len(buffer)
                continue
            view = memoryview(buffer)[skip:]
            skip = 0
            while view:
                written = os.pwrite(self._fd, view, offset + total)
                if not written:
                    raise OSError(errno.EIO, "write made no progress", self.name)
                total += written
                view = view[written:]
        return total

    def begin_writing(self, length: int, offset: int, /) -> None:
        if _sync_file_range is not None:
            # What this returns says nothing that fdatasync, which waits for the same pages, would not say again.
            _sync_file_range(self._fd, offset, length, _SYNC_FILE_RANGE_WRITE)

    def fdatasync(self) -> None:
        os.fdatasync(self._fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()


def publish(temporary: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Give a finished, synced file its name, durably. Crash before: only the temporary name exists. Raises OSError."""
    os.rename(temporary, path)
    directory = os.open(Path(path).parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def keep_freed_memory() -> bool:
    """Tell glibc to serve buffers up to 32 MiB from memory it keeps, for this process. Whether it was possible.

    Without this each large read is a fresh mapping, and its page faults halve the throughput of large cached reads."""
    with suppress(OSError, AttributeError):  # another libc has no mallopt: slower, not wrong
        mallopt = ctypes.CDLL(None).mallopt
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of <malloc.h>
        return bool(mallopt(mmap_threshold, 32 << 20) and mallopt(trim_threshold, 128 << 20))
    return False


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path.parent)
    return status.f_bavail * status.f_frsize


def _no_room(path: Path, size: int, missing: int) -> LocalDiskFailed:
    return LocalDiskFailed(
        f"no room for {path}: {size} bytes are needed, {missing} are missing on the file system of {path.parent}",
        hint="free that much, or choose a smaller size or another directory",
    )
