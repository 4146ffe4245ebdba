"""How long commands took: counted once each, as what they were, from the receive that brought them to their answer."""

from collections.abc import Sequence

import pytest

from blockdev.errors import JournalFull
from blockdev.iscsi.pdu import FINAL
from blockdev.latency import BUCKETS, KINDS, Latency, quantile
from blockdev.target import Buffer
from tests.blockdev.iscsi.initiator import FLUSH, READ, WRITE, World, read10, write10
from tests.blockdev.ram_target import RamTarget

US = 1000


class SlowTarget(RamTarget):
    """Each write takes 1 us, each commit 10 us of the world's time."""

    world: World

    def write(self, lba: int, data: Sequence[Buffer]) -> None:
        self.world.now += US
        super().write(lba, data)

    def commit(self) -> None:
        self.world.now += 10 * US
        super().commit()


def slow_world() -> World:
    target = SlowTarget()
    target.world = World(target)
    return target.world


def counted(world: World) -> dict[str, tuple[int, int]]:
    """Commands and nanoseconds by kind, where there were any."""
    latency = world.node.units[0].latency
    found = {
        kind: (sum(counts), nanoseconds)
        for kind, counts, nanoseconds in zip(KINDS, latency.counts, latency.nanoseconds, strict=True)
    }
    return {kind: both for kind, both in found.items() if both[0] and kind != "other"}


def test_commands_of_one_receive_wait_for_their_common_commit() -> None:
    world = slow_world()
    host = world.logged_in()
    with host.collected() as wire:
        for number in range(3):
            host.ask(write10(number, 1), expected=512, flags=WRITE, data=bytes(512))
    host.deliver(bytes(wire))
    assert [pdu.status for pdu in host.heard()] == [0, 0, 0]
    assert counted(world) == {"write": (3, 3 * 13 * US)}
    host.command(read10(0, 1), expected=512, flags=READ)
    assert counted(world)["read"] == (1, 0)


def test_a_read_that_is_waited_for_counts_when_it_is_answered() -> None:
    world = World(RamTarget(deferred_reads=1))
    host = world.logged_in()
    world.now = 5
    host.ask(read10(0, 8), expected=4096, flags=READ)
    host.ask(read10(8, 1), expected=512, flags=READ)
    assert counted(world) == {"read": (1, 0)}
    world.now += 40_000_000
    world.target.run_all()
    assert len(host.heard()) == 2
    assert counted(world) == {"read": (2, 40_000_000)}


def test_flush_fua_and_solicited_data() -> None:
    world = World(RamTarget(deferred_flushes=True))
    host = world.logged_in(InitialR2T="Yes", ImmediateData="No")
    host.ask(FLUSH)
    world.now += 7
    world.target.run_all()
    assert counted(world) == {"flush": (1, 7)}
    tag = host.ask(write10(0, 1, fua=True), expected=512, flags=WRITE)
    (_, r2t) = host.heard()
    world.now += 100
    host.data_out(tag, r2t.ttt, bytes(512))
    world.now += 1000
    world.target.run_all()
    assert counted(world)["write"] == (1, 1100)
    tag = host.ask(write10(0, 1), expected=512, flags=WRITE)
    (_, r2t) = host.heard()
    world.now += 10
    host.data_out(tag, r2t.ttt, bytes(512))
    assert counted(world)["write"] == (2, 1110)


def test_failed_and_absent_are_not_counted() -> None:
    world = World()
    host = world.logged_in()
    world.target.fail_next("write", JournalFull("full"))
    assert host.command(write10(0, 1), expected=512, flags=WRITE, data=bytes(512)).status == 0x08
    world.target.fail_next("commit", JournalFull("full"))
    assert host.command(write10(0, 1), expected=512, flags=WRITE, data=bytes(512)).status == 0x08
    assert host.command(bytes((0x12, 0, 0, 0, 36, 0)), expected=36, flags=FINAL | 0x40, lun=7).data[:1] == b"\x7f"
    assert counted(world) == {}


def test_buckets_hold_what_took_less_than_their_bound() -> None:
    latency = Latency()
    latency.record(0, 0)
    latency.record(0, 1023, 2)
    latency.record(0, 1024)
    assert latency.snapshot()["read"] == {"counts": [1, *[0] * 9, 2, 1], "nanoseconds": 3070}
    assert latency.snapshot()["write"] == {"counts": [], "nanoseconds": 0}
    latency.record(1, 2**63 - 1)
    assert latency.counts[1][BUCKETS - 1] == 1


def test_quantiles() -> None:
    assert quantile([], 0.5) is None
    assert quantile([0, 0], 0.5) is None
    counts = [0] * 11
    counts[10] = 100  # 512 to 1023 ns
    assert quantile(counts, 0.5) == pytest.approx(768e-9)
    assert quantile(counts, 1.0) == pytest.approx(1024e-9)
    counts[1] = 300
    assert quantile(counts, 0.5) == pytest.approx((1 + 2 / 3) * 1e-9)
    assert quantile(counts, 0.99) == pytest.approx((512 + 512 * 0.96) * 1e-9)
