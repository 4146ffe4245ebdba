"""What is told about environments and jobs, made from rows: a handful of queries however many there are.

One rule: what a button may do is decided here with the same words as the verb refuses with.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session, defer

from envctl.accounts.rights import sees_all
from envctl.calling import Caller, Context
from envctl.database.models import Environment, Guest, Job, JobStep, Template, User
from envctl.provision import requests, schedules
from envctl.states import EnvironmentState, JobKind, JobState
from envctl.verbs.environment_models import EnvironmentView, JobView, Offer, Schedule, StepView

Row = TypeVar("Row", Template, User, Environment)

LATE_INTERVALS: Final = 1.5
"""A backup older than so many intervals is late."""


def views(session: Session, context: Context, caller: Caller, rows: Sequence[Environment]) -> list[EnvironmentView]:
    """In the order of `rows`."""
    if not rows:
        return []
    ids = [row.id for row in rows]
    templates = _by_id(session.scalars(select(Template).where(Template.id.in_({row.template_id for row in rows}))))
    owners = _by_id(session.scalars(select(User).where(User.id.in_({row.owner_id for row in rows}))))
    guests = {
        guest.environment_id: guest
        for guest in session.scalars(
            select(Guest).where(
                tuple_(Guest.environment_id, Guest.generation).in_([(row.id, row.generation) for row in rows])
            )
        )
    }
    newest = select(func.max(Job.id)).where(Job.environment_id.in_(ids)).group_by(Job.environment_id)
    # What it was begun with is shown nowhere, and JSON is the dearest column to read.
    job_rows = select(Job).options(defer(Job.parameters, raiseload=True))
    jobs = {job.environment_id: job for job in session.scalars(job_rows.where(Job.id.in_(newest)))}
    wanted = job_rows.where(Job.environment_id.in_(ids), Job.state.in_((JobState.QUEUED, JobState.RUNNING)))
    jobs |= {job.environment_id: job for job in session.scalars(wanted)}
    now, operator = context.now(), sees_all(caller)
    settings = _Settings(context.settings.idle_stop_s, context.settings.backup_interval_s)
    # Most environments are in one of a few situations, in each of which the same is offered.
    offered: dict[tuple[object, ...], list[Offer]] = {}
    found = []
    for row in rows:
        job = jobs.get(row.id)
        situation = situation_of(row, job, now)
        if situation not in offered:
            offered[situation] = offers(row, job, now, operator=operator)
        template, owner = templates[row.template_id], owners[row.owner_id]
        found.append(_view(settings, now, row, template, owner, guests.get(row.id), job, offered[situation]))
    return found


def view(session: Session, context: Context, caller: Caller, row: Environment) -> EnvironmentView:
    return views(session, context, caller, [row])[0]


def job_views(session: Session, jobs: Sequence[Job]) -> list[JobView]:
    if not jobs:
        return []
    environments = _by_id(
        session.scalars(select(Environment).where(Environment.id.in_({job.environment_id for job in jobs})))
    )
    owners = _by_id(session.scalars(select(User).where(User.id.in_({row.owner_id for row in environments.values()}))))
    last = select(Job.environment_id, func.max(Job.id)).where(Job.environment_id.in_(environments))
    newest = {row[0]: row[1] for row in session.execute(last.group_by(Job.environment_id))}
    found = []
    for job in jobs:
        environment = environments[job.environment_id]
        found.append(
            _job_view(job, environment, owners[environment.owner_id], newest=newest.get(job.environment_id) == job.id)
        )
    return found


def job_view(session: Session, job: Job, *, steps: bool = False) -> JobView:
    made = job_views(session, [job])[0]
    if not steps:
        return made
    rows = session.scalars(select(JobStep).where(JobStep.job_id == job.id).order_by(JobStep.attempt, JobStep.id))
    last = {row.name: row for row in rows}
    shown: list[StepView] = []
    for name in job.steps:
        row = last.get(name)
        if row is None:
            shown.append(StepView(name=name, state="waiting"))
            continue
        state: Literal["running", "done", "failed"] = (
            "done" if row.state == "done" else "failed" if row.state == "failed" else "running"
        )
        shown.append(
            StepView(
                name=name,
                state=state,
                attempt=row.attempt,
                task=row.task or None,
                started_at=row.started_at,
                ended_at=row.ended_at,
            )
        )
    return made.model_copy(update={"steps": shown})


def rpo_badge(
    last_backup_at: float | None, running: bool, now: float, interval_s: float
) -> Literal["good", "late", "none", "stopped"]:
    if last_backup_at is None:
        return "none"
    if not running:
        return "stopped"
    return "good" if now - last_backup_at <= LATE_INTERVALS * interval_s else "late"


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a view needs of the settings, read once for all."""

    idle_stop_s: float
    backup_interval_s: float


