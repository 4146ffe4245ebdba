"""A refresh: what the bucket holds, or nothing changed; what differs from this host's own acts is asked of the object."""

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from plugin.catalogue import Catalogue, Entry
from plugin.refresh import Refreshed, entry_of, refresh
from s3core.bucket import Bucket, ListedPage
from s3core.bucket_wrapper import BucketWrapper
from s3core.clock import SystemClock
from s3core.errors import Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan
from s3core.faulty_bucket import FaultyBucket
from s3core.memory_bucket import MemoryService
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.servers.moto_server import MotoServer
from tests.servers.radosgw import Radosgw


class Frozen(BucketWrapper):
    """Lists what was there when `freeze` was called: a listing that began earlier, or a store that lists late."""

    def __init__(self, inner: Bucket) -> None:
        super().__init__(inner)
        self._page: ListedPage | None = None
        self.lists = 0

    def freeze(self) -> None:
        self._page = self.inner.list_page()

    def list_page(
        self, *, prefix: str = "", start_after: str = "", delimiter: str = "", max_keys: int = 1000, token: str = ""
    ) -> ListedPage:
        self.lists += 1
        return self._page or super().list_page(prefix=prefix, start_after=start_after, token=token)


@pytest.fixture
def bucket() -> Frozen:
    return Frozen(MemoryService().bucket("b"))


@pytest.fixture
def catalogue(tmp_path: Path) -> Iterator[Catalogue]:
    made = Catalogue(tmp_path / "c.sqlite")
    yield made
    made.close()


def refreshed(catalogue: Catalogue, bucket: Bucket, prefix: str = "p/") -> Refreshed:
    return refresh(
        catalogue,
        bucket,
        prefix,
        deadline=60.0,
        is_text=lambda key: key.endswith(".notes"),
        monotonic=lambda: 0.0,
    )


def keys(catalogue: Catalogue) -> list[str]:
    return [one.key for one in catalogue.entries()]


def test_many_pages_below_a_prefix(catalogue: Catalogue, bucket: Frozen) -> None:
    for number in range(2100):
        bucket.put(f"p/dump/{number:04}", b"x")
    bucket.put("q/other", b"x")
    told = refreshed(catalogue, bucket)
    assert (told.objects, bucket.lists) == (2100, 3)
    assert told.changes is not None
    assert len(told.changes.came) == 2100
    assert catalogue.usage().stored == 2100
    assert catalogue.entry("q/other") is None
    assert refreshed(catalogue, bucket).requests == 3


def test_texts_are_read_when_they_changed(catalogue: Catalogue, bucket: Frozen) -> None:
    bucket.put("p/a.notes", "größe\nzwei".encode())
    bucket.put("p/empty.notes", b"")
    assert refreshed(catalogue, bucket).requests == 3
    assert catalogue.texts() == {"p/a.notes": "größe\nzwei", "p/empty.notes": ""}
    assert refreshed(catalogue, bucket).requests == 1
    bucket.put("p/a.notes", b"new")
    assert refreshed(catalogue, bucket).requests == 2
    assert catalogue.text("p/a.notes") == "new"


def test_what_this_host_wrote_and_a_late_listing_does_not_show(catalogue: Catalogue, bucket: Frozen) -> None:
    bucket.put("p/old", b"1")
    refreshed(catalogue, bucket)
    bucket.freeze()
    bucket.put("p/new", b"22")
    catalogue.written(entry_of(bucket, "p/new"))
    bucket.put("p/old", b"333")
    catalogue.written(entry_of(bucket, "p/old"))
    refreshed(catalogue, bucket)
    assert {one.key: one.size for one in catalogue.entries()} == {"p/new": 2, "p/old": 3}


def test_what_this_host_deleted_and_a_late_listing_shows(catalogue: Catalogue, bucket: Frozen) -> None:
    bucket.put("p/old", b"1")
    refreshed(catalogue, bucket)
    bucket.freeze()
    bucket.delete("p/old")
    catalogue.deleted("p/old")
    refreshed(catalogue, bucket)
    assert keys(catalogue) == []


def test_what_another_node_did_to_what_this_one_wrote(catalogue: Catalogue, bucket: Frozen) -> None:
    for key in ("p/deleted", "p/replaced"):
        bucket.put(key, b"ours")
        catalogue.written(entry_of(bucket, key))
    bucket.delete("p/deleted")
    bucket.put("p/replaced", b"theirs")
    refreshed(catalogue, bucket)
    assert {one.key: one.size for one in catalogue.entries()} == {"p/replaced": 6}


