"""The collector never takes what a snapshot or a commit in flight refers to, wherever the two meet.

Two actors share a bucket; each request of one is a place where the other may come in between. Every schedule of the form
"one does i requests, the other j, then each goes to its end" is tried, with either one first to end.
"""

import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest

from envctl.errors import EnvctlError, HomeDamaged
from envctl.homes import collecting, keys
from envctl.homes.collecting import WAIT_S
from envctl.homes.documents import read_doomed
from envctl.homes.errors import HomeBusy, ObjectsMissing
from envctl.homes.retention import Policy
from envctl.homes.store import HomeStore
from s3core.errors import StoreError
from s3core.wrapper import Call, StoreWrapper
from tests.envctl.homes.making import ENVIRONMENT, Bucket, Made, commit_of, contents, make, save, upload

OLD = make({"home/a": b"old" * 20})
BASE = make({"home/a": b"base" * 20})
NEXT = make({"home/a": b"next" * 20})
T = TypeVar("T")


class Killed(BaseException):
    """The process of an actor."""


class Stepped(StoreWrapper):
    """Each request waits until it is told to go on."""

    def __init__(self, inner: Any, turn: Callable[[], None]) -> None:
        super().__init__(inner)
        self._turn = turn

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        self._turn()
        return action()


class Actor:
    """Something that asks the bucket, one request at a time when it is told."""

    def __init__(self, bucket: Bucket, act: Callable[[HomeStore], object]) -> None:
        self._go, self._stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.over = self._killed = False
        self.requests = 0
        self.outcome: object = None
        store = bucket.store(Stepped(bucket.objects, self._turn))

        def run() -> None:
            self._go.acquire()
            try:
                self.outcome = act(store)
            except (EnvctlError, StoreError, Killed) as error:
                self.outcome = error
            self.over = True
            self._stopped.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _turn(self) -> None:
        self.requests += 1
        self._stopped.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def kill(self) -> None:
        """The request that it waits to make is never made, nor any other."""
        self._killed = True
        self.finish()

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            if not self.over:
                self._go.release()
                self._stopped.acquire()

    def finish(self) -> None:
        while not self.over:
            self.step()


def schedules(make_pair: Callable[[], tuple[Bucket, Actor, Actor]]) -> Iterator[tuple[Bucket, Actor, Actor]]:
    """Every run of the pair with at most three changes of turn."""
    _, one, other = make_pair()
    one.finish()
    other.finish()
    lengths = one.requests + 2, other.requests + 2
    for i, j in itertools.product(range(lengths[0]), range(lengths[1])):
        for swapped in (False, True):
            bucket, one, other = make_pair()
            first, second = (other, one) if swapped else (one, other)
            first.step(j if swapped else i)
            second.step(i if swapped else j)
            first.finish()
            second.finish()
            yield bucket, one, other


def complete(bucket: Bucket) -> None:
    """Every snapshot that is visible can be read to its last byte."""
    store = bucket.store()
    for one in store.snapshots(ENVIRONMENT):
        assert contents(store, one.number), one


def abandoned(leftover: Made) -> tuple[Bucket, HomeStore]:
    """A home whose newest backup is BASE, and objects of a run that was broken off long ago."""
    bucket = Bucket()
    store = bucket.store()
    store.fence(ENVIRONMENT, 1)
    save(store, BASE)
    upload(store, leftover)
    bucket.clock.now += WAIT_S + 1
    return bucket, store


def marked(leftover: Made) -> Bucket:
    """As `abandoned`, and the collector has marked them long ago."""
    bucket, store = abandoned(leftover)
    assert store.collect(ENVIRONMENT, bucket.clock.time()).marked > 0
    bucket.clock.now += WAIT_S + 1
    return bucket


def backup(store: HomeStore) -> object:
    """An agent's run that finds its objects there already, as it does after one that was broken off."""
    upload(store, NEXT)
    return store.commit(ENVIRONMENT, 1, commit_of(NEXT, 1, at=9.0))


