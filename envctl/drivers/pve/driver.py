"""Proxmox VE as a port for machines: thin, asynchronous, with an API token of few rights.

One rule: nothing here is remembered. What is so is asked of the cluster each time, so any number of consoles, and one that has
just been killed, see the same.

How a machine is found again (`clone_vm` as qemu-server 9.2 has it):

    when                                what the cluster shows                          how it is found
    the call broke off (596, timeout)   maybe nothing yet, maybe a task                 `clone` again: see below
    the clone task runs                 a configuration `lock: clone`; name and         by its VMID in the task's log; the pool
                                        description only after the first disk, the      comes last, so a token with rights on
                                        pool last; no tag of ours                       the pool alone does not see it yet
    the task has ended                  pool, name, description                         by the description's last line
    configured                          and the tag                                     by the tag
    the node died in the clone          `lock: clone`, outside the pool                 the VMID is taken; only an admin at the
                                                                                        node can remove it

So `clone` may be repeated with the same VMID: it attaches to the task of ours that makes that VMID, or finds the machine done,
and says `exists` only where the number belongs to something else. Two calls at once can do no harm: Proxmox VE makes the
configuration file of a VMID once in the cluster.

State and name in a listing come from statistics that each node sends every ten seconds or so; tags and locks are as they are.
So `find` asks each machine itself, and `inventory` those of which the listing says nothing.
"""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal
from urllib.parse import quote

import httpx

from envctl.drivers.port import (
    DONE,
    CloneSpec,
    ConsoleTarget,
    DriverFinding,
    MachineFound,
    MachineRef,
    MachineSpec,
    MachineStatus,
    NodeHeadroom,
    TaskRef,
    TaskStatus,
)
from envctl.drivers.pve import marks, placement, words
from envctl.drivers.pve.checks import Checks
from envctl.drivers.pve.client import AGENT_S, CLONE_S, PREFIX, READ_S, WRITE_S, PveClient
from envctl.drivers.pve.cluster import GIB, VM, Cluster, Listed, is_on, place_of, plain, vmid_of
from envctl.errors import DriverBusy, DriverFailed
from envctl.seed import SERIAL_PREFIX
from s3core.settings import ConfigError, EnvctlDriverSettings

log = logging.getLogger(__name__)

LOOKS_AT_ONCE: Final = 8
_CLONE_ID: Final = re.compile(r"creating a clone of VM (\d+) with ID (\d+)")


