"""The fault model, kind by kind; and that a seed repeats a run."""

import random
from collections.abc import Callable

import pytest

from s3core.errors import NotFound, OutcomeUnknown, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore, SlowDown
from s3core.memory import MemoryStore
from s3core.wrapper import Operation
from tests.s3core.fakes import FakeClock


class World:
    def __init__(self, plan: FaultPlan | None = None, seed: int = 1) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(clock=self.clock, part_bytes_min=1)
        self.memory.put("k", b"old")
        self.store = FaultyStore(self.memory, plan or FaultPlan(), random.Random(seed), self.clock)

    def next(self, operation: Operation, fault: Fault) -> None:
        """The next call of `operation` suffers `fault`."""
        self.store.plan = FaultPlan(scripted={(operation, self.store.calls[operation] + 1): fault})

    def held(self, key: str = "k") -> bytes | None:
        try:
            return self.memory.get(key).data
        except NotFound:
            return None


@pytest.mark.parametrize(
    ("kind", "heard", "arrived"),
    [
        (FaultKind.REFUSED, Unavailable, False),
        (FaultKind.SLOW_DOWN, SlowDown, False),
        (FaultKind.LOST_REQUEST, OutcomeUnknown, False),
        (FaultKind.LOST_REPLY, OutcomeUnknown, True),
        (FaultKind.LATE, OutcomeUnknown, False),
        (FaultKind.SHORT_BODY, Unavailable, False),
        (FaultKind.PARTITION, Unavailable, False),
    ],
)
def test_faults_of_writes(kind: FaultKind, heard: type[StoreError], arrived: bool) -> None:
    world = World()
    world.next("put", Fault(kind))
    with pytest.raises(heard) as caught:
        world.store.put("k", b"new")
    assert caught.value.key == "k"
    assert world.held() == (b"new" if arrived else b"old")
    world.store.heal()
    world.store.put("k", b"newer")
    assert world.held() == b"newer"


@pytest.mark.parametrize(
    "kind",
    [kind for kind in FaultKind if kind not in (FaultKind.SLOW, FaultKind.FLIPPED_BIT)],
)
def test_a_read_that_fails_was_not_applied(kind: FaultKind) -> None:
    world = World()
    asks: tuple[tuple[Operation, Callable[[], object]], ...] = (
        ("get", lambda: world.store.get("k")),
        ("get_range", lambda: world.store.get_range("k", 0, 1)),
        ("head", lambda: world.store.head("k")),
        ("list", lambda: list(world.store.list())),
    )
    for operation, ask in asks:
        world.next(operation, Fault(kind))
        with pytest.raises(Unavailable):
            ask()
        world.store.heal()


def test_late_requests_arrive_before_a_later_call() -> None:
    world = World()
    world.next("put_if_absent", Fault(FaultKind.LATE, calls=3))
    body = bytearray(b"late")
    with pytest.raises(OutcomeUnknown):
        world.store.put_if_absent("new", body)
    body[:] = b"gone"
    for _ in range(2):
        with pytest.raises(NotFound):
            world.store.get("new")
    assert world.store.get("new").data == b"late"


def test_a_late_condition_is_judged_when_it_arrives() -> None:
    world = World()
    world.next("put_if_absent", Fault(FaultKind.LATE, calls=2))
    with pytest.raises(OutcomeUnknown):
        world.store.put_if_absent("new", b"late")
    world.store.put_if_absent("new", b"in time")
    assert world.store.settle() == 1
    assert world.held("new") == b"in time"


def test_settling_after_a_crash_lets_the_coin_fall_per_request() -> None:
    landed = set()
    for seed in range(20):
        world = World(seed=seed)
        for number in range(2):
            world.next("put", Fault(FaultKind.LATE, calls=100))
            with pytest.raises(OutcomeUnknown):
                world.store.put(f"new{number}", b"x")
        world.store.settle(all_arrive=False)
        landed.add((world.held("new0"), world.held("new1")))
    assert len(landed) == 4


def test_settling_brings_everything_in_order() -> None:
    world = World()
    for number in range(3):
        world.next("put", Fault(FaultKind.LATE, calls=100 - number))
        with pytest.raises(OutcomeUnknown):
            world.store.put("k", b"%d" % number)
    assert world.store.settle() == 3
    assert world.held() == b"2"


def test_slow_takes_its_time() -> None:
    world = World()
    world.next("get", Fault(FaultKind.SLOW, seconds=1.5))
    assert world.store.get("k").data == b"old"
    assert world.clock.slept == [1.5]


def test_hanging_ends_unknown_either_way() -> None:
    outcomes = set()
    for seed in range(20):
        world = World(seed=seed)
        world.next("put", Fault(FaultKind.HANG, seconds=60))
        with pytest.raises(OutcomeUnknown, match="60 s"):
            world.store.put("k", b"new")
        assert world.clock.slept == [60]
        outcomes.add(world.held())
    assert outcomes == {b"old", b"new"}


