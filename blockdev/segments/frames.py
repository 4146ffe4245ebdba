"""Frames and patches as stored bytes: a 32-byte place-bound header and a payload, packed and then perhaps sealed.
Format: docs/formats/frame.md.

One rule: the checksum covers the volume's UUID and the whole header (place, generation, codec, lengths) before
the payload, so that a frame copied to another place, volume or generation fails as surely as one with a flipped bit.
"""

import struct
from dataclasses import dataclass

import zstandard
from crc32c import crc32c

from blockdev.errors import CorruptFormat
from blockdev.segments.cipher import OVERHEAD_BYTES, Cipher
from blockdev.segments.packed import unpack

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct("<IBBHQQII")
HEADER_BYTES = 32
assert HEADER.size == HEADER_BYTES
MAGIC = 0x46575742  # "BWWF", little-endian

CODEC_RAW = 0
CODEC_ZSTD = 1
CODEC_ENCRYPTED = 0x80
"""Set beside the codec of a sealed payload."""

START_BITS = 24
"""`place` is extent << 24 | first sector within the extent."""

_HEAD = struct.Struct("<IBBHQQI")
_FLAGS_OFFSET = 5
HEAD_BYTES = _HEAD.size
"""The header without its checksum: what a sealed payload is bound to."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    codec: int
    sectors: int
    extent: int
    start: int
    gen: int
    stored: int


def place_of(extent: int, start: int) -> int:
    return extent << START_BITS | start


def encode(
    volume: bytes,
    place: int,
    sectors: int,
    gen: int,
    raw: Buffer,
    compressor: zstandard.ZstdCompressor | None,
    cipher: Cipher | None = None,
) -> bytes:
    """Header and payload. `raw` is sectors * sector_bytes long. Stored raw where compressing saves under 1/16; with a
    `cipher`, sealed afterwards."""
    payload: Buffer = raw
    codec = CODEC_RAW
    if compressor is not None:
        squeezed = compressor.compress(raw)
        if len(squeezed) <= len(raw) - (len(raw) >> 4):
            payload, codec = squeezed, CODEC_ZSTD
    if cipher is None:
        head = _HEAD.pack(MAGIC, codec, 0, sectors, place, gen, len(payload))
    else:
        head = _HEAD.pack(MAGIC, codec | CODEC_ENCRYPTED, 0, sectors, place, gen, len(payload) + OVERHEAD_BYTES)
        payload = cipher.seal(volume, gen, head, payload)
    crc = crc32c(payload, crc32c(head, crc32c(volume)))
    return b"".join((head, crc.to_bytes(4, "little"), payload))


def parse_header(blob: Buffer, *, what: str, offset: int = 0) -> FrameHeader:
    """The header alone, unchecked but for its magic; raises CorruptFormat."""
    if len(blob) < HEADER_BYTES:
        raise CorruptFormat(f"frame header cut short ({len(blob)} of {HEADER_BYTES} bytes)", what=what, offset=offset)
    magic, codec, _flags, sectors, place, gen, stored, _crc = HEADER.unpack_from(blob)
    if magic != MAGIC:
        raise CorruptFormat("no frame header here", what=what, offset=offset)
    return FrameHeader(codec, sectors, place >> START_BITS, place & ((1 << START_BITS) - 1), gen, stored)


def verify(volume: bytes, blob: Buffer, *, extent: int, gen: int, what: str, offset: int) -> FrameHeader:
    """The header of the frame at the start of `blob`, which is of this volume, extent and generation, whole and undamaged.
    Its payload is not looked into: this needs no key. Raises CorruptFormat naming `what` and `offset`."""
    header = parse_header(blob, what=what, offset=offset)
    if header.extent != extent or header.gen != gen:
        raise CorruptFormat(
            f"frame of extent {header.extent} generation {header.gen} where extent {extent} generation {gen} should be",
            what=what,
            offset=offset,
        )
    view = memoryview(blob)
    end = HEADER_BYTES + header.stored
    if len(view) < end:
        raise CorruptFormat(f"frame cut short ({len(view)} of {end} bytes)", what=what, offset=offset)
    crc = crc32c(view[HEADER_BYTES:end], crc32c(view[:HEAD_BYTES], crc32c(volume)))
    if crc != int.from_bytes(view[HEAD_BYTES:HEADER_BYTES], "little"):
        raise CorruptFormat("frame checksum does not hold", what=what, offset=offset)
    flags = view[_FLAGS_OFFSET]
    if flags:
        raise CorruptFormat(f"unknown frame flags {flags:#04x}", what=what, offset=offset)
    if header.codec & ~CODEC_ENCRYPTED not in (CODEC_RAW, CODEC_ZSTD):
        raise CorruptFormat(f"unknown codec {header.codec}", what=what, offset=offset)
    return header


def decode(
    volume: bytes,
    blob: Buffer,
    *,
    sector_bytes: int,
    extent: int,
    gen: int,
    what: str,
    offset: int,
    decompressor: zstandard.ZstdDecompressor,
    cipher: Cipher | None = None,
) -> tuple[int, bytes]:
    """(first sector within the extent, raw bytes) of the frame at the start of `blob` (padding behind it is ignored).

    `cipher` is the volume's: with one, a frame that is not sealed is refused, without one a frame that is.
    Raises CorruptFormat naming `what` and `offset` when anything, the place included, is not as expected."""
    header = verify(volume, blob, extent=extent, gen=gen, what=what, offset=offset)
    view = memoryview(blob)
    payload: Buffer = view[HEADER_BYTES : HEADER_BYTES + header.stored]
    require_sealed(header, cipher is not None, what=what, offset=offset)
    if cipher is not None:
        try:
            payload = cipher.open(volume, gen, view[:HEAD_BYTES], payload)
        except ValueError as error:
            raise CorruptFormat(f"frame does not decrypt: {error}", what=what, offset=offset) from error
    size = header.sectors * sector_bytes
    if header.codec & ~CODEC_ENCRYPTED == CODEC_RAW:
        raw = bytes(payload)
    else:
        try:
            raw = unpack(payload, size, decompressor)
        except ValueError as error:
            raise CorruptFormat(f"frame does not decompress: {error}", what=what, offset=offset) from error
    if len(raw) != size:
        raise CorruptFormat(f"frame holds {len(raw)} bytes, its header says {size}", what=what, offset=offset)
    return header.start, raw


def require_sealed(header: FrameHeader, encrypted: bool, *, what: str, offset: int) -> None:
    """Raises CorruptFormat unless the frame is as its volume is. A plain frame in an encrypted volume is somebody else's:
    whoever can write to the bucket could pass off data as the volume's by it."""
    if bool(header.codec & CODEC_ENCRYPTED) == encrypted:
        return
    said = "plain frame in an encrypted volume" if encrypted else "encrypted frame in a volume that is not encrypted"
    raise CorruptFormat(said, what=what, offset=offset)
