"""Both doors beside tgt, with the kernel's initiator: in one guest, over its own loopback.

One rule: only ratios count. The guest is emulated, so that every figure is a fraction of what a machine does; but all targets
run in the same guest in the same minute, on files in its memory, under the same fio. Repetitions go round the targets in turn.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench.report import DASH, TableOf
from tests.guest.guest import Guest, Hardware, Running
from tests.guest.image import build_program, find_or_build, why_not
from tests.guest.inside import initiator

MIB = 1024 * 1024
KIB = 1024
IQN = "iqn.2025-01.internal.bucketworks"
FOLDER = "/dev/shm/bench"
CONFIG = "/etc/bucketworks/config.toml"
TARGETS = ("portal", "lio", "tgt")
PORTALS = {"portal": "127.0.0.1:3261", "lio": "127.0.0.1:3260", "tgt": "127.0.0.1:3262"}
LUNS = {"portal": 0, "lio": 0, "tgt": 1}
NAMES = {"portal": "portal", "lio": "LIO and TCMU", "tgt": "tgt"}


@dataclass(frozen=True, slots=True)
class DoorPlan:
    volume_mib: int
    seconds: float
    repeats: int


FULL = DoorPlan(256, 4.0, 3)
QUICK = DoorPlan(128, 1.5, 1)


@dataclass(frozen=True, slots=True)
class DoorLoad:
    name: str
    pattern: str
    block_bytes: int
    depth: int


LOADS = (
    DoorLoad("4K random read QD32", "randread", 4 * KIB, 32),
    DoorLoad("4K random write QD32", "randwrite", 4 * KIB, 32),
    DoorLoad("4K random read QD1", "randread", 4 * KIB, 1),
    DoorLoad("4K random write QD1", "randwrite", 4 * KIB, 1),
    DoorLoad("256K sequential read QD8", "read", 256 * KIB, 8),
    DoorLoad("256K sequential write QD8", "write", 256 * KIB, 8),
)


@dataclass(frozen=True, slots=True)
class DoorResult:
    """Operations a second and the 99th percentile of their latency in microseconds, of each repetition."""

    rates: list[float] = field(default_factory=list)
    p99_us: list[float] = field(default_factory=list)


Results = dict[tuple[str, str], DoorResult]
"""By load and target."""


def missing() -> str:
    """Why the doors cannot be measured here; empty if they can."""
    return why_not()


class DoorsBench:
    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory = directory
        self._say = say

    def run(self, plan: DoorPlan) -> Results:
        """Boots a guest, serves one volume through each door, and measures. BenchFailed is not raised: a guest that fails is
        GuestFailed, with its console."""
        self._say("doors: boot a guest")
        with tempfile.TemporaryDirectory(dir=self._directory) as name:
            program = Path(name) / "program.img"
            image = find_or_build()
            build_program(program)
            guest = Guest(image, program, Path(name) / "machine", Hardware(memory_mib=4096, processors=2))
            try:
                return self._measure(guest, plan)
            finally:
                guest.kill()

    def _measure(self, guest: Guest, plan: DoorPlan) -> Results:
        daemon = self._serve(guest, plan)
        tgt = self._serve_tgt(guest, plan)
        devices = {
            target: str(
                guest.call(initiator.log_in, portal=PORTALS[target], target=f"{IQN}:{target}", lun=LUNS[target])
            )
            for target in TARGETS
        }
        for target, device in devices.items():
            self._say(f"doors: fill {NAMES[target]}")
            guest.run(
                "dd",
                "if=/dev/urandom",
                f"of={device}",
                "bs=1M",
                f"count={plan.volume_mib}",
                "oflag=direct",
                seconds=300,
            )
        found: Results = {(load.name, target): DoorResult() for load in LOADS for target in TARGETS}
        for load in LOADS:
            self._say(f"doors: {load.name}")
            for _ in range(plan.repeats):
                for target in TARGETS:
                    rate, p99 = _fio(guest, devices[target], load, plan)
                    found[load.name, target].rates.append(rate)
                    found[load.name, target].p99_us.append(p99)
        assert not daemon.ended()
        assert not tgt.ended()
        return found

    def _serve(self, guest: Guest, plan: DoorPlan) -> Running:
        lines = ["[s3block]", f'state_dir = "{FOLDER}/state"', 'journal_bytes = "192M"', 'cache_bytes = "320M"']
        for target in ("portal", "lio"):
            lines += [f"[volume.{target}]", f'url = "file://{FOLDER}/store/{target}"', f'door = "{target}"']
            lines += [
                f'size_bytes = "{plan.volume_mib}M"',
                f'iqn = "{IQN}:{target}"',
                f'listen = ["{PORTALS[target]}"]',
            ]
        guest.write(CONFIG, "\n".join(lines) + "\n")
        for target in ("portal", "lio"):
            guest.run("s3block", "create", target)
        daemon = guest.start("s3block", "serve", "portal", "lio")
        daemon.wait_for("serving lio", seconds=180)
        guest.run("s3block", "lio", "attach", "lio", seconds=120)
        return daemon

    def _serve_tgt(self, guest: Guest, plan: DoorPlan) -> Running:
        guest.run("truncate", "-s", f"{plan.volume_mib}M", f"{FOLDER}/tgt.raw")
        tgt = guest.start("tgtd", "-f", "--iscsi", f"portal={PORTALS['tgt']}")
        guest.run("sh", "-c", "for i in $(seq 100); do tgtadm --op show --mode target && exit; sleep 0.1; done; exit 1")
        tell = ("tgtadm", "--lld", "iscsi")
        guest.run(*tell, "--op", "new", "--mode", "target", "--tid", "1", "-T", f"{IQN}:tgt")
        guest.run(*tell, "--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", f"{FOLDER}/tgt.raw")
        guest.run(*tell, "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")
        return tgt


def _fio(guest: Guest, device: str, load: DoorLoad, plan: DoorPlan) -> tuple[float, float]:
    words = ["fio", "--name=load", f"--filename={device}", "--direct=1", "--ioengine=libaio", "--output-format=json"]
    words += [f"--rw={load.pattern}", f"--bs={load.block_bytes}", f"--iodepth={load.depth}", "--norandommap"]
    words += ["--time_based", f"--runtime={plan.seconds}", "--ramp_time=0.5", "--randrepeat=0"]
    printed = guest.run(*words, seconds=120)
    job = json.loads(printed[printed.index("{") :])["jobs"][0]
    side = job["read" if "read" in load.pattern else "write"]
    return float(side["iops"]), float(side["clat_ns"]["percentile"]["99.000000"]) / 1000


def tables(found: Results) -> list[TableOf]:
    header = ["load"]
    for target in TARGETS:
        header += [NAMES[target], "p99 us"] if target == "tgt" else [NAMES[target], "p99 us", "x tgt"]
    rows = []
    for load in LOADS:
        cells = [load.name]
        theirs = median(found[load.name, "tgt"].rates)
        for target in TARGETS:
            one = found[load.name, target]
            cells += [f"{median(one.rates):,.0f}", f"{median(one.p99_us):,.0f}"]
            if target != "tgt":
                cells.append(f"{median(one.rates) / theirs:.2f}" if theirs else DASH)
        rows.append(cells)
    return [("Doors: operations a second in an emulated guest, kernel initiator (only ratios count)", header, rows)]


def document(found: Results) -> list[dict[str, object]]:
    return [
        {"load": load, "target": target, "rates": one.rates, "p99_us": one.p99_us}
        for (load, target), one in found.items()
    ]
