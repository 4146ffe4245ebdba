"""Streams: what is written is the object, or there is none."""

import errno
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.sealing.keys import Keyring
from plugin.upload.context import MIB, PARTS, TOKEN
from plugin.upload.plan import PartPlan
from plugin.upload.sealing import plain_bytes
from plugin.upload.stream import CannotRewind, StreamingUpload
from plugin.upload.uploader import UploadSettings
from s3core.bucket import Attributes
from s3core.content import LazyBody
from s3core.errors import NotFound, StoreError, Unavailable
from s3core.memory_bucket import MemoryBucket
from tests.plugin.upload.world import (
    KEYRING,
    PART,
    PREFIX,
    journals_left,
    noise,
    opened,
    uploader,
    uploads_left,
)

KEY = f"{PREFIX}dump/vzdump-qemu-100-2026_11_22-10_05_08.vma.zst"
SIZES = (0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 77)


def write_all(stream: StreamingUpload, data: bytes, step: int = MIB) -> None:
    for at in range(0, len(data), step):
        assert stream.write(memoryview(data)[at : at + step]) == len(data[at : at + step])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("keyring", [None, KEYRING], ids=["plain", "sealed"])
def test_what_was_written_is_the_object(tmp_path: Path, size: int, keyring: Keyring | None) -> None:
    bucket, data = MemoryBucket(), noise(size)
    sending = uploader(bucket, tmp_path, keyring=keyring)
    stream = sending.stream(KEY, attributes=Attributes({}, {"who": "me"}))
    write_all(stream, data, 700_001)
    assert not bucket.list_page().keys
    done = stream.finish()
    assert (done.key, done.plain_bytes, done.proof) == (KEY, size, "etag")
    facts = bucket.head(KEY)
    assert (facts.size, facts.etag) == (done.size, done.etag)
    assert facts.attributes.metadata["who"] == "me"
    assert facts.attributes.metadata[TOKEN]
    reading = bucket if keyring is None else opened(bucket)
    assert reading.get(KEY) == data
    if keyring is not None:
        assert plain_bytes(KEY.removeprefix(PREFIX), facts.size, keyring.frame_shift) == size
    sending.close()
    assert not journals_left(tmp_path)
    assert not uploads_left(bucket)


def test_parts_are_cut_as_the_plan_kept_with_the_object_says(tmp_path: Path) -> None:
    bucket = MemoryBucket()
    sending = uploader(bucket, tmp_path, keyring=KEYRING)
    stream = sending.stream(KEY)
    write_all(stream, noise(4 * PART))
    done = stream.finish()
    plan = PartPlan.parse(bucket.head(KEY).attributes.metadata[PARTS])
    assert plan is not None
    assert bucket.head(KEY, part_number=1).size == plan.size(1) == PART
    assert bucket.head(KEY, part_number=1).parts == len(list(plan.cut(done.size)))
    sending.close()


def test_the_key_is_asked_for_with_the_first_bytes(tmp_path: Path) -> None:
    bucket, heads = MemoryBucket(), []

    def choose(head: bytes) -> str:
        heads.append(head)
        return KEY

    sending = uploader(bucket, tmp_path)
    stream = sending.stream(choose)
    data = noise(2 * PART + 1)
    write_all(stream, data)
    assert stream.key == KEY
    stream.finish()
    assert heads == [data[: 64 << 10]]
    small = sending.stream(choose)
    small.write(b"abc")
    assert small.key == ""
    assert small.finish().key == KEY
    assert bucket.get(KEY) == heads[-1] == b"abc"
    sending.close()


@pytest.mark.parametrize("size", [3, 2 * PART + 5])
def test_it_is_finished_under_another_key(tmp_path: Path, size: int) -> None:
    bucket, data = MemoryBucket(), noise(size)
    sending = uploader(bucket, tmp_path)
    stream = sending.stream(f"{PREFIX}.bucketworks/unsure")
    write_all(stream, data)
    done = stream.finish(KEY)
    assert (done.key, bucket.list_page().keys) == (KEY, [KEY.encode()])
    assert bucket.get(KEY) == data
    sending.close()
    assert not journals_left(tmp_path)


