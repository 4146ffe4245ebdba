"""Which records are shown."""

import pytest

from integrity.record import timestamp
from integrity.reports.choose import Choice, moment
from tests.integrity.reports.worlds import T0, record


@pytest.mark.parametrize(
    ("choice", "passes"),
    [
        (Choice(), True),
        (Choice(key="2026/*.jpg"), True),
        (Choice(key="2026/?.jpg"), False),
        (Choice(key="*.JPG"), False),
        (Choice(bucket="photos"), True),
        (Choice(bucket="photo"), False),
        (Choice(actor="ALICE"), True),
        (Choice(actor="192.0.2"), True),
        (Choice(actor="bob"), False),
        (Choice(ops=("put", "copy")), True),
        (Choice(ops=("delete",)), False),
        (Choice(phases=("done",)), True),
        (Choice(phases=("intent",)), False),
        (Choice(since=timestamp(T0)), True),
        (Choice(until=timestamp(T0)), False),
        (Choice(since=timestamp(T0 + 1)), False),
        (Choice(key="2026/*", actor="alice", ops=("put",)), True),
        (Choice(key="2026/*", actor="bob", ops=("put",)), False),
    ],
)
def test_every_condition_must_hold(choice: Choice, passes: bool) -> None:
    one = record(key="2026/11/a.jpg", bucket="photos", who={"name": "alice", "ip": "192.0.2.1"})
    assert choice.passes(one) is passes


def test_what_a_record_does_not_have_matches_nothing() -> None:
    assert not Choice(key="*").passes(record(op="control"))
    assert not Choice(actor="a").passes(record(op="control"))
    assert Choice().passes(record(op="control"))


def test_housekeeping_is_shown_where_it_is_asked_for() -> None:
    heartbeat = record(op="checkpoint", source="ledger")
    assert not Choice().passes(heartbeat)
    assert Choice(everything=True).passes(heartbeat)
    assert Choice(ops=("checkpoint",)).passes(heartbeat)
    closing = record(op="control", source="ledger", detail={"what": "close"})
    assert not Choice().passes(closing)
    assert Choice().passes(record(op="control", source="ledger", phase="unknown")), (
        "what a crash left is no housekeeping"
    )


@pytest.mark.parametrize("key", ["[", "[!", "a" * 5000, "*b" * 40 + "x", "\\", "(a+)+$"])
def test_a_pattern_is_never_a_program(key: str) -> None:
    assert not Choice(key=key).passes(record(key="b" * 900))


def test_what_cannot_be_meant_is_said() -> None:
    with pytest.raises(ValueError, match="'putt' is not known"):
        Choice(ops=("putt",))
    with pytest.raises(ValueError, match="not before the second"):
        Choice(since=timestamp(2), until=timestamp(1))


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("", ""),
        ("2026-11-22", "2026-11-22T00:00:00.000000Z"),
        ("2026-11-22T06:00", "2026-11-22T06:00:00.000000Z"),
        ("2026-11-22T06:00:00+02:00", "2026-11-22T04:00:00.000000Z"),
        ("2h", timestamp(T0 - 7200)),
        ("1d", timestamp(T0 - 86400)),
        ("99999999999h", timestamp(0)),
    ],
)
def test_times_are_dates_or_so_long_ago(text: str, means: str) -> None:
    assert moment(text, T0) == means


@pytest.mark.parametrize("text", ["yesterday", "2026-13-01", "-2h", "0001-01-01T00:00+14:00"])
def test_another_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no time"):
        moment(text, T0)
