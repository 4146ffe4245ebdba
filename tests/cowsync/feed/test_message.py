"""Notifications as they come: which objects they name, whatever they are wrapped in, and that nothing stops the reader."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowsync.feed.message import message_of
from tests.cowsync.feed.notices import notice, record


def keys_of(document: object) -> list[tuple[str, tuple[str, ...]]]:
    message = message_of(json.dumps(document).encode())
    assert message.wrong == ""
    return [(hint.bucket, hint.keys) for hint in message.hints]


ODD = "a b/ü+%41\u2028.jpg"


@pytest.mark.parametrize(
    "document",
    [
        {"Records": [record(ODD)]},
        record(ODD),
        {"EventName": "s3:ObjectCreated:Put", "Key": "source/x", "Records": [record(ODD, eventSource="minio:s3")]},
        {"Type": "Notification", "Message": json.dumps({"Records": [record(ODD)]})},
        {"Messages": [{"Body": json.dumps({"Records": [record(ODD)]}), "ReceiptHandle": "h"}]},
        {"Records": [{"body": json.dumps({"Records": [record(ODD)]}), "eventSource": "aws:sqs"}]},
        {"Body": json.dumps({"Message": json.dumps({"Records": [record(ODD)]})})},
        {
            "detail-type": "Object Created",
            "source": "aws.s3",
            "time": "2026-01-01T00:00:00Z",
            "detail": {"bucket": {"name": "source"}, "object": {"key": ODD}},
        },
    ],
    ids=["records", "record", "minio", "sns", "sqs", "lambda", "sns in sqs", "eventbridge"],
)
def test_what_servers_and_queues_send(document: object) -> None:
    assert keys_of(document) == [("source", (ODD,))]
    assert message_of(json.dumps(document).encode()).hints[0].sent == 1767225600.0


def test_a_key_of_ceph_may_be_encoded_or_not() -> None:
    raw = record("x", eventSource="ceph:s3")
    raw["s3"]["object"]["key"] = "a+b"
    assert keys_of(raw) == [("source", ("a b", "a+b"))]
    assert keys_of(record("plain", eventSource="ceph:s3")) == [("source", ("plain",))]


def test_several_records_and_one_that_is_wrong() -> None:
    message = message_of(json.dumps({"Records": [record("a"), {"s3": {"bucket": 1}}, record("b")]}).encode())
    assert [hint.keys for hint in message.hints] == [("a",), ("b",)]
    assert message.wrong == "names no bucket, or no object"


def test_a_test_event_names_nothing() -> None:
    assert keys_of({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "source"}) == []


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        (b"\x00\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "no notification"),
        (b'{"Records":[7]}', "no JSON object"),
        (json.dumps(record("")).encode(), "0 bytes"),
        (json.dumps(record("x" * 1025)).encode(), "1,025 bytes"),
        (json.dumps({"detail": {"bucket": {"name": "b"}, "object": {"key": "\ud800"}}}).encode(), "no text"),
    ],
)
def test_what_is_wrong_is_told(line: bytes, wrong: str) -> None:
    message = message_of(line)
    assert message.hints == ()
    assert wrong in message.wrong


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(notice("k").decode()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Records", "s3", "Body", "Message", "Messages", "detail", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_has_an_answer(line: bytes) -> None:
    message = message_of(line)
    assert message.wrong or all(hint.bucket == "source" or hint.keys for hint in message.hints)
