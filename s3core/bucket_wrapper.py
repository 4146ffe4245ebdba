"""What wrappers around a bucket have in common: every call passes one method, `_perform`.

One rule: a wrapper adds one virtue and changes nothing else; what it does not override goes straight through. Calls
have the names that the same requests have in `s3core.wrapper`, so that retries, limits, counts and faults of stores
and of buckets are the same code.
"""

from collections.abc import Callable, Mapping, Sequence

from s3core.bucket import (
    NO_ATTRIBUTES,
    Attributes,
    Bucket,
    BucketProperties,
    CopySource,
    ListedPage,
    ObjectFacts,
    PartsPage,
    UploadsPage,
    VersionsPage,
    Written,
)
from s3core.content import byte_count, byte_views
from s3core.digests import NO_DIGESTS, NO_PART_DIGESTS, Digests
from s3core.store import Buffer
from s3core.wrapper import Call, Operation, T
from s3core.write_options import NO_OPTIONS, CustomerKey, RestoreTier, Retention, WriteOptions


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

    def head(
        self, key: str, *, version_id: str = "", part_number: int = 0, customer_key: CustomerKey | None = None
    ) -> ObjectFacts:
        return self._perform(
            Call("head", key),
            lambda: self.inner.head(key, version_id=version_id, part_number=part_number, customer_key=customer_key),
        )

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]:
        return self._perform(Call("tags", key), lambda: self.inner.tags(key, version_id=version_id))

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
        return self._perform(
            Call("get", key, bytes_down=max(length, 0)),
            lambda: self.inner.get(
                key,
                offset=offset,
                length=length,
                if_match=if_match,
                version_id=version_id,
                customer_key=customer_key,
            ),
        )

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
        operation: Operation = "put_if_absent" if if_absent else "put_if_match" if if_match else "put"
        return self._perform(
            Call(operation, key, _size(data)),
            lambda: self.inner.put(
                key,
                data,
                attributes=attributes,
                if_match=if_match,
                if_absent=if_absent,
                options=options,
                digests=digests,
            ),
        )

    def copy(
        self,
        source: CopySource,
        key: str,
        *,
        attributes: Attributes | None = None,
        options: WriteOptions = NO_OPTIONS,
    ) -> Written:
        return self._perform(
            Call("copy", key), lambda: self.inner.copy(source, key, attributes=attributes, options=options)
        )

    def begin_upload(
        self, key: str, *, attributes: Attributes = NO_ATTRIBUTES, options: WriteOptions = NO_OPTIONS
    ) -> str:
        return self._perform(
            Call("multipart", key), lambda: self.inner.begin_upload(key, attributes=attributes, options=options)
        )

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
        return self._perform(
            Call("part", key, _size(data)),
            lambda: self.inner.upload_part(key, upload_id, number, data, options=options, digests=digests),
        )

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
        return self._perform(
            Call("copy_part", key),
            lambda: self.inner.copy_part(key, upload_id, number, source, offset=offset, length=length, options=options),
        )

    def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[tuple[int, str]],
        *,
        options: WriteOptions = NO_OPTIONS,
        digests: Mapping[int, Digests] = NO_PART_DIGESTS,
    ) -> Written:
        return self._perform(
            Call("complete", key),
            lambda: self.inner.complete_upload(key, upload_id, parts, options=options, digests=digests),
        )

    def abort_upload(self, key: str, upload_id: str) -> None:
        return self._perform(Call("abort", key), lambda: self.inner.abort_upload(key, upload_id))

    def delete(self, key: str) -> str:
        return self._perform(Call("delete", key), lambda: self.inner.delete(key))

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
        return self._perform(
            Call("delete_version", key),
            lambda: self.inner.delete_version(key, version_id, bypass_governance=bypass_governance),
        )

    def retention(self, key: str, *, version_id: str = "") -> Retention | None:
        return self._perform(Call("retention", key), lambda: self.inner.retention(key, version_id=version_id))

    def set_retention(
        self, key: str, retention: Retention | None, *, version_id: str = "", bypass_governance: bool = False
    ) -> None:
        return self._perform(
            Call("set_retention", key),
            lambda: self.inner.set_retention(
                key, retention, version_id=version_id, bypass_governance=bypass_governance
            ),
        )

    def legal_hold(self, key: str, *, version_id: str = "") -> bool:
        return self._perform(Call("legal_hold", key), lambda: self.inner.legal_hold(key, version_id=version_id))

    def set_legal_hold(self, key: str, on: bool, *, version_id: str = "") -> None:
        return self._perform(
            Call("set_legal_hold", key), lambda: self.inner.set_legal_hold(key, on, version_id=version_id)
        )

    def restore(self, key: str, *, days: int, tier: RestoreTier = "Standard", version_id: str = "") -> bool:
        return self._perform(
            Call("restore", key), lambda: self.inner.restore(key, days=days, tier=tier, version_id=version_id)
        )

    def list_uploads(
        self, *, prefix: str = "", key_marker: str = "", upload_marker: str = "", max_uploads: int = 1000
    ) -> UploadsPage:
        return self._perform(
            Call("list_uploads", prefix),
            lambda: self.inner.list_uploads(
                prefix=prefix, key_marker=key_marker, upload_marker=upload_marker, max_uploads=max_uploads
            ),
        )

    def list_parts(
        self,
        key: str,
        upload_id: str,
        *,
        after: int = 0,
        max_parts: int = 1000,
        customer_key: CustomerKey | None = None,
    ) -> PartsPage:
        return self._perform(
            Call("list_parts", key),
            lambda: self.inner.list_parts(key, upload_id, after=after, max_parts=max_parts, customer_key=customer_key),
        )

    def close(self) -> None:
        self.inner.close()


def _size(data: Buffer | Sequence[Buffer]) -> int:
    return byte_count(byte_views(data))
