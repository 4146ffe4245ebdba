"""Requests and bytes of a storage on this node, by month and method, kept across processes and restarts; budgets and costs.

One rule: counting never waits on the data path. Requests are added up in memory; `flush` (a thread each FLUSH_S, and `close`)
adds the sums to the file in one transaction. What a killed process had not flushed is not counted: at most FLUSH_S of it.

A request counts when it has ended, whatever came of it; one that is made again counts again. Months are those of UTC. Budgets
(`bw-budget-*`) are for this node alone: each node counts its own requests.
"""

import logging
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from plugin.errors import Refused
from s3core.bucket import Bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.endpoint import Prices
from s3core.quantities import shown_size
from s3core.spending import CHARGES
from s3core.wrapper import Call, Operation, bytes_down

log = logging.getLogger(__name__)

NAME: Final = "counters.sqlite"
FLUSH_S: Final = 5.0
WAIT_S: Final = 5.0
NEAR: Final = 0.8
"""Share of a budget from which on is warned."""
FREE: Final[frozenset[Operation]] = frozenset(one for one, charge in CHARGES.items() if charge == "delete")
"""What no provider charges, and no budget refuses."""
READ: Final[frozenset[Operation]] = frozenset(one for one, charge in CHARGES.items() if charge == "get")
"""What is charged as a GET. Everything else is charged as a PUT: listings, copies and parts too."""
GIB: Final = 1 << 30
_SCHEMA = """
CREATE TABLE IF NOT EXISTS counts (
    month TEXT NOT NULL, method TEXT NOT NULL, requests INTEGER NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL,
    PRIMARY KEY (month, method)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO counts VALUES (?, ?, ?, ?, ?) ON CONFLICT (month, method) DO UPDATE SET
    requests = requests + excluded.requests, up = up + excluded.up, down = down + excluded.down
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Count:
    """Requests of one method, and the bytes of objects that they carried."""

    requests: int = 0
    up: int = 0
    down: int = 0

    def __add__(self, other: "Count") -> "Count":
        return Count(self.requests + other.requests, self.up + other.up, self.down + other.down)


@dataclass(frozen=True, slots=True)
class Budget:
    """What one node may ask for in a calendar month; 0 is no limit. `refuse`: new work beyond it is refused, else told."""

    requests: int = 0
    egress_bytes: int = 0
    refuse: bool = False


def month_of(moment: float) -> str:
    """`2026-11`, in UTC."""
    return time.strftime("%Y-%m", time.gmtime(moment))


def total(counts: Mapping[str, Count]) -> Count:
    return sum(counts.values(), Count())


def costs(counts: Mapping[str, Count], prices: Prices) -> dict[str, float]:
    """Money by reason (`put`, `get`, `egress`), in the currency of the prices."""
    puts = sum(one.requests for method, one in counts.items() if method not in FREE and method not in READ)
    gets = sum(one.requests for method, one in counts.items() if method in READ)
    return {
        "put": puts / 1000 * prices.per_1000_put,
        "get": gets / 1000 * prices.per_1000_get,
        "egress": total(counts).down / GIB * prices.per_gib_egress,
    }


def used_shares(counts: Mapping[str, Count], budget: Budget, *, requests: int = 0, down: int = 0) -> dict[str, float]:
    """How much of each limit is used with `requests` and `down` bytes more: 1.0 is all of it. Limits that are not set are
    not there."""
    charged = sum(one.requests for method, one in counts.items() if method not in FREE)
    shares = {}
    if budget.requests:
        shares["requests"] = (charged + requests) / budget.requests
    if budget.egress_bytes:
        shares["egress"] = (total(counts).down + down) / budget.egress_bytes
    return shares


class Counters:
    """Of one storage, in one SQLite file that processes share. Safe to use from several threads. A file that cannot be
    written costs the counts, never the request: it is told in the log, and what was counted waits for the next flush."""

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time, budget: Budget | None = None) -> None:
        self.path = path
        self.budget = budget or Budget()
        self._now = now
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._new: dict[tuple[str, str], Count] = {}
        self._told: Counter[tuple[str, str]] = Counter()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> "Counters":
        """Flush each FLUSH_S from now on, until `close`."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._flush_for_ever, name="counters", daemon=True)
            self._thread.start()
        return self

    def wrap(self, bucket: Bucket) -> "CountingBucket":
        """`bucket`, counted. Put it below the retries, right on the adapter, so that each attempt counts."""
        return CountingBucket(bucket, self)

    def add(self, method: str, *, up: int = 0, down: int = 0, requests: int = 1) -> None:
        key = month_of(self._now()), method
        count = Count(requests, up, down)
        with self._lock:
            self._new[key] = self._new.get(key, Count()) + count

    def month(self, month: str = "") -> dict[str, Count]:
        """Counts by method, of that month or of this one, with what is not flushed yet."""
        chosen = month or month_of(self._now())
        return self._sums("WHERE month = ?", (chosen,), lambda one: one == chosen)

    def ever(self) -> dict[str, Count]:
        """Counts by method since the file was made."""
        return self._sums("", (), lambda one: True)

    def admit(self, what: str, *, requests: int = 0, down: int = 0) -> None:
        """Ask before new work that will take so many requests and bytes. Refused where that is beyond a budget that refuses;
        otherwise it is told once a month in the log, near the budget and beyond it. Never ask before a delete."""
        if not (self.budget.requests or self.budget.egress_bytes):
            return
        counts = self.month()
        for limit, share in used_shares(counts, self.budget, requests=requests, down=down).items():
            if share > 1 and self.budget.refuse:
                raise Refused(
                    f"{what} would go beyond this month's budget of {self._shown(limit)}",
                    hint=f"raise bw-budget-{limit}, set bw-budget-action warn, or wait for the next month",
                )
            level = "is beyond" if share > 1 else "comes near" if share >= NEAR else ""
            told = month_of(self._now()), limit + level
            if level and not self._told[told]:
                self._told[told] += 1
                log.warning("%s %s this month's budget of %s", what, level, self._shown(limit))

    def flush(self) -> None:
        """What was counted up to now is in the file. OSError where it cannot be: then it is kept, and tried again."""
        with self._flushing:
            with self._lock:
                taken, self._new = self._new, {}
            if not taken:
                return
            try:
                with self._opened() as db:
                    rows = [(*key, one.requests, one.up, one.down) for key, one in taken.items()]
                    db.executemany(_ADD, rows)
            except BaseException as error:
                with self._lock:
                    for key, count in taken.items():
                        self._new[key] = self._new.get(key, Count()) + count
                if isinstance(error, sqlite3.Error):
                    raise OSError(f"{self.path}: {error}") from error
                raise

    def close(self) -> None:
        """Flush, and end the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        self._try_to_flush()

    # --- inside

    def _sums(self, where: str, arguments: tuple[str, ...], counts: Callable[[str], bool]) -> dict[str, Count]:
        query = f"SELECT method, SUM(requests), SUM(up), SUM(down) FROM counts {where} GROUP BY method"
        found: dict[str, Count] = {}
        with self._flushing:
            try:
                if self.path.exists():
                    with self._opened() as db:
                        found = {row[0]: Count(*row[1:]) for row in db.execute(query, arguments)}
            except sqlite3.Error as error:
                raise OSError(f"{self.path}: {error}") from error
            with self._lock:
                for (month, method), count in self._new.items():
                    if counts(month):
                        found[method] = found.get(method, Count()) + count
        return found

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """Seldom, so each time anew. A file that is damaged is put aside: the counts of its months are lost."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with closing(sqlite3.connect(self.path, timeout=WAIT_S, isolation_level=None)) as db:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute(_SCHEMA)
                db.execute("BEGIN")
                yield db
                db.execute("COMMIT")
            except sqlite3.DatabaseError as error:
                code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
                if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                    log.error("%s is damaged (%s); it is put aside, and its counts are lost", self.path, error)
                    self._put_aside()
                raise

    def _put_aside(self) -> None:
        self.path.replace(self.path.with_suffix(".damaged"))
        for beside in ("-wal", "-shm"):
            self.path.with_name(self.path.name + beside).unlink(missing_ok=True)

    def _flush_for_ever(self) -> None:
        while not self._stop.wait(FLUSH_S):
            self._try_to_flush()

    def _try_to_flush(self) -> None:
        try:
            self.flush()
        except OSError as error:
            log.warning("requests are counted in memory alone: %s", error)

    def _shown(self, limit: str) -> str:
        if limit == "requests":
            return f"{self.budget.requests:,} requests"
        return f"{shown_size(self.budget.egress_bytes)} read"


class CountingBucket(BucketWrapper):
    """See `Counters.wrap`."""

    def __init__(self, inner: Bucket, counters: Counters) -> None:
        super().__init__(inner)
        self._counters = counters

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        down = 0
        try:
            result = action()
            down = bytes_down(result)
            return result
        finally:
            self._counters.add(call.operation, up=call.bytes_up, down=down)
