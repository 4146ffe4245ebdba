"""The rights that the token needs, at which path, and what it has beyond them. Pure.

One rule: the table below is the whole of it; `docs/envctl/pve.md` is drawn from it, and `check_access` compares it with what
`GET /access/permissions` says of the token.

    path                    why
    /pool/POOL              every machine of ours lies in this pool: made, configured, started, looked at, destroyed through it
    /vms/TEMPLATE           `clone_vm` asks VM.Clone of the template; VM.Audit shows where it is
    /storage/STORAGE        the disks of clones
    /sdn/zones/ZONE/VNET    the bridge in the template's network card (`localnetwork` is the zone of plain bridges)

A VMID outside the pool, a node, a user or an ACL is nothing to the token.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from envctl.drivers.port import DriverFinding

POOL: Final[Mapping[str, str]] = {
    "Pool.Audit": "list the pool",
    "VM.Allocate": "make and destroy machines",
    "VM.Audit": "see state and configuration",
    "VM.Config.CPU": "set the number of cores",
    "VM.Config.Disk": "grow the disk",
    "VM.Config.HWType": "set the SMBIOS serial number that leads to the seed",
    "VM.Config.Memory": "set the memory",
    "VM.Config.Options": "set tag, description and protection",
    "VM.Console": "open screen and terminal",
    "VM.GuestAgent.Audit": "ask the QEMU guest agent for addresses",
    "VM.PowerMgmt": "start, shut down and stop",
}
TEMPLATE: Final[Mapping[str, str]] = {"VM.Audit": "find and check the template", "VM.Clone": "clone it"}
STORAGE: Final[Mapping[str, str]] = {"Datastore.AllocateSpace": "make disks", "Datastore.Audit": "see free space"}
NETWORK: Final[Mapping[str, str]] = {"SDN.Use": "attach the clone's network card"}

OPTIONAL: Final[Mapping[str, frozenset[str]]] = {
    "/nodes": frozenset({"Sys.Audit"}),
    "pool": frozenset({"VM.Config.Network"}),
}
"""May be there, and nothing needs it: memory and load of nodes, for the nodes' page and for choosing a node."""

BEFORE_9: Final = "VM.Monitor"
"""Until Proxmox VE 8 the guest agent's right was a part of this one; VM.GuestAgent.* came in its place with 9."""

_AS_GOOD: Final[Mapping[str, frozenset[str]]] = {
    "VM.GuestAgent.Audit": frozenset({"VM.GuestAgent.Unrestricted", BEFORE_9}),
}
_BROAD: Final = re.compile(
    r"Permissions\.Modify|Sys\.|User\.|Group\.|Realm\.|Pool\.Allocate|Mapping\.Modify|SDN\.Allocate|Datastore\.Allocate$"
)
"""With one of these the token could take more for itself, or change the cluster: an error, not a warning."""


@dataclass(frozen=True, slots=True)
class Needed:
    path: str
    rights: Mapping[str, str]


def needed(pool: str, templates: Sequence[int], storages: Sequence[str], networks: Sequence[str]) -> tuple[Needed, ...]:
    """`networks`: paths such as `/sdn/zones/localnetwork/vmbr0`."""
    found = [Needed(f"/pool/{pool}" if pool else "/vms", POOL)]
    found += [Needed(f"/vms/{vmid}", TEMPLATE) for vmid in templates]
    found += [Needed(f"/storage/{storage}", STORAGE) for storage in storages]
    found += [Needed(path, NETWORK) for path in networks]
    return tuple(found)


def holds(permissions: Mapping[str, Mapping[str, object]], path: str, right: str) -> bool:
    """Does the token have `right` at `path`? The listing has the paths that an ACL or a pool names; above them a right
    counts where it is propagated."""
    names = {right, *_AS_GOOD.get(right, ())}
    if path in permissions:
        return any(name in permissions[path] for name in names)
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if path in permissions:
            return any(permissions[path].get(name) for name in names)
    return False


def compare(
    permissions: Mapping[str, Mapping[str, object]],
    wanted: Sequence[Needed],
    *,
    pool: str,
    vmids: tuple[int, int],
    release: tuple[int, ...],
) -> list[DriverFinding]:
    """What is missing, each with its cure, and what is there beyond what is needed."""
    findings = []
    for each in wanted:
        lacking = [right for right in each.rights if not holds(permissions, each.path, right)]
        for right in lacking:
            word = BEFORE_9 if right.startswith("VM.GuestAgent") and release < (9,) else right
            findings.append(
                DriverFinding(
                    "warning" if right.startswith("VM.GuestAgent") else "error",
                    f"right {word} is missing at {each.path}: {each.rights[right]}",
                    f"add it to the role of the token at {each.path}; docs/envctl/pve.md has the commands",
                )
            )
    findings += [_excess(path, rights) for path, rights in _beyond(permissions, wanted, pool, vmids).items()]
    return findings


def _beyond(
    permissions: Mapping[str, Mapping[str, object]], wanted: Sequence[Needed], pool: str, vmids: tuple[int, int]
) -> dict[str, list[str]]:
    allowed = {each.path: set(each.rights) for each in wanted}
    allowed.setdefault(f"/pool/{pool}", set()).update(OPTIONAL["pool"])
    beyond: dict[str, list[str]] = {}
    for path, held in permissions.items():
        mine = set(allowed.get(path, ()))
        vmid = re.fullmatch(r"/vms/(\d+)", path)
        if vmid and vmids[0] <= int(vmid[1]) <= vmids[1]:
            mine |= set(POOL) | OPTIONAL["pool"]  # what the pool gives to each of its machines
        if path.startswith("/nodes"):
            mine |= OPTIONAL["/nodes"]
        if path.startswith("/pool/") and path == f"/pool/{pool}":
            mine |= set(STORAGE)
        if path.startswith("/storage/") and f"/storage/{path.rpartition('/')[2]}" in allowed:
            mine |= set(POOL)  # a storage that lies in the pool shows the pool's rights too; they mean nothing there
        extra = sorted(right for right in held if right not in mine and right != BEFORE_9 and held[right] is not None)
        if extra:
            beyond[path] = extra
    return beyond


def _excess(path: str, extra: Sequence[str]) -> DriverFinding:
    broad = [right for right in extra if _BROAD.match(right)]
    return DriverFinding(
        "error" if broad and any(not right.startswith("Sys.Audit") for right in broad) else "warning",
        f"more rights than needed at {path}: {', '.join(extra)}",
        "take them from the token's role; with a separated token (privsep 1) the user's own rights do not count",
    )


def network_paths(config: Mapping[str, object], permissions: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
    """Where SDN.Use is asked for, for the network cards of a machine. Which zone a bridge belongs to is not a token's to see;
    where an ACL names the bridge in some zone, it is that one. Plain bridges are in `localnetwork`."""
    found = set()
    for name, value in config.items():
        if not re.fullmatch(r"net\d+", name):
            continue
        for part in str(value).split(","):
            key, _, bridge = part.partition("=")
            if key == "bridge" and bridge:
                named = [path for path in permissions if re.fullmatch(rf"/sdn/zones/[^/]+/{re.escape(bridge)}", path)]
                found.add(sorted(named)[0] if named else f"/sdn/zones/localnetwork/{bridge}")
    return tuple(sorted(found))
