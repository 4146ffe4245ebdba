"""One naming scheme for the metrics of all tools."""

import re
import string
from collections import Counter

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from s3core.console import program_version
from s3core.gauges import BUILD_INFO, new_registry
from tests.architecture.metric_tables import Declared, declared

THINGS = {"s3block": "volume", "cowsync": "mirror", "s3integrity": "ledger", "pve-s3": "pve", "s3-envctl": "envctl"}
UNITS = ("seconds", "bytes", "ratio")
OTHER_SPELLINGS = {
    "s",
    "ms",
    "sec",
    "secs",
    "milliseconds",
    "minutes",
    "hours",
    "kb",
    "mb",
    "gb",
    "kib",
    "mib",
    "gib",
    "percent",
}
ALL = tuple(declared())


def unit_of(one: Declared) -> str:
    """The word that the name must end in (before `_total`): the table's unit where that is a base unit."""
    return "ratio" if one.unit.startswith("0 to 1") or one.unit == "ratio" else one.unit if one.unit in UNITS else ""


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_names_follow_the_scheme(one: Declared) -> None:
    thing = THINGS[one.tool] + "_" if one.tool else "build_"
    assert re.fullmatch(rf"bucketworks_{thing}[a-z][a-z0-9_]*[a-z0-9]", one.name)
    assert "__" not in one.name
    assert one.name.endswith("_total") == (one.kind == "counter")
    base = one.name.removesuffix("_total")
    unit = unit_of(one)
    for word in UNITS:
        assert base.endswith("_" + word) == (word == unit), f"{one.name} is told in {one.unit!r}"
    assert not set(base.split("_")) & OTHER_SPELLINGS
    assert not base.endswith(("_count", "_sum", "_bucket", "_created", "_info")) or one.name == BUILD_INFO


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_metric_says_what_it_is(one: Declared) -> None:
    assert len(one.help) >= len("Size of")
    assert one.help[-1] in string.ascii_letters + string.digits + ")`"
    assert one.unit
    assert all(re.fullmatch(r"[a-z]+", label) for label in one.labels)
    assert len(set(one.labels)) == len(one.labels)
    assert not {"instance", "job"} & set(one.labels), "the scrape has those"


def test_no_name_is_declared_twice() -> None:
    """A name with two sets of labels cannot be summed or joined; one that begins as a histogram's would shadow its parts."""
    assert [name for name, times in Counter(sample for one in ALL for sample in one.samples).items() if times > 1] == []


def test_every_tool_says_what_it_is() -> None:
    for tool in THINGS:
        (family,) = text_string_to_metric_families(generate_latest(new_registry(tool)).decode())
        (sample,) = family.samples
        assert (sample.name, sample.labels, sample.value) == (
            BUILD_INFO,
            {"version": program_version(), "tool": tool},
            1,
        )
