"""One line of a feed: which objects of which buckets it names.

One rule: a notification is a hint, never a fact. The names of bucket and object are taken out of it, and when it was sent;
what happened, sizes, ETags, versions and sequencers are not: whoever wants to know asks the source.

Sources: S3 User Guide, "Event message structure" (keys are URL-encoded, a blank is `+`) and "EventBridge event message
structure" (keys are plain); MinIO and Ceph send the former. Ceph's releases differ in whether they encode keys.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import unquote_plus

KEY_BYTES_MAX = 1024
"""S3 API reference, "Object key names"."""
_WRAPPED_MAX = 3
"""A record in a message of SNS in a message of SQS."""


@dataclass(frozen=True, slots=True)
class Hint:
    """`keys` are one key, or two where it cannot be told whether it was encoded. `sent` is Unix seconds, None where the
    record tells no time."""

    bucket: str
    keys: tuple[str, ...]
    sent: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """What a line holds. `wrong` says why something in it could not be understood, "" where all was."""

    hints: tuple[Hint, ...] = ()
    wrong: str = ""


class _Wrong(Exception):
    pass


def message_of(line: bytes) -> Message:
    """Any bytes lead to an answer. Of a line with several records those that can be understood count."""
    try:
        documents = list(_records(_parsed(line), 0))
    except _Wrong as error:
        return Message((), str(error))
    hints: list[Hint] = []
    wrong = ""
    for document in documents:
        try:
            hints.append(_hint(document))
        except _Wrong as error:
            wrong = wrong or str(error)
    return Message(tuple(hints), wrong)


def _parsed(text: bytes | str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Wrong("is no JSON") from error


def _records(document: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The records of a message, out of whatever they were wrapped in on their way."""
    if not isinstance(document, dict):
        raise _Wrong("is no JSON object")
    if document.get("Event") == "s3:TestEvent":
        return
    if "s3" in document or "detail" in document:
        yield document
        return
    many = document.get("Records", document.get("Messages"))
    if isinstance(many, list):
        for one in many:
            if isinstance(one, dict) and "Records" not in one and _inner(one) is None:
                yield one
            else:
                yield from _unwrapped(one, depth)
        return
    if _inner(document) is None:
        raise _Wrong("is no notification of S3")
    yield from _unwrapped(document, depth)


def _unwrapped(document: Any, depth: int) -> Iterator[dict[str, Any]]:
    text = _inner(document) if isinstance(document, dict) else None
    if depth >= _WRAPPED_MAX:
        raise _Wrong("is wrapped too often")
    yield from _records(document if text is None else _parsed(text), depth + 1)


def _inner(document: dict[str, Any]) -> str | None:
    """The text that SQS (`Body`, to a Lambda function `body`) or SNS (`Message`) has put around a message."""
    found = document.get("Body", document.get("body", document.get("Message")))
    return found if isinstance(found, str) else None


def _hint(record: dict[str, Any]) -> Hint:
    bridged = "s3" not in record
    facts = record.get("detail") if bridged else record["s3"]
    bucket, thing = (facts.get(name) if isinstance(facts, dict) else None for name in ("bucket", "object"))
    name, key = (one.get(field) if isinstance(one, dict) else None for one, field in ((bucket, "name"), (thing, "key")))
    if not isinstance(name, str) or not isinstance(key, str):
        raise _Wrong("names no bucket, or no object")
    keys = [key]
    if not bridged:
        try:
            decoded = unquote_plus(key, errors="strict")
        except UnicodeDecodeError:
            decoded = key
        keys = [decoded]
        if str(record.get("eventSource", "")).startswith("ceph") and decoded != key:
            keys.append(key)
    for one in keys:
        try:
            length = len(one.encode())
        except UnicodeEncodeError as error:
            raise _Wrong("names a key that is no text") from error
        if not 0 < length <= KEY_BYTES_MAX:
            raise _Wrong(f"names a key of {length:,} bytes")
    return Hint(name, tuple(keys), _seconds(record.get("time" if bridged else "eventTime")))


def _seconds(moment: object) -> float | None:
    if not isinstance(moment, str):
        return None
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
