"""The initiators: qemu-img bench for speed, qemu-io for scattered writes of real content, qemu-img convert to fill.

One rule: what is timed is another project's program, so both targets meet the same load. `qemu-img bench` has no random
mode: its scattered runs step by 1 MiB + 4 KiB and wrap around, which visits every block of the volume once before any
comes again, each time in another extent than before.
"""

import os
import random
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchFailed

KIB = 1024
MIB = 1024 * KIB
BLOCK_BYTES = 4 * KIB
SCATTER_STEP_BYTES = MIB + BLOCK_BYTES
PATTERN = 0x5A
_SECONDS = re.compile(r"Run completed in ([0-9.]+) seconds")


@dataclass(frozen=True, slots=True)
class Load:
    """One run of `qemu-img bench`. `flush_every`: a flush after so many writes, drained before (0: none)."""

    write: bool
    size_bytes: int
    count: int
    depth: int
    step_bytes: int = 0
    flush_every: int = 0
    offset_bytes: int = 0

    def command(self, url: str) -> list[str]:
        command = ["qemu-img", "bench", "-f", "raw", "-t", "none", "-c", str(self.count), "-d", str(self.depth)]
        command += ["-s", str(self.size_bytes), "-S", str(self.step_bytes or self.size_bytes)]
        command += ["-o", str(self.offset_bytes)]
        if self.write:
            command += ["-w", f"--pattern={PATTERN}"]
        if self.flush_every:
            command.append(f"--flush-interval={self.flush_every}")
        return [*command, url]


@dataclass(frozen=True, slots=True)
class Ran:
    """How long a run took by its own clock, and the initiator's CPU time."""

    seconds: float
    cpu_s: float


def run(load: Load, url: str) -> Ran:
    before = os.times()
    done = subprocess.run(load.command(url), capture_output=True, text=True, check=False)
    after = os.times()
    found = _SECONDS.search(done.stdout)
    if done.returncode or found is None:
        raise BenchFailed(f"{' '.join(load.command(url))}: {done.stderr or done.stdout}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    # Printed to the millisecond; a run of none at all would be a division by zero.
    return Ran(max(float(found[1]), 0.001), cpu_s)


def half_compressible(count: int, seed: int) -> Iterable[bytes]:
    """`count` different blocks, the second half of each zeros: about what zstd makes of mixed data."""
    source = random.Random(seed)
    for _ in range(count):
        yield source.randbytes(BLOCK_BYTES // 2) + bytes(BLOCK_BYTES // 2)


def fill(url: str, size_bytes: int, directory: Path) -> float:
    """Write [0, size) in order with half compressible content; seconds by our clock, start-up included."""
    image = directory / "content.raw"
    if not image.exists() or image.stat().st_size != size_bytes:
        blocks = list(half_compressible(4 * MIB // BLOCK_BYTES, 1))
        source = random.Random(2)
        with image.open("wb") as file:
            for _ in range(size_bytes // (4 * MIB)):
                source.shuffle(blocks)
                file.write(b"".join(blocks))
    begin = os.times().elapsed
    command = ["qemu-img", "convert", "-n", "-W", "-m", "8", "-f", "raw", "-O", "raw", "-S", "0", "-t", "none"]
    _check(subprocess.run([*command, str(image), url], capture_output=True, text=True, check=False))
    return os.times().elapsed - begin


def scatter(url: str, volume_bytes: int, count: int, directory: Path) -> float:
    """Write `count` blocks of half compressible content at random places (seeded), one after another, then flush;
    seconds by our clock."""
    patterns = []
    for number, block in enumerate(half_compressible(256, 3)):
        file = directory / f"block{number}"
        if not file.exists():
            file.write_bytes(block)
        patterns.append(file)
    source = random.Random(4)
    places = source.sample(range(volume_bytes // BLOCK_BYTES), count)
    orders = [f"write -q -s {patterns[i % 256]} {place * BLOCK_BYTES} {BLOCK_BYTES}" for i, place in enumerate(places)]
    text = "\n".join([*orders, "flush", "quit", ""])
    command = ["qemu-io", "-f", "raw", "-t", "none", url]
    begin = os.times().elapsed
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    _check(done)
    if "failed" in done.stdout:
        raise BenchFailed(f"{' '.join(command)}: {done.stdout[-1000:]}")
    return os.times().elapsed - begin


def _check(done: "subprocess.CompletedProcess[str]") -> None:
    if done.returncode:
        raise BenchFailed(f"{' '.join(done.args)} ended with {done.returncode}: {done.stderr or done.stdout}")
