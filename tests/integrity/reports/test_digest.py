"""What a report counts."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from integrity.record import timestamp
from integrity.reports import digest as module
from integrity.reports.choose import Choice
from integrity.reports.digest import BINS_MAX, OTHERS, STEPS_S, Digest, Timeline
from tests.integrity.reports.worlds import T0, busy, record


def test_an_operation_is_counted_once_by_how_it_ended() -> None:
    digest = Digest(Choice())
    who = {"name": "backup", "host": "pve1"}
    digest.add(record(0, phase="intent", key="a", bucket="b", who=who))
    digest.add(record(1, phase="done", intent=0))
    digest.add(record(2, phase="intent", op="delete", key="c", bucket="b"))
    digest.add(record(3, phase="intent", key="d", bucket="b", who=who))
    digest.add(record(4, phase="unknown", intent=3))
    digest.add(record(5, phase="observed", key="a", bucket="b"))
    digest.add(record(6, op="checkpoint", source="ledger"))
    left = digest.finish()
    assert dict(digest.totals) == {"done": 1, "unknown": 1, "observed": 1, "unfinished": 1}
    assert [(row["n"], row["state"], row["key"]) for row in left] == [(2, "unfinished", "c"), (4, "unknown", "d")]
    assert digest.actors.rows["backup@pve1"] == {"done": 1, "unknown": 1}, "an outcome need not say again who it was"
    assert digest.housekeeping == 1
    assert digest.records["pve1.1"] == 7


def test_intents_of_writers_are_kept_apart() -> None:
    digest = Digest(Choice())
    digest.add(record(0, writer="a.1", phase="intent", key="x"))
    digest.add(record(1, writer="b.1", phase="done", intent=0, key="y"))
    assert [row["writer"] for row in digest.finish()] == ["a.1"]


def test_an_outcome_after_the_time_asked_for_ends_its_intent() -> None:
    digest = Digest(Choice(until=timestamp(T0 + 10)))
    digest.add(record(0, at=T0, phase="intent", key="x"))
    digest.add(record(1, at=T0 + 20, phase="intent", key="late"))
    digest.add(record(2, at=T0 + 21, phase="done", intent=0))
    assert digest.finish() == []
    assert dict(digest.totals) == {"done": 1}
    assert digest.records["pve1.1"] == 1


def test_an_outcome_in_time_counts_though_its_intent_came_before() -> None:
    digest = Digest(Choice(since=timestamp(T0 + 10)))
    digest.add(record(0, at=T0, phase="intent", key="x"))
    digest.add(record(1, at=T0 + 20, phase="done", intent=0, key="x"))
    assert digest.finish() == []
    assert dict(digest.totals) == {"done": 1}


def test_totals_agree_with_every_table() -> None:
    digest = Digest(Choice())
    for one in busy(3000):
        digest.add(one)
    digest.finish()
    for tally in (digest.operations, digest.actors, digest.days):
        total = sum(sum(row.values()) for row in tally.rows.values())
        assert total == sum(digest.totals.values()) == 3000
    assert sum(map(sum, digest.timeline.shown()["bins"])) == 3000


def test_a_million_names_take_no_more_room_than_ten_thousand() -> None:
    digest = Digest(Choice())
    for n in range(module.NAMES_MAX + 50):
        digest.add(record(n, key="k", bucket=f"b{n}", who={"name": f"n{n}"}))
    assert len(digest.actors.rows) == module.NAMES_MAX + 1
    assert digest.actors.rows[OTHERS]["done"] == 50


def test_more_intents_than_are_remembered_are_told_as_a_number() -> None:
    digest = Digest(Choice())
    one = record(0, phase="intent", key="k")
    for n in range(module.UNFINISHED_MAX + 3):
        digest.add({**one, "n": n})
    assert digest.forgotten == 3
    assert len(digest.finish()) == module.UNFINISHED_MAX


@given(st.lists(st.floats(0, 253_402_300_799), max_size=60))
def test_a_timeline_loses_nothing_and_stays_small(times: list[float]) -> None:
    line = Timeline()
    for at in times:
        line.add(at, "done")
    shown = line.shown()
    assert sum(map(sum, shown["bins"])) == len(times)
    assert len(shown["bins"]) <= BINS_MAX
    for at in times:
        assert shown["bins"][int((at - shown["begins"]) // shown["step_s"])][0] > 0


def test_each_width_divides_the_next() -> None:
    assert all(wide % narrow == 0 for narrow, wide in pairwise(STEPS_S))


def test_the_order_of_writers_does_not_matter() -> None:
    records = list(busy(300))
    by_writer = sorted(records, key=lambda one: (one["writer"], one["n"]))
    random.Random(3).shuffle(records)
    first, second = Digest(Choice()), Digest(Choice())
    for one in by_writer:
        first.add(one)
    for one in sorted(records, key=lambda one: (one["at"], one["n"])):
        second.add(one)
    assert first.finish() == second.finish()
    assert first.operations.shown() == second.operations.shown()
