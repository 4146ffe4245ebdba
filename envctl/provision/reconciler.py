"""Each minute: what hypervisors have, beside what the rows say.

One rule: silence proves nothing. A hypervisor that does not answer, or not wholly, changes no row; a machine is destroyed only
when it was an orphan for the whole grace, is one still at a look just before, and no row of ours could be about to claim it.

    found                                        what is done
    a machine of ours                            its node, number and state are followed; differences become the row's `finding`
    none, where a row has one                    twice in a row: FAILED with the reason; a reset makes a new one from the backup
    it is off, and nobody stopped it here        STOPPED, with a finding
    it runs, and is stopped here                 READY where its agent reports and the home is there; else a finding
    a tag that no living environment has         an orphan: destroyed after the grace, unless kept or adopted
    two of one tag                               the one that the row names stays; the other is an orphan, and a finding

An environment with a job under way is left to the job.
"""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from envctl.calling import Caller, Context
from envctl.database.access import DatabaseBusy, DatabaseUnavailable
from envctl.database.models import Environment, Guest, Job, Node, Orphan, Vmid
from envctl.drivers.port import DONE, EnvDriver, MachineFound, NodeHeadroom, TaskRef
from envctl.errors import DriverBusy, DriverFailed, EnvctlError
from envctl.identifiers import TAG_PREFIX, is_id, tag_of
from envctl.provision import reconciling, requests
from envctl.provision.steps.reserving import CLAIMED, FOREIGN
from envctl.states import EnvironmentState, JobState, StepName

_log = logging.getLogger(__name__)

EVERY_S: Final = 60.0
REPORTS_S: Final = 120.0
"""A guest that said something within this is there."""
FOREIGN_S: Final = 30 * 86400.0
"""A number that was somebody else's is tried again after this."""
ORPHANS_AT_ONCE: Final = 5
"""More orphans than this whose grace is over at one look are not believed: a person must destroy or keep them."""
DESTROY_S: Final = 120.0

_RESTING: Final = (EnvironmentState.READY, EnvironmentState.STOPPED, EnvironmentState.FAILED)


@dataclass
class _Look:
    """What one turn found, so far."""

    at: float
    machines: int = 0
    missing: int = 0
    findings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    """Environments that watchers must be told of."""


