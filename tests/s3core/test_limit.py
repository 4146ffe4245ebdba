"""Rates on a clock that stands still unless somebody waits, and a bound on requests at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from s3core.clock import SystemClock
from s3core.errors import NotFound
from s3core.limit import LimitedStore, Limits, TokenBucket
from s3core.memory import MemoryStore
from s3core.store import Body
from tests.s3core.fakes import FakeClock


def test_a_burst_is_free_and_then_the_rate_holds() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, 1.0, clock)
    for _ in range(10):
        bucket.take(1)
    assert sum(clock.slept) == pytest.approx(0)
    for _ in range(20):
        bucket.take(1)
    assert sum(clock.slept) == pytest.approx(2.0)


def test_unused_allowance_is_kept_up_to_the_burst() -> None:
    clock = FakeClock()
    bucket = TokenBucket(10.0, 0.5, clock)
    clock.now += 100
    assert [bucket.reserve(1) for _ in range(6)] == pytest.approx([0, 0, 0, 0, 0, 0.1])


def test_more_than_the_bucket_holds_is_met_late() -> None:
    clock = FakeClock()
    TokenBucket(10.0, 1.0, clock).take(35)
    assert clock.slept == pytest.approx([2.5])


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        TokenBucket(0, 1.0, FakeClock())
    with pytest.raises(ValueError, match="negative"):
        Limits(concurrency=-1)


def test_requests_per_second() -> None:
    clock = FakeClock()
    store = LimitedStore(MemoryStore(), Limits(requests_per_s=5, burst_s=0), clock)
    for _ in range(10):
        store.put("k", b"")
        store.get("k")
    list(store.list())
    assert sum(clock.slept) == pytest.approx(22 / 5)  # a listing ends with the question for more


def test_failed_requests_count_too() -> None:
    clock = FakeClock()
    store = LimitedStore(MemoryStore(), Limits(requests_per_s=5, burst_s=0), clock)
    for _ in range(5):
        with pytest.raises(NotFound):
            store.get("k")
    assert sum(clock.slept) == pytest.approx(1.0)


def test_bytes_per_second_both_ways() -> None:
    clock = FakeClock()
    store = LimitedStore(MemoryStore(), Limits(bytes_per_s=1000, burst_s=0), clock)
    store.put("k", [b"x" * 1500, b"x" * 500])
    assert sum(clock.slept) == pytest.approx(2.0)
    store.get_range("k", 0, 500)
    assert sum(clock.slept) == pytest.approx(2.5)
    store.get("k")
    assert sum(clock.slept) == pytest.approx(2.5)  # nobody knew how much it would be
    store.head("k")
    assert sum(clock.slept) == pytest.approx(4.5)  # so the next one waits for it


def test_requests_at_once() -> None:
    class Slow(MemoryStore):
        running = 0
        most = 0
        lock = threading.Lock()

        def get(self, key: str) -> Body:
            with self.lock:
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.005)
            with self.lock:
                self.running -= 1
            return super().get(key)

    slow = Slow()
    slow.put("k", b"x")
    store = LimitedStore(slow, Limits(concurrency=3), SystemClock())
    with ThreadPoolExecutor(8) as pool:
        bodies = list(pool.map(store.get, ["k"] * 16))
    assert {body.data for body in bodies} == {b"x"}
    assert slow.most == 3


def test_a_listing_that_is_left_open_holds_no_slot() -> None:
    store = LimitedStore(MemoryStore(), Limits(concurrency=1), FakeClock())
    for key in "abc":
        store.put(key, b"")
    listing = store.list()
    assert next(listing).key == "a"
    store.get("a")
    assert [info.key for info in listing] == ["b", "c"]
