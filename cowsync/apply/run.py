"""A whole plan, carried out by some threads: what is left of it, for calling again is how an apply goes on.

One rule: a line's result is in the journal before the next line begins, and only DONE lines are left out when the same
plan is applied again. Copies come first (adds, then modifies), removals last, each kind finished before the next
begins: what was renamed at the source is on the mirror under its new name before the old one goes.

VANISH and RETURN move nothing: they are facts, true without being carried out, and have no records.

A plan of all versions is carried out key by key instead (version_lines.py): the lines of one key in order, by one worker.
"""

import fcntl
import os
import queue
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Protocol

from cowsync.apply.copy_line import Carried, LineCopier, Place
from cowsync.apply.journal import Journals, WorkerJournal
from cowsync.apply.pieces import Elsewhere, LinesAnswer, LinesPiece, UploadsThere
from cowsync.apply.transfer import MIB, Transfer, TransferSettings
from cowsync.apply.version_lines import Step, VersionCopier, again
from cowsync.changes import LineResult, Op, Outcome, PlanLine
from cowsync.errors import Refused
from s3core.clock import Clock, SystemClock
from s3core.errors import Denied, Misconfigured, NotFound, OutcomeUnknown, StoreError, Unavailable
from s3core.limit import TokenBucket

ORDER = (Op.ADD, Op.MODIFY, Op.REMOVE)
"""Kinds of lines that move something, in the order they are carried out."""
_AGAIN_MAX = 10_000
"""Failed lines that are kept in memory to be tried once more."""
_SLOTS_MAX = 256
"""Pieces elsewhere at once, each with a journal, and a thread that waits for it."""
_MANY = 50
"""So many times `failures_in_a_row` ends a run though both ends let us in: the key may list, and not write."""


class Plan(Protocol):
    """What an apply needs of a plan."""

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal."""
        ...

    def read(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, PlanLine]]:
        """Number and line, from `start` to before `stop`; keys ascend."""
        ...


@dataclass(frozen=True, slots=True)
class ApplySettings:
    """`workers` lines at once; 0 requests or bytes per second are without limit (bytes through us, of all workers).
    `removals`: whether REMOVE lines are carried out. `begun_only`: only those lines that an earlier call began and of
    which nobody knows the end, so that the plan can be given up without a doubt about what the mirror holds. A worker
    takes up to `batch_lines` lines or `batch_bytes` at once. After `failures_in_a_row` lines that met refused
    credentials or a store that is away, the rest is kept; objects that are refused while the ends let us in (a
    policy on some prefix) may be fifty times as many."""

    workers: int = 16
    requests_per_s: float = 0.0
    bytes_per_s: float = 0.0
    removals: bool = True
    begun_only: bool = False
    check_mirror: bool = True
    transfer: TransferSettings = field(default_factory=TransferSettings)
    batch_lines: int = 64
    batch_bytes: int = 256 * MIB
    sync_s: float = 0.5
    failures_in_a_row: int = 20
    failures_kept: int = 100
    progress_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Of what was left when this call began. `seconds_left` is None until something can be said."""

    lines: int
    lines_total: int
    bytes: int
    bytes_total: int
    failed: int
    seconds: float

    @property
    def seconds_left(self) -> float | None:
        """By the slower of lines and bytes so far."""
        estimates = [
            (total - done) * self.seconds / done
            for done, total in ((self.lines, self.lines_total), (self.bytes, self.bytes_total))
            if done
        ]
        return max(estimates, default=None)


@dataclass(frozen=True, slots=True)
class Failure:
    """A line that is not DONE, for people."""

    number: int
    op: Op
    key: str
    outcome: Outcome
    message: str


