"""A loopback S3 server for benchmarks: objects in memory, latency on demand, every request counted.

One rule: it must never be what is measured. So it does no more than the protocol needs: bodies are received in place,
signatures are ignored, an ETag is a number and not a digest (but the digest that a client sends as Content-MD5: clients that
do so compare). `ceiling` says what it can carry, and `bench` prints beside
every figure how busy it was.

    python -m bench.store            prints its port; serves 127.0.0.1 until it is ended
    GET  /_stats                     what was asked of it since it started, as JSON
    POST /_latency?ms=20             how long every answer waits from now on

Known to it: PUT, GET and HEAD of objects with Range, If-Match and If-None-Match, DELETE, ListObjectsV2, DeleteObjects and
copies. Uploads in parts and versions are answered with 501: volumes use neither. Source: Amazon S3 API reference.
"""

import asyncio
import http.client
import json
import re
import socket
import sys
import time
from base64 import b64decode
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from email.utils import formatdate
from urllib.parse import parse_qsl, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

HEAD_BYTES_MAX = 64 * 1024
READY = "the store listens on port"
SOCKET_BYTES = 4 * 1024 * 1024
LIST_KEYS_MAX = 1000
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_ENTRY = re.compile(rb"<Key>([^<]*)</Key>.*?<Size>(\d+)</Size>")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_KEPT_HEADERS = ("content-encoding", "content-type")
_REASONS = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    501: "Not Implemented",
}


@dataclass(slots=True)
class Stats:
    """Requests and body bytes since the server started."""

    puts: int = 0
    gets: int = 0
    heads: int = 0
    deletes: int = 0
    lists: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    deleted: int = 0
    """Objects that are gone; `deletes` counts requests."""
    objects: int = 0
    stored_bytes: int = 0
    in_flight_max: int = 0
    puts_of: dict[str, int] = field(default_factory=dict)
    """PUTs by the kind of object: `kind_of`."""
    bytes_of: dict[str, int] = field(default_factory=dict)
    """Body bytes of these PUTs."""
    gets_of: dict[str, int] = field(default_factory=dict)
    stored_of: dict[str, int] = field(default_factory=dict)
    """Bytes that are there now, by kind."""

    @property
    def requests(self) -> int:
        return self.puts + self.gets + self.heads + self.deletes + self.lists

    def since(self, before: "Stats") -> "Stats":
        """What came after `before`; levels (objects, stored bytes, most in flight) as they are now."""
        return Stats(
            self.puts - before.puts,
            self.gets - before.gets,
            self.heads - before.heads,
            self.deletes - before.deletes,
            self.lists - before.lists,
            self.bytes_in - before.bytes_in,
            self.bytes_out - before.bytes_out,
            self.deleted - before.deleted,
            self.objects,
            self.stored_bytes,
            self.in_flight_max,
            _less(self.puts_of, before.puts_of),
            _less(self.bytes_of, before.bytes_of),
            _less(self.gets_of, before.gets_of),
            self.stored_of,
        )


