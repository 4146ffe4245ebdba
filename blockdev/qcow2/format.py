"""qcow2 as bytes: the header and the entries of its tables, both ways. Pure.
Source: QEMU, docs/interop/qcow2.rst.

One rule: an image that this program would read wrongly is refused by name, with what to do; only one that contradicts
itself is called damaged.
"""

import struct
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from blockdev.errors import CorruptFormat, ImageRefused
from blockdev.units import MIB, TIB

MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_HEADER_3 = struct.Struct(">QQQII")
HEADER_BYTES_2 = _HEADER.size
HEADER_BYTES_3 = HEADER_BYTES_2 + _HEADER_3.size
HEADER_BYTES = HEADER_BYTES_3 + 8
"""Of the header that `encode_header` makes: with the compression type, padded to 8."""
assert (HEADER_BYTES_2, HEADER_BYTES_3) == (72, 104)
CLUSTER_BITS = range(9, 22)
SIZE_BYTES_MAX = 1024 * TIB
L1_BYTES_MAX = 32 * MIB
"""As in QEMU; a reader allocates no more for the table of tables."""
REFCOUNT_ORDER = 4
"""Of the images that are written: 16 bits."""

DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
"""Bits of the incompatible features."""
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
_OFFSET = 0x00FF_FFFF_FFFF_FE00
_CONVERT = "make a plain image of it first: qemu-img convert -O qcow2 OLD NEW"


class Compression(Enum):
    """The byte in the header."""

    ZLIB = 0
    ZSTD = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What a reader needs. `l1_entries` are those that the size calls for: the table may be longer."""

    version: int
    cluster_bits: int
    size_bytes: int
    l1_offset: int
    l1_entries: int
    compression: Compression

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_entries(self) -> int:
        """Entries in one table of the second level: it fills one cluster."""
        return self.cluster_bytes // 8


class Kind(Enum):
    NOTHING = 0
    """Not there, or zeros: reads as zeros (there is no backing file)."""
    PLAIN = 1
    PACKED = 2


class Cluster(NamedTuple):
    """Where a cluster's content is in the file. `length` counts for PACKED only: the bytes that may belong to it."""

    kind: Kind
    offset: int = 0
    length: int = 0


_NOTHING = Cluster(Kind.NOTHING)


def l1_entries(size_bytes: int, cluster_bits: int) -> int:
    """Entries of the first level for a disk of that size."""
    return -(-size_bytes >> (2 * cluster_bits - 3))


def parse_header(blob: bytes, *, what: str) -> Header:
    """Raises ImageRefused for what is not supported and for an image that says it is not in order, CorruptFormat for
    one that makes no sense. `blob` is the file's beginning, HEADER_BYTES at least if there are so many."""
    if len(blob) < HEADER_BYTES_2 or blob[:4] != MAGIC:
        raise CorruptFormat("not a qcow2 image", what=what, offset=0)
    (
        _magic,
        version,
        backing_offset,
        _backing_bytes,
        cluster_bits,
        size_bytes,
        crypt,
        l1_size,
        l1_offset,
        _refcounts_offset,
        _refcounts_clusters,
        _snapshots,
        _snapshots_offset,
    ) = _HEADER.unpack_from(blob)
    if version not in (2, 3):
        raise ImageRefused(f"{what} is a qcow image of version {version}; 2 and 3 are understood", hint=_CONVERT)
    compression = Compression.ZLIB
    if version == 3:
        compression = _parse_features(blob, what)
    if backing_offset:
        raise ImageRefused(f"{what} is only what changed over a backing file", hint=_CONVERT)
    if crypt:
        raise ImageRefused(f"{what} is encrypted", hint=f"{_CONVERT}, with --object secret for the old one")
    if cluster_bits not in CLUSTER_BITS:
        raise CorruptFormat(f"a cluster of 2^{cluster_bits} bytes makes no sense", what=what, offset=20)
    if not 0 < size_bytes <= SIZE_BYTES_MAX:
        raise ImageRefused(f"{what} is of a disk of {size_bytes} bytes; up to 1 PiB, and not empty, can be imported")
    wanted = l1_entries(size_bytes, cluster_bits)
    if wanted * 8 > L1_BYTES_MAX:
        raise ImageRefused(
            f"{what}: clusters of {1 << cluster_bits} bytes are too small for a disk of {size_bytes} bytes",
            hint=_CONVERT,
        )
    if l1_size < wanted:
        raise CorruptFormat(f"table of {l1_size} entries where the disk needs {wanted}", what=what, offset=36)
    if l1_offset % (1 << cluster_bits) or not l1_offset:
        raise CorruptFormat(f"its table cannot be at {l1_offset}", what=what, offset=40)
    return Header(version, cluster_bits, size_bytes, l1_offset, wanted, compression)


