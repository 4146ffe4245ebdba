"""Where the time of each hot path goes: py-spy and perf on the product's own processes, under loads that last as long.

One rule: a path is profiled as it is measured: the program as an operator runs it, on the run's store, its load from another
program. What a tool takes from the load is not in the rates, which other parts measure without one.
"""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from bench import initiator, volume
from bench.home import FILES_A_DIRECTORY, SETTLE_S, Site
from bench.lister import READY, Client
from bench.mirror import NAME, configure
from bench.peers import sampling
from bench.peers.context import Context, kept
from bench.peers.figures import Part, Profile
from bench.processes import BenchFailed, end, start, wait_for_line
from bench.pve_node import Node
from bench.sync import COMMAND, PER_THOUSAND

MIB: Final = 1024 * 1024
PART: Final = "profiles"
TITLE: Final = "Where the time goes"
COLD_CACHE_BYTES: Final = 16 * MIB
COLD_STEP_BYTES: Final = MIB + 64 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` of each tool on each path that is under load. `keys`, `records`, `files`, `upload_bytes`: sizes of what is
    watched from its start to its end."""

    seconds: float
    volume_bytes: int
    keys: int
    records: int
    files: int
    upload_bytes: int
    fronts: int = 3
    """How many of the front's loads."""


FULL: Final = Plan(5.0, 512 * MIB, 1_000_000, 500_000, 30_000, 1024 * MIB)
QUICK: Final = Plan(1.0, 64 * MIB, 100_000, 100_000, 2_000, 128 * MIB, fronts=2)


def run(context: Context) -> Part:
    """The part of the run. A path that fails is told in `missing`; the others go on."""
    begin = time.monotonic()
    tools = sampling.missing()
    if len(tools) == 2:
        return Part(PART, TITLE, missing=tools)
    plan = QUICK if context.quick else FULL
    found: list[Profile] = []
    missing = list(tools)
    directory = context.directory / PART
    directory.mkdir(parents=True)
    context.store.set_latency(0)

    def result() -> Part:
        return Part(PART, TITLE, profiles=found, notes=NOTES, missing=missing, seconds=time.monotonic() - begin)

    with kept(result):
        try:
            _followed(context, plan, directory, found, missing)
        finally:
            context.store.set_latency(0)
            shutil.rmtree(directory)
    return result()


def _followed(context: Context, plan: Plan, directory: Path, found: list[Profile], missing: list[str]) -> None:
    for name, path in PATHS.items():
        if context.no_time(name, missing):
            continue
        context.say(f"profiles: {name}")
        try:
            for profile in path(context, plan, directory):
                found.append(profile)
        except (BenchFailed, OSError, subprocess.SubprocessError) as error:
            missing.append(f"{name}: {str(error)[:500]}")


NOTES: Final = (
    f"perf samples {sampling.PERF_HZ} times a second by the CPU clock, py-spy {sampling.PY_SPY_HZ} times, in turn; "
    "only what is on a processor is seen, and shares are of that",
    "py-spy tells which of our functions; it stops a process to look, and so finds it more often at a system call than perf"
    " does, whose shares are the truer ones",
)


# --- under load ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def again_and_again(load: Callable[[], object]) -> Iterator[None]:
    """`load` over and over in a thread until the block is left; what it raised is raised there."""
    over = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not over.is_set():
                load()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the thread
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]


def block(context: Context, plan: Plan, directory: Path) -> Iterator[Profile]:
    """The front under commands of 4 KiB that find everything here, and the worker under what has to go out or come in."""
    size = plan.volume_bytes
    config = volume.create(directory, "profiled", context.store.port, size, cache_bytes=size * 2)

    def under(path: str, pid: int, load: Callable[[], object]) -> Iterator[Profile]:
        with again_and_again(load):
            time.sleep(0.3)
            yield from sampling.watch(path, pid, plan.seconds, directory)

    def scattered(write: bool, count: int, depth: int, flush_every: int = 0) -> initiator.Load:
        return initiator.Load(
            write, initiator.BLOCK_BYTES, count, depth, initiator.SCATTER_STEP_BYTES, flush_every=flush_every
        )

    with volume.Served(config, "profiled", state="first") as served:
        initiator.fill(served.url, size, directory)
        yield from under(
            "worker, sequential fill of 1 MiB writes",
            served.worker_pid,
            partial(initiator.fill, served.url, size, directory),
        )
    with volume.Served(config, "profiled", state="warm") as served:
        read_all = initiator.Load(write=False, size_bytes=MIB, count=size // MIB, depth=8)
        initiator.run(read_all, served.url)
        for path, load in (
            ("front, warm 4K reads, QD32", scattered(False, 15_000, 32)),
            ("front, 4K writes, QD1, a flush after each", scattered(True, 1_000, 1, 1)),
            ("front, 4K writes, QD32", scattered(True, 10_000, 32)),
        )[: plan.fronts]:
            yield from under(path, served.pid, partial(initiator.run, load, served.url))
    # A cache far smaller than the volume, which each pass goes through: every read is of something that is not here.
    config = volume.configure(directory, "profiled", context.store.port, cache_bytes=COLD_CACHE_BYTES)
    with volume.Served(config, "profiled", state="cold") as served:
        reads = initiator.Load(False, initiator.BLOCK_BYTES, 5_000, 32, COLD_STEP_BYTES)
        yield from under("worker, cold 4K reads, QD32", served.worker_pid, partial(initiator.run, reads, served.url))


# --- from start to end ---------------------------------------------------------------------------------------


def compiled(environment: Mapping[str, str]) -> dict[str, str]:
    """As where it is installed: modules are compiled once, ours and those of the packages beside us."""
    return {**environment, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": ""}


def plan_of_mirror(context: Context, plan: Plan, directory: Path) -> Iterator[Profile]:
    """`cowsync plan` of one process, with nearly all keys as they were."""
    environment = compiled(os.environ)
    log = directory / "lister.log"
    lister = start([sys.executable, "-m", "bench.lister", "1"], log)
    folder = directory / "mirror"
    folder.mkdir()
    try:
        client = Client(int(wait_for_line(log, READY, lister).split()[-1]))
        config = configure(folder, client.port, plan.keys, 1)
        made = [sys.executable, "-m", "bench.mirror", str(folder)]
        _done(made, environment)
        client.plant(PER_THOUSAND)
        words = [*COMMAND, "plan", NAME, "--json", "--config", str(config)]
        yield from sampling.follow(f"cowsync plan, {plan.keys:,} keys", words, environment, directory)
    finally:
        end(lister)


def verify(context: Context, plan: Plan, directory: Path) -> Iterator[Profile]:
    """All bundles and tiles of a log, as `s3integrity verify --full` goes through them in one process."""
    folder = directory / "log"
    command = [sys.executable, "-m", "bench.ledger_verify"]
    _done([*command, "--make", str(folder), "--records", str(plan.records)], compiled(os.environ))
    words = [*command, "--walk", str(folder)]
    yield from sampling.follow(
        f"integrity verify --full, {plan.records:,} records", words, compiled(os.environ), directory
    )


def agent(context: Context, plan: Plan, directory: Path) -> Iterator[Profile]:
    """`envctl-agent backup` of a home in which nothing changed."""
    with Site(directory / "home") as site:
        for number in range(plan.files):
            folder = site.home / "user" / f"d{number // FILES_A_DIRECTORY:05}"
            if number % FILES_A_DIRECTORY == 0:
                folder.mkdir(parents=True)
            (folder / f"file{number % FILES_A_DIRECTORY:04}.txt").write_text(f"{number}\n")
        site.save("first", plan.files)
        time.sleep(SETTLE_S)
        site.save("again", plan.files)
        path = f"envctl agent, an unchanged home of {plan.files:,} files"
        yield from sampling.follow(path, site.command("backup", "--now"), compiled(os.environ), directory)


def upload(context: Context, plan: Plan, directory: Path) -> Iterator[Profile]:
    """The engine that backups go through: parts of 16 MiB, four at once, half compressible content of a file."""
    source = directory / "backup.vma"
    blocks = list(initiator.half_compressible(MIB // initiator.BLOCK_BYTES, 5))
    order = random.Random(6)
    with source.open("wb") as file:
        for _ in range(plan.upload_bytes // MIB):
            order.shuffle(blocks)
            file.write(b"".join(blocks))
    node = Node.made(directory, f"http://127.0.0.1:{context.store.port}", "profiles-pve", "bench", "bench")
    try:
        key = "dump/vzdump-qemu-100-2026_01_01-00_00_00.vma"
        path = f"plugin upload, {plan.upload_bytes // MIB:,} MiB"
        yield from sampling.follow(path, node.writer(source, key), compiled(node.environment), directory)
    finally:
        source.unlink()
        context.store.remove("profiles-pve")


def _done(words: Sequence[str], environment: Mapping[str, str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(environment))
    if done.returncode:
        raise BenchFailed(f"{' '.join(words)} ended with {done.returncode}: {(done.stderr or done.stdout)[-1500:]}")


PATHS: Final[Mapping[str, Callable[[Context, Plan, Path], Iterator[Profile]]]] = {
    "block": block,
    "cowsync": plan_of_mirror,
    "integrity": verify,
    "agent": agent,
    "plugin": upload,
}
