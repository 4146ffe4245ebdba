"""The database: SQLite in a file, or PostgreSQL, with the same promises.

One rule: there is one writer at a time. SQLite has no more (BEGIN IMMEDIATE); on PostgreSQL every write first takes one
transaction-level advisory lock. So whoever checks and then writes in one `write()` (a quota, a name, "one job an
environment") needs no further lock and no retry on either. Writes are short: nothing waits for a hypervisor, a bucket or a
password hash in one.

    what is so when the process dies      what is in the database       who repairs it
    in a read                             as before                     nobody needs to
    in a write, before its commit         as before                     nobody needs to: both roll back
    after the commit                      the write, on disk            nobody needs to (synchronous FULL, fsync on)
    in a migration                        as before, or all of it       the next start runs it again
"""

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import QueuePool

from envctl.errors import EnvctlError, Invalid
from s3core.exit_codes import ExitCode, register

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.util.exc import CommandError

WAIT_S: Final = 10.0
"""How long a write waits for the writer before it."""
READERS_MAX: Final = 20
"""Connections for reads at once; FastAPI runs at most 40 requests in threads."""
MIGRATIONS: Final = Path(__file__).parent / "migrations"
_WRITER_LOCK: Final = 0x656E7663
"""Key of the advisory lock on PostgreSQL; `envc` in ASCII."""
_LOCK_NOT_AVAILABLE: Final = "55P03"
# At `debug` SQLAlchemy writes down whole rows, secrets among them; the console's `log_level` must not ask for that.
logging.getLogger("sqlalchemy").setLevel(logging.WARNING)
_LEFT_BEHIND: Final = frozenset(
    {sqlite3.SQLITE_READONLY_ROLLBACK, sqlite3.SQLITE_READONLY_RECOVERY, sqlite3.SQLITE_READONLY_CANTINIT}
)
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class DatabaseBusy(EnvctlError):
    """Another writer was not done in time. Nothing was written."""

    code = "database-busy"
    status = 503
    retryable = True


class DatabaseUnavailable(EnvctlError):
    """It cannot be opened, or is of another version. Nothing was written, but for a commit whose answer was lost."""

    code = "database-unavailable"
    status = 503
    retryable = True


register(DatabaseBusy, ExitCode.UNAVAILABLE)
register(DatabaseUnavailable, ExitCode.UNAVAILABLE)


