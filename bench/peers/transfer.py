"""The plugin's transfers beside rclone: a backup up, a restore down, reading through a mount.

One rule: all move the same bytes in parts of one size, as many at once, and each does its whole work: a program from its start
to its exit, a mount from the first byte until the object is there. What came out is looked at each time.

rclone gets what suits it best: copyto knows the size, and no digest of the file is made (--s3-disable-checksum). rcat does what
vzdump needs: a stream whose size nobody knows. Ours verify each part, and the object when it is whole; a restore too, and it is
on the disk when it ends.
"""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from crc32c import crc32c

from bench.peers.context import Context
from bench.peers.figures import CPU_S_PER_GIB, PEAK_MIB, REQUESTS, Figure, Part
from bench.peers.measuring import MIB, Taken, around, command, middle
from bench.peers.names import MIBS, OPS
from bench.peers.rclone_remote import RcloneRemote
from bench.processes import BenchFailed
from bench.pve import BUCKET, GATEWAY, fill
from bench.pve_node import COMMAND, PART_MIB, STORAGE, UPLOADS, Node, wait_for_mount
from bench.store import Client
from bench.sync import rclone_missing
from plugin.mount.process import unmount
from s3core.endpoint import Credentials, Endpoint
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, missing_binaries

NAME: Final = "transfer"
TITLE: Final = "Plugin: backups up, restores down, reading through a mount"
COPYTO, RCAT, RCLONE_MOUNT = "rclone copyto", "rclone rcat", "rclone mount"
COPYTO_FSYNC: Final = "rclone copyto and fsync"
ENGINE, MOUNT, DOWNLOADED = "plugin engine", "plugin mount", "pve-s3 download"
UPLOAD: Final = "upload"
DOWNLOAD: Final = "download to a file"
READ: Final = "read in order through a mount"
RANGED: Final = "64 KiB reads at random places through a mount"
TO_RADOSGW: Final = ", radosgw"
"""Behind a load's name: a real server, which takes from the same processors."""
LATENCIES_MS: Final = (0, 20)
READ_BYTES: Final = 64 * 1024
RANGED_SECONDS_MAX: Final = 8.0
GIB: Final = 1024 * MIB


@dataclass(frozen=True, slots=True)
class TransferPlan:
    """`reads`: how many at random places; `real`: on radosgw too, where it is installed."""

    bytes: int
    reads: int
    real: bool = True


FULL: Final = TransferPlan(1024 * MIB, 200)
QUICK: Final = TransferPlan(256 * MIB, 50, real=False)


@dataclass(frozen=True, slots=True)
class Place:
    """One server, as each program is told of it. `store`: who counts requests; None where nobody does."""

    url: str
    access_key: str
    secret_key: str
    provider: str
    store: Client | None
    bucket: S3Bucket


