"""Runs libiscsi's conformance tool, iscsi-test-cu, against our portal over a RAM disk, family by family.

    python -m tests.protocol.conformance_run            results to .results/iscsi-test-cu.json, the table to stdout
    python -m tests.protocol.conformance_run --write    and the table to docs/protocol/iscsi-test-cu.md

One rule: each family is a process of its own with its own time limit, so that one that hangs costs that family only. A test
that fails is a fault of ours unless `KNOWN_FAILURES` says whose it is; why a test was skipped is told in the tool's own words.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.servers import processes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "protocol" / "iscsi-test-cu.md"
RESULTS = ROOT / ".results" / "iscsi-test-cu.json"
BINARY = "iscsi-test-cu"
PACKAGE = "libiscsi-bin"
FAMILY_SECONDS = 90

KNOWN_FAILURES = {
    "GetLBAStatus.UnmapSingle": (
        "the tool asks for LBA n + 1 and expects the answer to begin at n + logical blocks per physical block, "
        "which agree only on disks with physical blocks of one sector"
    ),
}

DATA_FAMILIES = (
    *("Read6", "Read10", "Read12", "Read16", "ReadOnly"),
    *("Write10", "Write12", "Write16", "WriteSame10", "WriteSame16", "WriteVerify10", "WriteVerify12", "WriteVerify16"),
    *("Verify10", "Verify12", "Verify16", "CompareAndWrite", "OrWrite", "Unmap", "MultipathIO"),
    *("iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF"),
)
"""Families that move data: each must have run, with tests that passed and none that failed."""

_TEST = re.compile(r"^  Test: (\S+) \.\.\.(.*?)(?=^  Test: |^Suite: |^Run Summary:|\Z)", re.MULTILINE | re.DOTALL)


@dataclass
class Family:
    """What became of one family's tests: name -> "passed", "failed", "skipped", "hung" or "crashed"."""

    name: str
    tests: dict[str, str] = field(default_factory=dict)
    skips: list[str] = field(default_factory=list)
    """The tool's own reasons for skipping, each once."""

    def count(self, *outcomes: str) -> int:
        return sum(outcome in outcomes for outcome in self.tests.values())

    @property
    def unexpected(self) -> list[str]:
        """Tests that did not do as they should."""
        return [
            f"{self.name}.{test}: {outcome}"
            for test, outcome in self.tests.items()
            if outcome in ("hung", "crashed") or (outcome == "failed" and f"{self.name}.{test}" not in KNOWN_FAILURES)
        ]


def missing() -> str:
    """Why the tool cannot be run, or an empty string."""
    return "" if shutil.which(BINARY) else f"needs {BINARY}: apt-get install {PACKAGE}"


def families() -> dict[str, list[str]]:
    """Family -> tests, as the installed tool lists them."""
    listed = subprocess.run([BINARY, "--list"], capture_output=True, text=True, timeout=30, check=False).stdout
    found: dict[str, list[str]] = {}
    for line in listed.splitlines():
        parts = line.strip().split(".")
        if parts[0] == "ALL" and len(parts) == 3:
            found.setdefault(parts[1], []).append(parts[2])
    return found


def parse(name: str, output: str) -> Family:
    """The tool's verbose output, test by test."""
    family = Family(name)
    for match in _TEST.finditer(output):
        test, text = match[1], match[2]
        if re.search(r"^FAILED$|\.\.\.FAILED|^\s*FAILED\s*$", text, re.MULTILINE) or text.lstrip().startswith("FAILED"):
            outcome = "failed"
        elif "passed" not in text:
            outcome = "crashed"
        else:
            outcome = "skipped" if "[SKIPPED]" in text else "passed"
        family.tests[test] = outcome
    family.skips = list(dict.fromkeys(re.findall(r"\[SKIPPED\] *(.*?)\.? *$", output, re.MULTILINE)))
    return family


