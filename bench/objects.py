"""The S3 protocol of the benchmark's store: requests in, answers out, objects in memory, everything counted.

One rule: no I/O and no clock. It does no more than the protocol needs: signatures are ignored, a bucket exists once it is
named, and an ETag is a number, unless the client said an MD5: then it is that, because s3backer and rclone verify it. With
`check_md5` digests are computed and compared, as S3 does; a MiB costs 1.6 ms then.

Known to it: PUT, GET, HEAD and DELETE of objects with Range and conditions, copies, DeleteObjects, uploads in parts, both
listings, HEAD and PUT of buckets. Bodies may be `aws-chunked`. Everything else (versions, tags, locks, encryption) is answered
with 501. Source: Amazon S3 API reference.
"""

import binascii
import json
import re
from base64 import b64decode
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from email.utils import formatdate
from hashlib import md5
from time import gmtime, strftime
from urllib.parse import parse_qsl, quote, unquote
from xml.sax.saxutils import escape, unescape

Data = bytes | bytearray | memoryview

LIST_KEYS_MAX = 1000
PART_BYTES_MIN = 5 * 1024 * 1024
_KEY = re.compile(rb"<Key>([^<]*)</Key>")
_PART = re.compile(rb"<Part>(.*?)</Part>", re.DOTALL)
_NUMBER = re.compile(rb"<PartNumber>\s*(\d+)\s*</PartNumber>")
_ETAG = re.compile(rb"<ETag>(.*?)</ETag>", re.DOTALL)
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_HEX_MD5 = re.compile(r"[0-9a-f]{32}")
_XML = '<?xml version="1.0" encoding="UTF-8"?>\n'
_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_KEPT = frozenset(
    ("content-type", "cache-control", "content-disposition", "content-encoding", "content-language", "expires")
)
"""Headers that come back as they were sent, beside metadata."""
REASONS = {
    200: "OK",
    204: "No Content",
    206: "Partial Content",
    304: "Not Modified",
    400: "Bad Request",
    404: "Not Found",
    409: "Conflict",
    412: "Precondition Failed",
    416: "Range Not Satisfiable",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Slow Down",
}
_CODES = {500: "InternalError", 503: "SlowDown"}
_UNKNOWN = (
    "acl",
    "tagging",
    "policy",
    "lifecycle",
    "cors",
    "encryption",
    "object-lock",
    "versions",
    "retention",
    "restore",
)


@dataclass(slots=True)
class Stats:
    """Requests and body bytes since the server started, or since they were cleared; of one bucket or of all."""

    puts: int = 0
    """Of objects and of parts."""
    gets: int = 0
    heads: int = 0
    deletes: int = 0
    lists: int = 0
    posts: int = 0
    """Uploads in parts begun and completed. DeleteObjects is in `deletes`."""
    bytes_in: int = 0
    bytes_out: int = 0
    deleted: int = 0
    """Objects that are gone; `deletes` counts requests."""
    faults: int = 0
    """Requests that were not done and answered with an error on purpose; they are counted nowhere else."""
    lost: int = 0
    """Requests that were done and not told; they are counted as done too."""
    objects: int = 0
    stored_bytes: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    cpu_s: float = 0.0
    """Of the whole server."""
    puts_of: dict[str, int] = field(default_factory=dict)
    """PUTs by the kind of object: `kind_of`."""
    bytes_of: dict[str, int] = field(default_factory=dict)
    """Body bytes of these PUTs."""
    gets_of: dict[str, int] = field(default_factory=dict)
    stored_of: dict[str, int] = field(default_factory=dict)
    """Bytes that are there now, by kind."""

    @property
    def requests(self) -> int:
        return self.puts + self.gets + self.heads + self.deletes + self.lists + self.posts

    def since(self, before: "Stats") -> "Stats":
        """What came after `before`; levels (objects, stored bytes, in flight) as they are now."""
        made = {name: getattr(self, name) - getattr(before, name) for name in _COUNTED}
        made |= {name: _less(getattr(self, name), getattr(before, name)) for name in _COUNTED_OF}
        made |= {name: getattr(self, name) for name in _LEVELS}
        return Stats(**made)

    def clear(self) -> None:
        """Begin to count anew; what is in flight stays so."""
        for name in _COUNTED:
            setattr(self, name, 0)
        for name in _COUNTED_OF:
            getattr(self, name).clear()
        self.in_flight_max = self.in_flight


