"""Writes to a disk whose order can be judged afterwards (`tests.system.stamps`), told to the host as they are answered.

One rule: what is written follows from the seed alone, so that the host knows every write, also those whose word was lost
with the machine.
"""

import mmap
import os
import random
from collections.abc import Iterator

from tests.system.stamps import BLOCK_UNITS, UNIT, stamp

FLUSH_EVERY = 4


def plan(seed: int, units: int, writes: int) -> Iterator[tuple[int, int]]:
    """First unit and number of units of each write: 4 to 64 KiB, some places often."""
    choose = random.Random(seed)
    blocks = units // BLOCK_UNITS
    for _ in range(writes):
        count = choose.choice((1, 1, 2, 4, 16))
        first = choose.randrange(min(blocks, 64)) if choose.random() < 0.3 else choose.randrange(blocks)
        yield min(first, blocks - count) * BLOCK_UNITS, count * BLOCK_UNITS


def write(device: str, seed: int, units: int, writes: int) -> int:
    """One write after the other, past the page cache; after every `FLUSH_EVERY` of them a flush that is waited for.

    Prints `acknowledged N` for write N (from 1 on) and `flushed N` when all up to N are."""
    target = os.open(device, os.O_RDWR | os.O_DIRECT)
    for number, (first, count) in enumerate(plan(seed, units, writes), start=1):
        with mmap.mmap(-1, count * UNIT) as aligned:
            aligned[:] = stamp(number, first, count)
            assert os.pwrite(target, aligned, first * UNIT) == count * UNIT
        print(f"acknowledged {number}", flush=True)
        if number % FLUSH_EVERY == 0:
            os.fsync(target)
            print(f"flushed {number}", flush=True)
    os.close(target)
    return writes
