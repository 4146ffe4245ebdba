"""What the bucket alone says: the log replayed from its first record, every object it names read and checked, and every
snapshot through its root.

One rule: this reader shares the formats with the engine and nothing else but `ExtentMap.apply`, whose result it compares
with what the engine's own map holds.
"""

from collections.abc import Iterator

import zstandard

from blockdev.engine.ancestry import Ancestry
from blockdev.engine.log import sizes_from_entries
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap, ReadPage
from blockdev.extents.format import ExtentValue
from blockdev.extents.history import Snapshot
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.segments import extent_object, frames, paths, record, root
from blockdev.segments.cipher import Cipher
from blockdev.segments.record import NO_DIGEST, Parsed, RecordKind
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore
from tests.simulation.model import Violation, token_of


class History:
    """The log of one volume from its beginning, replayed as it grows. `past` also has what was deleted since."""

    def __init__(self, volume: VolumeFile, past: ObjectStore) -> None:
        self.volume = volume
        self._past = past
        self.first = 1
        self.records: dict[int, Parsed] = {}
        self.map = ExtentMap(MemoryKeyValueStore(), volume.geometry)
        self._parent, self._epoch = NO_DIGEST, 0
        if volume.origin:
            origin = volume.origin[-1]
            found = root.decode(past.get(origin.root).data, what=origin.root)
            self.map.load(found, page_reader(past), clone=(str(volume.lineage), origin.seq + 1))
            self.first, self._parent, self._epoch = origin.seq + 1, origin.digest, origin.epoch
        self.map.read_page = page_reader(past)

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1

    def advance(self) -> None:
        """Read on. Raises Violation: a broken chain, epochs that fall, gaps in the journal."""
        while True:
            seq = self.last + 1
            key = paths.log(seq)
            try:
                body = self._past.get(key)
            except NotFound:
                break
            parsed = record.decode(body.data, what=key, seq=seq, volume=self.volume.identity)
            this = parsed.record
            if this.parent != self._parent:
                raise Violation(f"{key} does not name its parent's digest")
            if this.epoch < self._epoch or (this.epoch == self._epoch) == (this.kind == RecordKind.FENCE):
                raise Violation(f"{key} has epoch {this.epoch} and kind {this.kind.name} after epoch {self._epoch}")
            before = self.records.get(seq - 1)
            if before is not None and this.journal == before.record.journal and this.begin != before.record.end:
                raise Violation(
                    f"{key} begins at journal position {this.begin}, the last one ended at {before.record.end}"
                )
            apply_record(self.map, parsed, self._past)
            self.records[seq] = parsed
            self._parent, self._epoch = parsed.digest, this.epoch

    def check_log(self, store: ObjectStore) -> None:
        """Every record of the bucket of now is one of these, and those behind the newest root are all there."""
        there = {info.key for info in store.list(paths.log_prefix())}
        unknown = there - {paths.log(seq) for seq in self.records}
        if unknown:
            raise Violation(f"records that do not belong to the log: {sorted(unknown)}")
        newest = max((paths.birth(info.key) for info in store.list(paths.root_prefix())), default=self.first - 1)
        for seq in range(newest + 1, self.last + 1):
            if paths.log(seq) not in there:
                raise Violation(f"{paths.log(seq)} is gone, and the newest root is of commit {newest}")


def page_reader(store: ObjectStore) -> ReadPage:
    def read_page(ref: root.PageRef) -> Iterator[tuple[int, bytes]]:
        pack = paths.page_pack(ref.seq, ref.epoch, ref.n)
        try:
            page = store.get_range(pack, ref.offset, ref.length).data
        except (NotFound, Corrupt) as error:
            raise Violation(f"a map page is not there: {error}") from error
        return root.decode_page(page, what=pack, offset=ref.offset)

    return read_page


def apply_record(extent_map: ExtentMap, parsed: Parsed, store: ObjectStore) -> None:
    target = parsed.record.note.get("rollback")
    rolled = None
    if target is not None:
        key = paths.root(target["seq"], target["epoch"])
        try:
            rolled = root.decode(store.get(key).data, what=key)
        except NotFound as error:
            raise Violation(f"record {parsed.record.seq} rolls back to a root that is not there") from error
    extent_map.apply(parsed.record, parsed.digest, parsed.inline_offset, sizes_from_entries(parsed), rolled)


