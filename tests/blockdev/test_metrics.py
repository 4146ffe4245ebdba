"""The table of metrics: what is exposed is what it says, for statuses as daemons give them."""

import re
import socket
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from blockdev.errors import Refused
from blockdev.latency import FLUSH, READ, Latency
from blockdev.metrics import (
    GIB,
    METRICS,
    NO_LEASE_S,
    REQUESTS,
    MetricsServer,
    VolumesCollector,
    costs,
    figures,
    prices_in,
)
from s3core.endpoint import PRESETS
from s3core.wrapper import Call
from tests.architecture.tree import ROOT

LIO = {
    "bucketworks_volume_lio_device",
    "bucketworks_volume_lio_commands_open",
    "bucketworks_volume_lio_task_management_total",
}
OPTIONAL = {"bucketworks_volume_lease_left_seconds"}


def sources(prefix: str) -> Iterator[str]:
    for metric in METRICS:
        for _, source in metric.values:
            if source.startswith(prefix):
                yield source.removeprefix(prefix)


def status(name: str = "vm1", **more: Any) -> dict[str, Any]:
    """Everything the table asks for; numbers that differ."""
    latency = Latency()
    latency.record(READ, 100_000, 3)
    latency.record(FLUSH, 5_000_000_000)
    told: dict[str, Any] = {
        "name": name,
        "state": "ready",
        "uptime_seconds": 12.5,
        "size_bytes": 1 << 30,
        "allocated_bytes": 1 << 20,
        "quota_bytes": 0,
        "epoch": 3,
        "commit_sequence": 70,
        "journal_bytes": 1 << 20,
        "lease_seconds": 600.0,
        "state_free_bytes": 5 << 30,
        "sessions": [{"initiator": "iqn.x"}],
        "latency": latency.snapshot(),
        "lio": {source: number for number, source in enumerate(sources("lio."), 1)},
        "ledger": {source: number for number, source in enumerate(sources("ledger."), 1)},
        "front": {source: number for number, source in enumerate(sources("front."), 1)},
        "worker": {source: number for number, source in enumerate(sources("worker."), 1)},
    }
    calls = [call for kind in REQUESTS.values() for call in kind]
    told["worker"] |= {f"store.requests_{call}": 1000.0 for call in calls}
    told["worker"] |= {"store.bytes_up": 3e9, "store.bytes_down": 2.0 * GIB, "store.retries": 0, "store.errors": 1}
    told["worker"] |= {"store.seconds": 9.5, "host_bytes_committed": 1e9}
    return told | more


def exposed(*statuses: dict[str, Any]) -> dict[str, list[tuple[dict[str, str], float]]]:
    registry = CollectorRegistry()
    registry.register(VolumesCollector(lambda: statuses))
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def test_every_row_of_the_table_is_exposed_for_every_volume() -> None:
    samples = exposed(status("vm1"), status("vm2"))
    for metric in METRICS:
        name = metric.name + ("_count" if metric.kind == "histogram" else "")
        assert [labels["volume"] for labels, _ in samples[name]] == [
            volume for volume in ("vm1", "vm2") for _ in metric.values
        ], metric
        if metric.label:
            assert {labels[metric.label] for labels, _ in samples[name]} == {value for value, _ in metric.values}
    told = {row.name for row in METRICS} | {
        "bucketworks_volume_operation_seconds" + end for end in ("_bucket", "_count", "_sum")
    }
    assert set(samples) <= told


def test_names_follow_the_rules_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"bucketworks_volume_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        words = metric.name.removesuffix("_total").split("_")
        for unit in ("bytes", "seconds"):
            assert (unit in words) == (metric.unit == unit), metric.name


def test_a_histogram_counts_up_to_all() -> None:
    samples = exposed(status())
    buckets = {
        labels["le"]: value
        for labels, value in samples["bucketworks_volume_operation_seconds_bucket"]
        if labels["operation"] == "read"
    }
    values = list(buckets.values())
    assert values == sorted(values)
    assert buckets["6.5536e-05"] == 0
    assert buckets["0.000131072"] == 3
    assert buckets["+Inf"] == 3
    sums = {labels["operation"]: value for labels, value in samples["bucketworks_volume_operation_seconds_sum"]}
    assert sums == {"read": pytest.approx(3e-4), "write": 0, "flush": pytest.approx(5.0), "other": 0}


def test_what_a_volume_cannot_tell_is_absent() -> None:
    attaching = {"name": "new", "state": "attaching", "uptime_seconds": 0.1, "epoch": 0, "sessions": []}
    samples = exposed(attaching)
    assert samples["bucketworks_volume_ready"] == [({"volume": "new"}, 0.0)]
    assert "bucketworks_volume_rpo_bytes" not in samples
    assert "bucketworks_volume_cost_total" not in samples
    front = status()["front"] | {"lease_seconds_left": NO_LEASE_S}
    missing = (
        {row.name for row in METRICS} - set(exposed(status(front=front))) - {"bucketworks_volume_operation_seconds"}
    )
    assert missing == OPTIONAL


def test_a_volume_behind_lio_tells_of_its_device() -> None:
    """As `Handler.status` has it, with a device and without one."""
    there = {"problem": "", "device": "user_0/vm1", "uio": "uio0", "commands": 9, "task_management": 2, "open": 5}
    samples = exposed(status(lio=there))
    assert [samples[name][0][1] for name in sorted(LIO)] == [5, 1, 2]
    samples = exposed(status(lio={"problem": "gone", "device": "", "uio": ""}))
    assert samples["bucketworks_volume_lio_device"][0][1] == 0
    assert "bucketworks_volume_lio_commands_open" not in samples


def test_requests_are_charged_as_the_price_table_has_it() -> None:
    prices = PRESETS["aws"].prices
    told = status(prices={"per_1000_put": 0.005, "per_1000_get": 0.0004, "per_gib_egress": 0.09, "currency": "USD"})
    found = figures(told)
    assert (found["store.put"], found["store.get"], found["store.list"]) == (7000, 3000, 2000)
    assert costs(found, prices) == pytest.approx({"put": 9 * 0.005, "get": 3 * 0.0004, "egress": 0.18})
    assert costs(found, prices_in(status())) == {"put": 0, "get": 0, "egress": 0}
    assert found["derived.amplification"] == pytest.approx(3.0)
    ((labels, money), *_) = exposed(told)["bucketworks_volume_cost_total"]
    assert labels == {"volume": "vm1", "reason": "put", "currency": "USD"}
    assert money == pytest.approx(0.045)


def test_every_call_of_a_store_is_of_some_kind() -> None:
    text = (ROOT / "s3core/wrapper.py").read_text(encoding="utf-8")
    calls = set(re.findall(Call.__name__ + r'\("(\w+)"', text))
    assert calls == {call for kind in REQUESTS.values() for call in kind}


def test_the_server_answers_until_it_is_closed() -> None:
    server = MetricsServer("127.0.0.1", 0, lambda: [status()])
    with urllib.request.urlopen(server.url, timeout=10) as answer:
        assert b'bucketworks_volume_epoch{volume="vm1"} 3.0' in answer.read()
    server.close()
    with pytest.raises(OSError):
        urllib.request.urlopen(server.url, timeout=10)


def test_an_address_that_cannot_be_had_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Refused, match="cannot serve metrics on 127"):
            MetricsServer("127.0.0.1", taken.getsockname()[1], list)


def test_the_document_has_every_metric() -> None:
    text = Path(ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    assert all(f"| `{metric.name}` | {metric.kind} |" in text for metric in METRICS)
