"""Targets by name, who may see them, and which sessions are open (RFC 7143 4.2.7, 4.4.3).

One rule: `Nodes` belongs to one portal and one thread; it is the only place that knows more than one session, and so the
one that reinstates sessions, clears a logical unit for everybody, and counts.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from blockdev.iscsi.chap import Credentials
from blockdev.iscsi.errors import LoginRefused, LoginStatus
from blockdev.iscsi.login import Identity
from blockdev.iscsi.nexus import AtTarget
from blockdev.latency import Latency
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.extended_copy import Reach
from blockdev.scsi.inquiry import naa
from blockdev.scsi.limits import Limits
from blockdev.scsi.operation import Later
from blockdev.scsi.ports import Port
from blockdev.scsi.provisioning import Quota
from blockdev.target import BlockTarget

SESSIONS_MAX = 256
DISCOVERIES_MAX = 64
"""Discovery sessions among them: they may ask for no password, and must not use up what logins need."""
LUNS_MAX = 256
ALUA_GROUP = 1
"""The target port group (SPC-4) of every port: one host serves the volume, and each of its ports as well as any."""

_NAME = re.compile(r"(iqn\.\d{4}-\d{2}\.[a-z0-9.\-]+(:[^\s]+)?|eui\.[0-9a-fA-F]{16}|naa\.[0-9a-fA-F]{16,32})\Z")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One target. `initiators` None: everybody may log in (who can, by CHAP if `credentials` are given)."""

    name: str
    units: dict[int, LogicalUnit]
    alias: str = ""
    credentials: Credentials | None = None
    initiators: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if not _NAME.match(self.name) or self.name != self.name.lower() or len(self.name.encode()) > 223:
            raise ValueError(
                f"{self.name!r} is not an iSCSI name in lower case; one looks like iqn.2004-10.com.example:disk1 "
                "(RFC 7143 4.2.7)"
            )
        if len(self.units) > LUNS_MAX or not all(0 <= lun < LUNS_MAX for lun in self.units):
            raise ValueError(f"{self.name}: LUNs are numbers from 0 to {LUNS_MAX - 1}")

    def admits(self, initiator: str) -> bool:
        return self.initiators is None or initiator in self.initiators


class OpenSession(Protocol):
    """What `Nodes` asks of a session."""

    identity: Identity
    nexus: str

    def end(self, reason: str) -> None:
        """Drop the connection; tasks end without a status."""
        ...

    def clear_tasks(self, logical: LogicalUnit | None) -> list[AtTarget]:
        """End the session's tasks on that unit, on all of them if None, without a status. Returns those that the
        target is still at work on and that change the medium."""
        ...


