"""Block commands: what they refuse, and what they do to a volume."""

from typing import Any

import pytest

from blockdev.scsi.operation import NeedData, Status
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import (
    ONE,
    data_of,
    information,
    medium_cdb,
    pointed_at,
    run,
    said,
    six,
    sixteen,
    ten,
    unit_over,
    unmap_cdb,
    unmap_list,
)

SECTORS = 2048
READS = [0x08, 0x28, 0x88, 0xA8]
WRITES = [0x0A, 0x2A, 0x8A, 0xAA]
WRITES_AND_VERIFIES = [0x2E, 0x8E, 0xAE]
VERIFIES = [0x2F, 0x8F, 0xAF]
PREFETCHES = [0x34, 0x90]
SYNCHRONIZES = [0x35, 0x91]
WRITE_SAMES = [0x41, 0x93]
ORWRITE = 0x8B
COMPARE_AND_WRITE = 0x89
WRITE_ATOMIC = 0x9C
OTHERS = [
    *WRITES_AND_VERIFIES,
    *VERIFIES,
    *PREFETCHES,
    *SYNCHRONIZES,
    *WRITE_SAMES,
    ORWRITE,
    COMPARE_AND_WRITE,
    WRITE_ATOMIC,
]
RANGED = [*READS, *WRITES, *OTHERS]
WRITING = [*WRITES, *WRITES_AND_VERIFIES, *WRITE_SAMES, ORWRITE, COMPARE_AND_WRITE, WRITE_ATOMIC]
A, B, C = bytes([0xA5]) * 512, bytes([0x5A]) * 512, bytes(range(256)) * 2


def started(target: RamTarget, cdb: bytes) -> Any:
    return unit_over(target).begin(cdb, ONE)


@pytest.mark.parametrize("opcode", RANGED, ids=lambda code: f"{code:02X}h")
@pytest.mark.parametrize(("lba", "count"), [(SECTORS, 1), (SECTORS - 1, 2), (SECTORS + 1, 1), (0x1FFFFF, 1)])
def test_medium_access_out_of_range(opcode: int, lba: int, count: int) -> None:
    assert said(started(RamTarget(SECTORS), medium_cdb(opcode, lba, count))) is Condition.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("opcode", [code for code in RANGED if code >> 5 == 4], ids=lambda code: f"{code:02X}h")
@pytest.mark.parametrize("lba", [1 << 63, (1 << 64) - 1])
def test_medium_access_far_out_of_range(opcode: int, lba: int) -> None:
    assert said(started(RamTarget(SECTORS), medium_cdb(opcode, lba, 1))) is Condition.LBA_OUT_OF_RANGE


@pytest.mark.parametrize("opcode", [code for code in RANGED if code >> 5], ids=lambda code: f"{code:02X}h")
def test_medium_access_of_nothing(opcode: int) -> None:
    """Good within the volume and just past its end; out of range beyond. WRITE SAME of nothing is refused (WSNZ)."""
    if opcode in WRITE_SAMES:
        response = started(RamTarget(SECTORS), medium_cdb(opcode, 0, 0))
        assert said(response) is Condition.INVALID_FIELD_IN_CDB
        return
    for lba in (0, SECTORS):
        target = RamTarget(SECTORS)
        assert said(run(unit_over(target), medium_cdb(opcode, lba, 0))) is Status.GOOD
        assert not [call for call in target.calls if call[0] == "write"]
    assert said(started(RamTarget(SECTORS), medium_cdb(opcode, SECTORS + 1, 0))) is Condition.LBA_OUT_OF_RANGE


@pytest.mark.parametrize(
    "opcode", [c for c in RANGED if c >> 5 and c not in PREFETCHES + SYNCHRONIZES], ids=lambda code: f"{code:02X}h"
)
@pytest.mark.parametrize("protect", range(1, 8))
def test_medium_access_protection_field_is_refused(opcode: int, protect: int) -> None:
    response = started(RamTarget(SECTORS), medium_cdb(opcode, 0, 1, protect << 5))
    assert said(response) is Condition.INVALID_FIELD_IN_CDB
    assert pointed_at(response) == ("cdb", 1, 4 + protect.bit_length())


