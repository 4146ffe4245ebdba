"""Child processes of tests: started with their output in a file, ended by pid, and gone when the tests are.

One rule: call from the main thread; the kernel kills a child when the *thread* that started it ends.
"""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path


class ServerFailed(RuntimeError):
    """A server did not start; the message ends with its last output."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(
    command: Sequence[str], log_file: Path, environment: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [*guard, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def end(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGKILL) -> None:
    """Returns when the process is gone; one that ended before counts as done."""
    if process.poll() is None:
        process.send_signal(number)
    process.wait(timeout=30)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", log_file: Path, seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if process.poll() is not None:
            raise ServerFailed(f"{process.args!r} ended with {process.returncode}:\n{tail(log_file)}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise ServerFailed(f"nothing listens on port {port} after {seconds} s:\n{tail(log_file)}")


def tail(log_file: Path) -> str:
    return log_file.read_text(errors="replace")[-3000:] if log_file.exists() else "(no output)"
