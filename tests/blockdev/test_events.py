"""What a ledger hears of a volume: what is done to it as a whole, in order; and nothing of its data.

One rule: writers of the ledger stand in memory here; tests/integrity has them on a disk.
"""

import ast
import asyncio
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from blockdev.engine import link
from blockdev.engine.checkpoint import CheckpointSettings
from blockdev.engine.worker import TOLD_OPERATIONS, WorkerSettings
from blockdev.errors import Refused
from blockdev.events import recorded
from integrity import recording
from integrity.coverage import Covered
from integrity.errors import SlotsTaken
from integrity.recording import ControlEvents, Recorder
from s3core.errors import Unavailable
from s3core.exit_codes import ExitCode
from s3core.settings import Config, parse_config
from tests.architecture.tree import ROOT
from tests.blockdev.command import Command, command
from tests.blockdev.worker_bench import WorkerBench
from tests.integrity.kept_records import Kept


def _happened(bench: WorkerBench) -> list[tuple[str, dict[str, Any]]]:
    return [(one.event, one.detail) for one in bench.messages if isinstance(one, link.Happened)]


async def _written(bench: WorkerBench, times: int) -> None:
    for number in range(times):
        bench.write(number * 8, bytes([number % 256]) * 4096)
        await bench.commit()


def test_of_data_a_ledger_hears_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        bench = WorkerBench(tmp_path)
        await bench.attach()
        before = _happened(bench)
        await _written(bench, 40)
        await bench.read(0, 64)
        assert _happened(bench) == before
        assert [event for event, _ in before] == ["attach"]
        await bench.detach()
        assert [event for event, _ in _happened(bench)] == ["attach", "detach"]

    asyncio.run(scenario())


def test_of_checkpoints_it_hears_once_a_minute(tmp_path: Path) -> None:
    settings = WorkerSettings(lease_s=0.3, checkpoint=CheckpointSettings(records=2))

    async def scenario() -> None:
        bench = WorkerBench(tmp_path, settings=settings)
        await bench.attach()
        await _written(bench, 20)
        events = _happened(bench)
        assert [event for event, _ in events] == ["attach", "checkpoint"]
        detail = events[1][1]
        assert detail["commit"] > events[0][1]["commit"]
        assert re.fullmatch("[0-9a-f]{64}", detail["digest"])
        await bench.detach()

    asyncio.run(scenario())


def test_who_takes_over_says_so_and_who_is_fenced_off_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = WorkerBench(tmp_path / "one")
        await first.attach()
        await _written(first, 1)
        settings = WorkerSettings(lease_s=0.3, accept_loss=True)
        second = WorkerBench(tmp_path / "two", first.store, volume=first.volume, settings=settings)
        await second.attach()
        ((event, detail),) = _happened(second)
        assert (event, detail["accepted_loss"], detail["epoch"]) == ("take-over", True, 2)
        first.write(0, bytes(4096))
        first.worker.receive(link.Appended(first.journal.head))
        first.worker.receive(link.CommitNow(first.journal.head))
        first.worker.receive(link.Stopped())
        assert first.task is not None
        await asyncio.wait_for(first.task, 30)
        assert [(event, detail.get("kind")) for event, detail in _happened(first)] == [
            ("attach", None),
            ("stopped", "fenced"),
        ]
        first.close()
        await second.detach()

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    asyncio.run(scenario())


# --- the queue before the ledger --------------------------------------------------------------------------------------


