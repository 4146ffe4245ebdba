"""Every object of a volume with one bit flipped: what is read is right or an error that names the object, and `check
--deep` names it too.

Many objects are damaged at the same moment where they do not depend on each other (extent objects, segments, inline parts):
every read and every finding is then judged by the object it needs. Log records, roots, pages, head and vol.json come alone.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.collector import CollectorSettings
from blockdev.engine.destager import CommitSettings
from blockdev.engine.fetch import Fetcher
from blockdev.engine.local_objects import MemoryObjects
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.worker import WorkerSettings
from blockdev.errors import CorruptFormat
from blockdev.inspection.findings import Inspection
from blockdev.inspection.inspector import inspect_volume
from blockdev.offline import open_offline
from blockdev.segments import container, extent_object, frames, paths, record, root, volume_file
from blockdev.units import KIB
from s3core.errors import StoreError
from s3core.memory import MemoryStore
from s3core.prefixed import sub_store
from s3core.store import ObjectStore
from tests.blockdev.worker_bench import VOLUME, WorkerBench
from tests.blockdev.worker_bench import volume_file as bench_volume
from tests.flips.bits import STRETCH, FlippedStore, Tally, every_bit, flipped, one_bit_in

pytestmark = pytest.mark.slow

SIZE_BYTES = 512 * KIB
SETTINGS = WorkerSettings(
    commit=CommitSettings(commit_bytes=256 * KIB, inline_bytes_max=2 * KIB, segment_bytes=16 * KIB),
    checkpoint=CheckpointSettings(records=4),
    collector=CollectorSettings(wave_bytes=1 << 30, nearly_empty_bytes=0, slice_bytes=128 * KIB),
)
"""Nothing is folded or moved, so that patches and dead patches stay where they are."""


@dataclass
class Disk:
    """A volume in a store, what it holds, and its objects."""

    store: ObjectStore
    content: bytes = field(repr=False)
    objects: dict[str, bytes] = field(repr=False)

    def of(self, prefix: str) -> list[str]:
        return [key for key in self.objects if key.startswith(prefix)]


def _noise(rng: random.Random, length: int) -> bytes:
    """Most of it compresses, so that there are not too many bits to flip."""
    return rng.randbytes(length) if rng.random() < 0.1 and length < 4 * KIB else rng.randbytes(64) * (length // 64)


async def _make(directory: Path, *, detach: bool = True) -> Disk:
    store = MemoryStore()
    own = sub_store(store, paths.volume_prefix("v"))
    volume = bench_volume(SIZE_BYTES, extent_bytes=128 * KIB, frame_bytes=16 * KIB)
    own.put_if_absent(paths.volume_file(), volume_file.encode(volume))
    bench = WorkerBench(directory, own, volume=volume, settings=SETTINGS)
    await bench.attach()
    rng = random.Random(3)
    model = bytearray(SIZE_BYTES)

    def write(lba: int, data: bytes) -> None:
        bench.write(lba, data)
        model[lba * 512 : lba * 512 + len(data)] = data

    for turn in range(11):
        if turn in (0, 5):
            first = turn // 5
            write(first * 256, rng.randbytes(16 * KIB) + b"".join(_noise(rng, 4 * KIB) for _ in range(24)))
        elif turn == 3:
            bench.unmap(512, 64)
            model[512 * 512 : 576 * 512] = bytes(64 * 512)
        big = turn % 3 == 1
        for _ in range(6):
            lba = rng.randrange(SIZE_BYTES // 512 - 16)
            write(lba, _noise(rng, 512 * rng.choice([1, 2, 8] if not big else [2, 8, 12])))
        await bench.commit()
    await (bench.detach() if detach else bench.crash())
    return Disk(own, bytes(model), {info.key: own.get(info.key).data for info in own.list()})


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return asyncio.run(_make(tmp_path_factory.mktemp("host")))


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    """A volume whose host went down: its last records are in no root."""
    return asyncio.run(_make(tmp_path_factory.mktemp("host"), detach=False))


@contextmanager
def no_stage(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def look(disk: Disk, shown: Mapping[str, bytes], *, deep: bool = True) -> Inspection:
    return inspect_volume(FlippedStore(disk.store, shown), "v", deep=deep, stage=no_stage)


class Reader:
    """Reads of frames through a map that was built before the damage, as a running volume has it."""

    def __init__(self, disk: Disk, local: MemoryObjects | None = None) -> None:
        self.local = local if local is not None else MemoryObjects(0)
        self._disk = disk
        self._opened = open_offline(disk.store, "v")
        offline = self._opened.__enter__()
        self.map = offline.map
        self.geometry = offline.volume.geometry
        self.store = FlippedStore(disk.store)
        self._execution = ThreadExecution(1)
        self._fetcher = Fetcher(
            self.geometry, lambda gen: VOLUME.bytes, self.map, self.store, self.local, self._execution
        )
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        self._loop.close()
        self._execution.close()
        self._opened.__exit__(None, None, None)

    def read(self, shown: Mapping[str, bytes]) -> dict[str, list[Exception]]:
        """Read everything; AssertionError if a wrong byte comes. Errors by the key they name."""
        self.store.shown = shown
        size = self.geometry.frame_bytes
        wanted = list(range(SIZE_BYTES // size))
        _, contents = self._loop.run_until_complete(self._fetcher.frames(wanted))
        errors: dict[str, list[Exception]] = {}
        for frame in wanted:
            found = contents[frame]
            if found.error is not None:
                assert isinstance(found.error, CorruptFormat), found.error
                assert found.error.offset is not None
                errors.setdefault(found.error.what, []).append(found.error)
                continue
            data = bytes(size) if found.data is None else bytes(found.data)
            assert data == self._disk.content[frame * size : (frame + 1) * size], f"frame {frame}: wrong data"
        return errors


@pytest.fixture
def reader(disk: Disk) -> Iterator[Reader]:
    found = Reader(disk)
    yield found
    found.close()


def read_from_bucket(disk: Disk, shown: Mapping[str, bytes]) -> str:
    """Attach's own way from the bucket alone, and read all: "right", or the error's text. Never wrong data."""

    class Sink:
        def __init__(self) -> None:
            self.content = bytearray(SIZE_BYTES)

        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            self.content[offset : offset + len(data)] = data

    sink = Sink()
    try:
        with open_offline(FlippedStore(disk.store, shown), "v") as offline:
            offline.copy(sink)
    except (CorruptFormat, StoreError) as error:
        return str(error)
    assert sink.content == disk.content, f"wrong data with {list(shown)} damaged"
    return "right"


def test_the_volume_has_everything(disk: Disk) -> None:
    for prefix in ("vol.json", "head", "log/", "ext/", "seg/", "root/", "page/"):
        assert disk.of(prefix), prefix
    inline = [record.decode(disk.objects[key], what=key).inline_bytes for key in disk.of("log/")]
    assert any(inline), "no record with an inline part"
    assert not all(inline), "no record without one"
    geometry = volume_file.decode(disk.objects["vol.json"], what="vol.json").geometry
    codecs = set()
    for key in disk.of("ext/"):
        blob = disk.objects[key]
        lengths = extent_object.parse_header(geometry, blob, what=key)[4]
        for at, code in zip(extent_object.frame_offsets(geometry, lengths), lengths, strict=False):
            codecs |= {frames.parse_header(blob[at:], what=key).codec} if code else set()
    assert codecs == {frames.CODEC_RAW, frames.CODEC_ZSTD}
    assert look(disk, {}).defects == []
    assert read_from_bucket(disk, {}) == "right"


def payload_flips(disk: Disk) -> dict[str, list[int]]:
    """Bits of what holds content: all of a header's, one in each stretch of the rest."""
    found = {}
    for key in disk.of("ext/") + disk.of("seg/"):
        blob = disk.objects[key]
        header = min(len(blob), 96)
        found[key] = [*every_bit(header), *one_bit_in(STRETCH, len(blob) - header, header)]
    for key in disk.of("log/"):
        blob = disk.objects[key]
        at = record.decode(blob, what=key).inline_offset
        if at < len(blob):
            found[key] = [*every_bit(min(32, len(blob) - at), at), *one_bit_in(STRETCH, len(blob) - at, at)]
    return found


