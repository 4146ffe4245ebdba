"""The whole console on a cluster that is not there: machines whose agents are real, homes that come back.

The console serves from a thread, as `s3-envctl serve` does; verbs are asked through a context of their own on the same
database.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from envctl.accounts import people
from envctl.calling import Caller, Context
from envctl.database.models import User
from envctl.fake_pve.cluster import POOL, TEMPLATE, FakePve, small_cluster
from envctl.fake_pve.guest import SimulatedGuests
from envctl.fake_pve.server import serve as serve_fake
from envctl.fake_pve.server import write_token
from envctl.serving import open_context, serve
from envctl.verbs import backups, environments
from envctl.verbs.backup_models import BrowseBackup, GetFile, ListBackups, OneHome, RestoreBackup
from envctl.verbs.environment_models import (
    CreateEnvironment,
    DeleteEnvironment,
    EnvironmentView,
    OneEnvironment,
    ResetEnvironment,
    StopEnvironment,
)
from envctl.verbs.template_models import AddTemplate
from envctl.verbs.templates import template_add
from envctl.verbs.verb import Request
from s3core.settings import Config
from tests.envctl.world import CHEAP, PASSWORD

PATIENCE_S = 120.0
"""For one job on a busy machine; it takes a second or two on a quiet one."""
HOME = "home/user"


Asked = TypeVar("Asked", bound=Request)


def ask(model: type[Asked], **fields: object) -> Asked:
    return model.model_validate(fields)


@dataclass
class Installation:
    context: Context
    fake: FakePve
    guests: SimulatedGuests
    alice: Caller
    root: Caller

    def environment(self, name: str = "work") -> EnvironmentView:
        return environments.show(self.context, self.alice, ask(OneEnvironment, environment=name))

    def wait(self, what: str, reached: Callable[[EnvironmentView], bool]) -> EnvironmentView:
        end = time.monotonic() + PATIENCE_S
        while not reached(seen := self.environment()):
            assert seen.state != "failed", f"{seen.failed_step}: {seen.failed_reason}"
            assert time.monotonic() < end, f"{what}: still {seen.state}; the machine says {self.screens()}"
            time.sleep(0.1)
        return seen

    def wait_state(self, state: str) -> EnvironmentView:
        return self.wait(f"{state} is awaited", lambda seen: seen.state == state)

    def wait_backup(self, after: int) -> int:
        seen = self.wait("a backup is awaited", lambda seen: (seen.last_backup_number or 0) > after)
        assert seen.last_backup_number is not None
        return seen.last_backup_number

    def screens(self) -> list[list[str]]:
        return [machine.guest.lines() for machine in self.fake.machines.values() if machine.guest is not None]

    def home(self) -> Path:
        (vmid,) = [machine.vmid for machine in self.fake.machines.values() if machine.pool == POOL]
        return self.guests.guest(vmid).root / HOME


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[Installation]:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    guests = SimulatedGuests(tmp_path / "disks")
    fake = small_cluster(on_start=guests)
    with serve_fake(fake) as served:
        config = Config.model_validate(
            {
                "envctl": {
                    "listen": f"127.0.0.1:{port}",
                    "state_dir": str(tmp_path / "state"),
                    "homes": f"file://{tmp_path}/homes",
                    "backup_interval_s": 3600,
                    "driver": {"main": {"url": served.url, "token": write_token(tmp_path / "token"), "pool": POOL}},
                }
            }
        )
        (tmp_path / "state").mkdir()
        (tmp_path / "homes").mkdir()
        started = threading.Event()
        stops: list[Callable[[], None]] = []

        def ready(url: str, stop: Callable[[], None]) -> None:
            stops.append(stop)
            started.set()

        thread = threading.Thread(target=serve, args=(config,), kwargs={"ready": ready}, name="console")
        thread.start()
        try:
            assert started.wait(60), "the console did not start"
            with open_context(config) as context:
                with context.database.write() as session:
                    for name, role in (("alice", "user"), ("root", "admin")):
                        user = User(id=context.new_id(), name=name, role=role, created_at=context.now())
                        user.password_hash = CHEAP.hash(PASSWORD)
                        session.add(user)
                with context.database.read() as session:
                    alice = people.caller_of(
                        session, people.find_user(session, "alice"), "api", address="", scopes=None
                    )
                    root = people.caller_of(session, people.find_user(session, "root"), "api", address="", scopes=None)
                yield Installation(context, fake, guests, alice, root)
        finally:
            guests.close()
            for stop in stops:
                stop()
            thread.join(60)
    assert not thread.is_alive()
    assert fake.violations == []


def tree(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_home_outlives_its_machine(installation: Installation) -> None:
    context, alice, fake = installation.context, installation.alice, installation.fake
    added = template_add(
        context, installation.root, ask(AddTemplate, name="debian", driver="main", source=str(TEMPLATE), cores_max=4)
    )
    assert added.usable, added.findings
    environments.create(context, alice, ask(CreateEnvironment, name="work", template="debian"))
    first = installation.wait_state("ready")
    assert first.vmid == 90_000
    backups.backup_now(context, alice, ask(OneHome, environment="work"))
    number = installation.wait_backup(0)

    home = installation.home()
    before = tree(home)
    assert len(before) > 10
    listing = backups.backup_browse(context, alice, ask(BrowseBackup, environment="work", number=number, path=HOME))
    assert {"Documents", "Pictures", "src", "latest"} <= {file.name for file in listing.entries}
    path = f"{HOME}/Documents/notes.md"
    stream = backups.backup_get(context, alice, ask(GetFile, environment="work", number=number, path=path))
    assert b"".join(stream.pieces) == before["Documents/notes.md"]

    (home / "Documents/notes.md").write_text("overwritten by mistake\n")
    (home / "Documents/thesis/chapter-2.tex").unlink()
    asked = ask(RestoreBackup, environment="work", number=number, paths=[path, f"{HOME}/Documents/thesis"])
    backups.backup_restore(context, alice, asked)
    end = time.monotonic() + PATIENCE_S
    while tree(home) != before:
        assert time.monotonic() < end, "the files did not come back"
        time.sleep(0.1)

    (home / "Documents/last-minute.txt").write_text("written just before it was stopped\n")
    environments.stop(context, alice, ask(StopEnvironment, environment="work"))
    installation.wait_state("stopped")
    assert not fake.machines[90_000].running
    environments.start(context, alice, ask(OneEnvironment, environment="work"))
    installation.wait_state("ready")
    installation.wait("it runs", lambda seen: seen.running)

    environments.reset(context, alice, ask(ResetEnvironment, environment="work"))
    installation.wait("the new machine", lambda seen: seen.state == "ready" and seen.generation > first.generation)
    (after,) = [machine for machine in fake.machines.values() if machine.pool == POOL]
    fresh = installation.home()
    assert tree(fresh) == {**before, "Documents/last-minute.txt": b"written just before it was stopped\n"}
    assert (fresh / "latest").readlink() == Path("Documents/thesis")
    assert (fresh / "src/analysis/main.py").stat().st_mode & 0o777 == 0o755

    environments.delete(context, alice, ask(DeleteEnvironment, environment=after.config["tags"].removeprefix("env-")))
    identifier = first.id
    end = time.monotonic() + PATIENCE_S
    while environments.show(context, alice, ask(OneEnvironment, environment=identifier)).state != "deleted":
        assert time.monotonic() < end, "it is not deleted"
        time.sleep(0.1)
    assert not [machine for machine in fake.machines.values() if machine.pool == POOL], "no machine is left behind"
    environments.undelete(context, alice, ask(OneEnvironment, environment=identifier))
    installation.wait_state("ready")
    assert tree(installation.home())["Documents/last-minute.txt"] == b"written just before it was stopped\n"
    found = backups.backup_list(context, alice, ask(ListBackups, environment="work"))
    assert found.total >= 2
