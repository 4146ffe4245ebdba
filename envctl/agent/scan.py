"""What differs from the last run, by stat alone: a walk beside the cache of the last one, a directory at a time.

One rule: the cache is a hint. It says what stat saw when the tree of a snapshot was made; a cache that is missing, damaged
or of another snapshot makes the next run read every file again, and nothing worse. What stat might not have seen (a change
within the clock's tick after the file was read) is kept out of the cache, so that the file is read once more.

A directory is one record: its path, and one blob of name, 0, inode, mode, links, size, mtime, ctime for each entry in order. An
unchanged directory is found by comparing two byte strings; nothing is kept for each file. Directories are opened without
following symbolic links and compared with the inode that their parent showed, so that a user who swaps a directory for a
link cannot make the agent read what is not in the home. The walk goes into other file systems (ZFS datasets and subvolumes
of btrfs are some) only where one of the directories asks for it; those that it passes over are told.

    cache: records (length of path, length of blob, path, blob), then JSON, then its length, CRC-32 of all before, magic
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Union

from envctl.agent.errors import Corrupt
from envctl.agent.tree import sort_key

STAGING: Final = b".envctl-staging"
"""Where a restore gathers what it will put in place; in each directory's root, never saved."""
ALWAYS_LEFT_OUT: Final = ("lost+found",)
RACY_NS: Final = 2_000_000_000
"""A file whose ctime is not older than this when the scan begins may change again within the same tick of the clock."""

MOUNTS_TOLD_MAX: Final = 10

_MAGIC: Final = b"BWHSCAN1"
_RECORD: Final = struct.Struct("<II")
_END: Final = struct.Struct("<II8s")
_STAT: Final = struct.Struct("<QIIQqq")
_LEADER_BYTES: Final = 8
_NS_SPAN: Final = 1 << 64
_MAY_HANG: Final = (b"fuse", b"nfs", b"cifs", b"smb", b"9p", b"ceph", b"afs", b"autofs")
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.ENOTCONN, errno.EREMOTE})
"""What root hears of a user's mount (FUSE) that is closed to it, or whose server died."""
_PASSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE, errno.ENAMETOOLONG})
"""Of a directory that was moved away under the walk, or whose path is longer than the kernel takes."""
_KEPT: Final = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO})


class Found(NamedTuple):
    """What stat said. For a directory `links` and `size` are 0: they are the file system's business."""

    inode: int
    mode: int
    links: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


class Put(NamedTuple):
    """An entry that is new or differs from the last run. `parent`: (device, inode) of the directory it was seen in; of a root,
    (0, 0). `leader`: the path that holds the content, for a further hard link; else b""."""

    path: bytes
    found: Found
    parent: tuple[int, int]
    leader: bytes
    is_new: bool


class Drop(NamedTuple):
    """What was here, and all below it, is gone."""

    path: bytes


class Fresh(NamedTuple):
    """The last run knows nothing of what is below this directory: every entry of it follows as a Put."""

    path: bytes


class Unread(NamedTuple):
    """What could not be looked at: what the last snapshot has of it and below stays. `is_lost`: it is of this home, and a run
    without it is not whole; else another file system's business, or gone by now."""

    path: bytes
    reason: str
    is_lost: bool = False


Edit = Union[Put, Drop, Fresh, Unread]  # noqa: UP007 - evaluated when it is imported, on Python 3.9 too


class Excludes:
    """Patterns of names (`*.tmp`), or of absolute paths (`/home/*/.cache`, `**` crosses slashes)."""

    def __init__(self, patterns: Sequence[str]) -> None:
        every = [*ALWAYS_LEFT_OUT, *patterns]
        self._names = _one_of([_expression(each) for each in every if "/" not in each.rstrip("/")])
        self._paths = _one_of([_expression(each.strip("/")) for each in every if "/" in each.rstrip("/")])

    def within(self, directory: bytes) -> Callable[[bytes], bool]:
        """Whether a name in `directory` is left out."""
        names, paths = self._names, self._paths
        prefix = directory + b"/" if directory else b""

        def left_out(name: bytes) -> bool:
            return (
                name == STAGING
                or (names is not None and names.fullmatch(name) is not None)
                or (paths is not None and paths.fullmatch(prefix + name) is not None)
            )

        return left_out