class Reconciler:
    """One of all workers does it at a time (`reconciling.lead`). `_missed` and `_turned` are this process's memory of the look
    before: a new leader needs two looks of its own."""

    def __init__(self, context: Context, worker: str, *, every_s: float = EVERY_S, poll_s: float = 2.0) -> None:
        self._context = context
        self._worker = worker
        self._every_s = every_s
        self._poll_s = poll_s
        self._missed: set[str] = set()
        self._turned: set[str] = set()

    async def run(self) -> None:
        """Until it is cancelled."""
        done_at = 0.0
        try:
            while True:
                try:
                    if await asyncio.to_thread(self._due, done_at):
                        done_at = self._context.now()
                        await self.turn()
                except (DatabaseBusy, DatabaseUnavailable) as error:
                    _log.warning("reconciler: %s", error)
                except Exception:  # noqa: BLE001 - one bad look must not be the last one
                    _log.exception("reconciler")
                await asyncio.sleep(self._poll_s)
        finally:
            await asyncio.to_thread(reconciling.retire, self._context, "reconciler", self._worker)

    def _due(self, done_at: float) -> bool:
        now = self._context.now()
        with self._context.database.read() as session:
            wanted = reconciling.asked(session) > done_at
        if not wanted and now - done_at < self._every_s:
            return False
        return reconciling.lead(self._context, "reconciler", self._worker, 2 * self._every_s + DESTROY_S)

    async def turn(self) -> reconciling.Found:
        """One look at all hypervisors. Each is looked at by itself: whatever one raises keeps nobody from the others."""
        look = _Look(self._context.now())
        for name, driver in self._context.drivers.items():
            with _alone(name, look):
                found = await driver.inventory()
                look.machines += sum(1 for one in found if one.tag)
                with _alone(name, look):
                    doomed = await asyncio.to_thread(self._compare, name, list(found), look)
                    await self._destroy(driver, doomed, look)
                with _alone(name, look):
                    nodes = await driver.headroom()
                    await asyncio.to_thread(self._put_nodes, name, list(nodes), look.at)
        summary = await asyncio.to_thread(self._close, look)
        for environment_id in look.changed:
            self._context.told(environment_id)
        return summary

    # Rows.

    def _compare(self, driver: str, found: list[MachineFound], look: _Look) -> list[Orphan]:
        by_tag: dict[str, list[MachineFound]] = {}
        for one in found:
            if one.tag.startswith(TAG_PREFIX) and is_id(one.tag.removeprefix(TAG_PREFIX)):
                by_tag.setdefault(one.tag, []).append(one)
        with self._context.database.write() as session:
            busy = set(
                session.scalars(select(Job.environment_id).where(Job.state.in_((JobState.QUEUED, JobState.RUNNING))))
            )
            rows = {
                tag_of(row.id): row
                for row in session.scalars(
                    select(Environment).where(
                        Environment.driver == driver, Environment.state != EnvironmentState.PURGED
                    )
                )
            }
            strays: list[MachineFound] = []
            for tag, machines in by_tag.items():
                row = rows.get(tag)
                if row is not None and row.id in busy:
                    continue
                mine = self._mine(row, machines) if row is not None else None
                others = [one for one in machines if one is not mine]
                strays += others
                if row is not None and others and row.machine is not None:
                    self._finding(look, row, f"{len(machines)} machines carry its tag: {_named(machines)}")
                if row is not None and mine is not None:
                    self._follow(session, look, row, mine, alone=not others)
            for tag, row in rows.items():
                if row.machine is None or row.id in busy or row.state not in _RESTING:
                    continue
                if self._mine(row, by_tag.get(tag, [])) is None:
                    self._gone(session, look, row)
                else:
                    self._missed.discard(row.id)
            return self._orphans(session, look, driver, strays, rows, busy)

    @staticmethod
    def _mine(row: Environment, machines: Sequence[MachineFound]) -> MachineFound | None:
        """The machine of the current generation: the one whose number, UUID or name the row has; never a guess among
        several."""
        if row.machine is None:
            return None
        if row.vmid is not None:
            fitting = [one for one in machines if one.vmid == row.vmid]
            if len(fitting) == 1:
                return fitting[0]
        if row.machine_uuid:
            fitting = [one for one in machines if one.uuid == row.machine_uuid]
            if len(fitting) == 1:
                return fitting[0]
        fitting = [one for one in machines if one.machine == row.machine]
        if fitting:
            return fitting[0]
        return machines[0] if len(machines) == 1 and row.vmid is None else None

    def _follow(self, session: Session, look: _Look, row: Environment, mine: MachineFound, *, alone: bool) -> None:
        if row.machine != mine.machine:
            requests.say(
                session, self._context, row.id, None, f"The machine is at {mine.machine} now (it was at {row.machine})."
            )
            row.machine, row.node, row.vmid = mine.machine, mine.node, mine.vmid
            look.changed.add(row.id)
        elif row.node != mine.node:
            row.node = mine.node
            look.changed.add(row.id)
        said = ""
        if mine.running != row.running and not mine.locked:
            said = self._power(session, look, row, mine.running)
        else:
            self._turned.discard(row.id)
        drift = _drift(row, mine) if row.state != EnvironmentState.FAILED else ""
        if said:
            self._finding(look, row, said)
        elif drift:
            self._finding(look, row, drift)
        elif alone and row.finding is not None and not row.finding.startswith(_WENT_OFF):
            row.finding = None
            look.changed.add(row.id)

    def _power(self, session: Session, look: _Look, row: Environment, running: bool) -> str:
        """The machine is on or off, and the row says otherwise. A finding, or "". Believed at the second look: listings show
        states that are some seconds old, and a job may have ended just now."""
        now = self._context.now()
        if row.id not in self._turned:
            self._turned.add(row.id)
            return row.finding or ""
        self._turned.discard(row.id)
        if running:
            guest = session.get(Guest, (row.id, row.generation))
            alive = (
                guest is not None
                and guest.revoked_at is None
                and guest.restored_at is not None
                and now - (guest.seen_at or 0.0) < REPORTS_S
                and (guest.seen_at or 0.0) > (row.stopped_at or 0.0)
            )
            row.running = True
            look.changed.add(row.id)
            if row.state == EnvironmentState.STOPPED and alive and not row.frozen:
                row.state = EnvironmentState.READY
                row.ready_at = row.last_activity_at = now
                requests.say(
                    session, self._context, row.id, None, "It was started at the hypervisor, and reports.", "warning"
                )
                return ""
            return "it was started at the hypervisor" if row.state == EnvironmentState.STOPPED else ""
        row.running = False
        row.stopped_at = now
        look.changed.add(row.id)
        if row.state != EnvironmentState.READY:
            return ""
        row.state = EnvironmentState.STOPPED
        requests.say(
            session, self._context, row.id, None, "The machine went off, though nobody stopped it here.", "warning"
        )
        return f"{_WENT_OFF}, or was shut down from inside"

    def _gone(self, session: Session, look: _Look, row: Environment) -> None:
        look.missing += 1
        if row.id not in self._missed and row.state != EnvironmentState.FAILED:
            self._missed.add(row.id)
            self._finding(look, row, f"machine {row.machine} was not there at the last look")
            return
        reason = (
            f"machine {row.machine} is gone from the hypervisor (reset makes a new one; the home comes from the backup)"
        )
        self._finding(look, row, reason)
        if row.running:
            row.running, row.stopped_at = False, self._context.now()
        if row.state != EnvironmentState.FAILED:
            row.state = EnvironmentState.FAILED
            row.failed_step, row.failed_reason = None, reason
            requests.say(session, self._context, row.id, None, reason[0].upper() + reason[1:], level="error")
        look.changed.add(row.id)

    @staticmethod
    def _finding(look: _Look, row: Environment, text: str) -> None:
        look.findings.append(f"{row.name}: {text}")
        if row.finding != text:
            row.finding = text
            look.changed.add(row.id)

    def _orphans(
        self,
        session: Session,
        look: _Look,
        driver: str,
        strays: Sequence[MachineFound],
        rows: Mapping[str, Environment],
        busy: set[str],
    ) -> list[Orphan]:
        """Rows of orphans as they are now; back come those whose grace is over."""
        now = look.at
        known = {row.machine: row for row in session.scalars(select(Orphan).where(Orphan.driver == driver))}
        for one in strays:
            row = known.pop(one.machine, None)
            if row is None or row.tag != one.tag:
                if row is not None:
                    session.delete(row)
                    session.flush()
                row = Orphan(machine=one.machine, driver=driver, tag=one.tag, first_seen_at=now, seen_at=now)
                session.add(row)
                _log.warning("%s: machine %s (%s) belongs to no environment", driver, one.machine, one.tag)
            row.seen_at, row.name = now, one.name
        for row in known.values():
            # One whose environment has a job under way may show again after it.
            if row.tag.removeprefix(TAG_PREFIX) not in busy:
                session.delete(row)
        session.execute(delete(Vmid).where(Vmid.state == FOREIGN, Vmid.at < now - FOREIGN_S))
        session.flush()
        grace_s = self._context.settings.orphan_grace_s
        over = [
            row
            for row in session.scalars(select(Orphan).where(Orphan.driver == driver, Orphan.seen_at == now))
            if not row.kept and now - row.first_seen_at >= grace_s
        ]
        # What a person named (first_seen_at 0) is one at a time, and meant.
        surprising = [row for row in over if row.first_seen_at > 0]
        if len(surprising) > ORPHANS_AT_ONCE:
            look.findings.append(
                f"{driver}: {len(surprising)} machines belong to no environment; so many are not destroyed unless a person"
                " says so (was an old database put back?)"
            )
            over = [row for row in over if row.first_seen_at == 0]
        return over

    async def _destroy(self, driver: EnvDriver, doomed: Sequence[Orphan], look: _Look) -> None:
        for row in doomed:
            with _alone(f"{driver.name}: {row.machine}", look):
                try:
                    await self._destroy_one(driver, row, look)
                except DriverBusy:
                    raise
                except DriverFailed as error:
                    look.findings.append(f"orphan {row.machine} cannot be destroyed: {error}")

    async def _destroy_one(self, driver: EnvDriver, row: Orphan, look: _Look) -> None:
        found = next((one for one in await driver.find(row.tag) if one.machine == row.machine), None)
        if found is None or found.locked:
            return
        if not await asyncio.to_thread(self._still_orphan, row, found):
            return
        if found.running:
            await self._await(driver, await driver.stop(found.machine))
        await self._await(driver, await driver.destroy(found.machine))
        look.findings.append(f"orphan {row.machine} ({row.name}) was destroyed")
        _log.warning("%s: orphan %s (%s, %s) was destroyed", driver.name, row.machine, row.name, row.tag)
        await asyncio.to_thread(self._forget, row)

    def _still_orphan(self, orphan: Orphan, found: MachineFound) -> bool:
        """Asked again right before it is destroyed: a job may have begun, or a person kept it."""
        with self._context.database.read() as session:
            row = session.get(Orphan, orphan.machine)
            if row is None or row.kept:
                return False
            environment = session.get(Environment, orphan.tag.removeprefix(TAG_PREFIX))
            if environment is None:
                return True
            if requests.open_job(session, environment.id) is not None:
                return False
            cloning = environment.state == EnvironmentState.FAILED and environment.failed_step in _CLONES
            if cloning and environment.machine is None:
                return False  # a retry would take it
            return self._mine(environment, [found]) is None and environment.vmid != (found.vmid or -1)

    def _forget(self, orphan: Orphan) -> None:
        caller = Caller(user_id="", name="reconciler", role="admin", via="console")
        detail = {"name": orphan.name, "tag": orphan.tag, "first_seen_at": orphan.first_seen_at}
        with self._context.audit.act(caller, "admin.orphan_gone", target=orphan.machine, detail=detail) as act:
            session = act.session
            row = session.get(Orphan, orphan.machine)
            if row is not None:
                session.delete(row)
            number = orphan.machine.rpartition("/")[2]
            if number.isdigit():
                claimed = session.get(Vmid, int(number))
                if claimed is not None and claimed.state == CLAIMED and claimed.environment_id is None:
                    session.delete(claimed)

    async def _await(self, driver: EnvDriver, task: TaskRef) -> None:
        """DriverFailed where the task fails or does not end."""
        until = self._context.clock.monotonic() + DESTROY_S
        while task != DONE:
            status = await driver.task(task)
            if status.state == "failed":
                raise DriverFailed(status.message)
            if status.state != "running":
                return
            if self._context.clock.monotonic() >= until:
                raise DriverBusy(f"task {task} is not over after {DESTROY_S:.0f} s")
            await asyncio.sleep(0.5)

    def _put_nodes(self, driver: str, nodes: Sequence[NodeHeadroom], now: float) -> None:
        with self._context.database.write() as session:
            for one in nodes:
                session.merge(
                    Node(
                        name=one.node,
                        driver=driver,
                        online=one.online,
                        cores=one.cores,
                        memory_bytes=one.memory_bytes,
                        memory_used_bytes=one.memory_used_bytes,
                        storages=[
                            {"name": storage, "total_bytes": total, "used_bytes": used}
                            for storage, total, used in one.storages
                        ],
                        at=now,
                    )
                )
            session.flush()
            session.execute(delete(Node).where(Node.driver == driver, Node.name.not_in([one.node for one in nodes])))

    def _close(self, look: _Look) -> reconciling.Found:
        with self._context.database.write() as session:
            orphans = session.scalars(select(Orphan.machine)).all()
            found = reconciling.Found(
                at=look.at,
                machines=look.machines,
                orphans=len(orphans),
                missing=look.missing,
                findings=look.findings,
                errors=look.errors,
            )
            reconciling.put_last(session, found)
            return found


