"""What the fake cluster is made of: nodes, storages, machines, tasks, and the simulated guest in a machine. State; no HTTP.

One rule: all of it belongs to `FakePve`, and is touched only under its lock.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

GIB = 1 << 30


class TaskFailed(Exception):
    """A task's exit status."""


class Guest(Protocol):
    """What runs in a machine. Called under the cluster's lock: it must return at once."""

    @property
    def address(self) -> str:
        """As the QEMU guest agent tells it; empty: the agent does not answer."""
        ...

    def press_power_button(self) -> None:
        """ACPI: shut down in order, then call `Running.power_off`."""
        ...

    def cut_power(self) -> None:
        """It is gone now."""
        ...

    def lines(self) -> list[str]:
        """What the screen shows."""
        ...


@dataclass(frozen=True)
class Running:
    """A machine that has just been started, as its guest sees it."""

    vmid: int
    node: str
    name: str
    uuid: str
    serial: str
    """The SMBIOS serial number, such as `ds=nocloud;...;s=https://...`."""
    cores: int
    memory_mib: int
    disk_gib: int
    boot: int
    """How often this machine has been started, from 1."""
    fresh: bool
    """The disk is a new clone's: nothing of the guest's is on it yet."""
    power_off: Callable[[], None]


@dataclass
class FakeNode:
    name: str
    cores: int = 8
    memory_bytes: int = 32 * GIB
    online: bool = True


@dataclass
class FakeStorage:
    name: str
    shared: bool = True
    nodes: tuple[str, ...] = ()
    """Where it is; empty: everywhere."""
    total_bytes: int = 1024 * GIB
    used_bytes: int = 64 * GIB
    content: str = "images"


@dataclass
class FakeMachine:
    vmid: int
    node: str
    config: dict[str, str]
    pool: str = ""
    running: bool = False
    started_at: float = 0.0
    boots: int = 0
    guest: Guest | None = None
    seen: dict[str, object] = field(default_factory=dict)
    """What the node's statistics said last: listings show that."""
    seen_at: float = -1e9

    @property
    def template(self) -> bool:
        return self.config.get("template") == "1"


@dataclass
class FakeTask:
    upid: str
    node: str
    kind: str
    ident: str
    user: str
    began_at: float
    """Unix seconds."""
    step: Callable[[float], str | None]
    """Given the moment on the fake's clock: None while it runs, else its exit status. It may raise TaskFailed."""
    log: list[str] = field(default_factory=list)
    exit_status: str | None = None
    ended_at: float | None = None
    holds: tuple[tuple[int, bool], ...] = ()
    """VMIDs whose lock file it holds, and whether alone."""

    @property
    def running(self) -> bool:
        return self.exit_status is None
