"""Ranges of keys: how the work of a listing is cut, and the proof that the cuts left nothing out.

One rule: a range is (after, upto]: keys greater than `after` and at most `upto`, which is what `start-after` of a
listing gives. b"" is before every key, None is after every key. Everything here is a plain function of values.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LOWEST, HIGHEST = 0x20, 0x7E
"""Split points are made of characters that every store and every log can carry."""


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


def steps(of: KeyRange) -> list[bytes]:
    """Points inside the range, ascending, each the next sibling of a longer beginning of `after` than the one behind it:
    after `a/b7` come `a/b8`, `a/c`, `a0`, `b`. What lies behind the last of them that has keys after it is how far the
    range reaches, in few questions, whatever the keys look like."""
    points = []
    for place in range(len(of.after) - 1, -1, -1):
        if LOWEST <= of.after[place] < HIGHEST:
            point = with_character(of.after, place, of.after[place] + 1)
            if of.upto is None or point < of.upto:
                points.append(point)
    return points


def with_character(key: bytes, place: int, character: int) -> bytes:
    """The beginning of `key` before `place`, and there another (ASCII) character."""
    return key[:place] + bytes([character])
