"""The block matrix: every system under the same loads, on the same store, at every latency; systems by turns at each.

One rule: a row of writes is counted until the bucket has everything, so what a system puts off is in its requests, its
CPU time and its money. Rates are of answered commands; rows of sequential writes have both, answered and in the bucket.

A volume is filled once, at no latency, with half compressible data; each group of rows then begins on a host that has
nothing of it. Scattered writes visit the whole of it; cold reads visit each part of it for one row alone.
"""

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench import bare_client
from bench.cost import prices
from bench.peers import names
from bench.peers.context import Context, kept
from bench.peers.figures import (
    CPU_S_PER_GIB,
    CPU_US,
    DOLLARS_PER_GIB,
    DOWN_PER_BYTE,
    GETS_PER_GIB,
    P50_US,
    P99_US,
    P999_US,
    PEAK_MIB,
    PUTS_PER_GIB,
    REQUESTS,
    UP_PER_BYTE,
    Figure,
    Part,
)
from bench.peers.load import KIB, MIB, Door, Job, Ran, door
from bench.peers.systems import Known, Place, System, cpu_of, drained_s
from bench.peers.table import SYSTEMS
from bench.peers.table import known as known_as
from bench.processes import BenchFailed
from bench.store import Stats

GIB = 1024 * MIB
BLOCK_BYTES = 4 * KIB
TITLE = "Blocks: random and sequential, flushed and not, cold and warm"
CPU_FRONT_US = "cpu_front_us"
"""Of tgtd before a file that is not its own; not in CPU_US."""
FLUSH_P50_US = "flush_p50_us"
FLUSH_P99_US = "flush_p99_us"
OBJECTS_LEFT = "objects_left"
STORE_CPU = "store_cpu"
CLIENT_CPU = "client_cpu"
"""Processors that the store and the bare client kept busy, of 1: a store near 1 is what was measured."""
FILLED = "filled"
MIXED = "4K random 70/30 mix QD8"
WRITTEN_64K = "64 KiB sequential write"
ACKNOWLEDGED = ", acknowledged"
DISCARDED = "discard of everything"


@dataclass(frozen=True, slots=True)
class Plan:
    """`cold_reads`: of one row at QD8, twice as many at QD32; few enough that most visit a part of their own.
    `sequential_bytes`: of one run. `few_bytes`: the same for systems that would take minutes for it. `budget_s`: no system
    begins at a latency after that, and none goes on to its next group of rows; the report says what was left out."""

    volume_bytes: int = 256 * MIB
    cold_reads: int = 512
    sequential_bytes: int = 256 * MIB
    few_bytes: int = 16 * MIB
    budget_s: float = 1080.0


FULL = Plan()
QUICK = Plan(volume_bytes=128 * MIB, cold_reads=256, sequential_bytes=128 * MIB, few_bytes=8 * MIB, budget_s=300.0)

RANDOM, FLUSHES, SEQUENTIAL, READS, WARM, FRESH, DISCARD, LINKED = range(8)
LINK_MIB_S = 100
WORDS = (
    "random writes",
    "writes with flushes",
    "in order",
    "cold reads",
    "warm",
    "on a fresh volume",
    "discard",
    f"behind a link of {LINK_MIB_S} MiB/s",
)
"""Of the groups, by their numbers."""
BARE_CONNECTIONS = 32
"""As many requests as s3block has in flight by default (`concurrency`)."""


@dataclass(frozen=True, slots=True)
class Scope:
    """What of the matrix a system meets. `far_only`: at the first latency and at `REFERENCE_MS` alone. `slow`: one run of
    each load, and few bytes in order."""

    groups: Sequence[int]
    depths: Sequence[int] = (1, 8, 32)
    far_only: bool = False
    slow: bool = False
    sequential_share: int = 1
    """Of the bytes in order, one part in so many."""


