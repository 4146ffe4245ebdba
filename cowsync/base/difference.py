"""What differs between what is known and what is there now: two streams of rows in ascending order, compared in columns.

One rule: a row is the same when ETag and size are, and the version id where both sides have one; a time alone never says
that an object changed. Stretches that are equal are compared by C and cost no Python per row.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import compress, count
from operator import ne
from typing import NamedTuple

from cowsync.base.layers import Ahead, Layers, Library, read, within
from cowsync.rows import Row, Rows

_STEP = 32
"""Rows compared first after a difference; doubled with each equal stretch."""


class Kind(StrEnum):
    """`ADDED`: only there now. `MODIFIED`: another object under the same key. `VANISHED`: known as present, not there.
    `ABSENT`: known to be gone (`gone` is not 0), and still is. `RETURNED`: known to be gone, and back as it was; what is
    back as something else is MODIFIED."""

    ADDED = "added"
    MODIFIED = "modified"
    VANISHED = "vanished"
    ABSENT = "absent"
    RETURNED = "returned"


class Change(NamedTuple):
    """Rows of one kind. `was` has what is known (empty when ADDED), `now` what is there (empty when VANISHED or ABSENT);
    for the others both, row by row."""

    kind: Kind
    was: Rows
    now: Rows


def each(changes: Iterable[Change]) -> Iterator[tuple[Kind, Row | None, Row | None]]:
    """Row by row: kind, what was known, what is there."""
    for kind, was, now in changes:
        if not was.keys:
            yield from ((kind, None, row) for row in now)
        elif not now.keys:
            yield from ((kind, row, None) for row in was)
        else:
            yield from ((kind, old, new) for old, new in zip(was, now, strict=True))


def differences(old: Iterable[Rows], new: Iterable[Rows]) -> Iterator[Change]:
    """What makes `new` of `old`, in ascending order of key. Both may come in pieces of any size. `old` is what a base
    reads for a range, `new` a scan of the same range. ValueError when keys do not rise from one piece to the next."""
    was, now = _Side(old), _Side(new)
    while was.fill() and now.fill():
        if was.keys[was.at] == now.keys[now.at]:
            length = _common(was, now)
            yield from _changed(was, now, length)
            was.at += length
            now.at += length
            continue
        if was.keys[was.at] < now.keys[now.at]:
            yield from _missing(was.take(bisect_left(was.keys, now.keys[now.at], was.at)))
        else:
            yield Change(Kind.ADDED, Rows(), now.take(bisect_left(now.keys, was.keys[was.at], now.at)))
    while was.fill():
        yield from _missing(was.take(len(was.keys)))
    while now.fill():
        yield Change(Kind.ADDED, Rows(), now.take(len(now.keys)))


class _Side:
    """A stream with a place in its current piece."""

    def __init__(self, pieces: Iterable[Rows]) -> None:
        self._pieces = iter(pieces)
        self.rows = Rows()
        self.keys: list[bytes] = []
        self.at = 0
        self.versions = self.gone = False
        self.step = 0

    def fill(self) -> bool:
        """Whether there is a row at `at`, after the next piece was fetched if need be."""
        while self.at >= len(self.keys):
            rows = next(self._pieces, None)
            if rows is None:
                return False
            if self.keys and rows.keys and rows.keys[0] <= self.keys[-1]:
                raise ValueError(f"keys must rise: {rows.keys[0]!r} comes after {self.keys[-1]!r}")
            if not rows.keys:
                continue
            self.rows, self.keys, self.at = rows, rows.keys, 0
            self.versions, self.gone = any(rows.version_ids), any(rows.gone)
            self.step = len(rows)
        return True

    def take(self, stop: int) -> Rows:
        start, self.at = self.at, stop
        return self.rows if stop - start == len(self.rows) else self.rows.slice(start, stop)


def _common(was: _Side, now: _Side) -> int:
    """How many keys from here on are the same on both sides, at least 1."""
    most = min(len(was.keys) - was.at, len(now.keys) - now.at)
    reached, step = 0, min(was.step, now.step)
    while reached < most:
        stop = min(reached + step, most)
        mine = was.keys[was.at + reached : was.at + stop]
        yours = now.keys[now.at + reached : now.at + stop]
        if mine != yours:
            was.step = now.step = _STEP
            return reached + next(compress(count(), map(ne, mine, yours)))
        reached, step = stop, step * 2
    return reached


def _changed(was: _Side, now: _Side, length: int) -> Iterator[Change]:
    """Differences within `length` rows whose keys are equal."""
    old, new = was.rows, now.rows
    i, k = was.at, now.at
    found: set[int] = set()
    for mine, yours in ((old.etags, new.etags), (old.sizes, new.sizes)):
        a, b = mine[i : i + length], yours[k : k + length]
        if a != b:
            found.update(compress(count(), map(ne, a, b)))
    if was.versions and now.versions:
        a, b = old.version_ids[i : i + length], new.version_ids[k : k + length]
        if a != b:
            found.update(at for at in compress(count(), map(ne, a, b)) if a[at] and b[at])
    kinds = dict.fromkeys(found, Kind.MODIFIED)
    if was.gone:
        for at in compress(count(), old.gone[i : i + length]):
            kinds.setdefault(at, Kind.RETURNED)
    run: list[int] = []
    for at in sorted(kinds):
        if run and kinds[at] is not kinds[run[0]]:
            yield _both(kinds[run[0]], was, now, run)
            run = []
        run.append(at)
    if run:
        yield _both(kinds[run[0]], was, now, run)


def _both(kind: Kind, was: _Side, now: _Side, places: list[int]) -> Change:
    return Change(
        kind, was.rows.take([was.at + place for place in places]), now.rows.take([now.at + place for place in places])
    )


def _missing(rows: Rows) -> Iterator[Change]:
    if not any(rows.gone):
        yield Change(Kind.VANISHED, rows, Rows())
        return
    start = 0
    for stop in range(1, len(rows) + 1):
        if stop == len(rows) or bool(rows.gone[stop]) is not bool(rows.gone[start]):
            yield Change(Kind.ABSENT if rows.gone[start] else Kind.VANISHED, rows.slice(start, stop), Rows())
            start = stop


# --- between two snapshots --------------------------------------------------------------------------------------------


def between(old: Layers, new: Layers, library: Library) -> Iterator[Change]:
    """What the source of one snapshot had and the other's has not, and so on: rows that are gone count as not there, so
    the kinds are ADDED, MODIFIED and VANISHED. Segments that both name are read only where a layer above differs."""
    for after, upto in unlike(old, new, library):
        was, now = (map(_still_there, read(layers, library, after, upto)) for layers in (old, new))
        yield from differences(was, now)


def unlike(old: Layers, new: Layers, library: Library) -> Iterator[tuple[bytes, bytes | None]]:
    """The ranges outside of which two stacks of layers hold the same rows for certain. Reads the layers that only one of
    them has, not the bottoms."""
    bottoms = [layers[0] if layers else () for layers in (old, new)]
    both = {ref.name for ref in bottoms[0]} & {ref.name for ref in bottoms[1]}
    lone = [tuple(ref for ref in bottom if ref.name not in both) for bottom in bottoms]
    same = next((at for at, (mine, yours) in enumerate(zip(old[1:], new[1:], strict=False)) if mine != yours), None)
    same = 1 + (min(len(old), len(new)) - 1 if same is None else same)
    uppers = [Ahead(layer, library) for layer in (*old[same:], *new[same:])]

    def touched(after: bytes, upto: bytes | None) -> bool:
        return any(within(bottom, after, upto) for bottom in lone) or any(u.any_within(after, upto) for u in uppers)

    reached = edge = b""
    open_range = False
    for ref in (ref for ref in bottoms[0] if ref.name in both):
        if touched(edge, ref.last):
            open_range = True
        else:
            if open_range:
                # Its first key is the same in both; there is no name for the one before.
                yield reached, ref.first
            reached, open_range = ref.last, False
        edge = ref.last
    if open_range or touched(edge, None):
        yield reached, None


def _still_there(rows: Rows) -> Rows:
    if not any(rows.gone):
        return rows
    there = [not gone for gone in rows.gone]
    return Rows(*[list(compress(column, there)) for column in rows.columns()])
