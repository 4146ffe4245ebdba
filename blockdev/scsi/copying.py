"""Carry an EXTENDED COPY out, piece by piece, between volumes of this daemon.

One rule: between two pieces other commands have their turn, the copy may be ended, and the journal's pacing is obeyed; within a
piece everything is read before anything is staged. So sectors are never torn, overlapping ranges come out as if
the source had been read first, and no more than one piece is in memory.

Ranges the source does not hold are discarded at the destination: they cost one range in the log, whatever their length. A copy
that ends early has written a part of the destination and nothing else; SPC-4 6.4 promises no more, and repeating it is right.
What is written becomes durable as any write does: by a flush of the destination.
"""

from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from blockdev.errors import BlockError, JournalFull, MediumError, StoreUnreachable
from blockdev.scsi.operation import Copy, CopySegment, Later, Response
from blockdev.scsi.sense import BUSY, GOOD, TASK_ABORTED, Condition, copy_aborted, response_for
from blockdev.units import KIB, MIB

Done = Callable[[Response], None]
Resume = Callable[[Any], None]
Request = Callable[[Resume], None]
"""Something to ask; it calls its argument with the answer, at once or later."""
Run = tuple[int, int, bool]
"""(offset within the segment, bytes, whether the source may hold something there)."""
Window = tuple[int, int]
"""(offset within the segment, bytes)."""

PIECE_BYTES = 256 * KIB
"""Copied in one turn of the front, so that others hardly notice."""
WINDOW_BYTES = 16 * MIB
"""What is asked at once whether the source holds it."""
WINDOWS_AHEAD = 8
FULL_PAUSE_S = 0.1
FULL_PAUSES_MAX = 50
"""A full journal is waited for so many times; then the initiator is told BUSY and begins again."""


def copy(operation: Copy, done: Done) -> None:
    """Call `done` exactly once, with what was written committed. A cancelled copy answers TASK ABORTED, which a door that
    has ended the command drops."""
    progress = operation.progress

    def finished(response: Response) -> None:
        progress.answer = response
        done(response)

    _drive(_segments(operation), lambda: progress.cancelled, finished)


def _drive(steps: Generator[Request, Any, Response], cancelled: Callable[[], bool], done: Done) -> None:
    """Run the generator: ask what it yields, send it the answer. Answers that come at once are looped over, not recursed
    into."""
    answers: list[Any] = []
    running = False

    def resume(answer: Any) -> None:
        answers.append(answer)
        if not running:
            go()

    def go() -> None:
        nonlocal running
        running = True
        try:
            while answers:
                answer = answers.pop()
                if cancelled():
                    steps.close()
                    done(TASK_ABORTED)
                    return
                steps.send(answer)(resume)
        except StopIteration as ended:
            done(ended.value)
        finally:
            running = False

    resume(None)


class _Refused(Exception):
    """A reservation came in between."""


