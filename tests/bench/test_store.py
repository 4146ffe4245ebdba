"""The benchmark's store as clients meet it: what it knows of S3, its conditions, its counts."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import md5
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from bench.bare_client import measure
from bench.conditions import MIB
from bench.objects import decoded, parse_head
from bench.processes import free_port
from bench.store import Client

Wire = http.client.HTTPConnection


@pytest.fixture
def s3(store: Client) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{store.port}",
        aws_access_key_id="any",
        aws_secret_access_key="any",
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=60),
    )


@pytest.fixture
def wire(store: Client) -> Iterator[Wire]:
    connection = Wire("127.0.0.1", store.port, timeout=60)
    yield connection
    connection.close()


@pytest.fixture
def bucket(store: Client, request: pytest.FixtureRequest) -> str:
    name = re.sub("[^a-z0-9]+", "-", str(request.node.name).lower()).strip("-")[:60]
    store.remove(name)
    return name


def ask(
    wire: Wire, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    wire.request(method, path, body or None, headers or {})
    answer = wire.getresponse()
    return answer.status, answer.read()


def test_metadata_and_conditions(s3: Any, bucket: str) -> None:
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"one", Metadata={"mtime": "1.5"}, ContentType="text/plain")
    held = s3.get_object(Bucket=bucket, Key="k")
    assert (held["Body"].read(), held["Metadata"], held["ContentType"]) == (b"one", {"mtime": "1.5"}, "text/plain")
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"other"'}):
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket=bucket, Key="k", Body=b"two", **condition)
    s3.put_object(Bucket=bucket, Key="k", Body=b"two", IfMatch=first["ETag"])
    assert s3.get_object(Bucket=bucket, Key="k", Range="bytes=-2")["Body"].read() == b"wo"


def test_an_upload_in_parts(s3: Any, store: Client, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="k", Metadata={"a": "b"})["UploadId"]
    assert [one["Key"] for one in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["k"]
    pieces = [b"a" * (5 * MIB), b"end"]
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(Bucket=bucket, Key="k", UploadId=upload, PartNumber=number, Body=piece)["ETag"],
        }
        for number, piece in enumerate(pieces, 1)
    ]
    assert [one["Size"] for one in s3.list_parts(Bucket=bucket, Key="k", UploadId=upload)["Parts"]] == [5 * MIB, 3]
    with pytest.raises(ClientError, match="InvalidPart"):
        s3.complete_multipart_upload(
            Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": [parts[0] | {"ETag": '"x"'}]}
        )
    s3.put_object(Bucket=bucket, Key="k", Body=b"in the way")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.complete_multipart_upload(
            Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
    s3.complete_multipart_upload(Bucket=bucket, Key="k", UploadId=upload, MultipartUpload={"Parts": parts})
    held = s3.get_object(Bucket=bucket, Key="k")
    assert held["Body"].read() == b"".join(pieces)
    assert held["Metadata"] == {"a": "b"}
    assert held["ETag"].endswith('-2"')
    again = s3.create_multipart_upload(Bucket=bucket, Key="gone")["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key="gone", UploadId=again)
    assert "Uploads" not in s3.list_multipart_uploads(Bucket=bucket)
    counted = store.stats(bucket)
    # Two begun, two completions refused, one done.
    assert (counted.puts, counted.posts, counted.puts_of["part"]) == (3, 5, 2)


@pytest.mark.parametrize("call", ["list_objects", "list_objects_v2"])
def test_both_listings_page_and_fold(s3: Any, store: Client, bucket: str, call: str) -> None:
    keys = [f"d{folder}/f{number}" for folder in range(3) for number in range(4)] + ["a&<b", "plain"]
    for key in keys:
        store.place(f"{bucket}/{key}", b"x")
    pages = list(s3.get_paginator(call).paginate(Bucket=bucket, PaginationConfig={"PageSize": 3}))
    assert [one["Key"] for page in pages for one in page["Contents"]] == sorted(keys)
    assert len(pages) == 5
    folded = list(s3.get_paginator(call).paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2}))
    assert [one["Key"] for page in folded for one in page.get("Contents", [])] == ["a&<b", "plain"]
    assert [one["Prefix"] for page in folded for one in page.get("CommonPrefixes", [])] == ["d0/", "d1/", "d2/"]
    assert store.sizes(bucket) == dict.fromkeys(keys, 1)


def test_an_etag_is_the_digest_only_where_the_client_said_one(wire: Wire, s3: Any, bucket: str) -> None:
    body = b"some bytes"
    said = "fMzqcRoZVHRQXBXsDSdwPg=="
    ask(wire, "PUT", f"/{bucket}/said", body, {"Content-MD5": said})
    ask(wire, "PUT", f"/{bucket}/not", body)
    assert s3.head_object(Bucket=bucket, Key="said")["ETag"].strip('"') == "7cccea711a195474505c15ec0d27703e"
    assert "-" in s3.head_object(Bucket=bucket, Key="not")["ETag"], "or rclone would compare it"


def test_a_strict_store_compares_digests(strict_store: int) -> None:
    wire = Wire("127.0.0.1", strict_store, timeout=60)
    assert ask(wire, "PUT", "/strict/k", b"body", {"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="})[0] == 400
    assert ask(wire, "PUT", "/strict/k", b"body")[0] == 200
    wire.request("HEAD", "/strict/k")
    answer = wire.getresponse()
    answer.read()
    assert answer.headers["ETag"].strip('"') == md5(b"body").hexdigest()
    wire.close()


def test_aws_chunked_bodies_are_unwrapped() -> None:
    request = parse_head(
        b"PUT /b/k HTTP/1.1\r\nX-Amz-Content-Sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\r\nX-Amz-Decoded-Content-Length: 9"
    )
    request.body = bytearray(
        b"5;chunk-signature=ab\r\nhello\r\n4;chunk-signature=cd\r\n you\r\n0;chunk-signature=ef\r\n\r\n"
    )
    assert decoded(request) == b"hello you"
    request.body = request.body[:-40]
    assert decoded(request) is None


def test_chunks_and_pipelines_and_a_body_that_is_asked_for(store: Client, bucket: str) -> None:
    with socket.create_connection(("127.0.0.1", store.port), timeout=60) as sock:
        said = sock.makefile("rb")
        sock.sendall(f"PUT /{bucket}/a HTTP/1.1\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode())
        assert said.readline() == b"HTTP/1.1 100 Continue\r\n"
        said.readline()
        sock.sendall(b"abc")
        assert b"200" in said.readline()
        while said.readline() != b"\r\n":
            pass
        chunks = b"5\r\nhello\r\n" + b"%x\r\n" % 200_000 + b"z" * 200_000 + b"\r\n0\r\n\r\n"
        second = f"PUT /{bucket}/b HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode() + chunks
        sock.sendall(second + f"HEAD /{bucket}/b HTTP/1.1\r\n\r\n".encode())
        lines: list[bytes] = []
        while lines.count(b"\r\n") < 2:
            lines.append(said.readline())
        assert [line for line in lines if line.startswith(b"HTTP/")] == [b"HTTP/1.1 200 OK\r\n"] * 2
        assert b"Content-Length: 200005\r\n" in lines
    assert store.sizes(bucket) == {"a": 3, "b": 200_005}


def test_counts_are_kept_for_each_bucket(wire: Wire, store: Client, bucket: str) -> None:
    other = f"{bucket}-other"
    ask(wire, "PUT", f"/{bucket}/v1/vol/seg/1", b"12345")
    ask(wire, "PUT", f"/{other}/k", b"123")
    ask(wire, "GET", f"/{bucket}/v1/vol/seg/1")
    ask(wire, "GET", f"/{bucket}/?list-type=2")
    ask(wire, "DELETE", f"/{other}/k")
    one, two, both = store.stats(bucket), store.stats(other), store.stats()
    assert (one.puts, one.gets, one.lists, one.bytes_in, one.bytes_out, one.requests) == (1, 1, 1, 5, 5, 3)
    assert one.puts_of == {"seg": 1}
    assert (two.puts, two.deletes, two.deleted) == (1, 1, 1)
    assert both.requests == one.requests + two.requests
    assert both.cpu_s > 0
    store.clear_stats()
    assert store.stats(bucket).requests == 0
    assert store.stats(bucket).objects == 1
    ask(wire, "HEAD", f"/{bucket}/none")
    assert store.stats(bucket).since(two).heads == 1


def test_uploads_and_answers_take_the_time_that_the_link_needs(wire: Wire, store: Client, bucket: str) -> None:
    store.set_bandwidth(20, 0)
    begin = time.monotonic()
    assert ask(wire, "PUT", f"/{bucket}/k", bytes(2 * MIB))[0] == 200
    up = time.monotonic() - begin
    begin = time.monotonic()
    assert len(ask(wire, "GET", f"/{bucket}/k")[1]) == 2 * MIB
    down = time.monotonic() - begin
    # Never faster; how much slower is this machine's affair.
    assert up >= 0.0999
    assert down >= 0.0999
    before = store.stats(bucket).cpu_s
    store.set_bandwidth(0, 10)
    begin = time.monotonic()
    ask(wire, "GET", f"/{bucket}/k")
    assert time.monotonic() - begin >= 0.1999
    assert store.stats(bucket).cpu_s - before < 0.15, "it waits, and does not poll"


def test_latency_delays_each_answer(wire: Wire, store: Client, bucket: str) -> None:
    store.set_latency(30)
    begin = time.monotonic()
    for _ in range(3):
        ask(wire, "HEAD", f"/{bucket}/k")
    assert time.monotonic() - begin >= 0.0899


def test_a_refused_request_did_nothing(wire: Wire, store: Client, bucket: str) -> None:
    store.set_faults(1.0, retry_after_s=3)
    wire.request("PUT", f"/{bucket}/k", b"body")
    answer = wire.getresponse()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "3")
    assert b"<Code>SlowDown</Code>" in answer.read()
    store.set_faults(0.5, method="PUT", seed=4)
    told = [ask(wire, "PUT", f"/{bucket}/{number}", b"x")[0] for number in range(40)]
    store.reset()
    assert {200, 503} == set(told)
    assert set(store.sizes(bucket)) == {str(number) for number, status in enumerate(told) if status == 200}
    counted = store.stats(bucket)
    assert (counted.faults, counted.puts) == (1 + told.count(503), told.count(200))


def test_a_lost_answer_was_done_all_the_same(store: Client, bucket: str) -> None:
    store.set_faults(1.0, lost=1.0, method="PUT", seed=2)
    told = []
    for number in range(20):
        wire = Wire("127.0.0.1", store.port, timeout=60)
        try:
            told.append(ask(wire, "PUT", f"/{bucket}/{number}", b"x")[0])
        except ConnectionError:
            told.append(0)
        wire.close()
    store.reset()
    assert set(told) == {0, 500}
    assert len(store.sizes(bucket)) == 20
    assert store.stats(bucket).lost == 20


def test_a_blackout_answers_nothing_and_does_nothing(store: Client, bucket: str) -> None:
    wire = Wire("127.0.0.1", store.port, timeout=60)
    store.black_out(0.5)
    begin = time.monotonic()
    with pytest.raises(ConnectionError):
        ask(wire, "PUT", f"/{bucket}/k", b"x")
    assert time.monotonic() - begin < 30
    wire.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            assert ask(wire, "PUT", f"/{bucket}/later", b"x")[0] == 200
            break
        except ConnectionError:
            wire.close()
    assert set(store.sizes(bucket)) == {"later"}


def test_a_blackout_that_refuses(store: Client, bucket: str) -> None:
    wire = Wire("127.0.0.1", store.port, timeout=60)
    ask(wire, "PUT", f"/{bucket}/k", b"x")
    store.black_out(2.0, refuse=True)
    with pytest.raises(ConnectionError):
        ask(wire, "GET", f"/{bucket}/k")
    wire.close()
    assert store.stats(bucket).puts == 1, "its own client goes on"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert ask(wire, "GET", f"/{bucket}/k") == (200, b"x")
            return
        except ConnectionError:
            wire.close()
            time.sleep(0.05)
    pytest.fail("it did not come back")


def test_one_bit_is_turned(wire: Wire, store: Client, bucket: str) -> None:
    ask(wire, "PUT", f"/{bucket}/k", b"\x00\x00")
    before = ask(wire, "HEAD", f"/{bucket}/k")
    store.flip(f"{bucket}/k", 1, 3)
    assert ask(wire, "GET", f"/{bucket}/k")[1] == b"\x00\x08"
    assert ask(wire, "HEAD", f"/{bucket}/k") == before
    with pytest.raises(RuntimeError, match="NoSuchKey"):
        store.flip(f"{bucket}/k", 2)


def test_the_port_can_be_chosen() -> None:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "bench.store", "--port", str(port)], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert str(port).encode() in server.stdout.readline()
        server.kill()


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_the_bare_client_says_what_it_did(store: Client, method: str) -> None:
    found = measure(store.port, method, 64 * 1024, 4, 0.2)
    counted = store.stats("bare")
    assert found.requests == (counted.puts if method == "PUT" else counted.gets) > 4
    assert (counted.bytes_in if method == "PUT" else counted.bytes_out) == found.requests * 64 * 1024
    assert found.seconds >= 0.2
    assert 0 < found.store_cpu < 2
    assert 0 < found.client_cpu < 2
    assert json.loads(json.dumps(found.mib_s)) == pytest.approx(found.per_second / 16)


def test_the_bare_client_meets_the_link_and_never_more(store: Client) -> None:
    store.set_bandwidth(50, 0)
    found = measure(store.port, "PUT", MIB // 4, 8, 1.0)
    assert found.mib_s <= 51
    assert found.mib_s > 5, "the machine may be slow, not so slow"
