"""What a commit stores, from raw bytes: patches and extent objects, compressed and, where the volume is, encrypted.

One rule: it may be called from several threads at once; what threads cannot share is kept once for each.
"""

import threading
from collections.abc import Sequence

import zstandard

from blockdev.engine.plan import Piece
from blockdev.segments import extent_object, frames
from blockdev.segments.cipher import Cipher
from blockdev.segments.volume_file import compression_level
from blockdev.units import Geometry
from s3core.store import Buffer


class Encoder:
    """Frames and objects from raw bytes; one compressor per thread, since a compressor is not to be shared."""

    def __init__(self, geometry: Geometry, volume: bytes, compression: str, cipher: Cipher | None = None) -> None:
        self.geometry = geometry
        self.volume = volume
        self._level = compression_level(compression)
        self._cipher = cipher
        self._threads = threading.local()

    @property
    def compressor(self) -> zstandard.ZstdCompressor | None:
        if self._level is None:
            return None
        found: zstandard.ZstdCompressor | None = getattr(self._threads, "compressor", None)
        if found is None:
            found = self._threads.compressor = zstandard.ZstdCompressor(level=self._level, write_checksum=False)
        return found

    def patch(self, piece: Piece, gen: int) -> bytes:
        raw: Buffer = piece.parts[0] if len(piece.parts) == 1 else b"".join(piece.parts)
        place = frames.place_of(piece.extent, piece.start)
        return frames.encode(self.volume, place, piece.end - piece.start, gen, raw, self.compressor, self._cipher)

    def patches(self, pieces: Sequence[Piece], gen: int) -> list[bytes]:
        return [self.patch(piece, gen) for piece in pieces]

    def extent(
        self, extent: int, gen: int, epoch: int, contents: Sequence[Buffer | None]
    ) -> tuple[list[bytes], bytes, int]:
        return extent_object.encode(
            self.geometry, self.volume, extent, gen, epoch, contents, self.compressor, self._cipher
        )
