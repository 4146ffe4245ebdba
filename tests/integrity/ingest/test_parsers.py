"""What each feed's entries say, as members of records."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.ingest.events import Event, Options, identity_of, moment, scrubbed
from integrity.ingest.feeds import FEEDS
from integrity.ingest.rgw_ops_log import request_number
from integrity.record import decode, encode
from tests.integrity.ingest.samples import (
    SECRET,
    SECRETS,
    access,
    audit,
    aws,
    bridge,
    ceph,
    lines,
    minio,
    ops,
    report,
    trail,
)

ALL = Options(endpoint="here", reads=True)


def record_of(event: Event) -> dict[str, Any]:
    """As it comes back out of a ledger."""
    return decode(encode(event, writer="w.1", n=0, at="2026-01-01T00:00:00.000000Z", after=bytes(32)))


def events(feed: str, entry: object, options: Options = ALL) -> list[Event]:
    line = entry if isinstance(entry, bytes) else json.dumps(entry).encode()
    found = FEEDS[feed].parse(line, options)
    assert found.wrong == ()
    return [record_of(event) for event in found.events]


def one(feed: str, entry: object, options: Options = ALL) -> Event:
    (event,) = events(feed, entry, options)
    return event


def picked(event: Event, *members: str) -> tuple[Any, ...]:
    return tuple(event.get(member) for member in members)


def test_a_notification_of_aws() -> None:
    event = one("notifications", {"Records": [aws()]})
    assert {name: event[name] for name in event if name not in ("after", "at", "n", "v", "writer")} == {
        "bucket": "photos",
        "detail": {"event": "ObjectCreated:Put"},
        "endpoint": "here",
        "etag": "aa",
        "key": "photos/a b+c.jpg",
        "op": "put",
        "phase": "observed",
        "request": "REQ0001",
        "sequencer": "0055AED6DCD90281E5",
        "size": 5,
        "source": "notification",
        "time": "2026-03-01T10:20:30.123000Z",
        "version": "v1",
        "who": {"ip": "192.0.2.7", "principal": "AWS:AIDAMADEUP"},
    }


@pytest.mark.parametrize(
    ("name", "op"),
    [
        ("ObjectCreated:CompleteMultipartUpload", "put"),
        ("ObjectCreated:Copy", "copy"),
        ("ObjectRemoved:Delete", "delete-version"),
        ("ObjectRemoved:DeleteMarkerCreated", "delete"),
        ("LifecycleExpiration:Delete", "delete-version"),
        ("LifecycleExpiration:DeleteMarkerCreated", "delete"),
        ("LifecycleTransition", "control"),
        ("ObjectRestore:Completed", "restore"),
        ("ObjectTagging:Put", "tag"),
        ("ObjectAcl:Put", "acl"),
        ("ObjectCreated:PutLegalHold", "retention"),
        ("ObjectAccessed:Get", "read"),
        ("Replication:OperationFailedReplication", "control"),
        ("Unheard:Of", "control"),
    ],
)
def test_names_of_notifications(name: str, op: str) -> None:
    for prefix in ("", "s3:"):
        assert one("notifications", {"Records": [aws(prefix + name)]})["op"] == op


def test_deletes_say_what_was_there_before() -> None:
    event = one("notifications", {"Records": [ceph("ObjectRemoved:Delete", "x")]})
    assert picked(event, "op", "etag", "size", "previous") == ("delete", None, None, {"etag": "aa", "size": 5})


def test_ceph_sends_keys_as_they_are() -> None:
    event = one("notifications", {"Records": [ceph()]})
    assert event["key"] == "per%41cent"
    assert event["detail"]["key_decoded"] == "perAcent"
    assert event["who"] == {"principal": "backup"}


def test_both_feeds_of_ceph_name_a_request_alike() -> None:
    """As seen on radosgw 16.2.15: one PUT, told twice."""
    told = one("notifications", {"Records": [ceph()]})
    logged = one("rgw-ops-log", ops())
    assert told["detail"]["rgw_request"] == logged["detail"]["rgw_request"] == "1009-93d8a66a19cabbd5"
    assert request_number("other") is None


def test_sequencers_of_ceph_compare_as_times_do() -> None:
    """Two of radosgw 16.2.15, the second sent 173 ms later, in the next second."""
    told = ["048B026B8EB6A934", "058B026B02495F03"]
    events_ = [one("notifications", {"Records": [ceph(sequencer=sequencer)]}) for sequencer in told]
    assert [event["sequencer"] for event in events_] == ["6B028B0434A9B68E", "6B028B05035F4902"]
    assert int("6B028B04", 16) == 1795328772, "seconds, as in its eventId"
    assert told[1] > told[0], "what stands first in them is the lowest byte, though"
    for odd in ("", "xyz", "00", 5):
        assert "sequencer" not in one("notifications", {"Records": [ceph(sequencer=odd)]})


def test_minio_and_bridge() -> None:
    event = one("notifications", minio())
    assert picked(event, "key", "who") == (
        "a/b c",
        {"access_key": "AKIDMINIO", "agent": "MinIO (linux; amd64) mc/1", "ip": "192.0.2.7"},
    )
    event = one("notifications", bridge())
    assert picked(event, "op", "key", "version", "request") == ("put", "a b+c", "v1", "REQ0002")
    assert event["who"] == {"ip": "192.0.2.9", "principal": "123456789012"}
    assert one("notifications", bridge("Object Created", "CopyObject"))["op"] == "copy"
    gone = {"deletion-type": "Delete Marker Created"}
    assert one("notifications", bridge("Object Deleted", "DeleteObject", **gone))["op"] == "delete"
    gone = {"deletion-type": "Permanently Deleted"}
    assert one("notifications", bridge("Object Deleted", "Lifecycle Expiration", **gone))["op"] == "delete-version"
    assert (
        one("notifications", {"detail-type": "AWS API Call via CloudTrail", "detail": trail()})["source"]
        == "cloudtrail"
    )


@pytest.mark.parametrize("line", [b"", b"[]", b"{", b'{"a":1}', b'{"Records":[{"s3":{}}]}', b"\xff"])
def test_what_is_no_notification_is_told(line: bytes) -> None:
    found = FEEDS["notifications"].parse(line, ALL)
    assert found.events == ()
    assert found.wrong


def test_minio_audit() -> None:
    event = one("minio-audit", audit())
    assert picked(event, "op", "key", "size", "etag", "version") == ("put", "a b", 5, "aa", "v1")
    assert event["time"] == "2026-02-28T19:39:25.744431Z"
    failed = one("minio-audit", audit("DeleteObject", 403))
    assert picked(failed, "op", "phase", "error") == ("delete", "not-done", {"code": "AccessDenied"})
    version = one("minio-audit", audit("DeleteObject") | {"requestQuery": {"versionId": "v3", "X-Amz-Signature": "s"}})
    assert picked(version, "op", "version") == ("delete-version", "v3")
    many: dict[str, Any] = {"objects": [{"objectName": "x"}, {"objectName": "y", "versionId": "v9"}]}
    both = events("minio-audit", audit("DeleteMultipleObjects", **many))
    assert [picked(event, "op", "key", "version") for event in both] == [
        ("delete", "x", None),
        ("delete-version", "y", "v9"),
    ]
    assert FEEDS["minio-audit"].parse(json.dumps(audit("PutObjectPart")).encode(), ALL).left == 1
    assert FEEDS["minio-audit"].parse(json.dumps(audit("GetObject")).encode(), Options()).left == 1


def test_ops_log() -> None:
    event = one("rgw-ops-log", ops())
    assert picked(event, "op", "key", "size", "phase") == ("put", "with blank", 1, "observed")
    assert event["who"] == {
        "access_key": "AKIDCEPH",
        "agent": "rclone/v1",
        "ip": "192.0.2.10",
        "kind": "Local",
        "principal": "backup",
    }
    gone = ops(
        "delete_obj", "DELETE /photos/x?versionId=v7?versionId=v7 HTTP/1.1", http_status="204", error_code="NoContent"
    )
    assert picked(one("rgw-ops-log", gone), "op", "key", "version", "error") == ("delete-version", "x", "v7", None)
    denied = ops("put_obj", "PUT /photos/x HTTP/1.1", http_status="403", error_code="AccessDenied", user="anonymous")
    assert picked(one("rgw-ops-log", denied), "phase", "error") == ("not-done", {"code": "AccessDenied"})
    assert one("rgw-ops-log", ops(http_status="500"))["phase"] == "unknown"
    assert one("rgw-ops-log", ops("put_bucket_policy", "PUT /photos?policy?policy HTTP/1.1")).get("key") is None
    assert one("rgw-ops-log", ops("put_obj", "PUT /a/b%2525c HTTP/1.1"))["key"] == "a/b%25c"
    assert one("rgw-ops-log", ops("put_obj", "PUT /swift/v1/photos/k HTTP/1.1"))["key"] == "k"
    assert one("rgw-ops-log", ops("put_obj", "PUT /photos/k HTTP/1.1", object="whole"))["key"] == "whole"


def test_requests_that_ended_at_once_are_on_one_line_of_the_ops_log() -> None:
    # As radosgw 16.2.15 writes its file; the lines' ends come after.
    first, second = (json.dumps(ops(uri=f"PUT /photos/{key} HTTP/1.1")).encode() for key in "ab")
    two = FEEDS["rgw-ops-log"].parse(first + second, Options())
    assert [event["key"] for event in two.events] == ["a", "b"]
    assert not two.wrong
    for torn in (first + second[:-9], first[:-9] + second, b'{"a":' * 100_000):
        assert FEEDS["rgw-ops-log"].parse(torn, Options()).events == ()


def test_access_log() -> None:
    event = one("access-logs", access())
    assert picked(event, "op", "key", "version", "size") == ("put", "a b", "v1", 5)
    assert event["time"] == "2026-03-01T10:20:30.000000Z"
    gone = access("REST.DELETE.OBJECT", "x", '"DELETE /photos/x?versionId=v7 HTTP/1.1"', "204 -")
    assert picked(one("access-logs", gone), "op", "version") == ("delete-version", "v7")
    assert (
        one("access-logs", access("REST.DELETE.OBJECT", "x", '"DELETE /photos/x HTTP/1.1"', "204 -"))["op"] == "delete"
    )
    marker = access("S3.CREATE.DELETEMARKER", "x", '"-"', "- -")
    event = one("access-logs", marker)
    assert picked(event, "op", "version") == ("delete", "v1")
    assert event["detail"]["reason"] == "lifecycle"
    assert one("access-logs", access("BATCH.DELETE.OBJECT", "x", "-", "204 -", version="-"))["op"] == "delete"
    assert one("access-logs", access(key="a%252Bb%252541"))["key"] == "a+b%41"
    doubtful = one("access-logs", access(key="gr%C3%BC%25C3%25A9"))
    assert picked(doubtful, "key") == ("grüé",)
    assert doubtful["detail"]["key_logged"] == "gr%C3%BC%25C3%25A9"


@pytest.mark.parametrize(
    "agent", ['x" v9 forged= SigV4 a b c d', 'say "hello" twice', '" "', "-", 'x" 200 - - - - - "-" "y', "\\"]
)
def test_quotes_in_the_user_agent_move_nothing(agent: str) -> None:
    event = one("access-logs", access(agent=agent))
    assert picked(event, "op", "key", "version", "request", "size") == ("put", "a b", "v1", "REQ0004", 5)


def test_cloudtrail() -> None:
    event = one("cloudtrail", {"Records": [trail()]})
    assert picked(event, "op", "key", "version") == ("put", "a b", "v1")
    assert event["who"] == {
        "access_key": "AKIDTRAIL",
        "agent": "[aws-cli/2]",
        "ip": "192.0.2.12",
        "kind": "IAMUser",
        "name": "backup",
        "principal": "arn:aws:iam::123456789012:user/backup",
    }
    bucket = {"requestParameters": {"bucketName": "photos", "bucketPolicy": {"Statement": []}}}
    ops_of = {
        "PutBucketPolicy": "acl",
        "PutObjectRetention": "retention",
        "DeleteBucketLifecycle": "control",
        "CreateBucket": "control",
        "GetObject": "read",
    }
    assert {called: one("cloudtrail", trail(called, **bucket))["op"] for called in ops_of} == ops_of
    denied = one("cloudtrail", trail("DeleteObject", errorCode="AccessDenied", errorMessage="no"))
    assert picked(denied, "phase", "error") == ("not-done", {"code": "AccessDenied", "message": "no"})


def test_batch_report() -> None:
    event = one("batch-report", report())
    assert picked(event, "op", "key", "version", "phase") == ("control", "a b", "v1", "observed")
    copied = one("batch-report", report(), Options(operation="copy", bucket="mirror", prefix="p/"))
    assert picked(copied, "op", "bucket", "key", "version") == ("copy", "mirror", "p/a b", None)
    for codes in ("AccessDenied,403", "403,AccessDenied"):
        failed = one("batch-report", report(outcome="failed", codes=codes))
        assert picked(failed, "phase", "error") == ("not-done", {"code": "AccessDenied", "message": "Successful"})


def test_identity_is_of_the_event_and_of_its_record() -> None:
    for feed, samples in lines().items():
        seen: set[bytes] = set()
        for line in samples:
            for event in FEEDS[feed].parse(line, ALL).events:
                assert identity_of(event) == identity_of(record_of(event))
                seen.add(identity_of(event))
        assert len(seen) >= 2
    first, again = (one("notifications", {"Records": [aws()]}) for _ in range(2))
    assert identity_of(first) == identity_of(again)
    assert identity_of(first) != identity_of(one("notifications", {"Records": [aws("ObjectRemoved:Delete")]}))


def poisoned(document: Any, secret: str, names: frozenset[str]) -> Any:
    """With the secret in every text, but for those that name what is stored."""
    if isinstance(document, dict):
        return {field: value if field in names else poisoned(value, secret, names) for field, value in document.items()}
    if isinstance(document, list):
        return [poisoned(value, secret, names) for value in document]
    return f"{document} {secret}" if isinstance(document, str) else document


NAMES = frozenset(
    {"name", "key", "bucketName", "bucket", "object", "versionId", "version-id", "Records", "eventName", "eventSource"}
    | {"detail-type", "operation", "api", "uri"}
)
"""Members that name what is stored, and those by which an entry is understood at all."""


@given(st.sampled_from(SECRETS), st.sampled_from(("", "?", "&a=", '"')))
def test_no_secret_in_any_field_reaches_a_record(secret: str, before: str) -> None:
    secret = before + secret
    quoted = secret.replace(" ", "%20").replace('"', "%22")
    entries: dict[str, list[object]] = {
        "notifications": [{"Records": [aws()]}, {"Records": [ceph()]}, minio(), bridge()],
        "minio-audit": [audit(), audit("DeleteObject", 403)],
        "rgw-ops-log": [ops(), ops(http_status="403"), ops(uri=f"PUT /photos/k?{quoted}?{quoted} HTTP/1.1")],
        "cloudtrail": [{"Records": [trail(), trail("CopyObject", errorCode="x", errorMessage="y")]}],
    }
    told = 0
    for feed, documents in entries.items():
        for document in documents:
            names = NAMES - {"api"} if feed != "rgw-ops-log" else NAMES
            line = json.dumps(poisoned(document, secret, names | {"name"})).encode()
            found = FEEDS[feed].parse(line, ALL)
            for event in found.events:
                told += 1
                assert SECRET not in json.dumps(record_of(event)), (feed, event)
    assert told == 11
    for line in (
        access(agent=secret),
        access(line=f'"PUT /photos/a%20b?{quoted} HTTP/1.1"'),
        access().replace(b'"-"', f'"{secret}"'.encode()),
        access(status=f"403 {quoted}"),
    ):
        (event,) = FEEDS["access-logs"].parse(line, ALL).events
        assert SECRET not in json.dumps(record_of(event))
    plain = secret.replace('"', "")
    (event,) = (
        FEEDS["batch-report"]
        .parse(report(outcome="failed", codes=f"{plain.replace(',', '')},403", message=plain), ALL)
        .events
    )
    assert SECRET not in json.dumps(record_of(event))


def test_scrubbing_keeps_what_is_no_secret() -> None:
    for text in ("aws-cli/2.1 Python/3", "Mozilla/5.0 (X11; Linux) 100%", "arn:aws:iam::1:user/x", ""):
        assert scrubbed(text) == text
    assert scrubbed("a?X-Amz-Signature=1&b=2") == "a?[removed]"


def test_moments() -> None:
    assert moment("2026-03-01T10:20:30+02:00") == "2026-03-01T08:20:30.000000Z"
    assert moment("2026-03-01T10:20:30") == "2026-03-01T10:20:30.000000Z"
    for none in ("yesterday", "", None, 5, "0001-01-01T00:00:00+23:00", "1969-12-31T23:59:59Z"):
        assert moment(none) == ""
