"""A run beside the peers that never was: every load and system that the verdict knows, by simple laws.

One rule: the laws are the ones that a reader expects (a write that waits for the store takes its latency), so that tables and
plots can be judged by eye; no figure of it is published anywhere.
"""

from collections.abc import Iterator

from bench.peers import names
from bench.peers.figures import (
    CPU_US,
    DOLLARS_PER_GIB,
    P50_US,
    P99_US,
    PEAK_MIB,
    PUTS_PER_GIB,
    UP_PER_BYTE,
    Figure,
    Outcome,
    Part,
    Profile,
    Run,
)

LATENCIES_MS = (0, 5, 20, 50)
GIB_OF_BLOCKS = 262_144
PUTS = {
    names.OURS: 600.0,
    names.S3BACKER_PACKAGED: GIB_OF_BLOCKS,
    names.S3BACKER_TUNED: 200_000.0,
    names.NBDKIT: 262_144.0,
}
ALONE = {
    names.OURS: 5200.0,
    names.S3BACKER_PACKAGED: 900.0,
    names.S3BACKER_TUNED: 2400.0,
    names.NBDKIT: 700.0,
    names.NBDKIT_CACHE: 6000.0,
    names.TGT: 4300.0,
}
LOCAL = (names.OURS, names.NBDKIT_CACHE, names.TGT)
MOST_MIBS = {names.OURS: 410.0, names.S3BACKER_TUNED: 160.0, names.NBDKIT: 90.0, names.BARE_CLIENT: 425.0}


def spread(value: float) -> tuple[float, ...]:
    return (value * 0.97, value, value * 1.02)


def made() -> Run:
    parts = [
        Part("block", "Blocks", tuple(_block()), notes=("half compressible content",), seconds=600),
        Part("warm", "Warm", tuple(_warm()), seconds=90),
        Part(
            "sync",
            "What changed in a bucket",
            (
                _sync("cowsync, 2 processes", 410_000, 96),
                _sync("rclone check --fast-list", 38_000, 2900),
                _sync("rclone check", 35_000, 2600),
            ),
        ),
        Part("correctness", "Correctness", outcomes=tuple(_outcomes())),
        Part(
            "profiles",
            "Profiles",
            profiles=(Profile("front, 4K reads at QD32", "py-spy", 1200, "self  function\n 31%  send"),),
        ),
        Part("backup", "Home backups", missing=("restic: it is not installed (Debian's package restic)",)),
    ]
    return Run(
        date="2026-01-02 03:04 UTC",
        machine={"processor": "Imaginary 1, 2 processors", "load before": "0.1 0.1 0.1"},
        systems={names.OURS: "this tree; defaults", names.S3BACKER_TUNED: "1.5.4; --blockSize=64k | --compress"},
        parts=parts,
        notes=("made by a test",),
        seconds=1900,
    )


def _block() -> Iterator[Figure]:
    for latency_ms in LATENCIES_MS:
        for system, alone in ALONE.items():
            waits = 0.0 if system in LOCAL else latency_ms / 1000
            rate = 1 / (1 / alone + waits)
            facts = {CPU_US: 1e6 / alone / 2, UP_PER_BYTE: 1.2 if system == names.OURS else 16.0}
            if system in PUTS:
                facts |= {PUTS_PER_GIB: PUTS[system], DOLLARS_PER_GIB: PUTS[system] * 0.005 / 1000}
            for flush, slower in (("", 1.0), (names.FLUSH_EACH, 0.6), (names.FLUSH_PER_16, 0.9)):
                kept = facts if not flush else {}
                yield Figure(
                    names.random_write(1, flush), system, latency_ms, names.OPS, spread(rate * slower), facts=kept
                )
            if system != names.TGT:
                for depth in (1, 8, 32):
                    most = 6000.0 if system == names.OURS else 700.0
                    cold = min(most, depth / (latency_ms / 1000 + 0.0008))
                    yield Figure(names.cold_read(depth), system, latency_ms, names.OPS, spread(cold))
        for system, most in MOST_MIBS.items():
            for load in (names.SEQUENTIAL_WRITE, names.SEQUENTIAL_READ):
                yield Figure(load, system, latency_ms, names.MIBS, spread(most / (1 + latency_ms / 60)))
    yield Figure("mkfs.ext4", names.OURS, 20, names.SECONDS, (2.0,), less_is_better=True, note="lazy tables off")
    yield Figure("mkfs.ext4", names.S3BACKER_TUNED, 20, names.SECONDS, (9.0,), less_is_better=True)


def _warm() -> Iterator[Figure]:
    for system, most in ((names.OURS, 72_000), (names.TGT, 61_000)):
        for depth in (1, 8, 32):
            rate = most * depth / (depth + 6)
            for load, by_fio in ((names.warm_read(depth), rate), (names.warm_write(depth), rate * 0.6)):
                yield Figure(load, system, 0, names.OPS, spread(by_fio))
                yield Figure(load + names.QEMU_IMG, system, 0, names.OPS, spread(by_fio * 1.2), facts={CPU_US: 14.0})
        flushed = names.warm_write(1, names.FLUSH_EACH) + names.QEMU_IMG
        yield Figure(flushed, system, 0, names.OPS, spread(most / 17), facts={CPU_US: 14.0})
    yield Figure(names.PROBE, names.OURS, 20, names.OPS, spread(17_000), facts={P50_US: 48.0, P99_US: 93.0})
    yield Figure(names.PROBE, names.TGT, 0, names.OPS, spread(14_000), facts={P50_US: 60.0, P99_US: 140.0})


def _sync(system: str, rate: float, peak_mib: float) -> Figure:
    load = f"{names.WHAT_CHANGED}, 500,000 keys"
    return Figure(load, system, 0, names.KEYS, spread(rate), facts={PEAK_MIB: peak_mib})


def _outcomes() -> Iterator[Outcome]:
    question = "killed under writes, its cache deleted: every flushed write is there"
    yield Outcome(question, names.OURS, True, "4,096 of 4,096")
    yield Outcome(question, names.S3BACKER_TUNED, False, "1,201 of 4,096 flushed writes are lost")
    yield Outcome(question, names.NBDKIT, None, "it has no cache")
    yield Outcome(question, names.TGT, True, "all are there")
