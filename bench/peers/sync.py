"""What changed in a bucket, and its mirror: cowsync beside rclone (Debian's package).

One rule: each is given what suits it best and does its whole work, from the start of the program to its exit; what it found, or
what lies on the mirror afterwards, is looked at each time, and a wrong answer fails the part.

Listings are those of `bench.sync`, on the lister: no store could be filled with millions of objects in the time. The mirror
itself is made on a store like the one that all peers meet, but with MD5s for ETags as S3 has them, which rclone compares; in
two ways: the store copies by itself, or every byte goes through this host (both then take one server for two).
"""

import random
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.context import Context, kept
from bench.peers.figures import CPU_US, PEAK_MIB, REQUESTS, UP_PER_BYTE, Figure, Part
from bench.peers.measuring import MIB, UP_MIB, Taken, command, middle
from bench.peers.names import COWSYNC, KEYS, RCLONE, WHAT_CHANGED
from bench.peers.rclone_remote import RcloneRemote
from bench.processes import BenchFailed, end, start, wait_for_line
from bench.store import READY, Client
from bench.sync import CHECKERS, COMMAND, RCLONE_LOADS, Found, SyncBench, compiled, rclone_missing

NAME: Final = "sync"
TITLE: Final = "What changed in a bucket, and its mirror"
LATENCIES_MS: Final = (0, 20, 50)
MIRROR_LATENCIES_MS: Final = (0, 20)
OBJECTS: Final = "objects/s"
BY_STORE: Final = "copied by the store"
THROUGH_HOST: Final = "through this host"
FIRST: Final = "first copy"
AGAIN: Final = "1 % changed"
SOURCE, TARGET = "sync-source", "sync-target"
MIBS_MOVED: Final = "mib_s"
SERVER_US: Final = "server_cpu_us"
"""Of the lister, for each key."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """`keys`: that both scan; `most_keys`: that cowsync scans alone; `small` objects of some KiB and `large` ones of
    `large_bytes` are mirrored."""

    keys: int
    most_keys: int
    small: int
    large: int
    large_bytes: int


FULL: Final = SyncPlan(500_000, 10_000_000, 5_000, 4, 32 * MIB)
QUICK: Final = SyncPlan(200_000, 1_000_000, 2_000, 2, 16 * MIB)


def measure(context: Context) -> Part:
    """The part of the run."""
    return synced(context, QUICK if context.quick else FULL)


def synced(context: Context, plan: SyncPlan) -> Part:
    """What is not installed is told in `missing`."""
    begin = time.monotonic()
    directory = context.directory / NAME
    directory.mkdir(parents=True)
    missing = [gone] if (gone := rclone_missing()) else []
    asked = [system for system in (COWSYNC, RCLONE) if not context.systems or system in context.systems]
    if missing:
        asked = [system for system in asked if system != RCLONE]
    figures: list[Figure] = []

    def found() -> Part:
        return Part(NAME, TITLE, figures, notes=_notes(plan), missing=missing, seconds=time.monotonic() - begin)

    with kept(found):
        try:
            _measured(context, directory, plan, asked, figures, missing)
        finally:
            shutil.rmtree(directory)
    return found()


def _measured(
    context: Context,
    directory: Path,
    plan: SyncPlan,
    asked: Sequence[str],
    figures: list[Figure],
    missing: list[str],
) -> None:
    figures += _listings(context, directory, plan, asked, missing)
    environment = compiled(directory) | {"BUCKETWORKS_SPENDING_DIR": "off"}
    with _store(directory) as store:
        for way in (BY_STORE, THROUGH_HOST):
            if context.no_time(f"mirror, {way}", missing):
                continue
            try:
                figures += _mirrors(
                    context, _Mirrored(store, environment), directory / way.replace(" ", "-"), plan, way, asked
                )
            except BenchFailed as error:  # what was found before is no worse for it
                missing.append(f"mirror, {way}: {error}")


def _notes(plan: SyncPlan) -> list[str]:
    return [
        f"{WHAT_CHANGED}: of every thousand objects one was changed, removed or added; all found just these. rclone"
        f" compares sizes and MD5 of two listings, --checkers {CHECKERS}, no HEAD; cowsync a listing with what it remembers",
        "memory is of all processes, what they share counted once (Pss, sampled); CPU for each key of the source",
        f"{FIRST}, {AGAIN}: {plan.small:,} objects of 1 to 16 KiB and {plan.large} of {plan.large_bytes // MIB} MiB;"
        f" rclone sync --checksum --fast-list, {CHECKERS} transfers; cowsync run as it is by default, {CHECKERS} copies at"
        " once, with its journal, and a HEAD before each overwrite",
    ]


# --- listings ------------------------------------------------------------------------------------------------


def _listings(
    context: Context, directory: Path, plan: SyncPlan, asked: Sequence[str], missing: list[str]
) -> list[Figure]:
    bench = SyncBench(directory, context.say)
    latencies = [one for one in LATENCIES_MS if one in context.latencies_ms] or [0]
    slow = [one for one in latencies if one]
    found: list[Found] = []
    lister = bench.lister()
    try:
        if RCLONE in asked:
            found += bench.rclone(lister, plan.keys, latencies_ms=[one for one in latencies if not one])
            # Of its four ways, listing whole or by folders is what tells with latency.
            found += bench.rclone(lister, plan.keys, RCLONE_LOADS[:2], slow)
        if COWSYNC in asked:
            found += bench.cowsync(lister, plan.keys, (1, 2), latencies, max(1, context.repeats))
            if not context.no_time(f"{WHAT_CHANGED}, {plan.most_keys:,} keys", missing):
                found += bench.cowsync(lister, plan.most_keys, (2,))
    finally:
        lister.close()
    runs: dict[tuple[str, int, int], list[Found]] = {}
    for one in found:
        runs.setdefault((one.program, one.objects, one.latency_ms), []).append(one)
    return [_rate(same) for same in runs.values()]


def _rate(runs: Sequence[Found]) -> Figure:
    """Of runs of one program; what was counted is that of the run in the middle."""
    one = sorted(runs, key=lambda run: run.rate)[len(runs) // 2]
    facts = {
        CPU_US: one.cpu_s * 1e6 / one.objects,
        PEAK_MIB: max(run.peak_bytes for run in runs) / MIB,
        REQUESTS: float(one.counts.lists + one.counts.heads + one.counts.about),
        SERVER_US: one.server_cpu_s * 1e6 / one.objects,
    }
    load = f"{WHAT_CHANGED}, {one.objects:,} keys"
    system = one.program.replace("cowsync plan", COWSYNC)
    return Figure(load, system, one.latency_ms, KEYS, tuple(run.rate for run in runs), facts=facts)


# --- the mirror itself ---------------------------------------------------------------------------------------


def contents(plan: SyncPlan, seed: int = 1) -> dict[str, bytes]:
    """What a source holds, the same each time. Other seeds have other bytes under the same keys."""
    drawn = random.Random(seed)
    made = {
        f"small/{number // 500:03}/object-{number:06}.bin": drawn.randbytes(1024 * (1 + number % 16))
        for number in range(plan.small)
    }
    return made | {f"large/{number}.bin": drawn.randbytes(plan.large_bytes) for number in range(plan.large)}


@dataclass(frozen=True, slots=True)
class _Mirrored:
    """Where mirrors are made, and how cowsync is started for it."""

    store: Client
    environment: Mapping[str, str]


@contextmanager
def _store(directory: Path) -> Iterator[Client]:
    log = directory / "store.log"
    process = start([sys.executable, "-m", "bench.store", "--md5"], log)
    try:
        yield Client(int(wait_for_line(log, READY, process).split()[-1]))
    finally:
        end(process)


def _mirrors(
    context: Context, mirrored: "_Mirrored", directory: Path, plan: SyncPlan, way: str, asked: Sequence[str]
) -> list[Figure]:
    store = mirrored.store
    directory.mkdir()
    first = contents(plan)
    other = contents(SyncPlan(0, 0, plan.small, 0, 0), seed=2)
    changed = dict(list(other.items())[::100])
    latencies = [one for one in MIRROR_LATENCIES_MS if one in context.latencies_ms] or list(context.latencies_ms[:1])
    if context.quick:
        latencies = latencies[-1:]
    figures = []
    for latency in latencies:
        for system in asked:
            folder = directory / f"{system}-{latency}"
            folder.mkdir()
            store.remove(f"{TARGET}-{system}")
            run = _Cowsync(folder, mirrored, way) if system == COWSYNC else _Rclone(folder, store, way)
            for load, what in ((FIRST, first), (AGAIN, changed)):
                store.set_latency(0)
                for key, body in what.items():
                    store.place(f"{SOURCE}/{key}", body)
                store.set_latency(latency)
                context.say(f"sync: {load} by {system}, {way}, {latency} ms")
                taken = run.run()
                store.set_latency(0)
                _look(store, system, {**first, **what} if load == AGAIN else first, what)
                figures.append(_moved(f"mirror, {way}, {load}", system, latency, what, taken, len(first)))
    return figures


def _moved(load: str, system: str, latency: int, what: Mapping[str, bytes], taken: Taken, objects: int) -> Figure:
    """Facts of a first copy are for each object copied; of a run that finds 1 % changed, for each object there is."""
    facts = middle([taken])
    count, size = objects if load.endswith(AGAIN) else len(what), sum(map(len, what.values()))
    told = {
        CPU_US: taken.cpu_s * 1e6 / count,
        PEAK_MIB: facts[PEAK_MIB],
        REQUESTS: facts[REQUESTS] / count,
        MIBS_MOVED: size / MIB / taken.seconds,
        UP_PER_BYTE: facts[UP_MIB] * MIB / size,
    }
    return Figure(load, system, latency, OBJECTS, (count / taken.seconds,), facts=told)


def _look(store: Client, system: str, held: Mapping[str, bytes], new: Mapping[str, bytes]) -> None:
    """All is there by size, and some of what is new byte for byte."""
    bucket = f"{TARGET}-{system}"
    there = {key: size for key, size in store.sizes(bucket).items() if not key.startswith(".cowsync/")}
    if there != {key: len(body) for key, body in held.items()}:
        raise BenchFailed(f"{system} made a mirror of {len(there):,} objects, which is not that of {len(held):,}")
    for key in list(new)[:: max(1, len(new) // 20)]:
        if store.read(f"{bucket}/{key}") != new[key]:
            raise BenchFailed(f"{system} left other bytes at {key}")


class _Cowsync:
    def __init__(self, folder: Path, mirrored: "_Mirrored", way: str) -> None:
        self._folder, self._store, self._environment = folder, mirrored.store, mirrored.environment
        self._config = folder / "config.toml"
        self._config.touch(mode=0o600)
        # To it a server is what has a name in the configuration, and which of them copy by themselves the preset says.
        names = {"source": "127.0.0.1"} if way == BY_STORE else {"source": "127.0.0.1", "target": "localhost"}
        endpoints = "".join(
            f'[endpoint.{name}]\npreset = "minio"\nurl = "http://{host}:{self._store.port}"\nregion = "us-east-1"\n'
            'addressing = "path"\naccess_key = "bench"\nsecret_key = "bench"\n\n'
            for name, host in names.items()
        )
        self._config.write_text(
            f'{endpoints}[mirror.bench]\nsource = "s3://source/{SOURCE}"\n'
            f'target = "s3://{list(names)[-1]}/{TARGET}-{COWSYNC}"\nstate_dir = "{folder}"\n'
        )

    def run(self) -> Taken:
        words = [*COMMAND, "run", "bench", "--json", "--config", str(self._config)]
        return command(words, self._environment, self._folder / "cowsync.log", self._store)


class _Rclone:
    def __init__(self, folder: Path, store: Client, way: str) -> None:
        self._store = store
        self._remote = RcloneRemote.of_store(folder, store.port)
        config = folder / "rclone.conf"
        one = f"{config.read_text()}no_head = true\n"
        # It copies between two remotes through itself, whatever servers they are.
        config.write_text(one + one.replace("[bench]", "[other]"))
        self._target = "bench" if way == BY_STORE else "other"

    def run(self) -> Taken:
        at_once = ["--transfers", str(CHECKERS), "--checkers", str(CHECKERS)]
        words = ["sync", "--checksum", "--fast-list", "--use-server-modtime", *at_once]
        return self._remote.run([*words, f"bench:{SOURCE}", f"{self._target}:{TARGET}-{RCLONE}"], self._store)
