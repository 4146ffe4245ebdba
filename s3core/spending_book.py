"""Where requests are counted: in memory by every process, then in one small file for each month.

    DIRECTORY/2026-11.json     sums of all processes, replaced whole       docs/formats/spending.md
              lock             whoever adds to a file holds it (flock)

One rule: counting never waits on the data path and never fails a request. A request adds to numbers in memory; a thread adds
what is new to the file each FLUSH_S, and once more when the process ends. The file is read, added to and renamed into place
under the lock, so two processes never lose each other's counts. A killed process loses at most its last FLUSH_S. A crash
between the temporary file and the rename leaves a temporary file, which the next flush replaces.

What cannot be written (no permission, a full disk) stays in memory and is tried again. A damaged file is put aside as
`2026-11.damaged`, and counting begins anew: told in the log, as `bucketworks status` tells what it cannot read.
"""

import atexit
import errno
import fcntl
import logging
import os
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Final

from s3core.spending import (
    CHARGES,
    ENDPOINTS_MAX,
    FAILURE_CHARACTERS_MAX,
    FILE_BYTES_MAX,
    Month,
    SpendingDamaged,
    Spent,
    added,
    decode_month,
    encode_month,
    is_month,
    month_of,
)
from s3core.wrapper import Operation

if TYPE_CHECKING:
    from s3core.settings import Config

log = logging.getLogger(__name__)

DIRECTORY_VARIABLE: Final = "BUCKETWORKS_SPENDING_DIR"
DEFAULT_DIRECTORY: Final = Path("/var/lib/bucketworks/spending")
FOLDER: Final = "spending"
LOCK: Final = "lock"
FLUSH_S: Final = 10.0
LOCK_PATIENCE_S: Final = 2.0
LOCK_PAUSE_S: Final = 0.02
MONTHS_KEPT: Final = 25
"""Files beyond go, the oldest first: two years and the month that runs."""

_PUT, _LIST, _GET, _DELETE, _UP, _DOWN, _ERRORS = range(7)
_INDEX: Final[Mapping[Operation, int]] = {
    operation: {"put": _PUT, "list": _LIST, "get": _GET, "delete": _DELETE}[charge]
    for operation, charge in CHARGES.items()
}


class Tally:
    """Counts for one endpoint in this process. Safe to use from several threads."""

    __slots__ = ("_begin", "_ends", "_failed", "_lock", "_month", "_new", "_now", "_past")

    def __init__(self, now: Callable[[], float] = time.time, begin: Callable[[], None] = lambda: None) -> None:
        self._now = now
        self._begin = begin
        self.forget()

    def forget(self) -> None:
        """Begin at nothing, with a lock of its own: in a forked process the counts are the parent's."""
        self._lock = threading.Lock()
        self._new = [0] * 7
        self._failed: tuple[int, str] = (0, "")
        self._past: dict[str, Spent] = {}
        self._month, self._ends = "", 0.0

    def add(self, operation: Operation, up: int = 0, down: int = 0) -> None:
        """One request, whatever came of it."""
        at = _INDEX[operation]
        now = self._now()
        with self._lock:
            if now >= self._ends:
                self._turn(now)
            new = self._new
            new[at] += 1
            new[_UP] += up
            new[_DOWN] += down

    def failed(self, error: BaseException) -> None:
        """A request was counted and brought no answer but this."""
        text = " ".join(str(error).split())[:FAILURE_CHARACTERS_MAX]
        with self._lock:
            self._new[_ERRORS] += 1
            self._failed = (int(self._now()), text)

    def take(self) -> dict[str, Spent]:
        """What is new, by month; it is the caller's to keep, or to `give_back`."""
        with self._lock:
            self._close_month()
            taken, self._past = self._past, {}
            return taken

    def give_back(self, month: str, spent: Spent) -> None:
        with self._lock:
            self._past[month] = self._past.get(month, Spent()) + spent

    def _turn(self, now: float) -> None:
        """The first request, of this process or of a month."""
        self._begin()
        self._close_month()
        self._month, self._ends = month_of(now), _end_of_month(now)

    def _close_month(self) -> None:
        if any(self._new):
            month = self._month or month_of(self._now())
            spent = _spent_of(self._new, self._failed)
            self._past[month] = self._past.get(month, Spent()) + spent
            self._new = [0] * 7
            self._failed = (0, "")


