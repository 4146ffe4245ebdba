"""The demo, as somebody runs it: every kind of page answers, and nothing is left behind."""

import os
import subprocess
import sys
from pathlib import Path

from tests.envctl.assembly.running import COMMAND, environment


def test_every_page_of_the_demo_answers_and_nothing_is_left(tmp_path: Path) -> None:
    found = subprocess.run(
        [*COMMAND, "demo", "--check", "--listen", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        env=environment(TMPDIR=str(tmp_path)),
        timeout=280,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0].startswith("console   http://127.0.0.1:")
    assert {line.split()[0] for line in lines[1:5]} == {"admin", "alice", "bob", "olga"}
    count = int(lines[-1].split()[0])
    assert count > 40, found.stdout
    assert "Traceback" not in found.stderr, found.stderr
    assert os.listdir(tmp_path) == []


def test_the_script_is_the_command() -> None:
    root = Path(__file__).parents[3]
    shown = subprocess.run(
        [sys.executable, str(root / "deploy/envctl_demo.py"), "--help"],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
        timeout=120,
    )
    assert "--check" in shown.stdout
