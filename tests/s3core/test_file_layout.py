"""Names of files from keys: every key has one, no two share it, and folders sort as keys do."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s3core.conformance import ODD_KEYS
from s3core.file_layout import (
    TRAILER_BYTES,
    BadTrailer,
    Kind,
    decode_end,
    decode_metadata,
    encode_end,
    folder_of,
    parse_entry,
    path_of,
)
from s3core.keys import check_key

KEYS = st.one_of(
    st.text("ab/.%=+ä💾-", min_size=1, max_size=12),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    st.text("k/-", min_size=70, max_size=330),
    st.sampled_from(ODD_KEYS),
).filter(lambda key: not key.startswith("/"))


def key_of(folder: str, name: str) -> str:
    """The way back, entry by entry, as a listing goes it."""
    key = b""
    for part in folder.split("/")[:-1]:
        entry = parse_entry(part, directory=True)
        assert entry is not None
        assert entry.kind in (Kind.FOLDER, Kind.REST)
        key += entry.order
    entry = parse_entry(name, directory=False)
    assert entry is not None
    return (key + entry.order).decode()


@given(KEYS)
@example("k" * 80)
@example("k" * 80 + "/")
def test_a_path_tells_its_key(key: str) -> None:
    folder, name = path_of(check_key(key))
    assert key_of(folder, name) == key


@given(KEYS)
def test_names_fit_every_linux_file_system(key: str) -> None:
    folder, name = path_of(key)
    for part in [*folder.split("/")[:-1], name]:
        assert 0 < len(part) <= 255
        assert part not in (".", "..")
        assert part.isascii()
        assert part.isprintable()


@given(st.lists(KEYS, min_size=2, max_size=8, unique=True))
def test_a_walk_in_the_order_of_entries_is_a_walk_in_the_order_of_keys(keys: list[str]) -> None:
    tree: dict[str, object] = {}
    for key in keys:
        folder, name = path_of(key)
        level = tree
        for part in folder.split("/")[:-1]:
            level = level.setdefault(part, {})  # type: ignore[assignment]  # only folders are on the way
        level[name] = key

    def walk(level: dict[str, object]) -> list[object]:
        entries = sorted(filter(None, (parse_entry(name, isinstance(item, dict)) for name, item in level.items())))
        found: list[object] = []
        for entry in entries:
            item = level[entry.name]
            found += walk(item) if isinstance(item, dict) else [item]
        return found

    assert walk(tree) == sorted(keys, key=str.encode)


@given(KEYS, st.integers(0, 40))
def test_the_folder_of_a_prefix_holds_its_keys(key: str, length: int) -> None:
    prefix = key[:length]
    folder, base = folder_of(prefix)
    assert path_of(key)[0].startswith(folder)
    assert key.encode().startswith(base)


@pytest.mark.parametrize(
    ("name", "directory"),
    [("README", False), ("x", False), ("a%2f=", False), ("%", False), ("a=", True), ("..+", True)],
)
def test_strangers_are_not_taken_for_objects(name: str, directory: bool) -> None:
    assert parse_entry(name, directory) is None


def test_trailer_round_trip() -> None:
    metadata = {"a": "1", "b": "ü"}
    end = encode_end(7, metadata, 3, b"0123456789abcdef")
    trailer = decode_end(end, 7 + len(end))
    assert (trailer.data_bytes, trailer.parts) == (7, 3)
    assert trailer.etag == b"0123456789abcdef".hex() + "-3"
    assert decode_metadata(end) == metadata
    assert len(encode_end(0, {}, 0, bytes(16))) == TRAILER_BYTES


def test_trailer_bytes_are_fixed() -> None:
    """Golden bytes: stores written by this version must be read by all later ones."""
    assert encode_end(5, {"n": "v"}, 0, bytes(range(16))).hex() == (
        "7b226e223a2276227d"  # {"n":"v"}
        "42574f424a000001"  # magic and version
        "0000000000000005"  # bytes of data
        "00000009"  # bytes of metadata
        "00000000"  # parts
        "000102030405060708090a0b0c0d0e0f"  # ETag
        "4a3f3ba7"  # CRC-32
    )


@given(st.integers(0, TRAILER_BYTES + 8), st.integers(0, 7))
def test_any_flipped_bit_in_the_end_is_noticed(place: int, bit: int) -> None:
    end = bytearray(encode_end(5, {"n": "v"}, 0, bytes(range(16))))
    end[place] ^= 1 << bit

    def decode(end: bytes) -> None:
        decode_end(end, 5 + len(end))
        decode_metadata(end)

    with pytest.raises(BadTrailer):
        decode(bytes(end))
