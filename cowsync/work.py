"""A run: scan, plan, judge, carry out, publish. What is remembered after each step, and what a crash there leaves.

One rule: effects before the cursor. The base moves when, and only when, what it says has happened:

| step | durable after it | a crash before the next leaves | repaired by |
| --- | --- | --- | --- |
| scan | nothing | a spool | the next scan removes it |
| plan | the plan under its digest, its verdict | a plan that may be applied or forgotten | either |
| apply | results in journals, at most a second late | lines done and not noted | applying again does them twice, never not |
| publish | segments, then the manifest, then HEAD | segments nobody names | prune |

Only one run of a mirror goes on at a time on a host (a lock in its folder); between hosts the one that moves HEAD first
wins, and the other's lines are planned again from what it published.
"""

import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

from cowsync.apply.copy_line import Place
from cowsync.apply.journal import open_uploads
from cowsync.apply.outcome_rows import line_results, outcome_rows
from cowsync.apply.pieces import Elsewhere
from cowsync.apply.run import ORDER, ApplyResult, ApplySettings, Progress, apply_plan
from cowsync.apply.transfer import TransferSettings
from cowsync.base.head import Head
from cowsync.base.layers import Layers, find, find_all, quantiles, read
from cowsync.base.snapshot import Facts as RunFacts
from cowsync.base.snapshot import Snapshot, Totals
from cowsync.catalogue import Catalogue, Phase
from cowsync.changes import Op, PlanLine
from cowsync.conditions import conditional_puts_hold, worth_it
from cowsync.errors import Busy, Held, Refused, StateDamaged, Stopped
from cowsync.mirror import Mirror, carry_piece, check_current, check_versions, lies_in, reader
from cowsync.net_changes import net_changes
from cowsync.plan.carried import NOTHING, Since, since_from_json
from cowsync.plan.census import Census, census_from_json
from cowsync.plan.format import PlanHead
from cowsync.plan.guard import ChangesTally, Decision, Facts, Order, PastRun, Reason, Verdict, judge
from cowsync.plan.plan_file import SHOWN_DIGEST, Plan, digests, find_plan, open_plan, sync_folder, write_plan
from cowsync.plan.summary import Rates, Tally, Terms
from cowsync.rows import Row
from cowsync.scan.engine import Crew, Engine
from cowsync.scan.listing import Listed
from cowsync.scan.ranges import WHOLE
from cowsync.scan.run import Scan, ScanFacts, run_scan
from cowsync.scan.shard import ShardTask, compared
from cowsync.scan.unordered import sorted_rows
from cowsync.versions import ALL, History, behind, histories, key_of
from s3core.clock import system_random
from s3core.errors import NotFound, StoreError

log = logging.getLogger(__name__)

HISTORY = 100
"""Published runs that the guard and the estimates look back on, at most."""
VERDICT_NAME = "guard.json"
LOCK_NAME = "lock"
ROUNDS = 4
"""So many pieces to begin with for each listing that runs at once, so that the last ones end at about the same time."""
PIECE_KEYS_MIN = 10_000
"""Each piece costs a page that is not full."""


@dataclass(frozen=True, slots=True)
class Base:
    """What is known before a run. `snapshot` is None before the first. `times` are those of published runs that are
    kept, by number, as Unix seconds; `past` those of them that listed the source, as the guard sees them, the newest
    last."""

    head: Head
    snapshot: Snapshot | None
    times: Mapping[int, float]
    past: Sequence[PastRun]
    rates: Rates

    @property
    def name(self) -> str:
        return self.head.current if self.head.entries else ""

    @property
    def run(self) -> int:
        """The number of the run that is to come. What is carried out on the word of events belongs to the next run that
        lists, and has its number."""
        if self.snapshot is None:
            return 1
        return self.snapshot.facts.run + (0 if is_from_events(self.snapshot) else 1)

    @property
    def census(self) -> Census | None:
        return census_from_json(self.snapshot.facts.notes["census"]) if self.snapshot else None

    @property
    def since(self) -> Since | None:
        """What a plan is judged with: None before the first run."""
        if self.snapshot is None:
            return None
        if is_from_events(self.snapshot):
            return since_from_json(self.snapshot.facts.notes["since"])
        return Since(census_from_json(self.snapshot.facts.notes["census"]), layers=len(self.snapshot.layers))

    @property
    def by_events(self) -> tuple[Layers, Layers]:
        """The layers of the last listing, and the one of what events have changed since, where there is one."""
        layers = self.snapshot.layers if self.snapshot else ()
        upto = self.since.layers if self.since else 0
        return layers[:upto], layers[upto:]