def commit_alone(store: HomeStore) -> object:
    """A commit that asked for addresses long ago."""
    return store.commit(ENVIRONMENT, 1, commit_of(NEXT, 1, at=9.0))


@pytest.mark.parametrize("act", [backup, commit_alone])
def test_a_sweep_and_a_commit_of_what_is_swept(act: Callable[[HomeStore], object]) -> None:
    def pair() -> tuple[Bucket, Actor, Actor]:
        bucket = marked(NEXT)
        now = bucket.clock.time()
        return bucket, Actor(bucket, act), Actor(bucket, lambda store: store.collect(ENVIRONMENT, now))

    outcomes: set[str] = set()
    for bucket, committing, collecting_ in schedules(pair):
        assert not isinstance(collecting_.outcome, Exception), collecting_.outcome
        outcomes.add(type(committing.outcome).__name__)
        assert type(committing.outcome).__name__ in ("Snapshot", "ObjectsMissing", "HomeBusy"), committing.outcome
        complete(bucket)
        # The agent's next run succeeds, and its backup is whole.
        store = bucket.store()
        if store.head(ENVIRONMENT).number == 1:  # type: ignore[union-attr]  # it was fenced
            backup(store)
        assert contents(bucket.store(), 2)["home/a"] == b"next" * 20
    # Both ends were seen, or nothing was tried.
    assert "Snapshot" in outcomes
    assert len(outcomes) > 1


def test_a_mark_and_a_commit() -> None:
    def pair() -> tuple[Bucket, Actor, Actor]:
        bucket, _ = abandoned(NEXT)
        now = bucket.clock.time()
        return bucket, Actor(bucket, backup), Actor(bucket, lambda store: store.collect(ENVIRONMENT, now))

    for bucket, committing, _ in schedules(pair):
        assert type(committing.outcome).__name__ == "Snapshot", committing.outcome
        bucket.clock.now += WAIT_S + 1
        bucket.store().collect(ENVIRONMENT, bucket.clock.time())
        complete(bucket)


def test_a_commit_that_slept_from_before_the_mark_until_after_the_sweep() -> None:
    """The whole of both phases comes between two requests of a commit."""
    for at in range(20):
        bucket, store = abandoned(NEXT)
        committing = Actor(bucket, commit_alone)
        committing.step(at)
        for _ in range(2):
            store.collect(ENVIRONMENT, bucket.clock.time())
            bucket.clock.now += WAIT_S + 1
        store.collect(ENVIRONMENT, bucket.clock.time())
        committing.finish()
        complete(bucket)
        if not isinstance(committing.outcome, ObjectsMissing):
            assert contents(bucket.store(), 2)["home/a"] == b"next" * 20
            return
    raise AssertionError("no schedule let the commit through")


def test_two_sweepers_and_a_backup_between_them() -> None:
    def pair() -> tuple[Bucket, Actor, Actor]:
        bucket = marked(NEXT)
        now = bucket.clock.time()
        collect = lambda store: store.collect(ENVIRONMENT, now)  # noqa: E731 - the same act twice
        return bucket, Actor(bucket, collect), Actor(bucket, collect)

    for bucket, _, _ in schedules(pair):
        complete(bucket)
        store = bucket.store()
        backup(store)
        assert contents(store, 2)["home/a"] == b"next" * 20


def test_a_pin_and_a_prune_of_the_same_backup() -> None:
    def pair() -> tuple[Bucket, Actor, Actor]:
        bucket = Bucket()
        store = bucket.store()
        store.fence(ENVIRONMENT, 1)
        save(store, OLD)
        save(store, BASE, at=2.0)
        now = bucket.clock.time() + 10
        pin = Actor(bucket, lambda store: store.pin(ENVIRONMENT, 1, "kept", "alice"))
        return bucket, pin, Actor(bucket, lambda store: store.prune(ENVIRONMENT, Policy(0, 0, 0, 0), now))

    for bucket, pin, _ in schedules(pair):
        for _ in range(3):
            bucket.clock.now += WAIT_S + 1
            bucket.store().collect(ENVIRONMENT, bucket.clock.time())
        complete(bucket)
        pinned = not isinstance(pin.outcome, Exception)
        assert pinned == (1 in [one.number for one in bucket.store().snapshots(ENVIRONMENT)])


