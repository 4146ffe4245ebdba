"""Limits: how many environments, how much of the cluster, how much home.

One rule: each figure has one limit, and the message says which, how much is used and how much was asked for. A user's own row
comes before those of the groups (the widest of them), those before the default; a template's row holds beside it for
environments of that template, and the stricter of the two counts. So an admin widens for one person without widening for all.

Call `check` in the `write` that adds or starts: there is one writer at a time, so two requests never share the last place.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.database.models import Environment, Membership, Quota, Template, User
from envctl.errors import OverQuota
from envctl.states import BUSY, EnvironmentState

GIB: Final = 1 << 30
WORDS: Final[dict[str, tuple[str, str]]] = {
    "environments": ("environments", ""),
    "running": ("running environments", ""),
    "cores": ("cores of running environments", ""),
    "memory_mib": ("memory of running environments", " MiB"),
    "disk_gib": ("disk", " GiB"),
    "home_gib": ("stored homes", " GiB"),
}
"""Each figure with its words and unit."""
_ALIVE: Final = frozenset(EnvironmentState) - {EnvironmentState.DELETED, EnvironmentState.PURGED}
_ON: Final = BUSY | {EnvironmentState.READY}


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit."""

    environments: int | None = None
    running: int | None = None
    cores: int | None = None
    memory_mib: int | None = None
    disk_gib: int | None = None
    home_gib: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    environments: int = 0
    running: int = 0
    cores: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    home_gib: int = 0
    """Rounded up."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What comes on top. A start: `running`, `cores`, `memory_mib`; a creation: all; a resize: what grows."""

    environments: int = 0
    running: int = 0
    cores: int = 0
    memory_mib: int = 0
    disk_gib: int = 0


FIGURES: Final = tuple(field.name for field in fields(Limits))


def check(
    session: Session, user: User, template: Template | None, wanted: Wanted, *, without: str | None = None
) -> None:
    """OverQuota, where `user` would have more than may be. `without`: the id of an environment that is not counted because
    `wanted` is the whole of it (a resize, a start)."""
    _compare("", limits_of(session, user.id), usage_of(session, user.id, without=without), wanted)
    if template is not None:
        own = _row(session, "template", template.id)
        if own is not None:
            used = usage_of(session, user.id, template_id=template.id, without=without)
            _compare(f" of template {template.name}", own, used, wanted)


def limits_of(session: Session, user_id: str) -> Limits:
    """What holds for a user, but for templates."""
    groups = session.scalars(select(Membership.group_id).where(Membership.user_id == user_id)).all()
    own = _row(session, "user", user_id)
    of_groups = [row for row in (_row(session, "group", group) for group in groups) if row is not None]
    default = _row(session, "default", "")
    return Limits(
        **{
            name: _first(
                getattr(own, name, None),
                max((value for row in of_groups if (value := getattr(row, name)) is not None), default=None),
                getattr(default, name, None),
            )
            for name in FIGURES
        }
    )


def usage_of(session: Session, user_id: str, *, template_id: str | None = None, without: str | None = None) -> Usage:
    """What a user has now. What a job is bringing up counts as running already."""
    query = select(Environment).where(Environment.owner_id == user_id, Environment.state != EnvironmentState.PURGED)
    if template_id is not None:
        query = query.where(Environment.template_id == template_id)
    rows = [row for row in session.scalars(query) if row.id != without]
    alive = [row for row in rows if row.state in _ALIVE]
    on = [row for row in alive if row.running or row.state in _ON]
    return Usage(
        environments=len(alive),
        running=len(on),
        cores=_sum(on, lambda row: row.cores),
        memory_mib=_sum(on, lambda row: row.memory_mib),
        disk_gib=_sum(alive, lambda row: row.disk_gib),
        home_gib=-(-_sum(rows, lambda row: row.stored_bytes) // GIB),
    )


def _compare(where: str, limits: Limits, used: Usage, wanted: Wanted) -> None:
    for name in FIGURES:
        limit = getattr(limits, name)
        if limit is None:
            continue
        more = getattr(wanted, name, 0)
        has = getattr(used, name)
        words, unit = WORDS[name]
        # A home grows by itself: what is over already takes no new machine.
        over = has > limit if name == "home_gib" else more > 0 and has + more > limit
        if over:
            asked = f", {more:,}{unit} more asked for" if more else ""
            raise OverQuota(
                f"over the quota of {words}{where}: {has:,} of {limit:,}{unit} used{asked}",
                hint="stop or delete an environment, or ask an admin for more",
                details={"quota": name, "used": str(has), "limit": str(limit), "wanted": str(more)},
            )


def _row(session: Session, kind: str, subject_id: str) -> Limits | None:
    row = session.scalar(select(Quota).where(Quota.subject_kind == kind, Quota.subject_id == subject_id))
    return None if row is None else replace(Limits(), **{name: getattr(row, name) for name in FIGURES})


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _sum(rows: Iterable[Environment], figure: Callable[[Environment], int]) -> int:
    return sum(figure(row) for row in rows)
