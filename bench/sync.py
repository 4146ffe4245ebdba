"""What changed in a bucket: cowsync and rclone (Debian's package) ask the same server, in turn, in one run.

One rule: each is given what suits it best and does its whole work, start included. rclone compares two listings; cowsync one
listing with what it remembers. Both are asked for the differences, and an answer that is not what the server planted
fails the run. Keys per second are keys of the source, whatever else was listed.
"""

import os
import re
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.lister import READY, Client, Counts, Planted, planted
from bench.mirror import NAME, bodies, configure, mirrored
from bench.processes import BenchFailed, cpu_seconds, descendants, end, shared_out_bytes, start, wait_for_line
from bench.report import DASH, TableOf
from cowsync.base.difference import differences
from cowsync.base.segment import Segment, SegmentWriter
from cowsync.changes import Op
from cowsync.plan.plan_file import find_plan
from cowsync.scan.listing import relative
from s3core.exit_codes import ExitCode
from s3core.listing import parse_page

MIB = 1024 * 1024
PER_THOUSAND = 1
CHECKERS = 16
SAMPLE_S = 0.1
CEILING_S = 2.0
STAGE_KEYS = 200_000
STAGE_TIMES = 3
MEMORY_MAX = 256 * MIB
RATIO_AIM = 10
COMMAND = (sys.executable, "-c", "from cowsync.cli import main; main()")
"""`cowsync`, whether or not it is installed on the path."""
RCLONE_LOADS = (
    ("check", "--fast-list"),
    ("check",),
    ("sync", "--dry-run", "--checksum", "--fast-list"),
    ("sync", "--dry-run", "--checksum"),
)
"""`check` compares sizes and MD5 out of both listings, and `sync --checksum` does the same: neither needs a HEAD. With
--fast-list each side is listed as a whole, without it folder by folder, several at once."""


@dataclass(frozen=True, slots=True)
class SyncPlan:
    """`objects`: keys that cowsync scans; `rclone_objects`: keys that rclone can hold, which cowsync scans too."""

    objects: int
    rclone_objects: int


FULL = SyncPlan(10_000_000, 500_000)
QUICK = SyncPlan(1_000_000, 100_000)


@dataclass(frozen=True, slots=True)
class Found:
    """One run of one program. `cpu_s` of all its processes, `server_cpu_s` what the server spent on it; `peak_bytes` the
    most memory that all of them held at one time."""

    program: str
    version: str
    objects: int
    seconds: float
    counts: Counts
    differences: int
    cpu_s: float
    server_cpu_s: float
    peak_bytes: int
    latency_ms: int = 0

    @property
    def rate(self) -> float:
        return self.objects / self.seconds


@dataclass(frozen=True, slots=True)
class Stage:
    """What one step of a scan costs one processor, in microseconds of CPU for each key."""

    name: str
    us_per_key: float


@dataclass(frozen=True, slots=True)
class Synced:
    found: list[Found]
    stages: list[Stage]
    base_bytes_per_row: float
    without_rclone: str
    lister_processes: int
    lister_ceiling: float
    """Keys a second that it sends to one plain client."""


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    seconds: float
    cpu_s: float
    peak_bytes: int
    output: str


