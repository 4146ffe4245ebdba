"""Operations on a volume that is slow, full or failing: `done` once, and the right words."""

from collections.abc import Callable

import pytest

from blockdev.errors import Fenced, JournalFull, LocalDiskFailed, MediumError, NotReady, StoreUnreachable
from blockdev.scsi.operation import (
    Buffer,
    CompareAndWrite,
    Flush,
    LbaStatus,
    Operation,
    OrWrite,
    Prefetch,
    Read,
    Response,
    Status,
    Unmap,
    Verify,
    Write,
    WriteAndVerify,
    WriteSame,
)
from blockdev.scsi.perform import first_difference, perform
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import information, said

A, B = b"A" * 512, b"B" * 512


def performed(operation: Operation, target: RamTarget) -> Response:
    answers: list[Response] = []
    perform(operation, target, answers.append)
    target.run_all()
    assert len(answers) == 1
    return answers[0]


def test_write_is_staged_and_not_committed() -> None:
    target = RamTarget()
    assert performed(Write(0, 1, (A,)), target).status is Status.GOOD
    assert target.staged == 1
    assert target.peek(0, 1) == bytes(512)
    target.commit()
    assert target.peek(0, 1) == A


def test_write_hands_buffers_on_without_joining_them() -> None:
    target = RamTarget()
    performed(Write(0, 2, (memoryview(A), B)), target)
    target.commit()
    assert target.peek(0, 2) == A + B


@pytest.mark.parametrize("deferred", [False, True])
def test_read_answers_now_or_later(deferred: bool) -> None:
    target = RamTarget(deferred_reads=deferred)
    target.poke(0, A)
    answers: list[Response] = []
    perform(Read(0, 1), target, answers.append)
    assert bool(answers) is not deferred
    target.run_all()
    assert b"".join(answers[0].data) == A


FAILURES = [
    ("write", JournalFull("full"), Write(0, 1, (A,)), Status.BUSY),
    ("write", NotReady("stopping"), Write(0, 1, (A,)), Condition.BECOMING_READY),
    ("commit", Fenced("taken over"), Write(0, 1, (A,), fua=True), Condition.MANUAL_INTERVENTION_REQUIRED),
    ("flush", LocalDiskFailed("EIO"), Write(0, 1, (A,), fua=True), Condition.INTERNAL_TARGET_FAILURE),
    ("read", StoreUnreachable("away"), Read(0, 1), Status.BUSY),
    ("read", MediumError("damaged", lba=3), Read(0, 8), Condition.UNRECOVERED_READ_ERROR),
    ("commit", LocalDiskFailed("EIO"), Flush(), Condition.INTERNAL_TARGET_FAILURE),
    ("flush", Fenced("taken over"), Flush(), Condition.MANUAL_INTERVENTION_REQUIRED),
    ("unmap", JournalFull("full"), Unmap(((0, 1),)), Status.BUSY),
    ("unmap", JournalFull("full"), WriteSame(0, 1, None, True), Status.BUSY),
    ("write_zeroes", JournalFull("full"), WriteSame(0, 1, None, False), Status.BUSY),
    ("write", JournalFull("full"), WriteSame(0, 9, A, False), Status.BUSY),
    ("commit", Fenced("taken over"), WriteSame(0, 9000, A, False), Condition.MANUAL_INTERVENTION_REQUIRED),
    ("read", MediumError("damaged", lba=0), CompareAndWrite(0, 1, A, B), Condition.UNRECOVERED_READ_ERROR),
    ("write", JournalFull("full"), CompareAndWrite(0, 1, bytes(512), B), Status.BUSY),
    ("read", StoreUnreachable("away"), OrWrite(0, 1, A), Status.BUSY),
    ("read", StoreUnreachable("away"), Verify(0, 1, None), Status.BUSY),
    ("write", JournalFull("full"), WriteAndVerify(0, 1, A, True), Status.BUSY),
    ("flush", LocalDiskFailed("EIO"), WriteAndVerify(0, 1, A, True), Condition.INTERNAL_TARGET_FAILURE),
    ("read", MediumError("damaged", lba=0), WriteAndVerify(0, 1, A, True), Condition.UNRECOVERED_READ_ERROR),
    ("allocated", StoreUnreachable("away"), LbaStatus(0, 9, 24), Status.BUSY),
    ("read", MediumError("damaged", lba=0), Prefetch(0, 9, False), Condition.UNRECOVERED_READ_ERROR),
    ("read", MediumError("damaged", lba=0), Prefetch(0, 9, True), Status.GOOD),
]


