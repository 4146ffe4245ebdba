"""Which snapshots are kept. Pure.

One rule: the newest is always kept, and so is what is pinned. Of the others every one of the last day, then the newest of each
hour, day and week. Bounds of hours, days and weeks are those of UTC, weeks begin on Monday, so that the choice does not
change from one run to the next: what was kept once is kept until its whole span ends.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

HOUR_S: Final = 3600
DAY_S: Final = 86400
WEEK_S: Final = 7 * DAY_S
_MONDAY_S: Final = 4 * DAY_S
"""The first Monday after the epoch, which was a Thursday."""


class Dated(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def pinned(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Policy:
    """Ages in seconds up to which all, one an hour, one a day, one a week are kept."""

    all_s: float = DAY_S
    hourly_s: float = 7 * DAY_S
    daily_s: float = 30 * DAY_S
    weekly_s: float = 365 * DAY_S


def keep(snapshots: Iterable[Dated], policy: Policy, now: float, protected: Collection[int] = ()) -> set[int]:
    """Numbers of those to keep. `protected`: what something refers to, such as a restore that is under way. Snapshots from the
    future (a clock went back) are kept."""
    ordered = sorted(snapshots, key=lambda one: one.number, reverse=True)
    kept = {one.number for one in ordered if one.pinned or one.number in protected}
    if ordered:
        kept.add(ordered[0].number)
    kept.update(one.number for one in ordered if now - one.at <= policy.all_s)
    for span_s, age_s in ((HOUR_S, policy.hourly_s), (DAY_S, policy.daily_s), (WEEK_S, policy.weekly_s)):
        seen: set[int] = set()
        for one in ordered:
            span = int((one.at - _MONDAY_S) // span_s)
            if now - one.at <= age_s and span not in seen:
                seen.add(span)
                kept.add(one.number)
    return kept
