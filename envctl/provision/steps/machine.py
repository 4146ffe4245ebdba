"""A machine from a template: cloned, set up, told who it is, started.

a crash in CLONE       `Work.make`; the machine is found by its tag or its number, and waited for until nothing locks it
a crash in CONFIGURE   repeated: it makes the same things true again
a crash in SEED        repeated with a new token; the one before it opens nothing any more
a crash in START       the look sees that it runs
a crash in RESIZE      repeated
"""

import base64
import re

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.database.models import Environment, Guest, Job, JobStep
from envctl.drivers.port import DONE, CloneSpec, MachineFound, MachineSpec, TaskRef
from envctl.errors import DriverBusy, DriverFailed
from envctl.homes.requests import hash_of
from envctl.provision.steps.reserving import claim, disown
from envctl.provision.work import Facts, StepFailed, Work
from envctl.states import JobState, StepName
from s3core.settings import EnvctlSettings

CLASHES_MAX = 50
"""Numbers that somebody else has, one after the other, before a person must look."""


async def clone(work: Work) -> None:
    """One machine of the environment's number and tag, whole and unlocked."""
    facts = await work.facts()
    await _slot(work, facts)
    lost: set[int | None] = set()
    """Numbers for which a clone may be under way that nobody has answered for."""

    async def look() -> bool:
        environment = (await work.facts()).environment
        found = work.current(environment, await work.found())
        if work.detail.get("broken") is True:
            if found is not None:
                await _clear(work, found)
            await work.note(broken=False)
            return False
        if found is None:
            return False
        if work.detail.get("asked") is not True:
            # Left by an earlier job that failed: whether it is whole, nobody knows.
            if found.running:
                raise StepFailed(
                    f"{found.machine} carries this environment's tag and runs", "look what it is, then retry"
                )
            await _clear(work, found)
            return False
        if found.locked:
            await _unlocked(work, environment)
            found = work.current(environment, await work.found())
            if found is None:
                return False
        await _take(work, found)
        return True

    async def act() -> TaskRef:
        for _ in range(CLASHES_MAX):
            facts = await work.facts()
            vmid = facts.environment.vmid
            if work.detail.get("asked") is not True:
                await work.note(asked=True)
            try:
                return await work.driver.clone(_clone_spec(facts, work.tag))
            except DriverBusy as error:
                if not error.nothing_done:
                    lost.add(vmid)
                raise
            except DriverFailed as error:
                if error.details.get("reason") != "exists" or vmid is None:
                    raise
                # Ours, of a call whose answer was lost? Its tag may show late.
                if await (work._settled(look) if vmid in lost or work.attempt > 1 else look()):
                    return DONE
                await _next_number(work, vmid)
        raise StepFailed(f"{CLASHES_MAX} numbers in a row are taken by others", "give the driver a range of its own")

    async def failed(message: str) -> bool:
        await work.note(broken=True)
        return False

    await work.say(f"Cloning template {facts.template.name}.")
    await work.make(
        what="the clone",
        look=look,
        act=act,
        limit_s=work.pace.clone_s,
        node=facts.template.options.get("node", ""),
        failed=failed,
    )


async def configure(work: Work) -> None:
    """Cores, memory, disk, UUID and tag as the environment has them."""
    facts = await work.facts()
    environment = facts.environment
    await _configure(work, facts, seed_url="", what="the configuration")
    await work.say(
        f"{environment.cores} cores, {environment.memory_mib} MiB of memory, {environment.disk_gib} GiB of disk."
    )


async def seed(work: Work) -> None:
    """A new token for the machine's first boot. Its ten minutes (`boot_s`) begin here, just before the start."""
    machine = await work.need_machine()
    if (await work.facts()).enrolled:
        return
    if machine.running:
        # It has had a token that is void now, and no home: nothing on it is anybody's.
        await work.say("The machine never reported; it is powered off and told anew who it is.")
        await power_off(work, machine)
    await give_seed(work)


