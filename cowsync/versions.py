"""Rows of a mirror of all versions: each version and each delete marker of a key is a row of its own (docs/design/0015).

One rule: the rows of one key lie together, the oldest first, between those of the key before and the key after; so what
sorts, folds, cuts and compares rows by their bytes need not know of versions. A row's key is

    the object's key, each byte 00 in it as 00 01 · 00 00 · the ordinal, 8 hexadecimal digits

The ordinal is the row's place in the order in which versions were put on the mirror, from 1. A row without an ETag is a
delete marker: no object is without one.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

from cowsync.rows import Row, Rows

ALL = "all"
"""What a plan's head and a snapshot's notes say of such a mirror."""
NULL_VERSION = b"null"
"""The one version id of a key that S3 gives to another version when it is written again."""
ORDINAL_MAX = 0xFFFF_FFFF
_ORDINAL = 8
_END, _ESCAPED, _BEHIND = b"\0\0", b"\0\1", b"\0\1"


def row_key(key: bytes, ordinal: int) -> bytes:
    """ValueError for an ordinal that has no room."""
    if not 1 <= ordinal <= ORDINAL_MAX:
        raise ValueError(f"a version's ordinal is from 1 to {ORDINAL_MAX:,}, not {ordinal}")
    return key.replace(b"\0", _ESCAPED) + _END + b"%08x" % ordinal


def key_of(row: bytes) -> bytes:
    """The object's key."""
    return row[: -_ORDINAL - len(_END)].replace(_ESCAPED, b"\0")


def ordinal_of(row: bytes) -> int:
    return int(row[-_ORDINAL:], 16)


def behind(key: bytes) -> bytes:
    """Greater than every row of `key` and than none of a greater key's; b"" (before all) for b""."""
    return key.replace(b"\0", _ESCAPED) + _BEHIND if key else b""


class History(NamedTuple):
    """What a base knows of one key: rows in ascending order of their ordinals."""

    key: bytes
    rows: list[Row]

    @property
    def lost(self) -> bool:
        """Whether the source has none of its versions any more."""
        return all(row.gone for row in self.rows)

    @property
    def current(self) -> Row | None:
        """The key's current object by the base: the newest row, None where that is a delete marker or all are gone. The
        newest counts even if it is gone itself, since that is what the mirror shows until another is put over it."""
        return None if self.lost or not self.rows[-1].etag else self.rows[-1]


def histories(pieces: Iterable[Rows]) -> Iterator[History]:
    """Rows of a base, or of a range of it that ends between keys, by key. Memory: the rows of one key."""
    rows = (row for piece in pieces for row in piece)
    for stem, group in groupby(rows, key=lambda row: row.key[:-_ORDINAL]):
        yield History(stem[: -len(_END)].replace(_ESCAPED, b"\0"), list(group))


def state_at(history: History, *, vanished: bool = False) -> Row | None:
    """The row of the object that the source had under the key, as a row of a base of current versions; None where it had
    none. `vanished`: also where the source had lost all versions, then as it was before."""
    there = [row for row in history.rows if not row.gone]
    chosen = there or (history.rows if vanished else [])
    if not chosen or not chosen[-1].etag:
        return None
    return chosen[-1]._replace(key=history.key)


def current_rows(pieces: Iterable[Rows], *, vanished: bool = False, piece_rows: int = 1000) -> Iterator[Rows]:
    """What the source had as current objects, as rows of a base of current versions. See `state_at`."""
    made = Rows()
    for history in histories(pieces):
        row = state_at(history, vanished=vanished)
        if row is not None:
            made.append(row)
            if len(made) >= piece_rows:
                yield made
                made = Rows()
    if made.keys:
        yield made
