"""`s3block check`: whether everything a volume's log says is true of what lies in the bucket.

One rule: it believes nothing it has not read. The log is followed from record 1, the map is built from it and compared with
the roots; every entry of the map is looked up in a listing of the bucket; deep, every frame is read and decoded. Nothing is
changed, and a defect does not end the inspection.

Only the newest three roots must be whole: objects of older ones may be on their way out (see `engine.checkpoint`).
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar
from uuid import UUID

import zstandard
from crc32c import crc32c

from blockdev.engine.ancestry import Ancestry, with_ancestors
from blockdev.engine.log import sizes_from_entries
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.format import Base, ExtentValue, Patch
from blockdev.keys import slots
from blockdev.offline import ReadingStore, read_volume_file, settle, temporary_map
from blockdev.segments import container, extent_object, frames, paths, record, root
from blockdev.segments.cipher import Cipher
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.record import NO_DIGEST, Parsed, RecordKind
from blockdev.segments.root import PageRef, Root
from blockdev.segments.volume_file import VolumeFile, cipher_of
from s3core.errors import Corrupt, NotFound, StoreError
from s3core.store import ObjectStore

A = TypeVar("A")
B = TypeVar("B")

WHOLE_ROOTS = 3
READERS = 8
AHEAD = 32
"""Objects asked for at once; their bytes are in memory together."""
ATTEMPTS = 3
"""A volume that is being written to may lose objects while it is looked at: it is then looked at again."""
DIFFERENCES_MAX = 5
"""Differences between a root and the log that are told one by one."""

Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""(what is done now, how many steps) -> to be told of steps done."""


@dataclass(frozen=True, slots=True)
class Defect:
    """Something that is not as it must be. `key` is the object's, within the volume; `offset` the place in it."""

    key: str
    said: str
    offset: int | None = None
    extent: int | None = None


@dataclass(slots=True)
class Inspection:
    """What was looked at, and what was found. Sizes in bytes."""

    deep: bool
    encrypted: bool = False
    decrypted: bool = False
    """Whether the content of encrypted frames was looked at, not just their checksums."""
    commit: int = 0
    records: int = 0
    roots: int = 0
    extents: int = 0
    frames_read: int = 0
    objects: int = 0
    object_bytes: int = 0
    waiting: int = 0
    """Objects that no commit needs any more and that will be deleted."""
    waiting_bytes: int = 0
    orphans: int = 0
    """Objects that nothing ever named: left by a crash, or on their way to the next commit. They cost money only."""
    orphan_bytes: int = 0
    defects: list[Defect] = field(default_factory=list)


def inspect_volume(
    store: ObjectStore,
    name: str,
    *,
    deep: bool,
    stage: Stage,
    unlock: Callable[[VolumeFile], bytes] | None = None,
) -> Inspection:
    """Inspect the volume whose own part `store` is. Raises NotFound when there is none, and store errors other than
    missing and damaged objects: what cannot be asked is no finding. `unlock` gives the data key, or raises KeyRefused; without
    it the frames of an encrypted volume are compared with their checksums, and not opened."""
    reading = ReadingStore(store)
    for _ in range(ATTEMPTS - 1):
        found = _look(store, name, deep, stage, unlock)
        # The next record was written meanwhile: what was missing may have been collected, not lost.
        if not found.defects or not _exists(reading, paths.log(found.commit + 1)):
            return found
    return _look(store, name, deep, stage, unlock)


def _exists(store: ObjectStore, key: str) -> bool:
    try:
        store.head(key)
    except NotFound:
        return False
    return True


def _look(
    store: ObjectStore, name: str, deep: bool, stage: Stage, unlock: Callable[[VolumeFile], bytes] | None
) -> Inspection:
    found = Inspection(deep)
    try:
        volume = read_volume_file(ReadingStore(store), name)
    except CorruptFormat as error:
        found.defects.append(Defect(paths.volume_file(), str(error), error.offset))
        return found
    cipher = cipher_of(volume, unlock(volume), os.urandom) if unlock is not None else None
    found.encrypted, found.decrypted = volume.encryption is not None, cipher is not None and deep
    reading = ReadingStore(with_ancestors(store, volume))
    with temporary_map(volume.geometry) as extent_map, ExitStack() as cleanup:
        readers = ThreadPoolExecutor(READERS, "check")
        cleanup.callback(readers.shutdown, wait=True, cancel_futures=True)
        _Inspector(reading, volume, extent_map, readers, found, stage, cipher).run()
    return found


