"""`make demo` does what it says, in time, repeatably; and leaves nothing running behind."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT
from tests.system.machine import tool

pytestmark = [pytest.mark.slow, pytest.mark.initiator]

DEMO = [sys.executable, str(ROOT / "deploy/demo.py"), "--directory"]


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name `directory`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended since the listing
        if str(directory) in line:
            found.append(line)
    return found


@pytest.fixture
def tools() -> None:
    """Skips where a program that the demo needs is missing."""
    tool("qemu-img", "--version")
    tool("mkfs.ext4", "-V")


@pytest.mark.usefixtures("tools")
def test_the_demo_and_what_it_says_to_type_next(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    # As an earlier demo, cut off somewhere, may have left it.
    (directory / "state/disk").mkdir(parents=True)
    (directory / "state/disk/journal").write_bytes(b"of another volume")
    (directory / "made-by-the-demo").touch()
    began = time.monotonic()
    done = subprocess.run([*DEMO, str(directory)], cwd=ROOT, capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - began < 120
    said = done.stdout
    assert "\x1b[" not in said, "colours although nobody looks"
    cut = re.search(r"after (\d+) of (\d+) MiB were acknowledged, (\d+) MiB of it flushed", said)
    assert cut is not None
    assert 0 < int(cut[3]) <= int(cut[1]) < int(cut[2])
    assert said.count("bytes equal, e2fsck -fn clean, SHA-256 of all") == 4
    assert f"all {cut[3]} MiB that had been flushed are there" in said
    assert "ok  VERIFIED: ledger demo, full" in said
    assert "ok  one bit flipped: TAMPERED: ledger demo, full" in said
    assert processes_of(directory) == []

    again = next(line for line in said.splitlines() if "s3block serve file:" in line and "--listen" not in line)
    command = [*shlex.split(again), "--listen", "127.0.0.1:0"]
    served = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert served.stdout is not None
    line = served.stdout.readline()
    served.send_signal(signal.SIGTERM)
    _, errors = served.communicate(timeout=60)
    assert line.startswith("serving disk at iscsi://127.0.0.1:"), errors

    endpoint = next(line for line in said.splitlines() if "endpoint create" in line)
    config = tmp_path / "new/config.toml"
    environment = {**os.environ, "BUCKETWORKS_CONFIG": str(config)}
    subprocess.run(shlex.split(endpoint), cwd=ROOT, env=environment, check=True, timeout=60)
    assert "[endpoint.my]" in config.read_text()


def restore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.usefixtures("tools")
def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    demo = subprocess.Popen(
        [*DEMO, str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests run in the background, Ctrl-C is ignored, and what they start would inherit that.
        preexec_fn=restore_ctrl_c,
    )
    assert demo.stdout is not None
    try:
        assert any("listens after" in line for line in demo.stdout)
        assert processes_of(directory / "store") != []
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=30)
    finally:
        demo.kill()
    assert demo.returncode == 130, output
    assert "FAILED: interrupted" in output
    assert processes_of(directory) == []


def test_a_missing_program_is_named_with_its_package(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [*DEMO, str(tmp_path / "demo")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "not found: qemu-img, qemu-io" in done.stdout
    assert "apt-get install qemu-utils" in done.stdout
    assert f"logs: {tmp_path}" in done.stdout


def test_a_directory_that_is_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = subprocess.run([*DEMO, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "name another with --directory" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
