"""Loads that people know, on every system: file systems made, a tree unpacked, read on a fresh host and deleted, SQLite,
and discards. Each system gives a disk; the same storage daemon and fuse2fs make files of it (`bench.peers.disk_file`).

One rule: a load ends when its data is flushed as the program or the file system asks for it; then it is drained, so that what
it cost at the store is all of it. Every load is bounded by time: what did not finish counts where a rate can be told,
and is reported as missing where only the end would say something.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from bench.peers import disk_file, local_file, source_tree, table
from bench.peers.context import Context, kept
from bench.peers.disk_file import DiskFile, Ext4
from bench.peers.figures import Figure, Part
from bench.peers.names import NBDKIT_CACHE, OURS, S3BACKER_PACKAGED, S3BACKER_TUNED, SECONDS, TGT
from bench.peers.systems import Known, Place, System, drained_s
from bench.processes import BenchFailed

MIB = 1024 * 1024
SIZE_BYTES = 512 * MIB
CACHE_BYTES = 256 * MIB
MKFS_XFS: Final = "mkfs.xfs"
MKFS_EXT4: Final = "mkfs.ext4"
MKFS_PLAIN: Final = "mkfs.ext4 -E nodiscard, fresh disk"
UNTAR: Final = "untar a source tree"
SQLITE: Final = "SQLite, WAL, synchronous=FULL"
COLD_TREE: Final = "read the tree, fresh host"
RM: Final = "rm -rf the tree"
TRIM: Final = "discard after delete (e2fsck -E discard)"
DISCARD: Final = "discard of everything"
FILES_PER_S: Final = "files/s"
TRANSACTIONS_PER_S: Final = "transactions/s"
MIB_PER_S: Final = "MiB/s"
PUTS: Final = "puts"
GETS: Final = "gets"
DELETES: Final = "deletes"
MIB_UP: Final = "mib_up"
MIB_DOWN: Final = "mib_down"
DRAINED_S: Final = "drained_s"
"""From the end of the load until the bucket had everything."""
CPU_S: Final = "cpu_s"
"""Of the system's own processes, until it was drained."""
MIB_LEFT: Final = "mib_left"
"""Stored in its bucket after the load was drained."""
OBJECTS_LEFT: Final = "objects_left"
SYSTEMS = (OURS, S3BACKER_TUNED, S3BACKER_PACKAGED, NBDKIT_CACHE, TGT)
QUICK_SYSTEMS = (OURS, S3BACKER_TUNED, TGT)
_STUCK_S = 30.0
"""A program that was killed may be waiting for its disk; after so long the disk is taken away."""
LATENCIES_MS = (20, 0)
PROGRAMS = ("qemu-storage-daemon", "fuse2fs", "fusermount", "mkfs.ext4", "mkfs.xfs", "e2fsck", "fallocate", "tar")
NOTES = (
    f"Files: {source_tree.FILES} files of a synthetic source tree, half of it compressible, on a disk of "
    f"{SIZE_BYTES // MIB} MiB; each load once. untar, rm and SQLite are rates within a bounded time, and end with an fsync.",
    "Every disk is a file of qemu-storage-daemon's FUSE export, ext4 on it is fuse2fs: one request at a time, no journal, "
    "no write-back cache of the kernel's. An fsync of a file was seen to become a flush of the disk, a punched hole a discard.",
    "s3backer answers a flush without doing anything (its FUSE fsync): its rows of untar and SQLite promise less.",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a load may take. `visit`: one system at one latency, all its loads without their drains; what no time is
    left for is missing. `all`: a system that is not begun by then is left out."""

    untar: float
    sqlite: float
    read: float
    remove: float
    other: float
    visit: float
    all: float


DEFAULT = Limits(untar=8.0, sqlite=2.5, read=6.0, remove=2.5, other=12.0, visit=45.0, all=330.0)
QUICK = Limits(untar=4.0, sqlite=1.5, read=4.0, remove=1.5, other=6.0, visit=24.0, all=90.0)


def run(context: Context) -> Part:
    """The part of the report; `missing` says what could not be measured, and why."""
    begin = time.monotonic()
    limits = QUICK if context.quick else DEFAULT
    limits = replace(limits, all=min(limits.all, context.give_up - begin))
    why = disk_file.missing(*PROGRAMS)
    if why:
        return Part("files", "Files and file systems", missing=[f"all of it: {why}"])
    archive = context.directory / "tree.tar"
    source_tree.write_archive(archive, source_tree.FILES)
    figures: list[Figure] = []
    missing: list[str] = []
    wanted = [name for name in (QUICK_SYSTEMS if context.quick else SYSTEMS) if _asked(context, name)]
    latencies = _latencies(context)

    def found() -> Part:
        # A local file knows no latency of the store: measured once, it stands beside all.
        local = [figure for figure in figures if figure.system == TGT]
        beside = [
            replace(one, latency_ms=latency_ms)
            for latency_ms in latencies
            for one in local
            if one.latency_ms != latency_ms
        ]
        told = list(dict.fromkeys(missing))
        title = "Files and file systems"
        return Part("files", title, [*figures, *beside], notes=NOTES, missing=told, seconds=time.monotonic() - begin)

    with kept(found):
        _visited(context, limits, archive, wanted, latencies, figures, missing)
    archive.unlink()
    context.store.set_latency(0)
    return found()


def _visited(
    context: Context,
    limits: Limits,
    archive: Path,
    wanted: Sequence[str],
    latencies: Sequence[int],
    figures: list[Figure],
    missing: list[str],
) -> None:
    begin = time.monotonic()
    for latency_ms in latencies:
        for name in wanted:
            if name == TGT and any(figure.system == TGT for figure in figures):
                continue
            if time.monotonic() - begin > limits.all:
                missing.append(f"{name} at {latency_ms} ms: no time was left, {limits.all:.0f} s are over")
                continue
            context.say(f"files: {name}, {latency_ms} ms")
            known = table.known(name)
            if reason := known.missing():
                missing.append(f"{name}: {reason}")
                continue
            visit = Visit(context, known, latency_ms, archive, limits)
            try:
                visit.run()
            finally:
                figures += visit.figures
                missing += visit.missing


def _latencies(context: Context) -> Sequence[int]:
    """The one that matters most first, in case time runs out."""
    wanted = [latency_ms for latency_ms in LATENCIES_MS if latency_ms in context.latencies_ms] or context.latencies_ms
    return wanted[:1] if context.quick else wanted


def _asked(context: Context, name: str) -> bool:
    return not context.systems or name in context.systems


@dataclass(frozen=True, slots=True)
class Ran:
    """`output`: what the program printed; of one that was killed, up to then."""

    seconds: float
    finished: bool
    output: str

    @property
    def lines(self) -> int:
        return self.output.count("\n")


@dataclass(slots=True)
class Visit:
    """One system at one latency, from an empty disk: every load in turn."""

    context: Context
    known: Known
    latency_ms: int
    archive: Path
    limits: Limits
    figures: list[Figure] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    _begin: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Raises nothing that is the system's fault: what fails is `missing`, and what follows it too."""
        store = self.context.store
        store.set_latency(self.latency_ms)
        directory = self.context.directory / "files"
        bucket = (
            f"files-{self.known.name.replace(' ', '-').replace(',', '').replace('+', 'and').lower()}-{self.latency_ms}"
        )
        bucket = bucket.replace("=", "-")
        place = Place(directory, store, bucket, SIZE_BYTES, CACHE_BYTES)
        try:
            with self.known.make(place) as system:
                system.start()
                self._begin = time.monotonic()
                self._all(system)
        except BenchFailed as error:
            self._miss(f"ended early: {' '.join(str(error).split())[:300]}")
        finally:
            store.remove(bucket)

    def _all(self, system: System) -> None:
        folder = self.context.directory / "files-front"
        mount = folder / "mount"
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            with DiskFile(_door(system), folder) as disk:
                plain = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard", str(disk.file)]
                if not self._made(system, MKFS_PLAIN, disk, *plain, drained=self._thorough):
                    return
                with Ext4(disk, mount) as files:
                    self._untar(system, files, disk)
                    self._sqlite(system, files, disk)
            if self.known.name == local_file.NAME:
                # It has no other host; what the kernel remembers of its file went with the mounts.
                _drop_page_cache()
            else:
                moved = time.monotonic()
                system.stop()
                system.forget()
                system.start()
                self._begin += time.monotonic() - moved
            with DiskFile(_door(system), folder) as disk:
                with Ext4(disk, mount) as files:
                    self._read(system, files, disk)
                    self._remove(system, files, disk)
                self._made(
                    system,
                    TRIM,
                    disk,
                    "e2fsck",
                    "-f",
                    "-y",
                    "-E",
                    "discard",
                    str(disk.file),
                    good=(0, 1),
                    drained=False,
                )
                self._discard(system, disk)
                if self._thorough:
                    # Last, since both begin by discarding the whole disk, which takes some systems very long.
                    self._made(system, MKFS_EXT4, disk, "mkfs.ext4", "-q", "-F", str(disk.file))
                    self._made(system, MKFS_XFS, disk, "mkfs.xfs", "-q", "-f", str(disk.file))

    # --- the loads

    def _made(
        self, system: System, load: str, disk: DiskFile, *command: str, good: Sequence[int] = (0,), drained: bool = True
    ) -> bool:
        """A program that only its end says something of."""

        def work() -> tuple[float, str] | None:
            ran = self._bounded(command, self.limits.other, disk, good=good)
            if not ran.finished:
                self._miss(f"{load}: not done after {ran.seconds:.0f} s")
                return None
            return ran.seconds, ""

        return self._measure(system, load, SECONDS, work, less_is_better=True, drained=drained)

    def _untar(self, system: System, files: Ext4, disk: DiskFile) -> None:
        def work() -> tuple[float, str] | None:
            ran = self._bounded(["tar", "-xvf", str(self.archive), "-C", str(files.path)], self.limits.untar, disk)
            flushed = self._flush(files, disk)
            return rate(ran, flushed, source_tree.FILES)

        self._measure(system, UNTAR, FILES_PER_S, work)

    def _sqlite(self, system: System, files: Ext4, disk: DiskFile) -> None:
        def work() -> tuple[float, str] | None:
            loop = [
                sys.executable,
                "-m",
                "bench.peers.wal_loop",
                str(files.path / "ledger.db"),
                str(self.limits.sqlite),
            ]
            ran = self._bounded(loop, self.limits.sqlite + self.limits.other, disk)
            if not ran.finished:
                self._miss(f"{SQLITE}: not one transaction's answer within {ran.seconds:.0f} s")
                return None
            said = json.loads(ran.output)
            return said["transactions"] / said["seconds"], f"slowest {said['slowest_ms']:.0f} ms"

        self._measure(system, SQLITE, TRANSACTIONS_PER_S, work, drained=self._thorough)

    def _read(self, system: System, files: Ext4, disk: DiskFile) -> None:
        def work() -> tuple[float, str] | None:
            begin = time.monotonic()
            count, finished = self._counted(files.path / "tree", self.limits.read, disk)
            seconds = time.monotonic() - begin
            return count / MIB / seconds, "" if finished else f"the first {count / MIB:.0f} MiB of it"

        self._measure(system, COLD_TREE, MIB_PER_S, work, drained=False, reads=True)

    def _remove(self, system: System, files: Ext4, disk: DiskFile) -> None:
        def work() -> tuple[float, str] | None:
            command = ["stdbuf", "-oL", "rm", "-rfv", str(files.path / "tree")]
            ran = self._bounded(command, self.limits.remove, disk)
            return rate(ran, self._flush(files, disk), 0)

        self._measure(system, RM, FILES_PER_S, work, drained=self._thorough)

    def _discard(self, system: System, disk: DiskFile) -> None:
        def work() -> tuple[float, str] | None:
            whole = ["fallocate", "--punch-hole", "--offset", "0", "--length", str(disk.size_bytes), str(disk.file)]
            ran = self._bounded(whole, self.limits.other, disk)
            if not ran.finished:
                self._miss(f"{DISCARD}: not done after {ran.seconds:.0f} s")
                return None
            return ran.seconds, "" if _is_empty(disk) else "the disk still holds its data"

        self._measure(system, DISCARD, SECONDS, work, less_is_better=True)

    # --- how a load is measured

    @property
    def _thorough(self) -> bool:
        """A quick run drains after the loads alone of which the bucket says most."""
        return not self.context.quick

    def _measure(
        self,
        system: System,
        load: str,
        unit: str,
        work: Callable[[], tuple[float, str] | None],
        *,
        less_is_better: bool = False,
        drained: bool = True,
        reads: bool = False,
    ) -> bool:
        """`work` gives value and note, or None when there is none. `drained`: what it cost at the store is counted until the
        bucket has everything, and how long that takes is told; this time is not the load's. What only `reads` is counted
        without that."""
        if self._left() <= 0:
            self._miss(f"{load}: no time left ({self.limits.visit:.0f} s for all loads)")
            return False
        store = self.context.store
        before, cpu = store.stats(), system.cpu_s()
        found = work()
        if found is None:
            return False
        drained_s = self._drained(system) if drained else 0.0
        cost = store.stats().since(before)
        facts: dict[str, float] = {CPU_S: system.cpu_s() - cpu}
        if system.bucket and (drained or reads):
            kept = store.sizes(system.bucket)
            facts |= {
                PUTS: cost.puts,
                GETS: cost.gets,
                DELETES: cost.deletes,
                MIB_UP: cost.bytes_in / MIB,
                MIB_DOWN: cost.bytes_out / MIB,
                OBJECTS_LEFT: len(kept),
                MIB_LEFT: sum(kept.values()) / MIB,
            }
        if drained:
            facts[DRAINED_S] = drained_s
        value, note = found
        self.figures.append(Figure(load, self.known.name, self.latency_ms, unit, (value,), less_is_better, facts, note))
        return True

    def _drained(self, system: System) -> float:
        begin = time.monotonic()
        seconds = drained_s(system, self.context.store)
        self._begin += time.monotonic() - begin
        return seconds

    def _left(self) -> float:
        return self.limits.visit - (time.monotonic() - self._begin)

    def _miss(self, what: str) -> None:
        self.missing.append(f"{self.known.name} at {self.latency_ms} ms, {what}")

    def _bounded(self, command: Sequence[str], seconds: float, disk: DiskFile, *, good: Sequence[int] = (0,)) -> Ran:
        """A program, ended after so many seconds. BenchFailed if it fails, or will not end while its disk lives."""
        log = disk.file.with_name("output")
        begin = time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=disk_file.environment()
            )
        code = _wait(process, min(seconds, max(1.0, self._left())), disk)
        said = log.read_text(errors="replace")
        if code is not None and code not in good:
            raise BenchFailed(f"{' '.join(command)} ended with {code}: {said[-300:]}")
        return Ran(time.monotonic() - begin, code is not None, said)

    def _flush(self, files: Ext4, disk: DiskFile) -> float:
        """An fsync below the mount, which for fuse2fs is one of all that was written; how long it took."""
        target = files.path / "flushed"
        ran = self._bounded(
            ["dd", "if=/dev/zero", f"of={target}", "bs=4k", "count=1", "conv=fsync"], self.limits.other, disk
        )
        if not ran.finished:
            raise BenchFailed(f"an fsync took more than {ran.seconds:.0f} s")
        return ran.seconds

    def _counted(self, folder: Path, seconds: float, disk: DiskFile) -> tuple[int, bool]:
        """Bytes of a tree that were read within a time, and whether that was all."""
        # Into a pipe: tar reads no file at all when its archive is /dev/null.
        with (
            subprocess.Popen(["tar", "-cf", "-", "-C", str(folder.parent), folder.name], stdout=subprocess.PIPE) as tar,
            subprocess.Popen(["wc", "-c"], stdin=tar.stdout, stdout=subprocess.PIPE) as count,
        ):
            assert tar.stdout is not None
            assert count.stdout is not None
            tar.stdout.close()
            code = _wait(tar, seconds, disk)
            if code:
                raise BenchFailed(f"tar of {folder} ended with {code}")
            return int(count.stdout.read()), code is not None


