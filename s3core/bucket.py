"""The bucket port: objects that somebody else wrote, as they are, with everything that belongs to them.

`s3core.store` keeps our own objects, whose keys and contents we choose. This port meets buckets as it finds them: any
key S3 allows (up to 1,024 bytes, a leading `/`, blanks, control characters), content headers, user metadata, tags,
versions, delete markers, multipart ETags. cowsync reads sources and writes mirrors through it.

One rule: the three answers of `s3core.store`: a method that returns has done the thing, one that raises
`OutcomeUnknown` may have, any other `StoreError` means not done. One call is one request; nothing is retried here.
Every method is safe to call from several threads at once. Keys are text; their order is that of their UTF-8 bytes,
which is the order of `str` too. ETags are unquoted. A version id is "" where the bucket has no versions ("null" is what
S3 calls a version from before they were switched on, and some servers every one).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, overload, runtime_checkable

from s3core.digests import NO_DIGESTS, NO_PART_DIGESTS, Digests
from s3core.store import Buffer
from s3core.write_options import (
    ARCHIVE_CLASSES,
    NO_OPTIONS,
    NOT_TOLD,
    CustomerKey,
    Kept,
    RestoreTier,
    Retention,
    WriteOptions,
)

PART_BYTES_MIN = 5 * 1024 * 1024
PART_BYTES_MAX = 5 * 1024**3
COPY_BYTES_MAX = 5 * 1024**3
"""The largest object that one CopyObject takes; above it UploadPartCopy (S3 API reference)."""


@dataclass(frozen=True, slots=True)
class ListedPage:
    """One page of a listing, as columns: row i is `keys[i]`, `sizes[i]`, and so on, all lists of one length.

    Columns, because a bucket has a billion rows: a list is compared, sliced and joined in C. Keys and ETags are the
    bytes that came (keys URL-decoded). `modified` is the ISO 8601 text of the server, not parsed; texts of one server
    compare as times do. `prefixes` are common prefixes where a delimiter was asked for. `truncated`: there is more;
    the next page begins after `last`, the greatest key or common prefix of this one (b"" when it is empty), or at
    `token`. In order and without a delimiter both lead to the same page; otherwise only the token is exact."""

    keys: list[bytes]
    sizes: list[int]
    etags: list[bytes]
    modified: list[bytes]
    classes: list[bytes]
    prefixes: list[bytes]
    truncated: bool
    token: str = ""

    @property
    def last(self) -> bytes:
        return max(self.keys[-1] if self.keys else b"", self.prefixes[-1] if self.prefixes else b"")


@dataclass(frozen=True, slots=True)
class ListedVersion:
    """One version or delete marker. Of one key the newest comes first, as S3 lists them."""

    key: str
    version_id: str
    latest: bool
    delete_marker: bool
    size: int
    etag: str
    modified: str


@dataclass(frozen=True, slots=True, eq=False)
class ListedVersions(Sequence[ListedVersion]):
    """Versions and delete markers as columns, all lists of one length; as a sequence they are rows, made when they are
    asked for. Whoever compares millions takes the columns: keys (URL-decoded), ids, ETags and times as the bytes that
    came. Delete markers have size 0 and no ETag."""

    keys: list[bytes]
    ids: list[bytes]
    latest: list[bool]
    markers: list[bool]
    sizes: list[int]
    etags: list[bytes]
    modified: list[bytes]

    @classmethod
    def of(cls, rows: Sequence[ListedVersion]) -> "ListedVersions":
        """The columns of rows, or what they are already."""
        if isinstance(rows, cls):
            return rows
        return cls(
            [row.key.encode() for row in rows],
            [row.version_id.encode() for row in rows],
            [row.latest for row in rows],
            [row.delete_marker for row in rows],
            [row.size for row in rows],
            [row.etag.encode() for row in rows],
            [row.modified.encode() for row in rows],
        )

    def row(self, at: int) -> ListedVersion:
        return ListedVersion(
            self.keys[at].decode(errors="replace"),
            self.ids[at].decode(),
            self.latest[at],
            self.markers[at],
            self.sizes[at],
            self.etags[at].decode(),
            self.modified[at].decode(),
        )

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> ListedVersion: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[ListedVersion]: ...

    def __getitem__(self, at: int | slice) -> ListedVersion | Sequence[ListedVersion]:
        if isinstance(at, int):
            return self.row(at)
        return ListedVersions(
            self.keys[at],
            self.ids[at],
            self.latest[at],
            self.markers[at],
            self.sizes[at],
            self.etags[at],
            self.modified[at],
        )

    def __iter__(self) -> Iterator[ListedVersion]:
        return map(self.row, range(len(self.keys)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # lists have none either


@dataclass(frozen=True, slots=True)
class VersionsPage:
    """One page of ListObjectVersions. The next begins after both markers; they are "" on the last page. A page that is
    not the last may be empty. From S3 the versions are columns (`ListedVersions`)."""

    versions: Sequence[ListedVersion]
    next_key_marker: str
    next_version_marker: str


@dataclass(frozen=True, slots=True)
class Attributes:
    """What an object has beside its bytes and a copy must keep. "" and {} where it has none. `headers` are lower-case
    names out of CONTENT_HEADERS, `metadata` names are without `x-amz-meta-`."""

    headers: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


NO_ATTRIBUTES = Attributes()
CONTENT_HEADERS = (
    "content-type",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "expires",
    "x-amz-website-redirect-location",
)


@dataclass(frozen=True, slots=True)
class ObjectFacts:
    """What HEAD tells. `parts` is how many parts it was uploaded in where the server says so (asked with
    `part_number=1`, then `size` is the first part's), else 0, and `size` is the whole object's. `checksums` by algorithm
    in lower case, Base64. `tag_count` is 0 where there are none; the tags themselves cost a request (`tags`)."""

    key: str
    size: int
    etag: str
    modified: float
    version_id: str = ""
    parts: int = 0
    storage_class: str = ""
    tag_count: int = 0
    attributes: Attributes = Attributes()
    checksums: Mapping[str, str] = field(default_factory=dict)
    kept: Kept = NOT_TOLD
    """Encryption, lock and restoring, as far as the server tells."""

    @property
    def archived(self) -> bool:
        """Whether it must be restored before it can be read."""
        return self.storage_class in ARCHIVE_CLASSES and not self.kept.restored_until


@dataclass(frozen=True, slots=True)
class Written:
    """What a write left: the ETag and, in a bucket with versions, the version id."""

    etag: str
    version_id: str = ""


@dataclass(frozen=True, slots=True)
class CopySource:
    """What a server-side copy reads. `bucket` is a name on the same endpoint. Where `if_match` is not "", a source
    whose ETag is another one is PreconditionFailed and nothing is written (`x-amz-copy-source-if-match`); a
    `version_id` pins the version."""

    bucket: str
    key: str
    version_id: str = ""
    if_match: str = ""
    customer_key: CustomerKey | None = None


@dataclass(frozen=True, slots=True)
class ListedUpload:
    """An upload in parts that was begun and neither completed nor aborted. `initiated`: Unix seconds of the server."""

    key: str
    upload_id: str
    initiated: float
    storage_class: str = ""


@dataclass(frozen=True, slots=True)
class UploadsPage:
    """One page of ListMultipartUploads; the next begins after both markers, "" on the last page."""

    uploads: Sequence[ListedUpload]
    next_key_marker: str = ""
    next_upload_marker: str = ""


@dataclass(frozen=True, slots=True)
class ListedPart:
    """A part that the server has. `checksums` as in `ObjectFacts`, of the part."""

    number: int
    size: int
    etag: str
    checksums: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartsPage:
    """One page of ListParts, ascending by number; the next begins after `next_number`, 0 on the last page."""

    parts: Sequence[ListedPart]
    next_number: int = 0


@dataclass(frozen=True, slots=True)
class BucketProperties:
    """Facts to plan with. `endpoint` is equal for buckets between which the server can copy by itself; "" for none.
    `name` is the bucket's name there. `versioned` is whether overwrites and deletes keep the old version.
    `clock_skew_s` is our clock less the server's by the Date of its answer, None where it told none. `checksums` are the
    algorithms that the server verifies and keeps; where there are none, `WriteOptions.checksum` is not sent."""

    endpoint: str
    name: str
    versioned: bool
    part_bytes_min: int = PART_BYTES_MIN
    copy_bytes_max: int = COPY_BYTES_MAX
    clock_skew_s: float | None = None
    checksums: frozenset[str] = frozenset()


@runtime_checkable
class Bucket(Protocol):
    @property
    def url(self) -> str:
        """Where it is, without secrets: fit for logs and messages. Keys are relative to the bucket, not to a prefix."""
        ...

    @property
    def properties(self) -> BucketProperties:
        """May ask the server the first time."""
        ...

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        """Current objects below `prefix` with a key greater than `start_after`, in the order the server gives them:
        whoever needs it ascending must check, since not every store does so. `max_keys` is 1 to 1,000 and counts
        keys and common prefixes together. With the `token` of the page before, the listing goes on there; the other
        arguments must be those of that page."""
        ...

    def list_versions(
        self, *, prefix: str = "", key_marker: str = "", version_marker: str = "", max_keys: int = 1000
    ) -> VersionsPage:
        """Versions and delete markers after the markers; with `key_marker` alone, of the keys after it. Unsupported
        where the store has none."""
        ...

    def head(
        self, key: str, *, version_id: str = "", part_number: int = 0, customer_key: CustomerKey | None = None
    ) -> ObjectFacts:
        """Raises NotFound (of a delete marker too). An object under a customer's key (SSE-C) is not shown without it:
        StoreError, as for `get`."""
        ...

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]: ...

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
        """`length` > 0 bytes from `offset`, all the rest with -1. Raises NotFound; PreconditionFailed where `if_match`
        is not the ETag; Corrupt for a range not wholly inside the object; Archived for an object that must be restored
        first. A short body is Unavailable, never returned."""
        ...

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = Attributes(),
        if_match: str = "",
        if_absent: bool = False,
        options: WriteOptions = NO_OPTIONS,
        digests: Digests = NO_DIGESTS,
    ) -> Written:
        """Create or replace. With `if_absent` or `if_match` PreconditionFailed when that does not hold (where the
        server honours it). `digests` of the data save making them again; wrong ones are refused by the server, which
        compares."""
        ...

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        """Server-side copy of an object of at most `copy_bytes_max`. Headers, metadata and tags come along; with
        `attributes` those replace them. Storage class, encryption and lock do not come along: those of the copy are
        `options`. The copy is one piece, so its ETag is another than that of a source uploaded
        in parts. NotFound: no such source. An error inside a 200 answer is an error."""
        ...

    def begin_upload(
        self, key: str, *, attributes: Attributes = Attributes(), options: WriteOptions = NO_OPTIONS
    ) -> str:
        """Begin a multipart upload; returns its id. Nobody sees the object before `complete_upload`. `options` are those of
        the object; parts and completion get the same ones."""
        ...

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
        """The part's ETag. Numbers 1 to 10,000; uploading a number again replaces it. `digests` as in `put`."""
        ...

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
        """Like `upload_part`, with bytes that the server takes from `source` itself (UploadPartCopy). After
        PreconditionFailed the upload may hold that part: abort it."""
        ...

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Mapping[int, Digests] = NO_PART_DIGESTS,
    ) -> Written:
        """Make it visible, of `parts` (number and ETag, ascending). Name every part that was uploaded: some servers
        refuse to leave one out. With a checksum in `options` the `digests` of all parts by number are needed where the
        server keeps checksums: ValueError without. OutcomeUnknown: look with `head`."""
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Forget the parts; done also when the upload is gone already."""
        ...

    def delete(self, key: str) -> str:
        """Delete the current object, never a version: in a bucket with versions this leaves a delete marker, whose
        version id is returned, else "". A key that is not there counts as done."""
        ...

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        """Delete one version or delete marker for good; one that is not there counts as done. Denied where a retention or
        a legal hold keeps it. `bypass_governance`: in spite of a GOVERNANCE retention, for whoever has that permission."""
        ...

    # Object Lock. Unsupported or StoreError in a bucket that was not made with it.

    def retention(self, key: str, *, version_id: str = "") -> Retention | None: ...

    def set_retention(
        self, key: str, retention: Retention | None, *, version_id: str = "", bypass_governance: bool = False
    ) -> None:
        """Of the current or the named version. Longer is always allowed; shorter, or None, only of GOVERNANCE and with
        `bypass_governance`: else Denied."""
        ...

    def legal_hold(self, key: str, *, version_id: str = "") -> bool: ...

    def set_legal_hold(self, key: str, on: bool, *, version_id: str = "") -> None: ...

    def restore(self, key: str, *, days: int, tier: RestoreTier = "Standard", version_id: str = "") -> bool:
        """Ask for a readable copy of an archived object, for `days` days; whether it is there already (then its time is
        extended). Asking again while it is under way changes nothing. How it goes on, `head` tells: `kept.restoring`,
        `kept.restored_until`. StoreError for an object that is in no archive."""
        ...

    # Uploads that are under way, for who goes on with them or clears them away.

    def list_uploads(
        self, *, prefix: str = "", key_marker: str = "", upload_marker: str = "", max_uploads: int = 1000
    ) -> UploadsPage:
        """After the markers, by key. `max_uploads` is 1 to 1,000."""
        ...

    def list_parts(
        self,
        key: str,
        upload_id: str,
        *,
        after: int = 0,
        max_parts: int = 1000,
        customer_key: CustomerKey | None = None,
    ) -> PartsPage:
        """Parts with a number greater than `after`. NotFound: no such upload."""
        ...

    def close(self) -> None:
        """Give back connections. The bucket must not be used afterwards."""
        ...
