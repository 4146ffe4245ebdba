"""`admin fleet`: how everything on every host is, as far as hosts tell it. It only looks."""

from typing import Final, Literal

from envctl.accounts import rights
from envctl.calling import Caller, Context
from envctl.verbs.verb import Answer, Nothing, Verb
from s3core.status import HEALTHS, Item, Money, Published, in_order, worst

Health = Literal["ok", "warning", "unknown", "critical"]


class ThingView(Answer):
    """A volume, a mirror, a ledger, ..."""

    kind: str
    name: str
    health: Health
    summary: str
    reason: str
    """Why it is not well."""
    runbook: str
    """The page of the manual that says what to do, below docs/."""
    facts: dict[str, str | int | float | bool | None]


class MoneyView(Answer):
    """This month's requests of a host to an endpoint. Null: not known."""

    endpoint: str
    requests: int
    up_bytes: int
    down_bytes: int
    currency: str | None
    total: float | None
    stored_bytes: int | None
    storage_per_month: float | None


class HostView(Answer):
    host: str
    health: Health
    at: float | None
    age_s: float | None
    stale: bool
    """Too old to say how it is now."""
    problem: str
    """Why nothing is known of it."""
    program: str
    things: list[ThingView]
    """The worst first."""
    month: str
    money: list[MoneyView]


class FleetView(Answer):
    health: Health
    published: bool
    """Whether hosts tell each other (`[status] publish`); else this one alone is known."""
    problem: str
    """Why what they told cannot be read."""
    hosts: list[HostView]
    """The worst first."""


def fleet(context: Context, caller: Caller, request: Nothing) -> FleetView:
    """All hosts, within the deadline of `[status]`."""
    rights.require(caller, "admin:read", "operator")
    seen = context.fleet.look()
    hosts = sorted(map(_host, seen.hosts), key=lambda one: (-HEALTHS.index(one.health), in_order(one.host)))
    health = worst([one.health for one in hosts] + (["unknown"] if seen.problem else []))
    return FleetView(health=health, published=seen.published, problem=seen.problem, hosts=hosts)


def _host(one: Published) -> HostView:
    status = one.status
    things = sorted(
        status.items if status else (), key=lambda item: (-HEALTHS.index(item.health), item.kind, in_order(item.name))
    )
    return HostView(
        host=one.host,
        health=one.health,
        at=status.at if status else None,
        age_s=one.age_s if status else None,
        stale=one.stale,
        problem=one.problem,
        program=status.program if status else "",
        things=[_thing(item) for item in things],
        month=status.month if status else "",
        money=[_money(item) for item in (status.money if status else ())],
    )


def _thing(item: Item) -> ThingView:
    return ThingView(
        kind=item.kind,
        name=item.name,
        health=item.health,
        summary=item.summary,
        reason=item.reason,
        runbook=item.runbook,
        facts=dict(item.facts),
    )


def _money(one: Money) -> MoneyView:
    return MoneyView(
        endpoint=one.endpoint,
        requests=one.requests,
        up_bytes=one.up_bytes,
        down_bytes=one.down_bytes,
        currency=one.currency,
        total=one.total,
        stored_bytes=one.stored_bytes,
        storage_per_month=one.storage_per_month,
    )


VERBS: Final = (
    Verb(
        name="admin.fleet",
        method="GET",
        path="/admin/fleet",
        scope="admin:read",
        function=fleet,
        request=Nothing,
        answer=FleetView,
        summary="Show how everything on every host is",
        role="operator",
    ),
)
