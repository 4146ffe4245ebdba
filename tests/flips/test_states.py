"""An encrypted volume with a snapshot and a clone, every stored thing with one bit flipped: objects, roots, pages and deltas
that only the snapshot needs, key slots, references of clones, words of stopped writers; and the map's pages when they are
first touched by a volume that runs.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from blockdev import keys
from blockdev.engine import link
from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.collector import CollectorSettings
from blockdev.engine.destager import CommitSettings
from blockdev.engine.worker import WorkerSettings
from blockdev.errors import CorruptFormat, KeyRefused
from blockdev.inspection.inspector import inspect_volume
from blockdev.offline import open_offline
from blockdev.place import volume_store
from blockdev.references import Reference, put, references
from blockdev.segments import key_slot, paths, reference, root, volume_file
from blockdev.segments.key_slot import Secret
from blockdev.segments.volume_file import VolumeFile, cipher_of
from blockdev.units import KIB
from s3core.errors import StoreError
from s3core.memory import MemoryStore
from s3core.store import Body, ObjectStore
from tests.blockdev.worker_bench import VOLUME, WorkerBench
from tests.blockdev.worker_bench import volume_file as bench_volume
from tests.flips.bits import STRETCH, FlippedStore, Tally, every_bit, flipped, one_bit_in

pytestmark = pytest.mark.slow

SIZE_BYTES = 384 * KIB
SECRET = Secret("key", bytes(range(32)))
SETTINGS = WorkerSettings(
    commit=CommitSettings(commit_bytes=256 * KIB, inline_bytes_max=2 * KIB, segment_bytes=16 * KIB),
    checkpoint=CheckpointSettings(records=100),
    collector=CollectorSettings(wave_bytes=1 << 30, nearly_empty_bytes=1 << 40, slice_bytes=128 * KIB),
)
SNAPSHOT = "before"
CHILD = UUID(int=77)


def unlock(own: ObjectStore) -> Callable[[VolumeFile], bytes]:
    return lambda volume: keys.unlock(own, volume, SECRET)


@dataclass
class Disk:
    """The volume's part of a store, its content now and at the snapshot, its objects, the snapshot's commit."""

    whole: ObjectStore
    store: ObjectStore
    now: bytes = field(repr=False)
    before: bytes = field(repr=False)
    seq: int
    objects: dict[str, bytes] = field(repr=False)

    def of(self, prefix: str) -> list[str]:
        return [key for key in self.objects if key.startswith(prefix)]


async def _operate(bench: WorkerBench, do: str, **arguments: object) -> dict[str, object]:
    head = bench.journal.head
    bench.worker.receive(link.Appended(head))
    id = len(bench.messages) + 1000
    bench.worker.receive(link.Operate(id, do, arguments))
    answer = await bench.wait(link.Operated, lambda m: m.id == id)
    assert isinstance(answer, link.Operated)
    assert not answer.error, answer
    return answer.result


async def _make(directory: Path) -> Disk:
    whole = MemoryStore()
    own = volume_store(whole, "v")
    volume, slot, data_key = keys.sealed(
        bench_volume(SIZE_BYTES, extent_bytes=128 * KIB, frame_bytes=16 * KIB), SECRET, random=os.urandom
    )
    assert slot is not None
    own.put_if_absent(paths.volume_file(), volume_file.encode(volume))
    keys.add_slot(own, slot, SECRET, data_key)
    bench = WorkerBench(
        directory, own, volume=volume, settings=SETTINGS, cipher=cipher_of(volume, data_key, os.urandom)
    )
    await bench.attach()
    rng = random.Random(9)
    model = bytearray(SIZE_BYTES)

    def write(lba: int, data: bytes) -> None:
        bench.write(lba, data)
        model[lba * 512 : lba * 512 + len(data)] = data

    async def some(count: int) -> None:
        for _ in range(count):
            write(rng.randrange(SIZE_BYTES // 512 - 16), rng.randbytes(64) * (8 * rng.choice([1, 2, 8, 12])))
        write(rng.randrange(8, SIZE_BYTES // 512 - 8), rng.randbytes(2560))  # more than goes into a record
        await bench.commit()

    write(0, rng.randbytes(64) * (SIZE_BYTES // 64))
    await bench.commit()
    await _operate(bench, "checkpoint")
    await some(3)
    write(8, rng.randbytes(512))
    await bench.commit()
    write(64, rng.randbytes(2560))  # a segment that nothing but the first extent needs
    await bench.commit()
    before = bytes(model)
    found = await _operate(bench, "snapshot", name=SNAPSHOT)
    seq = found["seq"]
    assert isinstance(seq, int)
    # All of the first extent and more: what the snapshot needs of it nobody else does.
    write(0, rng.randbytes(64) * (128 * KIB // 64))
    for _ in range(3):
        await some(4)
        await _operate(bench, "checkpoint")
    put(own, Reference("child", str(CHILD), SNAPSHOT, seq))
    own.put(paths.released(1), b'{"epoch": 1, "time": 1700000000.0}\n')
    await bench.detach()
    return Disk(whole, own, bytes(model), before, seq, {info.key: own.get(info.key).data for info in own.list()})


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Disk:
    return asyncio.run(_make(tmp_path_factory.mktemp("host")))


@contextmanager
def no_stage(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def told(disk: Disk, shown: Mapping[str, bytes]) -> set[str]:
    """Keys that `check --deep` names."""
    found = inspect_volume(
        FlippedStore(disk.store, shown), "v", deep=True, stage=no_stage, unlock=unlock(FlippedStore(disk.store, shown))
    )
    return {defect.key for defect in found.defects}


def exported(disk: Disk, shown: Mapping[str, bytes], commit: int | None) -> str:
    """All of a state from the bucket alone: "right", or the error's text. Never wrong data."""

    class Sink:
        def __init__(self) -> None:
            self.content = bytearray(SIZE_BYTES)

        def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
            self.content[offset : offset + len(data)] = data

    sink, store = Sink(), FlippedStore(disk.store, shown)
    try:
        with open_offline(store, "v", commit=commit, unlock=unlock(store)) as offline:
            offline.copy(sink)
    except (CorruptFormat, KeyRefused, StoreError) as error:
        return str(error)
    assert sink.content == (disk.now if commit is None else disk.before), f"wrong data with {list(shown)} damaged"
    return "right"


