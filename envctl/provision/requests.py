"""Jobs are begun, retried and cancelled here, whoever asks: a verb, the schedule, the reconciler.

One rule: a job is a row. What is begun in a session that commits is done sooner or later, whatever happens to this process; the
caller tells the runner after its commit (`context.wake()`), and a runner that was not told finds the row by itself.
"""

from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.models import Environment, Guest, Job, JobLine, JobStep
from envctl.errors import Invalid, Refused
from envctl.states import BUSY, MAY_START, OVER, STEPS, EnvironmentState, JobKind, JobState, StepName

PARAMETERS = frozenset({"accept_loss", "force", "cores", "memory_mib", "disk_gib", "snapshot"})
"""What a caller may give. `from_state` is added by `begin`."""


def begin(
    session: Session,
    context: Context,
    environment: Environment,
    kind: JobKind,
    caller_name: str,
    parameters: Mapping[str, object] | None = None,
) -> Job:
    """A queued job, added to `session`. `caller_name`: the user's, or `schedule`, `idle`, `expiry`, `reconciler`.

    Refused: the state forbids it (`MAY_START`), another job is under way, or it is frozen. Quotas are the verbs' business.
    """
    given = dict(parameters or {})
    if unknown := set(given) - PARAMETERS:
        raise Invalid(f"a job takes no parameter {sorted(unknown)[0]!r}")
    if (reason := why_not(session, environment, kind, context.now())) is not None:
        raise Refused(f"{environment.name}: {reason}")
    now = context.now()
    given["from_state"] = environment.state
    steps = steps_of(environment, kind)
    job = Job(
        id=context.new_id(),
        environment_id=environment.id,
        kind=kind,
        state=JobState.QUEUED,
        step=steps[0],
        steps=[str(step) for step in steps],
        attempt=1,
        parameters=given,
        created_by=caller_name,
        created_at=now,
    )
    session.add(job)
    environment.state = waiting_state(kind)
    environment.failed_step = environment.failed_reason = None
    if kind in (JobKind.RESET, JobKind.UNDELETE):
        snapshot = given.get("snapshot")
        environment.restore_snapshot = snapshot if isinstance(snapshot, int) else None
    say(session, context, environment.id, job.id, f"{TITLES[kind]}: asked for by {caller_name}.")
    session.flush()
    return job


def retry(
    session: Session, context: Context, job: Job, caller_name: str, parameters: Mapping[str, object] | None = None
) -> Job:
    """Queue the failed job again: it goes on from the step that failed, after looking what there is.

    Refused: it is not the environment's newest, did not fail, or another is under way.
    """
    given = dict(parameters or {})
    if unknown := set(given) - PARAMETERS:
        raise Invalid(f"a job takes no parameter {sorted(unknown)[0]!r}")
    environment = session.get_one(Environment, job.environment_id)
    if (reason := why_no_retry(session, environment, job)) is not None:
        raise Refused(f"{environment.name}: {reason}")
    job.state = JobState.QUEUED
    job.step = resume_at(session, environment, job)
    job.attempt += 1
    job.error = None
    job.ended_at = None
    job.cancel_asked = False
    job.not_before = 0.0
    job.lease_owner = None
    job.lease_until = 0.0
    job.parameters = job.parameters | given
    environment.state = waiting_state(JobKind(job.kind))
    environment.failed_step = environment.failed_reason = None
    say(
        session,
        context,
        environment.id,
        job.id,
        f"Attempt {job.attempt}, asked for by {caller_name}: from step {job.step}.",
    )
    session.flush()
    return job


def cancel(session: Session, context: Context, job: Job, caller_name: str) -> None:
    """A queued job that never ran is over at once and the environment is as it was. One that runs stops before its next
    step, and the environment is FAILED with the reason, so that Retry, Stop and Delete are offered. Refused: it is over."""
    if JobState(job.state) in OVER:
        raise Refused(f"job {job.id} is over ({job.state})")
    environment = session.get_one(Environment, job.environment_id)
    say(session, context, environment.id, job.id, f"{caller_name} asked to cancel.", level="warning")
    began = session.scalar(select(JobStep.id).where(JobStep.job_id == job.id).limit(1)) is not None
    if job.state == JobState.RUNNING or began or job.kind == JobKind.CREATE:
        job.cancel_asked = True
        job.not_before = 0.0
    else:
        job.state = JobState.CANCELLED
        job.ended_at = context.now()
        environment.state = str(job.parameters.get("from_state", EnvironmentState.FAILED))
    session.flush()


def why_not(session: Session, environment: Environment, kind: JobKind, now: float) -> str | None:
    """Why this cannot be begun now, in words for a person; None: it can."""
    return reason_against(environment, kind, open_job(session, environment.id), now)


