"""The store port over S3: plain HTTP requests, signed here, with no retries and no hidden second thoughts.

One rule: one call of the port is one request (listings and batches: one per page), but for the two exceptions that
`s3core.s3_requests` names.
Read next: `s3core.s3_requests` (routing, signing), `s3core.s3_http` (sockets), `s3core.s3_faults` (errors),
`s3core.s3_multipart` (uploads in parts).
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from s3core.clock import Clock, SystemClock
from s3core.endpoint import Endpoint
from s3core.errors import Corrupt, Misconfigured, NotFound, StoreError, Unavailable, Unsupported
from s3core.keys import check_key, check_metadata, check_range
from s3core.listing import ListPage, parse_list
from s3core.s3_faults import COPY, DELETE, GET, LIST, PUT, UPLOAD, Act
from s3core.s3_http import Answer
from s3core.s3_multipart import S3MultipartUpload
from s3core.s3_requests import S3Requests, etag_of, modified_of, ranged_body, whole_body
from s3core.s3_xml import ErrorBody, delete_request, fits_xml, parse_delete_result, parse_result
from s3core.signing import Query, encode_key
from s3core.store import Body, Buffer, MultipartUpload, ObjectInfo, Properties, joined

DELETE_BATCH = 1000
_METADATA = "x-amz-meta-"


def open_s3_store(
    endpoint: Endpoint,
    bucket: str,
    prefix: str = "",
    *,
    clock: Clock | None = None,
    retain_s: float | None = None,
) -> "S3Store":
    """The store in `bucket` below `prefix`. Opens no connection: the first request finds out whether the
    endpoint works. ValueError for a name or prefix that cannot be, Misconfigured for an unreadable CA file.

    `retain_s` is for buckets with Object Lock: what is put says its digest, as they demand, and, above 0, that its version
    may not be removed for so long by anybody (mode COMPLIANCE)."""
    return S3Store(endpoint, bucket, prefix, clock=clock, retain_s=retain_s)


class S3Store:
    """An `ObjectStore` in a bucket. Threads may share it; connections are kept open for them."""

    def __init__(
        self,
        endpoint: Endpoint,
        bucket: str,
        prefix: str = "",
        *,
        clock: Clock | None = None,
        retain_s: float | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._retain_s = retain_s
        stem = prefix.strip("/")
        self._requests = S3Requests(endpoint, bucket, clock=clock)
        self._endpoint = endpoint
        self._bucket = bucket
        self._prefix = f"{stem}/" if stem else ""
        self._preset = self._requests.preset
        self._batch_delete = self._preset.delete_many  # turned off by the first server that cannot do it

    @property
    def url(self) -> str:
        return f"s3://{self._endpoint.name}/{self._bucket}/{self._prefix}"

    @property
    def region(self) -> str:
        """What requests are signed for; with `auto` a guess until the server has been asked."""
        return self._requests.region

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
        return Body(whole_body(answer, key), etag_of(answer))

    def get_range(self, key: str, offset: int, length: int) -> Body:
        check_range(offset, length)
        try:
            answer = self._request(GET, "GET", key, headers={"range": f"bytes={offset}-{offset + length - 1}"})
        except Corrupt as beyond:
            raise Corrupt("the object ends before the range", key=key, offset=offset) from beyond
        return Body(ranged_body(answer, key, offset, length), etag_of(answer))

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
        answer = self._requests.look(self._full(key), shown=key)
        return ObjectInfo(
            key=key,
            size=int(answer.headers.get("content-length", "0")),
            etag=etag_of(answer),
            modified=modified_of(answer),
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
        self._requests.close()

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
        return self._requests.refusal(Answer(status, {}, b""), DELETE, key, body)

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
        headers = {**_metadata_headers(metadata), **condition, **self._lock_headers(data)}
        return etag_of(self._request(PUT, "PUT", key, headers=headers, body=data)) or self.head(key).etag

    def _lock_headers(self, data: Buffer | Sequence[Buffer]) -> dict[str, str]:
        if self._retain_s is None:
            return {}
        digest = hashlib.md5(joined(data), usedforsecurity=False).digest()
        headers = {"content-md5": base64.b64encode(digest).decode()}
        if self._retain_s > 0:
            until = datetime.fromtimestamp(self._clock.time() + self._retain_s, UTC)
            headers["x-amz-object-lock-mode"] = "COMPLIANCE"
            headers["x-amz-object-lock-retain-until-date"] = until.strftime("%Y-%m-%dT%H:%M:%SZ")
        return headers

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
        return self._requests.request(act, method, full, shown=key or "", query=query, headers=headers, body=body)

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)


def _metadata_headers(metadata: Mapping[str, str] | None) -> dict[str, str]:
    return {_METADATA + name: value for name, value in check_metadata(metadata).items()}
