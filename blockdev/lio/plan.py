"""From what is wanted and what was found to a list of steps. Pure.

One rule: what others made is never in a step. What is missing is made; a size follows the volume; everything else that is
not as wanted is a difference, told by name, and mended only when that was asked for.

The order of `attach_steps` keeps every moment safe: a target listens and is enabled last, when its CHAP and its list of
initiators are there. A crash between two steps leaves a part of it, which serves nobody, or nobody who may not; the same
command finds what is there and makes the rest. `detach_steps` ends sessions first and removes the device last, so that
after a crash the same command still finds by the device what is left.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blockdev.errors import Refused
from blockdev.lio.found import Acl, Device, Found, Group, Session, Target
from blockdev.lio.wanted import (
    DATA_AREA_MIB,
    DEVICE_ATTRIBUTES,
    NEVER_WAIT,
    NO_CHAP,
    PORTAL_GROUP,
    Chap,
    Portal,
    Wanted,
)
from blockdev.tcmu.names import device_config


@dataclass(frozen=True, slots=True)
class MakeDevice:
    wanted: Wanted

    def __str__(self) -> str:
        return f"make device {self.wanted.volume} of {self.wanted.size_bytes} bytes"


@dataclass(frozen=True, slots=True)
class RemoveDevice:
    device: str

    def __str__(self) -> str:
        return f"remove device {self.device}"


@dataclass(frozen=True, slots=True)
class SetDevice:
    device: str
    attribute: str
    value: str

    def __str__(self) -> str:
        return f"set {self.attribute} of device {self.device} to {self.value}"


@dataclass(frozen=True, slots=True)
class SetSerial:
    device: str
    serial: str

    def __str__(self) -> str:
        return f"set the serial number of device {self.device} to {self.serial}"


@dataclass(frozen=True, slots=True)
class EndCommands:
    """Answer BUSY to everything the device has been asked and will be. Only where no handler serves it."""

    device: str

    def __str__(self) -> str:
        return f"end the commands that wait at device {self.device}"


@dataclass(frozen=True, slots=True)
class Unblock:
    """Take commands again, after `EndCommands` of a detach that went no further."""

    device: str

    def __str__(self) -> str:
        return f"let device {self.device} take commands again"


@dataclass(frozen=True, slots=True)
class MakeTarget:
    iqn: str

    def __str__(self) -> str:
        return f"make target {self.iqn}"


@dataclass(frozen=True, slots=True)
class RemoveTarget:
    iqn: str

    def __str__(self) -> str:
        return f"remove target {self.iqn}"


@dataclass(frozen=True, slots=True)
class SetGroup:
    iqn: str
    attribute: str
    value: str

    def __str__(self) -> str:
        return f"set {self.attribute} of target {self.iqn} to {self.value}"


@dataclass(frozen=True, slots=True)
class SetChap:
    """Of the initiator's ACL, or of the group for those without one (`initiator` empty)."""

    iqn: str
    initiator: str
    chap: Chap

    def __str__(self) -> str:
        verb = "set" if self.chap.user else "clear"
        return f"{verb} CHAP of target {self.iqn}" + (f" for {self.initiator}" if self.initiator else "")


@dataclass(frozen=True, slots=True)
class SetDiscovery:
    chap: Chap

    def __str__(self) -> str:
        return "set CHAP of discovery, for all targets of this host"


@dataclass(frozen=True, slots=True)
class MakeLun:
    iqn: str
    lun: int
    device: str

    def __str__(self) -> str:
        return f"make LUN {self.lun} of target {self.iqn} from device {self.device}"


@dataclass(frozen=True, slots=True)
class RemoveLun:
    iqn: str
    tag: int
    lun: int

    def __str__(self) -> str:
        return f"remove LUN {self.lun} of target {self.iqn}"


@dataclass(frozen=True, slots=True)
class MakeAcl:
    iqn: str
    initiator: str

    def __str__(self) -> str:
        return f"let {self.initiator} log in to target {self.iqn}"


@dataclass(frozen=True, slots=True)
class RemoveAcl:
    iqn: str
    initiator: str

    def __str__(self) -> str:
        return f"let {self.initiator} log in to target {self.iqn} no more"


@dataclass(frozen=True, slots=True)
class MapLun:
    iqn: str
    initiator: str
    lun: int

    def __str__(self) -> str:
        return f"show LUN {self.lun} of target {self.iqn} to {self.initiator}"


@dataclass(frozen=True, slots=True)
class UnmapLun:
    iqn: str
    tag: int
    initiator: str
    lun: int

    def __str__(self) -> str:
        return f"hide LUN {self.lun} of target {self.iqn} from {self.initiator}"


