"""A hypervisor in a file, driven by a script: what it does with each call is written down beforehand.

Its machines and tasks are in a JSON file under a lock, so that they outlive the process that asked for them, as a real one's
do. A task ends by the clock, whether anybody asks or not. `trouble` is a list of `[call, what]` taken from its front when that
call is made: `busy` (nothing done), `lost` (done, and the answer lost), `never` (lost, and not done either), `refused`,
`exists`, `task-failed`, `task-lock` (fails in a way that may be tried again), `half` (a clone that fails and leaves something).
"""

import fcntl
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

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
from envctl.errors import DriverBusy, DriverFailed


class ScriptedDriver:
    """An `EnvDriver`. All instances on one file are one hypervisor."""

    def __init__(
        self, file: Path, *, name: str = "fake", task_s: float = 0.0, numbers: bool = True, at_once: int = 2
    ) -> None:
        self._file = file
        self._name = name
        self._task_s = task_s
        self._numbers = numbers
        self._at_once = at_once
        if not file.exists():
            with self.state() as state:
                state.update(machines={}, tasks={}, trouble=[], calls=[], next=1, down=False)

    @contextmanager
    def state(self) -> Iterator[dict[str, Any]]:
        """What there is, to look at and to change."""
        with self._file.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            text = file.read()
            state: dict[str, Any] = json.loads(text) if text else {}
            before = json.dumps(state)
            if state:
                self._settle(state)
            try:
                yield state
            finally:  # what a call did stays done when its answer is lost
                after = json.dumps(state)
                if after != before:
                    file.seek(0)
                    file.truncate()
                    file.write(after)

    def script(self, *trouble: tuple[str, str]) -> None:
        with self.state() as state:
            state["trouble"].extend([list(one) for one in trouble])

    def machines(self) -> dict[str, dict[str, Any]]:
        with self.state() as state:
            return dict(state["machines"])

    def calls(self, call: str) -> int:
        with self.state() as state:
            return sum(1 for one in state["calls"] if one == call)

    @property
    def name(self) -> str:
        return self._name

    @property
    def clones_at_once(self) -> int:
        return self._at_once

    @property
    def vmid_range(self) -> tuple[int, int] | None:
        return (100, 199) if self._numbers else None

    async def inventory(self) -> Sequence[MachineFound]:
        with self.state() as state:
            self._reachable(state)
            return [_found(ref, one) for ref, one in state["machines"].items() if one["tag"].startswith("env-")]

    async def find(self, tag: str) -> Sequence[MachineFound]:
        with self.state() as state:
            self._reachable(state)
            return [_found(ref, one) for ref, one in state["machines"].items() if one["tag"] == tag]

    async def clone(self, spec: CloneSpec) -> TaskRef:
        with self.state() as state:
            how = self._how(state, "clone")
            number = spec.vmid if spec.vmid is not None else state["next"]
            ref = f"pve1/{number}"
            if ref in state["machines"] or how == "exists":
                if how == "exists":
                    state["machines"].setdefault(ref, _machine("somebody", "", number))
                raise DriverFailed(f"{number} exists", details={"reason": "exists"})
            if how != "never":
                machine = _machine(spec.name, spec.tag, number)
                machine |= {"locked": "clone", "description": spec.description}
                state["machines"][ref] = machine
            return self._answer(state, how, {"do": "unlock", "machine": ref})

    async def configure(self, machine: MachineRef, spec: MachineSpec) -> TaskRef:
        with self.state() as state:
            how = self._how(state, "configure")
            one = self._one(state, machine)
            one |= {"cores": spec.cores, "memory_mib": spec.memory_mib, "tag": spec.tag, "uuid": spec.uuid}
            one["disk_gib"] = max(one["disk_gib"], spec.disk_gib)
            if spec.seed_url:
                one["seed_url"] = spec.seed_url
            return self._answer(state, how, None)

    async def resize(self, machine: MachineRef, cores: int, memory_mib: int, disk_gib: int) -> TaskRef:
        with self.state() as state:
            how = self._how(state, "resize")
            one = self._one(state, machine)
            one |= {"cores": cores, "memory_mib": memory_mib, "disk_gib": max(one["disk_gib"], disk_gib)}
            return self._answer(state, how, None)

    async def start(self, machine: MachineRef) -> TaskRef:
        return self._act("start", machine, {"do": "run", "running": True})

    async def shutdown(self, machine: MachineRef, timeout_s: float) -> TaskRef:
        return self._act("shutdown", machine, {"do": "run", "running": False})

    async def stop(self, machine: MachineRef) -> TaskRef:
        return self._act("stop", machine, {"do": "run", "running": False})

    async def destroy(self, machine: MachineRef) -> TaskRef:
        with self.state() as state:
            how = self._how(state, "destroy")
            one = state["machines"].get(machine)
            if one is None:
                return DONE
            if one["running"]:
                raise DriverFailed(f"{machine} runs")
            one["locked"] = "destroy"
            return self._answer(state, how, {"do": "remove", "machine": machine})

    async def task(self, task: TaskRef) -> TaskStatus:
        with self.state() as state:
            self._reachable(state)
            found = state["tasks"].get(task)
            if found is None:
                return TaskStatus("unknown")
            if not found["over"]:
                return TaskStatus("running")
            if found["error"]:
                return TaskStatus("failed", found["error"], retryable=found["again"])
            return TaskStatus("ok")

    async def status(self, machine: MachineRef) -> MachineStatus:
        with self.state() as state:
            self._reachable(state)
            one = state["machines"].get(machine)
            if one is None:
                return MachineStatus(exists=False, running=False)
            address = f"192.0.2.{one['vmid'] % 250}" if one["running"] else ""
            return MachineStatus(exists=True, running=one["running"], locked=one["locked"], address=address)

    async def headroom(self) -> Sequence[NodeHeadroom]:
        return [NodeHeadroom("pve1", True, 8, 16 << 30, 4 << 30, (("local", 100 << 30, 10 << 30),))]

    async def check_template(self, source: str, options: Mapping[str, str]) -> Sequence[DriverFinding]:
        return []

    async def check_access(self) -> Sequence[DriverFinding]:
        return []

    async def console(self, machine: MachineRef, kind: Literal["vnc", "terminal"]) -> ConsoleTarget:
        raise DriverFailed("there is no screen")

    async def close(self) -> None:
        return None

    # What it does.

    def _act(self, call: str, machine: MachineRef, effect: dict[str, Any]) -> TaskRef:
        with self.state() as state:
            how = self._how(state, call)
            self._one(state, machine)
            return self._answer(state, how, effect | {"machine": machine})

    def _reachable(self, state: dict[str, Any]) -> None:
        if state["down"]:
            raise DriverBusy("the node does not answer", nothing_done=True)

    def _how(self, state: dict[str, Any], call: str) -> str:
        self._reachable(state)
        state["calls"].append(call)
        for place, (wanted, how) in enumerate(state["trouble"]):
            if wanted == call:
                del state["trouble"][place]
                if how == "busy":
                    raise DriverBusy("can't lock file - got timeout", nothing_done=True)
                if how == "refused":
                    raise DriverFailed("permission denied")
                return str(how)
        return ""

    def _answer(self, state: dict[str, Any], how: str, effect: dict[str, Any] | None) -> TaskRef:
        task = TaskRef(f"UPID:{state['next']}")
        state["next"] += 1
        error = {"task-failed": "disk full", "task-lock": "can't lock file - got timeout", "half": "clone failed"}.get(
            how, ""
        )
        if how == "task-lock" and effect is not None and effect["do"] == "unlock":
            del state["machines"][effect["machine"]]
        if how == "task-failed" and effect is not None and effect["do"] == "unlock":
            del state["machines"][effect["machine"]]
        if how != "never" and (effect is not None or error):
            state["tasks"][task] = {
                "ends": time.time() + self._task_s,
                "over": False,
                "error": error,
                "again": how == "task-lock",
                "effect": effect,
            }
        self._settle(state)
        if how in ("lost", "never"):
            raise DriverBusy("596: the connection broke off")
        return task if effect is not None or error else DONE

    @staticmethod
    def _settle(state: dict[str, Any]) -> None:
        """What has ended by now."""
        for task in state["tasks"].values():
            if task["over"] or task["ends"] > time.time():
                continue
            task["over"] = True
            effect = task["effect"]
            one = state["machines"].get(effect["machine"]) if effect is not None else None
            if effect is None or one is None:
                continue
            if effect["do"] == "unlock":
                one["locked"] = ""
            if task["error"]:
                continue
            if effect["do"] == "run":
                one["running"] = effect["running"]
            elif effect["do"] == "remove":
                del state["machines"][effect["machine"]]

    @staticmethod
    def _one(state: dict[str, Any], machine: MachineRef) -> dict[str, Any]:
        one: dict[str, Any] | None = state["machines"].get(machine)
        if one is None:
            raise DriverFailed(f"there is no {machine}")
        if one["locked"]:
            raise DriverBusy(f"{machine} is locked ({one['locked']})", nothing_done=True)
        return one


def _machine(name: str, tag: str, vmid: int) -> dict[str, Any]:
    return {
        "name": name,
        "tag": tag,
        "vmid": vmid,
        "running": False,
        "locked": "",
        "cores": 1,
        "memory_mib": 512,
        "disk_gib": 8,
        "uuid": "",
        "seed_url": "",
        "description": "",
    }


def _found(ref: str, one: Mapping[str, Any]) -> MachineFound:
    return MachineFound(
        machine=MachineRef(ref),
        tag=one["tag"],
        name=one["name"],
        node=ref.partition("/")[0],
        vmid=one["vmid"],
        running=one["running"],
        locked=one["locked"],
        cores=one["cores"],
        memory_mib=one["memory_mib"],
        disk_gib=one["disk_gib"],
        uuid=one["uuid"],
    )
