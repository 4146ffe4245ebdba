"""A log whose old records are gone: numbers that are free again belong to nobody, and a gap is not the log's end."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.lease import Lease
from blockdev.engine.log import CommitLog, Persistence
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.worker import WorkerSettings
from blockdev.errors import CorruptFormat, Fenced
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.segments import paths, record
from blockdev.units import GIB, KIB
from s3core.errors import NotFound, OutcomeUnknown
from s3core.memory import MemoryStore
from s3core.store import Body, Buffer, ObjectInfo
from tests.blockdev.worker_bench import VOLUME, WorkerBench

TRIMMING = WorkerSettings(lease_s=0.3, checkpoint=CheckpointSettings(records=1, trim_age_s=0.0))
KEEPING = replace(TRIMMING, checkpoint=CheckpointSettings(records=1))


def _log(store: MemoryStore, seconds: float) -> tuple[CommitLog, Lease, ThreadExecution]:
    execution = ThreadExecution(2)
    lease = Lease(seconds, lambda until: None)
    return CommitLog(store, VOLUME, execution, Persistence(execution), lease), lease, execution


def test_a_number_that_is_free_again_is_nobodys() -> None:
    """A host was cut off for longer than a successor kept record 5. Its PUT is answered at once then, and its number was
    free: neither may be taken for being the writer. Nor by one that attaches and stalled before its fence (seed 12)."""

    async def main() -> None:
        store = MemoryStore()
        store.put(paths.root(7, 3), b"of the successor")
        log, lease, execution = _log(store, 10.0)
        with pytest.raises(Fenced, match="after a root of another writer"):
            await log.append(5, [b"record"], b"n")
        store.delete(paths.log(5))
        with pytest.raises(Fenced, match="after a root of another writer"):
            await log.renew(5, 2)
        assert not lease.until
        await log.append(8, [b"record"], b"n")
        assert lease.until
        execution.close()

    asyncio.run(main())


class _FirstReplyLost(MemoryStore):
    lost = False

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        tag = super().put_if_absent(key, data, metadata=metadata)
        if not self.lost:
            self.lost = True
            raise OutcomeUnknown("the reply was lost", key=key)
        return tag


def test_a_number_that_is_free_again_is_nobodys_when_the_reply_is_lost_either() -> None:
    """The second try finds the record of the first one, which was as late (seed 143)."""

    async def main() -> None:
        store = _FirstReplyLost()
        store.put(paths.root(7, 3), b"of the successor")
        log, lease, execution = _log(store, 10.0)
        late = record.Record(
            seq=5,
            epoch=2,
            kind=record.RecordKind.FENCE,
            nonce=bytes(16),
            parent=record.NO_DIGEST,
            volume=VOLUME,
            lineage=VOLUME,
            journal=VOLUME,
            begin=4096,
            end=4096,
            time_us=0,
            size_bytes=GIB,
        )
        with pytest.raises(Fenced, match="after a root of another writer"):
            await log.append(5, record.encode(late)[0], late.nonce)
        assert store.lost
        assert not lease.until
        execution.close()

    asyncio.run(main())


def test_while_the_lease_holds_nothing_is_listed() -> None:
    async def main() -> None:
        store = MemoryStore()
        log, _, execution = _log(store, 10.0)
        await log.append(1, [b"record"], b"n")
        store.put(paths.root(7, 3), b"cannot be: nobody else writes while the lease holds")
        await log.append(2, [b"record"], b"n")
        await log.renew(3, 1)
        execution.close()

    asyncio.run(main())


def _cut(store: MemoryStore, keep: int) -> None:
    """Take records away as `Checkpointer` does, all from `keep` on but the last two before the newest root."""
    newest = max(paths.birth(info.key) for info in store.list(paths.root_prefix()))
    for seq in range(keep + 1, newest - 1):
        store.delete(paths.log(seq))


def test_a_host_that_comes_back_does_not_take_a_gap_for_the_end(tmp_path: Path) -> None:
    """Its map stands on a record that was kept for its patches; the successor's next ones are gone."""

    async def main() -> None:
        store, kv = MemoryStore(), MemoryKeyValueStore()
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        first = WorkerBench(tmp_path / "a", store, kv, settings=KEEPING)
        await first.attach()
        first.write(0, random.Random(1).randbytes(4 * KIB))
        await first.commit()
        await first.detach()
        state = first.map.state
        assert state is not None
        second = WorkerBench(tmp_path / "b", store, settings=KEEPING)
        await second.attach()
        young = random.Random(2).randbytes(4 * KIB)
        for at in range(4):
            second.write(1000, young if at == 3 else bytes([at]) * 4096)
            await second.commit()
        await second.detach()
        _cut(store, state.seq)
        again = WorkerBench(tmp_path / "a", store, kv, settings=KEEPING)
        await again.attach()
        assert await again.read(1000, 8) == young
        await again.detach()

    asyncio.run(main())


