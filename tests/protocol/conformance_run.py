"""Runs libiscsi's conformance tool, iscsi-test-cu, family by family, against our portal and, for comparison, against tgt.

    python -m tests.protocol.conformance_run            every subject; what came of it to .results/iscsi-test-cu.json
    python -m tests.protocol.conformance_run --write    and to conformance.json and docs/protocol/iscsi-test-cu.md

One rule: each family is a process of its own with its own time limit, so that one that hangs costs that family only. Every
test of ours that fails or is skipped has its reason in `REASONS`, and every reason there is needed.
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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import tgt
from tests.servers import processes
from tests.system.machine import Server, create

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "protocol" / "iscsi-test-cu.md"
RECORD = Path(__file__).with_name("conformance.json")
"""What the page is drawn from: subject -> family -> test -> outcome, as of the last --write."""
RESULTS = ROOT / ".results" / "iscsi-test-cu.json"
BINARY = "iscsi-test-cu"
PACKAGE = "libiscsi-bin"
FAMILY_SECONDS = 90
MIB = 1024 * 1024
SIZE_BYTES = 256 * MIB

REASONS = {
    "Sanitize.Readonly": (
        "before it asks whether SANITIZE exists, the test sets software write protect by MODE SELECT; that bit is not "
        "changeable here: whether a volume may be written is its operator's setting"
    ),
    "Sanitize.*": (
        "SANITIZE promises that nothing written before can be recovered; snapshots, clones and the versions that a "
        "bucket may keep make that a promise we could not keep. UNMAP and deleting the volume say what they do"
    ),
    "PreventAllow.*": "the medium is not removable, so there is no removal to prevent",
    "StartStopUnit.Simple": "the medium is not removable, so it cannot be ejected",
    "WriteSame10.ZeroBlocks": "a count of zero, which would mean the whole disk, is refused (WSNZ in VPD B0h)",
    "WriteSame16.ZeroBlocks": "a count of zero, which would mean the whole disk, is refused (WSNZ in VPD B0h)",
    "GetLBAStatus.UnmapSingle": (
        "the tool asks for LBA n + 1 and expects the answer to begin at n + logical blocks per physical block, "
        "which agree only on disks with physical blocks of one sector"
    ),
    "CompareAndWrite.InvalidDataOutSize": "needs physical blocks of more than one sector",
    "WriteSame10.InvalidDataOutSize": "needs physical blocks of more than one sector",
    "WriteSame16.InvalidDataOutSize": "needs physical blocks of more than one sector",
    "WriteSame10.UnmapUnaligned": "needs physical blocks of more than one sector",
    "WriteSame16.UnmapUnaligned": "needs physical blocks of more than one sector",
}
"""Why a test of ours fails or is skipped; the first name that fits counts."""

DATA_FAMILIES = (
    *("Read6", "Read10", "Read12", "Read16", "ReadOnly"),
    *("Write10", "Write12", "Write16", "WriteSame10", "WriteSame16", "WriteVerify10", "WriteVerify12", "WriteVerify16"),
    *("Verify10", "Verify12", "Verify16", "CompareAndWrite", "OrWrite", "Unmap", "MultipathIO"),
    *("iSCSIcmdsn", "iSCSIdatasn", "iSCSIResiduals", "iSCSITMF"),
)
"""Families that move data: each must have run, with tests that passed and none that failed."""

_TEST = re.compile(r"^  Test: (\S+) \.\.\.(.*?)(?=^  Test: |^Suite: |^Run Summary:|\Z)", re.MULTILINE | re.DOTALL)

Outcomes = dict[str, dict[str, str]]
"""Family -> test -> "passed", "failed", "skipped", "hung" or "crashed"."""


def reason_for(family: str, test: str) -> str:
    """Why this one does not pass, as far as that is known."""
    return next((REASONS[name] for name in (f"{family}.{test}", f"{family}.*") if name in REASONS), "")


@dataclass
class Family:
    """What became of one family's tests: name -> "passed", "failed", "skipped", "hung" or "crashed"."""

    name: str
    tests: dict[str, str] = field(default_factory=dict)
    skips: list[str] = field(default_factory=list)
    """The tool's own reasons for skipping, each once."""
    failures: list[str] = field(default_factory=list)
    """Its own words on what failed."""

    def count(self, *outcomes: str) -> int:
        return sum(outcome in outcomes for outcome in self.tests.values())

    @property
    def unexpected(self) -> list[str]:
        """Tests that did not do as they should, and for which there is no reason."""
        return [
            f"{self.name}.{test}: {outcome} {'; '.join(self.failures)}".rstrip()
            for test, outcome in self.tests.items()
            if outcome in ("hung", "crashed") or (outcome != "passed" and not reason_for(self.name, test))
        ]


def missing() -> str:
    """Why the tool cannot be run, or an empty string."""
    return "" if shutil.which(BINARY) else f"needs {BINARY}: apt-get install {PACKAGE}"


