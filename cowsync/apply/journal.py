"""The journals of one apply: what each worker did, on the local disk, synced at most a second later.

One rule: a line is DONE for a restart only when a record says so, and no line is touched before a record says that it
may be (BEGUN, durable first). So a crash makes lines be done twice, never left out, and what an unfinished attempt
left on the mirror is not taken for somebody else's.

A folder holds `worker-<n>.journal`, one writer each, appended to by later starts. What a crash leaves:

    a torn last record, or a tail that was never synced    cut off when the worker opens its file again
    a damaged record that was synced                       StateDamaged: results of lines would be lost silently
    uploads begun and not over                             `Journals.uploads`; the next start aborts them

Damage is told from a tail by `synced`, which every record carries: how far the file was durable when it was appended.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cowsync.apply.journal_format import (
    HEAD_BYTES,
    HEADER_BYTES,
    PAYLOAD_BYTES_MAX,
    RECORD_MAGIC,
    BadRecord,
    Begun,
    Decoded,
    Entry,
    Upload,
    decode,
    decode_header,
    encode,
    encode_header,
)
from cowsync.changes import LineResult, Op, Outcome
from cowsync.errors import StateDamaged

log = logging.getLogger(__name__)

_READ_BYTES = 1 << 20
_HINT = (
    "carry on without it: move the file away and apply the plan again; lines whose results it held are looked at on the "
    "mirror and done again"
)


class NumberSet:
    """Which lines of a plan: a bit each, for as many as there may be."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._count = 0

    def add(self, number: int) -> None:
        byte, bit = number >> 3, 1 << (number & 7)
        if byte >= len(self._bits):
            self._bits.extend(bytes(max(byte + 1 - len(self._bits), len(self._bits) // 2)))
        if not self._bits[byte] & bit:
            self._bits[byte] |= bit
            self._count += 1

    def __contains__(self, number: int) -> bool:
        byte = number >> 3
        return byte < len(self._bits) and bool(self._bits[byte] & 1 << (number & 7))

    def __len__(self) -> int:
        return self._count


class Ranges:
    """Numbers as joined ranges. Workers take ranges in rising order, so few are ever apart."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def add(self, first: int, end: int) -> None:
        kept = [(a, b) for a, b in self._ranges if b < first or a > end]
        touched = [(a, b) for a, b in self._ranges if not (b < first or a > end)]
        joined = (min([first, *(a for a, _ in touched)]), max([end, *(b for _, b in touched)]))
        self._ranges = sorted([*kept, joined])

    def __contains__(self, number: int) -> bool:
        return any(first <= number < end for first, end in self._ranges)


class Journals:
    """What all journals of a folder say together. `uploads` are those begun and not over: full key, upload id."""

    def __init__(self) -> None:
        self.done = NumberSet()
        self.begun: dict[Op, Ranges] = {op: Ranges() for op in Op}
        self.uploads: set[tuple[str, str]] = set()
        self._not_ours = NumberSet()
        self._over: set[tuple[str, str]] = set()

    @classmethod
    def read(cls, directory: Path, digest: bytes) -> "Journals":
        """Raises StateDamaged naming file, offset and cure; OSError."""
        found = cls()
        for path in journal_files(directory):
            for entry, _ in read_journal(path, digest):
                found._note(entry)
        return found

    def maybe_ours(self, op: Op, number: int) -> bool:
        """Whether an earlier attempt may have carried the line out. Not where one has seen that somebody else's object
        is there: that one it left alone."""
        return number in self.begun[op] and number not in self._not_ours

    def _note(self, entry: Entry) -> None:
        match entry:
            case LineResult():
                if entry.outcome is Outcome.DONE:
                    self.done.add(entry.number)
                elif entry.outcome is Outcome.DRIFTED:
                    self._not_ours.add(entry.number)
            case Begun():
                self.begun[entry.op].add(entry.first, entry.end)
            case Upload():
                # The end of an upload may stand in another worker's file than its begin, and be read first.
                upload = (entry.key, entry.upload_id)
                mine, other = (self._over, self.uploads) if entry.over else (self.uploads, self._over)
                if upload in other:
                    other.discard(upload)
                else:
                    mine.add(upload)


def open_uploads(directory: Path, digest: bytes) -> set[tuple[str, str]]:
    """Uploads that the journals of a folder show as begun and not over, for somebody who has no other use for them: of a
    damaged file what stands before the damage counts. OSError."""
    found = Journals()
    for path in journal_files(directory):
        try:
            for entry, _ in read_journal(path, digest):
                found._note(entry)
        except StateDamaged as error:
            log.warning("uploads that this journal names may stay on the mirror: %s", error)
    return found.uploads


def journal_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("worker-*.journal")) if directory.is_dir() else []


def journal_path(directory: Path, worker: int) -> Path:
    return directory / f"worker-{worker:04d}.journal"


def read_journal(path: Path, digest: bytes) -> Iterator[tuple[Entry, int]]:
    """Every record with the offset of its end, up to a tail that a crash tore. Raises StateDamaged, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield from records(path, fd, digest)
    finally:
        os.close(fd)


def records(
    path: Path, fd: int, digest: bytes, start: int = HEADER_BYTES, *, read_bytes: int = _READ_BYTES
) -> Iterator[tuple[Entry, int]]:
    """As `read_journal`, of an open file (`path` is for messages), from offset `start`, where a record begins. Memory is
    bounded by `read_bytes` and a record."""
    if not _check_header(path, os.pread(fd, HEADER_BYTES, 0), digest):
        return
    buffer, base, at = b"", start, 0  # `buffer` begins at `base` of the file
    while True:
        if len(buffer) - at < HEAD_BYTES + PAYLOAD_BYTES_MAX:
            base, buffer, at = base + at, os.pread(fd, read_bytes, base + at), 0
        offset = base + at
        if at >= len(buffer):
            return
        try:
            found = decode(buffer, at, offset, digest)
        except BadRecord as bad:
            if _synced_later(fd, offset + 1, digest) > offset:
                raise StateDamaged(f"{path}: at offset {offset}: {bad}, and it had been synced", hint=_HINT) from bad
            return
        yield found.entry, found.end
        at += found.end - offset


class WorkerJournal:
    """One worker's file, opened for appending. `append` writes (safe from the death of the process), `sync` makes it
    safe from the host's. One thread appends; any thread may sync at the same time. After an OSError of either nothing
    more is written: what is in the file by then is not known. `begun` and `over` are the uploads noted since it was
    opened; an upload that is over is in neither, where both were noted here."""

    def __init__(
        self, directory: Path, worker: int, digest: bytes, *, sync: Callable[[int], None] | None = None
    ) -> None:
        """Opens or creates, cuts a torn tail. Durable as a name when this returns. Raises OSError, StateDamaged."""
        self.path = journal_path(directory, worker)
        self.begun: set[tuple[str, str]] = set()
        self.over: set[tuple[str, str]] = set()
        self._digest = digest
        self._fdatasync = sync or os.fdatasync
        self._lock = threading.Lock()
        self._failed = False
        directory.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._end = self._recover()
            self._synced = 0
            self.sync()
            _sync_directory(directory)
        except BaseException:
            os.close(self._fd)
            raise

    def append(self, *entries: Entry) -> None:
        """In the file, one after the other, when this returns. Raises OSError."""
        with self._lock:
            self._require_whole()
            data = bytearray()
            for entry in entries:
                data += encode(entry, self._end + len(data), self._synced, self._digest)
            try:
                self._write(data)
            except OSError:
                self._failed = True
                raise
            self._end += len(data)

    def begin(self, op: Op, first: int, end: int) -> None:
        """Durable when this returns: the lines may be touched. Syncs the results before it as well."""
        self.append(Begun(op, first, end))
        self.sync()

    def begin_all(self, ops: Iterable[Op], first: int, end: int) -> None:
        """As `begin`, of lines of several kinds."""
        self.append(*(Begun(op, first, end) for op in ops))
        self.sync()

    def upload_begun(self, key: str, upload_id: str) -> None:
        self.append(Upload(key, upload_id, over=False))
        self.begun.add((key, upload_id))

    def upload_over(self, key: str, upload_id: str) -> None:
        self.append(Upload(key, upload_id, over=True))
        if (key, upload_id) in self.begun:
            self.begun.remove((key, upload_id))
        else:
            self.over.add((key, upload_id))

    def sync(self) -> None:
        """All that was appended before the call is durable when this returns. Raises OSError."""
        with self._lock:
            self._require_whole()
            end = self._end
            if end == self._synced:
                return
        try:
            self._fdatasync(self._fd)
        except OSError:
            self._failed = True
            raise
        with self._lock:
            self._synced = max(self._synced, end)

    def close(self) -> None:
        """Syncs where that is still possible."""
        try:
            if not self._failed:
                self.sync()
        finally:
            os.close(self._fd)

    def _require_whole(self) -> None:
        if self._failed:
            raise OSError(f"{self.path}: an earlier write failed; nothing is appended until the next start")

    def _write(self, data: bytes | bytearray) -> None:
        written = 0
        while written < len(data):
            written += os.pwrite(self._fd, memoryview(data)[written:], self._end + written)

    def _recover(self) -> int:
        """Where the next record goes."""
        head = os.pread(self._fd, HEADER_BYTES, 0)
        if not _check_header(self.path, head, self._digest):
            os.ftruncate(self._fd, 0)
            self._end = 0
            self._write(encode_header(self._digest))
            return HEADER_BYTES
        end = max((end for _, end in read_journal(self.path, self._digest)), default=HEADER_BYTES)
        os.ftruncate(self._fd, end)
        return end


def _check_header(path: Path, head: bytes, digest: bytes) -> bool:
    """False for a file that a crash left before its header was whole: nothing was ever in it."""
    if len(head) < HEADER_BYTES or not any(head):
        return False
    try:
        found = decode_header(head)
    except BadRecord as bad:
        raise StateDamaged(f"{path}: {bad}", hint=_HINT) from bad
    if found != digest:
        raise StateDamaged(
            f"{path} belongs to plan {found.hex()}, not to {digest.hex()}", hint="give each plan a folder of its own"
        )
    return True


def _synced_later(fd: int, offset: int, digest: bytes) -> int:
    """The highest `synced` of any whole record at or after `offset`; -1 without one."""
    highest, overlap = -1, HEAD_BYTES + PAYLOAD_BYTES_MAX
    while True:
        buffer = os.pread(fd, _READ_BYTES + overlap, offset)
        at = buffer.find(RECORD_MAGIC)
        while 0 <= at < _READ_BYTES:
            found = _whole_record(buffer, at, offset + at, digest)
            highest = max(highest, found.synced if found else -1)
            at = buffer.find(RECORD_MAGIC, at + 1)
        if len(buffer) < _READ_BYTES + overlap:
            return highest
        offset += _READ_BYTES


def _whole_record(buffer: bytes, at: int, offset: int, digest: bytes) -> Decoded | None:
    try:
        return decode(buffer, at, offset, digest)
    except BadRecord:
        return None


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