def test_what_lies_under_its_first_key_is_not_lost_on_the_way_to_another(tmp_path: Path) -> None:
    bucket, data = MemoryBucket(), noise(2 * PART + 5)
    sending = uploader(bucket, tmp_path)
    first = f"{PREFIX}template/iso/a.iso"
    bucket.put(first, b"another")
    stream = sending.stream(first)
    write_all(stream, data)
    with pytest.raises(CannotRewind, match="where another object lies"):
        stream.finish(KEY)
    assert bucket.get(first) == b"another"
    bucket.delete(first)
    assert stream.finish(KEY).key == KEY
    assert bucket.get(KEY) == data
    sending.close()


def test_a_sealed_one_is_not_finished_under_another_key_once_it_began_to_leave(tmp_path: Path) -> None:
    bucket, data = MemoryBucket(), noise(2 * PART)
    sending = uploader(bucket, tmp_path, keyring=KEYRING)
    stream = sending.stream(f"{PREFIX}dump/x.vma")
    stream.write(data)
    with pytest.raises(CannotRewind, match="sealed with the bytes"):
        stream.finish(KEY)
    assert not bucket.list_page().keys
    assert stream.finish().plain_bytes == len(data)
    sending.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["append", "at", "cut", "read"]), st.integers(0, 3 * PART), st.integers(0, 2 * PART // 3)
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_it_is_a_file_as_far_as_it_says_yes(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], sealed: bool
) -> None:
    """Against a bytearray."""
    bucket, model = MemoryBucket(), bytearray()
    sending = uploader(bucket, tmp_path_factory.mktemp("uploads"), keyring=KEYRING if sealed else None)
    stream = sending.stream(KEY)
    for seed, (step, offset, length) in enumerate(steps):
        data, sent = noise(length, seed), stream.sent
        try:
            if step == "append":
                stream.write(data)
                model += data
            elif step == "at":
                stream.write_at(offset, data)
                model += bytes(max(0, offset - len(model)))
                model[offset : offset + length] = data
            elif step == "cut":
                stream.truncate(offset)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            else:
                assert stream.read_at(offset, length) == model[offset : offset + length]
        except CannotRewind:
            assert offset <= sent
        assert stream.size == len(model)
        assert model.startswith(stream.head)
    stream.finish()
    assert (opened(bucket) if sealed else bucket).get(KEY) == model
    sending.close()


def test_a_size_that_is_stated_first_is_filled_from_the_front(tmp_path: Path) -> None:
    """As qemu-img writes a raw image."""
    bucket, data = MemoryBucket(), noise(3 * PART)
    sending = uploader(bucket, tmp_path)
    stream = sending.stream(KEY)
    stream.truncate(4 * PART)
    assert (stream.size, stream.read_at(2 * PART, 10)) == (4 * PART, bytes(10))
    for at in range(0, 3 * PART, MIB):
        stream.write_at(at, data[at : at + MIB])
    assert stream.read_at(3 * PART - 3, 6) == data[-3:] + bytes(3)
    stream.finish()
    assert bucket.get(KEY) == data + bytes(PART)
    sending.close()


def test_what_no_object_can_hold_is_refused_before_it_is_written(tmp_path: Path) -> None:
    bucket = MemoryBucket()
    sending = uploader(bucket, tmp_path)
    stream = sending.stream(KEY)
    with pytest.raises(StoreError, match="do not fit 10,000 parts"):
        stream.truncate(6 << 40)
    with pytest.raises(StoreError, match="larger"):
        sending.stream(KEY).truncate(1 << 40)  # parts of half the spool, 12.5 MiB here, come to less
    stream.write(b"x")
    assert stream.finish().size == 1
    sending.close()


def test_going_back_beyond_what_left_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    bucket, data = MemoryBucket(), bytearray(noise(2 * PART + 10))
    sending = uploader(bucket, tmp_path)
    stream = sending.stream(KEY)
    stream.write(data)
    assert stream.sent == 2 * PART
    with pytest.raises(CannotRewind, match=r"cannot write at offset 0: the first 10,485,760 bytes"):
        stream.write_at(0, b"x")
    with pytest.raises(CannotRewind, match="cut"):
        stream.truncate(5)
    assert stream.read_at(0, 5) == data[:5]
    stream.write_at(2 * PART, b"over")
    data[2 * PART : 2 * PART + 4] = b"over"
    stream.finish()
    assert bucket.get(KEY) == data
    sending.close()


