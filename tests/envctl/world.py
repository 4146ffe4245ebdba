"""A console without doors: a context with a database of its own, a clock that tests move, users of each role.

    world = make_world(tmp_path)
    env_create(world.context, world.caller("alice"), CreateEnvironment(...))

One rule: nothing here knows HTTP, and nothing waits: `world.clock.now += 60` is a minute.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from argon2 import PasswordHasher

from envctl.accounts import people
from envctl.audit import Audit
from envctl.calling import Caller, Context, Role, Via
from envctl.database.access import Database, sqlite_url
from envctl.database.models import Environment, Template, User
from envctl.homes.presigning import ConsolePresigner
from envctl.homes.store import HomeStore
from envctl.sealing import SecretBox
from envctl.states import EnvironmentState
from s3core.memory import MemoryStore
from s3core.settings import EnvctlSettings
from tests.s3core.fakes import FakeClock

PASSWORD = "four words about nothing"
"""Of every user here."""
CHEAP = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
"""For tests that are about something else."""


@dataclass
class World:
    context: Context
    clock: FakeClock
    directory: Path
    woken: list[str] = field(default_factory=list)
    """A line each time the runner was told."""
    told: list[str] = field(default_factory=list)
    """Ids of environments that watchers were told of."""

    @property
    def database(self) -> Database:
        return self.context.database

    def add_user(self, name: str, role: Role = "user", **columns: Any) -> User:
        with self.database.write() as session:
            user = User(
                id=self.context.new_id(),
                name=name,
                role=role,
                created_at=self.context.now(),
                password_hash=CHEAP.hash(PASSWORD),
            )
            for column, value in columns.items():
                setattr(user, column, value)
            session.add(user)
        return user

    def caller(
        self, name: str, *, via: Via = "api", scopes: frozenset[str] | None = None, address: str = "192.0.2.1"
    ) -> Caller:
        """Who a user is now."""
        with self.database.read() as session:
            return people.caller_of(session, people.find_user(session, name), via, address=address, scopes=scopes)

    def add_template(self, name: str = "debian", **columns: Any) -> Template:
        values: dict[str, Any] = {
            "title": name.title(),
            "driver": "fake",
            "source": "9000",
            "cores": 1,
            "cores_max": 8,
            "memory_mib": 512,
            "memory_mib_max": 8192,
            "disk_gib": 8,
            "disk_gib_max": 64,
            "directories": ["/home"],
            "created_at": self.context.now(),
        }
        template = Template(id=self.context.new_id(), name=name, **(values | columns))
        with self.database.write() as session:
            session.add(template)
        return template

    def add_environment(
        self,
        owner: str,
        name: str,
        template: Template,
        state: EnvironmentState = EnvironmentState.READY,
        **columns: Any,
    ) -> Environment:
        """A row alone: no machine, no home."""
        values: dict[str, Any] = {
            "template_id": template.id,
            "driver": template.driver,
            "cores": template.cores,
            "memory_mib": template.memory_mib,
            "disk_gib": template.disk_gib,
            "directories": template.directories,
            "created_at": self.context.now(),
            "running": state is EnvironmentState.READY,
        }
        with self.database.write() as session:
            owner_id = people.find_user(session, owner).id
            row = Environment(id=self.context.new_id(), owner_id=owner_id, name=name, state=state, **(values | columns))
            session.add(row)
        return row

    def close(self) -> None:
        self.database.close()


def make_world(
    directory: Path,
    *,
    database_url: str = "",
    drivers: Mapping[str, Any] | None = None,
    homes: Any = None,
    users: bool = True,
    records: Any = None,
    **settings: Any,
) -> World:
    """`settings`: of `[envctl]`. Users, unless told otherwise: `root` (admin), `ops` (operator), `alice` and `bob`."""
    clock = FakeClock()
    directory.mkdir(parents=True, exist_ok=True)
    settings.setdefault("state_dir", str(directory))
    settings.setdefault("url", "https://console.example")
    if database_url:
        database = Database(database_url)
        database.migrate()
    else:
        database = Database(sqlite_url(directory))
        (directory / "envctl.sqlite3").write_bytes(_migrated())
    woken: list[str] = []
    told: list[str] = []
    box = SecretBox.open_file(directory / "key")
    if homes is None:
        homes = HomeStore(MemoryStore(), ConsolePresigner(box.sub_key("objects")), clock, threads=2)
    context = Context(
        settings=EnvctlSettings.model_validate(settings),
        database=database,
        audit=Audit(database, records, clock, host="console"),
        homes=homes,
        drivers=drivers if drivers is not None else {},
        secrets=box,
        clock=clock,
        wake=lambda: woken.append("woken"),
        told=told.append,
    )
    world = World(context, clock, directory, woken, told)
    if users:
        world.add_user("root", "admin")
        world.add_user("ops", "operator")
        world.add_user("alice")
        world.add_user("bob")
    return world


@cache
def _migrated() -> bytes:
    """A database as the migrations leave it: made once, because most tests are about something else."""
    with tempfile.TemporaryDirectory() as directory:
        database = Database(sqlite_url(directory))
        database.migrate()
        database.close()
        return (Path(directory) / "envctl.sqlite3").read_bytes()
