"""What an inspection keeps in mind: the objects that are there, which are used, and the patches of each container.

One rule: it lies in a temporary file once it is large, so an inspection's memory does not grow with the volume.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby

from blockdev.extents.format import Patch
from blockdev.segments.paths import ContainerRef


class Books:
    """Used by one thread. Gone when closed."""

    def __init__(self) -> None:
        # An empty name: a private database, in memory until it outgrows SQLite's cache, then a file without a name.
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.executescript(
            "PRAGMA synchronous = OFF; PRAGMA journal_mode = OFF;"
            "CREATE TABLE objects (key TEXT PRIMARY KEY, size INTEGER, own INTEGER, used INTEGER) WITHOUT ROWID;"
            "CREATE TABLE patches (gen INTEGER, epoch INTEGER, n INTEGER, offset INTEGER, extent INTEGER, start INTEGER,"
            " sectors INTEGER, stored INTEGER, PRIMARY KEY (gen, epoch, n, offset, extent, start, sectors)) WITHOUT ROWID;"
        )

    def close(self) -> None:
        self._db.close()

    def add_objects(self, objects: Iterable[tuple[str, int]], *, own: bool) -> None:
        """(key, bytes) of objects that are there; `own`: in the volume's own part, not an ancestor's."""
        self._db.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, 0)", ((*item, own) for item in objects))

    def size(self, key: str) -> int | None:
        """Bytes of an object that is there; None for one that is not."""
        row = self._db.execute("SELECT size FROM objects WHERE key = ?", (key,)).fetchone()
        return None if row is None else int(row[0])

    def use(self, keys: Iterable[str]) -> None:
        """Something needs these objects."""
        self._db.executemany("UPDATE objects SET used = 1 WHERE key = ?", ((key,) for key in keys))

    def unused(self) -> Iterator[tuple[str, int]]:
        """(key, bytes) of own objects that nothing was said to need."""
        yield from self._db.execute("SELECT key, size FROM objects WHERE own AND NOT used")

    def totals(self) -> tuple[int, int]:
        """(how many own objects are there, their bytes)."""
        count, size = self._db.execute("SELECT count(*), coalesce(sum(size), 0) FROM objects WHERE own").fetchone()
        return count, size

    def add_patch(self, extent: int, patch: Patch) -> None:
        """Content of some state lies there. The same patch of several states counts once."""
        self._db.execute(
            "INSERT OR IGNORE INTO patches VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*patch.ref, patch.offset, extent, patch.start, patch.sectors, patch.stored),
        )

    def containers_count(self) -> int:
        (count,) = self._db.execute("SELECT count(*) FROM (SELECT DISTINCT gen, epoch, n FROM patches)").fetchone()
        return int(count)

    def containers(self) -> Iterator[tuple[ContainerRef, list[tuple[int, Patch]]]]:
        """Each container with the (extent, patch) pairs that show of it."""
        rows = self._db.execute(
            "SELECT gen, epoch, n, offset, extent, start, sectors, stored FROM patches ORDER BY gen, epoch, n, offset"
        )
        for ref, group in groupby(rows, key=lambda row: ContainerRef(*row[:3])):
            yield (
                ref,
                [(extent, Patch(start, sectors, at, stored, *ref)) for *_, at, extent, start, sectors, stored in group],
            )
