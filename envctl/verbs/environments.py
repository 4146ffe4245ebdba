"""Environments: made, looked at, started, stopped, changed, deleted, brought back.

One rule: a verb decides and writes rows; the runner does. What is answered is the environment as it is now and the job that was
begun; `job.log` tells how it goes on.
"""

import posixpath
from collections.abc import Mapping
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.accounts import quotas, rights
from envctl.accounts.people import find_user
from envctl.calling import Caller, Context
from envctl.database.models import TERMINAL_STATES, Backup, Environment, Job, Template, User
from envctl.errors import EnvctlError, Forbidden, Invalid, NoSuchThing, Refused
from envctl.identifiers import check_name
from envctl.provision import requests, schedules
from envctl.states import EnvironmentState, JobKind, JobState
from envctl.verbs.environment_models import (
    CreateEnvironment,
    DeleteEnvironment,
    EnvironmentAnswer,
    EnvironmentView,
    ExtendEnvironment,
    FreezeEnvironment,
    ListEnvironments,
    OneEnvironment,
    OpenView,
    ResetEnvironment,
    ResizeEnvironment,
    RestartEnvironment,
    Schedule,
    StopEnvironment,
    UpdateEnvironment,
)
from envctl.verbs.environment_views import job_view, view, views
from envctl.verbs.verb import Verb

EXTEND_MAX_S: Final = 90 * 86400.0
"""So far ahead users set an end themselves; operators further, or none at all."""
_NEVER_SAVED: Final = ("/proc", "/sys", "/dev", "/run")


def create(context: Context, caller: Caller, request: CreateEnvironment) -> EnvironmentAnswer:
    """A row and a job. Invalid, NoSuchThing, OverQuota; Refused where the name is taken."""
    detail = {"template": request.template, "from_environment": request.from_environment, "owner": request.owner}
    gone = _gone(context, caller, request)
    with context.audit.act(caller, "env.create", target=request.name, detail=detail) as act:
        rights.require(caller, "env:write")
        session = act.session
        owner = _owner(session, caller, request.owner)
        template = rights.template(session, caller, request.template)
        if not template.enabled:
            raise Refused(f"template {template.name} is switched off")
        _check_name(session, owner, request.name)
        size = _size(template, request.cores, request.memory_mib, request.disk_gib)
        quotas.check(session, owner, template, quotas.Wanted(environments=1, running=1, **size))
        source_id, source_number = _source(session, caller, request)
        if gone:
            raise Refused(
                f"backup {source_number} of {request.from_environment} is not in the bucket any more",
                hint="s3-envctl backup list shows what there is",
            )
        row = Environment(
            id=context.new_id(),
            owner_id=owner.id,
            name=request.name,
            template_id=template.id,
            state=EnvironmentState.REQUESTED,
            driver=template.driver,
            directories=_directories(template, request.directories),
            idle_stop_s=_idle(context, caller, request.idle_stop_s),
            schedule=_schedule(request.schedule) if request.schedule is not None else {},
            expires_at=_expiry(context, caller, request.expires_at) if request.expires_at is not None else None,
            created_at=context.now(),
            source_environment_id=source_id,
            source_snapshot=source_number,
            **size,
        )
        session.add(row)
        session.flush()
        job = requests.begin(session, context, row, JobKind.CREATE, caller.name)
        act.environment_id = row.id
        answer = _answer(session, context, caller, row, job)
    return _begun(context, answer)


def list_all(context: Context, caller: Caller, request: ListEnvironments) -> list[EnvironmentView]:
    """One's own, or those of everybody; the newest last. Forbidden."""
    rights.require(caller, "env:read", "operator" if request.everybody or request.owner is not None else "user")
    with context.database.read() as session:
        wanted = select(Environment).where(Environment.state != EnvironmentState.PURGED).order_by(Environment.id)
        if request.owner is not None:
            wanted = wanted.where(Environment.owner_id == find_user(session, request.owner).id)
        elif not request.everybody:
            wanted = wanted.where(Environment.owner_id == caller.user_id)
        if request.state is not None:
            wanted = wanted.where(Environment.state == request.state)
        elif not request.deleted:
            wanted = wanted.where(Environment.state != EnvironmentState.DELETED)
        if request.search:
            wanted = wanted.where(Environment.name.contains(request.search, autoescape=True))
        return views(session, context, caller, list(session.scalars(wanted)))


