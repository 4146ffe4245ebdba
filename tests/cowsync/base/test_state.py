"""The state: published means whole, whatever dies when, and whoever else is at it."""

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cowsync.base.folding import Cuts
from cowsync.base.head import Head
from cowsync.base.layers import read
from cowsync.base.snapshot import Facts, Totals
from cowsync.base.state import AGE_SECONDS, HEAD, SEGMENTS, SNAPSHOTS, State
from cowsync.errors import Refused, StateDamaged
from cowsync.rows import REMOVED, Row, Rows
from s3core.errors import NotFound, OutcomeUnknown, StoreError, Unavailable
from s3core.faulty import Fault, FaultKind, FaultPlan, FaultyStore
from s3core.memory import MemoryObjects, MemoryStore
from s3core.store import ObjectStore
from s3core.wrapper import Call, StoreWrapper
from tests.cowsync.base.shelf import as_rows, in_pieces, tables
from tests.cowsync.base.test_layers import latest
from tests.s3core.fakes import FakeClock

CUTS = Cuts(least=4, one_in=6, most=25)
T = TypeVar("T")
Table = dict[bytes, Row]


def facts(run: int) -> Facts:
    return Facts(run, f"2026-11-21T22:00:{run:02}Z", "s3://source", "s3://mirror", ((b"", None),))


def table(*numbers: int, etag: bytes = b"e", gone: int = 0) -> Table:
    return {b"%03d" % n: Row(b"%03d" % n, n, etag, b"", gone=gone) for n in numbers}


def totals(model: Table) -> Totals:
    return Totals(len(model), sum(row.gone > 0 for row in model.values()), sum(row.size for row in model.values()))


