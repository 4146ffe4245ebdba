"""`blockdev/lio` on the real thing: rtslib, configfs, the kernel's own rules; no daemon, since devices do not wait for one.

One rule: each function leaves LIO as it found it, and returns what was not as it should be.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from blockdev.lio import plan, setup
from blockdev.lio.found import Found
from blockdev.lio.kernel import Kernel
from blockdev.lio.wanted import Chap, Portal, Wanted

IQN = "iqn.2025-01.internal.bucketworks:"
HOSTS = ("iqn.2024-01.org.example:one", "iqn.2024-01.org.example:two")
OPEN = Wanted(
    volume="vm1",
    serial="0b9c7a3e-0000-4000-8000-000000000001",
    size_bytes=64 << 20,
    sector_bytes=512,
    iqn=f"{IQN}vm1",
    lun=0,
    portals=(Portal("127.0.0.1", 4260), Portal("::1", 4261)),
)
CLOSED = replace(
    OPEN,
    sector_bytes=4096,
    lun=3,
    initiators=HOSTS,
    chap=Chap("joe", "secretsecret1", "target", "secretsecret2"),
)
DISCOVERY = Chap("anybody", "secretsecret3", "target", "secretsecret4")
BOTH = (OPEN, CLOSED)
TARGET = Path("/sys/kernel/config/target")


def attach(wanted: Wanted, *, replace: bool = False) -> list[str]:
    """The steps that changed something."""
    told: list[str] = []
    setup.attach(wanted, Kernel(), replace=replace, told=lambda step: told.append(str(step)))
    return told


def detach(wanted: Wanted, *, force: bool = False, served: bool = False) -> list[str]:
    told: list[str] = []
    setup.detach(
        wanted.volume,
        Kernel(),
        iqn=wanted.iqn,
        force=force,
        served=served,
        told=lambda step: told.append(str(step)),
    )
    return told


def shape(found: Found) -> str:
    """All that was found of ours, without where the kernel put it."""
    text = "\n".join(sorted(str(item) for item in (*found.devices, *found.targets) if "vm" in str(item)))
    for number in range(10):
        text = text.replace(f"user_{number}", "user_")
    return text


def handled(volume: str) -> bool:
    """Whether a daemon has the device open, as detach asks before it resets a ring."""
    return Kernel().handled(volume)


def twice() -> list[str]:
    """Attached, and again: nothing is changed; detached, and again: nothing is left."""
    wrong = []
    for wanted in BOTH:
        attach(wanted)
        wrong += [f"again: {step}" for step in attach(wanted)]
        wrong += [f"differs: {item.text}" for item in plan.differences(wanted, Kernel().look())]
        detach(wanted)
        wrong += [f"again: {step}" for step in detach(wanted)]
        wrong += [f"left: {shape(Kernel().look())}"] if shape(Kernel().look()) else []
    return wrong


def died_at_every_step() -> list[str]:
    """Of attach and of detach: the same command again, or the other one, ends as if nothing had happened."""
    wrong = []
    for wanted in BOTH:
        attach(wanted)
        complete = shape(Kernel().look())
        back = plan.detach_steps(wanted.volume, Kernel().look(), force=False, served=False, iqn=wanted.iqn)
        detach(wanted)
        forth = plan.attach_steps(wanted, Kernel().look())
        for number in range(1, len(forth)):
            _perform(forth[:number])
            attach(wanted)
            wrong += _unlike(complete, f"attach died after {forth[number - 1]}")
            detach(wanted)
            _perform(forth[:number])
            detach(wanted)
            wrong += _unlike("", f"attach died after {forth[number - 1]}, detach")
        for number in range(1, len(back)):
            attach(wanted)
            _perform(back[:number])
            attach(wanted)
            wrong += _unlike(complete, f"detach died after {back[number - 1]}, attach")
            _perform(back[:number])
            detach(wanted)
            wrong += _unlike("", f"detach died after {back[number - 1]}")
    return wrong


def _perform(steps: list[plan.Step]) -> None:
    kernel = Kernel()
    kernel.prepare()
    for step in steps:
        kernel.perform(step)


def _unlike(complete: str, what: str) -> list[str]:
    found = shape(Kernel().look())
    return [] if found == complete else [f"{what}:\n{found}\nin place of\n{complete}"]


def half_made() -> list[str]:
    """A folder whose content was never written, as a kill inside a step leaves it."""
    attach(CLOSED)
    complete = shape(Kernel().look())
    forth = plan.attach_steps(CLOSED, Found())
    detach(CLOSED)
    wrong = []
    group = TARGET / f"iscsi/{CLOSED.iqn}/tpgt_1"
    places = {
        plan.MakeDevice: TARGET / "core/user_9/vm1",
        plan.MakeTarget: group.parent,
        plan.MakeLun: group / "lun/lun_3",
        plan.MapLun: group / f"acls/{HOSTS[0]}/lun_3",
    }
    for kind, place in places.items():
        for finish, expected in ((attach, complete), (detach, "")):
            number = next(number for number, step in enumerate(forth) if isinstance(step, kind))
            _perform(forth[:number])
            place.parent.mkdir(exist_ok=True)
            place.mkdir()
            finish(CLOSED)
            wrong += _unlike(expected, f"{place} was made, {finish.__name__}")
            detach(CLOSED)
    return wrong


def discovery() -> list[str]:
    """CHAP for those who want to be told the targets: set, saved, restored, and left where it is."""
    import rtslib_fb

    attach(replace(OPEN, discovery=DISCOVERY))
    wrong = [f"again: {step}" for step in attach(replace(OPEN, discovery=DISCOVERY))]
    fabric = rtslib_fb.FabricModule("iscsi")
    fabric.clear_discovery_auth_settings()
    rtslib_fb.RTSRoot().restore_from_file(str(Kernel().saved_path))
    detach(OPEN)
    if Kernel().look().discovery != DISCOVERY:
        wrong.append("discovery asks for something else")
    fabric.clear_discovery_auth_settings()
    if Kernel().look().discovery.user:
        wrong.append("discovery still asks")
    Kernel().saved_path.unlink()
    return wrong


def restored() -> list[str]:
    """What targetctl makes of the saved configuration at boot is what attach would have made, but for one attribute."""
    import rtslib_fb

    told = []
    for wanted in BOTH:
        attach(wanted)
        complete = shape(Kernel().look())
        told += [str(error) for error in rtslib_fb.RTSRoot().restore_from_file(str(Kernel().saved_path))]
        told += attach(wanted)
        told += _unlike(complete, "after a restore")
        detach(wanted)
    return told


def beside_others() -> list[str]:
    """A target that somebody made with targetcli, its saved entry included, is the same afterwards."""
    import rtslib_fb

    Kernel().prepare()  # PyPI's rtslib refuses to work in the folders of Debian's otherwise
    disk = rtslib_fb.RDMCPStorageObject("other", size=8 << 20)
    target = rtslib_fb.Target(rtslib_fb.FabricModule("iscsi"), "iqn.2024-01.org.example:other")
    group = rtslib_fb.TPG(target, 1)
    rtslib_fb.LUN(group, 0, disk)
    rtslib_fb.NetworkPortal(group, "127.0.0.1", 4260)
    group.enable = True
    kernel = Kernel()
    rtslib_fb.RTSRoot().save_to_file(str(kernel.saved_path))
    before = _saved(kernel.saved_path), json.dumps([disk.dump(), target.dump()], sort_keys=True)
    # Not saved by its owner, and not by us.
    group.set_attribute("login_timeout", 20)
    attach(replace(OPEN, portals=(Portal("127.0.0.1", 4260),)))
    during = _saved(kernel.saved_path)
    detach(OPEN)
    after = _saved(kernel.saved_path)
    wrong = []
    if [entry["name"] for entry in during["storage_objects"]] != ["other", "vm1"]:
        wrong.append(f"saved: {during['storage_objects']}")
    if after != before[0]:
        wrong.append(f"saved afterwards: {after}")
    group.set_attribute("login_timeout", 15)
    if json.dumps([disk.dump(), target.dump()], sort_keys=True) != before[1]:
        wrong.append("the other target was changed")
    target.delete()
    disk.delete()
    kernel.saved_path.unlink()
    return wrong


def _saved(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text())
    return document
