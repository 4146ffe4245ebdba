"""Ranges tile, midpoints lie inside, and a hole or an overlap is always seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowsync.scan.ranges import WHOLE, KeyRange, cut, gaps, merged, steps

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


@given(KEYS, KEYS | st.none())
def test_steps_are_inside_and_rise(after: bytes, upto: bytes | None) -> None:
    within = KeyRange(after, upto)
    points = [] if within.empty else steps(within)
    assert points == sorted(set(points))
    for point in points:
        point.decode()
        assert point > after
        assert upto is None or point < upto


def test_steps_of_an_ordinary_key() -> None:
    assert steps(KeyRange(b"a/b7")) == [b"a/b8", b"a/c", b"a0", b"b"]
    assert steps(KeyRange(b"a/b7", b"a/z")) == [b"a/b8", b"a/c"]
