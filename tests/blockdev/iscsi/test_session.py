"""Full feature phase: what each command, number and abort leads to on the wire and on the volume."""

from collections.abc import Callable

import pytest

from blockdev.errors import LocalDiskFailed, MediumError
from blockdev.iscsi import session, transfer
from blockdev.iscsi.connection import OUTBOX_BYTES_HIGH, OVERFLOW_BYTES, RECEIVE_BYTES, State
from blockdev.iscsi.nexus import WINDOW
from blockdev.iscsi.pdu import FINAL, NO_TAG, Opcode, Reason, TaskAnswer, TaskFunction
from blockdev.target import Buffer
from tests.blockdev.iscsi.initiator import FLUSH, READ, WRITE, Initiator, R, W, World, read10, write10
from tests.blockdev.ram_target import RamTarget

GOOD, CHECK, BUSY, TASK_SET_FULL = 0x00, 0x02, 0x08, 0x28
OTHER = "iqn.1993-08.org.debian:01:other"


def pattern(length: int, seed: int = 1) -> bytes:
    return bytes((index * 7 + seed) % 251 for index in range(length))


# ---- reads


def test_read_comes_as_one_data_in_with_status() -> None:
    world = World()
    world.target.poke(8, pattern(4096))
    answer = world.logged_in().command(read10(8, 8), expected=4096, flags=READ)
    assert answer.opcode == Opcode.DATA_IN
    assert answer.flags == FINAL | 0x01
    assert (answer.status, answer.residual, answer.data) == (GOOD, 0, pattern(4096))


def test_read_is_cut_to_what_the_initiator_takes_and_to_bursts() -> None:
    world = World()
    world.target.poke(0, pattern(8192))
    host = world.logged_in(MaxRecvDataSegmentLength="1536", MaxBurstLength="4096")
    host.ask(read10(0, 16), expected=8192, flags=READ)
    parts = host.heard()
    assert [len(part.data) for part in parts] == [1536, 1536, 1024, 1536, 1536, 1024]
    assert [part.offset for part in parts] == [0, 1536, 3072, 4096, 5632, 7168]
    assert [part.data_sn for part in parts] == list(range(6))
    assert [part.flags for part in parts] == [0, 0, FINAL, 0, 0, FINAL | 0x01]
    assert b"".join(part.data for part in parts) == pattern(8192)
    assert len({part.stat_sn for part in parts[:-1]}) == 1  # 0: only the last carries a status


def test_read_that_waits_for_the_store_is_answered_later() -> None:
    world = World(RamTarget(deferred_reads=True))
    world.target.poke(0, pattern(512))
    host = world.logged_in()
    tag = host.ask(read10(0, 1), expected=512, flags=READ)
    assert host.heard() == []
    world.target.run_all()
    assert host.notified == 1
    answer = host.one()
    assert (answer.itt, answer.status, answer.data) == (tag, GOOD, pattern(512))


def test_failed_read_is_a_check_condition_with_all_of_it_residual() -> None:
    world = World()
    host = world.logged_in()
    world.target.fail_next("read", MediumError("gone", lba=3))
    host.ask(read10(0, 4), expected=2048, flags=READ)
    world.target.run_all()
    answer = host.one()
    assert (answer.status, answer.sense) == (CHECK, (0x3, 0x11, 0x00))
    assert (answer.flags, answer.residual) == (FINAL | 0x02, 2048)


@pytest.mark.parametrize(
    ("expected", "sent", "flags", "residual"), [(1024, 512, 0x83, 512), (256, 256, 0x85, 256), (512, 512, 0x81, 0)]
)
def test_read_residuals(expected: int, sent: int, flags: int, residual: int) -> None:
    world = World()
    answer = world.logged_in().command(read10(0, 1), expected=expected, flags=READ)
    assert (len(answer.data), answer.flags, answer.residual) == (sent, flags, residual)


def test_read_without_the_read_flag_moves_nothing_and_overflows() -> None:
    answer = World().logged_in().command(read10(0, 1), expected=0)
    assert (answer.opcode, answer.flags, answer.residual) == (Opcode.SCSI_RESPONSE, 0x84, 512)


def test_data_in_that_is_no_whole_word_is_padded() -> None:
    inquiry = bytes((0x12, 0, 0, 0, 5, 0))
    answer = World().logged_in().command(inquiry, expected=5, flags=READ)
    assert len(answer.data) == 5


# ---- writes


def test_writes_of_one_receive_are_committed_once_and_then_answered() -> None:
    world = World()
    host = world.logged_in()
    world.target.calls.clear()
    with host.collected() as wire:
        tags = [host.ask(write10(index, 1), expected=512, flags=WRITE, data=pattern(512, index)) for index in range(5)]
    host.connection.receive(wire)
    assert [call[0] for call in world.target.calls] == ["write"] * 5 + ["commit"]
    answers = host.heard()
    assert [answer.itt for answer in answers] == tags
    assert all(answer.status == GOOD for answer in answers)
    assert [answer.stat_sn for answer in answers] == list(range(answers[0].stat_sn, answers[0].stat_sn + 5))
    assert world.target.peek(0, 5) == b"".join(pattern(512, index) for index in range(5))


