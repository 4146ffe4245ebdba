"""The front, case by case: what is acknowledged when, what is asked of the worker, what happens when things break."""

import random
from collections.abc import Callable
from functools import partial

import pytest

from blockdev.engine.front import SAMPLES_MAX
from blockdev.engine.link import (
    Appended,
    CommitNow,
    Detach,
    Detached,
    Durable,
    Failed,
    Fetch,
    Fetched,
    FetchedFrame,
    Status,
)
from blockdev.errors import (
    BlockError,
    Fenced,
    JournalFull,
    LocalDiskFailed,
    MediumError,
    NotReady,
    StoreUnreachable,
)
from blockdev.journal.format import MORE, RING_START, Kind
from blockdev.journal.reader import JournalReader
from blockdev.target import BlockTarget, Buffer
from blockdev.units import KIB, MIB, TIB, Geometry
from tests.blockdev.front_world import World
from tests.blockdev.memory_file import MemoryFile

ReadAnswer = list[Buffer] | Exception


def fill(number: int, sectors: int = 8) -> bytes:
    return bytes([number]) * (sectors * 512)


def kinds(world: World) -> list[tuple[int, int, int]]:
    reader = JournalReader(world.journal_file)
    records = reader.records(world.bucket.position, world.journal.head)
    return [(record.kind, record.lba, record.sectors) for record, _ in records]


def flags(world: World) -> list[int]:
    reader = JournalReader(world.journal_file)
    return [record.flags for record, _ in reader.records(world.bucket.position, world.journal.head)]


def fetches(world: World) -> list[Fetch]:
    return [message for message in world.worker.sent if isinstance(message, Fetch)]


def settled(world: World) -> World:
    """Everything is in the bucket and out of the journal."""
    world.front.commit()
    world.front.tick(0)
    world.worker.commit()
    world.front._reclaimer.step(world.front.durable, 1 << 40)
    assert world.journal.reclaimed == world.journal.head
    return world


def test_it_is_a_block_target() -> None:
    target: BlockTarget = World().front
    assert (target.name, target.sector_bytes, target.sector_count) == ("vol", 512, 4096)
    assert target.read_only is False


def test_nothing_is_served_before_the_worker_is_ready() -> None:
    world = World(attach=False)
    with pytest.raises(NotReady, match="still attaching"):
        world.front.write(0, [fill(1)])
    assert isinstance(world.try_read(0, 8), NotReady)
    assert isinstance(world.flush(), NotReady)
    world.front.tick(0)
    world.worker.attach()
    world.front.write(0, [fill(1)])
    assert world.read(0, 8) == fill(1)


# --- writing and reading back


def test_a_write_is_read_back_before_and_after_the_commit() -> None:
    world = World()
    world.front.write(8, [fill(1)])
    assert world.journal.head == world.bucket.position, "staged only"
    assert world.read(8, 8) == fill(1)
    assert world.journal.head > world.bucket.position, "the read committed it"


def test_unwritten_space_is_asked_for_once_and_then_known() -> None:
    world = World()
    assert world.read(0, 8) == bytes(4096)
    assert world.read(8, 16) == bytes(8192)
    assert len(fetches(world)) == 1


def test_one_read_asks_for_all_its_frames_in_one_message() -> None:
    world = World()
    world.front.write(40, [fill(9)])
    assert world.read(0, 128) == bytes(40 * 512) + fill(9) + bytes(80 * 512)
    assert [[wanted.frame for wanted in fetch.frames] for fetch in fetches(world)] == [[0, 1, 2, 3]]


def test_concurrent_reads_of_a_frame_share_one_fetch() -> None:
    world = World()
    world.front.write(0, [fill(3, 32)])
    settled(world)
    answers: list[ReadAnswer] = []
    for lba in (0, 8, 3, 31):
        assert world.front.read(lba, 1, answers.append) is None
    world.worker.serve()
    assert [b"".join(answer) for answer in answers if not isinstance(answer, Exception)] == [fill(3, 1)] * 4
    assert len(fetches(world)) == 1


def test_a_write_within_a_local_block_journals_the_whole_block() -> None:
    world = World()
    world.front.write(8, [fill(1)])
    world.front.write(10, [fill(2, 3)])
    world.front.commit()
    assert kinds(world) == [(Kind.WRITE, 8, 8), (Kind.WRITE, 8, 8)]
    assert world.read(8, 8) == fill(1, 2) + fill(2, 3) + fill(1, 3)
    assert not fetches(world)


def test_a_write_within_a_block_that_is_elsewhere_waits_for_nothing() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    settled(world)
    world.front.write(3, [fill(2, 2)])
    world.front.write(7, [fill(3, 2)])
    world.front.commit()
    assert not fetches(world)
    assert kinds(world) == [(Kind.WRITE, 3, 2), (Kind.WRITE, 7, 2)]
    assert world.read(0, 16) == fill(1, 3) + fill(2, 2) + fill(1, 2) + fill(3, 2) + fill(1, 7)
    world.restart()
    assert world.read(0, 16) == fill(1, 3) + fill(2, 2) + fill(1, 2) + fill(3, 2) + fill(1, 7)


def test_a_write_in_several_buffers_is_one_record() -> None:
    world = World()
    data = bytes(range(256)) * 64
    world.front.write(5, [data[:100], memoryview(data)[100:7000], bytearray(data[7000:])])
    world.front.commit()
    assert world.read(5, 32) == data
    assert len(kinds(world)) == 1


