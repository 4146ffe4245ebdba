"""Homes saved: the agent beside restic and `rclone sync`, one home, one store, one after the other.

One rule: each does its whole work from its start to its exit, and what it brings back is the home that it was given. restic
and rclone get the settings that suit them best here (many small files, a store that is milliseconds away).

They are not the same thing. restic encrypts what it sends and the agent does not (the bucket does); the agent makes a restored
home durable before it says so; `rclone sync` keeps one version, no modes and owners, and no file twice the cheaper.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from bench.home import SETTLE_S, Site
from bench.peers.context import Context
from bench.peers.figures import Figure, Part
from bench.peers.measuring import MIB, Taken, command, timed
from bench.peers.rclone_remote import RcloneRemote
from bench.processes import BenchFailed
from bench.store import Client
from bench.sync import rclone_missing

NAME: Final = "backup"
TITLE: Final = "Homes: first backup, unchanged, 1 % changed, restore"
AGENT: Final = "envctl agent"
RESTIC: Final = "restic"
RCLONE: Final = "rclone sync"
LATENCY_MS: Final = 20
FIRST, UNCHANGED, CHANGED, RESTORED = "home: first backup", "home: unchanged", "home: 1 % changed", "home: restore"
LOADS: Final = (FIRST, UNCHANGED, CHANGED, RESTORED)
TRANSFERS: Final = 32
CONNECTIONS: Final = 32
FILES_A_FOLDER: Final = 200
CHANGED_SHARE: Final = 0.01
COPIED_SHARE: Final = 0.1
POOL_BYTES: Final = 16 * MIB
SMALL_BYTES_MAX: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class HomePlan:
    files: int
    large: int
    large_bytes: int


FULL: Final = HomePlan(50_000, 8, 32 * MIB)
QUICK: Final = HomePlan(5_000, 4, 16 * MIB)


@dataclass(frozen=True, slots=True)
class Made:
    files: int
    bytes: int


class System(Protocol):
    """One program with a bucket of its own. `folder`: the home that it saves. Each call is one run of the program."""

    folder: Path

    def save(self) -> Taken: ...

    def settle(self) -> None:
        """What a program does of its own between two backups, and that is not measured."""
        ...

    def restore(self) -> tuple[Taken, Path]:
        """And where the home is now."""
        ...


def half_compressible(drawn: random.Random, size: int) -> bytes:
    """Bytes of which about half can be packed away: runs of words between runs of noise, 2 KiB each."""
    words = [drawn.randbytes(drawn.randint(2, 9)).hex().encode() for _ in range(400)]
    text = b" ".join(drawn.choices(words, k=50_000))
    out = bytearray()
    while len(out) < size:
        at = drawn.randrange(len(text) - 2048)
        out += text[at : at + 2048] + drawn.randbytes(2048)
    return bytes(out[:size])


def make_home(folder: Path, plan: HomePlan, seed: int = 1) -> Made:
    """Small files as homes have them (half below 2 KiB, a tenth copies of others) and a few large ones."""
    drawn = random.Random(seed)
    pool = half_compressible(drawn, min(POOL_BYTES, MIB + plan.files * 1024))
    total, last = 0, b""
    for number in range(plan.files):
        if number % FILES_A_FOLDER == 0:
            place = folder / "user" / f"d{number // FILES_A_FOLDER:04}"
            place.mkdir(parents=True)
        if not last or drawn.random() >= COPIED_SHARE:
            size = min(SMALL_BYTES_MAX, int(drawn.lognormvariate(7.6, 1.5)) + 1)
            at = drawn.randrange(len(pool) - size)
            last = b"%d\n" % number + pool[at : at + size]
        (place / f"file{number % FILES_A_FOLDER:03}.txt").write_bytes(last)
        total += len(last)
    for number in range(plan.large):
        (folder / f"large{number:02}.img").write_bytes(half_compressible(drawn, plan.large_bytes))
    return Made(plan.files + plan.large, total + plan.large * plan.large_bytes)


def change_home(folder: Path, plan: HomePlan, seed: int = 2) -> None:
    """A hundredth of the small files anew, and a MiB more in the middle of one large file."""
    drawn = random.Random(seed)
    for number in drawn.sample(range(plan.files), max(1, int(plan.files * CHANGED_SHARE))):
        path = folder / "user" / f"d{number // FILES_A_FOLDER:04}" / f"file{number % FILES_A_FOLDER:03}.txt"
        path.write_bytes(b"changed %d\n" % number + drawn.randbytes(path.stat().st_size // 2) + b"\n" * 512)
    large = folder / "large00.img"
    content = large.read_bytes()
    middle = len(content) // 2
    large.write_bytes(content[:middle] + drawn.randbytes(MIB) + content[middle:])


def differences(one: Path, other: Path) -> list[str]:
    """Paths whose content is not the same in both, the first few."""
    said = subprocess.run(["diff", "-rq", str(one), str(other)], capture_output=True, text=True, check=False)
    if said.returncode > 1:
        raise BenchFailed(f"diff: {said.stderr[-500:]}")
    return said.stdout.splitlines()[:5]


class Agent:
    """`envctl-agent.pyz` as a guest runs it, a console on loopback, and signed addresses of the store. Processor and memory are
    the guest's; what the console takes is told in a note."""

    def __init__(self, site: Site, directory: Path, store: Client) -> None:
        self._site = site
        self._log = directory / "agent.log"
        self._store = store
        self.folder = site.home

    def save(self) -> Taken:
        return self._taken("backup", "--now")

    def settle(self) -> None:
        # Files too young to be believed by their times are looked at once more, in the next run.
        time.sleep(SETTLE_S)
        self.save()

    def restore(self) -> tuple[Taken, Path]:
        self._site.anew()
        return self._taken("restore"), self._site.home

    def _taken(self, *verb: str) -> Taken:
        return command(self._site.command(*verb), os.environ, self._log, self._store)


