"""Bytes of `cache.table`: what each slot of the read cache holds. Pure; laid out in docs/formats/cache.md.

One rule: an entry counts only if its checksum holds, and the checksum starts from the cache's random identity and the
slot's number. A torn entry, an entry of another cache or an entry in the wrong place is simply an empty slot: all of
this may be lost, since the bucket or the journal has it.
"""

import struct
from dataclasses import dataclass
from uuid import UUID

from blockdev.checksum import crc32c
from blockdev.errors import CorruptFormat
from blockdev.units import BLOCK_BYTES

VERSION = 1
HEADER_BYTES = 4096
MAGIC = b"BWCACHET"
_HEADER = struct.Struct("<8sII16s16sQ")
_ENTRY = struct.Struct("<IIQQ8x")
_CHECKSUM = struct.Struct("<I")
_SLOT = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """What never changes about a cache. Anything that differs makes it another cache, which starts empty."""

    identity: UUID
    volume: UUID
    frame_bytes: int
    slots: int

    def __post_init__(self) -> None:
        if self.frame_bytes not in [(16 << 10) << shift for shift in range(4)]:
            raise ValueError(f"frame size must be a power of two from 16 to 128 KiB, not {self.frame_bytes} bytes")
        if self.slots < 1:
            raise ValueError(f"a cache needs at least one slot, not {self.slots}")

    @property
    def blocks_per_frame(self) -> int:
        return self.frame_bytes // BLOCK_BYTES

    @property
    def entry_bytes(self) -> int:
        return _ENTRY.size + 4 * self.blocks_per_frame

    @property
    def table_bytes(self) -> int:
        return HEADER_BYTES + self.slots * self.entry_bytes

    @property
    def content_bytes(self) -> int:
        return self.slots * self.frame_bytes

    def entry_offset(self, slot: int) -> int:
        return HEADER_BYTES + slot * self.entry_bytes


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """`frame` as it was after commit number `as_of`. `blocks`: bit i says that block i of the frame is in the slot with
    checksum `checksums[i]`."""

    frame: int
    as_of: int
    blocks: int
    checksums: tuple[int, ...]


def encode_header(layout: CacheLayout) -> bytes:
    body = _HEADER.pack(
        MAGIC, VERSION, layout.frame_bytes, layout.identity.bytes, layout.volume.bytes, layout.slots
    ).ljust(HEADER_BYTES - 4, b"\0")
    return body + _CHECKSUM.pack(crc32c(body))


def decode_header(data: bytes) -> CacheLayout:
    """Raises CorruptFormat for anything but a whole header of a known version."""
    if len(data) != HEADER_BYTES:
        raise CorruptFormat(f"{len(data)} bytes instead of {HEADER_BYTES}", what="cache table header")
    magic, version, frame_bytes, identity, volume, slots = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise CorruptFormat("not a cache table (magic is missing)", what="cache table header")
    if crc32c(data[:-4]) != _CHECKSUM.unpack_from(data, HEADER_BYTES - 4)[0]:
        raise CorruptFormat("checksum does not hold", what="cache table header")
    if version != VERSION:
        raise CorruptFormat(f"version {version} is not known here", what="cache table header")
    try:
        return CacheLayout(UUID(bytes=identity), UUID(bytes=volume), frame_bytes, slots)
    except ValueError as error:
        raise CorruptFormat(str(error), what="cache table header") from error


def slot_seed(layout: CacheLayout, slot: int) -> int:
    """Where the checksum of a slot's entry starts from."""
    return crc32c(_SLOT.pack(slot), crc32c(layout.identity.bytes))


def encode_entry(layout: CacheLayout, slot: int, entry: CacheEntry) -> bytes:
    count = layout.blocks_per_frame
    if len(entry.checksums) != count:
        raise ValueError(f"{len(entry.checksums)} checksums for a frame of {count} blocks")
    body = _ENTRY.pack(0, entry.blocks, entry.frame, entry.as_of)[4:] + struct.pack(f"<{count}I", *entry.checksums)
    return _CHECKSUM.pack(crc32c(body, slot_seed(layout, slot))) + body


def decode_entry(layout: CacheLayout, slot: int, data: bytes | memoryview) -> CacheEntry | None:
    """The slot's entry, or None if there is none that can be trusted."""
    if len(data) != layout.entry_bytes:
        return None
    checksum, blocks, frame, as_of = _ENTRY.unpack_from(data)
    count = layout.blocks_per_frame
    if crc32c(data[4:], slot_seed(layout, slot)) != checksum or blocks >> count:
        return None
    return CacheEntry(frame, as_of, blocks, struct.unpack_from(f"<{count}I", data, _ENTRY.size))
