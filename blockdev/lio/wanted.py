"""What a volume is to look like in the kernel: one device, one LUN in one target, its portals and who may log in.

One rule: everything that LIO would refuse, or take in another sense, is refused here, before anything is made.
"""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from blockdev.errors import Refused
from blockdev.scsi.limits import Limits
from blockdev.tcmu.names import device_config
from blockdev.units import MIB

PORTAL_GROUP = 1

COMMAND_TIMEOUT_S = 120
"""After that long without an answer the kernel ends a command with an error. A daemon that lives answers within about 60 s
whatever the store does (BUSY, docs/design/0007), so this fires only when it is gone; it leaves a restart twice the time
that one takes, is as long as open-iscsi waits for a lost session, and lets sessions, tear-down and shutdown end when no
daemon comes back. 0, for ever, would not."""

DATA_AREA_MIB = 128
"""Data of commands in flight, eight of the largest; what does not fit waits in the kernel. Pages are taken as they are
needed, from 2 GiB that all devices of a host share. The size of the command ring is left as it is (8 MiB): rtslib
does not save it, and a restored device must be the same as a new one."""

NEVER_WAIT = "-1"
"""For `nl_reply_supported`: who makes or changes the device does not wait for the handler's reply by netlink. Waiting, it
would sleep in D state for ever when the handler has died."""

DEVICE_ATTRIBUTES = {
    "cmd_time_out": str(COMMAND_TIMEOUT_S),
    # REPORT TARGET PORT GROUPS is the handler's in any case (LIO passes it on); with 0 the kernel keeps no second set of
    # states that initiators would never hear of. One host serves a volume at a time: it is active/optimized, or not there.
    "alua_support": "0",
}
"""Set before anything exports the device: the kernel refuses it afterwards."""

_TARGET_NAME = re.compile(r"iqn\.[0-9]{4}-[01][0-9]\.[^\s_]*\.[^\s_]*")
_INITIATOR_NAME = re.compile(r"iqn\.[0-9]{4}-[01][0-9]\.[^\s_]*\.[^\s_]*|naa\.[125c-f][0-9a-f]{15}|eui\.[0-9a-f]{16}")
"""What rtslib takes; the standard allows more."""


@dataclass(frozen=True, slots=True, order=True)
class Portal:
    """An IP address (IPv6 without brackets) and a TCP port that the target listens on."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Portal":
        """From HOST:PORT with an IP address as HOST. ValueError."""
        host, _, port = text.rpartition(":")
        return cls(str(ipaddress.ip_address(host.strip("[]"))), int(port))

    @property
    def configfs_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return f"{self.configfs_host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Chap:
    """What an initiator logs in as, and what the target answers as (empty: one way). Empty altogether: no CHAP."""

    user: str = ""
    secret: str = field(default="", repr=False)
    mutual_user: str = ""
    mutual_secret: str = field(default="", repr=False)


NO_CHAP = Chap()


@dataclass(frozen=True, slots=True)
class Wanted:
    volume: str
    serial: str
    """The volume's UUID. LIO keeps reservations under it; initiators get theirs from the handler, out of the same UUID."""
    size_bytes: int
    sector_bytes: int
    iqn: str
    lun: int
    portals: tuple[Portal, ...]
    initiators: tuple[str, ...] = ()
    """Empty: everybody may log in, by CHAP if there is one."""
    chap: Chap = NO_CHAP
    discovery: Chap = NO_CHAP
    """What is asked of those who want to be told the targets: of all targets of the host, so only where it is set."""

    @property
    def config(self) -> str:
        return device_config(self.volume)

    @property
    def hw_max_sectors(self) -> int:
        """The longest transfer, in units of 512 bytes: the one that the handler reports in VPD page B0h."""
        return Limits().transfer_bytes // 512

    @property
    def control(self) -> str:
        """What the device is told before it is enabled, and cannot be told later."""
        return f"hw_block_size={self.sector_bytes},max_data_area_mb={DATA_AREA_MIB},nl_reply_supported={NEVER_WAIT}"

    @property
    def group_attributes(self) -> dict[str, str]:
        """Of the target portal group."""
        anybody = not self.initiators
        return {
            "authentication": "1" if self.chap.user else "0",
            "generate_node_acls": "1" if anybody else "0",
            # A session of somebody without an ACL of his own outlives its last connection, as his reservations must.
            "cache_dynamic_acls": "1" if anybody else "0",
            "demo_mode_write_protect": "0",
            # Discovery shows the target to those who may log in, as our own portal does.
            "demo_mode_discovery": "1" if anybody else "0",
        }


assert 2 * Limits().transfer_bytes <= DATA_AREA_MIB * MIB


def check(wanted: Wanted) -> Wanted:
    """Returns `wanted`. Raises Refused for what LIO does not take."""
    if not _TARGET_NAME.fullmatch(wanted.iqn):
        raise Refused(
            f"LIO takes no target called {wanted.iqn}",
            hint="its names look like iqn.2025-01.org.example:disk1, with a dot in the domain and without '_'; set iqn",
        )
    for initiator in wanted.initiators:
        if not _INITIATOR_NAME.fullmatch(initiator):
            raise Refused(f"LIO takes no initiator called {initiator}", hint="see initiators in the settings")
    if not wanted.portals:
        raise Refused(f"volume {wanted.volume} has no address to listen on", hint="set listen, or say --portal")
    texts = [text for chap in (wanted.chap, wanted.discovery) for text in (chap.user, chap.secret)]
    texts += [text for chap in (wanted.chap, wanted.discovery) for text in (chap.mutual_user, chap.mutual_secret)]
    for text in texts:
        if len(text.encode()) > 255 or text == "NULL":
            raise Refused(f"volume {wanted.volume}: CHAP names and secrets have at most 255 bytes, and are not NULL")
    return wanted


def parse_portals(texts: Iterable[str]) -> tuple[Portal, ...]:
    """From HOST:PORT with IP addresses, each once, in order. ValueError."""
    return tuple(dict.fromkeys(Portal.parse(text) for text in texts))
