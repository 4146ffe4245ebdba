"""What the front asks of committed content: frames, into the slots of its read cache, and what is allocated.

One rule: an answer is as of one state of the map, and says of which. What cannot be had now is asked for again for a while;
what is damaged is said to be so, and nothing else waits for it.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from blockdev.checksum import crc32c
from blockdev.engine import link
from blockdev.engine.fetch import Blobs, Fetcher, FrameContent
from blockdev.engine.link import FetchedFrame, FetchFrame
from blockdev.engine.ports import Execution
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap
from blockdev.units import BLOCK_BYTES, Geometry
from s3core.errors import Corrupt, NotFound, StoreError

log = logging.getLogger(__name__)

DELIVER_INLINE = 4
"""So few frames are written to their slots on the loop itself: 30 us each, less than handing them to a thread."""
FETCH_PATIENCE_S = 30.0
"""How long a read waits for an unreachable store before the initiator is told; it then tries again by itself."""


class SlotWriter(Protocol):
    """The cache file, for writing whole slots."""

    def write(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        """May raise OSError."""
        ...


class Delivery:
    """Safe to call for several questions at once. `stopped()` ends what is tried again."""

    def __init__(
        self,
        *,
        geometry: Geometry,
        extent_map: ExtentMap,
        fetcher: Fetcher,
        slots: SlotWriter,
        execution: Execution,
        send: Callable[[link.ToFront], None],
        stopped: Callable[[], bool],
    ) -> None:
        self._geometry = geometry
        self._map = extent_map
        self._fetcher = fetcher
        self._slots = slots
        self._execution = execution
        self._send = send
        self._stopped = stopped

    async def fetch(self, message: link.Fetch) -> None:
        """Fill the slots and say so. Raises CorruptFormat when the local map is damaged."""
        kept: dict[int, FetchedFrame] = {}
        covered = -1
        if any(item.as_of >= 0 for item in message.frames):
            try:
                kept, covered = await self._execution.run(self._kept, message)
            except (StoreError, CorruptFormat) as error:
                if isinstance(error, CorruptFormat) and error.what.startswith("extent map"):
                    raise
                # The map's page cannot be had now: then what the slots hold cannot be confirmed, and is fetched anew.
                log.debug("frames of the cache cannot be confirmed: %s", error)
        wanted = [item for item in message.frames if item.frame not in kept]
        answers = list(kept.values())
        if wanted:
            state, contents = await self._patiently([item.frame for item in wanted], message.speculative)
            covered = state.end if covered < 0 else min(covered, state.end)
            if len(wanted) <= DELIVER_INLINE:
                answers += self._deliver_all(wanted, contents, state.seq)
            else:
                answers += await self._execution.run(self._deliver_all, wanted, contents, state.seq)
        self._send(link.Fetched(message.id, covered, tuple(answers)))

    def _deliver_all(
        self, wanted: Sequence[FetchFrame], contents: dict[int, FrameContent], seq: int
    ) -> list[FetchedFrame]:
        return [self._deliver(item, contents[item.frame], seq) for item in wanted]

    def _kept(self, message: link.Fetch) -> tuple[dict[int, FetchedFrame], int]:
        """Frames whose slot, filled before a restart, still holds the committed content; and the position the map stood
        at when it was asked."""
        asked = [item for item in message.frames if item.as_of >= 0]
        per = self._geometry.frames_per_extent
        extents = sorted({item.frame // per for item in asked})
        state, values = self._map.lookup(extents)
        by_extent = dict(zip(extents, values, strict=True))
        kept = {}
        for item in asked:
            newest = self._fetcher.newest(item.frame, by_extent[item.frame // per])
            # After a rollback older generations are current again, and a slot from before it may hold younger content.
            if 0 < newest <= item.as_of and item.as_of >= self._map.history.rolled_at:
                kept[item.frame] = FetchedFrame(item.frame, item.slot, "kept", as_of=state.seq)
        return kept, state.end

    async def _patiently(self, frames: list[int], speculative: bool) -> tuple[Any, dict[int, FrameContent]]:
        """Ask again while the store is away, for a while: most blackouts are shorter than the initiator's patience."""
        deadline = self._execution.monotonic() + FETCH_PATIENCE_S
        pause = 0.1
        at_hand = Blobs()
        state, contents = await self._fetcher.frames(frames, at_hand)
        while not speculative and self._execution.monotonic() < deadline and not self._stopped():
            missing = [f for f in frames if _temporary(contents[f].error)]
            if not missing:
                break
            await self._execution.sleep(pause)
            pause = min(pause * 2, 2.0)
            # All of them again, since one answer is one map state; requested is what is missing.
            state, contents = await self._fetcher.frames(frames, at_hand)
        return state, contents

    def _deliver(self, item: FetchFrame, content: FrameContent, seq: int) -> FetchedFrame:
        error = content.error
        if error is not None:
            state = "corrupt" if isinstance(error, CorruptFormat | Corrupt | NotFound) else "unreachable"
            return FetchedFrame(item.frame, item.slot, state, error=str(error))
        if content.data is None:
            return FetchedFrame(item.frame, item.slot, "zero", as_of=seq)
        data = memoryview(content.data)
        crcs = tuple(crc32c(data[at : at + BLOCK_BYTES]) for at in range(0, len(data), BLOCK_BYTES))
        try:
            self._slots.write(item.slot, data)
        except OSError as failure:
            return FetchedFrame(item.frame, item.slot, "unreachable", error=f"read cache: {failure}")
        return FetchedFrame(item.frame, item.slot, "data", crcs, seq)

    async def allocated(self, id: int, lba: int, count: int) -> None:
        """Say which of the sectors may hold data."""
        try:
            runs = await self._execution.run(self._runs, lba, count)
        except (StoreError, CorruptFormat) as error:
            # "Mapped" is always a legal answer (SBC-4, GET LBA STATUS): it says that there may be data.
            log.warning(
                "what of [%d, %d) is mapped cannot be told, so all counts as mapped: %s", lba, lba + count, error
            )
            runs = ((lba, count, True),)
        self._send(link.Allocated(id, runs))

    def _runs(self, lba: int, count: int) -> tuple[tuple[int, int, bool], ...]:
        size = self._geometry.sectors_per_extent
        end = lba + count
        mapped = {extent for extent, _ in self._map.extents(lba // size, -(-end // size))}
        runs: list[tuple[int, int, bool]] = []
        at = lba
        for extent in sorted(mapped):
            first, last = max(extent * size, lba), min((extent + 1) * size, end)
            if first > at:
                runs.append((at, first - at, False))
            if runs and runs[-1][2] and runs[-1][0] + runs[-1][1] == first:
                runs[-1] = (runs[-1][0], last - runs[-1][0], True)
            else:
                runs.append((first, last - first, True))
            at = last
        if at < end:
            runs.append((at, end - at, False))
        return tuple(runs)


def _temporary(error: Exception | None) -> bool:
    return isinstance(error, StoreError) and error.temporary
