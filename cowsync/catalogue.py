"""The catalogue: every run of a mirror on this host, and what was seen of its ends, in one SQLite file.

One rule: it is a record, not the truth. What is on the mirror is in the base, what was done is in journals, what was planned
is in plans; a catalogue that is lost costs the history of runs, and probes that are made again. Each change is one
transaction; after a crash the last run stands there unfinished, and the next one that begins marks it `interrupted`.
"""

import errno
import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from cowsync.errors import StateDamaged

VERSION = 2


class Phase(StrEnum):
    """How far a run came. HELD waits for an approval; PARTIAL ended with lines that failed; CLEAN found nothing to do."""

    SCANNING = "scanning"
    PLANNED = "planned"
    HELD = "held"
    APPLYING = "applying"
    DONE = "done"
    CLEAN = "clean"
    PARTIAL = "partial"
    FAILED = "failed"
    INTERRUPTED = "interrupted"


_OF_THE_DISK = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_LOCKED: errno.EBUSY,
}
"""What SQLite says of the place and not of the file: moving the file away would cure nothing."""
UNFINISHED = (Phase.SCANNING, Phase.APPLYING)
RUNS_MIN = 1000
"""So many of the newest runs are never trimmed."""
RUNS_MAX = 10_000
"""Runs beyond these go whatever their age: of a mirror with a run every minute, a week."""
RUN_AGE_S = 90 * 86400.0
"""Runs beyond RUNS_MIN go when they began so long ago."""


@dataclass(frozen=True, slots=True)
class Run:
    """`id` counts what began on this host; `number` is the run's own, one above that of the base it started from. Times
    are Unix seconds, `ended` 0.0 while it goes on. `facts` are counts for people, as JSON carries them."""

    id: int
    number: int
    phase: Phase
    started: float
    ended: float = 0.0
    base: str = ""
    plan: str = ""
    snapshot: str = ""
    message: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def of_events(self) -> bool:
        """Whether it looked only at keys that events named."""
        return bool(self.facts.get("events"))


@dataclass(frozen=True, slots=True)
class Seen:
    """`value` was seen of what `of` identifies, at that moment in Unix seconds."""

    value: str
    of: str
    at: float


_FIELDS = ("id", "number", "phase", "started", "ended", "base", "plan", "snapshot", "message", "facts")
_OF_EVENTS = "coalesce(json_extract(facts, '$.events.keys'), 0) > 0"
_SCHEMA = """
create table runs (
    id integer primary key, number integer not null, phase text not null, started real not null,
    ended real not null default 0, base text not null default '', plan text not null default '',
    snapshot text not null default '', message text not null default '', facts text not null default '{}'
);
create index runs_by_plan on runs (plan);
"""
_SEEN = f"""
create table seen (name text primary key, value text not null, of text not null, at real not null);
pragma user_version = {VERSION};
"""
_STEPS = {0: _SCHEMA + _SEEN, 1: _SEEN}
"""What makes the newest version of an older one; 0 is an empty file."""


