"""Reservations: which nexus may do what (persistent ones: SPC-4; RESERVE: SPC-2).

One rule: this object alone decides, and it holds nothing but names and numbers, so `export` and `restore` carry its
state anywhere. An I_T nexus is known by its text form `str(nexus)`, which must be the same again after a
reconnect: initiator name, ISID and target port, for instance "iqn.2004-10.com.example:vm1,i,0x00023d000001,t,0x0001".
How the state outlives the process is `keeping.py`'s.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from struct import Struct
from typing import Any

from blockdev.scsi.commands import Access
from blockdev.scsi.operation import Buffer, Response
from blockdev.scsi.ports import Port, initiator_port, port_of, through_every_port
from blockdev.scsi.sense import (
    GOOD,
    RESERVATION_CONFLICT,
    Condition,
    check,
    invalid_field,
    invalid_parameter,
)

WRITE_EXCLUSIVE = 0x1
EXCLUSIVE_ACCESS = 0x3
WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8

TYPES = {
    WRITE_EXCLUSIVE: "Write Exclusive",
    EXCLUSIVE_ACCESS: "Exclusive Access",
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY: "Write Exclusive - Registrants Only",
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: "Exclusive Access - Registrants Only",
    WRITE_EXCLUSIVE_ALL_REGISTRANTS: "Write Exclusive - All Registrants",
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS: "Exclusive Access - All Registrants",
}
_SHARED = frozenset(TYPES) - {WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS}
"""Types under which every registered nexus has access."""
_ALL_REGISTRANTS = frozenset((WRITE_EXCLUSIVE_ALL_REGISTRANTS, EXCLUSIVE_ACCESS_ALL_REGISTRANTS))
"""Types whose holder is every registered nexus."""
_WRITE_EXCLUSIVE_TYPES = frozenset((WRITE_EXCLUSIVE, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, WRITE_EXCLUSIVE_ALL_REGISTRANTS))

_TYPE_MASK = 0xEA01  # PERSISTENT RESERVATION TYPE MASK: all six (SPC-4)
REGISTRATIONS_MAX = 1024

_PARAMETERS = Struct(">QQ4xBxxx")
"""RESERVATION KEY, SERVICE ACTION RESERVATION KEY, flags at byte 20 (SPC-4)."""
PARAMETER_LIST_LENGTH = 24
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01
_ATP_C, _PTPL_C, _TMV, _PTPL_A = 0x04, 0x01, 0x80, 0x01
"""REPORT CAPABILITIES (SPC-4 6.13.4)."""


def transport_id(nexus: str) -> bytes:
    """iSCSI TransportID, initiator port format (SPC-4, TransportID): the initiator's name and ISID, null-terminated."""
    name = initiator_port(nexus).encode("utf-8", "replace")
    text = name + b"\0"
    text += bytes(-len(text) % 4)
    named_port = b",i,0x" in name
    return bytes((0x45 if named_port else 0x05, 0)) + len(text).to_bytes(2, "big") + text


