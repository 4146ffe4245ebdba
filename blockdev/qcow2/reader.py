"""What a qcow2 image holds, over a function that reads a piece of its file.

One rule: bounded by the file and by the size its header names: tables are held a few at a time, a compressed cluster is
unpacked into one cluster at most, and more clusters than the file has room for are not believed.
"""

import threading
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator
from sys import byteorder

import zstandard

from blockdev.errors import CorruptFormat
from blockdev.qcow2 import format as qcow2
from blockdev.qcow2.format import Cluster, Compression, Kind
from blockdev.units import MIB

TABLES_BYTES_MAX = 8 * MIB
_WINDOW_BYTES_MAX = 32 * MIB
"""What a zstd stream may ask for; a cluster has 2 MiB at most."""

Pread = Callable[[int, int], bytes]
"""(offset, length) -> that piece of the file, shorter only at its end. Called from several threads at once."""


class Qcow2Reader:
    """The disk in an image of `file_bytes` bytes. Raises ImageRefused and CorruptFormat as `format.parse_header` does,
    CorruptFormat for tables that make no sense or lie outside the file. Safe to use from several threads."""

    def __init__(self, pread: Pread, file_bytes: int, *, what: str) -> None:
        self._pread = pread
        self._file_bytes = file_bytes
        self._what = what
        self.header = qcow2.parse_header(pread(0, qcow2.HEADER_BYTES), what=what)
        self.size_bytes = self.header.size_bytes
        self._l1 = self._table(self.header.l1_offset, self.header.l1_entries)
        self._lock = threading.Lock()
        self._tables: OrderedDict[int, array[int]] = OrderedDict()

    def _table(self, offset: int, entries: int) -> "array[int]":
        length = entries * 8
        blob = self._pread(offset, length) if offset + length <= self._file_bytes else b""
        if len(blob) != length:
            raise CorruptFormat("a table lies outside the file; is the image whole?", what=self._what, offset=offset)
        table = array("Q", blob)
        if byteorder == "little":
            table.byteswap()
        return table

    def _l2(self, index: int) -> "array[int] | None":
        """The second table under entry `index` of the first, None if there is none."""
        offset = qcow2.parse_l1(self._l1[index], self.header, what=self._what)
        if not offset:
            return None
        with self._lock:
            found = self._tables.get(offset)
            if found is not None:
                self._tables.move_to_end(offset)
                return found
        found = self._table(offset, self.header.l2_entries)
        with self._lock:
            self._tables[offset] = found
            while len(self._tables) * self.header.cluster_bytes > TABLES_BYTES_MAX:
                self._tables.popitem(last=False)
        return found

    def _cluster(self, entry: int) -> Cluster:
        found = qcow2.parse_l2(entry, self.header, what=self._what)
        if found.kind is not Kind.NOTHING and found.offset >= self._file_bytes:
            raise CorruptFormat(
                "a cluster lies outside the file; is the image whole?", what=self._what, offset=found.offset
            )
        return found

    def ranges(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of what may hold something, in bytes, rising. Looks at every table: what is wrong with one is
        raised here, before anything is read."""
        header = self.header
        cluster_bytes = header.cluster_bytes
        covered = header.l2_entries * cluster_bytes
        plain = packed = tables = 0
        begin = end = 0
        for index in range(len(self._l1)):
            if not self._l1[index]:
                continue
            table = self._l2(index)
            if table is None:
                continue
            tables += 1
            if not any(table):
                continue
            count = min(header.l2_entries, -(-(self.size_bytes - index * covered) // cluster_bytes))
            for place in range(count):
                entry = table[place]
                if not entry:
                    continue
                kind = self._cluster(entry).kind
                if kind is Kind.NOTHING:
                    continue
                plain += kind is Kind.PLAIN
                packed += kind is Kind.PACKED
                at = index * covered + place * cluster_bytes
                if at != end:
                    if end > begin:
                        yield begin, end
                    begin = at
                end = at + cluster_bytes
            # A table or plain cluster has its place to itself, a packed one has some bytes.
            if (tables + plain) * cluster_bytes + packed > self._file_bytes + cluster_bytes:
                raise CorruptFormat("names more clusters than the file has room for", what=self._what)
        if end > begin:
            yield begin, min(end, self.size_bytes)

    def read(self, offset: int, length: int) -> bytearray:
        """`length` bytes of the disk from `offset`; zeros beyond its end."""
        result = bytearray(length)
        cluster_bytes = self.header.cluster_bytes
        at, end = offset, min(offset + length, self.size_bytes)
        while at < end:
            number, skip = divmod(at, cluster_bytes)
            index, place = divmod(number, self.header.l2_entries)
            table = self._l2(index)
            if table is None:
                at = (index + 1) * self.header.l2_entries * cluster_bytes
                continue
            size = min(cluster_bytes - skip, end - at)
            found = self._cluster(table[place])
            if found.kind is Kind.PLAIN:
                # Neighbours on the disk that are neighbours in the file are read at once.
                while at + size < end and place + 1 < len(table):
                    place += 1
                    following = self._cluster(table[place])
                    if following != (Kind.PLAIN, found.offset + skip + size, 0):
                        break
                    size += min(cluster_bytes, end - at - size)
                data = self._pread(found.offset + skip, size)
                if len(data) != size:
                    raise CorruptFormat("cut short; is the image whole?", what=self._what, offset=found.offset)
                result[at - offset : at - offset + size] = data
            elif found.kind is Kind.PACKED:
                data = self._unpack(found)
                result[at - offset : at - offset + size] = memoryview(data)[skip : skip + size]
            at += size
        return result

    def _unpack(self, cluster: Cluster) -> bytes:
        size = self.header.cluster_bytes
        packed = self._pread(cluster.offset, cluster.length)
        try:
            if self.header.compression is Compression.ZLIB:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size)
            else:
                unpacker = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES_MAX)
                with unpacker.stream_reader(packed) as stream:
                    data = stream.read(size)
        except (zlib.error, zstandard.ZstdError) as error:
            raise CorruptFormat(f"does not unpack: {error}", what=self._what, offset=cluster.offset) from error
        if len(data) != size:
            raise CorruptFormat(
                f"unpacks to {len(data)} bytes, not to a cluster", what=self._what, offset=cluster.offset
            )
        return data
