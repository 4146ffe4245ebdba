"""`memory:` stores: the port's reference behaviour, for tests, simulations and trying things out.

One rule: where the port leaves a choice, this store takes the one that is hardest on the caller (a missing
object under `If-Match` is NotFound as on AWS, a short part is refused), so what runs here runs elsewhere.

Nothing but the clock makes a difference between two runs: same calls, same answers.
"""

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from s3core.clock import Clock, SystemClock
from s3core.content import byte_views, content_digest, etag_text
from s3core.errors import Corrupt, NotFound, PreconditionFailed, StoreError
from s3core.keys import after_all_with, check_key, check_metadata, check_part_number, check_range
from s3core.store import Body, Buffer, ObjectInfo, Properties

_PAGE_KEYS = 1000
"""Keys listed under one hold of the lock, as S3 lists a page: later pages see later changes."""


@dataclass(frozen=True, slots=True)
class _Object:
    data: bytes
    etag: str
    modified: float
    metadata: dict[str, str]


@dataclass(slots=True)
class MemoryObjects:
    """What stores of one name share. `lock` guards the rest; `keys` is always sorted and equals `objects`."""

    objects: dict[str, _Object] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def place(self, key: str, item: _Object) -> str:
        if key not in self.objects:
            insort(self.keys, key)
        self.objects[key] = item
        return item.etag

    def remove(self, key: str) -> None:
        if self.objects.pop(key, None) is not None:
            del self.keys[bisect_left(self.keys, key)]


