"""A pack: chunks of many files in one object, named by the SHA-256 of its bytes (docs/formats/home.md). Pure.

    magic "BWHPACK1"   frames: codec, 3 zero bytes, raw, stored (4 bytes each), the stored bytes
    index: for each frame offset, length of the frame, raw (4 bytes each), SHA-256 of the raw bytes
    trailer: chunks, length of the index, CRC-32 of index and of the trailer before it (4 bytes each), magic

Numbers are little-endian. A chunk is found by what a row of a tree says of it; the index is for whoever has lost the rows.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from typing import Final, NamedTuple

from envctl.agent import codec as codecs
from envctl.agent.errors import Corrupt

MAGIC: Final = b"BWHPACK1"
PACK_BYTES: Final = 8 * 1024 * 1024
"""A pack is closed once it has so many; with one chunk more it has at most 12 MiB and its index."""
CHUNK_BYTES_LIMIT: Final = 64 * 1024 * 1024
"""No reader unpacks more than this at once, whatever a frame says."""
CHUNKS_MAX: Final = 65_536
_FRAME: Final = struct.Struct("<B3xII")
_INDEX: Final = struct.Struct("<III32s")
_TRAILER: Final = struct.Struct("<III8s")


class Packed(NamedTuple):
    """A chunk in a pack. `stored` is the length of the whole frame, its head included."""

    offset: int
    stored: int
    raw: int
    sha256: bytes


class PackWriter:
    """Gathers chunks into one pack. Owned by one run; not to be used after `finish`."""

    def __init__(self, codec: int = codecs.ZLIB) -> None:
        self._codec = codec
        self._parts = bytearray(MAGIC)
        self._index: list[Packed] = []

    def __len__(self) -> int:
        """Bytes so far."""
        return len(self._parts)

    @property
    def is_full(self) -> bool:
        return len(self._parts) >= PACK_BYTES or len(self._index) >= CHUNKS_MAX

    def add(self, raw: bytes | memoryview, sha256: bytes) -> Packed:
        """Put in a chunk whose SHA-256 is `sha256`, and say where it lies."""
        codec, stored = codecs.pack(self._codec, raw)
        chunk = Packed(len(self._parts), _FRAME.size + len(stored), len(raw), sha256)
        self._parts += _FRAME.pack(codec, len(raw), len(stored))
        self._parts += stored
        self._index.append(chunk)
        return chunk

    def finish(self) -> bytes:
        index = b"".join(_INDEX.pack(*chunk) for chunk in self._index)
        head = struct.pack("<II", len(self._index), len(index))
        self._parts += index
        self._parts += _TRAILER.pack(len(self._index), len(index), zlib.crc32(head, zlib.crc32(index)), MAGIC)
        return bytes(self._parts)


def read_chunk(frame: bytes | memoryview, sha256: bytes) -> bytes:
    """The chunk in `frame` (`stored` bytes of a pack from `offset` on). Corrupt if it is not the one called `sha256`."""
    if len(frame) < _FRAME.size:
        raise Corrupt(f"a frame of {len(frame)} bytes is cut short")
    codec, raw_bytes, stored = _FRAME.unpack_from(frame)
    if stored != len(frame) - _FRAME.size or raw_bytes > CHUNK_BYTES_LIMIT:
        raise Corrupt(
            f"chunk {sha256.hex()}: its frame says {stored} stored and {raw_bytes} raw bytes, and has {len(frame)}"
        )
    try:
        raw = codecs.unpack(codec, memoryview(frame)[_FRAME.size :], raw_bytes)
    except Corrupt as error:
        raise Corrupt(f"chunk {sha256.hex()}: {error}") from error
    if hashlib.sha256(raw).digest() != sha256:
        raise Corrupt(f"chunk {sha256.hex()}: its bytes are not those that were saved")
    return raw


def index_of(pack: bytes | memoryview) -> list[Packed]:
    """Every chunk of a whole pack, or Corrupt."""
    view = memoryview(pack)
    if len(view) < len(MAGIC) + _TRAILER.size or bytes(view[: len(MAGIC)]) != MAGIC:
        raise Corrupt("this is not a pack")
    chunks, length, checksum, magic = _TRAILER.unpack_from(view, len(view) - _TRAILER.size)
    begin = len(view) - _TRAILER.size - length
    if magic != MAGIC or begin < len(MAGIC) or length != chunks * _INDEX.size:
        raise Corrupt("a pack is cut short")
    index = view[begin : begin + length]
    if zlib.crc32(struct.pack("<II", chunks, length), zlib.crc32(index)) != checksum:
        raise Corrupt("the index of a pack fails its checksum")
    found = [Packed(*fields) for fields in _INDEX.iter_unpack(index)]
    if any(chunk.offset + chunk.stored > begin for chunk in found):
        raise Corrupt("the index of a pack points outside of its frames")
    return found
