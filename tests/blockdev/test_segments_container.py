"""Segment headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import container
from tests.blockdev.segments_values import VOLUME, cut, flip

u64 = st.integers(0, 2**64 - 1)


@given(u64, st.integers(0, 2**32 - 1), st.integers(0, 0xFFFE), st.integers(0, 100_000))
def test_the_header_comes_back(gen: int, epoch: int, n: int, items: int) -> None:
    blob = container.header(VOLUME.bytes, gen, epoch, n, items)
    assert len(blob) == container.HEADER_BYTES
    assert container.parse_header(blob + b"patches", what="seg/x") == (VOLUME.bytes, gen, epoch, n)


@given(st.integers(0))
def test_any_flipped_bit_is_corrupt(bit: int) -> None:
    with pytest.raises(CorruptFormat, match=r"^seg/x: "):
        container.parse_header(flip(container.header(VOLUME.bytes, 7, 1, 0, 3), bit), what="seg/x")


@given(st.integers(0))
def test_any_cut_is_corrupt(length: int) -> None:
    with pytest.raises(CorruptFormat, match="cut short"):
        container.parse_header(cut(container.header(VOLUME.bytes, 7, 1, 0, 3), length), what="seg/x")


@given(st.binary(max_size=128))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        container.parse_header(blob, what="seg/x")
