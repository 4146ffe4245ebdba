"""What a home was at a moment: rows of files, in segments that unchanged runs share (docs/formats/home.md). Pure.

One rule: rows are sorted by `sort_key` of their paths, which puts a directory right before all that lies below it. So a
subtree is one run of rows, and an unchanged subtree is unchanged segments. No path is in a tree twice.

    magic "BWHTREE1", version, 4 zero bytes        frames: rows end to end, packed
    footer: frames (offset, stored, raw, rows, CRC-32 of what is stored, codec, first path, last path), then the packs
    referred to trailer: rows, files, sum of sizes (8 bytes each), frames, packs, length of the footer, CRC-32 (4 bytes
    each), magic

Read next: `TreeWriter`, `TreeReader` (one segment), `Tree` (all segments of a snapshot).
"""

from __future__ import annotations

import bisect
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from envctl.agent import codec as codecs
from envctl.agent.errors import Corrupt

MAGIC: Final = b"BWHTREE1"
VERSION: Final = 1
FRAME_ROWS: Final = 512
FRAME_BYTES: Final = 1024 * 1024
FRAME_BYTES_LIMIT: Final = 256 * 1024 * 1024
SEGMENT_ROWS_MIN: Final = 256
SEGMENT_ROWS_MASK: Final = (1 << 12) - 1
SEGMENT_ROWS_MAX: Final = 16_384
SEGMENT_BYTES_MAX: Final = 8 * 1024 * 1024
"""Of rows, unpacked: one file of many chunks may be a segment of its own."""

DIRECTORY: Final = "d"
FILE: Final = "f"
SYMLINK: Final = "l"
FIFO: Final = "p"
_CODES: Final = {DIRECTORY: 1, FILE: 2, SYMLINK: 3, FIFO: 4}
_TYPES: Final = {code: kind for kind, code in _CODES.items()}
_FUZZY: Final = 1
_LINK: Final = 2

SKIPPED_ROWS_MAX: Final = 256
"""So many rows below a child are stepped over before its end is looked up instead."""

NO_DIGEST: Final = bytes(32)

_HEADER: Final = struct.Struct("<8sI4x")
_ROW: Final = struct.Struct("<HI")
_BODY: Final = struct.Struct("<BBHIIqQHHHHI")
_XATTR: Final = struct.Struct("<HI")
_CHUNK: Final = struct.Struct("<32s32sIIQ")
_FRAME: Final = struct.Struct("<QIIIIIHH")
_TRAILER: Final = struct.Struct("<QQQIIII8s")


class Chunk(NamedTuple):
    """`raw` bytes of a file, in a frame of `stored` bytes at `offset` of the pack called `pack`; or a hole of `raw` bytes."""

    pack: bytes
    sha256: bytes
    offset: int
    stored: int
    raw: int

    @property
    def is_hole(self) -> bool:
        return self.stored == 0

    @property
    def pack_name(self) -> str:
        return self.pack.hex()


def hole(length: int) -> Chunk:
    return Chunk(NO_DIGEST, NO_DIGEST, 0, 0, length)


class Row(NamedTuple):
    """A file as it was. `path` is relative to `/`, as bytes. `type` is DIRECTORY, FILE, SYMLINK or FIFO; `mode` the 12
    permission bits. `user` and `group` are names, b"" where the guest knew none. `link`: the path of the row that holds the
    content of this hard link (that row may come later); such a row has no chunks but the size. `fuzzy`: the file changed
    while it was read; the content is that of the snapshot before, or what could be read."""

    path: bytes
    type: str
    mode: int
    uid: int
    gid: int
    user: bytes
    group: bytes
    mtime_ns: int
    size: int
    target: bytes = b""
    link: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    chunks: tuple[Chunk, ...] = ()
    fuzzy: bool = False


def sort_key(path: bytes) -> bytes:
    """Orders paths by their components. No name holds a byte 0."""
    return path.replace(b"/", b"\0")


def subtree_end(path: bytes) -> bytes:
    """The smallest key behind all that lies below `path`; for b"", behind everything."""
    return sort_key(path) + b"\1" if path else b"\xff" * 4097


def encode_body(row: Row) -> bytes:
    """All of `row` but its path. Equal rows give equal bytes."""
    other, flags = (row.link, _LINK) if row.link else (row.target, 0)
    head = _BODY.pack(
        _CODES[row.type],
        flags | (_FUZZY if row.fuzzy else 0),
        row.mode,
        row.uid,
        row.gid,
        row.mtime_ns,
        row.size,
        len(row.user),
        len(row.group),
        len(other),
        len(row.xattrs),
        len(row.chunks),
    )
    xattrs = [_XATTR.pack(len(name), len(value)) + name + value for name, value in row.xattrs]
    return b"".join((head, row.user, row.group, other, *xattrs, *(_CHUNK.pack(*chunk) for chunk in row.chunks)))


