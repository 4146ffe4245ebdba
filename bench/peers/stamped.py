"""Blocks that say which write they are, and the judge of what a disk may hold after it was cut off.

One rule: the writer sends one write at a time, so their order is known, and the judge needs nothing but their places. What
a disk holds is a *prefix* when it is all writes up to some number, each whole, and nothing later.
"""

import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

BLOCK = 4096
_HEAD = struct.Struct("<8sQQI")
_MAGIC = b"stamped\0"
_NOISE = random.Random(0).randbytes(1 << 16)
TORN = -1


def block(number: int, place: int) -> bytes:
    """Content of write `number` at block `place`; half of it compresses. Number 0: what was never written, zeros."""
    if number == 0:
        return bytes(BLOCK)
    at = (number * 7919 + place * 131) % (len(_NOISE) - BLOCK)
    body = _NOISE[at : at + BLOCK // 2 - _HEAD.size] + bytes(BLOCK // 2)
    return _HEAD.pack(_MAGIC, number, place, zlib.crc32(body)) + body


def number_of(data: bytes, place: int) -> int:
    """Which write a block is of: 0 for none, TORN for what no single write put there."""
    if not any(data):
        return 0
    magic, number, said, _ = _HEAD.unpack_from(data)
    return int(number) if magic == _MAGIC and said == place and data == block(number, place) else TORN


@dataclass(slots=True)
class Written:
    """What the writer knows. `places[n - 1]` is where write n went; `acknowledged` and `flushed` are the last such numbers.
    `failed`: those that were answered with an error; they may be there or not."""

    places: list[int] = field(default_factory=list)
    acknowledged: int = 0
    flushed: int = 0
    failed: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Found:
    """What a disk held. `newest`: the latest write that is there; `missing`: older writes that should show and do not;
    `lost`: flushed ones that do not show, `gone`: acknowledged ones; `strange`: places with content that no write put there."""

    flushed: int
    acknowledged: int
    newest: int
    missing: tuple[int, ...]
    lost: tuple[int, ...]
    gone: tuple[int, ...]
    strange: tuple[int, ...]

    @property
    def is_prefix(self) -> bool:
        return not self.missing and not self.strange

    @property
    def has_flushed(self) -> bool:
        return not self.lost and not self.strange

    def flushed_said(self) -> str:
        if self.strange:
            return self._strange_said()
        if self.lost:
            return f"{len(self.lost)} of {self.flushed} flushed writes are not there, the first is {self.lost[0]}"
        later = max(0, self.newest - self.flushed)
        return f"all {self.flushed} flushed writes are there, and {later} later ones"

    @property
    def has_acknowledged(self) -> bool:
        return not self.gone and not self.strange

    def acknowledged_said(self) -> str:
        if self.strange:
            return self._strange_said()
        if self.gone:
            return f"{len(self.gone)} of {self.acknowledged} acknowledged writes are not there, the first is {self.gone[0]}"
        return f"all {self.acknowledged} acknowledged writes are there"

    def prefix_said(self) -> str:
        if self.strange:
            return self._strange_said()
        if self.missing:
            older = f"{len(self.missing)} older ones are not, the first is {self.missing[0]}"
            return f"write {self.newest} is there and {older} (of {self.acknowledged} acknowledged)"
        return f"all up to write {self.newest}, nothing after it (of {self.acknowledged} acknowledged)"

    def _strange_said(self) -> str:
        return f"{len(self.strange)} blocks hold what no write put there, the first is block {self.strange[0]}"


def judge(written: Written, held: dict[int, int]) -> Found:
    """`held`: the write that each place holds (`number_of`), of all places that were written to."""
    strange = []
    numbers_at: dict[int, list[int]] = {}
    for number, place in enumerate(written.places, 1):
        numbers_at.setdefault(place, []).append(number)
    for place, number in held.items():
        if number and number not in numbers_at.get(place, ()):
            strange.append(place)
    newest = max((number for place, number in held.items() if place not in strange), default=0)
    sound = {
        place: [number for number in numbers if number not in written.failed]
        for place, numbers in numbers_at.items()
        if place not in strange
    }

    def hidden(moment: int) -> tuple[int, ...]:
        """Writes that show at that moment, and of whose place something older is there."""
        showing = {place: max((n for n in numbers if n <= moment), default=0) for place, numbers in sound.items()}
        return tuple(sorted(number for place, number in showing.items() if held.get(place, 0) < number))

    return Found(
        flushed=written.flushed,
        acknowledged=written.acknowledged,
        newest=newest,
        missing=hidden(newest),
        lost=hidden(written.flushed),
        gone=hidden(written.acknowledged),
        strange=tuple(sorted(strange)),
    )


def held(read: Callable[[int], bytes], places: Sequence[int]) -> dict[int, int]:
    """The write that each of these places holds; `read` gives a block."""
    return {place: number_of(read(place), place) for place in sorted(set(places))}
