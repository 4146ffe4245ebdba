"""Reading records: from another process while the front appends, at recovery, and when old records are reclaimed.

One rule: a record is handed out only after its header's checksum held and, where data is asked for, every checksum of
its data; damage is named by its offset in the file.
"""

from collections.abc import Iterator

from blockdev.errors import CorruptFormat, CorruptJournal
from blockdev.journal.file import DurableFile
from blockdev.journal.format import (
    RING_START,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_COPIES,
    BadRecord,
    Kind,
    Record,
    Superblock,
    data_fault,
    decode_head,
    decode_superblock,
)

READ_BYTES = 2 << 20
"""One read of the worker and of recovery. Large enough to amortise the call, small enough for the CPU's cache."""
_EMPTY = memoryview(b"")


def read_superblock(file: DurableFile) -> Superblock:
    """The journal's identity, from the newest whole copy. Raises CorruptJournal: neither is, or the file was cut."""
    faults = []
    found: list[Superblock] = []
    for copy in range(SUPERBLOCK_COPIES):
        try:
            found.append(decode_superblock(file.pread(SUPERBLOCK_BYTES, copy * SUPERBLOCK_BYTES)))
        except CorruptFormat as error:
            faults.append(str(error))
    if not found:
        raise CorruptJournal(
            f"journal {file.name} has no readable superblock: {'; '.join(faults)}",
            hint="if this is another file, name the right one; else restore it, or attach without it and accept the loss",
        )
    superblock = max(found, key=lambda copy: (copy.epoch, copy.synced))
    if file.size() < superblock.file_bytes:
        raise CorruptJournal(
            f"journal {file.name} is {file.size()} bytes long, {superblock.file_bytes} are needed",
            hint="the file was cut; restore it, or attach without it and accept the loss",
        )
    return superblock


class RingWindow:
    """A moving view of the ring: one chunk of the file, fetched when what is asked for lies outside it.

    Chunks are fresh bytes, so views handed out earlier stay valid."""

    def __init__(self, file: DurableFile, superblock: Superblock, chunk_bytes: int) -> None:
        self._file = file
        self._ring_bytes = superblock.ring_bytes
        self._chunk_bytes = chunk_bytes
        self._chunk = b""
        self._begin = 0

    def at(self, position: int, length: int, limit: int) -> tuple[bytes, int]:
        """(chunk, offset in it) with at least `length` bytes from `position`, less where the ring or `limit` ends."""
        offset = position - self._begin
        if offset >= 0 and offset + length <= len(self._chunk):
            return self._chunk, offset
        place = position % self._ring_bytes
        # Never beyond `limit`: another process may be writing there, and half of it must not be remembered.
        size = min(max(length, self._chunk_bytes), self._ring_bytes - place, limit - position)
        self._chunk = self._file.pread(size, RING_START + place)
        self._begin = position
        return self._chunk, 0


class RecordScanner:
    """Decodes records one after the other through a window."""

    def __init__(self, file: DurableFile, superblock: Superblock, chunk_bytes: int = READ_BYTES) -> None:
        self._window = RingWindow(file, superblock, chunk_bytes)
        self.at = self._window.at
        self._superblock = superblock
        self._seed = superblock.seed

    def head(self, position: int, limit: int) -> Record:
        """The record at `position`, data not looked at. Raises BadRecord."""
        want = 128
        while True:
            chunk, offset = self._window.at(position, want, limit)
            try:
                return decode_head(chunk, offset, position, self._superblock, self._seed)
            except BadRecord as bad:
                longer = len(chunk) - offset + bad.missing
                if not bad.missing or longer <= want:
                    raise
                want = longer

    def data(self, record: Record, limit: int) -> memoryview:
        """The record's data, every checksum verified. Raises BadRecord."""
        if not record.data_bytes:
            return _EMPTY
        chunk, offset = self._window.at(record.data_position, record.data_bytes, limit)
        data = memoryview(chunk)[offset : offset + record.data_bytes]
        if len(data) < record.data_bytes:
            raise BadRecord("data is cut short")
        fault = data_fault(record, data, self._superblock.sector_bytes)
        if fault >= 0:
            raise BadRecord(f"data checksum does not hold at byte {fault} of the data")
        return data


class JournalReader:
    """The worker's view of a journal that the front is appending to. `file` may be open for reading only."""

    def __init__(self, file: DurableFile, *, chunk_bytes: int = READ_BYTES) -> None:
        """Raises CorruptJournal when the file is no journal."""
        self.superblock = read_superblock(file)
        self._file = file
        self._chunk_bytes = chunk_bytes

    def records(self, begin: int, end: int) -> Iterator[tuple[Record, memoryview]]:
        """Every WRITE, ZERO and UNMAP record in [begin, end) with its data (empty for ZERO and UNMAP), in order.

        `begin` and `end` are record boundaries, the latter no further than the front said it had appended. The views
        are read-only and stay valid. Raises CorruptJournal, naming the file's offset, at anything that does not hold:
        all of this range was complete in the file, so nothing in it can be a torn tail."""
        scanner = RecordScanner(self._file, self.superblock, self._chunk_bytes)
        position, epoch = begin, 0
        while position < end:
            try:
                record = scanner.head(position, end)
                if record.epoch < epoch:
                    raise BadRecord(f"epoch {record.epoch} after epoch {epoch}")
                data = scanner.data(record, end)
            except BadRecord as bad:
                raise CorruptJournal(
                    f"journal {self._file.name} is damaged at offset {file_offset(self.superblock, position)} "
                    f"(position {position}): {bad.reason}",
                    hint="keep the file; check the disk below it",
                ) from bad
            if record.kind != Kind.PAD:
                yield record, data
            position, epoch = record.end, record.epoch
        if position != end:
            raise CorruptJournal(f"journal {self._file.name} has no record boundary at position {end}")


def file_offset(superblock: Superblock, position: int) -> int:
    """Offset in the file of a journal position."""
    return RING_START + position % superblock.ring_bytes
