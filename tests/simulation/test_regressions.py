"""Mistakes that episodes found, each with its story, so that they stay found."""

import asyncio
import random
from uuid import UUID

from blockdev.engine.cache import ReadCache
from blockdev.engine.cache_table import CacheEntry, CacheLayout, encode_entry, encode_header
from blockdev.engine.destager import CommitSettings
from blockdev.engine.worker import WorkerSettings
from blockdev.journal.format import RECORD_MAGIC, RING_START
from blockdev.units import KIB
from tests.simulation.disk import SimDisk
from tests.simulation.episodes import quiet, run
from tests.simulation.process import JOURNAL, ProcessSettings
from tests.simulation.world import Plan, World


def test_a_slot_that_lost_its_frame_to_a_rival_is_empty() -> None:
    """Seeds 326 and 1356: a damaged slot was dropped and its frame fetched into another one. After a restart the
    table names the frame twice. The older slot was freed but still said which commit its content was from, so when it
    was lent for *another* frame the worker answered that the content was current, and it was handed out."""
    layout = CacheLayout(UUID(int=1), UUID(int=2), 16384, 4)
    disk = SimDisk(random.Random(1))
    content, table = disk.create("cache", layout.content_bytes), disk.create("cache.table", layout.table_bytes)
    table.pwritev([encode_header(layout)], 0)
    for slot, as_of in ((0, 5), (1, 7)):
        entry = encode_entry(layout, slot, CacheEntry(3, as_of, 0b1111, (1, 2, 3, 4)))
        table.pwritev([entry], layout.entry_offset(slot))
    cache = ReadCache(content, table, layout)
    assert cache.lend(3) == (1, 7)
    for frame in (10, 11, 12):
        lent = cache.lend(frame)
        assert lent is not None
        assert lent[1] == -1, f"slot {lent[0]} claims to hold frame {frame} already"


def test_a_journal_that_ends_in_padding_is_not_committed_for_ever() -> None:
    """Seeds 84 and 666 of their day: a crash kept the padding at the ring's end and lost the record behind it. Recovery
    ended behind the padding, the worker found no record before that position, and wrote one empty commit after
    the other; a flush to the bucket never ended. With only padding left, a commit must end where the journal does."""
    worker = WorkerSettings(lease_s=5.0, commit=CommitSettings(interval_s=0.02))
    world = World(1, Plan(settings=ProcessSettings(worker, 64 * KIB, 8, 0, "local", 0.001)))
    sectors = 24  # five such records leave too little of the ring for a sixth
    zeros = bytes(sectors * 512)

    async def fill() -> int:
        """Where the record behind the padding lies in the file."""
        served = await world._attach()
        process = served.process
        assert process is not None
        journal = process.journal
        assert journal is not None
        while True:
            process.front.write(0, [zeros])
            process.front.commit()
            begin = journal.head - journal.record_bytes(3, len(zeros))
            if begin % (64 * KIB) == 0:
                await served.flush()
                return RING_START
            await asyncio.sleep(2.0)

    with quiet():
        offset = world.loop.run(fill())
        file = world.host.disk.files[JOURNAL]
        for bytes_of in (file.image, file.durable):
            assert bytes_of[offset : offset + 4] == RECORD_MAGIC
            bytes_of[offset : offset + 64] = bytes(64)
        world._die("kill")

        async def live() -> None:
            served = await world._attach()
            await world._idle(served)
            await world._settle(served)

        world.loop.run(live())
        world.loop.abandon()
    assert world.happened["idle"]


def test_a_failed_sync_beside_a_take_over_is_no_bug() -> None:
    """Seed 256: the first host's disk failed while it was being overtaken."""
    run([256])
