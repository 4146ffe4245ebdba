"""Persistent reservations and RESERVE(6): who is let through, who is told, and what is reported."""

import json

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blockdev.scsi.device import LogicalUnit, ResetCause
from blockdev.scsi.operation import Response, Status
from blockdev.scsi.reservations import (
    EXCLUSIVE_ACCESS,
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    REGISTRATIONS_MAX,
    TYPES,
    WRITE_EXCLUSIVE,
    WRITE_EXCLUSIVE_ALL_REGISTRANTS,
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
    Reservations,
    transport_id,
)
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import (
    ONE,
    THREE,
    TWO,
    data_of,
    pointed_at,
    reserve_in,
    reserve_out,
    reserve_out_data,
    run,
    said,
    ten,
    unit_over,
)

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYWAY = range(7)
KEYS = {ONE: 0x11, TWO: 0x22, THREE: 0x33}
READ_10, WRITE_10 = ten(0x28, 0, 1), ten(0x2A, 0, 1)


def three() -> LogicalUnit:
    return unit_over(RamTarget(), ONE, TWO, THREE)


def out(
    unit: LogicalUnit, nexus: str, action: int, key: int, new_key: int = 0, kind: int = 0, flags: int = 0
) -> Response:
    return run(unit, reserve_out(action, kind), reserve_out_data(key, new_key, flags), nexus=nexus)


def registered(unit: LogicalUnit, *nexuses: str) -> LogicalUnit:
    for nexus in nexuses:
        assert said(out(unit, nexus, REGISTER, 0, KEYS[nexus])) is Status.GOOD
    return unit


def held(kind: int, *others: str) -> LogicalUnit:
    """ONE holds a reservation of that type; ONE and `others` are registered."""
    unit = registered(three(), ONE, *others)
    assert said(out(unit, ONE, RESERVE, KEYS[ONE], kind=kind)) is Status.GOOD
    return unit


def keys(unit: LogicalUnit, nexus: str = ONE) -> list[int]:
    data = data_of(run(unit, reserve_in(0), nexus=nexus))
    assert int.from_bytes(data[4:8], "big") == len(data) - 8
    return [int.from_bytes(data[at : at + 8], "big") for at in range(8, len(data), 8)]


def reservation(unit: LogicalUnit) -> tuple[int, int] | None:
    """(key, type), as READ RESERVATION reports it."""
    data = data_of(run(unit, reserve_in(1)))
    return (int.from_bytes(data[8:16], "big"), data[21]) if len(data) > 8 else None


def generation(unit: LogicalUnit) -> int:
    return int.from_bytes(data_of(run(unit, reserve_in(0)))[:4], "big")


# ---- registering


def test_register_and_unregister() -> None:
    unit = three()
    assert keys(unit) == []
    registered(unit, ONE, TWO)
    assert keys(unit) == [0x11, 0x22]
    assert said(out(unit, ONE, REGISTER, 0x11, 0)) is Status.GOOD
    assert keys(unit) == [0x22]
    assert generation(unit) == 3


@pytest.mark.parametrize(
    ("action", "key", "new_key", "expected", "left"),
    [
        (REGISTER, 0x12, 0x13, Status.RESERVATION_CONFLICT, [0x11]),
        (REGISTER, 0x11, 0x13, Status.GOOD, [0x13]),
        (REGISTER, 0x11, 0x11, Status.GOOD, [0x11]),
        (REGISTER_ANYWAY, 0x99, 0x13, Status.GOOD, [0x13]),
        (REGISTER_ANYWAY, 0x99, 0, Status.GOOD, []),
    ],
)
def test_register_again(action: int, key: int, new_key: int, expected: Status, left: list[int]) -> None:
    unit = registered(three(), ONE)
    assert said(out(unit, ONE, action, key, new_key)) is expected
    assert keys(unit) == left


def test_register_of_an_unregistered_nexus_takes_no_key() -> None:
    unit = three()
    assert said(out(unit, ONE, REGISTER, 0x11, 0x12)) is Status.RESERVATION_CONFLICT
    assert said(out(unit, ONE, REGISTER, 0, 0)) is Status.GOOD
    assert keys(unit) == []


def test_register_refuses_what_is_not_offered() -> None:
    response = out(three(), ONE, REGISTER, 0, 1, flags=0x08)
    assert said(response) is Condition.INVALID_FIELD_IN_PARAMETER_LIST
    assert pointed_at(response) == ("data", 20, 3)
    behind_lio = LogicalUnit(RamTarget(), lun=0, keeps_reservations=False)
    behind_lio.nexus_opened(ONE)
    behind_lio.take_attention(ONE)
    assert pointed_at(out(behind_lio, ONE, REGISTER, 0, 1, flags=0x01)) == ("data", 20, 0)


