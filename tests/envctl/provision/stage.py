"""A console with a runner, a scripted hypervisor and simulated guests, all at test speed."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select

from envctl.calling import Context
from envctl.database.models import Environment, Guest, Job, JobLine
from envctl.homes.opening import open_homes
from envctl.provision import requests
from envctl.provision.runner import Runner
from envctl.provision.work import Pace
from envctl.states import EnvironmentState, JobKind
from s3core.clock import SystemClock
from tests.envctl.provision.scripted_driver import ScriptedDriver
from tests.envctl.provision.simulated_guests import SimulatedGuests
from tests.envctl.world import World, make_world

FAST = Pace(
    lease_s=60.0,
    heartbeat_s=0.2,
    queue_poll_s=0.02,
    task_poll_s=0.01,
    guest_poll_s=0.01,
    settle_s=0.1,
    call_backoff_s=0.01,
    call_backoff_max_s=0.02,
    busy_s=60.0,
    task_s=60.0,
    clone_s=60.0,
    command_taken_s=60.0,
    agent_silent_s=60.0,
    tell_s=0.2,
)
"""Asks often and gives up late: no test fails because the machine is slow."""


@dataclass
class Stage:
    world: World
    driver: ScriptedDriver
    guests: SimulatedGuests
    pace: Pace = FAST
    _names: Iterator[int] = field(default_factory=itertools.count)

    @property
    def context(self) -> Context:
        return self.world.context

    def set(self, **settings: Any) -> None:
        changed = self.context.settings.model_copy(update=settings)
        self.world.context = replace(self.context, settings=changed)

    def runner(self) -> Runner:
        return Runner(self.context, f"worker-{next(self._names)}", pace=self.pace)

    def work(self) -> None:
        """All jobs there are, to their ends."""
        asyncio.run(self.runner().run_until_idle())

    def make(self, name: str = "one", **columns: Any) -> Environment:
        """An environment as `env.create` leaves it, with its job queued."""
        environment = self.world.add_environment(
            "alice", name, self.template, EnvironmentState.REQUESTED, running=False, **columns
        )
        self.begin(environment, JobKind.CREATE)
        return environment

    def ready(self, name: str = "one", **columns: Any) -> Environment:
        environment = self.make(name, **columns)
        self.work()
        found = self.get(environment)
        assert found.state == EnvironmentState.READY, (found.failed_step, found.failed_reason)
        return found

    def begin(self, environment: Environment, kind: JobKind, **parameters: object) -> Job:
        with self.context.database.write() as session:
            row = session.get_one(Environment, environment.id)
            return requests.begin(session, self.context, row, kind, "alice", parameters)

    def do(self, environment: Environment, kind: JobKind, **parameters: object) -> Environment:
        self.begin(environment, kind, **parameters)
        self.work()
        return self.get(environment)

    def retry(self, environment: Environment, **parameters: object) -> Environment:
        with self.context.database.write() as session:
            job = requests.newest_job(session, environment.id)
            assert job is not None
            requests.retry(session, self.context, job, "alice", parameters)
        self.work()
        return self.get(environment)

    def get(self, environment: Environment) -> Environment:
        with self.context.database.read() as session:
            return session.get_one(Environment, environment.id)

    def seen_at(self, environment: Environment) -> float:
        """When the agent of its machine said anything last."""
        with self.context.database.read() as session:
            return session.get_one(Guest, (environment.id, environment.generation)).seen_at or 0.0

    def job(self, environment: Environment) -> Job:
        with self.context.database.read() as session:
            job = requests.newest_job(session, environment.id)
            assert job is not None
            return job

    def log(self, environment: Environment) -> str:
        with self.context.database.read() as session:
            lines = session.scalars(
                select(JobLine).where(JobLine.environment_id == environment.id).order_by(JobLine.id)
            )
            return "\n".join(line.text for line in lines)

    def __post_init__(self) -> None:
        self.template = self.world.add_template()


@contextmanager
def stage(directory: Path, *, database_url: str = "", **settings: Any) -> Iterator[Stage]:
    driver = ScriptedDriver(directory / "hypervisor.json")
    (directory / "homes").mkdir(parents=True, exist_ok=True)
    world = make_world(
        directory,
        database_url=database_url,
        drivers={"fake": driver},
        homes=open_homes(f"file://{directory}/homes", secret=b"s" * 32),
        **({"boot_s": 60.0, "restore_s": 60.0, "shutdown_s": 60.0} | settings),
    )
    # Leases and waits need a clock that goes on by itself.
    world.context = replace(world.context, clock=SystemClock())

    def running() -> dict[str, str]:
        return {one["uuid"]: one["seed_url"] for one in driver.machines().values() if one["running"]}

    with SimulatedGuests(world.database, running) as guests:
        yield Stage(world, driver, guests)
    world.close()
