"""What `bucketworks status` is told of the volumes on this host: those of the configuration, and those with state here.

One rule: only the control socket and the state directory are asked, never a store. A volume that nobody serves here is well:
which host serves it is for people to decide. One whose daemon left its socket behind has crashed, and that is told."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from blockdev.control import NAME as CONTROL
from blockdev.control import ControlClient, NotServed
from blockdev.errors import BlockError
from blockdev.metrics import figures
from blockdev.place import resolve, state_directories, state_root
from s3core.build import parse_store_url
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration, shown_size
from s3core.settings import Config, VolumeSettings
from s3core.status import Fact, Health, Item, unknown
from s3core.status_collector import Look, readable_directory

RPO_WARNING_S = 60.0
"""As the alert on commits that are behind has it (deploy/prometheus-alerts.yml)."""
FILL_WARNING = 0.5
"""From here on writes are slowed."""
FILL_CRITICAL = 0.9


def report(config: Config) -> Iterable[Look]:
    """One for each volume; those without state on this host and without settings are not known here."""
    root = state_root(config)
    here = state_directories(root) if readable_directory(root) else {}
    places = here | {name: resolve(config, name).state_dir for name in config.volumes}
    return [
        Look("volume", name, partial(look_at, name, path, config.volumes.get(name), config.status.deadline_s))
        for name, path in sorted(places.items())
    ]


def look_at(name: str, state_dir: Path, settings: VolumeSettings | None, patience_s: float) -> Item:
    """Ask whoever serves it."""
    try:
        with ControlClient(state_dir, timeout_s=patience_s) as client:
            return judge(name, client.ask("status"), settings)
    except NotServed:
        return _not_served(name, state_dir)
    except BlockError as error:
        return unknown("volume", name, str(error), "runbook/README.md")


def _not_served(name: str, state_dir: Path) -> Item:
    facts: dict[str, Fact] = {"served": False, "state_dir": str(state_dir)}
    try:
        left = (state_dir / CONTROL).exists()
    except PermissionError as error:
        return unknown("volume", name, f"{error.filename}: not yours to look at; run it as the user who serves it")
    if not left:
        return Item("volume", name, "ok", "not served on this host", facts=facts)
    reason = (
        "the daemon that served it ended without an orderly stop: what it acknowledged last may be in its journal alone"
    )
    return Item(
        "volume",
        name,
        "critical",
        "not served on this host",
        reason,
        "runbook/state-directory.md",
        ExitCode.LOCAL,
        facts,
    )


def judge(name: str, status: Mapping[str, Any], settings: VolumeSettings | None) -> Item:
    """What a daemon's answer means. Pure."""
    found = figures(status)
    rpo_s, rpo_bytes = found.get("front.rpo_seconds"), found.get("front.rpo_bytes")
    fill, sessions = found.get("front.journal_fill"), len(status.get("sessions", []))
    facts: dict[str, Fact] = {
        "served": True,
        "state": str(status.get("state", "")),
        "url": str(status.get("url", "")),
        "door": str(status.get("door", "")),
        "sessions": sessions,
        "flush": str(status.get("flush", "")),
        "uptime_seconds": round(float(status.get("uptime_seconds", 0.0)), 1),
    }
    for fact, figure in (
        ("rpo_seconds", "front.rpo_seconds"),
        ("rpo_bytes", "front.rpo_bytes"),
        ("journal_fill_ratio", "front.journal_fill"),
        ("store_reachable", "worker.store_reachable"),
        ("lease_seconds_left", "front.lease_seconds_left"),
        ("size_bytes", "status.size_bytes"),
        ("allocated_bytes", "status.allocated_bytes"),
    ):
        if figure in found:
            facts[fact] = round(found[figure], 3) if fact.endswith(("seconds", "left", "ratio")) else int(found[figure])
    place = parse_store_url(str(status["url"])) if str(status.get("url", "")).startswith("s3://") else None
    if place is not None and "allocated_bytes" in facts:
        # Whole extents before compression, without snapshots: what is known without asking the store.
        facts |= {"endpoint": place.name, "stored_bytes": facts["allocated_bytes"]}
    parts = [f"{facts['state']}, {facts['door']}", f"{sessions} {'session' if sessions == 1 else 'sessions'}"]
    if rpo_s is not None and rpo_bytes is not None:
        parts.append(f"RPO {shown_duration(round(rpo_s, 1))} ({shown_size(int(rpo_bytes))})")
    if fill is not None:
        parts.append(f"journal {100 * fill:.0f} %")
    health, reason, page, code = _health(status, found, settings)
    return Item("volume", name, health, ", ".join(parts), reason, page, code, facts)


def _health(
    status: Mapping[str, Any], found: Mapping[str, float], settings: VolumeSettings | None
) -> tuple[Health, str, str, ExitCode]:
    failure, state = str(status.get("failure", "")), status.get("state")
    fill, rpo_s = found.get("front.journal_fill", 0.0), found.get("front.rpo_seconds", 0.0)
    if failure or state == "stopped":
        page = "runbook/fenced-out.md" if "taken over" in failure else "runbook/README.md"
        return "critical", failure or "it has stopped", page, ExitCode.REFUSED
    if found.get("worker.corruptions", 0.0):
        return "critical", "objects or a journal that do not hold were met", "runbook/corrupt.md", ExitCode.CORRUPT
    if found.get("front.lease_seconds_left", 1.0) <= 0:
        reason = "its lease is out: it takes no writes until the store answers"
        return "critical", reason, "runbook/store-unreachable.md", ExitCode.UNAVAILABLE
    if fill >= FILL_CRITICAL:
        return (
            "critical",
            "the journal is full: writes are told BUSY",
            "runbook/journal-filling.md",
            ExitCode.UNAVAILABLE,
        )
    if found.get("worker.store_reachable", 1.0) == 0:
        reason = "the store does not answer; writes wait in the journal"
        return "critical", reason, "runbook/store-unreachable.md", ExitCode.UNAVAILABLE
    if fill >= FILL_WARNING:
        return "warning", "the journal fills, and writes are slowed", "runbook/journal-filling.md", ExitCode.FINDING
    late_s = max(RPO_WARNING_S, 4 * settings.commit_interval_s if settings is not None else 0.0)
    if rpo_s > late_s:
        reason = f"the bucket lacks what was written {shown_duration(round(rpo_s))} ago"
        return "warning", reason, "runbook/journal-filling.md", ExitCode.FINDING
    quota, used = found.get("status.quota_bytes", 0.0), found.get("status.allocated_bytes", 0.0)
    if quota and used >= quota * (settings.quota_warning if settings is not None else 0.8):
        reason = f"{shown_size(int(used))} of its quota of {shown_size(int(quota))} are used"
        return "warning", reason, "runbook/quota.md", ExitCode.FINDING
    if found.get("ledger.lost", 0.0):
        return "warning", "its ledger lost events", "runbook/ledger-stale.md", ExitCode.FINDING
    if state == "attaching":
        return "warning", "it is still attaching", "runbook/attach-refused.md", ExitCode.FINDING
    return "ok", "", "", ExitCode.OK
