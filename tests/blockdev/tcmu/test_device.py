"""A device between a kernel's ring and a volume in memory."""

import random
from collections.abc import Callable
from uuid import UUID

import pytest

from blockdev.errors import Fenced, JournalFull, LocalDiskFailed, StoreUnreachable
from blockdev.scsi.device import LogicalUnit
from blockdev.scsi.operation import Status
from blockdev.tcmu.device import Device, scatter
from blockdev.tcmu.ring import Ring
from tests.blockdev.ram_target import RamTarget
from tests.blockdev.tcmu.kernel import TMR, Completion, KernelRing

SECTOR = 512


def read(lba: int, count: int) -> bytes:
    return bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


def write(lba: int, count: int, *, fua: bool = False) -> bytes:
    return bytes((0x2A, 8 if fua else 0)) + lba.to_bytes(4, "big") + b"\0" + count.to_bytes(2, "big") + b"\0"


INQUIRY = bytes((0x12, 0, 0, 0, 255, 0))
SYNCHRONIZE = bytes((0x35,)) + bytes(9)


class World:
    """A kernel, a device and a volume; time is a list of callbacks."""

    def __init__(self, target: RamTarget | None = None, kernel: KernelRing | None = None) -> None:
        self.target = target or RamTarget(sectors=4096)
        self.kernel = kernel or KernelRing()
        self.logical = LogicalUnit(self.target, lun=0)
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.soon: list[Callable[[], None]] = []
        self.now = 0
        self.device = self.open()

    def open(self) -> Device:
        return Device(
            Ring(memoryview(self.kernel.memory)),
            self.logical,
            kick=self.kernel.kick,
            later=lambda seconds, callback: self.timers.append((seconds, callback)),
            soon=self.soon.append,
            clock=self._clock,
        )

    def _clock(self) -> int:
        self.now += 1000
        return self.now

    def run(self) -> None:
        self.device.run()
        while self.soon:
            self.soon.pop(0)()

    def do(self, cdb: bytes, data: bytes | None = None, *, reads: int = 0) -> Completion:
        number = self.kernel.queue(cdb, data, reads=reads)
        assert number is not None
        self.run()
        self.target.run_all()
        return self.kernel.completed.pop(number)


def pattern(count: int, seed: int = 3) -> bytes:
    return random.Random(seed).randbytes(count * SECTOR)


def test_what_was_written_is_read() -> None:
    world = World()
    data = pattern(24)
    assert world.do(write(7, 24), data).status == Status.GOOD
    done = world.do(read(7, 24), reads=24 * SECTOR)
    assert done == Completion(Status.GOOD, data, bytes(96))
    assert world.target.peek(7, 24) == data


def test_a_batch_is_one_commit_and_one_word_to_the_kernel() -> None:
    world = World()
    numbers = [world.kernel.queue(write(lba * 8, 8), pattern(8, lba)) for lba in range(20)]
    world.run()
    assert [world.kernel.completed[number or 0].status for number in numbers] == [0] * 20
    assert sum(call == ("commit",) for call in world.target.calls) == 1
    assert world.kernel.kicks == 1


def test_a_read_that_waits_lets_the_others_pass() -> None:
    world = World(RamTarget(sectors=4096, deferred_reads=1))
    slow = world.kernel.queue(read(0, 8), reads=8 * SECTOR)
    quick = [world.kernel.queue(read(8 * n, 8), reads=8 * SECTOR) for n in range(1, 4)]
    world.run()
    assert sorted(world.kernel.completed) == quick
    world.target.run_all()
    assert slow in world.kernel.completed
    assert world.device.ring.pending == 0


def test_nothing_is_acknowledged_when_the_commit_fails() -> None:
    world = World()
    world.target.fail_next("commit", LocalDiskFailed("the disk is gone"))
    numbers = [world.kernel.queue(write(lba * 8, 8), pattern(8)) for lba in range(3)]
    world.run()
    assert {world.kernel.completed[number or 0].status for number in numbers} == {Status.CHECK_CONDITION}


