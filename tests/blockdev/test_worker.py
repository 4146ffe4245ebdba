"""The worker against a model: commit, read back, crash, recover on the same host and on a bare one, fold."""

import asyncio
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest

from blockdev import keys
from blockdev.checksum import crc32c
from blockdev.engine import link
from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.collector import CollectorSettings
from blockdev.engine.destager import CommitSettings, Extras
from blockdev.engine.worker import COLLECT_BESIDE_FLUSHES_S, WorkerSettings
from blockdev.errors import AttachRefused, CorruptFormat, Fenced
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.journal.format import MORE
from blockdev.segments import paths, record
from blockdev.segments.cipher import FrameCipher
from blockdev.segments.key_slot import Secret
from blockdev.segments.root import PAGE_EXTENTS
from blockdev.segments.volume_file import cipher_of
from blockdev.units import KIB, MIB
from s3core import fibers
from s3core.errors import Unavailable
from s3core.memory import MemoryStore
from s3core.store import ObjectStore
from s3core.wrapper import Call, StoreWrapper
from tests.blockdev.worker_bench import WorkerBench, volume_file

T = TypeVar("T")

SMALL = WorkerSettings(
    lease_s=0.3,
    commit=CommitSettings(commit_bytes=1 * MIB, inline_bytes_max=16 * KIB, segment_bytes=64 * KIB),
    checkpoint=CheckpointSettings(records=3),
    collector=CollectorSettings(wave_bytes=64 * KIB, nearly_empty_bytes=64 * KIB, slice_bytes=1 * MIB),
)


def test_a_commit_never_ends_within_a_command(tmp_path: Path) -> None:
    """A host that is lost for good leaves whole writes in the bucket, however large they were."""

    async def main() -> None:
        bench = WorkerBench(tmp_path, settings=replace(SMALL, commit=CommitSettings(commit_bytes=4096)))
        await bench.attach()
        ends = []
        for length in (1, 4, 2):
            for part in range(length):
                data = os.urandom(4096)
                flags = MORE if part < length - 1 else 0
                bench.journal.stage_write(8 * part, 8, [data], 4096, [crc32c(data)], flags)
            bench.journal.append()
            ends.append(bench.journal.head)
        await bench.commit()
        assert [m.position for m in bench.messages if isinstance(m, link.Durable)] == ends
        await bench.detach()

    asyncio.run(main())


