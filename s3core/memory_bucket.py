"""Buckets in memory, as S3 has them: the bucket port's reference behaviour, for property tests and simulations.

One rule: where servers differ, this one takes the answer that is hardest on the caller: times have whole seconds, a
missing object under `if_match` is NotFound, a copy is one piece with an ETag of its own, `start_after` knows keys only
(a common prefix that still has keys after it is listed again), a page never has more than 1,000 rows.

ETags are S3's: the MD5 of the bytes, and for an upload in parts the MD5 of the parts' MD5s and their number; under a key
service's or a customer's key they are another number of the same form. Digests that came along are compared.
Nothing but the clock makes a difference between two runs: same calls, same answers.
"""

import base64
import threading
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import md5
from itertools import count
from typing import Any, Literal

from s3core.attributes import DEFAULT_CONTENT_TYPE, check_attributes
from s3core.bucket import (
    COPY_BYTES_MAX,
    NO_ATTRIBUTES,
    PART_BYTES_MIN,
    Attributes,
    BucketProperties,
    CopySource,
    ListedPage,
    ListedPart,
    ListedUpload,
    ListedVersion,
    ObjectFacts,
    PartsPage,
    UploadsPage,
    VersionsPage,
    Written,
)
from s3core.clock import Clock, SystemClock
from s3core.content import byte_views
from s3core.digests import NO_DIGESTS, NO_PART_DIGESTS, Digests, digests_of, whole_checksum
from s3core.errors import (
    Archived,
    Corrupt,
    Denied,
    NotFound,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.keys import check_foreign_key, check_max_keys, check_part_number, check_parts, check_span
from s3core.store import Buffer
from s3core.wrapper import Operation
from s3core.write_options import (
    ARCHIVE_CLASSES,
    NO_OPTIONS,
    CustomerKey,
    Kept,
    RestoreTier,
    Retention,
    WriteOptions,
)

Versioning = Literal["", "Enabled", "Suspended"]
NULL_VERSION = "null"
STORAGE_CLASS = "STANDARD"
_DAY_S = 86_400

_services = count(1)


@dataclass(frozen=True, slots=True)
class _Version:
    version_id: str
    data: bytes
    etag: str
    modified: int
    attributes: Attributes = NO_ATTRIBUTES
    part_sizes: tuple[int, ...] = ()
    delete_marker: bool = False
    options: WriteOptions = NO_OPTIONS
    """`retention` and `legal_hold` are those it has now."""
    checksums: Mapping[str, str] = field(default_factory=dict)
    restoring: bool = False
    restored_until: float = 0.0


@dataclass(slots=True)
class _Upload:
    key: str
    attributes: Attributes
    options: WriteOptions
    initiated: int
    parts: dict[int, tuple[bytes, str]] = field(default_factory=dict)
    """Bytes and ETag by number."""


class MemoryService:
    """What one endpoint holds: buckets by name, between which it copies by itself. `lock` guards all of them."""

    def __init__(
        self,
        name: str = "",
        *,
        clock: Clock | None = None,
        part_bytes_min: int = PART_BYTES_MIN,
        copy_bytes_max: int = COPY_BYTES_MAX,
        checksums: bool = True,
    ) -> None:
        self.name = name or f"service-{next(_services)}"
        self.clock = clock or SystemClock()
        self.part_bytes_min = part_bytes_min
        self.copy_bytes_max = copy_bytes_max
        self.checksums = frozenset({"crc32", "sha256"} if checksums else ())
        self.buckets: dict[str, MemoryBucket] = {}
        self.lock = threading.RLock()

    def bucket(self, name: str, *, versioned: bool = False, object_lock: bool = False) -> "MemoryBucket":
        """The bucket of that name; made if there is none, and then as told."""
        with self.lock:
            if name not in self.buckets:
                MemoryBucket(name, versioned=versioned, object_lock=object_lock, service=self)
            return self.buckets[name]


class MemoryBucket:
    """A `Bucket` in a dictionary. `requests` counts what was asked of it by kind, answered or refused; `bytes_up` and
    `bytes_down` count bodies, `bytes_copied` what it copied by itself."""

    def __init__(
        self,
        name: str = "bucket",
        *,
        versioned: bool = False,
        object_lock: bool = False,
        service: MemoryService | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`object_lock` makes it versioned, as S3 does."""
        self._service = service or MemoryService(clock=clock)
        self._name = name
        self._lock = self._service.lock
        self._versioning: Versioning = "Enabled" if versioned or object_lock else ""
        self._object_lock = object_lock
        self._history: dict[str, list[_Version]] = {}  # oldest first, never empty
        self._keys: list[str] = []  # of _history, ascending
        self._live: list[str] = []  # those whose newest version is no delete marker, ascending
        self._uploads: dict[str, _Upload] = {}
        self._numbers = count(1)
        self.restore_after_s: float | None = 0.0
        """How long restoring an archived object takes; None: until `finish_restores`."""
        self._restores: dict[tuple[str, str], tuple[float, int]] = {}  # key and version: begun, days
        self.requests: Counter[Operation] = Counter()
        self.bytes_up = 0
        self.bytes_down = 0
        self.bytes_copied = 0
        with self._lock:
            if name in self._service.buckets:
                raise ValueError(f"{self._service.name} has a bucket {name} already")
            self._service.buckets[name] = self

    @property
    def url(self) -> str:
        return f"memory:{self._service.name}/{self._name}"

    @property
    def properties(self) -> BucketProperties:
        return BucketProperties(
            endpoint=f"memory:{self._service.name}",
            name=self._name,
            versioned=self._versioning == "Enabled",
            part_bytes_min=self._service.part_bytes_min,
            copy_bytes_max=self._service.copy_bytes_max,
            checksums=self._service.checksums,
        )

    # --- what only a test does to a bucket ----------------------------------------------------------------

    def set_versioning(self, versioning: Versioning) -> None:
        """As PutBucketVersioning: once on, it can be suspended and not be taken away."""
        if not versioning and self._versioning:
            raise ValueError("versioning can be suspended, not taken away")
        self._versioning = versioning

    def finish_restores(self) -> None:
        """What was asked for with `restore` is there now."""
        with self._lock:
            for (key, version_id), (_, days) in self._restores.items():
                self._change(key, version_id, restoring=False, restored_until=self._now() + days * _DAY_S)
            self._restores.clear()

    def uploads(self) -> dict[str, str]:
        """Uploads that were begun and neither completed nor aborted: key by id."""
        with self._lock:
            return {upload_id: upload.key for upload_id, upload in self._uploads.items()}

    def contents(self) -> dict[str, bytes]:
        """Current objects, ascending by key; not counted as requests."""
        with self._lock:
            return {key: self._history[key][-1].data for key in self._live}

    # --- listings ----------------------------------------------------------------------------------------

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        check_max_keys(max_keys)
        with self._lock:
            self.requests["list"] += 1
            after, skip = (token[1:], token[:1] == "p") if token else (start_after, False)
            at = max(bisect_left(self._live, prefix), bisect_right(self._live, after))
            if skip:
                at = max(at, self._end_of(after, at))
            rows: list[_Version] = []
            keys: list[str] = []
            prefixes: list[str] = []
            last = ""
            while at < len(self._live) and self._live[at].startswith(prefix):
                if len(keys) + len(prefixes) == max_keys:
                    return _page(keys, rows, prefixes, last)
                key = self._live[at]
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                if end >= 0:
                    prefixes.append(key[: end + len(delimiter)])
                    last = "p" + prefixes[-1]
                    at = self._end_of(prefixes[-1], at)
                    continue
                keys.append(key)
                rows.append(self._history[key][-1])
                last = "k" + key
                at += 1
            return _page(keys, rows, prefixes, "")

    def _end_of(self, prefix: str, at: int) -> int:
        """The first place from `at` on whose key does not begin with `prefix`."""
        return bisect_left(self._live, True, at, key=lambda key: key > prefix and not key.startswith(prefix))

    def list_versions(
        self, *, prefix: str = "", key_marker: str = "", version_marker: str = "", max_keys: int = 1000
    ) -> VersionsPage:
        check_max_keys(max_keys)
        if version_marker and not key_marker:
            raise ValueError("a version marker needs a key marker")
        listed: list[ListedVersion] = []
        with self._lock:
            self.requests["list_versions"] += 1
            inside = bool(version_marker)  # the marker's own key has versions left to list
            search = bisect_left if inside else bisect_right
            at = max(bisect_left(self._keys, prefix), search(self._keys, key_marker))
            for key in self._keys[at:]:
                if not key.startswith(prefix):
                    break
                newest_first = self._history[key][::-1]
                ids = [version.version_id for version in newest_first]
                begin = ids.index(version_marker) + 1 if key == key_marker and version_marker in ids else 0
                for place, version in enumerate(newest_first[begin:], begin):
                    if len(listed) == max_keys:
                        return VersionsPage(listed, listed[-1].key, listed[-1].version_id)
                    listed.append(_listed_version(key, version, latest=place == 0))
        return VersionsPage(listed, "", "")

    # --- reading -----------------------------------------------------------------------------------------

    def head(
        self, key: str, *, version_id: str = "", part_number: int = 0, customer_key: CustomerKey | None = None
    ) -> ObjectFacts:
        with self._lock:
            self.requests["head"] += 1
            version = self._find(key, version_id)
            _check_customer_key(key, version.options, customer_key)
            size = len(version.data)
            if part_number:
                check_part_number(part_number)
                if part_number > max(1, len(version.part_sizes)):
                    raise Corrupt(f"the object has no part {part_number}", key=key)
                size = version.part_sizes[part_number - 1] if version.part_sizes else size
            return ObjectFacts(
                key=key,
                size=size,
                etag=version.etag,
                modified=float(version.modified),
                version_id=self._told(version),
                parts=len(version.part_sizes) if part_number else 0,
                storage_class=version.options.storage_class or STORAGE_CLASS,
                tag_count=len(version.attributes.tags),
                attributes=replace(version.attributes, tags={}),
                checksums=version.checksums,
                kept=self._kept(version),
            )

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]:
        with self._lock:
            self.requests["tags"] += 1
            return dict(self._find(key, version_id).attributes.tags)

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
        check_span(offset, length)
        with self._lock:
            self.requests["get"] += 1
            version = self._find(key, version_id)
            _check_customer_key(key, version.options, customer_key)
            _check_match(key, version.etag, if_match)
            self._check_readable(key, version)
            data = _cut(key, version.data, offset, length)
            self.bytes_down += len(data)
            return data

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
        kept = _kept(data)
        attributes = _with_defaults(attributes)
        _check_digests(key, kept, digests)
        with self._lock:
            operation: Operation = "put_if_absent" if if_absent else "put_if_match" if if_match else "put"
            self.requests[operation] += 1
            self.bytes_up += len(kept)
            current = self._current(key)
            if if_absent and current is not None:
                raise PreconditionFailed("the object exists already", key=key)
            if if_match and current is None:
                raise NotFound("no such object", key=key)
            if current is not None:
                _check_match(key, current.etag, if_match)
            return self._write(key, kept, _etag(kept, options), attributes, options, self._checksum(kept, options))

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        check_foreign_key(key)
        with self._lock:
            self.requests["copy"] += 1
            version = self._copied(source)
            if len(version.data) > self._service.copy_bytes_max:
                limit = self._service.copy_bytes_max
                raise StoreError(f"the source is larger than {limit:,} bytes: copy it in parts", key=key)
            if (source.bucket, source.key, source.version_id) == (self._name, key, "") and attributes is None:
                raise StoreError("an object is not copied to itself without changing its attributes", key=key)
            kept = version.attributes if attributes is None else _with_defaults(attributes)
            self.bytes_copied += len(version.data)
            data = version.data
            return self._write(key, data, _etag(data, options), kept, options, self._checksum(data, options))

    def begin_upload(
        self, key: str, *, attributes: Attributes = NO_ATTRIBUTES, options: WriteOptions = NO_OPTIONS
    ) -> str:
        check_foreign_key(key)
        attributes = _with_defaults(attributes)
        with self._lock:
            self.requests["multipart"] += 1
            upload_id = f"upload-{next(self._numbers):08}"
            self._check_lock(key, options)
            self._uploads[upload_id] = _Upload(key, attributes, options, int(self._now()))
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
        check_part_number(number)
        kept = _kept(data)
        _check_digests(key, kept, digests)
        with self._lock:
            self.requests["part"] += 1
            self.bytes_up += len(kept)
            _check_customer_key(key, self._upload(key, upload_id).options, options.customer_key)
            return self._place_part(key, upload_id, number, kept)

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
        check_part_number(number)
        if length < 1:
            raise ValueError(f"a part is copied from a range of at least 1 byte, not {length}")
        check_span(offset, length)
        with self._lock:
            self.requests["copy_part"] += 1
            upload = self._upload(key, upload_id)
            _check_customer_key(key, upload.options, options.customer_key)
            kept = _cut(source.key, self._copied(source).data, offset, length)
            self.bytes_copied += len(kept)
            return self._place_part(upload.key, upload_id, number, kept)

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Mapping[int, Digests] = NO_PART_DIGESTS,
    ) -> Written:
        check_parts(key, parts)
        with self._lock:
            self.requests["complete"] += 1
            upload = self._upload(key, upload_id)
            checksum = upload.options.checksum if self._service.checksums else ""
            if checksum and not all(digests.get(number, NO_DIGESTS).of(checksum) for number, _ in parts):
                raise ValueError(f"{key}: completing an upload with checksums needs the {checksum} of each part")
            chosen: list[bytes] = []
            for number, etag in parts:
                data, held = upload.parts.get(number, (b"", ""))
                if held != etag:
                    raise StoreError(f"part {number} is {held or 'missing'}, not {etag}", key=key)
                if checksum and digests[number].of(checksum) != digests_of(data, checksum).of(checksum):
                    raise StoreError(f"part {number} has another {checksum}", key=key)
                chosen.append(data)
            for (number, _), data in zip(parts[:-1], chosen[:-1], strict=True):
                if len(data) < self._service.part_bytes_min:
                    raise Unsupported(
                        f"part {number} has {len(data):,} bytes; all but the last need"
                        f" {self._service.part_bytes_min:,}",
                        key=key,
                    )
            etag = f"{_etag(b''.join(map(_md5, chosen)), upload.options)}-{len(chosen)}"
            sums = [digests_of(data, checksum).of(checksum) for data in chosen] if checksum else []
            checksums: dict[str, str] = {checksum: whole_checksum(checksum, sums)} if checksum else {}
            del self._uploads[upload_id]
            sizes = tuple(map(len, chosen))
            return self._write(key, b"".join(chosen), etag, upload.attributes, upload.options, checksums, sizes)

    def abort_upload(self, key: str, upload_id: str) -> None:
        with self._lock:
            self.requests["abort"] += 1
            upload = self._uploads.get(upload_id)
            if upload is not None and upload.key == key:
                del self._uploads[upload_id]

    def delete(self, key: str) -> str:
        check_foreign_key(key)
        with self._lock:
            self.requests["delete"] += 1
            if not self._versioning:
                self._store_history(key, [])
                return ""
            marker = _Version(self._new_version_id(), b"", "", int(self._service.clock.time()), delete_marker=True)
            self._add(key, marker)
            return marker.version_id

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        check_foreign_key(key)
        if not version_id:
            raise ValueError("a version is deleted by its id")
        with self._lock:
            self.requests["delete_version"] += 1
            history = self._history.get(key, [])
            left = [version for version in history if version.version_id != version_id]
            if len(left) != len(history):
                found = next(version for version in history if version.version_id == version_id)
                if found.options.legal_hold or self._held(found, bypass_governance):
                    raise Denied("the version is kept by Object Lock", key=key)
                self._store_history(key, left)

    # --- Object Lock and archives --------------------------------------------------------------------------

    def retention(self, key: str, *, version_id: str = "") -> Retention | None:
        with self._lock:
            self.requests["retention"] += 1
            return self._find(key, version_id).options.retention

    def set_retention(
        self, key: str, retention: Retention | None, *, version_id: str = "", bypass_governance: bool = False
    ) -> None:
        with self._lock:
            self.requests["set_retention"] += 1
            version = self._find(key, version_id)
            self._check_lock(key, WriteOptions(retention=retention, legal_hold=True))
            held = version.options.retention
            longer = (
                held is not None
                and retention is not None
                and retention.until >= held.until
                and (held.mode == retention.mode or retention.mode == "COMPLIANCE")
            )
            if self._held(version, bypass_governance) and not longer:
                raise Denied("the retention can only be made longer", key=key)
            self._change(key, version.version_id, options=replace(version.options, retention=retention))

    def legal_hold(self, key: str, *, version_id: str = "") -> bool:
        with self._lock:
            self.requests["legal_hold"] += 1
            return self._find(key, version_id).options.legal_hold

    def set_legal_hold(self, key: str, on: bool, *, version_id: str = "") -> None:
        with self._lock:
            self.requests["set_legal_hold"] += 1
            version = self._find(key, version_id)
            self._check_lock(key, WriteOptions(legal_hold=True))
            self._change(key, version.version_id, options=replace(version.options, legal_hold=on))

    def restore(self, key: str, *, days: int, tier: RestoreTier = "Standard", version_id: str = "") -> bool:
        if days < 1:
            raise ValueError(f"an object is restored for 1 day or more, not {days}")
        with self._lock:
            self.requests["restore"] += 1
            version = self._find(key, version_id)
            if version.options.storage_class not in ARCHIVE_CLASSES:
                raise StoreError("the object is in no archive", key=key)
            place = (key, version.version_id)
            self._settle_restores()
            if self._read(place).restored_until:
                self._change(*place, restored_until=self._now() + days * _DAY_S)
                return True
            if place not in self._restores:
                self._restores[place] = (self._now(), days)
                self._change(*place, restoring=True)
            return False

    # --- uploads under way ---------------------------------------------------------------------------------

    def list_uploads(
        self, *, prefix: str = "", key_marker: str = "", upload_marker: str = "", max_uploads: int = 1000
    ) -> UploadsPage:
        check_max_keys(max_uploads)
        if upload_marker and not key_marker:
            raise ValueError("an upload marker needs a key marker")
        with self._lock:
            self.requests["list_uploads"] += 1
            after = (key_marker, upload_marker or "\U0010ffff")
            found = sorted(
                (upload.key, upload_id, upload)
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(prefix) and (not key_marker or (upload.key, upload_id) > after)
            )
            rows = [
                ListedUpload(key, upload_id, float(upload.initiated), upload.options.storage_class or STORAGE_CLASS)
                for key, upload_id, upload in found[:max_uploads]
            ]
            if len(found) <= max_uploads:
                return UploadsPage(rows)
            return UploadsPage(rows, rows[-1].key, rows[-1].upload_id)

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
        with self._lock:
            self.requests["list_parts"] += 1
            upload = self._upload(key, upload_id)
            numbers = sorted(number for number in upload.parts if number > after)
            rows = []
            for number in numbers[:max_parts]:
                data, etag = upload.parts[number]
                rows.append(ListedPart(number, len(data), etag, self._checksum(data, upload.options)))
            return PartsPage(rows, rows[-1].number if len(numbers) > max_parts else 0)

    def close(self) -> None:
        """Nothing to give back; the bucket stays for whoever else has it."""

    # --- inside, under the lock ----------------------------------------------------------------------------

    def _current(self, key: str) -> _Version | None:
        history = self._history.get(key)
        return history[-1] if history and not history[-1].delete_marker else None

    def _find(self, key: str, version_id: str) -> _Version:
        check_foreign_key(key)
        if self._restores:
            self._settle_restores()
        if not version_id:
            found = self._current(key)
        else:
            versions = (version for version in self._history.get(key, []) if version.version_id == version_id)
            found = next(versions, None)
        if found is None or found.delete_marker:
            raise NotFound("no such object" if not version_id else f"no version {version_id}", key=key)
        return found

    def _copied(self, source: CopySource) -> _Version:
        bucket = self._service.buckets.get(source.bucket)
        if bucket is None:
            raise NotFound(f"bucket {source.bucket} does not exist")
        version = bucket._find(source.key, source.version_id)
        _check_customer_key(source.key, version.options, source.customer_key)
        bucket._check_readable(source.key, version)
        _check_match(source.key, version.etag, source.if_match)
        return version

    def _upload(self, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise NotFound("the upload does not exist: it was completed or aborted before", key=key)
        return upload

    def _place_part(self, key: str, upload_id: str, number: int, data: bytes) -> str:
        upload = self._upload(key, upload_id)
        etag = _etag(data, upload.options)
        upload.parts[number] = (data, etag)
        return etag

    def _write(
        self,
        key: str,
        data: bytes,
        etag: str,
        attributes: Attributes,
        options: WriteOptions,
        checksums: Mapping[str, str],
        part_sizes: tuple[int, ...] = (),
    ) -> Written:
        self._check_lock(key, options)
        moment = int(self._service.clock.time())
        version = _Version(
            self._new_version_id(),
            data,
            etag,
            moment,
            attributes,
            part_sizes,
            options=options,
            checksums=checksums,
        )
        self._add(key, version)
        return Written(etag, self._told(version))

    def _now(self) -> float:
        return self._service.clock.time()

    def _checksum(self, data: bytes, options: WriteOptions) -> dict[str, str]:
        if not (options.checksum and self._service.checksums):
            return {}
        digest = digests_of(data, options.checksum).of(options.checksum)
        return {options.checksum: base64.b64encode(digest).decode()}

    def _kept(self, version: _Version) -> Kept:
        options = version.options
        return Kept(
            encryption=options.encryption,
            kms_key_id=options.kms_key_id,
            customer_key_md5=options.customer_key.md5 if options.customer_key else "",
            retention=options.retention,
            legal_hold=options.legal_hold,
            restoring=version.restoring,
            restored_until=version.restored_until,
        )

    def _check_lock(self, key: str, options: WriteOptions) -> None:
        if not (options.retention or options.legal_hold):
            return
        if not self._object_lock:
            raise StoreError("the bucket has no Object Lock", key=key)
        if options.retention and options.retention.until <= self._now():
            raise StoreError("a retention must end in the future", key=key)

    def _held(self, version: _Version, bypass_governance: bool) -> bool:
        retention = version.options.retention
        if retention is None or retention.until <= self._now():
            return False
        return retention.mode == "COMPLIANCE" or not bypass_governance

    def _check_readable(self, key: str, version: _Version) -> None:
        if version.options.storage_class in ARCHIVE_CLASSES and not version.restored_until:
            raise Archived("the object lies in an archive", key=key)

    def _settle_restores(self) -> None:
        now = self._now()
        for place, (begun, days) in list(self._restores.items()):
            if self.restore_after_s is not None and begun + self.restore_after_s <= now:
                del self._restores[place]
                self._change(*place, restoring=False, restored_until=now + days * _DAY_S)
        for key, history in list(self._history.items()):
            for version in history:
                if version.restored_until and version.restored_until <= now:
                    self._change(key, version.version_id, restored_until=0.0)

    def _read(self, place: tuple[str, str]) -> _Version:
        key, version_id = place
        return next(version for version in self._history[key] if version.version_id == version_id)

    def _change(self, key: str, version_id: str, **members: Any) -> None:
        history = self._history.get(key, [])
        changed = [replace(one, **members) if one.version_id == version_id else one for one in history]
        self._store_history(key, changed)

    def _new_version_id(self) -> str:
        return f"version-{next(self._numbers):08}" if self._versioning == "Enabled" else NULL_VERSION

    def _told(self, version: _Version) -> str:
        return version.version_id if self._versioning else ""

    def _add(self, key: str, version: _Version) -> None:
        history = self._history.get(key, [])
        if version.version_id == NULL_VERSION:  # of one key there is one of that name
            history = [older for older in history if older.version_id != NULL_VERSION]
        self._store_history(key, [*history, version])

    def _store_history(self, key: str, history: list[_Version]) -> None:
        was_known, was_live = key in self._history, self._current(key) is not None
        if history:
            self._history[key] = history
        else:
            self._history.pop(key, None)
        for keys, was, now in (
            (self._keys, was_known, bool(history)),
            (self._live, was_live, bool(history) and not history[-1].delete_marker),
        ):
            if now and not was:
                insort(keys, key)
            elif was and not now:
                del keys[bisect_left(keys, key)]


def _check_match(key: str, etag: str, if_match: str) -> None:
    if if_match and etag != if_match:
        raise PreconditionFailed(f"the object is {etag}, not {if_match}", key=key)


def _check_customer_key(key: str, options: WriteOptions, given: CustomerKey | None) -> None:
    wanted = options.customer_key
    if wanted and given is None:
        raise StoreError("the object was encrypted with a customer's key: it must be given", key=key)
    if given and wanted is None:
        raise StoreError("the object is not encrypted with a customer's key", key=key)
    if wanted != given:
        raise Denied("the customer's key is another one", key=key)


def _check_digests(key: str, data: bytes, digests: Digests) -> None:
    if digests == NO_DIGESTS:
        return
    made = digests_of(data, "sha256"), digests_of(data, "crc32", with_md5=False)
    wrong = (
        (digests.md5 and digests.md5 != made[0].md5)
        or (digests.sha256 and digests.sha256 != made[0].sha256)
        or (digests.crc32 and digests.crc32 != made[1].crc32)
    )
    if wrong:
        raise Unavailable("the data is not what its digest says: it changed on the way", key=key)


def _etag(data: bytes, options: WriteOptions) -> str:
    return _md5(data if options.etag_is_md5 else b"sealed" + data).hex()


def _cut(key: str, data: bytes, offset: int, length: int) -> bytes:
    beyond = offset + max(length, 0) > len(data) or (offset == len(data) and offset > 0)
    if beyond:
        raise Corrupt(f"the object ends at {len(data):,}, inside or before the range", key=key, offset=offset)
    return data[offset:] if length < 0 else data[offset : offset + length]


def _with_defaults(attributes: Attributes) -> Attributes:
    check_attributes(attributes)
    headers = {"content-type": DEFAULT_CONTENT_TYPE, **attributes.headers}
    return Attributes(headers, dict(attributes.metadata), dict(attributes.tags))


def _kept(data: Buffer | Sequence[Buffer]) -> bytes:
    return data if isinstance(data, bytes) else b"".join(byte_views(data))


def _md5(data: bytes) -> bytes:
    return md5(data, usedforsecurity=False).digest()


def _page(keys: list[str], rows: list[_Version], prefixes: list[str], token: str) -> ListedPage:
    return ListedPage(
        keys=[key.encode() for key in keys],
        sizes=[len(row.data) for row in rows],
        etags=[row.etag.encode() for row in rows],
        modified=[_moment(row.modified).encode() for row in rows],
        classes=[(row.options.storage_class or STORAGE_CLASS).encode() for row in rows],
        prefixes=[prefix.encode() for prefix in prefixes],
        truncated=bool(token),
        token=token,
    )


def _listed_version(key: str, version: _Version, latest: bool) -> ListedVersion:
    return ListedVersion(
        key=key,
        version_id=version.version_id,
        latest=latest,
        delete_marker=version.delete_marker,
        size=len(version.data),
        etag=version.etag,
        modified=_moment(version.modified),
    )


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
