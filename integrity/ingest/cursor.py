"""How far feeds were read, and which events were recorded: one SQLite file, `STATE_DIR/feeds/feeds.sqlite`.

One rule: this is told after the ledger, never before. A record is durable in the writer's local log first; then, in one
transaction, its identity is remembered and the place in the feed moves on. So nothing that was read is lost, and what a crash
leaves untold is found in the local log (`recover`), which knows better.

| a crash | leaves | and then |
| --- | --- | --- |
| before the ledger has the records | nothing | they are read again |
| between the ledger and `commit` | records whose identities are not remembered | `recover` reads them back from the local log |
| the same, and that piece of the local log was published and trimmed since | the same | they are recorded twice |

Identities are kept for the last `window` to half of it: an event that comes again after more than that is recorded twice. Twice
is harmless: both records have one request, time and version, and reconcile counts what happened, not how often it was told. It
is a file to throw away: without it feeds are read again, and told twice.
"""

import json
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from integrity.ingest.events import identity_of
from integrity.record import decode
from integrity.wal import SUFFIX, Wal, make_private
from s3core.log_file import Position

WINDOW = 2_000_000
"""Identities, of 16 bytes each: about 60 MB on disk."""
PLACES_MAX = 1_000_000
_ASKED = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen_0 (identity BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS seen_1 (identity BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS places (number INTEGER PRIMARY KEY, feed TEXT, name TEXT, place TEXT, UNIQUE (feed, name));
CREATE TABLE IF NOT EXISTS marks (writer TEXT PRIMARY KEY, number INTEGER);
CREATE TABLE IF NOT EXISTS turn (one INTEGER PRIMARY KEY CHECK (one = 0), current INTEGER, count INTEGER);
INSERT OR IGNORE INTO turn VALUES (0, 0, 0);
"""


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file or object was read. `signature` tells whether it is still what was read, "" for one that grows, which
    `position` is for. `done`: to its end."""

    line: int = 0
    done: bool = False
    signature: str = ""
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Everything below record `number` of the writer's log is remembered here, as far as feeds put it there."""

    writer: str
    number: int


class Cursors:
    """Safe for several threads and processes; two that read one feed at a time may record an event twice."""

    def __init__(self, folder: Path, *, window: int = WINDOW) -> None:
        """OSError, sqlite3.Error. Made if need be, for this user alone."""
        make_private(folder)
        self.folder = folder
        self._half = max(1, window // 2)
        self._lock = threading.Lock()
        self._base = sqlite3.connect(
            folder / "feeds.sqlite", timeout=60.0, isolation_level=None, check_same_thread=False
        )
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = FULL")
        self._base.executescript(_SCHEMA)

    def close(self) -> None:
        self._base.close()

    def known(self, identities: Collection[bytes]) -> set[bytes]:
        """Those of them that are remembered."""
        found: set[bytes] = set()
        asked = list(identities)
        with self._lock:
            for at in range(0, len(asked), _ASKED):
                some = asked[at : at + _ASKED]
                marks = ",".join("?" * len(some))
                for table in ("seen_0", "seen_1"):
                    rows = self._base.execute(f"SELECT identity FROM {table} WHERE identity IN ({marks})", some)
                    found.update(row[0] for row in rows)
        return found

    def place(self, feed: str, name: str) -> Place:
        """How far it was read; the beginning for one that is not known."""
        with self._lock:
            row = self._base.execute("SELECT place FROM places WHERE feed = ? AND name = ?", (feed, name)).fetchone()
        if row is None:
            return Place()
        told = json.loads(row[0])
        position = told.pop("position")
        return Place(**told, position=Position(**position) if position else None)

    def marks(self) -> list[Mark]:
        with self._lock:
            return [Mark(*row) for row in self._base.execute("SELECT writer, number FROM marks ORDER BY writer")]

    def commit(
        self,
        identities: Collection[bytes] = (),
        places: Mapping[tuple[str, str], Place] | None = None,
        mark: Mark | None = None,
    ) -> None:
        """Remember identities, places (by feed and name) and a writer's mark; all or nothing, durable on return.

        Crash within: nothing of it is remembered; see the table above."""
        with self._lock, self._transaction():
            current, count = self._base.execute("SELECT current, count FROM turn").fetchone()
            self._base.executemany(
                f"INSERT OR IGNORE INTO seen_{current} VALUES (?)", ((identity,) for identity in identities)
            )
            count += len(identities)
            if count >= self._half:
                current, count = 1 - current, 0
                self._base.execute(f"DELETE FROM seen_{current}")
            self._base.execute("UPDATE turn SET current = ?, count = ?", (current, count))
            for (feed, name), place in (places or {}).items():
                self._base.execute(
                    "INSERT OR REPLACE INTO places (feed, name, place) VALUES (?, ?, ?)",
                    (feed, name, json.dumps(asdict(place))),
                )
            if places:
                self._base.execute(
                    "DELETE FROM places WHERE number <= (SELECT max(number) FROM places) - ?", (PLACES_MAX,)
                )
            if mark is not None:
                self._base.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (mark.writer, mark.number))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def recover(cursors: Cursors, slots: Path) -> int:
    """Remember what the local logs of this host's slots have beyond their marks; how many records of feeds that were. To be
    called before a slot is opened, since whoever opens one may trim its log. WalDamaged, OSError."""
    found = 0
    for mark in cursors.marks():
        identities: list[bytes] = []
        end = mark.number
        for end, record in _local_records(slots / mark.writer / "wal", mark.number):
            if record["phase"] in ("observed", "not-done", "unknown") and record["source"] not in ("client", "ledger"):
                identities.append(identity_of(record))
            end += 1
        if identities:
            cursors.commit(identities, mark=Mark(mark.writer, end))
            found += len(identities)
    return found


def _local_records(folder: Path, begin: int) -> Iterable[tuple[int, dict[str, object]]]:
    files = [int(path.stem) for path in folder.glob(f"*{SUFFIX}")] if folder.is_dir() else []
    if not files:
        return
    wal = Wal.open(folder, min(files), cut=False)
    try:
        first = max(begin, wal.first)
        for number, data in enumerate(wal.records(first, wal.end), first) if first < wal.end else ():
            yield number, decode(data)
    finally:
        wal.close()
