"""`file://` stores: a directory that keeps the port's promises; the embedded default.

One rule: a file with an object's name is whole and never changes; it is replaced by a rename or removed.
So readers need no lock, an open descriptor is a version, and a power loss leaves old or new, never a mixture.

    DIR/objects/    the objects, see file_layout     DIR/staging/    unfinished files, see file_folders
    DIR/lock        held (flock) while an object is replaced or removed, microseconds each

Conditional writes hold between threads, between processes, and between hosts where the file system gives them
flock and atomic link. `put_if_absent` publishes with link(2), which fails where the name exists; `put_if_match`,
`put` and `delete` take the lock, so that none of them slips between another's comparison and its rename.

A store that has no directory yet reads as empty; the first write makes it. Needs a local file system with
names that tell upper from lower case, hard links and flock (ext4, XFS, btrfs, ZFS, tmpfs; NFS 4 works).
What a reader sees while its writer's call has not returned may be undone by a power loss.
"""

import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from urllib.parse import quote

from s3core.content import byte_count, byte_views, content_digest, etag_text
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.file_folders import FILE_MODE, Folder, Folders, Staging
from s3core.file_layout import (
    TRAILER_BYTES,
    BadTrailer,
    Entry,
    Kind,
    Trailer,
    decode_end,
    decode_metadata,
    encode_end,
    folder_of,
    parse_entry,
    path_of,
)
from s3core.keys import after_all_with, check_key, check_metadata, check_part_number, check_range
from s3core.store import Body, Buffer, ObjectInfo, Properties

log = logging.getLogger(__name__)

_END_GUESS_BYTES = 512
"""Read at a file's end in the hope that metadata and trailer lie within."""
_BUFFERS_PER_WRITE = 512
"""Linux takes 1,024 in one writev."""
_COPY_BYTES = 64 * 1024 * 1024
_DELETE_FOLDERS = 64
"""Folders `delete_many` holds open before it syncs them and goes on."""
_PUBLISH_ATTEMPTS = 100
"""Each failed one means that another process removed the folder in the meantime."""

Keys = list[str]  # inside the class, `list` is a method


