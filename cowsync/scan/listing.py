"""One range of a source, listed page by page as rows.

One rule: what is yielded is exactly what the range holds, in ascending order, each key once, or an error is raised: a
listing that is out of order, stands still or names a key twice is never taken for a complete one.
"""

import operator
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, repeat

from cowsync.errors import Refused
from cowsync.rows import Rows
from cowsync.scan.filters import Belongs
from cowsync.scan.ranges import KeyRange
from s3core.bucket import Bucket, ListedPage

RESERVED = b".cowsync/"
"""Below this cowsync keeps what is its own on a mirror; such keys of a source are not mirrored, and are counted."""


class Unordered(Exception):
    """The store lists keys out of order: `before` came right before `then` and is not smaller."""

    def __init__(self, before: bytes, then: bytes) -> None:
        super().__init__(f"lists {then!r} after {before!r}, out of the order of their bytes")
        self.before = before
        self.then = then

    def __reduce__(self) -> tuple[type["Unordered"], tuple[bytes, bytes]]:
        return Unordered, (self.before, self.then)


@dataclass(slots=True)
class Listed:
    """What a listing has come to so far. `reached` is the last key that was looked at, or the end of the range; `versions`
    are counted where all are listed."""

    reached: bytes
    complete: bool = False
    requests: int = 0
    keys: int = 0
    bytes_listed: int = 0
    left_out: int = 0
    reserved: int = 0
    versions: int = 0


def pages(
    bucket: Bucket,
    prefix: str,
    within: KeyRange,
    listed: Listed,
    *,
    belongs: Belongs | None = None,
    keys_max: int = 0,
    page_keys: int = 1000,
) -> Iterator[Rows]:
    """The rows of `within`, keys relative to `prefix`, a page at a time; `listed` is kept up to date. It ends before
    the range does once `keys_max` keys were looked at (0: never); then `listed.complete` is False and the next range
    begins at `listed.reached`. Unordered and StoreErrors end it."""
    stem = prefix.encode()
    seen = 0
    while not listed.complete:
        page = bucket.list_page(
            prefix=prefix, start_after=(stem + listed.reached).decode() if listed.reached else "", max_keys=page_keys
        )
        listed.requests += 1
        rows = relative(page, stem)
        check_rising(listed.reached, rows.keys)
        if page.truncated and not rows.keys:
            raise Refused(
                f"{bucket.url}: the listing stands still after {listed.reached!r}: "
                "the server says that there is more and gives none",
                hint="run `bucketworks doctor` on the bucket; nothing was changed",
            )
        inside = len(rows) if within.upto is None else bisect_right(rows.keys, within.upto)
        listed.complete = inside < len(rows) or not page.truncated
        if rows.keys and inside == len(rows) and within.upto is not None and rows.keys[-1] == within.upto:
            listed.complete = True
        rows = rows if inside == len(rows) else rows.slice(0, inside)
        if rows.keys:
            listed.reached = rows.keys[-1]
            seen += len(rows)
        rows = wanted(rows, belongs, listed)
        listed.keys += len(rows)
        listed.bytes_listed += sum(rows.sizes)
        if rows.keys:
            yield rows
        if keys_max and seen >= keys_max:
            break
    if listed.complete and within.upto is not None:
        listed.reached = within.upto


def check_rising(before: bytes, keys: list[bytes]) -> None:
    """Unordered unless `keys` rise strictly, from above `before`."""
    if keys and keys[0] <= before and before:
        raise Unordered(before, keys[0])
    if not all(map(operator.lt, keys, keys[1:])):
        place = next(i for i in range(1, len(keys)) if keys[i - 1] >= keys[i])
        raise Unordered(keys[place - 1], keys[place])


def relative(page: ListedPage, stem: bytes) -> Rows:
    count = len(page.keys)
    keys = page.keys
    if stem:
        if not all(map(bytes.startswith, keys, repeat(stem, count))):
            raise Refused(f"the listing holds keys that do not begin with {stem.decode()!r}, which it was asked for")
        keys = [key[len(stem) :] for key in keys]
    empty, zeros = [b""] * count, [0] * count
    return Rows(keys, page.sizes, page.etags, page.modified, empty, page.classes, empty, empty, zeros)


def wanted(rows: Rows, belongs: Belongs | None, listed: Listed) -> Rows:
    keys = rows.keys
    if not keys:
        return rows
    # Sorted, so reserved keys and the prefix itself (a "folder" object named like the prefix) lie together.
    reserved = keys[0] <= RESERVED + b"\xff" and keys[-1] >= RESERVED and any(k.startswith(RESERVED) for k in keys)
    if belongs is None and not reserved and keys[0]:
        return rows
    keep = [bool(key) and not key.startswith(RESERVED) and (belongs is None or belongs(key)) for key in keys]
    listed.reserved += sum(key.startswith(RESERVED) for key in keys) if reserved else 0
    listed.left_out += len(keys) - sum(keep)
    return Rows(*(list(compress(column, keep)) for column in rows.columns()))
