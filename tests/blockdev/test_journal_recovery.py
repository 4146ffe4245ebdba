"""What recovery makes of a journal after a crash: a clean prefix, or CorruptJournal where acknowledged data is hurt."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockdev.checksum import block_checksums
from blockdev.errors import CorruptJournal
from blockdev.journal.format import MORE, RING_START, Kind, Record
from blockdev.journal.journal import Journal
from blockdev.journal.reader import JournalReader
from tests.blockdev.memory_file import MemoryFile
from tests.blockdev.test_journal import RING, contents, new_journal, write


def recover(file: MemoryFile, position: int) -> tuple[Journal, list[Record]]:
    journal, found = Journal.open(file), list[Record]()
    journal.recover(position, found.append)
    return journal, found


def filled(file: MemoryFile, records: int = 8, synced_after: int | None = None, laps: int = 0) -> list[Record]:
    """A journal with so many records in its last lap; the ones up to `synced_after` are durable and known to be."""
    journal = new_journal(file)
    for _ in range(laps):
        for index in range(8):
            write(journal, index, bytes([index]) * 5120)
        journal.append()
        journal.reclaim(journal.head)
    begin = journal.head
    for index in range(records):
        if index % 3 == 2:
            journal.stage_range(Kind.UNMAP, 8 * index, 80)
        else:
            write(journal, index, bytes([index + 1]) * (512 * (index % 9 + 1)))
        journal.append()
        if index == synced_after:
            journal.sync()
    return [record for record, _ in JournalReader(file).records(begin, journal.head)]


def test_everything_appended_survives_a_kill() -> None:
    file = MemoryFile()
    records = filled(file)
    journal, found = recover(file, 4096)
    assert found == records
    assert journal.head == journal.tail == journal.synced == records[-1].end
    assert journal.reclaimed == 4096


def test_recovery_begins_where_the_bucket_ends() -> None:
    file = MemoryFile()
    records = filled(file)
    journal, found = recover(file, records[5].position)
    assert found == records[5:]
    assert journal.reclaimed == records[5].position


def test_a_bucket_that_is_ahead_of_the_journal_wins() -> None:
    file = MemoryFile()
    records = filled(file)
    ahead = records[-1].end + 4096
    journal, found = recover(file, ahead)
    assert found == []
    assert (journal.head, journal.reclaimed) == (ahead, ahead)
    journal.begin(2)
    write(journal, 1, b"n" * 512)
    journal.append()
    assert contents(journal) == [(Kind.WRITE, 1, b"n" * 512)]


def test_a_bucket_behind_the_journals_first_position_is_refused() -> None:
    file = MemoryFile()
    Journal.create(
        file,
        journal=new_journal().superblock.journal,
        volume=new_journal().superblock.volume,
        ring_bytes=RING,
        sector_bytes=512,
        start=1 << 20,
    )
    with pytest.raises(CorruptJournal, match="begins at position 1048576, the bucket ends at 4096"):
        recover(file, 4096)


@settings(deadline=None)
@given(at=st.integers(0, RING - 1), bit=st.integers(0, 7), synced=st.integers(0, 7), laps=st.integers(0, 2))
def test_any_flipped_bit_gives_a_clean_prefix_or_is_named(at: int, bit: int, synced: int, laps: int) -> None:
    file = MemoryFile()
    records = filled(file, synced_after=synced, laps=laps)
    file.content[RING_START + at] ^= 1 << bit
    hit = [
        index
        for index, record in enumerate(records)
        if record.position % RING <= at < record.position % RING + record.end - record.position
    ]
    if hit and hit[0] <= synced < len(records) - 1:
        # A record behind it says that it was durable: acknowledged data is hurt.
        with pytest.raises(CorruptJournal, match=f"damaged at offset {RING_START + records[hit[0]].position % RING} "):
            recover(file, records[0].position)
    else:
        _, found = recover(file, records[0].position)
        assert found == (records[: hit[0]] if hit else records)


def test_the_superblock_vouches_for_the_newest_records() -> None:
    """Nothing was appended after the last flush, so no record knows about it."""
    file = MemoryFile()
    journal = new_journal(file)
    position = write(journal, 0, b"f" * 4096)
    journal.append()
    journal.sync()
    journal.note_synced()
    assert recover(file, 4096)[0].head == journal.head
    file.content[RING_START + position + 9] ^= 1
    with pytest.raises(CorruptJournal, match="it was durable: the superblock says so"):
        recover(file, 4096)
    file.content[5000] ^= 1  # torn while it was being written: the other copy says less
    assert recover(file, 4096)[1] == []


@settings(deadline=None)
@given(cut=st.integers(0, RING), laps=st.integers(0, 1))
def test_any_cut_gives_a_clean_prefix(cut: int, laps: int) -> None:
    file = MemoryFile()
    records = filled(file, laps=laps)
    begin = records[0].position % RING
    file.content[RING_START + begin + cut : RING_START + RING] = bytes(max(0, RING - begin - cut))
    _, found = recover(file, records[0].position)
    assert found == records[: len(found)]
    whole = [record for record in records if record.data_position + record.data_bytes - records[0].position <= cut]
    assert len(found) >= len(whole)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), synced=st.integers(-1, 7))
def test_a_power_cut_leaves_a_prefix_that_holds_what_was_synced(seed: int, synced: int) -> None:
    file = MemoryFile()
    records = filled(file, synced_after=synced)
    _, found = recover(file.power_cut(random.Random(seed)), 4096)
    assert found == records[: len(found)]
    assert len(found) >= synced + 1


def test_damage_that_is_only_a_lost_tail_is_forgotten_for_good() -> None:
    """Records behind the lost one are whole, but they come after something nobody has: they must not come back, not
    even when the new records end exactly where one of them begins, nor when the bucket ends there."""
    file = MemoryFile()
    journal = new_journal(file)
    for index in range(4):
        write(journal, index, bytes([index + 1]) * 512)
    journal.append()
    records = [record for record, _ in JournalReader(file).records(4096, journal.head)]
    file.content[RING_START + records[1].data_position] ^= 1
    journal, found = recover(file, 4096)
    assert found == records[:1]
    journal.begin(2)
    write(journal, 99, b"N" * 512)
    journal.append()
    assert journal.head == records[2].position
    for position, expected in ((4096, [0, 99]), (records[1].position, [99]), (records[2].position, [])):
        again, found = recover(file, position)
        assert [record.lba for record in found] == expected
        assert again.head == records[2].position


def test_a_journal_inside_the_data_is_not_taken_for_records() -> None:
    inner = MemoryFile()
    filled(inner, synced_after=7)
    file = MemoryFile()
    journal = new_journal(file)
    image = bytes(inner.content[RING_START + 4096 : RING_START + 4096 + 16384])
    write(journal, 0, bytes(512))
    write(journal, 8, image)
    journal.append()
    records = [record for record, _ in JournalReader(file).records(4096, journal.head)]
    file.content[RING_START + records[0].data_position] ^= 1
    _, found = recover(file, 4096)
    assert found == [], "the records inside the image claim a synced position, but not at their own place"


def test_damage_is_found_across_the_rings_end() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    for _ in range(3):
        write(journal, 0, bytes(16384))
    journal.append()
    journal.reclaim(journal.head)
    begin = journal.head
    write(journal, 1, b"a" * 8192)
    journal.append()
    journal.sync()
    write(journal, 2, b"b" * 8192)  # begins a lap later
    journal.append()
    assert journal.head % RING < begin % RING
    file.content[RING_START + begin % RING + 200] ^= 4
    with pytest.raises(CorruptJournal, match=f"offset {RING_START + begin % RING} .*it was durable"):
        recover(file, begin)


@settings(deadline=None)
@given(junk=st.binary(min_size=64, max_size=400), at=st.integers(0, 20))
def test_any_bytes_in_the_ring_parse_or_end_the_scan(junk: bytes, at: int) -> None:
    file = MemoryFile()
    records = filled(file, records=2)
    place = RING_START + records[-1].end % RING
    file.content[place + at : place + at + len(junk)] = junk
    _, found = recover(file, 4096)
    assert found == records


def command(journal: Journal, parts: int) -> list[Record]:
    """A write in so many records, as one command; what comes before it is given up."""
    journal.reclaim(journal.head)
    begin = journal.head
    data = bytes(range(1, 9)) * 512
    for part in range(parts):
        flags = MORE if part < parts - 1 else 0
        journal.stage_write(8 * part, 8, [data], 4096, block_checksums([data], 0), flags)
    journal.append()
    return [record for record, _ in JournalReader(journal.file).records(begin, journal.head)]


@pytest.mark.parametrize("before", range(16))
def test_a_command_of_several_records_is_recovered_whole_or_not_at_all(before: int) -> None:
    """Wherever in the ring it lies: the ring's end, with its padding, may be in the middle of it."""
    for lost in (None, 0, 2, 4):
        file = MemoryFile()
        journal = new_journal(file)
        for _ in range(before):
            write(journal, 0, b"b" * 4096)
            journal.append()
            journal.reclaim(journal.head)
        last = journal.head
        parts = command(journal, 5)
        assert [part.flags for part in parts] == [MORE] * 4 + [0]
        if lost is not None:
            file.content[RING_START + parts[lost].data_position % RING + 100] ^= 1
        journal, found = recover(file, last)
        assert found == (parts if lost is None else [])
        if lost is None:
            assert journal.head == parts[-1].end
        else:
            assert journal.head in (last, parts[0].position)
        journal.begin(2)
        write(journal, 3, b"n" * 512)
        journal.append()
        again, later = recover(file, last)
        assert later[:-1] == found
        assert again.head == journal.head


def test_a_command_that_was_durable_is_not_given_up_quietly() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    parts = command(journal, 3)
    journal.sync()
    write(journal, 3, b"n" * 512)
    journal.append()
    file.content[RING_START + parts[2].data_position % RING + 100] ^= 1
    with pytest.raises(CorruptJournal, match="it was durable"):
        recover(file, parts[0].position)
