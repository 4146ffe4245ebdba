"""Jobs: what is done, was done and went wrong, line by line."""

from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from envctl.accounts import quotas, rights
from envctl.calling import Caller, Context
from envctl.database.models import Environment, Job, JobLine, Template, User
from envctl.errors import NoSuchThing
from envctl.provision import requests
from envctl.states import OVER, JobKind, JobState
from envctl.verbs.environment_models import JobAnswer, JobLog, JobView, Line, ListJobs, LogView, OneJob, RetryJob
from envctl.verbs.environment_views import job_view, job_views
from envctl.verbs.verb import Verb


def list_all(context: Context, caller: Caller, request: ListJobs) -> list[JobView]:
    """The newest first."""
    rights.require(caller, "job:read", "operator" if request.everybody else "user")
    with context.database.read() as session:
        wanted = select(Job).order_by(Job.id.desc()).limit(request.limit)
        if request.environment is not None:
            wanted = wanted.where(Job.environment_id == rights.environment(session, caller, request.environment).id)
        elif not request.everybody:
            wanted = wanted.join(Environment, Environment.id == Job.environment_id).where(
                Environment.owner_id == caller.user_id
            )
        if request.state is not None:
            wanted = wanted.where(Job.state == request.state)
        return job_views(session, list(session.scalars(wanted)))


def show(context: Context, caller: Caller, request: OneJob) -> JobView:
    """With its steps."""
    rights.require(caller, "job:read")
    with context.database.read() as session:
        return job_view(session, _job(session, caller, request.job), steps=True)


def log(context: Context, caller: Caller, request: JobLog) -> LogView:
    """Lines after a number, so that whoever reads goes on where it was."""
    rights.require(caller, "job:read")
    with context.database.read() as session:
        job = _job(session, caller, request.job)
        rows = session.scalars(
            select(JobLine)
            .where(JobLine.job_id == job.id, JobLine.id > request.after)
            .order_by(JobLine.id)
            .limit(request.limit)
        )
        lines = [Line(id=row.id, job_id=row.job_id, at=row.at, level=row.level, text=row.text) for row in rows]
        last = session.scalar(select(func.max(JobLine.id)).where(JobLine.job_id == job.id)) or 0
        reached = lines[-1].id if lines else request.after
        return LogView(lines=lines, last_id=reached, over=JobState(job.state) in OVER and reached >= last)


def retry(context: Context, caller: Caller, request: RetryJob) -> JobAnswer:
    """Go on from the step that failed, after looking what there is."""
    with context.audit.act(caller, "job.retry", target=request.job) as act:
        rights.require(caller, "job:write")
        job = _job(act.session, caller, request.job)
        act.environment_id = job.environment_id
        how = {name: True for name in ("accept_loss", "force") if getattr(request, name)}
        act.detail.update(how)
        _check_quota(act.session, job)
        requests.retry(act.session, context, job, caller.name, how)
        answer = JobAnswer(job=job_view(act.session, job))
    context.wake()
    context.told(answer.job.environment_id)
    return answer


def cancel(context: Context, caller: Caller, request: OneJob) -> JobAnswer:
    """Stop a job before its next step."""
    with context.audit.act(caller, "job.cancel", target=request.job) as act:
        rights.require(caller, "job:write")
        job = _job(act.session, caller, request.job)
        act.environment_id = job.environment_id
        requests.cancel(act.session, context, job, caller.name)
        answer = JobAnswer(job=job_view(act.session, job))
    context.wake()
    context.told(answer.job.environment_id)
    return answer


def _check_quota(session: Session, job: Job) -> None:
    """What failed and does not run counts for nothing; a retry makes it count again."""
    if job.kind in (JobKind.STOP, JobKind.DELETE, JobKind.RESIZE):
        return
    row = session.get_one(Environment, job.environment_id)
    quotas.check(
        session,
        session.get_one(User, row.owner_id),
        session.get_one(Template, row.template_id),
        quotas.Wanted(environments=1, running=1, cores=row.cores, memory_mib=row.memory_mib, disk_gib=row.disk_gib),
        without=row.id,
    )


def _job(session: Session, caller: Caller, job_id: str) -> Job:
    """NoSuchThing, also for one of an environment that the caller may not see."""
    job = session.get(Job, job_id)
    environment = session.get(Environment, job.environment_id) if job is not None else None
    if job is None or environment is None or not rights.may_see(caller, environment):
        raise NoSuchThing(f"there is no job {job_id!r}", hint="s3-envctl job list shows yours")
    return job


VERBS: Final[tuple[Verb, ...]] = (
    Verb(
        name="job.list",
        method="GET",
        path="/jobs",
        scope="job:read",
        function=list_all,
        request=ListJobs,
        answer=list[JobView],
        summary="List jobs, the newest first",
    ),
    Verb(
        name="job.show",
        method="GET",
        path="/jobs/{job}",
        scope="job:read",
        function=show,
        request=OneJob,
        answer=JobView,
        summary="Show a job and its steps",
    ),
    Verb(
        name="job.log",
        method="GET",
        path="/jobs/{job}/log",
        scope="job:read",
        function=log,
        request=JobLog,
        answer=LogView,
        summary="Show what a job says",
    ),
    Verb(
        name="job.retry",
        method="POST",
        path="/jobs/{job}/retry",
        scope="job:write",
        function=retry,
        request=RetryJob,
        answer=JobAnswer,
        summary="Try a failed job again, from the step that failed",
    ),
    Verb(
        name="job.cancel",
        method="POST",
        path="/jobs/{job}/cancel",
        scope="job:write",
        function=cancel,
        request=OneJob,
        answer=JobAnswer,
        summary="Stop a job before its next step",
    ),
)