@dataclass(slots=True)
class _Bench:
    """Programs, mounts and the file that is moved, on one server."""

    place: Place
    directory: Path
    node: Node
    remote: RcloneRemote
    source: Path
    mount_pid: int = 0
    rclone_pid: int = 0
    keys: Iterator[str] = field(default_factory=lambda: map(_key, range(100, 100_000)))

    # --- up ------------------------------------------------------------------------------------------------------

    def copyto(self, key: str) -> Taken:
        return self.remote.run(["copyto", *_PARTS, str(self.source), f"bench:{BUCKET}/{key}"], self.place.store)

    def rcat(self, key: str) -> Taken:
        # A file on standard input would tell its size; a pipe does not, and nor does vzdump.
        with subprocess.Popen(["cat", str(self.source)], stdout=subprocess.PIPE) as stream:
            assert stream.stdout is not None
            return self.remote.run(["rcat", *_PARTS, f"bench:{BUCKET}/{key}"], self.place.store, stdin=stream.stdout)

    def engine(self, key: str) -> Taken:
        return command(
            self.node.writer(self.source, key), self.node.environment, self.directory / "up.log", self.place.store
        )

    def through_mount(self, key: str) -> Taken:
        """As vzdump does it: written as .dat, and renamed; the rename returns when the object is verified."""
        name = self.node.mountpoint / key
        script = 'dd if="$0" of="$1" bs=1M status=none && mv "$1" "$2"'
        words = ["sh", "-c", script, str(self.source), str(name.with_suffix(".dat")), str(name)]
        return around(self.mount_pid, lambda: _asked(words, self.node.said), self.place.store)

    def through_rclone_mount(self, key: str) -> Taken:
        """Written and closed; rclone renames by a copy in the bucket, which it is spared here."""
        name = self.rclone_mountpoint / key
        words = ["dd", f"if={self.source}", f"of={name}", "bs=1M", "status=none"]
        return around(self.rclone_pid, lambda: _asked(words, lambda: ""), self.place.store)

    # --- down ----------------------------------------------------------------------------------------------------

    def copied_down(self, key: str, target: Path) -> Taken:
        return self.remote.run(self._down(key, target), self.place.store)

    def copied_down_durably(self, key: str, target: Path) -> Taken:
        """With an fsync of the file behind it, as ours does."""
        words = ["sh", "-c", 'file=$1; shift; "$@" && sync "$file"', "sh", str(target)]
        words += self.remote.words(self._down(key, target))
        return command(words, self.remote.environment, self.directory / "down.log", self.place.store)

    def _down(self, key: str, target: Path) -> list[str]:
        words = ["copyto", "--multi-thread-streams", str(UPLOADS), "--multi-thread-cutoff", "64Mi"]
        return [*words, f"bench:{BUCKET}/{key}", str(target)]

    def downloaded(self, key: str, target: Path) -> Taken:
        words = [*COMMAND, "download", STORAGE, f"backup/{Path(key).name}", str(target), "--quiet"]
        return command(words, self.node.environment, self.directory / "down.log", self.place.store)

    @property
    def rclone_mountpoint(self) -> Path:
        return self.directory / "rclone-mnt"

    def upload(self, write: Callable[[str], Taken]) -> tuple[str, Taken]:
        """One run, looked at. The key it lies under."""
        key = next(self.keys)
        taken = write(key)
        self._look(key)
        return key, taken

    def _look(self, key: str) -> None:
        """The object is the file: its size, its first and its last bytes."""
        size, bucket = self.source.stat().st_size, self.place.bucket
        with self.source.open("rb") as file:
            head = file.read(MIB)
            file.seek(size - MIB)
            tail = file.read(MIB)
        # rclone's mount says that a file is closed before its upload is.
        give_up = time.monotonic() + 30
        while not any(one.decode() == key for one in bucket.list_page(prefix=key).keys):
            if time.monotonic() > give_up:
                raise BenchFailed(f"{key} did not come")
            time.sleep(0.05)
        same = bucket.head(key).size == size and bucket.get(key, offset=0, length=MIB) == head
        if not same or bucket.get(key, offset=size - MIB, length=MIB) != tail:
            raise BenchFailed(f"{key} is not what was written")


_PARTS: Final = (
    "--s3-disable-checksum",
    *("--s3-chunk-size", f"{PART_MIB}Mi"),
    *("--s3-upload-concurrency", str(UPLOADS)),
    *("--streaming-upload-cutoff", "0"),
)


def measure(context: Context) -> Part:
    """The part of the run."""
    return transfers(context, QUICK if context.quick else FULL)


def transfers(context: Context, plan: TransferPlan) -> Part:
    """What is not installed is told in `missing`."""
    begin = time.monotonic()
    figures: list[Figure] = []
    missing = [gone] if (gone := rclone_missing()) else []
    if not Path("/dev/fuse").exists():
        missing.append("mounts: there is no /dev/fuse here")
    directory = context.directory / NAME
    directory.mkdir(parents=True)
    source = directory / "backup.vma"
    fill(source, plan.bytes)
    try:
        latencies = [one for one in LATENCIES_MS if one in context.latencies_ms] or list(context.latencies_ms[:1])
        # The distance that people have first, should the time not do for both.
        latencies.reverse()
        place = _of_store(context.store)
        figures += _measured(context, place, directory / "store", source, latencies, plan.reads, missing)
        context.store.remove(BUCKET)
        if not plan.real:
            missing.append("radosgw: only in a run that is not quick")
        elif gone_binaries := missing_binaries():
            missing.append(f"radosgw: needs {', '.join(gone_binaries)} (Debian: radosgw, ceph-mon, ceph-osd)")
        elif not context.no_time("radosgw", missing):
            with _radosgw(directory / "radosgw", plan.bytes) as real:
                figures += _measured(context, real, directory / "real", source, [0], plan.reads, missing, TO_RADOSGW)
    finally:
        context.store.set_latency(0)
        shutil.rmtree(directory)
    notes = [
        f"{plan.bytes // MIB:,} MiB in parts of {PART_MIB} MiB, {UPLOADS} at once; rclone with --s3-disable-checksum: it"
        " makes no digest of the file, and nobody compares the object with it",
        "ours compare each part's MD5 and the object's ETag after the completion; a download is compared and fsynced",
        "processor time of a mount is its process's; dd's and the kernel's side of whoever writes or reads is not in it",
    ]
    return Part(NAME, TITLE, figures, notes=notes, missing=missing, seconds=time.monotonic() - begin)


