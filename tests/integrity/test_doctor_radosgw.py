"""`s3integrity doctor` at a real server: a bucket with Object Lock, one without anything, one that is not there."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from integrity.cli import app
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.s3_control import S3Control
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw


@dataclass
class Site:
    folder: Path
    config: Path
    control: S3Control
    capsys: pytest.CaptureFixture[str]

    def bucket(self, *, held: bool = False) -> str:
        name = f"ledger-{uuid4().hex[:8]}"
        self.control.create_bucket(name, object_lock=held)
        if held:
            self.control.set_object_lock(name, "COMPLIANCE", 1)
        return name

    def ledger(self, name: str, bucket: str, covers: str) -> None:
        place = ("init", name, f"s3://rgw/{bucket}/ledger", "--covers", f"s3://rgw/{covers}", "--writer", "pve1")
        state = ("--state-dir", str(self.folder / name), "--config", str(self.config))
        assert run(app, "s3integrity", [*place, *state]) == 0, self.capsys.readouterr()
        self.capsys.readouterr()

    def doctor(self, name: str) -> tuple[int, dict[str, Any]]:
        code = int(run(app, "s3integrity", ["doctor", name, "--json", "--config", str(self.config)]))
        told = json.loads(self.capsys.readouterr().out)
        return code, {finding["check"]: finding for finding in told["findings"]}


@pytest.fixture
def site(radosgw: Radosgw, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Site]:
    endpoint = radosgw.endpoint()
    keys = tmp_path / "keys"
    keys.write_text(
        f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"\n'
    )
    keys.chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(f'[endpoint.rgw]\npreset = "ceph"\nurl = "{endpoint.url}"\ncredentials = "file:{keys}"\n')
    with closing(S3Control(endpoint)) as control:
        yield Site(tmp_path, config, control, capsys)


def test_a_bucket_with_object_lock_and_one_without_anything(site: Site) -> None:
    data = site.bucket()
    site.ledger("held", site.bucket(held=True), data)
    code, found = site.doctor("held")
    assert code == ExitCode.OK, found
    verdicts = {check: finding["verdict"] for check, finding in found.items()}
    for check in ("connection", "bucket", "versioning", "object lock", "writing", "evidence", "slots", "enrolment"):
        assert verdicts[check] == "ok", found[check]
    assert "COMPLIANCE" in found["object lock"]["said"]
    assert verdicts["deleting"] == "warning", "a marker can be put by whoever may delete"
    assert verdicts[f"covers s3://rgw/{data}"] == "note"
    site.control.set_versioning(data, True)
    assert site.doctor("held")[1][f"covers s3://rgw/{data}"]["verdict"] == "ok"

    site.ledger("plain", site.bucket(), data + "-not-there")
    code, found = site.doctor("plain")
    assert code == ExitCode.NOT_FOUND
    assert found["versioning"]["verdict"] == found["object lock"]["verdict"] == "warning"
    assert found[f"covers s3://rgw/{data}-not-there"]["verdict"] == "fault"


def test_a_server_that_is_away_is_unavailable(site: Site) -> None:
    site.ledger("l", site.bucket(), site.bucket())
    text = site.config.read_text()
    start = text.index('url = "http')
    site.config.write_text(text[:start] + 'url = "http://127.0.0.1:9"\nretries = 0' + text[text.index("\n", start) :])
    code, found = site.doctor("l")
    assert code == ExitCode.UNAVAILABLE
    assert found["connection"]["verdict"] == "fault"
    assert "evidence" not in found


def test_sealing_again_and_again_in_a_bucket_with_object_lock(site: Site) -> None:
    # Conditions do not work there: 16.2.15 fails every If-Match and ignores If-None-Match where there are versions.
    site.ledger("held", site.bucket(held=True), site.bucket())
    config = ("held", "--config", str(site.config))
    for _ in range(2):
        assert run(app, "s3integrity", ["rotate", *config]) == 0, site.capsys.readouterr()
        assert run(app, "s3integrity", ["seal", *config]) == 0, site.capsys.readouterr()
    assert run(app, "s3integrity", ["verify", "--full", *config]) == 0, site.capsys.readouterr()
