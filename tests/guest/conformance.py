"""iscsi-test-cu, from the host, against the kernel's target with our daemon behind it.

    python -m tests.guest.conformance            what came of it to stdout
    python -m tests.guest.conformance --write    and to conformance.json and docs/protocol/iscsi-test-cu-lio.md

One rule: what does not pass here and passes with our own portal is the kernel's doing, and the reason is told; without one it
is a fault.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.guest.doors import GuestDoor, Volume
from tests.guest.guest import Guest, Hardware
from tests.guest.image import build_program, find_or_build, why_not
from tests.protocol.conformance_run import ROOT, Family, families, missing, outcomes, reason_for, run_family

PAGE = ROOT / "docs" / "protocol" / "iscsi-test-cu-lio.md"
RECORD = Path(__file__).with_name("conformance.json")
"""What the page is drawn from: family -> test -> outcome, as of the last --write."""
SECONDS = 400
"""For one family: some send thousands of commands, one after the other."""
BAD = ("failed", "hung", "crashed")

REASONS = {
    "iSCSIResiduals.*": (
        "LIO passes a command on to user space without comparing the length in its CDB with the expected transfer length: "
        "it never reports an overflow, and for writes no underflow"
    ),
    "iSCSIdatasn.iSCSIDataSnInvalid": (
        "LIO drops a Data-Out PDU whose DataSN it has had, and closes the connection after a gap (error recovery level "
        "0); the tool waits for a status"
    ),
    "Reserve6.TargetColdReset": "LIO lets an initiator reset a target only if its ACL says so",
    "Reserve6.TargetWarmReset": "LIO lets an initiator reset a target only if its ACL says so",
}
"""Why a test does not pass behind LIO although it does, or is skipped for another reason, with our portal."""


_LATE = (
    "LIO gives a RESERVE(6) up when it has taken the session apart, a moment after it has answered the logout; the tool asks "
    "at once, and now and then it passes"
)
SOMETIMES = {
    "Reserve6.Logout": _LATE,
    "Reserve6.ITNexusLoss": _LATE,
    "ReceiveCopyResults.CopyStatus": (
        "all initiators are one nexus to a handler behind LIO, so that one may ask for the status of another's copy, "
        "where SPC-4 wants an error; a status is told once, and then it passes"
    ),
}
"""Why a test passes in one run and not in another."""


def reason(family: str, test: str) -> str:
    """Empty where none is known."""
    own = REASONS | SOMETIMES
    return own.get(f"{family}.{test}") or own.get(f"{family}.*") or reason_for(family, test)


LONG = (
    *(
        "CompareAndWrite",
        "GetLBAStatus",
        "MultipathIO",
        "OrWrite",
        "Prefetch10",
        "Prefetch16",
        "Read6",
        "Read12",
        "Read16",
    ),
    *("Unmap", "Verify10", "Verify12", "Verify16", "Write12", "Write16", "WriteSame10", "WriteSame16"),
    *("WriteVerify10", "WriteVerify12"),
)
"""Families of many commands, whose answers are made by the code that answers our portal's initiators too."""


def run_all(port: int, iqn: str, *, left_out: Sequence[str] = ()) -> list[Family]:
    """Every family against LUN 0 of `iqn` on this host's loopback; its data is destroyed. ReadOnly wants a disk that
    refuses writes, which is told by the handler as it is by the portal, and is left out."""
    url = f"iscsi://127.0.0.1:{port}/{iqn}/0"
    results = []
    for name, tests in families().items():
        if name != "ReadOnly" and name not in left_out:
            _wait_for_the_last_session(url)
            results.append(run_family(name, tests, url, seconds=SECONDS))
    return results


def _wait_for_the_last_session(url: str, seconds: float = 30.0) -> None:
    """What it reserved is given up a moment after its end, and the tool does not even begin on a reserved disk."""
    give_up = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            ["iscsi-readcapacity16", url], capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode == 0 and "RETURNED LOGICAL BLOCK ADDRESS" in done.stdout:
            return
        assert time.monotonic() < give_up, done.stdout + done.stderr
        time.sleep(0.1)


def unexplained(record: dict[str, dict[str, str]]) -> list[str]:
    """What does not pass and has no reason."""
    return [
        f"{family}.{test}: {outcome}"
        for family, tests in record.items()
        for test, outcome in tests.items()
        if outcome != "passed" and not reason(family, test)
    ]


def render(record: dict[str, dict[str, str]]) -> str:
    """docs/protocol/iscsi-test-cu-lio.md."""
    every = [outcome for tests in record.values() for outcome in tests.values()]
    failed = sum(outcome in BAD for outcome in every)
    lines = [
        "# Conformance behind the kernel's target: iscsi-test-cu",
        "",
        "libiscsi's conformance tool (Debian's `libiscsi-bin` 1.19.0, `--dataloss --allow-sanitize`) against LIO in an",
        "emulated guest (Debian 12, Linux 6.1), with our daemon as its TCMU handler and a volume of 128 MiB in a local",
        "directory. Drawn by `python -m tests.guest.conformance --write`. [iscsi-test-cu.md](iscsi-test-cu.md) is the same",
        "for our own portal.",
        "",
        f"{every.count('passed')} passed, {failed} failed, {every.count('skipped')} skipped.",
        "",
        "| family | passed | failed | skipped |",
        "| --- | ---: | ---: | ---: |",
    ]
    for family, tests in record.items():
        told = list(tests.values())
        bad = sum(outcome in BAD for outcome in told)
        lines.append(f"| {family} | {told.count('passed')} | {bad} | {told.count('skipped')} |")
    lines += ["", "## What does not pass here, and why", "", "| tests | outcome | reason |", "| --- | --- | --- |"]
    rows: dict[tuple[str, str, str], list[str]] = {}
    for family, tests in record.items():
        for test, outcome in tests.items():
            if outcome != "passed":
                rows.setdefault((family, outcome, reason(family, test)), []).append(test)
    for (family, outcome, why), names in rows.items():
        whole = len(names) == len(record[family]) and len(names) > 1
        told = [f"{family} (all {len(names)})"] if whole else [f"{family}.{name}" for name in names]
        lines.append(f"| {', '.join(told)} | {outcome} | {why} |")
    passed = [name for name in SOMETIMES if record[name.split(".")[0]][name.split(".")[1]] == "passed"]
    lines += [f"| {name} | passed, not always | {SOMETIMES[name]} |" for name in passed]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"update the record and {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if why_not() or missing():
        print(why_not() or missing(), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        program = Path(name) / "program.img"
        build_program(program)
        guest = Guest(
            find_or_build(), program, Path(name) / "machine", Hardware(memory_mib=2048, processors=2, forwards=[3260])
        )
        try:
            volume = Volume("suite", 128, "suite")
            GuestDoor(guest, [volume], listen=["0.0.0.0:3260"])
            results = run_all(guest.forwarded[3260], volume.iqn)
        finally:
            print(guest.console, file=sys.stderr)
            guest.kill()
    record = outcomes(results)
    for family in results:
        print(family.name, family.tests, *family.skips, *family.failures, sep="\n  ")
    if options.write:
        RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(render(record), encoding="utf-8")
    print("\n".join(unexplained(record)), file=sys.stderr)
    return 1 if unexplained(record) else 0


if __name__ == "__main__":
    sys.exit(main())
