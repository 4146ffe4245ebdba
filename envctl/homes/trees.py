"""What the console needs to know of a tree segment without its rows. Pure; the bytes are `envctl.agent.tree`'s."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from envctl.agent import tree
from envctl.agent.errors import Corrupt
from envctl.errors import HomeDamaged

TAIL_BYTES: Final = 64 * 1024
"""Of a segment this much of its end holds the footer, but for segments of very long paths or very many packs."""
_HEADER: Final = tree.MAGIC + tree.VERSION.to_bytes(4, "little") + bytes(4)


@dataclass(frozen=True, slots=True)
class TreeFacts:
    """`packs`: binary SHA-256 of those its rows refer to. `first`, `last`: paths of its first and last row."""

    packs: tuple[bytes, ...]
    first: bytes
    last: bytes
    rows: int


def facts_of(segment: bytes, name: str) -> TreeFacts:
    """HomeDamaged, with `name`, where it is no segment."""
    try:
        reader = tree.TreeReader(segment)
    except Corrupt as error:
        raise HomeDamaged(f"{name}: {error}") from error
    return TreeFacts(reader.packs, reader.first, reader.last, reader.rows_total)


def packs_of_tail(tail: bytes, name: str) -> tuple[bytes, ...] | None:
    """The packs, from the end of a segment alone; None where more of it is needed. The reader looks at rows only when it is
    asked for them, so that a header and an end are enough for it."""
    try:
        return tree.TreeReader(_HEADER + tail).packs
    except Corrupt as error:
        if "cut short" in str(error):
            return None
        raise HomeDamaged(f"{name}: {error}") from error


def in_order(facts: list[TreeFacts]) -> bool:
    """Whether each begins behind the one before. Segments without rows do not count."""
    full = [one for one in facts if one.rows]
    return all(tree.sort_key(one.last) < tree.sort_key(other.first) for one, other in pairwise(full))
