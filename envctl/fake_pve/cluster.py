"""A cluster that is not there: the state and the rules of Proxmox VE as far as the driver sees them.

One rule: nothing happens by itself. Each request first brings the tasks up to the present (`advance`), so a test with its own
clock is in full control, and a server that nobody asks stands still; `server` asks it itself now and then.

What is as in Proxmox VE, because a console must cope with it (qemu-server 9.2, pve-manager 9): a new clone is a locked
configuration without name, description and pool until its end; it inherits tags and protection; listings show statistics that
may be old, and tags and locks that are not; a token sees what it has VM.Audit for; a task holds lock files, and others fail
after a while with `can't lock file ... - got timeout`; a shutdown does not force; a running machine is not destroyed.
"""

import base64
import hashlib
import itertools
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from envctl.fake_pve.access import ROOT, Access, Denied
from envctl.fake_pve.faults import Fault
from envctl.fake_pve.machines import GIB, FakeMachine, FakeNode, FakeStorage, FakeTask, Guest, Running, TaskFailed
from envctl.fake_pve.schema import route, wrong_answer, wrong_parameters

POOL: Final = "envctl"
TOKEN: Final = "envctl@pve!console"
SECRET: Final = "5e7c1fd0-5b0b-4b0f-9d6c-0d3c9a7f1e22"
"""Of a cluster that is not there."""
TEMPLATE: Final = 9000
POOL_RIGHTS: Final = (
    "Pool.Audit",
    "VM.Allocate",
    "VM.Audit",
    "VM.Config.CPU",
    "VM.Config.Disk",
    "VM.Config.HWType",
    "VM.Config.Memory",
    "VM.Config.Options",
    "VM.Console",
    "VM.GuestAgent.Audit",
    "VM.PowerMgmt",
)
VERSION: Final = {"version": "9.1.4", "release": "9.1", "repoid": "0123456789abcdef"}
ASKED_MAX: Final = 50_000
TASKS_MAX: Final = 2_000
"""Remembered; older ones that have ended are forgotten, as Proxmox VE forgets tasks."""
_SIZES: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_CPU: Final = frozenset({"cores", "sockets", "cpu", "cpulimit", "cpuunits", "numa", "vcpus", "affinity"})
_MEMORY: Final = frozenset({"memory", "balloon", "shares"})
_HARDWARE: Final = frozenset(
    {"acpi", "hotplug", "kvm", "machine", "scsihw", "smbios1", "tablet", "vga", "watchdog", "audio0", "rng0"}
)
_GENERAL: Final = frozenset(
    {
        "agent",
        "autostart",
        "bios",
        "description",
        "keyboard",
        "localtime",
        "name",
        "onboot",
        "ostype",
        "protection",
        "reboot",
        "tags",
    }
)
_DISK: Final = frozenset({"boot", "bootdisk", "vmstatestorage"})


