"""Reading a snapshot: folders, differences, files, archives.

One rule: memory is bounded whatever a home holds: a few tree segments, a few windows into packs, one chunk at a time. Every
tree is checked by its name and every chunk by its digest before a byte of it is given; what fails is HomeDamaged and names
the object.
"""

import hashlib
import io
import stat
import tarfile
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from envctl.agent import pack
from envctl.agent.errors import Corrupt
from envctl.agent.tree import DIRECTORY, FIFO, FILE, SYMLINK, Chunk, Row, Tree, TreeReader, sort_key, subtree_end
from envctl.errors import HomeDamaged, Invalid, NoSuchThing, Refused
from envctl.homes import keys
from envctl.homes.documents import Snapshot
from envctl.homes.kept import Kept
from envctl.homes.paths import is_clean, text_of
from s3core.errors import Corrupt as StoreCorrupt
from s3core.errors import NotFound
from s3core.store import ObjectStore

SEGMENTS_BYTES: Final = 48 * 1024 * 1024
"""Of tree segments, as they are stored; the last one whatever its size. One of an agent of ours has a megabyte."""
WINDOWS_KEPT: Final = 4
WINDOWS_BYTES: Final = 32 * 1024 * 1024
WINDOW_BYTES: Final = 1024 * 1024
"""Small files lie beside each other in a pack; so much is read at once."""
FRAME_BYTES_MAX: Final = 32 * 1024 * 1024
"""Of rows, unpacked; a row of more is a file of 400,000 chunks. A guest may have written a few kilobytes that unpack to
anything: the console leaves such a frame alone, agents restore it."""
HOLE_BYTES: Final = 1024 * 1024
LIMIT_MAX: Final = 10_000
ZIP_FILES_MAX: Final = 100_000
"""The directory of a zip archive is held in memory until its end."""
_DOS_EPOCH: Final = 315532800

What = Literal["added", "changed", "removed"]


@dataclass(frozen=True, slots=True)
class Listing:
    """`rows` are without their chunks. `next`: the name to go on after; b"" at the end."""

    rows: tuple[Row, ...]
    next: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """`content`: the bytes differ, not only owner, mode, times or attributes. The rows are without their chunks."""

    what: What
    path: bytes
    before: Row | None
    after: Row | None
    content: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """`next`: the path to go on after; b"" at the end."""

    changes: tuple[Change, ...]
    next: bytes


@dataclass(frozen=True, slots=True)
class OpenFile:
    """`length` bytes from `offset` of a file of `size`; `pieces` is read once."""

    row: Row
    size: int
    offset: int
    length: int
    pieces: Iterator[bytes]


