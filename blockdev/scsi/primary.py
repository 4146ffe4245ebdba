"""Primary commands (SPC-4): who is there, what it can do, and who may use it.

One rule: every function here answers at once or asks for a parameter list; none of them reads or writes the medium.
Each is named in the handler column of `commands.COMMANDS`.
"""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from struct import pack
from typing import TYPE_CHECKING

from blockdev.errors import BlockError
from blockdev.scsi import commands, mode, provisioning, reservations
from blockdev.scsi import inquiry as identity
from blockdev.scsi.operation import Buffer, NeedData, Operation, ReserveOut, Response
from blockdev.scsi.ports import port_of
from blockdev.scsi.sense import (
    GOOD,
    RESERVATION_CONFLICT,
    Condition,
    check,
    fixed_sense,
    invalid_field,
    invalid_parameter,
    response_for,
)

if TYPE_CHECKING:
    from blockdev.scsi.device import LogicalUnit

Outcome = Operation | Response | NeedData


def test_unit_ready(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """Ready if the volume may acknowledge: a commit, of whatever is staged and mostly of nothing, says so. That
    is what makes a path checker leave a host that has been fenced."""
    try:
        unit.target.commit()
    except BlockError as error:
        return response_for(error)
    return GOOD


def request_sense(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """The pending unit attention, which is thereby reported (SPC-4), or NO SENSE."""
    condition = unit.take_attention(nexus) or Condition.NO_ADDITIONAL_SENSE
    return unit.data_in(fixed_sense(condition.key, condition.asc, condition.ascq), cdb[4])


def inquiry_data(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    allocation = int.from_bytes(cdb[3:5], "big")
    if not cdb[1] & 0x01:
        return invalid_field(2) if cdb[2] else unit.data_in(identity.standard(unit.identity), allocation)
    who = unit.identity
    if len(unit.ports) > 1:
        who = replace(who, through=port_of(str(nexus), unit.ports))
    data = identity.page(cdb[2], who)
    return invalid_field(2) if data is None else unit.data_in(data, allocation)


def mode_sense(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    target = unit.target
    data = mode.sense(
        cdb, target.sector_count, target.sector_bytes, read_only=target.read_only, provisioning=_thresholds(unit)
    )
    if isinstance(data, Response):
        return data
    return unit.data_in(data, int.from_bytes(cdb[7:9], "big") if cdb[0] == 0x5A else cdb[4])


def mode_select(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    ten = cdb[0] == 0x55
    length = int.from_bytes(cdb[7:9], "big") if ten else cdb[4]
    if length == 0:
        return GOOD
    if not cdb[1] & 0x10:  # PF=0: pages in a format of the vendor's own (SPC-4)
        return invalid_field(1, 4)
    target = unit.target
    sectors, size, thresholds = target.sector_count, target.sector_bytes, _thresholds(unit)
    return NeedData(length, lambda data: mode.select(data, sectors, size, ten=ten, provisioning=thresholds))


def _thresholds(unit: "LogicalUnit") -> bytes:
    return provisioning.mode_page(unit.space.quota) if unit.space is not None else b""


def prevent_allow(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """The medium cannot be removed, so whatever is asked is already so."""
    return GOOD


def reserve(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    # A registration that is being kept would come in between: both kinds exclude each other.
    return RESERVATION_CONFLICT if unit.keeper.busy else unit.reservations.reserve(str(nexus))


def release(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    return unit.reservations.release(str(nexus))


def persistent_reserve_in(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    state = unit.reservations
    match cdb[1] & 0x1F:
        case 0x00:
            data = state.read_keys()
        case 0x01:
            data = state.read_reservation()
        case 0x02:
            data = state.report_capabilities()
        case _:
            data = state.read_full_status()
    return unit.data_in(data, int.from_bytes(cdb[7:9], "big"))


def persistent_reserve_out(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    length = int.from_bytes(cdb[5:9], "big")
    if length != reservations.PARAMETER_LIST_LENGTH:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    action, scope_and_type, name = cdb[1] & 0x1F, cdb[2], str(nexus)

    def then(data: Buffer) -> Operation | Response:
        return ReserveOut(lambda done: unit.keeper.out(name, action, scope_and_type, data, done))

    return NeedData(length, then)


def lun_field(lun: int) -> bytes:
    """A logical unit number in its 8-byte form: peripheral addressing below 256, flat space above (SAM-5)."""
    if not 0 <= lun < 0x4000:
        raise ValueError(f"LUN {lun} is not between 0 and 16383")
    return (lun if lun < 0x100 else 0x4000 | lun).to_bytes(2, "big") + bytes(6)


def lun_inventory(cdb: Buffer, luns: Iterable[int]) -> Response:
    """The answer to REPORT LUNS, with or without a logical unit at the LUN it was sent to."""
    select = cdb[2]
    if select > 2:
        return invalid_field(2)
    # 01h asks for well known logical units only, and there are none.
    body = b"" if select == 1 else b"".join(map(lun_field, sorted(set(luns))))
    return cut(pack(">II", len(body), 0) + body, int.from_bytes(cdb[6:10], "big"))


def cut(data: bytes, allocation: int) -> Response:
    """GOOD with data-in no longer than the allocation length; lengths inside it stay as they are (SPC-4)."""
    return Response(data=(data[:allocation],)) if allocation else GOOD


def report_luns(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    return lun_inventory(cdb, unit.luns())


_ACTIVE_OPTIMIZED, _ONLY_THAT = 0x00, 0x01
"""ASYMMETRIC ACCESS STATE, and the byte that says which states there are (SPC-4 6.37)."""


def report_target_port_groups(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """All groups with their ports, all of them active/optimized: one host serves the volume, and every port of it as well as
    any other. Extended header on request (SPC-4)."""
    extended = bool(cdb[1] & 0x20)
    body = b"\x10\x00\x00\x00" if extended else b""
    for group in sorted({port.group for port in unit.ports}):
        members = [port for port in unit.ports if port.group == group]
        body += pack(">BBHBBBB", _ACTIVE_OPTIMIZED, _ONLY_THAT, group, 0, 0, 0, len(members))
        body += b"".join(pack(">HH", 0, port.identifier) for port in members)
    return unit.data_in(len(body).to_bytes(4, "big") + body, int.from_bytes(cdb[6:10], "big"))


def set_target_port_groups(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """SET TARGET PORT GROUPS (SPC-4 6.46): active/optimized is what every group is; no other state can be had, since
    another host gets the volume by taking it over and not by a command."""
    length = int.from_bytes(cdb[6:10], "big")
    if length == 0:
        return GOOD
    if length < 4 or length % 4 or length > _GROUPS_BYTES_MAX:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    groups = {port.group for port in unit.ports}

    def then(data: Buffer) -> Operation | Response:
        if len(data) < length:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        for at in range(4, length, 4):
            if int.from_bytes(data[at + 2 : at + 4], "big") not in groups:
                return invalid_parameter(at + 2)
            if data[at] & 0x0F != _ACTIVE_OPTIMIZED:
                return invalid_parameter(at, 3)
        return GOOD

    return NeedData(length, then)


_GROUPS_BYTES_MAX = 4 + 4 * 1024

_TIMEOUTS = pack(">HBBII", 0x0A, 0, 0, 0, 0)
"""Command timeouts descriptor that gives no times (SPC-4): they depend on the object store."""


def report_supported_operation_codes(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    with_timeouts = bool(cdb[2] & 0x80)
    options, opcode, action = cdb[2] & 0x07, cdb[3], int.from_bytes(cdb[4:6], "big")
    allocation = int.from_bytes(cdb[6:10], "big")
    if options == 0:
        return unit.data_in(_all_commands(with_timeouts), allocation)
    plain, actions = commands.BY_OPCODE.get(opcode), commands.BY_SERVICE_ACTION.get(opcode)
    if options == 1:
        if actions is not None:
            return invalid_field(2, 2)
        found = plain
    elif options == 2:
        if plain is not None:
            return invalid_field(2, 2)
        found = actions.get(action) if actions is not None else None
    elif options == 3:
        found = actions.get(action) if actions is not None else plain if action == 0 else None
    else:
        return invalid_field(2, 2)
    return unit.data_in(_one_command(found, with_timeouts), allocation)


def _all_commands(with_timeouts: bool) -> bytes:
    body = bytearray()
    for command in commands.COMMANDS:
        action = command.service_action
        flags = (0x01 if action is not None else 0) | (0x02 if with_timeouts else 0)
        body += pack(">BBHBBH", command.opcode, 0, action or 0, 0, flags, command.length)
        if with_timeouts:
            body += _TIMEOUTS
    return len(body).to_bytes(4, "big") + bytes(body)


def _one_command(command: commands.Command | None, with_timeouts: bool) -> bytes:
    not_supported, as_the_standard_says = 1, 3
    if command is None:
        return pack(">BBH", 0, not_supported, 0)
    flags = as_the_standard_says | (0x80 if with_timeouts else 0)
    return pack(">BBH", 0, flags, command.length) + command.usage + (_TIMEOUTS if with_timeouts else b"")
