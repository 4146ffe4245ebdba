"""The journal as its owner uses it: append, read back, wrap, room, sync, reclaim, files on disk."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from blockdev.checksum import block_checksums
from blockdev.errors import CorruptFormat, CorruptJournal, JournalFull, LocalDiskFailed
from blockdev.journal import file as file_module
from blockdev.journal.file import PosixFile, keep_freed_memory
from blockdev.journal.format import (
    HEADER_BYTES,
    ONE_BLOCK_HEAD_BYTES,
    RING_START,
    SUPERBLOCK_BYTES,
    Kind,
    Record,
    Superblock,
    decode_superblock,
    encode_superblock,
)
from blockdev.journal.journal import Journal, create_journal, open_journal
from blockdev.journal.reader import JournalReader
from tests.blockdev.memory_file import MemoryFile

JOURNAL = UUID("9f0c7c1e-7c55-4d43-9f5e-0f6b3c1d2e3f")
VOLUME = UUID("1b4e28ba-2fa1-4d2f-883f-0016d3cca427")
RING = 64 << 10


def new_journal(file: MemoryFile | None = None, ring_bytes: int = RING, epoch: int = 1) -> Journal:
    made = Journal.create(file or MemoryFile(), journal=JOURNAL, volume=VOLUME, ring_bytes=ring_bytes, sector_bytes=512)
    made.begin(epoch)
    return made


def write(journal: Journal, lba: int, data: bytes) -> int:
    return journal.stage_write(lba, len(data) // 512, [data], len(data), block_checksums([data], lba * 512))


def contents(journal: Journal, begin: int | None = None) -> list[tuple[int, int, bytes]]:
    reader = JournalReader(journal.file)
    begin = journal.reclaimed if begin is None else begin
    return [(record.kind, record.lba, bytes(data)) for record, data in reader.records(begin, journal.head)]


def test_what_was_appended_is_read_back_in_order() -> None:
    journal = new_journal()
    first = write(journal, 8, b"a" * 4096)
    journal.stage_range(Kind.UNMAP, 16, 1 << 40)
    write(journal, 3, b"b" * 512)
    journal.append()
    assert contents(journal) == [
        (Kind.WRITE, 8, b"a" * 4096),
        (Kind.UNMAP, 16, b""),
        (Kind.WRITE, 3, b"b" * 512),
    ]
    assert journal.read(first, 4096) == b"a" * 4096


def test_a_batch_is_one_system_call() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    before = file.writes
    for index in range(10):
        write(journal, index * 8, bytes([index]) * 4096)
    assert file.writes == before
    journal.append()
    assert file.writes == before + 1
    journal.append()
    assert file.writes == before + 1, "nothing was staged"


def test_an_append_fills_the_page_it_ends_in_so_that_none_has_to_be_read() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    file.pwritev([b"\xff" * RING], RING_START)
    write(journal, 0, b"a" * 4096)
    journal.append()
    start, end = journal.file_offset(journal.reclaimed), journal.file_offset(journal.tail)
    page = -(-end // 4096) * 4096
    assert 0 < page - end < 4096
    assert file.pread(page - end, end) == bytes(page - end)
    assert file.pread(4096, page) == b"\xff" * 4096
    assert file.pread(start - RING_START, RING_START) == b"\xff" * (start - RING_START)
    write(journal, 8, b"b" * 4096)
    journal.append()
    assert [lba for _, lba, _ in contents(journal)] == [0, 8]


def test_a_page_is_not_filled_where_records_are_still_kept() -> None:
    journal = new_journal()
    written: list[int] = []
    for until_full in (False, True):
        with suppress(JournalFull):
            while True:
                write(journal, len(written), bytes([len(written)]) * 512)
                journal.append()
                written.append(len(written))
                if len(written) == 1:
                    first_end = journal.head
        if not until_full:
            journal.reclaim(first_end)
    assert 0 < journal.room < -journal.head % 4096, (
        "the last page is shared with the oldest record, or this shows nothing"
    )
    assert [lba for kind, lba, _ in contents(journal) if kind == Kind.WRITE] == written[1:]


def test_writing_that_is_begun_ends_where_the_ring_does() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    for lba in range(18):
        journal.reclaim(journal.head)
        journal.synced = journal.head if lba < 14 else journal.synced
        write(journal, lba * 8, b"a" * 4096)
        journal.append()
    journal.begin_writing()
    place = journal.synced % RING
    assert place + journal.head - journal.synced > RING
    assert file.begun == [(RING_START + place, RING - place)]


def test_a_file_begins_to_write_without_an_error_to_tell(tmp_path: Path) -> None:
    file = PosixFile.create(tmp_path / "file", 65536)
    file.pwritev([b"a" * 5000], 100)
    file.begin_writing(5000, 100)
    file.close()
    file.begin_writing(5000, 100)


def test_a_walk_goes_on_in_what_the_last_one_had_read_and_never_in_an_older_lap() -> None:
    class CountingFile(MemoryFile):
        reads = 0

        def pread(self, length: int, offset: int, /) -> bytes:
            self.reads += 1
            return super().pread(length, offset)

    file = CountingFile()
    journal = new_journal(file)
    expected: list[int] = []
    for number in range(100):
        while journal.room < 3 * 4176:
            ends = iter(journal.walk(journal.reclaimed, journal.head))
            end, block, record = next(ends)
            if record is None:
                assert block == expected.pop(0)
            journal.reclaim(end)
        write(journal, number * 8, bytes([number]) * 4096)
        journal.append()
        expected.append(number)
    assert len(expected) < 15
    assert file.reads < 50, "less than one read for each walk"


def test_data_of_a_cut_first_block_has_a_checksum_of_its_own() -> None:
    journal = new_journal()
    write(journal, 7, b"x" * 512 + b"y" * 4096 + b"z" * 512)
    journal.append()
    ((record, _),) = JournalReader(journal.file).records(journal.reclaimed, journal.head)
    assert list(record.checksums) == block_checksums([b"x" * 512]) + block_checksums([b"y" * 4096 + b"z" * 512])


@pytest.mark.parametrize("batch", [1, 3, 20])
@pytest.mark.parametrize("size", [512, 1536, 4096, 12288, 16384])
def test_records_survive_any_number_of_laps(batch: int, size: int) -> None:
    journal = new_journal()
    kept: list[tuple[int, int, bytes]] = []
    for index in range(260):
        data = index.to_bytes(2, "little") * (size // 2)
        if journal.room < 3 * size + 4096:
            journal.append()
            assert contents(journal) == kept
            journal.reclaim(journal.head)
            kept = []
        write(journal, index, data)
        kept.append((Kind.WRITE, index, data))
        if index % batch == 0:
            journal.append()
    journal.append()
    assert contents(journal) == kept
    assert journal.head > 2 * RING


def test_too_little_for_a_header_before_the_rings_end_is_skipped() -> None:
    journal = new_journal()
    left = RING - 4096
    while left > 4176 + 592:
        write(journal, 0, bytes(4096))
        left -= 4176
    # 512 bytes of data take 592 with their head; fill until 16 to 48 bytes are left.
    while left > 592:
        if left % 592 < HEADER_BYTES and left % 592:
            write(journal, 1, bytes(512))
            left -= 592
        else:
            journal.stage_range(Kind.ZERO, 0, 8)
            left -= HEADER_BYTES
    journal.append()
    journal.reclaim(journal.head)
    position = write(journal, 5, b"n" * 512)
    journal.append()
    assert contents(journal) == [(Kind.WRITE, 5, b"n" * 512)]
    assert position > journal.reclaimed


def test_a_full_journal_takes_nothing_and_says_how_much_is_missing() -> None:
    journal = new_journal()
    for _ in range(14):
        write(journal, 0, bytes(4096))
    # 2976 bytes are left to the ring's end, too few, and 4096 behind it.
    tail = journal.tail
    with pytest.raises(JournalFull, match="7152 bytes wanted, 7072 free"):
        write(journal, 0, bytes(4096))
    assert journal.tail == tail
    journal.append()
    assert len(contents(journal)) == 14
    journal.reclaim(journal.head)
    write(journal, 0, bytes(4096))
    journal.append()


def test_require_counts_the_padding_at_the_rings_end() -> None:
    journal = new_journal()
    for _ in range(13):
        write(journal, 0, bytes(4096))
    journal.append()
    journal.require([4176, 64, 592])
    with pytest.raises(JournalFull):
        journal.require([4176, 4176])
    journal.reclaim(journal.head)
    journal.require([4176] * 13)


def test_the_walk_sees_padding_and_headers_only() -> None:
    journal = new_journal()
    for _ in range(3):
        write(journal, 0, bytes(16384))
    journal.append()
    journal.reclaim(journal.head)
    write(journal, 9, bytes(16384))
    journal.append()
    found = list(journal.walk(journal.reclaimed, journal.head))
    assert [record and record.kind for _, _, record in found] == [Kind.PAD, Kind.WRITE]
    assert found[-1][0] == journal.head


def test_records_carry_what_was_synced_before_them() -> None:
    journal = new_journal()
    write(journal, 0, bytes(512))
    journal.append()
    journal.sync()
    synced = journal.synced
    write(journal, 1, bytes(512))
    journal.append()
    records = [record for record, _ in JournalReader(journal.file).records(4096, journal.head)]
    assert [record.synced for record in records] == [4096, synced]
    assert synced == records[1].position


def test_a_failed_append_or_sync_names_the_file() -> None:
    file = MemoryFile(name="/var/lib/x/journal")
    journal = new_journal(file)
    write(journal, 0, bytes(512))
    journal.append()
    file.fail_syncs = True
    with pytest.raises(LocalDiskFailed, match="cannot sync journal /var/lib/x/journal"):
        journal.sync()
    write(journal, 0, bytes(512))
    file.fail_writes = True
    with pytest.raises(LocalDiskFailed, match="cannot append to journal /var/lib/x/journal"):
        journal.append()


def test_an_epoch_must_be_newer_than_the_last() -> None:
    journal = new_journal(epoch=3)
    with pytest.raises(ValueError, match="not newer than 3"):
        journal.begin(3)


def test_the_reader_refuses_an_end_that_is_no_boundary() -> None:
    journal = new_journal()
    write(journal, 0, bytes(4096))
    write(journal, 8, bytes(4096))
    journal.append()
    with pytest.raises(CorruptJournal, match=f"offset {RING_START + 4096 + 4176}"):
        list(JournalReader(journal.file).records(4096, 4096 + 4176 + 64))


@pytest.mark.parametrize("copy", [0, 1])
def test_one_damaged_superblock_does_no_harm(copy: int) -> None:
    file = MemoryFile()
    new_journal(file, epoch=4)
    file.content[copy * SUPERBLOCK_BYTES + 20] ^= 1
    assert Journal.open(file).superblock.epoch == 4


def test_of_two_superblocks_the_newer_counts() -> None:
    file = MemoryFile()
    journal = new_journal(file, epoch=4)
    old = bytes(file.content[:SUPERBLOCK_BYTES])
    journal.begin(5)
    file.content[SUPERBLOCK_BYTES : 2 * SUPERBLOCK_BYTES] = old
    assert Journal.open(file).superblock.epoch == 5


def test_without_a_superblock_nothing_is_opened() -> None:
    file = MemoryFile(RING_START + RING, name="elsewhere")
    with pytest.raises(CorruptJournal, match=r"elsewhere has no readable superblock.*not a journal"):
        Journal.open(file)


def test_a_cut_file_is_refused() -> None:
    file = MemoryFile()
    new_journal(file)
    del file.content[-4096:]
    with pytest.raises(CorruptJournal, match=f"{RING_START + RING} are needed"):
        Journal.open(file)


def test_an_unknown_version_is_named() -> None:
    data = bytearray(encode_superblock(Superblock(JOURNAL, VOLUME, RING, 4096, 512)))
    data[8] = 9
    with pytest.raises(CorruptFormat, match="checksum"):
        decode_superblock(bytes(data))


@pytest.mark.parametrize(("ring", "start"), [(RING - 4096, 4096), (RING + 512, 4096), (RING, 0), (RING, 100)])
def test_impossible_sizes_are_refused(ring: int, start: int) -> None:
    with pytest.raises(ValueError, match="journal"):
        Superblock(JOURNAL, VOLUME, ring, start, 512)


# --- files


def test_a_journal_on_disk_is_created_once_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    made = create_journal(path, journal=JOURNAL, volume=VOLUME, ring_bytes=RING, sector_bytes=512, start=8192)
    made.begin(1)
    write(made, 1, b"q" * 1024)
    made.append()
    made.close()
    assert path.stat().st_size == RING_START + RING
    assert not (tmp_path / "journal.new").exists()
    with pytest.raises(FileExistsError):
        create_journal(path, journal=JOURNAL, volume=VOLUME, ring_bytes=RING, sector_bytes=512)
    found: list[Record] = []
    again = open_journal(path)
    again.recover(8192, found.append)
    assert [(record.lba, record.sectors) for record in found] == [(1, 2)]
    again.close()
    again.close()


def test_a_disk_without_room_is_said_with_numbers_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_module, "_free_bytes", lambda path: 10_000)
    with pytest.raises(
        LocalDiskFailed, match=rf"{RING_START + RING} bytes are needed, {RING_START + RING - 10_000} are"
    ):
        create_journal(tmp_path / "journal", journal=JOURNAL, volume=VOLUME, ring_bytes=RING, sector_bytes=512)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_during_creation_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LocalDiskFailed, match="no room for"):
        create_journal(tmp_path / "journal", journal=JOURNAL, volume=VOLUME, ring_bytes=RING, sector_bytes=512)
    assert list(tmp_path.iterdir()) == []


def test_more_buffers_than_one_call_takes_are_all_written(tmp_path: Path) -> None:
    file = PosixFile.create(tmp_path / "f", 8192)
    buffers = [bytes([index % 256]) * 2 for index in range(3000)]
    assert file.pwritev(buffers, 5) == 6000
    assert file.pread(6000, 5) == b"".join(buffers)
    into = bytearray(100)
    assert file.preadv([into], 5) == 100
    assert into == b"".join(buffers)[:100]
    file.close()


def test_a_short_write_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: real(fd, [b"".join(buffers)[:5]], offset))
    file = PosixFile.create(tmp_path / "f", 4096)
    assert file.pwritev([b"abc", b"", b"defg", b"hij"], 10) == 10
    assert file.pread(10, 10) == b"abcdefghij"
    file.close()


def test_keeping_freed_memory_says_whether_it_works() -> None:
    assert keep_freed_memory() in (True, False)


def test_the_walk_knows_records_of_one_block_and_says_of_every_other_what_it_is() -> None:
    journal = new_journal()
    for lba, size in ((8, 4096), (16, 512), (3, 4096), (24, 8192), (32, 3584), (40, 4096)):
        write(journal, lba, bytes(size))
    expected = [(1, None), *[(-1, Kind.WRITE)] * 4, (5, None)]
    journal.stage_range(Kind.UNMAP, 48, 8)
    journal.append()
    found = list(journal.walk(journal.reclaimed, journal.head))
    assert [(block, None if record is None else record.kind) for _, block, record in found] == [
        *expected,
        (-1, Kind.UNMAP),
    ]
    assert found[-1][0] == journal.head


def test_a_flipped_bit_in_the_head_of_a_record_of_one_block_ends_the_walk() -> None:
    file = MemoryFile()
    journal = new_journal(file)
    write(journal, 8, bytes(4096))
    journal.append()
    assert [block for _, block, _ in journal.walk(journal.reclaimed, journal.head)] == [1]
    offset = journal.file_offset(journal.reclaimed)
    for bit in range(8 * ONE_BLOCK_HEAD_BYTES):
        file.content[offset + bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptJournal, match=f"offset {offset}"):
            list(journal.walk(journal.reclaimed, journal.head))
        file.content[offset + bit // 8] ^= 1 << bit % 8