def load_root(store: ObjectStore, volume: VolumeFile, key: str) -> ExtentMap:
    """The map as of a root, with the log behind it not applied."""
    try:
        found = root.decode(store.get(key).data, what=key, volume=volume.identity)
    except NotFound as error:
        raise Violation(f"{key} is not there") from error
    loaded = ExtentMap(MemoryKeyValueStore(), volume.geometry)
    loaded.own_from = volume.origin[-1].seq + 1 if volume.origin else 0
    loaded.load(found, page_reader(store))
    return loaded


Seen = dict[tuple[int, ExtentValue], list[int]]
"""What an extent's value stands for, for as long as nothing in the bucket changes."""


def snapshot_image(
    store: ObjectStore, volume: VolumeFile, snapshot: Snapshot, cipher: Cipher | None, seen: Seen
) -> list[int]:
    """What a snapshot holds, read by its root alone."""
    loaded = load_root(store, volume, paths.root(snapshot.seq, snapshot.epoch))
    assert loaded.state is not None
    if loaded.state.digest.hex() != snapshot.digest or loaded.state.size_bytes != snapshot.size_bytes:
        raise Violation(f"its root is of {loaded.state}")
    return image(store, volume, loaded, cipher, seen)


def image(
    store: ObjectStore, volume: VolumeFile, extent_map: ExtentMap, cipher: Cipher | None, seen: Seen
) -> list[int]:
    """A token per sector, read from the objects the map names. Raises Violation for a dangling reference, CorruptFormat."""
    geometry = volume.geometry
    assert extent_map.state is not None
    per = geometry.sectors_per_extent
    size = extent_map.state.size_bytes // geometry.sector_bytes
    tokens = [0] * size
    for extent, value in extent_map.extents():
        found = seen.get((extent, value))
        if found is None:
            found = seen[extent, value] = _extent_tokens(store, volume, extent, value, cipher)
        first = extent * per
        if first < size:
            tokens[first : first + per] = found[: size - first]
    return tokens


