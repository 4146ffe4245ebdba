"""The service: one run after another, each from listing to publishing, and what is tidied between them.

One rule: time, waiting and work are arguments. A round tells how it ended and never raises for what the next one may find
cured; what nobody expected goes through, and the service manager starts anew.

| a crash in | leaves | repaired by |
| --- | --- | --- |
| a run | what `work` says | the next run |
| prune | manifests and segments nobody names; no note that it was done | the next prune, at once |
| removal of plans | a folder `.new-*` | the next plan |
"""

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from cowsync.apply.run import Progress
from cowsync.base.head import Entry
from cowsync.changes import Outcome
from cowsync.errors import Busy, Held, Refused, StateDamaged, Stopped
from cowsync.mirror import Mirror
from cowsync.plan.plan_file import SHOWN_DIGEST, digests, remove_plan
from cowsync.scan.engine import Engine, WorkerLost
from cowsync.scan.run import ScanFacts
from cowsync.work import alone, apply, check_allowed, made_at, make_plan, seconds_of
from s3core.credentials import CredentialsError
from s3core.errors import StoreError
from s3core.settings import ConfigError, MirrorSettings

DAY_S = 86400.0
PLANS_KEPT = 20
JITTER = 0.02
"""Runs begin up to so much of `every_s` sooner or later, so that many mirrors do not list at the same second for ever."""
BUSY_RETRY_S = 60.0
"""Another process on the mirror is waited for so long, or for `every_s` where that is less."""
STEPS = 8
"""So many restore points, about, tell how long vanished objects have been missed, beyond those that are kept anyway."""
PRUNED_NAME = "pruned"
NOT_DONE = (Outcome.FAILED, Outcome.DRIFTED, Outcome.SKIPPED)
"""What a person should look at. Lines that moved on at the source are the next run's."""

EXPECTED = (StoreError, Refused, StateDamaged, WorkerLost, CredentialsError, ConfigError, OSError)


class End(StrEnum):
    """How a round ended. PARTIAL: lines were left; HELD: the guard let nothing move; STOPPED: asked to; BUSY: another
    process has the mirror; FAILED: it did not come to its end, `message` says why."""

    DONE = "done"
    CLEAN = "clean"
    PARTIAL = "partial"
    HELD = "held"
    STOPPED = "stopped"
    BUSY = "busy"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ended:
    """`failed` counts lines that a person should look at. `untidy` says what could not be tidied up. `error` is what
    ended the round, where something did. `snapshot` is the restore point that was published, "" for none."""

    end: End
    message: str = ""
    plan: str = ""
    lines: int = 0
    done: int = 0
    failed: int = 0
    untidy: str = ""
    error: Exception | None = None
    snapshot: str = ""

    def text(self) -> str:
        """One line."""
        counts = f": {self.done:,} of {self.lines:,} lines" if self.lines else ""
        failed = f", {self.failed:,} failed" if self.failed else ""
        return f"{self.end}{counts}{failed}" + "".join(f"; {part}" for part in (self.message, self.untidy) if part)


def pause_after(end: End, began: float, now: float, every_s: float, spread: float) -> float:
    """Seconds until the next round, which is due `every_s` after this one began; 0.0 where that is past, once, however
    many were missed. `spread` is 0 to 1."""
    period = min(every_s, BUSY_RETRY_S) if end is End.BUSY else every_s
    return max(0.0, began + period * (1 + JITTER * (2 * spread - 1)) - now)


def watch(
    round_: Callable[[], Ended],
    *,
    every_s: float,
    monotonic: Callable[[], float],
    wait: Callable[[float], bool],
    spread: Callable[[], float],
    ended: Callable[[Ended, float], None],
) -> None:
    """Round after round, never two at once, until one was stopped or `wait` says so. `ended` is told how each ended and
    how many seconds it is until the next."""
    while True:
        began = monotonic()
        told = round_()
        pause = pause_after(told.end, began, monotonic(), every_s, spread())
        ended(told, pause)
        if told.end is End.STOPPED or wait(pause):
            return