class World:
    """A bucket, a clock, and as many hosts as are asked for."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.bucket = MemoryObjects()
        self.store = MemoryStore(clock=self.clock, bucket=self.bucket)
        self._folder = folder
        self._hosts = 0

    def host(self, store: ObjectStore | None = None) -> State:
        """A host that never saw this state."""
        self._hosts += 1
        folder = self._folder / f"{self._hosts}"
        return State(store or self.store, folder, clock=self.clock, cuts=CUTS, workers=1)

    def faulty(self, plan: FaultPlan) -> FaultyStore:
        return FaultyStore(self.store, plan, random.Random(1), self.clock)

    def publish(self, *rows: Table, host: State | None = None, first: int = 1) -> Head:
        host = host or self.host()
        for run, changed in enumerate(rows, first):
            head = host.head()
            before = content(host, head.current) if head.entries else {}
            after = latest([before, changed])
            delta = Totals(*(b - a for a, b in zip(tuple_of(before), tuple_of(after), strict=True)))
            head = host.publish(head, in_pieces(changed, []), facts(run), delta)
            assert content(host, head.current) == after
            assert host.snapshot(head.current).totals == totals(after)
        return host.head()

    def check_whole(self) -> dict[str, Table]:
        """What a new host reads of all that HEAD names."""
        host = self.host()
        return {entry.name: content(host, entry.name) for entry in host.head().entries}

    def keys_named(self) -> set[str]:
        host = self.host()
        head = host.head()
        named = {HEAD} if head.entries else set()
        for entry in head.entries:
            named.add(f"snapshots/{entry.name}.json")
            layers = host.snapshot(entry.name).layers
            named |= {f"segments/{ref.name}.seg" for layer in layers for ref in layer}
        return named

    def check_tidy(self) -> None:
        """Once all is old, a prune leaves exactly what is named."""
        self.clock.sleep(2 * AGE_SECONDS)
        host = self.host()
        host.prune([entry.name for entry in host.head().entries])
        assert {info.key for info in self.store.list()} == self.keys_named()


def tuple_of(model: Table) -> tuple[int, int, int]:
    counted = totals(model)
    return counted.rows, counted.gone, counted.bytes


def content(host: State, name: str) -> Table:
    return {row.key: row for rows in read(host.snapshot(name).layers, host) for row in rows}


HISTORY = (
    table(*range(60)),
    table(3, 4, 50, etag=b"f") | table(5, gone=1),
    table(7, 8, gone=REMOVED) | table(300),
)
NEXT = table(*range(20, 45), etag=b"g")
"""So much that layers are folded."""


@settings(max_examples=25, deadline=None)
@given(changes=st.lists(tables(st.sampled_from([0, 0, 2, REMOVED]), most=12), min_size=1, max_size=12))
def test_every_snapshot_stays_as_it_was(changes: list[Table], tmp_path_factory: pytest.TempPathFactory) -> None:
    world = World(tmp_path_factory.mktemp("state"))
    head = world.publish(*changes)
    names = [entry.name for entry in reversed(head.entries)]
    found = world.check_whole()
    assert [found[name] for name in names] == [latest(changes[: n + 1]) for n in range(len(changes))]
    assert [world.host().snapshot(name).parent for name in names] == ["", *names[:-1]]


def test_small_changes_name_old_segments_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    host = world.host()
    world.publish(table(*range(400)), table(200, etag=b"f"), host=host)
    layers = host.snapshot(host.head().current).layers
    assert len(layers) == 2
    before = len(world.bucket.keys)
    world.publish(*[table(200, etag=b"%d" % n) for n in range(7)], host=host, first=3)
    folded = host.snapshot(host.head().current).layers
    assert len(folded) == 1
    assert len(set(folded[0]) - set(layers[0])) == 1
    assert len(world.bucket.keys) - before == 2 * 7


def test_nothing_changed_is_a_snapshot_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    head = world.publish({}, table(1), {}, table(1, gone=REMOVED), {})
    assert [len(rows) for rows in world.check_whole().values()] == [0, 0, 1, 1, 0]
    assert world.host().snapshot(head.current).layers == ()


def test_who_comes_second_is_refused_and_loses_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(*HISTORY[:2])
    mine, yours = world.host(), world.host()
    seen = mine.head()
    yours.publish(yours.head(), [as_rows(table(9).values())], facts(3))
    with pytest.raises(Refused, match=r"another host published .* while run 3"):
        mine.publish(seen, [as_rows(table(10).values())], facts(3))
    assert world.check_whole()[world.host().head().current].keys() >= {b"009"}
    mine.publish(mine.head(), [as_rows(table(10).values())], facts(4))
    world.check_tidy()


def test_the_first_of_two_first_publishes_wins(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.host().publish(Head(), [as_rows(table(1).values())], facts(1))
    with pytest.raises(Refused):
        world.host().publish(Head(), [as_rows(table(2).values())], facts(1))
    assert list(world.check_whole().values()) == [table(1)]


# --- crashes and faults -----------------------------------------------------------------------------------------------


def every_point(world: Callable[[], World], act: Callable[[World, ObjectStore], T], kind: FaultKind) -> Iterator[World]:
    """Worlds after `act` with a fault at its first call, at its second, and so on, until one goes through without."""
    for number in range(1, 200):
        now = world()
        store = now.faulty(FaultPlan(scripted={("any", number): Fault(kind, calls=3)}))
        try:
            act(now, store)
        except StoreError:
            assert store.calls["any"] >= number
        store.heal()
        store.settle()
        yield now
        if store.calls["any"] < number:
            return
    raise AssertionError("it never ends")


KINDS = [FaultKind.PARTITION, FaultKind.REFUSED, FaultKind.LOST_REQUEST, FaultKind.LOST_REPLY, FaultKind.LATE]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("history", [1, 2, 3], ids=["first", "layer", "fold"])
def test_a_publish_that_dies_anywhere(kind: FaultKind, history: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """PARTITION is the crash: from that call on nothing passes. HEAD is the old one or the new one, and whole; what else
    is left nothing names; running again is all it takes."""
    change = NEXT if history == 3 else HISTORY[history - 1]
    before = HISTORY[: history - 1]
    old, new = latest(list(before)), latest([*before, change])

    def world() -> World:
        made = World(tmp_path_factory.mktemp("state"))
        made.publish(*before)
        return made

    def act(now: World, store: ObjectStore) -> None:
        host = now.host(store)
        host.publish(host.head(), in_pieces(change, []), facts(9), Totals(len(new) - len(old)))

    published = 0
    for now in every_point(world, act, kind):
        found = list(now.check_whole().values())
        assert found in ([latest(list(before[:n])) for n in range(len(before), 0, -1)], [new, *found[1:]])
        published += found[:1] == [new]
        host = now.host()
        host.publish(host.head(), in_pieces(change, []), facts(10))
        assert next(iter(now.check_whole().values())) == new
        now.check_tidy()
    assert published >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_prune_that_dies_anywhere(kind: FaultKind, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept stays whole; the next prune takes the rest."""

    def world() -> World:
        made = World(tmp_path_factory.mktemp("state"))
        made.publish(*HISTORY, NEXT)
        made.clock.sleep(2 * AGE_SECONDS)
        return made

    for now in every_point(world, lambda now, store: now.host(store).prune([]), kind):
        found = now.check_whole()
        assert next(iter(found.values())) == latest([*HISTORY, NEXT])
        assert len(found) in (1, 4)
        host = now.host()
        host.prune([])
        assert {info.key for info in now.store.list()} == now.keys_named()
        assert len(host.head().entries) == 1


