"""A host that is not there: systemd, open-iscsi, one disk, files, mounts. It fails and dies where a test says."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blockdev.mounting import units
from blockdev.mounting.host import UNITS, Done, Mounted
from s3core.config_file import with_settings, without_settings

CONFIG = Path("/etc/bucketworks/config.toml")
STATE = Path("/var/lib/bucketworks/vm1")
UNIT = "iqn.2025-01.internal.bucketworks:vm1"
TOOLS = ("systemctl", "iscsiadm", "blkid", "mkfs.ext4", "mkfs.xfs", "journalctl")
IDENTITY = "5e7f0c1a-0000-4000-8000-000000000001"
SIZE = 64 << 20
FINE = Done(0, "")


class Killed(BaseException):
    """The command is dead: nothing after this has happened."""


@dataclass
class Service:
    active: str = "inactive"
    enabled: bool = False
    broken: str = ""
    """Its last words: it cannot be started."""


@dataclass
class Model:
    """`changes` are what was done to the host, in order; `die_after` of them it dies."""

    files: dict[Path, str] = field(default_factory=dict)
    modes: dict[Path, int] = field(default_factory=dict)
    directories: dict[Path, list[str]] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    mounts: list[Mounted] = field(default_factory=list)
    disk: dict[str, str] = field(default_factory=dict)
    """What blkid finds on the volume."""
    holds_bytes: int = 0
    half_made: bool = False
    """A mkfs was killed."""
    unreadable: bool = False
    behind_bytes: int = 0
    """Written, and not in the bucket yet."""
    dumb: bool = False
    """The daemon does not answer."""
    worker_late: int = 0
    worker_told: bool = True
    device: Path | None = None
    sessions: list[str] = field(default_factory=list)
    busy: bool = False
    store_away: bool = False
    in_journal: bool = False
    tools: tuple[str, ...] = TOOLS
    is_root: bool = True
    ports_taken: set[str] = field(default_factory=set)
    reloaded: dict[str, str] = field(default_factory=dict)
    changes: list[str] = field(default_factory=list)
    die_after: int = -1
    commands: list[tuple[str, ...]] = field(default_factory=list)
    by_hand: bool = False
    """The daemon was started by hand, not by systemd."""
    clock: float = 0.0
    timeouts: dict[Path, int] = field(default_factory=dict)

    def service(self, unit: str) -> Service:
        return self.services.setdefault(unit, Service())

    def _changed(self, what: str) -> None:
        self.changes.append(what)
        if len(self.changes) == self.die_after:
            raise Killed(what)

    # --- the port

    def root(self) -> bool:
        return self.is_root

    def has(self, tool: str) -> bool:
        return tool in self.tools

    def run(self, *words: str, timeout_s: float = 60.0) -> Done:
        self.commands.append(words)
        programs: dict[str, Callable[..., Done]] = {
            "systemctl": self._systemctl,
            "journalctl": lambda *more: Done(0, self.service(more[1]).broken),
            "iscsiadm": self._iscsiadm,
            "sync": lambda *more: FINE,
            "blkid": self._blkid,
            "blkdiscard": self._discard,
            "dd": lambda *more: Done(1, "dd: Input/output error") if self.unreadable else Done(0, "256+0 records in"),
            "od": lambda *more: Done(0, "   1\n" if self.half_made else "   0\n"),
            "mkfs.ext4": self._mkfs,
            "mkfs.xfs": self._mkfs,
        }
        return programs[words[0]](*words[1:])

    def text(self, path: Path) -> str | None:
        return self.files.get(path)

    def write(self, path: Path, text: str, mode: int) -> None:
        self.files[path], self.modes[path] = text, mode
        self._changed(f"write {path}")

    def remove(self, path: Path) -> None:
        if self.files.pop(path, None) is not None:
            self._changed(f"remove {path}")

    def is_there(self, path: Path) -> bool:
        return path == Path("/run/systemd/system") or path == self.device

    def entries(self, path: Path) -> list[str] | None:
        if path == UNITS:
            return sorted(file.name for file in self.files if file.parent == UNITS)
        if path in self.files:
            raise NotADirectoryError(path)
        return self.directories.get(path)

    def make_directory(self, path: Path) -> None:
        self.directories[path] = []
        self._changed(f"mkdir {path}")

    def tune(self, device: Path, timeout_s: int) -> None:
        self.timeouts[device] = timeout_s

    def mounted(self) -> list[Mounted]:
        return self.mounts

    def in_use(self, device: Path) -> bool:
        return bool(self.mounts)

    def can_listen(self, host: str, port: int) -> bool:
        return f"{host}:{port}" not in self.ports_taken

    def daemon(self, state_dir: Path) -> dict[str, Any] | None:
        unit = self.service(units.daemon_unit(state_dir.name))
        if (unit.active != "active" and not self.by_hand) or (self.dumb and self.device is not None):
            return None
        return {
            "state": "attaching" if self.store_away else "ready",
            "identity": IDENTITY,
            "size_bytes": SIZE,
            "commit_sequence": 7,
            "allocated_bytes": self.holds_bytes,
            "front": {"rpo_bytes": self.behind_bytes},
            "worker": {"extents_mapped": self.holds_bytes, "commit_sequence": 7 - self.worker_late}
            if self.worker_told
            else {},
            "pid": 77,
            "portals": ["127.0.0.1:860"],
            "sessions": [{"initiator": name} for name in self.sessions],
        }

    def configure(self, path: Path, volume: str, values: dict[str, str | list[str]]) -> None:
        self.files[path] = with_settings(self.files.get(path, ""), "volume", volume, values)
        self._changed(f"configure {volume}")

    def deconfigure(self, path: Path, volume: str, keys: Sequence[str]) -> None:
        self.files[path] = without_settings(self.files[path], "volume", volume, keys)
        self._changed(f"deconfigure {volume}")

    def turn(self, waits: Callable[[], None]) -> AbstractContextManager[None]:
        return nullcontext()

    def secret(self) -> str:
        return f"secret-number-{len(self.files)}"

    def now(self) -> float:
        return self.clock

    def sleep(self, seconds: float) -> None:
        self.clock += seconds

    # --- programs

    def _systemctl(self, verb: str, *words: str) -> Done:
        unit = words[-1] if words else ""
        service = self.service(unit)
        if verb == "daemon-reload":
            self.reloaded = {path.name: text for path, text in self.files.items() if path.parent == UNITS}
        elif verb == "cat":
            return FINE
        elif verb == "is-enabled":
            return Done(0 if service.enabled else 1, "")
        elif verb == "is-active":
            return Done(0 if service.active == "active" else 3, "")
        elif verb == "show":
            return Done(0, self._shown(words[2], unit))
        elif verb in ("enable", "disable"):
            if unit.endswith(".mount") and verb == "enable" and unit not in self.reloaded:
                return Done(1, "no such unit")
            service.enabled = verb == "enable"
            self._changed(f"{verb} {unit}")
        elif service.broken and verb != "stop":
            service.active = "activating"
            return FINE if "--no-block" in words else Done(1, "failed")
        elif verb in ("start", "restart", "stop"):
            return self._turn(verb, unit, service)
        return FINE

    def _shown(self, key: str, unit: str) -> str:
        file = self.files.get(UNITS / unit)
        return {
            "ActiveState": self.service(unit).active,
            "NRestarts": "3" if self.service(unit).broken else "0",
            "NeedDaemonReload": "yes" if file is not None and self.reloaded.get(unit) != file else "no",
            "LoadState": "loaded" if unit in self.reloaded else "not-found",
        }[key] + "\n"

    def _turn(self, verb: str, unit: str, service: Service) -> Done:
        on = verb != "stop"
        if unit.endswith(".mount"):
            if not on and self.busy:
                return Done(1, "umount: target is busy.")
            text = self.reloaded.get(unit, "") or self.files[UNITS / unit]
            self.mounts = [Mounted(units.setting(text, "Where"), units.setting(text, "What"), "ext4")] if on else []
        elif unit.startswith("s3block-initiator@"):
            # As the unit runs our own command; that has tests of its own.
            assert on or not self.mounts, "logged out under a mount"
            assert not on or self.service("s3block@vm1.service").active == "active"
            self.device = Path(f"/dev/disk/by-path/ip-127.0.0.1:860-iscsi-{UNIT}-lun-0") if on else None
        elif unit.startswith("s3block@") and not on:
            assert self.device is None, "the daemon was stopped under its initiator"
            self.in_journal = self.in_journal or self.store_away
            service.active = "failed" if self.store_away else "inactive"
            self._changed(f"{verb} {unit}")
            return FINE
        service.active = "active" if on else "inactive"
        self._changed(f"{verb} {unit}")
        return FINE

    def _iscsiadm(self, *words: str) -> Done:
        if "--login" in words:
            self.device = Path(f"/dev/disk/by-path/ip-{words[5]}-iscsi-{words[3]}-lun-0")
        elif "--logout" in words:
            if self.device is None:
                return Done(21, "iscsiadm: No matching sessions found")
            self.device = None
        elif "new" in words:
            host, _, port = words[5].rpartition(":")
            record = "# BEGIN RECORD 2.1.8\nnode.startup = automatic\n# END RECORD\n"
            self.files[Path(f"/etc/iscsi/nodes/{words[3]}/{host},{port}")] = record
        return FINE

    def _blkid(self, *words: str) -> Done:
        if "ambivalent" in self.disk:
            return Done(8, "")
        if not self.disk or self.unreadable:
            return Done(2, "")
        return Done(0, "".join(f"{key}={value}\n" for key, value in self.disk.items()))

    def _discard(self, *words: str) -> Done:
        assert self.half_made or not self.holds_bytes, "discarded what is not half of a mkfs"
        self.holds_bytes, self.half_made, self.disk = 0, False, {}
        self._changed("discard")
        return FINE

    def _mkfs(self, *words: str) -> Done:
        assert not self.disk, "made over something"
        kind = "ext4" if "assume_storage_prezeroed=1" in " ".join(words) else "xfs"
        self.holds_bytes, self.half_made = 4096, True
        self._changed("half of mkfs")
        self.half_made, self.disk = False, {"TYPE": kind, "USAGE": "filesystem"}
        self._changed("mkfs")
        return FINE
