"""What a served volume tells Prometheus, and the same numbers for `s3block top`.

One rule: one table. `METRICS` says what there is, what it means and where it comes from; the exposition, docs/metrics.md and
the tests are made from it. Nothing is counted here: a scrape reads the `status` that the control socket gives, so that what
commands cost does not depend on who watches.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from blockdev.errors import Refused
from blockdev.latency import KINDS
from s3core.endpoint import Prices
from s3core.gauges import BUILD_HELP, BUILD_INFO, new_registry

Status = Mapping[str, Any]
"""What `status` answers on the control socket."""

GIB = 1024**3
NO_LEASE_S = 1e9
"""What a front says it has left where there is no lease."""
FIRST_BUCKET, LAST_BUCKET = 13, 36
"""Powers of two of nanoseconds whose bounds are exposed: 8 us to 69 s."""

REQUESTS: dict[str, tuple[str, ...]] = {
    "put": ("put", "put_if_absent", "put_if_match", "copy", "multipart", "part", "complete"),
    "get": ("get", "get_range", "head"),
    "list": ("list", "list_prefixes"),
    "delete": ("delete", "delete_many", "abort"),
}
"""Kinds of store requests as providers charge for them, each with the calls of `ObjectStore` that are of it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. `source` names its figure (see `figures`); with a `label` it has one source per value of it. `unit` is for
    people; in names and values it is always the base unit."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    source: str = ""
    label: str = ""
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def values(self) -> tuple[tuple[str, str], ...]:
        """(value of the label, source) pairs."""
        return self.sources if self.label else (("", self.source),)


