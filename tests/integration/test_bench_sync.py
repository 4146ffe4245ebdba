"""The benchmark's section `sync`: cowsync and rclone find what the server planted, and what does not is no result."""

import sys
from pathlib import Path

import pytest

from bench import sync
from bench.lister import Planted, planted
from bench.sync import SyncBench, SyncPlan, run_watched, tables

OBJECTS = 12_000


@pytest.mark.slow
def test_both_find_what_was_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "STAGE_KEYS", 5000)
    monkeypatch.setattr(sync, "CEILING_S", 0.1)
    said: list[str] = []
    synced = SyncBench(tmp_path, said.append).run(SyncPlan(OBJECTS, 3000))
    ours = [one for one in synced.found if one.program.startswith("cowsync")]
    assert [one.objects for one in ours] == [3000, OBJECTS, OBJECTS]
    for one in ours:
        assert one.differences == len(list(planted(one.objects, sync.PER_THOUSAND)))
        assert one.counts.heads == 0
        assert one.objects / 1000 <= one.counts.lists <= one.objects / 1000 + 60
        assert 10 << 20 < one.peak_bytes < sync.MEMORY_MAX
        assert one.cpu_s > 0
    theirs = [one for one in synced.found if one.program.startswith("rclone")]
    if synced.without_rclone:
        print(f"without rclone: {synced.without_rclone}")
        assert not theirs
    else:
        assert len(theirs) == len(sync.RCLONE_LOADS)
        assert {(one.differences, one.counts.heads) for one in theirs} == {(3, 0)}
    assert not list(tmp_path.glob("mirror-*"))
    assert len(tables(synced)[0][2]) == len(synced.found)
    assert {stage.us_per_key > 0 for stage in synced.stages} == {True}


def test_without_rclone_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "rclone" in sync.rclone_missing()


def test_memory_is_that_of_all_processes(tmp_path: Path) -> None:
    child = "import time; held = bytearray(40 << 20); held[::4096] = b'x' * len(held[::4096]); time.sleep(1)"
    program = (
        f"import subprocess, sys; {child.replace('time.sleep(1)', 'subprocess.run([sys.executable, sys.argv[1]])')}"
    )
    (tmp_path / "child.py").write_text(child)
    ran = run_watched([sys.executable, "-c", program, str(tmp_path / "child.py")], {}, tmp_path / "log")
    assert ran.status == 0, ran.output
    assert 80 << 20 < ran.peak_bytes < 160 << 20
    assert ran.seconds > 1


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ERROR : data/0000/object-00000000.bin: md5 differ", Planted.MODIFIED),
        ("ERROR : data/0000/object-00000000.bin: sizes differ", Planted.MODIFIED),
        ("ERROR : data/0001/object-00010170.bin: file not in S3 bucket source-20000", Planted.REMOVED),
        ("ERROR : data/0001/object-00011787.new: file not in S3 bucket mirror-20000", Planted.ADDED),
        ("NOTICE: data/0000/object-00000000.bin: Skipped copy as --dry-run is set (size 9.766Ki)", Planted.MODIFIED),
        ("NOTICE: data/0000/object-00002234.new: Skipped copy as --dry-run is set (size 2Ki)", Planted.ADDED),
        ("NOTICE: data/0000/object-00002234.bin: Skipped delete as --dry-run is set (size 2Ki)", Planted.REMOVED),
    ],
)
def test_what_rclone_says_is_counted(line: str, kind: Planted) -> None:
    found = sync.rclone_differences(f"2026/11/21 23:01:27 {line}\n2026/11/21 NOTICE: 200 differences found\n")
    assert found == {one: int(one is kind) for one in Planted}
