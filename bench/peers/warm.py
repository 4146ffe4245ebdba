"""Warm rows: ours beside tgt, on a local file and on one in memory, under `qemu-img bench`; and single commands timed.

One rule: all three meet one row right after another, so that what the machine does meanwhile is the same for all. The store is
at 0 ms: nothing here waits for it, but our worker carries what is written to it, on the same processors.

Only s3block and tgt on the local file keep what they answer; what tgt has in memory is gone with it.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from bench import disk, initiator, tgt
from bench.initiator import BLOCK_BYTES, KIB, MIB, SCATTER_STEP_BYTES, Load
from bench.measure import repeat
from bench.peers import names, ours
from bench.peers.context import Context, kept
from bench.peers.figures import CPU_US, P50_US, P99_US, P999_US, Figure, Part
from bench.peers.systems import Place, System, cpu_of
from bench.peers.table import known
from bench.plan import Plan, Row
from bench.probe import PROBES, Latencies, measure
from bench.processes import cpu_seconds

TITLE = "Warm: data that is on this host, beside tgt"
TGT_MEMORY = "tgt, file in memory"
CPU_OTHERS_US = "cpu_behind_us"
"""Of it, the processes that speak to the bucket meanwhile."""
CPU_INITIATOR_US = "cpu_initiator_us"
DISK_FLUSHES = "disk_flushes_per_s"
JOURNAL_BYTES = 2048 * MIB


@dataclass(frozen=True, slots=True)
class Sizes:
    volume_bytes: int
    operations: int
    flushes: int


FULL = Sizes(512 * MIB, 48_000, 2_000)
QUICK = Sizes(256 * MIB, 24_000, 1_000)


def run(context: Context) -> Part:
    sizes = QUICK if context.quick else FULL
    begin = time.monotonic()
    figures: list[Figure] = []
    missing: list[str] = []
    notes = _notes(sizes)
    plan = Plan(
        sizes.volume_bytes, JOURNAL_BYTES, context.repeats, sizes.operations, sizes.flushes, 0, 0, context.seconds
    )

    def found() -> Part:
        return Part("warm", TITLE, figures, notes=notes, missing=missing, seconds=time.monotonic() - begin)

    with kept(found), contextlib.ExitStack() as stack:
        targets: dict[str, Target] = {}
        # tgt's file in memory says what the disk costs it; no verdict rests on it.
        for name in (names.OURS, names.TGT) if context.quick else (names.OURS, names.TGT, TGT_MEMORY):
            if context.systems and name not in context.systems:
                continue
            target, absent = _target(name, context, sizes, stack)
            if target is None:
                missing.append(f"{name}: {absent}")
            else:
                targets[name] = target
        for name, target in targets.items():
            context.say(f"warm: fill {name}")
            initiator.fill(target.url, sizes.volume_bytes, context.directory)
            initiator.run(plan.warm_up(), target.url)
        for row in rows(sizes):
            if context.no_time(row.name, missing):
                continue
            context.say(f"warm: {row.name}")
            around = {DISK_FLUSHES: disk.flushes_per_s(context.directory, 0.3)} if row.load.flush_every else {}
            for name, target in targets.items():
                figures.append(_row(row, name, target, plan, around, context.store_pid))
        for probe in PROBES:
            if context.no_time(probed(probe.name), missing):
                continue
            context.say(f"warm: latency of {probe.name}")
            figures += _probed(probe.name, targets, sizes, context)
    return found()


def _notes(sizes: Sizes) -> list[str]:
    return [
        f"Volume of {sizes.volume_bytes // MIB} MiB, all of it on this host; a journal of {JOURNAL_BYTES // MIB} MiB, "
        "so that no row waits for the bucket; scattered rows of qemu-img bench step by 1 MiB + 4 KiB.",
        "A flush of tgt's file in memory costs nothing; of its local file, it is an fsync on the disk of our journal. "
        "What that disk does alone stands beside (disk_flushes_per_s).",
        f"{names.PROBE}: by an initiator of raw sockets, right after the rows of writes.",
    ]


@dataclass(frozen=True, slots=True)
class Target:
    url: str
    system: System | None
    tgt_pid: int = 0

    def cpu(self) -> tuple[float, float]:
        """Of the process that serves, and of those behind it."""
        if self.system is None:
            return cpu_seconds(self.tgt_pid), 0.0
        front, *others = self.system.pids()
        return cpu_of([front]), cpu_of(others)


def _target(name: str, context: Context, sizes: Sizes, stack: contextlib.ExitStack) -> tuple[Target | None, str]:
    size = sizes.volume_bytes
    if name == TGT_MEMORY:
        if absent := tgt.missing():
            return None, absent
        memory = stack.enter_context(tgt.Tgt(context.directory, size))
        return Target(memory.url, None, memory.pid), ""
    one = known(name)
    if absent := one.missing():
        return None, absent
    place = Place(context.directory / name.replace(" ", "-").replace(",", ""), context.store, "warm", size, 2 * size)
    system = ours.S3Block(place, journal_bytes=JOURNAL_BYTES) if name == names.OURS else one.make(place)
    stack.enter_context(system)
    system.start()
    return Target(system.url, system), ""


def rows(sizes: Sizes) -> list[Row]:
    """Reads first, then flushes while no backlog waits, then the other writes."""
    many, step = sizes.operations, SCATTER_STEP_BYTES
    piece = min(64 * MIB, sizes.volume_bytes // 4)
    counts = {1: many // 4, 8: many, 32: many}

    def ordered(write: bool, size: int) -> Row:
        name = f"warm {size // KIB if size < MIB else size // MIB}{'K' if size < MIB else 'M'} "
        name += f"sequential {'write' if write else 'read'} QD8{names.QEMU_IMG}"
        return Row(name, names.MIBS, Load(write, size, piece // size, 8), stride_bytes=piece)

    def scattered(name: str, write: bool, count: int, depth: int, flush_every: int = 0) -> Row:
        load = Load(write, BLOCK_BYTES, count, depth, step, flush_every=flush_every)
        return Row(name + names.QEMU_IMG, names.OPS, load)

    return [
        *(scattered(names.warm_read(depth), False, counts[depth], depth) for depth in (1, 8, 32)),
        ordered(False, 256 * KIB),
        ordered(False, MIB),
        scattered(names.warm_write(1, names.FLUSH_EACH), True, sizes.flushes, 1, 1),
        scattered(names.warm_write(16, names.FLUSH_PER_16), True, sizes.flushes * 4, 16, 16),
        *(scattered(names.warm_write(depth), True, counts[depth] // 2, depth) for depth in (1, 8, 32)),
        ordered(True, 256 * KIB),
        ordered(True, MIB),
    ]


def _row(row: Row, name: str, target: Target, plan: Plan, around: Mapping[str, float], store_pid: int) -> Figure:
    result = repeat(row, target.url, plan, lambda: (*target.cpu(), cpu_seconds(store_pid)))
    facts = {CPU_US: result.target_us + result.worker_us, CPU_INITIATOR_US: result.initiator_us, **around}
    if result.worker_us:
        facts[CPU_OTHERS_US] = result.worker_us
    return Figure(row.name, name, 0, row.unit, tuple(result.rates), facts=facts)


def _probed(name: str, targets: Mapping[str, Target], sizes: Sizes, context: Context) -> list[Figure]:
    probe = next(one for one in PROBES if one.name == name)
    found: dict[str, list[Latencies]] = {}
    for _ in range(context.repeats):
        for system, target in targets.items():
            found.setdefault(system, []).append(measure(target.url, probe, sizes.volume_bytes, context.seconds))
    figures = []
    for system, runs in found.items():
        middle = {
            P50_US: sorted(one.p50 for one in runs),
            P99_US: sorted(one.p99 for one in runs),
            P999_US: sorted(one.p999 for one in runs),
        }
        facts = {fact: values[len(values) // 2] for fact, values in middle.items()}
        figures.append(Figure(probed(name), system, 0, names.OPS, tuple(one.rate for one in runs), facts=facts))
    return figures


def probed(name: str) -> str:
    """The load of a probe by the words of the report."""
    known = {"4K write QD1": names.PROBE, "4K read QD1, one write in ten": names.PROBE_READ}
    return known.get(name, f"warm {name}, single commands")