def decode(path: bytes, body: bytes) -> Row:
    """The row of `path`, or Corrupt."""
    try:
        code, flags, mode, uid, gid, mtime_ns, size, users, groups, others, xattrs, chunks = _BODY.unpack_from(body)
        place = _BODY.size
        user, group, other = (
            body[place : place + users],
            body[place + users : place + users + groups],
            body[place + users + groups : place + users + groups + others],
        )
        place += users + groups + others
        pairs = []
        for _ in range(xattrs):
            names, values = _XATTR.unpack_from(body, place)
            place += _XATTR.size
            pairs.append((body[place : place + names], body[place + names : place + names + values]))
            place += names + values
        if len(body) != place + chunks * _CHUNK.size:
            raise Corrupt(f"row {path!r} is cut short")
        is_link = bool(flags & _LINK)
        return Row(
            path,
            _TYPES[code],
            mode,
            uid,
            gid,
            user,
            group,
            mtime_ns,
            size,
            b"" if is_link else other,
            other if is_link else b"",
            tuple(pairs),
            tuple(Chunk._make(fields) for fields in _CHUNK.iter_unpack(body[place:])),
            bool(flags & _FUZZY),
        )
    except (struct.error, KeyError) as error:
        raise Corrupt(f"row {path!r} cannot be read: {error}") from error


def chunks_in(body: bytes) -> Iterator[Chunk]:
    """The chunks of an encoded row, holes among them."""
    chunks = _BODY.unpack_from(body)[-1]
    return map(Chunk._make, _CHUNK.iter_unpack(body[len(body) - chunks * _CHUNK.size :]))


def with_packs(body: bytes, named: Callable[[bytes], bytes]) -> bytes:
    """`body` with each chunk's pack renamed by `named`; holes stay."""
    chunks = list(chunks_in(body))
    head = body[: len(body) - len(chunks) * _CHUNK.size]
    renamed = (chunk if chunk.is_hole else chunk._replace(pack=named(chunk.pack)) for chunk in chunks)
    return head + b"".join(_CHUNK.pack(*chunk) for chunk in renamed)


def is_file(body: bytes) -> bool:
    """Whether an encoded row is one of a file, without decoding the rest."""
    return body[0] == _CODES[FILE]


def _facts(body: bytes) -> tuple[bool, int, int]:
    """(is a file, its size, number of its chunks), without decoding the rest."""
    code, _, _, _, _, _, size, _, _, _, _, chunks = _BODY.unpack_from(body)
    return code == _CODES[FILE], size, chunks


def is_cut(path: bytes) -> bool:
    """Whether a segment may begin at `path`: by its bytes alone, so that a row more or less moves no other boundary."""
    return not zlib.crc32(path) & SEGMENT_ROWS_MASK


