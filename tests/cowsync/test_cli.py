"""The command line: every command answers in JSON, stands in the documents, and says what is wrong with its arguments."""

import json
from pathlib import Path

import pytest
from typer import Typer

from cowsync.catalogue import Phase, Run
from cowsync.cli import ABOUT, app
from cowsync.mirror_commands import run_record
from s3core.console import program_version, run
from s3core.exit_codes import ExitCode
from tests.architecture.tree import ROOT


def commands(of: Typer, within: str = "") -> dict[str, object]:
    found: dict[str, object] = {f"{within}{command.name}": command.callback for command in of.registered_commands}
    for group in of.registered_groups:
        assert group.typer_instance is not None
        found |= commands(group.typer_instance, f"{group.typer_instance.info.name} ")
    return found


COMMANDS = commands(app)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_json_and_stands_in_the_documents(name: str) -> None:
    parameters = COMMANDS[name].__annotations__
    assert "as_json" in parameters
    assert "config_path" in parameters
    text = "".join(path.read_text() for path in (ROOT / "docs" / "cowsync").glob("*.md"))
    word = name.split()[-1]
    assert f"`{word}" in text or f", {word}" in text or f"cowsync {name}" in text, (
        f"no document tells of cowsync {name}"
    )


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, "cowsync", ["--version"]) == ExitCode.OK
    assert capsys.readouterr().out == f"cowsync {program_version()}\n"
    assert run(app, "cowsync", ["--help"]) == ExitCode.OK
    assert ABOUT in " ".join(capsys.readouterr().out.split())


def test_a_mirror_is_written_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(tmp_path / "config.toml")
    words = ["init", "photos", "memory:a", "memory:b", "--state-dir", str(tmp_path / "state"), "--config", config]
    assert run(app, "cowsync", words) == ExitCode.OK
    assert run(app, "cowsync", words) == ExitCode.CONFIGURATION
    assert "--force" in capsys.readouterr().err
    assert run(app, "cowsync", ["list", "--json", "--config", config]) == ExitCode.OK
    listed = json.loads(capsys.readouterr().out)
    assert [(one["mirror"], one["phase"]) for one in listed] == [("photos", "never run")]


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["plan", "nope"], ExitCode.CONFIGURATION, "[mirror.nope]"),
        (["init", "new", "memory:a/b", "memory:a/b/c"], ExitCode.REFUSED, "lie in each other"),
        (["init", "a b", "memory:a", "memory:b"], ExitCode.CONFIGURATION, "'a b': a name is made of"),
        (["init", "", "memory:a", "memory:b"], ExitCode.CONFIGURATION, "a name is made of"),
        (["show", "m", "--op", "nonsense"], ExitCode.USAGE, "--op must be one of"),
        (["export", "m", "--format", "nonsense", "--out", "x"], ExitCode.USAGE, "--format must be one of"),
        (["apply", "m"], ExitCode.REFUSED, "there is no plan"),
        (["snapshot", "diff", "m", "run:7"], ExitCode.REFUSED, "no restore point run:7"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: ExitCode, told: str
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[mirror.m]\nsource = "memory:one"\ntarget = "memory:two"\nstate_dir = "{tmp_path}/state"\n')
    assert run(app, "cowsync", [*words, "--config", str(config)]) == code
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("table", "code", "told"),
    [
        ('source = "s3://one"', ExitCode.CONFIGURATION, "must name an endpoint and a bucket"),
        ('source = "s3://one/b/in"', ExitCode.REFUSED, "their endpoints are one server"),
        ('source = "memory:a"\nexclude = "[z-a]"', ExitCode.CONFIGURATION, "pattern '[z-a]'"),
        ('source = "memory:a"\nstate = "memory:a/b"', ExitCode.REFUSED, "lies in source"),
        ('source = "memory:a"\nstate_dir = "rel/x"', ExitCode.CONFIGURATION, "must begin with a slash"),
        ('source = "memory:a"\nstate_dir = "/x"', ExitCode.CONFIGURATION, "is that of [mirror.other]"),
    ],
)
def test_a_mirror_that_cannot_be_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], table: str, code: ExitCode, told: str
) -> None:
    config = tmp_path / "config.toml"
    where = "" if "state_dir" in table else f'state_dir = "{tmp_path}/state"\n'
    endpoints = "".join(
        f'[endpoint.{name}]\nurl = "http://127.0.0.1:1"\naccess_key = "a"\nsecret_key = "b"\n'
        for name in ("one", "two")
    )
    config.write_text(
        f'{endpoints}[mirror.other]\nsource = "memory:p"\ntarget = "memory:q"\nstate_dir = "/x"\n'
        f'[mirror.m]\ntarget = "s3://two/b"\n{where}{table}\n'
    )
    config.chmod(0o600)
    assert run(app, "cowsync", ["plan", "m", "--config", str(config), "--json"]) == code
    assert told in json.loads(capsys.readouterr().err)["error"]["message"]


