"""The log and its roots: every record against the one before it, every root against the map the log makes.

One rule: the log decides, and must be whole from the newest root but one on. Older records may have been trimmed: those that
hold content are missed by the map, which names them; the rest is missed by nobody.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TypeVar
from uuid import UUID

from blockdev.engine.log import sizes_from_entries
from blockdev.engine.sweep import places_of
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap, ReadPage
from blockdev.extents.format import ExtentValue
from blockdev.extents.history import history_from
from blockdev.inspection.findings import LIVE, Defect, Inspection, Stage, as_defect
from blockdev.inspection.points import page_defect
from blockdev.offline import settle, temporary_map
from blockdev.segments import paths, record, root
from blockdev.segments.record import NO_DIGEST, Parsed, RecordKind
from blockdev.segments.root import PAGE_EXTENTS, Root
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore

A = TypeVar("A")
B = TypeVar("B")
Ahead = Callable[[Callable[[int], "Parsed | Defect"], Iterable[int]], "Iterator[Parsed | Defect]"]

WHOLE_ROOTS = 3
"""Newest roots whose pages must all be there; objects of older ones may be on their way out (see `engine.checkpoint`)."""
DIFFERENCES_MAX = 5
"""Differences between a root and the log that are told one by one."""
_INLINE_HASH = 17
"""Place of inline_hash among the fields of a record's header."""