@dataclass(eq=False)
class Nodes:
    """The targets of one portal group and the open sessions."""

    nodes: dict[str, Node] = field(default_factory=dict)
    portal_groups: tuple[int, ...] = (1,)
    """Tags of the portals that lead here: each, with a target's name, is a target port."""
    discovery_credentials: Credentials | None = None
    sessions_max: int = SESSIONS_MAX
    sessions: dict[int, OpenSession] = field(default_factory=dict)
    """By TSIH."""
    together: list["Nodes"] = field(default_factory=list)
    """All portal groups of the daemon, for copies from one volume to another; this one alone if empty."""
    _last_tsih: int = 0

    @classmethod
    def of(
        cls,
        nodes: Iterable[Node],
        *,
        portal_groups: tuple[int, ...] = (1,),
        discovery_credentials: Credentials | None = None,
        sessions_max: int = SESSIONS_MAX,
    ) -> "Nodes":
        return cls({node.name: node for node in nodes}, portal_groups, discovery_credentials, sessions_max)

    def serve(
        self,
        name: str,
        targets: Mapping[int, BlockTarget],
        *,
        alias: str = "",
        credentials: Credentials | None = None,
        initiators: frozenset[str] | None = None,
        limits: Limits | None = None,
        latencies: Mapping[int, Latency] | None = None,
        quotas: Mapping[int, Quota | None] | None = None,
        later: Later | None = None,
    ) -> Node:
        """Makes a target of volumes, by LUN, and adds it. `latencies`, by LUN, are counted in; `quotas`, by LUN, say how much
        the volumes may hold; `later` is the loop's."""
        luns = sorted(targets)
        units: dict[int, LogicalUnit] = {}

        def abort(lun: int) -> Callable[[Hashable], None]:
            return lambda nexus: self._abort(units[lun], nexus)

        for lun in luns:
            units[lun] = LogicalUnit(
                targets[lun],
                lun=lun,
                ports=tuple(Port(tag, ALUA_GROUP, f"{tag:04x}", f"{name},t,0x{tag:04x}") for tag in self.portal_groups),
                limits=limits if limits is not None else Limits(),
                luns=lambda: luns,
                abort_tasks=abort(lun),
                latency=latencies.get(lun) if latencies is not None else None,
                find_unit=self.reach,
                quota=quotas.get(lun) if quotas is not None else None,
                later=later,
            )
        node = Node(name, units, alias, credentials, initiators)
        self.add(node)
        return node

    def reach(self, designator: bytes, nexus: Hashable) -> Reach | None:
        """The logical unit with that NAA name, if the initiator of `nexus` is logged in to its target just now: whoever
        may not log in may not copy either."""
        initiator = str(nexus).split(",i,0x", 1)[0]
        for nodes in self.together or [self]:
            for session in nodes.sessions.values():
                if session.identity.initiator != initiator:
                    continue
                node = nodes.nodes.get(session.identity.target)
                for unit in node.units.values() if node is not None else ():
                    if naa(unit.target.identity) == designator:
                        return Reach(unit, session.nexus)
        return None

    def _abort(self, logical: LogicalUnit, nexus: Hashable) -> None:
        self.clear_tasks(logical, nexus=str(nexus))

    def add(self, node: Node) -> None:
        if node.name in self.nodes:
            raise ValueError(f"target {node.name} exists already")
        self.nodes[node.name] = node

    def remove(self, name: str) -> None:
        """Takes the target out and drops its sessions."""
        del self.nodes[name]
        for session in self.sessions_of(name):
            session.end(f"target {name} was removed")

    def sessions_of(self, name: str) -> list[OpenSession]:
        return [session for session in self.sessions.values() if session.identity.target == name]

    def visible_to(self, initiator: str) -> list[Node]:
        """What SendTargets=All shows, by name."""
        return [node for _, node in sorted(self.nodes.items()) if node.admits(initiator)]

    # ---- login.Rules

    def credentials(self, initiator: str, target: str, *, discovery: bool) -> Credentials | None:
        if discovery:
            return self.discovery_credentials
        node = self.nodes.get(target)
        if node is None:
            raise LoginRefused(LoginStatus.NOT_FOUND, f"{initiator}: there is no target {target[:223]}")
        return node.credentials

    def admit(self, identity: Identity) -> None:
        node = self.nodes.get(identity.target)
        if not identity.discovery and (node is None or not node.admits(identity.initiator)):
            raise LoginRefused(
                LoginStatus.AUTHORIZATION_FAILURE, f"{identity.initiator} may not log in to {identity.target}"
            )
        old = self._same_nexus(identity)
        if identity.tsih:
            if old is None or self.sessions.get(identity.tsih) is not old:
                raise LoginRefused(LoginStatus.SESSION_DOES_NOT_EXIST, f"there is no session {identity.tsih}")
            if identity.cid != old.identity.cid:
                raise LoginRefused(LoginStatus.TOO_MANY_CONNECTIONS, "one connection per session (MaxConnections=1)")
        if old is None and len(self.sessions) >= self.sessions_max:
            raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, f"all {self.sessions_max} sessions are in use")
        if identity.discovery and self._discoveries >= DISCOVERIES_MAX:
            raise LoginRefused(LoginStatus.OUT_OF_RESOURCES, f"all {DISCOVERIES_MAX} discovery sessions are in use")

    @property
    def _discoveries(self) -> int:
        return sum(session.identity.discovery for session in self.sessions.values())

    # ---- sessions

    def opened(self, session: OpenSession) -> int:
        """Registers a session that finished its login: returns its TSIH. A session of the same initiator port to the
        same target port is reinstated: the old one ends here (RFC 7143 6.3.5). One that names the old one's TSIH keeps it:
        its connection is reinstated, and at error recovery level 0 that ends the tasks too (6.3.4)."""
        old = self._same_nexus(session.identity)
        if old is not None:
            old.end("reinstated by a new login of the same initiator port")
        if session.identity.tsih:
            self.sessions[session.identity.tsih] = session
            return session.identity.tsih
        for _ in range(0x10000):
            self._last_tsih = self._last_tsih % 0xFFFF + 1
            if self._last_tsih not in self.sessions:
                break
        self.sessions[self._last_tsih] = session
        return self._last_tsih

    def closed(self, tsih: int) -> None:
        self.sessions.pop(tsih, None)

    def _same_nexus(self, identity: Identity) -> OpenSession | None:
        if identity.discovery:
            return None
        for session in self.sessions.values():
            other = session.identity
            if other.isid == identity.isid and (other.initiator, other.target, other.portal_group) == (
                identity.initiator,
                identity.target,
                identity.portal_group,
            ):
                return session
        return None

    def clear_tasks(self, logical: LogicalUnit, *, nexus: str | None = None) -> list[AtTarget]:
        """End everybody's tasks on that unit (CLEAR TASK SET, LOGICAL UNIT RESET), or those of one nexus (PREEMPT AND
        ABORT). Returns those still at work."""
        running: list[AtTarget] = []
        for session in list(self.sessions.values()):
            if nexus is None or session.nexus == nexus:
                running += session.clear_tasks(logical)
        return running
