"""How large the parts of an upload are, before anybody knows how large the object will be.

    parts 1 to 1,000            the size that was asked for
    each further 100 parts      one step more, so that 10,000 parts hold the largest object (5 TiB)
    never more than             `largest`: half the spool, since one part fills while another leaves

A size that is known gets parts of one size. Servers that want all parts but the last equally long (R2) get that always; then
the first size times 10,000 is the largest stream.

One rule: pure, and a plan says the same for ever: `text` is kept with the object, so that its ETag can be made again from its
bytes alone.
Source: Amazon S3 User Guide, "Multipart upload limits"; Cloudflare R2 documentation, "Multipart upload".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from s3core.bucket import PART_BYTES_MAX, PART_BYTES_MIN

MIB = 1 << 20
PARTS_MAX = 10_000
OBJECT_BYTES_MAX = 5 * 1024**4
FLAT_PARTS = 1000
STEP_PARTS = 100
_STEPS = (PARTS_MAX - FLAT_PARTS) // STEP_PARTS
_TEXT = re.compile(r"1 ([1-9][0-9]{0,12}) (0|[1-9][0-9]{0,12}) ([1-9][0-9]{0,12})")


@dataclass(frozen=True, slots=True)
class PartPlan:
    """`first` bytes in each of the first FLAT_PARTS parts, `step` bytes more every STEP_PARTS parts after them, `largest` at
    most. Numbers begin at 1."""

    first: int
    step: int = 0
    largest: int = PART_BYTES_MAX

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.largest or self.step < 0:
            raise ValueError(f"no plan of parts: {self}")

    def size(self, number: int) -> int:
        """Bytes of part `number`, unless it is the last one, which has what is left."""
        if not 1 <= number <= PARTS_MAX:
            raise ValueError(f"part numbers are 1 to {PARTS_MAX:,}, not {number}")
        steps = max(0, number - FLAT_PARTS + STEP_PARTS - 1) // STEP_PARTS
        return min(self.first + steps * self.step, self.largest)

    def offset(self, number: int) -> int:
        """Where part `number` begins; number PARTS_MAX + 1: how many bytes all parts hold."""
        total = self.first * min(number - 1, FLAT_PARTS)
        left, size = max(0, number - 1 - FLAT_PARTS), self.first
        while left:
            size = min(size + self.step, self.largest)
            total += size * min(left, STEP_PARTS)
            left -= min(left, STEP_PARTS)
        return total

    @property
    def object_bytes_max(self) -> int:
        return min(OBJECT_BYTES_MAX, self.offset(PARTS_MAX + 1))

    def cut(self, size: int) -> Iterator[tuple[int, int, int]]:
        """Number, offset and bytes of each part of an object of `size` bytes; one part without bytes where it has none."""
        number, offset = 1, 0
        while True:
            length = min(self.size(number), size - offset)
            yield number, offset, length
            number, offset = number + 1, offset + length
            if offset >= size:
                return

    @property
    def text(self) -> str:
        """For an object's metadata."""
        return f"1 {self.first} {self.step} {self.largest}"

    @classmethod
    def parse(cls, text: str) -> "PartPlan | None":
        """What `text` was; None for anything else."""
        found = _TEXT.fullmatch(text)
        try:
            return cls(*map(int, found.groups())) if found else None
        except ValueError:
            return None


def plan_stream(part_bytes: int, largest: int, *, equal: bool = False, expected: int = 0) -> PartPlan:
    """For a stream. `expected`: how many bytes it will have at most, as far as somebody knows (0: nobody does); it makes the
    first parts larger, never smaller. `largest` bounds a part (half the spool)."""
    largest = min(largest, PART_BYTES_MAX)
    first = min(max(part_bytes, _fitting(min(expected, OBJECT_BYTES_MAX))), largest)
    if first < PART_BYTES_MIN:
        raise ValueError(
            f"a part has at least {PART_BYTES_MIN >> 20} MiB; the spool must hold two: {2 * PART_BYTES_MIN >> 20} MiB"
        )
    if equal or first * PARTS_MAX >= OBJECT_BYTES_MAX:
        return PartPlan(first, 0, first)
    # first * PARTS_MAX + step * STEP_PARTS * (1 + 2 + ... + _STEPS) holds the largest object.
    missing = OBJECT_BYTES_MAX - first * PARTS_MAX
    step = -(-missing // (STEP_PARTS * _STEPS * (_STEPS + 1) // 2))
    return PartPlan(first, -(-step // MIB) * MIB, max(first, largest))


def plan_known(size: int, part_bytes: int) -> PartPlan:
    """For an object of `size` bytes: all parts but the last equally long. ValueError for more than S3 takes."""
    if size > OBJECT_BYTES_MAX:
        raise ValueError(f"{size:,} bytes are more than an object may have ({OBJECT_BYTES_MAX:,})")
    first = max(part_bytes, _fitting(size), PART_BYTES_MIN)
    return PartPlan(first, 0, first)


def _fitting(size: int) -> int:
    """The smallest part in whole MiB of which PARTS_MAX hold `size`."""
    return -(-size // (PARTS_MAX * MIB)) * MIB
