"""The harness tells passed, failed, skipped, hung and crashed apart: a tester that cannot fail tests nothing."""

import pytest

from tests.protocol.conformance_run import PAGE, REASONS, SUBJECTS, Family, parse, reason_for, recorded, render

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
OURS = [subject.name for subject in SUBJECTS if subject.ours]


def test_outcomes() -> None:
    family = parse("Some", OUTPUT)
    assert family.tests == {"Good": "passed", "Absent": "skipped", "Bad": "failed", "Cut": "crashed"}
    assert family.skips == ["WRITEATOMIC16 is not implemented"]
    assert family.unexpected == [
        f"Some.{test}: {outcome} WRITE10 command failed with status 2"
        for test, outcome in (("Absent", "skipped"), ("Bad", "failed"), ("Cut", "crashed"))
    ]


def test_failures_with_a_reason_are_expected() -> None:
    family = Family("GetLBAStatus", {"UnmapSingle": "failed", "Simple": "failed"})
    assert family.unexpected == ["GetLBAStatus.Simple: failed"]


def test_hung_is_never_expected() -> None:
    assert Family("GetLBAStatus", {"UnmapSingle": "hung"}).unexpected


def test_page_is_drawn_from_the_record() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(recorded())


@pytest.mark.parametrize("subject", OURS)
def test_everything_that_does_not_pass_has_a_reason(subject: str) -> None:
    for family, tests in recorded()[subject].items():
        for test, outcome in tests.items():
            assert outcome == "passed" or reason_for(family, test), f"{family}.{test}"


def test_every_reason_is_needed() -> None:
    used = {
        reason_for(family, test)
        for subject in OURS
        for family, tests in recorded()[subject].items()
        for test, outcome in tests.items()
        if outcome != "passed"
    }
    assert used == set(REASONS.values())


@pytest.mark.parametrize("subject", OURS)
def test_no_fewer_pass_than_with_tgt(subject: str) -> None:
    """As the tool counts, and counted strictly."""
    counts = {}
    for name in (subject, "tgt"):
        every = [outcome for tests in recorded()[name].values() for outcome in tests.values()]
        counts[name] = every.count("passed"), every.count("passed") + every.count("skipped")
    assert counts[subject] >= counts["tgt"]
    assert counts[subject][1] >= counts["tgt"][1]
