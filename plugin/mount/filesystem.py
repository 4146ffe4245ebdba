"""The operations of the mount, for many threads; FUSE itself is in `library`.

One rule: what names are there and how large they are is answered from what this host knows, without the network; what is
read, finished or deleted is asked of the store, within a deadline, and said to be done when the store has done it.

What is accepted and has no effect: chmod, chown and times of objects (cp -p, scp -p, wget and tar set them; S3 keeps none;
the time shown is the object's). What is refused: directories other than the layout's, links, changes inside finished files
larger than REWRITE_BYTES_MAX, anything that would change or remove a backup with a `.protected` beside it.
"""

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

from plugin.catalogue import Catalogue, Entry
from plugin.errors import NoSuchVolume
from plugin.layout import DIRECTORIES, NOTES, PROTECTED, log_key, notes_key, sidecars, volume_of_key
from plugin.mount import tree
from plugin.mount.handles import (
    ERRORS,
    REWRITE_BYTES_MAX,
    Failed,
    Finished,
    Sender,
    Tap,
    WritingFile,
    errno_of,
    failed,
    refused,
    sink_of,
)
from plugin.mount.naming import Kind, Place, place_of
from plugin.refresh import entry_of
from plugin.upload.stream import Uploaded
from s3core.bucket import Bucket, CopySource
from s3core.errors import NotFound, PreconditionFailed

log = logging.getLogger(__name__)

ABANDONED_S: Final = 24 * 3600.0
"""A file that waits for its rename so long after its writer closed it is forgotten: that writer is dead."""
COPY_PIECE: Final = 8 << 20


class Reader(Protocol):
    """What is needed of `plugin.range_reader.RangeReader`."""

    size: int
    etag: str

    def read(self, offset: int, length: int) -> bytes: ...
    def close(self) -> None: ...


class Readers(Protocol):
    """What is needed of `plugin.range_reader.ReadPool`."""

    def open(self, key: str) -> Reader: ...


class Fresh(Protocol):
    """Has the catalogue brought up to date when it is old; see `plugin.mount.freshness`."""

    def ensure(self) -> None: ...

    @property
    def known(self) -> bool:
        """Whether anything is known of the bucket at all."""
        ...


def _nothing(_path: str, _finished: Finished) -> None:
    return


def _nothing_gone(_path: str) -> None:
    return


def _no_tap(_place: Place) -> Tap | None:
    return None


@dataclass(frozen=True, slots=True)
class World:
    """What a file system stands on. `bucket` copies and deletes, with `prefix` ("" or ending with `/`) before the paths;
    `delete`, where it is given, deletes the object of a path in its place, and returns the paths that went with it.
    `scratch` and `incoming` are directories of this host. `written` is told of each object that was finished, and has
    to keep or to remove its local copy; `deleted` of each that is gone. `tap` may look at what is written to a place.
    `locked`: protection is also a lock in the bucket, which only Proxmox VE's own way sets and takes away."""

    prefix: str
    bucket: Bucket
    catalogue: Catalogue
    sender: Sender
    readers: Readers
    fresh: Fresh
    scratch: Path
    incoming: Path
    quota: int = 0
    delete: Callable[[str], Iterable[str]] | None = None
    written: Callable[[str, Finished], None] = _nothing
    deleted: Callable[[str], None] = _nothing_gone
    tap: Callable[[Place], Tap | None] = _no_tap
    locked: bool = False


