"""What the memory store promises beyond the port: the same run twice, and the hard choice where there is one."""

import time

import pytest

from s3core.errors import NotFound
from s3core.memory import MemoryObjects, MemoryStore
from tests.s3core.fakes import FakeClock


def run() -> list[object]:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    for number in range(20):
        store.put(f"k{number % 7}", b"%d" % number)
        clock.sleep(1)
    store.delete("k3")
    return list(store.list())


def test_the_same_calls_give_the_same_answers() -> None:
    assert run() == run()


def test_modified_is_the_clocks_time() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    store.put("k", b"")
    clock.now += 5
    assert store.head("k").modified == clock.time() - 5
    store.copy("k", "l")
    assert store.head("l").modified == clock.time()


def test_short_parts_are_refused_as_on_s3() -> None:
    store = MemoryStore()
    upload = store.multipart("k")
    upload.part(1, b"short")
    upload.part(2, b"last")
    with pytest.raises(ValueError, match="part 1 has 5 bytes"):
        upload.complete()
    small = MemoryStore(part_bytes_min=1).multipart("k")
    small.part(1, b"short")
    small.part(2, b"last")
    assert small.complete().endswith("-2")


def test_a_missing_object_does_not_match_any_version() -> None:
    with pytest.raises(NotFound):
        MemoryStore().put_if_match("k", b"", "etag")


def test_stores_on_one_bucket_see_each_other_below_their_prefix() -> None:
    bucket = MemoryObjects()
    whole, part = MemoryStore(bucket=bucket), MemoryStore("part/", bucket=bucket)
    part.put("k", b"x")
    whole.put("other", b"")
    assert whole.get("part/k").data == b"x"
    assert [info.key for info in part.list()] == ["k"]


def test_ten_thousand_stores_cost_little() -> None:
    began = time.process_time()
    for _ in range(10_000):
        MemoryStore().put("k", b"")
    assert time.process_time() - began < 2.0