class Chain:
    """Reads log and roots of one volume and builds its map. `map` stands at the log's end if `follow` returned True."""

    def __init__(
        self,
        store: ObjectStore,
        volume: VolumeFile,
        extent_map: ExtentMap,
        read_page: ReadPage,
        ahead: Ahead,
        found: Inspection,
        stage: Stage,
    ) -> None:
        self._store = store
        self._volume = volume
        self._origin = volume.origin[-1] if volume.origin else None
        self._geometry = volume.geometry
        self._map = extent_map
        self._read_page = read_page
        self._ahead = ahead
        self._found = found
        self._stage = stage
        self._roots: dict[int, list[str]] = {}
        self._whole: list[str] = []
        self.root_keys: list[str] = []
        self.newest: Root | None = None
        """The newest root that can be read."""
        self.before: Root | None = None
        """The one before that."""

    def _defect(self, key: str, said: str, offset: int | None = None, extent: int | None = None) -> None:
        self._found.defects.append(Defect(key, said, offset, extent))

    def follow(self) -> bool:
        """Read all of it. False: the map cannot be built up to the log's end."""
        # Roots before records before everything else: each is written after what it rests on.
        self.root_keys = [info.key for info in self._store.list(paths.root_prefix())]
        log_keys = [info.key for info in self._store.list(paths.log_prefix())]
        self._found.roots = len(self.root_keys)
        for key in self.root_keys:
            number = paths.number_of(key)
            if number is None:
                self._defect(key, "is no name of a root")
            else:
                self._roots.setdefault(number, []).append(key)
        numbers = []
        for key in log_keys:
            number = paths.number_of(key)
            if not number or key != paths.log(number):
                self._defect(key, "is no name of a commit record")
            else:
                numbers.append(number)
        own_from = self._origin.seq + 1 if self._origin is not None else 1
        self._found.records = len(numbers)
        self._found.commit = numbers[-1] if numbers else own_from - 1
        for number in sorted(self._roots):
            if number > self._found.commit:
                for key in self._roots[number]:
                    self._defect(key, f"is of commit {number}, whose record is not there")
        known = sorted(number for number in self._roots if number <= self._found.commit)
        self._whole = sorted(key for number in known for key in self._roots[number])[-WHOLE_ROOTS:]
        needed_from = known[-2] if len(known) > 1 else known[0] if known else own_from
        building = self._begin(own_from, numbers)
        before: Parsed | None = None
        expected = own_from
        ends: dict[UUID, int] = {}
        self._found.log_from = numbers[0] if numbers else 0
        records = zip(numbers, self._ahead(self._read_record, numbers), strict=True)
        waiting = next(records, None)
        with self._stage("log", len(numbers)) as done:
            for number in sorted({*numbers, *known}):
                parsed: Parsed | None = None
                if waiting is not None and waiting[0] == number:
                    done(1)
                    if number != expected:
                        self._gap(expected, number, needed_from)
                        before, building = None, False
                    expected = number + 1
                    if isinstance(waiting[1], Defect):
                        self._found.defects.append(waiting[1])
                        before, building = None, False
                    else:
                        parsed = waiting[1]
                        self._check_chain(parsed, before, ends, own_from)
                        before = parsed
                        building = building and self._apply(parsed, needed=number >= needed_from)
                    waiting = next(records, None)
                for key in self._roots.get(number, ()):
                    building = self._check_root(key, number, parsed, building) or building
        if not building:
            self._defect(
                paths.log_prefix(), "the map cannot be built to the end: no usable root lies behind the damage"
            )
        return building

    def _begin(self, own_from: int, numbers: list[int]) -> bool:
        """Where the map starts: the root a clone was made from, else nothing. False: where the log begins, nothing is known
        of what was before."""
        if numbers and numbers[0] != own_from:
            return False
        if self._origin is None:
            return True
        key = self._origin.root
        try:
            made = root.decode(self._store.get(key).data, what=key, volume=self._origin.identity)
            if made.digest != self._origin.digest:
                raise CorruptFormat("is not the root this volume was cloned from", what=key)
            self._map.load(made, self._read_page, clone=(str(self._volume.lineage), own_from))
        except (CorruptFormat, NotFound, Corrupt) as error:
            self._found.defects.append(as_defect(key, error))
            return False
        return True

    def _gap(self, expected: int, number: int, needed_from: int) -> None:
        """Records from `expected` on to before `number` are not there."""
        first = max(expected, needed_from)
        self._found.log_from = number
        if first >= number:
            return
        last = f" to {number - 1}" if number - 1 > first else ""
        self._defect(paths.log(first), f"is missing: there is no commit {first}{last}")

    def _read_record(self, number: int) -> Parsed | Defect:
        key = paths.log(number)
        try:
            blob = self._store.get(key).data
            parsed = record.decode(blob, what=key, seq=number, volume=self._volume.identity)
        except (CorruptFormat, NotFound, Corrupt) as error:
            return as_defect(key, error)
        inline = memoryview(blob)[parsed.inline_offset :]
        if len(inline) != parsed.inline_bytes:
            return Defect(
                key, f"has an inline part of {len(inline)} bytes instead of {parsed.inline_bytes}", parsed.inline_offset
            )
        if inline and hashlib.sha256(inline).digest() != record.HEADER.unpack_from(blob)[_INLINE_HASH]:
            # The chain holds nevertheless; which patches are hit is told by a deep check.
            self._defect(key, "the hash of the inline part does not hold", parsed.inline_offset)
        return parsed

    def _check_chain(self, parsed: Parsed, before: Parsed | None, ends: dict[UUID, int], own_from: int) -> None:
        made = parsed.record
        key = paths.log(made.seq)
        if before is not None and made.parent != before.digest:
            self._defect(key, f"names a parent with another digest than record {before.record.seq} has")
        if made.seq == own_from:
            origin = self._origin.digest if self._origin is not None else NO_DIGEST
            if made.parent != origin:
                said = "is the first and names a parent" if self._origin is None else "does not go on from the origin"
                self._defect(key, said)
        if before is not None and made.epoch < before.record.epoch:
            self._defect(key, f"is of epoch {made.epoch} after one of epoch {before.record.epoch}")
        if before is not None and made.kind == RecordKind.DATA and made.epoch != before.record.epoch:
            self._defect(key, f"carries data of epoch {made.epoch}, which never attached")
        end = ends.get(made.journal)
        if before is not None and end is not None and made.begin != end:
            self._defect(key, f"covers the journal from {made.begin} on where the record before it ends at {end}")
        ends[made.journal] = made.end

    def _apply(self, parsed: Parsed, *, needed: bool) -> bool:
        key = paths.log(parsed.record.seq)
        try:
            target = parsed.record.note.get("rollback")
            rolled = None
            if target is not None:
                named = paths.root(int(target["seq"]), int(target["epoch"]))
                rolled = root.decode(self._store.get(named).data, what=named)
            self._map.apply(parsed.record, parsed.digest, parsed.inline_offset, sizes_from_entries(parsed), rolled)
        except NotFound as error:
            # A rollback to a snapshot that is gone since; younger roots say what came of it.
            if needed:
                self._defect(key, f"cannot be applied to the map: {error}")
            return False
        except (CorruptFormat, Corrupt, KeyError, TypeError, ValueError) as error:
            self._defect(key, f"cannot be applied to the map: {error}")
            return False
        return True

    # --- roots ---------------------------------------------------------------------------------------------------

    def _check_root(self, key: str, number: int, parsed: Parsed | None, building: bool) -> bool:
        """Compare a root with the map built so far; where the log could not be followed, go on from the root.
        True: the map now stands on it."""
        whole = key in self._whole
        try:
            made = root.decode(self._store.get(key).data, what=key, volume=self._volume.identity)
        except (CorruptFormat, NotFound, Corrupt) as error:
            if whole or isinstance(error, CorruptFormat):
                self._found.defects.append(as_defect(key, error))
            return False
        if paths.root(made.seq, made.epoch) != key:
            self._defect(key, f"holds the root of commit {made.seq}, epoch {made.epoch}")
            return False
        if parsed is not None and parsed.digest != made.digest:
            self._defect(key, f"names another digest than record {number} has")
            return False
        self.newest, self.before = made, self.newest
        if building and not whole:
            return False
        try:
            if building:
                self._compare(key, made)
                return False
            self._map.load(made, self._read_page)
        except (CorruptFormat, NotFound, Corrupt) as error:
            if whole or isinstance(error, CorruptFormat):
                self._found.defects.append(as_defect(key, error))
            return False
        if whole:
            self._read_pages(made)
        return True

    def _read_pages(self, made: Root) -> None:
        """Every page of a root that nothing is compared with."""
        for page in places_of(made):
            try:
                self._map.fault([page])
            except (CorruptFormat, NotFound, Corrupt) as error:
                self._found.defects.append(self._bad_page(made, page, error))

    def _bad_page(self, made: Root, page: int, error: CorruptFormat | NotFound | Corrupt) -> Defect:
        # Of the newest root: whoever attaches without a local map misses it. An older root's hits nothing.
        newest = paths.root(made.seq, made.epoch) == self._whole[-1]
        return page_defect(self._geometry, page, error, (LIVE,) if newest else ())

    def _compare(self, key: str, made: Root) -> None:
        """The root and the map, which stands at the same commit. Pages that the last root compared had in the same place,
        and that did not change since, are the same."""
        try:
            settle(self._map)
        except (CorruptFormat, NotFound, Corrupt) as error:
            self._take_over(key, made, error)
            return
        broken: CorruptFormat | NotFound | Corrupt | None = None
        with temporary_map(self._geometry) as other:
            other.load(made, self._read_page)
            settle(other)
            self._compare_state(key, made, other)
            theirs, ours, dirty = places_of(made), self._map.page_places(), set(self._map.dirty())
            differing: list[int] = []
            bad = False
            pages = sorted({*theirs, *ours, *dirty})
            for page in pages:
                if theirs.get(page) == ours.get(page) and page not in dirty:
                    continue
                first, end = page * PAGE_EXTENTS, (page + 1) * PAGE_EXTENTS
                try:
                    other.fault(other.unloaded([first]))
                except (CorruptFormat, NotFound, Corrupt) as error:
                    self._found.defects.append(self._bad_page(made, page, error))
                    bad = True
                    continue
                try:
                    self._map.fault(self._map.unloaded([first]))
                except (CorruptFormat, NotFound, Corrupt) as error:
                    broken = error
                    continue
                room = DIFFERENCES_MAX + 1 - len(differing)
                differing += islice(_differences(self._map.extents(first, end), other.extents(first, end)), room)
        for extent in differing[:DIFFERENCES_MAX]:
            self._defect(key, f"disagrees with the log about extent {extent}", extent=extent)
        if len(differing) > DIFFERENCES_MAX:
            self._defect(key, "disagrees with the log about further extents")
        if broken is not None:
            self._take_over(key, made, broken)
        elif not bad and not differing:
            self._map.checkpointed(made, {page: theirs.get(page, []) for page in pages}, ())

    def _take_over(self, key: str, made: Root, error: CorruptFormat | NotFound | Corrupt) -> None:
        """The map stands on an older root that lacks a page: go on from this one, as an attaching host would."""
        self._found.defects.append(as_defect(key, error))
        self._map.load(made, self._read_page)

    def _compare_state(self, key: str, made: Root, other: ExtentMap) -> None:
        state = self._map.state
        assert state is not None
        for word, told, ours in (
            ("end of the journal", made.end, state.end),
            ("size", made.size_bytes, state.size_bytes),
            ("lineage", str(made.lineage), state.lineage),
            ("journal", str(made.journal), state.journal),
        ):
            if told != ours:
                self._defect(key, f"says {word} {told} where the log says {ours}")
        if history_from(made.note) != self._map.history:
            self._defect(key, "tells of other snapshots than the log")
        # Stored bytes are an estimate that a replay makes anew; what is counted is compared.
        mine = {ref: (count.sectors, count.live) for ref, count in self._map.containers.items()}
        named = {ref: (count.sectors, count.live) for ref, count in other.containers.items()}
        for ref in sorted(set(mine) | set(named)):
            if mine.get(ref) != named.get(ref):
                self._defect(
                    key,
                    f"counts (sectors, live) {named.get(ref)} in {paths.container(ref)} where the log makes it "
                    f"{mine.get(ref)}",
                )


def _differences(ours: Iterator[tuple[int, ExtentValue]], theirs: Iterator[tuple[int, ExtentValue]]) -> Iterator[int]:
    """Extents whose values differ, of two maps in the order of extents."""
    left, right = next(ours, None), next(theirs, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield left[0]
            left = next(ours, None)
        elif left is None or right[0] < left[0]:
            yield right[0]
            right = next(theirs, None)
        else:
            if left[1] != right[1]:
                yield left[0]
            left, right = next(ours, None), next(theirs, None)