def run_watched(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Ran:
    """Run a program to its end and see what all its processes together hold at most, sampled."""
    peak = 0
    over = threading.Event()
    before, begin = _children_cpu_s(), time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environment)
        )

    def sample() -> None:
        nonlocal peak
        while not over.wait(SAMPLE_S):
            peak = max(peak, sum(map(shared_out_bytes, descendants(process.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        status = process.wait()
        seconds = time.monotonic() - begin
    finally:
        over.set()
        sampler.join()
        if process.poll() is None:
            process.kill()
            process.wait()
    return Ran(status, seconds, _children_cpu_s() - before, peak, log.read_text(errors="replace"))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Lister:
    """The server, in processes of its own."""

    def __init__(self, directory: Path, processes: int) -> None:
        log = directory / "lister.log"
        self._process = start([sys.executable, "-m", "bench.lister", str(processes)], log)
        self.client = Client(int(wait_for_line(log, READY, self._process).split()[-1]))

    def cpu_s(self) -> float:
        return sum(map(cpu_seconds, descendants(self._process.pid)))

    def close(self) -> None:
        end(self._process)


def rclone_missing() -> str:
    """Why rclone cannot be asked; empty if it can."""
    return "" if shutil.which("rclone") else "rclone is not installed (Debian's package rclone)"


def rclone_version() -> str:
    said = subprocess.run(["rclone", "version"], capture_output=True, text=True, check=True).stdout
    return said.splitlines()[0].removeprefix("rclone ")


def compiled(directory: Path) -> dict[str, str]:
    """An environment in which all modules are compiled already, as where they are installed."""
    environment = {
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPYCACHEPREFIX": str(directory / "compiled"),
    }
    for words in (("plan", "--help"), ("run", "--help")):
        subprocess.run([*COMMAND, *words], env=environment, stdout=subprocess.DEVNULL, check=True)
    return environment


class SyncBench:
    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say
        self._log = directory / "sync.log"
        self._environment = compiled(directory)
        # A quarter of the processors: a server on the same machine takes from those it serves.
        self._lister_processes = max(1, (os.cpu_count() or 2) // 4)

    def run(self, plan: SyncPlan) -> Synced:
        """BenchFailed when a program fails or finds other differences than there are."""
        without_rclone = rclone_missing()
        self._say(f"sync: cost of each step over {STAGE_KEYS:,} keys")
        stages, bytes_per_row = measure_stages()
        lister = self.lister()
        found = []
        try:
            ceiling = lister.client.ceiling(CEILING_S)
            if without_rclone:
                self._say(f"sync: rclone is left out: {without_rclone}")
            else:
                found += self.rclone(lister, plan.rclone_objects)
            processors = max(2, os.cpu_count() or 2)
            found += self.cowsync(lister, plan.rclone_objects, (processors,))
            found += self.cowsync(lister, plan.objects, (1, processors))
        finally:
            lister.close()
        return Synced(found, stages, bytes_per_row, without_rclone, self._lister_processes, ceiling)

    def lister(self) -> Lister:
        return Lister(self._directory, self._lister_processes)

    def _measured(
        self,
        lister: Lister,
        program: str,
        version: str,
        objects: int,
        run: Callable[[], Ran],
        count: Callable[[Ran], int],
        latency_ms: int,
    ) -> Found:
        self._say(f"sync: {program}, {objects:,} keys" + (f", {latency_ms} ms" if latency_ms else ""))
        lister.client.set_latency(latency_ms)
        before, cpu = lister.client.counts(), lister.cpu_s()
        ran = run()
        server_cpu_s = lister.cpu_s() - cpu
        counts = lister.client.counts().since(before)
        differences_found = count(ran)
        if counts.others:
            raise BenchFailed(f"{program} asked for something that the lister does not know:\n{ran.output[-2000:]}")
        return Found(
            program,
            version,
            objects,
            ran.seconds,
            counts,
            differences_found,
            ran.cpu_s,
            server_cpu_s,
            ran.peak_bytes,
            latency_ms,
        )

    # --- rclone --------------------------------------------------------------------------------------------

    def rclone(
        self,
        lister: Lister,
        objects: int,
        loads: Sequence[tuple[str, ...]] = RCLONE_LOADS,
        latencies_ms: Sequence[int] = (0,),
    ) -> list[Found]:
        """Each load at each latency of the lister."""
        lister.client.plant(PER_THOUSAND)
        config = self._directory / "rclone.conf"
        settings = {
            "type": "s3",
            "provider": "Other",
            "endpoint": lister.client.url,
            "access_key_id": "bench",
            "secret_access_key": "bench",
            "list_version": "2",
            "list_url_encode": "true",
            "no_check_bucket": "true",
            "no_head": "true",
        }
        config.write_text("[bench]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items()))
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._directory)}
        want = dict.fromkeys(Planted, 0)
        for kind, _ in planted(objects, PER_THOUSAND):
            want[kind] += 1
        found = []
        for load in loads:
            name = " ".join(("rclone", *(word for word in load if word != "--dry-run")))
            words = ["rclone", *load, "--config", str(config), "--checkers", str(CHECKERS), "--stats", "0"]
            words += [f"bench:source-{objects}", f"bench:mirror-{objects}"]

            def ran(words: list[str] = words) -> Ran:
                return run_watched(words, environment, self._log)

            def count(ran: Ran, name: str = name) -> int:
                differing = rclone_differences(ran.output)
                if differing != want:
                    raise BenchFailed(f"{name} found {differing}, there is {want}:\n{ran.output[-2000:]}")
                return sum(differing.values())

            found += [
                self._measured(lister, name, rclone_version(), objects, ran, count, latency) for latency in latencies_ms
            ]
        return found

    # --- cowsync -------------------------------------------------------------------------------------------

    def cowsync(
        self,
        lister: Lister,
        objects: int,
        scanners: Sequence[int],
        latencies_ms: Sequence[int] = (0,),
        repeats: int = 1,
    ) -> list[Found]:
        """With each number of processes at each latency of the lister. One base is made for all, and removed."""
        folder = self._directory / f"mirror-{objects}"
        folder.mkdir()
        self._say(f"sync: make the base of {objects:,} keys")
        lister.client.set_latency(0)
        config = configure(folder, lister.client.port, objects, max(scanners))
        made = run_watched([sys.executable, "-m", "bench.mirror", str(folder)], self._environment, self._log)
        if made.status:
            raise BenchFailed(f"the base of {objects:,} keys was not made:\n{made.output[-2000:]}")
        lister.client.plant(PER_THOUSAND)
        want = [(_OPS[kind], key) for kind, key in planted(objects, PER_THOUSAND)]

        def count(ran: Ran) -> int:
            if ran.status != ExitCode.FINDING:
                raise BenchFailed(f"cowsync plan ended with {ran.status}:\n{ran.output[-2000:]}")
            digest = re.findall(r'"digest": "([0-9a-f]{64})"', ran.output)
            lines = [(line.op, line.key) for line in find_plan(folder / "plans", digest[0])]
            if lines != want:
                wrong = next((pair for pair in zip(lines, want, strict=False) if pair[0] != pair[1]), None)
                raise BenchFailed(
                    f"cowsync found {len(lines)} differences, there are {len(want)}; first wrong: {wrong}"
                )
            return len(lines)

        found = []
        for processes in scanners:
            name = f"cowsync plan, {processes} process{'es' if processes > 1 else ''}"

            def ran(processes: int = processes) -> Ran:
                configure(folder, lister.client.port, objects, processes)
                words = [*COMMAND, "plan", NAME, "--json", "--config", str(config)]
                return run_watched(words, self._environment, self._log)

            for latency in [latency for latency in latencies_ms for _ in range(repeats)]:
                found.append(self._measured(lister, name, "", objects, ran, count, latency))
                if found[-1].counts.heads:
                    raise BenchFailed(f"{name} sent {found[-1].counts.heads} HEAD requests")
        shutil.rmtree(folder)
        return found


_OPS = {Planted.MODIFIED: Op.MODIFY, Planted.REMOVED: Op.VANISH, Planted.ADDED: Op.ADD}
_RCLONE_LINES = {
    Planted.MODIFIED: re.compile(r"ERROR : data/\S+\.bin: (?:\S+ differ|sizes differ)"),
    Planted.REMOVED: re.compile(r"ERROR : data/\S+\.bin: file not in S3 bucket source|: Skipped delete as --dry-run"),
    Planted.ADDED: re.compile(r"ERROR : data/\S+\.new: file not in S3 bucket mirror|\.new: Skipped copy as --dry-run"),
}
_RCLONE_COPIES = re.compile(r"\.bin: Skipped copy as --dry-run")


def rclone_differences(output: str) -> dict[Planted, int]:
    """What rclone says on its log, one line for each object."""
    counts = {kind: len(line.findall(output)) for kind, line in _RCLONE_LINES.items()}
    counts[Planted.MODIFIED] += len(_RCLONE_COPIES.findall(output))
    return counts


# --- stages --------------------------------------------------------------------------------------------------


def measure_stages() -> tuple[list[Stage], float]:
    """The steps of a scan one by one, on what the lister sends, and the bytes that a row takes in the base."""
    now = list(bodies(STAGE_KEYS, PER_THOUSAND))
    known = list(mirrored(STAGE_KEYS))
    seen = [relative(parse_page(body), b"") for body in now]

    def write() -> bytes:
        writer = SegmentWriter()
        for rows in known:
            writer.add(rows)
        return writer.finish()[0]

    segment = Segment(write(), "the benchmark's segment")
    decoded = list(segment.read())
    steps: list[tuple[str, Callable[[], object]]] = [
        ("parse a page of the listing", lambda: [parse_page(body) for body in now]),
        ("decode the base", lambda: list(segment.read())),
        ("compare the two", lambda: list(differences(decoded, seen))),
        ("write a base", write),
    ]
    return [Stage(name, _best_us(step)) for name, step in steps], len(segment.data) / STAGE_KEYS


def _best_us(step: Callable[[], object]) -> float:
    times = []
    for _ in range(STAGE_TIMES):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    return min(times) * 1e6 / STAGE_KEYS


# --- report --------------------------------------------------------------------------------------------------


def fastest_rclone(found: Sequence[Found]) -> Found | None:
    return max((one for one in found if one.program.startswith("rclone")), key=lambda one: one.rate, default=None)


def tables(synced: Synced) -> list[TableOf]:
    theirs = fastest_rclone(synced.found)
    header = ["program", "keys", "s", "keys/s", "LIST", "HEAD", "found", "CPU us/key", "server us/key"]
    header += ["peak MiB", "x rclone"]
    rows = []
    for one in synced.found:
        rows.append(
            [
                one.program,
                f"{one.objects:,}",
                f"{one.seconds:.1f}",
                f"{one.rate:,.0f}",
                f"{one.counts.lists:,}",
                f"{one.counts.heads:,}",
                f"{one.differences:,}",
                f"{one.cpu_s * 1e6 / one.objects:.1f}",
                f"{one.server_cpu_s * 1e6 / one.objects:.2f}",
                f"{one.peak_bytes / MIB:,.0f}",
                f"{one.rate / theirs.rate:.1f}" if theirs else DASH,
            ]
        )
    steps = [[stage.name, f"{stage.us_per_key:.2f}"] for stage in synced.stages]
    return [
        (
            f"Sync: what changed in a bucket ({PER_THOUSAND / 10:g} % did), one server; x the fastest rclone",
            header,
            rows,
        ),
        ("Sync: microseconds of CPU for each key, step by step", ["step of a scan", "us/key"], steps),
    ]


def lines(synced: Synced) -> list[str]:
    said = [
        f"the lister alone sends {synced.lister_ceiling:,.0f} keys a second to one plain client "
        f"({synced.lister_processes} process{'es' if synced.lister_processes > 1 else ''})",
        f"a row takes {synced.base_bytes_per_row:.1f} bytes in the base",
    ]
    if theirs := fastest_rclone(synced.found):
        said.append(f"rclone {theirs.version}, --checkers {CHECKERS}, sizes and MD5 out of the listings, no HEAD")
    if synced.without_rclone:
        said.append(f"rclone was left out: {synced.without_rclone}")
    for one in synced.found:
        if one.objects == max(other.objects for other in synced.found) and one.program.startswith("cowsync"):
            held = "below" if one.peak_bytes < MEMORY_MAX else "NOT below"
            said.append(f"{one.program}: memory of all its processes {held} {MEMORY_MAX // MIB} MiB, sampled")
    return said


def document(synced: Synced) -> list[dict[str, object]]:
    return [asdict(synced)]