def _view(
    settings: _Settings,
    now: float,
    row: Environment,
    template: Template,
    owner: User,
    guest: Guest | None,
    job: Job | None,
    offered: list[Offer],
) -> EnvironmentView:
    state = EnvironmentState(row.state)
    ready = state is EnvironmentState.READY
    idle_s = row.idle_stop_s if row.idle_stop_s is not None else int(settings.idle_stop_s)
    under_way = job if job is not None and job.state in (JobState.QUEUED, JobState.RUNNING) else None
    shown = under_way if under_way is not None else job if state is EnvironmentState.FAILED else None
    since = max(row.last_activity_at or 0.0, row.ready_at or 0.0)
    return EnvironmentView(
        id=row.id,
        name=row.name,
        owner_id=row.owner_id,
        owner_name=owner.name,
        state=state,
        failed_step=row.failed_step,
        failed_reason=row.failed_reason,
        template_id=template.id,
        template_name=template.name,
        template_title=template.title,
        driver=row.driver,
        node=row.node,
        vmid=row.vmid,
        address=row.address if row.running else None,
        login_user=template.login_user,
        running=row.running,
        cores=row.cores,
        memory_mib=row.memory_mib,
        disk_gib=row.disk_gib,
        directories=row.directories,
        generation=row.generation,
        created_at=row.created_at,
        ready_at=row.ready_at,
        stopped_at=row.stopped_at,
        deleted_at=row.deleted_at,
        delete_after=row.delete_after if state is EnvironmentState.DELETED else None,
        expires_at=row.expires_at,
        frozen=row.frozen,
        finding=row.finding,
        idle_stop_s=idle_s,
        idle_stop_at=since + idle_s if ready and idle_s else None,
        last_activity_at=row.last_activity_at,
        schedule=Schedule.model_validate(row.schedule),
        next_start_at=schedules.next_of(row.schedule, "start", now),
        next_stop_at=schedules.next_of(row.schedule, "stop", now),
        last_backup_at=row.last_backup_at,
        last_backup_number=row.last_backup_number,
        last_backup_error=row.last_backup_error,
        next_backup_at=max(now, (row.last_backup_at or now) + settings.backup_interval_s)
        if ready and row.running
        else None,
        rpo_s=max(0.0, now - row.last_backup_at) if row.last_backup_at is not None else None,
        rpo_badge=rpo_badge(row.last_backup_at, row.running, now, settings.backup_interval_s),
        backup_interval_s=settings.backup_interval_s,
        stored_bytes=row.stored_bytes,
        agent_version=guest.agent_version if guest is not None else "",
        agent_seen_at=guest.seen_at if guest is not None else None,
        agent_status=guest.status if guest is not None else {},
        source_environment_id=row.source_environment_id,
        source_snapshot=row.source_snapshot,
        job=_job_view(shown, row, owner, newest=True) if shown is not None else None,
        offers=offered,
    )


def _job_view(job: Job, environment: Environment, owner: User, *, newest: bool) -> JobView:
    waiting = job.state == JobState.QUEUED and job.started_at is None
    over = job.state == JobState.SUCCEEDED
    return JobView(
        id=job.id,
        environment_id=job.environment_id,
        environment_name=environment.name,
        owner_name=owner.name,
        kind=JobKind(job.kind),
        state=JobState(job.state),
        step=job.step,
        step_number=0
        if waiting
        else len(job.steps)
        if over
        else job.steps.index(job.step) + 1
        if job.step in job.steps
        else 0,
        step_count=len(job.steps),
        attempt=job.attempt,
        error=job.error,
        cancel_asked=job.cancel_asked,
        created_by=job.created_by,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        may_retry=newest and requests.no_retry_reason(environment, job) is None,
        may_cancel=job.state in (JobState.QUEUED, JobState.RUNNING) and not job.cancel_asked,
    )


_KINDS: Final[Mapping[str, tuple[str, JobKind, bool]]] = {
    "env.start": ("Start", JobKind.START, False),
    "env.stop": ("Stop", JobKind.STOP, False),
    "env.restart": ("Restart", JobKind.RESTART, False),
    "env.reset": ("Reset", JobKind.RESET, True),
    "env.resize": ("Resize", JobKind.RESIZE, False),
    "env.delete": ("Delete", JobKind.DELETE, True),
    "env.undelete": ("Undelete", JobKind.UNDELETE, False),
}


def situation_of(row: Environment, job: Job | None, now: float) -> tuple[object, ...]:
    """All that `offers` looks at: what is equal here is offered the same."""
    return (
        row.state,
        row.running,
        row.frozen,
        bool(row.machine),
        bool(row.last_backup_number),
        row.delete_after is not None and row.delete_after <= now,
        (job.kind, job.state, job.cancel_asked) if job is not None else None,
    )


def offers(row: Environment, job: Job | None, now: float, *, operator: bool) -> list[Offer]:
    """Every verb for a button, in the order of the page. `job`: its newest."""
    state = EnvironmentState(row.state)
    under_way = job if job is not None and job.state in (JobState.QUEUED, JobState.RUNNING) else None
    found: list[Offer] = []

    def add(verb: str, title: str, reason: str | None, destructive: bool = False) -> None:
        found.append(
            Offer(verb=verb, title=title, possible=reason is None, reason=reason or "", destructive=destructive)
        )

    for verb, (title, kind, destructive) in _KINDS.items():
        add(verb, title, requests.reason_against(row, kind, under_way, now), destructive)
    add("job.retry", "Retry", requests.no_retry_reason(row, job) if job is not None else "there is nothing to retry")
    add(
        "job.cancel",
        "Cancel",
        None
        if under_way is not None and not under_way.cancel_asked
        else "nothing is under way"
        if under_way is None
        else "it is being cancelled",
    )
    gone = state in (EnvironmentState.DELETED, EnvironmentState.PURGED)
    there = None if state is EnvironmentState.READY and row.running else f"it is {state}"
    add("env.open", "Open", there)
    add("console.ticket", "Console", None if row.running and row.machine else "the machine is off")
    add("backup.now", "Back up now", there)
    add("backup.restore", "Restore", there or (None if row.last_backup_number else "there is no backup yet"))
    add("env.update", "Change", f"it is {state}" if gone else None)
    add("env.extend", "Extend", f"it is {state}" if gone else None)
    if operator:
        add("env.freeze", "Freeze", "it is frozen already" if row.frozen else f"it is {state}" if gone else None)
        add("env.unfreeze", "Unfreeze", None if row.frozen else "it is not frozen")
    return found


def _by_id(rows: Iterable[Row]) -> dict[str, Row]:
    return {row.id: row for row in rows}
