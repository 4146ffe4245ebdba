"""Extent objects: one extent at one generation, cut in frames. Format: docs/formats/extent.md.

One rule: an extent object is immutable and complete: every sector of the extent that is not in it reads as zero.
The table of stored lengths is in the object *and* in the map, so a cold read is one ranged GET.
"""

import hashlib
import struct
from collections.abc import Sequence
from itertools import accumulate

import zstandard
from crc32c import crc32c

from blockdev.errors import CorruptFormat
from blockdev.segments import frames
from blockdev.segments.cipher import Cipher
from blockdev.units import Geometry

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct("<IHH16sQQIII12x")
HEADER_BYTES = 64
assert HEADER.size == HEADER_BYTES
MAGIC = 0x58455742  # "BWEX"
VERSION = 1
_CRC_OFFSET = 48
ZERO_FRAME = 0
RAW_FRAME = 255
RAW_UNITS = 257


def unit_bytes(geometry: Geometry) -> int:
    """Stored lengths are counted in these: frame_bytes / 256."""
    return geometry.frame_bytes // 256


def data_offset(geometry: Geometry) -> int:
    """Where the first frame starts: behind the header and the length table, rounded up to a unit."""
    unit = unit_bytes(geometry)
    return -(-(HEADER_BYTES + geometry.frames_per_extent) // unit) * unit


def units_of(length_code: int) -> int:
    return RAW_UNITS if length_code == RAW_FRAME else length_code


def frame_offsets(geometry: Geometry, lengths: bytes) -> list[int]:
    """Byte offset of every frame in the object, and the object's size as the last item."""
    unit = unit_bytes(geometry)
    return list(accumulate((units_of(code) * unit for code in lengths), initial=data_offset(geometry)))


def encode(
    geometry: Geometry,
    volume: bytes,
    extent: int,
    gen: int,
    epoch: int,
    contents: Sequence[Buffer | None],
    compressor: zstandard.ZstdCompressor | None,
    cipher: Cipher | None = None,
) -> tuple[list[bytes], bytes, int]:
    """(parts of the object, length table, digest). `contents`: per frame its raw bytes, or None for zeros."""
    unit = unit_bytes(geometry)
    parts: list[bytes] = []
    lengths = bytearray()
    for index, content in enumerate(contents):
        if content is None:
            lengths.append(ZERO_FRAME)
            continue
        place = frames.place_of(extent, index * geometry.sectors_per_frame)
        blob = frames.encode(volume, place, geometry.sectors_per_frame, gen, content, compressor, cipher)
        units = -(-len(blob) // unit)
        if units >= RAW_FRAME:
            # Only a raw frame is that long: `frames.encode` keeps what saves a sixteenth, which is 241 units at most;
            # header and sealing take less than a unit (60 of 64 bytes in the smallest).
            assert units == RAW_UNITS, units
            lengths.append(RAW_FRAME)
        else:
            lengths.append(units)
        parts.append(blob)
        padding = units * unit - len(blob)
        if padding:
            parts.append(bytes(padding))
    table = bytes(lengths)

    def head(crc: int) -> bytes:
        return HEADER.pack(MAGIC, VERSION, len(table), volume, extent, gen, epoch, geometry.frame_bytes, crc)

    front = head(crc32c(table, crc32c(head(0)))) + table
    parts.insert(0, front + bytes(data_offset(geometry) - len(front)))
    return parts, table, digest(parts)


def digest(parts: Sequence[Buffer]) -> int:
    """64 bits of BLAKE2b over the object."""
    state = hashlib.blake2b(digest_size=8)
    for part in parts:
        state.update(part)
    return int.from_bytes(state.digest(), "little")


def parse_header(geometry: Geometry, blob: Buffer, *, what: str) -> tuple[bytes, int, int, int, bytes]:
    """(volume, extent, gen, epoch, length table); raises CorruptFormat."""
    if len(blob) < HEADER_BYTES:
        raise CorruptFormat("extent header cut short", what=what, offset=0)
    magic, version, count, volume, extent, gen, epoch, frame_bytes, crc = HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise CorruptFormat("not an extent object", what=what, offset=0)
    if version != VERSION:
        raise CorruptFormat(f"extent format {version} is not known to this program", what=what, offset=4)
    table = bytes(blob[HEADER_BYTES : HEADER_BYTES + count])
    if len(table) != count or count != geometry.frames_per_extent or frame_bytes != geometry.frame_bytes:
        raise CorruptFormat("frame table does not fit the volume", what=what, offset=HEADER_BYTES)
    head = bytearray(blob[:HEADER_BYTES])
    head[_CRC_OFFSET : _CRC_OFFSET + 4] = bytes(4)
    if crc32c(table, crc32c(head)) != crc:
        raise CorruptFormat("extent header checksum does not hold", what=what, offset=0)
    return volume, extent, gen, epoch, table
