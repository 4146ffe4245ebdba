"""`python -m bench.peers`: Bucketworks beside its peers, one matrix on one store, kept in `.results/`.

One rule: what was measured is kept as soon as its part ends, so that a run that is cut off loses one part at most, and is drawn
and published all the same; a part that cannot run, or has no time left, is in the report with its reason. All that is started
is on loopback, and gone when this ends.
"""

import argparse
import contextlib
import importlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench import disk
from bench.__main__ import machine
from bench.peers import figures
from bench.peers.context import CUT, Context, Interrupted
from bench.peers.figures import Part, Run
from bench.peers.systems import Known, Place
from bench.peers.table import SYSTEMS
from bench.processes import BenchFailed, end, start, wait_for_line
from bench.store import READY, Client

RESULTS = Path(".results")
PARTS: Mapping[str, str] = {
    "block": "bench.peers.block:run",
    "warm": "bench.peers.warm:run",
    "sync": "bench.peers.sync:measure",
    "files": "bench.peers.files:run",
    "correctness": "bench.peers.correctness:run",
    "transfer": "bench.peers.transfer:measure",
    "backup": "bench.peers.backup:measure",
    "ledger": "bench.peers.ledger:measure",
    "profiles": "bench.peers.profiles:run",
}
"""Each a function `(Context) -> Part`, in the order of the run: those that the verdict rests on first."""
SHARES: Mapping[str, int] = {
    "block": 300,
    "warm": 75,
    "sync": 90,
    "files": 70,
    "correctness": 100,
    "transfer": 50,
    "backup": 50,
    "ledger": 30,
    "profiles": 50,
}
"""How a run that is bounded divides its time; what a part does not need goes to those after it."""
QUICK_MINUTES = 10.0
LEAST_S = 8.0
"""A part for which less is left is not begun."""
LATE_SHARE, LATE_S = 0.25, 10.0
"""How much longer than its time a part may take for what it has begun, before it is cut off."""
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
    before = signal.signal(signal.SIGTERM, _interrupted)
    directory = Path(tempfile.mkdtemp(prefix="bucketworks-peers-", dir=options.dir))
    log = directory / "store.log"
    store = start([sys.executable, "-m", "bench.store"], log)
    minutes = options.minutes or (QUICK_MINUTES if options.quick else 0.0)
    over = begin + minutes * 60 if minutes else math.inf
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
        if minutes:
            run = replace(
                run, notes=[*run.notes, f"The run was given {minutes:g} minutes; what they did not do for is missing."]
            )
        names = [name for name in PARTS if name in (options.parts or PARTS)]
        for place, name in enumerate(names):
            own = replace(context, give_up=give_up(names[place:], time.monotonic(), over))
            run = replace(run, parts=[*run.parts, _part(name, own, over)], seconds=time.monotonic() - begin)
            figures.dump(run, options.results / "peers.json")
    except KeyboardInterrupt as error:
        if isinstance(error, Interrupted):
            run = replace(run, parts=[*run.parts, error.part])
        run = replace(run, notes=[*run.notes, "The run was interrupted."], seconds=time.monotonic() - begin)
        figures.dump(run, options.results / "peers.json")
        say("interrupted: what was measured until now is kept")
        code = 130
    except BenchFailed as error:
        print(f"nothing can be measured: {error}", file=sys.stderr)
        return 1
    finally:
        end(store)
        shutil.rmtree(directory, ignore_errors=True)
        signal.signal(signal.SIGTERM, before)
    return _draw(console, run, options) or code


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--quick", action="store_true", help="fewer latencies and runs, short loads; figures vary more")
    parser.add_argument(
        "--minutes",
        type=float,
        default=0.0,
        help="about how long all of it may take: what the verdict rests on comes first, and what no time is left for"
        f" is told as missing (no bound; with --quick {QUICK_MINUTES:g})",
    )
    parser.add_argument(
        "--parts", type=_names_of(list(PARTS)), help=f"of {','.join(PARTS)} (all of them, in this order)"
    )
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
    parser.add_argument(
        "--publish", type=Path, default=None, help="make the run the one that the documents show: docs/peers"
    )
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


def give_up(names: Sequence[str], now: float, over: float) -> float:
    """When the first of these parts gives up, if all of them are to be done by `over`."""
    return now + (over - now) * SHARES[names[0]] / sum(SHARES[name] for name in names)


@contextlib.contextmanager
def _cut_off_after(seconds: float) -> Iterator[list[bool]]:
    """KeyboardInterrupt after so long, which the list then tells from one of the user's."""
    late: list[bool] = []

    def over(number: int, frame: FrameType | None) -> None:
        late.append(True)
        raise KeyboardInterrupt

    if math.isinf(seconds):
        yield late
        return
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield late
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _part(name: str, context: Context, over: float = math.inf) -> Part:
    """Run it in a folder of its own. What it raises is a reason in the report. Interrupted, with what there is until then, for
    a user's interrupt; one that takes longer than its time gives what it has. `over`: of the whole run."""
    begin = time.monotonic()
    given = context.give_up - begin
    if given < LEAST_S and over - begin < LEAST_S:
        context.say(f"{name}: no time left")
        return Part(name, name.capitalize(), missing=["the whole part: no time left"])
    own = replace(context, directory=context.directory / name)
    own.directory.mkdir()
    context.say(f"{name}: begins" + ("" if math.isinf(given) else f", {given:.0f} s"))
    late: list[bool] = []
    try:
        with _cut_off_after(given * (1 + LATE_SHARE) + LATE_S) as late:
            context.store.reset()
            part = measure_of(PARTS[name])(own)
    except KeyboardInterrupt as error:
        whole = Part(name, name.capitalize(), missing=["the whole part: cut off before it ended"])
        part = replace(error.part if isinstance(error, Interrupted) else whole, seconds=time.monotonic() - begin)
        if not late:
            raise Interrupted(part) from None
        context.say(f"{name}: {CUT}")
    except (BenchFailed, ImportError, OSError, subprocess.SubprocessError) as error:
        context.say(f"{name}: {error}")
        reason = (str(error).splitlines() or [repr(error)])[0]
        part = Part(name, name.capitalize(), missing=[f"the whole part: {reason}"])
    finally:
        _unmount_below(own.directory)
        shutil.rmtree(own.directory, ignore_errors=True)
    return replace(part, seconds=time.monotonic() - begin)


def _unmount_below(directory: Path) -> None:
    """What is still mounted there was left by somebody who was interrupted while he took it down."""
    below = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in reversed([path for path in below if Path(path).is_relative_to(directory.absolute())]):
        subprocess.run(["umount", "-l", mount], check=False)


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
    if options.publish and not publish.headlines(run):
        print("not published: of what the overview shows nothing was measured", file=sys.stderr)
    elif options.publish:
        files += publish.publish(run, Path.cwd(), options.publish)
    report.show(run, console)
    print("kept:", ", ".join(str(file) for file in files))
    return 0


if __name__ == "__main__":
    sys.exit(main())
