"""Rows to try things with, and a library of segments in memory."""

from collections.abc import Iterable, Iterator, Mapping

from hypothesis import strategies as st

from cowsync.base.layers import Layer, SegmentRef, ref_of
from cowsync.base.segment import Footer, Segment, SegmentWriter
from cowsync.rows import REMOVED, Row, Rows

DIGESTS = [b"%032x" % (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)) for number in range(4)]

KEYS = st.binary(min_size=1, max_size=3).map(lambda raw: "".join("ab/é"[byte % 4] for byte in raw).encode())
ETAGS = st.sampled_from([*DIGESTS, b"", b"ABCDEF", DIGESTS[0] + b"-12", DIGESTS[1].upper()])
TIMES = st.sampled_from([b"2026-01-02T03:04:05.000Z", b"2026-11-12T13:14:15.167Z", b"2026-01-02T03:04:05Z", b""])


@st.composite
def drawn_rows(draw: st.DrawFn, key: bytes, gone: st.SearchStrategy[int]) -> Row:
    etag = draw(ETAGS)
    return Row(
        key,
        draw(st.sampled_from([0, 1, 255, 65_536, 5 * 1024**4])),
        etag,
        draw(TIMES),
        draw(st.sampled_from([b"", b"", b"null", b"v1", b"v2"])),
        draw(st.sampled_from([b"", b"STANDARD"])),
        draw(st.one_of(st.just(etag), ETAGS)),
        draw(st.sampled_from([b"", b"m1"])),
        draw(gone),
    )


GONE_IN_LAYERS = st.sampled_from([0, 0, 0, 3, REMOVED])
GONE = st.sampled_from([0, 0, 0, 3])


def tables(gone: st.SearchStrategy[int] = GONE, most: int = 30) -> st.SearchStrategy[dict[bytes, Row]]:
    """Rows by key."""
    keys = st.sets(KEYS, max_size=most).map(sorted)
    return keys.flatmap(lambda names: st.tuples(*[drawn_rows(key, gone) for key in names])).map(
        lambda rows: {row.key: row for row in rows}
    )


def as_rows(table: Iterable[Row]) -> Rows:
    rows = Rows()
    for row in table:
        rows.append(row)
    return rows


def in_pieces(table: Mapping[bytes, Row], lengths: Iterable[int]) -> Iterator[Rows]:
    """The rows of a table in pieces of these lengths, the last as long as needed."""
    rows = as_rows(table[key] for key in sorted(table))
    at = 0
    for length in lengths:
        if at < len(rows):
            yield rows.slice(at, at + length)
            at += length
    if at < len(rows):
        yield rows.slice(at, len(rows))


class Shelf:
    """A library; `opened` names the segments that were asked for, in order."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.opened: list[str] = []

    def put(self, rows: Rows) -> SegmentRef:
        writer = SegmentWriter()
        writer.add(rows)
        data, footer = writer.finish()
        return self.keep(data, footer)

    def keep(self, data: bytes, footer: Footer) -> SegmentRef:
        ref = ref_of(data, footer)
        self.files[ref.name] = data
        return ref

    def layer(self, table: Mapping[bytes, Row], lengths: Iterable[int] = ()) -> Layer:
        return tuple(self.put(piece) for piece in in_pieces(table, lengths) if piece.keys)

    def segment(self, ref: SegmentRef) -> Segment:
        self.opened.append(ref.name)
        return Segment(self.files[ref.name], ref.name)

    def footer(self, ref: SegmentRef) -> Footer:
        return Segment(self.files[ref.name], ref.name).footer
