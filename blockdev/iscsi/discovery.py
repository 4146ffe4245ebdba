"""SendTargets (RFC 7143 appendix C).

One rule: an initiator sees the targets it may log in to, each at every address `address.told` gave for it.
"""

from blockdev.iscsi.errors import PeerError
from blockdev.iscsi.login import Identity
from blockdev.iscsi.nodes import Nodes


def send_targets(value: str, nodes: Nodes, identity: Identity, addresses: list[str]) -> list[tuple[str, str]]:
    """The answer to SendTargets=`value`. `addresses` are "host:port,tag", IPv6 in brackets. "All" belongs to discovery
    sessions; in a normal session the empty value and the session's own target are answered. An unknown
    or hidden target gives an empty answer."""
    if value == "All":
        if not identity.discovery:
            raise PeerError("SendTargets=All outside a discovery session")
        names = [node.name for node in nodes.visible_to(identity.initiator)]
    else:
        wanted = value or identity.target
        names = [node.name for node in nodes.visible_to(identity.initiator) if node.name == wanted]
        if not identity.discovery and wanted != identity.target:
            names = []
    pairs: list[tuple[str, str]] = []
    for name in names:
        pairs.append(("TargetName", name))
        pairs.extend(("TargetAddress", address) for address in addresses)
    return pairs