class FileStore:
    """Objects as files below `path`. Nothing is opened or made before the first write."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._root = os.path.abspath(path)
        if os.path.exists(self._root) and not os.path.isdir(self._root):
            raise Misconfigured(f"{self._root} is not a directory", hint="name a directory for the store")
        self._top = self._root + "/objects"
        self._folders = Folders(self._top)
        self._staging: Staging | None = None
        self._staging_lock = threading.Lock()
        self._url = "file://" + quote(self._root)

    @property
    def url(self) -> str:
        return self._url

    @property
    def properties(self) -> Properties:
        return Properties(
            scheme="file",
            durable=True,
            if_none_match=True,
            if_match=True,
            multipart=True,
            server_copy=True,
            part_bytes_min=1,
        )

    # Reading

    def get(self, key: str) -> Body:
        with self._opened(key) as fd:
            trailer, _ = self._end(fd, key)
            return Body(_read(fd, 0, trailer.data_bytes, key), trailer.etag)

    def get_range(self, key: str, offset: int, length: int) -> Body:
        check_range(offset, length)
        with self._opened(key) as fd:
            trailer, _ = self._end(fd, key)
            if offset + length > trailer.data_bytes:
                raise Corrupt(f"{length} bytes wanted of an object of {trailer.data_bytes}", key=key, offset=offset)
            return Body(_read(fd, offset, length, key), trailer.etag)

    def head(self, key: str) -> ObjectInfo:
        with self._opened(key) as fd:
            trailer, metadata = self._end(fd, key)
            return ObjectInfo(key, trailer.data_bytes, trailer.etag, os.fstat(fd).st_mtime, metadata)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        folder, base = folder_of(prefix)
        for key in self._walk(folder, base, prefix.encode(), start_after.encode()):
            try:
                yield self.head(key)
            except NotFound:
                continue  # removed since its folder was read

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        if not delimiter:
            raise ValueError("the delimiter must not be empty")
        if delimiter == "/":
            folder, base = folder_of(prefix)
            yield from self._walk_groups(folder, base, prefix.encode())
            return
        after = ""
        while (key := next(self._walk(*folder_of(prefix), prefix.encode(), after.encode()), None)) is not None:
            end = key.find(delimiter, len(prefix))
            if end < 0:
                after = key
                continue
            yield key[: end + len(delimiter)]
            after = after_all_with(key[: end + len(delimiter)])

    # Writing

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        return self._put(key, data, metadata, self._replace)

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        return self._put(key, data, metadata, self._link)

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        def replace_version(staged: str, folder: Folder, key: str) -> None:
            with self._exclusive():
                current = self.head(key).etag
                if current == etag:
                    os.rename(staged, path_of(key)[1], dst_dir_fd=folder.fd)
                    return
            # The answer rests on the version that is there: let it be as durable as the answer.
            os.fsync(folder.fd)
            raise PreconditionFailed(f"the object is version {current}, not {etag}", key=key)

        # A look before the work: most callers that lose have lost already, and no folder is made for them.
        if self.head(key).etag != etag:
            raise PreconditionFailed(f"the object is not version {etag}", key=key)
        return self._put(key, data, metadata, replace_version)

    def copy(self, source: str, target: str) -> str:
        check_key(target)
        with self._opened(source) as fd:
            trailer, _ = self._end(fd, source)
            with self._staged(target) as (staged_fd, staged):
                _copy_bytes(fd, staged_fd, os.fstat(fd).st_size)
                self._publish(staged_fd, staged, target, self._replace)
            return trailer.etag

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> "FileUpload":
        return FileUpload(self, check_key(key), check_metadata(metadata))

    def delete(self, key: str) -> None:
        error = self.delete_many([key]).get(key)
        if error is not None:
            raise error

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        """One sync for all keys of a folder, before the call returns."""
        failed: dict[str, StoreError] = {}
        folders: dict[str, Folder] = {}
        removed: dict[str, Keys] = {}
        for key in keys:
            name = path_of(check_key(key))[0]
            try:
                with _translated(key, "remove"):
                    if name not in folders:
                        if len(folders) == _DELETE_FOLDERS:
                            failed |= self._settle_removal(folders, removed)
                        folders[name] = Folder(os.open(f"{self._top}/{name}", os.O_RDONLY | os.O_DIRECTORY))
                    with self._exclusive(), contextlib.suppress(FileNotFoundError):
                        os.unlink(path_of(key)[1], dir_fd=folders[name].fd)
                    removed.setdefault(name, []).append(key)
            except NotFound:
                continue  # no folder, so no object
            except StoreError as error:
                failed[key] = error
        return failed | self._settle_removal(folders, removed)

    def _settle_removal(self, folders: dict[str, Folder], removed: dict[str, Keys]) -> dict[str, StoreError]:
        """Sync the folders that lost objects, drop those that are empty now, and start afresh."""
        failed: dict[str, StoreError] = {}
        # crash here leaves: any of the objects there or not; the caller was told nothing.
        for name, gone in removed.items():
            try:
                os.fsync(folders[name].fd)
            except OSError as error:
                failed |= {key: OutcomeUnknown(f"removal could not be synced: {error}", key=key) for key in gone}
            else:
                self._folders.prune(name)
        folders.clear()
        removed.clear()
        return failed

    def close(self) -> None:
        self._folders.close()
        with self._staging_lock:
            if self._staging is not None:
                self._staging.close()
                self._staging = None

    def create_staged(self) -> tuple[int, str]:
        """A file in this writer's staging directory (for `FileUpload`): descriptor and path."""
        with self._staging_lock:
            if self._staging is not None:
                try:
                    return self._staging.create()
                except FileNotFoundError:
                    log.warning("staging directory was removed by somebody, making another: store=%s", self._url)
                    self._staging.close()
            self._staging = Staging(self._root)
            return self._staging.create()

    def finish_upload(self, key: str, parts: Sequence[tuple[str, int, bytes]], metadata: dict[str, str]) -> str:
        """Publish the object made of `parts` (path, length and digest each; for `FileUpload`)."""
        digest = content_digest([digest for _, _, digest in parts])
        total = 0
        with self._staged(key) as (fd, staged):
            for path, length, _ in parts:
                part_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    _copy_bytes(part_fd, fd, length)
                finally:
                    os.close(part_fd)
                total += length
            _write(fd, [encode_end(total, metadata, len(parts), digest)])
            self._publish(fd, staged, key, self._replace)
        return etag_text(digest, len(parts))

    # How an object comes to be: the one place where order matters

    def _put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        metadata: dict[str, str] | None,
        place: Callable[[str, Folder, str], None],
    ) -> str:
        check_key(key)
        kept = check_metadata(metadata)
        views = byte_views(data)
        digest = content_digest(views)
        with self._staged(key) as (fd, staged):
            _write(fd, [*views, encode_end(byte_count(views), kept, 0, digest)])
            self._publish(fd, staged, key, place)
        return etag_text(digest)

    def _publish(self, fd: int, staged: str, key: str, place: Callable[[str, Folder, str], None]) -> None:
        # crash before this returns leaves: a staged file, which no listing shows; swept by the next writer.
        os.fdatasync(fd)
        name = path_of(key)[0]
        for _ in range(_PUBLISH_ATTEMPTS):
            try:
                folder = self._folders.durable(name)
                # crash after this leaves: the object, or what was there before; both whole. After link(2)
                # the staged name is left beside it; it goes with the sweep.
                place(staged, folder, key)
                break
            except FileNotFoundError:
                # A delete that emptied the folder removed it. A staged file that is gone is another matter.
                os.stat(staged)
                self._folders.forget(name)
        else:
            raise Unavailable("its folder keeps being removed by other writers", key=key)
        try:
            # crash after this leaves: the object.
            os.fsync(folder.fd)
        except OSError as error:
            raise OutcomeUnknown(f"the directory could not be synced: {error}", key=key) from error

    def _replace(self, staged: str, folder: Folder, key: str) -> None:
        with self._exclusive():
            os.rename(staged, path_of(key)[1], dst_dir_fd=folder.fd)

    def _link(self, staged: str, folder: Folder, key: str) -> None:
        try:
            os.link(staged, path_of(key)[1], dst_dir_fd=folder.fd)
        except FileExistsError as error:
            # Let the object that is in the way be as durable as this answer.
            os.fsync(folder.fd)
            raise PreconditionFailed("the object exists already", key=key) from error

    @contextlib.contextmanager
    def _staged(self, key: str) -> Iterator[tuple[int, str]]:
        """A staged file for `key`, removed again unless it was renamed."""
        with _translated(key, "write", missing=Unavailable):
            fd, staged = self.create_staged()
            try:
                yield fd, staged
            finally:
                os.close(fd)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(staged)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Alone among all threads and processes: each use opens the file anew, for flock belongs to what
        was opened, not to who asks."""
        fd = os.open(self._root + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # How objects are found and read

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[int]:
        folder, name = path_of(check_key(key))
        with _translated(key, "read"):
            fd = os.open(f"{self._top}/{folder}{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                yield fd
            finally:
                os.close(fd)

    def _end(self, fd: int, key: str) -> tuple[Trailer, dict[str, str]]:
        size = os.fstat(fd).st_size
        end = _read(fd, max(0, size - _END_GUESS_BYTES), min(size, _END_GUESS_BYTES), key)
        try:
            trailer = decode_end(end, size)
            wanted = trailer.metadata_bytes + TRAILER_BYTES
            end = end[-wanted:] if wanted <= len(end) else _read(fd, size - wanted, wanted, key)
            return trailer, decode_metadata(end)
        except BadTrailer as error:
            hint = "the file was damaged or changed by hand: restore it from a copy or delete the object"
            raise Corrupt(str(error), key=key, offset=max(0, size - TRAILER_BYTES), hint=hint) from error

    def _entries(self, folder: str) -> Sequence[Entry]:
        """What is in one folder, in the order of keys; empty when the folder is not there."""
        path = f"{self._top}/{folder}"
        found = []
        try:
            with _translated("", f"list {path}"), os.scandir(path) as scan:
                for item in scan:
                    entry = parse_entry(item.name, item.is_dir(follow_symlinks=False))
                    if entry is None:
                        log.warning("not a file of this store, ignored: path=%s", item.path)
                    else:
                        found.append(entry)
        except NotFound:
            return []
        return sorted(found)

    def _walk(self, folder: str, base: bytes, prefix: bytes, after: bytes) -> Iterator[str]:
        """The keys below `folder`, which stands for `base`; holds one folder's entries per level."""
        for entry in self._entries(folder):
            place = base + entry.order
            if entry.kind is Kind.OBJECT:
                if place > after and place.startswith(prefix):
                    try:
                        key = place.decode()
                    except UnicodeDecodeError:
                        log.warning("not a file of this store, ignored: path=%s/%s%s", self._top, folder, entry.name)
                        continue
                    yield key
            elif (place > after or after.startswith(place)) and (place.startswith(prefix) or prefix.startswith(place)):
                yield from self._walk(f"{folder}{entry.name}/", place, prefix, after)

    def _walk_groups(self, folder: str, base: bytes, prefix: bytes) -> Iterator[str]:
        """The beginnings up to the next `/` of keys that start with `prefix`."""
        for entry in self._entries(folder):
            place = base + entry.order
            inside = f"{folder}{entry.name}/"
            if entry.kind is Kind.FOLDER and place.startswith(prefix):
                # An empty folder is what a crash or a concurrent delete leaves: no key begins so.
                if next(self._walk(inside, place, b"", b""), None) is not None:
                    yield place.decode()
            elif entry.kind is Kind.REST and (place.startswith(prefix) or prefix.startswith(place)):
                yield from self._walk_groups(inside, place, prefix)


