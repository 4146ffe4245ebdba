"""Files: resumed after a crash with what S3 has, never with bytes of another file."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cowsync.sealing.format import HEADER, decode_header
from cowsync.sealing.keys import Keyring
from plugin.errors import Refused
from plugin.upload.context import MIB
from plugin.upload.journal import Journal, Record, SentPart
from plugin.upload.plan import plan_known, plan_stream
from s3core.digests import Digests
from s3core.errors import Denied
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

KEY = f"{PREFIX}dump/x.vma"
SIZE = 5 * PART + 9
BOTH = pytest.mark.parametrize("keyring", [None, KEYRING], ids=["plain", "sealed"])


class Stopping(MemoryBucket):
    """Refuses every part after the first `parts`; counts those that came. `before` sees each part's number."""

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.came: list[int] = []
        self.before: Callable[[int], None] = lambda number: None

    def upload_part(self, key: str, upload_id: str, number: int, *args: object, **options: object) -> str:
        self.before(number)
        if len(self.came) >= self.parts:
            raise Denied("not now", key=key)
        self.came.append(number)
        return super().upload_part(key, upload_id, number, *args, **options)  # type: ignore[arg-type]  # handed on


def made(directory: Path, size: int = SIZE) -> Path:
    path = directory / "source"
    path.write_bytes(noise(size))
    return path


@BOTH
@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, SIZE])
def test_the_object_is_the_file(tmp_path: Path, size: int, keyring: Keyring | None) -> None:
    bucket, path, told = MemoryBucket(), made(tmp_path, size), []
    sending = uploader(bucket, tmp_path / "uploads", keyring=keyring)
    done = sending.file(path, KEY, progress=lambda *one: told.append(one))
    assert (done.plain_bytes, done.proof) == (size, "etag")
    assert (opened(bucket) if keyring else bucket).get(KEY) == noise(size)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    sending.close()
    assert not journals_left(tmp_path / "uploads")


@BOTH
def test_it_goes_on_with_what_s3_has(tmp_path: Path, keyring: Keyring | None) -> None:
    bucket, path = Stopping(3), made(tmp_path)
    with pytest.raises(Denied):
        uploader(bucket, tmp_path / "uploads", keyring=keyring).file(path, KEY)
    assert len(journals_left(tmp_path / "uploads")) == 1
    assert not bucket.list_page().keys
    first, bucket.came, bucket.parts = set(bucket.came), [], 100
    sending = uploader(bucket, tmp_path / "uploads", keyring=keyring)
    assert sending.clean_up() == []  # a file's upload is kept for this
    sending.file(path, KEY)
    assert len(first) == 3
    assert set(bucket.came) == set(range(1, 7)) - first
    assert (opened(bucket) if keyring else bucket).get(KEY) == noise(SIZE)
    assert not journals_left(tmp_path / "uploads")
    assert not uploads_left(bucket)


def test_parts_that_the_journal_did_not_come_to_note_are_known_by_their_bytes(tmp_path: Path) -> None:
    bucket, path = Stopping(3), made(tmp_path)
    with pytest.raises(Denied):
        uploader(bucket, tmp_path / "uploads").file(path, KEY)
    journal = next((tmp_path / "uploads").glob("*.journal"))
    lines = journal.read_bytes().splitlines(keepends=True)
    assert sum(b'"part"' in line for line in lines) == 3
    journal.write_bytes(b"".join(line for line in lines if b'"part"' not in line) + b'{"part":1,"si')
    first, bucket.came, bucket.parts = set(bucket.came), [], 100
    uploader(bucket, tmp_path / "uploads").file(path, KEY)
    assert set(bucket.came) == set(range(1, 7)) - first
    assert bucket.get(KEY) == noise(SIZE)


@BOTH
def test_another_file_by_now_begins_again_and_the_old_upload_is_cleaned_up(
    tmp_path: Path, keyring: Keyring | None
) -> None:
    bucket, path = Stopping(3), made(tmp_path)
    with pytest.raises(Denied):
        uploader(bucket, tmp_path / "uploads", keyring=keyring).file(path, KEY)
    path.write_bytes(noise(SIZE, 2))
    bucket.parts = 100
    sending = uploader(bucket, tmp_path / "uploads", keyring=keyring)
    sending.file(path, KEY)
    assert (opened(bucket) if keyring else bucket).get(KEY) == noise(SIZE, 2)
    assert uploads_left(bucket) == [KEY]
    assert sending.clean_up() == [KEY]
    assert not uploads_left(bucket)


