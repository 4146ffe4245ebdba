"""Importing: what is there after a crash at any step, and when others are at the same name."""

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from blockdev import importing, keys, volumes
from blockdev.errors import CorruptFormat, Fenced, Refused
from blockdev.image_source import ImageSource, open_image
from blockdev.importing import Imported, import_image
from blockdev.inspection.inspector import inspect_volume
from blockdev.offline import open_offline
from blockdev.place import volume_store
from blockdev.segments import paths, record
from blockdev.segments.key_slot import Secret
from blockdev.segments.record import RecordKind
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import KIB, MIB, Geometry
from s3core.errors import NotFound, Unavailable
from s3core.memory import MemoryStore
from s3core.store import ObjectStore
from s3core.wrapper import READS, Call, StoreWrapper, T

SIZE_BYTES = 2 * MIB


class Crash(Exception):
    """The process ends here."""


class Killed(StoreWrapper):
    """Carries out `left` changes, then none; `before` sees each."""

    def __init__(self, inner: ObjectStore, left: int, before: Callable[[Call], None] = lambda call: None) -> None:
        super().__init__(inner)
        self.left = left
        self.before = before

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation not in READS:
            if not self.left:
                raise Crash
            self.left -= 1
            self.before(call)
        return action()


class Content:
    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.written.extend(bytes(offset - len(self.written)))
        self.written.extend(data)


def volume() -> VolumeFile:
    geometry = Geometry(SIZE_BYTES, extent_bytes=128 * KIB, frame_bytes=16 * KIB)
    return VolumeFile("vm", uuid.uuid4(), uuid.uuid4(), geometry, "zstd", 0.0, "test")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    source = random.Random(1)
    with path.open("wb") as file:
        file.truncate(SIZE_BYTES)
        for at in (0, 200_000, 1_200_000, SIZE_BYTES - 600):
            file.seek(at)
            file.write(source.randbytes(600) + b"a" * 20_000 if at < MIB else source.randbytes(600))
    return path


def run(store: ObjectStore, source: ImageSource, made: VolumeFile | None = None) -> Imported:
    made = made or volume()
    return import_image(
        store, made, source, journal=uuid.uuid4(), nonce=lambda: uuid.uuid4().bytes, note={"host": "here"}
    )


def imported(store: ObjectStore, image: Path) -> Imported:
    source = open_image(image, None)
    try:
        return run(store, source)
    finally:
        source.close()


def require_whole(store: ObjectStore, image: Path) -> None:
    own = volume_store(store, "vm")
    with open_offline(own, "vm") as found:
        assert found.state is not None
        assert found.state.kind == RecordKind.DETACH
        content = Content()
        found.copy(content)
    assert bytes(content.written).ljust(SIZE_BYTES, b"\0") == image.read_bytes()
    assert inspect_volume(own, "vm", deep=True, stage=silent).defects == []