def test_a_volume_that_grew_is_read_and_written_up_to_its_new_end() -> None:
    world = World(read_ahead_bytes=32 * KIB)
    old = world.front.sector_count
    world.front.write(old - 8, [fill(1)])
    world.front.commit()
    world.bucket.content += bytes(2 * MIB)
    world.front.resized(4 * MIB)
    assert world.front.sector_count == 2 * old
    assert world.front.geometry.size_bytes == 4 * MIB
    world.front.write(old, [fill(2)])
    assert world.read(old - 8, 16) == fill(1) + fill(2)
    assert world.read(2 * old - 8, 8) == bytes(4096)
    frames = [item.frame for fetch in fetches(world) for item in fetch.frames]
    assert max(frames) == 4 * MIB // (16 * KIB) - 1


def test_half_a_sector_is_refused() -> None:
    with pytest.raises(ValueError, match="not whole sectors"):
        World().front.write(0, [bytes(100)])


def test_a_write_larger_than_the_journal_takes_at_once_is_cut_at_blocks() -> None:
    world = World()
    data = b"".join(fill(number % 251, 1) for number in range(300))
    world.front.write(3, [data])
    world.front.commit()
    assert len(kinds(world)) > 1
    assert all((lba + sectors) % 8 == 0 for _, lba, sectors in kinds(world)[:-1])
    assert flags(world) == [MORE] * (len(kinds(world)) - 1) + [0]
    assert world.read(3, 300) == data


def test_reads_within_a_sector_size_of_4096() -> None:
    world = World(Geometry(2 * MIB, sector_bytes=4096, frame_bytes=16 * KIB, extent_bytes=128 * KIB))
    world.front.write(1, [bytes([5]) * 8192])
    assert world.read(0, 4) == bytes(4096) + bytes([5]) * 8192 + bytes(4096)
    world.restart()
    assert world.read(1, 2) == bytes([5]) * 8192


# --- zeros and discards


def test_discarding_a_volume_costs_one_small_record() -> None:
    geometry = Geometry(16 * TIB)
    world = World(geometry)
    world.front.write(800, [fill(1)])
    world.front.unmap([(0, geometry.sector_count)])
    world.front.commit()
    assert kinds(world)[1] == (Kind.UNMAP, 0, geometry.sector_count)
    assert world.journal.head - 4096 == 4176 + 64
    assert world.read(800, 8) == bytes(4096)
    assert not fetches(world)


def test_blocks_partly_inside_a_discard_are_zeroed_by_writing() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    world.front.unmap([(3, 20)])
    world.front.commit()
    assert (Kind.UNMAP, 8, 8) in kinds(world)
    assert flags(world) == [0, MORE, MORE, 0]
    assert world.read(0, 32) == fill(1, 3) + bytes(20 * 512) + fill(1, 9)
    world.restart()
    assert world.read(0, 32) == fill(1, 3) + bytes(20 * 512) + fill(1, 9)


def test_zeros_that_must_stay_provisioned_are_another_kind() -> None:
    world = World()
    world.front.write_zeroes(0, 8, may_unmap=False)
    world.front.write_zeroes(8, 8)
    world.front.commit()
    assert [kind for kind, _, _ in kinds(world)] == [Kind.ZERO, Kind.UNMAP]


def test_a_discard_given_up_by_the_journal_does_not_uncover_old_cache() -> None:
    world = World()
    world.front.write(0, [fill(1, 64)])
    settled(world)
    assert world.read(0, 64) == fill(1, 64)  # cached now
    world.front.unmap([(8, 40)])
    settled(world)
    assert world.read(0, 64) == fill(1, 8) + bytes(40 * 512) + fill(1, 16)


# --- room


def test_a_full_journal_says_busy_keeps_nothing_and_recovers() -> None:
    world = World(ring_bytes=64 * KIB)
    count = 14  # 4176 bytes each in a ring of 64 KiB, less what the ring's first lap skips
    for number in range(count):
        world.front.write(number * 8, [fill(number)])
    with pytest.raises(JournalFull, match="writes resume as the bucket takes data"):
        world.front.write(count * 8, [fill(count)])
    world.front.commit()
    world.front.tick(0)
    assert world.worker.sent[-1] == Appended(world.journal.head, urgent=True)
    assert world.front.journal_fill > 0.8
    assert world.front.snapshot()["writes_refused_full"] == 1
    world.worker.commit()
    assert world.front.journal_fill == 0
    world.front.write(count * 8, [fill(count)])
    for number in range(count + 1):
        assert world.read(number * 8, 8) == fill(number)


def test_what_the_bucket_has_stays_readable_here_until_room_is_needed() -> None:
    world = World()
    world.front.write(0, [fill(1)])
    world.front.commit()
    world.front.tick(0)
    world.worker.commit()
    world.front.tick(1)
    assert world.journal.reclaimed == 4096
    assert world.read(0, 8) == fill(1)
    assert not fetches(world)


def test_nothing_is_given_up_that_the_bucket_does_not_have() -> None:
    world = World(ring_bytes=64 * KIB)
    for number in range(12):
        world.front.write(number * 8, [fill(number)])
        world.front.commit()
    world.front.tick(0)
    assert world.journal.reclaimed == 4096


def test_the_worker_is_told_at_a_megabyte_or_at_the_next_tick() -> None:
    world = World(Geometry(64 * MIB), ring_bytes=32 * MIB)
    told = len(world.worker.sent)
    world.front.write(0, [fill(1)])
    world.front.commit()
    assert len(world.worker.sent) == told
    world.front.write(0, [bytes(MIB)])
    world.front.commit()
    assert world.worker.sent[told:] == [Appended(world.journal.head)]
    world.front.write(0, [fill(1)])
    world.front.commit()
    world.front.tick(0)
    world.front.tick(1)
    assert world.worker.sent[told + 1 :] == [Appended(world.journal.head)]
    for _ in range(15):
        world.front.write(0, [bytes(MIB)])
        world.front.commit()
    assert world.worker.sent[-1] == Appended(world.journal.head, urgent=True), "from half full"


