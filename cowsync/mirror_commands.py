"""`cowsync init|list|status`: mirrors as wholes.

One rule: these commands look and write configuration; nothing here lists, copies or removes an object.
"""

import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cowsync.arguments import MirrorArgument, mirror_of, usage
from cowsync.catalogue import Catalogue, Phase, Run
from cowsync.feed.source import status_of
from cowsync.mirror import check_apart
from cowsync.watch_health import LOOK_BACK, past_of
from cowsync.work import base_of
from s3core.build import parse_store_url
from s3core.config_file import change_file, with_table
from s3core.console import (
    Column,
    JsonOption,
    size_column,
    write_json,
    write_line,
    write_note,
    write_record,
    write_records,
)
from s3core.credentials import KEY_SOURCES, check_key_source
from s3core.endpoint_commands import ConfigOption, writable
from s3core.quantities import shown_duration
from s3core.settings import Config, ConfigError, load_config


def init(
    name: Annotated[str, typer.Argument(metavar="MIRROR", help="What to call it.", show_default=False)],
    source: Annotated[str, typer.Argument(help="What is mirrored: s3://ENDPOINT/BUCKET/PREFIX.", show_default=False)],
    target: Annotated[str, typer.Argument(help="Where to: s3://ENDPOINT/BUCKET/PREFIX.", show_default=False)],
    state_dir: Annotated[str, typer.Option("--state-dir", help="Folder for plans, journals and state.")] = "",
    key: Annotated[
        str, typer.Option("--key", metavar="SOURCE", help=f"Encrypt the mirror; opened by {KEY_SOURCES}.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Replace a mirror of that name.")] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a mirror to the configuration file. Nothing is contacted."""
    for url in (source, target):
        try:
            parse_store_url(url)
        except ValueError as error:
            usage(str(error))
    path = writable(config_path)
    before = load_config(path) if path.exists() else Config(path=path)
    if name in before.mirrors and not force:
        raise ConfigError(
            f"{path}: [mirror.{name}] is there already", hint="choose another name, or replace it with --force"
        )
    check_apart(source, target)
    try:
        sealing = {"key": check_key_source(key)} if key else {}
    except ValueError as error:
        usage(f"--key: {error}")
    values = {"source": source, "target": target} | ({"state_dir": os.path.abspath(state_dir)} if state_dir else {})
    values |= sealing
    change_file(path, lambda text: with_table(text, "mirror", name, values))
    if as_json:
        write_json({"mirror": name} | values)
        return
    write_line(f"mirror {name} written to {path}")
    if key:
        write_note(
            f"note: the mirror will be encrypted. Keep a copy of the key ({key}) where neither this host nor the mirror's"
            " provider can lose it: without it nobody can ever read the mirror"
        )
    write_note(
        f"next: cowsync plan {name}     what would be copied; nothing moves\n      cowsync run {name}      and copy it"
    )


def list_mirrors(config_path: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show the mirrors of the configuration file and how their last runs on this host ended."""
    config = load_config(config_path)
    records = [_listed(config, name) for name in sorted(config.mirrors)]
    if not records and not as_json:
        write_note(f"no mirrors in {config.path}; add one: cowsync init NAME SOURCE TARGET")
        return
    columns = [Column("mirror", "MIRROR"), Column("source", "SOURCE"), Column("target", "TARGET")]
    columns += [Column("phase", "LAST RUN"), Column("ended", "ENDED", moment)]
    write_records(records, columns, as_json=as_json)


def status(
    name: MirrorArgument,
    runs: Annotated[int, typer.Option("--runs", help="How many runs to show.", min=1)] = 10,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a mirror holds by the newest restore point, and the last runs on this host."""
    with mirror_of(config_path, name) as mirror:
        base = base_of(mirror)
        past = mirror.catalogue().runs(runs)
        listed = past_of(mirror.catalogue().runs(LOOK_BACK, listed=True)).complete
        feed = mirror.settings.events
        events = status_of(feed, mirror.folder, time.time()) if feed else None
    snapshot = base.snapshot
    record: dict[str, object] = {
        "mirror": name,
        "source": mirror.settings.source,
        "target": mirror.settings.target,
        "snapshot": base.name,
        "time": snapshot.facts.time if snapshot else "",
        "objects": snapshot.totals.rows if snapshot else 0,
        "vanished": snapshot.totals.gone if snapshot else 0,
        "bytes": snapshot.totals.bytes if snapshot else 0,
        "last_listing": listed.started if listed else None,
        "events": events,
        "runs": [run_record(run) for run in past],
    }
    if as_json:
        write_json(record)
        return
    lines = [Column(key, key) for key in ("mirror", "source", "target")]
    lines += [Column("snapshot", "restore point", lambda name: str(name)[:12] or "none yet"), Column("time", "of")]
    lines += [Column("objects", "objects", count), Column("vanished", "lost by the source", count)]
    lines.append(size_column("bytes", "size"))
    lines.append(Column("last_listing", "last listing (UTC)", lambda began: moment(began) or "none complete yet"))
    if events is not None:
        lines.append(Column("events", "events", events_text))
    write_record(record, lines, as_json=False)
    if past:
        write_line()
        write_records([run_record(run) for run in past], RUN_COLUMNS, as_json=False)


def events_text(events: Mapping[str, object]) -> str:
    lag = events["lag_seconds"]
    text = (
        "lag not known" if not isinstance(lag, float) else f"lag {shown_duration(round(lag))}" if lag else "all handled"
    )
    wrong = ", ".join(f"{events[name]:,} {what}" for name, what in EVENT_WORDS.items() if events[name])
    return f"{events['feed']}: {text}" + (f"; {wrong}" if wrong else "")


EVENT_WORDS = {"malformed": "wrong lines", "floods": "floods", "lost": "times lost its place"}


def count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def run_record(run: Run) -> Mapping[str, object]:
    seconds = run.ended - run.started if run.ended else None
    # The facts have the scan's own seconds; those of the run count.
    return dict(run.facts) | {
        "run": run.number,
        "phase": str(run.phase),
        "started": run.started,
        "seconds": seconds,
        "plan": run.plan,
        "snapshot": run.snapshot,
        "message": run.message,
    }


def moment(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S") if seconds else ""


RUN_COLUMNS = [
    Column("run", "RUN", justify="right"),
    Column("started", "STARTED (UTC)", moment),
    Column("seconds", "TOOK", lambda s: "" if s is None else shown_duration(s), "right"),
    Column("phase", "PHASE"),
    Column("keys", "OBJECTS", count, "right"),
    Column("lines", "LINES", count, "right"),
    Column("plan", "PLAN", lambda digest: str(digest)[:12]),
    Column("message", "MESSAGE"),
]


def _listed(config: Config, name: str) -> Mapping[str, object]:
    settings = config.mirror(name)
    path = Path(settings.state_dir) / "catalogue.sqlite"
    last = Catalogue(path).runs(1) if path.exists() else []
    return {
        "mirror": name,
        "source": settings.source,
        "target": settings.target,
        "phase": str(last[0].phase) if last else "never run",
        "ended": last[0].ended if last else 0.0,
        "held": bool(last) and last[0].phase is Phase.HELD,
    }