@contextmanager
def _alone(what: str, look: _Look) -> Iterator[None]:
    """What goes wrong within ends here, as an error of the look: a line for what is foreseen, and what is not with its trace
    in the log."""
    try:
        yield
    except EnvctlError as error:
        look.errors.append(f"{what}: {error}")
    except Exception as error:  # noqa: BLE001 - the other hypervisors are looked at all the same
        _log.exception("reconciler: %s", what)
        look.errors.append(f"{what}: {type(error).__name__} (the log has more)")


_WENT_OFF: Final = "it went off by itself"
"""Stays until the next start: its owner should know."""
_CLONES: Final = frozenset({StepName.RESERVE, StepName.FENCE, StepName.CLONE})


def _drift(row: Environment, mine: MachineFound) -> str:
    """What differs from the row. Listings that do not tell have 0. The disk may be a little more than asked for."""
    differences = []
    if mine.cores and mine.cores != row.cores and not (mine.running and row.running):
        differences.append(f"{mine.cores} cores instead of {row.cores}")
    if mine.memory_mib and abs(mine.memory_mib - row.memory_mib) > 1 and not (mine.running and row.running):
        differences.append(f"{mine.memory_mib} MiB of memory instead of {row.memory_mib}")
    if mine.disk_gib and mine.disk_gib < row.disk_gib:
        differences.append(f"{mine.disk_gib} GiB of disk instead of {row.disk_gib}")
    return f"the machine has {', '.join(differences)}" if differences else ""


def _named(machines: Sequence[MachineFound]) -> str:
    return ", ".join(sorted(one.machine for one in machines))
