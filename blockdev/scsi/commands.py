"""The commands as one table, and what can be read off a CDB without a logical unit.

One rule: whatever is known of a command before it is carried out (its length, which bits may be set, how much data
moves which way, how a reservation treats it) stands in `COMMANDS` and nowhere else. Bits outside a command's usage
mask are refused, REPORT SUPPORTED OPERATION CODES reports the same masks, and docs/protocol/scsi.md is
drawn from the table. The clause of the standard has the name of the command. Next: `device.py`.
"""

from dataclasses import dataclass, field
from enum import Enum
from struct import Struct
from struct import error as StructError

from blockdev.scsi.operation import Buffer


class Direction(Enum):
    NONE = "-"
    IN = "in"
    OUT = "out"


class Amount(Enum):
    """How a CDB says how much data moves; the field it counts in is `Command.amount_at`."""

    NOTHING = "nothing"
    BYTES = "bytes"  # an allocation length or a parameter list length
    SECTORS = "sectors"
    TWICE = "twice the sectors"  # COMPARE AND WRITE: what to compare, then what to write
    ONE_SECTOR = "one sector"  # WRITE SAME, unless NDOB
    BYTCHK = "by BYTCHK"  # VERIFY
    EIGHT_BYTES = "8 bytes"


class Access(Enum):
    """What a reservation held by another nexus does to the command (SPC-4 and SBC-3, the tables of commands allowed in
    the presence of various reservations; SPC-2 for RESERVE(6))."""

    FREE = "always allowed"
    PROBE = "allowed under persistent reservations, refused under RESERVE(6)"
    READS = "as probe, and refused under exclusive access"
    WRITES = "as reads, and refused under write exclusive"


@dataclass(frozen=True, slots=True)
class Command:
    """One row. `usage` is the CDB usage data of REPORT SUPPORTED OPERATION CODES (SPC-4): a bit is set where the field
    is looked at; byte 0 is the operation code, and the SERVICE ACTION field holds the service action itself."""

    name: str
    usage: bytes
    direction: Direction
    amount: Amount
    amount_at: tuple[int, int]
    access: Access
    handler: str
    standard: str
    service_action: int | None = None
    reports_attention: bool = True
    """False: answered although a unit attention is pending, which stays pending (SAM-5, unit attention conditions)."""
    forbidden: int = field(init=False)
    """The bits that must be zero, as one number over the whole CDB."""

    def __post_init__(self) -> None:
        every_bit = (1 << 8 * len(self.usage)) - 1
        known = int.from_bytes(self.usage, "big")
        object.__setattr__(self, "forbidden", every_bit & ~known & ~(0xFF << 8 * (len(self.usage) - 1)))

    @property
    def opcode(self) -> int:
        return self.usage[0]

    @property
    def length(self) -> int:
        """Bytes of the CDB."""
        return len(self.usage)


def _row(
    name: str,
    usage: str,
    direction: Direction,
    amount: Amount,
    at: tuple[int, int],
    access: Access,
    handler: str,
    standard: str,
    *,
    service_action: int | None = None,
    reports_attention: bool = True,
) -> Command:
    return Command(
        name, bytes.fromhex(usage), direction, amount, at, access, handler, standard, service_action, reports_attention
    )


_NO, _IN, _OUT = Direction.NONE, Direction.IN, Direction.OUT
_NOTHING, _BYTES, _SECTORS = Amount.NOTHING, Amount.BYTES, Amount.SECTORS
_NOWHERE = (0, 0)
_FREE, _PROBE, _READS, _WRITES = Access.FREE, Access.PROBE, Access.READS, Access.WRITES

