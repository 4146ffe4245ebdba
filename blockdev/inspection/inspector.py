"""The order of an inspection: the log and its roots, then every state that must be readable, then the content.

One rule: what is missing because a writer was faster is no finding. Objects that the map named when the log was read may
have been replaced and deleted since; whatever is found is looked up once more in the volume as it is by then.
"""

import asyncio
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import islice
from typing import TypeVar
from uuid import UUID

from crc32c import crc32c

from blockdev.engine.ancestry import Ancestry, VolumePart, with_ancestors
from blockdev.engine.attach import Attacher
from blockdev.engine.log import CommitLog
from blockdev.engine.ports import ThreadExecution
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.format import ExtentValue
from blockdev.inspection.books import Books
from blockdev.inspection.chain import WHOLE_ROOTS, Chain
from blockdev.inspection.deep import DeepReader
from blockdev.inspection.findings import LIVE, Defect, Inspection, Stage, as_defect
from blockdev.inspection.points import Point, States, point_of
from blockdev.keys import slots
from blockdev.offline import Once, ReadingStore, read_volume_file, settle, temporary_map
from blockdev.segments import extent_object, paths, reference, root
from blockdev.segments.cipher import Cipher
from blockdev.segments.paths import ContainerRef
from blockdev.segments.root import PageRef, Root
from blockdev.segments.volume_file import VolumeFile, cipher_of
from s3core.clock import SystemClock
from s3core.errors import Corrupt, NotFound
from s3core.limit import LimitedStore, Limits
from s3core.store import ObjectStore

A = TypeVar("A")
B = TypeVar("B")

READERS = 8
AHEAD = 12
"""Objects asked for at once; their bytes are in memory together."""
ATTEMPTS = 3
"""A volume that is being written to may lose roots while its log is read: it is then looked at again."""


def inspect_volume(
    store: ObjectStore,
    name: str,
    *,
    deep: bool,
    stage: Stage,
    unlock: Callable[[VolumeFile], bytes] | None = None,
    rate: float = 0.0,
) -> Inspection:
    """Inspect the volume whose own part `store` is. Raises NotFound when there is none, and store errors other than
    missing and damaged objects: what cannot be asked is no finding. `unlock` gives the data key, or raises KeyRefused; without
    it the frames of an encrypted volume are compared with their checksums, and not opened. `rate`: bytes a second that the
    content may be read with, 0 for as fast as it goes."""
    for _ in range(ATTEMPTS - 1):
        found = _look(store, name, deep, stage, unlock, rate)
        if not found.defects or not _forget_replaced(store, name, found):
            return found
    found = _look(store, name, deep, stage, unlock, rate)
    _forget_replaced(store, name, found)
    return found


def _look(
    store: ObjectStore,
    name: str,
    deep: bool,
    stage: Stage,
    unlock: Callable[[VolumeFile], bytes] | None,
    rate: float,
) -> Inspection:
    found = Inspection(deep)
    try:
        volume = read_volume_file(ReadingStore(store), name)
    except CorruptFormat as error:
        found.defects.append(Defect(paths.volume_file(), str(error), error.offset))
        return found
    cipher = cipher_of(volume, unlock(volume), os.urandom) if unlock is not None else None
    found.encrypted, found.decrypted = volume.encryption is not None, cipher is not None and deep
    found.sector_bytes = volume.geometry.sector_bytes
    with temporary_map(volume.geometry) as extent_map, closing(Books()) as books, ExitStack() as cleanup:
        readers = ThreadPoolExecutor(READERS, "check")
        cleanup.callback(readers.shutdown, wait=True, cancel_futures=True)
        _Inspector(store, volume, extent_map, books, readers, found, stage, cipher, rate).run()
    found.defects = _once(found.defects)
    return found


def _once(defects: list[Defect]) -> list[Defect]:
    """Each told once, with everything it hits."""
    best: dict[tuple[object, ...], Defect] = {}
    for defect in defects:
        what = defect.key, defect.said, defect.offset, defect.extent, defect.start
        if what not in best or len(best[what].hits) < len(defect.hits):
            best[what] = defect
    return list(best.values())


