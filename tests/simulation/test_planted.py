"""The simulation is worth its time only if it catches mistakes: each planted bug must fail one of the first episodes."""

from dataclasses import replace

import pytest

from tests.simulation.episodes import EpisodeFailed, quiet, run_family, run_one
from tests.simulation.planted.bugs import (
    BUGS,
    CLONE_BUGS,
    FLIP_BUGS,
    FLUSH_BUGS,
    OPERATION_BUGS,
    TAKEOVER_BUGS,
    Bug,
)
from tests.simulation.world import Plan, draw

SEEDS = 1000
"""At most; most are caught within ten. Fewer than the fixed set of CI."""


pytestmark = pytest.mark.timeout(900)


def first_caught(bug: Bug, **changes: object) -> str:
    """The failure of the first episode that catches the bug; empty when none does."""
    for seed in range(SEEDS):
        plan: Plan = replace(draw(seed), **changes)  # type: ignore[arg-type]  # by field
        with bug.planted(), quiet():
            try:
                run_one(seed, plan)
            except EpisodeFailed as failure:
                if isinstance(failure.__cause__, TypeError | AttributeError | NameError):
                    raise AssertionError(f"the planted bug does not fit the engine of today: {failure}") from failure
                return str(failure)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_it_is_caught(bug: Bug) -> None:
    failure = first_caught(bug)
    assert failure, f"{SEEDS} episodes and nobody noticed that {bug.story}"
    assert "replay: make sim SEED=" in failure


@pytest.mark.slow
@pytest.mark.parametrize("bug", FLIP_BUGS, ids=lambda bug: bug.name)
def test_it_is_caught_when_bits_flip(bug: Bug) -> None:
    assert first_caught(bug, object_flips=0.05), f"{SEEDS} episodes and nobody noticed that {bug.story}"


@pytest.mark.slow
@pytest.mark.parametrize("bug", OPERATION_BUGS, ids=lambda bug: bug.name)
def test_it_is_caught_where_operators_work(bug: Bug) -> None:
    assert first_caught(bug, operations=True, session_rate=0.5), f"{SEEDS} episodes and nobody noticed that {bug.story}"


@pytest.mark.slow
@pytest.mark.parametrize("bug", TAKEOVER_BUGS, ids=lambda bug: bug.name)
def test_it_is_caught_when_hosts_take_over(bug: Bug) -> None:
    assert first_caught(bug, ends=("takeover",)), f"{SEEDS} episodes and nobody noticed that {bug.story}"


@pytest.mark.slow
@pytest.mark.parametrize("bug", FLUSH_BUGS, ids=lambda bug: bug.name)
def test_it_is_caught_when_flushes_change(bug: Bug) -> None:
    failure = first_caught(bug, mixed_flush=True, ends=("kill", "kill", "host"))
    assert failure, f"{SEEDS} episodes and nobody noticed that {bug.story}"


@pytest.mark.slow
@pytest.mark.parametrize("bug", CLONE_BUGS, ids=lambda bug: bug.name)
def test_it_is_caught_in_families(bug: Bug) -> None:
    for seed in range(SEEDS // 4):
        with bug.planted(), quiet():
            try:
                run_family(seed)
            except EpisodeFailed:
                return
    raise AssertionError(f"{SEEDS // 4} families and nobody noticed that {bug.story}")


def test_nothing_stays_planted() -> None:
    """A bug is taken out again."""
    bug = BUGS[0]
    before = getattr(bug.where, bug.attribute)
    with bug.planted():
        assert getattr(bug.where, bug.attribute) is bug.replacement
    assert getattr(bug.where, bug.attribute) is before
