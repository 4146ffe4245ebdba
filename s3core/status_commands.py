"""`bucketworks status` and `bucketworks spending`: one look at everything on this host, or on all hosts that publish."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from s3core.console import Column, JsonOption, clean, size_column, write_json, write_line, write_note, write_records
from s3core.endpoint_commands import ConfigOption, usage
from s3core.exit_codes import ExitCode
from s3core.quantities import parse_duration, shown_duration
from s3core.settings import Config, load_config
from s3core.spending import Account, is_month, month_of
from s3core.status import HEALTHS, HostStatus, Item, Money, Published, exit_code, in_order, unknown, worst
from s3core.status_collector import Collector, Look, installed_providers
from s3core.status_publishing import opened_place, place_of, publish, read_all
from s3core.status_report import NOT_KNOWN, host_status, own_status, spent_in

INTERVAL_S_MIN = 0.5
_CLEAR = "\x1b[H\x1b[2J"
_MARKS = {"ok": "ok", "warning": "WARNING", "unknown": "unknown", "critical": "CRITICAL"}


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def status(
    everywhere: Annotated[bool, typer.Option("--all", help="All hosts that publish, each with its age.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", parser=_duration, metavar="TIME", help="Time between two looks of --watch.")
    ] = 5.0,
    publishing: Annotated[
        bool, typer.Option("--publish", help="Put the status where `[status] publish` says, and print where that is.")
    ] = False,
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how everything is: endpoints, volumes, mirrors, ledgers, storages, the console, and the money of this month.

    Ends with 0 where all is well, 1 with warnings, 11 where something could not be told; else as the most urgent
    critical thing would. Never waits longer than `[status] deadline_s` for what does not answer."""
    if publishing and (everywhere or watch):
        usage("--publish goes with neither --all nor --watch")
    if interval < INTERVAL_S_MIN:
        usage(f"--interval: at least {INTERVAL_S_MIN} s")
    config = load_config(config_path)
    collector = Collector(installed_providers())
    if publishing:
        _publish(config, collector, as_json)
        return
    look = _look_everywhere if everywhere else _look_here
    code = ExitCode.OK
    # Ctrl-C is how one leaves a live view, and no failure.
    with contextlib.suppress(KeyboardInterrupt) if watch else contextlib.nullcontext():
        while True:
            document, show, code = look(config, collector)
            if as_json and watch:
                sys.stdout.write(json.dumps(document) + "\n")
            elif as_json:
                write_json(document)
            else:
                if watch and sys.stdout.isatty():
                    sys.stdout.write(_CLEAR)
                show()
            sys.stdout.flush()
            if not watch:
                break
            time.sleep(interval)
    raise typer.Exit(code)


def spending(
    month: Annotated[
        str, typer.Option("--month", metavar="YYYY-MM", help="Another month, in UTC.", show_default=False)
    ] = "",
    config_path: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what this host asked of each endpoint in a month, and what that cost by the endpoint's prices."""
    if month and not is_month(month):
        usage(f"--month: {month!r} is no month; write it as 2026-11")
    chosen = month or month_of(time.time())
    accounts, problems = spent_in(load_config(config_path), chosen)
    if as_json:
        records = [one.as_record() for one in accounts]
        write_json({"month": chosen, "endpoints": records, "unknown": problems, "note": NOT_KNOWN})
    else:
        write_line(f"Requests of this host in {chosen} (UTC)")
        write_line()
        _show_accounts(accounts)
        for problem in problems:
            write_note(f"not known: {problem}")
        write_line()
        write_line(NOT_KNOWN[:1].upper() + NOT_KNOWN[1:] + ".")
    if problems:
        raise typer.Exit(ExitCode.PARTIAL)


def _publish(config: Config, collector: Collector, as_json: bool) -> None:
    told = host_status(config, collector)
    with opened_place(config) as store:
        key = publish(store, told)
        where = f"{store.url.rstrip('/')}/{key}"
    if as_json:
        write_json({"published": where, "host": told.host, "health": told.health})
    else:
        write_line(f"{where}: {told.health}")


# --- looks -----------------------------------------------------------------------------------------------------------

Looked = tuple[dict[str, Any], Callable[[], None], ExitCode]


def _look_here(config: Config, collector: Collector) -> Looked:
    told = own_status(config, collector)
    return host_record(told), lambda: _show_host(told), told.exit_code


def _look_everywhere(config: Config, collector: Collector) -> Looked:
    hosts, problem = hosts_within(config, collector)
    health = worst([one.health for one in hosts] + (["unknown"] if problem else []))
    items = [item for one in hosts if one.status is not None and not one.stale for item in one.status.items]
    items += [unknown("host", one.host, one.problem) for one in hosts if one.health == "unknown"]
    items += [problem] if problem else []
    document = {
        "health": health,
        "problem": problem.reason if problem else "",
        "hosts": [published_record(one) for one in hosts],
    }
    return document, lambda: _show_hosts(hosts, problem), exit_code(items)


def hosts_within(config: Config, collector: Collector) -> tuple[list[Published], Item | None]:
    """What all hosts published, within the deadline; what stood in the way in place of it. ConfigError where nothing is
    published."""
    place_of(config)
    found: list[Published] = []

    def ask() -> Item:
        with opened_place(config) as store:
            found.extend(read_all(store, now=time.time(), stale_s=config.status.stale_s))
        return Item("status", "published", "ok")

    item = collector.ask(Look("status", "published", ask), config.status.deadline_s)
    return (list(found), None) if item.health == "ok" else ([], item)


def host_record(told: HostStatus) -> dict[str, Any]:
    """What `--json` tells of one host."""
    return {
        "host": told.host,
        "at": told.at,
        "program": told.program,
        "health": told.health,
        "items": [one.as_record() for one in told.items],
        "spending": {"month": told.month, "endpoints": [one.as_record() for one in told.money], "note": NOT_KNOWN},
    }


def published_record(one: Published) -> dict[str, Any]:
    """The same of one that was published."""
    return {
        "host": one.host,
        "health": one.health,
        "age_seconds": round(one.age_s, 1) if one.status is not None else None,
        "stale": one.stale,
        "problem": one.problem,
        "status": host_record(one.status) if one.status is not None else None,
    }


# --- how it looks ----------------------------------------------------------------------------------------------------


def _show_host(told: HostStatus) -> None:
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(told.at))
    write_line(f"{told.host}: {told.health}   {moment} UTC, bucketworks {told.program}")
    write_line()
    _show_items(told.items)
    if told.money:
        write_line()
        _show_money(told.month, told.money)


