"""Commit records: decode(encode(x)) == x, and the digest names exactly what was written."""

import struct
from dataclasses import replace

import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import record
from blockdev.segments.paths import ContainerRef
from blockdev.segments.record import PatchEntry, Record, RecordKind
from tests.blockdev.segments_values import OTHER, VOLUME, cut, flip, records, refusal

KEY = "log/0000000000000007"
SMALL = Record(
    seq=7,
    epoch=2,
    kind=RecordKind.DATA,
    nonce=bytes(range(16)),
    parent=bytes(range(32)),
    volume=VOLUME,
    lineage=OTHER,
    journal=OTHER,
    begin=4096,
    end=8192,
    time_us=1,
    size_bytes=1 << 30,
    patches=[PatchEntry(3, 8, 16, 0, 100, ContainerRef(7, 2, 0xFFFF))],
    note={"host": "node1"},
)


def blob_of(value: Record, inline: tuple[bytes, ...] = ()) -> bytes:
    return b"".join(bytes(part) for part in record.encode(value, inline)[0])


def resealed(blob: bytes, raw: bytes, claimed: int | None = None, *, packed: bytes | None = None) -> bytes:
    """The record with another index, and every length and checksum as a writer would put it."""
    index = zstandard.ZstdCompressor().compress(raw) if packed is None else packed
    fields = list(record.HEADER.unpack_from(blob))
    fields[14], fields[15], fields[18] = len(index), len(raw) if claimed is None else claimed, 0
    fields[18] = crc32c(index, crc32c(record.HEADER.pack(*fields)))
    return record.HEADER.pack(*fields) + index


@given(records(), st.lists(st.binary(max_size=40), max_size=3))
def test_decode_gives_back_what_was_encoded(value: Record, inline: list[bytes]) -> None:
    parts, digest, inline_offset = record.encode(value, inline)
    blob = b"".join(bytes(part) for part in parts)
    parsed = record.decode(blob, what=KEY, seq=value.seq, volume=value.volume)
    assert parsed.record == value
    assert (parsed.digest, parsed.inline_offset) == (digest, inline_offset)
    assert blob[inline_offset:] == b"".join(inline)
    assert parsed.inline_bytes == len(b"".join(inline))
    # The front of the object is enough to know all of it but the inline patches.
    assert record.decode(blob[:inline_offset], what=KEY) == parsed


@given(records(), st.integers(0))
def test_any_flipped_bit_is_corrupt(value: Record, bit: int) -> None:
    with pytest.raises(CorruptFormat, match=f"^{KEY}: "):
        record.decode(flip(blob_of(value), bit), what=KEY)


@given(records(), st.integers(0))
def test_any_cut_is_corrupt(value: Record, length: int) -> None:
    with pytest.raises(CorruptFormat):
        record.decode(cut(blob_of(value), length), what=KEY)


@given(st.binary(max_size=400))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        record.decode(blob, what=KEY)


def test_a_record_under_another_number_or_volume_is_corrupt() -> None:
    with pytest.raises(CorruptFormat, match="record 7 under the key of record 8"):
        record.decode(blob_of(SMALL), what=KEY, seq=8)
    with pytest.raises(CorruptFormat, match="another volume"):
        record.decode(blob_of(SMALL), what=KEY, volume=OTHER)


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"epoch": 3},
        {"nonce": bytes(16)},
        {"parent": bytes(32)},
        {"end": 8193},
        {"lineage": VOLUME},
        {"journal": VOLUME},
        {"kind": RecordKind.FENCE},
        {"patches": []},
        {"note": {}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_depends_on_every_field(change: dict[str, object]) -> None:
    assert record.encode(replace(SMALL, **change))[1] != record.encode(SMALL)[1]  # type: ignore[arg-type]  # by field


def test_the_digest_depends_on_the_inline_patches() -> None:
    assert record.encode(SMALL, [b"a"])[1] != record.encode(SMALL, [b"b"])[1]
    assert record.encode(SMALL, [b"ab"])[1] == record.encode(SMALL, [b"a", b"b"])[1]


@given(st.binary(max_size=120))
def test_a_sealed_index_of_garbage_is_corrupt_or_a_record(raw: bytes) -> None:
    """Whoever can write checksums can write anything; it must still end in a record or in CorruptFormat."""
    error = refusal(lambda: record.decode(resealed(blob_of(SMALL), raw), what=KEY))
    assert error is None or error.what == KEY


@given(
    st.lists(st.integers(0, 3) | st.sampled_from([2**31, 2**32 - 1]), min_size=7, max_size=7), st.binary(max_size=80)
)
def test_counts_that_promise_too_much_are_corrupt(counts: list[int], rest: bytes) -> None:
    blob = resealed(blob_of(SMALL), struct.pack("<7I", *counts) + rest)
    error = refusal(lambda: record.decode(blob, what=KEY))
    assert error is None or error.what == KEY


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (struct.pack("<7I", 0, 0, 0, 0, 0, 0, 2) + b"[]", "not a JSON object"),
        (struct.pack("<7I", 0, 0, 0, 0, 0, 0, 50_000) + b"[" * 50_000, "does not parse"),
        (struct.pack("<7I", 0, 0, 0, 0, 0, 1, 0), "cut short"),
    ],
    ids=["list", "deep", "short"],
)
def test_a_note_or_table_that_is_none_is_corrupt(raw: bytes, reason: str) -> None:
    with pytest.raises(CorruptFormat, match=reason):
        record.decode(resealed(blob_of(SMALL), raw), what=KEY)


def test_an_index_that_claims_a_terabyte_costs_nothing() -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(CorruptFormat, match="claims 1099511627776 bytes"):
        record.decode(resealed(blob_of(SMALL), b"", 100, packed=bomb), what=KEY)
    with pytest.raises(CorruptFormat, match="makes no sense"):
        record.decode(resealed(blob_of(SMALL), b"", 2**32 - 1, packed=bomb), what=KEY)


def test_a_patch_that_names_no_container_is_corrupt() -> None:
    counts = struct.pack("<7I", 0, 0, 0, 0, 0, 1, 0)
    body = counts + struct.pack("<II", 0, 0) + struct.pack("<QIIIIH", 1, 0, 8, 0, 0, 0)
    with pytest.raises(CorruptFormat):
        record.decode(resealed(blob_of(SMALL), body), what=KEY)