def test_the_worker_is_told_that_there_is_no_hurry_any_more_when_nobody_writes() -> None:
    world = World(Geometry(64 * MIB), ring_bytes=32 * MIB)
    for _ in range(20):
        world.front.write(0, [bytes(MIB)])
        world.front.commit()
    world.front.tick(0)
    ends = world.worker.boundaries()
    assert world.worker.sent[-1] == Appended(world.journal.head, urgent=True)
    told = len(world.worker.sent)
    world.worker.commit(ends[1])
    assert len(world.worker.sent) == told, "there is a hurry still"
    world.worker.commit(ends[-4])
    assert world.worker.sent[told:] == [Appended(world.journal.head)]
    world.worker.commit()
    world.front.tick(1)
    assert len(world.worker.sent) == told + 1, "it is said once"


# --- fetches and time


def test_content_that_was_overtaken_by_reclaim_is_asked_for_again() -> None:
    world = World(ring_bytes=64 * KIB)
    world.front.write(0, [fill(1, 32)])
    settled(world)
    answers: list[ReadAnswer] = []
    assert world.front.read(16, 8, answers.append) is None
    world.worker.look_up()  # finds the ones
    world.front.write(16, [fill(2)])
    settled(world)  # the twos are in the bucket, and nowhere here
    world.worker.deliver()
    assert not answers, "the ones are out of date"
    world.worker.serve()
    assert isinstance(answers[0], list)
    assert b"".join(answers[0]) == fill(2)
    assert world.front.snapshot()["refetched_frames"] == 1


def test_an_answer_older_than_reclaim_is_good_if_nothing_touched_the_frame() -> None:
    world = World(ring_bytes=64 * KIB)
    world.front.write(0, [fill(1, 32)])
    settled(world)
    answers: list[ReadAnswer] = []
    world.front.read(16, 8, answers.append)
    world.worker.look_up()
    world.front.write(320, [fill(2)])
    settled(world)
    world.worker.deliver()
    assert isinstance(answers[0], list)
    assert world.front.snapshot()["refetched_frames"] == 0


def test_a_write_during_a_fetch_is_seen_by_the_read_that_waits() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    settled(world)
    answers: list[ReadAnswer] = []
    world.front.read(0, 32, answers.append)
    world.worker.look_up()
    world.front.write(8, [fill(7)])  # staged, and not yet in the file
    world.worker.deliver()
    assert isinstance(answers[0], list)
    assert b"".join(answers[0]) == fill(1, 8) + fill(7) + fill(1, 16)


@pytest.mark.parametrize("moment", ["before the look-up", "before the delivery"])
def test_a_read_that_waits_sees_all_of_an_atomic_write_or_nothing(moment: str) -> None:
    """Frame 0 is in the journal and in the read's hands, frame 1 must be fetched, when both are written."""
    world = World()
    world.front.write(32, [fill(1, 32)])
    settled(world)
    world.front.write(0, [fill(2, 32)])
    world.front.commit()
    answers: list[ReadAnswer] = []
    assert world.front.read(0, 64, answers.append) is None
    if moment == "before the delivery":
        world.worker.look_up()
    world.front.write_atomic(24, [fill(7, 16)])
    world.front.commit()
    world.worker.serve()
    (answer,) = answers
    assert isinstance(answer, list)
    assert b"".join(answer) == fill(2, 24) + fill(7, 16) + fill(1, 24)


def test_a_read_elsewhere_is_not_read_again_for_an_atomic_write() -> None:
    world = World()
    world.front.write(32, [fill(1, 32)])
    settled(world)
    answers: list[ReadAnswer] = []
    assert world.front.read(32, 64, answers.append) is None
    misses = world.front.snapshot()["read_misses"]
    world.front.write_atomic(0, [fill(7, 16)])
    world.front.commit()
    world.worker.serve()
    (answer,) = answers
    assert isinstance(answer, list)
    assert b"".join(answer) == fill(1, 32) + bytes(32 * 512)
    assert world.front.snapshot()["read_misses"] == misses


def test_more_frames_than_slots_are_fetched_in_turns() -> None:
    world = World(slots=4)
    world.front.write(0, [fill(1, 32) + fill(2, 32)])
    world.front.write(640, [fill(3, 64)])
    settled(world)
    expected = fill(1, 32) + fill(2, 32) + bytes(576 * 512) + fill(3, 64)
    assert world.read(0, 704) == expected


@pytest.mark.parametrize(("first", "count"), [(0, 256), (32, 96), (33, 94), (0, 32), (40, 200)])
def test_frames_side_by_side_are_read_at_once_where_nothing_newer_is_here(
    monkeypatch: pytest.MonkeyPatch, first: int, count: int
) -> None:
    world = World()
    expected = bytearray()
    for block in range(32):
        expected += fill(block + 1)
        world.front.write(block * 8, [fill(block + 1)])
    settled(world)
    assert world.read(0, 256) == expected, "eight frames of four blocks are in the cache now"
    reads: list[int] = []
    pread = world.content_file.pread

    def counted(length: int, offset: int) -> bytes:
        reads.append(length)
        return pread(length, offset)

    monkeypatch.setattr(world.content_file, "pread", counted)
    assert world.read(0, 256) == expected
    assert reads == [128 * KIB]
    world.front.write(8 * 9, [fill(77)])
    world.front.write(8 * 17 + 3, [fill(78, 2)])
    world.front.unmap([(8 * 20, 16)])
    expected[9 * 4096 : 10 * 4096] = fill(77)
    expected[17 * 4096 + 3 * 512 : 17 * 4096 + 5 * 512] = fill(78, 2)
    expected[20 * 4096 : 22 * 4096] = bytes(8192)
    assert world.read(first, count) == expected[first * 512 : (first + count) * 512]
    world.content_file.content[13 * 4096 + 7] ^= 4  # the slots follow each other from 0 on
    sent = len(fetches(world))
    assert world.read(0, 256) == expected
    assert [frame.frame for message in fetches(world)[sent:] for frame in message.frames] == [3]


