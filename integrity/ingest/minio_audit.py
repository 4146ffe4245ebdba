"""MinIO's audit log: one JSON object a request, by webhook or as lines.

One rule: of the headers and the query that it carries only those are looked at that are named here; `Authorization` and a
signed query stand right beside them.

Source: MinIO, "Audit logging" (audit log structure, version 1).
"""

from collections.abc import Iterator
from typing import Any

import orjson

from integrity.ingest.events import (
    Event,
    Left,
    NotAnEvent,
    Options,
    Parsed,
    each,
    each_line,
    inner,
    made,
    number,
    op_of_api,
    parsed,
    status_of,
    text,
)

SOURCE = "minio-audit"
_MANY = ("deletemultipleobjects", "deleteobjects")


def parse(line: bytes, options: Options) -> Parsed:
    """Events of one entry, of a list of them, or of one a line. `{}` is how MinIO asks whether somebody is there."""
    if not line.strip():
        return Parsed()
    try:
        document = orjson.loads(line)
    except ValueError:
        return each_line(line, parse, options)
    if document == {}:
        return Parsed()
    entries = document if isinstance(document, list) else [document]
    return parsed(one for entry in entries for one in _events(entry, options))


def _events(entry: Any, options: Options) -> Iterator[Event | NotAnEvent | Left]:
    many = inner(entry, "api", "objects")
    if text(inner(entry, "api", "name")).lower() in _MANY and isinstance(many, list) and many:
        yield from each(many, _one_of_many, entry, options)
    else:
        yield from each([entry], _event, options)


def _event(entry: Any, options: Options) -> Event:
    if not isinstance(entry, dict) or not isinstance(entry.get("api"), dict):
        raise NotAnEvent("is no entry of MinIO's audit log: it has no `api`")
    api = entry["api"]
    called = text(api.get("name"), 64)
    if not called:
        raise NotAnEvent("names no operation")
    if not api.get("bucket"):
        raise Left
    asked = inner(entry, "requestQuery", "versionId")
    op = op_of_api(called, version=bool(asked))
    answered = _header(entry, "responseHeader", "x-amz-version-id")
    whole = called.lower() == "putobject"
    return made(
        SOURCE,
        op,
        options,
        bucket=api["bucket"],
        key=api.get("object"),
        version=asked or answered,
        etag=_header(entry, "responseHeader", "etag") if op in ("put", "copy") else None,
        size=_length(entry) if whole else None,
        **_shared(entry, called),
    )


def _one_of_many(one: Any, entry: dict[str, Any], options: Options) -> Event:
    if not isinstance(one, dict):
        raise NotAnEvent("names no object")
    version = one.get("versionId")
    return made(
        SOURCE,
        "delete-version" if version else "delete",
        options,
        bucket=entry["api"].get("bucket"),
        key=one.get("objectName", one.get("object")),
        version=version,
        **_shared(entry, text(entry["api"].get("name"), 64)),
    )


def _shared(entry: dict[str, Any], called: str) -> dict[str, Any]:
    api = entry["api"]
    status = status_of(api.get("statusCode"))
    claims = entry.get("requestClaims")
    trigger = text(entry.get("trigger"), 64) if entry.get("trigger") != "incoming" else ""
    return {
        "time": entry.get("time"),
        "who": {
            "access_key": entry.get("accessKey") or inner(claims, "accessKey"),
            "principal": entry.get("parentUser") or inner(claims, "parent") or inner(claims, "sub"),
            "ip": entry.get("remotehost"),
            "agent": entry.get("userAgent"),
        },
        "request": entry.get("requestID"),
        "status": status,
        "code": text(api.get("status"), 128) if status >= 400 else "",
        "message": entry.get("error"),
        "detail": {"api": called, "trigger": trigger, "reason": "lifecycle" if trigger.startswith("ilm") else ""},
    }


def _header(entry: dict[str, Any], which: str, wanted: str) -> str:
    headers = entry.get(which)
    for header, value in headers.items() if isinstance(headers, dict) else ():
        if header.lower() == wanted:
            return text(value[0] if isinstance(value, list) and value else value)
    return ""


def _length(entry: dict[str, Any]) -> int | None:
    """The object's size as its upload said it; a signed stream says it beside its own length."""
    told = number(_header(entry, "requestHeader", "x-amz-decoded-content-length"))
    if told is not None or "aws-chunked" in _header(entry, "requestHeader", "content-encoding"):
        return told
    return number(_header(entry, "requestHeader", "content-length"))
