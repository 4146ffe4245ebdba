"""The local log of a writer: records are here before anybody is told that they are recorded. Format: docs/formats/ledger.md.

    DIR/<first record, 16 digits>.wal       a header, then frames; a frame is what one sync made durable

One rule: of what was not synced at most the last frame is missing or torn, since nothing is written while a sync goes on.
So only the last frame of the last file may be cut away at opening; damage before it is refused, never skipped.
Owned by one thread at a time, but for `records`, which reads what is durable from any.
"""

import os
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crc32c import crc32c

from integrity.errors import LedgerError

MAGIC = b"BWLEDWAL"
VERSION = 1
FILE_BYTES = 8 << 20
"""A file that is longer gets no further frame."""
FRAME_BYTES_MAX = 64 << 20
SUFFIX = ".wal"

_HEADER = struct.Struct("<8sIIQII")  # magic, version, 0, first record, 0, CRC32C of what is before
_FRAME = struct.Struct("<II")  # payload bytes, CRC32C over first record (u64), payload bytes (u32), payload
_BOUND = struct.Struct("<QI")
_RECORD_HEAD = b'{"after":"'
_HINT = "keep the folder; restore it from a copy, or retire this writer and enrol another"


class WalDamaged(LedgerError):
    """The local log is not what was written: a frame in its middle is damaged, or a file is missing."""


class WalFailed(LedgerError):
    """The local disk failed. What was not acknowledged may or may not be there; the writer has stopped for good."""


@dataclass(slots=True)
class _File:
    path: Path
    first: int
    end: int
    """One more than its last record's number."""
    bytes: int
    starts: "array[int]" = field(default_factory=lambda: array("Q"))
    """Number of each frame's first record, and where the frame begins."""
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))


class Wal:
    """Get one from `open`."""

    def __init__(self, folder: Path, files: list[_File], end: int, sync: Callable[[int], None]) -> None:
        self.folder = folder
        self.end = end
        """The number that the next record appended has."""
        self._files = files
        self._sync = sync
        self._fd = -1
        self._failed = ""

    @classmethod
    def open(
        cls, folder: Path, first: int = 0, *, sync: Callable[[int], None] = os.fdatasync, cut: bool = True
    ) -> "Wal":
        """The log in `folder`, which is made if need be, with every record from `first` on that was ever durable. A torn
        last frame is cut away, durably (`cut=False`: only left out, nothing is written; for looking). WalDamaged,
        OSError.

        Crash within: the tail is cut or not; the next opening does it again."""
        if cut:
            make_private(folder)
        files: list[_File] = []
        paths = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX) if folder.is_dir() else []
        for path in paths:
            last = path is paths[-1]
            file = _scan(path, last=last, cut=cut)
            if file is None:
                continue
            if files and files[-1].end != file.first:
                raise WalDamaged(
                    f"{folder}: records {files[-1].end:,} to {file.first - 1:,} of the local log are missing",
                    hint=_HINT,
                )
            files.append(file)
        if files and files[0].first > first:
            raise WalDamaged(
                f"{folder}: records {first:,} to {files[0].first - 1:,} of the local log are missing", hint=_HINT
            )
        end = files[-1].end if files else first
        if end < first:
            raise WalDamaged(f"{folder}: records {end:,} to {first - 1:,} of the local log are missing", hint=_HINT)
        return cls(folder, files, end, sync)

    @property
    def first(self) -> int:
        """The oldest record that can be read."""
        return self._files[0].first if self._files else self.end

    @property
    def size_bytes(self) -> int:
        return sum(file.bytes for file in self._files)

    def append(self, records: Sequence[bytes]) -> None:
        """Write records with the numbers from `end` on, as one frame; they are durable on return. WalFailed: nobody knows
        what the disk holds of them, and nothing is appended any more; a failed fdatasync is never tried again, since
        the kernel may have dropped the very pages it could not write.

        Crash within: the frame is whole, torn or not there; none of its records was acknowledged. `open` cuts it away."""
        if self._failed:
            raise WalFailed(self._failed)
        if not records:
            return
        payload = pack(records)
        begin, size = self.end, len(payload)
        if size > FRAME_BYTES_MAX:
            raise ValueError(f"a frame has at most {FRAME_BYTES_MAX:,} bytes, not {size:,}")
        try:
            if not self._files or self._files[-1].bytes >= FILE_BYTES or self._fd < 0:
                self._next_file()
            file = self._files[-1]
            _write_all(self._fd, _frame(begin, payload))
            self._sync(self._fd)
        except OSError as error:
            self._failed = f"{self.folder}: the local log cannot be written: {error.strerror or error}"
            raise WalFailed(
                self._failed,
                hint="check the disk and its room; then start the process again: nothing acknowledged is lost",
            ) from error
        file.starts.append(begin)
        file.offsets.append(file.bytes)
        file.bytes += _FRAME.size + size
        file.end = self.end = begin + len(records)

    def records(self, begin: int, end: int) -> Iterator[bytes]:
        """Records `begin` to `end` - 1, which must be durable and not trimmed. WalDamaged, OSError."""
        number = begin
        for file in list(self._files):
            if number >= end:
                return
            if file.end <= number:
                continue
            if file.first > number:
                break
            with open(file.path, "rb") as stream:
                frame = bisect_right(file.starts, number) - 1
                while number < min(end, file.end):
                    start, offset = file.starts[frame], file.offsets[frame]
                    stream.seek(offset)
                    payload = _read_frame(stream.read(_FRAME.size), stream.read, start)
                    if payload is None:
                        raise WalDamaged(f"{file.path}: the frame at offset {offset:,} is damaged", hint=_HINT)
                    for record in unpack(payload)[number - start : end - start]:
                        yield record
                        number += 1
                    frame += 1
        if number < end:
            raise WalDamaged(f"{self.folder}: record {number:,} is not in the local log", hint=_HINT)

    def can_trim(self, below: int) -> bool:
        """Whether `trim` would give back a file."""
        return len(self._files) > 1 and self._files[0].end <= below

    def trim(self, below: int) -> None:
        """Give back files that hold nothing from record `below` on. The caller has seen to it that nobody needs them.

        Crash within: older files are gone, from the oldest on; `open` with `first` at `below` takes what is left."""
        while len(self._files) > 1 and self._files[0].end <= below:
            self._files[0].path.unlink(missing_ok=True)
            del self._files[0]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _next_file(self) -> None:
        """Go on in the last file if it has room and this is the first append, else in a new one.

        Crash within: a file with a torn header or without frames; `open` takes it for one that is empty."""
        self.close()
        if self._files and self._files[-1].bytes < FILE_BYTES:
            self._fd = os.open(self._files[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            return
        path = self.folder / f"{self.end:016d}{SUFFIX}"
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o600)
        _write_all(self._fd, _header(self.end))
        self._sync(self._fd)
        sync_folder(self.folder)
        self._files.append(_File(path, self.end, self.end, _HEADER.size))


def pack(records: Sequence[bytes]) -> bytes:
    """Records as an entry bundle has them (C2SP tlog-tiles), without its limit of 256."""
    return b"".join([part for record in records for part in (len(record).to_bytes(2, "big"), record)])


def unpack(payload: bytes) -> list[bytes]:
    """The records in what `pack` made, and a checksum held."""
    found = []
    at, end = 0, len(payload)
    while at < end:
        after = at + 2 + (payload[at] << 8 | payload[at + 1])
        found.append(payload[at + 2 : after])
        at = after
    return found


def encode_file(first: int, frames: Sequence[Sequence[bytes]]) -> bytes:
    """A whole file of a local log, as `Wal` writes it piece by piece."""
    data = _header(first)
    for records in frames:
        data += _frame(first, pack(records))
        first += len(records)
    return data


def _frame(first: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload), _checksum(first, payload)) + payload


