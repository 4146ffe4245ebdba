"""`s3block` at S3 servers: buckets that are not there, keys that are refused, buckets that cannot fence."""

import io
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from s3core.exit_codes import ExitCode
from s3core.s3_control import S3Control
from tests.blockdev.command import Command, command
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


def configure(path: Path, url: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> None:
    file = path / "config.toml"
    file.write_text(
        f"""
[endpoint.site]
url = "{url}"
region = "us-east-1"
addressing = "path"
access_key = "{access_key}"
secret_key = "{secret_key}"
retries = 1
"""
    )
    file.chmod(0o600)


def test_a_missing_bucket(s3block: Command, tmp_path: Path, moto_server: MotoServer) -> None:
    configure(tmp_path, moto_server.url)
    for arguments in (
        ["create", "s3://site/nowhere/vm1", "--size", "1M"],
        ["info", "s3://site/nowhere/vm1"],
        ["list", "s3://site/nowhere"],
        ["check", "s3://site/nowhere/vm1"],
        ["export", "s3://site/nowhere/vm1", str(tmp_path / "image")],
        ["delete", "s3://site/nowhere/vm1", "--yes"],
    ):
        said = s3block(*arguments)
        assert (said.code, said.out) == (ExitCode.NOT_FOUND, ""), arguments
        assert "bucket" in said.err, arguments
        assert "nowhere" in said.err, arguments
    assert [file.name for file in tmp_path.iterdir()] == ["config.toml"]


def test_a_server_that_is_not_there(s3block: Command, tmp_path: Path) -> None:
    configure(tmp_path, "http://127.0.0.1:1")
    said = s3block("info", "s3://site/bucket/vm1")
    assert said.code == ExitCode.UNAVAILABLE
    assert "127.0.0.1:1" in said.err


def test_from_beginning_to_end(s3block: Command, tmp_path: Path, moto_server: MotoServer) -> None:
    configure(tmp_path, moto_server.url)
    bucket = f"disks-{uuid.uuid4().hex[:8]}"
    with closing(S3Control(moto_server.endpoint())) as control:
        control.create_bucket(bucket)
    place = f"s3://site/{bucket}/prod"
    # The emulator's races are its own: whether it fences is not what is looked at here.
    assert s3block("create", f"{place}/vm1", "--size", "4M", "--unfenced").code == 0
    assert s3block("list", place, "--json").answer[0]["name"] == "vm1"
    assert s3block("info", f"{place}/vm1").code == 0
    assert s3block("check", f"{place}/vm1", "--deep").code == 0
    assert s3block("export", f"{place}/vm1", tmp_path / "image").code == 0
    assert (tmp_path / "image").read_bytes() == bytes(4 << 20)
    assert s3block("delete", f"{place}/vm1", "--yes").code == 0
    assert s3block("list", place, "--json").answer == []


@pytest.fixture
def bucket(radosgw: Radosgw) -> Iterator[str]:
    name = f"disks-{uuid.uuid4().hex[:8]}"
    with closing(S3Control(radosgw.endpoint())) as control:
        control.create_bucket(name)
        yield name


@pytest.mark.rgw
def test_wrong_credentials(s3block: Command, tmp_path: Path, radosgw: Radosgw, bucket: str) -> None:
    configure(tmp_path, radosgw.endpoint().url, secret_key="wrong")
    for arguments in (["create", "--size", "1M"], ["info"], ["check"], ["delete", "--yes"]):
        said = s3block(arguments[0], f"s3://site/{bucket}/vm1", *arguments[1:])
        assert said.code in (ExitCode.DENIED, ExitCode.CONFIGURATION), said.err
        assert said.err.startswith("error: ")


@pytest.mark.rgw
def test_a_bucket_that_cannot_fence(s3block: Command, tmp_path: Path, radosgw: Radosgw, bucket: str) -> None:
    """This server ignores If-None-Match in versioned buckets: two hosts could not be kept apart there."""
    with closing(S3Control(radosgw.endpoint())) as control:
        control.set_versioning(bucket, True)
    configure(tmp_path, radosgw.endpoint().url)
    said = s3block("create", f"s3://site/{bucket}/vm1", "--size", "1M")
    assert said.code == ExitCode.REFUSED
    assert "cannot keep two hosts from writing to a volume at once" in said.err
    assert "unversioned bucket" in said.err
    said = s3block("create", f"s3://site/{bucket}/vm1", "--size", "1M", "--unfenced")
    assert said.code == 0
    assert "UNFENCED" in said.err


@pytest.mark.rgw
def test_a_bucket_that_fences(s3block: Command, tmp_path: Path, radosgw: Radosgw, bucket: str) -> None:
    configure(tmp_path, radosgw.endpoint().url)
    said = s3block("create", f"s3://site/{bucket}/vm1", "--size", "1M", "--json")
    assert said.answer["fenced"] is True
    assert s3block("info", f"s3://site/{bucket}/vm1").code == 0