def _spent_of(counts: list[int], failed: tuple[int, str]) -> Spent:
    put, listed, got, deleted, up, down, errors = counts
    return Spent(put, listed, got, deleted, up, down, errors, *failed)


def _end_of_month(now: float) -> float:
    """When the calendar month of `now` ends (UTC); a clock that is set back within it counts for the same month."""
    moment = time.gmtime(now)
    year, month = (moment.tm_year + 1, 1) if moment.tm_mon == 12 else (moment.tm_year, moment.tm_mon + 1)
    # Unix time has no leap seconds: all days are equally long.
    return (date(year, month, 1) - date(1970, 1, 1)).days * 86400.0


class Book:
    """The counts of this process on their way to the files of one directory. Safe to use from several threads."""

    def __init__(self, directory: Path, *, now: Callable[[], float] = time.time) -> None:
        self.directory = directory
        self._now = now
        self._guard = threading.Lock()
        self._flushing = threading.Lock()
        self._tallies: dict[str, Tally] = {}
        self._thread: threading.Thread | None = None
        self._told = ""

    def tally(self, endpoint: str) -> Tally:
        """The counts of that endpoint; from the first request on they are flushed each FLUSH_S."""
        with self._guard:
            found = self._tallies.get(endpoint)
            if found is None:
                found = self._tallies[endpoint] = Tally(self._now, self._begin)
            return found

    def forget(self) -> None:
        """In a process that was forked: its counts begin at nothing."""
        self._guard, self._flushing, self._thread = threading.Lock(), threading.Lock(), None
        for tally in self._tallies.values():
            tally.forget()

    def flush(self) -> None:
        """What was counted up to now is in the files. OSError where it cannot be: then it is kept, and tried again."""
        with self._flushing:
            taken: dict[str, Month] = {}
            with self._guard:
                tallies = dict(self._tallies)
            for endpoint, tally in tallies.items():
                for month, spent in tally.take().items():
                    taken.setdefault(month, {})[endpoint] = spent
            for month in sorted(taken):
                try:
                    add_to_file(self.directory, month, taken[month])
                except BaseException:
                    for later in sorted(taken):
                        if later >= month:
                            for endpoint, spent in taken[later].items():
                                tallies[endpoint].give_back(later, spent)
                    raise

    def try_to_flush(self) -> None:
        """The same; what stands in the way is told in the log, once for each reason."""
        try:
            self.flush()
            self._told = ""
        except OSError as error:
            if str(error) != self._told:
                self._told = str(error)
                log.info("requests are counted in memory alone: %s", error)

    def _begin(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=_flush_for_ever, args=(weakref.ref(self),), name="spending", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                # No more threads, or an interpreter that ends. This is the path of a request: it goes on.
                log.info("requests are counted in memory until this process ends: %s", error)
            else:
                self._thread = thread


def _flush_for_ever(held: "weakref.ref[Book]") -> None:
    while True:
        time.sleep(FLUSH_S)
        book = held()
        if book is None:
            return
        book.try_to_flush()
        del book


# --- files -----------------------------------------------------------------------------------------------------------


def add_to_file(directory: Path, month: str, counts: Mapping[str, Spent]) -> None:
    """Durably, or OSError and nothing was added. TimeoutError where another process holds the lock for too long."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory):
        path = directory / f"{month}.json"
        try:
            before = read_month(directory, month)
        except SpendingDamaged as error:
            log.error("%s is damaged (%s); it is put aside, and its counts are lost", path, error)
            path.replace(path.with_suffix(".damaged"))
            before = {}
        fits = {name: spent for name, spent in counts.items() if name in before or len(before) < ENDPOINTS_MAX}
        temporary = directory / f".{month}.json.new"
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(handle, "wb") as file:
            file.write(encode_month(month, added(before, fits)))
            file.flush()
            os.fsync(file.fileno())
        # Lost with the host's power it is the one before: as after a kill, the last interval is not counted.
        os.replace(temporary, path)
        if not before:
            for old in months_in(directory)[:-MONTHS_KEPT]:
                (directory / f"{old}.json").unlink(missing_ok=True)


def read_month(directory: Path, month: str) -> Month:
    """What the files of that month hold, nothing where there is none. SpendingDamaged, OSError.

    The directory may be another user's, the console's, and the reader root: what lies there is neither waited for nor
    followed to another place."""
    path = directory / f"{month}.json"
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {}
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SpendingDamaged("it is no plain file")
    with open(handle, "rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise SpendingDamaged(f"it has more than {FILE_BYTES_MAX} bytes")
    return decode_month(month, data)


def months_in(directory: Path) -> list[str]:
    """The months that have a file, the oldest first."""
    try:
        names = [path.stem for path in directory.iterdir() if path.suffix == ".json"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name for name in names if is_month(name))


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    # Not the directory itself: a handle on that could not be made by a user who may only write in it.
    handle = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + LOCK_PATIENCE_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise
                if time.monotonic() > until:
                    raise TimeoutError(f"{directory / LOCK} is held by another process") from error
            time.sleep(LOCK_PAUSE_S)
        yield
    finally:
        os.close(handle)


def directory_of(config: "Config", environ: Mapping[str, str] | None = None, user: int | None = None) -> Path | None:
    """Where counts are kept: `[status] spending_dir`, else what BUCKETWORKS_SPENDING_DIR names ("off": nowhere), else
    DEFAULT_DIRECTORY for root; for others a folder in what systemd gave a service (STATE_DIRECTORY), or below
    XDG_STATE_HOME."""
    environ = os.environ if environ is None else environ
    if config.status.spending_dir:
        return Path(config.status.spending_dir)
    named = environ.get(DIRECTORY_VARIABLE, "")
    if named:
        return None if named == "off" else Path(named)
    if (os.geteuid() if user is None else user) == 0:
        return DEFAULT_DIRECTORY
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given) / FOLDER
    home = Path(environ.get("XDG_STATE_HOME", ""))
    if not home.is_absolute():
        if not environ.get("HOME"):
            return None
        home = Path(environ["HOME"]) / ".local" / "state"
    return home / "bucketworks" / "spending"


# --- the books of this process ---------------------------------------------------------------------------------------

_books: dict[Path, Book] = {}
_books_lock = threading.Lock()


def tally_of(endpoint: str, config: "Config | None") -> Tally | None:
    """Where requests to that endpoint are counted; None where nothing is to be counted. Touches no file."""
    directory = directory_of(config) if config is not None else None
    if directory is None:
        return None
    with _books_lock:
        book = _books.get(directory)
        if book is None:
            book = _books[directory] = Book(directory)
            _flush_at_the_end(book)
    return book.tally(endpoint)


def flush_all() -> None:
    """What this process counted is in the files, as far as they can be written."""
    with _books_lock:
        books = list(_books.values())
    for book in books:
        book.try_to_flush()


def _flush_at_the_end(book: Book) -> None:
    # A process of `multiprocessing` ends without atexit, but runs its own finalizers.
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None and processes.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, book.try_to_flush, exitpriority=0)
    elif len(_books) == 1:
        atexit.register(flush_all)


def _forked() -> None:
    global _books_lock
    _books_lock = threading.Lock()
    forkers = sys.modules.get("multiprocessing.util")
    for book in _books.values():
        book.forget()
        if forkers is not None:
            forkers.register_after_fork(book, _flush_at_the_end)


os.register_at_fork(after_in_child=_forked)
