"""kill -9 of a worker at every moment of every step of every job: the next one ends it, and nothing is left over or made twice.

The worker is a process, the hypervisor is the fake Proxmox VE over HTTP, and the database a file. An environment goes round:
made, stopped, started, restarted, resized, reset, deleted, undeleted, deleted, purged. In each job a worker dies at one moment,
the next one at a later one, and so on until nobody is told to die any more. Twice: who dies between act and row leaves another
state than who dies after it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from envctl.database.models import Environment, Guest, Job, JobStep, Vmid
from envctl.drivers.pve.marks import smbios_of
from envctl.fake_pve.cluster import TEMPLATE, Durations, FakePve, small_cluster
from envctl.fake_pve.server import serve, write_token
from envctl.homes.opening import open_homes
from envctl.identifiers import tag_of
from envctl.provision import requests
from envctl.provision.points import MOMENTS
from envctl.states import STEPS, EnvironmentState, JobKind, JobState, StepName
from s3core.clock import SystemClock
from tests.envctl.provision.simulated_guests import SimulatedGuests
from tests.envctl.world import World, make_world

ROUND = (
    JobKind.CREATE,
    JobKind.STOP,
    JobKind.START,
    JobKind.RESTART,
    JobKind.RESIZE,
    JobKind.RESET,
    JobKind.DELETE,
    JobKind.UNDELETE,
    JobKind.PURGE,
)
TASKS = frozenset({StepName.CLONE, StepName.START, StepName.SHUTDOWN, StepName.DESTROY, StepName.RESIZE})
"""Steps that wait for a task of the hypervisor."""
OURS = range(90_000, 99_000)
AFTER = {
    JobKind.STOP: EnvironmentState.STOPPED,
    JobKind.DELETE: EnvironmentState.DELETED,
    JobKind.PURGE: EnvironmentState.PURGED,
}


def never_reached(kind: JobKind, step: StepName, moment: str) -> bool:
    """Moments that this job has not: a machine that has its home waits for none, and a purge has no machine to destroy."""
    if step is StepName.RESTORE and kind in (JobKind.START, JobKind.RESTART):
        return moment == "during-wait"
    if kind is JobKind.PURGE and step is StepName.DESTROY:
        return moment != "after-verify"
    return False


def all_points(kind: JobKind) -> list[str]:
    return [
        f"{kind}.{step}.{moment}" for step in STEPS[kind] for moment in MOMENTS if not never_reached(kind, step, moment)
    ]


@dataclass
class Hands:
    """The fake's clock: it stands while a task must not end yet."""

    held_at: float | None = None

    def __call__(self) -> float:
        return time.time() if self.held_at is None else self.held_at

    def hold(self, on: bool) -> None:
        self.held_at = (self.held_at or time.time()) if on else None


@dataclass
class Site:
    world: World
    fake: FakePve
    url: str
    hands: Hands
    guests: SimulatedGuests
    worker: "subprocess.Popen[str]"
    template: Any
    kills: list[str] = field(default_factory=list)

    def run(self, die_at: list[str]) -> str | None:
        """A worker's life; at which moment it was killed."""
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(json.dumps(die_at) + "\n")
        self.worker.stdin.flush()
        answer = self.worker.stdout.readline()
        assert answer, "the worker failed; see its traceback"
        died_at: str | None = json.loads(answer)
        return died_at

    def job(self, environment: Environment, kind: JobKind, die_at: list[str], **parameters: object) -> Environment:
        """The job, done by as many workers as there are moments to die at, and one."""
        context = self.world.context
        with context.database.write() as session:
            row = session.get_one(Environment, environment.id)
            requests.begin(session, context, row, kind, "alice", parameters)
        left = list(die_at)
        while True:
            self._hold(left)
            died_at = self.run(left)
            if died_at is None:
                break
            left.remove(died_at)
            self.kills.append(died_at)
            with self.fake.lock:
                assert len([vmid for vmid in self.fake.machines if vmid in OURS]) <= 1, died_at
            with context.database.write() as session:
                # As if its lease had run out by waiting.
                session.execute(update(Job).where(Job.state == JobState.RUNNING).values(lease_until=0.0))
        row = self.check(environment, kind)
        assert left == [], "never reached"
        return row

    def _hold(self, left: list[str]) -> None:
        """What must not be over before somebody has waited for it."""
        waits = {point.split(".")[1] for point in left if point.endswith(".during-wait")}
        self.guests.hold_boots = StepName.BOOT in waits
        self.guests.hold_restores = StepName.RESTORE in waits
        self.guests.hold_orders = StepName.BACKUP in waits
        next_step = left[0].split(".")[1] if left else ""
        self.hands.hold(next_step in TASKS and next_step in waits)

    def check(self, environment: Environment, kind: JobKind, *, alone: bool = True) -> Environment:
        with self.world.database.read() as session:
            row = session.get_one(Environment, environment.id)
            job = requests.newest_job(session, environment.id)
            assert job is not None
            numbers = {one.vmid for one in session.scalars(select(Vmid)) if one.environment_id == row.id}
            valid = session.scalars(
                select(Guest).where(Guest.environment_id == row.id, Guest.revoked_at.is_(None))
            ).all()
            open_steps = session.scalars(select(JobStep).where(JobStep.job_id == job.id, JobStep.state != "done")).all()
        said = f"{self.kills[-1:]}: {row.state} {row.failed_step} {row.failed_reason}"
        assert (job.kind, job.state) == (kind, JobState.SUCCEEDED), said
        assert row.state == AFTER.get(kind, EnvironmentState.READY), said
        assert open_steps == [], said
        with self.fake.lock:
            self.fake.advance()
            there = {vmid: one for vmid, one in self.fake.machines.items() if vmid in OURS}
            assert [task.upid for task in self.fake.tasks.values() if task.running] == [], said
            if kind in (JobKind.DELETE, JobKind.PURGE):
                assert (there, numbers, valid) == ({}, set(), []), said
                return row
            # No orphan and no double: the one machine there is.
            assert row.vmid is not None, said
            assert numbers == {row.vmid}, said
            assert set(there) == numbers or not alone, said
            assert there[row.vmid].running is row.running is (row.state == EnvironmentState.READY), said
            assert tag_of(row.id) in there[row.vmid].config["tags"], said
            assert there[row.vmid].config["description"].strip().endswith(f"envctl:{row.id}:{row.generation}"), said
        assert [one.generation for one in valid] == [row.generation], said
        head = self.world.context.homes.head(row.id)
        assert head is not None
        assert head.generation == row.generation, said
        return row


