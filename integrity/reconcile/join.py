"""Two ascending streams of lines, what the ledger expects and what the bucket has, compared at the speed of C.

A line is a version: the key (each byte 00 in it as 00 01), 00 00, then version id, ETag and size with 00 between them; a
delete marker has no ETag. A key of which more than one state is right has a line that no bucket can have (`UNSURE`).

One rule: lines that are equal, and whose time lies in its window, are right; every key of which any line is not is handed
out whole, to be judged by `integrity.reconcile.judgement`. Stretches without a difference cost no Python per row.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import repeat
from operator import le

from integrity.reconcile.acts import NEVER, Expected
from integrity.record import timestamp
from s3core.bucket import ListedVersion, ListedVersions

END = b"\0\0"
UNSURE = b"\xff"
"""In place of version, ETag and size. Behind all of them, since they are ASCII."""
ALWAYS = "~"
"""Behind every time."""
_STEP = 32
"""Lines compared first after a difference; doubled with each equal stretch."""


def line_prefix(key: bytes) -> bytes:
    return key.replace(b"\0", b"\0\1") + END


def key_of(line: bytes) -> bytes:
    """The object's key."""
    return line[: line.index(END)].replace(b"\0\1", b"\0") if b"\0\1" in line else line[: line.index(END)]


@dataclass(slots=True)
class Lines:
    """Expected lines, and between which texts the time of each must lie."""

    lines: list[bytes] = field(default_factory=list)
    lows: list[str] = field(default_factory=list)
    highs: list[str] = field(default_factory=list)


def expected_lines(key: str, expected: Expected, skew_s: float) -> list[tuple[bytes, str, str]]:
    """The lines of one key, ascending, with the windows of their times."""
    prefix = line_prefix(key.encode())
    if not expected.settled:
        return [(prefix + UNSURE, "", ALWAYS)]
    found = []
    for version, act in expected.live:
        etag, size = (b"", 0) if act.kind == "delete" else (act.etag.encode(), act.size)
        low = _second(int(act.begun - skew_s - 1)) if act.begun > skew_s + 1 else ""
        high = _second(int(act.high + skew_s)) + ALWAYS if act.high + skew_s < NEVER else ALWAYS
        found.append((b"%s%s\0%s\0%d" % (prefix, version.encode(), etag, size), low, high))
    return sorted(found)


@lru_cache(maxsize=1 << 14)
def _second(unix_s: int) -> str:
    return timestamp(unix_s)[:19]


@dataclass(slots=True)
class Listed:
    """A piece of a listing, ascending by line, with all versions of each of its keys. `order`: which of `rows` a line is of,
    where a line is not of the row at its own place."""

    lines: list[bytes]
    modified: list[str]
    rows: ListedVersions
    order: list[int] | None = None

    def row(self, at: int) -> ListedVersion:
        return self.rows.row(at if self.order is None else self.order[at])


def listed_lines(rows: ListedVersions) -> Listed:
    """`rows` must be whole keys. What comes back is sorted by line, for a listing has the newest version first."""
    keys, ids = rows.keys, rows.ids
    if b"null" in ids:
        ids = [b"" if version == b"null" else version for version in ids]
    if b"\0" in b"".join(keys):
        keys = [key.replace(b"\0", b"\0\1") for key in keys]
    sizes = "\n".join(map(str, rows.sizes)).encode().split(b"\n") if rows.sizes else []
    lines = list(map(b"\0".join, zip(keys, repeat(b""), ids, rows.etags, sizes, strict=False)))
    modified = b"\n".join(rows.modified).decode().split("\n") if lines else []
    in_order = sorted(lines)
    if in_order == lines:
        return Listed(lines, modified, rows)
    order = sorted(range(len(lines)), key=lines.__getitem__)
    return Listed(in_order, list(map(modified.__getitem__, order)), rows, order)


def whole_keys(pages: Iterable[ListedVersions]) -> Iterator[ListedVersions]:
    """The pages, cut between keys: what a page holds of its last key waits for the next one."""
    held: ListedVersions | None = None
    for page in pages:
        if not page:
            continue
        rows = _joined(held, page) if held is not None else page
        cut = bisect_left(rows.keys, rows.keys[-1])
        if cut:
            yield _slice(rows, 0, cut)
        held = _slice(rows, cut, len(rows))
    if held is not None:
        yield held


