"""What the cluster says of itself: nodes, machines, storages, free numbers. Questions alone; nothing is changed here.

One rule: nothing is remembered between two questions.
"""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from envctl.drivers.port import MachineFound, MachineRef, NodeHeadroom
from envctl.drivers.pve import words
from envctl.drivers.pve.client import PveClient
from envctl.errors import DriverBusy, DriverFailed

VM: Final = "/nodes/{node}/qemu/{vmid}"
GIB: Final = 1 << 30
_ON: Final = frozenset({"1", "yes", "on", "true"})


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the cluster's list of machines."""

    vmid: int
    node: str
    name: str
    status: str
    tags: str
    pool: str
    lock: str
    template: bool
    cores: int
    memory_bytes: int
    disk_bytes: int

    @property
    def machine(self) -> MachineRef:
        return MachineRef(f"{self.node}/{self.vmid}")


class Cluster:
    """Questions to any node of it. DriverFailed, DriverBusy."""

    def __init__(self, name: str, client: PveClient) -> None:
        self._name = name
        self._client = client

    async def machines(self) -> list[Listed]:
        return [
            listed_of(row)
            for row in await self._client.get("/cluster/resources", {"type": "vm"})
            if row.get("type") == "qemu"
        ]

    async def nodes(self) -> dict[str, str]:
        return {str(row["node"]): str(row.get("status", "unknown")) for row in await self._client.get("/nodes")}

    def require_quorum(self, nodes: Mapping[str, str]) -> None:
        online = sum(status == "online" for status in nodes.values())
        if not nodes or online * 2 <= len(nodes):
            raise DriverBusy(
                f"{self._name}: {online} of {len(nodes)} nodes are online, as the one that answered sees it",
                hint="its list may be old; wait until the cluster has its quorum again (pvecm status)",
                nothing_done=True,
            )

    async def is_free(self, vmid: int) -> bool:
        """Is no machine of the cluster called so, ours to see or not?"""
        try:
            await self._client.get("/cluster/nextid", {"vmid": vmid})
        except DriverFailed as error:
            if words.reason(error) == "exists":
                return False
            raise
        return True

    async def shared(self) -> dict[str, bool]:
        rows = await self._client.get("/cluster/resources", {"type": "storage"})
        return {
            str(row["storage"]): is_on(row.get("shared"))
            for row in rows
            if row.get("type") == "storage" and "storage" in row
        }

    async def current(self, machine: MachineRef) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._client.get(f"{VM}/status/current", place_of(machine))
        return found

    async def config(self, machine: MachineRef) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._client.get(f"{VM}/config", place_of(machine))
        return found

    async def headroom(self) -> Sequence[NodeHeadroom]:
        """Memory is 0 where the token has no Sys.Audit on nodes: it is then not known."""
        rows, storages = await asyncio.gather(
            self._client.get("/cluster/resources", {"type": "node"}),
            self._client.get("/cluster/resources", {"type": "storage"}),
        )
        space: dict[str, list[tuple[str, int, int]]] = {}
        for row in storages:
            if row.get("type") == "storage" and row.get("status") == "available":
                space.setdefault(str(row["node"]), []).append(
                    (str(row["storage"]), int(row.get("maxdisk") or 0), int(row.get("disk") or 0))
                )
        return [
            NodeHeadroom(
                node=str(row["node"]),
                online=row.get("status") == "online",
                cores=int(row.get("maxcpu") or 0),
                memory_bytes=int(row.get("maxmem") or 0),
                memory_used_bytes=int(row.get("mem") or 0),
                storages=tuple(sorted(space.get(str(row["node"]), ()))),
            )
            for row in rows
            if row.get("type") == "node"
        ]


def place_of(machine: MachineRef) -> dict[str, object]:
    node, slash, vmid = machine.partition("/")
    if not slash or not vmid.isdigit() or not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?", node):
        raise DriverFailed(f"{machine!r} is not a machine of Proxmox VE (node/VMID)")
    return {"node": node, "vmid": int(vmid)}


def vmid_of(source: str) -> int:
    text = source.rpartition("/")[2]
    if not text.isdigit():
        raise DriverFailed(
            f"{source!r} is not a template of Proxmox VE", hint="give the VMID of the template, such as 9000"
        )
    return int(text)


def is_on(value: object) -> bool:
    return str(value).lower() in _ON if value is not None else False


def release_of(data: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", str(data.get("version", "0")))[:2])


def listed_of(row: Mapping[str, Any]) -> Listed:
    return Listed(
        vmid=int(row["vmid"]),
        node=str(row["node"]),
        name=str(row.get("name") or ""),
        status=str(row.get("status") or "unknown"),
        tags=str(row.get("tags") or ""),
        pool=str(row.get("pool") or ""),
        lock=str(row.get("lock") or ""),
        template=is_on(row.get("template")),
        cores=int(row.get("maxcpu") or 0),
        memory_bytes=int(row.get("maxmem") or 0),
        disk_bytes=int(row.get("maxdisk") or 0),
    )


def plain(each: Listed, tag: str) -> MachineFound:
    return MachineFound(
        machine=each.machine,
        tag=tag,
        name=each.name,
        node=each.node,
        vmid=each.vmid,
        running=each.status == "running",
        locked=each.lock,
        cores=each.cores,
        memory_mib=each.memory_bytes >> 20,
        disk_gib=-(-each.disk_bytes // GIB),
    )
