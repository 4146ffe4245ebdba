"""Lines of a plan that workers elsewhere carry out: what is sent, what runs there, what comes back.

One rule: only the command's own host keeps the journal. It says durably that lines were begun before they are sent, and
what became of them when their answer is there; a worker keeps nothing.

So a worker that dies leaves what a crash here would: lines that are begun and not done, and `maybe_ours` is told to
whoever does them next. A piece may run twice even so, one run after the other (its worker died, and the engine gave it
out again) or both at once (its worker only seemed dead):

    one after the other   the later run knows by its hold that there was another: its lines are `maybe_ours`
    both at once          equal bytes of the one pinned version are written twice; where one run takes the other's work
                          for somebody else's, the line is tried once more (`LinesAnswer.doubtful`)
    much later            a run that is not waited for any more finds that out before its next request (`KEEP_S`) and
                          stops; what it may still finish is the request that is under way

Of uploads in parts a worker tells at once, so that the journal knows those that it leaves when it dies.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby

from cowsync.apply.copy_line import Carried, LineCopier, Place
from cowsync.apply.transfer import Transfer, TransferSettings, UploadLog
from cowsync.changes import PlanLine
from cowsync.scan.engine import TRIES, Crew, Hold, WorkerLost
from cowsync.scan.shard import lines_of, packed
from integrity.recording import NotRecorded
from s3core.clock import Clock, SystemClock
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)

KEEP_S = 2.0
"""A run asks this often, at most, whether it is still waited for."""
ANSWER_S = 5.0
"""An answer that took longer says nothing of now."""
ROUNDS = 4
"""So many pieces for each lane at least, so that the last ones end at about the same time."""
_PIECE_LINES_MIN = 16
_KINDS = (
    NotFound,
    PreconditionFailed,
    Denied,
    Misconfigured,
    Unsupported,
    Unavailable,
    Corrupt,
    OutcomeUnknown,
    StoreError,
)

BEGUN, OVER = "begun", "over"
"""What a worker tells of an upload, with its full key and id."""

Numbered = tuple[int, PlanLine, bool]
"""Number, line, and whether an earlier attempt may have carried it out."""


@dataclass(frozen=True, slots=True)
class LinesPiece:
    """Lines of one kind, in ascending order; lines of one key lie in one piece. `numbers` and `ours` go with `lines`, which
    are packed. `threads` lines at once; after `seconds` no other line is begun. `where` tells the rim which mirror this
    is; nothing here reads it. It holds no secret."""

    plan: str
    run: int
    threads: int
    seconds: float
    check_mirror: bool
    transfer: TransferSettings
    where: Mapping[str, str] = field(default_factory=dict)
    numbers: tuple[int, ...] = ()
    ours: tuple[bool, ...] = ()
    lines: bytes = b""

    def over(self, lines: Sequence[Numbered]) -> "LinesPiece":
        return replace(
            self,
            numbers=tuple(number for number, _, _ in lines),
            ours=tuple(ours for _, _, ours in lines),
            lines=packed([line for _, line, _ in lines]),
        )

    def unpacked(self) -> list[Numbered]:
        return list(zip(self.numbers, lines_of(self.lines), self.ours, strict=True))


@dataclass(frozen=True, slots=True)
class LinesAnswer:
    """`carried` ascends by number; lines that are not in it were not begun by this run. `doubtful`: another run of the
    piece was begun before this one, or may have been; `lost` such runs are new with this answer. `uploads` were begun and
    could not be aborted. `shut_out` says which end does not let the worker in, "" for none."""

    carried: Sequence[Carried]
    doubtful: bool = False
    lost: int = 0
    uploads: Sequence[tuple[str, str]] = ()
    shut_out: str = ""


Carry = Callable[[LinesPiece, Hold], LinesAnswer]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Who carries lines out in place of this process: `crew` runs `function`, which finds both ends by `where`. A piece
    has up to `piece_lines` lines and is answered after about `piece_s` seconds, or a line if that takes longer."""

    crew: Crew
    function: Carry
    where: Mapping[str, str] = field(default_factory=dict)
    piece_lines: int = 512
    piece_s: float = 5.0

    def lines_at_once(self, lines: int) -> int:
        """In one piece, of a kind that has `lines` left."""
        return min(self.piece_lines, max(_PIECE_LINES_MIN, lines // (ROUNDS * self.crew.lanes)))

    def carried(
        self, piece: LinesPiece, lines: Sequence[Numbered], stopping: Callable[[], bool], uploads: "UploadsThere"
    ) -> Iterator[LinesAnswer]:
        """Answers until every line has one or `stopping`; what workers tell of uploads goes to `uploads`. Lines are given
        out again when their worker dies, and when its time was over before their turn. Raises WorkerLost after TRIES,
        ClusterUnavailable, Refused; lines that were sent may have been carried out then."""
        lost, doubtful = 0, False
        while lines and not stopping():
            try:
                answer = self.crew.submit_held(self.function, piece.over(lines), uploads.hear).result()
            except WorkerLost:
                lost += 1
                if lost >= TRIES:
                    raise
                doubtful, lines = True, _all_ours(lines)
                continue
            answer = replace(answer, doubtful=doubtful or answer.doubtful, lost=lost + answer.doubtful)
            lost = 0
            for upload in answer.uploads:
                uploads.hear((BEGUN, *upload))
            yield answer
            answered = {carried.result.number for carried in answer.carried}
            lines = [numbered for numbered in lines if numbered[0] not in answered]
            if answer.doubtful:
                doubtful, lines = True, _all_ours(lines)


def carry_lines(
    piece: LinesPiece, source: Place, mirror: Place, hold: Hold, *, clock: Clock | None = None
) -> LinesAnswer:
    """Runs on a worker. Carries lines out until all are or the time is over; at least one. What stores say is in the
    answer; WorkerLost where the hold is lost, with lines in flight broken off before their next request."""
    clock = clock or SystemClock()
    pace, uploads = _HeldPace(hold, clock), _Uploads(hold)
    doubtful = hold.begin()
    until = clock.monotonic() + piece.seconds
    chains = deque(list(chain) for _, chain in groupby(piece.unpacked(), key=lambda numbered: numbered[1].key))
    carried: list[Carried] = []

    def work() -> None:
        transfer = Transfer(piece.transfer, uploads, pace)
        copier = LineCopier(source, mirror, transfer, clock, run=piece.run, check_mirror=piece.check_mirror)
        begun = False

        def late() -> bool:
            return begun and clock.monotonic() >= until

        while not late():
            try:
                chain = chains.popleft()
            except IndexError:
                return
            for number, line, ours in chain:
                if late():
                    return
                begun = True
                carried.append(copier.carry_out(number, line, maybe_ours=ours or doubtful))

    threads = max(1, min(piece.threads, len(chains)))
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="cowsync-lines") as pool:
            for worker in [pool.submit(work) for _ in range(threads)]:
                worker.result()
    except WorkerLost:
        # Whoever has the piece now has begun uploads of its own; of these nobody else knows.
        for key, upload_id in uploads.open:
            with suppress(StoreError):
                mirror.bucket.abort_upload(key, upload_id)
        raise
    carried.sort(key=lambda one: one.result.number)
    return LinesAnswer(
        [replace(one, error=_sendable(one.error)) if one.error else one for one in carried],
        doubtful,
        uploads=sorted(uploads.open),
        shut_out=_shut_out(carried, source, mirror, pace, hold.name),
    )


def _all_ours(lines: Sequence[Numbered]) -> list[Numbered]:
    return [(number, line, True) for number, line, _ in lines]


def _sendable(error: StoreError | None) -> StoreError | None:
    """Of a kind that every host can unpack: adapters have kinds of their own."""
    kind = next((kind for kind in _KINDS if isinstance(error, kind)), None)
    if error is None or kind is None:
        return None
    return kind(str(error.args[0]) if error.args else str(error), key=error.key, hint=error.hint)


def _shut_out(carried: Sequence[Carried], source: Place, mirror: Place, pace: "_HeldPace", name: str) -> str:
    """Objects may be refused one by one; a worker that an end does not let in at all would refuse all it is given, and one
    whose host cannot record them fails all of them."""
    unrecorded = next((one.error for one in carried if isinstance(one.error, NotRecorded)), None)
    if unrecorded is not None:
        return f"{name} may not write: {unrecorded}"
    if not any(
        isinstance(one.error, Denied) or (isinstance(one.error, NotFound) and not one.error.key) for one in carried
    ):
        return ""
    for place in (source, mirror):
        pace.request()
        try:
            place.bucket.list_page(prefix=place.prefix, max_keys=1)
        except (Denied, NotFound, Misconfigured) as error:
            return f"{name} is not let in: {error}"
        except StoreError:
            continue  # away, which lines will say
    return ""


class _HeldPace:
    """Lets a request go while the piece is ours. Endpoints have limits of their own, below the port."""

    def __init__(self, hold: Hold, clock: Clock) -> None:
        self._hold = hold
        self._clock = clock
        self._lock = threading.Lock()
        self._kept = clock.monotonic()
        self._lost: WorkerLost | None = None

    def request(self) -> None:
        with self._lock:
            if self._lost is not None:
                raise self._lost
            if self._clock.monotonic() - self._kept < KEEP_S:
                return
            while True:
                asked = self._clock.monotonic()
                try:
                    self._hold.keep()
                except WorkerLost as lost:
                    self._lost = lost
                    raise
                # An answer is as old as its question: a worker may stand still between the two.
                self._kept = asked
                if self._clock.monotonic() - asked < ANSWER_S:
                    return

    def transfer(self, count: int) -> None:
        return


class _Uploads:
    """Those begun and not over, on the worker."""

    def __init__(self, hold: Hold) -> None:
        self.open: set[tuple[str, str]] = set()
        self._hold = hold

    def upload_begun(self, key: str, upload_id: str) -> None:
        self.open.add((key, upload_id))
        self._hold.tell(BEGUN, key, upload_id)

    def upload_over(self, key: str, upload_id: str) -> None:
        self.open.discard((key, upload_id))
        self._hold.tell(OVER, key, upload_id)


class UploadsThere:
    """Uploads of one piece, as its workers tell of them: in the journal at once. Those that are open when the piece is at
    its end are left by workers that died."""

    def __init__(self, log: UploadLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._open: set[tuple[str, str]] = set()
        self._ended = False

    def hear(self, words: tuple[str, ...]) -> None:
        """In any thread. What comes after the end is not noted."""
        said, *upload = words
        key, upload_id = upload
        with self._lock:
            if self._ended or ((key, upload_id) in self._open) == (said == BEGUN):
                return
            # A journal that fails tells its own thread, with the next record.
            with suppress(OSError):
                if said == BEGUN:
                    self._open.add((key, upload_id))
                    self._log.upload_begun(key, upload_id)
                else:
                    self._open.discard((key, upload_id))
                    self._log.upload_over(key, upload_id)

    def end(self) -> list[tuple[str, str]]:
        """Those that are open; nothing is heard any more."""
        with self._lock:
            self._ended = True
            return sorted(self._open)
