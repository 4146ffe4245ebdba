"""`s3block top`: what the volumes on this host are doing, live.

One rule: it only asks. Every figure comes from the control sockets; a volume that nobody serves, or that does not answer, is
shown as that and keeps nothing else from being shown.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from blockdev.arguments import StateDirOption, duration, find, usage
from blockdev.control import ControlClient, NotServed
from blockdev.errors import BlockError, Refused
from blockdev.place import state_directories, state_root
from blockdev.rates import Rates, rates
from blockdev.units import MIB
from s3core.console import clean, write_line
from s3core.endpoint_commands import ConfigOption
from s3core.settings import Config, load_config

INTERVAL_S_MIN = 0.1
ANSWER_PATIENCE_S = 2.0
WIDE_COLUMNS = 100
"""From this width on reads and writes have columns of their own."""


def top(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VOLUME", help="Volumes, by name or URL; none: all with state here.", show_default=False
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", parser=duration, metavar="TIME", help="Time between two looks.")
    ] = 2.0,
    count: Annotated[int, typer.Option("--count", min=0, help="Stop after so many looks; 0: at Ctrl-C.")] = 0,
    state_dir: StateDirOption = None,
    config_path: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on one line for each look.")] = False,
) -> None:
    """Show what volumes served on this host do: operations, latency, what the bucket lacks, requests and their cost.

    On a terminal a live table; otherwise a line per volume and look. Ask as the user who serves."""
    if interval < INTERVAL_S_MIN:
        usage(f"--interval: at least {INTERVAL_S_MIN} s")
    config = load_config(config_path)
    watched = [Watched(name, path) for name, path in _places(config, names or [], state_dir)]
    looks = _looks(watched, interval, count)
    # Ctrl-C is how one leaves a live view, and no failure.
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            for moment, rows in looks:
                sys.stdout.write(json.dumps({"time": moment, "volumes": rows}) + "\n")
                sys.stdout.flush()
        elif sys.stdout.isatty():
            console = Console(markup=False, highlight=False, emoji=False)
            with Live(console=console, auto_refresh=False, transient=False) as live:
                for _, rows in looks:
                    live.update(table(rows, console.width), refresh=True)
        else:
            for moment, rows in looks:
                for row in rows:
                    write_line(plain_line(moment, row))
                sys.stdout.flush()


def _places(config: Config, names: Sequence[str], state_dir: Path | None) -> list[tuple[str, Path]]:
    """Names and state directories. Raises Refused when there is nothing to look at."""
    if names:
        places = [find(config, name) for name in names]
        return [(p.name, state_dir / p.name if state_dir is not None else p.state_dir) for p in places]
    root = state_dir if state_dir is not None else state_root(config)
    try:
        found = state_directories(root) if root.is_dir() else {}
    except PermissionError as error:
        raise Refused(f"{root} is not yours to read", hint="run it as the user who serves the volumes") from error
    if state_dir is None:
        found |= {name: find(config, name).state_dir for name in config.volumes}
    if not found:
        raise Refused(f"no volume has been served from {root}", hint="name one, or the folder with --state-dir")
    return sorted(found.items())


class Watched:
    """One volume, asked again and again; connects anew when its daemon has gone."""

    def __init__(self, name: str, state_dir: Path) -> None:
        self.name = name
        self._state_dir = state_dir
        self._client: ControlClient | None = None
        self._last: dict[str, Any] | None = None

    def look(self) -> Rates:
        """What it did since the last look. Never raises for what is wrong with the volume or its daemon."""
        try:
            if self._client is None:
                self._client = ControlClient(self._state_dir, timeout_s=ANSWER_PATIENCE_S)
            status = self._client.ask("status")
        except BlockError as error:
            if self._client is not None:
                self._client.close()
            self._client = self._last = None
            state = "not served" if isinstance(error, NotServed) else "no answer"
            return {"name": self.name, "state": state, "failure": str(error)}
        before, self._last = self._last, status
        return rates(before, status)


def _looks(
    watched: Sequence[Watched],
    interval: float,
    count: int,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[float, list[Rates]]]:
    """(Unix time, rows) per look, after a first one that only serves to compare with."""
    for volume in watched:
        volume.look()
    number = 0
    while not count or number < count:
        sleep(interval)
        yield time.time(), [volume.look() for volume in watched]
        number += 1


# --- how it looks ----------------------------------------------------------------------------------------------------


def compact(value: object, base: float = 1000.0) -> str:
    """At most four characters: 0, 0.3, 8.1, 950, 1.2k, 12k, 3.4M. `-` for what is not known."""
    if not isinstance(value, int | float):
        return "-"
    for suffix in ("", "k" if base == 1000 else "K", "M", "G", "T", "P"):
        if value < 999.5 or suffix == "P":
            digits = 1 if 0.05 <= value < 9.95 else 0
            return f"{value:.{digits}f}{suffix}"
        value /= base
    raise AssertionError("unreachable")


def _scaled(row: Rates, key: str, factor: float) -> float | None:
    value = row.get(key)
    return value * factor if isinstance(value, int | float) else None


def _milliseconds(row: Rates, key: str) -> str:
    value = _scaled(row, key, 1e3)
    return f"{value:.2f}" if value is not None and value < 0.995 else compact(value)


def _percent(row: Rates, key: str) -> str:
    value = _scaled(row, key, 100)
    return "-" if value is None else f"{value:.0f}%"


def _pair(first: str, second: str) -> str:
    return "-" if first == second == "-" else f"{first}/{second}"


def _cost(row: Rates, *, currency: bool) -> str:
    cost = row.get("request_cost_per_month")
    return "-" if cost is None else compact(cost) + (f" {row['currency']}" if currency else "")


def _style(row: Rates) -> str:
    if row["state"] == "not served":
        return "dim"
    if row["state"] != "ready":
        return "red"
    return "yellow" if row.get("store_reachable") == 0 else ""


def _state(row: Rates) -> str:
    return "no store" if row["state"] == "ready" and row.get("store_reachable") == 0 else str(row["state"])


def table(rows: Sequence[Rates], width: int) -> Table:
    """One row per volume, for a terminal of that many columns. From WIDE_COLUMNS on nothing shares a column."""
    wide = width >= WIDE_COLUMNS
    currencies = {row.get("currency") for row in rows} - {None}
    cost = f"{currencies.pop()}/mo" if len(currencies) == 1 else "COST/mo"
    shown = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    # The one column that gives way: rich takes width from those that may wrap first, and a name has nowhere to.
    shown.add_column("VOLUME", overflow="ellipsis", min_width=6)
    shown.add_column("STATE", no_wrap=True)
    headings = (
        ["READ/s", "WRITE/s", "R MiB/s", "W MiB/s", "p50 ms", "p99 ms", "HIT", "RPO s", "RPO B", "JOURNAL", "REQ/s"]
        if wide
        else ["IOPS\nr/w", "MiB/s\nr/w", "ms\np50/p99", "\nHIT", "RPO\ns/B", "\nJRNL", "\nREQ/s"]
    )
    for heading in [*headings, cost if wide else f"\n{cost}"]:
        shown.add_column(heading, justify="right", no_wrap=True)
    if not wide:
        shown.columns[0].header, shown.columns[1].header = "\nVOLUME", "\nSTATE"
    for row in rows:
        operations = compact(row.get("reads_per_second")), compact(row.get("writes_per_second"))
        bytes_ = [compact(_scaled(row, f"{kind}_bytes_per_second", 1 / MIB)) for kind in ("read", "write")]
        times = _milliseconds(row, "p50_seconds"), _milliseconds(row, "p99_seconds")
        rpo = compact(row.get("rpo_seconds")), compact(row.get("rpo_bytes"), 1024.0)
        pairs = [operations, bytes_, times]
        cells = [cell for pair in pairs for cell in pair] if wide else [_pair(*pair) for pair in pairs]
        cells.append(_percent(row, "hit_share"))
        cells += rpo if wide else [_pair(*rpo)]
        cells += [_percent(row, "journal_fill"), compact(row.get("requests_per_second"))]
        cells.append(_cost(row, currency=len(currencies) > 1))
        shown.add_row(clean(str(row["name"])), _state(row), *cells, style=_style(row))
    return shown


def plain_line(moment: float, row: Rates) -> str:
    """One volume and look as `key=value`, in units that scripts can use; without what is not known."""
    told = [f"time={moment:.0f}", f"volume={row['name']}", f"state={str(row['state']).replace(' ', '-')}"]
    for key, value in row.items():
        if isinstance(value, int | float):
            told.append(f"{key}={value:.6g}")
    if row.get("currency"):
        told.append(f"currency={row['currency']}")
    return " ".join(told)