REFERENCE_MS = 20
SHARED: Mapping[str, str] = {names.S3BACKER_FILE: names.S3BACKER_TUNED, names.S3BACKER_SYNC: names.S3BACKER_TUNED}
"""Whose volume a system may take, since only one of them is served at a time: filling one takes as long as a row."""
SCOPES: Mapping[str, Scope] = {
    names.OURS: Scope((READS, WARM, RANDOM, FLUSHES, SEQUENTIAL, LINKED, FRESH, DISCARD)),
    names.S3BACKER_TUNED: Scope((READS, WARM, RANDOM, FLUSHES, SEQUENTIAL, FRESH, DISCARD), sequential_share=4),
    names.TGT: Scope((RANDOM, FLUSHES, SEQUENTIAL, WARM), far_only=True),
    names.S3BACKER_PACKAGED: Scope((READS, RANDOM, SEQUENTIAL), depths=(1,), far_only=True, slow=True),
    names.OURS_FLUSH_S3: Scope((FLUSHES,), slow=True),
    names.S3BACKER_SYNC: Scope((RANDOM, FLUSHES), depths=(1,), slow=True),
    names.S3BACKER_FILE: Scope((READS, RANDOM), depths=(1, 8), far_only=True, slow=True),
    names.NBDKIT: Scope((READS, RANDOM, SEQUENTIAL), far_only=True, slow=True),
    names.NBDKIT_CACHE: Scope((READS, WARM, RANDOM, FLUSHES, SEQUENTIAL), far_only=True, slow=True),
}


JUDGED = (names.OURS, names.S3BACKER_TUNED, names.TGT)
"""What the verdict rests on, with the bare client; measured before all others."""
QUICK_NEAR = (READS, WARM, RANDOM, SEQUENTIAL)
"""What a quick run asks at its first latency too, where it is not the one that targets name."""
QUICK_ALONE: Mapping[str, Scope] = {
    names.NBDKIT: Scope((READS, RANDOM), depths=(1,), far_only=True, slow=True),
    names.NBDKIT_CACHE: Scope((READS, RANDOM, FLUSHES), depths=(1,), far_only=True, slow=True),
}
"""In a quick run, in place of `SCOPES`: their rows in order and at depth take longer than all of ours."""
QUICK_LEFT_OUT = (names.S3BACKER_FILE,)


def scope_of(name: str, *, quick: bool) -> Scope:
    return QUICK_ALONE.get(name, SCOPES[name]) if quick else SCOPES[name]


_QUICK_NOTE = (
    "A quick run: flushes, links and fresh volumes at 20 ms alone, no discards, nbdkit one command at a time, 's3backer tuned, "
    "its file' not at all."
)


def run(context: Context) -> Part:
    """The whole matrix. A system that fails is reported and left out from there on; the others go on."""
    return Matrix(context, QUICK if context.quick else FULL).run()


