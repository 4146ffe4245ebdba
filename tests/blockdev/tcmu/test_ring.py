"""The shared memory: what is taken out, what goes back, and what a ring that cannot be right is refused for."""

import random
from struct import pack_into

import pytest

from blockdev.tcmu.ring import Op, Ring, RingBroken
from tests.blockdev.tcmu.kernel import CMDR_OFFSET, TMR, KernelRing

READ_10 = bytes((0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0))
READY = bytes(6)


def opened(kernel: KernelRing) -> Ring:
    return Ring(memoryview(kernel.memory))


def test_a_command_comes_out_as_it_went_in() -> None:
    kernel = KernelRing()
    number = kernel.queue(READ_10, reads=4096)
    ring = opened(kernel)
    (request,) = ring.take(10)
    assert request.id == number
    assert request.cdb[:10] == READ_10
    assert request.length == 4096
    assert sum(size for _, size in request.iovecs) == 4096
    assert ring.take(10) == []
    assert ring.open == 1


@pytest.mark.parametrize("seed", range(12))
def test_any_order_any_length_round_and_round(seed: int) -> None:
    """Hundreds of commands through a ring of a few dozen, answered in any order, over pads of every size, task management and
    unknown entries: each is answered once, with its own status."""
    chance = random.Random(seed)
    kernel = KernelRing(seed=seed, ring_bytes=8 * chance.randrange(150, 500))
    ring = opened(kernel)
    wanted: dict[int, int] = {}
    open_: list[int] = []
    odd = 0
    for _ in range(1500):
        match chance.randrange(4):
            case 0 | 1:
                pages = chance.randrange(4)
                number = kernel.queue(chance.choice([READ_10, READY, bytes(16)]), reads=pages * 4096)
                if number is not None:
                    wanted[number] = chance.choice((0, 2, 8))
            case 2:
                open_ += [request.id for request in ring.take(chance.randrange(1, 20))]
                if chance.random() < 0.2:
                    odd += kernel.queue_odd(chance.choice((TMR, 5)), chance.choice((56, 64, 120)))
            case _:
                chance.shuffle(open_)
                for _ in range(chance.randrange(len(open_) + 1)):
                    answered = open_.pop()
                    ring.answer(answered, wanted[answered])
                if ring.publish():
                    kernel.kick()
    open_ += [request.id for request in ring.take(10_000)]
    for answered in open_:
        ring.answer(answered, wanted[answered])
    ring.publish()
    kernel.kick()
    assert kernel.queued == {}
    assert {number: done.status for number, done in kernel.completed.items()} == wanted
    assert ring.pending == 0
    assert kernel.pads > 5
    assert odd > 5
    assert ring.open == 0


def test_a_pad_may_be_eight_bytes() -> None:
    """Then only its header may be looked at: what follows lies beyond the ring."""
    kernel = KernelRing(ring_bytes=8 * 31)
    ring = opened(kernel)
    for _ in range(30):
        number = kernel.queue(READY)
        assert number is not None
        (request,) = ring.take(1)
        ring.answer(request.id, 0)
        ring.publish()
        kernel.kick()
    assert kernel.pads


def test_task_management_is_noted_and_given_back() -> None:
    kernel = KernelRing()
    kernel.queue_odd(TMR)
    ring = opened(kernel)
    assert ring.take(10) == []
    (noted,) = ring.management
    assert (noted.function, noted.ids) == (1, (7, 9))
    assert ring.publish()
    kernel.kick()
    assert ring.pending == 0


def test_sense_and_length_reach_the_kernel() -> None:
    kernel = KernelRing()
    first, second = kernel.queue(READ_10, reads=512), kernel.queue(READ_10, reads=512)
    assert first is not None
    assert second is not None
    ring = opened(kernel)
    ring.take(10)
    ring.answer(second, 2, b"\x70\x00\x05")
    ring.answer(first, 0, read_length=100)
    ring.publish()
    kernel.kick()
    assert kernel.completed[second].sense[:3] == b"\x70\x00\x05"
    assert len(kernel.completed[first].data) == 100


def test_after_a_reset_the_ring_begins_anew() -> None:
    kernel = KernelRing()
    for _ in range(3):
        kernel.queue(READY)
    opened(kernel).take(2)
    ring = opened(kernel)
    assert ring.pending
    kernel.reset()
    ring.reread()
    assert ring.pending == 0
    number = kernel.queue(READY)
    (request,) = ring.take(10)
    assert request.id == number


@pytest.mark.parametrize(
    ("at", "form", "values", "says"),
    [
        (0, "=H", (1,), "version 1"),
        (2, "=H", (0,), "out of order"),
        (4, "=I", (130,), "at 130"),
        (8, "=I", (1 << 30,), "1073741824 bytes"),
        (8, "=I", (0,), "a ring of 0 bytes"),
        (64, "=I", (4,), "cmd_tail is 4"),
        (64, "=I", (1 << 20,), "cmd_tail is 1048576"),
    ],
)
def test_a_mailbox_that_cannot_be_right(at: int, form: str, values: tuple[int, ...], says: str) -> None:
    kernel = KernelRing()
    pack_into(form, kernel.memory, at, *values)
    with pytest.raises(RingBroken, match=says):
        opened(kernel)


@pytest.mark.parametrize(
    ("at", "form", "value"),
    [
        (12 - CMDR_OFFSET, "=I", 4),  # cmd_head between entries
        (12 - CMDR_OFFSET, "=I", 1 << 20),  # cmd_head outside
        (0, "=I", 0 | Op.CMD),  # an entry of no length
        (0, "=I", 1 << 20 | Op.CMD),  # longer than the ring
        (0, "=I", 1024 | Op.PAD),  # beyond cmd_head, which would never be met again
        (8, "=I", 1000),  # more vectors than the entry holds
        (24, "=Q", 1 << 40),  # a CDB outside
        (48, "=Q", 1 << 40),  # data outside
        (56, "=Q", 1 << 40),
    ],
)
def test_entries_that_cannot_be_right(at: int, form: str, value: int) -> None:
    kernel = KernelRing()
    kernel.queue(READ_10, reads=4096)
    ring = opened(kernel)
    pack_into(form, kernel.memory, CMDR_OFFSET + at, value)
    with pytest.raises(RingBroken):
        ring.take(10)
