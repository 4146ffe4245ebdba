"""The front's journal: a ring of records in one preallocated file. Format: docs/formats/journal.md.

One rule: a place in the ring is overwritten only after `reclaim` gave it up, and `reclaim` is told only positions the
bucket holds. Positions count bytes for ever; the place in the file is position modulo the ring.

    reclaimed <= synced, durable-in-bucket <= head <= tail
    | readable, already in the bucket | readable, only here | staged, not yet written |

Owned by one thread. Only the file's `fdatasync` may run elsewhere (see `engine.syncer`); what it covered comes back
through `mark_synced`.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from uuid import UUID

from blockdev.errors import CorruptJournal, JournalFull, LocalDiskFailed
from blockdev.journal.file import Buffer, DurableFile, PosixFile, publish
from blockdev.journal.format import (
    ALIGNMENT,
    DATA_BYTES_MAX,
    HEADER_BYTES,
    MORE,
    ONE_BLOCK_BYTES,
    ONE_BLOCK_HEAD_BYTES,
    RECORD_MAGIC,
    RING_START,
    SUPERBLOCK_BYTES,
    SUPERBLOCK_COPIES,
    BadRecord,
    Kind,
    Record,
    Superblock,
    decode_one_block,
    encode_head,
    encode_superblock,
    head_bytes,
    record_end,
)
from blockdev.journal.reader import READ_BYTES, RecordScanner, file_offset, read_superblock
from blockdev.units import BLOCK_BYTES

FIRST_POSITION = 4096
_ZEROS = bytes(1 << 20)
_RESTS = tuple(bytes(size) for size in range(0, BLOCK_BYTES, ALIGNMENT))
"""Zeros up to the end of a page, by the number of `ALIGNMENT`s that are missing there."""
_WALK_BYTES = 64 << 10


class Journal:
    """Append, sync, reclaim, recover. Get one from `create` or `open`; `recover`, then `begin`, come before the first
    append."""

    def __init__(self, file: DurableFile, superblock: Superblock) -> None:
        self.file = file
        self.superblock = superblock
        self.epoch = 0
        """Written into every record; see `begin`."""
        self.head = superblock.start
        """Records are complete in the file up to here."""
        self.tail = superblock.start
        """Where the next staged record begins; equals `head` when nothing is staged."""
        self.synced = superblock.start
        """Known durable up to here."""
        self.reclaimed = superblock.start
        """Readable from here on; everything before may be overwritten."""
        self.data_bytes_max = min(DATA_BYTES_MAX, superblock.ring_bytes // 4 // BLOCK_BYTES * BLOCK_BYTES)
        """Most data for one record here, so that a write never waits for a room the ring does not have."""
        self._seed = superblock.seed
        self._ring_bytes = superblock.ring_bytes
        self._iov: list[Buffer] = []
        self._iov_place = 0
        self._closed_runs: list[tuple[int, list[Buffer]]] = []
        self._walker: RecordScanner | None = None
        self._walked_from = 0

    # --- life ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        file: DurableFile,
        *,
        journal: UUID,
        volume: UUID,
        ring_bytes: int,
        sector_bytes: int,
        start: int = FIRST_POSITION,
    ) -> "Journal":
        """Make `file` an empty journal whose first position is `start`; durable on return.

        The ring is written through with zeros first: blocks that were never written make each fdatasync twice as
        slow. Crash before the last sync: no superblock, so the file is no journal and may be created again.
        Raises LocalDiskFailed, ValueError (sizes)."""
        superblock = Superblock(journal, volume, ring_bytes, start, sector_bytes)
        try:
            for offset in range(0, superblock.file_bytes, len(_ZEROS)):
                file.pwritev([memoryview(_ZEROS)[: superblock.file_bytes - offset]], offset)
            file.fdatasync()
            file.pwritev([encode_superblock(superblock)] * SUPERBLOCK_COPIES, 0)
            file.fdatasync()
        except OSError as error:
            raise _disk_failed(file, "cannot create journal", error) from error
        return cls(file, superblock)

    @classmethod
    def open(cls, file: DurableFile) -> "Journal":
        """An existing journal, to be recovered. Raises CorruptJournal (no journal, cut), LocalDiskFailed."""
        try:
            return cls(file, read_superblock(file))
        except OSError as error:
            raise _disk_failed(file, "cannot read journal", error) from error

    def close(self) -> None:
        self.file.close()

    # --- append -------------------------------------------------------------------------------------------------

    def stage_write(
        self,
        lba: int,
        sectors: int,
        data: Sequence[Buffer],
        data_bytes: int,
        checksums: Sequence[int],
        flags: int = 0,
    ) -> int:
        """Stage one WRITE record; the position of its data's first byte. The buffers are not copied: they must stay
        unchanged until `append`. At most `data_bytes_max` bytes. `flags`: MORE if the command goes on in the next record,
        which must be staged before `append`. Raises JournalFull; then nothing was staged."""
        head = (HEADER_BYTES + 4 * len(checksums) + 15) & -16
        position = self._place(head + data_bytes)
        header = encode_head(
            self._seed,
            Kind.WRITE,
            position,
            self.epoch,
            lba,
            sectors,
            self.synced,
            data_bytes,
            checksums,
            flags,
        )
        iov = self._iov
        iov.append(header)
        iov += data
        return position + head

    def stage_range(self, kind: Kind, lba: int, sectors: int, flags: int = 0) -> int:
        """Stage a ZERO or UNMAP record; its position. `flags` as with `stage_write`. Raises JournalFull; then nothing was
        staged."""
        position = self._place(HEADER_BYTES)
        head = encode_head(self._seed, kind, position, self.epoch, lba, sectors, self.synced, flags=flags)
        self._iov.append(head)
        return position

    def require(self, sizes: Sequence[int]) -> None:
        """Raise JournalFull unless records of these sizes (see `record_bytes`) fit one after the other."""
        position = self.tail
        for size in sizes:
            position = record_end(self._skip_to(position, size), size, self._ring_bytes)
        if position - self.reclaimed > self._ring_bytes:
            raise self._full(position - self.tail)

    @staticmethod
    def record_bytes(checksums: int, data_bytes: int) -> int:
        """Size of a record with this many data checksums and bytes of data."""
        return head_bytes(checksums) + data_bytes

    def _skip_to(self, position: int, size: int) -> int:
        left = self._ring_bytes - position % self._ring_bytes
        return position + left if size > left else position

    def _place(self, size: int) -> int:
        """Take the room for a record of `size` bytes and return where it begins; a PAD record fills a ring's end that
        is too short for it."""
        ring_bytes = self._ring_bytes
        position = self.tail
        place = position % ring_bytes
        left = ring_bytes - place
        pad = size > left
        begin = position + left if pad else position
        end = record_end(begin, size, ring_bytes)
        if end - self.reclaimed > ring_bytes:
            raise self._full(end - position)
        if not self._iov:
            self._iov_place = place
        elif not place:
            self._end_run()
        if pad:
            self._iov.append(encode_head(self._seed, Kind.PAD, position, self.epoch, 0, 0, self.synced))
            self._end_run()
        self.tail = end
        return begin

    def _end_run(self) -> None:
        """What is staged from now on begins at the ring's start and needs a system call of its own."""
        self._closed_runs.append((self._iov_place, self._iov))
        self._iov = []
        self._iov_place = 0

    def append(self) -> None:
        """Write all staged records: one system call, two where the ring turns. On return they survive the death of the
        process. Raises LocalDiskFailed: then nobody knows what the file holds behind `head`, and the journal must not
        be used again.

        The page of the file that the last record ends in is filled up with zeros, where nothing is kept behind it: of a page
        that is written in part the kernel reads the rest from the disk first, unless it has it in memory.

        Crash within: any part of the batch may be in the file, in any order once the host dies; recovery stops at the
        first record that is not whole. None of the batch was acknowledged."""
        tail = self.tail
        if tail == self.head:
            return
        rest = -tail % BLOCK_BYTES
        if rest and tail + rest - self.reclaimed <= self._ring_bytes:
            self._iov.append(_RESTS[rest // ALIGNMENT])
        try:
            for place, iov in self._closed_runs:
                self.file.pwritev(iov, RING_START + place)
            self.file.pwritev(self._iov, RING_START + self._iov_place)
        except OSError as error:
            raise _disk_failed(self.file, "cannot append to journal", error) from error
        self._closed_runs.clear()
        self._iov = []
        self.head = tail

    @property
    def room(self) -> int:
        """Bytes that can be staged before something must be reclaimed."""
        return self._ring_bytes - (self.tail - self.reclaimed)

    def read(self, position: int, length: int) -> bytes:
        """Bytes of one record's data. Not verified: the caller holds the checksums. Raises LocalDiskFailed."""
        try:
            return self.file.pread(length, RING_START + position % self._ring_bytes)
        except OSError as error:
            raise _disk_failed(self.file, "cannot read journal", error) from error

    def file_offset(self, position: int) -> int:
        """Where in the file a position is, for messages."""
        return file_offset(self.superblock, position)

    # --- durability ---------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Everything appended before the call is durable on return. Raises LocalDiskFailed; never tried again, since
        after a failed fdatasync the kernel may have dropped the very pages it could not write."""
        head = self.head
        if head == self.synced:
            return
        try:
            self.file.fdatasync()
        except OSError as error:
            raise _disk_failed(self.file, "cannot sync journal", error) from error
        self.synced = head

    def begin_writing(self) -> None:
        """Have the disk begin with what the next `sync` will wait for. Promises nothing."""
        begin, end = self.synced, self.head
        place = begin % self._ring_bytes
        # What goes on at the ring's start is left to the sync: it turns too seldom to matter.
        self.file.begin_writing(min(end - begin, self._ring_bytes - place), RING_START + place)

    def mark_synced(self, position: int) -> None:
        """An fdatasync that began when `head` was `position` has succeeded."""
        if position > self.head:
            raise ValueError(f"position {position} was not appended yet")
        self.synced = max(self.synced, position)

    def note_synced(self) -> None:
        """Leave word in the superblock of how far the journal is durable, without making that durable itself: otherwise
        only a later record tells recovery that damage in the newest ones is damage, not a lost tail. Costs one small
        write; for quiet moments. Raises LocalDiskFailed.

        Crash within: the second copy is torn, and the first says less."""
        if self.synced == self.superblock.synced:
            return
        self.superblock = replace(self.superblock, synced=self.synced)
        try:
            self.file.pwritev([encode_superblock(self.superblock)], SUPERBLOCK_BYTES)
        except OSError as error:
            raise _disk_failed(self.file, "cannot write to journal", error) from error

    # --- giving room back ---------------------------------------------------------------------------------------

    def walk(self, begin: int, end: int) -> Iterator[tuple[int, int, Record | None]]:
        """The records in [begin, end), PAD included, headers verified, data not read: where each ends, and the record; in its
        place the block's number if all it does is write one block, which costs a quarter. Raises CorruptJournal.

        A walk that begins behind the begin of the last one goes on in what that one had read: a full journal gives back two
        records with each write."""
        scanner = self._walker
        if scanner is None or begin <= self._walked_from:
            scanner = self._walker = RecordScanner(self.file, self.superblock, _WALK_BYTES)
        self._walked_from = begin
        at, ring_bytes, seed = scanner.at, self._ring_bytes, self._seed
        per_block = BLOCK_BYTES // self.superblock.sector_bytes
        position = begin
        try:
            while position < end:
                chunk, offset = at(position, ONE_BLOCK_HEAD_BYTES, end)
                if len(chunk) - offset >= ONE_BLOCK_HEAD_BYTES:
                    block = decode_one_block(chunk, offset, position, per_block, seed)
                    # One that claims to reach past the ring's end is for `head` to refuse.
                    if block >= 0 and ring_bytes - position % ring_bytes >= ONE_BLOCK_BYTES:
                        position = record_end(position, ONE_BLOCK_BYTES, ring_bytes)
                        yield position, block, None
                        continue
                record = scanner.head(position, end)
                position = record.end
                yield position, -1, record
        except BadRecord as bad:
            raise CorruptJournal(self._damage(position, bad.reason)) from bad
        except OSError as error:
            raise _disk_failed(self.file, "cannot read journal", error) from error

    def reclaim(self, to: int) -> None:
        """Everything before `to`, a record boundary, is in the bucket and unused here: it may be overwritten."""
        if not self.reclaimed <= to <= self.head:
            raise ValueError(f"cannot reclaim up to {to}: the journal holds {self.reclaimed} to {self.head}")
        self.reclaimed = to

    # --- recovery -----------------------------------------------------------------------------------------------

    def recover(self, from_position: int, visit: Callable[[Record], None]) -> int:
        """Find the end of what a crash left and hand every whole record from `from_position` on to `visit` (PAD
        excepted), data verified. The new head, which is durable on return. A command of several records is handed out when
        its last one is there; without it the head is before its first one.

        `from_position` is where the bucket ends; what lies before is not looked at. The scan stops at the first record
        that is not whole. That is a lost tail, which nobody was promised, unless the superblock or a later record says
        that this place had been synced: then acknowledged data is damaged and CorruptJournal names its offset.
        If the bucket is ahead of the journal's end, the head becomes `from_position`.

        Crash within: nothing was written; recovery runs again."""
        start, last, begin = self.superblock.start, self.superblock.epoch, self.superblock.epoch_begin
        if from_position < start or from_position % ALIGNMENT:
            raise CorruptJournal(
                f"journal {self.file.name} begins at position {start}, the bucket ends at {from_position}",
                hint="this is not the journal that continues the bucket's content",
            )
        position, epoch = from_position, 0
        command: list[Record] = []
        limit = from_position + self._ring_bytes
        scanner = RecordScanner(self.file, self.superblock, READ_BYTES)
        try:
            while position < limit:
                try:
                    record = scanner.head(position, limit)
                    if position >= begin and record.epoch != last:
                        raise BadRecord(f"epoch {record.epoch} where epoch {last} wrote last")
                    if record.epoch < epoch:
                        raise BadRecord(f"epoch {record.epoch} after epoch {epoch}")
                    if record.end > limit:
                        raise BadRecord("record reaches into the lap before")
                    scanner.data(record, limit)
                except BadRecord as bad:
                    self._refuse_damage(position, limit, bad.reason)
                    break
                if record.kind != Kind.PAD:
                    command.append(record)
                    if not record.flags & MORE:
                        for part in command:
                            visit(part)
                        command.clear()
                position, epoch = record.end, record.epoch
            if command:
                position = command[0].position
            # The records found may be in the page cache only; from here on they count as synced.
            self.file.fdatasync()
        except OSError as error:
            raise _disk_failed(self.file, "cannot recover journal", error) from error
        self.reclaimed = from_position
        self.head = self.tail = self.synced = position
        return position

    def take_up(self, from_position: int, epoch: int, visit: Callable[[Record], None]) -> None:
        """What an attachment does with its journal: `recover` from where the bucket ends, then `begin` its epoch. Raises
        CorruptJournal also when that epoch, or a later one, has written here already: then this is not the journal that
        continues the bucket's content."""
        self.recover(from_position, visit)
        if epoch <= self.superblock.epoch:
            raise CorruptJournal(
                f"journal {self.file.name} was written by epoch {self.superblock.epoch} already, "
                f"the volume was attached as epoch {epoch}",
                hint="this is not the journal that continues the bucket's content",
            )
        self.begin(epoch)

    def begin(self, epoch: int) -> None:
        """Records appended from now on are of `epoch`, which must be newer than any in the journal; durable on return.

        Without this mark a whole record that a crash had left behind the last one counted could come back later: when
        the bucket ends exactly where it begins, nothing else tells it from a record written since.
        Crash within: the old mark or the new one holds, and nothing of `epoch` was appended. Raises LocalDiskFailed."""
        if epoch <= self.superblock.epoch:
            raise ValueError(f"epoch {epoch} is not newer than {self.superblock.epoch}, which has written here")
        superblock = replace(self.superblock, epoch=epoch, epoch_begin=self.head, synced=self.synced)
        try:
            for copy in range(SUPERBLOCK_COPIES):  # never both at once: one is whole whatever happens
                self.file.pwritev([encode_superblock(superblock)], copy * SUPERBLOCK_BYTES)
                self.file.fdatasync()
        except OSError as error:
            raise _disk_failed(self.file, "cannot mark the epoch in journal", error) from error
        self.superblock = superblock
        self._walker = None
        self.epoch = epoch

    def _refuse_damage(self, position: int, limit: int, reason: str) -> None:
        """Raise CorruptJournal if the superblock or a record behind `position` says that this place was durable.

        Records behind a lost tail of an earlier crash cannot say so: what they knew as synced was found whole then."""
        if self.superblock.synced > position:
            raise self._lost(position, reason, "the superblock says so")
        ring_bytes = self._ring_bytes
        scanner = RecordScanner(self.file, self.superblock, 4096)
        cursor = position + ALIGNMENT
        while cursor < limit:
            place = cursor % ring_bytes
            chunk = self.file.pread(min(READ_BYTES, ring_bytes - place, limit - cursor), RING_START + place)
            if not chunk:
                return
            found = chunk.find(RECORD_MAGIC)
            while found >= 0:
                # A claim of the right position is needed before a checksum is worth computing: the ring is full of
                # records of the lap before.
                if not found % ALIGNMENT and chunk[found + 8 : found + 16] == (cursor + found).to_bytes(8, "little"):
                    try:
                        record = scanner.head(cursor + found, limit)
                    except BadRecord:
                        pass  # not a record after all; keep looking
                    else:
                        if record.synced > position:
                            witness = f"the record at position {record.position} says so"
                            raise self._lost(position, reason, witness)
                found = chunk.find(RECORD_MAGIC, found + 1)
            cursor += len(chunk)

    def _lost(self, position: int, reason: str, witness: str) -> CorruptJournal:
        return CorruptJournal(
            f"{self._damage(position, reason)}; it was durable: {witness}",
            hint="keep the file, check the disk; attaching without it loses acknowledged writes",
        )

    def _damage(self, position: int, reason: str) -> str:
        offset = file_offset(self.superblock, position)
        return f"journal {self.file.name} is damaged at offset {offset} (position {position}): {reason}"

    def _full(self, wanted: int) -> JournalFull:
        return JournalFull(
            f"journal {self.file.name} is full: {wanted} bytes wanted, {self.room} free",
            hint="writes resume as the bucket takes data; a larger journal bridges longer outages",
        )


def create_journal(
    path: str | os.PathLike[str],
    *,
    journal: UUID,
    volume: UUID,
    ring_bytes: int,
    sector_bytes: int,
    start: int = FIRST_POSITION,
) -> Journal:
    """A new journal in a new file, durable under its name on return. Raises FileExistsError if there is one already,
    LocalDiskFailed (with the bytes that are missing, when the disk is full), ValueError (sizes).

    Crash within: `path` does not exist, at most `path`.new, which the next call replaces."""
    superblock = Superblock(journal, volume, ring_bytes, start, sector_bytes)
    final = Path(path)
    if final.exists():
        raise FileExistsError(errno.EEXIST, "a journal exists already", os.fspath(final))
    temporary = final.with_name(final.name + ".new")
    temporary.unlink(missing_ok=True)
    file = PosixFile.create(temporary, superblock.file_bytes)
    try:
        made = Journal.create(
            file, journal=journal, volume=volume, ring_bytes=ring_bytes, sector_bytes=sector_bytes, start=start
        )
        publish(temporary, final)
    except BaseException:
        file.close()
        temporary.unlink(missing_ok=True)
        raise
    file.name = os.fspath(final)
    return made


def open_journal(path: str | os.PathLike[str]) -> Journal:
    """The journal in an existing file, to be recovered. Raises FileNotFoundError, CorruptJournal, LocalDiskFailed."""
    return Journal.open(PosixFile(path))


def _disk_failed(file: DurableFile, what: str, error: OSError) -> LocalDiskFailed:
    return LocalDiskFailed(f"{what} {file.name}: {error.strerror or error}")