def test_partition_until_healed() -> None:
    world = World()
    world.store.partition()
    world.clock.now += 1e9
    for _ in range(3):
        with pytest.raises(Unavailable):
            world.store.put("k", b"new")
    assert world.store.delete_many(["k"]).keys() == {"k"}
    assert world.held() == b"old"
    assert world.store.partitioned
    world.store.heal()
    assert world.store.get("k").data == b"old"


def test_partition_for_a_while() -> None:
    world = World()
    world.next("get", Fault(FaultKind.PARTITION, seconds=10))
    with pytest.raises(Unavailable):
        world.store.get("k")
    world.clock.now += 9
    with pytest.raises(Unavailable):
        world.store.put("k", b"new")
    world.clock.now += 1
    assert world.store.get("k").data == b"old"


def test_slow_down_says_how_long() -> None:
    world = World()
    world.next("get", Fault(FaultKind.SLOW_DOWN, seconds=3))
    with pytest.raises(SlowDown) as caught:
        world.store.get("k")
    assert caught.value.retry_after == 3


def test_one_bit_is_flipped_and_nobody_says_so() -> None:
    world = World()
    world.next("get", Fault(FaultKind.FLIPPED_BIT))
    body = world.store.get("k")
    assert body.etag == world.memory.get("k").etag
    assert len(body.data) == 3
    assert sum((one ^ other).bit_count() for one, other in zip(body.data, b"old", strict=True)) == 1
    assert world.held() == b"old"


def test_a_short_removal_of_many_does_half() -> None:
    world = World()
    for key in "abcd":
        world.memory.put(key, b"")
    world.next("delete_many", Fault(FaultKind.SHORT_BODY))
    failed = world.store.delete_many("abcd")
    assert list(failed) == ["c", "d"]
    assert [info.key for info in world.memory.list()] == ["c", "d", "k"]


def test_a_lost_reply_hides_a_refusal() -> None:
    """The caller cannot tell a refused conditional put from one that was applied."""
    world = World()
    world.next("put_if_absent", Fault(FaultKind.LOST_REPLY))
    with pytest.raises(OutcomeUnknown):
        world.store.put_if_absent("k", b"new")
    assert world.held() == b"old"


def test_the_nth_call_of_all() -> None:
    world = World(FaultPlan(scripted={("any", 3): Fault(FaultKind.REFUSED)}))
    world.store.get("k")
    world.store.head("k")
    with pytest.raises(Unavailable):
        world.store.put("k", b"")
    world.store.put("k", b"")
    assert [(event.operation, event.fault) for event in world.store.trace] == [
        ("get", None),
        ("head", None),
        ("put", FaultKind.REFUSED),
        ("put", None),
    ]


def test_parts_and_completion_fail_too() -> None:
    world = World(
        FaultPlan(scripted={("part", 1): Fault(FaultKind.LATE), ("complete", 1): Fault(FaultKind.LOST_REPLY)})
    )
    upload = world.store.multipart("new")
    with pytest.raises(OutcomeUnknown):
        upload.part(1, b"x")
    upload.part(1, b"y")
    with pytest.raises(OutcomeUnknown):
        upload.complete()
    assert world.held("new") == b"y"


def test_a_listing_may_fail_between_pages() -> None:
    world = World(FaultPlan(scripted={("list", 2): Fault(FaultKind.REFUSED)}))
    for number in range(1500):
        world.memory.put(f"l{number:04d}", b"")
    had: list[str] = []

    def walk() -> None:
        had.extend(info.key for info in world.store.list("l"))

    with pytest.raises(Unavailable):
        walk()
    assert had == [f"l{number:04d}" for number in range(1000)]


def run(seed: int) -> list[tuple[str, str, str | None]]:
    rates = {**FaultPlan.even(0.5), FaultKind.FLIPPED_BIT: 0.05, FaultKind.PARTITION: 0.02}
    world = World(FaultPlan(rates=rates, partition_s=5), seed)
    for number in range(300):
        world.clock.now += 0.1
        try:
            world.store.put(f"k{number % 7}", b"%d" % number)
            world.store.get(f"k{number % 5}")
        except StoreError:
            continue
    world.store.settle()
    return [(event.operation, event.key, event.fault) for event in world.store.trace] + [
        (info.key, info.etag, None) for info in world.memory.list()
    ]


def test_a_seed_repeats_a_run_and_every_kind_occurs() -> None:
    first = run(5)
    assert first == run(5)
    assert first != run(6)
    assert {fault for _, _, fault in first} >= set(FaultKind)


def test_rates_apply_to_the_named_operations_alone() -> None:
    plan = FaultPlan(rates={FaultKind.REFUSED: 1.0}, operations=frozenset({"put"}))
    world = World(plan)
    assert world.store.get("k").data == b"old"
    with pytest.raises(Unavailable):
        world.store.put("k", b"")


def test_a_script_with_a_slip_of_the_pen_is_refused() -> None:
    with pytest.raises(ValueError, match="put_if_absnt"):
        FaultPlan(scripted={("put_if_absnt", 1): Fault(FaultKind.REFUSED)})


def test_rates_beyond_certainty_are_refused() -> None:
    with pytest.raises(ValueError, match="rates"):
        FaultPlan(rates={FaultKind.REFUSED: 0.7, FaultKind.LATE: 0.4})
