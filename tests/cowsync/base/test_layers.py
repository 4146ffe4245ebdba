"""Layers against a table of the latest rows."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.base.layers import find, quantiles, read
from cowsync.base.segment import FRAME_ROWS
from cowsync.rows import REMOVED, Row, Rows
from tests.cowsync.base.shelf import GONE_IN_LAYERS, KEYS, Shelf, as_rows, tables

STACKS = st.lists(st.tuples(tables(GONE_IN_LAYERS), st.lists(st.integers(1, 9))), max_size=5)


def latest(tables: list[dict[bytes, Row]]) -> dict[bytes, Row]:
    merged: dict[bytes, Row] = {}
    for table in tables:
        merged |= table
    return {key: row for key, row in merged.items() if row.gone != REMOVED}


@settings(max_examples=120)
@given(STACKS, st.one_of(st.just(b""), KEYS), st.one_of(st.none(), KEYS))
def test_the_latest_layer_has_the_word(
    stack: list[tuple[dict[bytes, Row], list[int]]], after: bytes, upto: bytes | None
) -> None:
    shelf = Shelf()
    layers = tuple(shelf.layer(table, lengths) for table, lengths in stack)
    model = latest([table for table, _ in stack])
    pieces = list(read(layers, shelf, after, upto))
    expected = [model[key] for key in sorted(model) if key > after and (upto is None or key <= upto)]
    assert [row for piece in pieces for row in piece] == expected
    assert all(piece.keys for piece in pieces)
    for key in {after, *model, *(key for table, _ in stack for key in table)}:
        assert find(layers, shelf, key) == model.get(key)


BOTTOM = {b"%06d" % n: Row(b"%06d" % n, n, b"", b"") for n in range(3 * FRAME_ROWS)}


@given(
    st.dictionaries(st.integers(0, 3 * FRAME_ROWS), GONE_IN_LAYERS, max_size=20),
    st.integers(0, 2 * FRAME_ROWS),
    st.integers(0, 4000),
)
@settings(max_examples=10, deadline=None)
def test_few_and_many_changes_in_long_frames(few: dict[int, int], start: int, many: int) -> None:
    upper = {b"%06d" % n: Row(b"%06d" % n, 0, b"new", b"", gone=gone) for n, gone in few.items()}
    upper |= {b"%06dx" % n: Row(b"%06dx" % n, 0, b"new", b"") for n in range(start, start + many, 2)}
    shelf = Shelf()
    model = latest([BOTTOM, upper])
    rows = [row for piece in read((shelf.layer(BOTTOM, [20_000]), shelf.layer(upper)), shelf) for row in piece]
    assert rows == [model[key] for key in sorted(model)]


def test_what_no_layer_touches_is_handed_on_whole() -> None:
    shelf = Shelf()
    bottom = shelf.layer(BOTTOM)
    upper = shelf.layer({b"zz": Row(b"zz", 1, b"", b"")})
    handed: list[Rows] = []
    segment = shelf.segment(bottom[0])
    frame = segment.frame

    def noted(number: int) -> Rows:
        handed.append(frame(number))
        return handed[-1]

    segment.frame = noted  # type: ignore[method-assign]
    shelf.segment = lambda ref: segment if ref == bottom[0] else Shelf.segment(shelf, ref)  # type: ignore[method-assign]
    pieces = list(read((bottom, upper), shelf))
    assert all(piece is rows for piece, rows in zip(pieces, handed, strict=False))
    assert len(pieces) == len(handed) + 1 == 4


def test_segments_out_of_the_range_are_not_opened() -> None:
    shelf = Shelf()
    bottom = shelf.layer(BOTTOM, [10_000] * 4)
    assert sum(map(len, read((bottom,), shelf, b"010000", b"019999"))) == 9_999
    assert shelf.opened == [bottom[1].name]


def test_quantiles_cut_into_like_pieces() -> None:
    shelf = Shelf()
    layers = (shelf.layer({b"%07d" % n: Row(b"%07d" % n, 0, b"", b"") for n in range(20 * FRAME_ROWS)}, [100_000] * 5),)
    for pieces in (1, 2, 3, 7, 20):
        points = quantiles(layers, shelf, pieces)
        edges = [0, *(int(point) + 1 for point in points), 20 * FRAME_ROWS]
        lengths = [b - a for a, b in pairwise(edges)]
        assert len(points) == pieces - 1
        assert max(lengths) - min(lengths) <= 2 * FRAME_ROWS
    assert len(quantiles(layers, shelf, 1000)) <= 24
    assert quantiles((), shelf, 4) == []
    assert quantiles((shelf.layer({b"a": Row(b"a", 0, b"", b"")}),), shelf, 4) == []


def test_a_bottom_of_its_own_shows_no_removed_row() -> None:
    shelf = Shelf()
    rows = as_rows([Row(b"a", 1, b"", b"", gone=REMOVED), Row(b"b", 1, b"", b"")])
    assert [row.key for piece in read(((shelf.put(rows),),), shelf) for row in piece] == [b"b"]
    assert find(((shelf.put(rows),),), shelf, b"a") is None
