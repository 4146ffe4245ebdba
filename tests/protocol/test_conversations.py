"""However the bytes are cut on their way, the conversation is the same."""

import pytest

from blockdev.iscsi.connection import State
from tests.blockdev.iscsi.initiator import Initiator, Pdu, World
from tests.protocol.conversations import CONVERSATIONS, RECORDED, fresh_world

NAMES = list(CONVERSATIONS)


def heard(host: Initiator, name: str) -> list[Pdu]:
    """The answers. The digests begin with the first PDU after the login response, which is always the first one."""
    if name != "digests":
        return host.heard()
    wire = b"".join(host.connection.take())
    first = 48 + (int.from_bytes(wire[5:8], "big") + 3) // 4 * 4
    host._wire += wire[:first]
    answers = host.heard()
    host.header_digest = host.data_digest = True
    host._wire += wire[first:]
    return answers + host.heard()


def play(name: str, sizes: list[int]) -> tuple[World, Initiator, list[Pdu]]:
    """The conversation's bytes in pieces of the given sizes, over and over."""
    world = fresh_world()
    host = world.initiator()
    wire = b"".join(RECORDED[name])
    at = turn = 0
    while at < len(wire):
        size = sizes[turn % len(sizes)]
        host.connection.receive(wire[at : at + size])
        at, turn = at + size, turn + 1
    return world, host, heard(host, name)


def essence(answers: list[Pdu]) -> dict[int, list[tuple[int, int, int, bytes]]]:
    """What each task was told. Between tasks the order may differ (writes are answered when their batch is committed), and
    with it StatSN and MaxCmdSN."""
    told: dict[int, list[tuple[int, int, int, bytes]]] = {}
    for answer in answers:
        fields = answer.fields
        told.setdefault(fields["itt"], []).append(
            (fields["opcode"], fields["flags"], fields.get("residual", 0), answer.data)
        )
    return told


@pytest.mark.parametrize("name", NAMES)
def test_conversation_is_answered(name: str) -> None:
    _, host, answers = play(name, [1 << 30])
    assert answers
    ends = {"everything else", "discovery", "refused"}
    assert (host.connection.state is State.CLOSING) == (name in ends)
    assert bool(host.connection.failure) == (name == "refused")
    numbers = [answer.stat_sn for answer in answers if answer.fields["opcode"] == 0x21]
    assert numbers == sorted(numbers)


@pytest.mark.parametrize("sizes", [[1], [47, 1], [48], [7, 4096, 13], [65536], [20000, 3]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_cut_anywhere_it_is_the_same(name: str, sizes: list[int]) -> None:
    whole_world, whole, expected = play(name, [1 << 30])
    world, host, answers = play(name, sizes)
    assert essence(answers) == essence(expected)
    assert host.connection.state == whole.connection.state
    assert host.connection.failure == whole.connection.failure
    assert world.target.peek(0, 512) == whole_world.target.peek(0, 512)


@pytest.mark.parametrize("name", NAMES)
def test_a_connection_lost_at_any_pdu_leaves_nothing_behind(name: str) -> None:
    for end in range(len(RECORDED[name]) + 1):
        world = fresh_world()
        host = world.initiator()
        for pdu in RECORDED[name][:end]:
            host.connection.receive(pdu)
        host.connection.lost()
        assert world.nodes.sessions == {}
        assert host.connection.take() == []
        assert world.target.staged == 0
