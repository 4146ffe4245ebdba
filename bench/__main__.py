"""`python -m bench`: measure, print, and keep the figures in `.results/`.

One rule: everything it starts is on loopback, in folders and processes of its own, and gone when it ends.
"""

import argparse
import contextlib
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench import console as web_console
from bench import cost, disk, doors, home, ledger, pve, scale, sync, tgt
from bench.initiator import BLOCK_BYTES, MIB, fill
from bench.measure import Bench, Measured
from bench.plan import FULL, LATENCIES_MS, QUICK
from bench.processes import BenchFailed, end, start, wait_for_line
from bench.report import Report, Section
from bench.store import READY, Client
from tests.guest.image import ImageFailed

RESULTS = Path(".results")
SECTIONS = ("speed", "cost", "scale", "doors", "sync", "ledger", "pve", "home", "console")
CEILING_S = 2.0
WIDTH = 140
"""Of the tables where nothing says how wide they may be."""


def machine() -> dict[str, str]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "processor": f"{model}, {os.cpu_count()} processors",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": f"{load} (1, 5 and 15 minutes; near 0 on an idle machine)",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all of them)")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes; figures vary more")
    parser.add_argument("--repeats", type=int, default=0, help="runs of each load, of which the median counts (3)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where journals and caches are (/var/tmp)")
    parser.add_argument("--no-tgt", action="store_true", help="leave tgt out")
    options = parser.parse_args(arguments)
    wanted = options.sections or SECTIONS
    unknown = sorted(set(wanted) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {' or '.join(unknown)}: choose from {', '.join(SECTIONS)}")
    plan = QUICK if options.quick else FULL
    if options.repeats:
        plan = replace(plan, repeats=options.repeats)
    missing = [name for name in ("qemu-img", "qemu-io") if shutil.which(name) is None]
    if missing and "speed" in wanted:
        print(f"{' and '.join(missing)} not found: install qemu-utils and qemu-block-extra", file=sys.stderr)
        return 1
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    begin = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - begin:5.0f} s] {text}", highlight=False, markup=False)

    notes = []
    if disk.in_memory(options.dir):
        notes.append(f"{options.dir} is in memory: flushes cost nothing there; choose a folder on a disk with --dir")
    facts = machine()
    without_tgt = "--no-tgt" if options.no_tgt else tgt.missing()
    if without_tgt and "speed" in wanted:
        say(f"tgt is left out: {without_tgt}")
    directory = Path(tempfile.mkdtemp(prefix="bucketworks-bench-", dir=options.dir))
    log = directory / "store.log"
    store = start([sys.executable, "-m", "bench.store"], log)
    ours: list[Measured] = []
    sections: list[Section] = []
    try:
        client = Client(int(wait_for_line(log, READY, store).split()[-1]))
        ceiling = client.ceiling(CEILING_S)
        with contextlib.ExitStack() as stack:
            beside = None
            if "speed" in wanted and not without_tgt:
                beside = stack.enter_context(tgt.Tgt(directory, plan.volume_bytes))
                say("tgt: fill its file")
                fill(beside.url, plan.volume_bytes, directory)
            if "speed" in wanted:
                ours = [
                    Bench(plan, directory, client, store.pid, latency_ms, tgt=beside, say=say).run()
                    for latency_ms in LATENCIES_MS
                ]
        if "cost" in wanted:
            cases = cost.CostBench(directory, client, cost.QUICK if options.quick else cost.FULL, say).run()
            sections.append(Section("cost", cost.tables(cases, cost.prices()), cost.lines(cases), cost.document(cases)))
        if "scale" in wanted:
            scaled = scale.ScaleBench(directory, client, say).run(scale.QUICK if options.quick else scale.FULL)
            sections.append(Section("scale", scale.tables(scaled), [], scale.document(scaled)))
        if "doors" in wanted:
            sections.append(_doors(directory, quick=options.quick, say=say))
        if "sync" in wanted:
            synced = sync.SyncBench(directory, say).run(sync.QUICK if options.quick else sync.FULL)
            sections.append(Section("sync", sync.tables(synced), sync.lines(synced), sync.document(synced)))
        if "ledger" in wanted:
            kept = ledger.LedgerBench(say).run(ledger.QUICK if options.quick else ledger.FULL)
            sections.append(Section("ledger", ledger.tables(kept), ledger.lines(kept), ledger.document(kept)))
        if "pve" in wanted:
            sections.append(_pve(directory, quick=options.quick, say=say))
        if "home" in wanted:
            saved = home.HomeBench(directory, say).run(home.QUICK if options.quick else home.FULL)
            sections.append(Section("home", home.tables(saved), home.lines(saved), home.document(saved)))
        if "console" in wanted:
            seen = web_console.ConsoleBench(directory, say).run(
                web_console.QUICK if options.quick else web_console.FULL
            )
            sections.append(
                Section("console", web_console.tables(seen), web_console.lines(seen), web_console.document(seen))
            )
    except BenchFailed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        end(store)
        shutil.rmtree(directory)
    if ours:
        notes.append(
            f"a scattered read or write is {BLOCK_BYTES // 1024} KiB at steps of 1 MiB + 4 KiB "
            f"over {plan.volume_bytes // MIB} MiB"
        )
    report = Report(plan, facts, ours, without_tgt, ceiling, time.monotonic() - begin, notes, sections)
    report.save(RESULTS)
    report.show(console)
    print(f"kept in {RESULTS / 'bench.json'} and {RESULTS / 'bench.md'}")
    return 0


def _doors(directory: Path, *, quick: bool, say: Callable[[str], None]) -> Section:
    missing = doors.missing()
    if missing:
        return Section("doors", [], [f"the doors were left out: {missing}"], [])
    try:
        found = doors.DoorsBench(directory, say).run(doors.QUICK if quick else doors.FULL)
    except ImageFailed as error:
        return Section("doors", [], [f"the doors were left out: the guest's image cannot be built: {error}"], [])
    return Section("doors", doors.tables(found), [], doors.document(found))


def _pve(directory: Path, *, quick: bool, say: Callable[[str], None]) -> Section:
    if missing := pve.missing():
        return Section("pve", [], [f"the backup was left out: {missing}"], [])
    found = pve.PveBench(directory, say).run(pve.QUICK if quick else pve.FULL)
    return Section("pve", pve.tables(found), pve.lines(found), pve.document(found))


if __name__ == "__main__":
    sys.exit(main())
