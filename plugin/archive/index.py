"""The index object of an archive: what it holds and where, made while it was uploaded (docs/formats/archive-index.md).

A header, a directory of chunks, the chunks. The facts are one small chunk right behind the directory, so that one range gets
the guest's configuration; tables (hashes of pieces, points where decompression may begin, runs of VMA, members of tar) are
chunks of about a MiB, each readable alone.

One rule: every count and size in an index is compared with a bound before memory is taken for it.
"""

import base64
import binascii
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import crc32c
import orjson
import zstandard

from plugin.archive.compression import Entrance
from plugin.archive.errors import IndexDamaged
from plugin.archive.streams import Ranges
from plugin.archive.tar import BLOCK_BYTES, Member
from plugin.archive.vma import CLUSTERS_PER_EXTENT, Run

MAGIC = b"BWAI"
VERSION = 1
HEAD_BYTES = 64 << 10
"""What a reader asks for first: header, directory and facts of most archives."""
CHUNK_BYTES = 1 << 20
"""Plain bytes of a table's chunk, about."""
CHUNK_BYTES_MAX = 32 << 20
CHUNKS_MAX = 1 << 17
PIECE_BYTES = 16 << 20
FACTS, PIECES, POINTS, RUNS, MEMBERS, ENTRANCES, HISTORIES = range(1, 8)
_RAW, _ZSTD = 0, 1
_HEADER = struct.Struct("<4sB3xII")
_ENTRY = struct.Struct("<BB2xIQIII4x")
_KINDS = ("file", "hardlink", "symlink", "char", "block", "dir", "fifo", "other")
_SPARSE = 0x80
_DIGEST_BYTES = 32
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Disk:
    """Of a VMA: `number` in its extents, `size` in bytes, `clusters` of 64 KiB that the archive names."""

    number: int
    name: str
    size: int
    clusters: int


@dataclass(frozen=True, slots=True)
class Facts:
    """`kind` is vma, tar or "" (neither). `size` is the object's, `plain_size` that of the archive in it where all of it was
    read, else None. `etag` is the object's, "" where it was not known. `complete`: the archive ended as its format says and
    has all of each disk. `note` says in words why not, or why tables are not there."""

    kind: str
    compression: str
    size: int
    plain_size: int | None
    etag: str
    complete: bool
    note: str
    uuid: str
    ctime: int
    configs: tuple[tuple[str, bytes], ...]
    disks: tuple[Disk, ...]
    members: int
    piece_bytes: int


class Table(Generic[_T]):
    """Rows gathered into packed chunks. Memory: one chunk, and the packed ones."""

    def __init__(self, kind: int, encode: Callable[[], Callable[[_T], bytes]]) -> None:
        self.kind = kind
        self.chunks: list[tuple[int, int, bytes, int]] = []
        """(rows, plain bytes, stored bytes, codec)"""
        self.stored = 0
        self._begin = encode
        self._encode = encode()
        self._rows: list[bytes] = []
        self._bytes = 0

    def add(self, row: _T) -> None:
        encoded = self._encode(row)
        self._rows.append(encoded)
        self._bytes += len(encoded)
        if self._bytes >= CHUNK_BYTES:
            self.close()

    def close(self) -> None:
        """Ends the chunk; rows of another one follow."""
        if self._rows:
            plain = b"".join(self._rows)
            stored, codec = _pack(plain)
            self.chunks.append((len(self._rows), len(plain), stored, codec))
            self.stored += len(stored)
            self._rows, self._bytes, self._encode = [], 0, self._begin()


def runs_table() -> Table[Run]:
    return Table(RUNS, _RunCoder)


def members_table() -> Table[Member]:
    return Table(MEMBERS, _MemberCoder)


