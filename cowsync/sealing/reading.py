"""An encrypted mirror, read as if it were not: sizes, headers, metadata, tags and bytes are those of the plain objects.

One rule: nothing comes out that was not opened, and that does not belong under the name it was asked for. ETags, times and
version ids are the mirror's own, since they pin what is read; listings are the mirror's own too, sealed sizes included.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace

from cowsync.sealing.format import HEADER, TAG_BYTES, Facts, Header, NotOpened, Opener, decode_header
from cowsync.sealing.keys import Keyring
from s3core.bucket import Attributes, Bucket, BucketProperties, ObjectFacts
from s3core.bucket_wrapper import BucketWrapper
from s3core.errors import Corrupt, Unsupported
from s3core.wrapper import Call, T
from s3core.write_options import CustomerKey

FIRST_BYTES = 64 << 10
"""Read at once from the beginning of an object: header, facts, and all of a small object."""
_KEPT = 64
_READS = frozenset({"list", "list_versions", "head", "tags", "get"})


@dataclass(frozen=True, slots=True)
class OpenedObject:
    """`etag` pins it on the mirror; `first` is what was read of the beginning, as it lies there."""

    etag: str
    header: Header
    facts: Facts
    opener: Opener
    first: bytes


def open_object(bucket: Bucket, key: str, held: ObjectFacts, keyring: Keyring, version_id: str = "") -> OpenedObject:
    """The head of the sealed object that `held` tells of. NotOpened for whatever is none, or not of that length."""

    def get(offset: int, length: int) -> bytes:
        return bucket.get(key, offset=offset, length=length, if_match=held.etag, version_id=version_id)

    try:
        if held.size < HEADER.size:
            raise NotOpened("is not a sealed object: it is too short")
        first = get(0, min(held.size, FIRST_BYTES))
        header = decode_header(first).of_length(held.size)
        opener = keyring.opener(header)
        if header.streamed:
            # Its size is the store's word until the last frame opens as the last one.
            at = header.frame_offset(header.frames)
            last = first[at:] if held.size == len(first) else get(at, held.size - at)
            opener.frame(header.frames, last)
        end = HEADER.size + header.facts_bytes
        sealed = first[HEADER.size : end]
        if end > len(first):
            sealed += get(len(first), end - len(first))
        return OpenedObject(held.etag, header, opener.facts(sealed), opener, first)
    except NotOpened as error:
        error.key = error.key or key
        raise


class OpenedBucket(BucketWrapper):
    """`belongs` says whether an object whose facts name a key may lie under a full key of the bucket: `(facts.key, key)`.
    Writing through it is Unsupported."""

    def __init__(self, inner: Bucket, keyring: Keyring, belongs: Callable[[str, str], bool]) -> None:
        super().__init__(inner)
        self._keyring = keyring
        self._belongs = belongs
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, str, str], OpenedObject] = OrderedDict()

    @property
    def properties(self) -> BucketProperties:
        """No server copies out of it: what it would copy is sealed."""
        return replace(self.inner.properties, endpoint="")

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation not in _READS:
            raise Unsupported("an encrypted mirror is only read this way", key=call.key)
        return action()

    def head(
        self, key: str, *, version_id: str = "", part_number: int = 0, customer_key: CustomerKey | None = None
    ) -> ObjectFacts:
        """`part_number`: as the source's object was uploaded; 1 tells the first part and how many there were."""
        held = self.inner.head(key, version_id=version_id, customer_key=customer_key)
        opened = self._opened(key, version_id, held)
        facts, size = opened.facts, opened.header.size
        with_parts = part_number == 1 and facts.parts > 0
        return replace(
            held,
            size=facts.first_part if with_parts else size,
            parts=facts.parts if with_parts else 0,
            tag_count=len(facts.attributes.tags),
            attributes=Attributes(facts.attributes.headers, facts.attributes.metadata),
            checksums={},
        )

    def facts(self, key: str, *, if_match: str = "", version_id: str = "") -> Facts:
        """What was sealed with the object."""
        return self._of(key, if_match, version_id).facts

    def tags(self, key: str, *, version_id: str = "") -> dict[str, str]:
        return dict(self._of(key, "", version_id).facts.attributes.tags)

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
        opened = self._of(key, if_match, version_id)
        header = opened.header
        end = header.size if length < 0 else offset + length
        if offset < 0 or end > header.size or (length == 0 or offset > header.size):
            raise Corrupt(f"the object has {header.size} bytes, not {end}", key=key)
        first = min(offset // header.frame_bytes + 1, header.frames)
        last = max(first, -(-end // header.frame_bytes))
        begin, stop = header.frame_offset(first), header.frame_offset(last) + header.frame_length(last) + TAG_BYTES
        if stop <= len(opened.first):
            sealed = memoryview(opened.first)[begin:stop]
        else:
            sealed = memoryview(
                self.inner.get(key, offset=begin, length=stop - begin, if_match=opened.etag, version_id=version_id)
            )
        step = header.frame_bytes + TAG_BYTES
        try:
            frames = [
                opened.opener.frame(number, sealed[(number - first) * step : (number - first + 1) * step])
                for number in range(first, last + 1)
            ]
        except NotOpened as error:
            error.key = key
            raise
        skipped = (first - 1) * header.frame_bytes
        return b"".join(frames)[offset - skipped : end - skipped]

    def _of(self, key: str, etag: str, version_id: str) -> OpenedObject:
        """The opened head, from memory where the ETag pins it."""
        with self._lock:
            kept = self._kept.get((key, version_id, etag))
        if kept is not None:
            return kept
        held = self.inner.head(key, version_id=version_id)
        if etag and held.etag != etag:
            held = replace(held, etag=etag)  # then the next request is PreconditionFailed, as a plain GET would be
        return self._opened(key, version_id, held)

    def _opened(self, key: str, version_id: str, held: ObjectFacts) -> OpenedObject:
        name = (key, version_id, held.etag)
        with self._lock:
            kept = self._kept.get(name)
        if kept is not None:
            return kept
        opened = open_object(self.inner, key, held, self._keyring, version_id)
        if not self._belongs(opened.facts.key, key):
            raise NotOpened(f"holds what was put under {opened.facts.key!r}", key=key)
        with self._lock:
            self._kept[name] = opened
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return opened
