"""The benchmark's store passes the product's own suite of all stores."""

from collections.abc import Iterator

import pytest

from s3core.conformance import MakeStore, StoreConformance
from tests.bench.conftest import endpoint_at
from tests.s3core.test_s3_conformance import stores_at


class TestStore(StoreConformance):
    @pytest.fixture
    def make_store(self, strict_store: int) -> Iterator[MakeStore]:
        yield from stores_at(endpoint_at(strict_store))
