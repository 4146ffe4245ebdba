"""A loopback S3 server for listings: synthetic buckets of any size, a page in some tens of microseconds, requests counted.

One rule: it must never be what is measured. Nothing is stored: every row has one width, so that a block of a thousand rows
is a template into which the digits of its keys and ETags are laid column by column, and any page is a slice of blocks.

    python -m bench.lister [PROCESSES]   prints its port; serves 127.0.0.1 until it is ended
    GET  /_counts                        what was asked of it since it started, as JSON
    POST /_plant?per_thousand=1          from now on so many of every thousand objects of each `source-N` differ
    POST /_latency?ms=20                 from now on every answer waits so long

Known to it: ListObjectsV2 and what clients ask of a bucket before they list it. Buckets are `source-N` and `mirror-N` with N
objects, equal until something is planted. Anything else is answered with 501. ETags are as hard to compress as real ones.
Source: Amazon S3 API reference.
"""

import contextlib
import http.client
import json
import mmap
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from urllib.parse import parse_qsl, urlsplit
from xml.sax.saxutils import escape

READY = "the lister listens on port"
BLOCK = 1000
"""Objects of a block, planted ones aside, and the most keys of a page."""
FOLDER_BLOCKS = 10
OBJECTS_MAX = 10**8
BACKLOG = 256
HEAD_BYTES_MAX = 64 * 1024

