"""Containers of patches: a segment object, or the inline part of a commit record. Format: docs/formats/segment.md.

One rule: patches lie one behind the other, each a frame of `frames`, so that a container can be walked without the map.
"""

import struct

from crc32c import crc32c

from blockdev.errors import CorruptFormat

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct("<IHH16sQIHHI20x")
HEADER_BYTES = 64
assert HEADER.size == HEADER_BYTES
MAGIC = 0x47535742  # "BWSG"
VERSION = 1
_CRC_OFFSET = 40


def header(volume: bytes, gen: int, epoch: int, n: int, items: int) -> bytes:
    """The first 64 bytes of a segment object."""
    head = HEADER.pack(MAGIC, VERSION, 0, volume, gen, epoch, n, min(items, 0xFFFF), 0)
    crc = crc32c(head)
    return HEADER.pack(MAGIC, VERSION, 0, volume, gen, epoch, n, min(items, 0xFFFF), crc)


def parse_header(blob: Buffer, *, what: str) -> tuple[bytes, int, int, int]:
    """(volume, gen, epoch, n) of a segment object; raises CorruptFormat."""
    if len(blob) < HEADER_BYTES:
        raise CorruptFormat("segment header cut short", what=what, offset=0)
    magic, version, _, volume, gen, epoch, n, _items, crc = HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise CorruptFormat("not a segment object", what=what, offset=0)
    if version != VERSION:
        raise CorruptFormat(f"segment format {version} is not known to this program", what=what, offset=4)
    head = bytearray(blob[:HEADER_BYTES])
    head[_CRC_OFFSET : _CRC_OFFSET + 4] = bytes(4)
    if crc32c(head) != crc:
        raise CorruptFormat("segment header checksum does not hold", what=what, offset=0)
    return volume, gen, epoch, n