def test_failed_commit_fails_every_write_of_the_batch() -> None:
    world = World()
    host = world.logged_in()
    world.target.fail_next("commit", LocalDiskFailed("disk"))
    answer = host.command(write10(0, 1), expected=512, flags=WRITE, data=pattern(512))
    assert (answer.status, answer.sense[0]) == (CHECK, 0x4)


class CommitsBeforeReading(RamTarget):
    """A volume whose read commits what is staged, and raises if that fails, as the port allows."""

    def read(self, lba: int, count: int, done: Callable[[list[Buffer] | Exception], None]) -> list[Buffer] | None:
        if self.staged:
            self.commit()
        return super().read(lba, count, done)


def test_commit_that_fails_in_a_read_fails_what_was_staged_too() -> None:
    world = World(CommitsBeforeReading())
    host = world.logged_in()
    world.target.fail_next("commit", LocalDiskFailed("disk"))
    with host.collected() as wire:
        host.ask(write10(0, 1), expected=512, flags=WRITE, data=pattern(512))
        host.ask(read10(0, 1), expected=512, flags=READ)
    host.connection.receive(wire)
    answers = host.heard()
    assert [answer.status for answer in answers] == [CHECK, CHECK]
    assert {answer.sense[0] for answer in answers} == {0x4}


def test_full_journal_is_busy() -> None:
    world = World(RamTarget(room=0))
    answer = world.logged_in().command(write10(0, 1), expected=512, flags=WRITE, data=pattern(512))
    assert answer.status == BUSY


def test_fua_write_is_flushed_before_its_answer() -> None:
    world = World(RamTarget(deferred_flushes=True))
    host = world.logged_in()
    host.ask(write10(0, 1, fua=True), expected=512, flags=WRITE, data=pattern(512))
    assert host.heard() == []
    world.target.run_all()
    assert host.one().status == GOOD
    assert world.target.flushed == 1


def test_flush_is_answered_when_it_is_done() -> None:
    world = World(RamTarget(deferred_flushes=True))
    host = world.logged_in()
    tag = host.ask(FLUSH)
    assert host.heard() == []
    world.target.run_all()
    assert host.one().itt == tag


def test_write_larger_than_the_first_burst_is_asked_for() -> None:
    world = World(RamTarget(4096))
    host = world.logged_in(FirstBurstLength="4096", MaxBurstLength="8192", MaxOutstandingR2T="2")
    whole = pattern(40 * 512)
    tag = host.ask(write10(0, 40), expected=len(whole), flags=WRITE, data=whole[:4096])
    asked = host.heard()
    assert [(r2t.opcode, r2t.offset, r2t.desired, r2t.r2t_sn) for r2t in asked] == [
        (Opcode.R2T, 4096, 8192, 0),
        (Opcode.R2T, 12288, 8192, 1),
    ]
    for r2t in asked:
        for data_sn, offset in enumerate(range(r2t.offset, r2t.offset + 8192, 2048)):
            final = offset + 2048 == r2t.offset + 8192
            host.data_out(tag, r2t.ttt, whole[offset : offset + 2048], offset=offset, data_sn=data_sn, final=final)
    assert host.one().status == GOOD
    assert world.target.peek(0, 40) == whole


def test_no_more_r2ts_are_open_than_agreed() -> None:
    world = World(RamTarget(4096))
    host = world.logged_in(
        FirstBurstLength="512", MaxBurstLength="512", MaxOutstandingR2T="1", InitialR2T="Yes", ImmediateData="No"
    )
    whole = pattern(1536)
    tag = host.ask(write10(0, 3), expected=1536, flags=WRITE)
    for offset in (0, 512, 1024):
        r2t = host.one()
        assert (r2t.offset, r2t.desired) == (offset, 512)
        host.data_out(tag, r2t.ttt, whole[offset : offset + 512], offset=offset)
    assert host.one().status == GOOD
    assert world.target.peek(0, 3) == whole


def test_data_is_asked_for_only_while_all_of_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """First come, first served; a task that is aborted gives its share back."""
    monkeypatch.setattr(transfer, "SOLICITED_BYTES_MAX", 2048)
    world = World()
    host = world.logged_in(ImmediateData="No", InitialR2T="Yes")
    tags = [host.ask(write10(lba, 2), expected=1024, flags=WRITE) for lba in range(0, 8, 2)]
    first, second = host.heard()
    assert [first.itt, second.itt] == tags[:2]
    host.data_out(tags[0], first.ttt, pattern(1024))
    done, third = sorted(host.heard(), key=lambda answer: answer.opcode)
    assert (done.itt, third.opcode, third.itt) == (tags[0], Opcode.R2T, tags[2])
    host.manage(TaskFunction.ABORT_TASK, referenced=tags[1])
    fourth = next(answer for answer in host.heard() if answer.opcode == Opcode.R2T)
    assert fourth.itt == tags[3]
    for tag, r2t in ((tags[2], third), (tags[3], fourth)):
        host.data_out(tag, r2t.ttt, pattern(1024))
        assert host.one().status == GOOD


