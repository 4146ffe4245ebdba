"""Processes of a benchmark: started, timed and ended by their process id.

One rule: CPU time is what the kernel says a process used, user and system, all its threads (proc(5), /proc/PID/stat,
fields 14 and 15), in clock ticks of usually 10 ms; so figures per operation need runs of many ticks.
"""

import contextlib
import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 90.0


class BenchFailed(RuntimeError):
    """The benchmark cannot go on; the message says why and ends with the last output of what failed."""


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far. Raises OSError once it is gone."""
    # The command's name stands in brackets and may hold blanks.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def children_cpu_s() -> float:
    """CPU time of this process's children that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found


def peak_memory_bytes(pid: int) -> int:
    """The most resident memory a process has had (VmHWM of /proc/PID/status)."""
    return _status_bytes(pid, "VmHWM:")


def memory_bytes(pid: int) -> int:
    """The memory of a process's own that is resident now, files mapped into it (the map's) left out (RssAnon)."""
    return _status_bytes(pid, "RssAnon:")


def descendants(pid: int) -> list[int]:
    """A process, those that it started, theirs, and so on; without those that end meanwhile."""
    found = [pid]
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in children(pid):
            found += descendants(child)
    return found


def shared_out_bytes(pid: int) -> int:
    """The resident memory of a process, what it shares with others divided among them (Pss of /proc/PID/smaps_rollup):
    sums over processes count nothing twice. 0 once it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def start(command: Sequence[str], log_file: Path) -> "subprocess.Popen[bytes]":
    """Start a server whose output goes to `log_file`; the kernel ends it when this process ends, where it can. It does not hear
    the Ctrl-C of a terminal: what takes down what was measured still needs it."""
    setpriv = shutil.which("setpriv")
    guard = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    with log_file.open("ab") as log:
        return subprocess.Popen(
            [*guard, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, process_group=0
        )


def end(process: "subprocess.Popen[bytes]", number: signal.Signals = signal.SIGTERM) -> int:
    """Ask a process to end and wait; its return code. Raises BenchFailed if it does not within `PATIENCE_S`."""
    if process.poll() is None:
        process.send_signal(number)
    try:
        return process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.wait()
        raise BenchFailed(f"{process.args!r} did not end within {PATIENCE_S:.0f} s and was killed") from error


def wait_for_line(log_file: Path, marker: str, process: "subprocess.Popen[bytes]") -> str:
    """The first line of the log that has `marker` in it. Raises BenchFailed if the process ends before."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        text = log_file.read_text(errors="replace") if log_file.exists() else ""
        for line in text.splitlines(keepends=True):
            if marker in line and line.endswith("\n"):
                return line.strip()
        if process.poll() is not None:
            raise BenchFailed(f"{process.args!r} ended with {process.returncode}:\n{tail(log_file)}")
        time.sleep(0.02)
    raise BenchFailed(f"{process.args!r} did not say {marker!r} within {PATIENCE_S:.0f} s:\n{tail(log_file)}")


def free_port() -> int:
    """A loopback port nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tail(log_file: Path) -> str:
    return log_file.read_text(errors="replace")[-3000:] if log_file.exists() else "(no output)"