def _measured(
    context: Context,
    place: Place,
    directory: Path,
    source: Path,
    latencies: Sequence[int],
    reads: int,
    missing: list[str],
    suffix: str = "",
) -> list[Figure]:
    directory.mkdir()
    node = Node.made(directory, place.url, BUCKET, place.access_key, place.secret_key)
    remote = RcloneRemote.at(directory, place.url, place.access_key, place.secret_key, place.provider)
    bench = _Bench(place, directory, node, remote, source)
    asked = set(context.systems)
    figures: list[Figure] = []

    def wanted(system: str) -> bool:
        there = not system.startswith("rclone") or not rclone_missing()
        return there and (not asked or system in asked) and ("mount" not in system or Path("/dev/fuse").exists())

    with _mounts(bench, ours=wanted(MOUNT), rclone=wanted(RCLONE_MOUNT)):
        for latency in latencies:
            if context.no_time(f"{latency} ms{suffix}", missing):
                continue
            if place.store is not None:
                place.store.set_latency(latency)
            # Ours last: what its own mount has written is what is read, since it lists the bucket only now and then.
            writers = {
                COPYTO: bench.copyto,
                RCAT: bench.rcat,
                RCLONE_MOUNT: bench.through_rclone_mount,
                ENGINE: bench.engine,
                MOUNT: bench.through_mount,
            }
            runs: dict[str, list[Taken]] = {}
            key = ""
            for _ in range(max(1, context.repeats)):
                for system, write in writers.items():
                    if wanted(system):
                        context.say(f"transfer: upload by {system}, {latency} ms{suffix}")
                        last, key = key, ""
                        key, taken = bench.upload(write)
                        runs.setdefault(system, []).append(taken)
                        if last:
                            place.bucket.delete(last)
            figures += [_rate(UPLOAD + suffix, system, latency, source, found) for system, found in runs.items()]
            if not key:
                key, _ = bench.upload(bench.engine)
            figures += _down(context, bench, key, latency, reads, suffix, wanted)
            place.bucket.delete(key)
    return figures


def _down(
    context: Context, bench: _Bench, key: str, latency: int, reads: int, suffix: str, wanted: Callable[[str], bool]
) -> list[Figure]:
    figures: list[Figure] = []
    for system, fetch in (
        (COPYTO, bench.copied_down),
        (COPYTO_FSYNC, bench.copied_down_durably),
        (DOWNLOADED, bench.downloaded),
    ):
        if not wanted(system):
            continue
        runs = []
        for _ in range(max(1, context.repeats)):
            context.say(f"transfer: download by {system}, {latency} ms{suffix}")
            target = bench.directory / "came.vma"
            runs.append(fetch(key, target))
            _same(bench.source, target)
            target.unlink()
        figures.append(_rate(DOWNLOAD + suffix, system, latency, bench.source, runs))
    mounts = (
        (MOUNT, bench.node.mountpoint, bench.mount_pid),
        (RCLONE_MOUNT, bench.rclone_mountpoint, bench.rclone_pid),
    )
    for system, mountpoint, pid in mounts:
        if not wanted(system):
            continue
        context.say(f"transfer: read through {system}, {latency} ms{suffix}")
        path = mountpoint / key
        _wait_for_file(path)
        runs = []
        for _ in range(max(1, context.repeats)):
            _drop_caches()
            runs.append(around(pid, partial(_read_through, path, bench.source), bench.place.store))
        figures.append(_rate(READ + suffix, system, latency, bench.source, runs))
        _drop_caches()
        figures.append(_ranged(system, path, pid, latency, suffix, bench, reads))
    return figures


def _rate(load: str, system: str, latency: int, source: Path, runs: Sequence[Taken]) -> Figure:
    size = source.stat().st_size
    facts = middle(runs)
    facts[CPU_S_PER_GIB] = facts.pop("cpu_s") * GIB / size
    return Figure(load, system, latency, MIBS, tuple(size / MIB / run.seconds for run in runs), facts=facts)


