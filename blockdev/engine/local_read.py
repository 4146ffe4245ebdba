"""What of the volume is here: journal pieces, journal blocks, zero ranges and cached frames put together.

One rule: every byte handed out was checked against its checksum in this call. Damage in the journal is a MediumError,
unless the bucket has the block as well: then it is forgotten here and read from there.
"""

import logging
from collections.abc import Callable

from blockdev.checksum import crc32c, first_bad_block
from blockdev.engine.cache import ReadCache
from blockdev.engine.local_index import CHECKSUM_MASK, LocalIndex
from blockdev.errors import LocalDiskFailed, MediumError
from blockdev.journal.journal import Journal
from blockdev.target import Buffer
from blockdev.units import BLOCK_BYTES, Geometry

log = logging.getLogger(__name__)

ZEROS = memoryview(bytes(128 * 1024))
"""As long as the largest frame."""
RUN_BYTES_MAX = 1024 * 1024
"""Most that is read at once: what takes longer to read than the processor's cache keeps it is fetched twice."""


class LocalReader:
    """Owned by the front's thread. Nothing may be staged in the journal while it reads."""

    def __init__(self, name: str, geometry: Geometry, journal: Journal, index: LocalIndex, cache: ReadCache) -> None:
        self._name = name
        self._journal = journal
        self._index = index
        self._cache = cache
        self._dirty = index.dirty
        self._partial = index.partial
        self.sector_bytes = geometry.sector_bytes
        self._sectors_per_block = geometry.sectors_per_block
        self._blocks_per_frame = geometry.blocks_per_frame
        self._frame_bytes = geometry.frame_bytes
        self.durable = 0
        """The bucket has everything before this journal position."""
        self.corrupt_blocks = 0
        """Blocks of the journal whose checksum did not hold."""
        self.given_up: Callable[[int, int, int], None] = _nobody
        """Told (first frame, last + 1, position) when answers of the worker from before `position` are no longer good."""

    def read_part(self, frame: int, first: int, end: int) -> list[Buffer] | None:
        """Sectors [first, end) of one frame, or None if some of it must be fetched. Raises MediumError."""
        per_block = self._sectors_per_block
        begin_block, end_block = first // per_block, -(-end // per_block)
        buffers = self.read_blocks(frame, begin_block, end_block)
        if buffers is None:
            return None
        cut = end_block * per_block - end
        if cut:
            buffers[-1] = memoryview(buffers[-1])[: len(buffers[-1]) - cut * self.sector_bytes]
        cut = first - begin_block * per_block
        if cut:
            buffers[0] = memoryview(buffers[0])[cut * self.sector_bytes :]
        return buffers

    def read_frames(self, first: int, last: int) -> bytes | None:
        """The longest run of whole frames from `first` on, `last` - 1 at most, that can be read at once: in the cache side by
        side, with nothing newer here. None if there is none; then `read_part` has to look."""
        last = min(last, first + RUN_BYTES_MAX // self._frame_bytes)
        count = self._cache.whole_frames(first, last)
        if not count:
            return None
        per_frame, zeros = self._blocks_per_frame, self._index.zeros
        block = first * per_frame
        end = block + count * per_frame
        end = next(filter(self._dirty.__contains__, range(block, end)), end)
        if self._partial:
            end = next(filter(self._partial.__contains__, range(block, end)), end)
        if zeros:
            zeroed, end = zeros.run(block, end)
            if zeroed:
                return None
        count = (end - block) // per_frame
        return self._cache.read_frames(first, count) if count else None

    def read_blocks(self, frame: int, block: int, end: int) -> list[Buffer] | None:
        dirty, partial, zeros = self._dirty, self._partial, self._index.zeros
        buffers: list[Buffer] = []
        while block < end:
            data: Buffer | None
            if partial and block in partial:
                data = self._read_patched(frame, block)
                if data is None:
                    return None
                buffers.append(data)
                block += 1
                continue
            stop = block + 1
            entry = dirty.get(block)
            if entry is not None:
                position = entry >> 32
                checksums = [entry & CHECKSUM_MASK]
                follows = position + BLOCK_BYTES
                while stop < end and not (partial and stop in partial):
                    entry = dirty.get(stop, 0)
                    if entry >> 32 != follows:
                        break
                    checksums.append(entry & CHECKSUM_MASK)
                    follows += BLOCK_BYTES
                    stop += 1
                data = self._read_journal(block, position, checksums)
                if data is None:
                    continue  # found damaged and forgotten: look again, the bucket has it
            else:
                while stop < end and stop not in dirty and not (partial and stop in partial):
                    stop += 1
                zeroed = False
                if zeros:
                    zeroed, stop = zeros.run(block, stop)
                data = ZEROS[: (stop - block) * BLOCK_BYTES] if zeroed else self._read_base(frame, block, stop)
                if data is None:
                    return None
            buffers.append(data)
            block = stop
        return buffers

    def _read_base(self, frame: int, block: int, stop: int) -> Buffer | None:
        """Blocks of a frame as the bucket has them, from the cache."""
        cache = self._cache
        if frame in cache.zero_frames:
            return ZEROS[: (stop - block) * BLOCK_BYTES]
        slot = cache.find(frame)
        if slot < 0:
            return None
        index, count = block % self._blocks_per_frame, stop - block
        bits = (1 << count) - 1
        if cache.valid[slot] >> index & bits != bits:
            return None
        return cache.read_run(slot, index, count)

    def _read_patched(self, frame: int, block: int) -> Buffer | None:
        """A block that the journal holds only pieces of, laid over its base."""
        pieces = self._partial[block]
        base: Buffer = ZEROS[:BLOCK_BYTES]
        if not self._index.covers_block(block):
            entry = self._dirty.get(block)
            found: Buffer | None = None
            if entry is not None:
                found = self._read_journal(block, entry >> 32, [entry & CHECKSUM_MASK])
            elif self._index.zeros.run(block, block + 1)[0]:
                found = base
            else:
                found = self._read_base(frame, block, block + 1)
            if found is None:
                return None
            base = found
        content = bytearray(base)
        for piece in pieces:
            length = (piece.end - piece.first) * self.sector_bytes
            data = self._read_bytes(block, piece.position, length)
            if crc32c(data) != piece.checksum:
                self._damaged(block, piece.position)
                return None
            start = piece.first * self.sector_bytes
            content[start : start + length] = data
        return content

    def _read_journal(self, block: int, position: int, checksums: list[int]) -> bytes | None:
        """Whole blocks from the journal. None: one was damaged, but the bucket has it, and it was forgotten here."""
        data = self._read_bytes(block, position, len(checksums) * BLOCK_BYTES)
        bad = first_bad_block(memoryview(data), checksums)
        if bad < 0:
            return data
        self._damaged(block + bad, position + bad * BLOCK_BYTES)
        return None

    def _read_bytes(self, block: int, position: int, length: int) -> bytes:
        try:
            return self._journal.read(position, length)
        except LocalDiskFailed as error:
            raise MediumError(str(error), lba=block * self._sectors_per_block) from error

    def _damaged(self, block: int, position: int) -> None:
        """A checksum of journal data did not hold. Raises MediumError unless the bucket has the block as well."""
        self.corrupt_blocks += 1
        lba = block * self._sectors_per_block
        offset = self._journal.file_offset(position)
        what = f"journal {self._journal.file.name} is damaged at offset {offset}: data of sector {lba}"
        if position >= self.durable:
            log.error("volume %s: %s; nothing else holds it", self._name, what)
            raise MediumError(
                f"{what}; checksum does not hold", lba=lba, hint="write the sector again, and check the journal's disk"
            )
        log.warning("volume %s: %s; reading it from the bucket", self._name, what)
        frame, index = divmod(block, self._blocks_per_frame)
        self._index.forget_block(block, self.durable)
        self._cache.forget(frame, 1 << index, self.durable)
        self.given_up(frame, frame + 1, self.durable)


def _nobody(first: int, last: int, position: int) -> None:
    """Nothing is under way yet."""
