"""The port to what makes machines. Values and a protocol; no I/O.

One rule: nothing here waits for a task. A call that begins something long gives back its name at the hypervisor
(`TaskRef`, a UPID), the caller writes it down, then asks `task`. So a console that dies asks the same task again. A call
whose answer was lost raises DriverBusy (outcome unknown): the caller looks (`find`), never repeats blindly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NewType, Protocol

MachineRef = NewType("MachineRef", str)
"""The driver's name for a machine, e.g. `pve1/10023`; stable while it exists on that node (`find` follows a migration)."""
TaskRef = NewType("TaskRef", str)

DONE: Final = TaskRef("")
"""The call did everything; there is nothing to wait for."""


@dataclass(frozen=True, slots=True)
class MachineFound:
    """A machine that carries our tag."""

    machine: MachineRef
    tag: str
    name: str
    node: str
    vmid: int | None
    running: bool
    locked: str = ""
    """Why nothing can be done with it now: `clone`, `backup`, `migrate`..."""
    cores: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    uuid: str = ""
    """SMBIOS UUID, where the listing tells it."""


@dataclass(frozen=True, slots=True)
class CloneSpec:
    environment_id: str
    generation: int
    name: str
    """Host name."""
    tag: str
    source: str
    """`Template.source`."""
    options: Mapping[str, str]
    vmid: int | None
    description: str
    """Whose it is; it ends with a line `envctl:<environment id>:<generation>`."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What `configure` makes true; repeating it changes nothing."""

    cores: int
    memory_mib: int
    disk_gib: int
    """Grown to this; never shrunk."""
    uuid: str
    seed_url: str
    """NoCloud over SMBIOS: the serial number becomes `envctl.seed.SERIAL_PREFIX` and this."""
    tag: str
    description: str


@dataclass(frozen=True, slots=True)
class TaskStatus:
    state: Literal["running", "ok", "failed", "unknown"]
    """`unknown`: the hypervisor does not know the task (any more): look what there is."""
    message: str = ""
    """The exit status of a failed one, e.g. `can't lock file ... - got timeout`."""
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class MachineStatus:
    exists: bool
    running: bool
    locked: str = ""
    address: str = ""
    """As the guest agent or the driver knows it; empty: unknown."""
    uptime_s: float = 0.0
    cpu: float = 0.0
    """Part of its cores, 0 to 1."""
    memory_used_bytes: int = 0
    memory_bytes: int = 0
    network_in_bytes: int = 0
    network_out_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeHeadroom:
    node: str
    online: bool
    cores: int
    memory_bytes: int
    memory_used_bytes: int
    storages: tuple[tuple[str, int, int], ...] = ()
    """Name, total and used bytes."""


@dataclass(frozen=True, slots=True)
class DriverFinding:
    severity: Literal["ok", "warning", "error"]
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class ConsoleTarget:
    """Where a console connection goes: a websocket (`url`, with these headers), or a Unix socket (`path`)."""

    kind: Literal["vnc", "terminal"]
    url: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = ""
    password: str = ""
    """The VNC password that the browser has to give, where the far side asks for one."""
    preamble: bytes = b""
    """Sent first (Proxmox VE's termproxy: `user:ticket\\n`)."""
    verify: object = True
    """An `ssl.SSLContext`, or True."""


class EnvDriver(Protocol):
    """Safe for many calls at once. DriverFailed, DriverBusy; nothing else gets out."""

    @property
    def name(self) -> str: ...

    @property
    def clones_at_once(self) -> int:
        """Of one template."""
        ...

    @property
    def vmid_range(self) -> tuple[int, int] | None:
        """First and last number for machines; None: it needs none."""
        ...

    async def inventory(self) -> Sequence[MachineFound]:
        """All machines with a tag of ours (`env-...`). Complete, or DriverBusy: a node that does not
        answer never looks empty."""
        ...

    async def find(self, tag: str) -> Sequence[MachineFound]: ...

    async def clone(self, spec: CloneSpec) -> TaskRef:
        """Begin. The tag and the description's last line are on the machine as early as the hypervisor allows. The machine
        must be found by `find` or by its VMID even when the clone is under way or was broken off. Refused with
        DriverFailed(code "exists" in details["reason"]) where the VMID is taken."""
        ...

    async def configure(self, machine: MachineRef, spec: MachineSpec) -> TaskRef: ...

    async def resize(self, machine: MachineRef, cores: int, memory_mib: int, disk_gib: int) -> TaskRef:
        """What needs a restart takes effect with the next start."""
        ...

    async def start(self, machine: MachineRef) -> TaskRef:
        """Nothing, where it runs."""
        ...

    async def shutdown(self, machine: MachineRef, timeout_s: float) -> TaskRef:
        """ACPI; the guest does the rest. It fails after `timeout_s`, and does not force."""
        ...

    async def stop(self, machine: MachineRef) -> TaskRef:
        """Power off now."""
        ...

    async def destroy(self, machine: MachineRef) -> TaskRef:
        """With its disks. Nothing, where there is none."""
        ...

    async def task(self, task: TaskRef) -> TaskStatus: ...

    async def status(self, machine: MachineRef) -> MachineStatus: ...

    async def headroom(self) -> Sequence[NodeHeadroom]: ...

    async def check_template(self, source: str, options: Mapping[str, str]) -> Sequence[DriverFinding]: ...

    async def check_access(self) -> Sequence[DriverFinding]:
        """Is it reachable, are the rights enough, and are there more than needed? TLS verification off is a finding."""
        ...

    async def console(self, machine: MachineRef, kind: Literal["vnc", "terminal"]) -> ConsoleTarget: ...

    async def close(self) -> None: ...
