"""What the kernel has: every TCMU device and every iSCSI target, read from configfs and sysfs as it stands.

One rule: reading changes nothing. No module is loaded, nothing mounted, nothing written; what is not there is not found.
What disappears while it is read (somebody else removes it) is left out.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blockdev.lio.wanted import NO_CHAP, Chap, Portal
from blockdev.tcmu.names import SUBTYPE, volume_of

CONFIGFS = Path("/sys/kernel/config")
UIO = Path("/sys/class/uio")

_DEVICE_ATTRIBUTES = (
    "alua_support",
    "cmd_time_out",
    "dev_config",
    "dev_size",
    "hw_block_size",
    "hw_max_sectors",
    "max_data_area_mb",
    "nl_reply_supported",
)
_GROUP_ATTRIBUTES = (
    "authentication",
    "cache_dynamic_acls",
    "demo_mode_discovery",
    "demo_mode_write_protect",
    "generate_node_acls",
)


@dataclass(frozen=True, slots=True)
class Device:
    """A device of the backstore `user`. `hba` is the folder it is in, such as user_0."""

    hba: str
    name: str
    enabled: bool
    serial: str
    """Empty while it is not enabled, or was never given one."""
    attributes: Mapping[str, str]
    blocked: bool = False
    """It answers BUSY to every command, until somebody says otherwise (`block_dev`)."""

    @property
    def config(self) -> str:
        return self.attributes.get("dev_config", "")

    @property
    def size_bytes(self) -> int:
        return int(self.attributes.get("dev_size", 0))

    @property
    def ours(self) -> bool:
        return self.config.partition("/")[0] == SUBTYPE

    @property
    def unfinished(self) -> bool:
        """Made and never configured: whoever made it was stopped in between."""
        return not self.enabled and not self.config


@dataclass(frozen=True, slots=True)
class Session:
    """An initiator that is logged in; its address is not told of those without an ACL of their own."""

    initiator: str
    address: str = ""

    def __str__(self) -> str:
        return f"{self.initiator} from {self.address}" if self.address else self.initiator


@dataclass(frozen=True, slots=True)
class Acl:
    initiator: str
    chap: Chap = NO_CHAP
    mapped: Mapping[int, int | None] = field(default_factory=dict)
    """The LUN that the initiator sees: the target's LUN; None where nothing was linked (yet)."""
    sessions: tuple[Session, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """A target portal group."""

    tag: int
    enabled: bool
    attributes: Mapping[str, str]
    chap: Chap = NO_CHAP
    luns: Mapping[int, str | None] = field(default_factory=dict)
    """What a LUN leads to, as HBA/NAME (user_0/vm1); None where nothing was linked (yet)."""
    portals: tuple[Portal, ...] = ()
    acls: tuple[Acl, ...] = ()
    dynamic: tuple[Session, ...] = ()

    @property
    def sessions(self) -> tuple[Session, ...]:
        return self.dynamic + tuple(session for acl in self.acls for session in acl.sessions)


@dataclass(frozen=True, slots=True)
class Target:
    iqn: str
    groups: tuple[Group, ...]

    @property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(session for group in self.groups for session in group.sessions)

    def group(self, tag: int) -> Group | None:
        return next((group for group in self.groups if group.tag == tag), None)


@dataclass(frozen=True, slots=True)
class Uio:
    """The handler's side of a device: /dev/`name`, and how much of it is mapped."""

    name: str
    volume: str
    map_bytes: int


@dataclass(frozen=True, slots=True)
class Found:
    devices: tuple[Device, ...] = ()
    targets: tuple[Target, ...] = ()
    loaded: bool = True
    """Whether LIO is there at all."""
    database: str = ""
    """Where the kernel keeps reservations that survive power loss (`dbroot`)."""
    discovery: Chap = NO_CHAP
    """What discovery, of all targets of this host, asks for; empty where it asks for nothing."""
    uio: tuple[Uio, ...] = ()

    def device(self, volume: str) -> Device | None:
        return next((device for device in self.devices if device.name == volume), None)

    def target(self, iqn: str) -> Target | None:
        return next((target for target in self.targets if target.iqn == iqn), None)

    def exports(self, device: Device) -> Iterator[tuple[Target, Group, int]]:
        """Where initiators reach the device."""
        for target in self.targets:
            for group in target.groups:
                for lun, leads_to in group.luns.items():
                    if leads_to == f"{device.hba}/{device.name}":
                        yield target, group, lun


def look(configfs: Path = CONFIGFS, uio: Path = UIO) -> Found:
    """Everything, now. Raises PermissionError where this user may not read it."""
    core = configfs / "target"
    if not core.is_dir():
        return Found(loaded=False, uio=tuple(_uio(uio)))
    return Found(
        devices=tuple(_device(path) for path in sorted(core.glob("core/user_*/*")) if path.is_dir()),
        targets=tuple(
            _target(path) for path in _folders(core / "iscsi") if path.name.startswith(("iqn.", "eui.", "naa."))
        ),
        database=_text(core / "dbroot"),
        discovery=_discovery(core / "iscsi/discovery_auth"),
        uio=tuple(_uio(uio)),
    )


def _device(path: Path) -> Device:
    serial = _text(path / "wwn/vpd_unit_serial").partition(":")[2].strip()
    attributes = {name: _text(path / "attrib" / name) for name in _DEVICE_ATTRIBUTES}
    enabled = _text(path / "enable") == "1"
    return Device(
        path.parent.name,
        path.name,
        enabled,
        serial if enabled else "",
        attributes,
        _text(path / "action/block_dev") == "blocked",
    )


def _target(path: Path) -> Target:
    groups = [_group(child) for child in _folders(path) if child.name.startswith("tpgt_")]
    return Target(path.name, tuple(sorted(groups, key=lambda group: group.tag)))


def _group(path: Path) -> Group:
    luns = {_number(folder): _link(folder, "target/core/") for folder in _folders(path / "lun")}
    acls = tuple(_acl(folder) for folder in _folders(path / "acls"))
    # The kernel lists everybody who is logged in without an ACL of his own, ended by zeros.
    dynamic = _text(path / "dynamic_sessions").replace("\0", "\n").split()
    return Group(
        tag=_number(path),
        enabled=_text(path / "enable") == "1",
        attributes={name: _text(path / "attrib" / name) for name in _GROUP_ATTRIBUTES},
        chap=_chap(path / "auth"),
        luns=luns,
        portals=tuple(sorted(_portal(folder.name) for folder in _folders(path / "np"))),
        acls=acls,
        dynamic=tuple(Session(name) for name in dynamic),
    )


def _acl(path: Path) -> Acl:
    mapped = {}
    for folder in _folders(path):
        if folder.name.startswith("lun_"):
            leads_to = _link(folder, "/lun/lun_")
            mapped[_number(folder)] = int(leads_to) if leads_to is not None else None
    return Acl(path.name, _chap(path / "auth"), mapped, tuple(_sessions(path.name, _text(path / "info"))))


def _sessions(initiator: str, info: str) -> Iterator[Session]:
    if "SESSION INFO" not in info and "InitiatorName" not in info:
        return
    words = info.split()
    address = words[words.index("Address") + 1] if "Address" in words[:-1] else ""
    yield Session(initiator, address)


def _chap(path: Path) -> Chap:
    values = [_text(path / name) for name in ("userid", "password", "userid_mutual", "password_mutual")]
    return Chap(*("" if value == "NULL" else value for value in values))


def _discovery(path: Path) -> Chap:
    return _chap(path) if _text(path / "enforce_discovery_auth") == "1" else NO_CHAP


def _portal(name: str) -> Portal:
    host, _, port = name.rpartition(":")
    return Portal(host.strip("[]"), int(port))


def _uio(root: Path) -> Iterator[Uio]:
    for path in sorted(root.glob("uio*")):
        volume = volume_of(_text(path / "name"))
        if volume is not None:
            yield Uio(path.name, volume, int(_text(path / "maps/map0/size") or "0", 0))


def _link(folder: Path, after: str) -> str | None:
    """Where the link in `folder` leads, from `after` on; None for no link."""
    for path in _children(folder):
        if path.is_symlink():
            return str(path.readlink()).rpartition(after)[2]
    return None


def _number(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def _folders(path: Path) -> list[Path]:
    return [child for child in _children(path) if child.is_dir() and not child.is_symlink()]


def _children(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _text(path: Path) -> str:
    """The file's content; empty for one that is not there, or whose object is not in a state to be asked."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except PermissionError:
        raise
    except OSError:
        return ""
