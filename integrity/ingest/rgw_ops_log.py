"""The operations log of Ceph's gateway: one JSON object a request, in a file or from a socket.

One rule: the path of the request is used for its key, and its query for `versionId`, `uploadId` and `partNumber`; nothing else
of a query is looked at, since it may be signed.

Source: Ceph, `rgw_enable_ops_log`, `rgw_ops_log_file_path`, `rgw_ops_log_socket_path`, with what radosgw 16.2.15 writes: it has
no member `object`, doubles the query, and calls a success NoContent.
"""

import json
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import orjson

from integrity.ingest.events import (
    Event,
    Left,
    NotAnEvent,
    Options,
    Parsed,
    each,
    inner,
    made,
    name,
    parsed,
    status_of,
    text,
)

SOURCE = "rgw-ops-log"
_OPS: Final = {
    "put_obj": "put",
    "post_obj": "put",
    "complete_multipart": "put",
    "copy_obj": "copy",
    "delete_obj": "delete",
    "restore_obj": "restore",
    "put_obj_retention": "retention",
    "put_obj_legal_hold": "retention",
    "put_bucket_obj_lock": "retention",
    "put_acls": "acl",
    "put_bucket_policy": "acl",
    "delete_bucket_policy": "acl",
    "put_public_access_block": "acl",
    "delete_public_access_block": "acl",
    "put_bucket_public_access_block": "acl",
    "delete_bucket_public_access_block": "acl",
    "put_obj_tags": "tag",
    "delete_obj_tags": "tag",
}
_READING = ("get_", "list_", "stat_", "head_", "options", "info")
_URI = re.compile(r"[A-Z]+ (\S*)(?: HTTP/\S+)?\Z")
_SWIFT = re.compile(r"/swift/v1/(?:AUTH_[^/]*/)?")
_NOTIFIED = re.compile(r"[0-9a-f-]+\.(\d+)\.(\d+)\Z")
_LOGGED = re.compile(r"tx([0-9a-f]+)-[0-9a-f]+-([0-9a-f]+)-")


def parse(line: bytes, options: Options) -> Parsed:
    """Events of one line. A socket's stream may have commas or brackets around its objects; in a file, several objects are
    on one line, and empty lines after it, where requests ended at once."""
    stripped = line.strip(b" \t\r\n,[]\0")
    if not stripped:
        return Parsed()
    try:
        entries = [orjson.loads(stripped)]
    except ValueError:
        try:
            entries = [orjson.loads(piece) for piece in _pieces(stripped.decode())]
        except (ValueError, RecursionError):
            return Parsed((), ("is no JSON",))
    return parsed(chain.from_iterable(_events(entry, options) for entry in entries))


def _pieces(objects: str) -> Iterator[str]:
    """Each of several JSON texts that stand without anything between them. ValueError, RecursionError where they do not."""
    decoder, at = json.JSONDecoder(), 0
    while at < len(objects):
        end = decoder.raw_decode(objects, at)[1]
        yield objects[at:end]
        at = end


def request_number(request: object) -> str | None:
    """One name of a request for both feeds of Ceph: notifications say `zone.INSTANCE.NUMBER`, this log and the clients'
    `x-amz-request-id` say `txNUMBER-time-INSTANCE-zone` in hex. None for another form."""
    if not isinstance(request, str):
        return None
    found = _NOTIFIED.match(request)
    if found:
        return f"{int(found[1]):x}-{int(found[2]):x}" if len(found[1]) + len(found[2]) <= 40 else None
    found = _LOGGED.match(request)
    return f"{int(found[2], 16):x}-{int(found[1], 16):x}" if found else None


def _events(entry: Any, options: Options) -> Iterator[Event | NotAnEvent | Left]:
    many = inner(entry, "delete_multi_obj_data", "objects") or inner(entry, "op_data", "objects")
    if inner(entry, "operation") == "multi_object_delete" and isinstance(many, list) and many:
        yield from each(many, _one_of_many, entry, options)
    else:
        yield from each([entry], _event, options)


def _event(entry: Any, options: Options) -> Event:
    if not isinstance(entry, dict):
        raise NotAnEvent("is no JSON object")
    api = text(entry.get("operation"), 64)
    if not api:
        raise NotAnEvent("names no operation")
    bucket = entry.get("bucket")
    if not bucket or bucket == "-":
        # Of no bucket: a listing of buckets, a request that was refused before its bucket was looked at.
        raise Left
    path, query = _target(entry.get("uri"))
    if "partNumber" in query and api == "put_obj":
        raise Left
    version = query.get("versionId", [""])[0]
    op = _OPS.get(api) or ("read" if api.startswith(_READING) else "control")
    if op == "delete" and version:
        op = "delete-version"
    key = entry.get("object") or _key(path, name(bucket, "bucket"))
    return made(
        SOURCE,
        op,
        options,
        bucket=bucket,
        key=key,
        version=version,
        size=entry.get("object_size") if api in ("put_obj", "post_obj") else None,
        **_shared(entry, api),
    )


def _one_of_many(one: Any, entry: dict[str, Any], options: Options) -> Event:
    """A key of a DeleteObjects, as releases from 17 on tell them."""
    if not isinstance(one, dict):
        raise NotAnEvent("names no object")
    version = one.get("version_id")
    marker = bool(one.get("delete_marker")) and not version
    shared = _shared(entry, "multi_object_delete")
    shared |= {
        "status": status_of(one.get("http_status")) or shared["status"],
        "code": text(one.get("error_message")) if one.get("error") else "",
    }
    return made(
        SOURCE,
        "delete-version" if version else "delete",
        options,
        bucket=entry.get("bucket"),
        key=one.get("key"),
        version=one.get("marker_version_id") if marker else version,
        **shared,
    )


def _shared(entry: dict[str, Any], api: str) -> dict[str, Any]:
    user = entry.get("user")
    status = status_of(entry.get("http_status"))
    return {
        "time": entry.get("time"),
        "who": {
            "kind": "anonymous" if user == "anonymous" else entry.get("authentication_type"),
            "principal": user,
            "access_key": entry.get("access_key_id"),
            "ip": entry.get("remote_addr"),
            "agent": entry.get("user_agent"),
        },
        "request": entry.get("trans_id"),
        "status": status,
        "code": entry.get("error_code") if status >= 400 else "",
        "detail": {"api": api, "rgw_request": request_number(entry.get("trans_id"))},
    }


def _target(uri: object) -> tuple[str, dict[str, list[str]]]:
    """Path, as it was sent, and query of a request line."""
    found = _URI.match(uri) if isinstance(uri, str) else None
    if found is None:
        return "", {}
    path, _, query = found[1].partition("?")
    try:
        return path, parse_qs(query.partition("?")[0], keep_blank_values=True, max_num_fields=100)
    except ValueError:
        return path, {}


def _key(path: str, bucket: str) -> str:
    """The key in a path, "" for none. Whether a bucket was named by path or by host is told by the path alone: a key that
    begins with its bucket's name, sent by host, is taken for the other."""
    path = _SWIFT.sub("/", path, count=1)
    decoded = unquote(path, errors="surrogateescape")
    # `tenant$bucket`, `tenant:bucket` and `tenant/bucket` are how releases write a bucket of a tenant.
    for form in {bucket, bucket.replace("/", ":"), bucket.rpartition("/")[2]}:
        if decoded in (f"/{form}", f"/{form}/"):
            return ""
        if decoded.startswith(f"/{form}/"):
            return decoded[len(form) + 2 :]
    return decoded[1:]
