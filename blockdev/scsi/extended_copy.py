"""EXTENDED COPY (LID1) and RECEIVE COPY RESULTS (SPC-4 6.4, 6.18): from a parameter list to the `Copy` it asks for.

One rule: a list is judged as a whole before a byte moves. What cannot be done as it stands (a volume that is not there, a
range beyond the end, one the initiator may not use) ends the command with nothing copied.

Block to block segments (02h) between volumes that the initiator reaches, named by their NAA designator (E4h). Tokens (ODX) and
the 32-bit list identifiers are not offered. `copying.py` does the deed.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import TYPE_CHECKING

from blockdev.scsi import commands
from blockdev.scsi.inquiry import naa
from blockdev.scsi.limits import (
    COPY_DESCRIPTORS,
    COPY_SEGMENT,
    COPY_SEGMENT_BYTES,
    COPY_TARGET,
    COPY_TARGET_BYTES,
    Limits,
)
from blockdev.scsi.operation import Buffer, Copy, CopyProgress, CopySegment, NeedData, Operation, Response, Status
from blockdev.scsi.sense import (
    BUSY,
    GOOD,
    RESERVATION_CONFLICT,
    Condition,
    check,
    copy_aborted,
    invalid_field,
    invalid_parameter,
)

if TYPE_CHECKING:
    from blockdev.scsi.device import LogicalUnit

Outcome = Operation | Response | NeedData

HEADER_BYTES = 16

RESULTS_MAX = 1024
"""Results of copies that have ended and were not asked for; beyond that the oldest are forgotten, which SPC-4 allows."""

COPY_STATUS, RECEIVE_DATA, OPERATING_PARAMETERS, FAILED_SEGMENT_DETAILS = 0x00, 0x01, 0x03, 0x04

_USAGE_RESERVED, _USAGE_NONE = 1, 3
"""LIST ID USAGE: 00b and 10b give an identifier, 11b gives none."""


@dataclass(frozen=True, slots=True)
class Reach:
    """A logical unit that an initiator can reach, and its nexus there, for reservations."""

    unit: "LogicalUnit"
    nexus: str


FindUnit = Callable[[bytes, Hashable], Reach | None]
"""By NAA designator, for the nexus that asks; None for a unit that is not served here or that this initiator has no
access to."""


class Copies:
    """The copies of one logical unit's copy manager: those under way, and the results that wait to be asked for."""

    def __init__(self, at_once_max: int) -> None:
        self._at_once_max = at_once_max
        self._under_way: list[CopyProgress] = []
        self._by_list: dict[tuple[str, int], CopyProgress] = {}

    def begin(self, nexus: str, list_id: int | None) -> CopyProgress | Response:
        """A new copy; without a list identifier nobody can ask for it."""
        self._under_way = [copy for copy in self._under_way if copy.answer is None]
        if len(self._under_way) >= self._at_once_max:
            return BUSY
        progress = CopyProgress()
        if list_id is not None:
            former = self._by_list.pop((nexus, list_id), None)
            if former is not None and former.answer is None:
                self._by_list[nexus, list_id] = former
                return check(Condition.OPERATION_IN_PROGRESS)
            self._by_list[nexus, list_id] = progress
            for key in [key for key, copy in self._by_list.items() if copy.answer is not None][:-RESULTS_MAX]:
                del self._by_list[key]
        self._under_way.append(progress)
        return progress

    def find(self, nexus: str, list_id: int) -> CopyProgress | None:
        return self._by_list.get((nexus, list_id))

    def forget(self, nexus: str, list_id: int) -> None:
        self._by_list.pop((nexus, list_id), None)

    def nexus_lost(self, nexus: str) -> None:
        """Results are for the nexus that asked (SPC-4 6.18.1). Its copies are the door's to end."""
        for key in [key for key in self._by_list if key[0] == nexus]:
            del self._by_list[key]

    def reset(self) -> None:
        self._by_list.clear()


