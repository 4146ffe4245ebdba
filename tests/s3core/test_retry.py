"""Which answers are repeated, how long the waits are, and what the caller hears in the end."""

import logging
import random
from collections.abc import Callable, Iterable

import pytest

from s3core.errors import Denied, NotFound, OutcomeUnknown, PreconditionFailed, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.memory import MemoryStore
from s3core.retry import RetryingStore, RetryPolicy
from s3core.store import ObjectStore
from s3core.wrapper import PAGE_KEYS, Call, Operation
from tests.s3core.fakes import FakeClock

REFUSED = Fault(FaultKind.REFUSED)
LOST_REPLY = Fault(FaultKind.LOST_REPLY)
LOST_REQUEST = Fault(FaultKind.LOST_REQUEST)


class World:
    """A retrying store on a faulty one on a memory store, with everything in reach."""

    def __init__(self, scripted: dict[tuple[str, int], Fault], policy: RetryPolicy | None = None) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(part_bytes_min=1)
        self.faulty = FaultyStore(self.memory, FaultPlan(scripted=scripted), random.Random(1), self.clock)
        self.retried: list[Call] = []
        self.store: ObjectStore = RetryingStore(
            self.faulty, self.clock, random.Random(2), policy, on_retry=lambda call, error: self.retried.append(call)
        )


def always(operation: Operation, fault: Fault) -> dict[tuple[str, int], Fault]:
    return {(operation, number): fault for number in range(1, 100)}


def test_delay_is_full_jitter_below_a_doubling_ceiling() -> None:
    policy, rng = RetryPolicy(delay_first_s=0.1, delay_max_s=2.0), random.Random(7)
    for failures, ceiling in ((1, 0.1), (2, 0.2), (3, 0.4), (5, 1.6), (6, 2.0), (2000, 2.0)):
        delays = [policy.delay(failures, rng) for _ in range(200)]
        assert 0 <= min(delays) < 0.1 * ceiling
        assert 0.9 * ceiling < max(delays) <= ceiling
    assert policy.delay(1, rng, asked_s=5.0) == 5.0


CALLS: list[tuple[Operation, Callable[[ObjectStore], object]]] = [
    ("get", lambda store: store.get("k")),
    ("get_range", lambda store: store.get_range("k", 0, 1)),
    ("head", lambda store: store.head("k")),
    ("put", lambda store: store.put("new", b"x")),
    ("put_if_absent", lambda store: store.put_if_absent("new", b"x")),
    ("put_if_match", lambda store: store.put_if_match("k", b"x", store.head("k").etag)),
    ("delete", lambda store: store.delete("k")),
    ("copy", lambda store: store.copy("k", "new")),
    ("list", lambda store: list(store.list())),
    ("list_prefixes", lambda store: list(store.list_prefixes())),
    ("delete_many", lambda store: store.delete_many(["k"])),
    ("multipart", lambda store: store.multipart("new")),
]


@pytest.mark.parametrize(("operation", "ask"), CALLS, ids=[operation for operation, _ in CALLS])
def test_unavailable_is_repeated_whatever_was_asked(operation: Operation, ask: Callable[[ObjectStore], object]) -> None:
    world = World({(operation, 1): REFUSED, (operation, 2): REFUSED})
    world.memory.put("k", b"old")
    ask(world.store)
    assert world.faulty.calls[operation] >= 3
    assert [call.operation for call in world.retried] == [operation, operation]
    assert len(world.clock.slept) == 2


@pytest.mark.parametrize(("operation", "ask"), CALLS, ids=[operation for operation, _ in CALLS])
def test_a_lost_reply_is_repeated_unless_there_was_a_condition(
    operation: Operation, ask: Callable[[ObjectStore], object]
) -> None:
    world = World({(operation, 1): LOST_REPLY})
    world.memory.put("k", b"old")
    if operation in ("put_if_absent", "put_if_match"):
        with pytest.raises(OutcomeUnknown):
            ask(world.store)
        assert world.faulty.calls[operation] == 1
        assert world.memory.get("new" if operation == "put_if_absent" else "k").data == b"x"
    else:
        ask(world.store)
        assert world.faulty.calls[operation] >= 2


def test_other_errors_go_up_at_once() -> None:
    world = World({})
    world.memory.put("k", b"")
    with pytest.raises(NotFound):
        world.store.get("absent")
    with pytest.raises(PreconditionFailed):
        world.store.put_if_absent("k", b"")
    assert world.clock.slept == []


def test_attempts_are_bounded(caplog: pytest.LogCaptureFixture) -> None:
    world = World(always("get", REFUSED), RetryPolicy(attempts_max=4))
    with caplog.at_level(logging.DEBUG), pytest.raises(Unavailable):
        world.store.get("k")
    assert world.faulty.calls["get"] == 4
    assert len(world.clock.slept) == 3
    assert [record.levelname for record in caplog.records] == ["DEBUG", "INFO", "WARNING", "ERROR"]
    assert "attempts=4" in caplog.text


def test_no_wait_passes_the_deadline() -> None:
    policy = RetryPolicy(attempts_max=1000, delay_first_s=1.0, delay_max_s=8.0, deadline_s=30.0)
    world = World(always("get", REFUSED), policy)
    with pytest.raises(Unavailable):
        world.store.get("k")
    assert sum(world.clock.slept) <= 30.0
    assert sum(world.clock.slept) > 30.0 - 8.0


