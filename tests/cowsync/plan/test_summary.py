"""What a plan costs, in figures that were worked out by hand."""

import json
import random

import pytest

from cowsync.changes import Op, PlanLine
from cowsync.errors import StateDamaged
from cowsync.plan.summary import Rates, Tally, Terms, summary_from_json
from s3core.endpoint import Prices
from tests.cowsync.plan.lines import add, modify, remove, vanish

MIB, GIB = 1 << 20, 1 << 30
HERE = Prices("USD", per_1000_put=0.005, per_1000_get=0.0004, per_gib_month=0.023, per_gib_egress=0.09)
THERE = Prices("EUR", per_1000_put=0.01, per_1000_get=0.001, per_gib_month=0.006)
LINES = [
    add("a/1", 10 * MIB, storage_class="STANDARD"),
    modify("a/2", 200 * MIB, was_size=100 * MIB, hot=True),
    vanish("b", 5),
    remove("b/1", 7),
    add("c", 6 * GIB, storage_class="STANDARD"),
]


def tallied(lines: list[PlanLine], terms: Terms) -> Tally:
    tally = Tally(terms)
    assert list(tally.watch(lines)) == lines
    return tally


def test_a_streamed_plan() -> None:
    terms = Terms(HERE, THERE, part_bytes=64 * MIB, scan_lists=2000)
    summary = tallied(LINES, terms).summary(Rates(2.0, 64 * MIB))
    moved = 10 * MIB + 200 * MIB + 6 * GIB
    assert {name: (one.objects, one.bytes) for name, one in summary.ops.items()} == {
        "add": (2, 10 * MIB + 6 * GIB),
        "modify": (1, 200 * MIB),
        "vanish": (1, 5),
        "remove": (1, 7),
    }
    assert (summary.streamed_bytes, summary.copied_bytes, summary.growth_bytes) == (moved, 0, moved - 100 * MIB)
    requests = summary.requests
    # One object in one part, one in 4 parts, one in 96; a HEAD at each end, one more before an upload is completed.
    assert (requests.writes, requests.parts, requests.deletes) == (1 + 6 + 98 + 1, 100, 1)
    assert (requests.reads, requests.checks, requests.scan_lists) == (1 + 4 + 96 + 3, 3 + 2 + 1, 2000)
    assert summary.source_cost.scan == pytest.approx(0.01)
    assert summary.source_cost.requests == pytest.approx(104 * 0.0004 / 1000)
    assert summary.source_cost.egress == pytest.approx(moved / GIB * 0.09)
    assert summary.target_cost.once == pytest.approx(106 * 0.01 / 1000 + 6 * 0.001 / 1000)
    assert summary.target_cost.month == pytest.approx((moved - 100 * MIB) / GIB * 0.006)
    assert (summary.source_cost.currency, summary.target_cost.currency) == ("USD", "EUR")
    assert summary.seconds == pytest.approx(4 / 2 + moved / (64 * MIB))
    assert (summary.hot.objects, summary.hot_keys) == (1, ("a/2",))
    assert summary.largest[0] == (6 * GIB, "c")
    assert {name: one.objects for name, one in summary.classes.items()} == {"": 1, "STANDARD": 2}
    assert [(prefix, sorted(ops)) for prefix, ops in summary.prefixes] == [
        ("", ["add", "vanish"]),
        ("a/", ["add", "modify"]),
        ("b/", ["remove"]),
    ]


def test_a_plan_that_the_server_copies_costs_no_egress() -> None:
    summary = tallied(LINES, Terms(HERE, HERE, server_copy=True, quarantine=False, part_bytes=1 * GIB)).summary()
    assert (summary.streamed_bytes, summary.source_cost.egress) == (0, 0.0)
    # Two copies, one object above 5 GiB in six parts with its beginning and end, and a HEAD at the source.
    assert (summary.requests.writes, summary.requests.parts, summary.requests.reads) == (2 + 8, 6, 1)
    assert summary.seconds is None


def test_the_largest_prefixes_are_those_of_a_plain_count() -> None:
    dice = random.Random(1)
    sizes = {f"p{number:04}/": [dice.randrange(1000) for _ in range(dice.randrange(1, 4))] for number in range(500)}
    lines = [add(f"{prefix}{place}", size) for prefix, each in sizes.items() for place, size in enumerate(each)]
    summary = tallied(lines, Terms(HERE, THERE)).summary()
    expected = sorted(sizes, key=lambda prefix: (-sum(sizes[prefix]), -len(sizes[prefix])))[:100]
    assert [sum(sizes[prefix]) for prefix, _ in summary.prefixes] == [sum(sizes[prefix]) for prefix in expected]
    assert summary.prefixes_all == 500
    assert len(summary.largest) == 20


def test_parts_are_those_of_the_source_where_its_etag_tells() -> None:
    lines = [add("a", 10 * MIB, etag="ab-2"), add("b", 10 * MIB, etag="ab-x"), add("c", 0, etag="ab-1")]
    requests = tallied(lines, Terms(HERE, THERE, tagged=True, checks=False)).summary().requests
    assert (requests.writes, requests.parts, requests.reads, requests.checks) == (4 + 1 + 1, 2, 4 + 3 + 2, 0)


def test_no_object_has_more_parts_than_s3_takes() -> None:
    assert tallied([add("k", 5 << 40)], Terms(HERE, THERE, part_bytes=5 * MIB)).summary().requests.parts == 10_000


def test_it_is_json_and_text() -> None:
    summary = tallied(LINES, Terms(HERE, THERE)).summary()
    document = json.loads(json.dumps(summary.to_json()))
    assert document["ops"]["add"]["objects"] == 2
    for one in (summary, tallied(LINES, Terms(HERE, THERE)).summary(Rates(1.0, 1.0))):
        assert summary_from_json(json.loads(json.dumps(one.to_json()))) == one
    for name in document:
        with pytest.raises(StateDamaged, match="summary"):
            summary_from_json({**document, name: "?"})
        with pytest.raises(StateDamaged, match="summary"):
            summary_from_json({key: value for key, value in document.items() if key != name})
    text = summary.text()
    for words in ("add ", "modify", "6.2 GiB through here", "EUR", "not known", "'a/2'", "(no prefix)"):
        assert words in text
    nothing = Tally(Terms(HERE, THERE)).summary()
    assert nothing.text().startswith("nothing to do")
    assert nothing.seconds == 0.0
    assert [op for op in Op if op.value in nothing.ops] == []
