"""The decoders of cowsync's base. Its files lie in a bucket, where others may write: they are parsed or refused by name."""

import contextlib

import zstandard

from cowsync.base import head as head_format
from cowsync.base import segment, snapshot
from cowsync.errors import StateDamaged
from cowsync.rows import REMOVED, Row, Rows
from tests.cowsync.base.shelf import as_rows
from tests.formats.specimens import BASE_HEAD, BASE_NOTES, BASE_ROWS, BASE_SNAPSHOT

_ODD = as_rows(
    Row(b"%d" % n, n * 1000, b"%d" % n, b"%d" % n, b"v%d" % n, b"", b"%x" % n, b"", REMOVED if n == 7 else n)
    for n in range(10, 20)
)


def segment_file(data: bytes) -> None:
    """A file, read in all ways there are."""
    try:
        made = segment.Segment(data, "it")
    except StateDamaged:
        return
    length = segment.tail_length(data[-segment.TRAILER.size :], "it")
    assert segment.read_footer(data[-length:], len(data), "it") == made.footer
    for upto in (None, b"m"):
        with contextlib.suppress(StateDamaged):
            for rows in made.read(b"b", upto):
                _check(rows)
    with contextlib.suppress(StateDamaged):
        made.find(b"photos/b")


def frame(data: bytes) -> None:
    """A frame whose checksum held: two bytes of rows, then the frame. What is read can be written, and is the same."""
    rows = int.from_bytes(data[:2], "little") or 1
    try:
        read = segment.decode_frame(memoryview(data)[2:], rows)
    except ValueError:
        return
    assert len(read) == rows
    _check(read)
    with contextlib.suppress(ValueError):
        again = segment.encode_frame(read, zstandard.ZstdCompressor())
        assert segment.decode_frame(memoryview(again), rows) == read


def _check(rows: Rows) -> None:
    assert {len(column) for column in rows.columns()} == {len(rows)}
    assert len(rows) <= segment.FRAME_ROWS_MAX


def manifest(data: bytes) -> None:
    try:
        read = snapshot.decode(data, snapshot.name_of(data))
    except StateDamaged:
        return
    assert snapshot.parse(snapshot.encode(read), "it") == read


def head(data: bytes) -> None:
    try:
        entries = head_format.decode(data)
    except StateDamaged:
        return
    assert head_format.encode(entries) == data


def _frame_of(rows: Rows) -> bytes:
    return len(rows).to_bytes(2, "little") + segment.encode_frame(rows, zstandard.ZstdCompressor(level=3))


SEGMENTS = (segment.write(BASE_ROWS), segment.write(_ODD), segment.write(BASE_ROWS)[:-3], b"\0" * 80)
FRAMES = tuple(_frame_of(rows) for rows in (BASE_ROWS, _ODD, BASE_ROWS.slice(0, 1)))
MANIFESTS = (
    snapshot.encode(BASE_SNAPSHOT),
    snapshot.encode(BASE_NOTES),
    snapshot.encode(BASE_NOTES).replace(b"[1,", b"[1e999,"),
    b"[]",
    b'{"format":"cowsync snapshot","version":2}',
)
HEADS = (head_format.encode(BASE_HEAD), b"{}")