class Refusal(Exception):
    """An answer that is not 200, in Proxmox VE's words."""

    def __init__(self, status: int, message: str, errors: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = dict(errors or {})


@dataclass(frozen=True)
class Durations:
    """Seconds on the fake's clock."""

    clone: float = 0.0
    full_clone: float = 0.0
    start: float = 0.0
    shutdown: float = 0.0
    """Of a machine without a simulated guest."""
    stop: float = 0.0
    destroy: float = 0.0
    resize: float = 0.0
    statistics: float = 0.0
    """How old a listing's statistics may be; Proxmox VE: about 10."""


@dataclass(frozen=True)
class Asked:
    """A request that was made, for tests."""

    method: str
    path: str
    parameters: Mapping[str, str]
    user: str
    via: str
    status: int


class FakePve:
    """The state. `handle` is one request; `advance` brings tasks up to the present. Safe for several threads.

    `on_start` is called with each machine that was started and gives back what runs in it. `clones_at_once`: of one template;
    a further one fails as it does where the lock cannot be had.
    """

    def __init__(
        self,
        *,
        nodes: Sequence[FakeNode] = (FakeNode("pve1"), FakeNode("pve2"), FakeNode("pve3")),
        storages: Sequence[FakeStorage] = (FakeStorage("ceph"), FakeStorage("local-lvm", shared=False)),
        durations: Durations = Durations(),
        clones_at_once: int = 2,
        on_start: Callable[[Running], Guest | None] | None = None,
        now: Callable[[], float] = time.time,
        seed: int = 1,
    ) -> None:
        self.lock = threading.RLock()
        self.nodes = {node.name: FakeNode(node.name, node.cores, node.memory_bytes, node.online) for node in nodes}
        self.storages = {storage.name: storage for storage in storages}
        self.durations = durations
        self.clones_at_once = clones_at_once
        self.on_start = on_start
        self.now = now
        self.version: dict[str, str] = dict(VERSION)
        self.access = Access()
        self.pools: set[str] = set()
        self.machines: dict[int, FakeMachine] = {}
        self.tasks: dict[str, FakeTask] = {}
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.violations: list[str] = []
        """Requests that the API description does not allow, and answers of ours that it does not. A test wants none."""
        self.ports: dict[tuple[str, int], tuple[str, int, str, str]] = {}
        """Console ports by (the node that was asked, port): kind, VMID, ticket, VNC password."""
        self._random = random.Random(seed)
        self._pids = itertools.count(0x3E8)
        self._port = itertools.cycle(range(5900, 6000))

    # Building the cluster

    def add_pool(self, name: str) -> None:
        self.pools.add(name)

    def add_token(self, name: str, secret: str, *, separated: bool = True) -> None:
        self.access.tokens[name] = secret
        if not separated:
            self.access.shared_rights.add(name)

    def add_template(
        self, vmid: int, name: str, *, node: str = "pve1", storage: str = "ceph", disk_gib: int = 8, **options: str
    ) -> None:
        """A template as it should be; `options` replace or add (`ide2="ceph:cloudinit"`); an empty text takes one away."""
        config = {
            "template": "1",
            "scsi0": f"{storage}:base-{vmid}-disk-0,discard=on,size={disk_gib}G",
            "boot": "order=scsi0",
            "scsihw": "virtio-scsi-single",
            "agent": "1",
            "serial0": "socket",
            "net0": f"virtio={self._mac()},bridge=vmbr0",
            "ostype": "l26",
            **options,
        }
        machine = self.add_machine(vmid, name, node=node)
        machine.config |= {key: value for key, value in config.items() if value}

    def add_machine(
        self, vmid: int, name: str, *, node: str = "pve1", pool: str = "", running: bool = False, **options: str
    ) -> FakeMachine:
        config = {
            "name": name,
            "cores": "2",
            "sockets": "1",
            "memory": "2048",
            "smbios1": f"uuid={self._uuid()}",
            **options,
        }
        machine = FakeMachine(
            vmid, node, {key: value for key, value in config.items() if value}, pool=pool, running=running
        )
        with self.lock:
            self.machines[vmid] = machine
        return machine

    def fault(self, path: str, **what: Any) -> Fault:
        """Order a `Fault`; given back so that a test can look whether it was used."""
        ordered = Fault(path, **what)
        with self.lock:
            self.faults.append(ordered)
        return ordered

    # One request

    def handle(self, method: str, path: str, parameters: Mapping[str, str], authorization: str, via: str) -> Any:
        """The answer's `data`, or Refusal. `path` begins after `/api2/json`; `via` is the node that was asked."""
        with self.lock:
            self.advance()
            user = ""
            status = 200
            try:
                user = self._who(authorization)
                return self._handle(method, path, dict(parameters), user, via)
            except Denied as error:
                status = 403
                raise Refusal(403, str(error)) from error
            except Refusal as error:
                status = error.status
                raise
            finally:
                self.asked.append(Asked(method, path, dict(parameters), user, via, status))
                if len(self.asked) > ASKED_MAX:
                    del self.asked[: ASKED_MAX // 2]

    def _who(self, authorization: str) -> str:
        found = re.fullmatch(r"PVEAPIToken=([^=]+)=(\S+)", authorization)
        if found is None:
            raise Refusal(401, "No ticket")
        if self.access.tokens.get(found[1]) != found[2]:
            raise Refusal(401, "invalid token value!" if found[1] in self.access.tokens else "no such token")
        return found[1]

    def _handle(self, method: str, path: str, parameters: dict[str, str], user: str, via: str) -> Any:
        found = route(method, path)
        if found is None:
            self.violations.append(f"{method} {path}: the driver's slice of the API description does not have it")
            raise Refusal(501, f"Method '{method} {path}' not implemented")
        described, rule, places = found
        together = {**parameters, **places}
        check = rule.get("permissions", {}).get("check")
        if check:
            self.access.check(user, check, together, self._pooled())
        node = places.get("node")
        if node is not None and (rule.get("proxyto") == "node" or "proxyto" not in rule):
            if node not in self.nodes:
                raise Refusal(
                    500,
                    f"hostname lookup '{node}' failed - failed to get address info for: {node}: Name or service not known",
                )
            if not self.nodes[node].online:
                raise Refusal(595, "No route to host")
        wrong = wrong_parameters(rule, together)
        if wrong:
            self.violations.append(f"{method} {path}: {wrong}")
            raise Refusal(400, "Parameter verification failed.", wrong)
        handler = getattr(self, "_" + _HANDLERS[(method, described)])
        data = handler(together, user, via)
        bad = wrong_answer(rule.get("returns"), data)
        if bad:
            self.violations.append(f"{method} {path} is answered with {bad}")
        return data

    # Time

    def advance(self) -> None:
        """Do what is due."""
        with self.lock:
            for task in [task for task in self.tasks.values() if task.running]:
                if not self.nodes[task.node].online:
                    continue
                try:
                    task.exit_status = task.step(self.now())
                except TaskFailed as error:
                    task.exit_status = str(error)
                if task.exit_status is not None:
                    task.ended_at = self.now()
                    task.log.append("TASK OK" if task.exit_status == "OK" else f"TASK ERROR: {task.exit_status}")

    def crash_node(self, name: str) -> None:
        """Power is lost: machines are off, tasks are gone without a result, half-made clones stay locked."""
        with self.lock:
            self.nodes[name].online = False
            for machine in self.machines.values():
                if machine.node == name:
                    self._off(machine, cut=True)
            for task in self.tasks.values():
                if task.node == name and task.running:
                    task.exit_status = "unexpected status"
                    task.ended_at = self.now()

    def wait_idle(self, timeout_s: float = 10.0) -> None:
        """Until no task runs (real time); TimeoutError."""
        end = time.monotonic() + timeout_s
        while True:
            self.advance()
            with self.lock:
                running = [task.upid for task in self.tasks.values() if task.running]
            if not running:
                return
            if time.monotonic() > end:
                raise TimeoutError(f"tasks still run: {running}")
            time.sleep(0.01)

    # Answers, by the names in `_HANDLERS`

    def _version(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        return dict(self.version)

    def _permissions(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        pooled = self._pooled()
        if "path" in asked:
            return {
                asked["path"]: {
                    right: int(spread) for right, spread in self.access.rights(user, asked["path"], pooled).items()
                }
            }
        paths = {"/", "/access", "/access/groups", "/nodes", "/pool", "/sdn", "/storage", "/vms", *pooled}
        for entries in self.access.grants.values():
            paths |= set(entries)
        found = {path: self.access.rights(user, path, pooled) for path in sorted(paths)}
        return {path: {right: int(spread) for right, spread in held.items()} for path, held in found.items() if held}

    def _nodes_list(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        rows = []
        for node in self.nodes.values():
            row: dict[str, Any] = {"node": node.name, "status": "online" if node.online else "offline"}
            if node.online and self._may(user, f"/nodes/{node.name}", "Sys.Audit"):
                row |= {"maxcpu": node.cores, "maxmem": node.memory_bytes, "mem": self._memory(node.name), "cpu": 0.05}
            rows.append(row)
        return rows

    def _resources(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        kind = asked.get("type")
        pooled = self._pooled()
        rows: list[dict[str, Any]] = []
        if kind in (None, "vm"):
            rows += [
                self._machine_row(machine, user, pooled)
                for machine in sorted(self.machines.values(), key=lambda machine: machine.vmid)
                if self.access.allows(user, f"/vms/{machine.vmid}", "VM.Audit", pooled)
            ]
        if kind in (None, "node"):
            rows += [self._node_row(node, user) for node in self.nodes.values()]
        if kind in (None, "storage"):
            for storage in self.storages.values():
                if self._may(user, f"/storage/{storage.name}", "Datastore.Audit"):
                    rows += [
                        {
                            "id": f"storage/{node}/{storage.name}",
                            "type": "storage",
                            "storage": storage.name,
                            "node": node,
                            "plugintype": "rbd" if storage.shared else "lvmthin",
                            "content": storage.content,
                            "shared": int(storage.shared),
                            "status": "available" if self.nodes[node].online else "unknown",
                            "maxdisk": storage.total_bytes,
                            "disk": storage.used_bytes,
                        }
                        for node in storage.nodes or self.nodes
                    ]
        return rows

    def _node_row(self, node: FakeNode, user: str) -> dict[str, Any]:
        row: dict[str, Any] = {
            "id": f"node/{node.name}",
            "type": "node",
            "node": node.name,
            "status": "online" if node.online else "offline",
        }
        if node.online and self._may(user, f"/nodes/{node.name}", "Sys.Audit"):
            row |= {
                "maxcpu": node.cores,
                "maxmem": node.memory_bytes,
                "mem": self._memory(node.name),
                "cpu": 0.05,
                "uptime": 86400,
            }
        return row

    def _machine_row(self, machine: FakeMachine, user: str, pooled: Mapping[str, str]) -> dict[str, Any]:
        online = self.nodes[machine.node].online
        if online and self.now() - machine.seen_at >= self.durations.statistics and "name" in machine.config:
            machine.seen_at = self.now()
            machine.seen = {
                "name": machine.config["name"],
                "status": "running" if machine.running else "stopped",
                "template": int(machine.template),
                "maxcpu": self._cores(machine),
                "cpu": 0.02 if machine.running else 0,
                "maxmem": self._memory_mib(machine) << 20,
                "mem": (self._memory_mib(machine) << 20) // 3 if machine.running else 0,
                "maxdisk": self._disk_bytes(machine),
                "uptime": int(self.now() - machine.started_at) if machine.running else 0,
            }
        row: dict[str, Any] = {
            "id": f"qemu/{machine.vmid}",
            "type": "qemu",
            "vmid": machine.vmid,
            "node": machine.node,
            "status": "unknown",
            **(machine.seen if online else {}),
        }
        for name in ("tags", "lock"):
            if name in machine.config:
                row[name] = machine.config[name]
        if machine.pool and self.access.allows(user, f"/pool/{machine.pool}", "Pool.Audit", pooled):
            row["pool"] = machine.pool
        return row

    def _nextid(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        if "vmid" in asked:
            vmid = int(asked["vmid"])
            if vmid in self.machines:
                raise Refusal(400, "Parameter verification failed.", {"vmid": f"VM {vmid} already exists"})
            return vmid
        return next(number for number in range(100, 1_000_000) if number not in self.machines)

    def _pool(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        if asked["poolid"] not in self.pools:
            raise Refusal(500, f"pool '{asked['poolid']}' does not exist")
        members = [
            {"id": f"qemu/{machine.vmid}", "type": "qemu", "vmid": machine.vmid, "node": machine.node}
            for machine in self.machines.values()
            if machine.pool == asked["poolid"]
        ]
        return {"members": members}

    def _tasks(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        source = asked.get("source", "archive")
        rows = []
        for task in self.tasks.values():
            if task.node != asked["node"] or task.user != user:
                continue
            if "vmid" in asked and task.ident != asked["vmid"]:
                continue
            if "typefilter" in asked and task.kind != asked["typefilter"]:
                continue
            if (source == "active" and not task.running) or (source == "archive" and task.running):
                continue
            row = self._task_row(task)
            if task.running:
                row["status"] = "RUNNING"
            else:
                row |= {"endtime": int(task.ended_at or 0), "status": task.exit_status}
            rows.append(row)
        return rows[int(asked.get("start", 0)) :][: int(asked.get("limit", 50))]

    def _task_row(self, task: FakeTask) -> dict[str, Any]:
        pid = int(task.upid.split(":")[2], 16)
        return {
            "upid": task.upid,
            "node": task.node,
            "type": task.kind,
            "id": task.ident,
            "user": task.user,
            "pid": pid,
            "pstart": pid,
            "starttime": int(task.began_at),
        }

    def _own_task(self, asked: Mapping[str, str], user: str) -> FakeTask:
        task = self.tasks.get(asked["upid"])
        if task is None or task.node != asked["node"]:
            raise Refusal(400, "Parameter verification failed.", {"upid": "no such task"})
        if task.user != user:
            self.access.require(user, f"/nodes/{asked['node']}", ["Sys.Audit"], {})
        return task

    def _task_status(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        task = self._own_task(asked, user)
        row = self._task_row(task)
        row["status"] = "running" if task.running else "stopped"
        if task.exit_status is not None:
            row["exitstatus"] = task.exit_status
        return row

    def _task_log(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        task = self._own_task(asked, user)
        start, limit = int(asked.get("start", 0)), int(asked.get("limit", 50))
        return [{"n": number, "t": text} for number, text in enumerate(task.log, 1)][start:][:limit]

    def _clone(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        source = self._machine(asked)
        newid, pool = int(asked["newid"]), asked.get("pool", "")
        full = asked.get("full", "0" if source.template else "1") == "1"
        storage = asked.get("storage", "")
        target = asked.get("target", source.node)
        if pool and pool not in self.pools:
            raise Denied(f"Permission check failed (pool '{pool}' does not exist)")
        if target not in self.nodes:
            raise Refusal(500, f"no such cluster node '{target}'")
        self._unlocked(source)
        if storage and not full:
            raise Refusal(500, "parameter 'storage' not allowed for linked clones")
        disks = {
            name: value for name, value in source.config.items() if re.fullmatch(r"(scsi|virtio|sata|ide)\d+", name)
        }
        shared = True
        for value in disks.values():
            name = value.partition(":")[0]
            if "media=cdrom" in value or name not in self.storages:
                continue
            shared = shared and self.storages[name].shared
            self.access.require(user, f"/storage/{storage or name}", ["Datastore.AllocateSpace"], self._pooled())
        for name, value in source.config.items():
            bridge = re.search(r"bridge=([^,]+)", value) if name.startswith("net") else None
            if bridge:
                self.access.require(user, f"/sdn/zones/localnetwork/{bridge[1]}", ["SDN.Use"], {})
        if target != source.node and not shared:
            raise Refusal(500, f"can't clone VM to node '{target}' (VM uses local storage)")
        if not full and not source.template:
            raise Refusal(500, f"Linked clone feature is not supported for '{next(iter(disks.values()), '')}' (scsi0)")
        if newid in self.machines:
            raise Refusal(500, f"unable to create VM {newid}: config file already exists")
        return self._begin_clone(asked, user, source, newid, pool, target, full, storage)

    def _begin_clone(
        self,
        asked: Mapping[str, str],
        user: str,
        source: FakeMachine,
        newid: int,
        pool: str,
        target: str,
        full: bool,
        storage: str,
    ) -> str:
        began = self.now()
        takes = self.durations.full_clone if full else self.durations.clone
        state: dict[str, Any] = {"made": None}
        config = self._cloned_config(source, newid, asked, storage)
        queued = sum(
            task.running and task.kind == "qmclone" and task.ident == str(source.vmid) for task in self.tasks.values()
        )
        refused = queued >= self.clones_at_once

        def step(now: float) -> str | None:
            made: FakeMachine | None = state["made"]
            if made is None:
                if refused or self._held(newid, task):
                    held = source.vmid if refused else newid
                    raise TaskFailed(f"can't lock file '/var/lock/qemu-server/lock-{held}.conf' - got timeout")
                task.log.append(f"creating a clone of VM {source.vmid} with ID {newid}")
                if newid in self.machines:
                    raise TaskFailed(f"unable to create VM {newid}: config file already exists")
                made = state["made"] = FakeMachine(newid, source.node, {"lock": "clone"})
                self.machines[newid] = made
            if now - began < takes:
                if now - began >= takes / 2:
                    made.config = {**config, "lock": "clone"}
                return None
            made.config = dict(config)
            made.node = target
            made.pool = pool
            return "OK"

        task = self._begin(
            source.node, "qmclone", str(source.vmid), user, step, holds=((source.vmid, False), (newid, True))
        )
        if not refused:
            step(self.now()) if takes > 0 else None
        return task.upid

    def _cloned_config(self, source: FakeMachine, newid: int, asked: Mapping[str, str], storage: str) -> dict[str, str]:
        config = {
            key: value
            for key, value in source.config.items()
            if key != "template" and not re.fullmatch(r"unused\d+", key)
        }
        for name, value in config.items():
            if re.fullmatch(r"(scsi|virtio|sata|ide)\d+", name) and "media=cdrom" not in value:
                where, _, rest = value.partition(":")
                _, comma, options = rest.partition(",")
                config[name] = f"{storage or where}:vm-{newid}-disk-{name[-1]}{comma}{options}"
            elif name.startswith("net"):
                config[name] = re.sub(r"=([0-9A-F]{2}:){5}[0-9A-F]{2}", f"={self._mac()}", value)
        smbios = {
            key: value
            for key, _, value in (part.partition("=") for part in config.get("smbios1", "").split(","))
            if key
        }
        config["smbios1"] = ",".join(f"{key}={value}" for key, value in {**smbios, "uuid": self._uuid()}.items())
        config["name"] = asked.get("name") or f"Copy-of-VM-{source.config.get('name', source.vmid)}"
        if asked.get("description"):
            config["description"] = asked["description"]
        return config

    def _config(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        found: dict[str, Any] = {}
        for key, value in machine.config.items():
            found[key] = int(value) if key in _INTEGERS and value.isdigit() else value
        if "description" in found:
            found["description"] = str(found["description"]).rstrip("\n") + "\n"
        found["digest"] = self._digest(machine)
        return found

    def _update(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        changes = {key: value for key, value in asked.items() if key not in ("node", "vmid", "digest", "delete")}
        removed = [key for key in re.split(r"[,;\s]+", asked.get("delete", "")) if key]
        for key in (*changes, *removed):
            self.access.require(user, f"/vms/{machine.vmid}", [_right_for(key)], self._pooled())
        if "digest" in asked and asked["digest"] != self._digest(machine):
            raise Refusal(500, "detected modified configuration - file changed by other user? Try again.")
        self._unlocked(machine)
        self._lockable(machine.vmid)
        if "balloon" in {**machine.config, **changes}:
            balloon = int({**machine.config, **changes}["balloon"])
            if balloon > int({**machine.config, **changes}.get("memory", "512")):
                raise Refusal(500, "balloon value too large (must be smaller than assigned memory)")
        for key in removed:
            machine.config.pop(key, None)
        for key, value in changes.items():
            machine.config[key] = ";".join(sorted(set(re.split(r"[,;\s]+", value)) - {""})) if key == "tags" else value
        return None

    def _resize(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        self._unlocked(machine)
        disk = asked["disk"]
        if disk not in machine.config:
            raise Refusal(500, f"disk '{disk}' does not exist")
        storage = machine.config[disk].partition(":")[0]
        self.access.require(user, f"/storage/{storage}", ["Datastore.AllocateSpace"], self._pooled())
        wanted = _bytes(asked["size"].lstrip("+")) + (
            self._disk_bytes(machine, disk) if asked["size"].startswith("+") else 0
        )
        if wanted < self._disk_bytes(machine, disk):
            raise Refusal(500, "shrinking disks is not supported")

        def done() -> None:
            option = re.sub(r",size=[^,]*", "", machine.config[disk])
            machine.config[disk] = f"{option},size={wanted // GIB}G"

        return self._simple(machine, "resize", user, self.durations.resize, done)

    def _current(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        found: dict[str, Any] = {
            "vmid": machine.vmid,
            "status": "running" if machine.running else "stopped",
            "qmpstatus": "running" if machine.running else "stopped",
            "ha": {"managed": 0},
            "cpus": self._cores(machine),
            "maxmem": self._memory_mib(machine) << 20,
            "maxdisk": self._disk_bytes(machine),
            "uptime": int(self.now() - machine.started_at) if machine.running else 0,
            "mem": (self._memory_mib(machine) << 20) // 3 if machine.running else 0,
            "cpu": 0.02 if machine.running else 0,
            "netin": 1 << 20,
            "netout": 1 << 18,
        }
        for name in ("name", "tags", "lock"):
            if name in machine.config:
                found[name] = machine.config[name]
        if machine.config.get("agent", "0").startswith("1"):
            found["agent"] = 1
        if machine.template:
            found["template"] = 1
        return found

    def _start(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        if machine.template:
            raise Refusal(500, "you can't start a vm if it's a template")
        self._unlocked(machine)
        if machine.running:
            raise Refusal(500, f"VM {machine.vmid} already running")

        def done() -> None:
            machine.running = True
            machine.started_at = self.now()
            machine.boots += 1
            if self.on_start is not None:
                machine.guest = self.on_start(self._running(machine))

        return self._simple(machine, "qmstart", user, self.durations.start, done)

    def _running(self, machine: FakeMachine) -> Running:
        fields = dict(part.partition("=")[::2] for part in machine.config.get("smbios1", "").split(","))
        serial = fields.get("serial", "")
        boots = machine.boots

        def power_off() -> None:
            with self.lock:
                if machine.boots == boots:
                    self._off(machine)

        return Running(
            vmid=machine.vmid,
            node=machine.node,
            name=machine.config.get("name", ""),
            uuid=fields.get("uuid", "").lower(),
            serial=base64.b64decode(serial).decode() if fields.get("base64") == "1" and serial else serial,
            cores=self._cores(machine),
            memory_mib=self._memory_mib(machine),
            disk_gib=self._disk_bytes(machine) // GIB,
            boot=boots,
            fresh=boots == 1,
            power_off=power_off,
        )

    def _shutdown(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        self._unlocked(machine)
        timeout = float(asked.get("timeout", 180))
        force = asked.get("forceStop", "0") == "1"
        began = self.now()
        pressed: list[bool] = []

        def step(now: float) -> str | None:
            if not pressed:
                pressed.append(True)
                if machine.guest is not None:
                    machine.guest.press_power_button()
            if machine.running and machine.guest is None and now - began >= self.durations.shutdown:
                self._off(machine)
            if not machine.running:
                return "OK"
            if now - began >= timeout:
                if not force:
                    raise TaskFailed("VM quit/powerdown failed - got timeout")
                self._off(machine, cut=True)
                return "OK"
            return None

        return self._begin(
            machine.node, "qmshutdown", str(machine.vmid), user, step, holds=((machine.vmid, True),)
        ).upid

    def _stop(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        self._unlocked(machine)
        if asked.get("overrule-shutdown") == "1":
            for task in self.tasks.values():
                if task.running and task.kind == "qmshutdown" and task.ident == str(machine.vmid):
                    task.exit_status, task.ended_at = "interrupted by signal", self.now()
        return self._simple(machine, "qmstop", user, self.durations.stop, lambda: self._off(machine, cut=True))

    def _destroy(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        if machine.config.get("protection") == "1":
            raise Refusal(500, f"can't remove VM {machine.vmid} - protection mode enabled")
        if machine.running:
            raise Refusal(500, f"VM {machine.vmid} is running - destroy failed")

        def done() -> None:
            if machine.running:
                raise TaskFailed(f"VM {machine.vmid} is running - destroy failed")
            if "lock" in machine.config:
                raise TaskFailed(f"VM is locked ({machine.config['lock']})")
            self.machines.pop(machine.vmid, None)

        return self._simple(machine, "qmdestroy", user, self.durations.destroy, done)

    def _vncproxy(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        self._machine(asked)
        port, ticket, password = self._console("vnc", asked, via)
        found = {"user": user, "ticket": f"{password}:{ticket}", "port": port, "cert": "", "password": password}
        found["upid"] = self._begin(asked["node"], "vncproxy", asked["vmid"], user, lambda now: "OK").upid
        return found

    def _termproxy(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        if asked.get("serial", "serial0") not in machine.config:
            raise Refusal(500, f"unable to find a serial interface on VM {machine.vmid}")
        port, ticket, _ = self._console("terminal", asked, via)
        upid = self._begin(asked["node"], "vncproxy", asked["vmid"], user, lambda now: "OK").upid
        return {"user": user, "ticket": ticket, "port": port, "upid": upid}

    def _console(self, kind: str, asked: Mapping[str, str], via: str) -> tuple[int, str, str]:
        port = next(self._port)
        ticket = f"PVEVNC:{int(self.now()):08X}::{base64.b64encode(self._random.randbytes(48)).decode('ascii')}"
        password = base64.b64encode(self._random.randbytes(6)).decode("ascii")
        self.ports[(via, port)] = (kind, int(asked["vmid"]), ticket, password)
        return port, ticket, password

    def _vncwebsocket(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        found = self.ports.get((via, int(asked["port"])))
        ticket = re.sub(r"^.{8}:(?=PVEVNC:)", "", asked["vncticket"])
        if found is None or found[1] != int(asked["vmid"]) or found[2] != ticket:
            raise Refusal(401, "permission denied - invalid PVEVNC ticket")
        return {"port": asked["port"]}

    def _interfaces(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        machine = self._machine(asked)
        if not machine.config.get("agent", "0").startswith("1"):
            raise Refusal(500, "No QEMU guest agent configured")
        if not machine.running:
            raise Refusal(500, f"VM {machine.vmid} is not running")
        address = machine.guest.address if machine.guest is not None else f"192.0.2.{machine.vmid % 250 + 1}"
        if not address:
            raise Refusal(500, "QEMU guest agent is not running")
        return {
            "result": [
                {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}]},
                {
                    "name": "ens18",
                    "hardware-address": "bc:24:11:00:00:01",
                    "ip-addresses": [
                        {"ip-address": "fe80::be24:11ff:fe00:1", "ip-address-type": "ipv6", "prefix": 64},
                        {"ip-address": address, "ip-address-type": "ipv4", "prefix": 24},
                    ],
                },
            ]
        }

    def _ping(self, asked: Mapping[str, str], user: str, via: str) -> Any:
        self._interfaces(asked, user, via)
        return {"result": {}}

    # Inside

    def _machine(self, asked: Mapping[str, str]) -> FakeMachine:
        machine = self.machines.get(int(asked["vmid"]))
        if machine is None or machine.node != asked["node"]:
            raise Refusal(
                500, f"Configuration file 'nodes/{asked['node']}/qemu-server/{asked['vmid']}.conf' does not exist"
            )
        return machine

    def _unlocked(self, machine: FakeMachine) -> None:
        if "lock" in machine.config:
            raise Refusal(500, f"VM is locked ({machine.config['lock']})")

    def _held(self, vmid: int, but: FakeTask) -> bool:
        return any(task.running and task is not but and (vmid, True) in task.holds for task in self.tasks.values())

    def _lockable(self, vmid: int) -> None:
        for task in self.tasks.values():
            if task.running and (vmid, True) in task.holds:
                raise Refusal(500, f"can't lock file '/var/lock/qemu-server/lock-{vmid}.conf' - got timeout")

    def _simple(self, machine: FakeMachine, kind: str, user: str, takes: float, done: Callable[[], None]) -> str:
        """A task that does one thing after `takes` seconds, holding the machine's lock."""
        began = self.now()
        blocked = any(task.running and (machine.vmid, True) in task.holds for task in self.tasks.values())

        def step(now: float) -> str | None:
            if blocked:
                raise TaskFailed(f"can't lock file '/var/lock/qemu-server/lock-{machine.vmid}.conf' - got timeout")
            if now - began < takes:
                return None
            done()
            return "OK"

        return self._begin(machine.node, kind, str(machine.vmid), user, step, holds=((machine.vmid, True),)).upid

    def _begin(
        self,
        node: str,
        kind: str,
        ident: str,
        user: str,
        step: Callable[[float], str | None],
        holds: tuple[tuple[int, bool], ...] = (),
    ) -> FakeTask:
        pid = next(self._pids)
        upid = f"UPID:{node}:{pid:08X}:{pid:08X}:{int(self.now()):08X}:{kind}:{ident}:{user}:"
        fault = next((each for each in self.faults if each.kind == "task" and each.hits("*", f"{kind}/{ident}")), None)
        if fault is not None:
            fault.times -= 1
            message = fault.message

            def step(now: float) -> str | None:  # the ordered one takes the place of the real one
                raise TaskFailed(message)

        task = FakeTask(upid, node, kind, ident, user, self.now(), step, holds=holds)
        if len(self.tasks) >= TASKS_MAX:
            ended = [each.upid for each in self.tasks.values() if not each.running]
            for old in ended[: TASKS_MAX // 2]:
                del self.tasks[old]
        self.tasks[upid] = task
        return task

    def _off(self, machine: FakeMachine, *, cut: bool = False) -> None:
        guest, machine.guest = machine.guest, None
        machine.running = False
        if guest is not None and cut:
            guest.cut_power()

    def _pooled(self) -> dict[str, str]:
        return {f"/vms/{machine.vmid}": machine.pool for machine in self.machines.values() if machine.pool}

    def _may(self, user: str, path: str, right: str) -> bool:
        return self.access.allows(user, path, right, self._pooled())

    def _memory(self, node: str) -> int:
        given = sum(
            self._memory_mib(each) << 20 for each in self.machines.values() if each.node == node and each.running
        )
        return 2 * GIB + given

    def _memory_mib(self, machine: FakeMachine) -> int:
        return int(re.sub(r"^current=", "", machine.config.get("memory", "512")).partition(",")[0])

    def _cores(self, machine: FakeMachine) -> int:
        return int(machine.config.get("cores", "1")) * int(machine.config.get("sockets", "1"))

    def _disk_bytes(self, machine: FakeMachine, disk: str = "") -> int:
        name = disk or next((key for key in machine.config if re.fullmatch(r"(scsi|virtio|sata)\d+", key)), "")
        found = re.search(r"size=([^,]+)", machine.config.get(name, ""))
        return _bytes(found[1]) if found else 0

    def _digest(self, machine: FakeMachine) -> str:
        return hashlib.sha1(repr(sorted(machine.config.items())).encode(), usedforsecurity=False).hexdigest()

    def _mac(self) -> str:
        return "BC:24:11:" + ":".join(f"{byte:02X}" for byte in self._random.randbytes(3))

    def _uuid(self) -> str:
        text = self._random.randbytes(16).hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    @contextmanager
    def slow(self, durations: Durations) -> Iterator[None]:
        """Other durations for a while."""
        before, self.durations = self.durations, durations
        try:
            yield
        finally:
            self.durations = before


def small_cluster(**options: Any) -> FakePve:
    """Three nodes, a pool, a template on shared storage (9000), and a token with the rights that `docs/envctl/pve.md` gives.
    A stranger's machine (100) is there too: nobody may touch it."""
    fake = FakePve(**options)
    fake.add_pool(POOL)
    fake.add_template(TEMPLATE, "debian-13")
    fake.add_machine(100, "strangers-database", scsi0="ceph:vm-100-disk-0,size=40G", running=True)
    fake.add_token(TOKEN, SECRET)
    fake.access.grant(TOKEN, f"/pool/{POOL}", POOL_RIGHTS)
    fake.access.grant(TOKEN, f"/vms/{TEMPLATE}", ("VM.Audit", "VM.Clone"))
    fake.access.grant(TOKEN, "/storage/ceph", ("Datastore.AllocateSpace", "Datastore.Audit"))
    fake.access.grant(TOKEN, "/sdn/zones/localnetwork/vmbr0", ("SDN.Use",))
    return fake


def _right_for(key: str) -> str:
    """As `check_vm_modify_config_perm` in qemu-server's `API2/Qemu.pm` has it."""
    if key in _CPU:
        return "VM.Config.CPU"
    if key in _MEMORY:
        return "VM.Config.Memory"
    if key in _HARDWARE:
        return "VM.Config.HWType"
    if key in _GENERAL:
        return "VM.Config.Options"
    if key in _DISK or re.fullmatch(r"(scsi|virtio|sata|ide|unused)\d+", key):
        return "VM.Config.Disk"
    if re.fullmatch(r"net\d+", key):
        return "VM.Config.Network"
    return "Sys.Modify"


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text)
    if found is None:
        raise Refusal(500, f"unable to parse size '{text}'")
    return int(float(found[1]) * _SIZES[found[2]])


_INTEGERS: Final = frozenset(
    {"cores", "sockets", "template", "onboot", "protection", "balloon", "acpi", "vcpus", "numa"}
)
_VM: Final = "/nodes/{node}/qemu/{vmid}"
_HANDLERS: Final[Mapping[tuple[str, str], str]] = {
    ("GET", "/version"): "version",
    ("GET", "/access/permissions"): "permissions",
    ("GET", "/nodes"): "nodes_list",
    ("GET", "/cluster/resources"): "resources",
    ("GET", "/cluster/nextid"): "nextid",
    ("GET", "/pools/{poolid}"): "pool",
    ("GET", "/nodes/{node}/tasks"): "tasks",
    ("GET", "/nodes/{node}/tasks/{upid}/status"): "task_status",
    ("GET", "/nodes/{node}/tasks/{upid}/log"): "task_log",
    ("POST", f"{_VM}/clone"): "clone",
    ("GET", f"{_VM}/config"): "config",
    ("PUT", f"{_VM}/config"): "update",
    ("PUT", f"{_VM}/resize"): "resize",
    ("GET", f"{_VM}/status/current"): "current",
    ("POST", f"{_VM}/status/start"): "start",
    ("POST", f"{_VM}/status/shutdown"): "shutdown",
    ("POST", f"{_VM}/status/stop"): "stop",
    ("DELETE", _VM): "destroy",
    ("POST", f"{_VM}/vncproxy"): "vncproxy",
    ("POST", f"{_VM}/termproxy"): "termproxy",
    ("GET", f"{_VM}/vncwebsocket"): "vncwebsocket",
    ("GET", f"{_VM}/agent/network-get-interfaces"): "interfaces",
    ("POST", f"{_VM}/agent/ping"): "ping",
}

__all__ = ["POOL", "ROOT", "SECRET", "TEMPLATE", "TOKEN", "Asked", "Durations", "FakePve", "Refusal", "small_cluster"]
