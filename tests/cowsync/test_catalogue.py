"""The history of runs: what is written is read, an interrupted run is seen, a damaged file says what to do."""

import errno
import sqlite3
from pathlib import Path

import pytest

from cowsync.catalogue import Catalogue, Phase
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