def test_without_a_root_a_log_with_gaps_is_no_history(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store, settings=KEEPING)
        await bench.attach()
        for at in range(4):
            bench.write(8 * at, bytes([at + 1]) * 4096)
            await bench.commit()
        await bench.detach()
        _cut(store, 2)
        for info in list(store.list(paths.root_prefix())):
            store.put(info.key, b"damaged")
        again = WorkerBench(tmp_path, store, settings=KEEPING)
        with pytest.raises(CorruptFormat, match="record 3 is not there"):
            await again.attach()
        again.execution.close()

    asyncio.run(main())


class _RootsComeLater(MemoryStore):
    """The first look at head and roots finds none, as before the writer made its first one."""

    young = False

    def get(self, key: str) -> Body:
        if self.young and key == paths.head():
            raise NotFound("no such object", key=key)
        return super().get(key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        if self.young and prefix == paths.root_prefix():
            self.young = False
            return iter(())
        return super().list(prefix, start_after=start_after)


def test_a_first_root_that_comes_during_an_attach_is_no_damage(tmp_path: Path) -> None:
    """Records went with it, so that the log no longer reached back to its beginning (seed 110091880973089)."""

    async def main() -> None:
        store = _RootsComeLater()
        bench = WorkerBench(tmp_path, store, settings=TRIMMING)
        await bench.attach()
        for number in range(8):
            bench.write(0, bytes([number + 1]) * 4096)
            await bench.commit()
        async with asyncio.timeout(20):
            while paths.log(1) in {info.key for info in store.list(paths.log_prefix())}:
                await asyncio.sleep(0.02)
        await bench.detach()
        (tmp_path / "other").mkdir()
        store.young = True
        again = WorkerBench(tmp_path / "other", store, settings=TRIMMING)
        await again.attach()
        assert not store.young
        assert await again.read(0, 8) == bytes([8]) * 4096
        await again.detach()

    asyncio.run(main())


def test_what_the_root_before_names_is_kept(tmp_path: Path) -> None:
    """Seed 51: a record whose patches died after the previous root was deleted while that root named them."""

    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store, settings=TRIMMING)
        await bench.attach()
        bench.write(0, random.Random(1).randbytes(4 * KIB))
        await bench.commit()
        assert bench.map.state is not None
        born = bench.map.state.seq
        for at in range(3):
            bench.write(80, random.Random(at).randbytes(4 * KIB))
            await bench.commit()
        bench.write(0, random.Random(2).randbytes(4 * KIB))
        await bench.commit()
        died = bench.map.state.seq
        assert store.head(paths.log(born))
        assert not bench.map.old_records(died, 1 << 62, 100)[-1:] or born not in bench.map.old_records(
            died, 1 << 62, 100
        )
        assert born in bench.map.old_records(died + 1, 1 << 62, 100)
        await bench.detach()

    asyncio.run(main())
