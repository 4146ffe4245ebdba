"""WCAG AA in both themes, computed from the style sheet: text 4.5 : 1 on what it lies on, edges of controls 3 : 1."""

import re

import pytest

from envctl.web.pages.rendering import STATIC

SHEET = (STATIC / "console.css").read_text(encoding="utf-8")
COLOURS = {
    name: (light, dark)
    for name, light, dark in re.findall(r"--([a-z-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", SHEET)
}
TEXT = [
    *(
        (ink, paper)
        for ink in ("text", "muted", "accent", "accent-hover")
        for paper in ("ground", "panel", "raised", "log-ground")
    ),
    *((tone, f"{tone}-ground") for tone in ("ok", "warn", "bad", "info")),
    *((tone, paper) for tone in ("ok", "bad", "info") for paper in ("panel", "log-ground")),
    ("warn", "log-ground"),
    ("text", "info-ground"),
    ("muted", "info-ground"),
    ("bad", "bad-ground"),
    ("on-accent", "accent"),
    ("on-accent", "accent-hover"),
    ("on-danger", "danger"),
]
EDGES = [
    ("control-line", "panel"),
    ("control-line", "ground"),
    ("accent", "panel"),
    ("accent", "ground"),
    ("bad", "panel"),
]


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_what_is_written_can_be_read(theme: int) -> None:
    low = [(ink, paper) for ink, paper in TEXT if contrast(COLOURS[ink][theme], COLOURS[paper][theme]) < 4.5]
    assert low == []


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_controls_and_focus_can_be_seen(theme: int) -> None:
    low = [(ink, paper) for ink, paper in EDGES if contrast(COLOURS[ink][theme], COLOURS[paper][theme]) < 3]
    assert low == []


def test_the_sheet_asks_nobody() -> None:
    assert "url(" not in SHEET
    assert "@import" not in SHEET
    assert ":focus-visible" in SHEET
    assert "outline: none" not in SHEET
    assert "outline: 0" not in SHEET
