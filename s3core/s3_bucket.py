"""The bucket port over S3: plain HTTP requests, signed here, with no retries and no hidden second thoughts.

One rule: one call of the port is one request, but for what `s3core.s3_requests` names and for what servers lack. A copy
on condition whose server is not sure to look at it looks at the source by itself, before and, if the copy's ETag does
not prove it, after. A write whose answer lacks the ETag or the version id (Ceph's CompleteMultipartUpload) is followed
by a HEAD. Tags and locks that a copy or an upload in parts would lose are set afterwards. `properties` asks for the versioning
once. What fails after the thing was done is OutcomeUnknown.
Source: Amazon S3 API reference. Read next: `s3core.bucket` (the promises), `s3core.attributes` (headers).
"""

import base64
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from s3core.attributes import answered_attributes, request_headers
from s3core.bucket import (
    NO_ATTRIBUTES,
    Attributes,
    BucketProperties,
    CopySource,
    ListedPage,
    ObjectFacts,
    PartsPage,
    UploadsPage,
    VersionsPage,
    Written,
)
from s3core.clock import Clock, SystemClock
from s3core.digests import NO_DIGESTS, NO_PART_DIGESTS, Digests, digests_of
from s3core.endpoint import Endpoint
from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.keys import check_foreign_key, check_max_keys, check_part_number, check_parts, check_span
from s3core.listing import parse_page, parse_versions
from s3core.s3_faults import (
    ABORT,
    COPY,
    DELETE,
    DELETE_VERSION,
    GET,
    LEGAL_HOLD,
    LIST,
    LIST_PARTS,
    LIST_UPLOADS,
    LIST_VERSIONS,
    PUT,
    PUT_LEGAL_HOLD,
    PUT_RETENTION,
    PUT_TAGS,
    RESTORE,
    RETENTION,
    TAGS,
    UPLOAD,
    VERSIONING,
    Act,
)
from s3core.s3_http import Answer
from s3core.s3_requests import S3Requests, etag_of, modified_of, ranged_body, skew_of, whole_body
from s3core.s3_uploads import parse_parts, parse_uploads
from s3core.s3_xml import (
    complete_request,
    legal_hold_request,
    parse_result,
    parse_tags,
    restore_request,
    retention_request,
    tagging_request,
)
from s3core.signing import encode_key
from s3core.store import Buffer
from s3core.write_options import (
    NO_OPTIONS,
    Checksum,
    CustomerKey,
    RestoreTier,
    Retention,
    WriteOptions,
    answered_options,
    customer_headers,
    option_headers,
    read_retention,
)

_CHECKSUM = "x-amz-checksum-"
_CHECKSUMS = frozenset({"crc32", "sha256"})
_XML = {"content-type": "application/xml"}
_BYPASS = {"x-amz-bypass-governance-retention": "true"}
_NULL_VERSION = "null"
"""The one version id that another version may get: writing a key while versioning is suspended replaces it."""


