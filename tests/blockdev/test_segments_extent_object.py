"""Extent objects: every frame is where the length table says, and the header vouches for the table."""

import itertools
import os

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import extent_object, frames
from blockdev.segments.cipher import FrameCipher
from blockdev.units import KIB, MIB, Geometry
from tests.blockdev.segments_values import GEOMETRY, VOLUME, compressor, cut, decompressor, flip

FRAME = GEOMETRY.frame_bytes
NOISE = b"".join(crc32c(i.to_bytes(4, "little")).to_bytes(4, "little") for i in range(FRAME // 4))
content = st.sampled_from([None, bytes([7]) * FRAME, NOISE, NOISE[: FRAME // 2] + bytes(FRAME // 2)])
object_contents = st.lists(content, min_size=8, max_size=8)


def encoded(contents: list[bytes | None], *, packed: bool = True) -> tuple[bytes, bytes, int]:
    parts, table, digest = extent_object.encode(
        GEOMETRY, VOLUME.bytes, 9, 4, 2, contents, compressor() if packed else None
    )
    return b"".join(parts), table, digest


def read_back(blob: bytes, table: bytes) -> list[bytes | None]:
    offsets = extent_object.frame_offsets(GEOMETRY, table)
    found: list[bytes | None] = []
    for index, code in enumerate(table):
        if code == extent_object.ZERO_FRAME:
            found.append(None)
            continue
        start, raw = frames.decode(
            VOLUME.bytes,
            blob[offsets[index] : offsets[index + 1]],
            sector_bytes=GEOMETRY.sector_bytes,
            extent=9,
            gen=4,
            what="ext/x",
            offset=offsets[index],
            decompressor=decompressor(),
        )
        assert start == index * GEOMETRY.sectors_per_frame
        found.append(raw)
    return found


@given(object_contents, st.booleans())
def test_every_frame_is_where_the_table_says(contents: list[bytes | None], packed: bool) -> None:
    blob, table, digest = encoded(contents, packed=packed)
    assert read_back(blob, table) == contents
    assert len(blob) == extent_object.frame_offsets(GEOMETRY, table)[-1]
    assert extent_object.parse_header(GEOMETRY, blob, what="ext/x") == (VOLUME.bytes, 9, 4, 2, table)
    assert extent_object.digest([blob]) == digest


@given(st.integers(0))
def test_any_flipped_bit_of_the_front_is_corrupt_or_padding(bit: int) -> None:
    blob, table, digest = encoded([None, NOISE, *[None] * 6])
    front = extent_object.data_offset(GEOMETRY)
    damaged = flip(blob[:front], bit) + blob[front:]
    assert extent_object.digest([damaged]) != digest
    if bit % (front * 8) >= 8 * (extent_object.HEADER_BYTES + len(table)):
        assert extent_object.parse_header(GEOMETRY, damaged, what="ext/x")[4] == table
        return
    with pytest.raises(CorruptFormat, match=r"^ext/x: "):
        extent_object.parse_header(GEOMETRY, damaged, what="ext/x")


@given(st.integers(0, extent_object.HEADER_BYTES + GEOMETRY.frames_per_extent - 1))
def test_any_cut_of_the_front_is_corrupt(length: int) -> None:
    blob, _, _ = encoded([NOISE] * 8)
    with pytest.raises(CorruptFormat):
        extent_object.parse_header(GEOMETRY, blob[:length], what="ext/x")


@given(st.integers(0))
def test_a_cut_object_never_reads_as_something_else(length: int) -> None:
    contents: list[bytes | None] = [NOISE, None, bytes([7]) * FRAME, *[NOISE] * 5]
    blob, table, _ = encoded(contents)
    last = extent_object.frame_offsets(GEOMETRY, table)[-2]
    with pytest.raises(CorruptFormat):
        # Only padding may be missing without harm; this object's last frame is raw and padded by less than a unit.
        read_back(cut(blob[: last + frames.HEADER_BYTES + FRAME], length), table)


def test_an_object_of_another_geometry_is_refused() -> None:
    blob, _, _ = encoded([None] * 8)
    other = Geometry(size_bytes=8 * MIB, frame_bytes=32 * KIB, extent_bytes=128 * KIB)
    with pytest.raises(CorruptFormat, match="does not fit the volume"):
        extent_object.parse_header(other, blob, what="ext/x")


def test_an_unwritten_extent_is_a_front_and_nothing_more() -> None:
    blob, table, _ = encoded([None] * 8)
    assert table == bytes(8)
    assert len(blob) == extent_object.data_offset(GEOMETRY)


@pytest.mark.parametrize("frame_kib", [16, 32, 64, 128])
def test_the_worst_frame_fits_its_length_code(frame_kib: int) -> None:
    """A raw frame needs one unit more than 256; code 255 stands for it, and no packed frame comes near."""
    geometry = Geometry(size_bytes=8 * MIB, frame_bytes=frame_kib * KIB, extent_bytes=128 * KIB)
    noise = (NOISE * 8)[: geometry.frame_bytes]
    noise = bytes(a ^ (i // FRAME) for i, a in enumerate(noise))
    sealing = FrameCipher(bytes(32), os.urandom)
    # What the zstd of today saves just a sixteenth of, and a little less.
    edge = [noise[: len(noise) * 15 // 16 - n] + bytes(len(noise) // 16 + n) for n in range(-64, 128, 16)]
    for packed, cipher in itertools.product((None, compressor()), (None, sealing)):
        parts, table, _ = extent_object.encode(
            geometry, VOLUME.bytes, 0, 1, 1, [noise] * geometry.frames_per_extent, packed, cipher
        )
        for content in edge:
            extent_object.encode(geometry, VOLUME.bytes, 0, 1, 1, [content], packed, cipher)
        offsets = extent_object.frame_offsets(geometry, table)
        assert sum(map(len, parts)) == offsets[-1]
        if packed is None:
            assert set(table) == {extent_object.RAW_FRAME}
