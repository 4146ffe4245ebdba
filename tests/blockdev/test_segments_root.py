"""Roots and map pages."""

import struct

import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import root
from blockdev.segments.root import Root
from tests.blockdev.segments_values import OTHER, VOLUME, cut, flip, refusal, roots

KEY = "root/0000000000000007-000001"
EMPTY = Root(7, 1, bytes(32), VOLUME, OTHER, OTHER, 4096, 1, 1 << 30)
entries = st.lists(st.tuples(st.integers(0, root.PAGE_EXTENTS - 1), st.binary(max_size=60)), max_size=20)


def resealed(raw: bytes, claimed: int | None = None, *, packed: bytes | None = None) -> bytes:
    """An empty root with another body, and every length and checksum as a writer would put it."""
    body = zstandard.ZstdCompressor().compress(raw) if packed is None else packed
    fields = list(root.HEADER.unpack_from(root.encode(EMPTY)))
    fields[12], fields[13], fields[14] = len(body), len(raw) if claimed is None else claimed, 0
    fields[14] = crc32c(body, crc32c(root.HEADER.pack(*fields)))
    return root.HEADER.pack(*fields) + body


@given(roots())
def test_decode_gives_back_what_was_encoded(value: Root) -> None:
    assert root.decode(root.encode(value), what=KEY, volume=value.volume) == value


@given(roots(), st.integers(0))
def test_any_flipped_bit_is_corrupt(value: Root, bit: int) -> None:
    with pytest.raises(CorruptFormat, match=f"^{KEY}: "):
        root.decode(flip(root.encode(value), bit), what=KEY)


@given(roots(), st.integers(0))
def test_any_cut_is_corrupt(value: Root, length: int) -> None:
    with pytest.raises(CorruptFormat):
        root.decode(cut(root.encode(value), length), what=KEY)


@given(st.binary(max_size=300))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        root.decode(blob, what=KEY)


@given(st.binary(max_size=200))
def test_a_sealed_body_of_garbage_is_corrupt_or_a_root(raw: bytes) -> None:
    error = refusal(lambda: root.decode(resealed(raw), what=KEY))
    assert error is None or error.what == KEY


@given(st.lists(st.integers(0, 2) | st.just(2**32 - 1), min_size=6, max_size=6), st.binary(max_size=120))
def test_counts_that_promise_too_much_are_corrupt(counts: list[int], rest: bytes) -> None:
    error = refusal(lambda: root.decode(resealed(struct.pack("<6I", *counts) + rest), what=KEY))
    assert error is None or error.what == KEY


def test_a_root_of_another_volume_is_corrupt() -> None:
    with pytest.raises(CorruptFormat, match="another volume"):
        root.decode(root.encode(EMPTY), what=KEY, volume=OTHER)


def test_a_delta_that_is_promised_and_not_there_is_corrupt() -> None:
    with pytest.raises(CorruptFormat, match="table cut short"):
        root.decode(resealed(struct.pack("<6I", 0, 0, 0, 0, 1, 0)), what=KEY)


def test_a_body_that_claims_a_terabyte_costs_nothing() -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(CorruptFormat, match="claims 1099511627776"):
        root.decode(resealed(b"", 100, packed=bomb), what=KEY)
    with pytest.raises(CorruptFormat, match="makes no sense"):
        root.decode(resealed(b"", 2**32 - 1, packed=bomb), what=KEY)
    with pytest.raises(CorruptFormat, match="claims 1099511627776"):
        list(root.decode_page(bomb, what="page/x", offset=64))


@given(entries)
def test_a_page_comes_back(values: list[tuple[int, bytes]]) -> None:
    assert list(root.decode_page(root.encode_page(values), what="page/x", offset=64)) == values


@given(entries, st.integers(0), st.booleans())
def test_a_damaged_page_is_seen_by_its_crc(values: list[tuple[int, bytes]], where: int, flipped: bool) -> None:
    """A page's checksum is kept in its PageRef; what does decode without it must not do anything but CorruptFormat."""
    page = root.encode_page(values)
    damaged = flip(page, where) if flipped else cut(page, where)
    assert crc32c(damaged) != crc32c(page)
    error = refusal(lambda: list(root.decode_page(damaged, what="page/x", offset=64)))
    assert error is None or (error.what, error.offset) == ("page/x", 64)


@pytest.mark.parametrize(
    "raw",
    [b"\0", struct.pack("<HI", 0, 5) + b"four", struct.pack("<HI", root.PAGE_EXTENTS, 0)],
    ids=["header", "value", "index"],
)
def test_a_page_that_breaks_off_or_names_too_high_an_extent_is_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptFormat, match=r"^page/x: "):
        list(root.decode_page(zstandard.ZstdCompressor().compress(raw), what="page/x", offset=64))
