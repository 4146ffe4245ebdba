"""Sizes and durations are read exactly, and what is written is read back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core.quantities import parse_duration, parse_size, shown_duration, shown_size, written_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10G", 10 * 1024**3),
        ("64MiB", 64 * 1024**2),
        ("64 mib", 64 * 1024**2),
        ("500MB", 500_000_000),
        ("1.5T", 1536 * 1024**3),
        ("4096", 4096),
        ("4096B", 4096),
        ("7kB", 7000),
        (4096, 4096),
        (0, 0),
    ],
)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "10Q", "10 Gi B", "-1", -1, True, 1.5, None, "0.3", "1e3", "10ib", "10iG"])
def test_what_is_not_a_size(text: object) -> None:
    with pytest.raises(ValueError, match=r"size|whole number"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=2**60))
def test_a_written_size_reads_back(size: int) -> None:
    assert parse_size(written_size(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5s", 5.0), ("500ms", 0.5), ("2min", 120.0), ("1.5h", 5400.0), ("1d", 86400.0), (3, 3.0), (0.25, 0.25), ("7", 7)],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "5 weeks", "-1s", -1, True, None, float("nan")])
def test_what_is_not_a_duration(text: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


def test_how_they_are_shown() -> None:
    assert [shown_size(size) for size in (0, 4096, 1536 * 1024**3, 1000)] == ["0 B", "4 KiB", "1.5 TiB", "1000 B"]
    assert [shown_duration(s) for s in (0, 0.25, 5, 60, 3600, 3900)] == [
        "0 s",
        "250 ms",
        "5 s",
        "1 min",
        "1 h",
        "1 h 5 min",
    ]
