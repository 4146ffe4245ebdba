"""MODE SENSE and MODE SELECT."""

import pytest

from blockdev.scsi.operation import Status
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import data_of, pointed_at, run, said, unit_over


def sense_6(page: int, *, control: int = 0, subpage: int = 0, flags: int = 0, allocation: int = 255) -> bytes:
    return bytes((0x1A, flags, control << 6 | page, subpage, allocation, 0))


def sense_10(page: int, *, control: int = 0, flags: int = 0) -> bytes:
    return bytes((0x5A, flags, control << 6 | page, 0, 0, 0, 0, 4, 0, 0))


def select_6(length: int, flags: int = 0x10) -> bytes:
    return bytes((0x15, flags, 0, 0, length, 0))


def test_mode_sense_6_all_pages() -> None:
    data = data_of(run(unit_over(), sense_6(0x3F)))
    assert data[0] == len(data) - 1
    assert data[2] == 0x10, "DPOFUA, not write protected"
    assert data[3] == 8
    assert data[4:12].hex() == "0000080000000200"
    codes, at = [], 12
    while at < len(data):
        codes.append(data[at])
        at += 2 + data[at + 1]
    assert codes == [0x01, 0x08, 0x0A, 0x1C]
    assert at == len(data)


def test_mode_sense_caching_page_has_write_cache_on() -> None:
    data = data_of(run(unit_over(), sense_6(0x08, flags=0x08)))
    assert data[3] == 0
    assert data[4:7] == bytes((0x08, 0x12, 0x04))


def test_mode_sense_read_only() -> None:
    assert data_of(run(unit_over(RamTarget(read_only=True)), sense_6(0x0A)))[2] == 0x90


def test_mode_sense_nothing_is_changeable() -> None:
    current = data_of(run(unit_over(), sense_6(0x3F, flags=8)))
    changeable = data_of(run(unit_over(), sense_6(0x3F, control=1, flags=8)))
    default = data_of(run(unit_over(), sense_6(0x3F, control=2, flags=8)))
    assert default == current
    at = 4
    while at < len(changeable):
        end = at + 2 + changeable[at + 1]
        assert not any(changeable[at + 2 : end])
        at = end


def test_mode_sense_10_long_block_descriptor() -> None:
    data = data_of(run(unit_over(RamTarget(1 << 33)), sense_10(0x08, flags=0x10)))
    assert int.from_bytes(data[:2], "big") == len(data) - 2
    assert data[4] == 1
    assert data[6:8] == b"\0\x10"
    assert data[8:24].hex() == "0000000200000000" + "00000000" + "00000200"
    short = data_of(run(unit_over(RamTarget(1 << 33)), sense_10(0x08)))
    assert short[8:12] == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    ("cdb", "expected", "pointer"),
    [
        (sense_6(0x3F, control=3), Condition.SAVING_PARAMETERS_NOT_SUPPORTED, None),
        (sense_6(0x02), Condition.INVALID_FIELD_IN_CDB, ("cdb", 2, 5)),
        (sense_6(0x08, subpage=1), Condition.INVALID_FIELD_IN_CDB, ("cdb", 3, None)),
        (sense_6(0x3F, subpage=0xFF), Status.GOOD, None),
        (sense_6(0x3F, flags=0x01), Condition.INVALID_FIELD_IN_CDB, ("cdb", 1, 0)),
    ],
)
def test_mode_sense_refusals(cdb: bytes, expected: object, pointer: object) -> None:
    response = run(unit_over(), cdb)
    assert said(response) is expected
    if pointer is not None:
        assert pointed_at(response) == pointer


def test_mode_sense_allocation_length() -> None:
    assert len(data_of(run(unit_over(), sense_6(0x3F, allocation=4)))) == 4


@pytest.mark.parametrize("flags", [0x00, 0x08])
def test_mode_select_accepts_what_mode_sense_said(flags: int) -> None:
    unit = unit_over()
    given = bytearray(data_of(run(unit, sense_6(0x3F, flags=flags))))
    given[0] = 0
    assert said(run(unit, select_6(len(given)), bytes(given))) is Status.GOOD
    ten = data_of(run(unit, sense_10(0x3F, flags=0x10)))
    cdb = bytes((0x55, 0x10, 0, 0, 0, 0, 0)) + len(ten).to_bytes(2, "big") + b"\0"
    assert said(run(unit, cdb, ten)) is Status.GOOD


CACHING_OFF = bytes(4) + bytes((0x08, 0x12, 0x00)) + bytes(17)


@pytest.mark.parametrize(
    ("cdb", "data", "expected", "pointer"),
    [
        (select_6(0), b"", Status.GOOD, None),
        (select_6(0, flags=0x11), b"", Condition.INVALID_FIELD_IN_CDB, ("cdb", 1, 0)),
        (select_6(24, flags=0), CACHING_OFF, Condition.INVALID_FIELD_IN_CDB, ("cdb", 1, 4)),
        (select_6(24), CACHING_OFF, Condition.INVALID_FIELD_IN_PARAMETER_LIST, ("data", 6, 2)),
        (select_6(3), bytes(3), Condition.PARAMETER_LIST_LENGTH_ERROR, None),
        (select_6(5), bytes(4) + b"\x08", Condition.PARAMETER_LIST_LENGTH_ERROR, None),
        (select_6(6), bytes(4) + b"\x08\x11", Condition.INVALID_FIELD_IN_PARAMETER_LIST, ("data", 5, None)),
        (select_6(7), bytes(4) + b"\x08\x12\x04", Condition.PARAMETER_LIST_LENGTH_ERROR, None),
        (select_6(6), bytes(4) + b"\x02\x00", Condition.INVALID_FIELD_IN_PARAMETER_LIST, ("data", 4, 5)),
        (select_6(4), b"\0\x01\0\0", Condition.INVALID_FIELD_IN_PARAMETER_LIST, ("data", 1, None)),
        (select_6(4), b"\0\0\0\x07", Condition.INVALID_FIELD_IN_PARAMETER_LIST, ("data", 3, None)),
        (select_6(8), b"\0\0\0\x08" + bytes(4), Condition.PARAMETER_LIST_LENGTH_ERROR, None),
        (
            select_6(12),
            b"\0\0\0\x08" + bytes(5) + b"\x00\x10\x00",
            Condition.INVALID_FIELD_IN_PARAMETER_LIST,
            ("data", 9, None),
        ),
        (
            select_6(12),
            b"\0\0\0\x08" + b"\0\0\0\x01" + b"\0\0\x02\0",
            Condition.INVALID_FIELD_IN_PARAMETER_LIST,
            ("data", 4, None),
        ),
        (select_6(12), b"\0\0\0\x08" + bytes(4) + b"\0\0\x02\0", Status.GOOD, None),
    ],
)
def test_mode_select_judges(cdb: bytes, data: bytes, expected: object, pointer: object) -> None:
    response = run(unit_over(), cdb, data)
    assert said(response) is expected
    if pointer is not None:
        assert pointed_at(response) == pointer
