"""The head: who may commit, what a lost answer or a crash leaves, what the guard keeps."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from envctl.errors import Fenced, Invalid, NoSuchThing, Refused
from envctl.homes import keys
from envctl.homes.documents import Stats
from envctl.homes.errors import ObjectsMissing, ParentMoved
from envctl.homes.retention import Policy
from s3core.errors import OutcomeUnknown
from s3core.wrapper import Call, StoreWrapper
from tests.envctl.homes.making import ENVIRONMENT, OTHER, Bucket, commit_of, contents, make, save, upload

FIRST = make({"home/ann/a": b"alpha" * 30, "home/ann/b": b"beta", "home/ann/c/d": b"gamma"})
SECOND = make({"home/ann/a": b"alpha" * 30, "home/ann/b": b"BETA", "home/ann/e": b"new"})
T = TypeVar("T")


class Died(BaseException):
    """The process was killed."""


class Dying(StoreWrapper):
    """Dies at the `at`-th change, before or after it was made; loses the answer instead, where told so."""

    def __init__(self, inner: Any, at: int, *, after: bool, lose: bool = False) -> None:
        super().__init__(inner)
        self._left, self._after, self._lose = at, after, lose

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation in ("get", "get_range", "head", "list", "list_prefixes"):
            return action()
        self._left -= 1
        if self._left != 0:
            return action()
        if self._after:
            action()
        if self._lose:
            raise OutcomeUnknown("the answer was lost", key=call.key)
        raise Died(f"at {call.operation} {call.key}")


def test_a_home_is_fenced_committed_and_read_back() -> None:
    store = Bucket().store()
    assert store.head(ENVIRONMENT) is None
    assert store.fence(ENVIRONMENT, 1) == store.fence(ENVIRONMENT, 1)
    first = save(store, FIRST)
    second = save(store, SECOND, at=2.0, kind="final")
    assert (first.number, first.parent, second.number, second.parent, second.kind) == (1, 0, 2, 1, "final")
    assert [one.number for one in store.snapshots(ENVIRONMENT)] == [1, 2]
    assert contents(store, 1) == {"home/ann/a": b"alpha" * 30, "home/ann/b": b"beta", "home/ann/c/d": b"gamma"}
    assert contents(store, 2) == {"home/ann/a": b"alpha" * 30, "home/ann/b": b"BETA", "home/ann/e": b"new"}
    with pytest.raises(NoSuchThing):
        store.snapshot(ENVIRONMENT, 3)
    with pytest.raises(NoSuchThing):
        store.snapshot(OTHER, 1)


def test_an_unchanged_home_costs_one_put_and_keeps_its_time() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    save(store, FIRST)
    before = bucket.keys()
    bucket.clock.now += 300
    seen = store.heartbeat(ENVIRONMENT, 1, 1)
    assert seen.seen_at == bucket.clock.time()
    assert bucket.keys() == before
    with pytest.raises(ParentMoved):
        store.heartbeat(ENVIRONMENT, 1, 2)


def test_an_older_machine_can_do_nothing() -> None:
    store = Bucket().store()
    store.fence(ENVIRONMENT, 1)
    save(store, FIRST)
    store.fence(ENVIRONMENT, 2)
    upload(store, SECOND)
    for act in (
        lambda: store.commit(ENVIRONMENT, 1, commit_of(SECOND, 1)),
        lambda: store.heartbeat(ENVIRONMENT, 1, 1),
        lambda: store.fence(ENVIRONMENT, 1),
    ):
        with pytest.raises(Fenced):
            act()
    with pytest.raises(Refused):
        store.commit(ENVIRONMENT, 3, commit_of(SECOND, 1))
    assert store.commit(ENVIRONMENT, 2, commit_of(SECOND, 1)).number == 2


def test_a_commit_names_the_newest_backup_as_its_parent() -> None:
    store = Bucket().store()
    store.fence(ENVIRONMENT, 1)
    save(store, FIRST)
    upload(store, SECOND)
    for parent in (None, 2):
        with pytest.raises(ParentMoved) as refused:
            store.commit(ENVIRONMENT, 1, commit_of(SECOND, parent, at=5.0))
        assert refused.value.head.number == 1
    assert store.commit(ENVIRONMENT, 1, commit_of(SECOND, 1)).number == 2


def test_the_same_commit_again_is_the_same_backup() -> None:
    store = Bucket().store()
    store.fence(ENVIRONMENT, 1)
    upload(store, FIRST)
    made = store.commit(ENVIRONMENT, 1, commit_of(FIRST, None))
    assert store.commit(ENVIRONMENT, 1, commit_of(FIRST, None)) == made
    assert [one.number for one in store.snapshots(ENVIRONMENT)] == [1]


def test_a_commit_of_what_is_not_there_is_refused() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    for absent in FIRST.objects:
        upload(store, FIRST)
        bucket.objects.delete(keys.content(ENVIRONMENT, keys.object_name(absent)))
        # Whatever the guest says of its packs: the trees themselves are asked.
        for commit in (commit_of(FIRST, None), dataclasses.replace(commit_of(FIRST, None), packs=())):
            with pytest.raises(ObjectsMissing) as refused:
                store.commit(ENVIRONMENT, 1, commit)
            assert refused.value.names == (absent,)
    upload(store, FIRST)
    assert store.commit(ENVIRONMENT, 1, commit_of(FIRST, None)).number == 1


def test_a_tree_that_is_not_what_its_name_says_is_refused() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    upload(store, FIRST)
    key = keys.content(ENVIRONMENT, keys.tree(FIRST.trees[0]))
    whole = bucket.objects.get(key).data
    bucket.damage(key, whole[:-1] + b"x")
    with pytest.raises(Invalid, match="other bytes"):
        store.commit(ENVIRONMENT, 1, commit_of(FIRST, None))
    bucket.damage(key, whole)
    backwards = dataclasses.replace(commit_of(FIRST, None), trees=FIRST.trees[::-1])
    with pytest.raises(Invalid, match="order"):
        store.commit(ENVIRONMENT, 1, backwards)
    assert store.head(ENVIRONMENT).number == 0  # type: ignore[union-attr]  # it was fenced above


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 5))
def test_a_console_killed_at_any_change_of_a_commit_leaves_one_backup_or_none(at: int, after: bool) -> None:
    """The changes of a commit: copy of the snapshot before, pin of the guard, head."""
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    save(store, FIRST, stats=Stats(files=100))
    upload(store, SECOND)
    commit = commit_of(SECOND, 1, at=7.0, stats=Stats(files=10, removed=90))
    died = False
    try:
        bucket.store(Dying(bucket.objects, at, after=after)).commit(ENVIRONMENT, 1, commit)
    except Died:
        died = True
    assert died == (at <= 3)
    numbers = [one.number for one in store.snapshots(ENVIRONMENT)]
    assert numbers == ([1, 2] if not died or (at == 3 and after) else [1])
    assert contents(store, 1)["home/ann/b"] == b"beta"
    # The agent tries again, whatever it heard.
    assert store.commit(ENVIRONMENT, 1, commit).number == 2
    assert contents(store, 2)["home/ann/b"] == b"BETA"
    assert [(one.number, one.pinned) for one in store.snapshots(ENVIRONMENT)] == [(1, True), (2, False)]


@pytest.mark.parametrize("after", [False, True], ids=["not-done", "done"])
def test_a_lost_answer_of_the_bucket_is_looked_after(after: bool) -> None:
    bucket = Bucket()
    store = bucket.store()
    assert bucket.store(Dying(bucket.objects, 1, after=after, lose=True)).fence(ENVIRONMENT, 1).generation == 1
    upload(store, FIRST)
    losing = bucket.store(Dying(bucket.objects, 1, after=after, lose=True))
    assert losing.commit(ENVIRONMENT, 1, commit_of(FIRST, None)).number == 1
    losing = bucket.store(Dying(bucket.objects, 1, after=after, lose=True))
    assert losing.heartbeat(ENVIRONMENT, 1, 1).number == 1
    assert [one.number for one in store.snapshots(ENVIRONMENT)] == [1]


def test_the_guard_pins_what_was_before_a_mass_change() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    save(store, FIRST, stats=Stats(files=100))
    calm = save(store, SECOND, at=2.0, stats=Stats(files=100, changed=20, removed=10))
    assert not calm.alert
    wild = save(store, FIRST, at=3.0, stats=Stats(files=100, changed=30, removed=1))
    assert "30 of 100 files were rewritten and 1 removed" in wild.alert
    pinned = {one.number: one.note for one in store.snapshots(ENVIRONMENT) if one.pinned}
    assert list(pinned) == [2]
    assert "mass change" in pinned[2]
    small = Bucket().store()
    small.fence(ENVIRONMENT, 1)
    save(small, FIRST, stats=Stats(files=49))
    assert not save(small, SECOND, at=2.0, stats=Stats(files=1, removed=48)).alert
    assert "all 1 files are gone" in save(small, FIRST, at=3.0, stats=Stats(files=0)).alert
    anew = Bucket().store()
    anew.fence(ENVIRONMENT, 1)
    save(anew, FIRST, stats=Stats(files=100))
    told_nothing = save(anew, SECOND, at=2.0, stats=Stats(files=60, added=60))
    assert "40 removed" in told_nothing.alert


def test_pruning_keeps_the_newest_and_the_pinned_and_a_pin_outlives_its_snapshot() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    for number in range(1, 6):
        save(store, make({"home/f": b"%d" % number}), at=float(number))
        bucket.clock.now += 300
    store.pin(ENVIRONMENT, 2, "before the exam", "alice")
    nothing = Policy(0, 0, 0, 0)
    assert store.prune(ENVIRONMENT, nothing, bucket.clock.time() + 1, protected=[3]) == [1, 4]
    assert [one.number for one in store.snapshots(ENVIRONMENT)] == [2, 3, 5]
    assert store.prune(ENVIRONMENT, nothing, bucket.clock.time() + 1) == [3]
    # A prune that did not see the pin in time takes the document; the pin holds the snapshot itself.
    bucket.objects.delete(keys.snapshot(ENVIRONMENT, 2))
    fresh = bucket.store()
    assert fresh.snapshot(ENVIRONMENT, 2).note == "before the exam"
    assert contents(fresh, 2) == {"home/f": b"2"}
    fresh.unpin(ENVIRONMENT, 2)
    with pytest.raises(NoSuchThing):
        bucket.store().snapshot(ENVIRONMENT, 2)
    with pytest.raises(NoSuchThing):
        fresh.pin(ENVIRONMENT, 4, "", "alice")


def test_retention_reads_each_snapshot_once() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    for number in range(1, 9):
        save(store, make({"home/f": b"%d" % number}), at=float(number))
    read: list[str] = []

    class Counting(StoreWrapper):
        def _perform(self, call: Call, action: Callable[[], T]) -> T:
            if call.operation == "get":
                read.append(call.key.rpartition("/")[2])
            return action()

    fresh = bucket.store(Counting(bucket.objects))
    fresh.pin(ENVIRONMENT, 3, "", "alice")
    bucket.objects.delete(keys.snapshot(ENVIRONMENT, 3))
    assert [(one.number, one.pinned) for one in fresh.dated(ENVIRONMENT)] == [(n, n == 3) for n in range(1, 9)]
    read.clear()
    assert len(fresh.dated(ENVIRONMENT)) == 8
    assert read == ["head", "000000000003"]


def test_a_lost_head_is_made_anew_from_the_newest_snapshot_that_is_left() -> None:
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 3)
    save(store, FIRST, generation=3)
    save(store, SECOND, generation=3, at=2.0)
    bucket.objects.delete(keys.head(ENVIRONMENT))
    with pytest.raises(NoSuchThing):
        store.commit(ENVIRONMENT, 3, commit_of(FIRST, 2))
    with pytest.raises(Fenced):
        store.fence(ENVIRONMENT, 2)
    head = store.fence(ENVIRONMENT, 4)
    assert (head.generation, head.number, head.newest) == (4, 1, store.snapshot(ENVIRONMENT, 1))
    # What machines do next is to restore that one; no number is given twice.
    assert save(store, SECOND, generation=4, at=3.0).number == 2
    assert contents(store, 1)["home/ann/b"] == b"beta"


def test_a_purge_takes_everything_of_one_home_and_can_be_repeated() -> None:
    bucket = Bucket()
    store = bucket.store()
    for environment in (ENVIRONMENT, OTHER):
        store.fence(environment, 1)
        save(store, FIRST, environment_id=environment)
    others = bucket.keys(f"env/{OTHER}/")
    with pytest.raises(Died):
        bucket.store(Dying(bucket.objects, 2, after=False)).purge(ENVIRONMENT)
    assert store.head(ENVIRONMENT) is None
    assert bucket.keys(f"env/{ENVIRONMENT}/")
    store.purge(ENVIRONMENT)
    assert bucket.keys() == others
    assert store.usage(OTHER).objects == len(others)


def test_names_and_sizes_that_cannot_be_get_no_address() -> None:
    store = Bucket().store()
    store.fence(ENVIRONMENT, 1)
    good = "a" * 64
    for name in ("head", "packs/../head", f"packs/{good}/x", f"packs/{good.upper()}", f"../{OTHER}/packs/{good}", ""):
        with pytest.raises(Invalid):
            store.upload_urls(ENVIRONMENT, [(name, 1, good)])
        with pytest.raises(Invalid):
            store.download_urls(ENVIRONMENT, [name])
    for size in (0, -1, 2**40):
        with pytest.raises(Invalid):
            store.upload_urls(ENVIRONMENT, [(f"packs/{good}", size, good)])
    with pytest.raises(Invalid):
        store.upload_urls(ENVIRONMENT, [(f"packs/{good}", 1, "b" * 64)])
    with pytest.raises(Invalid):
        store.download_urls(ENVIRONMENT, [f"packs/{good}"] * 501)
    with pytest.raises(ValueError):
        store.fence("../x", 1)
