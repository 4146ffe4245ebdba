"""`tests.lanes`: what a whole run needs is told before it begins."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import lanes
from tests.architecture.tree import ROOT


def test_a_disk_without_room_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: Any) -> Any:
        return shutil._ntuple_diskusage(100 << 30, 99 << 30, 1 << 30)

    monkeypatch.setattr(shutil, "disk_usage", full)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("nothing is to be started"))
    assert lanes.main([]) == lanes.NO_ROOM
    said = capsys.readouterr().err
    assert "1,024 MiB of free space" in said
    assert "set TMPDIR" in said


def test_a_disk_with_room_is_no_problem(tmp_path: Path) -> None:
    assert lanes.lacking(tmp_path, room_mib=0) == ""


def test_modules_are_compiled_once_where_python_was_told_to_keep_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)  # where this very run has set it
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    kept = lanes.compiling(tmp_path)
    assert "PYTHONDONTWRITEBYTECODE" not in kept
    assert Path(kept["PYTHONPYCACHEPREFIX"]).is_relative_to(tmp_path)
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE")
    assert "PYTHONPYCACHEPREFIX" not in lanes.compiling(tmp_path)


def test_the_guest_tests_that_have_a_lane_of_their_own_are_there() -> None:
    for file in lanes.GUEST_HALF:
        assert (ROOT / file).is_file(), file
