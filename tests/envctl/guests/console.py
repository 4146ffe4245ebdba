"""A console for real guests: a database, a bucket in a folder, the guests' door on loopback, a runner, QEMU on this host.

Guests find it at 10.0.2.2, where QEMU's user network has this host's loopback. All of it runs in threads of the test's process.
"""

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from sqlalchemy import select

from envctl.agent import install
from envctl.calling import Context
from envctl.database.models import Environment, Guest, JobLine, Template
from envctl.drivers.port import MachineRef
from envctl.drivers.qemu.driver import QemuDriver
from envctl.homes import requests as guest_requests
from envctl.homes.agent_file import agent_file
from envctl.homes.documents import Snapshot
from envctl.homes.opening import open_homes
from envctl.homes.requests import Answered
from envctl.provision import requests
from envctl.provision.runner import Runner
from envctl.states import OVER, EnvironmentState, JobKind, JobState
from envctl.web.guest import router
from s3core.clock import SystemClock
from s3core.settings import EnvctlDriverSettings
from tests.envctl.guests.inside import Inside
from tests.envctl.world import World, make_world
from tests.guest.envctl_image import KERNEL_ARGUMENTS, LOGIN_USER, TemplateImage, with_files
from tests.servers.processes import free_port

HOST = "10.0.2.2"
_Answer = TypeVar("_Answer")


@dataclass
class Console:
    world: World
    driver: QemuDriver
    template: Template
    folder: Path
    runner_loop: asyncio.AbstractEventLoop

    @property
    def context(self) -> Context:
        return self.world.context

    def call(self, coroutine: Awaitable[_Answer], seconds: float = 120.0) -> _Answer:
        """A driver's answer, asked on the runner's loop."""

        async def awaited() -> _Answer:
            return await coroutine

        return asyncio.run_coroutine_threadsafe(awaited(), self.runner_loop).result(seconds)

    def make(self, name: str, **columns: Any) -> Environment:
        """An environment as `env.create` leaves it, its job queued and done."""
        environment = self.world.add_environment(
            "alice", name, self.template, EnvironmentState.REQUESTED, running=False, **columns
        )
        return self.do(environment, JobKind.CREATE)

    def do(self, environment: Environment, kind: JobKind, seconds: float = 900.0, **parameters: object) -> Environment:
        """A job from its beginning to its end. AssertionError, with the environment's log, unless it succeeds."""
        with self.context.database.write() as session:
            row = session.get_one(Environment, environment.id)
            job = requests.begin(session, self.context, row, kind, "alice", parameters)
        self.context.wake()
        give_up = time.monotonic() + seconds
        while True:
            with self.context.database.read() as session:
                now = requests.newest_job(session, environment.id)
            assert now is not None
            assert now.id == job.id
            if now.state in OVER:
                break
            assert time.monotonic() < give_up, f"{kind} takes too long:\n{self.log(environment)}"
            time.sleep(0.2)
        assert now.state == JobState.SUCCEEDED, f"{now.error}\n{self.log(environment)}"
        return self.get(environment)

    def get(self, environment: Environment) -> Environment:
        with self.context.database.read() as session:
            return session.get_one(Environment, environment.id)

    def guest(self, environment: Environment) -> Guest:
        with self.context.database.read() as session:
            return session.get_one(Guest, (environment.id, self.get(environment).generation))

    def log(self, environment: Environment) -> str:
        with self.context.database.read() as session:
            lines = session.scalars(
                select(JobLine).where(JobLine.environment_id == environment.id).order_by(JobLine.id)
            )
            return "\n".join(line.text for line in lines)

    def machine(self, environment: Environment) -> MachineRef:
        machine = self.get(environment).machine
        assert machine is not None
        return MachineRef(machine)

    def inside(self, environment: Environment) -> Inside:
        target = self.call(self.driver.console(self.machine(environment), "terminal"))
        inside = Inside(target.path)
        inside.wait_until_up()
        return inside

    def ask_backup(self, environment: Environment, kind: str = "asked") -> str:
        return guest_requests.ask(self.context, environment.id, "backup", {"kind": kind})

    def answer_of(self, command: str, seconds: float = 600.0) -> Answered:
        """How a command to the agent ended. AssertionError where it does not in time."""
        give_up = time.monotonic() + seconds
        while not (answered := guest_requests.answer_of(self.context, command)).over:
            assert time.monotonic() < give_up, f"the agent does not answer: {answered}"
            time.sleep(0.2)
        return answered

    def back_up(self, environment: Environment) -> Snapshot:
        """The newest snapshot, after a backup that was asked for now."""
        answered = self.answer_of(self.ask_backup(environment))
        assert answered.state == "done", answered.answer
        return self.newest(environment)

    def newest(self, environment: Environment) -> Snapshot:
        head = self.context.homes.head(environment.id)
        assert head is not None
        assert head.newest is not None, "there is no backup"
        return head.newest

    def objects(self, environment: Environment) -> set[str]:
        """Names of packs in the bucket."""
        return {path.name for path in (self.folder / "homes").rglob("packs/*") if environment.id in str(path)}