class Stuck(Kept):
    """A disk that does not answer until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def record(self, event: Mapping[str, object], *, wait: bool = True) -> int:
        self.let.wait(30)
        return super().record(event, wait=wait)


def _recorder(kept: Kept) -> Recorder:
    return Recorder(lambda: kept, [Covered("audit", "site", "disks", "")], {"kind": "tool"}, release=kept.close)


def test_a_ledger_that_hangs_holds_up_nobody() -> None:
    kept = Stuck()
    events = ControlEvents(_recorder(kept), "v1/vm1/", {"volume": "vm1"}, limit=3)
    began = time.monotonic()
    for number in range(10):
        events("snapshot", {"number": number})
    assert time.monotonic() - began < 15
    assert events.lost >= 6
    lost = events.lost
    kept.let.set()
    events.close()
    assert (events.recorded, events.lost) == (10 - lost, lost)
    assert [one["detail"]["number"] for one in kept.records] == sorted(one["detail"]["number"] for one in kept.records)
    assert kept.closed == 1
    events.close()
    assert kept.closed == 1


def test_a_ledger_that_cannot_record_is_counted() -> None:
    kept = Kept()
    kept.full = True
    events = ControlEvents(_recorder(kept), "v1/vm1/", {"volume": "vm1"})
    events("snapshot", {})
    events("snapshot", {"odd": 0.5})
    events.close()
    assert (events.recorded, events.lost) == (0, 2)


# --- a volume's life by commands --------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    kept = Kept()
    monkeypatch.setattr(recording, "open_writer", lambda name, config: kept)
    return kept


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    config = tmp_path / "config.toml"
    config.write_text(f'[ledger.audit]\nurl = "file://{tmp_path}/ledger"\ncovers = ["file://{tmp_path}/store"]\n')
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(config))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    return command(capsys)


def test_the_life_of_a_volume_is_in_the_ledger_in_order(kept: Kept, s3block: Command, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("first passphrase")
    (tmp_path / "two").write_text("second passphrase")
    for name in ("one", "two"):
        (tmp_path / name).chmod(0o600)
    store = f"file://{tmp_path}/store"
    vm1, vm2, key = f"{store}/vm1", f"{store}/vm2", ("--key", f"passphrase-file:{tmp_path}/one")
    for words in (
        ("create", vm1, "--size", "4M", "--encrypt", *key),
        ("key", "add", vm1, *key, "--new-key", f"passphrase-file:{tmp_path}/two"),
        ("snapshot", "create", vm1, "monday", *key),
        ("clone", vm1, "monday", vm2, *key),
        ("resize", vm1, "8M", *key),
        ("rollback", vm1, "monday", "--yes", *key),
        ("delete", vm2, "--yes"),
        ("snapshot", "delete", vm1, "monday", *key),
        ("gc", vm1, *key),
        ("delete", vm1, "--yes"),
    ):
        said = s3block(*words)
        assert said.code == 0, (words, said.err)
    told = [(one["detail"]["volume"], one["detail"]["event"], one["phase"]) for one in kept.records]
    assert [one for one in told if one[1] not in ("attach", "detach", "checkpoint")] == [
        ("vm1", "create", "intent"),
        ("vm1", "create", "done"),
        ("vm1", "key-add", "intent"),
        ("vm1", "key-add", "done"),
        ("vm1", "snapshot", "done"),
        ("vm2", "clone", "intent"),
        ("vm2", "clone", "done"),
        ("vm1", "resize", "done"),
        ("vm1", "rollback", "done"),
        ("vm2", "remove", "intent"),
        ("vm2", "remove", "done"),
        ("vm1", "snapshot-delete", "done"),
        ("vm1", "gc", "done"),
        ("vm1", "remove", "intent"),
        ("vm1", "remove", "done"),
    ]
    attached = [event for volume, event, _ in told if event in ("attach", "detach")]
    assert attached == ["attach", "detach"] * 5, "a session for each operation"
    names = {one["detail"]["event"]: one["who"]["name"] for one in kept.records}
    assert (names["create"], names["snapshot"], names["key-add"]) == (
        "s3block create",
        "s3block snapshot create",
        "s3block key add",
    )
    assert {one["op"] for one in kept.records} == {"control"}
    commits = [one["detail"]["commit"] for one in kept.records if "commit" in one["detail"] and "vm1" in one["key"]]
    assert commits == sorted(commits)
    assert "passphrase" not in str(kept.records)


def test_a_command_that_cannot_be_recorded_makes_nothing(
    kept: Kept, s3block: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"file://{tmp_path}/store"
    assert s3block("create", f"{store}/vm1", "--size", "4M").code == 0

    def taken(name: str, config: object) -> Kept:
        raise SlotsTaken("all 8 slots are in use", hint="raise slots")

    monkeypatch.setattr(recording, "open_writer", taken)
    said = s3block("create", f"{store}/vm2", "--size", "4M")
    assert said.code == ExitCode.REFUSED
    assert "nothing was sent: ledger audit cannot record control" in said.err
    assert "all 8 slots are in use" in said.err
    assert s3block("snapshot", "create", f"{store}/vm1", "monday").code == 0, "a volume goes on without its ledger"
    assert s3block("delete", f"{store}/vm1", "--yes").code == ExitCode.REFUSED


def test_what_was_refused_is_not_done_and_what_broke_off_is_unknown(kept: Kept, tmp_path: Path) -> None:
    place = (f"file://{tmp_path}/store", "vm1")
    config = parse_config(f'[ledger.audit]\nurl = "file://{tmp_path}/ledger"\ncovers = ["{place[0]}"]\n')
    for error in (Refused("it exists"), Unavailable("away"), KeyboardInterrupt()):
        with pytest.raises(type(error)), recorded(config, *place, "create"):
            raise error
    assert [one["phase"] for one in kept.records if one["phase"] != "intent"] == ["not-done", "unknown", "unknown"]
    with recorded(Config(), *place, "create"):
        pass
    assert len(kept.records) == 6


# --- the document -----------------------------------------------------------------------------------------------------


def test_the_document_has_every_event() -> None:
    """Of literal first arguments of what tells of events, in the source."""
    told = set(TOLD_OPERATIONS)
    for path in (ROOT / "blockdev").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                place = {"_happened": 0, "recorded": 3}.get(name)
                if place is not None and len(node.args) > place:
                    literals = ast.walk(node.args[place])
                    told |= {
                        one.value for one in literals if isinstance(one, ast.Constant) and isinstance(one.value, str)
                    }
    text = (ROOT / "docs/integrity/recording.md").read_text(encoding="utf-8")
    table = text.split("## Volumes")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE)) == told
    assert {"create", "remove", "attach", "take-over", "detach", "checkpoint"} <= told
