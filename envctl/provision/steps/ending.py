"""A machine goes off, goes away, is forgotten; and at last the home.

    a crash in SHUTDOWN, STOP   the look sees that it is off
    a crash in DESTROY          the look sees that it is gone
    a crash in FORGET           before the transaction all is to be done, after it nothing; doing it again changes nothing
    a crash in SWEEP            the home is partly deleted; the repeated step deletes the rest

DESTROY never touches a machine that runs and has had the home: whoever started it meanwhile worked on it.
"""

from sqlalchemy import delete as delete_rows
from sqlalchemy.orm import Session

from envctl.database.models import Backup, Environment, Orphan, Vmid
from envctl.drivers.port import MachineFound, TaskRef
from envctl.provision.steps.guest import shown_seconds
from envctl.provision.steps.machine import power_off
from envctl.provision.steps.reserving import CLAIMED, patiently, revoke
from envctl.provision.work import StepFailed, Work
from envctl.states import JobKind


async def shutdown(work: Work) -> None:
    """It is off: shut down in order; powered off only where `force` was given, or where it never had the home."""
    machine = await work.machine()
    if machine is None:
        await _is_off(work)
        return
    facts = await work.facts()
    limit_s = work.context.settings.shutdown_s
    orderly = facts.restored
    too_long = False

    async def look() -> bool:
        return not (await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")).running

    async def act() -> TaskRef:
        if orderly:
            return await work.driver.shutdown(machine.machine, limit_s)
        return await work.driver.stop(machine.machine)

    async def failed(message: str) -> bool:
        nonlocal orderly, too_long
        if not orderly or message.startswith("busy: "):
            return False
        too_long = True
        if work.flag("force"):
            orderly = False
            await work.say(f"The machine did not shut down ({message}); powering it off, as asked.", level="warning")
            return True
        return False

    if facts.environment.running and orderly:
        await work.say(f"Shutting the machine down; it has {shown_seconds(limit_s)}.")
    try:
        await work.make(
            what="the shutdown",
            look=look,
            act=act,
            node=machine.node,
            settle=False,
            failed=failed,
            limit_s=limit_s + work.pace.task_s,
        )
    except StepFailed as error:
        if too_long:
            raise StepFailed(
                f"the machine did not shut down within {shown_seconds(limit_s)}",
                "look at its screen; or power it off with `force`: its home was saved before",
            ) from error
        raise
    await _is_off(work)
    await work.say("The machine is off.")


async def stop(work: Work) -> None:
    """It is off, at once."""
    machine = await work.machine()
    if machine is not None:
        await power_off(work, machine)
    await _is_off(work)


async def _is_off(work: Work) -> None:
    def change(session: Session) -> None:
        environment = session.get_one(Environment, work.environment_id)
        if environment.running or environment.stopped_at is None:
            environment.stopped_at = work.context.now()
        environment.running = False

    await work.write(change)


async def destroy(work: Work) -> None:
    """No machine of this environment is left at the hypervisor."""
    restored = (await work.facts()).restored
    await _no_clone(work)
    for _ in range(10):
        found = await work.found()
        if not found:
            break
        for machine in found:
            await _destroy_one(work, machine, restored)
    else:
        raise StepFailed("machines with this environment's tag come again and again", "does somebody else clone it?")
    work.point("after-verify")


async def _no_clone(work: Work) -> None:
    """A clone that nobody waits for any more may still be under way; hypervisors show it by its number alone."""
    vmid = (await work.facts()).environment.vmid
    if vmid is None:
        return

    async def over() -> bool:
        machines = await work.ask(work.driver.inventory, "the inventory")
        return not any(one.vmid == vmid and not one.tag and one.locked for one in machines)

    if not await work.wait(
        over, what="a clone that is under way", limit_s=work.pace.clone_s, poll_s=work.pace.task_poll_s
    ):
        raise StepFailed(f"number {vmid} is still being cloned", "end that task at the hypervisor, then retry")


async def _destroy_one(work: Work, machine: MachineFound, restored: bool) -> None:
    status = await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")
    if status.running:
        if restored and work.kind is not JobKind.PURGE and not (work.flag("force") and work.flag("accept_loss")):
            raise StepFailed(
                f"{machine.machine} was started meanwhile",
                "retry: it is saved and shut down again before it is destroyed",
            )
        await power_off(work, machine)

    async def look() -> bool:
        return all(one.machine != machine.machine for one in await work.found())

    await work.say(f"Destroying {machine.machine}.")
    await work.make(
        what="the removal of the machine",
        look=look,
        act=lambda: work.driver.destroy(machine.machine),
        node=machine.node,
    )


async def forget(work: Work) -> None:
    """Rows are in order: the number is free, identities are revoked."""
    work.point("before-act")
    gone = await work.found()
    if gone:
        raise StepFailed(f"{gone[0].machine} is still there", "retry")
    now = work.context.now()

    def change(session: Session) -> None:
        environment = session.get_one(Environment, work.environment_id)
        revoke(session, work.environment_id, now)
        session.execute(delete_rows(Vmid).where(Vmid.environment_id == work.environment_id, Vmid.state == CLAIMED))
        if environment.machine is not None:
            session.execute(delete_rows(Orphan).where(Orphan.machine == environment.machine))
        environment.machine = environment.node = environment.vmid = environment.address = None
        environment.machine_uuid = None
        environment.running = False
        environment.finding = None

    await work.write(change)
    work.point("after-act")
    work.point("after-row")
    work.point("during-wait")
    await work.say("The machine is gone; the home stays in the bucket.")
    work.point("after-verify")


async def sweep(work: Work) -> None:
    """The home's objects are deleted, for good. The row stays."""
    environment = (await work.facts()).environment
    now = work.context.now()
    if environment.delete_after is None or environment.delete_after > now:
        raise StepFailed("the home is to be kept still", "a home is deleted when its days are over, and not before")
    work.point("before-act")
    await patiently(work, lambda: work.context.homes.purge(work.environment_id), "the home's objects")
    work.point("after-act")

    def change(session: Session) -> None:
        session.execute(delete_rows(Backup).where(Backup.environment_id == work.environment_id))
        row = session.get_one(Environment, work.environment_id)
        row.stored_bytes = 0
        row.last_backup_at = row.last_backup_number = None

    await work.write(change)
    work.point("after-row")
    work.point("during-wait")
    await work.say("The home is deleted.")
    work.point("after-verify")
