"""The doctor's judgement: which tools may run on what was seen, and how it is told."""

import json
from pathlib import Path

import pytest

from s3core.cli import app
from s3core.console import run
from s3core.doctor import TOOLS, Diagnosis, Fitness, Tool, diagnose, judge
from s3core.exit_codes import ExitCode
from s3core.findings import Finding, exit_code_for
from s3core.settings import Config, parse_config

CHECKS = (
    "read after write",
    "create once",
    "replace if unchanged",
    "ranges",
    "order of listings",
    "delete",
    "metadata",
    "copy",
    "upload in parts",
)
BY_NAME = {tool.name: tool for tool in TOOLS}


def judged(tool: Tool, *bad: Finding, inconclusive: tuple[str, ...] = (), left_out: tuple[str, ...] = ()) -> Fitness:
    names = {finding.check for finding in bad}
    good = [Finding(check, "ok", "fine") for check in CHECKS if check not in names and check not in left_out]
    findings = [*good, *bad]
    return judge(tool, findings, frozenset(inconclusive), frozenset(finding.check for finding in findings), {})


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_all_may_run_where_everything_holds(tool: Tool) -> None:
    assert judged(tool).may_run == "yes"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_none_may_run_where_writes_are_not_read_back(tool: Tool) -> None:
    fitness = judged(tool, Finding("read after write", "fault", "old bytes"))
    assert fitness.may_run == "no"
    assert "read after write: old bytes" in fitness.because


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_none_may_run_where_a_rule_deletes_live_data(tool: Tool) -> None:
    assert judged(tool, Finding("lifecycle", "fault", "rule x")).may_run == "no"


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_what_was_not_asked_is_not_met(tool: Tool) -> None:
    assert judged(tool, left_out=("read after write",)).may_run == "not known"
    denied = Finding("read after write", "fault", "could not be asked")
    assert judged(tool, denied, inconclusive=("read after write",)).may_run == "not known"


def test_every_need_and_limit_is_a_check_somebody_makes() -> None:
    known = {*CHECKS, "lifecycle", "versioning", "object lock", "clock"}
    assert {name for tool in TOOLS for name in (*tool.needs, *tool.limits)} <= known


def test_a_store_that_does_not_fence() -> None:
    race = Finding("create once", "fault", "8 of 8 racing writers were told that they created the object")
    assert judged(BY_NAME["s3integrity"], race).may_run == "no"
    disks = judged(BY_NAME["s3block"], race)
    assert disks.may_run == "limited"
    assert "unfenced = true" in disks.because[0]
    unasked = judged(BY_NAME["s3block"], race, inconclusive=("create once",))
    assert unasked.because == ("not known whether it holds: create once",)


def test_the_exit_code_is_the_first_fault() -> None:
    fine, worse = Finding("a", "warning", "x"), Finding("b", "fault", "y", code=ExitCode.DENIED)
    assert exit_code_for([fine]) is ExitCode.OK
    assert exit_code_for([fine, worse, Finding("c", "fault", "z")]) is ExitCode.DENIED
    unable = Fitness("s3block", "disks", "no")
    assert Diagnosis("u", (fine,), (unable,), {}).exit_code is ExitCode.FINDING
    assert Diagnosis("u", (fine,), (Fitness("s3block", "disks", "limited"),), {}).exit_code is ExitCode.OK


def test_a_directory_is_fit_for_everything(tmp_path: Path) -> None:
    seen: list[Finding] = []
    diagnosis = diagnose(f"file://{tmp_path}/store", Config(), on_finding=seen.append)
    assert diagnosis.findings == tuple(seen)
    assert {fitness.may_run for fitness in diagnosis.fitness} == {"yes"}
    assert diagnosis.exit_code is ExitCode.OK
    assert diagnosis.figures["put_4k_median_ms"] > 0


def test_a_server_that_is_not_there_is_a_finding() -> None:
    config = parse_config("[endpoint.site]\nurl = 'http://127.0.0.1:1'\ncredentials = 'none'\n")
    diagnosis = diagnose("s3://site/bucket", config)
    assert [finding.check for finding in diagnosis.findings] == ["connection"]
    assert diagnosis.fitness == ()
    assert diagnosis.exit_code is ExitCode.UNAVAILABLE


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "none.toml"))
    assert run(app, "bucketworks", ["doctor", f"file://{tmp_path}/store"]) == 0
    said = capsys.readouterr().out
    assert "ok         ranges" in said
    assert "yes        s3block      disks" in said
    assert run(app, "bucketworks", ["doctor", f"file://{tmp_path}/store", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"url", "findings", "tools", "figures"}
    assert set(told["findings"][0]) == {"check", "verdict", "said", "cure"}
    assert run(app, "bucketworks", ["doctor", "/srv/store"]) == ExitCode.USAGE
    assert "s3://ENDPOINT/BUCKET/PREFIX" in capsys.readouterr().err
    assert run(app, "bucketworks", ["doctor", "s3://site/b"]) == ExitCode.CONFIGURATION
    assert "bucketworks endpoint create site" in capsys.readouterr().err
