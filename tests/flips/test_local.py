"""Every local file with one bit flipped: journal (superblocks, records, data), read cache (content, table),
journal.epoch, the map's file. Copies of objects are in `test_bucket`.

`at rest`: the bit changes between two starts. `running`: it changes under a front that has it open.
"""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from blockdev.engine.cache_table import HEADER_BYTES
from blockdev.engine.state_directory import DirectoryJournal, StateDirectory
from blockdev.errors import BlockError, CorruptFormat, CorruptJournal, MediumError
from blockdev.extents.extent_map import EXTENTS, TABLES
from blockdev.extents.lmdb_map import DATA, SEAL, close_map_store, open_map_store
from blockdev.extents.seal import verify_file
from blockdev.journal.format import RING_START, SUPERBLOCK_BYTES, Kind
from blockdev.journal.reader import JournalReader, RecordScanner
from blockdev.units import KIB, Geometry
from tests.blockdev.front_world import World
from tests.blockdev.memory_file import MemoryFile
from tests.flips import running_map
from tests.flips.bits import STRETCH, Tally, every_bit, flipped, one_bit_in

pytestmark = pytest.mark.slow

GEOMETRY = Geometry(256 * KIB, frame_bytes=16 * KIB, extent_bytes=128 * KIB)
RING = 64 * KIB
BLOCKS = GEOMETRY.size_bytes // 4096