async def give_seed(work: Work) -> None:
    settings = work.context.settings
    token = base64.urlsafe_b64encode(work.context.random(32)).rstrip(b"=").decode()

    def change(session: Session) -> Facts:
        environment = session.get_one(Environment, work.environment_id)
        guest = session.get(Guest, (work.environment_id, environment.generation))
        if guest is None or guest.revoked_at is not None:
            raise StepFailed("this machine has no identity any more", "reset makes a new machine; the home stays")
        guest.seed_hash = hash_of(token)
        guest.seed_expires_at = work.context.now() + settings.boot_s
        guest.seed_address = None
        environment.machine_uuid = guest.machine_uuid
        return Facts(environment, facts.template, facts.owner, guest)

    facts = await work.facts()
    facts = await work.write(change)
    await _configure(work, facts, seed_url=f"{guest_url(settings)}/seed/{token}/", what="the seed")


async def start(work: Work) -> None:
    """It runs. A machine that never enrolled is given a new seed first: the old one has run out."""
    facts = await work.facts()
    if StepName.SEED not in work.steps and not facts.enrolled and work.detail.get("seeded") is not True:
        if (await work.need_machine()).running:
            await power_off(work, await work.need_machine())
        await give_seed(work)
        await work.note(seeded=True)

    async def look() -> bool:
        machine = await work.need_machine()
        return (await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")).running

    async def act() -> TaskRef:
        return await work.driver.start((await work.need_machine()).machine)

    machine = await work.need_machine()
    await work.say(f"Starting {machine.machine}.")
    await work.make(what="the start", look=look, act=act, node=machine.node)
    await work.set_environment(running=True)


async def resize(work: Work) -> None:
    """The job's cores, memory and disk, of those that it names. Disks only grow."""
    facts = await work.facts()
    environment = facts.environment
    cores = _number(work, "cores", environment.cores)
    memory_mib = _number(work, "memory_mib", environment.memory_mib)
    disk_gib = max(_number(work, "disk_gib", environment.disk_gib), environment.disk_gib)
    asked = False

    async def look() -> bool:
        return asked

    async def act() -> TaskRef:
        nonlocal asked
        task = await work.driver.resize((await work.need_machine()).machine, cores, memory_mib, disk_gib)
        asked = True
        return task

    if await work.machine() is not None:
        await work.make(what="the resize", look=look, act=act, node=environment.node or "", settle=False)
    await work.set_environment(cores=cores, memory_mib=memory_mib, disk_gib=disk_gib)
    running = environment.running and (cores, memory_mib) != (environment.cores, environment.memory_mib)
    await work.say(
        f"{cores} cores, {memory_mib} MiB of memory, {disk_gib} GiB of disk"
        + ("; what needs a restart takes effect with the next start." if running else ".")
    )


async def power_off(work: Work, machine: MachineFound) -> None:
    """Off now. Only for machines on which nothing is anybody's, or where a person said so."""

    async def look() -> bool:
        status = await work.ask(lambda: work.driver.status(machine.machine), "the machine's status")
        return not status.running

    await work.make(
        what="the power-off", look=look, act=lambda: work.driver.stop(machine.machine), node=machine.node, settle=False
    )
    await work.set_environment(running=False, stopped_at=work.context.now())


def guest_url(settings: EnvctlSettings) -> str:
    """Where guests find the console, without a slash at the end."""
    return (settings.guest_url or settings.url or f"http://{settings.listen}").rstrip("/")


def marker(environment_id: str, generation: int) -> str:
    """The last line of a machine's description."""
    return f"envctl:{environment_id}:{generation}"


def machine_name(owner: str, name: str) -> str:
    """What the hypervisor calls it: a DNS label. The tag finds it, not this."""
    label = re.sub(r"[^a-z0-9-]+", "-", f"{owner}-{name}".lower()).strip("-")
    return label[:63].rstrip("-") or "environment"


def _description(facts: Facts) -> str:
    environment = facts.environment
    return (
        f"Environment {environment.name} of {facts.owner.name}, made by s3-envctl. Its home is in the bucket.\n"
        f"{marker(environment.id, environment.generation)}"
    )


def _clone_spec(facts: Facts, tag: str) -> CloneSpec:
    environment = facts.environment
    return CloneSpec(
        environment_id=environment.id,
        generation=environment.generation,
        name=machine_name(facts.owner.name, environment.name),
        tag=tag,
        source=facts.template.source,
        options=dict(facts.template.options),
        vmid=environment.vmid,
        description=_description(facts),
    )


async def _configure(work: Work, facts: Facts, *, seed_url: str, what: str) -> None:
    environment = facts.environment
    spec = MachineSpec(
        cores=environment.cores,
        memory_mib=environment.memory_mib,
        disk_gib=environment.disk_gib,
        uuid=environment.machine_uuid or "",
        seed_url=seed_url,
        tag=work.tag,
        description=_description(facts),
    )
    asked = False

    async def look() -> bool:
        return asked

    async def act() -> TaskRef:
        nonlocal asked
        task = await work.driver.configure((await work.need_machine()).machine, spec)
        asked = True
        return task

    async def failed(message: str) -> bool:
        nonlocal asked
        asked = False
        return False

    await work.make(what=what, look=look, act=act, node=environment.node or "", settle=False, failed=failed)


async def _slot(work: Work, facts: Facts) -> None:
    """Wait until fewer than the driver's `clones_at_once` of this template are under way, counted in the database, so that all
    workers together keep to it."""
    key = f"{facts.template.driver}/{facts.template.source}"
    most = work.driver.clones_at_once

    async def taken() -> bool:
        return await work.write(lambda session: _take_slot(session, work, key, most))

    if not await work.wait(
        taken,
        what="another clone of this template",
        limit_s=work.pace.clone_s * 4,
        poll_s=work.pace.task_poll_s,
        may_cancel=True,
    ):
        raise StepFailed("other clones of this template did not end", "look at the jobs under way")


def _take_slot(session: Session, work: Work, key: str, most: int) -> bool:
    others = session.scalars(
        select(JobStep)
        .join(Job, Job.id == JobStep.job_id)
        .where(
            Job.state == JobState.RUNNING,
            JobStep.name == StepName.CLONE,
            JobStep.state == "running",
            JobStep.id != work.step_id,
        )
    )
    if sum(1 for other in others if other.detail.get("slot") == key) >= most:
        return False
    work.detail = work.detail | {"slot": key}
    session.get_one(JobStep, work.step_id).detail = work.detail
    return True


async def _take(work: Work, found: MachineFound) -> None:
    await work.set_environment(machine=found.machine, node=found.node, vmid=found.vmid, running=found.running)


async def _unlocked(work: Work, environment: Environment) -> None:
    """Something is at work on it: a clone of ours whose answer was lost."""

    async def over() -> bool:
        found = work.current(environment, await work.found())
        return found is None or not found.locked

    if not await work.wait(
        over, what="a clone that is under way", limit_s=work.pace.clone_s, poll_s=work.pace.task_poll_s
    ):
        raise StepFailed(
            f"machine {environment.vmid} stays locked by a clone that nobody knows of",
            "unlock or remove it at the hypervisor, then retry",
        )


async def _clear(work: Work, found: MachineFound) -> None:
    """What a clone that failed has left: nobody's, since no machine of this generation has started."""
    await work.say(f"Removing what the failed clone left ({found.machine}).", level="warning")
    task = await work.ask(lambda: work.driver.destroy(found.machine), "the removal of a failed clone")

    async def gone() -> bool:
        if task != DONE:
            status = await work.ask(lambda: work.driver.task(task), "the removal of a failed clone")
            if status.state == "failed":
                raise StepFailed(
                    f"what the failed clone left cannot be removed: {status.message}", "remove it, then retry"
                )
        return all(one.machine != found.machine for one in await work.found())

    if not await work.wait(
        gone, what="the removal of a failed clone", limit_s=work.pace.task_s, poll_s=work.pace.task_poll_s
    ):
        raise StepFailed("what the failed clone left cannot be removed", f"remove {found.machine}, then retry")


async def _next_number(work: Work, vmid: int) -> None:
    numbers = work.driver.vmid_range
    if numbers is None:
        raise StepFailed(f"the hypervisor says that machine {vmid} exists, but gives no range of numbers")

    def change(session: Session) -> int:
        disown(session, work.context, work.environment_id, vmid)
        return claim(session, work.context, work.environment_id, numbers)

    another = await work.write(change)
    await work.say(f"Number {vmid} is somebody else's; taking {another}.", level="warning")


def _number(work: Work, name: str, otherwise: int) -> int:
    value = work.parameters.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise
