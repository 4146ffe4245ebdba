"""What the core's answers mean for `bucketworks status`, and what storages spent, counted once."""

from pathlib import Path

import pytest

from plugin.configuration import ROOT_VARIABLE, Storage
from plugin.counters import NAME as COUNTERS
from plugin.counters import Count, Counters
from plugin.host_status import accounts, judge, look_at, report, spent_of
from s3core.exit_codes import ExitCode
from s3core.settings import Config, ConfigError, parse_config
from s3core.spending import month_of

STORAGE = Storage("s3", "bucketfiles", "b", "pve/", endpoint_url="https://s3.example.com", quota_bytes=1000)
ACTIVE = {"active": True, "used": 100, "total": 1000, "avail": 900, "reason": "", "checked_at": 1.0}


@pytest.mark.parametrize(
    ("status", "usage", "health", "said"),
    [
        ({}, {}, "ok", ""),
        ({"active": False, "reason": "the store has not answered yet"}, {}, "critical", "not answered"),
        ({"used": 950}, {}, "warning", "quota is nearly used"),
        ({}, {"budget": {"requests": 0.95}}, "warning", "budget is nearly used"),
        ({}, {"problem": "the core did not answer"}, "warning", "did not answer"),
    ],
)
def test_answers_are_judged(status: dict[str, object], usage: dict[str, object], health: str, said: str) -> None:
    item = judge(STORAGE, ACTIVE | status, usage)
    assert item.health == health
    assert said in item.reason
    assert item.facts["endpoint"] == STORAGE.endpoint_name


def test_a_storage_that_cannot_be_used_or_has_no_core_is_critical(tmp_path: Path) -> None:
    assert look_at("s3", ConfigError("no bucket"), Config()).code is ExitCode.CONFIGURATION
    config = parse_config(f'[pve]\nrun_dir = "{tmp_path}"\n')
    told = look_at("s3", STORAGE, config)
    assert (told.health, told.code) == ("critical", ExitCode.UNAVAILABLE)
    assert "no core answers" in told.reason


def test_what_storages_counted_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    (tmp_path / "etc/pve").mkdir(parents=True)
    (tmp_path / "etc/pve/storage.cfg").write_text(
        "bucketfiles: s3\n\tpath /mnt/x\n\tbw-bucket backups\n\tbw-endpoint https://s3.example.com\n\tbw-region us-east-1\n"
        "\tbw-preset aws\n"
    )
    config = parse_config(f'[pve]\nstate_dir = "{tmp_path}/state"\nrun_dir = "{tmp_path}/run"\n')
    assert [look.name for look in report(config)] == ["s3"]
    month = month_of(1_795_000_000.0)
    assert list(accounts(config, month)) == []
    counters = Counters(tmp_path / "state" / "s3" / COUNTERS, now=lambda: 1_795_000_000.0)
    counters.add("put", up=7, requests=2000)
    counters.add("list", requests=3)
    counters.add("head", requests=4)
    counters.add("delete")
    counters.flush()
    (account,) = accounts(config, month)
    spent = account.spent
    assert (spent.put, spent.list, spent.get, spent.delete, spent.up) == (2000, 3, 4, 1, 7)
    assert account.estimate.put == pytest.approx(2003 / 1000 * 0.005)


def test_a_method_that_a_later_version_counts_is_charged_as_a_put() -> None:
    assert spent_of({"teleport": Count(3, 1, 2)}).put == 3
