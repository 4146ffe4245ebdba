"""What the size of a volume may cost, in requests and bytes: attaching, checkpoints, the discard of everything.

Volumes made of their map alone, a real worker with the map in LMDB, a store that counts."""

import asyncio
import gc
import random
import tracemalloc
from pathlib import Path

import pytest

from blockdev.engine import link
from blockdev.engine import worker as worker_module
from blockdev.engine.log import WINDOW
from blockdev.engine.worker import WorkerSettings
from blockdev.extents.lmdb_map import LmdbKeyValueStore
from blockdev.units import BLOCK_BYTES, KIB, MIB
from tests.blockdev import scale_volume
from tests.blockdev.counting_store import CountingStore
from tests.blockdev.worker_bench import WorkerBench

MAP_KINDS = ("page", "root", "head")
ATTACH_GETS_MAX = 12


def bench(directory: Path, store: CountingStore, made: scale_volume.Synthetic) -> WorkerBench:
    directory.mkdir(exist_ok=True)
    return WorkerBench(
        directory, store, LmdbKeyValueStore(directory / "map"), made.volume, WorkerSettings(lease_s=600.0)
    )


async def operate(running: WorkerBench, name: str) -> None:
    number = sum(isinstance(message, link.Operated) for message in running.messages) + 1
    running.worker.receive(link.Appended(running.journal.head))
    running.worker.receive(link.Operate(number, name, {}))
    answer = await running.wait(link.Operated, lambda m: m.id == number)
    assert isinstance(answer, link.Operated)
    assert not answer.kind, answer.error


def test_a_volume_of_1_tib_is_attached_and_checkpointed_for_what_changed(tmp_path: Path) -> None:
    store = CountingStore()
    made = scale_volume.make(store, 1)
    assert made.extents == 1 << 20

    async def run() -> None:
        store.begin()
        gc.collect()
        tracemalloc.start()
        running = bench(tmp_path / "one", store, made)
        await running.attach()
        held, peak = tracemalloc.get_traced_memory()
        counted = store.counted
        assert counted.gets.total() - counted.gets["log"] <= ATTACH_GETS_MAX, counted
        # Two records behind the root would be two more: the window is read at once, most of it is not there.
        assert counted.gets["log"] <= 2 * WINDOW + 2, counted
        assert counted.gets["page"] == 0
        assert counted.lists <= 2
        assert counted.bytes_down.total() < made.root_bytes + 16 * KIB
        assert held < 16 * MIB
        assert peak < 32 * MIB

        # The seed spreads them, so that nearly each is on a page of its own.
        places = random.Random(5).sample(range(made.extents), 100)
        for extent in places:
            running.write(extent * MIB // running.geometry.sector_bytes, b"\x01" * BLOCK_BYTES)
        await running.commit()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 32 * MIB
        assert store.counted.gets["page"] <= 100
        store.begin()
        await operate(running, "checkpoint")
        assert store.counted.puts == {"page": 1, "root": 1, "head": 1}
        size = sum(store.counted.bytes_up[kind] for kind in MAP_KINDS)
        assert size < 100_000
        running.write(0, b"\x02" * BLOCK_BYTES)
        await running.commit()
        store.begin()
        await operate(running, "checkpoint")
        assert store.counted.puts == {"page": 1, "root": 1, "head": 1}
        assert sum(store.counted.bytes_up[kind] for kind in MAP_KINDS) < size
        assert store.counted.bytes_up["page"] < 1 * KIB
        await running.detach()

    asyncio.run(run())


def test_discarding_16_tib_is_one_small_record_in_the_journal_and_in_the_log(tmp_path: Path) -> None:
    store = CountingStore()
    made = scale_volume.make(store, 16, pages_apart=4096)

    async def run() -> None:
        running = bench(tmp_path / "one", store, made)
        await running.attach()
        head = running.journal.head
        store.begin()
        running.unmap(0, running.geometry.sector_count)
        assert running.journal.head - head <= BLOCK_BYTES
        await running.commit()
        assert store.counted.puts == {"log": 1}
        assert store.counted.bytes_up["log"] < 1 * KIB
        # Reads see it at once, whatever of the map is still there.
        assert await running.read(0, 8) == bytes(BLOCK_BYTES)
        while running.map.purging:
            await asyncio.sleep(0.01)
        assert running.map.extents_mapped == 0
        assert store.counted.puts == {"log": 1}
        await running.detach()

    asyncio.run(run())


def test_a_large_discard_deletes_as_it_goes_so_that_no_root_lists_all_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 4096
    monkeypatch.setattr(worker_module, "PURGE_DEAD_MAX", most)
    store = CountingStore()
    made = scale_volume.make(store, 1, pages_apart=64)
    deleted: list[int] = []
    listed: list[int] = []

    async def run() -> None:
        running = bench(tmp_path / "one", store, made)
        snapshot_for_root = running.map.snapshot_for_root

        def watched() -> object:
            found = snapshot_for_root()
            listed.append(len(found[3]))
            return found

        monkeypatch.setattr(running.map, "snapshot_for_root", watched)
        await running.attach()
        running.unmap(0, running.geometry.sector_count)
        await running.commit()
        while running.map.purging:
            await asyncio.sleep(0.01)
        deleted.append(made.extents - running.map.dead_waiting)
        await running.detach()
        assert running.map.dead_waiting == len(running.map.dead())

    asyncio.run(run())
    # One slice of the discard may come on top.
    assert max(listed) <= most + 4096 + 100
    assert deleted[0] >= made.extents - 2 * most - 4096