METRICS: tuple[Metric, ...] = (
    Metric("bucketworks_volume_ready", "gauge", "0 or 1", "Whether the volume takes commands", "status.ready"),
    Metric(
        "bucketworks_volume_uptime_seconds", "gauge", "seconds", "Time since it was attached", "status.uptime_seconds"
    ),
    Metric("bucketworks_volume_size_bytes", "gauge", "bytes", "Size of the disk", "status.size_bytes"),
    Metric(
        "bucketworks_volume_allocated_bytes",
        "gauge",
        "bytes",
        "What the map holds, in whole extents",
        "status.allocated_bytes",
    ),
    Metric("bucketworks_volume_quota_bytes", "gauge", "bytes", "What it may hold; 0: no limit", "status.quota_bytes"),
    Metric("bucketworks_volume_epoch", "gauge", "number", "Attachments of the volume until this one", "status.epoch"),
    Metric(
        "bucketworks_volume_commit_sequence",
        "gauge",
        "number",
        "Number of the newest record in the log",
        "status.commit_sequence",
    ),
    Metric(
        "bucketworks_volume_sessions", "gauge", "sessions", "iSCSI sessions of the volume's target", "status.sessions"
    ),
    Metric(
        "bucketworks_volume_lio_device",
        "gauge",
        "0 or 1",
        "Whether the kernel's target has a device for the volume; absent for volumes behind the portal",
        "lio.device",
    ),
    Metric(
        "bucketworks_volume_lio_commands_open",
        "gauge",
        "commands",
        "Commands taken from the kernel and not yet answered; absent for volumes behind the portal",
        "lio.open",
    ),
    Metric(
        "bucketworks_volume_lio_task_management_total",
        "counter",
        "functions",
        "Task management functions the kernel has told of: initiators lost their patience; absent behind the portal",
        "lio.task_management",
    ),
    Metric(
        "bucketworks_volume_lease_left_seconds",
        "gauge",
        "seconds",
        "Time for which this host may still acknowledge without renewing its lease; absent where there is none",
        "front.lease_seconds_left",
    ),
    Metric(
        "bucketworks_volume_operations_total",
        "counter",
        "commands",
        "Commands the volume took, by kind",
        label="operation",
        sources=(
            ("read", "front.reads"),
            ("write", "front.writes"),
            ("discard", "front.discards"),
            ("flush", "front.flushes"),
        ),
    ),
    Metric(
        "bucketworks_volume_bytes_total",
        "counter",
        "bytes",
        "Bytes that initiators read and wrote",
        label="operation",
        sources=(("read", "front.read_bytes"), ("write", "front.write_bytes")),
    ),
    Metric(
        "bucketworks_volume_operation_seconds",
        "histogram",
        "seconds",
        "From the receive that brought a command to its answer being ready, commands answered GOOD alone",
        label="operation",
        sources=tuple((kind, f"latency.{kind}") for kind in KINDS),
    ),
    Metric(
        "bucketworks_volume_read_hits_total", "counter", "commands", "Reads answered from this host", "front.read_hits"
    ),
    Metric(
        "bucketworks_volume_read_misses_total",
        "counter",
        "commands",
        "Reads that waited for the store",
        "front.read_misses",
    ),
    Metric(
        "bucketworks_volume_cache_evictions_total",
        "counter",
        "frames",
        "Frames the read cache gave up",
        "front.cache_evictions",
    ),
    Metric(
        "bucketworks_volume_fetched_frames_total",
        "counter",
        "frames",
        "Frames brought for reads",
        "front.fetched_frames",
    ),
    Metric(
        "bucketworks_volume_readahead_frames_total",
        "counter",
        "frames",
        "Frames asked for ahead",
        "front.readahead_frames",
    ),
    Metric(
        "bucketworks_volume_fetches_under_way",
        "gauge",
        "frames",
        "Frames that are being waited for",
        "front.fetches_under_way",
    ),
    Metric(
        "bucketworks_volume_rpo_bytes",
        "gauge",
        "bytes",
        "Journal the bucket does not have: what losing this host now would cost",
        "front.rpo_bytes",
    ),
    Metric(
        "bucketworks_volume_rpo_seconds",
        "gauge",
        "seconds",
        "Age of the oldest write the bucket does not have",
        "front.rpo_seconds",
    ),
    Metric(
        "bucketworks_volume_lease_seconds",
        "gauge",
        "seconds",
        "Length of the lease (`lease_s`): how long this host may acknowledge from a renewal on",
        "status.lease_seconds",
    ),
    Metric(
        "bucketworks_volume_state_free_bytes",
        "gauge",
        "bytes",
        "Free on the file system of the state directory, where journal, map and cache are",
        "status.state_free_bytes",
    ),
    Metric("bucketworks_volume_journal_bytes", "gauge", "bytes", "Size of the journal", "status.journal_bytes"),
    Metric(
        "bucketworks_volume_journal_fill_ratio",
        "gauge",
        "0 to 1",
        "Share that the bucket does not have",
        "front.journal_fill",
    ),
    Metric(
        "bucketworks_volume_writes_refused_total",
        "counter",
        "commands",
        "Writes that found the journal full; the initiator was told BUSY",
        "front.writes_refused_full",
    ),
    Metric(
        "bucketworks_volume_writes_held_seconds_total",
        "counter",
        "seconds",
        "Time for which answers were held back while the journal filled",
        "front.writes_held_seconds",
    ),
    Metric(
        "bucketworks_volume_ledger_events_total",
        "counter",
        "events",
        "What was done to the volume as a whole, told to its ledger or lost on the way there; absent where none covers it",
        label="outcome",
        sources=(("recorded", "ledger.recorded"), ("lost", "ledger.lost")),
    ),
    Metric(
        "bucketworks_volume_commits_total",
        "counter",
        "commits",
        "Records this host has put in the log",
        "worker.commits",
    ),
    Metric(
        "bucketworks_volume_committed_bytes_total",
        "counter",
        "bytes",
        "Bytes of host writes that commits carried",
        "worker.host_bytes_committed",
    ),
    Metric(
        "bucketworks_volume_extents_written_total",
        "counter",
        "extents",
        "Extents written whole by commits",
        "worker.extents_written",
    ),
    Metric(
        "bucketworks_volume_patches_written_total",
        "counter",
        "patches",
        "Parts of extents written",
        "worker.patches_written",
    ),
    Metric(
        "bucketworks_volume_extents_folded_total",
        "counter",
        "extents",
        "Extents made one object again",
        "worker.extents_folded",
    ),
    Metric(
        "bucketworks_volume_patches_moved_total",
        "counter",
        "patches",
        "Patches moved out of segments that were nearly empty",
        "worker.patches_moved",
    ),
    Metric(
        "bucketworks_volume_records_trimmed_total",
        "counter",
        "records",
        "Log records deleted",
        "worker.records_trimmed",
    ),
    Metric(
        "bucketworks_volume_map_pages_written_total",
        "counter",
        "pages",
        "Map pages in roots",
        "worker.map_pages_written",
    ),
    Metric(
        "bucketworks_volume_extents_mapped", "gauge", "extents", "Extents that hold something", "worker.extents_mapped"
    ),
    Metric("bucketworks_volume_snapshots", "gauge", "snapshots", "Snapshots of the volume", "worker.snapshots"),
    Metric(
        "bucketworks_volume_objects_deleted_total",
        "counter",
        "objects",
        "Objects nothing needed",
        "worker.objects_deleted",
    ),
    Metric(
        "bucketworks_volume_store_requests_total",
        "counter",
        "requests",
        "Requests to the store, by what they are charged as; further attempts are in bucketworks_volume_store_retries_total",
        label="operation",
        sources=tuple((kind, f"store.{kind}") for kind in REQUESTS),
    ),
    Metric(
        "bucketworks_volume_store_bytes_total",
        "counter",
        "bytes",
        "Bytes of objects sent to the store and had from it",
        label="direction",
        sources=(("up", "store.bytes_up"), ("down", "store.bytes_down")),
    ),
    Metric(
        "bucketworks_volume_store_retries_total", "counter", "requests", "Requests made again below", "store.retries"
    ),
    Metric(
        "bucketworks_volume_store_errors_total",
        "counter",
        "requests",
        "Requests that failed, after retries; neither 'not found' nor a condition that did not hold is one",
        "store.errors",
    ),
    Metric(
        "bucketworks_volume_store_request_seconds_total",
        "counter",
        "seconds",
        "Time spent waiting for the store",
        "store.seconds",
    ),
    Metric(
        "bucketworks_volume_store_failures_total",
        "counter",
        "failures",
        "Failed calls that are repeated until they work, as commits are",
        "worker.store_failures",
    ),
    Metric(
        "bucketworks_volume_store_reachable",
        "gauge",
        "0 or 1",
        "0 from a failed call that is repeated until one works; an idle volume does not ask",
        "worker.store_reachable",
    ),
    Metric(
        "bucketworks_volume_write_amplification_ratio",
        "gauge",
        "ratio",
        "Bytes sent to the store per byte of host writes committed, since the volume was attached",
        "derived.amplification",
    ),
    Metric(
        "bucketworks_volume_corruptions_total",
        "counter",
        "findings",
        "Checksums that did not hold, by where the bytes were; another copy was used where there was one",
        label="place",
        sources=(
            ("journal", "front.corrupt_journal_blocks"),
            ("cache", "front.damaged_cache_blocks"),
            ("local_copy", "worker.corrupt_local_copies"),
            ("object", "worker.corrupt_objects"),
            ("read", "front.corrupt_frames"),
        ),
    ),
    Metric(
        "bucketworks_volume_cost_total",
        "counter",
        "the endpoint's currency",
        "Estimate of what requests and bytes read have cost, by the endpoint's price table; storage is not in it",
        label="reason",
        sources=(("put", "cost.put"), ("get", "cost.get"), ("egress", "cost.egress")),
    ),
)
"""A metric whose figure a volume does not have is left out of its exposition. All have the label `volume`."""


