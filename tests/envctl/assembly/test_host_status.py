"""What `bucketworks status` is told of a console: by the process that runs, by its database where that is down."""

import subprocess
import sys
from pathlib import Path

import pytest

from envctl.console_status import judge, look_at
from envctl.host_status import report
from envctl.web.metrics import Samples
from s3core.settings import EnvctlSettings, load_config
from tests.envctl.assembly.running import running_console

INTERVAL = 300.0


def found(**more: Samples) -> dict[str, Samples]:
    base: dict[str, Samples] = {
        "environments": {("ready",): 2.0, ("failed",): 0.0},
        "backup_age_seconds": {("a", "alice"): 200.0, ("b", "bob"): 100.0},
        "backup_failing": {(): 0.0},
        "jobs_failed_recently": {(): 0.0},
        "orphans": {},
        "stored_bytes": {("a", "alice"): 10.0},
        "findings": {(): 0.0},
    }
    return base | more


@pytest.mark.parametrize(
    ("more", "health", "said"),
    [
        ({}, "ok", ""),
        ({"backup_age_seconds": {("a", "alice"): 901.0}}, "critical", "1 home was not saved"),
        ({"backup_failing": {(): 1.0}}, "warning", "1 backup fails"),
        ({"environments": {("failed",): 1.0}}, "warning", "1 environment has failed"),
        ({"orphans": {("pve",): 2.0}}, "warning", "2 machines have no environment"),
        ({"findings": {(): 1.0}}, "warning", "reconciler"),
        ({"backup_age_seconds": {}, "orphans": {}, "stored_bytes": {}}, "ok", ""),
    ],
)
def test_figures_are_judged(more: dict[str, Samples], health: str, said: str) -> None:
    told = judge(found(**more), INTERVAL, "")
    assert told.health == health
    assert said in told.reason
    assert bool(told.runbook) == (health != "ok")


def test_a_console_that_is_down_is_critical_whatever_its_database_says() -> None:
    told = judge(found(), INTERVAL, "the console does not answer")
    assert (told.health, told.facts["oldest_backup_seconds"]) == ("critical", 200.0)


def test_one_that_runs_and_one_that_was_stopped(tmp_path: Path) -> None:
    with running_console(tmp_path, role="web") as running:
        address = running.url.removeprefix("http://")
        settings = EnvctlSettings(state_dir=str(tmp_path), listen=address)
        told = look_at(settings, 60.0)
        assert told.health == "ok", told
        assert told.facts["environments"] == 0
    down = look_at(settings.model_copy(update={"listen": "127.0.0.1:1"}), 60.0)
    assert down.health == "critical"
    assert "does not answer at 127.0.0.1:1" in down.reason


def test_where_there_is_no_console_nothing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(f'[envctl]\nstate_dir = "{tmp_path}/none"\n')
    assert list(report(load_config(path))) == []


def test_where_there_is_no_console_nothing_of_it_is_imported() -> None:
    asked = "import sys, envctl.host_status; print([name for name in ('sqlalchemy', 'fastapi') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout == "[]\n"
