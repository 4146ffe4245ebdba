"""What is waited for in the guest: that its agent reports, that the home is there, that the last changes are saved.

    a crash in BOOT, RESTORE   nothing was asked; the repeated step waits again
    a crash in BACKUP          the command's row and its id in the step's row are one transaction: the repeated step waits for
                               the same one

A final backup that cannot be made ends the job, unless a person accepts the loss: nothing here decides that alone.
"""

import math
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.database.models import Backup, Environment, Guest, GuestCommand, JobStep
from envctl.drivers.port import MachineFound
from envctl.homes.requests import ask_in
from envctl.provision.work import Facts, StepFailed, Work, last_step
from envctl.states import JobKind, StepName

STATUS_EVERY: Final = 10
"""Polls of a guest's rows between two looks at whether its machine still runs."""


async def boot(work: Work) -> None:
    """The agent has reported since the start."""
    limit_s = work.context.settings.boot_s
    machine = await work.need_machine()
    polls = 0
    off = 0

    async def over() -> bool:
        nonlocal polls, off
        if await work.read(lambda session: _reported(session, work)):
            return True
        polls += 1
        if polls % STATUS_EVERY == 0:
            status = await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")
            off = 0 if status.running else off + 1
            if off >= 2:
                await work.set_environment(running=False, stopped_at=work.context.now())
                raise StepFailed(
                    "the machine went off before its agent reported",
                    "look at its screen, or at the hypervisor's log, then retry",
                )
        return False

    work.point("before-act")
    await work.say("Waiting until the agent in the machine reports.")
    work.point("after-act")
    work.point("after-row")
    if not await work.wait(
        over, what="the agent in the machine", limit_s=limit_s, poll_s=work.pace.guest_poll_s, may_cancel=True
    ):
        raise StepFailed(
            f"the machine runs, but its agent did not report within {shown_seconds(limit_s)}",
            "the template needs Python 3.9, cloud-init or the agent, and a way to the console's address; see its screen",
        )
    address = (await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")).address
    if address:
        await work.set_environment(address=address)
    await work.say(f"The agent reports{f' from {address}' if address else ''}.")
    work.point("after-verify")


async def restore(work: Work) -> None:
    """The agent says that the home is there."""
    guest: Guest | None = None

    async def over() -> bool:
        nonlocal guest
        guest = (await work.facts()).guest
        if guest is None:
            raise StepFailed("the machine's identity was taken back", "reset makes a new machine; the home stays")
        if guest.restored_at is not None:
            return True
        if silent_s(guest, work.context.now()) > work.pace.agent_silent_s + (work.context.now() - began):
            raise StepFailed(
                "the agent stopped reporting while it brought the home back", "see the machine's screen, then retry"
            )
        return False

    began = work.context.now()
    limit_s = work.context.settings.restore_s
    work.point("before-act")
    work.point("after-act")
    work.point("after-row")
    if not await work.wait(
        over,
        what="the home",
        limit_s=limit_s,
        poll_s=work.pace.guest_poll_s,
        may_cancel=True,
        progress=lambda: shown_status(guest),
    ):
        raise StepFailed(
            f"the home was not back within {shown_seconds(limit_s)}", "raise restore_s in [envctl], then retry"
        )
    await work.set_environment(restore_snapshot=None)
    await work.say("The home is there.")
    work.point("after-verify")


async def backup(work: Work) -> None:
    """What the machine holds is in the bucket, or there is nothing to save, or a person accepted the loss."""
    facts = await work.facts()
    machine = await work.machine()
    if machine is None:
        await _skip(work, "There is no machine: nothing can be saved now, and the last backup is what there is.")
        return
    if not facts.restored:
        await _skip(work, "The machine never had the home: there is nothing to save.")
        return
    status = await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")
    if not status.running:
        await _machine_off(work)
        return
    reason = await _ask_guest(work, facts, machine)
    if reason is None:
        return
    await _lost(work, reason, "start it or look at its screen; or accept that the last changes are lost")


async def _machine_off(work: Work) -> None:
    loss = await work.read(lambda session: unsaved_s(session, work.environment_id, work.context.settings.shutdown_s))
    if loss is None:
        await _skip(work, "The machine is off, and was saved before.")
    elif work.kind in (JobKind.STOP, JobKind.RESTART):
        # Not noted as saved: whoever destroys it later must be asked.
        await _skip(work, "The machine is off already; what it did not save is still on its disk.", saved=False)
    else:
        await _lost(
            work,
            "the machine is off, and its last changes were never saved",
            "start it, so that it saves them; or accept that they are lost",
        )


async def _lost(work: Work, reason: str, hint: str) -> None:
    """End the job, or go on because a person accepted it."""
    environment = (await work.facts()).environment
    at_stake = shown_loss(environment, work.context.now())
    if not work.flag("accept_loss"):
        raise StepFailed(f"{reason}; {at_stake} would be at stake", hint)
    await work.note(saved=False)
    await work.say(
        f"Going on without a backup, as asked: {reason}. {at_stake[0].upper()}{at_stake[1:]} may be lost.", "warning"
    )
    work.point("after-verify")


async def _skip(work: Work, text: str, *, saved: bool = True) -> None:
    await work.note(saved=saved, skipped=True)
    await work.say(text)
    work.point("after-verify")


async def _ask_guest(work: Work, facts: Facts, machine: MachineFound) -> str | None:
    """None: saved. Else why not."""
    command_id = work.detail.get("command")
    if not isinstance(command_id, str):
        work.point("before-act")
        await work.say("Saving the home before the machine goes off.")

        def ask(session: Session) -> str:
            environment = session.get_one(Environment, work.environment_id)
            asked = ask_in(session, work.context, environment, "backup", {"kind": "final"})
            work.detail = work.detail | {"command": asked}
            session.get_one(JobStep, work.step_id).detail = work.detail
            return asked

        command_id = await work.write(ask)
        work.point("after-act")
        work.point("after-row")
    wanted = str(command_id)
    began = work.context.clock.monotonic()
    command: GuestCommand | None = None
    guest: Guest | None = facts.guest
    reason: str | None = None
    polls = off = 0

    async def over() -> bool:
        nonlocal command, guest, reason, polls, off
        command = await work.read(lambda session: session.get(GuestCommand, wanted))
        if command is None or command.ended_at is not None:
            return True
        guest = (await work.facts()).guest
        waited = work.context.clock.monotonic() - began
        polls += 1
        if command.taken_at is None and waited > work.pace.command_taken_s:
            reason = f"the agent did not answer within {shown_seconds(work.pace.command_taken_s)}"
        elif guest is None:
            reason = "the machine's identity was taken back"
        elif waited > work.pace.agent_silent_s and silent_s(guest, work.context.now()) > work.pace.agent_silent_s:
            reason = f"the agent took the order and then was silent for {shown_seconds(work.pace.agent_silent_s)}"
        elif polls % STATUS_EVERY == 0:
            status = await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")
            off = 0 if status.running else off + 1
            if off >= 2:
                reason = "the machine went off while it was saved"
        return reason is not None

    if not await work.wait(
        over,
        what="the final backup",
        limit_s=work.context.settings.restore_s,
        poll_s=work.pace.guest_poll_s,
        may_cancel=True,
        progress=lambda: shown_status(guest),
    ):
        reason = f"the final backup was not done within {shown_seconds(work.context.settings.restore_s)}"
    if reason is not None or command is None:
        await work.write(lambda session: _withdraw(session, wanted, work.context.now()))
        await work.note(command=None)
        return reason or "the order to save is gone from the database"
    if command.ok is not True:
        await work.note(command=None)
        return f"the final backup failed: {command.answer.get('message') or 'the agent gives no reason'}"
    number = command.answer.get("number")
    await work.note(saved=True, number=number)
    await work.say(f"Saved{f': backup {number}' if isinstance(number, int) else ''}.")
    work.point("after-verify")
    return None


def _withdraw(session: Session, command_id: str, now: float) -> None:
    command = session.get(GuestCommand, command_id)
    if command is not None and command.ended_at is None:
        command.ended_at, command.ok, command.answer = now, False, {"message": "nobody waits for it any more"}


def _reported(session: Session, work: Work) -> bool:
    environment = session.get_one(Environment, work.environment_id)
    guest = session.get(Guest, (work.environment_id, environment.generation))
    if guest is None or guest.enrolled_at is None or guest.revoked_at is not None:
        return False
    started = last_step(session, work.environment_id, StepName.START, job_id=work.job_id)
    return started is None or max(guest.seen_at or 0.0, guest.enrolled_at) >= started.started_at


def unsaved_s(session: Session, environment_id: str, shutdown_s: float) -> float | None:
    """How much of a machine that is off was never saved: seconds between its last backup and when it went off. None: all was
    saved, by a backup of ours before the shutdown or by the agent during it."""
    environment = session.get_one(Environment, environment_id)
    started = last_step(session, environment_id, StepName.START)
    saved = last_step(session, environment_id, StepName.BACKUP)
    began = started.started_at if started is not None else 0.0
    off_at = environment.stopped_at or began
    if saved is not None and saved.detail.get("saved") is True and saved.started_at >= began:
        shut = last_step(session, environment_id, StepName.SHUTDOWN)
        # Off much later than our shutdown: somebody started it at the hypervisor meanwhile, and worked on it.
        if (
            shut is not None
            and shut.started_at >= saved.started_at
            and off_at <= (shut.ended_at or shut.started_at) + FOUND_OFF_S
        ):
            return None
    newest = session.scalar(
        select(Backup).where(Backup.environment_id == environment_id).order_by(Backup.number.desc()).limit(1)
    )
    if (
        newest is not None
        and newest.kind == "final"
        and began <= newest.at
        and off_at - newest.at <= shutdown_s + FOUND_OFF_S
    ):
        return None
    return max(0.0, off_at - (environment.last_backup_at or began))


FOUND_OFF_S: Final = 180.0
"""A machine that went off by itself is found so within this, three looks of the reconciler."""


def silent_s(guest: Guest, now: float) -> float:
    """Since it last said anything."""
    return now - max(guest.seen_at or 0.0, guest.enrolled_at or 0.0)


def shown_loss(environment: Environment, now: float) -> str:
    """What is at stake, in words."""
    if environment.last_backup_at is None:
        return "everything in this home"
    until = now if environment.running else (environment.stopped_at or now)
    minutes = max(1, math.ceil((until - environment.last_backup_at) / 60))
    return "the last minute" if minutes == 1 else f"the last {minutes} minutes"


def shown_seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def shown_status(guest: Guest | None) -> str:
    """What the agent said last."""
    if guest is None:
        return ""
    status = guest.status
    progress = status.get("progress")
    parts = [str(status.get("phase") or "")]
    if isinstance(progress, int | float) and not isinstance(progress, bool):
        parts.append(f"{100 * progress:.0f} %" if 0 <= progress <= 1 else str(progress))
    parts.append(str(status.get("message") or ""))
    return " ".join(part for part in parts if part)
