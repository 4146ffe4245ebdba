"""cowsync on a real server, as an operator runs it: the whole command, 100,000 objects, and what it asked the server for."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from s3core.bucket import Attributes
from s3core.bucket_stack import open_bucket
from s3core.s3_control import S3Control
from s3core.settings import load_config
from tests.servers.radosgw import Radosgw
from tests.servers.relay import Relay

pytestmark = pytest.mark.rgw
MIB = 1024**2


@dataclass
class Site:
    """A configuration with one mirror, `m`, from a bucket to another, and the command."""

    config: Path
    source: str
    target: str
    direct_url: str
    relay: Relay
    """Everything the command asks the server for passes here and is counted."""

    def cowsync(self, *words: str, expect: int | None = 0) -> Any:
        """The command's JSON answer. `expect` is its exit code, None any."""
        command = [sys.executable, "-m", "cowsync", *words, "--json"]
        environment = {**os.environ, "BUCKETWORKS_CONFIG": str(self.config)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
        assert expect is None or done.returncode == expect, (words, done.returncode, done.stderr[-4000:])
        return json.loads(done.stdout) if done.stdout else {}

    def bucket(self, name: str) -> Any:
        return open_bucket(f"s3://direct/{name}", load_config(self.config))[0]


@pytest.fixture
def site(radosgw: Radosgw, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    versioned = getattr(request, "param", "") == "versioned"
    endpoint = radosgw.endpoint()
    keys = tmp_path / "keys"
    keys.write_text(
        f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"\n'
    )
    keys.chmod(0o600)
    mark = uuid4().hex[:8]
    source, target = f"source-{mark}", f"mirror-{mark}"
    control = S3Control(endpoint)
    control.create_bucket(source)
    control.create_bucket(target)
    if versioned:
        control.set_versioning(target, True)
    control.close()
    relay = Relay(radosgw.http_port)
    config = tmp_path / "config.toml"
    common = f'preset = "ceph"\nregion = "{endpoint.region}"\naddressing = "path"\ncredentials = "file:{keys}"\n\n'
    config.write_text(
        f'[endpoint.ceph]\nurl = "{relay.url}"\n{common}[endpoint.direct]\nurl = "{endpoint.url}"\n{common}'
        f'[mirror.m]\nsource = "s3://ceph/{source}"\ntarget = "s3://ceph/{target}/copy"\n'
        f'state_dir = "{tmp_path / "state"}"\npart_bytes = "5M"\n'
    )
    config.chmod(0o600)
    yield Site(config, source, target, endpoint.url, relay)
    relay.stop()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_hundred_thousand_objects_of_which_one_in_a_hundred_changed(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the changed bytes move, the listing is all that is asked about the others."""
    count, changed = 100_000, 1_000
    source, body = site.bucket(site.source), 64
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda n: source.put(f"{n % 100:02}/{n:06}.dat", b"%064d" % n), range(count), chunksize=500))
    # Past the relay, which takes a thread's time for each request, and what is counted comes later.
    counted = site.config.read_text()
    site.config.write_text(counted.replace(site.relay.url, site.direct_url))
    first = site.cowsync("run", "m")
    assert first["done"] == first["lines"] == count
    site.config.write_text(counted)
    with ThreadPoolExecutor(16) as pool:
        list(
            pool.map(lambda n: source.put(f"{n % 100:02}/{n:06}.dat", b"%064d" % -n), range(1, count, count // changed))
        )
    site.relay.kinds.clear()
    planned = site.cowsync("plan", "m", expect=1)
    asked = dict(site.relay.kinds)
    assert (planned["scan"]["keys"], planned["scan"]["changes"]) == (count, changed)
    # One LIST for each thousand, and at most one more for each piece, which ends in the middle of a page.
    assert asked.keys() <= {"LIST", "GET"}, "nothing but listings; GET is the bucket's versioning and location"
    assert count // 1000 <= asked["LIST"] <= count // 1000 + planned["scan"]["shards"] + 1
    assert asked.get("GET", 0) <= 4
    site.relay.kinds.clear()
    applied = site.cowsync("apply", "m")
    assert applied["done"] == changed
    assert applied["bytes_moved"] + applied["bytes_copied"] == changed * body
    assert site.relay.kinds["COPY"] == changed
    assert site.relay.kinds["HEAD"] <= changed, "one at the mirror before each overwrite, none about the others"
    carried = dict(site.relay.kinds)
    assert site.cowsync("plan", "m")["lines"] == 0
    drift = site.cowsync("verify", "m")
    assert drift["listing"]["intact"] == count
    with capsys.disabled():  # figures for whoever reads the log of a run
        print(
            f"\n{count:,} objects, {changed:,} changed: planned with {asked} in {planned['scan']['seconds']:.1f} s, "
            f"carried out with {carried}, {applied['bytes_copied']:,} bytes copied, in {applied['seconds']:.1f} s"
        )


@pytest.mark.parametrize("site", ["plain", "versioned"], indirect=True)
def test_everything_an_object_has_comes_along_and_comes_back(site: Site) -> None:
    source, target = site.bucket(site.source), site.bucket(site.target)
    tagged = Attributes(
        headers={"content-type": "image/jpeg", "cache-control": "no-cache"}, metadata={"who": "me"}, tags={"a": "b c"}
    )
    odd = ["plain", "with blank", "plus+plus", "per%cent", "ünïcode/é", "a//b", "&<>'\"", "tab\there"]
    for key in odd:
        source.put(key, key.encode(), attributes=tagged)
    upload = source.begin_upload("large", attributes=tagged)
    parts = [(n, source.upload_part("large", upload, n, bytes([n]) * 5 * MIB)) for n in (1, 2)]
    parts.append((3, source.upload_part("large", upload, 3, b"end")))
    etag = source.complete_upload("large", upload, parts).etag
    first = site.cowsync("run", "m")
    assert first["complete"], first
    for key in [*odd, "large"]:
        facts = target.head(f"copy/{key}")
        assert facts.attributes.headers["content-type"] == "image/jpeg", key
        assert facts.attributes.headers["cache-control"] == "no-cache", key
        assert dict(facts.attributes.metadata) == {"who": "me"}, key
        assert target.tags(f"copy/{key}") == {"a": "b c"}, key
    assert target.get("copy/large") == bytes([1]) * 5 * MIB + bytes([2]) * 5 * MIB + b"end"
    assert etag.endswith("-3")
    source.put("plain", b"overwritten")
    source.delete("a//b")
    assert site.cowsync("run", "m")["done"] == 2
    assert site.cowsync("plan", "m")["lines"] == 0
    assert site.cowsync("verify", "m", "--full")["bytes"]["complete"]
    back = site.cowsync(
        "snapshot", "restore", "m", "run:1", "--to", f"s3://ceph/{site.source}/again", "--go", expect=None
    )
    versioned = target.properties.versioned
    assert back["unavailable"] == (0 if versioned else 1), "an unversioned mirror has lost what was overwritten"
    assert source.get("again/a//b") == b"a//b"
    if versioned:
        assert source.get("again/plain") == b"plain"


def test_an_emptied_bucket_is_held(site: Site) -> None:
    source = site.bucket(site.source)
    for number in range(30):
        source.put(f"{number}", b"x")
    site.cowsync("run", "m")
    for number in range(30):
        source.delete(f"{number}")
    site.cowsync("run", "m", expect=7)
    held = site.cowsync("plans", "m")[0]
    assert held["decision"] == "hold"
    assert len(site.bucket(site.target).list_page(prefix="copy/").keys) == 30
    assert site.cowsync("apply", "m", "--approve", held["digest"])["complete"]
    assert len(site.bucket(site.target).list_page(prefix="copy/").keys) == 30