def test_reads_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "READING_BYTES_MAX", 1024)
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    tags = [host.ask(read10(lba, 1), expected=512, flags=READ) for lba in range(3)]
    answer = host.one()
    assert (answer.itt, answer.status) == (tags[2], TASK_SET_FULL)
    host.manage(TaskFunction.ABORT_TASK, referenced=tags[0])
    host.heard()
    again = host.ask(read10(2, 1), expected=512, flags=READ)
    world.target.run_all()
    assert [answer.itt for answer in host.heard()] == [tags[1], again]


def test_unsolicited_data_follows_the_command() -> None:
    world = World()
    host = world.logged_in()
    whole = pattern(2048)
    tag = host.ask(write10(4, 4), expected=2048, flags=W, data=whole[:512])
    host.data_out(tag, NO_TAG, whole[512:1024], offset=512, data_sn=0, final=False)
    host.data_out(tag, NO_TAG, whole[1024:], offset=1024, data_sn=1)
    assert host.one().status == GOOD
    assert world.target.peek(4, 4) == whole


def test_refused_write_is_answered_after_its_unsolicited_data() -> None:
    world = World()
    host = world.logged_in()
    tag = host.ask(write10(1 << 30, 4), expected=2048, flags=W)
    assert host.heard() == []
    host.data_out(tag, NO_TAG, bytes(2048))
    assert host.one().sense == (0x5, 0x21, 0x00)


@pytest.mark.parametrize(
    ("expected", "written", "flags", "residual"), [(1024, 512, 0x82, 512), (300, 0, 0x84, 212), (512, 512, 0x80, 0)]
)
def test_write_residuals(expected: int, written: int, flags: int, residual: int) -> None:
    world = World()
    host = world.logged_in()
    answer = host.command(write10(0, 1), expected=expected, flags=WRITE, data=pattern(expected))
    assert (answer.status, answer.flags, answer.residual) == (GOOD, flags, residual)
    assert world.target.peek(0, 2) == pattern(written) + bytes(1024 - written)


def test_overflowing_write_keeps_the_whole_sectors_that_came() -> None:
    world = World()
    answer = world.logged_in().command(write10(0, 4), expected=1100, flags=WRITE, data=pattern(1100))
    assert (answer.status, answer.flags, answer.residual) == (GOOD, 0x84, 2048 - 1100)
    assert world.target.peek(0, 4) == pattern(1100)[:1024] + bytes(1024)


@pytest.mark.parametrize("wrong", [{"data_sn": 5}, {"offset": 512}, {"final": False, "offset": 2048}])
def test_broken_sequence_ends_the_command_only(wrong: dict[str, int]) -> None:
    world = World()
    host = world.logged_in(ImmediateData="No", InitialR2T="Yes")
    tag = host.ask(write10(0, 2), expected=1024, flags=WRITE)
    r2t = host.one()
    host.data_out(tag, r2t.ttt, bytes(1024), **wrong)  # type: ignore[arg-type]  # the options of `data_out`
    answer = host.one()
    assert (answer.itt, answer.sense) == (tag, (0xB, 0x47, 0x05))
    host.data_out(tag, r2t.ttt, bytes(1024))
    assert host.heard() == []
    assert host.command(bytes(6)).status == GOOD


def test_data_out_with_a_tag_nobody_gave_ends_the_session() -> None:
    world = World()
    host = world.logged_in(ImmediateData="No", InitialR2T="Yes")
    tag = host.ask(write10(0, 2), expected=1024, flags=WRITE)
    host.heard()
    host.data_out(tag, 0xABCDEF, bytes(1024))
    assert host.connection.state is State.CLOSING
    assert "0xabcdef" in host.connection.failure


def test_large_segment_is_received_in_place() -> None:
    """A segment that comes in pieces goes straight to the buffer it stays in, and that buffer is used again."""
    world = World(RamTarget(4096))
    host = world.logged_in(FirstBurstLength="262144")
    for seed in (1, 2):
        whole = pattern(262144, seed)
        with host.collected() as wire:
            host.ask(write10(0, 512), expected=262144, flags=WRITE, data=whole)
        host.connection.receive(wire[:30000])
        assert len(host.connection.buffers()) == 2
        host.connection.receive(wire[30000:])
        assert host.one().status == GOOD
        assert world.target.peek(0, 512) == whole
    assert len(world.pool._idle) == 1


