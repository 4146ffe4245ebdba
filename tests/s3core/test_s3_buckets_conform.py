"""The suite of all buckets, passed by the S3 adapter on an emulator and on a real server, over http and TLS."""

import uuid
from collections.abc import Iterator, Mapping
from typing import ClassVar

import pytest

from s3core.bucket_conformance import (
    ArchiveConformance,
    BucketConformance,
    LockConformance,
    MakeBucket,
    ProofConformance,
)
from s3core.endpoint import Endpoint
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw

MOTO = {
    "line\nfeed": "its router takes no newline",
    "copy_range": "a range beyond the source's end is cut",
    "part_etag": "HEAD of a part gives the part's ETag",
    "wrong_md5": "Content-MD5 and checksums are not compared",
    "upload_pages": "all uploads come on one page",
    "part_pages": "a page of parts is a range of numbers",
    "kept_checksums": "checksums are kept where its own header asks for it",
    "customer_key": "SSE-C is not checked",
    "version_order": "versions of one key from one second come in any order, so pages repeat some",
}
CEPH = {
    "underscore": "it reads headers as CGI variables, where `_` and `-` are one, and gives back `-`",
    "copy_etag": "a copy keeps the ETag of its source",
    "parts": "HEAD of a part is not known",
    "storage_class": "it has the classes that its operator made, here STANDARD alone",
    "AES256": "ignored before release 17",
    "customer_copy": "it copies nothing that a customer's key closed",
}
CEPH_WITH_VERSIONS = CEPH | {
    "if_absent": "ignored in a bucket with versions",
    "if_match": "always refused in a bucket with versions",
}
"""What the servers do otherwise than S3 documents. Ceph is radosgw 16.2."""


def buckets_at(endpoint: Endpoint, *, versioned: bool = False, object_lock: bool = False) -> Iterator[MakeBucket]:
    """Each in a new bucket."""
    control = S3Control(endpoint)
    opened: list[S3Bucket] = []

    def make() -> S3Bucket:
        name = f"bucket-{uuid.uuid4().hex[:8]}"
        control.create_bucket(name, object_lock=object_lock)
        if versioned:
            control.set_versioning(name, True)
        opened.append(S3Bucket(endpoint, name))
        return opened[-1]

    yield make
    control.close()
    for bucket in opened:
        bucket.close()


class TestMoto(BucketConformance, ArchiveConformance):
    differences: ClassVar[Mapping[str, str]] = MOTO

    @pytest.fixture
    def make_bucket(self, moto_server: MotoServer) -> Iterator[MakeBucket]:
        yield from buckets_at(moto_server.endpoint())


class TestMotoAsAws(ProofConformance):
    """With what is sent to AWS alone: checksums in place of Content-MD5."""

    differences: ClassVar[Mapping[str, str]] = MOTO

    @pytest.fixture
    def make_bucket(self, moto_server: MotoServer) -> Iterator[MakeBucket]:
        yield from buckets_at(moto_server.endpoint(preset="aws", addressing="path"))


class TestMotoWithVersions(BucketConformance):
    differences: ClassVar[Mapping[str, str]] = MOTO

    @pytest.fixture
    def make_bucket(self, moto_server: MotoServer) -> Iterator[MakeBucket]:
        yield from buckets_at(moto_server.endpoint(), versioned=True)


@pytest.mark.rgw
class TestRadosgwHttp(BucketConformance, LockConformance):
    differences: ClassVar[Mapping[str, str]] = CEPH
    kms_key_id: ClassVar[str] = "test-key"

    @pytest.fixture
    def make_bucket(self, radosgw: Radosgw) -> Iterator[MakeBucket]:
        yield from buckets_at(radosgw.endpoint())

    @pytest.fixture
    def make_locked_bucket(self, radosgw: Radosgw) -> Iterator[MakeBucket]:
        yield from buckets_at(radosgw.endpoint(), object_lock=True)


@pytest.mark.rgw
class TestRadosgwTls(BucketConformance):
    differences: ClassVar[Mapping[str, str]] = CEPH
    kms_key_id: ClassVar[str] = "test-key"

    @pytest.fixture
    def make_bucket(self, radosgw: Radosgw) -> Iterator[MakeBucket]:
        yield from buckets_at(radosgw.endpoint(tls=True))


@pytest.mark.rgw
class TestRadosgwTlsWithVersions(BucketConformance):
    differences: ClassVar[Mapping[str, str]] = CEPH_WITH_VERSIONS
    kms_key_id: ClassVar[str] = "test-key"

    @pytest.fixture
    def make_bucket(self, radosgw: Radosgw) -> Iterator[MakeBucket]:
        yield from buckets_at(radosgw.endpoint(tls=True), versioned=True)
