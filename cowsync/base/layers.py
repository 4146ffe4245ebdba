"""Layers: what a snapshot is made of. Each is a list of segments in ascending order of key that do not overlap; of a key
that several layers hold the row of the latest counts, and a row that is REMOVED takes the key away.

One rule: whoever reads sees the rows of the latest state, in ascending order, and no REMOVED one. Where the upper layers
have nothing the columns of the bottom are handed on as they are: a billion rows of which a thousand changed cost what
reading the billion costs.

Ranges are those of `cowsync.scan.ranges`: `after` < key <= `upto`, b"" before every key, None after every key.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from cowsync.base.segment import Footer, Segment, name_of
from cowsync.rows import REMOVED, Row, Rows

_SPLICED_ONE_IN = 16
"""Where fewer than one row in so many changes, stretches are joined; where more, rows are woven one by one."""


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment as a manifest names it: `name` is the SHA-256 of the file, which has `stored` bytes; the rest is as in
    its footer."""

    name: str
    first: bytes
    last: bytes
    rows: int
    gone: int
    byte_sum: int
    stored: int


def ref_of(data: bytes, footer: Footer) -> SegmentRef:
    return SegmentRef(name_of(data), footer.first, footer.last, footer.rows, footer.gone, footer.byte_sum, len(data))


Layer = tuple[SegmentRef, ...]
Layers = tuple[Layer, ...]
"""The bottom first."""


class Library(Protocol):
    """Where segments are had from. Both raise StateDamaged, and StoreError when a store cannot be reached."""

    def segment(self, ref: SegmentRef) -> Segment: ...

    def footer(self, ref: SegmentRef) -> Footer:
        """The end of a segment alone."""
        ...


def within(layer: Layer, after: bytes, upto: bytes | None) -> Layer:
    """The segments that may hold keys of the range."""
    low = bisect_right(layer, after, key=lambda ref: ref.last)
    high = len(layer) if upto is None else bisect_right(layer, upto, key=lambda ref: ref.first)
    return layer[low:high]


def read(layers: Layers, library: Library, after: bytes = b"", upto: bytes | None = None) -> Iterator[Rows]:
    """The rows of the range, in pieces of any size but never empty. Memory: a segment and a frame of each layer."""
    merged: Iterator[Rows] = iter(())
    for layer in layers:
        if within(layer, after, upto):
            merged = overlaid(merged, read_layer(layer, library, after, upto))
    return merged


def read_layer(layer: Layer, library: Library, after: bytes = b"", upto: bytes | None = None) -> Iterator[Rows]:
    """The rows of one layer as they are, REMOVED ones too."""
    for ref in within(layer, after, upto):
        yield from library.segment(ref).read(after, upto)


def _present(rows: Iterator[Rows]) -> Iterator[Rows]:
    for piece in rows:
        kept = piece.without_removed()
        if kept.keys:
            yield kept


def overlaid(lower: Iterator[Rows], upper: Iterator[Rows], *, removed: bool = False) -> Iterator[Rows]:
    """`lower` with the rows of `upper` in place of and between its own, without those that are REMOVED; with `removed` these
    too, so that two layers become one."""

    def shown(rows: Rows) -> Rows:
        return rows if removed else rows.without_removed()

    below, above = next(lower, None), next(upper, None)
    i = j = 0
    while below is not None and above is not None:
        # All of both up to the smaller last key can be had from these two pieces.
        last = min(below.keys[-1], above.keys[-1])
        p, q = bisect_right(below.keys, last, i), bisect_right(above.keys, last, j)
        if q == j:
            merged = below if p - i == len(below) else below.slice(i, p)
        else:
            merged = shown(_merged(below, i, p, above, j, q, removed=removed))
        if merged.keys:
            yield merged
        i, j = p, q
        if i == len(below):
            below, i = next(lower, None), 0
        if j == len(above):
            above, j = next(upper, None), 0
    if below is not None:
        yield below.slice(i, len(below)) if i else below
        yield from lower
    if above is not None:
        rest = shown(above.slice(j, len(above)) if j else above)
        if rest.keys:
            yield rest
        yield from upper if removed else _present(upper)


