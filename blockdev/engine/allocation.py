"""Which sectors are mapped (GET LBA STATUS): the bucket's answer with the journal laid over it.

One rule: the doubt falls on "mapped". An initiator that is told "not mapped" does not read at all, and copies zeros.
So blocks the journal held when the question was asked count as mapped: the worker may have looked at its map before it
had them, and the journal may have given them up by the time it answers.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from blockdev.engine.link import Allocated, AskAllocated, ToWorker
from blockdev.engine.local_index import LocalIndex
from blockdev.units import Geometry

AllocatedDone = Callable[[list[tuple[int, int, bool]] | Exception], None]

BLOCKS_MAX = 16384
"""Most that one answer covers, 64 MiB; it then ends before the range does, which SBC-4 5.9 allows."""


HELD_BLOCKS_MIN = 256
"""1 MiB: a range that begins with so much in the journal is answered at once, as far as that goes."""


@dataclass(frozen=True, slots=True)
class _Question:
    lba: int
    count: int
    head: int
    """Where the journal ended then."""
    held: list[tuple[int, int, bool]]
    """What the journal held when it was asked, as runs of blocks."""
    waiting: list[tuple[int, int, AllocatedDone]] = field(default_factory=list)
    """(first sector, end, whom to tell) of all whom its answer serves."""


class Allocation:
    """Owned by the front's thread."""

    def __init__(self, index: LocalIndex, send: Callable[[ToWorker], None], geometry: Geometry) -> None:
        self._index = index
        self._send = send
        self._sectors_per_block = geometry.sectors_per_block
        self._asked: dict[int, _Question] = {}
        self._next_id = 1

    def ask(self, lba: int, count: int, head: int, done: AllocatedDone) -> None:
        """`done` gets (lba, count, mapped) runs from `lba` on, perhaps before this returns. Nothing may be staged; `head` is
        where the journal ends.

        Who asks about a part of what the worker is being asked already waits for that answer, if nothing was appended
        since: several reads in order, under way together, each begin with this question."""
        per_block = self._sectors_per_block
        for question in self._asked.values():
            end = question.lba + question.count
            if question.head == head and question.lba <= lba < end:
                question.waiting.append((lba, min(lba + count, end), done))
                return
        count = min(count, BLOCKS_MAX * per_block - lba % per_block)
        first, end = self._blocks(lba, count)
        held = [run for run in self._index.local_runs(first, end) if run[2]]
        if held and held[0][0] == first and held[0][1] - first >= HELD_BLOCKS_MIN:
            # A run this long is answer enough: who wants the rest asks from its end on.
            done([(lba, min(held[0][1] * per_block - lba, count), True)])
            return
        self._asked[self._next_id] = _Question(lba, count, head, held, [(lba, lba + count, done)])
        self._send(AskAllocated(self._next_id, lba, count))
        self._next_id += 1

    def answered(self, message: Allocated) -> None:
        question = self._asked.pop(message.id)
        per_block = self._sectors_per_block
        lba, limit = question.lba, question.lba + question.count
        first, end = self._blocks(lba, question.count)
        mapped = bytearray(b"\1") * (end - first)
        for start, length, holds in message.runs:
            if not holds:  # a block that is only partly unmapped counts as mapped
                low = max(first, -(-start // per_block))
                high = min(end, (start + length) // per_block)
                if low < high:
                    mapped[low - first : high - first] = bytes(high - low)
        for low, high, data in [*self._index.local_runs(first, end), *question.held]:
            mapped[low - first : high - first] = (b"\1" if data else b"\0") * (high - low)
        runs = []
        at = 0
        while at < len(mapped):
            change = mapped.find(1 - mapped[at], at)
            stop = len(mapped) if change < 0 else change
            low = max(lba, (first + at) * per_block)
            high = min(limit, (first + stop) * per_block)
            runs.append((low, high - low, bool(mapped[at])))
            at = stop
        for low, high, done in question.waiting:
            done(
                [
                    (max(start, low), min(start + length, high) - max(start, low), holds)
                    for start, length, holds in runs
                    if start < high and start + length > low
                ]
            )

    def fail_all(self, error: Exception) -> None:
        asked, self._asked = self._asked, {}
        for question in asked.values():
            for _, _, done in question.waiting:
                done(error)

    def _blocks(self, lba: int, count: int) -> tuple[int, int]:
        return lba // self._sectors_per_block, -(-(lba + count) // self._sectors_per_block)