def show(context: Context, caller: Caller, request: OneEnvironment) -> EnvironmentView:
    rights.require(caller, "env:read")
    with context.database.read() as session:
        return view(session, context, caller, rights.environment(session, caller, request.environment))


def start(context: Context, caller: Caller, request: OneEnvironment) -> EnvironmentAnswer:
    return _begin(context, caller, "env.start", request.environment, JobKind.START, {})


def stop(context: Context, caller: Caller, request: StopEnvironment) -> EnvironmentAnswer:
    return _begin(context, caller, "env.stop", request.environment, JobKind.STOP, _how(request))


def restart(context: Context, caller: Caller, request: RestartEnvironment) -> EnvironmentAnswer:
    return _begin(context, caller, "env.restart", request.environment, JobKind.RESTART, _how(request))


def reset(context: Context, caller: Caller, request: ResetEnvironment) -> EnvironmentAnswer:
    """A new machine from the template; the home comes back as it is now, or as a backup has it."""
    how = _how(request) | ({"snapshot": request.snapshot} if request.snapshot is not None else {})
    return _begin(context, caller, "env.reset", request.environment, JobKind.RESET, how)


def delete(context: Context, caller: Caller, request: DeleteEnvironment) -> EnvironmentAnswer:
    """Saved, shut down, and the machine destroyed. The home is kept for `keep_deleted_s`."""
    return _begin(context, caller, "env.delete", request.environment, JobKind.DELETE, _how(request))


def undelete(context: Context, caller: Caller, request: OneEnvironment) -> EnvironmentAnswer:
    return _begin(context, caller, "env.undelete", request.environment, JobKind.UNDELETE, {})


def resize(context: Context, caller: Caller, request: ResizeEnvironment) -> EnvironmentAnswer:
    """Of cores, memory and disk what is named. What a running machine cannot change takes effect with its next start."""
    wanted = {
        name: value for name in ("cores", "memory_mib", "disk_gib") if (value := getattr(request, name)) is not None
    }
    if not wanted:
        raise Invalid("nothing to change was named", hint="name cores, memory_mib or disk_gib")
    return _begin(context, caller, "env.resize", request.environment, JobKind.RESIZE, wanted)


def extend(context: Context, caller: Caller, request: ExtendEnvironment) -> EnvironmentAnswer:
    with context.audit.act(
        caller, "env.extend", target=request.environment, detail={"expires_at": request.expires_at}
    ) as act:
        rights.require(caller, "env:write")
        row = _living(act.session, caller, request.environment)
        act.environment_id = row.id
        row.expires_at = _expiry(context, caller, request.expires_at)
        act.session.flush()
        answer = _answer(act.session, context, caller, row, None)
    return _changed(context, answer)


def freeze(context: Context, caller: Caller, request: FreezeEnvironment) -> EnvironmentAnswer:
    """Nobody starts it any more. One that is ready is stopped, as `env.stop` does it."""
    with context.audit.act(caller, "env.freeze", target=request.environment, detail={"reason": request.reason}) as act:
        rights.require(caller, "env:write", "operator")
        row = _living(act.session, caller, request.environment)
        act.environment_id = row.id
        if row.frozen:
            raise Refused(f"{row.name} is frozen already")
        row.frozen = True
        said = f" ({request.reason})" if request.reason else ""
        requests.say(act.session, context, row.id, None, f"Frozen by {caller.name}{said}.", level="warning")
        job = None
        if (
            row.state == EnvironmentState.READY
            and requests.why_not(act.session, row, JobKind.STOP, context.now()) is None
        ):
            job = requests.begin(act.session, context, row, JobKind.STOP, caller.name)
        act.session.flush()
        answer = _answer(act.session, context, caller, row, job)
    return _begun(context, answer) if answer.job is not None else _changed(context, answer)


