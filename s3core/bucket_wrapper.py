"""What wrappers around a bucket have in common: every call passes one method, `_perform`.

One rule: a wrapper adds one virtue and changes nothing else; what it does not override goes straight through. Calls
have the names that the same requests have in `s3core.wrapper`, so that retries, limits, counts and faults of stores
and of buckets are the same code.
"""

from collections.abc import Callable, Sequence

from s3core.bucket import (
    NO_ATTRIBUTES,
    Attributes,
    Bucket,
    BucketProperties,
    CopySource,
    ListedPage,
    ObjectFacts,
    VersionsPage,
    Written,
)
from s3core.content import byte_count, byte_views
from s3core.store import Buffer
from s3core.wrapper import Call, Operation, T


class BucketWrapper:
    """Passes everything on to `inner`."""

    def __init__(self, inner: Bucket) -> None:
        self.inner = inner

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        """Override this: carry out `action`, which asks the inner bucket, or do not."""
        return action()

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def properties(self) -> BucketProperties:
        """Not counted and not limited: it asks at most once."""
        return self.inner.properties

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        return self._perform(
            Call("list", prefix),
            lambda: self.inner.list_page(
                prefix=prefix, start_after=start_after, delimiter=delimiter, max_keys=max_keys, token=token
            ),
        )

    def list_versions(
        self, *, prefix: str = "", key_marker: str = "", version_marker: str = "", max_keys: int = 1000
    ) -> VersionsPage:
        return self._perform(
            Call("list_versions", prefix),
            lambda: self.inner.list_versions(
                prefix=prefix, key_marker=key_marker, version_marker=version_marker, max_keys=max_keys
            ),
        )

    def head(self, key: str, *, version_id: str = "", part_number: int = 0) -> ObjectFacts:
        return self._perform(
            Call("head", key), lambda: self.inner.head(key, version_id=version_id, part_number=part_number)
        )

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]:
        return self._perform(Call("tags", key), lambda: self.inner.tags(key, version_id=version_id))

    def get(self, key: str, *, offset: int = 0, length: int = -1, if_match: str = "", version_id: str = "") -> bytes:
        return self._perform(
            Call("get", key, bytes_down=max(length, 0)),
            lambda: self.inner.get(key, offset=offset, length=length, if_match=if_match, version_id=version_id),
        )

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
    ) -> Written:
        operation: Operation = "put_if_absent" if if_absent else "put_if_match" if if_match else "put"
        return self._perform(
            Call(operation, key, _size(data)),
            lambda: self.inner.put(key, data, attributes=attributes, if_match=if_match, if_absent=if_absent),
        )

    def copy(self, source: CopySource, key: str, *, attributes: Attributes | None = None) -> Written:
        return self._perform(Call("copy", key), lambda: self.inner.copy(source, key, attributes=attributes))

    def begin_upload(self, key: str, *, attributes: Attributes = NO_ATTRIBUTES) -> str:
        return self._perform(Call("multipart", key), lambda: self.inner.begin_upload(key, attributes=attributes))

    def upload_part(self, key: str, upload_id: str, number: int, data: Buffer | Sequence[Buffer]) -> str:
        return self._perform(
            Call("part", key, _size(data)), lambda: self.inner.upload_part(key, upload_id, number, data)
        )

    def copy_part(self, key: str, upload_id: str, number: int, source: CopySource, *, offset: int, length: int) -> str:
        return self._perform(
            Call("copy_part", key),
            lambda: self.inner.copy_part(key, upload_id, number, source, offset=offset, length=length),
        )

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[tuple[int, str]]) -> Written:
        return self._perform(Call("complete", key), lambda: self.inner.complete_upload(key, upload_id, parts))

    def abort_upload(self, key: str, upload_id: str) -> None:
        return self._perform(Call("abort", key), lambda: self.inner.abort_upload(key, upload_id))

    def delete(self, key: str) -> str:
        return self._perform(Call("delete", key), lambda: self.inner.delete(key))

    def close(self) -> None:
        self.inner.close()


def _size(data: Buffer | Sequence[Buffer]) -> int:
    return byte_count(byte_views(data))
