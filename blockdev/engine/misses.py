"""Reads that must wait for the worker: one fetch per frame however many reads want it, and read-ahead.

One rule: fetched content is used only if no record that the journal has given up since could be missing from it. A
frame was looked up when the map stood at `covered`; later writes must still be in the front's index. So when the journal
gives up a record that touches a frame under way, the frame remembers where that record ended (`stale_below`), and an
answer from before that is asked for again.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from blockdev.engine.cache import ReadCache
from blockdev.engine.link import Fetch, Fetched, FetchedFrame, FetchFrame, ToWorker
from blockdev.errors import BlockError, MediumError, StoreUnreachable
from blockdev.target import Buffer

log = logging.getLogger(__name__)

ReadDone = Callable[[list[Buffer] | Exception], None]
ATTEMPTS_MAX = 8
"""Fetches of one frame whose content did not survive in the cache file until it was read, before the read fails."""
GUESSES_MAX = 16
"""Fetches ahead of streams that are under way at once: half of the requests that a store is asked by default, so that a read
that must wait always finds a place."""


@dataclass(slots=True)
class Waiting:
    """One read under way: its parts in order, None where a frame is still to come."""

    done: ReadDone
    lba: int
    end: int
    parts: list[list[Buffer] | None] = field(default_factory=list)
    missing: int = 0
    over: bool = False
    """Answered, or given up: nothing more is to be called."""
    torn: bool = False
    """A write that must be seen as a whole came between its parts: all of it is read again once it is here."""


@dataclass(frozen=True, slots=True)
class Want:
    """Part `index` of a read: sectors [first, end), all of one frame."""

    waiting: Waiting
    index: int
    first: int
    end: int


@dataclass(slots=True)
class _Inflight:
    slot: int = -1
    """-1 until a slot was lent and the fetch sent."""
    wants: list[Want] = field(default_factory=list)
    stale_below: int = 0
    attempts: int = 0
    speculative: bool = False


ReadPart = Callable[[int, int, int], list[Buffer] | None]
"""(frame, first sector, end) -> buffers, or None if some of it must be fetched. Raises BlockError."""
ReadAgain = Callable[[int, int, ReadDone], list[Buffer] | None]
"""(lba, count, done) -> a whole read anew, as `BlockTarget.read`."""


class Misses:
    """Owned by the front's thread. `frame_count` bounds read-ahead, which goes in pieces that end at multiples of
    `piece_frames`, each a fetch of its own, `guesses_max` at once."""

    def __init__(
        self,
        cache: ReadCache,
        send: Callable[[ToWorker], None],
        read_part: ReadPart,
        read_again: ReadAgain,
        *,
        frame_count: int,
        piece_frames: int = 1,
        guesses_max: int = GUESSES_MAX,
    ) -> None:
        self._cache = cache
        self._read_again = read_again
        self._send = send
        self._read_part = read_part
        self._inflight: dict[int, _Inflight] = {}
        self._unsent: deque[int] = deque()
        self._next_id = 1
        self._speculative = 0
        self._speculative_max = max(1, cache.layout.slots // 4)
        self._guesses: dict[int, int] = {}
        """Fetches of guesses under way -> frames that are still to come."""
        self._guesses_max = guesses_max
        self._piece = piece_frames
        self.frame_count = frame_count
        self.fetched_frames = 0
        self.refetched_frames = 0
        """Answers that were out of date on arrival."""
        self.corrupt_frames = 0
        self.readahead_frames = 0

    def __len__(self) -> int:
        return len(self._inflight)

    # --- asking -------------------------------------------------------------------------------------------------

    def wait(self, frame: int, want: Want) -> None:
        """Fetch the frame, or join the fetch under way. Takes effect with the next `send`."""
        self._wait(frame, want, 0)

    def _wait(self, frame: int, want: Want, attempts: int) -> None:
        inflight = self._inflight.get(frame)
        if inflight is None:
            inflight = self._inflight[frame] = _Inflight(attempts=attempts)
            self._unsent.append(frame)
        inflight.wants.append(want)
        want.waiting.missing += 1

    def send(self) -> None:
        """One Fetch for all frames wanted since the last call for which there is a slot; the others wait for one."""
        wanted = []
        while self._unsent:
            frame = self._unsent[0]
            lent = self._cache.lend(frame)
            if lent is None:
                break
            self._unsent.popleft()
            slot, as_of = lent
            self._inflight[frame].slot = slot
            wanted.append(FetchFrame(frame, slot, as_of))
        if wanted:
            self._fetch(wanted, speculative=False)

    @property
    def room_ahead(self) -> int:
        """Frames that `read_ahead` may be given now: whole pieces, since each takes a request."""
        pieces = self._guesses_max - len(self._guesses)
        return max(0, min(pieces * self._piece, self._speculative_max - self._speculative))

    def read_ahead(self, begin: int, end: int) -> None:
        """Fetch these frames unless they are here or under way, as far as there is room for guesses."""
        end = min(end, self.frame_count)
        while begin < end and len(self._guesses) < self._guesses_max:
            stop = min(end, (begin // self._piece + 1) * self._piece)
            if not self._guess(begin, stop):
                return
            begin = stop

    def _guess(self, begin: int, end: int) -> bool:
        """One fetch; False if there is no room for all of it."""
        cache = self._cache
        wanted = []
        full = False
        for frame in range(begin, end):
            slot = cache.find(frame)
            if frame in self._inflight or frame in cache.zero_frames or (slot >= 0 and cache.valid[slot]):
                continue
            lent = cache.lend(frame) if self._speculative < self._speculative_max else None
            if lent is None:
                full = True
                break
            self._inflight[frame] = _Inflight(slot=lent[0], speculative=True)
            self._speculative += 1
            wanted.append(FetchFrame(frame, *lent))
        if wanted:
            self.readahead_frames += len(wanted)
            self._guesses[self._next_id] = len(wanted)
            self._fetch(wanted, speculative=True)
        return not full

    def _fetch(self, wanted: list[FetchFrame], *, speculative: bool) -> None:
        # A stream that is read ahead well waits for guesses alone.
        awaited = not speculative or any(inflight.wants for inflight in self._inflight.values())
        self._send(Fetch(self._next_id, tuple(wanted), speculative, awaited))
        self._next_id += 1

    # --- answers ------------------------------------------------------------------------------------------------

    def fetched(self, message: Fetched, late: BlockError | None = None) -> None:
        """Install what the worker brought and answer the reads that were waiting for it; with `late`, by that error."""
        answers: list[tuple[Waiting, list[Buffer] | Exception]] = []
        if message.id in self._guesses:
            self._guesses[message.id] -= len(message.frames)
            if self._guesses[message.id] <= 0:
                del self._guesses[message.id]
        for outcome in message.frames:
            inflight = self._inflight.get(outcome.frame)
            if inflight is None or inflight.slot != outcome.slot:
                raise ValueError(f"the worker answered for frame {outcome.frame}, which it was not asked for")
            self.fetched_frames += 1
            guessed = inflight.speculative
            if guessed:
                inflight.speculative = False
                self._speculative -= 1
            error = self._install(outcome, message.covered, inflight)
            if guessed and inflight.wants and isinstance(error, StoreUnreachable):
                # The worker has no patience with guesses. For the reads that joined this one it shall have.
                inflight.slot = -1
                self._unsent.append(outcome.frame)
                continue
            if error is None and message.covered < inflight.stale_below:
                self.refetched_frames += 1
                if inflight.wants:
                    inflight.slot = -1
                    self._unsent.append(outcome.frame)
                else:
                    del self._inflight[outcome.frame]
                continue
            del self._inflight[outcome.frame]
            for want in inflight.wants:
                answer = self._answer(outcome.frame, want, error, inflight.attempts)
                if answer is not None:
                    answers.append((want.waiting, answer))
        self.send()
        # Last, since a callback may come back with the next read.
        for waiting, answer in answers:
            if late is not None:
                waiting.done(late)
                continue
            if waiting.torn and not isinstance(answer, Exception):
                again = self._read_again(waiting.lba, waiting.end - waiting.lba, waiting.done)
                if again is None:
                    continue
                answer = again
            waiting.done(answer)

    def _install(self, outcome: FetchedFrame, covered: int, inflight: _Inflight) -> BlockError | None:
        """Book what the worker did with the slot; why the frame cannot be had, or None."""
        cache, slot = self._cache, outcome.slot
        current = covered >= inflight.stale_below
        if outcome.state == "data":
            cache.fill(slot, outcome.crcs, outcome.as_of, covered, current=current)
        elif outcome.state == "kept":
            cache.keep(slot, covered, current=current)
        elif outcome.state == "zero":
            cache.zero(slot, covered, current=current)
        elif outcome.state == "corrupt":
            self.corrupt_frames += 1
            log.error("frame %d is damaged in the bucket: %s", outcome.frame, outcome.error)
            cache.drop(slot)
            return MediumError(f"frame {outcome.frame} is damaged in the bucket: {outcome.error}", lba=0)
        elif outcome.state == "unreachable":
            cache.give_back(slot)
            return StoreUnreachable(
                f"frame {outcome.frame} cannot be fetched: {outcome.error}",
                hint="the read is tried again when the initiator does",
            )
        else:
            raise ValueError(f"the worker answered with an unknown state {outcome.state!r}")
        return None

    def _answer(
        self, frame: int, want: Want, error: BlockError | None, attempts: int
    ) -> list[Buffer] | Exception | None:
        """What to tell the read that wanted this part, or None if it is still waiting or was answered before."""
        waiting = want.waiting
        waiting.missing -= 1
        if waiting.over:
            return None
        failure: BlockError | None = None
        buffers: list[Buffer] | None = None
        if error is not None:
            failure = _for_sector(error, want.first)
        else:
            try:
                buffers = self._read_part(frame, want.first, want.end)
            except BlockError as unreadable:
                failure = unreadable
        if failure is None and buffers is None:
            if attempts < ATTEMPTS_MAX:
                self._wait(frame, want, attempts + 1)
                return None
            failure = MediumError(
                f"frame {frame} was fetched {attempts + 1} times and could not be read back from the read cache",
                lba=want.first,
                hint="check the disk below the cache",
            )
        if failure is not None:
            waiting.over = True
            return failure
        waiting.parts[want.index] = buffers
        if waiting.missing:
            return None
        waiting.over = True
        return [buffer for part in waiting.parts for buffer in part or ()]

    def disturb(self, first: int, end: int) -> None:
        """A write of the sectors [first, end) has been staged that no read may see in part."""
        for inflight in self._inflight.values():
            for want in inflight.wants:
                if want.waiting.lba < end and first < want.waiting.end:
                    want.waiting.torn = True

    # --- events -------------------------------------------------------------------------------------------------

    def given_up(self, first: int, last: int, end: int) -> None:
        """The journal gives up a record that ends at `end` and touched the frames first to last - 1."""
        if not self._inflight:
            return
        if last - first <= len(self._inflight):
            for frame in range(first, last):
                inflight = self._inflight.get(frame)
                if inflight is not None:
                    inflight.stale_below = max(inflight.stale_below, end)
            return
        for frame, inflight in self._inflight.items():
            if first <= frame < last:
                inflight.stale_below = max(inflight.stale_below, end)

    def fail_all(self, error: Exception) -> None:
        """Answer every waiting read with `error`; what the worker still sends is of no interest."""
        waitings = [want.waiting for inflight in self._inflight.values() for want in inflight.wants]
        self._inflight.clear()
        self._unsent.clear()
        self._guesses.clear()
        for waiting in waitings:
            if not waiting.over:
                waiting.over = True
                waiting.done(error)


def _for_sector(error: BlockError, lba: int) -> BlockError:
    """The same failure for another reader: MediumError names the first sector that reader cannot have."""
    if isinstance(error, MediumError):
        return MediumError(Exception.__str__(error), lba=lba, hint=error.hint)
    return error
