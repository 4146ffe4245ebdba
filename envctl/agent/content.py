"""Reads what a scan found: rows with attributes, files as chunks, new chunks into packs.

One rule: a row tells of one moment. A file that changes while it is read is read again, twice; then the version of the snapshot
before is kept and the row is marked fuzzy. What cannot be read at all keeps its former version too: an error of a disk never
deletes a file from the backups.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

from envctl.agent import attributes, chunking, codec
from envctl.agent.dedup import Dedup
from envctl.agent.errors import AgentError
from envctl.agent.pack import PackWriter
from envctl.agent.scan import Put
from envctl.agent.tree import FILE, Chunk, Row, Tree, chunks_in, hole

READS: Final = 3
FREE_BYTES: Final = 4 * 1024 * 1024
"""So much of new content goes into packs before the chunks of the parent are looked through for what was moved or copied: most
runs find a few changed files, and the table of all chunks costs seconds in a large home."""
_DESCRIPTORS: Final = 64
_ORDINAL_BYTES: Final = 4


class Gone(AgentError):
    """What was found is not there any more."""


class Directories:
    """Descriptors of directories by path, the last few of them, each checked to be the one that the scan saw."""

    def __init__(self, base: bytes) -> None:
        self._base = base
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def of(self, put: Put) -> int:
        """The directory that `put` was seen in. Gone if it is another one now."""
        path = os.path.dirname(put.path)
        descriptor = self._open.pop(path, None)
        if descriptor is None:
            try:
                descriptor = os.open(self._base + path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError as error:
                raise Gone(f"/{os.fsdecode(path)}: {error.strerror}") from error
            status = os.fstat(descriptor)
            if put.parent != (0, 0) and (status.st_dev, status.st_ino) != put.parent:
                os.close(descriptor)
                raise Gone(f"/{os.fsdecode(path)} was replaced while it was read")
        self._open[path] = descriptor
        if len(self._open) > _DESCRIPTORS:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])


class Packer:
    """Puts chunks into packs, unless the parent or this run has them. A pack's name is known only once it is full; until
    then its chunks carry its ordinal, which `name_of` turns into the name after `finish`."""

    def __init__(self, folder: str, parent: Tree, codec_id: int, ship: Callable[[str, bytes], None]) -> None:
        """`ship(name, bytes)` takes each full pack."""
        self._parent = parent
        self._codec = codec_id
        self._ship = ship
        self._dedup = Dedup(folder)
        self._parent_is_known = False
        self._names: list[bytes] = []
        self._writer = PackWriter(codec_id)
        self.new_bytes = 0
        """Raw bytes of chunks that went into packs."""

    def save(self, raw: bytes, known: dict[bytes, Chunk]) -> Chunk:
        """Where `raw` lies, or will. `known`: the chunks that the file had."""
        sha256 = hashlib.sha256(raw).digest()
        chunk = known.get(sha256) or self._dedup.find(sha256)
        if chunk is None and not self._parent_is_known and self.new_bytes + len(raw) > FREE_BYTES:
            self._learn_parent()
            chunk = self._dedup.find(sha256)
        if chunk is not None:
            return chunk
        packed = self._writer.add(raw, sha256)
        ordinal = (len(self._names) + 1).to_bytes(_ORDINAL_BYTES, "little")
        chunk = Chunk(ordinal.ljust(32, b"\0"), sha256, packed.offset, packed.stored, packed.raw)
        self._dedup.add(chunk)
        self.new_bytes += len(raw)
        if self._writer.is_full:
            self._close_pack()
        return chunk

    def _learn_parent(self) -> None:
        self._parent_is_known = True
        for _, body in self._parent.encoded():
            for chunk in chunks_in(body):
                self._dedup.add(chunk)

    def _close_pack(self) -> None:
        data = self._writer.finish()
        digest = hashlib.sha256(data)
        self._names.append(digest.digest())
        self._writer = PackWriter(self._codec)
        self._ship(digest.hexdigest(), data)

    def finish(self) -> None:
        if len(self._writer) > len(PackWriter(codec.STORED)):
            self._close_pack()
        self._dedup.close()

    def name_of(self, pack: bytes) -> bytes:
        """The name of a pack of this run by its ordinal; any other pack is its own name."""
        if any(pack[_ORDINAL_BYTES:]):
            return pack
        return self._names[int.from_bytes(pack[:_ORDINAL_BYTES], "little") - 1]


class Reader:
    """Makes rows of what a scan found."""

    def __init__(self, base: bytes, packer: Packer, names: attributes.Names) -> None:
        self.directories = Directories(base)
        self._packer = packer
        self._names = names
        self.fuzzy: list[bytes] = []
        """Paths whose rows are not of now. They are to be read again, whatever stat says."""
        self.problems: list[str] = []

    def row(self, put: Put, before: Row | None) -> Row | None:
        """The row of what is at `put.path` now. None: nothing is, or nothing that is saved. `before`: its row in the parent."""
        try:
            return self._row(put, before)
        except (Gone, FileNotFoundError):
            return None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE, errno.ELOOP, errno.ENOTDIR):
                return None
            self.fuzzy.append(put.path)
            self.problems.append(f"/{os.fsdecode(put.path)} cannot be read: {error.strerror}")
            # A row that was a further link says nothing without the one it leads to, which may be another file by now.
            return before._replace(fuzzy=before.type == FILE) if before is not None and not before.link else None

    def _row(self, put: Put, before: Row | None) -> Row | None:
        directory = self.directories.of(put)
        name = os.path.basename(put.path)
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if stat.S_ISREG(status.st_mode) and not put.leader:
            return self._file(put.path, directory, name, before)
        if stat.S_IFMT(status.st_mode) not in (stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO):
            return None
        row = attributes.read(put.path, directory, name, status, self._names)
        return row._replace(link=put.leader, target=b"") if put.leader else row

    def _file(self, path: bytes, directory: int, name: bytes, before: Row | None) -> Row | None:
        had = before is not None and before.type == FILE and not before.link
        known = {chunk.sha256: chunk for chunk in before.chunks if not chunk.is_hole} if before is not None else {}
        row: Row | None = None
        for _ in range(READS):
            descriptor = _opened(directory, name)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return None
                row = attributes.read(path, directory, name, status, self._names)
                chunks = tuple(self._chunks(descriptor, status, known))
                row = row._replace(chunks=chunks, size=sum(chunk.raw for chunk in chunks))
                after = os.fstat(descriptor)
            finally:
                os.close(descriptor)
            if _moment(status) == _moment(after) and row.size == status.st_size:
                return row
            known.update((chunk.sha256, chunk) for chunk in chunks if not chunk.is_hole)
        self.fuzzy.append(path)
        if before is not None and had:
            return before._replace(fuzzy=True)
        return row._replace(fuzzy=True) if row is not None else None

    def _chunks(self, descriptor: int, status: os.stat_result, known: dict[bytes, Chunk]) -> Iterator[Chunk]:
        is_sparse = status.st_blocks * 512 < status.st_size
        for begin, end, is_hole in _extents(descriptor, status.st_size) if is_sparse else [(0, status.st_size, False)]:
            if is_hole:
                yield hole(end - begin)
                continue
            for raw in chunking.chunks_of(_reading(descriptor, begin, end)):
                yield self._packer.save(raw, known)


def _opened(directory: int, name: bytes) -> int:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        return os.open(name, flags, dir_fd=directory)


def _moment(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _reading(descriptor: int, begin: int, end: int) -> Callable[[int], bytes]:
    place = begin

    def read(length: int) -> bytes:
        nonlocal place
        data = os.pread(descriptor, min(length, end - place), place)
        place += len(data)
        return data

    return read


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """(begin, end, is a hole) of a file, without a gap."""
    place = 0
    while place < size:
        try:
            data = min(os.lseek(descriptor, place, os.SEEK_DATA), size)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size
        if data > place:
            yield place, data, True
        if data < size:
            place = min(os.lseek(descriptor, data, os.SEEK_HOLE), size)
            yield data, place, False
        else:
            place = size
