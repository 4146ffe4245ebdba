"""`python -m bench.peers`: Bucketworks beside its peers, one matrix on one store, kept in `.results/`.

One rule: what was measured is kept as soon as its part ends, so that a run that is cut off loses one part at most; a part that
cannot run is in the report with its reason. All that is started is on loopback, and gone when this ends.
"""

import argparse
import importlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import disk
from bench.__main__ import machine
from bench.peers import figures
from bench.peers.context import Context, Interrupted
from bench.peers.figures import Part, Run
from bench.peers.systems import Known, Place
from bench.peers.table import SYSTEMS
from bench.processes import BenchFailed, end, start, wait_for_line
from bench.store import READY, Client

RESULTS = Path(".results")
PARTS: Mapping[str, str] = {
    "block": "bench.peers.block:run",
    "warm": "bench.peers.warm:run",
    "files": "bench.peers.files:run",
    "correctness": "bench.peers.correctness:run",
    "sync": "bench.peers.sync:measure",
    "transfer": "bench.peers.transfer:measure",
    "backup": "bench.peers.backup:measure",
    "ledger": "bench.peers.ledger:measure",
    "profiles": "bench.peers.profiles:run",
}
"""Each a function `(Context) -> Part`, in the order of the run."""
LATENCIES_MS = (0, 5, 20, 50)
QUICK_LATENCIES_MS = (0, 20)
SECONDS, QUICK_SECONDS = 1.5, 1.0
REPEATS, QUICK_REPEATS = 2, 1
WIDTH = 140
Measure = Callable[[Context], Part]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    if options.draw:
        return _draw(console, figures.load(options.results / "peers.json"), options)
    begin = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[{time.monotonic() - begin:5.0f} s] {text}", highlight=False, markup=False)

    # What is mounted and started is taken down by whoever made it, which needs an exception and not an end.
    signal.signal(signal.SIGTERM, _interrupted)
    directory = Path(tempfile.mkdtemp(prefix="bucketworks-peers-", dir=options.dir))
    log = directory / "store.log"
    store = start([sys.executable, "-m", "bench.store"], log)
    code = 0
    run = Run(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), _machine(options.dir), {}, [])
    try:
        client = Client(int(wait_for_line(log, READY, store).split()[-1]))
        context = Context(
            directory=directory,
            store=client,
            store_pid=store.pid,
            quick=options.quick,
            latencies_ms=options.latencies or (QUICK_LATENCIES_MS if options.quick else LATENCIES_MS),
            systems=options.systems or [],
            repeats=options.repeats or (QUICK_REPEATS if options.quick else REPEATS),
            seconds=options.seconds or (QUICK_SECONDS if options.quick else SECONDS),
            say=say,
        )
        run = replace(run, systems=_described(context), notes=_notes(options.dir, client))
        for name in options.parts or PARTS:
            run = replace(run, parts=[*run.parts, _part(name, context)], seconds=time.monotonic() - begin)
            figures.dump(run, options.results / "peers.json")
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):
            run = replace(run, parts=[*run.parts, error.part], seconds=time.monotonic() - begin)
            figures.dump(run, options.results / "peers.json")
        say("interrupted: what was measured until now is kept")
        code = 130
    finally:
        end(store)
        shutil.rmtree(directory, ignore_errors=True)
    return code or _draw(console, run, options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--quick", action="store_true", help="fewer latencies and runs, short loads; figures vary more")
    parser.add_argument("--parts", type=_names_of(list(PARTS)), help=f"of {','.join(PARTS)} (all of them)")
    parser.add_argument(
        "--systems", type=lambda text: text.split(";"), help="names as in the report, with ; between them (all)"
    )
    parser.add_argument(
        "--latencies", type=lambda text: [int(word) for word in text.split(",")], help="of the store, in ms (0,5,20,50)"
    )
    parser.add_argument("--repeats", type=int, default=0, help=f"runs of each load, whose median counts ({REPEATS})")
    parser.add_argument("--seconds", type=float, default=0.0, help=f"of a load that is bounded by time ({SECONDS})")
    parser.add_argument(
        "--dir", type=Path, default=Path("/var/tmp"), help="journals and caches: a real disk (/var/tmp)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="where figures, tables and plots go (.results)")
    parser.add_argument("--publish", type=Path, default=None, help="copy page and plots there too")
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw the figures that were kept")
    return parser.parse_args(arguments)


def _names_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(known)):
            raise argparse.ArgumentTypeError(f"there is no {' or '.join(unknown)}: choose from {', '.join(known)}")
        return names

    return parse


def _interrupted(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def measure_of(where: str) -> Measure:
    """The function of `module:function`."""
    module, _, function = where.partition(":")
    found: Measure = getattr(importlib.import_module(module), function)
    return found


def _part(name: str, context: Context) -> Part:
    """Run it in a folder of its own. What it raises is a reason in the report."""
    own = replace(context, directory=context.directory / name)
    own.directory.mkdir()
    context.say(f"{name}: begins")
    begin = time.monotonic()
    try:
        context.store.reset()
        part = measure_of(PARTS[name])(own)
    except (BenchFailed, ImportError, OSError, subprocess.SubprocessError) as error:
        context.say(f"{name}: {error}")
        reason = (str(error).splitlines() or [repr(error)])[0]
        part = Part(name, name.capitalize(), missing=[f"the whole part: {reason}"])
    finally:
        shutil.rmtree(own.directory, ignore_errors=True)
    return replace(part, seconds=time.monotonic() - begin)


def _machine(directory: Path) -> dict[str, str]:
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line)
    return {
        **machine(),
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "disk": f"{disk.flushes_per_s(directory, 1.0):,.0f} appends of 4 KiB with fdatasync a second",
    }


def _notes(directory: Path, client: Client) -> list[str]:
    puts, gets = client.ceiling(2.0)
    notes = [f"The store alone, one plain client: {puts:.0f} MiB/s of 1 MiB PUTs, {gets:,.0f} GETs of 64 KiB a second."]
    if disk.in_memory(directory):
        notes.append(f"{directory} is in memory: flushes cost nothing there, and these figures say nothing about them.")
    if not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        notes.append(
            "The page cache cannot be dropped here (no write to /proc/sys/vm/drop_caches): cold rows rest on removed "
            "local state and on fresh mounts alone."
        )
    return notes


def _described(context: Context) -> dict[str, str]:
    wanted = [known for known in SYSTEMS if not context.systems or known.name in context.systems]
    return {known.name: _description(known, context) for known in wanted}


def _description(known: Known, context: Context) -> str:
    if absent := known.missing():
        return f"not measured: {absent}"
    place = Place(context.directory / "described", context.store, "described", 256 << 20, 256 << 20)
    with known.make(place) as system:
        return f"{known.version()}: {system.settings}"


def _draw(console: Console, run: Run, options: argparse.Namespace) -> int:
    """Tables and plots; also of what little an interrupted run has."""
    try:
        # Plots need matplotlib, which measuring must not depend on.
        from bench.peers import publish, report
    except ModuleNotFoundError as error:
        print(f"kept in {options.results / 'peers.json'}; it cannot be drawn: {error} (`make venv`)", file=sys.stderr)
        return 1

    files = publish.redraw(run, options.results)
    if options.publish:
        files += publish.publish(run, Path.cwd(), options.publish)
    report.show(run, console)
    print("kept:", ", ".join(str(file) for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
