"""Records: canonical bytes, and what is refused."""

import json
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from integrity.errors import Malformed
from integrity.record import START, after_of, decode, encode, timestamp, unix_of

EVENT = {"op": "put", "phase": "done", "source": "client", "bucket": "b", "key": "a/ü\u0007\U0001f600", "size": 3}
AT = "2026-01-31T12:00:00.000001Z"


def encoded(**changes: Any) -> bytes:
    return encode(EVENT | changes, writer="pve1.1", n=7, at=AT, after=bytes(range(32)))


def test_record_comes_back_as_it_went_in() -> None:
    data = encoded()
    assert decode(data) == EVENT | {"after": bytes(range(32)).hex(), "at": AT, "n": 7, "v": 1, "writer": "pve1.1"}
    assert after_of(data) == bytes(range(32))
    assert data.startswith(b'{"after":"000102')


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | texts,
    lambda below: (
        st.lists(below, max_size=4) | st.dictionaries(st.from_regex(r"[a-z][a-z_0-9]{0,8}", fullmatch=True), below)
    ),
    max_leaves=10,
)


@given(texts, st.dictionaries(st.from_regex(r"[A-Za-z][a-zA-Z_0-9]{0,8}", fullmatch=True), values, max_size=5))
def test_bytes_are_those_of_rfc_8785(key: str, detail: dict[str, Any]) -> None:
    data = encoded(key=key, detail=detail)
    assert data == rfc8785.dumps(json.loads(data))
    assert decode(data).get("key", "") == key


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"op": "steal"}, "op: 'steal' is not known"),
        ({"phase": "maybe"}, "phase"),
        ({"color": "red"}, "color: no such member"),
        ({"size": -1}, "size: must be from 0"),
        ({"size": 1.5}, "size: must be a whole number"),
        ({"size": True}, "size: must be a whole number"),
        ({"size": 2**53}, "2^53"),
        ({"detail": {"a": [1.5]}}, "detail.a: 1.5 is a fraction"),
        ({"detail": {"ä": 1}}, "is no name"),
        ({"detail": {"a": 2**60}}, "beyond 2^53"),
        ({"detail": {"a": b"x"}}, "bytes is not a type"),
        ({"who": {"secret": "x"}}, "who.secret: no such member"),
        ({"time": "yesterday"}, "time: 'yesterday' is not a time"),
        ({"key": "\ud800"}, "cannot be written as JSON"),
        ({"key": "k" * 70_000}, "at most 65,535 bytes"),
        ({"n": 3}, "n: is given by the log"),
    ],
)
def test_what_cannot_be_recorded_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as refused:
        encoded(**changes)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: data.replace(b'"size":3', b'"size":3.0'),
        lambda data: data.replace(b'"size":3', b'"size": 3'),
        lambda data: data.replace(b'"size":3', b'"size":3,"size":3'),
        lambda data: data.replace("ü".encode(), b"\\u00fc"),
        lambda data: data.replace(b'"v":1', b'"v":2'),
        lambda data: b"[]",
        lambda data: b"{",
        lambda data: b"",
        lambda data: data.replace(b'"n":7,', b""),
        lambda data: data.replace(b"pve1.1", b"../../x"),
    ],
)
def test_other_bytes_are_no_record(change: Any) -> None:
    data = change(encoded())
    with pytest.raises(Malformed):
        decode(data)


def test_after_needs_a_hash_in_its_place() -> None:
    for data in (b"", b'{"after":"zz', b'{"at":"x"}', b'{"after":"' + b"0" * 63 + b'"'):
        with pytest.raises(Malformed):
            after_of(data)
    assert after_of(encode(EVENT, writer="w", n=0, at=AT, after=START)) == START


def test_times() -> None:
    assert timestamp(0.25) == "1970-01-01T00:00:00.250000Z"
    assert unix_of("1970-01-01T00:00:00.250000Z") == 0.25
    with pytest.raises(ValueError):
        unix_of("1970-01-01")