def encode(
    facts: Facts,
    pieces: Iterable[bytes],
    points: Iterable[tuple[int, int]],
    tables: Iterable[Table[Any]],
    entrances: Iterable[tuple[Entrance, bytes]] = (),
) -> bytes:
    """The whole object. `pieces` are SHA-256 of each `piece_bytes` of the archive object, the last one shorter. `entrances`
    come with their histories, packed."""
    facts_plain = orjson.dumps(_facts_fields(facts), option=orjson.OPT_SORT_KEYS)
    stored, codec = _pack(facts_plain)
    chunks = [(FACTS, 1, len(facts_plain), stored, codec)]
    digests = b"".join(pieces)
    for place in range(0, len(digests), CHUNK_BYTES):
        part = digests[place : place + CHUNK_BYTES]
        chunks.append((PIECES, len(part) // _DIGEST_BYTES, len(part), part, _RAW))
    pairs: Table[tuple[int, int]] = Table(POINTS, _PointCoder)
    for point in points:
        pairs.add(point)
    for table in (pairs, *tables):
        table.close()
        chunks.extend((table.kind, rows, plain, stored, codec) for rows, plain, stored, codec in table.chunks)
    doors: Table[Entrance] = Table(ENTRANCES, _EntranceCoder)
    histories = []
    for entrance, packed in entrances:
        doors.add(entrance)
        histories.append((HISTORIES, 1, zstandard.get_frame_parameters(packed).content_size, packed, _ZSTD))
    doors.close()
    chunks.extend((ENTRANCES, rows, plain, stored, codec) for rows, plain, stored, codec in doors.chunks)
    chunks.extend(histories)
    at = _HEADER.size + len(chunks) * _ENTRY.size
    entries = []
    for kind, rows, plain_size, stored, codec in chunks:
        entries.append(_ENTRY.pack(kind, codec, rows, at, len(stored), plain_size, crc32c.crc32c(stored)))
        at += len(stored)
    directory = b"".join(entries)
    crc = crc32c.crc32c(_HEADER.pack(MAGIC, VERSION, len(chunks), 0) + directory)
    return b"".join(
        (_HEADER.pack(MAGIC, VERSION, len(chunks), crc), directory, *(stored for _, _, _, stored, _ in chunks))
    )


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    codec: int
    rows: int
    at: int
    stored: int
    plain: int
    crc: int


class ArchiveIndex:
    """An index object, read by ranges. IndexDamaged for whatever is not sound. Tables are read when they are asked for, a
    chunk at a time."""

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._head = ranges.read(0, HEAD_BYTES)
        if len(self._head) < _HEADER.size:
            raise IndexDamaged("the index is cut short")
        magic, version, count, crc = _HEADER.unpack_from(self._head)
        if magic != MAGIC:
            raise IndexDamaged("this is no archive index")
        if version != VERSION:
            raise IndexDamaged(f"an archive index of version {version}; this program knows version {VERSION}")
        end = _HEADER.size + count * _ENTRY.size
        if not 0 < count <= CHUNKS_MAX or end > ranges.size:
            raise IndexDamaged(f"an archive index with {count:,} chunks in {ranges.size:,} bytes")
        directory = self._bytes(_HEADER.size, count * _ENTRY.size)
        if crc32c.crc32c(_HEADER.pack(MAGIC, VERSION, count, 0) + directory) != crc:
            raise IndexDamaged("the checksum of the index's directory is wrong")
        self._entries = [_Entry(*fields) for fields in _ENTRY.iter_unpack(directory)]
        for entry in self._entries:
            if max(entry.stored, entry.plain) > CHUNK_BYTES_MAX or entry.at + entry.stored > ranges.size:
                raise IndexDamaged("a chunk of the index lies behind its end, or is too large")
        if [entry.kind for entry in self._entries].count(FACTS) != 1:
            raise IndexDamaged("the index has not one chunk of facts")
        self.facts = _facts(self._chunk(next(entry for entry in self._entries if entry.kind == FACTS)))

    def has(self, table: int) -> bool:
        """Whether the table is there. That of an archive that was read to its end may be empty."""
        return self.facts.plain_size is not None or any(entry.kind == table for entry in self._entries)

    def pieces(self) -> Iterator[bytes]:
        """SHA-256 of each piece of the object, in order."""
        for entry, data in self._chunks(PIECES):
            if len(data) != entry.rows * _DIGEST_BYTES:
                raise IndexDamaged("hashes in the index are cut")
            for place in range(0, len(data), _DIGEST_BYTES):
                yield data[place : place + _DIGEST_BYTES]

    def points(self) -> Iterator[tuple[int, int]]:
        """(byte of the object, byte of the archive) where decompression may begin, ascending."""
        yield from self._rows(POINTS, _PointDecoder)

    def entrances(self) -> Iterator[Entrance]:
        """Ascending."""
        yield from self._rows(ENTRANCES, _EntranceDecoder)

    def history(self, number: int) -> bytes:
        """Of the entrance of that number, from 0."""
        for entry in self._entries:
            if entry.kind == HISTORIES:
                if not number:
                    return self._chunk(entry)
                number -= 1
        raise IndexDamaged("an entrance of the index has no history")

    def runs(self) -> Iterator[Run]:
        """In the order of the archive."""
        yield from self._rows(RUNS, _RunDecoder)

    def members(self) -> Iterator[Member]:
        """In the order of the archive. Sparse maps and attributes are not in an index: a sparse member has an empty map."""
        yield from self._rows(MEMBERS, _MemberDecoder)

    def _rows(self, kind: int, decoder: Callable[["_Reader"], Callable[[], _T]]) -> Iterator[_T]:
        for entry, data in self._chunks(kind):
            reader = _Reader(data)
            row = decoder(reader)
            try:
                for _ in range(entry.rows):
                    yield row()
            except (IndexError, ValueError) as error:
                raise IndexDamaged(f"a table of the index is damaged: {error}") from None
            if reader.at != len(data):
                raise IndexDamaged("a table of the index is longer than its rows")

    def _chunks(self, kind: int) -> Iterator[tuple[_Entry, bytes]]:
        for entry in self._entries:
            if entry.kind == kind:
                yield entry, self._chunk(entry)

    def _chunk(self, entry: _Entry) -> bytes:
        stored = self._bytes(entry.at, entry.stored)
        if crc32c.crc32c(stored) != entry.crc:
            raise IndexDamaged("the checksum of a chunk of the index is wrong")
        if entry.codec == _RAW:
            if entry.stored != entry.plain:
                raise IndexDamaged("a chunk of the index has two sizes")
            return stored
        if entry.codec != _ZSTD:
            raise IndexDamaged(f"a chunk of the index with codec {entry.codec}, which is not known here")
        try:
            if zstandard.get_frame_parameters(stored).content_size != entry.plain:
                raise IndexDamaged("a chunk of the index states another size than the directory")
            plain = zstandard.ZstdDecompressor().decompress(stored, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise IndexDamaged(f"a chunk of the index: {error}") from None
        if len(plain) != entry.plain:
            raise IndexDamaged("a chunk of the index has another size than the directory")
        return plain

    def _bytes(self, at: int, size: int) -> bytes:
        if at + size <= len(self._head):
            return self._head[at : at + size]
        data = bytearray()
        while len(data) < size:
            more = self._ranges.read(at + len(data), size - len(data))
            if not more:
                raise IndexDamaged("the index is cut short")
            data += more
        return bytes(data)


def _pack(plain: bytes) -> tuple[bytes, int]:
    packed = zstandard.ZstdCompressor(level=3, write_content_size=True).compress(plain)
    return (packed, _ZSTD) if len(packed) < len(plain) else (plain, _RAW)


def _facts_fields(facts: Facts) -> dict[str, object]:
    return {
        "kind": facts.kind,
        "compression": facts.compression,
        "size": facts.size,
        "plain_size": facts.plain_size,
        "etag": facts.etag,
        "complete": facts.complete,
        "note": facts.note,
        "uuid": facts.uuid,
        "ctime": facts.ctime,
        "configs": [{"name": _clean(name), "base64": base64.b64encode(data).decode()} for name, data in facts.configs],
        "disks": [
            {"number": disk.number, "name": _clean(disk.name), "size": disk.size, "clusters": disk.clusters}
            for disk in facts.disks
        ],
        "members": facts.members,
        "piece_bytes": facts.piece_bytes,
    }


def _clean(text: str) -> str:
    """JSON has no lone surrogates."""
    return text.encode(errors="replace").decode()


def _facts(data: bytes) -> Facts:
    try:
        fields = orjson.loads(data)
        facts = Facts(
            kind=_typed(fields["kind"], str),
            compression=_typed(fields["compression"], str),
            size=_typed(fields["size"], int),
            plain_size=None if fields["plain_size"] is None else _typed(fields["plain_size"], int),
            etag=_typed(fields["etag"], str),
            complete=_typed(fields["complete"], bool),
            note=_typed(fields["note"], str),
            uuid=_typed(fields["uuid"], str),
            ctime=_typed(fields["ctime"], int),
            configs=tuple(
                (_typed(each["name"], str), base64.b64decode(_typed(each["base64"], str), validate=True))
                for each in fields["configs"]
            ),
            disks=tuple(
                Disk(
                    _typed(each["number"], int),
                    _typed(each["name"], str),
                    _typed(each["size"], int),
                    _typed(each["clusters"], int),
                )
                for each in fields["disks"]
            ),
            members=_typed(fields["members"], int),
            piece_bytes=_typed(fields["piece_bytes"], int),
        )
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise IndexDamaged(f"the facts of the index are damaged: {error}") from None
    if not 1 << 16 <= facts.piece_bytes <= 1 << 30:
        raise IndexDamaged(f"an index of pieces of {facts.piece_bytes:,} bytes")
    if facts.compression not in ("", "zstd", "gzip", "lzo") or facts.kind not in ("", "vma", "tar"):
        raise IndexDamaged("an index of an archive of an unknown kind")
    return facts


def _typed(value: object, kind: type[_T]) -> _T:
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    if isinstance(value, int) and not 0 <= value < 1 << 63:
        raise ValueError(f"{value} is beyond every archive")
    return value


# --- rows: LEB128, signed ones zigzag, differences from what the row before leads one to expect --------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> bytes:
    return _varint(value << 1 if value >= 0 else (-value << 1) - 1)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def signed(self) -> int:
        value = self.varint()
        return -(value + 1 >> 1) if value & 1 else value >> 1

    def text(self) -> str:
        length = self.varint()
        if self.at + length > len(self.data):
            raise ValueError("a text reaches behind its chunk")
        self.at += length
        return self.data[self.at - length : self.at].decode(errors="surrogateescape")


def _natural(value: int) -> int:
    if not 0 <= value < 1 << 63:
        raise ValueError("a place below zero, or beyond every archive")
    return value


class _PointCoder:
    def __init__(self) -> None:
        self._stored = self._plain = 0

    def __call__(self, point: tuple[int, int]) -> bytes:
        out = _varint(point[0] - self._stored) + _varint(point[1] - self._plain)
        self._stored, self._plain = point
        return out


class _PointDecoder:
    def __init__(self, reader: _Reader) -> None:
        self._reader, self._stored, self._plain = reader, 0, 0

    def __call__(self) -> tuple[int, int]:
        self._stored = _natural(self._stored + self._reader.varint())
        self._plain = _natural(self._plain + self._reader.varint())
        return self._stored, self._plain


class _EntranceCoder:
    def __init__(self) -> None:
        self._points = _PointCoder()

    def __call__(self, entrance: Entrance) -> bytes:
        place = self._points((entrance.stored, entrance.plain))
        return place + _varint(entrance.until - entrance.plain) + bytes((entrance.window,))


class _EntranceDecoder:
    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._points = _PointDecoder(reader)

    def __call__(self) -> Entrance:
        stored, plain = self._points()
        until = _natural(plain + self._reader.varint())
        window = self._reader.data[self._reader.at]
        self._reader.at += 1
        return Entrance(stored, plain, until, window)


class _RunCoder:
    def __init__(self) -> None:
        self._next: dict[int, int] = {}
        self._end = 0

    def __call__(self, run: Run) -> bytes:
        out = b"".join(
            (
                _varint(run.device),
                _signed(run.cluster - self._next.get(run.device, 0)),
                _varint(run.count),
                _varint(run.mask),
                _signed(run.at - self._end),
            )
        )
        self._next[run.device] = run.cluster + run.count
        self._end = run.at + run.stored
        return out


class _RunDecoder:
    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._next: dict[int, int] = {}
        self._end = 0

    def __call__(self) -> Run:
        reader = self._reader
        device = reader.varint()
        cluster = _natural(self._next.get(device, 0) + reader.signed())
        count, mask = reader.varint(), reader.varint()
        at = _natural(self._end + reader.signed())
        if (
            not 0 < device < 256
            or not 0 < count <= CLUSTERS_PER_EXTENT
            or not 0 < mask < 1 << 16
            or cluster + count > 1 << 32
        ):
            raise ValueError("a run that no VMA can have")
        run = Run(device, cluster, count, mask, at)
        self._next[device] = cluster + count
        self._end = at + run.stored
        return run


class _MemberCoder:
    def __init__(self) -> None:
        self._end = self._mtime = 0

    def __call__(self, member: Member) -> bytes:
        path, link = (text.encode(errors="surrogateescape") for text in (member.path, member.link))
        out = b"".join(
            (
                _signed(member.start - self._end),
                _varint(member.data_at - member.start),
                _varint(member.stored),
                bytes((_KINDS.index(member.kind) | (_SPARSE if member.sparse else 0),)),
                _varint(member.size) if member.sparse else b"",
                _varint(member.mode),
                _signed(member.uid),
                _signed(member.gid),
                _signed(member.mtime - self._mtime),
                _varint(len(path)),
                path,
                _varint(len(link)),
                link,
            )
        )
        self._end, self._mtime = member.end, member.mtime
        return out


class _MemberDecoder:
    def __init__(self, reader: _Reader) -> None:
        self._reader, self._end, self._mtime = reader, 0, 0

    def __call__(self) -> Member:
        reader = self._reader
        start = _natural(self._end + reader.signed())
        data_at = _natural(start + reader.varint())
        stored = reader.varint()
        flags = reader.data[reader.at]
        reader.at += 1
        sparse, kind = bool(flags & _SPARSE), flags & ~_SPARSE
        size = reader.varint() if sparse else stored
        mode, uid, gid = reader.varint(), reader.signed(), reader.signed()
        mtime = self._mtime + reader.signed()
        path, link = reader.text(), reader.text()
        end = _natural(data_at + -(-stored // BLOCK_BYTES) * BLOCK_BYTES)
        self._end, self._mtime = end, mtime
        return Member(
            path, _KINDS[kind], size, mode, uid, gid, mtime, link, start, data_at, stored, end, () if sparse else None
        )
