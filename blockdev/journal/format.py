"""Bytes of the journal: superblock and records. Pure; laid out in docs/formats/journal.md.

One rule: nothing here is trusted before its checksum held. A record's checksum starts from the journal's own random
identity, so bytes of another journal, or of a guest's file that looks like one, never pass for a record; its position
tells it from a record of an earlier lap, and its epoch from one that an earlier crash had left behind.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple
from uuid import UUID

from blockdev.checksum import crc32c
from blockdev.errors import CorruptFormat
from blockdev.units import BLOCK_BYTES

VERSION = 1
SUPERBLOCK_BYTES = 4096
SUPERBLOCK_COPIES = 2
RING_START = SUPERBLOCK_BYTES * SUPERBLOCK_COPIES
"""Offset of the ring in the file."""
ALIGNMENT = 16
"""Every record begins at a multiple of this."""
HEADER_BYTES = 64
DATA_BYTES_MAX = 16 << 20
"""Most data one record carries."""
RING_BYTES_MIN = 64 << 10

SUPERBLOCK_MAGIC = b"BWJOURNL"
RECORD_MAGIC = b"BWjr"

_SUPERBLOCK = struct.Struct("<8sII16s16sQQQQQ")
_TAG = struct.Struct("<4sI")
_BODY = struct.Struct("<QQQQQIIBB6x")
_BODY_ONE = struct.Struct("<QQQQQIIBB6xI12x")
_CHECKSUM = struct.Struct("<I")
assert _TAG.size + _BODY.size == HEADER_BYTES
assert _TAG.size + _BODY_ONE.size == HEADER_BYTES + ALIGNMENT

_pack_tag = _TAG.pack
_pack_body = _BODY.pack
_pack_body_one = _BODY_ONE.pack
_ONE_BLOCK = struct.Struct(_TAG.format + _BODY_ONE.format[1:])
_unpack_one_block = _ONE_BLOCK.unpack_from


class Kind(IntEnum):
    WRITE = 1
    """Sectors and their data."""
    ZERO = 2
    """Sectors become zeros and stay provisioned; whole 4 KiB blocks, no data."""
    UNMAP = 3
    """Sectors are discarded and read as zeros; whole 4 KiB blocks, no data."""
    PAD = 4
    """Nothing; the next record begins at the ring's start."""


MORE = 1
"""Flag of a record: the command that it is part of goes on in the next one. A commit never ends behind it, and recovery
takes a command whole or not at all."""

