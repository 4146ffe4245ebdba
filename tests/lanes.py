"""Everything that is tested, in three lanes at once: what boots an emulated machine and mostly waits for it; the long runs of
many small waits; and the rest.

    python -m tests.lanes [PYTEST OPTIONS]
    python -m tests.lanes --guests [PYTEST OPTIONS]     the guest tests alone, a part in each of two lanes

One rule: what the first lane prints is shown as it comes, what the others print is shown whole when all have ended; the exit
status is 0 when every lane passed, else that of the first that did not. What failed is said once more at the very end, so
that whoever has only the end of a long log knows what to look for.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

GUEST = "tests/guest"
GUEST_HALF = tuple(f"{GUEST}/test_{name}.py" for name in ("reboot", "lio_setup", "boot"))
"""About half of the guest tests by their time. An emulated machine keeps one core busy, so two fill a small host."""
GUESTS = (GUEST, "tests/envctl/guests")
"""Whatever boots an emulated machine is in this lane, so that never two do at once."""
LONG = ("tests/cowsync", "tests/integrity", "tests/simulation", "tests/system", "tests/packages", "tests/release")
"""Three lanes on two cores: about half of all tests' time is spent waiting for a clock, a store or a process."""
ROOM_MIB = 10_000
"""Free space in the directory for temporary files. Seen there at once: 1.5 GB of the tests before tests/system, 0.7 GB of
guests' disks; the system tests' volumes come on top, and what tests that fail keep."""
SLOWEST = 25
"""Tests that each lane names for the time they took."""
TOLD_TESTS = 4
TOLD_LINES = 12
MESSAGE_CHARACTERS = 160
NO_ROOM = 2
"""Exit status where there is less: not 1, by which pytest says that tests failed."""


def main(options: list[str]) -> int:
    problem = lacking(Path(tempfile.gettempdir()))
    if problem:
        print(problem, file=sys.stderr)
        return NO_ROOM
    if options[:1] == ["--guests"]:
        rest = [GUEST, *(f"--ignore={file}" for file in GUEST_HALF)]
        return run(options[1:], shown=rest, hidden={"guest": GUEST_HALF})
    others = [f"--ignore={folder}" for folder in (*GUESTS, *LONG)]
    return run(options, shown=others, hidden={"guest": GUESTS, "long": LONG})


def run(options: Sequence[str], *, shown: Sequence[str], hidden: Mapping[str, Sequence[str]]) -> int:
    """Pytest with `shown`, and beside it one for each of `hidden`, by the name of its directory; the exit status of all."""
    pytest = [sys.executable, "-m", "pytest", f"--durations={SLOWEST}", *options]
    with tempfile.TemporaryDirectory(prefix="lanes-") as folder:
        surroundings = compiling(Path(folder))
        reports = {name: Path(folder) / f"{name}.xml" for name in ("shown", *hidden)}
        with ExitStack() as logs:
            others = {
                name: subprocess.Popen(
                    [*pytest, *arguments, f"--junitxml={reports[name]}", *places(Path(folder), name)],
                    env=surroundings,
                    stdin=subprocess.DEVNULL,
                    stdout=logs.enter_context((Path(folder) / f"{name}.log").open("wb")),
                    stderr=subprocess.STDOUT,
                )
                for name, arguments in hidden.items()
            }
        try:
            first = subprocess.run(
                [*pytest, *shown, f"--junitxml={reports['shown']}"],
                env=surroundings,
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode
            statuses = [first, *(other.wait() for other in others.values())]
        finally:
            for other in others.values():
                if other.poll() is None:
                    other.send_signal(signal.SIGINT)  # pytest ends the guests it has booted
            for other in others.values():
                other.wait()
        for name, arguments in hidden.items():
            log = (Path(folder) / f"{name}.log").read_text(errors="replace")
            print(f"\n{', '.join(arguments)}:\n\n{log}", flush=True)
        if any(statuses):
            print(digest(list(reports.values()), statuses), flush=True)
    return next((status for status in statuses if status), 0)


def places(folder: Path, name: str) -> list[str]:
    """Where a pytest beside another one keeps its files and what it remembers. Paths of sockets are short: so is this."""
    return [f"--basetemp={folder}/{name}", "-o", f"cache_dir={folder}/{name}-cache"]


def digest(reports: Sequence[Path], statuses: Sequence[int]) -> str:
    """What failed, by pytest's reports of its lanes (JUnit XML): the ends of a few tracebacks, then a line for each test.

    A lane without a readable report was ended before it could write one."""
    told: list[str] = []
    lines: list[str] = []
    for report, status in zip(reports, statuses, strict=True):
        lines.append(f"{report.stem} lane: exit status {status}")
        try:
            failures = list(failed(report))
        except (OSError, ElementTree.ParseError) as error:
            lines.append(f"  no report of it: {error}")
            continue
        for test, message, text in failures:
            told += [f"---- {test}", *text.rstrip().splitlines()[-TOLD_LINES:]]
            lines.append(f"  {test}: {message}")
    return "\n".join(["", "what failed:", *told[: TOLD_TESTS * (TOLD_LINES + 1)], *lines])


def failed(report: Path) -> Iterator[tuple[str, str, str]]:
    """Each failure or error of a report: the test, its message in one line, its traceback."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        for outcome in case:
            if outcome.tag in ("failure", "error"):
                message = " ".join((outcome.get("message") or "").split())
                name = f"{case.get('classname', '')}.{case.get('name', '')}".lstrip(".")
                yield name, message[:MESSAGE_CHARACTERS], outcome.text or ""


def lacking(directory: Path, room_mib: int = ROOM_MIB) -> str:
    """What to do before the tests can run with their files in `directory`; empty if there is room."""
    free = shutil.disk_usage(directory).free >> 20
    if free >= room_mib:
        return ""
    return (
        f"error: {directory} has {free:,} MiB of free space, and the tests need {room_mib:,} MiB there (volumes, journals, "
        "guests' disks); make room, or set TMPDIR to a directory that has it"
    )


def compiling(directory: Path) -> dict[str, str]:
    """The environment, with modules compiled once: where Python is told to keep none of them, it keeps them in `directory`.

    The tests start our programs a thousand times, and compiling all modules takes each longer than all the rest."""
    kept = dict(os.environ)
    if kept.pop("PYTHONDONTWRITEBYTECODE", ""):
        kept["PYTHONPYCACHEPREFIX"] = str(directory / "modules")
    return kept


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