def figures(status: Status) -> dict[str, float]:
    """Every number of a status by the names that sources use: `front.` and `worker.` as they count them, `store.` requests by
    kind, `cost.` in the endpoint's currency, `lio.` of a device behind the kernel's target."""
    front, worker = status.get("front", {}), status.get("worker", {})
    found: dict[str, float] = {
        "status.ready": float(status["state"] == "ready"),
        "status.sessions": len(status.get("sessions", ())),
    }
    for name in (
        "uptime_seconds",
        "size_bytes",
        "allocated_bytes",
        "quota_bytes",
        "epoch",
        "commit_sequence",
        "journal_bytes",
        "lease_seconds",
        "state_free_bytes",
    ):
        if name in status:
            found[f"status.{name}"] = status[name]
    found |= {f"front.{name}": value for name, value in front.items() if isinstance(value, int | float)}
    found |= {f"worker.{name}": value for name, value in worker.items() if isinstance(value, int | float)}
    if (lio := status.get("lio")) is not None:
        found["lio.device"] = float(bool(lio["device"]))
        found |= {f"lio.{name}": value for name, value in lio.items() if isinstance(value, int)}
    found |= {f"ledger.{name}": value for name, value in status.get("ledger", {}).items()}
    if found.get("front.lease_seconds_left", 0.0) >= NO_LEASE_S:
        del found["front.lease_seconds_left"]
    if worker:
        found |= _store_figures(worker)
        found |= {f"cost.{kind}": money for kind, money in costs(found, prices_in(status)).items()}
        committed = worker.get("host_bytes_committed", 0.0)
        if committed:
            found["derived.amplification"] = found["store.bytes_up"] / committed
    return found


def _store_figures(worker: Mapping[str, float]) -> dict[str, float]:
    found = {
        f"store.{kind}": sum(worker.get(f"store.requests_{call}", 0.0) for call in calls)
        for kind, calls in REQUESTS.items()
    }
    for name in ("bytes_up", "bytes_down", "errors", "retries", "seconds"):
        found[f"store.{name}"] = worker.get(f"store.{name}", 0.0)
    return found


def prices_in(status: Status) -> Prices:
    """The price table that is told with a status; all zero where none is."""
    return Prices(**status.get("prices", {}))


def costs(found: Mapping[str, float], prices: Prices) -> dict[str, float]:
    """Money by reason, in the table's currency. Retries are charged as PUTs, the dearer kind."""
    puts = found["store.put"] + found["store.list"] + found["store.retries"]
    return {
        "put": puts / 1000 * prices.per_1000_put,
        "get": found["store.get"] / 1000 * prices.per_1000_get,
        "egress": found["store.bytes_down"] / GIB * prices.per_gib_egress,
    }


