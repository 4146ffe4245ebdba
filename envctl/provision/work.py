"""A job while a worker does it: the step it is at, its lease, its log, and the ways a step asks hypervisors and waits.

One rule: look, act, record, wait, verify. `Work.make` is that order for everything a hypervisor does:

    a crash                         leaves                              is repaired by
    before the act                  a running step without task         the look of the next attempt finds nothing: it acts
    after the act, before the row   a machine or task that no row       the look finds the machine by tag or number, waits
                                    names                               until nothing locks it, and does not act again
    after the row                   the task's name in the row          the next attempt asks for that task
    during the wait                 the same                            the same
    after verify, before done       a running step                      the look finds what was wanted

A call whose answer was lost (`DriverBusy` without `nothing_done`) is treated as a crash at that place: look, for a while,
then act.

Every write checks the lease in its own transaction, and nothing is asked of a hypervisor when the lease could have run out: a
worker that was stopped for a minute finds its job taken, and touches nothing more (`Abandoned`).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.models import Environment, Guest, Job, JobLine, JobStep, Template, User
from envctl.drivers.port import DONE, EnvDriver, MachineFound, TaskRef
from envctl.errors import DriverBusy
from envctl.identifiers import tag_of
from envctl.provision.points import reached
from envctl.states import JobKind, JobState, StepName

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take and how often is asked. Seconds. The defaults are the product's."""

    lease_s: float = 30.0
    heartbeat_s: float = 10.0
    queue_poll_s: float = 2.0
    """How often jobs are looked for by themselves; `wake` looks at once."""
    task_poll_s: float = 1.0
    guest_poll_s: float = 1.0
    settle_s: float = 10.0
    """How long is looked after a call whose answer was lost, before it is made again."""
    call_backoff_s: float = 1.0
    call_backoff_max_s: float = 30.0
    busy_s: float = 600.0
    """How long one call or task is tried again while the hypervisor is busy."""
    task_s: float = 600.0
    """A configure, start, stop, destroy or resize."""
    clone_s: float = 3600.0
    command_taken_s: float = 90.0
    """An agent asks for commands every 25 s."""
    agent_silent_s: float = 300.0
    """A guest that is at work and says nothing for this long is given up."""
    tell_s: float = 30.0
    """How often the log says what is waited for."""
    jobs_at_once: int = 16
    calls_at_once: int = 8
    """Of one node."""


PACE: Final = Pace()


class Abandoned(Exception):
    """The lease is another worker's, or may be. Nothing more is done or written for this job here."""


class Cancelled(Exception):
    """A person asked to cancel, and this is a place to stop."""


class StepFailed(Exception):
    """The step ends the job. One line for a person, and what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(f"{reason} ({hint})" if hint else reason)


@dataclass(frozen=True, slots=True)
class Facts:
    """The rows that a step needs, as they are now."""

    environment: Environment
    template: Template
    owner: User
    guest: Guest | None
    """Of the environment's generation, unless it is revoked."""

    @property
    def restored(self) -> bool:
        """The machine has had the home, so people may have worked on it."""
        return self.guest is not None and self.guest.restored_at is not None

    @property
    def enrolled(self) -> bool:
        return self.guest is not None and self.guest.enrolled_at is not None


def facts(session: Session, environment_id: str) -> Facts:
    environment = session.get_one(Environment, environment_id)
    guest = session.get(Guest, (environment_id, environment.generation))
    return Facts(
        environment,
        session.get_one(Template, environment.template_id),
        session.get_one(User, environment.owner_id),
        guest if guest is not None and guest.revoked_at is None else None,
    )


