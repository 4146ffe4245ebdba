"""Clones as things in a store: their making step by step, what they pin, and how they go. No worker attaches here."""

import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from blockdev import keys, references, volumes
from blockdev.errors import CorruptFormat, KeyRefused, Refused
from blockdev.offline import open_offline, read_volume_file
from blockdev.place import volume_store
from blockdev.references import Reference
from blockdev.segments import paths, volume_file
from blockdev.segments.key_slot import Secret
from blockdev.segments.record import Parsed
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import NotFound, OutcomeUnknown, Unavailable
from s3core.memory import MemoryStore
from s3core.store import ObjectStore
from tests.blockdev.stored_volume import store_volume


@dataclass(frozen=True)
class Shot:
    name: str
    seq: int
    epoch: int
    digest: str
    size_bytes: int


def shot_of_the_end(store: ObjectStore, name: str = "vm1") -> Shot:
    """The state after the last commit, of which detaching has written a checkpoint."""
    own = volume_store(store, name)
    last = volumes.newest_record(own, read_volume_file(own, name).identity)
    assert last is not None
    return Shot("s1", last.record.seq, last.record.epoch, last.digest.hex(), last.record.size_bytes)


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    made = MemoryStore()
    store_volume(made, tmp_path, rounds=2)
    return made


def child_of(store: ObjectStore, shot: Shot, name: str = "vm2") -> VolumeFile:
    parent = read_volume_file(volume_store(store, "vm1"), "vm1")
    return VolumeFile(
        name=name,
        identity=uuid4(),
        lineage=uuid4(),
        geometry=parent.geometry,
        compression=parent.compression,
        created=time.time(),
        creator="test",
        features=frozenset({volume_file.CLONE}),
        origin=volumes.origin_of(store, "vm1", parent, shot),
    )


def clone(
    store: ObjectStore,
    name: str = "vm2",
    *,
    look_again: Callable[[], Shot | None] | None = None,
    around: Callable[[ObjectStore], AbstractContextManager[None]] = lambda own: nullcontext(),
) -> VolumeFile:
    shot = shot_of_the_end(store)
    child = child_of(store, shot, name)
    parent = read_volume_file(volume_store(store, "vm1"), "vm1")
    volumes.clone_volume(store, "vm1", parent, shot, child, look_again=look_again or (lambda: shot), around=around)
    return child


def _found(shot: Shot | None) -> Shot | None:
    return shot


def refs(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list("v1/vm1/ref/")]


def doomed(store: ObjectStore, name: str) -> dict[str, object]:
    found = volumes.prepare_deletion(store, name, force=False, now=time.time())
    return dict(
        volumes.delete_volume(
            store, found, nonce=uuid4().bytes, time_us=time.time_ns() // 1000, removed=lambda number: None
        )
    )


def test_a_clone_is_two_small_objects(store: MemoryStore) -> None:
    before = {info.key for info in store.list()}
    child = clone(store)
    new = {info.key for info in store.list()} - before
    assert new == {f"v1/vm1/ref/{child.identity}", "v1/vm2/vol.json"}
    document = json.loads(store.get(f"v1/vm1/ref/{child.identity}").data)
    assert len(document.pop("crc32c")) == 8
    assert document == {
        "child": "vm2",
        "uuid": str(child.identity),
        "snapshot": "s1",
        "seq": child.origin[-1].seq,
    }
    assert read_volume_file(volume_store(store, "vm2"), "vm2") == child


def test_a_parent_with_clones_is_not_deleted_and_a_clone_takes_its_reference_along(store: MemoryStore) -> None:
    clone(store)
    with pytest.raises(Refused, match=r"has clones that read its objects: vm2 \(of snapshot s1\)"):
        doomed(store, "vm1")
    assert doomed(store, "vm2") == {}
    assert list(store.list("v1/vm2/")) == []
    assert refs(store) == []
    assert doomed(store, "vm1") == {}
    assert list(store.list()) == []


def test_a_deletion_of_a_clone_begins_with_the_record_after_its_origin(store: MemoryStore) -> None:
    child = clone(store)
    found = volumes.prepare_deletion(store, "vm2", force=False, now=time.time())
    volumes._fence_off(volume_store(store, "vm2"), found, uuid4().bytes, 1)
    last = volumes.newest_record(volume_store(store, "vm2"), child.identity)
    assert last is not None
    assert (last.record.seq, last.record.parent) == (child.origin[-1].seq + 1, child.origin[-1].digest)


def test_a_snapshot_that_goes_while_it_is_cloned_is_not_cloned(store: MemoryStore) -> None:
    for gone in (None, Shot("s1", 1, 1, "", 4096)):
        with pytest.raises(Refused, match="was deleted at this very moment"):
            clone(store, look_again=partial(_found, gone))
        assert refs(store) == []
        assert list(store.list("v1/vm2/")) == []


def test_a_parent_whose_deletion_begins_meanwhile_is_not_cloned(store: MemoryStore) -> None:
    shot = shot_of_the_end(store)

    def deletion_begins() -> Shot:
        found = volumes.Doomed("vm1", *_state(store))
        volumes._fence_off(volume_store(store, "vm1"), found, uuid4().bytes, 1)
        return shot

    with pytest.raises(Refused, match="somebody has begun to delete volume vm1"):
        clone(store, look_again=deletion_begins)
    assert refs(store) == []


