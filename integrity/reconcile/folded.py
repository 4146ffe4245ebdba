"""What the records say of one bucket, kept folded on this host, so that the next comparison reads new records only.

A database of SQLite: `mention` has each record about a key in a few columns, ordered by key; `expected` the lines that the
join compares (`integrity.reconcile.join`). Only keys of which new records tell are folded again.

One rule: it is a cache of what was verified, and never believed further than the logs bear it out. Each log was folded up
to a size and the hash of its last record there; the first new record must follow on exactly that record, and a log that
is shorter than it was is Tampered. Losing the file costs a reading of the whole ledger and nothing else.

Crash: a fold is one transaction, so it is there as a whole or not at all.
"""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import orjson

from integrity.errors import LedgerError, Tampered
from integrity.reconcile.acts import Act, acts_of, expected_of
from integrity.reconcile.join import UNSURE, Lines, expected_lines, key_of, line_prefix
from integrity.reconcile.mentions import Mention, Place, mention_of
from integrity.record import after_of
from integrity.tlog.tree import leaf_hash

_FORMAT = 2
_BATCH = 20_000
"""Records sorted in memory before they are put into the tree."""
_LINES = 5_000
_CACHE_KIB = 65_536
_READING_KIB = 4_096
_PAGE_BYTES = 16_384
_TABLES = """
create table if not exists fact (name text primary key, value) without rowid;
create table if not exists log (writer text primary key, size integer not null, last blob not null) without rowid;
create table if not exists mention (
    key blob not null, writer text not null, n integer not null, at real, time real, op text, phase text, source text,
    intent integer, version text, etag text, size integer, sums text, sequencer text, request text, who text, kind text,
    parts integer,
    primary key (key, writer, n)) without rowid;
create table if not exists expected (line blob primary key, low text, high text) without rowid;
create table if not exists control (writer text, n integer, record blob, primary key (writer, n)) without rowid;
create table if not exists suspected (key blob primary key) without rowid;
create temporary table touched (key blob primary key) without rowid;
"""
_ADD: Final = f"insert or ignore into mention values ({', '.join('?' * 18)})"


