"""A run of many lines: order, stop, limits, and what ends it early."""

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cowsync.apply.copy_line import Place
from cowsync.apply.journal import Journals, journal_files, read_journal
from cowsync.apply.journal_format import Begun
from cowsync.apply.run import ApplySettings, Progress, apply_plan, stop_on_signals
from cowsync.apply.transfer import TransferSettings
from cowsync.changes import LineResult, Op, Outcome
from cowsync.errors import Refused, StateDamaged
from s3core.errors import NotFound
from s3core.memory_bucket import MemoryBucket
from tests.cowsync.apply.faulty_bucket import Fault, Faults, ListPlan, faulty, line_for, service


class Some:
    """`count` objects of which each is added, modified or removed in turn, in an order that mixes them."""

    def __init__(self, count: int, *, size: int = 10) -> None:
        self.faults = Faults()
        self.source_bucket = service("one").bucket("source")
        self.mirror_bucket = service("two").bucket("mirror", versioned=True)
        lines = []
        for number in range(count):
            key, op = f"{number:05}", (Op.REMOVE, Op.MODIFY, Op.ADD)[number % 3]
            was = "" if op is Op.ADD else self.mirror_bucket.put(key, b"old").etag
            self.source_bucket.put(key, bytes([number % 251]) * size)
            lines.append(line_for(op, self.source_bucket, key, mirror_etag=was))
        self.plan = ListPlan(lines)
        self.source = Place(faulty(self.source_bucket, self.faults))
        self.mirror = Place(faulty(self.mirror_bucket, self.faults))


def results(directory: Path) -> list[LineResult]:
    digest = journal_files(directory)[0].read_bytes()[12:44]
    entries = [entry for path in journal_files(directory) for entry, _ in read_journal(path, digest)]
    return [entry for entry in entries if isinstance(entry, LineResult)]


def test_adds_then_modifies_then_removes(tmp_path: Path) -> None:
    some = Some(30)
    result = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=ApplySettings(workers=4))
    assert result.complete
    assert result.counts == {op: {Outcome.DONE: 10} for op in (Op.ADD, Op.MODIFY, Op.REMOVE)}
    assert result.bytes_moved == 200
    order = [call for call in some.faults.trace if call in ("put", "delete")]
    assert order == ["put"] * 20 + ["delete"] * 10
    assert len(results(tmp_path)) == 30
    assert result.to_json()["complete"] is True


def test_removals_only_where_they_are_allowed(tmp_path: Path) -> None:
    some = Some(9)
    settings = ApplySettings(workers=2, removals=False)
    result = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings)
    assert result.counts[Op.REMOVE] == {Outcome.SKIPPED: 3}
    assert not result.complete
    assert result.done == 6
    allowed = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1)
    assert allowed.complete
    assert allowed.done_before == 6


def test_a_stop_finishes_what_is_in_flight_and_keeps_the_rest(tmp_path: Path) -> None:
    some, stop = Some(60), threading.Event()
    some.faults.meanwhile = {25: stop.set}
    settings = ApplySettings(workers=3, batch_lines=4)
    first = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings, stop=stop)
    assert first.stopped == "asked to stop"
    assert 0 < first.done < 20
    assert not first.failures
    assert {r.outcome for r in results(tmp_path)} == {Outcome.DONE}
    calls = some.faults.calls
    second = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings)
    assert second.complete
    assert second.done_before == first.done
    assert len(results(tmp_path)) == 60, "nothing was done twice"
    assert some.faults.calls > calls


def test_a_plan_can_be_given_up_without_a_doubt_about_the_mirror(tmp_path: Path) -> None:
    """What was begun is brought to an end, nothing else is begun."""
    some, stop = Some(60), threading.Event()
    some.faults.meanwhile = {25: stop.set}
    settings = ApplySettings(workers=3, batch_lines=4)
    apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings, stop=stop)
    given_up = ApplySettings(workers=3, batch_lines=4, begun_only=True)
    second = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=given_up)
    journals = Journals.read(tmp_path, bytes.fromhex(some.plan.digest))
    begun = [number for number, line in some.plan.read() if journals.maybe_ours(line.op, number)]
    assert second.done_before < second.done == len(begun) < 60
    assert not second.complete
    assert all(number in journals.done for number in begun)