def make_private(folder: Path) -> None:
    """The folder with mode 0700, durably, with the folders above it."""
    if folder.is_dir():
        return
    above = folder.parent
    if not above.is_dir():
        make_private(above)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync_folder(above)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_private(path: Path, data: bytes) -> None:
    """Replace a file of mode 0600, atomically and durably. Crash within: the old file or the new one, and perhaps
    `<name>.new` beside it, which the next writing replaces."""
    staged = path.with_name(path.name + ".new")
    handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)
        _write_all(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(staged, path)
    sync_folder(path.parent)


def _header(first: int) -> bytes:
    plain = _HEADER.pack(MAGIC, VERSION, 0, first, 0, 0)[:-4]
    return plain + struct.pack("<I", crc32c(plain))


def _checksum(first: int, payload: bytes) -> int:
    return crc32c(payload, crc32c(_BOUND.pack(first, len(payload))))


def _read_frame(head: bytes, read: Callable[[int], bytes], first: int) -> bytes | None:
    if len(head) < _FRAME.size:
        return None
    size, checksum = _FRAME.unpack(head)
    if not 0 < size <= FRAME_BYTES_MAX:
        return None
    payload = read(size)
    if len(payload) != size or _checksum(first, payload) != checksum:
        return None
    return payload


def _scan(path: Path, *, last: bool, cut: bool) -> _File | None:
    """The file's frames; None for a file in which there can be none."""
    data = path.read_bytes()
    named = path.stem
    if data[: _HEADER.size] != _header(int(named) if named.isdigit() else 0):
        # A header that was never synced: no frame can have followed it.
        if last and (len(data) < _HEADER.size or not data.strip(b"\0")):
            if cut:
                path.unlink()
                sync_folder(path.parent)
            return None
        raise WalDamaged(f"{path}: does not begin as a local log of this ledger does", hint=_HINT)
    file = _File(path, int(named), int(named), _HEADER.size)
    view = memoryview(data)
    while file.bytes < len(data):
        at = file.bytes + _FRAME.size

        def read(size: int, at: int = at) -> bytes:
            return bytes(view[at : at + size])

        payload = _read_frame(bytes(view[file.bytes : at]), read, file.end)
        if payload is None:
            if not last or _frame_after(data, file.bytes):
                raise WalDamaged(
                    f"{path}: the frame at offset {file.bytes:,} is damaged, and there are records after it", hint=_HINT
                )
            if cut:
                _cut(path, file.bytes)
            break
        file.starts.append(file.end)
        file.offsets.append(file.bytes)
        file.end += len(unpack(payload))
        file.bytes = at + len(payload)
    return file


def _frame_after(data: bytes, bad: int) -> bool:
    """Whether a whole frame lies behind the one that is bad: then that one was durable once, and was damaged since."""
    at = data.find(_RECORD_HEAD, bad + _FRAME.size + 2 + 1)
    while at >= 0:
        begin = at - 2 - _FRAME.size
        number = data.find(b'"n":', at)
        end = number + 4
        while number >= 0 and data[end : end + 1].isdigit():
            end += 1
        if begin > bad and number >= 0 and end > number + 4:

            def read(size: int, begin: int = begin) -> bytes:
                return data[begin + _FRAME.size : begin + _FRAME.size + size]

            head = data[begin : begin + _FRAME.size]
            if _read_frame(head, read, int(data[number + 4 : end][:20])) is not None:
                return True
        at = data.find(_RECORD_HEAD, at + 1)
    return False


def _cut(path: Path, size: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(handle, size)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
