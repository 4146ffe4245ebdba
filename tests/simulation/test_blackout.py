"""The store is away for five minutes of virtual time, and a budget of commits, under writers who heed what they are told."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from blockdev.engine.destager import CommitSettings
from blockdev.engine.lease import LEASE_S
from blockdev.engine.worker import WorkerSettings
from blockdev.errors import BlockError, JournalFull, NotReady
from blockdev.units import KIB, MIB
from tests.simulation.episodes import quiet
from tests.simulation.initiator import Initiators
from tests.simulation.process import ProcessSettings
from tests.simulation.world import Plan, World, draw

BLACKOUT_S = 300.0
AFTER_S = 80.0
WRITERS = 3


async def paced_writer(
    world: World, served: Initiators, r: random.Random, pause_s: float, until: Callable[[], bool]
) -> None:
    """Writes, holds back as long as the volume asks, waits while it is told BUSY; flushes and reads in between."""
    process = served.process
    assert process is not None
    while not until() and process.stopped_by is None:
        before = process.front.write_bytes
        try:
            served._write(r)
        except JournalFull:
            world.happened["journal full"] += 1
            await asyncio.sleep(1.0)
        except NotReady:
            return
        held = process.front.hold_back(process.front.write_bytes - before)
        assert held <= 1.0
        world.happened["held back"] += held > 0
        await asyncio.sleep(max(held, r.expovariate(1.0 / pause_s)))
        try:
            if r.random() < 0.05:
                await served.flush()
            if r.random() < 0.05:
                await served._check_read(r)
        except BlockError as error:
            raise served.unexpected(error) from error


class Blackout(World):
    """In each life that works: a quiet start, five minutes without the store, one minute with it."""

    pause_s = 0.5

    async def _work_for(self, served: Initiators, steps: int) -> None:
        if steps == self.plan.steps_per_life // 4:
            await super()._work_for(served, steps)
            return
        process = served.process
        assert process is not None
        loop = self.loop
        dark_from = loop.time() + 5.0
        light_at = dark_from + BLACKOUT_S
        end = light_at + AFTER_S
        writers = [
            loop.create_task(
                paced_writer(self, served, self._stream(f"w{n} {loop.steps}"), self.pause_s, lambda: loop.time() >= end)
            )
            for n in range(WRITERS)
        ]
        await asyncio.sleep(5.0)
        self.store.partition(BLACKOUT_S)
        await asyncio.sleep(1.0)
        durable, writes = process.front.durable, process.front.writes
        await asyncio.sleep(BLACKOUT_S - 2.0)
        assert process.front.durable == durable, "something became durable without a store"
        told = process.front.snapshot()
        assert told["rpo_seconds"] >= BLACKOUT_S - 10, told
        assert told["rpo_bytes"] == process.front._journal.head - durable
        self.happened["writes in the dark"] += process.front.writes - writes
        await asyncio.sleep(1.0)
        head, writes = process.front._journal.head, process.front.writes
        await asyncio.sleep(AFTER_S / 2)
        assert process.front.durable >= head, f"the backlog is not carried after {AFTER_S / 2} s"
        self.happened["writes while it drains"] += process.front.writes - writes
        for writer in writers:
            await writer
        served.check_alive()
        self.happened["blackouts"] += 1
        await asyncio.sleep(10.0)
        told = process.front.snapshot()
        assert (told["rpo_seconds"], told["rpo_bytes"]) == (0.0, 0)


def blackout_plan(seed: int, **changes: object) -> Plan:
    plan = draw(seed)
    worker = plan.settings.worker
    # Commits as large as the backlog wants them, or draining it takes longer than the store was away.
    # No budget: the backlog's commits are counted against it, and the last writes rightly wait until that is paid off.
    commit = replace(worker.commit, commit_bytes=512 * KIB, segment_bytes=64 * KIB, per_hour_max=0)
    # As served: a shorter lease would be out before the store is back, and the volume would rightly wait.
    worker = replace(worker, commit=commit, lease_s=LEASE_S)
    settings = replace(plan.settings, worker=worker, delay_s=0.01, **changes)  # type: ignore[arg-type]  # by field
    ends = ("detach", "kill", "host", "power")
    plan = replace(plan, lives=3, settings=settings, fault_rate=0.0, sync_fails=False, cache_flips=False, ends=ends)
    return replace(plan, mixed_flush=False)  # what a flush means is the test's to say


@pytest.mark.slow
@pytest.mark.parametrize("flush_to", ["local", "s3"])
@pytest.mark.parametrize("ring_bytes", [512 * KIB, 16 * MIB], ids=["small journal", "large journal"])
def test_five_minutes_without_the_store(ring_bytes: int, flush_to: str) -> None:
    with quiet():
        happened: dict[str, int] = {}
        for seed in range(3):
            world = Blackout(seed, blackout_plan(seed, ring_bytes=ring_bytes, flush_to=flush_to))
            world.run()
            for name, count in world.happened.items():
                happened[name] = happened.get(name, 0) + count
    assert happened["blackouts"] >= 2
    assert happened["writes in the dark"] > (10 if ring_bytes < MIB else 100)
    assert happened["writes while it drains"] > 10
    if flush_to == "local":
        assert happened["held back"] > 10
    if ring_bytes < MIB:
        assert happened["journal full"]


class Budgeted(World):
    """An hour of a small write every few seconds."""

    longest_s = 0.0
    made = 0

    async def _work_for(self, served: Initiators, steps: int) -> None:
        process = served.process
        assert process is not None
        before = self.happened["commits"]
        until = self.loop.time() + 3600.0
        r = self._stream("budget")
        while self.loop.time() < until:
            served._write(r)
            await asyncio.sleep(r.expovariate(1 / 4.0))
            self.longest_s = max(self.longest_s, process.front.snapshot()["rpo_seconds"])
        self.made = self.happened["commits"] - before


@pytest.mark.slow
@pytest.mark.parametrize("per_hour", [0, 30, 120])
def test_a_budget_bounds_the_commits_of_an_hour(per_hour: int) -> None:
    commit = CommitSettings(commit_bytes=64 * MIB, interval_s=5.0, per_hour_max=per_hour)
    settings = ProcessSettings(WorkerSettings(commit=commit), 64 * MIB, 32, 0, "local", 0.01)
    world = Budgeted(3, Plan(lives=1, settings=settings))
    with quiet():
        world.run()
    if per_hour:
        assert per_hour * 0.9 <= world.made <= per_hour + 1
        assert world.longest_s <= 3600 / per_hour + 5.0
    else:
        assert world.made > 350
        assert world.longest_s < 7.0
