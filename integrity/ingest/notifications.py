"""S3 event notifications, as AWS, MinIO and Ceph send them and SNS, SQS and EventBridge wrap them.

One rule: the server observed what a notification says, and at least once, in any order. `sequencer` orders events of one key
alone, and only those of one server.

Sources: S3 User Guide, "Event message structure", "EventBridge event message structure"; MinIO, "Bucket notifications";
Ceph, "Bucket Notifications" (events), with what radosgw 16.2.15 sends.
"""

from collections.abc import Mapping
from typing import Any, Final

from integrity.ingest import cloudtrail
from integrity.ingest.events import (
    Event,
    Left,
    NotAnEvent,
    Options,
    Parsed,
    each,
    inner,
    made,
    number,
    parsed,
    text,
)
from integrity.ingest.rgw_ops_log import request_number
from s3core.notifications import NotANotification, is_bridged, names_in, records_of

SOURCE = "notification"
_BRIDGED: Final[Mapping[str, str]] = {
    "Object Created": "put",
    "Object Deleted": "delete",
    "Object Restore Initiated": "restore",
    "Object Restore Completed": "restore",
    "Object Restore Expired": "control",
    "Object Storage Class Changed": "control",
    "Object Access Tier Changed": "control",
    "Object ACL Updated": "acl",
    "Object Tags Added": "tag",
    "Object Tags Deleted": "tag",
    "Object Annotation Created": "tag",
    "Object Annotation Deleted": "tag",
}


def parse(line: bytes, options: Options) -> Parsed:
    """Events of one message. Any bytes lead to an answer."""
    try:
        records = list(records_of(line))
    except NotANotification as error:
        return Parsed((), (str(error),))
    return parsed(each(records, _event, options))


def _event(record: dict[str, Any], options: Options) -> Event:
    if is_bridged(record):
        if inner(record, "detail", "eventName") is not None:
            return cloudtrail.event_of(record["detail"], options)
        return _from_bridge(record, options)
    try:
        bucket, keys = names_in(record)
    except NotANotification as error:
        raise NotAnEvent(str(error)) from error
    thing = record["s3"]["object"]
    server = text(record.get("eventSource")).partition(":")[0]
    # Ceph 16 sends keys as they are; a later one may encode them. What else the key may be stands beside it.
    key, other = (keys[-1], keys[0] if len(keys) > 1 else None)
    event_name = text(record.get("eventName"), 128).removeprefix("s3:")
    version = thing.get("versionId")
    op = _op(event_name, versioned=bool(version))
    principal = inner(record, "userIdentity", "principalId")
    request = inner(record, "responseElements", "x-amz-request-id")
    gone = op.startswith("delete")
    size, etag = number(thing.get("size")), text(thing.get("eTag")).strip('"')
    return made(
        SOURCE,
        op,
        options,
        bucket=bucket,
        key=key,
        version=version,
        etag=None if gone else etag,
        size=None if gone else size,
        time=record.get("eventTime"),
        who={
            "access_key" if server == "minio" else "principal": principal,
            "ip": inner(record, "requestParameters", "sourceIPAddress"),
            "agent": inner(record, "source", "userAgent"),
        },
        request=request,
        sequencer=_ceph_sequencer(thing.get("sequencer")) if server == "ceph" else thing.get("sequencer"),
        # Ceph says of a delete what was there before.
        previous={"etag": etag, "size": size} if gone and etag else None,
        detail={
            "event": event_name,
            "key_decoded": other,
            "rgw_request": request_number(request) if server == "ceph" else None,
            "parts": _parts(etag) if event_name.endswith("CompleteMultipartUpload") else None,
        },
    )


def _op(event_name: str, *, versioned: bool) -> str:
    """Of `ObjectCreated:Put` and its like."""
    kind, _, how = event_name.partition(":")
    match kind:
        case "ObjectCreated":
            if how in ("PutRetention", "PutLegalHold"):
                return "retention"
            if how in ("PutTagging", "DeleteTagging"):
                return "tag"
            return "copy" if how == "Copy" else "put"
        case "ObjectRemoved" | "LifecycleExpiration" | "ObjectLifecycle":
            if how == "NoOP":
                raise Left
            if "Transition" in how:
                return "control"
            return "delete-version" if versioned and "DeleteMarkerCreated" not in how else "delete"
        case "ObjectAccessed":
            return "read"
        case "ObjectRestore":
            return "control" if how == "Delete" else "restore"
        case "ObjectTagging":
            return "tag"
        case "ObjectAcl":
            return "acl"
        case "ReducedRedundancyLostObject":
            return "error"
        case "":
            raise NotAnEvent("names no event")
    return "control"


def _from_bridge(record: dict[str, Any], options: Options) -> Event:
    try:
        bucket, keys = names_in(record)
    except NotANotification as error:
        raise NotAnEvent(str(error)) from error
    detail = record["detail"]
    kind = text(record.get("detail-type"), 64)
    op = _BRIDGED.get(kind)
    if op is None:
        raise NotAnEvent(f"is of a kind that is not known: {kind!r}")
    thing, reason = detail["object"], text(detail.get("reason"), 64)
    version = thing.get("version-id")
    if op == "put" and reason == "CopyObject":
        op = "copy"
    elif op == "delete" and version and detail.get("deletion-type") != "Delete Marker Created":
        op = "delete-version"
    return made(
        SOURCE,
        op,
        options,
        bucket=bucket,
        key=keys[0],
        version=version,
        etag=thing.get("etag"),
        size=thing.get("size"),
        time=record.get("time"),
        who={"principal": detail.get("requester"), "ip": detail.get("source-ip-address")},
        request=detail.get("request-id"),
        sequencer=thing.get("sequencer"),
        detail={"event": kind, "reason": reason},
    )


def _ceph_sequencer(told: object) -> str | None:
    """Seconds and nanoseconds in hex, so that texts of one key compare as times do, like those of AWS. Ceph writes the two
    numbers as they lie in memory, their lowest bytes first. None for what is not that."""
    if not isinstance(told, str):
        return None
    try:
        data = bytes.fromhex(told)
    except ValueError:
        return None
    return (data[3::-1] + data[:3:-1]).hex().upper() if len(data) == 8 else None


def _parts(etag: str) -> int | None:
    """How many parts a multipart ETag tells of."""
    return number(etag.partition("-")[2])