class TreeWriter:
    """Builds one segment. Not to be used after `finish`."""

    def __init__(self, codec: int = codecs.ZLIB) -> None:
        self._codec = codec
        self._parts: list[bytes] = []
        self._offset = _HEADER.size
        self._frames: list[tuple[tuple[int, ...], bytes, bytes]] = []
        self._open: list[bytes] = []
        self._open_bytes = 0
        self._open_first = b""
        self._packs: dict[bytes, None] = {}
        self._last: bytes | None = None
        self.rows = 0
        self.files = 0
        self.bytes = 0
        """Sum of the sizes of its files, each hard link counted once."""
        self.first = b""
        self._raw = 0

    @property
    def last(self) -> bytes:
        return self._last or b""

    def ends_before(self, path: bytes) -> bool:
        """Whether the segment should be finished, and `path` begin the next."""
        if self.rows >= SEGMENT_ROWS_MAX or self._raw >= SEGMENT_BYTES_MAX:
            return True
        return self.rows >= SEGMENT_ROWS_MIN and is_cut(path)

    def add(self, row: Row) -> None:
        """`row` must come behind all that were added: ValueError otherwise."""
        self.add_encoded(row.path, encode_body(row))

    def add_encoded(self, path: bytes, body: bytes) -> None:
        """Like `add`, for a row that was read with `TreeReader.encoded` and is the same still."""
        if self._last is not None and sort_key(path) <= sort_key(self._last):
            raise ValueError(f"{path!r} does not come behind {self._last!r}")
        is_file, size, chunks = _facts(body)
        if not self.rows:
            self.first = path
        if not self._open:
            self._open_first = path
        self.rows += 1
        if is_file:
            self.files += 1
            self.bytes += 0 if body[1] & _LINK else size
        for place in range(len(body) - chunks * _CHUNK.size, len(body), _CHUNK.size):
            self._packs[body[place : place + 32]] = None
        self._open.append(_ROW.pack(len(path), len(body)) + path + body)
        self._open_bytes += len(self._open[-1])
        self._raw += len(self._open[-1])
        self._last = path
        if len(self._open) >= FRAME_ROWS or self._open_bytes >= FRAME_BYTES:
            self._close_frame()

    def _close_frame(self) -> None:
        if not self._open:
            return
        raw = b"".join(self._open)
        codec, stored = codecs.pack(self._codec, raw)
        fields = (self._offset, len(stored), len(raw), len(self._open), zlib.crc32(stored), codec)
        self._frames.append((fields, self._open_first, self.last))
        self._parts.append(stored)
        self._offset += len(stored)
        self._open = []
        self._open_bytes = 0

    def finish(self) -> bytes:
        """The segment. Its name is the SHA-256 of these bytes; the same rows give the same bytes."""
        self._close_frame()
        self._packs.pop(NO_DIGEST, None)
        footer = b"".join(
            _FRAME.pack(*fields, len(first), len(last)) + first + last for fields, first, last in self._frames
        ) + b"".join(sorted(self._packs))
        numbers = (self.rows, self.files, self.bytes, len(self._frames), len(self._packs), len(footer))
        checksum = zlib.crc32(struct.pack("<QQQIII", *numbers), zlib.crc32(footer))
        return b"".join((_HEADER.pack(MAGIC, VERSION), *self._parts, footer, _TRAILER.pack(*numbers, checksum, MAGIC)))


class _Frame(NamedTuple):
    offset: int
    stored: int
    raw: int
    rows: int
    crc: int
    codec: int
    first: bytes
    last: bytes