def reason_against(environment: Environment, kind: JobKind, under_way: Job | None, now: float) -> str | None:
    """As `why_not`, with the job under way as the caller knows it."""
    state = EnvironmentState(environment.state)
    if under_way is not None:
        return f"{TITLES[JobKind(under_way.kind)].lower()} is under way"
    if state not in MAY_START[kind]:
        return f"it is {state}"
    if environment.frozen and kind in (JobKind.START, JobKind.RESTART, JobKind.RESET, JobKind.UNDELETE):
        return "it is frozen; an operator must unfreeze it"
    if kind is JobKind.UNDELETE and environment.delete_after is not None and environment.delete_after <= now:
        return "its home's days are over"
    return None


def why_no_retry(session: Session, environment: Environment, job: Job) -> str | None:
    """Why this job cannot be tried again, in words for a person; None: it can."""
    newest = newest_job(session, environment.id)
    if newest is None or newest.id != job.id:
        return "another job came after this one"
    return no_retry_reason(environment, job)


def no_retry_reason(environment: Environment, newest: Job) -> str | None:
    """As `why_no_retry`, of the environment's newest job."""
    if newest.state not in (JobState.FAILED, JobState.CANCELLED):
        return f"the job is {newest.state}"
    if environment.state != EnvironmentState.FAILED:
        return f"it is {environment.state}"
    if environment.frozen and newest.kind not in (JobKind.STOP, JobKind.DELETE):
        return "it is frozen; an operator must unfreeze it"
    return None


def open_job(session: Session, environment_id: str) -> Job | None:
    """The one under way or queued; there is never more than one (`one_job_an_environment`)."""
    return session.scalar(
        select(Job).where(Job.environment_id == environment_id, Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
    )


def newest_job(session: Session, environment_id: str) -> Job | None:
    """The one under way, else the last that was begun (two of one millisecond have no order)."""
    under_way = open_job(session, environment_id)
    if under_way is not None:
        return under_way
    return session.scalar(select(Job).where(Job.environment_id == environment_id).order_by(Job.id.desc()).limit(1))


def resume_at(session: Session, environment: Environment, job: Job) -> str:
    """The step a retry begins with: the one that failed, or an earlier one whose work may be void by now. A machine that may
    have been started meanwhile is saved again before it goes; one that never reported needs a new seed."""
    failed = job.step or job.steps[0]
    if failed in (StepName.SHUTDOWN, StepName.DESTROY) and StepName.BACKUP in job.steps:
        return StepName.BACKUP
    if failed in (StepName.START, StepName.BOOT) and StepName.SEED in job.steps:
        guest = session.get(Guest, (environment.id, environment.generation))
        if guest is None or guest.enrolled_at is None:
            return StepName.SEED
    if failed == StepName.BOOT and StepName.SEED not in job.steps:
        return StepName.START
    return failed


def steps_of(environment: Environment, kind: JobKind) -> tuple[StepName, ...]:
    """`STEPS`, but an environment without a machine is started by making it one."""
    if kind is JobKind.START and environment.machine is None:
        return STEPS[JobKind.UNDELETE]
    return STEPS[kind]


def waiting_state(kind: JobKind) -> EnvironmentState:
    """The state while the job waits for its turn."""
    return _WAITING[kind]


def say(
    session: Session, context: Context, environment_id: str, job_id: str | None, text: str, level: str = "info"
) -> None:
    """A line for the live log."""
    session.add(JobLine(environment_id=environment_id, job_id=job_id, at=context.now(), level=level, text=text))


TITLES = {
    JobKind.CREATE: "Create",
    JobKind.START: "Start",
    JobKind.STOP: "Stop",
    JobKind.RESTART: "Restart",
    JobKind.RESET: "Reset",
    JobKind.RESIZE: "Resize",
    JobKind.DELETE: "Delete",
    JobKind.UNDELETE: "Undelete",
    JobKind.PURGE: "Purge",
}

_WAITING = {
    JobKind.CREATE: EnvironmentState.REQUESTED,
    JobKind.START: EnvironmentState.BOOTING,
    JobKind.STOP: EnvironmentState.STOPPING,
    JobKind.RESTART: EnvironmentState.STOPPING,
    JobKind.RESET: EnvironmentState.STOPPING,
    JobKind.RESIZE: EnvironmentState.CONFIGURING,
    JobKind.DELETE: EnvironmentState.DELETING,
    JobKind.UNDELETE: EnvironmentState.REQUESTED,
    JobKind.PURGE: EnvironmentState.DELETING,
}
assert set(_WAITING.values()) <= BUSY
