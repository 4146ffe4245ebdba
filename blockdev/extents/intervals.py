"""Overlay arithmetic: later writes cover earlier ones. Pure; knows nothing of extents or volumes.

One rule: runs are sorted, never empty and never overlap.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Run(NamedTuple, Generic[T]):
    """[start, end) comes from `source`, whose own beginning lies at `origin` (so its offset is start - origin)."""

    start: int
    end: int
    origin: int
    source: T


class Overlay(Generic[T]):
    """Runs laid over each other; the newest is what shows."""

    __slots__ = ("_ends", "_runs", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._runs: list[Run[T]] = []

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run[T]]:
        return iter(self._runs)

    def put(self, start: int, end: int, source: T) -> None:
        """Cover [start, end) with `source`."""
        starts, ends, runs = self._starts, self._ends, self._runs
        if not runs or start >= ends[-1]:
            starts.append(start)
            ends.append(end)
            runs.append(Run(start, end, start, source))
            return
        first = bisect_right(ends, start)
        last = bisect_left(starts, end)
        fresh: list[Run[T]] = []
        if first < last:
            left = runs[first]
            if left.start < start:
                fresh.append(Run(left.start, start, left.origin, left.source))
        fresh.append(Run(start, end, start, source))
        if first < last:
            right = runs[last - 1]
            if right.end > end:
                fresh.append(Run(end, right.end, right.origin, right.source))
        runs[first:last] = fresh
        starts[first:last] = [run.start for run in fresh]
        ends[first:last] = [run.end for run in fresh]

    def covered(self) -> int:
        """How much is covered, in the unit of the positions."""
        return sum(self._ends) - sum(self._starts)

    def within(self, start: int, end: int) -> Iterator[Run[T]]:
        """The runs that meet [start, end), cut to it."""
        for index in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            run = self._runs[index]
            yield Run(max(run.start, start), min(run.end, end), run.origin, run.source)

    def holes(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of [start, end) that nothing covers."""
        at = start
        for run in self.within(start, end):
            if run.start > at:
                yield at, run.start
            at = run.end
        if at < end:
            yield at, end


class RangeSet:
    """Non-overlapping ranges [first, end) with a number each; a new range covers what it meets."""

    __slots__ = ("_overlay",)

    def __init__(self) -> None:
        self._overlay: Overlay[int] = Overlay()

    def __len__(self) -> int:
        return len(self._overlay)

    def put(self, first: int, end: int, number: int) -> None:
        self._overlay.put(first, end, number)

    def at(self, position: int) -> int:
        """The number of the range that holds `position`, or 0."""
        for run in self._overlay.within(position, position + 1):
            return run.source
        return 0

    def items(self) -> list[tuple[int, int, int]]:
        return [(run.start, run.end, run.source) for run in self._overlay]

    def remove(self, first: int, end: int) -> None:
        """Forget exactly the range [first, end)."""
        rest = [item for item in self.items() if (item[0], item[1]) != (first, end)]
        self._overlay = Overlay()
        for item in rest:
            self._overlay.put(*item)