@pytest.mark.parametrize("opcode", WRITING, ids=lambda code: f"{code:02X}h")
def test_writing_is_refused_on_a_read_only_volume(opcode: int) -> None:
    target = RamTarget(SECTORS, read_only=True)
    assert said(started(target, medium_cdb(opcode, 0, 1))) is Condition.WRITE_PROTECTED
    assert unit_over(target).admit(medium_cdb(opcode, 0, 1), ONE) is None
    assert said(started(target, unmap_cdb(24))) is Condition.WRITE_PROTECTED


@pytest.mark.parametrize("opcode", [0x88, 0x8A, 0x8B, 0x8E, 0x8F, 0x90, 0xA8, 0xAA, 0xAE, 0xAF])
def test_transfer_limit_is_the_reported_one(opcode: int) -> None:
    target = RamTarget(1 << 20)
    assert not isinstance(started(target, medium_cdb(opcode, 0, 32768)), type(run(unit_over(), bytes(6))))
    response = started(target, medium_cdb(opcode, 0, 32769))
    assert said(response) is Condition.INVALID_FIELD_IN_CDB
    assert pointed_at(response)[1] == (10 if opcode >> 5 == 4 else 6)


@pytest.mark.parametrize(("read", "write"), list(zip(READS, WRITES, strict=True)))
def test_read_returns_what_write_wrote(read: int, write: int) -> None:
    unit = unit_over()
    assert said(run(unit, medium_cdb(write, 63, 3), A + B + C)) is Status.GOOD
    assert data_of(run(unit, medium_cdb(read, 62, 5))) == bytes(512) + A + B + C + bytes(512)


def test_read_6_count_of_zero_is_256() -> None:
    assert len(data_of(run(unit_over(), six(0x08, 0, 0)))) == 256 * 512


@pytest.mark.parametrize(("sent", "written"), [(0, 0), (200, 0), (512, 1), (600, 1), (1024, 2)])
def test_write_with_less_data_covers_the_whole_sectors_that_came(sent: int, written: int) -> None:
    for opcode in (0x2A, 0x2E, ORWRITE):
        target = RamTarget()
        response = run(unit_over(target), medium_cdb(opcode, 8, 2), (A + A)[:sent])
        assert said(response) is Status.GOOD
        assert target.peek(8, 2) == A * written + bytes(512) * (2 - written)


@pytest.mark.parametrize("opcode", [0x2A, 0x8A, 0xAA, ORWRITE, COMPARE_AND_WRITE])
def test_write_fua_is_durable_before_the_status(opcode: int) -> None:
    target = RamTarget(deferred_flushes=True)
    data = bytes(512) + A if opcode == COMPARE_AND_WRITE else A
    outcome = unit_over(target).begin(medium_cdb(opcode, 0, 1, 0x18), ONE)
    assert isinstance(outcome, NeedData)
    assert said(run(unit_over(target), medium_cdb(opcode, 0, 1, 0x18), data)) is Status.GOOD
    assert [call[0] for call in target.calls if call[0] != "read"][:3] == ["write", "commit", "flush"]
    assert target.flushed == 1


def test_write_without_fua_does_not_flush() -> None:
    target = RamTarget()
    run(unit_over(target), ten(0x2A, 0, 1), A)
    assert target.flushed == 0


@pytest.mark.parametrize("opcode", SYNCHRONIZES)
@pytest.mark.parametrize("flags", [0, 2])
def test_synchronize_cache_flushes(opcode: int, flags: int) -> None:
    target = RamTarget(deferred_flushes=True)
    assert said(run(unit_over(target), medium_cdb(opcode, 0, 0, flags))) is Status.GOOD
    assert target.flushed == 1


