"""Machines that no environment has, and what the hypervisors have.

One rule: a machine is only ever destroyed by the reconciler, which looks again before it does; these verbs say what it may.
"""

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.accounts import rights
from envctl.calling import Caller, Context
from envctl.database.models import Environment, Node, Orphan, Vmid
from envctl.errors import NoSuchThing, Refused
from envctl.identifiers import TAG_PREFIX, tag_of
from envctl.provision import reconciling, requests
from envctl.provision.steps.reserving import CLAIMED
from envctl.states import EnvironmentState
from envctl.verbs.environment_models import (
    AdoptOrphan,
    EnvironmentAnswer,
    NodeView,
    OneOrphan,
    OrphanView,
    ReconcileAnswer,
)
from envctl.verbs.environment_views import view
from envctl.verbs.verb import Done, Nothing, Verb

WAIT_S: Final = 20.0
"""How long `admin.reconcile` waits for a worker to look."""
_ADOPTERS: Final = (EnvironmentState.FAILED, EnvironmentState.STOPPED, EnvironmentState.DELETED)


def orphans(context: Context, caller: Caller, request: Nothing) -> list[OrphanView]:
    rights.require(caller, "admin:read", "operator")
    with context.database.read() as session:
        return [
            _orphan_view(session, context, row)
            for row in session.scalars(select(Orphan).order_by(Orphan.first_seen_at, Orphan.machine))
        ]


def keep(context: Context, caller: Caller, request: OneOrphan) -> OrphanView:
    """Leave it alone for good."""
    with context.audit.act(caller, "admin.orphan_keep", target=request.machine) as act:
        rights.require(caller, "admin:write", "operator")
        row = _orphan(act.session, request.machine)
        row.kept = True
        act.session.flush()
        return _orphan_view(act.session, context, row)


def destroy(context: Context, caller: Caller, request: OneOrphan) -> Done:
    """Its grace is over: the reconciler destroys it at its next look, if it still is an orphan then."""
    with context.audit.act(caller, "admin.orphan_destroy", target=request.machine) as act:
        rights.require(caller, "admin:write", "operator")
        row = _orphan(act.session, request.machine)
        row.kept = False
        row.first_seen_at = 0.0
        reconciling.ask(act.session, context.now())
    context.wake()
    return Done(message=f"{request.machine} is destroyed at the next look at the hypervisor, within a minute")


def adopt(context: Context, caller: Caller, request: AdoptOrphan) -> EnvironmentAnswer:
    """Give the machine back to its environment, whose row has lost it: it must carry that environment's tag."""
    with context.audit.act(
        caller, "admin.orphan_adopt", target=request.machine, detail={"environment": request.environment}
    ) as act:
        rights.require(caller, "admin:write", "operator")
        session = act.session
        row = _orphan(session, request.machine)
        environment = rights.environment(session, caller, request.environment)
        act.environment_id = environment.id
        if row.tag != tag_of(environment.id):
            raise Refused(
                f"{row.machine} carries the tag {row.tag or 'of nobody'}, not {tag_of(environment.id)}",
                hint="tag it at the hypervisor, if it is this environment's machine",
            )
        if environment.machine is not None or requests.open_job(session, environment.id) is not None:
            raise Refused(f"{environment.name} has a machine, or a job under way")
        if environment.state not in _ADOPTERS:
            raise Refused(f"{environment.name} is {environment.state}")
        node, _, number = row.machine.rpartition("/")
        environment.machine, environment.node = row.machine, node or None
        environment.vmid = int(number) if number.isdigit() else None
        if environment.vmid is not None:
            session.merge(Vmid(vmid=environment.vmid, environment_id=environment.id, state=CLAIMED, at=context.now()))
        environment.state = EnvironmentState.STOPPED
        environment.failed_step = environment.failed_reason = None
        environment.deleted_at = environment.delete_after = None
        environment.running = False
        environment.stopped_at = context.now()
        session.delete(row)
        requests.say(session, context, environment.id, None, f"{caller.name} gave it the machine {row.machine}.")
        session.flush()
        answer = EnvironmentAnswer(environment=view(session, context, caller, environment))
    context.told(answer.environment.id)
    return answer