def _show_items(items: Sequence[Item]) -> None:
    rows = [
        {"health": _MARKS[one.health], "kind": one.kind, "name": one.name, "what": _what(one)}
        for one in sorted(items, key=lambda one: -HEALTHS.index(one.health))
    ]
    if not rows:
        write_line("Nothing is configured on this host, and nothing has run here.")
        return
    columns = (
        Column("health", "HEALTH"),
        Column("kind", "KIND"),
        Column("name", "NAME"),
        Column("what", "WHAT IS SEEN"),
    )
    write_records(rows, columns, as_json=False)


def _what(one: Item) -> str:
    said = [part for part in (one.summary, one.reason) if part]
    text = "; ".join(said)
    return f"{text}  -> docs/{one.runbook}" if one.runbook and one.health != "ok" else text


def _show_money(month: str, money: Sequence[Money]) -> None:
    write_line(f"Money in {month} (UTC), this host's requests")
    rows = [
        {
            "endpoint": one.endpoint,
            "requests": f"{one.requests:,}",
            "up": one.up_bytes,
            "down": one.down_bytes,
            "cost": _price(one.total, one.currency),
            "stored": one.stored_bytes,
            "storage": _price(one.storage_per_month, one.currency),
        }
        for one in money
    ]
    columns = (
        Column("endpoint", "ENDPOINT"),
        Column("requests", "REQUESTS", justify="right"),
        size_column("up", "SENT"),
        size_column("down", "FETCHED"),
        Column("cost", "COST", justify="right"),
        size_column("stored", "KNOWN STORED"),
        Column("storage", "A MONTH", justify="right"),
    )
    write_records(rows, columns, as_json=False)
    write_line(NOT_KNOWN[:1].upper() + NOT_KNOWN[1:] + ".")


def _price(amount: float | None, currency: str | None) -> str:
    return "not known" if amount is None or currency is None else f"{amount:,.2f} {currency}"


def _show_hosts(hosts: Sequence[Published], problem: Item | None) -> None:
    if problem is not None:
        write_line(f"what hosts published cannot be told: {problem.reason}")
        return
    rows = [
        {
            "health": _MARKS[one.health],
            "host": one.host,
            "age": "" if one.status is None else shown_duration(round(one.age_s)) + (" (STALE)" if one.stale else ""),
            "what": one.problem or _in_short(one.status),
        }
        for one in sorted(hosts, key=lambda one: (-HEALTHS.index(one.health), in_order(one.host)))
    ]
    columns = (Column("health", "HEALTH"), Column("host", "HOST"), Column("age", "AGE"), Column("what", "WHAT IS SEEN"))
    if not rows:
        write_line("No host has published its status yet: bucketworks-status.timer on each of them does.")
        return
    write_records(rows, columns, as_json=False)
    for one in hosts:
        ill = [item for item in one.status.items if item.health != "ok"] if one.status is not None else []
        if ill:
            write_line()
            write_line(clean(f"{one.host}:"))
            _show_items(ill)


def _in_short(told: HostStatus | None) -> str:
    if told is None:
        return ""
    counts: dict[str, int] = {}
    for one in told.items:
        counts[one.kind] = counts.get(one.kind, 0) + 1
    return ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in counts.items())


def _show_accounts(accounts: Sequence[Account]) -> None:
    rows = []
    for one in accounts:
        made = one.estimate
        rows.append(
            {
                "endpoint": one.endpoint,
                "put": f"{one.spent.put:,}",
                "list": f"{one.spent.list:,}",
                "get": f"{one.spent.get:,}",
                "delete": f"{one.spent.delete:,}",
                "up": one.spent.up,
                "down": one.spent.down,
                "errors": f"{one.spent.errors:,}",
                "cost": _price(made.total if made.known else None, made.currency),
            }
        )
    columns = (
        Column("endpoint", "ENDPOINT"),
        *(Column(name, name.upper(), justify="right") for name in ("put", "list", "get", "delete")),
        size_column("up", "SENT"),
        size_column("down", "FETCHED"),
        Column("errors", "ERRORS", justify="right"),
        Column("cost", "COST", justify="right"),
    )
    if not rows:
        write_line("Nothing was counted.")
        return
    write_records(rows, columns, as_json=False)