def listed_tests() -> list[tuple[str, str, str]]:
    """Suite, family and test, as the installed tool lists them."""
    listed = subprocess.run([BINARY, "--list"], capture_output=True, text=True, timeout=30, check=False).stdout
    names = (line.strip().split(".") for line in listed.splitlines())
    return [(name[0], name[1], name[2]) for name in names if len(name) == 3]


def families() -> dict[str, list[str]]:
    """Family -> tests of the suite ALL."""
    found: dict[str, list[str]] = {}
    for suite, family, test in listed_tests():
        if suite == "ALL":
            found.setdefault(family, []).append(test)
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
    family.failures = list(dict.fromkeys(re.findall(r"\[FAILED\] *(.*?) *$", output, re.MULTILINE)))
    return family


def run_family(name: str, tests: list[str], url: str, *, seconds: float = FAMILY_SECONDS) -> Family:
    """Never raises for what the tool or the portal do."""
    assert url.startswith("iscsi://127.0.0.1:"), "the tool destroys data: it may only see disks made for it"
    # The multipath tests want a second path; the same portal through a second session is one.
    urls = [url, url] if name == "MultipathIO" else [url]
    command = [BINARY, "--dataloss", "--allow-sanitize", "--verbose", f"--test=ALL.{name}", *urls]
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


@dataclass(frozen=True, slots=True)
class Served:
    """A disk that is served now. `said`: what its server logged that it should not have."""

    url: str
    alive: Callable[[], bool]
    said: Callable[[], str]


def _own(log_file: Path) -> str:
    lines = log_file.read_text(errors="replace").splitlines()
    return "".join(line + "\n" for line in lines if not line.startswith("iscsi://"))


@contextmanager
def ram(directory: Path, read_only: bool, *options: str) -> Iterator[Served]:
    log_file = directory / f"portal{'-read-only' if read_only else ''}.log"
    log_file.unlink(missing_ok=True)
    with portal(log_file, *options, *(["--read-only"] if read_only else [])) as (url, process):
        yield Served(url, lambda: process.poll() is None, lambda: _own(log_file))


@contextmanager
def ram_4096(directory: Path, read_only: bool) -> Iterator[Served]:
    with ram(directory, read_only, "--sector", "4096") as served:
        yield served


@contextmanager
def volume(directory: Path, read_only: bool) -> Iterator[Served]:
    """The product itself: daemon, journal, worker, and a store that is a directory."""
    url = f"file://{directory}/store/conformance"
    if not (directory / "store").exists():
        create(url, size=str(SIZE_BYTES))
    # A journal with room: on a busy machine the tool must not be told BUSY, which it takes for a failure.
    options = ["--journal-size", "1G", *(["--read-only"] if read_only else [])]
    with Server(directory, url, *options).start() as server:
        yield Served(server.url, lambda: not server.ended, lambda: _warnings(server.log()))
        server.stop()


def _warnings(log: str) -> str:
    return "".join(line + "\n" for line in log.splitlines() if "level=warning" in line or "level=error" in line)


@contextmanager
def beside(directory: Path, read_only: bool) -> Iterator[Served]:
    """tgt, as its package makes it, on a file in memory."""
    with tgt.Tgt(directory, SIZE_BYTES, read_only=read_only) as served:
        yield Served(served.url, lambda: True, str)


@dataclass(frozen=True, slots=True)
class Subject:
    """A target the tool is run against; the context takes a directory and whether the disk is to refuse writes."""

    name: str
    words: str
    ours: bool
    serve: Callable[[Path, bool], AbstractContextManager[Served]]


SUBJECTS = (
    Subject("ram", "the portal, RAM disk, sectors of 512 bytes", True, ram),
    Subject("ram-4096", "the portal, RAM disk, sectors of 4096 bytes", True, ram_4096),
    Subject("volume", "`s3block serve`, a volume on a `file://` store, sectors of 512 bytes", True, volume),
    Subject("tgt", "tgt 1.0.85 (Debian), a file in memory, sectors of 512 bytes", False, beside),
)


def run_whole(url: str) -> tuple[int, int]:
    """Everything in one process, as the tool does it when no family is named: how many tests ran, how many failed.
    Without SANITIZE, in whose tests the tool sleeps for ever when it has run the others before."""
    assert url.startswith("iscsi://127.0.0.1:")
    command = [BINARY, "--dataloss", "--normal", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, check=False)
    found = re.search(r"^\s*tests +(\d+) +(\d+) +\d+ +(\d+)", done.stdout, re.MULTILINE)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return int(found[2]), int(found[3])


def run_all(subject: Subject, directory: Path) -> tuple[list[Family], str]:
    """Every family against one subject, and what its servers had to say (which should be nothing)."""
    results: list[Family] = []
    said = ""
    listed = families()
    for read_only in (False, True):
        with subject.serve(directory, read_only) as served:
            for name, tests in listed.items():
                if (name == "ReadOnly") == read_only:
                    family = run_family(name, tests, served.url)
                    if not served.alive():
                        family.tests = dict.fromkeys(tests, "crashed")
                    results.append(family)
            said += served.said()
    return sorted(results, key=lambda family: list(listed).index(family.name)), said