class PveDriver:
    """An `EnvDriver`. `transport` and `now` are for tests; `environ` is where systemd's credentials are looked for."""

    def __init__(
        self,
        name: str,
        settings: EnvctlDriverSettings,
        *,
        environ: Mapping[str, str] | None = None,
        transport: Callable[[], httpx.AsyncBaseTransport] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        if settings.vmid_last < settings.vmid_first:
            raise ConfigError(f"[envctl.driver.{name}] vmid_last is before vmid_first")
        self._name = name
        self._settings = settings
        self._client = PveClient(name, settings, environ=environ, transport=transport, now=now)
        self._cluster = Cluster(name, self._client)
        self._checks = Checks(name, settings, self._client, self._cluster)

    @property
    def name(self) -> str:
        return self._name

    @property
    def clones_at_once(self) -> int:
        return self._settings.clones_at_once

    @property
    def vmid_range(self) -> tuple[int, int] | None:
        return (self._settings.vmid_first, self._settings.vmid_last)

    async def close(self) -> None:
        await self._client.close()

    # What there is

    async def inventory(self) -> Sequence[MachineFound]:
        """Every machine with a tag of ours, and those in our range that only their description names yet. One in our range that
        has neither is left out, unless it is being cloned (tag ""). DriverBusy where a node that holds one is offline, or where
        the node that answered may be cut off from the others."""
        listed, nodes = await asyncio.gather(self._cluster.machines(), self._cluster.nodes())
        self._cluster.require_quorum(nodes)
        ours = [each for each in listed if self._may_be_ours(each)]
        away = sorted({each.node for each in ours if nodes.get(each.node) != "online"})
        if away:
            raise DriverBusy(
                f"{self._name}: node {', '.join(away)} is offline and holds machines; what runs there is not known",
                hint="nothing is taken for gone until the node is back, or is removed from the cluster",
                nothing_done=True,
            )
        found = await self._each(ours, lambda each: self._found(each, fresh=each.status == "unknown"))
        return [machine for machine in found if machine is not None and (machine.tag or machine.locked == "clone")]

    async def find(self, tag: str) -> Sequence[MachineFound]:
        """By tag, or by the description's last line where the tag is not there yet. A machine on a node that is offline is
        found, with `locked` saying so."""
        listed, nodes = await asyncio.gather(self._cluster.machines(), self._cluster.nodes())
        tagged = [each for each in listed if self._may_be_ours(each) and marks.our_tag(each.tags) in ("", tag)]
        reachable = [each for each in tagged if nodes.get(each.node) == "online"]
        found = [
            each for each in await self._each(reachable, lambda each: self._found(each, fresh=True)) if each is not None
        ]
        for each in tagged:
            if each not in reachable and marks.our_tag(each.tags) == tag:
                found.append(replace(plain(each, tag), running=False, locked=f"node {each.node} is offline"))
        found = [each for each in found if each.tag == tag]
        if not found:
            self._cluster.require_quorum(nodes)
        return found

    def _may_be_ours(self, each: Listed) -> bool:
        """In our range, or tagged in our pool. A copy of an environment that an admin made by hand, with its tag and its
        description, is neither, and is nobody's orphan."""
        settings = self._settings
        if each.template:
            return False
        if settings.vmid_first <= each.vmid <= settings.vmid_last:
            return True
        return bool(settings.pool) and each.pool == settings.pool and bool(marks.our_tag(each.tags))

    async def _found(self, each: Listed, *, fresh: bool) -> MachineFound | None:
        """The machine with what is asked of itself; None: it went away meanwhile."""
        found = plain(each, marks.our_tag(each.tags))
        try:
            if not found.tag or fresh:
                config = await self._cluster.config(each.machine)
                mark = marks.mark_of(str(config.get("description", "")))
                uuid, _ = marks.smbios_of(str(config.get("smbios1", "")))
                found = replace(found, tag=found.tag or (mark.tag if mark else ""), uuid=uuid)
            if fresh:
                current = await self._client.get(f"{VM}/status/current", place_of(each.machine))
                found = replace(
                    found,
                    name=str(current.get("name", found.name)),
                    running=current.get("status") == "running",
                    locked=str(current.get("lock", "")),
                )
        except DriverFailed as error:
            if words.reason(error) == "gone":
                return None
            raise
        return found

    async def _each(self, listed: Sequence[Listed], look: "Callable[[Listed], Any]") -> "list[MachineFound | None]":
        slots = asyncio.Semaphore(LOOKS_AT_ONCE)

        async def one(each: Listed) -> MachineFound | None:
            async with slots:
                found: MachineFound | None = await look(each)
                return found

        return list(await asyncio.gather(*(one(each) for each in listed)))

    # Making and unmaking

    async def clone(self, spec: CloneSpec) -> TaskRef:
        """As the port has it; and it may be repeated: a clone under way or done is found by its VMID."""
        if spec.vmid is None:
            raise DriverFailed(f"{self._name}: a clone needs a VMID")
        known = await self._already(spec)
        if known is not None:
            return known
        source = vmid_of(spec.source)
        listed = await self._cluster.machines()
        node = spec.options.get("node") or next((each.node for each in listed if each.vmid == source), "")
        if not node:
            raise DriverFailed(
                f"{self._name}: there is no template {source}, or the token may not see it",
                hint=f"the token needs VM.Audit and VM.Clone at /vms/{source}",
                details={"reason": "denied"},
            )
        full = is_on(spec.options.get("full"))
        target = await self._target(spec, node, source, listed)
        parameters: dict[str, object] = {
            "node": node,
            "vmid": source,
            "newid": spec.vmid,
            "name": spec.name,
            "description": spec.description,
            "full": full,
            "pool": spec.options.get("pool") or self._settings.pool or None,
            "storage": (spec.options.get("storage") or self._settings.storage or None) if full else None,
            "target": target if target != node else None,
            "snapname": spec.options.get("snapshot") or None,
        }
        try:
            answer = await self._client.call("POST", f"{VM}/clone", parameters, timeout_s=CLONE_S)
        except DriverFailed as error:
            if words.reason(error) != "exists":
                raise
            # Somebody was first: this call's own lost predecessor, or another machine.
            known = await self._already(spec)
            if known is None:
                raise
            return known
        return _task(answer.data)

    async def _already(self, spec: CloneSpec) -> TaskRef | None:
        """The task that makes this VMID, DONE where the machine is there, None where the number is free. DriverFailed
        `exists`: the number is something else's."""
        if await self._cluster.is_free(spec.vmid or 0):
            return None
        task = await self._clone_task(spec)
        if task is not None:
            return task
        own = marks.mark_of(spec.description)
        for each in await self._cluster.machines():
            if each.vmid == spec.vmid:
                config = await self._cluster.config(each.machine)
                mark = marks.mark_of(str(config.get("description", "")))
                if mark is not None and mark == own and not config.get("lock"):
                    return DONE
        if await self._cluster.is_free(spec.vmid or 0):
            return None  # the task ended between the two looks, and took back what it had made
        raise DriverFailed(
            f"{self._name}: VMID {spec.vmid} is taken by another machine",
            hint="keep the range in [envctl.driver.*] vmid_first to vmid_last for the console alone",
            details={"reason": "exists"},
        )

    async def _clone_task(self, spec: CloneSpec) -> TaskRef | None:
        """The running clone task of this token that makes `spec.vmid`: its log names the number in the first line."""
        nodes = [spec.options["node"]] if spec.options.get("node") else sorted(await self._nodes_online())
        source = vmid_of(spec.source)
        for node in nodes:
            tasks = await self._client.get(
                "/nodes/{node}/tasks",
                {"node": node, "vmid": source, "typefilter": "qmclone", "source": "active", "limit": 100},
            )
            for task in tasks:
                if task.get("status") not in (None, "", "RUNNING"):
                    continue
                lines = await self._client.get(
                    "/nodes/{node}/tasks/{upid}/log", {"node": node, "upid": task["upid"], "limit": 20}
                )
                for line in lines:
                    made = _CLONE_ID.search(str(line.get("t", "")))
                    if made and int(made[2]) == spec.vmid:
                        return TaskRef(str(task["upid"]))
        return None

    async def _nodes_online(self) -> list[str]:
        return [node for node, status in (await self._cluster.nodes()).items() if status == "online"]

    async def _target(self, spec: CloneSpec, node: str, source: int, listed: Sequence[Listed]) -> str:
        wished = spec.options.get("target", "")
        allowed = tuple(each for each in re.split(r"[,\s]+", spec.options.get("nodes", "")) if each)
        if not wished and await self._alone():
            return node
        config = await self._cluster.config(MachineRef(f"{node}/{source}"))
        shared = await self._cluster.shared()
        everywhere = all(shared.get(marks.storage_of(value), False) for value in marks.disks(config).values())
        given: dict[str, int] = {}
        for each in listed:
            if each.status == "running" or self._may_be_ours(each):
                given[each.node] = given.get(each.node, 0) + each.memory_bytes
        return placement.choose(
            node, await self._cluster.headroom(), shared=everywhere, given_bytes=given, allowed=allowed, wished=wished
        )

    async def _alone(self) -> bool:
        return len(await self._cluster.nodes()) == 1

    async def configure(self, machine: MachineRef, spec: MachineSpec) -> TaskRef:
        """Sets only what differs. The configuration is in the cluster when this returns; growing the disk is the task."""
        config = await self._cluster.config(machine)
        try:
            serial = SERIAL_PREFIX + spec.seed_url if spec.seed_url else ""
            smbios = marks.smbios_with(str(config.get("smbios1", "")), spec.uuid, serial)
        except ValueError as error:
            raise DriverFailed(f"{self._name}: {machine}: {error}") from error
        wanted: dict[str, object] = {
            **_size(config, spec.cores, spec.memory_mib),
            "tags": marks.with_tag(str(config.get("tags", "")), spec.tag),
            "description": spec.description,
        }
        if marks.smbios_of(smbios) != marks.smbios_of(str(config.get("smbios1", ""))):
            wanted["smbios1"] = smbios
        if is_on(config.get("protection")):
            wanted["protection"] = False  # inherited from the template: the machine could never be destroyed
        if is_on(config.get("onboot")):
            wanted["onboot"] = False  # who starts it is the console's to say
        await self._change(machine, config, wanted)
        return await self._grow(machine, config, spec.disk_gib)

    async def resize(self, machine: MachineRef, cores: int, memory_mib: int, disk_gib: int) -> TaskRef:
        config = await self._cluster.config(machine)
        await self._change(machine, config, _size(config, cores, memory_mib))
        return await self._grow(machine, config, disk_gib)

    async def _change(self, machine: MachineRef, config: Mapping[str, object], wanted: Mapping[str, object]) -> None:
        removed = [key for key, value in wanted.items() if value is None and key in config]
        changes = {
            key: value for key, value in wanted.items() if value is not None and not _same(key, config.get(key), value)
        }
        if not changes and not removed:
            return
        parameters = {
            **place_of(machine),
            **changes,
            "delete": ",".join(removed) or None,
            "digest": config.get("digest"),
        }
        await self._client.call("PUT", f"{VM}/config", parameters, timeout_s=WRITE_S)

    async def _grow(self, machine: MachineRef, config: Mapping[str, object], disk_gib: int) -> TaskRef:
        disk = marks.boot_disk(config)
        if not disk:
            raise DriverFailed(f"{self._name}: {machine} has no disk to boot from", hint="check the template")
        if marks.size_bytes(str(config[disk])) >= disk_gib * GIB:
            return DONE
        parameters = {**place_of(machine), "disk": disk, "size": f"{disk_gib}G"}
        answer = await self._client.call("PUT", f"{VM}/resize", parameters, timeout_s=WRITE_S)
        return _task(answer.data)

    async def start(self, machine: MachineRef) -> TaskRef:
        if (await self._cluster.current(machine)).get("status") == "running":
            return DONE
        try:
            answer = await self._client.call("POST", f"{VM}/status/start", place_of(machine), timeout_s=WRITE_S)
        except DriverFailed as error:
            if words.RUNNING.search(str(error)):
                return DONE
            raise
        return _task(answer.data)

    async def shutdown(self, machine: MachineRef, timeout_s: float) -> TaskRef:
        if (await self._cluster.current(machine)).get("status") != "running":
            return DONE
        parameters = {**place_of(machine), "timeout": max(1, round(timeout_s)), "forceStop": False}
        return await self._end(f"{VM}/status/shutdown", parameters)

    async def stop(self, machine: MachineRef) -> TaskRef:
        if (await self._cluster.current(machine)).get("status") != "running":
            return DONE
        # A shutdown under way holds the machine's lock for its whole timeout; whoever says "now" does not wait for it.
        return await self._end(f"{VM}/status/stop", {**place_of(machine), "overrule-shutdown": True})

    async def _end(self, path: str, parameters: Mapping[str, object]) -> TaskRef:
        try:
            answer = await self._client.call("POST", path, parameters, timeout_s=WRITE_S)
        except DriverFailed as error:
            if words.STOPPED.search(str(error)):
                return DONE
            raise
        return _task(answer.data)

    async def destroy(self, machine: MachineRef) -> TaskRef:
        """Only what lies in our range or pool and carries our tag or our description; DriverFailed otherwise: no mistake of
        ours may cost somebody else a machine. `purge` takes it out of backup jobs and HA as well."""
        machine_now = await self._where(machine)
        if machine_now is None:
            return DONE
        config = await self._cluster.config(machine_now.machine)
        mark = marks.mark_of(str(config.get("description", "")))
        tagged = marks.our_tag(str(config.get("tags", "")))
        if is_on(config.get("template")) or not self._may_be_ours(machine_now) or not (mark or tagged):
            raise DriverFailed(
                f"{self._name}: {machine_now.machine} is no machine of ours, or carries no mark: it is not destroyed",
                hint="if it is yours to remove, use Proxmox VE",
                details={"reason": "foreign"},
            )
        if config.get("lock") == "clone":
            raise DriverBusy(
                f"{self._name}: {machine_now.machine} is being cloned, or a clone of it broke off",
                hint=f"if no clone task runs: qm unlock {machine_now.vmid} at node {machine_now.node}",
                nothing_done=True,
            )
        parameters = {**place_of(machine_now.machine), "purge": True}
        try:
            answer = await self._client.call("DELETE", VM, parameters, timeout_s=WRITE_S)
        except DriverFailed as error:
            if words.reason(error) == "gone":
                return DONE
            raise
        return _task(answer.data)

    async def task(self, task: TaskRef) -> TaskStatus:
        if task == DONE:
            return TaskStatus("ok")
        parts = task.split(":")
        if parts[0] != "UPID" or len(parts) < 9:
            return TaskStatus("unknown", f"{task!r} is not the name of a task")
        try:
            found = await self._client.get("/nodes/{node}/tasks/{upid}/status", {"node": parts[1], "upid": task})
        except DriverFailed as error:
            if words.NO_TASK.search(str(error)):
                return TaskStatus("unknown", f"{self._name}: {parts[1]} knows no task {task}")
            raise
        if found.get("status") == "running":
            return TaskStatus("running")
        message = str(found.get("exitstatus", ""))
        if message == "OK" or message.startswith("WARNINGS"):
            return TaskStatus("ok", "" if message == "OK" else message)
        if not message or message == "unexpected status":
            # The node went down under it: what it has done is for the caller to look at.
            return TaskStatus("unknown", f"{self._name}: {task} ended without a result")
        if parts[5] == "qmclone" and words.EXISTS.search(message):
            # Two clones of one number met, as after a lost answer: the other one may well be ours.
            return TaskStatus("unknown", message)
        return TaskStatus("failed", message, retryable=bool(words.BUSY.search(message)))

    # Looking at one

    async def status(self, machine: MachineRef) -> MachineStatus:
        """Of a machine that was moved, its state where it is now; `exists` is False only where the whole cluster has none."""
        try:
            found = await self._client.get(f"{VM}/status/current", place_of(machine))
        except DriverFailed as error:
            if words.reason(error) not in ("gone", "denied"):
                raise
            there = await self._where(machine)
            if there is None:
                return MachineStatus(exists=False, running=False)
            machine = there.machine
            found = await self._client.get(f"{VM}/status/current", place_of(machine))
        running = found.get("status") == "running"
        return MachineStatus(
            exists=True,
            running=running,
            locked=str(found.get("lock", "")),
            address=await self._address(machine) if running and is_on(found.get("agent")) else "",
            uptime_s=float(found.get("uptime") or 0),
            cpu=float(found.get("cpu") or 0),
            memory_used_bytes=int(found.get("mem") or 0),
            memory_bytes=int(found.get("maxmem") or 0),
            network_in_bytes=int(found.get("netin") or 0),
            network_out_bytes=int(found.get("netout") or 0),
        )

    async def _address(self, machine: MachineRef) -> str:
        try:
            answer = await self._client.get(f"{VM}/agent/network-get-interfaces", place_of(machine), timeout_s=AGENT_S)
        except DriverFailed as error:
            # An agent that is not up yet is the usual case while a guest boots: the address is unknown, nothing failed.
            log.debug("%s: no address of %s: %s", self._name, machine, error)
            return ""
        return address_of(answer)

    async def _where(self, machine: MachineRef) -> Listed | None:
        """The machine's place in the whole cluster; None: no node has it, as a cluster with quorum says."""
        vmid = int(str(place_of(machine)["vmid"]))
        listed, nodes = await asyncio.gather(self._cluster.machines(), self._cluster.nodes())
        here = next((each for each in listed if each.vmid == vmid), None)
        if here is not None:
            return here
        self._cluster.require_quorum(nodes)
        if not await self._cluster.is_free(vmid):
            raise DriverBusy(
                f"{self._name}: VMID {vmid} is in use, and the token may not see by what",
                hint="a clone is under way, or broke off on a node that went down; qm list there shows it",
                nothing_done=True,
            )
        return None

    async def headroom(self) -> Sequence[NodeHeadroom]:
        return await self._cluster.headroom()

    async def check_template(self, source: str, options: Mapping[str, str]) -> Sequence[DriverFinding]:
        return await self._checks.template(source, options)

    async def check_access(self) -> Sequence[DriverFinding]:
        return await self._checks.access()

    # Consoles

    async def console(self, machine: MachineRef, kind: Literal["vnc", "terminal"]) -> ConsoleTarget:
        """A ticket for one connection within the next 10 seconds or so, at the node that answered: its port is there alone.

        The terminal speaks termproxy's protocol after `OK`: the browser's side sends `0:LENGTH:DATA` (length in bytes),
        `1:COLUMNS:ROWS:` and `2` (keep alive); what comes back is the terminal's own bytes.
        """
        place = place_of(machine)
        if kind == "vnc":
            # The password is asked for by itself: older releases take the ticket's first characters for one, newer ones both.
            answer = await self._client.call(
                "POST", f"{VM}/vncproxy", {**place, "websocket": True, "generate-password": True}, timeout_s=READ_S
            )
        else:
            config = await self._cluster.config(machine)
            serial = next((f"serial{n}" for n in range(4) if str(config.get(f"serial{n}", "")) == "socket"), None)
            if serial is None:
                raise DriverFailed(
                    f"{self._name}: {machine} has no serial port, so there is no terminal",
                    hint="use the screen, or give the template one: qm set VMID --serial0 socket",
                )
            answer = await self._client.call("POST", f"{VM}/termproxy", {**place, "serial": serial}, timeout_s=READ_S)
        data = answer.data
        query = f"port={data['port']}&vncticket={quote(str(data['ticket']), safe='')}"
        path = f"/nodes/{place['node']}/qemu/{place['vmid']}/vncwebsocket"
        secure = answer.base.startswith("https:")
        return ConsoleTarget(
            kind=kind,
            url=f"{'wss' if secure else 'ws'}{answer.base[answer.base.index(':') :]}{PREFIX}{path}?{query}",
            headers={"Authorization": self._client.token().header},
            password=str(data.get("password") or data["ticket"]) if kind == "vnc" else "",
            preamble=b"" if kind == "vnc" else f"{data['user']}:{data['ticket']}\n".encode(),
            verify=self._client.context if secure else True,
        )


def address_of(answer: Mapping[str, Any]) -> str:
    """The first address of a guest that another host can reach: IPv4 before IPv6, no loopback, no link-local."""
    found: list[tuple[bool, str]] = []
    for card in answer.get("result") or ():
        for each in card.get("ip-addresses") or ():
            text = str(each.get("ip-address", ""))
            if text and not text.startswith(("127.", "169.254.", "::1", "fe80:")):
                found.append((each.get("ip-address-type") != "ipv4", text))
    return min(found, key=lambda each: each[0])[1] if found else ""


def _task(data: object) -> TaskRef:
    """A UPID; DONE where the call did all (a resize before Proxmox VE 8.1)."""
    return TaskRef(data) if isinstance(data, str) and data.startswith("UPID:") else DONE


def _size(config: Mapping[str, object], cores: int, memory_mib: int) -> dict[str, object]:
    wanted: dict[str, object] = {"sockets": 1, "cores": cores, "memory": str(memory_mib)}
    if "vcpus" in config:
        wanted["vcpus"] = None  # it would cap the cores at the template's number
    if str(config.get("balloon", "")).isdigit() and int(str(config["balloon"])) > memory_mib:
        wanted["balloon"] = memory_mib
    return wanted


def _same(key: str, there: object, wanted: object) -> bool:
    if key == "description":
        return str(there or "").strip() == str(wanted).strip()
    if key == "memory":
        return str(
            marks.fields_of(str(there or "512")).get("current", marks.fields_of(str(there or "512")).get("", ""))
        ) == str(wanted)
    if key in ("cores", "sockets"):
        return str(there or 1) == str(wanted)
    return str(there or "") == str(wanted)
