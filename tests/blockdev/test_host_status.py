"""What a status of a served volume means, and what a state directory without a daemon does."""

import socket
from pathlib import Path
from typing import Any

import pytest

from blockdev.control import NAME as CONTROL
from blockdev.host_status import judge, look_at, report
from blockdev.latency import Latency
from s3core.exit_codes import ExitCode
from s3core.settings import VolumeSettings, parse_config
from tests.blockdev.test_top import status


def told(front: dict[str, Any] | None = None, worker: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    base = {"url": "s3://aws/disks/vm1", "door": "portal", "flush": "local", "allocated_bytes": 1 << 30}
    return status(60.0, Latency(), front=front or {}, worker=worker or {}, **base | more)


@pytest.mark.parametrize(
    ("answer", "health", "said", "page"),
    [
        (told(), "ok", "", ""),
        (told(worker={"store_reachable": 0.0}), "critical", "store does not answer", "store-unreachable"),
        (told(front={"journal_fill": 0.6}), "warning", "journal fills", "journal-filling"),
        (told(front={"journal_fill": 0.95}), "critical", "BUSY", "journal-filling"),
        (told(front={"rpo_seconds": 300.0}), "warning", "lacks what was written", "journal-filling"),
        (told(front={"lease_seconds_left": 0.0}), "critical", "lease is out", "store-unreachable"),
        (told(worker={"corruptions": 2.0}), "critical", "do not hold", "corrupt"),
        (told(failure="volume vm1 was taken over: by host b", state="stopped"), "critical", "taken over", "fenced-out"),
        (told(state="stopped"), "critical", "stopped", "README"),
        (told(quota_bytes=(1 << 30) + 1), "warning", "quota", "quota"),
        (told(ledger={"recorded": 1, "lost": 1}), "warning", "lost events", "ledger-stale"),
        (told(state="attaching"), "warning", "attaching", "attach-refused"),
    ],
)
def test_an_answer_is_judged(answer: dict[str, Any], health: str, said: str, page: str) -> None:
    item = judge("vm1", answer, VolumeSettings(url="s3://aws/disks"))
    assert (item.health, item.runbook) == (health, f"runbook/{page}.md" if page else "")
    assert said in item.reason
    assert item.facts["stored_bytes"] == 1 << 30
    assert item.facts["endpoint"] == "aws"
    assert "RPO" in item.summary


def test_damage_ends_with_its_own_code() -> None:
    assert judge("vm1", told(worker={"corruptions": 1.0}), None).code is ExitCode.CORRUPT


def test_volumes_are_those_of_the_configuration_and_those_with_state(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "lock").touch()
    (tmp_path / "old" / "journal").touch()
    (tmp_path / "spending").mkdir()
    (tmp_path / "spending" / "lock").touch()
    config = parse_config(f'[s3block]\nstate_dir = "{tmp_path}"\n[volume.vm1]\nurl = "file:///srv/disks"\n')
    assert [look.name for look in report(config)] == ["old", "vm1"]
    assert [look.ask().health for look in report(config)] == ["ok", "ok"]


def test_a_socket_that_nobody_listens_at_tells_of_a_crash(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / CONTROL))
    item = look_at("vm1", tmp_path, None, 1.0)
    assert (item.health, item.code) == ("critical", ExitCode.LOCAL)
    assert "without an orderly stop" in item.reason


def test_a_daemon_that_does_not_answer_is_unknown(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / CONTROL))
        silent.listen()
        item = look_at("vm1", tmp_path, None, 0.2)
    assert item.health == "unknown"
    assert "no answer" in item.reason
