"""The catalogue of a storage on this host: what the bucket holds below the storage's prefix, in one SQLite file.

One rule: it is a cache of the bucket. Delete the file and the next refresh (`plugin.refresh`) brings everything back; a
file that is damaged is put aside and replaced by an empty one. Sums are kept by triggers in the transaction that changes a
row, so usage is exact for what the catalogue holds, whoever wrote it and wherever that was killed.

Several processes and threads share it (WAL: readers never wait for a writer, writers wait for each other, 10 s at most). What
this host writes or deletes is told by `written` and `deleted` when the store has confirmed it, and carries a stamp from one
counter; a listing takes a stamp when it begins, so it is known which of them it may not show. Where a listing differs from what
this host did lately, the object itself is asked (`doubtful`), whatever the store's listings are worth.

A crash leaves the last transaction done or not done. After a loss of power the last ones may be gone: a refresh repairs that.
"""

import errno
import fcntl
import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

NAME = "catalogue.sqlite"
VERSION = 1
WAIT_S = 10.0
"""For another writer."""
RECENT_S = 600.0
"""What this host did within so many seconds before a listing began is compared with the object where the listing differs."""
MODIFIED_S = 1.0
"""Listings tell milliseconds, HEAD whole seconds: times this close are the same."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_OF_THE_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}
_SCHEMA = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, size INTEGER NOT NULL, stored INTEGER NOT NULL, etag TEXT NOT NULL, version TEXT NOT NULL,
    modified REAL NOT NULL, class TEXT NOT NULL, sealed INTEGER NOT NULL, stamp INTEGER NOT NULL, at REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE deletions (key TEXT PRIMARY KEY, etag TEXT NOT NULL, stamp INTEGER NOT NULL, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE texts (key TEXT PRIMARY KEY, etag TEXT NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE totals (
    one INTEGER PRIMARY KEY CHECK (one = 1), objects INTEGER NOT NULL, size INTEGER NOT NULL, stored INTEGER NOT NULL,
    stamp INTEGER NOT NULL, generation INTEGER NOT NULL, listed_stamp INTEGER NOT NULL, listed_at REAL NOT NULL
);
INSERT INTO totals VALUES (1, 0, 0, 0, 0, 0, 0, 0.0);
CREATE TRIGGER entry_came AFTER INSERT ON entries BEGIN
    UPDATE totals SET objects = objects + 1, size = size + NEW.size, stored = stored + NEW.stored, generation = generation + 1;
END;
CREATE TRIGGER entry_went AFTER DELETE ON entries BEGIN
    UPDATE totals SET objects = objects - 1, size = size - OLD.size, stored = stored - OLD.stored, generation = generation + 1;
END;
CREATE TRIGGER entry_changed AFTER UPDATE ON entries BEGIN
    UPDATE totals SET size = size + NEW.size - OLD.size, stored = stored + NEW.stored - OLD.stored,
        generation = generation + (NEW.etag != OLD.etag OR NEW.size != OLD.size OR NEW.modified != OLD.modified);
END;
"""
_COLUMNS = "key, size, stored, etag, version, modified, class, sealed"
_PUT = f"""INSERT INTO entries ({_COLUMNS}, stamp, at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET size = excluded.size, stored = excluded.stored, etag = excluded.etag,
    version = excluded.version, modified = excluded.modified, class = excluded.class, sealed = excluded.sealed,
    stamp = excluded.stamp, at = excluded.at"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """One object. `key` is as the bucket has it, with the storage's prefix. `size` are the plain bytes, `stored` those in the
    bucket (more where `sealed`). `modified` in Unix seconds. `storage_class` "" is STANDARD."""

    key: str
    size: int
    stored: int
    etag: str
    modified: float
    version: str = ""
    storage_class: str = ""
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Sums over all entries, sidecars and indexes too; not over earlier versions or uploads that are not complete.
    `generation` grows with every change. `listed_at`: when the last listing that is in here began, in Unix seconds; 0.0: never,
    so nothing is known."""

    objects: int
    size: int
    stored: int
    generation: int
    listed_at: float


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing that has begun."""

    stamp: int
    at: float


@dataclass(frozen=True, slots=True)
class Doubt:
    """Keys whose listing differs from what this host did lately. `stamp`: what this host does from now on is newer."""

    keys: tuple[str, ...]
    stamp: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a refresh changed: keys that came, were replaced, went away."""

    came: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    went: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.came or self.changed or self.went)


