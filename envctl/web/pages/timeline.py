"""Backups as days and hours, for a page. Pure; days and hours are UTC."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Protocol

DAYS_SHOWN: Final = 14


class Moment(Protocol):
    """What the timeline needs of a backup."""

    @property
    def number(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def pinned(self) -> bool: ...
    @property
    def alert(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Hour:
    hour: int
    count: int = 0
    newest: int = 0
    """Number of its newest backup."""
    pinned: bool = False
    alert: bool = False
    current: bool = False

    def about(self, day: str) -> str:
        """What its mark says to who cannot see it."""
        words = [
            f"{day}, {self.hour:02d}:00 to {self.hour:02d}:59 UTC: {self.count} "
            + ("backup" if self.count == 1 else "backups")
        ]
        if self.pinned:
            words.append("pinned")
        if self.alert:
            words.append("with an alert")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Day:
    date: str
    """`2026-11-22`"""
    title: str
    """`Sun 22 Nov`; what lies a year back is gone or pinned, and its mark names the year."""
    hours: tuple[Hour, ...]
    count: int


def key_of(moment: float) -> tuple[str, int]:
    """Day and hour of a moment."""
    at = datetime.fromtimestamp(moment, UTC)
    return at.strftime("%Y-%m-%d"), at.hour


def days_of(backups: Sequence[Moment], *, chosen: tuple[str, int] | None = None) -> list[Day]:
    """Days that have a backup, the newest first, each with all of its hours."""
    hours: dict[tuple[str, int], list[Moment]] = {}
    for one in backups:
        hours.setdefault(key_of(one.at), []).append(one)
    made = []
    for date in sorted({date for date, _ in hours}, reverse=True):
        marks = []
        for hour in range(24):
            found = hours.get((date, hour), [])
            marks.append(
                Hour(
                    hour,
                    len(found),
                    max((one.number for one in found), default=0),
                    any(one.pinned for one in found),
                    any(one.alert for one in found),
                    chosen == (date, hour),
                )
            )
        title = datetime.strptime(date, "%Y-%m-%d").strftime("%a %d %b")
        made.append(Day(date, title, tuple(marks), sum(mark.count for mark in marks)))
    return made


def within(backups: Sequence[Moment], chosen: tuple[str, int]) -> list[Moment]:
    """Those of that day and hour, the newest first."""
    return sorted((one for one in backups if key_of(one.at) == chosen), key=lambda one: -one.number)


def as_of(backups: Sequence[Moment], moment: float) -> Moment | None:
    """The home as it was at `moment`: the newest backup that is not later."""
    return max((one for one in backups if one.at <= moment), key=lambda one: one.number, default=None)