class S3Bucket:
    """A `Bucket` on an S3 endpoint. Opens no connection: the first request finds out whether the endpoint works.
    ValueError for a name that cannot be, Misconfigured for an unreadable CA file."""

    def __init__(self, endpoint: Endpoint, bucket: str, *, clock: Clock | None = None) -> None:
        self._requests = S3Requests(endpoint, bucket, clock=clock)
        self._clock = clock or SystemClock()
        self._endpoint = endpoint
        self._name = bucket
        self._preset = self._requests.preset
        self._lock = threading.Lock()
        self._properties: BucketProperties | None = None  # under _lock
        self._upload_tags: dict[str, Mapping[str, str]] = {}  # of uploads begun here, where they may get lost; _lock

    @property
    def url(self) -> str:
        return f"s3://{self._endpoint.name}/{self._name}"

    @property
    def properties(self) -> BucketProperties:
        """Two configured endpoints count as two, though they may be one server: which key may read there is not
        known. Where we may not see the versioning, or the server has none, nothing is taken to be kept."""
        with self._lock:
            if self._properties is None:
                versioned, skew_s = self._asked()
                self._properties = BucketProperties(
                    endpoint=f"s3://{self._endpoint.name}" if self._preset.server_copy else "",
                    name=self._name,
                    versioned=versioned,
                    clock_skew_s=skew_s,
                    checksums=_CHECKSUMS if self._preset.aws_checksums else frozenset(),
                )
            return self._properties

    def _asked(self) -> tuple[bool, float | None]:
        """Whether the bucket has versions, and how our clock differs from the server's."""
        try:
            answer = self._requests.request(VERSIONING, "GET", "", query=[("versioning", "")])
        except (Denied, Unsupported):
            return False, None
        skew_s = skew_of(answer, self._clock.time())
        # The second is its name in the older SOAP interface, which some servers answer with.
        result = parse_result(answer.body, "VersioningConfiguration", "GetBucketVersioningResponse")
        return result.get("Status", "") == "Enabled", skew_s

    # --- listings ----------------------------------------------------------------------------------------

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        check_max_keys(max_keys)
        query = [("list-type", "2"), ("prefix", prefix), ("encoding-type", "url"), ("max-keys", str(max_keys))]
        if delimiter:
            query.append(("delimiter", delimiter))
        if start_after:
            query.append(("start-after", start_after))
        if token:
            query.append(("continuation-token", token))
        page = parse_page(self._requests.request(LIST, "GET", "", query=query).body)
        stem = prefix.encode()
        for name in (*page.keys[:1], *page.keys[-1:], *page.prefixes[:1]):
            if not name.startswith(stem):
                raise Misconfigured(f"{self.url}: asked to list {prefix!r}, the server lists {name!r}")
        return page

    def list_versions(
        self, *, prefix: str = "", key_marker: str = "", version_marker: str = "", max_keys: int = 1000
    ) -> VersionsPage:
        check_max_keys(max_keys)
        if version_marker and not key_marker:
            raise ValueError("a version marker needs a key marker")
        query = [("versions", ""), ("prefix", prefix), ("encoding-type", "url"), ("max-keys", str(max_keys))]
        if key_marker:
            query.append(("key-marker", key_marker))
        if version_marker:
            query.append(("version-id-marker", version_marker))
        page = parse_versions(self._requests.request(LIST_VERSIONS, "GET", "", query=query).body)
        if key_marker and not version_marker:
            # Ceph begins with the versions of the marker itself.
            own = 0
            while own < len(page.versions) and page.versions[own].key == key_marker:
                own += 1
            return replace(page, versions=page.versions[own:])
        return page

    # --- reading -----------------------------------------------------------------------------------------

    def head(
        self, key: str, *, version_id: str = "", part_number: int = 0, customer_key: CustomerKey | None = None
    ) -> ObjectFacts:
        check_foreign_key(key)
        query = _version_query(version_id)
        if part_number:
            check_part_number(part_number)
            query.append(("partNumber", str(part_number)))
        headers = customer_headers(customer_key)
        if self._preset.aws_checksums:
            headers["x-amz-checksum-mode"] = "ENABLED"
        try:
            answer = self._requests.look(key, query=query, headers=headers)
        except StoreError as refusal:
            raise _as_missing(refusal, key, version_id) from refusal
        found = answer.headers
        return ObjectFacts(
            key=key,
            size=int(found.get("content-length", "0")),
            etag=etag_of(answer),
            modified=modified_of(answer),
            version_id=found.get("x-amz-version-id", ""),
            parts=int(found.get("x-amz-mp-parts-count", "0")),
            storage_class=found.get("x-amz-storage-class", ""),
            tag_count=int(found.get("x-amz-tagging-count", "0")),
            attributes=answered_attributes(found),
            checksums={
                name[len(_CHECKSUM) :]: value
                for name, value in found.items()
                if name.startswith(_CHECKSUM) and name != "x-amz-checksum-type"
            },
            kept=answered_options(found),
        )

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]:
        check_foreign_key(key)
        query = [("tagging", ""), *_version_query(version_id)]
        try:
            return parse_tags(self._requests.request(TAGS, "GET", key, query=query).body)
        except StoreError as refusal:
            if "NoSuchTagSet" in str(refusal):
                return {}
            raise _as_missing(refusal, key, version_id) from refusal

    def get(
        self,
        key: str,
        *,
        offset: int = 0,
        length: int = -1,
        if_match: str = "",
        version_id: str = "",
        customer_key: CustomerKey | None = None,
    ) -> bytes:
        check_foreign_key(key)
        check_span(offset, length)
        headers = customer_headers(customer_key)
        if if_match:
            headers["if-match"] = f'"{if_match}"'
        if offset or length > 0:
            headers["range"] = f"bytes={offset}-{offset + length - 1 if length > 0 else ''}"
        try:
            answer = self._requests.request(GET, "GET", key, query=_version_query(version_id), headers=headers)
        except Corrupt as beyond:
            raise Corrupt("the object ends before the range", key=key, offset=offset) from beyond
        except StoreError as refusal:
            raise _as_missing(refusal, key, version_id) from refusal
        if if_match and etag_of(answer) != if_match:  # a server that ignores the condition
            raise PreconditionFailed(f"the object is {etag_of(answer)}, not {if_match}", key=key)
        if "range" in headers:
            return ranged_body(answer, key, offset, length)
        return whole_body(answer, key)

    # --- writing -----------------------------------------------------------------------------------------

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> Written:
        check_foreign_key(key)
        headers = request_headers(attributes) | option_headers(options) | self._digests(data, options.checksum, digests)
        if if_absent:
            headers["if-none-match"] = "*"
        if if_match:
            headers["if-match"] = f'"{if_match}"' if self._endpoint.if_match_quoted else if_match
        answer = self._requests.request(PUT, "PUT", key, headers=headers, body=data)
        return self._written(key, answer, etag_of(answer), options.customer_key)

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        """Where the server is not sure to look at the condition (preset), and no version is pinned, the source is asked
        for its ETag first; and again afterwards unless the copy has the same one. A source that changed in between is
        OutcomeUnknown: the copy is there, of one state or the other."""
        check_foreign_key(key)
        headers = self._source_headers(source) | option_headers(options)
        if attributes is not None:
            replaced = request_headers(attributes)
            headers |= {"x-amz-metadata-directive": "REPLACE", "x-amz-tagging-directive": "REPLACE"} | replaced
        named = self._preset.copy_if_match_named
        if source.if_match and named:
            headers[named] = f'"{source.if_match}"'
        unsure = self._must_look(source) and not named
        if unsure:
            self._look_at_source(source)
        answer = self._from_source(COPY, key, source, headers)
        etag = _result_of_write(answer, "CopyObjectResult", key).get("ETag", "").strip('"')
        if unsure and etag != source.if_match:
            self._look_again(source, key)
        written = self._written(key, answer, etag, options.customer_key)
        if attributes is not None:
            self._tag_if_lost(key, written, attributes.tags)
        self._lock_if_lost(key, written, options)
        return written

    def begin_upload(
        self, key: str, *, attributes: Attributes = NO_ATTRIBUTES, options: WriteOptions = NO_OPTIONS
    ) -> str:
        check_foreign_key(key)
        headers = request_headers(attributes) | option_headers(options)
        if options.checksum and self._preset.aws_checksums:
            headers |= {"x-amz-checksum-algorithm": options.checksum.upper(), "x-amz-checksum-type": "COMPOSITE"}
        answer = self._requests.request(UPLOAD, "POST", key, query=[("uploads", "")], headers=headers)
        upload_id = parse_result(answer.body, "InitiateMultipartUploadResult").get("UploadId", "")
        if not upload_id:
            raise Unavailable("the server began an upload without naming it", key=key)
        if attributes.tags and self._preset.tags_along != "yes":
            with self._lock:
                self._upload_tags[upload_id] = attributes.tags
        return upload_id

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        data: Buffer | Sequence[Buffer],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> str:
        check_foreign_key(key)
        query = _part_query(upload_id, number)
        headers = customer_headers(options.customer_key) | self._digests(data, options.checksum, digests)
        answer = self._requests.request(UPLOAD, "PUT", key, query=query, headers=headers, body=data)
        return etag_of(answer)

    def copy_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        source: CopySource,
        *,
        offset: int,
        length: int,
        options: WriteOptions = NO_OPTIONS,
    ) -> str:
        """As with `copy`, the source may be looked at; here once, after the part was copied, which proves the part and
        all before it. A source that changed is PreconditionFailed: nobody sees the part."""
        check_foreign_key(key)
        query = _part_query(upload_id, number)
        check_span(offset, length)
        if length < 1:
            raise ValueError(f"a part is copied from a range of at least 1 byte, not {length}")
        headers = self._source_headers(source) | customer_headers(options.customer_key)
        headers["x-amz-copy-source-range"] = f"bytes={offset}-{offset + length - 1}"
        answer = self._from_source(UPLOAD, key, source, headers, query)
        if self._must_look(source):
            self._look_at_source(source)
        return _result_of_write(answer, "CopyPartResult", key).get("ETag", "").strip('"')

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Mapping[int, Digests] = NO_PART_DIGESTS,
    ) -> Written:
        """Where the server is not sure to take tags along (preset), they are set afterwards, of an upload that was begun
        here: until then, and after a crash in between, the object has none. So with a lock, of what `options` say here."""
        check_foreign_key(key)
        check_parts(key, parts)
        query = [("uploadId", upload_id)]
        headers = _XML | customer_headers(options.customer_key)
        checksum = options.checksum if self._preset.aws_checksums else ""
        body = complete_request(parts, checksum, _part_checksums(key, parts, checksum, digests))
        answer = self._requests.request(UPLOAD, "POST", key, query=query, headers=headers, body=body)
        etag = _result_of_write(answer, "CompleteMultipartUploadResult", key).get("ETag", "").strip('"')
        written = self._written(key, answer, etag, options.customer_key)
        with self._lock:
            tags = self._upload_tags.pop(upload_id, {})
        self._tag_if_lost(key, written, tags)
        self._lock_if_lost(key, written, options)
        return written

    def abort_upload(self, key: str, upload_id: str) -> None:
        check_foreign_key(key)
        with self._lock:
            self._upload_tags.pop(upload_id, None)
        try:
            self._requests.request(ABORT, "DELETE", key, query=[("uploadId", upload_id)])
        except NotFound as gone:
            if not gone.key:  # the bucket itself
                raise

    def delete(self, key: str) -> str:
        check_foreign_key(key)
        try:
            return self._requests.request(DELETE, "DELETE", key).headers.get("x-amz-version-id", "")
        except NotFound as missing:
            if not missing.key:  # the bucket itself
                raise
            return ""

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        check_foreign_key(key)
        if not version_id:
            raise ValueError("a version is deleted by its id")
        headers = _BYPASS if bypass_governance else {}
        try:
            self._requests.request(DELETE_VERSION, "DELETE", key, query=_version_query(version_id), headers=headers)
        except StoreError as refusal:
            missing = _as_missing(refusal, key, version_id)
            if not isinstance(missing, NotFound):
                raise
            if not missing.key:  # the bucket itself
                raise

    # --- Object Lock and archives --------------------------------------------------------------------------

    def retention(self, key: str, *, version_id: str = "") -> Retention | None:
        check_foreign_key(key)
        query = [("retention", ""), *_version_query(version_id)]
        try:
            answer = self._requests.request(RETENTION, "GET", key, query=query)
        except StoreError as refusal:
            if "NoSuchObjectLockConfiguration" in str(refusal) or _no_lock_on(refusal):
                return None
            raise _as_missing(refusal, key, version_id) from refusal
        found = parse_result(answer.body, "Retention")
        return read_retention(found.get("Mode", ""), found.get("RetainUntilDate", ""))

    def set_retention(
        self, key: str, retention: Retention | None, *, version_id: str = "", bypass_governance: bool = False
    ) -> None:
        self._put_lock(PUT_RETENTION, "retention", key, version_id, retention_request(retention), bypass_governance)

    def legal_hold(self, key: str, *, version_id: str = "") -> bool:
        check_foreign_key(key)
        query = [("legal-hold", ""), *_version_query(version_id)]
        try:
            answer = self._requests.request(LEGAL_HOLD, "GET", key, query=query)
        except StoreError as refusal:
            if "NoSuchObjectLockConfiguration" in str(refusal) or _no_lock_on(refusal):
                return False
            raise _as_missing(refusal, key, version_id) from refusal
        # Ceph 16 answers with the element's name in its own interface.
        return parse_result(answer.body, "LegalHold", "ObjectLockLegalHold").get("Status", "") == "ON"

    def set_legal_hold(self, key: str, on: bool, *, version_id: str = "") -> None:
        self._put_lock(PUT_LEGAL_HOLD, "legal-hold", key, version_id, legal_hold_request(on))

    def _put_lock(
        self, act: Act, kind: str, key: str, version_id: str, body: bytes, bypass_governance: bool = False
    ) -> None:
        check_foreign_key(key)
        headers = _XML | self._digests(body) | (_BYPASS if bypass_governance else {})
        query = [(kind, ""), *_version_query(version_id)]
        try:
            self._requests.request(act, "PUT", key, query=query, headers=headers, body=body)
        except StoreError as refusal:
            raise _as_missing(refusal, key, version_id) from refusal

    def restore(self, key: str, *, days: int, tier: RestoreTier = "Standard", version_id: str = "") -> bool:
        check_foreign_key(key)
        body = restore_request(days, tier)
        headers = _XML | self._digests(body)
        query = [("restore", ""), *_version_query(version_id)]
        try:
            answer = self._requests.request(RESTORE, "POST", key, query=query, headers=headers, body=body)
        except StoreError as refusal:
            if "RestoreAlreadyInProgress" in str(refusal):
                return False
            raise _as_missing(refusal, key, version_id) from refusal
        return answer.status == 200

    # --- uploads under way ---------------------------------------------------------------------------------

    def list_uploads(
        self, *, prefix: str = "", key_marker: str = "", upload_marker: str = "", max_uploads: int = 1000
    ) -> UploadsPage:
        check_max_keys(max_uploads)
        if upload_marker and not key_marker:
            raise ValueError("an upload marker needs a key marker")
        query = [("uploads", ""), ("prefix", prefix), ("max-uploads", str(max_uploads))]
        if key_marker:
            query.append(("key-marker", key_marker))
        if upload_marker:
            query.append(("upload-id-marker", upload_marker))
        return parse_uploads(self._requests.request(LIST_UPLOADS, "GET", "", query=query).body)

    def list_parts(
        self,
        key: str,
        upload_id: str,
        *,
        after: int = 0,
        max_parts: int = 1000,
        customer_key: CustomerKey | None = None,
    ) -> PartsPage:
        check_foreign_key(key)
        check_max_keys(max_parts)
        query = [("uploadId", upload_id), ("max-parts", str(max_parts))]
        if after:
            check_part_number(after)
            query.append(("part-number-marker", str(after)))
        headers = customer_headers(customer_key)
        return parse_parts(self._requests.request(LIST_PARTS, "GET", key, query=query, headers=headers).body)

    def close(self) -> None:
        self._requests.close()

    # --- what writes have in common ------------------------------------------------------------------------

    def _digests(
        self, data: Buffer | Sequence[Buffer], checksum: Checksum = "", known: Digests = NO_DIGESTS
    ) -> dict[str, str]:
        """The server refuses bytes that changed on the way, which TLS without signed payloads leaves to nobody else, and
        a bucket with Object Lock and a default retention refuses uploads without a digest (S3 API reference, PutObject).
        A checksum, where the server knows it, stands in place of Content-MD5."""
        if checksum and self._preset.aws_checksums:
            digest = known.of(checksum) or digests_of(data, checksum, with_md5=False).of(checksum)
            return {_CHECKSUM + checksum: _base64(digest)}
        return {"content-md5": _base64(known.md5 or digests_of(data).md5)}

    def _written(self, key: str, answer: Answer, etag: str, customer_key: CustomerKey | None = None) -> Written:
        version_id = answer.headers.get("x-amz-version-id", "")
        if etag and version_id:
            return Written(etag, version_id)
        try:
            if etag and not self.properties.versioned:
                return Written(etag)
            facts = self.head(key, version_id=version_id, customer_key=customer_key)
        except StoreError as error:
            raise OutcomeUnknown(f"it was written; what it was given is not known: {error}", key=key) from error
        return Written(etag or facts.etag, version_id or facts.version_id)

    def _tag_if_lost(self, key: str, written: Written, tags: Mapping[str, str]) -> None:
        if not tags or self._preset.tags_along == "yes":
            return
        try:
            if self._preset.tags_along == "probe" and self.tags(key, version_id=written.version_id) == tags:
                return
            body = tagging_request(tags)
            headers = _XML | self._digests(body)
            query = [("tagging", ""), *_version_query(written.version_id)]
            self._requests.request(PUT_TAGS, "PUT", key, query=query, headers=headers, body=body)
        except StoreError as error:
            raise OutcomeUnknown(f"it was written, but may have no tags: {error}", key=key) from error

    def _lock_if_lost(self, key: str, written: Written, options: WriteOptions) -> None:
        if self._preset.locks_along == "yes" or not (options.retention or options.legal_hold):
            return
        try:
            kept = self.head(key, version_id=written.version_id, customer_key=options.customer_key).kept
            if options.retention and (kept.retention is None or kept.retention.until < options.retention.until):
                self.set_retention(key, options.retention, version_id=written.version_id)
            if options.legal_hold and not kept.legal_hold:
                self.set_legal_hold(key, True, version_id=written.version_id)
        except StoreError as error:
            raise OutcomeUnknown(f"it was written, but may not be locked: {error}", key=key) from error

    def _source_headers(self, source: CopySource) -> dict[str, str]:
        check_foreign_key(source.key)
        origin = f"/{source.bucket}/{encode_key(source.key)}"
        if source.version_id:
            origin += f"?versionId={encode_key(source.version_id)}"
        headers = {"x-amz-copy-source": origin}
        if source.if_match:
            headers["x-amz-copy-source-if-match"] = f'"{source.if_match}"'
        if source.customer_key:
            headers |= source.customer_key.headers(of_source=True)
        return headers

    def _from_source(
        self, act: Act, key: str, source: CopySource, headers: dict[str, str], query: Sequence[tuple[str, str]] = ()
    ) -> Answer:
        try:
            return self._requests.request(act, "PUT", key, query=query, headers=headers)
        except NotFound as missing:
            if missing.key:
                raise NotFound(f"no such object in {source.bucket}", key=source.key) from missing
            if source.bucket != self._name:
                raise NotFound(f"bucket {source.bucket} does not exist beside {self.url}") from missing
            raise

    def _must_look(self, source: CopySource) -> bool:
        pinned = source.version_id not in ("", _NULL_VERSION)
        return bool(source.if_match) and not pinned and self._preset.copy_if_match != "yes"

    def _look_at_source(self, source: CopySource) -> None:
        requests = self._requests if source.bucket == self._name else self._requests.beside(source.bucket)
        headers = customer_headers(source.customer_key)
        found = etag_of(requests.look(source.key, query=_version_query(source.version_id), headers=headers))
        if found != source.if_match:
            raise PreconditionFailed(f"the source is {found}, not {source.if_match}", key=source.key)

    def _look_again(self, source: CopySource, key: str) -> None:
        try:
            self._look_at_source(source)
        except (PreconditionFailed, NotFound) as changed:
            raise OutcomeUnknown(f"the source changed while it was copied: {changed}", key=key) from changed


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _part_checksums(
    key: str, parts: Sequence[tuple[int, str]], checksum: Checksum, digests: Mapping[int, Digests]
) -> list[str]:
    """Of an upload that was begun with a checksum, CompleteMultipartUpload names those of all parts."""
    if not checksum:
        return []
    made = [digests.get(number, NO_DIGESTS).of(checksum) for number, _ in parts]
    if not all(made):
        raise ValueError(f"{key}: completing an upload with checksums needs the {checksum} of each part")
    return [_base64(digest) for digest in made]


