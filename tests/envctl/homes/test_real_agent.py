"""The agent that real machines run, over real HTTP, against the console's own doors: two machines of one home, one after the
other."""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI

from envctl.agent import enrolment
from envctl.agent.client import World as AgentWorld
from envctl.agent.errors import Fenced
from envctl.agent.places import Places
from envctl.agent.service import Service
from envctl.database.models import Environment, Guest
from envctl.homes import keys, requests
from envctl.homes.opening import open_homes
from envctl.homes.retention import Policy
from envctl.homes.upkeep import upkeep
from envctl.verbs import backup_models as asked
from envctl.verbs import backups
from envctl.web.guest import router
from tests.envctl.world import World, make_world
from tests.s3core.fakes import FakeClock
from tests.servers.processes import free_port

UUID = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


class Site:
    def __init__(self, world: World, address: str, environment: Environment, folder: Path) -> None:
        self.world, self.address, self.environment, self.folder = world, address, environment, folder

    def machine(self, generation: int) -> tuple[Path, Service]:
        """A new machine of the environment, seeded; its home and its agent."""
        folder = self.folder / f"machine{generation}"
        home = folder / "disk" / "home"
        home.mkdir(parents=True)
        (folder / "etc").mkdir()
        self.world.context.homes.fence(self.environment.id, generation)
        requests.revoke(self.world.context, self.environment.id, generation - 1)
        with self.world.database.write() as session:
            row = session.get_one(Environment, self.environment.id)
            row.generation = self.environment.generation = generation
        token, _ = requests.seed(self.world.context, self.environment, generation, UUID)
        (folder / "etc" / "seed.json").write_text(json.dumps({"console": self.address, "token": token}))
        base = os.fsencode(folder / "disk") + b"/"
        places = Places(etc=str(folder / "etc"), state=str(folder / "state"), run=str(folder / "run"), base=base)
        places.make()
        clock = self.world.clock
        return home, Service(places, AgentWorld(clock.time, clock.sleep, os.urandom), version="test")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    world = make_world(tmp_path / "console", url=address)
    # Files of the store carry the moments of this host.
    world.clock.now = time.time() - FakeClock(0.0).time()
    homes = open_homes(f"file://{tmp_path}/homes", secret=bytes(32), clock=world.clock)
    world.context = replace(world.context, homes=homes)
    monkeypatch.setattr(enrolment, "machine_uuid", lambda: UUID)
    app = FastAPI()
    app.include_router(router(lambda: world.context))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield Site(world, address, world.add_environment("alice", "work", world.add_template()), tmp_path)
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
    homes.close()
    world.close()


def test_a_home_outlives_its_machine_and_the_machine_is_fenced(site: Site) -> None:
    context, home_id = site.world.context, site.environment.id
    home, agent = site.machine(1)
    agent.restore()
    (home / "alice").mkdir()
    (home / "alice" / "thesis.txt").write_bytes(b"chapter one\n" * 5000)
    os.symlink("thesis.txt", home / "alice" / "link")
    assert agent.backup("timer").number == 1
    site.world.clock.now += 300
    unchanged = agent.backup("timer")
    assert (unchanged.number, unchanged.unchanged) == (1, True)
    (home / "alice" / "thesis.txt").write_bytes(b"chapter two\n" * 5000)
    assert agent.backup("final").number == 2

    alice = site.world.caller("alice")
    changes = backups.backup_diff(context, alice, asked.DiffBackups(environment="work", number=2))
    assert [(one.what, one.path) for one in changes.changes] == [("changed", "home/alice/thesis.txt")]
    old = backups.backup_get(context, alice, asked.GetFile(environment="work", number=1, path="home/alice/thesis.txt"))
    assert b"".join(old.pieces) == b"chapter one\n" * 5000

    rebuilt, second = site.machine(2)
    second.restore()
    assert (rebuilt / "alice" / "thesis.txt").read_bytes() == b"chapter two\n" * 5000
    assert os.readlink(rebuilt / "alice" / "link") == "thesis.txt"
    with site.world.database.read() as session:
        assert session.get_one(Guest, (home_id, 2)).restored_at is not None
    # The first machine wakes up: it has changed files, an old clock, and no home any more.
    (home / "alice" / "thesis.txt").write_bytes(b"lost")
    with pytest.raises(Fenced):
        agent.backup("timer")
    (rebuilt / "alice" / "new").write_bytes(b"after the rebuild")
    assert second.backup("timer").number == 3
    assert [one.number for one in context.homes.snapshots(home_id)] == [1, 2, 3]


def test_a_backup_goes_on_after_the_collector_took_what_a_broken_run_left(site: Site) -> None:
    context, home_id = site.world.context, site.environment.id
    home, agent = site.machine(1)
    agent.restore()
    (home / "a").write_bytes(os.urandom(300_000))
    first = agent.backup("timer").number
    orphan = "ab" * 32
    context.homes.objects.put(keys.content(home_id, keys.pack(orphan)), b"left behind")
    site.world.clock.now += 10 * 86400
    (home / "b").write_bytes(os.urandom(300_000))
    for _ in range(3):
        upkeep(context, home_id, Policy(0, 0, 0, 0))
        site.world.clock.now += 2 * 86400
    assert agent.backup("timer").number == (first or 0) + 1
    upkeep(context, home_id, Policy(0, 0, 0, 0))
    opened = context.homes.open_file(home_id, 2, b"home/a")
    assert b"".join(opened.pieces) == (home / "a").read_bytes()
    left = {entry.key.rpartition("/")[2] for entry in context.homes.objects.list(f"env/{home_id}/")}
    assert orphan not in left