@pytest.mark.parametrize(("call", "error", "operation", "expected"), FAILURES)
@pytest.mark.parametrize("deferred", [False, True])
def test_failure_becomes_a_response(
    call: str, error: Exception, operation: Operation, expected: object, deferred: bool
) -> None:
    target = RamTarget(16384, deferred_reads=deferred, deferred_flushes=deferred)
    target.fail_next(call, error)
    assert said(performed(operation, target)) is expected


def test_write_that_failed_to_stage_is_not_flushed() -> None:
    target = RamTarget(room=0)
    assert said(performed(Write(0, 1, (A,), fua=True), target)) is Status.BUSY
    assert target.calls == [("write", 0, 512)]


def test_medium_error_names_the_sector() -> None:
    target = RamTarget()
    target.fail_next("read", MediumError("damaged", lba=5))
    assert information(performed(Read(0, 8), target)) == 5


@pytest.mark.parametrize("operation", [CompareAndWrite(0, 1, A, B), OrWrite(0, 1, B)])
def test_read_modify_write_sees_a_write_that_came_while_it_waited(operation: Operation) -> None:
    """The content is fetched; meanwhile another command writes; the decision must be taken on the new content."""
    target = RamTarget(deferred_reads=1)
    target.poke(0, A)
    answers: list[Response] = []
    perform(operation, target, answers.append)
    assert not answers
    target.write(0, (b"\x00" * 512,))
    target.run_all()
    target.commit()
    if isinstance(operation, CompareAndWrite):
        assert said(answers[0]) is Condition.MISCOMPARE_DURING_VERIFY
        assert target.peek(0, 1) == bytes(512)
    else:
        assert said(answers[0]) is Status.GOOD
        assert target.peek(0, 1) == B


class Forgetful(RamTarget):
    """Its cache never keeps what was fetched."""

    def read(self, lba: int, count: int, done: Callable[[list[Buffer] | Exception], None]) -> list[Buffer] | None:
        self.evict()
        return super().read(lba, count, done)


def test_compare_and_write_reads_until_the_data_is_local() -> None:
    target = Forgetful(deferred_reads=3)
    target.poke(0, A)
    assert said(performed(CompareAndWrite(0, 1, A, B), target)) is Status.GOOD
    assert [call[0] for call in target.calls] == ["read"] * 4 + ["write"]


def test_compare_and_write_gives_up_with_busy_if_the_data_never_stays() -> None:
    target = Forgetful(deferred_reads=True)
    assert said(performed(CompareAndWrite(0, 1, bytes(512), B), target)) is Status.BUSY
    assert target.staged == 0


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (b"", b"", None),
        (b"a", b"a", None),
        (b"a", b"b", 0),
        (b"abcdefgh", b"abcdefgX", 7),
        (b"abcdefgh", b"Xbcdefgh", 0),
        (b"abcdefgh", b"abXdefXh", 2),
    ],
)
def test_first_difference(left: bytes, right: bytes, expected: int | None) -> None:
    assert first_difference(left, right) == expected


def test_first_difference_finds_every_place() -> None:
    base = bytes(1000)
    for place in range(1000):
        other = bytearray(base)
        other[place] = 1
        assert first_difference(base, other) == place


def test_lba_status_cuts_runs_and_never_leaves_a_hole() -> None:
    class Odd(RamTarget):
        def allocated(
            self, lba: int, count: int, done: Callable[[list[tuple[int, int, bool]] | Exception], None]
        ) -> None:
            done([(lba - 4, 8, True), (lba + 4, 4, True), (lba + 8, 1 << 33, False), (lba + 9, 1, True)])

    target = Odd(1 << 40)
    data = b"".join(performed(LbaStatus(100, 1 << 34, 4096), target).data)
    assert data.hex() == "00000024" + "00000000" + f"{100:016x}" + f"{8:08x}" + "00000000" + (
        f"{108:016x}" + "ffffffff" + "01000000"
    )
