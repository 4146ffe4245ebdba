"""What happens by the clock: machines nobody uses are stopped, schedules start and stop, expired environments go, homes of
deleted ones are purged when their days are over, snapshots are thinned, rows that ran out are cleared, the database is saved.

One rule: nothing here deletes data but the purge, and that only of DELETED environments after `delete_after`. Idle stop and
expiry are ordinary jobs: they save first, and fail where that is not possible.
"""

import asyncio
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from envctl.accounts import limits, logins, quotas
from envctl.calling import Caller, Context
from envctl.database.access import DatabaseBusy, DatabaseUnavailable
from envctl.database.models import (
    Environment,
    Guest,
    JobLine,
    Setting,
    Template,
    Ticket,
    User,
)
from envctl.errors import EnvctlError, OverQuota
from envctl.homes.upkeep import upkeep
from envctl.provision import reconciling, requests, schedules
from envctl.states import EnvironmentState, JobKind, JobState
from s3core.errors import PreconditionFailed, StoreError

_log = logging.getLogger(__name__)

EVERY_S: Final = 30.0
LATE_S: Final = 3600.0
"""A scheduled start or stop is done at most this late."""
EXPIRY_GRACE_S: Final = 7 * 86400.0
"""Between the end of an environment, when it is stopped, and its deletion."""
TRY_AGAIN_S: Final = 6 * 3600.0
"""Between two attempts to delete or purge what could not be."""
RETENTION_EVERY_S: Final = 3600.0
"""Each home's snapshots are thinned and its refuse collected so often, homes spread over the time."""
HOMES_A_TURN: Final = 20
LINES_KEPT_S: Final = 90 * 86400.0
SAVES_KEPT: Final = 14
"""Copies of the database in the bucket, a night each."""
_CONSOLE: Final = "console/"