# --- the page ---------------------------------------------------------------------------------------------------------


def outcomes(results: list[Family]) -> Outcomes:
    return {family.name: dict(sorted(family.tests.items())) for family in results}


def recorded() -> dict[str, Outcomes]:
    found: dict[str, Outcomes] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


_BAD = ("failed", "hung", "crashed")


def _counts(tests: dict[str, str]) -> tuple[int, int, int]:
    values = list(tests.values())
    return values.count("passed"), sum(map(values.count, _BAD)), values.count("skipped")


def render(record: dict[str, Outcomes]) -> str:
    """docs/protocol/iscsi-test-cu.md."""
    lines = [
        "# Conformance: iscsi-test-cu",
        "",
        "libiscsi's conformance tool (Debian's `libiscsi-bin` 1.19.0, `--dataloss --allow-sanitize`) against disks of 256",
        "MiB. Drawn by `python -m tests.protocol.conformance_run --write`; tests compare. The tool itself counts a test",
        "that it skipped as passed, so both numbers are here.",
        "",
        "| target | passed | failed | skipped | passed as the tool counts |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for subject in SUBJECTS:
        if subject.name in record:
            every = {
                f"{family}.{test}": o for family, tests in record[subject.name].items() for test, o in tests.items()
            }
            passed, failed, skipped = _counts(every)
            lines.append(f"| {subject.words} | {passed} | {failed} | {skipped} | {passed + skipped} of {len(every)} |")
    lines += [
        "",
        "The tool's suites ALL, SCSI, iSCSI and LINUX name the same tests, and ALL has every one; without `-t` the tool",
        "runs them all, some three times, 615 in one process; a test does that too. ReadOnly runs against a disk that",
        "refuses writes; MultipathIO with the same portal as both paths.",
        "",
        "## What does not pass here, and why",
        "",
        "| tests | outcome | where | reason |",
        "| --- | --- | --- | --- |",
    ]
    lines += _reasons({subject.name: record[subject.name] for subject in SUBJECTS if subject.ours})
    lines += [
        "",
        "## By family",
        "",
        "Passed, failed and skipped; the portal with its RAM disk of 512 byte sectors, and tgt.",
        "",
        "| family | portal | tgt | tgt fails |",
        "| --- | --- | --- | --- |",
    ]
    for family, tests in record["ram"].items():
        theirs = record.get("tgt", {}).get(family, {})
        fails = ", ".join(test for test, outcome in theirs.items() if outcome in _BAD)
        ours_told, theirs_told = (" / ".join(map(str, _counts(told))) for told in (tests, theirs))
        lines.append(f"| {family} | {ours_told} | {theirs_told} | {fails} |")
    return "\n".join(lines) + "\n"


def _reasons(ours: dict[str, Outcomes]) -> Iterator[str]:
    """One row per reason, tests of a family together where all of them share it."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    for family in next(iter(ours.values())):
        places: dict[tuple[str, str], list[str]] = {}
        for subject, record in ours.items():
            for test, outcome in record[family].items():
                if outcome != "passed":
                    places.setdefault((test, outcome), []).append(subject)
        for (test, outcome), where in places.items():
            place = "everywhere" if len(where) == len(ours) else ", ".join(where)
            rows.setdefault((family, outcome, place, reason_for(family, test)), []).append(test)
    for (family, outcome, place, reason), tests in rows.items():
        whole = len(tests) == len(next(iter(ours.values()))[family]) and len(tests) > 1
        names = f"{family} (all {len(tests)})" if whole else ", ".join(f"{family}.{test}" for test in tests)
        yield f"| {names} | {outcome} | {place} | {reason} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(subject.name for subject in SUBJECTS))
    parser.add_argument("--write", action="store_true", help="update the record and docs/protocol/iscsi-test-cu.md")
    options = parser.parse_args()
    if missing():
        print(missing(), file=sys.stderr)
        return 2
    record = recorded() if RECORD.exists() else {}
    wrong = []
    for subject in SUBJECTS:
        if options.subjects and subject.name not in options.subjects:
            continue
        if not subject.ours and tgt.missing():
            print(f"tgt is left out: {tgt.missing()}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory() as directory:
            results, said = run_all(subject, Path(directory))
        record[subject.name] = outcomes(results)
        print(subject.name, *(f"{name}: {tests}" for name, tests in record[subject.name].items()), sep="\n")
        if subject.ours:
            wrong += [f"{subject.name}: {line}" for family in results for line in family.unexpected]
            wrong += [f"{subject.name} said {line}" for line in said.splitlines()]
    save(RESULTS, record)
    if options.write:
        save(RECORD, record)
        PAGE.write_text(render(record), encoding="utf-8")
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


def save(path: Path, record: dict[str, Outcomes]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