class Work:
    """One worker's hold of one job. Used by the one asyncio task that runs it; `lost` and `cancel_asked` are set by its
    heartbeat, a task of the same loop."""

    def __init__(
        self,
        context: Context,
        pace: Pace,
        worker: str,
        job: Job,
        driver: EnvDriver,
        doors: Mapping[str, asyncio.Semaphore] | None = None,
    ) -> None:
        self.context = context
        self.pace = pace
        self.worker = worker
        self.job_id = job.id
        self.environment_id = job.environment_id
        self.kind = JobKind(job.kind)
        self.steps = tuple(StepName(name) for name in job.steps)
        self.parameters = dict(job.parameters)
        self.attempt = job.attempt
        self.created_by = job.created_by
        self.driver = driver
        self.tag = tag_of(job.environment_id)
        self.lost = False
        self.cancel_asked = False
        self.leased_until = 0.0
        """On the monotonic clock, counted from before the lease was written."""
        self.step: StepName = StepName(job.step or job.steps[0])
        self.step_id = ""
        self.detail: dict[str, object] = {}
        self.task: TaskRef | None = None
        self._doors = doors if doors is not None else {}

    # Rows.

    async def read(self, look: Callable[[Session], T]) -> T:
        def run() -> T:
            with self.context.database.read() as session:
                return look(session)

        return await asyncio.to_thread(run)

    async def write(self, change: Callable[[Session], T]) -> T:
        """`change` in a transaction that also checks that the job is still this worker's: Abandoned otherwise, and nothing is
        written."""

        def run() -> T:
            with self.context.database.write() as session:
                self._check_lease(session)
                return change(session)

        answer = await asyncio.to_thread(run)
        self.context.told(self.environment_id)
        return answer

    def _check_lease(self, session: Session) -> Job:
        job = session.get(Job, self.job_id)
        if job is None or job.lease_owner != self.worker or job.state != JobState.RUNNING:
            self.lost = True
            raise Abandoned(self.job_id)
        self.cancel_asked = self.cancel_asked or job.cancel_asked
        return job

    async def facts(self) -> Facts:
        return await self.read(lambda session: facts(session, self.environment_id))

    async def say(self, text: str, level: str = "info") -> None:
        """A line in the live log, in plain words."""
        await self.write(lambda session: self.line(session, text, level))

    def line(self, session: Session, text: str, level: str = "info") -> None:
        session.add(
            JobLine(
                environment_id=self.environment_id, job_id=self.job_id, at=self.context.now(), level=level, text=text
            )
        )

    async def note(self, **detail: object) -> None:
        """Written into the step's row: what a restart must know."""
        self.detail = self.detail | detail

        def change(session: Session) -> None:
            session.get_one(JobStep, self.step_id).detail = self.detail

        await self.write(change)

    async def set_environment(self, **values: object) -> None:
        def change(session: Session) -> None:
            environment = session.get_one(Environment, self.environment_id)
            for name, value in values.items():
                setattr(environment, name, value)

        await self.write(change)

    async def _record(self, task: TaskRef | None) -> None:
        self.task = task

        def change(session: Session) -> None:
            session.get_one(JobStep, self.step_id).task = task

        await self.write(change)

    # Moments and waits.

    def point(self, moment: str) -> None:
        reached(f"{self.kind}.{self.step}.{moment}")

    def check(self) -> None:
        """Abandoned where the lease may have run out. Before every act."""
        if self.lost or self.context.clock.monotonic() >= self.leased_until:
            self.lost = True
            raise Abandoned(self.job_id)

    def check_cancel(self) -> None:
        """At a place where nothing is half done."""
        self.check()
        if self.cancel_asked:
            raise Cancelled(self.job_id)

    def flag(self, name: str) -> bool:
        return self.parameters.get(name) is True

    async def wait(
        self,
        over: Callable[[], Awaitable[bool]],
        *,
        what: str,
        limit_s: float,
        poll_s: float,
        may_cancel: bool = False,
        progress: Callable[[], str] = lambda: "",
    ) -> bool:
        """Until `over()`; False after `limit_s`, counted from now, so that a console that was down takes nothing from a guest's
        time. The log says what is waited for, and how long so far."""
        clock = self.context.clock
        began = told = clock.monotonic()
        first = True
        while not await over():
            if first:
                self.point("during-wait")
                first = False
            now = clock.monotonic()
            if now - began >= limit_s:
                return False
            if now - told >= self.pace.tell_s:
                told = now
                said = progress()
                await self.say(f"Waiting for {what}: {now - began:.0f} s so far{f', {said}' if said else ''}.")
            if may_cancel:
                self.check_cancel()
            self.check()
            await asyncio.sleep(poll_s)
        return True

    # Machines.

    async def found(self) -> list[MachineFound]:
        """All machines of this environment's tag."""
        return list(await self.ask(lambda: self.driver.find(self.tag), "the inventory"))

    async def machine(self) -> MachineFound | None:
        """The environment's machine, wherever it is now; a row that has one follows it. None: there is none. StepFailed where
        two carry its tag and nothing tells which is the current one."""
        environment = (await self.facts()).environment
        found = self.current(environment, await self.found())
        known = environment.machine is not None
        if found is not None and known and (found.machine, found.node) != (environment.machine, environment.node):
            await self.set_environment(machine=found.machine, node=found.node, vmid=found.vmid)
        return found

    @staticmethod
    def current(environment: Environment, found: list[MachineFound]) -> MachineFound | None:
        candidates = found
        if environment.vmid is not None:
            candidates = [one for one in found if one.vmid == environment.vmid]
        elif environment.machine is not None and len(found) > 1:
            candidates = [one for one in found if one.machine == environment.machine]
        if len(candidates) > 1 and environment.machine_uuid:
            candidates = [one for one in candidates if one.uuid == environment.machine_uuid]
        if len(candidates) > 1:
            raise StepFailed(
                f"{len(candidates)} machines carry the tag of this environment: "
                + ", ".join(one.machine for one in candidates),
                "remove the tag from those that are not its machine, then retry",
            )
        return candidates[0] if candidates else None

    async def need_machine(self) -> MachineFound:
        found = await self.machine()
        if found is None:
            raise StepFailed(
                "the machine is gone from the hypervisor", "reset makes a new one; the home comes from the backup"
            )
        return found

    # Calls.

    async def ask(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """A call that changes nothing: repeated, with a growing and random pause, while the hypervisor is busy."""
        clock = self.context.clock
        began = clock.monotonic()
        pause = self.pace.call_backoff_s
        while True:
            self.check()
            try:
                return await call()
            except DriverBusy as error:
                if clock.monotonic() - began >= self.pace.busy_s:
                    raise StepFailed(f"{what}: {error}", "retry when the hypervisor answers again") from error
                await self.say(f"{what}: {error}; asking again.", level="warning")
            await self.backoff(pause)
            pause = min(2 * pause, self.pace.call_backoff_max_s)

    async def backoff(self, pause_s: float) -> None:
        await asyncio.sleep(pause_s * (0.5 + random.random() / 2))  # spreads retries, decides nothing

    async def make(
        self,
        *,
        what: str,
        look: Callable[[], Awaitable[bool]],
        act: Callable[[], Awaitable[TaskRef]],
        limit_s: float | None = None,
        node: str = "",
        failed: Callable[[str], Awaitable[bool]] | None = None,
        settle: bool = True,
    ) -> None:
        """What the module's docstring says. `look`: is it so already? `act`: ask for it. `failed(message)`: the task ended in
        an error; True: act again. `settle=False`: the call may be repeated without looking for long, since repeating it changes
        nothing. Returns when `look` says so; StepFailed otherwise."""
        clock = self.context.clock
        began = clock.monotonic()
        pause = self.pace.call_backoff_s
        limit = limit_s if limit_s is not None else self.pace.task_s
        while True:
            if self.task is not None:
                message = await self._follow(self.task, what, limit)
                await self._record(None)
                if message is not None:
                    again = failed is not None and await failed(message)
                    if not again and not message.startswith(_BUSY):
                        raise StepFailed(f"{what} failed: {message}")
                    if clock.monotonic() - began >= self.pace.busy_s:
                        raise StepFailed(f"{what} failed: {message.removeprefix(_BUSY)}", "retry later")
                    await self.say(f"{what}: {message.removeprefix(_BUSY)}; trying again.", level="warning")
                    await self.backoff(pause)
                    pause = min(2 * pause, self.pace.call_backoff_max_s)
                elif await self._settled(look):
                    self.point("after-verify")
                    return
            if await look():
                self.point("after-verify")
                return
            if clock.monotonic() - began >= max(limit, self.pace.busy_s):
                raise StepFailed(f"{what} was done, but it is not so after {clock.monotonic() - began:.0f} s")
            self.check()
            self.point("before-act")
            try:
                async with self._door(node):
                    self.check()
                    task = await act()
            except DriverBusy as error:
                if clock.monotonic() - began >= self.pace.busy_s:
                    raise StepFailed(f"{what}: {error}", "retry when the hypervisor answers again") from error
                if error.nothing_done or not settle:
                    await self.say(f"{what}: {error}; trying again.", level="warning")
                    await self.backoff(pause)
                    pause = min(2 * pause, self.pace.call_backoff_max_s)
                else:
                    await self.say(
                        f"{what}: the answer was lost ({error}); looking whether it was done.", level="warning"
                    )
                    if await self._settled(look):
                        self.point("after-verify")
                        return
                continue
            self.point("after-act")
            await self._record(task)
            self.point("after-row")

    async def _settled(self, look: Callable[[], Awaitable[bool]]) -> bool:
        """Look for `settle_s`: what was begun by a call whose answer was lost may show late."""
        clock = self.context.clock
        until = clock.monotonic() + self.pace.settle_s
        while not await look():
            if clock.monotonic() >= until:
                return False
            await asyncio.sleep(min(self.pace.task_poll_s, self.pace.settle_s / 4))
        return True

    async def _follow(self, task: TaskRef, what: str, limit_s: float) -> str | None:
        """None: it ended well, or nobody knows the task any more, and looking must tell. Else its error."""
        if task == DONE:
            self.point("during-wait")
            return None
        state = "running"
        message = ""

        async def over() -> bool:
            nonlocal state, message
            status = await self.ask(lambda: self.driver.task(task), what)
            state = status.state
            message = _BUSY + status.message if status.retryable else status.message
            return status.state != "running"

        if not await self.wait(over, what=what, limit_s=limit_s, poll_s=self.pace.task_poll_s):
            raise StepFailed(f"{what} is not over after {limit_s:.0f} s", f"look at task {task}, then retry")
        return (message or "no reason given") if state == "failed" else None

    def _door(self, node: str) -> asyncio.Semaphore:
        return self._doors.get(node) or asyncio.Semaphore()


_BUSY: Final = "busy: "


def last_step(session: Session, environment_id: str, name: StepName, *, job_id: str | None = None) -> JobStep | None:
    """The newest row of that step that is done."""
    query = (
        select(JobStep)
        .join(Job, Job.id == JobStep.job_id)
        .where(Job.environment_id == environment_id, JobStep.name == name, JobStep.state == "done")
    )
    if job_id is not None:
        query = query.where(JobStep.job_id == job_id)
    return session.scalar(query.order_by(JobStep.started_at.desc(), JobStep.id.desc()).limit(1))