class Database:
    """Threads share it. Rows stay readable after their session has ended (they are not expired by a commit). What a column
    cannot hold raises Invalid.

    Errors never show the values of a statement: they may be hashes of passwords. A JSON column counts as changed when it is
    assigned: `row.ssh_keys = [*row.ssh_keys, key]`, never `append`."""

    def __init__(self, url: str, *, wait_s: float = WAIT_S, read_only: bool = False) -> None:
        """`url`: as SQLAlchemy has it, `sqlite:////DIRECTORY/FILE` or `postgresql+psycopg://...`. Nothing is opened yet.
        `read_only`: a file of SQLite is another user's, and nothing that lies beside it is carried out: a journal that it
        left would be played back with our rights, and may name any file to be removed. DatabaseUnavailable for a url that
        cannot be one."""
        self.url: Final = url
        self._wait_s = wait_s
        try:
            self.kind = make_url(url).get_backend_name()
            if self.kind == "sqlite":
                self._file: Path | None = Path(make_url(url).database or "")
                if self._file.name in ("", ":memory:"):
                    raise ArgumentError("a database in memory is not shared by threads; name a file")
                mode: Literal["ro", "rw"] = "ro" if read_only else "rw"
                self._reader = _sqlite_engine(self._file, wait_s, mode, begin="BEGIN", query_only=True)
                self._writer = _sqlite_engine(self._file, wait_s, mode, begin="BEGIN IMMEDIATE", query_only=False)
            elif self.kind == "postgresql":
                self._file = None
                self._reader = create_engine(
                    url,
                    pool_size=5,
                    max_overflow=READERS_MAX - 5,
                    pool_timeout=wait_s,
                    pool_pre_ping=True,
                    hide_parameters=True,
                    isolation_level="REPEATABLE READ",
                    execution_options={"postgresql_readonly": True},
                )
                self._writer = create_engine(
                    url, pool_size=1, max_overflow=1, pool_timeout=wait_s, pool_pre_ping=True, hide_parameters=True
                )
                event.listen(self._writer, "begin", _postgresql_begin(wait_s))
            else:
                raise ArgumentError(f"{self.kind!r} is not supported; use SQLite or PostgreSQL")
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise DatabaseUnavailable(
                f"the database cannot be opened: {error}",
                hint="set `database` in [envctl] to `postgresql+psycopg://USER@HOST/NAME` (with the extra `postgresql`),"
                " or leave it empty",
            ) from error
        self._read_sessions = sessionmaker(self._reader, expire_on_commit=False, autoflush=False)
        self._write_sessions = sessionmaker(self._writer, expire_on_commit=False)
        self._turn = threading.Lock()
        self._holder: int | None = None
        """Thread that has the turn; only that thread reads its own number here."""

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one state of the database and changes nothing; a write in it raises. DatabaseUnavailable."""
        with _translated(), self._read_sessions() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session that is the only writer. On leaving it is committed, and durable on return; an exception rolls it back and
        goes on. Not within another `write` of the same thread. DatabaseBusy, DatabaseUnavailable."""
        if self._holder == threading.get_ident():
            raise RuntimeError("a write within a write would wait for itself; hand the session down")
        # SQLite's own waiting is a poll that starves; threads of one process queue here.
        if not self._turn.acquire(timeout=self._wait_s):
            raise DatabaseBusy("another writer is not done yet", hint="try again")
        self._holder = threading.get_ident()
        try:
            with _translated(), self._write_sessions.begin() as session:
                session.connection()
                yield session
        finally:
            self._holder = None
            self._turn.release()

    def migrate(self) -> None:
        """Bring the schema to what this program knows: all or nothing. Harmless to repeat, and for several workers at once.
        DatabaseUnavailable for a database of a newer program."""
        # Imported where a schema is looked at: every command that asks a console over HTTP would wait for it.
        from alembic import command
        from alembic.util.exc import CommandError

        if self._file is not None:
            self._create_file(self._file)
        with _translated(), self._writer.begin() as connection:
            config = migration_config()
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise _newer(error) from error

    def check(self) -> None:
        """Whether it answers and has the schema of this program. DatabaseUnavailable says what to do."""
        from alembic.runtime.migration import MigrationContext
        from alembic.script import ScriptDirectory

        wanted = ScriptDirectory.from_config(migration_config()).get_current_head()
        with _translated(), self._reader.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        if found is None:
            raise DatabaseUnavailable("the database is empty", hint="run: s3-envctl migrate")
        if found != wanted:
            raise DatabaseUnavailable(
                f"the database has schema {found}, this program needs {wanted}",
                hint="run: s3-envctl migrate; a database of a newer version needs that version",
            )

    def damage(self) -> list[str]:
        """What SQLite's own check of the file finds wrong; nothing on PostgreSQL. It reads the whole file."""
        if self.kind != "sqlite":
            return []
        with self.read() as session:
            found = [str(row[0]) for row in session.execute(text("PRAGMA quick_check"))]
        return [line for line in found if line != "ok"]

    def backup(self, path: Path) -> None:
        """A whole copy as of one moment, while others write; durable at `path` on return, mode 0600. A crash leaves `path` as
        it was and a file `.part` beside it, which the next backup replaces. SQLite alone: DatabaseUnavailable otherwise."""
        if self._file is None:
            raise DatabaseUnavailable(
                f"a {self.kind} database is saved with its own tools", hint="pg_dump --format=custom"
            )
        if not self._file.exists():  # SQLite would make an empty one
            raise DatabaseUnavailable(f"there is no database {self._file}", hint="`s3-envctl init` makes it")
        part = path.with_name(path.name + ".part")
        part.unlink(missing_ok=True)
        self._create_file(part)
        with closing(sqlite3.connect(self._file)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.rename(path)
        _sync_directory(path.parent)

    def close(self) -> None:
        """Connections are closed. The next use opens new ones."""
        self._reader.dispose()
        self._writer.dispose()

    @staticmethod
    def _create_file(path: Path) -> None:
        """Before SQLite does, because it would ask the umask who may read hashes of passwords."""
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise DatabaseUnavailable(
                f"{path}: cannot be made: {error.strerror}",
                hint="check `state_dir` in [envctl] and who may write there",
            ) from error


def sqlite_url(state_dir: str | Path) -> str:
    """The database of `[envctl] state_dir`, where no other is configured."""
    return f"sqlite:///{Path(state_dir) / 'envctl.sqlite3'}"


def migration_config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _sqlite_engine(file: Path, wait_s: float, mode: Literal["ro", "rw"], *, begin: str, query_only: bool) -> Engine:
    def connect() -> sqlite3.Connection:
        # `rw`: a file that is not there is made by `migrate` alone, with its mode.
        name = f"file:{quote(str(file.absolute()))}?mode={mode}"
        return sqlite3.connect(name, uri=True, timeout=wait_s, check_same_thread=False)

    engine = create_engine(
        "sqlite://",
        creator=connect,
        hide_parameters=True,
        poolclass=QueuePool,
        pool_size=5 if query_only else 1,
        max_overflow=READERS_MAX - 5 if query_only else 1,
        pool_timeout=wait_s,
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _record: object) -> None:
        # The driver would begin by itself, before writes only; `begin` below does.
        connection.isolation_level = None
        if mode == "ro":
            # Nor are functions called that its schema names.
            connection.execute("PRAGMA trusted_schema = OFF")
        else:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        if query_only:
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _postgresql_begin(wait_s: float) -> Callable[[Connection], None]:
    def begin_transaction(connection: Connection) -> None:
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(wait_s * 1000)}")
        # READ COMMITTED: every statement after this one sees what the writers before have committed.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_WRITER_LOCK})")

    return begin_transaction


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseBusy("all connections to the database are in use", hint="try again") from error
    except OperationalError as error:
        if _is_busy(error):
            raise DatabaseBusy("another writer is not done yet", hint="try again") from error
        if getattr(error.orig, "sqlite_errorcode", None) in _LEFT_BEHIND:
            raise DatabaseUnavailable(
                "whoever wrote the database last died, and what it left is not carried out by who only looks",
                hint="start the console, which does",
            ) from error
        if _sqlite_code(error) == sqlite3.SQLITE_READONLY:
            raise
        raise DatabaseUnavailable(
            f"the database does not answer: {_first_line(error)}", hint="check `database` and `state_dir` in [envctl]"
        ) from error
    except (DataError, UnicodeEncodeError, OverflowError) as error:
        # Half a character, a NUL (PostgreSQL), a number beyond 64 bits: somebody sent it, and it is no mistake of ours.
        raise Invalid("a value that was given cannot be kept", hint="is a text or a number out of bounds?") from error
    except DBAPIError as error:
        if not _is_missing_table(error):
            raise
        raise DatabaseUnavailable("the database has no tables yet", hint="run: s3-envctl migrate") from error


def _is_busy(error: DBAPIError) -> bool:
    original: Any = error.orig
    if getattr(original, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
        return True
    return _sqlite_code(error) in _BUSY


def _sqlite_code(error: DBAPIError) -> int:
    # The lower byte is the primary code: SQLITE_BUSY_SNAPSHOT and its like are busy too.
    return (getattr(error.orig, "sqlite_errorcode", None) or 0) & 0xFF


def _is_missing_table(error: DBAPIError) -> bool:
    return getattr(error.orig, "sqlstate", None) == "42P01"


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__


def _newer(error: "CommandError") -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"the database is not of this program: {error}",
        hint="a newer version has migrated it; install that version, or restore the copy from before",
    )


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
