"""Keeping within what a provider, a link or a bill allows: requests at once, requests and bytes per second.

One rule: limits delay, they never refuse. A download whose length is not known beforehand is paid for
afterwards, by whoever asks next.
"""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from s3core.clock import Clock
from s3core.store import ObjectStore
from s3core.waiting import Turns
from s3core.wrapper import Call, StoreWrapper, T, bytes_down


@dataclass(frozen=True, slots=True)
class Limits:
    """0 is without limit. Bytes count in both directions together; `burst_s` is how many seconds' worth of
    unused allowance is kept."""

    concurrency: int = 0
    requests_per_s: float = 0.0
    bytes_per_s: float = 0.0
    burst_s: float = 1.0

    def __post_init__(self) -> None:
        if min(self.concurrency, self.requests_per_s, self.bytes_per_s, self.burst_s) < 0:
            raise ValueError(f"limits must not be negative: {self}")


class TokenBucket:
    """An allowance of `rate` per second on `clock`. A demand larger than the bucket is met late, not never."""

    def __init__(self, rate: float, burst_s: float, clock: Clock) -> None:
        if rate <= 0:
            raise ValueError(f"a rate must be more than 0, not {rate}")
        self._rate = rate
        self._burst_s = burst_s
        self._clock = clock
        self._lock = threading.Lock()
        # When all that was granted so far will have been earned; before now means that something is left over.
        self._earned_at = clock.monotonic() - burst_s

    def reserve(self, amount: float) -> float:
        """Take `amount` in any case; returns the seconds to wait before using it."""
        with self._lock:
            now = self._clock.monotonic()
            self._earned_at = max(self._earned_at, now - self._burst_s) + amount / self._rate
            return max(0.0, self._earned_at - now)

    def take(self, amount: float) -> None:
        """Take `amount` and wait until it has been earned. Those who come first are served first."""
        wait_s = self.reserve(amount)
        if wait_s > 0:
            self._clock.sleep(wait_s)


class Limiter:
    """Carries out calls, of a store or of a bucket, within `limits`."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._slots: AbstractContextManager[object] = Turns(limits.concurrency) if limits.concurrency else nullcontext()
        self._requests = TokenBucket(limits.requests_per_s, limits.burst_s, clock) if limits.requests_per_s else None
        self._bytes = TokenBucket(limits.bytes_per_s, limits.burst_s, clock) if limits.bytes_per_s else None

    def carry_out(self, call: Call, action: Callable[[], T]) -> T:
        # The wait for the rate comes first: whoever waits for it holds nobody up.
        if self._requests is not None:
            self._requests.take(1)
        if self._bytes is not None:
            # Also with nothing to send: what earlier downloads owe is waited for.
            self._bytes.take(call.bytes_up + call.bytes_down)
        with self._slots:
            result = action()
        if self._bytes is not None and (down := bytes_down(result)):
            self._bytes.reserve(down - call.bytes_down)
        return result


class LimitedStore(StoreWrapper):
    def __init__(self, inner: ObjectStore, limits: Limits, clock: Clock) -> None:
        super().__init__(inner)
        self._limiter = Limiter(limits, clock)

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._limiter.carry_out(call, action)
