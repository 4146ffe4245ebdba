"""`python -m tests.guard`: measures every operation and prints it beside its budget; `--write` makes the table anew."""

import argparse
import sys
import time

from tests.guard.budget import TABLE, compare, load, measure, write
from tests.guard.operations import OPERATIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.guard", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"keep what is measured now in {TABLE.name}")
    options = parser.parse_args()
    counts: dict[str, dict[str, float]] = {}
    rose: list[str] = []
    for operation in OPERATIONS:
        begin = time.monotonic()
        counts[operation.name] = found = measure(operation)
        said = ", ".join(f"{count:.10g} {kind}" for kind, count in found.items())
        print(f"{operation.name}: {said} per {operation.unit} ({time.monotonic() - begin:.1f} s)", flush=True)
        if not options.write:
            above, below = compare(operation.name, found, load())
            rose += above
            print(*above, *below, sep="\n", end="\n" if above or below else "")
    if options.write:
        write(OPERATIONS, counts)
    return 1 if rose else 0


if __name__ == "__main__":
    sys.exit(main())
