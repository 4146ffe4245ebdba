"""A backup of a guest, streamed into a bucket: through the mount that vzdump writes to, through the engine below it, and by
`rclone copyto`, to one radosgw in one run.

One rule: all get the same bytes, part size and number of parts at once, and each does its whole work, start included. rclone is
given what suits it best: it knows the size, and makes no digest of the file (--s3-disable-checksum); ours verify each part and
the object.
"""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median

from bench.peers.rclone_remote import RcloneRemote
from bench.processes import BenchFailed, cpu_seconds, descendants, memory_bytes, peak_memory_bytes
from bench.pve_node import PART_MIB, SPOOL_MIB, UPLOADS, Node
from bench.report import TableOf
from bench.sync import rclone_missing, rclone_version
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw, missing_binaries

MIB = 1024 * 1024
SAMPLE_S = 0.1
BUCKET = "backups"
RATIO_AIM = 0.8
MEMORY_MAX = 200 * MIB
# Room for what was deleted and not collected yet; deleted bytes are collected at once.
GATEWAY = """rgw_enable_ops_log = false
rgw_gc_obj_min_wait = 1
rgw_gc_processor_period = 2
[osd]
memstore_device_bytes = {room}
"""


@dataclass(frozen=True, slots=True)
class PvePlan:
    file_bytes: int
    repeats: int


FULL = PvePlan(5 * 1024 * MIB, 3)
QUICK = PvePlan(512 * MIB, 1)


@dataclass(frozen=True, slots=True)
class Backup:
    """One run. `peak_bytes`: the most resident memory of its process; `spool_bytes`: the most that lay in its spool
    directory."""

    writer: str
    bytes: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    spool_bytes: int

    @property
    def rate(self) -> float:
        """MiB a second."""
        return self.bytes / MIB / self.seconds


def missing() -> str:
    """Why nothing can be measured here; empty if it can."""
    gone = missing_binaries()
    return rclone_missing() or (f"needs {', '.join(gone)} (Debian: radosgw, ceph-mon, ceph-osd)" if gone else "")


