"""What a volume did between two looks at its status: rates, latencies, and what a month of it would cost.

One rule: only what both statuses tell, by the daemon's own clock. A daemon that was started anew in between has no past.
"""

from collections.abc import Sequence

from blockdev.latency import KINDS, quantile
from blockdev.metrics import REQUESTS, Status, figures, prices_in

MONTH_S = 30 * 24 * 3600.0

Rates = dict[str, float | str | None]


def rates(before: Status | None, after: Status) -> Rates:
    """Figures of the interval by name, each with its unit in it; None for what is not known, as nothing is before a second
    look. State, RPO, journal and sessions are those of `after`."""
    now = figures(after)
    known: Rates = {"name": after["name"], "state": after["state"], "failure": after.get("failure", "")}
    known["sessions"] = now["status.sessions"]
    for name in ("rpo_bytes", "rpo_seconds", "journal_fill", "lease_seconds_left"):
        known[name] = now.get(f"front.{name}")
    known["store_reachable"] = now.get("worker.store_reachable")
    known["currency"] = prices_in(after).currency if any(_prices(after)) else None
    return known | _changes(before, after, now)


def _changes(before: Status | None, after: Status, now: dict[str, float]) -> Rates:
    then = figures(before) if before is not None and before.get("pid") == after.get("pid") else {}
    seconds = now.get("status.uptime_seconds", 0.0) - then.get("status.uptime_seconds", 0.0)
    if not then or seconds <= 0:
        then, seconds = {}, 0.0

    def change(*sources: str) -> float | None:
        if not all(source in now and source in then for source in sources):
            return None
        return sum(now[source] - then[source] for source in sources)

    def rate(*sources: str) -> float | None:
        much = change(*sources)
        return None if much is None else max(0.0, much) / seconds

    found: Rates = {
        "interval_seconds": seconds or None,
        "reads_per_second": rate("front.reads"),
        "writes_per_second": rate("front.writes"),
        "flushes_per_second": rate("front.flushes"),
        "read_bytes_per_second": rate("front.read_bytes"),
        "write_bytes_per_second": rate("front.write_bytes"),
        "requests_per_second": rate(*(f"store.{kind}" for kind in REQUESTS), "store.retries"),
        "up_bytes_per_second": rate("store.bytes_up"),
        "down_bytes_per_second": rate("store.bytes_down"),
    }
    hits, reads = change("front.read_hits"), change("front.reads")
    found["hit_share"] = hits / reads if hits is not None and reads else None
    spent = rate(*(f"cost.{kind}" for kind in ("put", "get", "egress")))
    found["request_cost_per_month"] = None if spent is None or not any(_prices(after)) else spent * MONTH_S
    past = before if then else None
    for kind in KINDS:
        found |= _quantiles(f"{kind}_", _counts(past, after, (kind,)))
    return found | _quantiles("", _counts(past, after, ("read", "write")))


def _prices(status: Status) -> Sequence[float]:
    prices = prices_in(status)
    return prices.per_1000_put, prices.per_1000_get, prices.per_gib_egress


def _quantiles(prefix: str, counts: Sequence[float]) -> Rates:
    return {f"{prefix}p50_seconds": quantile(counts, 0.5), f"{prefix}p99_seconds": quantile(counts, 0.99)}


def _counts(before: Status | None, after: Status, kinds: Sequence[str]) -> list[float]:
    """Commands of these kinds in between, by bucket; empty without a past."""
    if before is None:
        return []
    changed: list[float] = []
    for kind in kinds:
        new, old = (status.get("latency", {}).get(kind, {"counts": []})["counts"] for status in (after, before))
        changed += [0.0] * (len(new) - len(changed))
        for n, count in enumerate(new):
            changed[n] += count - (old[n] if n < len(old) else 0)
    return changed
