"""Commit records: the volume's log in the bucket, and the only thing that decides. Format: docs/formats/log.md.

One rule: record `seq` is created with If-None-Match under `log/<seq>`, after every object it names exists, and
carries the digest of record `seq - 1`: the log is a hash chain, and one digest names a whole volume state.
"""

import hashlib
import json
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple
from uuid import UUID

import zstandard
from crc32c import crc32c

from blockdev.errors import CorruptFormat
from blockdev.segments.packed import unpack
from blockdev.segments.paths import ContainerRef

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct("<IHHQQ16s32s16s16s16sQQQQIIQ32sI20x")
HEADER_BYTES = 224
assert HEADER.size == HEADER_BYTES, HEADER.size
MAGIC = 0x474C5742  # "BWLG"
VERSION = 1
_COUNTS = struct.Struct("<IIIIIII")
_CRC_OFFSET = HEADER_BYTES - 24
NO_DIGEST = bytes(32)
RAW_BYTES_MAX = 256 << 20
"""Most bytes an unpacked index may have: about ten million patches. A reader allocates no more."""


class RecordKind(IntEnum):
    DATA = 1
    FENCE = 2
    """A writer attached: from here on only its epoch may commit."""
    DETACH = 3
    """The writer left with an empty journal: the bucket holds everything that was acknowledged."""


class BaseEntry(NamedTuple):
    """Extent `extent` is now object `paths.extent(extent, gen, epoch)`; its frames' stored lengths are `lengths`.

    `through`: for a fold, the last commit whose content the object holds: patches younger than it stay.
    For newly written extents it is the record's own number."""

    extent: int
    gen: int
    epoch: int
    through: int
    digest: int
    lengths: bytes


class PatchEntry(NamedTuple):
    """Sectors [start, start + sectors) of the extent are in the container at byte `offset`, `stored` bytes with the
    header. `stored` == 0: they read as zeros and nothing is stored."""

    extent: int
    start: int
    sectors: int
    offset: int
    stored: int
    ref: ContainerRef


class MoveEntry(NamedTuple):
    """Patch sectors that the collector copied; applied only where the map still names the old place."""

    patch: PatchEntry
    old_ref: ContainerRef
    old_offset: int


class RangeEntry(NamedTuple):
    """Whole extents [first, first + extents) read as zeros from this record on."""

    first: int
    extents: int


@dataclass(frozen=True, slots=True)
class Record:
    seq: int
    epoch: int
    kind: RecordKind
    nonce: bytes
    parent: bytes
    volume: UUID
    lineage: UUID
    journal: UUID
    begin: int
    end: int
    time_us: int
    size_bytes: int
    folds: Sequence[BaseEntry] = ()
    moves: Sequence[MoveEntry] = ()
    ranges: Sequence[RangeEntry] = ()
    bases: Sequence[BaseEntry] = ()
    patches: Sequence[PatchEntry] = ()
    note: dict[str, Any] = field(default_factory=dict)


def _column(code: str, values: Sequence[int]) -> bytes:
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


class _Reader:
    def __init__(self, body: bytes) -> None:
        self.body = memoryview(body)
        self.at = 0

    def take(self, size: int) -> memoryview:
        if self.at + size > len(self.body):
            raise ValueError("index cut short")
        self.at += size
        return self.body[self.at - size : self.at]

    def column(self, code: str, count: int) -> "array[int]":
        column = array(code)
        column.frombytes(self.take(count * column.itemsize))
        if sys.byteorder == "big":
            column.byteswap()
        return column


_BASE_COLUMNS = "QQIQQ"
_PATCH_COLUMNS = "QIIIIH"
_REF_COLUMNS = "QIH"


def _refs(record: Record) -> list[ContainerRef]:
    seen = {patch.ref for patch in record.patches}
    for move in record.moves:
        seen.add(move.patch.ref)
        seen.add(move.old_ref)
    return sorted(seen)