def test_a_listing_that_fails_changes_nothing(catalogue: Catalogue, bucket: Frozen) -> None:
    for number in range(1500):
        bucket.put(f"p/{number:04}", b"x")
    refreshed(catalogue, bucket)
    bucket.delete("p/0001")
    before = catalogue.usage()
    plan = FaultPlan(scripted={("list", 2): Fault(FaultKind.REFUSED)})
    with pytest.raises(Unavailable):
        refreshed(catalogue, FaultyBucket(bucket, plan, random.Random(1), SystemClock()))
    assert catalogue.usage() == before


def test_no_request_begins_after_the_deadline(catalogue: Catalogue, bucket: Frozen) -> None:
    for number in range(1500):
        bucket.put(f"p/{number:04}", b"x")
    times = iter([0.0, 5.0, 10.0])
    with pytest.raises(Unavailable, match="longer than it may"):
        refresh(catalogue, bucket, "p/", deadline=3.0, monotonic=lambda: next(times))
    assert bucket.lists == 1
    assert catalogue.usage().objects == 0


def test_sealed_sizes_are_asked_once(catalogue: Catalogue, bucket: Frozen) -> None:
    asked: list[str] = []
    lock = threading.Lock()

    def opened(entry: Entry) -> Entry:
        with lock:
            asked.append(entry.key)
        return replace(entry, size=entry.stored - 2, sealed=True)

    for key in ("p/a", "p/b"):
        bucket.put(key, b"12345")
    for _ in range(2):
        refresh(catalogue, bucket, "p/", deadline=9.0, monotonic=lambda: 0.0, opened=opened)
    assert sorted(asked) == ["p/a", "p/b"]
    found = catalogue.entry("p/a")
    assert found is not None
    assert (found.size, found.stored, found.sealed) == (3, 5, True)


def test_two_hosts_see_one_another(tmp_path: Path, bucket: Frozen) -> None:
    one, two = Catalogue(tmp_path / "1"), Catalogue(tmp_path / "2")
    bucket.put("p/a", b"1")
    one.written(entry_of(bucket, "p/a"))
    refreshed(two, bucket)
    assert keys(two) == ["p/a"]
    bucket.delete("p/a")
    two.deleted("p/a")
    refreshed(one, bucket)
    assert keys(one) == []
    one.close()
    two.close()


def _walk(catalogue: Catalogue, bucket: Bucket, prefix: str) -> None:
    """The same on any server."""
    bucket.put(f"{prefix}dump/ä b+c.vma", b"12345")
    catalogue.written(entry_of(bucket, f"{prefix}dump/ä b+c.vma"))
    bucket.put(f"{prefix}dump/x.notes", b"text")
    refreshed(catalogue, bucket, prefix)
    assert [one.size for one in catalogue.entries()] == [5, 4]
    assert catalogue.text(f"{prefix}dump/x.notes") == "text"
    generation = catalogue.usage().generation
    refreshed(catalogue, bucket, prefix)
    assert catalogue.usage().generation == generation
    bucket.delete(f"{prefix}dump/x.notes")
    refreshed(catalogue, bucket, prefix)
    assert keys(catalogue) == [f"{prefix}dump/ä b+c.vma"]


@pytest.fixture(params=["moto", pytest.param("radosgw", marks=pytest.mark.rgw)])
def server_bucket(request: pytest.FixtureRequest) -> Iterator[Bucket]:
    server: MotoServer | Radosgw = request.getfixturevalue({"moto": "moto_server"}.get(request.param, request.param))
    name = f"refresh-{uuid4().hex[:8]}"
    with closing(S3Control(server.endpoint())) as control:
        control.create_bucket(name)
    with closing(S3Bucket(server.endpoint(), name)) as bucket:
        yield bucket


def test_the_same_on_a_server(catalogue: Catalogue, server_bucket: Bucket) -> None:
    server_bucket.put("p/dump/ä b+c.vma", b"12345")
    catalogue.written(entry_of(server_bucket, "p/dump/ä b+c.vma"))
    server_bucket.put("p/dump/x.notes", b"text")
    refreshed(catalogue, server_bucket)
    assert [one.size for one in catalogue.entries()] == [4, 5]
    assert catalogue.text("p/dump/x.notes") == "text"
    generation = catalogue.usage().generation
    refreshed(catalogue, server_bucket)
    assert catalogue.usage().generation == generation
    server_bucket.delete("p/dump/x.notes")
    refreshed(catalogue, server_bucket)
    assert keys(catalogue) == ["p/dump/ä b+c.vma"]