def _extent_tokens(
    store: ObjectStore, volume: VolumeFile, extent: int, value: ExtentValue, cipher: Cipher | None
) -> list[int]:
    geometry = volume.geometry
    tokens = [0] * geometry.sectors_per_extent
    first = extent * geometry.sectors_per_extent
    for start, data in _contents(store, volume, extent, value, cipher):
        for index in range(len(data) // geometry.sector_bytes):
            sector = data[index * geometry.sector_bytes : (index + 1) * geometry.sector_bytes]
            tokens[start + index] = token_of(sector, first + start + index)
    return tokens


def _contents(
    store: ObjectStore, volume: VolumeFile, extent: int, value: ExtentValue, cipher: Cipher | None
) -> list[tuple[int, bytes | memoryview]]:
    geometry = volume.geometry
    found: list[tuple[int, bytes | memoryview]] = []
    ancestry = Ancestry(volume)

    def read(key: str, offset: int, length: int, gen: int) -> tuple[int, bytes]:
        try:
            blob = store.get_range(key, offset, length).data
        except (NotFound, Corrupt) as error:
            raise Violation(f"extent {extent} names bytes that are not there: {error}") from error
        return frames.decode(
            ancestry.volume_of(gen),
            blob,
            sector_bytes=geometry.sector_bytes,
            extent=extent,
            gen=gen,
            what=key,
            offset=offset,
            decompressor=zstandard.ZstdDecompressor(),
            cipher=cipher,
        )

    if value.base is not None:
        key = paths.extent(extent, value.base.gen, value.base.epoch)
        offsets = extent_object.frame_offsets(geometry, value.base.lengths)
        for index, code in enumerate(value.base.lengths):
            if code:
                start, raw = read(key, offsets[index], offsets[index + 1] - offsets[index], value.base.gen)
                if start != index * geometry.sectors_per_frame:
                    raise Violation(f"{key}: frame {index} says it is at sector {start}")
                found.append((start, raw))
    end = 0
    for patch in value.patches:
        if patch.start < end:
            raise Violation(f"extent {extent}: patches overlap at sector {patch.start}")
        end = patch.start + patch.sectors
        if not patch.stored:
            found.append((patch.start, bytes(patch.sectors * geometry.sector_bytes)))
            continue
        start, raw = read(paths.container(patch.ref), patch.offset, patch.stored, patch.gen)
        low = (patch.start - start) * geometry.sector_bytes
        shown = memoryview(raw)[low : low + patch.sectors * geometry.sector_bytes] if low >= 0 else b""
        if len(shown) != patch.sectors * geometry.sector_bytes:
            raise Violation(f"extent {extent}: a patch does not hold sectors {patch.start} to {end}")
        found.append((patch.start, shown))
    return found


def check_map(live: ExtentMap, rebuilt: ExtentMap, what: str) -> None:
    """The two hold the same, counters included. `live` may be behind on discards it purges in slices."""
    if live.state is None or rebuilt.state is None:
        raise Violation(f"{what}: a map without state")
    if live.state.seq != rebuilt.state.seq or live.state.digest != rebuilt.state.digest:
        raise Violation(f"{what}: stands at commit {live.state.seq}, the log ends at {rebuilt.state.seq}")
    ours, theirs = dict(live.extents()), dict(rebuilt.extents())
    for extent in sorted(ours.keys() | theirs.keys()):
        if ours.get(extent) != theirs.get(extent):
            raise Violation(
                f"{what}: extent {extent} is {ours.get(extent)}, the log says {theirs.get(extent)}",
            )
    recount: dict[paths.ContainerRef, int] = {}
    for value in ours.values():
        for patch in value.patches:
            if patch.stored:
                recount[patch.ref] = recount.get(patch.ref, 0) + patch.sectors
    counters = {ref: count.live for ref, count in live.containers.items()}
    if not live.purging and counters != recount:
        raise Violation(f"{what}: containers count {counters}, the map has {recount}")
    if live.history != rebuilt.history:
        raise Violation(f"{what}: knows of {live.history}, the log tells of {rebuilt.history}")
    if live.state.size_bytes != rebuilt.state.size_bytes:
        raise Violation(f"{what}: has {live.state.size_bytes} bytes, the log says {rebuilt.state.size_bytes}")


def check_roots(store: ObjectStore, volume: VolumeFile, history: History) -> None:
    """The newest root with the log's tail, as the bucket has them now, gives the same map as the whole log."""
    keys = sorted(info.key for info in store.list(paths.root_prefix()))
    if keys:
        check_root(store, volume, history, keys[-1])


def check_root(store: ObjectStore, volume: VolumeFile, history: History, key: str) -> None:
    """A root with the log's tail, as the bucket has them now, gives the same map as the whole log."""
    loaded = load_root(store, volume, key)
    assert loaded.state is not None
    at = history.records.get(loaded.state.seq)
    if at is None or at.digest != loaded.state.digest:
        raise Violation(f"{key} is not of this log")
    for seq in range(loaded.state.seq + 1, history.last + 1):
        try:
            store.head(paths.log(seq))
        except NotFound as error:
            raise Violation(f"{paths.log(seq)} is gone, and {key} needs it") from error
        apply_record(loaded, history.records[seq], store)
    check_map(loaded, history.map, key)


def check(store: ObjectStore, history: History, cipher: Cipher | None = None, seen: Seen | None = None) -> list[int]:
    """Image of the bucket as it stands. Raises Violation for anything that does not hold together."""
    try:
        history.advance()
        history.check_log(store)
        if history.map.state is None:
            return []
        tokens = image(store, history.volume, history.map, cipher, {} if seen is None else seen)
        check_roots(store, history.volume, history)
    except CorruptFormat as error:
        raise Violation(f"the bucket does not parse: {error}") from error
    return tokens


def needed(extent_map: ExtentMap) -> set[str]:
    """Keys of the objects a map names, and of its pages."""
    keys = {paths.container(ref) for ref in extent_map.containers}
    for extent, value in extent_map.extents():
        if value.base is not None:
            keys.add(paths.extent(extent, value.base.gen, value.base.epoch))
    for refs in extent_map.page_places().values():
        keys |= {paths.page_pack(ref.seq, ref.epoch, ref.n) for ref in refs}
    return keys
