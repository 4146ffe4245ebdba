"""How values are written, and backups as days and hours."""

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from envctl.web.pages import shown, timeline
from envctl.web.pages.visit import own_path


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (3900, "1 h 5 min"),
        (36000, "10 h"),
        (86400, "1 d"),
        (90000, "1 d 1 h"),
        (864000, "10 d"),
        (86400 * 366, "1 y 1 d"),
        (-5, "0 s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert shown.duration(seconds) == text


def test_moments() -> None:
    assert shown.ago(940, 1000) == "1 min ago"
    assert shown.ago(1090, 1000) == "in 1 min"
    assert shown.ago(1000.4, 1000) == "now"
    assert shown.moment_of(shown.local(1_790_000_040)) == 1_790_000_040
    with pytest.raises(ValueError):
        shown.moment_of("tomorrow")


def test_sentences() -> None:
    assert shown.sentence("it is frozen") == "It is frozen."
    assert shown.sentence("Is it?") == "Is it?"
    assert shown.sentence("file:///homes does not answer") == "file:///homes does not answer."
    assert shown.sentence("pve1: no quorum") == "pve1: no quorum."
    assert shown.sentence("") == ""


@dataclass(frozen=True)
class One:
    number: int
    at: float
    pinned: bool = False
    alert: str | None = None


def at(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC).timestamp()


BACKUPS = [
    One(4, at("2026-11-22 14:20")),
    One(3, at("2026-11-22 14:10"), alert="much changed"),
    One(2, at("2026-11-22 13:59")),
    One(1, at("2026-11-20 00:00"), pinned=True),
]


def test_days_and_hours() -> None:
    days = timeline.days_of(BACKUPS, chosen=("2026-11-22", 14))
    assert [(day.date, day.count) for day in days] == [("2026-11-22", 3), ("2026-11-20", 1)]
    hour = days[0].hours[14]
    assert (hour.count, hour.newest, hour.alert, hour.pinned, hour.current) == (2, 4, True, False, True)
    assert hour.about("2026-11-22") == "2026-11-22, 14:00 to 14:59 UTC: 2 backups, with an alert"
    assert days[1].hours[0].pinned
    assert [one.number for one in timeline.within(BACKUPS, ("2026-11-22", 14))] == [4, 3]


def test_a_home_as_of_a_minute() -> None:
    def number(text: str) -> int | None:
        found = timeline.as_of(BACKUPS, at(text))
        return found.number if found else None

    assert number("2026-11-22 14:15") == 3
    assert number("2026-11-22 13:59") == 2
    assert number("2026-11-21 09:00") == 1
    assert number("2026-11-19 23:59") is None


@pytest.mark.parametrize(
    "path",
    [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil",
        "javascript:alert(1)",
        "/a\r\nSet-Cookie: x",
        "",
        "x",
    ],
)
def test_nobody_is_sent_elsewhere(path: str) -> None:
    assert own_path(path) == "/environments"


def test_own_paths_are_kept() -> None:
    assert own_path("/environments/1?tab=a&b=c%20d") == "/environments/1?tab=a&b=c+d"


def test_what_an_agent_tells_as_a_figure_is_short_and_anything_else_is_harmless() -> None:
    assert shown.rounded(5.53759765625) == "5.54"
    assert shown.rounded(2.0) == "2"
    assert shown.rounded("<b>") == "<b>"
