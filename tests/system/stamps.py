"""Stamped content, and the judge of what a disk may hold after a crash.

One rule: every 512 bytes say which write they are of and where they belong, so that order can be judged byte for byte. The
judge knows only what an initiator knows: which writes were sent, and which answers had come before each was sent.

A state is a *prefix* when no write is missing that had been acknowledged before another one, which is there, was
sent. Writes in flight together never overlap; so each place sees its writes in the order of their numbers.
"""

import random
import struct
from dataclasses import dataclass, field, replace

UNIT = 512
BLOCK_UNITS = 4096 // UNIT
_STAMP = struct.Struct(">QQ")
_NOISE = random.Random(0).randbytes(1 << 20)
_ZERO = bytes(UNIT)
NEVER = 1 << 62
"""Acknowledged never."""


class Violated(AssertionError):
    """The disk holds what it must not hold."""


def stamp(number: int, first: int, units: int) -> bytes:
    """Content of write `number` on `units` units from `first` on; every third write compresses well. Number 0: zeros."""
    if number == 0:
        return bytes(units * UNIT)
    parts = []
    for unit in range(first, first + units):
        head = _STAMP.pack(number, unit)
        if number % 3 == 0:
            parts.append(head * (UNIT // 16))
        else:
            at = (number * 7919 + unit * 131) % (len(_NOISE) - UNIT)
            parts += [head, _NOISE[at : at + UNIT - 16]]
    return b"".join(parts)


@dataclass(slots=True, eq=False)
class Sent:
    """A write. `after`: how many acknowledgements had come when it was sent; `ack`: which one its own was."""

    number: int
    first: int
    units: int
    after: int
    zeros: bool = False
    ack: int = NEVER

    @property
    def content(self) -> int:
        """The number its units show."""
        return 0 if self.zeros else self.number


@dataclass(slots=True)
class Verdict:
    """`kept` of `acknowledged` writes are provably there or overwritten; `lost` provably are not."""

    acknowledged: int
    lost: int
    lost_numbers: list[int] = field(default_factory=list)


class Judge:
    """The writes of one volume since its state was last known for certain."""

    def __init__(self, size_bytes: int) -> None:
        self.units = size_bytes // UNIT
        self._base = [0] * self.units
        self._writes: dict[int, Sent] = {}
        self._over: list[list[Sent]] = [[] for _ in range(self.units)]
        self._number = 0
        self.acknowledged = 0
        """Acknowledgements since the state was last known."""
        self.durable = 0
        """Of these, so many (the first ones) must survive the loss of the host."""

    # --- what the initiator does

    @property
    def next_number(self) -> int:
        return self._number + 1

    def sent(self, first: int, units: int, *, zeros: bool = False) -> Sent:
        self._number += 1
        write = Sent(self._number, first, units, self.acknowledged, zeros)
        self._writes[write.number] = write
        for unit in range(first, first + units):
            self._over[unit].append(write)
        return write

    def acked(self, write: Sent) -> None:
        write.ack = self.acknowledged
        self.acknowledged += 1

    def refused(self, write: Sent) -> None:
        """Answered that nothing happened."""
        self._forget(write, range(write.first, write.first + write.units))
        self._writes.pop(write.number)

    def expected(self, first: int, units: int) -> bytes:
        """What a read must give while no write is in flight there."""
        parts = []
        unit = first
        while unit < first + units:
            over = self._over[unit]
            if over:
                parts.append(stamp(over[-1].content, unit, 1))
            else:
                parts.append(stamp(self._base[unit], unit, 1))
            unit += 1
        return b"".join(parts)

    def _forget(self, write: Sent, units: "range | list[int]") -> None:
        for unit in units:
            self._over[unit].remove(write)

    # --- what is found

    def check(self, content: bytes, floor: int) -> Verdict:
        """Raises Violated unless `content` is a prefix with at least the first `floor` acknowledged writes."""
        if len(content) != self.units * UNIT:
            raise Violated(f"the disk has {len(content)} bytes instead of {self.units * UNIT}")
        low, high = self._place(content)
        needed, because = floor, f"{floor} acknowledged writes must be there"
        for unit, over in enumerate(self._over):
            if low[unit] and over[low[unit] - 1].after > needed:
                witness = over[low[unit] - 1]
                needed = witness.after
                because = f"write {witness.number} is there (unit {unit}), sent after {needed} acknowledgements"
        for unit, over in enumerate(self._over):
            for index in range(len(over), high[unit], -1):
                if over[index - 1].ack < needed:
                    lost = over[index - 1]
                    held = over[high[unit] - 1].number if high[unit] else "the base"
                    raise Violated(
                        f"unit {unit} holds {held}, so write {lost.number} is missing, acknowledged as number "
                        f"{lost.ack}; {because}"
                    )
        verdict = Verdict(self.acknowledged, 0)
        for write in self._writes.values():
            missing = self._missing(write, high)
            if missing and write.ack != NEVER:
                verdict.lost += 1
                verdict.lost_numbers.append(write.number)
            self._check_whole(write, low, high)
        return verdict

    def _place(self, content: bytes) -> tuple[list[int], list[int]]:
        """For each unit how many of its writes are there, at least and at most (zeros may be of several)."""
        low, high = [0] * self.units, [0] * self.units
        view = memoryview(content)
        for unit, over in enumerate(self._over):
            data = view[unit * UNIT : (unit + 1) * UNIT]
            number, place = _STAMP.unpack_from(data)
            if data != stamp(number, unit, 1):
                said = f"the stamp says write {number} at unit {place}"
                raise Violated(f"unit {unit} holds what no write put there: {said}, {bytes(data[:32]).hex()}…")
            found = [index for index, write in enumerate(over, 1) if write.content == number]
            if self._base[unit] == number:
                found.insert(0, 0)
            if not found:
                known = [write.number for write in over]
                raise Violated(f"unit {unit} holds write {number}; it may hold {self._base[unit]} or one of {known}")
            low[unit], high[unit] = found[0], found[-1]
        return low, high

    def _missing(self, write: Sent, high: list[int]) -> list[int]:
        """Units of a write that hold something older."""
        return [
            unit
            for unit in range(write.first, write.first + write.units)
            if write in self._over[unit] and high[unit] < self._over[unit].index(write) + 1
        ]

    def _check_whole(self, write: Sent, low: list[int], high: list[int]) -> None:
        """One write is there or not; one that was never answered may end at a 4 KiB block."""
        missing = set(self._missing(write, high))
        if not missing:
            return
        shown = [
            unit
            for unit in range(write.first, write.first + write.units)
            if unit not in missing and write in self._over[unit] and low[unit] >= self._over[unit].index(write) + 1
        ]
        if write.ack == NEVER:
            blocks = {unit // BLOCK_UNITS for unit in missing}
            shown = [unit for unit in shown if unit // BLOCK_UNITS in blocks]
        if shown:
            raise Violated(f"write {write.number} is torn: unit {shown[0]} has it, unit {min(missing)} has not")

    def copy(self) -> "Judge":
        """Of this moment: it does not learn what comes later."""
        made = Judge(0)
        made.units, made._base = self.units, self._base
        made._writes = {number: replace(write) for number, write in self._writes.items()}
        made._over = [[made._writes[write.number] for write in over] for over in self._over]
        made._number, made.acknowledged, made.durable = self._number, self.acknowledged, self.durable
        return made

    # --- what is known from then on

    def kept(self, content: bytes) -> None:
        """The same host went on: what was never answered is settled as it is found; all may still be lost with the host."""
        _, high = self._place(content)
        for write in [write for write in self._writes.values() if write.ack == NEVER]:
            gone = self._missing(write, high)
            self._forget(write, gone)
            self.acked(write)

    def settled(self, content: bytes) -> None:
        """What the disk holds now cannot be lost any more."""
        view = memoryview(content)
        self._base = [_STAMP.unpack_from(view, unit * UNIT)[0] for unit in range(self.units)]
        self._writes.clear()
        self._over = [[] for _ in range(self.units)]
        self.acknowledged = self.durable = 0