_WRITE, _PAD = int(Kind.WRITE), int(Kind.PAD)  # a member costs more to look up than the rest of its comparison


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a journal is, and who wrote last. `start` is its first position; never 0, so 0 can mean "nowhere".

    Records of `epoch` begin at position `epoch_begin`: anything of an older epoch from there on is what a crash had left
    behind its last whole record; epoch 0: nobody has written yet. Everything before `synced` is durable (a lower bound,
    brought up to date now and then). These three alone change."""

    journal: UUID
    volume: UUID
    ring_bytes: int
    start: int
    sector_bytes: int
    epoch: int = 0
    epoch_begin: int = 0
    synced: int = 0

    def __post_init__(self) -> None:
        if self.sector_bytes not in (512, 4096):
            raise ValueError(f"sector size must be 512 or 4096 bytes, not {self.sector_bytes}")
        if self.ring_bytes < RING_BYTES_MIN or self.ring_bytes % BLOCK_BYTES:
            raise ValueError(
                f"journal ring must be a multiple of 4096 and at least {RING_BYTES_MIN} bytes, not {self.ring_bytes}"
            )
        if self.start <= 0 or self.start % BLOCK_BYTES:
            raise ValueError(f"first journal position must be a positive multiple of 4096, not {self.start}")

    @property
    def file_bytes(self) -> int:
        return RING_START + self.ring_bytes

    @property
    def seed(self) -> int:
        """Where the checksum of each record of this journal starts from."""
        return crc32c(self.journal.bytes)


class Record(NamedTuple):
    """One decoded record. A tuple, not a dataclass: it is made once per 4 KiB write on both sides of the journal.

    `end` is where the next record begins. `synced` is the position known durable when this was appended. `checksums`
    holds one CRC32C per 4 KiB block of the volume that the data touches. `data_position` is where the data begins."""

    position: int
    end: int
    kind: int
    flags: int
    epoch: int
    lba: int
    sectors: int
    synced: int
    data_position: int
    data_bytes: int
    checksums: tuple[int, ...]


def encode_superblock(superblock: Superblock) -> bytes:
    body = _SUPERBLOCK.pack(
        SUPERBLOCK_MAGIC,
        VERSION,
        superblock.sector_bytes,
        superblock.journal.bytes,
        superblock.volume.bytes,
        superblock.ring_bytes,
        superblock.start,
        superblock.epoch,
        superblock.epoch_begin,
        superblock.synced,
    ).ljust(SUPERBLOCK_BYTES - 4, b"\0")
    return body + _CHECKSUM.pack(crc32c(body))


def decode_superblock(data: bytes) -> Superblock:
    """Raises CorruptFormat for anything but a whole superblock of a known version."""
    if len(data) != SUPERBLOCK_BYTES:
        raise CorruptFormat(f"{len(data)} bytes instead of {SUPERBLOCK_BYTES}", what="journal superblock")
    magic, version, sector_bytes, journal, volume, ring_bytes, *positions = _SUPERBLOCK.unpack_from(data)
    start, epoch, begin, synced = positions
    if magic != SUPERBLOCK_MAGIC:
        raise CorruptFormat("not a journal (magic is missing)", what="journal superblock")
    if crc32c(data[:-4]) != _CHECKSUM.unpack_from(data, SUPERBLOCK_BYTES - 4)[0]:
        raise CorruptFormat("checksum does not hold", what="journal superblock")
    if version != VERSION:
        raise CorruptFormat(
            f"version {version} is not known here",
            what="journal superblock",
            hint="use the release that wrote it, or a later one",
        )
    try:
        return Superblock(
            UUID(bytes=journal), UUID(bytes=volume), ring_bytes, start, sector_bytes, epoch, begin, synced
        )
    except ValueError as error:
        raise CorruptFormat(str(error), what="journal superblock") from error


def head_bytes(checksum_count: int) -> int:
    """Bytes from a record's begin to its data: header and checksum table, rounded up to 16."""
    return (HEADER_BYTES + 4 * checksum_count + ALIGNMENT - 1) & -ALIGNMENT


def checksum_count(lba: int, sectors: int, sector_bytes: int) -> int:
    """How many 4 KiB blocks of the volume the sectors touch."""
    first = lba * sector_bytes // BLOCK_BYTES
    last = ((lba + sectors) * sector_bytes - 1) // BLOCK_BYTES
    return last - first + 1


def record_end(position: int, size: int, ring_bytes: int) -> int:
    """Where the record after one of `size` bytes begins: too little for a header before the ring's end is skipped."""
    end = position + size
    left = -end % ring_bytes
    return end + left if left < HEADER_BYTES else end


def encode_head(
    seed: int,
    kind: int,
    position: int,
    epoch: int,
    lba: int,
    sectors: int,
    synced: int,
    data_bytes: int = 0,
    checksums: Sequence[int] = (),
    flags: int = 0,
) -> bytes:
    """A record without its data: header and checksum table. The data follows directly."""
    count = len(checksums)
    if count == 1:
        body = _pack_body_one(position, epoch, lba, sectors, synced, data_bytes, 1, kind, flags, checksums[0])
    else:
        body = _pack_body(position, epoch, lba, sectors, synced, data_bytes, count, kind, flags)
        if count:
            body += struct.pack(f"<{count}I", *checksums).ljust(head_bytes(count) - HEADER_BYTES, b"\0")
    return _pack_tag(RECORD_MAGIC, crc32c(body, seed)) + body


ONE_BLOCK_HEAD_BYTES = head_bytes(1)
ONE_BLOCK_BYTES = ONE_BLOCK_HEAD_BYTES + BLOCK_BYTES