def _expression(pattern: str) -> bytes:
    parts = []
    for piece in re.split(rb"(\*\*|\*|\?)", os.fsencode(pattern.rstrip("/"))):
        parts.append({b"**": rb".*", b"*": rb"[^/]*", b"?": rb"[^/]"}.get(piece) or re.escape(piece))
    return b"".join(parts)


def _one_of(expressions: list[bytes]) -> re.Pattern[bytes] | None:
    return re.compile(b"|".join(b"(?:" + each + b")" for each in expressions), re.DOTALL) if expressions else None


class Cache:
    """A finished cache, for reading in order. `meta` is what was handed to `CacheWriter.finish`."""

    def __init__(self, path: str) -> None:
        """Corrupt if it is not whole; OSError if it is not there."""
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size < _END.size:
                raise Corrupt(f"{path} is too short for a cache")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        length, checksum, magic = _END.unpack_from(self._map, len(self._map) - _END.size)
        self.end = len(self._map) - _END.size - length
        if magic != _MAGIC or self.end < 0 or _checksum(self._map, self.end + length) != checksum:
            raise Corrupt(f"{path} fails its checksum")
        self.meta: dict[str, Any] = json.loads(self._map[self.end : self.end + length])
        self._spoiled: dict[bytes, set[bytes]] = {}
        for text in self.meta.get("spoiled", []):
            directory, _, name = os.fsencode(text).rpartition(b"/")
            self._spoiled.setdefault(directory, set()).add(name)
        self.place = 0

    def take(self, directory: bytes) -> bytes | None:
        """The blob of `directory`, or None. To be asked in ascending order; what is passed over counts as gone."""
        key = sort_key(directory)
        while self.place < self.end:
            paths, blobs = _RECORD.unpack_from(self._map, self.place)
            begin = self.place + _RECORD.size
            path = self._map[begin : begin + paths]
            if path != directory and sort_key(path) >= key:
                return None
            self.place = begin + paths + blobs
            if path == directory:
                blob = self._map[begin + paths : self.place]
                return _blanked(blob, self._spoiled[directory]) if directory in self._spoiled else blob
        return None

    def beginning(self, length: int) -> memoryview:
        return memoryview(self._map)[:length]

    def close(self) -> None:
        self._map.close()


def _checksum(data: mmap.mmap, length: int) -> int:
    checksum = 0
    with memoryview(data) as view:
        for place in range(0, length, 1 << 20):
            with view[place : min(length, place + (1 << 20))] as part:
                checksum = zlib.crc32(part, checksum)
    return checksum


