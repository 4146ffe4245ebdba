"""The store port over S3: plain HTTP requests, signed here, with no retries and no hidden second thoughts.

One rule: one call of the port is one request (listings and batches: one per page), and what the server said is
what the caller hears, as `s3core.s3_faults` reads it. Two exceptions, neither of which repeats anything that
may have been applied: a request refused for its region is signed again for the region the server named when
the endpoint says `auto`, and a HEAD refused without a reason is asked again as a GET of one byte.
Read next: `s3core.s3_http` (sockets), `s3core.s3_faults` (errors), `s3core.s3_multipart` (uploads in parts).
"""

import base64
import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from s3core.clock import Clock, SystemClock
from s3core.endpoint import PRESETS, REGION_AUTO, Address, Endpoint
from s3core.errors import Corrupt, Misconfigured, NotFound, StoreError, Unavailable, Unsupported
from s3core.keys import check_key, check_metadata, check_range
from s3core.listing import ListPage, parse_list
from s3core.s3_faults import COPY, DELETE, GET, HEAD, LIST, PUT, UPLOAD, Act, Place, fault, served_region
from s3core.s3_http import Answer, Transport, pieces
from s3core.s3_multipart import S3MultipartUpload
from s3core.s3_xml import (
    ErrorBody,
    delete_request,
    fits_xml,
    parse_delete_result,
    parse_error,
    parse_result,
)
from s3core.signing import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Query,
    Signer,
    encode_key,
    encode_query,
    payload_sha256,
)
from s3core.store import Body, Buffer, MultipartUpload, ObjectInfo, Properties

DELETE_BATCH = 1000
#: Tried first when the region is to be asked for; every provider either takes it or names its own.
FIRST_GUESS_REGION = "us-east-1"
_METADATA = "x-amz-meta-"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class _Route:
    """Where and for which region requests are made; replaced as a whole when the server names another region."""

    region: str
    address: Address
    signer: Signer


def open_s3_store(endpoint: Endpoint, bucket: str, prefix: str = "", *, clock: Clock | None = None) -> "S3Store":
    """The store in `bucket` below `prefix`. Opens no connection: the first request finds out whether the
    endpoint works. ValueError for a name or prefix that cannot be, Misconfigured for an unreadable CA file."""
    return S3Store(endpoint, bucket, prefix, clock=clock)