@pytest.mark.parametrize("opcode", VERIFIES)
def test_verify(opcode: int) -> None:
    target = RamTarget()
    target.poke(10, A + A + A)
    unit = unit_over(target)
    assert said(run(unit, medium_cdb(opcode, 10, 3))) is Status.GOOD
    assert said(run(unit, medium_cdb(opcode, 10, 3, 0x12), A * 3)) is Status.GOOD
    assert said(run(unit, medium_cdb(opcode, 10, 3, 0x06), A)) is Status.GOOD
    assert said(run(unit, medium_cdb(opcode, 10, 1, 0x04))) is Condition.INVALID_FIELD_IN_CDB
    different = A * 2 + A[:100] + b"x" + A[101:]
    response = run(unit, medium_cdb(opcode, 10, 3, 0x02), different)
    assert said(response) is Condition.MISCOMPARE_DURING_VERIFY
    assert information(response) == 1124
    response = run(unit, medium_cdb(opcode, 10, 4, 0x06), A)
    assert information(response) == 3 * 512
    short = run(unit, medium_cdb(opcode, 10, 3, 0x02), A)
    assert said(short) is Condition.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("opcode", WRITES_AND_VERIFIES)
@pytest.mark.parametrize("flags", [0x00, 0x02, 0x12])
def test_write_and_verify_reads_back_what_is_durable(opcode: int, flags: int) -> None:
    target = RamTarget(deferred_reads=True, deferred_flushes=True)
    assert said(run(unit_over(target), medium_cdb(opcode, 5, 2, flags), A + B)) is Status.GOOD
    assert [call[0] for call in target.calls][:4] == ["write", "commit", "flush", "read"]
    assert target.peek(5, 2) == A + B


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("count", [1, 7, 129, 1000])
def test_write_same_pattern(opcode: int, count: int) -> None:
    for flags in (0x00, 0x08):
        target = RamTarget()
        assert said(run(unit_over(target), medium_cdb(opcode, 3, count, flags), C)) is Status.GOOD
        assert target.peek(2, count + 2) == bytes(512) + C * count + bytes(512)


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_pattern_at_the_limit_is_committed_in_pieces(opcode: int) -> None:
    target = RamTarget(1 << 17)
    unit = unit_over(target)
    count = 32768
    assert said(run(unit, medium_cdb(opcode, 9, count), C)) is Status.GOOD
    assert [call[0] for call in target.calls].count("commit") == 4
    assert target.peek(8, 2) == bytes(512) + C
    assert target.peek(8 + count, 2) == C + bytes(512)
    assert said(run(unit, medium_cdb(opcode, 0, 32769), C)) is Condition.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_of_zeros_is_one_range(opcode: int) -> None:
    target = RamTarget()
    target.poke(0, A * 32)
    unit = unit_over(target)
    assert said(run(unit, medium_cdb(opcode, 1, 20, 0x08), bytes(512))) is Status.GOOD
    assert said(run(unit, medium_cdb(opcode, 21, 10), bytes(512))) is Status.GOOD
    assert [call for call in target.calls if call[0] != "commit"] == [
        ("unmap", ((1, 20),)),
        ("write_zeroes", 21, 10, False),
    ]
    assert target.peek(0, 32) == A + bytes(512) * 30 + A


def test_write_same_16_without_data_out() -> None:
    target = RamTarget()
    target.poke(0, A * 8)
    assert said(run(unit_over(target), sixteen(0x93, 0, 8, 0x01))) is Status.GOOD
    assert target.peek(0, 8) == bytes(4096)


@pytest.mark.parametrize("opcode", WRITE_SAMES)
@pytest.mark.parametrize("length", [0, 256, 1024])
def test_write_same_data_out_must_be_one_sector(opcode: int, length: int) -> None:
    response = run(unit_over(), medium_cdb(opcode, 0, 1), bytes(length))
    assert said(response) is Condition.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("opcode", WRITE_SAMES)
def test_write_same_anchor_is_refused(opcode: int) -> None:
    response = started(RamTarget(), medium_cdb(opcode, 0, 1, 0x18))
    assert pointed_at(response) == ("cdb", 1, 4)


def test_unmap_ranges() -> None:
    target = RamTarget()
    target.poke(0, A * 32)
    given = unmap_list((2, 3), (9, 0), (SECTORS, 0), (20, 1))
    assert said(run(unit_over(target), unmap_cdb(len(given)), given)) is Status.GOOD
    assert ("unmap", ((2, 3), (20, 1))) in target.calls
    assert target.peek(0, 6) == A * 2 + bytes(512) * 3 + A


