"""Range reads: as a file, of one version, within bounds of memory and time."""

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugin.range_reader import BLOCK_BYTES, ReadPool
from s3core.errors import NotFound, PreconditionFailed, Unavailable
from s3core.memory_bucket import MemoryBucket
from tests.plugin.upload.world import noise

SIZE = 40 * BLOCK_BYTES + 123
DATA = noise(SIZE)


class Watched(MemoryBucket):
    """Remembers ranges; waits for `go`, fails the next `failures`."""

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []
        self.go = threading.Event()
        self.go.set()
        self.failures = 0

    def get(self, key: str, *, offset: int = 0, length: int = -1, **options: object) -> bytes:
        self.go.wait(30)
        self.ranges.append((offset, length))
        if self.failures:
            self.failures -= 1
            raise Unavailable("no answer")
        return super().get(key, offset=offset, length=length, **options)  # type: ignore[arg-type]  # handed on


def watched() -> Watched:
    bucket = Watched()
    bucket.put("a", DATA)
    return bucket


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SIZE + 10), st.integers(0, 3 * BLOCK_BYTES)), max_size=12))
def test_it_reads_as_a_file(ranges: list[tuple[int, int]]) -> None:
    pool = ReadPool(watched(), cache_bytes=20 * BLOCK_BYTES)
    reader = pool.open("a")
    for offset, length in ranges:
        assert reader.read(offset, length) == DATA[offset : offset + length]
    reader.close()
    assert pool.kept_bytes == 0
    pool.close()


@pytest.mark.parametrize("step", [4096 * 25, 128 << 10, BLOCK_BYTES, 3 * BLOCK_BYTES + 1])
def test_reading_on_asks_for_each_byte_once_and_in_large_pieces(step: int) -> None:
    bucket = watched()
    pool = ReadPool(bucket, cache_bytes=32 * BLOCK_BYTES)
    reader = pool.open("a")
    read = bytearray()
    while piece := reader.read(len(read), step):
        read += piece
        assert pool.kept_bytes <= 32 * BLOCK_BYTES
    assert read == DATA
    asked = sorted(bucket.ranges)
    assert sum(length for _, length in asked) == SIZE
    assert len(asked) <= 16
    pool.close()


def test_a_read_elsewhere_asks_for_one_block() -> None:
    bucket = watched()
    pool = ReadPool(bucket)
    reader = pool.open("a")
    for block in (7, 30, 12):
        assert reader.read(block * BLOCK_BYTES + 5, 10) == DATA[block * BLOCK_BYTES + 5 :][:10]
    assert sorted(bucket.ranges) == [(block * BLOCK_BYTES, BLOCK_BYTES) for block in (7, 12, 30)]
    pool.close()


def test_a_changed_object_is_an_error() -> None:
    bucket = watched()
    pool = ReadPool(bucket)
    reader = pool.open("a")
    assert reader.read(0, 5) == DATA[:5]
    bucket.put("a", noise(SIZE, 2))
    with pytest.raises(PreconditionFailed):
        reader.read(20 * BLOCK_BYTES, 5)
    assert pool.open("a").read(20 * BLOCK_BYTES, 5) == noise(SIZE, 2)[20 * BLOCK_BYTES :][:5]
    bucket.delete("a")
    with pytest.raises(NotFound):
        reader.read(21 * BLOCK_BYTES, 5)
    with pytest.raises(NotFound):
        pool.open("a")
    pool.close()


def test_a_failed_read_is_tried_again_by_the_next() -> None:
    bucket = watched()
    pool = ReadPool(bucket)
    reader = pool.open("a")
    bucket.failures = 1
    with pytest.raises(Unavailable):
        reader.read(0, 5)
    assert reader.read(0, 5) == DATA[:5]
    assert pool.kept_bytes == BLOCK_BYTES
    # What was read ahead and failed is asked for again by who wants it.
    reader.read(5, BLOCK_BYTES)
    bucket.failures = 100
    reader.read(BLOCK_BYTES, BLOCK_BYTES)
    deadline = time.monotonic() + 20
    while bucket.failures == 100 and time.monotonic() < deadline:
        time.sleep(0.01)
    bucket.failures = 0
    assert reader.read(2 * BLOCK_BYTES, 9 * BLOCK_BYTES) == DATA[2 * BLOCK_BYTES :][: 9 * BLOCK_BYTES]
    pool.close()


def test_a_hung_store_is_waited_for_so_long_and_no_longer() -> None:
    bucket = watched()
    pool = ReadPool(bucket, wait_s=0.2)
    reader = pool.open("a")
    bucket.go.clear()
    with pytest.raises(Unavailable, match=r"within 0\.2 s"):
        reader.read(0, 5)
    bucket.go.set()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            assert reader.read(0, 5) == DATA[:5]
            break
        except Unavailable:
            continue
    assert len(bucket.ranges) == 1
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.read(0, 1)
    pool.close()


def test_many_readers_share_one_bound() -> None:
    bucket = watched()
    pool = ReadPool(bucket, cache_bytes=24 * BLOCK_BYTES)
    wrong: list[int] = []

    def read_all() -> None:
        reader = pool.open("a")
        for offset in range(0, SIZE, BLOCK_BYTES // 2):
            if reader.read(offset, BLOCK_BYTES // 2) != DATA[offset : offset + BLOCK_BYTES // 2]:
                wrong.append(offset)
            # Who waits for a block may have it beyond the bound.
            assert pool.kept_bytes <= (24 + 4 * 8) * BLOCK_BYTES
        reader.close()

    threads = [threading.Thread(target=read_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert pool.kept_bytes == 0
    pool.close()
