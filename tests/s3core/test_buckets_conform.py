"""Every bucket that needs no server, bare and wrapped, passes the conformance suite."""

import pytest

from s3core.bucket_conformance import BucketConformance, MakeBucket
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
