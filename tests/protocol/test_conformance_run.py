"""The harness tells passed, failed, skipped, hung and crashed apart: a tester that cannot fail tests nothing."""

from tests.protocol.conformance_run import KNOWN_FAILURES, PAGE, Family, parse, render

OUTPUT = """
Suite: Some
  Test: Good ...passed
  Test: Absent ...    [SKIPPED] WRITEATOMIC16 is not implemented.
passed
  Test: Bad ...
    [FAILED] WRITE10 command failed with status 2
FAILED
    1. test_bad.c:45  - CU_ASSERT_EQUAL(_r,0)
  Test: Cut ...
    Send WRITE10"""


def test_outcomes() -> None:
    family = parse("Some", OUTPUT)
    assert family.tests == {"Good": "passed", "Absent": "skipped", "Bad": "failed", "Cut": "crashed"}
    assert family.skips == ["WRITEATOMIC16 is not implemented"]
    assert family.unexpected == ["Some.Bad: failed", "Some.Cut: crashed"]


def test_known_failures_are_expected_and_explained() -> None:
    family = Family("GetLBAStatus", {"UnmapSingle": "failed", "Simple": "failed"})
    assert family.unexpected == ["GetLBAStatus.Simple: failed"]
    assert KNOWN_FAILURES["GetLBAStatus.UnmapSingle"] in render([family])


def test_hung_is_never_expected() -> None:
    assert Family("GetLBAStatus", {"UnmapSingle": "hung"}).unexpected


def test_page_has_no_unexplained_failure() -> None:
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 7 and cells[3].isdigit() and int(cells[3]):
            assert any(f"{cells[1]}." in name for name in KNOWN_FAILURES), line
