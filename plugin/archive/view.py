"""An archive in a bucket, read in part: guest configuration, list, one file, one disk, check; by ranges and its index.

How much a part costs depends on the compression. Of a plain archive, and of zstd in frames (the seekable format), about its
own size is fetched. A single zstd frame or gzip member, which is what vzdump's compressors write, can only be decompressed
from its beginning: the list is free, a file costs what lies before it. `PlainReader.cost` says so beforehand.

One rule: memory is a window, a block and a few MiB, whatever an archive or an index says.
"""

import bisect
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import zstandard

from plugin.archive import lzo, tar, zstd_frames
from plugin.archive.compression import WINDOW_BYTES_PATIENT, Entrance, decoder, detect
from plugin.archive.errors import BadArchive, IndexDamaged, NoIndex, NotInArchive
from plugin.archive.index import MEMBERS, RUNS, ArchiveIndex, Disk, Facts
from plugin.archive.indexer import Indexer, name_of
from plugin.archive.streams import Ranges, steps
from plugin.archive.tar import Member
from plugin.archive.vma import BLOCK_BYTES, CLUSTER_BYTES, FULL, Run

HEAD_STEP = 128 << 10
HEAD_BYTES_MAX = 32 << 20
"""Of the object, to find a configuration without an index: headers of VMA are below 16 MiB, and do not compress to more."""
READ_BYTES = 4 << 20
_MAKE_INDEX = "make an index first: pve-s3 archive index"


@dataclass(frozen=True, slots=True)
class Checked:
    """`bad` are (first byte, bytes) of pieces that are not what was uploaded."""

    pieces: int
    looked_at: int
    bytes: int
    bad: tuple[tuple[int, int], ...]


class PlainReader:
    """The archive as it is without its compression, at any byte of it. Reading forward goes on where it was; anything else
    begins at the nearest point before. One thread at a time."""

    def __init__(
        self,
        ranges: Ranges,
        compression: str,
        points: list[tuple[int, int]],
        entrances: Sequence[Entrance] = (),
        history: Callable[[int], bytes] = lambda number: b"",
    ) -> None:
        """`history` gives what belongs to an entrance, by its number in `entrances`."""
        self._ranges = ranges
        self._compression = compression
        self._points = points or [(0, 0)]
        self._plains = [plain for _, plain in self._points]
        self._entrances = entrances
        self._doors = [entrance.plain for entrance in entrances]
        self._history = history
        self._limit = 0
        """Up to where in the archive `_stream` may be read."""
        self._lzop_flags: int | None = None
        self._stream: Iterator[bytes | memoryview] = iter(())
        self._at = -1
        """Where in the archive `_held` begins."""
        self._held: bytes | memoryview = b""

    @property
    def places(self) -> int:
        """Where decompression may begin: how many."""
        return len(self._points) + len(self._entrances)

    def cost(self, start: int, end: int) -> int:
        """About how many bytes of the object must be fetched for these of the archive; for compressed ones that have no
        point behind them, up to its end."""
        if not self._compression:
            return end - start
        first = self._nearest(start)[0]
        behind = []
        if (at := bisect.bisect_left(self._plains, end)) < len(self._points):
            behind.append(self._points[at][0])
        if (at := bisect.bisect_left(self._doors, end)) < len(self._doors):
            behind.append(self._entrances[at].stored)
        return min(behind, default=self._ranges.size) - first

    def _nearest(self, start: int) -> tuple[int, int, int]:
        """(byte of the object, of the archive, number of the entrance or -1) from which `start` is reached the soonest."""
        stored, plain = self._points[bisect.bisect_right(self._plains, start) - 1]
        number = bisect.bisect_right(self._doors, start) - 1
        if number >= 0 and self._doors[number] > plain and self._entrances[number].until > start:
            return self._entrances[number].stored, self._doors[number], number
        return stored, plain, -1

    def read(self, start: int, length: int) -> bytes:
        """Fewer bytes at the end of the archive, none beyond. BadArchive."""
        if not self._compression:
            return self._ranges.read(start, length)
        out = bytearray()
        nearest = self._nearest(start)
        if not 0 <= self._at <= start or nearest[1] > self._at + len(self._held):
            self._begin(nearest)
        while len(out) < length:
            if start + len(out) >= self._limit:
                self._begin(self._nearest(start + len(out)))
            if start + len(out) >= self._at + len(self._held):
                self._at += len(self._held)
                self._held = next(self._stream, b"")
                if not self._held:
                    break
                continue
            place = start + len(out) - self._at
            most = min(length - len(out), self._limit - start - len(out))
            out += self._held[place : place + most]
        return bytes(out)

    def _begin(self, nearest: tuple[int, int, int]) -> None:
        point, number = nearest[:2], nearest[2]
        if number >= 0:
            entrance = self._entrances[number]
            self._limit = entrance.until
            try:
                inside = decoder(
                    self._compression,
                    window_max=WINDOW_BYTES_PATIENT,
                    entrance=(entrance, self._history(number)),
                )
            except zstandard.ZstdError as error:
                raise IndexDamaged(f"an entrance of the index cannot be used: {error}") from None
            self._stream = (
                plain
                for data in steps(self._ranges, point[0], self._ranges.size)
                for plain in inside.feed(data)
                if plain
            )
            self._at, self._held = point[1], b""
            return
        self._limit = 1 << 63
        if self._compression == "lzo" and point != (0, 0) and self._lzop_flags is None:
            header = lzo.decode_header(self._ranges.read(0, lzo.HEADER_BYTES_MAX))
            self._lzop_flags = header.flags if header is not None else 0
        engine = decoder(
            self._compression,
            start=point,
            window_max=WINDOW_BYTES_PATIENT,
            lzop_flags=self._lzop_flags if point != (0, 0) else None,
        )
        self._stream = (
            plain for data in steps(self._ranges, point[0], self._ranges.size) for plain in engine.feed(data) if plain
        )
        self._at, self._held = point[1], b""


