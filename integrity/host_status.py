"""What `bucketworks status` is told of the ledgers: what this host recorded and verified, and what its service says.

One rule: local files and the service of this host are asked, never the ledger's store. A ledger of the configuration of which
this host keeps nothing is recorded elsewhere."""

import fcntl
import http.client
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from integrity.errors import LedgerError
from integrity.record import unix_of
from integrity.reports.local import slots_of
from integrity.verification.pins import load_pins
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_duration, shown_size
from s3core.settings import Config, LedgerSettings
from s3core.status import Fact, Item
from s3core.status_collector import Look, readable_directory

LOCAL_WARNING_BYTES = 1_000_000_000
"""As the alert on what is not published has it (deploy/prometheus-alerts.yml)."""
ANSWER_BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class SlotSeen:
    """`open`: something may be left to publish; `taken`: a process has it now. `size_bytes` is that of its local log."""

    writer: str
    open: bool
    taken: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is of a ledger on this host: its slots; when something was verified last, how large the ledger's own log was
    then; the answer of its service, None where none is to be asked, and why that did not come."""

    slots: tuple[SlotSeen, ...] = ()
    verified_at: float = 0.0
    verified_size: int = 0
    service: Mapping[str, Any] | None = None
    silent: str = ""
    problems: tuple[str, ...] = field(default=())


def report(config: Config) -> Iterable[Look]:
    """One for each `[ledger.NAME]`."""
    patience_s = config.status.deadline_s
    return [
        Look("ledger", name, partial(look_at, name, config.ledger(name), patience_s)) for name in sorted(config.ledgers)
    ]


def look_at(name: str, settings: LedgerSettings, patience_s: float) -> Item:
    """Read what is here, and ask the service where it listens. PermissionError where this user may not read."""
    folder = Path(settings.state_dir)
    if not readable_directory(folder):
        return Item("ledger", name, "ok", "not recorded on this host", facts={"url": settings.url})
    problems: list[str] = []
    verified_at, size = 0.0, 0
    if settings.vkey and (folder / "pins.json").exists():
        try:
            pins = load_pins(folder / "pins.json", settings.origin, settings.vkey)
            verified_at = unix_of(pins.at) if pins.at else 0.0
            own = pins.logs.get(settings.origin)
            size = own.size if own is not None else 0
        except (LedgerError, ValueError) as error:
            problems.append(str(error))
    slots = tuple(_slot(folder / "slots" / writer) for writer in slots_of(folder / "slots"))
    service, silent = None, ""
    if settings.listen and (folder / "ledger.key").exists():
        try:
            service = _ask(settings.listen, patience_s)
        except (OSError, ValueError, http.client.HTTPException) as error:
            silent = f"s3integrity serve does not answer at {settings.listen}: {error}"
    return judge(name, settings, Seen(slots, verified_at, size, service, silent, tuple(problems)), time.time())


def _slot(folder: Path) -> SlotSeen:
    size = sum(path.stat().st_size for path in folder.glob("wal/*.wal"))
    return SlotSeen(folder.name, (folder / "open").exists(), _is_taken(folder / "lock"), size)


def _is_taken(lock: Path) -> bool:
    """As `integrity.slots.is_taken`, and it makes nothing: a lock that is not there was never held."""
    try:
        handle = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _ask(listen: str, patience_s: float) -> Mapping[str, Any]:
    host, _, port = listen.rpartition(":")
    bare = host.strip("[]")
    bare = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bare, bare)
    connection = http.client.HTTPConnection(bare, int(port), timeout=patience_s)
    try:
        connection.request("GET", "/healthz")
        told = json.loads(connection.getresponse().read(ANSWER_BYTES_MAX))
    finally:
        connection.close()
    if not isinstance(told, dict):
        raise ValueError("its answer is no JSON object")
    return told


def judge(name: str, settings: LedgerSettings, seen: Seen, now: float) -> Item:
    """What that means. Pure."""
    size = sum(one.size_bytes for one in seen.slots)
    left = [one.writer for one in seen.slots if one.open and not one.taken]
    taken = sum(one.taken for one in seen.slots)
    facts: dict[str, Fact] = {
        "url": settings.url,
        "slots": len(seen.slots),
        "slots_in_use": taken,
        "slots_left": len(left),
        "local_bytes": size,
        "verified_at": seen.verified_at or None,
        "verified_size": seen.verified_size,
    }
    parts = (
        [f"{taken} of {len(seen.slots)} slots in use, {shown_size(size)} here"] if seen.slots else ["not recorded here"]
    )
    ago = shown_duration(max(0.0, round(now - seen.verified_at)))
    parts.append(f"verified {ago} ago" if seen.verified_at else "never verified here")
    if seen.service is not None:
        sealed, unread = seen.service.get("sealed"), seen.service.get("unread")
        facts |= {
            "sealed_at": sealed if isinstance(sealed, int | float) else None,
            "healthy": bool(seen.service.get("healthy")),
        }
        facts["unread_writers"] = len(unread) if isinstance(unread, dict) else 0
        if isinstance(sealed, int | float):
            parts.append(f"sealed {shown_duration(max(0.0, round(now - sealed)))} ago")
    summary = ", ".join(parts)
    if seen.service is not None and not seen.service.get("healthy"):
        why = str(seen.service.get("why", ""))
        altered = "does not hold" in why or "contradicts" in why
        page, code = ("tampered", ExitCode.TAMPERED) if altered else ("ledger-stale", ExitCode.UNAVAILABLE)
        return Item("ledger", name, "critical", summary, why, f"runbook/{page}.md", code, facts)
    if seen.problems:
        reason = "; ".join(seen.problems)
        return Item("ledger", name, "critical", summary, reason, "runbook/ledger-slots.md", ExitCode.LOCAL, facts)
    if seen.silent:
        return Item("ledger", name, "critical", summary, seen.silent, "runbook/ledger-stale.md", facts=facts)
    if left:
        reason = (
            f"{', '.join(left)}: left by a crash or while the store was away, and records there wait to be published"
        )
        return Item("ledger", name, "warning", summary, reason, "runbook/ledger-stale.md", facts=facts)
    if size > LOCAL_WARNING_BYTES:
        reason = f"{shown_size(size)} of records wait here: the store takes less than is recorded"
        return Item("ledger", name, "warning", summary, reason, "runbook/ledger-stale.md", facts=facts)
    if seen.slots and taken == len(seen.slots):
        reason = "all slots are in use: a further process cannot record, and is refused"
        return Item("ledger", name, "warning", summary, reason, "runbook/ledger-slots.md", facts=facts)
    if facts.get("unread_writers"):
        reason = f"the logs of {facts['unread_writers']} writers could not be read"
        return Item("ledger", name, "warning", summary, reason, "runbook/ledger-stale.md", facts=facts)
    return Item("ledger", name, "ok", summary, facts=facts)
