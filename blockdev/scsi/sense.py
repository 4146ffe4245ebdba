"""Sense: what a command that did not succeed says about why, as one table, and how failures of a volume map to it.

One rule: nothing else in the project spells a sense key or an additional sense code as a number. Fixed format only
(SPC-4 4.5.3; the Control mode page says D_SENSE=0). Next: `commands.py`.
"""

import struct
from enum import Enum, IntEnum

from blockdev.errors import (
    BlockError,
    Fenced,
    JournalFull,
    MediumError,
    NotReady,
    StoreUnreachable,
)
from blockdev.scsi.operation import Response, Status


class Key(IntEnum):
    """Sense keys (SPC-4) that this device reports."""

    NO_SENSE = 0x0
    NOT_READY = 0x2
    MEDIUM_ERROR = 0x3
    HARDWARE_ERROR = 0x4
    ILLEGAL_REQUEST = 0x5
    UNIT_ATTENTION = 0x6
    DATA_PROTECT = 0x7
    COPY_ABORTED = 0xA
    ABORTED_COMMAND = 0xB
    MISCOMPARE = 0xE


class Condition(Enum):
    """Every condition this device reports: sense key, ASC, ASCQ and the wording of the T10 list."""

    NO_ADDITIONAL_SENSE = (Key.NO_SENSE, 0x00, 0x00, "no additional sense information")

    BECOMING_READY = (Key.NOT_READY, 0x04, 0x01, "logical unit is in process of becoming ready")
    MANUAL_INTERVENTION_REQUIRED = (Key.NOT_READY, 0x04, 0x03, "logical unit not ready, manual intervention required")

    UNRECOVERED_READ_ERROR = (Key.MEDIUM_ERROR, 0x11, 0x00, "unrecovered read error")

    INTERNAL_TARGET_FAILURE = (Key.HARDWARE_ERROR, 0x44, 0x00, "internal target failure")

    OPERATION_IN_PROGRESS = (Key.ILLEGAL_REQUEST, 0x00, 0x16, "operation in progress")
    PARAMETER_LIST_LENGTH_ERROR = (Key.ILLEGAL_REQUEST, 0x1A, 0x00, "parameter list length error")
    INVALID_OPERATION_CODE = (Key.ILLEGAL_REQUEST, 0x20, 0x00, "invalid command operation code")
    LBA_OUT_OF_RANGE = (Key.ILLEGAL_REQUEST, 0x21, 0x00, "logical block address out of range")
    INVALID_FIELD_IN_CDB = (Key.ILLEGAL_REQUEST, 0x24, 0x00, "invalid field in CDB")
    LOGICAL_UNIT_NOT_SUPPORTED = (Key.ILLEGAL_REQUEST, 0x25, 0x00, "logical unit not supported")
    INVALID_FIELD_IN_PARAMETER_LIST = (Key.ILLEGAL_REQUEST, 0x26, 0x00, "invalid field in parameter list")
    INVALID_RELEASE = (Key.ILLEGAL_REQUEST, 0x26, 0x04, "invalid release of persistent reservation")
    TOO_MANY_TARGET_DESCRIPTORS = (Key.ILLEGAL_REQUEST, 0x26, 0x06, "too many target descriptors")
    UNSUPPORTED_TARGET_DESCRIPTOR = (Key.ILLEGAL_REQUEST, 0x26, 0x07, "unsupported target descriptor type code")
    TOO_MANY_SEGMENT_DESCRIPTORS = (Key.ILLEGAL_REQUEST, 0x26, 0x08, "too many segment descriptors")
    UNSUPPORTED_SEGMENT_DESCRIPTOR = (Key.ILLEGAL_REQUEST, 0x26, 0x09, "unsupported segment descriptor type code")
    INLINE_DATA_LENGTH_EXCEEDED = (Key.ILLEGAL_REQUEST, 0x26, 0x0B, "inline data length exceeded")
    SAVING_PARAMETERS_NOT_SUPPORTED = (Key.ILLEGAL_REQUEST, 0x39, 0x00, "saving parameters not supported")
    INSUFFICIENT_REGISTRATION_RESOURCES = (Key.ILLEGAL_REQUEST, 0x55, 0x04, "insufficient registration resources")

    POWER_ON_OR_RESET = (Key.UNIT_ATTENTION, 0x29, 0x00, "power on, reset, or bus device reset occurred")
    POWER_ON = (Key.UNIT_ATTENTION, 0x29, 0x01, "power on occurred")
    BUS_RESET = (Key.UNIT_ATTENTION, 0x29, 0x02, "SCSI bus reset occurred")
    DEVICE_RESET = (Key.UNIT_ATTENTION, 0x29, 0x03, "bus device reset function occurred")
    RESERVATIONS_PREEMPTED = (Key.UNIT_ATTENTION, 0x2A, 0x03, "reservations preempted")
    RESERVATIONS_RELEASED = (Key.UNIT_ATTENTION, 0x2A, 0x04, "reservations released")
    REGISTRATIONS_PREEMPTED = (Key.UNIT_ATTENTION, 0x2A, 0x05, "registrations preempted")
    CAPACITY_CHANGED = (Key.UNIT_ATTENTION, 0x2A, 0x09, "capacity data has changed")
    COMMANDS_CLEARED = (Key.UNIT_ATTENTION, 0x2F, 0x00, "commands cleared by another initiator")
    LUNS_CHANGED = (Key.UNIT_ATTENTION, 0x3F, 0x0E, "reported LUNs data has changed")
    THRESHOLD_REACHED = (Key.UNIT_ATTENTION, 0x38, 0x07, "thin provisioning soft threshold reached")

    SPACE_ALLOCATION_FAILED = (Key.DATA_PROTECT, 0x27, 0x07, "space allocation failed write protect")
    WRITE_PROTECTED = (Key.DATA_PROTECT, 0x27, 0x00, "write protected")

    COPY_ENDED = (Key.COPY_ABORTED, 0x00, 0x00, "no additional sense information")
    THIRD_PARTY_DEVICE_FAILURE = (Key.COPY_ABORTED, 0x0D, 0x01, "third party device failure")
    COPY_TARGET_NOT_REACHABLE = (Key.COPY_ABORTED, 0x0D, 0x02, "copy target device not reachable")
    INCORRECT_COPY_TARGET_TYPE = (Key.COPY_ABORTED, 0x0D, 0x03, "incorrect copy target device type")
    UNEXPECTED_INEXACT_SEGMENT = (Key.COPY_ABORTED, 0x26, 0x0A, "unexpected inexact segment")

    PROTOCOL_SERVICE_CRC_ERROR = (Key.ABORTED_COMMAND, 0x47, 0x05, "protocol service CRC error")

    MISCOMPARE_DURING_VERIFY = (Key.MISCOMPARE, 0x1D, 0x00, "miscompare during verify operation")

    def __init__(self, key: Key, asc: int, ascq: int, text: str) -> None:
        self.key = key
        self.asc = asc
        self.ascq = ascq
        self.text = text


