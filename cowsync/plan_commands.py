"""`cowsync plan|plans|show|explain|export`: what would be done, and why.

One rule: nothing here writes to a source or a mirror.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from cowsync.arguments import (
    ClusterOption,
    DigestArgument,
    EventsOption,
    LimitOption,
    MirrorArgument,
    engine_for,
    mirror_of,
    usage,
)
from cowsync.changes import Op, PlanLine
from cowsync.errors import Refused, StateDamaged
from cowsync.feed.gathered import Gathered
from cowsync.feed.source import gather_once
from cowsync.hints import plan_hinted, scope_of
from cowsync.mirror import Mirror
from cowsync.mirror_commands import count, moment
from cowsync.plan.exports import Format
from cowsync.plan.exports import export as write_export
from cowsync.plan.guard import Decision
from cowsync.plan.plan_file import SHOWN_DIGEST, Plan, digests, find_plan, open_plan
from cowsync.scan.run import ScanFacts
from cowsync.work import Planned, alone, explain_key, made_at, make_plan, newest_plan, scan_json, verdict_of
from s3core.console import Column, JsonOption, progress, size_column, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode

OpOption = Annotated[
    list[str] | None, typer.Option("--op", help=f"Only lines of this kind ({', '.join(Op)}); may be repeated.")
]


def plan(
    name: MirrorArgument,
    cluster: ClusterOption = "",
    events: EventsOption = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the source, compare it with what is on the mirror, and write what is to be done as a plan. Nothing moves.

    With --events only the keys that events name are looked at. Ends with 0 where nothing changed, with 1 where something
    did, with 7 where the guard holds the plan."""
    with mirror_of(config_path, name) as mirror, alone(mirror):
        planned = planned_by(mirror, cluster, events, quiet=as_json)
    if planned is None:
        tell_no_change(as_json=as_json)
        raise typer.Exit(ExitCode.OK)
    if as_json:
        write_json(plan_record(planned.plan) | {"scan": scan_json(planned.scan)})
    else:
        tell_plan(name, planned)
    raise typer.Exit(exit_of(planned))


def planned_by(mirror: Mirror, cluster: str, events: str, *, quiet: bool) -> Planned | None:
    """A plan from a listing, or of the keys that events name; None where these are as they are known. For the holder of
    the lock. Wrong lines are told; a flood of keys is a listing."""
    if events:
        if cluster:
            usage("--cluster lists the whole source, --events looks at some keys: give one of them")
        gathered = Gathered(scope_of(mirror))
        gather_once(events, gathered)
        for complaint in gathered.complaints:
            write_note(f"skipped: {complaint}")
        if gathered.counts.malformed > len(gathered.complaints):
            write_note(f"skipped: {gathered.counts.malformed:,} wrong lines in all")
        if not gathered.flooded:
            return plan_hinted(mirror, gathered.keys, gathered.counts)
        write_note(f"events name more than {mirror.settings.events_keys_max:,} keys: the source is listed instead")
    with engine_for(mirror, cluster) as engine, scanning(mirror.name, quiet=quiet) as told:
        return make_plan(mirror, engine, progress=told)


def tell_no_change(*, as_json: bool) -> None:
    if as_json:
        write_json({"digest": "", "lines": 0})
    else:
        write_line("the keys that events name are as they are known")