class Restic:
    def __init__(self, directory: Path, folder: Path, store: Client) -> None:
        self.folder = folder
        self._directory = directory
        self._store = store
        self._log = directory / "restic.log"
        self._environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(directory),
            "AWS_ACCESS_KEY_ID": "bench",
            "AWS_SECRET_ACCESS_KEY": "bench",
            "RESTIC_PASSWORD": "bench",
            "RESTIC_REPOSITORY": f"s3:http://127.0.0.1:{store.port}/bench-restic/home",
            "RESTIC_CACHE_DIR": str(directory / "cache"),
        }
        self._run("init")

    def save(self) -> Taken:
        return self._run("backup", "--host", "bench", str(self.folder))

    def settle(self) -> None:
        pass

    def restore(self) -> tuple[Taken, Path]:
        shutil.rmtree(self._directory / "cache")
        target = self._directory / "restored"
        taken = self._run("restore", "latest", "--target", str(target))
        return taken, target / self.folder.relative_to("/")

    def _run(self, *verb: str) -> Taken:
        words = ["restic", "-o", f"s3.connections={CONNECTIONS}", *verb]
        return command(words, self._environment, self._log, self._store)


class RcloneSync:
    def __init__(self, directory: Path, folder: Path, store: Client) -> None:
        self.folder = folder
        self._directory = directory
        self._store = store
        self._remote = RcloneRemote.of_store(directory, store.port)

    def save(self) -> Taken:
        # What rclone's manual gives for S3: no HEAD for each file's own time. Sizes and times of the listing are compared.
        words = ["sync", str(self.folder), "bench:bench-rclone/home", "--update", "--use-server-modtime"]
        return self._run(*words)

    def settle(self) -> None:
        pass

    def restore(self) -> tuple[Taken, Path]:
        target = self._directory / "restored"
        return self._run("sync", "bench:bench-rclone/home", str(target)), target

    def _run(self, *words: str) -> Taken:
        more = ["--fast-list", "--transfers", str(TRANSFERS), "--checkers", str(TRANSFERS)]
        return self._remote.run([*words, *more], self._store)


