"""A mirror of all versions on a real server: its order of versions, its null ids, delete markers, and a run that is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from s3core.bucket import Attributes, Bucket
from s3core.bucket_stack import open_bucket
from s3core.s3_control import S3Control
from s3core.settings import load_config
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw
MIB = 1024**2
ODD = ["plain", "with blank", "plus+plus", "ünïcode/é", "a//b", "&<>'\"", "tab\there", "k", "k\x01"]
History = list[bytes | None]


@dataclass
class Site:
    config: Path
    source: Bucket
    target: Bucket
    control: S3Control

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

    def suspend(self) -> None:
        self.control.set_versioning(self.source.properties.name, False)

    def enable(self) -> None:
        self.control.set_versioning(self.source.properties.name, True)

    def delete_version(self, key: str, version_id: str) -> None:
        self.control.client().delete_object(Bucket=self.source.properties.name, Key=key, VersionId=version_id)


@pytest.fixture
def site(radosgw: Radosgw, tmp_path: Path) -> Iterator[Site]:
    """The source keeps no versions yet."""
    endpoint = radosgw.endpoint()
    keys = tmp_path / "keys"
    keys.write_text(
        f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"\n'
    )
    keys.chmod(0o600)
    mark = uuid4().hex[:8]
    control = S3Control(endpoint)
    for name in (f"source-{mark}", f"mirror-{mark}"):
        control.create_bucket(name)
    control.set_versioning(f"mirror-{mark}", True)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[endpoint.ceph]\nurl = "{endpoint.url}"\npreset = "ceph"\nregion = "{endpoint.region}"\naddressing = "path"\n'
        f'credentials = "file:{keys}"\n\n'
        f'[mirror.m]\nsource = "s3://ceph/source-{mark}"\ntarget = "s3://ceph/mirror-{mark}/copy"\nversions = "all"\n'
        f'state_dir = "{tmp_path / "state"}"\npart_bytes = "5M"\nscanners = 1\n'
    )
    config.chmod(0o600)
    source, target = (open_bucket(f"s3://ceph/{name}-{mark}", load_config(config))[0] for name in ("source", "mirror"))
    yield Site(config, source, target, control)
    control.close()
    source.close()
    target.close()


def histories(bucket: Bucket, prefix: str = "") -> dict[str, History]:
    """The bytes of each key's versions, the oldest first; None for a delete marker."""
    found: dict[str, History] = {}
    marks = ("", "")
    while True:
        page = bucket.list_versions(prefix=prefix, key_marker=marks[0], version_marker=marks[1], max_keys=7)
        for one in page.versions:
            data = None if one.delete_marker else bucket.get(one.key, version_id=one.version_id)
            found.setdefault(one.key[len(prefix) :], []).insert(0, data)
        marks = (page.next_key_marker, page.next_version_marker)
        if not marks[0]:
            return found


def is_within(part: History, whole: History) -> bool:
    rest = iter(whole)
    return all(any(one == other for other in rest) for one in part)