class Folded:
    """The folded records about `place`. For one process at a time: a second one waits for the first one's fold. `path` may
    be ":memory:". `observed_counts` and `skew_s` are those of `integrity.reconcile.acts`; where they were others, or the
    place was, everything is folded again from the mentions, or read again."""

    def __init__(self, path: Path | str, place: Place, *, observed_counts: bool, skew_s: float) -> None:
        self.place = place
        self.observed_counts = observed_counts
        self.skew_s = skew_s
        self.path = str(path)
        self._fresh = False
        try:
            self._base = _connect(self.path)
            self._base.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{path}: {error}", hint="remove it: it is a cache, and is made anew") from error
        about = f"{_FORMAT} {place.url}"
        if self.fact("about", about) != about:
            for table in ("fact", "log", "mention", "expected", "control", "suspected"):
                self._base.execute(f"delete from {table}")
        self._set_fact("about", about)
        rules = f"{observed_counts} {skew_s}"
        if self.fact("rules", rules) != rules:
            with self._transaction():
                self._base.execute("delete from expected")
                self._refold(everything=True)
                self._set_fact("rules", rules)
        self._set_fact("rules", rules)

    def close(self) -> None:
        self._base.close()

    # --- folding ---------------------------------------------------------------------------------------------

    def size(self, writer: str) -> int:
        """How many of the writer's records are folded."""
        row = self._base.execute("select size from log where writer = ?", (writer,)).fetchone()
        return int(row[0]) if row else 0

    @property
    def records(self) -> int:
        return int(self._base.execute("select coalesce(sum(size), 0) from log").fetchone()[0])

    def fold(
        self,
        logs: Iterable[tuple[str, int, Callable[[int, int], Iterable[tuple[int, bytes]]]]],
        told: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Take in what is new of `logs`: writer, verified size, and what reads its verified records of a range. Returns how
        many records were new. Tampered where a log is shorter than it was, or does not go on where it ended."""
        count = 0
        with self._transaction():
            # Where nothing is drawn yet, everything will be.
            self._fresh = bool(self._base.execute("select not exists (select 1 from expected)").fetchone()[0])
            for writer, size, read in logs:
                count += self._fold_log(writer, size, read, told)
            if count:
                self._refold(everything=self._fresh)
        if count:
            # A long write-ahead log is slow to read; who reads just now keeps what it needs of it.
            self._base.execute("pragma wal_checkpoint(truncate)")
        return count

    def _fold_log(
        self,
        writer: str,
        size: int,
        read: Callable[[int, int], Iterable[tuple[int, bytes]]],
        told: Callable[[int], None],
    ) -> int:
        row = self._base.execute("select size, last from log where writer = ?", (writer,)).fetchone()
        known, last = (int(row[0]), bytes(row[1])) if row else (0, b"")
        if size < known:
            raise Tampered(
                f"the log of {writer} has {size:,} records, and had {known:,} when they were last compared",
                where=f"log/{writer}",
                known_good=f"{writer}#{known - 1}",
                hint="run s3integrity verify; keep everything as it is",
            )
        if size == known:
            return 0
        data, batch, n = b"", [], known - 1
        for n, data in read(known, size):
            if n == known and last and after_of(data) != last:
                raise Tampered(
                    f"record {n} of {writer} does not follow on the record {n - 1} that was there when they were compared",
                    where=f"{writer}#{n}",
                    known_good=f"{writer}#{n - 1}",
                    hint="run s3integrity verify; keep everything as it is",
                )
            batch.append(data)
            if len(batch) >= _BATCH:
                self._take(writer, n + 1 - len(batch), batch)
                told(len(batch))
                batch = []
        self._take(writer, n + 1 - len(batch), batch)
        told(len(batch))
        if n != size - 1:
            raise Tampered(f"the log of {writer} ends with record {n}, and has {size:,}", where=f"log/{writer}")
        self._base.execute("insert or replace into log values (?, ?, ?)", (writer, size, leaf_hash(data)))
        return size - known

    def _take(self, writer: str, begin: int, batch: list[bytes]) -> None:
        mentions = []
        place = self.place
        began = self.fact("began", 0.0)
        first, last = self.feed
        for n, data in enumerate(batch, begin):
            try:
                record = orjson.loads(data)
                mention = mention_of(record, place)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise Tampered(
                    f"record {n} of {writer} is none: {error!r}",
                    where=f"{writer}#{n}",
                    hint="run s3integrity verify --full",
                ) from error
            if record["n"] != n or record["writer"] != writer:
                # It would take the place of another log's record, or speak for its writer.
                raise Tampered(
                    f"record {n} of {writer} calls itself {record['writer']} {record['n']}",
                    where=f"{writer}#{n}",
                    hint="somebody with the key of that writer signed it: run s3integrity verify --full, and retire it",
                )
            if record["op"] == "control" and record["source"] == "client":
                self._base.execute(
                    "insert or ignore into control values (?, ?, ?)", (record["writer"], record["n"], data)
                )
                continue
            if mention is None:
                continue
            mentions.append((mention.key.encode(), *mention[1:]))
            moment = mention.time or mention.at
            if not began or moment < began:
                began = moment
            if mention.phase == "observed":
                first, last = min(first or moment, moment), max(last, moment)
        self._set_fact("began", began)
        self._set_fact("feed_first", first)
        self._set_fact("feed_last", last)
        mentions.sort(key=itemgetter(0, 1, 2))
        self._base.executemany(_ADD, mentions)
        if not self._fresh:
            self._base.executemany("insert or ignore into touched values (?)", {(row[0],) for row in mentions})

    def _refold(self, *, everything: bool) -> None:
        """Draw the lines of all keys anew, or of those that were touched."""
        chosen = "" if everything else "where key in (select key from touched)"
        rows = self._base.execute(f"select * from mention {chosen} order by key, writer, n")
        lines: list[tuple[bytes, str, str]] = []
        with closing(self._base.cursor()) as writing:
            for key, group in groupby(rows, key=itemgetter(0)):
                if not everything:
                    prefix = line_prefix(key)
                    writing.execute("delete from expected where line >= ? and line <= ?", (prefix, prefix + UNSURE))
                acts = self._acts(_mention(row) for row in group)
                lines += expected_lines(key.decode(), expected_of(acts, self.skew_s), self.skew_s)
                if len(lines) >= _LINES:
                    writing.executemany("insert into expected values (?, ?, ?)", lines)
                    lines = []
            writing.executemany("insert into expected values (?, ?, ?)", lines)
            writing.execute("delete from touched")

    def _acts(self, mentions: Iterable[Mention]) -> list[Act]:
        return acts_of(mentions, observed_counts=self.observed_counts, skew_s=self.skew_s)

    # --- reading ---------------------------------------------------------------------------------------------

    def mentions(self, key: str) -> list[Mention]:
        """All records about a key, by writer and number."""
        rows = self._base.execute("select * from mention where key = ? order by writer, n", (key.encode(),))
        return [_mention(row) for row in rows]

    def acts(self, key: str) -> list[Act]:
        return self._acts(self.mentions(key))

    def lines(self, after: bytes = b"", upto: bytes | None = None, prefix: str = "") -> Iterator[Lines]:
        """The expected lines of the keys below `prefix` in (after, upto], ascending. May go on while another thread reads
        others."""
        with closing(_connect(self.path, _READING_KIB) if self.path != ":memory:" else self._base.cursor()) as reading:
            first, last = _below(prefix)
            found = reading.execute(
                "select line, low, high from expected where line > ? and line < ? order by line",
                (
                    max(first, line_prefix(after) + UNSURE if after else b""),
                    last if upto is None else min(last, line_prefix(upto) + UNSURE + UNSURE),
                ),
            )
            while rows := found.fetchmany(_LINES):
                lines, lows, highs = map(list, zip(*rows, strict=True))
                yield Lines(lines, lows, highs)

    def cuts(self, count: int, prefix: str = "") -> list[bytes]:
        """Up to `count` keys that cut what is expected below `prefix` into pieces of about equal size."""
        span = _below(prefix)
        within = "from expected where line > ? and line < ?"
        lines = int(self._base.execute(f"select count(*) {within}", span).fetchone()[0])
        keys = []
        for piece in range(1, count + 1):
            offset = lines * piece // (count + 1)
            row = self._base.execute(f"select line {within} order by line limit 1 offset ?", (*span, offset)).fetchone()
            if row is not None and offset:
                keys.append(key_of(row[0]))
        return sorted(set(keys))

    def began(self, prefix: str = "") -> float:
        """The first moment that a record about a key below `prefix` tells of; 0.0: none does. With a prefix all that is
        known below it is read."""
        if not prefix:
            return float(self.fact("began", 0.0))
        row = self._base.execute(
            "select min(case when time > 0 then time else at end) from mention where key >= ? and key < ?",
            (prefix.encode(), prefix.encode() + UNSURE),
        ).fetchone()
        return float(row[0] or 0.0)

    @property
    def feed(self) -> tuple[float, float]:
        """From when to when feeds told of the place."""
        return float(self.fact("feed_first", 0.0)), float(self.fact("feed_last", 0.0))

    def controls(self) -> list[dict[str, Any]]:
        """The control-plane records of all writers: volumes, mirrors, environments."""
        return [orjson.loads(row[0]) for row in self._base.execute("select record from control order by writer, n")]

    # --- what the comparison before found ----------------------------------------------------------------------

    def looked(self, prefix: str = "") -> float:
        """When all below `prefix` was last compared; 0.0: never."""
        return float(self.fact(f"looked {prefix}", 0.0))

    @property
    def suspected(self) -> frozenset[str]:
        """Keys that had findings then."""
        return frozenset(bytes(row[0]).decode() for row in self._base.execute("select key from suspected"))

    def keep_result(self, looked: float, keys: Iterable[str], prefix: str = "") -> None:
        """What is clean now narrows the window of what is found next time."""
        with self._transaction():
            self._set_fact(f"looked {prefix}", looked)
            self._base.execute(
                "delete from suspected where key >= ? and key < ?", (prefix.encode(), prefix.encode() + UNSURE)
            )
            self._base.executemany("insert or ignore into suspected values (?)", ((key.encode(),) for key in keys))

    # --- the database ----------------------------------------------------------------------------------------

    def fact(self, name: str, default: Any) -> Any:
        row = self._base.execute("select value from fact where name = ?", (name,)).fetchone()
        return row[0] if row else default

    def _set_fact(self, name: str, value: object) -> None:
        self._base.execute("insert or replace into fact values (?, ?)", (name, value))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("begin immediate")
        try:
            yield
        except BaseException:
            self._base.execute("rollback")
            raise
        self._base.execute("commit")


def _connect(path: str, cache_kib: int = _CACHE_KIB) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=600.0)
    base.execute(f"pragma page_size = {_PAGE_BYTES}")
    if path != ":memory:":
        base.execute("pragma journal_mode = wal")
    # What a power cut takes of a cache is read again; with a write-ahead log it is never half there.
    base.execute("pragma synchronous = normal")
    base.execute(f"pragma cache_size = -{cache_kib}")
    base.execute("pragma temp_store = file")
    return base


def _below(prefix: str) -> tuple[bytes, bytes]:
    """Between which two lines those of keys that begin with `prefix` lie. No byte of UTF-8 is FF."""
    stem = prefix.encode().replace(b"\0", b"\0\1")
    return stem, stem + UNSURE


def _mention(row: tuple[Any, ...]) -> Mention:
    return Mention(bytes(row[0]).decode(), *row[1:])
