"""Counting what is asked of a store: Prometheus metrics, and plain numbers for benchmarks and `info`.

One rule: this is the outermost wrapper, so one count is one thing a tool wanted; what it took below shows as
retries. An answer that says "not there" or "not that version" is an outcome, not an error.
"""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client import Counter as MetricCounter

from s3core.clock import Clock, SystemClock
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.store import Body, ObjectStore
from s3core.wrapper import Call, StoreWrapper, T

OUTCOMES: dict[type[object], str] = {
    NotFound: "not_found",
    PreconditionFailed: "precondition_failed",
    Denied: "denied",
    Misconfigured: "misconfigured",
    Unsupported: "unsupported",
    Unavailable: "unavailable",
    Corrupt: "corrupt",
    OutcomeUnknown: "unknown",
}
"""The label `outcome`; "ok" is a call that returned, "error" anything that is not in here."""
_ANSWERS = frozenset({"ok", "not_found", "precondition_failed"})
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class StoreMetrics:
    """The metrics of one registry; stores that report to the same registry share them."""

    _known: ClassVar[WeakKeyDictionary[CollectorRegistry, "StoreMetrics"]] = WeakKeyDictionary()
    _known_lock = threading.Lock()

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = MetricCounter(
            "bucketworks_store_requests",
            "Calls to the object store; a page of a listing and a batch of a removal count as one",
            ["operation", "outcome"],
            registry=registry,
        )
        self.bytes = MetricCounter(
            "bucketworks_store_bytes", "Bytes of objects sent up and had down", ["direction"], registry=registry
        )
        self.seconds = Histogram(
            "bucketworks_store_request_seconds",
            "Time until a call had its answer, retries included",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.retries = MetricCounter(
            "bucketworks_store_retries", "Attempts that failed and were repeated", ["operation"], registry=registry
        )

    @classmethod
    def of(cls, registry: CollectorRegistry) -> "StoreMetrics":
        """The metrics of `registry`, made at the first call: a registry takes each name once."""
        with cls._known_lock:
            metrics = cls._known.get(registry)
            if metrics is None:
                metrics = cls._known[registry] = cls(registry)
            return metrics


class ObservedStore(StoreWrapper):
    """Without a registry a private one is made: the numbers are then had from `snapshot` alone."""

    def __init__(
        self, inner: ObjectStore, *, registry: CollectorRegistry | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(inner)
        self._clock = clock or SystemClock()
        self._metrics = StoreMetrics.of(registry if registry is not None else CollectorRegistry())
        self._up = self._metrics.bytes.labels("up")
        self._down = self._metrics.bytes.labels("down")
        self._lock = threading.Lock()
        self._numbers: Counter[str] = Counter()
        self._waited_s = 0.0

    def snapshot(self) -> dict[str, float]:
        """Totals since this object was made: `requests` and `requests_<operation>`, `errors` (outcomes that
        are no answers), `retries`, `bytes_up`, `bytes_down` (bytes of objects, without protocol), `seconds`."""
        with self._lock:
            totals = dict.fromkeys(("requests", "errors", "retries", "bytes_up", "bytes_down"), 0.0)
            return totals | {name: float(value) for name, value in self._numbers.items()} | {"seconds": self._waited_s}

    def count_retry(self, call: Call, error: StoreError) -> None:
        """For `RetryingStore`'s `on_retry`."""
        self._metrics.retries.labels(call.operation).inc()
        with self._lock:
            self._numbers["retries"] += 1

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        outcome, down = "error", 0
        began = self._clock.monotonic()
        try:
            result = action()
            outcome = "ok"
            if isinstance(result, Body):
                down = len(result.data)
            return result
        except StoreError as error:
            outcome = next((OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES), "error")
            raise
        finally:
            self._count(call, outcome, down, self._clock.monotonic() - began)

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failed = super()._delete_batch(keys)
        if failed:
            with self._lock:
                self._numbers["errors"] += len(failed)
        return failed

    def _count(self, call: Call, outcome: str, down: int, seconds: float) -> None:
        # What was sent counts as sent whatever came of it.
        up = call.bytes_up
        self._metrics.requests.labels(call.operation, outcome).inc()
        self._metrics.seconds.labels(call.operation).observe(seconds)
        if up:
            self._up.inc(up)
        if down:
            self._down.inc(down)
        with self._lock:
            numbers = self._numbers
            numbers["requests"] += 1
            numbers["requests_" + call.operation] += 1
            numbers["bytes_up"] += up
            numbers["bytes_down"] += down
            if outcome not in _ANSWERS:
                numbers["errors"] += 1
            self._waited_s += seconds