@pytest.mark.parametrize(
    ("error", "status"),
    [(JournalFull("full"), Status.BUSY), (Fenced("gone"), Status.CHECK_CONDITION)],
)
def test_a_write_the_volume_refuses(error: Exception, status: int) -> None:
    world = World()
    world.target.fail_next("write", error)
    assert world.do(write(0, 8), pattern(8)).status == status


def test_a_read_that_fails_late() -> None:
    world = World(RamTarget(sectors=4096, deferred_reads=1))
    world.target.fail_next("read", StoreUnreachable("away"))
    assert world.do(read(0, 8), reads=4096).status != Status.GOOD


def test_fua_and_flush_wait_for_the_disk() -> None:
    world = World(RamTarget(sectors=4096, deferred_flushes=True))
    number = world.kernel.queue(write(0, 8, fua=True), pattern(8))
    flush = world.kernel.queue(SYNCHRONIZE)
    world.run()
    assert world.kernel.completed == {}
    world.target.run_all()
    assert world.kernel.completed[number or 0].status == Status.GOOD
    assert world.kernel.completed[flush or 0].status == Status.GOOD
    assert world.target.flushed == 2


def test_a_short_answer_says_so_and_leaks_nothing() -> None:
    """Pages of the data area come back with what others wrote in them."""
    world = World(kernel=KernelRing(data_pages=1))
    world.do(write(0, 8), b"\xab" * 4096)
    done = world.do(INQUIRY, reads=255)
    assert done.status == Status.GOOD
    assert len(done.data) == 96
    world = World(kernel=KernelRing(data_pages=1, flags=0b001))  # a kernel that takes no length
    world.do(write(0, 8), b"\xab" * 4096)
    done = world.do(INQUIRY, reads=255)
    assert done.data[96:] == bytes(255 - 96)


def test_reservations_are_the_kernels() -> None:
    world = World()
    for cdb in (bytes((0x16,)) + bytes(5), bytes((0x5E,)) + bytes(9), bytes((0x5F,)) + bytes(9)):
        done = world.do(cdb)
        assert done.status == Status.CHECK_CONDITION
        assert done.sense[2] & 0xF == 5
        assert done.sense[12] == 0x20


def test_there_is_no_attention_before_the_first_command() -> None:
    assert World().do(bytes(6)).status == Status.GOOD


def test_growing_is_told_once() -> None:
    world = World()
    world.target.sector_count *= 2
    done = world.do(bytes(6))
    assert (done.sense[2] & 0xF, done.sense[12], done.sense[13]) == (6, 0x2A, 0x09)
    assert world.do(bytes(6)).status == Status.GOOD


def test_out_of_range_and_bidirectional() -> None:
    world = World()
    assert world.do(read(4096, 1), reads=512).sense[12] == 0x21
    number = world.kernel.queue(read(0, 8), reads=4096, bidirectional=1)
    world.run()
    assert world.kernel.completed[number or 0].status == Status.CHECK_CONDITION


def test_answers_are_held_back_when_the_volume_asks() -> None:
    world = World()
    world.target.slow = 0.25
    number = world.kernel.queue(write(0, 8), pattern(8))
    world.run()
    assert number not in world.kernel.completed
    assert world.target.taken == [4096]
    ((seconds, release),) = world.timers
    assert seconds == 0.25
    release()
    assert world.kernel.completed[number or 0].status == Status.GOOD


def test_held_back_and_then_taken_over() -> None:
    world = World()
    world.target.slow = 0.25
    number = world.kernel.queue(write(0, 8), pattern(8))
    world.run()
    world.target.fail_next("commit", Fenced("taken over"))
    world.timers[0][1]()
    assert world.kernel.completed[number or 0].status == Status.CHECK_CONDITION