class Catalogue:
    """Safe to use from several threads; not across a fork. Every method may raise OSError (EBUSY, ENOSPC, EIO) where the disk
    of the state directory does not do."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        """Makes the file (0600) and its directory where they are not there."""
        self.path = path
        self._now = now
        self._lock = threading.Lock()
        self._idle: list[tuple[sqlite3.Connection, tuple[int, int]]] = []
        self._closed = False
        self._make()

    # --- what is there

    def entry(self, key: str) -> Entry | None:
        rows = self._read(lambda db: db.execute(f"SELECT {_COLUMNS} FROM entries WHERE key = ?", (key,)).fetchall())
        return _entry(rows[0]) if rows else None

    def entries(self, prefix: str = "") -> list[Entry]:
        """Those whose key begins with `prefix`, by key."""
        return [_entry(row) for row in self._read(lambda db: _below(db, prefix))]

    def usage(self) -> Usage:
        row = self._read(
            lambda db: db.execute("SELECT objects, size, stored, generation, listed_at FROM totals").fetchone()
        )
        return Usage(*row)

    def usage_below(self, prefixes: Collection[str]) -> dict[str, tuple[int, int]]:
        """Objects and stored bytes by prefix."""
        query = "SELECT COUNT(*), COALESCE(SUM(stored), 0) FROM entries WHERE key >= ? AND key < ?"
        return self._read(lambda db: {one: db.execute(query, _range(one)).fetchone() for one in prefixes})

    def text(self, key: str) -> str | None:
        """What the small object `key` (a sidecar) holds; None where that is not known for the object as it is now."""
        query = "SELECT text FROM texts JOIN entries USING (key, etag) WHERE key = ?"
        row = self._read(lambda db: db.execute(query, (key,)).fetchone())
        return str(row[0]) if row else None

    def texts(self, prefix: str = "") -> dict[str, str]:
        """All that are known, by key."""
        query = "SELECT key, text FROM texts JOIN entries USING (key, etag) WHERE key >= ? AND key < ?"
        return dict(self._read(lambda db: db.execute(query, _range(prefix)).fetchall()))

    def fact(self, name: str) -> Any:
        """What was kept under that name; None where nothing was."""
        row = self._read(lambda db: db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone())
        return json.loads(row[0]) if row else None

    # --- what this host does

    def written(self, entry: Entry) -> None:
        """The store has confirmed that the object is there as `entry` says."""

        def put(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM deletions WHERE key = ?", (entry.key,))
            db.execute(_PUT, _row(entry, _next_stamp(db), self._now()))

        self._write(put)

    def deleted(self, key: str, etag: str = "") -> None:
        """The store has confirmed that the object is gone. `etag`: of what was there, where that is known."""

        def drop(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT etag FROM entries WHERE key = ?", (key,)).fetchone()
            known = etag or (row[0] if row else "")
            db.execute("DELETE FROM entries WHERE key = ?", (key,))
            db.execute("DELETE FROM texts WHERE key = ?", (key,))
            db.execute(
                "INSERT OR REPLACE INTO deletions VALUES (?, ?, ?, ?)", (key, known, _next_stamp(db), self._now())
            )

        self._write(drop)

    def keep_text(self, key: str, etag: str, text: str) -> None:
        """What the sidecar `key` with that ETag holds."""
        self._write(lambda db: db.execute("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", (key, etag, text)))

    def keep_fact(self, name: str, value: Any) -> None:
        """`value` is what JSON carries."""
        text = json.dumps(value)
        self._write(lambda db: db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text)))

    # --- listings

    def begin_listing(self) -> Listing:
        """Before the first page is asked for."""
        return Listing(self._write(_next_stamp), self._now())

    def doubtful(self, listing: Listing, listed: Mapping[str, Entry]) -> Doubt:
        """Where `listed` and what this host did lately differ: what it wrote and the listing does not show or shows with
        another ETag, what it deleted and the listing shows. The answers (`plugin.refresh` asks HEAD) go to `finish_listing`."""

        def look(db: sqlite3.Connection) -> Doubt:
            stamp = int(db.execute("SELECT stamp FROM totals").fetchone()[0])
            since = listing.at - RECENT_S
            found = [
                key
                for key, etag in db.execute(
                    "SELECT key, etag FROM entries WHERE stamp > 0 AND (stamp > ? OR at >= ?)", (listing.stamp, since)
                )
                if key not in listed or listed[key].etag != etag
            ]
            query = "SELECT key FROM deletions WHERE stamp > ? OR at >= ?"
            found += [key for (key,) in db.execute(query, (listing.stamp, since)) if key in listed]
            return Doubt(tuple(found), stamp)

        return self._read(look)

    def finish_listing(
        self, listing: Listing, listed: Mapping[str, Entry], doubt: Doubt, settled: Mapping[str, Entry | None]
    ) -> Changes | None:
        """Have the catalogue hold what was `listed`, in one transaction; `settled` is what is true of each key of the `doubt`
        (None: gone). What this host did after the doubt stands. None, and nothing changed, where a listing that began later
        is in already. A row with the ETag and stored size that it had keeps its plain size and version."""
        if missing := set(doubt.keys) - settled.keys():
            raise ValueError(f"not settled: {sorted(missing)}")

        def bring(db: sqlite3.Connection) -> Changes | None:
            (newest,) = db.execute("SELECT listed_stamp FROM totals").fetchone()
            if newest > listing.stamp:
                return None
            wanted = dict(listed)
            for key, found in settled.items():
                if found is None:
                    wanted.pop(key, None)
                else:
                    wanted[key] = found
            held = {row[0]: row for row in db.execute(f"SELECT {_COLUMNS}, stamp, at FROM entries")}
            ours = {key for key, row in held.items() if row[8] > doubt.stamp}
            gone = {key for (key,) in db.execute("SELECT key FROM deletions WHERE stamp > ?", (doubt.stamp,))}
            came, changed, rows = [], [], []
            for key, entry in wanted.items():
                if key in ours or key in gone:
                    continue
                row = held.get(key)
                if row is None:
                    came.append(key)
                elif row[3] != entry.etag or row[2] != entry.stored:
                    changed.append(key)
                else:
                    known = _entry(row)
                    same_time = abs(known.modified - entry.modified) <= MODIFIED_S
                    entry = replace(
                        known,
                        modified=known.modified if same_time else entry.modified,
                        storage_class=entry.storage_class or known.storage_class,
                    )
                    if entry == known:
                        continue
                rows.append(_row(entry, row[8] if row and row[3] == entry.etag else 0, row[9] if row else 0.0))
            went = [key for key in held if key not in wanted and key not in ours]
            db.executemany(_PUT, rows)
            db.executemany("DELETE FROM entries WHERE key = ?", ((key,) for key in went))
            db.execute("DELETE FROM deletions WHERE stamp <= ? AND at < ?", (listing.stamp, listing.at - 2 * RECENT_S))
            db.execute("DELETE FROM texts WHERE key NOT IN (SELECT key FROM entries)")
            db.execute("UPDATE totals SET listed_stamp = ?, listed_at = ?", (listing.stamp, listing.at))
            return Changes(tuple(came), tuple(changed), tuple(went))

        return self._write(bring)

    def close(self) -> None:
        """Idempotent. Nothing may be asked afterwards."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            connection.close()

    # --- inside

    def _read(self, ask: Callable[[sqlite3.Connection], T]) -> T:
        return self._with(ask, write=False)

    def _write(self, do: Callable[[sqlite3.Connection], T]) -> T:
        return self._with(do, write=True)

    def _with(self, action: Callable[[sqlite3.Connection], T], *, write: bool) -> T:
        for attempt in (1, 2):
            try:
                with self._connection() as db:
                    # One snapshot for all that is read; the write lock from the start for what writes.
                    db.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                    try:
                        result = action(db)
                        db.execute("COMMIT")
                    except BaseException:
                        if db.in_transaction:
                            db.execute("ROLLBACK")
                        raise
                    return result
            except sqlite3.Error as error:
                code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
                if code in _OF_THE_DISK:
                    raise OSError(_OF_THE_DISK[code], f"{self.path}: {error}") from error
                if code not in _DAMAGED or attempt == 2:
                    raise
                log.error("%s is damaged (%s); it is put aside, and the next refresh fills a new one", self.path, error)
                self._make(damaged=True)
        raise AssertionError("unreachable")

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """One that nobody else uses now. The file may have been replaced or removed since it was opened."""
        try:
            there = _identity(self.path)
        except FileNotFoundError:
            self._make()
            there = _identity(self.path)
        connection = None
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path}: the catalogue is closed")
            while self._idle and connection is None:
                known, identity = self._idle.pop()
                if identity == there:
                    connection = known
                else:
                    known.close()
        if connection is None:
            connection = _opened(self.path)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        with self._lock:
            if not self._closed:
                self._idle.append((connection, there))
                return
        connection.close()

    def _make(self, *, damaged: bool = False) -> None:
        """A file with our tables at the path. One process at a time; what another version or a crash left is replaced."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists() and _is_ours(self.path):
                return  # made, or made anew, by another process meanwhile
            if self.path.exists():
                self.path.replace(self.path.with_suffix(".damaged" if damaged else ".old"))
            for beside in ("-wal", "-shm"):
                self.path.with_name(self.path.name + beside).unlink(missing_ok=True)
            fresh = self.path.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            os.close(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(fresh, isolation_level=None)
            try:
                db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {VERSION};COMMIT;")
                db.execute("PRAGMA journal_mode = WAL")
            finally:
                db.close()
            fresh.replace(self.path)
        finally:
            os.close(lock)


def _is_ours(path: Path) -> bool:
    """Whether the file has our tables and all its pages."""
    try:
        db = _opened(path)
        try:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (answer,) = db.execute("PRAGMA quick_check(1)").fetchone()
        finally:
            db.close()
    except sqlite3.Error as error:
        code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
        if code in _OF_THE_DISK:
            raise OSError(_OF_THE_DISK[code], f"{path}: {error}") from error
        return False
    return bool(version == VERSION and answer == "ok")


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException:
        db.close()
        raise
    return db


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _next_stamp(db: sqlite3.Connection) -> int:
    (stamp,) = db.execute("UPDATE totals SET stamp = stamp + 1 RETURNING stamp").fetchone()
    return int(stamp)


def _below(db: sqlite3.Connection, prefix: str) -> list[tuple[Any, ...]]:
    return db.execute(
        f"SELECT {_COLUMNS} FROM entries WHERE key >= ? AND key < ? ORDER BY key", _range(prefix)
    ).fetchall()


def _range(prefix: str) -> tuple[str, str]:
    # U+10FFFF is no character that a key of PVE's layout has.
    return prefix, prefix + "\U0010ffff"


def _entry(row: tuple[Any, ...]) -> Entry:
    key, size, stored, etag, version, modified, storage_class, sealed = row[:8]
    return Entry(key, size, stored, etag, modified, version, storage_class, bool(sealed))


def _row(entry: Entry, stamp: int, at: float) -> tuple[Any, ...]:
    return (
        entry.key,
        entry.size,
        entry.stored,
        entry.etag,
        entry.version,
        entry.modified,
        entry.storage_class,
        int(entry.sealed),
        stamp,
        at,
    )