def _parse_features(blob: bytes, what: str) -> Compression:
    if len(blob) < HEADER_BYTES_3:
        raise CorruptFormat("header cut short", what=what, offset=0)
    incompatible, _compatible, _autoclear, _order, header_bytes = _HEADER_3.unpack_from(blob, HEADER_BYTES_2)
    if header_bytes < HEADER_BYTES_3:
        raise CorruptFormat(f"a header of {header_bytes} bytes makes no sense", what=what, offset=100)
    if incompatible & CORRUPT:
        raise ImageRefused(
            f"{what} is marked as corrupt", hint="look with qemu-img check, repair a copy with qemu-img check -r all"
        )
    if incompatible & DIRTY:
        raise ImageRefused(
            f"{what} is marked as in use: it was not closed, or a machine is running on it",
            hint="stop the machine; if none is running, qemu-img check -r all",
        )
    if incompatible & DATA_FILE:
        raise ImageRefused(f"{what} keeps its data in another file", hint=_CONVERT)
    if incompatible & EXTENDED_L2:
        raise ImageRefused(f"{what} has subclusters (extended_l2)", hint=_CONVERT)
    unknown = incompatible & ~(DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2)
    if unknown:
        raise ImageRefused(f"{what} has features this program does not know ({unknown:#x})", hint=_CONVERT)
    kind = blob[HEADER_BYTES_3] if header_bytes > HEADER_BYTES_3 and len(blob) > HEADER_BYTES_3 else 0
    if bool(incompatible & COMPRESSION) != bool(kind):
        raise CorruptFormat("compression type and feature bit contradict each other", what=what, offset=HEADER_BYTES_3)
    if kind not in (0, 1):
        raise ImageRefused(f"{what} is compressed in a way this program does not know ({kind})", hint=_CONVERT)
    return Compression(kind)


def encode_header(
    *,
    size_bytes: int,
    cluster_bits: int,
    l1_offset: int,
    refcounts_offset: int,
    refcounts_clusters: int,
    compression: Compression,
) -> bytes:
    """A header of version 3, without extensions (what follows it has to be zeros)."""
    first = _HEADER.pack(
        MAGIC,
        3,
        0,
        0,
        cluster_bits,
        size_bytes,
        0,
        l1_entries(size_bytes, cluster_bits),
        l1_offset,
        refcounts_offset,
        refcounts_clusters,
        0,
        0,
    )
    features = 0 if compression is Compression.ZLIB else COMPRESSION
    second = _HEADER_3.pack(features, 0, 0, REFCOUNT_ORDER, HEADER_BYTES)
    return first + second + bytes([compression.value]).ljust(8, b"\0")


def parse_l1(entry: int, header: Header, *, what: str) -> int:
    """Where the table of the second level is; 0: there is none. Raises CorruptFormat."""
    offset = entry & _OFFSET
    if entry & ~(_OFFSET | COPIED) or offset % header.cluster_bytes:
        raise CorruptFormat(f"entry {entry:#018x} of the first table makes no sense", what=what)
    return offset


def parse_l2(entry: int, header: Header, *, what: str) -> Cluster:
    """Raises CorruptFormat."""
    if not entry:
        return _NOTHING
    if entry & COMPRESSED:
        shift = 62 - (header.cluster_bits - 8)
        offset = entry & ((1 << shift) - 1)
        sectors = (entry >> shift & ((1 << header.cluster_bits - 8) - 1)) + 1
        return Cluster(Kind.PACKED, offset, sectors * 512 - offset % 512)
    offset = entry & _OFFSET
    if entry & ~(_OFFSET | COPIED | ZERO) or offset % header.cluster_bytes or (entry & ZERO and header.version < 3):
        raise CorruptFormat(f"entry {entry:#018x} of a second table makes no sense", what=what)
    return _NOTHING if entry & ZERO or not offset else Cluster(Kind.PLAIN, offset)


def packed_entry(offset: int, length: int, cluster_bits: int) -> int:
    """The entry of a compressed cluster: `length` bytes at `offset`."""
    sectors = (offset + length - 1) // 512 - offset // 512
    return COMPRESSED | sectors << 62 - (cluster_bits - 8) | offset
