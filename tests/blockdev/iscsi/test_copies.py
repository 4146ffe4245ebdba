"""EXTENDED COPY through the portal: who reaches what, and a copy that is aborted."""

from collections.abc import Callable
from uuid import UUID

import pytest

from blockdev.iscsi.pdu import Opcode, TaskAnswer, TaskFunction
from blockdev.scsi import copying
from tests.blockdev.iscsi.initiator import HOST, WRITE, Initiator, World
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.test_extended_copy import cdb, listed, named, pattern, segment, within

GOOD, CHECK = 0x00, 0x02
NOT_REACHABLE = (0x0A, 0x0D, 0x02)
OTHER_IQN = "iqn.2004-10.com.example:other"
OTHER_VOLUME = UUID("0e7f4a0c-5c55-4a41-9b3a-3a8f7c1d2e90")


def sent(host: Initiator, parameters: bytes) -> int:
    return host.ask(cdb(len(parameters)), expected=len(parameters), flags=WRITE, data=parameters)


def login(world: World, target: str, name: str = HOST, isid: int = 0x00023D000009) -> Initiator:
    host = world.initiator(name, isid=isid)
    assert host.log_in(TargetName=target).status_word == 0
    assert host.command(bytes(6)).status == CHECK
    return host


def test_a_copy_reaches_only_targets_the_initiator_is_logged_in_to() -> None:
    world = World()
    there = RamTarget(identity=OTHER_VOLUME)
    world.nodes.serve(OTHER_IQN, {0: there})
    world.target.poke(0, pattern(8))
    host = world.logged_in()
    login(world, OTHER_IQN, "iqn.1993-08.org.debian:01:somebody")
    parameters = listed([named(world.target), named(there)], [segment(0, 100, 8, ends=(0, 1))])
    sent(host, parameters)
    refused = host.one()
    assert (refused.status, refused.sense) == (CHECK, NOT_REACHABLE)
    beside = login(world, OTHER_IQN)
    sent(host, parameters)
    assert host.one().status == GOOD
    assert there.peek(100, 8) == pattern(8)
    assert beside.connection.session is not None
    beside.connection.session.close()
    sent(host, parameters)
    assert host.one().sense == NOT_REACHABLE


def running_copy(monkeypatch: pytest.MonkeyPatch) -> tuple[World, RamTarget, Initiator, int, list[Callable[[], None]]]:
    """A copy of eight pieces, the first of which is done."""
    monkeypatch.setattr(copying, "PIECE_BYTES", 8 * 512)
    world, target, turns = World(), RamTarget(4096), list[Callable[[], None]]()
    world.nodes.serve(OTHER_IQN, {0: target}, later=lambda seconds, call: turns.append(call))
    target.poke(0, pattern(64))
    host = login(world, OTHER_IQN)
    tag = sent(host, within(0, 100, 64))
    assert host.heard() == []
    return world, target, host, tag, turns


def test_an_aborted_copy_ends_after_its_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    _, target, host, tag, turns = running_copy(monkeypatch)
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=tag)
    assert host.heard() == [], "it is still at work"
    turns.pop()()
    answer = host.one()
    assert (answer.opcode, answer.itt, answer.response) == (
        Opcode.TASK_MANAGEMENT_RESPONSE,
        abort,
        TaskAnswer.COMPLETE,
    )
    assert not turns
    assert target.peek(100, 64) == pattern(64)[: 8 * 512] + bytes(56 * 512)


def test_a_copy_ends_with_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    _, target, host, _, turns = running_copy(monkeypatch)
    assert host.connection.session is not None
    host.connection.session.close()
    turns.pop()()
    assert not turns
    assert target.peek(100, 64) == pattern(64)[: 8 * 512] + bytes(56 * 512)


def test_a_copy_that_goes_on_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    _, target, host, tag, turns = running_copy(monkeypatch)
    while turns:
        turns.pop()()
    answer = host.one()
    assert (answer.itt, answer.status) == (tag, GOOD)
    assert target.peek(100, 64) == pattern(64)
    assert host.notified