# In byte 1 of the medium access commands: RDPROTECT and WRPROTECT (bits 7-5) must be zero, for there is no protection
# information; DPO (4) and FUA (3) are known; FUA_NV (1) is obsolete, still sent, and means nothing here, as
# FUA does more. RARC (2) is not supported. GROUP NUMBER is accepted and has no effect. NACA must be zero.
COMMANDS: tuple[Command, ...] = (
    _row("TEST UNIT READY", "00 00 000000 00", _NO, _NOTHING, _NOWHERE, _PROBE, "test_unit_ready", "SPC-4"),
    _row(
        "REQUEST SENSE", "03 00 0000 ff 00", _IN, _BYTES, (4, 1), _FREE, "request_sense", "SPC-4",
        reports_attention=False,
    ),
    _row("READ(6)", "08 1f ffff ff 00", _IN, _SECTORS, (4, 1), _READS, "read", "SBC-2"),
    _row("WRITE(6)", "0a 1f ffff ff 00", _OUT, _SECTORS, (4, 1), _WRITES, "write", "SBC-2"),
    _row("INQUIRY", "12 01 ff ffff 00", _IN, _BYTES, (3, 2), _FREE, "inquiry", "SPC-4", reports_attention=False),
    _row("MODE SELECT(6)", "15 10 0000 ff 00", _OUT, _BYTES, (4, 1), _WRITES, "mode_select", "SPC-4"),
    _row("RESERVE(6)", "16 00 000000 00", _NO, _NOTHING, _NOWHERE, _PROBE, "reserve", "SPC-2"),
    _row("RELEASE(6)", "17 00 000000 00", _NO, _NOTHING, _NOWHERE, _FREE, "release", "SPC-2"),
    _row("MODE SENSE(6)", "1a 08 ff ff ff 00", _IN, _BYTES, (4, 1), _READS, "mode_sense", "SPC-4"),
    _row("START STOP UNIT", "1b 01 00 0f f7 00", _NO, _NOTHING, _NOWHERE, _WRITES, "start_stop", "SBC-3"),
    _row(
        "PREVENT ALLOW MEDIUM REMOVAL", "1e 00 0000 03 00", _NO, _NOTHING, _NOWHERE, _PROBE, "prevent_allow",
        "SBC-3",
    ),
    _row(
        "READ CAPACITY(10)", "25 00 00000000 0000 00 00", _IN, Amount.EIGHT_BYTES, _NOWHERE, _FREE, "read_capacity_10",
        "SBC-3",
    ),
    _row("READ(10)", "28 1a ffffffff 1f ffff 00", _IN, _SECTORS, (7, 2), _READS, "read", "SBC-3"),
    _row("WRITE(10)", "2a 1a ffffffff 1f ffff 00", _OUT, _SECTORS, (7, 2), _WRITES, "write", "SBC-3"),
    _row(
        "WRITE AND VERIFY(10)", "2e 12 ffffffff 1f ffff 00", _OUT, _SECTORS, (7, 2), _WRITES, "write_and_verify",
        "SBC-3",
    ),
    _row("VERIFY(10)", "2f 16 ffffffff 1f ffff 00", _OUT, Amount.BYTCHK, (7, 2), _READS, "verify", "SBC-3"),
    _row("PRE-FETCH(10)", "34 02 ffffffff 1f ffff 00", _NO, _NOTHING, _NOWHERE, _READS, "prefetch", "SBC-3"),
    _row(
        "SYNCHRONIZE CACHE(10)", "35 06 ffffffff 1f ffff 00", _NO, _NOTHING, _NOWHERE, _WRITES, "synchronize_cache",
        "SBC-3",
    ),
    _row(
        "READ DEFECT DATA(10)", "37 00 1f 00000000 ffff 00", _IN, _BYTES, (7, 2), _READS, "read_defect_data_10",
        "SBC-3",
    ),
    _row(
        "WRITE SAME(10)", "41 08 ffffffff 1f ffff 00", _OUT, Amount.ONE_SECTOR, _NOWHERE, _WRITES, "write_same",
        "SBC-3",
    ),
    _row("UNMAP", "42 00 00000000 1f ffff 00", _OUT, _BYTES, (7, 2), _WRITES, "unmap", "SBC-3"),
    _row("LOG SENSE", "4d 00 ff ff 00 ffff ffff 00", _IN, _BYTES, (7, 2), _READS, "log_sense", "SPC-4"),
    _row("MODE SELECT(10)", "55 10 0000000000 ffff 00", _OUT, _BYTES, (7, 2), _WRITES, "mode_select", "SPC-4"),
    _row("RESERVE(10)", "56 00 0000000000 0000 00", _NO, _NOTHING, _NOWHERE, _PROBE, "reserve", "SPC-2"),
    _row("RELEASE(10)", "57 00 0000000000 0000 00", _NO, _NOTHING, _NOWHERE, _FREE, "release", "SPC-2"),
    _row("MODE SENSE(10)", "5a 18 ff ff 000000 ffff 00", _IN, _BYTES, (7, 2), _READS, "mode_sense", "SPC-4"),
    *(
        _row(
            f"PERSISTENT RESERVE IN: {name}", f"5e {action:02x} 0000000000 ffff 00", _IN, _BYTES, (7, 2), _PROBE,
            "persistent_reserve_in", "SPC-4", service_action=action,
        )
        for action, name in (
            (0x00, "READ KEYS"),
            (0x01, "READ RESERVATION"),
            (0x02, "REPORT CAPABILITIES"),
            (0x03, "READ FULL STATUS"),
        )
    ),
    *(
        _row(
            f"PERSISTENT RESERVE OUT: {name}", f"5f {action:02x} ff 0000 ffffffff 00", _OUT, _BYTES, (5, 4), _PROBE,
            "persistent_reserve_out", "SPC-4", service_action=action,
        )
        for action, name in (
            (0x00, "REGISTER"),
            (0x01, "RESERVE"),
            (0x02, "RELEASE"),
            (0x03, "CLEAR"),
            (0x04, "PREEMPT"),
            (0x05, "PREEMPT AND ABORT"),
            (0x06, "REGISTER AND IGNORE EXISTING KEY"),
        )
    ),
    _row(
        "EXTENDED COPY(LID1)", "83 00 0000000000000000 ffffffff 00 00", _OUT, _BYTES, (10, 4), _WRITES,
        "extended_copy", "SPC-4", service_action=0x00,
    ),
    *(
        _row(
            f"RECEIVE COPY RESULTS: {name}", f"84 {action:02x} ff 00000000000000 ffffffff 00 00", _IN, _BYTES, (10, 4),
            _WRITES, "receive_copy_results", "SPC-4", service_action=action,
        )
        for action, name in (
            (0x00, "COPY STATUS(LID1)"),
            (0x03, "OPERATING PARAMETERS"),
            (0x04, "FAILED SEGMENT DETAILS(LID1)"),
        )
    ),
    _row("READ(16)", "88 1a ffffffffffffffff ffffffff 1f 00", _IN, _SECTORS, (10, 4), _READS, "read", "SBC-3"),
    _row(
        "COMPARE AND WRITE", "89 1a ffffffffffffffff 000000 ff 1f 00", _OUT, Amount.TWICE, (13, 1), _WRITES,
        "compare_and_write", "SBC-3",
    ),
    _row("WRITE(16)", "8a 1a ffffffffffffffff ffffffff 1f 00", _OUT, _SECTORS, (10, 4), _WRITES, "write", "SBC-3"),
    _row(
        "ORWRITE(16)", "8b 1a ffffffffffffffff ffffffff 1f 00", _OUT, _SECTORS, (10, 4), _WRITES, "orwrite",
        "SBC-3",
    ),
    _row(
        "WRITE AND VERIFY(16)", "8e 12 ffffffffffffffff ffffffff 1f 00", _OUT, _SECTORS, (10, 4), _WRITES,
        "write_and_verify", "SBC-3",
    ),
    _row(
        "VERIFY(16)", "8f 16 ffffffffffffffff ffffffff 1f 00", _OUT, Amount.BYTCHK, (10, 4), _READS, "verify",
        "SBC-3",
    ),
    _row(
        "PRE-FETCH(16)", "90 02 ffffffffffffffff ffffffff 1f 00", _NO, _NOTHING, _NOWHERE, _READS, "prefetch",
        "SBC-3",
    ),
    _row(
        "SYNCHRONIZE CACHE(16)", "91 06 ffffffffffffffff ffffffff 1f 00", _NO, _NOTHING, _NOWHERE, _WRITES,
        "synchronize_cache", "SBC-3",
    ),
    _row(
        "WRITE SAME(16)", "93 09 ffffffffffffffff ffffffff 1f 00", _OUT, Amount.ONE_SECTOR, _NOWHERE, _WRITES,
        "write_same", "SBC-3",
    ),
    _row(
        "WRITE ATOMIC(16)", "9c 18 ffffffffffffffff 0000 ffff 1f 00", _OUT, _SECTORS, (12, 2), _WRITES, "write_atomic",
        "SBC-4",
    ),
    _row(
        "READ CAPACITY(16)", "9e 10 0000000000000000 ffffffff 00 00", _IN, _BYTES, (10, 4), _FREE, "read_capacity_16",
        "SBC-3", service_action=0x10,
    ),
    _row(
        "GET LBA STATUS", "9e 12 ffffffffffffffff ffffffff 00 00", _IN, _BYTES, (10, 4), _READS, "get_lba_status",
        "SBC-3", service_action=0x12,
    ),
    _row(
        "REPORT LUNS", "a0 00 ff 000000 ffffffff 00 00", _IN, _BYTES, (6, 4), _FREE, "report_luns", "SPC-4",
        reports_attention=False,
    ),
    _row(
        "REPORT TARGET PORT GROUPS", "a3 2a 00000000 ffffffff 00 00", _IN, _BYTES, (6, 4), _FREE,
        "report_target_port_groups", "SPC-4", service_action=0x0A,
    ),
    _row(
        "REPORT SUPPORTED OPERATION CODES", "a3 0c 87 ff ffff ffffffff 00 00", _IN, _BYTES, (6, 4), _READS,
        "report_supported_operation_codes", "SPC-4", service_action=0x0C,
    ),
    _row(
        "SET TARGET PORT GROUPS", "a4 0a 00000000 ffffffff 00 00", _OUT, _BYTES, (6, 4), _WRITES,
        "set_target_port_groups", "SPC-4", service_action=0x0A,
    ),
    _row("READ(12)", "a8 1a ffffffff ffffffff 1f 00", _IN, _SECTORS, (6, 4), _READS, "read", "SBC-3"),
    _row("WRITE(12)", "aa 1a ffffffff ffffffff 1f 00", _OUT, _SECTORS, (6, 4), _WRITES, "write", "SBC-3"),
    _row(
        "WRITE AND VERIFY(12)", "ae 12 ffffffff ffffffff 1f 00", _OUT, _SECTORS, (6, 4), _WRITES, "write_and_verify",
        "SBC-3",
    ),
    _row("VERIFY(12)", "af 16 ffffffff ffffffff 1f 00", _OUT, Amount.BYTCHK, (6, 4), _READS, "verify", "SBC-3"),
    _row(
        "READ DEFECT DATA(12)", "b7 1f ffffffff ffffffff 00 00", _IN, _BYTES, (6, 4), _READS, "read_defect_data_12",
        "SBC-3",
    ),
)  # fmt: skip

