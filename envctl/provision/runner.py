"""Does jobs: takes them from the database with a lease, goes through their steps, and writes down how each ended.

One rule: all that a job needs is in its row, its steps' rows and the hypervisor. A worker may die at any moment; another
takes the job when the lease has run out and goes on at the step that the row names (`envctl.provision.work` has the table of
crashes).

Several workers run beside each other on one database. A lease is taken by one conditional UPDATE; it is kept by a heartbeat,
and every write of a job checks it. Clocks of workers on several hosts must agree to within a few seconds.
"""

import asyncio
import logging
from collections.abc import Mapping

from sqlalchemy import Select, or_, select, update
from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.access import DatabaseBusy, DatabaseUnavailable
from envctl.database.models import Environment, Job, JobLine, JobStep
from envctl.drivers.port import EnvDriver, TaskRef
from envctl.errors import EnvctlError
from envctl.provision.steps.acts import ACTS
from envctl.provision.work import PACE, Abandoned, Cancelled, Pace, StepFailed, Work
from envctl.states import EnvironmentState, JobKind, JobState, StepName
from s3core.errors import StoreError

_log = logging.getLogger(__name__)

STATES: Mapping[StepName, EnvironmentState] = {
    StepName.RESERVE: EnvironmentState.CLONING,
    StepName.FENCE: EnvironmentState.CLONING,
    StepName.CLONE: EnvironmentState.CLONING,
    StepName.CONFIGURE: EnvironmentState.CONFIGURING,
    StepName.SEED: EnvironmentState.CONFIGURING,
    StepName.RESIZE: EnvironmentState.CONFIGURING,
    StepName.START: EnvironmentState.BOOTING,
    StepName.BOOT: EnvironmentState.BOOTING,
    StepName.RESTORE: EnvironmentState.RESTORING,
    StepName.BACKUP: EnvironmentState.STOPPING,
    StepName.SHUTDOWN: EnvironmentState.STOPPING,
    StepName.STOP: EnvironmentState.STOPPING,
    StepName.DESTROY: EnvironmentState.STOPPING,
    StepName.FORGET: EnvironmentState.STOPPING,
    StepName.SWEEP: EnvironmentState.DELETING,
}
"""What an environment is while a step runs; of DELETE and PURGE always DELETING."""


