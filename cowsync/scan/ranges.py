"""Ranges of keys: how the work of a listing is cut, and the proof that the cuts left nothing out.

One rule: a range is (after, upto]: keys greater than `after` and at most `upto`, which is what `start-after` of a
listing gives. b"" is before every key, None is after every key. Everything here is a plain function of values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Split points are made of characters that every store and every log can carry.
_LOWEST, _HIGHEST = 0x20, 0x7E


@dataclass(frozen=True, slots=True, order=True)
class KeyRange:
    after: bytes = b""
    upto: bytes | None = None

    def __str__(self) -> str:
        first = repr(self.after.decode("utf-8", "replace")) if self.after else "the first key"
        last = repr(self.upto.decode("utf-8", "replace")) if self.upto is not None else "the last key"
        return f"after {first} up to {last}" if self.after else f"{first} up to {last}"

    @property
    def empty(self) -> bool:
        return self.upto is not None and self.upto <= self.after


WHOLE = KeyRange()


def cut(whole: KeyRange, points: Iterable[bytes]) -> list[KeyRange]:
    """`whole` cut at those points that lie inside it; they may come in any order and more than once."""
    inside = sorted({point for point in points if point > whole.after and (whole.upto is None or point < whole.upto)})
    edges = [whole.after, *inside]
    return [KeyRange(edge, inside[place] if place < len(inside) else whole.upto) for place, edge in enumerate(edges)]


def gaps(ranges: Iterable[KeyRange], whole: KeyRange = WHOLE) -> list[KeyRange]:
    """What of `whole` no range covers. Empty means complete. ValueError when two overlap: a key seen twice is as wrong
    as one not seen."""
    missing = []
    reached: bytes | None = whole.after
    for piece in sorted(ranges, key=lambda piece: piece.after):
        if reached is None or piece.after < reached:
            raise ValueError(f"ranges overlap at {piece}")
        if piece.after > reached:
            missing.append(KeyRange(reached, piece.after))
        reached = piece.upto
    if reached is not None and (whole.upto is None or reached < whole.upto):
        missing.append(KeyRange(reached, whole.upto))
    return missing


def merged(ranges: Sequence[KeyRange]) -> list[KeyRange]:
    """Neighbours joined, for a tiling that is kept as a proof in few words."""
    joined: list[KeyRange] = []
    for piece in sorted(ranges, key=lambda piece: piece.after):
        if joined and joined[-1].upto == piece.after:
            joined[-1] = KeyRange(joined[-1].after, piece.upto)
        else:
            joined.append(piece)
    return joined


def midpoint(of: KeyRange) -> bytes | None:
    """A text strictly inside the range, somewhere near its middle as characters go; None where there is no simple one.
    Nothing is known about where keys lie: whoever splits asks the store what comes after the point."""
    low = of.after
    high = of.upto if of.upto is not None else b""
    shared = 0
    if of.upto is not None:
        while shared < min(len(low), len(high)) and low[shared] == high[shared]:
            shared += 1
    # Below the first difference the upper bound says nothing; the lower one still does.
    ceiling = high[shared] if of.upto is not None and shared < len(high) else _HIGHEST + 1
    for place in range(shared, len(low) + 1):
        floor = low[place] if place < len(low) else _LOWEST - 1
        least, most = max(floor + 1, _LOWEST), min(ceiling, _HIGHEST + 1) - 1
        if least <= most:
            # The character of the upper bound itself may stand there too when more of it follows; the middle does not
            # need it.
            point = low[:place] + bytes([(least + most + 1) // 2])
            if _is_text(point) and point > of.after and (of.upto is None or point < of.upto):
                return point
        if place >= len(low):
            break
        ceiling = _HIGHEST + 1
    return None


def _is_text(point: bytes) -> bool:
    try:
        point.decode()
    except UnicodeDecodeError:
        return False
    return True
