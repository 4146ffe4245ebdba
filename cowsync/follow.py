"""Between two listings: what events name is looked at, and mirrored.

One rule: a listing always follows. It begins when it is due, however many events there are: a round of events that is still
going on by then is stopped, and the listing finds what it left. Events only say where to look before that.

| a crash in a round of events | leaves | repaired by |
| --- | --- | --- |
| before it publishes | what a run leaves; the place in the feed as it was | the next round: the same events again |
| after it published, before the place is noted | the same | the same events again, which find nothing to do |
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from cowsync.errors import Busy, Held, Refused, Stopped
from cowsync.feed.gathered import Counts, Gathered
from cowsync.feed.source import Feed, Mark
from cowsync.hints import plan_hinted, scope_of
from cowsync.mirror import Mirror
from cowsync.plan.plan_file import remove_plan
from cowsync.watch import BUSY_RETRY_S, EXPECTED, End, Ended, carried_out
from cowsync.work import alone, check_allowed

FLOOD = Counts(floods=1)


@dataclass(frozen=True, slots=True)
class Followed:
    """How a round of events ended. `quiet`: the feed had nothing."""

    ended: Ended
    gathered: Gathered | None = None

    @property
    def flooded(self) -> bool:
        return self.gathered is not None and self.gathered.flooded

    @property
    def quiet(self) -> bool:
        return self.gathered is None and self.ended.end is End.CLEAN

    def text(self) -> str:
        """One line."""
        if self.gathered is None:
            return self.ended.text()
        counts = self.gathered.counts
        told = f"events named {len(self.gathered.keys):,} keys"
        left = [(counts.malformed, "lines are wrong"), (counts.lost, "times the place in the feed was lost")]
        told += "".join(f", {number:,} {what}" for number, what in left if number)
        return "; ".join([told, self.ended.text(), *self.gathered.complaints])

    def to_json(self) -> dict[str, object]:
        gathered = self.gathered
        return {
            "keys": len(gathered.keys) if gathered else 0,
            "flooded": self.flooded,
            "complaints": list(gathered.complaints) if gathered else [],
            **(gathered.counts if gathered else Counts()).to_json(),
        }


class Until(threading.Event):
    """Set when `stop` is, or once it is `due` by `monotonic`."""

    def __init__(self, stop: threading.Event, due: float, monotonic: Callable[[], float]) -> None:
        super().__init__()
        self._stop = stop
        self._due = due
        self._monotonic = monotonic

    def is_set(self) -> bool:
        return self._stop.is_set() or self._monotonic() >= self._due


def follow_once(
    mirror: Mirror,
    feed: Feed,
    *,
    now: Callable[[], float],
    stop: threading.Event,
    told: Callable[[str], None] = lambda stage: None,
) -> Followed:
    """Gather, ask the source, plan, apply if the guard lets it, and note how far the feed was read: in that order. A flood
    is told and nothing else: its place is noted when a listing that began after it has published."""
    gathered: Gathered | None = None
    try:
        if not feed.waiting():
            return Followed(Ended(End.CLEAN))
        with alone(mirror):
            told("reading events")
            gathered = Gathered(scope_of(mirror))
            mark = feed.gather(gathered, lambda: not stop.is_set())
            counts = gathered.counts
            if gathered.flooded:
                most = mirror.settings.events_keys_max
                message = f"events name more than {most:,} keys: the source is listed instead"
                return Followed(Ended(End.CLEAN, message), gathered)
            told(f"asking the source for {len(gathered.keys):,} keys")
            planned = None
            if gathered.keys:
                planned = plan_hinted(mirror, gathered.keys, counts, now=now, going_on=lambda: not stop.is_set())
            if planned is None:
                feed.handled(mark, counts, now())
                return Followed(Ended(End.CLEAN), gathered)
            plan = planned.plan
            try:
                check_allowed(plan, "")
            except (Held, Refused) as error:
                message = f"{error} ({error.hint})"
                return Followed(Ended(End.HELD, message, plan.digest, len(plan), error=error), gathered)
            ended = carried_out(mirror, plan.digest, now, stop, told)
            if ended.snapshot:
                feed.handled(mark, counts, now())
                if ended.end is End.DONE:
                    # There may be one every few seconds, and those that people wait for are to be found among them.
                    remove_plan(plan.folder)
            return Followed(ended, gathered)
    except Busy as error:
        return Followed(Ended(End.BUSY, str(error), error=error), gathered)
    except Stopped as error:
        return Followed(Ended(End.STOPPED, str(error), error=error), gathered)
    except EXPECTED as error:
        return Followed(Ended(End.FAILED, str(error) or type(error).__name__, error=error), gathered)


def listed_round(round_: Callable[[], Ended], feed: Feed, now: Callable[[], float], *, flooded: bool) -> Ended:
    """A round that lists, after which what the feed had before it began needs no handling."""
    # The listing does not need the feed. What cannot be read or noted now is read later, which does no harm.
    mark: Mark = None
    trouble: OSError | None = None
    try:
        mark = feed.end()
    except OSError as error:
        trouble = error
    ended = round_()
    if ended.snapshot and trouble is None:
        try:
            feed.handled(mark, FLOOD if flooded else Counts(), now())
        except OSError as error:
            trouble = error
    if trouble is None:
        return ended
    return replace(ended, untidy="; ".join(filter(None, [ended.untidy, f"the feed of events: {trouble}"])))


def follow(
    once: Callable[[threading.Event], Followed],
    *,
    due: float,
    every_s: float,
    stop: threading.Event,
    monotonic: Callable[[], float],
    wait: Callable[[float], bool],
    held: Callable[[], bool],
    ended: Callable[[Followed], None],
) -> Followed | None:
    """Round after round of events until `due` by `monotonic`, a flood (which is returned), or until `wait` says to stop.
    While the guard has a plan `held`, there is none: it would make that plan one of a base that has moved on."""
    until = Until(stop, due, monotonic)
    while not until.is_set():
        pause = every_s
        if not held():
            began = monotonic()
            told = once(until)
            if not told.quiet:
                ended(told)
            if told.flooded:
                return told
            if told.ended.end in (End.BUSY, End.FAILED):
                pause = max(every_s, BUSY_RETRY_S)
            else:
                pause = max(0.0, began + every_s - monotonic())
        if wait(max(0.0, min(pause, due - monotonic()))):
            return None
    return None
