"""The seal of the local extent map: a checksum of every page of its file, written when it is closed in order.

One rule: a file without a seal that holds is not opened. LMDB trusts its own pages: a flipped bit in one of them may hide
extents, which would read as zeros, or crash the process. The map can always be had from the bucket, so whatever is not
proven whole is thrown away. Format: docs/formats/extent-map.md.
"""

import os
import struct
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from blockdev.checksum import block_checksums, crc32c
from blockdev.errors import CorruptFormat
from blockdev.units import BLOCK_BYTES, MIB

MAGIC = b"BWMAPSEL"
VERSION = 1
_HEAD = struct.Struct("<8sIIQ32s")
_CRC = struct.Struct("<I")
_READ_BYTES = 4 * MIB


class Seal(NamedTuple):
    """Of whom the map is, how long its file was, and the CRC32C of each 4 KiB of it (the last may be shorter)."""

    owner: bytes
    size_bytes: int
    pages: list[int]


def encode(seal: Seal) -> bytes:
    body = _HEAD.pack(MAGIC, VERSION, BLOCK_BYTES, seal.size_bytes, seal.owner)
    body += struct.pack(f"<{len(seal.pages)}I", *seal.pages)
    return body + _CRC.pack(crc32c(body))


def decode(blob: bytes) -> Seal:
    """Raises CorruptFormat."""
    what = "seal of the extent map"
    if len(blob) < _HEAD.size + _CRC.size:
        raise CorruptFormat("cut short", what=what)
    body = memoryview(blob)[: -_CRC.size]
    if _CRC.unpack_from(blob, len(body))[0] != crc32c(body):
        raise CorruptFormat("checksum does not hold", what=what)
    magic, version, page_bytes, size, owner = _HEAD.unpack_from(body)
    if magic != MAGIC or version != VERSION or page_bytes != BLOCK_BYTES:
        raise CorruptFormat(f"is not a seal of version {VERSION}", what=what)
    count = -(-size // BLOCK_BYTES)
    if len(body) != _HEAD.size + 4 * count:
        raise CorruptFormat("has the wrong length", what=what)
    return Seal(owner, size, list(struct.unpack_from(f"<{count}I", body, _HEAD.size)))


def owner_digest(owner: str) -> bytes:
    return sha256(owner.encode()).digest()


def seal_file(path: Path, seal: Path, owner: str) -> None:
    """Write the seal of `path`, which must be durable already and written by nobody. A crash: no seal, or a whole one."""
    pages: list[int] = []
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ_BYTES):
            pages += block_checksums([chunk])
        size = file.tell()
    temporary = seal.with_name(f"{seal.name}.new")
    with temporary.open("wb") as out:
        out.write(encode(Seal(owner_digest(owner), size, pages)))
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, seal)


def verify_file(path: Path, seal: Path, owner: str) -> None:
    """Raises CorruptFormat naming the first page and its offset where `path` is not what was sealed, FileNotFoundError
    without a seal. Reads all of the file, at the speed of the disk."""
    found = decode(seal.read_bytes())
    if found.owner != owner_digest(owner):
        raise CorruptFormat("is of another volume", what=str(seal))
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size != found.size_bytes:
            raise CorruptFormat(f"has {size} bytes instead of {found.size_bytes}", what=str(path))
        page = 0
        while chunk := file.read(_READ_BYTES):
            checksums = block_checksums([chunk])
            expected = found.pages[page : page + len(checksums)]
            if checksums != expected:
                pairs = zip(checksums, expected, strict=True)
                page += next(index for index, (now, then) in enumerate(pairs) if now != then)
                raise CorruptFormat(f"page {page} is damaged", what=str(path), offset=page * BLOCK_BYTES)
            page += len(checksums)
