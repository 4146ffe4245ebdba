"""What py-spy and perf see of a process, reduced to a few lines of text.

One rule: the shares are of samples in which the process was on a processor; who waits is not seen. py-spy tells of Python
functions and of the C functions that they call; perf (cpu-clock: no hardware counters needed) tells how the time divides
between kernel, interpreter and libraries.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers.figures import Profile
from bench.processes import BenchFailed

TOP: Final = 15
PY_SPY_HZ: Final = 150
PERF_HZ: Final = 499
"""No multiple of anything periodic."""
GRACE_S: Final = 60.0
KERNEL, INTERPRETER, C_LIBRARY, MODULES = "kernel", "interpreter", "C library", "libraries"
INTERPRETER_LOCK: Final = "pthread_cond_timedwait"
"""What CPython waits for its lock with."""
WAITS: Final = frozenset(
    {
        INTERPRETER_LOCK,
        *("PyThread_acquire_lock_timed", "pthread_cond_wait", "clock_nanosleep", "nanosleep", "epoll_wait", "poll"),
        *("select", "sem_wait", "sem_clockwait", "sem_timedwait", "sigtimedwait", "accept4", "wait4", "waitpid"),
    }
)
_PROCESS = re.compile(r'process \d+:".*?"(;|$)')
_SCAFFOLD = re.compile(
    r"\((asyncio/|threading\.py|concurrent/|typer/|<frozen |selectors\.py|<string>|runpy\.py|multiprocessing/)"
    r"|^<module>|^thread_run |^Py_(Run|Bytes)?Main|^_Py|^Py(Object|Eval|Run)_"
)
_FRAME = re.compile(r"(?P<name>.*) \((?P<file>[^()]*?)(?::\d+)?\)$")
_UNKNOWN = re.compile(r"0x[0-9a-f]+ ")
_PERF_LINE = re.compile(r"^\s+(\d+\.\d+)%\s+(\S.*?)\s{2,}\[(.)\] (.*?)(?:\s{2,}.*)?$")
_PERF_TOTAL = re.compile(r"^\s+(\d+\.\d+)%\s+(\d+\.\d+)%\s+\[(.)\] (.*?)(?:\s{2,}.*)?$")
_PERF_SAMPLES = re.compile(r"^# Samples: ([\d.]+)([KM]?)", re.MULTILINE)
_LIBRARY = re.compile(r"\.cpython-[^.]*\.so")
_SYSTEM_CALL = re.compile(r"__\w+?_sys_(\w+)$")


@dataclass(frozen=True, slots=True)
class Reduced:
    """`samples`: on how many the text rests."""

    samples: int
    text: str


# --- reduce --------------------------------------------------------------------------------------------------


def reduce_stacks(raw: str, top: int = TOP) -> Reduced:
    """py-spy's raw format: one stack a line, outermost first, frames divided by semicolons, its samples behind it.

    Stacks that end in a wait are counted, said and left out: py-spy sees every thread, and many of ours wait for orders.
    Event loops, thread pools and commands that everything runs under are left out of the totals.
    """
    own: Counter[str] = Counter()
    total: Counter[str] = Counter()
    samples, waits, locked = 0, 0, 0
    for line in raw.splitlines():
        stack, _, digits = line.rpartition(" ")
        if not stack or not digits.isdigit():
            continue
        count = int(digits)
        # A process is named by its command line, which may have anything in it.
        frames = [frame for frame in map(function, _PROCESS.sub("", stack).split(";")) if frame]
        if not frames:
            continue
        last = frames[-1].partition(" (")[0]
        if last in WAITS:
            waits += count
            locked += count if last == INTERPRETER_LOCK else 0
            continue
        samples += count
        own[frames[-1]] += count
        for frame in set(frames):
            total[frame] += count
    if not samples:
        return Reduced(0, "no sample on a processor")
    told = {name: count for name, count in total.items() if not _SCAFFOLD.search(name)}
    lines = []
    if waits:
        seen = samples + waits
        lines += [
            f"left out: {waits / seen:.0%} of all samples, in which a thread waited"
            + (f" ({locked / seen:.0%} for the interpreter's lock)" if locked else ""),
            "",
        ]
    lines += [f"{'self':>6}  {'total':>6}  by self"]
    lines += [f"{count / samples:6.1%}  {total[name] / samples:6.1%}  {name}" for name, count in ranked(own, top)]
    lines += ["", f"{'self':>6}  {'total':>6}  by total"]
    lines += [f"{own[name] / samples:6.1%}  {count / samples:6.1%}  {name}" for name, count in ranked(told, top)]
    return Reduced(samples, "\n".join(lines))


def function(frame: str) -> str:
    """`name (file)` of a frame, without its line; empty for an address without a name and for a thread."""
    frame = frame.strip()
    if _UNKNOWN.match(frame) or frame.startswith("thread "):
        return ""
    found = _FRAME.match(frame)
    return f"{found['name']} ({_short(found['file'])})" if found else frame


def _short(file: str) -> str:
    """A file as it lies in this tree or among packages; of others the last two parts."""
    place = Path(file)
    if not place.is_absolute():
        return file
    for root in (Path.cwd(), Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))):
        if place.is_relative_to(root):
            return str(place.relative_to(root))
    return "/".join(place.parts[-2:])


def ranked(counts: Mapping[str, float], top: int) -> list[tuple[str, float]]:
    """The largest first; equal ones by name, so that text is stable."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]


