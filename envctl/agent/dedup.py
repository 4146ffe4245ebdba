"""Which chunks the bucket has already: a hash table in a file, so that a home of millions of chunks costs pages, not memory.

One rule: only chunks of the parent snapshot and of this run go in. An older pack may be collected at any time; what the parent
refers to may not. The file has no name: a crash leaves nothing.
"""

from __future__ import annotations

import mmap
import os
import struct
import tempfile
from typing import Any, Final

from envctl.agent.tree import Chunk

_SLOT: Final = struct.Struct("<32sIIII")
_FULL: Final = 0.6


class Dedup:
    """SHA-256 of a chunk → where it lies. Owned by one run; `close` frees the disk."""

    def __init__(self, folder: str, slots: int = 1 << 14) -> None:
        """`slots`: a power of two to begin with; grows by itself."""
        self._folder = folder
        self._packs: list[bytes] = []
        self._ordinals: dict[bytes, int] = {}
        self._used = 0
        self._open(slots)

    def _open(self, slots: int) -> None:
        self._slots = slots
        self._file: Any = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - closed by `close`
        # Allocated, not sparse: a write to a page that a full disk has no block for ends the process.
        os.posix_fallocate(self._file.fileno(), 0, slots * _SLOT.size)
        self._map = mmap.mmap(self._file.fileno(), slots * _SLOT.size)

    def _place_of(self, sha256: bytes) -> int:
        """Of its slot, or of the free slot where it would go."""
        slot = int.from_bytes(sha256[:8], "little") & (self._slots - 1)
        while True:
            place = slot * _SLOT.size
            held = self._map[place : place + 32]
            if held == sha256 or self._map[place + 32 : place + 36] == b"\0\0\0\0":
                return place
            slot = (slot + 1) & (self._slots - 1)

    def find(self, sha256: bytes) -> Chunk | None:
        place = self._place_of(sha256)
        held, pack, offset, stored, raw = _SLOT.unpack_from(self._map, place)
        return Chunk(self._packs[pack - 1], sha256, offset, stored, raw) if pack and held == sha256 else None

    def add(self, chunk: Chunk) -> None:
        """What is known already stays as it is. Holes are not chunks."""
        if chunk.is_hole:
            return
        place = self._place_of(chunk.sha256)
        if self._map[place + 32 : place + 36] != b"\0\0\0\0":
            return
        ordinal = self._ordinals.get(chunk.pack)
        if ordinal is None:
            self._packs.append(chunk.pack)
            ordinal = self._ordinals[chunk.pack] = len(self._packs)
        _SLOT.pack_into(self._map, place, chunk.sha256, ordinal, chunk.offset, chunk.stored, chunk.raw)
        self._used += 1
        if self._used > self._slots * _FULL:
            self._grow()

    def _grow(self) -> None:
        old_map, old_file = self._map, self._file
        self._open(self._slots * 4)
        for place in range(0, len(old_map), _SLOT.size):
            if old_map[place + 32 : place + 36] != b"\0\0\0\0":
                at = self._place_of(old_map[place : place + 32])
                self._map[at : at + _SLOT.size] = old_map[place : place + _SLOT.size]
        old_map.close()
        old_file.close()

    def close(self) -> None:
        self._map.close()
        self._file.close()
