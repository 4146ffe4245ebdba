"""The read cache: what may be read, what survives a restart, what is thrown out."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockdev.checksum import block_checksums
from blockdev.engine.cache import ReadCache, open_cache
from blockdev.engine.cache_table import (
    CacheEntry,
    CacheLayout,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
)
from blockdev.errors import CorruptFormat, LocalDiskFailed
from blockdev.units import BLOCK_BYTES, KIB
from tests.blockdev.memory_file import MemoryFile

CACHE = UUID("5d1a3c4b-6f8e-4a70-b2c1-d3e4f5061728")
OTHER = UUID("00000000-6f8e-4a70-b2c1-d3e4f5061728")
VOLUME = UUID("1b4e28ba-2fa1-4d2f-883f-0016d3cca427")
FRAME = 16 * KIB
ALL = 0b1111


class Disk:
    """Content and table, and a worker's hand to fill slots."""

    def __init__(self, slots: int = 16) -> None:
        self.layout = CacheLayout(CACHE, VOLUME, FRAME, slots)
        self.content = MemoryFile(self.layout.content_bytes)
        self.table = MemoryFile(self.layout.table_bytes)
        self.table.pwritev([encode_header(self.layout)], 0)

    def open(self) -> ReadCache:
        return ReadCache(self.content, self.table, self.layout, zero_frames_max=8)

    def fetch(self, cache: ReadCache, frame: int, *, as_of: int = 5, covered: int = 100) -> int:
        lent = cache.lend(frame)
        assert lent is not None
        data = content_of(frame)
        self.content.pwritev([data], lent[0] * FRAME)
        cache.fill(lent[0], tuple(block_checksums([data])), as_of, covered)
        return lent[0]


def content_of(frame: int) -> bytes:
    return frame.to_bytes(4, "little") * (FRAME // 4)


def test_a_filled_frame_is_read_block_by_block_and_in_runs() -> None:
    disk = Disk()
    cache = disk.open()
    assert cache.read_block(7, 0) is None
    slot = disk.fetch(cache, 7)
    assert cache.find(7) == slot
    assert cache.read_block(7, 3) == content_of(7)[:BLOCK_BYTES]
    assert cache.read_run(slot, 1, 2) == content_of(7)[: 2 * BLOCK_BYTES]


def test_a_flipped_bit_is_never_returned_and_counted() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7)
    disk.content.content[slot * FRAME + 5000] ^= 1
    assert cache.read_block(7, 0) is not None
    assert cache.read_block(7, 1) is None
    assert cache.damaged_blocks == 1
    assert cache.find(7) == -1
    slot = disk.fetch(cache, 7)
    disk.content.content[slot * FRAME] ^= 1
    assert cache.read_run(slot, 0, 4) is None