def unfreeze(context: Context, caller: Caller, request: OneEnvironment) -> EnvironmentAnswer:
    with context.audit.act(caller, "env.unfreeze", target=request.environment) as act:
        rights.require(caller, "env:write", "operator")
        row = rights.environment(act.session, caller, request.environment)
        act.environment_id = row.id
        if not row.frozen:
            raise Refused(f"{row.name} is not frozen")
        row.frozen = False
        requests.say(act.session, context, row.id, None, f"Unfrozen by {caller.name}.")
        act.session.flush()
        answer = _answer(act.session, context, caller, row, None)
    return _changed(context, answer)


def update(context: Context, caller: Caller, request: UpdateEnvironment) -> EnvironmentAnswer:
    """Idle stop and schedule."""
    detail = request.model_dump(exclude={"environment"}, exclude_none=True)
    with context.audit.act(caller, "env.update", target=request.environment, detail=detail) as act:
        rights.require(caller, "env:write")
        row = _living(act.session, caller, request.environment)
        act.environment_id = row.id
        if request.idle_stop_s is not None:
            row.idle_stop_s = _idle(context, caller, request.idle_stop_s)
        if request.schedule is not None:
            row.schedule = _schedule(request.schedule)
        act.session.flush()
        answer = _answer(act.session, context, caller, row, None)
    return _changed(context, answer)


def open_one(context: Context, caller: Caller, request: OneEnvironment) -> OpenView:
    """How to get in. It counts as use: the idle stop begins anew. Refused unless it is ready."""
    with context.audit.act(caller, "env.open", target=request.environment) as act:
        rights.require(caller, "env:write")
        row = rights.environment(act.session, caller, request.environment)
        act.environment_id = row.id
        if row.state != EnvironmentState.READY or not row.running:
            stopped = row.state in (EnvironmentState.STOPPED, EnvironmentState.READY)
            hint = (
                f"s3-envctl env start {row.name}"
                if stopped
                else f"s3-envctl env show {row.name} says what is under way"
            )
            raise Refused(f"{row.name} is {row.state}", hint=hint)
        row.last_activity_at = context.now()
        act.session.flush()
        shown = view(act.session, context, caller, row)
    address = shown.address or ""
    console = (context.settings.url or f"http://{context.settings.listen}").rstrip("/")
    host = address or "ADDRESS"
    return OpenView(
        environment=shown,
        address=address,
        ssh_command=f"ssh {shown.login_user}@{host}",
        ssh_config=f"Host {shown.name}\n    HostName {host}\n    User {shown.login_user}\n",
        console_url=f"{console}/environments/{shown.id}/console/vnc",
    )


# What they share.


def _begin(
    context: Context,
    caller: Caller,
    verb: str,
    name: str,
    kind: JobKind,
    parameters: Mapping[str, object],
) -> EnvironmentAnswer:
    with context.audit.act(caller, verb, target=name, detail=parameters) as act:
        rights.require(caller, "env:write")
        session = act.session
        row = rights.environment(session, caller, name)
        act.environment_id = row.id
        if (reason := requests.why_not(session, row, kind, context.now())) is not None:
            raise Refused(f"{row.name}: {reason}", hint=_hint(row, kind))
        _check_begin(session, caller, row, kind, parameters)
        row.last_activity_at = context.now()
        job = requests.begin(session, context, row, kind, caller.name, parameters)
        answer = _answer(session, context, caller, row, job)
    return _begun(context, answer)


