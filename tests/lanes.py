"""Everything that is tested, in two lanes at once: the guest tests, which mostly wait for an emulated machine, and what makes
that lane as long as the other; and the rest.

    python -m tests.lanes [PYTEST OPTIONS]
    python -m tests.lanes --guests [PYTEST OPTIONS]     the guest tests alone, a part in each lane

One rule: what the one lane prints is shown as it comes, what the other prints is shown whole when it has ended; the exit
status is 0 when both lanes passed, else that of the first that did not. What failed is said once more at the very end, so
that whoever has only the end of a long log knows what to look for.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path

GUEST = "tests/guest"
GUEST_HALF = tuple(f"{GUEST}/test_{name}.py" for name in ("reboot", "lio_setup", "boot"))
"""About half of the guest tests by their time. An emulated machine keeps one core busy, so two fill a small host."""
SECOND = (GUEST, "tests/envctl", "tests/cowsync", "tests/integrity")
"""The lane that is shown at the end. Whatever boots an emulated machine is in it, so that never two do at once."""
ROOM_MIB = 10_000
"""Free space in the directory for temporary files. Seen there at once: 1.5 GB of the tests before tests/system, 0.7 GB of
guests' disks; the system tests' volumes come on top, and what tests that fail keep."""
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
        return run(options[1:], shown=rest, hidden=GUEST_HALF)
    return run(options, shown=[f"--ignore={folder}" for folder in SECOND], hidden=SECOND)


def run(options: Sequence[str], *, shown: Sequence[str], hidden: Sequence[str]) -> int:
    """Two pytests with these arguments; the exit status of both."""
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryDirectory(prefix="lanes-") as name:
        surroundings = compiling(Path(name))
        log = Path(name) / "hidden.log"
        reports = [Path(name) / "shown.xml", Path(name) / "hidden.xml"]
        with log.open("wb") as output:
            other = subprocess.Popen(
                [
                    *pytest,
                    *hidden,
                    f"--junitxml={reports[1]}",
                    f"--basetemp={name}/guest",
                    "-o",
                    f"cache_dir={name}/cache",
                ],
                env=surroundings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            first = subprocess.run(
                [*pytest, *shown, f"--junitxml={reports[0]}"],
                env=surroundings,
                stdin=subprocess.DEVNULL,
                check=False,
            ).returncode
            second = other.wait()
        finally:
            if other.poll() is None:
                other.send_signal(signal.SIGINT)  # pytest ends the guests it has booted
                other.wait()
        print(f"\n{', '.join(hidden)}:\n\n{log.read_text(errors='replace')}", flush=True)
        if first or second:
            print(digest(reports, (first, second)), flush=True)
    return first or second


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
