"""CloudTrail: files of `Records`, data events of objects and management events of buckets.

One rule: of `requestParameters` and `responseElements` only the members named here are taken: whole policies, headers and
tokens lie beside them.

Source: CloudTrail User Guide, "Record contents"; S3 User Guide, "Amazon S3 CloudTrail events".
"""

from collections.abc import Mapping
from typing import Any, Final

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
    op_of_api,
    parsed,
    text,
)

SOURCE = "cloudtrail"
_SERVICES = ("s3.", "s3express.", "s3-outposts.", "s3-object-lambda.")
_DETAILS: Final[Mapping[str, tuple[str, ...]]] = {
    "event": ("eventID",),
    "region": ("awsRegion",),
    "account": ("recipientAccountId",),
    "invoked_by": ("userIdentity", "invokedBy"),
    "issuer": ("userIdentity", "sessionContext", "sessionIssuer", "arn"),
    "copied_from": ("requestParameters", "x-amz-copy-source"),
    "retention_mode": ("requestParameters", "Retention", "Mode"),
    "retain_until": ("requestParameters", "Retention", "RetainUntilDate"),
    "canned_acl": ("requestParameters", "x-amz-acl"),
}


def parse(data: bytes, options: Options) -> Parsed:
    """Events of a whole file as it is delivered, of one event, or of one a line. A digest file holds none."""
    if not data.strip():
        return Parsed()
    try:
        document = orjson.loads(data)
    except ValueError:
        return each_line(data, parse, options)
    if not isinstance(document, dict):
        return Parsed((), ("is no JSON object",))
    if "digestStartTime" in document:
        return Parsed((), (), 1)
    records = document.get("Records")
    return parsed(each(records if isinstance(records, list) else [document], event_of, options))


def event_of(record: Any, options: Options) -> Event:
    """Of one of `Records`. NotAnEvent, or Left for one of another service."""
    if not isinstance(record, dict):
        raise NotAnEvent("is no JSON object")
    called = text(record.get("eventName"), 128)
    if not called:
        raise NotAnEvent("names no event")
    service = record.get("eventSource")
    if not isinstance(service, str) or not service.startswith(_SERVICES):
        raise Left
    asked = inner(record, "requestParameters", "versionId")
    op = op_of_api(called, version=bool(asked))
    if record.get("readOnly") is True:
        op = "read"
    bucket = inner(record, "requestParameters", "bucketName")
    if not bucket:
        raise Left
    code = text(record.get("errorCode"), 128)
    kind = inner(record, "userIdentity", "type")
    return made(
        SOURCE,
        op,
        options,
        bucket=bucket,
        key=inner(record, "requestParameters", "key"),
        version=asked or inner(record, "responseElements", "x-amz-version-id"),
        time=record.get("eventTime"),
        who={
            "kind": kind,
            "principal": inner(record, "userIdentity", "arn") or inner(record, "userIdentity", "principalId"),
            "name": inner(record, "userIdentity", "userName"),
            "access_key": inner(record, "userIdentity", "accessKeyId"),
            "ip": record.get("sourceIPAddress"),
            "agent": record.get("userAgent"),
        },
        request=record.get("requestID"),
        code=code,
        message=record.get("errorMessage"),
        detail={"api": called} | {member: text(inner(record, *path), 512) for member, path in _DETAILS.items()},
    )
