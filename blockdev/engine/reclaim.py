"""Giving journal space back once the bucket has what it holds.

One rule: before a record's place may be overwritten, nothing here points to it and nothing older shines through: its
index entries go, the cache's blocks that are older than it lose their bits, and fetches under way learn that
an answer from before it is out of date. Until then the journal is a cache of the newest writes, so space is given
back only when it is needed, in bounded steps.
"""

import logging
from collections.abc import Callable, Iterator

from blockdev.engine.cache import ReadCache
from blockdev.engine.local_index import LocalIndex
from blockdev.errors import CorruptJournal
from blockdev.journal.format import ONE_BLOCK_BYTES, Kind, Record
from blockdev.journal.journal import Journal
from blockdev.units import BLOCK_BYTES, Geometry

log = logging.getLogger(__name__)

RECORD_COST_BYTES = 2048
"""What one record costs at least, in bytes of budget: small records take time, not space."""
SWEEP_STEP_COST_BYTES = 32 * 1024
"""What one step over the cache costs, when a discard is wider than the cache has slots."""
_EVERY_FRAME = 1 << 62
_WRITE, _PAD = int(Kind.WRITE), int(Kind.PAD)


class Reclaimer:
    """Owned by the front's thread. `given_up(first frame, last + 1, end)` is told of every record."""

    def __init__(
        self,
        geometry: Geometry,
        journal: Journal,
        index: LocalIndex,
        cache: ReadCache,
        given_up: Callable[[int, int, int], None],
    ) -> None:
        self._journal = journal
        self._index = index
        self._cache = cache
        self._given_up = given_up
        self._sector_bytes = geometry.sector_bytes
        self._blocks_per_frame = geometry.blocks_per_frame
        self._sweep: tuple[Iterator[None], int] | None = None

    def step(self, limit: int, budget: int) -> None:
        """Give back records that end at or before `limit` (the bucket has them), for about `budget` bytes of work."""
        if self._journal.reclaimed >= limit:
            return
        try:
            budget = self._finish_sweep(budget)
            if self._sweep is not None:
                return
            for end, block, record in self._journal.walk(self._journal.reclaimed, limit):
                if budget <= 0 or end > limit:
                    return
                if record is None:
                    budget -= ONE_BLOCK_BYTES
                    self._drop_block(block, end)
                    continue
                budget -= max(end - record.position, RECORD_COST_BYTES)
                if record.kind == _WRITE:
                    self._drop_write(record)
                elif record.kind != _PAD:
                    self._drop_range(record)
                    budget = self._finish_sweep(budget)
                    if self._sweep is not None:
                        return
                    continue
                self._journal.reclaim(end)
        except CorruptJournal as error:
            # The chain of records is broken, so which entries point here is unknown; the bucket has all of it.
            log.warning("%s; the bucket has this part, giving back all of it", error)
            self._drop_all(limit)

    def _drop_block(self, block: int, end: int) -> None:
        """`_drop_write` for the record of one block: most are, and a full journal gives one back for each it takes."""
        self._index.drop_block(block, end)
        frame, index = divmod(block, self._blocks_per_frame)
        self._given_up(frame, frame + 1, end)
        self._cache.forget(frame, 1 << index, end)
        self._journal.reclaim(end)

    def _drop_write(self, record: Record) -> None:
        self._index.drop_write(record)
        per_frame = self._blocks_per_frame
        block = record.lba * self._sector_bytes // BLOCK_BYTES
        end = block + len(record.checksums)
        self._given_up(block // per_frame, -(-end // per_frame), record.end)
        while block < end:
            frame, first = divmod(block, per_frame)
            count = min(per_frame - first, end - block)
            self._cache.forget(frame, (1 << count) - 1 << first, record.end)
            block += count

    def _drop_range(self, record: Record) -> None:
        """The zero range leaves the index only when no older content is left that it hides: see `_finish_sweep`."""
        per_frame = self._blocks_per_frame
        block = record.lba * self._sector_bytes // BLOCK_BYTES
        end = block + record.sectors * self._sector_bytes // BLOCK_BYTES
        self._given_up(block // per_frame, -(-end // per_frame), record.end)

        def work() -> Iterator[None]:
            first_whole, last_whole = -(-block // per_frame), end // per_frame
            if first_whole > last_whole:
                bits = (1 << end - block) - 1 << block % per_frame
                self._cache.forget_zeroed(block // per_frame, bits, record.end)
            else:
                if block % per_frame:
                    bits = (1 << per_frame) - (1 << block % per_frame)
                    self._cache.forget_zeroed(first_whole - 1, bits, record.end)
                if end % per_frame:
                    self._cache.forget_zeroed(last_whole, (1 << end % per_frame) - 1, record.end)
                yield from self._cache.forget_range(first_whole, last_whole, record.end)
            self._index.drop_range(record)
            self._journal.reclaim(record.end)

        self._sweep = (work(), record.end)

    def _finish_sweep(self, budget: int) -> int:
        """Go on with a discard that is being given back; what is left of the budget."""
        if self._sweep is None:
            return budget
        for _ in self._sweep[0]:
            budget -= SWEEP_STEP_COST_BYTES
            if budget <= 0:
                return budget
        self._sweep = None
        return budget

    def _drop_all(self, limit: int) -> None:
        self._sweep = None
        self._index.drop_before(limit)
        for _ in self._cache.forget_range(0, _EVERY_FRAME, limit):
            pass
        self._cache.zero_frames.clear()
        self._given_up(0, _EVERY_FRAME, limit)
        self._journal.reclaim(limit)