def test_one_data_out_after_the_other_is_received_in_place() -> None:
    """Of a second one no more than OVERFLOW_BYTES go through the receive buffer, however much waits in the socket."""
    world = World(RamTarget(4096))
    host = world.logged_in(ImmediateData="No", InitialR2T="Yes", MaxBurstLength="262144")
    whole = {0: pattern(262144, 1), 512: pattern(262144, 2), 1024: pattern(262144, 3)}
    tags = {lba: host.ask(write10(lba, 512), expected=262144, flags=WRITE) for lba in whole}
    given = {pdu.itt: pdu.ttt for pdu in host.heard()}
    with host.collected() as wire:
        for lba, tag in tags.items():
            host.data_out(tag, given[tag], whole[lba])
    connection = host.connection
    left = memoryview(bytes(wire))
    connection.receive(left[:30000])
    left = left[30000:]
    while left:
        buffers = connection.buffers()
        if len(buffers) == 2:
            assert len(buffers[1]) == OVERFLOW_BYTES
        took = 0
        for room in buffers:
            part = left[: len(room)]
            room[: len(part)] = part
            left = left[len(part) :]
            took += len(part)
        connection.received(took)
    assert [pdu.status for pdu in host.heard()] == [GOOD] * 3
    assert world.target.peek(0, 1536) == b"".join(whole.values())


# ---- other commands


def test_slow_commands_see_staged_writes_and_are_committed() -> None:
    """UNMAP stages like a write: its GOOD must not leave before the commit."""
    world = World()
    host = world.logged_in()
    world.target.poke(0, pattern(4096))
    parameters = (
        (22).to_bytes(2, "big") + (16).to_bytes(2, "big") + bytes(4) + bytes(8) + (8).to_bytes(4, "big") + bytes(4)
    )
    unmap = bytes((0x42,)) + bytes(6) + len(parameters).to_bytes(2, "big") + b"\0"
    answer = host.command(unmap, expected=len(parameters), flags=WRITE, data=parameters)
    assert answer.status == GOOD
    assert world.target.staged == 0
    assert world.target.peek(0, 8) == bytes(4096)


def test_commit_failure_reaches_a_slow_command() -> None:
    world = World()
    host = world.logged_in()
    write_same = bytes((0x41, 0)) + bytes(4) + b"\0" + (8).to_bytes(2, "big") + b"\0"
    world.target.fail_next("commit", LocalDiskFailed("disk"))
    answer = host.command(write_same, expected=512, flags=WRITE, data=bytes(512))
    assert answer.status == CHECK


def test_staged_data_is_committed_before_the_receive_buffer_is_moved() -> None:
    """The last PDU of a full buffer is cut: bringing its head to the front overwrites data that was staged there."""
    world = World(RamTarget(4096))
    host = world.logged_in()
    with host.collected() as wire:
        for index in range(254):
            host.ask(write10(index * 8, 8), expected=4096, flags=WRITE, data=pattern(4096, index))
    assert RECEIVE_BYTES < len(wire) < RECEIVE_BYTES + 4144
    host.connection.receive(wire)
    assert len(host.heard()) == 254
    for index in range(254):
        assert world.target.peek(index * 8, 8) == pattern(4096, index)


