"""Processes of the pool: they end with the command, and leave Ctrl-C to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from cowsync.scan.engine import ProcessEngine, may_fork
from tests.architecture.tree import ROOT

COMMAND = """
import time
from cowsync.scan.engine import ProcessEngine
from tests.cowsync.scan.test_processes import tell_and_wait
if __name__ == "__main__":
    engine = ProcessEngine(1)
    engine.submit(tell_and_wait, {path!r})
    time.sleep(600)
"""
LOCKED = """
from pathlib import Path
from types import SimpleNamespace
from cowsync.scan.engine import ProcessEngine, may_fork
from cowsync.work import alone
from tests.cowsync.scan.test_processes import tell_and_wait, told
if __name__ == "__main__":
    here = Path({path!r})
    mirror = SimpleNamespace(folder=here, name="one")
    assert may_fork()
    with alone(mirror):
        engine = ProcessEngine(1)
        engine.submit(tell_and_wait, str(here / "pid"))
        worker = told(here / "pid")
    with alone(mirror):
        print("free")
    engine.close()
"""
PATIENCE_S = 30.0


def tell_and_wait(path: str) -> None:
    staged = Path(f"{path}.new")
    staged.write_text(str(os.getpid()))
    staged.rename(path)
    time.sleep(600)


def told(path: Path) -> int:
    until = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until, "the piece was never begun"
        time.sleep(0.05)
    return int(path.read_text())


def ended(pid: int) -> bool:
    """Perhaps not yet buried: its parent may be one that buries nobody."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def gone(pid: int) -> bool:
    until = time.monotonic() + PATIENCE_S
    while not ended(pid) and time.monotonic() < until:
        time.sleep(0.05)
    return ended(pid)


def test_they_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(COMMAND.format(path=str(tmp_path / "pid")))
    command = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        worker = told(tmp_path / "pid")
        os.kill(worker, signal.SIGINT)  # as a terminal would, which tells all of them
        time.sleep(0.2)
        assert not ended(worker)
    finally:
        command.kill()
        command.wait()
    assert gone(worker)


def test_nobody_waits_for_a_piece_that_is_not_wanted_any_more(tmp_path: Path) -> None:
    engine = ProcessEngine(1)
    engine.submit(tell_and_wait, str(tmp_path / "pid"))
    worker = told(tmp_path / "pid")
    began = time.monotonic()
    engine.close()
    assert time.monotonic() - began < PATIENCE_S
    assert gone(worker)


def test_a_fork_does_not_hold_the_command_s_lock(tmp_path: Path) -> None:
    script = tmp_path / "command.py"
    script.write_text(LOCKED.format(path=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "free\n", done.stderr
    assert gone(told(tmp_path / "pid"))


def test_beside_another_thread_nothing_is_forked() -> None:
    over = threading.Event()
    beside = threading.Thread(target=over.wait)
    beside.start()
    try:
        assert not may_fork()
    finally:
        over.set()
        beside.join()
