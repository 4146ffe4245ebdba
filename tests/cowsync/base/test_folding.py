"""Where segments end depends on their rows alone."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.base.folding import Cuts, due, folded, segments
from cowsync.base.layers import Layer, SegmentRef, read, ref_of
from cowsync.rows import REMOVED, Row
from tests.cowsync.base.shelf import Shelf, in_pieces
from tests.cowsync.base.test_layers import latest

CUTS = Cuts(least=4, one_in=6, most=25)
NUMBERS = st.integers(0, 400)


def rows_of(numbers: set[int], etag: bytes = b"", gone: int = 0) -> dict[bytes, Row]:
    return {b"%03d" % n: Row(b"%03d" % n, n, etag, b"", gone=gone) for n in numbers}


def cut(shelf: Shelf, table: dict[bytes, Row], lengths: list[int]) -> Layer:
    return tuple(shelf.keep(*made) for made in segments(in_pieces(table, lengths), CUTS))


@settings(max_examples=150, deadline=None)
@given(
    st.sets(NUMBERS, max_size=400),
    st.lists(st.tuples(st.sets(NUMBERS, max_size=12), st.sets(NUMBERS, max_size=12)), max_size=4),
    st.lists(st.integers(1, 60)),
)
def test_a_fold_gives_the_segments_of_its_rows(
    bottom: set[int], uppers: list[tuple[set[int], set[int]]], lengths: list[int]
) -> None:
    shelf = Shelf()
    tables = [rows_of(bottom)]
    tables += [rows_of(gone, gone=REMOVED) | rows_of(put, b"%d" % n) for n, (put, gone) in enumerate(uppers)]
    layers = tuple(cut(shelf, table, lengths) for table in tables)
    result = tuple(item if isinstance(item, SegmentRef) else shelf.keep(*item) for item in folded(layers, shelf, CUTS))
    model = latest(tables)
    assert result == cut(shelf, model, [7] * 60)
    assert [row.key for rows in read((result,), shelf) for row in rows] == sorted(model)
    assert all(ref.rows <= CUTS.most for ref in result)
    assert all(ref.rows >= CUTS.least for ref in result[:-1])


def test_what_no_layer_touches_is_not_read() -> None:
    shelf = Shelf()
    bottom = cut(shelf, rows_of(set(range(400))), [])
    upper = cut(shelf, rows_of({200}, b"new"), [])
    items = list(folded((bottom, upper), shelf, CUTS))
    made = [ref_of(*item) for item in items if not isinstance(item, SegmentRef)]
    assert len(made) == 1
    assert len(items) == len(bottom) > 10
    assert made[0].first <= b"200" <= made[0].last
    assert set(shelf.opened) == {upper[0].name, *(ref.name for ref in bottom if ref.first <= b"200" <= ref.last)}


def test_layers_are_folded_when_they_are_many_or_large() -> None:
    shelf = Shelf()
    bottom = shelf.layer(rows_of(set(range(200))))
    small, large = shelf.layer(rows_of({1})), shelf.layer(rows_of(set(range(21))))
    assert not due(())
    assert not due((bottom,))
    assert not due((bottom, *[small] * 7))
    assert due((bottom, *[small] * 8))
    assert due((bottom, large))
