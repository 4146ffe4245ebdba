"""Any bytes either parse or end the session with its named error; memory stays bounded; nothing else escapes.

The bodies take bytes, so that a coverage-guided fuzzer can drive them too (`fuzz_one_input` of hypothesis).
"""

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blockdev.iscsi.connection import LOGIN_RECEIVE_BYTES, RECEIVE_BYTES, State
from blockdev.iscsi.nexus import WINDOW
from tests.blockdev.iscsi.initiator import Initiator
from tests.blockdev.ram_target import RamTarget
from tests.protocol.conversations import CONVERSATIONS, RECORDED, fresh_world

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
MEMORY_MAX = 48 << 20


def held_bytes(host: Initiator) -> int:
    """What a connection keeps on an initiator's behalf."""
    connection = host.connection
    size = len(connection._rx)
    session = connection.session
    if session is not None:
        size += session._held_bytes
        assert len(session.tasks) <= 3 * WINDOW
        for task in session.tasks.values():
            size += sum(len(burst.buffer or b"") for burst in getattr(task, "bursts", []))
    return size


def check(host: Initiator, target: RamTarget) -> None:
    connection = host.connection
    assert len(connection._rx) in (LOGIN_RECEIVE_BYTES, RECEIVE_BYTES)
    assert connection.session is not None or len(connection._rx) == LOGIN_RECEIVE_BYTES
    assert held_bytes(host) <= MEMORY_MAX
    assert target.staged == 0, "what was staged is committed when a receive ends"
    if connection.state is not State.CLOSING:
        assert sum(map(len, connection.buffers())) > 0
    connection.take()


def feed(pieces: list[bytes]) -> None:
    world = fresh_world()
    host = world.initiator()
    for piece in pieces:
        host.connection.receive(piece)
        world.target.run_all()
        check(host, world.target)
    host.connection.lost()
    assert world.nodes.sessions == {}


@FUZZ
@given(st.lists(st.binary(max_size=400), max_size=6))
@example([b"\x43" + bytes(47)])
@example([bytes(48), b"x"])
def test_any_bytes_before_login(pieces: list[bytes]) -> None:
    feed(pieces)


@FUZZ
@given(st.lists(st.binary(min_size=48, max_size=48), max_size=30))
def test_any_headers_after_login(headers: list[bytes]) -> None:
    """Without their data segments most are followed by what then counts as data: that is the point."""
    feed([RECORDED["reads and writes"][0], *headers])


HEADER_AFTER_LOGIN = st.builds(
    lambda opcode, flags, lun, itt, words, cmd_sn, cdb: (
        bytes((opcode, flags, 0, 0, 0, 0, 0, 0))
        + bytes((0, lun))
        + bytes(6)
        + itt.to_bytes(4, "big")
        + words.to_bytes(4, "big")
        + cmd_sn.to_bytes(4, "big")
        + bytes(4)
        + cdb
    ),
    st.sampled_from([0x00, 0x01, 0x41, 0x02, 0x42, 0x03, 0x44, 0x05, 0x06, 0x10, 0x1C, 0x21, 0x3F]),
    st.integers(0, 255),
    st.integers(0, 2),
    st.integers(0, 4),
    st.sampled_from([0, 1, 3, 512, 1024, 65536, 0xFFFFFFFF]),
    st.integers(0, 8),
    st.one_of(
        st.binary(min_size=16, max_size=16),
        st.builds(
            lambda opcode, lba, count: bytes((opcode, 0)) + lba.to_bytes(4, "big") + bytes((0, 0, count)) + bytes(7),
            st.sampled_from([0x28, 0x2A, 0x2E, 0x2F, 0x35, 0x41, 0x42, 0x12, 0x1A, 0x5F]),
            st.integers(0, 5000),
            st.integers(0, 4),
        ),
    ),
)


@FUZZ
@given(st.lists(HEADER_AFTER_LOGIN, max_size=40), st.booleans())
def test_plausible_headers_after_login(headers: list[bytes], late: bool) -> None:
    """Valid enough to get far: small numbers, known opcodes, real commands, an optional slow disk."""
    world = fresh_world()
    world.target.deferred_reads = late
    host = world.initiator()
    host.connection.receive(RECORDED["reads and writes"][0])
    for index, header in enumerate(headers):
        host.connection.receive(header)
        if index % 3 == 2:
            world.target.run_all()
        check(host, world.target)
    host.connection.lost()
    world.target.run_all()
    assert world.nodes.sessions == {}


@FUZZ
@given(st.data())
def test_mutated_conversations(data: st.DataObject) -> None:
    """A valid conversation with bytes changed, PDUs dropped, doubled, swapped and cut."""
    name = data.draw(st.sampled_from(list(CONVERSATIONS)))
    pdus = list(RECORDED[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(pdus) - 1))
        match data.draw(st.sampled_from(["byte", "drop", "double", "swap", "cut"])):
            case "byte":
                pdu = bytearray(pdus[at])
                if pdu:
                    pdu[data.draw(st.integers(0, min(len(pdu), 200) - 1))] = data.draw(st.integers(0, 255))
                pdus[at] = bytes(pdu)
            case "drop":
                pdus[at] = b""
            case "double":
                pdus.insert(at, pdus[at])
            case "swap":
                other = data.draw(st.integers(0, len(pdus) - 1))
                pdus[at], pdus[other] = pdus[other], pdus[at]
            case "cut":
                pdus[at] = pdus[at][: data.draw(st.integers(0, len(pdus[at])))]
    feed(pdus)