def test_commit_then_read(tmp_path: Path) -> None:
    async def main() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        data = random.Random(1).randbytes(3 * MIB)
        bench.write(2048, data)
        bench.write(1, b"x" * 512)
        await bench.commit()
        assert await bench.read(2048, len(data) // 512) == data
        assert await bench.read(0, 3) == bytes(512) + b"x" * 512 + bytes(512)
        await bench.detach()

    asyncio.run(main())


def test_bare_host_reads_what_was_detached(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store)
        await bench.attach()
        data = random.Random(1).randbytes(1 * MIB + 4096)
        bench.write(100, data)
        await bench.detach()
        (tmp_path / "journal").unlink()
        again = WorkerBench(tmp_path, store)
        ready = await again.attach()
        assert ready.epoch == 2
        assert await again.read(100, len(data) // 512) == data
        await again.detach()

    asyncio.run(main())


def test_lost_journal_is_refused_and_loss_can_be_accepted(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store)
        await bench.attach()
        bench.write(0, b"a" * 4096)
        await bench.commit()
        bench.write(0, b"b" * 4096)
        await bench.crash()
        (tmp_path / "journal").unlink()
        again = WorkerBench(tmp_path, store)
        with pytest.raises(AttachRefused, match="accept-loss"):
            await again.attach()
        again.execution.close()
        forced = WorkerBench(tmp_path, store, settings=WorkerSettings(accept_loss=True, lease_s=0.3))
        await forced.attach()
        assert await forced.read(0, 8) == b"a" * 4096
        state = forced.map.state
        assert state is not None
        assert state.lineage != str(forced.volume.lineage)
        await forced.detach()

    asyncio.run(main())


class _Ordered(StoreWrapper):
    """Looks at each record: every object it names must be there. Holds commit `held` back until the next one's objects
    come."""

    def __init__(self, inner: MemoryStore, held: int) -> None:
        super().__init__(inner)
        self._held = held
        self.overtaken = threading.Event()
        self.named = 0

    def put(self, key: str, data: Any, *, metadata: dict[str, str] | None = None) -> str:
        done = super().put(key, data, metadata=metadata)
        if key.startswith("ext/") and f"/{self._held + 1:012x}-" in key:
            self.overtaken.set()
        return done

    def put_if_absent(self, key: str, data: Any, *, metadata: dict[str, str] | None = None) -> str:
        seq = paths.birth(key)
        for entry in record.decode(b"".join(data), what=key, seq=seq).record.bases:
            self.head(paths.extent(entry.extent, entry.gen, entry.epoch))
            self.named += 1
        if seq == self._held:
            assert self.overtaken.wait(30), "the next commit's objects wait for this one's record"
        return super().put_if_absent(key, data, metadata=metadata)


def test_the_next_commits_objects_go_up_while_a_record_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        inner = MemoryStore()
        store = _Ordered(inner, held=2)
        bench = WorkerBench(tmp_path, store, settings=SMALL)
        await bench.attach()
        data = random.Random(1).randbytes(12 * MIB)
        for at in range(0, len(data), 256 * KIB):
            bench.write(at // 512, data[at : at + 256 * KIB])
        await bench.commit()
        assert store.overtaken.is_set()
        assert store.named >= 12
        assert await bench.read(0, len(data) // 512) == data
        await bench.detach()
        (tmp_path / "journal").unlink()
        again = WorkerBench(tmp_path, inner)
        await again.attach()
        assert await again.read(0, len(data) // 512) == data
        await again.detach()

    asyncio.run(main())


def test_what_was_begun_for_a_commit_goes_when_another_record_takes_its_number(tmp_path: Path) -> None:
    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store, settings=SMALL)
        await bench.attach(run=False)
        destager = bench.worker._destager
        assert destager is not None
        old, new = os.urandom(4 * MIB), os.urandom(1 * MIB)
        for at in range(0, len(old), MIB):
            bench.write(at // 512, old[at : at + MIB])
        first = await destager.commit(bench.journal.head)
        assert first is not None
        between = await destager.mark({"purpose": "test"})
        bench.write(3 * MIB // 512, new)
        while bench.map.state is not None and bench.map.state.end < bench.journal.head:
            await destager.commit(bench.journal.head)
        assert [key for key in _keys(store, "ext/") if f"/{between.seq:012x}-" in key] == []
        bench.task = asyncio.create_task(bench.worker.run())
        assert await bench.read(0, 4 * MIB // 512) == old[: 3 * MIB] + new
        await bench.detach()

    asyncio.run(main())


def test_a_commit_that_fails_in_the_middle_of_an_operation_stops_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second try under its number would put other content under keys that the first may still be writing."""

    async def main() -> None:
        bench = WorkerBench(tmp_path, settings=SMALL)
        await bench.attach(run=False)
        destager = bench.worker._destager
        assert destager is not None
        bench.write(0, os.urandom(MIB))
        bench.worker.receive(link.Appended(bench.journal.head))
        await destager.commit(bench.journal.head)
        # Old enough to be looked at.
        for _ in range(2):
            await destager.mark({"purpose": "test"})
        bench.write(0, os.urandom(2 * MIB))
        bench.worker.receive(link.Appended(bench.journal.head))

        async def failing(*_: object) -> None:
            raise CorruptFormat("made up", what="a page of the map")

        monkeypatch.setattr(destager, "commit", failing)
        bench.worker.receive(link.Operate(1, "gc", {"orphans": True}))
        await bench.worker._operate(bench.worker._asked.popleft())
        assert isinstance(bench.worker.failure, CorruptFormat)
        assert [m.kind for m in bench.messages if isinstance(m, link.Failed)] == ["corrupt"]
        bench.close()

    asyncio.run(main())


class _Gated(StoreWrapper):
    """Holds objects of one commit back."""

    def __init__(self, inner: MemoryStore, held: int) -> None:
        super().__init__(inner)
        self._held = held
        self.came = threading.Event()
        self.gate = threading.Event()

    def put(self, key: str, data: Any, *, metadata: dict[str, str] | None = None) -> str:
        if key.startswith("ext/") and f"/{self._held:012x}-" in key:
            self.came.set()
            assert self.gate.wait(30)
        return super().put(key, data, metadata=metadata)


def test_who_is_fenced_sends_nothing_more_of_what_was_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = _Gated(MemoryStore(), held=3)
        bench = WorkerBench(tmp_path, store, settings=replace(SMALL, commit=replace(SMALL.commit, uploads=1)))
        await bench.attach(run=False)
        destager = bench.worker._destager
        assert destager is not None
        for at in range(0, 16 * MIB, MIB):
            bench.write(at // 512, os.urandom(MIB))
        append = destager.append

        async def fenced(made: record.Record, *others: Any) -> None:
            if made.seq == 2:
                assert await asyncio.to_thread(store.came.wait, 30)
                raise Fenced("made up")
            await append(made, *others)

        monkeypatch.setattr(destager, "append", fenced)
        bench.worker.receive(link.Stopped())
        bench.worker.receive(link.Appended(bench.journal.head))
        await bench.worker.run()
        assert isinstance(bench.worker.failure, Fenced)
        before = asyncio.all_tasks()
        store.gate.set()
        await asyncio.wait_for(asyncio.gather(*(before - {asyncio.current_task()}), return_exceptions=True), 30)
        assert len([key for key in _keys(store, "ext/") if f"/{3:012x}-" in key]) <= 1
        bench.close()

    asyncio.run(main())


def _keys(store: ObjectStore, prefix: str) -> list[str]:
    return [info.key for info in store.list(prefix)]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("sector_bytes", [512, 4096])
def test_random_writes_match_a_model(tmp_path: Path, seed: int, sector_bytes: int) -> None:
    """Random writes and discards over a few extents, with commits, restarts on the same host and on a bare one; small
    limits, so that segments, folding, collection, checkpoints and deletion all happen."""

    async def main() -> None:
        rng = random.Random(seed)
        volume = volume_file(4 * MIB, extent_bytes=128 * KIB, frame_bytes=16 * KIB, sector_bytes=sector_bytes)
        store = MemoryStore()
        kv = MemoryKeyValueStore()
        model = bytearray(4 * MIB)
        sectors = len(model) // sector_bytes
        bench = WorkerBench(tmp_path, store, kv, volume, SMALL)
        await bench.attach()
        folded = deleted = 0.0
        for _ in range(40):
            for _ in range(rng.randrange(1, 60)):
                lba = rng.randrange(sectors)
                count = min(rng.choice([1, 1, 8, 8, 8, 40, 300]) * 512 // sector_bytes or 1, sectors - lba)
                if rng.random() < 0.1:
                    # The journal carries discards of whole 4 KiB blocks; the front writes the edges as zeros.
                    block = 4096 // sector_bytes
                    lba -= lba % block
                    count = min(rng.choice([1, 64, 1000, sectors]) * block, sectors - lba)
                    bench.unmap(lba, count)
                    data = bytes(count * sector_bytes)
                else:
                    data = rng.choice(
                        [rng.randbytes(count * sector_bytes), bytes([rng.randrange(256)]) * (count * sector_bytes)]
                    )
                    bench.write(lba, data)
                model[lba * sector_bytes : (lba + count) * sector_bytes] = data
            await bench.commit()
            roll = rng.random()
            if roll < 0.15:
                await bench.detach()
                if rng.random() < 0.5:
                    kv = MemoryKeyValueStore()
                    (tmp_path / "journal").unlink()
                bench = WorkerBench(tmp_path, store, kv, volume, SMALL)
                await bench.attach()
            elif roll < 0.3:
                await bench.crash()
                if rng.random() < 0.5:
                    kv = MemoryKeyValueStore()
                bench = WorkerBench(tmp_path, store, kv, volume, SMALL)
                await bench.attach()
            if rng.random() < 0.5:
                assert await bench.read(0, sectors) == bytes(model)
            status = [m for m in bench.messages if isinstance(m, link.Status)]
            if status:
                folded = max(folded, status[-1].counters["extents_folded"])
                deleted = max(deleted, status[-1].counters["objects_deleted"])
        assert await bench.read(0, sectors) == bytes(model)
        await bench.detach()
        assert folded or deleted

    asyncio.run(main())


def test_slots_from_before_a_restart_are_kept_only_while_current(tmp_path: Path) -> None:
    """A slot says as of which commit it was filled. Overwritten, zeroed over a patch, discarded and folded frames are not
    kept; untouched ones cost no fetch."""

    async def main() -> None:
        bench = WorkerBench(tmp_path, volume=volume_file(4 * MIB, extent_bytes=128 * KIB, frame_bytes=16 * KIB))
        await bench.attach()
        for frame in range(6):
            bench.write(frame * 32, bytes([frame + 1]) * 8192)
        await bench.commit()
        assert bench.map.state is not None
        as_of = bench.map.state.seq
        bench.write(1 * 32, b"new" + bytes(509))
        bench.write(2 * 32 + 8, bytes(4096))
        bench.unmap(3 * 32, 32)
        await bench.commit()
        bench.worker.receive(link.Fetch(77, tuple(link.FetchFrame(f, f, as_of) for f in range(7))))
        answer = await bench.wait(link.Fetched, lambda m: m.id == 77)
        assert isinstance(answer, link.Fetched)
        states = {item.frame: item.state for item in answer.frames}
        assert states == {0: "kept", 1: "data", 2: "data", 3: "zero", 4: "kept", 5: "kept", 6: "zero"}
        assert bench.slots.slots[2] == b"\3" * 4096 + bytes(12288)
        await bench.detach()

    asyncio.run(main())


def test_an_older_copy_of_the_journal_is_refused(tmp_path: Path) -> None:
    """The state directory as a backup had it: right identity, and it lacks what was acknowledged since."""

    async def main() -> None:
        store = MemoryStore()
        bench = WorkerBench(tmp_path, store)
        await bench.attach()
        bench.write(0, b"a" * 4096)
        await bench.commit()
        await bench.crash()
        copies = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        later = WorkerBench(tmp_path, store)
        await later.attach()
        later.write(0, b"b" * 4096)
        await later.crash()
        for name, content in copies.items():
            (tmp_path / name).write_bytes(content)
        again = WorkerBench(tmp_path, store)
        with pytest.raises(AttachRefused, match="older copy"):
            await again.attach()
        again.execution.close()

    asyncio.run(main())


def test_an_encrypted_volume_comes_back_and_shows_nothing(tmp_path: Path) -> None:
    """Extents, segments, inline patches, a fold; restart on a bare host. With another key nothing is read."""

    async def main() -> None:
        rng = random.Random(3)
        store = MemoryStore()
        key = bytes(range(32))
        volume, _, _ = keys.sealed(
            volume_file(4 * MIB, extent_bytes=128 * KIB, frame_bytes=16 * KIB),
            Secret("key", bytes(32)),
            random=os.urandom,
            data_key=key,
        )
        cipher = cipher_of(volume, key, os.urandom)
        bench = WorkerBench(tmp_path, store, volume=volume, settings=SMALL, cipher=cipher)
        await bench.attach()
        model = bytearray(4 * MIB)
        mark = b"a mark that compresses into nothing else. "
        for turn in range(12):
            for _ in range(30):
                lba, count = rng.randrange(8000), rng.choice([1, 8, 150])
                data = rng.choice([(mark * 20)[:512] * count, rng.randbytes(count * 512)])
                bench.write(lba, data)
                model[lba * 512 : (lba + count) * 512] = data
            await bench.commit()
            if turn % 4 == 3:
                assert await bench.read(0, 8192) == bytes(model)
        await bench.detach()
        kinds = {info.key.partition("/")[0] for info in store.list()}
        assert {"ext", "seg", "log", "root"} <= kinds
        assert all(mark not in store.get(info.key).data for info in store.list())
        (tmp_path / "journal").unlink()
        again = WorkerBench(tmp_path, store, volume=volume, settings=SMALL, cipher=cipher)
        await again.attach()
        assert await again.read(0, 8192) == bytes(model)
        await again.detach()
        wrong = WorkerBench(tmp_path, store, volume=volume, cipher=FrameCipher(bytes(32), os.urandom))
        await wrong.attach()
        wrong.worker.receive(link.Fetch(77, tuple(link.FetchFrame(f, f) for f in range(256))))
        answer = await wrong.wait(link.Fetched, lambda m: m.id == 77)
        assert isinstance(answer, link.Fetched)
        assert {frame.state for frame in answer.frames} <= {"corrupt", "zero"}
        await wrong.detach()

    asyncio.run(main())


def test_a_flush_to_the_bucket_does_not_wait_for_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One flush after the other, each with a commit at once whatever the interval; the collector gets a turn now and then."""
    slices: list[float] = []

    async def main() -> None:
        commit = CommitSettings(interval_s=3600.0, per_hour_max=1)
        bench = WorkerBench(tmp_path, settings=WorkerSettings(commit=commit))
        clock = [bench.execution.monotonic()]
        monkeypatch.setattr(bench.execution, "monotonic", lambda: clock[0])
        await bench.attach()
        worker, collector = bench.worker, bench.worker._collector
        assert collector is not None

        async def nothing(busy: Callable[[int], bool]) -> Extras | None:
            slices.append(bench.execution.monotonic())
            return None

        # Always something to collect when a flush comes.
        monkeypatch.setattr(collector, "choose", lambda: worker._commit_to > worker._committed)
        monkeypatch.setattr(collector, "slice", nothing)
        # A commit every tenth of a second, for six seconds of the worker's clock.
        for count in range(60):
            bench.write(count % 64 * 8, b"x" * 4096)
            await bench.commit()
            clock[0] += 0.1
        gaps = [later - former for former, later in pairwise(slices)]
        assert 2 <= len(slices) <= 1 + 6 / COLLECT_BESIDE_FLUSHES_S
        assert all(gap >= COLLECT_BESIDE_FLUSHES_S for gap in gaps), "collected beside every flush"
        await bench.detach()

    asyncio.run(main())


def test_an_operation_does_not_wait_for_what_the_collector_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged object that is worth collecting is chosen again and again."""

    async def main() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        collector = bench.worker._collector
        assert collector is not None

        async def nothing(busy: Callable[[int], bool]) -> Extras | None:
            return None

        monkeypatch.setattr(collector, "choose", lambda: True)
        monkeypatch.setattr(collector, "slice", nothing)
        bench.write(0, b"x" * 4096)
        await bench.commit()
        for number in range(3):
            bench.worker.receive(link.Operate(number, "checkpoint", {}))
            await asyncio.wait_for(bench.wait(link.Operated, lambda m, number=number: m.id == number), 20)
        await bench.detach()

    asyncio.run(main())


def test_a_commit_for_age_waits_for_the_budget_and_one_for_bytes_does_not(tmp_path: Path) -> None:
    async def main() -> None:
        commit = CommitSettings(commit_bytes=64 * KIB, interval_s=0.05, per_hour_max=1)
        bench = WorkerBench(tmp_path, settings=WorkerSettings(commit=commit))
        await bench.attach()
        bench.write(0, b"a" * 4096)
        bench.worker.receive(link.Appended(bench.journal.head))
        await bench.wait(link.Durable)  # the one that is saved up
        bench.write(8, b"b" * 4096)
        head = bench.journal.head
        bench.worker.receive(link.Appended(head))
        await asyncio.sleep(1.0)
        made = [m for m in bench.messages if isinstance(m, link.Durable)]
        assert len(made) == 1
        assert bench.worker.saves_commits
        assert bench.worker.lag_seconds() > 0.9
        bench.write(16, b"c" * 128 * KIB)
        bench.worker.receive(link.Appended(bench.journal.head))
        await bench.wait(link.Durable, lambda m: m.position > head)
        await bench.detach()

    asyncio.run(main())


def test_an_initiator_that_never_stops_writing_keeps_no_operation_waiting(tmp_path: Path) -> None:
    """Each commit finds the next one due already; nor does it keep a sweep from going on."""
    last = 3000

    async def main() -> None:
        bench = WorkerBench(tmp_path, settings=replace(SMALL, commit=CommitSettings(commit_bytes=1)))
        await bench.attach()
        written = 0

        def more(message: link.ToFront) -> None:
            nonlocal written
            received(message)
            if isinstance(message, link.Durable) and written < last:
                written += 1
                bench.write(written % 512 * 8, b"w" * 4096)
                bench.worker.receive(link.Appended(bench.journal.head))

        received = bench._receive
        bench.worker._send = more
        bench.write(0, b"w" * 4096)
        bench.worker.receive(link.Appended(bench.journal.head))
        await bench.wait(link.Durable)
        asked: list[tuple[str, dict[str, Any]]] = [
            ("snapshot", {"name": "s"}),
            ("snapshot-delete", {"name": "s"}),
            ("gc", {"orphans": True}),
        ]
        for number, (name, arguments) in enumerate(asked):
            bench.worker.receive(link.Operate(number, name, arguments))
            answer = await bench.wait(link.Operated, lambda m, number=number: m.id == number)
            assert isinstance(answer, link.Operated)
            assert not answer.error
            if name == "snapshot-delete":
                while bench.map.history.removed and written < last:
                    await asyncio.sleep(0.01)  # what it held is looked for
        assert written < last, "some of it was done only once nothing more was written"
        written = last
        await bench.detach()

    asyncio.run(main())


def test_a_slot_from_before_a_rollback_is_not_kept(tmp_path: Path) -> None:
    """It holds what the rollback took back, and the frame's own generation is older than the slot."""

    async def main() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        bench.write(0, b"a" * 4096)
        await bench.commit()
        bench.worker.receive(link.Operate(1, "snapshot", {"name": "s"}))
        await bench.wait(link.Operated, lambda m: m.id == 1)
        bench.write(0, b"b" * 4096)
        await bench.commit()
        assert bench.map.state is not None
        filled = bench.map.state.seq
        bench.worker.receive(link.Operate(2, "rollback", {"to": "s"}))
        await bench.wait(link.Operated, lambda m: m.id == 2)
        bench.worker.receive(link.Fetch(77, (link.FetchFrame(0, 0, filled),)))
        answer = await bench.wait(link.Fetched, lambda m: m.id == 77)
        assert isinstance(answer, link.Fetched)
        assert answer.frames[0].state == "data"
        assert bench.slots.slots[0].startswith(b"a" * 4096)
        await bench.detach()

    asyncio.run(main())


def test_a_fiber_keeps_a_whole_object_on_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A segment has megabytes; a disk that is busy would hold up the loop with its writing."""

    async def main() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        bench.write(0, os.urandom(MIB))
        await bench.commit()
        (key,) = _keys(bench.store, "ext/")
        threads = []
        monkeypatch.setattr(bench.local, "put", lambda *_: threads.append(threading.get_ident()))
        data = await fibers.converse(bench.worker._fetcher._get, key, -1, 0)
        assert data == bench.store.get(key).data
        assert len(threads) == 1
        assert threads[0] != threading.get_ident()
        await bench.detach()

    asyncio.run(main())


def test_a_fiber_that_waits_for_the_map_leaves_its_loop_turning(tmp_path: Path) -> None:
    """A large record is applied for a tenth of a second of CPU, on a thread that comes last on a busy host."""

    async def main() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        held, turned = threading.Event(), threading.Event()

        def apply() -> bool:
            with bench.map._lock:
                held.set()
                return turned.wait(10)

        applied = asyncio.ensure_future(asyncio.to_thread(apply))
        await asyncio.to_thread(held.wait, 30)
        found = asyncio.ensure_future(fibers.converse(bench.map.lookup, [0]))
        await asyncio.sleep(0.01)
        assert not found.done()
        turned.set()
        assert await applied, "the loop stood still until the map was free"
        state, _ = await found
        assert state == bench.map.state
        await bench.detach()

    asyncio.run(main())


class _Flaky(StoreWrapper):
    """Refuses the GETs that `refuses` chooses by their number."""

    asked = 0

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.refuses: Callable[[int], bool] = lambda number: False

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation in ("get", "get_range"):
            self.asked += 1
            if self.refuses(self.asked):
                raise Unavailable("not this time", key=call.key)
        return action()


def test_a_read_keeps_what_its_tries_have_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of sixteen objects from a store that answers one request in seven."""

    async def main() -> None:
        store = _Flaky(MemoryStore())
        bench = WorkerBench(tmp_path, store=store, settings=replace(SMALL, collector=CollectorSettings(wave_bytes=MIB)))
        await bench.attach()
        blocks = [os.urandom(4096) for _ in range(16)]
        for number, block in enumerate(blocks):
            bench.write(number * 8, block)
            await bench.commit()
        for info in store.list():
            bench.local.drop(info.key)
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr(bench.execution, "sleep", sleep)
        store.refuses = lambda number: number % 7 > 0
        assert await bench.read(0, 128) == b"".join(blocks)
        assert slept
        store.refuses = lambda number: False
        await bench.detach()

    asyncio.run(main())


def test_a_look_for_orphans_comes_to_its_end_though_requests_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every read is tried again by itself: not all pages of all snapshots whenever one of them cannot be had."""

    async def main() -> None:
        store = _Flaky(MemoryStore())
        volume = volume_file(512 * MIB, extent_bytes=128 * KIB, frame_bytes=16 * KIB)
        settings = replace(SMALL, collector=CollectorSettings(value_bytes_max=0), lease_s=60.0)
        bench = WorkerBench(tmp_path, store=store, volume=volume, settings=settings)
        await bench.attach()
        for number in range(6):
            for page in range(4):
                bench.write(page * PAGE_EXTENTS * 256 + number * 8, os.urandom(4096))
            await bench.commit()
            bench.worker.receive(link.Operate(number, "snapshot", {"name": f"s{number}"}))
            await bench.wait(link.Operated, lambda m, number=number: m.id == number)
        left = paths.extent(5, 2, 1)
        store.put(left, b"left by a crash")

        async def sleep(seconds: float) -> None:
            await asyncio.sleep(0)

        monkeypatch.setattr(bench.execution, "sleep", sleep)
        store.refuses = lambda number: number % 7 == 0
        bench.worker.receive(link.Operate(99, "gc", {"orphans": True}))
        answer = await bench.wait(link.Operated, lambda m: m.id == 99)
        store.refuses = lambda number: False
        assert isinstance(answer, link.Operated)
        assert answer.result["orphans"] == 1, answer
        assert left not in {info.key for info in store.list("ext/")}
        await bench.detach()

    asyncio.run(main())


def test_orphans_a_record_that_a_rollback_left_pinned_is_let_go(tmp_path: Path) -> None:
    """Its patch died while a snapshot of the other branch, which never had it, seemed to need it (seed 336)."""

    async def main() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        numbers = iter(range(100))

        async def operate(what: str, /, **arguments: Any) -> None:
            number = next(numbers)
            bench.worker.receive(link.Operate(number, what, arguments))
            answer = await bench.wait(link.Operated, lambda m: m.id == number)
            assert isinstance(answer, link.Operated)
            assert not answer.error, answer

        def unneeded() -> list[int]:
            return bench.map.old_records(1 << 62, 1 << 62, 1000)

        bench.write(0, b"a" * 4096)
        await bench.commit()
        assert bench.map.state is not None
        born = bench.map.state.seq
        await operate("snapshot", name="with it")
        bench.write(0, b"b" * 4096)
        await bench.commit()
        await operate("snapshot", name="without it")
        await operate("rollback", to="with it", keep_as="before")
        await operate("snapshot-delete", name="with it")
        await operate("gc")  # the live map has it: it stays
        assert not bench.map.history.removed
        bench.write(0, b"c" * 4096)
        await bench.commit()
        assert born not in unneeded()
        await operate("gc", orphans=True)
        assert born in unneeded()
        assert await bench.read(0, 8) == b"c" * 4096
        await operate("rollback", to="without it", keep_as="again")
        assert await bench.read(0, 8) == b"b" * 4096
        await bench.detach()

    asyncio.run(main())