def _check_begin(
    session: Session, caller: Caller, row: Environment, kind: JobKind, parameters: Mapping[str, object]
) -> None:
    owner = session.get_one(User, row.owner_id)
    template = session.get_one(Template, row.template_id)
    size = {"cores": row.cores, "memory_mib": row.memory_mib, "disk_gib": row.disk_gib}
    if kind is JobKind.UNDELETE:
        _check_name(session, owner, row.name)
    if kind in (JobKind.START, JobKind.RESET, JobKind.UNDELETE):
        wanted = quotas.Wanted(environments=1, running=1, **size)
        quotas.check(session, owner, template, wanted, without=row.id)
    if kind is JobKind.RESIZE:
        asked = {name: value for name, value in parameters.items() if isinstance(value, int)}
        size = _size(template, *((size | asked)[name] for name in ("cores", "memory_mib", "disk_gib")))
        if size["disk_gib"] < row.disk_gib:
            raise Invalid(
                f"the disk has {row.disk_gib} GiB, and disks only grow",
                hint="a reset makes a machine with the template's disk",
                details={"disk_gib": f"at least {row.disk_gib}"},
            )
        on = row.running
        quotas.check(
            session,
            owner,
            template,
            quotas.Wanted(
                environments=1,
                running=int(on),
                cores=size["cores"] if on else 0,
                memory_mib=size["memory_mib"] if on else 0,
                disk_gib=size["disk_gib"],
            ),
            without=row.id,
        )
    snapshot = parameters.get("snapshot")
    if isinstance(snapshot, int):
        _need_backup(session, row, snapshot)


def _hint(row: Environment, kind: JobKind) -> str:
    if row.state == EnvironmentState.READY and kind is JobKind.START:
        return "it runs already"
    return ""


def _how(request: StopEnvironment) -> dict[str, object]:
    return {name: True for name in ("accept_loss", "force") if getattr(request, name)}


def _owner(session: Session, caller: Caller, name: str | None) -> User:
    if name is None or name == caller.name:
        return session.get_one(User, caller.user_id)
    if not rights.sees_all(caller):
        raise Forbidden("that needs the role operator", hint="leave `owner` empty")
    owner = find_user(session, name)
    if not owner.enabled:
        raise Refused(f"the account {owner.name} is switched off")
    return owner


def _check_name(session: Session, owner: User, name: str) -> None:
    try:
        check_name(name)
    except ValueError as error:
        raise Invalid(str(error), details={"name": str(error)}) from error
    taken = session.scalar(
        select(Environment.id).where(
            Environment.owner_id == owner.id,
            Environment.name == name,
            Environment.state.not_in([str(state) for state in TERMINAL_STATES]),
        )
    )
    if taken is not None:
        raise Refused(
            f"{owner.name} has an environment {name} already",
            hint="take another name, or delete that one first",
            details={"name": "taken"},
        )


def _size(template: Template, cores: int | None, memory_mib: int | None, disk_gib: int | None) -> dict[str, int]:
    """What was asked for, within the template's bounds. Invalid names each field that is not."""
    wanted = {"cores": cores, "memory_mib": memory_mib, "disk_gib": disk_gib}
    size = {name: getattr(template, name) if value is None else value for name, value in wanted.items()}
    wrong: dict[str, str] = {}
    for name, value in size.items():
        most = getattr(template, f"{name}_max")
        least = template.disk_gib if name == "disk_gib" else 1
        if not least <= value <= most:
            wrong[name] = f"from {least} to {most} with template {template.name}"
    if wrong:
        raise Invalid("; ".join(f"{name}: {what}" for name, what in wrong.items()), details=wrong)
    return size


def _directories(template: Template, wanted: list[str] | None) -> list[str]:
    if wanted is None:
        return list(template.directories)
    found: list[str] = []
    for path in wanted:
        reason = _wrong_directory(path)
        if reason is not None:
            raise Invalid(f"directory {path!r}: {reason}", details={"directories": reason})
        if path not in found:
            found.append(path)
    if not found:
        raise Invalid("no directory is saved", hint="name one, such as /home", details={"directories": "name one"})
    return found


def _wrong_directory(path: str) -> str | None:
    if not path.startswith("/") or path == "/" or posixpath.normpath(path) != path:
        return "an absolute path is wanted, such as /home, without `..` and without a slash at the end"
    if any(path == never or path.startswith(f"{never}/") for never in _NEVER_SAVED):
        return "the kernel makes what is there"
    if any(not character.isprintable() for character in path) or len(path) > 255:
        return "printable characters alone, at most 255"
    return None