def test_a_store_that_is_away_ends_the_run_with_what_is_done(tmp_path: Path) -> None:
    some = Some(60)
    some.faults.at = dict.fromkeys(range(40, 4000), Fault.REFUSED)
    settings = ApplySettings(workers=2, failures_in_a_row=5, failures_kept=3)
    first = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings)
    assert "5 lines in a row failed" in first.stopped
    assert "refused" in first.stopped
    assert 5 <= first.count(Outcome.FAILED) <= 8
    assert len(first.failures) == 3
    assert first.done > 5
    some.faults.at = {}
    assert apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings).complete


def test_refused_credentials_end_the_run_and_one_refused_object_does_not(tmp_path: Path) -> None:
    some = Some(30)
    some.faults.at = {7: Fault.DENIED, 30: Fault.DENIED}
    settings = ApplySettings(workers=1, failures_in_a_row=4)
    first = apply_plan(some.plan, some.source, some.mirror, tmp_path / "1", run=1, settings=settings)
    assert first.stopped == ""
    assert first.count(Outcome.FAILED) == 2
    other = Some(30)
    other.faults.at = dict.fromkeys(range(20, 999), Fault.DENIED)
    second = apply_plan(other.plan, other.source, other.mirror, tmp_path / "2", run=1, settings=settings)
    assert "4 lines in a row" in second.stopped


def test_a_prefix_that_is_refused_does_not_keep_the_others(tmp_path: Path) -> None:
    """Twenty objects in a row that a policy denies; both ends let us in."""
    some = Some(90)

    class Policy(Faults):
        def call(self, name: str, action: Callable[[], object]) -> object:
            self.at = {self.calls + 1: Fault.DENIED} if 20 < self.calls < 60 and name != "list_page" else {}
            return super().call(name, action)

    some.faults = Policy()
    source, mirror = Place(faulty(some.source_bucket, some.faults)), Place(faulty(some.mirror_bucket, some.faults))
    settings = ApplySettings(workers=1, failures_in_a_row=8)
    result = apply_plan(some.plan, source, mirror, tmp_path, run=1, settings=settings)
    assert result.stopped == ""
    assert result.count(Outcome.FAILED) > 20
    assert result.done + result.count(Outcome.FAILED) == 90


def test_a_bucket_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    some = Some(60)

    class Gone(Faults):
        def call(self, name: str, action: Callable[[], object]) -> object:
            if self.calls > 20:
                raise NotFound("no such bucket")
            return super().call(name, action)

    source, mirror = Place(faulty(some.source_bucket, Gone())), Place(some.mirror_bucket)
    settings = ApplySettings(workers=1, failures_in_a_row=4)
    result = apply_plan(some.plan, source, mirror, tmp_path, run=1, settings=settings)
    assert "no such bucket" in result.stopped
    assert not result.count(Outcome.MOVED)


def test_a_full_disk_ends_the_run_and_nothing_done_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = Some(30)
    room = 1500
    write = os.pwrite

    def full(fd: int, data: memoryview, offset: int) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = min(room, len(data))
        room -= taken
        return write(fd, data[:taken], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        first = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=ApplySettings(workers=2))
    assert "No space left" in first.stopped
    assert "make room" in first.stopped
    done = {number for number in range(30) if number in Journals.read(tmp_path, bytes.fromhex(some.plan.digest)).done}
    assert done
    second = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=ApplySettings(workers=2))
    assert second.complete
    assert second.done_before == len(done)


def test_a_bug_in_a_worker_is_heard(tmp_path: Path) -> None:
    some = Some(9)

    def bug() -> None:
        raise ZeroDivisionError("planted")

    some.faults.meanwhile = {4: bug}
    with pytest.raises(ZeroDivisionError, match="planted"):
        apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1)


def test_only_one_apply_at_a_time(tmp_path: Path) -> None:
    some = Some(3)

    def again() -> None:
        with pytest.raises(Refused, match="another process"):
            apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1)

    some.faults.meanwhile = {1: again}
    assert apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1).complete


def test_a_damaged_journal_is_refused_before_anything_moves(tmp_path: Path) -> None:
    some = Some(9)
    assert apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1).complete
    path = next(path for path in journal_files(tmp_path) if path.stat().st_size > 300)
    content = bytearray(path.read_bytes())
    content[70] ^= 1
    path.write_bytes(content)
    calls = some.faults.calls
    with pytest.raises(StateDamaged, match="worker-"):
        apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1)
    assert some.faults.calls == calls