@dataclass(slots=True)
class ApplyResult:
    """`counts` per kind of line and outcome, of this call; `done_before` were done by earlier ones. `stopped` says why
    lines were left untried, "" where none was. `failures` holds the first ones; all are in the journal."""

    plan: str
    lines: int = 0
    done_before: int = 0
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_moved: int = 0
    bytes_copied: int = 0
    seconds: float = 0.0
    stopped: str = ""
    failures: list[Failure] = field(default_factory=list)
    unsettled: int = 0
    """Failed lines of which nobody knows whether the mirror has taken them; calling again finds out."""
    uploads_left: int = 0
    """Multipart uploads that could not be aborted; the journals name them."""
    workers_lost: int = 0
    """Elsewhere: how many died under lines, which were given out again."""

    @property
    def done(self) -> int:
        return self.done_before + self.count(Outcome.DONE)

    def count(self, outcome: Outcome) -> int:
        return sum(of.get(outcome, 0) for of in self.counts.values())

    @property
    def complete(self) -> bool:
        """Every line of the plan is done."""
        return self.done == self.lines

    def to_json(self) -> dict[str, object]:
        return asdict(self) | {"done": self.done, "complete": self.complete}


@dataclass(frozen=True, slots=True)
class _Batch:
    """Lines of one kind with numbers from `first` to before `end`; nobody else has such lines in between. `again`: they
    failed already, and what the mirror holds may be that attempt's. Of all versions: `op` is None, and `keys` has the
    lines of whole keys in place of `lines`."""

    op: Op | None
    first: int
    end: int
    lines: list[tuple[int, PlanLine]]
    again: bool = False
    keys: list[list[Step]] = field(default_factory=list)