@contextmanager
def console(image: TemplateImage, *, agent_inside: bool = True) -> Iterator[Console]:
    """A backup is made only when somebody asks. `agent_inside` off: cloud-init of the image fetches it.

    A short folder, because names of sockets are."""
    folder = Path(tempfile.mkdtemp(prefix="envctl-"))
    (folder / "homes").mkdir()
    port = free_port()
    settings = EnvctlDriverSettings(kind="qemu", state_dir=str(folder / "machines"), accelerator="tcg")
    driver = QemuDriver("local", settings)
    world = make_world(
        folder / "state",
        drivers={"local": driver},
        homes=open_homes(f"file://{folder}/homes", secret=b"s" * 32),
        url="http://127.0.0.1:1",
        guest_url=f"http://{HOST}:{port}",
        backup_interval_s=3600.0,
        boot_s=900.0,
        restore_s=900.0,
        shutdown_s=600.0,
    )
    runners: list[Runner] = []

    def wake() -> None:
        for runner in runners:
            runner.wake()

    world.context = replace(world.context, clock=SystemClock(), wake=wake)
    template_image = make_template(image, folder) if agent_inside else image.root
    template = world.add_template(
        "guest",
        driver="local",
        source=str(template_image),
        options=template_options(image),
        seed="agent" if agent_inside else "cloud-init",
        login_user=LOGIN_USER if agent_inside else "ada",
        memory_mib=512,
        disk_gib=4,
    )
    app = FastAPI()
    app.include_router(router(lambda: world.context))
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off", ws="none")
    )
    server_thread = threading.Thread(target=server.run, name="door", daemon=True)
    server_thread.start()
    loop = asyncio.new_event_loop()

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = Runner(world.context, "worker")
        runners.append(runner)
        loop.run_until_complete(runner.run())

    worker = threading.Thread(target=work, name="worker", daemon=True)
    worker.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield Console(world, driver, template, folder, loop)
    finally:
        for runner in runners:
            runner.stop()
        server.should_exit = True
        worker.join(30)
        server_thread.join(30)
        loop.run_until_complete(_end_machines(driver))
        loop.close()
        world.close()
        shutil.rmtree(folder)


def make_template(image: TemplateImage, folder: Path) -> Path:
    """An image with the agent of this working tree inside."""
    made = folder / "template.img"
    agent = {install.AGENT_FILE: (agent_file(), 0o755)}
    units = {path: (content, 0o644) for path, content in install.files().items()}
    with_files(image, made, agent | units, install.links())
    made.chmod(0o400)
    return made


def template_options(image: TemplateImage) -> dict[str, str]:
    return {"kernel": str(image.kernel), "append": KERNEL_ARGUMENTS, "disk": "nvme"}


async def _end_machines(driver: QemuDriver) -> None:
    for found in await driver.inventory():
        await driver.destroy(found.machine)


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)
