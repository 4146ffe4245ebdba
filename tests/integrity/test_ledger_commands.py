"""`s3integrity init`, `join`, `enrol` and the others, over a ledger of files."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from integrity.cli import app
from integrity.errors import Malformed, NotEnrolled
from s3core.settings import ConfigError, load_config


class Host:
    """One host's configuration and commands."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.config = folder / f"{name}.toml"

    def run(self, *line: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, [*line, "--config", str(self.config)], input=stdin)

    def json(self, *line: str, stdin: str | None = None) -> Any:
        found = self.run(*line, "--json", stdin=stdin)
        assert found.exit_code == 0, found.output
        return json.loads(found.stdout)


@pytest.fixture
def one(tmp_path: Path) -> Host:
    host = Host(tmp_path, "pve1")
    url = f"file://{tmp_path}/store"
    made = host.json("init", "trail", url, "--state-dir", str(tmp_path / "pve1"), "--writer", "pve1")
    assert made["writers"] == [f"pve1.{n}" for n in range(1, 9)]
    return host


def test_init_is_taken_up_again_and_overwrites_nothing(one: Host) -> None:
    config = one.config.read_text()
    url = f"file://{one.folder}/store"
    again = one.json("init", "trail", url, "--state-dir", str(one.folder / "pve1"), "--writer", "pve1")
    assert again["vkey"] == load_config(one.config).ledger("trail").vkey
    assert one.config.read_text() == config
    other = one.run("init", "trail", f"file://{one.folder}/elsewhere", "--state-dir", str(one.folder / "pve1"))
    assert isinstance(other.exception, ConfigError)
    assert one.config.read_text() == config


def test_a_second_host(one: Host) -> None:
    two = Host(one.folder, "pve2")
    text = one.config.read_text().replace(str(one.folder / "pve1"), str(one.folder / "pve2"))
    two.config.write_text(text.replace('writer = "pve1"', 'writer = "pve2"\nslots = 2'))
    two.config.chmod(0o600)
    request = two.run("join", "trail")
    assert request.exit_code == 0
    told = one.json("enrol", "trail", "-", stdin=request.stdout)
    assert told["enrolled"] == ["pve2.1", "pve2.2"]
    assert isinstance(two.run("seal", "trail").exception, NotEnrolled)
    two.json("record", "trail", stdin='{"op":"note","detail":{"text":"hello"}}\n')
    assert one.json("seal", "trail")["changed"] == ["pve2.1"]
    assert one.json("retire", "trail", "pve2.2")["retired"] is True
    status = two.json("status", "trail")
    assert {one["writer"]: one["state"] for one in status["writers"]}["pve2.2"] == "retired"
    assert status["sealing"] is False


def test_events_from_standard_input(one: Host) -> None:
    lines = "".join(f'{{"op":"put","bucket":"b","key":"k{n}"}}\n' for n in range(2500))
    assert one.json("record", "trail", stdin=lines) == {
        "ledger": "trail",
        "writer": "pve1.1",
        "first": 0,
        "records": 2500,
    }
    bad = one.run("record", "trail", stdin='{"op":"put"}\n\n{"op":"put","size":-1}\n{"op":"put"}\n')
    assert isinstance(bad.exception, Malformed)
    assert "line 3" in str(bad.exception)
    assert "size" in str(bad.exception)
    for text in ("{", "[1]\n"):
        assert isinstance(one.run("record", "trail", stdin='{"op":"put"}\n' + text).exception, Malformed)
    more = one.json("record", "trail", stdin='{"op":"put"}\n')
    assert more["first"] >= 2500 + 3 + 4 * 2  # a close and a checkpoint after each, and those made meanwhile


def test_slots_and_new_epochs(one: Host) -> None:
    one.json("record", "trail", stdin='{"op":"put"}\n')
    told = one.json("rotate", "trail", "pve1.1", "pve1.2")
    assert [one["epoch"] for one in told] == [1, 1]
    slots = one.json("slots", "trail")
    assert [slot["epoch"] for slot in slots] == [1, 1, 0, 0, 0, 0, 0, 0]
    assert {slot["state"] for slot in slots} == {"free"}
    assert one.json("seal", "trail")["changed"] == ["pve1.1", "pve1.2"]
