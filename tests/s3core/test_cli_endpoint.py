"""`bucketworks endpoint`: what it writes, what it shows, what it refuses; secrets stay out of sight."""

import io
import json
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from s3core.cli import app
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.settings import load_config

Command = Callable[..., int]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    chosen = tmp_path / "etc" / "config.toml"
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(chosen))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return chosen


@pytest.fixture
def endpoint(path: Path) -> Command:
    return lambda *arguments: int(run(app, "bucketworks", ["endpoint", *arguments]))


def test_create_list_delete(endpoint: Command, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert endpoint("create", "site", "--preset", "ceph", "--url", "https://rgw:7443") == 0
    assert endpoint("create", "cloud", "--preset", "aws", "--region", "eu-central-1", "--credentials", "none") == 0
    capsys.readouterr()
    assert endpoint("list") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["NAME", "PRESET", "URL", "REGION", "ADDRESSING", "CREDENTIALS"]
    assert table[1].split()[:4] == ["cloud", "aws", "https://s3.{{region}}.amazonaws.com", "eu-central-1"]
    assert table[2].split() == ["site", "ceph", "https://rgw:7443", "us-east-1", "path", "environment"]
    assert endpoint("list", "--json") == 0
    assert [record["name"] for record in json.loads(capsys.readouterr().out)] == ["cloud", "site"]
    assert endpoint("delete", "site") == 0
    assert list(load_config(path).endpoints) == ["cloud"]


def test_an_empty_list_says_how_to_begin(endpoint: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert endpoint("list") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert "bucketworks endpoint create NAME --url" in said.err
    assert endpoint("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_secret_from_a_file(
    endpoint: Command, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hushhush\n")
    create = ["create", "site", "--url", "http://h", "--access-key", "AK", "--secret-file", str(secret)]
    secret.chmod(0o644)
    assert endpoint(*create) == ExitCode.CONFIGURATION
    assert "chmod 600" in capsys.readouterr().err
    secret.chmod(0o600)
    assert endpoint(*create) == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = load_config(path).endpoint("site").credentials
    assert (found.access_key, found.secret_key) == ("AK", "hushhush")
    assert endpoint("list", "--json") == 0
    shown = capsys.readouterr()
    assert "hushhush" not in shown.out + shown.err
    assert json.loads(shown.out.partition("\n")[2])[0]["credentials"] == "this file"


def test_a_secret_from_standard_input_and_environment(
    endpoint: Command, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("piped\n"))
    assert endpoint("create", "a", "--url", "http://h", "--access-key", "AK", "--secret-file", "-") == 0
    monkeypatch.setenv("BUCKETWORKS_B_SECRET_KEY", "from-the-environment")
    assert endpoint("create", "b", "--url", "http://h", "--access-key", "AK") == 0
    config = load_config(path)
    secrets = [config.endpoint(name).credentials.secret_key for name in ("a", "b")]
    assert secrets == ["piped", "from-the-environment"]


def test_without_a_secret_or_a_terminal(endpoint: Command, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert endpoint("create", "site", "--url", "http://h", "--access-key", "AK") == ExitCode.USAGE
    assert "use --secret-file or set BUCKETWORKS_SITE_SECRET_KEY" in capsys.readouterr().err
    assert not path.exists()


def test_an_endpoint_is_not_replaced_by_accident(
    endpoint: Command, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert endpoint("create", "site", "--url", "http://one") == 0
    assert endpoint("create", "site", "--url", "http://two") == ExitCode.CONFIGURATION
    assert "replace it with --force" in capsys.readouterr().err
    assert load_config(path).endpoints["site"].url == "http://one"
    assert endpoint("create", "site", "--url", "http://two", "--force") == 0
    assert load_config(path).endpoints["site"].url == "http://two"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create", "site"], ExitCode.CONFIGURATION, "preset generic has no address of its own"),
        (["create", "Site", "--url", "h"], ExitCode.CONFIGURATION, "a name is made of a-z"),
        (["create", "site", "--preset", "azure"], ExitCode.USAGE, "--preset must be one of aws, ceph"),
        (["create", "site", "--url", "ftp://h"], ExitCode.CONFIGURATION, "must begin with https:// or http://"),
        (["create", "s", "--url", "h", "--access-key", "A", "--credentials", "none"], ExitCode.USAGE, "two sources"),
        (["create", "s", "--url", "h", "--secret-file", "f"], ExitCode.USAGE, "--secret-file needs --access-key"),
        (["create", "s", "--url", "h", "--credentials", "vault"], ExitCode.CONFIGURATION, "credentials must be"),
        (["create", "s", "--url", "http://h", "--fingerprint", "ab"], ExitCode.CONFIGURATION, "64 hex digits"),
        (["delete", "sitr"], ExitCode.CONFIGURATION, "did you mean site?"),
        (["test", "sitr"], ExitCode.CONFIGURATION, "did you mean site?"),
        (["delete"], ExitCode.USAGE, "Missing argument"),
    ],
)
def test_refusals(
    endpoint: Command, path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    if arguments[0] != "create":
        assert endpoint("create", "site", "--url", "h") == 0
    before = path.read_text() if path.exists() else None
    assert endpoint(*arguments) == code
    assert said in capsys.readouterr().err
    assert (path.read_text() if path.exists() else None) == before


def test_an_endpoint_in_use_stays(endpoint: Command, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert endpoint("create", "site", "--url", "h") == 0
    path.write_text(path.read_text() + "[volume.mail]\nurl = 's3://site/b/mail'\n")
    assert endpoint("delete", "site") == ExitCode.CONFIGURATION
    assert "[volume.mail] lives in endpoint site" in capsys.readouterr().err
    assert endpoint("delete", "site", "--force") == 0


def test_a_server_that_is_not_there(endpoint: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert endpoint("create", "site", "--url", "http://127.0.0.1:1", "--credentials", "none") == 0
    assert endpoint("test", "site") == ExitCode.UNAVAILABLE
    assert "cannot connect to 127.0.0.1:1" in capsys.readouterr().out


def test_a_place_is_no_bucket(endpoint: Command, capsys: pytest.CaptureFixture[str]) -> None:
    endpoint("create", "site", "--preset", "ceph", "--url", "http://127.0.0.1:9", "--credentials", "none")
    assert endpoint("test", "site", "s3://site/homes") == ExitCode.USAGE
    assert "bucketworks doctor s3://site/homes" in " ".join(capsys.readouterr().err.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, "bucketworks", ["--version"]) == 0
    assert capsys.readouterr().out.startswith("bucketworks 0.")
