"""The states of a volume that must be readable: the live map and every snapshot, walked together.

One rule: what two states share is looked at once. A page that a snapshot has where the live map has it, unchanged, is not
read again; of the others, each distinct place is read once and each distinct value is told once.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from blockdev.engine.sweep import places_of
from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents.extent_map import ExtentMap, merged_page
from blockdev.extents.format import EMPTY, ExtentValue
from blockdev.extents.history import Snapshot
from blockdev.inspection.findings import LIVE, Defect, as_defect
from blockdev.segments.root import PAGE_EXTENTS, PageRef, Root
from blockdev.units import Geometry
from s3core.errors import Corrupt, NotFound

PAGES_KEPT = 8
"""Unpacked pages of snapshots kept for questions about neighbours."""


@dataclass(frozen=True)
class Point:
    """A snapshot's root. `firm`: every object of it must be there; not so once its name was removed."""

    snapshot: Snapshot
    root: Root
    firm: bool
    places: dict[int, list[PageRef]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"snapshot {self.snapshot.name}"

    def discards(self, page: int) -> tuple[tuple[int, int, int], ...]:
        """Unfinished discards that meet the page."""
        first, end = page * PAGE_EXTENTS, (page + 1) * PAGE_EXTENTS
        return tuple(item for item in self.root.ranges if item[0] < end and item[0] + item[1] > first)


def point_of(snapshot: Snapshot, root: Root, *, firm: bool) -> Point:
    return Point(snapshot, root, firm, places_of(root))


class States:
    """The live map and the points beside it. `damaged(defect)` is told of pages that cannot be read."""

    def __init__(
        self, geometry: Geometry, extent_map: ExtentMap, points: list[Point], damaged: Callable[[Defect], None]
    ) -> None:
        self._geometry = geometry
        self._map = extent_map
        self.points = points
        self._damaged = damaged
        self._kept: OrderedDict[
            tuple[tuple[PageRef, ...], tuple[tuple[int, int, int], ...]], dict[int, ExtentValue]
        ] = OrderedDict()

    def pages(self) -> list[int]:
        """Every page in which one of the states maps something."""
        found = set(self._map.page_places()) | set(self._map.dirty())
        for point in self.points:
            found |= set(point.places)
        return sorted(found)

    def page(self, page: int) -> Iterator[tuple[int, ExtentValue, Point | None]]:
        """(extent, value, state: None for the live one) of each distinct value on the page."""
        seen: set[tuple[int, ExtentValue]] = set()
        try:
            for extent, value in self.live(page):
                seen.add((extent, value))
                yield extent, value, None
        except (CorruptFormat, NotFound, Corrupt) as error:
            self._tell(page, error, None)
        done: set[object] = set()
        for point in self.points:
            place = tuple(point.places.get(page, ()))
            what = place, point.discards(page)
            if not place or what in done or self._shared(page, point):
                continue
            done.add(what)
            try:
                values = self._values(page, point)
            except (CorruptFormat, NotFound, Corrupt) as error:
                if point.firm or not isinstance(error, NotFound):
                    self._tell(page, error, point)
                continue
            for extent, value in values.items():
                if (extent, value) not in seen:
                    seen.add((extent, value))
                    yield extent, value, point

    def live(self, page: int) -> Iterator[tuple[int, ExtentValue]]:
        return self._map.extents(page * PAGE_EXTENTS, (page + 1) * PAGE_EXTENTS)

    def hits(self, extent: int, test: Callable[[ExtentValue], bool]) -> tuple[str, ...]:
        """The states in which the extent's value is one for which `test` holds; those that cannot be read count."""
        page = extent // PAGE_EXTENTS
        found = []
        live: bool
        try:
            live = test(next((value for at, value in self._map.extents(extent, extent + 1) if at == extent), EMPTY))
        except (CorruptFormat, NotFound, Corrupt):
            live = True
        if live:
            found.append(LIVE)
        for point in self.points:
            if not point.firm or page not in point.places:
                continue
            try:
                hit = live if self._shared(page, point) else test(self._values(page, point).get(extent, EMPTY))
            except (CorruptFormat, NotFound, Corrupt):
                hit = True
            if hit:
                found.append(point.name)
        return tuple(found)

    def _shared(self, page: int, point: Point) -> bool:
        """Whether the live map has on that page just what the point has, as far as places tell."""
        return (
            not point.discards(page)
            and point.places.get(page) == self._map.page_place(page)
            and not self._map.changed(page)
        )

    def _values(self, page: int, point: Point) -> dict[int, ExtentValue]:
        key = tuple(point.places[page]), point.discards(page)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        first = page * PAGE_EXTENTS
        found: dict[int, ExtentValue] = {}
        for index, blob in sorted(merged_page(key[0], self._map.read_page).items()):
            value = _without(mapformat.decode(first + index, blob), first + index, key[1])
            if value != EMPTY:
                found[first + index] = value
        self._kept[key] = found
        if len(self._kept) > PAGES_KEPT:
            self._kept.popitem(last=False)
        return found

    def _tell(self, page: int, error: CorruptFormat | NotFound | Corrupt, point: Point | None) -> None:
        """The page cannot be read in the live map, or (`point`) in the points that have it at that place."""
        hits = [] if point is not None else [LIVE]
        place = self._map.page_place(page) if point is None else point.places[page]
        hits += [other.name for other in self.points if other.firm and other.places.get(page) == place]
        self._damaged(page_defect(self._geometry, page, error, tuple(hits)))


def page_defect(
    geometry: Geometry, page: int, error: CorruptFormat | NotFound | Corrupt, hits: tuple[str, ...]
) -> Defect:
    """A page of the map that cannot be read, and what of the disk nobody finds without it."""
    found = as_defect("page/", error)
    return Defect(
        found.key,
        f"{found.said}: where the content of extents {page * PAGE_EXTENTS} to {(page + 1) * PAGE_EXTENTS - 1} lies",
        found.offset,
        start=page * PAGE_EXTENTS * geometry.extent_bytes,
        length=PAGE_EXTENTS * geometry.extent_bytes,
        hits=hits,
    )


def _without(value: ExtentValue, extent: int, discards: tuple[tuple[int, int, int], ...]) -> ExtentValue:
    """Without what unfinished discards of the whole extent cover."""
    discarded = max((seq for first, count, seq in discards if first <= extent < first + count), default=0)
    base = value.base if value.base is not None and value.base.gen >= discarded else None
    return ExtentValue(base, tuple(patch for patch in value.patches if patch.gen >= discarded))
