"""S3 event notifications: the records of a message, out of whatever they were wrapped in, and the names in them.

One rule: what a record says is handed on as it came; only its envelope and the encoding of its key are understood here.

Sources: S3 User Guide, "Event message structure" (keys are URL-encoded, a blank is `+`) and "EventBridge event message
structure" (keys are plain); MinIO and Ceph send the former. Ceph's releases differ in whether they encode keys.
"""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_plus

import orjson

from s3core.keys import FOREIGN_KEY_BYTES_MAX

_WRAPPED_MAX = 3
"""A record in a message of SNS in a message of SQS."""


class NotANotification(ValueError):
    """What it is instead, or what it lacks, to go on with "the line …"."""


def records_of(line: bytes | str) -> Iterator[dict[str, Any]]:
    """The records of a message: objects with `s3`, or with `detail` as EventBridge sends them. None for S3's test event.
    NotANotification while it is read, for what is not a message."""
    yield from _records(_parsed(line), 0)


def is_bridged(record: dict[str, Any]) -> bool:
    """Whether EventBridge sent it."""
    return "s3" not in record


def names_in(record: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Bucket and key, or two keys where it cannot be told whether it was encoded: decoded first. NotANotification."""
    bridged = is_bridged(record)
    facts = record.get("detail") if bridged else record["s3"]
    bucket, thing = (facts.get(name) if isinstance(facts, dict) else None for name in ("bucket", "object"))
    name, key = (one.get(field) if isinstance(one, dict) else None for one, field in ((bucket, "name"), (thing, "key")))
    if not isinstance(name, str) or not isinstance(key, str):
        raise NotANotification("names no bucket, or no object")
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
            raise NotANotification("names a key that is no text") from error
        if not 0 < length <= FOREIGN_KEY_BYTES_MAX:
            raise NotANotification(f"names a key of {length:,} bytes")
    return name, tuple(keys)


def _parsed(text: bytes | str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        # Half a surrogate pair is no text, but the other records beside it are.
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotANotification("is no JSON") from error


def _records(document: Any, depth: int) -> Iterator[dict[str, Any]]:
    if not isinstance(document, dict):
        raise NotANotification("is no JSON object")
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
        raise NotANotification("is no notification of S3")
    yield from _unwrapped(document, depth)


def _unwrapped(document: Any, depth: int) -> Iterator[dict[str, Any]]:
    text = _inner(document) if isinstance(document, dict) else None
    if depth >= _WRAPPED_MAX:
        raise NotANotification("is wrapped too often")
    yield from _records(document if text is None else _parsed(text), depth + 1)


def _inner(document: dict[str, Any]) -> str | None:
    """The text that SQS (`Body`, to a Lambda function `body`) or SNS (`Message`) has put around a message."""
    found = document.get("Body", document.get("body", document.get("Message")))
    return found if isinstance(found, str) else None
