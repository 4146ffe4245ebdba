"""The kernel's own initiator (open-iscsi), for a volume that this host itself serves.

One rule: nothing of open-iscsi's own is relied on to remember: each login makes its node record from the settings, started by
nobody but us; each logout removes it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from blockdev.errors import NotReady, Refused
from blockdev.mounting.host import BY_PATH, Host, said, words_of

COMMAND_TIMEOUT_S: Final = 600
"""For one SCSI command. A daemon that lives answers within a minute, with BUSY if it must; the kernel repeats what was BUSY for
six times this long: a store may be away for an hour before a file system hears of it."""

LOGIN_S: Final = 60.0
DEVICE_S: Final = 60.0
POLL_S: Final = 0.2
_NO_RECORD: Final = 21
_LOGGED_IN: Final = 15
"""iscsiadm's exit codes (iscsi_err.h): no records or sessions found; a session is there already."""

_RECORDS: Final = "/etc/iscsi/nodes /var/lib/iscsi/nodes"
"""Debian's and others' folder of node records; root's alone."""

_RECORD: Final = {
    "node.startup": "manual",
    # Requests wait for a daemon that is away, however long: on an error a file system gives up what is in memory.
    "node.session.timeo.replacement_timeout": "-1",
    # Pings find dead networks. On loopback a dead daemon is a closed connection, and a busy one is no reason to drop a session.
    "node.conn[0].timeo.noop_out_interval": "0",
    "node.conn[0].timeo.noop_out_timeout": "0",
}


@dataclass(frozen=True, slots=True)
class Chap:
    """Who the initiator is to the target, and with `mutual_user` the other way round. Empty: not asked for."""

    user: str = ""
    secret: str = field(default="", repr=False)
    mutual_user: str = ""
    mutual_secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Unit:
    """A logical unit behind a portal, `HOST:PORT`."""

    portal: str
    iqn: str
    lun: int = 0

    @property
    def device(self) -> Path:
        """Where udev puts its device."""
        return BY_PATH / f"ip-{self.portal}-iscsi-{self.iqn}-lun-{self.lun}"

    @property
    def records(self) -> list[Path]:
        """Where open-iscsi keeps what it knows of a target whose portal group it was not told."""
        host, _, port = self.portal.rpartition(":")
        return [Path(folder, self.iqn, f"{host},{port}") for folder in _RECORDS.split()]

    @property
    def node(self) -> tuple[str, ...]:
        return "iscsiadm", "-m", "node", "-T", self.iqn, "-p", self.portal


def login(host: Host, unit: Unit, chap: Chap) -> Path:
    """The block device, which is there on return; also when it was logged in before. Raises Refused, NotReady."""
    require_tool(host)
    if not host.is_there(unit.device):
        _must(host, *unit.node, "-o", "new")
        record = next((path for path in unit.records if host.text(path) is not None), None)
        if record is None:
            raise NotReady(
                f"iscsiadm made no record of {unit.iqn} that can be found", hint="looked for it in " + _RECORDS
            )
        # Not by `iscsiadm -o update`: its arguments are everybody's to read while it runs.
        host.write(record, with_values(host.text(record) or "", _RECORD | _authentication(chap)), 0o600)
        _must(host, *unit.node, "--login", fine=(_LOGGED_IN,))
    until = host.now() + DEVICE_S
    while not host.is_there(unit.device):
        if host.now() > until:
            raise NotReady(
                f"this host is logged in to {unit.iqn}, and there is no {unit.device}", hint="is udev running?"
            )
        host.sleep(POLL_S)
    host.tune(unit.device, COMMAND_TIMEOUT_S)
    return unit.device


def logout(host: Host, unit: Unit) -> bool:
    """Whether there was something to end. Raises Refused while the device is in use, NotReady."""
    if not host.has("iscsiadm"):
        return False
    if host.in_use(unit.device):
        raise Refused(
            f"{unit.device} is in use on this host",
            hint="unmount it first: `s3block umount`, or `findmnt` and `lsblk` say where",
        )
    was = host.is_there(unit.device)
    _must(host, *unit.node, "--logout", fine=(_NO_RECORD,))
    _must(host, *unit.node, "-o", "delete", fine=(_NO_RECORD,))
    return was


def require_tool(host: Host) -> None:
    """Raises Refused."""
    if not host.has("iscsiadm"):
        raise Refused("this host has no iSCSI initiator (iscsiadm)", hint="apt install open-iscsi")


def _authentication(chap: Chap) -> dict[str, str]:
    record = {"node.session.auth.authmethod": "CHAP" if chap.user else "None"}
    if chap.user:
        record |= {"node.session.auth.username": chap.user, "node.session.auth.password": chap.secret}
    if chap.mutual_user:
        record |= {
            "node.session.auth.username_in": chap.mutual_user,
            "node.session.auth.password_in": chap.mutual_secret,
        }
    return record


def with_values(record: str, values: dict[str, str]) -> str:
    """A node record (`name = value` lines between two comments) with these values in place of those it had."""
    kept = [line for line in record.splitlines() if line.partition(" = ")[0] not in values]
    end = next((place for place, line in enumerate(kept) if line.startswith("# END")), len(kept))
    added = [f"{name} = {value}" for name, value in values.items()]
    return "\n".join([*kept[:end], *added, *kept[end:]]) + "\n"


def _must(host: Host, *words: str, fine: tuple[int, ...] = ()) -> None:
    done = host.run(*words, timeout_s=LOGIN_S)
    if done.status not in (0, *fine):
        raise NotReady(
            f"{words_of(words)}: {said(done)}", hint="`systemctl status iscsid` and the daemon's log say more"
        )