def test_histories_come_along_and_restore_points_come_back(site: Site) -> None:
    source = site.source
    refused = site.command("plan", "m")
    assert "does not keep versions" in refused.communicate(timeout=600)[1]
    assert refused.returncode == 7
    for key in ("k", "old"):
        source.put(key, b"before versions")
    site.enable()
    for key in ODD:
        source.put(key, b"1", attributes=Attributes({"content-type": "text/plain"}, {"n": "1"}, {"t": "1"}))
        source.put(key, b"2")
        source.delete(key)
        source.put(key, key.encode())
    upload = source.begin_upload("large")
    parts = [(n, source.upload_part("large", upload, n, bytes([n]) * 5 * MIB)) for n in (1, 2)]
    source.complete_upload("large", upload, parts)
    source.put("large", b"small now")
    source.delete("old")
    first = site.cowsync("run", "m")
    assert first["complete"], first
    then = histories(source)
    assert then["k"] == [b"before versions", b"1", b"2", None, b"k"]
    assert histories(site.target, "copy/") == then
    oldest = site.target.list_versions(prefix="copy/plain").versions[-1]
    facts = site.target.head("copy/plain", version_id=oldest.version_id)
    assert (facts.attributes.headers["content-type"], dict(facts.attributes.metadata)) == ("text/plain", {"n": "1"})
    assert site.target.tags("copy/plain", version_id=oldest.version_id) == {"t": "1"}
    assert site.cowsync("plan", "m")["lines"] == 0
    current = {key: history[-1] for key, history in then.items() if history[-1] is not None}

    source.put("k", b"later")
    source.delete("plain")
    source.put("old", b"is back")
    assert site.cowsync("run", "m")["complete"]
    assert histories(site.target, "copy/") == histories(source)
    verified = site.cowsync("verify", "m", "--full")
    assert verified["listing"]["intact"] == verified["listing"]["keys"] == sum(map(len, histories(source).values()))
    site.cowsync("snapshot", "restore", "m", "run:1", "--overwrite", "--delete", "--go")
    assert {key: history[-1] for key, history in histories(source).items() if history[-1] is not None} == current


def test_null_ids_and_versions_deleted_for_good(site: Site) -> None:
    """What of the source's history is left lies on the mirror in its order, and the newest on top."""
    source = site.source
    source.put("n", b"null 1")
    site.enable()
    source.put("n", b"v1")
    for key in ("m", "g"):
        source.put(key, b"m1")
        source.put(key, b"m2")
    assert site.cowsync("run", "m")["complete"]
    site.suspend()
    source.put("n", b"null 2")
    source.delete("m")
    site.enable()
    for one in source.list_versions(prefix="g").versions:
        site.delete_version("g", one.version_id)
    left, kept = histories(source), histories(site.target, "copy/")
    assert left == {"n": [b"v1", b"null 2"], "m": [b"m1", b"m2", None]}
    planned = site.cowsync("plan", "m", expect=1)
    assert planned["lines"] == 1 + 1 + 1 + 2, (
        "a null version that is gone and a new one, a delete marker, two versions gone"
    )
    assert site.cowsync("apply", "m")["complete"]
    found = histories(site.target, "copy/")
    assert found["n"] == [b"null 1", b"v1", b"null 2"]
    assert found["m"] == left["m"]
    assert found["g"] == kept["g"], "what the source has deleted for good stays"
    assert site.cowsync("plan", "m")["lines"] == 0
    # The newest are deleted: what lies below shows again.
    for key in ("n", "m"):
        site.delete_version(key, source.list_versions(prefix=key).versions[0].version_id)
    assert site.cowsync("run", "m")["complete"]
    left, found = histories(source), histories(site.target, "copy/")
    assert (left["n"][-1], left["m"][-1]) == (b"v1", b"m2")
    for key, history in left.items():
        assert is_within(history, found[key])
        assert found[key][-1] == history[-1]
    assert site.cowsync("plan", "m")["lines"] == 0


@pytest.mark.slow
def test_a_run_that_is_killed_puts_no_version_twice(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    source = site.source
    site.enable()
    for number in range(40):
        for _ in range(8):
            source.put(f"{number:03}", b"the same each time")
        source.delete(f"{number:03}")
        source.put(f"{number:03}", b"the same each time")
    wanted = histories(source)
    site.cowsync("plan", "m", expect=1)
    journals, kills = site.config.parent / "state" / "applies", 0
    for delay_s in (0.0, 0.1, 0.2, 0.4):
        process = site.command("apply", "m")
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if any(path.stat().st_size > 200 for path in journals.glob("*/*.journal")):
                time.sleep(delay_s)
                break
            time.sleep(0.01)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    last = site.cowsync("apply", "m") if kills else {"complete": True}
    assert last["complete"], last
    assert histories(site.target, "copy/") == wanted
    assert site.cowsync("plan", "m")["lines"] == 0
    with capsys.disabled():
        print(f"\n{len(wanted)} keys, {sum(map(len, wanted.values()))} versions, killed {kills} times: none twice")