class CacheWriter:
    """The next cache, written beside the walk. As long as nothing differs nothing is written; the first difference copies what
    was passed so far. A crash leaves a file without an end, which `Cache` refuses."""

    def __init__(self, path: str, old: Cache | None) -> None:
        self._path = path
        self._old = old
        self._same_until = 0
        self._file: Any = None
        self._checksum = 0
        self._finished = False
        self.spoiled: set[bytes] = set()
        """Paths that stat must not be believed about: fuzzy, unreadable."""

    @property
    def differs(self) -> bool:
        return self._file is not None

    def same(self, directory: bytes, blob: bytes) -> None:
        """The record that `old.take` gave last is that of `directory` still."""
        assert self._old is not None
        if self._file is None and (self._old.place - self._same_until) == _RECORD.size + len(directory) + len(blob):
            self._same_until = self._old.place
            return
        self.differs_at(directory, blob)

    def differs_at(self, directory: bytes, blob: bytes) -> None:
        self.begin()
        self._write(_RECORD.pack(len(directory), len(blob)) + directory + blob)

    def begin(self) -> None:
        if self._file is not None:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._file = os.fdopen(descriptor, "wb", buffering=1 << 20)
        if self._old is not None and self._same_until:
            with self._old.beginning(self._same_until) as view:
                for place in range(0, len(view), 1 << 20):
                    with view[place : place + (1 << 20)] as part:
                        self._write(part)

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)

    def finish(self, meta: dict[str, Any]) -> None:
        """Close the file; once this returns it is durable, and readable with `meta`."""
        self.begin()
        text = json.dumps({**meta, "spoiled": [os.fsdecode(path) for path in sorted(self.spoiled)]}).encode("utf-8")
        self._write(text)
        self._file.write(_END.pack(len(text), self._checksum, _MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._finished = True

    def abandon(self) -> None:
        """Remove a file that was begun and not finished."""
        if self._file is not None and not self._finished:
            self._file.close()
            os.unlink(self._path)


def may_hang(mountinfo: bytes) -> list[bytes]:
    """Mount points whose server may never answer, of /proc/self/mountinfo (proc_pid_mountinfo(5)). One that hangs holds whoever
    calls stat for ever, even against SIGKILL, and the agent's lock with it."""
    found = []
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(b" - ")
        if rest.startswith(_MAY_HANG) and len(fields.split()) > 4:
            point = fields.split()[4]
            found.append(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8) & 255]), point))
    return found


def _mountinfo() -> bytes:
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return file.read()
    except OSError:
        return b""


