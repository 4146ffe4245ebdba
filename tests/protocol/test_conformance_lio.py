"""The page about libiscsi's suite against LIO says what was recorded, and gives a reason for all that does not pass."""

import json

from tests.guest.conformance import PAGE, REASONS, RECORD, reason, render, unexplained


def test_the_page_is_drawn_from_the_record() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == render(record)
    assert unexplained(record) == []


def test_every_reason_is_needed() -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    bad = {
        reason(family, test)
        for family, tests in record.items()
        for test, outcome in tests.items()
        if outcome != "passed"
    }
    assert set(REASONS.values()) <= bad
