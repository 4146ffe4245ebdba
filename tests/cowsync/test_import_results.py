"""What a job of S3 Batch Operations copied is published as done; the rest is carried out as usual."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from cowsync.apply.journal import Journals
from cowsync.changes import Outcome
from cowsync.cli import app
from cowsync.errors import Held, Refused
from cowsync.import_commands import note_results
from cowsync.work import Planned
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.settings import GuardSettings
from tests.cowsync.apply.faulty_bucket import Crash, Fault
from tests.cowsync.worlds import World


def planned_world(folder: Path, count: int = 6) -> tuple[World, Planned]:
    world = World(folder, source="s3://aws/source", target="s3://aws/target")
    for number in range(count):
        world.source.put(f"k{number}", b"%d" % number)
    return world, world.plan()


def report(world: World, rows: Mapping[str, str], bucket: str = "source") -> Path:
    """A report of `rows` (key, status), and what the job has copied: what it calls succeeded."""
    path = world.folder / "report.csv"
    path.write_text("".join(f"{bucket},{key},,{status},,200,\n" for key, status in rows.items()))
    return path


def copied(world: World, *keys: str) -> None:
    for key in keys:
        world.target.put(key, world.source.get(key))


def test_what_a_job_has_done_is_not_done_again(tmp_path: Path) -> None:
    world, planned = planned_world(tmp_path)
    copied(world, "k4", "k1")
    path = report(
        world, {"k4": "succeeded", "k2": "failed", "k1": "succeeded", "k3": "succeeded", "strange": "succeeded"}
    )
    count = note_results(world.mirror(), planned.plan, [path])
    assert (count.rows, count.done, count.failed, count.strangers) == (5, 2, 2, 1)
    assert note_results(world.mirror(), planned.plan, [path]).done == 2
    result = world.apply(planned).result
    assert (result.done_before, result.count(Outcome.DONE), result.complete) == (2, 4, True)
    assert world.mirrored() == world.source.contents()
    assert world.plan().clean
    with pytest.raises(Refused, match="the base is"):
        note_results(world.mirror(), planned.plan, [path])


def test_the_next_plan_publishes_what_was_noted(tmp_path: Path) -> None:
    world, planned = planned_world(tmp_path)
    copied(world, "k0", "k5")
    note_results(world.mirror(), planned.plan, [report(world, {"k0": "succeeded", "k5": "succeeded"})])
    assert [line.key for line in world.plan().plan] == ["k1", "k2", "k3", "k4"]


def test_a_crash_leaves_a_part_and_the_same_reports_add_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowsync.import_commands.REPORT_ROWS", 1)
    world, planned = planned_world(tmp_path)
    copied(world, "k0", "k1", "k2")
    path = report(world, dict.fromkeys(("k0", "k1", "k2"), "succeeded"))
    world.faults.calls, world.faults.at = 0, {2: Fault.CRASH_BEFORE}
    with pytest.raises(Crash):
        note_results(world.mirror(), planned.plan, [path])
    world.faults.at, world.faults.crashed = {}, False
    noted = Journals.read(world.mirror().journals(planned.plan.digest), bytes.fromhex(planned.plan.digest)).done
    assert [number in noted for number in range(6)] == [True, False, False, False, False, False]
    assert note_results(world.mirror(), planned.plan, [path]).done == 3
    assert world.apply(planned).result.done_before == 3
    assert world.plan().clean


def test_a_report_of_another_bucket_or_none_notes_nothing(tmp_path: Path) -> None:
    world, planned = planned_world(tmp_path)
    copied(world, "k0")
    with pytest.raises(Refused, match="the report is of bucket other"):
        note_results(world.mirror(), planned.plan, [report(world, {"k0": "succeeded"}, bucket="other")])
    torn = tmp_path / "torn.csv"
    torn.write_text("source,k0,,succ")
    with pytest.raises(Refused, match="not a row of a completion report"):
        note_results(world.mirror(), planned.plan, [torn])
    assert world.apply(planned).result.done_before == 0


def test_a_held_plan_needs_its_approval(tmp_path: Path) -> None:
    world = World(
        tmp_path, source="s3://aws/source", target="s3://aws/target", guard=GuardSettings(canaries=("canary",))
    )
    for key in ("canary", "k"):
        world.source.put(key, b"data")
    assert world.run().result.complete
    world.source.put("canary", b"encrypted")
    planned = world.plan()
    copied(world, "canary")
    path = report(world, {"canary": "succeeded"})
    with pytest.raises(Held):
        note_results(world.mirror(), planned.plan, [path])
    assert not world.mirror().journals(planned.plan.digest).exists()
    assert note_results(world.mirror(), planned.plan, [path], approve=planned.plan.digest).done == 1


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from s3core.bucket_stack import open_bucket

    name = tmp_path.name.replace("_", "-")
    config = tmp_path / "config.toml"
    config.write_text(
        f'[mirror.m]\nsource = "memory:{name}-s"\ntarget = "memory:{name}-t"\nstate_dir = "{tmp_path}/state"\n'
    )
    source, _ = open_bucket(f"memory:{name}-s")
    source.put("k", b"data")
    assert run(app, "cowsync", ["plan", "m", "--json", "--config", str(config)]) == ExitCode.FINDING
    digest = json.loads(capsys.readouterr().out)["digest"]
    path = tmp_path / "report.csv"
    path.write_text(",k,,failed,,500,\n")
    words = ["import-results", "m", digest[:12], str(path), "--config", str(config)]
    assert run(app, "cowsync", words) == ExitCode.PARTIAL
    assert "1 rows: 0 done, 0 moved, 0 drifted, 1 failed" in capsys.readouterr().out
    assert run(app, "cowsync", [*words, "--json"]) == ExitCode.PARTIAL
    assert json.loads(capsys.readouterr().out)["failed"] == 1
