"""SQLite and PostgreSQL keep the same promises."""

import contextlib
import sqlite3
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, delete, inspect, select, text
from sqlalchemy.exc import DBAPIError

from envctl.database.access import Database, DatabaseBusy, DatabaseUnavailable, sqlite_url
from envctl.database.models import Base, JobLine, Setting
from envctl.errors import EnvctlError
from envctl.states import EnvironmentState
from tests.envctl.world import make_world
from tests.servers.postgresql import Postgresql


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    made = Database(database_url)
    made.migrate()
    yield made
    made.close()


def test_the_migrations_make_what_the_models_say(database: Database, database_url: str) -> None:
    """Compared with what the database has, and with what `create_all` would make of the models."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        found = inspect(connection)
        assert set(found.get_table_names()) == {*Base.metadata.tables, "alembic_version"}
        # Autogeneration does not look at the conditions of partial indexes.
        partial = {
            index["name"]
            for table in ("environments", "jobs")
            for index in found.get_indexes(table)
            if index["dialect_options"].get("sqlite_where") is not None
            or index["dialect_options"].get("postgresql_where") is not None
        }
        assert partial == {"one_name_an_owner", "one_job_an_environment"}
    engine.dispose()


def journal_that_removes(victim: Path) -> bytes:
    """A rollback journal of SQLite (file format, 3.1 to 3.3) without pages, with the name of a super-journal, which playing it
    back removes."""
    name = str(victim).encode()
    head = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 1, 2, 512, 4096)
    tail = name + struct.pack(">II", len(name), sum(name)) + bytes.fromhex("d9d505f920a163d7")
    return head.ljust(512, b"\0") + struct.pack(">I", (1 << 30) // 4096 + 1) + tail


@pytest.mark.parametrize("read_only", [False, True])
def test_looking_into_the_file_of_another_user_carries_nothing_out(tmp_path: Path, read_only: bool) -> None:
    victim = tmp_path / "victim"
    victim.write_text("not a journal")
    file = tmp_path / "envctl.sqlite3"
    with closing(sqlite3.connect(file)) as made:
        made.execute("CREATE TABLE x (y)")
    (tmp_path / "envctl.sqlite3-journal").write_bytes(journal_that_removes(victim))
    with closing(Database(sqlite_url(tmp_path), read_only=read_only)) as database, contextlib.suppress(EnvctlError):
        database.check()
    assert victim.exists() == read_only, "the journal is one that would be carried out, and is not"


def test_what_is_read_only_reads_what_a_dead_writer_left_in_its_log(tmp_path: Path) -> None:
    with closing(Database(sqlite_url(tmp_path))) as database:
        database.migrate()
    code = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute(\"INSERT INTO settings (key, value) VALUES ('kept', '1')\")\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "envctl.sqlite3")], check=True)
    assert (tmp_path / "envctl.sqlite3-wal").stat().st_size > 0
    with closing(Database(sqlite_url(tmp_path), read_only=True)) as database:
        database.check()
        with database.read() as session:
            assert session.get_one(Setting, "kept").value == 1
        with pytest.raises(DBAPIError), database.write() as session:
            session.add(Setting(key="other", value=2))


def test_migrating_again_or_at_once_changes_nothing(database_url: str) -> None:
    several = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: one.migrate(), several))
    with several[0].write() as session:
        session.add(Setting(key="kept", value=[1, {"two": "drei"}]))
    for one in several:
        one.migrate()
        one.check()
        with one.read() as session:
            assert session.get_one(Setting, "kept").value == [1, {"two": "drei"}]
        one.close()


def test_a_database_of_a_newer_program_is_left_alone(database: Database) -> None:
    with database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseUnavailable, match="newer"):
        database.migrate()
    with pytest.raises(DatabaseUnavailable, match="9999"):
        database.check()


def test_an_empty_database_says_what_to_do(database_url: str) -> None:
    empty = Database(database_url)
    with pytest.raises(DatabaseUnavailable) as caught:
        empty.check()
    assert "migrate" in str(caught.value) or "state_dir" in str(caught.value)
    empty.close()


def test_there_is_one_writer_at_a_time(database: Database, database_url: str) -> None:
    """Look, then write, from many threads and from a second process's view: no increment is lost."""
    other = Database(database_url)
    with database.write() as session:
        session.add(Setting(key="counter", value=0))

    def increment(number: int) -> None:
        with (database if number % 2 else other).write() as session:
            row = session.get_one(Setting, "counter")
            assert isinstance(row.value, int)
            row.value = row.value + 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(increment, range(40)))
    with database.read() as session:
        assert session.get_one(Setting, "counter").value == 40
    other.close()


def test_readers_neither_wait_for_the_writer_nor_see_half(database: Database) -> None:
    with database.write() as session:
        session.add(Setting(key="a", value=1))
    with database.write() as session:
        session.get_one(Setting, "a").value = 2
        session.add(Setting(key="b", value=2))
        session.flush()
        with database.read() as reader:
            assert [row.value for row in reader.scalars(select(Setting))] == [1]


