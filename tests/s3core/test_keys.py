"""What keys, ranges and metadata may be, and how to jump over a folder."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3core.keys import after_all_with, check_key, check_metadata, check_part_number, check_range

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@pytest.mark.parametrize("key", ["a", "a/b", "a/", "a//b", "..", "k" * 900, "ä" * 450, "\x01", "💾"])
def test_good_keys(key: str) -> None:
    assert check_key(key) == key


@pytest.mark.parametrize(
    ("key", "reason"),
    [("", "empty"), ("/a", "start with"), ("k" * 901, "901"), ("ä" * 451, "902"), ("\ud800", "UTF-8")],
)
def test_bad_keys_say_why(key: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_key(key)


@given(st.lists(TEXT))
def test_text_sorts_as_its_bytes_do(keys: list[str]) -> None:
    """The stores compare keys as text wherever the port speaks of UTF-8."""
    assert sorted(keys) == sorted(keys, key=str.encode)


@given(TEXT, TEXT, TEXT)
def test_jumping_over_a_folder(prefix: str, inside: str, other: str) -> None:
    beyond = after_all_with(prefix)
    assert prefix + inside < beyond
    if other > prefix and not other.startswith(prefix):
        assert other > beyond


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, -1)])
def test_bad_ranges(offset: int, length: int) -> None:
    with pytest.raises(ValueError, match="range"):
        check_range(offset, length)


@pytest.mark.parametrize("number", [0, 10_001, -3])
def test_bad_part_numbers(number: int) -> None:
    with pytest.raises(ValueError, match="10000"):
        check_part_number(number)


def test_metadata_is_copied() -> None:
    given = {"a": "1"}
    kept = check_metadata(given)
    given["a"] = "2"
    assert kept == {"a": "1"}
    assert check_metadata(None) == {}


@pytest.mark.parametrize("metadata", [{"A": ""}, {"a b": ""}, {"a": "\n"}, {"a": "é"}, {"a": "x "}, {"a": "x" * 2048}])
def test_bad_metadata(metadata: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        check_metadata(metadata)