class S3Store:
    """An `ObjectStore` in a bucket. Threads may share it; connections are kept open for them."""

    def __init__(self, endpoint: Endpoint, bucket: str, prefix: str = "", *, clock: Clock | None = None) -> None:
        if not bucket or "/" in bucket:
            raise ValueError(f"not a bucket's name: {bucket!r}")
        stem = prefix.strip("/")
        self._endpoint = endpoint
        self._bucket = bucket
        self._prefix = f"{stem}/" if stem else ""
        self._clock = clock or SystemClock()
        self._transport = Transport(endpoint)
        self._preset = PRESETS[endpoint.preset]
        self._sign_payload = not endpoint.tls if endpoint.sign_payload is None else endpoint.sign_payload
        self._route_lock = threading.Lock()
        self._route = self._route_to(FIRST_GUESS_REGION if endpoint.region == REGION_AUTO else endpoint.region)
        self._batch_delete = self._preset.delete_many  # turned off by the first server that cannot do it

    @property
    def url(self) -> str:
        return f"s3://{self._endpoint.name}/{self._bucket}/{self._prefix}"

    @property
    def region(self) -> str:
        """What requests are signed for; with `auto` a guess until the server has been asked."""
        return self._route.region

    @property
    def properties(self) -> Properties:
        return Properties(
            scheme="s3",
            durable=True,
            if_none_match=self._preset.if_none_match != "no",
            if_match=self._preset.if_match != "no",
            multipart=True,
            server_copy=self._preset.server_copy,
        )

    # --- objects -----------------------------------------------------------------------------------------

    def get(self, key: str) -> Body:
        answer = self._request(GET, "GET", key)
        _check_length(answer, key)
        return Body(answer.body, _etag(answer))

    def get_range(self, key: str, offset: int, length: int) -> Body:
        check_range(offset, length)
        try:
            answer = self._request(GET, "GET", key, headers={"range": f"bytes={offset}-{offset + length - 1}"})
        except Corrupt as beyond:
            raise Corrupt("the object ends before the range", key=key, offset=offset) from beyond
        _check_length(answer, key)
        if answer.status == 200:
            # A server may ignore Range (RFC 9110 section 14.2): then this is the whole object.
            if len(answer.body) < offset + length:
                raise Corrupt(f"the object ends at {len(answer.body)}, before the range", key=key, offset=offset)
            return Body(answer.body[offset : offset + length], _etag(answer))
        served = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
        if served is None:
            raise Unavailable("a part came back without a Content-Range", key=key)
        first, last = int(served[1]), int(served[2])
        if (first, last) != (offset, offset + length - 1):
            if first == offset and last < offset + length - 1:
                raise Corrupt(f"the object ends at {last + 1}, inside the range of {length}", key=key, offset=offset)
            raise Unavailable(f"asked for bytes {offset}-{offset + length - 1}, got {served[0]}", key=key)
        if len(answer.body) != length:
            raise Unavailable(f"asked for {length} bytes, got {len(answer.body)}", key=key)
        return Body(answer.body, _etag(answer))

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        return self._put(key, data, metadata, {})

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        return self._put(key, data, metadata, {"if-none-match": "*"})

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        if not etag:
            raise ValueError("put_if_match needs the ETag to match")
        condition = f'"{etag}"' if self._endpoint.if_match_quoted else etag
        return self._put(key, data, metadata, {"if-match": condition})

    def head(self, key: str) -> ObjectInfo:
        try:
            answer = self._request(HEAD, "HEAD", key)
        except NotFound:
            raise
        except StoreError as refusal:
            if refusal.temporary:
                raise
            # An answer to HEAD has no body and so no reason; the same question as a GET has one.
            self._request(GET, "GET", key, headers={"range": "bytes=0-0"})
            raise
        return ObjectInfo(
            key=key,
            size=int(answer.headers.get("content-length", "0")),
            etag=_etag(answer),
            modified=_modified(answer),
            metadata={
                name[len(_METADATA) :]: value for name, value in answer.headers.items() if name.startswith(_METADATA)
            },
        )

    def delete(self, key: str) -> None:
        try:
            self._request(DELETE, "DELETE", key)
        except NotFound as missing:
            if not missing.key:  # the bucket itself
                raise

    def copy(self, source: str, target: str) -> str:
        if not self._preset.server_copy:
            return self._copy_by_hand(source, target)
        origin = f"/{self._bucket}/{encode_key(self._full(source))}"
        try:
            answer = self._request(COPY, "PUT", target, headers={"x-amz-copy-source": origin})
        except Unsupported:
            return self._copy_by_hand(source, target)
        except NotFound as missing:
            raise NotFound("no such object", key=source if missing.key else "", hint=missing.hint) from missing
        return parse_result(answer.body, "CopyObjectResult").get("ETag", "").strip('"')

    def _copy_by_hand(self, source: str, target: str) -> str:
        info = self.head(source)
        return self.put(target, self.get(source).data, metadata=info.metadata)

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> MultipartUpload:
        answer = self._request(UPLOAD, "POST", key, query=[("uploads", "")], headers=_metadata_headers(metadata))
        upload_id = parse_result(answer.body, "InitiateMultipartUploadResult").get("UploadId", "")
        if not upload_id:
            raise Unavailable("the server began an upload without naming it", key=key)
        return S3MultipartUpload(key, upload_id, self._request, self.head)

    def close(self) -> None:
        self._transport.close()

    # --- listings ----------------------------------------------------------------------------------------

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        cut = len(self._prefix)
        before = b""
        for page in self._pages(prefix, start_after, ""):
            for listed in page.objects:
                order = listed.key.encode()
                if order <= before:
                    raise self._unordered(listed.key)
                before = order
                yield ObjectInfo(listed.key[cut:], listed.size, listed.etag, listed.modified)

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        if not delimiter:
            raise ValueError("list_prefixes needs a delimiter")
        cut = len(self._prefix)
        before = b""
        for page in self._pages(prefix, "", delimiter):
            for name in page.prefixes:
                order = name.encode()
                # A page may begin with the name the last one ended with.
                if order == before:
                    continue
                if order < before:
                    raise self._unordered(name)
                before = order
                yield name[cut:]

    def _pages(self, prefix: str, start_after: str, delimiter: str) -> Iterator[ListPage]:
        full_prefix = self._prefix + prefix
        query = [("list-type", "2"), ("prefix", full_prefix), ("encoding-type", "url")]
        if delimiter:
            query.append(("delimiter", delimiter))
        elif self._prefix + start_after:
            # Also leaves out an object whose key is the store's prefix itself, as consoles make for folders.
            query.append(("start-after", self._prefix + start_after))
        token = ""
        while True:
            asked = [*query, ("continuation-token", token)] if token else query
            page = parse_list(self._request(LIST, "GET", None, query=asked).body)
            for name in (*(listed.key for listed in page.objects[:1]), *page.prefixes[:1]):
                if not name.startswith(full_prefix):
                    raise Misconfigured(f"{self.url}: asked to list {full_prefix!r}, the server lists {name!r}")
            yield page
            if not page.next_token:
                return
            if page.next_token == token:
                raise Misconfigured(f"{self.url}: the listing does not advance")
            token = page.next_token

    def _unordered(self, key: str) -> StoreError:
        return Misconfigured(
            f"{self.url}: the listing is not in ascending order of keys at {key!r}",
            hint="directory buckets and some gateways list without order: use a general purpose bucket",
        )

    # --- deleting many -----------------------------------------------------------------------------------

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        batch: list[str] = []
        for key in keys:
            if not fits_xml(key):
                failures.update(self._delete_singly([key]))
                continue
            batch.append(key)
            if len(batch) == DELETE_BATCH:
                failures.update(self._delete_batch(batch))
                batch = []
        if batch:
            failures.update(self._delete_batch(batch))
        return failures

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        if not self._batch_delete:
            return self._delete_singly(keys)
        try:
            body = delete_request(self._full(key) for key in keys)
            # DeleteObjects asks for a digest of its body; Content-MD5 is the one that every server knows.
            digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
            headers = {"content-md5": digest, "content-type": "application/xml"}
            answer = self._request(DELETE, "POST", None, query=[("delete", "")], headers=headers, body=body)
            refused = parse_delete_result(answer.body)
        except Unsupported:
            self._batch_delete = False
            return self._delete_singly(keys)
        except StoreError as error:
            return dict.fromkeys(keys, error)
        cut = len(self._prefix)
        return {
            failure.key[cut:]: self._refused_in_batch(failure.key[cut:], failure.code, failure.message)
            for failure in refused
            if failure.code != "NoSuchKey"
        }

    def _refused_in_batch(self, key: str, code: str, message: str) -> StoreError:
        status = {"AccessDenied": 403, "SlowDown": 503, "InternalError": 500, "NotImplemented": 501}.get(code, 400)
        body = ErrorBody(code=code, message=message)
        return fault(Answer(status, {}, b""), DELETE, self._place(self._route), key, self._clock.time(), body)

    def _delete_singly(self, keys: Iterable[str]) -> dict[str, StoreError]:
        failures: dict[str, StoreError] = {}
        for key in keys:
            try:
                self.delete(key)
            except StoreError as error:
                failures[key] = error
        return failures

    # --- requests ----------------------------------------------------------------------------------------

    def _put(
        self, key: str, data: Buffer | Sequence[Buffer], metadata: dict[str, str] | None, condition: Mapping[str, str]
    ) -> str:
        headers = {**_metadata_headers(metadata), **condition}
        return _etag(self._request(PUT, "PUT", key, headers=headers, body=data)) or self.head(key).etag

    def _request(
        self,
        act: Act,
        method: str,
        key: str | None,
        *,
        query: Query = (),
        headers: Mapping[str, str] | None = None,
        body: Buffer | Sequence[Buffer] | None = None,
    ) -> Answer:
        """One request for `key` (None: the bucket itself) that succeeded, or the error it came to."""
        # Never by the key's truth: an empty one must be refused, not taken for the bucket.
        full = "" if key is None else self._full(key)
        chunks = pieces(body) if body is not None else []
        route = self._route
        answer = self._send(route, act, method, full, query, headers or {}, chunks)
        if _succeeded(answer, act):
            return answer
        # A refusal for the wrong region was refused before anything was done, so it may be sent again.
        better = self._learn_region(route, answer)
        if better is not None:
            answer = self._send(better, act, method, full, query, headers or {}, chunks)
            if _succeeded(answer, act):
                return answer
            route = better
        raise fault(_as_error(answer), act, self._place(route), key or "", self._clock.time())

    def _send(
        self,
        route: _Route,
        act: Act,
        method: str,
        key: str,
        query: Query,
        headers: Mapping[str, str],
        chunks: Sequence[Buffer],
    ) -> Answer:
        path = f"{route.address.path}/{encode_key(key)}"
        query_text = encode_query(query)
        if not self._sign_payload:
            payload_hash = UNSIGNED_PAYLOAD
        else:
            payload_hash = payload_sha256(chunks) if chunks else EMPTY_SHA256
        signed = route.signer.headers(
            method, path, query_text, {**headers, "host": route.address.host}, payload_hash, self._clock.time()
        )
        if method in ("PUT", "POST"):
            signed["content-length"] = str(sum(len(chunk) for chunk in chunks))
        signed["user-agent"] = "bucketworks"
        target = f"{path}?{query_text}" if query_text else path
        return self._transport.send(
            method, route.address, target, signed, chunks or None, mutating=act.mutating, key=key[len(self._prefix) :]
        )

    def _learn_region(self, route: _Route, answer: Answer) -> _Route | None:
        """The route to take instead if `auto` was asked for and the server named another region."""
        if self._endpoint.region != REGION_AUTO or answer.status not in (301, 307, 400, 403):
            return None
        region = served_region(answer)
        if not region and not answer.body:
            # An answer to HEAD has no body to name the region in: ask with a listing of nothing.
            probe = self._send(route, LIST, "GET", "", [("list-type", "2"), ("max-keys", "0")], {}, [])
            region = served_region(probe)
        if not region or region == route.region:
            return None
        with self._route_lock:
            if self._route.region != region:
                self._route = self._route_to(region)
            return self._route

    def _route_to(self, region: str) -> _Route:
        address = self._endpoint.address(self._bucket, region)
        return _Route(region, address, Signer(self._endpoint.credentials, region))

    def _place(self, route: _Route) -> Place:
        return Place(self._endpoint, route.address, self._bucket, route.region)

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)


