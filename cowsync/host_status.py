"""What `bucketworks status` is told of the mirrors that run on this host.

One rule: the catalogue of runs is read, and nothing else; how it is judged is what `/healthz` of `cowsync watch` says
(`cowsync.watch_health`). A mirror of the configuration without a folder here runs elsewhere, or not yet.
"""

import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from cowsync.catalogue import Catalogue, Phase, Run
from cowsync.errors import StateDamaged
from cowsync.watch_health import LOOK_BACK, Past, drifted_lines, failed_lines, past_of, why_not
from s3core.build import parse_store_url
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration
from s3core.settings import Config, MirrorSettings
from s3core.status import Fact, Item
from s3core.status_collector import Look, readable_directory

PAGE = "runbook/mirror.md"


def report(config: Config) -> Iterable[Look]:
    """One for each `[mirror.NAME]`."""
    return [Look("mirror", name, partial(look_at, name, config.mirror(name))) for name in sorted(config.mirrors)]


def look_at(name: str, settings: MirrorSettings) -> Item:
    """Read the catalogue. A folder that may not be read raises PermissionError."""
    path = Path(settings.state_dir) / "catalogue.sqlite"
    if not readable_directory(path.parent) or not path.exists():
        return Item("mirror", name, "ok", "has not run on this host", facts={"target": settings.target})
    try:
        runs = Catalogue(path).recent(LOOK_BACK)
    except StateDamaged as error:
        return Item("mirror", name, "critical", "", str(error), PAGE, ExitCode.CORRUPT)
    return judge(name, settings, runs, time.time())


def judge(name: str, settings: MirrorSettings, runs: Sequence[Run], now: float) -> Item:
    """What the newest runs mean. Pure."""
    past = past_of(runs)
    facts = _facts(settings, past, now)
    last = runs[0] if runs else None
    if last is None:
        return Item("mirror", name, "ok", "has not run on this host", facts=facts)
    parts = [f"last run {last.phase}"]
    if last.ended:
        parts[0] += f" {shown_duration(max(0.0, round(now - last.ended)))} ago"
    if past.complete is not None:
        parts.append(f"lag {shown_duration(max(0.0, round(now - past.complete.started)))}")
    why = why_not(name, past, settings.every_s, now)
    lines = failed_lines(past.last) if past.last is not None else 0
    if lines:
        parts.append(f"{lines:,} failed lines")
    summary = ", ".join(parts)
    if past.held is not None:
        return Item("mirror", name, "critical", summary, "; ".join(why), PAGE, ExitCode.REFUSED, facts)
    if why and past.complete is None and last.phase in (Phase.SCANNING, Phase.APPLYING):
        return Item("mirror", name, "warning", summary, "its first run goes on", PAGE, facts=facts)
    if why:
        return Item("mirror", name, "critical", summary, "; ".join(why), PAGE, ExitCode.UNAVAILABLE, facts)
    if past.last is not None and (lines or past.last.phase is Phase.FAILED):
        reason = past.last.message or f"{lines:,} lines of the last run failed"
        return Item("mirror", name, "warning", summary, reason, PAGE, facts=facts)
    drifted = drifted_lines(past.applied) if past.applied is not None else 0
    if drifted:
        reason = f"{drifted:,} objects on the mirror are not what was put there, and were left alone"
        return Item("mirror", name, "warning", summary, reason, PAGE, facts=facts)
    return Item("mirror", name, "ok", summary, facts=facts)


def _facts(settings: MirrorSettings, past: Past, now: float) -> dict[str, Fact]:
    facts: dict[str, Fact] = {
        "source": settings.source,
        "target": settings.target,
        "held": past.held is not None,
        "every_seconds": settings.every_s,
    }
    if past.held is not None:
        facts["held_plan"] = past.held.plan
    if past.last is not None:
        facts |= {
            "last_phase": str(past.last.phase),
            "last_ended_at": past.last.ended,
            "failed_lines": failed_lines(past.last),
        }
    if past.complete is not None:
        facts |= {
            "last_complete_at": past.complete.ended,
            "lag_seconds": round(max(0.0, now - past.complete.started), 1),
        }
    if past.applied is not None:
        facts["drifted_lines"] = drifted_lines(past.applied)
    target = parse_store_url(settings.target)
    if past.complete is not None and past.listed is not None and target.scheme == "s3":
        amount = past.listed.facts.get("bytes")
        if isinstance(amount, int):
            # As the source was listed: the mirror holds at least that, and what the source has lost.
            facts |= {"endpoint": target.name, "stored_bytes": amount}
    return facts
