"""What a removed snapshot leaves: objects that it alone needed are found and noted as dead.

One rule: an object is given up only when the snapshot's root names it and neither the live map nor a snapshot beside it does.
Whatever cannot be read or is in doubt ends the sweep and leaves everything as it is; it begins anew later, and finding an
object twice does no harm. So a crash at any step costs the work, never an object.

Pages that two roots share are the same content and are passed over without reading them: a sweep costs as much as changed
between the snapshots.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from blockdev.engine.destager import Destager
from blockdev.engine.log import Persistence
from blockdev.engine.ports import Execution
from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents import history
from blockdev.extents.extent_map import ExtentMap, merged_page
from blockdev.extents.format import Base
from blockdev.extents.history import Snapshot
from blockdev.segments import paths, reference
from blockdev.segments.root import PAGE_EXTENTS, PageRef, Root
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore

log = logging.getLogger(__name__)

RootReader = Callable[[str], Awaitable[Root]]
PAGES_AT_ONCE = 64
"""Differing pages compared in one slice, between two commits."""


@dataclass(slots=True)
class _Point:
    """A root, and where its pages are."""

    root: Root
    places: dict[int, list[PageRef]]


@dataclass(slots=True)
class _Work:
    """A sweep under way."""

    snapshot: Snapshot
    point: _Point
    others: list[_Point]
    pages: list[int]
    freed: int = 0
    read: dict[tuple[PageRef, ...], dict[int, Base]] = field(default_factory=dict)
    """What was read for the page at hand: a try that fails in the middle does not begin anew, and states that share a page
    cost one read."""


def places_of(root: Root) -> dict[int, list[PageRef]]:
    """Page -> the page and its deltas."""
    places: dict[int, list[PageRef]] = {ref.page: [ref] for ref in root.pages}
    for run in root.runs:
        places.setdefault(run.page, []).append(run)
    return places


def packs_of(places: dict[int, list[PageRef]]) -> set[tuple[int, int, int]]:
    return {(ref.seq, ref.epoch, ref.n) for refs in places.values() for ref in refs}


class Sweeper:
    """Owned by the worker's commit task."""

    def __init__(
        self,
        *,
        extent_map: ExtentMap,
        destager: Destager,
        store: ObjectStore,
        persistence: Persistence,
        execution: Execution,
        read_root: RootReader,
        checkpoint: Callable[[], Awaitable[None]],
    ) -> None:
        self._map = extent_map
        self._destager = destager
        self._store = store
        self._persistence = persistence
        self._execution = execution
        self._read_root = read_root
        self._checkpoint = checkpoint
        self._work: _Work | None = None
        self._held: set[int] = set()
        """Removed snapshots that cannot be swept now: a clone needs them, or something cannot be read."""
        self.freed = 0

    @property
    def waiting(self) -> bool:
        """Whether a slice has something to do."""
        return any(snapshot.seq not in self._held for snapshot in self._map.history.removed)

    def look_again(self) -> None:
        """What was held may be free now."""
        self._held.clear()

    async def children(self, snapshot: Snapshot) -> list[str]:
        """Clones that need the snapshot: they say so below `ref/` before they exist."""

        def read() -> list[str]:
            found = []
            for info in self._store.list(paths.ref_prefix()):
                try:
                    hold = reference.decode(self._store.get(info.key).data, what=info.key)
                    if hold.seq == snapshot.seq:
                        found.append(hold.child)
                except NotFound:
                    continue
                except CorruptFormat:
                    found.append(info.key)  # nobody can tell what it needs: it may be this one
            return found

        return await self._persistence.call("list clones", read)

    async def slice(self) -> bool:
        """Some more work; False when nothing is left to do now. Raises Fenced."""
        if self._work is None:
            removed = [snapshot for snapshot in self._map.history.removed if snapshot.seq not in self._held]
            if not removed:
                return False
            try:
                self._work = await self._begin(removed[0])
            except (NotFound, Corrupt, CorruptFormat) as error:
                self._hold(removed[0], error)
                return True
            if self._work is None:
                self._held.add(removed[0].seq)
                return True
        work = self._work
        try:
            names = []
            for _ in range(min(PAGES_AT_ONCE, len(work.pages))):
                names += await self._persistence.call("compare map pages", self._compare, work, work.pages[-1])
                work.pages.pop()
                work.read.clear()
        except (NotFound, Corrupt, CorruptFormat) as error:
            self._hold(work.snapshot, error)
            return True
        await self._execution.run(self._map.bury, names)
        work.freed += len(names)
        if not work.pages:
            await self._finish(work)
        return True

    def _hold(self, snapshot: Snapshot, error: Exception) -> None:
        log.warning("what snapshot %s held cannot be given back now: %s", snapshot.name, error)
        self._held.add(snapshot.seq)
        self._work = None
        self._map.sweeping = 0

    async def _begin(self, snapshot: Snapshot) -> _Work | None:
        # The name is gone from the log: a clone that is not listed now finds that out before it exists.
        if await self.children(snapshot):
            return None
        self._map.sweeping = snapshot.seq
        point = await self._point(snapshot)
        others = [await self._point(other) for other in self._map.history.others(snapshot)]
        pages = [
            page for page, place in sorted(point.places.items()) if all(o.places.get(page) != place for o in others)
        ]
        return _Work(snapshot, point, others, pages)

    async def _point(self, snapshot: Snapshot) -> _Point:
        root = await self._read_root(paths.root(snapshot.seq, snapshot.epoch))
        return _Point(root, places_of(root))

    def _compare(self, work: _Work, page: int) -> list[str]:
        """Extent objects on the page that the snapshot's root alone names."""
        place = work.point.places[page]
        if self._map.page_place(page) == place and not self._map.changed(page):
            return []
        mine = dict(self._bases(work, place))
        for other in work.others:
            for extent, base in self._bases(work, other.places.get(page, [])).items():
                if mine.get(extent) == base:
                    del mine[extent]
        if not mine:
            return []
        first = page * PAGE_EXTENTS
        live = self._live(first, first + PAGE_EXTENTS)
        return [
            paths.extent(first + index, base.gen, base.epoch)
            for index, base in sorted(mine.items())
            if live.get(first + index) != (base.gen, base.epoch)
        ]

    def _bases(self, work: _Work, place: Sequence[PageRef]) -> dict[int, Base]:
        found = work.read.get(tuple(place))
        if found is None:
            found = {}
            for index, blob in merged_page(place, self._map.read_page).items():
                base = mapformat.decode(place[0].page * PAGE_EXTENTS + index, blob).base
                if base is not None:
                    found[index] = base
            work.read[tuple(place)] = found
        return found

    def _live(self, first: int, end: int) -> dict[int, tuple[int, int]]:
        self._map.fault(self._map.unloaded(range(first, end)))
        return self._map.raw_bases(first, end)

    async def _finish(self, work: _Work) -> None:
        """Containers, packs and the root itself; then the record that ends it."""
        state = self._map.state
        assert state is not None
        containers = {use.ref for use in work.point.root.containers}
        packs = packs_of(work.point.places)
        for other in work.others:
            containers -= {use.ref for use in other.root.containers}
            packs -= packs_of(other.places)
        containers -= set(self._map.containers)
        packs -= packs_of(await self._execution.run(self._map.page_places))
        names = [paths.container(ref) for ref in sorted(containers)]
        names += [paths.page_pack(*pack) for pack in sorted(packs)]
        if (work.snapshot.seq, work.snapshot.epoch) != (state.root_seq, state.root_epoch):
            names.append(paths.root(work.snapshot.seq, work.snapshot.epoch))
        await self._execution.run(self._map.bury, names)
        # What was found is in this host's map alone. A root has it before the log says that nobody needs to look again.
        await self._destager.mark({"purpose": "sweep"})
        await self._checkpoint()
        self._work = None
        self._map.sweeping = 0
        self.freed += work.freed + len(names)
        await self._destager.mark(history.swept(work.snapshot.seq))
        log.info("snapshot %s: %d objects are not needed any more", work.snapshot.name, work.freed + len(names))