def differing(expected: Iterable[Lines], actual: Iterable[Listed]) -> Iterator[tuple[bytes, list[ListedVersion]]]:
    """Each key of which something is not as expected or not sure, ascending, with all that the bucket has of it."""
    was, now = _Side(iter(expected)), _Actual(iter(actual))
    while was.fill() and now.fill():
        equal = _common(was, now)
        was.at += equal
        now.at += equal
        if equal and (was.at == len(was.lines) or now.at == len(now.lines)):
            # The piece may end between lines of one key; whether it goes on is seen by the next.
            continue
        one, other = was.lines[was.at], now.lines[now.at]
        key = min(_prefix(one), _prefix(other))
        yield key_of(key), now.take(key)
        was.skip(key)
    while was.fill():
        key = _prefix(was.lines[was.at])
        yield key_of(key), now.take(key)
        was.skip(key)
    while now.fill():
        key = _prefix(now.lines[now.at])
        yield key_of(key), now.take(key)


def _prefix(line: bytes) -> bytes:
    return line[: line.index(END) + len(END)]


class _Side:
    def __init__(self, pieces: Iterator[Lines]) -> None:
        self._pieces = pieces
        self.lines: list[bytes] = []
        self.lows: list[str] = []
        self.highs: list[str] = []
        self.at = 0

    def fill(self) -> bool:
        while self.at >= len(self.lines):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            if self.lines and piece.lines and piece.lines[0] <= self.lines[-1]:
                raise ValueError(f"lines do not rise: {piece.lines[0]!r} after {self.lines[-1]!r}")
            self.lines, self.lows, self.highs, self.at = piece.lines, piece.lows, piece.highs, 0
        return True

    def skip(self, prefix: bytes) -> None:
        """Behind all lines of a key."""
        while self.fill() and self.lines[self.at].startswith(prefix):
            self.at += 1


class _Actual:
    def __init__(self, pieces: Iterator[Listed]) -> None:
        self._pieces = pieces
        self.lines: list[bytes] = []
        self.modified: list[str] = []
        self._piece: Listed | None = None
        self._before: Listed | None = None
        self.at = 0

    def fill(self) -> bool:
        while self.at >= len(self.lines):
            piece = next(self._pieces, None)
            if piece is None:
                return False
            if self.lines and piece.lines and piece.lines[0] <= self.lines[-1]:
                raise ValueError(f"lines do not rise: {piece.lines[0]!r} after {self.lines[-1]!r}")
            self._before, self._piece = self._piece, piece
            self.lines, self.modified, self.at = piece.lines, piece.modified, 0
        return True

    def take(self, prefix: bytes) -> list[ListedVersion]:
        """All rows of a key, those that were passed already too; goes on behind them. A piece has whole keys."""
        begin, end = _found(self.lines, prefix)
        self.at = max(self.at, end)
        piece = self._piece
        if begin == end and self._before is not None:
            # Its lines were the last of the piece before, and as expected; what is missing comes behind them.
            piece = self._before
            begin, end = _found(piece.lines, prefix)
        taken = [piece.row(at) for at in range(begin, end)] if piece is not None else []
        # Newest first, as S3 has them: times of one server compare as texts.
        return sorted(taken, key=lambda row: (row.latest, row.modified), reverse=True)


def _found(lines: list[bytes], prefix: bytes) -> tuple[int, int]:
    return bisect_left(lines, prefix), bisect_left(lines, prefix + UNSURE + UNSURE)


def _common(was: _Side, now: _Actual) -> int:
    """How many lines from here on are the same on both sides and in time."""
    most = min(len(was.lines) - was.at, len(now.lines) - now.at)
    length, step = 0, _STEP
    while length < most:
        upto = min(length + step, most)
        if not _equal(was, now, length, upto):
            break
        length, step = upto, 2 * step
    else:
        return length
    while length < most and _equal(was, now, length, length + 1):
        length += 1
        if length + _STEP <= most and _equal(was, now, length, length + _STEP):
            length += _STEP
    return length


def _equal(was: _Side, now: _Actual, begin: int, end: int) -> bool:
    mine, its = slice(was.at + begin, was.at + end), slice(now.at + begin, now.at + end)
    times = now.modified[its]
    return (
        was.lines[mine] == now.lines[its]
        and all(map(le, was.lows[mine], times))
        and all(map(le, times, was.highs[mine]))
    )


def _slice(rows: ListedVersions, begin: int, end: int) -> ListedVersions:
    if begin == 0 and end == len(rows):
        return rows
    cut = rows[begin:end]
    return ListedVersions.of(cut)


def _joined(one: ListedVersions, other: ListedVersions) -> ListedVersions:
    return ListedVersions(
        one.keys + other.keys,
        one.ids + other.ids,
        one.latest + other.latest,
        one.markers + other.markers,
        one.sizes + other.sizes,
        one.etags + other.etags,
        one.modified + other.modified,
    )
