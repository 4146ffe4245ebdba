"""Retries, limits, counts and faults of buckets; URLs; listings that lie."""

import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from s3core.bucket import Bucket, CopySource, Written
from s3core.bucket_stack import MEMORY, LimitedBucket, RetryingBucket, open_bucket, stack_bucket
from s3core.endpoint import Credentials, Endpoint
from s3core.errors import Misconfigured, OutcomeUnknown, PreconditionFailed, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan
from s3core.faulty_bucket import FaultyBucket
from s3core.limit import Limits
from s3core.memory_bucket import MemoryBucket
from s3core.retry import RetryPolicy
from s3core.settings import Config
from s3core.wrapper import Operation
from tests.s3core.fakes import FakeClock


class World:
    def __init__(self, *, versioned: bool = False, attempts: int = 3) -> None:
        self.clock = FakeClock()
        self.memory = MemoryBucket(clock=self.clock, versioned=versioned)
        self.etag = self.memory.put("k", b"old").etag
        self.faulty = FaultyBucket(self.memory, FaultPlan(), random.Random(1), self.clock)
        policy = RetryPolicy(attempts_max=attempts)
        self.bucket = stack_bucket(self.faulty, self.clock, random.Random(2), policy)

    def fail(self, operation: Operation, *kinds: FaultKind) -> None:
        """The next calls of `operation` fail so."""
        at = self.faulty.calls[operation]
        script: dict[tuple[str, int], Fault] = {
            (operation, at + place): Fault(kind) for place, kind in enumerate(kinds, 1)
        }
        self.faulty.plan = FaultPlan(scripted=script)


SOURCE = CopySource("bucket", "k")
WRITES: dict[Operation, Callable[[Bucket], object]] = {
    "put": lambda bucket: bucket.put("new", b"1"),
    "copy": lambda bucket: bucket.copy(SOURCE, "new"),
    "delete": lambda bucket: bucket.delete("k"),
    "multipart": lambda bucket: bucket.begin_upload("new"),
}
READS: dict[Operation, Callable[[Bucket], object]] = {
    "get": lambda bucket: bucket.get("k"),
    "head": lambda bucket: bucket.head("k").size,
    "tags": lambda bucket: bucket.tags("k"),
    "list": lambda bucket: bucket.list_page().keys,
    "list_versions": lambda bucket: len(bucket.list_versions().versions),
}


@pytest.mark.parametrize("kind", [FaultKind.REFUSED, FaultKind.LOST_REPLY, FaultKind.LOST_REQUEST, FaultKind.SLOW_DOWN])
@pytest.mark.parametrize("operation", [*WRITES, *READS])
def test_what_may_be_done_twice_is_asked_again(operation: Operation, kind: FaultKind) -> None:
    world = World()
    world.fail(operation, kind, kind)
    call = (WRITES | READS)[operation]
    result = call(world.bucket)
    if operation in READS:
        assert result == call(world.memory)
    assert world.bucket.snapshot()["retries"] == 2
    assert world.bucket.snapshot()[f"requests_{operation}"] == 1


@pytest.mark.parametrize("operation", WRITES)
def test_a_write_of_which_nothing_was_heard_in_the_end_is_unknown(operation: Operation) -> None:
    world = World()
    world.fail(operation, FaultKind.LOST_REPLY, FaultKind.REFUSED, FaultKind.REFUSED)
    with pytest.raises(OutcomeUnknown):
        WRITES[operation](world.bucket)


def test_conditional_puts_and_completions_are_asked_once() -> None:
    world = World()
    upload = world.bucket.begin_upload("u")
    parts = [(1, world.bucket.upload_part("u", upload, 1, b"x"))]
    calls: dict[Operation, Callable[[], object]] = {
        "put_if_absent": lambda: world.bucket.put("new", b"1", if_absent=True),
        "put_if_match": lambda: world.bucket.put("k", b"1", if_match=world.etag),
        "complete": lambda: world.bucket.complete_upload("u", upload, parts),
    }
    for operation, call in calls.items():
        world.fail(operation, FaultKind.LOST_REPLY)
        with pytest.raises(OutcomeUnknown):
            call()
        assert world.faulty.calls[operation] == 1
    assert world.memory.contents() == {"k": b"1", "new": b"1", "u": b"x"}


def test_a_copy_whose_condition_fails_after_a_lost_reply_stays_unknown() -> None:
    world = World()
    world.fail("copy", FaultKind.LOST_REPLY)
    inner = world.memory.copy

    def changed_meanwhile(source: CopySource, key: str, **options: object) -> Written:
        written = inner(source, key)
        world.memory.put("k", b"new")
        return written

    world.memory.copy = changed_meanwhile  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        world.bucket.copy(CopySource("bucket", "k", if_match=world.etag), "copy")
    assert world.memory.contents()["copy"] == b"old"


def test_answers_are_not_repeated() -> None:
    world = World()
    with pytest.raises(PreconditionFailed):
        world.bucket.get("k", if_match="other")
    assert world.faulty.calls["get"] == 1
    assert world.bucket.snapshot()["errors"] == 0