class Reservations:
    """The reservation state of one logical unit. `attention(nexus, condition)` is called to establish a unit attention
    for another nexus, `abort(nexus)` when PREEMPT AND ABORT removes one whose tasks must end."""

    def __init__(
        self,
        attention: Callable[[str, Condition], None] = lambda nexus, condition: None,
        abort: Callable[[str], None] = lambda nexus: None,
        ports: Sequence[Port] = (Port(),),
    ) -> None:
        self.attention = attention
        self.abort = abort
        self.ports = ports
        self.can_keep = False
        """Whether APTPL=1 can be honoured."""
        self.aptpl = False
        """Whether the state is to outlive a loss of power: what the newest registration asked for."""
        self.generation = 0
        self.registrations: dict[str, int] = {}
        """Nexus -> reservation key, in order of registration."""
        self.holder: str | None = None
        """Who holds the persistent reservation; with an All Registrants type, who made it."""
        self.type = 0
        """0: no persistent reservation."""
        self.reserved_by: str | None = None
        """Who holds a RESERVE(6) reservation."""

    # ---- state as a value

    def export(self) -> dict[str, Any]:
        """The persistent part, as plain values for JSON; docs/formats/log.md has the form. The generation begins anew with
        every power on (SPC-4 6.13.2), and RESERVE does not outlive a nexus."""
        return {
            "registrations": [[nexus, f"{key:016x}"] for nexus, key in self.registrations.items()],
            "holder": self.holder,
            "type": self.type,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `export` gave, as after a loss of power with APTPL=1. Raises ValueError, TypeError or KeyError if it
        does not hold together; nothing is changed then."""
        registrations = {str(nexus): int(key, 16) for nexus, key in state["registrations"]}
        holder, kind = state["holder"], int(state["type"])
        if (kind == 0) != (holder is None) or (kind and kind not in TYPES):
            raise ValueError(f"reservation type {kind} does not go with holder {holder!r}")
        if holder is not None and holder not in registrations:
            raise ValueError(f"the reservation's holder {holder!r} is not registered")
        self.registrations, self.holder, self.type = registrations, holder, kind
        self.aptpl = True

    def draft(self, effects: list[Callable[[], None]]) -> "Reservations":
        """A copy to try a command on. What others are to be told is put into `effects`."""
        made = Reservations(
            lambda nexus, condition: effects.append(partial(self.attention, nexus, condition)),
            lambda nexus: effects.append(partial(self.abort, nexus)),
            self.ports,
        )
        made.can_keep = self.can_keep
        made.reserved_by = self.reserved_by
        made.adopt(self)
        return made

    def adopt(self, other: "Reservations") -> None:
        """Take over the persistent part of another one."""
        self.generation, self.aptpl = other.generation, other.aptpl
        self.registrations, self.holder, self.type = dict(other.registrations), other.holder, other.type

    # ---- asked for every command

    @property
    def free(self) -> bool:
        """True while no reservation of either kind is held, so no command can conflict."""
        return not self.type and self.reserved_by is None

    def conflicts(self, nexus: str, access: Access) -> bool:
        """Whether a command with that access, sent by `nexus`, must end with RESERVATION CONFLICT."""
        if access is Access.FREE:
            return False
        if self.reserved_by is not None:
            return self.reserved_by != nexus
        if not self.type or access is Access.PROBE or self._holds(nexus):
            return False
        if self.type in _SHARED and nexus in self.registrations:
            return False
        return access is Access.WRITES or self.type not in _WRITE_EXCLUSIVE_TYPES

    def _holds(self, nexus: str) -> bool:
        if self.type in _ALL_REGISTRANTS:
            return nexus in self.registrations
        return self.type != 0 and nexus == self.holder

    # ---- RESERVE(6), RELEASE(6)

    def reserve(self, nexus: str) -> Response:
        """RESERVE(6). Conflicts with registrations of the other kind (SPC-3; CRH is 0)."""
        if self.registrations or self.reserved_by not in (None, nexus):
            return RESERVATION_CONFLICT
        self.reserved_by = nexus
        return GOOD

    def release(self, nexus: str) -> Response:
        """RELEASE(6). Nothing happens, and that is GOOD, if another nexus holds the reservation (SPC-2)."""
        if self.registrations:
            return RESERVATION_CONFLICT
        if self.reserved_by == nexus:
            self.reserved_by = None
        return GOOD

    def nexus_lost(self, nexus: str) -> None:
        """The nexus is gone: its RESERVE(6) reservation with it. Persistent reservations stay."""
        if self.reserved_by == nexus:
            self.reserved_by = None

    def reset(self) -> None:
        """Logical unit or target reset: RESERVE(6) reservations end, persistent ones stay."""
        self.reserved_by = None

    # ---- PERSISTENT RESERVE IN

    def read_keys(self) -> bytes:
        keys = b"".join(key.to_bytes(8, "big") for key in self.registrations.values())
        return self._counted(keys)

    def read_reservation(self) -> bytes:
        if not self.type:
            return self._counted(b"")
        return self._counted(self._reported_key().to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, self.type, 0, 0)))

    def report_capabilities(self) -> bytes:
        # ATP_C: ALL_TG_PT is known. PTPL_C, PTPL_A: state can outlive a loss of power, and does. No SIP_C: an initiator
        # registers itself. TMV: the mask is valid.
        capable, active = _ATP_C | (_PTPL_C if self.can_keep else 0), _TMV | (_PTPL_A if self.aptpl else 0)
        return bytes((0, 8, capable, active)) + _TYPE_MASK.to_bytes(2, "big") + bytes(2)

    def read_full_status(self) -> bytes:
        descriptors = []
        for nexus, key in self.registrations.items():
            holds = self._holds(nexus)
            transport = transport_id(nexus)
            descriptors.append(
                key.to_bytes(8, "big")
                + bytes((0, 0, 0, 0, 0x01 if holds else 0, self.type if holds else 0, 0, 0, 0, 0))
                + port_of(nexus, self.ports).identifier.to_bytes(2, "big")
                + len(transport).to_bytes(4, "big")
                + transport
            )
        return self._counted(b"".join(descriptors))

    def _counted(self, body: bytes) -> bytes:
        return (self.generation & 0xFFFFFFFF).to_bytes(4, "big") + len(body).to_bytes(4, "big") + body

    def _reported_key(self) -> int:
        return 0 if self.type in _ALL_REGISTRANTS or self.holder is None else self.registrations[self.holder]

    # ---- PERSISTENT RESERVE OUT

    def out(self, nexus: str, action: int, scope_and_type: int, data: Buffer) -> Response:
        """Carry out PERSISTENT RESERVE OUT with a parameter list of 24 bytes."""
        if len(data) != PARAMETER_LIST_LENGTH:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        key, new_key, flags = _PARAMETERS.unpack(data)
        # Of ports that are not logged in nothing is known here that SPEC_I_PT could be checked against.
        refused = flags & (_SPEC_I_PT if self.can_keep else _SPEC_I_PT | _APTPL)
        if action in (0x00, 0x06):
            if refused:
                return invalid_parameter(20, refused.bit_length() - 1)
            return self._register(nexus, key, new_key, flags, ignore=action == 0x06)
        # The other two flags say nothing here (SPC-4 6.14.3).
        if flags & _SPEC_I_PT:
            return invalid_parameter(20, 3)
        if self.registrations.get(nexus) != key:
            return RESERVATION_CONFLICT
        if action == 0x03:
            return self._clear(nexus)
        kind = scope_and_type & 0x0F
        if scope_and_type >> 4:
            return invalid_field(2, 7)
        if action == 0x02:
            return self._release(nexus, kind)
        if kind not in TYPES:
            return invalid_field(2, 3)
        if action == 0x01:
            return self._reserve(nexus, kind)
        return self._preempt(nexus, kind, new_key, abort=action == 0x05)

    def _register(self, nexus: str, key: int, new_key: int, flags: int, *, ignore: bool) -> Response:
        current = self.registrations.get(nexus)
        if not ignore and key != (current or 0):
            return RESERVATION_CONFLICT
        names = through_every_port(nexus, self.ports) if flags & _ALL_TG_PT else [nexus]
        if new_key:
            new = sum(name not in self.registrations for name in names)
            if len(self.registrations) + new > REGISTRATIONS_MAX:
                return check(Condition.INSUFFICIENT_REGISTRATION_RESOURCES)
        self.aptpl = bool(flags & _APTPL)
        if current is None and not new_key:
            return GOOD
        for name in names:
            if new_key:
                self.registrations[name] = new_key
            elif name in self.registrations:
                self._unregister(name)
        self.generation += 1
        return GOOD

    def _unregister(self, nexus: str) -> None:
        """SPC-4: a holder that unregisters releases; under All Registrants the last one does."""
        held = self._holds(nexus)
        del self.registrations[nexus]
        if not held:
            return
        if self.type in _ALL_REGISTRANTS and self.registrations:
            if self.holder == nexus:
                self.holder = next(iter(self.registrations))
            return
        registrants_only = self.type in _SHARED
        self.holder, self.type = None, 0
        if registrants_only:
            self._tell_others(nexus, Condition.RESERVATIONS_RELEASED)

    def _reserve(self, nexus: str, kind: int) -> Response:
        if self.type:
            return GOOD if self._holds(nexus) and self.type == kind else RESERVATION_CONFLICT
        self.holder, self.type = nexus, kind
        return GOOD

    def _release(self, nexus: str, kind: int) -> Response:
        if not self._holds(nexus):
            return GOOD
        if kind != self.type:
            return check(Condition.INVALID_RELEASE)
        self.holder, self.type = None, 0
        if kind in _SHARED:
            self._tell_others(nexus, Condition.RESERVATIONS_RELEASED)
        return GOOD

    def _clear(self, nexus: str) -> Response:
        self._tell_others(nexus, Condition.RESERVATIONS_PREEMPTED)
        self.registrations.clear()
        self.holder, self.type = None, 0
        self.generation += 1
        return GOOD

    def _preempt(self, nexus: str, kind: int, victim_key: int, *, abort: bool) -> Response:
        """SPC-4: remove the registrations with the key; take the reservation too if it is theirs."""
        if self.type in _ALL_REGISTRANTS:
            takes_over = victim_key == 0
            victims = [each for each, key in self.registrations.items() if takes_over or key == victim_key]
        else:
            if victim_key == 0:
                return invalid_parameter(8)
            takes_over = self.holder is not None and self.registrations[self.holder] == victim_key
            victims = [each for each, key in self.registrations.items() if key == victim_key]
        if not victims:
            return RESERVATION_CONFLICT
        released = takes_over and self.type in _SHARED and self.type != kind
        # The preempting nexus keeps its registration when it takes the reservation over, also from itself.
        removed = [each for each in victims if each != nexus or not takes_over]
        for each in removed:
            if each != nexus:
                self.attention(each, Condition.REGISTRATIONS_PREEMPTED)
            del self.registrations[each]
        if released:
            self._tell_others(nexus, Condition.RESERVATIONS_RELEASED)
        if takes_over:
            self.holder, self.type = nexus, kind
        elif self.holder is not None and self.holder not in self.registrations:
            # All Registrants, and who made the reservation was removed: the others keep it; it ends with the last.
            self.holder = next(iter(self.registrations), None)
            self.type = self.type if self.holder is not None else 0
        self.generation += 1
        if abort:
            for each in removed:
                self.abort(each)
        return GOOD

    def _tell_others(self, nexus: str, condition: Condition) -> None:
        for each in self.registrations:
            if each != nexus:
                self.attention(each, condition)