def test_after_a_restart_the_cache_is_asked_about_and_not_fetched_again() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    world.front.write(32, [fill(2, 32)])
    settled(world)
    world.read(0, 64)
    world.front.write(32, [fill(3, 8)])
    settled(world)
    world.restart()
    assert world.read(0, 64) == fill(1, 32) + fill(3, 8) + fill(2, 24)
    (fetch,) = fetches(world)
    assert [wanted.as_of > 0 for wanted in fetch.frames] == [True, True]


def test_sequential_reads_are_fetched_ahead() -> None:
    world = World(Geometry(64 * MIB), slots=64, read_ahead_bytes=512 * KIB, ring_bytes=32 * MIB)
    world.front.write(0, [fill(1, 2048)] * 4)
    settled(world)
    for lba in range(0, 6400, 64):
        assert world.read(lba, 64) == fill(1, 64)
    ahead = [fetch for fetch in fetches(world) if fetch.speculative]
    assert len(ahead) >= 5
    stats = world.front.snapshot()
    assert stats["readahead_frames"] > 30
    assert stats["read_misses"] < 20


PIECE = 8
"""Frames of an extent, and of a piece that is fetched ahead, in the streaming world."""


def streaming_world(read_ahead_bytes: int = 128 * KIB) -> World:
    """A written volume of 24 MiB, 192 extents of 8 frames, with a cache for all of it: a stream's window grows to 96 frames."""
    world = World(
        Geometry(24 * MIB, frame_bytes=16 * KIB, extent_bytes=128 * KIB),
        slots=1536,
        read_ahead_bytes=read_ahead_bytes,
    )
    world.bucket.changed.update(dict.fromkeys(range(1536), 1))
    return world


def round_trips(world: World, depth: int = 1) -> int:
    """Read the volume in order, an extent at a time, `depth` reads at once; everything asked for is answered a round trip
    later. How many it took."""
    ends = world.front.sector_count
    place = rounds = under_way = 0
    answered: list[ReadAnswer] = []
    while place < ends:
        while place < ends and under_way - len(answered) < depth:
            local = world.front.read(place, 256, answered.append)
            under_way += local is None
            place += 256
        while world.worker.look_up():
            pass
        while world.worker.deliver():
            pass
        rounds += 1
    assert not [answer for answer in answered if isinstance(answer, Exception)]
    return rounds


def asked_frames(world: World) -> list[int]:
    return [item.frame for fetch in fetches(world) for item in fetch.frames]


def test_a_long_stream_has_many_requests_under_way_and_none_twice() -> None:
    # 192 extents, 12 at once once the window has grown: 16 round trips. With a window of one extent they are 97.
    world = streaming_world()
    assert round_trips(world) <= 20
    assert sorted(asked_frames(world)) == list(range(1536)), "each frame once"
    assert len(fetches(world)) <= 200, "an extent is one request"


def test_a_deep_queue_adds_to_what_is_under_way() -> None:
    world = streaming_world()
    assert round_trips(world, depth=8) <= 15
    assert sorted(asked_frames(world)) == list(range(1536))


def test_without_read_ahead_each_read_is_a_round_trip_and_nothing_more_is_asked() -> None:
    world = streaming_world(read_ahead_bytes=0)
    assert round_trips(world) == 192
    assert len(fetches(world)) == 192
    assert not [fetch for fetch in fetches(world) if fetch.speculative]


def test_scattered_reads_cost_no_request_and_no_frame_more() -> None:
    world = streaming_world()
    places = random.Random(5).sample(range(0, 1536, 2), 500)
    for frame in places:
        world.read(frame * 32, 32)
        world.read(frame * 32 + 8, 8)
    assert len(fetches(world)) == 500
    assert sorted(asked_frames(world)) == sorted(places)


def test_scattered_reads_after_a_stream_cost_nothing_more_either() -> None:
    world = streaming_world()
    for lba in range(0, 256 * 40, 256):
        world.read(lba, 256)
    before = len(asked_frames(world))
    places = random.Random(6).sample(range(800, 1536, 2), 200)
    for frame in places:
        world.read(frame * 32 + 8, 8)
    assert asked_frames(world)[before:] == places


def test_guesses_take_bounded_places_and_slots_and_a_read_that_waits_goes_beside_them() -> None:
    world = streaming_world()
    for lba in range(0, 256 * 40, 256):
        world.read(lba, 256)
    for lba in range(256 * 40, 256 * 70, 256):  # nothing is answered any more
        world.front.read(lba, 256, lambda answer: None)
    under_way = [fetch for fetch in world.worker.fetches if fetch.speculative]
    assert len(under_way) <= 16
    assert sum(len(fetch.frames) for fetch in under_way) <= 16 * PIECE
    world.front.read(1500 * 32, 8, lambda answer: None)
    last = world.worker.fetches[-1]
    assert not last.speculative
    assert [item.frame for item in last.frames] == [1500]
    world.front.write(0, [fill(7)])
    world.front.commit()
    assert world.read(0, 8) == fill(7)