def _idle(context: Context, caller: Caller, wanted: int | None) -> int | None:
    most = context.settings.idle_stop_s
    if wanted is not None and most and (wanted == 0 or wanted > most) and not rights.sees_all(caller):
        raise Invalid(
            f"idle machines are stopped after {most:.0f} s here; a shorter time can be chosen",
            hint="an operator can allow more",
            details={"idle_stop_s": f"at most {most:.0f}"},
        )
    return wanted


def _schedule(wanted: Schedule) -> dict[str, str]:
    if not wanted.start and not wanted.stop:
        return {}
    for name in ("start", "stop"):
        text = getattr(wanted, name)
        try:
            if text:
                schedules.parse(text)
        except ValueError as error:
            raise Invalid(str(error), details={f"schedule.{name}": str(error)}) from error
    try:
        schedules.zone(wanted.timezone)
    except ValueError as error:
        raise Invalid(str(error), details={"schedule.timezone": str(error)}) from error
    return {"start": wanted.start.strip().upper(), "stop": wanted.stop.strip().upper(), "timezone": wanted.timezone}


def _expiry(context: Context, caller: Caller, wanted: float | None) -> float | None:
    now = context.now()
    if wanted is not None and wanted <= now:
        raise Invalid("the end is in the past", details={"expires_at": "in the past"})
    if (wanted is None or wanted - now > EXTEND_MAX_S) and not rights.sees_all(caller):
        raise Invalid(
            f"at most {EXTEND_MAX_S / 86400:.0f} days from now",
            hint="an operator can allow more",
            details={"expires_at": "too far ahead"},
        )
    return wanted


def _source(session: Session, caller: Caller, request: CreateEnvironment) -> tuple[str | None, int | None]:
    if request.from_environment is None:
        if request.from_snapshot is not None:
            raise Invalid("a backup's number needs its environment", details={"from_environment": "name it"})
        return None, None
    source = rights.environment(session, caller, request.from_environment)
    number = request.from_snapshot if request.from_snapshot is not None else source.last_backup_number
    if number is None:
        raise Refused(f"{source.name} has no backup yet")
    _need_backup(session, source, number)
    return source.id, number


def _gone(context: Context, caller: Caller, request: CreateEnvironment) -> bool:
    """Whether the bucket lacks the backup that is asked for, though there is a row of it. Asked before the transaction, which
    must not wait for a bucket."""
    if request.from_environment is None:
        return False
    with context.database.read() as session:
        try:
            source, number = _source(session, caller, request)
        except EnvctlError:
            return False  # the transaction refuses it, and the audit says so
    try:
        context.homes.snapshot(str(source), number or 0)
    except NoSuchThing:
        return True
    return False


def _need_backup(session: Session, row: Environment, number: int) -> None:
    if session.get(Backup, (row.id, number)) is None:
        raise NoSuchThing(f"{row.name} has no backup {number}", hint="s3-envctl backup list shows what there is")


def _living(session: Session, caller: Caller, name: str) -> Environment:
    row = rights.environment(session, caller, name)
    if row.state in TERMINAL_STATES:
        raise Refused(f"{row.name} is {row.state}")
    return row


def _answer(session: Session, context: Context, caller: Caller, row: Environment, job: Job | None) -> EnvironmentAnswer:
    return EnvironmentAnswer(
        environment=view(session, context, caller, row), job=job_view(session, job) if job is not None else None
    )


def _begun(context: Context, answer: EnvironmentAnswer) -> EnvironmentAnswer:
    assert answer.job is None or answer.job.state in (JobState.QUEUED, JobState.RUNNING)
    context.wake()
    return _changed(context, answer)


def _changed(context: Context, answer: EnvironmentAnswer) -> EnvironmentAnswer:
    context.told(answer.environment.id)
    return answer


