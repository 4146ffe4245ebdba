"""Pages of the map that are in the bucket still: read when wanted, once, and never over something younger."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from blockdev.engine import link
from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.worker import WorkerSettings
from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents.extent_map import DELTAS_MAX, ExtentMap
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.segments import paths, root
from blockdev.segments.root import PAGE_EXTENTS, PageRef, Root
from blockdev.units import KIB, TIB
from s3core.errors import Unavailable
from s3core.memory import MemoryStore
from s3core.store import Body
from s3core.wrapper import StoreWrapper
from tests.blockdev.scale_volume import make
from tests.blockdev.worker_bench import WorkerBench, volume_file

QUICK = WorkerSettings(lease_s=0.3, checkpoint=CheckpointSettings(records=1))
SIZE = 4 << 30
"""Four pages."""


class Away(StoreWrapper):
    """A store whose map pages cannot be had for a while, and which counts what is asked for."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.away = False
        self.reads: list[str] = []

    def get_range(self, key: str, offset: int, length: int) -> Body:
        self.reads.append(key)
        if self.away and key.startswith(paths.page_prefix()):
            raise Unavailable("the way is cut", key=key)
        return super().get_range(key, offset, length)


def newest_root(store: MemoryStore) -> Root:
    key = max(info.key for info in store.list(paths.root_prefix()))
    return root.decode(store.get(key).data, what=key)


async def filled(directory: Path, store: MemoryStore, sectors: list[int]) -> None:
    """A detached volume with a block at each of these sectors."""
    bench = WorkerBench(directory, store, volume=volume_file(SIZE), settings=QUICK)
    await bench.attach()
    for number, lba in enumerate(sectors):
        bench.write(lba, bytes([number % 255 + 1]) * 4096)
        await bench.commit()
    await bench.detach()


def test_a_page_is_read_once_and_only_when_it_is_wanted(tmp_path: Path) -> None:
    async def main() -> None:
        inner = MemoryStore()
        page_sectors = PAGE_EXTENTS * 2048
        await filled(tmp_path, inner, [0, page_sectors, 2 * page_sectors])
        store = Away(inner)
        bench = WorkerBench(tmp_path, store, volume=volume_file(SIZE), settings=QUICK)
        await bench.attach()
        assert not [key for key in store.reads if key.startswith(paths.page_prefix())]
        assert bench.map.pages_waiting == 3
        assert await bench.read(page_sectors, 8) == b"\x02" * 4096
        assert await bench.read(page_sectors + 8, 8) == bytes(4096)
        assert bench.map.pages_waiting == 2
        read = [key for key in store.reads if key.startswith(paths.page_prefix())]
        await bench.read(page_sectors, 8)
        assert [key for key in store.reads if key.startswith(paths.page_prefix())] == read
        await bench.detach()

    asyncio.run(main())


def test_reads_wait_for_a_page_that_is_away_and_the_volume_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockdev.engine.delivery.FETCH_PATIENCE_S", 0.2)

    async def main() -> None:
        inner = MemoryStore()
        await filled(tmp_path, inner, [0])
        store = Away(inner)
        bench = WorkerBench(tmp_path, store, volume=volume_file(SIZE), settings=QUICK)
        await bench.attach()
        store.away = True
        # One that asks for content, one that asks whether what a slot holds is current still.
        bench.worker.receive(link.Fetch(77, (link.FetchFrame(0, 0, 1), link.FetchFrame(1, 1))))
        bench.worker.receive(link.AskAllocated(78, 0, 4096))
        answer = await bench.wait(link.Fetched, lambda m: m.id == 77)
        assert isinstance(answer, link.Fetched)
        assert {item.state for item in answer.frames} == {"unreachable"}
        allocated = await bench.wait(link.Allocated, lambda m: m.id == 78)
        assert allocated == link.Allocated(78, ((0, 4096, True),))
        store.away = False
        assert await bench.read(0, 8) == b"\x01" * 4096
        await bench.detach()

    asyncio.run(main())


def test_a_damaged_page_is_named_and_nothing_of_it_is_believed(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        await filled(tmp_path, store, [0])
        key = next(info.key for info in store.list(paths.page_prefix()))
        damaged = bytearray(store.get(key).data)
        damaged[len(damaged) // 2] ^= 1
        store.put(key, bytes(damaged))
        bench = WorkerBench(tmp_path, store, volume=volume_file(SIZE), settings=QUICK)
        await bench.attach()
        bench.worker.receive(link.Fetch(5, (link.FetchFrame(0, 0),)))
        answer = await bench.wait(link.Fetched, lambda m: m.id == 5)
        assert isinstance(answer, link.Fetched)
        assert answer.frames[0].state == "corrupt"
        assert key in answer.frames[0].error
        assert "extents 0 to 1023" in answer.frames[0].error
        await bench.crash()

    asyncio.run(main())


def test_a_root_costs_what_changed(tmp_path: Path) -> None:
    """After a page of its own a change costs a delta, three times; then the page is written anew."""

    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store, volume=volume_file(SIZE))
        await bench.attach()
        deltas = []
        for number in range(2 * DELTAS_MAX + 3):
            bench.write(number * 2048, b"x" * 4096)
            await bench.commit()
            bench.worker.receive(link.Operate(number, "checkpoint", {}))
            await bench.wait(link.Operated, lambda m, number=number: m.id == number)
            made = newest_root(store)
            assert len(made.pages) == 1
            deltas.append(len(made.runs))
        assert max(deltas) == DELTAS_MAX
        assert deltas.count(0) == 3
        await bench.detach()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(4))
