"""Crashes at every kind of moment: what a volume promises after each way a life can end, in numbered episodes.

A failure names its seed; `make sim SEED=...` runs that episode again, step by step the same. `SIM_EPISODES` sets how many
are run, `SIM_FRESH` how many of them with seeds nobody has run before.
"""

import random
from collections import Counter
from dataclasses import replace

import pytest

from blockdev.units import MIB
from tests.simulation.episodes import (
    BLOCKS,
    FAMILIES,
    FAMILY_BLOCKS,
    FRESH,
    EpisodeFailed,
    block,
    quiet,
    run,
    run_family,
    run_one,
)
from tests.simulation.initiator import Initiators, in_time
from tests.simulation.process import Session
from tests.simulation.world import Plan, World, draw


def test_a_few_episodes() -> None:
    """The beginning of the fixed set, for `make check`."""
    happened = run(range(12))
    assert happened["lives"] > 24


@pytest.mark.slow
@pytest.mark.parametrize("index", range(BLOCKS))
def test_the_fixed_set(index: int) -> None:
    happened = run(block(index))
    # An episode that never comes across these shows nothing.
    for event in ("crash: kill", "crash: power", "crash: host", "detached", "loss accepted", "commits", "flushes"):
        assert happened[event], f"no episode of this block had: {event}"
    for event in ("operation: snapshot", "operation: snapshot-delete", "operation: gc", "operation: resize"):
        assert happened[event], f"no episode of this block had: {event}"
    for event in ("snapshots read", "rolled back", "looked for leaks", "previous roots read", "taken over"):
        assert happened[event], f"no episode of this block had: {event}"
    for event in ("extents_folded", "patches_moved", "objects_deleted", "journal full", "cache bits flipped"):
        assert happened[event], f"no episode of this block had: {event}"


@pytest.mark.slow
def test_fresh_seeds() -> None:
    first = random.SystemRandom().getrandbits(48)
    run(range(first, first + FRESH))


def steps_of(seed: int, plan: Plan) -> int:
    """How many steps the first life has before anything ends it."""
    world = World(seed, plan)
    with quiet():
        world.run()
    return world.first_life_steps


class Operated(World):
    """A life with snapshots, a removal that is swept, checkpoints with deltas; then a command that rolls back."""

    end = "kill"
    crash_life = -1
    crash_point = -1
    lived = -1
    points: tuple[int, ...] = ()

    def live_through(self) -> None:
        for kind in (self.end, "session", self.end):
            self.lived += 1
            loop = self.loop
            if self.lived == self.crash_life:
                loop.crash_at_point = self.crash_point
            self._live(0, kind)
            self.points += (loop.points,)

    def _arm_session(self) -> None:
        """The test says where."""

    async def _work_for(self, served: Initiators, steps: int) -> None:
        if self.lived or self._settling:
            return
        r = self._stream("script")
        for _ in range(3):
            for _ in range(3):
                served._write(r)
            await served.take_snapshot(r)
        served._discard(r)
        await served.operate("checkpoint")
        await served.delete_snapshot("s1")
        await served.operate("gc", orphans=True)
        served._write(r)
        await served.delete_snapshot("s3")

    async def _offline_work(self, process: Session) -> None:
        if "s2" in self.snapshots.alive():
            answer = await in_time(self._roll_back(process, "s2"), "the rollback")
            assert not answer.kind, answer
            self.sizes = {self.volume.geometry.size_bytes}
            self.model.settled()


OPERATED_PARTS = 5
"""So that no single test runs for minutes."""
OPERATED = Plan(
    extents=3,
    page_extents=2,
    steps_per_life=1,
    crash_at=1 << 40,
    leaks=True,
    settings=replace(Plan().settings, ring_bytes=MIB),
)
"""With a journal that takes all that the script writes."""


@pytest.mark.slow
@pytest.mark.parametrize("part", range(OPERATED_PARTS))
@pytest.mark.parametrize("life", [0, 1], ids=["served", "command"])
def test_a_crash_at_every_point_of_a_life_with_operations(life: int, part: int) -> None:
    """Wherever disk or store are touched: how the process dies there goes round among kill, power loss and loss of the host.
    In the end everything is deleted, and nothing is left over."""
    ends = ("kill", "power", "host")
    with quiet():
        whole = Operated(7, OPERATED)
        whole.run()
        assert whole.happened["rolled back"] == 1
        assert whole.happened["looked for leaks"] == 1
        assert whole.points[life] > 100
        crashed = 0
        for point in range(1 + part, whole.points[life], OPERATED_PARTS):
            world = Operated(7, OPERATED)
            world.end, world.crash_life, world.crash_point = ends[point % 3], life, point
            try:
                world.run()
            except Exception as error:
                raise EpisodeFailed(f"life {life}, point {point}, {world.end}: {error}") from error
            crashed += sum(count for name, count in world.happened.items() if name.startswith("crash"))
    assert crashed > 50 // OPERATED_PARTS


@pytest.mark.slow
@pytest.mark.parametrize("index", range(FAMILY_BLOCKS))
def test_families(index: int) -> None:
    """Clones and their parents: see `family`."""
    happened: Counter[str] = Counter()
    with quiet():
        for seed in range(FAMILIES * index // FAMILY_BLOCKS, FAMILIES * (index + 1) // FAMILY_BLOCKS):
            happened.update(run_family(seed))
    for event in ("clones", "snapshots read", "rolled back", "sessions"):
        assert happened[event], f"no family of this block had: {event}"


def test_a_few_families() -> None:
    """Several: what one seed meets changes with every change of the engine."""
    happened: Counter[str] = Counter()
    with quiet():
        for seed in range(4, 10):
            happened.update(run_family(seed))
    for event in ("clones", "snapshots read", "rolled back"):
        assert happened[event], f"none of the families had: {event}"


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill", "power", "host"])
def test_a_crash_at_every_step_of_one_life(end: str) -> None:
    """Attach, some work, commits, a fold, a clean stop: the crash falls at each step of it in turn."""
    seed = 5
    plan = replace(draw(seed), lives=2, extents=1, actors=2, steps_per_life=150, fault_rate=0.0)
    total = steps_of(seed, replace(plan, ends=("detach",)))
    assert total > 500
    with quiet():
        for step in range(1, total):
            run_one(seed, replace(plan, ends=(end,), crash_at=step))