BY_OPCODE: dict[int, Command] = {row.opcode: row for row in COMMANDS if row.service_action is None}
"""Commands without service actions."""
BY_SERVICE_ACTION: dict[int, dict[int, Command]] = {}
"""Operation code -> service action -> command."""
for _command in COMMANDS:
    if _command.service_action is not None:
        BY_SERVICE_ACTION.setdefault(_command.opcode, {})[_command.service_action] = _command


def find(cdb: Buffer) -> Command | None:
    """The row for this CDB, or None if there is no such operation code or service action."""
    if not cdb:
        return None
    command = BY_OPCODE.get(cdb[0])
    if command is None and len(cdb) > 1:
        command = BY_SERVICE_ACTION.get(cdb[0], {}).get(cdb[1] & 0x1F)
    return command


def misused_bit(command: Command, cdb: Buffer) -> tuple[int, int] | None:
    """(byte, highest bit) of the first set bit that the usage mask does not know; None if all is well.
    The CDB must be at least `command.length` bytes long."""
    if not int.from_bytes(cdb[: command.length], "big") & command.forbidden:
        return None
    for index in range(1, command.length):
        wrong = cdb[index] & ~command.usage[index] & 0xFF
        if wrong:
            return index, wrong.bit_length() - 1
    return None


_LBA_COUNT_10 = Struct(">IxH").unpack_from
_LBA_COUNT_12 = Struct(">II").unpack_from
_LBA_COUNT_16 = Struct(">QI").unpack_from