def _encode_index(record: Record) -> bytes:
    refs = _refs(record)
    number = {ref: index for index, ref in enumerate(refs)}
    note = json.dumps(record.note, sort_keys=True, separators=(",", ":")).encode() if record.note else b""
    out = [
        _COUNTS.pack(
            len(refs),
            len(record.folds),
            len(record.moves),
            len(record.ranges),
            len(record.bases),
            len(record.patches),
            len(note),
        ),
        note,
    ]
    for place, code in enumerate(_REF_COLUMNS):
        out.append(_column(code, [ref[place] for ref in refs]))
    for bases in (record.folds, record.bases):
        for place, code in enumerate(_BASE_COLUMNS):
            out.append(_column(code, [entry[place] for entry in bases]))  # type: ignore[misc]  # only int columns
        widths = {len(entry.lengths) for entry in bases}
        assert len(widths) <= 1, "one volume has one number of frames per extent"
        out.append(struct.pack("<I", widths.pop() if widths else 0))
        out.append(b"".join(entry.lengths for entry in bases))
    for place, code in enumerate("QQ"):
        out.append(_column(code, [entry[place] for entry in record.ranges]))
    for patches in ([move.patch for move in record.moves], record.patches):
        columns = [[p.extent for p in patches], [p.start for p in patches], [p.sectors for p in patches]]
        columns += [[p.offset for p in patches], [p.stored for p in patches], [number[p.ref] for p in patches]]
        for code, values in zip(_PATCH_COLUMNS, columns, strict=True):
            out.append(_column(code, values))
    out.append(_column("H", [number[move.old_ref] for move in record.moves]))
    out.append(_column("I", [move.old_offset for move in record.moves]))
    return b"".join(out)


def _decode_bases(reader: _Reader, count: int) -> list[BaseEntry]:
    columns = [reader.column(code, count) for code in _BASE_COLUMNS]
    (width,) = struct.unpack("<I", reader.take(4))
    lengths = bytes(reader.take(width * count))
    return [
        BaseEntry(
            columns[0][i],
            columns[1][i],
            columns[2][i],
            columns[3][i],
            columns[4][i],
            lengths[i * width : (i + 1) * width],
        )
        for i in range(count)
    ]


def _decode_patches(reader: _Reader, count: int, refs: list[ContainerRef]) -> list[PatchEntry]:
    columns = [reader.column(code, count) for code in _PATCH_COLUMNS]
    return [
        PatchEntry(extent, start, sectors, offset, stored, refs[number])
        for extent, start, sectors, offset, stored, number in zip(*columns, strict=True)
    ]


def encode(record: Record, inline: Sequence[Buffer] = ()) -> tuple[list[Buffer], bytes, int]:
    """(parts of the object, the record's digest, where the inline part begins).

    `inline` is the container of patches inside the record. Offsets of this record's own inline patches count from
    the beginning of that part, since where it begins is known only when the index is packed; `apply` adds it."""
    raw = _encode_index(record)
    assert len(raw) <= RAW_BYTES_MAX, f"an index of {len(raw)} bytes; commit less at once"
    index = zstandard.ZstdCompressor(level=3).compress(raw)
    parts, digest = _assemble(record, index, len(raw), inline)
    return parts, digest, HEADER_BYTES + len(index)


def _assemble(record: Record, index: bytes, raw_bytes: int, inline: Sequence[Buffer]) -> tuple[list[Buffer], bytes]:
    inline_bytes = sum(len(part) for part in inline)
    inline_hash = hashlib.sha256()
    for part in inline:
        inline_hash.update(part)

    def pack(crc: int) -> bytes:
        return HEADER.pack(
            MAGIC,
            VERSION,
            record.kind,
            record.seq,
            record.epoch,
            record.nonce,
            record.parent,
            record.volume.bytes,
            record.lineage.bytes,
            record.journal.bytes,
            record.begin,
            record.end,
            record.time_us,
            record.size_bytes,
            len(index),
            raw_bytes,
            inline_bytes,
            inline_hash.digest() if inline_bytes else NO_DIGEST,
            crc,
        )

    head = pack(crc32c(index, crc32c(pack(0))))
    digest = hashlib.sha256(head + index).digest()
    return [head, index, *inline], digest