def reconcile(context: Context, caller: Caller, request: Nothing) -> ReconcileAnswer:
    """Look at the hypervisors now, and tell what was found. Refused where no worker looks within WAIT_S."""
    with context.audit.act(caller, "admin.reconcile") as act:
        rights.require(caller, "admin:write", "operator")
        asked = reconciling.ask(act.session, context.now())
    context.wake()
    until = context.clock.monotonic() + WAIT_S
    while True:
        with context.database.read() as session:
            found = reconciling.last(session)
        if found is not None and found.at >= asked:
            return ReconcileAnswer(
                machines=found.machines,
                orphans=found.orphans,
                missing=found.missing,
                findings=list(found.findings),
                errors=list(found.errors),
            )
        if context.clock.monotonic() >= until:
            raise Refused(
                f"no worker has looked within {WAIT_S:.0f} s", hint="is a worker running? s3-envctl serve --role all"
            )
        context.clock.sleep(0.2)


def nodes(context: Context, caller: Caller, request: Nothing) -> list[NodeView]:
    """As the last look found them."""
    rights.require(caller, "admin:read", "operator")
    with context.database.read() as session:
        living = session.execute(
            select(Environment.driver, Environment.node, Environment.running).where(Environment.machine.is_not(None))
        )
        count: dict[tuple[str, str | None], list[int]] = {}
        for driver, node, running in living:
            entry = count.setdefault((driver, node), [0, 0])
            entry[0] += 1
            entry[1] += int(running)
        return [
            NodeView(
                name=row.name,
                driver=row.driver,
                online=row.online,
                cores=row.cores,
                memory_bytes=row.memory_bytes,
                memory_used_bytes=row.memory_used_bytes,
                storages=row.storages,
                environments=count.get((row.driver, row.name), [0, 0])[0],
                running=count.get((row.driver, row.name), [0, 0])[1],
                at=row.at,
            )
            for row in session.scalars(select(Node).order_by(Node.driver, Node.name))
        ]


def _orphan(session: Session, machine: str) -> Orphan:
    row = session.get(Orphan, machine)
    if row is None:
        raise NoSuchThing(f"{machine} is no orphan", hint="s3-envctl admin orphans shows them")
    return row


def _orphan_view(session: Session, context: Context, row: Orphan) -> OrphanView:
    environment_id = row.tag.removeprefix(TAG_PREFIX) if row.tag.startswith(TAG_PREFIX) else None
    known = session.get(Environment, environment_id) if environment_id else None
    return OrphanView(
        machine=row.machine,
        driver=row.driver,
        name=row.name,
        tag=row.tag,
        first_seen_at=row.first_seen_at,
        seen_at=row.seen_at,
        kept=row.kept,
        destroyed_after=None if row.kept else row.first_seen_at + context.settings.orphan_grace_s,
        environment_id=known.id if known is not None else None,
    )


VERBS: Final[tuple[Verb, ...]] = (
    Verb(
        name="admin.orphans",
        method="GET",
        path="/admin/orphans",
        scope="admin:read",
        function=orphans,
        request=Nothing,
        answer=list[OrphanView],
        summary="List machines that no environment has",
        role="operator",
    ),
    Verb(
        name="admin.orphan_keep",
        method="POST",
        path="/admin/orphans/keep",
        scope="admin:write",
        function=keep,
        request=OneOrphan,
        answer=OrphanView,
        summary="Never destroy this machine",
        role="operator",
    ),
    Verb(
        name="admin.orphan_destroy",
        method="POST",
        path="/admin/orphans/destroy",
        scope="admin:write",
        function=destroy,
        request=OneOrphan,
        answer=Done,
        summary="Destroy this machine now",
        role="operator",
        destructive=True,
    ),
    Verb(
        name="admin.orphan_adopt",
        method="POST",
        path="/admin/orphans/adopt",
        scope="admin:write",
        function=adopt,
        request=AdoptOrphan,
        answer=EnvironmentAnswer,
        summary="Give this machine back to its environment",
        role="operator",
    ),
    Verb(
        name="admin.reconcile",
        method="POST",
        path="/admin/reconcile",
        scope="admin:write",
        function=reconcile,
        request=Nothing,
        answer=ReconcileAnswer,
        summary="Compare hypervisors with environments now",
        role="operator",
    ),
    Verb(
        name="admin.nodes",
        method="GET",
        path="/admin/nodes",
        scope="admin:read",
        function=nodes,
        request=Nothing,
        answer=list[NodeView],
        summary="List nodes and what is left on them",
        role="operator",
    ),
)