def measure(context: Context) -> Part:
    """The part of the run."""
    return backups(context, QUICK if context.quick else FULL)


def backups(context: Context, plan: HomePlan) -> Part:
    """What is not installed is told in `missing`."""
    begin = time.monotonic()
    figures: list[Figure] = []
    missing: list[str] = []
    notes: list[str] = []
    latency = LATENCY_MS if LATENCY_MS in context.latencies_ms else max(context.latencies_ms, default=0)
    for system, opened, gone in _systems():
        if context.systems and system not in context.systems:
            continue
        if gone:
            missing.append(f"{system}: {gone}")
            continue
        if context.no_time(system, missing):
            continue
        directory = context.directory / f"backup-{system.replace(' ', '-')}"
        directory.mkdir(parents=True)
        try:
            context.store.set_latency(latency)
            with opened(directory, context.store) as one:
                found, made = _rows(context, system, one, plan, latency)
            figures += found
            notes = [_described(made, plan, latency)]
        finally:
            context.store.set_latency(0)
            for bucket in ("bench", "bench-restic", "bench-rclone"):
                context.store.remove(bucket)
            shutil.rmtree(directory)
    notes += [
        f"restic: repository version 2 (compresses), s3.connections={CONNECTIONS}; rclone: --transfers {TRANSFERS}"
        f" --checkers {TRANSFERS} --fast-list --update --use-server-modtime",
        "restic encrypts and the agent does not; rclone keeps one version without modes and owners, and sends each copy again",
        "the agent fsyncs a restored home before it says so; restic and rclone do not",
        "processor and memory are of the program in the guest; what the console takes of its own is not in the agent's",
    ]
    return Part(NAME, TITLE, figures, notes=notes, missing=missing, seconds=time.monotonic() - begin)


def _rows(context: Context, name: str, one: System, plan: HomePlan, latency: int) -> tuple[list[Figure], Made]:
    context.say(f"backup: {name}, a home of {plan.files:,} files")
    made = make_home(one.folder, plan)
    runs: dict[str, list[Taken]] = {FIRST: [one.save()]}
    one.settle()
    runs[UNCHANGED] = [one.save() for _ in range(max(1, context.repeats))]
    change_home(one.folder, plan)
    runs[CHANGED] = [one.save()]
    kept = context.directory / "kept-home"
    one.folder.rename(kept)
    one.folder.mkdir()
    try:
        taken, place = one.restore()
        wrong = differences(kept, place)
    finally:
        shutil.rmtree(kept)
    if wrong:
        raise BenchFailed(f"{name} brought another home back: {'; '.join(wrong)}")
    runs[RESTORED] = [taken]
    return [timed(load, name, latency, runs[load]) for load in LOADS], made


def _described(made: Made, plan: HomePlan, latency: int) -> str:
    return (
        f"the home: {made.files:,} files, {made.bytes / MIB:,.0f} MiB, half compressible, a tenth of the small files copies;"
        f" {plan.large} files of {plan.large_bytes // MIB} MiB; the store answers after {latency} ms"
    )


def _systems() -> Iterator[tuple[str, "Callable[[Path, Client], AbstractContextManager[System]]", str]]:
    """(name, what opens it, why it cannot be asked)"""
    yield AGENT, _agent, ""
    yield RESTIC, _restic, "" if shutil.which("restic") else "restic is not installed (Debian's package restic)"
    yield RCLONE, _rclone, rclone_missing()


@contextmanager
def _agent(directory: Path, store: Client) -> Iterator[System]:
    with Site(directory / "site", store.port) as site:
        yield Agent(site, directory, store)


@contextmanager
def _restic(directory: Path, store: Client) -> Iterator[System]:
    yield Restic(directory, _made(directory / "home"), store)


@contextmanager
def _rclone(directory: Path, store: Client) -> Iterator[System]:
    yield RcloneSync(directory, _made(directory / "home"), store)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