def test_time_that_attempts_took_counts_against_the_deadline() -> None:
    world = World(always("get", Fault(FaultKind.HANG, seconds=20.0)), RetryPolicy(deadline_s=30.0))
    with pytest.raises(Unavailable):
        world.store.get("k")
    assert world.faulty.calls["get"] == 2


def test_the_server_may_ask_for_a_longer_wait() -> None:
    world = World({("get", 1): Fault(FaultKind.SLOW_DOWN, seconds=17.0)})
    world.memory.put("k", b"")
    world.store.get("k")
    assert world.clock.slept == [17.0]


def test_a_longer_wait_than_the_deadline_is_not_waited_for() -> None:
    world = World({("get", 1): Fault(FaultKind.SLOW_DOWN, seconds=61.0)})
    with pytest.raises(Unavailable):
        world.store.get("k")
    assert world.clock.slept == []


@pytest.mark.parametrize("operation", ["put", "delete", "copy"])
def test_unknown_stays_unknown_when_giving_up(operation: Operation) -> None:
    """The first attempt may have been applied: that later ones were refused does not make it known."""
    world = World({**always(operation, REFUSED), (operation, 1): LOST_REQUEST}, RetryPolicy(attempts_max=3))
    world.memory.put("k", b"old")
    ask = dict(CALLS)[operation]
    with pytest.raises(OutcomeUnknown, match="earlier attempt") as caught:
        ask(world.store)
    assert isinstance(caught.value.__cause__, Unavailable)


def test_unknown_stays_unknown_when_then_denied() -> None:
    class Denying(MemoryStore):
        def put(self, *args: object, **named: object) -> str:
            raise Denied("no permission", hint="s3:PutObject is missing")

    clock = FakeClock()
    plan = FaultPlan(scripted={("put", 1): LOST_REQUEST})
    faulty = FaultyStore(Denying(), plan, random.Random(1), clock)
    with pytest.raises(OutcomeUnknown, match="s3:PutObject"):
        RetryingStore(faulty, clock, random.Random(1)).put("k", b"")


def test_unknown_then_done_is_done() -> None:
    world = World({("put", 1): LOST_REPLY, ("put", 2): REFUSED})
    assert world.store.put("k", b"x") == world.memory.head("k").etag


def test_listing_goes_on_after_the_last_key() -> None:
    names = [f"k{number:05d}" for number in range(3 * PAGE_KEYS)]
    world = World({("list", 2): REFUSED, ("list", 4): LOST_REPLY, ("list", 5): REFUSED})
    for name in names:
        world.memory.put(name, b"")
    assert [info.key for info in world.store.list("k")] == names
    assert len(world.retried) == 3


def test_listing_gives_up_only_without_progress() -> None:
    """Each page that comes starts the count anew."""
    faults: dict[tuple[str, int], Fault] = {("list", number): REFUSED for number in (1, 3, 5)}
    world = World(faults, RetryPolicy(attempts_max=2))
    for number in range(2 * PAGE_KEYS + 1):
        world.memory.put(f"k{number:05d}", b"")
    assert len(list(world.store.list())) == 2 * PAGE_KEYS + 1
    stuck = World(always("list", REFUSED), RetryPolicy(attempts_max=2))
    with pytest.raises(Unavailable):
        list(stuck.store.list())


def test_prefixes_are_not_told_twice() -> None:
    names = [f"{number:05d}/k" for number in range(PAGE_KEYS + 5)]
    world = World({("list_prefixes", 2): REFUSED})
    for name in names:
        world.memory.put(name, b"")
    assert list(world.store.list_prefixes()) == [name[:-1] for name in names]


def test_of_many_deletes_only_the_failed_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World({("delete_many", 1): Fault(FaultKind.SHORT_BODY)})
    keys = [f"k{number}" for number in range(10)]
    for key in keys:
        world.memory.put(key, b"")
    asked: list[list[str]] = []
    inner = world.memory.delete_many

    def spy(keys: Iterable[str]) -> dict[str, StoreError]:
        asked.append(list(keys))
        return inner(asked[-1])

    monkeypatch.setattr(world.memory, "delete_many", spy)
    assert world.store.delete_many(keys) == {}
    assert asked == [keys[:5], keys[5:]]
    assert list(world.memory.list()) == []


def test_of_many_deletes_those_that_stay_are_told() -> None:
    faults = {**always("delete_many", REFUSED), ("delete_many", 1): LOST_REQUEST}
    world = World(faults, RetryPolicy(attempts_max=3))
    failed = world.store.delete_many(["a", "b"])
    assert set(failed) == {"a", "b"}
    assert all(isinstance(error, OutcomeUnknown) for error in failed.values())


def test_parts_are_repeated_and_completion_is_not() -> None:
    world = World({("part", 1): LOST_REPLY, ("complete", 1): REFUSED, ("complete", 2): LOST_REPLY})
    upload = world.store.multipart("k")
    upload.part(1, b"x")
    with pytest.raises(OutcomeUnknown):
        upload.complete()
    assert world.faulty.calls["part"] == 2
    assert world.faulty.calls["complete"] == 2
    assert world.memory.get("k").data == b"x"