def _state(store: MemoryStore) -> tuple[VolumeFile, Parsed | None]:
    own = volume_store(store, "vm1")
    volume = read_volume_file(own, "vm1")
    return volume, volumes.newest_record(own, volume.identity)


def test_a_deletion_sees_a_clone_that_came_after_its_first_look(store: MemoryStore) -> None:
    found = volumes.prepare_deletion(store, "vm1", force=False, now=time.time())
    clone(store)
    with pytest.raises(Refused, match="vm2"):
        volumes.delete_volume(store, found, nonce=uuid4().bytes, time_us=time.time_ns() // 1000, removed=print)
    assert paths.volume_file() in {info.key for info in volume_store(store, "vm1").list()}


def test_a_name_that_is_taken_leaves_no_reference(store: MemoryStore) -> None:
    clone(store)
    with pytest.raises(Refused, match="was created by somebody else"):
        clone(store)
    assert len(refs(store)) == 1


def test_when_nobody_can_say_whether_the_clone_is_there_its_reference_stays(store: MemoryStore) -> None:
    def away(own: ObjectStore) -> AbstractContextManager[None]:
        raise OutcomeUnknown("lost")

    with pytest.raises(OutcomeUnknown):
        clone(store, around=away)
    assert len(refs(store)) == 1


def test_a_creation_that_failed_takes_its_reference_back(store: MemoryStore) -> None:
    def away(own: ObjectStore) -> AbstractContextManager[None]:
        raise Unavailable("gone")

    with pytest.raises(Unavailable):
        clone(store, around=away)
    assert refs(store) == []


def test_what_a_crash_left_pins_for_a_day_and_is_then_tidied_up(store: MemoryStore) -> None:
    own = volume_store(store, "vm1")
    left = Reference("vm9", str(uuid4()), "s1", 3)
    references.put(own, left)
    living = clone(store)
    now = time.time()
    assert {item.child: item.alive for item in references.references(store, "vm1", now)} == {"vm9": True, "vm2": True}
    assert references.remove_dead(store, "vm1", now) == []
    later = now + references.CREATION_S_MAX + 1
    assert [item.child for item in references.remove_dead(store, "vm1", later)] == ["vm9"]
    assert refs(store) == [f"ref/{living.identity}"] or refs(store) == [f"v1/vm1/ref/{living.identity}"]


def test_another_volume_of_the_childs_name_is_not_the_child(store: MemoryStore) -> None:
    references.put(volume_store(store, "vm1"), Reference("vm1", str(uuid4()), "s1", 3))
    (found,) = references.references(store, "vm1", time.time() + references.CREATION_S_MAX + 1)
    assert not found.alive


def test_a_damaged_reference_is_named_and_pins(store: MemoryStore) -> None:
    store.put(f"v1/vm1/ref/{uuid4()}", b"{}")
    with pytest.raises(CorruptFormat, match="is no reference of a clone"):
        doomed(store, "vm1")


def test_a_snapshot_without_its_checkpoint_is_not_cloned(store: MemoryStore) -> None:
    shot = shot_of_the_end(store)
    parent = read_volume_file(volume_store(store, "vm1"), "vm1")
    wrong = Shot("s1", shot.seq, shot.epoch, "00" * 32, shot.size_bytes)
    with pytest.raises(CorruptFormat, match="of another commit"):
        volumes.origin_of(store, "vm1", parent, wrong)
    volume_store(store, "vm1").delete(paths.root(shot.seq, shot.epoch))
    with pytest.raises(CorruptFormat, match="snapshot s1 of volume vm1 has no checkpoint"):
        volumes.origin_of(store, "vm1", parent, shot)
    with pytest.raises(NotFound):
        read_volume_file(volume_store(store, "vm3"), "vm3")


def test_a_clone_of_an_encrypted_volume_reads_its_parents_frames_with_the_key_they_share(tmp_path: Path) -> None:
    store = MemoryStore()
    secret, other = Secret("key", bytes(40)), Secret("key", bytes(50))
    stored = store_volume(store, tmp_path, rounds=3, secret=secret)
    shot = shot_of_the_end(store)
    parent = read_volume_file(stored.own, "vm1")
    plain = child_of(store, shot)
    with pytest.raises(ValueError, match="encrypted if its parent is"):
        volumes.clone_volume(store, "vm1", parent, shot, plain, look_again=lambda: shot)
    child, slot, _ = keys.sealed(plain, other, random=os.urandom, data_key=keys.unlock(stored.own, parent, secret))
    volumes.clone_volume(
        store,
        "vm1",
        parent,
        shot,
        child,
        look_again=lambda: shot,
        around=lambda own: keys.slot_in_place(own, slot),
    )
    own = volume_store(store, "vm2")
    with open_offline(own, "vm2", unlock=lambda made: keys.unlock(own, made, other)) as found:
        read = b"".join(bytes(data or bytes(16384)) for data in found.frames(range(256)).values())
    assert read == stored.content
    with pytest.raises(KeyRefused):
        keys.unlock(own, child, secret)
