"""When an environment starts and stops by itself: days and a moment of a time zone, as `MON-FRI 08:00`. Pure.

One rule: a rule names local moments. Where a clock is put forward over one, it is the moment an hour later; where it is put
back over one, the first of the two.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

DAYS: Final = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
_RULE = re.compile(r"(\*|[A-Z]{3}(?:-[A-Z]{3})?(?:,[A-Z]{3}(?:-[A-Z]{3})?)*) ([01][0-9]|2[0-3]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Rule:
    days: frozenset[int]
    """0: Monday."""
    hour: int
    minute: int


def parse(text: str) -> Rule:
    """ValueError says what is wrong."""
    found = _RULE.fullmatch(text.strip().upper())
    if found is None:
        raise ValueError(
            f"{text!r} is not a schedule: days and a moment are wanted, such as `MON-FRI 08:00` or `* 20:30`"
        )
    days: set[int] = set()
    for part in found[1].split(","):
        if part == "*":
            days.update(range(7))
            continue
        first, _, last = part.partition("-")
        for name in (first, last or first):
            if name not in DAYS:
                raise ValueError(f"{name!r} is not a day; the days are {' '.join(DAYS)}")
        at = DAYS.index(first)
        span = (DAYS.index(last or first) - at) % 7
        days.update((at + step) % 7 for step in range(span + 1))
    return Rule(frozenset(days), int(found[2]), int(found[3]))


def zone(name: str) -> tzinfo:
    """ValueError: there is no such time zone."""
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{name!r} is not a time zone; take a name such as Europe/Berlin") from error


def last_before(rule: Rule, where: tzinfo, now: float) -> float:
    """The rule's last moment that is not after `now`."""
    return max(moment for moment in _around(rule, where, now) if moment <= now)


def next_after(rule: Rule, where: tzinfo, now: float) -> float:
    """Its first moment after `now`."""
    return min(moment for moment in _around(rule, where, now) if moment > now)


def due(schedule: Mapping[str, str], which: str, since: float | None, now: float, late_s: float) -> bool:
    """Whether a moment of `which` (`start` or `stop`) came after `since` and is at most `late_s` ago: what a console that was
    down for a day missed is not caught up with."""
    if not schedule.get(which):
        return False
    moment = last_before(parse(schedule[which]), zone(schedule.get("timezone", "UTC")), now)
    return now - moment <= late_s and (since is None or since < moment)


def next_of(schedule: Mapping[str, str], which: str, now: float) -> float | None:
    if not schedule.get(which):
        return None
    return next_after(parse(schedule[which]), zone(schedule.get("timezone", "UTC")), now)


def _around(rule: Rule, where: tzinfo, now: float) -> list[float]:
    today = datetime.fromtimestamp(now, where).date()
    days = [today + timedelta(days=step) for step in range(-8, 9)]
    return [
        datetime(day.year, day.month, day.day, rule.hour, rule.minute, tzinfo=where).timestamp()
        for day in days
        if day.weekday() in rule.days
    ]
