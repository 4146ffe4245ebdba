"""The extent map: what each commit changes in it, on any ordered key-value store.

One rule: the map after commit n is a function of the map after n - 1 and record n alone. Live commits, recovery and the
offline reader all go through `ExtentMap.apply`, in one transaction per record, so there is no second way to be wrong.

The map is a cache of the bucket: it may be thrown away and rebuilt from a root and the log's tail.
"""

import json
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents.format import EMPTY, KEY, Base, ExtentValue, Patch
from blockdev.extents.intervals import RangeSet
from blockdev.segments import paths
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.record import BaseEntry, PatchEntry, Record
from blockdev.segments.root import PAGE_EXTENTS, ContainerUse, DeadObject, PageRef, Root
from blockdev.units import Geometry

PURGE_EXTENTS_MAX = 4096
"""Map entries removed at most in the transaction of one record when whole extents are discarded; the rest
follows in `purge` slices, so that discarding 16 TiB costs one record and no pause."""

EXTENTS, CONTAINERS, MEMBERS, DEAD, DIRTY_PAGES, PAGES, META = (
    "extents",
    "containers",
    "members",
    "dead",
    "dirty_pages",
    "pages",
    "meta",
)
TABLES = (EXTENTS, CONTAINERS, MEMBERS, DEAD, DIRTY_PAGES, PAGES, META)


class Transaction(Protocol):
    """One atomic step on the key-value store: all of its changes become visible at once or not at all."""

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def put(self, table: str, key: bytes, value: bytes) -> None: ...

    def delete(self, table: str, key: bytes) -> None: ...

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
    """Where the map stands: after commit `seq`, whose record has `digest` and covers the journal up to `end`."""

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


class ContainerCount(NamedTuple):
    sectors: int
    live: int
    stored: int


@dataclass(slots=True)
class _Change:
    """What one record does to counters, gathered before it is written."""

    live: dict[ContainerRef, int]
    dead: list[str]
    pages: set[int]