def _merged(below: Rows, i: int, p: int, above: Rows, j: int, q: int, *, removed: bool) -> Rows:
    """Rows i to p of one with rows j to q of the other over them."""
    if (q - j) * _SPLICED_ONE_IN <= p - i:
        return _spliced(below, i, p, above, j, q, removed=removed)
    lower, upper = below.slice(i, p), above.slice(j, q)
    both = len(lower)
    # Of equal keys the later place wins, which is the upper one. Sorting two runs is one pass.
    places = dict(zip(lower.keys, range(both), strict=True))
    places.update(zip(upper.keys, range(both, both + len(upper)), strict=True))
    order = [places[key] for key in sorted(places)]
    lower.extend(upper)
    return lower.take(order)


def _spliced(below: Rows, i: int, p: int, above: Rows, j: int, q: int, *, removed: bool) -> Rows:
    merged = Rows()
    keys = below.keys
    for at in range(j, q):
        key = above.keys[at]
        here = bisect_left(keys, key, i, p)
        merged.extend(below.slice(i, here))
        if removed or above.gone[at] != REMOVED:
            merged.append(above[at])
        i = here + 1 if here < p and keys[here] == key else here
    merged.extend(below.slice(i, p))
    return merged


class Ahead:
    """Whether a layer has keys in ranges, which are asked for in ascending order; reads it once, as far as that takes."""

    def __init__(self, layer: Layer, library: Library) -> None:
        self._pieces = read_layer(layer, library)
        self._keys: list[bytes] | None = []

    def any_within(self, after: bytes, upto: bytes | None) -> bool:
        while self._keys is not None and (not self._keys or self._keys[-1] <= after):
            rows = next(self._pieces, None)
            self._keys = None if rows is None else rows.keys
        if self._keys is None:
            return False
        return upto is None or self._keys[bisect_right(self._keys, after)] <= upto


def find(layers: Layers, library: Library, key: bytes) -> Row | None:
    """The row of one key: the latest layer that knows it has the word."""
    for layer in reversed(layers):
        at = bisect_left(layer, key, key=lambda ref: ref.last)
        if at < len(layer) and layer[at].first <= key:
            row = library.segment(layer[at]).find(key)
            if row is not None:
                return None if row.gone == REMOVED else row
    return None


def find_all(layers: Layers, library: Library, keys: Sequence[bytes]) -> dict[bytes, Row]:
    """The rows of many keys, which ascend, as `find` gives them; a frame is unpacked once for all keys in it."""
    found: dict[bytes, Row] = {}
    left = keys
    for layer in reversed(layers):
        rows: Rows | None = None
        for key in left:
            at = bisect_left(layer, key, key=lambda ref: ref.last)
            if at == len(layer) or key < layer[at].first:
                continue
            if rows is None or not rows.keys[0] <= key <= rows.keys[-1]:
                rows = library.segment(layer[at]).around(key)
            if rows is not None:
                place = bisect_left(rows.keys, key)
                if place < len(rows) and rows.keys[place] == key:
                    found[key] = rows[place]
        left = [key for key in left if key not in found]
    return {key: row for key, row in found.items() if row.gone != REMOVED}


def quantiles(layers: Layers, library: Library, pieces: int) -> list[bytes]:
    """At most `pieces` - 1 keys, ascending, between which lie about as many rows of the bottom each: points to cut a scan
    at. Exact to a frame. Upper layers are left out: they hold a tenth at most."""
    bottom: Sequence[SegmentRef] = layers[0] if layers else ()
    total = sum(ref.rows for ref in bottom)
    points: list[bytes] = []
    passed = 0
    for ref in bottom:
        for last, rows in _steps(ref, library, total / max(pieces, 1)):
            passed += rows
            # The whole is cut where the next whole part of it is reached, and never behind its last row.
            if passed < total and passed * pieces >= (len(points) + 1) * total and len(points) < pieces - 1:
                points.append(last)
    return points


def _steps(ref: SegmentRef, library: Library, wanted: float) -> Iterator[tuple[bytes, int]]:
    if ref.rows <= wanted / 2:
        yield ref.last, ref.rows
        return
    for frame in library.footer(ref).frames:
        yield frame.last, frame.rows