def test_payloads(disk: Disk, reader: Reader) -> None:
    """Extent objects, segments, inline patches: found by the read that needs it, or by the deep check at the least."""
    flips = payload_flips(disk)
    tally = Tally("extent objects, segments, inline parts")
    for turn in range(max(map(len, flips.values()))):
        now = {key: bits[turn] for key, bits in flips.items() if turn < len(bits)}
        shown = {key: flipped(disk.objects[key], bit) for key, bit in now.items()}
        errors = reader.read(shown)
        assert set(errors) <= set(now), "an error names an object that is whole"
        unread = {key: data for key, data in shown.items() if key not in errors}
        asked = shown if turn % 8 == 0 else unread
        told = {defect.key: defect for defect in look(disk, asked).defects} if asked else {}
        for key in asked:
            assert key in told, f"check --deep says nothing of {key}, bit {now[key]}"
            assert told[key].offset is not None or told[key].extent is not None, told[key]
        for key in now:
            tally.add("read fails" if key in errors else "no read needs it, check tells")
    print(tally)
    assert tally.flips > 2000


def test_every_bit_of_every_record(disk: Disk) -> None:
    """Header and index: the decoder, which everybody goes through, refuses each of them."""
    tally = Tally("log records, root, pages, decoded")
    for key in disk.of("log/"):
        blob = disk.objects[key]
        for bit in every_bit(record.decode(blob, what=key).inline_offset):
            with pytest.raises(CorruptFormat, match=key):
                record.decode(flipped(blob, bit), what=key, seq=int(key.removeprefix("log/"), 16), volume=VOLUME)
            tally.add("refused")
    for key in disk.of("root/"):
        for bit in every_bit(len(disk.objects[key])):
            with pytest.raises(CorruptFormat, match=key):
                root.decode(flipped(disk.objects[key], bit), what=key, volume=VOLUME)
            tally.add("refused")
    for key in disk.of("seg/"):
        for bit in every_bit(container.HEADER_BYTES):
            blob = flipped(disk.objects[key], bit)
            try:
                named = container.parse_header(blob, what=key)
            except CorruptFormat:
                tally.add("refused")
                continue
            assert named != container.parse_header(disk.objects[key], what=key), f"{key}: bit {bit} makes no difference"
            tally.add("names another segment")
    print(tally)
    assert tally.flips > 20000


