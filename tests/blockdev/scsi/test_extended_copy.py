"""EXTENDED COPY (LID1) and RECEIVE COPY RESULTS: what is copied, what is refused, and what is told of it."""

import random
from collections.abc import Callable
from struct import pack
from uuid import UUID

import pytest

from blockdev.errors import Fenced, JournalFull, MediumError, StoreUnreachable
from blockdev.scsi import copying
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.extended_copy import Reach
from blockdev.scsi.inquiry import naa
from blockdev.scsi.operation import Copy, NeedData, Response, Status
from blockdev.scsi.perform import perform
from blockdev.scsi.sense import Condition
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.scsi.initiator import (
    ONE,
    TWO,
    data_of,
    information,
    inquiry_cdb,
    pointed_at,
    reserve_out,
    reserve_out_data,
    run,
    said,
    unit_over,
)

OTHER_VOLUME = UUID("0e7f4a0c-5c55-4a41-9b3a-3a8f7c1d2e90")
SECTORS = 4096


def cdb(length: int) -> bytes:
    return pack(">BB8xIBB", 0x83, 0, length, 0, 0)


def results(action: int, list_id: int = 1, allocation: int = 1024) -> bytes:
    return pack(">BBB7xIBB", 0x84, action, list_id, allocation, 0, 0)


def named(target: RamTarget) -> bytes:
    designator = naa(target.identity)
    return (
        bytes((0xE4, 0, 0, 0, 1, 3, 0, len(designator)))
        + designator.ljust(20, b"\0")
        + bytes(1)
        + target.sector_bytes.to_bytes(3, "big")
    )


def segment(source: int, to: int, count: int, *, ends: tuple[int, int] = (0, 0), flags: int = 0) -> bytes:
    return pack(">BBHHHxxHQQ", 0x02, flags, 24, *ends, count, source, to)


def listed(targets: list[bytes], segments: list[bytes], *, list_id: int = 1, usage: int = 0, inline: int = 0) -> bytes:
    body = b"".join(targets), b"".join(segments)
    return pack(">BBHxxxxII", list_id, usage << 3, len(body[0]), len(body[1]), inline) + b"".join(body)


def copied(unit: LogicalUnit, parameters: bytes, nexus: str = ONE) -> Response:
    return run(unit, cdb(len(parameters)), parameters, nexus=nexus)


def within(source: int, to: int, count: int) -> bytes:
    return listed([named(RamTarget())], [segment(source, to, count)])


