"""One program, or one server while something is asked of it: time, processor, memory, and what the store saw meanwhile.

One rule: processor time is of the program that is measured and of its children; never of the store, nor of who reads and writes
through a mount.
"""

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO

from bench.peers.figures import PEAK_MIB, REQUESTS, Figure
from bench.processes import BenchFailed, children_cpu_s, cpu_seconds, descendants, shared_out_bytes
from bench.store import Client, Stats

MIB = 1024 * 1024
SAMPLE_S = 0.05
UP_MIB = "up_mib"
DOWN_MIB = "down_mib"
CPU_S = "cpu_s"


@dataclass(frozen=True, slots=True)
class Taken:
    """`peak_bytes`: the most memory that all its processes held at one time, sampled. `seen`: what the store was asked for
    meanwhile; None where it does not count."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    seen: Stats | None

    def facts(self) -> dict[str, float]:
        known = {CPU_S: self.cpu_s, PEAK_MIB: self.peak_bytes / MIB}
        if self.seen is not None:
            known |= {
                REQUESTS: self.seen.requests,
                UP_MIB: self.seen.bytes_in / MIB,
                DOWN_MIB: self.seen.bytes_out / MIB,
            }
        return known


def command(
    words: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    store: Client | None,
    *,
    stdin: IO[bytes] | None = None,
) -> Taken:
    """Run a program to its end. BenchFailed, with the end of its output, where it fails."""
    before, cpu = store.stats() if store is not None else None, children_cpu_s()
    begin = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            words, stdin=stdin or subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environment)
        )
    with _Sampled(process.pid) as sampled:
        status = process.wait()
        seconds = time.monotonic() - begin
    if status:
        raise BenchFailed(f"{' '.join(words[:4])} ended with {status}:\n{log.read_text(errors='replace')[-2000:]}")
    return Taken(seconds, children_cpu_s() - cpu, sampled.peak_bytes, _since(store, before))


def around(pid: int, action: Callable[[], None], store: Client | None) -> Taken:
    """What a server that runs already takes while `action` asks it for something."""
    before, cpu = store.stats() if store is not None else None, _cpu_s(pid)
    with _Sampled(pid) as sampled:
        begin = time.monotonic()
        action()
        seconds = time.monotonic() - begin
    return Taken(seconds, _cpu_s(pid) - cpu, sampled.peak_bytes, _since(store, before))


def timed(load: str, system: str, latency_ms: int, runs: Sequence[Taken], note: str = "") -> Figure:
    """Seconds of each run; facts are medians of the runs."""
    return Figure(load, system, latency_ms, "s", tuple(run.seconds for run in runs), True, middle(runs), note)


def middle(runs: Sequence[Taken]) -> dict[str, float]:
    """The median of each fact that all runs have."""
    facts = [run.facts() for run in runs]
    return {name: median(one[name] for one in facts) for name in facts[0] if all(name in one for one in facts)}


def _since(store: Client | None, before: Stats | None) -> Stats | None:
    return store.stats().since(before) if store is not None and before is not None else None


def _cpu_s(pid: int) -> float:
    return sum(map(cpu_seconds, descendants(pid)))


class _Sampled:
    """The memory of a process and its children, looked at until the block is left."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "_Sampled":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            with suppress(OSError, ValueError):
                self.peak_bytes = max(self.peak_bytes, sum(map(shared_out_bytes, descendants(self._pid))))
            if self._over.wait(SAMPLE_S):
                return
