"""vol.json: read back exactly, or refused with a reason."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import volume_file
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import GIB, Geometry
from tests.blockdev.segments_values import OTHER, VOLUME, cut, flip, refusal

EXAMPLE = VolumeFile(
    name="vm-101-disk-0",
    identity=VOLUME,
    lineage=OTHER,
    geometry=Geometry(size_bytes=32 * GIB),
    compression="zstd",
    created=1700000000.25,
    creator="bucketworks 0.1.0",
)
geometries = st.builds(
    Geometry,
    size_bytes=st.integers(1, 2**38).map(lambda n: n * 4096),
    sector_bytes=st.sampled_from([512, 4096]),
    frame_bytes=st.sampled_from([16384 << n for n in range(4)]),
    extent_bytes=st.sampled_from([131072 << n for n in range(6)]),
)
volumes = st.builds(
    VolumeFile,
    name=st.text(max_size=30),
    identity=st.uuids(),
    lineage=st.uuids(),
    geometry=geometries,
    compression=st.sampled_from(["zstd", "none"]),
    created=st.floats(0, 4e9),
    creator=st.text(max_size=30),
)


def changed(**fields: Any) -> bytes:
    """The example with other fields and a checksum that holds."""
    document = json.loads(volume_file.encode(EXAMPLE)) | fields
    document = {key: value for key, value in document.items() if value is not ...}
    document[volume_file.CHECKSUM] = volume_file.checksum(document)
    return json.dumps(document).encode()


@given(volumes)
def test_decode_gives_back_what_was_encoded(volume: VolumeFile) -> None:
    assert volume_file.decode(volume_file.encode(volume), what="vol.json") == volume


@given(volumes, st.integers(0))
def test_a_flipped_bit_is_corrupt_or_changes_nothing(volume: VolumeFile, bit: int) -> None:
    blob = flip(volume_file.encode(volume), bit)
    error = refusal(lambda: volume_file.decode(blob, what="vol.json"))
    assert error.what == "vol.json" if error else volume_file.decode(blob, what="vol.json") == volume


@given(volumes, st.integers(0))
def test_a_cut_is_corrupt_or_loses_only_the_last_newline(volume: VolumeFile, length: int) -> None:
    blob = cut(volume_file.encode(volume), length)
    if blob.rstrip().endswith(b"}"):
        assert volume_file.decode(blob, what="vol.json") == volume
        return
    with pytest.raises(CorruptFormat):
        volume_file.decode(blob, what="vol.json")


@given(st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        volume_file.decode(blob, what="vol.json")


def test_white_space_may_change_a_value_may_not() -> None:
    spaced = json.dumps(json.loads(volume_file.encode(EXAMPLE)), indent=7).encode()
    assert volume_file.decode(spaced, what="vol.json") == EXAMPLE
    edited = volume_file.encode(EXAMPLE).replace(b"34359738368", b"34359742464")
    with pytest.raises(CorruptFormat, match="was changed after the volume was created"):
        volume_file.decode(edited, what="vol.json")


def test_a_field_this_program_does_not_know_is_passed_over() -> None:
    assert volume_file.decode(changed(colour="blue"), what="vol.json") == EXAMPLE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": 2}, "format 2 is not known"),
        ({"format": ...}, "format None is not known"),
        ({"features": ["encryption"]}, "uses encryption, which this program does not know"),
        ({"features": "none"}, "should be a list of strings"),
        ({"features": [1]}, "should be a list of strings"),
        ({"uuid": 5}, "should be a string"),
        ({"uuid": "no"}, "makes no sense"),
        ({"size_bytes": "1"}, "should be a whole number"),
        ({"size_bytes": 4097}, "makes no sense"),
        ({"sector_bytes": 512.0}, "should be a whole number"),
        ({"sector_bytes": True}, "should be a whole number"),
        ({"created": None}, "should be a number of seconds"),
        ({"name": ...}, "should be a string"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(CorruptFormat, match=reason):
        volume_file.decode(changed(**fields), what="vol.json")


@pytest.mark.parametrize("blob", [b"[]", b"null", b'"vol"', b"7"])
def test_json_that_is_no_object_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat, match="not a JSON object"):
        volume_file.decode(blob, what="vol.json")


def test_the_example_is_a_uuid_all_the_way() -> None:
    assert isinstance(volume_file.decode(volume_file.encode(EXAMPLE), what="vol.json").identity, UUID)