def test_a_killed_handler_loses_nothing() -> None:
    """Entries that nobody answered end with BUSY by the reset; those that were answered stay so."""
    world = World(RamTarget(sectors=4096, deferred_reads=2))
    done = world.kernel.queue(write(0, 8), pattern(8))
    waiting = [world.kernel.queue(read(8 * n, 8), reads=4096) for n in (1, 2)]
    world.run()
    assert list(world.kernel.completed) == [done]
    # Killed here. The next one finds a ring whose slots no longer say which commands are open.
    ring = Ring(memoryview(world.kernel.memory))
    assert ring.pending
    world.kernel.reset()
    ring.reread()
    assert {world.kernel.completed[number or 0].status for number in waiting} == {Status.BUSY}


def test_after_close_answers_go_nowhere() -> None:
    world = World(RamTarget(sectors=4096, deferred_reads=1, deferred_flushes=1))
    world.kernel.queue(read(0, 8), reads=4096)
    world.kernel.queue(SYNCHRONIZE)
    world.run()
    before = bytes(world.kernel.memory)
    world.device.close()
    world.target.run_all()
    assert bytes(world.kernel.memory) == before
    world.device.run()


def test_task_management_is_counted() -> None:
    world = World()
    world.kernel.queue_odd(TMR)
    world.run()
    assert world.device.snapshot() == {"commands": 0, "wake_ups": 1, "task_management": 1, "open": 0}
    assert world.device.ring.pending == 0


def test_a_long_queue_gives_way_to_others() -> None:
    world = World(kernel=KernelRing(ring_bytes=256 * 1024))
    numbers = [world.kernel.queue(bytes(6)) for _ in range(1000)]
    world.device.run()
    assert len(world.kernel.completed) < 1000
    assert len(world.soon) == 1
    world.run()
    assert len(world.kernel.completed) == len(numbers)


def test_latency_is_counted_as_at_the_portal() -> None:
    world = World()
    world.do(write(0, 8), pattern(8))
    world.do(read(0, 8), reads=4096)
    world.do(SYNCHRONIZE)
    world.do(INQUIRY, reads=96)
    found = world.logical.latency.snapshot()
    sums = {kind: sum(each["counts"]) for kind, each in found.items() if isinstance(each["counts"], list)}
    assert sums == {"read": 1, "write": 1, "flush": 1, "other": 1}


@pytest.mark.parametrize("seed", range(8))
def test_against_a_model(seed: int) -> None:
    """Anything an initiator sends, several at once, answered in whatever order: reads show the writes before them."""
    chance = random.Random(seed)
    size = 4096 if seed % 2 else 512
    target = RamTarget(sectors=512, sector_bytes=size, identity=UUID(int=seed))
    world = World(target, KernelRing(ring_bytes=8 * chance.randrange(400, 1000), data_pages=512, seed=seed))
    model = bytearray(512 * size)
    for _ in range(300):
        target.deferred_reads = chance.randrange(3)
        reads: dict[int, bytes] = {}
        used: set[int] = set()
        for _ in range(chance.randrange(1, 8)):
            lba, count = chance.randrange(500), chance.randrange(1, 12)
            touched = set(range(lba, lba + count))
            if touched & used:
                continue  # commands at the same time on the same sectors may end in any order
            used |= touched
            start, end = lba * size, (lba + count) * size
            if chance.random() < 0.5:
                data = chance.randbytes(count * size)
                if world.kernel.queue(write(lba, count), data) is not None:
                    model[start:end] = data
            else:
                number = world.kernel.queue(read(lba, count), reads=count * size)
                if number is not None:
                    reads[number] = bytes(model[start:end])
        world.run()
        target.run_all()
        for number, wanted in reads.items():
            assert world.kernel.completed[number].data == wanted
        world.kernel.completed.clear()
        assert world.kernel.queued == {}
        target.evict()


def test_scatter_over_every_cut() -> None:
    view = memoryview(bytearray(b"\xee" * 64))
    for cut in range(1, 12):
        vectors = ((3, cut), (20, 12 - cut), (40, 4))
        assert scatter(view, vectors, [b"abcde", b"", b"fghij"]) == 10
        joined = b"".join(bytes(view[start : start + length]) for start, length in vectors)
        assert joined == b"abcdefghij" + bytes(6)