class Hung(MemoryBucket):
    """Parts are not answered until `go`."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()
        self.sizes: list[int] = []

    def upload_part(self, *args: object, **options: object) -> str:
        self.go.wait(60)
        return super().upload_part(*args, **options)  # type: ignore[arg-type]  # handed on


def test_a_hung_store_blocks_the_writer_until_its_deadline(tmp_path: Path) -> None:
    bucket = Hung()
    quick = UploadSettings(
        part_bytes=PART, uploads=2, memory_bytes=10 * MIB, spool_bytes=10 * MIB, patience_s=1, verify_s=1
    )
    sending = uploader(bucket, tmp_path, quick)
    stream = sending.stream(KEY)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="for 1 s the store took nothing"):
        write_all(stream, noise(6 * PART))
    assert time.monotonic() - began >= 1
    assert sending.spooled == (10 * MIB, 10 * MIB)
    stream.abort()
    bucket.go.set()
    sending.close()
    assert sending.spooled == (0, 0)
    assert not uploads_left(bucket)
    assert not journals_left(tmp_path)
    assert not bucket.list_page().keys


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_below_the_spool_ends_the_upload_and_nothing_else(small_disk: Path) -> None:
    """The store stalls, so parts go to a disk that has less room than was promised. Whoever writes hears of it."""
    bucket = Hung()
    sending = uploader(
        bucket, small_disk, UploadSettings(part_bytes=PART, uploads=1, memory_bytes=10 * MIB, spool_bytes=100 * MIB)
    )
    stream = sending.stream(KEY)
    with pytest.raises(OSError, match="No space left") as full:
        write_all(stream, noise(10 * PART))
    assert full.value.errno == errno.ENOSPC
    stream.abort()
    bucket.go.set()
    while sending.spooled != (0, 0):
        time.sleep(0.01)
    other = sending.stream(f"{PREFIX}dump/other.vma")
    other.write(noise(2 * PART))
    other.finish()
    sending.close()
    assert sending.spooled == (0, 0)
    assert bucket.list_page().keys == [f"{PREFIX}dump/other.vma".encode()]
    assert not uploads_left(bucket)
    assert not journals_left(small_disk)


class Slow(MemoryBucket):
    """Takes half a second for each MiB of a part."""

    def upload_part(self, key: str, upload_id: str, number: int, data: object, **options: object) -> str:
        assert isinstance(data, LazyBody)
        for _ in data:
            time.sleep(0.5)
        return super().upload_part(key, upload_id, number, data, **options)  # type: ignore[arg-type]  # handed on


@pytest.mark.slow
def test_a_store_that_is_slow_and_takes_something_is_waited_for(tmp_path: Path) -> None:
    """Each part takes longer than nothing may move."""
    bucket = Slow()
    calm = UploadSettings(part_bytes=PART, uploads=1, memory_bytes=10 * MIB, spool_bytes=0, patience_s=2, verify_s=0.1)
    sending = uploader(bucket, tmp_path, calm)
    stream = sending.stream(KEY)
    write_all(stream, noise(3 * PART))
    stream.finish()
    assert bucket.get(KEY) == noise(3 * PART)
    sending.close()


def test_abort_while_the_writer_waits_ends_the_write(tmp_path: Path) -> None:
    bucket = Hung()
    sending = uploader(bucket, tmp_path)
    stream, heard = sending.stream(KEY), []

    def write() -> None:
        try:
            write_all(stream, noise(20 * PART))
        except StoreError as error:
            heard.append(str(error))

    writer = threading.Thread(target=write)
    writer.start()
    while sending.spooled != (15 * MIB, 25 * MIB):
        time.sleep(0.01)
    stream.abort()
    writer.join(20)
    assert heard == ["the upload is over: it was aborted"]
    bucket.go.set()
    sending.close()
    assert not uploads_left(bucket)
    with pytest.raises(NotFound):
        bucket.head(KEY)


def test_nothing_is_left_of_what_was_not_finished(tmp_path: Path) -> None:
    bucket = MemoryBucket()
    sending = uploader(bucket, tmp_path)
    for size in (5, 3 * PART):
        sending.stream(KEY).write(noise(size))
    sending.close()
    assert not uploads_left(bucket)
    assert not bucket.list_page().keys
    assert not journals_left(tmp_path)
