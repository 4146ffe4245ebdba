"""A qcow2 image written from front to back, over a function that writes a piece of its file.

One rule: the header comes last. Until then the file begins with zeros and no program takes it for an image.

The order in the file: a cluster for the header, the first table, then data and, behind each stretch of data, the second
table that names it; at the end the reference counts. In memory: one cluster, one second table, the first table, two
blocks of counts.
"""

import zlib
from array import array
from collections.abc import Callable, Sequence
from sys import byteorder

import zstandard

from blockdev.qcow2 import format as qcow2
from blockdev.qcow2.format import COPIED, Compression

Buffer = bytes | bytearray | memoryview
Pwrite = Callable[[int, Buffer], None]
"""(offset, data): write there; what is never written reads as zeros."""

CLUSTER_BITS = 16
_ZLIB_WINDOW_BITS = -12
"""QEMU unpacks with a window of 4 KiB."""


def _big_endian(code: str, values: Sequence[int]) -> bytes:
    table = array(code, values)
    if byteorder == "little":
        table.byteswap()
    return table.tobytes()


class Qcow2Writer:
    """`write` with rising offsets, then `finish`. Clusters of zeros cost nothing. `compression`: None stores plainly."""

    def __init__(
        self,
        pwrite: Pwrite,
        size_bytes: int,
        *,
        compression: Compression | None = None,
        cluster_bits: int = CLUSTER_BITS,
    ) -> None:
        self._pwrite = pwrite
        self._size = size_bytes
        self._bits = cluster_bits
        self._bytes = 1 << cluster_bits
        self._compression = compression
        self._zstd = zstandard.ZstdCompressor(level=3, write_checksum=False)
        self._per_table = self._bytes // 8
        self._per_block = self._bytes * 8 >> qcow2.REFCOUNT_ORDER
        self._l1 = [0] * qcow2.l1_entries(size_bytes, cluster_bits)
        self._l2 = [0] * self._per_table
        self._l2_index = -1
        self._next = 0
        self._counts: dict[int, array[int]] = {}
        self._blocks: list[int] = []
        """Where the written blocks of counts are."""
        self._cluster = -1
        self._content = bytearray(self._bytes)
        self._packed = 0
        """Where the next compressed cluster goes on, when that is in the last cluster of the file."""
        self._allocate(1)
        self._l1_offset = self._allocate(-(-len(self._l1) * 8 // self._bytes))

    # --- places ------------------------------------------------------------------------------------------------------

    def _allocate(self, clusters: int) -> int:
        """Offset of that many new clusters, each counted once."""
        first = self._next
        self._next += clusters
        for cluster in range(first, self._next):
            self._count(cluster)
        # A block whose clusters all have been given out changes no more, but for the last, which may be packed into.
        while len(self._counts) > 2:
            self._write_block()
        return first << self._bits

    def _count(self, cluster: int) -> None:
        block, place = divmod(cluster, self._per_block)
        if block not in self._counts:
            self._counts[block] = array("H", bytes(2 * self._per_block))
        self._counts[block][place] += 1

    def _write_block(self) -> None:
        number = min(self._counts)
        assert number == len(self._blocks), "blocks are written in order"
        counts = self._counts.pop(number)
        # Its own place is in a later block, or it has been given out before (see finish).
        offset = self._next << self._bits
        self._next += 1
        self._count(self._next - 1)
        self._blocks.append(offset)
        self._pwrite(offset, _big_endian("H", counts))

    # --- content -----------------------------------------------------------------------------------------------------

    def write(self, offset: int, data: Buffer) -> None:
        """Content of the disk; calls come with rising offsets and do not overlap."""
        view = memoryview(data)
        while view:
            number, skip = divmod(offset, self._bytes)
            if number != self._cluster:
                self._flush_cluster()
                self._cluster = number
            size = min(self._bytes - skip, len(view))
            self._content[skip : skip + size] = view[:size]
            offset += size
            view = view[size:]

    def _flush_cluster(self) -> None:
        number, self._cluster = self._cluster, -1
        if number < 0 or self._content.count(0) == self._bytes:
            return
        index, place = divmod(number, self._per_table)
        if index != self._l2_index:
            self._flush_table()
            self._l2_index = index
        self._l2[place] = self._store()
        self._content = bytearray(self._bytes)

    def _store(self) -> int:
        """Write the cluster; its entry."""
        packed = self._compressed()
        if packed is None:
            offset = self._allocate(1)
            self._pwrite(offset, self._content)
            return offset | COPIED
        end = self._next << self._bits
        room = end - self._packed if self._packed > end - self._bytes else 0
        if not room:
            self._packed = self._allocate(1)
        else:
            self._count(self._next - 1)
            if len(packed) > room:
                self._allocate(1)
        offset = self._packed
        self._pwrite(offset, packed)
        self._packed += len(packed)
        return qcow2.packed_entry(offset, len(packed), self._bits)

    def _compressed(self) -> bytes | None:
        """None when it is stored plainly: asked to, or not worth it."""
        if self._compression is None:
            return None
        if self._compression is Compression.ZLIB:
            packer = zlib.compressobj(wbits=_ZLIB_WINDOW_BITS)
            packed = packer.compress(self._content) + packer.flush()
        else:
            packed = self._zstd.compress(self._content)
        return packed if len(packed) <= self._bytes - self._bytes // 16 else None

    def _flush_table(self) -> None:
        if self._l2_index < 0:
            return
        offset = self._allocate(1)
        self._pwrite(offset, _big_endian("Q", self._l2))
        self._l1[self._l2_index] = offset | COPIED
        self._l2 = [0] * self._per_table

    # --- end ---------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Write the tables, the counts, then the header."""
        self._flush_cluster()
        self._flush_table()
        self._pwrite(self._l1_offset, _big_endian("Q", self._l1))
        places: dict[int, int] = {}
        # The counts count themselves: places are given out until no block is without one.
        table_clusters = 0
        table_offset = 0
        while not table_clusters or any(number not in places for number in self._counts):
            for number in sorted(self._counts):
                if number not in places:
                    places[number] = self._next << self._bits
                    self._next += 1
                    self._count(self._next - 1)
            if not table_clusters:
                # One entry more than there are blocks now: the table itself may begin one, and hardly two.
                table_clusters = -(-(len(self._blocks) + len(self._counts) + 2) * 8 // self._bytes)
                table_offset = self._next << self._bits
                for _ in range(table_clusters):
                    self._count(self._next)
                    self._next += 1
        for number in sorted(self._counts):
            assert number == len(self._blocks), "blocks are written in order"
            self._blocks.append(places[number])
            self._pwrite(places[number], _big_endian("H", self._counts[number]))
        assert len(self._blocks) * 8 <= table_clusters * self._bytes
        table = _big_endian("Q", self._blocks)
        self._pwrite(table_offset, table + bytes(table_clusters * self._bytes - len(table)))
        header = qcow2.encode_header(
            size_bytes=self._size,
            cluster_bits=self._bits,
            l1_offset=self._l1_offset,
            refcounts_offset=table_offset,
            refcounts_clusters=table_clusters,
            compression=self._compression or Compression.ZLIB,
        )
        self._pwrite(0, header.ljust(self._bytes, b"\0"))
