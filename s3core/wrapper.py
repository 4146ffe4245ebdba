"""What wrappers around a store have in common: every call passes one method, `_perform`.

One rule: a wrapper adds one virtue and changes nothing else; what it does not override goes straight through.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, TypeVar

from s3core.content import byte_count, byte_views
from s3core.errors import StoreError
from s3core.store import Body, Buffer, MultipartUpload, ObjectInfo, ObjectStore, Properties

Operation = Literal[
    "get",
    "get_range",
    "put",
    "put_if_absent",
    "put_if_match",
    "head",
    "list",
    "list_prefixes",
    "delete",
    "delete_many",
    "copy",
    "multipart",
    "part",
    "complete",
    "abort",
    "list_versions",
    "tags",
    "copy_part",
    "delete_version",
    "retention",
    "set_retention",
    "legal_hold",
    "set_legal_hold",
    "restore",
    "list_uploads",
    "list_parts",
]
CONDITIONAL: frozenset[Operation] = frozenset({"put_if_absent", "put_if_match"})
"""Asking again could find one's own first attempt in the way."""
READS: frozenset[Operation] = frozenset(
    {
        "get",
        "get_range",
        "head",
        "list",
        "list_prefixes",
        "list_versions",
        "tags",
        "retention",
        "legal_hold",
        "list_uploads",
        "list_parts",
    }
)
PAGE_KEYS = 1000
"""Keys in one page of a listing and in one batch of a removal, in S3; what counts as one request."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One request on its way down. `bytes_down` is what is known beforehand: the length of a range."""

    operation: Operation
    key: str
    bytes_up: int = 0
    bytes_down: int = 0


def bytes_down(result: object) -> int:
    """How many bytes of an object a call came back with."""
    if isinstance(result, Body):
        return len(result.data)
    return len(result) if isinstance(result, bytes) else 0


class StoreWrapper:
    """Passes everything on to `inner`."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        """Override this: carry out `action`, which asks the inner store, or do not."""
        return action()

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def properties(self) -> Properties:
        return self.inner.properties

    def get(self, key: str) -> Body:
        return self._perform(Call("get", key), lambda: self.inner.get(key))

    def get_range(self, key: str, offset: int, length: int) -> Body:
        call = Call("get_range", key, bytes_down=length)
        return self._perform(call, lambda: self.inner.get_range(key, offset, length))

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        call = Call("put", key, _size(data))
        return self._perform(call, lambda: self.inner.put(key, data, metadata=metadata))

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        call = Call("put_if_absent", key, _size(data))
        return self._perform(call, lambda: self.inner.put_if_absent(key, data, metadata=metadata))

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        call = Call("put_if_match", key, _size(data))
        return self._perform(call, lambda: self.inner.put_if_match(key, data, etag, metadata=metadata))

    def head(self, key: str) -> ObjectInfo:
        return self._perform(Call("head", key), lambda: self.inner.head(key))

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        return self._pages(Call("list", prefix), self.inner.list(prefix, start_after=start_after))

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        return self._pages(Call("list_prefixes", prefix), self.inner.list_prefixes(prefix, delimiter=delimiter))

    def _pages(self, call: Call, items: Iterator[T]) -> Iterator[T]:
        """The first step of each page is the one that asks the server; it goes through `_perform`, which
        must not repeat it (an iterator that failed is at its end)."""
        while (first := self._perform(call, lambda: next(items, None))) is not None:
            yield first
            yield from islice(items, PAGE_KEYS - 1)

    def delete(self, key: str) -> None:
        return self._perform(Call("delete", key), lambda: self.inner.delete(key))

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        """Cut into batches of PAGE_KEYS, each a call of its own."""
        failed: dict[str, StoreError] = {}
        for batch in batches(keys):
            failed |= self._delete_batch(batch)
        return failed

    def _delete_batch(self, keys: Sequence[str]) -> dict[str, StoreError]:
        return self._perform(Call("delete_many", keys[0]), lambda: self.inner.delete_many(keys))

    def copy(self, source: str, target: str) -> str:
        return self._perform(Call("copy", target), lambda: self.inner.copy(source, target))

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> MultipartUpload:
        upload = self._perform(Call("multipart", key), lambda: self.inner.multipart(key, metadata=metadata))
        return _WrappedUpload(self, upload, key)

    def close(self) -> None:
        self.inner.close()


class _WrappedUpload:
    def __init__(self, store: StoreWrapper, inner: MultipartUpload, key: str) -> None:
        self._store = store
        self._inner = inner
        self._key = key

    def part(self, number: int, data: Buffer | Sequence[Buffer]) -> str:
        call = Call("part", self._key, _size(data))
        return self._store._perform(call, lambda: self._inner.part(number, data))

    def complete(self) -> str:
        return self._store._perform(Call("complete", self._key), self._inner.complete)

    def abort(self) -> None:
        return self._store._perform(Call("abort", self._key), self._inner.abort)


def batches(keys: Iterable[str]) -> Iterator[list[str]]:
    """`keys` in lists of at most PAGE_KEYS, none of them empty."""
    batch: list[str] = []
    for key in keys:
        batch.append(key)
        if len(batch) == PAGE_KEYS:
            yield batch
            batch = []
    if batch:
        yield batch


def _size(data: Buffer | Sequence[Buffer]) -> int:
    return byte_count(byte_views(data))
