"""From a URL to a store ready for use: the one place where adapters and wrappers are stacked.

    Observed( Retrying( Limited( adapter ) ) )        every request of a retry counts against the limits

One rule: what is not asked for is not imported; the S3 adapter and the settings load with the first s3:// URL.
"""

import random as random_module
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from prometheus_client import CollectorRegistry

from s3core.clock import Clock, SystemClock, system_random
from s3core.errors import Misconfigured
from s3core.file import FileStore
from s3core.limit import LimitedStore, Limits
from s3core.memory import MemoryObjects, MemoryStore
from s3core.observe import ObservedStore
from s3core.retry import RetryingStore, RetryPolicy
from s3core.spending_book import Tally, tally_of
from s3core.store import ObjectStore
from s3core.wrapper import Call

if TYPE_CHECKING:
    from s3core.endpoint import Endpoint
    from s3core.errors import StoreError
    from s3core.settings import Config

_memory_buckets: dict[str, MemoryObjects] = {}
"""The `memory:NAME` stores of this process: two opens of one name see the same objects."""
_memory_lock = threading.Lock()

_FORMS = "s3://ENDPOINT/BUCKET/PREFIX, file:///DIRECTORY or memory:NAME"


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A place in a store. `name` is the endpoint's, the memory store's or empty; `bucket` is S3's alone;
    `path` is the directory of a file store and the prefix of the others (without slashes at its ends)."""

    scheme: str
    name: str
    bucket: str
    path: str


def parse_store_url(url: str) -> StoreUrl:
    """ValueError with the known forms in it for anything else."""
    if url.startswith("memory:"):
        name, _, prefix = url.removeprefix("memory:").partition("/")
        return StoreUrl("memory", name, "", prefix.strip("/"))
    parts = urlsplit(url)
    if parts.query or parts.fragment:
        raise ValueError(f"store URL {url!r}: '?' and '#' must be written %3F and %23")
    path = unquote(parts.path)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError(f"store URL {url!r}: file: takes three slashes and an absolute path, as file:///srv/store")
        if not path.startswith("/") or path.strip("/") == "":
            raise ValueError(f"store URL {url!r}: names no directory")
        return StoreUrl("file", "", "", path)
    if parts.scheme == "s3":
        bucket, _, prefix = path.lstrip("/").partition("/")
        if not parts.netloc or not bucket:
            raise ValueError(f"store URL {url!r}: must name an endpoint and a bucket, as s3://ENDPOINT/BUCKET/PREFIX")
        return StoreUrl("s3", unquote(parts.netloc), bucket, prefix.strip("/"))
    raise ValueError(f"store URL {url!r}: must be {_FORMS}")


def build_store(
    url: str,
    *,
    config: "Config | None" = None,
    clock: Clock | None = None,
    random: random_module.Random | None = None,
    registry: CollectorRegistry | None = None,
    policy: RetryPolicy | None = None,
    limits: Limits | None = None,
    retain_s: float | None = None,
) -> ObservedStore:
    """The full stack for `url`. `config` names the endpoints of s3:// URLs; `policy` and `limits` stand in
    place of the endpoint's own; `retain_s` is for buckets with Object Lock (`s3core.s3.open_s3_store`), and Misconfigured
    above 0 for places that have none. ValueError for a URL that is none; ConfigError for an endpoint not known and
    CredentialsError for keys that cannot be had."""
    place = parse_store_url(url)
    clock = clock or SystemClock()
    adapter: ObjectStore
    tally: Tally | None = None
    if retain_s and place.scheme != "s3":
        raise Misconfigured(f"{url} has no Object Lock, so nothing can be retained there", hint="retention needs s3://")
    if place.scheme == "memory":
        with _memory_lock:
            bucket = _memory_buckets.setdefault(place.name, MemoryObjects())
        prefix = f"{place.path}/" if place.path else ""
        adapter = MemoryStore(prefix, clock=clock, bucket=bucket, name=place.name)
    elif place.scheme == "file":
        adapter = FileStore(place.path)
    else:
        from s3core.s3 import open_s3_store

        endpoint = named_endpoint(place.name, config)
        adapter = open_s3_store(endpoint, place.bucket, place.path, retain_s=retain_s)
        limits = limits or Limits(endpoint.concurrency, endpoint.requests_per_s, endpoint.bytes_per_s)
        policy = policy or RetryPolicy(attempts_max=endpoint.retries + 1, deadline_s=endpoint.deadline_s)
        tally = tally_of(endpoint.name, config)
    return stack(adapter, clock, random or system_random(), policy, limits, registry, tally)


def stack(
    adapter: ObjectStore,
    clock: Clock,
    random: random_module.Random,
    policy: RetryPolicy | None = None,
    limits: Limits | None = None,
    registry: CollectorRegistry | None = None,
    tally: Tally | None = None,
) -> ObservedStore:
    """The wrappers around `adapter`, for `build_store` and for drills that put a faulty store below them."""

    def tell(call: Call, error: "StoreError") -> None:
        observed.count_retry(call, error)

    limited = LimitedStore(adapter, limits or Limits(), clock)
    retrying = RetryingStore(limited, clock, random, policy, on_retry=tell)
    observed = ObservedStore(retrying, registry=registry, clock=clock, tally=tally)
    return observed


def named_endpoint(name: str, config: "Config | None") -> "Endpoint":
    """The endpoint of an s3:// URL. Misconfigured without a configuration; ConfigError where it does not know it."""
    if config is None:
        raise Misconfigured(
            f"endpoint {name!r} cannot be looked up: no configuration was read",
            hint="name the configuration with --config or BUCKETWORKS_CONFIG",
        )
    return config.endpoint(name)
