"""INQUIRY and what else tells an initiator who is there."""

from uuid import UUID

import pytest

from blockdev.scsi import inquiry
from blockdev.scsi.device import LogicalUnit, absent
from blockdev.scsi.operation import Status
from blockdev.scsi.ports import Port
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import ONE, data_of, inquiry_cdb, pointed_at, run, said, unit_over


def test_inquiry_standard() -> None:
    data = data_of(run(unit_over(), inquiry_cdb()))
    assert len(data) == 96
    assert data[0] == 0x00
    assert data[2:5] == bytes((6, 0x12, 91))
    assert data[8:36] == b"BUCKETWKS3 BLOCK VOLUME 0.1 "
    assert data[58:66].hex() == "00a00960046004c0"


@pytest.mark.parametrize("allocation", [0, 4, 5, 36, 96, 511, 512])
def test_inquiry_is_cut_to_the_allocation_length(allocation: int) -> None:
    whole = data_of(run(unit_over(), inquiry_cdb()))
    assert data_of(run(unit_over(), inquiry_cdb(allocation=allocation))) == whole[:allocation]


def test_inquiry_page_code_without_evpd() -> None:
    response = run(unit_over(), bytes((0x12, 0, 1, 0, 255, 0)))
    assert said(response) is Condition.INVALID_FIELD_IN_CDB
    assert pointed_at(response) == ("cdb", 2, None)


def test_inquiry_unknown_page() -> None:
    assert said(run(unit_over(), inquiry_cdb(0xC7))) is Condition.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("code", sorted(inquiry.PAGES))
def test_inquiry_page_header(code: int) -> None:
    data = data_of(run(unit_over(), inquiry_cdb(code)))
    assert data[:2] == bytes((0, code))
    assert int.from_bytes(data[2:4], "big") == len(data) - 4


def test_inquiry_supported_pages_are_sorted_and_complete() -> None:
    listed = list(data_of(run(unit_over(), inquiry_cdb(0x00)))[4:])
    assert listed == sorted(inquiry.PAGES)


def test_inquiry_serial_number_is_the_identity() -> None:
    target = RamTarget()
    assert data_of(run(unit_over(target), inquiry_cdb(0x80)))[4:] == target.identity.hex.encode()


def test_inquiry_identification_descriptors() -> None:
    target = RamTarget(identity=UUID("12345678-9abc-4def-8123-456789abcdef"))
    unit = LogicalUnit(target, lun=0, port=3, port_group=9)
    data = data_of(run(unit, inquiry_cdb(0x83)))[4:]
    found = []
    while data:
        found.append((data[0] & 0x0F, data[1], data[4 : 4 + data[3]]))
        data = data[4 + data[3] :]
    assert found[1:] == [
        (2, 0x01, b"BUCKETWK" + target.identity.hex.encode()),
        (1, 0x14, bytes((0, 0, 0, 3))),
        (1, 0x15, bytes((0, 0, 0, 9))),
    ]
    code_set, kind, name = found[0]
    assert (code_set, kind, len(name)) == (1, 0x03, 16)
    assert name.hex() == "6024b57" + target.identity.hex[-25:]


def test_inquiry_name_is_stable_and_distinct() -> None:
    one, two = UUID(int=1 << 96), UUID(int=2 << 96)
    assert inquiry.naa(one) == inquiry.naa(UUID(int=1 << 96))
    assert inquiry.naa(one) != inquiry.naa(two)


@pytest.mark.parametrize(("sector_bytes", "exponent", "compare"), [(512, 3, 128), (4096, 0, 16)])
def test_inquiry_limits_and_capacity_for_sector_size(sector_bytes: int, exponent: int, compare: int) -> None:
    unit = unit_over(RamTarget(4096, sector_bytes=sector_bytes))
    limits = data_of(run(unit, inquiry_cdb(0xB0)))
    assert len(limits) == 64
    assert limits[4] == 1
    assert limits[5] == compare
    assert int.from_bytes(limits[8:12], "big") * sector_bytes == 16 << 20
    assert int.from_bytes(limits[20:24], "big") == 0xFFFFFFFF
    assert int.from_bytes(limits[24:28], "big") == 256
    assert int.from_bytes(limits[28:32], "big") * sector_bytes == 64 << 10
    assert limits[32] == 0x80
    assert int.from_bytes(limits[36:44], "big") * sector_bytes == 16 << 20
    capacity = data_of(run(unit, bytes((0x9E, 0x10, *bytes(8), 0, 0, 0, 32, 0, 0))))
    assert len(capacity) == 32
    assert int.from_bytes(capacity[:8], "big") == 4095
    assert int.from_bytes(capacity[8:12], "big") == sector_bytes
    assert capacity[13] == exponent
    assert capacity[14] & 0xC0 == 0xC0


def test_inquiry_provisioning_is_thin_and_reads_zeros() -> None:
    data = data_of(run(unit_over(), inquiry_cdb(0xB2)))
    assert data[5] == 0xE4
    assert data[6] == 2


def test_read_capacity_10_of_a_large_volume() -> None:
    assert data_of(run(unit_over(RamTarget(1 << 33)), bytes((0x25, *bytes(9)))))[:4] == b"\xff\xff\xff\xff"
    assert data_of(run(unit_over(RamTarget(1 << 32)), bytes((0x25, *bytes(9)))))[:4] == b"\xff\xff\xff\xff"
    assert data_of(run(unit_over(RamTarget(100)), bytes((0x25, *bytes(9))))).hex() == "0000006300000200"