def test_neighbours_are_read_at_once() -> None:
    disk = Disk()
    cache = disk.open()
    for frame in (7, 8, 9, 20, 10):
        disk.fetch(cache, frame)
    assert cache.whole_frames(7, 20) == 3, "frame 10 lies elsewhere"
    assert cache.whole_frames(8, 9) == 1
    assert cache.whole_frames(6, 9) == 0
    for _ in range(2):  # the second time against the checksums that the first one found
        assert cache.read_frames(7, 3) == b"".join(map(content_of, (7, 8, 9)))
    cache.forget(9, 0b0001, 101)
    assert cache.whole_frames(7, 20) == 2
    lent = cache.lend(8)
    assert lent is not None
    assert cache.whole_frames(7, 20) == 1
    # What the worker writes there from now on is another content, with checksums of its own.
    other = content_of(80)
    disk.content.pwritev([other], lent[0] * FRAME)
    cache.fill(lent[0], tuple(block_checksums([other])), 6, 200)
    for _ in range(2):
        assert cache.read_frames(7, 2) == content_of(7) + other


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("at", [0, 1, FRAME // 2, FRAME - 1])
def test_a_flipped_bit_in_a_run_is_never_returned(read_before: bool, at: int) -> None:
    disk = Disk()
    cache = disk.open()
    first, _, _ = (disk.fetch(cache, frame) for frame in (7, 8, 9))
    if read_before:
        assert cache.read_frames(7, 3) is not None
    disk.content.content[(first + 1) * FRAME + at] ^= 0x10
    assert cache.read_frames(7, 3) is None
    assert cache.damaged_blocks == 1
    assert cache.find(8) == -1
    assert cache.whole_frames(7, 10) == 1
    assert cache.read_frames(7, 1) == content_of(7)
    assert cache.read_frames(9, 1) == content_of(9)


def test_a_run_that_cannot_be_read_says_nothing_of_its_frames() -> None:
    disk = Disk()
    cache = disk.open()
    slot, _ = (disk.fetch(cache, frame) for frame in (7, 8))
    assert cache.read_frames(7, 2) is not None
    del disk.content.content[(slot + 2) * FRAME - 1 :]
    assert cache.read_frames(7, 2) is None
    assert cache.damaged_blocks == 0
    assert cache.read_run(slot, 0, 4) == content_of(7)
    assert cache.read_run(slot + 1, 0, 4) is None
    assert cache.find(8) == -1


def test_a_lent_slot_is_not_read() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7)
    assert cache.lend(7) == (slot, 5)
    assert cache.read_block(7, 0) is None
    with pytest.raises(ValueError, match="lent already"):
        cache.lend(7)
    cache.give_back(slot)
    assert cache.read_block(7, 0) is not None


def test_what_the_journal_gives_up_is_no_longer_current() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7, covered=100)
    cache.forget(7, 0b0010, 101)
    assert cache.valid[slot] == 0b1101
    cache.forget(7, 0b1000, 100)
    assert cache.valid[slot] == 0b1101, "a record that ended before the fetch is in its content"
    assert cache.read_block(7, 1) is None
    lent = cache.lend(7)
    assert lent is not None
    cache.keep(lent[0], 300)
    assert cache.valid[slot] == ALL


def test_what_is_given_up_while_a_slot_is_lent_stays_given_up() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7, covered=100)
    cache.lend(7)
    cache.forget(7, 0b0001, 200)
    cache.give_back(slot)
    assert cache.valid[slot] == 0b1110


def test_an_answer_that_is_out_of_date_makes_nothing_readable() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7)
    cache.lend(7)
    cache.keep(slot, 100, current=False)
    assert cache.valid[slot] == 0
    lent = cache.lend(7)
    assert lent == (slot, 5), "it may still turn out to be what the bucket has"
    cache.fill(slot, tuple(block_checksums([content_of(7)])), 6, 100, current=False)
    assert cache.valid[slot] == 0
    assert cache.lend(7) == (slot, 6)


def test_unwritten_frames_are_remembered_without_a_slot_and_bounded() -> None:
    cache = Disk(slots=2).open()
    for frame in range(20):
        lent = cache.lend(frame)
        assert lent is not None
        cache.zero(lent[0], 100)
        assert frame in cache.zero_frames
    assert len(cache.zero_frames) == 8
    cache.forget(19, 1, 100)
    assert 19 in cache.zero_frames
    cache.forget(19, 1, 101)
    assert 19 not in cache.zero_frames
    cache.forget_zeroed(18, 1, 101)
    assert 18 in cache.zero_frames, "a discard leaves it unwritten"


@pytest.mark.parametrize("wide", [False, True])
def test_a_discard_clears_the_frames_inside_it(wide: bool) -> None:
    disk = Disk()
    cache = disk.open()
    for frame in (3, 4, 9, 20):
        disk.fetch(cache, frame, covered=100)
    cache.lend(9)
    for _ in cache.forget_range(4, 1 << 40 if wide else 12, 150):
        pass
    cache.give_back(cache.find(9))
    states = [cache.valid[cache.find(frame)] for frame in (3, 4, 9, 20)]
    assert states == [ALL, 0, 0, 0 if wide else ALL]


def test_a_restart_keeps_the_content_but_trusts_it_only_after_asking() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7, as_of=41)
    again = disk.open()
    assert again.find(7) == slot
    assert again.read_block(7, 0) is None
    assert again.lend(7) == (slot, 41)
    again.keep(slot, 500)
    assert again.read_block(7, 0) == content_of(7)[:BLOCK_BYTES]