def _less(counts: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {kind: count - before.get(kind, 0) for kind, count in counts.items() if count != before.get(kind, 0)}


def kind_of(path: str) -> str:
    """What a volume's object is, by its key: the folder below the volume's, or the name of what has none (`head`)."""
    _, found, rest = path.partition("/v1/")
    return rest.partition("/")[2].partition("/")[0] if found else "other"


@dataclass(frozen=True, slots=True)
class Stored:
    data: bytes | bytearray | memoryview
    etag: str
    modified: float
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes | bytearray | memoryview = b""
    headers: tuple[tuple[str, str], ...] = ()
    body_bytes: int | None = None
    """Length to announce where it is not the body's: the answer to HEAD."""


class Bucket:
    """All objects, of whatever bucket: the path is the key. Answers requests; does no I/O."""

    def __init__(self) -> None:
        self.objects: dict[str, Stored] = {}
        self.latency_s = 0.0
        self.in_flight = 0
        self.stats = Stats()
        self._version = 0
        self._sorted: list[str] | None = None

    def answer(self, request: Request, now: float) -> Answer:
        """Does what is asked, at once and atomically."""
        if request.path.startswith("/_"):
            return self._control(request)
        bucket, _, key = request.path.lstrip("/").partition("/")
        if not key:
            if request.method == "POST" and "delete" in request.query:
                return self._delete_many(bucket, request.body)
            return self._list(bucket, request.query) if request.method == "GET" else _error(501, "NotImplemented")
        if "uploads" in request.query or "uploadId" in request.query:
            return _error(501, "NotImplemented")
        if request.method == "PUT":
            return self._put(request, now)
        if request.method in ("GET", "HEAD"):
            return self._get(request)
        if request.method == "DELETE":
            self.stats.deletes += 1
            self._forget(request.path)
            return Answer(204)
        return _error(501, "NotImplemented")

    def _control(self, request: Request) -> Answer:
        if request.path == "/_stats":
            self.stats.objects = len(self.objects)
            stored: Counter[str] = Counter()
            for path, one in self.objects.items():
                stored[kind_of(path)] += len(one.data)
            self.stats.stored_of = dict(stored)
            self.stats.stored_bytes = sum(stored.values())
            return Answer(200, json.dumps(asdict(self.stats)).encode())
        if request.path == "/_latency":
            self.latency_s = float(request.query["ms"]) / 1000
            return Answer(204)
        return _error(404, "NoSuchKey")

    def _put(self, request: Request, now: float) -> Answer:
        self.stats.puts += 1
        self.stats.bytes_in += len(request.body)
        kind = kind_of(request.path)
        self.stats.puts_of[kind] = self.stats.puts_of.get(kind, 0) + 1
        self.stats.bytes_of[kind] = self.stats.bytes_of.get(kind, 0) + len(request.body)
        held = self.objects.get(request.path)
        if request.headers.get("if-none-match") == "*" and held is not None:
            return _error(412, "PreconditionFailed")
        wanted = request.headers.get("if-match")
        if wanted is not None and (held is None or wanted.strip('"') != held.etag):
            return _error(412, "PreconditionFailed") if held is not None else _error(404, "NoSuchKey")
        data: bytes | bytearray | memoryview = request.body
        source = request.headers.get("x-amz-copy-source")
        if source is not None:
            origin = self.objects.get("/" + unquote(source).lstrip("/"))
            if origin is None:
                return _error(404, "NoSuchKey")
            data = origin.data
        self._version += 1
        digest = request.headers.get("content-md5")
        etag = f"{self._version:032x}" if digest is None else b64decode(digest).hex()
        metadata = tuple(
            item for item in request.headers.items() if item[0].startswith("x-amz-meta-") or item[0] in _KEPT_HEADERS
        )
        if held is None:
            self._sorted = None
        self.objects[request.path] = Stored(data, etag, now, metadata)
        body = f'<CopyObjectResult><ETag>"{etag}"</ETag></CopyObjectResult>'.encode() if source is not None else b""
        return Answer(200, body, (("ETag", f'"{etag}"'),))

    def _get(self, request: Request) -> Answer:
        head = request.method == "HEAD"
        if head:
            self.stats.heads += 1
        else:
            self.stats.gets += 1
            kind = kind_of(request.path)
            self.stats.gets_of[kind] = self.stats.gets_of.get(kind, 0) + 1
        held = self.objects.get(request.path)
        if held is None:
            return Answer(404) if head else _error(404, "NoSuchKey")
        headers = (
            ("ETag", f'"{held.etag}"'),
            ("Last-Modified", formatdate(held.modified, usegmt=True)),
            *held.metadata,
        )
        known = request.headers.get("if-none-match")
        if known is not None and known.strip('"') == held.etag:
            return Answer(304, b"", headers)
        size = len(held.data)
        if head:
            return Answer(200, b"", headers, size)
        asked = _RANGE.fullmatch(request.headers.get("range", ""))
        if asked is None:
            self.stats.bytes_out += size
            return Answer(200, held.data, headers)
        first, last = int(asked[1]), min(int(asked[2]) if asked[2] else size - 1, size - 1)
        if first >= size:
            return _error(416, "InvalidRange")
        self.stats.bytes_out += last + 1 - first
        ranged = ("Content-Range", f"bytes {first}-{last}/{size}")
        return Answer(206, memoryview(held.data)[first : last + 1], (*headers, ranged))

    def _forget(self, path: str) -> None:
        if self.objects.pop(path, None) is not None:
            self.stats.deleted += 1
            self._sorted = None

    def _delete_many(self, bucket: str, body: bytearray) -> Answer:
        keys = [unescape(found.decode()) for found in _KEY.findall(body)]
        self.stats.deletes += 1
        for key in keys:
            self._forget(f"/{bucket}/{key}")
        return Answer(200, b"<DeleteResult></DeleteResult>")

    def _list(self, bucket: str, query: Mapping[str, str]) -> Answer:
        self.stats.lists += 1
        if self._sorted is None:
            self._sorted = sorted(self.objects)
        root = f"/{bucket}/"
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        after = query.get("continuation-token") or query.get("start-after", "")
        at = bisect_left(self._sorted, root + prefix)
        if after:
            at = max(at, bisect_right(self._sorted, root + after))
        rows: list[str] = []
        last = ""
        seen = ""
        truncated = False
        for path in self._sorted[at:]:
            key = path[len(root) :]
            if not path.startswith(root) or not key.startswith(prefix):
                break
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            name = key[: cut + len(delimiter)] if cut >= 0 else ""
            if name and (name == seen or after.startswith(name)):
                last = key
                continue
            if len(rows) == LIST_KEYS_MAX:
                truncated = True
                break
            last = key
            if name:
                seen = name
                rows.append(f"<CommonPrefixes><Prefix>{escape(quote(name))}</Prefix></CommonPrefixes>")
            else:
                held = self.objects[path]
                stamp = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(held.modified))
                rows.append(
                    f"<Contents><Key>{escape(quote(key))}</Key><LastModified>{stamp}</LastModified>"
                    f"<ETag>&quot;{held.etag}&quot;</ETag><Size>{len(held.data)}</Size></Contents>"
                )
        token = f"<NextContinuationToken>{escape(last)}</NextContinuationToken>" if truncated else ""
        body = (
            f"<ListBucketResult><EncodingType>url</EncodingType>"
            f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{token}{''.join(rows)}</ListBucketResult>"
        )
        return Answer(200, body.encode())


