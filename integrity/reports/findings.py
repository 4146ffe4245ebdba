"""What a reconciliation found, taken into a report.

One rule: the file is somebody's input: each member is read for itself, what is not text where text belongs is left out, and
nothing of it decides more than whether there are findings.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import orjson

from integrity.errors import Malformed
from integrity.record import unix_of

TAKEN_MAX = 200_000
TEXT_MAX = 4096
NAMES_MAX = 20


def taken(data: bytes, name: str) -> dict[str, Any]:
    """The answer of `s3integrity reconcile --json` as reports hold it. Malformed where it is none."""
    try:
        answer = orjson.loads(data)
    except ValueError as error:
        raise Malformed(f"{name}: is not JSON: {error}", hint="make it with s3integrity reconcile --json") from error
    found = answer.get("findings") if isinstance(answer, Mapping) else None
    if not isinstance(found, list):
        raise Malformed(
            f"{name}: has no list of findings", hint="it is the answer of s3integrity reconcile LEDGER BUCKET --json"
        )
    at, bucket = _text(answer, "at"), _text(answer, "bucket")
    findings = [_finding(item, bucket) for item in found[:TAKEN_MAX] if isinstance(item, Mapping)]
    left = answer.get("findings_left_out")
    complete = answer.get("complete", True) is not False
    said = f"Compared with {bucket or 'the bucket'}{f' at {at[:19]}Z' if at else ''}."
    if not complete:
        said += f" Not all of it was looked at: {'; '.join(_texts(answer, 'incomplete')) or 'it was cut short'}."
    return {
        "findings": findings,
        "left_out": max(0, len(found) - TAKEN_MAX) + (left if isinstance(left, int) and 0 < left < 2**53 else 0),
        "complete": complete,
        "bucket": bucket,
        "at": at,
        "sha256": sha256(data).hexdigest(),
        "said": said,
    }


def _finding(item: Mapping[str, Any], bucket: str) -> dict[str, Any]:
    since, until = _time(item, "since"), _time(item, "until")
    return {
        "code": _text(item, "code") or "FINDING",
        "bucket": _text(item, "bucket") or bucket,
        "key": _text(item, "key"),
        "version": _text(item, "version"),
        "said": _text(item, "said"),
        "last_writer": _text(item, "last_writer"),
        "records": _texts(item, "records"),
        "candidates": _texts(item, "candidates"),
        "advice": _text(item, "advice"),
        "explained": _text(item, "explained"),
        "since": since,
        "until": until,
        "since_s": int(unix_of(since)) if since else 0,
        "until_s": int(unix_of(until)) if until else 0,
    }


def _text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name, "")
    return value[:TEXT_MAX] if isinstance(value, str) else ""


def _texts(item: Mapping[str, Any], name: str) -> list[str]:
    value = item.get(name)
    return [text[:TEXT_MAX] for text in value[:NAMES_MAX] if isinstance(text, str)] if isinstance(value, list) else []


def _time(item: Mapping[str, Any], name: str) -> str:
    text = _text(item, name)
    try:
        unix_of(text)
    except ValueError:
        return ""
    return text