def test_a_lost_answer_about_head_is_looked_up(tmp_path: Path) -> None:
    world = World(tmp_path)
    for operation in ("put_if_absent", "put_if_match"):
        for kind in (FaultKind.LOST_REPLY, FaultKind.LATE, FaultKind.LOST_REQUEST):
            calls = range(1, 4) if operation == "put_if_absent" else (1,)
            store = world.faulty(FaultPlan(scripted={(operation, n): Fault(kind) for n in calls}))
            host = world.host(store)
            head = host.publish(host.head(), [as_rows(table(1).values())], facts(1))
            assert head == world.host().head()


def test_when_nobody_answers_it_is_unknown(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(*HISTORY[:1])
    store = world.faulty(FaultPlan(scripted={("put_if_match", n): Fault(FaultKind.LOST_REQUEST) for n in range(9)}))
    host = world.host(store)
    with pytest.raises(OutcomeUnknown):
        host.publish(host.head(), [as_rows(table(1).values())], facts(2))
    assert len(world.host().head().entries) == 1


# --- publish and prune at once ----------------------------------------------------------------------------------------


class Meanwhile(StoreWrapper):
    """Does something else before its n-th call."""

    def __init__(self, inner: ObjectStore, number: int, other: Callable[[], object]) -> None:
        super().__init__(inner)
        self.calls = 0
        self._number = number
        self._other = other

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        self.calls += 1
        if self.calls == self._number:
            self._other()
        return action()


def left_over(folder: Path, age: float = 2 * AGE_SECONDS) -> World:
    """A state with garbage in it, `age` seconds old, that is just what the next publish is going to put."""
    world = World(folder)
    world.publish(*HISTORY)
    dead = world.host(world.faulty(FaultPlan(scripted={("put_if_match", 1): Fault(FaultKind.PARTITION)})))
    with pytest.raises(Unavailable):
        dead.publish(dead.head(), in_pieces(NEXT, []), facts(4))
    world.clock.sleep(age)
    return world


def test_a_prune_at_any_moment_of_a_publish(tmp_path_factory: pytest.TempPathFactory) -> None:
    for number in range(1, 100):
        world = left_over(tmp_path_factory.mktemp("state"))
        store = Meanwhile(world.store, number, partial(world.host().prune, []))
        host = world.host(store)
        host.publish(host.head(), in_pieces(NEXT, []), facts(4))
        assert next(iter(world.check_whole().values())) == latest([*HISTORY, NEXT])
        world.check_tidy()
        if store.calls < number:
            return
    raise AssertionError("it never ends")


class Slow(StoreWrapper):
    """Takes as long over its first manifest as a publish may take."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store)
        self._clock = world.clock
        self._slept = False

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.key.startswith(SNAPSHOTS) and call.operation == "put_if_absent" and not self._slept:
            self._slept = True
            self._clock.sleep(AGE_SECONDS / 2 - 60)
        return action()


@pytest.mark.parametrize("slow", [False, True])
def test_a_publish_at_any_moment_of_a_prune(slow: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also one that takes as long as it may, and counts on what is as old as it may be."""
    for number in range(1, 100):
        world = left_over(tmp_path_factory.mktemp("state"), *([AGE_SECONDS / 4 - 60] if slow else []))

        def publish(world: World = world) -> None:
            host = world.host(Slow(world) if slow else None)
            host.publish(host.head(), in_pieces(NEXT, []), facts(4))
            world.clock.sleep(AGE_SECONDS / 3 if slow else 0)

        store = Meanwhile(world.store, number, publish)
        world.host(store).prune([])
        if store.calls < number:
            return
        assert next(iter(world.check_whole().values())) == latest([*HISTORY, NEXT])
        world.check_tidy()
    raise AssertionError("it never ends")


def test_a_publish_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(*HISTORY[:1])

    def slowly() -> Iterator[Rows]:
        world.clock.sleep(AGE_SECONDS)
        yield as_rows(table(1, etag=b"f").values())

    host = world.host()
    with pytest.raises(Refused, match="took more than 12 hours"):
        host.publish(host.head(), slowly(), facts(2))
    assert len(host.head().entries) == 1


def test_prune_keeps_what_it_is_told_to(tmp_path: Path) -> None:
    world = World(tmp_path)
    head = world.publish(*HISTORY, NEXT)
    world.clock.sleep(2 * AGE_SECONDS)
    host = world.host()
    pruned = host.prune([head.entries[2].name])
    assert pruned.snapshots == 2
    assert pruned.segments >= 1
    assert not pruned.left
    assert [len(rows) for rows in world.check_whole().values()] == [59, 60]


def test_what_is_young_is_not_taken(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish(*HISTORY)
    before = len(world.bucket.keys)
    assert world.host().prune([]).segments == 0
    assert len(world.bucket.keys) == before


# --- damage -----------------------------------------------------------------------------------------------------------


def test_a_damaged_cache_is_made_good(tmp_path: Path) -> None:
    world = World(tmp_path)
    host = world.host()
    head = world.publish(*HISTORY, host=host)
    files = list((tmp_path / "1").iterdir())
    for number, path in enumerate(files):
        path.write_bytes(b"" if number % 2 else path.read_bytes()[:-1] + b"x")
    fresh = State(world.store, tmp_path / "1", clock=world.clock, cuts=CUTS)
    bottom = fresh.snapshot(head.current).layers[0]
    assert [fresh.footer(ref).rows for ref in bottom] == [ref.rows for ref in bottom]
    assert content(fresh, head.current) == latest(list(HISTORY))


def test_damage_in_the_store_is_named(tmp_path: Path) -> None:
    world = World(tmp_path)
    head = world.publish(*HISTORY)
    for key in [info.key for info in world.store.list()]:
        data = world.store.get(key).data
        for wrong in (data[:-1], bytes((data[0] ^ 1,)) + data[1:], data[:40] + bytes((data[40] ^ 1,)) + data[41:]):
            world.store.put(key, wrong)
            with pytest.raises(StateDamaged, match=key.removeprefix("snapshots/").removesuffix(".json")):
                world.check_whole()
        world.store.delete(key)
        if key != HEAD:
            with pytest.raises(StateDamaged, match="is missing"):
                world.check_whole()
        world.store.put(key, data)
    assert content(world.host(), head.current) == latest(list(HISTORY))


def test_a_footer_comes_from_the_store_or_the_cache(tmp_path: Path) -> None:
    world = World(tmp_path)
    host = world.host()
    head = world.publish(*HISTORY, host=host)
    for ref in host.snapshot(head.current).layers[0]:
        assert world.host().footer(ref) == host.footer(ref) == host.segment(ref).footer
    assert all(key.startswith((SEGMENTS, SNAPSHOTS, HEAD)) for key in world.bucket.keys)


def test_a_bucket_that_is_not_there_is_no_empty_state(tmp_path: Path) -> None:
    """Else a run would begin anew, copy everything, and could not publish."""

    class Nowhere(StoreWrapper):
        def _perform(self, call: Call, action: Callable[[], T]) -> T:
            raise NotFound("bucket b does not exist at http://s")

    with pytest.raises(NotFound, match="bucket b does not exist"):
        State(Nowhere(MemoryStore()), tmp_path).head()