def test_a_small_cache_lends_guesses_a_quarter_at_most() -> None:
    world = streaming_world()
    small = World(world.geometry, slots=32, read_ahead_bytes=1 * MIB)
    small.bucket.changed.update(dict.fromkeys(range(1536), 1))
    for frame in range(40):
        small.front.read(frame * 32, 32, lambda answer: None)
        lent = sum(len(fetch.frames) for fetch in small.worker.fetches if fetch.speculative)
        assert lent <= 8
    small.worker.serve()
    assert small.read(1500 * 32, 32) == bytes(16 * KIB)


def test_a_stream_that_stops_asks_for_nothing_more() -> None:
    world = streaming_world()
    for lba in range(0, 256 * 20, 256):
        world.read(lba, 256)
    asked = len(fetches(world))
    world.worker.serve()
    for _ in range(10):
        world.front.tick(1.0)
    assert len(fetches(world)) == asked
    assert max(asked_frames(world)) < 20 * PIECE + 96


def test_a_read_that_joined_a_guess_waits_out_an_outage_as_any_other() -> None:
    world = streaming_world()
    world.read(0, 32)
    asked: list[ReadAnswer] = []
    joined: list[ReadAnswer] = []
    world.front.read(32, 32, asked.append)
    world.front.read(64, 32, joined.append)
    wanted, guessed, further = world.worker.fetches
    assert [fetch.speculative for fetch in (wanted, guessed, further)] == [False, True, True]
    assert all(fetch.awaited for fetch in (wanted, guessed, further)), "a host waits, whatever for"
    assert [item.frame for item in guessed.frames] == [2]
    world.worker.unreachable = True
    for _ in range(3):
        world.worker.look_up()
        world.worker.deliver()
    assert isinstance(asked[0], StoreUnreachable), "the worker itself tries again for long"
    assert not joined
    (again,) = world.worker.fetches
    assert not again.speculative
    assert [item.frame for item in again.frames] == [2]
    world.worker.unreachable = False
    world.worker.serve()
    assert b"".join(joined[0]) == bytes(16 * KIB)  # type: ignore[arg-type]  # an error would be one


def test_guesses_that_nobody_waits_for_say_so() -> None:
    world = streaming_world()
    for frame in range(20):
        world.read(frame * 32, 32)
    guesses = [fetch for fetch in fetches(world) if fetch.speculative]
    assert any(not fetch.awaited for fetch in guesses)
    assert all(fetch.awaited for fetch in fetches(world) if not fetch.speculative)


# --- things that break


def test_a_damaged_frame_in_the_bucket_is_a_medium_error_at_the_wanted_sector() -> None:
    world = World()
    world.worker.corrupt.add(1)
    answer = world.try_read(20, 60)
    assert isinstance(answer, MediumError)
    assert answer.lba == 32
    assert "ext/5 at offset 12" in str(answer)
    assert world.read(0, 8) == bytes(4096)


def test_an_unreachable_store_fails_only_what_is_not_here() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    settled(world)
    world.read(0, 32)
    world.worker.unreachable = True
    assert isinstance(world.try_read(64, 8), StoreUnreachable)
    assert world.read(0, 8) == fill(1)
    world.front.write(64, [fill(2)])
    assert world.read(64, 8) == fill(2)
    world.worker.unreachable = False
    assert world.read(72, 8) == bytes(4096)


def test_a_flipped_bit_in_the_journal_is_named_and_never_returned() -> None:
    world = World()
    world.front.write(0, [fill(1, 24)])
    world.front.commit()
    place = RING_START + 4096 + 80 + 4096 + 100
    world.journal_file.content[place] ^= 2
    for lba, count in ((8, 8), (0, 24), (9, 1)):
        answer = world.try_read(lba, count)
        assert isinstance(answer, MediumError)
        assert answer.lba == 8
        assert f"damaged at offset {RING_START + 4096 + 80 + 4096}" in str(answer)
    assert world.read(0, 8) == fill(1)
    assert world.front.snapshot()["corrupt_journal_blocks"] == 3
    world.front.write(9, [fill(5, 1)])  # goes on as a piece; the rest of the block stays damaged
    assert isinstance(world.try_read(8, 8), MediumError)
    world.front.write(8, [fill(6)])
    assert world.read(0, 24) == fill(1) + fill(6) + fill(1)


def test_damage_in_the_journal_that_the_bucket_can_heal_is_healed() -> None:
    world = World()
    world.front.unmap([(0, 64)])
    world.front.write(0, [fill(1, 32)])
    world.front.commit()
    world.front.tick(0)
    world.worker.commit()
    for at in (80, 80 + 2 * 4096):
        world.journal_file.content[RING_START + 4096 + 64 + at + 7] ^= 1
    assert world.read(0, 32) == fill(1, 32)
    assert world.front.snapshot()["corrupt_journal_blocks"] == 2


def test_damage_in_records_that_are_given_up_does_no_harm() -> None:
    world = World(ring_bytes=64 * KIB)
    world.front.write(0, [fill(1, 32)])
    settled(world)
    world.read(0, 32)
    for number in range(8):
        world.front.write(number * 8, [fill(number + 10)])
    world.front.commit()
    world.front.tick(0)
    world.worker.commit()
    world.journal_file.content[RING_START + world.journal.reclaimed % (64 * KIB) + 4] ^= 1
    settled(world)
    for number in range(8):
        assert world.read(number * 8, 8) == fill(number + 10)


