"""Differences against two tables, in whatever pieces rows come."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.base.difference import Kind, between, differences, each, unlike
from cowsync.rows import REMOVED, Row
from tests.cowsync.base.shelf import GONE, GONE_IN_LAYERS, KEYS, Shelf, as_rows, in_pieces, tables
from tests.cowsync.base.test_layers import latest

LENGTHS = st.lists(st.integers(1, 8))
Told = tuple[Kind, Row | None, Row | None]


def model(old: dict[bytes, Row], new: dict[bytes, Row]) -> list[Told]:
    told: list[Told] = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if was is None:
            told.append((Kind.ADDED, None, now))
        elif now is None:
            told.append((Kind.ABSENT if was.gone else Kind.VANISHED, was, None))
        elif (
            was.etag != now.etag
            or was.size != now.size
            or (was.version_id and now.version_id and was.version_id != now.version_id)
        ):
            told.append((Kind.MODIFIED, was, now))
        elif was.gone:
            told.append((Kind.RETURNED, was, now))
    return told


@st.composite
def pairs(draw: st.DrawFn) -> tuple[dict[bytes, Row], dict[bytes, Row]]:
    """A table and what became of it: most rows are the same."""
    old = draw(tables())
    new = {key: row for key, row in old.items() if draw(st.integers(0, 9))}
    for key in sorted(new):
        match draw(st.integers(0, 12)):
            case 0:
                new[key] = new[key]._replace(size=7)
            case 1:
                new[key] = new[key]._replace(etag=b"changed")
            case 2:
                new[key] = new[key]._replace(version_id=b"v9")
            case 3:
                new[key] = new[key]._replace(modified=b"2027", storage_class=b"GLACIER")
            case 4:
                new[key] = new[key]._replace(version_id=b"")
    new |= draw(tables(most=5))
    return old, {key: row._replace(gone=0) for key, row in new.items()}


@settings(max_examples=200)
@given(pairs(), LENGTHS, LENGTHS)
def test_what_changed_is_told(
    tables: tuple[dict[bytes, Row], dict[bytes, Row]], mine: list[int], yours: list[int]
) -> None:
    old, new = tables
    found = list(each(differences(in_pieces(old, mine), in_pieces(new, yours))))
    assert found == model(old, new)


@given(st.sets(st.integers(0, 3000)), st.sets(st.integers(0, 3000)), st.sampled_from([97, 1000, 5000]))
@settings(max_examples=30, deadline=None)
def test_long_pieces_with_few_changes(dropped: set[int], changed: set[int], length: int) -> None:
    old = {b"%05d" % n: Row(b"%05d" % n, n, b"e", b"t") for n in range(3000)}
    new = {key: row for n, (key, row) in enumerate(sorted(old.items())) if n not in dropped}
    new |= {b"%05d" % n + b"x" * (n % 2): Row(b"%05d" % n + b"x" * (n % 2), n, b"f", b"t") for n in changed}
    assert list(each(differences(in_pieces(old, [1024] * 3), in_pieces(new, [length] * 40)))) == model(old, new)


def test_a_time_alone_is_no_change() -> None:
    row = Row(b"k", 1, b"e", b"2026")
    assert list(differences([as_rows([row])], [as_rows([row._replace(modified=b"2027")])])) == []


def test_pieces_must_rise() -> None:
    rows = as_rows([Row(b"k", 1, b"e", b"")])
    with pytest.raises(ValueError, match="must rise"):
        list(differences([rows, rows], []))


# --- snapshots --------------------------------------------------------------------------------------------------------


@settings(max_examples=120)
@given(
    st.lists(st.tuples(tables(GONE_IN_LAYERS), LENGTHS), min_size=1, max_size=3),
    st.lists(st.tuples(tables(GONE_IN_LAYERS, most=4), LENGTHS), max_size=2),
    st.lists(st.tuples(tables(GONE_IN_LAYERS, most=4), LENGTHS), max_size=2),
    st.one_of(st.none(), st.tuples(KEYS, GONE)),
)
def test_snapshots_that_share_segments(
    shared: list[tuple[dict[bytes, Row], list[int]]],
    mine: list[tuple[dict[bytes, Row], list[int]]],
    yours: list[tuple[dict[bytes, Row], list[int]]],
    other: tuple[bytes, int] | None,
) -> None:
    shelf = Shelf()
    stacks = ([*shared, *mine], [*shared, *yours])
    old, new = (tuple(shelf.layer(*layer) for layer in stack) for stack in stacks)
    if other:
        # A bottom that was folded: most of its segments are the same.
        bottom, lengths = shared[0]
        changed = bottom | {other[0]: Row(other[0], 99, b"folded", b"", gone=other[1])}
        new = (shelf.layer(changed, lengths), *new[1:])
        stacks = (stacks[0], [(changed, lengths), *stacks[1][1:]])
    was, now = (
        {k: row for k, row in latest([table for table, _ in stack]).items() if row.gone == 0} for stack in stacks
    )
    assert list(each(between(old, new, shelf))) == model(was, now)


def test_segments_that_both_name_are_not_read() -> None:
    shelf = Shelf()
    table = {b"%04d" % n: Row(b"%04d" % n, n, b"e", b"") for n in range(1000)}
    bottom = shelf.layer(table, [100] * 10)
    layer = shelf.layer({b"0205": Row(b"0205", 0, b"", b"", gone=REMOVED), b"0777": Row(b"0777", 1, b"f", b"")})
    assert [kind for kind, _, _ in each(between((bottom,), (bottom, layer), shelf))] == [Kind.VANISHED, Kind.MODIFIED]
    untouched = {ref.name for at, ref in enumerate(bottom) if at not in (2, 3, 7, 8)}
    assert not untouched & set(shelf.opened)
    assert list(unlike((bottom, layer), (bottom, layer), shelf)) == []
