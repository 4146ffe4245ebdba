"""Roots: checkpoints of the extent map, so that recovery never replays a long log. Format: docs/formats/root.md.

One rule: a root is a cache of the log. Root `seq` describes the map after commit `seq`, names that commit's digest,
and is written after every page pack it points to; a root that does not parse is passed over for an older one.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import zstandard
from crc32c import crc32c

from blockdev.errors import CorruptFormat
from blockdev.segments.packed import unpack, unpack_within
from blockdev.segments.paths import ContainerRef

Buffer = bytes | bytearray | memoryview

PAGE_EXTENTS = 1024
HEADER = struct.Struct("<IHHQQ32s16s16s16sQQQIIII")
HEADER_BYTES = HEADER.size
MAGIC = 0x54525742  # "BWRT"
VERSION = 1
RAW_BYTES_MAX = 1 << 30
"""Most bytes an unpacked root may have. A reader allocates no more."""
PAGE_BYTES_MAX = 64 << 20
"""Most bytes an unpacked page may have: 64 KiB of map value per extent, thirty times what the writer allows."""
_CRC_OFFSET = HEADER_BYTES - 8
_COUNTS = struct.Struct("<IIIIII")
_PAGE = struct.Struct("<QQIHIII")
_RANGE = struct.Struct("<QQQ")
_CONTAINER = struct.Struct("<QIHQQQ")
_DEAD = struct.Struct("<QH")
_ENTRY = struct.Struct("<HI")


class PageRef(NamedTuple):
    """Page `page` (extents page * 1024 and on): `length` bytes at `offset` of pack (seq, epoch, n); `crc`: CRC32C."""

    page: int
    seq: int
    epoch: int
    n: int
    offset: int
    length: int
    crc: int


class ContainerUse(NamedTuple):
    ref: ContainerRef
    sectors: int
    live: int
    stored: int


class DeadObject(NamedTuple):
    """An object that commit `death` made unnecessary and that has not been deleted yet."""

    death: int
    key: str


@dataclass(frozen=True, slots=True)
class Root:
    seq: int
    epoch: int
    digest: bytes
    volume: UUID
    lineage: UUID
    journal: UUID
    end: int
    time_us: int
    size_bytes: int
    pages: Sequence[PageRef] = ()
    runs: Sequence[PageRef] = ()
    """Deltas over pages, in the order they lie over each other: see `encode_page`."""
    ranges: Sequence[tuple[int, int, int]] = ()
    """Discarded (first extent, extents, commit) not yet worked into the pages."""
    containers: Sequence[ContainerUse] = ()
    dead: Sequence[DeadObject] = ()
    note: dict[str, Any] = field(default_factory=dict)


def encode(root: Root) -> bytes:
    note = json.dumps(root.note, sort_keys=True, separators=(",", ":")).encode() if root.note else b""
    out = [
        _COUNTS.pack(
            len(root.pages), len(root.ranges), len(root.containers), len(root.dead), len(root.runs), len(note)
        ),
        note,
    ]
    out += [_PAGE.pack(*page) for page in root.pages]
    out += [_RANGE.pack(*item) for item in root.ranges]
    out += [_CONTAINER.pack(*use.ref, use.sectors, use.live, use.stored) for use in root.containers]
    for item in root.dead:
        key = item.key.encode()
        out += [_DEAD.pack(item.death, len(key)), key]
    out += [_PAGE.pack(*run) for run in root.runs]
    raw = b"".join(out)
    assert len(raw) <= RAW_BYTES_MAX, f"a root of {len(raw)} bytes"
    body = zstandard.ZstdCompressor(level=3).compress(raw)

    def pack(crc: int) -> bytes:
        return HEADER.pack(
            MAGIC,
            VERSION,
            0,
            root.seq,
            root.epoch,
            root.digest,
            root.volume.bytes,
            root.lineage.bytes,
            root.journal.bytes,
            root.end,
            root.time_us,
            root.size_bytes,
            len(body),
            len(raw),
            crc,
            0,
        )

    return pack(crc32c(body, crc32c(pack(0)))) + body


def decode(blob: Buffer, *, what: str, volume: UUID | None = None) -> Root:
    """Raises CorruptFormat naming `what`."""
    if len(blob) < HEADER_BYTES:
        raise CorruptFormat("root cut short", what=what, offset=0)
    view = memoryview(blob)
    fields = HEADER.unpack_from(view)
    magic, version, _, seq, epoch, digest, volume_bytes, lineage, journal, end, time_us, size, body_n, raw_n, crc, _ = (
        fields
    )
    if magic != MAGIC:
        raise CorruptFormat("not a root", what=what, offset=0)
    if version != VERSION:
        raise CorruptFormat(f"root format {version} is not known to this program", what=what, offset=4)
    body = view[HEADER_BYTES : HEADER_BYTES + body_n]
    head = bytearray(view[:HEADER_BYTES])
    head[_CRC_OFFSET : _CRC_OFFSET + 4] = bytes(4)
    if len(body) != body_n or crc32c(body, crc32c(head)) != crc:
        raise CorruptFormat("root checksum does not hold", what=what, offset=0)
    if volume is not None and volume_bytes != volume.bytes:
        raise CorruptFormat("root of another volume", what=what, offset=0)
    try:
        if raw_n > RAW_BYTES_MAX:
            raise ValueError(f"a root of {raw_n} bytes makes no sense")
        raw = unpack(body, raw_n, zstandard.ZstdDecompressor())
        pages_n, ranges_n, containers_n, dead_n, runs_n, note_n = _COUNTS.unpack_from(raw)
        at = _COUNTS.size
        note = json.loads(raw[at : at + note_n]) if note_n else {}
        if not isinstance(note, dict):
            raise ValueError("the note is not a JSON object")
        at += note_n

        def table(layout: struct.Struct, count: int) -> list[tuple[Any, ...]]:
            nonlocal at
            rows = list(layout.iter_unpack(raw[at : at + layout.size * count]))
            if len(rows) != count:
                raise ValueError("table cut short")
            at += layout.size * count
            return rows

        pages = [PageRef(*row) for row in table(_PAGE, pages_n)]
        ranges = [(row[0], row[1], row[2]) for row in table(_RANGE, ranges_n)]
        containers = [ContainerUse(ContainerRef(*row[:3]), *row[3:]) for row in table(_CONTAINER, containers_n)]
        dead = []
        for _ in range(dead_n):
            death, key_n = _DEAD.unpack_from(raw, at)
            at += _DEAD.size
            dead.append(DeadObject(death, raw[at : at + key_n].decode()))
            at += key_n
        runs = [PageRef(*row) for row in table(_PAGE, runs_n)]
        if at != len(raw):
            raise ValueError("bytes behind the tables")
    except (ValueError, struct.error, RecursionError) as error:
        raise CorruptFormat(f"root does not parse: {error}", what=what, offset=HEADER_BYTES) from error
    return Root(
        seq=seq,
        epoch=epoch,
        digest=digest,
        volume=UUID(bytes=volume_bytes),
        lineage=UUID(bytes=lineage),
        journal=UUID(bytes=journal),
        end=end,
        time_us=time_us,
        size_bytes=size,
        pages=pages,
        runs=runs,
        ranges=ranges,
        containers=containers,
        dead=dead,
        note=note,
    )


def encode_page(entries: Iterable[tuple[int, bytes]]) -> bytes:
    """One map page, or a delta over one: (extent within the page, map value) pairs, compressed. In a delta an empty value
    says that the extent is not mapped any more."""
    out: list[bytes] = []
    for index, value in entries:
        out.append(_ENTRY.pack(index, len(value)))
        out.append(value)
    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(b"".join(out))


def decode_page(blob: Buffer, *, what: str, offset: int) -> Iterator[tuple[int, bytes]]:
    """Raises CorruptFormat. The caller has compared the page's CRC with its PageRef."""
    try:
        raw = unpack_within(blob, PAGE_BYTES_MAX, zstandard.ZstdDecompressor())
    except ValueError as error:
        raise CorruptFormat(f"map page does not decompress: {error}", what=what, offset=offset) from error
    at = 0
    while at < len(raw):
        if at + _ENTRY.size > len(raw):
            raise CorruptFormat("map page cut short", what=what, offset=offset)
        index, size = _ENTRY.unpack_from(raw, at)
        at += _ENTRY.size
        if at + size > len(raw) or index >= PAGE_EXTENTS:
            raise CorruptFormat("map page cut short", what=what, offset=offset)
        yield index, raw[at : at + size]
        at += size