@dataclass(frozen=True, slots=True)
class Planned:
    """`verdict` is kept beside the plan. `scan` is what the listing came to."""

    plan: Plan
    verdict: Verdict
    scan: ScanFacts

    @property
    def clean(self) -> bool:
        return len(self.plan) == 0


@dataclass(frozen=True, slots=True)
class Applied:
    """`snapshot` names the new base, "" where nothing could be noted."""

    result: ApplyResult
    snapshot: str


_held: set[int] = set()
"""Open files of locks that this process holds."""


def _forked() -> None:
    """A lock lasts as long as anybody has its file open, and is the command's, not its processes'."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_forked)


@contextmanager
def alone(mirror: Mirror) -> Iterator[None]:
    """Busy while another process works on this mirror on this host. The lock goes with the process."""
    fd = os.open(mirror.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _held.add(fd)
    try:
        try:
            flock(fd, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            raise Busy(
                f"another process works on mirror {mirror.name} (it holds {mirror.folder / LOCK_NAME})",
                hint=f"wait for it, or stop it; `cowsync status {mirror.name}` tells what it does",
            ) from None
        yield
    finally:
        _held.discard(fd)
        os.close(fd)


def base_of(mirror: Mirror) -> Base:
    """What the newest published snapshot says, and what the ones before it tell of runs."""
    head = mirror.state.head()
    snapshot = mirror.state.snapshot(head.current) if head.entries else None
    told = [_told(mirror, entry.name) for entry in head.entries[:HISTORY]]
    past = [_past(notes) for notes in reversed(told) if not notes["events"]]
    times = {entry.run: seconds_of(entry.time) for entry in head.entries}
    return Base(head, snapshot, times, past, _rates(told))


def is_from_events(snapshot: Snapshot) -> bool:
    """Whether it was published on the word of events, so that only keys they named were looked at."""
    return bool(snapshot.facts.notes.get("events"))


def make_plan(
    mirror: Mirror,
    engine: Engine,
    *,
    now: Callable[[], float] = time.time,
    progress: Callable[[ScanFacts], None] = lambda facts: None,
) -> Planned:
    """Scan the source, write what is to be done as a plan, and judge it. For the holder of the lock. Nothing moves.

    On return the plan and its verdict are durable. Refused for a listing that is not complete, StoreErrors of the
    source and of the state; then there is no plan, and nothing has changed. What `progress` raises ends the scan the
    same way; Stopped is how it asks for that."""
    return plan_from(mirror, lambda base: _scan(mirror, engine, base, now, progress), now=now)


def plan_from(
    mirror: Mirror, scan_of: Callable[[Base], Scan], *, now: Callable[[], float] = time.time, base: Base | None = None
) -> Planned:
    """As `make_plan`, with any scan of the source that is compared with the base it is given. `base` is what
    `settled_base` gave, where the caller needed it before."""
    if lies_in(mirror.settings.state, mirror.settings.source):
        raise Refused(
            f"state {mirror.settings.state} lies in source {mirror.settings.source}: it would be mirrored, and change with "
            "each run",
            hint="choose another bucket, or a prefix that is not below the source",
        )
    check_versions(mirror)
    catalogue = mirror.catalogue()
    base = base or settled_base(mirror, now=now)
    run_id = catalogue.begin(base.run, base.name, now())
    try:
        scan = scan_of(base)
        planned = _plan_of(mirror, scan, base, now)
        scan.remove()
    except BaseException as error:
        phase = Phase.INTERRUPTED if isinstance(error, Stopped) else Phase.FAILED
        _note_failure(catalogue, run_id, phase, error, now())
        raise
    held = planned.verdict.decision is not Decision.PASS
    catalogue.update(
        run_id,
        Phase.HELD if held else Phase.PLANNED,
        ended=now(),
        plan=planned.plan.digest,
        message=planned.verdict.text().strip() if held else "",
        facts=scan_json(planned.scan) | {"lines": len(planned.plan)},
    )
    return planned


def apply(
    mirror: Mirror,
    digest: str,
    *,
    approve: str = "",
    stop: threading.Event | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    now: Callable[[], float] = time.time,
    crew: Crew | None = None,
) -> Applied:
    """Carry out what is left of a plan and publish what was done. For the holder of the lock. With a `crew`, lines are
    carried out there.

    Held where the guard holds it and `approve` is not the beginning of its digest; Refused where the base has moved on
    since it was made, or the guard refuses it. What a call leaves undone (failures, a stop, a crash) is planned again by
    the next scan; calling again with the same digest, before that, goes on where it stopped."""
    check_versions(mirror)
    if crew is not None:
        check_current(mirror, "an apply on a cluster")
    plan = find_plan(mirror.plans, digest)
    base = base_of(mirror)
    check_kind(mirror, base)
    check_base(mirror, plan, base)
    check_allowed(plan, approve)
    plan.verify()
    if crew is not None and mirror.encrypted:
        raise Refused(f"mirror {mirror.name} is encrypted, and lines that others carry out are not sealed")
    target = mirror.writable(begun=base.snapshot is not None)
    catalogue = mirror.catalogue()
    wanted = worth_it(mirror, len(plan), first=not base.name)
    conditional = wanted and conditional_puts_hold(mirror, now(), system_random())
    made = catalogue.run_of_plan(plan.digest)
    run_id = made.id if made else catalogue.begin(plan.head.run, base.name, now())
    catalogue.update(run_id, Phase.APPLYING, plan=plan.digest, message="")
    try:
        settings = apply_settings(mirror, conditional_puts=conditional)
        elsewhere = Elsewhere(crew, carry_piece, mirror.where) if crew else None
        result = _carry_out(mirror, plan, target, settings, stop, on_progress, elsewhere)
        # A run that was stopped keeps its journals and goes on; one that came to its end is published, with what failed
        # left to the next scan.
        # One with lines of which nobody knows the end waits, too: what they left on the mirror must not look like drift.
        snapshot = "" if result.stopped or result.unsettled else _publish(mirror, plan, base, result, now)
    except BaseException as error:
        _note_failure(catalogue, run_id, Phase.FAILED, error, now())
        raise
    if result.stopped or result.unsettled:
        phase = Phase.INTERRUPTED
    elif not result.complete:
        phase = Phase.PARTIAL
    else:
        phase = Phase.DONE if len(plan) else Phase.CLEAN
    facts = {"done": result.done, "applied": result.to_json()}
    catalogue.update(run_id, phase, ended=now(), snapshot=snapshot, message=result.stopped, facts=facts)
    return Applied(result, snapshot)


def _note_failure(catalogue: Catalogue, run_id: int, phase: Phase, error: BaseException, now: float) -> None:
    """In the history; where that cannot be written either (a full disk), what went wrong first is what is told."""
    with suppress(OSError, StateDamaged):
        catalogue.update(run_id, phase, ended=now, message=str(error) or type(error).__name__)


def settled_base(mirror: Mirror, *, now: Callable[[], float] = time.time) -> Base:
    """What is known, after applies that were broken off have come to an end. For the holder of the lock."""
    base = base_of(mirror)
    mirror.check_encryption(begun=base.snapshot is not None)
    check_kind(mirror, base)
    return base_of(mirror) if settle(mirror, base, now=now) else base


def settle(mirror: Mirror, base: Base, *, now: Callable[[], float] = time.time) -> bool:
    """Bring applies that were broken off to a clean end, so that a new scan can start from what is so: lines that were
    begun are finished, here (there are at most some hundred, or that for each thread of a cluster's workers), what is done
    is published. True where the base has moved.

    Without it the next plan could take our own half-noted work for somebody else's. Uploads in parts that journals show as
    ours and not over are aborted. A crash here leaves the journals, and the next call settles."""
    folder = mirror.folder / "applies"
    moved = False
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            plan = open_plan(mirror.plans / path.name)
            plan.verify()
        except (Refused, StateDamaged):
            # Its lines cannot be known any more. What it did shows as drift, and is told.
            _drop(mirror, path, "")
            continue
        if plan.head.base == base.name and not moved:
            check_places(
                mirror,
                plan,
                f"an apply of it was broken off: name that place again and run once, or give it up: remove {path}",
            )
            target = mirror.writable(begun=base.snapshot is not None)
            result = _carry_out(mirror, plan, target, replace(apply_settings(mirror), begun_only=True), None, None)
            if result.stopped:
                raise Refused(
                    f"an apply of plan {plan.digest[:SHOWN_DIGEST]} was broken off and cannot be brought to an end: "
                    f"{result.stopped}",
                    hint=f"go on with it: cowsync apply {mirror.name} {plan.digest[:SHOWN_DIGEST]}",
                )
            _publish(mirror, plan, base, result, now)
            moved = True
        else:
            _drop(mirror, path, plan.head.target)
    return moved


def _drop(mirror: Mirror, journals: Path, target: str) -> None:
    """Remove journals that are of no more use, after the uploads that they name are aborted on the mirror: nobody sees
    those, but they are paid for. Where one cannot be aborted the journals stay, and the next `settle` tries again; so it
    is after a crash. `target` is where they were made for, "" where that is not known."""
    if target and target.rstrip("/") != mirror.settings.target.rstrip("/"):
        log.warning("mirror %s: uploads that %s names may be left at %s", mirror.name, journals, target)
    else:
        ours = journals.name in digests(journals.parent)
        for key, upload_id in sorted(open_uploads(journals, bytes.fromhex(journals.name))) if ours else []:
            try:
                mirror.target.bucket.abort_upload(key, upload_id)
            except StoreError as error:
                log.warning("mirror %s: an upload is still there, and is aborted next time: %s", mirror.name, error)
                return
    shutil.rmtree(journals)


def _carry_out(
    mirror: Mirror,
    plan: Plan,
    target: Place,
    settings: ApplySettings,
    stop: threading.Event | None,
    on_progress: Callable[[Progress], None] | None,
    elsewhere: Elsewhere | None = None,
) -> ApplyResult:
    return apply_plan(
        plan,
        mirror.source,
        target,
        mirror.journals(plan.digest),
        run=plan.head.run,
        settings=settings,
        stop=stop,
        on_progress=on_progress,
        elsewhere=elsewhere,
    )


def check_kind(mirror: Mirror, base: Base) -> None:
    """Refused where the base is of another kind than the mirror's settings say."""
    if base.snapshot is not None and has_versions(base.snapshot) is not mirror.all_versions:
        kept = "all versions" if has_versions(base.snapshot) else "current versions"
        raise Refused(
            f"what is known of mirror {mirror.name} is of {kept}, and its settings say versions = "
            f'"{mirror.settings.versions}"',
            hint="set `versions` back, or make a new mirror with a target and a state of its own; nothing was changed",
        )


def has_versions(snapshot: Snapshot) -> bool:
    """Whether the snapshot's rows are of versions."""
    return snapshot.facts.notes.get("versions") == ALL


def check_base(mirror: Mirror, plan: Plan, base: Base) -> None:
    """Refused where the base has moved on since the plan was made, is of another kind, or the mirror's places are others."""
    check_places(mirror, plan, f"nothing was moved; make a new one: cowsync plan {mirror.name}")
    if (plan.head.versions == ALL) is not mirror.all_versions:
        raise Refused(
            f'plan {plan.digest[:12]} is not for versions = "{mirror.settings.versions}"',
            hint=f"nothing was moved; make a new one: cowsync plan {mirror.name}",
        )
    if plan.head.base != base.name:
        raise Refused(
            f"plan {plan.digest[:12]} was made from snapshot {plan.head.base[:12] or '(none)'}, and the base is "
            f"{base.name[:12] or '(none)'} now",
            hint=f"nothing was moved; make a new one: cowsync plan {mirror.name}",
        )


def moved_places(mirror: Mirror, base: Base) -> tuple[tuple[str, str, str], ...]:
    """Ends of the mirror that the configuration and the base name by another URL: what, URL of the base, URL now. What
    the base says of another place is not true of this one: a new target has none of it."""
    if base.snapshot is None:
        return ()
    facts, settings = base.snapshot.facts, mirror.settings
    ends = (("source", facts.source, settings.source), ("target", facts.mirror, settings.target))
    return tuple((what, then, now) for what, then, now in ends if then.rstrip("/") != now.rstrip("/"))


def check_places(mirror: Mirror, plan: Plan, hint: str) -> None:
    """Refused where the configuration names other ends, or another mirror, than when the plan was made."""
    settings, head = mirror.settings, plan.head
    for what, then, now in (
        ("mirror", head.mirror, mirror.name),
        ("source", head.source, settings.source),
        ("target", head.target, settings.target),
    ):
        if then.rstrip("/") != now.rstrip("/"):
            raise Refused(
                f"plan {plan.digest[:SHOWN_DIGEST]} was made for the {what} {then}, and the configuration names {now}",
                hint=hint,
            )


def check_allowed(plan: Plan, approve: str) -> Verdict:
    """Held or Refused where the guard's verdict on the plan does not let it be carried out."""
    verdict = verdict_of(plan)
    if verdict.decision is Decision.REFUSE:
        raise Refused(
            f"the guard refuses plan {plan.digest[:12]}: " + " ".join(one.message for one in verdict.reasons),
            hint="this cannot be approved; nothing was moved",
        )
    approved = len(approve) >= 8 and plan.digest.startswith(approve.lower())
    if verdict.decision is Decision.HOLD and not approved:
        raise Held(
            f"the guard holds plan {plan.digest[:12]}: " + " ".join(one.message for one in verdict.reasons),
            digest=plan.digest,
            hint="nothing was moved; after a look: --approve " + plan.digest[:12],
        )
    return verdict


def write_verdict(plan: Plan, verdict: Verdict) -> None:
    """Beside the plan, durable on return. A crash before leaves a plan without a verdict, which nobody carries out."""
    path = plan.folder / VERDICT_NAME
    staged = path.with_suffix(".new")
    with staged.open("w") as file:
        json.dump(verdict.to_json(), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    staged.rename(path)
    sync_folder(plan.folder)


def verdict_of(plan: Plan) -> Verdict:
    """As the guard gave it when the plan was made. StateDamaged where it is missing: then nothing is allowed."""
    try:
        found = json.loads((plan.folder / VERDICT_NAME).read_bytes())
        reasons = tuple(
            Reason(Decision(one["decision"]), str(one["limit"]), str(one["message"])) for one in found["reasons"]
        )
        return Verdict(Decision(found["decision"]), reasons)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StateDamaged(
            f"plan {plan.digest[:SHOWN_DIGEST]} has no readable verdict of the guard: {error}",
            hint="nothing is lost: plan anew",
        ) from error


def apply_settings(mirror: Mirror, *, conditional_puts: bool = False) -> ApplySettings:
    """`conditional_puts`: whether it was seen that PUT keeps to conditions where it is written to."""
    return ApplySettings(
        workers=mirror.settings.copiers,
        removals=mirror.settings.vanished == "remove",
        check_mirror=mirror.settings.check_target,
        transfer=TransferSettings(part_bytes=mirror.settings.part_bytes, conditional_puts=conditional_puts),
    )


def pieces_of(rows: int, at_once: int, shard_keys: int) -> int:
    """Into how many pieces a source of about `rows` keys is cut to begin with. Below two pieces' worth one process is
    done before others have started."""
    if rows <= shard_keys:
        return 1
    return max(min(ROUNDS * at_once, rows // PIECE_KEYS_MIN), rows // shard_keys + 1)


def scan_json(facts: ScanFacts) -> dict[str, Any]:
    return {
        "keys": facts.keys,
        "versions": facts.versions,
        "bytes": facts.bytes_listed,
        "left_out": facts.left_out,
        "reserved": facts.reserved,
        "changes": facts.changes,
        "requests": facts.requests + facts.probes + facts.heads,
        "heads": facts.heads,
        "shards": facts.shards,
        "seconds": round(facts.seconds, 3),
        "workers_lost": facts.workers_lost,
        "unordered": facts.unordered,
        "inventory": facts.inventory,
        "events": dict(facts.events),
    }


def seconds_of(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def remove_upto(base: Base, mirror: Mirror, now: float) -> int:
    """The last run whose first missed keys are due for removal by now: so many runs and so long ago. 0: none."""
    settings = mirror.settings
    if settings.vanished != "remove":
        return 0
    due = [
        run
        for run, moment in base.times.items()
        if run <= base.run - settings.vanished_runs and now - moment >= settings.vanished_s
    ]
    return max(due, default=0)


def _scan(
    mirror: Mirror, engine: Engine, base: Base, now: Callable[[], float], progress: Callable[[ScanFacts], None]
) -> Scan:
    settings = mirror.settings
    layers = base.snapshot.layers if base.snapshot else ()
    task = ShardTask(
        WHOLE,
        base.run,
        remove_upto=remove_upto(base, mirror, now()),
        keys_max=settings.shard_keys,
        versions=mirror.all_versions,
        where={**mirror.where, "base": base.name},
    )
    rows = base.snapshot.totals.rows if base.snapshot else 0
    at_once = engine.lanes * settings.listings
    pieces = pieces_of(rows, at_once, settings.shard_keys)
    points = quantiles(layers, mirror.state, pieces) if pieces > 1 else []
    if mirror.all_versions:
        # Between keys: all versions of one are listed in one piece.
        points = sorted(set(map(key_of, points)))

    def list_anew(listed: Listed, prefixes: dict[str, tuple[int, int]], folder: Any) -> Iterator[PlanLine]:
        if mirror.all_versions:
            raise Refused(
                f"{mirror.source.bucket.url} lists keys out of order, which cannot be made up for with all versions",
                hint='set versions = "current"; nothing was changed',
            )
        ordered = sorted_rows(mirror.source.bucket, mirror.source.prefix, listed, folder, belongs=mirror.belongs)
        return compared(task, ordered, listed, prefixes, reader(layers, mirror.state), now())

    return run_scan(
        engine,
        mirror.piece,
        list_anew,
        mirror.source.bucket,
        mirror.source.prefix,
        task,
        points,
        mirror.spool,
        together=settings.listings,
        now=now,
        progress=progress,
    )


def _plan_of(mirror: Mirror, scan: Scan, base: Base, now: Callable[[], float]) -> Planned:
    since = base.since
    census = since.census if since else None
    tally = Tally(_terms(mirror, scan.facts))
    kind = ALL if mirror.all_versions else ""
    changes = ChangesTally(census, mirror.guard, since.carried if since else NOTHING)
    lines = tally.watch(scan.lines())
    if scan.facts.events:
        changes = _net_tally(mirror, base, list(scan.lines()))
    else:
        lines = changes.watch(lines)
    head = PlanHead(mirror.name, mirror.settings.source, mirror.settings.target, base.name, base.run, kind)

    def summary() -> Mapping[str, object]:
        counted = tally.summary(base.rates)
        text = counted.text()
        if scan.facts.inventory:
            text = f"from the inventory of {scan.facts.inventory}, which knows nothing of what came later\n{text}"
        if scan.facts.events:
            text = f"of the {scan.facts.events['keys']:,} keys that events named, and no others\n{text}"
        return {"made": now(), "scan": scan_json(scan.facts), "summary": counted.to_json(), "text": text}

    plan = write_plan(mirror.plans, head, lines, summary=summary)
    order = Order.SORTED if scan.facts.unordered else Order.ASCENDING
    if scan.facts.events and base.past:
        order = base.past[-1].order  # nothing was listed
    layers = base.snapshot.layers if base.snapshot else ()
    known = frozenset(key for key in mirror.guard.canaries if _is_known(mirror, layers, key))
    facts = Facts(
        plan.digest,
        census,
        changes.changes(),
        known,
        order=order,
        clock_skew_s=mirror.source.bucket.properties.clock_skew_s,
        mirror=mirror.name,
        moved=moved_places(mirror, base),
        versions=mirror.all_versions,
    )
    verdict = judge(facts, mirror.guard, base.past)
    write_verdict(plan, verdict)
    return Planned(plan, verdict, scan.facts)


def _is_known(mirror: Mirror, layers: Layers, key: str) -> bool:
    """Whether the base has the key as one that the source has."""
    if mirror.all_versions:
        history = history_of(mirror, layers, key)
        return history is not None and history.current is not None
    row = find(layers, mirror.state, key.encode())
    return row is not None and not row.gone


def history_of(mirror: Mirror, layers: Layers, key: str) -> History | None:
    """What a base of all versions knows of one key."""
    stem = key.encode()
    last = behind(stem)
    # Every row of the key begins with the same bytes, of which the last is one less than here.
    return next(histories(read(layers, mirror.state, last[:-2], last)), None)


def _net_tally(mirror: Mirror, base: Base, lines: Sequence[PlanLine]) -> ChangesTally:
    """What `lines` that events led to, with all that events led to before them, come to since the last listing."""
    since = base.since
    assert since is not None, "events are looked at when there is something to compare with"
    listed, changed = base.by_events
    again = find_all(changed, mirror.state, [line.key.encode() for line in lines])
    then = find_all(listed, mirror.state, sorted(again))
    carried, counted = net_changes(since.carried, lines, then, again, base.run)
    tally = ChangesTally(since.census, mirror.guard, carried)
    for line in counted:
        tally.add(line)
    return tally


def _terms(mirror: Mirror, facts: ScanFacts) -> Terms:
    source, target = mirror.source.bucket.properties, mirror.target.bucket.properties
    return Terms(
        source=mirror.prices[0],
        target=mirror.prices[1],
        server_copy=bool(source.endpoint) and source.endpoint == target.endpoint and not mirror.encrypted,
        sealed=mirror.encrypted,
        copy_bytes_max=target.copy_bytes_max,
        part_bytes=mirror.settings.part_bytes,
        checks=mirror.settings.check_target,
        quarantine=not target.versioned,
        scan_lists=facts.requests + facts.probes,
        scan_heads=facts.heads,
    )


def _publish(mirror: Mirror, plan: Plan, base: Base, result: ApplyResult, now: Callable[[], float]) -> str:
    """The base with what is done, published; then the journals are of no more use, but for uploads that could not be
    aborted. Returns the snapshot's name.

    A crash between the two leaves journals of a plan whose base has moved on: `settle` removes them, as it does those that
    stay for their uploads."""
    journals = mirror.journals(plan.digest)
    census = base.census or Census()
    since = base.since or Since(Census())
    events = _scan_of(plan, census).get("events")
    done_lines: list[PlanLine] = []
    change = Totals()
    counts = {op: since.carried.objects(op) for op in Op}
    counted: dict[Op, str] = {}
    for line, done in line_results(plan, journals):
        if done is not None or line.op not in ORDER:
            census.apply(line)
            # The guard goes by keys: several new versions of one are one overwrite.
            counts[line.op] += counted.get(line.op) != line.key
            counted[line.op] = line.key
            change += change_of(line)
            if events:
                done_lines.append(line)
    scan = _scan_of(plan, census)
    notes: dict[str, Any] = {
        "plan": plan.digest,
        "census": census.to_json(),
        "counts": {str(op): count for op, count in counts.items()},
        "keys": scan["keys"],
        "bytes": scan["bytes"],
        "order": str(Order.SORTED if scan["unordered"] else Order.ASCENDING),
        "seconds": round(result.seconds, 3),
        "lines": result.lines,
        "moved": result.bytes_moved + result.bytes_copied,
    }
    if mirror.all_versions:
        notes["versions"] = ALL
    if events:
        # Whoever approved has looked at all that came since the last listing.
        approved = verdict_of(plan).decision is Decision.HOLD
        carried = _net_tally(mirror, base, done_lines).carry()
        new = Since(census, layers=since.layers) if approved else Since(since.census, carried, since.layers)
        by_op = {str(op): carried.objects(op) for op in Op}
        notes |= {
            "events": events,
            "since": new.to_json(),
            "keys": census.keys,
            "bytes": census.bytes,
            "counts": by_op,
        }
        if base.past:
            notes["order"] = str(base.past[-1].order)
    facts = RunFacts(
        plan.head.run,
        datetime.fromtimestamp(now(), UTC).isoformat(timespec="seconds"),
        mirror.settings.source,
        mirror.settings.target,
        () if events or scan.get("lost") else ((b"", None),),
        notes,
    )
    # What events brought since the last listing is one restore point, which the next listing takes the place of.
    going_on = base.snapshot is not None and is_from_events(base.snapshot)
    joined = going_on and bool(events) and bool(base.by_events[1])
    head = mirror.state.publish(
        base.head,
        outcome_rows(plan, journals),
        facts,
        change,
        instead=going_on,
        joined=joined,
        folding=not events,
    )
    if not result.uploads_left:
        shutil.rmtree(journals, ignore_errors=True)
    return head.current


def _scan_of(plan: Plan, census: Census) -> Mapping[str, Any]:
    """What the scan came to, which is told beside the lines and not covered by the digest: where it cannot be read, what
    is known of the source now. What was copied is published all the same."""
    try:
        scan = plan.summary()["scan"]
        if isinstance(scan, dict) and {"keys", "bytes", "unordered"} <= scan.keys():
            return scan
    except (StateDamaged, KeyError):
        pass
    return {"keys": census.keys, "bytes": census.bytes, "unordered": "", "lost": True}


def change_of(line: PlanLine) -> Totals:
    """What a line that is done adds to the totals of the base."""
    match line.op:
        case Op.MODIFY | Op.REMOVE if line.ordinal:
            return Totals(1, 0, line.size)
        case Op.ADD:
            return Totals(1, 0, line.size)
        case Op.MODIFY:
            return Totals(0, -1 if line.gone else 0, line.size - line.was_size)
        case Op.VANISH:
            return Totals(0, 1, 0)
        case Op.RETURN:
            return Totals(0, -1, 0)
        case Op.REMOVE:
            return Totals(-1, -1, -line.size)


def newest_plan(mirror: Mirror) -> Plan:
    """The plan that was made last. Refused where there is none, StateDamaged where it cannot be read."""
    found = digests(mirror.plans)
    if not found:
        raise Refused(f"there is no plan of mirror {mirror.name} here", hint=f"make one: cowsync plan {mirror.name}")
    return open_plan(max((mirror.plans / digest for digest in found), key=made_at))


def made_at(folder: Path) -> float:
    """When the plan in `folder` was made; by the age of the folder where the plan does not tell."""
    try:
        return float(str(open_plan(folder).summary()["made"]))
    except (Refused, StateDamaged, KeyError, ValueError):
        return folder.stat().st_mtime


def _told(mirror: Mirror, name: str) -> Mapping[str, Any]:
    """What is looked back on of a restore point. It never changes, and a service asks for a hundred of them often."""
    if name not in mirror.told:
        notes = mirror.state.snapshot(name).facts.notes
        told = {field: notes[field] for field in ("keys", "counts", "order", "seconds", "lines", "moved")}
        mirror.told[name] = told | {"events": bool(notes.get("events"))}
        while len(mirror.told) > 2 * HISTORY:
            del mirror.told[next(iter(mirror.told))]
    return mirror.told[name]


def _past(notes: Mapping[str, Any]) -> PastRun:
    return PastRun(int(notes["keys"]), int(notes["counts"][Op.MODIFY]), Order(notes["order"]))


def _rates(told: Sequence[Mapping[str, Any]]) -> Rates:
    """Of the runs that took long enough to tell."""
    told = [notes for notes in told if notes["seconds"] >= 1]
    seconds = sum(notes["seconds"] for notes in told)
    if not seconds:
        return Rates()
    return Rates(sum(notes["lines"] for notes in told) / seconds, sum(notes["moved"] for notes in told) / seconds)


def explain_key(mirror: Mirror, key: str) -> dict[str, Any]:
    """Everything that is known of one key: at the source now, in the base, on the mirror now, in plans on this host."""
    base = base_of(mirror)
    layers = base.snapshot.layers if base.snapshot else ()
    known: Any = "nothing"
    if mirror.all_versions:
        history = history_of(mirror, layers, key)
        if history is not None:
            known = [_shown(row._replace(key=key.encode())) for row in reversed(history.rows)]
    else:
        row = find(layers, mirror.state, key.encode())
        known = _shown(row) if row else known
    fits = mirror.belongs is None or mirror.belongs(key.encode())
    return {
        "key": key,
        "belongs": "yes" if fits else "no: left out by include or exclude",
        "source": _facts_of(mirror.source, key),
        "known": known,
        "mirror": _facts_of(mirror.target, key),
        "plans": [_lines_in(mirror.plans / digest, key) for digest in digests(mirror.plans)],
    }


def _facts_of(place: Place, key: str) -> dict[str, Any] | str:
    try:
        facts = place.bucket.head(place.key(key))
    except NotFound:
        return "not there"
    moment = datetime.fromtimestamp(facts.modified, UTC).isoformat(timespec="seconds")
    return {"etag": facts.etag, "size": facts.size, "modified": moment, "version_id": facts.version_id}


def _shown(row: Row) -> dict[str, object]:
    return {name: _text(value) for name, value in row._asdict().items()}


def _lines_in(folder: Path, key: str) -> str:
    try:
        plan = open_plan(folder)
        found = [f"line {number}: {line.op} ({line.reason})" for number, line in plan.find_every(key)]
    except StateDamaged as error:
        return f"{folder.name[:SHOWN_DIGEST]}: {error}"
    said = "; ".join(found) or "no line"
    return f"{plan.digest[:SHOWN_DIGEST]} of run {plan.head.run}: {said}"


def _text(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
