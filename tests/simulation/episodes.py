"""Running numbered episodes, and telling how to see a failed one again."""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from tests.simulation.family import Family
from tests.simulation.world import Plan, World, draw

EPISODES = int(os.environ.get("SIM_EPISODES", "1200"))
"""How many the slow tests run in all; the fast ones run a few of the same."""
FRESH = int(os.environ.get("SIM_FRESH", "200"))
"""How many more with seeds nobody has run before."""
BLOCKS = 10
FAMILIES = int(os.environ.get("SIM_FAMILIES", "80"))
"""Volumes with clones; each is worth several episodes."""
FAMILY_BLOCKS = 4


class EpisodeFailed(AssertionError):
    """One episode broke a promise; the message says how to replay it."""


@contextmanager
def quiet() -> Iterator[None]:
    """The engine reports each fault it meets, and here it meets thousands."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def run(seeds: Iterable[int], **changes: object) -> Counter[str]:
    """Run the episodes; what they came across in all. `changes` replace fields of each drawn plan."""
    happened: Counter[str] = Counter()
    with quiet():
        for seed in seeds:
            happened.update(run_one(seed, replace(draw(seed), **changes)))  # type: ignore[arg-type]  # by field
    return happened


def run_one(seed: int, plan: Plan) -> Counter[str]:
    world = World(seed, plan)
    try:
        world.run()
    except Exception as error:
        changed = "" if plan == draw(seed) else f" (with this plan: {plan})"
        raise EpisodeFailed(
            f"seed {seed}: {type(error).__name__}: {error}\nreplay: make sim SEED={seed}{changed}"
        ) from error
    finally:
        world.loop.abandon()
    return world.happened


def run_family(seed: int) -> Counter[str]:
    """A volume and its clone, both living on."""
    family = Family(seed)
    try:
        family.run()
    except Exception as error:
        raise EpisodeFailed(
            f"family {seed}: {type(error).__name__}: {error}\n"
            f"replay: .venv/bin/python -m tests.simulation {seed} --family"
        ) from error
    finally:
        for member in family.members:
            member.loop.abandon()
    return family.happened


def block(index: int, total: int = EPISODES) -> range:
    """The seeds of one of BLOCKS parts of the fixed set, so that no single test runs for minutes."""
    return range(total * index // BLOCKS, total * (index + 1) // BLOCKS)