def test_the_volume_has_everything(disk: Disk) -> None:
    for prefix in ("vol.json", "head", "log/", "ext/", "seg/", "root/", "page/", "key/", "ref/", "released/"):
        assert disk.of(prefix), prefix
    assert any(root.decode(disk.objects[key], what=key, volume=VOLUME).runs for key in disk.of("root/")), "no delta"
    assert disk.now != disk.before
    assert not told(disk, {})
    assert exported(disk, {}, None) == exported(disk, {}, disk.seq) == "right"


def test_everything_that_content_needs(disk: Disk) -> None:
    """Each object alone: both states are right or refused by a name, and what only one needs does not hurt the other."""
    tally = Tally("objects of an encrypted volume and its snapshot")
    hurt: dict[str, set[str]] = {"now": set(), "snapshot": set()}
    for prefix, stretch in (("ext/", 512), ("seg/", 256), ("log/", 48), ("root/", 32), ("page/", 16)):
        for key in disk.of(prefix):
            blob = disk.objects[key]
            for bit in one_bit_in(stretch, len(blob)):
                shown = {key: flipped(blob, bit)}
                outcomes = {"now": exported(disk, shown, None), "snapshot": exported(disk, shown, disk.seq)}
                for state, outcome in outcomes.items():
                    if outcome != "right":
                        assert key in outcome, f"{key}, bit {bit}: {outcome}"
                        hurt[state].add(key)
                said = key in told(disk, shown)
                if set(outcomes.values()) != {"right"}:
                    assert said, f"check --deep says nothing of {key}, bit {bit}: {outcomes}"
                both = [state for state, outcome in outcomes.items() if outcome != "right"]
                tally.add(f"{' and '.join(both) or 'nothing'} refused, {'told' if said else 'not told'}")
    print(tally)
    assert tally.flips > 250
    for prefix in ("ext/", "seg/"):
        assert any(key.startswith(prefix) for key in hurt["snapshot"] - hurt["now"]), f"{prefix} of the snapshot alone"


def test_every_bit_of_a_key_slot(disk: Disk) -> None:
    """Refused, or the same key comes out of it. A slot that does not open is told by its name, or opens for nobody."""
    tally = Tally("key/")
    (key,) = disk.of("key/")
    blob = disk.objects[key]
    volume = volume_file.decode(disk.objects["vol.json"], what="vol.json")
    whole = keys.unlock(disk.store, volume, SECRET)
    for bit in every_bit(len(blob)):
        store = FlippedStore(disk.store, {key: flipped(blob, bit)})
        try:
            assert keys.unlock(store, volume, SECRET) == whole
        except (KeyRefused, CorruptFormat):
            tally.add("refused")
        else:
            tally.add("harmless: words for people")
    print(tally)
    assert tally.classes["refused"] > tally.flips / 2


def test_every_bit_of_a_slot_of_a_passphrase() -> None:
    """Decoded only: each try of a passphrase takes its time by intent. What parses differs from what was written."""
    made = key_slot.wrap(
        bytes(32), Secret("passphrase", b"words"), volume=VOLUME, random=os.urandom, created=0.0, creator="test"
    )
    blob = key_slot.encode(made)
    tally = Tally("key/ of a passphrase, decoded")
    for bit in every_bit(len(blob)):
        try:
            found = key_slot.decode(flipped(blob, bit), what="key")
        except CorruptFormat:
            tally.add("refused")
        else:
            assert found != made or flipped(blob, bit).split() == blob.split(), f"bit {bit}"
            tally.add("another slot: its secret does not open it")
    print(tally)
    assert tally.flips == 8 * len(blob)