def lba_and_count(cdb: Buffer) -> tuple[int, int]:
    """First sector and number of sectors of a medium access CDB of 6, 10, 12 or 16 bytes, by its group code
    (COMPARE AND WRITE apart: its count is one byte wide, at 13). Raises struct.error or IndexError if it is cut off."""
    group = cdb[0] >> 5
    if group == 0:
        # READ(6), WRITE(6): 21 bits of address, and 0 stands for 256 (SBC-2).
        return (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3], cdb[4] or 256
    if group in (1, 2):
        lba, count = _LBA_COUNT_10(cdb, 2)
    elif group == 5:
        lba, count = _LBA_COUNT_12(cdb, 2)
    else:
        lba, count = _LBA_COUNT_16(cdb, 2)
    return lba, count


def in_range(lba: int, count: int, sector_count: int) -> bool:
    """Whether `count` sectors from `lba` lie on the volume. A transfer of nothing may point just past the end."""
    return lba + count <= sector_count


READ = 0
WRITE = 1
"""Kinds that `decode_read_write` tells apart."""

_READ_WRITE_10 = Struct(">BBIBHB").unpack_from
_READ_WRITE_12 = Struct(">BBIIBB").unpack_from
_READ_WRITE_16 = Struct(">BBQIBB").unpack_from
_REFUSED = 0xE5  # byte 1: all but DPO, FUA and FUA_NV