def test_ranges_of_one_kind_join(tmp_path: Path) -> None:
    """What is kept in memory of the BEGUN records of a long run is a few ranges."""
    some = Some(300)
    settings = ApplySettings(workers=3, batch_lines=7)
    assert apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings).complete
    digest = bytes.fromhex(some.plan.digest)
    begun = [e for path in journal_files(tmp_path) for e, _ in read_journal(path, digest) if isinstance(e, Begun)]
    assert len(begun) > 40
    for op in (Op.ADD, Op.MODIFY, Op.REMOVE):
        assert len(Journals.read(tmp_path, digest).begun[op]._ranges) == 1


class StillClock:
    """Time passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


def test_limits_are_kept(tmp_path: Path) -> None:
    some, clock = Some(30, size=1000), StillClock()
    settings = ApplySettings(workers=1, bytes_per_s=2000)
    assert apply_plan(
        some.plan, some.source, some.mirror, tmp_path / "1", run=1, settings=settings, clock=clock
    ).complete
    assert 8 <= clock.now <= 10, "20,000 bytes at 2,000 a second, and what may be ahead of that"
    other, clock = Some(30), StillClock()
    settings = ApplySettings(workers=1, requests_per_s=10)
    assert apply_plan(
        other.plan, other.source, other.mirror, tmp_path / "2", run=1, settings=settings, clock=clock
    ).complete
    assert clock.now == pytest.approx(other.faults.calls / 10, abs=1.1)


def test_progress_tells_rate_and_time_left(tmp_path: Path) -> None:
    some, clock, told = Some(30, size=100), StillClock(), list[Progress]()
    settings = ApplySettings(workers=1, requests_per_s=10, progress_s=0)
    apply_plan(
        some.plan,
        some.source,
        some.mirror,
        tmp_path,
        run=1,
        settings=settings,
        clock=clock,
        on_progress=told.append,
    )
    last = told[-1]
    assert (last.lines, last.lines_total, last.bytes, last.bytes_total) == (30, 30, 2000, 2000)
    assert last.seconds_left == 0
    assert Progress(10, 40, 100, 1000, 0, 5.0).seconds_left == pytest.approx(45)
    assert Progress(0, 40, 0, 1000, 0, 5.0).seconds_left is None


def test_signals_ask_for_a_stop() -> None:
    stop, former = threading.Event(), signal.getsignal(signal.SIGTERM)
    with stop_on_signals(stop):
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == former


def test_an_upload_that_cannot_be_aborted_yet_is_tried_again(tmp_path: Path) -> None:
    source, mirror = service("one").bucket("source"), service("two").bucket("mirror")
    source.put("k", bytes(100))
    plan = ListPlan([line_for(Op.ADD, source, "k")])
    quick = ApplySettings(workers=1, transfer=TransferSettings(16, 64))
    faults = Faults(dict.fromkeys(range(6, 99), Fault.REFUSED))

    def go(bucket: MemoryBucket, faults: Faults) -> int:
        places = Place(faulty(source, faults)), Place(faulty(bucket, faults))
        return apply_plan(plan, *places, tmp_path, run=1, settings=quick).uploads_left

    assert go(mirror, faults) == 1
    assert len(mirror.uploads()) == 1
    assert go(mirror, Faults(dict.fromkeys(range(1, 99), Fault.REFUSED))) == 1
    assert go(mirror, Faults()) == 0
    assert not mirror.uploads()
    assert mirror.contents() == {"k": bytes(100)}


def test_a_short_outage_is_tried_again_and_leaves_no_doubt(tmp_path: Path) -> None:
    """A put whose answer is lost, and the look at it fails as well: at the end of its kind it is looked at again."""
    some = Some(9)
    some.faults.at = {8: Fault.LOST_REPLY, 9: Fault.REFUSED}
    settings = ApplySettings(workers=1)
    result = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings)
    assert result.complete, result.failures
    assert result.counts == {op: {Outcome.DONE: 3} for op in (Op.ADD, Op.MODIFY, Op.REMOVE)}
    assert not result.failures
    assert [r.outcome for r in results(tmp_path)].count(Outcome.FAILED) == 1


def test_a_longer_one_leaves_a_doubt_that_is_told(tmp_path: Path) -> None:
    some = Some(3)
    some.faults.at = {4: Fault.LOST_REPLY, 5: Fault.REFUSED, 6: Fault.REFUSED, 7: Fault.REFUSED}
    settings = ApplySettings(workers=1, failures_in_a_row=1)
    result = apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1, settings=settings)
    assert some.faults.trace[:5] == ["head", "head", "get", "put", "head"]
    assert result.unsettled == result.count(Outcome.FAILED) == 1
    assert len(result.failures) == 1
    some.faults.at = {}
    assert apply_plan(some.plan, some.source, some.mirror, tmp_path, run=1).complete
