"""`bucketworks config`: what it prints, what it ends with, and that no secret is ever in it."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s3core.cli import app
from s3core.config_commands import HIDDEN, as_toml, hidden, resolved_tables
from s3core.exit_codes import ExitCode
from s3core.settings import load_config, parse_config
from s3core.settings_table import settings_table

RUNNER = CliRunner()
TEXT = """# ours
[endpoint.site]
url = "https://s3.example.com"
access_key = "AKID"
secret_key = "s3cr3t-of-site"
proxy = "http://me:s3cr3t-of-proxy@proxy.example:3128"
[envctl]
state_dir = "DIR/e"
database = "postgresql+psycopg://bw:s3cr3t-of-base@db/bw"
[volume.a]
url = "s3://site/disks/a"
"""


def config(directory: Path, text: str = TEXT) -> Path:
    path = directory / "config.toml"
    path.touch(mode=0o600)
    path.write_text(text.replace("DIR", str(directory)))
    return path


def run(*words: str | Path) -> tuple[int, str]:
    done = RUNNER.invoke(app, ["config", *map(str, words)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "words", [["show"], ["show", "--json"], ["show", "--resolved"], ["show", "--resolved", "--json"]]
)
def test_no_secret_is_shown(tmp_path: Path, words: list[str]) -> None:
    code, text = run(*words, config(tmp_path))
    assert code == 0
    assert "s3cr3t" not in text
    assert text.count(HIDDEN) >= 3
    assert "AKID" in text


@pytest.mark.parametrize(
    "address",
    [
        "postgresql+psycopg://bw:s3c/r3t@db/bw",
        "postgresql+psycopg://bw:s3c@r3t@db/bw",
        "postgresql+psycopg://db/bw?user=bw&password=s3c-r3t",
        "postgresql+psycopg://db/bw?sslpassword=s3c-r3t&application_name=x",
    ],
)
def test_no_password_of_an_address_is_shown(address: str) -> None:
    told = hidden({"database": address})["database"]
    assert "s3c" not in told
    assert "r3t" not in told
    assert "db/bw" in told


def test_what_is_shown_is_the_file_or_everything(tmp_path: Path) -> None:
    path = config(tmp_path)
    _, said = run("show", path)
    assert set(tomllib.loads(said)) == {"version", "endpoint", "envctl", "volume"}
    _, everything = run("show", "--resolved", path)
    tables = tomllib.loads(everything)
    assert tables["volume"]["a"]["cache_bytes"] == 4 << 30
    for row in settings_table():
        if row.table in ("s3block", "pve", "status", "envctl") and row.default not in ("unset", "required"):
            assert row.name in tables[row.table], row
    _, as_json = run("show", "--resolved", "--json", path)
    assert json.loads(as_json) == tables


def test_what_is_shown_without_secrets_can_be_read_again(tmp_path: Path) -> None:
    path = config(
        tmp_path, '[volume.a]\nurl = "file:///srv/a"\n[mirror.m]\nsource = "file:///a"\ntarget = "file:///b"\n'
    )
    _, text = run("show", "--resolved", path)
    again = parse_config(text)
    assert hidden(resolved_tables(again)) == resolved_tables(load_config(path))
    assert as_toml({"a": {"b": {"c": 1}}, "d": 2, "e": {}}) == "d = 2\n\n[a.b]\nc = 1\n\n[e]"


def test_check_ends_with_what_it_found(tmp_path: Path) -> None:
    assert run("check", config(tmp_path, ""))[0] == 0
    code, text = run("check", config(tmp_path, "[volume.a]\nurl = 's3://x/y'\nszie_bytes = 1\n[pvee]\n"))
    assert code == ExitCode.CONFIGURATION
    assert "unknown setting 'szie_bytes': did you mean 'size_bytes'?" in text
    assert "unknown table [pvee]: did you mean 'pve'?" in text
    assert "2 faults, 0 warnings" in text
    code, text = run(
        "check", "--json", config(tmp_path, "[pve]\nmetrics_listen = '0.0.0.0:9263'\nstate_dir = 'DIR/p'\n")
    )
    verdicts = [one["verdict"] for one in json.loads(text)["findings"]]
    # A machine may have /tmp in memory, which is a fault of its own.
    assert "warning" in verdicts
    assert code == (ExitCode.CONFIGURATION if "fault" in verdicts else ExitCode.FINDING)
    code, text = run("check", tmp_path / "nowhere.toml")
    assert (code, "no such configuration file" in text) == (ExitCode.CONFIGURATION, True)


def test_an_absent_file_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "none.toml"))
    code, text = run("check")
    assert (code, "is an empty configuration" in text) == (0, True)


def test_check_asks_endpoints_when_it_is_told_to(tmp_path: Path) -> None:
    text = """[endpoint.site]
url = "http://127.0.0.1:9"
credentials = "none"
retries = 0
deadline_s = 1
[volume.a]
url = "s3://site/disks/a"
state_dir = "/var/lib/bucketworks/a"
"""
    path = config(tmp_path, text)
    assert run("check", path)[0] in (ExitCode.OK, ExitCode.FINDING)
    code, told = run("check", "--online", path)
    assert "s3://site/disks" in told
    assert code == ExitCode.UNAVAILABLE, told


def test_a_file_of_today_needs_no_migration(tmp_path: Path) -> None:
    path = config(tmp_path)
    before = path.read_bytes()
    code, text = run("migrate", path)
    assert (code, "nothing to do" in text) == (0, True)
    assert path.read_bytes() == before
    assert json.loads(run("migrate", "--json", path)[1]) == {
        "path": str(path),
        "before": 1,
        "after": 1,
        "changes": [],
        "backup": "",
    }
    assert list(tmp_path.iterdir()) == [path]
