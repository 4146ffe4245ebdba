"""Downloads: the file is the object, or it is not there under its name; what came is not fetched again."""

from pathlib import Path

import pytest

from cowsync.sealing.format import NotOpened
from plugin.download import PIECE_BYTES, Stopped, download
from plugin.upload.context import MIB
from s3core.bucket import Attributes
from s3core.errors import Corrupt, NotFound, PreconditionFailed, Unavailable
from s3core.memory_bucket import MemoryBucket
from tests.plugin.upload.world import KEYRING, PREFIX, noise, opened, uploader

KEY = f"{PREFIX}template/iso/x.iso"
SIZE = 3 * PIECE_BYTES + 5


class Counting(MemoryBucket):
    """Reads that were answered, by offset; fails from `fails_after` on, and gives wrong bytes where `damaged`."""

    def __init__(self) -> None:
        super().__init__()
        self.offsets: list[int] = []
        self.fails_after = 1 << 60
        self.damaged = False

    def get(self, key: str, *, offset: int = 0, length: int = -1, **options: object) -> bytes:
        if len(self.offsets) >= self.fails_after:
            raise Unavailable("gone")
        self.offsets.append(offset)
        data = super().get(key, offset=offset, length=length, **options)  # type: ignore[arg-type]  # handed on
        return bytes([data[0] ^ 1]) + data[1:] if self.damaged and data else data


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, SIZE])
def test_the_file_is_the_object(tmp_path: Path, size: int) -> None:
    bucket, data = MemoryBucket(), noise(size)
    bucket.put(KEY, data)
    told: list[tuple[int, int]] = []
    done = download(bucket, KEY, tmp_path / "x.iso", progress=lambda *one: told.append(one))
    assert (tmp_path / "x.iso").read_bytes() == data
    assert (done.proof, done.facts.size) == ("etag", size)
    assert told[-1] == (size, size)
    assert names(tmp_path) == ["x.iso"]


def test_what_we_uploaded_is_proved_part_by_part(tmp_path: Path) -> None:
    bucket, data = MemoryBucket(), noise(SIZE)
    sending = uploader(bucket, tmp_path / "uploads")
    stream = sending.stream(KEY)
    stream.write(data)
    stream.finish()
    assert download(bucket, KEY, tmp_path / "a").proof == "etag"
    sealing = uploader(bucket, tmp_path / "uploads", keyring=KEYRING)
    stream = sealing.stream(KEY)
    stream.write(data)
    stream.finish()
    assert download(opened(bucket), KEY, tmp_path / "b").proof == "sealed"
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == data
    sending.close()
    sealing.close()


def test_parts_of_another_program_are_guessed(tmp_path: Path) -> None:
    bucket, data = MemoryBucket(), noise(SIZE)
    upload = bucket.begin_upload(KEY)
    cut = [data[at : at + 8 * MIB] for at in range(0, SIZE, 8 * MIB)]
    bucket.complete_upload(
        KEY, upload, [(n, bucket.upload_part(KEY, upload, n, part)) for n, part in enumerate(cut, 1)]
    )
    assert download(bucket, KEY, tmp_path / "a").proof == "etag"
    upload = bucket.begin_upload(KEY)
    cut = [data[: 6 * MIB], data[6 * MIB : 20 * MIB], data[20 * MIB :]]
    bucket.complete_upload(
        KEY, upload, [(n, bucket.upload_part(KEY, upload, n, part)) for n, part in enumerate(cut, 1)]
    )
    assert download(bucket, KEY, tmp_path / "a").proof == "size"
    assert (tmp_path / "a").read_bytes() == data


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    bucket, data = Counting(), noise(SIZE)
    bucket.put(KEY, data)
    bucket.fails_after = 2
    with pytest.raises(Unavailable):
        download(bucket, KEY, tmp_path / "x", parallel=1)
    assert names(tmp_path) == [".x.partial", ".x.partial.pieces"]
    # The power went in the middle of a line.
    with (tmp_path / ".x.partial.pieces").open("ab") as listed:
        listed.write(b'{"at":3,"crc3')
    bucket.fails_after, bucket.offsets = 1, []
    with pytest.raises(Unavailable):
        download(bucket, KEY, tmp_path / "x", parallel=1)
    bucket.fails_after, bucket.offsets = 100, []
    download(bucket, KEY, tmp_path / "x")
    assert bucket.offsets == [3 * PIECE_BYTES]
    assert (tmp_path / "x").read_bytes() == data
    assert names(tmp_path) == ["x"]


def test_bytes_that_a_power_failure_took_are_fetched_again(tmp_path: Path) -> None:
    bucket, data = Counting(), noise(SIZE)
    bucket.put(KEY, data)
    bucket.fails_after = 3
    with pytest.raises(Unavailable):
        download(bucket, KEY, tmp_path / "x", parallel=1)
    with (tmp_path / ".x.partial").open("r+b") as partial:
        partial.seek(PIECE_BYTES + 7)
        partial.write(bytes(100))
    bucket.fails_after, bucket.offsets = 100, []
    download(bucket, KEY, tmp_path / "x", parallel=1)
    assert bucket.offsets == [PIECE_BYTES, 3 * PIECE_BYTES]
    assert (tmp_path / "x").read_bytes() == data


def test_another_object_by_now_begins_again(tmp_path: Path) -> None:
    bucket = Counting()
    bucket.put(KEY, noise(SIZE, 1))
    facts = bucket.head(KEY)
    bucket.put(KEY, noise(SIZE, 2))
    with pytest.raises(PreconditionFailed):
        download(bucket, KEY, tmp_path / "x", facts=facts)
    assert names(tmp_path) == []
    bucket.fails_after = 1
    with pytest.raises(Unavailable):
        download(bucket, KEY, tmp_path / "x", parallel=1)
    bucket.put(KEY, noise(SIZE - 1, 3))
    bucket.fails_after = 100
    download(bucket, KEY, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == noise(SIZE - 1, 3)


def test_wrong_bytes_are_never_there_under_the_name(tmp_path: Path) -> None:
    bucket = Counting()
    bucket.put(KEY, noise(SIZE))
    (tmp_path / "x").write_bytes(b"old")
    bucket.damaged = True
    with pytest.raises(Corrupt, match="not those of the object"):
        download(bucket, KEY, tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"
    sending = uploader(bucket, tmp_path / "uploads", keyring=KEYRING)
    sending.put(KEY, noise(SIZE))
    with pytest.raises(NotOpened):
        download(opened(bucket), KEY, tmp_path / "y")
    sending.close()


def test_it_stops_when_nobody_wants_it(tmp_path: Path) -> None:
    bucket = MemoryBucket()
    bucket.put(KEY, noise(SIZE), attributes=Attributes())
    with pytest.raises(Stopped):
        download(bucket, KEY, tmp_path / "x", stop=lambda: True)
    with pytest.raises(NotFound):
        download(bucket, f"{KEY}2", tmp_path / "x")
    assert not (tmp_path / "x").exists()