class MemoryStore:
    """Objects in a dictionary. `prefix` stands before every key in `bucket`, unseen by the caller."""

    def __init__(
        self,
        prefix: str = "",
        *,
        clock: Clock | None = None,
        bucket: MemoryObjects | None = None,
        name: str = "",
        part_bytes_min: int = 5 * 1024 * 1024,
    ) -> None:
        self._prefix = prefix
        self._clock = clock or SystemClock()
        self._bucket = bucket or MemoryObjects()
        self._url = f"memory:{name}/{prefix}".rstrip("/")
        self._properties = Properties(
            scheme="memory",
            durable=False,
            if_none_match=True,
            if_match=True,
            multipart=True,
            server_copy=True,
            part_bytes_min=part_bytes_min,
        )

    @property
    def url(self) -> str:
        return self._url

    @property
    def properties(self) -> Properties:
        return self._properties

    def get(self, key: str) -> Body:
        item = self._find(key)
        return Body(item.data, item.etag)

    def get_range(self, key: str, offset: int, length: int) -> Body:
        check_range(offset, length)
        item = self._find(key)
        if offset + length > len(item.data):
            raise Corrupt(f"{length} bytes wanted of an object of {len(item.data)}", key=key, offset=offset)
        return Body(item.data[offset : offset + length], item.etag)

    def put(self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None) -> str:
        item = self._object(key, data, metadata)
        with self._bucket.lock:
            return self._bucket.place(self._prefix + key, item)

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        item = self._object(key, data, metadata)
        with self._bucket.lock:
            if self._prefix + key in self._bucket.objects:
                raise PreconditionFailed("the object exists already", key=key)
            return self._bucket.place(self._prefix + key, item)

    def put_if_match(
        self, key: str, data: Buffer | Sequence[Buffer], etag: str, *, metadata: dict[str, str] | None = None
    ) -> str:
        item = self._object(key, data, metadata)
        with self._bucket.lock:
            current = self._bucket.objects.get(self._prefix + key)
            if current is None:
                raise NotFound("no such object", key=key)
            if current.etag != etag:
                raise PreconditionFailed(f"the object is version {current.etag}, not {etag}", key=key)
            return self._bucket.place(self._prefix + key, item)

    def head(self, key: str) -> ObjectInfo:
        item = self._find(key)
        return ObjectInfo(key, len(item.data), item.etag, item.modified, dict(item.metadata))

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        full, skip = self._prefix + prefix, len(self._prefix)
        after = self._prefix + start_after
        while page := self._page(full, after):
            for key, item in page:
                yield ObjectInfo(key[skip:], len(item.data), item.etag, item.modified)
            after = page[-1][0]

    def list_prefixes(self, prefix: str = "", *, delimiter: str = "/") -> Iterator[str]:
        if not delimiter:
            raise ValueError("the delimiter must not be empty")
        full, after = self._prefix + prefix, ""
        while page := self._page(full, after, keys_max=1):
            key = page[0][0]
            end = key.find(delimiter, len(full))
            if end < 0:
                after = key
                continue
            group = key[: end + len(delimiter)]
            yield group[len(self._prefix) :]
            after = after_all_with(group)

    def delete(self, key: str) -> None:
        check_key(key)
        with self._bucket.lock:
            self._bucket.remove(self._prefix + key)

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        for key in keys:
            self.delete(key)
        return {}

    def copy(self, source: str, target: str) -> str:
        check_key(target)
        item = self._find(source)
        with self._bucket.lock:
            copied = _Object(item.data, item.etag, self._clock.time(), item.metadata)
            return self._bucket.place(self._prefix + target, copied)

    def multipart(self, key: str, *, metadata: dict[str, str] | None = None) -> "MemoryUpload":
        return MemoryUpload(self, check_key(key), check_metadata(metadata))

    def close(self) -> None:
        """Nothing to give back; what the bucket holds stays for others that share it."""

    def finish_upload(self, key: str, parts: dict[int, bytes], metadata: dict[str, str]) -> str:
        """Make one object of `parts` (for `MemoryUpload`)."""
        numbers = sorted(parts)
        if not numbers:
            raise ValueError(f"{key}: an upload in parts needs at least one part")
        for number in numbers[:-1]:
            if len(parts[number]) < self._properties.part_bytes_min:
                raise ValueError(
                    f"{key}: part {number} has {len(parts[number])} bytes;"
                    f" all but the last need {self._properties.part_bytes_min}"
                )
        digest = content_digest([content_digest([parts[number]]) for number in numbers])
        data = b"".join([parts[number] for number in numbers])
        item = _Object(data, etag_text(digest, len(numbers)), self._clock.time(), metadata)
        with self._bucket.lock:
            return self._bucket.place(self._prefix + key, item)

    def _find(self, key: str) -> _Object:
        check_key(key)
        item = self._bucket.objects.get(self._prefix + key)
        if item is None:
            raise NotFound("no such object", key=key)
        return item

    def _object(self, key: str, data: Buffer | Sequence[Buffer], metadata: dict[str, str] | None) -> _Object:
        check_key(key)
        kept = data if isinstance(data, bytes) else b"".join(byte_views(data))
        return _Object(kept, etag_text(content_digest([kept])), self._clock.time(), check_metadata(metadata))

    def _page(self, prefix: str, after: str, keys_max: int = _PAGE_KEYS) -> Sequence[tuple[str, _Object]]:
        """The next keys with `prefix` after `after` (both with the store's own prefix)."""
        bucket = self._bucket
        with bucket.lock:
            begin = max(bisect_left(bucket.keys, prefix), bisect_right(bucket.keys, after))
            page = []
            for key in bucket.keys[begin : begin + keys_max]:
                if not key.startswith(prefix):
                    break
                page.append((key, bucket.objects[key]))
            return page


class MemoryUpload:
    """An upload in parts, held aside until it is complete."""

    def __init__(self, store: MemoryStore, key: str, metadata: dict[str, str]) -> None:
        self._store = store
        self._key = key
        self._metadata = metadata
        self._lock = threading.Lock()
        self._parts: dict[int, bytes] | None = {}

    def part(self, number: int, data: Buffer | Sequence[Buffer]) -> str:
        check_part_number(number)
        kept = b"".join(byte_views(data))
        with self._lock:
            self._open_parts()[number] = kept
        return etag_text(content_digest([kept]))

    def complete(self) -> str:
        with self._lock:
            etag = self._store.finish_upload(self._key, self._open_parts(), self._metadata)
            self._parts = None
        return etag

    def abort(self) -> None:
        with self._lock:
            self._parts = None

    def _open_parts(self) -> dict[int, bytes]:
        if self._parts is None:
            raise NotFound("the upload was completed or aborted already", key=self._key)
        return self._parts