def test_a_cache_file_that_cannot_be_read_back_is_an_error_in_the_end() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    settled(world)
    world.content_file.fail_writes = True
    world.worker.content = MemoryFile(world.content_file.size())  # the worker writes elsewhere
    answer = world.try_read(0, 8)
    assert isinstance(answer, MediumError)
    assert "could not be read back" in str(answer)


def test_a_failed_append_stops_the_volume() -> None:
    world = World()
    world.front.write(0, [fill(1)])
    world.journal_file.fail_writes = True
    with pytest.raises(LocalDiskFailed, match="cannot append"):
        world.front.commit()
    world.journal_file.fail_writes = False
    assert isinstance(world.stopped[0], LocalDiskFailed)
    with pytest.raises(LocalDiskFailed):
        world.front.write(0, [fill(1)])
    with pytest.raises(LocalDiskFailed):
        world.front.commit()
    assert isinstance(world.try_read(0, 8), LocalDiskFailed)
    assert isinstance(world.flush(), LocalDiskFailed)


@pytest.mark.parametrize("inline", [False, True])
def test_a_failed_fdatasync_stops_the_volume_and_is_not_tried_again(inline: bool) -> None:
    world = World()
    world.front.inline_flush = inline
    world.front.write(0, [fill(1)])
    world.journal_file.fail_syncs = True
    assert isinstance(world.flush(), LocalDiskFailed)
    syncs = world.journal_file.syncs
    assert isinstance(world.flush(), LocalDiskFailed)
    assert world.journal_file.syncs == syncs
    assert len(world.stopped) == 1


# --- flush


def test_a_flush_waits_for_an_fdatasync_that_covers_it() -> None:
    world = World()
    answers: list[Exception | None] = []
    world.front.write(0, [fill(1)])
    world.front.flush(answers.append)
    assert not answers
    world.front.write(8, [fill(2)])
    world.front.flush(answers.append)
    syncs = world.journal_file.syncs
    world.syncer.run()
    assert answers == [None, None]
    assert world.journal_file.syncs == syncs + 1
    assert world.journal.synced == world.journal.head


def test_a_flush_with_nothing_new_is_free() -> None:
    world = World()
    world.front.write(0, [fill(1)])
    world.flush()
    syncs = world.journal_file.syncs
    assert world.flush() is None
    assert world.journal_file.syncs == syncs


def test_what_a_flush_will_wait_for_is_begun_before_it_comes() -> None:
    world = World(ring_bytes=1024 * KIB)
    world.front.inline_flush = True

    def write(lba: int) -> None:
        world.front.write(lba, [fill(1)])
        world.front.commit()
        while world.soon:
            world.soon.pop()()

    write(0)
    assert not world.journal_file.begun, "nobody has flushed yet"
    assert world.flush() is None
    begin = world.journal.head
    write(8)
    length = world.journal.head - begin
    assert world.journal_file.begun == [(world.journal.file_offset(begin), length)]
    assert world.journal.synced == begin, "begun is not durable"
    write(16)
    assert len(world.journal_file.begun) == 1, "once for each flush"
    assert world.flush() is None
    write(24)
    assert len(world.journal_file.begun) == 1, "the last flush had two writes to sync"
    write(32)
    assert len(world.journal_file.begun) == 2
    for number in range(80):
        write(number * 8)
    assert world.flush() is None
    for number in range(80):
        write(number * 8)
    assert len(world.journal_file.begun) == 2, "too much to be begun by the front"


def test_a_large_write_behind_a_small_flush_is_not_begun() -> None:
    """The kernel takes it to the disk's queue at once, and whoever else is on this thread waits."""
    world = World(ring_bytes=4096 * KIB)
    world.front.inline_flush = True
    world.front.write(0, [fill(1)])
    assert world.flush() is None
    for number in range(80):
        world.front.write(number * 8, [fill(1)])
    world.front.commit()
    world.soon.pop()()
    assert not world.journal_file.begun


def test_what_was_begun_is_left_alone_once_it_is_synced_or_the_volume_has_stopped() -> None:
    world = World()
    world.front.inline_flush = True
    for lba in (0, 8):
        world.front.write(lba, [fill(1)])
        assert world.flush() is None
    assert world.soon
    assert not world.journal_file.begun
    world.soon.pop()()
    assert not world.journal_file.begun
    world.front.write(16, [fill(1)])
    world.front.commit()
    world.front.stop(LocalDiskFailed("gone"))
    world.soon.pop()()
    assert not world.journal_file.begun


def test_an_inline_flush_answers_at_once() -> None:
    world = World()
    world.front.inline_flush = True
    answers: list[Exception | None] = []
    world.front.write(0, [fill(1)])
    world.front.flush(answers.append)
    assert answers == [None]
    assert world.journal_file.pending == []


def test_a_flush_to_s3_waits_for_the_bucket() -> None:
    world = World(flush_to="s3")
    answers: list[Exception | None] = []
    world.front.flush(answers.append)
    assert answers == [None], "nothing is missing there"
    world.front.write(0, [fill(1)])
    world.front.flush(answers.append)
    assert world.worker.sent[-1] == CommitNow(world.journal.head)
    assert len(answers) == 1
    world.worker.commit()
    assert answers == [None, None]