@pytest.mark.parametrize("which", ["disk", "crashed"])
@pytest.mark.parametrize("prefix", ["log/", "root/", "page/"])
def test_attach_with_damaged_metadata(prefix: str, which: str, request: pytest.FixtureRequest) -> None:
    """From the bucket alone: right, by an older root and more of the log, or refused by an error that names the record.
    The check tells of it either way, unless the object belongs to a root that is not among the newest three."""
    disk: Disk = request.getfixturevalue(which)
    tally = Tally(f"{prefix} of the {which} volume, from the bucket alone")
    whole_roots = sorted(disk.of("root/"))[-3:]
    newest = {root.decode(disk.objects[key], what=key, volume=VOLUME).seq for key in whole_roots}
    for key in disk.of(prefix):
        blob = disk.objects[key]
        end = record.decode(blob, what=key).inline_offset if prefix == "log/" else len(blob)
        for bit in one_bit_in(STRETCH * 3 if prefix == "log/" else STRETCH, end):
            shown = {key: flipped(blob, bit)}
            outcome = read_from_bucket(disk, shown)
            if outcome != "right":
                assert key in outcome, outcome
            told = {defect.key for defect in look(disk, shown).defects}
            if key in told:
                tally.add("told, and read right" if outcome == "right" else "told, and refused")
            else:
                assert prefix == "page/", f"check --deep says nothing of {key}, bit {bit}"
                assert int(key.rsplit("/", 1)[1].split("-")[0], 16) not in newest, f"nothing of {key}, bit {bit}"
                tally.add("harmless: page of a root older than three")
    print(tally)
    assert tally.flips > 20
    if prefix == "log/":
        assert bool(tally.classes["told, and refused"]) == (which == "crashed"), "records behind the newest root"


def test_local_copies(disk: Disk) -> None:
    """A copy that does not hold is dropped, and the bucket asked: content is right whichever bit it is."""
    tally = Tally("local copies of objects")
    reader = Reader(disk, MemoryObjects(1 << 24))
    for key in disk.of("ext/") + disk.of("seg/") + disk.of("log/"):
        blob = disk.objects[key]
        for bit in one_bit_in(STRETCH * 4, len(blob)):
            reader.local.put(key, [flipped(blob, bit)])
            assert reader.read({}) == {}
            dropped = reader.local.get_range(key, 0, 1) is None
            tally.add("right: dropped and fetched" if dropped else "right: no read needs it")
            reader.local.drop(key)
    reader.close()
    print(tally)
    assert tally.flips > 500


def test_every_bit_of_the_head(disk: Disk) -> None:
    """A hint: content is right whatever it says, and the check tells of a head that is not as a writer makes it."""
    tally = Tally("head")
    blob = disk.objects["head"]
    for number, bit in enumerate(every_bit(len(blob))):
        shown = {"head": flipped(blob, bit)}
        if number % 5 == 0:
            assert read_from_bucket(disk, shown) == "right"
        assert [defect.key for defect in look(disk, shown, deep=False).defects] == ["head"], f"bit {bit}"
        tally.add("told, and read right")
    print(tally)
    assert tally.flips == 8 * len(blob)


def test_every_bit_of_the_volume_file(disk: Disk) -> None:
    tally = Tally("vol.json")
    blob = disk.objects["vol.json"]
    for bit in every_bit(len(blob)):
        with pytest.raises(CorruptFormat, match=r"vol\.json"):
            volume_file.decode(flipped(blob, bit), what="vol.json")
        tally.add("refused")
    print(tally)
    assert tally.flips == 8 * len(blob)
