"""The suite of all stores, passed by the S3 adapter on an emulator and on a real server, over http and TLS."""

import uuid
from collections.abc import Iterator

import pytest

from s3core.conformance import MakeStore, StoreConformance
from s3core.endpoint import Endpoint
from s3core.s3 import S3Store, open_s3_store
from s3core.s3_control import S3Control
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw


def stores_at(endpoint: Endpoint) -> Iterator[MakeStore]:
    """Each store below a prefix of its own in one new bucket; a prefix with blanks and a plus sign."""
    bucket = f"suite-{uuid.uuid4().hex[:8]}"
    control = S3Control(endpoint)
    control.create_bucket(bucket)
    control.close()
    opened: list[S3Store] = []

    def make() -> S3Store:
        opened.append(open_s3_store(endpoint, bucket, f"of +{len(opened)}/a store"))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


class TestMoto(StoreConformance):
    @pytest.fixture
    def make_store(self, moto_server: MotoServer) -> Iterator[MakeStore]:
        yield from stores_at(moto_server.endpoint())


@pytest.mark.rgw
class TestRadosgwHttp(StoreConformance):
    @pytest.fixture
    def make_store(self, radosgw: Radosgw) -> Iterator[MakeStore]:
        yield from stores_at(radosgw.endpoint())


@pytest.mark.rgw
class TestRadosgwTls(StoreConformance):
    @pytest.fixture
    def make_store(self, radosgw: Radosgw) -> Iterator[MakeStore]:
        yield from stores_at(radosgw.endpoint(tls=True))


@pytest.mark.rgw
class TestRadosgwPinned(StoreConformance):
    @pytest.fixture
    def make_store(self, radosgw: Radosgw) -> Iterator[MakeStore]:
        pin = radosgw.certificate.fingerprint
        yield from stores_at(radosgw.endpoint(tls=True, ca_file="", fingerprint=pin))
