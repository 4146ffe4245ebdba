"""What Prometheus is told of the core and its storages: one table, from which the page and docs/metrics.md are made.

One rule: a scrape reads numbers that are there anyway: sums of the catalogue, counters, the cache's directory. It asks no
store, and nothing on the data path waits for it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from plugin.counters import costs, used_shares
from plugin.service.server import Server
from plugin.service.storages import Attached, Storages
from s3core.gauges import new_registry
from s3core.settings import ConfigError

Samples = Mapping[tuple[str, ...], float]


@dataclass(frozen=True, slots=True)
class Metric:
    """`bucketworks_pve_` and its `figure`. `labels` come after `storage`, which all but those of the core have."""

    figure: str
    kind: Literal["gauge", "counter"]
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    of_core: bool = False

    @property
    def name(self) -> str:
        return f"bucketworks_pve_{self.figure}" + ("_total" if self.kind == "counter" else "")


METRICS: Final[tuple[Metric, ...]] = (
    Metric(
        "calls",
        "counter",
        "calls",
        "Calls answered, by method and outcome (`ok`, or the error's code)",
        ("method", "outcome"),
        of_core=True,
    ),
    Metric("connections", "gauge", "calls", "Calls that are being answered", of_core=True),
    Metric("unusable", "gauge", "0 or 1", "1 for a storage whose configuration cannot be used"),
    Metric("active", "gauge", "0 or 1", "Whether Proxmox VE is told that the storage works"),
    Metric("mounted", "gauge", "0 or 1", "Whether a living process has it mounted; absent for disks"),
    Metric("answered_timestamp_seconds", "gauge", "seconds", "When the last probe ended, well or not, in Unix time"),
    Metric("well_timestamp_seconds", "gauge", "seconds", "When the store last answered well, in Unix time"),
    Metric(
        "listed_timestamp_seconds", "gauge", "seconds", "When the listing that the catalogue holds began, in Unix time"
    ),
    Metric(
        "newest_backup_timestamp_seconds",
        "gauge",
        "seconds",
        "When the newest backup came to the bucket, in Unix time; absent where there is none",
    ),
    Metric("refreshes", "counter", "listings", "Listings that came to their end, since the core's start"),
    Metric("refresh_failures", "counter", "listings", "Listings that did not"),
    Metric("refresh_duration_seconds", "gauge", "seconds", "How long the last listing took"),
    Metric("objects", "gauge", "objects", "Objects below the storage's prefix, sidecars and indexes too"),
    Metric("stored_bytes", "gauge", "bytes", "Their size in the bucket"),
    Metric("quota_bytes", "gauge", "bytes", "`bw-quota`; absent where there is none"),
    Metric("cache_files", "gauge", "files", "Local copies of ISO images, templates, snippets and imports"),
    Metric("cache_bytes", "gauge", "bytes", "Their size"),
    Metric("cache_bound_bytes", "gauge", "bytes", "What they may take"),
    Metric("calls_under_way", "gauge", "calls", "Calls that wait for the store", ("lane",)),
    Metric(
        "requests",
        "counter",
        "requests",
        "Requests of this node to the store, by all processes, each attempt",
        ("method",),
    ),
    Metric("bytes", "counter", "bytes", "Bytes of objects that they carried", ("method", "direction")),
    Metric(
        "month_budget_ratio",
        "gauge",
        "0 to 1 and beyond",
        "Share of a budget (`bw-budget-*`) used this month",
        ("limit",),
    ),
    Metric(
        "month_cost",
        "gauge",
        "money",
        "What this month's requests cost by the endpoint's prices",
        ("reason", "currency"),
    ),
)
"""One without a figure is left out."""


def core_samples(server: Server) -> dict[str, Samples]:
    return {
        "calls": {key: float(count) for key, count in list(server.calls.items())},
        "connections": {(): float(server.connections)},
    }


def storage_samples(attached: Attached, mounted: Callable[[Attached], bool | None]) -> dict[str, Samples]:
    """By figure, then by the values of its labels."""
    keeper, place = attached.keeper, attached.place
    status, health, usage = keeper.status(), keeper.health, keeper.usage
    samples: dict[str, Samples] = {
        "active": _one(status.active),
        "refreshes": _one(keeper.refreshes),
        "refresh_failures": _one(keeper.failures),
        "objects": _one(usage.objects),
        "stored_bytes": _one(usage.stored),
        "unusable": _one(0),
        "cache_bound_bytes": _one(place.cache.bytes_max),
        "calls_under_way": {("short",): float(attached.short.busy), ("fetch",): float(attached.fetches.busy)},
    }
    for figure, moment in (
        ("answered_timestamp_seconds", health.answered),
        ("well_timestamp_seconds", health.well),
        ("listed_timestamp_seconds", usage.listed_at),
        ("newest_backup_timestamp_seconds", keeper.newest_backup),
        ("refresh_duration_seconds", keeper.refresh_seconds),
        ("quota_bytes", attached.storage.quota_bytes),
    ):
        if moment:
            samples[figure] = _one(moment)
    there = mounted(attached)
    if there is not None:
        samples["mounted"] = _one(there)
    files = place.cache.files()
    samples["cache_files"], samples["cache_bytes"] = _one(len(files)), _one(sum(one.size for one in files))
    return samples | _counted(attached)


def _counted(attached: Attached) -> dict[str, Samples]:
    counters, prices = attached.place.counters, attached.place.prices
    try:
        ever, month = counters.ever(), counters.month()
    except OSError:
        return {}  # told in the log when it is flushed
    shares = used_shares(month, counters.budget)
    return {
        "requests": {(method,): float(one.requests) for method, one in ever.items()},
        "bytes": {
            (method, way): float(number)
            for method, one in ever.items()
            for way, number in (("up", one.up), ("down", one.down))
            if number
        },
        "month_budget_ratio": {(limit,): share for limit, share in shares.items()},
        "month_cost": {(reason, prices.currency): money for reason, money in costs(month, prices).items()},
    }


def _one(value: float) -> Samples:
    return {(): float(value)}


class PveCollector(Collector):
    """Everything in METRICS, as it is when it is asked for."""

    def __init__(
        self, server: Server, storages: Storages, mounted: Callable[[Attached], bool | None] = lambda attached: None
    ) -> None:
        self._server = server
        self._storages = storages
        self._mounted = mounted

    def describe(self) -> Iterable[Family]:
        """Nothing is asked when the collector is registered."""
        return []

    def collect(self) -> Iterable[Family]:
        core = core_samples(self._server)
        found = {one.storage.id: storage_samples(one, self._mounted) for one in self._storages.all()}
        found |= {id: {"unusable": _one(1)} for id in self._storages.troubles()}
        for metric in METRICS:
            labels = [*([] if metric.of_core else ["storage"]), *metric.labels]
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=labels)
            if metric.of_core:
                for values, number in core.get(metric.figure, {}).items():
                    family.add_metric(list(values), number)
            else:
                for id, samples in found.items():
                    for values, number in samples.get(metric.figure, {}).items():
                        family.add_metric([id, *values], number)
            yield family


class MetricsPage:
    """Answers scrapes over HTTP at `listen` (HOST:PORT; port 0 takes any), from threads of its own. ConfigError where it cannot
    listen there."""

    def __init__(self, listen: str, collector: Collector) -> None:
        registry = new_registry("pve-s3", collector)
        host, _, port = listen.rpartition(":")
        bare = host.strip("[]")
        try:
            server, self._thread = start_http_server(int(port), bare, registry=registry)
        except OSError as error:
            raise ConfigError(
                f"cannot serve metrics at {listen}: {error.strerror or error}",
                hint="another program uses that port, or the address is not of this machine; change metrics_listen of [pve]",
            ) from error
        self._server: WSGIServer = server
        self.url = f"http://{host}:{server.server_port}/metrics"

    def close(self) -> None:
        """Waits for the listening thread, not for scrapes under way."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_HEAD = """
## Proxmox VE storages

`metrics_listen` in `[pve]` has `pve-s3 serve` answer at `/metrics`. It is off by default, and there is neither TLS nor a
password: listen on loopback, or where only your Prometheus reaches. A scrape asks no store.

Metrics of a storage have the label `storage`. Requests and bytes are those of all processes of this node, kept over restarts;
what a mount counted is in there at most five seconds later. One that nothing is known of is absent. Alerts to begin with:
[deploy/prometheus-alerts.yml](../deploy/prometheus-alerts.yml).

| metric | type | unit | further labels | meaning |
| --- | --- | --- | --- | --- |
"""


def pve_metrics_markdown() -> str:
    """The part of docs/metrics.md on storages of Proxmox VE."""
    rows = []
    for one in METRICS:
        labels = ", ".join(f"`{label}`" for label in one.labels) + (" (no `storage`)" if one.of_core else "")
        rows.append(f"| `{one.name}` | {one.kind} | {one.unit} | {labels.strip()} | {one.help} |\n")
    return _HEAD + "".join(rows)
