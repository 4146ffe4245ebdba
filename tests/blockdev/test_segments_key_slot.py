"""Key slots: their own secret opens them and nothing else does; what is damaged or beyond reason is refused by name."""

import json
import os
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments import key_slot, volume_file
from blockdev.segments.key_slot import KeySlot, Secret
from tests.blockdev.segments_values import OTHER, VOLUME, cut, flip, refusal

KEY = bytes(range(32))
FILE = Secret("key", os.urandom(48))
WORDS = Secret("passphrase", b"correct horse battery staple")


def wrap(secret: Secret) -> KeySlot:
    return key_slot.wrap(KEY, secret, volume=VOLUME, random=os.urandom, created=1.5, creator="test")


PLAIN = wrap(FILE)
ARGON = wrap(WORDS)


def changed(slot: KeySlot, **fields: Any) -> bytes:
    """The slot with other fields and a checksum that holds."""
    document = json.loads(key_slot.encode(slot)) | fields
    document[volume_file.CHECKSUM] = volume_file.checksum(document)
    return json.dumps(document).encode()


@given(st.binary(min_size=1, max_size=100), st.binary(min_size=32, max_size=32))
def test_its_secret_opens_it_and_another_does_not(material: bytes, data_key: bytes) -> None:
    slot = key_slot.wrap(data_key, Secret("key", material), volume=VOLUME, random=os.urandom, created=0.0, creator="")
    again = key_slot.decode(key_slot.encode(slot), what="key/x")
    assert again == slot
    assert key_slot.unwrap(again, Secret("key", material)) == data_key
    assert key_slot.unwrap(again, Secret("key", material + b"\n")) is None


def test_a_passphrase_opens_its_slot_and_another_does_not() -> None:
    assert ARGON.derivation.name == "argon2id"
    assert (ARGON.derivation.passes, ARGON.derivation.lanes, ARGON.derivation.memory_kib) == (3, 4, 65536)
    assert key_slot.unwrap(ARGON, WORDS) == KEY
    assert key_slot.unwrap(ARGON, Secret("passphrase", b"correct horse battery stapel")) is None


def test_a_passphrase_does_not_open_a_key_files_slot() -> None:
    assert key_slot.unwrap(PLAIN, Secret("passphrase", FILE.material)) is None
    assert key_slot.unwrap(ARGON, Secret("key", WORDS.material)) is None


@pytest.mark.parametrize("fields", [{"volume": OTHER}, {"id": "00000000"}], ids=str)
def test_a_slot_moved_to_another_volume_or_name_does_not_open(fields: dict[str, Any]) -> None:
    assert key_slot.unwrap(replace(PLAIN, **fields), FILE) is None


def test_no_secret_is_shown() -> None:
    assert repr(WORDS.material)[2:-1] not in repr(WORDS)
    assert KEY.hex() not in key_slot.encode(PLAIN).decode()


@given(st.sampled_from([PLAIN, ARGON]), st.integers(0))
def test_a_flipped_bit_is_corrupt_or_changes_nothing(slot: KeySlot, bit: int) -> None:
    blob = flip(key_slot.encode(slot), bit)
    error = refusal(lambda: key_slot.decode(blob, what="key/x"))
    assert error.what == "key/x" if error else key_slot.decode(blob, what="key/x") == slot


@given(st.sampled_from([PLAIN, ARGON]), st.integers(0))
def test_a_cut_is_corrupt_or_loses_only_the_last_newline(slot: KeySlot, length: int) -> None:
    blob = cut(key_slot.encode(slot), length)
    if blob.rstrip().endswith(b"}") and json_parses(blob):
        assert key_slot.decode(blob, what="key/x") == slot
    else:
        with pytest.raises(CorruptFormat):
            key_slot.decode(blob, what="key/x")


def json_parses(blob: bytes) -> bool:
    try:
        json.loads(blob)
    except ValueError:
        return False
    return True


@given(st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_garbage_is_corrupt(blob: bytes) -> None:
    with pytest.raises(CorruptFormat):
        key_slot.decode(blob, what="key/x")


COSTS = {"name": "argon2id", "salt": "00" * 16, "passes": 3, "lanes": 4, "memory_kib": 65536}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"format": 2}, "format 2 is not known"),
        ({"cipher": "rot13"}, "cipher 'rot13' is not known"),
        ({"kdf": COSTS | {"name": "md5"}}, "derivation 'md5' is not known"),
        ({"kdf": COSTS | {"memory_kib": 1 << 30}}, "cannot be right"),
        ({"kdf": COSTS | {"memory_kib": 31}}, "cannot be right"),
        ({"kdf": COSTS | {"passes": 10**9}}, "cannot be right"),
        ({"kdf": COSTS | {"lanes": 0}}, "cannot be right"),
        ({"kdf": COSTS | {"lanes": True}}, "cannot be right"),
        ({"kdf": COSTS | {"salt": "00"}}, "cannot be right"),
        ({"kdf": {"name": "argon2id", "salt": "00" * 16}}, "makes no sense"),
        ({"kdf": []}, "cannot be right"),
        ({"wrapped": "00"}, "cannot be right"),
        ({"wrapped": "zz" * 60}, "makes no sense"),
        ({"uuid": "no"}, "makes no sense"),
        ({"id": ""}, "cannot be right"),
        ({"created": "now"}, "cannot be right"),
    ],
    ids=str,
)
def test_a_wrong_field_is_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(CorruptFormat, match=reason):
        key_slot.decode(changed(ARGON, **fields), what="key/x")
