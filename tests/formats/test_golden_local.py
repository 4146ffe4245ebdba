"""Golden bytes of what lies on the local disk: journal and read cache.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_local` writes missing ones.
The ring of the golden journal is mostly zeros; the file holds only what lies before its last record's end.
"""

from pathlib import Path
from uuid import UUID

from blockdev.checksum import block_checksums
from blockdev.engine.cache_table import (
    HEADER_BYTES,
    CacheEntry,
    CacheLayout,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
)
from blockdev.journal.format import RING_START, Kind, Record
from blockdev.journal.journal import Journal
from blockdev.journal.reader import JournalReader
from tests.blockdev.memory_file import MemoryFile

GOLDEN = Path(__file__).parent / "golden"
VOLUME = UUID("6f1c2a5e-7f5b-4c57-9d0c-1c6d3f2b8a90")
JOURNAL = UUID("b3a1c8f2-55d4-4e0b-a0c7-2f9e6d7c1b22")
CACHE = UUID("4c7d3a60-2b1f-4f0e-9a55-0e8d6c3b7f11")
RING = 64 << 10
TEXT = (b"The quick brown fox jumps over the lazy dog. " * 24)[:1024]
LAYOUT = CacheLayout(CACHE, VOLUME, 16 << 10, 2)
ENTRY = CacheEntry(7, 41, 0b1111, (1, 2, 3, 0xFFFFFFFE))


def journal_bytes() -> bytes:
    """Superblock of epoch 3, a WRITE across a block's end, an UNMAP of 16 TiB, a ZERO; cut behind the last record."""
    file = MemoryFile()
    journal = Journal.create(file, journal=JOURNAL, volume=VOLUME, ring_bytes=RING, sector_bytes=512)
    journal.begin(3)
    journal.stage_write(7, 2, [TEXT], len(TEXT), block_checksums([TEXT], 7 * 512))
    journal.append()
    journal.sync()
    journal.stage_range(Kind.UNMAP, 0, 1 << 35)
    journal.stage_range(Kind.ZERO, 800, 8)
    journal.append()
    journal.note_synced()
    return bytes(file.content[: RING_START + journal.head])


def cache_bytes() -> bytes:
    return encode_header(LAYOUT) + bytes(LAYOUT.entry_bytes) + encode_entry(LAYOUT, 1, ENTRY)


def golden_journal() -> MemoryFile:
    file = MemoryFile()
    file.content = bytearray((GOLDEN / "journal.v1.bin").read_bytes().ljust(RING_START + RING, b"\0"))
    return file


def test_todays_code_reads_the_golden_journal() -> None:
    file = golden_journal()
    reader = JournalReader(file)
    superblock = reader.superblock
    assert (superblock.journal, superblock.volume, superblock.ring_bytes) == (JOURNAL, VOLUME, RING)
    assert (superblock.start, superblock.sector_bytes) == (4096, 512)
    assert (superblock.epoch, superblock.epoch_begin, superblock.synced) == (3, 4096, 5200)
    found = [(r.kind, r.lba, r.sectors, r.epoch, r.synced, bytes(data)) for r, data in reader.records(4096, 5328)]
    assert found == [
        (Kind.WRITE, 7, 2, 3, 4096, TEXT),
        (Kind.UNMAP, 0, 1 << 35, 3, 5200, b""),
        (Kind.ZERO, 800, 8, 3, 5200, b""),
    ]


def test_todays_code_recovers_the_golden_journal() -> None:
    found: list[Record] = []
    journal = Journal.open(golden_journal())
    assert journal.recover(4096, found.append) == 5328
    assert [record.position for record in found] == [4096, 5200, 5264]


def test_todays_code_writes_the_golden_journal() -> None:
    assert journal_bytes() == (GOLDEN / "journal.v1.bin").read_bytes()


def test_todays_code_reads_the_golden_cache_table() -> None:
    data = (GOLDEN / "cache.v1.bin").read_bytes()
    layout = decode_header(data[:HEADER_BYTES])
    assert layout == LAYOUT
    entries = [decode_entry(layout, slot, data[layout.entry_offset(slot) :][: layout.entry_bytes]) for slot in range(2)]
    assert entries == [None, ENTRY]


def test_todays_code_writes_the_golden_cache_table() -> None:
    assert cache_bytes() == (GOLDEN / "cache.v1.bin").read_bytes()


if __name__ == "__main__":
    for name, data in (("journal.v1.bin", journal_bytes()), ("cache.v1.bin", cache_bytes())):
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(data)