def test_flushes_to_s3_share_requests_and_are_answered_as_far_as_the_bucket_goes() -> None:
    world = World(flush_to="s3")
    answers: list[str] = []

    def flush(name: str) -> None:
        world.front.flush(lambda error: answers.append(name if error is None else repr(error)))

    world.front.write(0, [fill(1)])
    flush("first")
    flush("its twin")
    first = world.journal.head
    world.front.write(8, [fill(2)])
    flush("later")
    assert [m.position for m in world.worker.sent if isinstance(m, CommitNow)] == [first, world.journal.head]
    world.worker.commit(first)
    assert answers == ["first", "its twin"]
    world.worker.commit()
    assert answers == ["first", "its twin", "later"]
    world.front.write(16, [fill(3)])
    flush("after all were answered")
    assert world.worker.sent[-1] == CommitNow(world.journal.head)


# --- the end


def refusals(world: World) -> list[type[BaseException]]:
    found: list[type[BaseException]] = []
    calls: list[Callable[[], object]] = [
        lambda: world.front.write(0, [fill(1)]),
        lambda: world.front.write_zeroes(0, 8),
        lambda: world.front.unmap([(0, 8)]),
        lambda: world.front.commit(),
    ]
    for call in calls:
        with pytest.raises(BlockError) as caught:
            call()
        found.append(caught.type)
    answers: list[object] = [world.try_read(0, 8), world.flush()]
    world.front.allocated(0, 8, answers.append)
    return found + [type(answer) for answer in answers if isinstance(answer, BaseException)]


@pytest.mark.parametrize(("kind", "expected"), [("fenced", Fenced), ("store", NotReady), ("bug", NotReady)])
def test_when_the_worker_fails_nothing_more_is_acknowledged(kind: str, expected: type[NotReady]) -> None:
    world = World()
    answers: list[object] = []
    world.front.write(0, [fill(1)])
    world.front.flush(answers.append)
    world.front.read(64, 8, answers.append)
    world.front.allocated(0, 8, answers.append)
    world.front.write(0, [fill(2)])
    world.worker.on_message(Failed(kind, "because"))
    assert [type(answer) for answer in answers] == [expected] * 3
    world.syncer.run()
    world.worker.serve()
    assert len(answers) == 3, "late news changes nothing"
    assert refusals(world) == [expected] * 7
    assert [type(error) for error in world.stopped] == [expected]


def test_detach_carries_everything_to_the_bucket_and_refuses_writes_meanwhile() -> None:
    world = World()
    answers: list[Exception | None] = []
    world.front.write(0, [fill(1)])
    world.front.detach(answers.append)
    assert world.worker.sent[-2:] == [Appended(world.journal.head), Detach()]
    with pytest.raises(NotReady, match="being detached"):
        world.front.write(0, [fill(1)])
    assert world.read(0, 8) == fill(1)
    world.front.detach(answers.append)
    assert isinstance(answers.pop(), NotReady)
    world.worker.commit()
    world.worker.on_message(Detached())
    assert answers == [None]
    assert isinstance(world.try_read(0, 8), NotReady)


def test_detach_reports_a_failure_that_comes_first() -> None:
    world = World()
    answers: list[Exception | None] = []
    world.front.detach(answers.append)
    world.worker.on_message(Failed("fenced", "another host"))
    assert [type(answer) for answer in answers] == [Fenced]


def test_a_worker_that_claims_too_much_is_not_believed() -> None:
    world = World()
    with pytest.raises(ValueError, match="journal's head"):
        world.worker.on_message(Durable(1 << 40, 2, 0.0))
    with pytest.raises(ValueError, match="not asked for"):
        world.worker.on_message(Fetched(1, 4096, (FetchedFrame(3, 0, "zero"),)))


def test_an_epoch_that_has_written_here_before_is_refused() -> None:
    world = World()
    world.bucket.epoch -= 1
    world.restart()
    assert "written by epoch 1 already" in str(world.stopped[0])
    assert isinstance(world.try_read(0, 8), BlockError)


def test_a_damaged_journal_is_not_attached() -> None:
    world = World()
    world.front.write(0, [fill(1)])
    world.flush()
    world.front.write(8, [fill(1)])
    world.front.commit()
    world.journal_file.content[RING_START + 4096 + 500] ^= 1
    world.restart()
    assert "it was durable" in str(world.stopped[0])


# --- GET LBA STATUS and counters


def allocated(world: World, lba: int, count: int) -> list[tuple[int, int, bool]]:
    answers: list[list[tuple[int, int, bool]] | Exception] = []
    world.front.allocated(lba, count, answers.append)
    world.worker.serve()
    (answer,) = answers
    assert isinstance(answer, list)
    return answer


def test_allocation_is_the_buckets_with_the_journal_over_it() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    settled(world)
    world.front.write(43, [fill(2, 1)])
    world.front.unmap([(8, 8)])
    assert allocated(world, 0, 128) == [
        (0, 8, True),
        (8, 8, False),
        (16, 16, True),
        (32, 8, False),
        (40, 8, True),
        (48, 80, False),
    ]
    assert allocated(world, 3, 2) == [(3, 2, True)]
    assert allocated(world, 44, 20) == [(44, 4, True), (48, 16, False)]


def test_allocation_that_begins_in_the_journal_needs_no_worker() -> None:
    world = World(ring_bytes=4 * MIB)
    for block in range(300):
        world.front.write(block * 8, [fill(block % 200)])
    answers: list[object] = []
    world.front.allocated(3, 8 * 1024, answers.append)
    assert answers == [[(3, 300 * 8 - 3, True)]]
    world.front.allocated(0, 8 * 290, answers.append)
    assert answers[1:] == [[(0, 8 * 290, True)]]
    world.front.allocated(8 * 60, 8 * 300, answers.append)
    assert len(answers) == 2, "too short a run to be answered with"
    world.worker.serve()
    assert len(answers) == 3