class FileUpload:
    """An upload in parts. The parts are staged files: they do not outlive the process that uploads them."""

    def __init__(self, store: FileStore, key: str, metadata: dict[str, str]) -> None:
        self._store = store
        self._key = key
        self._metadata = metadata
        self._lock = threading.Lock()
        self._parts: dict[int, tuple[str, int, bytes]] | None = {}

    def part(self, number: int, data: Buffer | Sequence[Buffer]) -> str:
        check_part_number(number)
        views = byte_views(data)
        digest = content_digest(views)
        with _translated(self._key, "write a part", missing=Unavailable):
            fd, path = self._store.create_staged()
            try:
                _write(fd, views)
            finally:
                os.close(fd)
            with self._lock:
                if self._parts is None:
                    os.unlink(path)
                    raise NotFound("the upload was completed or aborted already", key=self._key)
                replaced = self._parts.get(number)
                self._parts[number] = (path, byte_count(views), digest)
            if replaced is not None:
                os.unlink(replaced[0])
        return etag_text(digest)

    def complete(self) -> str:
        with self._lock:
            if self._parts is None:
                raise NotFound("the upload was completed or aborted already", key=self._key)
            if not self._parts:
                raise ValueError(f"{self._key}: an upload in parts needs at least one part")
            parts = [self._parts[number] for number in sorted(self._parts)]
            etag = self._store.finish_upload(self._key, parts, self._metadata)
            self._forget()
        return etag

    def abort(self) -> None:
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        for path, _, _ in (self._parts or {}).values():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self._parts = None