def test_unmap_of_a_whole_large_volume_is_one_call() -> None:
    target = RamTarget(1 << 35)
    given = unmap_list(*((index << 31, 1 << 31) for index in range(16)))
    assert said(run(unit_over(target), unmap_cdb(len(given)), given)) is Status.GOOD
    assert [call[0] for call in target.calls] == ["unmap", "commit"]


@pytest.mark.parametrize(
    ("cdb", "data", "expected"),
    [
        (unmap_cdb(0), b"", Status.GOOD),
        (unmap_cdb(7), b"", Condition.PARAMETER_LIST_LENGTH_ERROR),
        (unmap_cdb(8), unmap_list(), Status.GOOD),
        (unmap_cdb(24), unmap_list((0, 1))[:5], Condition.PARAMETER_LIST_LENGTH_ERROR),
        (unmap_cdb(24), unmap_list((0, 1))[:20], Status.GOOD),
        (unmap_cdb(24), unmap_list((SECTORS, 1)), Condition.LBA_OUT_OF_RANGE),
        (unmap_cdb(24), unmap_list(((1 << 64) - 1, 0xFFFFFFFF)), Condition.LBA_OUT_OF_RANGE),
        (unmap_cdb(8 + 16 * 257), unmap_list(*[(0, 1)] * 257), Condition.INVALID_FIELD_IN_PARAMETER_LIST),
        (unmap_cdb(8 + 16 * 256), unmap_list(*[(0, 1)] * 256), Status.GOOD),
        (b"\x42\x01" + unmap_cdb(24)[2:], b"", Condition.INVALID_FIELD_IN_CDB),
    ],
)
def test_unmap_parameter_list(cdb: bytes, data: bytes, expected: object) -> None:
    assert said(run(unit_over(), cdb, data)) is expected


def test_compare_and_write() -> None:
    target = RamTarget()
    target.poke(4, A + A)
    unit = unit_over(target)
    assert said(run(unit, medium_cdb(COMPARE_AND_WRITE, 4, 2), A + A + B + C)) is Status.GOOD
    assert target.peek(4, 2) == B + C


@pytest.mark.parametrize("offset", [0, 1, 255, 511, 512, 1023])
def test_compare_and_write_miscompare(offset: int) -> None:
    target = RamTarget()
    target.poke(4, A + A)
    expected = bytearray(A + A)
    expected[offset] ^= 1
    response = run(unit_over(target), medium_cdb(COMPARE_AND_WRITE, 4, 2), bytes(expected) + B + B)
    assert said(response) is Condition.MISCOMPARE_DURING_VERIFY
    assert information(response) == offset
    assert target.peek(4, 2) == A + A


def test_compare_and_write_limit() -> None:
    assert isinstance(started(RamTarget(), medium_cdb(COMPARE_AND_WRITE, 0, 128)), NeedData)
    response = started(RamTarget(), medium_cdb(COMPARE_AND_WRITE, 0, 129))
    assert pointed_at(response) == ("cdb", 13, None)


def test_compare_and_write_of_nothing_with_data_is_refused() -> None:
    assert said(run(unit_over(), medium_cdb(COMPARE_AND_WRITE, 0, 0), A)) is Condition.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("length", [0, 512, 1023, 2048])
def test_compare_and_write_data_out_must_be_two_times_the_sectors(length: int) -> None:
    response = run(unit_over(), medium_cdb(COMPARE_AND_WRITE, 0, 1), bytes(length))
    assert said(response) is Condition.INVALID_FIELD_IN_CDB


def test_orwrite() -> None:
    target = RamTarget()
    target.poke(7, A + C)
    assert said(run(unit_over(target), sixteen(ORWRITE, 7, 2), B + A)) is Status.GOOD
    assert target.peek(7, 2) == b"\xff" * 512 + bytes(x | 0xA5 for x in C)


@pytest.mark.parametrize("opcode", PREFETCHES)
@pytest.mark.parametrize("immediate", [0, 2])
def test_prefetch_reads_ahead(opcode: int, immediate: int) -> None:
    target = RamTarget(deferred_reads=True)
    assert said(run(unit_over(target), medium_cdb(opcode, 16, 8, immediate))) is Status.GOOD
    assert ("read", 16, 8) in target.calls