def _succeeded(answer: Answer, act: Act) -> bool:
    if not 200 <= answer.status < 300:
        return False
    # Copies and completions may fail after their 200 was sent; the reason is then the body. Bodies of reads are
    # anybody's bytes and are not looked into.
    return not (act.mutating and answer.body and parse_error(answer.body).code)


def _as_error(answer: Answer) -> Answer:
    """A failure that was announced as 200 with the status it should have had."""
    if answer.status >= 300:
        return answer
    code = parse_error(answer.body).code
    status = {"NoSuchKey": 404, "NoSuchUpload": 404, "PreconditionFailed": 412, "AccessDenied": 403}.get(code, 500)
    return Answer(status, answer.headers, answer.body)


def _metadata_headers(metadata: Mapping[str, str] | None) -> dict[str, str]:
    return {_METADATA + name: value for name, value in check_metadata(metadata).items()}


def _check_length(answer: Answer, key: str) -> None:
    """urllib3 refuses a body shorter than Content-Length; without one a cut would not be seen at all."""
    stated = answer.headers.get("content-length")
    if stated is None:
        if "chunked" not in answer.headers.get("transfer-encoding", ""):
            raise Unavailable("the answer does not say how long it is, so a cut could not be seen", key=key)
    elif int(stated) != len(answer.body):
        raise Unavailable(f"{stated} bytes were announced and {len(answer.body)} came", key=key)


def _etag(answer: Answer) -> str:
    return answer.headers.get("etag", "").removeprefix("W/").strip('"')


def _modified(answer: Answer) -> float:
    try:
        return parsedate_to_datetime(answer.headers.get("last-modified", "")).timestamp()
    except ValueError:
        return 0.0
