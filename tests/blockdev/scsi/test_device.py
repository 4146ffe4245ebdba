"""The logical unit: unit attentions, the order of checks, and any bytes at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import Fenced
from blockdev.scsi.commands import COMMANDS
from blockdev.scsi.device import LogicalUnit, ResetCause, absent
from blockdev.scsi.operation import NeedData, Operation, Response, Status
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import ONE, TWO, data_of, pointed_at, run, said, ten, unit_over

TEST_UNIT_READY = bytes(6)
REQUEST_SENSE = bytes((3, 0, 0, 0, 18, 0))
INQUIRY = bytes((0x12, 0, 0, 0, 36, 0))
REPORT_LUNS = bytes((0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0))
READ_10 = ten(0x28, 0, 1)


def new_unit(*nexuses: str) -> LogicalUnit:
    unit = LogicalUnit(RamTarget(), lun=0)
    for nexus in nexuses:
        unit.nexus_opened(nexus)
    return unit


def test_unit_attention_once_per_nexus() -> None:
    unit = new_unit(ONE, TWO)
    assert said(run(unit, TEST_UNIT_READY)) is Condition.POWER_ON_OR_RESET
    assert said(run(unit, TEST_UNIT_READY)) is Status.GOOD
    assert said(run(unit, TEST_UNIT_READY, nexus=TWO)) is Condition.POWER_ON_OR_RESET


@pytest.mark.parametrize("cdb", [INQUIRY, REPORT_LUNS])
def test_unit_attention_waits_behind_inquiry_and_report_luns(cdb: bytes) -> None:
    unit = new_unit(ONE)
    assert said(run(unit, cdb)) is Status.GOOD
    assert said(run(unit, TEST_UNIT_READY)) is Condition.POWER_ON_OR_RESET


def test_unit_attention_is_told_by_request_sense() -> None:
    unit = new_unit(ONE)
    assert data_of(run(unit, REQUEST_SENSE))[2:14].hex(" ") == "06 00 00 00 00 0a 00 00 00 00 29 00"
    assert data_of(run(unit, REQUEST_SENSE))[2:14].hex(" ") == "00 00 00 00 00 0a 00 00 00 00 00 00"
    assert said(run(unit, TEST_UNIT_READY)) is Status.GOOD


@pytest.mark.parametrize("cdb", [READ_10, b"\xff" * 10, ten(0x28, 0, 1, 0xE0), b""])
def test_unit_attention_comes_before_any_other_check(cdb: bytes) -> None:
    assert said(run(new_unit(ONE), cdb)) is Condition.POWER_ON_OR_RESET


def test_unit_attentions_come_in_order_and_once() -> None:
    unit = new_unit(ONE)
    unit.capacity_changed()
    unit.attention_to_all(Condition.LUNS_CHANGED)
    unit.capacity_changed()
    seen = [said(run(unit, TEST_UNIT_READY)) for _ in range(4)]
    assert seen == [
        Condition.POWER_ON_OR_RESET,
        Condition.CAPACITY_CHANGED,
        Condition.LUNS_CHANGED,
        Status.GOOD,
    ]


def test_capacity_changed_reaches_every_nexus() -> None:
    target = RamTarget(100)
    unit = unit_over(target, ONE, TWO)
    target.sector_count = 200
    unit.capacity_changed()
    for nexus in (ONE, TWO):
        assert said(run(unit, READ_10, nexus=nexus)) is Condition.CAPACITY_CHANGED
    assert int.from_bytes(data_of(run(unit, bytes((0x25, *bytes(9)))))[:4], "big") == 199
    assert said(run(unit, ten(0x28, 150, 1))) is Status.GOOD


def test_another_size_is_noticed_by_the_next_command_of_anybody() -> None:
    target = RamTarget(100)
    unit = unit_over(target, ONE, TWO)
    assert unit.admit(READ_10, ONE) is not None
    target.sector_count = 200
    assert unit.admit(READ_10, ONE) is None, "the fast path would pass the unit attention by"
    capacity_16 = bytes((0x9E, 0x10, *bytes(8), 0, 0, 0, 32, 0, 0))
    for nexus in (ONE, TWO):
        assert said(run(unit, capacity_16, nexus=nexus)) is Condition.CAPACITY_CHANGED
        assert int.from_bytes(data_of(run(unit, capacity_16, nexus=nexus))[:8], "big") == 199
    assert unit.admit(ten(0x28, 199, 1), ONE) == (0, 199, 1, False)


def test_growing_twice_before_anybody_asks_is_told_once() -> None:
    target = RamTarget(100)
    unit = unit_over(target, ONE)
    for size in (200, 300):
        target.sector_count = size
        run(unit, INQUIRY)
    assert said(run(unit, TEST_UNIT_READY)) is Condition.CAPACITY_CHANGED
    assert said(run(unit, TEST_UNIT_READY)) is Status.GOOD


def test_a_nexus_that_comes_after_the_growth_is_not_told_of_it() -> None:
    target = RamTarget(100)
    unit = unit_over(target, ONE)
    target.sector_count = 200
    unit.nexus_opened(TWO)
    assert said(run(unit, TEST_UNIT_READY, nexus=TWO)) is Condition.POWER_ON_OR_RESET
    assert said(run(unit, TEST_UNIT_READY, nexus=TWO)) is Status.GOOD
    assert said(run(unit, TEST_UNIT_READY)) is Condition.CAPACITY_CHANGED


def test_attention_to_all_but_one() -> None:
    unit = unit_over(None, ONE, TWO)
    unit.attention_to_all(Condition.LUNS_CHANGED, but=ONE)
    assert unit.take_attention(ONE) is None
    assert unit.take_attention(TWO) is Condition.LUNS_CHANGED


@pytest.mark.parametrize("cause", list(ResetCause))
def test_reset_replaces_older_attentions(cause: ResetCause) -> None:
    unit = new_unit(ONE)
    unit.capacity_changed()
    unit.reset(cause)
    assert unit.take_attention(ONE) is cause.value
    assert unit.take_attention(ONE) is None


def test_nexus_closed_forgets_its_attentions() -> None:
    unit = new_unit(ONE)
    unit.nexus_closed(ONE)
    unit.capacity_changed()
    assert unit.take_attention(ONE) is None


def test_admit_leaves_the_pending_attention_to_begin() -> None:
    unit = new_unit(ONE)
    assert unit.admit(READ_10, ONE) is None
    run(unit, TEST_UNIT_READY)
    assert unit.admit(READ_10, ONE) == (0, 0, 1, False)


@pytest.mark.parametrize(("lba", "count"), [(2047, 2), (2048, 1), (0, 0), (0xFFFFFFFF, 0xFFFF)])
def test_admit_leaves_the_range_to_begin(lba: int, count: int) -> None:
    assert unit_over(RamTarget(2048)).admit(ten(0x28, lba, count), ONE) is None


def test_test_unit_ready_of_a_fenced_volume() -> None:
    unit = unit_over()
    assert isinstance(unit.target, RamTarget)
    unit.target.fail_next("commit", Fenced("taken over"))
    assert said(run(unit, TEST_UNIT_READY)) is Condition.MANUAL_INTERVENTION_REQUIRED


@pytest.mark.parametrize("opcode", [0x01, 0x04, 0xC0, 0xFF, 0x85, 0x48])
def test_unknown_operation_code(opcode: int) -> None:
    assert said(run(unit_over(), bytes((opcode,)) + bytes(15))) is Condition.INVALID_OPERATION_CODE


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_bit_outside_the_usage_mask_is_refused(command: object) -> None:
    row = next(each for each in COMMANDS if each is command)
    unit = unit_over()
    base = bytearray(row.length)
    base[0], base[1] = row.opcode, row.service_action or 0
    for index in range(1, row.length):
        for bit in range(8):
            if row.usage[index] >> bit & 1 or (row.service_action is not None and index == 1 and bit < 5):
                continue
            cdb = bytearray(base)
            cdb[index] |= 1 << bit
            response = unit.begin(cdb, ONE)
            assert isinstance(response, Response)
            assert said(response) is Condition.INVALID_FIELD_IN_CDB
            assert pointed_at(response) == ("cdb", index, bit)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_cut_off_cdb_is_refused(command: object) -> None:
    row = next(each for each in COMMANDS if each is command)
    for length in range(2, row.length):
        response = unit_over().begin(row.usage[:length], ONE)
        assert isinstance(response, Response)
        assert said(response) is Condition.INVALID_FIELD_IN_CDB


def test_report_supported_operation_codes_all() -> None:
    for timeouts in (0x00, 0x80):
        data = data_of(run(unit_over(), bytes((0xA3, 0x0C, timeouts, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0))))
        assert int.from_bytes(data[:4], "big") == len(data) - 4
        step = 20 if timeouts else 8
        rows = [data[at : at + step] for at in range(4, len(data), step)]
        assert len(rows) == len(COMMANDS)
        for row, command in zip(rows, COMMANDS, strict=True):
            assert row[0] == command.opcode
            assert int.from_bytes(row[2:4], "big") == (command.service_action or 0)
            assert bool(row[5] & 1) is (command.service_action is not None)
            assert bool(row[5] & 2) is bool(timeouts)
            assert int.from_bytes(row[6:8], "big") == command.length
            assert row[8:10] == (b"\0\x0a" if timeouts else b"")


def report_one(options: int, opcode: int, action: int) -> bytes:
    return bytes((0xA3, 0x0C, options, opcode, 0, action, 0, 0, 0xFF, 0xFF, 0, 0))


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_report_supported_operation_codes_one(command: object) -> None:
    row = next(each for each in COMMANDS if each is command)
    unit = unit_over()
    right, wrong = (1, 2) if row.service_action is None else (2, 1)
    data = data_of(run(unit, report_one(right, row.opcode, row.service_action or 0)))
    assert data == bytes((0, 3, 0, row.length)) + row.usage
    assert said(run(unit, report_one(wrong, row.opcode, row.service_action or 0))) is Condition.INVALID_FIELD_IN_CDB
    assert data_of(run(unit, report_one(3, row.opcode, row.service_action or 0))) == data
    with_timeouts = data_of(run(unit, report_one(0x80 | right, row.opcode, row.service_action or 0)))
    assert with_timeouts[1] == 0x83
    assert len(with_timeouts) == len(data) + 12


@pytest.mark.parametrize(
    ("options", "opcode", "action"), [(1, 0x04, 0), (2, 0x9E, 0x11), (3, 0x28, 1), (3, 0x04, 0), (2, 0x04, 0)]
)
def test_report_supported_operation_codes_unsupported(options: int, opcode: int, action: int) -> None:
    assert data_of(run(unit_over(), report_one(options, opcode, action))) == bytes((0, 1, 0, 0))


def test_prevent_allow_medium_removal() -> None:
    assert said(run(unit_over(), bytes((0x1E, 0, 0, 0, 1, 0)))) is Status.GOOD


OPCODES = st.sampled_from(sorted({command.opcode for command in COMMANDS}))
ANY_CDB = st.one_of(
    st.binary(max_size=20),
    st.builds(lambda opcode, rest: bytes((opcode,)) + rest, OPCODES, st.binary(max_size=17)),
    st.builds(
        lambda command, noise: bytes(u & n for u, n in zip(command.usage, b"\xff" + noise, strict=False)),
        st.sampled_from(COMMANDS),
        st.binary(min_size=15, max_size=15),
    ),
)


@given(ANY_CDB, st.binary(max_size=64))
def test_begin_answers_any_bytes(cdb: bytes, data: bytes) -> None:
    """Never raises; bounded; what it asks to be done is in range; every kind of buffer will do."""
    for given_cdb in (cdb, memoryview(cdb), bytearray(cdb)):
        target = RamTarget(256)
        unit = unit_over(target)
        outcome: Operation | Response | NeedData = unit.begin(given_cdb, ONE)
        if isinstance(outcome, NeedData):
            assert 0 <= outcome.length <= 1 << 24
            outcome = outcome.then(data[: outcome.length])
            assert not isinstance(outcome, NeedData)
        if not isinstance(outcome, Response):
            lba, count = getattr(outcome, "lba", 0), getattr(outcome, "count", 0)
            assert lba + count <= target.sector_count
        else:
            assert (outcome.status is Status.CHECK_CONDITION) is bool(outcome.sense)
        assert isinstance(absent(given_cdb, [0]), Response)


@given(ANY_CDB, st.binary(max_size=2048))
def test_run_answers_any_bytes(cdb: bytes, data: bytes) -> None:
    response = run(unit_over(RamTarget(256)), cdb, data)
    assert response.status in (Status.GOOD, Status.CHECK_CONDITION, Status.RESERVATION_CONFLICT)
