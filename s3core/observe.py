"""Counting what is asked of a store: Prometheus metrics, and plain numbers for benchmarks and `info`.

One rule: this is the outermost wrapper, so one count is one thing a tool wanted; what it took below shows as
retries. An answer that says "not there" or "not that version" is an outcome, not an error.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar, Literal
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
from s3core.spending_book import Tally
from s3core.store import ObjectStore
from s3core.wrapper import Call, StoreWrapper, T, bytes_down

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
Port = Literal["store", "bucket"]
_ANSWERS = frozenset({"ok", "not_found", "precondition_failed"})
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

_provoked: ContextVar[tuple[type[StoreError], ...]] = ContextVar("provoked", default=())


@contextmanager
def provoked(*kinds: type[StoreError]) -> Iterator[None]:
    """What this thread asks for within may be refused so, and the caller wants to know whether it is: such an answer is no
    error of the endpoint's, neither in `snapshot` nor in what `bucketworks status` tells. Its metric keeps the outcome."""
    token = _provoked.set(kinds)
    try:
        yield
    finally:
        _provoked.reset(token)


class StoreMetrics:
    """The metrics of one registry; stores that report to the same registry share them. Buckets have their own,
    under `bucketworks_bucket_`."""

    _known: ClassVar[WeakKeyDictionary[CollectorRegistry, dict[str, "StoreMetrics"]]] = WeakKeyDictionary()
    _known_lock = threading.Lock()

    def __init__(self, registry: CollectorRegistry, port: Port = "store") -> None:
        self.requests = MetricCounter(
            f"bucketworks_{port}_requests",
            f"Calls to the object {port}; a page of a listing and a batch of a removal count as one",
            ["operation", "outcome"],
            registry=registry,
        )
        self.bytes = MetricCounter(
            f"bucketworks_{port}_bytes", "Bytes of objects sent up and had down", ["direction"], registry=registry
        )
        self.seconds = Histogram(
            f"bucketworks_{port}_request_seconds",
            "Time until a call had its answer, retries included",
            ["operation"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.retries = MetricCounter(
            f"bucketworks_{port}_retries", "Attempts that failed and were repeated", ["operation"], registry=registry
        )

    @classmethod
    def of(cls, registry: CollectorRegistry, port: Port = "store") -> "StoreMetrics":
        """The metrics of `registry`, made at the first call: a registry takes each name once."""
        with cls._known_lock:
            known = cls._known.setdefault(registry, {})
            if port not in known:
                known[port] = cls(registry, port)
            return known[port]


class Observer:
    """Counts calls, of a store or of a bucket. Without a registry a private one is made: the numbers are then had from
    `snapshot` alone. `tally` gets what providers charge for: each attempt, but for those that brought Unavailable, which never
    arrived or were turned away."""

    def __init__(
        self,
        port: Port,
        *,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        tally: Tally | None = None,
    ) -> None:
        self._tally = tally
        self._clock = clock or SystemClock()
        self._metrics = StoreMetrics.of(registry if registry is not None else CollectorRegistry(), port)
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
        if self._tally is not None:
            self._charge(self._tally, call, error, 0)

    def carry_out(self, call: Call, action: Callable[[], T]) -> T:
        outcome, down = "error", 0
        failure: StoreError | None = None
        began = self._clock.monotonic()
        try:
            result = action()
            outcome = "ok"
            down = bytes_down(result)
            return result
        except StoreError as error:
            outcome = next((OUTCOMES[kind] for kind in type(error).__mro__ if kind in OUTCOMES), "error")
            failure = error
            raise
        finally:
            self._count(call, outcome, down, self._clock.monotonic() - began, _is_error(outcome, failure))
            if self._tally is not None:
                self._charge(self._tally, call, failure if _is_error(outcome, failure) else None, down)

    def count_errors(self, number: int) -> None:
        """Of failures that came as parts of an answer."""
        with self._lock:
            self._numbers["errors"] += number

    def _charge(self, tally: Tally, call: Call, failure: StoreError | None, down: int) -> None:
        if not isinstance(failure, Unavailable):
            tally.add(call.operation, call.bytes_up, down)
        if failure is not None:
            tally.failed(failure)

    def _count(self, call: Call, outcome: str, down: int, seconds: float, is_error: bool) -> None:
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
            numbers["errors"] += is_error
            self._waited_s += seconds


def _is_error(outcome: str, failure: StoreError | None) -> bool:
    return outcome not in _ANSWERS and not isinstance(failure, _provoked.get())


class ObservedStore(StoreWrapper):
    """See `Observer`."""

    def __init__(
        self,
        inner: ObjectStore,
        *,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        tally: Tally | None = None,
    ) -> None:
        super().__init__(inner)
        self._observer = Observer("store", registry=registry, clock=clock, tally=tally)

    def snapshot(self) -> dict[str, float]:
        """See `Observer.snapshot`."""
        return self._observer.snapshot()

    def count_retry(self, call: Call, error: StoreError) -> None:
        """For `RetryingStore`'s `on_retry`."""
        self._observer.count_retry(call, error)

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._observer.carry_out(call, action)

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        failed = super()._delete_batch(keys)
        if failed:
            self._observer.count_errors(len(failed))
        return failed
