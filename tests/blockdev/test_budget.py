"""Commits an hour: what age alone may ask for, and what other reasons cost."""

import itertools
import random

import pytest

from blockdev.engine.budget import HOUR_S, CommitBudget


def made_in(seconds: float, budget: CommitBudget, *, begin: float = 0.0, every: float = 5.0) -> list[float]:
    """When commits for age alone are made by a volume that is always written and asks every few seconds."""
    found = []
    now = begin
    while now < begin + seconds:
        if not budget.wait_s(now):
            budget.made(now)
            found.append(now)
        now += every
    return found


def test_without_a_budget_nothing_waits() -> None:
    assert len(made_in(HOUR_S, CommitBudget(0, 0.0))) == HOUR_S / 5


@pytest.mark.parametrize("per_hour", [1, 7, 60, 300])
def test_no_hour_has_more_and_they_are_spread(per_hour: int) -> None:
    found = made_in(5 * HOUR_S, CommitBudget(per_hour, 0.0))
    for first in found:
        assert sum(first <= when < first + HOUR_S for when in found) <= per_hour
    gaps = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert min(gaps) >= HOUR_S / per_hour - 0.001
    assert max(gaps) <= HOUR_S / per_hour + 5.001


def test_a_write_after_a_quiet_time_waits_for_its_age_only() -> None:
    budget = CommitBudget(60, 0.0)
    budget.made(0.0)
    assert budget.wait_s(30.0) == pytest.approx(30.0)
    assert budget.wait_s(1000.0) == 0


def test_what_was_forced_is_counted_but_owed_for_an_hour_at_most() -> None:
    budget = CommitBudget(60, 0.0)
    for _ in range(10):
        budget.made(0.0)
    assert budget.wait_s(0.0) == pytest.approx(600.0)
    for _ in range(10_000):
        budget.made(1.0)
    assert budget.wait_s(1.0) == pytest.approx(HOUR_S + 60.0)


def test_the_wait_is_long_enough_when_it_is_over() -> None:
    """Whatever the clock shows: after waiting as long as was said, the commit may be made, at once or a moment later."""
    r = random.Random(1)
    for _ in range(2000):
        budget = CommitBudget(r.randrange(1, 4000), now := r.random() * 1e7)
        for _ in range(r.randrange(1, 5)):
            budget.made(now)
            now += r.random() * 10
        now += budget.wait_s(now)
        assert budget.wait_s(now) < 1e-3