def reduce_perf(own: str, total: str, top: int = TOP) -> Reduced:
    """`perf report --stdio`: `own` by dso and symbol without children, `total` by symbol with them."""
    found = _PERF_SAMPLES.search(own)
    samples = int(float(found[1]) * {"": 1, "K": 1000, "M": 1_000_000}[found[2]]) if found else 0
    functions: defaultdict[str, float] = defaultdict(float)
    shares: defaultdict[str, float] = defaultdict(float)
    libraries: defaultdict[str, float] = defaultdict(float)
    for line in own.splitlines():
        if not (seen := _PERF_LINE.match(line)):
            continue
        share, library, kind, symbol = float(seen[1]), _LIBRARY.sub(".so", seen[2].strip()), seen[3], seen[4].strip()
        of = owner(library, kind)
        shares[of] += share
        if of == MODULES:
            libraries[library] += share
        functions[f"{symbol} ({'kernel' if of == KERNEL else library})"] += share
    if not functions:
        return Reduced(0, "no sample on a processor")
    parts = [f"{name} {shares[name]:.0f}%" for name in (KERNEL, INTERPRETER, C_LIBRARY, MODULES) if shares[name]]
    lines = [", ".join(parts)]
    if libraries:
        lines.append("libraries: " + ", ".join(f"{name} {share:.1f}%" for name, share in ranked(libraries, 6)))
    calls: defaultdict[str, float] = defaultdict(float)
    for line in total.splitlines():
        seen = _PERF_TOTAL.match(line)
        call = _SYSTEM_CALL.search(seen[4].strip()) if seen else None
        if seen and call:
            calls[call[1]] = max(calls[call[1]], float(seen[1]))
    if calls:
        lines.append("system calls: " + ", ".join(f"{name} {share:.1f}%" for name, share in ranked(calls, 8)))
    lines += ["", f"{'self':>6}  function"]
    lines += [f"{share:5.1f}%  {name}" for name, share in ranked(functions, top)]
    return Reduced(samples, "\n".join(lines))


def owner(library: str, kind: str) -> str:
    """Whose code it is, by the file that perf names."""
    if kind in "kH" or library.startswith(("[kernel", "[guest")):
        return KERNEL
    name = Path(library).name
    if re.match(r"(lib)?python\d", name):
        return INTERPRETER
    if name.startswith(("libc.so", "libc-", "libpthread", "ld-linux", "libm.so", "[vdso]")):
        return C_LIBRARY
    return MODULES


# --- watch ---------------------------------------------------------------------------------------------------


def py_spy() -> str:
    """The program, of this environment or on the path; empty if there is none."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy") or ""


def missing() -> list[str]:
    """Which tools cannot be used, and why; one line each."""
    lines = []
    if not py_spy():
        lines.append("py-spy is not installed (requirements-dev.txt)")
    if shutil.which("perf") is None:
        lines.append("perf is not installed (Debian's package linux-perf)")
    return lines


def watch(path: str, pid: int, seconds: float, directory: Path) -> list[Profile]:
    """Both tools in turn on a process that is under load meanwhile, `seconds` each. BenchFailed with a tool's words."""
    found = []
    if shutil.which("perf"):
        data = directory / "perf.data"
        words = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(PERF_HZ), "-g", "-p", str(pid), "-o", str(data)]
        _run([*words, "--", "sleep", str(seconds)], seconds)
        found.append(_of_perf(path, data))
    if spy := py_spy():
        raw = directory / "py-spy.raw"
        words = [spy, "record", "--native", "-p", str(pid), "-d", str(max(1, round(seconds))), "-r", str(PY_SPY_HZ)]
        _run([*words, "-f", "raw", "-o", str(raw)], seconds)
        found.append(_of_py_spy(path, raw))
    return found


def follow(path: str, command: Sequence[str], environment: Mapping[str, str], directory: Path) -> list[Profile]:
    """Both tools in turn on a command from its start to its end, with all processes that it starts. BenchFailed if it ends
    with another code than 0 or 1 (a finding)."""
    found = []
    if shutil.which("perf"):
        data = directory / "perf.data"
        words = ["perf", "record", "-q", "-e", "cpu-clock", "-F", str(PERF_HZ), "-g", "-o", str(data), "--", *command]
        _run(words, GRACE_S, environment, codes=(0, 1))
        found.append(_of_perf(path, data))
    if spy := py_spy():
        raw = directory / "py-spy.raw"
        words = [spy, "record", "--subprocesses", "-r", str(PY_SPY_HZ), "-f", "raw", "-o", str(raw), "--", *command]
        _run(words, GRACE_S, environment, codes=(0, 1))
        found.append(_of_py_spy(path, raw))
    return found


def _of_perf(path: str, data: Path) -> Profile:
    base = ["perf", "report", "--stdio", "-i", str(data), "-g", "none"]
    own = _run([*base, "--no-children", "--sort", "dso,symbol"], GRACE_S)
    reduced = reduce_perf(own, _run([*base, "--children", "--sort", "symbol"], GRACE_S))
    data.unlink()
    return Profile(path, "perf, cpu-clock", reduced.samples, reduced.text)


def _of_py_spy(path: str, raw: Path) -> Profile:
    reduced = reduce_stacks(raw.read_text(errors="replace"))
    raw.unlink()
    return Profile(path, "py-spy", reduced.samples, reduced.text)


def _run(
    words: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None, codes: Iterable[int] = (0,)
) -> str:
    """A tool's standard output. It is ended, with what it started, when it takes far longer than it was told to."""
    process = subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=None if environment is None else dict(environment),
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=seconds + GRACE_S)
    except subprocess.TimeoutExpired as error:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise BenchFailed(f"{' '.join(words)} did not end within {seconds + GRACE_S:.0f} s") from error
    if process.returncode not in codes:
        raise BenchFailed(f"{' '.join(words)} ended with {process.returncode}: {(said or out).strip()[-1500:]}")
    return out
