"""The whole way at a real server: a ledger is made, our tools write and record, somebody else does not, and is found."""

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from integrity.cli import app
from integrity.recording import recorded_bucket
from s3core.bucket import PART_BYTES_MIN, Bucket, CopySource
from s3core.bucket_stack import open_bucket
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import LifecycleRule, S3Control
from s3core.settings import load_config
from tests.integration.test_cowsync_events import notify, receiver, until
from tests.servers.radosgw import Radosgw

pytestmark = pytest.mark.rgw
SKEW_S = 1.0


class Site:
    def __init__(self, radosgw: Radosgw, folder: Path, *, versioned: bool) -> None:
        endpoint = radosgw.endpoint()
        self.name = f"data-{uuid4().hex[:8]}"
        self.control = S3Control(endpoint)
        self.control.create_bucket(self.name)
        if versioned:
            self.control.set_versioning(self.name, True)
        self.attacker = S3Bucket(endpoint, self.name)
        self.config = folder / "config.toml"
        keys = folder / "keys"
        keys.write_text(
            f'access_key = "{endpoint.credentials.access_key}"\nsecret_key = "{endpoint.credentials.secret_key}"\n'
        )
        keys.chmod(0o600)
        self.config.write_text(
            f'[endpoint.rgw]\npreset = "ceph"\nurl = "{endpoint.url}"\ncredentials = "file:{keys}"\n'
        )
        self.url = f"s3://rgw/{self.name}"
        arguments = ["init", "audit", f"file://{folder}/ledger", "--covers", self.url]
        arguments += ["--state-dir", str(folder / "state"), "--writer", "pve1"]
        assert run(app, "s3integrity", [*arguments, "--config", str(self.config)]) == ExitCode.OK

    def close(self) -> None:
        self.attacker.close()
        self.control.close()

    def tool(self) -> Bucket:
        """What our tools have of it; closed, all its records are published."""
        config = load_config(self.config)
        bucket, _ = open_bucket(self.url, config)
        return recorded_bucket(bucket, self.url, config, tool="cowsync")

    def settle(self) -> None:
        """What comes now is no repetition of what came before."""
        time.sleep(2 * SKEW_S + 1.1)

    def reconcile(self, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        arguments = ["reconcile", "audit", self.url, "--skew", str(SKEW_S), "--settle", "0.5", "--json", *more]
        code = int(run(app, "s3integrity", [*arguments, "--config", str(self.config)]))
        told = capsys.readouterr()
        assert told.out, told.err
        return code, json.loads(told.out)


@pytest.fixture(params=[True, False], ids=["versioned", "unversioned"])
def site(radosgw: Radosgw, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    with closing(Site(radosgw, tmp_path, versioned=request.param)) as made:
        yield made


def test_what_is_done_beside_the_ledger_is_found(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    versioned = site.attacker.properties.versioned
    site.attacker.put("older than the ledger", b"there before")
    site.settle()
    with closing(site.tool()) as tool:
        for key in ("x.iso", "gone", "kept", "dir/it's \u00e4+&.bin"):
            tool.put(key, f"first of {key}".encode())
        tool.copy(CopySource(site.name, "kept"), "copied")
        upload = tool.begin_upload("large")
        parts = [
            (1, tool.upload_part("large", upload, 1, bytes(PART_BYTES_MIN))),
            (2, tool.upload_part("large", upload, 2, b"x")),
        ]
        tool.complete_upload("large", upload, parts)
        site.settle()
        tool.put("x.iso", b"second of x.iso")
        tool.delete("gone")
    site.settle()
    code, clean = site.reconcile(capsys, "--content", "1")
    assert (code, clean["counts"], clean["in_flight"]) == (ExitCode.OK, {}, [])
    assert clean["explained"] == {"there before the ledger": 1}
    assert clean["content"] == {"read": 5 + 2 * versioned, "nothing_to_compare_with": 1}
    assert clean["versions"] == (9 if versioned else 6)
    assert clean["feeds_count"] is False

    site.attacker.put("evil", b"evil")
    site.attacker.put("kept", b"altered")
    site.attacker.put("x.iso", b"first of x.iso")
    site.attacker.delete("copied")
    site.attacker.put("gone", b"another")
    expected = {
        ("evil", "UNLOGGED_PUT"),
        ("kept", "UNLOGGED_OVERWRITE"),
        ("x.iso", "RESTORED_OLD"),
        ("copied", "UNLOGGED_DELETE"),
        ("gone", "UNLOGGED_PUT"),
    }
    if versioned:
        victim = next(one for one in site.attacker.list_versions(prefix="large").versions if one.key == "large")
        client = site.control.client()
        client.delete_object(Bucket=site.name, Key="large", VersionId=victim.version_id)
        expected.add(("large", "VERSION_PURGED"))
    code, found = site.reconcile(capsys)
    told = [one for one in found["findings"] if not one["explained"]]
    assert {(one["key"], one["code"]) for one in told} == expected
    assert (code, found["new_records"]) == (ExitCode.FINDING, 0)
    assert all("cowsync" in one["last_writer"] for one in told if one["key"] != "evil")
    kept = next(one for one in told if one["key"] == "kept")
    assert kept["since"] >= clean["at"][:19]
    assert kept["since"] < kept["until"]

    explained = ["explain", "audit", f"{site.url}/kept", "--skew", str(SKEW_S), "--config", str(site.config)]
    assert run(app, "s3integrity", explained) == ExitCode.FINDING
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("`kept` was replaced outside the ledger, between ")
    assert "last legitimate writer: " in said[0]
    assert "[pve1.1#" in said[-1]
    reference = said[-1].rpartition("[")[2].partition(",")[0].strip("]")
    assert run(app, "s3integrity", ["log", "audit", "--json", "--config", str(site.config)]) == ExitCode.OK
    assert f'"n": {reference.partition("#")[2]}' in capsys.readouterr().out.replace('"n":', '"n": ').replace("  ", " ")

    assert site.reconcile(capsys, "--record")[0] == ExitCode.FINDING
    people = ["reconcile", "audit", site.url, "--skew", str(SKEW_S), "--settle", "0", "--config", str(site.config)]
    assert run(app, "s3integrity", people) == ExitCode.FINDING
    out = capsys.readouterr().out
    assert "UNLOGGED_PUT" in out
    assert "`evil` was put outside the ledger" in out


def test_a_rule_of_the_bucket_is_read_and_explains_nothing_too_early(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.control.set_lifecycle(site.name, [LifecycleRule("old", "", expire_days=1)])
    with closing(site.tool()) as tool:
        tool.put("a", b"a")
    site.settle()
    site.attacker.delete("a")
    code, found = site.reconcile(capsys)
    assert (code, found["counts"]) == (ExitCode.FINDING, {"UNLOGGED_DELETE": 1})


def test_a_server_that_is_away_is_no_verdict(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    text = site.config.read_text()
    url = next(line for line in text.splitlines() if line.startswith("url = "))
    site.config.write_text(text.replace(url, 'url = "http://127.0.0.1:9"\nretries = 0', 1))
    site.config.chmod(0o600)
    arguments = ["reconcile", "audit", site.url, "--json", "--config", str(site.config)]
    assert run(app, "s3integrity", arguments) == ExitCode.UNAVAILABLE
    assert '"unavailable"' in capsys.readouterr().err


def test_what_the_gateway_pushes_meets_what_our_tools_record(
    site: Site, radosgw: Radosgw, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    feed = tmp_path / "events.jsonl"
    feed.touch()

    def ingested(events: int) -> None:
        until("events", lambda: len(feed.read_bytes().splitlines()) >= events)
        arguments = ["ingest", "audit", "notifications", str(feed), "--endpoint", "rgw", "--config", str(site.config)]
        assert run(app, "s3integrity", arguments) == ExitCode.OK

    with receiver(feed) as url:
        notify(radosgw, site.name, url)
        with closing(site.tool()) as tool:
            for key in ("a", "it's \u00e4+&", "b", "gone"):
                tool.put(key, b"first")
            upload = tool.begin_upload("large")
            tool.complete_upload("large", upload, [(1, tool.upload_part("large", upload, 1, b"one part"))])
            tool.copy(CopySource(site.name, "a"), "copied")
            tool.put("a", b"second")
            tool.delete("gone")
        ingested(8)
        site.settle()
        for counts in ("--feeds-do-not-count", "--feeds-count"):
            code, clean = site.reconcile(capsys, counts)
            assert (code, clean["findings"]) == (ExitCode.OK, []), counts

        site.attacker.put("b", b"evil")
        site.attacker.delete("copied")
        ingested(10)
        event = json.loads(feed.read_bytes().splitlines()[0])
        thing = event["Records"][0]["s3"]["object"]
        thing |= {"eTag": "0" * 32, "sequencer": "F" * 16, "key": "large"}
        thing |= {"versionId": "forged"} if thing.get("versionId") else {}
        event["Records"][0] |= {"eventTime": time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime())}
        event["Records"][0]["responseElements"] = {"x-amz-request-id": "forged"}
        with feed.open("a") as file:
            file.write(json.dumps(event) + "\n")
        ingested(11)
    code, found = site.reconcile(capsys)
    told = {one["key"]: one for one in found["findings"]}
    assert {key: one["code"] for key, one in told.items()} == {
        "b": "UNLOGGED_OVERWRITE",
        "copied": "UNLOGGED_DELETE",
        "large": "FORGED_NOTIFICATION",
    }
    assert told["b"]["candidates"][0].startswith("notification: put by ")
    assert told["copied"]["candidates"][0].startswith("notification: delete by ")
    assert {one["key"]: one["code"] for one in site.reconcile(capsys, "--feeds-count")[1]["findings"]} == {
        "large": "FORGED_NOTIFICATION"
    }