_Results = list[tuple[Step, Carried]]


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT ask for an orderly stop; a second SIGINT is KeyboardInterrupt. From the main thread only."""

    def asked(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    former = {number: signal.signal(number, asked) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _no_bucket(error: StoreError | None) -> bool:
    return isinstance(error, NotFound) and not error.key


class _SharedPace:
    """Allowances of all workers together."""

    def __init__(self, settings: ApplySettings, clock: Clock) -> None:
        self._requests = TokenBucket(settings.requests_per_s, 1.0, clock) if settings.requests_per_s else None
        self._bytes = TokenBucket(settings.bytes_per_s, 1.0, clock) if settings.bytes_per_s else None

    def request(self) -> None:
        if self._requests is not None:
            self._requests.take(1)

    def transfer(self, count: int) -> None:
        if self._bytes is not None:
            self._bytes.take(count)


def apply_plan(
    plan: Plan,
    source: Place,
    mirror: Place,
    directory: Path,
    *,
    run: int,
    settings: ApplySettings | None = None,
    locate: Callable[[PlanLine], str] | None = None,
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    clock: Clock | None = None,
    elsewhere: Elsewhere | None = None,
) -> ApplyResult:
    """Carry out what is left of `plan`. `directory` keeps its journals and nothing else, on a disk that syncs; `run` is
    the number of the run, the same when called again. `locate`: see `LineCopier`. With `elsewhere` lines are carried out
    there, `workers` at once in each lane, by the limits of the endpoints there; not with `locate` or limits of `settings`.

    What stores say ends in the result, so does a journal that cannot be written. Raises Refused where another apply
    uses the directory, StateDamaged for a damaged journal, OSError where the journals cannot be opened, and what
    `elsewhere` raises, once all that was answered is noted. After a crash at any point, calling again carries on; what
    had been begun is done again."""
    directory.mkdir(parents=True, exist_ok=True)
    with _alone(directory):
        applying = _Applying(
            plan, source, mirror, directory, run, settings or ApplySettings(), locate, clock or SystemClock(), elsewhere
        )
        return applying.run(stop or threading.Event(), on_progress)


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(
                f"another process is applying this plan (it holds {directory / 'lock'})",
                hint="wait for it, or stop it with SIGTERM and call again",
            ) from None
        yield
    finally:
        os.close(fd)


class _Applying:
    """One call. `_lock` guards everything that workers and the caller's thread share."""

    def __init__(
        self,
        plan: Plan,
        source: Place,
        mirror: Place,
        directory: Path,
        run: int,
        settings: ApplySettings,
        locate: Callable[[PlanLine], str] | None,
        clock: Clock,
        elsewhere: Elsewhere | None,
    ) -> None:
        if elsewhere is not None and (locate is not None or settings.requests_per_s or settings.bytes_per_s):
            raise ValueError("lines that are carried out elsewhere have neither places nor limits of this process")
        self._plan = plan
        self._locate = locate
        self._elsewhere = elsewhere
        self._source = source
        self._mirror = mirror
        self._directory = directory
        self._run = run
        self._settings = settings
        self._clock = clock
        self._digest = bytes.fromhex(plan.digest)
        self._pace = _SharedPace(settings, clock)
        self._queue: queue.Queue[_Batch | None] = queue.Queue(maxsize=2 * settings.workers)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._result = ApplyResult(plan.digest)
        self._open_batches = 0
        self._again: dict[int, tuple[PlanLine, LineResult, StoreError | None]] = {}
        self._keys_again: list[tuple[list[Step], _Results]] = []
        self._versions = False
        self._in_a_row = 0
        self._lines_done = 0
        self._bytes_done = 0
        self._lines_total = 0
        self._bytes_total = 0
        self._halted = threading.Event()
        self._fatal: BaseException | None = None

    def run(self, stop: threading.Event, on_progress: Callable[[Progress], None] | None) -> ApplyResult:
        self._stop = stop
        self._on_progress = on_progress
        self._began = self._reported = self._clock.monotonic()
        self._journals = Journals.read(self._directory, self._digest)
        kinds = self._count()
        journals: list[WorkerJournal] = []
        try:
            for _ in range(self._slots()):
                self._add_journal(journals)
            self._abort_left_uploads(journals[0])
            self._work(journals, kinds)
        finally:
            for journal in journals:
                try:
                    journal.close()
                except OSError as error:
                    self._halt(f"the journal cannot be synced: {error}")
        left = set(self._journals.uploads).union(*(journal.begun for journal in journals))
        self._result.uploads_left = len(left.difference(*(journal.over for journal in journals)))
        if self._fatal is not None:
            raise self._fatal
        self._result.seconds = self._clock.monotonic() - self._began
        self._report(last=True)
        return self._result

    def _count(self) -> Counter[Op]:
        """What is left, by kind."""
        left: Counter[Op] = Counter()
        for number, line in self._plan.read():
            self._result.lines += 1
            self._versions = self._versions or line.ordinal > 0
            if line.op not in ORDER:
                self._tell(line.op, Outcome.DONE)
            elif number in self._journals.done:
                self._result.done_before += 1
            elif not self._wanted(line.op, number):
                self._tell(line.op, Outcome.SKIPPED)
            else:
                left[line.op] += 1
                self._lines_total += 1
                self._bytes_total += line.size if line.op is not Op.REMOVE else 0
        return left

    def _wanted(self, op: Op, number: int) -> bool:
        if self._settings.begun_only and not self._journals.maybe_ours(op, number):
            return False
        return op is not Op.REMOVE or self._settings.removals or self._versions

    def _slots(self) -> int:
        """Threads that take batches. Elsewhere one more than lanes: a lane that is done finds its next piece at once."""
        if self._elsewhere is None:
            return self._settings.workers
        return min(self._elsewhere.crew.lanes + 1, _SLOTS_MAX)

    def _add_journal(self, journals: list[WorkerJournal]) -> WorkerJournal:
        journals.append(WorkerJournal(self._directory, len(journals), self._digest))
        return journals[-1]

    def _thread(self, journal: WorkerJournal) -> threading.Thread:
        return threading.Thread(target=self._worker, args=(journal,), name=f"apply-{journal.path.stem}", daemon=True)

    def _grow(self, workers: list[threading.Thread], journals: list[WorkerJournal]) -> None:
        """Lanes that came since."""
        while len(workers) < self._slots():
            workers.append(self._thread(self._add_journal(journals)))
            workers[-1].start()

    def _work(self, journals: list[WorkerJournal], kinds: Counter[Op]) -> None:
        workers = [self._thread(journal) for journal in journals]
        over = threading.Event()
        syncer = threading.Thread(target=self._syncer, args=(journals, over), name="apply-sync", daemon=True)
        for thread in (*workers, syncer):
            thread.start()
        try:
            if self._versions:
                self._work_by_key()
            for op in ORDER if not self._versions else ():
                if kinds[op]:
                    for batch in self._batches(op, kinds[op]):
                        self._grow(workers, journals)
                        if not self._hand_out(batch):
                            break
                    self._wait_for_all()
                    self._try_again(op)
        except BaseException:
            self._halt("interrupted")
            raise
        finally:
            for _ in workers:
                self._give(None)
            for thread in workers:
                thread.join()
            over.set()
            syncer.join()

    def _batches(self, op: Op, left: int) -> Iterator[_Batch]:
        """Lines of one kind that are not done, by number; of one key in one batch. Ranges touch each other, so that they
        join. What is larger than `batch_bytes` is alone."""
        lines_most, bytes_most = self._settings.batch_lines, self._settings.batch_bytes
        if self._elsewhere is not None:
            lines_most, bytes_most = self._elsewhere.lines_at_once(left), bytes_most * self._settings.workers
        lines: list[tuple[int, PlanLine]] = []
        first = size = 0
        for number, line in self._plan.read():
            if line.op is not op or number in self._journals.done or not self._wanted(op, number):
                continue
            full = len(lines) >= lines_most or size + line.size > bytes_most
            if lines and full and lines[-1][1].key != line.key:
                end = lines[-1][0] + 1
                yield _Batch(op, first, end, lines)
                first, size, lines = end, 0, []
            lines.append((number, line))
            size += line.size
        if lines:
            yield _Batch(op, first, lines[-1][0] + 1, lines)

    def _work_by_key(self) -> None:
        for batch in self._key_batches():
            if not self._hand_out(batch):
                break
        self._wait_for_all()
        again, self._keys_again = self._keys_again, []
        for steps, results in again:
            first, end = steps[0].number, steps[-1].number + 1
            if not self._hand_out(_Batch(None, first, end, [], again=True, keys=[steps])):
                # When halted, they are not tried again: then their first results count.
                for step, carried in results:
                    self._end(step.line, carried.result, carried.error)
        self._wait_for_all()

    def _key_batches(self) -> Iterator[_Batch]:
        """Whole keys that have something left to do."""
        keys: list[list[Step]] = []
        first = size = count = 0
        moving = ((number, line) for number, line in self._plan.read() if line.op in ORDER)
        for _, group in groupby(moving, key=lambda one: one[1].key):
            steps = [
                Step(number, line, number in self._journals.done, self._journals.maybe_ours(line.op, number))
                for number, line in group
            ]
            if not any(not step.done and self._wanted(step.line.op, step.number) for step in steps):
                continue
            keys.append(steps)
            count += len(steps)
            size += sum(step.line.size for step in steps)
            if count >= self._settings.batch_lines or size >= self._settings.batch_bytes:
                end = steps[-1].number + 1
                yield _Batch(None, first, end, [], keys=keys)
                first, size, count, keys = end, 0, 0, []
        if keys:
            yield _Batch(None, first, keys[-1][-1].number + 1, [], keys=keys)

    def _try_again(self, op: Op) -> None:
        """Lines that a store had no answer for, once more: by now it may be back, and then nothing is left in doubt."""
        for number, (line, _, _) in sorted(self._again.items()):
            if not self._hand_out(_Batch(op, number, number + 1, [(number, line)], again=True)):
                break
        self._wait_for_all()
        # When halted, some were not tried again: then their first result counts.
        for line, result, error in self._again.values():
            self._end(line, result, error)
        self._again.clear()

    def _hand_out(self, batch: _Batch) -> bool:
        if self._stopping():
            return False
        with self._lock:
            self._open_batches += 1
        if not self._give(batch):
            with self._lock:
                self._open_batches -= 1
            return False
        return True

    def _give(self, batch: _Batch | None) -> bool:
        """Whether somebody will take it. None always finds its way: workers empty the queue when they stop."""
        while batch is None or not self._stopping():
            try:
                self._queue.put(batch, timeout=0.1)
                return True
            except queue.Full:
                self._report()
        return False

    def _wait_for_all(self) -> None:
        """When halted, workers drop what is in the queue at once: this is the time of the lines in flight."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: not self._open_batches, 0.1):
                    return
            self._report()

    def _worker(self, journal: WorkerJournal) -> None:
        transfer = Transfer(self._settings.transfer, journal, self._pace)
        copier = LineCopier(
            self._source,
            self._mirror,
            transfer,
            self._clock,
            run=self._run,
            check_mirror=self._settings.check_mirror,
            locate=self._locate,
        )
        versions = VersionCopier(
            self._source, self._mirror, transfer, self._clock, check_mirror=self._settings.check_mirror
        )
        while (batch := self._queue.get()) is not None:
            try:
                if not self._stopping() and batch.op is None:
                    self._carry_out_keys(batch, versions, journal)
                elif not self._stopping():
                    self._carry_out(batch, copier, journal)
            except OSError as error:
                self._halt(f"the journal cannot be written: {error}; make room, then apply again")
            except BaseException as error:  # noqa: BLE001
                # Ours to mend, or the end of the process: nothing more may happen, and the caller hears it.
                self._fatal = self._fatal or error
                self._halt(f"{type(error).__name__}: {error}")
            finally:
                with self._changed:
                    self._open_batches -= 1
                    self._changed.notify_all()

    def _carry_out_keys(self, batch: _Batch, copier: VersionCopier, journal: WorkerJournal) -> None:
        journal.begin_all(ORDER, batch.first, batch.end)
        for steps in batch.keys:
            results: _Results = []
            for step, carried in copier.carry_out(steps):
                # Crash here: put on the mirror, not in the journal; what lies there is listed before the line is done again.
                journal.append(carried.result)
                results.append((step, carried))
                if self._stopping():
                    break
            self._note_key(steps, results, last=batch.again)
            if self._stopping():
                return

    def _note_key(self, steps: list[Step], results: _Results, *, last: bool) -> None:
        """What became of the lines of one key; they are tried again together."""
        cause = next((one for _, one in results if one.result.outcome is not Outcome.DONE), None)
        error = cause.error if cause is not None else None
        with self._lock:
            self._result.bytes_moved += sum(one.result.bytes_moved for _, one in results)
            self._result.bytes_copied += sum(one.result.bytes_copied for _, one in results)
            undone = [one for one in results if one[1].result.outcome is not Outcome.DONE]
            if error is not None and error.temporary and not last and len(self._keys_again) < _AGAIN_MAX:
                self._keys_again.append((again(steps, results), undone))
                undone = []
            for step, carried in results:
                if carried.result.outcome is Outcome.DONE:
                    self._end(step.line, carried.result, None)
            for step, carried in undone:
                self._end(step.line, carried.result, carried.error)
        self._count_in_a_row((cause or results[-1][1]).result, error)

    def _carry_out(self, batch: _Batch, copier: LineCopier, journal: WorkerJournal) -> None:
        assert batch.op is not None
        journal.begin(batch.op, batch.first, batch.end)
        if self._elsewhere is not None:
            self._send(self._elsewhere, batch, journal)
            return
        for number, line in batch.lines:
            if self._stopping():
                return
            maybe_ours = batch.again or self._journals.maybe_ours(batch.op, number)
            carried = copier.carry_out(number, line, maybe_ours=maybe_ours)
            # Crash here: done on the mirror, not in the journal; the line is looked at and done again.
            journal.append(carried.result)
            self._note(line, carried.result, carried.error, last=batch.again)

    def _send(self, elsewhere: Elsewhere, batch: _Batch, journal: WorkerJournal) -> None:
        """Crash here: lines may be done on the mirror, and are begun in the journal; they are looked at and done again."""
        settings, op = self._settings, batch.op
        assert op is not None  # versions are carried out here
        piece = LinesPiece(
            self._plan.digest,
            self._run,
            settings.workers,
            elsewhere.piece_s,
            settings.check_mirror,
            settings.transfer,
            elsewhere.where,
        )
        numbered = [
            (number, line, batch.again or self._journals.maybe_ours(op, number)) for number, line in batch.lines
        ]
        uploads = UploadsThere(journal)
        try:
            self._receive(elsewhere.carried(piece, numbered, self._stopping, uploads), batch, journal)
        finally:
            self._abort(uploads.end(), journal)

    def _receive(self, answers: Iterator[LinesAnswer], batch: _Batch, journal: WorkerJournal) -> None:
        lines = dict(batch.lines)
        for answer in answers:
            with self._lock:
                self._result.workers_lost += answer.lost
            # What looks like drift and may be our own is tried once more, and is no finding before.
            doubted = Outcome.DRIFTED if answer.doubtful and not batch.again else None
            journal.append(*(done.result for done in answer.carried if done.result.outcome is not doubted))
            for carried in answer.carried:
                line = lines[carried.result.number]
                self._note(line, carried.result, carried.error, last=batch.again, doubtful=answer.doubtful)
            if answer.shut_out:
                self._halt(answer.shut_out)

    def _note(
        self, line: PlanLine, result: LineResult, error: StoreError | None, *, last: bool, doubtful: bool = False
    ) -> None:
        """`doubtful`: what looks like somebody else's on the mirror may be another run's of the same line."""
        with self._lock:
            self._result.bytes_moved += result.bytes_moved
            self._result.bytes_copied += result.bytes_copied
            passing = error.temporary if error is not None else doubtful and result.outcome is Outcome.DRIFTED
            if passing and not last and len(self._again) < _AGAIN_MAX:
                self._again[result.number] = (line, result, error)
            else:
                self._again.pop(result.number, None)
                self._end(line, result, error)
        self._count_in_a_row(result, error)

    def _count_in_a_row(self, result: LineResult, error: StoreError | None) -> None:
        with self._lock:
            lasting = isinstance(error, Denied | Misconfigured | Unavailable | OutcomeUnknown) or _no_bucket(error)
            self._in_a_row = in_a_row = self._in_a_row + 1 if lasting else 0
        few = self._settings.failures_in_a_row
        if (in_a_row == few and not (isinstance(error, Denied) and self._answer())) or in_a_row >= _MANY * few:
            self._halt(f"{in_a_row} lines in a row failed, the last one with: {result.message}")

    def _answer(self) -> bool:
        """Whether both ends still let us in: then it is these objects that are refused, and others may go."""
        try:
            for place in (self._source, self._mirror):
                self._pace.request()
                place.bucket.list_page(prefix=place.prefix, max_keys=1)
        except StoreError:
            return False
        return True

    def _end(self, line: PlanLine, result: LineResult, error: StoreError | None) -> None:
        self._tell(line.op, result.outcome)
        self._lines_done += 1
        self._bytes_done += line.size if line.op is not Op.REMOVE else 0
        self._result.unsettled += isinstance(error, OutcomeUnknown)
        if result.outcome is not Outcome.DONE and len(self._result.failures) < self._settings.failures_kept:
            failure = Failure(result.number, line.op, line.key, result.outcome, result.message)
            self._result.failures.append(failure)

    def _tell(self, op: Op, outcome: Outcome) -> None:
        of = self._result.counts.setdefault(op, {})
        of[outcome] = of.get(outcome, 0) + 1

    def _stopping(self) -> bool:
        if self._stop.is_set() and not self._halted.is_set():
            self._halt("asked to stop")
        return self._halted.is_set()

    def _halt(self, reason: str) -> None:
        """Lines in flight are finished, no other is begun. The first reason counts."""
        with self._lock:
            self._result.stopped = self._result.stopped or reason
        self._halted.set()

    def _syncer(self, journals: list[WorkerJournal], over: threading.Event) -> None:
        while not over.wait(self._settings.sync_s):
            for journal in journals:
                try:
                    journal.sync()
                except OSError as error:
                    self._halt(f"the journal cannot be synced: {error}; see to the disk, then apply again")

    def _abort_left_uploads(self, journal: WorkerJournal) -> None:
        """What a crash left begun. Nobody can see these uploads, but they are paid for."""
        self._abort(sorted(self._journals.uploads), journal)

    def _abort(self, uploads: list[tuple[str, str]], journal: WorkerJournal) -> None:
        transfer = Transfer(self._settings.transfer, journal, self._pace)
        for key, upload_id in uploads:
            transfer.abort(self._mirror.bucket, key, upload_id)

    def _report(self, *, last: bool = False) -> None:
        now = self._clock.monotonic()
        if self._on_progress is None or (not last and now - self._reported < self._settings.progress_s):
            return
        self._reported = now
        with self._lock:
            progress = Progress(
                self._lines_done,
                self._lines_total,
                self._bytes_done,
                self._bytes_total,
                self._result.count(Outcome.FAILED),
                now - self._began,
            )
        self._on_progress(progress)