def test_operation_that_waits_keeps_its_data() -> None:
    """COMPARE AND WRITE waits for its read while other PDUs pass through the receive buffer its data came in."""
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    cdb = bytes((0x89, 0)) + bytes(8) + bytes(3) + bytes((1, 0, 0))
    tag = host.ask(cdb, expected=1024, flags=WRITE, data=bytes(512) + pattern(512))
    host.send(Opcode.NOP_OUT, data=b"\xee" * 2048, itt=9, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    assert host.one().opcode == Opcode.NOP_IN
    world.target.run_all()
    answer = host.one()
    assert (answer.itt, answer.status) == (tag, GOOD)
    assert world.target.peek(0, 1) == pattern(512)


def test_absent_lun() -> None:
    host = World().logged_in()
    assert host.command(bytes(6), lun=7).sense == (0x5, 0x25, 0x00)
    inquiry = host.command(bytes((0x12, 0, 0, 0, 96, 0)), expected=96, flags=READ, lun=7)
    assert inquiry.data[0] == 0x7F


def test_two_luns_are_two_disks() -> None:
    world = World(RamTarget(), RamTarget(128))
    host = world.logged_in()
    assert host.command(bytes(6), lun=1).status == CHECK
    assert host.command(write10(0, 1), expected=512, flags=WRITE, data=pattern(512), lun=1).status == GOOD
    assert world.targets[0].peek(0, 1) == bytes(512)
    assert world.targets[1].peek(0, 1) == pattern(512)


def test_bidirectional_command_is_refused() -> None:
    answer = World().logged_in().command(read10(0, 1), expected=512, flags=READ | W)
    assert answer.status == CHECK


# ---- numbers


def test_commands_outside_the_window_are_ignored() -> None:
    host = World().logged_in()
    for number in (host.cmd_sn - 1, host.cmd_sn + WINDOW):
        host.ask(bytes(6), cmd_sn=number)
        assert host.heard() == []
    assert host.command(bytes(6)).status == GOOD


def test_early_command_waits_for_its_turn() -> None:
    world = World()
    host = world.logged_in()
    first = host.cmd_sn
    late = host.ask(write10(1, 1), expected=512, flags=WRITE, data=pattern(512), cmd_sn=first + 1)
    ping = host.next_tag()
    host.send(Opcode.NOP_OUT, data=b"hello", itt=ping, ttt=NO_TAG, cmd_sn=first + 2)
    assert host.heard() == []
    now = host.ask(bytes(6), cmd_sn=first)
    assert sorted(answer.itt for answer in host.heard()) == sorted([now, late, ping])
    assert world.target.peek(1, 1) == pattern(512)


def test_window_closes_while_commands_are_under_way_and_opens_again() -> None:
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    for _ in range(WINDOW):
        host.ask(read10(0, 1), expected=512, flags=READ)
    host.ask(bytes(6))  # one too many: ignored
    host.cmd_sn -= 1
    assert host.heard() == []
    world.target.run_all()
    answers = host.heard()
    assert len(answers) == WINDOW
    assert answers[-1].max_cmd_sn == host.cmd_sn + WINDOW - 1
    assert host.command(bytes(6)).status == GOOD


def test_command_numbers_wrap() -> None:
    world = World()
    host = world.initiator()
    host.cmd_sn = 0xFFFFFFFE
    host.log_in()
    for _ in range(4):
        host.cmd_sn &= 0xFFFFFFFF
        answer = host.command(bytes(6))
    assert answer.exp_cmd_sn == 2


def test_immediate_command_takes_no_number() -> None:
    host = World().logged_in()
    before = host.cmd_sn
    assert host.command(bytes(6), immediate=True).exp_cmd_sn == before


def test_tag_in_use_is_rejected() -> None:
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    tag = host.ask(read10(0, 1), expected=512, flags=READ)
    host.ask(read10(0, 1), expected=512, flags=READ, itt=tag)
    answer = host.one()
    assert (answer.opcode, answer.reason) == (Opcode.REJECT, Reason.TASK_IN_PROGRESS)
    assert len(answer.data) == 48


def test_parsing_pauses_when_much_waits_to_be_sent() -> None:
    world = World(RamTarget(4096))
    host = world.logged_in()
    connection = host.connection
    with host.collected() as wire:
        for _ in range(40):
            host.ask(read10(0, 128), expected=65536, flags=READ)
    connection.buffers()[0][: len(wire)] = wire
    connection.received(len(wire))
    assert OUTBOX_BYTES_HIGH <= connection.outbox.size <= OUTBOX_BYTES_HIGH + 65536 + 48
    seen = 0
    while True:
        seen += len(host.heard())
        if not connection.go_on():
            break
    assert seen == 40


# ---- task management


def abort_answer(host: Initiator, tag: int) -> int:
    answer = host.one()
    assert (answer.opcode, answer.itt) == (Opcode.TASK_MANAGEMENT_RESPONSE, tag)
    return answer.response


def test_abort_task_at_the_target() -> None:
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    tag = host.ask(read10(0, 1), expected=512, flags=READ)
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=tag)
    assert abort_answer(host, abort) == TaskAnswer.COMPLETE
    world.target.run_all()
    assert host.heard() == []
    assert not host.connection.session.tasks  # type: ignore[union-attr]  # it is logged in


def test_abort_task_that_waits_for_data() -> None:
    world = World()
    host = world.logged_in(ImmediateData="No", InitialR2T="Yes")
    tag = host.ask(write10(0, 1), expected=512, flags=WRITE)
    r2t = host.one()
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=tag)
    assert abort_answer(host, abort) == TaskAnswer.COMPLETE
    host.data_out(tag, r2t.ttt, pattern(512))
    assert host.heard() == []
    assert world.target.peek(0, 1) == bytes(512)


def test_abort_of_what_is_unknown_or_not_here_yet() -> None:
    host = World().logged_in()
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=77, ref_cmd_sn=host.cmd_sn - 1)
    assert abort_answer(host, abort) == TaskAnswer.NO_SUCH_TASK
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=78, ref_cmd_sn=host.cmd_sn)
    assert abort_answer(host, abort) == TaskAnswer.COMPLETE
    host.cmd_sn += 1
    assert host.command(bytes(6)).status == GOOD