class Reader:
    """One snapshot. Not for several threads at once."""

    def __init__(self, objects: ObjectStore, environment_id: str, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._objects = objects
        self._environment_id = environment_id
        self.segment = Kept(self._segment, lambda segment: segment.held_bytes, SEGMENTS_BYTES)
        self._pack_bytes = lru_cache(4096)(self._size_of_pack)
        self._windows: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self.tree = Tree(snapshot.trees, self.segment)

    def chunk(self, chunk: Chunk) -> bytes:
        """The bytes of a chunk that is no hole."""
        name = keys.pack(chunk.pack_name)
        frame = self._frame(chunk)
        try:
            return pack.read_chunk(frame, chunk.sha256)
        except Corrupt as error:
            raise HomeDamaged(f"{self._environment_id}: {name}: {error}") from error

    def _frame(self, chunk: Chunk) -> bytes:
        begin, window = self._windows.get(chunk.pack, (0, b""))
        at = chunk.offset - begin
        if at < 0 or at + chunk.stored > len(window):
            window = self._fetched(chunk)
            self._windows[chunk.pack] = (chunk.offset, window)
            at = 0
            self._windows.move_to_end(chunk.pack)
            while len(self._windows) > 1 and (len(self._windows) > WINDOWS_KEPT or self._held() > WINDOWS_BYTES):
                self._windows.popitem(last=False)
        self._windows.move_to_end(chunk.pack)
        return window[at : at + chunk.stored]

    def _held(self) -> int:
        return sum(len(window) for _, window in self._windows.values())

    def _fetched(self, chunk: Chunk) -> bytes:
        size = self._pack_bytes(chunk.pack)
        length = min(max(chunk.stored, WINDOW_BYTES), size - chunk.offset)
        name = keys.pack(chunk.pack_name)
        if length < chunk.stored:
            raise HomeDamaged(f"{self._environment_id}: {name} ends at {size}, before a chunk at {chunk.offset}")
        try:
            return self._objects.get_range(keys.content(self._environment_id, name), chunk.offset, length).data
        except (NotFound, StoreCorrupt) as error:
            raise HomeDamaged(f"{self._environment_id}: {name}: {error}") from error

    def _size_of_pack(self, sha256: bytes) -> int:
        name = keys.pack(sha256.hex())
        try:
            return self._objects.head(keys.content(self._environment_id, name)).size
        except NotFound as error:
            raise HomeDamaged(f"{self._environment_id}: {name} is missing, and a snapshot refers to it") from error

    def _segment(self, sha256: str) -> TreeReader:
        name = keys.tree(sha256)
        try:
            data = self._objects.get(keys.content(self._environment_id, name)).data
        except NotFound as error:
            raise HomeDamaged(f"{self._environment_id}: {name} is missing, and a snapshot refers to it") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HomeDamaged(f"{self._environment_id}: {name} holds other bytes than its name says")
        try:
            return TreeReader(data, FRAME_BYTES_MAX)
        except Corrupt as error:
            raise HomeDamaged(f"{self._environment_id}: {name}: {error}") from error

    def damaged(self, error: Corrupt) -> HomeDamaged:
        return HomeDamaged(f"{self._environment_id}: backup {self.snapshot.number}: {error}")


def listing(reader: Reader, directory: bytes, after: bytes, limit: int) -> Listing:
    """NoSuchThing; Invalid for what is no folder."""
    limit = _checked(limit)
    try:
        row = reader.tree.find(directory) if directory else None
        if row is not None and row.type != DIRECTORY:
            raise Invalid(f"{text_of(directory)} is no folder")
        found: list[Row] = []
        for child in reader.tree.children(directory, after):
            if len(found) == limit:
                return Listing(tuple(found), found[-1].path.rpartition(b"/")[2])
            # A page shows rows, and a row may have 400,000 chunks: only one row has them at a time.
            found.append(child._replace(chunks=()))
    except Corrupt as error:
        raise reader.damaged(error) from error
    if not found and row is None and directory and not after:
        raise _none(reader, directory)
    return Listing(tuple(found), b"")


def difference(older: Reader | None, newer: Reader, prefix: bytes, after: bytes, limit: int) -> Difference:
    """Segments of both hold the same rows, so leaving them out on both sides changes nothing. A folder of which only the
    time changed is not told: what changed in it is."""
    limit = _checked(limit)
    start = sort_key(after) + b"\0" if after else sort_key(prefix)
    stop = subtree_end(prefix)
    common = set(older.snapshot.trees) & set(newer.snapshot.trees) if older else set()
    found: list[Change] = []
    try:
        old = _unlike(older, common, start, stop) if older else iter(())
        for before, now in _merged(old, _unlike(newer, common, start, stop)):
            change = _change(before, now)
            if change is None:
                continue
            if len(found) == limit:
                return Difference(tuple(found), found[-1].path)
            found.append(replace(change, before=_bare(change.before), after=_bare(change.after)))
    except Corrupt as error:
        raise newer.damaged(error) from error
    return Difference(tuple(found), b"")


def open_file(reader: Reader, path: bytes, offset: int = 0, length: int = -1) -> OpenFile:
    """NoSuchThing; Invalid for what is no regular file, or a range outside of it."""
    row = _found(reader, path)
    if row.type != FILE:
        raise Invalid(f"{text_of(path)} is no file")
    row = _content_of(reader, row)
    length = row.size - offset if length < 0 else length
    if offset < 0 or length < 0 or offset + length > row.size:
        raise Invalid(f"{text_of(path)} has {row.size} bytes; there are no {length} from {offset} on")
    return OpenFile(row, row.size, offset, length, _pieces(reader, row, offset, length))


def zip_of(reader: Reader, path: bytes) -> Iterator[bytes]:
    """NoSuchThing at once, not at the first piece; Refused for a folder of more than ZIP_FILES_MAX entries."""
    rows = _rows_below(reader, path)
    count = 0
    for _ in rows():
        count += 1
        if count > ZIP_FILES_MAX:
            raise Refused(
                f"{text_of(path) or '/'} has more than {ZIP_FILES_MAX} files, too many for a zip archive",
                hint="take it as tar",
            )
    if not count:
        raise _none(reader, path)
    return _zipped(reader, rows, _stem(path))


def tar_of(reader: Reader, path: bytes) -> Iterator[bytes]:
    """NoSuchThing at once."""
    rows = _rows_below(reader, path)
    if next(rows(), None) is None:
        raise _none(reader, path)
    return _tarred(reader, rows, _stem(path))


# --- differences -------------------------------------------------------------------------------------------


def _unlike(reader: Reader, common: set[str], start: bytes, stop: bytes) -> Iterator[Row]:
    for name in reader.snapshot.trees:
        if name in common:
            continue
        segment = reader.segment(name)
        if sort_key(segment.last) < start:
            continue
        if sort_key(segment.first) >= stop:
            return
        yield from segment.rows(start, stop)


def _merged(older: Iterator[Row], newer: Iterator[Row]) -> Iterator[tuple[Row | None, Row | None]]:
    before, now = next(older, None), next(newer, None)
    while before is not None or now is not None:
        if now is None or (before is not None and sort_key(before.path) < sort_key(now.path)):
            yield before, None
            before = next(older, None)
        elif before is None or sort_key(now.path) < sort_key(before.path):
            yield None, now
            now = next(newer, None)
        else:
            yield before, now
            before, now = next(older, None), next(newer, None)


def _change(before: Row | None, now: Row | None) -> Change | None:
    if before is None:
        assert now is not None
        return Change("added", now.path, None, now, True)
    if now is None:
        return Change("removed", before.path, before, None, True)
    content = _content(before) != _content(now)
    if before.type == now.type == DIRECTORY:
        before_, now_ = before._replace(mtime_ns=0, size=0), now._replace(mtime_ns=0, size=0)
    else:
        before_, now_ = before, now
    if not content and before_._replace(chunks=()) == now_._replace(chunks=()):
        return None
    return Change("changed", now.path, before, now, content)


def _bare(row: Row | None) -> Row | None:
    return row._replace(chunks=()) if row is not None else None


def _content(row: Row) -> object:
    """What is in it, wherever it is stored."""
    if row.type == DIRECTORY:
        return DIRECTORY
    return row.type, row.size, row.target, row.link, tuple((chunk.sha256, chunk.raw) for chunk in row.chunks)


# --- files -------------------------------------------------------------------------------------------------


def _found(reader: Reader, path: bytes) -> Row:
    try:
        row = reader.tree.find(path) if path else None
    except Corrupt as error:
        raise reader.damaged(error) from error
    if row is None:
        raise _none(reader, path)
    return row


def _content_of(reader: Reader, row: Row) -> Row:
    """The row that has the content of a hard link."""
    if not row.link:
        return row
    try:
        holder = reader.tree.find(row.link)
    except Corrupt as error:
        raise reader.damaged(error) from error
    if holder is None or holder.type != FILE or holder.link:
        raise HomeDamaged(f"backup {reader.snapshot.number}: {text_of(row.path)} is a link to what is not there")
    return holder


def _pieces(reader: Reader, row: Row, offset: int, length: int) -> Iterator[bytes]:
    if sum(chunk.raw for chunk in row.chunks) != row.size:
        raise HomeDamaged(f"backup {reader.snapshot.number}: the chunks of {text_of(row.path)} are not its size")
    at, end = 0, offset + length
    for chunk in row.chunks:
        first, last = max(offset, at), min(end, at + chunk.raw)
        if first < last:
            if chunk.is_hole:
                for begin in range(first, last, HOLE_BYTES):
                    yield bytes(min(HOLE_BYTES, last - begin))
            else:
                raw = reader.chunk(chunk)
                if len(raw) != chunk.raw:
                    raise HomeDamaged(
                        f"backup {reader.snapshot.number}: a chunk of {text_of(row.path)} has another size"
                    )
                yield raw[first - at : last - at]
        at += chunk.raw
        if at >= end:
            return


# --- archives ----------------------------------------------------------------------------------------------


class _Sink(io.RawIOBase):
    """Takes what an archive writes, until it is fetched."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._written = 0

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._written

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]  # any buffer, as RawIOBase has it
        self._parts.append(piece)
        self._written += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _rows_below(reader: Reader, path: bytes) -> Callable[[], Iterator[Row]]:
    def rows() -> Iterator[Row]:
        above = b""
        try:
            for row in reader.tree.subtree(path):
                # Below a link a file would be unpacked to wherever the link leads.
                if not is_clean(row.path) or (above and row.path.startswith(above)):
                    raise HomeDamaged(f"backup {reader.snapshot.number} has a file called {text_of(row.path)!r}")
                if row.type != DIRECTORY:
                    above = row.path + b"/"
                yield row
        except Corrupt as error:
            raise reader.damaged(error) from error

    return rows


def _stem(path: bytes) -> int:
    """So much of each path is left out: what is above the folder that was asked for."""
    return path.rfind(b"/") + 1


def _zipped(reader: Reader, rows: Callable[[], Iterator[Row]], stem: int) -> Iterator[bytes]:
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for row in rows():
            if row.type == FIFO:
                continue
            seconds = min(max(row.mtime_ns // 10**9, _DOS_EPOCH), 4354819198)
            # A backslash separates folders for programs on Windows.
            name = text_of(row.path[stem:]).replace("\\", "%5C") + ("/" if row.type == DIRECTORY else "")
            info = zipfile.ZipInfo(name, time.gmtime(seconds)[:6])
            info.create_system = 3  # Unix: the mode is in the upper half
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (_TYPES[row.type] | row.mode) << 16 | (0x10 if row.type == DIRECTORY else 0)
            if row.type == FILE:
                holder = _content_of(reader, row)
                info.file_size = holder.size
                with archive.open(info, "w") as entry:
                    for piece in _pieces(reader, holder, 0, holder.size):
                        entry.write(piece)
                        yield sink.taken()
            else:
                archive.writestr(info, row.target if row.type == SYMLINK else b"")
            yield sink.taken()
    yield sink.taken()


def _tarred(reader: Reader, rows: Callable[[], Iterator[Row]], stem: int) -> Iterator[bytes]:
    for row in rows():
        info = tarfile.TarInfo(_shown(row.path[stem:]))
        info.mode, info.uid, info.gid = row.mode, row.uid, row.gid
        info.uname, info.gname = _shown(row.user), _shown(row.group)
        info.mtime = row.mtime_ns // 10**9
        info.type = _TAR_TYPES[row.type]
        info.linkname = _shown(row.target)
        info.pax_headers = {f"SCHILY.xattr.{_shown(name)}": _shown(value) for name, value in row.xattrs}
        if row.mtime_ns % 10**9:
            info.pax_headers["mtime"] = f"{row.mtime_ns / 10**9:.9f}"
        holder = _content_of(reader, row) if row.type == FILE else row
        info.size = holder.size if row.type == FILE else 0
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if row.type == FILE:
            yield from _pieces(reader, holder, 0, holder.size)
            yield bytes(-holder.size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _shown(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


_TYPES: Final = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, SYMLINK: stat.S_IFLNK, FIFO: stat.S_IFIFO}
_TAR_TYPES: Final = {
    FILE: tarfile.REGTYPE,
    DIRECTORY: tarfile.DIRTYPE,
    SYMLINK: tarfile.SYMTYPE,
    FIFO: tarfile.FIFOTYPE,
}


def _none(reader: Reader, path: bytes) -> NoSuchThing:
    return NoSuchThing(f"backup {reader.snapshot.number} has no {text_of(path) or 'files'}")


def _checked(limit: int) -> int:
    if not 0 < limit <= LIMIT_MAX:
        raise Invalid(f"a page has 1 to {LIMIT_MAX} lines, not {limit}")
    return limit