class Runner:
    """One worker. `name` must be its own alone among all that run: two with one name would take each other's leases for their
    own."""

    def __init__(self, context: Context, name: str, *, pace: Pace = PACE) -> None:
        self._context = context
        self._name = name
        self._pace = pace
        self._wake = asyncio.Event()
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._leased_until: dict[str, float] = {}
        """Of jobs that are taken and not begun."""
        self._doors: dict[str, dict[str, asyncio.Semaphore]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = False

    def wake(self) -> None:
        """There may be a job. From any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def stop(self) -> None:
        """Take no more jobs, and leave those that run to whoever comes next: `run` returns soon. From any thread."""
        self._stopping = True
        self.wake()

    async def run(self) -> None:
        """Until `stop` or cancellation. Jobs under way are left as a crash would leave them, but their leases are given back,
        so that the next worker goes on at once."""
        self._loop = asyncio.get_running_loop()
        try:
            while not self._stopping:
                self._wake.clear()
                try:
                    while len(self._jobs) < self._pace.jobs_at_once and (job := await self._take()) is not None:
                        self._jobs[job.id] = asyncio.create_task(self._run(job), name=f"job {job.id}")
                except (DatabaseBusy, DatabaseUnavailable) as error:
                    _log.warning("jobs cannot be looked for: %s", error)
                try:
                    async with asyncio.timeout(self._pace.queue_poll_s):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            tasks = list(self._jobs.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def run_until_idle(self) -> None:
        """Until no job is left that could be done now. For tests and for one-shot commands."""
        self._loop = asyncio.get_running_loop()
        while True:
            job = await self._take()
            if job is not None:
                self._jobs[job.id] = asyncio.create_task(self._run(job), name=f"job {job.id}")
            elif self._jobs:
                await asyncio.wait(self._jobs.values(), return_when=asyncio.FIRST_COMPLETED)
            else:
                return

    # Leases.

    async def _take(self) -> Job | None:
        before = self._context.clock.monotonic()
        job = await asyncio.to_thread(self._take_now)
        if job is not None:
            # Counted from before the row was written: here it ends sooner than others think, never later.
            self._leased_until[job.id] = before + self._pace.lease_s
        return job

    def _take_now(self) -> Job | None:
        context = self._context
        now = context.now()
        with context.database.read() as session:
            # A look first: most of the time there is nothing, and a write is for one at a time.
            if session.scalar(_free(now).limit(1)) is None:
                return None
        with context.database.write() as session:
            for job in session.scalars(_free(now)):
                if (
                    job.id in self._jobs
                    or session.get_one(Environment, job.environment_id).driver not in context.drivers
                ):
                    continue
                taken = session.execute(
                    update(Job)
                    .where(Job.id == job.id, Job.state.in_((JobState.QUEUED, JobState.RUNNING)), Job.lease_until < now)
                    .values(
                        lease_owner=self._name,
                        lease_until=now + self._pace.lease_s,
                        state=JobState.RUNNING,
                        started_at=job.started_at if job.started_at is not None else now,
                    )
                )
                if taken.rowcount == 1:  # type: ignore[attr-defined]  # an UPDATE's result is a CursorResult
                    session.flush()
                    session.refresh(job)
                    return job
        return None

    async def _heartbeat(self, work: Work) -> None:
        clock = self._context.clock
        while not work.lost:
            await asyncio.sleep(self._pace.heartbeat_s)
            before = clock.monotonic()

            def renew() -> bool | None:
                with self._context.database.write() as session:
                    job = session.get(Job, work.job_id)
                    if job is None or job.lease_owner != self._name or job.state != JobState.RUNNING:
                        return None
                    job.lease_until = self._context.now() + self._pace.lease_s
                    return job.cancel_asked

            try:
                asked = await asyncio.to_thread(renew)
            except (DatabaseBusy, DatabaseUnavailable) as error:
                _log.warning("job %s: the lease could not be kept: %s", work.job_id, error)
                continue
            if asked is None:
                work.lost = True
            else:
                work.leased_until = before + self._pace.lease_s
                work.cancel_asked = work.cancel_asked or asked

    async def _give_back(self, work: Work, pause_s: float = 0.0) -> None:
        """The lease, so that whoever looks next goes on."""

        def change() -> None:
            with self._context.database.write() as session:
                job = session.get(Job, work.job_id)
                if job is not None and job.lease_owner == self._name:
                    job.lease_owner = None
                    job.lease_until = 0.0
                    job.not_before = self._context.now() + pause_s

        await asyncio.to_thread(change)

    # A job.

    async def _run(self, job: Job) -> None:
        environment_driver = await asyncio.to_thread(self._driver_of, job.environment_id)
        doors = self._doors.setdefault(environment_driver.name, _Doors(self._pace.calls_at_once))
        work = Work(self._context, self._pace, self._name, job, environment_driver, doors)
        work.leased_until = self._leased_until.pop(job.id)
        heartbeat = asyncio.create_task(self._heartbeat(work))
        try:
            await self._steps(work)
        except Abandoned:
            _log.warning("job %s: another worker has it now", work.job_id)
        except (DatabaseBusy, DatabaseUnavailable) as error:
            # The lease runs out, or is given back when the database answers: nothing is decided without it.
            _log.warning("job %s: the database does not answer: %s", work.job_id, error)
        except asyncio.CancelledError:
            await self._give_back(work)
            raise
        finally:
            heartbeat.cancel()
            self._jobs.pop(work.job_id, None)
            self._wake.set()
            self._context.told(work.environment_id)

    def _driver_of(self, environment_id: str) -> EnvDriver:
        with self._context.database.read() as session:
            return self._context.drivers[session.get_one(Environment, environment_id).driver]

    async def _steps(self, work: Work) -> None:
        at = work.steps.index(work.step)
        for step in work.steps[at:]:
            if await self._begin_step(work, step):
                await self._end(work, JobState.CANCELLED, f"cancelled before {step}", EnvironmentState.FAILED)
                return
            try:
                await ACTS[step](work)
            except Cancelled:
                await self._end(work, JobState.CANCELLED, f"cancelled during {step}", EnvironmentState.FAILED)
                return
            except StepFailed as error:
                await self._end(work, JobState.FAILED, str(error), EnvironmentState.FAILED)
                return
            except (DatabaseBusy, DatabaseUnavailable, Abandoned):
                raise
            except (EnvctlError, StoreError) as error:
                await self._end(work, JobState.FAILED, str(error), EnvironmentState.FAILED)
                return
            except Exception as error:  # noqa: BLE001 - a fault of ours must not run for ever: the job ends, and says so
                _log.exception("job %s: step %s", work.job_id, step)
                reason = f"a fault of the program: {type(error).__name__}: {error}"
                await self._end(work, JobState.FAILED, reason, EnvironmentState.FAILED)
                return
            await self._end_step(work)
        await self._end(work, JobState.SUCCEEDED, None, _end_state(work))

    async def _begin_step(self, work: Work, step: StepName) -> bool:
        """The step's row; True: a person asked to cancel."""
        work.step = step

        def change(session: Session) -> bool:
            job = session.get_one(Job, work.job_id)
            environment = session.get_one(Environment, work.environment_id)
            row = session.scalar(
                select(JobStep)
                .where(JobStep.job_id == work.job_id, JobStep.name == step)
                .order_by(JobStep.attempt.desc())
                .limit(1)
            )
            if row is None or row.attempt != job.attempt or row.state != "running":
                kept = {key: value for key, value in row.detail.items() if key in _KEPT} if row is not None else {}
                row = JobStep(
                    id=self._context.new_id(),
                    job_id=work.job_id,
                    name=step,
                    attempt=job.attempt,
                    state="running",
                    detail=kept,
                    started_at=self._context.now(),
                )
                session.add(row)
            else:
                work.line(session, f"Going on with step {step}.")
            job.step = step
            work.step_id, work.detail = row.id, dict(row.detail)
            work.task = TaskRef(row.task) if row.task is not None else None
            environment.state = (
                EnvironmentState.DELETING if work.kind in (JobKind.DELETE, JobKind.PURGE) else STATES[step]
            )
            session.flush()
            return job.cancel_asked

        return await work.write(change)

    async def _end_step(self, work: Work) -> None:
        def change(session: Session) -> None:
            row = session.get_one(JobStep, work.step_id)
            row.state, row.ended_at = "done", self._context.now()

        await work.write(change)

    async def _end(self, work: Work, state: JobState, error: str | None, environment_state: EnvironmentState) -> None:
        """The job and what its environment is from now on, in one transaction."""
        context = self._context
        if work.kind is JobKind.PURGE and error is not None:
            # The schedule comes again; nothing that is offered for FAILED would make sense.
            environment_state = EnvironmentState.DELETED

        def change(session: Session) -> None:
            now = context.now()
            job = session.get_one(Job, work.job_id)
            environment = session.get_one(Environment, work.environment_id)
            job.state, job.error, job.ended_at = state, error, now
            job.lease_owner, job.lease_until = None, 0.0
            environment.state = environment_state
            if error is not None:
                row = session.get(JobStep, work.step_id)
                if row is not None:
                    row.state, row.ended_at = "failed", now
                if environment_state is EnvironmentState.FAILED:
                    environment.failed_step, environment.failed_reason = job.step, error
                session.add(_line(work, now, "error", f"Failed at step {job.step}: {error}"))
                return
            environment.failed_step = environment.failed_reason = None
            if work.kind is not JobKind.RESIZE:
                _arrive(environment, environment_state, now, context.settings.keep_deleted_s)
            session.add(_line(work, now, "info", f"Done: it is {environment_state}."))

        await work.write(change)


class _Doors(dict[str, asyncio.Semaphore]):
    """By node, how many calls at once."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self._at_once = at_once

    def __missing__(self, node: str) -> asyncio.Semaphore:
        self[node] = asyncio.Semaphore(self._at_once)
        return self[node]


_KEPT = frozenset({"asked", "broken"})
"""What the next attempt of a step must know of the one before: whether a machine that is found may be the clone it asked for,
and that one that failed may have left something."""


def _free(now: float) -> Select[Job]:
    return (
        select(Job)
        .where(
            or_(Job.state == JobState.QUEUED, Job.state == JobState.RUNNING),
            Job.lease_until < now,
            Job.not_before <= now,
        )
        .order_by(Job.created_at, Job.id)
    )


def _line(work: Work, now: float, level: str, text: str) -> JobLine:
    return JobLine(environment_id=work.environment_id, job_id=work.job_id, at=now, level=level, text=text)


def _end_state(work: Work) -> EnvironmentState:
    match work.kind:
        case JobKind.STOP:
            return EnvironmentState.STOPPED
        case JobKind.DELETE:
            return EnvironmentState.DELETED
        case JobKind.PURGE:
            return EnvironmentState.PURGED
        case JobKind.RESIZE:
            return EnvironmentState(str(work.parameters.get("from_state", EnvironmentState.STOPPED)))
        case _:
            return EnvironmentState.READY


def _arrive(environment: Environment, state: EnvironmentState, now: float, keep_s: float) -> None:
    match state:
        case EnvironmentState.READY:
            environment.finding = None
            environment.ready_at = environment.last_activity_at = now
            environment.deleted_at = environment.delete_after = None
        case EnvironmentState.DELETED:
            environment.deleted_at = now
            environment.delete_after = now + keep_s
