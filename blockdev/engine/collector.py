"""Folding patches into extent objects and emptying half-dead containers, in slices between commits.

One rule: the collector only proposes moves; they take effect as entries of the next commit record, and an entry counts only
where the map still names the old place. Losing its work to a crash costs orphans, never data.

When and what: docs/design/0003-commit-and-fold.md. An extent is folded when at least a quarter of it is patches
at the time their container is collected, not by counting patches.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from blockdev.engine.destager import COLLECTOR_FIRST, Destager, Extras, SegmentBuilder
from blockdev.engine.fetch import Fetcher
from blockdev.engine.plan import Piece
from blockdev.engine.ports import Execution
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ContainerCount, ExtentMap
from blockdev.extents.format import PATCH_BYTES, ExtentValue, Patch
from blockdev.segments import paths
from blockdev.segments.paths import ContainerRef
from blockdev.segments.record import BaseEntry, MoveEntry, PatchEntry
from blockdev.units import Geometry
from s3core.errors import StoreError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CollectorSettings:
    live_fraction: float = 0.50
    """A container with less than this live is a victim."""
    nearly_empty: float = 0.125
    """Collected without waiting for a wave, once `nearly_empty_bytes` of dead data come together."""
    nearly_empty_bytes: int = 16 << 20
    wave_bytes: int = 128 << 20
    """Live bytes in victims before a collection starts (1/64 of the volume if that is less)."""
    fold_fraction: float = 0.25
    value_bytes_max: int = 1800
    """A map value longer than this is folded whatever the fraction: it would move to overflow pages."""
    slice_bytes: int = 8 << 20
    """Raw bytes handled between two commits."""
    share: float = 0.25
    """Of the time that goes into uploads."""
    share_pressed: float = 0.50
    """The same when containers take three quarters of the room that the live data would."""


class Collector:
    """Owned by the worker's commit task."""

    def __init__(
        self,
        *,
        geometry: Geometry,
        extent_map: ExtentMap,
        fetcher: Fetcher,
        destager: Destager,
        execution: Execution,
        settings: CollectorSettings,
    ) -> None:
        self._geometry = geometry
        self._map = extent_map
        self._fetcher = fetcher
        self._destager = destager
        self._execution = execution
        self._settings = settings
        self._victims: frozenset[ContainerRef] = frozenset()
        self._unread: list[ContainerRef] = []
        self._queue: list[int] = []
        self._overgrown: set[int] = set()
        self.share = settings.share
        self.folded = 0
        self.moved = 0

    @property
    def busy(self) -> bool:
        return bool(self._queue)

    def overgrown(self, extents: Sequence[int]) -> None:
        """These extents' map values have become too long; fold them at the next slice."""
        self._overgrown.update(extents)

    def choose(self) -> bool:
        """Begin a collection when one is worth it; True when there is work."""
        if self._queue or self._overgrown or self._unread:
            return True
        settings = self._settings
        victims: dict[ContainerRef, ContainerCount] = {}
        live = dead_nearly_empty = total = total_live = 0.0
        kept = [snapshot.seq for snapshot in self._map.history.snapshots if not snapshot.expires_us]
        youngest_kept = max(kept, default=-1)
        for ref, count in self._map.containers.items():
            if ref.gen < self._map.own_from:
                continue  # an ancestor's: nothing is gained by emptying it
            share = count.live / count.sectors if count.sectors else 0.0
            total += count.stored
            total_live += count.stored * share
            # One that a snapshot without an end needs stays whatever is moved out of it. Rolling snapshots are no reason
            # to wait: each new one would pin it again.
            if share < settings.live_fraction and ref.gen > youngest_kept:
                victims[ref] = count
                live += count.stored * share
                if share <= settings.nearly_empty:
                    dead_nearly_empty += count.stored * (1 - share)
        wave = min(settings.wave_bytes, max(self._geometry.size_bytes // 64, 1))
        live_set = self._map.extents_mapped * self._geometry.extent_bytes / 2
        self.share = settings.share_pressed if total > 0.75 * live_set else settings.share
        if victims and (live >= wave or total > live_set):
            chosen = set(victims)
        elif dead_nearly_empty >= settings.nearly_empty_bytes:
            chosen = {r for r, c in victims.items() if c.live <= settings.nearly_empty * c.sectors}
        else:
            return False
        self._victims = frozenset(chosen)
        self._unread = sorted(chosen)
        return True

    async def _open_victims(self) -> None:
        """Which extents the victims may hold patches of: known since they were written, or read from them."""
        extents: set[int] = set()
        unread, self._unread = self._unread, []
        for ref in unread:
            members = await self._execution.run(self._map.members, ref)
            if members is None:
                try:
                    members = await self._fetcher.container_extents(ref)
                except (StoreError, CorruptFormat) as error:
                    log.warning("container %s cannot be collected now: %s", paths.container(ref), error)
                    continue
            extents.update(members)
        self._queue = sorted(extents, reverse=True)
        log.debug("collecting %d containers, %d extents", len(unread), len(self._queue))

    async def slice(self, busy: Callable[[int], bool]) -> Extras | None:
        """Handle the next extents, but for `busy` ones; what they become rides with the next record. None: nothing to
        do, or the store could not be read just now."""
        if not self.choose():
            return None
        if self._unread:
            await self._open_victims()
        state = self._map.state
        assert state is not None
        seq = state.seq + 1
        builder = SegmentBuilder(self._destager, seq, COLLECTOR_FIRST)
        extras = Extras([], [], {})
        handled = 0
        urgent = sorted(self._overgrown)
        self._overgrown.clear()
        later: list[int] = []
        while handled < self._settings.slice_bytes and (urgent or self._queue):
            extent = urgent.pop() if urgent else self._queue.pop()
            if busy(extent):
                later.append(extent)
                continue
            if any(extent == fold.extent for fold in extras.folds):
                continue
            try:
                _, (value,) = await self._execution.run(self._map.lookup, [extent])
            except (StoreError, CorruptFormat) as error:
                log.warning("extent %d cannot be looked up now: %s", extent, error)
                handled += self._geometry.extent_bytes
                continue
            victims = [patch for patch in value.patches if patch.stored and patch.ref in self._victims]
            try:
                if self._should_fold(value, bool(victims)):
                    extras.folds.append(await self._fold(extent, seq))
                    handled += self._geometry.extent_bytes
                elif victims:
                    extras.moves += await self._move(extent, victims, seq, builder)
                    handled += sum(patch.sectors for patch in victims) * self._geometry.sector_bytes
            except (StoreError, CorruptFormat) as error:
                log.warning("extent %d cannot be folded now: %s", extent, error)
                handled += self._geometry.extent_bytes
        self._overgrown.update(urgent)
        self._queue[:0] = later
        extras.sizes = await builder.finish()
        self.folded += len(extras.folds)
        self.moved += len(extras.moves)
        return extras if extras else None

    def _should_fold(self, value: ExtentValue, has_victims: bool) -> bool:
        if len(value.patches) * PATCH_BYTES > self._settings.value_bytes_max:
            return True
        patched = sum(patch.sectors for patch in value.patches)
        return has_victims and patched >= self._settings.fold_fraction * self._geometry.sectors_per_extent

    async def _fold(self, extent: int, seq: int) -> BaseEntry:
        state, contents = await self._fetcher.extent(extent)
        epoch = self._destager.epoch
        parts, lengths, digest = await self._execution.run(self._destager.encoder.extent, extent, seq, epoch, contents)
        if any(lengths):
            await self._destager.upload(paths.extent(extent, seq, epoch), parts)
        return BaseEntry(extent, seq, epoch, state.seq, digest, lengths)

    async def _move(self, extent: int, victims: list[Patch], seq: int, builder: SegmentBuilder) -> list[MoveEntry]:
        geometry = self._geometry
        _, contents = await self._fetcher.frames(
            sorted({extent * geometry.frames_per_extent + p.start // geometry.sectors_per_frame for p in victims})
        )
        moves = []
        for patch in victims:
            index, within = divmod(patch.start, geometry.sectors_per_frame)
            content = contents[extent * geometry.frames_per_extent + index]
            if content.error is not None:
                raise content.error
            data = memoryview(content.data if content.data is not None else bytes(geometry.frame_bytes))
            raw = data[within * geometry.sector_bytes : (within + patch.sectors) * geometry.sector_bytes]
            piece = Piece(extent, patch.start, patch.start + patch.sectors, (raw,))
            blob = self._destager.encoder.patch(piece, seq)
            ref, offset = builder.add(blob)
            entry = PatchEntry(extent, patch.start, patch.sectors, offset, len(blob), ref)
            moves.append(MoveEntry(entry, patch.ref, patch.offset))
        return moves
