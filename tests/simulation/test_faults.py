"""Each fault by itself: what the store may do to a request, a disk that fails to sync, bits that flip at rest."""

import asyncio
import random
from dataclasses import replace

import pytest

from blockdev.errors import CorruptFormat, MediumError
from s3core.faulty import FaultKind, FaultPlan
from s3core.store import ObjectStore
from tests.simulation import initiator
from tests.simulation.episodes import quiet, run, run_one
from tests.simulation.initiator import Initiators
from tests.simulation.model import Violation, token_of
from tests.simulation.world import TEMPORARY, World, draw, small_pages

EPISODES = 12
"""Of each fault."""


class OneFault(World):
    """A world whose store knows one kind of fault."""

    kind: FaultKind
    rate: float

    def _weather(self, *, settle: bool) -> None:
        super()._weather(settle=settle)
        if not settle:
            self.store.plan = FaultPlan(rates={self.kind: self.rate}, hang_s=5.0, partition_s=5.0)


def _one_fault(seed: int, kind: FaultKind, rate: float) -> OneFault:
    """Its lease outlives a request that hangs: with a shorter one the volume may answer nothing, as is right."""
    plan = draw(seed)
    settings = replace(plan.settings, worker=replace(plan.settings.worker, lease_s=60.0))
    world = OneFault(seed, replace(plan, settings=settings, ends=("kill", "detach", "power")))
    world.kind, world.rate = kind, rate
    return world


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.05, 0.5])
@pytest.mark.parametrize("kind", TEMPORARY, ids=str)
def test_the_volume_lives_through(kind: FaultKind, rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where every other request takes five seconds and brings nothing, a root of many pages takes many minutes.
    monkeypatch.setattr(initiator, "PATIENCE_S", 3600.0)
    with quiet():
        met = 0
        for seed in range(EPISODES):
            world = _one_fault(seed, kind, rate)
            world.run()
            met += sum(event.fault is not None for event in world.store.trace)
    assert met


@pytest.mark.slow
def test_a_partition_is_waited_for() -> None:
    with quiet():
        for seed in range(EPISODES):
            _one_fault(seed, FaultKind.PARTITION, 0.02).run()


@pytest.mark.slow
def test_a_failed_sync_stops_the_volume_and_promises_hold_after_a_power_loss() -> None:
    assert run(range(80), sync_fails=True)["local disk failed"] > 5


@pytest.mark.slow
def test_a_take_over_fences_the_first_host() -> None:
    assert run(range(40), ends=("takeover",))["taken over"] > 30


@pytest.mark.slow
def test_flipped_bits_on_the_way_never_reach_an_initiator() -> None:
    happened = run(range(60), object_flips=0.03, cache_flips=False)
    assert happened["reads answered MediumError"]


def test_a_few_take_overs() -> None:
    assert run(range(3), ends=("takeover",), lives=2)["taken over"]


async def _frames(world: World, served: Initiators) -> tuple[list[int | None], list[MediumError]]:
    """A token per sector, None where the frame cannot be read, and the errors."""
    geometry = world.volume.geometry
    tokens: list[int | None] = []
    errors: list[MediumError] = []
    per = geometry.sectors_per_frame
    for lba in range(0, geometry.sector_count, per):
        try:
            data = b"".join(await served.read(lba, per))
        except MediumError as error:
            errors.append(error)
            tokens += [None] * per
        else:
            size = geometry.sector_bytes
            tokens += [token_of(data[i * size : (i + 1) * size], lba + i) for i in range(per)]
    return tokens, errors


def _flip_at_rest(store: ObjectStore, key: str, r: random.Random) -> None:
    data = bytearray(store.get(key).data)
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    store.put(key, bytes(data))


def _damage_one(world: World, key: str, r: random.Random) -> bool:
    """Flip a bit of the object and read the volume from a bare host; whether anybody noticed. The bucket is as before."""
    rest = {info.key: world.bucket.get(info.key).data for info in world.bucket.list()}
    _flip_at_rest(world.bucket, key, r)
    expected = [world.model.token_at(lba) for lba in range(world.volume.geometry.sector_count)]
    world.host = world._new_host()
    world.loop = world._new_loop(world.loop.time())

    async def attach_and_read() -> tuple[list[int | None], list[MediumError]]:
        return await _frames(world, await world._attach())

    refused = ""
    tokens: list[int | None] = []
    errors: list[MediumError] = []
    try:
        with small_pages(world.plan.page_extents):
            tokens, errors = world.loop.run(attach_and_read())
    except Violation as violation:
        if not isinstance(violation.__cause__, CorruptFormat):
            raise
        refused = str(violation)
    world.loop.abandon()
    for info in list(world.bucket.list()):
        world.bucket.delete(info.key)
    for name, data in rest.items():
        world.bucket.put(name, data)
    # Either there was nothing to fall back on, and the attach names the object; or what cannot be read names it.
    assert not refused or key in refused
    assert all(key in str(error) for error in errors)
    assert all(token in (None, legal) for token, legal in zip(tokens, expected, strict=False))
    return bool(refused or errors)


@pytest.mark.slow
def test_a_bit_that_flips_in_the_bucket_is_named_and_never_returned() -> None:
    """Some objects of several buckets, one at a time."""
    noticed = 0
    with quiet():
        for seed in range(8):
            world = World(seed, replace(draw(seed), lives=1, extents=3, fault_rate=0.0, steps_per_life=2000, actors=4))
            world.run()
            world.loop.abandon()
            keys = sorted(info.key for info in world.bucket.list() if info.key != "head")
            r = random.Random(seed)
            noticed += sum(_damage_one(world, key, r) for key in r.sample(keys, min(len(keys), 25)))
    assert noticed > 5


def test_a_failed_episode_says_how_to_replay_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(World):
        def _judge_bucket(self, *args: object, **options: object) -> int:
            raise Violation("planted")

    monkeypatch.setattr("tests.simulation.episodes.World", Broken)
    with pytest.raises(AssertionError, match=r"replay: make sim SEED=5$"):
        run_one(5, draw(5))


def test_asyncio_is_not_left_with_a_loop() -> None:
    run(range(1))
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