class Matrix:
    def __init__(self, context: Context, plan: Plan) -> None:
        self._context = context
        self._plan = plan
        self._figures: list[Figure] = []
        self._missing: list[str] = []
        self._notes: list[str] = []

    def run(self) -> Part:
        begin = time.monotonic()
        with kept(partial(self._found, begin)):
            self._measure()
        return self._found(begin)

    def _measure(self) -> None:
        context = self._context
        self._context = context = replace(context, give_up=min(context.give_up, time.monotonic() + self._plan.budget_s))
        with contextlib.ExitStack() as stack:
            served: dict[str, System] = {}
            for known in self._wanted():
                if absent := known.missing():
                    self._missing.append(f"{known.name}: {absent}")
                else:
                    served[known.name] = stack.enter_context(known.make(self._place(known.name, FILLED)))
            filled: set[str] = set()
            for latency_ms, name in visits([*served], context.latencies_ms):
                if name == names.BARE_CLIENT:
                    if not context.systems or name in context.systems:
                        self._tried(name, f"{latency_ms} ms", partial(self._bare, latency_ms))
                    continue
                scope = scope_of(name, quick=context.quick)
                if name not in served or not self._meets(scope, latency_ms):
                    continue
                if context.no_time(f"{name} at {latency_ms} ms", self._missing):
                    continue
                system = served[name]
                volume = system.bucket or name
                if volume not in filled and not self._tried(name, "fill", partial(self._fill, system)):
                    system.kill()
                    # Whoever shares it begins with nothing, and finds nobody in it.
                    context.store.remove(system.bucket or FILLED)
                    del served[name]
                    continue
                filled.add(volume)
                context.store.set_latency(latency_ms)
                context.say(f"{latency_ms} ms: {name}")
                one = Measuring(
                    context, self._plan, system, scope, latency_ms, self._place(name, "fresh"), known_as(name)
                )
                try:
                    if not self._tried(f"{name} at {latency_ms} ms", "matrix", one.run):
                        system.kill()
                finally:
                    self._figures += one.figures
                    self._missing += one.missing
            context.store.set_latency(0)

    def _found(self, begin: float) -> Part:
        return Part(
            "block",
            TITLE,
            figures=self._figures,
            notes=[*self._explained(), *self._notes],
            missing=self._missing,
            seconds=time.monotonic() - begin,
        )

    def _meets(self, scope: Scope, latency_ms: int) -> bool:
        latencies = self._context.latencies_ms
        far = REFERENCE_MS if REFERENCE_MS in latencies else latencies[-1]
        if self._context.quick and (scope.slow or scope.far_only):
            return latency_ms == far
        return not scope.far_only or latency_ms in (latencies[0], far)

    def _explained(self) -> list[str]:
        plan, context = self._plan, self._context
        return [
            f"Volume of {plan.volume_bytes // MIB} MiB, filled with half compressible data; caches of as many bytes; "
            f"loads of {context.seconds:g} s, {context.repeats} runs of each (one of the slow systems).",
            "Front end: fio's NBD engine through qemu-nbd for iSCSI; nbdkit directly; 'its file': psync, libaio, O_DIRECT.",
            "s3backer answers a flush (FUSE fsync) without writing anything; under 'sync' each write is in the bucket first. "
            "Its flush rows promise nothing else, whatever they show.",
            "Rows of writes count requests, bytes, CPU and money until the bucket has everything. CPU is of the system's own "
            "processes; tgtd before a FUSE file stands apart (cpu_front_us). A ranged or full GET costs the same.",
            "Warm rows of nbdkit go one hop less than all that speak iSCSI, for which qemu-nbd's CPU time is in the rate; "
            "without it, ours and tgt's are in the part 'warm'.",
            "Warm reads of s3backer and of tgt's local file are answered by the kernel's page cache, which tgt (rdwr) reads "
            "through: s3backer's own processes then do nothing.",
            "tgt, local file and the slow systems are measured at the first latency and at 20 ms alone.",
            *([_QUICK_NOTE] if context.quick else []),
        ]

    def _wanted(self) -> list[Known]:
        """Those that matter most first, should the time not do for all."""
        asked = self._context.systems
        left_out = QUICK_LEFT_OUT if self._context.quick else ()
        found = [
            known
            for known in SYSTEMS
            if known.name in SCOPES and (known.name in asked if asked else known.name not in left_out)
        ]
        return sorted(found, key=lambda known: list(SCOPES).index(known.name))

    def _place(self, name: str, what: str) -> Place:
        size = self._plan.volume_bytes
        bucket = SHARED.get(name, name) if what == FILLED else name
        folder = self._context.directory / f"{_plain(name)}-{what}"
        return Place(folder, self._context.store, f"{_plain(bucket)}-{what}", size, size)

    def _tried(self, name: str, what: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except (BenchFailed, OSError, subprocess.SubprocessError) as error:
            self._missing.append(f"{name}, {what}: {str(error).splitlines()[0][:300]}")
            self._context.say(f"{name}: {error}")
            return False
        return True

    def _bare(self, latency_ms: int) -> None:
        self._figures += bare(self._context, latency_ms)

    def _fill(self, system: System) -> None:
        context, plan = self._context, self._plan
        context.store.set_latency(0)
        begin = time.monotonic()
        system.start()
        with door(system, context.directory) as found:
            found.run(Job("write", MIB, 8, 0, plan.volume_bytes, total_bytes=plan.volume_bytes))
        system.stop()
        context.say(f"filled {system.name} in {time.monotonic() - begin:.1f} s")


class Measuring:
    """One system at one latency."""

    def __init__(
        self, context: Context, plan: Plan, system: System, scope: Scope, latency_ms: int, fresh: Place, known: Known
    ) -> None:
        self._context = context
        self._plan = plan
        self._system = system
        self._scope = scope
        self._latency_ms = latency_ms
        self._fresh = fresh
        self._known = known
        self._repeats = 1 if scope.slow else context.repeats
        self._local = not system.bucket
        self.figures: list[Figure] = []
        self.missing: list[str] = []

    def run(self) -> None:
        """Group by group, until the part's time is over; `missing` then tells what was left out."""
        groups = {
            READS: self._reads,
            WARM: self._warm,
            RANDOM: self._random,
            FLUSHES: self._flushes,
            SEQUENTIAL: self._sequential,
            LINKED: self._linked,
            FRESH: self._on_fresh,
            DISCARD: self._discard,
        }
        latencies = self._context.latencies_ms
        near = self._latency_ms == latencies[0]
        far = self._latency_ms == (REFERENCE_MS if REFERENCE_MS in latencies else latencies[-1])
        for group in sorted(self._scope.groups, key=list(groups).index):
            # A quick run asks what latency changes little at one latency alone, and leaves discards to the part `files`.
            once = {WARM: near or self._local, LINKED: far, FRESH: far, DISCARD: False}
            if self._context.quick and not (once.get(group, True) and (far or group in QUICK_NEAR)):
                continue
            what = f"{self._system.name} at {self._latency_ms} ms, {WORDS[group]}"
            if not self._context.no_time(what, self.missing):
                groups[group]()
        self._system.stop()

    # --- groups of rows --------------------------------------------------------------------------------------

    def _reads(self) -> None:
        """Each run on a host of its own; each row in a part of the volume of its own."""
        eighth, reads = self._plan.volume_bytes // 8, self._plan.cold_reads
        parts = {1: (0, eighth), 8: (eighth, 2 * eighth), 32: (3 * eighth, 3 * eighth)}
        taken: dict[str, list[Taken]] = {}
        for number in range(self._repeats):
            self._begin_cold()
            with door(self._system, self._context.directory) as found:
                for depth in self._scope.depths:
                    first, size = parts[depth]
                    count = reads * 2 if depth == 32 else reads
                    job = Job(
                        "randread", BLOCK_BYTES, depth, first, size, self._seconds, operations=count, seed=number + 1
                    )
                    taken.setdefault(names.cold_read(depth), []).append(self._take(found, job))
                size = 2 * eighth
                job = Job("read", MIB, 8, 6 * eighth, size, 4 * self._seconds, operations=size // MIB)
                taken.setdefault(names.SEQUENTIAL_READ, []).append(self._take(found, job))
        for load, runs in taken.items():
            self._add(load, names.MIBS if load == names.SEQUENTIAL_READ else names.OPS, runs, reads=True)

    def _warm(self) -> None:
        """In what was just read: all of it is in the cache, if the system has one for reads."""
        first = 3 * self._plan.volume_bytes // 4
        size = self._plan.volume_bytes - first
        self._serve()
        with door(self._system, self._context.directory) as found:
            found.run(Job("read", MIB, 8, first, size, operations=size // MIB))
            for depth in self._scope.depths:
                job = Job("randread", BLOCK_BYTES, depth, first, size, self._seconds)
                self._add(names.warm_read(depth), names.OPS, self._repeated(found, job), reads=True)
            if self._context.latencies_ms[0] == self._latency_ms or self._local:
                for depth in self._scope.depths:
                    job = Job("randwrite", BLOCK_BYTES, depth, first, size, self._seconds)
                    self._add(names.warm_write(depth), names.OPS, self._repeated(found, job))

    def _random(self) -> None:
        size = self._plan.volume_bytes
        for depth in self._depths():
            job = Job("randwrite", BLOCK_BYTES, depth, 0, size, self._seconds)
            self._written(names.random_write(depth), job)
        if 8 in self._depths():
            self._written(MIXED, Job("randrw", BLOCK_BYTES, 8, 0, size, self._seconds, read_percent=70))

    def _flushes(self) -> None:
        for every, words in ((1, names.FLUSH_EACH), (16, names.FLUSH_PER_16)):
            job = Job("randwrite", BLOCK_BYTES, 1, 0, self._plan.volume_bytes, self._seconds, flush_every=every)
            self._written(names.random_write(1, words), job)

    def _sequential(self) -> None:
        rows = [(names.SEQUENTIAL_WRITE, MIB, 8), (WRITTEN_64K, 64 * KIB, 16)]
        for name, block, depth in rows[:1] if self._context.quick else rows:
            self._in_order(name, block, depth)

    def _in_order(self, name: str, block: int, depth: int) -> None:
        """Both rates: of answered writes, and until the bucket has everything."""
        plan, scope = self._plan, self._scope
        size = plan.few_bytes if scope.slow else plan.sequential_bytes // scope.sequential_share
        answered, whole = [], []
        for _ in range(self._repeats):
            self._begin_cold()
            with self._counted() as count, door(self._system, self._context.directory) as found:
                ran = found.run(Job("write", block, depth, 0, size, total_bytes=size))
                peak = self._system.peak_bytes()
                # What fio needs to start is nobody's, nor is what a system needs to end.
                behind_s = 0.0 if self._local else drained_s(self._system, self._context.store)
            answered.append(count(ran, peak))
            whole.append(size / MIB / (ran.seconds + behind_s))
        self._add(name + ACKNOWLEDGED, names.MIBS, answered)
        if not self._local:
            self._add(name, names.MIBS, answered, values=whole)

    def _linked(self) -> None:
        """In order once more, behind a link that is slower than the processors."""
        store = self._context.store
        store.set_bandwidth(LINK_MIB_S)
        try:
            self._in_order(names.SEQUENTIAL_WRITE + names.LIMITED, MIB, 8)
            taken = []
            for _ in range(self._repeats):
                self._begin_cold()
                with door(self._system, self._context.directory) as found:
                    size = self._plan.volume_bytes
                    job = Job("read", MIB, 8, 0, size, 4 * self._seconds, operations=size // MIB)
                    taken.append(self._take(found, job))
            self._add(names.SEQUENTIAL_READ + names.LIMITED, names.MIBS, taken, reads=True)
        finally:
            store.set_bandwidth(0)

    def _on_fresh(self) -> None:
        """A volume nobody has written to; its bucket is empty again afterwards."""
        filled, place = self._system, self._fresh
        filled.stop()
        try:
            with self._known.make(place) as fresh:
                self._system = fresh
                job = Job("randwrite", BLOCK_BYTES, 1, 0, self._plan.volume_bytes, self._seconds)
                self._written(names.random_write(1, names.FRESH), job, cold=False)
        finally:
            self._system = filled
            self._context.store.remove(place.bucket)

    def _discard(self) -> None:
        """On a fresh volume again, so that the filled one stays: write an eighth, discard all, see what is left."""
        filled, place = self._system, self._fresh
        filled.stop()
        size = self._plan.volume_bytes
        try:
            with self._known.make(place) as fresh:
                fresh.start()
                with door(fresh, self._context.directory) as found:
                    found.run(Job("write", MIB, 8, 0, size // 8, total_bytes=size // 8))
                    fresh.drain()
                    there = self._objects(place)
                    begin = time.monotonic()
                    command = [
                        "qemu-io",
                        "-f",
                        "raw",
                        "-t",
                        "none",
                        "-d",
                        "unmap",
                        "-c",
                        f"discard 0 {size}",
                        "-c",
                        "flush",
                    ]
                    command.append(f"nbd+unix:///?socket={found.socket}")
                    done = subprocess.run(command, capture_output=True, text=True, check=False)
                took = time.monotonic() - begin
                fresh.stop()
                if done.returncode or "failed" in done.stdout:
                    raise BenchFailed(f"discard: {(done.stderr + done.stdout).strip()[:200]}")
                left = self._objects(place)
                self.figures.append(
                    Figure(
                        DISCARDED,
                        self._system.name,
                        self._latency_ms,
                        names.SECONDS,
                        (took,),
                        less_is_better=True,
                        facts={OBJECTS_LEFT: float(left)},
                        note=f"{there} objects before",
                    )
                )
        finally:
            self._context.store.remove(place.bucket)

    def _objects(self, place: Place) -> int:
        return len(self._context.store.sizes(place.bucket))

    # --- one row ---------------------------------------------------------------------------------------------

    @property
    def _seconds(self) -> float:
        return self._context.seconds

    def _depths(self) -> list[int]:
        """Of rows whose cost in time is a host of their own: fewer in a quick run."""
        return [depth for depth in self._scope.depths if depth != 8 or not self._context.quick]

    def _serve(self) -> None:
        if not self._system.pids():
            self._system.start()

    def _begin_cold(self) -> None:
        self._system.stop()
        if not self._local:
            self._system.forget()
        drop_page_cache()
        self._system.start()

    def _written(self, load: str, job: Job, *, cold: bool = True) -> None:
        """A row of writes, from a host without state, counted until the bucket has everything."""
        if cold:
            self._begin_cold()
        else:
            self._serve()
        with self._counted() as count, door(self._system, self._context.directory) as found:
            runs = [found.run(_with_seed(job, number)) for number in range(self._repeats)]
            peak = self._system.peak_bytes()
        whole = count(_sum(runs), peak)
        self._add(load, names.OPS, [whole], values=[one.per_second for one in runs], runs=runs)

    def _repeated(self, found: Door, job: Job) -> "list[Taken]":
        return [self._take(found, _with_seed(job, number)) for number in range(self._repeats)]

    def _take(self, found: Door, job: Job) -> "Taken":
        store, system = self._context.store, self._system
        before, cpu, front, begin = store.stats(system.bucket), system.cpu_s(), self._front_s(), time.monotonic()
        ran = found.run(job)
        seconds = time.monotonic() - begin
        after = store.stats(system.bucket)
        return Taken(
            ran, after.since(before), system.cpu_s() - cpu, self._front_s() - front, system.peak_bytes(), seconds
        )

    @contextlib.contextmanager
    def _counted(self) -> "Iterator[Callable[[Ran, int], Taken]]":
        """Counting from here on. What it gives is called last: it stops the system and says what all took."""
        store, system = self._context.store, self._system
        before, cpu, front, begin = store.stats(system.bucket), system.cpu_s(), self._front_s(), time.monotonic()
        front_s = 0.0

        def count(ran: Ran, peak: int) -> Taken:
            system.stop()
            seconds = time.monotonic() - begin
            return Taken(ran, store.stats(system.bucket).since(before), system.cpu_s() - cpu, front_s, peak, seconds)

        yield count
        front_s = self._front_s() - front

    def _front_s(self) -> float:
        return cpu_of(self._system.front_pids())

    def _add(
        self,
        load: str,
        unit: str,
        taken: "Sequence[Taken]",
        *,
        reads: bool = False,
        values: Sequence[float] = (),
        runs: Sequence[Ran] = (),
    ) -> None:
        rates = values or [one.ran.mib_s if unit == names.MIBS else one.ran.per_second for one in taken]
        runs = runs or [one.ran for one in taken]
        self.figures.append(
            Figure(
                load,
                self._system.name,
                self._latency_ms,
                unit,
                tuple(rates),
                facts=facts(taken, runs, stored=not self._local, reads=reads),
            )
        )


@dataclass(frozen=True, slots=True)
class Taken:
    """One load with what it took: requests of the store, CPU seconds of the system and of the front end before it."""

    ran: Ran
    stats: Stats
    cpu_s: float
    front_cpu_s: float
    peak_bytes: int
    seconds: float


def facts(taken: Sequence[Taken], runs: Sequence[Ran], *, stored: bool, reads: bool) -> dict[str, float]:
    """What the report shows beside a rate; of all runs together. `stored`: there is a bucket whose requests count."""
    moved = sum(one.ran.moved_bytes for one in taken)
    operations = sum(one.ran.operations for one in taken)
    found = {
        CPU_US: sum(one.cpu_s for one in taken) * 1e6 / operations,
        CPU_S_PER_GIB: sum(one.cpu_s for one in taken) * GIB / moved,
        PEAK_MIB: max(one.peak_bytes for one in taken) / MIB,
    }
    if front := sum(one.front_cpu_s for one in taken):
        found[CPU_FRONT_US] = front * 1e6 / operations
    if stored:
        found[STORE_CPU] = sum(one.stats.cpu_s for one in taken) / sum(one.seconds for one in taken)
        puts = sum(one.stats.puts for one in taken)
        gets = sum(one.stats.gets + one.stats.heads for one in taken)
        lists = sum(one.stats.lists for one in taken)
        price = prices()
        dollars = ((puts + lists) * price.per_1000_put + gets * price.per_1000_get) / 1000
        found |= {
            REQUESTS: float(sum(one.stats.requests for one in taken)),
            PUTS_PER_GIB: puts * GIB / moved,
            GETS_PER_GIB: gets * GIB / moved,
            UP_PER_BYTE: sum(one.stats.bytes_in for one in taken) / moved,
            DOWN_PER_BYTE: sum(one.stats.bytes_out for one in taken) / moved,
            DOLLARS_PER_GIB: dollars * GIB / moved,
        }
        if reads:
            del found[PUTS_PER_GIB], found[UP_PER_BYTE]
    for place, name in enumerate((P50_US, P99_US, P999_US)):
        values = sorted(one.percentiles_us[place] for one in runs if one.percentiles_us)
        if values:
            found[name] = values[len(values) // 2]
    for place, name in enumerate((FLUSH_P50_US, FLUSH_P99_US)):
        values = sorted(one.flush_us[place] for one in runs if one.flush_us)
        if values:
            found[name] = values[len(values) // 2]
    return found


def in_order(latencies_ms: Sequence[int]) -> list[int]:
    """The one that targets name, then the first, then the others: should the time not do for all."""
    return sorted(latencies_ms, key=lambda one: (one != REFERENCE_MS, one != latencies_ms[0], one))


def visits(served: Sequence[str], latencies_ms: Sequence[int]) -> list[tuple[int, str]]:
    """Who is met at which latency, in the order of what the verdict needs: of `JUDGED` all, then the others."""
    judged = [name for name in served if name in JUDGED]
    others = [name for name in served if name not in JUDGED]
    order = in_order(latencies_ms)
    found = [(latency_ms, name) for latency_ms in order for name in (names.BARE_CLIENT, *judged)]
    return found + [(latency_ms, name) for latency_ms in order for name in others]


def bare(context: Context, latency_ms: int) -> list[Figure]:
    """What the store gives a client that only asks: objects of 1 MiB, nothing compressed, so more bytes on the wire than
    s3block needs for as much data."""
    store, found = context.store, []
    store.set_latency(latency_ms)
    for link, mib_s in (("", 0), (names.LIMITED, LINK_MIB_S)):
        store.set_bandwidth(mib_s)
        for method, load in (("PUT", names.SEQUENTIAL_WRITE), ("GET", names.SEQUENTIAL_READ)):
            runs = [
                bare_client.measure(store.port, method, MIB, BARE_CONNECTIONS, context.seconds)
                for _ in range(context.repeats)
            ]
            busy = {STORE_CPU: runs[0].store_cpu, CLIENT_CPU: runs[0].client_cpu}
            rates = tuple(one.mib_s for one in runs)
            found.append(Figure(load + link, names.BARE_CLIENT, latency_ms, names.MIBS, rates, facts=busy))
    store.set_bandwidth(0)
    return found


def _plain(name: str) -> str:
    """For folders and buckets."""
    return "-".join(re.findall("[a-z0-9]+", name.lower()))


def drop_page_cache() -> None:
    """Where this may be done: in a container it often may not, and local state is removed in any case."""
    subprocess.run(["sync"], check=False)
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


def _with_seed(job: Job, number: int) -> Job:
    return replace(job, seed=number + 1)


def _sum(runs: Sequence[Ran]) -> Ran:
    return Ran(
        sum(one.operations for one in runs),
        sum(one.moved_bytes for one in runs),
        sum(one.seconds for one in runs),
        runs[0].percentiles_us,
        runs[0].flush_us,
    )
