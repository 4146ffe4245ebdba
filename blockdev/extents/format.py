"""Map keys and values as bytes. Format: docs/formats/extent-map.md.

One rule: a value carries its own CRC32C, which covers the key too: a value found under another extent does not parse.
"""

import struct
from typing import NamedTuple

from crc32c import crc32c

from blockdev.errors import CorruptFormat
from blockdev.segments.paths import ContainerRef

KEY = struct.Struct(">Q")
_HEAD = struct.Struct("<IBBH")
_BASE = struct.Struct("<QIQ")
_PATCH = struct.Struct("<HHIIQIH")
PATCH_BYTES = _PATCH.size
_HAS_BASE = 0x01


class Base(NamedTuple):
    """The extent's object: `paths.extent(extent, gen, epoch)`, stored length codes of its frames, its digest."""

    gen: int
    epoch: int
    digest: int
    lengths: bytes


class Patch(NamedTuple):
    """Sectors [start, start + sectors) of the extent lie over the base. `offset`, `stored`: where in the container;
    stored == 0: zeros. The stored item may hold more sectors than show; its header says which."""

    start: int
    sectors: int
    offset: int
    stored: int
    gen: int
    epoch: int
    n: int

    @property
    def ref(self) -> ContainerRef:
        return ContainerRef(self.gen, self.epoch, self.n)


class ExtentValue(NamedTuple):
    base: Base | None
    patches: tuple[Patch, ...]


EMPTY = ExtentValue(None, ())


def encode(extent: int, value: ExtentValue) -> bytes:
    base = value.base
    parts = []
    if base is not None:
        parts += [_BASE.pack(base.gen, base.epoch, base.digest), base.lengths]
    parts += [_PATCH.pack(*patch) for patch in value.patches]
    body = b"".join(parts)
    frames = 0 if base is None else len(base.lengths)
    # 256 frames (4 MiB extents of 16 KiB frames) wrap to 0, which a base otherwise never has.
    tail = struct.pack("<BBH", _HAS_BASE if base is not None else 0, frames & 0xFF, len(value.patches)) + body
    return crc32c(tail, crc32c(KEY.pack(extent))).to_bytes(4, "little") + tail


def decode(extent: int, blob: bytes | memoryview) -> ExtentValue:
    """Raises CorruptFormat."""
    if len(blob) < _HEAD.size:
        raise CorruptFormat("map value cut short", what=f"extent map, extent {extent}")
    crc, flags, frames, count = _HEAD.unpack_from(blob)
    if crc32c(blob[4:], crc32c(KEY.pack(extent))) != crc:
        raise CorruptFormat("map value checksum does not hold", what=f"extent map, extent {extent}")
    at = _HEAD.size
    frames = (frames or 256) if flags & _HAS_BASE else 0
    if len(blob) != at + (_BASE.size + frames if frames else 0) + count * PATCH_BYTES:
        raise CorruptFormat("map value has the wrong length", what=f"extent map, extent {extent}")
    base = None
    if frames:
        gen, epoch, digest = _BASE.unpack_from(blob, at)
        at += _BASE.size
        base = Base(gen, epoch, digest, bytes(blob[at : at + frames]))
        at += frames
    return ExtentValue(base, tuple(map(Patch._make, _PATCH.iter_unpack(blob[at:]))) if count else ())