_KEY = b"data/%04d/object-%08d.bin"
_ROW = (
    b"<Contents><Key>%s</Key><LastModified>2026-%02d-%02dT12:%02d:%02d.000Z</LastModified>"
    b"<ETag>&quot;%s&quot;</ETag><Size>%05d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
_ETAG_BYTES = 32
_POOL = 1 << 20


def _random_hex() -> tuple[bytes, list[int]]:
    """The ETags' digits: that of place k of object n is digit n + offset k of the pool. So a block's digits in one place
    are a slice, and no two objects near each other have anything in common."""
    source = random.Random(20260101)
    pool = source.randbytes(_POOL // 2).hex().encode()
    return pool + pool[:BLOCK], [source.randrange(_POOL) for _ in range(_ETAG_BYTES)]


_DIGITS, _OFFSETS = _random_hex()


def size_of(number: int) -> int:
    return 10_000 + number % BLOCK * 83


def _template() -> bytes:
    return b"".join(
        _ROW % (_KEY % (0, n), 1 + n % 12, 1 + n % 28, n % 60, n * 7 % 60, b"0" * _ETAG_BYTES, size_of(n))
        for n in range(BLOCK)
    )


_TEMPLATE = _template()
WIDTH = len(_TEMPLATE) // BLOCK
_KEY_AT = _TEMPLATE.index(b"data/")
_KEY_END = _TEMPLATE.index(b"</Key>")
_FOLDER_AT = _KEY_AT + len(b"data/")
_NUMBER_AT = _TEMPLATE.index(b"object-") + len(b"object-")
_ETAG_AT = _TEMPLATE.index(b"&quot;") + len(b"&quot;")


class Planted(IntEnum):
    """What happened to an object of a source. REMOVED: its row is gone. ADDED: a row `.new` stands behind its own."""

    MODIFIED = 0
    REMOVED = 1
    ADDED = 2


def key_of(number: int, suffix: str = "bin") -> str:
    return f"data/{number // (BLOCK * FOLDER_BLOCKS):04}/object-{number:08}.{suffix}"


def planted_in(block: int, per_thousand: int) -> Iterator[tuple[int, Planted]]:
    """Place in the block and kind, in ascending order of place."""
    if per_thousand:
        step, kinds = BLOCK // per_thousand, len(Planted)
        start = block * 617 % step
        for number in range(per_thousand):
            yield start + number * step, Planted((block + number) % kinds)


def planted(objects: int, per_thousand: int) -> Iterator[tuple[Planted, str]]:
    """Every difference between `mirror-N` and `source-N`, in ascending order of key."""
    for block in range(-(-objects // BLOCK)):
        for place, kind in planted_in(block, per_thousand):
            number = block * BLOCK + place
            if number < objects:
                yield kind, key_of(number, "new" if kind is Planted.ADDED else "bin")


@lru_cache(maxsize=64)
def rows_of(block: int, objects: int, per_thousand: int) -> bytes:
    """The rows of a block, in order, each WIDTH bytes."""
    rows = bytearray(_TEMPLATE)
    for place, digit in enumerate(b"%04d" % (block // FOLDER_BLOCKS)):
        rows[_FOLDER_AT + place :: WIDTH] = bytes([digit]) * BLOCK
    for place, digit in enumerate(b"%05d" % block):
        rows[_NUMBER_AT + place :: WIDTH] = bytes([digit]) * BLOCK
    for place, offset in enumerate(_OFFSETS):
        start = (block * BLOCK + offset) % _POOL
        rows[_ETAG_AT + place :: WIDTH] = _DIGITS[start : start + BLOCK]
    count = min(BLOCK, objects - block * BLOCK)
    del rows[count * WIDTH :]
    for place, kind in reversed(list(planted_in(block, per_thousand))):
        if place >= count:
            continue
        at = place * WIDTH
        if kind is Planted.REMOVED:
            del rows[at : at + WIDTH]
            continue
        changed = rows[at : at + WIDTH]
        changed[_ETAG_AT : _ETAG_AT + _ETAG_BYTES] = changed[_ETAG_AT : _ETAG_AT + _ETAG_BYTES][::-1]
        if kind is Planted.ADDED:
            changed[_KEY_END - 3 : _KEY_END] = b"new"
            rows[at + WIDTH : at + WIDTH] = changed
        else:
            rows[at : at + WIDTH] = changed
    return bytes(rows)


@dataclass(frozen=True, slots=True)
class Place:
    """Row `row` of block `block`; one behind the last block at the end."""

    block: int
    row: int


class Bucket:
    """One synthetic bucket, as it is now."""

    def __init__(self, objects: int, per_thousand: int) -> None:
        self._objects = objects
        self._per_thousand = per_thousand
        self._blocks = -(-objects // BLOCK)

    def rows(self, block: int) -> bytes:
        return rows_of(block, self._objects, self._per_thousand)

    def key_at(self, place: Place) -> bytes:
        """b"" at the end."""
        if place.block >= self._blocks:
            return b""
        at = place.row * WIDTH
        return self.rows(place.block)[at + _KEY_AT : at + _KEY_END]

    def find(self, key: bytes, *, after: bool) -> Place:
        """Where the first key is that is not smaller than `key` (greater with `after`)."""
        # All that a block adds stands behind an object of its own, so a block begins no earlier than its first number.
        block = max(0, bisect_right(range(self._blocks), key, key=lambda b: key_of(b * BLOCK).encode()) - 1)
        if block >= self._blocks:
            return Place(self._blocks, 0)
        rows = self.rows(block)
        row = (bisect_right if after else bisect_left)(
            range(len(rows) // WIDTH), key, key=lambda i: rows[i * WIDTH + _KEY_AT : i * WIDTH + _KEY_END]
        )
        return Place(block, row) if row * WIDTH < len(rows) else Place(block + 1, 0)

    def page(self, prefix: bytes, after: bytes, delimiter: bytes, keys_max: int) -> tuple[bytes, int, bytes]:
        """The page's rows, how many, and its last key or common prefix where there is more, else b""."""
        start = self.find(after, after=True) if after >= prefix else self.find(prefix, after=False)
        # No key of these buckets has a byte of 0xff.
        end = self.find(prefix + b"\xff", after=False) if prefix else Place(self._blocks, 0)
        first = self.key_at(start)
        if delimiter and first.startswith(prefix) and delimiter in first[len(prefix) :]:
            return self._prefixes(prefix, after, delimiter, keys_max, start, end)
        parts: list[bytes] = []
        count = 0
        block, row = start.block, start.row
        while (block, row) < (end.block, end.row) and count < keys_max:
            rows = self.rows(block)
            stop = len(rows) // WIDTH if block < end.block else end.row
            stop = min(stop, row + keys_max - count)
            parts.append(rows[row * WIDTH : stop * WIDTH])
            count += stop - row
            block, row = (block, stop) if stop * WIDTH < len(rows) else (block + 1, 0)
        body = b"".join(parts)
        more = bool(count) and (block, row) < (end.block, end.row)
        return body, count, body[_KEY_AT - WIDTH : _KEY_END - WIDTH] if more else b""

    def _prefixes(
        self, prefix: bytes, after: bytes, delimiter: bytes, keys_max: int, start: Place, end: Place
    ) -> tuple[bytes, int, bytes]:
        names: list[bytes] = []
        while (start.block, start.row) < (end.block, end.row) and len(names) < keys_max:
            key = self.key_at(start)
            name = key[: key.index(delimiter, len(prefix)) + len(delimiter)]
            if not after.startswith(name):
                names.append(name)
            start = self.find(name + b"\xff", after=False)
        body = b"".join(b"<CommonPrefixes><Prefix>%s</Prefix></CommonPrefixes>" % name for name in names)
        more = (start.block, start.row) < (end.block, end.row)
        return body, len(names), names[-1] if more and names else b""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests since the server started. `others` are all that is neither a listing nor about a bucket as such."""

    lists: int = 0
    keys: int = 0
    heads: int = 0
    about: int = 0
    others: int = 0

    def since(self, before: "Counts") -> "Counts":
        return Counts(
            self.lists - before.lists,
            self.keys - before.keys,
            self.heads - before.heads,
            self.about - before.about,
            self.others - before.others,
        )


class Shared:
    """Counts and both switches in memory that all processes share: each process adds in slots of its own."""

    _FIELDS = 5

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._map = mmap.mmap(-1, 8 * (2 + processes * self._FIELDS))
        self._own = 0
        self._lock = threading.Lock()

    def adopt(self, process: int) -> None:
        self._own = 8 * (2 + process * self._FIELDS)
        self._lock = threading.Lock()

    @property
    def per_thousand(self) -> int:
        return int(struct.unpack_from("<q", self._map)[0])

    def plant(self, per_thousand: int) -> None:
        struct.pack_into("<q", self._map, 0, per_thousand)

    @property
    def latency_s(self) -> float:
        return float(struct.unpack_from("<d", self._map, 8)[0])

    def set_latency(self, milliseconds: float) -> None:
        struct.pack_into("<d", self._map, 8, milliseconds / 1000)

    def add(self, *, lists: int = 0, keys: int = 0, heads: int = 0, about: int = 0, others: int = 0) -> None:
        with self._lock:
            had = struct.unpack_from("<5q", self._map, self._own)
            more = (lists, keys, heads, about, others)
            struct.pack_into("<5q", self._map, self._own, *(a + b for a, b in zip(had, more, strict=True)))

    def counts(self) -> Counts:
        rows = [
            struct.unpack_from("<5q", self._map, 8 * (2 + process * self._FIELDS)) for process in range(self._processes)
        ]
        return Counts(*(sum(column) for column in zip(*rows, strict=True)))


def answer(method: str, target: str, shared: Shared) -> tuple[int, list[bytes]]:
    """Status and body, in pieces."""
    url = urlsplit(target)
    query = dict(parse_qsl(url.query, keep_blank_values=True))
    if url.path == "/_counts":
        counts = shared.counts()
        return 200, [json.dumps({name: getattr(counts, name) for name in Counts.__slots__}).encode()]
    if method == "POST" and url.path == "/_plant":
        shared.plant(int(query["per_thousand"]))
        return 204, []
    if method == "POST" and url.path == "/_latency":
        shared.set_latency(float(query["ms"]))
        return 204, []
    name, _, key = url.path.lstrip("/").partition("/")
    side, _, objects = name.partition("-")
    if side not in ("source", "mirror") or not objects.isdecimal() or int(objects) > OBJECTS_MAX:
        shared.add(others=1)
        return 404, [b"<Error><Code>NoSuchBucket</Code><Message>buckets are source-N and mirror-N</Message></Error>"]
    if method == "HEAD":
        shared.add(heads=1)
        return (501 if key else 200), []
    if method != "GET" or key:
        shared.add(others=1)
        return 501, [b"<Error><Code>NotImplemented</Code><Message>this server only lists</Message></Error>"]
    for question, element in (("location", b"LocationConstraint"), ("versioning", b"VersioningConfiguration")):
        if question in query:
            shared.add(about=1)
            return 200, [b'<?xml version="1.0" encoding="UTF-8"?><%s></%s>' % (element, element)]
    if query.get("list-type") != "2":
        shared.add(others=1)
        return 501, [b"<Error><Code>NotImplemented</Code><Message>only list-type=2</Message></Error>"]
    bucket = Bucket(int(objects), shared.per_thousand if side == "source" else 0)
    prefix = query.get("prefix", "").encode()
    after = (query.get("continuation-token") or query.get("start-after", "")).encode()
    keys_max = min(int(query.get("max-keys", BLOCK)), BLOCK)
    rows, count, last = bucket.page(prefix, after, query.get("delimiter", "").encode(), keys_max)
    shared.add(lists=1, keys=count)
    head = (
        '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{name}</Name><Prefix>{escape(prefix.decode())}</Prefix><KeyCount>{count}</KeyCount>"
        f"<MaxKeys>{keys_max}</MaxKeys><EncodingType>url</EncodingType><IsTruncated>{str(bool(last)).lower()}"
        "</IsTruncated>"
    ).encode()
    token = b"<NextContinuationToken>%s</NextContinuationToken>" % last if last else b""
    return 200, [head, token, rows, b"</ListBucketResult>"]


def _serve(connection: socket.socket, shared: Shared) -> None:
    """One connection, kept alive until the client goes. Requests have no bodies, or none that matters."""
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waiting = b""
        while True:
            while b"\r\n\r\n" not in waiting:
                more = connection.recv(HEAD_BYTES_MAX)
                if not more or len(waiting) > HEAD_BYTES_MAX:
                    return
                waiting += more
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            method, target, _ = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
            status, parts = answer(method, target, shared)
            if shared.latency_s and not target.startswith("/_"):
                time.sleep(shared.latency_s)
            length = sum(map(len, parts))
            # A length that a HEAD's answer announces is the object's, and there are none.
            lines = f"HTTP/1.1 {status} {http.client.responses[status]}\r\nContent-Length: {length}\r\n"
            kind = "Content-Type: application/xml\r\n" if length else ""
            _send(connection, [f"{lines}{kind}\r\n".encode(), *parts])


def _send(connection: socket.socket, parts: list[bytes]) -> None:
    total = sum(map(len, parts))
    sent = connection.sendmsg(parts)
    if sent < total:
        connection.sendall(memoryview(b"".join(parts))[sent:])


def _accept(listener: socket.socket, shared: Shared) -> None:
    def serve(connection: socket.socket) -> None:
        # A client that goes away in the middle of an answer is no fault.
        with contextlib.suppress(ConnectionError):
            _serve(connection, shared)

    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


class Client:
    """Asks a running lister what it counted, and plants."""

    def __init__(self, port: int) -> None:
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def counts(self) -> Counts:
        return Counts(**json.loads(self._ask("GET", "/_counts")))

    def plant(self, per_thousand: int) -> None:
        self._ask("POST", f"/_plant?per_thousand={per_thousand}")

    def set_latency(self, milliseconds: float) -> None:
        self._ask("POST", f"/_latency?ms={milliseconds}")

    def ceiling(self, seconds: float) -> float:
        """Keys a second that one client takes which only reads, page after page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        begin, pages = time.monotonic(), 0
        try:
            while time.monotonic() - begin < seconds:
                after = key_of(pages * BLOCK + BLOCK - 1) if pages else ""
                connection.request("GET", f"/mirror-{10**7}?list-type=2&start-after={after}")
                connection.getresponse().read()
                pages += 1
            return pages * BLOCK / (time.monotonic() - begin)
        finally:
            connection.close()

    def _ask(self, method: str, target: str) -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            connection.request(method, target)
            return connection.getresponse().read()
        finally:
            connection.close()


def main(processes: int) -> None:
    shared = Shared(processes)
    listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
    others = []
    for process in range(1, processes):
        child = os.fork()
        if child == 0:
            shared.adopt(process)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _accept(listener, shared)
        others.append(child)
    shared.adopt(0)

    def stop(number: int, frame: object) -> None:
        for child in others:
            os.kill(child, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    print(f"{READY} {listener.getsockname()[1]}", flush=True)
    _accept(listener, shared)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
