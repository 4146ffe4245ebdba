"""Where segments end, and how layers become one.

One rule: segments end where keys say so, not where somebody happened to begin: the same rows give the same segments,
whatever history they have. So a fold names a segment again that no upper layer touches, without reading it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import repeat
from operator import mod
from zlib import crc32

from cowsync.base.layers import Ahead, Layer, Layers, Library, SegmentRef, read
from cowsync.base.segment import Footer, SegmentWriter
from cowsync.rows import Rows

LAYERS_MAX = 8
"""More are folded."""
UPPER_ONE_IN = 10
"""So are upper layers that hold more than one row in so many of the bottom's."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """A segment ends behind the first row, from the `least`-th on, whose key's CRC-32 is a multiple of `one_in`; at the
    `most`-th row at the latest. The mean is about `least` + `one_in`."""

    least: int = 16_384
    one_in: int = 49_152
    most: int = 262_144


CUTS = Cuts()


class Cutter:
    """Rows in, finished segments out. Memory: one segment as it is stored."""

    def __init__(self, cuts: Cuts = CUTS) -> None:
        self._cuts = cuts
        self._writer = SegmentWriter()

    @property
    def empty(self) -> bool:
        """Whether the last row that came ended a segment."""
        return not self._writer.rows

    def add(self, rows: Rows) -> Iterator[tuple[bytes, Footer]]:
        cuts = self._cuts
        marks = list(map(mod, map(crc32, rows.keys), repeat(cuts.one_in)))
        at = 0
        while at < len(rows):
            stop = self._end(marks, at)
            self._writer.add(rows.slice(at, stop) if at or stop < len(rows) else rows)
            if self._writer.rows == cuts.most or (self._writer.rows >= cuts.least and marks[stop - 1] == 0):
                yield from self.finish()
            at = stop

    def _end(self, marks: list[int], at: int) -> int:
        """Behind the row that ends the segment, or behind the last there is."""
        held = self._writer.rows
        latest = min(len(marks), at + self._cuts.most - held)
        try:
            return marks.index(0, max(at, at + self._cuts.least - held - 1), latest) + 1
        except ValueError:
            return latest

    def finish(self) -> Iterator[tuple[bytes, Footer]]:
        """What has been begun, as the last segment; nothing where the last row ended one."""
        if self._writer.rows:
            writer, self._writer = self._writer, SegmentWriter()
            yield writer.finish()


def segments(rows: Iterable[Rows], cuts: Cuts = CUTS) -> Iterator[tuple[bytes, Footer]]:
    """A layer of these rows."""
    cutter = Cutter(cuts)
    for piece in rows:
        yield from cutter.add(piece)
    yield from cutter.finish()


def due(layers: Layers) -> bool:
    """Whether layers should be folded before they are published."""
    upper = sum(ref.rows for layer in layers[1:] for ref in layer)
    bottom = sum(ref.rows for layer in layers[:1] for ref in layer)
    return len(layers) > LAYERS_MAX or upper * UPPER_ONE_IN > bottom


def folded(layers: Layers, library: Library, cuts: Cuts = CUTS) -> Iterator[SegmentRef | tuple[bytes, Footer]]:
    """The segments of one layer that holds what `layers` hold, in order: those of the bottom that stay as references, new
    ones as files. They are the ones that `segments` would make of all rows."""
    bottom: Layer = layers[0] if layers else ()
    uppers = [Ahead(layer, library) for layer in layers[1:]]
    cutter = Cutter(cuts)
    edge = b""
    for number, ref in enumerate(bottom):
        # What comes behind the last segment would have been part of it.
        upto = ref.last if number + 1 < len(bottom) else None
        if cutter.empty and not any(upper.any_within(edge, upto) for upper in uppers):
            yield ref
        else:
            for rows in read(layers, library, edge, upto):
                yield from cutter.add(rows)
        edge = ref.last
    if not bottom:
        for rows in read(layers, library):
            yield from cutter.add(rows)
    yield from cutter.finish()
