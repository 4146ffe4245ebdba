"""The demo, as somebody runs it: every kind of page answers, and nothing is left behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from s3core.exit_codes import ExitCode
from tests.envctl.assembly.running import COMMAND, START_S, environment


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


@pytest.mark.parametrize("moment", ["made", "serving"])
def test_sigterm_leaves_nothing_either_in_the_background(tmp_path: Path, moment: str) -> None:
    """From a source tree, as `make demo-envctl` has it; with SIGINT ignored, as shells start what runs beside them."""
    script = Path(__file__).parents[3] / "deploy/envctl_demo.py"
    said = tmp_path / "said"
    place = tmp_path / "place"
    place.mkdir()
    with said.open("w") as out:
        process = subprocess.Popen(
            ["/bin/sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, str(script), "--listen", "127.0.0.1:0"],
            stdout=out,
            stderr=out,
            env=environment(TMPDIR=str(place)),
        )
    try:
        end = time.monotonic() + START_S
        while not (os.listdir(place) if moment == "made" else "console   http" in said.read_text()):
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.01)
        process.terminate()
        code = process.wait(START_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert code in (0, ExitCode.INTERRUPTED), said.read_text()
    assert "Traceback" not in said.read_text(), said.read_text()
    assert os.listdir(place) == []


def test_a_directory_that_is_kept_has_a_token_for_commands(tmp_path: Path) -> None:
    said, place = tmp_path / "said", tmp_path / "place"
    with said.open("w") as out:
        process = subprocess.Popen(
            [*COMMAND, "demo", "--listen", "127.0.0.1:0", "--dir", str(place)],
            stdout=out,
            stderr=out,
            env=environment(),
        )
    try:
        end = time.monotonic() + START_S
        while "commands  ." not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < end, said.read_text()
            time.sleep(0.05)
        asked = subprocess.run(
            ["/bin/sh", "-c", '. "$0"; exec "$@"', str(place / "alice.env"), *COMMAND, "env", "list", "--json"],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
            timeout=120,
        )
    finally:
        process.terminate()
        process.wait(START_S)
    assert asked.returncode == 0, asked.stderr
    assert {one["owner_name"] for one in json.loads(asked.stdout)} <= {"alice"}
    assert (place / "alice.env").stat().st_mode & 0o777 == 0o600


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
