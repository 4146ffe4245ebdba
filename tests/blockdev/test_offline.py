"""The offline reader: the right content of any commit, or an error that names key and offset; and it only reads."""

import random
from pathlib import Path

import pytest

from blockdev import offline
from blockdev.errors import CorruptFormat, ImageRefused
from blockdev.image import ImageFile
from blockdev.offline import ReadingStore, open_offline
from blockdev.segments import paths
from s3core.errors import NotFound
from s3core.memory import MemoryStore
from tests.blockdev.stored_volume import PATIENT, SIZE_BYTES, Stored, store_volume


class Collected:
    """A sink in memory that checks the order of what it is told."""

    def __init__(self, size_bytes: int = SIZE_BYTES) -> None:
        self.data = bytearray(size_bytes)
        self.last = -1

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert offset > self.last
        self.last = offset
        self.data[offset : offset + len(data)] = data


def read(stored: Stored, commit: int | None = None) -> bytes:
    with open_offline(stored.own, stored.name, commit=commit) as found:
        sink = Collected(found.size_bytes)
        found.copy(sink)
        return bytes(sink.data)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return store_volume(MemoryStore(), tmp_path_factory.mktemp("host"))


def _right_or_refused(stored: Stored, key: str) -> bool:
    """True when reading ended in an error about the object `key`; otherwise all of it was right."""
    try:
        content = read(stored)
    except CorruptFormat as error:
        named = error.what
    else:
        assert content == stored.content
        return False
    assert key in named
    return True


def test_it_has_some_of_everything(stored: Stored) -> None:
    kinds = {key.partition("/")[0] for key in stored.listing()}
    assert kinds == {"vol.json", "head", "log", "ext", "seg", "root", "page"}


def test_the_newest_state(stored: Stored) -> None:
    assert read(stored) == stored.content


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_after_a_crash_the_committed_state(tmp_path: Path, seed: int) -> None:
    left = store_volume(MemoryStore(), tmp_path, seed=seed, detach=False)
    assert read(left) == left.content


def test_every_commit(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path, settings=PATIENT, rounds=6)
    for commit, content in left.history.items():
        assert read(left, commit) == content
    assert read(left, 1) == bytes(SIZE_BYTES)
    newest = max(left.history) + 1  # the record of the detachment
    assert read(left, newest) == left.content
    with pytest.raises(NotFound, match=f"no commit {newest + 1}; the newest is {newest}"):
        read(left, newest + 1)


def test_without_roots_and_head_the_log_is_enough(tmp_path: Path) -> None:
    left = store_volume(MemoryStore(), tmp_path)
    left.own.delete_many([key for key in left.listing() if key.startswith(("root/", "page/", "head"))])
    assert read(left) == left.content


