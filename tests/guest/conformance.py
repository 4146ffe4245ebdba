"""iscsi-test-cu, from the host, against the kernel's target with our daemon behind it.

    python -m tests.guest.conformance            the table to stdout
    python -m tests.guest.conformance --write    and to docs/protocol/iscsi-test-cu-lio.md

One rule: what fails here and passes with our own portal is the kernel's, and the reason is told; without one it is a fault.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from tests.guest.doors import GuestDoor, Volume
from tests.guest.guest import Guest, Hardware
from tests.guest.image import build_program, find_or_build, why_not
from tests.protocol.conformance_run import KNOWN_FAILURES, ROOT, Family, families, missing, run_family

PAGE = ROOT / "docs" / "protocol" / "iscsi-test-cu-lio.md"
SECONDS = 240

REASONS: dict[str, str] = dict(KNOWN_FAILURES)
"""Why a test fails, by family and name."""


def run_all(port: int, iqn: str) -> list[Family]:
    """Every family against LUN 0 of `iqn` on this host's loopback; its data is destroyed."""
    url = f"iscsi://127.0.0.1:{port}/{iqn}/0"
    return [run_family(name, tests, url, seconds=SECONDS) for name, tests in families().items() if name != "ReadOnly"]


def render(results: list[Family]) -> str:
    """docs/protocol/iscsi-test-cu-lio.md."""
    total = {outcome: sum(family.count(outcome) for family in results) for outcome in ("passed", "failed", "skipped")}
    lines = [
        "# Conformance behind the kernel's target: iscsi-test-cu",
        "",
        "libiscsi's conformance tool (Debian's `libiscsi-bin` 1.19.0) against LIO in a guest (Debian 12, Linux 6.1) with our",
        "daemon as its TCMU handler and a volume of 128 MiB in a local directory. Drawn by `python -m tests.guest.conformance",
        "--write`. [iscsi-test-cu.md](iscsi-test-cu.md) is the same for our own portal.",
        "",
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped.",
        "",
        "| family | passed | failed | skipped | remark |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for family in results:
        remarks = [
            f"{test}: {REASONS.get(f'{family.name}.{test}', outcome)}"
            for test, outcome in family.tests.items()
            if outcome not in ("passed", "skipped")
        ]
        if family.count("skipped"):
            remarks.append("skipped: " + "; ".join(family.skips))
        lines.append(
            f"| {family.name} | {family.count('passed')} | {family.count('failed', 'hung', 'crashed')} | "
            f"{family.count('skipped')} | {'; '.join(remarks)} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"update {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if why_not() or missing():
        print(why_not() or missing(), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        program = Path(name) / "program.img"
        build_program(program)
        guest = Guest(find_or_build(), program, Path(name) / "machine", Hardware(memory_mib=2048, forwards=[3260]))
        try:
            volume = Volume("suite", 128, "suite")
            GuestDoor(guest, [volume], listen=["0.0.0.0:3260"])
            results = run_all(guest.forwarded[3260], volume.iqn)
        finally:
            print(guest.console, file=sys.stderr)
            guest.kill()
    print(render(results))
    if options.write:
        PAGE.write_text(render(results), encoding="utf-8")
    wrong = [line for family in results for line in family.unexpected]
    return 1 if [line for line in wrong if line.split(":")[0] not in REASONS] else 0


if __name__ == "__main__":
    sys.exit(main())
