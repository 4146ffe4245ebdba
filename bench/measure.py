"""One benchmark: the plan carried out on our volume, at each latency, and on tgt.

One rule: what is compared is measured in one run, on one machine, by the same commands, within seconds of each other:
tgt's reads right before ours; its writes before our first, since after those our worker is busy in the background.
What writes cost at the store is counted until a clean detach, so that nothing is still on its way.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from bench import disk, initiator, volume
from bench.initiator import BLOCK_BYTES, MIB
from bench.plan import FLUSH, Plan, Row
from bench.probe import PROBES, Latencies, measure
from bench.processes import cpu_seconds
from bench.store import Client, Stats
from bench.tgt import Tgt

Say = Callable[[str], None]
GIB = 1024 * MIB
DISK_S = 0.5


@dataclass(frozen=True, slots=True)
class Result:
    """Of one row on one target: every run's rate in the row's unit, and microseconds of CPU per operation over all of
    them. `target_us` is the process that serves (front or tgtd), `worker_us` the one that speaks to the bucket;
    `store_share` is how much of one core the benchmark's own store used."""

    rates: list[float]
    target_us: float
    worker_us: float
    initiator_us: float
    store_share: float

    @property
    def rate(self) -> float:
        return median(self.rates)

    @property
    def spread(self) -> float:
        """Fastest to slowest run, as a share of the median."""
        return (max(self.rates) - min(self.rates)) / self.rate


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one piece of work cost at the store: writes up to the end of the detach, reads while they ran. `host_bytes`:
    what the initiator wrote or read. `seconds`: writing and detaching together, 0 for reads."""

    name: str
    host_bytes: int
    write: bool
    stats: Stats
    seconds: float
    front_cpu_s: float
    worker_cpu_s: float

    @property
    def puts_per_gib(self) -> float:
        return self.stats.puts * GIB / self.host_bytes

    @property
    def gets_per_gib(self) -> float:
        return self.stats.gets * GIB / self.host_bytes

    @property
    def amplification(self) -> float:
        """Bytes at the store per byte of the host's."""
        return (self.stats.bytes_in if self.write else self.stats.bytes_out) / self.host_bytes


@dataclass(frozen=True, slots=True)
class Measured:
    """Everything at one latency."""

    latency_ms: int
    results: dict[str, Result]
    tgt: dict[str, Result]
    """tgt on the same rows, beside ours; empty if it was left out."""
    traffic: list[Traffic]
    latencies: dict[str, list[Latencies]]
    """Of each probe, every run; the worker carries what it wrote to the bucket meanwhile."""
    tgt_latencies: dict[str, list[Latencies]]
    disk_flushes: list[float]
    """What the disk below the journal does alone, in op/s, measured right before and after our flushes."""
    attach_s: float
    peak_memory_bytes: int
    in_flight_max: int


Usage = Callable[[], tuple[float, float, float]]
"""CPU seconds so far of target, worker and store."""


def repeat(row: Row, url: str, plan: Plan, usage: Usage) -> Result:
    times = plan.repeats
    rates: list[float] = []
    target = worker = store = initiator_s = seconds = 0.0
    for number in range(times):
        load = replace(row.load, offset_bytes=number * row.stride_bytes % plan.volume_bytes)
        before = usage()
        ran = initiator.run(load, url)
        after = usage()
        rates.append(load.count * (load.size_bytes / MIB if row.unit == "MiB/s" else 1) / ran.seconds)
        target += after[0] - before[0]
        worker += after[1] - before[1]
        store += after[2] - before[2]
        initiator_s += ran.cpu_s
        seconds += ran.seconds
    scale = 1e6 / (times * row.load.count)
    return Result(rates, target * scale, worker * scale, initiator_s * scale, store / seconds)