def test_who_asks_about_a_part_of_what_is_being_asked_shares_the_answer() -> None:
    world = World()
    world.front.write(0, [fill(1, 32)])
    settled(world)
    world.front.unmap([(8, 8)])
    answers: dict[str, object] = {}
    world.front.allocated(0, 64, partial(answers.__setitem__, "all"))
    world.front.allocated(20, 4, partial(answers.__setitem__, "a part"))
    world.front.allocated(24, 512, partial(answers.__setitem__, "from within"))
    world.front.write(12 * 8, [fill(2)])
    world.front.allocated(24, 8 * 12, partial(answers.__setitem__, "after a write"))
    assert len(world.front._allocation._asked) == 2
    world.worker.serve()
    assert answers == {
        "all": [(0, 8, True), (8, 8, False), (16, 16, True), (32, 32, False)],
        "a part": [(20, 4, True)],
        "from within": [(24, 8, True), (32, 32, False)],  # as far as the answer goes, which SBC-4 allows
        "after a write": [(24, 8, True), (32, 64, False), (96, 8, True), (104, 16, False)],
    }
    world.front.allocated(0, 64, partial(answers.__setitem__, "all"))
    world.front.allocated(8, 8, partial(answers.__setitem__, "a part"))
    world.front.stop(LocalDiskFailed("gone"))
    assert isinstance(answers["all"], LocalDiskFailed)
    assert isinstance(answers["a part"], LocalDiskFailed)


def test_a_block_that_moves_to_the_bucket_meanwhile_never_looks_unmapped() -> None:
    world = World(ring_bytes=64 * KIB)
    world.front.write(8, [fill(1)])
    answers: list[object] = []
    world.front.allocated(0, 32, answers.append)  # the worker has looked at an empty map
    settled(world)
    world.worker.serve()
    assert answers == [[(0, 8, False), (8, 8, True), (16, 16, False)]]


def test_the_exported_loss_on_disaster() -> None:
    world = World()
    world.front.tick(10.0)
    assert world.front.snapshot()["rpo_seconds"] == 0
    world.front.write(0, [fill(1)])
    world.front.commit()
    world.front.tick(11.0)
    first = world.journal.head
    world.front.write(8, [fill(1)])
    world.front.commit()
    world.front.tick(12.0)
    world.front.tick(15.0)
    stats = world.front.snapshot()
    assert (stats["rpo_bytes"], stats["rpo_seconds"]) == (2 * 4176, 4.0)
    world.worker.commit(first)
    stats = world.front.snapshot()
    assert (stats["rpo_bytes"], stats["rpo_seconds"]) == (4176, 3.0)
    world.worker.commit()
    assert world.front.snapshot()["rpo_seconds"] == 0


def test_the_loss_on_disaster_grows_in_a_blackout_and_is_never_told_too_small() -> None:
    """More ticks than samples are kept: thinning may make what is told older by a few ticks, never younger."""
    world = World(ring_bytes=1 * MIB)
    front, now = world.front, 0.0
    appended: list[tuple[int, float]] = []
    for number in range(int(SAMPLES_MAX * 2.5)):
        now += 0.05
        if number % 3 == 0:
            # A discard is the smallest record, so that all of it fits.
            front.unmap([(0, 8)])
            front.commit()
            appended.append((world.journal.head, now))
        front.tick(now)
    oldest_told = front.snapshot()["rpo_seconds"]
    assert oldest_told == pytest.approx(now - appended[0][1], abs=0.001)
    assert front.snapshot()["rpo_bytes"] == world.journal.head - world.bucket.position
    for position, _ in appended[:-1:400]:
        world.worker.commit(position)
        oldest = next(when for at, when in appended if at > position)
        told = front.snapshot()["rpo_seconds"]
        assert now - oldest <= told + 0.001, "what is told is never younger"
        assert told < now - oldest + 2.0
    world.worker.commit()
    now += 0.05
    front.tick(now)
    assert (front.snapshot()["rpo_seconds"], front.snapshot()["rpo_bytes"]) == (0.0, 0)
    now += 3600
    front.tick(now)
    assert front.snapshot()["rpo_seconds"] == 0.0, "idle"


def test_writes_are_held_back_from_half_a_journal_on() -> None:
    world = World(ring_bytes=256 * KIB)
    held = []
    number = 0
    while world.front.journal_fill < 0.9:
        number += 1
        world.front.write(number % 64 * 8, [fill(number % 251)])
        world.front.commit()
        world.front.tick(world.now)
        held.append((world.front.journal_fill, world.front.hold_back(4096)))
    assert {seconds for fill, seconds in held if fill < 0.5} == {0.0}
    slowed = [seconds for fill, seconds in held if fill > 0.55]
    assert all(slowed)
    assert max(slowed) <= 1.0
    assert world.front.snapshot()["writes_held_seconds"] == pytest.approx(sum(seconds for _, seconds in held))
    world.worker.commit()
    assert world.front.hold_back(4096) == 0


def test_counters_count() -> None:
    world = World()
    world.front.write(0, [fill(1)])
    world.front.write(11, [fill(1, 3)])
    world.front.unmap([(100, 8), (200, 8)])
    world.flush()
    world.read(0, 8)
    world.read(64, 16)
    stats = world.front.snapshot()
    wanted = {"writes": 2, "write_bytes": 5632, "discards": 2, "flushes": 1, "reads": 2, "read_bytes": 12288}
    assert {key: stats[key] for key in wanted} == wanted
    assert (stats["read_hits"], stats["read_misses"]) == (1, 1)
    world.worker.on_message(Status({"puts": 3.0}))
    assert world.front.worker_counters == {"puts": 3.0}