def test_bits_cleared_before_a_restart_come_back_only_with_the_workers_word() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7, as_of=41, covered=100)
    cache.forget(7, 0b0001, 200)
    again = disk.open()
    assert again.valid[slot] == 0
    assert again.lend(7) == (slot, 41)
    again.give_back(slot)
    assert again.read_block(7, 0) is None, "an unreachable store proves nothing"


def test_a_torn_or_foreign_entry_is_an_empty_slot() -> None:
    disk = Disk()
    cache = disk.open()
    slots = [disk.fetch(cache, frame) for frame in range(4)]
    offset = disk.layout.entry_offset(slots[1])
    disk.table.content[offset + 20 : offset + 30] = b"\xff" * 10
    moved = bytes(disk.table.content[disk.layout.entry_offset(slots[2]) :][: disk.layout.entry_bytes])
    at = disk.layout.entry_offset(slots[3])
    disk.table.content[at : at + disk.layout.entry_bytes] = moved
    again = disk.open()
    assert [again.find(frame) for frame in range(4)] == [slots[0], -1, slots[2], -1]


def test_content_that_was_overwritten_after_a_crash_is_dropped_on_touch() -> None:
    disk = Disk()
    cache = disk.open()
    slot = disk.fetch(cache, 7)
    disk.content.pwritev([content_of(8)], slot * FRAME)  # the worker got this far, the table did not
    again = disk.open()
    again.lend(7)
    again.keep(slot, 100)
    assert again.read_block(7, 0) is None
    assert again.find(7) == -1


def test_of_two_entries_for_a_frame_the_newer_counts() -> None:
    disk = Disk(slots=4)
    sums = tuple(block_checksums([content_of(7)]))
    for slot, as_of in ((0, 3), (1, 9), (2, 5)):
        entry = encode_entry(disk.layout, slot, CacheEntry(7, as_of, ALL, sums))
        disk.table.pwritev([entry], disk.layout.entry_offset(slot))
    cache = disk.open()
    assert cache.lend(7) == (1, 9)
    for frame in (1, 2, 3):
        assert cache.lend(frame) is not None
    assert cache.lend(4) is None


def test_a_disk_that_fails_costs_content_only() -> None:
    disk = Disk()
    cache = disk.open()
    disk.table.fail_writes = True
    disk.fetch(cache, 7)
    assert cache.read_block(7, 0) is not None


# --- eviction


def test_a_scan_does_not_push_out_what_is_used() -> None:
    disk = Disk(slots=100)
    cache = disk.open()
    hot = range(40)
    for turn in range(4):
        for frame in hot:
            if cache.read_block(frame, 0) is None:
                disk.fetch(cache, frame)
            # Something else goes by in between, so that a use is a use and not an echo.
            disk.fetch(cache, 10_000 + frame + 100 * turn)
    for frame in range(1000, 3000):
        disk.fetch(cache, frame)
        for index in range(4):
            assert cache.read_block(frame, index) is not None
    kept = sum(cache.read_block(frame, 0) is not None for frame in hot)
    assert kept >= 36
    assert cache.evictions >= 1900


def test_a_frame_that_comes_back_soon_goes_to_the_main_queue() -> None:
    disk = Disk(slots=20)
    cache = disk.open()
    for frame in range(30):
        disk.fetch(cache, frame)
    assert cache.find(0) == -1
    disk.fetch(cache, 0)
    for frame in range(100, 120):
        disk.fetch(cache, frame)
    assert cache.find(0) >= 0