def _number(key: str, prefix: str) -> int | None:
    """The number a log or root key names, None for a key of another shape."""
    text = key.removeprefix(prefix).partition("-")[0]
    try:
        return int(text, 16) if len(text) == 16 else None
    except ValueError:
        return None


class _Inspector:
    def __init__(
        self,
        store: ObjectStore,
        volume: VolumeFile,
        extent_map: ExtentMap,
        readers: ThreadPoolExecutor,
        found: Inspection,
        stage: Stage,
        cipher: Cipher | None,
    ) -> None:
        self._store = store
        self._volume = volume
        self._ancestry = Ancestry(volume)
        self._geometry = volume.geometry
        self._map = extent_map
        extent_map.read_page = self._read_page
        self._readers = readers
        self._found = found
        self._stage = stage
        self._cipher = cipher
        self._sizes: dict[str, int] = {}
        self._inherited: dict[str, int] = {}
        """Of ancestors' objects that were asked for one by one."""
        self._roots: dict[int, list[str]] = {}
        self._whole: set[str] = set()
        self._newest: Root | None = None
        self._packs: dict[str, set[str]] = {}

    def run(self) -> None:
        # Roots before records before everything else: each is written after what it rests on.
        root_keys = [info.key for info in self._store.list(paths.root_prefix())]
        log_keys = [info.key for info in self._store.list(paths.log_prefix())]
        self._whole = set(sorted(root_keys)[-WHOLE_ROOTS:])
        for key in root_keys:
            number = _number(key, paths.root_prefix())
            if number is None:
                self._defect(key, "is no name of a root")
            else:
                self._roots.setdefault(number, []).append(key)
        self._found.roots = len(root_keys)
        usable = self._follow_log(log_keys)
        self._sizes = {info.key: info.size for info in self._store.list()}
        self._found.objects = len(self._sizes)
        self._found.object_bytes = sum(self._sizes.values())
        self._check_head()
        self._check_key_slots()
        if not usable or self._map.state is None:
            return
        settle(self._map)
        used = self._check_map()
        self._count_unused(used)
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

    # --- the log -------------------------------------------------------------------------------------------------

    def _follow_log(self, keys: list[str]) -> bool:
        """Read every record, check the chain, build the map. False: it cannot be built up to the end."""
        numbers = []
        for key in keys:
            number = _number(key, paths.log_prefix())
            if number is None or key != paths.log(number) or number == 0:
                self._defect(key, "is no name of a commit record")
            else:
                numbers.append(number)
        self._found.records = len(numbers)
        self._found.commit = numbers[-1] if numbers else 0
        for number in sorted(set(self._roots) - set(numbers)):
            for key in self._roots[number]:
                self._defect(key, f"is of commit {number}, whose record is not there")
        before: Parsed | None = None
        expected = self._ancestry.last + 1
        building = self._begin_at_origin()
        ends: dict[UUID, int] = {}
        with self._stage("log", len(numbers)) as done:
            for number, parsed in zip(numbers, self._ahead(self._read_record, numbers), strict=True):
                done(1)
                if number != expected:
                    last = f" to {number - 1}" if number - 1 > expected else ""
                    self._defect(paths.log(expected), f"is missing: there is no commit {expected}{last}")
                    before, building = None, False
                expected = number + 1
                if isinstance(parsed, Defect):
                    self._found.defects.append(parsed)
                    before, building = None, False
                else:
                    self._check_chain(parsed, before, ends)
                    before = parsed
                    building = building and self._apply(parsed)
                for key in self._roots.get(number, ()):
                    building = self._check_root(key, number, before, building) or building
        if not building:
            self._defect(
                paths.log_prefix(), "the map cannot be built to the end: no usable root lies behind the damage"
            )
        return building

    def _begin_at_origin(self) -> bool:
        """A clone's map begins as its origin's checkpoint says. False: it cannot be had."""
        if not self._volume.origin:
            return True
        origin = self._volume.origin[-1]
        try:
            made = root.decode(self._store.get(origin.root).data, what=origin.root, volume=origin.identity)
            if made.digest != origin.digest:
                raise CorruptFormat("is not the checkpoint this volume was cloned from", what=origin.root)
            self._map.load(made, self._read_page, clone=(str(self._volume.lineage), origin.seq + 1))
        except (CorruptFormat, NotFound, Corrupt) as error:
            self._found.defects.append(_as_defect(origin.root, error))
            return False
        return True

    def _read_record(self, number: int) -> Parsed | Defect:
        key = paths.log(number)
        try:
            blob = self._store.get(key).data
            parsed = record.decode(blob, what=key, seq=number, volume=self._volume.identity)
        except (CorruptFormat, NotFound, Corrupt) as error:
            return _as_defect(key, error)
        inline = memoryview(blob)[parsed.inline_offset :]
        if len(inline) != parsed.inline_bytes:
            return Defect(
                key, f"has an inline part of {len(inline)} bytes instead of {parsed.inline_bytes}", parsed.inline_offset
            )
        if inline and hashlib.sha256(inline).digest() != record.HEADER.unpack_from(blob)[_INLINE_HASH]:
            # The chain holds nevertheless; which patches are hit is told by a deep check.
            self._defect(key, "the hash of the inline part does not hold", parsed.inline_offset)
        return parsed

    def _check_chain(self, parsed: Parsed, before: Parsed | None, ends: dict[UUID, int]) -> None:
        made = parsed.record
        key = paths.log(made.seq)
        if before is not None and made.parent != before.digest:
            self._defect(key, f"names a parent with another digest than record {before.record.seq} has")
        if made.seq == 1 and made.parent != NO_DIGEST:
            self._defect(key, "is the first and names a parent")
        origin = self._volume.origin[-1] if self._volume.origin else None
        if origin is not None and made.seq == origin.seq + 1 and made.parent != origin.digest:
            self._defect(key, f"does not go on from commit {origin.seq} of {origin.name}, its origin")
        if before is not None and made.epoch < before.record.epoch:
            self._defect(key, f"is of epoch {made.epoch} after one of epoch {before.record.epoch}")
        if before is not None and made.kind == RecordKind.DATA and made.epoch != before.record.epoch:
            self._defect(key, f"carries data of epoch {made.epoch}, which never attached")
        end = ends.get(made.journal)
        if before is not None and end is not None and made.begin != end:
            self._defect(key, f"covers the journal from {made.begin} on where the record before it ends at {end}")
        ends[made.journal] = made.end

    def _apply(self, parsed: Parsed) -> bool:
        try:
            rolled = self._rolled(parsed.record.note.get("rollback"))
            self._map.apply(parsed.record, parsed.digest, parsed.inline_offset, sizes_from_entries(parsed), rolled)
        except (CorruptFormat, NotFound, Corrupt) as error:
            self._defect(paths.log(parsed.record.seq), f"cannot be applied to the map: {error}")
            return False
        return True

    def _rolled(self, target: Mapping[str, Any] | None) -> Root | None:
        """The root that a record rolls back to."""
        if target is None:
            return None
        key = paths.root(int(target["seq"]), int(target["epoch"]))
        return root.decode(self._store.get(key).data, what=key)

    # --- roots ---------------------------------------------------------------------------------------------------

    def _check_root(self, key: str, number: int, parsed: Parsed | None, building: bool) -> bool:
        """Compare a root with the map built so far; where the log could not be followed, go on from the root.
        True: the map now stands on it."""
        whole = key in self._whole
        try:
            made = root.decode(self._store.get(key).data, what=key, volume=self._volume.identity)
        except (CorruptFormat, NotFound, Corrupt) as error:
            if whole or isinstance(error, CorruptFormat):
                self._found.defects.append(_as_defect(key, error))
            return False
        if paths.root(made.seq, made.epoch) != key:
            self._defect(key, f"holds the root of commit {made.seq}, epoch {made.epoch}")
            return False
        if parsed is not None and parsed.digest != made.digest:
            self._defect(key, f"names another digest than record {number} has")
            return False
        self._packs[key] = {paths.page_pack(ref.seq, ref.epoch, ref.n) for ref in (*made.pages, *made.runs)}
        if not whole and building:
            return False
        try:
            if not building:
                self._map.load(made, self._read_page)
                return True
            with temporary_map(self._geometry) as other:
                other.load(made, self._read_page)
                self._compare(key, made, other)
        except (CorruptFormat, NotFound, Corrupt) as error:
            if whole or isinstance(error, CorruptFormat):
                self._found.defects.append(_as_defect(key, error))
        return False

    def _read_page(self, ref: PageRef) -> Iterator[tuple[int, bytes]]:
        key = paths.page_pack(ref.seq, ref.epoch, ref.n)
        blob = self._store.get_range(key, ref.offset, ref.length).data
        if crc32c(blob) != ref.crc:
            raise CorruptFormat("map page checksum does not hold", what=key, offset=ref.offset)
        return root.decode_page(blob, what=key, offset=ref.offset)

    def _compare(self, key: str, made: Root, other: ExtentMap) -> None:
        settle(self._map)
        settle(other)
        state = self._map.state
        assert state is not None
        for word, theirs, ours in (
            ("end of the journal", made.end, state.end),
            ("size", made.size_bytes, state.size_bytes),
            ("lineage", str(made.lineage), state.lineage),
            ("journal", str(made.journal), state.journal),
        ):
            if theirs != ours:
                self._defect(key, f"says {word} {theirs} where the log says {ours}")
        differing = list(islice(_differences(self._map.extents(), other.extents()), DIFFERENCES_MAX + 1))
        for extent in differing[:DIFFERENCES_MAX]:
            self._defect(key, f"disagrees with the log about extent {extent}", extent=extent)
        if len(differing) > DIFFERENCES_MAX:
            self._defect(key, "disagrees with the log about further extents")
        # Stored bytes are an estimate that a replay makes anew; what is counted is compared.
        ours_counted = {ref: (count.sectors, count.live) for ref, count in self._map.containers.items()}
        theirs_counted = {ref: (count.sectors, count.live) for ref, count in other.containers.items()}
        for ref in sorted(set(ours_counted) | set(theirs_counted)):
            if ours_counted.get(ref) != theirs_counted.get(ref):
                self._defect(
                    key,
                    f"counts (sectors, live) {theirs_counted.get(ref)} in {paths.container(ref)} where the log makes it "
                    f"{ours_counted.get(ref)}",
                )

    def _check_head(self) -> None:
        """The head is a hint; a wrong one costs an attachment nothing. It is told all the same."""
        key = paths.head()
        if key not in self._sizes:
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
        elif named not in self._sizes:
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

    # --- the map against the listing -----------------------------------------------------------------------------

    def _check_map(self) -> set[str]:
        """Every live entry names an object that is there and large enough. Returns the keys in use."""
        used: set[str] = set()
        live: dict[ContainerRef, int] = {}
        with self._stage("map", self._map.extents_mapped) as done:
            for extent, value in self._map.extents():
                done(1)
                self._found.extents += 1
                self._check_value(extent, value, used)
                for patch in value.patches:
                    if patch.stored:
                        live[patch.ref] = live.get(patch.ref, 0) + patch.sectors
        counted = {ref: count.live for ref, count in self._map.containers.items()}
        for ref in sorted(set(live) | set(counted)):
            if live.get(ref, 0) != counted.get(ref, 0):
                self._defect(
                    paths.container(ref),
                    f"has {live.get(ref, 0)} live sectors by count, {counted.get(ref, 0)} by the books",
                )
        return used

    def _check_value(self, extent: int, value: ExtentValue, used: set[str]) -> None:
        geometry = self._geometry
        if extent * geometry.extent_bytes >= self._size():
            self._defect("", f"extent {extent} lies beyond the volume's end", extent=extent)
        base = value.base
        if base is not None:
            key = paths.extent(extent, base.gen, base.epoch)
            used.add(key)
            if len(base.lengths) != geometry.frames_per_extent:
                self._defect(key, f"has {len(base.lengths)} frames in the map", extent=extent)
            else:
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
                used.add(key)
                self._check_size(key, patch.offset + patch.stored, extent, patch.offset)

    def _size(self) -> int:
        state = self._map.state
        assert state is not None
        return state.size_bytes

    def _stored(self, key: str) -> int | None:
        """Size of an object, the volume's own or an ancestor's; None: it is not there."""
        size = self._sizes.get(key, self._inherited.get(key))
        number = paths.number_of(key)
        if size is None and number is not None and self._ancestry.owner(number) is not None:
            try:
                size = self._store.head(key).size
            except NotFound:
                return None
            self._inherited[key] = size
        return size

    def _check_size(self, key: str, needed: int, extent: int, offset: int | None = None) -> None:
        size = self._stored(key)
        if size is None:
            self._defect(key, "is missing, and the map names it", offset, extent)
        elif size < needed:
            self._defect(key, f"has {size} bytes where the map needs {needed}", offset, extent)

    def _count_unused(self, used: set[str]) -> None:
        roots = sorted(self._packs)
        if roots:
            used |= {roots[-1]} | self._packs[roots[-1]]
        dying = {item.key for item in self._map.dead()}
        for key in roots[:-1]:
            dying |= {key} | self._packs[key]
        for key, size in self._sizes.items():
            if (
                key in used
                or key in (paths.volume_file(), paths.head())
                or key.startswith((paths.log_prefix(), paths.key_prefix(), paths.ref_prefix(), "released/"))
            ):
                continue
            if key in dying:
                self._found.waiting += 1
                self._found.waiting_bytes += size
            else:
                self._found.orphans += 1
                self._found.orphan_bytes += size

    # --- deep ----------------------------------------------------------------------------------------------------

    def _read_everything(self) -> None:
        items: dict[ContainerRef, list[tuple[int, Patch]]] = {}
        for extent, value in self._map.extents():
            for patch in value.patches:
                if patch.stored:
                    items.setdefault(patch.ref, []).append((extent, patch))
        bases = sum(1 for _, value in self._map.extents() if value.base is not None)
        with self._stage("objects", bases + len(items)) as done:
            for defects, count in self._ahead(self._read_extent, self._bases()):
                self._collect(defects, count, done)
            for defects, count in self._ahead(self._read_container, sorted(items.items())):
                self._collect(defects, count, done)

    def _bases(self) -> Iterator[tuple[int, Base]]:
        for extent, value in self._map.extents():
            if value.base is not None:
                yield extent, value.base

    def _collect(self, defects: list[Defect], count: int, done: Callable[[int], None]) -> None:
        # What is missing or too short was told when the map was compared with the listing.
        self._found.defects += [
            defect for defect in defects if defect.key in self._sizes or defect.key in self._inherited
        ]
        self._found.frames_read += count
        done(1)

    def _read_extent(self, item: tuple[int, Base]) -> tuple[list[Defect], int]:
        extent, base = item
        key = paths.extent(extent, base.gen, base.epoch)
        geometry = self._geometry
        defects: list[Defect] = []
        try:
            blob = self._store.get(key).data
            head = extent_object.parse_header(geometry, blob, what=key)
        except (CorruptFormat, NotFound, Corrupt) as error:
            return [_as_defect(key, error, extent)], 0
        if head != (self._ancestry.volume_of(base.gen), extent, base.gen, base.epoch, base.lengths):
            return [Defect(key, "is the object of another place, generation or volume", 0, extent)], 0
        offsets = extent_object.frame_offsets(geometry, base.lengths)
        count = 0
        for index, code in enumerate(base.lengths):
            if not code:
                continue
            count += 1
            first = index * geometry.sectors_per_frame
            part = memoryview(blob)[offsets[index] : offsets[index + 1]]
            try:
                start, sectors = self._decode(part, extent, base.gen, key, offsets[index])
                if start != first or sectors != geometry.sectors_per_frame:
                    raise CorruptFormat("frame is not the one that belongs here", what=key, offset=offsets[index])
            except CorruptFormat as error:
                defects.append(_as_defect(key, error, extent))
        if not defects and extent_object.digest([blob]) != base.digest:
            defects.append(Defect(key, "its digest is not the one in the map", extent=extent))
        return defects, count

    def _read_container(self, item: tuple[ContainerRef, list[tuple[int, Patch]]]) -> tuple[list[Defect], int]:
        """Every frame in the container, dead ones too, and whether the live ones are where the map says."""
        ref, live = item
        key = paths.container(ref)
        try:
            blob = self._store.get(key).data
            if ref.n == INLINE:
                at = record.decode(blob, what=key).inline_offset
            else:
                at = container.HEADER_BYTES
                if container.parse_header(blob, what=key) != (self._ancestry.volume_of(ref.gen), *ref):
                    return [Defect(key, "is the segment of another commit or volume", 0)], 0
        except (CorruptFormat, NotFound, Corrupt) as error:
            return [_as_defect(key, error)], 0
        defects: dict[int, Defect] = {}
        good: dict[int, tuple[int, int, int, int]] = {}
        try:
            while at < len(blob):
                head = frames.parse_header(memoryview(blob)[at:], what=key, offset=at)
                following = at + frames.HEADER_BYTES + head.stored
                try:
                    start, sectors = self._decode(memoryview(blob)[at:following], head.extent, head.gen, key, at)
                    good[at] = (head.extent, head.gen, start, start + sectors)
                except CorruptFormat as error:
                    defects[at] = _as_defect(key, error, head.extent)
                at = following
        except CorruptFormat as error:
            # Behind a damaged header nobody knows where the next frame begins; the map does, below.
            defects[at] = _as_defect(key, error)
        for extent, patch in live:
            if patch.offset in defects:
                continue
            found = good.get(patch.offset)
            if found is None:
                found = self._decode_live(key, blob, extent, patch, defects)
            if found is None:
                continue
            if found[:2] != (extent, patch.gen) or found[2] > patch.start or found[3] < patch.start + patch.sectors:
                defects[patch.offset] = Defect(
                    key,
                    f"a frame of extent {found[0]}, generation {found[1]} where the map wants another",
                    patch.offset,
                    extent,
                )
            good[patch.offset] = found
        return [defects[offset] for offset in sorted(defects)], len(good)

    def _decode_live(
        self, key: str, blob: bytes, extent: int, patch: Patch, defects: dict[int, Defect]
    ) -> tuple[int, int, int, int] | None:
        part = memoryview(blob)[patch.offset : patch.offset + patch.stored]
        try:
            start, sectors = self._decode(part, extent, patch.gen, key, patch.offset)
        except CorruptFormat as error:
            defects[patch.offset] = _as_defect(key, error, extent)
            return None
        return extent, patch.gen, start, start + sectors

    def _decode(self, part: memoryview, extent: int, gen: int, key: str, offset: int) -> tuple[int, int]:
        """(first sector within the extent, sectors) of a frame that is as it must be."""
        volume = self._ancestry.volume_of(gen)
        if self._found.encrypted and not self._found.decrypted:
            header = frames.verify(volume, part, extent=extent, gen=gen, what=key, offset=offset)
            frames.require_sealed(header, True, what=key, offset=offset)
            return header.start, header.sectors
        start, raw = frames.decode(
            volume,
            part,
            sector_bytes=self._geometry.sector_bytes,
            extent=extent,
            gen=gen,
            what=key,
            offset=offset,
            decompressor=zstandard.ZstdDecompressor(),
            cipher=self._cipher,
        )
        return start, len(raw) // self._geometry.sector_bytes


_INLINE_HASH = 17
"""Place of inline_hash among the fields of a record's header."""
_VOLUME_PREFIX = re.compile(rf"^{re.escape(paths.ROOT_PREFIX)}[^/]+/")


def _as_defect(key: str, error: CorruptFormat | StoreError, extent: int | None = None) -> Defect:
    """An error as a finding: about the object it names, else `key`."""
    named = (error.what if isinstance(error, CorruptFormat) else error.key) or key
    # Stores name the whole key; here it is told as seen from the volume.
    own = _VOLUME_PREFIX.sub("", named)
    if isinstance(error, NotFound):
        return Defect(own, "is missing", extent=extent)
    offset = error.offset if isinstance(error, CorruptFormat | Corrupt) else None
    said = str(error).removeprefix(f"{named}: ").removesuffix(f" at offset {offset}")
    return Defect(own, said, offset, extent)


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
