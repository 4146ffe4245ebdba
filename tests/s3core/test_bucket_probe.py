"""Probes of the bucket port: a server that does not do as it should is found out, and says no lie."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from s3core.bucket import NO_ATTRIBUTES, Attributes, Bucket, Written
from s3core.bucket_probe import conditional_puts, falling, keys_below, remove_keys
from s3core.bucket_wrapper import BucketWrapper
from s3core.errors import NotFound, PreconditionFailed, StoreError, Unavailable, Unsupported
from s3core.memory_bucket import MemoryBucket
from s3core.store import Buffer


@dataclass
class Put:
    """What a request asks for and what is there, None for nothing."""

    if_match: str
    if_absent: bool
    held: str | None
    deleted: bool

    @property
    def outdated(self) -> bool:
        return bool(self.if_match) and self.held is not None and self.held != self.if_match


class Server(BucketWrapper):
    """Does with conditional PUTs what it is told to: True lets one through without a look, an error is raised."""

    def __init__(self, inner: Bucket, does: Callable[[Put], bool | StoreError]) -> None:
        super().__init__(inner)
        self._does = does
        self._deleted: set[str] = set()

    def delete(self, key: str) -> str:
        self._deleted.add(key)
        return self.inner.delete(key)

    def put(
        self,
        key: str,
        data: Buffer | Sequence[Buffer],
        *,
        attributes: Attributes = NO_ATTRIBUTES,
        if_match: str = "",
        if_absent: bool = False,
        **other: Any,
    ) -> Written:
        try:
            held: str | None = self.inner.head(key).etag
        except NotFound:
            held = None
        does = self._does(Put(if_match, if_absent, held, key in self._deleted)) if if_match or if_absent else False
        if isinstance(does, StoreError):
            raise does
        if does:
            return self.inner.put(key, data)
        return self.inner.put(key, data, if_match=if_match, if_absent=if_absent)


@pytest.mark.parametrize("versioned", [False, True])
def test_a_server_that_keeps_to_them(versioned: bool) -> None:
    bucket = MemoryBucket(versioned=versioned)
    assert conditional_puts(bucket, "p/") == ""
    assert all(key.startswith("p/") for key in bucket.contents())
    remove_keys(bucket, keys_below(bucket, "p/"))
    assert bucket.contents() == {}


@pytest.mark.parametrize(
    ("does", "told"),
    [
        (lambda put: True, "replaced an object"),
        (lambda put: put.if_absent, "replaced an object"),
        (lambda put: bool(put.if_match), "outdated ETag was let through"),
        (lambda put: put.outdated, "outdated ETag was let through"),
        (lambda put: bool(put.if_match) and put.held is None, "where there was none"),
        (lambda put: PreconditionFailed("always") if put.if_match else False, "right ETag was refused"),
        (lambda put: PreconditionFailed("always"), "though there was no object"),
        (lambda put: PreconditionFailed("marker") if put.if_absent and put.deleted else False, "after the object was"),
        (lambda put: Unsupported("A header you provided implies functionality"), "does not know them"),
    ],
)
@pytest.mark.parametrize("versioned", [False, True])
def test_a_server_that_does_not(does: Callable[[Put], bool | StoreError], told: str, versioned: bool) -> None:
    assert told in conditional_puts(Server(MemoryBucket(versioned=versioned), does), "p/")


def test_a_store_that_is_away_says_nothing() -> None:
    with pytest.raises(Unavailable):
        conditional_puts(Server(MemoryBucket(), lambda put: Unavailable("later")), "p/")


def test_keys_that_fall_are_found_across_pages() -> None:
    bucket = MemoryBucket()
    for key in ("a", "b", "c"):
        bucket.put(key, b"")
    first, second = bucket.list_page(max_keys=2), bucket.list_page(start_after="b")
    assert falling([first, second]) is None
    assert falling([second, first]) == (b"c", b"a")
    assert falling([first, first]) == (b"b", b"a")
