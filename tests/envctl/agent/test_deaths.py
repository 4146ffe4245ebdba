"""The agent is killed at each durable step of a backup and of a restore; the next run puts everything right.

The killed process runs on Python 3.9 where there is one, the oldest that a guest may have.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.envctl.agent import die
from tests.envctl.agent.console import FakeConsole
from tests.envctl.agent.machine import NOW, Machine, seen

ROOT = Path(__file__).parents[3]


def python() -> str:
    """The oldest Python of this machine that guests may have."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for found in (shutil.which("python3.9"), *sorted(versions.glob("3.9*/bin/python"))):
        if found and subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode == 0:
            return str(found)
    return sys.executable


PYTHON = python()


def ran(machine: Machine, verb: str, point: str = "", nth: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, str(Path(die.__file__)), verb, str(machine.folder), point, str(nth), str(NOW)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def console() -> Iterator[FakeConsole]:
    with FakeConsole() as made:
        yield made


def populate(home: Path) -> None:
    for folder in ("a", "b", "c"):
        (home / folder).mkdir()
        for number in range(5):
            (home / folder / f"{number}").write_bytes(f"{folder}{number}".encode() * 1000)
    os.link(home / "a" / "1", home / "c" / "link")


@pytest.mark.parametrize("point", ["packs", "trees", "cache", "committed", "remembered"])
def test_killed_in_a_backup(console: FakeConsole, tmp_path: Path, point: str) -> None:
    machine = Machine(tmp_path / "first", console)
    machine.service().restore()
    populate(machine.home)
    assert ran(machine, "backup").returncode == 0
    (machine.home / "a" / "0").write_bytes(b"changed")
    (machine.home / "b" / "1").unlink()
    (machine.home / "new").write_bytes(b"new")

    died = ran(machine, "backup", point)
    assert died.returncode == -signal.SIGKILL, died.stderr
    committed = point in ("committed", "remembered")
    assert console.number == (2 if committed else 1), "a backup is visible by its commit alone"

    again = ran(machine, "backup")
    assert again.returncode == 0, again.stderr
    assert console.number == 2
    assert machine.memory()["number"] == 2
    unchanged = len(console.puts)
    assert ran(machine, "backup").returncode == 0
    assert (console.number, len(console.puts)) == (2, unchanged)

    console.want(2)
    other = Machine(tmp_path / "second", console)
    other.service().restore()
    assert seen(other.home) == seen(machine.home)


@pytest.mark.parametrize(
    ("point", "nth"),
    [("begun", 1), ("staged", 1), ("exchanged", 1), ("exchanged", 3), ("placed", 1), ("sentinel", 1)],
)
def test_killed_in_a_restore(console: FakeConsole, tmp_path: Path, point: str, nth: int) -> None:
    machine = Machine(tmp_path / "first", console)
    machine.service().restore()
    populate(machine.home)
    machine.service().backup("timer")
    console.want(1)
    other = Machine(tmp_path / "second", console)
    (other.home / "a").mkdir()
    (other.home / "a" / "of the template").write_bytes(b"x")
    (other.home / "skeleton").write_bytes(b"x")

    died = ran(other, "restore", point, nth)
    assert died.returncode == -signal.SIGKILL, died.stderr
    early = ran(other, "backup")
    assert (early.returncode == 0) == (point == "sentinel"), "a home that is not restored was saved"
    assert console.number == 1

    again = ran(other, "restore")
    assert again.returncode == 0, again.stderr
    assert seen(other.home) == seen(machine.home)
    assert console.restored[-1]["number"] == 1
    assert not (other.home / ".envctl-staging").exists()
    assert ran(other, "backup").returncode == 0
    assert console.number == 1, "what was restored differs from what was saved"


def test_a_restore_goes_on_behind_what_is_durable(
    console: FakeConsole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "first", console)
    machine.service().restore()
    for number in range(12):
        (machine.home / f"{number:02}").write_bytes(os.urandom(300_000))
    machine.service().backup("timer")
    console.want(1)
    other = Machine(tmp_path / "second", console)
    monkeypatch.setattr("envctl.agent.restore.DURABLE_ROWS", 5)

    class Died(Exception):
        pass

    left = [2]

    def reached(point: str) -> None:
        if point == "durable":
            left[0] -= 1
            if not left[0]:
                raise Died

    with pytest.raises(Died):
        other.service(reached).restore()
    done = other.memory()["restoring"]["done"]
    assert list(done.values()) == ["home/08"]
    asked = len(console.requests)
    other.service().restore()
    assert seen(other.home) == seen(machine.home)
    assert len(console.requests) > asked


def test_the_agent_runs_on_the_oldest_python() -> None:
    version = subprocess.run([PYTHON, "--version"], capture_output=True, text=True, check=True).stdout
    if not version.startswith("Python 3.9"):
        pytest.skip(f"no python3.9 here; the deaths above ran on {version.strip()}")
    code = "import envctl.agent.main as m, sys; sys.exit(m.main(['version']))"
    ran = subprocess.run(
        [PYTHON, "-c", code],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (0, "1\n"), ran.stderr