class TreeReader:
    """Reads one segment from its bytes, a frame at a time. Corrupt, from any of its methods, if they are not whole; whether
    they are those of the name is for whoever fetched them to check.

    A stranger may have written the bytes: what they say of their own lengths is compared with what is there before anything is
    made of it. `frame_bytes_max`: a frame of more is not unpacked."""

    def __init__(self, segment: bytes, frame_bytes_max: int = FRAME_BYTES_LIMIT) -> None:
        self._segment = segment
        self._frame_bytes_max = frame_bytes_max
        if len(segment) < _HEADER.size + _TRAILER.size or segment[: len(MAGIC)] != MAGIC:
            raise Corrupt("this is not a segment of a tree")
        if _HEADER.unpack_from(segment)[1] != VERSION:
            raise Corrupt(f"version {_HEADER.unpack_from(segment)[1]} of a tree is not known: a newer agent wrote it")
        *numbers, checksum, magic = _TRAILER.unpack_from(segment, len(segment) - _TRAILER.size)
        self.rows_total, self.files, self.bytes, frames, packs, length = numbers
        begin = len(segment) - _TRAILER.size - length
        if magic != MAGIC or begin < _HEADER.size:
            raise Corrupt("a segment of a tree is cut short")
        footer = segment[begin : begin + length]
        if zlib.crc32(struct.pack("<QQQIII", *numbers), zlib.crc32(footer)) != checksum:
            raise Corrupt("the footer of a segment fails its checksum")
        if frames > SEGMENT_ROWS_MAX or frames * _FRAME.size + packs * 32 > length:
            raise Corrupt(f"the footer of a segment has {length} bytes, too few for {frames} frames and {packs} packs")
        self._frames: list[_Frame] = []
        place = 0
        for _ in range(frames):
            if place + _FRAME.size > length:
                raise Corrupt("the footer of a segment is cut short")
            *fields, firsts, lasts = _FRAME.unpack_from(footer, place)
            place += _FRAME.size
            keys = footer[place : place + firsts], footer[place + firsts : place + firsts + lasts]
            place += firsts + lasts
            self._frames.append(_Frame._make((*fields, *keys)))
        if place + 32 * packs != length:
            raise Corrupt(f"the footer of a segment has {length} bytes, and its parts {place + 32 * packs}")
        self.packs: tuple[bytes, ...] = tuple(footer[at : at + 32] for at in range(place, place + 32 * packs, 32))
        """The packs its rows refer to (binary SHA-256), sorted."""
        self._lasts = [sort_key(frame.last) for frame in self._frames]

    @property
    def held_bytes(self) -> int:
        """What it takes in memory, about: the segment, and names of packs three times."""
        return len(self._segment) + 100 * len(self.packs)

    @property
    def first(self) -> bytes:
        """Path of its first row; b"" if it has none."""
        return self._frames[0].first if self._frames else b""

    @property
    def last(self) -> bytes:
        return self._frames[-1].last if self._frames else b""

    def encoded(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        """(path, body) of the rows whose sort key is at least `start` and less than `stop`, in order."""
        for frame in self._frames[bisect.bisect_left(self._lasts, start) :]:
            if stop is not None and sort_key(frame.first) >= stop:
                return
            for path, body in self._rows_of(frame):
                key = sort_key(path)
                if key < start:
                    continue
                if stop is not None and key >= stop:
                    return
                yield path, body

    def _rows_of(self, frame: _Frame) -> Iterator[tuple[bytes, bytes]]:
        if frame.raw > self._frame_bytes_max or frame.rows > FRAME_ROWS:
            raise Corrupt(f"the frame from {frame.first!r} on is too large: {frame.raw} bytes, {frame.rows} rows")
        stored = self._segment[frame.offset : frame.offset + frame.stored]
        if zlib.crc32(stored) != frame.crc:
            raise Corrupt(f"the frame from {frame.first!r} on fails its checksum")
        raw = codecs.unpack(frame.codec, stored, frame.raw)
        place = 0
        try:
            for _ in range(frame.rows):
                paths, bodies = _ROW.unpack_from(raw, place)
                place += _ROW.size
                yield raw[place : place + paths], raw[place + paths : place + paths + bodies]
                place += paths + bodies
        except struct.error as error:
            raise Corrupt(f"the frame from {frame.first!r} on is cut short") from error

    def rows(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Row]:
        for path, body in self.encoded(start, stop):
            yield decode(path, body)

    def find(self, path: bytes) -> Row | None:
        key = sort_key(path)
        return next(self.rows(key, key + b"\0"), None)


class Tree:
    """A whole snapshot: its segments by name, in order, each opened when it is needed. `open_segment(name)` fetches and
    checks; it should keep the last few, because a listing opens the same ones again."""

    def __init__(self, names: Sequence[str], open_segment: Callable[[str], TreeReader]) -> None:
        self.names = tuple(names)
        self._open = open_segment

    def _segment_at(self, start: bytes) -> int:
        """The first segment that may hold a row at or behind `start`. Opens log2 of their number."""
        low, high = 0, len(self.names)
        while low < high:
            middle = (low + high) // 2
            if sort_key(self._open(self.names[middle]).last) < start:
                low = middle + 1
            else:
                high = middle
        return low

    def encoded(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[tuple[bytes, bytes]]:
        for name in self.names[self._segment_at(start) if start else 0 :]:
            reader = self._open(name)
            if stop is not None and reader.first and sort_key(reader.first) >= stop:
                return
            yield from reader.encoded(start, stop)

    def rows(self, start: bytes = b"", stop: bytes | None = None) -> Iterator[Row]:
        """Rows in order whose sort key is at least `start` and less than `stop`."""
        for path, body in self.encoded(start, stop):
            yield decode(path, body)

    def subtree(self, path: bytes) -> Iterator[Row]:
        """The row of `path`, if there is one, and all below it; of b"", everything."""
        return self.rows(sort_key(path), subtree_end(path)) if path else self.rows()

    def find(self, path: bytes) -> Row | None:
        key = sort_key(path)
        return next(self.rows(key, key + b"\0"), None)

    def children(self, directory: bytes, after: bytes = b"") -> Iterator[Row]:
        """What lies right in `directory` (b"" for /), in order, behind the name `after`. A directory above those that are
        saved has no row; it is given as an empty one of root."""
        prefix = directory + b"/" if directory else b""
        stop = subtree_end(directory)
        start: bytes | None = sort_key(prefix + after) + b"\1" if after else sort_key(prefix)
        while start is not None:
            rows, start, child, skipped = self.encoded(start, stop), None, b"", 0
            for path, body in rows:
                if child and path.startswith(child + b"/"):
                    skipped += 1
                    if skipped >= SKIPPED_ROWS_MAX:
                        start = subtree_end(child)
                        break
                    continue
                skipped = 0
                if len(path) <= len(prefix):
                    continue
                child = prefix + path[len(prefix) :].split(b"/", 1)[0]
                yield decode(path, body) if path == child else Row(child, DIRECTORY, 0o755, 0, 0, b"", b"", 0, 0)
