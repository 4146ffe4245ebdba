"""LIO as a model: the state that `Found` shows, changed by steps under the kernel's own rules.

What it refuses, the kernel refuses: names that exist, links to what is not there, attributes that cannot change any more,
removing what is in use. `fail_at` makes it die before or after that step, as a crash of the command would.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from blockdev.lio import plan
from blockdev.lio.found import Acl, Device, Found, Group, Session, Target
from blockdev.lio.plan import Step
from blockdev.lio.wanted import DEVICE_ATTRIBUTES, PORTAL_GROUP

DEFAULTS = {"cmd_time_out": "30", "alua_support": "1", "nl_reply_supported": "0"}
GROUP_DEFAULTS = {
    "authentication": "1",
    "generate_node_acls": "0",
    "cache_dynamic_acls": "0",
    "demo_mode_write_protect": "1",
    "demo_mode_discovery": "1",
}


class Crash(Exception):
    """The command died here."""


@dataclass
class Model:
    found: Found = field(default_factory=Found)
    saved: dict[str, Found] = field(default_factory=dict)
    """By volume: what was saved, as it was found then."""
    fail_at: int = -1
    half: bool = False
    """The step that fails was done all the same, or half of it."""
    steps: list[Step] = field(default_factory=list)
    handler: bool = False
    """Some process has the device open."""
    prepared: int = 0

    def prepare(self) -> None:
        self.prepared += 1

    @contextmanager
    def locked(self) -> Iterator[None]:
        yield

    def handled(self, volume: str) -> bool:
        return self.handler

    def look(self) -> Found:
        return self.found

    def perform(self, step: Step) -> bool:
        if len(self.steps) == self.fail_at:
            if self.half:
                self._half(step)
            raise Crash(str(step))
        self.steps.append(step)
        before, saved = self.found, dict(self.saved)
        self._apply(step)
        self._check()
        return before != self.found or saved != self.saved

    def _half(self, step: Step) -> None:
        """What a kill in the middle of rtslib leaves: the folder of the thing, and nothing in it."""
        if isinstance(step, plan.MakeDevice):
            self._put_device(Device("user_9", step.wanted.volume, False, "", {"dev_config": ""}))
        elif isinstance(step, plan.MakeLun):
            group = self.group(step.iqn)
            self._put_group(step.iqn, replace(group, luns={**group.luns, step.lun: None}))
        elif isinstance(step, plan.MapLun):
            self._put_acl(step.iqn, step.initiator, lambda acl: replace(acl, mapped={**acl.mapped, step.lun: None}))
        elif isinstance(step, plan.MakeTarget):
            self.found = replace(self.found, targets=(*self.found.targets, Target(step.iqn, ())))
        elif isinstance(step, plan.RemoveTarget):
            target = self.found.target(step.iqn)
            assert target is not None
            groups = tuple(replace(group, enabled=False, luns={}) for group in target.groups)
            self._put_target(replace(target, groups=groups))
        else:
            self._apply(step)

    # --- the kernel's rules ------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """At every moment: an open target asks for what it must."""
        for target in self.found.targets:
            for group in target.groups:
                if group.enabled and group.attributes["authentication"] == "1":
                    anybody = group.attributes["generate_node_acls"] == "1"
                    chaps = [group.chap] if anybody else [acl.chap for acl in group.acls]
                    assert all(chap.user for chap in chaps), "a target was opened without its CHAP"

    def _apply(self, step: Step) -> None:
        match step:
            case plan.MakeDevice(wanted):
                assert self.found.device(wanted.volume) is None
                control = dict(item.split("=") for item in wanted.control.split(","))
                attributes = DEFAULTS | control | {"dev_config": wanted.config, "dev_size": str(wanted.size_bytes)}
                index = len(self.found.devices)
                self._put_device(Device(f"user_{index}", wanted.volume, True, wanted.serial, attributes))
            case plan.RemoveDevice(name):
                device = self.device(name)
                assert not list(self.found.exports(device)), "a device goes after its LUNs"
                self.found = replace(
                    self.found, devices=tuple(item for item in self.found.devices if item.name != name)
                )
            case plan.SetDevice(name, attribute, value):
                device = self.device(name)
                if attribute in DEVICE_ATTRIBUTES:
                    assert not list(self.found.exports(device)), f"{attribute} cannot change under a LUN"
                self._put_device(replace(device, attributes={**device.attributes, attribute: value}))
            case plan.SetSerial(name, serial):
                self._put_device(replace(self.device(name), serial=serial))
            case plan.EndCommands(name):
                self._put_device(replace(self.device(name), blocked=True))
            case plan.Unblock(name):
                self._put_device(replace(self.device(name), blocked=False))
            case plan.MakeTarget(iqn):
                there = self.found.target(iqn)
                assert there is None or not there.groups
                self._put_target(Target(iqn, (Group(PORTAL_GROUP, False, GROUP_DEFAULTS),)))
            case plan.RemoveTarget(iqn):
                assert self.found.target(iqn) is not None
                self.found = replace(self.found, targets=tuple(t for t in self.found.targets if t.iqn != iqn))
            case plan.SetGroup(iqn, attribute, value):
                group = self.group(iqn)
                self._put_group(iqn, replace(group, attributes={**group.attributes, attribute: value}))
            case plan.SetChap(iqn, "", chap):
                self._put_group(iqn, replace(self.group(iqn), chap=chap))
            case plan.SetChap(iqn, initiator, chap):
                self._put_acl(iqn, initiator, lambda acl: replace(acl, chap=chap))
            case plan.SetDiscovery(chap):
                self.found = replace(self.found, discovery=chap)
            case plan.MakeLun(iqn, lun, name):
                group, device = self.group(iqn), self.device(name)
                assert lun not in group.luns
                self._put_group(iqn, replace(group, luns={**group.luns, lun: f"{device.hba}/{name}"}))
            case plan.RemoveLun(iqn, tag, lun):
                group = self.group(iqn, tag)
                assert not any(leads == lun for acl in group.acls for leads in acl.mapped.values())
                luns = {number: leads for number, leads in group.luns.items() if number != lun}
                assert len(luns) < len(group.luns)
                self._put_group(iqn, replace(group, luns=luns))
            case plan.MakeAcl(iqn, initiator):
                group = self.group(iqn)
                assert initiator not in [acl.initiator for acl in group.acls]
                self._put_group(iqn, replace(group, acls=(*group.acls, Acl(initiator))))
            case plan.RemoveAcl(iqn, initiator):
                group = self.group(iqn)
                acls = tuple(acl for acl in group.acls if acl.initiator != initiator)
                assert len(acls) < len(group.acls)
                self._put_group(iqn, replace(group, acls=acls))
            case plan.MapLun(iqn, initiator, lun):
                assert self.group(iqn).luns[lun] is not None
                assert lun not in self.acl(iqn, initiator).mapped
                self._put_acl(iqn, initiator, lambda acl: replace(acl, mapped={**acl.mapped, lun: lun}))
            case plan.UnmapLun(iqn, tag, initiator, lun):
                assert lun in self.acl(iqn, initiator, tag).mapped
                self._put_acl(
                    iqn,
                    initiator,
                    lambda acl: replace(acl, mapped={n: m for n, m in acl.mapped.items() if n != lun}),
                )
            case plan.MakePortal(iqn, portal):
                group = self.group(iqn)
                assert portal not in group.portals
                self._put_group(iqn, replace(group, portals=(*group.portals, portal)))
            case plan.RemovePortal(iqn, portal):
                group = self.group(iqn)
                assert portal in group.portals
                self._put_group(iqn, replace(group, portals=tuple(p for p in group.portals if p != portal)))
            case plan.Enable(iqn, enabled):
                self._put_group(iqn, replace(self.group(iqn), enabled=enabled))
            case plan.Save(volume, _, _):
                if self.found.device(volume) is None:
                    self.saved.pop(volume, None)
                else:
                    self.saved[volume] = self.found

    # --- parts -------------------------------------------------------------------------------------------------------

    def device(self, name: str) -> Device:
        device = self.found.device(name)
        assert device is not None
        return device

    def group(self, iqn: str, tag: int = PORTAL_GROUP) -> Group:
        target = self.found.target(iqn)
        assert target is not None
        group = target.group(tag)
        assert group is not None
        return group

    def acl(self, iqn: str, initiator: str, tag: int = PORTAL_GROUP) -> Acl:
        return next(acl for acl in self.group(iqn, tag).acls if acl.initiator == initiator)

    def log_in(self, iqn: str, initiator: str) -> None:
        self._put_group(iqn, replace(self.group(iqn), dynamic=(Session(initiator),)))

    def log_out(self, iqn: str) -> None:
        self._put_group(iqn, replace(self.group(iqn), dynamic=()))

    def _put_device(self, device: Device) -> None:
        others = tuple(item for item in self.found.devices if item.name != device.name)
        self.found = replace(self.found, devices=(*others, device))

    def _put_target(self, target: Target) -> None:
        others = tuple(item for item in self.found.targets if item.iqn != target.iqn)
        self.found = replace(self.found, targets=(*others, target))

    def _put_group(self, iqn: str, group: Group) -> None:
        target = self.found.target(iqn)
        assert target is not None
        others = tuple(item for item in target.groups if item.tag != group.tag)
        self._put_target(Target(iqn, (*others, group)))

    def _put_acl(self, iqn: str, initiator: str, change: Callable[[Acl], Acl]) -> None:
        group = self.group(iqn)
        acls = tuple(change(acl) if acl.initiator == initiator else acl for acl in group.acls)
        self._put_group(iqn, replace(group, acls=acls))