def test_plans_are_listed_though_one_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[mirror.m]\nsource = "memory:o"\ntarget = "memory:w"\nstate_dir = "{tmp_path}/state"\n')
    assert run(app, "cowsync", ["plan", "m", "--config", str(config)]) == ExitCode.OK
    next((tmp_path / "state" / "plans").glob("*/guard.json")).unlink()
    capsys.readouterr()
    assert run(app, "cowsync", ["plans", "m", "--config", str(config)]) == ExitCode.OK
    assert "damaged" in capsys.readouterr().out
    assert run(app, "cowsync", ["plans", "m", "--config", str(config), "--json"]) == ExitCode.OK
    assert [one["decision"] for one in json.loads(capsys.readouterr().out)] == ["damaged"]
    assert run(app, "cowsync", ["init", "n", "s3://one", "memory:x", "--config", str(config)]) == ExitCode.USAGE


def test_a_mirror_from_the_first_run_to_a_restore(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from s3core.bucket_stack import open_bucket

    config = tmp_path / "config.toml"
    name = tmp_path.name.replace("_", "-")
    config.write_text(
        f'[mirror.m]\nsource = "memory:{name}-s"\ntarget = "memory:{name}-t/copy"\nstate_dir = "{tmp_path}/state"\n'
    )
    source, _ = open_bucket(f"memory:{name}-s")
    for number in range(5):
        source.put(f"{number}", b"%d" % number)

    def cowsync(*words: str) -> tuple[int, dict[str, object]]:
        capsys.readouterr()
        code = run(app, "cowsync", [*words, "--json", "--config", str(config)])
        return int(code), json.loads(capsys.readouterr().out)

    assert cowsync("plan", "m")[0] == ExitCode.FINDING
    assert cowsync("apply", "m")[1]["done"] == 5
    code, planned = cowsync("plan", "m")
    assert (code, planned["lines"]) == (ExitCode.OK, 0)
    assert cowsync("verify", "m", "--full")[0] == ExitCode.OK
    source.delete("3")
    assert cowsync("run", "m")[0] == ExitCode.OK
    assert cowsync("snapshot", "diff", "m", "run:1")[0] == ExitCode.FINDING
    code, explained = cowsync("explain", "m", "3")
    assert explained["source"] == "not there"
    assert cowsync("snapshot", "restore", "m", "run:1", "--go")[0] == ExitCode.OK
    assert source.get("3") == b"3"
    assert cowsync("snapshot", "prune", "m", "--keep", "1")[0] == ExitCode.OK
    assert cowsync("status", "m")[1]["objects"] == 5


def test_how_long_a_run_took_is_not_how_long_its_scan_took() -> None:
    shown = run_record(Run(1, 7, Phase.DONE, 100.0, 460.0, facts={"seconds": 0.1, "keys": 3}))
    assert (shown["seconds"], shown["keys"], shown["run"]) == (360.0, 3, 7)


@pytest.mark.parametrize("to", ["memory:kept", "memory:kept/m/below", "memory:kept/m", "memory:kept/state"])
def test_nothing_is_restored_around_or_into_the_mirror(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    """With --delete everything that is not in the restore point would go: the mirror itself."""
    config = tmp_path / "config.toml"
    config.write_text(
        f'[mirror.m]\nsource = "memory:any"\ntarget = "memory:kept/m"\nstate = "memory:kept/state"\n'
        f'state_dir = "{tmp_path}/state"\n'
    )
    words = ["snapshot", "restore", "m", "run:1", "--to", to, "--delete", "--go", "--config", str(config)]
    assert run(app, "cowsync", words) == ExitCode.REFUSED
    assert "lie in each other" in capsys.readouterr().err