def decode_one_block(data: bytes, offset: int, position: int, sectors_per_block: int, seed: int) -> int:
    """Most records write one whole block: its number, if such a record is at data[offset:], sound and at `position`. -1 for
    any other, whole or not, which `decode_head` is for. At least ONE_BLOCK_HEAD_BYTES must be there."""
    magic, checksum, claimed, _, lba, sectors, _, data_bytes, count, kind, flags, _ = _unpack_one_block(data, offset)
    if (
        data_bytes != BLOCK_BYTES
        or count != 1
        or kind != _WRITE
        or sectors != sectors_per_block
        or lba % sectors_per_block
        or claimed != position
        or magic != RECORD_MAGIC
        or flags & ~MORE
        or crc32c(data[offset + 8 : offset + ONE_BLOCK_HEAD_BYTES], seed) != checksum
    ):
        return -1
    return int(lba // sectors_per_block)


class BadRecord(Exception):
    """No valid record here. `missing` > 0: the buffer ends that many bytes too early to tell."""

    def __init__(self, reason: str, missing: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.missing = missing


def decode_head(
    data: bytes | bytearray | memoryview, offset: int, position: int, superblock: Superblock, seed: int
) -> Record:
    """The record whose header is at data[offset:], which must claim `position`; its data is not looked at.

    Raises BadRecord. Never reads past `data`; memory is bounded by it."""
    available = len(data) - offset
    if available < HEADER_BYTES:
        raise BadRecord("header is cut short", HEADER_BYTES - available)
    magic, checksum = _TAG.unpack_from(data, offset)
    if magic != RECORD_MAGIC:
        raise BadRecord("no record magic")
    claimed, epoch, lba, sectors, synced, data_bytes, count, kind, flags = _BODY.unpack_from(data, offset + 8)
    if claimed != position:
        raise BadRecord(f"record claims position {claimed}")
    ring_bytes = superblock.ring_bytes
    head = head_bytes(count)
    if head + data_bytes > ring_bytes - position % ring_bytes:
        raise BadRecord("record reaches past the ring's end")
    if available < head:
        raise BadRecord("checksum table is cut short", head - available)
    if crc32c(data[offset + 8 : offset + head], seed) != checksum:
        raise BadRecord("header checksum does not hold")
    # From here on the writer meant what it wrote; what does not fit is a version we do not know, or a bug.
    if flags & ~MORE or (flags and kind == _PAD):
        raise BadRecord(f"unknown flags {flags:#x}")
    if kind == _WRITE:
        if not sectors or data_bytes != sectors * superblock.sector_bytes:
            raise BadRecord(f"{data_bytes} bytes of data for {sectors} sectors")
        if count != checksum_count(lba, sectors, superblock.sector_bytes):
            raise BadRecord(f"{count} data checksums for {sectors} sectors at {lba}")
    elif kind not in (Kind.ZERO, Kind.UNMAP, Kind.PAD):
        raise BadRecord(f"unknown kind {kind}")
    elif data_bytes or count:
        raise BadRecord(f"{Kind(kind).name} record with data")
    elif kind != Kind.PAD and not sectors:
        raise BadRecord(f"{Kind(kind).name} record over no sectors")
    elif (lba | sectors) * superblock.sector_bytes % BLOCK_BYTES:
        raise BadRecord(f"{Kind(kind).name} record over parts of blocks: {sectors} sectors at {lba}")
    if kind == _PAD:
        end = position + ring_bytes - position % ring_bytes
    else:
        end = record_end(position, head + data_bytes, ring_bytes)
    checksums: tuple[int, ...] = ()
    if count == 1:
        checksums = _CHECKSUM.unpack_from(data, offset + HEADER_BYTES)
    elif count:
        checksums = struct.unpack_from(f"<{count}I", data, offset + HEADER_BYTES)
    return Record(
        position,
        end,
        kind,
        flags,
        epoch,
        lba,
        sectors,
        synced,
        position + head,
        data_bytes,
        checksums,
    )


def data_fault(record: Record, data: memoryview, sector_bytes: int) -> int:
    """Offset in `data` of the first block whose checksum does not hold, or -1."""
    start = 0
    room = BLOCK_BYTES - record.lba * sector_bytes % BLOCK_BYTES
    for checksum in record.checksums:
        if crc32c(data[start : start + room]) != checksum:
            return start
        start += room
        room = BLOCK_BYTES
    return -1
