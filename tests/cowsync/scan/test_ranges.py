"""Ranges tile, midpoints lie inside, and a hole or an overlap is always seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowsync.scan.ranges import WHOLE, KeyRange, cut, gaps, merged, midpoint

KEYS = st.text(min_size=1, max_size=6).map(str.encode)


@given(st.lists(KEYS))
def test_cuts_tile_the_whole(points: list[bytes]) -> None:
    pieces = cut(WHOLE, points)
    assert gaps(pieces) == []
    assert merged(pieces) == [WHOLE]
    assert not any(piece.empty for piece in pieces)


@given(st.lists(KEYS, min_size=1), st.data())
def test_a_piece_left_out_is_a_gap(points: list[bytes], data: st.DataObject) -> None:
    pieces = cut(WHOLE, points)
    lost = data.draw(st.sampled_from(pieces))
    assert gaps(piece for piece in pieces if piece != lost) == [lost]


def test_overlap_is_an_error() -> None:
    with pytest.raises(ValueError, match="overlap"):
        gaps([KeyRange(b"", b"m"), KeyRange(b"l", None)])


def test_nothing_listed_is_all_missing() -> None:
    assert gaps([]) == [WHOLE]


@given(KEYS | st.just(b""), KEYS | st.none())
def test_a_midpoint_is_inside(after: bytes, upto: bytes | None) -> None:
    within = KeyRange(after, upto)
    if within.empty:
        return
    middle = midpoint(within)
    if middle is not None:
        middle.decode()
        assert middle > after
        assert upto is None or middle < upto


@pytest.mark.parametrize(
    ("after", "upto"),
    [("", None), ("a", "z"), ("photos/2024/", "photos/2025/"), ("data/a", None), ("key-00041", "key-00042")],
)
def test_there_is_one_where_keys_are_ordinary(after: str, upto: str | None) -> None:
    assert midpoint(KeyRange(after.encode(), upto.encode() if upto else None)) is not None


def test_halving_goes_on_towards_the_first_key() -> None:
    within, steps = KeyRange(b"data/part-0001", b"data/part-0002"), 0
    while (middle := midpoint(within)) is not None and steps < 12:
        within, steps = KeyRange(within.after, middle), steps + 1
    assert steps > 3