@contextmanager
def silent(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda number: None


def remove(store: ObjectStore) -> None:
    doomed = volumes.prepare_deletion(store, "vm", force=False, now=0.0)
    assert volumes.delete_volume(store, doomed, nonce=bytes(16), time_us=0, removed=lambda number: None) == {}


def test_imported_is_whole_and_detached(image: Path) -> None:
    store = MemoryStore()
    done = imported(store, image)
    assert done.extents == 4
    # Fence, data, detach, page pack, root, head and vol.json.
    assert done.puts == 4 + 7
    require_whole(store, image)
    with open_offline(volume_store(store, "vm"), "vm") as found:
        assert found.root_key == paths.root(done.commit, 1)


def test_many_commits(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "COMMIT_EXTENTS", 1)
    store = MemoryStore()
    assert imported(store, image).commit == 6
    require_whole(store, image)


def test_killed_at_every_step(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "COMMIT_EXTENTS", 2)
    steps = 0
    while True:
        store = MemoryStore()
        try:
            imported(Killed(store, steps), image)
        except Crash:
            names = [item.state for item in volumes.list_volumes(store)]
            if steps == 0:
                assert names == []
            else:
                assert names == ["deletion or import unfinished"]
                with pytest.raises(Refused, match="remains of a deletion, a creation or an import"):
                    volumes.require_free(store, "vm")
                remove(store)
            volumes.require_free(store, "vm")
            assert list(store.list()) == []
            imported(store, image)
            require_whole(store, image)
            steps += 1
            continue
        break
    assert steps == 4 + 8
    require_whole(store, image)


def test_the_volume_appears_with_the_last_change(image: Path) -> None:
    keys: list[str] = []
    store = MemoryStore()
    imported(Killed(store, 1000, lambda call: keys.append(call.key)), image)
    assert [key for key in keys if key.endswith("vol.json")] == [keys[-1]]


@pytest.mark.parametrize("moment", ["ext/", "log/0000000000000003", "root/", "head", "vol.json"])
def test_deleted_while_it_runs(image: Path, moment: str) -> None:
    """Whoever deletes the remains of an import that is still running does not get a volume with holes."""
    store = MemoryStore()
    deleted = False

    def before(call: Call) -> None:
        nonlocal deleted
        if moment in call.key and not deleted:
            deleted = True
            remove(store)

    with pytest.raises((Fenced, CorruptFormat)):
        imported(Killed(store, 1000, before), image)
    assert deleted
    assert volumes.look(store, "vm").state == "no such volume"
    if volumes.list_volumes(store):
        remove(store)
    volumes.require_free(store, "vm")


def test_deleted_between_the_fence_and_vol_json(image: Path) -> None:
    """The deletion stands still behind its fence while the import writes vol.json: the import takes it back."""
    store = MemoryStore()

    def before(call: Call) -> None:
        if call.key.endswith("vol.json") and call.operation == "put_if_absent":
            doomed = volumes.prepare_deletion(store, "vm", force=False, now=0.0)
            volumes._fence_off(volume_store(store, "vm"), doomed, bytes(16), 0)

    with pytest.raises(Fenced, match="was deleted while it was imported"):
        imported(Killed(store, 1000, before), image)
    assert volumes.look(store, "vm").state == "no such volume"
    remove(store)
    assert list(store.list()) == []


def test_an_encrypted_volume_whose_key_slot_was_deleted_is_none(image: Path) -> None:
    """Between key slot and fence record a deletion finds no log to stop the import with."""
    store = MemoryStore()
    made, slot, _ = keys.sealed(volume(), Secret("key", bytes(32)), random=random.Random(3).randbytes)
    source = open_image(image, None)
    with keys.slot_in_place(volume_store(store, "vm"), slot):
        run(store, source, made)
    assert volumes.look(store, "vm").state == "ok"
    doomed = volumes.prepare_deletion(store, "vm", force=False, now=0.0)
    volumes.delete_volume(store, doomed, nonce=bytes(16), time_us=0, removed=lambda number: None)
    with pytest.raises(Fenced, match="was deleted"):
        run(store, source, made)
    source.close()
    assert volumes.look(store, "vm").state == "no such volume"


def test_attached_as_soon_as_it_is_there(image: Path) -> None:
    """Another host is faster than the import's last look: the volume is its own by then."""
    store = MemoryStore()

    class Overtaken(Killed):
        def _perform(self, call: Call, action: Callable[[], T]) -> T:
            result = super()._perform(call, action)
            if call.key.endswith("vol.json") and call.operation == "put_if_absent":
                own = volume_store(store, "vm")
                last = volumes.newest_record(own, None)
                assert last is not None
                following = last.record.seq + 1
                fence = record.encode(
                    replace(last.record, seq=following, epoch=2, parent=last.digest, kind=RecordKind.FENCE)
                )
                own.put_if_absent(paths.log(following), fence[0])
            return result

    imported(Overtaken(store, 1000), image)
    assert volumes.look(store, "vm").state == "ok"


def test_two_at_once(image: Path) -> None:
    store = MemoryStore()
    begun = False

    def before(call: Call) -> None:
        nonlocal begun
        if call.key.endswith(paths.log(1)) and not begun:
            begun = True
            imported(store, image)

    with pytest.raises(Refused, match="at the same moment"):
        imported(Killed(store, 1000, before), image)
    require_whole(store, image)


def test_a_volume_created_meanwhile_is_left_alone(image: Path) -> None:
    store = MemoryStore()
    other = volume()

    def before(call: Call) -> None:
        if call.key.endswith("vol.json"):
            volumes.create_volume(store, other)

    with pytest.raises(Refused, match="created by somebody else"):
        imported(Killed(store, 1000, before), image)
    assert volumes.look(store, "vm").volume == other


def test_a_store_that_is_away_for_a_moment(image: Path) -> None:
    store = MemoryStore()
    failures = iter([True, False, True, True, False, True])

    def before(call: Call) -> None:
        if next(failures, False):
            raise Unavailable("away")

    imported(Killed(store, 1000, before), image)
    require_whole(store, image)


def test_a_store_that_stays_away_ends_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "PATIENCE_S", 0.3)
    store = MemoryStore()

    def before(call: Call) -> None:
        if "ext/" in call.key:
            raise Unavailable("away")

    with pytest.raises(Unavailable, match="away"):
        imported(Killed(store, 1000, before), image)
    remove(store)
    with pytest.raises(NotFound):
        remove(store)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more extents between reading and upload than the window has places."""
    monkeypatch.setattr(importing, "COMMIT_EXTENTS", 64)
    path = tmp_path / "image"
    path.write_bytes(random.Random(2).randbytes(SIZE_BYTES))
    source = open_image(path, "raw")
    under_way = most = 0

    class Counted:
        size_bytes = source.size_bytes
        count, extents, verify, close = source.count, source.extents, source.verify, source.close

        def read(self, offset: int, length: int) -> bytes | bytearray:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            return source.read(offset, length)

    def before(call: Call) -> None:
        nonlocal under_way
        if "ext/" in call.key:
            under_way -= 1

    store = MemoryStore()
    run(Killed(store, 1000, before), Counted())
    source.close()
    assert 1 <= most <= 10
    require_whole(store, path)
