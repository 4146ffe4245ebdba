"""`cowsync snapshot ls|diff|restore|prune`: restore points.

One rule: a restore tells what cannot be had before it moves anything, and moves nothing unless asked to.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from cowsync.apply.copy_line import Place
from cowsync.apply.restore import RestoreOptions, apply_restore, plan_restore
from cowsync.apply_commands import applying, exit_of, stopping, tell_result
from cowsync.arguments import LimitOption, MirrorArgument, mirror_of
from cowsync.base.difference import between, each
from cowsync.base.head import Entry
from cowsync.base.layers import read
from cowsync.base.state import AGE_SECONDS
from cowsync.errors import Refused
from cowsync.mirror import Mirror, check_restore, open_place
from cowsync.versions import current_rows, key_of
from cowsync.watch import forget_runs, kept
from cowsync.work import alone, apply_settings, has_versions
from s3core.console import Column, JsonOption, new_app, size_column, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_size
from s3core.settings import Config, load_config

app = new_app("snapshot", "Restore points of a mirror: list, compare, bring back, forget.")
SnapshotArgument = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="A restore point, by its digest, the beginning of it, or run:NUMBER.")
]


@app.command("ls")
def list_snapshots(name: MirrorArgument, config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the restore points that are kept, the newest first."""
    with mirror_of(config_path, name) as mirror:
        records = []
        for entry in mirror.state.head().entries:
            snapshot = mirror.state.snapshot(entry.name)
            records.append(
                {
                    "snapshot": entry.name,
                    "run": entry.run,
                    "time": entry.time,
                    "objects": snapshot.totals.rows,
                    "vanished": snapshot.totals.gone,
                    "bytes": snapshot.totals.bytes,
                    "plan": snapshot.facts.notes.get("plan", ""),
                    "counts": snapshot.facts.notes.get("counts", {}),
                    "layers": len(snapshot.layers),
                    "scope": "events" if snapshot.facts.notes.get("events") else "all",
                }
            )
    columns = [
        Column("snapshot", "SNAPSHOT", lambda digest: str(digest)[:12]),
        Column("run", "RUN", justify="right"),
        Column("time", "TIME (UTC)", lambda time: str(time)[:19].replace("T", " ")),
        Column("objects", "OBJECTS", lambda number: f"{number:,}", "right"),
        Column("vanished", "LOST BY SOURCE", lambda number: f"{number:,}", "right"),
        size_column("bytes", "SIZE"),
        Column("scope", "LOOKED AT"),
    ]
    if not records and not as_json:
        write_note(f"mirror {name} has no restore point yet; the first run makes one: cowsync run {name}")
        return
    write_records(records, columns, as_json=as_json)


