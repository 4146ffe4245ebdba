"""Part plans: every byte in one part, 10,000 parts at most, and the largest object fits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.upload.plan import (
    FLAT_PARTS,
    OBJECT_BYTES_MAX,
    PARTS_MAX,
    PartPlan,
    plan_known,
    plan_stream,
)
from s3core.bucket import PART_BYTES_MAX, PART_BYTES_MIN

MIB = 1 << 20
PART_MIBS = st.integers(5, 5120)


@given(PART_MIBS)
def test_a_stream_of_any_first_part_size_can_become_the_largest_object(mib: int) -> None:
    plan = plan_stream(mib * MIB, PART_BYTES_MAX)
    assert plan.object_bytes_max == OBJECT_BYTES_MAX
    assert all(plan.size(number) == mib * MIB for number in (1, FLAT_PARTS))
    assert plan.size(PARTS_MAX) <= max(mib * MIB, 1250 * MIB)


@settings(max_examples=20, deadline=None)
@given(PART_MIBS, st.integers(10, 5120))
def test_parts_grow_never_shrink_and_stay_under_the_bound(mib: int, largest: int) -> None:
    plan = plan_stream(mib * MIB, largest * MIB)
    sizes = [plan.size(number) for number in range(1, PARTS_MAX + 1)]
    assert sizes == sorted(sizes)
    assert PART_BYTES_MIN <= sizes[0] <= sizes[-1] <= largest * MIB
    for number in range(1, PARTS_MAX + 1, 499):
        assert plan.offset(number) == sum(sizes[: number - 1])
    offset = plan.offset(PARTS_MAX + 1)
    assert offset == sum(sizes)
    assert plan.object_bytes_max == min(offset, OBJECT_BYTES_MAX)


@settings(max_examples=30, deadline=None)
@given(PART_MIBS, st.integers(0, OBJECT_BYTES_MAX))
def test_a_known_size_is_cut_into_equal_parts(mib: int, size: int) -> None:
    plan = plan_known(size, mib * MIB)
    cut = list(plan.cut(size))
    assert 1 <= len(cut) <= PARTS_MAX
    assert sum(length for _, _, length in cut) == size
    assert {length for _, _, length in cut[:-1]} <= {plan.first}
    assert all(offset == plan.offset(number) for number, offset, _ in cut)


@given(PART_MIBS, st.integers(0, OBJECT_BYTES_MAX))
def test_equal_parts_are_equal_and_an_expected_size_fits(mib: int, expected: int) -> None:
    plan = plan_stream(mib * MIB, PART_BYTES_MAX, equal=True, expected=expected)
    assert plan.size(1) == plan.size(PARTS_MAX)
    assert plan.object_bytes_max >= expected


@given(PART_MIBS, st.integers(10, 5120), st.booleans(), st.integers(0, 1 << 44))
def test_a_plan_is_read_as_it_was_written(mib: int, largest: int, equal: bool, expected: int) -> None:
    plan = plan_stream(mib * MIB, largest * MIB, equal=equal, expected=expected)
    assert PartPlan.parse(plan.text) == plan


@given(st.text(max_size=40))
def test_any_other_text_is_no_plan(text: str) -> None:
    plan = PartPlan.parse(text)
    assert plan is None or plan.text == text


def test_what_cannot_be_is_said() -> None:
    with pytest.raises(ValueError, match="more than an object may have"):
        plan_known(OBJECT_BYTES_MAX + 1, 16 * MIB)
    with pytest.raises(ValueError, match="the spool must hold two"):
        plan_stream(16 * MIB, MIB)
    with pytest.raises(ValueError, match="part numbers"):
        plan_known(1, 16 * MIB).size(0)
    assert PartPlan.parse("1 0 0 0") is None
    assert PartPlan.parse("1 007 0 99") is None
