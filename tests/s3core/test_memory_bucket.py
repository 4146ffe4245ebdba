"""What the bucket in memory does beyond the suite: histories, suspended versions, counts, the clock, and a model."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from s3core.bucket import Attributes, Bucket, CopySource
from s3core.conformance import refused
from s3core.errors import NotFound, StoreError
from s3core.memory_bucket import MemoryBucket, MemoryService
from tests.s3core.fakes import FakeClock


def test_it_is_a_bucket() -> None:
    assert isinstance(MemoryBucket(), Bucket)


def test_objects_from_before_versions_are_called_null() -> None:
    bucket = MemoryBucket()
    assert bucket.put("k", b"1").version_id == ""
    bucket.set_versioning("Enabled")
    second = bucket.put("k", b"2").version_id
    assert [version.version_id for version in bucket.list_versions().versions] == [second, "null"]
    assert bucket.get("k", version_id="null") == b"1"
    bucket.set_versioning("Suspended")
    assert not bucket.properties.versioned
    assert bucket.put("k", b"3").version_id == "null"
    assert [version.version_id for version in bucket.list_versions().versions] == ["null", second]
    assert bucket.delete("k") == "null"
    assert [version.delete_marker for version in bucket.list_versions().versions] == [True, False]
    bucket.delete_version("k", "null")
    assert bucket.get("k") == b"2"
    bucket.delete_version("k", second)
    assert (bucket.contents(), bucket.list_versions().versions) == ({}, [])
    with refused(ValueError):
        bucket.set_versioning("")


def test_requests_and_bytes_are_counted() -> None:
    service = MemoryService()
    here, there = service.bucket("here"), service.bucket("there")
    here.put("k", b"12345")
    here.get("k", offset=1, length=2)
    there.copy(CopySource("here", "k"), "k")
    with refused(NotFound):
        here.head("missing")
    assert here.requests == {"put": 1, "get": 1, "head": 1}
    assert (here.bytes_up, here.bytes_down, there.bytes_copied) == (5, 2, 5)
    assert there.requests == {"copy": 1}
    assert service.bucket("here") is here


def test_times_are_whole_seconds_of_the_clock() -> None:
    clock = FakeClock()
    bucket = MemoryBucket(clock=clock)
    bucket.put("k", b"1")
    assert bucket.head("k").modified == int(clock.time())
    assert bucket.list_page().modified[0].endswith(b".000Z")


def test_what_one_request_copies_is_limited_and_a_copy_must_change_something() -> None:
    bucket = MemoryService(copy_bytes_max=4).bucket("b")
    bucket.put("large", b"12345")
    bucket.put("small", b"1234")
    for source in ("large", "small"):
        with refused(StoreError):
            bucket.copy(CopySource("b", source), source)
    bucket.copy(CopySource("b", "small"), "small", attributes=Attributes(metadata={"a": "b"}))
    assert bucket.contents() == {"large": b"12345", "small": b"1234"}


def test_unfinished_uploads_are_known() -> None:
    bucket = MemoryBucket()
    upload = bucket.begin_upload("k")
    assert bucket.uploads() == {upload: "k"}
    bucket.abort_upload("k", upload)
    assert bucket.uploads() == {}


some_keys = st.sampled_from(["a", "a/", "a/1", "a/b/1", "a/b/2", "a0", "b", "/", "/x", "\u00e4"])


@given(st.sets(some_keys), st.sampled_from(["", "a", "a/", "/"]), some_keys, st.integers(1, 4))
def test_pages_by_token_are_the_listing_cut(keys: set[str], prefix: str, after: str, max_keys: int) -> None:
    bucket = MemoryBucket()
    for key in keys:
        bucket.put(key, b"")
    whole = bucket.list_page(prefix=prefix, start_after=after, delimiter="/")
    assert not whole.truncated
    rows: list[bytes] = []
    token = ""
    while True:
        page = bucket.list_page(prefix=prefix, start_after=after, delimiter="/", max_keys=max_keys, token=token)
        rows += sorted(page.keys + page.prefixes)
        token = page.token
        if not token:
            break
    assert rows == sorted(whole.keys + whole.prefixes)
    below = sorted(key for key in keys if key.startswith(prefix) and key > after)
    expected = {key[: key.index("/", len(prefix)) + 1] if "/" in key[len(prefix) :] else key for key in below}
    assert rows == sorted(name.encode() for name in expected)


@given(st.lists(st.tuples(some_keys, st.sampled_from(["put", "delete", "copy"])), max_size=30), st.booleans())
def test_histories_agree_with_a_dictionary(steps: Sequence[tuple[str, str]], versioned: bool) -> None:
    bucket = MemoryBucket(versioned=versioned)
    model: dict[str, bytes] = {}
    for number, (key, step) in enumerate(steps):
        if step == "put":
            bucket.put(key, b"%d" % number)
            model[key] = b"%d" % number
        elif step == "delete":
            bucket.delete(key)
            model.pop(key, None)
        elif key in model:
            bucket.copy(CopySource("bucket", key), "copy of " + key)
            model["copy of " + key] = model[key]
    assert bucket.contents() == dict(sorted(model.items()))
    listed = bucket.list_versions()
    current = [version.key for version in listed.versions if version.latest and not version.delete_marker]
    assert current == sorted(model)
    assert [version.key for version in listed.versions] == sorted(version.key for version in listed.versions)
