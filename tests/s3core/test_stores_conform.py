"""Every adapter that needs no server, bare and wrapped, passes the conformance suite."""

import random
import tempfile
from pathlib import Path

import pytest

from s3core.build import build_store, stack
from s3core.clock import SystemClock
from s3core.conformance import MakeStore, StoreConformance
from s3core.file import FileStore
from s3core.limit import LimitedStore, Limits
from s3core.memory import MemoryObjects, MemoryStore
from s3core.observe import ObservedStore
from s3core.prefixed import PrefixedStore, sub_store
from s3core.retry import RetryingStore
from s3core.store import ObjectStore


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return MemoryStore


class TestMemoryStoreWithPrefix(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        def make() -> ObjectStore:
            bucket = MemoryObjects()
            for key in ("a", "some", "some/other", "some/prefix", "some/prefix0", "z"):
                MemoryStore(bucket=bucket).put(key, b"not ours")
            return MemoryStore("some/prefix/", bucket=bucket)

        return make


class TestFileStore(StoreConformance):
    page_keys = 100  # a folder is read at once, and each write is synced

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return lambda: FileStore(Path(tempfile.mkdtemp(dir=tmp_path)) / "a store" / "below")


class TestPrefixedStore(StoreConformance):
    key_bytes_max = 888  # the inner store counts the prefix

    @pytest.fixture
    def make_store(self) -> MakeStore:
        def make() -> ObjectStore:
            inner = MemoryStore()
            for key in ("a", "some", "some/other", "some/prefix", "some/prefix0", "z"):
                inner.put(key, b"not ours")
            return PrefixedStore(inner, "some/prefix/")

        return make


class TestRetryingStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda: RetryingStore(MemoryStore(), SystemClock(), random.Random(1))


class TestLimitedStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda: LimitedStore(MemoryStore(), Limits(4, 1e6, 1e11), SystemClock())


class TestObservedStore(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda: ObservedStore(MemoryStore())


class TestFileStack(StoreConformance):
    page_keys = 100  # a folder is read at once, and each write is synced

    @pytest.fixture
    def make_store(self, tmp_path: Path) -> MakeStore:
        return lambda: build_store(f"file://{tempfile.mkdtemp(dir=tmp_path)}/stack")


class TestMemoryStack(StoreConformance):
    @pytest.fixture
    def make_store(self) -> MakeStore:
        return lambda: stack(sub_store(MemoryStore(), ""), SystemClock(), random.Random(1))