def test_a_large_volume_has_its_map_on_disk(stored: Stored, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(offline, "MEMORY_EXTENTS_MAX", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_offline(stored.own, stored.name) as found:
        sink = Collected()
        found.copy(sink)
        assert list(tmp_path.iterdir())
    assert sink.data == stored.content
    assert not list(tmp_path.iterdir())


def test_a_volume_never_attached_is_zeros(tmp_path: Path) -> None:
    store = MemoryStore()
    left = store_volume(store, tmp_path)
    left.own.delete_many([key for key in left.listing() if key != "vol.json"])
    with open_offline(left.own, left.name) as found:
        assert (found.state, found.mapped_extents, found.root_key) == (None, 0, None)
        found.copy(Collected())
    assert read(left) == bytes(SIZE_BYTES)


def test_no_such_volume() -> None:
    with pytest.raises(NotFound, match="there is no volume vm9"), open_offline(MemoryStore(), "vm9"):
        raise AssertionError("opened")


def test_nothing_is_written(stored: Stored) -> None:
    reading = ReadingStore(stored.own)
    for act in (
        lambda: reading.put("x", b""),
        lambda: reading.put_if_absent("x", b""),
        lambda: reading.put_if_match("x", b"", "e"),
        lambda: reading.delete("vol.json"),
        lambda: reading.delete_many(["vol.json"]),
        lambda: reading.copy("vol.json", "x"),
        lambda: reading.multipart("x"),
    ):
        with pytest.raises(AssertionError, match="was about to"):
            act()
    assert "x" not in stored.listing()


@pytest.mark.parametrize("kind", ["vol.json", "head", "log/", "root/", "page/", "ext/", "seg/"])
def test_a_flipped_byte_is_never_returned(stored: Stored, kind: str) -> None:
    """Any byte of any object: what is read is right, or an error names the object."""
    rng = random.Random(kind)
    refused = 0
    for key in [key for key in stored.listing() if key.startswith(kind)]:
        body = stored.own.get(key).data
        for _ in range(2):
            damaged = bytearray(body)
            damaged[rng.randrange(len(body))] ^= 1 << rng.randrange(8)
            stored.own.put(key, bytes(damaged))
            refused += _right_or_refused(stored, key)
            stored.own.put(key, body)
    # A hint, or a checkpoint: attach goes on without them. A page is read when something in it is wanted; then it is too
    # late to begin at an older root.
    assert bool(refused) == (kind not in ("head", "root/"))


def test_missing_data_is_named_not_invented(stored: Stored) -> None:
    refused = 0
    for key in [key for key in stored.listing() if key.startswith(("ext/", "seg/"))]:
        body = stored.own.get(key).data
        stored.own.delete(key)
        refused += _right_or_refused(stored, key)
        stored.own.put(key, body)
    assert refused > 10


def test_a_truncated_object_is_an_error(stored: Stored) -> None:
    key = next(key for key in stored.listing() if key.startswith("ext/") and _needed(stored, key))
    body = stored.own.get(key).data
    stored.own.put(key, body[:-100])
    try:
        with pytest.raises(CorruptFormat, match=key):
            read(stored)
    finally:
        stored.own.put(key, body)


def _needed(stored: Stored, key: str) -> bool:
    with open_offline(stored.own, stored.name) as found:
        return any(
            value.base is not None and paths.extent(extent, value.base.gen, value.base.epoch) == key
            for extent, value in found.map.extents()
        )


# --- images ------------------------------------------------------------------------------------------------------


def test_an_image_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "image"
    image = ImageFile(path, size_bytes=8192, stamp="a", force=False)
    image.write(4096, b"x" * 10)
    image.close()
    assert not path.exists()
    again = ImageFile(path, size_bytes=8192, stamp="a", force=False)
    assert again.start == 0
    again.write(0, b"y")
    again.finish()
    again.close()
    assert path.read_bytes() == b"y" + bytes(8191)
    assert [file.name for file in tmp_path.iterdir()] == ["image"]


def test_an_image_goes_on_where_it_stood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockdev.image.NOTE_BYTES", 1)
    path = tmp_path / "image"
    first = ImageFile(path, size_bytes=100, stamp="a", force=False)
    first.write(0, b"old")
    first.reached(6)
    first.close()
    other = ImageFile(path, size_bytes=100, stamp="a", force=False)
    assert other.start == 7
    other.finish()
    other.close()
    assert path.read_bytes() == b"old" + bytes(97)


@pytest.mark.parametrize("damage", ["", "{", '{"stamp": "a"}', '{"stamp": "other", "done": 3}'])
def test_the_image_of_another_state_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setattr("blockdev.image.NOTE_BYTES", 1)
    path = tmp_path / "image"
    first = ImageFile(path, size_bytes=100, stamp="a", force=False)
    first.write(0, b"old")
    first.reached(6)
    first.close()
    (tmp_path / "image.part.json").write_text(damage)
    second = ImageFile(path, size_bytes=50, stamp="a", force=False)
    assert second.start == 0
    second.finish()
    second.close()
    assert path.read_bytes() == bytes(50)


def test_two_writers_of_one_image(tmp_path: Path) -> None:
    first = ImageFile(tmp_path / "image", size_bytes=100, stamp="a", force=False)
    with pytest.raises(ImageRefused, match="by another process"):
        ImageFile(tmp_path / "image", size_bytes=100, stamp="a", force=False)
    first.close()
