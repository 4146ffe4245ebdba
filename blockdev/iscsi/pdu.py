"""Protocol data units: 48-byte basic header segments and numbers (RFC 7143 section 11).

One rule: every layout is written once, in `LAYOUTS`; code, tests and docs/protocol/iscsi.md read that table. All
headers are four bytes, a length word, an eight-byte field and eight words, but for the SCSI Command, whose last four
words are the CDB; so two precompiled structs serve all of them. Next: `connection.py`, which uses the structs
directly where it is fast, and `pack` and `unpack` everywhere else.
"""

import struct
from enum import IntEnum

BHS_BYTES = 48
DIGEST_BYTES = 4
NO_TAG = 0xFFFFFFFF
"""The reserved value of initiator task tags and target transfer tags."""

HEADER = struct.Struct(">BBBBIQIIIIIIII")
COMMAND = struct.Struct(">BBBBIQIIII16s")
LENGTHS = struct.Struct(">I")
"""The word at byte 4: TotalAHSLength (in words) in the top byte, DataSegmentLength below."""

assert HEADER.size == COMMAND.size == BHS_BYTES


class Opcode(IntEnum):
    """RFC 7143 11.2.1.2. From the target when bit 0x20 is set."""

    NOP_OUT = 0x00
    SCSI_COMMAND = 0x01
    TASK_MANAGEMENT = 0x02
    LOGIN = 0x03
    TEXT = 0x04
    DATA_OUT = 0x05
    LOGOUT = 0x06
    SNACK = 0x10
    NOP_IN = 0x20
    SCSI_RESPONSE = 0x21
    TASK_MANAGEMENT_RESPONSE = 0x22
    LOGIN_RESPONSE = 0x23
    TEXT_RESPONSE = 0x24
    DATA_IN = 0x25
    LOGOUT_RESPONSE = 0x26
    R2T = 0x31
    ASYNC_MESSAGE = 0x32
    REJECT = 0x3F


OPCODE_MASK = 0x3F
IMMEDIATE = 0x40
"""In byte 0: deliver at once, outside the CmdSN order."""
FINAL = 0x80
"""In byte 1 of every PDU; Transit (T) in login PDUs."""
CONTINUE = 0x40
"""In byte 1 of login and text PDUs: the key=value text goes on in the next one."""

# Byte 1 of a SCSI Command (11.3.1).
COMMAND_READ = 0x40
COMMAND_WRITE = 0x20
# Byte 1 of a SCSI Response (11.4.1) and of a Data-In with status (11.7.1).
OVERFLOW = 0x04
UNDERFLOW = 0x02
DATA_IN_STATUS = 0x01


class Reason(IntEnum):
    """Why a PDU is rejected (RFC 7143 11.17.1)."""

    DATA_DIGEST_ERROR = 0x02
    SNACK_REJECT = 0x03
    PROTOCOL_ERROR = 0x04
    COMMAND_NOT_SUPPORTED = 0x05
    IMMEDIATE_COMMAND_REJECT = 0x06
    TASK_IN_PROGRESS = 0x07
    INVALID_PDU_FIELD = 0x09
    LONG_OPERATION_REJECT = 0x0A


class TaskFunction(IntEnum):
    """Task management functions (RFC 7143 11.5.1)."""

    ABORT_TASK = 1
    ABORT_TASK_SET = 2
    CLEAR_ACA = 3
    CLEAR_TASK_SET = 4
    LOGICAL_UNIT_RESET = 5
    TARGET_WARM_RESET = 6
    TARGET_COLD_RESET = 7
    TASK_REASSIGN = 8


class TaskAnswer(IntEnum):
    """Responses to task management (RFC 7143 11.6.1)."""

    COMPLETE = 0
    NO_SUCH_TASK = 1
    NO_SUCH_LUN = 2
    STILL_ALLEGIANT = 3
    REASSIGNMENT_NOT_SUPPORTED = 4
    NOT_SUPPORTED = 5
    NOT_AUTHORIZED = 6
    REJECTED = 255


class AsyncEvent(IntEnum):
    """RFC 7143 11.9.1."""

    SCSI = 0
    REQUEST_LOGOUT = 1
    DROP_CONNECTION = 2
    DROP_SESSION = 3


_LEAD = ("byte2", "byte3", "lengths")
_FIELDS_SN = ("stat_sn", "exp_cmd_sn", "max_cmd_sn")

