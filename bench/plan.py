"""What is measured, and how much of it: sizes and loads of a full and of a quick run.

One rule: every load is one row of the report, meets both targets unchanged, and runs `repeats` times; the median counts.
"""

from dataclasses import dataclass

from bench.initiator import BLOCK_BYTES, KIB, MIB, SCATTER_STEP_BYTES, Load

FLUSH = "4K write and flush QD1"
COLD_STEP_BYTES = MIB + 64 * KIB
LATENCIES_MS = (0, 20)


@dataclass(frozen=True, slots=True)
class Row:
    """A load with its name. `unit` is op/s or MiB/s; `cold` rows start with nothing on this host and have no like at
    tgt. `stride_bytes`: how far behind this one the next repetition begins."""

    name: str
    unit: str
    load: Load
    cold: bool = False
    stride_bytes: int = 0
    target: float = 0.0
    """What it should reach on a machine of this size; 0: no target."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run. `journal_bytes` is so large that none of the timed loads finds it half full, from where answers are held
    back, nor short of room, from where each write pays for giving an older one's place back: even with nothing carried to
    the bucket meanwhile. The latency probes at QD32 write more than that."""

    volume_bytes: int
    journal_bytes: int
    repeats: int
    operations: int
    flushes: int
    cold_reads: int
    scattered: int
    probe_s: float
    """For each run of the latency probe."""

    @property
    def slice_bytes(self) -> int:
        """What one repetition of a sequential load covers."""
        return min(64 * MIB, self.volume_bytes // 4)

    def cold_scattered(self) -> Row:
        # Visits every frame of 64 KiB once before any comes again; a repetition goes on where the last one ended.
        load = Load(False, BLOCK_BYTES, self.cold_reads, 32, COLD_STEP_BYTES)
        stride = self.cold_reads * COLD_STEP_BYTES
        return Row("4K random read, cold", "op/s", load, cold=True, stride_bytes=stride)

    def cold_sequential(self) -> Row:
        load = Load(False, MIB, self.slice_bytes // MIB, 8)
        return Row("1M sequential read, cold", "MiB/s", load, cold=True, stride_bytes=self.slice_bytes)

    def warm_up(self) -> Load:
        """Reads the whole volume once."""
        return Load(False, MIB, self.volume_bytes // MIB, 8)

    def warm(self) -> tuple[Row, ...]:
        """Reads first, then flushes while no backlog waits to be carried to the bucket, then the other writes."""
        step, many = SCATTER_STEP_BYTES, self.operations
        slices = self.slice_bytes // MIB
        return (
            Row("4K random read QD32", "op/s", Load(False, BLOCK_BYTES, many, 32, step), target=70_000),
            Row("4K random read QD1", "op/s", Load(False, BLOCK_BYTES, many // 4, 1, step), target=28_000),
            Row(
                "256K sequential read QD8",
                "MiB/s",
                Load(False, 256 * KIB, slices * 4, 8),
                stride_bytes=self.slice_bytes,
                target=1_717,
            ),
            Row("1M sequential read QD8", "MiB/s", Load(False, MIB, slices, 8), stride_bytes=self.slice_bytes),
            Row(
                FLUSH,
                "op/s",
                Load(True, BLOCK_BYTES, self.flushes, 1, step, flush_every=1),
                target=3_000,
            ),
            Row(
                "4K write, flush per 16, QD16",
                "op/s",
                Load(True, BLOCK_BYTES, self.flushes * 4, 16, step, flush_every=16),
            ),
            Row("4K random write QD32", "op/s", Load(True, BLOCK_BYTES, many // 2, 32, step), target=50_000),
            Row("4K random write QD1", "op/s", Load(True, BLOCK_BYTES, many // 8, 1, step), target=20_000),
            Row(
                "256K sequential write QD8",
                "MiB/s",
                Load(True, 256 * KIB, slices * 4, 8),
                stride_bytes=self.slice_bytes,
                target=1_431,
            ),
            Row("1M sequential write QD8", "MiB/s", Load(True, MIB, slices, 8), stride_bytes=self.slice_bytes),
        )


FULL = Plan(
    512 * MIB, 2048 * MIB, repeats=3, operations=48_000, flushes=2_000, cold_reads=600, scattered=16_384, probe_s=5.0
)
QUICK = Plan(
    128 * MIB, 1024 * MIB, repeats=3, operations=8_000, flushes=500, cold_reads=150, scattered=2_048, probe_s=1.5
)
