"""The doctor at a real server: every trouble of the list comes with its cure."""

import json
import uuid
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from s3core.cli import app
from s3core.clock import SystemClock
from s3core.console import run
from s3core.endpoint import Credentials
from s3core.exit_codes import ExitCode
from s3core.findings import Finding
from s3core.s3_control import LifecycleRule, S3Control
from s3core.s3_facts import examine_endpoint
from s3core.spending_book import DIRECTORY_VARIABLE, flush_all
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

pytestmark = pytest.mark.rgw


class ShiftedClock(SystemClock):
    def __init__(self, shift_s: float) -> None:
        self._shift_s = shift_s

    def time(self) -> float:
        return super().time() + self._shift_s


@pytest.fixture
def control(radosgw: Radosgw) -> Iterator[S3Control]:
    with closing(S3Control(radosgw.endpoint())) as opened:
        yield opened


@pytest.fixture
def bucket(control: S3Control) -> str:
    # Among the first of all buckets that the tests make here: of many only some are told.
    name = f"a-doctor-{uuid.uuid4().hex[:8]}"
    control.create_bucket(name)
    return name


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings)
    return {finding.check: finding for finding in findings}


def test_a_good_bucket(radosgw: Radosgw, bucket: str) -> None:
    found = by_check(examine_endpoint(radosgw.endpoint(tls=True), bucket, "", SystemClock()))
    assert {finding.verdict for finding in found.values()} <= {"ok", "note", "warning"}
    # The test's certificate is made for two days.
    assert [check for check, finding in found.items() if finding.verdict == "warning"] == ["certificate"]
    assert (
        radosgw.certificate.fingerprint.replace(":", "").lower() in found["certificate"].said.replace(":", "").lower()
    )
    assert (found["versioning"].said, found["object lock"].said) == ("off", "off")
    assert found["addressing"].said.startswith("path")


def test_an_unknown_certificate_names_the_fingerprint_to_pin(radosgw: Radosgw, bucket: str) -> None:
    stranger = radosgw.endpoint(tls=True, ca_file="")
    found = by_check(examine_endpoint(stranger, bucket, "", SystemClock()))
    assert list(found) == ["connection"]
    assert "certificate verify failed" in found["connection"].said
    assert found["connection"].code is ExitCode.CONFIGURATION
    digits = found["connection"].cure.partition('fingerprint = "')[2].partition('"')[0]
    pinned = replace(stranger, fingerprint=digits)
    again = by_check(examine_endpoint(pinned, bucket, "", SystemClock()))
    assert again["certificate"].said.startswith("pinned")
    assert again["bucket"].verdict == "ok"


def test_a_missing_permission_is_named_with_its_resource(radosgw: Radosgw, bucket: str) -> None:
    key = f"KEY{uuid.uuid4().hex[:8].upper()}"
    radosgw.create_user(key.lower(), key, "othersecret")
    other = radosgw.endpoint(credentials=Credentials(key, "othersecret"))
    found = by_check(examine_endpoint(other, bucket, "", SystemClock()))
    assert found["bucket"].code is ExitCode.DENIED
    assert f"{key} needs s3:ListBucket on the bucket (arn:aws:s3:::{bucket})" in found["bucket"].cure


def test_wrong_keys_and_a_missing_bucket(radosgw: Radosgw) -> None:
    wrong = radosgw.endpoint(credentials=Credentials(ACCESS_KEY, "wrong", source="the test"))
    found = by_check(examine_endpoint(wrong, "", "", SystemClock()))
    assert "the secret key does not belong to access key" in found["keys"].cure
    assert "wrong" not in "".join(finding.said + finding.cure for finding in found.values())
    found = by_check(examine_endpoint(radosgw.endpoint(), "no-such-bucket", "", SystemClock()))
    assert found["bucket"].code is ExitCode.NOT_FOUND


def test_a_host_name_that_does_not_carry_the_bucket(radosgw: Radosgw, bucket: str) -> None:
    found = by_check(examine_endpoint(radosgw.endpoint(addressing="virtual"), bucket, "", SystemClock()))
    assert found["connection"].verdict == "ok"
    assert found["addressing"].verdict == "fault"
    assert found["addressing"].cure.startswith('set addressing = "path" for endpoint radosgw')


@pytest.mark.parametrize(("shift_s", "verdict"), [(0, "ok"), (20, "note"), (-300, "warning"), (3600, "fault")])
def test_a_clock_that_is_off(radosgw: Radosgw, shift_s: float, verdict: str) -> None:
    found = by_check(examine_endpoint(radosgw.endpoint(), "", "", ShiftedClock(shift_s)))
    assert found["clock"].verdict == verdict
    if shift_s:
        assert ("ahead of" if shift_s > 0 else "behind") in found["clock"].said
        assert "timedatectl" in found["clock"].cure


def test_a_rule_that_deletes_live_data(radosgw: Radosgw, bucket: str, control: S3Control) -> None:
    control.set_lifecycle(bucket, [LifecycleRule("sweep", "disks/", expire_days=7, abort_uploads_days=1)])
    for prefix, verdict in (("disks/mail", "fault"), ("", "fault"), ("backups", "ok")):
        found = by_check(examine_endpoint(radosgw.endpoint(), bucket, prefix, SystemClock()))
        assert found["lifecycle"].verdict == verdict


def test_the_command_on_good_and_versioned_buckets(
    radosgw: Radosgw,
    bucket: str,
    control: S3Control,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(tmp_path / "spending"))
    monkeypatch.setenv("BUCKETWORKS_RGW_SECRET_KEY", SECRET_KEY)
    url, authority = f"https://127.0.0.1:{radosgw.tls_port}", str(radosgw.certificate.authority_file)
    create = ["endpoint", "create", "rgw", "--preset", "ceph", "--url", url, "--ca-file", authority]
    assert run(app, "bucketworks", [*create, "--access-key", ACCESS_KEY]) == 0
    assert run(app, "bucketworks", ["endpoint", "test", "rgw"]) == 0
    assert f"{bucket}" in capsys.readouterr().out
    assert run(app, "bucketworks", ["doctor", f"s3://rgw/{bucket}/volumes"]) == 0
    said = capsys.readouterr().out
    assert "one of 8 racing writers won" in said
    assert "yes        s3block" in said
    assert SECRET_KEY not in said
    flush_all()
    assert run(app, "bucketworks", ["spending", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["endpoints"][0]["errors"] == 0, "what a doctor provokes is no error"
    control.set_versioning(bucket, True)
    assert run(app, "bucketworks", ["doctor", f"s3://rgw/{bucket}/volumes"]) == ExitCode.FINDING
    said = capsys.readouterr().out
    assert "keep volumes and ledgers in a bucket without versioning" in said
    assert "set unfenced = true" in said
    assert "no         s3integrity" in said
