"""`s3block shell` as a user has it: one line on the command line, lines from a pipe, a terminal."""

import os
import pty
import select
import subprocess
import time
from pathlib import Path

import pytest

from tests.system.machine import S3BLOCK, environment

pytest.importorskip("configshell_fb", reason="the shell needs configshell-fb (pip install bucketworks[lio])")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two configured volumes, of which one is made, with a snapshot and a clone."""
    home = tmp_path_factory.mktemp("shell")
    path = home / "config.toml"
    path.write_text(
        f'[s3block]\nstate_dir = "{home}/state"\njournal_bytes = "4M"\ncache_bytes = "4M"\n'
        f'[volume.vm1]\nurl = "file://{home}/store"\n[volume.vm2]\nurl = "file://{home}/store"\ndoor = "lio"\n'
    )
    shell(path, "/volumes", "create", "vm1", "size=16M")
    shell(path, stdin="# a script\n/volumes/vm1\nsnapshot one note=first\none/ clone vm3\n")
    return path


def shell(config: Path, *words: str, stdin: str = "", code: int = 0) -> str:
    """What it prints on standard output; the messages too where it fails as it should."""
    done = subprocess.run(
        [S3BLOCK, "shell", *words],
        input=stdin,
        env=environment(config),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def test_the_tree_shows_stores_volumes_snapshots_and_luns(config: Path) -> None:
    lines = [line.split(" .")[0].strip() for line in shell(config, "ls").splitlines()]
    assert [line for line in lines if "store" not in line] == [
        *("o- /", "o- lio", "| o- vm2"),
        *("|   o- vm1", "|   | o- one", "|   o- vm3"),
        *("o- volumes", "o- vm1", "| o- one", "o- vm2"),
    ]
    assert "clones: vm3" in shell(config, "/volumes/vm1", "ls")
    assert "\x1b" not in shell(config, "ls"), "no colours in a pipe"


def test_a_line_does_what_the_command_does_and_ends_as_it_ends(config: Path) -> None:
    said = shell(config, "/volumes/vm1", "info")
    assert "snapshots       one" in said
    assert "--force" in shell(config, "/volumes/vm1", "resize", "8M", code=7)
    assert "no such path" in shell(config, "/volumes/none", "info", code=2).lower()
    assert "Command not found" in shell(config, "/volumes", "frobnicate", code=2)
    assert "Missing required parameter" in shell(config, "/volumes", "create", code=2)
    assert "no daemon serves volume vm2" in shell(config, "/lio", "attach", "vm2", code=7)
    assert "PROBLEM" in shell(config, "/lio", "status", code=1)


def test_a_script_stops_at_its_first_failure(config: Path) -> None:
    said = shell(config, stdin="/volumes/vm1 delete yes=true\n/volumes/vm1 info\n", code=7)
    assert "clone" in said  # refused: a clone needs its snapshot
    assert "newest commit" not in said


def test_a_place_that_is_not_configured_is_opened(config: Path, tmp_path: Path) -> None:
    subprocess.run(
        [S3BLOCK, "create", f"file://{tmp_path}/other/vm7", "--size", "16M"],
        env=environment(config),
        capture_output=True,
        check=True,
    )
    said = shell(config, stdin=f"/stores open file://{tmp_path}/other\n/stores ls\nexit\n/volumes/none info\n")
    assert f"file://{tmp_path}/other, Volumes: 1" in said


def test_a_terminal_has_a_prompt_completion_and_survives_errors(config: Path) -> None:
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [S3BLOCK, "shell"], stdin=child, stdout=child, stderr=child, env=environment(config) | {"TERM": "dumb"}
    )
    os.close(child)

    readable = select.poll()  # select() takes no descriptor above 1,023
    readable.register(parent, select.POLLIN)

    def until(text: str) -> str:
        said, give_up = "", time.monotonic() + 60
        while text not in said:
            assert time.monotonic() < give_up, f"no {text!r} in {said!r}"
            if readable.poll(1000):
                said += os.read(parent, 4096).decode()
        return said

    try:
        until("/> ")
        os.write(parent, b"cd volumes/vm1\n")
        until("/volumes/vm1> ")
        os.write(parent, b"frobnicate\n")
        assert "Command not found" in until("/volumes/vm1> ")
        os.write(parent, b"inf\t\n")  # completed to `info`
        assert "newest commit" in until("/volumes/vm1> ")
        os.write(parent, b"exit\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(parent)
