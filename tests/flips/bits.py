"""One flipped bit at a time: which bits, a store that shows them, and a count of what came of each.

One rule: every flip ends in a named class. There is no class for "wrong data".
"""

from collections import Counter
from collections.abc import Iterator, Mapping

from s3core.errors import Corrupt
from s3core.store import Body, ObjectStore
from s3core.wrapper import StoreWrapper

STRETCH = 16


def every_bit(length: int, start: int = 0) -> Iterator[int]:
    """Numbers of all bits of `length` bytes from byte `start` on."""
    yield from range(8 * start, 8 * (start + length))


def one_bit_in(stretch: int, length: int, start: int = 0) -> Iterator[int]:
    """One bit in each `stretch` bytes, at a byte and a place in it that wander."""
    for number, at in enumerate(range(start, start + length, stretch)):
        byte = min(at + number * 5 % stretch, start + length - 1)
        yield 8 * byte + number * 3 % 8


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


class FlippedStore(StoreWrapper):
    """`inner` with some objects as `shown`."""

    def __init__(self, inner: ObjectStore, shown: Mapping[str, bytes] | None = None) -> None:
        super().__init__(inner)
        self.shown: Mapping[str, bytes] = shown or {}

    def get(self, key: str) -> Body:
        if key in self.shown:
            return Body(self.shown[key], "etag")
        return super().get(key)

    def get_range(self, key: str, offset: int, length: int) -> Body:
        if key in self.shown:
            part = self.shown[key][offset : offset + length]
            if len(part) != length:
                raise Corrupt("shorter than asked for", key=key, offset=offset)
            return Body(part, "etag")
        return super().get_range(key, offset, length)


class Tally:
    """What came of the flips, by class."""

    def __init__(self, of: str) -> None:
        self.of = of
        self.classes: Counter[str] = Counter()

    def add(self, outcome: str) -> None:
        self.classes[outcome] += 1

    @property
    def flips(self) -> int:
        return sum(self.classes.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{outcome} {count}" for outcome, count in sorted(self.classes.items()))
        return f"{self.of}: {self.flips} flips: {parts}"