class Catalogue:
    """Opened for each act and closed after it; several processes may read while one writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._open() as database:
            version = database.execute("pragma user_version").fetchone()[0]
            if version in _STEPS:
                # With the lock, since another process may be making it too.
                database.execute("begin immediate")
                version = database.execute("pragma user_version").fetchone()[0]
                for statement in filter(str.strip, _STEPS.get(version, "").split(";")):
                    database.execute(statement)
            elif version != VERSION:
                raise StateDamaged(
                    f"{path}: is a catalogue of version {version}, this program knows {VERSION}",
                    hint="use the newer program, or move the file away: it is only the history of runs",
                )

    def begin(self, number: int, base: str, now: float) -> int:
        """A new run; those that never ended are marked interrupted. Returns its id."""
        with self._open() as database:
            database.execute(
                f"update runs set phase = ?, ended = ? where phase in ({','.join('?' * len(UNFINISHED))})",
                (Phase.INTERRUPTED, now, *UNFINISHED),
            )
            cursor = database.execute(
                "insert into runs (number, phase, started, base) values (?, ?, ?, ?)",
                (number, Phase.SCANNING, now, base),
            )
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def update(self, run_id: int, phase: Phase, **changes: Any) -> None:
        """Set the phase and any other fields; `facts` are added to those that stand there."""
        with self._open() as database:
            if "facts" in changes:
                row = database.execute("select facts from runs where id = ?", (run_id,)).fetchone()
                changes["facts"] = json.dumps({**json.loads(row[0] if row else "{}"), **changes["facts"]})
            columns = {"phase": phase, **changes}
            unknown = columns.keys() - set(_FIELDS)
            if unknown:
                raise ValueError(f"no such fields of a run: {', '.join(sorted(unknown))}")
            settings = ", ".join(f"{name} = ?" for name in columns)
            database.execute(f"update runs set {settings} where id = ?", (*columns.values(), run_id))

    def runs(self, limit: int = 0, *, listed: bool = False) -> list[Run]:
        """Newest first; all with 0. `listed`: without those that only looked at what events named."""
        which = f"where not {_OF_EVENTS}" if listed else ""
        with self._open() as database:
            rows = database.execute(
                f"select {', '.join(_FIELDS)} from runs {which} order by id desc limit ?", (limit or -1,)
            ).fetchall()
        return [_run(row) for row in rows]

    def trim(self, plans: Collection[str], now: float) -> int:
        """Forget old runs, by RUNS_MIN, RUNS_MAX and RUN_AGE_S; how many. Those of `plans` stay, which may still be applied,
        those that go on, and of each phase the newest: how long ago a mirror was complete is not forgotten."""
        with self._open() as database:
            database.execute("create temp table kept_plans (plan text primary key)")
            database.executemany("insert or ignore into kept_plans values (?)", ((plan,) for plan in plans))
            return database.execute(
                f"""delete from runs where id <= (select id from runs order by id desc limit 1 offset ?)
                and (started < ? or id <= (select id from runs order by id desc limit 1 offset ?))
                and plan not in (select plan from kept_plans) and phase not in ({",".join("?" * len(UNFINISHED))})
                and id not in (select max(id) from runs group by phase, {_OF_EVENTS})""",
                (RUNS_MIN, now - RUN_AGE_S, RUNS_MAX, *UNFINISHED),
            ).rowcount

    def recent(self, limit: int) -> list[Run]:
        """The newest runs and the newest that listed, up to so many of each, newest first: between two that list there may
        be any number of others."""
        found = {run.id: run for run in [*self.runs(limit), *self.runs(limit, listed=True)]}
        return [found[number] for number in sorted(found, reverse=True)]

    def forget_events(self, before: float) -> None:
        """Forget runs of events that began before then: there may be one every few seconds."""
        with self._open() as database:
            kept = (*UNFINISHED, Phase.HELD)
            which = f"started < ? and {_OF_EVENTS} and phase not in ({','.join('?' * len(kept))})"
            database.execute(f"delete from runs where {which}", (before, *kept))

    def run_of_plan(self, digest: str) -> Run | None:
        """The newest run that made this plan."""
        with self._open() as database:
            row = database.execute(
                f"select {', '.join(_FIELDS)} from runs where plan = ? order by id desc limit 1", (digest,)
            ).fetchone()
        return _run(row) if row else None

    def remember(self, name: str, value: str, *, of: str, now: float) -> None:
        """In place of what was seen under that name before."""
        with self._open() as database:
            database.execute("insert or replace into seen values (?, ?, ?, ?)", (name, value, of, now))

    def seen(self, name: str) -> Seen | None:
        with self._open() as database:
            row = database.execute("select value, of, at from seen where name = ?", (name,)).fetchone()
        return Seen(*row) if row else None

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self._path, timeout=30)) as database:
                database.execute("pragma journal_mode = wal")
                with database:
                    yield database
        except sqlite3.DatabaseError as error:
            number = _OF_THE_DISK.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
            if number is not None:
                raise OSError(
                    number, f"the history of runs cannot be used: {error}; is the disk full?", str(self._path)
                ) from error
            raise StateDamaged(
                f"{self._path}: cannot be used: {error}",
                hint="move the file away: it is only the history of runs, the next run makes a new one",
            ) from error


def _run(row: tuple[Any, ...]) -> Run:
    values = dict(zip(_FIELDS, row, strict=True))
    return Run(**{**values, "phase": Phase(values["phase"]), "facts": json.loads(values["facts"])})