@dataclass(slots=True)
class Handle:
    """One open(2). One of `file`, `reader` and `descriptor` is there."""

    path: str
    flags: int
    pid: int
    since: float
    file: WritingFile | None = None
    reader: Reader | None = None
    descriptor: int = -1

    @property
    def writes(self) -> bool:
        """Whether closing it finishes the file: also where it was only made (open with O_CREAT)."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY or bool(self.flags & os.O_CREAT)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """For people and for the upgrade: what is open. `mode` is "read", "write", or "waits" for a rename."""

    path: str
    mode: str
    size: int
    since: float
    pid: int = 0


@dataclass(slots=True)
class _State:
    handles: dict[int, Handle] = field(default_factory=dict)
    writing: dict[str, WritingFile] = field(default_factory=dict)
    closed_at: dict[str, float] = field(default_factory=dict)
    directories: dict[int, str] = field(default_factory=dict)
    next: int = 1


class Filesystem:
    """Paths are as FUSE gives them. Every method may raise OSError with the errno for the caller."""

    def __init__(self, world: World, *, now: Callable[[], float] = time.time) -> None:
        self._world = world
        self._now = now
        self._since = now()
        self._lock = threading.Lock()
        self._state = _State()
        self._draining = False
        self._begin = sink_of(world.sender, world.prefix, world.incoming, self._number)
        for directory in (world.scratch, world.incoming):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- what is there

    def getattr(self, path: str, fh: int | None = None) -> tree.Attributes | os.stat_result:
        if fh is not None:
            handle = self._handle(fh)
            if handle.descriptor >= 0:
                return os.fstat(handle.descriptor)
            if handle.file is not None:
                return tree.file(handle.path, handle.file.size, handle.file.modified)
            if handle.reader is not None:
                entry = self._entry(handle.path)
                return tree.file(handle.path, handle.reader.size, entry.modified if entry else handle.since)
        place = place_of(path)
        match place.kind:
            case Kind.DIRECTORY:
                return tree.directory(self._since)
            case Kind.SCRATCH:
                return os.lstat(self._local(place))
            case Kind.NONE:
                raise OSError(errno.ENOENT, path)
        file = self._state.writing.get(place.path)
        if file is not None:
            return tree.file(place.path, file.size, file.modified)
        entry = self._entry(place.path)
        if entry is None and not place.waits:
            self._world.fresh.ensure()
            entry = self._entry(place.path)
            if entry is None and not self._world.fresh.known:
                raise self._unknown(place.path)
        if entry is None:
            raise OSError(errno.ENOENT, path)
        return tree.file(place.path, entry.size, entry.modified)

    def readdir(self, path: str) -> list[str]:
        place = place_of(path)
        if place.kind is Kind.SCRATCH:
            return sorted(os.listdir(self._local(place)))
        if place.kind is not Kind.DIRECTORY:
            raise OSError(errno.ENOTDIR if place.kind is not Kind.NONE else errno.ENOENT, path)
        found = tree.folders(place.path)
        if place.path not in DIRECTORIES.values():
            return found
        self._world.fresh.ensure()
        if not self._world.fresh.known:
            raise self._unknown(place.path)
        with self._lock:
            writing = list(self._state.writing)
        rows = self._world.catalogue.entries(f"{self._world.prefix}{place.path}/")
        found += tree.names(place.path, self._world.prefix, rows, writing)
        if place.path == DIRECTORIES["backup"]:
            found += os.listdir(self._world.scratch)
        return sorted(set(found))

    def opendir(self, path: str) -> int:
        if not stat.S_ISDIR(_mode(self.getattr(path))):
            raise OSError(errno.ENOTDIR, path)
        with self._lock:
            fh, self._state.next = self._state.next, self._state.next + 1
            self._state.directories[fh] = path
        return fh

    def readdir_of(self, fh: int) -> list[str]:
        return self.readdir(self._state.directories[fh])

    def releasedir(self, fh: int) -> None:
        self._state.directories.pop(fh, None)

    def statfs(self) -> tree.Space:
        return tree.space(self._world.catalogue.usage().stored, self._world.quota)

    # --- opening

    def create(self, path: str, flags: int, mode: int = 0o644, pid: int = 0) -> int:
        return self.open(path, flags | os.O_CREAT, mode, pid)

    def open(self, path: str, flags: int, mode: int = 0o644, pid: int = 0) -> int:
        """A handle. With O_CREAT a file that is not there is begun."""
        if self._draining:
            raise refused(errno.ESHUTDOWN, f"opening {path}", "this mount is being stopped; it will be back")
        place = place_of(path)
        match place.kind:
            case Kind.DIRECTORY:
                raise OSError(errno.EISDIR, path)
            case Kind.NONE:
                raise self._no_place(path, flags & os.O_CREAT)
            case Kind.SCRATCH:
                keep = os.O_ACCMODE | os.O_TRUNC | os.O_CREAT | os.O_EXCL
                descriptor = os.open(self._local(place), (flags & keep) | os.O_CLOEXEC | os.O_NOFOLLOW, mode & 0o777)
                return self._add(Handle(place.path, flags, pid, self._now(), descriptor=descriptor))
        if flags & os.O_ACCMODE == os.O_RDONLY and not flags & os.O_CREAT:
            return self._open_to_read(place, flags, pid)
        return self._open_to_write(place, flags, pid)

    def _open_to_read(self, place: Place, flags: int, pid: int) -> int:
        with self._lock:
            file = self._state.writing.get(place.path)
            if file is not None and file.unfinished:
                return self._attach(place, file, flags, pid)
        key, shown = self._key(place.path), self._entry(place.path)
        try:
            reader = self._world.readers.open(key)
        except NotFound as error:
            self._gone(place.path)
            with self._quiet(f"after {place.path} was found gone"):
                self._world.deleted(place.path)
            raise OSError(errno.ENOENT, place.path) from error
        except ERRORS as error:
            raise failed(f"opening {place.path}", error) from error
        try:
            self._refuse_other_size(place.path, shown, reader)
        except OSError:
            reader.close()
            raise
        return self._add(Handle(place.path, flags, pid, self._now(), reader=reader))

    def _refuse_other_size(self, path: str, shown: Entry | None, reader: Reader) -> None:
        """Another host replaced the object since it was listed. The kernel would read no further than the size that it was
        shown, and append there; after ESTALE it looks again, and opens what is there (open(2) retries it once)."""
        if shown is not None and shown.size != reader.size:
            raise self._shown_wrongly(path, reader)

    def _refuse_unlisted(self, place: Place) -> None:
        """What another host made since the last listing would be replaced by what is begun here (`>>`, O_EXCL)."""
        if place.waits:
            return
        try:
            reader = self._world.readers.open(self._key(place.path))
        except NotFound:
            return
        except ERRORS as error:
            log.warning("whether %s is there is not known, it is begun: %s", place.path, error)
            return
        reader.close()
        raise self._shown_wrongly(place.path, reader)

    def _shown_wrongly(self, path: str, reader: Reader) -> OSError:
        with self._quiet(f"noting {path} in the catalogue"):
            found = entry_of(self._world.bucket, self._key(path))
            self._world.catalogue.written(replace(found, size=reader.size, sealed=reader.size != found.stored))
        return OSError(errno.ESTALE, f"{path} was written by another host since the bucket was listed")

    def _open_to_write(self, place: Place, flags: int, pid: int) -> int:
        self._refuse_protected(place.path, "write to")
        with self._lock:
            file = self._state.writing.get(place.path)
            if file is not None and file.finished is not None:
                file = None  # an object by now, which the kernel has not let go yet
            if file is not None:
                if flags & os.O_CREAT and flags & os.O_EXCL:
                    raise OSError(errno.EEXIST, place.path)
                fh = self._attach(place, file, flags, pid)
        if file is not None:
            if flags & os.O_TRUNC:
                try:
                    file.truncate(0)
                except OSError:
                    self.release(fh)
                    raise
            return fh
        entry = self._entry(place.path)
        if entry is not None:
            self._refuse_protected_elsewhere(place.path, "write to")
        elif not flags & os.O_CREAT:
            raise OSError(errno.ENOENT, place.path)
        elif not flags & os.O_TRUNC:
            self._refuse_unlisted(place)
        if entry is not None and flags & os.O_CREAT and flags & os.O_EXCL:
            raise OSError(errno.EEXIST, place.path)
        file = WritingFile(place, self._begin, tap=self._world.tap, now=self._now)
        if entry is not None and not flags & os.O_TRUNC:
            file.load(self._content(place.path, entry, "changing"))
        with self._lock:
            other = self._state.writing.get(place.path)
            if other is not None and other.finished is None:
                file = other
            self._state.writing[place.path] = file
            return self._attach(place, file, flags, pid)

    def _attach(self, place: Place, file: WritingFile, flags: int, pid: int) -> int:
        """With the lock held."""
        file.opens += 1
        self._state.closed_at.pop(place.path, None)
        fh, self._state.next = self._state.next, self._state.next + 1
        self._state.handles[fh] = Handle(place.path, flags, pid, self._now(), file=file)
        return fh

    def _content(self, path: str, entry: Entry, verb: str) -> bytes:
        """All of a small finished file."""
        if entry.size > REWRITE_BYTES_MAX:
            advice = (
                f"a finished file of more than {REWRITE_BYTES_MAX >> 20} MiB is read only: write it anew, or copy it"
            )
            raise refused(errno.EROFS, f"{verb} {path}", advice)
        try:
            reader = self._world.readers.open(self._key(path))
            try:
                self._refuse_other_size(path, entry, reader)
                if reader.size > REWRITE_BYTES_MAX:
                    raise refused(errno.EROFS, f"{verb} {path}", "it has grown meanwhile: open it again")
                return reader.read(0, reader.size) if reader.size else b""
            finally:
                reader.close()
        except ERRORS as error:
            if isinstance(error, Failed) or errno_of(error) == errno.ESTALE:
                raise
            raise failed(f"{verb} {path}", error) from error

    # --- bytes

    def read(self, fh: int, size: int, offset: int) -> bytes:
        handle = self._handle(fh)
        if handle.descriptor >= 0:
            return os.pread(handle.descriptor, size, offset)
        if handle.file is not None:
            return handle.file.read(offset, size)
        if handle.reader is None or offset >= handle.reader.size:
            return b""
        try:
            return handle.reader.read(offset, min(size, handle.reader.size - offset))
        except (PreconditionFailed, NotFound) as error:
            log.error("reading %s: it was replaced or deleted in the bucket while it was open: %s", handle.path, error)
            raise Failed(errno.ESTALE, f"{handle.path}: {error}") from error
        except ERRORS as error:
            raise failed(f"reading {handle.path} at {offset:,}", error) from error

    def write(self, fh: int, data: bytes, offset: int) -> int:
        handle = self._handle(fh)
        if handle.descriptor >= 0:
            return os.pwrite(handle.descriptor, data, offset)
        if handle.file is None:
            raise OSError(errno.EBADF, handle.path)
        return handle.file.write(offset, data)

    def truncate(self, path: str, size: int, fh: int | None = None) -> None:
        if fh is not None:
            handle = self._handle(fh)
            if handle.descriptor >= 0:
                return os.ftruncate(handle.descriptor, size)
            if handle.file is None:
                raise OSError(errno.EINVAL, handle.path)
            return handle.file.truncate(size)
        place = place_of(path)
        if place.kind is Kind.SCRATCH:
            return os.truncate(self._local(place), size)
        opened = self.open(path, os.O_WRONLY | (os.O_TRUNC if size == 0 else 0))
        try:
            self.truncate(path, size, opened)
            file = self._handle(opened).file
            if file is not None and file.unfinished and not file.place.waits and file.opens == 1:
                self._finish(file, place.path)
        finally:
            self.release(opened)
        return None

    def fsync(self, fh: int) -> None:
        """What has gone wrong so far. Bytes are durable when the file is finished, not before: an object cannot be half
        there."""
        handle = self._handle(fh)
        if handle.descriptor >= 0:
            os.fsync(handle.descriptor)
        elif handle.file is not None and handle.writes:
            handle.file.check()

    def flush(self, fh: int) -> None:
        """One descriptor of the file was closed. A file under its final name is finished now, and what fails fails that
        close(2); one that has nothing in it is put when the last descriptor is closed, for a shell closes some before it
        has written anything."""
        handle = self._handle(fh)
        file = handle.file
        if file is None or not handle.writes:
            return
        file.check()
        if file.place.waits or not file.unfinished:
            return
        if file.size or file.place.path.endswith((PROTECTED, NOTES)):
            self._finish(file, file.place.path)

    def release(self, fh: int) -> None:
        """The last descriptor is closed: nobody hears of errors any more, so they are logged."""
        with self._lock:
            handle = self._state.handles.pop(fh, None)
            if handle is None:
                return
            file, last = handle.file, False
            if file is not None:
                file.opens -= 1
                last = file.opens == 0
                if last and file.place.waits and not file.gone:
                    self._state.closed_at[file.place.path] = self._now()
                    return
        if handle.descriptor >= 0:
            os.close(handle.descriptor)
        if handle.reader is not None:
            handle.reader.close()
        if file is None or not last:
            return
        with contextlib.suppress(OSError):  # logged by whoever made it
            if file.unfinished and file.error is None:
                self._finish(file, file.place.path)
        with self._lock:
            if file.opens:
                return  # opened again meanwhile
            if self._state.writing.get(file.place.path) is file:
                del self._state.writing[file.place.path]
        if file.finished is None:
            file.abort()

    # --- names

    def rename(self, old: str, new: str) -> None:
        """What was written under a name that waits becomes the object of its new name, verified, before this returns."""
        source, target = place_of(old), place_of(new)
        if source.path == target.path:
            return
        if Kind.SCRATCH in (source.kind, target.kind):
            if source.kind is not target.kind:
                raise OSError(errno.EXDEV, new)
            os.rename(self._local(source), self._local(target))
            return
        for place in (source, target):
            if place.kind is Kind.DIRECTORY:
                raise refused(errno.EPERM, f"renaming {old} to {new}", "directories here are Proxmox VE's layout")
        if target.kind is Kind.NONE:
            raise self._no_place(new, True)
        self._refuse_protected(source.path, "rename")
        self._refuse_protected(target.path, "replace")
        if self._entry(target.path) is not None:
            self._refuse_protected_elsewhere(target.path, "replace")
        with self._lock:
            file = self._state.writing.get(source.path)
        if file is None:
            self._rename_object(source, target)
        elif target.waits:
            self._move(file, target)
        else:
            if not file.unfinished:
                self._rename_object(source, target)  # an object, whose last descriptor is not yet let go
            else:
                self._finish(file, target.path)
                if not source.waits and self._entry(source.path) is not None:
                    self._delete(source.path)  # what it would have replaced
            self._move(file, target, final=True)

    def _move(self, file: WritingFile, target: Place, *, final: bool = False) -> None:
        with self._lock:
            if self._state.writing.get(file.place.path) is file:
                del self._state.writing[file.place.path]
            closed = self._state.closed_at.pop(file.place.path, None)
            replaced = self._state.writing.pop(target.path, None)
            file.place = target
            for handle in self._state.handles.values():
                if handle.file is file:
                    handle.path = target.path
            if file.opens or not final:
                self._state.writing[target.path] = file
                if closed is not None and not final:
                    self._state.closed_at[target.path] = closed
        if replaced is not None and replaced is not file:
            replaced.abort()

    def unlink(self, path: str) -> None:
        """Deleted in the bucket when this returns; what is on its way is forgotten."""
        place = place_of(path)
        match place.kind:
            case Kind.DIRECTORY:
                raise OSError(errno.EISDIR, path)
            case Kind.SCRATCH:
                os.unlink(self._local(place))
                return
            case Kind.NONE:
                raise OSError(errno.ENOENT, path)
        self._refuse_protected(place.path, "delete")
        with self._lock:
            file = self._state.writing.pop(place.path, None)
            self._state.closed_at.pop(place.path, None)
        if file is not None:
            file.abort()
        entry = self._entry(place.path)
        if entry is None:
            if file is None:
                raise OSError(errno.ENOENT, path)
            return
        self._delete(place.path)

    def mkdir(self, path: str, mode: int) -> None:
        place = place_of(path)
        if place.kind is Kind.SCRATCH:
            os.mkdir(self._local(place), mode & 0o777)
        elif place.kind is Kind.DIRECTORY:
            raise OSError(errno.EEXIST, path)
        else:
            raise refused(errno.EPERM, f"mkdir {path}", "directories here are Proxmox VE's layout, and are all there")

    def rmdir(self, path: str) -> None:
        place = place_of(path)
        if place.kind is Kind.SCRATCH:
            os.rmdir(self._local(place))
        elif place.kind is Kind.DIRECTORY:
            raise refused(errno.EPERM, f"rmdir {path}", "directories here are Proxmox VE's layout, and stay")
        else:
            self.getattr(path)
            raise OSError(errno.ENOTDIR, path)

    def link(self, path: str) -> None:
        raise refused(errno.EPERM, f"linking {path}", "a bucket has no links: copy the file")

    def set_mode(self, path: str | None, mode: int) -> None:
        """Real for scratch files, else nothing."""
        place = place_of(path or "")
        if place.kind is Kind.SCRATCH:
            os.chmod(self._local(place), mode & 0o7777)

    def set_owner(self, path: str | None, uid: int, gid: int) -> None:
        place = place_of(path or "")
        if place.kind is Kind.SCRATCH:
            os.chown(self._local(place), uid, gid, follow_symlinks=False)

    def set_times(self, path: str | None, times: tuple[int, int] | None) -> None:
        """In nanoseconds."""
        place = place_of(path or "")
        if place.kind is Kind.SCRATCH:
            now = time.time_ns()
            os.utime(self._local(place), ns=times or (now, now), follow_symlinks=False)

    # --- stopping

    def drain(self) -> None:
        """From now on nothing new may be opened."""
        self._draining = True

    def resume(self) -> None:
        """After `drain`: it goes on."""
        self._draining = False

    def open_files(self) -> list[OpenFile]:
        """What keeps the mount from being restarted."""
        with self._lock:
            found = [
                OpenFile(
                    handle.path,
                    "write" if handle.writes else "read",
                    handle.file.size if handle.file else handle.reader.size if handle.reader else 0,
                    handle.since,
                    handle.pid,
                )
                for handle in self._state.handles.values()
            ]
            found += [
                OpenFile(path, "waits", self._state.writing[path].size, since)
                for path, since in self._state.closed_at.items()
                if path in self._state.writing
            ]
        return found

    def forget_abandoned(self) -> list[str]:
        """Files whose writer closed them ABANDONED_S ago and never renamed or removed them."""
        before = self._now() - ABANDONED_S
        with self._lock:
            old = [path for path, since in self._state.closed_at.items() if since < before]
            files = [self._state.writing.pop(path) for path in old if path in self._state.writing]
            for path in old:
                del self._state.closed_at[path]
        for file in files:
            log.warning(
                "%s was closed a day ago and never renamed: its writer is dead, it is forgotten", file.place.path
            )
            file.abort()
        return old

    def abort(self) -> None:
        """Forget all that is not finished. For the end of the process."""
        with self._lock:
            files = list(self._state.writing.values())
        for file in files:
            if file.finished is None:
                file.abort()

    # --- inside

    def _finish(self, file: WritingFile, path: str) -> None:
        before = file.finished
        finished = file.finish(self._key(path))
        if finished is before:
            return
        told = finished.uploaded
        self._keep(path, told)
        log.info("%s is in the bucket: %s bytes, verified by its %s", path, f"{told.plain_bytes:,}", told.proof)
        with self._quiet(f"after {path} was finished"):
            self._world.written(path, finished)
        if finished.local is not None:
            finished.local.unlink(missing_ok=True)

    def _keep(self, path: str, told: Uploaded) -> None:
        sealed = told.size != told.plain_bytes
        entry = Entry(told.key, told.plain_bytes, told.size, told.etag, told.modified, told.version_id, "", sealed)
        with self._quiet(f"noting {path} in the catalogue"):
            self._world.catalogue.written(entry)

    def _delete(self, path: str) -> None:
        gone: Iterable[str] = ()
        try:
            if self._world.delete is not None:
                gone = self._world.delete(path)
            else:
                self._world.bucket.delete(self._key(path))
        except NoSuchVolume:
            pass  # somebody else was first
        except ERRORS as error:
            raise failed(f"deleting {path}", error) from error
        log.info("%s was deleted in the bucket", path)
        for one in (path, *gone):
            self._gone(one)
        with self._quiet(f"after {path} was deleted"):
            self._world.deleted(path)

    def _gone(self, path: str) -> None:
        with self._quiet(f"noting in the catalogue that {path} is gone"):
            self._world.catalogue.deleted(self._key(path))

    def _rename_object(self, source: Place, target: Place) -> None:
        """A copy under the new name, verified, then the old one deleted. A crash between them leaves both."""
        entry = self._entry(source.path)
        if entry is None:
            raise OSError(errno.ENOENT, source.path)
        what = f"renaming {source.path} to {target.path}"
        try:
            told = self._copied(entry, self._key(target.path))
        except ERRORS as error:
            if isinstance(error, Failed):
                raise
            raise failed(what, error) from error
        self._keep(target.path, told)
        with self._quiet(f"after {target.path} was written"):
            self._world.written(target.path, Finished(told))
        self._take_along(source, target)
        self._delete(source.path)

    def _take_along(self, source: Place, target: Place) -> None:
        """What people wrote beside a backup, which would be deleted with its old name. A crash leaves both."""
        if volume_of_key(source.path) is None or volume_of_key(target.path) is None:
            return
        for of in (notes_key, log_key):
            old, new = place_of(of(source.path)), place_of(of(target.path))
            if old.path in sidecars(source.path) and old.path != new.path and self._entry(old.path) is not None:
                self._rename_object(old, new)

    def _copied(self, entry: Entry, key: str) -> Uploaded:
        bucket = self._world.bucket
        if not entry.sealed and REWRITE_BYTES_MAX < entry.stored <= bucket.properties.copy_bytes_max:
            bucket.copy(CopySource(bucket.properties.name, entry.key, if_match=entry.etag), key)
            facts = bucket.head(key)
            if facts.size != entry.stored:
                raise OSError(errno.EIO, f"the copy has {facts.size:,} bytes, not {entry.stored:,}")
            return Uploaded(key, facts.size, entry.size, facts.etag, facts.version_id, facts.modified, "size")
        # Sealed objects are bound to their key, and no single copy takes the largest: through this host.
        upload, reader = self._world.sender.stream(key), self._world.readers.open(entry.key)
        try:
            at = 0
            while at < reader.size:
                at += upload.write_at(at, reader.read(at, min(COPY_PIECE, reader.size - at)))
            return upload.finish(key)
        except BaseException:
            upload.abort()
            raise
        finally:
            reader.close()

    def _refuse_protected(self, path: str, verb: str) -> None:
        if not path.startswith(f"{DIRECTORIES['backup']}/"):
            return
        if path.endswith(PROTECTED):
            if self._world.locked:
                advice = "this storage locks protected backups in the bucket: protect and unprotect them in Proxmox VE"
                raise refused(errno.EPERM, f"{verb} {path}", advice)
            return
        flag = path + PROTECTED
        if self._entry(flag) is not None or flag in self._state.writing:
            raise refused(errno.EPERM, f"{verb} {path}", "it is protected: take the protection away first")

    def _refuse_protected_elsewhere(self, path: str, verb: str) -> None:
        """A finished backup is about to be lost: another host may have protected it since the last listing. Deleting asks
        by itself."""
        volume = volume_of_key(path)
        if volume is None or volume.content != "backup":
            return
        try:
            self._world.bucket.head(self._key(path + PROTECTED))
        except NotFound:
            return
        except ERRORS as error:
            raise failed(f"asking whether {path} is protected", error) from error
        raise refused(errno.EPERM, f"{verb} {path}", "it is protected: take the protection away first")

    def _no_place(self, path: str, creating: object) -> OSError:
        if not creating:
            return OSError(errno.ENOENT, path)
        above = place_of(path.strip("/").rpartition("/")[0])
        if above.kind is Kind.DIRECTORY:
            return refused(
                errno.EPERM, f"creating {path}", "files go into dump, template/iso, template/cache, snippets, import"
            )
        return OSError(errno.ENOENT, path)

    def _unknown(self, path: str) -> Failed:
        log.error("%s: the bucket was never listed on this host, and the store does not answer; `pve-s3 doctor`", path)
        return Failed(errno.EIO, f"{path}: nothing is known of the bucket yet")

    def _entry(self, path: str) -> Entry | None:
        return self._world.catalogue.entry(self._key(path))

    def _key(self, path: str) -> str:
        return f"{self._world.prefix}{path}"

    def _local(self, place: Place) -> Path:
        return self._world.scratch / place.path.partition("/")[2]

    def _handle(self, fh: int) -> Handle:
        try:
            return self._state.handles[fh]
        except KeyError:
            raise OSError(errno.EBADF, str(fh)) from None

    def _add(self, handle: Handle) -> int:
        with self._lock:
            fh, self._state.next = self._state.next, self._state.next + 1
            self._state.handles[fh] = handle
        return fh

    def _number(self) -> int:
        with self._lock:
            self._state.next += 1
            return self._state.next

    @contextlib.contextmanager
    def _quiet(self, what: str) -> Iterator[None]:
        """For what a later refresh repairs: it must not turn an object that is there into an error."""
        try:
            yield
        except ERRORS as error:
            log.warning("%s: %s; the next refresh of the catalogue repairs it", what, error)


def _mode(told: tree.Attributes | os.stat_result) -> int:
    return told.mode if isinstance(told, tree.Attributes) else told.st_mode