def test_garbage_goes_in_two_phases_and_nothing_else() -> None:
    bucket, store = abandoned(NEXT)
    live = set(bucket.keys())
    for name in NEXT.objects:
        if name not in BASE.objects:
            live.discard(keys.content(ENVIRONMENT, keys.object_name(name)))
    fresh = make({"home/z": b"uploaded just now"})
    upload(store, fresh)
    first = store.collect(ENVIRONMENT, bucket.clock.time())
    assert (first.marked, first.deleted) == (len([name for name in NEXT.objects if name not in BASE.objects]), 0)
    early = store.collect(ENVIRONMENT, bucket.clock.time() + WAIT_S - 5)
    assert (early.marked, early.deleted, early.waiting) == (0, 0, first.marked)
    last = store.collect(ENVIRONMENT, bucket.clock.time() + WAIT_S)
    assert last.deleted == first.marked
    there = {key for key in list(bucket.keys()) if "/doomed/" not in key}
    assert there == live | {keys.content(ENVIRONMENT, keys.object_name(name)) for name in fresh.objects}
    assert contents(store, 1)["home/a"] == b"base" * 20


def test_what_is_found_there_again_is_spared() -> None:
    bucket = marked(NEXT)
    store = bucket.store()
    assert upload(store, NEXT) == 0
    (key,) = collecting.list_keys(store, ENVIRONMENT)
    assert read_doomed(bucket.objects.get(key).data, key).names == ()
    store.collect(ENVIRONMENT, bucket.clock.time())
    assert store.commit(ENVIRONMENT, 1, commit_of(NEXT, 1, at=9.0)).number == 2


def test_a_sweep_that_was_killed_is_taken_up_again() -> None:
    """Killed at each of its requests; until it is taken up its names count as missing, and then everything is in order."""
    for at in range(1, 40):
        bucket = marked(NEXT)
        now = bucket.clock.time()
        killed = Actor(bucket, lambda store, now=now: store.collect(ENVIRONMENT, now))  # type: ignore[misc]  # of this round
        killed.step(at)
        if killed.over:
            return
        killed.kill()
        store = bucket.store()
        state = [
            read_doomed(bucket.objects.get(key).data, key).state for key in collecting.list_keys(store, ENVIRONMENT)
        ]
        if state == ["sweeping"]:
            with pytest.raises(HomeBusy):
                upload(store, NEXT)
            with pytest.raises(ObjectsMissing):
                store.commit(ENVIRONMENT, 1, commit_of(NEXT, 1, at=9.0))
        bucket.clock.now += collecting.CLAIM_S + 1
        store.collect(ENVIRONMENT, bucket.clock.time())
        complete(bucket)
        backup(store)
        assert contents(store, 2)["home/a"] == b"next" * 20
    raise AssertionError("a collection takes more than 40 requests")


def test_a_sweeper_that_slept_too_long_deletes_nothing_more() -> None:
    bucket = marked(NEXT)
    now = bucket.clock.time()
    before = set(bucket.keys())
    slow = Actor(bucket, lambda store: store.collect(ENVIRONMENT, now))
    while not any(
        read_doomed(bucket.objects.get(key).data, key).state == "sweeping"
        for key in collecting.list_keys(bucket.store(), ENVIRONMENT)
    ):
        slow.step()
    bucket.clock.now += collecting.SWEEP_S + 1
    slow.finish()
    assert {key for key in before if "/packs/" in key or "/trees/" in key} <= set(bucket.keys())


def test_a_home_with_a_missing_tree_is_not_collected() -> None:
    bucket, _ = abandoned(NEXT)
    bucket.objects.delete(keys.content(ENVIRONMENT, keys.tree(BASE.trees[0])))
    before = bucket.keys()
    with pytest.raises(HomeDamaged, match=BASE.trees[0]):
        bucket.store().collect(ENVIRONMENT, bucket.clock.time())
    assert bucket.keys() == before
