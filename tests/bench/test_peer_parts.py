"""The parts for the plugin, the agent and the ledger: what they are given is what they say, and each one runs."""

import random
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from bench.peers import backup, ledger, sync, transfer
from bench.peers.context import Context
from bench.peers.figures import CPU_S_PER_GIB, PEAK_MIB, REQUESTS, UP_PER_BYTE, Part
from bench.peers.measuring import CPU_S, MIB, Taken, middle, timed
from bench.peers.names import COWSYNC, KEYS, RCLONE
from bench.processes import BenchFailed
from bench.store import Client, Stats
from bench.sync import rclone_missing

TINY_HOME = backup.HomePlan(60, 1, 12 * MIB)


@pytest.fixture
def context(store: Client, tmp_path: Path) -> Context:
    """A run as small as it can be: at 0 ms, each load once."""
    directory = tmp_path / "run"
    directory.mkdir()
    return Context(directory, store, 0, True, [0], [], 1, 0.2, lambda line: None)


def _taken(seconds: float, requests: int) -> Taken:
    return Taken(seconds, seconds / 2, 3 * MIB, Stats(puts=requests, bytes_in=2 * MIB))


def test_the_middle_of_the_runs_is_what_is_told_beside_them() -> None:
    figure = timed("load", "system", 20, [_taken(3.0, 5), _taken(1.0, 9), _taken(2.0, 7)])
    assert (figure.values, figure.value, figure.less_is_better) == ((3.0, 1.0, 2.0), 2.0, True)
    assert figure.facts[REQUESTS] == 7
    assert figure.facts[CPU_S] == 1.0
    assert figure.facts[PEAK_MIB] == 3


def test_what_nobody_counted_is_absent() -> None:
    assert set(middle([Taken(1.0, 1.0, MIB, None)])) == {CPU_S, PEAK_MIB}


def test_half_of_the_content_can_be_packed_away() -> None:
    data = backup.half_compressible(random.Random(3), 4 * MIB)
    assert len(data) == 4 * MIB
    assert 0.5 < len(zlib.compress(data, 1)) / len(data) < 0.8


def test_a_home_is_the_same_each_time_and_a_hundredth_of_it_changes(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    made = backup.make_home(one, TINY_HOME)
    assert backup.make_home(other, TINY_HOME) == made
    assert made.files == len([path for path in one.rglob("*") if path.is_file()])
    assert made.bytes == sum(path.stat().st_size for path in one.rglob("*") if path.is_file())
    assert backup.differences(one, other) == []
    backup.change_home(other, TINY_HOME)
    assert len(backup.differences(one, other)) == 2
    assert (other / "large00.img").stat().st_size == (one / "large00.img").stat().st_size + MIB


def _shown(part: Part) -> set[tuple[str, str]]:
    assert all(value > 0 for figure in part.figures for value in figure.values)
    return {(figure.load, figure.system) for figure in part.figures}


def test_homes_are_saved_and_come_back(context: Context) -> None:
    part = backup.backups(replace(context, systems=[backup.AGENT]), TINY_HOME)
    assert _shown(part) == {(load, backup.AGENT) for load in backup.LOADS}
    facts = {figure.load: figure.facts for figure in part.figures}
    # Packs and tree of the first; of the others less, and nothing but the heartbeat where nothing changed.
    assert facts[backup.FIRST]["up_mib"] > 1
    assert facts[backup.UNCHANGED]["up_mib"] < 0.01 < facts[backup.CHANGED]["up_mib"]
    assert facts[backup.CHANGED]["up_mib"] < facts[backup.FIRST]["up_mib"]
    assert facts[backup.RESTORED]["down_mib"] > 1
    assert context.store.sizes("bench") == {}


def test_homes_are_saved_by_the_peers_too(context: Context) -> None:
    there = [name for name, program in ((backup.RESTIC, "restic"), (backup.RCLONE, "rclone")) if shutil.which(program)]
    if not there:
        pytest.skip("neither restic nor rclone is installed (Debian's packages of these names)")
    part = backup.backups(replace(context, systems=there), TINY_HOME)
    assert _shown(part) == {(load, name) for load in backup.LOADS for name in there}


def test_a_home_that_comes_back_different_fails_the_run(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (said,) = backup.differences(tmp_path / "one", tmp_path / "other")
    assert "file" in said
    with pytest.raises(BenchFailed):
        backup.differences(tmp_path / "one", tmp_path / "nowhere")


def test_a_backup_goes_up_and_comes_down(context: Context) -> None:
    ours = [transfer.ENGINE, transfer.DOWNLOADED]
    theirs = [] if rclone_missing() else [transfer.COPYTO, transfer.RCAT, transfer.COPYTO_FSYNC]
    plan = transfer.TransferPlan(40 * MIB, 5, real=False)
    part = transfer.transfers(replace(context, systems=[*ours, *theirs]), plan)
    wanted = {(transfer.UPLOAD, transfer.ENGINE), (transfer.DOWNLOAD, transfer.DOWNLOADED)}
    if theirs:
        wanted |= {
            (transfer.UPLOAD, transfer.COPYTO),
            (transfer.UPLOAD, transfer.RCAT),
            (transfer.DOWNLOAD, transfer.COPYTO),
            (transfer.DOWNLOAD, transfer.COPYTO_FSYNC),
        }
    assert _shown(part) == wanted
    for figure in part.figures:
        assert figure.facts[CPU_S_PER_GIB] > 0
        moved = figure.facts["up_mib"] + figure.facts["down_mib"]
        assert 40 <= moved < 41


def test_records_are_verified_recorded_and_counted(context: Context) -> None:
    part = ledger.ledgers(context, ledger.LedgerPlan(2_048, 0.2, 24))
    shown = _shown(part)
    assert (ledger.VERIFY, ledger.FLOOR) in shown
    assert {system for load, system in shown if load == ledger.RECORD} == {"1 thread", "8 threads", "64 threads"}
    requests = {figure.system: figure.facts[REQUESTS] for figure in part.figures if figure.load == ledger.PUT}
    assert requests[ledger.WITHOUT] == 1.0
    assert requests[ledger.WITH] > 1.0
    assert context.store.sizes(ledger.BUCKET) == {}


TINY_SYNC = sync.SyncPlan(3_000, 4_000, 30, 1, MIB)


@pytest.mark.parametrize("system", [COWSYNC, RCLONE])
def test_what_changed_and_the_mirror_are_measured(context: Context, system: str) -> None:
    """An answer that is wrong would have failed the part."""
    if system == RCLONE and (gone := rclone_missing()):
        pytest.skip(gone)
    part = sync.synced(replace(context, systems=[system]), TINY_SYNC)
    assert part.missing == []
    listed = [figure for figure in part.figures if figure.unit == KEYS]
    mirrored = [figure for figure in part.figures if figure.unit == sync.OBJECTS]
    assert {figure.load for figure in listed} >= {"what changed, 3,000 keys"}
    # Memory is sampled: of a program that is over in a tenth of a second any value may be seen.
    assert all(figure.system.startswith(system) and figure.facts[PEAK_MIB] >= 0 for figure in listed + mirrored)
    assert [figure.load for figure in mirrored] == [
        f"mirror, {way}, {load}" for way in (sync.BY_STORE, sync.THROUGH_HOST) for load in (sync.FIRST, sync.AGAIN)
    ]
    sent = {figure.load: figure.facts[UP_PER_BYTE] for figure in mirrored}
    assert sent[f"mirror, {sync.BY_STORE}, {sync.FIRST}"] < 0.1
    assert sent[f"mirror, {sync.THROUGH_HOST}, {sync.FIRST}"] >= 1