class Scan:
    """One walk. `base` is `/` but in tests; paths are relative to it. Iterate `edits()` once, to its end."""

    def __init__(
        self,
        base: bytes,
        directories: Sequence[bytes],
        excludes: Excludes,
        cache: Cache | None,
        writer: CacheWriter,
        *,
        now_ns: int,
        trusted: bool = False,
        at: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """`trusted`: nobody else can change what is walked over, so that its ctimes, however young, may go into the cache.
        `at`: where a path is instead of below `base`. Both are for what a restore has gathered and not yet put in place."""
        self._at = at or (lambda path: base + path)
        self._directories = sorted(set(directories), key=sort_key)
        self._excludes = excludes
        self._cache = cache
        self._writer = writer
        self._horizon_ns = now_ns - RACY_NS
        self._trusted = trusted
        self._leaders: dict[tuple[int, int], tuple[bytes, int]] = {}
        self._away: dict[bytes, set[bytes]] = {}
        """Names, by directory, that are not even to be looked at."""
        for point in may_hang(_mountinfo()):
            if point.startswith(base) and point[len(base) :] not in self._directories:
                folder, _, name = point[len(base) :].rpartition(b"/")
                self._away.setdefault(folder, set()).add(name)
        self.entries = 0
        self.passed_over: list[bytes] = []
        """The first MOUNTS_TOLD_MAX paths at which another file system begins that is not looked into."""
        self.passed_over_count = 0

    def edits(self) -> Iterator[Edit]:
        """What differs, sorted by `sort_key`; a Fresh comes before what is below it."""
        records = []
        below: dict[bytes, tuple[int, int]] = {}
        missing: dict[bytes, str] = {}
        for directory in self._directories:
            if any(directory.startswith(other + b"/") for other in self._directories) and not self._is_mounted(
                directory
            ):
                continue
            try:
                status = os.lstat(self._at(directory))
            except FileNotFoundError:
                missing[directory] = "it is not there"
                continue
            if not stat.S_ISDIR(status.st_mode):
                missing[directory] = "it is not a directory"
                continue
            if not any(directory.startswith(other + b"/") for other in below):
                records.append(directory + b"\0" + _packed(status))
                below[directory] = (status.st_dev, status.st_ino)
        stack = [self._compared(b"", (0, 0), records, [], below, {})]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
            elif isinstance(step, _Descend):
                stack.append(self._directory(step))
            else:
                for directory in [each for each in missing if sort_key(each) < sort_key(step.path)]:
                    yield Unread(directory, missing.pop(directory), True)
                if not (isinstance(step, Drop) and step.path in missing):
                    yield step
        for directory, reason in missing.items():
            yield Unread(directory, reason, True)

    def _is_mounted(self, directory: bytes) -> bool:
        """Whether a directory within another one is a file system of its own."""
        try:
            parent = os.lstat(os.path.dirname(self._at(directory)))
            return os.lstat(self._at(directory)).st_dev != parent.st_dev
        except FileNotFoundError:
            return False

    def _directory(self, step: _Descend) -> Iterator[Edit | _Descend]:
        path = step.path
        try:
            descriptor = os.open(self._at(path), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            yield Unread(path, str(error.strerror), error.errno not in _PASSING)
            return
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) != step.identity:
                yield Unread(path, "it was replaced while it was looked at")
                return
            records, linked, below, unseen = self._list(path, descriptor, status.st_dev)
        except OSError as error:
            yield Unread(path, str(error.strerror), error.errno not in _PASSING)
            return
        finally:
            os.close(descriptor)
        yield from self._compared(path, step.identity, records, linked, below, unseen)

    def _list(
        self, path: bytes, descriptor: int, device: int
    ) -> tuple[
        list[bytes], list[tuple[bytes, bytes, os.stat_result]], dict[bytes, tuple[int, int]], dict[bytes, OSError]
    ]:
        """Records of the entries, in no order; further, those with several links; what the walk may enter; and entries of which
        not even stat says anything. This loop is what a home of a million files takes its time in."""
        left_out = self._excludes.within(path)
        away = self._away.get(path, ())
        records = []
        linked = []
        below = {}
        unseen = {}
        encode, pack, regular = os.fsencode, _STAT.pack, stat.S_IFREG
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = encode(entry.name)
                if left_out(name):
                    continue
                if away and name in away:
                    unseen[name] = OSError(errno.EREMOTE, "its server may never answer")
                    self._pass_over(path + b"/" + name)
                    continue
                try:
                    found = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    # One mount that root may not look at must not hide the home that it lies in.
                    unseen[name] = error
                    continue
                mode, links = found.st_mode, found.st_nlink
                kind = mode & 0o170000
                if kind == regular and links == 1:
                    if found.st_dev == device:
                        try:
                            what = pack(found.st_ino, mode, 1, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                        except struct.error:
                            what = _packed(found)
                        records.append(name + b"\0" + what)
                    else:
                        self._pass_over(path + b"/" + name)
                elif kind == stat.S_IFDIR:
                    records.append(name + b"\0" + _packed(found))
                    if found.st_dev == device or path + b"/" + name in self._directories:
                        below[name] = (found.st_dev, found.st_ino)
                    else:
                        self._pass_over(path + b"/" + name)
                elif kind in _KEPT and found.st_dev == device:
                    record = name + b"\0" + _packed(found)
                    if links == 1:
                        records.append(record)
                    else:
                        linked.append((name, record, found))
        return records, linked, below, unseen

    def _pass_over(self, path: bytes) -> None:
        self.passed_over_count += 1
        if len(self.passed_over) < MOUNTS_TOLD_MAX:
            self.passed_over.append(path)

    def _compared(
        self,
        path: bytes,
        identity: tuple[int, int],
        records: list[bytes],
        linked: list[tuple[bytes, bytes, os.stat_result]],
        below: dict[bytes, tuple[int, int]],
        unseen: dict[bytes, OSError],
    ) -> Iterator[Edit | _Descend]:
        prefix = path + b"/" if path else b""
        leaders = {}
        for name, record, found in sorted(linked, key=lambda each: each[0]):
            leader = self._leader_of(prefix + name, found)
            records.append(record + blake2b(leader, digest_size=_LEADER_BYTES).digest())
            if leader != prefix + name:
                leaders[name] = leader
        old = self._cache.take(path) if self._cache is not None else None
        if unseen and old is not None:
            last = _split(old)
            records += [last[name] for name in unseen if name in last]
        records.sort()
        self.entries += len(records)
        blob = b"".join(records)
        if old == blob:
            self._writer.same(path, blob)
            for name in sorted([*below, *unseen], key=sort_key):
                if name in unseen and unseen[name].errno == errno.EREMOTE:
                    continue  # told as passed over; nothing differs
                if name in unseen:
                    yield _unseen(prefix + name, unseen[name])
                else:
                    yield _Descend(prefix + name, below[name])
            return
        del records
        new = _split(blob)
        self._writer.differs_at(path, self._settled(new))
        before: dict[bytes, bytes] = {}
        if old is None:
            yield Fresh(path)
        else:
            before = _split(old)
        for name in sorted(new.keys() | before.keys() | unseen.keys(), key=sort_key):
            if name in unseen:
                yield _unseen(prefix + name, unseen[name])
                continue
            record_now, was = new.get(name), before.get(name)
            if record_now is None:
                yield Drop(prefix + name)
                continue
            now = _found(name, record_now)
            if was is not None and _found(name, was).is_directory != now.is_directory:
                yield Drop(prefix + name)
                was = None
            if record_now != was:
                yield Put(prefix + name, now, identity, leaders.get(name, b""), was is None)
            if name in below:
                yield _Descend(prefix + name, below[name])

    def _leader_of(self, path: bytes, found: os.stat_result) -> bytes:
        """The path at which the walk saw this inode first. An inode is forgotten once all its links were seen."""
        key = (found.st_dev, found.st_ino)
        leader, left = self._leaders.get(key, (path, found.st_nlink))
        if left > 1:
            self._leaders[key] = (leader, left - 1)
        else:
            self._leaders.pop(key, None)
        return leader

    def _settled(self, records: dict[bytes, bytes]) -> bytes:
        """The records as the cache may have them: what is too young to be believed gets no ctime, which no file has."""
        parts = []
        for name, record in records.items():
            found = _found(name, record)
            young = found.ctime_ns >= self._horizon_ns and not self._trusted
            parts.append(_without_ctime(name, record) if young else record)
        return b"".join(parts)


class _Descend(NamedTuple):
    path: bytes
    identity: tuple[int, int]


def _unseen(path: bytes, error: OSError) -> Unread:
    return Unread(path, str(error.strerror), error.errno not in _NOT_OURS)


def _packed(status: os.stat_result) -> bytes:
    """Times after the year 2262 have more nanoseconds than 63 bits: they wrap, which tells two of them apart still."""
    links, size = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_nlink, status.st_size)
    mtime_ns, ctime_ns = (
        (each + _NS_SPAN // 2) % _NS_SPAN - _NS_SPAN // 2 for each in (status.st_mtime_ns, status.st_ctime_ns)
    )
    return _STAT.pack(status.st_ino, status.st_mode, links, size, mtime_ns, ctime_ns)


def _found(name: bytes, record: bytes) -> Found:
    return Found._make(_STAT.unpack_from(record, len(name) + 1))


def _split(blob: bytes) -> dict[bytes, bytes]:
    """Records by name, in their order."""
    records = {}
    place = 0
    while place < len(blob):
        end = blob.index(b"\0", place)
        name = blob[place:end]
        _, mode, links, _, _, _ = _STAT.unpack_from(blob, end + 1)
        after = end + 1 + _STAT.size + (_LEADER_BYTES if links > 1 and not stat.S_ISDIR(mode) else 0)
        records[name] = blob[place:after]
        place = after
    return records


def _without_ctime(name: bytes, record: bytes) -> bytes:
    after = len(name) + 1 + _STAT.size
    return record[: after - 8] + bytes(8) + record[after:]


def _blanked(blob: bytes, names: set[bytes]) -> bytes:
    return b"".join(_without_ctime(name, record) if name in names else record for name, record in _split(blob).items())
