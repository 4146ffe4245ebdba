"""Disk images that come into being: where an export goes, a raw or qcow2 file or a pipe.

One rule: a file under its final name is whole. The work happens in `FILE.part`; `FILE.part.json` says which state of which
volume it holds up to which extent, so that a raw export that was stopped goes on where it stood; the rename comes last.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import BinaryIO

from blockdev.errors import ImageRefused, LocalDiskFailed
from blockdev.qcow2.format import Compression
from blockdev.qcow2.writer import Qcow2Writer
from blockdev.units import MIB

Buffer = bytes | bytearray | memoryview

NOTE_BYTES = 256 * MIB
"""Written between two notes of how far it has come."""
_ZEROS = bytes(MIB)


class ImageFile:
    """A sparse raw image that comes into being. `stamp` names the state it holds: only the same one is continued.

    Raises LocalDiskFailed when the disk refuses (a full disk keeps what is there for the next attempt)."""

    def __init__(self, path: Path, *, size_bytes: int, stamp: str, force: bool) -> None:
        self._path = path
        self._part = path.with_name(path.name + ".part")
        self._note = path.with_name(path.name + ".part.json")
        self._stamp = stamp
        self._unsynced = 0
        self.start = 0
        """The extent to begin with."""
        if path.exists() and not path.is_file():
            raise ImageRefused(f"{path} is not a regular file", hint="use - and a pipe to write to devices")
        if path.exists() and not force:
            raise ImageRefused(f"{path} exists", hint="choose another name, or replace it with --force")
        self._file = self._open()
        try:
            self.start = self._resumed()
            if not self.start:
                # The note first: it must never speak of content that is gone.
                self._note.unlink(missing_ok=True)
                os.ftruncate(self._file, 0)
            os.ftruncate(self._file, size_bytes)
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def _open(self) -> int:
        try:
            file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise ImageRefused(f"{self._path.parent} is no directory", hint="make it first") from error
        except OSError as error:
            raise self._failed(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(file)
            raise ImageRefused(f"{self._part} is being written by another process") from error
        return file

    def _resumed(self) -> int:
        try:
            note = json.loads(self._note.read_bytes())
            return int(note["done"]) if note["stamp"] == self._stamp else 0
        except FileNotFoundError:
            return 0
        except (ValueError, KeyError, TypeError):
            # A note cut short by a crash: beginning anew costs time and nothing else.
            return 0

    def write(self, offset: int, data: Buffer) -> None:
        view = memoryview(data)
        while view:
            try:
                written = os.pwrite(self._file, view, offset)
            except OSError as error:
                raise self._failed(error) from error
            offset += written
            self._unsynced += written
            view = view[written:]

    def reached(self, extent: int) -> None:
        """Everything up to and including `extent` has been written; noted from time to time, after a sync."""
        if self._unsynced < NOTE_BYTES:
            return
        fresh = self._note.with_suffix(".new")
        try:
            os.fdatasync(self._file)
            fresh.write_text(json.dumps({"stamp": self._stamp, "done": extent + 1}))
            os.replace(fresh, self._note)
        except OSError as error:
            raise self._failed(error) from error
        self._unsynced = 0

    def finish(self) -> None:
        """Make it durable under its name."""
        try:
            os.fsync(self._file)
            os.replace(self._part, self._path)
            self._note.unlink(missing_ok=True)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """What is there of a part stays for the next attempt. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _failed(self, error: OSError) -> LocalDiskFailed:
        return LocalDiskFailed(
            f"{self._part}: {error.strerror or error}",
            hint="make room or choose another disk; the same command goes on",
        )


class Qcow2Image:
    """A qcow2 image that comes into being. One that was stopped begins anew: its tables were in memory alone.

    Raises as ImageFile does. A crash leaves `FILE.part`, which does not begin as a qcow2 image until all of it is there."""

    def __init__(self, path: Path, *, size_bytes: int, compression: Compression | None, force: bool) -> None:
        self._file = ImageFile(path, size_bytes=0, stamp="", force=force)
        self._writer = Qcow2Writer(self._file.write, size_bytes, compression=compression)
        self.start = 0

    def write(self, offset: int, data: Buffer) -> None:
        self._writer.write(offset, data)

    def reached(self, extent: int) -> None:
        """Nothing to note."""

    def finish(self) -> None:
        self._writer.finish()
        self._file.finish()

    def close(self) -> None:
        self._file.close()


class ImageStream:
    """A raw image into a pipe: zeros are written out."""

    def __init__(self, stream: BinaryIO, *, size_bytes: int) -> None:
        self._stream = stream
        self._size = size_bytes
        self._at = 0
        self.start = 0

    def write(self, offset: int, data: Buffer) -> None:
        self._zeros(offset)
        self._stream.write(data)
        self._at += len(data)

    def reached(self, extent: int) -> None:
        """A pipe remembers nothing."""

    def finish(self) -> None:
        self._zeros(self._size)
        self._stream.flush()

    def close(self) -> None:
        """The stream belongs to whoever opened it."""

    def _zeros(self, end: int) -> None:
        while self._at < end:
            size = min(len(_ZEROS), end - self._at)
            self._stream.write(memoryview(_ZEROS)[:size])
            self._at += size
