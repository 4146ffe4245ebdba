"""Frames: what goes in comes out, and only at its own place, volume and generation."""

import struct

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import frames
from tests.blockdev.segments_values import OTHER, VOLUME, compressor, cut, decompressor, flip

SECTOR = 512
contents = st.integers(1, 8).flatmap(
    lambda n: st.one_of(st.binary(min_size=n * SECTOR, max_size=n * SECTOR), st.just(bytes(range(256)) * (2 * n)))
)
places = st.tuples(st.integers(0, 2**34), st.integers(0, 2**24 - 1))


def decode(blob: bytes, extent: int = 5, gen: int = 7, volume: bytes = VOLUME.bytes) -> tuple[int, bytes]:
    return frames.decode(
        volume,
        blob,
        sector_bytes=SECTOR,
        extent=extent,
        gen=gen,
        what="seg/x",
        offset=64,
        decompressor=decompressor(),
    )


def frame(
    raw: bytes = b"sector.." * 64, *, packed: bool = True, extent: int = 5, start: int = 3, gen: int = 7
) -> bytes:
    place = frames.place_of(extent, start)
    return frames.encode(VOLUME.bytes, place, len(raw) // SECTOR, gen, raw, compressor() if packed else None)


def sealed(head: bytes, payload: bytes, volume: bytes = VOLUME.bytes) -> bytes:
    """A frame around any header, with the checksum a writer would put in."""
    return head + struct.pack("<I", crc32c(payload, crc32c(head, crc32c(volume)))) + payload


@given(contents, places, st.integers(0, 2**64 - 1), st.booleans(), st.binary(max_size=70))
def test_decode_gives_back_what_was_encoded(
    raw: bytes, place: tuple[int, int], gen: int, packed: bool, padding: bytes
) -> None:
    extent, start = place
    blob = frame(raw, packed=packed, extent=extent, start=start, gen=gen)
    assert decode(blob + padding, extent, gen) == (start, raw)
    header = frames.parse_header(blob, what="seg/x")
    assert (header.extent, header.start, header.gen) == (extent, start, gen)
    assert header.stored == len(blob) - frames.HEADER_BYTES
    assert header.sectors == len(raw) // SECTOR


@given(contents, st.booleans(), st.integers(0))
def test_any_flipped_bit_is_corrupt(raw: bytes, packed: bool, bit: int) -> None:
    with pytest.raises(CorruptFormat, match=r"^seg/x: .* at offset 64$"):
        decode(flip(frame(raw, packed=packed), bit))


@given(contents, st.booleans(), st.integers(0))
def test_any_cut_is_corrupt(raw: bytes, packed: bool, length: int) -> None:
    with pytest.raises(CorruptFormat, match="cut short"):
        decode(cut(frame(raw, packed=packed), length))


@given(st.binary(max_size=200))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        decode(blob)


@pytest.mark.parametrize(("extent", "gen"), [(6, 7), (5, 8)])
def test_a_frame_of_another_place_or_generation_is_corrupt(extent: int, gen: int) -> None:
    with pytest.raises(CorruptFormat, match=r"extent 5 generation 7 where extent . generation . should be"):
        decode(frame(), extent, gen)


def test_a_frame_of_another_volume_is_corrupt() -> None:
    with pytest.raises(CorruptFormat, match="checksum"):
        decode(frame(), volume=OTHER.bytes)


def test_a_frame_moved_within_its_extent_says_where_it_belongs() -> None:
    assert decode(frame(start=3))[0] == 3
    moved = bytearray(frame(start=3))
    moved[8:16] = frames.place_of(5, 4).to_bytes(8, "little")
    with pytest.raises(CorruptFormat, match="checksum"):
        decode(bytes(moved))


def test_incompressible_data_is_stored_as_it_is() -> None:
    noise = b"".join(crc32c(i.to_bytes(2, "little")).to_bytes(4, "little") for i in range(SECTOR // 4))
    assert len(frame(noise)) == frames.HEADER_BYTES + SECTOR
    assert len(frame(noise[:4] * (SECTOR // 4))) < frames.HEADER_BYTES + SECTOR // 2


@pytest.mark.parametrize("codec", [2, 0x40, frames.CODEC_ENCRYPTED | 2])
def test_an_unknown_codec_is_refused(codec: int) -> None:
    head = struct.pack("<IBBHQQI", frames.MAGIC, codec, 0, 1, frames.place_of(5, 3), 7, SECTOR)
    with pytest.raises(CorruptFormat, match=f"unknown codec {codec}"):
        decode(sealed(head, bytes(SECTOR)))


def test_unknown_flags_are_refused() -> None:
    head = struct.pack("<IBBHQQI", frames.MAGIC, 0, 0x10, 1, frames.place_of(5, 3), 7, SECTOR)
    with pytest.raises(CorruptFormat, match="unknown frame flags 0x10"):
        decode(sealed(head, bytes(SECTOR)))


def test_a_frame_shorter_than_its_header_says_is_refused() -> None:
    head = struct.pack("<IBBHQQI", frames.MAGIC, 0, 0, 2, frames.place_of(5, 3), 7, SECTOR)
    with pytest.raises(CorruptFormat, match="holds 512 bytes, its header says 1024"):
        decode(sealed(head, bytes(SECTOR)))


def test_a_payload_that_claims_to_unpack_to_a_terabyte_costs_nothing() -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    head = struct.pack("<IBBHQQI", frames.MAGIC, frames.CODEC_ZSTD, 0, 1, frames.place_of(5, 3), 7, len(bomb))
    with pytest.raises(CorruptFormat, match="claims 1099511627776 bytes where 512 should be"):
        decode(sealed(head, bomb))


def test_a_payload_with_something_behind_its_zstd_frame_is_refused() -> None:
    payload = compressor().compress(bytes(SECTOR)) + b"more"
    head = struct.pack("<IBBHQQI", frames.MAGIC, frames.CODEC_ZSTD, 0, 1, frames.place_of(5, 3), 7, len(payload))
    with pytest.raises(CorruptFormat, match="does not decompress"):
        decode(sealed(head, payload))
