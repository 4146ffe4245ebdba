"""Patterns mean what docs/settings.md says."""

import pytest

from cowsync.scan.filters import belongs, pattern


@pytest.mark.parametrize(
    ("text", "fits", "misses"),
    [
        ("photos/**", ["photos/a", "photos/a/b.jpg"], ["photos", "other/photos/a"]),
        ("photos/", ["photos/a", "photos/a/b.jpg"], ["photos", "xphotos/a"]),
        ("*.jpg", ["a.jpg"], ["a/b.jpg", "a.jpgx"]),
        ("**.jpg", ["a.jpg", "a/b.jpg"], ["a.jpeg"]),
        ("a?c", ["abc", "aäc"], ["a/c", "ac"]),
        ("log-[0-9]", ["log-7"], ["log-x", "log-77"]),
        ("log-[!0-9]", ["log-x"], ["log-7"]),
        ("a.b+c(d)", ["a.b+c(d)"], ["aXb+c(d)"]),
        ("line\nbreak*", ["line\nbreak", "line\nbreak\n2"], ["line"]),
    ],
)
def test_a_pattern(text: str, fits: list[str], misses: list[str]) -> None:
    expression = pattern(text)
    assert [key for key in fits if not expression.fullmatch(key)] == []
    assert [key for key in misses if expression.fullmatch(key)] == []


def test_exclude_wins_and_include_decides() -> None:
    test = belongs(["data/**"], ["**.tmp"])
    assert test is not None
    assert [key for key in (b"data/a", b"data/a.tmp", b"other") if test(key)] == [b"data/a"]
    only_exclude = belongs([], ["**.tmp"])
    assert only_exclude is not None
    assert only_exclude(b"other")
    assert belongs([], []) is None


def test_an_open_set_is_named() -> None:
    with pytest.raises(ValueError, match="not closed"):
        pattern("a[bc")


@pytest.mark.parametrize("text", ["[z-a]", "[!]"])
def test_a_set_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="set"):
        pattern(text)