_LEVELS = ("objects", "stored_bytes", "in_flight", "in_flight_max", "stored_of")
_COUNTED_OF = ("puts_of", "bytes_of", "gets_of")
_COUNTED = tuple(one.name for one in fields(Stats) if one.name not in (*_LEVELS, *_COUNTED_OF))


def _less(counts: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {kind: count - before.get(kind, 0) for kind, count in counts.items() if count != before.get(kind, 0)}


def kind_of(path: str) -> str:
    """What a volume's object is, by its key: the folder below the volume's, or the name of what has none (`head`)."""
    _, found, rest = path.partition("/v1/")
    return rest.partition("/")[2].partition("/")[0] if found else "other"


@dataclass(slots=True)
class Stored:
    data: Data
    etag: str
    modified: float
    metadata: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Upload:
    """An upload in parts that is under way."""

    key: str
    begun: float
    metadata: tuple[tuple[str, str], ...]
    parts: dict[int, Stored] = field(default_factory=dict)


@dataclass(slots=True)
class Bucket:
    """One bucket: made by its first request."""

    objects: dict[str, Stored] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    stats: Stats = field(default_factory=Stats)
    in_order: list[str] | None = None

    def keys(self) -> list[str]:
        """All keys in the order of listings: code points sort as their UTF-8 does."""
        if self.in_order is None:
            self.in_order = sorted(self.objects)
        return self.in_order

    def forget(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            self.stats.deleted += 1
            self.in_order = None


@dataclass(slots=True)
class Request:
    """`bucket`, `key`: decoded; both empty for the list of buckets. `body` is filled by whoever receives it."""

    method: str
    path: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Data = b""
    headers: tuple[tuple[str, str], ...] = ()
    body_bytes: int | None = None
    """Length to announce where it is not the body's: the answer to HEAD."""


class Objects:
    """All buckets. Each call answers one request, at once and atomically."""

    def __init__(self, check_md5: bool = False) -> None:
        self.buckets: dict[str, Bucket] = {}
        self._check_md5 = check_md5
        self._version = 0
        self._stamp = (0, "")

    def bucket(self, name: str) -> Bucket:
        found = self.buckets.get(name)
        if found is None:
            found = self.buckets[name] = Bucket()
        return found

    def answer(self, request: Request, now: float) -> Answer:
        bucket = self.bucket(request.bucket)
        method, query = request.method, request.query
        if query and any(name in query for name in _UNKNOWN):
            return error(501, "NotImplemented")
        if not request.key:
            return self._of_bucket(bucket, request, now)
        if query and ("uploads" in query or "uploadId" in query):
            return self._in_parts(bucket, request, now)
        if method == "PUT":
            return self._put(bucket, request, now)
        if method in ("GET", "HEAD"):
            return self._get(bucket, request)
        if method == "DELETE":
            bucket.stats.deletes += 1
            wanted = request.headers.get("if-match")
            held = bucket.objects.get(request.key)
            if wanted is not None and (held is None or not _matches(wanted, held)):
                return error(412, "PreconditionFailed")
            bucket.forget(request.key)
            return Answer(204)
        return error(501, "NotImplemented")

    def stats(self, name: str | None = None) -> bytes:
        """Of one bucket, or of all, as JSON: the fields of `Stats`."""
        chosen = list(self.buckets.values()) if name is None else [self.bucket(name)]
        total = Stats()
        for bucket in chosen:
            _level(bucket)
            for field_name in (*_COUNTED, "objects", "stored_bytes"):
                setattr(total, field_name, getattr(total, field_name) + getattr(bucket.stats, field_name))
            for field_name in (*_COUNTED_OF, "stored_of"):
                sums = Counter(getattr(total, field_name))
                sums.update(getattr(bucket.stats, field_name))
                setattr(total, field_name, dict(sums))
        if len(chosen) == 1:
            total.in_flight, total.in_flight_max = chosen[0].stats.in_flight, chosen[0].stats.in_flight_max
        return json.dumps(asdict(total)).encode()

    def place(self, name: str, key: str, data: Data, now: float) -> None:
        """An object, without a request."""
        bucket = self.bucket(name)
        bucket.in_order = None
        bucket.objects[key] = Stored(data, self._etag({}, data), now)

    def flip(self, path: str, offset: int, bit: int = 0) -> bool:
        """Turns one bit of an object round, ETag and time kept; False if there is no such byte."""
        name, _, key = path.lstrip("/").partition("/")
        held = self.bucket(name).objects.get(key)
        if held is None or not 0 <= offset < len(held.data):
            return False
        # A copy: answers that are on their way, and copies of the object, hold the old bytes.
        changed = bytearray(held.data)
        changed[offset] ^= 1 << bit
        held.data = changed
        return True

    # Objects

    def _put(self, bucket: Bucket, request: Request, now: float) -> Answer:
        headers, key = request.headers, request.key
        data = decoded(request)
        if data is None:
            return error(400, "IncompleteBody")
        stats = bucket.stats
        size = len(data)
        stats.puts += 1
        stats.bytes_in += size
        kind = kind_of(request.path)
        stats.puts_of[kind] = stats.puts_of.get(kind, 0) + 1
        stats.bytes_of[kind] = stats.bytes_of.get(kind, 0) + size
        held = bucket.objects.get(key)
        refused = _refused(headers, held)
        if refused is not None:
            return refused
        source = headers.get("x-amz-copy-source")
        if source is not None:
            return self._copy(bucket, request, source, now)
        etag = self._etag(headers, data)
        if not etag:
            return error(400, "BadDigest")
        if held is None:
            bucket.in_order = None
        bucket.objects[key] = Stored(data, etag, now, _metadata(headers))
        return Answer(200, b"", (("ETag", f'"{etag}"'),))

    def _copy(self, bucket: Bucket, request: Request, source: str, now: float) -> Answer:
        origin = self._source(source)
        if origin is None:
            return error(404, "NoSuchKey")
        wanted = request.headers.get("x-amz-copy-source-if-match")
        if wanted is not None and not _matches(wanted, origin):
            return error(412, "PreconditionFailed")
        replaced = request.headers.get("x-amz-metadata-directive") == "REPLACE"
        metadata = _metadata(request.headers) if replaced else origin.metadata
        if request.key not in bucket.objects:
            bucket.in_order = None
        bucket.objects[request.key] = Stored(origin.data, origin.etag, now, metadata)
        return Answer(200, _copied("CopyObjectResult", origin.etag, now), (("ETag", f'"{origin.etag}"'),))

    def _source(self, source: str) -> Stored | None:
        name, _, key = unquote(source.partition("?")[0]).removeprefix("/").partition("/")
        return self.bucket(name).objects.get(key)

    def _etag(self, headers: Mapping[str, str], data: Data) -> str:
        """Empty if the digest that came along is not the body's."""
        said = headers.get("content-md5")
        if said is None and not self._check_md5:
            self._version += 1
            # Not 32 digits: rclone would take it for an MD5.
            return f"{self._version:032x}-1"
        told = ""
        if said is not None:
            try:
                told = b64decode(said, validate=True).hex()
            except binascii.Error:
                return ""
        if not self._check_md5:
            return told
        made = md5(data, usedforsecurity=False).hexdigest()
        return made if told in ("", made) else ""

    def _get(self, bucket: Bucket, request: Request) -> Answer:
        head, stats = request.method == "HEAD", bucket.stats
        if head:
            stats.heads += 1
        else:
            stats.gets += 1
            kind = kind_of(request.path)
            stats.gets_of[kind] = stats.gets_of.get(kind, 0) + 1
        held = bucket.objects.get(request.key)
        if held is None:
            return Answer(404) if head else error(404, "NoSuchKey")
        headers = request.headers
        wanted, unwanted = headers.get("if-match"), headers.get("if-none-match")
        if wanted is not None and not _matches(wanted, held):
            return Answer(412) if head else error(412, "PreconditionFailed")
        if unwanted is not None and _matches(unwanted, held):
            return Answer(304, b"", (("ETag", f'"{held.etag}"'),))
        told = (
            ("ETag", f'"{held.etag}"'),
            ("Last-Modified", self._http_date(held.modified)),
            ("Accept-Ranges", "bytes"),
            *held.metadata,
        )
        size = len(held.data)
        asked = _RANGE.fullmatch(headers.get("range", ""))
        if asked is None or not (asked[1] or asked[2]):
            if head:
                return Answer(200, b"", told, size)
            stats.bytes_out += size
            return Answer(200, held.data, told)
        if asked[1]:
            first, last = int(asked[1]), min(int(asked[2]) if asked[2] else size - 1, size - 1)
        else:
            first, last = max(0, size - int(asked[2])), size - 1
        if first > last:
            return Answer(416) if head else error(416, "InvalidRange")
        told = (*told, ("Content-Range", f"bytes {first}-{last}/{size}"))
        if head:
            return Answer(206, b"", told, last + 1 - first)
        stats.bytes_out += last + 1 - first
        return Answer(206, memoryview(held.data)[first : last + 1], told)

    def _http_date(self, moment: float) -> str:
        """Most objects that are read in a row were written in one second."""
        second = int(moment)
        if self._stamp[0] != second:
            self._stamp = (second, formatdate(second, usegmt=True))
        return self._stamp[1]

    # Uploads in parts

    def _in_parts(self, bucket: Bucket, request: Request, now: float) -> Answer:
        method, query, stats = request.method, request.query, bucket.stats
        if method == "POST" and "uploads" in query:
            stats.posts += 1
            self._version += 1
            identity = f"{self._version:032x}"
            bucket.uploads[identity] = Upload(request.key, now, _metadata(request.headers))
            named = f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
            return _xml("InitiateMultipartUploadResult", f"{named}<UploadId>{identity}</UploadId>")
        identity = query.get("uploadId", "")
        upload = bucket.uploads.get(identity)
        if upload is None or upload.key != request.key:
            stats.posts += method == "POST"
            return error(404, "NoSuchUpload")
        if method == "PUT":
            return self._put_part(bucket, upload, request, now)
        if method == "POST":
            stats.posts += 1
            return self._complete(bucket, identity, upload, request, now)
        if method == "DELETE":
            stats.deletes += 1
            del bucket.uploads[identity]
            return Answer(204)
        if method == "GET":
            stats.lists += 1
            return _parts_page(request, upload)
        return error(501, "NotImplemented")

    def _put_part(self, bucket: Bucket, upload: Upload, request: Request, now: float) -> Answer:
        data = decoded(request)
        number = query_number(request.query, "partNumber", 0)
        if data is None or not 1 <= number <= 10000:
            return error(400, "InvalidArgument")
        bucket.stats.puts += 1
        bucket.stats.bytes_in += len(data)
        bucket.stats.puts_of["part"] = bucket.stats.puts_of.get("part", 0) + 1
        bucket.stats.bytes_of["part"] = bucket.stats.bytes_of.get("part", 0) + len(data)
        source = request.headers.get("x-amz-copy-source")
        if source is None:
            etag = self._etag(request.headers, data)
            if not etag:
                return error(400, "BadDigest")
            upload.parts[number] = Stored(data, etag, now)
            return Answer(200, b"", (("ETag", f'"{etag}"'),))
        origin = self._source(source)
        if origin is None:
            return error(404, "NoSuchKey")
        asked = _RANGE.fullmatch(request.headers.get("x-amz-copy-source-range", ""))
        piece = origin.data
        if asked is not None:
            if int(asked[2]) >= len(origin.data):
                return error(416, "InvalidRange")
            piece = memoryview(origin.data)[int(asked[1]) : int(asked[2]) + 1]
        etag = self._etag({}, piece)
        upload.parts[number] = Stored(piece, etag, now)
        return Answer(200, _copied("CopyPartResult", etag, now))

    def _complete(self, bucket: Bucket, identity: str, upload: Upload, request: Request, now: float) -> Answer:
        chosen: list[Stored] = []
        last = 0
        for part in _PART.findall(bytes(request.body)):
            numbers, etags = _NUMBER.search(part), _ETAG.search(part)
            number = int(numbers[1]) if numbers else 0
            held = upload.parts.get(number)
            if held is None or etags is None or _unescaped(etags[1].decode()).strip('"') != held.etag:
                return error(400, "InvalidPart")
            if number <= last:
                return error(400, "InvalidPartOrder")
            last = number
            chosen.append(held)
        if not chosen:
            return error(400, "MalformedXML")
        if any(len(part.data) < PART_BYTES_MIN for part in chosen[:-1]):
            return error(400, "EntityTooSmall")
        refused = _refused(request.headers, bucket.objects.get(upload.key))
        if refused is not None:
            return refused
        if all(_HEX_MD5.fullmatch(part.etag) for part in chosen):
            etag = md5(b"".join(bytes.fromhex(part.etag) for part in chosen), usedforsecurity=False).hexdigest()
        else:
            self._version += 1
            etag = f"{self._version:032x}"
        etag = f"{etag}-{len(chosen)}"
        data = chosen[0].data if len(chosen) == 1 else b"".join(part.data for part in chosen)
        if upload.key not in bucket.objects:
            bucket.in_order = None
        bucket.objects[upload.key] = Stored(data, etag, now, upload.metadata)
        del bucket.uploads[identity]
        where = f"<Location>{escape(request.path)}</Location><Bucket>{escape(request.bucket)}</Bucket>"
        return _xml(
            "CompleteMultipartUploadResult", f"{where}<Key>{escape(upload.key)}</Key><ETag>&quot;{etag}&quot;</ETag>"
        )

    # Buckets

    def _of_bucket(self, bucket: Bucket, request: Request, now: float) -> Answer:
        method, query, stats = request.method, request.query, bucket.stats
        if not request.bucket:
            stats.lists += 1
            rows = "".join(
                f"<Bucket><Name>{escape(name)}</Name><CreationDate>{_iso(now)}</CreationDate></Bucket>"
                for name in sorted(self.buckets)
                if name
            )
            return _xml("ListAllMyBucketsResult", f"<Buckets>{rows}</Buckets>")
        if method == "POST" and "delete" in query:
            return self._delete_many(bucket, request)
        if method == "HEAD":
            stats.heads += 1
            return Answer(200, b"", (("x-amz-bucket-region", "us-east-1"),))
        if method == "PUT" and not query:
            stats.puts += 1
            return Answer(200, b"", (("Location", f"/{request.bucket}"),))
        if method == "DELETE" and not query:
            stats.deletes += 1
            if bucket.objects:
                return error(409, "BucketNotEmpty")
            return Answer(204)
        if method != "GET":
            return error(501, "NotImplemented")
        stats.lists += 1
        if "location" in query:
            return _xml("LocationConstraint", "")
        if "versioning" in query:
            return _xml("VersioningConfiguration", "")
        if "uploads" in query:
            return _uploads_page(bucket, request)
        return _page(bucket, request)

    def _delete_many(self, bucket: Bucket, request: Request) -> Answer:
        data = decoded(request)
        if data is None:
            return error(400, "IncompleteBody")
        bucket.stats.deletes += 1
        keys = [found.decode() for found in _KEY.findall(bytes(data))]
        for key in keys:
            bucket.forget(_unescaped(key))
        quiet = b"<Quiet>true</Quiet>" in data
        return _xml("DeleteResult", "" if quiet else "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys))


def decoded(request: Request) -> Data | None:
    """The body without its `aws-chunked` frames, if it has any; None if they do not hold together.

    A frame is its size in hex, `;chunk-signature=...` if it is signed, CRLF, the bytes, CRLF; the last has size 0 and may be
    followed by trailers, which are not looked at. Source: AWS Signature Version 4, "Transferring payload in multiple chunks".
    """
    body, headers = request.body, request.headers
    if not headers.get("x-amz-content-sha256", "").startswith("STREAMING-") and "aws-chunked" not in headers.get(
        "content-encoding", ""
    ):
        return body
    whole = bytearray()
    view = memoryview(body)
    at = 0
    while True:
        end = body.find(b"\r\n", at)
        if end < 0:
            return None
        try:
            size = int(bytes(view[at:end]).partition(b";")[0], 16)
        except ValueError:
            return None
        at = end + 2
        if not size:
            break
        whole += view[at : at + size]
        at += size
        if body[at : at + 2] != b"\r\n":
            return None
        at += 2
    said = headers.get("x-amz-decoded-content-length")
    return whole if said is None or int(said) == len(whole) else None


def parse_head(head: bytes) -> Request:
    """A request's line and headers (RFC 9112 section 3). ValueError for what is none."""
    lines = head.decode("latin-1").split("\r\n")
    method, target, _ = lines[0].split(" ")
    raw, _, query = target.partition("?")
    path = unquote(raw)
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    bucket, _, key = path.removeprefix("/").partition("/")
    return Request(method, path, bucket, key, dict(parse_qsl(query, keep_blank_values=True)) if query else {}, headers)


def error(status: int, code: str = "", headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    code = code or _CODES.get(status, "InternalError")
    said = f"<Error><Code>{code}</Code><Message>{REASONS.get(status, code)}</Message></Error>"
    return Answer(status, f"{_XML}{said}".encode(), (("Content-Type", "application/xml"), *headers))


def query_number(query: Mapping[str, str], name: str, default: int) -> int:
    said = query.get(name, "")
    return int(said) if said.isdecimal() else default


def _matches(wanted: str, held: Stored) -> bool:
    return wanted == "*" or held.etag in [one.strip().strip('"') for one in wanted.split(",")]


def _refused(headers: Mapping[str, str], held: Stored | None) -> Answer | None:
    """Whether the conditions of a write forbid it."""
    if held is not None and headers.get("if-none-match") == "*":
        return error(412, "PreconditionFailed")
    wanted = headers.get("if-match")
    if wanted is None:
        return None
    if held is None:
        return error(404, "NoSuchKey")
    return None if _matches(wanted, held) else error(412, "PreconditionFailed")


def _metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    kept: list[tuple[str, str]] = []
    for name, value in headers.items():
        if name.startswith("x-amz-meta-"):
            kept.append((name, value))
        elif name in _KEPT:
            rest = ",".join(one for one in value.split(",") if one.strip() != "aws-chunked").strip()
            if rest:
                kept.append((name, rest))
    return tuple(kept)


def _level(bucket: Bucket) -> None:
    """Say in its counts what is there now."""
    stored: Counter[str] = Counter()
    for key, one in bucket.objects.items():
        stored[kind_of(f"/{key}")] += len(one.data)
    bucket.stats.objects = len(bucket.objects)
    bucket.stats.stored_of = dict(stored)
    bucket.stats.stored_bytes = sum(stored.values())


def _xml(element: str, inside: str) -> Answer:
    body = f"{_XML}<{element} {_NAMESPACE}>{inside}</{element}>"
    return Answer(200, body.encode(), (("Content-Type", "application/xml"),))


def _copied(element: str, etag: str, now: float) -> bytes:
    inside = f"<LastModified>{_iso(now)}</LastModified><ETag>&quot;{etag}&quot;</ETag>"
    return f"{_XML}<{element} {_NAMESPACE}>{inside}</{element}>".encode()


def _iso(moment: float) -> str:
    return f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(moment))}.{int(moment * 1000) % 1000:03d}Z"


def _unescaped(key: str) -> str:
    """Character references too: control characters come as such."""
    named = unescape(key, {"&quot;": '"', "&apos;": "'"})
    if "&#" not in key:
        return named
    return re.sub(r"&#(x[0-9a-fA-F]+|\d+);", lambda one: chr(int("0" + one[1], 16 if one[1][0] == "x" else 10)), named)


def _page(bucket: Bucket, request: Request) -> Answer:
    """One page of ListObjectsV2, or of the first version, which goes on after `marker`."""
    query = request.query
    second = query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    after = (query.get("continuation-token") or query.get("start-after", "")) if second else query.get("marker", "")
    most = min(query_number(query, "max-keys", LIST_KEYS_MAX), LIST_KEYS_MAX)
    as_url = query.get("encoding-type") == "url"

    def shown(key: str) -> str:
        return quote(key, safe="/-_.~") if as_url else escape(key)

    keys, objects = bucket.keys(), bucket.objects
    at = max(bisect_left(keys, prefix), bisect_right(keys, after) if after else 0)
    rows: list[str] = []
    last = seen = ""
    truncated = False
    while at < len(keys):
        key = keys[at]
        if not key.startswith(prefix):
            break
        cut = key.find(delimiter, len(prefix)) if delimiter else -1
        name = key[: cut + len(delimiter)] if cut >= 0 else ""
        if name and after.startswith(name):
            at = _behind(keys, name, at)
            continue
        if len(rows) >= most:
            truncated = most > 0
            break
        if name:
            last = seen = name
            rows.append(f"<CommonPrefixes><Prefix>{shown(seen)}</Prefix></CommonPrefixes>")
            at = _behind(keys, name, at)
            continue
        last = key
        held = objects[key]
        rows.append(
            f"<Contents><Key>{shown(key)}</Key><LastModified>{_iso(held.modified)}</LastModified>"
            f"<ETag>&quot;{held.etag}&quot;</ETag><Size>{len(held.data)}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
        )
        at += 1
    inside = [f"<Name>{escape(request.bucket)}</Name><Prefix>{shown(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"]
    if as_url:
        inside.append("<EncodingType>url</EncodingType>")
    if delimiter:
        inside.append(f"<Delimiter>{shown(delimiter)}</Delimiter>")
    inside.append(f"<IsTruncated>{str(truncated).lower()}</IsTruncated>")
    if second:
        inside.append(f"<KeyCount>{len(rows)}</KeyCount>")
        if "continuation-token" in query:
            inside.append(f"<ContinuationToken>{escape(after)}</ContinuationToken>")
        if truncated:
            inside.append(f"<NextContinuationToken>{escape(last)}</NextContinuationToken>")
    else:
        inside.append(f"<Marker>{shown(after)}</Marker>")
        if truncated:
            inside.append(f"<NextMarker>{shown(last)}</NextMarker>")
    return _xml("ListBucketResult", "".join(inside + rows))


def _behind(keys: list[str], name: str, at: int) -> int:
    """The place of the first key that does not begin with `name`, found without a look at all that do."""
    return bisect_right(keys, name, at, key=lambda key: name if key.startswith(name) else key)


def _parts_page(request: Request, upload: Upload) -> Answer:
    most = min(query_number(request.query, "max-parts", LIST_KEYS_MAX), LIST_KEYS_MAX)
    after = query_number(request.query, "part-number-marker", 0)
    numbers = sorted(number for number in upload.parts if number > after)
    rows = "".join(
        f"<Part><PartNumber>{number}</PartNumber><LastModified>{_iso(part.modified)}</LastModified>"
        f"<ETag>&quot;{part.etag}&quot;</ETag><Size>{len(part.data)}</Size></Part>"
        for number, part in ((number, upload.parts[number]) for number in numbers[:most])
    )
    named = f"<Bucket>{escape(request.bucket)}</Bucket><Key>{escape(request.key)}</Key>"
    named += f"<UploadId>{escape(request.query['uploadId'])}</UploadId>"
    truncated = len(numbers) > most
    marker = f"<NextPartNumberMarker>{numbers[most - 1]}</NextPartNumberMarker>" if truncated and most else ""
    return _xml("ListPartsResult", f"{named}<IsTruncated>{str(truncated).lower()}</IsTruncated>{marker}{rows}")


def _uploads_page(bucket: Bucket, request: Request) -> Answer:
    query = request.query
    most = min(query_number(query, "max-uploads", LIST_KEYS_MAX), LIST_KEYS_MAX)
    prefix = query.get("prefix", "")
    after = (query.get("key-marker", ""), query.get("upload-id-marker", "") or "~")
    as_url = query.get("encoding-type") == "url"
    found = sorted(
        (upload.key, identity, upload.begun)
        for identity, upload in bucket.uploads.items()
        if upload.key.startswith(prefix) and ("key-marker" not in query or (upload.key, identity) > after)
    )
    rows = "".join(
        f"<Upload><Key>{quote(key) if as_url else escape(key)}</Key><UploadId>{identity}</UploadId>"
        f"<Initiated>{_iso(begun)}</Initiated></Upload>"
        for key, identity, begun in found[:most]
    )
    truncated = len(found) > most > 0
    inside = f"<Bucket>{escape(request.bucket)}</Bucket><IsTruncated>{str(truncated).lower()}</IsTruncated>"
    if as_url:
        inside += "<EncodingType>url</EncodingType>"
    if truncated:
        key, identity, _ = found[most - 1]
        shown = quote(key) if as_url else escape(key)
        inside += f"<NextKeyMarker>{shown}</NextKeyMarker><NextUploadIdMarker>{identity}</NextUploadIdMarker>"
    return _xml("ListMultipartUploadsResult", inside + rows)