def run_family(name: str, tests: list[str], url: str, *, seconds: float = FAMILY_SECONDS) -> Family:
    """Never raises for what the tool or the portal do."""
    assert url.startswith("iscsi://127.0.0.1:"), "the tool destroys data: it may only see our own RAM disk"
    # The multipath tests want a second path; the same portal through a second session is one.
    urls = [url, url] if name == "MultipathIO" else [url]
    command = [BINARY, "--dataloss", "--verbose", f"--test=ALL.{name}", *urls]
    ended = "crashed"
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        output = done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        output = (late.stdout or b"").decode(errors="replace")
        ended = "hung"
    family = parse(name, output)
    for test in tests:
        if family.tests.get(test, "crashed") == "crashed":
            family.tests[test] = ended
    return family


@contextmanager
def portal(log_file: Path, *options: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The RAM portal on a free port: its URL and its process."""
    command = [sys.executable, "-m", "tests.protocol.ram_portal", "--mib", "256", *options]
    process = processes.start(command, log_file)
    try:
        give_up = time.monotonic() + 30
        while True:
            found = re.search(r"^iscsi://\S+", log_file.read_text(), re.MULTILINE)
            if found:
                break
            if process.poll() is not None or time.monotonic() > give_up:
                raise processes.ServerFailed(f"the RAM portal did not start:\n{processes.tail(log_file)}")
            time.sleep(0.05)
        yield found[0], process
    finally:
        processes.end(process, signal.SIGTERM)


def run_all(directory: Path) -> tuple[list[Family], str]:
    """Every family, and what the portals had to say (which should be nothing)."""
    results: list[Family] = []
    logs = {"": directory / "portal.log", "--read-only": directory / "portal-read-only.log"}
    for option, log_file in logs.items():
        with portal(log_file, *([option] if option else [])) as (url, process):
            for name, tests in families().items():
                if (name == "ReadOnly") == bool(option):
                    family = run_family(name, tests, url)
                    if process.poll() is not None:
                        family.tests = dict.fromkeys(tests, "crashed")
                    results.append(family)
    said = "".join(
        line + "\n"
        for log_file in logs.values()
        for line in log_file.read_text(errors="replace").splitlines()
        if not line.startswith("iscsi://")
    )
    return sorted(results, key=lambda family: list(families()).index(family.name)), said


def render(results: list[Family]) -> str:
    """docs/protocol/iscsi-test-cu.md."""
    total = {outcome: sum(family.count(outcome) for family in results) for outcome in ("passed", "failed", "skipped")}
    lines = [
        "# Conformance: iscsi-test-cu",
        "",
        "libiscsi's conformance tool (Debian's `libiscsi-bin` 1.19.0) against our portal over a RAM disk of 256 MiB with",
        "sectors of 512 bytes. Drawn by `python -m tests.protocol.conformance_run --write`; a test compares.",
        "",
        f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped.",
        "",
        "| family | passed | failed | skipped | remark |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for family in results:
        remarks = [
            f"{test}: {KNOWN_FAILURES.get(f'{family.name}.{test}', outcome)}"
            for test, outcome in family.tests.items()
            if outcome not in ("passed", "skipped")
        ]
        if family.count("skipped"):
            remarks.append("skipped: " + "; ".join(family.skips))
        lines.append(
            f"| {family.name} | {family.count('passed')} | {family.count('failed', 'hung', 'crashed')} | "
            f"{family.count('skipped')} | {'; '.join(remarks)} |"
        )
    lines += [
        "",
        "ReadOnly runs against a disk that refuses writes; MultipathIO with the same portal as both paths.",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update docs/protocol/iscsi-test-cu.md")
    options = parser.parse_args()
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as directory:
        results, said = run_all(Path(directory))
    save(results)
    print(render(results))
    if options.write:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(render(results), encoding="utf-8")
    wrong = [line for family in results for line in family.unexpected]
    print("\n".join(wrong) + said, file=sys.stderr)
    return 1 if wrong or said else 0


def save(results: list[Family]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(family) for family in results], indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