def run_round(
    mirror: Mirror,
    engine_for: Callable[[Mirror], AbstractContextManager[Engine]],
    *,
    now: Callable[[], float],
    stop: threading.Event,
    told: Callable[[str], None] = lambda stage: None,
) -> Ended:
    """Scan, plan, apply if the guard lets it, tidy up. `told` hears one line now and then of what goes on. A round that
    is stopped while it lists leaves nothing; one that applies finishes its lines in flight, and the next goes on."""

    def listed(facts: ScanFacts) -> None:
        if stop.is_set():
            raise Stopped("asked to stop")
        told(f"listing: {facts.keys:,} objects so far")

    try:
        with alone(mirror):
            told("listing")
            with engine_for(mirror) as engine:
                planned = make_plan(mirror, engine, now=now, progress=listed)
            plan = planned.plan
            try:
                check_allowed(plan, "")
            except (Held, Refused) as error:
                message = f"{error} ({error.hint})"
                return Ended(End.HELD, message, plan.digest, len(plan), untidy=tidy(mirror, now()), error=error)
            ended = carried_out(mirror, plan.digest, now, stop, told)
            return ended if ended.end is End.STOPPED else replace(ended, untidy=tidy(mirror, now()))
    except Busy as error:
        return Ended(End.BUSY, str(error), error=error)
    except Stopped as error:
        return Ended(End.STOPPED, str(error), error=error)
    except EXPECTED as error:
        return Ended(End.FAILED, str(error) or type(error).__name__, error=error)


def carried_out(
    mirror: Mirror, digest: str, now: Callable[[], float], stop: threading.Event, told: Callable[[str], None]
) -> Ended:
    """Apply a plan that is allowed, and say how that ended. For the holder of the lock."""

    def copied(progress: Progress) -> None:
        told(f"applying plan {digest[:SHOWN_DIGEST]}: {progress.lines:,} of {progress.lines_total:,} lines")

    applied = apply(mirror, digest, stop=stop, on_progress=copied, now=now)
    result = applied.result
    if result.stopped:
        end = End.STOPPED if stop.is_set() else End.FAILED
    elif not result.complete:
        end = End.PARTIAL
    else:
        end = End.DONE if result.lines else End.CLEAN
    failed = sum(result.count(outcome) for outcome in NOT_DONE)
    first = result.failures[0] if result.failures else None
    message = result.stopped or (f"{first.outcome}: {first.op} {first.key}: {first.message}" if first else "")
    return Ended(end, message, digest, result.lines, result.done, failed, snapshot=applied.snapshot)


def tidy(mirror: Mirror, now: float) -> str:
    """Forget old plans, and once a day old restore points and runs. Returns what could not be done, "" where all was. For the
    holder of the lock."""
    try:
        remove_old_plans(mirror)
        stamp = mirror.folder / PRUNED_NAME
        if now - _stamped(stamp) >= DAY_S:
            mirror.catalogue().forget_events(now - DAY_S)
            pruned = mirror.state.prune(kept(mirror.state.head().entries, mirror.settings, now))
            forget_runs(mirror, now)
            stamp.touch()
            os.utime(stamp, (now, now))
            if pruned.left:
                return f"{len(pruned.left)} objects of forgotten restore points are still there; removed next time"
    except (StoreError, StateDamaged, OSError) as error:
        return f"old plans and restore points are still there: {error}"
    return ""


def _stamped(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def kept(entries: Sequence[Entry], settings: MirrorSettings, now: float) -> list[str]:
    """The restore points that a prune keeps, of `entries` with the newest first: the newest `snapshots_kept`. Where
    vanished objects may be removed, some older ones too: their times tell how long an object has been missed, and
    without one as old as `vanished_s` none would ever be due."""
    if not settings.snapshots_kept:
        return [entry.name for entry in entries]
    names = [entry.name for entry in entries[: settings.snapshots_kept]]
    if settings.vanished != "remove" or not entries:
        return names
    newest_run = entries[0].run
    last: tuple[float, int] | None = None
    found: list[str] = []
    # From the oldest on, so that what was chosen once is chosen again until it is due.
    for entry in reversed(entries):
        moment = seconds_of(entry.time)
        due = now - moment >= settings.vanished_s and entry.run <= newest_run + 1 - settings.vanished_runs
        if due:
            found, last = [entry.name], (moment, entry.run)
        elif last is None or (
            moment - last[0] >= settings.vanished_s / STEPS and entry.run - last[1] >= settings.vanished_runs / STEPS
        ):
            found.append(entry.name)
            last = moment, entry.run
    return names + [name for name in found if name not in names]


def forget_runs(mirror: Mirror, now: float) -> int:
    """Trim the catalogue; runs whose plan or journals are on this host stay. Returns how many went."""
    applies = mirror.folder / "applies"
    going = [path.name for path in applies.iterdir()] if applies.is_dir() else []
    return mirror.catalogue().trim([*digests(mirror.plans), *going], now)


def remove_old_plans(mirror: Mirror, keep: int = PLANS_KEPT) -> int:
    """Remove all plans but the newest `keep` (at least one) and those with journals. Returns how many. What cannot be
    read counts by the age of its folder."""
    made = sorted(digests(mirror.plans), key=lambda digest: made_at(mirror.plans / digest), reverse=True)
    old = [digest for digest in made[max(1, keep) :] if not mirror.journals(digest).exists()]
    for digest in old:
        remove_plan(mirror.plans / digest)
    return len(old)
