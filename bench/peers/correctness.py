"""Correctness beside speed: what every system does when it is killed, contended, cut off from its store, or lied to by it.

One rule: everything here was seen, nothing is known. A question is put to every system in the same way: blocks that carry
their number are written through the same file (`bench.peers.disk_file`), something happens, and a judge that knows only what
was acknowledged looks at what is there (`bench.peers.stamped`). A question that could not be put has no answer (None).

Processes are started on the main thread: the guard that ends them with the run watches the thread that made them.
"""

import contextlib
import mmap
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from bench.peers import disk_file, ours, s3backer, stamped, table
from bench.peers.context import Context, kept
from bench.peers.disk_file import DiskFile
from bench.peers.figures import Outcome, Part
from bench.peers.names import NBDKIT_CACHE, OURS, OURS_FLUSH_S3, S3BACKER_PACKAGED, S3BACKER_SYNC, S3BACKER_TUNED
from bench.peers.stamped import BLOCK, Found, Written
from bench.peers.systems import Known, Place, System, kill_all
from bench.processes import BenchFailed, end, start, tail
from bench.store import Client

MIB = 1024 * 1024
SIZE_BYTES = 64 * MIB
CACHE_BYTES = 64 * MIB
JOURNAL = "64M"
"""Of s3block: its usual 1 GiB would be written anew on each of many hosts."""
COLD_BLOCKS = range(4 * MIB // BLOCK)
"""Written once, then only read."""
HOT_BLOCKS = range(8 * MIB // BLOCK, 40 * MIB // BLOCK)
LATENCY_MS = 20
FLUSH_EVERY = 16
RACES_MAX = 10
SAID_MAX = 260
PATIENCE_S = 60.0
"""For a system to get over what was done to it."""

KEPT_FLUSHED: Final = "killed under writes, its local cache kept: is every flushed write there?"
KEPT_PREFIX: Final = "killed under writes, its local cache kept: is what is there a prefix of what was written?"
LOST_PREFIX: Final = "killed under writes, its host lost: is what the bucket has a prefix of what was written?"
LOST_FLUSHED: Final = "killed under writes, its host lost: is every flushed write in the bucket?"
FLUSHED: Final = "when a flush is answered, was a disk made to keep what was written, or has the bucket got it?"
SECOND: Final = "a second host attaches while the first one serves: can only one of them write?"
RACE: Final = "two hosts attach at the same moment: can only one of them write?"
AWAY_READS: Final = "store away: are reads of what is cached answered?"
AWAY_WRITES: Final = "store away: is no write or flush answered with an error?"
AWAY_KEPT: Final = "store away, then back: does another host find every acknowledged write?"
STORM_ANSWERS: Final = "30 % of the store's answers are 503: is no command answered with an error?"
STORM_KEPT: Final = "30 % of the store's answers are 503: does another host find every acknowledged write afterwards?"
FLIP: Final = "one bit flipped in each of three objects: is no wrong data read?"
KEY: Final = "encrypted, attached with a wrong key: is it refused?"

CRASHED = (OURS, OURS_FLUSH_S3, S3BACKER_TUNED, S3BACKER_SYNC, NBDKIT_CACHE)
CONTENDED = (OURS, S3BACKER_TUNED, NBDKIT_CACHE)
STRESSED = (OURS, S3BACKER_TUNED, NBDKIT_CACHE)
FLIPPED = (OURS, S3BACKER_TUNED, S3BACKER_PACKAGED, NBDKIT_CACHE)
ENCRYPTED = (OURS, S3BACKER_TUNED)
QUICK_LEFT_OUT = (NBDKIT_CACHE, OURS_FLUSH_S3)
NOTES = (
    f"Correctness: volumes of {SIZE_BYTES // MIB} MiB, a store that takes {LATENCY_MS} ms. One writer, one write of 4 KiB at a "
    f"time at random places, each with its number, a flush after every {FLUSH_EVERY}. What is there is a prefix when it is all "
    "writes up to some number and none after it. A kill is SIGKILL to all processes: the kernel's page cache survives it, so "
    "a cache file that nobody syncs looks safer here than in a loss of power.",
    "`flush = local` promises a flushed write to this host's disk and a prefix to the bucket; that a lost host costs its last "
    "flushed writes is its documented bargain, and `flush = s3` is the other one.",
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds. `write`: before a kill; `away`, `storm`: how long the store is ill; `contend`: for one of two writers to be
    told that it is none any more. `races`: how many."""

    write: float
    away: float
    storm: float
    contend: float
    races: float
    all: float


DEFAULT = Times(write=3.0, away=20.0, storm=20.0, contend=12.0, races=8.0, all=360.0)
QUICK = Times(write=1.5, away=6.0, storm=5.0, contend=6.0, races=1.0, all=110.0)


def run(context: Context) -> Part:
    """The part of the report: outcomes, no figures."""
    begin = time.monotonic()
    if why := disk_file.missing("qemu-storage-daemon", "fusermount"):
        return Part("correctness", "Correctness beside speed", missing=[f"all of it: {why}"])
    times = QUICK if context.quick else DEFAULT
    asked = Questions(context, replace(times, all=min(times.all, context.give_up - begin)))

    def found() -> Part:
        return Part(
            "correctness",
            "Correctness beside speed",
            outcomes=asked.outcomes,
            notes=NOTES,
            missing=asked.missing,
            seconds=time.monotonic() - begin,
        )

    with kept(found):
        try:
            asked.all()
        finally:
            context.store.reset()
    return found()


# --- what is done to a disk


class Load(threading.Thread):
    """Commands one after the other, until `ended` is set. What they were answered is read while they go on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.errors: list[str] = []
        self.ended = threading.Event()
        self._slowest_s = 0.0
        self._since = 0.0

    @property
    def slowest_s(self) -> float:
        """The longest that a command has waited, the one in flight included."""
        since = self._since
        return max(self._slowest_s, time.monotonic() - since if since else 0.0)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """One command; an error of the disk is noted, and raised again."""
        self._since = begin = time.monotonic()
        try:
            yield
        except OSError as error:
            self.errors.append(f"{what}: {error.strerror}")
            raise
        finally:
            self._slowest_s, self._since = max(self._slowest_s, time.monotonic() - begin), 0.0

    def finish(self, disk: DiskFile) -> None:
        """Its end; of the disk too, if that does not answer."""
        self.ended.set()
        self.join(PATIENCE_S)
        if self.is_alive():
            self.errors.append(f"no answer within {PATIENCE_S:.0f} s")
            disk.kill()
            self.join()


class Writer(Load):
    """Numbered blocks at random places, one after the other, until it is told to stop or its disk is gone."""

    def __init__(self, file: Path, places: range, *, seed: int = 1, pause_s: float = 0.0, go_on: bool = False) -> None:
        """`go_on`: an error is noted, and the next write is sent."""
        super().__init__()
        self.written = Written()
        self._file = file
        self._places = places
        self._source = random.Random(seed)
        self._pause_s = pause_s
        self._go_on = go_on

    def run(self) -> None:
        with contextlib.suppress(OSError), open(self._file, "r+b", buffering=0) as disk:
            while not self.ended.wait(self._pause_s) and (self._go_on or not self.errors):
                with contextlib.suppress(OSError):  # noted by `timed`
                    self._write(disk.fileno())

    def _write(self, disk: int) -> None:
        written = self.written
        place = self._source.choice(self._places)
        number = len(written.places) + 1
        written.places.append(place)
        written.failed.add(number)
        with self.timed(f"write {number}"):
            os.pwrite(disk, stamped.block(number, place), place * BLOCK)
        written.failed.discard(number)
        written.acknowledged = number
        if number % FLUSH_EVERY == 0:
            with self.timed(f"flush after {number}"):
                os.fsync(disk)
            written.flushed = number


class Reader(Load):
    """Reads of blocks as `fill` made them, around the kernel's page cache."""

    def __init__(self, file: Path, places: range, *, pause_s: float = 0.1) -> None:
        super().__init__()
        self.reads = 0
        self.wrong = 0
        self._file = file
        self._places = places
        self._pause_s = pause_s

    def run(self) -> None:
        source = random.Random(2)
        disk = os.open(self._file, os.O_RDONLY | os.O_DIRECT)
        try:
            # O_DIRECT needs a buffer that begins with a page.
            with contextlib.closing(mmap.mmap(-1, BLOCK)) as buffer:
                while not self.ended.wait(self._pause_s):
                    with contextlib.suppress(OSError):  # noted by `timed`
                        self._read(disk, buffer, source.choice(self._places))
        finally:
            os.close(disk)

    def _read(self, disk: int, buffer: mmap.mmap, place: int) -> None:
        with self.timed(f"read of block {place}"):
            os.preadv(disk, [buffer], place * BLOCK)
        self.reads += 1
        self.wrong += stamped.number_of(buffer[:], place) != place + 1


class Syncs:
    """Counts what some processes ask the kernel to put on a disk; a context manager. BenchFailed where strace may not look."""

    _CALLS = "fsync,fdatasync,msync,sync_file_range,pwritev2"
    _SYNC = re.compile(r"\b(?:fsync|fdatasync|msync|sync_file_range)\(|RWF_D?SYNC")

    def __init__(self, pids: Sequence[int], log: Path) -> None:
        self._log = log
        words = ["strace", "-f", "-o", str(log), "-e", f"trace={self._CALLS}"]
        for pid in pids:
            words += ["-p", str(pid)]
        self._said = log.with_name("strace.said")
        self._count = len(pids)
        self._process = start(words, self._said)

    def __enter__(self) -> "Syncs":
        give_up = time.monotonic() + PATIENCE_S
        while self._said.read_text(errors="replace").count(" attached") < self._count:
            if self._process.poll() is not None or time.monotonic() > give_up:
                self.__exit__()
                raise BenchFailed(f"strace does not attach: {tail(self._said)}")
            time.sleep(0.02)
        return self

    def count(self) -> int:
        return sum(1 for line in self._log.read_text(errors="replace").splitlines() if self._SYNC.search(line))

    def __exit__(self, *_: object) -> None:
        end(self._process, signal.SIGINT)


def fill(disk: DiskFile, places: range) -> None:
    """Block `place` is of write `place + 1`; flushed."""
    with disk.file.open("r+b", buffering=0) as file:
        together = 256 if places.step == 1 else 1
        for at in range(0, len(places), together):
            group = places[at : at + together]
            os.pwrite(file.fileno(), b"".join(stamped.block(place + 1, place) for place in group), group[0] * BLOCK)
        os.fsync(file.fileno())


def found(system: System, folder: Path, written: Written) -> Found:
    """What a system that serves holds. Raises OSError for what cannot be read."""
    with DiskFile(_door(system), folder) as disk, disk.file.open("rb", buffering=0) as file:
        held = stamped.held(lambda place: os.pread(file.fileno(), BLOCK, place * BLOCK), written.places)
    return stamped.judge(written, held)


def within(seconds: float, work: Callable[[], T]) -> T:
    """What `work` gives. BenchFailed if it takes longer; then its thread is left behind."""
    result: Future[T] = Future()

    def do() -> None:
        try:
            result.set_result(work())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised again where it is waited for
            result.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    try:
        return result.result(seconds)
    except TimeoutError as error:
        raise BenchFailed(f"not done within {seconds:.0f} s") from error


def _door(system: System) -> str:
    return system.url or str(system.path)


def reason(error: Exception) -> str:
    """The last words of what a program said before it ended: they say why."""
    # The first line names the program with its paths, where others follow.
    text = str(error).partition("\n")[2] or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip() and "level=INFO" not in line]
    said = " ".join(lines[-2:]) if lines else type(error).__name__
    return said if len(said) <= SAID_MAX else said[:SAID_MAX] + "…"


# --- the questions


@dataclass(slots=True)
class Questions:
    context: Context
    times: Times
    outcomes: list[Outcome] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _number: int = 0
    _begin: float = field(default_factory=time.monotonic)

    def all(self) -> None:
        crashed = self._wanted(CRASHED)
        for name in crashed:
            self._asked(name, (KEPT_FLUSHED, KEPT_PREFIX), self.killed_and_kept)
            self._asked(name, (LOST_PREFIX, LOST_FLUSHED), self._killed_and_lost)
        for name in self._wanted(FLIPPED):
            self._asked(name, (FLIP,), self._flip)
        for name in crashed:
            self._asked(name, (FLUSHED,), self._flushed)
        self._ill_store(self._wanted(STRESSED))
        for name in self._wanted(CONTENDED):
            self._asked(name, (SECOND,), self._second)
            self._asked(name, (RACE,), self._race)
        for name in self._wanted(ENCRYPTED):
            self._asked(name, (KEY,), self._wrong_key)

    def _wanted(self, names: Sequence[str]) -> list[str]:
        found = []
        for name in names:
            if self.context.systems and name not in self.context.systems:
                continue
            if self.context.quick and name in QUICK_LEFT_OUT and not self.context.systems:
                continue
            if why := table.known(name).missing():
                self.missing += [line for line in [f"{name}: {why}"] if line not in self.missing]
                continue
            found.append(name)
        return found

    def _asked(
        self, name: str, questions: Sequence[str], ask: Callable[[Known], Iterator[tuple[str, bool, str]]]
    ) -> None:
        """What `ask` does not get to answer has no answer, with the reason."""
        self.context.say(f"correctness: {name}, {questions[0]}")
        self.context.store.reset()
        open_questions = list(questions)
        try:
            self._in_time()
            for question, passed, said in ask(table.known(name)):
                self.outcomes.append(Outcome(question, name, passed, said))
                open_questions.remove(question)
        except (BenchFailed, OSError) as error:
            for question in open_questions:
                self.outcomes.append(Outcome(question, name, None, f"could not be asked: {reason(error)}"))
        finally:
            self.context.store.reset()

    def _in_time(self) -> None:
        """Raises BenchFailed once the part has taken its time."""
        if time.monotonic() - self._begin > self.times.all:
            raise BenchFailed(f"no time was left: {self.times.all:.0f} s are over")

    def _place(self, bucket: str = "", client: Client | None = None) -> Place:
        self._number += 1
        where = self.context.directory / f"correct{self._number}"
        store = client or self.context.store
        return Place(where, store, bucket or f"correct-{self._number}", SIZE_BYTES, CACHE_BYTES)

    @contextmanager
    def _made(self, known: Known, place: Place) -> Iterator[System]:
        """Not started. Its bucket and what is on this host are gone afterwards."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.context.store.remove, place.bucket)
            yield stack.enter_context(_make(known, place))

    def _front(self, system: System) -> DiskFile:
        self._number += 1
        return DiskFile(_door(system), self.context.directory / f"front{self._number}")

    # --- killed

    def _killed(self, system: System) -> Written:
        """Served, written to and killed with all it has."""
        system.start()
        self.context.store.set_latency(LATENCY_MS)
        disk = self._front(system).__enter__()
        try:
            writer = Writer(disk.file, HOT_BLOCKS)
            writer.start()
            time.sleep(self.times.write)
            kill_all([*system.pids(), *system.front_pids()])
        finally:
            disk.kill()
            shutil.rmtree(disk.file.parent, ignore_errors=True)
        writer.join()
        system.kill()
        self.context.store.set_latency(0)
        if not writer.written.flushed:
            raise BenchFailed(f"nothing was flushed within {self.times.write:.0f} s ({'; '.join(writer.errors[:1])})")
        return writer.written

    def killed_and_kept(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        with self._made(known, self._place()) as system:
            written = self._killed(system)
            try:
                system.start()
                state = self._found(system, written)
            except (BenchFailed, OSError) as error:
                yield KEPT_FLUSHED, False, f"it does not serve any more: {reason(error)}"
                yield KEPT_PREFIX, False, "nothing can be read"
                return
            yield KEPT_FLUSHED, state.has_flushed, state.flushed_said()
            yield KEPT_PREFIX, state.is_prefix, state.prefix_said()

    def _killed_and_lost(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        with self._made(known, self._place()) as system:
            written = self._killed(system)
            system.forget()
            try:
                system.start()
                state = self._found(system, written)
            except (BenchFailed, OSError) as error:
                yield LOST_PREFIX, False, f"it does not serve any more: {reason(error)}"
                yield LOST_FLUSHED, False, "nothing can be read"
                return
            yield LOST_PREFIX, state.is_prefix, state.prefix_said()
            yield LOST_FLUSHED, state.has_flushed, state.flushed_said()

    def _flushed(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        """Sixteen writes far from each other and a flush, while strace watches the system's own processes."""
        if shutil.which("strace") is None:
            raise BenchFailed("not installed: strace (package strace)")
        store = self.context.store
        with self._made(known, self._place()) as system:
            system.start()
            with self._front(system) as disk:
                fill(disk, HOT_BLOCKS[::16])
                system.drain()
                store.set_latency(LATENCY_MS)
                with Syncs(system.pids(), disk.file.with_name("strace")) as syncs:
                    puts = store.stats().puts
                    with disk.file.open("r+b", buffering=0) as file:
                        for place in HOT_BLOCKS[:: len(HOT_BLOCKS) // FLUSH_EVERY][:FLUSH_EVERY]:
                            os.pwrite(file.fileno(), stamped.block(1 << 32, place), place * BLOCK)
                        before, begin = syncs.count(), time.monotonic()
                        os.fsync(file.fileno())
                        took_ms = (time.monotonic() - begin) * 1000
                    puts = store.stats().puts - puts
                    # What strace prints comes a little after what it saw.
                    time.sleep(0.2)
                    count = syncs.count() - before
            said = f"the flush took {took_ms:.1f} ms, with {count} syncs of a file"
            said += f"; {puts} PUTs since the first of {FLUSH_EVERY} writes"
            yield FLUSHED, count > 0 or puts >= FLUSH_EVERY, said

    def _found(self, system: System, written: Written) -> Found:
        self._number += 1
        folder = self.context.directory / f"front{self._number}"
        try:
            return found(system, folder, written)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    # --- two writers

    def _joining(self, known: Known, bucket: str) -> System:
        """Another host for what `bucket` has."""
        system = _make(known, self._place(bucket))
        if isinstance(system, ours.S3Block):
            system.joins = True
        return system

    def _second(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        place = self._place()
        with self._made(known, place) as first, self._joining(known, place.bucket) as second:
            first.start()
            with self._front(first) as disk:
                fill(disk, COLD_BLOCKS)
                # Nothing is left that a second host would have to do without.
                first.drain()
                try:
                    second.start()
                except BenchFailed as error:
                    yield SECOND, True, f"the second is refused: {reason(error)}"
                    return
                with self._front(second) as other:
                    passed, said = self._both(disk, other)
                    yield SECOND, passed, said

    def _race(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        told: list[tuple[bool, str]] = []
        begin = time.monotonic()
        while not told or (len(told) < RACES_MAX and time.monotonic() - begin < self.times.races):
            told.append(self._raced(known))
        failed = [said for passed, said in told if not passed]
        counted = f"{len(told) - len(failed)} of {len(told)} races had one winner"
        yield RACE, not failed, f"{counted}; {(failed or [told[-1][1]])[0]}"

    def _raced(self, known: Known) -> tuple[bool, str]:
        place = self._place()
        with self._made(known, place) as maker:
            maker.start()
            maker.stop()
            maker.forget()
            self.context.store.set_latency(LATENCY_MS)
            # The threads stay as long as what they started.
            with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
                rivals = [stack.enter_context(self._joining(known, place.bucket)) for _ in range(2)]
                starts = [pool.submit(rival.start) for rival in rivals]
                errors = [start.exception() for start in starts]
                for error in errors:
                    if error is not None and not isinstance(error, BenchFailed):
                        raise error
                refused = [error for error in errors if isinstance(error, BenchFailed)]
                if len(refused) == 2:
                    return True, f"both are refused: {reason(refused[0])}"
                if refused:
                    return True, f"one is refused: {reason(refused[0])}"
                with self._front(rivals[0]) as one, self._front(rivals[1]) as other:
                    return self._both(one, other)

    def _both(self, one: DiskFile, other: DiskFile) -> tuple[bool, str]:
        """Two that serve the same: for how long are both told that a write is flushed?"""
        begin = time.monotonic()
        writers = [Writer(disk.file, HOT_BLOCKS, seed=seed, pause_s=0.05) for seed, disk in enumerate((one, other))]
        for writer in writers:
            writer.start()
        while time.monotonic() - begin < self.times.contend and all(writer.is_alive() for writer in writers):
            time.sleep(0.05)
        took = time.monotonic() - begin
        working = [writer.is_alive() for writer in writers]
        before = [writer.written.flushed for writer in writers]
        if all(working):
            time.sleep(2.0)
        after = [writer.written.flushed for writer in writers]
        for writer, disk in zip(writers, (one, other), strict=True):
            writer.finish(disk)
        if all(now > then for now, then in zip(after, before, strict=True)):
            return (
                False,
                f"both serve, and after {took:.0f} s both are still told that their writes are flushed ({after})",
            )
        stopped = [writer for writer, works in zip(writers, working, strict=True) if not works] or writers
        why = stopped[0].errors[0] if stopped[0].errors else "its writes are not answered any more"
        return True, f"both serve, one is cut off after {took:.1f} s: {why}; flushed writes acknowledged: {after}"

    # --- an ill store

    def _ill_store(self, names: Sequence[str]) -> None:
        """All of them together in the same illness, which is long."""
        try:
            self._in_time()
        except BenchFailed as error:
            questions = (AWAY_READS, AWAY_WRITES, AWAY_KEPT, STORM_ANSWERS, STORM_KEPT)
            self.outcomes += [
                Outcome(q, name, None, f"could not be asked: {error}") for name in names for q in questions
            ]
            return
        self.context.say(f"correctness: store away {self.times.away:.0f} s, then 503 for {self.times.storm:.0f} s")
        store = self.context.store
        with contextlib.ExitStack() as stack:
            patients: list[Patient] = []
            for name in names:
                place = self._place(client=Client(store.port))
                system = stack.enter_context(self._made(table.known(name), place))
                patient = Patient(name, system, self.context.directory / f"patient{self._number}", self.outcomes)
                stack.callback(patient.end)
                patients.append(patient)
                patient.prepare()
            self._ill(patients, AWAY, HOT_BLOCKS[: len(HOT_BLOCKS) // 2], lambda: store.black_out(self.times.away))
            self._ill(patients, STORM, HOT_BLOCKS[len(HOT_BLOCKS) // 2 :], lambda: store.set_faults(0.3))

    def _ill(self, patients: Sequence["Patient"], illness: "Illness", places: range, begin: Callable[[], None]) -> None:
        store = self.context.store
        seconds = self.times.away if illness is AWAY else self.times.storm
        store.set_latency(LATENCY_MS)
        for patient in patients:
            patient.begin(illness, places)
        time.sleep(1.0)
        for patient in patients:
            patient.mark()
        begin()
        time.sleep(seconds)
        for patient in patients:
            patient.look(illness, seconds)
        store.set_faults(0.0)
        for patient in patients:
            patient.settle(illness)
        store.reset()

    # --- a store that lies, a key that is wrong

    def _flip(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        place = self._place()
        store = self.context.store
        with self._made(known, place) as system:
            system.start()
            with self._front(system) as disk:
                fill(disk, HOT_BLOCKS)
            system.drain()
            system.stop()
            system.forget()
            sizes = store.sizes(place.bucket)
            large = sorted(key for key, size in sizes.items() if 2 * size >= max(sizes.values()))
            chosen = random.Random(3).sample(large, min(3, len(large)))
            for key in chosen:
                store.flip(f"{place.bucket}/{key}", sizes[key] // 2)
            try:
                system.start()
            except BenchFailed as error:
                yield FLIP, True, f"it does not serve: {reason(error)}"
                return
            with self._front(system) as disk:
                right, wrong, refused = self._looked_at(disk, HOT_BLOCKS)
            said = f"of {right + wrong + refused} blocks {wrong} are wrong without a word, {refused} are read errors"
            yield FLIP, wrong == 0, said

    def _looked_at(self, disk: DiskFile, places: range) -> tuple[int, int, int]:
        right = wrong = refused = 0
        with disk.file.open("rb", buffering=0) as file:
            for place in places:
                try:
                    data = os.pread(file.fileno(), BLOCK, place * BLOCK)
                except OSError:
                    refused += 1
                    continue
                matches = stamped.number_of(data, place) == place + 1
                right, wrong = right + matches, wrong + (not matches)
        return right, wrong, refused

    def _wrong_key(self, known: Known) -> Iterator[tuple[str, bool, str]]:
        keys = [self.context.directory / f"key{number}" for number in range(2)]
        for number, key in enumerate(keys):
            key.touch(mode=0o600)
            key.write_text(f"{number}" * 40 + "\n")
        place = self._place()
        with contextlib.ExitStack() as stack:
            stack.callback(self.context.store.remove, place.bucket)
            right = stack.enter_context(_encrypted(known.name, place, keys[0]))
            right.start()
            with self._front(right) as disk:
                fill(disk, COLD_BLOCKS)
            right.drain()
            right.stop()
            wrong = stack.enter_context(_encrypted(known.name, self._place(place.bucket), keys[1]))
            if isinstance(wrong, ours.S3Block):
                wrong.joins = True
            try:
                wrong.start()
            except BenchFailed as error:
                yield KEY, True, f"refused: {reason(error)}"
                return
            with self._front(wrong) as disk:
                right_ones, wrong_ones, refused = self._looked_at(disk, COLD_BLOCKS)
            count = right_ones + wrong_ones + refused
            yield (
                KEY,
                False,
                f"it serves; of {count} blocks {wrong_ones} are wrong without a word, {refused} are read errors",
            )


@dataclass(frozen=True, slots=True)
class Illness:
    """The questions of one; `reads` is empty where reads are part of `answers`."""

    reads: str
    answers: str
    kept: str


AWAY: Final = Illness(AWAY_READS, AWAY_WRITES, AWAY_KEPT)
STORM: Final = Illness("", STORM_ANSWERS, STORM_KEPT)


class Patient:
    """One system through the illnesses of its store: written to through one file, read through another. Once it did not get
    over one, it is asked no more."""

    def __init__(self, name: str, system: System, folder: Path, outcomes: list[Outcome]) -> None:
        self._name = name
        self._system = system
        self._folder = folder
        self._outcomes = outcomes
        self._well = True
        self._fronts: list[DiskFile] = []
        self._before = self._meanwhile = 0

    def _say(self, question: str, passed: bool | None, said: str) -> None:
        if question:
            self._outcomes.append(Outcome(question, self._name, passed, said))

    def _give_up(self, illness: Illness, why: str) -> None:
        self._well = False
        asked = {outcome.question for outcome in self._outcomes if outcome.system == self._name}
        for question in (illness.reads, illness.answers, illness.kept):
            if question not in asked:
                self._say(question, None, f"could not be asked: {why}")

    def prepare(self) -> None:
        try:
            self._system.start()
            with DiskFile(_door(self._system), self._folder / "first") as disk:
                fill(disk, COLD_BLOCKS)
            self._system.drain()
        except (BenchFailed, OSError) as error:
            self._give_up(AWAY, reason(error))

    def begin(self, illness: Illness, places: range) -> None:
        if not self._well:
            self._give_up(illness, "it did not get over what came before")
            return
        try:
            self._fronts = [
                DiskFile(_door(self._system), self._folder / name).__enter__() for name in ("write", "read")
            ]
        except BenchFailed as error:
            self._give_up(illness, reason(error))
            return
        self._writer = Writer(self._fronts[0].file, places, pause_s=0.02, go_on=True)
        self._reader = Reader(self._fronts[1].file, COLD_BLOCKS)
        self._writer.start()
        self._reader.start()

    def mark(self) -> None:
        if self._well:
            self._before = self._writer.written.acknowledged

    def look(self, illness: Illness, seconds: float) -> None:
        """At the end of the illness, before the store is well."""
        if not self._well:
            return
        self._meanwhile = self._writer.written.acknowledged - self._before
        reader = self._reader
        slow, fails = reader.slowest_s, [*reader.errors]
        said = f"{reader.reads} reads, {len(fails)} errors, the longest wait {slow:.1f} s"
        self._say(illness.reads, not fails and not reader.wrong and slow < seconds / 2, said)

    def settle(self, illness: Illness) -> None:
        """The store is well again: all that waits is answered, and another host looks at what was kept."""
        if not self._well:
            return
        writer, reader = self._writer, self._reader
        for load, disk in zip((writer, reader), self._fronts, strict=True):
            load.finish(disk)
        errors = writer.errors + ([] if illness.reads else reader.errors)
        said = f"{self._meanwhile} writes were acknowledged meanwhile, the longest wait was {writer.slowest_s:.1f} s"
        if not illness.reads:
            said += f", of {reader.reads} cold reads {reader.slowest_s:.1f} s"
        if errors:
            said += f"; {len(errors)} errors, the first: {errors[0]}"
        self._say(illness.answers, not errors and not reader.wrong, said)
        try:
            self._close_fronts()
            within(PATIENCE_S, self._system.drain)
            self._system.stop()
            self._system.forget()
            self._system.start()
            state = found(self._system, self._folder / "judge", writer.written)
        except (BenchFailed, OSError) as error:
            self._say(illness.kept, False, f"it did not get that far: {reason(error)}")
            self._well = False
            return
        self._say(illness.kept, state.has_acknowledged, state.acknowledged_said())

    def _close_fronts(self) -> None:
        fronts, self._fronts = self._fronts, []
        for disk in fronts:
            disk.close()

    def end(self) -> None:
        for disk in self._fronts:
            disk.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _make(known: Known, place: Place) -> System:
    if known.name == OURS:
        return ours.S3Block(place, known.name, {"journal_bytes": JOURNAL})
    if known.name == OURS_FLUSH_S3:
        return ours.S3Block(place, known.name, {"journal_bytes": JOURNAL, "flush": "s3"})
    return known.make(place)


def _encrypted(name: str, place: Place, key: Path) -> System:
    if name == OURS:
        return ours.S3Block(place, name, {"journal_bytes": JOURNAL, "key": f"file:{key}"})
    return s3backer.S3Backer(place, name, [*s3backer.tuned(place), "--encrypt", f"--passwordFile={key}"])
