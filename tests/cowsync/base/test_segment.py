"""Segments: what is written is read; what is damaged is refused by name."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.base import segment
from cowsync.base.segment import FRAME_ROWS, Segment, SegmentWriter, read_footer, tail_length, write
from cowsync.errors import StateDamaged
from cowsync.rows import REMOVED, Row, Rows
from tests.cowsync.base.shelf import GONE_IN_LAYERS, as_rows, tables

MANY = as_rows(
    Row(b"logs/%09d.gz" % n, n * 977 % 5000, b"%032x" % (n * n), b"2026-11-%02dT03:04:05.000Z" % (n % 28 + 1))
    for n in range(2 * FRAME_ROWS + 5)
)


@settings(max_examples=120)
@given(tables(GONE_IN_LAYERS))
def test_what_is_written_is_read(table: dict[bytes, Row]) -> None:
    rows = [table[key] for key in sorted(table)]
    if not rows:
        with pytest.raises(ValueError, match="at least one row"):
            write(Rows())
        return
    made = Segment(write(as_rows(rows)), "it")
    assert [row for piece in made.read() for row in piece] == rows
    footer = made.footer
    assert (footer.rows, footer.first, footer.last) == (len(rows), rows[0].key, rows[-1].key)
    assert footer.removed == sum(row.gone == REMOVED for row in rows)
    assert footer.gone == sum(row.gone > 0 for row in rows)
    assert footer.byte_sum == sum(row.size for row in rows if row.gone != REMOVED)


def test_several_frames_and_ranges_of_them() -> None:
    made = Segment(write(MANY), "it")
    assert [frame.rows for frame in made.footer.frames] == [FRAME_ROWS, FRAME_ROWS, 5]
    edges = [0, 1, FRAME_ROWS - 1, FRAME_ROWS, FRAME_ROWS + 1, 2 * FRAME_ROWS, len(MANY) - 1]
    for low, high in [*pairwise(edges), (0, len(MANY) - 1), (5, 5), (7, 6)]:
        pieces = list(made.read(MANY.keys[low], MANY.keys[high]))
        assert [key for piece in pieces for key in piece.keys] == MANY.keys[low + 1 : high + 1]
    assert sum(len(piece) for piece in made.read(b"", None)) == len(MANY)
    for place in edges:
        assert made.find(MANY.keys[place]) == MANY[place]
    assert [made.find(key) for key in (b"", b"logs/", MANY.keys[3] + b"x", b"z")] == [None] * 4


def test_rows_may_come_in_any_pieces() -> None:
    for length in (1000, FRAME_ROWS, FRAME_ROWS + 1, 40_000):
        writer = SegmentWriter()
        for at in range(0, len(MANY), length):
            writer.add(MANY.slice(at, at + length))
        assert writer.finish()[0] == write(MANY)


def test_the_footer_is_read_from_the_end_alone() -> None:
    data = write(MANY)
    length = tail_length(data[-segment.TRAILER.size :], "it")
    assert read_footer(data[-length:], len(data), "it") == Segment(data, "it").footer


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([Row(b"b", 1, b"", b""), Row(b"a", 1, b"", b"")], "must rise"),
        ([Row(b"a", 1, b"", b""), Row(b"a", 1, b"", b"")], "must rise"),
        ([Row(b"a", -1, b"", b"")], "-1 is no size"),
        ([Row(b"a", 1 << 64, b"", b"")], "is no size"),
        ([Row(b"a", 1 << 63, b"", b""), Row(b"b", 1 << 63, b"", b"")], "more than a segment can say"),
        ([Row(b"a", 1, b"", b"", gone=-2)], "-2 is no size and no number of a run"),
        ([Row(b"a", 1, b"", b""), Row(b"a\xff", 1, b"", b"")], "not UTF-8"),
    ],
)
def test_what_cannot_be_stored_is_refused(wrong: list[Row], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        write(as_rows(wrong))


def test_a_row_takes_little() -> None:
    """16 bytes of it are the ETag."""
    rows = Rows(*MANY.columns())
    rows.mirror_etags = list(rows.etags)
    assert len(write(rows)) / len(rows) < 22


SMALL = write(MANY.slice(0, 40))


@given(st.integers(0, len(SMALL) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(place: int, change: int) -> None:
    """All bytes but the zeros behind the version in the header, and those only the digest of the file covers."""
    damaged = bytearray(SMALL)
    damaged[place] ^= change
    if 12 <= place < 16:
        return
    with pytest.raises(StateDamaged, match="the file") as error:
        Segment(bytes(damaged), "the file").frame(0)
    if 16 <= place < segment.Segment(SMALL, "").footer.frames[0].stored:
        assert "frame 0" in str(error.value)


@given(st.integers(0, len(SMALL) - 1))
def test_a_cut_is_found(length: int) -> None:
    with pytest.raises(StateDamaged, match="the file"):
        Segment(SMALL[:length], "the file")


def test_another_version_is_refused_by_name() -> None:
    newer = bytearray(SMALL)
    newer[8] = 2
    with pytest.raises(StateDamaged, match="version 2 is newer"):
        Segment(bytes(newer), "the file")