def _forget_replaced(store: ObjectStore, name: str, found: Inspection) -> bool:
    """Drop findings about objects that the volume, as it is by now, does not name any more. True: something was committed
    since, findings are left, and looking again may tell otherwise."""
    reading = ReadingStore(store)
    try:
        volume = read_volume_file(reading, name)
    except (NotFound, CorruptFormat):
        return False
    try:
        reading.head(paths.log(found.commit + 1))
        changed = True
    except NotFound:
        changed = False
    seen = ReadingStore(with_ancestors(store, volume))
    execution = ThreadExecution(READERS)
    try:
        with temporary_map(volume.geometry) as fresh:
            persistence = Once(execution)
            log = CommitLog(seen, volume.identity, execution, persistence)
            try:
                asyncio.run(Attacher(volume, seen, fresh, log, persistence).catch_up())
                still = [defect for defect in found.defects if _still(defect, fresh, seen)]
            except (NotFound, Corrupt, CorruptFormat):
                return changed
            # Old roots are also deleted with no record written since.
            changed = changed or len(still) < len(found.defects)
            found.defects = still
    finally:
        execution.close()
    return changed and bool(found.defects)


def _still(defect: Defect, fresh: ExtentMap, store: ObjectStore) -> bool:
    """Whether the fresh map still has what the defect is about."""
    if defect.key.startswith((paths.root_prefix(), paths.page_prefix())):
        listed = sorted(info.key for info in store.list(paths.root_prefix()))
        if defect.key in listed:
            return True
        keys = listed[-WHOLE_ROOTS:]
        keys += [paths.root(snapshot.seq, snapshot.epoch) for snapshot in fresh.history.snapshots]
        named = set(keys)
        for key in keys:
            try:
                made = root.decode(store.get(key).data, what=key)
            except (NotFound, Corrupt, CorruptFormat):
                continue
            named |= {paths.page_pack(ref.seq, ref.epoch, ref.n) for ref in (*made.pages, *made.runs)}
        return defect.key in named
    if defect.extent is None or fresh.state is None or set(defect.hits) - {LIVE}:
        return True
    _, (value,) = fresh.lookup([defect.extent])
    return names(value, defect.extent, defect.key)


def names(value: ExtentValue, extent: int, key: str) -> bool:
    """Whether the object `key` is needed for that value of the extent."""
    base = value.base
    if base is not None and paths.extent(extent, base.gen, base.epoch) == key:
        return True
    return any(patch.stored and paths.container(patch.ref) == key for patch in value.patches)