def _segments(operation: Copy) -> Generator[Request, Any, Response]:
    progress = operation.progress
    questions = _Questions([(segment, window) for segment in operation.segments for window in _windows(segment)])
    for number, segment in enumerate(operation.segments):
        copied = progress.bytes
        try:
            yield from _segment(segment, operation, questions)
        except _Refused:
            condition = Condition.THIRD_PARTY_DEVICE_FAILURE
        except BlockError as error:
            # BUSY for what passes: the initiator repeats the command. A failure of the volume the command came to is
            # told as for every command, so that multipath leaves this path.
            if isinstance(error, JournalFull | StoreUnreachable):
                return BUSY
            if isinstance(error, MediumError):
                condition = Condition.THIRD_PARTY_DEVICE_FAILURE
            elif segment.source is segment.destination is operation.target:
                return response_for(error)
            else:
                condition = Condition.COPY_TARGET_NOT_REACHABLE
        else:
            progress.segments = number + 1
            continue
        left = segment.length - (progress.bytes - copied)
        return copy_aborted(condition, number, left // segment.source.sector_bytes)
    try:
        # Time has passed since the pieces were: what is acknowledged may still be acknowledged now.
        for segment in operation.segments:
            segment.destination.commit()
    except BlockError as error:
        return response_for(error)
    return GOOD


def _backward(segment: CopySegment) -> bool:
    """Whether the end goes first: the destination lies behind the source and both overlap."""
    first, sectors = segment.source_lba, segment.length // segment.source.sector_bytes
    return segment.source is segment.destination and first < segment.destination_lba < first + sectors


def _windows(segment: CopySegment) -> list[Window]:
    """The segment in the order in which it is copied."""
    windows = [(at, min(WINDOW_BYTES, segment.length - at)) for at in range(0, segment.length, WINDOW_BYTES)]
    return windows[::-1] if _backward(segment) else windows


def _segment(segment: CopySegment, operation: Copy, questions: "_Questions") -> Generator[Request, Any, None]:
    unit = max(segment.source.sector_bytes, segment.destination.sector_bytes)
    for window in _windows(segment):
        runs = _runs(segment, window, (yield from questions.next()))
        pieces = list(_pieces(runs, unit))
        for piece in reversed(pieces) if _backward(segment) else pieces:
            if segment.refused():
                raise _Refused
            pause = yield from _piece(segment, piece, operation.later)
            operation.progress.bytes += piece[1]
            if operation.later is not None:
                yield partial(_wait, operation.later, pause)  # no pause, too: others have their turn


class _Questions:
    """What the source holds, window by window. Windows that come soon are asked about while others are copied, since the
    answers come from a worker that is busy with what was copied before; but none that a copy is going to change first."""

    def __init__(self, windows: list[tuple[CopySegment, Window]]) -> None:
        self._windows = windows
        self._at = 0
        """The window that is due next."""
        self._asked = 0
        self._answers: dict[int, Any] = {}
        self._resume: Resume | None = None

    def next(self) -> Generator[Request, Any, Any]:
        self._ask(self._at)
        answer = yield self._wait
        self._at += 1
        self._ask(self._at - 1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _ask(self, uncopied: int) -> None:
        """Ask ahead; the windows from `uncopied` on are not, or not wholly, copied yet."""
        while self._asked < min(len(self._windows), self._at + WINDOWS_AHEAD):
            asked = self._windows[self._asked]
            if any(self._changes(before, asked) for before in self._windows[uncopied : self._asked]):
                return
            segment, (start, size) = asked
            sector = segment.source.sector_bytes
            self._asked += 1
            answered = partial(self._answered, self._asked - 1)
            segment.source.allocated(segment.source_lba + start // sector, size // sector, answered)

    def _answered(self, index: int, answer: Any) -> None:
        if index == self._at and self._resume is not None:
            resume, self._resume = self._resume, None
            resume(answer)
        else:
            self._answers[index] = answer

    def _wait(self, resume: Resume) -> None:
        if self._at in self._answers:
            resume(self._answers.pop(self._at))
        else:
            self._resume = resume

    @staticmethod
    def _changes(copied: tuple[CopySegment, Window], asked: tuple[CopySegment, Window]) -> bool:
        (one, (start, size)), (other, (from_start, from_size)) = copied, asked
        if one.destination is not other.source:
            return False
        written = one.destination_lba * one.destination.sector_bytes + start
        read = other.source_lba * other.source.sector_bytes + from_start
        return written < read + from_size and read < written + size


def _runs(segment: CopySegment, window: Window, answer: list[Run]) -> list[Run]:
    """What of a window the source holds. What the answer leaves out counts as held."""
    start, size = window
    sector = segment.source.sector_bytes
    lba, count = segment.source_lba + start // sector, size // sector
    runs: list[Run] = []
    at, end = lba, lba + count
    for first, length, mapped in answer:
        low, high = max(first, at), min(first + length, end)
        if low > at:
            break
        if low < high:
            runs.append((start + (low - lba) * sector, (high - low) * sector, mapped))
            at = high
    if at < end:
        runs.append((start + (at - lba) * sector, (end - at) * sector, True))
    return runs


def _pieces(runs: list[Run], unit: int) -> Generator[Run, None, None]:
    """The runs, what is held cut to pieces. Borders lie at multiples of `unit`, so that both volumes have sectors there; a
    unit that is held in part is held."""
    begin, end = runs[0][0], runs[-1][0] + runs[-1][1]
    holes = [(-(-at // unit) * unit, (at + count) // unit * unit) for at, count, mapped in runs if not mapped]
    for low, high in [*(hole for hole in holes if hole[0] < hole[1]), (end, end)]:
        while begin < low:
            size = min(low - begin, PIECE_BYTES)
            yield begin, size, True
            begin += size
        if low < high:
            yield low, high - low, False
        begin = high


def _piece(segment: CopySegment, piece: Run, later: Later | None) -> Generator[Request, Any, float]:
    """Copy one piece and commit it. How long the journal's pacing wants to be left alone afterwards."""
    source, destination = segment.source, segment.destination
    at, size, mapped = piece
    to = segment.destination_lba + at // destination.sector_bytes
    data = b""
    if mapped:
        sector = source.sector_bytes
        lba, count = segment.source_lba + at // sector, size // sector

        def read(resume: Resume) -> None:
            buffers = source.read(lba, count, resume)
            if buffers is not None:
                resume(buffers)

        found = yield read
        if isinstance(found, Exception):
            raise found
        # A copy of its own: a target's buffers are valid until its next call, which is the write.
        data = b"".join(found)
    pauses = 0
    while True:
        try:
            if mapped:
                destination.write(to, (data,))
            else:
                destination.unmap(((to, size // destination.sector_bytes),))
            destination.commit()
            return destination.hold_back(size) if mapped else 0.0
        except JournalFull:
            pauses += 1
            if later is None or pauses > FULL_PAUSES_MAX:
                raise
        yield partial(_wait, later, FULL_PAUSE_S)


def _wait(later: Later, seconds: float, resume: Resume) -> None:
    later(seconds, lambda: resume(None))
