"""The extent map: what each commit changes in it, on any ordered key-value store.

One rule: the map after commit n is a function of the map after n - 1 and record n alone. Live commits, recovery and the
offline reader all go through `ExtentMap.apply`, in one transaction per record, so there is no second way to be wrong.

The map is a cache of the bucket: it may be thrown away and rebuilt from a root and the log's tail. After `load` its pages
are in the bucket still; each comes in when something in it is looked up or changed (`fault`), so that attaching a
volume of any size costs one root.
"""

import json
import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents.format import EMPTY, KEY, Base, ExtentValue, Patch
from blockdev.extents.history import History, history_from
from blockdev.extents.intervals import RangeSet
from blockdev.segments import paths
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.record import BaseEntry, PatchEntry, Record, RecordKind
from blockdev.segments.root import PAGE_EXTENTS, ContainerUse, DeadObject, PageRef, Root
from blockdev.units import Geometry
from s3core.waiting import Turns

PURGE_EXTENTS_MAX = 4096
"""Map entries removed at most in the transaction of one record when whole extents are discarded; the rest
follows in `purge` slices, so that discarding 16 TiB costs one record and no pause."""

PURGE_PAGES_MAX = 16
"""Pages fetched at most in one slice of `purge`."""
DELTAS_MAX = 3
"""Deltas that may lie over a page: a fault reads one object more for each."""
DELTA_EXTENTS_MAX = PAGE_EXTENTS // 8
"""A page of which more than this changed is written anew, not as a delta."""
MAP_VERSION = 3
"""Of the local tables. A map of another version is thrown away and rebuilt."""

EXTENTS, CONTAINERS, MEMBERS, DEAD, RECORDS, DIRTY, PAGES, UNLOADED, META = (
    "extents",
    "containers",
    "members",
    "dead",
    "records",
    "dirty",
    "pages",
    "unloaded",
    "meta",
)
TABLES = (EXTENTS, CONTAINERS, MEMBERS, DEAD, RECORDS, DIRTY, PAGES, UNLOADED, META)

HOUR_US = 3600 * 1_000_000
ReadPage = Callable[[PageRef], Iterator[tuple[int, bytes]]]
"""(extent within the page, value) pairs of a page or a delta in the bucket. Raises CorruptFormat, store errors."""


