"""A quota: the threshold that warns, what is refused beyond it, and where it is reported."""

from collections.abc import Callable

import pytest

from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.operation import Copy, NeedData, Response, Status
from blockdev.scsi.perform import perform
from blockdev.scsi.provisioning import Quota
from blockdev.scsi.sense import Condition
from blockdev.units import MIB
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import (
    ONE,
    TWO,
    data_of,
    inquiry_cdb,
    medium_cdb,
    pointed_at,
    run,
    said,
    ten,
    unmap_cdb,
    unmap_list,
)
from tests.blockdev.scsi.test_extended_copy import cdb as copy_cdb
from tests.blockdev.scsi.test_extended_copy import within
from tests.blockdev.scsi.test_mode import sense_6

A = b"A" * 512
WRITE_10, READ_10 = ten(0x2A, 0, 1), ten(0x28, 0, 1)
QUOTA = Quota(100 * MIB, 0.8)


def unit_with(target: RamTarget, quota: Quota | None = QUOTA) -> LogicalUnit:
    unit = LogicalUnit(target, lun=0, quota=quota)
    for nexus in (ONE, TWO):
        unit.nexus_opened(nexus)
        unit.take_attention(nexus)
    return unit


def log_sense(page: int, subpage: int = 0, *, control: int = 1, pointer: int = 0, allocation: int = 512) -> bytes:
    return (
        bytes((0x4D, 0, control << 6 | page, subpage, 0))
        + pointer.to_bytes(2, "big")
        + allocation.to_bytes(2, "big")
        + b"\0"
    )


def test_every_nexus_is_told_once_for_each_crossing() -> None:
    target = RamTarget()
    unit = unit_with(target)
    target.allocated_bytes = 79 * MIB
    assert unit.admit(READ_10, ONE) is not None
    target.allocated_bytes = 80 * MIB
    assert unit.admit(READ_10, ONE) is None, "the fast path sees the crossing"
    for nexus in (ONE, TWO):
        assert said(run(unit, READ_10, nexus=nexus)) is Condition.THRESHOLD_REACHED
        assert said(run(unit, READ_10, nexus=nexus)) is Status.GOOD
    for used in (81, 79, 85, 78, 90):
        target.allocated_bytes = used * MIB
        assert said(run(unit, WRITE_10, A)) is Status.GOOD, "no news near the threshold"
    target.allocated_bytes = 77 * MIB
    assert said(run(unit, WRITE_10, A)) is Status.GOOD
    target.allocated_bytes = 80 * MIB
    assert said(run(unit, WRITE_10, A)) is Condition.THRESHOLD_REACHED


WRITES: list[tuple[bytes, bytes]] = [
    (WRITE_10, A),
    (medium_cdb(0x8A, 0, 1), A),
    (medium_cdb(0x2E, 0, 1), A),
    (medium_cdb(0x89, 0, 1), bytes(512) + A),
    (medium_cdb(0x8B, 0, 1), A),
    (medium_cdb(0x93, 0, 1), A),
]


@pytest.mark.parametrize(("cdb", "data"), WRITES)
def test_beyond_the_quota_nothing_new_is_allocated(cdb: bytes, data: bytes) -> None:
    target = RamTarget()
    unit = unit_with(target)
    target.allocated_bytes = 100 * MIB
    unit.begin(READ_10, ONE)
    assert unit.admit(cdb, ONE) is None
    assert said(run(unit, cdb, data)) is Condition.SPACE_ALLOCATION_FAILED
    assert target.peek(0, 1) == bytes(512)
    target.poke(0, bytes(512))
    assert said(run(unit, cdb, data)) is Status.GOOD, "what is allocated may be written"
    assert target.peek(0, 1) == A


def test_half_allocated_is_not_allocated() -> None:
    target = RamTarget()
    target.poke(0, A)
    unit = unit_with(target)
    target.allocated_bytes = 200 * MIB
    unit.begin(READ_10, ONE)
    assert said(run(unit, ten(0x2A, 0, 2), A + A)) is Condition.SPACE_ALLOCATION_FAILED


def test_an_answer_that_ends_before_the_range_is_not_a_hole() -> None:
    """What is mapped may be told in pieces (a run in the journal, then what the bucket has)."""

    class Short(RamTarget):
        def allocated(
            self, lba: int, count: int, done: Callable[[list[tuple[int, int, bool]] | Exception], None]
        ) -> None:
            super().allocated(lba, min(count, 3), done)

    target = Short()
    target.poke(0, A * 10)
    unit = unit_with(target)
    target.allocated_bytes = QUOTA.bytes
    unit.begin(READ_10, ONE)
    unit.begin(READ_10, TWO)
    assert said(run(unit, ten(0x2A, 0, 10), A * 10)) is Status.GOOD
    assert said(run(unit, ten(0x2A, 4, 10), A * 10)) is Condition.SPACE_ALLOCATION_FAILED


def test_beyond_the_quota_all_else_goes_on() -> None:
    target = RamTarget()
    target.poke(0, A)
    unit = unit_with(target)
    target.allocated_bytes = 100 * MIB
    unit.begin(READ_10, ONE)
    assert unit.admit(READ_10, ONE) is not None
    assert said(run(unit, ten(0x35, 0, 0))) is Status.GOOD
    parameters = unmap_list((0, 1))
    assert said(run(unit, unmap_cdb(len(parameters)), parameters)) is Status.GOOD
    assert said(run(unit, medium_cdb(0x93, 0, 100), bytes(512))) is Status.GOOD, "zeros cost nothing"
    assert target.peek(0, 1) == bytes(512)
    list_ = within(0, 100, 8)
    assert said(run(unit, copy_cdb(len(list_)), list_)) is Condition.SPACE_ALLOCATION_FAILED
    target.allocated_bytes = 99 * MIB
    assert said(run(unit, WRITE_10, A)) is Status.GOOD


