"""Before there is a machine: a number of its own, and the home's next generation.

a crash in RESERVE   after the row: the number is claimed for this environment, and the repeated step finds it
a crash in FENCE     the generation is in the step's row before the bucket is asked; the repeated step asks for the same one.
                     Between bucket and rows: no machine can commit, and none is there that should
"""

import asyncio
import uuid
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.models import Environment, Guest, GuestCommand, Vmid
from envctl.errors import Fenced
from envctl.homes.errors import HomeBusy
from envctl.provision.work import StepFailed, Work
from s3core.errors import OutcomeUnknown, Unavailable

T = TypeVar("T")

CLAIMED = "claimed"
FOREIGN = "foreign"
FENCE_TRIES = 5


async def reserve(work: Work) -> None:
    """A number of the driver's range in a row of ours, before the hypervisor hears of it."""
    numbers = work.driver.vmid_range
    work.point("before-act")
    if numbers is not None:
        vmid = await work.write(lambda session: claim(session, work.context, work.environment_id, numbers))
        work.point("after-act")
        work.point("after-row")
        await work.say(f"Number {vmid} is reserved.")
        work.point("during-wait")
    work.point("after-verify")


def claim(session: Session, context: Context, environment_id: str, numbers: tuple[int, int]) -> int:
    """The number this environment has, or the lowest free one. StepFailed: none is left."""
    environment = session.get_one(Environment, environment_id)
    mine = session.scalar(select(Vmid).where(Vmid.environment_id == environment_id, Vmid.state == CLAIMED).limit(1))
    if mine is None:
        first, last = numbers
        taken = set(session.scalars(select(Vmid.vmid).where(Vmid.vmid.between(first, last))))
        free = next((number for number in range(first, last + 1) if number not in taken), None)
        if free is None:
            raise StepFailed(
                f"no number from {first} to {last} is free", "widen vmid_first and vmid_last of the driver"
            )
        mine = Vmid(vmid=free, environment_id=environment_id, state=CLAIMED, at=context.now())
        session.add(mine)
    environment.vmid = mine.vmid
    return mine.vmid


def disown(session: Session, context: Context, environment_id: str, vmid: int) -> None:
    """Somebody else has a machine of that number: nobody here asks for it again."""
    row = session.get(Vmid, vmid)
    if row is not None and row.environment_id == environment_id:
        row.environment_id, row.state, row.at = None, FOREIGN, context.now()
    session.flush()


async def fence(work: Work) -> None:
    """The home's head gets the next generation: from here on no older machine can commit, whatever it believes."""
    homes = work.context.homes
    for _ in range(FENCE_TRIES):
        generation = work.detail.get("generation")
        if not isinstance(generation, int):
            environment = (await work.facts()).environment
            head = await patiently(work, lambda: homes.head(work.environment_id), "the home's head")
            generation = max(environment.generation, head.generation if head is not None else 0) + 1
            await work.note(generation=generation)
        wanted = generation
        work.check()
        work.point("before-act")
        try:
            await patiently(work, partial(homes.fence, work.environment_id, wanted), "the home's head")
            break
        except Fenced:
            # Another generation came between, of a database from before that was put back: draw a higher one.
            await work.note(generation=None)
    else:
        raise StepFailed(
            "the home's head is changed by somebody else again and again", "is a second console at work on it?"
        )
    work.point("after-act")

    def change(session: Session) -> None:
        now = work.context.now()
        environment = session.get_one(Environment, work.environment_id)
        if session.get(Guest, (work.environment_id, wanted)) is None:
            environment.machine_uuid = str(uuid.UUID(bytes=work.context.random(16), version=4))
            session.add(
                Guest(
                    environment_id=work.environment_id,
                    generation=wanted,
                    machine_uuid=environment.machine_uuid,
                    seed_expires_at=0.0,
                )
            )
        environment.generation = wanted
        revoke(session, work.environment_id, now, below=wanted)

    await work.write(change)
    work.point("after-row")
    await work.say(f"The home waits for machine {wanted}; older ones can no longer write to it.")
    work.point("during-wait")
    work.point("after-verify")


def revoke(session: Session, environment_id: str, now: float, *, below: int | None = None) -> None:
    """Identities of the environment's machines (of generations lower than `below`) are taken back, and what was asked of them
    is over."""
    guests = update(Guest).where(Guest.environment_id == environment_id, Guest.revoked_at.is_(None))
    commands = update(GuestCommand).where(
        GuestCommand.environment_id == environment_id, GuestCommand.ended_at.is_(None)
    )
    if below is not None:
        guests = guests.where(Guest.generation < below)
        commands = commands.where(GuestCommand.generation < below)
    session.execute(guests.values(revoked_at=now, seed_hash=None))
    session.execute(commands.values(ended_at=now, ok=False, answer={"message": "the machine was replaced"}))


async def patiently(work: Work, call: Callable[[], T], what: str) -> T:
    """A call to the bucket that may be repeated, again and again while the bucket does not answer."""
    clock = work.context.clock
    began = clock.monotonic()
    pause = work.pace.call_backoff_s
    while True:
        work.check()
        try:
            return await asyncio.to_thread(call)
        except (Unavailable, OutcomeUnknown, HomeBusy) as error:
            if clock.monotonic() - began >= work.pace.busy_s:
                raise StepFailed(f"{what}: {error}", "retry when the bucket answers again") from error
            await work.say(f"{what}: {error}; trying again.", level="warning")
        await work.backoff(pause)
        pause = min(2 * pause, work.pace.call_backoff_max_s)