@pytest.mark.parametrize("length", [0, 23, 25, 0x100])
def test_reserve_out_parameter_list_length(length: int) -> None:
    cdb = bytes((0x5F, 0, 0, 0, 0)) + length.to_bytes(4, "big") + b"\0"
    assert said(run(three(), cdb)) is Condition.PARAMETER_LIST_LENGTH_ERROR
    assert said(run(three(), reserve_out(REGISTER), bytes(20))) is Condition.PARAMETER_LIST_LENGTH_ERROR


def test_register_is_bounded() -> None:
    state = Reservations()
    data = reserve_out_data(0, 1)
    for number in range(REGISTRATIONS_MAX):
        assert state.out(f"nexus {number}", REGISTER, 0, data).status is Status.GOOD
    assert said(state.out("one more", REGISTER, 0, data)) is Condition.INSUFFICIENT_REGISTRATION_RESOURCES


@pytest.mark.parametrize("action", range(4, 32))
def test_reserve_in_unknown_service_action(action: int) -> None:
    response = run(three(), reserve_in(action))
    assert said(response) is Condition.INVALID_FIELD_IN_CDB
    assert pointed_at(response) == ("cdb", 1, 4)


# ---- reserving


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_reserve_and_release(kind: int) -> None:
    unit = held(kind)
    everybody = kind in (WRITE_EXCLUSIVE_ALL_REGISTRANTS, EXCLUSIVE_ACCESS_ALL_REGISTRANTS)
    assert reservation(unit) == (0 if everybody else KEYS[ONE], kind)
    assert said(out(unit, ONE, RESERVE, KEYS[ONE], kind=kind)) is Status.GOOD, "the same once more"
    before = generation(unit)
    assert said(out(unit, ONE, RELEASE, KEYS[ONE], kind=kind)) is Status.GOOD
    assert reservation(unit) is None
    assert generation(unit) == before


def test_reserve_needs_registration_and_the_right_key() -> None:
    unit = registered(three(), ONE)
    assert said(out(unit, TWO, RESERVE, 0, kind=WRITE_EXCLUSIVE)) is Status.RESERVATION_CONFLICT
    assert said(out(unit, ONE, RESERVE, 0x12, kind=WRITE_EXCLUSIVE)) is Status.RESERVATION_CONFLICT


@pytest.mark.parametrize("kind", [0x0, 0x2, 0x4, 0x9, 0xF])
def test_reserve_unknown_type(kind: int) -> None:
    response = out(registered(three(), ONE), ONE, RESERVE, KEYS[ONE], kind=kind)
    assert pointed_at(response) == ("cdb", 2, 3)


def test_reserve_scope_other_than_the_unit() -> None:
    response = out(registered(three(), ONE), ONE, RESERVE, KEYS[ONE], kind=0x10 | WRITE_EXCLUSIVE)
    assert pointed_at(response) == ("cdb", 2, 7)


def test_reserve_held_by_another() -> None:
    unit = held(WRITE_EXCLUSIVE, TWO)
    assert said(out(unit, TWO, RESERVE, KEYS[TWO], kind=WRITE_EXCLUSIVE)) is Status.RESERVATION_CONFLICT
    assert said(out(unit, ONE, RESERVE, KEYS[ONE], kind=EXCLUSIVE_ACCESS)) is Status.RESERVATION_CONFLICT
    assert said(out(unit, TWO, RELEASE, KEYS[TWO], kind=WRITE_EXCLUSIVE)) is Status.GOOD
    assert reservation(unit) == (KEYS[ONE], WRITE_EXCLUSIVE)


def test_release_of_another_type() -> None:
    unit = held(WRITE_EXCLUSIVE)
    assert said(out(unit, ONE, RELEASE, KEYS[ONE], kind=EXCLUSIVE_ACCESS)) is Condition.INVALID_RELEASE


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (WRITE_EXCLUSIVE, False),
        (EXCLUSIVE_ACCESS, False),
        (WRITE_EXCLUSIVE_REGISTRANTS_ONLY, True),
        (EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, True),
        (WRITE_EXCLUSIVE_ALL_REGISTRANTS, True),
        (EXCLUSIVE_ACCESS_ALL_REGISTRANTS, True),
    ],
)
def test_release_tells_the_other_registrants(kind: int, told: bool) -> None:
    unit = held(kind, TWO)
    out(unit, ONE, RELEASE, KEYS[ONE], kind=kind)
    expected = Condition.RESERVATIONS_RELEASED if told else None
    assert [unit.take_attention(nexus) for nexus in (ONE, TWO, THREE)] == [None, expected, None]


