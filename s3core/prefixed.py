"""A part of a store as a store of its own: every key gets the same beginning, and loses it on the way back.

One rule: nothing outside the prefix can be reached. The inner store keeps its own limit on a key's length,
which the prefix uses up a part of. Closing a part does not close the whole.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from s3core.errors import StoreError
from s3core.keys import check_key
from s3core.store import Body, Buffer, MultipartUpload, ObjectInfo, ObjectStore, Properties


def sub_store(store: ObjectStore, prefix: str) -> ObjectStore:
    """The part of `store` below `prefix`, read as a folder: a `/` is added where its end has none."""
    folder = prefix.strip("/")
    return PrefixedStore(store, folder + "/") if folder else store


class PrefixedStore:
    """`prefix` is taken as it stands. Messages of errors and their `key` name the key inside `inner`."""

    def __init__(self, inner: ObjectStore, prefix: str) -> None:
        self._inner = inner
        self._prefix = check_key(prefix)

    @property
    def url(self) -> str:
        return f"{self._inner.url.rstrip('/')}/{self._prefix.rstrip('/')}"

    @property
    def properties(self) -> Properties:
        return self._inner.properties

    def get(self, key: str) -> Body:
        return self._inner.get(self._full(key))

    def get_range(self, key: str, offset: int, length: int) -> Body:
        return self._inner.get_range(self._full(key), offset, length)

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        return self._inner.put(self._full(key), data, metadata=metadata)

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        return self._inner.put_if_absent(self._full(key), data, metadata=metadata)

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        return self._inner.put_if_match(self._full(key), data, etag, metadata=metadata)

    def head(self, key: str) -> ObjectInfo:
        return replace(self._inner.head(self._full(key)), key=key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        skip = len(self._prefix)
        after = self._prefix + start_after if start_after else ""
        for info in self._inner.list(self._prefix + prefix, start_after=after):
            if len(info.key) > skip:  # an object called exactly like the prefix has no name in here
                yield replace(info, key=info.key[skip:])

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        for group in self._inner.list_prefixes(self._prefix + prefix, delimiter=delimiter):
            yield group[len(self._prefix) :]

    def delete(self, key: str) -> None:
        self._inner.delete(self._full(key))

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        failed = self._inner.delete_many(map(self._full, keys))
        return {key[len(self._prefix) :]: error for key, error in failed.items()}

    def copy(self, source: str, target: str) -> str:
        return self._inner.copy(self._full(source), self._full(target))

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> MultipartUpload:
        return self._inner.multipart(self._full(key), metadata=metadata)

    def close(self) -> None:
        """The inner store belongs to whoever opened it."""

    def _full(self, key: str) -> str:
        return self._prefix + check_key(key)
