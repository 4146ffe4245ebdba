"""`cowsync apply|run|verify`: the commands that write to a mirror, and the one that looks at it.

One rule: what cannot go on says how far it came, and the same command goes on from there.
"""

import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cowsync.apply.run import ApplyResult, Progress, stop_on_signals
from cowsync.apply.verify import Finding, ListingResult, RereadSettings, reread, verify_listing
from cowsync.apply.verify_versions import verify_versions
from cowsync.arguments import (
    ApproveOption,
    ClusterOption,
    DigestArgument,
    EventsOption,
    MirrorArgument,
    check_cluster,
    crew_for,
    mirror_of,
)
from cowsync.base.layers import Layers, read
from cowsync.changes import Outcome
from cowsync.mirror import Mirror
from cowsync.plan.guard import Decision
from cowsync.plan_commands import plan_of, planned_by, tell_no_change, tell_plan
from cowsync.scan.listing import Listed, Unordered
from cowsync.scan.unordered import sorted_rows
from cowsync.work import Applied, alone, base_of, check_allowed, check_kind
from cowsync.work import apply as carry_out
from s3core.console import JsonOption, progress, write_json, write_line, write_note
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration, shown_size


def apply(
    name: MirrorArgument,
    digest: DigestArgument = "",
    approve: ApproveOption = "",
    cluster: ClusterOption = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry out a plan: the newest, or the one named. Called again after it was stopped, it goes on where it was."""
    with mirror_of(config_path, name) as mirror, alone(mirror):
        plan = plan_of(mirror, digest or approve)
        check_allowed(plan, approve)
        with crew_for(mirror, cluster) as crew, stopping() as stop, applying(name, quiet=as_json) as told:
            applied = carry_out(mirror, plan.digest, approve=approve, stop=stop, on_progress=told, crew=crew)
    _tell(name, applied, as_json=as_json)
    raise typer.Exit(exit_of(applied.result))


def run(
    name: MirrorArgument,
    cluster: ClusterOption = "",
    events: EventsOption = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan, and carry the plan out if the guard lets it: what a timer calls.

    With --events only the keys that events name are looked at: a run without it has to follow, now and then."""
    with mirror_of(config_path, name) as mirror, alone(mirror):
        if cluster:
            check_cluster(mirror, cluster, ("source", "state", "target"))
        planned = planned_by(mirror, cluster, events, quiet=as_json)
        if planned is None:
            tell_no_change(as_json=as_json)
            raise typer.Exit(ExitCode.OK)
        if not as_json:
            tell_plan(name, planned, follows=True)
            if planned.verdict.decision is Decision.HOLD:
                write_note(
                    f"nothing was moved; after a look: cowsync apply {name} --approve {planned.plan.digest[:12]}"
                )
                raise typer.Exit(ExitCode.REFUSED)
        check_allowed(planned.plan, "")
        lines_at = "" if planned.clean else cluster
        with (
            crew_for(mirror, lines_at) as crew,
            stopping() as stop,
            applying(name, quiet=as_json or planned.clean) as told,
        ):
            applied = carry_out(mirror, planned.plan.digest, stop=stop, on_progress=told, crew=crew)
    _tell(name, applied, as_json=as_json)
    raise typer.Exit(exit_of(applied.result))


def verify(
    name: MirrorArgument,
    sample: Annotated[
        float,
        typer.Option("--sample", metavar="PERCENT", help="Read the bytes of so many objects too.", min=0, max=100),
    ] = 0.0,
    full: Annotated[
        bool, typer.Option("--full", help="Read the bytes of all objects; goes on where it was stopped.")
    ] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the mirror once and say what is not as cowsync left it: lost, changed, put there by others.

    With --sample or --full the bytes of both ends are read and compared, too. Ends with 1 where something is found."""
    with mirror_of(config_path, name) as mirror:
        base = base_of(mirror)
        check_kind(mirror, base)
        layers = base.snapshot.layers if base.snapshot else ()
        mirror.check_encryption(begun=base.snapshot is not None)
        opened = mirror.opened_target(begun=base.snapshot is not None) if full or sample else None
        listed = verified(mirror, layers)
        bytes_read = None
        if full or sample:
            settings = RereadSettings(share=1.0 if full else sample / 100, seed=base.name)
            with stopping() as stop:
                bytes_read = reread(
                    lambda after: read(layers, mirror.state, after),
                    mirror.source,
                    mirror.target,
                    of=base.name,
                    opened=opened,
                    state=mirror.folder / ("verify-full.json" if full else "verify-sample.json"),
                    settings=settings,
                    stop=stop,
                    versions=mirror.all_versions,
                )
    if as_json:
        write_json({"listing": listed.to_json(), "bytes": bytes_read.to_json() if bytes_read else None})
    else:
        write_line(f"{listed.intact:,} of {listed.keys:,} objects are on the mirror as they were put there")
        if listed.quarantined:
            write_line(
                f"{listed.quarantined:,} removed ones lie in .cowsync/trash ({shown_size(listed.quarantined_bytes)})"
            )
        _tell_drift(listed.counts, listed.findings)
        if bytes_read is not None:
            write_line(
                f"{bytes_read.objects:,} objects read ({shown_size(bytes_read.bytes)}), {bytes_read.intact:,} equal"
            )
            _tell_drift(bytes_read.counts, bytes_read.findings)
            if bytes_read.stopped:
                write_note(f"stopped: {bytes_read.stopped}; the same command goes on")
    clean = listed.clean and (bytes_read is None or bytes_read.clean)
    if bytes_read is not None and not bytes_read.complete:
        raise typer.Exit(ExitCode.PARTIAL)
    raise typer.Exit(ExitCode.OK if clean else ExitCode.FINDING)


def verified(mirror: Mirror, layers: Layers) -> ListingResult:
    """The mirror's listing against the base; sorted on disk where the store lists out of order."""
    if mirror.all_versions:
        return verify_versions(read(layers, mirror.state), mirror.target, sealed=mirror.encrypted)
    try:
        return verify_listing(read(layers, mirror.state), mirror.target, sealed=mirror.encrypted)
    except Unordered as seen:
        write_note(f"note: {mirror.target.bucket.url} {seen}: sorted here, which takes longer")
    with tempfile.TemporaryDirectory(dir=mirror.folder) as folder:
        listing = sorted_rows(mirror.target.bucket, mirror.target.prefix, Listed(b""), Path(folder))
        return verify_listing(read(layers, mirror.state), mirror.target, listing=listing, sealed=mirror.encrypted)


def _tell_drift(counts: Mapping[str, int], findings: Sequence[Finding]) -> None:
    for kind, number in counts.items():
        write_line(f"{number:,} {kind}")
    for finding in findings:
        write_note(
            f"{finding.kind}: {finding.key}: expected {finding.expected or 'nothing'}, found {finding.held or 'nothing'}"
        )


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """SIGINT and SIGTERM end an apply in order: lines in flight are finished."""
    stop = threading.Event()
    with stop_on_signals(stop):
        yield stop


@contextmanager
def applying(name: str, *, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Progress of an apply in lines; the total is known with the first report."""
    before = 0
    with progress(f"copying to {name}", None, quiet=quiet) as shown:

        def told(done: Progress) -> None:
            nonlocal before
            shown.advance(done.lines - before)
            before = done.lines

        yield told


def _tell(name: str, applied: Applied, *, as_json: bool) -> None:
    result = applied.result
    if as_json:
        write_json(result.to_json() | {"snapshot": applied.snapshot})
        return
    tell_result(result)
    if result.stopped:
        write_note(f"the same command goes on: cowsync apply {name} {result.plan[:12]}")
    if applied.snapshot:
        write_line(f"restore point {applied.snapshot[:12]}")


def tell_result(result: ApplyResult) -> None:
    moved = [f"{shown_size(result.bytes_copied)} copied by the server"] if result.bytes_copied else []
    moved += [f"{shown_size(result.bytes_moved)} through this host"] if result.bytes_moved else []
    write_line(
        f"{result.done:,} of {result.lines:,} lines done in {shown_duration(round(result.seconds, 1))}"
        + (f", {', '.join(moved)}" if moved else "")
    )
    for outcome in (Outcome.MOVED, Outcome.DRIFTED, Outcome.FAILED, Outcome.SKIPPED):
        if result.count(outcome):
            write_line(f"{result.count(outcome):,} {MEANINGS[outcome]}")
    for failure in result.failures:
        write_note(f"{failure.outcome}: {failure.op} {failure.key}: {failure.message}")
    if result.stopped:
        write_note(f"stopped: {result.stopped}")


MEANINGS = {
    Outcome.MOVED: "changed at the source since the listing; the next run sees them",
    Outcome.DRIFTED: "left alone: the mirror holds something that cowsync did not put there",
    Outcome.FAILED: "failed",
    Outcome.SKIPPED: "not tried",
}


def exit_of(result: ApplyResult) -> int:
    if result.complete:
        return ExitCode.OK
    return ExitCode.PARTIAL