def test_late_writes_arrive_with_the_bytes_they_were_given() -> None:
    world = World(attempts=1)
    world.fail("put", FaultKind.LATE)
    body = bytearray(b"late")
    with pytest.raises(OutcomeUnknown):
        world.bucket.put("k", body)
    body[:] = b"else"
    assert world.memory.contents()["k"] == b"old"
    assert world.faulty.settle() == 1
    assert world.memory.contents()["k"] == b"late"


def test_a_bit_flips_in_what_is_read() -> None:
    world = World()
    world.fail("get", FaultKind.FLIPPED_BIT)
    assert world.bucket.get("k") != b"old"
    assert world.bucket.get("k") == b"old"


def test_requests_and_bytes_keep_to_the_limits() -> None:
    clock = FakeClock()
    memory = MemoryBucket(clock=clock)
    bucket = LimitedBucket(memory, Limits(requests_per_s=10, burst_s=0), clock)
    began = clock.monotonic()
    for _ in range(10):
        bucket.list_page()
    assert clock.monotonic() - began == pytest.approx(1.0)
    bucket = LimitedBucket(memory, Limits(bytes_per_s=1000, burst_s=0), clock)
    began = clock.monotonic()
    bucket.put("k", bytes(500))
    bucket.get("k")  # how long it is shows only now: the next call pays
    bucket.get("k", length=100)
    assert clock.monotonic() - began == pytest.approx(1.1)


def test_counts_by_operation() -> None:
    registry = CollectorRegistry()
    bucket, prefix = open_bucket("memory:counted/a/b", registry=registry)
    assert prefix == "a/b/"
    bucket.put("k", b"12345")
    bucket.get("k", length=2)
    with pytest.raises(PreconditionFailed):
        bucket.put("k", b"1", if_absent=True)
    numbers = bucket.snapshot()
    assert (numbers["requests"], numbers["requests_put"], numbers["requests_put_if_absent"]) == (3, 1, 1)
    assert (numbers["bytes_up"], numbers["bytes_down"], numbers["errors"]) == (6, 2, 0)
    labels = {"operation": "put_if_absent", "outcome": "precondition_failed"}
    assert registry.get_sample_value("bucketworks_bucket_requests_total", labels) == 1


# --- URLs ------------------------------------------------------------------------------------------------


def test_buckets_in_memory_are_those_of_the_process() -> None:
    one, prefix = open_bucket("memory:shared")
    one.put("k", b"x")
    assert prefix == ""
    assert MEMORY.bucket("shared").contents() == {"k": b"x"}
    assert open_bucket("memory:shared/p")[0].get("k") == b"x"


def test_a_directory_is_no_bucket(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="not a bucket"):
        open_bucket(f"file://{tmp_path}")
    with pytest.raises(ValueError, match="must be"):
        open_bucket("http://x/y")
    with pytest.raises(Misconfigured, match="no configuration"):
        open_bucket("s3://somewhere/bucket")


def test_an_s3_url_names_endpoint_bucket_and_prefix() -> None:
    endpoint = Endpoint("lab", "http://127.0.0.1:1", "us-east-1", credentials=Credentials("a", "b"))

    class Lab(Config):
        def __init__(self) -> None:
            """Knows one endpoint."""
            super().__init__()

        def endpoint(self, name: str, environ: Mapping[str, str] | None = None) -> Endpoint:
            assert name == "lab"
            return endpoint

    bucket, prefix = open_bucket("s3://lab/pictures/2026/%23x", Lab(), policy=RetryPolicy(attempts_max=1))
    assert (bucket.url, prefix) == ("s3://lab/pictures", "2026/#x/")
    with pytest.raises(Unavailable):
        bucket.list_page()
    bucket.close()


# --- listings that lie -----------------------------------------------------------------------------------


def listed(bucket: Bucket, *, by_token: bool = True, prefix: str = "") -> list[bytes]:
    keys: list[bytes] = []
    token = after = ""
    while True:
        page = bucket.list_page(prefix=prefix, max_keys=2, token=token, start_after=after)
        keys += page.keys
        if not page.truncated:
            return keys
        token, after = (page.token, "") if by_token else ("", page.keys[-1].decode())


def test_a_store_with_folders_lists_them_first() -> None:
    world = World()
    for key in ("foo.conda", "foo/a", "foo/b", "foo", "foo-bar"):
        world.memory.put(key, b"")
    world.faulty.hierarchical = True
    order = [b"foo", b"foo/a", b"foo/b", b"foo-bar", b"foo.conda", b"k"]
    for by_token in (True, False):
        assert listed(world.faulty, by_token=by_token) == order
    assert listed(world.faulty, prefix="foo/") == [b"foo/a", b"foo/b"]


def test_a_listing_that_ends_early_says_that_it_is_whole() -> None:
    world = World()
    for key in "abcdefg":
        world.memory.put(key, b"")
    world.faulty.ends_after = "c"
    assert listed(world.faulty) == [b"a", b"b", b"c"]
    assert not world.faulty.list_page().truncated
    assert world.faulty.list_page(start_after="d").keys == []


def test_a_retrying_bucket_gives_up_at_its_deadline() -> None:
    world = World()
    retrying = RetryingBucket(world.faulty, world.clock, random.Random(1), RetryPolicy(attempts_max=1000, deadline_s=5))
    world.faulty.partition()
    began = world.clock.monotonic()
    with pytest.raises(StoreError):
        retrying.list_page()
    assert world.clock.monotonic() - began <= 5