FieldPointer = tuple[bool, int, int | None]
"""Sense-key-specific data of ILLEGAL REQUEST (SPC-4): in the CDB (else in the parameter list),
byte, and the highest bit in error where one bit or field is meant."""

_FIXED = struct.Struct(">BBBIBIBBBBH")


def fixed_sense(
    key: int,
    asc: int,
    ascq: int,
    information: int | None = None,
    *,
    field: FieldPointer | None = None,
    command_specific: int = 0,
) -> bytes:
    """Current errors, fixed format, 18 bytes (SPC-4 4.5.3). An INFORMATION value above 32 bits does not fit this
    format: VALID stays 0 then, rather than a wrong address being reported (SPC-4 4.5.3, INFORMATION field)."""
    valid = information is not None and 0 <= information <= 0xFFFFFFFF
    specific, pointer = 0, 0
    if field is not None:
        in_cdb, byte, bit = field
        specific = 0x80 | (0x40 if in_cdb else 0) | (0 if bit is None else 0x08 | bit)
        pointer = byte
    return _FIXED.pack(
        0xF0 if valid else 0x70,
        0,
        key,
        information if valid and information else 0,
        10,
        command_specific,
        asc,
        ascq,
        0,
        specific,
        pointer,
    )


def check(condition: Condition, information: int | None = None, *, field: FieldPointer | None = None) -> Response:
    """CHECK CONDITION with that condition."""
    return Response(
        Status.CHECK_CONDITION,
        sense=fixed_sense(condition.key, condition.asc, condition.ascq, information, field=field),
    )


