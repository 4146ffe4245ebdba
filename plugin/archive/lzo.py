"""lzop files (header and blocks, as lzop 1.04 writes them) and LZO1X, decompressed in Python.

Blocks of 256 KiB do not depend on each other. There is no LZO library among our dependencies, and Python makes a few MB/s:
enough for the configuration in the first block and for one file, not for a whole archive.

One rule: a block never makes more bytes than its header says, and its header is never believed above 4 MiB.
"""

import struct
import zlib
from dataclasses import dataclass

from plugin.archive.errors import BadArchive

MAGIC = b"\x89LZO\x00\r\n\x1a\n"
BLOCK_BYTES_MAX = 4 << 20
"""lzop writes 256 KiB; a reader of its own would take 64 MiB, which no lzop was ever built to write."""
HEADER_BYTES_MAX = 9 + 25 + 255 + 4 + 8 + 65536
_ADLER_PLAIN, _ADLER_STORED, _EXTRA, _CRC_PLAIN, _CRC_STORED = 0x1, 0x2, 0x40, 0x100, 0x200
_FILTER = 0x800


@dataclass(frozen=True, slots=True)
class Header:
    """`size` is where the first block begins, `flags` lzop's."""

    size: int
    flags: int


@dataclass(frozen=True, slots=True)
class Block:
    """`head` bytes of header, then `stored` of data, `plain` once decompressed. `plain` 0: the end of the file."""

    head: int
    stored: int
    plain: int
    plain_adler: int | None
    plain_crc: int | None


def decode_header(data: bytes) -> Header | None:
    """None where more bytes are needed. BadArchive where it is no lzop file of a kind that is known."""
    if data[:9] != MAGIC[: len(data[:9])]:
        raise BadArchive("this is no lzop file", 0)
    try:
        version, _, needed = struct.unpack_from(">HHH", data, 9)
        at = 15
        (method,) = struct.unpack_from(">B", data, at)
        at += 2
        if needed > 0x1040 or version < 0x0940:
            raise BadArchive("an lzop file of an unknown version", 9)
        if method not in (1, 2, 3):
            raise BadArchive(f"an lzop file of method {method}, which is not known here", 15)
        (flags,) = struct.unpack_from(">I", data, at)
        at += 4
        if flags & _FILTER:
            raise BadArchive("an lzop file with a filter, which is not known here", at)
        at += 12
        (length,) = struct.unpack_from(">B", data, at)
        at += 1 + length + 4
        if flags & _EXTRA:
            (length,) = struct.unpack_from(">I", data, at)
            if length > 65536:
                raise BadArchive("an lzop header that is too long", at)
            at += 4 + length + 4
    except struct.error:
        return None
    return Header(at, flags) if len(data) >= at else None


def decode_block(data: bytes, flags: int, at: int) -> Block | None:
    """Of the bytes at a block's beginning. None where more are needed."""
    try:
        (plain,) = struct.unpack_from(">I", data)
        if not plain:
            return Block(4, 0, 0, None, None)
        (stored,) = struct.unpack_from(">I", data, 4)
        if plain > BLOCK_BYTES_MAX or not 0 < stored <= plain:
            raise BadArchive(f"an lzop block of {stored:,} bytes for {plain:,}", at)
        place = 8
        adler = crc = None
        if flags & _ADLER_PLAIN:
            (adler,) = struct.unpack_from(">I", data, place)
            place += 4
        if flags & _CRC_PLAIN:
            (crc,) = struct.unpack_from(">I", data, place)
            place += 4
        if stored < plain:
            place += 4 * (bool(flags & _ADLER_STORED) + bool(flags & _CRC_STORED))
    except struct.error:
        return None
    return Block(place, stored, plain, adler, crc) if len(data) >= place else None


def block_content(block: Block, data: bytes, at: int) -> bytes:
    """The plain bytes of a block's stored ones, checked where it has a checksum."""
    plain = data if block.stored == block.plain else decompress(data, block.plain, at)
    if block.plain_adler is not None and zlib.adler32(plain) != block.plain_adler:
        raise BadArchive("the checksum of an lzop block is wrong", at)
    if block.plain_crc is not None and zlib.crc32(plain) != block.plain_crc:
        raise BadArchive("the checksum of an lzop block is wrong", at)
    return plain


def decompress(data: bytes, size: int, at: int = 0) -> bytes:
    """LZO1X of exactly `size` plain bytes (Linux Documentation/staging/lzo.rst describes the stream)."""
    try:
        out = _decompress(data, size)
    except IndexError:
        out = None
    if out is None or len(out) != size:
        raise BadArchive("LZO data are damaged", at)
    return bytes(out)


def _decompress(data: bytes, size: int) -> bytearray | None:
    """None or an IndexError where the stream is not sound."""
    out = bytearray()
    at = 0

    def long_count(base: int) -> int:
        nonlocal at
        count = base
        while not data[at]:
            count += 255
            at += 1
        at += 1
        return count + data[at - 1]

    # `literals` of the instruction before decide what instructions 0 to 15 mean: none, 1 to 3, or 4 and more.
    literals = 0
    if data[0] > 17:
        count = data[0] - 17
        at = 1
        out += data[at : at + count]
        at += count
        literals = min(count, 4)
    while len(out) <= size:
        code = data[at]
        at += 1
        if code < 16 and not literals:
            count = code + 3 if code else long_count(18)
            if at + count > len(data):
                return None
            out += data[at : at + count]
            at += count
            literals = 4
            continue
        if code >= 64:
            count = (code >> 5) + 1
            distance = (data[at] << 3) + (code >> 2 & 7) + 1
            at += 1
            literals = code & 3
        elif code >= 32:
            count = (code & 31) + 2 if code & 31 else long_count(33)
            distance = (data[at + 1] << 6) + (data[at] >> 2) + 1
            literals = data[at] & 3
            at += 2
        elif code >= 16:
            count = (code & 7) + 2 if code & 7 else long_count(9)
            distance = ((code & 8) << 11) + (data[at + 1] << 6) + (data[at] >> 2)
            literals = data[at] & 3
            at += 2
            if not distance:
                return out if at == len(data) and count == 3 else None
            distance += 16384
        else:
            distance = (data[at] << 2) + (code >> 2) + (1 if literals < 4 else 2049)
            count = 2 if literals < 4 else 3
            literals = code & 3
            at += 1
        if distance > len(out) or len(out) + count > size:
            return None
        start = len(out) - distance
        if distance >= count:
            out += out[start : start + count]
        else:
            piece = bytes(out[start:])
            out += (piece * (count // distance + 1))[:count]
        if literals:
            if at + literals > len(data):
                return None
            out += data[at : at + literals]
            at += literals
    return None
