"""Sealed frames: they open with the volume's key, in their place and whole; everything else is refused.

Whoever can write to a bucket can also make checksums hold: what is refused here is refused by the cipher alone, too.
"""

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import cipher, frames
from blockdev.segments.cipher import FrameCipher
from tests.blockdev.segments_values import OTHER, VOLUME, compressor, decompressor, flip

SECTOR = 512
KEY = bytes(range(32))
SEALING = FrameCipher(KEY, os.urandom)
TEXT = b"sector.." * 64
NOISE = os.urandom(SECTOR)
contents = st.integers(1, 8).flatmap(
    lambda n: st.one_of(st.binary(min_size=n * SECTOR, max_size=n * SECTOR), st.just(bytes(range(256)) * (2 * n)))
)


def encode(raw: bytes, *, extent: int = 5, start: int = 3, gen: int = 7, packed: bool = True) -> bytes:
    place = frames.place_of(extent, start)
    return frames.encode(VOLUME.bytes, place, len(raw) // SECTOR, gen, raw, compressor() if packed else None, SEALING)


def decode(
    blob: bytes,
    *,
    extent: int = 5,
    gen: int = 7,
    volume: UUID = VOLUME,
    opening: FrameCipher | None = SEALING,
) -> tuple[int, bytes]:
    return frames.decode(
        volume.bytes,
        blob,
        sector_bytes=SECTOR,
        extent=extent,
        gen=gen,
        what="seg/x",
        offset=64,
        decompressor=decompressor(),
        cipher=opening,
    )


def with_checksum(blob: bytes, volume: UUID = VOLUME) -> bytes:
    """The frame with the checksum that a writer would put in."""
    head, payload = blob[: frames.HEAD_BYTES], blob[frames.HEADER_BYTES :]
    return head + struct.pack("<I", crc32c(payload, crc32c(head, crc32c(volume.bytes)))) + payload


@given(contents, st.integers(0, 2**34), st.integers(0, 2**24 - 1), st.integers(0, 2**64 - 1), st.booleans())
def test_decode_gives_back_what_was_sealed(raw: bytes, extent: int, start: int, gen: int, packed: bool) -> None:
    blob = encode(raw, extent=extent, start=start, gen=gen, packed=packed)
    assert decode(blob + b"padding", extent=extent, gen=gen) == (start, raw)
    plain = frames.encode(
        VOLUME.bytes, frames.place_of(extent, start), len(raw) // SECTOR, gen, raw, compressor() if packed else None
    )
    assert len(blob) == len(plain) + cipher.OVERHEAD_BYTES


@given(contents.filter(any), st.booleans())
def test_nothing_of_the_content_is_in_it_and_no_two_are_alike(raw: bytes, packed: bool) -> None:
    first, second = encode(raw, packed=packed), encode(raw, packed=packed)
    assert raw[:64] not in first or not any(raw[:64])
    assert first[frames.HEADER_BYTES :] != second[frames.HEADER_BYTES :]


@pytest.mark.parametrize("raw", [TEXT, NOISE], ids=["packed", "raw"])
def test_every_flipped_bit_is_refused(raw: bytes) -> None:
    blob = encode(raw)
    for bit in range(len(blob) * 8):
        with pytest.raises(CorruptFormat):
            decode(flip(blob, bit))


@pytest.mark.parametrize("raw", [TEXT, NOISE], ids=["packed", "raw"])
def test_every_flipped_bit_is_refused_where_the_checksum_was_made_to_hold(raw: bytes) -> None:
    blob = encode(raw)
    for bit in range(len(blob) * 8):
        if frames.HEAD_BYTES <= bit // 8 < frames.HEADER_BYTES:
            continue  # the checksum itself
        with pytest.raises(CorruptFormat):
            decode(with_checksum(flip(blob, bit)))


@pytest.mark.parametrize("changed", [{"extent": 6}, {"gen": 8}, {"start": 4}])
def test_a_frame_moved_to_another_place_or_generation_is_refused(changed: dict[str, int]) -> None:
    """The header says the new place, the checksum holds, the payload is another frame's."""
    there = {"extent": 5, "start": 3, "gen": 7} | changed
    moved = (
        encode(TEXT, extent=there["extent"], start=there["start"], gen=there["gen"])[: frames.HEADER_BYTES]
        + encode(TEXT)[frames.HEADER_BYTES :]
    )
    with pytest.raises(CorruptFormat, match="does not decrypt"):
        decode(with_checksum(moved), extent=there["extent"], gen=there["gen"])


def test_a_frame_of_another_volume_with_the_same_key_is_refused() -> None:
    with pytest.raises(CorruptFormat, match="does not decrypt"):
        decode(with_checksum(encode(TEXT), OTHER), volume=OTHER)


@given(st.binary(min_size=32, max_size=32).filter(lambda key: key != KEY))
def test_a_wrong_key_is_refused(key: bytes) -> None:
    with pytest.raises(CorruptFormat, match=r"^seg/x: frame does not decrypt: .* at offset 64$"):
        decode(encode(TEXT), opening=FrameCipher(key, os.urandom))


def test_a_plain_frame_in_an_encrypted_volume_is_refused() -> None:
    plain = frames.encode(VOLUME.bytes, frames.place_of(5, 3), 1, 7, TEXT, compressor())
    with pytest.raises(CorruptFormat, match="plain frame in an encrypted volume"):
        decode(plain)


def test_an_encrypted_frame_in_a_plain_volume_is_refused() -> None:
    with pytest.raises(CorruptFormat, match="encrypted frame in a volume that is not encrypted"):
        decode(encode(TEXT), opening=None)


@pytest.mark.parametrize("length", [0, 12, 27])
def test_a_payload_too_short_to_be_sealed_is_refused(length: int) -> None:
    head = struct.pack("<IBBHQQI", frames.MAGIC, frames.CODEC_ENCRYPTED, 0, 1, frames.place_of(5, 3), 7, length)
    with pytest.raises(CorruptFormat, match="too few"):
        decode(with_checksum(head + bytes(4 + length)))


def test_without_the_key_damage_is_seen_and_content_is_not() -> None:
    blob = encode(TEXT)
    found = frames.verify(VOLUME.bytes, blob, extent=5, gen=7, what="seg/x", offset=0)
    assert (found.start, found.sectors) == (3, 1)
    for bit in range(len(blob) * 8):
        with pytest.raises(CorruptFormat):
            frames.verify(VOLUME.bytes, flip(blob, bit), extent=5, gen=7, what="seg/x", offset=0)


def test_threads_share_one_cipher() -> None:
    """More generations than subkeys are kept, so that they come and go while others use them."""
    gens = range(2 * cipher.SUBKEYS_KEPT)

    def there_and_back(gen: int) -> bool:
        return decode(encode(NOISE, gen=gen), gen=gen) == (3, NOISE)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(there_and_back, gens))


def test_a_data_key_has_one_length() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        FrameCipher(bytes(16), os.urandom)


def test_a_key_check_is_of_one_key_and_one_volume() -> None:
    checks = {cipher.key_check(key, volume.bytes) for key in (KEY, bytes(32)) for volume in (VOLUME, OTHER)}
    assert len(checks) == 4
    assert cipher.key_check(KEY, VOLUME.bytes) in checks
