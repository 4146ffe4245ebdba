"""Checksums are cut at the blocks of the volume, however the bytes arrive."""

from hypothesis import given
from hypothesis import strategies as st

from blockdev.checksum import block_checksums, crc32c, first_bad_block
from blockdev.units import BLOCK_BYTES


def test_the_polynomial_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # the check value of RFC 3385's CRC32C


@given(
    first=st.integers(0, 15).map(lambda sector: sector * 512),
    sizes=st.lists(st.integers(0, 9000), max_size=6),
)
def test_any_split_of_the_bytes_gives_the_same_checksums(first: int, sizes: list[int]) -> None:
    data = bytes(index * 7 % 251 for index in range(sum(sizes)))
    buffers, at = [], 0
    for size in sizes:
        buffers.append(memoryview(data)[at : at + size])
        at += size
    expected, at = [], 0
    while at < len(data):
        end = min(len(data), at + BLOCK_BYTES - (first + at) % BLOCK_BYTES)
        expected.append(crc32c(data[at:end]))
        at = end
    assert block_checksums(buffers, first) == expected


def test_the_first_bad_block_is_named() -> None:
    data = bytearray(3 * BLOCK_BYTES)
    sums = block_checksums([data])
    assert first_bad_block(memoryview(data), sums) == -1
    data[2 * BLOCK_BYTES] = 1
    assert first_bad_block(memoryview(data), sums) == 2
    data[BLOCK_BYTES - 1] = 1
    assert first_bad_block(memoryview(data), sums) == 0
