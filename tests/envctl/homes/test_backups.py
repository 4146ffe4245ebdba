"""Verbs of backups: what they tell, what they ask of the machine, and whose they are; retention with its rows."""

import base64
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from envctl.calling import Caller
from envctl.database.models import AuditRow, Backup, Environment, Guest, GuestCommand
from envctl.errors import EnvctlError, Forbidden, Invalid, NoSuchThing, Refused
from envctl.homes import requests
from envctl.homes.guests import CommandAnswer, answer_command, remember, take_commands
from envctl.homes.identity import Identity
from envctl.homes.retention import Policy
from envctl.homes.upkeep import upkeep
from envctl.states import EnvironmentState
from envctl.verbs import backup_models as asked
from envctl.verbs import backups
from envctl.verbs.verb import Nothing, Stream
from tests.envctl.homes.making import Bucket, Made, make, save
from tests.envctl.world import World, make_world

FIRST = make({"home/alice/notes.txt": b"first " * 20, "home/alice/100%": b"percent", "home/alice/src/a.py": b"print()"})
SECOND = make({"home/alice/notes.txt": b"second", "home/alice/100%": b"percent", "home/alice/src/b.py": b"pass"})


@dataclass
class Site:
    world: World
    bucket: Bucket
    environment: Environment

    @property
    def alice(self) -> Caller:
        return self.world.caller("alice")

    def save(self, made: Made, at: float, environment: Environment | None = None) -> None:
        of = environment or self.environment
        snapshot = save(self.world.context.homes, made, environment_id=of.id, at=at)
        with self.world.database.write() as session:
            remember(session, of.id, [snapshot])
            session.get_one(Environment, of.id).last_backup_at = snapshot.at

    def audit(self, verb: str) -> list[tuple[str, str]]:
        with self.world.database.read() as session:
            return [(row.actor, row.outcome) for row in session.scalars(select(AuditRow).where(AuditRow.verb == verb))]


@pytest.fixture
def site(tmp_path: Path, database_url: str) -> Iterator[Site]:
    world = make_world(tmp_path, database_url=database_url)
    bucket = Bucket(clock=world.clock)
    world.context = replace(world.context, homes=bucket.store())
    environment = world.add_environment("alice", "work", world.add_template(), generation=1)
    world.context.homes.fence(environment.id, 1)
    with world.database.write() as session:
        session.add(
            Guest(
                environment_id=environment.id,
                generation=1,
                machine_uuid="",
                seed_expires_at=0.0,
                public_key="aa" * 32,
                restored_at=1.0,
            )
        )
    made = Site(world, bucket, environment)
    made.save(FIRST, 1.0)
    world.clock.now += 300
    made.save(SECOND, 2.0)
    yield made
    world.context.homes.close()
    world.close()


def test_backups_are_listed_shown_browsed_and_compared(site: Site) -> None:
    context, alice = site.world.context, site.alice
    site.world.clock.now += 60
    found = backups.backup_list(context, alice, asked.ListBackups(environment="work"))
    assert [one.number for one in found.backups] == [2, 1]
    assert (found.total, found.next_before, found.rpo_s) == (2, None, 60.0)
    page = backups.backup_list(context, alice, asked.ListBackups(environment="work", limit=1))
    assert ([one.number for one in page.backups], page.next_before) == ([2], 2)
    shown = backups.backup_show(context, alice, asked.OneBackup(environment="work", number=1))
    assert (shown.previous, shown.next, shown.directories) == (None, 2, ["home"])
    folder = backups.backup_browse(
        context, alice, asked.BrowseBackup(environment="work", number=1, path="/home/alice/")
    )
    assert [(one.name, one.type) for one in folder.entries] == [
        ("100%25", "file"),
        ("notes.txt", "file"),
        ("src", "folder"),
    ]
    assert (folder.path, folder.parents, folder.entries[0].mode) == ("home/alice", ["", "home"], "-rw-r--r--")
    changes = backups.backup_diff(context, alice, asked.DiffBackups(environment="work", number=2))
    assert changes.older == 1
    assert [(one.what, one.path) for one in changes.changes] == [
        ("changed", "home/alice/notes.txt"),
        ("removed", "home/alice/src/a.py"),
        ("added", "home/alice/src/b.py"),
    ]
    first = backups.backup_diff(context, alice, asked.DiffBackups(environment="work", number=1))
    assert (first.older, {one.what for one in first.changes}) == (0, {"added"})


