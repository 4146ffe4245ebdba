"""The SCSI target ports through which a logical unit is reached, and the names of I_T nexuses that go with them.

One rule: what a port is called on the wire is said here alone. With iSCSI a target port is a target's name and a portal group
tag (RFC 7143 3.4.2), so a nexus is named "initiator,i,0xISID,t,0xTAG"; all portals of one group are one port.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_TAG = ",t,0x"


@dataclass(frozen=True, slots=True)
class Port:
    """`identifier`: relative target port identifier; `group`: target port group; `tag`: how the names of its nexuses end,
    as four hexadecimal digits, empty where there is one port only; `name`: SCSI target port name ("iqn...,t,0xTAG"), empty if
    it has none."""

    identifier: int = 1
    group: int = 1
    tag: str = ""
    name: str = ""

    @property
    def device_name(self) -> str:
        """SCSI target device name."""
        return initiator_port(self.name)


def initiator_port(nexus: str) -> str:
    """What stands before the portal group tag: of a nexus the initiator's half, of a target port the target's name."""
    return nexus.split(_TAG, 1)[0]


def port_of(nexus: str, ports: Sequence[Port]) -> Port:
    """The port a nexus goes through; the first where the name does not tell."""
    tag = nexus.partition(_TAG)[2]
    return next((port for port in ports if port.tag and port.tag == tag), ports[0])


def through_every_port(nexus: str, ports: Sequence[Port]) -> list[str]:
    """The nexuses of the same initiator port through all target ports, that one first."""
    others = [f"{initiator_port(nexus)}{_TAG}{port.tag}" for port in ports if port.tag]
    return [nexus, *(other for other in others if other != nexus)]
