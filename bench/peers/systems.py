"""What every system beside us can do, so that one matrix meets them all; the table of them is `bench.peers.table`.

One rule: a system is what its packages and its settings make it: nothing of it is patched, everything it starts is its own
(a process, a mount, a folder, a bucket), and all of it is gone after `close`, however the run ended.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from bench.processes import PATIENCE_S, BenchFailed, cpu_seconds, descendants, peak_memory_bytes
from bench.store import Client

MIB = 1024 * 1024
DRAIN_S_MAX = 600.0
QUIET_S = 0.6
"""Longer than s3backer waits with a block that it may still get more of (250 ms)."""
WATCHED_S = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system works. `directory`: its own, on the disk of the run. `bucket`: its own; empty or not there yet.
    `cache_bytes`: of each system that caches, so that none has more than another."""

    directory: Path
    store: Client
    bucket: str
    size_bytes: int
    cache_bytes: int


class System(Protocol):
    """A disk in a bucket (or in a file) that serves one initiator. Made stopped; `start` again after `stop` finds
    whatever `forget` did not remove. Raises BenchFailed for what does not work."""

    @property
    def name(self) -> str:
        """As in the report."""

    @property
    def settings(self) -> str:
        """What it was told, for the report: one line."""

    @property
    def bucket(self) -> str:
        """All it stores; empty if it stores in no bucket."""

    @property
    def url(self) -> str:
        """For an initiator, while it serves: `iscsi://...` or `nbd+unix://...`; empty if it has a file alone."""

    @property
    def path(self) -> Path | None:
        """The disk as a file, where there is one."""

    def start(self) -> None:
        """Serve; takes commands when this returns."""

    def pids(self) -> Sequence[int]:
        """Its own processes that run, children included; the front end it is measured through (tgtd) left out."""

    def front_pids(self) -> Sequence[int]:
        """Of the front end it is measured through and that is not its own: tgtd before a FUSE file."""

    def cpu_s(self) -> float:
        """CPU seconds of its own processes so far, ended ones included."""

    def peak_bytes(self) -> int:
        """The most memory its processes had at once, as far as asked for: sum of the peaks of those that run now."""

    def drain(self) -> None:
        """Until the bucket has everything that was written; goes on serving."""

    def stop(self) -> None:
        """End in good order: the bucket has everything when this returns."""

    def forget(self) -> None:
        """Only when stopped: remove all that is on this host, as if the host were another. The bucket stays."""

    def kill(self) -> None:
        """SIGKILL to everything at once, as a host that loses its power; mounts are gone too. What is on disk stays."""

    def close(self) -> None:
        """Ended, however it stands, and nothing left on this host. The bucket stays. May be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


Make = Callable[[Place], System]


@dataclass(frozen=True, slots=True)
class Known:
    """One system of the report. `missing`: why it cannot run here, empty if it can. `version`: as its own program says."""

    name: str
    make: Make
    missing: Callable[[], str]
    version: Callable[[], str]


class Account:
    """CPU time of processes that come and go: what has ended is kept."""

    def __init__(self) -> None:
        self._ended_s = 0.0

    def total(self, pids: Sequence[int]) -> float:
        return self._ended_s + cpu_of(pids)

    def ends(self, pids: Sequence[int]) -> None:
        """Before these are ended by somebody who does not `wait` here: what they have used until now."""
        self._ended_s += cpu_of(pids)

    def wait(self, process: "subprocess.Popen[bytes]", patience_s: float = PATIENCE_S) -> int:
        """Wait for the end of a process and add what it and its children used; its return code, negative for a signal."""
        give_up = time.monotonic() + patience_s
        while process.returncode is None:
            # wait4 knows the account of a process that has ended, to the microsecond; /proc forgets it.
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                self._ended_s += usage.ru_utime + usage.ru_stime
                process.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > give_up:
                process.kill()
                give_up = time.monotonic() + PATIENCE_S
                self.wait(process)
                raise BenchFailed(f"{process.args!r} did not end within {patience_s:.0f} s and was killed")
            else:
                time.sleep(0.005)
        return process.returncode


def cpu_of(pids: Sequence[int]) -> float:
    """CPU seconds so far of those that run."""
    total = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += cpu_seconds(pid)
    return total


def peak_of(pids: Sequence[int]) -> int:
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += peak_memory_bytes(pid)
    return total


def family(process: "subprocess.Popen[bytes] | None") -> list[int]:
    """A process and all below it; none if it does not run."""
    return descendants(process.pid) if process is not None and process.poll() is None else []


def kill_all(pids: Sequence[int]) -> None:
    """SIGKILL, all stopped first so that none sees another's end; returns when those that are not our children are gone."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    give_up = time.monotonic() + PATIENCE_S
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > give_up:
            raise BenchFailed(f"of the processes {pids} some are still there after SIGKILL")
        time.sleep(0.005)


def _runs(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def until_quiet(store: Client, bucket: str, quiet_s: float = QUIET_S) -> None:
    """Until nothing new was put into the bucket, nor deleted there, for so long. Raises BenchFailed after `DRAIN_S_MAX`."""
    begin = last = time.monotonic()
    seen = _work(store, bucket)
    while time.monotonic() - last < quiet_s:
        time.sleep(0.05)
        now = _work(store, bucket)
        if now != seen:
            seen, last = now, time.monotonic()
        if last - begin > DRAIN_S_MAX:
            raise BenchFailed(f"still writing to the bucket {DRAIN_S_MAX:.0f} s after the last write")


def drained_s(system: System, store: Client) -> float:
    """Drain it; seconds until the last of it was in the bucket. What a system (or whoever looks at it) takes to be sure of that
    is not among them."""
    begin = last = time.monotonic()
    over = threading.Event()
    # The watcher's own: two threads cannot share a connection.
    own = Client(store.port)
    seen = _work(own, system.bucket)

    def watch() -> None:
        nonlocal last, seen
        while not over.wait(WATCHED_S):
            now = _work(own, system.bucket)
            if now != seen:
                seen, last = now, time.monotonic()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        system.drain()
    finally:
        over.set()
        watcher.join()
    return (last if _work(own, system.bucket) == seen else time.monotonic()) - begin


def _work(store: Client, bucket: str) -> tuple[int, int, int]:
    stats = store.stats(bucket)
    return stats.puts, stats.deletes, stats.bytes_in


def shown(words: Sequence[str], place: Place) -> str:
    """A command line for the report: paths and ports of this run left out."""
    text = " ".join(words)
    return (
        text.replace(str(place.directory), "DIR").replace(str(place.store.port), "PORT").replace(place.bucket, "BUCKET")
    )