def invalid_field(byte: int, bit: int | None = None) -> Response:
    """INVALID FIELD IN CDB that points at `byte`, and at the field's highest `bit`."""
    return check(Condition.INVALID_FIELD_IN_CDB, field=(True, byte, bit))


def invalid_parameter(byte: int, bit: int | None = None) -> Response:
    """INVALID FIELD IN PARAMETER LIST that points at `byte` of the data-out buffer."""
    return check(Condition.INVALID_FIELD_IN_PARAMETER_LIST, field=(False, byte, bit))


def copy_aborted(condition: Condition, segment: int, left: int = 0) -> Response:
    """COPY ABORTED at that segment of an EXTENDED COPY, `left` blocks of which were not copied (SPC-4 6.4.3: INFORMATION, and
    the last two bytes of COMMAND-SPECIFIC INFORMATION)."""
    return Response(
        Status.CHECK_CONDITION,
        sense=fixed_sense(condition.key, condition.asc, condition.ascq, left, command_specific=segment & 0xFFFF),
    )


GOOD = Response()
BUSY = Response(Status.BUSY)
TASK_ABORTED = Response(Status.TASK_ABORTED)
RESERVATION_CONFLICT = Response(Status.RESERVATION_CONFLICT)
TRANSFER_LENGTH_MISMATCH = check(Condition.INVALID_FIELD_IN_CDB)
"""The transport's expected length is not what the CDB says and the command cannot do with that (NeedData.exact): the
CDB's length is taken to be the one in error."""


def response_for(error: Exception) -> Response:
    """The answer to a command that failed with `error`. By who must act:

    - JournalFull: BUSY. Every initiator sends the command again after a pause, and nothing is lost.
    - StoreUnreachable: BUSY too. The data is there, only not now. Linux requeues BUSY until the command's whole time
      allowance is used up, QEMU and libiscsi retry it with growing pauses, Windows and VMware retry it;
      ABORTED COMMAND is retried at once and a few times only, and NOT READY 04/07 ("operation in progress")
      is waited for by Linux but becomes an I/O error in QEMU.
    - NotReady: NOT READY 04/01, becoming ready: polled with TEST UNIT READY.
    - Fenced: NOT READY 04/03, manual intervention required: not retried here, so that multipath leaves this path.
    - MediumError: MEDIUM ERROR 11/00, INFORMATION names the sector. Not retried; the rest of the disk goes on.
    - LocalDiskFailed and every other failure: HARDWARE ERROR 44/00. The volume stops.
    """
    match error:
        case JournalFull() | StoreUnreachable():
            return BUSY
        case Fenced():
            return check(Condition.MANUAL_INTERVENTION_REQUIRED)
        case NotReady():
            return check(Condition.BECOMING_READY)
        case MediumError():
            return check(Condition.UNRECOVERED_READ_ERROR, error.lba)
        case BlockError():  # LocalDiskFailed, CorruptJournal, CorruptFormat, AttachRefused
            return check(Condition.INTERNAL_TARGET_FAILURE)
        case _:
            raise error