def pattern(sectors: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(sectors * 512)


def two_units(*, sector_bytes: int = 512, nexus: str = ONE) -> tuple[LogicalUnit, LogicalUnit, RamTarget, RamTarget]:
    """Two volumes; the first one's copy manager reaches the second."""
    here, there = RamTarget(SECTORS), RamTarget(SECTORS, identity=OTHER_VOLUME, sector_bytes=sector_bytes)
    second = unit_over(there)
    first = LogicalUnit(
        here, lun=0, find_unit=lambda name, _: Reach(second, nexus) if name == naa(OTHER_VOLUME) else None
    )
    first.nexus_opened(ONE)
    first.take_attention(ONE)
    return first, second, here, there


def test_within_a_volume() -> None:
    target = RamTarget(SECTORS)
    target.poke(0, pattern(1000))
    assert copied(unit_over(target), within(0, 2000, 1000)).status is Status.GOOD
    assert target.peek(2000, 1000) == pattern(1000)
    assert not target.staged, "a copy commits what it writes"


def test_nothing_to_do() -> None:
    unit = unit_over(RamTarget(SECTORS))
    assert run(unit, cdb(0)).status is Status.GOOD
    assert copied(unit, listed([], [])).status is Status.GOOD
    assert copied(unit, within(0, 10, 0)).status is Status.GOOD


def test_between_volumes_in_the_order_of_the_segments() -> None:
    unit, _, here, there = two_units()
    here.poke(0, pattern(100))
    there.poke(500, pattern(50, 2))
    ends = [named(here), named(there)]
    steps = [segment(0, 100, 100, ends=(0, 1)), segment(100, 3000, 50, ends=(1, 0)), segment(500, 0, 50, ends=(1, 1))]
    assert copied(unit, listed(ends, steps)).status is Status.GOOD
    assert there.peek(100, 100) == pattern(100)
    assert here.peek(3000, 50) == pattern(100)[: 50 * 512]
    assert there.peek(0, 50) == pattern(50, 2)


@pytest.mark.parametrize("seed", range(30))
def test_overlapping_ranges_come_out_as_if_read_first(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE_BYTES", 8 * 512)
    monkeypatch.setattr(copying, "WINDOW_BYTES", 64 * 512)
    draw = random.Random(seed)
    target = RamTarget(1024, deferred_reads=draw.random() < 0.5)
    for _ in range(draw.randrange(1, 12)):
        target.poke(draw.randrange(900), pattern(draw.randrange(1, 100), draw.randrange(1 << 30)))
    source, count = draw.randrange(500), draw.randrange(1, 400)
    to = max(0, min(1024 - count, source + draw.randrange(-200, 200)))
    expected = bytearray(target.peek(0, 1024))
    expected[to * 512 : (to + count) * 512] = target.peek(source, count)
    assert copied(unit_over(target), within(source, to, count)).status is Status.GOOD
    assert target.peek(0, 1024) == expected


@pytest.mark.parametrize("seed", range(40))
def test_segments_that_feed_each_other_come_out_one_after_the_other(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the source holds is asked ahead, and an earlier segment may be about to change it."""
    monkeypatch.setattr(copying, "PIECE_BYTES", 8 * 512)
    monkeypatch.setattr(copying, "WINDOW_BYTES", 32 * 512)
    draw = random.Random(seed)
    target = RamTarget(1024, deferred_reads=draw.random() < 0.5)
    for _ in range(draw.randrange(1, 8)):
        target.poke(draw.randrange(900), pattern(draw.randrange(1, 60), draw.randrange(1 << 30)))
    expected = bytearray(target.peek(0, 1024))
    segments = []
    for _ in range(draw.randrange(2, 12)):
        count = draw.randrange(1, 100)
        source, to = draw.randrange(1025 - count), draw.randrange(1025 - count)
        segments.append(segment(source, to, count))
        expected[to * 512 : (to + count) * 512] = bytes(expected[source * 512 : (source + count) * 512])
    assert copied(unit_over(target), listed([named(target)], segments)).status is Status.GOOD
    assert target.peek(0, 1024) == expected


def test_what_the_source_does_not_hold_is_discarded_and_not_read() -> None:
    target = RamTarget(SECTORS)
    target.poke(1024, pattern(64))
    target.poke(2048, pattern(2048))
    assert copied(unit_over(target), within(0, 2048, 2048)).status is Status.GOOD
    assert target.peek(2048, 2048) == target.peek(0, 2048)
    assert sum(call[2] for call in target.calls if call[0] == "read") == 64  # type: ignore[misc]
    assert [call for call in target.calls if call[0] == "unmap"] == [
        ("unmap", ((2048, 1024),)),
        ("unmap", ((2048 + 1088, 960),)),
    ]


def test_volumes_with_sectors_of_two_sizes() -> None:
    unit, _, here, there = two_units(sector_bytes=4096)
    here.poke(0, pattern(19))
    ends = [named(here), named(there)]
    assert copied(unit, listed(ends, [segment(0, 5, 24, ends=(0, 1))])).status is Status.GOOD
    assert there.peek(5, 3) == pattern(19) + bytes(5 * 512)
    count_of_destination = 0x02
    assert (
        copied(unit, listed(ends, [segment(0, 50, 3, ends=(0, 1), flags=count_of_destination)])).status is Status.GOOD
    )
    assert there.peek(50, 3) == there.peek(5, 3)
    response = copied(unit, listed(ends, [segment(0, 5, 7, ends=(0, 1))]))
    assert said(response) is Condition.UNEXPECTED_INEXACT_SEGMENT


TARGET = RamTarget(SECTORS)
BAD_LISTS: list[tuple[bytes, Condition]] = [
    (bytes(15), Condition.PARAMETER_LIST_LENGTH_ERROR),
    (within(0, 100, 1)[:-1], Condition.PARAMETER_LIST_LENGTH_ERROR),
    (within(0, 100, 1) + bytes(4096), Condition.PARAMETER_LIST_LENGTH_ERROR),
    (listed([named(TARGET)] * 9, [segment(0, 1, 1)]), Condition.TOO_MANY_TARGET_DESCRIPTORS),
    (listed([named(TARGET)], [segment(0, 1, 1)] * 65), Condition.TOO_MANY_SEGMENT_DESCRIPTORS),
    (listed([b"\xe0" + named(TARGET)[1:]], [segment(0, 1, 1)]), Condition.UNSUPPORTED_TARGET_DESCRIPTOR),
    (listed([named(TARGET)], [b"\x03" + segment(0, 1, 1)[1:]]), Condition.UNSUPPORTED_SEGMENT_DESCRIPTOR),
    (listed([named(TARGET)], [segment(0, 1, 1)], inline=1), Condition.INLINE_DATA_LENGTH_EXCEEDED),
    (listed([named(TARGET)], [segment(0, 1, 1)], usage=1), Condition.INVALID_FIELD_IN_PARAMETER_LIST),
    (listed([named(TARGET)], [segment(0, 1, 1)], usage=3), Condition.INVALID_FIELD_IN_PARAMETER_LIST),
    (listed([named(TARGET)], [segment(0, 1, 1, ends=(0, 1))]), Condition.COPY_TARGET_NOT_REACHABLE),
    (listed([named(RamTarget(identity=OTHER_VOLUME))], [segment(0, 1, 1)]), Condition.COPY_TARGET_NOT_REACHABLE),
    (listed([named(RamTarget(sector_bytes=4096))], [segment(0, 1, 1)]), Condition.INVALID_FIELD_IN_PARAMETER_LIST),
    (listed([b"\xe4\x01" + named(TARGET)[2:]], [segment(0, 1, 1)]), Condition.INCORRECT_COPY_TARGET_TYPE),
    (listed([named(TARGET)], [segment(0, SECTORS - 1, 2)]), Condition.COPY_ENDED),
    (listed([named(TARGET)], [segment(SECTORS, 0, 1)]), Condition.COPY_ENDED),
    (listed([named(TARGET)], [segment(1 << 63, 0, 1)]), Condition.COPY_ENDED),
]


@pytest.mark.parametrize(("parameters", "condition"), BAD_LISTS)
def test_a_bad_list_copies_nothing(parameters: bytes, condition: Condition) -> None:
    target = RamTarget(SECTORS)
    target.poke(0, pattern(8))
    assert said(copied(unit_over(target), parameters)) is condition
    assert not target.staged
    assert target.peek(1, 7) == pattern(8)[512:]


def test_a_later_bad_segment_says_which_and_the_first_is_not_copied() -> None:
    target = RamTarget(SECTORS)
    target.poke(0, pattern(8))
    response = copied(unit_over(target), listed([named(target)], [segment(0, 100, 8), segment(0, SECTORS, 5)]))
    assert said(response) is Condition.COPY_ENDED
    assert response.sense[8:12] == pack(">I", 1)
    assert information(response) == 5
    assert target.peek(100, 8) == bytes(8 * 512)


def test_lists_of_any_bytes_are_answered() -> None:
    draw = random.Random(5)
    unit = unit_over(RamTarget(SECTORS))
    good = bytearray(within(0, 2000, 100))
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        assert copied(unit, bytes(data[: draw.randrange(1, len(data) + 1)])).status in (
            Status.GOOD,
            Status.CHECK_CONDITION,
        )


@pytest.mark.parametrize(
    ("call", "error", "expected"),
    [
        ("read", StoreUnreachable("away"), Status.BUSY),
        ("write", JournalFull("full"), Status.BUSY),
        ("allocated", StoreUnreachable("away"), Status.BUSY),
        ("read", MediumError("damaged", lba=3), Condition.THIRD_PARTY_DEVICE_FAILURE),
        ("commit", Fenced("taken over"), Condition.MANUAL_INTERVENTION_REQUIRED),
    ],
)
def test_failures_of_the_volume(call: str, error: Exception, expected: Condition | Status) -> None:
    target = RamTarget(SECTORS)
    target.poke(0, pattern(8))
    target.fail_next(call, error)
    assert said(copied(unit_over(target), within(0, 100, 8))) is expected


def test_failure_of_another_volume_is_told_as_such() -> None:
    unit, _, here, there = two_units()
    here.poke(0, pattern(8))
    there.fail_next("write", Fenced("taken over"))
    response = copied(unit, listed([named(here), named(there)], [segment(0, 0, 8, ends=(0, 1))]))
    assert said(response) is Condition.COPY_TARGET_NOT_REACHABLE
    assert information(response) == 8


def test_read_only_destination() -> None:
    assert (
        said(copied(unit_over(RamTarget(SECTORS, read_only=True)), within(0, 9, 1)))
        is Condition.THIRD_PARTY_DEVICE_FAILURE
    )


class Clock:
    """`later` for tests: what was put off, and how long."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self.pauses: list[float] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.pauses.append(seconds)
        self.waiting.append((seconds, call))

    def turn(self) -> None:
        self.waiting.pop(0)[1]()


def begun(target: RamTarget, parameters: bytes) -> tuple[LogicalUnit, Clock, Copy, list[Response]]:
    clock = Clock()
    unit = LogicalUnit(target, lun=0, later=clock.later)
    unit.nexus_opened(ONE)
    unit.take_attention(ONE)
    need = unit.begin(cdb(len(parameters)), ONE)
    assert isinstance(need, NeedData)
    operation = need.then(parameters)
    assert isinstance(operation, Copy)
    answers: list[Response] = []
    perform(operation, target, answers.append)
    return unit, clock, operation, answers


def test_others_have_their_turn_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE_BYTES", 8 * 512)
    target = RamTarget(SECTORS)
    target.poke(0, pattern(64))
    target.slow = 0.25
    unit, clock, _, answers = begun(target, within(0, 100, 64))
    assert target.peek(100, 64) == pattern(64)[: 8 * 512] + bytes(56 * 512)
    status = data_of(run(unit, results(0)))
    assert status == pack(">IBHBI", 8, 0, 0, 0, 8 * 512), "in progress"
    assert said(copied(unit, within(0, 200, 1))) is Condition.OPERATION_IN_PROGRESS
    while not answers:
        clock.turn()
    assert answers[0].status is Status.GOOD
    assert target.peek(100, 64) == pattern(64)
    assert clock.pauses == [0.25] * 8, "the journal's pacing is obeyed"


def test_cancelled_between_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE_BYTES", 8 * 512)
    target = RamTarget(SECTORS)
    target.poke(0, pattern(64))
    _, clock, operation, answers = begun(target, within(0, 100, 64))
    operation.progress.cancel()
    clock.turn()
    assert [answer.status for answer in answers] == [Status.TASK_ABORTED]
    assert not clock.waiting
    assert target.peek(100, 64) == pattern(64)[: 8 * 512] + bytes(56 * 512)


def test_cancelled_while_a_read_is_under_way_stages_nothing() -> None:
    target = RamTarget(SECTORS, deferred_reads=True)
    target.poke(0, pattern(8))
    _, _, operation, answers = begun(target, within(0, 100, 8))
    operation.progress.cancel()
    target.run_all()
    assert [answer.status for answer in answers] == [Status.TASK_ABORTED]
    assert target.peek(100, 8) == bytes(8 * 512)


def test_a_full_journal_is_waited_for() -> None:
    target = RamTarget(SECTORS, room=0)
    target.poke(0, pattern(8))
    _, clock, _, answers = begun(target, within(0, 100, 8))
    assert clock.pauses == [copying.FULL_PAUSE_S]
    target.room = None
    while not answers:
        clock.turn()
    assert answers[0].status is Status.GOOD


def test_a_journal_that_stays_full_is_busy() -> None:
    target = RamTarget(SECTORS, room=0)
    target.poke(0, pattern(8))
    unit, clock, _, answers = begun(target, within(0, 100, 8))
    while not answers:
        clock.turn()
    assert answers[0].status is Status.BUSY
    assert len(clock.pauses) == copying.FULL_PAUSES_MAX
    assert data_of(run(unit, results(0)))[4] == 2, "completed with errors"


def test_reservation_of_another_initiator() -> None:
    unit, second, here, there = two_units()
    second.nexus_opened(TWO)
    second.take_attention(TWO)
    run(second, reserve_out(0x00), reserve_out_data(0, 7), nexus=TWO)
    run(second, reserve_out(0x01, 0x01), reserve_out_data(7), nexus=TWO)
    here.poke(0, pattern(8))
    there.poke(0, pattern(8, 2))
    ends = [named(here), named(there)]
    to_there, from_there = [segment(0, 0, 8, ends=(0, 1))], [segment(0, 100, 8, ends=(1, 0))]
    assert said(copied(unit, listed(ends, to_there))) is Condition.THIRD_PARTY_DEVICE_FAILURE
    assert there.peek(0, 8) == pattern(8, 2)
    assert copied(unit, listed(ends, from_there)).status is Status.GOOD, "write exclusive lets others read"
    assert here.peek(100, 8) == pattern(8, 2)


def test_a_reservation_that_comes_between_pieces_ends_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PIECE_BYTES", 8 * 512)
    target = RamTarget(SECTORS)
    target.poke(0, pattern(64))
    unit, clock, _, answers = begun(target, within(0, 100, 64))
    unit.nexus_opened(TWO)
    unit.take_attention(TWO)
    run(unit, reserve_out(0x00), reserve_out_data(0, 7), nexus=TWO)
    run(unit, reserve_out(0x01, 0x03), reserve_out_data(7), nexus=TWO)
    clock.turn()
    assert said(answers[0]) is Condition.THIRD_PARTY_DEVICE_FAILURE
    assert information(answers[0]) == 56


# ---- results


def test_status_is_told_once_to_the_nexus_that_asked() -> None:
    target = RamTarget(SECTORS)
    target.poke(0, pattern(8))
    unit = unit_over(target, ONE, TWO)
    copied(unit, within(0, 100, 8))
    assert pointed_at(run(unit, results(0), nexus=TWO)) == ("cdb", 2, None)
    assert data_of(run(unit, results(0))) == pack(">IBHBI", 8, 1, 1, 0, 8 * 512)
    assert said(run(unit, results(0))) is Condition.INVALID_FIELD_IN_CDB


def test_details_of_a_failed_copy() -> None:
    target = RamTarget(SECTORS)
    target.poke(0, pattern(8))
    unit = unit_over(target)
    target.fail_next("read", MediumError("damaged", lba=3))
    failed = copied(unit, listed([named(target)], [segment(8, 100, 8), segment(0, 200, 8)]))
    assert data_of(run(unit, results(0)))[4] == 2
    details = data_of(run(unit, results(4)))
    assert int.from_bytes(details[:4], "big") == len(details) - 4 == 56 + 18
    assert details[56] == Status.CHECK_CONDITION
    assert details[60:] == failed.sense
    assert said(run(unit, results(4))) is Condition.INVALID_FIELD_IN_CDB


def test_without_a_list_identifier_nothing_is_kept() -> None:
    unit = unit_over(RamTarget(SECTORS))
    assert copied(unit, listed([named(RamTarget())], [segment(0, 1, 1)], list_id=0, usage=3)).status is Status.GOOD
    assert said(run(unit, results(0, list_id=0))) is Condition.INVALID_FIELD_IN_CDB


def test_results_end_with_the_nexus() -> None:
    unit = unit_over(RamTarget(SECTORS))
    copied(unit, within(0, 1, 1))
    unit.nexus_closed(ONE)
    unit.nexus_opened(ONE)
    unit.take_attention(ONE)
    assert said(run(unit, results(0))) is Condition.INVALID_FIELD_IN_CDB


def test_so_many_copies_at_once() -> None:
    target = RamTarget(SECTORS, deferred_reads=True)
    target.poke(0, pattern(8))
    unit = unit_over(target)
    answers: list[Response] = []
    for list_id in range(9):
        need = unit.begin(cdb(76), ONE)
        assert isinstance(need, NeedData)
        operation = need.then(listed([named(target)], [segment(0, 100, 8)], list_id=list_id))
        if isinstance(operation, Response):
            answers.append(operation)
        else:
            perform(operation, target, answers.append)
    assert [answer.status for answer in answers] == [Status.BUSY]
    target.run_all()
    assert [answer.status for answer in answers[1:]] == [Status.GOOD] * 8


def test_operating_parameters() -> None:
    data = data_of(run(unit_over(RamTarget(SECTORS)), results(3)))
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert data[4] == 1
    assert data[8:20] == pack(">HHII", 8, 64, 8 * 32 + 64 * 28, 32 << 20)
    assert data[34:38] == bytes((0, 8, 8, 9))
    assert data[43:] == bytes((2, 0x02, 0xE4))


def test_who_can_copy_says_so() -> None:
    unit = unit_over(RamTarget(SECTORS))
    assert data_of(run(unit, inquiry_cdb()))[5] & 0x08
    page = data_of(run(unit, inquiry_cdb(0x8F, 1024)))
    assert int.from_bytes(page[2:4], "big") == len(page) - 4
    kinds, at = {}, 4
    while at < len(page):
        kind, length = int.from_bytes(page[at : at + 2], "big"), int.from_bytes(page[at + 2 : at + 4], "big")
        assert length % 4 == 0
        kinds[kind] = page[at + 4 : at + 4 + length]
        at += 4 + length
    assert set(kinds) == {0x0001, 0x0004, 0x0008, 0x000C, 0x8001}, "and no token"
    assert kinds[0x0001][: 1 + kinds[0x0001][0]] == bytes((8, 0x83, 1, 0x00, 0x84, 3, 0x00, 0x03, 0x04))
    assert (len(kinds[0x0004]), len(kinds[0x8001])) == (28, 32)