class _Inspector:
    def __init__(
        self,
        own: ObjectStore,
        volume: VolumeFile,
        extent_map: ExtentMap,
        books: Books,
        readers: ThreadPoolExecutor,
        found: Inspection,
        stage: Stage,
        cipher: Cipher | None,
        rate: float,
    ) -> None:
        self._whole = own.whole if isinstance(own, VolumePart) else None
        self._store = ReadingStore(with_ancestors(own, volume))
        self._volume = volume
        self._ancestry = Ancestry(volume)
        self._geometry = volume.geometry
        self._map = extent_map
        self._books = books
        self._readers = readers
        self._found = found
        self._stage = stage
        self._cipher = cipher
        self._rate = rate
        extent_map.read_page = self._read_page
        extent_map.own_from = self._ancestry.last + 1 if volume.origin else 0
        self._chain = Chain(self._store, volume, extent_map, self._read_page, self._ahead, found, stage)
        self._states = States(self._geometry, extent_map, [], found.defects.append)
        self._bases = 0

    def run(self) -> None:
        usable = self._chain.follow()
        self._list_objects()
        self._check_head()
        self._check_key_slots()
        self._check_origin()
        if not usable or self._map.state is None:
            return
        try:
            settle(self._map)
        except (CorruptFormat, NotFound, Corrupt) as error:
            self._found.defects.append(as_defect(paths.page_prefix(), error))
            return
        self._load_snapshots()
        self._check_references()
        self._check_states()
        self._count_unused()
        if self._found.deep:
            self._read_everything()

    def _defect(self, key: str, said: str, offset: int | None = None, extent: int | None = None) -> None:
        self._found.defects.append(Defect(key, said, offset, extent))

    def _ahead(self, function: Callable[[A], B], items: Iterable[A]) -> Iterator[B]:
        """Results of `function` in the order of `items`, some of them worked out in advance."""
        source = iter(items)
        waiting: list[Future[B]] = [self._readers.submit(function, item) for item in islice(source, AHEAD)]
        while waiting:
            result = waiting.pop(0).result()
            waiting += [self._readers.submit(function, item) for item in islice(source, 1)]
            yield result

    def _read_page(self, ref: PageRef) -> Iterator[tuple[int, bytes]]:
        key = paths.page_pack(ref.seq, ref.epoch, ref.n)
        blob = self._store.get_range(key, ref.offset, ref.length).data
        if crc32c(blob) != ref.crc:
            raise CorruptFormat("map page checksum does not hold", what=key, offset=ref.offset)
        return root.decode_page(blob, what=key, offset=ref.offset)

    # --- what is there ---------------------------------------------------------------------------------------------

    def _list_objects(self) -> None:
        self._books.add_objects(((info.key, info.size) for info in self._store.list()), own=True)
        for origin in self._volume.origin:
            assert self._whole is not None
            part = ReadingStore(VolumePart(self._whole, origin.name))
            self._books.add_objects(
                (
                    (info.key, info.size)
                    for info in part.list()
                    if (number := paths.number_of(info.key)) is not None and self._ancestry.owner(number) == origin
                ),
                own=False,
            )
        self._found.objects, self._found.object_bytes = self._books.totals()

    def _check_head(self) -> None:
        """The head is a hint; a wrong one costs an attachment nothing. It is told all the same."""
        key = paths.head()
        if self._books.size(key) is None:
            return
        try:
            document = json.loads(self._store.get(key).data)
            named, volume = str(document["root"]), str(document["volume"])
            own = paths.root(int(document["seq"]), int(document["epoch"]))
        except (ValueError, KeyError, TypeError, NotFound, Corrupt) as error:
            self._defect(key, f"does not parse: {error}")
            return
        if named != own or volume != str(self._volume.identity):
            self._defect(key, f"contradicts itself or is of another volume (root {named}, volume {volume})")
        elif self._books.size(named) is None:
            self._defect(key, f"names {named}, which is not there")

    def _check_key_slots(self) -> None:
        """Each parses and is this volume's, and an encrypted volume has one. Whether it opens only its secret can tell."""
        found = slots(self._store, self._volume)
        for item in found:
            if item.slot is None:
                key = paths.key_slot(item.id)
                self._defect(key, item.error.removeprefix(f"{key}: "))
        if self._volume.encryption is not None and not any(item.slot is not None for item in found):
            self._defect(paths.key_prefix(), "holds no slot that can be read: nobody can open the volume")

    # --- clones ----------------------------------------------------------------------------------------------------

    def _check_origin(self) -> None:
        """A clone's parent must know of it: its reference is what keeps the parent's objects."""
        if not self._volume.origin:
            return
        assert self._whole is not None
        origin = self._volume.origin[-1]
        key = paths.ref(self._volume.identity)
        parent = f"{paths.volume_prefix(origin.name)}{key}"
        try:
            seq = reference.decode(VolumePart(self._whole, origin.name).get(key).data, what=key).seq
        except NotFound:
            self._defect(parent, f"is missing: nothing keeps {origin.name} from deleting what this clone reads")
            return
        except (CorruptFormat, Corrupt) as error:
            self._defect(parent, f"does not parse: {error}")
            return
        if seq != origin.seq:
            self._defect(parent, f"keeps commit {seq}, and this clone reads commit {origin.seq}")

    def _check_references(self) -> None:
        """Clones of this volume, as it remembers them: the snapshot each reads must be there."""
        kept = {snapshot.seq for snapshot in self._map.history.snapshots}
        for info in self._store.list(paths.ref_prefix()):
            try:
                hold = reference.decode(self._store.get(info.key).data, what=info.key)
                child, seq, identity = hold.child, hold.seq, UUID(hold.uuid)
            except NotFound:
                continue
            except (CorruptFormat, Corrupt) as error:
                self._defect(info.key, str(error).removeprefix(f"{info.key}: "))
                continue
            if self._whole is not None and not _is_volume(self._whole, child, identity):
                self._found.remarks.append(
                    Defect(info.key, f"is kept for clone {child}, which is not there (being made, or never finished)")
                )
            elif seq not in kept:
                self._defect(info.key, f"clone {child} reads commit {seq}, and no snapshot keeps that")

    # --- states against the listing ----------------------------------------------------------------------------------

    def _load_snapshots(self) -> None:
        history = self._map.history
        points = self._states.points
        for snapshot in (*history.snapshots, *history.removed):
            firm = snapshot in history.snapshots
            key = paths.root(snapshot.seq, snapshot.epoch)
            try:
                made = root.decode(self._store.get(key).data, what=key, volume=self._volume.identity)
                if made.digest.hex() != snapshot.digest:
                    raise CorruptFormat(f"is not the root that snapshot {snapshot.name} was taken of", what=key)
            except (CorruptFormat, NotFound, Corrupt) as error:
                if firm or not isinstance(error, NotFound):
                    bad = as_defect(key, error)
                    self._found.defects.append(
                        replace(bad, start=0, length=snapshot.size_bytes, hits=(f"snapshot {snapshot.name}",))
                    )
                continue
            points.append(point_of(snapshot, made, firm=firm))
        self._found.snapshots = [snapshot.name for snapshot in history.snapshots]

    def _check_states(self) -> None:
        """Every entry of every state names an object that is there and large enough."""
        live: dict[ContainerRef, int] = {}
        pages = self._states.pages()
        whole = True
        with self._stage("map", len(pages)) as done:
            for page in pages:
                told = len(self._found.defects)
                bases = set()
                for extent, value, point in self._states.page(page):
                    self._check_value(extent, value, point)
                    if value.base is not None:
                        bases.add((extent, value.base))
                    if point is None:
                        self._found.extents += 1
                        for patch in value.patches:
                            if patch.stored:
                                live[patch.ref] = live.get(patch.ref, 0) + patch.sectors
                whole = whole and all(
                    not defect.length or defect.extent is not None for defect in self._found.defects[told:]
                )
                self._bases += len(bases)
                done(1)
        if not whole:
            return  # what a page that cannot be read holds is not counted
        counted = {ref: count.live for ref, count in self._map.containers.items()}
        for ref in sorted(set(live) | set(counted)):
            if live.get(ref, 0) != counted.get(ref, 0):
                self._defect(
                    paths.container(ref),
                    f"has {live.get(ref, 0)} live sectors by count, {counted.get(ref, 0)} by the books",
                )

    def _check_value(self, extent: int, value: ExtentValue, point: Point | None) -> None:
        geometry = self._geometry
        firm = point is None or point.firm
        if extent * geometry.extent_bytes >= self._size(point):
            self._defect("", f"extent {extent} lies beyond the volume's end", extent=extent)
        base = value.base
        used: list[str] = []
        if base is not None:
            key = paths.extent(extent, base.gen, base.epoch)
            used.append(key)
            if len(base.lengths) != geometry.frames_per_extent:
                self._defect(key, f"has {len(base.lengths)} frames in the map", extent=extent)
            elif firm:
                self._check_size(key, extent_object.frame_offsets(geometry, base.lengths)[-1], extent)
        at = 0
        for patch in value.patches:
            place = f"the patch of sectors {patch.start} to {patch.start + patch.sectors - 1}"
            key = paths.container(patch.ref) if patch.stored else ""
            if patch.start < at:
                self._defect(key, f"{place} overlaps the one before it", extent=extent)
            at = patch.start + patch.sectors
            if not patch.sectors or at > geometry.sectors_per_extent:
                self._defect(key, f"{place} does not lie inside the extent", extent=extent)
            if patch.stored:
                used.append(key)
                self._books.add_patch(extent, patch)
                if firm:
                    self._check_size(key, patch.offset + patch.stored, extent, patch.offset, patch.start, patch.sectors)
        self._books.use(used)

    def _size(self, point: Point | None) -> int:
        state = self._map.state
        assert state is not None
        return state.size_bytes if point is None else point.root.size_bytes

    def _check_size(
        self, key: str, needed: int, extent: int, offset: int | None = None, first: int = 0, sectors: int | None = None
    ) -> None:
        size = self._books.size(key)
        if size is not None and size >= needed:
            return
        said = "is missing, and the map names it" if size is None else f"has {size} bytes where the map needs {needed}"
        geometry = self._geometry
        self._found.defects.append(
            Defect(
                key,
                said,
                offset,
                extent,
                extent * geometry.extent_bytes + first * geometry.sector_bytes,
                geometry.extent_bytes if sectors is None else sectors * geometry.sector_bytes,
                self._states.hits(extent, lambda value: names(value, extent, key)),
            )
        )

    def _count_unused(self) -> None:
        needed: set[str] = set()
        dying = {item.key for item in self._map.dead()}
        newest, before = self._chain.newest, self._chain.before
        if newest is not None:
            needed |= _parts(newest)
            dying |= {item.key for item in newest.dead}
        for point in self._states.points:
            needed |= _parts(point.root)
            # Also what only an unfinished discard of that moment covers.
            needed |= {paths.container(use.ref) for use in point.root.containers}
        if before is not None:
            dying |= _parts(before)
        kept = (paths.log_prefix(), paths.key_prefix(), paths.ref_prefix(), paths.released_prefix())
        for key, size in self._books.unused():
            if key in needed or key in (paths.volume_file(), paths.head()) or key.startswith(kept):
                continue
            if key in dying:
                self._found.waiting += 1
                self._found.waiting_bytes += size
            else:
                self._found.orphans += 1
                self._found.orphan_bytes += size

    def _read_everything(self) -> None:
        store: ObjectStore = self._store
        if self._rate:
            store = ReadingStore(LimitedStore(store, Limits(bytes_per_s=self._rate), SystemClock()))
        reader = DeepReader(store, self._volume, self._states, self._books, self._cipher)
        with self._stage("objects", self._bases + self._books.containers_count()) as done:
            for item in self._ahead(reader.read_extent, self._states_bases()):
                self._collect(item, reader, done)
            for item in self._ahead(reader.read_container, self._books.containers()):
                self._collect(item, reader, done)

    def _states_bases(self) -> Iterator[tuple[int, ExtentValue]]:
        for page in self._states.pages():
            told = set()
            for extent, value, _ in self._states.page(page):
                if value.base is not None and (extent, value.base) not in told:
                    told.add((extent, value.base))
                    yield extent, value

    def _collect(self, item: tuple[list[Defect], int], reader: DeepReader, done: Callable[[int], None]) -> None:
        defects, count = item
        for defect in defects:
            # What is missing or too short was told when the states were compared with the listing.
            if self._books.size(defect.key) is not None:
                self._found.defects.append(reader.with_hits(defect))
        self._found.frames_read += count
        done(1)


def _parts(made: Root) -> set[str]:
    """The root and its packs."""
    return {paths.root(made.seq, made.epoch)} | {
        paths.page_pack(ref.seq, ref.epoch, ref.n) for ref in (*made.pages, *made.runs)
    }


def _is_volume(store: ObjectStore, name: str, identity: UUID) -> bool:
    """Whether that very volume is there; one that cannot be read may be it."""
    try:
        return read_volume_file(ReadingStore(VolumePart(store, name)), name).identity == identity
    except NotFound:
        return False
    except CorruptFormat:
        return True