class Bench:
    """Our volume at one latency, from an empty bucket."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        store: Client,
        store_pid: int,
        latency_ms: int,
        *,
        tgt: Tgt | None,
        say: Say,
    ) -> None:
        self._plan = plan
        self._directory = directory
        self._store = store
        self._store_pid = store_pid
        self._latency_ms = latency_ms
        self._tgt = tgt
        self._say = say
        self._name = f"v{latency_ms}"
        self._results: dict[str, Result] = {}
        self._beside: dict[str, Result] = {}
        self._traffic: list[Traffic] = []
        self._latencies: dict[str, list[Latencies]] = {}
        self._beside_latencies: dict[str, list[Latencies]] = {}
        self._attach_s: list[float] = []
        self._memory = 0
        self._disk_flushes: list[float] = []

    def run(self) -> Measured:
        plan, directory = self._plan, self._directory
        self._store.set_latency(self._latency_ms)
        self._config = volume.create(
            directory, self._name, self._store.port, plan.volume_bytes, plan.journal_bytes, 2 * plan.volume_bytes
        )
        with self._served("filler") as served:
            self._fill(served)
        served.forget()
        with self._served("cold") as served:
            self._cold(served, plan.cold_scattered())
        served.forget()
        with self._served("warm") as served:
            self._cold(served, plan.cold_sequential())
            initiator.run(plan.warm_up(), served.url)
            for row in (row for row in plan.warm() if not row.load.write):
                self._theirs(row)
                self._row(served, row)
            writes = [row for row in plan.warm() if row.load.write]
            for row in writes:
                self._theirs(row)
            for row in writes:
                if row.name == FLUSH:
                    self._disk()
                self._row(served, row)
                if row.name == FLUSH:
                    self._disk()
            self._probe(served)
            self._memory = served.peak_memory_bytes()
        with self._served("warm") as served:
            self._scatter(served)
        served.forget()
        peak = self._store.stats().in_flight_max
        self._store.remove(volume.BUCKET)
        return Measured(
            latency_ms=self._latency_ms,
            results=self._results,
            tgt=self._beside,
            traffic=self._traffic,
            latencies=self._latencies,
            tgt_latencies=self._beside_latencies,
            disk_flushes=self._disk_flushes,
            attach_s=median(self._attach_s),
            peak_memory_bytes=self._memory,
            in_flight_max=peak,
        )

    def _served(self, state: str) -> volume.Served:
        served = volume.Served(self._config, self._name, state=f"{self._name}-{state}")
        self._attach_s.append(served.attach_s)
        return served

    def _usage(self, served: volume.Served) -> Usage:
        def usage() -> tuple[float, float, float]:
            cpu = served.cpu()
            return cpu.front, cpu.worker, cpu_seconds(self._store_pid)

        return usage

    def _row(self, served: volume.Served, row: Row) -> None:
        self._say(f"{self._latency_ms} ms: {row.name}")
        self._results[row.name] = repeat(row, served.url, self._plan, self._usage(served))

    def _theirs(self, row: Row) -> None:
        if self._tgt is None:
            return
        self._say(f"tgt: {row.name}")
        pid = self._tgt.pid
        self._beside[row.name] = repeat(row, self._tgt.url, self._plan, lambda: (cpu_seconds(pid), 0.0, 0.0))

    def _probe(self, served: volume.Served) -> None:
        """Ours and tgt in turn, run by run."""
        plan = self._plan
        for probe in PROBES:
            self._say(f"{self._latency_ms} ms: latency of {probe.name}")
            places = [(self._latencies, served.url)]
            if self._tgt is not None:
                places.append((self._beside_latencies, self._tgt.url))
            for _ in range(plan.repeats):
                for found, url in places:
                    found.setdefault(probe.name, []).append(measure(url, probe, plan.volume_bytes, plan.probe_s))

    def _disk(self) -> None:
        self._disk_flushes.append(disk.flushes_per_s(self._directory, DISK_S))

    def _cold(self, served: volume.Served, row: Row) -> None:
        before, cpu = self._store.stats(), served.cpu()
        self._row(served, row)
        used, stats = served.cpu() - cpu, self._store.stats().since(before)
        host_bytes = row.load.count * row.load.size_bytes * self._plan.repeats
        self._traffic.append(Traffic(row.name, host_bytes, False, stats, 0.0, used.front, used.worker))

    def _fill(self, served: volume.Served) -> None:
        self._say(f"{self._latency_ms} ms: fill the volume")
        size = self._plan.volume_bytes
        self._written(served, "sequential fill", size, lambda: initiator.fill(served.url, size, self._directory))

    def _scatter(self, served: volume.Served) -> None:
        self._say(f"{self._latency_ms} ms: scattered writes")
        plan = self._plan
        self._written(
            served,
            "4K scattered writes",
            plan.scattered * BLOCK_BYTES,
            lambda: initiator.scatter(served.url, plan.volume_bytes, plan.scattered, self._directory),
            timed=False,
        )

    def _written(
        self, served: volume.Served, name: str, host_bytes: int, write: Callable[[], float], *, timed: bool = True
    ) -> None:
        """`timed`: the initiator writes as fast as it can, so that its time says something."""
        before, cpu = self._store.stats(), served.cpu()
        seconds = write()
        # The processes are gone after the detach, and with them their account.
        draining = served.detach()
        used = draining.cpu - cpu
        stats = self._store.stats().since(before)
        self._traffic.append(
            Traffic(
                name, host_bytes, True, stats, seconds + draining.seconds if timed else 0.0, used.front, used.worker
            )
        )