class Saved:
    """A front with something of everything, and its files as a kill left them. Flushed, so that the journal vouches for all."""

    def __init__(self, *, commit_last: bool) -> None:
        self.world = world = World(GEOMETRY, ring_bytes=RING, slots=8)
        self.content = bytearray(GEOMETRY.size_bytes)
        rng = random.Random(5)
        for _ in range(4):
            self._write(rng)
        world.worker.commit()
        for _ in range(3):
            self._write(rng)
        world.flush()
        world.restart()
        for _ in range(4):
            self._write(rng)
        world.front.unmap([(128, 32)])
        world.front.commit()
        self.content[128 * 512 : 160 * 512] = bytes(32 * 512)
        world.flush()
        if commit_last:
            world.worker.commit()
        for block in range(BLOCKS):
            assert world.read(block * 8, 8) == self.content[block * 4096 : (block + 1) * 4096]
        world.journal.note_synced()
        self.files = [bytes(file.content) for file in self._all()]
        self.head = world.journal.head
        bucket = world.bucket
        self._bucket = (bytes(bucket.content), bucket.position, bucket.sequence, bucket.epoch, dict(bucket.changed))

    def _all(self) -> tuple[MemoryFile, MemoryFile, MemoryFile]:
        return self.world.journal_file, self.world.content_file, self.world.table_file

    def _write(self, rng: random.Random) -> None:
        sectors = rng.choice([1, 3, 8, 8, 10])
        lba = rng.randrange(GEOMETRY.size_bytes // 512 - sectors)
        data = rng.randbytes(sectors * 512)
        self.world.front.write(lba, [data])
        self.world.front.commit()
        self.content[lba * 512 : lba * 512 + len(data)] = data

    def start(self, which: int = -1, bit: int = 0) -> World:
        """A front on the saved files, with one bit of file `which` (journal, cache, table) flipped before it starts."""
        for number, (file, data) in enumerate(zip(self._all(), self.files, strict=True)):
            file.content = bytearray(flipped(data, bit) if number == which else data)
            file.durable = bytearray()
            file.pending.clear()
        bucket = self.world.bucket
        content, bucket.position, bucket.sequence, bucket.epoch, changed = self._bucket
        bucket.content, bucket.changed = bytearray(content), dict(changed)
        self.world.start()
        return self.world

    def flip(self, which: int, bit: int) -> None:
        self._all()[which].content[bit // 8] ^= 1 << bit % 8

    def judge(self) -> str:
        """Read every block: "right", or "refused" where some end with MEDIUM ERROR. AssertionError for wrong data."""
        outcome = "right"
        for block in range(BLOCKS):
            found = self.world.try_read(block * 8, 8)
            if isinstance(found, Exception):
                assert isinstance(found, MediumError), found
                outcome = "refused"
            else:
                assert found == self.content[block * 4096 : (block + 1) * 4096], f"block {block}: wrong data"
        return outcome


@pytest.fixture(scope="module")
def saved() -> Saved:
    return Saved(commit_last=False)


def record_bits(saved: Saved) -> Iterator[int]:
    """All bits of record headers with their checksums of blocks, and one bit in each stretch of data."""
    saved.start()
    journal = saved.world.journal
    scanner = RecordScanner(journal.file, journal.superblock)
    position = 4096
    while position < saved.head:
        record = scanner.head(position, saved.head)
        position = record.end
        at = RING_START + record.position % RING
        length = record.end - record.position
        data = record.sectors * 512 if record.kind == Kind.WRITE else 0
        yield from every_bit(length - data if data else length, at)
        if data:
            yield from one_bit_in(STRETCH, data, at + length - data)


def test_the_journal_at_rest(saved: Saved) -> None:
    """Everything in it was flushed. Damage to what the bucket has is harmless, damage to the rest refuses the attachment
    and names the offset; one superblock of two is enough."""
    tally = Tally("journal at rest")
    superblocks = [*every_bit(128), *every_bit(128, SUPERBLOCK_BYTES)]
    superblocks += [*one_bit_in(STRETCH, SUPERBLOCK_BYTES - 128, 128)]
    superblocks += [*one_bit_in(STRETCH, SUPERBLOCK_BYTES - 128, SUPERBLOCK_BYTES + 128)]
    in_bucket = RING_START + saved._bucket[1] % RING
    for bit in (*superblocks, *record_bits(saved)):
        world = saved.start(0, bit)
        if world.stopped:
            assert isinstance(world.stopped[0], CorruptJournal)
            assert "offset" in str(world.stopped[0])
            assert bit // 8 >= in_bucket, f"bit {bit}: refused for the sake of what the bucket has: {world.stopped[0]}"
            tally.add("refused by offset")
        else:
            assert saved.judge() == "right"
            assert bit // 8 < in_bucket, f"bit {bit} was not noticed"
            tally.add("harmless: the other superblock" if bit // 8 < RING_START else "harmless: the bucket has it")
    print(tally)
    assert tally.flips > 5000


def test_the_journal_behind_its_end(saved: Saved) -> None:
    tally = Tally("journal behind its last record")
    for bit in one_bit_in(64, RING - saved.head % RING, RING_START + saved.head % RING):
        saved.start(0, bit)
        assert saved.judge() == "right"
        tally.add("harmless: nobody reads it")
    print(tally)


def commit_refused(world: World, begin: int, end: int) -> str:
    """What stops the worker from carrying that part of the journal to the bucket; empty: nothing."""
    try:
        sum(1 for _ in JournalReader(world.journal_file).records(begin, end))
    except BlockError as error:
        return str(error)
    return ""


def test_the_journal_while_running(saved: Saved) -> None:
    """A read or the worker's commit meets the damage: refused by both, never wrong data, never a wrong commit."""
    tally = Tally("journal while running")
    for bit in one_bit_in(STRETCH, saved.head % RING - 4096 % RING, RING_START + 4096 % RING):
        world = saved.start()
        saved.flip(0, bit)
        outcome = saved.judge()
        position = world.bucket.position
        refused = commit_refused(world, position, saved.head)
        if refused:
            assert "offset" in refused
            tally.add(f"reads {outcome}, commit refused")
        else:
            world.worker.commit()
            assert outcome == "right"
            assert world.bucket.content[: len(saved.content)] == saved.content
            tally.add("harmless: the bucket has it")
    print(tally)
    assert tally.flips > 500


@pytest.mark.parametrize(("which", "name"), [(1, "cache content"), (2, "cache table")])
def test_the_cache(which: int, name: str) -> None:
    """A cache may lose anything: what does not hold is fetched again, and no read fails."""
    saved = Saved(commit_last=True)
    tally = Tally(f"{name} at rest and while running")
    data = saved.files[which]
    bits = [*one_bit_in(STRETCH * 8, len(data))] if which == 1 else [*every_bit(64)]
    if which == 2:
        bits += [*one_bit_in(STRETCH, HEADER_BYTES - 64, 64), *every_bit(len(data) - HEADER_BYTES, HEADER_BYTES)]
    for bit in bits:
        saved.start(which, bit)
        assert saved.judge() == "right"
        tally.add("right: fetched again, or not touched")
        if which == 1:
            saved.flip(which, bit)
            assert saved.judge() == "right"
            tally.add("right: fetched again, or not touched")
    print(tally)
    assert tally.flips > 1000


def test_the_note_of_the_epoch(tmp_path: Path) -> None:
    """A note that is too low refuses the journal (as if it were an older copy), one that is too high does no harm."""
    directory = StateDirectory(tmp_path)
    journal = DirectoryJournal(directory, UUID(int=7), 64 * KIB, 512)
    journal.create(4096)
    journal.note_epoch(27)
    note = tmp_path / "journal.epoch"
    data = note.read_bytes()
    tally = Tally("journal.epoch")
    for bit in every_bit(len(data)):
        note.write_bytes(flipped(data, bit))
        noted = journal.noted_epoch()
        tally.add("refused: counts as an older copy" if noted < 27 else "harmless: says 27 or more")
    print(tally)
    assert tally.classes["refused: counts as an older copy"] > 7 * 36


def test_the_maps_file_at_rest(tmp_path: Path) -> None:
    """Every page is covered, used or not; the page and its offset are told."""
    path = tmp_path / "map"
    store = open_map_store(path, "me")
    rng = random.Random(4)
    with store.begin(write=True) as txn:
        for table in TABLES:
            for number in range(150):
                txn.put(table, number.to_bytes(8, "big"), rng.randbytes(number % 100))
    close_map_store(store)
    tally = Tally("data.mdb at rest")
    file = os.open(path / DATA, os.O_RDWR)
    size = os.fstat(file).st_size
    for bit in one_bit_in(STRETCH, size):
        at = bit // 8
        byte = os.pread(file, 1, at)
        os.pwrite(file, bytes([byte[0] ^ 1 << bit % 8]), at)
        with pytest.raises(CorruptFormat, match=f"page {at // 4096} is damaged at offset {at // 4096 * 4096}"):
            verify_file(path / DATA, path / SEAL, "me")
        os.pwrite(file, byte, at)
        tally.add("refused by page and offset")
    os.close(file)
    verify_file(path / DATA, path / SEAL, "me")
    print(tally)
    assert tally.flips == size // STRETCH


def test_the_maps_file_while_running(tmp_path: Path) -> None:
    """Under LMDB's feet: an item is right or refused, or the process dies of it; never is one missing, old or wrong. A
    process that died leaves a map that the next start does not open."""
    whole, path = tmp_path / "whole", tmp_path / "map"
    store = open_map_store(whole, "me")
    running_map.fill(store)
    close_map_store(store)
    tally = Tally("data.mdb while running")
    step, first = 23, 0
    while True:
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        command = [sys.executable, "-m", "tests.flips.running_map", str(path), str(first), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line.partition(" ") for line in done.stdout.splitlines()]
        for _, _, outcome in lines:
            if outcome:
                assert outcome in ("right", "refused"), outcome
                tally.add(outcome)
        if done.returncode == 0:
            break
        assert done.returncode < 0, done.stderr
        tally.add("the worker dies")
        first = int(lines[-1][0]) + step
        after = open_map_store(path, "me")
        with after.begin(write=False) as txn:
            assert not list(txn.scan(EXTENTS))
        after.close()
    print(tally)
    assert tally.flips > 200
    assert tally.classes["refused"] > 20
