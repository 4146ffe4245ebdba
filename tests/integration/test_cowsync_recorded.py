"""A mirror that a ledger covers, on a real server that holds source, mirror and ledger: killed, and run to its end."""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from s3core.bucket import Bucket
from s3core.bucket_stack import open_bucket
from s3core.s3_control import S3Control
from s3core.settings import load_config
from tests.integrity.ledgers import join, ledger_settings, records
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw
OBJECTS = 400


@dataclass
class Site:
    config: Path
    source: Bucket
    target: Bucket

    def command(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "cowsync", *words, "--json"],
            env={**os.environ, "BUCKETWORKS_CONFIG": str(self.config)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def cowsync(self, *words: str, expect: int = 0) -> Any:
        process = self.command(*words)
        out, err = process.communicate(timeout=600)
        assert process.returncode == expect, (words, process.returncode, out[-2000:], err[-4000:])
        return json.loads(out)


@pytest.fixture
def site(radosgw: Radosgw, tmp_path: Path) -> Iterator[Site]:
    endpoint = radosgw.endpoint()
    keys = tmp_path / "keys"
    keys.write_text(
        f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"\n'
    )
    keys.chmod(0o600)
    mark = uuid4().hex[:8]
    names = [f"{kind}-{mark}" for kind in ("source", "mirror", "ledger")]
    control = S3Control(endpoint)
    for name in names:
        control.create_bucket(name)
    control.set_versioning(names[1], True)
    control.close()
    config = tmp_path / "config.toml"
    ledger = ledger_settings(tmp_path, f"s3://ceph/{names[1]}")
    config.write_text(
        f'[endpoint.ceph]\npreset = "ceph"\nurl = "{endpoint.url}"\nregion = "{endpoint.region}"\naddressing = "path"\n'
        f'credentials = "file:{keys}"\n[mirror.m]\nsource = "s3://ceph/{names[0]}"\ntarget = "s3://ceph/{names[1]}/copy"\n'
        f'state_dir = "{tmp_path}/state"\npart_bytes = "5M"\n'
        + ledger.replace(f"file://{tmp_path}/ledger", f"s3://ceph/{names[2]}")
    )
    config.chmod(0o600)
    buckets = [open_bucket(f"s3://ceph/{name}", load_config(config))[0] for name in names[:2]]
    yield Site(config, *buckets)
    for bucket in buckets:
        bucket.close()


def versions(bucket: Bucket) -> dict[str, tuple[str, str]]:
    """By version id: key and ETag of each version below the mirror's prefix; of a marker "" ."""
    found: dict[str, tuple[str, str]] = {}
    marker = version = ""
    while True:
        page = bucket.list_versions(prefix="copy/", key_marker=marker, version_marker=version)
        found |= {one.version_id: (one.key, "" if one.delete_marker else one.etag) for one in page.versions}
        marker, version = page.next_key_marker, page.next_version_marker
        if not marker:
            return found


def test_every_version_on_the_mirror_is_in_the_ledger_though_runs_were_killed(site: Site) -> None:
    join(site.config)
    for number in range(OBJECTS):
        site.source.put(f"ä/{number:04}", bytes([number % 256]) * 100)
    killed = site.command("run", "m")
    while not versions(site.target) and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    site.cowsync("run", "m", expect=0)
    site.source.put("ä/0001", b"changed")
    site.cowsync("run", "m")
    site.cowsync("verify", "m")

    found = records(site.config)
    intents = {one["n"]: one for one in found if one["phase"] == "intent"}
    outcomes = [one for one in found if one["phase"] != "intent"]
    assert Counter(one["intent"] for one in outcomes) == Counter(list(intents)), "one outcome for each intent"
    unknown = {intents[one["intent"]]["key"] for one in outcomes if one["phase"] == "unknown"}
    ours = {one["version"]: (one["key"], one["etag"]) for one in outcomes if one["phase"] == "done" and "etag" in one}
    for version, (key, etag) in versions(site.target).items():
        if "/.cowsync/" not in key:
            assert ours.get(version) == (key, etag) or key in unknown, (version, key)
    print(f"{len(intents)} intents, {len(unknown)} unknown after the kill")