def test_a_copy_ends_where_the_quota_does() -> None:
    target = RamTarget(4096)
    target.poke(0, A * 8)
    turns: list[Callable[[], None]] = []
    unit = LogicalUnit(target, lun=0, quota=QUOTA, later=lambda seconds, call: turns.append(call))
    list_ = within(0, 100, 1024)
    need = unit.begin(copy_cdb(len(list_)), ONE)
    assert isinstance(need, NeedData)
    operation = need.then(list_)
    assert isinstance(operation, Copy)
    answers: list[Response] = []
    perform(operation, target, answers.append)
    target.allocated_bytes = 100 * MIB
    unit.begin(READ_10, ONE)
    turns.pop()()
    assert said(answers[0]) is Condition.THIRD_PARTY_DEVICE_FAILURE


@pytest.mark.parametrize(("sector_bytes", "exponent"), [(512, 11), (4096, 8)])
def test_threshold_exponent(sector_bytes: int, exponent: int) -> None:
    target = RamTarget(sector_bytes=sector_bytes)
    assert data_of(run(unit_with(target), inquiry_cdb(0xB2)))[4] == exponent
    assert data_of(run(unit_with(target, None), inquiry_cdb(0xB2)))[4] == 0


def test_mode_page() -> None:
    unit = unit_with(RamTarget())
    expected = bytes.fromhex("5c020014" + "00" * 12 + "81020000") + (80).to_bytes(4, "big")
    subpage = sense_6(0x1C, flags=8)
    subpage = subpage[:3] + b"\x02" + subpage[4:]
    assert data_of(run(unit, subpage))[4:] == expected
    everything = sense_6(0x3F, flags=8)
    assert expected not in data_of(run(unit, everything))
    assert data_of(run(unit, everything[:3] + b"\xff" + everything[4:])).endswith(expected)
    both = subpage[:3] + b"\xff" + subpage[4:]
    assert data_of(run(unit, both))[4:] == bytes((0x1C, 10, 8)) + bytes(9) + expected
    assert said(run(unit_with(RamTarget(), None), subpage)) is Condition.INVALID_FIELD_IN_CDB


def test_mode_select_accepts_what_mode_sense_said() -> None:
    unit = unit_with(RamTarget())
    everything = sense_6(0x3F, flags=8)
    data = data_of(run(unit, everything[:3] + b"\xff" + everything[4:]))
    given = b"\0" + data[1:]
    select = bytes((0x15, 0x10, 0, 0, len(given), 0))
    assert said(run(unit, select, given)) is Status.GOOD
    changed = given[:-1] + bytes((given[-1] ^ 1,))
    assert pointed_at(run(unit, select, changed)) == ("data", len(given) - 1, 0)
    assert said(run(unit, bytes((0x15, 0x10, 0, 0, len(given) - 1, 0)), given)) is (
        Condition.PARAMETER_LIST_LENGTH_ERROR
    )
    other = unit_with(RamTarget(), None)
    assert said(run(other, select, given)) is Condition.INVALID_FIELD_IN_PARAMETER_LIST


def test_log_pages() -> None:
    target = RamTarget()
    unit = unit_with(target)
    target.allocated_bytes = 30 * MIB + 5
    assert data_of(run(unit, log_sense(0))).hex() == "00000002" + "000c"
    assert data_of(run(unit, log_sense(0, 0xFF))).hex() == "40ff0006" + "000000ff" + "0c00"
    used = "0002" + "0308" + f"{30:08x}" + "01000000"
    assert data_of(run(unit, log_sense(0x0C))).hex() == "0c000018" + "0001" + "0308" + f"{69:08x}" + "01000000" + used
    assert data_of(run(unit, log_sense(0x0C, pointer=2))).hex() == "0c00000c" + used
    assert data_of(run(unit, log_sense(0x0C, allocation=4))).hex() == "0c000018"
    target.allocated_bytes = 300 * MIB
    run(unit, log_sense(0))
    run(unit, log_sense(0))
    assert data_of(run(unit, log_sense(0x0C)))[8:12] == bytes(4), "nothing is left"


@pytest.mark.parametrize(
    ("cdb", "byte"),
    [
        (log_sense(0x0D), 2),
        (log_sense(0x0C, 1), 3),
        (log_sense(0, 1), 3),
        (log_sense(0x0C, control=0), 2),
        (log_sense(0x0C, pointer=3), 5),
        (log_sense(0, pointer=1), 5),
        (bytes((0x4D, 1, 0x40, 0, 0, 0, 0, 0, 8, 0)), 1),
    ],
)
def test_log_pages_that_are_not_there(cdb: bytes, byte: int) -> None:
    assert pointed_at(run(unit_with(RamTarget()), cdb))[1] == byte


def test_without_a_quota_there_is_no_page_of_it() -> None:
    unit = unit_with(RamTarget(), None)
    assert data_of(run(unit, log_sense(0))).hex() == "00000001" + "00"
    assert said(run(unit, log_sense(0x0C))) is Condition.INVALID_FIELD_IN_CDB
