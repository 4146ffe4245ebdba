"""Names of disks: Proxmox VE's, the volumes' below, and those of iSCSI targets.

    vm-100-disk-0, vm-100-cloudinit, vm-100-state-before     a guest's
    base-100-disk-0                                          a template's
    base-100-disk-0/vm-101-disk-0                            a linked clone, with the template it reads

One rule: Proxmox VE's names change (a template, another owner), keys in a bucket cannot. So a volume has a name of its own
from its birth, which is never used again, and a record says what Proxmox VE calls it today (`records`). Pure.
"""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from plugin.errors import BadVolume, Refused

IQN_PREFIX: Final = "iqn.2025-01.internal.bucketworks"
NAME_LENGTH_MAX: Final = 128
DISKS_PER_GUEST_MAX: Final = 1000
VIEW: Final = ".at-"
"""Between a volume's name and what tells a view of one of its snapshots."""
BASE_SNAPSHOT: Final = "__base__"
"""What linked clones of a template begin as."""
_DISK: Final = re.compile(r"(?P<kind>vm|base|subvol)-(?P<vmid>[1-9][0-9]{0,8})-(?P<rest>[A-Za-z0-9_.-]+)")
_BIRTH_LENGTH_MAX: Final = 40


@dataclass(frozen=True, slots=True)
class DiskName:
    """`name` without the template before it, which is `base` (empty for none)."""

    name: str
    vmid: int
    is_base: bool
    base: str = ""


def parse(volname: str) -> DiskName:
    """BadVolume for what is no disk's name."""
    base, slash, name = volname.rpartition("/")
    found = _DISK.fullmatch(name)
    origin = _DISK.fullmatch(base) if slash else None
    if found is None or len(name) > NAME_LENGTH_MAX or (slash and (origin is None or origin["kind"] != "base")):
        raise BadVolume(
            f"{volname!r} is no name of a disk", hint="vm-VMID-disk-N, base-VMID-disk-N or base-…/vm-VMID-disk-N"
        )
    return DiskName(name, int(found["vmid"]), found["kind"] == "base", base)


def free_name(vmid: int, taken: Collection[str], kind: str = "vm") -> str:
    """The disk name with the lowest number that no disk of the guest has, template or not. Refused when there is none."""
    for number in range(DISKS_PER_GUEST_MAX):
        if not any(f"{one}-{vmid}-disk-{number}" in taken for one in ("vm", "base")):
            return f"{kind}-{vmid}-disk-{number}"
    raise Refused(f"guest {vmid} has {DISKS_PER_GUEST_MAX} disks already")


def birth_name(name: str, token: str) -> str:
    """What a volume is called that is made as disk `name`; `token` (lower case) makes it unlike any other, ever."""
    plain = re.sub(r"[^a-z0-9.-]", "-", name.lower())[:_BIRTH_LENGTH_MAX].rstrip(".-")
    return f"{plain}.{token}"


def snapshot_view_name(volume: str, snapshot: str) -> str:
    """What the passing clone is called through which a snapshot of the volume is read."""
    return f"{volume}{VIEW}{hashlib.sha256(snapshot.encode()).hexdigest()[:8]}"


def base_name(name: str) -> str:
    """What disk `name` is called as a template. BadVolume for what cannot be one."""
    found = parse(name)
    if not found.name.startswith("vm-"):
        raise BadVolume(f"{name} cannot become a template: it is {'one' if found.is_base else 'no disk of a machine'}")
    return "base-" + found.name.removeprefix("vm-")


def target_name(storage: str, name: str, snapshot: str = "") -> str:
    """The iSCSI name under which a disk is served, the same on every node. What iSCSI names cannot have is written
    `:HH` (RFC 3722 allows a-z, 0-9, '-', '.', ':')."""
    parts = [storage, parse(name).name, *([snapshot] if snapshot else [])]
    coded = ("".join(_coded(character) for character in part) for part in parts)
    return f"{IQN_PREFIX}:{':'.join(coded)}"


def _coded(character: str) -> str:
    if re.fullmatch(r"[a-z0-9.-]", character):
        return character
    return "".join(f":{byte:02x}" for byte in character.encode())