# --- exposition ------------------------------------------------------------------------------------------------------


class VolumesCollector(Collector):
    """Everything in METRICS for each status that `statuses` returns at that moment."""

    def __init__(self, statuses: Callable[[], Iterable[Status]]) -> None:
        self._statuses = statuses

    def describe(self) -> Iterable[Family]:
        """Nothing is asked when the collector is registered."""
        return []

    def collect(self) -> Iterable[Family]:
        known = [(status, figures(status)) for status in self._statuses()]
        for metric in METRICS:
            yield _histogram(metric, known) if metric.kind == "histogram" else _simple(metric, known)


def _simple(metric: Metric, known: list[tuple[Status, dict[str, float]]]) -> Family:
    money = metric.name == "bucketworks_volume_cost_total"
    labels = ["volume", *([metric.label] if metric.label else []), *(["currency"] if money else [])]
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(metric.name, metric.help, labels=labels)
    else:
        family = GaugeMetricFamily(metric.name, metric.help, labels=labels)
    for status, found in known:
        for value, source in metric.values:
            if source in found:
                words = [status["name"], *([value] if metric.label else [])]
                family.add_metric([*words, *([prices_in(status).currency] if money else [])], found[source])
    return family


def _histogram(metric: Metric, known: list[tuple[Status, dict[str, float]]]) -> Family:
    family = HistogramMetricFamily(metric.name, metric.help, labels=["volume", metric.label])
    for status, _ in known:
        for value, _ in metric.values:
            told = status.get("latency", {}).get(value)
            if told is None:
                continue
            counts: list[int] = told["counts"]
            buckets = [
                (repr(2.0**power / 1e9), float(sum(counts[: power + 1])))
                for power in range(FIRST_BUCKET, LAST_BUCKET + 1)
            ]
            buckets.append(("+Inf", float(sum(counts))))
            family.add_metric([status["name"], value], buckets, told["nanoseconds"] / 1e9)
    return family


class MetricsServer:
    """Answers scrapes over HTTP, from threads of its own. `statuses` is called on those threads."""

    def __init__(self, host: str, port: int, statuses: Callable[[], Iterable[Status]]) -> None:
        """Listens from now on. Raises Refused when it cannot."""
        registry = new_registry("s3block", VolumesCollector(statuses))
        try:
            server, self._thread = start_http_server(port, host, registry=registry)
        except OSError as error:
            raise Refused(
                f"cannot serve metrics on {host}:{port}: {error.strerror or error}",
                hint="another program or another volume's unit uses that port, or the address is not of this machine;"
                " change metrics_listen in [volume.NAME] or [s3block]",
            ) from error
        self._server: WSGIServer = server
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"

    def close(self) -> None:
        """Waits for the listening thread, not for scrapes under way."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


# --- document --------------------------------------------------------------------------------------------------------

_HEAD = """\
# Metrics

<!-- Drawn from blockdev/metrics.py, cowsync/watch_health.py, integrity/service.py, plugin/service/metrics.py and
envctl/web/metrics.py by `make docs`; a test compares. -->

Names are `bucketworks_THING_WHAT_UNIT`: the thing is `volume`, `mirror`, `ledger`, `pve` or `envctl`; units are base units
(`seconds`, `bytes`, `ratio`; none for plain numbers); counters end in `_total`. How to have them scraped, drawn
and watched: [monitoring](monitoring.md).

Every page also has `BUILD_INFO{version, tool}`. BUILD_HELP.

## Volumes

`s3block serve vm1 --metrics-listen 127.0.0.1:9260`, or `metrics_listen` in `[volume.NAME]` or `[s3block]`, answers Prometheus
scrapes at `/metrics`. It is off by default, and there is neither TLS nor a password: listen where only your Prometheus reaches.

Every metric has the label `volume`. Counters and histograms begin at 0 when the volume is attached. What the worker process
counts (from `bucketworks_volume_commits_total` on) is at most a second old, and absent until its first report. A metric that a
volume has no figure for is absent. Alerts to begin with: [deploy/prometheus-alerts.yml](../deploy/prometheus-alerts.yml).

| metric | type | unit | further labels | meaning |
| --- | --- | --- | --- | --- |
"""


def metrics_markdown() -> str:
    """docs/metrics.md up to what mirrors tell."""
    lines = [_HEAD.replace("BUILD_INFO", BUILD_INFO).replace("BUILD_HELP", BUILD_HELP).rstrip("\n")]
    for metric in METRICS:
        labels = f"`{metric.label}`: " + ", ".join(f"`{value}`" for value, _ in metric.sources) if metric.label else ""
        if metric.name == "bucketworks_volume_cost_total":
            labels += "; `currency`"
        lines.append(f"| `{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"
