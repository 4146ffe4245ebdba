"""key=value text: what parses, what is refused, and that nothing grows without end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.iscsi.errors import PeerError
from blockdev.iscsi.text import TEXT_BYTES_MAX, Gathered, decode, encode, number

KEY = st.from_regex(r"[A-Z][A-Za-z0-9.]{0,20}", fullmatch=True)
VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)


@given(st.dictionaries(KEY, VALUE, max_size=10))
def test_decode_encode(pairs: dict[str, str]) -> None:
    assert decode(encode(list(pairs.items()))) == pairs


@given(st.binary(max_size=300))
def test_any_bytes_parse_or_raise(data: bytes) -> None:
    try:
        pairs = decode(data)
    except PeerError:
        return
    assert decode(encode(list(pairs.items()))) == pairs


def test_missing_or_extra_nuls_are_accepted() -> None:
    assert decode(b"A=1\0\0B=2") == {"A": "1", "B": "2"}


@pytest.mark.parametrize(
    "data", [b"NoEquals\0", b"=x\0", b"lower=1\0", b"A=1\0A=2\0", b"A=\xff\0", b"A" * 64 + b"=1\0", b"A=" + b"x" * 8193]
)
def test_refused(data: bytes) -> None:
    with pytest.raises(PeerError):
        decode(data)


def test_text_in_parts_is_bounded() -> None:
    gathered = Gathered()
    gathered.add(b"A=" + b"x" * (TEXT_BYTES_MAX - 2))
    with pytest.raises(PeerError, match="16384"):
        gathered.add(b"y")


def test_text_in_parts_is_joined_before_it_is_read() -> None:
    gathered = Gathered()
    gathered.add(b"Tar")
    gathered.add(b"getName=x\0")
    assert gathered.take() == {"TargetName": "x"}
    assert gathered.take() == {}


@pytest.mark.parametrize(("value", "result"), [("10", 10), ("0x1F", 31), ("0", 0)])
def test_number(value: str, result: int) -> None:
    assert number("K", value) == result


@pytest.mark.parametrize("value", ["", "-1", "1.5", "0x", "1" * 30, "٣"])
def test_not_a_number(value: str) -> None:
    with pytest.raises(PeerError):
        number("K", value)