def test_a_map_from_roots_is_the_map_of_the_log(tmp_path: Path, seed: int) -> None:
    """Random writes and discards, attached anew from the bucket alone again and again: deltas, faults, purges."""

    async def main() -> None:
        r = random.Random(seed)
        store = MemoryStore()
        model: dict[int, int] = {}
        for life in range(6):
            directory = tmp_path / str(life)
            directory.mkdir()
            bench = WorkerBench(directory, store, volume=volume_file(SIZE), settings=QUICK)
            await bench.attach()
            for _ in range(12):
                block = r.randrange(4) * PAGE_EXTENTS * 256 + r.randrange(6) * 256 + r.randrange(3)
                if r.random() < 0.2:
                    first = r.randrange(4) * PAGE_EXTENTS * 2048
                    bench.unmap(first, 2048 * r.choice([1, 2, PAGE_EXTENTS]))
                    await bench.commit()
                    model = await reread(bench, model)
                    continue
                value = r.randrange(1, 256)
                bench.write(block * 8, bytes([value]) * 4096)
                model[block] = value
                if r.random() < 0.5:
                    await bench.commit()
            await bench.commit()
            for block, value in r.sample(sorted(model.items()), min(8, len(model))):
                assert await bench.read(block * 8, 8) == bytes([value]) * 4096, (life, block)
            await bench.detach()

    async def reread(bench: WorkerBench, model: dict[int, int]) -> dict[int, int]:
        """What a discard left, as the bench that made it sees it: later lives must see the same."""
        return {block: (await bench.read(block * 8, 8))[0] for block in model}

    asyncio.run(main())


def test_a_late_page_does_not_cover_what_was_written_meanwhile() -> None:
    """Two threads bring in the same page; between, a record changes it. The slower one finds that it is here already."""
    store = MemoryStore()
    made = make(store, 1 / 1024)  # one page
    found = newest_root(store)
    extent_map = ExtentMap(MemoryKeyValueStore(), made.volume.geometry)
    extent_map.load(found, lambda ref: pages(store, ref))
    slow = dict(pages(store, found.pages[0]))

    def meanwhile(ref: PageRef) -> Iterator[tuple[int, bytes]]:
        extent_map.read_page = lambda ref: iter(slow.items())
        extent_map.fault([0])
        changed = mapformat.encode(3, mapformat.ExtentValue(mapformat.Base(9, 9, 9, bytes(16)), ()))
        with extent_map._kv.begin(write=True) as txn:
            txn.put("extents", mapformat.KEY.pack(3), changed)
        return iter(slow.items())

    extent_map.read_page = meanwhile
    extent_map.fault([0])
    _, (value,) = extent_map.lookup([3])
    assert value.base is not None
    assert value.base.gen == 9


def pages(store: MemoryStore, ref: PageRef) -> Iterator[tuple[int, bytes]]:
    key = paths.page_pack(ref.seq, ref.epoch, ref.n)
    return root.decode_page(store.get_range(key, ref.offset, ref.length).data, what=key, offset=ref.offset)


def test_a_page_that_does_not_parse_changes_nothing() -> None:
    store = MemoryStore()
    made = make(store, 2 / 1024)
    extent_map = ExtentMap(MemoryKeyValueStore(), made.volume.geometry)
    extent_map.load(newest_root(store), lambda ref: root.decode_page(b"nonsense", what="page", offset=0))
    with pytest.raises(CorruptFormat):
        extent_map.lookup([0])
    assert extent_map.pages_waiting == 2
    extent_map.read_page = lambda ref: pages(store, ref)
    assert len(list(extent_map.extents())) == 2 * PAGE_EXTENTS
    assert extent_map.pages_waiting == 0


def test_discarding_everything_is_one_entry_however_large(tmp_path: Path) -> None:
    """16 TiB with every 64th page there: one record, no page read before the answer, all of it gone in the end."""

    async def main() -> None:
        inner = MemoryStore()
        made = make(inner, 16, pages_apart=512)
        store = Away(inner)
        bench = WorkerBench(tmp_path, store, volume=made.volume, settings=WorkerSettings(lease_s=5.0))
        await bench.attach()
        before = bench.journal.head
        bench.unmap(0, 16 * TIB // 512)
        assert bench.journal.head - before < 1 * KIB
        await bench.commit()
        while bench.map.purging:
            await asyncio.sleep(0.01)
        assert bench.map.extents_mapped == 0
        assert len([key for key in store.reads if key.startswith(paths.page_prefix())]) == made.pages
        await bench.detach()
        assert newest_root(inner).pages == []

    asyncio.run(main())