def _error(status: int, code: str) -> Answer:
    return Answer(status, f"<Error><Code>{code}</Code><Message>{_REASONS[status]}</Message></Error>".encode())


def parse_head(head: bytes) -> Request:
    """A request's line and headers (RFC 9112 section 3). ValueError for what is none."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    url = urlsplit(target)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return Request(method, unquote(url.path), dict(parse_qsl(url.query, keep_blank_values=True)), headers)


class Connection(asyncio.BufferedProtocol):
    """One keep-alive connection. Heads go through a small buffer, bodies straight to where they will stay."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray(HEAD_BYTES_MAX)
        self._filled = 0
        self._request: Request | None = None
        self._body_filled = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        sock: socket.socket = transport.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._request is not None:
            return memoryview(self._request.body)[self._body_filled :]
        return memoryview(self._buffer)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        if self._request is not None:
            self._body_filled += count
            if self._body_filled == len(self._request.body):
                self._complete(self._request)
            return
        self._filled += count
        end = self._buffer.find(b"\r\n\r\n", 0, self._filled)
        if end < 0:
            if self._filled == len(self._buffer) and self._transport is not None:
                self._transport.close()
            return
        request = parse_head(bytes(self._buffer[:end]))
        size = int(request.headers.get("content-length", "0"))
        rest = self._buffer[end + 4 : self._filled]
        self._filled = 0
        request.body = bytearray(size)
        request.body[: len(rest)] = rest
        self._request, self._body_filled = request, len(rest)
        if len(rest) == size:
            self._complete(request)
        elif request.headers.get("expect") == "100-continue" and self._transport is not None:
            # libcurl (s3backer) asks before every body, and without an answer waits for a second each time.
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _complete(self, request: Request) -> None:
        bucket = self._bucket
        bucket.in_flight += 1
        bucket.stats.in_flight_max = max(bucket.stats.in_flight_max, bucket.in_flight)
        if request.path.startswith("/_") or not bucket.latency_s:
            self._reply(request)
            return
        # Nothing more may be read until the answer is out: clients of this server do not pipeline.
        self._loop.call_later(bucket.latency_s, self._reply, request)

    def _reply(self, request: Request) -> None:
        self._request = None
        self._bucket.in_flight -= 1
        answer = self._bucket.answer(request, time.time())
        transport = self._transport
        if transport is None:
            return
        size = len(answer.body) if answer.body_bytes is None else answer.body_bytes
        lines = [f"HTTP/1.1 {answer.status} {_REASONS[answer.status]}", f"Content-Length: {size}"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        head = "\r\n".join((*lines, "", "")).encode("latin-1")
        if len(answer.body) <= HEAD_BYTES_MAX:
            transport.write(head + bytes(answer.body))
        else:
            transport.write(head)
            transport.write(answer.body)


async def serve() -> None:
    """Print the port and serve for ever."""
    bucket = Bucket()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(bucket), "127.0.0.1", 0, backlog=256)
    print(READY, server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


class Client:
    """What the benchmark itself asks of the server."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def stats(self) -> Stats:
        return Stats(**json.loads(self._ask("GET", "/_stats")))

    def set_latency(self, milliseconds: float) -> None:
        self._ask("POST", f"/_latency?ms={milliseconds}")

    def remove(self, bucket: str) -> None:
        """Delete every object of `bucket`."""
        while keys := _KEY.findall(self._ask("GET", f"/{bucket}/?list-type=2")):
            body = b"".join(b"<Key>" + unquote(key.decode()).encode() + b"</Key>" for key in keys)
            self._ask("POST", f"/{bucket}/?delete", body)

    def sizes(self, bucket: str) -> dict[str, int]:
        """Every key of `bucket` with its size."""
        found: dict[str, int] = {}
        after = ""
        while rows := _ENTRY.findall(self._ask("GET", f"/{bucket}/?list-type=2&start-after={quote(after)}")):
            found |= {unquote(key.decode()): int(size) for key, size in rows}
            after = max(found)
        return found

    def read(self, path: str) -> bytes:
        """The body of BUCKET/KEY."""
        return self._ask("GET", f"/{path}")

    def ceiling(self, seconds: float) -> tuple[float, float]:
        """Most it can do for one plain client: MiB/s of 1 MiB PUTs, and 64 KiB GETs in a second."""
        body = bytes(1024 * 1024)
        self._ask("PUT", "/ceiling/part", body[: 64 * 1024])
        puts = self._rate(seconds / 2, "PUT", "/ceiling/large", body)
        gets = self._rate(seconds / 2, "GET", "/ceiling/part", b"")
        self.remove("ceiling")
        return puts, gets

    def _rate(self, seconds: float, method: str, path: str, body: bytes) -> float:
        begin = time.perf_counter()
        count = 0
        while time.perf_counter() - begin < seconds:
            self._ask(method, path, body)
            count += 1
        return count / (time.perf_counter() - begin)

    def _ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        self._connection.request(method, path, body or None)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path} at the benchmark's store: {answer.status} {data[:200]!r}")
        return data


def main() -> None:
    try:
        asyncio.run(serve())
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
