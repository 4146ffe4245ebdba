"""One file that is being written, and one that is read.

One rule: an object appears under a final name only by `finish` of an upload, which returns when the store was seen to hold
what was written. An error is kept: whoever writes, flushes or renames the file afterwards meets it again, never a success.

A crash leaves parts that no object names, and spool files: the next start of the mount removes both (`Uploader.clean_up`,
`clean_local`). Nothing of it was ever to be seen under a final name.
"""

import contextlib
import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from plugin.errors import LocalSpace, PluginError, Refused
from plugin.mount.naming import HEAD_BYTES, Kind, Place, predict
from plugin.upload.stream import CannotRewind, KeyChoice, Uploaded
from s3core.errors import Corrupt, Denied, StoreError, Unsupported
from s3core.quantities import written_size
from s3core.store import Buffer

log = logging.getLogger(__name__)

REWRITE_BYTES_MAX: Final = 4 << 20
"""A finished file of at most so many bytes may be opened for changing: it is fetched, changed and put anew."""
INDEX_WAIT_S: Final = 20.0
"""The index of an archive is a convenience: so long a rename waits for it."""
LOCAL_RESERVE_BYTES: Final = 512 << 20
"""So much of the local file system a file that is kept whole leaves free."""
_FULL: Final = ("quota", "storage full", "storagefull", "insufficientcapacity", "insufficient storage", " 507")


ERRORS: Final = (StoreError, OSError, PluginError)
"""What may go wrong below."""


class Sink(Protocol):
    """Where the bytes of a file go: a StreamingUpload of `plugin.upload`, or a local file."""

    @property
    def size(self) -> int: ...
    def write_at(self, offset: int, data: Buffer) -> int: ...
    def read_at(self, offset: int, length: int) -> bytes: ...
    def truncate(self, size: int) -> None: ...
    def finish(self, key: str = "") -> Uploaded: ...
    def abort(self) -> None: ...


class Sender(Protocol):
    """What is needed of `plugin.upload.uploader.Uploader`."""

    def stream(self, key: KeyChoice) -> Sink: ...
    def file(self, path: Path, key: str) -> Uploaded: ...


class Tap(Protocol):
    """Sees the bytes of an archive on their way; `plugin.archive.tap.IndexTap`. Never raises."""

    def feed(self, data: bytes | memoryview) -> None: ...
    def finish(self, etag: str = "", wait_s: float = 60.0) -> bytes | None: ...
    def cancel(self) -> None: ...


class Failed(OSError):
    """An errno for the caller and a line for the log: what happened, to what, what to do."""