class Scheduler:
    """One of all workers does it at a time. `_thinned` is this process's memory: a new leader begins anew, which costs requests
    and nothing else."""

    def __init__(self, context: Context, worker: str, *, every_s: float = EVERY_S) -> None:
        self._context = context
        self._worker = worker
        self._every_s = every_s
        self._thinned: dict[str, float] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                try:
                    if await asyncio.to_thread(
                        reconciling.lead, self._context, "scheduler", self._worker, 10 * self._every_s
                    ):
                        await asyncio.to_thread(self.turn)
                except (DatabaseBusy, DatabaseUnavailable) as error:
                    _log.warning("scheduler: %s", error)
                except Exception:  # noqa: BLE001 - one bad turn must not be the last one
                    _log.exception("scheduler")
                await asyncio.sleep(self._every_s)
        finally:
            await asyncio.to_thread(reconciling.retire, self._context, "scheduler", self._worker)

    def turn(self) -> list[str]:
        """All that is due. What was begun, a line each. Each part fails by itself: the others are done all the same."""
        begun: list[str] = []
        with _alone("jobs by the clock"):
            begun = self.begin_due()
        with _alone("rows that ran out"):
            self.clear()
        with _alone("retention"):
            self.thin()
        with _alone("the copy of the database"):
            self.save()
        if begun:
            self._context.wake()
        return begun

    # Jobs.

    def begin_due(self) -> list[str]:
        with self._context.database.read() as session:
            ids = list(
                session.scalars(
                    select(Environment.id).where(
                        Environment.state.in_(
                            (
                                EnvironmentState.READY,
                                EnvironmentState.STOPPED,
                                EnvironmentState.FAILED,
                                EnvironmentState.DELETED,
                            )
                        )
                    )
                )
            )
        begun: list[str] = []
        for environment_id in ids:
            with _alone(f"what is due for {environment_id}"):
                with self._context.database.read() as session:
                    wanted = self._wanted(session, session.get_one(Environment, environment_id))
                if wanted is not None:
                    line = self._begin(environment_id, *wanted)
                    begun += [line] if line else []
        return begun

    def _begin(self, environment_id: str, kind: JobKind, why: str) -> str:
        """Decided again in the write, with its audit row: a person may have been quicker."""
        caller = Caller(user_id="", name=why, role="admin", via="console")
        context = self._context
        try:
            with context.audit.act(caller, f"env.{kind}", environment_id=environment_id) as act:
                row = act.session.get_one(Environment, environment_id)
                act.target = row.name
                if self._wanted(act.session, row) != (kind, why):
                    raise _Settled
                if kind is JobKind.START:
                    _check_quota(act.session, row)
                requests.begin(act.session, context, row, kind, why)
        except _Settled:
            return ""
        except OverQuota as error:
            self._say_once(environment_id, f"Not started by its schedule: {error}.")
            return ""
        except EnvctlError as error:
            _log.warning("%s of %s by %s: %s", kind, environment_id, why, error)
            return ""
        context.told(environment_id)
        return f"{kind} {row.name} ({why})"

    def _wanted(self, session: Session, row: Environment) -> tuple[JobKind, str] | None:
        """What is due for it, and why; the first that holds. Nothing while a job is under way."""
        if requests.open_job(session, row.id) is not None:
            return None
        now = self._context.now()
        match EnvironmentState(row.state):
            case EnvironmentState.DELETED:
                if row.delete_after is not None and row.delete_after <= now and not self._tried(session, row, now):
                    return JobKind.PURGE, "expiry"
            case EnvironmentState.READY:
                if row.expires_at is not None and row.expires_at <= now:
                    return JobKind.STOP, "expiry"
                if schedules.due(row.schedule, "stop", row.ready_at, now, LATE_S):
                    return JobKind.STOP, "schedule"
                if self._idle(session, row, now):
                    return JobKind.STOP, "idle"
            case EnvironmentState.STOPPED:
                if row.expires_at is not None and row.expires_at <= now:
                    return self._expired(session, row, now)
                since = max(row.stopped_at or 0.0, row.created_at)
                if not row.frozen and schedules.due(row.schedule, "start", since, now, LATE_S):
                    return JobKind.START, "schedule"
            case EnvironmentState.FAILED:
                return self._expired(session, row, now)
            case _:
                pass
        return None

    def _expired(self, session: Session, row: Environment, now: float) -> tuple[JobKind, str] | None:
        if row.expires_at is None or row.expires_at + EXPIRY_GRACE_S > now or self._tried(session, row, now):
            return None
        return JobKind.DELETE, "expiry"

    @staticmethod
    def _tried(session: Session, row: Environment, now: float) -> bool:
        """It failed not long ago, and would fail again: a person must look, or the bucket must answer first."""
        last = requests.newest_job(session, row.id)
        return (
            last is not None
            and last.kind in (JobKind.DELETE, JobKind.PURGE)
            and last.created_by == "expiry"
            and last.state != JobState.SUCCEEDED
            and now - (last.ended_at or now) < TRY_AGAIN_S
        )

    def _idle(self, session: Session, row: Environment, now: float) -> bool:
        idle_s = row.idle_stop_s if row.idle_stop_s is not None else self._context.settings.idle_stop_s
        if not idle_s:
            return False
        seen = [row.last_activity_at or 0.0, row.ready_at or 0.0]
        guest = session.get(Guest, (row.id, row.generation))
        if guest is not None and guest.seen_at is not None and someone(guest.status.get("logins")):
            seen.append(guest.seen_at)
        return now - max(seen) >= idle_s

    def _say_once(self, environment_id: str, text: str) -> None:
        with self._context.database.write() as session:
            last = session.scalar(
                select(JobLine).where(JobLine.environment_id == environment_id).order_by(JobLine.id.desc()).limit(1)
            )
            if last is None or last.text != text:
                requests.say(session, self._context, environment_id, None, text, level="warning")

    # Rows.

    def clear(self) -> None:
        """Activity of guests is noted; rows whose time is over go."""
        now = self._context.now()
        with self._context.database.write() as session:
            for row in session.scalars(select(Environment).where(Environment.state == EnvironmentState.READY)):
                guest = session.get(Guest, (row.id, row.generation))
                if guest is not None and guest.seen_at is not None and someone(guest.status.get("logins")):
                    row.last_activity_at = max(row.last_activity_at or 0.0, guest.seen_at)
            logins.sweep(self._context, session)
            limits.sweep(session, now)
            session.execute(delete(Ticket).where(Ticket.expires_at < now))
            session.execute(delete(JobLine).where(JobLine.at < now - LINES_KEPT_S))

    # Homes.

    def thin(self) -> list[str]:
        """Snapshots of some homes that are due are thinned, and what nothing refers to is collected. Ids of the homes."""
        context = self._context
        now = context.now()
        with context.database.read() as session:
            ids = list(
                session.scalars(
                    select(Environment.id).where(
                        Environment.state != EnvironmentState.PURGED, Environment.last_backup_number.is_not(None)
                    )
                )
            )
        for gone in set(self._thinned) - set(ids):
            del self._thinned[gone]
        for environment_id in ids:
            self._thinned.setdefault(
                environment_id, now - RETENTION_EVERY_S + _spread(environment_id) * RETENTION_EVERY_S
            )
        due = sorted((at, one) for one, at in self._thinned.items() if now - at >= RETENTION_EVERY_S)
        done = []
        for _, environment_id in due[:HOMES_A_TURN]:
            self._thinned[environment_id] = now
            with _alone(f"retention of {environment_id}"):
                upkeep(context, environment_id)
                done.append(environment_id)
        return done

    # The database.

    def save(self) -> str | None:
        """A copy of the SQLite database below `console/` of the homes' place, once a day (UTC). Its key, where one was made.

        A crash leaves a copy of this day or none; the next turn makes it. Older ones than SAVES_KEPT go after that."""
        context = self._context
        if context.database.kind != "sqlite":
            return None
        today = datetime.fromtimestamp(context.now(), UTC).strftime("%Y-%m-%d")
        with context.database.read() as session:
            row = session.get(Setting, "_saved")
            if row is not None and row.value == today:
                return None
        key = f"{_CONSOLE}{today}.sqlite3"
        objects = context.homes.objects
        try:
            with tempfile.TemporaryDirectory(prefix="saving-", dir=context.settings.state_dir) as directory:
                copy = Path(directory) / "copy"
                context.database.backup(copy)
                # This day's may be there already, of a worker that died before it said so.
                with suppress(PreconditionFailed):
                    objects.put_if_absent(key, copy.read_bytes())
            copies = [entry.key for entry in objects.list(_CONSOLE)]
            for old in copies[:-SAVES_KEPT]:
                objects.delete(old)
        except (StoreError, EnvctlError, OSError) as error:
            _log.warning("the database could not be saved to the bucket: %s", error)
            return None
        with context.database.write() as session:
            session.merge(Setting(key="_saved", value=today))
        return key


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """What goes wrong within ends here, in the log: a line for what is foreseen, with its trace what is not."""
    try:
        yield
    except (EnvctlError, StoreError) as error:
        _log.warning("%s: %s", what, error)
    except Exception:  # noqa: BLE001 - what comes after it in the turn is owed to others
        _log.exception("%s", what)


class _Settled(Exception):
    """What was due is not so any more."""


def someone(logins: object) -> bool:
    """Whether an agent's `logins` (a number, or a list of who) says that somebody is there."""
    if isinstance(logins, bool):
        return logins
    if isinstance(logins, int | float):
        return logins > 0
    return isinstance(logins, list) and bool(logins)


def _check_quota(session: Session, row: Environment) -> None:
    quotas.check(
        session,
        session.get_one(User, row.owner_id),
        session.get_one(Template, row.template_id),
        quotas.Wanted(environments=1, running=1, cores=row.cores, memory_mib=row.memory_mib, disk_gib=row.disk_gib),
        without=row.id,
    )


def _spread(text: str) -> float:
    """0 to 1, always the same for one text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