def test_a_read_sees_one_moment(database: Database) -> None:
    with database.read() as reader:
        assert reader.scalars(select(Setting)).all() == []
        with database.write() as session:
            session.add(Setting(key="later", value=1))
        assert reader.scalars(select(Setting)).all() == []


def test_a_read_writes_nothing(database: Database) -> None:
    with pytest.raises(Exception, match=r"(?i)read-?only"), database.read() as session:
        session.execute(text("INSERT INTO settings (key, value) VALUES ('x', '1')"))
    with database.read() as session:
        assert session.get(Setting, "x") is None


def test_what_raises_is_rolled_back(database: Database) -> None:
    def fail() -> None:
        with database.write() as session:
            session.add(Setting(key="gone", value=1))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with database.write() as session:
        assert session.get(Setting, "gone") is None


def test_a_writer_that_is_not_done_is_told_as_busy(database_url: str) -> None:
    slow, quick = Database(database_url), Database(database_url, wait_s=0.3)
    slow.migrate()
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with slow.write():
            inside.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(30)
    with pytest.raises(DatabaseBusy), quick.write():
        pass
    done.set()
    holder.join()
    with quick.write() as session:
        session.add(Setting(key="after", value=1))
    slow.close()
    quick.close()


def test_a_write_within_a_write_is_a_mistake_that_is_told_at_once(database: Database) -> None:
    with database.write(), pytest.raises(RuntimeError, match="within"), database.write():
        pass
    with database.write() as session:
        session.add(Setting(key="fine", value=1))


def test_numbers_of_lines_only_go_up(database_url: str, tmp_path: Path) -> None:
    """A browser resumes after the last it has: a number that comes again would be a line that is never shown."""
    world = make_world(tmp_path / "world", database_url=database_url)
    environment = world.add_environment("alice", "one", world.add_template(), EnvironmentState.READY)
    numbers = []
    for round_number in range(4):
        with world.database.write() as session:
            if round_number == 3:
                # As the scheduler does with old ones.
                session.execute(delete(JobLine))
            line = JobLine(environment_id=environment.id, at=1.0, text="a line")
            session.add(line)
            session.flush()
            numbers.append(line.id)
    assert numbers == sorted(set(numbers))
    world.close()


def test_errors_do_not_show_what_was_written(database: Database) -> None:
    """They end in logs; what was written may be the hash of a password."""
    with database.write() as session:
        session.add(Setting(key="same", value=1))
    with pytest.raises(Exception) as caught, database.write() as session:
        session.add(Setting(key="same", value="a secret thing"))
    assert "a secret thing" not in str(caught.value)


def test_names_are_free_again_only_when_an_environment_is_gone(database_url: str, tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", database_url=database_url)
    template = world.add_template()
    world.add_environment("alice", "one", template, EnvironmentState.DELETED)
    world.add_environment("alice", "one", template, EnvironmentState.READY)
    world.add_environment("bob", "one", template, EnvironmentState.READY)
    with pytest.raises(Exception, match=r"(?i)unique"):
        world.add_environment("alice", "one", template, EnvironmentState.STOPPED)
    world.close()


def test_a_server_that_was_killed_is_found_again(postgresql: Postgresql) -> None:
    database = Database(postgresql.new_database())
    database.migrate()
    with database.write() as session:
        session.add(Setting(key="kept", value=1))
    postgresql.kill()
    with pytest.raises(DatabaseUnavailable), database.write():
        pass
    postgresql.start()
    with database.read() as session:
        assert session.get_one(Setting, "kept").value == 1
    database.close()


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path / "state"))
    database.migrate()
    files = sorted((tmp_path / "state").iterdir())
    assert files
    for file in files:
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    database.close()


def test_a_copy_is_whole_while_others_write(tmp_path: Path) -> None:
    database = Database(sqlite_url(tmp_path))
    database.migrate()
    with database.write() as session:
        session.add_all(Setting(key=f"key{number}", value="x" * 1000) for number in range(200))
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            with database.write() as session:
                session.merge(Setting(key="busy", value=number))

    writer = threading.Thread(target=write)
    writer.start()
    copy = tmp_path / "copy.sqlite3"
    database.backup(copy)
    database.backup(copy)
    stop.set()
    writer.join()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert not copy.with_name(copy.name + ".part").exists()
    with sqlite3.connect(copy) as connection:
        assert connection.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        assert connection.execute("SELECT count(*) FROM settings WHERE key LIKE 'key%'").fetchone() == (200,)
    connection.close()
    assert database.damage() == []
    database.close()


def test_what_cannot_be_a_database_is_told(tmp_path: Path) -> None:
    for url in ("mysql://somewhere/x", "sqlite://", "no url at all", "nothing+here://x"):
        with pytest.raises(DatabaseUnavailable) as caught:
            Database(url)
        assert caught.value.hint
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DatabaseUnavailable, match="cannot be made"):
        Database(sqlite_url(file)).migrate()
