"""What is counted, under which names, and that one registry serves several stores."""

import random

import pytest
from prometheus_client import CollectorRegistry

from s3core.errors import Corrupt, NotFound, PreconditionFailed, Unavailable, Unsupported
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.memory import MemoryStore
from s3core.observe import ObservedStore, provoked
from s3core.probe import probe_store
from s3core.spending_book import Tally
from s3core.wrapper import PAGE_KEYS
from tests.s3core.fakes import FakeClock


def observed(registry: CollectorRegistry | None = None, plan: FaultPlan | None = None) -> ObservedStore:
    clock = FakeClock()
    faulty = FaultyStore(MemoryStore(), plan or FaultPlan(), random.Random(1), clock)
    return ObservedStore(faulty, registry=registry, clock=clock)


def test_snapshot_counts_requests_and_bytes() -> None:
    store = observed()
    store.put("k", [b"12345", b"678"])
    store.get("k")
    store.get_range("k", 2, 3)
    store.head("k")
    counts = store.snapshot()
    assert counts["requests"] == 4
    assert counts["requests_put"] == counts["requests_get"] == counts["requests_get_range"] == 1
    assert (counts["bytes_up"], counts["bytes_down"]) == (8, 11)
    assert counts["errors"] == counts["retries"] == 0


def test_answers_are_not_errors() -> None:
    store = observed(plan=FaultPlan(scripted={("get", 2): Fault(FaultKind.SLOW_DOWN, seconds=1)}))
    with pytest.raises(NotFound):
        store.get("k")
    store.put("k", b"")
    with pytest.raises(PreconditionFailed):
        store.put_if_absent("k", b"")
    assert store.snapshot()["errors"] == 0
    with pytest.raises(Unavailable):
        store.get("k")
    assert store.snapshot()["errors"] == 1


def test_what_was_asked_for_on_purpose_is_no_error() -> None:
    tally = Tally()
    store = ObservedStore(MemoryStore(), clock=FakeClock(), tally=tally)
    store.put("k", b"1")
    with provoked(Corrupt), pytest.raises(Corrupt):
        store.get_range("k", 0, 2)
    assert store.snapshot()["errors"] == 0
    with provoked(Unsupported), pytest.raises(Corrupt):
        store.get_range("k", 0, 2)
    with pytest.raises(Corrupt):
        store.get_range("k", 0, 2)
    assert store.snapshot()["errors"] == 2
    (spent,) = tally.take().values()
    assert (spent.get, spent.errors) == (3, 2)


def test_a_doctor_leaves_no_error_behind() -> None:
    store = observed()
    (found,) = probe_store(store, clock=FakeClock(), only=("ranges",)).findings
    assert found.ok
    assert store.snapshot()["errors"] == 0


def test_metrics_have_the_documented_names() -> None:
    registry = CollectorRegistry()
    slow = FaultPlan(
        scripted={("get", 1): Fault(FaultKind.SLOW, seconds=0.3), ("get", 2): Fault(FaultKind.SLOW_DOWN, seconds=1)}
    )
    store = observed(registry, slow)
    store.put("k", b"123")
    store.get("k")
    with pytest.raises(Unavailable):
        store.get("k")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value("bucketworks_store_" + name, labels)

    assert value("requests_total", operation="put", outcome="ok") == 1
    assert value("requests_total", operation="get", outcome="ok") == 1
    assert value("requests_total", operation="get", outcome="unavailable") == 1
    assert value("bytes_total", direction="up") == 3
    assert value("bytes_total", direction="down") == 3
    assert value("request_seconds_sum", operation="get") == pytest.approx(0.3)
    assert value("request_seconds_bucket", operation="get", le="0.2") == 1
    assert store.snapshot()["seconds"] == pytest.approx(0.3)


def test_stores_may_share_a_registry() -> None:
    registry = CollectorRegistry()
    first, second = observed(registry), observed(registry)
    first.put("k", b"1")
    second.put("k", b"22")
    assert registry.get_sample_value("bucketworks_store_bytes_total", {"direction": "up"}) == 3
    assert (first.snapshot()["bytes_up"], second.snapshot()["bytes_up"]) == (1, 2)


def test_pages_and_batches_are_requests() -> None:
    store = observed()
    keys = [f"k{number:05d}" for number in range(PAGE_KEYS + 1)]
    for key in keys:
        store.put(key, b"")
    assert len(list(store.list())) == PAGE_KEYS + 1
    store.delete_many(keys)
    counts = store.snapshot()
    assert counts["requests_delete_many"] == 2
    assert counts["requests_list"] == 3  # two pages, and the question whether there are more


def test_keys_that_could_not_be_deleted_are_errors() -> None:
    store = observed(plan=FaultPlan(scripted={("delete_many", 1): Fault(FaultKind.REFUSED)}))
    assert set(store.delete_many(["a", "b"])) == {"a", "b"}
    assert store.snapshot()["errors"] == 2


def test_parts_are_counted() -> None:
    store = observed()
    upload = store.multipart("k")
    upload.part(1, b"123")
    upload.complete()
    counts = store.snapshot()
    assert (counts["requests_multipart"], counts["requests_part"], counts["requests_complete"]) == (1, 1, 1)
    assert counts["bytes_up"] == 3


def test_a_callers_mistake_is_counted_as_an_error() -> None:
    store = observed()
    with pytest.raises(ValueError, match="key"):
        store.get("")
    assert store.snapshot()["errors"] == 1