def test_abort_of_one_behind_a_gap() -> None:
    """A command that is aborted before it and its predecessor came: when both turns are over, the next one is due."""
    host = World().logged_in()
    first = host.cmd_sn
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=78, ref_cmd_sn=first + 1)
    assert abort_answer(host, abort) == TaskAnswer.COMPLETE
    assert host.ask(bytes(6), cmd_sn=first + 1, itt=78) == 78
    assert host.heard() == [], "it came after its abort"
    assert host.ask(bytes(6), cmd_sn=first + 2)
    assert host.heard() == []
    host.ask(bytes(6), cmd_sn=first)
    told = host.heard()
    assert [answer.status for answer in told] == [GOOD, GOOD]
    assert 78 not in {answer.itt for answer in told}
    assert told[-1].exp_cmd_sn == first + 3


def test_abort_of_a_running_change_is_answered_when_it_has_truly_ended() -> None:
    """COMPARE AND WRITE waits for its read; nothing of it may land after the initiator was told it is gone."""
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    cdb = bytes((0x89, 0)) + bytes(8) + bytes(3) + bytes((1, 0, 0))
    tag = host.ask(cdb, expected=1024, flags=WRITE, data=bytes(512) + pattern(512))
    abort = host.manage(TaskFunction.ABORT_TASK, referenced=tag)
    assert host.heard() == []
    world.target.run_all()
    assert abort_answer(host, abort) == TaskAnswer.COMPLETE
    assert world.target.staged == 0


def test_abort_task_set_leaves_other_sessions_and_luns_alone() -> None:
    world = World(RamTarget(deferred_reads=True), RamTarget(deferred_reads=True))
    one, two = world.logged_in(), world.logged_in(OTHER)
    one.command(bytes(6), lun=1)
    one.ask(read10(0, 1), expected=512, flags=READ)
    kept = one.ask(read10(0, 1), expected=512, flags=READ, lun=1)
    others = two.ask(read10(0, 1), expected=512, flags=READ)
    assert abort_answer(one, one.manage(TaskFunction.ABORT_TASK_SET)) == TaskAnswer.COMPLETE
    for target in world.targets:
        target.run_all()
    assert one.one().itt == kept
    assert two.one().itt == others


@pytest.mark.parametrize(
    ("function", "own", "others"),
    [
        (TaskFunction.CLEAR_TASK_SET, None, (0x6, 0x2F, 0x00)),
        (TaskFunction.LOGICAL_UNIT_RESET, (0x6, 0x29, 0x03), (0x6, 0x29, 0x03)),
        (TaskFunction.TARGET_WARM_RESET, (0x6, 0x29, 0x02), (0x6, 0x29, 0x02)),
    ],
)
def test_resets_end_everybodys_tasks_and_are_reported(
    function: TaskFunction, own: tuple[int, int, int] | None, others: tuple[int, int, int]
) -> None:
    world = World(RamTarget(deferred_reads=True))
    one, two = world.logged_in(), world.logged_in(OTHER)
    two.ask(read10(0, 1), expected=512, flags=READ)
    assert abort_answer(one, one.manage(function)) == TaskAnswer.COMPLETE
    world.target.run_all()
    assert two.command(bytes(6)).sense == others
    answer = one.command(bytes(6))
    assert answer.status == GOOD if own is None else answer.sense == own


def test_cold_reset_drops_every_session_after_its_answer() -> None:
    world = World()
    one, two = world.logged_in(), world.logged_in(OTHER)
    assert abort_answer(one, one.manage(TaskFunction.TARGET_COLD_RESET)) == TaskAnswer.COMPLETE
    assert two.connection.state is State.CLOSING
    assert two.notified
    assert one.connection.state is State.CLOSING


@pytest.mark.parametrize(
    ("function", "lun", "answer"),
    [
        (TaskFunction.CLEAR_ACA, 0, TaskAnswer.NOT_SUPPORTED),
        (TaskFunction.TASK_REASSIGN, 0, TaskAnswer.REASSIGNMENT_NOT_SUPPORTED),
        (TaskFunction.LOGICAL_UNIT_RESET, 9, TaskAnswer.NO_SUCH_LUN),
        (42, 0, TaskAnswer.REJECTED),
    ],
)
def test_task_management_that_is_refused(function: int, lun: int, answer: TaskAnswer) -> None:
    host = World().logged_in()
    assert abort_answer(host, host.manage(function, lun=lun)) == answer


def test_preempt_and_abort_ends_the_tasks_of_the_other_nexus() -> None:
    world = World(RamTarget(deferred_reads=True))
    one, two = world.logged_in(), world.logged_in(OTHER)

    def reserve_out(host: Initiator, action: int, key: int, new_key: int) -> int:
        cdb = bytes((0x5F, action, 0x05)) + bytes(2) + (24).to_bytes(4, "big") + b"\0"
        data = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes(8)
        return host.command(cdb, expected=24, flags=WRITE, data=data).status

    assert reserve_out(one, 0, 0, 11) == GOOD
    assert reserve_out(two, 0, 0, 22) == GOOD
    two.ask(read10(0, 1), expected=512, flags=READ)
    assert reserve_out(one, 5, 11, 22) == GOOD
    world.target.run_all()
    assert two.heard() == []


