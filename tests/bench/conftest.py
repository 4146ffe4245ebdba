"""The benchmark's store as a process, as benchmarks start it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import end, start, wait_for_line
from bench.store import READY, Client
from s3core.endpoint import Credentials, Endpoint


def running(log: Path, *options: str) -> Iterator[int]:
    """Its port."""
    server = start([sys.executable, "-m", "bench.store", *options], log)
    try:
        yield int(wait_for_line(log, READY, server).split()[-1])
    finally:
        end(server)


@pytest.fixture(scope="session")
def running_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    yield from running(tmp_path_factory.mktemp("store") / "store.log")


@pytest.fixture(scope="session")
def strict_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """With ETags that are digests."""
    yield from running(tmp_path_factory.mktemp("store") / "strict.log", "--md5")


@pytest.fixture
def store(running_store: int) -> Iterator[Client]:
    """Without conditions, and with counts from zero."""
    client = Client(running_store)
    client.reset()
    client.clear_stats()
    yield client
    client.reset()


def endpoint_at(port: int) -> Endpoint:
    return Endpoint(
        name="bench",
        url=f"http://127.0.0.1:{port}",
        region="us-east-1",
        addressing="path",
        credentials=Credentials("any", "secret", source="the test"),
    )
