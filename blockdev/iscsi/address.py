"""Addresses of portals, and which of them an initiator is told (RFC 7143 appendix C).

One rule: an initiator is told every portal of the target, each with its portal group tag, and none that it could not mean
the same by: no wildcard, and no loopback address unless it came by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

DEFAULT_PORT = 3260


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, or what to advertise. Port 0: any free one."""

    host: str = "0.0.0.0"
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def number(self) -> IPv4Address | IPv6Address | None:
        """As a number; None for a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def told(
    listening: Sequence[tuple[Address, int]], advertise: Sequence[Address], came_to: tuple[Address, int]
) -> list[str]:
    """What SendTargets tells as TargetAddress, "host:port,tag", each once. `listening`: every address a socket listens on,
    with its portal group tag; `came_to`: the one this initiator reached us by. `advertise`, if there is any, takes the
    place of all of them: one address for each tag, or all for the only one."""
    if advertise:
        tags = sorted({tag for _, tag in listening})
        pairs = list(zip(advertise, tags if len(tags) > 1 else tags * len(advertise), strict=True))
    else:
        pairs = [(seen, tag) for address, tag in listening if (seen := _seen_from(address, came_to[0])) is not None]
    return list(dict.fromkeys(f"{address},{tag}" for address, tag in pairs or [came_to]))


def _seen_from(address: Address, came_to: Address) -> Address | None:
    """`address` as somebody must write it who reached us by `came_to`; None if that cannot be said."""
    here, there = address.number, came_to.number
    if here is None or there is None:
        return address
    if here.is_unspecified:
        return Address(came_to.host, address.port) if here.version == there.version else None
    if (here.is_loopback and not there.is_loopback) or (here.is_link_local and here != there):
        return None
    return address
