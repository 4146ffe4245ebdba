"""The command table is whole, and the fast path says what the slow one says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.scsi import commands
from blockdev.scsi.commands import COMMANDS, READ, WRITE, Direction, decode_read_write, expected_transfer
from blockdev.scsi.device import HANDLERS
from blockdev.scsi.operation import NeedData, Read, Write
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import ONE, medium_cdb, six, sixteen, ten, twelve, unit_over

CDB_LENGTH_OF_GROUP = {0: 6, 1: 10, 2: 10, 4: 16, 5: 12}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_command_table_row_is_sound(command: commands.Command) -> None:
    assert command.length == CDB_LENGTH_OF_GROUP[command.opcode >> 5]
    assert command.handler in HANDLERS
    assert command.usage[-1] == 0, "no bit of CONTROL is supported"
    assert sum(command.amount_at) < command.length
    if command.service_action is not None:
        assert command.usage[1] & 0x1F == command.service_action
    assert commands.find(command.usage) is command


def test_command_table_has_no_unused_handler() -> None:
    assert {command.handler for command in COMMANDS} == set(HANDLERS)


def test_command_table_has_each_code_once() -> None:
    codes = [(command.opcode, command.service_action) for command in COMMANDS]
    assert len(set(codes)) == len(codes)
    assert not set(commands.BY_OPCODE) & set(commands.BY_SERVICE_ACTION)
    assert codes == sorted(codes, key=lambda code: (code[0], code[1] or 0))


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (six(0x08, 0x1FFFFF, 0), (READ, 0x1FFFFF, 256, False)),
        (six(0x0A, 7, 3), (WRITE, 7, 3, False)),
        (ten(0x28, 0xFFFFFFFF, 0xFFFF), (READ, 0xFFFFFFFF, 0xFFFF, False)),
        (ten(0x2A, 1, 2, 0x08), (WRITE, 1, 2, True)),
        (ten(0x2A, 1, 2, 0x10), (WRITE, 1, 2, False)),
        (twelve(0xA8, 5, 0x10000), (READ, 5, 0x10000, False)),
        (twelve(0xAA, 5, 6, 0x18), (WRITE, 5, 6, True)),
        (sixteen(0x88, 1 << 40, 8, 0x02), (READ, 1 << 40, 8, False)),
        (sixteen(0x8A, (1 << 64) - 1, 0xFFFFFFFF), (WRITE, (1 << 64) - 1, 0xFFFFFFFF, False)),
        (ten(0x28, 0, 1) + bytes(6), (READ, 0, 1, False)),
        (ten(0x28, 0, 1, 0x20), None),  # RDPROTECT
        (ten(0x2A, 0, 1, 0xE0), None),  # WRPROTECT
        (ten(0x28, 0, 1, 0x04), None),  # RARC
        (ten(0x28, 0, 1, 0x01), None),
        (ten(0x28, 0, 1)[:9] + b"\x04", None),  # NACA
        (six(0x08, 0x200000, 1), None),
        (ten(0x2F, 0, 1), None),
        (ten(0x28, 0, 1)[:9], None),
        (b"", None),
        (b"\x08", None),
    ],
)
def test_decode_read_write(cdb: bytes, expected: tuple[int, int, int, bool] | None) -> None:
    assert decode_read_write(cdb) == expected
    assert decode_read_write(memoryview(cdb)) == expected


@given(
    st.sampled_from([0x08, 0x0A, 0x28, 0x2A, 0x88, 0x8A, 0xA8, 0xAA]),
    st.binary(min_size=15, max_size=15),
    st.integers(0, 3),
)
def test_decode_read_write_agrees_with_begin(opcode: int, rest: bytes, sparse: int) -> None:
    """What the fast path admits, the slow path does as well, with the same numbers."""
    mask = {0: 0xFF, 1: 0x1F, 2: 0x0F, 3: 0x00}[sparse]
    cdb = bytes((opcode, *(byte & mask for byte in rest)))
    unit = unit_over(RamTarget(1 << 40))
    admitted = unit.admit(cdb, ONE)
    outcome = unit.begin(cdb, ONE)
    if isinstance(outcome, NeedData):
        write = outcome.then(bytes(outcome.length))
        assert isinstance(write, Write)
        assert admitted == (WRITE, write.lba, write.count, write.fua)
    elif isinstance(outcome, Read):
        assert admitted is not None
        assert admitted[:3] == (READ, outcome.lba, outcome.count)
    else:
        assert admitted is None


@pytest.mark.parametrize(
    ("cdb", "direction", "length"),
    [
        (bytes(6), Direction.NONE, 0),
        (six(0x08, 0, 0), Direction.IN, 256 * 512),
        (ten(0x2A, 0, 3), Direction.OUT, 3 * 512),
        (ten(0x2A, 0, 0), Direction.NONE, 0),
        (sixteen(0x88, 0, 0x10000), Direction.IN, 0x10000 * 512),
        (medium_cdb(0x89, 0, 2), Direction.OUT, 2 * 2 * 512),
        (sixteen(0x93, 0, 100), Direction.OUT, 512),
        (sixteen(0x93, 0, 100, 0x01), Direction.NONE, 0),
        (ten(0x2F, 0, 4), Direction.NONE, 0),
        (ten(0x2F, 0, 4, 0x02), Direction.OUT, 4 * 512),
        (ten(0x2F, 0, 4, 0x06), Direction.OUT, 512),
        (ten(0x25, 0, 0), Direction.IN, 8),
        (bytes((0x12, 0, 0, 1, 2, 0)), Direction.IN, 258),
        (bytes((0x15, 0x10, 0, 0, 24, 0)), Direction.OUT, 24),
        (bytes((0x5F, 6, 0, 0, 0, 0, 0, 0, 24, 0)), Direction.OUT, 24),
        (b"\xff" * 16, Direction.NONE, 0),
        (ten(0x28, 0, 8)[:5], Direction.NONE, 0),
    ],
)
def test_expected_transfer(cdb: bytes, direction: Direction, length: int) -> None:
    assert expected_transfer(cdb, 512) == (direction, length)


@given(st.binary(max_size=20))
def test_expected_transfer_never_raises(cdb: bytes) -> None:
    direction, length = expected_transfer(cdb, 4096)
    assert (direction is Direction.NONE) == (length == 0)
