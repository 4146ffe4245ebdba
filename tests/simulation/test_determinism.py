"""The same seed is the same run, step by step; another seed is another one."""

import pytest

from tests.simulation.episodes import quiet
from tests.simulation.world import World


def traced(seed: int) -> tuple[list[tuple[int, str]] | None, str, dict[str, int]]:
    """Steps of the last life (whose beginning depends on all lives before), digest of what was compared, what happened."""
    with quiet():
        world = World(seed, trace=True)
        world.run()
    return world.last_trace, world.digest, dict(world.happened)


@pytest.mark.parametrize("seed", [0, 5, 11, 23])
def test_one_seed_is_one_run(seed: int) -> None:
    first = traced(seed)
    assert first[0]
    assert traced(seed) == first


def test_seeds_differ() -> None:
    assert len({traced(seed)[1] for seed in range(4)}) == 4