def _write(fd: int, views: Sequence[Buffer]) -> None:
    """All of `views`, at the descriptor's position."""
    for at in range(0, len(views), _BUFFERS_PER_WRITE):
        batch = views[at : at + _BUFFERS_PER_WRITE]
        written = os.writev(fd, batch)
        if written < byte_count(batch):  # a nearly full disk, or more than 2 GiB at once
            rest = memoryview(b"".join(batch))[written:]
            while rest:
                rest = rest[os.write(fd, rest) :]


def _read(fd: int, offset: int, length: int, key: str) -> bytes:
    data = os.pread(fd, length, offset)
    while len(data) < length:  # more than 2 GiB at once, or a file cut off under our eyes
        more = os.pread(fd, length - len(data), offset + len(data))
        if not more:
            raise Corrupt("the file ends early", key=key, offset=offset + len(data))
        data += more
    return data


def _copy_bytes(source_fd: int, target_fd: int, length: int) -> None:
    """`length` bytes from the beginning of one file to the end of another, shared where the file system can."""
    copied = 0
    while copied < length:
        try:
            count = os.copy_file_range(source_fd, target_fd, min(length - copied, _COPY_BYTES), copied)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL):
                raise
            count = os.sendfile(target_fd, source_fd, copied, min(length - copied, _COPY_BYTES))
        if not count:
            raise OSError(errno.EIO, "file ends early")
        copied += count


@contextlib.contextmanager
def _translated(key: str, act: str, *, missing: type[StoreError] = NotFound) -> Iterator[None]:
    """Turns an OSError into the port's terms. Whatever is raised in here has not been applied. `missing` is
    what a file that is not there means."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing("no such object" if missing is NotFound else f"cannot {act}: {error}", key=key) from error
    except OSError as error:
        raise _store_error(error, key, act) from error


def _store_error(error: OSError, key: str, act: str) -> StoreError:
    text = f"cannot {act}: {os.strerror(error.errno) if error.errno else error}"
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return Unavailable(text, key=key, hint="free some space there, or raise the quota")
        case errno.EACCES | errno.EPERM:
            return Denied(text, key=key, hint="the store's directory must belong to the user this runs as")
        case errno.EROFS:
            return Denied(text, key=key, hint="the file system is mounted read-only")
        case errno.ENOTDIR | errno.ELOOP | errno.ENAMETOOLONG | errno.EXDEV | errno.EISDIR:
            return Misconfigured(text, key=key, hint="the store needs a directory of its own, changed by nobody else")
        case errno.EIO:
            return Unavailable(text, key=key, hint="the disk reports errors: see the kernel's log")
        case errno.ENOLCK | errno.ENOSYS | errno.EOPNOTSUPP:
            return Unsupported(text, key=key, hint="the file system must offer flock and hard links")
        case _:
            return Unavailable(text, key=key)