def _no_lock_on(refusal: StoreError) -> bool:
    """An object without a lock, or a bucket without Object Lock: servers answer both alike (ObjectLockConfigurationNotFound,
    InvalidRequest: "Bucket is missing Object Lock Configuration")."""
    text = str(refusal)
    return "ObjectLock" in text or "Object Lock" in text or "object lock" in text


def _version_query(version_id: str) -> list[tuple[str, str]]:
    return [("versionId", version_id)] if version_id else []


def _part_query(upload_id: str, number: int) -> list[tuple[str, str]]:
    check_part_number(number)
    return [("partNumber", str(number)), ("uploadId", upload_id)]


def _result_of_write(answer: Answer, element: str, key: str) -> dict[str, str]:
    try:
        return parse_result(answer.body, element)
    except Corrupt as error:
        raise OutcomeUnknown(f"the server said yes in a way that cannot be read: {error}", key=key) from error


def _as_missing(refusal: StoreError, key: str, version_id: str) -> StoreError:
    """A delete marker asked for by its id answers 405, and an id that cannot be one 400: neither has an object."""
    text = str(refusal)
    if version_id and (isinstance(refusal, Unsupported) or "InvalidArgument" in text or "NoSuchVersion" in text):
        return NotFound(f"no version {version_id} that is an object: {text}", key=key)
    return refusal