def decode_read_write(cdb: Buffer) -> tuple[int, int, int, bool] | None:
    """The fast path: (READ or WRITE, lba, count, fua) for a READ or WRITE of 6, 10, 12 or 16 bytes, None for every
    other command and for one with a bit set that must not be (`LogicalUnit.begin` then says what is wrong).
    Nothing is checked against a volume. Never raises."""
    try:
        opcode = cdb[0]
        if opcode == 0x28 or opcode == 0x2A:
            _, flags, lba, group, count, control = _READ_WRITE_10(cdb)
        elif opcode == 0x88 or opcode == 0x8A:
            _, flags, lba, count, group, control = _READ_WRITE_16(cdb)
        elif opcode == 0xA8 or opcode == 0xAA:
            _, flags, lba, count, group, control = _READ_WRITE_12(cdb)
        elif opcode == 0x08 or opcode == 0x0A:
            if cdb[1] & 0xE0 or cdb[5]:
                return None
            return opcode >> 1 & 1, (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3], cdb[4] or 256, False
        else:
            return None
    except (StructError, IndexError):
        return None
    if flags & _REFUSED or group & 0xE0 or control:
        return None
    return opcode >> 1 & 1, lba, count, flags & 0x08 != 0


def expected_transfer(cdb: Buffer, sector_bytes: int) -> tuple[Direction, int]:
    """Which way and how many bytes the CDB alone says will move; (NONE, 0) for an unknown or cut-off CDB. For data-in
    this is the most that can come (an allocation length); a door uses it for residual counts and for judging
    unsolicited data. Never raises."""
    command = find(cdb)
    if command is None or len(cdb) < command.length:
        return Direction.NONE, 0
    offset, width = command.amount_at
    number = int.from_bytes(cdb[offset : offset + width], "big")
    match command.amount:
        case Amount.NOTHING:
            length = 0
        case Amount.BYTES:
            length = number
        case Amount.SECTORS:
            length = (number or 256 if command.length == 6 else number) * sector_bytes
        case Amount.TWICE:
            length = 2 * number * sector_bytes
        case Amount.ONE_SECTOR:
            no_data_out = command.length == 16 and cdb[1] & 0x01
            length = 0 if no_data_out else sector_bytes
        case Amount.BYTCHK:
            bytchk = cdb[1] >> 1 & 3
            length = {0: 0, 1: number * sector_bytes, 2: 0, 3: sector_bytes if number else 0}[bytchk]
        case Amount.EIGHT_BYTES:
            length = 8
    return (command.direction, length) if length else (Direction.NONE, 0)