def test_prefetch_to_the_end() -> None:
    target = RamTarget(100)
    run(unit_over(target), ten(0x34, 90, 0))
    assert ("read", 90, 10) in target.calls


def lba_status_cdb(lba: int, allocation: int) -> bytes:
    return bytes((0x9E, 0x12)) + lba.to_bytes(8, "big") + allocation.to_bytes(4, "big") + b"\0\0"


def described(data: bytes) -> list[tuple[int, int, int]]:
    rows = [data[at : at + 16] for at in range(8, len(data), 16)]
    return [(int.from_bytes(row[:8], "big"), int.from_bytes(row[8:12], "big"), row[12]) for row in rows]


def test_get_lba_status() -> None:
    target = RamTarget(256)
    target.poke(8, A * 8)
    data = data_of(run(unit_over(target), lba_status_cdb(10, 4096)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert described(data) == [(10, 6, 0), (16, 240, 1)]


def test_get_lba_status_allocation_length() -> None:
    target = RamTarget(256)
    target.poke(8, A * 8)
    unit = unit_over(target)
    assert described(data_of(run(unit, lba_status_cdb(0, 24)))) == [(0, 8, 1)]
    assert len(data_of(run(unit, lba_status_cdb(0, 9)))) == 9
    assert data_of(run(unit, lba_status_cdb(0, 0))) == b""


@pytest.mark.parametrize("lba", [256, 257, 1 << 63, (1 << 64) - 1])
def test_get_lba_status_out_of_range(lba: int) -> None:
    assert said(started(RamTarget(256), lba_status_cdb(lba, 24))) is Condition.LBA_OUT_OF_RANGE


def test_read_defect_data_is_empty() -> None:
    assert data_of(run(unit_over(), bytes((0x37, 0, 0x1D, 0, 0, 0, 0, 0, 32, 0)))).hex() == "001d0000"
    assert data_of(run(unit_over(), bytes((0xB7, 0x18, *bytes(7), 32, 0, 0)))).hex() == "0018000000000000"


@pytest.mark.parametrize(
    ("byte_4", "expected", "flushes"),
    [
        (0x01, Status.GOOD, 0),  # start
        (0x00, Status.GOOD, 1),  # stop
        (0x04, Status.GOOD, 0),  # stop, NO_FLUSH
        (0x02, Condition.INVALID_FIELD_IN_CDB, 0),  # eject
        (0x30, Status.GOOD, 0),  # power condition
    ],
)
def test_start_stop_unit(byte_4: int, expected: object, flushes: int) -> None:
    target = RamTarget()
    unit = unit_over(target)
    assert said(run(unit, bytes((0x1B, 0, 0, 0, byte_4, 0)))) is expected
    assert target.flushed == flushes
    assert said(run(unit, bytes(6))) is Status.GOOD, "still ready"


# ---- WRITE ATOMIC


@pytest.mark.parametrize("flags", [0, 0x08, 0x18])
def test_write_atomic_is_one_write_that_nobody_sees_in_part(flags: int) -> None:
    target = RamTarget(SECTORS)
    assert said(run(unit_over(target), medium_cdb(WRITE_ATOMIC, 7, 512, flags), A * 512)) is Status.GOOD
    assert [call for call in target.calls if call[0].startswith("write")] == [("write_atomic", 7, 512 * 512)]  # type: ignore[attr-defined]
    assert target.peek(7, 512) == A * 512
    assert target.flushed == bool(flags)


def test_write_atomic_takes_no_more_than_it_promises() -> None:
    unit = unit_over(RamTarget(4096))
    assert pointed_at(run(unit, medium_cdb(WRITE_ATOMIC, 0, 2049), A * 2049)) == ("cdb", 12, None)
    boundary = medium_cdb(WRITE_ATOMIC, 0, 1 << 16 | 8)
    assert pointed_at(run(unit, boundary, A * 8)) == ("cdb", 11, 0)
    assert said(run(unit, medium_cdb(WRITE_ATOMIC, 0, 8), A * 7)) is Condition.INVALID_FIELD_IN_CDB, "never a part"
