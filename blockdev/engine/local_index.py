"""Where the journal holds which block: the front's index of everything the bucket may not have yet. Pure.

One rule: newest wins. For a block, the pieces in `partial` are newer than its entry in `dirty`, which is newer than a
zero range over it, which is newer than anything in cache or bucket. All of it is rebuilt from the journal at start.

    dirty    block -> position of its 4096 data bytes << 32 | CRC32C: one int, not an object, per 4 KiB block
    partial  block -> pieces smaller than a block whose rest is not local, oldest first, at most one per sector
    zeros    ranges of whole blocks, so that discarding 16 TiB is one entry
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from operator import or_
from typing import NamedTuple

from blockdev.journal.format import Kind, Record
from blockdev.units import BLOCK_BYTES

CHECKSUM_MASK = 0xFFFF_FFFF


class Piece(NamedTuple):
    """Sectors [first, end) of one block, at `position` in the journal, with the CRC32C of exactly these bytes."""

    first: int
    end: int
    position: int
    checksum: int


class ZeroRanges:
    """Disjoint block ranges [start, end), each with the position of the record that zeroed it."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._positions: list[int] = []

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return zip(self._starts, self._ends, self._positions, strict=True)

    def add(self, start: int, end: int, position: int) -> None:
        """Zero [start, end); older ranges keep what lies outside."""
        self._splice(start, end, [(start, end, position)])

    def carve(self, start: int, end: int) -> None:
        """Forget all that is zeroed within [start, end)."""
        self._splice(start, end, [])

    def remove(self, start: int, end: int, position: int) -> None:
        """Forget what the record at `position` zeroed within [start, end)."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end, low)
        if all(self._positions[index] != position for index in range(low, high)):
            return
        kept = [
            (self._starts[index], self._ends[index], self._positions[index])
            for index in range(low, high)
            if self._positions[index] != position
        ]
        self._replace(low, high, kept)

    def covers(self, block: int) -> bool:
        index = bisect_right(self._starts, block) - 1
        return index >= 0 and self._ends[index] > block

    def run(self, block: int, end: int) -> tuple[bool, int]:
        """(are the blocks from `block` zeroed, up to where that is so, `end` at most)."""
        index = bisect_right(self._starts, block) - 1
        if index >= 0 and self._ends[index] > block:
            return True, min(self._ends[index], end)
        if index + 1 < len(self._starts):
            return False, min(self._starts[index + 1], end)
        return False, end

    def _splice(self, start: int, end: int, middle: list[tuple[int, int, int]]) -> None:
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end, low)
        pieces = list(middle)
        if low < high:
            if self._starts[low] < start:
                pieces.insert(0, (self._starts[low], start, self._positions[low]))
            if self._ends[high - 1] > end:
                pieces.append((end, self._ends[high - 1], self._positions[high - 1]))
        self._replace(low, high, pieces)

    def _replace(self, low: int, high: int, pieces: Sequence[tuple[int, int, int]]) -> None:
        self._starts[low:high] = [piece[0] for piece in pieces]
        self._ends[low:high] = [piece[1] for piece in pieces]
        self._positions[low:high] = [piece[2] for piece in pieces]


class LocalIndex:
    """Owned by the front's thread. The hot paths of the front read `dirty` and `partial` directly."""

    def __init__(self, sector_bytes: int) -> None:
        self._sector_bytes = sector_bytes
        self._sectors_per_block = BLOCK_BYTES // sector_bytes
        self.dirty: dict[int, int] = {}
        self.partial: dict[int, list[Piece]] = {}
        self.zeros = ZeroRanges()

    # --- newer content ------------------------------------------------------------------------------------------

    def write(self, lba: int, sectors: int, data_position: int, checksums: Sequence[int]) -> None:
        """A WRITE record's content is at `data_position`."""
        per_block = self._sectors_per_block
        block, skip = divmod(lba, per_block)
        index = 0
        if skip:
            count = min(per_block - skip, sectors)
            self._put_piece(block, Piece(skip, skip + count, data_position, checksums[0]))
            data_position += count * self._sector_bytes
            sectors -= count
            index, block = 1, block + 1
        whole, rest = divmod(sectors, per_block)
        if whole:
            end = data_position + whole * BLOCK_BYTES
            positions = range(data_position << 32, end << 32, BLOCK_BYTES << 32)
            entries = map(or_, positions, checksums[index : index + whole])
            self.dirty.update(zip(range(block, block + whole), entries, strict=True))
            if self.partial:
                for covered in _within(self.partial, block, block + whole):
                    del self.partial[covered]
            data_position = end
            block += whole
        if rest:
            self._put_piece(block, Piece(0, rest, data_position, checksums[-1]))

    def discard(self, start: int, end: int, position: int) -> None:
        """The blocks [start, end) read as zeros since the record at `position`."""
        for block in _within(self.dirty, start, end):
            del self.dirty[block]
        for block in _within(self.partial, start, end):
            del self.partial[block]
        self.zeros.add(start, end, position)

    def replay(self, record: Record) -> None:
        """Apply one record of the journal."""
        if record.kind == Kind.WRITE:
            self.write(record.lba, record.sectors, record.data_position, record.checksums)
        else:
            per_block = self._sectors_per_block
            self.discard(record.lba // per_block, (record.lba + record.sectors) // per_block, record.position)

    def _put_piece(self, block: int, piece: Piece) -> None:
        visible = [piece]
        seen = _sector_mask(piece)
        for older in reversed(self.partial.get(block, ())):
            mask = _sector_mask(older)
            if mask & ~seen:
                visible.append(older)
                seen |= mask
        visible.reverse()
        self.partial[block] = visible

    # --- reading ------------------------------------------------------------------------------------------------

    def covers_block(self, block: int) -> bool:
        """Whether the pieces of a block leave nothing of it to be found elsewhere."""
        seen = 0
        for piece in self.partial.get(block, ()):
            seen |= _sector_mask(piece)
        return seen == (1 << self._sectors_per_block) - 1

    # --- the journal gives a record up ---------------------------------------------------------------------------

    def drop_block(self, block: int, end: int) -> None:
        """The same as `drop_write` for the record of one whole block that ends at `end`, all before which is given up."""
        entry = self.dirty.get(block)
        if entry is not None and entry >> 32 < end:
            del self.dirty[block]

    def drop_write(self, record: Record) -> None:
        """Forget what still points into this WRITE record."""
        begin, end = record.data_position, record.data_position + record.data_bytes
        dirty = self.dirty
        block = record.lba // self._sectors_per_block
        for number in range(block, block + len(record.checksums)):
            entry = dirty.get(number)
            if entry is not None and begin <= entry >> 32 < end:
                del dirty[number]
        if self.partial:
            for number in {block, block + len(record.checksums) - 1}:
                pieces = self.partial.get(number)
                if pieces is None:
                    continue
                kept = [piece for piece in pieces if not begin <= piece.position < end]
                if kept:
                    self.partial[number] = kept
                else:
                    del self.partial[number]

    def drop_range(self, record: Record) -> None:
        """Forget what this ZERO or UNMAP record zeroed."""
        per_block = self._sectors_per_block
        self.zeros.remove(record.lba // per_block, (record.lba + record.sectors) // per_block, record.position)

    def forget_block(self, block: int, position: int) -> None:
        """Forget what the journal holds of a block before `position`, all of which the bucket has too: for a block whose
        local copy turned out damaged."""
        entry = self.dirty.get(block)
        if entry is not None and entry >> 32 < position:
            del self.dirty[block]
        kept = [piece for piece in self.partial.pop(block, ()) if piece.position >= position]
        if kept:
            self.partial[block] = kept
        self.zeros.carve(block, block + 1)

    def drop_before(self, position: int) -> None:
        """Forget everything that points before `position`: for a journal whose records cannot be walked any more."""
        limit = position << 32
        for block in [block for block, entry in self.dirty.items() if entry < limit]:
            del self.dirty[block]
        for block, pieces in list(self.partial.items()):
            kept = [piece for piece in pieces if piece.position >= position]
            if kept:
                self.partial[block] = kept
            else:
                del self.partial[block]
        for start, end, at in list(self.zeros):
            if at < position:
                self.zeros.remove(start, end, at)

    def local_runs(self, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
        """(first block, end, has data) for the blocks of [start, end) that the journal knows about, in order."""
        if 2 * len(self.dirty) < end - start:
            here = bytearray(end - start)
            for block in _within(self.dirty, start, end):
                here[block - start] = 1
        else:
            here = bytearray(map(self.dirty.__contains__, range(start, end)))
        for block in _within(self.partial, start, end):
            here[block - start] = 1
        cursor = 0
        while cursor < len(here):
            written = here[cursor]
            change = here.find(1 - written, cursor)
            stop = len(here) if change < 0 else change
            if written:
                yield start + cursor, start + stop, True
            else:
                at, limit = start + cursor, start + stop
                while at < limit:
                    zeroed, until = self.zeros.run(at, limit)
                    if zeroed:
                        yield at, until, False
                    at = until
            cursor = stop


def _sector_mask(piece: Piece) -> int:
    return (1 << piece.end) - (1 << piece.first)


def _within(blocks: dict[int, int] | dict[int, list[Piece]], start: int, end: int) -> list[int]:
    """The keys in [start, end), found by walking whichever of range and dictionary is smaller."""
    if end - start <= len(blocks):
        return [block for block in range(start, end) if block in blocks]
    return [block for block in blocks if start <= block < end]
