"""`cowsync doctor` at a real server: with and without versions, with a key that may not write, with the state in a bucket."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cowsync.cli import app
from s3core.bucket import Attributes
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw


@dataclass
class Site:
    control: S3Control
    source: S3Bucket
    mirror: S3Bucket
    state: S3Bucket
    config: Path

    def doctor(self, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
        code = int(run(app, "cowsync", ["doctor", "m", "--json", "--config", str(self.config)]))
        told = json.loads(capsys.readouterr().out)
        found = {finding["check"]: finding for finding in told["findings"]}
        assert len(found) == len(told["findings"])
        return code, found


@pytest.fixture
def site(radosgw: Radosgw, tmp_path: Path) -> Iterator[Site]:
    endpoint = radosgw.endpoint()
    names = [f"{role}-{uuid4().hex[:8]}" for role in ("source", "mirror", "state")]
    keys = tmp_path / "keys"
    keys.write_text(
        f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"\n'
    )
    keys.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[endpoint.rgw]\npreset = "ceph"\nurl = "{endpoint.url}"\ncredentials = "file:{keys}"\n'
        f'[mirror.m]\nsource = "s3://rgw/{names[0]}/data"\ntarget = "s3://rgw/{names[1]}/copy"\n'
        f'state = "s3://rgw/{names[2]}/state"\nstate_dir = "{tmp_path}/m"\n'
    )
    with closing(S3Control(endpoint)) as control:
        for name in names:
            control.create_bucket(name)
        source, mirror, state = (S3Bucket(endpoint, name) for name in names)
        source.put("data/a", b"a", attributes=Attributes(metadata={"n": "1"}, tags={"t": "1"}))
        yield Site(control, source, mirror, state, config)
        for bucket in (source, mirror, state):
            bucket.close()


def test_a_mirror_without_and_with_versions(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = site.doctor(capsys)
    assert code == ExitCode.OK, found
    assert [check for check, finding in found.items() if finding["verdict"] == "warning"] == ["mirror versioning"]
    assert "a look of our own" in found["copy"]["said"]
    assert (
        found["copy"]["verdict"] == found["state replace"]["verdict"] == found["mirror conditions"]["verdict"] == "ok"
    )
    assert site.mirror.list_page().keys == site.state.list_page().keys == []
    assert site.source.list_page().keys == [b"data/a"]
    site.control.set_versioning(site.mirror.properties.name, True)
    site.control.set_versioning(site.state.properties.name, True)
    code, found = site.doctor(capsys)
    assert found["mirror versioning"]["verdict"] == "ok"
    # Ceph fails conditions in buckets with versions, or ignores them: a mirror goes on without, a state cannot.
    assert found["mirror conditions"]["verdict"] in ("ok", "note")
    assert (found["state replace"]["verdict"] == "ok") == (code == ExitCode.OK)
    assert site.mirror.list_page().keys == site.state.list_page().keys == []


def test_a_bucket_that_is_not_there(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.config.write_text(site.config.read_text().replace(site.mirror.properties.name, "no-such-bucket"))
    code, found = site.doctor(capsys)
    assert code == ExitCode.NOT_FOUND
    assert found["mirror bucket"]["verdict"] == "fault"
    assert "mirror writes" not in found
    assert "state replace" in found