class ArchiveView:
    """An archive and, where there is one, its index. `etag` is that of the archive as it is now: an index of another object
    is not used, and `stale` says so."""

    def __init__(self, ranges: Ranges, index: ArchiveIndex | None = None, *, etag: str = "") -> None:
        self.stale = False
        if index is not None:
            facts = index.facts
            self.stale = facts.size != ranges.size or bool(etag and facts.etag and facts.etag != etag)
        self.index = None if self.stale else index
        self._ranges = ranges
        self._facts: Facts | None = self.index.facts if self.index is not None else None
        self._plain: PlainReader | None = None

    @property
    def facts(self) -> Facts:
        """Of the index; else what the head of the archive tells, read by ranges."""
        if self._facts is None:
            self._facts = read_head(self._ranges)
        return self._facts

    @property
    def plain(self) -> PlainReader:
        if self._plain is None:
            compression = self.facts.compression
            points = list(self.index.points()) if self.index is not None and compression else []
            if points and (points[0][1] or points[-1][0] > self._ranges.size):
                raise IndexDamaged("the index names places that the archive does not have")
            if compression == "zstd" and len(points) < 2:
                points = seek_points(self._ranges) or points
            entrances: list[Entrance] = []
            if self.index is not None and compression == "zstd":
                entrances = list(self.index.entrances())
                if any(each.stored > self._ranges.size for each in entrances[-1:]):
                    raise IndexDamaged("the index names places that the archive does not have")
            history = self.index.history if self.index is not None else lambda number: b""
            self._plain = PlainReader(self._ranges, compression, points, entrances, history)
        return self._plain

    def configs(self) -> tuple[tuple[str, bytes], ...]:
        """(name, content) of the files that vzdump put beside the data: the guest's configuration, its firewall."""
        return self.facts.configs

    def guest_config(self) -> str:
        """What PVE shows as the configuration of a backup. NotInArchive where it has none."""
        for name, data in self.configs():
            if name in ("qemu-server.conf", "etc/vzdump/pct.conf"):
                return data.decode(errors="replace")
        note = f": {self.facts.note}" if self.facts.note else ""
        raise NotInArchive(f"there is no guest configuration in this archive{note}")

    # --- containers ---------------------------------------------------------------------------------------------------

    def members(self) -> Iterator[Member]:
        """All of a tar archive, in its order. NoIndex."""
        if self.index is None or not self.index.has(MEMBERS):
            why = self.facts.note if self.index is not None else ""
            raise NoIndex(f"the files of this archive are not known{f' ({why})' if why else ''}; {_MAKE_INDEX}")
        if self.facts.kind != "tar":
            raise NoIndex("this is no archive of a container; `show` says what is in it")
        return self.index.members()

    def ls(self, path: str = "", *, deep: bool = False) -> Iterator[Member]:
        """What lies in a directory, or the one member that `path` names; with `deep`, all below. The order of the archive.
        NotInArchive where there is neither."""
        wanted = name_of(path)
        found = wanted == ""
        for member in self.members():
            name = name_of(member.path)
            if name == wanted:
                found = True
                if member.kind != "dir":
                    yield member
            elif not wanted or name.startswith(wanted + "/"):
                found = True
                if deep or "/" not in name[len(wanted) + bool(wanted) :]:
                    yield member
        if not found:
            raise NotInArchive(f"{path}: no such file in the archive")

    def member(self, path: str) -> Member:
        """The file to read for a path: the last one of that name, as tar would leave it; of a hard link what it links to.
        NotInArchive."""
        wanted = name_of(path)
        found: Member | None = None
        for _ in range(2):
            for member in self.members():
                if name_of(member.path) == wanted:
                    found = member
            if found is None or found.kind != "hardlink":
                break
            wanted, found = name_of(found.link), None
        if found is None or found.kind == "hardlink":
            raise NotInArchive(f"{path}: no such file in the archive")
        return found

    def extract(self, member: Member, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of a file's content, ascending, from offset `start` on; what lies between is zeros. NotInArchive
        where it is no file. BadArchive."""
        if member.kind != "file":
            what = f"a symbolic link to {member.link}" if member.kind == "symlink" else f"a {member.kind}, not a file"
            raise NotInArchive(f"{member.path} is {what}")
        segments: tuple[tuple[int, int], ...] = ((0, member.stored),)
        if member.sparse:
            segments = self._again(member).segments or ()
        at = member.end - tar_padded(member.stored)
        for offset, length in segments:
            skip = min(max(start - offset, 0), length)
            done = skip
            while done < length:
                data = self.plain.read(at + done, min(READ_BYTES, length - done))
                if not data:
                    raise BadArchive(f"the archive ends within {member.path}", at + done)
                yield offset + done, data
                done += len(data)
            at += length

    def subtree(self, path: str) -> Iterator[bytes]:
        """A tar archive of a file or a directory with all below, byte for byte as it stands in the archive, with ACLs,
        attributes and sparse maps. NotInArchive."""
        wanted = name_of(path)
        found = False
        for member in self.members():
            name = name_of(member.path)
            if name == wanted or not wanted or name.startswith(wanted + "/"):
                found = True
                yield from self._bytes(member.start, member.end)
        if not found:
            raise NotInArchive(f"{path}: no such file in the archive")
        yield bytes(2 * tar.BLOCK_BYTES)

    def _again(self, member: Member) -> Member:
        """A member with its sparse map, which is read from the archive."""
        scanner = tar.Scanner(member.start)
        for data in self._bytes(member.start, member.end):
            for found in scanner.feed(data):
                if found.data_at == member.data_at and found.stored == member.stored:
                    return found
        raise BadArchive(f"the headers of {member.path} are not those that the index saw", member.start)

    def _bytes(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            data = self.plain.read(start, min(READ_BYTES, end - start))
            if not data:
                raise BadArchive("the archive ends too early", start)
            yield data
            start += len(data)

    # --- machines -----------------------------------------------------------------------------------------------------

    def disks(self) -> tuple[Disk, ...]:
        return self.facts.disks

    def disk(self, name: str) -> "DiskReader":
        """By its name (`drive-scsi0`, or `scsi0`). NotInArchive, NoIndex."""
        if self.facts.kind != "vma":
            raise NotInArchive("this is no archive of a virtual machine; it has no disks")
        for each in self.facts.disks:
            if name in (each.name, each.name.removeprefix("drive-")):
                if self.index is None or not self.index.has(RUNS):
                    raise NoIndex(f"it is not known where {each.name} lies in the archive; {_MAKE_INDEX}")
                return DiskReader(self.plain, self.index, each)
        raise NotInArchive(f"{name}: no such disk; there are {', '.join(each.name for each in self.facts.disks)}")

    # --- all ----------------------------------------------------------------------------------------------------------

    def check(
        self,
        sample: float = 1.0,
        *,
        dice: random.Random | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Checked:
        """Reads that share of the pieces (at least one; the first and the last are always among them) and compares them
        with what was uploaded. `progress` is told pieces. NoIndex."""
        if self.index is None:
            raise NoIndex(
                f"there is {'no index of this object, but of another one of its name' if self.stale else 'no index'}, "
                f"so nothing to compare with; {_MAKE_INDEX}"
            )
        size, step = self.facts.size, self.facts.piece_bytes
        count = -(-size // step)
        wanted = set(range(count))
        if sample < 1 and count > 2:
            most = max(1, round(sample * count))
            wanted = {0, count - 1, *(dice or random.Random()).sample(range(count), most)}
        bad, done, read = [], 0, 0
        number = -1
        for number, digest in enumerate(self.index.pieces()):
            if number not in wanted:
                continue
            start, length = number * step, min(step, size - number * step)
            engine, got = hashlib.sha256(), 0
            while got < length:
                data = self._ranges.read(start + got, min(READ_BYTES, length - got))
                if not data:
                    break
                engine.update(data)
                got += len(data)
            read += got
            if engine.digest() != digest:
                bad.append((start, length))
            done += 1
            progress(done, len(wanted))
        if number + 1 != count:
            raise NoIndex(f"the index has hashes of {number + 1} pieces, the object {count}; {_MAKE_INDEX}")
        return Checked(count, done, read, tuple(bad))


class DiskReader:
    """One disk of a VMA as a raw image, by ranges. `size` is in bytes."""

    def __init__(self, plain: PlainReader, index: ArchiveIndex, disk: Disk) -> None:
        self.size = disk.size
        self.name = disk.name
        self._plain = plain
        self._index = index
        self._disk = disk
        self._map: tuple[list[int], list[Run]] | None = None

    def runs(self) -> Iterator[Run]:
        """In the order of the archive."""
        return (run for run in self._index.runs() if run.device == self._disk.number)

    @property
    def stored(self) -> int:
        """Bytes of the disk that are in the archive."""
        return sum(run.stored for run in self.runs())

    def pieces(self, start_at: int = 0) -> Iterator[tuple[int, int, bytes]]:
        """(byte of the archive behind it, offset on the disk, bytes) of all that is not zeros, in the order of the archive,
        which is the cheap one; only what lies at or behind byte `start_at` of the archive, so that an extraction can be
        resumed with the first number of the last piece that it has."""
        for run in self.runs():
            if run.at + run.stored <= start_at:
                continue
            data = self._plain.read(run.at, run.stored)
            if len(data) < run.stored:
                raise BadArchive(f"the archive ends within disk {self.name}", run.at)
            for offset, place, length in _parts(run):
                if offset < self.size:
                    piece = data[place : place + min(length, self.size - offset)]
                    yield run.at + place + length, offset, piece

    def read(self, offset: int, length: int) -> bytes:
        """Of the raw image, zeros included; fewer at its end."""
        length = max(0, min(length, self.size - offset))
        out = bytearray(length)
        firsts, runs = self._clusters()
        place = max(0, bisect.bisect_right(firsts, offset // CLUSTER_BYTES) - 1)
        for number in range(place, len(runs)):
            run = runs[number]
            if run.cluster * CLUSTER_BYTES >= offset + length:
                break
            for begin, at, size in _parts(run):
                low, high = max(begin, offset), min(begin + size, offset + length)
                if low < high:
                    data = self._plain.read(run.at + at + low - begin, high - low)
                    if len(data) < high - low:
                        raise BadArchive(f"the archive ends within disk {self.name}", run.at)
                    out[low - offset : high - offset] = data
        return bytes(out)

    def _clusters(self) -> tuple[list[int], list[Run]]:
        """The runs by place on the disk; about 200 bytes of memory for each 4 MiB that are stored."""
        if self._map is None:
            runs = sorted(self.runs(), key=lambda run: run.cluster)
            for one, other in pairwise(runs):
                if one.cluster + one.count > other.cluster:
                    raise BadArchive(f"a cluster of disk {self.name} is in the archive twice", other.at)
            self._map = [run.cluster for run in runs], runs
        return self._map


def _parts(run: Run) -> Iterator[tuple[int, int, int]]:
    """(offset on the disk, offset in the run's stored bytes, bytes)."""
    if run.mask == FULL:
        yield run.cluster * CLUSTER_BYTES, 0, run.count * CLUSTER_BYTES
        return
    place = 0
    for number in range(run.count):
        begin, length = 0, 0
        for block in range(17):
            if run.mask >> block & 1:
                begin = begin if length else block
                length += BLOCK_BYTES
            elif length:
                yield (run.cluster + number) * CLUSTER_BYTES + begin * BLOCK_BYTES, place, length
                place += length
                length = 0


def tar_padded(size: int) -> int:
    return -(-size // tar.BLOCK_BYTES) * tar.BLOCK_BYTES


def read_head(ranges: Ranges) -> Facts:
    """What the first bytes of an archive tell, without an index: its kind, compression, configuration and disks. Reads
    128 KiB, and more only as long as the head is not whole."""
    indexer = Indexer(deep=False, window_max=WINDOW_BYTES_PATIENT)
    at = 0
    while at < min(ranges.size, HEAD_BYTES_MAX) and not indexer.head_done and not indexer.note:
        data = ranges.read(at, HEAD_STEP)
        if not data:
            break
        indexer.feed(data)
        at += len(data)
    indexer.settle_head()
    short = at >= HEAD_BYTES_MAX and not indexer.configs and not indexer.note
    facts = indexer.facts()
    note = "the head of the archive is larger than is believed" if short else facts.note
    return replace(facts, size=ranges.size, plain_size=None, complete=False, note=note)


def seek_points(ranges: Ranges) -> list[tuple[int, int]]:
    """Of zstd in the seekable format: points from the table at its end; [] where there is none or it does not fit."""
    size = zstd_frames.seek_table_size(ranges.read(max(0, ranges.size - 9), 9))
    if size is None or size > min(ranges.size, 64 << 20):
        return []
    data = bytearray()
    while len(data) < size:
        more = ranges.read(ranges.size - size + len(data), size - len(data))
        if not more:
            return []
        data += more
    try:
        rows = zstd_frames.decode_seek_table(bytes(data))
    except BadArchive:
        return []
    points, stored, plain = [], 0, 0
    for its_stored, its_plain in rows:
        points.append((stored, plain))
        stored += its_stored
        plain += its_plain
    return points if stored + size == ranges.size and detect(ranges.read(0, 16)) == "zstd" else []
