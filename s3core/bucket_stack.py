"""From a URL to a bucket ready for use: the one place where adapters and wrappers of the bucket port are stacked.

    Observed( Retrying( Limited( adapter ) ) )        every request of a retry counts against the limits

One rule: the wrappers add retries, limits and counts as those of stores do (`s3core.retry`, `s3core.limit`,
`s3core.observe`) and by the same code. Reads, copies, plain puts, parts and deletes are asked again where their outcome
is unknown, for they do the same again (a delete in a bucket with versions may leave a second marker, a begun upload a
second upload to be aborted by the bucket's lifecycle); conditional puts and completions are not, nor what a caller names
with `once`.
"""

import random as random_module
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from s3core.bucket import Bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.build import named_endpoint, parse_store_url
from s3core.clock import Clock, SystemClock, system_random
from s3core.errors import Misconfigured, StoreError
from s3core.limit import Limiter, Limits
from s3core.memory_bucket import MemoryService
from s3core.observe import Observer
from s3core.retry import Effort, RetryPolicy
from s3core.spending_book import Tally, tally_of
from s3core.wrapper import Call, Operation, T

if TYPE_CHECKING:
    from s3core.settings import Config

MEMORY = MemoryService("memory")
"""The `memory:NAME` buckets of this process; two opens of one name see the same objects."""


class RetryingBucket(BucketWrapper):
    """`on_retry` is told of every attempt that will be repeated. `once`: operations that are not repeated where their
    outcome is unknown."""

    def __init__(
        self,
        inner: Bucket,
        clock: Clock,
        random: random_module.Random,
        policy: RetryPolicy | None = None,
        *,
        once: Collection[Operation] = (),
        on_retry: Callable[[Call, StoreError], None] | None = None,
    ) -> None:
        super().__init__(inner)
        self._clock = clock
        self._random = random
        self._policy = policy or RetryPolicy()
        self._once = frozenset(once)
        self._on_retry = on_retry

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        once = call.operation in self._once
        return Effort(call, self._clock, self._random, self._policy, self._on_retry, once=once).carry_out(action)


class LimitedBucket(BucketWrapper):
    """Bytes that a server copies by itself do not count."""

    def __init__(self, inner: Bucket, limits: Limits, clock: Clock) -> None:
        super().__init__(inner)
        self._limiter = Limiter(limits, clock)

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._limiter.carry_out(call, action)


class ObservedBucket(BucketWrapper):
    """See `s3core.observe.Observer`."""

    def __init__(
        self,
        inner: Bucket,
        *,
        registry: CollectorRegistry | None = None,
        clock: Clock | None = None,
        tally: Tally | None = None,
    ) -> None:
        super().__init__(inner)
        self._observer = Observer("bucket", registry=registry, clock=clock, tally=tally)

    def snapshot(self) -> dict[str, float]:
        """See `Observer.snapshot`."""
        return self._observer.snapshot()

    def count_retry(self, call: Call, error: StoreError) -> None:
        """For `RetryingBucket`'s `on_retry`."""
        self._observer.count_retry(call, error)

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._observer.carry_out(call, action)


def open_bucket(
    url: str,
    config: "Config | None" = None,
    *,
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    registry: CollectorRegistry | None = None,
    policy: RetryPolicy | None = None,
    limits: Limits | None = None,
    once: Collection[Operation] = (),
    around: Callable[[Bucket], Bucket] | None = None,
    counted_elsewhere: bool = False,
) -> tuple[ObservedBucket, str]:
    """The full stack for the bucket in `url` and the prefix that the URL goes on with, "" or ending with `/`. `config`
    names the endpoints of s3:// URLs; `policy` and `limits` stand in place of the endpoint's own; `around` is put around the
    adapter, below limits and retries, so that it sees each attempt; `counted_elsewhere`: the caller counts what is spent, and
    tells `bucketworks spending` itself. ValueError for a URL that is none, Misconfigured for file:, ConfigError for an endpoint
    not known, CredentialsError for keys that cannot be had."""
    place = parse_store_url(url)
    clock = clock or SystemClock()
    adapter: Bucket
    tally: Tally | None = None
    if place.scheme == "memory":
        adapter = MEMORY.bucket(place.name or "bucket")
    elif place.scheme == "s3":
        from s3core.s3_bucket import S3Bucket

        endpoint = named_endpoint(place.name, config)
        adapter = S3Bucket(endpoint, place.bucket, clock=clock)
        limits = limits or Limits(endpoint.concurrency, endpoint.requests_per_s, endpoint.bytes_per_s)
        policy = policy or RetryPolicy(attempts_max=endpoint.retries + 1, deadline_s=endpoint.deadline_s)
        tally = None if counted_elsewhere else tally_of(endpoint.name, config)
    else:
        raise Misconfigured(
            f"{url}: a directory is not a bucket: it has no versions, no tags and no ETags of S3",
            hint="name a bucket as s3://ENDPOINT/BUCKET/PREFIX; file: is for the state",
        )
    if around is not None:
        adapter = around(adapter)
    bucket = stack_bucket(adapter, clock, random or system_random(), policy, limits, registry, once, tally)
    return bucket, f"{place.path}/" if place.path else ""


def stack_bucket(
    adapter: Bucket,
    clock: Clock,
    random: random_module.Random,
    policy: RetryPolicy | None = None,
    limits: Limits | None = None,
    registry: CollectorRegistry | None = None,
    once: Collection[Operation] = (),
    tally: Tally | None = None,
) -> ObservedBucket:
    """The wrappers around `adapter`, for `open_bucket` and for drills that put a faulty bucket below them."""

    def tell(call: Call, error: StoreError) -> None:
        observed.count_retry(call, error)

    limited = LimitedBucket(adapter, limits or Limits(), clock)
    retrying = RetryingBucket(limited, clock, random, policy, once=once, on_retry=tell)
    observed = ObservedBucket(retrying, registry=registry, clock=clock, tally=tally)
    return observed