def test_files_and_folders_are_taken_out_and_that_is_in_the_audit(site: Site) -> None:
    context, alice = site.world.context, site.alice
    one = backups.backup_get(context, alice, asked.GetFile(environment="work", number=1, path="home/alice/notes.txt"))
    assert (b"".join(one.pieces), one.filename, one.size) == (b"first " * 20, "notes.txt", 120)
    part = asked.GetFile(environment="work", number=1, path="/home/alice/notes.txt", offset=6, length=5)
    assert b"".join(backups.backup_get(context, alice, part).pieces) == b"first"
    odd = asked.GetFile(environment="work", number=1, path="home/alice/100%25")
    assert b"".join(backups.backup_get(context, alice, odd).pieces) == b"percent"
    archive = backups.backup_zip(context, alice, asked.GetArchive(environment="work", number=2, path="home/alice"))
    assert archive.filename == "alice-2.zip"
    with zipfile.ZipFile(io.BytesIO(b"".join(archive.pieces))) as opened:
        assert opened.read("alice/src/b.py") == b"pass"
    assert site.audit("backup.get") == [("alice", "ok")] * 3
    assert site.audit("backup.zip") == [("alice", "ok")]


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "home/../../x", "%2e%2e/x", "home//x", "home/alice/%00", "a" * 300]
)
def test_a_path_that_no_backup_can_hold_is_invalid(site: Site, path: str) -> None:
    context, alice = site.world.context, site.alice
    where: dict[str, Any] = {"environment": "work", "number": 1, "path": path}
    for act in (
        lambda: backups.backup_get(context, alice, asked.GetFile(**where)),
        lambda: backups.backup_zip(context, alice, asked.GetArchive(**where)),
        lambda: backups.backup_browse(context, alice, asked.BrowseBackup(**where)),
        lambda: backups.backup_diff(context, alice, asked.DiffBackups(**where)),
        lambda: backups.backup_restore(context, alice, asked.RestoreBackup(environment="work", number=1, paths=[path])),
        lambda: backups.backup_restore(context, alice, asked.RestoreBackup(environment="work", number=1, into=path)),
    ):
        with pytest.raises(Invalid):
            act()


def test_what_belongs_to_somebody_else_is_not_there(site: Site) -> None:
    context = site.world.context
    one: dict[str, Any] = {"environment": site.environment.id, "number": 1}
    acts: list[Callable[[Caller], object]] = [
        lambda who: backups.backup_list(context, who, asked.ListBackups(environment=site.environment.id)),
        lambda who: backups.backup_show(context, who, asked.OneBackup(**one)),
        lambda who: backups.backup_browse(context, who, asked.BrowseBackup(**one)),
        lambda who: backups.backup_diff(context, who, asked.DiffBackups(**one)),
        lambda who: backups.backup_get(context, who, asked.GetFile(**one, path="home/alice/notes.txt")),
        lambda who: backups.backup_zip(context, who, asked.GetArchive(**one)),
        lambda who: backups.backup_pin(context, who, asked.PinBackup(**one)),
        lambda who: backups.backup_unpin(context, who, asked.OneBackup(**one)),
        lambda who: backups.backup_now(context, who, asked.OneHome(environment=site.environment.id)),
        lambda who: backups.backup_restore(context, who, asked.RestoreBackup(**one)),
    ]
    messages = set()
    for act in acts:
        with pytest.raises(NoSuchThing) as refused:
            act(site.world.caller("bob"))
        messages.add(str(refused.value))
    assert messages == {str(refused.value)}
    # Somebody else's home cannot be restored from, either.
    bobs = site.world.add_environment("bob", "bobs", site.world.add_template("other"), generation=1)
    site.world.context.homes.fence(bobs.id, 1)
    site.save(FIRST, 1.0, bobs)
    with pytest.raises(NoSuchThing):
        backups.backup_restore(context, site.alice, asked.RestoreBackup(environment="work", number=1, source=bobs.id))
    for act in acts:
        act(site.world.caller("ops"))
    with pytest.raises(Forbidden):
        backups.backup_health(context, site.alice, Nothing())
    reading = site.world.caller("alice", scopes=frozenset({"backup:read"}))
    for act in acts[:6]:
        act(reading)
    for act in acts[6:]:
        with pytest.raises(Forbidden):
            act(reading)


def test_a_restore_is_asked_of_the_machine_once(site: Site) -> None:
    context, alice = site.world.context, site.alice
    wanted = asked.RestoreBackup(environment="work", number=1, paths=["home/alice/100%25"], into="home/alice/back")
    answer = backups.backup_restore(context, alice, wanted)
    with pytest.raises(Refused, match="under way"):
        backups.backup_restore(context, alice, wanted)
    me = Identity(site.environment.id, 1)
    (told,) = take_commands(context, me)
    assert told["kind"] == "restore"
    assert told["parameters"] == {
        "number": 1,
        "paths": [base64.b64encode(b"home/alice/100%").decode()],
        "into": "/home/alice/back",
        "trees": list(FIRST.trees),
    }
    progress = asked.OneCommand(environment="work", command=answer.command)
    assert backups.backup_progress(context, alice, progress).state == "taken"
    answer_command(context, me, answer.command, CommandAnswer(ok=False, answer={"message": "the disk is full"}))
    done = backups.backup_progress(context, alice, progress)
    assert (done.state, done.message) == ("failed", "the disk is full")
    with pytest.raises(NoSuchThing):
        backups.backup_restore(context, alice, asked.RestoreBackup(environment="work", number=7))
    assert [outcome for _, outcome in site.audit("backup.restore")] == ["ok", "refused", "not-found"]