LAYOUTS: dict[Opcode, tuple[str, ...]] = {
    Opcode.NOP_OUT: (*_LEAD, "lun", "itt", "ttt", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    Opcode.SCSI_COMMAND: (*_LEAD, "lun", "itt", "expected_length", "cmd_sn", "exp_stat_sn", "cdb"),
    Opcode.TASK_MANAGEMENT: (
        *_LEAD,
        "lun",
        "itt",
        "referenced_itt",
        "cmd_sn",
        "exp_stat_sn",
        "ref_cmd_sn",
        "exp_data_sn",
        "",
        "",
    ),
    Opcode.LOGIN: (
        "version_max",
        "version_min",
        "lengths",
        "isid_tsih",
        "itt",
        "cid",
        "cmd_sn",
        "exp_stat_sn",
        "",
        "",
        "",
        "",
    ),
    Opcode.TEXT: (*_LEAD, "lun", "itt", "ttt", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    Opcode.DATA_OUT: (*_LEAD, "lun", "itt", "ttt", "", "exp_stat_sn", "", "data_sn", "offset", ""),
    Opcode.LOGOUT: (*_LEAD, "", "itt", "cid", "cmd_sn", "exp_stat_sn", "", "", "", ""),
    Opcode.SNACK: (*_LEAD, "lun", "itt", "ttt", "", "exp_stat_sn", "", "", "beg_run", "run_length"),
    Opcode.NOP_IN: (*_LEAD, "lun", "itt", "ttt", *_FIELDS_SN, "", "", ""),
    Opcode.SCSI_RESPONSE: (
        "response",
        "status",
        "lengths",
        "",
        "itt",
        "snack_tag",
        *_FIELDS_SN,
        "exp_data_sn",
        "bidi_residual",
        "residual",
    ),
    Opcode.TASK_MANAGEMENT_RESPONSE: ("response", "byte3", "lengths", "", "itt", "", *_FIELDS_SN, "", "", ""),
    Opcode.LOGIN_RESPONSE: (
        "version_max",
        "version_active",
        "lengths",
        "isid_tsih",
        "itt",
        "",
        *_FIELDS_SN,
        "status_word",
        "",
        "",
    ),
    Opcode.TEXT_RESPONSE: (*_LEAD, "lun", "itt", "ttt", *_FIELDS_SN, "", "", ""),
    Opcode.DATA_IN: (
        "byte2",
        "status",
        "lengths",
        "lun",
        "itt",
        "ttt",
        *_FIELDS_SN,
        "data_sn",
        "offset",
        "residual",
    ),
    Opcode.LOGOUT_RESPONSE: ("response", "byte3", "lengths", "", "itt", "", *_FIELDS_SN, "", "times", ""),
    Opcode.R2T: (*_LEAD, "lun", "itt", "ttt", *_FIELDS_SN, "r2t_sn", "offset", "desired"),
    Opcode.ASYNC_MESSAGE: (*_LEAD, "lun", "itt", "", *_FIELDS_SN, "event", "parameters", ""),
    Opcode.REJECT: ("reason", "byte3", "lengths", "", "itt", "", *_FIELDS_SN, "data_sn", "", ""),
}
"""What follows byte 0 (opcode) and byte 1 (flags), in order; "" is reserved. Packed sub-fields: `isid_tsih` is ISID << 16
| TSIH; `cid` and `status_word` use the upper 16 bits; `event` is AsyncEvent << 24 | vendor code << 16 | Parameter1;
`parameters` Parameter2 << 16 | Parameter3; `times` Time2Wait << 16 | Time2Retain."""


def pack(opcode: Opcode, flags: int = FINAL, *, immediate: bool = False, cdb: bytes = b"", **fields: int) -> bytes:
    """A basic header segment. Fields not given are 0; a name the layout does not have is a TypeError.
    `length` may be given in place of `lengths`."""
    return pack_fields(opcode, flags, fields, immediate=immediate, cdb=cdb)


def pack_fields(
    opcode: Opcode, flags: int, fields: dict[str, int], *, immediate: bool = False, cdb: bytes = b""
) -> bytes:
    """`pack` for fields in a dict, which is used up."""
    if "length" in fields:
        fields["lengths"] = fields.pop("length")
    values = [fields.pop(name, 0) if name else 0 for name in LAYOUTS[opcode] if name != "cdb"]
    if fields:
        raise TypeError(f"{opcode.name} has no field {sorted(fields)}; it has {LAYOUTS[opcode]}")
    first = opcode | (IMMEDIATE if immediate else 0)
    if opcode is Opcode.SCSI_COMMAND:
        return COMMAND.pack(first, flags, *values, cdb)
    return HEADER.pack(first, flags, *values)


def unpack(header: bytes | bytearray | memoryview, at: int = 0) -> dict[str, int]:
    """The named fields of a header, with `opcode`, `immediate`, `flags` and `length` (of the data segment).
    A SCSI Command's CDB is left out. Raises ValueError for an opcode that is none."""
    words = HEADER.unpack_from(header, at)
    opcode = Opcode(words[0] & OPCODE_MASK)
    found = dict(zip(LAYOUTS[opcode], words[2:], strict=False))
    found.pop("", None)
    found.pop("cdb", None)
    found["opcode"] = int(opcode)
    found["immediate"] = words[0] & IMMEDIATE
    found["flags"] = words[1]
    found["length"] = words[4] & 0xFFFFFF
    return found


def padding(length: int) -> int:
    """Bytes that fill a segment up to a whole word (RFC 7143 11.1)."""
    return -length & 3


PADS = (b"", b"\0", b"\0\0", b"\0\0\0")


def lun_field(lun: int) -> int:
    """A LUN as the eight-byte field of a header: peripheral addressing below 256, flat space addressing
    below 16384 (SAM-5 4.7)."""
    if lun < 256:
        return lun << 48
    if lun < 16384:
        return (0x4000 | lun) << 48
    raise ValueError(f"LUN {lun}: 0 to 16383 can be addressed")


def lun_number(field: int) -> int | None:
    """The LUN in an eight-byte field, or None for a form we do not serve (other levels, well-known units)."""
    first = field >> 48
    if field & 0xFFFFFFFFFFFF:
        return None
    method = first >> 14
    if method == 0 and first >> 8 == 0:
        return first
    if method == 1:
        return first & 0x3FFF
    return None


def serial_less(left: int, right: int) -> bool:
    """left < right in 32-bit serial number arithmetic (RFC 1982, RFC 7143 4.2.2.1)."""
    return left != right and ((right - left) & 0xFFFFFFFF) < 0x80000000