# ---- the rest


def test_nop_is_echoed() -> None:
    host = World().logged_in()
    host.send(Opcode.NOP_OUT, data=b"ping", itt=9, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    answer = host.one()
    assert (answer.opcode, answer.itt, answer.data) == (Opcode.NOP_IN, 9, b"ping")


def test_nop_without_tag_wants_no_answer() -> None:
    host = World().logged_in()
    host.send(Opcode.NOP_OUT, itt=NO_TAG, ttt=NO_TAG, cmd_sn=host.cmd_sn, immediate=1)
    assert host.heard() == []


def test_logout_ends_the_session_cleanly() -> None:
    world = World()
    host = world.logged_in()
    host.send(Opcode.LOGOUT, itt=5, cmd_sn=host.cmd_sn, immediate=1)
    answer = host.one()
    assert (answer.opcode, answer.response) == (Opcode.LOGOUT_RESPONSE, 0)
    assert (host.connection.state, host.connection.failure) == (State.CLOSING, "")
    host.connection.lost()
    assert world.nodes.sessions == {}


def test_logout_waits_for_a_running_change() -> None:
    """Nothing of COMPARE AND WRITE may land after the initiator was told that the session is over."""
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    cdb = bytes((0x89, 0)) + bytes(8) + bytes(3) + bytes((1, 0, 0))
    host.ask(cdb, expected=1024, flags=WRITE, data=bytes(512) + pattern(512))
    host.ask(read10(0, 1), expected=512, flags=READ)
    host.send(Opcode.LOGOUT, itt=5, cmd_sn=host.cmd_sn)
    assert host.heard() == []
    assert len(world.nodes.sessions) == 1
    world.target.run_all()
    assert host.one().opcode == Opcode.LOGOUT_RESPONSE
    assert host.connection.state is State.CLOSING
    assert world.target.staged == 0
    host.connection.lost()
    assert world.nodes.sessions == {}


def test_connection_lost_while_a_logout_waits() -> None:
    world = World(RamTarget(deferred_reads=True))
    host = world.logged_in()
    cdb = bytes((0x89, 0)) + bytes(8) + bytes(3) + bytes((1, 0, 0))
    host.ask(cdb, expected=1024, flags=WRITE, data=bytes(512) + pattern(512))
    host.send(Opcode.LOGOUT, itt=5, cmd_sn=host.cmd_sn)
    host.connection.lost()
    world.target.run_all()
    assert host.heard() == []
    assert world.target.staged == 0


@pytest.mark.parametrize(("reason", "cid", "response"), [(1, 7, 1), (2, 0, 2)])
def test_logout_of_what_cannot_be_logged_out(reason: int, cid: int, response: int) -> None:
    host = World().logged_in()
    host.send(Opcode.LOGOUT, FINAL | reason, itt=5, cid=cid << 16, cmd_sn=host.cmd_sn, immediate=1)
    assert host.one().response == response
    assert host.connection.state is State.FULL


@pytest.mark.parametrize(("opcode", "reason"), [(Opcode.SNACK, Reason.SNACK_REJECT)])
def test_rejected(opcode: Opcode, reason: Reason) -> None:
    host = World().logged_in()
    host.send(opcode, itt=1)
    assert (host.heard()[0].reason, host.connection.state) == (reason, State.FULL)


def test_unknown_opcode_is_rejected() -> None:
    host = World().logged_in()
    header = bytes((0x1C | 0x40, 0x80)) + bytes(46)
    host.deliver(host.frame(header))
    assert host.one().reason == Reason.COMMAND_NOT_SUPPORTED


def test_request_to_log_out() -> None:
    host = World().logged_in()
    host.connection.ask_to_log_out(3)
    answer = host.one()
    assert (answer.opcode, answer.event >> 24, answer.parameters) == (Opcode.ASYNC_MESSAGE, 1, 3)


@pytest.mark.parametrize("keys", [{"HeaderDigest": "CRC32C"}, {"DataDigest": "CRC32C"}])
def test_digests(keys: dict[str, str]) -> None:
    world = World(RamTarget(4096))
    host = world.initiator()
    host.log_in(**keys)
    assert host.header_digest or host.data_digest
    host.command(bytes(6))
    whole = pattern(65536)
    assert host.command(write10(0, 128), expected=65536, flags=WRITE, data=whole).status == GOOD
    host.ask(write10(128, 256), expected=131072, flags=WRITE, data=whole)
    r2t = host.one()
    host.data_out(host.itt, r2t.ttt, whole, offset=65536)
    assert host.one().status == GOOD
    assert host.command(read10(0, 128), expected=65536, flags=READ).data == whole
    assert host.command(bytes((0x12, 0, 0, 0, 5, 0)), expected=5, flags=READ).data


@pytest.mark.parametrize("digest", ["HeaderDigest", "DataDigest"])
def test_wrong_digest_ends_the_session(digest: str) -> None:
    world = World()
    host = world.initiator()
    host.log_in(**{digest: "CRC32C"})
    host.header_digest = host.data_digest = False
    host.send(Opcode.NOP_OUT, data=b"ping" + b"\0\0\0\0", itt=9, ttt=NO_TAG, cmd_sn=host.cmd_sn)
    host.connection.receive(bytes(8))
    assert host.connection.state is State.CLOSING
    assert "digest" in host.connection.failure


def damaged(host: Initiator, kind: str) -> bytes:
    """One PDU with data that is not what its digest says, as bytes of the wire."""
    big = pattern(65536)
    tag = 0
    if "data-out" in kind:
        tag = host.ask(write10(0, 256), expected=131072, flags=WRITE, data=big)
    with host.collected() as wire:
        match kind:
            case "write":
                host.ask(write10(0, 1), expected=512, flags=WRITE, data=pattern(512))
            case "large write":
                host.ask(write10(0, 128), expected=65536, flags=WRITE, data=big)
            case "data-out":
                host.data_out(tag, host.one().ttt, big[:512], offset=65536, final=False)
            case "large data-out":
                host.data_out(tag, host.one().ttt, big, offset=65536)
            case "parameters":
                host.ask(bytes((0x55, 0x10)) + bytes(6) + bytes((24, 0)), expected=24, flags=WRITE, data=bytes(24))
            case "nop":
                host.send(Opcode.NOP_OUT, data=b"ping ping", itt=9, ttt=NO_TAG, cmd_sn=host.cmd_sn)
            case "text":
                host.send(Opcode.TEXT, data=b"SendTargets=\0", itt=9, ttt=NO_TAG, cmd_sn=host.cmd_sn)
    wire[-9] ^= 0x10
    return bytes(wire)


@pytest.mark.parametrize("pieces", [1 << 20, 20000])
@pytest.mark.parametrize("headers", [False, True])
@pytest.mark.parametrize("kind", ["write", "large write", "data-out", "large data-out", "parameters", "nop", "text"])
def test_damaged_data_is_rejected_never_used_and_repeated_in_a_new_session(
    kind: str, headers: bool, pieces: int
) -> None:
    """RFC 7143 7.8, at error recovery level 0: Reject, the end of the connection, and all that was not answered again.
    In pieces of 20000 bytes large segments are received in place."""
    world = World(RamTarget(4096))
    keys = {"DataDigest": "CRC32C"} | ({"HeaderDigest": "CRC32C"} if headers else {})
    host = world.initiator()
    host.log_in(**keys)
    host.command(bytes(6))
    wire = damaged(host, kind)
    for at in range(0, len(wire), pieces):
        host.connection.receive(wire[at : at + pieces])
    answer = host.one()
    assert (answer.opcode, answer.reason) == (Opcode.REJECT, Reason.DATA_DIGEST_ERROR)
    assert answer.data == wire[:48]
    assert host.connection.state is State.CLOSING
    assert "digest" in host.connection.failure
    host.connection.lost()
    assert world.target.peek(0, 256) == bytes(131072)
    again = world.initiator()
    again.log_in(**keys)
    again.command(bytes(6))
    assert again.command(write10(0, 1), expected=512, flags=WRITE, data=pattern(512)).status == GOOD
    assert again.command(read10(0, 1), expected=512, flags=READ).data == pattern(512)


@pytest.mark.parametrize("kind", ["write", "large write", "data-out", "large data-out", "nop"])
def test_damaged_header_ends_the_connection_unanswered(kind: str) -> None:
    """Nothing in it can be trusted, not even its length (RFC 7143 7.7)."""
    world = World(RamTarget(4096))
    host = world.initiator()
    host.log_in(HeaderDigest="CRC32C", DataDigest="CRC32C")
    host.command(bytes(6))
    wire = bytearray(damaged(host, kind))
    wire[-9] ^= 0x10
    wire[20] ^= 0x01
    for at in range(0, len(wire), 20000):
        host.connection.receive(wire[at : at + 20000])
    assert host.heard() == []
    assert "header digest" in host.connection.failure
    host.connection.lost()
    assert world.target.peek(0, 256) == bytes(131072)


@pytest.mark.parametrize(
    ("flags", "data", "keys"),
    [
        (WRITE, bytes(1024), {"ImmediateData": "No"}),
        (WRITE, bytes(1024), {"FirstBurstLength": "512"}),
        (READ, bytes(512), {}),
        (W, b"", {"InitialR2T": "Yes"}),
        (R, b"", {}),
    ],
)
def test_data_that_was_not_agreed_on_ends_the_session(flags: int, data: bytes, keys: dict[str, str]) -> None:
    host = World().logged_in(**keys)
    host.ask(write10(0, 2), expected=1024, flags=flags, data=data)
    assert host.connection.state is State.CLOSING
    assert host.connection.failure
