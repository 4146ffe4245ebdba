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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from s3core.store import Buffer

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


@dataclass(frozen=True, slots=True)
class VersionsPage:
    """One page of ListObjectVersions. The next begins after both markers; they are "" on the last page. A page that is
    not the last may be empty."""

    versions: list[ListedVersion]
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


@dataclass(frozen=True, slots=True)
class BucketProperties:
    """Facts to plan with. `endpoint` is equal for buckets between which the server can copy by itself; "" for none.
    `name` is the bucket's name there. `versioned` is whether overwrites and deletes keep the old version.
    `clock_skew_s` is our clock less the server's by the Date of its answer, None where it told none."""

    endpoint: str
    name: str
    versioned: bool
    part_bytes_min: int = PART_BYTES_MIN
    copy_bytes_max: int = COPY_BYTES_MAX
    clock_skew_s: float | None = None


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

    def head(self, key: str, *, version_id: str = "", part_number: int = 0) -> ObjectFacts:
        """Raises NotFound (of a delete marker too)."""
        ...

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]: ...

    def get(self, key: str, *, offset: int = 0, length: int = -1, if_match: str = "", version_id: str = "") -> bytes:
        """`length` > 0 bytes from `offset`, all the rest with -1. Raises NotFound; PreconditionFailed where `if_match`
        is not the ETag; Corrupt for a range not wholly inside the object. A short body is Unavailable, never
        returned."""
        ...

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = Attributes(),
        if_match: str = "",
        if_absent: bool = False,
    ) -> Written:
        """Create or replace. With `if_absent` or `if_match` PreconditionFailed when that does not hold (where the
        server honours it)."""
        ...

    def copy(self, source: CopySource, key: str, *, attributes: Attributes | None = None) -> Written:
        """Server-side copy of an object of at most `copy_bytes_max`. Headers, metadata and tags come along; with
        `attributes` those replace them. The copy is one piece, so its ETag is another than that of a source uploaded
        in parts. NotFound: no such source. An error inside a 200 answer is an error."""
        ...

    def begin_upload(self, key: str, *, attributes: Attributes = Attributes()) -> str:
        """Begin a multipart upload; returns its id. Nobody sees the object before `complete_upload`."""
        ...

    def upload_part(self, key: str, upload_id: str, number: int, data: Buffer | Sequence[Buffer]) -> str:
        """The part's ETag. Numbers 1 to 10,000; uploading a number again replaces it."""
        ...

    def copy_part(self, key: str, upload_id: str, number: int, source: CopySource, *, offset: int, length: int) -> str:
        """Like `upload_part`, with bytes that the server takes from `source` itself (UploadPartCopy). After
        PreconditionFailed the upload may hold that part: abort it."""
        ...

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> Written:
        """Make it visible, of `parts` (number and ETag, ascending). Name every part that was uploaded: some servers
        refuse to leave one out. OutcomeUnknown: look with `head`."""
        ...

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Forget the parts; done also when the upload is gone already."""
        ...

    def delete(self, key: str) -> str:
        """Delete the current object, never a version: in a bucket with versions this leaves a delete marker, whose
        version id is returned, else "". A key that is not there counts as done."""
        ...

    def close(self) -> None:
        """Give back connections. The bucket must not be used afterwards."""
        ...
