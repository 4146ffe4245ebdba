"""`pve-s3-maintenance`: how a storage is, what may go, and whether what is there is whole.

One rule: `status` and `check-integrity` change nothing in the bucket.
"""

import time
from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from plugin.arguments import CredentialsOption, QuietOption, RootOption, begin_logging, named_storage
from plugin.layout import DIRECTORIES, volume_of_key
from plugin.protection import collect
from plugin.session import Session, opened
from plugin.upkeep import Finding, Rubbish, abandoned, check, clean, incomplete_uploads, orphans, rubbish, session_cache
from s3core.console import (
    Column,
    JsonOption,
    VersionOption,
    new_app,
    progress,
    run_and_exit,
    size_column,
    write_json,
    write_line,
    write_record,
    write_records,
)
from s3core.endpoint_commands import ConfigOption, usage
from s3core.exit_codes import ExitCode
from s3core.quantities import parse_duration, shown_size

NAME = "pve-s3-maintenance"
app = new_app(NAME, "Look after a storage.")
WHAT = {
    "upload": "upload that nobody finished",
    "journal": "upload that a dead process of this node left",
    "sidecar": "belongs to a volume that is gone",
    "cached": "local copy that nobody needed",
    "hidden": "deleted before; its versions had been left",
}


class Action(StrEnum):
    STATUS = "status"
    CLEANUP = "cleanup"
    CHECK = "check-integrity"


@app.command()
def maintenance(
    storage: Annotated[str, typer.Option("--storage", metavar="STORAGE", help="The storage's id.")],
    action: Annotated[Action, typer.Option("--action", help="What to do.")],
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="cleanup: leave what is younger, such as 12h or 90d.")
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="cleanup: show what would go.")] = False,
    sample: Annotated[
        float,
        typer.Option(
            "--sample",
            metavar="PERCENT",
            min=0,
            max=100,
            help="check-integrity: share of the bytes to read; 100 reads everything, 0 asks for each object's facts alone.",
        ),
    ] = 0.0,
    quiet: QuietOption = False,
    root: RootOption = None,
    credentials: CredentialsOption = None,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
    show_version: VersionOption = False,
) -> None:
    """Show how a storage is (status), remove what nobody needs any more (cleanup), or compare what is there with what was
    uploaded (check-integrity; ends with 1 where something is damaged or missing)."""
    begin_logging()
    try:
        older_s = parse_duration(older_than)
    except ValueError as error:
        usage(f"--older-than: {error}")
    chosen = named_storage(storage, root, credentials)
    with opened(chosen, config_path) as session:
        if action is Action.STATUS:
            status(session, as_json)
        elif action is Action.CLEANUP:
            cleanup(session, older_s, dry_run, as_json)
        else:
            integrity(session, sample / 100, quiet, as_json)


def status(session: Session, as_json: bool) -> None:
    entries, prefix = session.listed(), session.storage.prefix
    volumes, sizes = Counter[str](), Counter[str]()
    for one in entries:
        volume = volume_of_key(one.key.removeprefix(prefix))
        if volume is not None:
            volumes[volume.content] += 1
            sizes[volume.content] += one.stored
    stray, uploads = orphans(entries, prefix), list(incomplete_uploads(session))
    cached = session_cache(session).files()
    record: dict[str, Any] = {
        "storage": session.storage.id,
        "place": f"{session.storage.bucket}/{session.storage.prefix}",
        "objects": len(entries),
        "bytes": sum(one.stored for one in entries),
        "contents": {content: {"volumes": volumes[content], "bytes": sizes[content]} for content in DIRECTORIES},
        "uploads": len(uploads),
        "orphans": len(stray),
        "cached_files": len(cached),
        "cached_bytes": sum(one.size for one in cached),
        "sealed": session.keyring is not None,
    }
    if as_json:
        write_json(record)
        return
    lines = (
        Column("storage", "storage"),
        Column("place", "place"),
        Column("objects", "objects"),
        size_column("bytes", "bytes"),
        Column("uploads", "uploads under way"),
        Column("orphans", "without a volume"),
        Column("cached_files", "files in the local cache"),
        size_column("cached_bytes", "bytes of them"),
    )
    write_record(record, lines, as_json=False)
    rows = [{"content": name} | told for name, told in record["contents"].items() if told["volumes"]]
    columns = (
        Column("content", "content"),
        Column("volumes", "volumes", justify="right"),
        size_column("bytes", "size"),
    )
    write_line()
    write_records(rows, columns, as_json=False)


def cleanup(session: Session, older_s: float, dry_run: bool, as_json: bool) -> None:
    found = rubbish(session, older_s)
    done = found if dry_run else abandoned(session) + clean(session, found)
    hidden = collect(session.bucket, now=time.time(), after_s=older_s, dry_run=dry_run)
    done += [Rubbish("hidden", key, 0, 0.0) for key in hidden.keys]
    if as_json:
        write_json({"dry_run": dry_run, "removed": [_rubbish_record(one) for one in done]})
        return
    for one in done:
        write_line(f"{'would go' if dry_run else 'removed'}: {one.key}: {WHAT[one.kind]}")
    freed = shown_size(sum(one.size for one in done))
    write_line(f"{len(done)} {'would be removed' if dry_run else 'removed'}, {freed}")


def _rubbish_record(one: Rubbish) -> dict[str, object]:
    return {"kind": one.kind, "key": one.key, "size": one.size, "since": one.since}


def integrity(session: Session, share: float, quiet: bool, as_json: bool) -> None:
    volumes = session.volumes()
    total = sum(entry.stored for _, entry in volumes) * share if share else len(volumes)
    findings: list[Finding] = []
    with progress("integrity", total, unit="bytes" if share else "items", quiet=quiet) as shown:

        def read(count: int) -> None:
            if share:
                shown.advance(count)

        for volume, entry in volumes:
            findings += check(session, volume, entry, share, read)
            if not share:
                shown.advance()
    damaged = sum(1 for one in findings if one.damaged)
    if as_json:
        told = [{"volume": one.volume, "problem": one.problem, "damaged": one.damaged} for one in findings]
        write_json({"ok": not findings, "volumes": len(volumes), "share": share, "findings": told})
    else:
        for one in findings:
            write_line(f"{'DAMAGED' if one.damaged else 'missing'}: {one.volume}: {one.problem}")
        write_line(f"{len(volumes)} volumes, {damaged} damaged, {len(findings) - damaged} with something missing")
    if findings:
        raise typer.Exit(ExitCode.FINDING)


def main() -> NoReturn:
    run_and_exit(app, NAME)