_ONE: Final = "/environments/{environment}"

VERBS: Final[tuple[Verb, ...]] = (
    Verb(
        name="env.create",
        method="POST",
        path="/environments",
        scope="env:write",
        function=create,
        request=CreateEnvironment,
        answer=EnvironmentAnswer,
        summary="Make an environment from a template",
    ),
    Verb(
        name="env.list",
        method="GET",
        path="/environments",
        scope="env:read",
        function=list_all,
        request=ListEnvironments,
        answer=list[EnvironmentView],
        summary="List environments",
    ),
    Verb(
        name="env.show",
        method="GET",
        path=_ONE,
        scope="env:read",
        function=show,
        request=OneEnvironment,
        answer=EnvironmentView,
        summary="Show an environment",
    ),
    Verb(
        name="env.start",
        method="POST",
        path=f"{_ONE}/start",
        scope="env:write",
        function=start,
        request=OneEnvironment,
        answer=EnvironmentAnswer,
        summary="Start an environment that is stopped",
    ),
    Verb(
        name="env.stop",
        method="POST",
        path=f"{_ONE}/stop",
        scope="env:write",
        function=stop,
        request=StopEnvironment,
        answer=EnvironmentAnswer,
        summary="Save an environment and shut it down",
    ),
    Verb(
        name="env.restart",
        method="POST",
        path=f"{_ONE}/restart",
        scope="env:write",
        function=restart,
        request=RestartEnvironment,
        answer=EnvironmentAnswer,
        summary="Save an environment, shut it down and start it",
    ),
    Verb(
        name="env.reset",
        method="POST",
        path=f"{_ONE}/reset",
        scope="env:write",
        function=reset,
        request=ResetEnvironment,
        answer=EnvironmentAnswer,
        summary="Give an environment a new machine; its home stays",
        destructive=True,
    ),
    Verb(
        name="env.resize",
        method="POST",
        path=f"{_ONE}/resize",
        scope="env:write",
        function=resize,
        request=ResizeEnvironment,
        answer=EnvironmentAnswer,
        summary="Change cores, memory or disk of an environment",
    ),
    Verb(
        name="env.extend",
        method="POST",
        path=f"{_ONE}/extend",
        scope="env:write",
        function=extend,
        request=ExtendEnvironment,
        answer=EnvironmentAnswer,
        summary="Change when an environment expires",
    ),
    Verb(
        name="env.freeze",
        method="POST",
        path=f"{_ONE}/freeze",
        scope="env:write",
        function=freeze,
        request=FreezeEnvironment,
        answer=EnvironmentAnswer,
        summary="Stop an environment and let nobody start it",
        role="operator",
    ),
    Verb(
        name="env.unfreeze",
        method="POST",
        path=f"{_ONE}/unfreeze",
        scope="env:write",
        function=unfreeze,
        request=OneEnvironment,
        answer=EnvironmentAnswer,
        summary="Let a frozen environment be started again",
        role="operator",
    ),
    Verb(
        name="env.delete",
        method="DELETE",
        path=_ONE,
        scope="env:write",
        function=delete,
        request=DeleteEnvironment,
        answer=EnvironmentAnswer,
        summary="Save an environment and destroy its machine; its home is kept for some days",
        destructive=True,
    ),
    Verb(
        name="env.undelete",
        method="POST",
        path=f"{_ONE}/undelete",
        scope="env:write",
        function=undelete,
        request=OneEnvironment,
        answer=EnvironmentAnswer,
        summary="Bring back a deleted environment",
    ),
    Verb(
        name="env.update",
        method="PATCH",
        path=_ONE,
        scope="env:write",
        function=update,
        request=UpdateEnvironment,
        answer=EnvironmentAnswer,
        summary="Change an environment's idle stop and schedule",
    ),
    Verb(
        name="env.open",
        method="POST",
        path=f"{_ONE}/open",
        scope="env:write",
        function=open_one,
        request=OneEnvironment,
        answer=OpenView,
        summary="Tell how to get into an environment",
    ),
)
