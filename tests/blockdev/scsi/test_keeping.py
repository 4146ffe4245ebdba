"""Persistent reservations that outlive the host: answered when kept, and never ahead of what is kept."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from blockdev.errors import CorruptFormat, Fenced, StoreUnreachable
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.operation import NeedData, ReserveOut, Response, Status
from blockdev.scsi.perform import perform
from blockdev.scsi.ports import Port, port_of, through_every_port
from blockdev.scsi.reservations import REGISTRATIONS_MAX
from blockdev.scsi.sense import Condition
from blockdev.segments import record
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import (
    ONE,
    THREE,
    TWO,
    data_of,
    reserve_in,
    reserve_out,
    reserve_out_data,
    run,
    said,
    ten,
)
from tests.formats.specimens import DATA

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, REGISTER_ANYWAY = range(7)
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3
ALL_TG_PT, APTPL = 0x04, 0x01
READ_10 = ten(0x28, 0, 1)


def unit_of(target: RamTarget, *nexuses: str, ports: tuple[Port, ...] = ()) -> LogicalUnit:
    """What a daemon makes when it starts to serve."""
    unit = LogicalUnit(target, lun=0, ports=ports)
    for nexus in nexuses or (ONE, TWO):
        unit.nexus_opened(nexus)
        unit.take_attention(nexus)
    return unit


def out(
    unit: LogicalUnit, nexus: str, action: int, key: int, new_key: int = 0, kind: int = 0, flags: int = 0
) -> Response:
    return run(unit, reserve_out(action, kind), reserve_out_data(key, new_key, flags), nexus=nexus)


def sent(unit: LogicalUnit, nexus: str, action: int, key: int, new_key: int = 0, flags: int = 0) -> list[Response]:
    """Sent, and perhaps not answered yet."""
    need = unit.begin(reserve_out(action), nexus)
    assert isinstance(need, NeedData)
    operation = need.then(reserve_out_data(key, new_key, flags))
    assert isinstance(operation, ReserveOut)
    answers: list[Response] = []
    perform(operation, unit.target, answers.append)
    return answers


def keys(unit: LogicalUnit) -> list[int]:
    data = data_of(run(unit, reserve_in(0)))[8:]
    return [int.from_bytes(data[at : at + 8], "big") for at in range(0, len(data), 8)]


def test_with_aptpl_a_restart_finds_registrations_and_reservation() -> None:
    target = RamTarget()
    unit = unit_of(target)
    assert said(out(unit, ONE, REGISTER, 0, 0x11, flags=APTPL)) is Status.GOOD
    assert said(out(unit, TWO, REGISTER, 0, 0x22, flags=APTPL)) is Status.GOOD
    assert said(out(unit, ONE, RESERVE, 0x11, kind=EXCLUSIVE_ACCESS)) is Status.GOOD
    target.kept_reservations = json.loads(json.dumps(target.kept_reservations))
    again = unit_of(target)
    assert keys(again) == [0x11, 0x22]
    assert data_of(run(again, reserve_in(1)))[:4] == bytes(4), "the generation begins anew (SPC-4)"
    assert said(run(again, READ_10, nexus=TWO)) is Status.RESERVATION_CONFLICT
    assert run(again, READ_10, nexus=ONE).status is Status.GOOD
    assert data_of(run(again, reserve_in(2)))[2:4] == bytes((0x05, 0x81)), "PTPL_C, ATP_C; TMV, PTPL_A"


def test_without_aptpl_nothing_is_kept() -> None:
    target = RamTarget()
    unit = unit_of(target)
    out(unit, ONE, REGISTER, 0, 0x11)
    out(unit, ONE, RESERVE, 0x11, kind=EXCLUSIVE_ACCESS)
    assert not [call for call in target.calls if call[0] == "keep_reservations"]
    assert keys(unit_of(target)) == []


def test_the_newest_registration_decides_for_all() -> None:
    target = RamTarget()
    unit = unit_of(target)
    out(unit, ONE, REGISTER, 0, 0x11, flags=APTPL)
    out(unit, TWO, REGISTER, 0, 0x22)
    assert target.kept_reservations is None
    assert data_of(run(unit, reserve_in(2)))[3] == 0x80
    out(unit, TWO, REGISTER, 0x22, 0x23, flags=APTPL)
    assert keys(unit_of(target)) == [0x11, 0x23]


def test_the_flag_means_nothing_but_in_a_registration() -> None:
    target = RamTarget()
    unit = unit_of(target)
    out(unit, ONE, REGISTER, 0, 0x11, flags=APTPL)
    assert said(out(unit, ONE, RESERVE, 0x11, kind=WRITE_EXCLUSIVE, flags=0)) is Status.GOOD
    assert said(out(unit, ONE, RELEASE, 0x11, kind=WRITE_EXCLUSIVE, flags=APTPL | ALL_TG_PT)) is Status.GOOD
    assert said(out(unit, ONE, CLEAR, 0x11, flags=0x08)) is Condition.INVALID_FIELD_IN_PARAMETER_LIST
    assert keys(unit_of(target)) == [0x11]


@pytest.mark.parametrize("action", [CLEAR, REGISTER, REGISTER_ANYWAY])
def test_when_nobody_is_registered_nothing_is_kept(action: int) -> None:
    target = RamTarget()
    unit = unit_of(target)
    out(unit, ONE, REGISTER, 0, 0x11, flags=APTPL)
    assert said(out(unit, ONE, action, 0x11, 0, flags=APTPL)) is Status.GOOD
    assert target.kept_reservations is None


def test_answered_when_kept_and_judged_by_the_state_before_until_then() -> None:
    target = RamTarget()
    unit = unit_of(target, ONE, TWO, THREE)
    ended: list[str] = []
    unit._abort_tasks = lambda nexus: ended.append(str(nexus))
    for nexus, key in ((ONE, 1), (TWO, 2), (THREE, 3)):
        out(unit, nexus, REGISTER, 0, key, flags=APTPL)
    out(unit, TWO, RESERVE, 2, kind=EXCLUSIVE_ACCESS)
    target.deferred_flushes = True
    need = unit.begin(reserve_out(PREEMPT_AND_ABORT, EXCLUSIVE_ACCESS), ONE)
    assert isinstance(need, NeedData)
    operation = need.then(reserve_out_data(1, 2))
    first: list[Response] = []
    assert isinstance(operation, ReserveOut)
    perform(operation, target, first.append)
    second = sent(unit, THREE, REGISTER, 3, 4, APTPL)
    assert not first
    assert not second
    assert not ended
    target.deferred_reads = False
    assert isinstance(unit.begin(READ_10, ONE), Response), "TWO still has it"
    assert keys(unit) == [1, 2, 3]
    assert said(run_reserve(unit, THREE)) is Status.RESERVATION_CONFLICT
    target.run_one()
    assert [answer.status for answer in first] == [Status.GOOD]
    assert ended == [TWO]
    assert unit.take_attention(TWO) is Condition.REGISTRATIONS_PREEMPTED
    assert not second, "one after the other"
    target.run_one()
    assert [answer.status for answer in second] == [Status.GOOD]
    assert keys(unit) == [1, 4]


def run_reserve(unit: LogicalUnit, nexus: str) -> Response:
    outcome = unit.begin(bytes((0x16, 0, 0, 0, 0, 0)), nexus)
    assert isinstance(outcome, Response)
    return outcome


def test_reserve_6_does_not_slip_in_while_a_registration_is_being_kept() -> None:
    target = RamTarget(deferred_flushes=True)
    unit = unit_of(target)
    answers = sent(unit, ONE, REGISTER, 0, 1, APTPL)
    assert said(run_reserve(unit, TWO)) is Status.RESERVATION_CONFLICT
    target.run_all()
    assert answers[0].status is Status.GOOD


def test_what_could_not_be_kept_is_not_so_and_the_next_change_settles_it() -> None:
    target = RamTarget()
    unit = unit_of(target)
    out(unit, ONE, REGISTER, 0, 0x11, flags=APTPL)
    target.fail_next("keep_reservations", StoreUnreachable("away"))
    assert said(out(unit, TWO, REGISTER, 0, 0x22, flags=APTPL)) is Status.BUSY
    assert keys(unit) == [0x11]
    # The bucket may have it all the same: even a command that changes nothing is kept now.
    target.kept_reservations = {"registrations": [[TWO, "22"]], "holder": None, "type": 0}
    assert said(out(unit, ONE, REGISTER, 0x11, 0x11, flags=APTPL)) is Status.GOOD
    assert keys(unit_of(target)) == [0x11]
    target.fail_next("keep_reservations", Fenced("taken over"))
    assert said(out(unit, ONE, CLEAR, 0x11)) is Condition.MANUAL_INTERVENTION_REQUIRED
    assert keys(unit) == [0x11]


def test_so_many_wait() -> None:
    target = RamTarget(deferred_flushes=True)
    unit = unit_of(target)
    first = sent(unit, ONE, REGISTER, 0, 1, APTPL)
    waiting = [sent(unit, TWO, REGISTER_ANYWAY, 0, 5, APTPL) for _ in range(256)]
    assert said(sent(unit, TWO, REGISTER_ANYWAY, 0, 5, APTPL)[0]) is Status.BUSY
    target.run_all()
    assert all(said(answers[0]) is Status.GOOD for answers in [first, *waiting])


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"registrations": 1, "holder": None, "type": 0},
        {"registrations": [], "holder": ONE, "type": 1},
        {"registrations": [[ONE, "xyz"]], "holder": None, "type": 0},
    ],
)
def test_what_does_not_hold_together_is_not_served(state: dict[str, Any]) -> None:
    target = RamTarget()
    target.kept_reservations = state
    with pytest.raises(CorruptFormat):
        unit_of(target)


def test_behind_lio_what_is_kept_is_left_alone() -> None:
    target = RamTarget()
    out(unit_of(target), ONE, REGISTER, 0, 0x11, flags=APTPL)
    kept = target.kept_reservations
    unit = LogicalUnit(target, lun=0, keeps_reservations=False)
    unit.nexus_opened("lio")
    unit.take_attention("lio")
    assert unit.reservations.free
    assert said(out(unit, "lio", REGISTER, 0, 0x11)) is Status.GOOD
    assert target.kept_reservations is kept


def test_the_largest_state_is_a_small_record() -> None:
    target = RamTarget()
    unit = unit_of(target)
    for number in range(REGISTRATIONS_MAX):
        name = f"iqn.2026-01.test:{number:0205x},i,0x{number:012x},t,0x0001"
        need = unit.begin(reserve_out(REGISTER), name)
        assert isinstance(need, NeedData)
        operation = need.then(reserve_out_data(0, number + (1 << 63), APTPL))
        assert isinstance(operation, ReserveOut)
        perform(operation, target, lambda answer: None)
    assert len(unit.reservations.registrations) == REGISTRATIONS_MAX
    made = replace(
        DATA, folds=[], moves=[], ranges=[], bases=[], patches=[], note={"reservations": target.kept_reservations}
    )
    raw = len(json.dumps(target.kept_reservations))
    packed = sum(len(part) for part in record.encode(made)[0])
    assert raw < 320 * 1024
    assert packed < 64 * 1024


# ---- ports

TWO_PORTS = (Port(1, 1, "0001"), Port(2, 7, "0002"))
HERE, THERE = f"{ONE},t,0x0001", f"{ONE},t,0x0002"


def test_names_of_ports() -> None:
    assert port_of(HERE, TWO_PORTS) is TWO_PORTS[0]
    assert port_of(THERE, TWO_PORTS) is TWO_PORTS[1]
    assert port_of(ONE, TWO_PORTS) is TWO_PORTS[0]
    assert port_of(THERE, (Port(4),)) == Port(4)
    assert through_every_port(THERE, TWO_PORTS) == [THERE, HERE]
    assert through_every_port(HERE, (Port(),)) == [HERE]


def test_all_tg_pt_registers_through_every_port() -> None:
    unit = unit_of(RamTarget(), HERE, THERE, ports=TWO_PORTS)
    assert said(out(unit, HERE, REGISTER, 0, 0x11, flags=ALL_TG_PT)) is Status.GOOD
    assert keys(unit) == [0x11, 0x11]
    status = data_of(run(unit, reserve_in(3), nexus=HERE))
    assert generation(status) == 1, "one command, one generation"
    ports, at = [], 8
    while at < len(status):
        ports.append(int.from_bytes(status[at + 18 : at + 20], "big"))
        at += 24 + int.from_bytes(status[at + 20 : at + 24], "big")
    assert ports == [1, 2]
    assert said(out(unit, THERE, REGISTER, 0x11, 0)) is Status.GOOD
    assert list(unit.reservations.registrations) == [HERE]


def generation(data: bytes) -> int:
    return int.from_bytes(data[:4], "big")


# ---- any sequence, with failures and restarts


class AnySequence(RuleBasedStateMachine):
    """What was answered with APTPL=1 is what a restart finds; what failed changed nothing here."""

    def __init__(self) -> None:
        super().__init__()
        self.target = RamTarget()
        self.unit = unit_of(self.target, ONE, TWO)
        self.settled = True

    @rule(
        nexus=st.sampled_from([ONE, TWO]),
        action=st.integers(0, 6),
        key=st.integers(0, 2),
        new_key=st.integers(0, 2),
        kind=st.sampled_from([1, 3, 5, 8]),
        flags=st.sampled_from([0, APTPL, APTPL]),
        fails=st.booleans(),
    )
    def send(self, nexus: str, action: int, key: int, new_key: int, kind: int, flags: int, fails: bool) -> None:
        self.target._failures.clear()
        if fails:
            self.target.fail_next("keep_reservations", StoreUnreachable("away"))
        before = self.unit.reservations.export()
        self.unit.take_attention(nexus)
        response = out(self.unit, nexus, action, key, new_key, kind, flags)
        if response.status is Status.BUSY:
            assert self.unit.reservations.export() == before
            self.settled = False
        elif response.status is Status.GOOD:
            self.settled = True
        for each in (ONE, TWO):
            while self.unit.take_attention(each):
                pass

    @rule()
    def restart(self) -> None:
        if self.settled:
            before, kept = self.unit.reservations.export(), self.unit.reservations.aptpl
            self.unit = unit_of(self.target, ONE, TWO)
            nothing: dict[str, Any] = {"registrations": [], "holder": None, "type": 0}
            assert self.unit.reservations.export() == (before if kept else nothing)
        else:
            self.unit = unit_of(self.target, ONE, TWO)
            self.settled = True

    @invariant()
    def kept_is_what_is_promised(self) -> None:
        state = self.unit.reservations
        if self.settled:
            assert self.target.kept_reservations == (state.export() if state.aptpl and state.registrations else None)


AnySequence.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnySequence = AnySequence.TestCase
