"""How much one command may ask for: the Block Limits page (VPD B0h) and the checks behind it, from one value.

One rule: a limit that is reported is enforced, and the other way round. Lengths are bytes here, because they are
chosen for the engine's sake; on the wire they are sectors.
"""

from dataclasses import dataclass

from blockdev.units import KIB, MIB

COPY_TARGET, COPY_TARGET_BYTES = 0xE4, 32
"""CSCD descriptor of EXTENDED COPY that is known: identification descriptor (SPC-4 6.4.5)."""
COPY_SEGMENT, COPY_SEGMENT_BYTES = 0x02, 28
"""Segment descriptor that is known: block device to block device (SPC-4 6.4.6)."""
COPY_DESCRIPTORS = (COPY_SEGMENT, COPY_TARGET)


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one logical unit. Every length is a multiple of 4096 bytes."""

    transfer_bytes: int = 16 * MIB
    """READ, WRITE, VERIFY, ORWRITE, WRITE AND VERIFY, PRE-FETCH: what one command may hold in memory."""
    optimal_transfer_bytes: int = 1 * MIB
    """One extent: a write of a whole extent goes to the bucket as it is."""
    granularity_bytes: int = 4 * KIB
    """Smaller or unaligned transfers cost a read of the block around them."""
    compare_and_write_bytes: int = 64 * KIB
    write_same_bytes: int = 16 * MIB
    """A pattern other than zero is written out this long at most; far less than any journal holds, since a command that
    cannot fit would be answered BUSY for ever."""
    atomic_write_bytes: int = 1 * MIB
    """WRITE ATOMIC: at any place. Databases write 16 KiB at once."""
    unmap_sectors: int = 0xFFFFFFFF
    """No limit: a discard is one range in the log however long it is."""
    unmap_descriptors: int = 256
    unmap_granularity_bytes: int = 64 * KIB
    """One frame. Below 1 MiB, as VMFS-6 reclaims space automatically only then."""

    copy_targets: int = 8
    copy_segments: int = 64
    copy_segment_bytes: int = 32 * MIB
    """EXTENDED COPY: what one command may list. Enough for whoever asks what the limits are; a command of 2 GiB ends before
    an initiator loses patience."""
    copies_at_once: int = 8
    """EXTENDED COPY: under way at one logical unit; each holds a piece in memory."""

    @property
    def copy_list_bytes(self) -> int:
        """MAXIMUM DESCRIPTOR LIST LENGTH."""
        return self.copy_targets * COPY_TARGET_BYTES + self.copy_segments * COPY_SEGMENT_BYTES

    def sectors(self, length: int, sector_bytes: int, ceiling: int = 0xFFFFFFFF) -> int:
        """A length in sectors, as much of it as a field with that highest value can say."""
        return min(length // sector_bytes, ceiling)