ALLOWED = {
    # type: (registered may read, may write, unregistered may read, may write)
    WRITE_EXCLUSIVE: (True, False, True, False),
    EXCLUSIVE_ACCESS: (False, False, False, False),
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY: (True, True, True, False),
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY: (True, True, False, False),
    WRITE_EXCLUSIVE_ALL_REGISTRANTS: (True, True, True, False),
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS: (True, True, False, False),
}


@pytest.mark.parametrize("kind", sorted(ALLOWED))
def test_access_under_a_reservation(kind: int) -> None:
    unit = held(kind, TWO)
    seen = tuple(
        said(run(unit, cdb, bytes(512), nexus=nexus)) is Status.GOOD
        for nexus in (TWO, THREE)
        for cdb in (READ_10, WRITE_10)
    )
    assert seen == ALLOWED[kind]
    assert said(run(unit, READ_10)) is Status.GOOD
    assert said(run(unit, WRITE_10, bytes(512))) is Status.GOOD
    assert unit.admit(READ_10, ONE) is None, "the fast path leaves reserved units to begin"
    for cdb in (bytes(6), bytes((0x12, 0, 0, 0, 36, 0)), bytes((0x25, *bytes(9))), reserve_in(0)):
        assert said(run(unit, cdb, nexus=THREE)) is Status.GOOD


# ---- clearing and preempting


def test_clear() -> None:
    unit = held(EXCLUSIVE_ACCESS, TWO)
    before = generation(unit)
    assert said(out(unit, TWO, CLEAR, KEYS[TWO])) is Status.GOOD
    assert unit.take_attention(ONE) is Condition.RESERVATIONS_PREEMPTED
    assert keys(unit) == []
    assert reservation(unit) is None
    assert generation(unit) == before + 1


def test_preempt_takes_a_registration_away() -> None:
    unit = registered(three(), ONE, TWO)
    before = generation(unit)
    assert said(out(unit, TWO, PREEMPT, KEYS[TWO], KEYS[ONE], EXCLUSIVE_ACCESS)) is Status.GOOD
    assert unit.take_attention(ONE) is Condition.REGISTRATIONS_PREEMPTED
    assert keys(unit) == [KEYS[TWO]]
    assert reservation(unit) is None
    assert generation(unit) == before + 1


def test_preempt_takes_the_reservation_over() -> None:
    unit = held(WRITE_EXCLUSIVE_REGISTRANTS_ONLY, TWO, THREE)
    assert said(out(unit, TWO, PREEMPT, KEYS[TWO], KEYS[ONE], EXCLUSIVE_ACCESS)) is Status.GOOD
    assert unit.take_attention(ONE) is Condition.REGISTRATIONS_PREEMPTED
    assert unit.take_attention(THREE) is Condition.RESERVATIONS_RELEASED
    assert unit.reservations.holder == TWO
    assert unit.reservations.type == EXCLUSIVE_ACCESS


def test_preempt_oneself_changes_the_type() -> None:
    unit = held(WRITE_EXCLUSIVE)
    assert said(out(unit, ONE, PREEMPT, KEYS[ONE], KEYS[ONE], EXCLUSIVE_ACCESS)) is Status.GOOD
    assert reservation(unit) == (KEYS[ONE], EXCLUSIVE_ACCESS)
    assert keys(unit) == [KEYS[ONE]]


def test_preempt_of_all_registrants_with_key_zero() -> None:
    unit = held(WRITE_EXCLUSIVE_ALL_REGISTRANTS, TWO, THREE)
    assert said(out(unit, THREE, PREEMPT, KEYS[THREE], 0, WRITE_EXCLUSIVE)) is Status.GOOD
    assert keys(unit, THREE) == [KEYS[THREE]]
    assert (unit.reservations.holder, unit.reservations.type) == (THREE, WRITE_EXCLUSIVE)


def test_preempt_of_all_registrants_by_key_leaves_the_reservation() -> None:
    unit = held(WRITE_EXCLUSIVE_ALL_REGISTRANTS, TWO, THREE)
    assert said(out(unit, TWO, PREEMPT, KEYS[TWO], KEYS[ONE], WRITE_EXCLUSIVE)) is Status.GOOD
    assert unit.reservations.type == WRITE_EXCLUSIVE_ALL_REGISTRANTS
    assert set(unit.reservations.registrations) == {TWO, THREE}


