"""What `bucketworks status` is told of this node's storages, and what they counted of their requests.

One rule: the core of this node is asked over its socket, which asks no store; what was spent is read off the storages' own
counters, so that `pve-s3 usage`, the metrics and `bucketworks spending` tell one number."""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from plugin.configuration import ROOT_VARIABLE, Storage, read_storages
from plugin.core_client import ask
from plugin.counters import NAME as COUNTERS
from plugin.counters import Count, Counters
from plugin.errors import NotServed, PluginError
from s3core.exit_codes import ExitCode
from s3core.quantities import shown_size
from s3core.settings import Config, ConfigError, settings_to_endpoint
from s3core.spending import CHARGES, Account, Charge, Spent
from s3core.status import Fact, Item
from s3core.status_collector import Look

PAGE = "runbook/pve-storage.md"
BUDGET_WARNING = 0.9
"""As the alert on budgets has it (deploy/prometheus-alerts.yml)."""
FULL_WARNING = 0.9


def report(config: Config) -> Iterable[Look]:
    """One for each storage of storage.cfg; none where this is no Proxmox VE node."""
    found = read_storages(_root())
    return [Look("storage", name, partial(look_at, name, one, config)) for name, one in sorted(found.items())]


def accounts(config: Config, month: str) -> Iterable[Account]:
    """What the storages of this node spent in a month, below their endpoints' names."""
    for storage in read_storages(_root()).values():
        path = Path(config.pve.state_dir) / storage.id / COUNTERS if isinstance(storage, Storage) else None
        if not isinstance(storage, Storage) or path is None or not path.exists():
            continue
        name = storage.endpoint_name
        prices = settings_to_endpoint(name, storage.join(config).endpoints[name], path=config.path).prices
        yield Account(name, spent_of(Counters(path).month(month)), prices)


def spent_of(counts: Mapping[str, Count]) -> Spent:
    """Counters by method as sums by charge: of each attempt, also of those that were turned away."""
    sums: dict[Charge, int] = {"put": 0, "list": 0, "get": 0, "delete": 0}
    charges: Mapping[str, Charge] = {str(operation): charge for operation, charge in CHARGES.items()}
    for method, count in counts.items():
        sums[charges.get(method, "put")] += count.requests
    up, down = (sum(getattr(one, way) for one in counts.values()) for way in ("up", "down"))
    return Spent(sums["put"], sums["list"], sums["get"], sums["delete"], up=up, down=down)


def look_at(name: str, storage: Storage | ConfigError, config: Config) -> Item:
    """Ask the core."""
    if isinstance(storage, ConfigError):
        return Item("storage", name, "critical", "", str(storage), PAGE, ExitCode.CONFIGURATION)
    if storage.disabled:
        return Item("storage", name, "ok", "disabled")
    node = config.pve.node or os.uname().nodename.partition(".")[0]
    if storage.nodes and node not in storage.nodes:
        return Item("storage", name, "ok", "not for this node")
    run_dir = Path(config.pve.run_dir)
    try:
        status = ask(run_dir, "status", name)
    except NotServed as error:
        return Item("storage", name, "critical", "", str(error), PAGE, ExitCode.UNAVAILABLE)
    try:
        usage: Mapping[str, Any] = ask(run_dir, "usage", name) if storage.type == "bucketfiles" else {}
    except PluginError as error:
        usage = {"problem": str(error)}
    return judge(storage, status, usage)


def judge(storage: Storage, status: Mapping[str, Any], usage: Mapping[str, Any]) -> Item:
    """What the core's answers mean. Pure."""
    used = int(status["used"])
    facts: dict[str, Fact] = {
        "type": storage.type,
        "active": bool(status["active"]),
        "used_bytes": used,
        "quota_bytes": storage.quota_bytes,
        "checked_at": float(status["checked_at"]),
        "endpoint": storage.endpoint_name,
        "stored_bytes": used,
    }
    parts = ["active" if status["active"] else "not active", f"{shown_size(used)} used"]
    if storage.quota_bytes:
        parts[1] += f" of {shown_size(storage.quota_bytes)}"
    shares = {str(limit): float(share) for limit, share in usage.get("budget", {}).items()}
    for limit, share in shares.items():
        facts[f"budget_{limit.replace('-', '_')}_ratio"] = round(share, 4)
        parts.append(f"{100 * share:.0f} % of its budget of {limit}")
    summary = ", ".join(parts)
    if not status["active"]:
        return Item(
            "storage", storage.id, "critical", summary, str(status["reason"]), PAGE, ExitCode.UNAVAILABLE, facts
        )
    if storage.quota_bytes and used >= FULL_WARNING * storage.quota_bytes:
        return Item("storage", storage.id, "warning", summary, "its quota is nearly used", PAGE, facts=facts)
    if any(share >= BUDGET_WARNING for share in shares.values()):
        return Item("storage", storage.id, "warning", summary, "this month's budget is nearly used", PAGE, facts=facts)
    if "problem" in usage:
        return Item("storage", storage.id, "warning", summary, str(usage["problem"]), PAGE, facts=facts)
    return Item("storage", storage.id, "ok", summary, facts=facts)


def _root() -> Path:
    return Path(os.environ.get(ROOT_VARIABLE) or "/")