_REF = struct.Struct(">QIH")
_COUNT = struct.Struct("<QQQ")
_STATE_KEY = b"state"
_RANGES_KEY = b"ranges"


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
        self._lock = threading.Lock()
        self._ranges = RangeSet()
        self._state: MapState | None = None
        self.containers: dict[ContainerRef, ContainerCount] = {}
        self.extents_mapped = 0
        self._load_memory()

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def state(self) -> MapState | None:
        """None: empty, to be filled from a root or from the log's beginning."""
        return self._state

    def lookup(self, extents: Sequence[int]) -> tuple[MapState, list[ExtentValue]]:
        """The values of these extents and the state they belong to, all of one moment."""
        with self._lock, self._kv.begin(write=False) as txn:
            state = self._state
            assert state is not None, "lookup before the map was loaded"
            return state, [self._value(txn, extent) for extent in extents]

    def extents(self, start: int = 0, end: int | None = None) -> Iterator[tuple[int, ExtentValue]]:
        """Every mapped extent from `start` on, ascending, in slices of one moment each."""
        at = start
        while True:
            batch: list[tuple[int, ExtentValue]] = []
            with self._lock, self._kv.begin(write=False) as txn:
                for key, blob in txn.scan(EXTENTS, KEY.pack(at)):
                    (extent,) = KEY.unpack(key)
                    if end is not None and extent >= end:
                        break
                    at = extent + 1
                    value = self._filtered(extent, mapformat.decode(extent, blob))
                    if value != EMPTY:
                        batch.append((extent, value))
                    if len(batch) >= 512:
                        break
                else:
                    at = -1
                if end is not None and at >= end:
                    at = -1
            stopped_early = len(batch) >= 512
            yield from batch
            if at < 0 or not stopped_early:
                return

    def members(self, ref: ContainerRef) -> list[int]:
        """Extents that had patches in the container when it was written (some may be gone since)."""
        with self._kv.begin(write=False) as txn:
            blob = txn.get(MEMBERS, _REF.pack(*ref))
        return [] if blob is None else [item[0] for item in KEY.iter_unpack(blob)]

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

    def apply(self, record: Record, digest: bytes, inline_offset: int, stored: dict[ContainerRef, int]) -> None:
        """Bring the map from commit record.seq - 1 to record.seq. `stored`: bytes of the containers it created.

        One transaction: a crash leaves the map before or after the record, and the log brings it forward."""
        state = self._state
        before = state.seq if state is not None else 0
        if record.seq != before + 1:
            raise CorruptFormat(f"record {record.seq} cannot follow the map's {before}", what="extent map")
        if state is not None and record.parent != state.digest:
            raise CorruptFormat(
                f"names a parent with another digest than record {before} has", what=f"commit record {record.seq}"
            )
        change = _Change({}, [], set())
        with self._lock, self._kv.begin(write=True) as txn:
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
                self._purge_range(txn, item.first, item.first + item.extents, record.seq, PURGE_EXTENTS_MAX, change)
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
            for page in change.pages:
                txn.put(DIRTY_PAGES, KEY.pack(page), b"")
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
        change.pages.add(extent // PAGE_EXTENTS)
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
        """Work one slice of the oldest unfinished discard into the map; True when nothing is left to do."""
        items = self._ranges.items()
        if not items:
            return True
        first, end, seq = min(items, key=lambda item: item[2])
        change = _Change({}, [], set())
        state = self._state
        assert state is not None
        with self._lock, self._kv.begin(write=True) as txn:
            # Where the last slice stopped, if it worked on this very discard.
            place = json.loads(txn.get(META, b"purge") or b"[0, 0, 0, 0]")
            position = place[3] if place[:3] == [first, end, seq] else first
            last = position
            finished = True
            stale: list[int] = []
            for count, (key, blob) in enumerate(txn.scan(EXTENTS, KEY.pack(position))):
                (extent,) = KEY.unpack(key)
                if extent >= end:
                    break
                if count >= most:
                    finished = False
                    last = extent
                    break
                value = mapformat.decode(extent, blob)
                if self._filtered(extent, value) != value:
                    stale.append(extent)
            for extent in stale:
                old, value = self._raw(txn, extent)
                self._put_value(txn, extent, old, value, change)
            if finished:
                self._ranges.remove(first, end)
                txn.delete(META, b"purge")
            else:
                txn.put(META, b"purge", json.dumps([first, end, seq, last]).encode())
            self._settle(txn, change, state.seq)
            for page in change.pages:
                txn.put(DIRTY_PAGES, KEY.pack(page), b"")
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
        self._settle(txn, change, record.seq)

    def _settle(self, txn: Transaction, change: _Change, seq: int) -> None:
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
                if ref.n != INLINE:
                    change.dead.append(paths.container(ref))
            else:
                self.containers[ref] = count
                txn.put(CONTAINERS, key, _COUNT.pack(*count))
        for name in change.dead:
            txn.put(DEAD, KEY.pack(seq) + name.encode(), b"")

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def dirty_pages(self) -> list[int]:
        with self._kv.begin(write=False) as txn:
            return [KEY.unpack(key)[0] for key, _ in txn.scan(DIRTY_PAGES)]

    def page_entries(self, page: int) -> list[tuple[int, bytes]]:
        """(extent within the page, value bytes) of every mapped extent of a page."""
        first = page * PAGE_EXTENTS
        return [
            (extent - first, mapformat.encode(extent, value))
            for extent, value in self.extents(first, first + PAGE_EXTENTS)
        ]

    def page_refs(self) -> list[PageRef]:
        with self._kv.begin(write=False) as txn:
            return [PageRef(*json.loads(blob)) for _, blob in txn.scan(PAGES)]

    def snapshot_for_root(self) -> tuple[MapState, list[tuple[int, int, int]], list[ContainerUse], list[DeadObject]]:
        """State, unfinished discards, containers and dead objects, for a root. Call with no `apply` in between."""
        state = self._state
        assert state is not None
        ranges = [(first, end - first, seq) for first, end, seq in self._ranges.items()]
        uses = [ContainerUse(ref, *count) for ref, count in sorted(self.containers.items())]
        return state, ranges, uses, self.dead()

    def dead(self, before: int | None = None) -> list[DeadObject]:
        """Objects made unnecessary by a commit (numbered below `before`) and not yet deleted."""
        found = []
        with self._kv.begin(write=False) as txn:
            for key, _ in txn.scan(DEAD):
                (death,) = KEY.unpack(key[:8])
                if before is not None and death >= before:
                    break
                found.append(DeadObject(death, key[8:].decode()))
        return found

    def forget_dead(self, gone: Sequence[DeadObject]) -> None:
        """These objects have been deleted from the store."""
        with self._lock, self._kv.begin(write=True) as txn:
            for item in gone:
                txn.delete(DEAD, KEY.pack(item.death) + item.key.encode())

    def checkpointed(self, root: Root, clean_pages: Sequence[int], obsolete: Sequence[str]) -> None:
        """`root` is durable in the store; these pages are in it as they are now; no root from now on needs `obsolete`."""
        with self._lock, self._kv.begin(write=True) as txn:
            for key, _ in list(txn.scan(PAGES)):
                txn.delete(PAGES, key)
            for ref in root.pages:
                txn.put(PAGES, KEY.pack(ref.page), json.dumps(list(ref)).encode())
            for page in clean_pages:
                txn.delete(DIRTY_PAGES, KEY.pack(page))
            for name in obsolete:
                txn.put(DEAD, KEY.pack(root.seq) + name.encode(), b"")
            assert self._state is not None
            self._state = self._state._replace(root_seq=root.seq, root_epoch=root.epoch)
            self._write_state(txn, self._state)

    def load(self, root: Root, read_page: Callable[[PageRef], Iterator[tuple[int, bytes]]]) -> None:
        """Throw the map away and fill it from a root. A crash in the middle leaves a map without state, which the
        next start throws away again."""
        self._kv.clear()
        self._state = None
        with self._lock, self._kv.begin(write=True) as txn:
            for ref in root.pages:
                first = ref.page * PAGE_EXTENTS
                for index, blob in read_page(ref):
                    mapformat.decode(first + index, blob)
                    txn.put(EXTENTS, KEY.pack(first + index), blob)
                txn.put(PAGES, KEY.pack(ref.page), json.dumps(list(ref)).encode())
            members: dict[ContainerRef, set[int]] = {use.ref: set() for use in root.containers}
            for key, blob in txn.scan(EXTENTS):
                (extent,) = KEY.unpack(key)
                for patch in mapformat.decode(extent, blob).patches:
                    if patch.stored and patch.ref in members:
                        members[patch.ref].add(extent)
            for use in root.containers:
                count = ContainerCount(use.sectors, use.live, use.stored)
                txn.put(CONTAINERS, _REF.pack(*use.ref), _COUNT.pack(*count))
                joined = b"".join(KEY.pack(extent) for extent in sorted(members[use.ref]))
                txn.put(MEMBERS, _REF.pack(*use.ref), joined)
            for item in root.dead:
                txn.put(DEAD, KEY.pack(item.death) + item.key.encode(), b"")
            self._ranges = RangeSet()
            for first, extents, seq in root.ranges:
                self._ranges.put(first, first + extents, seq)
            self._write_ranges(txn)
            state = MapState(
                seq=root.seq,
                digest=root.digest,
                epoch=root.epoch,
                end=root.end,
                size_bytes=root.size_bytes,
                lineage=str(root.lineage),
                journal=str(root.journal),
                kind=int(root.note.get("kind", 1)),
                time_us=root.time_us,
                root_seq=root.seq,
                root_epoch=root.epoch,
            )
            self._write_state(txn, state)
        self._load_memory()

    def clear(self) -> None:
        """Throw the map away."""
        self._kv.clear()
        self._load_memory()

    def close(self) -> None:
        self._kv.close()

    def _write_state(self, txn: Transaction, state: MapState) -> None:
        document: dict[str, Any] = state._asdict() | {"digest": state.digest.hex()}
        txn.put(META, _STATE_KEY, json.dumps(document).encode())

    def _write_ranges(self, txn: Transaction) -> None:
        txn.put(META, _RANGES_KEY, json.dumps(self._ranges.items()).encode())

    def _load_memory(self) -> None:
        self._ranges = RangeSet()
        self.containers = {}
        self.extents_mapped = 0
        with self._kv.begin(write=False) as txn:
            blob = txn.get(META, _STATE_KEY)
            if blob is None:
                self._state = None
                return
            document = json.loads(blob)
            document["digest"] = bytes.fromhex(document["digest"])
            self._state = MapState(**document)
            for item in json.loads(txn.get(META, _RANGES_KEY) or b"[]"):
                self._ranges.put(*item)
            for key, value in txn.scan(CONTAINERS):
                self.containers[ContainerRef(*_REF.unpack(key))] = ContainerCount(*_COUNT.unpack(value))
            self.extents_mapped = sum(1 for _ in txn.scan(EXTENTS))