def begin_worker(world: World, directory: Path, url: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.envctl.provision.mortal_worker",
            world.database.url,
            str(directory),
            url,
            write_token(directory / "token"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end_worker(worker: "subprocess.Popen[str]") -> None:
    """With what it has forked."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait(10)


@contextmanager
def site(directory: Path) -> Iterator[Site]:
    directory.joinpath("homes").mkdir(parents=True)
    moment = 0.01
    hands = Hands()
    fake = small_cluster(
        now=hands,
        durations=Durations(clone=moment, start=moment, shutdown=moment, stop=moment, destroy=moment, resize=moment),
    )
    world = make_world(directory, homes=open_homes(f"file://{directory}/homes", secret=b"s" * 32))
    world.context = replace(world.context, clock=SystemClock())
    template = world.add_template(driver="pve", source=str(TEMPLATE), disk_gib=8)

    def running() -> dict[str, str]:
        with fake.lock:
            found = [smbios_of(one.config.get("smbios1", "")) for one in fake.machines.values() if one.running]
        return {uuid: serial.removeprefix("ds=nocloud;dsmode=net;s=") for uuid, serial in found}

    with serve(fake) as served, SimulatedGuests(world.database, running) as guests:
        worker = begin_worker(world, directory, served.url)
        try:
            yield Site(world, fake, served.url, hands, guests, worker, template)
        finally:
            end_worker(worker)
    assert fake.violations == []
    world.close()


assert set(MOMENTS) == {"before-act", "after-act", "after-row", "during-wait", "after-verify"}
PASSES = (("before-act", "after-act", "after-verify"), ("after-row", "during-wait", "after-verify"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("moments", PASSES, ids=["before", "after"])
def test_kill_at_every_moment_of_every_job(tmp_path: Path, moments: tuple[str, ...]) -> None:
    with site(tmp_path) as on:
        row = on.world.add_environment("alice", "one", on.template, EnvironmentState.REQUESTED, running=False)
        for kind in ROUND:
            if kind is JobKind.PURGE:
                row = on.job(row, JobKind.DELETE, [])
                with on.world.database.write() as session:
                    session.get_one(Environment, row.id).delete_after = 1.0
            die_at = [point for point in all_points(kind) if point.endswith(moments)]
            row = on.job(row, kind, die_at, **({"cores": 3} if kind is JobKind.RESIZE else {}))
        assert on.kills == [point for kind in ROUND for point in all_points(kind) if point.endswith(moments)]


def test_kill_between_each_act_and_its_row(tmp_path: Path) -> None:
    """The worst moment: the hypervisor was asked, and no row says so."""
    with site(tmp_path) as on:
        row = on.world.add_environment("alice", "one", on.template, EnvironmentState.REQUESTED, running=False)
        for kind in (JobKind.CREATE, JobKind.DELETE):
            row = on.job(row, kind, [point for point in all_points(kind) if point.endswith("after-act")])
        assert len(on.kills) == len(STEPS[JobKind.CREATE]) + len(STEPS[JobKind.DELETE])
