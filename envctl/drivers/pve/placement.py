"""On which node a clone lands. Pure.

One rule: a clone of a template on a storage of one node stays on that node; Proxmox VE refuses anything else ("VM uses local
storage"). Where all disks are on shared storage, the online node with the most free memory gets it. What the nodes use is known
only with Sys.Audit; without it, the memory given to machines that we can see is what counts.
"""

from collections.abc import Collection, Mapping, Sequence

from envctl.drivers.port import NodeHeadroom


def choose(
    home: str,
    nodes: Sequence[NodeHeadroom],
    *,
    shared: bool,
    given_bytes: Mapping[str, int],
    allowed: Collection[str] = (),
    wished: str = "",
) -> str:
    """`home`: the template's node. `given_bytes`: memory of machines on each node. `allowed`: only these, if any."""
    if not shared:
        return home
    if wished:
        return wished
    usable = [node for node in nodes if node.online and (not allowed or node.node in allowed)]
    if not usable:
        return home

    def pressure(node: NodeHeadroom) -> tuple[float, int, bool, str]:
        given = given_bytes.get(node.node, 0)
        taken = max(node.memory_used_bytes, given)
        part = taken / node.memory_bytes if node.memory_bytes else 0.0
        return (part, given, node.node != home, node.node)

    return min(usable, key=pressure).node