def extended_copy(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    length = int.from_bytes(cdb[10:14], "big")
    if length == 0:
        return GOOD
    if not HEADER_BYTES <= length <= HEADER_BYTES + unit.limits.copy_list_bytes:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    return NeedData(length, lambda data: _judge(unit, bytes(data), nexus))


def _judge(unit: "LogicalUnit", data: bytes, nexus: Hashable) -> Operation | Response:
    limits = unit.limits
    if len(data) < HEADER_BYTES:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    list_id, flags, targets_bytes, segments_bytes, inline_bytes = unpack_from(">BBHxxxxII", data)
    usage = flags >> 3 & 3
    if flags & 0xC0 or usage == _USAGE_RESERVED:
        return invalid_parameter(1, 7 if flags & 0xC0 else 4)
    if usage == _USAGE_NONE and list_id:
        return invalid_parameter(0)
    if targets_bytes + segments_bytes > limits.copy_list_bytes:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    if inline_bytes:
        return check(Condition.INLINE_DATA_LENGTH_EXCEEDED)
    if len(data) < HEADER_BYTES + targets_bytes + segments_bytes:
        return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
    described = _split(data, targets_bytes, segments_bytes)
    if isinstance(described, Response):
        return described
    target_offsets, segment_offsets = described
    if len(target_offsets) > limits.copy_targets:
        return check(Condition.TOO_MANY_TARGET_DESCRIPTORS)
    if len(segment_offsets) > limits.copy_segments:
        return check(Condition.TOO_MANY_SEGMENT_DESCRIPTORS)
    reached: dict[int, Reach | Response] = {}
    segments: list[CopySegment] = []
    for number, at in enumerate(segment_offsets):
        segment = _segment(unit, data, at, number, target_offsets, reached, nexus)
        if isinstance(segment, Response):
            return segment
        segments.append(segment)
    if not segments:
        return GOOD
    progress = unit.copies.begin(str(nexus), list_id if usage != _USAGE_NONE else None)
    return progress if isinstance(progress, Response) else Copy(tuple(segments), unit.target, progress, unit.later)


def _split(data: bytes, targets_bytes: int, segments_bytes: int) -> tuple[list[int], list[int]] | Response:
    """Where the descriptors begin, once all of them are of types that are known."""
    at, end = HEADER_BYTES, HEADER_BYTES + targets_bytes
    targets, segments = [], []
    while at < end:
        if data[at] != COPY_TARGET:
            return check(Condition.UNSUPPORTED_TARGET_DESCRIPTOR, field=(False, at, None))
        if end - at < COPY_TARGET_BYTES:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        targets.append(at)
        at += COPY_TARGET_BYTES
    end += segments_bytes
    while at < end:
        if data[at] != COPY_SEGMENT:
            return check(Condition.UNSUPPORTED_SEGMENT_DESCRIPTOR, field=(False, at, None))
        if end - at < COPY_SEGMENT_BYTES:
            return check(Condition.PARAMETER_LIST_LENGTH_ERROR)
        if int.from_bytes(data[at + 2 : at + 4], "big") != COPY_SEGMENT_BYTES - 4:
            return invalid_parameter(at + 2)
        segments.append(at)
        at += COPY_SEGMENT_BYTES
    return targets, segments


def _segment(
    unit: "LogicalUnit",
    data: bytes,
    at: int,
    number: int,
    targets: list[int],
    reached: dict[int, Reach | Response],
    nexus: Hashable,
) -> CopySegment | Response:
    flags, source_index, destination_index, blocks, source_lba, destination_lba = unpack_from(">xBxxHHxxHQQ", data, at)
    ends: list[Reach] = []
    for index in (source_index, destination_index):
        if index >= len(targets):
            return copy_aborted(Condition.COPY_TARGET_NOT_REACHABLE, number)
        if index not in reached:
            reached[index] = _reach(unit, data, targets[index], number, nexus)
        found = reached[index]
        if isinstance(found, Response):
            return found
        ends.append(found)
    source, destination = ends
    source_size, destination_size = source.unit.target.sector_bytes, destination.unit.target.sector_bytes
    # DC: the number counts blocks of the destination.
    length = blocks * (destination_size if flags & 0x02 else source_size)
    if length > unit.limits.copy_segment_bytes:
        return invalid_parameter(at + 10)
    if length % source_size or length % destination_size:
        return copy_aborted(Condition.UNEXPECTED_INEXACT_SEGMENT, number)
    for end, lba in ((source, source_lba), (destination, destination_lba)):
        if not commands.in_range(lba, length // end.unit.target.sector_bytes, end.unit.target.sector_count):
            return copy_aborted(Condition.COPY_ENDED, number, blocks)
    if destination.unit.target.read_only:
        return copy_aborted(Condition.THIRD_PARTY_DEVICE_FAILURE, number, blocks)

    def refused() -> bool:
        """Asked before each piece: a reservation may come while the copy runs, and the quota may be used up."""
        if destination.unit.space is not None and destination.unit.space.full:
            return True
        reads = source.unit.reservations.conflicts(source.nexus, commands.Access.READS)
        return reads or destination.unit.reservations.conflicts(destination.nexus, commands.Access.WRITES)

    if refused():
        if destination.unit.space is not None and destination.unit.space.full:
            return check(Condition.SPACE_ALLOCATION_FAILED)
        own = source.unit is unit and destination.unit is unit
        return RESERVATION_CONFLICT if own else copy_aborted(Condition.THIRD_PARTY_DEVICE_FAILURE, number, blocks)
    return CopySegment(
        source.unit.target,
        source_lba,
        destination.unit.target,
        destination_lba,
        length,
        refused,
    )


def _reach(unit: "LogicalUnit", data: bytes, at: int, number: int, nexus: Hashable) -> Reach | Response:
    """The unit a CSCD descriptor names. LU ID TYPE is ignored and NUL obsolete (SPC-4 6.4.5.1)."""
    if data[at + 1] & 0x1F:
        return copy_aborted(Condition.INCORRECT_COPY_TARGET_TYPE, number)
    code_set, kind, length = data[at + 4] & 0x0F, data[at + 5] & 0x3F, data[at + 7]
    if length > 20:
        return invalid_parameter(at + 7)
    designator = data[at + 8 : at + 8 + length]
    if (code_set, kind) != (1, 3):  # binary, NAA, of the logical unit
        return copy_aborted(Condition.COPY_TARGET_NOT_REACHABLE, number)
    found = Reach(unit, str(nexus)) if designator == naa(unit.target.identity) else unit.find_unit(designator, nexus)
    if found is None:
        return copy_aborted(Condition.COPY_TARGET_NOT_REACHABLE, number)
    if int.from_bytes(data[at + 29 : at + 32], "big") != found.unit.target.sector_bytes:
        return invalid_parameter(at + 29)
    return found


# ---- RECEIVE COPY RESULTS


def receive_copy_results(unit: "LogicalUnit", cdb: Buffer, nexus: Hashable) -> Outcome:
    """COPY STATUS and FAILED SEGMENT DETAILS are told once for a copy that has ended (SPC-4 6.18): a failed one's status
    goes with its details."""
    action, list_id, allocation = cdb[1] & 0x1F, cdb[2], int.from_bytes(cdb[10:14], "big")
    if action == OPERATING_PARAMETERS:
        return unit.data_in(operating_parameters(unit.limits, unit.target.sector_bytes), allocation)
    name = str(nexus)
    copy = unit.copies.find(name, list_id)
    if copy is None:
        return invalid_field(2)
    answer = copy.answer
    if action == COPY_STATUS:
        status = 0 if answer is None else 1 if answer.status is Status.GOOD else 2
        if status == 1:
            unit.copies.forget(name, list_id)
        body = pack(">BHBI", status, copy.segments, 0, min(copy.bytes, 0xFFFFFFFF))
        return unit.data_in(pack(">I", len(body)) + body, allocation)
    if answer is None:
        return invalid_field(2)
    unit.copies.forget(name, list_id)
    if answer.status is Status.GOOD:
        return unit.data_in(bytes(4), allocation)
    body = bytes(52) + pack(">BxH", answer.status, len(answer.sense)) + answer.sense
    return unit.data_in(pack(">I", len(body)) + body, allocation)


def operating_parameters(limits: Limits, sector_bytes: int) -> bytes:
    body = pack(
        ">BxxxHHIIIIIxxHBBBBxxxB",
        0x01,  # SNLID: a list without an identifier is accepted
        limits.copy_targets,
        limits.copy_segments,
        limits.copy_list_bytes,
        limits.copy_segment_bytes,
        0,  # inline data
        0,  # held data
        0,  # stream devices
        limits.copies_at_once,
        limits.copies_at_once,
        sector_bytes.bit_length() - 1,
        0,
        0,
        len(COPY_DESCRIPTORS),
    )
    body += bytes(COPY_DESCRIPTORS)
    return pack(">I", len(body)) + body
