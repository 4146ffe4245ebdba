"""What the bucket alone says: the log replayed from its first record, every object it names read and checked.

One rule: this reader shares the formats with the engine and nothing else but `ExtentMap.apply`, whose result it compares
with what the engine's own map holds.
"""

from uuid import UUID

import zstandard

from blockdev.engine.log import sizes_from_entries
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.format import ExtentValue
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.segments import extent_object, frames, paths, record, root
from blockdev.segments.cipher import Cipher
from blockdev.segments.record import NO_DIGEST, Parsed, RecordKind
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore
from tests.simulation.model import Violation, token_of


def read_log(store: ObjectStore, volume: UUID) -> list[Parsed]:
    """Every record from the first to the last. Raises Violation: a broken chain, epochs that fall, gaps in the journal."""
    found: list[Parsed] = []
    parent, epoch = NO_DIGEST, 0
    while True:
        key = paths.log(len(found) + 1)
        try:
            body = store.get(key)
        except NotFound:
            break
        parsed = record.decode(body.data, what=key, seq=len(found) + 1, volume=volume)
        this = parsed.record
        if this.parent != parent:
            raise Violation(f"{key} does not name its parent's digest")
        if this.epoch < epoch or (this.epoch == epoch) == (this.kind == RecordKind.FENCE):
            raise Violation(f"{key} has epoch {this.epoch} and kind {this.kind.name} after epoch {epoch}")
        if found and this.journal == found[-1].record.journal and this.begin != found[-1].record.end:
            raise Violation(
                f"{key} begins at journal position {this.begin}, the last one ended at {found[-1].record.end}"
            )
        found.append(parsed)
        parent, epoch = parsed.digest, this.epoch
    beyond = [info.key for info in store.list(paths.log_prefix())]
    if len(beyond) != len(found):
        raise Violation(f"the log has {len(found)} records in a row and {len(beyond)} in all")
    return found


def replay(volume: VolumeFile, records: list[Parsed]) -> ExtentMap:
    extent_map = ExtentMap(MemoryKeyValueStore(), volume.geometry)
    for parsed in records:
        _apply(extent_map, parsed)
    return extent_map


def _apply(extent_map: ExtentMap, parsed: Parsed) -> None:
    extent_map.apply(parsed.record, parsed.digest, parsed.inline_offset, sizes_from_entries(parsed))


def image(store: ObjectStore, volume: VolumeFile, extent_map: ExtentMap, cipher: Cipher | None = None) -> list[int]:
    """A token per sector, read from the objects the map names. Raises Violation for a dangling reference, CorruptFormat."""
    geometry = volume.geometry
    tokens = [0] * geometry.sector_count
    for extent, value in extent_map.extents():
        first = extent * geometry.sectors_per_extent
        for start, data in _contents(store, volume, extent, value, cipher):
            for index in range(len(data) // geometry.sector_bytes):
                lba = first + start + index
                sector = data[index * geometry.sector_bytes : (index + 1) * geometry.sector_bytes]
                if lba < geometry.sector_count:
                    tokens[lba] = token_of(sector, lba)
    return tokens


def _contents(
    store: ObjectStore, volume: VolumeFile, extent: int, value: ExtentValue, cipher: Cipher | None
) -> list[tuple[int, bytes | memoryview]]:
    geometry = volume.geometry
    found: list[tuple[int, bytes | memoryview]] = []

    def read(key: str, offset: int, length: int, gen: int) -> tuple[int, bytes]:
        try:
            blob = store.get_range(key, offset, length).data
        except (NotFound, Corrupt) as error:
            raise Violation(f"extent {extent} names bytes that are not there: {error}") from error
        return frames.decode(
            volume.identity.bytes,
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
    if not live.snapshot_for_root()[1] and counters != recount:
        raise Violation(f"{what}: containers count {counters}, the map has {recount}")


def check_roots(store: ObjectStore, volume: VolumeFile, records: list[Parsed], rebuilt: ExtentMap) -> int:
    """The newest root with the log's tail gives the same map as the whole log. How many roots there are."""
    keys = sorted(info.key for info in store.list(paths.root_prefix()))
    if not keys:
        return 0
    blob = store.get(keys[-1]).data
    found = root.decode(blob, what=keys[-1], volume=volume.identity)
    if found.seq > len(records) or records[found.seq - 1].digest != found.digest:
        raise Violation(f"{keys[-1]} is not of this log")

    def read_page(ref: root.PageRef) -> list[tuple[int, bytes]]:
        pack = paths.page_pack(ref.seq, ref.epoch, ref.n)
        try:
            page = store.get_range(pack, ref.offset, ref.length).data
        except (NotFound, Corrupt) as error:
            raise Violation(f"{keys[-1]} names a page that is not there: {error}") from error
        return list(root.decode_page(page, what=pack, offset=ref.offset))

    loaded = ExtentMap(MemoryKeyValueStore(), volume.geometry)
    loaded.load(found, lambda ref: iter(read_page(ref)))
    for parsed in records[found.seq :]:
        _apply(loaded, parsed)
    check_map(loaded, rebuilt, keys[-1])
    return len(keys)


def check(
    store: ObjectStore, volume: VolumeFile, cipher: Cipher | None = None
) -> tuple[list[Parsed], ExtentMap, list[int]]:
    """Log, map and image of the bucket as it stands. Raises Violation for anything that does not hold together."""
    try:
        records = read_log(store, volume.identity)
        rebuilt = replay(volume, records)
        tokens = image(store, volume, rebuilt, cipher)
        check_roots(store, volume, records, rebuilt)
    except CorruptFormat as error:
        raise Violation(f"the bucket does not parse: {error}") from error
    return records, rebuilt, tokens
