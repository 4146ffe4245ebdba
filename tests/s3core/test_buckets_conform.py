"""Every bucket that needs no server, bare and wrapped, passes the conformance suite."""

import random
import uuid
from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest

from s3core.bucket import Bucket
from s3core.bucket_conformance import ArchiveConformance, BucketConformance, LockConformance, MakeBucket
from s3core.bucket_stack import LimitedBucket, ObservedBucket, RetryingBucket, open_bucket
from s3core.bucket_wrapper import BucketWrapper
from s3core.clock import SystemClock
from s3core.faulty import FaultPlan
from s3core.faulty_bucket import FaultyBucket
from s3core.limit import Limits
from s3core.memory_bucket import MemoryBucket, MemoryService


def memory_buckets(*, versioned: bool, object_lock: bool = False, checksums: bool = True) -> MakeBucket:
    service = MemoryService(checksums=checksums)
    return lambda: MemoryBucket(
        f"bucket-{len(service.buckets)}", versioned=versioned, object_lock=object_lock, service=service
    )


class TestMemoryBucket(BucketConformance, LockConformance, ArchiveConformance):
    @pytest.fixture
    def make_bucket(self) -> MakeBucket:
        return memory_buckets(versioned=False)

    @pytest.fixture
    def make_locked_bucket(self) -> MakeBucket:
        return memory_buckets(versioned=True, object_lock=True)


class TestMemoryBucketWithoutChecksums(BucketConformance):
    @pytest.fixture
    def make_bucket(self) -> MakeBucket:
        return memory_buckets(versioned=False, checksums=False)


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


RETRIED = {"wrong_md5": "a digest that does not fit is taken for bytes that changed on the way, and tried again"}


class TestWrapped(BucketConformance, LockConformance, ArchiveConformance):
    differences: ClassVar[Mapping[str, str]] = RETRIED

    @pytest.fixture(params=WRAPPERS)
    def wrapper(self, request: pytest.FixtureRequest) -> Callable[[Bucket], Bucket]:
        return WRAPPERS[request.param]

    @pytest.fixture
    def make_bucket(self, wrapper: Callable[[Bucket], Bucket]) -> MakeBucket:
        make = memory_buckets(versioned=True)
        return lambda: wrapper(make())

    @pytest.fixture
    def make_locked_bucket(self, wrapper: Callable[[Bucket], Bucket]) -> MakeBucket:
        make = memory_buckets(versioned=True, object_lock=True)
        return lambda: wrapper(make())


class TestStack(BucketConformance):
    differences: ClassVar[Mapping[str, str]] = RETRIED

    @pytest.fixture
    def make_bucket(self) -> MakeBucket:
        return lambda: open_bucket(f"memory:{uuid.uuid4().hex}")[0]