def plans(name: MirrorArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the plans that lie on this host, the newest first."""
    with mirror_of(config_path, name) as mirror:
        found = [_listed(mirror, digest) for digest in digests(mirror.plans)]
    found.sort(key=lambda record: float(str(record["made"] or 0)), reverse=True)
    columns = [
        Column("digest", "PLAN", lambda digest: str(digest)[:SHOWN_DIGEST]),
        Column("made", "MADE (UTC)", moment),
        Column("run", "RUN", justify="right"),
        Column("lines", "LINES", count, "right"),
        Column("decision", "GUARD"),
    ]
    if not found and not as_json:
        write_note(f"no plans of mirror {name} here; make one: cowsync plan {name}")
        return
    write_records(found, columns, as_json=as_json)


def show(
    name: MirrorArgument,
    digest: DigestArgument = "",
    op: OpOption = None,
    limit: LimitOption = 100,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a plan: its summary, the guard's verdict, and its lines."""
    wanted = _ops(op)
    with mirror_of(config_path, name) as mirror:
        found = plan_of(mirror, digest)
        record = plan_record(found)
        lines = (line for line in found if not wanted or line.op in wanted)
        shown = [line_record(line) for line in (islice(lines, limit) if limit else lines)]
    if as_json:
        write_json(record | {"shown": shown})
        return
    write_line(f"plan {found.digest}")
    for line in str(record["text"]).splitlines():
        write_line(line)
    if shown:
        write_line()
        write_records(shown, LINE_COLUMNS, as_json=False)
    if limit and len(shown) == limit < len(found):
        write_note(f"{limit:,} lines shown; --limit 0 shows all, --op only those of one kind")


def explain(
    name: MirrorArgument,
    key: Annotated[str, typer.Argument(help="A key below the source's prefix.", show_default=False)],
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell everything that is known of one key: at the source now, on the mirror by the last run, and in plans here."""
    try:
        key.encode()
    except UnicodeEncodeError:
        usage(f"a key is text in UTF-8, which {key!r} is not")
    with mirror_of(config_path, name) as mirror:
        record = explain_key(mirror, key)
    if as_json:
        write_json(record)
        return
    for heading, value in record.items():
        if isinstance(value, Mapping):
            write_line(f"{heading}:")
            for field, text in value.items():
                write_line(f"  {field:<16} {text}")
        elif isinstance(value, list):
            write_line(f"{heading}:" if value else f"{heading}: none here")
            for one in value:
                write_line(f"  {told(one)}")
        else:
            write_line(f"{heading}: {value}")


def export(
    name: MirrorArgument,
    form: Annotated[str, typer.Option("--format", help=f"One of {', '.join(Format)}.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="A folder that is not there yet.", show_default=False)],
    digest: DigestArgument = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a plan in the form that another engine takes. Nothing moves."""
    if form not in list(Format):
        usage(f"--format must be one of {', '.join(Format)}, not {form!r}")
    with mirror_of(config_path, name) as mirror:
        mirror.check_encryption(begun=False)
        if mirror.encrypted and form not in (Format.JSONL, Format.PARQUET, Format.DELETE):
            raise Refused(
                f"mirror {name} is encrypted, and no other engine seals what it copies",
                hint=f"cowsync apply {name} does; --format jsonl, parquet and delete only tell what there is to do",
            )
        written = write_export(plan_of(mirror, digest), Format(form), out)
    if as_json:
        write_json({**asdict(written), "folder": str(written.folder)})
        return
    for file, lines in written.files.items():
        write_line(f"{written.folder / file}  {lines:,} lines")
    if written.unable:
        write_note(f"{written.unable:,} lines cannot be written in this form: see {written.folder / 'unable.jsonl'}")
    for note in written.notes:
        write_note(note)


def told(one: object) -> str:
    """A version in one line; anything else as it is."""
    if not isinstance(one, Mapping):
        return str(one)
    what = f"{one['size']} bytes, {one['etag']}" if one["etag"] else "delete marker"
    gone = f", gone since run {one['gone']}" if one["gone"] else ""
    return f"{one['version_id']}  {one['modified']}  {what}, on the mirror as {one['mirror_version']}{gone}"


@contextmanager
def scanning(name: str, *, quiet: bool, doing: str = "listing the source") -> Iterator[Callable[[ScanFacts], None]]:
    """Progress of a scan: keys listed so far."""
    with progress(f"{doing} of {name}", None, quiet=quiet) as shown:
        before = 0

        def told(facts: ScanFacts) -> None:
            nonlocal before
            shown.advance(facts.keys - before)
            before = facts.keys

        yield told


def tell_plan(name: str, planned: Planned, *, follows: bool = False) -> None:
    """`follows`: it is carried out by this very command."""
    facts, plan = planned.scan, planned.plan
    rate = facts.keys / facts.seconds if facts.seconds else 0.0
    asked = f"{facts.requests + facts.probes:,} LIST requests"
    if facts.inventory:
        asked = f"from the inventory of {facts.inventory}"
    if facts.events:
        write_line(f"{facts.heads:,} keys that events named were looked at in {facts.seconds:.1f} s")
    else:
        write_line(f"{facts.keys:,} objects listed in {facts.seconds:.1f} s ({rate:,.0f} a second, {asked})")
    if facts.unordered:
        write_note(f"note: {facts.unordered}: sorted here, which takes longer")
    if facts.reserved:
        write_note(f"note: {facts.reserved:,} keys below .cowsync/ are not mirrored: that is cowsync's own place")
    if planned.clean:
        write_line("nothing has changed since the last run")
        if planned.verdict.decision is not Decision.PASS:
            write_line(f"plan {plan.digest[:SHOWN_DIGEST]}\nguard: {planned.verdict.text().strip()}")
        return
    write_line(f"plan {plan.digest[:SHOWN_DIGEST]}: {len(plan):,} lines")
    for line in str(plan_record(plan)["text"]).splitlines():
        write_line(line)
    if planned.verdict.decision is Decision.PASS and not follows:
        write_note(f"next: cowsync show {name}      every line\n      cowsync apply {name}     carry them out")


def exit_of(planned: Planned) -> int:
    if planned.verdict.decision is not Decision.PASS:
        return ExitCode.REFUSED
    return ExitCode.OK if planned.clean else ExitCode.FINDING


def plan_of(mirror: Mirror, digest: str) -> Plan:
    """The plan of that digest, the newest where none is named."""
    return find_plan(mirror.plans, digest) if digest else newest_plan(mirror)


def plan_record(plan: Plan) -> dict[str, object]:
    document = plan.summary()
    verdict = verdict_of(plan)
    return {
        "digest": plan.digest,
        "mirror": plan.head.mirror,
        "run": plan.head.run,
        "base": plan.head.base,
        "made": document.get("made"),
        "lines": len(plan),
        "decision": str(verdict.decision),
        "reasons": [asdict(reason) for reason in verdict.reasons],
        "summary": document.get("summary"),
        "text": f"{document.get('text', '')}guard: {verdict.text().strip()}",
    }


def _listed(mirror: Mirror, digest: str) -> dict[str, object]:
    """As `plan_record`; one that cannot be read is told beside the others."""
    folder = mirror.plans / digest
    try:
        return plan_record(open_plan(folder))
    except StateDamaged as error:
        unknown = dict.fromkeys(("run", "base", "lines", "summary"))
        told = {"digest": digest, "mirror": mirror.name, "made": made_at(folder), "decision": "damaged", "reasons": []}
        return {**told, **unknown, "text": str(error)}


def line_record(line: PlanLine) -> Mapping[str, object]:
    return {**asdict(line), "op": str(line.op)}


LINE_COLUMNS = [
    Column("op", "OP"),
    size_column("size", "SIZE"),
    Column("reason", "WHY"),
    Column("key", "KEY"),
]


def _ops(names: list[str] | None) -> set[Op]:
    try:
        return {Op(name) for name in names or []}
    except ValueError:
        usage(f"--op must be one of {', '.join(Op)}")