def test_other_bytes_are_never_sealed_with_the_same_salt(tmp_path: Path) -> None:
    """Size, time and inode are those of the file that was, and the bytes are not."""
    bucket, path = Stopping(3), made(tmp_path)
    with pytest.raises(Denied):
        uploader(bucket, tmp_path / "uploads", keyring=KEYRING).file(path, KEY)
    journal = next((tmp_path / "uploads").glob("*.journal")).read_text()
    found = path.stat()
    with path.open("r+b") as file:
        file.write(noise(SIZE, 2))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    bucket.parts = 100
    sending = uploader(bucket, tmp_path / "uploads", keyring=KEYRING)
    sending.file(path, KEY)
    sending.close()
    assert '"salt"' in journal
    assert opened(bucket).get(KEY) == noise(SIZE, 2)
    assert decode_header(bucket.get(KEY, length=HEADER.size)).salt.hex() not in journal
    assert not uploads_left(bucket)
    assert not journals_left(tmp_path / "uploads")


def test_a_file_that_changes_meanwhile_becomes_no_object(tmp_path: Path) -> None:
    bucket, path = Stopping(100), made(tmp_path)

    def change(number: int) -> None:
        if number == 2:
            with path.open("r+b") as file:
                file.seek(4 * PART)
                file.write(b"changed")

    bucket.before = change
    sending = uploader(bucket, tmp_path / "uploads")
    with pytest.raises(Refused, match="changed while it was sent"):
        sending.file(path, KEY)
    sending.close()
    assert not bucket.list_page().keys
    assert not uploads_left(bucket)


def test_what_dead_streams_left_is_aborted_and_living_ones_go_on(tmp_path: Path) -> None:
    bucket, directory = MemoryBucket(), tmp_path
    upload_id = bucket.begin_upload(KEY)
    dead = Journal.create(directory, Record("dead", KEY, plan_known(SIZE, PART), 1.0))
    dead.begun(upload_id)
    dead.sent(SentPart(1, PART, bucket.upload_part(KEY, upload_id, 1, noise(PART)), Digests()))
    Journal.create(directory, Record("before", KEY, plan_known(SIZE, PART), 1.0)).close()
    (directory / "torn.journal").write_bytes(b'{"journal":1,"tok')
    os.utime(directory / "torn.journal", (1, 1))
    sending = uploader(bucket, directory)
    living = sending.stream(KEY)
    living.write(noise(2 * PART))
    assert sending.clean_up() == [KEY]
    assert uploads_left(bucket)[:1] == [KEY]
    dead.close()
    assert sending.clean_up() == [KEY]
    assert living.finish().plain_bytes == 2 * PART
    assert not uploads_left(bucket)
    sending.close()
    assert journals_left(directory) == []


def test_a_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = Record("t", KEY, plan_known(SIZE, 16 * MIB), 5.0)
    journal = Journal.create(tmp_path, record)
    journal.begun("id")
    journal.sending(1, "aa")
    journal.sent(SentPart(1, 7, "etag", Digests(b"1", b"2", b"3")))
    journal.completing()
    assert Journal.take(tmp_path / "t.journal") is None, "it is locked"
    journal.close()
    again = Journal.take(tmp_path / "t.journal")
    assert again is not None
    assert again.record == record
    again.remove()
    assert Journal.take(tmp_path / "t.journal") is None


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 400))
def test_a_damaged_journal_says_nothing_or_less(
    tmp_path_factory: pytest.TempPathFactory, noise_of_disk: bytes, at: int, upto: int
) -> None:
    """Parses, or is nobody's; never an error that would stop the clean-up of others."""
    directory = tmp_path_factory.mktemp("journals")
    journal = Journal.create(directory, Record("t", KEY, plan_known(SIZE, PART), 5.0))
    journal.begun("id")
    journal.sent(SentPart(1, 7, "etag", Digests(b"1")))
    journal.close()
    path = directory / "t.journal"
    data = path.read_bytes()
    path.write_bytes(data[:at] + noise_of_disk + data[max(at, upto) :])
    again = Journal.take(path)
    if again is not None:
        assert isinstance(again.record.upload_id, str)
        again.close()


@pytest.mark.parametrize("others", [0, 1])
def test_an_upload_whose_beginning_was_not_heard_is_aborted_where_it_is_the_only_one(
    tmp_path: Path, others: int
) -> None:
    """The process died between the server's answer and its own note of it."""
    bucket, place = MemoryBucket(), tmp_path / "uploads"
    sending = uploader(bucket, place)
    Journal.create(place, Record("0" * 32, KEY, plan_stream(PART, 2 * PART), time.time())).close()
    for _ in range(1 + others):
        bucket.begin_upload(KEY)
    bucket.begin_upload(f"{KEY}.other")
    assert sending.clean_up() == [KEY]
    left = uploads_left(bucket)
    assert left == ([f"{KEY}.other"] if not others else [KEY, KEY, f"{KEY}.other"])
    assert not journals_left(place)
    sending.close()