@app.command("diff")
def diff(
    name: MirrorArgument,
    old: SnapshotArgument,
    new: Annotated[
        str, typer.Argument(metavar="[SNAPSHOT]", help="The other one; the newest where none is named.")
    ] = "",
    limit: LimitOption = 1000,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which objects the source had at one restore point and not at the other, or not the same.

    Ends with 0 where there is no difference, with 1 where there is one."""
    with mirror_of(config_path, name) as mirror:
        first, second = (mirror.state.snapshot(find_snapshot(mirror, text).name) for text in (old, new))
        versions = has_versions(first)
        found: list[dict[str, object]] = []
        counts: dict[str, int] = {}
        for kind, was, now in each(between(first.layers, second.layers, mirror.state)):
            counts[kind] = counts.get(kind, 0) + 1
            row = now or was
            assert row is not None
            if not limit or len(found) < limit:
                record: dict[str, object] = {
                    "kind": str(kind),
                    "size": row.size,
                    "etag": row.etag.decode(),
                    "key": row.key.decode(),
                }
                if versions:
                    record |= {"key": key_of(row.key).decode(), "version": row.version_id.decode()}
                found.append(record)
    if as_json:
        write_json({"counts": counts, "shown": found})
    else:
        columns = [Column("kind", "KIND"), size_column("size", "SIZE"), Column("key", "KEY")]
        columns += [Column("version", "VERSION")] if versions else []
        write_records(found, columns, as_json=False)
        write_note(", ".join(f"{number:,} {kind}" for kind, number in counts.items()) or "no difference")
    raise typer.Exit(ExitCode.FINDING if counts else ExitCode.OK)


@app.command("restore")
def restore(
    name: MirrorArgument,
    snapshot: SnapshotArgument,
    to: Annotated[str, typer.Option("--to", help="Where to: s3://ENDPOINT/BUCKET/PREFIX; else the source.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there and differs.")] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove what is there and not in the restore point.")
    ] = False,
    vanished: Annotated[
        bool, typer.Option("--vanished", help="Bring back what the source had lost by then and the mirror kept, too.")
    ] = False,
    go: Annotated[bool, typer.Option("--go", help="Do it; without this only what would be done is shown.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring objects back as they were at a restore point, from the mirror. Shows what would be done, then does it with --go.

    Ends with 1 where something cannot be had from the mirror any more, or where --go is missing and there is work."""
    config = load_config(config_path)
    with (
        mirror_of(config_path, name) as mirror,
        alone(mirror),
        place_for(config, mirror, to) as place,
    ):
        entry = find_snapshot(mirror, snapshot)
        readable = mirror.readable(begun=True)
        point = mirror.state.snapshot(entry.name)
        rows = read(point.layers, mirror.state)
        if has_versions(point):
            rows = current_rows(rows, vanished=vanished)
        options = RestoreOptions(overwrite=overwrite, delete=delete, vanished=vanished)
        plan, report = plan_restore(
            mirror.folder / "restores",
            rows,
            mirror.target,
            place,
            name=name,
            snapshot=entry.name,
            run=entry.run,
            options=options,
            sealed=mirror.encrypted,
        )
        lines = [
            f"{report.keys:,} objects at the restore point, {report.present:,} are there as they were",
            f"{report.copies:,} to copy ({shown_size(report.copy_bytes)}), {report.overwrites:,} of them over something else",
            f"{report.kept:,} differ and stay (--overwrite replaces them)" if report.kept else "",
            f"{report.extra:,} are there and not in it, {report.deletes:,} of them to be removed"
            if report.extra
            else "",
        ]
        if not as_json:
            for line in filter(None, lines):
                write_line(line)
            if report.unavailable:
                write_note(
                    f"{report.unavailable:,} objects ({shown_size(report.unavailable_bytes)}) cannot be had from the mirror "
                    f"any more, such as {', '.join(report.examples[:5])}"
                )
        if not go or not len(plan):
            if as_json:
                write_json(report.to_json() | {"plan": plan.digest})
            elif len(plan):
                write_note("nothing was moved; --go does it")
            raise typer.Exit(ExitCode.FINDING if len(plan) or report.unavailable else ExitCode.OK)
        with stopping() as stop, applying(name, quiet=as_json) as told:
            result = apply_restore(
                plan,
                readable,
                place,
                mirror.folder / "restoring" / plan.digest,
                run=entry.run,
                settings=apply_settings(mirror),
                stop=stop,
                on_progress=told,
            )
    if as_json:
        write_json(report.to_json() | {"plan": plan.digest, "result": result.to_json()})
    else:
        tell_result(result)
    raise typer.Exit(exit_of(result) or (ExitCode.FINDING if report.unavailable else ExitCode.OK))


@app.command("prune")
def prune(
    name: MirrorArgument,
    keep: Annotated[int, typer.Option("--keep", help="How many of the newest restore points to keep.", min=1)],
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Forget all restore points but the newest. Objects on the mirror stay: only what is known of them goes.

    With `vanished = "remove"` a few older ones are kept: they tell how long an object has been missed."""
    with mirror_of(config_path, name) as mirror, alone(mirror):
        now = time.time()
        names = kept(mirror.state.head().entries, mirror.settings.model_copy(update={"snapshots_kept": keep}), now)
        pruned = mirror.state.prune(names)
        runs = forget_runs(mirror, now)
    record = {
        "snapshots": pruned.snapshots,
        "segments": pruned.segments,
        "bytes": pruned.bytes,
        "left": len(pruned.left),
        "runs": runs,
    }
    if as_json:
        write_json(record)
    else:
        write_line(
            f"{len(names):,} restore points kept; {pruned.snapshots:,} manifests and {pruned.segments:,} segments removed "
            f"({shown_size(pruned.bytes)}); what is younger than {AGE_SECONDS // 3600} hours goes later"
        )
        for key, error in pruned.left.items():
            write_note(f"not removed: {key}: {error}")
    raise typer.Exit(ExitCode.PARTIAL if pruned.left else ExitCode.OK)


@contextmanager
def place_for(config: Config, mirror: Mirror, to: str) -> Iterator[Place]:
    """Where a restore goes to; the source where nothing is named."""
    to = to or mirror.settings.source
    check_restore(config, mirror.settings, to)
    with open_place(config, to) as place:
        yield place


def find_snapshot(mirror: Mirror, text: str) -> Entry:
    """The restore point that is named so; the newest for "". Refused where there is none, or more than one."""
    entries = mirror.state.head().entries
    if text.startswith("run:"):
        found = [entry for entry in entries if str(entry.run) == text.removeprefix("run:")]
    else:
        found = [entry for entry in entries if entry.name.startswith(text.lower())] if text else list(entries[:1])
    if len(found) != 1:
        what = (
            f"{len(found)} restore points begin with {text}" if found else f"there is no restore point {text}".rstrip()
        )
        raise Refused(f"{what} of mirror {mirror.name}", hint=f"`cowsync snapshot ls {mirror.name}` lists them")
    return found[0]
