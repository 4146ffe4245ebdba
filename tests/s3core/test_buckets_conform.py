"""Every bucket that needs no server, bare and wrapped, passes the conformance suite."""

import random
import uuid
from collections.abc import Callable

import pytest

from s3core.bucket import Bucket
from s3core.bucket_conformance import BucketConformance, MakeBucket
from s3core.bucket_stack import LimitedBucket, ObservedBucket, RetryingBucket, open_bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.clock import SystemClock
from s3core.faulty import FaultPlan
from s3core.faulty_bucket import FaultyBucket
from s3core.limit import Limits
from s3core.memory_bucket import MemoryBucket, MemoryService


def memory_buckets(*, versioned: bool) -> MakeBucket:
    service = MemoryService()
    return lambda: MemoryBucket(f"bucket-{len(service.buckets)}", versioned=versioned, service=service)


class TestMemoryBucket(BucketConformance):
    @pytest.fixture
    def make_bucket(self) -> MakeBucket:
        return memory_buckets(versioned=False)


class TestMemoryBucketWithVersions(BucketConformance):
    @pytest.fixture
    def make_bucket(self) -> MakeBucket:
        return memory_buckets(versioned=True)


WRAPPERS: dict[str, Callable[[Bucket], Bucket]] = {
    "plain": BucketWrapper,
    "retrying": lambda inner: RetryingBucket(inner, SystemClock(), random.Random(1)),
    "limited": lambda inner: LimitedBucket(inner, Limits(4, 1e6, 1e11), SystemClock()),
    "observed": ObservedBucket,
    "faulty": lambda inner: FaultyBucket(inner, FaultPlan(), random.Random(1), SystemClock()),
}


class TestWrapped(BucketConformance):
    @pytest.fixture(params=WRAPPERS)
    def make_bucket(self, request: pytest.FixtureRequest) -> MakeBucket:
        make = memory_buckets(versioned=True)
        return lambda: WRAPPERS[request.param](make())


class TestStack(BucketConformance):
    @pytest.fixture
    def make_bucket(self) -> MakeBucket:
        return lambda: open_bucket(f"memory:{uuid.uuid4().hex}")[0]
