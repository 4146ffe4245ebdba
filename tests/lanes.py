"""Everything that is tested, in two lanes at once: the guest tests, which mostly wait for an emulated machine, and the rest.

    python -m tests.lanes [PYTEST OPTIONS]

One rule: what the one lane prints is shown as it comes, what the other prints is shown whole when it has ended; the exit
status is 0 when both lanes passed, else that of the first that did not.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

GUEST = "tests/guest"
ROOM_MIB = 10_000
"""Free space in the directory for temporary files: three times what a whole run was seen to have there at once."""
NO_ROOM = 2
"""Exit status where there is less: not 1, by which pytest says that tests failed."""


def main(options: list[str]) -> int:
    problem = lacking(Path(tempfile.gettempdir()))
    if problem:
        print(problem, file=sys.stderr)
        return NO_ROOM
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryDirectory(prefix="lanes-") as name:
        surroundings = compiling(Path(name))
        log = Path(name) / "guest.log"
        with log.open("wb") as output:
            guest = subprocess.Popen(
                [*pytest, GUEST, f"--basetemp={name}/guest", "-o", f"cache_dir={name}/cache"],
                env=surroundings,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            rest = subprocess.run(
                [*pytest, f"--ignore={GUEST}"], env=surroundings, stdin=subprocess.DEVNULL, check=False
            ).returncode
            status = guest.wait()
        finally:
            if guest.poll() is None:
                guest.send_signal(signal.SIGINT)  # pytest ends the guests it has booted
                guest.wait()
        print(f"\nthe guest tests, {GUEST}:\n\n{log.read_text(errors='replace')}", flush=True)
    return rest or status


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