def test_lent_slots_are_never_evicted() -> None:
    disk = Disk(slots=4)
    cache = disk.open()
    for frame in range(4):
        disk.fetch(cache, frame)
    first = [cache.lend(frame) for frame in range(3)]
    assert cache.lend(50) is not None
    assert cache.lend(51) is None
    for lent in first:
        assert lent is not None
        cache.give_back(lent[0])
    assert cache.lend(51) is not None


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 12), st.sampled_from(["data", "zero", "drop", "back", "lend", "read", "rot"])),
        max_size=120,
    )
)
def test_no_slot_is_lost_or_used_twice(steps: list[tuple[int, str]]) -> None:
    disk = Disk(slots=5)
    cache = disk.open()
    lent: dict[int, int] = {}
    for frame, step in steps:
        if step == "read":
            data = cache.read_block(frame, 0)
            assert data is None or data == content_of(frame)[:BLOCK_BYTES]
        elif step == "rot":
            if cache.find(frame) >= 0 and frame not in lent:
                disk.content.content[cache.find(frame) * FRAME] ^= 1
        elif frame not in lent:
            answer = cache.lend(frame)
            if answer is None:
                assert len(lent) == 5, "only when every slot is lent is there none"
            else:
                lent[frame] = answer[0]
        elif step != "lend":
            slot = lent.pop(frame)
            if step == "data":
                disk.content.pwritev([content_of(frame)], slot * FRAME)
                cache.fill(slot, tuple(block_checksums([content_of(frame)])), 1, 1)
            elif step == "zero":
                cache.zero(slot, 1)
            elif step == "drop":
                cache.drop(slot)
            else:
                cache.give_back(slot)
        assert len(set(lent.values())) == len(lent)
    for slot in lent.values():
        cache.give_back(slot)
    # Every slot can be had again.
    assert all(cache.lend(1000 + number) is not None for number in range(5))
    assert cache.lend(2000) is None


# --- bytes and files


def test_header_and_entries_survive_the_trip() -> None:
    layout = CacheLayout(CACHE, VOLUME, FRAME, 3)
    assert decode_header(encode_header(layout)) == layout
    entry = CacheEntry(1 << 50, 77, 0b0111, (1, 2, 3, 0xFFFFFFFF))
    assert decode_entry(layout, 2, encode_entry(layout, 2, entry)) == entry
    assert decode_entry(layout, 1, encode_entry(layout, 2, entry)) is None


@given(data=st.binary(min_size=48, max_size=48))
def test_any_bytes_are_an_entry_or_none(data: bytes) -> None:
    layout = CacheLayout(CACHE, VOLUME, FRAME, 3)
    entry = decode_entry(layout, 0, data)
    assert entry is None or encode_entry(layout, 0, entry)[:24] == data[:24]


@pytest.mark.parametrize("at", [0, 8, 12, 20, 40, 4095])
def test_a_damaged_header_is_refused(at: int) -> None:
    data = bytearray(encode_header(CacheLayout(CACHE, VOLUME, FRAME, 3)))
    data[at] ^= 1
    with pytest.raises(CorruptFormat, match="cache table header"):
        decode_header(bytes(data))


def opened(
    place: Path, *, identity: UUID = CACHE, volume: UUID = VOLUME, frame: int = FRAME, size: int = 1 << 20
) -> ReadCache:
    return open_cache(place, identity=identity, volume=volume, frame_bytes=frame, size_bytes=size)


def test_a_cache_on_disk_is_made_once_and_found_again(tmp_path: Path) -> None:
    cache = opened(tmp_path)
    assert cache.layout.slots == 64
    lent = cache.lend(5)
    assert lent is not None
    cache.fill(lent[0], tuple(block_checksums([content_of(5)])), 9, 1)
    cache.close()
    again = opened(tmp_path, identity=OTHER)
    assert again.layout.identity == CACHE
    assert again.find(5) == lent[0]
    again.close()


@pytest.mark.parametrize(
    "change", [{"volume": OTHER}, {"frame": 2 * FRAME}, {"size": 2 << 20}, {"torn": True}, {"cut": True}]
)
def test_a_cache_of_something_else_is_made_anew(tmp_path: Path, change: dict[str, object]) -> None:
    cache = opened(tmp_path)
    lent = cache.lend(5)
    assert lent is not None
    cache.fill(lent[0], tuple(block_checksums([content_of(5)])), 9, 1)
    cache.close()
    if change.pop("torn", False):
        with (tmp_path / "cache.table").open("r+b") as table:
            table.write(bytes(100))
    if change.pop("cut", False):
        (tmp_path / "cache").write_bytes(b"")
    again = opened(tmp_path, identity=OTHER, **change)  # type: ignore[arg-type]  # keyword names vary by case
    assert again.layout.identity == OTHER
    assert again.find(5) == -1
    again.close()


def test_a_disk_without_room_for_the_cache_is_said(tmp_path: Path) -> None:
    with pytest.raises(LocalDiskFailed, match=r"bytes are needed, \d+ are missing"):
        opened(tmp_path, size=1 << 60)
    assert not (tmp_path / "cache").exists()