def test_a_backup_now_is_one_however_often_it_is_asked_for(site: Site) -> None:
    context, alice = site.world.context, site.alice
    first = backups.backup_now(context, alice, asked.OneHome(environment="work"))
    assert backups.backup_now(context, alice, asked.OneHome(environment="work")).command == first.command
    with site.world.database.write() as session:
        session.get_one(Environment, site.environment.id).state = EnvironmentState.STOPPED
    with pytest.raises(Refused, match="stopped"):
        backups.backup_now(context, alice, asked.OneHome(environment="work"))


def test_pins_are_in_the_bucket_and_in_the_row(site: Site) -> None:
    context, alice = site.world.context, site.alice
    one: dict[str, Any] = {"environment": "work", "number": 1}
    assert backups.backup_pin(context, alice, asked.PinBackup(**one, note="thesis")).pinned
    assert context.homes.snapshot(site.environment.id, 1).note == "thesis"
    listed = backups.backup_list(context, alice, asked.ListBackups(environment="work", pinned=True))
    assert ([view.number for view in listed.backups], listed.pinned) == ([1], 1)
    assert not backups.backup_unpin(context, alice, asked.OneBackup(**one)).pinned
    assert not context.homes.snapshot(site.environment.id, 1).pinned
    with pytest.raises(NoSuchThing):
        backups.backup_pin(context, alice, asked.PinBackup(environment="work", number=9))


def test_health_shows_the_worst_first(site: Site) -> None:
    context, world = site.world.context, site.world
    template = site.world.add_template("more")
    world.add_environment("bob", "never", template)
    world.add_environment("bob", "broken", template, last_backup_at=world.clock.time(), last_backup_error="full")
    world.add_environment("bob", "quiet", template, state=EnvironmentState.STOPPED)
    world.clock.now += 1000
    world.add_environment("alice", "fresh", template, last_backup_at=world.clock.time())
    found = backups.backup_health(context, world.caller("ops"), Nothing())
    assert [(one.environment_name, one.health) for one in found.environments] == [
        ("broken", "failing"),
        ("never", "none"),
        ("work", "late"),
        ("fresh", "good"),
        ("quiet", "off"),
    ]
    assert (found.good, found.late, found.failing, found.none, found.off) == (1, 1, 1, 1, 1)
    assert found.environments[2].backups == 2


def test_upkeep_thins_the_home_and_brings_its_rows_in_line(site: Site) -> None:
    context, home = site.world.context, site.environment.id
    site.world.clock.now += 300
    site.save(FIRST, 3.0)
    requests.ask(context, home, "restore", {"number": 1, "paths": None, "into": "place"})
    with site.world.database.write() as session:
        # A console that died after a commit, and one whose database was put back.
        session.delete(session.get_one(Backup, (home, 3)))
        remember(session, home, [replace(context.homes.snapshot(home, 1), number=2, pinned=True)])
        session.get_one(Environment, home).last_backup_number = 2
    nothing = Policy(0, 0, 0, 0)
    site.world.clock.now += 1
    kept = upkeep(context, home, nothing)
    assert kept.pruned == (2,)
    with site.world.database.read() as session:
        rows = session.scalars(select(Backup).order_by(Backup.number)).all()
        assert [row.number for row in rows] == [1, 3]
        environment = session.get_one(Environment, home)
        assert environment.last_backup_number == 3
        assert environment.stored_bytes == context.homes.usage(home).bytes == kept.usage.bytes
    with site.world.database.write() as session:
        for command in session.scalars(select(GuestCommand)):
            command.ended_at, command.ok = site.world.clock.time(), True
    assert upkeep(context, home, nothing).pruned == (1,)
    # A new environment is being made from backup 3 of this one; it stays as long as that goes on.
    made = site.world.add_environment(
        "alice", "copy", site.world.add_template("t2"), source_environment_id=home, source_snapshot=3, generation=1
    )
    site.save(SECOND, 4.0)
    site.world.clock.now += 1
    assert upkeep(context, home, nothing).pruned == ()
    with site.world.database.write() as session:
        session.add(Guest(environment_id=made.id, generation=1, machine_uuid="", seed_expires_at=0.0, restored_at=1.0))
    assert upkeep(context, home, nothing).pruned == (3,)


def test_every_verb_of_backups_is_in_the_table_once() -> None:
    names = [verb.name for verb in backups.VERBS]
    assert len(names) == len(set(names))
    for verb in backups.VERBS:
        fields = set(verb.request.model_fields)
        assert {part[1:-1] for part in verb.path.split("/") if part.startswith("{")} <= fields
        assert verb.scope == ("backup:read" if verb.method == "GET" else "backup:write")
    assert issubclass(EnvctlError, Exception)
    assert {verb.answer for verb in backups.VERBS if verb.name in ("backup.get", "backup.zip")} == {Stream}
