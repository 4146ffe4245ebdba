"""URLs of stores, what is built from them, and the order of the wrappers."""

import random
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from s3core.build import StoreUrl, build_store, parse_store_url, stack
from s3core.errors import Misconfigured, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.limit import Limits
from s3core.memory import MemoryStore
from s3core.prefixed import PrefixedStore, sub_store
from s3core.retry import RetryPolicy
from s3core.settings import ConfigError, parse_config
from tests.s3core.fakes import FakeClock


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("file:///srv/store", StoreUrl("file", "", "", "/srv/store")),
        ("file://localhost/srv/a%20b", StoreUrl("file", "", "", "/srv/a b")),
        ("memory:", StoreUrl("memory", "", "", "")),
        ("memory:name", StoreUrl("memory", "name", "", "")),
        ("memory:name/some/prefix/", StoreUrl("memory", "name", "", "some/prefix")),
        ("s3://aws/bucket", StoreUrl("s3", "aws", "bucket", "")),
        ("s3://aws/bucket/", StoreUrl("s3", "aws", "bucket", "")),
        ("s3://My_Endpoint/bucket/a/b", StoreUrl("s3", "My_Endpoint", "bucket", "a/b")),
    ],
)
def test_urls(url: str, place: StoreUrl) -> None:
    assert parse_store_url(url) == place


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "must be s3://"),
        ("/srv/store", "must be s3://"),
        ("http://host/bucket", "must be s3://"),
        ("file://srv/store", "three slashes"),
        ("file:///", "names no directory"),
        ("file:relative", "names no directory"),
        ("s3://endpoint", "endpoint and a bucket"),
        ("s3:///bucket", "endpoint and a bucket"),
        ("s3://endpoint/bucket?x=1", "%3F"),
        ("file:///a#b", "%23"),
    ],
)
def test_urls_that_cannot_be_say_what_could(url: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_store_url(url)


def test_memory_stores_of_one_name_are_one(request: pytest.FixtureRequest) -> None:
    name = request.node.name
    first, second = build_store(f"memory:{name}"), build_store(f"memory:{name}/below")
    first.put("below/k", b"x")
    assert second.get("k").data == b"x"
    assert [info.key for info in second.list()] == ["k"]
    assert list(build_store(f"memory:{name}-other").list()) == []
    assert second.url == f"memory:{name}/below"


def test_file_store(tmp_path: Path) -> None:
    store = build_store(f"file://{tmp_path}/a%20b")
    store.put("k", b"x")
    assert (tmp_path / "a b" / "objects").is_dir()
    assert store.url == f"file://{tmp_path}/a%20b"
    assert store.properties.durable


def test_s3_needs_a_configuration_that_names_the_endpoint() -> None:
    with pytest.raises(Misconfigured, match="no configuration was read"):
        build_store("s3://nowhere/bucket")
    with pytest.raises(ConfigError, match="nowhere"):
        build_store("s3://nowhere/bucket", config=parse_config(""))


def test_s3_takes_retries_and_limits_from_the_endpoint() -> None:
    clock = FakeClock()
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        port = nobody_listens.getsockname()[1]
        endpoint = f'[endpoint.here]\nurl = "http://127.0.0.1:{port}"\nregion = "x"\nretries = 2\n'
        config = parse_config(endpoint + 'credentials = "none"\n')
        store = build_store("s3://here/bucket/prefix", config=config, clock=clock, random=random.Random(1))
        assert store.url.startswith("s3://here/bucket/prefix")
        with pytest.raises(Unavailable):
            store.get("k")
    assert store.snapshot()["retries"] == 2
    assert len(clock.slept) == 2
    store.close()


def test_nothing_of_s3_is_loaded_for_other_stores() -> None:
    code = (
        "import sys, s3core.build; s3core.build.build_store('memory:x').put('k', b'');"
        " sys.exit(any(name in sys.modules for name in ('boto3', 's3core.s3', 's3core.settings', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_attempt_counts_against_the_limits_and_once_for_the_observer() -> None:
    clock, registry = FakeClock(), CollectorRegistry()
    plan = FaultPlan(scripted={("get", 1): Fault(FaultKind.REFUSED), ("get", 2): Fault(FaultKind.REFUSED)})
    faulty = FaultyStore(MemoryStore(), plan, random.Random(1), clock)
    policy = RetryPolicy(delay_first_s=0.0)
    store = stack(faulty, clock, random.Random(1), policy, Limits(requests_per_s=1, burst_s=0), registry)
    store.put("k", b"x")
    store.get("k")
    assert sum(clock.slept) == pytest.approx(4)
    counts = store.snapshot()
    assert (counts["requests"], counts["requests_get"], counts["retries"], counts["errors"]) == (2, 1, 2, 0)
    assert registry.get_sample_value("bucketworks_store_retries_total", {"operation": "get"}) == 2


def test_sub_store() -> None:
    whole = MemoryStore()
    part = sub_store(whole, "/volumes/a/")
    part.put("k", b"x")
    assert whole.get("volumes/a/k").data == b"x"
    assert part.url == "memory:/volumes/a"
    assert sub_store(whole, "") is whole
    part.close()
    assert whole.get("volumes/a/k").data == b"x"
    with pytest.raises(ValueError, match="start with"):
        part.put("/k", b"")
    with pytest.raises(ValueError, match="start with"):
        PrefixedStore(whole, "/")


def test_errors_of_a_part_name_its_own_keys_where_a_caller_looks_them_up() -> None:
    class Refusing(MemoryStore):
        def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
            return {key: Unavailable("no", key=key) for key in keys}

    assert list(sub_store(Refusing(), "part").delete_many(["k"])) == ["k"]
