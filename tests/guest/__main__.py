"""`python -m tests.guest [--systemd] COMMAND...`: one command in a guest of its own, for trying things out."""

import sys
import tempfile
from pathlib import Path

from tests.guest.guest import Guest, Hardware
from tests.guest.image import build_program, find_or_build, why_not


def main() -> int:
    words = sys.argv[1:]
    systemd = words[:1] == ["--systemd"]
    reason = why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        program = Path(name) / "program.img"
        build_program(program)
        guest = Guest(find_or_build(), program, Path(name) / "machine", Hardware(systemd=systemd))
        try:
            finished = guest.finish(*words[systemd:], seconds=3600)
            print(finished.output, end="")
        finally:
            print(guest.console, file=sys.stderr)
            guest.kill()
    return finished.status


if __name__ == "__main__":
    sys.exit(main())
