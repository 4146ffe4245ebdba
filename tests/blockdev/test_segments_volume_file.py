"""vol.json: read back exactly, or refused with a reason."""

import json
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat, KeyRefused
from blockdev.segments import volume_file
from blockdev.segments.volume_file import Origin, VolumeFile, cipher_of, compression_level, encryption_of
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
origins = st.lists(
    st.builds(
        Origin,
        name=st.text(max_size=10),
        identity=st.uuids(),
        seq=st.integers(1, 2**48),
        epoch=st.integers(1, 2**20),
        root=st.text(max_size=30),
        digest=st.binary(min_size=32, max_size=32),
        lineage=st.uuids(),
    ),
    max_size=3,
    unique_by=lambda origin: origin.seq,
).map(lambda items: tuple(sorted(items, key=lambda origin: origin.seq)))


def built(origin: tuple[Origin, ...], **fields: Any) -> VolumeFile:
    features = frozenset({volume_file.CLONE}) if origin else frozenset()
    return VolumeFile(origin=origin, features=features, **fields)


volumes = st.builds(
    built,
    origin=origins,
    name=st.text(max_size=30),
    identity=st.uuids(),
    lineage=st.uuids(),
    geometry=geometries,
    compression=st.sampled_from(["zstd", "zstd-9", "none"]),
    created=st.floats(0, 4e9),
    creator=st.text(max_size=30),
) | st.builds(
    replace,
    st.just(EXAMPLE),
    features=st.just(frozenset({"encryption"})),
    encryption=st.builds(encryption_of, st.binary(min_size=32, max_size=32), st.uuids()),
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
    whole = volume_file.encode(volume)
    blob = cut(whole, length)
    if blob.rstrip() == whole.rstrip():
        assert volume_file.decode(blob, what="vol.json") == volume
        return
    with pytest.raises(CorruptFormat):
        volume_file.decode(blob, what="vol.json")


@given(st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        volume_file.decode(blob, what="vol.json")


def test_an_origin_ascends() -> None:
    ten, twenty = (Origin(f"v{seq}", VOLUME, seq, 1, "root/x", bytes(32), OTHER) for seq in (10, 20))
    values = {field.name: getattr(EXAMPLE, field.name) for field in fields(EXAMPLE)}
    values["features"] = frozenset({volume_file.CLONE})
    assert VolumeFile(**values | {"origin": (ten, twenty)}).origin[-1].seq == 20
    for wrong in ((twenty, ten), (ten, ten)):
        with pytest.raises(ValueError, match="do not ascend"):
            VolumeFile(**values | {"origin": wrong})


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
        ({"features": ["time-travel"]}, "uses time-travel, which this program does not know"),
        ({"features": ["encryption"]}, "belong together"),
        ({"encryption": {"cipher": "aes-256-gcm", "key_check": "00" * 16}}, "belong together"),
        ({"features": ["encryption"], "encryption": "yes"}, "should be an object"),
        ({"features": ["encryption"], "encryption": {"cipher": "aes-256-gcm"}}, "should be a string"),
        ({"features": ["encryption"], "encryption": {"cipher": "rot13", "key_check": "00"}}, "encrypted with rot13"),
        ({"features": ["encryption"], "encryption": {"cipher": "aes-256-gcm", "key_check": "00"}}, "32 hexadecimal"),
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
        ({"features": ["clone"]}, "belong together"),
        ({"origin": [{}], "features": ["clone"]}, "should be a string"),
        ({"origin": {}, "features": ["clone"]}, "should be a list"),
        ({"origin": ["vm1"], "features": ["clone"]}, "should be a list of objects"),
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


def test_a_volume_takes_its_own_key_and_no_other() -> None:
    key = bytes(range(32))
    sealed = replace(EXAMPLE, features=frozenset({"encryption"}), encryption=encryption_of(key, EXAMPLE.identity))
    assert cipher_of(sealed, key, bytes) is not None
    assert cipher_of(EXAMPLE, b"", bytes) is None
    twin = replace(sealed, identity=OTHER)
    for volume, offered in ((sealed, b""), (sealed, bytes(32)), (EXAMPLE, key), (twin, key)):
        with pytest.raises(KeyRefused, match="not its own"):
            cipher_of(volume, offered, bytes)


def test_compression_is_a_level_or_none() -> None:
    assert (compression_level("zstd"), compression_level("zstd-19"), compression_level("none")) == (1, 19, None)
    for text in ("zstd-0", "zstd-20", "zstd-01", "zstd-", "lz4", ""):
        with pytest.raises(ValueError, match="zstd-1 to zstd-19 or none"):
            compression_level(text)
