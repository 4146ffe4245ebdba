"""The object store port: what every tool may ask of a bucket, and what it is promised.

One rule: a method that returns has *done* the thing, durably; one that raises `OutcomeUnknown` may have;
one that raises any other `StoreError` has not. Adapters never retry by themselves; `retry.RetryingStore`
does, and leaves conditional writes alone. Keys are relative to the store's prefix, use `/`, never start
with `/`, and are at most 900 bytes of UTF-8 (S3 allows 1,024 with the prefix).

Methods block; callers that must not wait use threads or an executor. Every method is safe to call from
several threads at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from s3core.errors import StoreError

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What HEAD and LIST tell of one object. `etag` is unquoted and opaque; `modified` is Unix seconds."""

    key: str
    size: int
    etag: str
    modified: float
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Body:
    """An object's bytes (the whole of it or one range) with the ETag of the version they came from."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Properties:
    """Facts about an adapter that callers may plan with (in place of type checks)."""

    scheme: str
    durable: bool
    if_none_match: bool
    if_match: bool
    multipart: bool
    server_copy: bool
    part_bytes_min: int = 5 * 1024 * 1024


@runtime_checkable
class ObjectStore(Protocol):
    @property
    def url(self) -> str:
        """Where this store is, without secrets: fit for logs and messages."""
        ...

    @property
    def properties(self) -> Properties: ...

    def get(self, key: str) -> Body:
        """The whole object. Raises NotFound. A short body is Unavailable, never returned."""
        ...

    def get_range(self, key: str, offset: int, length: int) -> Body:
        """Exactly `length` > 0 bytes from `offset`. A range that does not lie wholly inside the object is
        Corrupt (the caller believed the object to be longer). Raises NotFound."""
        ...

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        """Create or replace; returns the ETag. Atomic: readers see the old object or the new one."""
        ...

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        """Create (`If-None-Match: *`); of any number of racing callers one returns, the rest raise
        PreconditionFailed. On OutcomeUnknown read the object and compare what you wrote."""
        ...

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        """Replace the version whose ETag is `etag` (`If-Match`); PreconditionFailed if it is another one,
        PreconditionFailed or NotFound if there is none."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Raises NotFound."""
        ...

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix` and is greater than `start_after`, in ascending order
        of the key's UTF-8 bytes. Pages are fetched as the iterator advances. `metadata` is not filled in."""
        ...

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        """The distinct beginnings of keys below `prefix` up to and including `delimiter`, ascending."""
        ...

    def delete(self, key: str) -> None:
        """Remove; a key that is not there counts as done."""
        ...

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        """Remove in batches; returns the keys that were *not* removed with the reason. Never raises for
        a single key."""
        ...

    def copy(self, source: str, target: str) -> str:
        """Server-side copy inside this store where it can, otherwise get and put; returns the new ETag."""
        ...

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> "MultipartUpload":
        """Begin an upload in parts; the object appears when `complete` returns and not before."""
        ...

    def close(self) -> None:
        """Give back connections. The store must not be used afterwards."""
        ...


class MultipartUpload(Protocol):
    def part(self, number: int, data: Buffer | Sequence[Buffer]) -> str:
        """Upload part `number` (1 to 10,000; all but the last at least `part_bytes_min`). May be called
        from several threads; uploading a number again replaces it."""
        ...

    def complete(self) -> str:
        """Make the object visible; returns its ETag. OutcomeUnknown: look with `head`."""
        ...

    def abort(self) -> None:
        """Forget the parts. Done also when the upload is gone already."""
        ...


def joined(data: Buffer | Sequence[Buffer]) -> Buffer:
    """One buffer out of `put`'s argument; no copy when it is one already."""
    if isinstance(data, bytes | bytearray | memoryview):
        return data
    return b"".join(data)
