"""Crashes at every kind of moment: what a volume promises after each way a life can end, in numbered episodes.

A failure names its seed; `make sim SEED=...` runs that episode again, step by step the same. `SIM_EPISODES` sets how many
are run, `SIM_FRESH` how many of them with seeds nobody has run before.
"""

import random
from dataclasses import replace

import pytest

from tests.simulation.episodes import BLOCKS, FRESH, block, quiet, run, run_one
from tests.simulation.world import Plan, World, draw


def test_a_few_episodes() -> None:
    """The beginning of the fixed set, for `make check`."""
    happened = run(range(30))
    assert happened["lives"] > 60


@pytest.mark.slow
@pytest.mark.parametrize("index", range(BLOCKS))
def test_the_fixed_set(index: int) -> None:
    happened = run(block(index))
    # An episode that never comes across these shows nothing.
    for event in ("crash: kill", "crash: power", "crash: host", "detached", "loss accepted", "commits", "flushes"):
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
