"""Whole conversations of an initiator, as bytes: one table for the framing tests and for the fuzzers.

One rule: a conversation is a function of a fresh `Initiator` that says its lines and checks nothing; `record` turns it into
the list of PDUs the initiator sent. What is right to answer is tested in tests/blockdev/iscsi.
"""

from collections.abc import Callable

from blockdev.iscsi.pdu import FINAL, NO_TAG, Opcode, TaskFunction
from tests.blockdev.iscsi.initiator import FLUSH, IQN, LOGIN_KEYS, READ, WRITE, Initiator, W, World, read10, write10
from tests.blockdev.ram_target import RamTarget


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + seed) % 251 for index in range(length))


def _reads_and_writes(host: Initiator) -> None:
    host.log_in()
    host.ask(bytes(6))
    for lba in range(4):
        host.ask(write10(lba, 1), expected=512, flags=WRITE, data=pattern(512, lba))
    host.ask(read10(0, 4), expected=2048, flags=READ)
    host.ask(FLUSH)
    host.ask(read10(1 << 30, 1), expected=512, flags=READ)
    host.ask(bytes((0x12, 0, 0, 0, 5, 0)), expected=5, flags=READ)


def _unsolicited(host: Initiator) -> None:
    host.log_in(ImmediateData="Yes")
    host.ask(bytes(6))
    whole = pattern(2048)
    tag = host.ask(write10(8, 4), expected=2048, flags=W, data=whole[:512])
    host.data_out(tag, NO_TAG, whole[512:1024], offset=512, data_sn=0, final=False)
    host.data_out(tag, NO_TAG, whole[1024:], offset=1024, data_sn=1)
    host.ask(read10(8, 4), expected=2048, flags=READ)


def _solicited(host: Initiator) -> None:
    """Transfer tags count from 1, so the answers to R2Ts can be said without having heard them."""
    host.log_in(ImmediateData="No", InitialR2T="Yes", MaxBurstLength="65536", MaxOutstandingR2T="2")
    host.ask(bytes(6))
    whole = pattern(131072)
    tag = host.ask(write10(0, 256), expected=131072, flags=WRITE)
    for ttt, start in ((1, 0), (2, 65536)):
        for data_sn, offset in enumerate(range(start, start + 65536, 32768)):
            last = offset + 32768 == start + 65536
            host.data_out(tag, ttt, whole[offset : offset + 32768], offset=offset, data_sn=data_sn, final=last)
    host.ask(read10(0, 256), expected=131072, flags=READ)


def _digests(host: Initiator) -> None:
    host.log_in(HeaderDigest="CRC32C", DataDigest="CRC32C")
    # Recorded without hearing the answers, so what was agreed on is said here.
    host.header_digest = host.data_digest = True
    host.ask(bytes(6))
    host.ask(write10(3, 64), expected=32768, flags=WRITE, data=pattern(32768))
    host.send(Opcode.NOP_OUT, data=b"odd", itt=90, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    host.ask(read10(3, 64), expected=32768, flags=READ)


def _everything_else(host: Initiator) -> None:
    host.login(host.names() | {"AuthMethod": "None"}, stage=0, to=1)
    host.login(LOGIN_KEYS)
    host.ask(bytes(6))
    host.send(Opcode.NOP_OUT, data=b"ping", itt=91, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    host.send(Opcode.TEXT, data=b"SendTargets=\0", itt=92, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    host.manage(TaskFunction.ABORT_TASK, referenced=3, ref_cmd_sn=host.cmd_sn - 1)
    host.manage(TaskFunction.LOGICAL_UNIT_RESET)
    host.ask(bytes(6), lun=5)
    host.ask(bytes(6), cmd_sn=host.cmd_sn + 1)
    host.ask(bytes(6))
    host.send(Opcode.SNACK, itt=93)
    host.send(Opcode.LOGOUT, itt=94, cmd_sn=host.cmd_sn, immediate=1)


def _discovery(host: Initiator) -> None:
    host.login({"InitiatorName": host.name, "SessionType": "Discovery"}, to=3)
    host.send(Opcode.TEXT, data=b"SendTargets=All\0", itt=1, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    host.send(Opcode.LOGOUT, FINAL, itt=2, cmd_sn=host.cmd_sn, immediate=1)


def _refused(host: Initiator) -> None:
    host.login({"InitiatorName": host.name, "TargetName": IQN + "x"})


CONVERSATIONS: dict[str, Callable[[Initiator], None]] = {
    "reads and writes": _reads_and_writes,
    "unsolicited data": _unsolicited,
    "solicited data": _solicited,
    "digests": _digests,
    "everything else": _everything_else,
    "discovery": _discovery,
    "refused": _refused,
}


class _Recorder(Initiator):
    """Speaks into a list."""

    def __init__(self, world: World, name: str, isid: int) -> None:
        super().__init__(world, name, isid)
        self.said: list[bytes] = []

    def deliver(self, wire: bytes) -> None:
        self.said.append(wire)
        self.connection.receive(wire)


def fresh_world() -> World:
    return World(RamTarget(4096))


def record(name: str) -> list[bytes]:
    """The PDUs of a conversation, each whole."""
    recorder = _Recorder(fresh_world(), "iqn.1993-08.org.debian:01:host", 0x00023D000001)
    CONVERSATIONS[name](recorder)
    return recorder.said


RECORDED: dict[str, list[bytes]] = {name: record(name) for name in CONVERSATIONS}
