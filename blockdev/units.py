"""The units of a volume, as distinct types, and its geometry.

Sector: what the initiator addresses. Block: 4 KiB, the unit of the local index. Frame: what is compressed
and checksummed on its own. Extent: the unit of the map. All are powers of two; see docs/architecture.md.
"""

from dataclasses import dataclass
from typing import NewType

Lba = NewType("Lba", int)
"""A sector number on the volume."""
SectorCount = NewType("SectorCount", int)
ByteCount = NewType("ByteCount", int)
ExtentNumber = NewType("ExtentNumber", int)
FrameNumber = NewType("FrameNumber", int)
"""A frame's number counted over the whole volume: byte offset // frame_bytes."""
JournalPosition = NewType("JournalPosition", int)
"""Byte position in the endless journal; the place in the file is position modulo the ring's size."""
Sequence = NewType("Sequence", int)
"""Number of a commit record; the first is 1."""
Epoch = NewType("Epoch", int)
"""Number of an attachment: who may write. The first is 1."""

BLOCK_BYTES = 4096
KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes fixed when a volume is created (all in bytes); `size_bytes` alone may grow later."""

    size_bytes: int
    sector_bytes: int = 512
    frame_bytes: int = 64 * KIB
    extent_bytes: int = 1 * MIB

    def __post_init__(self) -> None:
        if self.sector_bytes not in (512, 4096):
            raise ValueError(f"sector size must be 512 or 4096 bytes, not {self.sector_bytes}")
        if self.extent_bytes not in [(128 * KIB) << shift for shift in range(6)]:
            raise ValueError(f"extent size must be a power of two from 128 KiB to 4 MiB, not {self.extent_bytes} bytes")
        if self.frame_bytes not in [(16 * KIB) << shift for shift in range(4)] or self.frame_bytes > self.extent_bytes:
            raise ValueError(f"frame size must be a power of two from 16 to 128 KiB, not {self.frame_bytes} bytes")
        if self.size_bytes <= 0 or self.size_bytes % BLOCK_BYTES:
            raise ValueError(f"volume size must be a positive multiple of 4096 bytes, not {self.size_bytes}")
        if self.size_bytes > 1024 * TIB:
            raise ValueError(f"volume size must be at most 1 PiB, not {self.size_bytes} bytes")

    @property
    def sector_count(self) -> int:
        return self.size_bytes // self.sector_bytes

    @property
    def sectors_per_block(self) -> int:
        return BLOCK_BYTES // self.sector_bytes

    @property
    def sectors_per_frame(self) -> int:
        return self.frame_bytes // self.sector_bytes

    @property
    def sectors_per_extent(self) -> int:
        return self.extent_bytes // self.sector_bytes

    @property
    def frames_per_extent(self) -> int:
        return self.extent_bytes // self.frame_bytes

    @property
    def blocks_per_frame(self) -> int:
        return self.frame_bytes // BLOCK_BYTES

    @property
    def extent_count(self) -> int:
        """Extents needed to cover the volume; the last one may reach beyond its end."""
        return -(-self.size_bytes // self.extent_bytes)
