"""What is kept: five minutes for a day, hours for a week, days for a month, weeks for a year, pins and the newest for ever."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from envctl.homes.retention import DAY_S, HOUR_S, WEEK_S, Policy, keep

POLICY = Policy()


@dataclass(frozen=True)
class One:
    number: int
    at: float
    pinned: bool = False


SNAPSHOTS = st.lists(st.tuples(st.integers(0, 500 * DAY_S), st.booleans()), max_size=60).map(
    lambda moments: [One(number, at, pinned) for number, (at, pinned) in enumerate(sorted(moments), 1)]
)
NOW = 500 * DAY_S


@given(SNAPSHOTS, st.sets(st.integers(1, 60)))
def test_newest_pinned_protected_and_fresh_are_always_kept(snapshots: list[One], protected: set[int]) -> None:
    kept = keep(snapshots, POLICY, NOW, protected)
    numbers = {one.number for one in snapshots}
    assert kept <= numbers
    assert not snapshots or snapshots[-1].number in kept
    for one in snapshots:
        if one.pinned or one.number in protected or NOW - one.at <= DAY_S:
            assert one.number in kept


@given(SNAPSHOTS)
def test_what_was_kept_is_kept_by_the_next_run(snapshots: list[One]) -> None:
    kept = keep(snapshots, POLICY, NOW)
    assert keep([one for one in snapshots if one.number in kept], POLICY, NOW) == kept


@given(SNAPSHOTS, st.lists(st.integers(0, 400 * DAY_S), max_size=8))
def test_thinning_often_keeps_no_less_than_thinning_once(snapshots: list[One], runs: list[int]) -> None:
    """Each hour, day and week that has a snapshot still has one, however often retention ran before."""
    left = list(snapshots)
    for moment in sorted(runs):
        now = 100 * DAY_S + moment
        old = [one for one in left if one.at <= now]
        kept = keep(old, POLICY, now)
        left = [one for one in left if one.at > now or one.number in kept]
    kept = keep(left, POLICY, NOW)
    for span_s, age_s in ((HOUR_S, 7 * DAY_S), (DAY_S, 30 * DAY_S), (WEEK_S, 365 * DAY_S)):
        for one in snapshots:
            if NOW - one.at <= age_s - span_s:
                near = [other for other in left if other.number in kept and abs(other.at - one.at) < span_s]
                assert near, (one, span_s)


def test_a_year_of_backups_each_five_minutes_leaves_some_hundreds() -> None:
    last = 2 * 365 * DAY_S
    snapshots = [One(number, float(at)) for number, at in enumerate(range(0, last, 1800), 1)]
    snapshots += [One(len(snapshots) + number, last + 300.0 * number) for number in range(1, 289)]
    now = last + DAY_S
    numbers = keep(snapshots, POLICY, now)
    kept = [one for one in snapshots if one.number in numbers]
    assert 288 + 6 * 24 + 23 + 47 <= len(kept) <= 289 + 7 * 24 + 31 + 54
    ages = [now - one.at for one in kept]
    assert max(ages) <= 365 * DAY_S
    assert sum(age <= DAY_S for age in ages) == 288


def test_a_clock_that_went_back_removes_nothing() -> None:
    snapshots = [One(number, 1e9 + number) for number in range(1, 9)]
    assert keep(snapshots, POLICY, 0.0) == set(range(1, 9))
