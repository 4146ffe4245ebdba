"""What is done to a home now and then: retention, collection, and the rows brought in line with the bucket.

One rule: the bucket is right. Rows of backups are made anew from it, so that a database that was put back, or a crash
between bucket and row, leaves nothing wrong for longer than until the next run. Every step may be repeated, and may be
broken off anywhere.
"""

from dataclasses import dataclass
from typing import Final

from sqlalchemy import select

from envctl.calling import Context
from envctl.database.models import Backup, Environment, Guest, GuestCommand
from envctl.errors import NoSuchThing
from envctl.homes.collecting import Collected
from envctl.homes.documents import Snapshot
from envctl.homes.guests import remember
from envctl.homes.retention import Policy
from envctl.homes.store import HomeStore, Usage
from s3core.settings import EnvctlSettings

COLLECT_EVERY_S: Final = 20 * 3600.0
"""A collection reads the end of every tree of every snapshot."""


@dataclass(frozen=True, slots=True)
class Kept:
    """`pruned`: numbers of the snapshots that were deleted."""

    pruned: tuple[int, ...]
    collected: Collected | None
    """None: it was not due."""
    usage: Usage


def policy_of(settings: EnvctlSettings) -> Policy:
    return Policy(
        settings.retention_fine_s,
        settings.retention_hourly_s,
        settings.retention_daily_s,
        settings.retention_weekly_s,
    )


def upkeep(context: Context, environment_id: str, policy: Policy | None = None) -> Kept:
    """Once an hour or so for each environment whose home is kept. Blocks no guest. Not within a `write`. Errors of the store
    and HomeDamaged get out: then what was done is done, and the rest is not."""
    now = context.now()
    homes = context.homes
    protected = _protected(context, environment_id)
    pruned = homes.prune(environment_id, policy or policy_of(context.settings), now, protected)
    last = homes.collected_at.get(environment_id)
    collected = homes.collect(environment_id, now) if last is None or now - last >= COLLECT_EVERY_S else None
    reconcile_rows(context, environment_id)
    usage = homes.usage(environment_id)
    with context.database.write() as session:
        environment = session.get(Environment, environment_id)
        if environment is not None:
            environment.stored_bytes = usage.bytes
    return Kept(tuple(pruned), collected, usage)


def reconcile_rows(context: Context, environment_id: str) -> None:
    """Rows of backups are those that the bucket has. Not within a `write`."""
    homes = context.homes
    head = homes.head(environment_id)
    newest = head.newest if head else None
    there = {one.number: one for one in homes.dated(environment_id)}
    with context.database.read() as session:
        of_home = select(Backup).where(Backup.environment_id == environment_id)
        rows = {row.number: row.pinned for row in session.scalars(of_home)}
    unlike = [number for number, one in there.items() if rows.get(number) != one.pinned]
    found = [one for number in unlike if (one := _still(homes, environment_id, number)) is not None]
    with context.database.write() as session:
        environment = session.get(Environment, environment_id)
        if environment is None:
            return
        remember(session, environment_id, found)
        for row in session.scalars(of_home):
            # A commit that came after the listing has a later number.
            if row.number not in there and row.number <= (newest.number if newest else 0):
                session.delete(row)
        if newest is not None and (environment.last_backup_number or 0) < newest.number:
            environment.last_backup_number = newest.number
            environment.last_backup_at = max(newest.at, head.seen_at if head else 0.0)


def _still(homes: HomeStore, environment_id: str, number: int) -> Snapshot | None:
    try:
        return homes.snapshot(environment_id, number)
    except NoSuchThing:
        return None  # pruned meanwhile


def _protected(context: Context, environment_id: str) -> set[int]:
    """Numbers that a restore, under way or to come, refers to: of this environment, or of one that is made from it."""
    with context.database.read() as session:
        environment = session.get(Environment, environment_id)
        found = {environment.restore_snapshot} if environment else set()
        made_from = (
            select(Environment.source_snapshot)
            .outerjoin(
                Guest,
                (Guest.environment_id == Environment.id)
                & (Guest.generation == Environment.generation)
                & Guest.restored_at.is_not(None),
            )
            .where(Environment.source_environment_id == environment_id, Guest.environment_id.is_(None))
        )
        found.update(session.scalars(made_from))
        asked = select(GuestCommand).where(GuestCommand.kind == "restore", GuestCommand.ended_at.is_(None))
        for command in session.scalars(asked):
            number = command.parameters.get("number")
            source = command.parameters.get("from") or command.environment_id
            if source == environment_id and isinstance(number, int):
                found.add(number)
    return {number for number in found if number is not None}