def rate(ran: Ran, flush_s: float, expected: int) -> tuple[float, str]:
    """Of a program that prints a line for each file."""
    note = "" if ran.finished else f"{ran.lines} files until its time was over"
    if expected and ran.finished and ran.lines < expected:
        raise BenchFailed(f"{ran.lines} files in place of {expected}")
    return ran.lines / (ran.seconds + flush_s), note


def _wait(process: "subprocess.Popen[bytes]", seconds: float, disk: DiskFile) -> int | None:
    """The return code of a process; None if it had to be killed, and then it is gone."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    try:
        process.wait(_STUCK_S)
    except subprocess.TimeoutExpired as error:
        # It waits in the kernel for an answer; without the disk, there is one.
        disk.kill()
        process.wait()
        raise BenchFailed("the disk did not answer any more") from error
    return None


def _door(system: System) -> str:
    return system.url or str(system.path)


def _is_empty(disk: DiskFile) -> bool:
    """Looked for at the start, where a file system has its tables, and at places all over the disk."""
    places = [0, *range(0, disk.size_bytes, disk.size_bytes // 64)]
    with disk.file.open("rb", buffering=0) as file:
        for place in places:
            file.seek(place)
            if any(file.read(64 * 1024)):
                return False
    return True


def _drop_page_cache() -> None:
    subprocess.run(["sync"], check=False)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")