def test_every_bit_of_a_reference(disk: Disk) -> None:
    """It is never taken for one of another snapshot, or of a clone that is not there."""
    tally = Tally("ref/")
    (key,) = disk.of("ref/")
    blob = disk.objects[key]
    held = reference.decode(blob, what=key)
    for bit in every_bit(len(blob)):
        shown = {key: flipped(blob, bit)}
        try:
            found = reference.decode(shown[key], what=key)
        except CorruptFormat:
            tally.add("refused by name, pins everything")
            if bit % 97 == 0:
                assert told(disk, shown) == {key}
        else:
            assert found == held, f"bit {bit}"
            tally.add("harmless: white space")
    print(tally)
    assert tally.classes["refused by name, pins everything"] > tally.flips * 0.8


def test_a_damaged_reference_lets_nothing_go(disk: Disk) -> None:
    (key,) = disk.of("ref/")
    store = MemoryStore()
    own = volume_store(store, "v")
    for name, data in disk.objects.items():
        own.put(name, data)
    own.put(key, disk.objects[key].replace(str(disk.seq).encode(), str(disk.seq + 1).encode()))
    with pytest.raises(CorruptFormat, match=key):
        references(store, "v", time.time())


def test_every_bit_of_a_word_of_a_stopped_writer(disk: Disk) -> None:
    """That it is there is all that it says."""
    tally = Tally("released/")
    (key,) = disk.of("released/")
    blob = disk.objects[key]
    for number, bit in enumerate(every_bit(len(blob))):
        if number % 40 == 0:
            shown = {key: flipped(blob, bit)}
            assert exported(disk, shown, None) == "right"
            assert not told(disk, shown)
            tally.add("harmless: nobody reads it")
    assert tally.flips > 5


# --- pages that are touched while the volume runs ----------------------------------------------------------------------

FAR = 1024 * 128 * KIB
"""Where the second page of the map begins, in bytes."""


class PageDamage(FlippedStore):
    """Flips of map pages, each shown `times` times."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.times = 0

    def get_range(self, key: str, offset: int, length: int) -> Body:
        if key in self.shown:
            if not self.times:
                return self.inner.get_range(key, offset, length)
            self.times -= 1
        return super().get_range(key, offset, length)


def test_a_map_page_that_is_damaged_when_it_is_first_touched(tmp_path: Path) -> None:
    """Reads of its extents end with key and offset, others do not notice; once is the way to the store; and when the page
    is whole again so are the reads."""

    async def main() -> None:
        whole = MemoryStore()
        settings = WorkerSettings(checkpoint=CheckpointSettings(records=100))
        volume = bench_volume(2 * FAR, extent_bytes=128 * KIB, frame_bytes=16 * KIB)
        bench = WorkerBench(tmp_path / "one", whole, volume=volume, settings=settings)
        await bench.attach()
        contents = {lba: random.Random(lba).randbytes(64) * 256 for lba in (0, 512, FAR // 512, FAR // 512 + 512)}
        for lba, data in contents.items():
            bench.write(lba, data)
        await bench.detach()
        made = [root.decode(whole.get(info.key).data, what=info.key) for info in whole.list("root/")]
        place = {ref.page: ref for ref in max(made, key=lambda item: item.seq).pages}
        assert sorted(place) == [0, 1]
        tally = Tally("map pages, first touched by a volume that runs")
        target = place[1]
        key = paths.page_pack(target.seq, target.epoch, target.n)
        for number, bit in enumerate(one_bit_in(STRETCH, target.length, target.offset)):
            store = PageDamage(whole)
            (tmp_path / str(number)).mkdir()
            again = WorkerBench(tmp_path / str(number), store, volume=volume, settings=settings)
            await again.attach()
            store.shown, store.times = {key: flipped(whole.get(key).data, bit)}, 1 << 30
            for lba, data in contents.items():
                if lba < FAR // 512:
                    assert await again.read(lba, len(data) // 512) == data
                    continue
                again.worker.receive(link.Fetch(7000 + lba, (link.FetchFrame(lba // 32, 0),)))
                wanted = 7000 + lba
                answer = await again.wait(link.Fetched, lambda m, wanted=wanted: m.id == wanted)
                assert isinstance(answer, link.Fetched)
                assert answer.frames[0].state == "corrupt"
                assert key in answer.frames[0].error
                assert f"offset {target.offset}" in answer.frames[0].error
                tally.add("refused by key and offset")
            store.times = 1
            for lba, data in contents.items():
                assert await again.read(lba, len(data) // 512) == data
            tally.add("right: read once more")
            await again.detach()
        print(tally)
        assert tally.flips > 10

    (tmp_path / "one").mkdir()
    asyncio.run(main())