@pytest.mark.parametrize("allocation", range(0, 33, 8))
def test_read_capacity_16_allocation_length(allocation: int) -> None:
    cdb = bytes((0x9E, 0x10, *bytes(8), 0, 0, 0, allocation, 0, 0))
    assert len(data_of(run(unit_over(), cdb))) == allocation


def test_report_luns_lists_the_targets_units() -> None:
    unit = LogicalUnit(RamTarget(), lun=0, luns=lambda: [300, 0, 1])
    data = data_of(run(unit, bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0))))
    assert data.hex() == "0000001800000000" + "0000000000000000" + "0001000000000000" + "412c000000000000"
    assert data_of(run(unit, bytes((0xA0, 0, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0)))) == bytes(8)
    assert said(run(unit, bytes((0xA0, 0, 9, 0, 0, 0, 0, 0, 2, 0, 0, 0)))) is Condition.INVALID_FIELD_IN_CDB


def test_report_target_port_groups() -> None:
    unit = LogicalUnit(RamTarget(), lun=0, port=2, port_group=5)
    plain = bytes((0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))
    extended = bytes((0xA3, 0x2A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))
    assert data_of(run(unit, plain)).hex() == "0000000c" + "0001000500000001" + "00000002"
    assert data_of(run(unit, extended)).hex() == "00000010" + "10000000" + "0001000500000001" + "00000002"


TWO_PORTS = (
    Port(1, 1, "0001", "iqn.2026-01.test:disk,t,0x0001"),
    Port(2, 1, "0002", "iqn.2026-01.test:disk,t,0x0002"),
    Port(3, 7, "0003", "iqn.2026-01.test:disk,t,0x0003"),
)


def test_report_target_port_groups_of_several_ports() -> None:
    unit = LogicalUnit(RamTarget(), lun=0, ports=TWO_PORTS)
    data = data_of(run(unit, bytes((0xA3, 0x0A, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))))
    assert data.hex() == "0000001c" + "0001000100000002" + "0000000100000002" + "0001000700000001" + "00000003"


def test_inquiry_tells_the_port_it_came_through() -> None:
    unit = LogicalUnit(RamTarget(), lun=0, ports=TWO_PORTS)
    for port in TWO_PORTS:
        page = data_of(run(unit, inquiry_cdb(0x83), nexus=f"{ONE},t,0x{port.tag}"))
        assert bytes((1, 0x14, 0, 4, 0, 0, 0, port.identifier)) in page
        assert bytes((1, 0x15, 0, 4, 0, 0, 0, port.group)) in page
        assert b"\x53\x98\0\x20" + port.name.encode() + b"\0\0" in page
        assert b"\x53\xa8\0\x18" + b"iqn.2026-01.test:disk\0\0\0" in page


def test_inquiry_scsi_ports() -> None:
    assert data_of(run(unit_over(), inquiry_cdb(0x88))).hex() == "0088000c" + "000000010000000000000000"
    page = data_of(run(LogicalUnit(RamTarget(), lun=0, ports=TWO_PORTS), inquiry_cdb(0x88)))[4:]
    found = []
    while page:
        length = int.from_bytes(page[10:12], "big")
        found.append((int.from_bytes(page[2:4], "big"), page[16 : 12 + length].rstrip(b"\0").decode()))
        page = page[12 + length :]
    assert found == [(port.identifier, port.name) for port in TWO_PORTS]


def set_groups(*descriptors: tuple[int, int]) -> bytes:
    return bytes(4) + b"".join(bytes((state, 0)) + group.to_bytes(2, "big") for state, group in descriptors)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", Status.GOOD),
        (set_groups(), Status.GOOD),
        (set_groups((0, 1), (0, 7)), Status.GOOD),
        (set_groups((0, 1), (0, 2)), ("data", 10, None)),
        (set_groups((0, 1), (1, 7)), ("data", 8, 3)),
        (set_groups((2, 1)), ("data", 4, 3)),
        (set_groups((0x0E, 1)), ("data", 4, 3)),
        (bytes(3), Condition.PARAMETER_LIST_LENGTH_ERROR),
        (bytes(6), Condition.PARAMETER_LIST_LENGTH_ERROR),
    ],
)
def test_set_target_port_groups(data: bytes, expected: object) -> None:
    unit = LogicalUnit(RamTarget(), lun=0, ports=TWO_PORTS)
    response = run(unit, bytes((0xA4, 0x0A, 0, 0, 0, 0)) + len(data).to_bytes(4, "big") + bytes(2), data)
    if isinstance(expected, tuple):
        assert said(response) is Condition.INVALID_FIELD_IN_PARAMETER_LIST
        assert pointed_at(response) == expected
    else:
        assert said(response) is expected


def test_standard_inquiry_says_that_groups_can_be_set() -> None:
    assert data_of(run(unit_over(), inquiry_cdb()))[5] & 0x30 == 0x30


def test_absent_unit() -> None:
    assert data_of(absent(inquiry_cdb(), [0, 4]))[0] == 0x7F
    assert data_of(absent(bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0)), [0, 4]))[3] == 16
    assert data_of(absent(bytes((3, 0, 0, 0, 18, 0)), []))[12] == 0x25
    assert said(absent(bytes(6), [])) is Condition.LOGICAL_UNIT_NOT_SUPPORTED
    assert said(absent(b"", [])) is Condition.LOGICAL_UNIT_NOT_SUPPORTED
    assert said(absent(bytes((3, 1, 0, 0, 18, 0)), [])) is Condition.INVALID_FIELD_IN_CDB


def test_test_unit_ready() -> None:
    assert said(run(unit_over(), bytes(6))) is Status.GOOD