@dataclass(frozen=True, slots=True)
class Parsed:
    record: Record
    digest: bytes
    inline_offset: int
    inline_bytes: int


def decode(blob: Buffer, *, what: str, seq: int | None = None, volume: UUID | None = None) -> Parsed:
    """Parse header and index (`blob` may end behind the index). Raises CorruptFormat naming `what`."""
    if len(blob) < HEADER_BYTES:
        raise CorruptFormat(f"commit record cut short ({len(blob)} bytes)", what=what, offset=0)
    view = memoryview(blob)
    (
        magic,
        version,
        kind,
        number,
        epoch,
        nonce,
        parent,
        volume_bytes,
        lineage,
        journal,
        begin,
        end,
        time_us,
        size_bytes,
        index_bytes,
        raw_bytes,
        inline_bytes,
        _inline_hash,
        crc,
    ) = HEADER.unpack_from(view)
    if magic != MAGIC:
        raise CorruptFormat("not a commit record", what=what, offset=0)
    if version != VERSION:
        raise CorruptFormat(f"log format {version} is not known to this program", what=what, offset=4)
    index = view[HEADER_BYTES : HEADER_BYTES + index_bytes]
    head = bytearray(view[:HEADER_BYTES])
    head[_CRC_OFFSET : _CRC_OFFSET + 4] = bytes(4)
    if len(index) != index_bytes or crc32c(index, crc32c(head)) != crc:
        raise CorruptFormat("commit record checksum does not hold", what=what, offset=0)
    if seq is not None and number != seq:
        raise CorruptFormat(f"record {number} under the key of record {seq}", what=what, offset=8)
    if volume is not None and volume_bytes != volume.bytes:
        raise CorruptFormat("record of another volume", what=what, offset=0)
    try:
        if raw_bytes > RAW_BYTES_MAX:
            raise ValueError(f"an index of {raw_bytes} bytes makes no sense")
        body = unpack(index, raw_bytes, zstandard.ZstdDecompressor())
        record = _decode_body(
            body,
            seq=number,
            epoch=epoch,
            kind=RecordKind(kind),
            nonce=nonce,
            parent=parent,
            volume=UUID(bytes=volume_bytes),
            lineage=UUID(bytes=lineage),
            journal=UUID(bytes=journal),
            begin=begin,
            end=end,
            time_us=time_us,
            size_bytes=size_bytes,
        )
    except (ValueError, IndexError, struct.error, RecursionError) as error:
        raise CorruptFormat(f"commit record does not parse: {error}", what=what, offset=HEADER_BYTES) from error
    digest = hashlib.sha256(view[: HEADER_BYTES + index_bytes]).digest()
    return Parsed(record, digest, HEADER_BYTES + index_bytes, inline_bytes)


def _decode_body(body: bytes, **header: Any) -> Record:
    reader = _Reader(body)
    refs_n, folds_n, moves_n, ranges_n, bases_n, patches_n, note_n = _COUNTS.unpack(reader.take(_COUNTS.size))
    note = json.loads(bytes(reader.take(note_n))) if note_n else {}
    if not isinstance(note, dict):
        raise ValueError("the note is not a JSON object")
    ref_columns = [reader.column(code, refs_n) for code in _REF_COLUMNS]
    refs = [ContainerRef(*item) for item in zip(*ref_columns, strict=True)]
    folds = _decode_bases(reader, folds_n)
    bases = _decode_bases(reader, bases_n)
    range_columns = [reader.column("Q", ranges_n) for _ in range(2)]
    ranges = [RangeEntry(*item) for item in zip(*range_columns, strict=True)]
    moved = _decode_patches(reader, moves_n, refs)
    patches = _decode_patches(reader, patches_n, refs)
    old_refs = reader.column("H", moves_n)
    old_offsets = reader.column("I", moves_n)
    if reader.at != len(reader.body):
        raise ValueError("bytes behind the index")
    moves = [MoveEntry(p, refs[r], o) for p, r, o in zip(moved, old_refs, old_offsets, strict=True)]
    return Record(note=note, folds=folds, moves=moves, ranges=ranges, bases=bases, patches=patches, **header)