def test_preempt_refusals() -> None:
    unit = held(WRITE_EXCLUSIVE, TWO)
    assert said(out(unit, TWO, PREEMPT, KEYS[TWO], 0x77, WRITE_EXCLUSIVE)) is Status.RESERVATION_CONFLICT
    assert pointed_at(out(unit, TWO, PREEMPT, KEYS[TWO], 0, WRITE_EXCLUSIVE)) == ("data", 8, None)
    assert said(out(unit, THREE, PREEMPT, 0, KEYS[ONE], WRITE_EXCLUSIVE)) is Status.RESERVATION_CONFLICT


def test_preempt_and_abort_ends_the_victims_tasks() -> None:
    ended: list[object] = []
    unit = LogicalUnit(RamTarget(), lun=0, abort_tasks=ended.append)
    for nexus in (ONE, TWO):
        unit.nexus_opened(nexus)
        unit.take_attention(nexus)
    registered(unit, ONE, TWO)
    out(unit, TWO, PREEMPT_AND_ABORT, KEYS[TWO], KEYS[ONE], WRITE_EXCLUSIVE)
    assert ended == [ONE]


def test_unregister_releases() -> None:
    unit = held(WRITE_EXCLUSIVE_REGISTRANTS_ONLY, TWO)
    out(unit, ONE, REGISTER, KEYS[ONE], 0)
    assert reservation(unit) is None
    assert unit.take_attention(TWO) is Condition.RESERVATIONS_RELEASED


def test_unregister_of_one_of_all_registrants_keeps_the_reservation() -> None:
    unit = held(WRITE_EXCLUSIVE_ALL_REGISTRANTS, TWO)
    out(unit, ONE, REGISTER, KEYS[ONE], 0)
    assert reservation(unit) == (0, WRITE_EXCLUSIVE_ALL_REGISTRANTS)
    out(unit, TWO, REGISTER, KEYS[TWO], 0)
    assert reservation(unit) is None


# ---- reports, lifetime


def test_report_capabilities() -> None:
    assert data_of(run(three(), reserve_in(2))).hex() == "00080580ea010000"


def test_read_keys_allocation_length_keeps_the_whole_count() -> None:
    data = data_of(run(registered(three(), ONE), reserve_in(0, 8)))
    assert data[4:].hex() == "00000008"


def test_read_full_status() -> None:
    unit = held(WRITE_EXCLUSIVE, TWO)
    data = data_of(run(unit, reserve_in(3)))[8:]
    first_length = 24 + int.from_bytes(data[20:24], "big")
    first, second = data[:first_length], data[first_length:]
    assert first[:8] == KEYS[ONE].to_bytes(8, "big")
    assert (first[12], first[13], first[18:20]) == (1, WRITE_EXCLUSIVE, b"\0\1")
    assert first[24:] == transport_id(ONE)
    assert second[:8] == KEYS[TWO].to_bytes(8, "big")
    assert (second[12], second[13]) == (0, 0)


@pytest.mark.parametrize("suffix", ["", ",t,0x0001"])
def test_transport_id(suffix: str) -> None:
    data = transport_id("iqn.2026-01.test:a,i,0x00023d000001" + suffix)
    assert data[0] == 0x45
    assert len(data) % 4 == 0
    assert int.from_bytes(data[2:4], "big") == len(data) - 4
    assert data[4:].rstrip(b"\0") == b"iqn.2026-01.test:a,i,0x00023d000001"
    assert data.endswith(b"\0")


def test_registration_outlives_nexus_and_reset() -> None:
    unit = held(WRITE_EXCLUSIVE)
    unit.nexus_closed(ONE)
    unit.reset(ResetCause.TARGET_COLD)
    unit.nexus_opened(ONE)
    unit.take_attention(ONE)
    assert reservation(unit) == (KEYS[ONE], WRITE_EXCLUSIVE)
    assert said(run(unit, WRITE_10, bytes(512))) is Status.GOOD


def test_state_survives_json() -> None:
    unit = held(EXCLUSIVE_ACCESS_ALL_REGISTRANTS, TWO)
    state = json.loads(json.dumps(unit.reservations.export()))
    other = three()
    other.reservations.restore(state)
    assert other.reservations.export() == unit.reservations.export()
    assert said(run(other, READ_10, nexus=THREE)) is Status.RESERVATION_CONFLICT


