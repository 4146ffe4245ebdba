"""Loads: one fio job for every system, through its NBD engine; `qemu-nbd` stands before what speaks iSCSI.

One rule: the same words for all. What differs is only where the disk is: an NBD socket, or a file (then psync, and libaio from
depth 2 on, with O_DIRECT, so that no page cache answers). Contents are half compressible and new for each write.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers.systems import System
from bench.processes import PATIENCE_S, BenchFailed, end, start, tail

KIB = 1024
MIB = 1024 * KIB
COMPRESSIBLE_PERCENT = 50
GIVE_UP_S = 180.0
"""Beyond the time that a load is meant to last."""


@dataclass(frozen=True, slots=True)
class Job:
    """One run of fio. `rw`: fio's word for the pattern. `seconds`: how long it goes on, over [first, first + size) again
    and again; 0: until `total_bytes` are done. `operations`: it ends after so many, if that is sooner."""

    rw: str
    block_bytes: int
    depth: int
    first_bytes: int
    size_bytes: int
    seconds: float = 0.0
    total_bytes: int = 0
    operations: int = 0
    flush_every: int = 0
    read_percent: int = 0
    seed: int = 1

    def words(self) -> list[str]:
        words = [
            "--name=load",
            f"--rw={self.rw}",
            f"--bs={self.block_bytes}",
            f"--iodepth={self.depth}",
            f"--offset={self.first_bytes}",
            f"--size={self.size_bytes}",
            f"--buffer_compress_percentage={COMPRESSIBLE_PERCENT}",
            "--refill_buffers",
            f"--randseed={self.seed}",
            # Of the whole way: the NBD engine does part of the work while it submits.
            *("--lat_percentiles=1", "--clat_percentiles=0", "--percentile_list=50:99:99.9"),
            "--output-format=json",
        ]
        if self.seconds:
            words += [f"--runtime={self.seconds * 1000:.0f}ms"]
            # With a number of operations, the time only says when to give up.
            words += [] if self.operations else ["--time_based"]
        if self.total_bytes:
            words.append(f"--io_size={self.total_bytes}")
        if self.operations:
            words.append(f"--number_ios={self.operations}")
        if self.flush_every:
            words.append(f"--fsync={self.flush_every}")
        if self.read_percent:
            words.append(f"--rwmixread={self.read_percent}")
        return words


@dataclass(frozen=True, slots=True)
class Ran:
    """What fio counted. Percentiles in microseconds, of reads in a mix; none where nothing was done. `flush_us`: the
    medians and so on of flushes alone."""

    operations: int
    moved_bytes: int
    seconds: float
    percentiles_us: tuple[float, float, float] | None
    flush_us: tuple[float, float, float] | None

    @property
    def per_second(self) -> float:
        return self.operations / self.seconds if self.seconds else 0.0

    @property
    def mib_s(self) -> float:
        return self.moved_bytes / MIB / self.seconds if self.seconds else 0.0


def parse(output: str) -> Ran:
    """fio's JSON; lines of text before it are let pass. BenchFailed for what is no report, or one of a load that failed."""
    begin = output.find("{")
    try:
        job = json.loads(output[begin:])["jobs"][0] if begin >= 0 else None
    except (ValueError, KeyError, IndexError) as error:
        raise BenchFailed(f"fio's report cannot be read: {error!r}: {output[-500:]}") from error
    if job is None or job["error"]:
        raise BenchFailed(f"fio failed: {output[:500]}")
    ways = [job[way] for way in ("read", "write") if job[way]["total_ios"]]
    if not ways:
        raise BenchFailed("fio did nothing in its time")
    return Ran(
        sum(way["total_ios"] for way in ways),
        sum(way["io_bytes"] for way in ways),
        max(way["runtime"] for way in ways) / 1000,
        _percentiles(ways[0]["lat_ns"]),
        _percentiles(job["sync"]["lat_ns"]) if job["sync"]["total_ios"] else None,
    )


def _percentiles(latencies: Mapping[str, Any]) -> tuple[float, float, float] | None:
    found = latencies.get("percentile")
    if not found:
        return None
    return found["50.000000"] / 1000, found["99.000000"] / 1000, found["99.900000"] / 1000


@dataclass(frozen=True, slots=True)
class Door:
    """Where fio finds a disk: an NBD socket, or a file."""

    socket: str = ""
    file: Path | None = None

    def words(self, depth: int) -> Sequence[str]:
        if self.file is not None:
            # Its pieces of the file would be created anew: it is a disk, and as long as it is.
            engine = "psync" if depth == 1 else "libaio"
            return [f"--ioengine={engine}", f"--filename={self.file}", "--direct=1", "--allow_file_create=0"]
        return ["--ioengine=nbd", f"--uri=nbd+unix:///?socket={self.socket}"]

    def run(self, job: Job) -> Ran:
        command = ["fio", *self.words(job.depth), *job.words()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=job.seconds + GIVE_UP_S)
        except subprocess.TimeoutExpired as error:
            raise BenchFailed(f"{' '.join(command)} did not end within {error.timeout:.0f} s") from error
        if done.returncode:
            # Before its report, and not in it, it says what happened.
            said = " ".join((done.stderr + done.stdout.partition("{")[0]).split())
            raise BenchFailed(f"fio {job.rw} QD{job.depth} ended with {done.returncode}: {said[-400:]}")
        return parse(done.stdout)


def door_command(url: str, socket: str) -> list[str]:
    return ["qemu-nbd", "-t", "-f", "raw", "--cache=none", "--discard=unmap", "--shared=8", "-k", socket, url]


@contextlib.contextmanager
def door(system: System, directory: Path) -> Iterator[Door]:
    """To a system that serves; qemu-nbd, where it must stand before, is gone afterwards."""
    if not system.url:
        if system.path is None:
            raise BenchFailed(f"{system.name} serves nothing that a load could meet")
        yield Door(file=system.path)
        return
    if system.url.startswith("nbd+unix:///?socket="):
        yield Door(system.url.partition("socket=")[2])
        return
    with before(system.url, directory) as found:
        yield found


@contextlib.contextmanager
def before(url: str, directory: Path) -> Iterator[Door]:
    """qemu-nbd before an `iscsi://` disk."""
    socket, log = directory / "door", directory / "qemu-nbd.log"
    socket.unlink(missing_ok=True)
    log.unlink(missing_ok=True)
    process = start(door_command(url, str(socket)), log)
    try:
        give_up = time.monotonic() + PATIENCE_S
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > give_up:
                raise BenchFailed(f"qemu-nbd does not listen before {url}:\n{tail(log)}")
            time.sleep(0.01)
        yield Door(str(socket))
    finally:
        end(process)
        socket.unlink(missing_ok=True)
