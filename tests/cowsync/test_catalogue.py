"""The history of runs: what is written is read, an interrupted run is seen, a damaged file says what to do."""

import errno
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cowsync.catalogue import VERSION, Catalogue, Phase, Seen
from cowsync.errors import StateDamaged


def test_a_run_from_begin_to_end(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "mirror" / "catalogue.sqlite")
    run = catalogue.begin(4, "base", 100.0)
    catalogue.update(run, Phase.PLANNED, plan="digest", facts={"adds": 3})
    catalogue.update(run, Phase.DONE, ended=160.0, snapshot="next", facts={"done": 3})
    found = Catalogue(tmp_path / "mirror" / "catalogue.sqlite").run_of_plan("digest")
    assert found is not None
    assert (found.number, found.phase, found.base, found.snapshot) == (4, Phase.DONE, "base", "next")
    assert (found.started, found.ended, found.facts) == (100.0, 160.0, {"adds": 3, "done": 3})
    assert catalogue.run_of_plan("other") is None


def test_a_run_that_never_ended_is_marked_by_the_next(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    lost = catalogue.begin(1, "", 100.0)
    held = catalogue.begin(1, "", 200.0)
    catalogue.update(held, Phase.HELD)
    catalogue.begin(1, "", 300.0)
    phases = {run.id: (run.phase, run.ended) for run in catalogue.runs()}
    assert phases[lost] == (Phase.INTERRUPTED, 200.0)
    assert phases[held] == (Phase.HELD, 0.0)
    assert [run.started for run in catalogue.runs(2)] == [300.0, 200.0]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cowsync.catalogue.RUNS_MIN", 5)
    monkeypatch.setattr("cowsync.catalogue.RUNS_MAX", 8)


def history(path: Path, phases: Sequence[Phase], every_s: float) -> Catalogue:
    catalogue = Catalogue(path / "catalogue.sqlite")
    for number, phase in enumerate(phases):
        run = catalogue.begin(number, "", number * every_s)
        catalogue.update(run, phase, plan=f"plan-{number}")
    return catalogue


@pytest.mark.usefixtures("few")
def test_runs_are_forgotten_by_count_and_by_age(tmp_path: Path) -> None:
    catalogue = history(tmp_path, [Phase.CLEAN] * 12, 10 * 86400.0)
    day_130 = 130 * 86400.0
    assert catalogue.trim([], day_130) == 4, "all but eight"
    assert [run.number for run in catalogue.runs()] == [11, 10, 9, 8, 7, 6, 5, 4]
    assert catalogue.trim([], day_130) == 0
    assert catalogue.trim([], day_130 + 35 * 86400.0) == 3, "older than 90 days, but for the newest five"
    assert [run.number for run in catalogue.runs()] == [11, 10, 9, 8, 7]
    assert catalogue.trim([], day_130 * 10) == 0


@pytest.mark.usefixtures("few")
def test_what_is_still_needed_is_not_forgotten(tmp_path: Path) -> None:
    phases = [Phase.DONE, Phase.HELD, Phase.PLANNED, Phase.PLANNED] + [Phase.FAILED] * 20
    catalogue = history(tmp_path, phases, 60.0)
    assert catalogue.trim(["plan-2", "plan-9"], 1e9) == 24 - 5 - 5
    assert [run.number for run in catalogue.runs()] == [23, 22, 21, 20, 19, 9, 3, 2, 1, 0]
    assert catalogue.run_of_plan("plan-2") is not None
    with closing(sqlite3.connect(tmp_path / "catalogue.sqlite")) as database:
        database.execute("update runs set phase = 'applying' where number = 9")
        database.commit()
    assert catalogue.trim(["plan-2"], 1e9) == 0


def test_what_was_seen_is_told_until_something_else_is(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    assert catalogue.seen("x") is None
    catalogue.remember("x", "", of="here", now=1.0)
    catalogue.remember("x", "no", of="there", now=2.0)
    assert Catalogue(tmp_path / "catalogue.sqlite").seen("x") == Seen("no", "there", 2.0)


def test_a_catalogue_of_version_1_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    Catalogue(path).begin(7, "base", 1.0)
    with closing(sqlite3.connect(path)) as database:
        database.executescript("drop table seen; pragma user_version = 1;")
    catalogue = Catalogue(path)
    assert [run.number for run in catalogue.runs()] == [7]
    assert catalogue.seen("x") is None
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("pragma user_version").fetchone() == (VERSION,)
        database.execute("pragma user_version = 99")
    with pytest.raises(StateDamaged, match="version 99"):
        Catalogue(path)


def test_a_damaged_file_is_named_with_the_cure(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.sqlite"
    path.write_bytes(b"not a database, and long enough to look like a page" * 100)
    with pytest.raises(StateDamaged, match=r"catalogue\.sqlite") as caught:
        Catalogue(path)
    assert "move the file away" in caught.value.hint


def test_an_unknown_field_is_a_mistake_of_ours(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")
    with pytest.raises(ValueError, match="nonsense"):
        catalogue.update(1, Phase.DONE, nonsense=1)


def test_a_place_that_is_full_is_no_damaged_file(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "catalogue.sqlite")

    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(OSError, match="disk is full") as caught, catalogue._open():
        raise error
    assert caught.value.errno == errno.ENOSPC
