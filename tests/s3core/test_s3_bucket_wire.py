"""The S3 adapter of the bucket port against a server that answers from a script: what is sent, and lies in answers."""

import base64
from collections.abc import Callable, Iterator
from hashlib import md5
from typing import Any

import pytest

from s3core.bucket import Attributes, CopySource, Written
from s3core.digests import digests_of
from s3core.endpoint import Credentials, Endpoint
from s3core.errors import (
    Archived,
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)
from s3core.s3_bucket import S3Bucket
from s3core.write_options import Retention, WriteOptions
from tests.servers.scripted import Reply, Request, ScriptedServer, refusal, reply

Serve = Callable[..., tuple[S3Bucket, list[Request]]]
UNVERSIONED = reply(200, b"<VersioningConfiguration/>")
VERSIONED = reply(200, b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>")
COPIED = reply(200, b"<CopyObjectResult><ETag>&quot;e&quot;</ETag></CopyObjectResult>")
PART_COPIED = reply(200, b"<CopyPartResult><ETag>&quot;e&quot;</ETag></CopyPartResult>")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with a script; gives the bucket that speaks to it and the requests it got."""
    opened: list[tuple[S3Bucket, ScriptedServer]] = []

    def start(*replies: Reply, **changes: Any) -> tuple[S3Bucket, list[Request]]:
        server = ScriptedServer(replies)
        settings: dict[str, Any] = {
            "region": "us-east-1",
            "credentials": Credentials("AKID", "secret"),
            # Long, for a slow machine is not a silent server; a server that hangs must have read its request by then.
            "read_timeout_s": 1.5 if any(one.then == "hang" for one in replies) else 30.0,
            "preset": "aws",
            "addressing": "path",
        } | changes
        opened.append((S3Bucket(Endpoint("script", server.url, **settings), "bucket"), server))
        return opened[-1][0], server.requests

    yield start
    for bucket, server in opened:
        bucket.close()
        server.stop()


def test_what_a_put_sends(serve: Serve) -> None:
    bucket, requests = serve(
        reply(200, b"", {"etag": '"e"', "x-amz-version-id": "v"}), reply(200, b"", {"etag": '"e"'}), UNVERSIONED
    )
    rich = Attributes(
        {"content-type": "text/plain", "content-disposition": 'inline; filename="ä"'},
        {"plain": "x y", "umlaut": "ä"},
        {"a b": "c&d"},
    )
    assert bucket.put("/k?", b"1", attributes=rich, if_match="old") == Written("e", "v")
    assert bucket.put("k", b"1", if_absent=True) == Written("e", "")
    first, second, asked = requests
    assert (first.method, first.target) == ("PUT", "/bucket//k%3F")
    assert first.headers["if-match"] == '"old"'
    assert first.headers["content-type"] == "text/plain"
    assert first.headers["content-disposition"] == 'inline; filename="ä"'  # UTF-8 on the wire
    assert first.headers["x-amz-meta-plain"] == "x y"
    assert first.headers["x-amz-meta-umlaut"] == "=?UTF-8?B?w6Q=?="
    assert first.headers["x-amz-tagging"] == "a%20b=c%26d"
    assert second.headers["if-none-match"] == "*"
    assert asked.target == "/bucket/?versioning="


def test_what_a_head_tells(serve: Serve) -> None:
    headers = {
        "etag": '"e-3"',
        "last-modified": "Tue, 14 Nov 2023 22:13:20 GMT",
        "x-amz-version-id": "v",
        "x-amz-mp-parts-count": "3",
        "x-amz-storage-class": "GLACIER",
        "x-amz-tagging-count": "2",
        "x-amz-checksum-crc64nvme": "AAAA",
        "x-amz-checksum-type": "FULL_OBJECT",
        "content-type": "text/plain",
        "x-amz-meta-a": "=?UTF-8?Q?gr=C3=BC=C3=9Fe?=",
        "x-amz-meta-b": "=?UTF-8?B?nonsense",
        "x-amz-meta-c": "grüße",
        "x-other": "1",
    }
    bucket, requests = serve(reply(206, b"", headers))
    facts = bucket.head("k", version_id="v", part_number=1)
    assert requests[0].target == "/bucket/k?partNumber=1&versionId=v"
    assert requests[0].headers["x-amz-checksum-mode"] == "ENABLED"
    assert (facts.etag, facts.modified, facts.version_id, facts.parts) == ("e-3", 1_700_000_000, "v", 3)
    assert (facts.storage_class, facts.tag_count, facts.checksums) == ("GLACIER", 2, {"crc64nvme": "AAAA"})
    assert facts.attributes == Attributes(
        {"content-type": "text/plain"}, {"a": "grüße", "b": "=?UTF-8?B?nonsense", "c": "grüße"}
    )


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(405, "MethodNotAllowed"), NotFound),
        (refusal(400, "InvalidArgument", "<Message>Invalid version id specified</Message>"), NotFound),
        (refusal(404, "NoSuchVersion"), NotFound),
        (refusal(403, "AccessDenied"), Denied),
        (refusal(412, "PreconditionFailed"), PreconditionFailed),
        (refusal(416, "InvalidRange"), Corrupt),
    ],
)
def test_refusals_of_reads(serve: Serve, answer: Reply, kind: type[StoreError]) -> None:
    bucket, _ = serve(answer)
    with pytest.raises(kind) as caught:
        bucket.get("k", version_id="v", offset=1)
    assert caught.value.key == "k"


def test_ranges_are_checked(serve: Serve) -> None:
    def part(span: str, body: bytes) -> Reply:
        return reply(206, body, {"content-range": f"bytes {span}", "etag": '"e"'})

    bucket, requests = serve(
        part("2-4/10", b"234"),
        part("8-9/10", b"89"),
        reply(200, b"0123456789", {"etag": '"e"'}),
        part("8-9/10", b"89"),
        part("2-3/10", b"23"),
        part("2-8/10", b"2345678"),
        reply(200, b"0123456789", {"etag": '"other"'}),
        Reply(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", then="close"),
    )
    assert bucket.get("k", offset=2, length=3, if_match="e") == b"234"
    assert requests[0].headers["if-match"] == '"e"'
    assert bucket.get("k", offset=8) == b"89"
    assert requests[1].headers["range"] == "bytes=8-"
    assert bucket.get("k", offset=8) == b"89"  # the range was ignored
    with pytest.raises(Corrupt):
        bucket.get("k", offset=8, length=3)
    with pytest.raises(Corrupt):
        bucket.get("k", offset=2, length=3)
    with pytest.raises(Unavailable):
        bucket.get("k", offset=2)  # not to the end
    with pytest.raises(PreconditionFailed):
        bucket.get("k", if_match="e")  # the condition was ignored
    with pytest.raises(Unavailable):
        bucket.get("k")


def test_what_copies_send(serve: Serve) -> None:
    bucket, requests = serve(COPIED, UNVERSIONED, COPIED, PART_COPIED)
    source = CopySource("other", "a b/ä", "v+1", "e0")
    assert bucket.copy(source, "k") == Written("e")
    bucket.copy(CopySource("other", "x"), "k", attributes=Attributes({}, {"m": "1"}, {"t": "1"}))
    assert bucket.copy_part("k", "u", 7, source, offset=5, length=10) == "e"
    kept, _, replaced, part = requests
    assert kept.headers["x-amz-copy-source"] == "/other/a%20b/%C3%A4?versionId=v%2B1"
    assert kept.headers["x-amz-copy-source-if-match"] == '"e0"'
    assert "x-amz-metadata-directive" not in kept.headers
    assert replaced.headers["x-amz-metadata-directive"] == replaced.headers["x-amz-tagging-directive"] == "REPLACE"
    assert replaced.headers["x-amz-meta-m"] == "1"
    assert part.target == "/bucket/k?partNumber=7&uploadId=u"
    assert part.headers["x-amz-copy-source-range"] == "bytes=5-14"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("InternalError", OutcomeUnknown), ("PreconditionFailed", PreconditionFailed), ("NoSuchKey", NotFound)],
)
def test_an_error_inside_a_200_is_an_error(serve: Serve, code: str, kind: type[StoreError]) -> None:
    bucket, _ = serve(*[refusal(200, code)] * 3)
    with pytest.raises(kind):
        bucket.copy(CopySource("other", "x"), "k")
    with pytest.raises(kind):
        bucket.copy_part("k", "u", 1, CopySource("other", "x"), offset=0, length=1)
    with pytest.raises(kind):
        bucket.complete_upload("k", "u", [(1, "e")])


def test_a_missing_source_is_told_by_its_name(serve: Serve) -> None:
    bucket, _ = serve(refusal(404, "NoSuchKey"), refusal(404, "NoSuchBucket"))
    with pytest.raises(NotFound) as missing:
        bucket.copy(CopySource("other", "x"), "k")
    assert missing.value.key == "x"
    with pytest.raises(NotFound, match="bucket other"):
        bucket.copy(CopySource("other", "x"), "k")


def test_a_yes_that_cannot_be_read_is_unknown(serve: Serve) -> None:
    bucket, _ = serve(reply(200, b""), reply(200, b"<html/>"))
    with pytest.raises(OutcomeUnknown):
        bucket.copy(CopySource("other", "x"), "k")
    with pytest.raises(OutcomeUnknown):
        bucket.complete_upload("k", "u", [(1, "e")])


def test_what_fails_after_it_was_written_is_unknown(serve: Serve) -> None:
    bucket, _ = serve(reply(200, b""), refusal(503, "SlowDown"))
    with pytest.raises(OutcomeUnknown):
        bucket.put("k", b"")  # no ETag, and the HEAD is turned away
    bucket, _ = serve(reply(200, b"", {"etag": '"e"'}), refusal(500, "InternalError"))
    with pytest.raises(OutcomeUnknown):
        bucket.put("k", b"")  # whether there is a version id is not known


def test_where_the_condition_of_a_copy_is_not_looked_at_the_source_is(serve: Serve) -> None:
    source = CopySource("other", "x", if_match="e")
    there, changed = reply(200, b"", {"etag": '"e"'}), reply(200, b"", {"etag": '"new"'})
    bucket, requests = serve(there, COPIED, UNVERSIONED, preset="generic")
    assert bucket.copy(source, "k") == Written("e")
    assert [(request.method, request.target) for request in requests[:2]] == [
        ("HEAD", "/other/x"),
        ("PUT", "/bucket/k"),
    ]
    bucket, requests = serve(changed, preset="generic")
    with pytest.raises(PreconditionFailed):
        bucket.copy(source, "k")
    assert len(requests) == 1
    other_etag = reply(200, b"<CopyObjectResult><ETag>e2</ETag></CopyObjectResult>")
    bucket, requests = serve(there, other_etag, there, UNVERSIONED, preset="generic")
    assert bucket.copy(source, "k") == Written("e2")  # it was uploaded in parts, say
    bucket, requests = serve(there, other_etag, changed, preset="generic")
    with pytest.raises(OutcomeUnknown):
        bucket.copy(source, "k")
    bucket, requests = serve(COPIED, UNVERSIONED, preset="generic")
    bucket.copy(CopySource("other", "x", "v", "e"), "k")  # a version does not change
    assert requests[0].method == "PUT"
    bucket, requests = serve(changed, preset="generic")
    with pytest.raises(PreconditionFailed):
        bucket.copy(CopySource("other", "x", "null", "e"), "k")  # but that one may be another by now
    assert requests[0].target == "/other/x?versionId=null"
    bucket, requests = serve(PART_COPIED, changed, preset="generic")
    with pytest.raises(PreconditionFailed):
        bucket.copy_part("k", "u", 1, source, offset=0, length=1)


def test_ceph_is_told_the_condition_of_a_copy_by_its_own_name(serve: Serve) -> None:
    """radosgw reads `x-amz-copy-if-match`; the suite of all buckets shows that it keeps to it."""
    bucket, requests = serve(COPIED, UNVERSIONED, preset="ceph")
    bucket.copy(CopySource("other", "x", if_match="e"), "k")
    assert [request.method for request in requests[:1]] == ["PUT"]
    assert requests[0].headers["x-amz-copy-if-match"] == requests[0].headers["x-amz-copy-source-if-match"] == '"e"'


def test_tags_that_an_upload_loses_are_set_afterwards(serve: Serve) -> None:
    begun = reply(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
    done = reply(
        200,
        b"<CompleteMultipartUploadResult><ETag>e-1</ETag></CompleteMultipartUploadResult>",
        {"x-amz-version-id": "v"},
    )
    tags = Attributes(tags={"a": "<1>"})
    bucket, requests = serve(begun, done, reply(200), preset="ceph")
    bucket.complete_upload("k", bucket.begin_upload("k", attributes=tags), [(1, "e")])
    assert requests[2].target == "/bucket/k?tagging=&versionId=v"
    assert b"<Key>a</Key><Value>&lt;1&gt;</Value>" in requests[2].body
    had = reply(200, b"<Tagging><TagSet><Tag><Key>a</Key><Value>&lt;1&gt;</Value></Tag></TagSet></Tagging>")
    bucket, requests = serve(begun, done, had, preset="generic")
    bucket.complete_upload("k", bucket.begin_upload("k", attributes=tags), [(1, "e")])
    assert [request.method for request in requests] == ["POST", "POST", "GET"]
    bucket, requests = serve(begun, done, refusal(403, "AccessDenied"), preset="ceph")
    with pytest.raises(OutcomeUnknown):
        bucket.complete_upload("k", bucket.begin_upload("k", attributes=tags), [(1, "e")])


def test_deletes_name_no_version_and_tell_the_marker(serve: Serve) -> None:
    marker = {"x-amz-version-id": "m", "x-amz-delete-marker": "true"}
    bucket, requests = serve(reply(204, b"", marker), refusal(404, "NoSuchKey"), refusal(404, "NoSuchBucket"))
    assert bucket.delete("k") == "m"
    assert requests[0].target == "/bucket/k"
    assert bucket.delete("k") == ""
    with pytest.raises(NotFound):
        bucket.delete("k")


def test_versioning_is_asked_once_and_what_may_not_be_seen_is_off(serve: Serve) -> None:
    bucket, requests = serve(VERSIONED)
    assert bucket.properties.versioned
    assert bucket.properties.endpoint == "s3://script"
    assert len(requests) == 1
    bucket, requests = serve(refusal(403, "AccessDenied"))
    assert not bucket.properties.versioned


def test_a_listing_of_something_else_is_refused(serve: Serve) -> None:
    row = "<Contents><Key>other</Key><LastModified/><ETag/><Size>1</Size></Contents>"
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{row}</ListBucketResult>".encode()
    bucket, requests = serve(reply(200, body), reply(200, body))
    with pytest.raises(Misconfigured):
        bucket.list_page(prefix="mine/")
    assert bucket.list_page(prefix="o", start_after="o a", delimiter="/", max_keys=7, token="t").keys == [b"other"]
    assert requests[1].target == (
        "/bucket/?continuation-token=t&delimiter=%2F&encoding-type=url&list-type=2&max-keys=7&prefix=o&start-after=o%20a"
    )


def test_one_region_is_asked_for_and_kept(serve: Serve) -> None:
    wrong = refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")
    bucket, requests = serve(wrong, reply(200, b"x"), reply(200, b"y"), region="auto")
    assert (bucket.get("k"), bucket.get("k")) == (b"x", b"y")
    assert [("eu-west-1" in request.headers["authorization"]) for request in requests] == [False, True, True]


def test_bytes_that_change_on_the_way_are_refused_by_the_server(serve: Serve) -> None:
    """And a bucket with Object Lock and a default retention takes no upload that does not say its digest."""
    bucket, requests = serve(
        reply(200, b"", {"etag": '"e"'}), reply(200, b"", {"etag": '"e"', "x-amz-version-id": "v"})
    )
    bucket.upload_part("k", "u", 1, [b"by", b"tes"])
    assert requests[0].headers["content-md5"] == base64.b64encode(md5(b"bytes").digest()).decode()
    bucket.put("k", b"")
    assert requests[1].headers["content-md5"] == base64.b64encode(md5(b"").digest()).decode()


# --- write options, locks, archives ------------------------------------------------------------------------------------

COMPLETED = reply(
    200,
    b"<CompleteMultipartUploadResult><ETag>&quot;e-1&quot;</ETag></CompleteMultipartUploadResult>",
    {"x-amz-version-id": "v"},
)
UNTIL = Retention("COMPLIANCE", 1_700_000_000.0)
LOCKED = {
    "x-amz-object-lock-mode": "COMPLIANCE",
    "x-amz-object-lock-retain-until-date": "2023-11-14T22:13:20Z",
    "x-amz-version-id": "v",
    "etag": '"e-1"',
}


def test_a_checksum_stands_in_place_of_content_md5(serve: Serve) -> None:
    body = b"part"
    options, made = WriteOptions(checksum="sha256"), digests_of(body, "sha256")
    bucket, requests = serve(
        reply(200, b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"),
        reply(200, b"", {"etag": '"p"'}),
        COMPLETED,
    )
    upload = bucket.begin_upload("k", options=options)
    etag = bucket.upload_part("k", upload, 1, body, options=options, digests=made)
    with pytest.raises(ValueError, match="sha256 of each part"):
        bucket.complete_upload("k", upload, [(1, etag)], options=options)
    bucket.complete_upload("k", upload, [(1, etag)], options=options, digests={1: made})
    begun, part, completed = requests
    assert (begun.headers["x-amz-checksum-algorithm"], begun.headers["x-amz-checksum-type"]) == ("SHA256", "COMPOSITE")
    shown = base64.b64encode(made.sha256).decode()
    assert part.headers["x-amz-checksum-sha256"] == shown
    assert "content-md5" not in part.headers
    assert f"<ChecksumSHA256>{shown}</ChecksumSHA256>".encode() in completed.body


def test_where_checksums_are_not_known_content_md5_is_sent(serve: Serve) -> None:
    bucket, requests = serve(reply(200, b"", {"etag": '"e"', "x-amz-version-id": "v"}), preset="ceph")
    bucket.put("k", b"x", options=WriteOptions(checksum="sha256"))
    assert requests[0].headers["content-md5"] == base64.b64encode(md5(b"x").digest()).decode()
    assert not [name for name in requests[0].headers if name.startswith("x-amz-checksum")]


def test_a_lock_that_an_upload_loses_is_given_afterwards(serve: Serve) -> None:
    options = WriteOptions(retention=UNTIL, legal_hold=True)
    nothing = {"x-amz-version-id": "v", "etag": '"e-1"'}
    bucket, requests = serve(COMPLETED, reply(200, b"", nothing), reply(200), reply(200), preset="ceph")
    assert bucket.complete_upload("k", "u", [(1, "p")], options=options) == Written("e-1", "v")
    assert [(one.method, one.target) for one in requests[1:]] == [
        ("HEAD", "/bucket/k?versionId=v"),
        ("PUT", "/bucket/k?retention=&versionId=v"),
        ("PUT", "/bucket/k?legal-hold=&versionId=v"),
    ]
    assert b"<RetainUntilDate>2023-11-14T22:13:20Z</RetainUntilDate>" in requests[2].body
    assert b"<Status>ON</Status>" in requests[3].body


def test_a_lock_that_came_along_is_left_alone(serve: Serve) -> None:
    bucket, requests = serve(COMPLETED, reply(200, b"", LOCKED), preset="generic")
    bucket.complete_upload("k", "u", [(1, "p")], options=WriteOptions(retention=UNTIL))
    assert len(requests) == 2


def test_a_lock_that_cannot_be_given_leaves_the_outcome_open(serve: Serve) -> None:
    nothing = {"x-amz-version-id": "v", "etag": '"e-1"'}
    bucket, _ = serve(COMPLETED, reply(200, b"", nothing), refusal(403, "AccessDenied"), preset="ceph")
    with pytest.raises(OutcomeUnknown, match="may not be locked"):
        bucket.complete_upload("k", "u", [(1, "p")], options=WriteOptions(retention=UNTIL))


def test_what_servers_say_of_objects_without_a_lock(serve: Serve) -> None:
    for status, code, message in (
        (404, "NoSuchObjectLockConfiguration", ""),
        (404, "ObjectLockConfigurationNotFoundError", ""),
        (400, "InvalidRequest", "<Message>Bucket is missing Object Lock Configuration</Message>"),
        (400, "InvalidRequest", "<Message>bucket object lock not configured</Message>"),
    ):
        answer = refusal(status, code, message)
        bucket, _ = serve(answer, answer)
        assert bucket.retention("k") is None
        assert bucket.legal_hold("k") is False
    bucket, _ = serve(refusal(404, "NoSuchKey"), refusal(403, "AccessDenied"))
    with pytest.raises(NotFound):
        bucket.retention("k")
    with pytest.raises(Denied):
        bucket.legal_hold("k")


def test_restoring(serve: Serve) -> None:
    bucket, requests = serve(
        reply(202),
        refusal(409, "RestoreAlreadyInProgress"),
        reply(200),
        refusal(403, "InvalidObjectState"),
    )
    assert [bucket.restore("k", days=3, tier="Bulk") for _ in range(3)] == [False, False, True]
    assert requests[0].target == "/bucket/k?restore="
    assert b"<Days>3</Days><GlacierJobParameters><Tier>Bulk</Tier>" in requests[0].body
    with pytest.raises(Archived):
        bucket.get("k")


def test_a_version_that_is_kept_is_denied_and_one_that_is_gone_is_done(serve: Serve) -> None:
    bucket, requests = serve(refusal(403, "AccessDenied"), refusal(404, "NoSuchVersion"), reply(204))
    with pytest.raises(Denied):
        bucket.delete_version("k", "v")
    bucket.delete_version("k", "v")
    bucket.delete_version("k", "v", bypass_governance=True)
    assert requests[0].target == "/bucket/k?versionId=v"
    assert "x-amz-bypass-governance-retention" not in requests[0].headers
    assert requests[2].headers["x-amz-bypass-governance-retention"] == "true"
