"""`protected` and Object Lock: what is kept, what is deleted for good, and what a crash between two steps leaves."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any
from uuid import uuid4

import pytest

from plugin.bucket import DAY_S, StorageBucket
from plugin.configuration import Storage
from plugin.errors import Busy, NoSuchVolume, Refused
from plugin.layout import DELETING_DIRECTORY, notes_key, protected_key
from plugin.protection import (
    DELETION_S,
    Protection,
    collect,
    delete_volume,
    ensure_locked,
    locked_until,
    look,
    protect,
    unprotect,
)
from s3core.bucket_wrapper import BucketWrapper
from s3core.clock import SystemClock
from s3core.errors import Denied, StoreError
from s3core.memory_bucket import MemoryBucket
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from s3core.wrapper import Call, Operation, T
from s3core.write_options import Retention
from tests.s3core.fakes import FakeClock
from tests.servers.radosgw import Radosgw

KEY = "pve/dump/vzdump-qemu-100-2026_01_02-03_04_05.vma.zst"
LOCKS = ("none", "hold", "governance", "compliance")


def storage(**changes: Any) -> Storage:
    return Storage(id="s3", type="bucketfiles", bucket="bucket", prefix="pve/", **changes)


class World:
    def __init__(self, object_lock: str = "none", lock_days: int = 0, *, versioned: bool = False) -> None:
        self.clock = FakeClock()
        locking = object_lock != "none"
        self.memory = MemoryBucket(versioned=versioned, object_lock=locking, clock=self.clock)
        self.bucket = StorageBucket(
            self.memory, storage(object_lock=object_lock, lock_days=lock_days), clock=self.clock
        )

    def backup(self, key: str = KEY) -> str:
        self.bucket.put(notes_key(key), b"a note")
        return self.bucket.put(key, b"archive").version_id

    def delete(self, key: str = KEY) -> None:
        delete_volume(self.bucket, key, now=self.clock.time())

    def versions(self) -> list[str]:
        return [row.key for row in self.memory.list_versions().versions]


class CrashAt(BucketWrapper):
    """Ends at the n-th request that changes something (from 1)."""

    def __init__(self, inner: Any, at: int) -> None:
        super().__init__(inner)
        self.left = at

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        changing: set[Operation] = {"put", "delete", "delete_version", "set_legal_hold", "set_retention"}
        if call.operation in changing:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return action()


@pytest.mark.parametrize("object_lock", LOCKS)
def test_what_is_protected_is_held_and_stays(object_lock: str) -> None:
    world = World(object_lock)
    world.backup()
    protect(world.bucket, KEY)
    protect(world.bucket, KEY)
    assert look(world.bucket, KEY).protected
    assert world.memory.contents()[protected_key(KEY)] == b""
    assert world.memory.legal_hold(KEY) == (object_lock != "none")
    with pytest.raises(Refused, match="it is protected"):
        world.delete()
    assert world.memory.contents()[KEY] == b"archive"
    unprotect(world.bucket, KEY)
    unprotect(world.bucket, KEY)
    assert world.memory.legal_hold(KEY) is False
    world.delete()
    assert world.versions() == [], "neither the backup nor its sidecars are left, nor any version of them"


@pytest.mark.parametrize("at", range(1, 4))
@pytest.mark.parametrize("change", [protect, unprotect])
def test_a_crash_while_protection_changes_never_shows_more_than_is_so(
    change: Callable[[StorageBucket, str], None], at: int
) -> None:
    world = World("hold")
    world.backup()
    if change is unprotect:
        protect(world.bucket, KEY)
    world.bucket.inner = CrashAt(world.memory, at)
    try:
        change(world.bucket, KEY)
    except KeyboardInterrupt:
        assert at < 3
    world.bucket.inner = world.memory
    found = look(world.bucket, KEY)
    assert found.held or not found.protected
    if found.held and not found.protected:
        with pytest.raises(Refused, match="legal hold"):
            world.delete()
    unprotect(world.bucket, KEY)
    world.delete()
    assert world.versions() == []


class Turns:
    """Which of two threads may send its next request. One that has ended has no more turns."""

    def __init__(self, order: Sequence[str]) -> None:
        self._left = list(order)
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def take(self, name: str, action: Callable[[], T]) -> T:
        with self._changed:
            assert self._changed.wait_for(lambda: self._next() in (name, ""), 30)
            try:
                return action()
            finally:
                if self._left:
                    self._left.pop(0)
                self._changed.notify_all()

    def end(self, name: str) -> None:
        with self._changed:
            self._ended.add(name)
            self._changed.notify_all()

    def _next(self) -> str:
        while self._left and self._left[0] in self._ended:
            self._left.pop(0)
        return self._left[0] if self._left else ""


class InTurn(BucketWrapper):
    def __init__(self, inner: Any, name: str, turns: Turns) -> None:
        super().__init__(inner)
        self._name, self._turns = name, turns

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        return self._turns.take(self._name, action)


REQUESTS = 6
"""Of a deletion up to its DELETE, and of a protection."""


@pytest.mark.parametrize("begins", ["delete", "protect"])
def test_whatever_the_order_a_backup_that_was_protected_is_there(begins: str) -> None:
    """Every order in which the requests of a deletion and a protection can reach the bucket."""
    outcomes = set()
    for places in combinations(range(2 * REQUESTS - 1), REQUESTS - 1):
        other = "protect" if begins == "delete" else "delete"
        order = [begins, *(begins if at in places else other for at in range(2 * REQUESTS - 1))]
        world, turns = World(), Turns(order)
        world.backup()
        done: dict[str, bool] = {}

        def run(name: str, world: World = world, turns: Turns = turns, done: dict[str, bool] = done) -> None:
            bucket = StorageBucket(InTurn(world.memory, name, turns), storage(), clock=world.clock)
            try:
                if name == "protect":
                    protect(bucket, KEY)
                else:
                    delete_volume(bucket, KEY, now=world.clock.time())
                done[name] = True
            except (Refused, Busy, NoSuchVolume):
                done[name] = False
            finally:
                turns.end(name)

        threads = [threading.Thread(target=run, args=(name,)) for name in ("delete", "protect")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        there = set(world.memory.contents())
        outcomes.add((done["delete"], done["protect"]))
        assert (KEY in there) != done["delete"]
        if done["protect"]:
            assert {KEY, protected_key(KEY)} <= there, order
        assert not any("/deleting/" in key for key in there)
    assert (True, True) not in outcomes
    assert {(True, False), (False, True)} <= outcomes


def test_a_mark_that_a_crash_left_says_nothing_later() -> None:
    world = World()
    world.backup()
    world.bucket.put(f"pve/{DELETING_DIRECTORY}/{KEY.removeprefix('pve/')}", b"")
    with pytest.raises(Busy, match="is being deleted by somebody right now"):
        protect(world.bucket, KEY)
    world.clock.sleep(DELETION_S + 1)
    protect(world.bucket, KEY)
    unprotect(world.bucket, KEY)
    world.delete()
    assert world.memory.contents() == {}


@pytest.mark.parametrize("object_lock", ["governance", "compliance"])
def test_a_backup_is_locked_from_its_upload_on(object_lock: str) -> None:
    world = World(object_lock, 30)
    version = world.backup()
    until = world.clock.time() + 30 * DAY_S
    assert world.memory.retention(KEY) == Retention(object_lock.upper(), until)  # type: ignore[arg-type]  # a parameter
    assert world.memory.retention(notes_key(KEY)) is None
    assert locked_until(world.bucket.storage, world.memory.head(KEY).modified) == pytest.approx(until, abs=1)
    with pytest.raises(Refused, match=r"it is locked until \d{4}-\d\d-\d\d \d\d:\d\d UTC"):
        world.delete()
    with pytest.raises(Denied):
        world.memory.delete_version(KEY, version)
    world.clock.sleep(30 * DAY_S + 1)
    world.delete()
    assert world.versions() == []


def test_a_lock_that_was_lost_is_given_again() -> None:
    world = World("compliance", 30)
    world.memory.put(KEY, b"archive")
    written = world.clock.time()
    world.clock.sleep(5 * DAY_S)
    assert ensure_locked(world.bucket, KEY)
    assert not ensure_locked(world.bucket, KEY)
    assert world.memory.retention(KEY) == Retention("COMPLIANCE", int(written) + 30 * DAY_S)
    world.memory.put("pve/template/iso/x.iso", b"iso")
    assert not ensure_locked(world.bucket, "pve/template/iso/x.iso")


@pytest.mark.parametrize("at", range(1, 12))
def test_a_crash_while_deleting_leaves_nothing_that_is_seen_twice(at: int) -> None:
    world = World("hold")
    world.backup()
    world.bucket.inner = CrashAt(world.memory, at)
    try:
        world.delete()
        crashed = False
    except KeyboardInterrupt:
        crashed = True
    world.bucket.inner = world.memory
    if crashed and KEY not in world.memory.contents():
        with pytest.raises(NoSuchVolume):
            world.delete()
    elif crashed:
        world.delete()
    world.clock.sleep(8 * DAY_S)
    collect(world.bucket, now=world.clock.time())
    assert world.versions() == []
    assert world.memory.contents() == {}


def test_what_is_hidden_for_a_week_is_collected_but_for_what_is_locked() -> None:
    world = World("compliance", 20)
    first = world.backup()
    world.memory.put(KEY, b"written over")
    world.memory.put("other/x", b"not ours")
    for key in (KEY, notes_key(KEY), "other/x"):
        world.memory.delete(key)
    assert collect(world.bucket, now=world.clock.time()).deleted == 0, "it may be brought back for a week"
    world.clock.sleep(8 * DAY_S)
    assert collect(world.bucket, now=world.clock.time(), dry_run=True).keys == (KEY, notes_key(KEY))
    found = collect(world.bucket, now=world.clock.time())
    assert (found.deleted, found.kept) == (2, 1)
    assert world.memory.get(KEY, version_id=first) == b"archive"
    world.clock.sleep(20 * DAY_S)
    assert collect(world.bucket, now=world.clock.time()).kept == 0
    assert {key for key in world.versions() if key.startswith("pve/")} == set()
    assert "other/x" in world.versions()


def test_versions_of_a_bucket_without_locks_are_its_owners() -> None:
    world = World(versioned=True)
    world.backup()
    world.delete()
    assert world.memory.contents() == {}
    assert KEY in world.versions()
    world.clock.sleep(30 * DAY_S)
    assert collect(world.bucket, now=world.clock.time()).deleted == 0


def test_a_version_that_may_not_be_deleted_is_told() -> None:
    class Unpermitted(BucketWrapper):
        def delete_version(self, key: str, version_id: str, *, bypass_governance: bool = False) -> None:
            raise Denied("s3:DeleteObjectVersion is missing", key=key)

    world = World("hold")
    world.backup()
    world.bucket.inner = Unpermitted(world.memory)
    with pytest.raises(Denied, match="DeleteObjectVersion"):
        world.delete()


def test_what_is_not_there_leaves_no_sidecars() -> None:
    world = World()
    world.bucket.put(notes_key(KEY), b"left over")
    with pytest.raises(NoSuchVolume):
        world.delete()
    assert world.memory.contents() == {}
    for change in (protect, unprotect):
        with pytest.raises(NoSuchVolume):
            change(world.bucket, KEY)


def test_a_store_that_is_away_is_no_missing_backup() -> None:
    class Away(BucketWrapper):
        def _perform(self, call: Call, action: Callable[[], T]) -> T:
            raise Denied("no", key=call.key)

    world = World()
    world.backup()
    world.bucket.inner = Away(world.memory)
    with pytest.raises(StoreError):
        world.delete()
    assert len(world.memory.contents()) == 2


# --- the real server ---------------------------------------------------------------------------------------------------


@pytest.mark.rgw
def test_protection_and_deletion_on_the_real_server(radosgw: Radosgw) -> None:
    control, name = S3Control(radosgw.endpoint()), f"held-{uuid4().hex[:8]}"
    control.create_bucket(name, object_lock=True)
    control.close()
    s3 = S3Bucket(radosgw.endpoint(), name)
    clock = SystemClock()
    bucket = StorageBucket(s3, replace(storage(object_lock="hold"), bucket=name), clock=clock)
    upload = bucket.begin_upload(KEY)
    bucket.complete_upload(KEY, upload, [(1, bucket.upload_part(KEY, upload, 1, b"archive"))])
    bucket.put(notes_key(KEY), b"first")
    bucket.put(notes_key(KEY), b"second")
    protect(bucket, KEY)
    assert look(bucket, KEY) == Protection(protected=True, held=True)
    with pytest.raises(Refused, match="it is protected"):
        delete_volume(bucket, KEY, now=clock.time())
    unprotect(bucket, KEY)
    assert look(bucket, KEY) == Protection(protected=False)
    delete_volume(bucket, KEY, now=clock.time())
    assert list(s3.list_versions().versions) == []
    locking = StorageBucket(s3, replace(storage(object_lock="governance", lock_days=1), bucket=name), clock=clock)
    version = locking.put(KEY, b"locked").version_id
    with pytest.raises(Refused, match="locked until"):
        delete_volume(locking, KEY, now=clock.time())
    s3.delete(KEY)
    found = collect(locking, now=clock.time() + 8 * DAY_S)
    assert (found.deleted, found.kept) == (0, 1)
    s3.delete_version(KEY, version, bypass_governance=True)
    collect(locking, now=clock.time() + 8 * DAY_S)
    assert list(s3.list_versions().versions) == []
    s3.close()