@pytest.mark.parametrize(
    "state",
    [
        {"registrations": [], "holder": "x", "type": 1},
        {"registrations": [["x", "1"]], "holder": "x", "type": 2},
        {"registrations": [["x", "1"]], "holder": "x", "type": 0},
        {"registrations": [["x", "1"]], "holder": None, "type": 1},
    ],
)
def test_state_that_does_not_hold_together_is_refused(state: dict[str, object]) -> None:
    reservations = Reservations()
    with pytest.raises(ValueError, match="reservation"):
        reservations.restore(state)
    assert reservations.export() == Reservations().export()


# ---- RESERVE(6)

RESERVE_6, RELEASE_6 = bytes((0x16, 0, 0, 0, 0, 0)), bytes((0x17, 0, 0, 0, 0, 0))
MODE_SENSE_6 = bytes((0x1A, 0, 0x3F, 0, 255, 0))


def test_reserve_6_two_initiators() -> None:
    unit = three()
    assert said(run(unit, RESERVE_6)) is Status.GOOD
    assert said(run(unit, RESERVE_6)) is Status.GOOD
    assert said(run(unit, RESERVE_6, nexus=TWO)) is Status.RESERVATION_CONFLICT
    assert said(run(unit, RELEASE_6, nexus=TWO)) is Status.GOOD
    assert said(run(unit, MODE_SENSE_6)) is Status.GOOD
    for cdb in (MODE_SENSE_6, bytes(6), READ_10, reserve_in(0)):
        assert said(run(unit, cdb, nexus=TWO)) is Status.RESERVATION_CONFLICT
    assert said(run(unit, bytes((0x12, 0, 0, 0, 36, 0)), nexus=TWO)) is Status.GOOD
    assert said(run(unit, RELEASE_6)) is Status.GOOD
    assert said(run(unit, RESERVE_6, nexus=TWO)) is Status.GOOD


def test_reserve_10_is_reserve_6() -> None:
    unit = three()
    reserve_10, release_10 = bytes((0x56, *bytes(9))), bytes((0x57, *bytes(9)))
    assert said(run(unit, reserve_10)) is Status.GOOD
    assert said(run(unit, RESERVE_6, nexus=TWO)) is Status.RESERVATION_CONFLICT
    assert said(run(unit, READ_10, nexus=TWO)) is Status.RESERVATION_CONFLICT
    assert said(run(unit, RELEASE_6)) is Status.GOOD
    assert said(run(unit, reserve_10, nexus=TWO)) is Status.GOOD
    assert said(run(unit, release_10, nexus=TWO)) is Status.GOOD
    third_party = bytes((0x56, 0x10, *bytes(8)))
    assert said(run(unit, third_party)) is Condition.INVALID_FIELD_IN_CDB


@pytest.mark.parametrize("event", ["lost", "reset"])
def test_reserve_6_ends_with_nexus_or_reset(event: str) -> None:
    unit = three()
    run(unit, RESERVE_6)
    if event == "lost":
        unit.nexus_closed(ONE)
    else:
        unit.reset(ResetCause.LOGICAL_UNIT)
        unit.take_attention(TWO)
    assert said(run(unit, RESERVE_6, nexus=TWO)) is Status.GOOD


def test_reserve_6_and_registrations_exclude_each_other() -> None:
    unit = registered(three(), ONE)
    assert said(run(unit, RESERVE_6)) is Status.RESERVATION_CONFLICT
    assert said(run(unit, RELEASE_6)) is Status.RESERVATION_CONFLICT


# ---- any sequence


class AnySequence(RuleBasedStateMachine):
    """Whatever three nexuses send, the state holds together and can be carried over."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = three()

    @rule(
        nexus=st.sampled_from([ONE, TWO, THREE]),
        action=st.integers(0, 7),
        key=st.integers(0, 3),
        new_key=st.integers(0, 3),
        kind=st.integers(0, 9),
    )
    def send(self, nexus: str, action: int, key: int, new_key: int, kind: int) -> None:
        self.unit.take_attention(nexus)
        response = out(self.unit, nexus, action, key, new_key, kind)
        assert response.status in (Status.GOOD, Status.RESERVATION_CONFLICT, Status.CHECK_CONDITION)

    @invariant()
    def holds_together(self) -> None:
        state = self.unit.reservations
        Reservations().restore(state.export())
        assert 0 not in state.registrations.values()
        for nexus in (ONE, TWO, THREE):
            while self.unit.take_attention(nexus):
                pass
            assert said(run(self.unit, reserve_in(3), nexus=nexus)) is Status.GOOD


AnySequence.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnySequence = AnySequence.TestCase