class PveBench:
    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say

    def run(self, plan: PvePlan) -> list[Backup]:
        """BenchFailed where a program fails, or leaves other bytes than it was given."""
        source = self._directory / "backup.vma"
        self._say(f"pve: a file of {plan.file_bytes // MIB:,} MiB")
        fill(source, plan.file_bytes)
        server = Radosgw(self._directory / "radosgw", gateway=GATEWAY.format(room=4 * plan.file_bytes))
        try:
            control = S3Control(server.endpoint())
            control.create_bucket(BUCKET)
            control.close()
            url = f"http://127.0.0.1:{server.http_port}"
            self._node = Node.made(self._directory, url, BUCKET, ACCESS_KEY, SECRET_KEY)
            self._remote = RcloneRemote.at(self._directory, url, ACCESS_KEY, SECRET_KEY, "Ceph")
            self._bucket = S3Bucket(server.endpoint(), BUCKET)
            found = []
            writers = {"rclone copyto": self._rclone, "engine": self._engine, "mount": self._mount}
            for number in range(plan.repeats):
                for name, write in writers.items():
                    self._say(f"pve: {name}, {number + 1} of {plan.repeats}")
                    found.append(write(source, f"dump/vzdump-qemu-{100 + number}-2026_01_01-00_00_00.vma"))
                    self._look(source, found[-1])
            self._bucket.close()
        finally:
            server.stop()
            source.unlink()
        return found

    def _rclone(self, source: Path, key: str) -> Backup:
        words = ["copyto", "--s3-disable-checksum", "--s3-chunk-size", f"{PART_MIB}Mi"]
        words += ["--s3-upload-concurrency", str(UPLOADS), str(source), f"bench:{BUCKET}/{key}"]
        return self._watched("rclone copyto", source, self._remote.words(words), self._remote.environment)

    def _engine(self, source: Path, key: str) -> Backup:
        return self._watched("engine", source, self._node.writer(source, key), self._node.environment)

    def _watched(self, name: str, source: Path, words: Sequence[str], environment: Mapping[str, str]) -> Backup:
        log, begin = self._directory / "pve.log", time.monotonic()
        with log.open("wb") as output:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
        watch = _Watch(process.pid, self._node.state)
        status = process.wait()
        seconds = time.monotonic() - begin
        watch.stop()
        if status:
            raise BenchFailed(f"{name} ended with {status}:\n{log.read_text(errors='replace')[-2000:]}")
        return Backup(name, source.stat().st_size, seconds, watch.cpu_s, watch.peak_bytes, watch.spool_bytes)

    def _mount(self, source: Path, key: str) -> Backup:
        """As vzdump does it: written as .dat, and renamed; the rename returns when the object is verified. The process is
        there already, as on a node; its memory is what it had at most meanwhile."""
        with self._node.mounted() as process:
            name = self._node.mountpoint / key
            before = sum(map(cpu_seconds, descendants(process.pid)))
            watch, begin = _Watch(process.pid, self._node.state), time.monotonic()
            script = 'dd if="$0" of="$1" bs=1M status=none && mv "$1" "$2"'
            words = ["sh", "-c", script, str(source), str(name.with_suffix(".dat")), str(name)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            seconds = time.monotonic() - begin
            watch.stop()
            if done.returncode:
                raise BenchFailed(f"the mount: {done.stderr}\n{self._node.said()}")
            cpu_s = watch.cpu_s - before
            return Backup("mount", source.stat().st_size, seconds, cpu_s, watch.peak_bytes, watch.spool_bytes)

    def _look(self, source: Path, backup: Backup) -> None:
        """The object is the file: its size, its first and last bytes; then it goes, so that the next finds the same room."""
        (key,) = [one.decode() for one in self._bucket.list_page(prefix="dump/").keys if one.endswith(b".vma")]
        size = source.stat().st_size
        with source.open("rb") as file:
            head = file.read(MIB)
            file.seek(size - MIB)
            tail = file.read(MIB)
        same = self._bucket.head(key).size == size
        same = same and self._bucket.get(key, offset=0, length=MIB) == head
        if not same or self._bucket.get(key, offset=size - MIB, length=MIB) != tail:
            raise BenchFailed(f"{backup.writer}: {key} is not what was written")
        for one in self._bucket.list_page().keys:
            self._bucket.delete(one.decode())


class _Watch:
    """Memory, processor time and spool of a process, sampled until it is told to stop."""

    def __init__(self, pid: int, state: Path) -> None:
        self.peak_bytes = self.spool_bytes = 0
        self.cpu_s = 0.0
        self._pid = pid
        self._state = state
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            with suppress(OSError, ValueError):
                self.peak_bytes = max(self.peak_bytes, peak_memory_bytes(self._pid), memory_bytes(self._pid))
                self.cpu_s = sum(map(cpu_seconds, descendants(self._pid)))
                self.spool_bytes = max(self.spool_bytes, _spooled(self._pid, self._state))
            if self._over.wait(SAMPLE_S):
                return


def _spooled(pid: int, state: Path) -> int:
    """Bytes on disk of the files below `state` that a process has open; those of a spool have no name."""
    total, seen = 0, set()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if os.readlink(one).startswith(str(state)) and (found := one.stat()).st_ino not in seen:
                seen.add(found.st_ino)
                total += found.st_blocks * 512
    return total


def fill(path: Path, size: int) -> None:
    """Bytes that do not compress; the same 16 MiB again and again, each at another offset of a part."""
    piece = Random(7).randbytes(16 * MIB - 4096)
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(piece[: size - file.tell()])


def medians(found: Sequence[Backup]) -> dict[str, Backup]:
    """The run of each writer whose rate is the median."""
    names = dict.fromkeys(one.writer for one in found)
    return {
        name: min(
            (one for one in found if one.writer == name),
            key=lambda one: abs(one.rate - median(other.rate for other in found if other.writer == name)),
        )
        for name in names
    }


def tables(found: Sequence[Backup]) -> list[TableOf]:
    middle = medians(found)
    theirs = middle["rclone copyto"].rate
    rows = [
        [
            name,
            f"{one.rate:,.0f}",
            f"{one.rate / theirs:.2f}",
            f"{one.cpu_s:.1f}",
            f"{max(other.peak_bytes for other in found if other.writer == name) / MIB:,.0f}",
            f"{max(other.spool_bytes for other in found if other.writer == name) / MIB:,.0f}",
        ]
        for name, one in middle.items()
    ]
    size = next(iter(middle.values())).bytes // MIB
    title = (
        f"PVE: a backup of {size:,} MiB to one radosgw, {UPLOADS} parts of {PART_MIB} MiB at once; {rclone_version()}"
    )
    return [(title, ["written by", "MiB/s", "x rclone", "CPU s", "peak memory MiB", "spool MiB"], rows)]


def lines(found: Sequence[Backup]) -> list[str]:
    middle = medians(found)
    theirs = middle["rclone copyto"].rate
    told = []
    for name in ("engine", "mount"):
        peak = max(one.peak_bytes for one in found if one.writer == name)
        spool = max(one.spool_bytes for one in found if one.writer == name)
        ratio = middle[name].rate / theirs
        told.append(
            f"{name}: {ratio:.2f} x rclone (aim {RATIO_AIM}), memory {peak / MIB:.0f} MiB (under {MEMORY_MAX // MIB}),"
            f" spool {spool / MIB:.0f} of {SPOOL_MIB} MiB"
        )
    return told


def document(found: Sequence[Backup]) -> list[dict[str, object]]:
    return [asdict(one) | {"mib_per_s": one.rate} for one in found]
