"""Homes on S3 servers: a whole life of one, with addresses that a stranger uses; and what a server does not look at, the
commit does."""

from collections.abc import Iterator

import pytest
import urllib3

from envctl.errors import EnvctlError
from envctl.homes.errors import ObjectsMissing
from envctl.homes.opening import open_homes
from envctl.homes.presigning import SignedUrl
from envctl.homes.store import HomeStore
from s3core.endpoint import Endpoint
from s3core.s3_control import S3Control
from s3core.settings import Config, parse_config
from tests.envctl.homes.making import ENVIRONMENT, Made, commit_of, contents, make
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw

FIRST = make({"home/ann/a": b"alpha" * 30, "home/ann/b": b"beta"})


def homes_at(endpoint: Endpoint, bucket: str) -> HomeStore:
    S3Control(endpoint).create_bucket(bucket)
    return open_homes(f"s3://here/{bucket}/homes", secret=bytes(32), config=config_of(endpoint))


def config_of(endpoint: Endpoint) -> Config:
    return parse_config(
        f"""
        [endpoint.here]
        preset = "{endpoint.preset}"
        url = "{endpoint.url}"
        region = "us-east-1"
        addressing = "path"
        access_key = "{endpoint.credentials.access_key}"
        secret_key = "{endpoint.credentials.secret_key}"
        """
    )


@pytest.fixture
def http() -> Iterator[urllib3.PoolManager]:
    with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
        yield pool


def ask(homes: HomeStore, made: Made) -> dict[str, SignedUrl | None]:
    wanted = [(name, len(data), name.partition("/")[2]) for name, data in made.objects.items()]
    return homes.upload_urls(ENVIRONMENT, wanted)


def live(homes: HomeStore, http: urllib3.PoolManager) -> None:
    """Two backups by addresses alone, read back by addresses and by the console, then purged."""
    homes.fence(ENVIRONMENT, 1)
    second = make({"home/ann/a": b"alpha" * 30, "home/ann/b": b"BETA"})
    for number, made in enumerate((FIRST, second)):
        for name, url in ask(homes, made).items():
            if url is not None:
                assert http.request("PUT", url.url, body=made.objects[name], headers=dict(url.headers)).status == 200
        assert set(ask(homes, made).values()) == {None}
        homes.commit(ENVIRONMENT, 1, commit_of(made, number or None, at=float(number)))
    for name, url in homes.download_urls(ENVIRONMENT, list(FIRST.objects)).items():
        assert http.request("GET", url.url).data == FIRST.objects[name]
    homes.heartbeat(ENVIRONMENT, 1, 2)
    assert contents(homes, 1)["home/ann/b"] == b"beta"
    assert contents(homes, 2)["home/ann/b"] == b"BETA"
    homes.pin(ENVIRONMENT, 1, "", "alice")
    assert [(one.number, one.pinned) for one in homes.snapshots(ENVIRONMENT)] == [(1, True), (2, False)]
    homes.fence(ENVIRONMENT, 2)
    with pytest.raises(EnvctlError, match="another machine"):
        homes.heartbeat(ENVIRONMENT, 1, 2)
    assert homes.collect(ENVIRONMENT, homes.clock.time()).marked == 0
    homes.purge(ENVIRONMENT)
    assert homes.usage(ENVIRONMENT).objects == 0


def cheat(homes: HomeStore, http: urllib3.PoolManager) -> None:
    """A guest whose uploads are broken on the way, each object in its turn."""
    homes.fence(ENVIRONMENT, 1)
    for wrong in FIRST.objects:
        for name, url in ask(homes, FIRST).items():
            if url is None:
                continue
            data = FIRST.objects[name]
            data = data[:-1] + bytes([data[-1] ^ 1]) if name == wrong else data
            status = http.request("PUT", url.url, body=data, headers=dict(url.headers)).status
            assert status == 200 or name == wrong
        with pytest.raises(EnvctlError) as refused:
            homes.commit(ENVIRONMENT, 1, commit_of(FIRST, None))
        assert isinstance(refused.value, ObjectsMissing) or "other bytes" in str(refused.value)
        head = homes.head(ENVIRONMENT)
        assert head is not None
        assert head.number == 0
        for key in [
            entry.key for entry in homes.objects.list(f"env/{ENVIRONMENT}/") if not entry.key.endswith("/head")
        ]:
            homes.objects.delete(key)


def test_moto(moto_server: MotoServer, http: urllib3.PoolManager) -> None:
    live(homes_at(moto_server.endpoint(), "homes-live"), http)
    cheat(homes_at(moto_server.endpoint(), "homes-cheat"), http)


@pytest.mark.rgw
def test_radosgw(radosgw: Radosgw, http: urllib3.PoolManager) -> None:
    live(homes_at(radosgw.endpoint(), "homes-live"), http)
    cheat(homes_at(radosgw.endpoint(), "homes-cheat"), http)
