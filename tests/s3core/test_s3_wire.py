"""The adapter against a server that answers from a script: cut bodies, resets, silence, and lies."""

import base64
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from hashlib import md5
from typing import Any

import pytest

from s3core.endpoint import Credentials, Endpoint
from s3core.errors import (
    Corrupt,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.s3 import S3Store, open_s3_store
from s3core.s3_control import S3Control
from tests.servers.scripted import Reply, Request, ScriptedServer, refusal, reply

Serve = Callable[..., tuple[S3Store, list[Request]]]
BODY = b"0123456789"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with a script; gives the store that speaks to it and the requests it got."""
    servers: list[ScriptedServer] = []
    stores: list[S3Store] = []

    def start(*replies: Reply, **changes: Any) -> tuple[S3Store, list[Request]]:
        server = ScriptedServer(replies)
        servers.append(server)
        settings: dict[str, Any] = {
            "region": "us-east-1",
            "credentials": Credentials("AKID", "secret"),
            # Long, for a slow machine is not a silent server; a server that hangs must have read its request by then.
            "read_timeout_s": 1.5 if any(one.then == "hang" for one in replies) else 30.0,
        } | changes
        retain_s = settings.pop("retain_s", None)
        store = open_s3_store(Endpoint("script", server.url, **settings), "bucket", "top/sub", retain_s=retain_s)
        stores.append(store)
        return stores[-1], server.requests

    yield start
    for store in stores:
        store.close()
    for server in servers:
        server.stop()


def part(first: int, last: int, body: bytes, total: int = 10) -> Reply:
    return reply(206, body, {"content-range": f"bytes {first}-{last}/{total}", "etag": '"e"'})


# --- reads -----------------------------------------------------------------------------------------------


def test_a_whole_object_and_a_range(serve: Serve) -> None:
    store, requests = serve(reply(200, BODY, {"etag": '"e"'}), part(2, 4, b"234"))
    assert store.get("a b").data == BODY
    assert store.get_range("a b", 2, 3).etag == "e"
    assert requests[0].target == "/bucket/top/sub/a%20b"
    assert requests[1].headers["range"] == "bytes=2-4"


@pytest.mark.parametrize(
    "broken",
    [
        Reply(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", then="close"),
        Reply(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", then="reset"),
        Reply(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n01234", then="hang"),
        Reply(b"HTTP/1.1 200 OK\r\n\r\n01234", then="close"),
        Reply(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n01234\r\n", then="close"),
        Reply(then="close"),
        Reply(then="reset"),
        Reply(then="hang"),
        Reply(b"SSH-2.0-OpenSSH\r\n", then="close"),
    ],
)
def test_a_body_that_was_cut_is_unavailable_and_asked_for_once(serve: Serve, broken: Reply) -> None:
    store, requests = serve(broken)
    with pytest.raises(Unavailable) as caught:
        store.get("key")
    assert caught.value.key == "key"
    assert len(requests) == 1


def test_a_cut_connection_is_replaced(serve: Serve) -> None:
    store, _ = serve(Reply(then="reset"), reply(200, BODY))
    with pytest.raises(Unavailable):
        store.get("key")
    assert store.get("key").data == BODY


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (part(2, 3, b"23", total=4), Corrupt),
        (part(0, 2, b"012"), Unavailable),
        (part(2, 5, b"2345"), Unavailable),
        (reply(206, b"234"), Unavailable),
        (reply(206, b"23", {"content-range": "bytes 2-4/10"}), Unavailable),
        (reply(200, b"0123"), Corrupt),
        (refusal(416, "InvalidRange"), Corrupt),
    ],
)
def test_a_range_is_what_was_asked_for_or_an_error(serve: Serve, answer: Reply, error: type[StoreError]) -> None:
    store, _ = serve(answer)
    with pytest.raises(error) as caught:
        store.get_range("key", 2, 3)
    assert caught.value.key == "key"
    if isinstance(caught.value, Corrupt):
        assert caught.value.offset == 2


def test_a_server_without_ranges_sends_the_whole_object(serve: Serve) -> None:
    store, _ = serve(reply(200, BODY))
    assert store.get_range("key", 2, 3).data == b"234"


def test_bytes_that_look_like_an_error_are_bytes(serve: Serve) -> None:
    text = b"<Error><Code>NoSuchKey</Code></Error>"
    store, _ = serve(reply(200, text))
    assert store.get("key").data == text


def test_a_refused_head_is_asked_for_its_reason(serve: Serve) -> None:
    head = Reply(b"HTTP/1.1 403 X\r\ncontent-length: 99\r\n\r\n")
    store, requests = serve(head, refusal(403, "SignatureDoesNotMatch"))
    with pytest.raises(StoreError, match="SignatureDoesNotMatch"):
        store.head("key")
    assert [request.method for request in requests] == ["HEAD", "GET"]


# --- writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["put", "put_if_absent", "put_if_match", "delete", "copy"])
@pytest.mark.parametrize(
    "lost",
    [Reply(then="close"), Reply(then="reset"), Reply(then="hang"), refusal(500, "InternalError"), reply(502, b"x")],
)
def test_a_change_whose_answer_is_lost_is_unknown_and_sent_once(serve: Serve, write: str, lost: Reply) -> None:
    store, requests = serve(lost)
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: store.put("key", BODY),
        "put_if_absent": lambda: store.put_if_absent("key", BODY),
        "put_if_match": lambda: store.put_if_match("key", BODY, "e"),
        "delete": lambda: store.delete("key"),
        "copy": lambda: store.copy("key", "key2"),
    }
    with pytest.raises(OutcomeUnknown):
        calls[write]()
    assert len(requests) == 1


def test_a_server_that_stops_reading_leaves_the_outcome_open(serve: Serve) -> None:
    store, _ = serve(Reply(then="reset", body_bytes=1000))
    with pytest.raises(OutcomeUnknown):
        store.put_if_absent("key", b"x" * 50_000_000)


def test_an_early_refusal_is_heard_over_an_unfinished_body(serve: Serve) -> None:
    store, _ = serve(refusal(412, "PreconditionFailed"), reply(200, b"", {"etag": '"e"'}))
    with pytest.raises(StoreError, match="412"):
        store.put_if_absent("key", b"x" * 3_000_000)
    assert store.put("key", b"") == "e"


def test_bodies_arrive_whole_however_they_are_handed_in(serve: Serve) -> None:
    big = bytes(range(256)) * 12_000
    bodies: list[Any] = [
        b"",
        b"small",
        bytearray(b"array"),
        memoryview(big),
        [b"a", memoryview(b"bc"), big, b"", bytearray(b"d"), big[:70_000], b"e"],
        memoryview(b"\x01\x00\x02\x00").cast("H"),
        [],
    ]
    store, requests = serve(*[reply(200, b"", {"etag": '"e"'})] * len(bodies))
    for body in bodies:
        assert store.put("key", body) == "e"
    assert [request.body for request in requests] == [
        b"",
        b"small",
        b"array",
        big,
        b"abc" + big + b"d" + big[:70_000] + b"e",
        b"\x01\x00\x02\x00",
        b"",
    ]
    assert "transfer-encoding" not in requests[4].headers
    assert "expect" not in requests[4].headers


def test_conditions_are_sent_as_the_endpoint_wants_them(serve: Serve) -> None:
    ok = reply(200, b"", {"etag": '"e"'})
    store, requests = serve(ok, ok)
    store.put_if_absent("key", BODY)
    store.put_if_match("key", BODY, "e1")
    assert requests[0].headers["if-none-match"] == "*"
    assert requests[1].headers["if-match"] == '"e1"'
    bare, bare_requests = serve(ok, if_match_quoted=False)
    bare.put_if_match("key", BODY, "e1")
    assert bare_requests[0].headers["if-match"] == "e1"


def test_a_body_is_signed_over_http_unless_told_otherwise(serve: Serve) -> None:
    ok = reply(200, b"", {"etag": '"e"'})
    store, requests = serve(ok)
    store.put("key", b"hello")
    assert requests[0].headers["x-amz-content-sha256"].startswith("2cf24dba5fb0a30e")
    unsigned, unsigned_requests = serve(ok, sign_payload=False)
    unsigned.put("key", b"hello")
    assert unsigned_requests[0].headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"


def test_a_copy_that_fails_after_its_200_has_failed(serve: Serve) -> None:
    store, _ = serve(reply(200, b"<?xml version='1.0'?><Error><Code>InternalError</Code></Error>"))
    with pytest.raises(OutcomeUnknown, match="InternalError"):
        store.copy("a", "b")


def test_a_copy_the_server_cannot_do_is_done_by_hand(serve: Serve) -> None:
    head = Reply(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\nx-amz-meta-who: me\r\n\r\n")
    store, requests = serve(refusal(501, "NotImplemented"), head, reply(200, BODY), reply(200, b"", {"etag": '"e"'}))
    assert store.copy("a", "b") == "e"
    assert requests[-1].body == BODY
    assert requests[-1].headers["x-amz-meta-who"] == "me"


def test_an_upload_that_fails_after_its_200_has_failed(serve: Serve) -> None:
    begin = b"<InitiateMultipartUploadResult><UploadId>u+1</UploadId></InitiateMultipartUploadResult>"
    store, requests = serve(
        reply(200, begin), reply(200, b"", {"etag": '"p"'}), reply(200, b"<Error><Code>InternalError</Code></Error>")
    )
    upload = store.multipart("key")
    upload.part(1, BODY)
    with pytest.raises(OutcomeUnknown):
        upload.complete()
    assert requests[1].target.endswith("?partNumber=1&uploadId=u%2B1")


# --- deleting many ---------------------------------------------------------------------------------------


def test_delete_many_reports_each_key_that_stayed(serve: Serve) -> None:
    body = (
        b"<DeleteResult><Error><Key>top/sub/a</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
        b"<Error><Key>top/sub/b</Key><Code>InternalError</Code></Error>"
        b"<Error><Key>top/sub/c</Key><Code>NoSuchKey</Code></Error></DeleteResult>"
    )
    store, requests = serve(reply(200, body))
    failures = store.delete_many(["a", "b", "c", "d"])
    assert {key: type(error).__name__ for key, error in failures.items()} == {"a": "Denied", "b": "OutcomeUnknown"}
    assert "s3:DeleteObject" in failures["a"].hint
    assert requests[0].headers["content-md5"]
    assert requests[0].target == "/bucket/?delete="


def test_delete_many_goes_one_by_one_where_batches_are_unknown(serve: Serve) -> None:
    store, requests = serve(refusal(501, "NotImplemented"), reply(204), refusal(404, "NoSuchKey"), reply(204))
    assert store.delete_many(["a", "b"]) == {}
    assert store.delete_many(["c"]) == {}
    assert [request.method for request in requests] == ["POST", "DELETE", "DELETE", "DELETE"]


def test_delete_many_during_an_outage_reports_every_key(serve: Serve) -> None:
    store, _ = serve(refusal(503, "SlowDown"))
    failures = store.delete_many(["a", "b"])
    assert all(isinstance(error, Unavailable) for error in failures.values())
    assert set(failures) == {"a", "b"}


# --- listings --------------------------------------------------------------------------------------------


def listing(*keys: str, token: str = "") -> Reply:
    rows = "".join(
        f"<Contents><Key>{key}</Key><LastModified>2023-11-14T22:13:20Z</LastModified><ETag>e</ETag><Size>1</Size>"
        "</Contents>"
        for key in keys
    )
    more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>"
    tail = more if token else "<IsTruncated>false</IsTruncated>"
    body = f"<ListBucketResult><EncodingType>url</EncodingType>{tail}{rows}</ListBucketResult>"
    return reply(200, body.encode())


def test_pages_are_fetched_as_the_listing_is_read(serve: Serve) -> None:
    store, requests = serve(listing("top/sub/a", token="t=1"), listing("top/sub/b"))
    found = store.list()
    assert next(found).key == "a"
    assert len(requests) == 1
    assert [item.key for item in found] == ["b"]
    assert "continuation-token=t%3D1" in requests[1].target


@pytest.mark.parametrize(
    "pages",
    [
        [listing("top/sub/b", "top/sub/a")],
        [listing("top/sub/b", token="t"), listing("top/sub/a")],
        [listing("top/sub/a", token="t"), listing("top/sub/b", token="t")],
        [listing("elsewhere")],
    ],
)
def test_a_listing_out_of_order_or_going_in_circles_is_refused(serve: Serve, pages: list[Reply]) -> None:
    store, _ = serve(*pages)
    with pytest.raises(Misconfigured):
        list(store.list())


def test_a_listing_that_is_none_is_never_empty(serve: Serve) -> None:
    store, _ = serve(reply(200, b"<html>welcome</html>"))
    with pytest.raises(Corrupt):
        list(store.list())


# --- endpoints -------------------------------------------------------------------------------------------


def test_auto_asks_for_the_region_once_and_keeps_it(serve: Serve) -> None:
    wrong = refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>")
    ok = reply(200, b"", {"etag": '"e"'})
    store, requests = serve(wrong, ok, ok, region="auto")
    store.put("key", BODY)
    store.put("key", BODY)
    regions = [request.headers["authorization"].split("/")[2] for request in requests]
    assert regions == ["us-east-1", "eu-west-1", "eu-west-1"]
    assert store.region == "eu-west-1"


def test_auto_asks_by_a_listing_when_a_head_was_refused(serve: Serve) -> None:
    refused = Reply(b"HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n")
    wrong = refusal(400, "AuthorizationHeaderMalformed", "<Region>garage</Region>")
    store, requests = serve(refused, wrong, reply(200), region="auto")
    assert store.head("key").key == "key"
    assert [request.method for request in requests] == ["HEAD", "GET", "HEAD"]
    assert store.region == "garage"


def test_a_stated_region_that_is_wrong_is_reported(serve: Serve) -> None:
    store, requests = serve(refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"))
    with pytest.raises(Misconfigured) as caught:
        store.put("key", BODY)
    assert 'region = "eu-west-1"' in caught.value.hint
    assert len(requests) == 1


def test_the_control_plane_asks_for_the_region_too() -> None:
    server = ScriptedServer(
        [
            refusal(400, "AuthorizationHeaderMalformed", "<Region>eu-west-1</Region>"),
            reply(200, b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"),
            reply(200, b"<VersioningConfiguration/>"),
        ]
    )
    control = S3Control(Endpoint("script", server.url, "auto", "path", Credentials("AKID", "secret")))
    assert control.versioning("bucket") == "Enabled"
    assert control.versioning("bucket") == ""
    control.close()
    server.stop()
    regions = [request.headers["authorization"].split("/")[2] for request in server.requests]
    assert regions == ["us-east-1", "eu-west-1", "eu-west-1"]


def test_redirects_are_not_followed(serve: Serve) -> None:
    store, requests = serve(reply(301, b"", {"location": "http://127.0.0.1:1/"}))
    with pytest.raises(Misconfigured, match="elsewhere"):
        store.get("key")
    assert len(requests) == 1


def test_a_refused_connection_is_unavailable_for_writes_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    store = open_s3_store(Endpoint("gone", f"http://127.0.0.1:{port}", "us-east-1"), "bucket", "")
    with pytest.raises(Unavailable) as caught:
        store.put_if_absent("key", BODY)
    assert f"127.0.0.1:{port}" in str(caught.value)


def test_a_bucket_host_name_that_does_not_resolve_suggests_path_style(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_such_name(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    virtual = open_s3_store(Endpoint("shop", "https://s3.example.com", "us-east-1", "virtual"), "bucket", "")
    with pytest.raises(Unavailable, match=r"bucket\.s3\.example\.com") as caught:
        virtual.put_if_absent("key", BODY)
    assert 'addressing = "path"' in caught.value.hint
    by_path = open_s3_store(Endpoint("shop", "https://s3.example.com", "us-east-1", "path"), "bucket", "")
    with pytest.raises(Unavailable) as caught:
        by_path.get("key")
    assert "addressing" not in caught.value.hint


def test_a_proxy_that_is_down_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in ("http://s3.example.com", "https://s3.example.com"):
        endpoint = Endpoint("shop", url, "us-east-1", "path", proxy=f"http://me:hunter2@127.0.0.1:{port}")
        with pytest.raises(Unavailable) as caught:
            open_s3_store(endpoint, "bucket", "").put("key", BODY)
        assert "proxy" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def test_http_goes_through_a_proxy_with_the_whole_url() -> None:
    proxied = ScriptedServer([reply(200, BODY)])
    endpoint = Endpoint(
        "shop", "http://s3.example.com", "us-east-1", "path", proxy=f"http://me:pw@127.0.0.1:{proxied.port}"
    )
    store = open_s3_store(endpoint, "bucket", "")
    assert store.get("key").data == BODY
    store.close()
    proxied.stop()
    assert proxied.requests[0].target == "http://s3.example.com/bucket/key"
    assert proxied.requests[0].headers["host"] == "s3.example.com"
    assert proxied.requests[0].headers["proxy-authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("bucket", "key"), [("", "k"), ("a/b", "k"), ("bucket", ""), ("bucket", "/k"), ("bucket", "k" * 901)]
)
def test_names_that_cannot_be_are_the_callers_fault(bucket: str, key: str) -> None:
    with pytest.raises(ValueError):
        open_s3_store(Endpoint("shop", "https://s3.example.com"), bucket, "").get(key)


def test_a_ca_file_that_cannot_be_read_is_misconfigured() -> None:
    with pytest.raises(Misconfigured, match="ca_file"):
        open_s3_store(Endpoint("shop", "https://s3.example.com", ca_file="/nonexistent.pem"), "bucket", "")


def test_unsupported_is_told_apart_from_not_found(serve: Serve) -> None:
    store, _ = serve(refusal(501, "NotImplemented"), refusal(404, "NoSuchBucket"))
    with pytest.raises(Unsupported):
        store.put_if_absent("key", BODY)
    with pytest.raises(NotFound) as caught:
        store.put("key", BODY)
    assert caught.value.key == ""


def test_what_is_put_in_a_bucket_with_object_lock_says_its_digest_and_until_when(serve: Serve) -> None:
    told = reply(200, b"", {"etag": '"e"'})
    plain, plain_requests = serve(told)
    plain.put("k", b"x")
    assert "content-md5" not in plain_requests[0].headers
    default, default_requests = serve(told, retain_s=0)
    default.put_if_absent("k", [b"x", b"y"])
    assert default_requests[0].headers["content-md5"] == base64.b64encode(md5(b"xy").digest()).decode()
    assert "x-amz-object-lock-mode" not in default_requests[0].headers
    locked, locked_requests = serve(told, retain_s=3600.0)
    began = time.time()
    locked.put_if_match("k", b"x", "e")
    headers = locked_requests[0].headers
    assert headers["x-amz-object-lock-mode"] == "COMPLIANCE"
    until = datetime.fromisoformat(headers["x-amz-object-lock-retain-until-date"]).timestamp()
    assert 3598 < until - began < 3605
    assert headers["content-md5"] == base64.b64encode(md5(b"x").digest()).decode()