def errno_of(error: BaseException) -> int:
    """The errno that says most of an error of the store or of this host. What is none of them is EIO: a missing upload is
    not a missing file."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    if isinstance(error, CannotRewind):
        return errno.EOPNOTSUPP
    if isinstance(error, LocalSpace):
        return errno.ENOSPC
    if isinstance(error, Refused):
        return errno.EPERM
    text = f" {error}".lower()
    if isinstance(error, StoreError) and any(sign in text for sign in _FULL):
        return errno.EDQUOT if "quotaexceeded" in text.replace(" ", "") else errno.ENOSPC
    if isinstance(error, Denied):
        return errno.EACCES
    return errno.EIO


def failed(what: str, error: BaseException) -> Failed:
    """The error for the caller; logged, once, where it is made."""
    code = errno_of(error)
    log.error("%s: %s%s", what, error, _advice(error))
    return Failed(code, f"{what}: {error}")


def refused(code: int, what: str, advice: str) -> Failed:
    """Something that this mount does not do."""
    log.warning("%s: %s; %s", what, os.strerror(code), advice)
    return Failed(code, f"{what}: {advice}")


def _advice(error: BaseException) -> str:
    if getattr(error, "hint", ""):
        return ""
    if isinstance(error, Corrupt):
        return "; the object was not kept: write it again, and check this host's memory and the way to the store"
    if isinstance(error, Unsupported):
        return "; `pve-s3 doctor` says what the store can"
    if isinstance(error, StoreError) and error.temporary:
        return "; nothing was kept under its name: try again when the store answers (`pve-s3 doctor`)"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; make room on this host, or set state_dir in [pve] to another file system"
    return ""


@dataclass(frozen=True, slots=True)
class Finished:
    """An upload that was verified. `local` is a whole copy on this host: whoever has finished the file keeps or removes
    it. `index`: what a tap made of the bytes."""

    uploaded: Uploaded
    local: Path | None = None
    index: bytes | None = None


class WritingFile:
    """A file between its first open for writing and the moment when it is an object or gone. Any number of handles may
    have it open; calls are serialized. `begin` makes the sink when the first byte comes, so that a file that is only
    touched costs nothing."""

    def __init__(
        self,
        place: Place,
        begin: "Callable[[WritingFile], Sink]",
        *,
        tap: Callable[[Place], Tap | None] = lambda place: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.place = place
        self.opens = 0
        self.modified = now()
        self.since = self.modified
        self.gone = False
        """Unlinked, or replaced by a rename: what is still written to it is lost, as on any file system."""
        self.loaded = False
        """It is an object already, opened to be changed, and was not changed yet."""
        self._begin = begin
        self._now = now
        self._make_tap = tap
        self._tap: Tap | None = None
        self._tapped = 0
        self._lock = threading.RLock()
        self._sink: Sink | None = None
        self._size = 0
        self._error: BaseException | None = None
        self._kept: bytes | None = b""
        self.finished: Finished | None = None

    @property
    def size(self) -> int:
        sink = self._sink
        return sink.size if sink is not None else self._size

    @property
    def error(self) -> BaseException | None:
        return self._error

    @property
    def unfinished(self) -> bool:
        """Whether there is something that the bucket does not have."""
        return self.finished is None and not self.loaded and not self.gone

    def write(self, offset: int, data: Buffer) -> int:
        """Raises Failed; from then on every call does."""
        with self._lock:
            self._check()
            if self.gone:
                return len(data)
            with self._errors(f"writing {self.place.path} at {offset:,}"):
                count = self._writable().write_at(offset, data)
            self._tell_tap(offset, data)
            self.modified = self._now()
            return count

    def read(self, offset: int, length: int) -> bytes:
        """Only bytes that have not left this host. Raises Failed."""
        with self._lock:
            self._check()
            if self._sink is None:
                if self._kept is None:
                    raise refused(errno.ESTALE, f"{self.place.path} is finished", "open it again to read it")
                return self._kept[offset : offset + length]
            length = max(0, min(length, self._sink.size - offset))
            if not length:
                return b""
            try:
                return self._sink.read_at(offset, length)
            except CannotRewind:
                raise refused(
                    errno.EBUSY,
                    f"{self.place.path} is being written",
                    "its begin is on the way to the bucket already; read it when it is finished",
                ) from None
            except ERRORS as error:
                raise failed(f"reading {self.place.path}, which is being written", error) from error

    def truncate(self, size: int) -> None:
        """Raises Failed."""
        with self._lock:
            self._check()
            if size == self.size and not self.loaded:
                return
            with self._errors(f"changing the size of {self.place.path} to {size:,}"):
                if size == 0:
                    self._start_anew()
                else:
                    self._writable().truncate(size)
            self.modified = self._now()

    def load(self, content: bytes) -> None:
        """Begin as a finished object of this content; nothing is sent before it is changed."""
        self._kept, self._size, self.loaded = content, len(content), True

    def check(self) -> None:
        """Raise what has gone wrong so far, on its way to the bucket too."""
        with self._lock:
            self._check()
            if self._sink is not None and not self.gone:
                with self._errors(f"writing {self.place.path}"):
                    self._sink.write_at(self._sink.size, b"")

    def finish(self, key: str) -> Finished:
        """Make it the object `key`, verified; where it is that already, nothing is done. Raises Failed. Bytes that are
        written later begin another upload of the whole."""
        with self._lock:
            self._check()
            if self.finished is not None and self.finished.uploaded.key == key:
                return self.finished
            what = f"finishing {self.place.path}"
            if key.rpartition("/")[2] != self.place.name:
                what += f" as {key}"
            with self._errors(what, final=True):
                sink = self._writable()
                size = sink.size
                self._kept = sink.read_at(0, size) if size <= HEAD_KEPT else None
                uploaded = sink.finish(key)
            self._size = uploaded.plain_bytes
            self._sink = None
            tap, self._tap = self._tap, None
            if tap is not None and self._tapped != size:
                tap.cancel()
                tap = None
            index = tap.finish(uploaded.etag, INDEX_WAIT_S) if tap is not None else None
            self.finished = Finished(uploaded, sink.path if isinstance(sink, LocalSink) else None, index)
            return self.finished

    def abort(self) -> None:
        """Forget what is not finished. Never raises."""
        self.gone = True
        sink = self._sink  # without the lock: a writer may be waiting for the store with it
        if sink is not None:
            sink.abort()
        self._drop_tap()

    def _tell_tap(self, offset: int, data: Buffer) -> None:
        """Only of files that are written front to back."""
        if offset == 0 and self._tapped == 0:
            self._tap = self._make_tap(self.place)
        if self._tap is None:
            return
        if offset != self._tapped:
            self._drop_tap()
            return
        view = memoryview(data)
        self._tapped += view.nbytes
        self._tap.feed(view)

    def _drop_tap(self) -> None:
        tap, self._tap = self._tap, None
        if tap is not None:
            tap.cancel()

    def _check(self) -> None:
        if self._error is not None:
            raise Failed(errno_of(self._error), f"{self.place.path}: {self._error}") from self._error

    def _writable(self) -> Sink:
        """The sink, with what was there before in it."""
        if self._sink is None:
            kept = self._kept
            if kept is None:
                raise Failed(
                    errno.EOPNOTSUPP,
                    "it was finished when a descriptor of it was closed, and cannot be written on; write to another"
                    " name, such as NAME.tmp.1, and rename it",
                )
            self._sink = self._begin(self)
            self._tapped = 0
            self.finished, self.loaded = None, False
            if kept:
                self._sink.write_at(0, kept)
                self._tell_tap(0, kept)
        return self._sink

    def _start_anew(self) -> None:
        if self._sink is not None:
            self._sink.abort()
        self._drop_tap()
        self._sink, self._kept, self._size, self._tapped = None, b"", 0, 0
        self.finished, self.loaded = None, False

    @contextlib.contextmanager
    def _errors(self, what: str, *, final: bool = False):  # type: ignore[no-untyped-def]  # a context manager
        try:
            yield
        except CannotRewind as error:
            raise refused(
                errno.EOPNOTSUPP,
                what,
                f"{error}; files are written front to back here: write it elsewhere, then copy it",
            ) from error
        except Failed as error:
            raise refused(errno_of(error), what, str(error.strerror)) from error
        except ERRORS as error:
            self._error = error
            if self._sink is not None:
                self._sink.abort()
            self._drop_tap()
            raise failed(what, error) from error


HEAD_KEPT: Final = 1 << 20
"""A finished file of at most so many bytes may be written on through the same handle."""


class LocalSink:
    """A file kept whole on this host until it is finished: download-url reads it again before it renames it.

    Bounded by the room of the file system, of which LOCAL_RESERVE_BYTES stay free. It is not synced: after a crash it is
    removed, not used."""

    def __init__(self, path: Path, sender: Sender) -> None:
        self.path = path
        self._sender = sender
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._checked = 0

    @property
    def size(self) -> int:
        return self._size

    def write_at(self, offset: int, data: Buffer) -> int:
        view = memoryview(data)
        end = offset + len(view)
        if end > self._checked:
            self._room(end)
        done = 0
        while done < len(view):
            done += os.pwrite(self._file, view[done:], offset + done)
        self._size = max(self._size, end)
        return done

    def read_at(self, offset: int, length: int) -> bytes:
        return os.pread(self._file, length, offset)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._file, size)
        self._size = size

    def finish(self, key: str = "") -> Uploaded:
        uploaded = self._sender.file(self.path, key)
        os.close(self._file)
        self._file = -1
        return uploaded

    def abort(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self.path.unlink(missing_ok=True)

    def _room(self, end: int) -> None:
        """Look at the file system once for each 64 MiB."""
        step = 64 << 20
        there = os.statvfs(self.path.parent)
        free = there.f_bavail * there.f_frsize
        if free < LOCAL_RESERVE_BYTES + step:
            raise OSError(
                errno.ENOSPC,
                f"it is kept on this host until it is renamed, and {self.path.parent} has {written_size(free)} left",
            )
        self._checked = end + step


def clean_local(directory: Path) -> int:
    """Remove what a dead mount kept on this host (files of `LocalSink`, scratch directories); how many things."""
    found = list(directory.iterdir()) if directory.is_dir() else []
    for one in found:
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink()
    return len(found)


def sink_of(sender: Sender, prefix: str, incoming: Path, number: Callable[[], int]) -> Callable[[WritingFile], Sink]:
    """How files of one storage begin: those that are read again on this host, others on their way to the bucket under the
    name that `predict` tells when the first part leaves."""

    def begin(file: WritingFile) -> Sink:
        place = file.place
        if place.kind is Kind.READ_AGAIN:
            return LocalSink(incoming / f"{number()}-{place.name[-200:]}", sender)
        if place.kind is Kind.FINAL:
            return sender.stream(f"{prefix}{place.path}")
        return sender.stream(lambda head: f"{prefix}{predict(file.place.path, head[:HEAD_BYTES])}")

    return begin