@dataclass(frozen=True, slots=True)
class MakePortal:
    iqn: str
    portal: Portal

    def __str__(self) -> str:
        return f"listen on {self.portal} for target {self.iqn}"


@dataclass(frozen=True, slots=True)
class RemovePortal:
    iqn: str
    portal: Portal

    def __str__(self) -> str:
        return f"listen on {self.portal} for target {self.iqn} no more"


@dataclass(frozen=True, slots=True)
class Enable:
    iqn: str
    enabled: bool

    def __str__(self) -> str:
        return f"{'open' if self.enabled else 'close'} target {self.iqn}"


@dataclass(frozen=True, slots=True)
class Save:
    """Put the volume, as the kernel has it now, into the saved configuration, or take it out."""

    volume: str
    iqns: tuple[str, ...]
    discovery: bool = False
    """Discovery's CHAP with it."""

    def __str__(self) -> str:
        return f"save the configuration of {self.volume}"


Step = (
    MakeDevice
    | RemoveDevice
    | SetDevice
    | SetSerial
    | EndCommands
    | Unblock
    | MakeTarget
    | RemoveTarget
    | SetGroup
    | SetChap
    | SetDiscovery
    | MakeLun
    | RemoveLun
    | MakeAcl
    | RemoveAcl
    | MapLun
    | UnmapLun
    | MakePortal
    | RemovePortal
    | Enable
    | Save
)


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is there and is not as the settings have it."""

    text: str
    remake: bool = False
    """It can only be mended by making device or LUN anew, which no session survives."""


def ours(target: Target, found: Found) -> bool:
    """Whether every LUN of the target is one of our devices, or it has none."""
    devices = {f"{device.hba}/{device.name}" for device in found.devices if device.ours}
    return all(leads_to is None or leads_to in devices for group in target.groups for leads_to in group.luns.values())


# --- attach ----------------------------------------------------------------------------------------------------------


def check_free(wanted: Wanted, found: Found) -> None:
    """Raises Refused when somebody else has the device's or the target's name, or the LUN."""
    for device in found.devices:
        if device.name == wanted.volume and not (device.unfinished or device.config == wanted.config):
            raise Refused(
                f"LIO has a device {device.name} that is not volume {wanted.volume}: its dev_config is {device.config}",
                hint="remove it (targetcli /backstores/user delete), or give the volume another name",
            )
    target = found.target(wanted.iqn)
    if target is None:
        return
    if not ours(target, found) or any(group.tag != PORTAL_GROUP for group in target.groups):
        raise Refused(
            f"target {wanted.iqn} was made by somebody else: it has LUNs or portal groups that are not ours",
            hint="give the volume another iqn in its settings",
        )
    group = target.group(PORTAL_GROUP)
    holder = group.luns.get(wanted.lun) if group is not None else None
    if holder is not None and holder.rpartition("/")[2] != wanted.volume:
        raise Refused(
            f"LUN {wanted.lun} of target {wanted.iqn} is volume {holder.rpartition('/')[2]}",
            hint="give one of them another lun or iqn",
        )


def differences(wanted: Wanted, found: Found) -> list[Difference]:
    """What is there already and is not as wanted; the size is none."""
    discovery = wanted.discovery.user and found.discovery.user and wanted.discovery != found.discovery
    return [
        *_device_differences(wanted, found),
        *_target_differences(wanted, found),
        *(
            [Difference("CHAP of discovery, for all targets of this host, is not as in the settings")]
            if discovery
            else []
        ),
    ]


def _device_differences(wanted: Wanted, found: Found) -> Iterator[Difference]:
    device = found.device(wanted.volume)
    if device is None or not device.enabled:
        return
    what = f"device {device.name}"
    exported = any(True for _ in found.exports(device))
    fixed = {"hw_block_size": str(wanted.sector_bytes), "max_data_area_mb": str(DATA_AREA_MIB)}
    for attribute, value in fixed.items():
        if device.attributes.get(attribute) != value:
            yield Difference(f"{what}: {attribute} is {device.attributes.get(attribute)}, not {value}", remake=True)
    if exported and device.serial != wanted.serial:
        yield Difference(f"{what}: its serial number is {device.serial}, not {wanted.serial}", remake=True)
    for attribute, value in DEVICE_ATTRIBUTES.items():
        have = device.attributes.get(attribute)
        if exported and have and have != value:
            yield Difference(f"{what}: {attribute} is {have}, not {value}", remake=True)
    for target, group, lun in found.exports(device):
        if (target.iqn, group.tag, lun) != (wanted.iqn, PORTAL_GROUP, wanted.lun):
            yield Difference(f"{what} is LUN {lun} of target {target.iqn}", remake=True)


def _target_differences(wanted: Wanted, found: Found) -> Iterator[Difference]:
    target = found.target(wanted.iqn)
    group = target.group(PORTAL_GROUP) if target is not None else None
    if group is None or not group.enabled:
        return  # nobody has it yet: it is made as wanted
    what = f"target {wanted.iqn}"
    for attribute, value in wanted.group_attributes.items():
        if group.attributes.get(attribute) != value:
            yield Difference(f"{what}: {attribute} is {group.attributes.get(attribute)}, not {value}")
    for portal in group.portals:
        if portal not in wanted.portals:
            yield Difference(f"{what} listens on {portal}, too")
    for acl in group.acls:
        if acl.initiator not in wanted.initiators:
            yield Difference(f"{what}: {acl.initiator} may log in, too")
        elif acl.chap != wanted.chap:
            yield Difference(f"{what}: CHAP for {acl.initiator} is not as in the settings")
    if not wanted.initiators and group.chap != wanted.chap:
        yield Difference(f"{what}: CHAP is not as in the settings")


def attach_steps(wanted: Wanted, found: Found) -> list[Step]:
    """Everything that is still to be done, `Save` at least; `differences` are mended. Raises Refused where initiators that
    are logged in would lose their disk by it."""
    check_free(wanted, found)
    device = found.device(wanted.volume)
    target = found.target(wanted.iqn)
    remake = any(difference.remake for difference in _device_differences(wanted, found))
    steps: list[Step] = []
    if device is not None and (remake or not device.enabled):
        _refuse_sessions(device, found, "it has to be made anew")
        steps += _withdraw(device, found, keep=wanted.iqn)
        steps.append(RemoveDevice(device.name))
    if device is None or remake or not device.enabled:
        # Crash from here on: a device that nobody exports. Attaching again goes on with it.
        steps.append(MakeDevice(wanted))
        steps += [SetDevice(wanted.volume, name, value) for name, value in DEVICE_ATTRIBUTES.items()]
        fresh = True
    else:
        steps += _device_mended(wanted, device, exported=any(True for _ in found.exports(device)))
        fresh = False
    if wanted.discovery.user and wanted.discovery != found.discovery:
        steps.append(SetDiscovery(wanted.discovery))
    steps += _target_steps(wanted, target, withdrawn=fresh)
    # Crash before this: the kernel has it, the next boot does not. Attaching again saves.
    steps.append(Save(wanted.volume, (wanted.iqn,), discovery=bool(wanted.discovery.user)))
    return steps


def _device_mended(wanted: Wanted, device: Device, *, exported: bool) -> Iterator[Step]:
    if device.attributes.get("nl_reply_supported") != NEVER_WAIT:
        # First: every later one would wait for a reply.
        yield SetDevice(device.name, "nl_reply_supported", NEVER_WAIT)
    if device.serial != wanted.serial:
        yield SetSerial(device.name, wanted.serial)
    if not exported:
        for name, value in DEVICE_ATTRIBUTES.items():
            if device.attributes.get(name) != value:
                yield SetDevice(device.name, name, value)
    if device.size_bytes != wanted.size_bytes:
        yield SetDevice(device.name, "dev_size", str(wanted.size_bytes))
    if device.blocked:
        yield Unblock(device.name)


def _target_steps(wanted: Wanted, target: Target | None, *, withdrawn: bool) -> Iterator[Step]:
    iqn = wanted.iqn
    group = target.group(PORTAL_GROUP) if target is not None else None
    if group is None:
        # Crash from here on: a target that is closed and has no LUN.
        yield MakeTarget(iqn)
        group = Group(PORTAL_GROUP, enabled=False, attributes={})
    # Who may log in, before there is anything to see: at each step too few rather than too many.
    for acl in group.acls:
        if acl.initiator not in wanted.initiators:
            yield RemoveAcl(iqn, acl.initiator)
    if not wanted.initiators and group.chap != wanted.chap:
        yield SetChap(iqn, "", wanted.chap)
    if wanted.initiators and group.chap != NO_CHAP:
        yield SetChap(iqn, "", NO_CHAP)
    for name, value in wanted.group_attributes.items():
        if group.attributes.get(name) != value:
            yield SetGroup(iqn, name, value)
    if withdrawn or group.luns.get(wanted.lun) is None:
        if wanted.lun in group.luns and group.luns[wanted.lun] is None:
            # A crash between the LUN's folder and its link.
            yield RemoveLun(iqn, PORTAL_GROUP, wanted.lun)
        yield MakeLun(iqn, wanted.lun, wanted.volume)
    acls = {acl.initiator: acl for acl in group.acls}
    for initiator in wanted.initiators:
        yield from _acl_steps(wanted, initiator, acls.get(initiator), withdrawn=withdrawn)
    for portal in wanted.portals:
        if portal not in group.portals:
            yield MakePortal(iqn, portal)
    for portal in group.portals:
        if portal not in wanted.portals:
            yield RemovePortal(iqn, portal)
    if withdrawn or not group.enabled:
        yield Enable(iqn, True)


def _acl_steps(wanted: Wanted, initiator: str, acl: Acl | None, *, withdrawn: bool) -> Iterator[Step]:
    if acl is None:
        yield MakeAcl(wanted.iqn, initiator)
        acl = Acl(initiator)
    if acl.chap != wanted.chap:
        yield SetChap(wanted.iqn, initiator, wanted.chap)
    if wanted.lun in acl.mapped and acl.mapped[wanted.lun] != wanted.lun:
        yield UnmapLun(wanted.iqn, PORTAL_GROUP, initiator, wanted.lun)
    elif wanted.lun in acl.mapped and not withdrawn:
        return
    yield MapLun(wanted.iqn, initiator, wanted.lun)


def _refuse_sessions(device: Device, found: Found, why: str) -> None:
    sessions = sessions_of(device, found)
    if sessions:
        raise Refused(
            f"volume {device.name} is in use by {named(sessions)}, and {why}",
            hint="log them out, or `s3block lio detach --force` first: they lose their disk then",
        )


def sessions_of(device: Device, found: Found) -> list[Session]:
    """Who is logged in where the device is a LUN."""
    targets = {target.iqn: target for target, _, _ in found.exports(device)}
    return [session for target in targets.values() for session in target.sessions]


def named(sessions: Iterable[Session]) -> str:
    return ", ".join(str(session) for session in sessions)


# --- detach ----------------------------------------------------------------------------------------------------------


def detach_steps(volume: str, found: Found, *, force: bool, served: bool, iqn: str = "") -> list[Step]:
    """Take the volume out of the kernel: its LUN everywhere, targets that have no other LUN, its device. `served`: a handler
    answers its commands. `iqn`: its target, which may be there without the device after a crash. Nothing is left to do:
    an empty list, but for Save. Raises Refused while somebody is logged in, unless forced."""
    device = found.device(volume)
    if device is not None and not (device.config == device_config(volume) or device.unfinished):
        raise Refused(
            f"LIO's device {volume} is not volume {volume}: its dev_config is {device.config}",
            hint="targetcli removes it",
        )
    steps: list[Step] = []
    iqns = [iqn] if iqn else []
    if device is not None:
        sessions = sessions_of(device, found)
        if sessions and not force:
            raise Refused(
                f"volume {volume} is in use by {named(sessions)}",
                hint="log them out first (iscsiadm -m node -T IQN -u); --force takes their disk away",
            )
        if device.enabled and not served:
            # Sessions and LUNs wait for their commands to end, and nobody answers them.
            steps.append(EndCommands(volume))
        steps += _withdraw(device, found, keep="")
        iqns += [target.iqn for target, _, _ in found.exports(device)]
        steps.append(RemoveDevice(volume))
    left = found.target(iqn)
    if left is not None and not any(isinstance(step, RemoveTarget) and step.iqn == iqn for step in steps):
        groups = left.groups
        if all(leads_to is None for group in groups for leads_to in group.luns.values()) and not left.sessions:
            # What a crash left of an attach or a detach.
            steps.append(RemoveTarget(iqn))
    steps.append(Save(volume, tuple(dict.fromkeys(iqns))))
    return steps


def _withdraw(device: Device, found: Found, *, keep: str) -> Iterator[Step]:
    """Take every LUN of the device away, and with it a target that has no other, save the one called `keep`."""
    where = f"{device.hba}/{device.name}"
    for target, group, lun in found.exports(device):
        others = [
            leads_to
            for other in target.groups
            for leads_to in other.luns.values()
            if leads_to is not None and leads_to != where
        ]
        if not others and target.iqn != keep:
            yield RemoveTarget(target.iqn)
            continue
        if not others:
            yield Enable(target.iqn, False)
        for acl in group.acls:
            for seen_as, leads_to in acl.mapped.items():
                if leads_to == lun:
                    yield UnmapLun(target.iqn, group.tag, acl.initiator, seen_as)
        yield RemoveLun(target.iqn, group.tag, lun)
