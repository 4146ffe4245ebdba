"""Everything that is tested, in two lanes at once: the guest tests, which mostly wait for an emulated machine, and the rest.

    python -m tests.lanes [PYTEST OPTIONS]

One rule: what the one lane prints is shown as it comes, what the other prints is shown whole when it has ended; the exit
status is 0 when both lanes passed, else that of the first that did not.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

GUEST = "tests/guest"


def main(options: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryDirectory(prefix="lanes-") as name:
        log = Path(name) / "guest.log"
        with log.open("wb") as output:
            guest = subprocess.Popen(
                [*pytest, GUEST, f"--basetemp={name}/guest", "-o", f"cache_dir={name}/cache"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            rest = subprocess.run([*pytest, f"--ignore={GUEST}"], stdin=subprocess.DEVNULL, check=False).returncode
            status = guest.wait()
        finally:
            if guest.poll() is None:
                guest.send_signal(signal.SIGINT)  # pytest ends the guests it has booted
                guest.wait()
        print(f"\nthe guest tests, {GUEST}:\n\n{log.read_text(errors='replace')}", flush=True)
    return rest or status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