class Transaction(Protocol):
    """One atomic step on the key-value store: all of its changes become visible at once or not at all."""

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def put(self, table: str, key: bytes, value: bytes) -> None: ...

    def delete(self, table: str, key: bytes) -> None: ...

    def put_many(self, table: str, items: Sequence[tuple[bytes, bytes]]) -> None:
        """`put` of each pair; faster where they come in the order of their keys."""
        ...

    def drop(self, table: str) -> None:
        """Empty a table."""
        ...

    def scan(self, table: str, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """(key, value) from `start` on, ascending, as the table was when the iteration began or later."""
        ...


class KeyValueStore(Protocol):
    def begin(self, *, write: bool) -> AbstractContextManager[Transaction]:
        """A transaction; left without an exception it is committed. One writer at a time."""
        ...

    def clear(self) -> None:
        """Empty every table."""
        ...

    def close(self) -> None: ...


class MapState(NamedTuple):
    """Where the map stands: after commit `seq`, whose record has `digest` and covers the journal up to `end`.

    `flush`: "s3" when everything that was flushed is in the bucket, whoever has the journal. `fence`: the note of the
    newest FENCE record: who writes, and on what terms."""

    seq: int
    digest: bytes
    epoch: int
    end: int
    size_bytes: int
    lineage: str
    journal: str
    kind: int
    time_us: int
    root_seq: int
    root_epoch: int
    flush: str = "local"
    fence: Mapping[str, Any] = {}


class ContainerCount(NamedTuple):
    sectors: int
    live: int
    stored: int


@dataclass(slots=True)
class _Change:
    """What one record does to counters, gathered before it is written."""

    live: dict[ContainerRef, int]
    dead: list[str]
    extents: set[int]


_REF = struct.Struct(">QIH")
_COUNT = struct.Struct("<QQQ")
_DEATH = struct.Struct(">QQ")
"""(time in microseconds, commit) since which nothing needs a record."""
_STATE_KEY = b"state"
_RANGES_KEY = b"ranges"
_HISTORY_KEY = b"history"


def _no_pages(ref: PageRef) -> Iterator[tuple[int, bytes]]:
    raise AssertionError(f"page {ref.page} is wanted and nobody said where pages are read from")


def touched_extents(record: Record) -> set[int]:
    """Extents whose values a record changes, discards of whole extents left out."""
    extents = {base.extent for base in record.folds}
    extents.update(base.extent for base in record.bases)
    extents.update(patch.extent for patch in record.patches)
    extents.update(move.patch.extent for move in record.moves)
    return extents


def record_runs(items: Iterable[tuple[int, int]]) -> list[list[int]]:
    """(record, time in microseconds) pairs, ascending, as [first, how many, hour] runs."""
    runs: list[list[int]] = []
    for seq, time_us in items:
        hour = time_us // HOUR_US
        if runs and runs[-1][0] + runs[-1][1] == seq and runs[-1][2] == hour:
            runs[-1][1] += 1
        else:
            runs.append([seq, 1, hour])
    return runs


def _overlay(patches: Sequence[Patch], start: int, end: int) -> tuple[list[Patch], list[Patch]]:
    """(what stays of `patches` outside [start, end), what is cut away)."""
    stay: list[Patch] = []
    cut: list[Patch] = []
    for patch in patches:
        first, last = patch.start, patch.start + patch.sectors
        if last <= start or first >= end:
            stay.append(patch)
            continue
        if first < start:
            stay.append(patch._replace(sectors=start - first))
        if last > end:
            stay.append(patch._replace(start=end, sectors=last - end))
        low, high = max(first, start), min(last, end)
        cut.append(patch._replace(start=low, sectors=high - low))
    return stay, cut


class ExtentMap:
    """The map of one volume. Reads may run on any thread; `apply`, `purge`, `load` run on one at a time."""

    def __init__(self, kv: KeyValueStore, geometry: Geometry) -> None:
        self._kv = kv
        self._geometry = geometry
        # Not a lock of the interpreter's: a fiber that wants it would hold up its loop for all of a long `apply`.
        self._lock = Turns(1)
        self._ranges = RangeSet()
        self._state: MapState | None = None
        self._unloaded: list[int] = []
        self.containers: dict[ContainerRef, ContainerCount] = {}
        self.extents_mapped = 0
        self.history = History()
        self.sweeping = 0
        """Commit of the removed snapshot that is being swept: what dies from here on need not stay for it."""
        self.read_page: ReadPage = _no_pages
        self.own_from = 0
        """Objects written for earlier commits belong to the volume this one was cloned from: they never die here."""
        self._load_memory()

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> MapState | None:
        """None: empty, to be filled from a root or from the log's beginning."""
        return self._state

    def lookup(self, extents: Sequence[int]) -> tuple[MapState, list[ExtentValue]]:
        """The values of these extents and the state they belong to, all of one moment. Raises what `fault` raises."""
        self.fault(self.unloaded(extents))
        with self._lock, self._kv.begin(write=False) as txn:
            state = self._state
            assert state is not None, "lookup before the map was loaded"
            return state, [self._value(txn, extent) for extent in extents]

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, ExtentValue]]:
        """Every mapped extent from `start` on, ascending, in slices of one moment each. Raises what `fault` raises."""
        at = start
        while end is None or at < end:
            # Up to the next page that is not here; when that is where we are, it comes in first.
            index = bisect_left(self._unloaded, at // PAGE_EXTENTS)
            waiting = self._unloaded[index] * PAGE_EXTENTS if index < len(self._unloaded) else None
            if waiting is not None and waiting <= at:
                self.fault([waiting // PAGE_EXTENTS])
                continue
            stop = end if waiting is None else waiting if end is None else min(end, waiting)
            batch: list[tuple[int, ExtentValue]] = []
            full = False
            with self._lock, self._kv.begin(write=False) as txn:
                for key, blob in txn.scan(EXTENTS, KEY.pack(at)):
                    (extent,) = KEY.unpack(key)
                    if stop is not None and extent >= stop:
                        break
                    at = extent + 1
                    value = self._filtered(extent, mapformat.decode(extent, blob))
                    if value != EMPTY:
                        batch.append((extent, value))
                    if len(batch) >= 512:
                        full = True
                        break
            yield from batch
            if full:
                continue
            if stop is None:
                return
            at = stop

    def members(self, ref: ContainerRef) -> list[int] | None:
        """Extents that had patches in the container when it was written (some may be gone since). None: not known since
        the map was loaded; the container itself tells."""
        with self._kv.begin(write=False) as txn:
            blob = txn.get(MEMBERS, _REF.pack(*ref))
        return None if blob is None else [item[0] for item in KEY.iter_unpack(blob)]

    # --- pages that are in the bucket still ------------------------------------------------------------------------

    def unloaded(self, extents: Iterable[int]) -> list[int]:
        """The pages of these extents that are not here yet, ascending."""
        if not self._unloaded:
            return []
        return sorted(page for page in {extent // PAGE_EXTENTS for extent in extents} if self._waits(page))

    def _waits(self, page: int) -> bool:
        index = bisect_left(self._unloaded, page)
        return index < len(self._unloaded) and self._unloaded[index] == page

    def fault(self, pages: Sequence[int]) -> None:
        """Bring these pages in. Safe on any thread, and for a page that another thread brings in. Raises CorruptFormat
        and store errors; then the pages before the one that failed are here."""
        for page in pages:
            if not self._waits(page):
                continue
            entries = merged_page(self.page_place(page), self.read_page)
            first = page * PAGE_EXTENTS
            # The page's checksum held, and each value's own is compared whenever it is looked up.
            items = [(KEY.pack(first + index), blob) for index, blob in sorted(entries.items())]
            with self._lock, self._kv.begin(write=True) as txn:
                if not self._waits(page):
                    continue
                txn.put_many(EXTENTS, items)
                txn.delete(UNLOADED, KEY.pack(page))
                # A new list: readers walk the old one without the lock.
                rest = self._unloaded.copy()
                del rest[bisect_left(rest, page)]
                self._unloaded = rest

    def page_place(self, page: int) -> list[PageRef]:
        """Where the newest root has the page: the page, then deltas over it. Empty: nothing in it was mapped then."""
        with self._kv.begin(write=False) as txn:
            blob = txn.get(PAGES, KEY.pack(page))
        return [] if blob is None else [PageRef(*item) for item in json.loads(blob)]

    def _value(self, txn: Transaction, extent: int) -> ExtentValue:
        blob = txn.get(EXTENTS, KEY.pack(extent))
        return EMPTY if blob is None else self._filtered(extent, mapformat.decode(extent, blob))

    def _filtered(self, extent: int, value: ExtentValue) -> ExtentValue:
        """Without what a later discard of the whole extent covers."""
        discarded = self._ranges.at(extent)
        if not discarded:
            return value
        base = value.base if value.base is not None and value.base.gen >= discarded else None
        return ExtentValue(base, tuple(patch for patch in value.patches if patch.gen >= discarded))

    # --- changing ------------------------------------------------------------------------------------------------

    def apply(
        self,
        record: Record,
        digest: bytes,
        inline_offset: int,
        stored: dict[ContainerRef, int],
        rolled: Root | None = None,
    ) -> None:
        """Bring the map from commit record.seq - 1 to record.seq. `stored`: bytes of the containers it created.
        `rolled`: the root that a record which rolls back names. Raises what `fault` raises, and then changed nothing.

        One transaction: a crash leaves the map before or after the record, and the log brings it forward."""
        state = self._state
        before = state.seq if state is not None else 0
        if record.seq != before + 1:
            raise CorruptFormat(f"record {record.seq} cannot follow the map's {before}", what="extent map")
        if state is not None and record.parent != state.digest:
            raise CorruptFormat(
                f"names a parent with another digest than record {before} has", what=f"commit record {record.seq}"
            )
        if self._unloaded:
            self.fault(self.unloaded(touched_extents(record)))
        change = _Change({}, [], set())
        with self._lock, self._kv.begin(write=True) as txn:
            if record.note:
                self.history = self.history.after(record.note, record.seq)
                self._write_history(txn)
            if rolled is not None:
                self._fill(txn, rolled)
            created: dict[ContainerRef, set[int]] = {}
            for fold in record.folds:
                self._apply_base(txn, fold, record.seq, change)
            for move in record.moves:
                if self._apply_move(txn, move.patch, move.old_ref, move.old_offset, change):
                    created.setdefault(move.patch.ref, set()).add(move.patch.extent)
                else:
                    created.setdefault(move.patch.ref, set())
            for item in record.ranges:
                self._ranges.put(item.first, item.first + item.extents, record.seq)
                end = item.first + item.extents
                if not self._waiting(item.first, end):
                    self._purge_range(txn, item.first, end, record.seq, PURGE_EXTENTS_MAX, change)
            for base in record.bases:
                self._apply_base(txn, base, record.seq, change)
            grouped: dict[int, list[PatchEntry]] = {}
            for entry in record.patches:
                if entry.ref.n == INLINE and entry.ref.gen == record.seq:
                    entry = entry._replace(offset=entry.offset + inline_offset)
                grouped.setdefault(entry.extent, []).append(entry)
                if entry.stored:
                    created.setdefault(entry.ref, set()).add(entry.extent)
            for extent, entries in grouped.items():
                self._apply_patches(txn, extent, entries, record.seq, record.epoch, change)
            self._count(txn, record, change, created, stored)
            fence = dict(record.note) if record.kind == RecordKind.FENCE else state.fence if state is not None else {}
            new = MapState(
                seq=record.seq,
                digest=digest,
                epoch=record.epoch,
                end=record.end,
                size_bytes=record.size_bytes,
                lineage=str(record.lineage),
                journal=str(record.journal),
                kind=int(record.kind),
                time_us=record.time_us,
                root_seq=state.root_seq if state is not None else 0,
                root_epoch=state.root_epoch if state is not None else 0,
                flush=str(record.note.get("flush", state.flush if state is not None else "local")),
                fence=fence,
            )
            self._write_state(txn, new)
            self._write_ranges(txn)
            self._state = new

    def _put_value(self, txn: Transaction, extent: int, old: ExtentValue, new: ExtentValue, change: _Change) -> None:
        """Store `new`, count what `old` held and `new` does not, and the other way round."""
        live = change.live
        for patch in old.patches:
            if patch.stored:
                live[patch.ref] = live.get(patch.ref, 0) - patch.sectors
        for patch in new.patches:
            if patch.stored:
                live[patch.ref] = live.get(patch.ref, 0) + patch.sectors
        if old.base is not None and (new.base is None or new.base[:2] != old.base[:2]):
            change.dead.append(paths.extent(extent, old.base.gen, old.base.epoch))
        change.extents.add(extent)
        if new == EMPTY:
            txn.delete(EXTENTS, KEY.pack(extent))
            self.extents_mapped -= 1 if old != EMPTY else 0
        else:
            txn.put(EXTENTS, KEY.pack(extent), mapformat.encode(extent, new))
            self.extents_mapped += 1 if old == EMPTY else 0

    def _raw(self, txn: Transaction, extent: int) -> tuple[ExtentValue, ExtentValue]:
        """(what is stored, what of it still counts)."""
        blob = txn.get(EXTENTS, KEY.pack(extent))
        if blob is None:
            return EMPTY, EMPTY
        value = mapformat.decode(extent, blob)
        return value, self._filtered(extent, value)

    def _apply_base(self, txn: Transaction, entry: BaseEntry, seq: int, change: _Change) -> None:
        old, value = self._raw(txn, entry.extent)
        younger = tuple(patch for patch in value.patches if patch.gen > entry.through)
        overtaken = value.base is not None and value.base.gen > entry.through
        if overtaken or (self._ranges.at(entry.extent) > entry.through and entry.through < seq):
            # A fold that lost the race against a whole write or a discard: its object is garbage from birth.
            change.dead.append(paths.extent(entry.extent, entry.gen, entry.epoch))
            return
        base = Base(entry.gen, entry.epoch, entry.digest, entry.lengths) if any(entry.lengths) else None
        if base is None:
            change.dead.append(paths.extent(entry.extent, entry.gen, entry.epoch))
        self._put_value(txn, entry.extent, old, ExtentValue(base, younger), change)

    def _apply_move(
        self, txn: Transaction, entry: PatchEntry, old_ref: ContainerRef, old_offset: int, change: _Change
    ) -> bool:
        old, value = self._raw(txn, entry.extent)
        moved = False
        patches: list[Patch] = []
        end = entry.start + entry.sectors
        for patch in value.patches:
            inside = entry.start <= patch.start and patch.start + patch.sectors <= end
            if inside and patch.ref == old_ref and patch.offset == old_offset:
                patches.append(Patch(patch.start, patch.sectors, entry.offset, entry.stored, *entry.ref))
                moved = True
            else:
                patches.append(patch)
        if moved or old != value:
            self._put_value(txn, entry.extent, old, ExtentValue(value.base, tuple(patches)), change)
        return moved

    def _apply_patches(
        self, txn: Transaction, extent: int, entries: list[PatchEntry], seq: int, epoch: int, change: _Change
    ) -> None:
        old, value = self._raw(txn, extent)
        patches = list(value.patches)
        for entry in entries:
            patches, cut = _overlay(patches, entry.start, entry.start + entry.sectors)
            if entry.stored:
                patches.append(Patch(entry.start, entry.sectors, entry.offset, entry.stored, *entry.ref))
            elif value.base is not None or cut:
                # Kept even where nothing lies below: it is what says that the content changed in this commit.
                patches.append(Patch(entry.start, entry.sectors, 0, 0, seq, epoch, INLINE))
        if value.base is None and not any(patch.stored for patch in patches):
            patches = []
        patches.sort()
        self._put_value(txn, extent, old, ExtentValue(value.base, tuple(patches)), change)

    def _waiting(self, first: int, end: int) -> list[int]:
        """Pages with extents of [first, end) that are not here."""
        low = bisect_left(self._unloaded, first // PAGE_EXTENTS)
        high = bisect_left(self._unloaded, -(-end // PAGE_EXTENTS))
        return self._unloaded[low:high]

    def _purge_range(self, txn: Transaction, first: int, end: int, seq: int, most: int, change: _Change) -> bool:
        """Remove map entries that the discard `seq` of [first, end) made meaningless; True when none are left."""
        gone: list[int] = []
        rest = True
        for key, _ in txn.scan(EXTENTS, KEY.pack(first)):
            (extent,) = KEY.unpack(key)
            if extent >= end:
                break
            gone.append(extent)
            if len(gone) >= most:
                rest = False
                break
        for extent in gone:
            old, value = self._raw(txn, extent)
            if old != value:
                self._put_value(txn, extent, old, value, change)
        if rest and self._ranges.at(first) == seq and (first, end, seq) in self._ranges.items():
            self._ranges.remove(first, end)
        return rest

    def purge(self, most: int = PURGE_EXTENTS_MAX) -> bool:
        """Work one slice of the oldest unfinished discard into the map; True when nothing is left to do. Raises what
        `fault` raises, and then changed nothing."""
        items = self._ranges.items()
        if not items:
            return True
        first, end, seq = min(items, key=lambda item: item[2])
        change = _Change({}, [], set())
        state = self._state
        assert state is not None
        with self._kv.begin(write=False) as txn:
            # Where the last slice stopped, if it worked on this very discard.
            place = json.loads(txn.get(META, b"purge") or b"[0, 0, 0, 0]")
        position = place[3] if place[:3] == [first, end, seq] else first
        waiting = self._waiting(position, end)
        self.fault(waiting[:PURGE_PAGES_MAX])
        stop = min(end, waiting[PURGE_PAGES_MAX] * PAGE_EXTENTS) if len(waiting) > PURGE_PAGES_MAX else end
        with self._lock, self._kv.begin(write=True) as txn:
            last = stop
            stale: list[int] = []
            for count, (key, blob) in enumerate(txn.scan(EXTENTS, KEY.pack(position))):
                (extent,) = KEY.unpack(key)
                if extent >= stop:
                    break
                if count >= most:
                    last = extent
                    break
                value = mapformat.decode(extent, blob)
                if self._filtered(extent, value) != value:
                    stale.append(extent)
            for extent in stale:
                old, value = self._raw(txn, extent)
                self._put_value(txn, extent, old, value, change)
            if last == end:
                self._ranges.remove(first, end)
                txn.delete(META, b"purge")
            else:
                txn.put(META, b"purge", json.dumps([first, end, seq, last]).encode())
            self._settle(txn, change, state.seq, state.time_us)
            self._write_state(txn, state)
            self._write_ranges(txn)
        return not self._ranges.items()

    def _count(
        self,
        txn: Transaction,
        record: Record,
        change: _Change,
        created: dict[ContainerRef, set[int]],
        stored: dict[ContainerRef, int],
    ) -> None:
        for ref, extents in created.items():
            # Total sectors of a container are what it was born with; patches cut within the same record never count.
            total = max(change.live.get(ref, 0), 0)
            self.containers[ref] = ContainerCount(total, 0, stored.get(ref, 0))
            txn.put(MEMBERS, _REF.pack(*ref), b"".join(KEY.pack(extent) for extent in sorted(extents)))
            change.live.setdefault(ref, 0)
        if ContainerRef(record.seq, record.epoch, INLINE) not in created:
            txn.put(RECORDS, KEY.pack(record.seq), _DEATH.pack(record.time_us, record.seq))
        self._settle(txn, change, record.seq, record.time_us)

    def _settle(self, txn: Transaction, change: _Change, seq: int, time_us: int) -> None:
        for ref, delta in change.live.items():
            count = self.containers.get(ref)
            if count is None:
                raise CorruptFormat(f"container {ref} is used and not known", what="extent map")
            count = count._replace(live=count.live + delta)
            if count.live < 0:
                raise CorruptFormat(f"container {ref} has {count.live} live sectors", what="extent map")
            key = _REF.pack(*ref)
            if count.live == 0:
                self.containers.pop(ref)
                txn.delete(CONTAINERS, key)
                txn.delete(MEMBERS, key)
                change.dead.append(paths.container(ref))
            else:
                self.containers[ref] = count
                txn.put(CONTAINERS, key, _COUNT.pack(*count))
        for name in change.dead:
            if not self.history.pins(paths.birth(name), seq, self.sweeping):
                self._bury(txn, name, seq, time_us)
        for extent in change.extents:
            txn.put(DIRTY, KEY.pack(extent), b"")

    def _bury(self, txn: Transaction, name: str, seq: int, time_us: int) -> None:
        """Note an object that nothing needs from commit `seq` on. A record goes its own way: see `old_records`."""
        born = paths.birth(name)
        if born < self.own_from:
            return
        if name.startswith(paths.log_prefix()):
            txn.put(RECORDS, KEY.pack(born), _DEATH.pack(time_us, seq))
        else:
            txn.put(DEAD, KEY.pack(seq) + name.encode(), b"")
            self.dead_waiting += 1

    def bury(self, names: Sequence[str]) -> None:
        """These objects were needed by a snapshot that is gone, and by nothing else."""
        state = self._state
        assert state is not None
        with self._lock, self._kv.begin(write=True) as txn:
            for name in names:
                self._bury(txn, name, state.seq, state.time_us)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def dirty(self) -> dict[int, list[int]]:
        """Extents that changed since the newest root, by page."""
        pages: dict[int, list[int]] = {}
        with self._kv.begin(write=False) as txn:
            for key, _ in txn.scan(DIRTY):
                (extent,) = KEY.unpack(key)
                pages.setdefault(extent // PAGE_EXTENTS, []).append(extent)
        return pages

    def changed(self, page: int) -> bool:
        """Whether something in the page changed since the newest root."""
        first = page * PAGE_EXTENTS
        with self._kv.begin(write=False) as txn:
            for key, _ in txn.scan(DIRTY, KEY.pack(first)):
                return bool(KEY.unpack(key)[0] < first + PAGE_EXTENTS)
        return False

    def page_entries(self, page: int) -> list[tuple[int, bytes]]:
        """(extent within the page, value bytes as they are stored) of every mapped extent of a page that is here."""
        first = page * PAGE_EXTENTS
        found: list[tuple[int, bytes]] = []
        with self._lock, self._kv.begin(write=False) as txn:
            for key, blob in txn.scan(EXTENTS, KEY.pack(first)):
                (extent,) = KEY.unpack(key)
                if extent >= first + PAGE_EXTENTS:
                    break
                mapformat.decode(extent, blob)  # a damaged value must not reach the bucket
                found.append((extent - first, blob))
        return found

    def delta_entries(self, page: int, extents: Sequence[int]) -> list[tuple[int, bytes]]:
        """(extent within the page, value bytes) of these extents, empty where nothing is mapped any more."""
        found: list[tuple[int, bytes]] = []
        with self._lock, self._kv.begin(write=False) as txn:
            for extent in extents:
                blob = txn.get(EXTENTS, KEY.pack(extent)) or b""
                if blob:
                    mapformat.decode(extent, blob)
                found.append((extent % PAGE_EXTENTS, blob))
        return found

    def raw_bases(self, first: int, end: int) -> dict[int, tuple[int, int]]:
        """(generation, epoch) of the extent objects of [first, end) that the map names, those under an unfinished discard
        included. Pages that are not here count as empty."""
        found: dict[int, tuple[int, int]] = {}
        with self._lock, self._kv.begin(write=False) as txn:
            for key, blob in txn.scan(EXTENTS, KEY.pack(first)):
                (extent,) = KEY.unpack(key)
                if extent >= end:
                    break
                base = mapformat.decode(extent, blob).base
                if base is not None:
                    found[extent] = base[:2]
        return found

    @property
    def pages_waiting(self) -> int:
        """Pages that are in the bucket still."""
        return len(self._unloaded)

    @property
    def purging(self) -> bool:
        """Whether a discard is not worked into the map yet."""
        return bool(len(self._ranges))

    def page_places(self) -> dict[int, list[PageRef]]:
        """`page_place` of every page."""
        with self._kv.begin(write=False) as txn:
            return {KEY.unpack(key)[0]: [PageRef(*item) for item in json.loads(blob)] for key, blob in txn.scan(PAGES)}

    def snapshot_for_root(self) -> tuple[MapState, list[tuple[int, int, int]], list[ContainerUse], list[DeadObject]]:
        """State, unfinished discards, containers and dead objects, for a root. Call with no `apply` in between."""
        state = self._state
        assert state is not None
        ranges = [(first, end - first, seq) for first, end, seq in self._ranges.items()]
        uses = [ContainerUse(ref, *count) for ref, count in sorted(self.containers.items())]
        return state, ranges, uses, self.dead()

    def root_note(self) -> dict[str, Any]:
        """What a root tells beside its tables, so that `load` knows as much as a replay of the log would."""
        state = self._state
        assert state is not None
        with self._kv.begin(write=False) as txn:
            records = record_runs((KEY.unpack(key)[0], _DEATH.unpack(blob)[0]) for key, blob in txn.scan(RECORDS))
        return {
            "kind": state.kind,
            "record_epoch": state.epoch,
            "extents": self.extents_mapped,
            "flush": state.flush,
            "fence": dict(state.fence),
            "records": records,
            **self.history.document(),
        }

    def dead(self, before: int | None = None, most: int | None = None) -> list[DeadObject]:
        """Objects made unnecessary by a commit (numbered below `before`) and not yet deleted, at most so many."""
        found: list[DeadObject] = []
        with self._kv.begin(write=False) as txn:
            for key, _ in txn.scan(DEAD):
                (death,) = KEY.unpack(key[:8])
                if (before is not None and death >= before) or (most is not None and len(found) >= most):
                    break
                found.append(DeadObject(death, key[8:].decode()))
        return found

    def forget_dead(self, gone: Sequence[DeadObject]) -> None:
        """These objects have been deleted from the store."""
        with self._lock, self._kv.begin(write=True) as txn:
            for item in gone:
                txn.delete(DEAD, KEY.pack(item.death) + item.key.encode())
            self.dead_waiting -= min(len(gone), self.dead_waiting)

    def old_records(self, before: int, time_us: int, most: int) -> list[int]:
        """Commit records that nothing needed since before commit `before`, nor since `time_us`: their patches are gone, or
        they never had any. At most so many."""
        found: list[int] = []
        with self._kv.begin(write=False) as txn:
            for looked, (key, blob) in enumerate(txn.scan(RECORDS)):
                (seq,) = KEY.unpack(key)
                if seq >= before or len(found) >= most or looked >= 8 * most:
                    break
                died_us, death = _DEATH.unpack(blob)
                if death < before and died_us < time_us:
                    found.append(seq)
        return found

    def forget_records(self, gone: Sequence[int]) -> None:
        """These records have been deleted from the store."""
        with self._lock, self._kv.begin(write=True) as txn:
            for seq in gone:
                txn.delete(RECORDS, KEY.pack(seq))

    def checkpointed(self, root: Root, written: Mapping[int, Sequence[PageRef]], obsolete: Sequence[str]) -> None:
        """`root` is durable in the store, with the pages `written` where they are now; no root from now on needs
        `obsolete`, but snapshots may."""
        with self._lock, self._kv.begin(write=True) as txn:
            for page, refs in written.items():
                if refs:
                    txn.put(PAGES, KEY.pack(page), json.dumps(refs).encode())
                else:
                    txn.delete(PAGES, KEY.pack(page))
            txn.drop(DIRTY)
            for name in obsolete:
                if not self.history.pins(paths.birth(name), root.seq, self.sweeping):
                    self._bury(txn, name, root.seq, root.time_us)
            assert self._state is not None
            self._state = self._state._replace(root_seq=root.seq, root_epoch=root.epoch)
            self._write_state(txn, self._state)

    def forget_places(self, seq: int, epoch: int) -> None:
        """Rely on no page in the bucket: bring in what is there still, and let the next checkpoint, the one after root
        (`seq`, `epoch`), write every page anew. Raises what `fault` raises."""
        self.fault(list(self._unloaded))
        state = self._state
        assert state is not None
        with self._lock, self._kv.begin(write=True) as txn:
            txn.drop(PAGES)
            for key in [key for key, _ in txn.scan(EXTENTS)]:
                txn.put(DIRTY, key, b"")
            self._state = state._replace(root_seq=seq, root_epoch=epoch)
            self._write_state(txn, self._state)

    def load(self, root: Root, read_page: ReadPage, *, clone: tuple[str, int] | None = None) -> None:
        """Throw the map away and let it be as `root` says; its pages are read when they are needed. `clone`: (lineage,
        first own commit) of a volume whose history begins here. A crash in the middle leaves a map without state, which
        the next start throws away again."""
        self._kv.clear()
        self._state = None
        self.dead_waiting = 0
        self.read_page = read_page
        note = root.note
        with self._lock, self._kv.begin(write=True) as txn:
            self._fill(txn, root)
            if clone is None:
                for item in root.dead:
                    txn.put(DEAD, KEY.pack(item.death) + item.key.encode(), b"")
                self.dead_waiting = len(root.dead)
                for first, count, hour in note.get("records", ()):
                    for seq in range(first, first + count):
                        txn.put(RECORDS, KEY.pack(seq), _DEATH.pack((hour + 1) * HOUR_US, root.seq))
                self.history = history_from(note)
            else:
                self.history = History()
                self.own_from = clone[1]
            state = MapState(
                seq=root.seq,
                digest=root.digest,
                epoch=root.epoch,
                end=root.end,
                size_bytes=root.size_bytes,
                lineage=str(root.lineage) if clone is None else clone[0],
                journal=str(root.journal) if clone is None else str(UUID(int=0)),
                kind=int(note.get("kind", RecordKind.DATA)) if clone is None else int(RecordKind.DETACH),
                time_us=root.time_us,
                root_seq=root.seq,
                root_epoch=root.epoch,
                flush=str(note.get("flush", "local")) if clone is None else "local",
                fence=dict(note.get("fence", {})) if clone is None else {},
            )
            self._write_state(txn, state)
            self._write_ranges(txn)
            self._write_history(txn)
            self._state = state
        if "extents" not in note:
            # A root of before that was counted.
            self.fault(list(self._unloaded))
            with self._lock, self._kv.begin(write=True) as txn:
                self.extents_mapped = sum(1 for _ in txn.scan(EXTENTS))
                self._write_state(txn, state)

    def _fill(self, txn: Transaction, root: Root) -> None:
        """Let extents, containers and discards be those of a root."""
        for table in (EXTENTS, CONTAINERS, MEMBERS, PAGES, UNLOADED, DIRTY):
            txn.drop(table)
        places: dict[int, list[PageRef]] = {ref.page: [ref] for ref in root.pages}
        for run in root.runs:
            places.setdefault(run.page, []).append(run)
        for page, refs in sorted(places.items()):
            txn.put(PAGES, KEY.pack(page), json.dumps(refs).encode())
            txn.put(UNLOADED, KEY.pack(page), b"")
        self._unloaded = sorted(places)
        self.containers = {}
        for use in root.containers:
            count = self.containers[use.ref] = ContainerCount(use.sectors, use.live, use.stored)
            txn.put(CONTAINERS, _REF.pack(*use.ref), _COUNT.pack(*count))
        self._ranges = RangeSet()
        for first, extents, seq in root.ranges:
            self._ranges.put(first, first + extents, seq)
        txn.delete(META, b"purge")
        self.extents_mapped = int(root.note.get("extents", 0))

    def clear(self) -> None:
        """Throw the map away."""
        self._kv.clear()
        self._load_memory()

    def close(self) -> None:
        self._kv.close()

    def _write_state(self, txn: Transaction, state: MapState) -> None:
        document: dict[str, Any] = state._asdict() | {"digest": state.digest.hex()}
        document = {
            "version": MAP_VERSION,
            "state": document,
            "extents": self.extents_mapped,
            "own_from": self.own_from,
        }
        txn.put(META, _STATE_KEY, json.dumps(document).encode())

    def _write_history(self, txn: Transaction) -> None:
        txn.put(META, _HISTORY_KEY, json.dumps(self.history.document()).encode())

    def _write_ranges(self, txn: Transaction) -> None:
        txn.put(META, _RANGES_KEY, json.dumps(self._ranges.items()).encode())

    def _load_memory(self) -> None:
        self.dead_waiting = 0
        """Objects that nothing needs and that are not deleted yet; about, since some may be counted twice."""
        self._ranges = RangeSet()
        self.containers = {}
        self.extents_mapped = 0
        self.history = History()
        self._unloaded = []
        self._state = None
        with self._kv.begin(write=False) as txn:
            blob = txn.get(META, _STATE_KEY)
            document = json.loads(blob) if blob is not None else {}
            if document.get("version") != MAP_VERSION:
                return
            state = document["state"]
            state["digest"] = bytes.fromhex(state["digest"])
            self._state = MapState(**state)
            self.extents_mapped = document["extents"]
            self.own_from = document["own_from"]
            self.history = history_from(json.loads(txn.get(META, _HISTORY_KEY) or b"{}"))
            for item in json.loads(txn.get(META, _RANGES_KEY) or b"[]"):
                self._ranges.put(*item)
            self.dead_waiting = sum(1 for _ in txn.scan(DEAD))
            for key, value in txn.scan(CONTAINERS):
                self.containers[ContainerRef(*_REF.unpack(key))] = ContainerCount(*_COUNT.unpack(value))
            self._unloaded = [KEY.unpack(key)[0] for key, _ in txn.scan(UNLOADED)]


def merged_page(place: Sequence[PageRef], read_page: ReadPage) -> dict[int, bytes]:
    """(extent within the page -> value) of a page with its deltas. Raises what `read_page` raises."""
    entries: dict[int, bytes] = {}
    for ref in place:
        for index, blob in read_page(ref):
            if blob:
                entries[index] = blob
            else:
                entries.pop(index, None)
    return entries
