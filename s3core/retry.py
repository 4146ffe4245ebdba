"""Trying again: exponential backoff with full jitter, up to a number of attempts and a deadline.

One rule: an answer is repeated only where asking twice cannot be told from asking once. So of the errors only
the temporary ones, and of those

    Unavailable      every operation: by contract nothing was applied
    OutcomeUnknown   reads and the unconditional writes, which do the same again; a conditional write or the
                     completion of an upload goes up as it is, for a second attempt could find the first in
                     its way and call a success a failure: the caller reads the object and compares

Once an attempt's outcome was unknown, no later failure makes it known: giving up then raises OutcomeUnknown.
A request that was given up may still arrive after its repetition, so a caller that overwrites one key with
something else must not count on an order between the two (objects here are written once, or conditionally).
"""

import logging
import random as random_module
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from s3core.clock import Clock
from s3core.errors import OutcomeUnknown, StoreError
from s3core.store import ObjectInfo, ObjectStore
from s3core.wrapper import CONDITIONAL, Call, StoreWrapper, T

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The n-th wait is random between 0 and delay_first_s * 2**(n-1), at most delay_max_s, and never shorter
    than what the server asked for. `deadline_s` counts from the first attempt; no wait begins that would pass it."""

    attempts_max: int = 9
    delay_first_s: float = 0.1
    delay_max_s: float = 10.0
    deadline_s: float = 60.0

    def delay(self, failures: int, random: random_module.Random, asked_s: float = 0.0) -> float:
        """Seconds to wait after the `failures`-th failure (from 1)."""
        ceiling = min(self.delay_max_s, self.delay_first_s * 2.0 ** min(failures - 1, 60))
        return max(random.uniform(0.0, ceiling), asked_s)


class RetryingStore(StoreWrapper):
    """`on_retry` is told of every attempt that will be repeated."""

    def __init__(
        self,
        inner: ObjectStore,
        clock: Clock,
        random: random_module.Random,
        policy: RetryPolicy | None = None,
        *,
        on_retry: Callable[[Call, StoreError], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self._clock = clock
        self._random = random
        self._policy = policy or RetryPolicy()
        self._on_retry = on_retry

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._effort(call).carry_out(action)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Goes on after the last key that was had; every key had is progress and starts the deadline anew."""
        call, after = Call("list", prefix), start_after
        effort = self._effort(call)
        while True:
            try:
                for info in self.inner.list(prefix, start_after=after):
                    yield info
                    after = info.key
                    effort.reset()
                return
            except StoreError as error:
                effort.wait_or_raise(error)

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        """The port cannot begin in the middle here: what was had already is asked for again and skipped."""
        effort, last = self._effort(Call("list_prefixes", prefix)), ""
        while True:
            try:
                for group in self.inner.list_prefixes(prefix, delimiter=delimiter):
                    if group > last:
                        yield group
                        last = group
                        effort.reset()
                return
            except StoreError as error:
                effort.wait_or_raise(error)

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        """Only the keys that failed are tried again."""
        effort = self._effort(Call("delete_many", keys[0]))
        failed: dict[str, StoreError] = {}
        unknown: dict[str, StoreError] = {}
        while True:
            try:
                answers = self.inner.delete_many(keys)
            except StoreError as error:
                answers = dict.fromkeys(keys, error)
            unknown |= {key: error for key, error in answers.items() if isinstance(error, OutcomeUnknown)}
            again = [key for key, error in answers.items() if error.temporary]
            failed |= {key: unknown.get(key, error) for key, error in answers.items() if not error.temporary}
            if not again:
                return failed
            try:
                effort.wait_or_raise(answers[again[0]])
            except StoreError:
                return failed | {key: unknown.get(key, answers[key]) for key in again}
            keys = again

    def _effort(self, call: Call) -> "Effort":
        return Effort(call, self._clock, self._random, self._policy, self._on_retry)


class Effort:
    """One call with its repetitions, of a store or of a bucket (`s3core.bucket_stack`). `once`: an unknown outcome goes up
    as it is, as that of a conditional write does."""

    def __init__(
        self,
        call: Call,
        clock: Clock,
        random: random_module.Random,
        policy: RetryPolicy,
        on_retry: Callable[[Call, StoreError], None] | None,
        *,
        once: bool = False,
    ) -> None:
        self._once = once or call.operation in CONDITIONAL or call.operation == "complete"
        self._call = call
        self._clock = clock
        self._random = random
        self._policy = policy
        self._on_retry = on_retry
        self.reset()

    def reset(self) -> None:
        self._failures = 0
        self._began = self._clock.monotonic()
        self._unknown: OutcomeUnknown | None = None

    def carry_out(self, action: Callable[[], T]) -> T:
        """`action`, again and again until it answers."""
        while True:
            try:
                return action()
            except StoreError as error:
                self.wait_or_raise(error)

    def wait_or_raise(self, error: StoreError) -> None:
        """Sleeps until it is time for another attempt, or raises what the caller shall hear."""
        call = self._call
        if isinstance(error, OutcomeUnknown):
            self._unknown = error
            if self._once:
                raise error
        if not error.temporary:
            raise self._verdict(error)
        now = self._clock.monotonic()
        self._failures += 1
        asked_s = float(getattr(error, "retry_after", None) or 0.0)
        delay = self._policy.delay(self._failures, self._random, asked_s)
        if self._failures >= self._policy.attempts_max or now + delay - self._began > self._policy.deadline_s:
            log.error(
                "given up: operation=%s key=%s attempts=%d seconds=%.1f error=%s",
                *(call.operation, call.key, self._failures, now - self._began, error),
            )
            raise self._verdict(error)
        level = (logging.DEBUG, logging.INFO)[self._failures - 1] if self._failures <= 2 else logging.WARNING
        log.log(
            level,
            "will try again: operation=%s key=%s attempt=%d wait_s=%.2f error=%s",
            *(call.operation, call.key, self._failures, delay, error),
        )
        if self._on_retry is not None:
            self._on_retry(call, error)
        self._clock.sleep(delay)

    def _verdict(self, error: StoreError) -> StoreError:
        if self._unknown is None or self._unknown is error:
            return error
        verdict = OutcomeUnknown(
            f"an earlier attempt may have been applied; the last one failed: {error}", key=error.key, hint=error.hint
        )
        verdict.__cause__ = error
        return verdict