def _ranged(system: str, path: Path, pid: int, latency: int, suffix: str, bench: _Bench, reads: int) -> Figure:
    """Reads one at a time, each compared; as many as asked for, or what a few seconds take."""
    drawn = random.Random(5)
    size, done = bench.source.stat().st_size, 0

    def read() -> None:
        nonlocal done
        until = time.monotonic() + RANGED_SECONDS_MAX
        with path.open("rb", buffering=0) as file, bench.source.open("rb", buffering=0) as source:
            while done < reads and time.monotonic() < until:
                offset = drawn.randrange((size - READ_BYTES) // 4096) * 4096
                if os.pread(file.fileno(), READ_BYTES, offset) != os.pread(source.fileno(), READ_BYTES, offset):
                    raise BenchFailed(f"{path} at {offset:,} has other bytes than were written")
                done += 1

    taken = around(pid, read, bench.place.store)
    facts = taken.facts()
    told = {
        "cpu_us": facts["cpu_s"] * 1e6 / done,
        PEAK_MIB: facts[PEAK_MIB],
        **(
            {REQUESTS: facts[REQUESTS], "down_per_byte": facts["down_mib"] * MIB / (done * READ_BYTES)}
            if REQUESTS in facts
            else {}
        ),
    }
    return Figure(RANGED + suffix, system, latency, OPS, (done / taken.seconds,), facts=told)


def _read_through(path: Path, source: Path) -> None:
    """Every byte, a MiB at a time; BenchFailed where they are not the source's."""
    buffer = bytearray(MIB)
    checksum = total = 0
    with path.open("rb", buffering=0) as file, memoryview(buffer) as view:
        while count := file.readinto(buffer):
            checksum = crc32c(view[:count], checksum)
            total += count
    if (total, checksum) != _summed(source):
        raise BenchFailed(f"{path} has other bytes than were written")


_SUMS: dict[Path, tuple[int, int]] = {}


def _summed(source: Path) -> tuple[int, int]:
    """Size and CRC-32C of a file that does not change any more."""
    if source not in _SUMS:
        checksum = 0
        with source.open("rb") as file:
            while piece := file.read(MIB):
                checksum = crc32c(piece, checksum)
        _SUMS[source] = source.stat().st_size, checksum
    return _SUMS[source]


def _same(source: Path, target: Path) -> None:
    done = subprocess.run(["cmp", str(source), str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchFailed(f"the download is not the file: {done.stdout}{done.stderr}")


def _asked(words: Sequence[str], said: Callable[[], str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchFailed(f"{words[0]}: {done.stderr}\n{said()}")


def _wait_for_file(path: Path) -> None:
    """A listing that a mount keeps for a while does not have the newest yet."""
    give_up = time.monotonic() + 60
    while not path.exists():
        if time.monotonic() > give_up:
            raise BenchFailed(f"{path} does not show up")
        time.sleep(0.1)


def _drop_caches() -> None:
    with suppress(OSError):  # not root, or not ours to drop: the mounts keep no pages of a file opened anew
        Path("/proc/sys/vm/drop_caches").write_text("1\n")


@contextmanager
def _mounts(bench: _Bench, *, ours: bool, rclone: bool) -> Iterator[None]:
    with _ours_mounted(bench, ours), _rclone_mounted(bench, rclone):
        yield


@contextmanager
def _ours_mounted(bench: _Bench, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with bench.node.mounted() as process:
        bench.mount_pid = process.pid
        yield


@contextmanager
def _rclone_mounted(bench: _Bench, wanted: bool) -> Iterator[None]:
    """Without its cache on disk: what is written is streamed, as rcat does, and what is read is fetched as it is read."""
    if not wanted:
        yield
        return
    log = bench.directory / "rclone-mount.log"
    bench.rclone_mountpoint.mkdir()
    words = ["mount", f"bench:{BUCKET}", str(bench.rclone_mountpoint), "--vfs-cache-mode", "off", *_PARTS]
    words += ["--dir-cache-time", "1s"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            bench.remote.words(words),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(bench.remote.environment),
        )
    try:
        # The bucket has a folder from the first upload on; before, the mount point itself tells.
        wait_for_mount(process, bench.rclone_mountpoint, log)
        give_up = time.monotonic() + 30
        while not os.path.ismount(bench.rclone_mountpoint):
            if process.poll() is not None or time.monotonic() > give_up:
                raise BenchFailed(f"rclone mounted nothing:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        (bench.rclone_mountpoint / "dump").mkdir(exist_ok=True)
        bench.rclone_pid = process.pid
        yield
    finally:
        with suppress(OSError):
            unmount(bench.rclone_mountpoint)
        process.terminate()
        process.wait(30)


def _of_store(store: Client) -> Place:
    url = f"http://127.0.0.1:{store.port}"
    endpoint = Endpoint(
        name="bench",
        url=url,
        region="us-east-1",
        addressing="path",
        credentials=Credentials("bench", "bench", source="the benchmark"),
        preset="ceph",
        if_match_quoted=False,
    )
    return Place(url, "bench", "bench", "Other", store, S3Bucket(endpoint, BUCKET))


@contextmanager
def _radosgw(directory: Path, size: int) -> Iterator[Place]:
    server = Radosgw(directory, gateway=GATEWAY.format(room=6 * size))
    try:
        control = S3Control(server.endpoint())
        control.create_bucket(BUCKET)
        control.close()
        bucket = S3Bucket(server.endpoint(), BUCKET)
        yield Place(f"http://127.0.0.1:{server.http_port}", ACCESS_KEY, SECRET_KEY, "Ceph", None, bucket)
        bucket.close()
    finally:
        server.stop()


def _key(number: int) -> str:
    return f"dump/vzdump-qemu-{number}-2026_01_01-00_00_00.vma"
