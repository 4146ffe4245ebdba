"""Strategies for what blockdev.segments encodes, and the two kinds of damage every decoder must see.

One rule: `flip` and `cut` change stored bytes the way a disk or a store does, never the way our own encoder would.
"""

from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

import zstandard
from hypothesis import strategies as st

from blockdev.errors import CorruptFormat
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.record import BaseEntry, MoveEntry, PatchEntry, RangeEntry, Record, RecordKind
from blockdev.segments.root import ContainerUse, DeadObject, PageRef, Root
from blockdev.units import KIB, MIB, Geometry

T = TypeVar("T")

VOLUME = UUID("6f1c2a5e-7f5b-4c57-9d0c-1c6d3f2b8a90")
OTHER = UUID("0d6b54f3-9a1e-4f55-8b43-4f2d7f0e1a11")
GEOMETRY = Geometry(size_bytes=8 * MIB, sector_bytes=512, frame_bytes=16 * KIB, extent_bytes=128 * KIB)

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
uuids = st.uuids()
notes = st.dictionaries(st.text(max_size=8), st.integers() | st.text(max_size=8) | st.booleans(), max_size=3)
refs = st.builds(ContainerRef, u64, u32, st.integers(0, INLINE))
patches = st.builds(PatchEntry, u64, u32, u32, u32, u32, refs)


def few(elements: st.SearchStrategy[T]) -> st.SearchStrategy[list[T]]:
    return st.lists(elements, max_size=4)


def bases(frames: int) -> st.SearchStrategy[BaseEntry]:
    return st.builds(BaseEntry, u64, u64, u32, u64, u64, st.binary(min_size=frames, max_size=frames))


@st.composite
def records(draw: st.DrawFn) -> Record:
    frames = draw(st.sampled_from([1, 8, 16]))
    return Record(
        seq=draw(u64),
        epoch=draw(u64),
        kind=draw(st.sampled_from(RecordKind)),
        nonce=draw(st.binary(min_size=16, max_size=16)),
        parent=draw(st.binary(min_size=32, max_size=32)),
        volume=draw(uuids),
        lineage=draw(uuids),
        journal=draw(uuids),
        begin=draw(u64),
        end=draw(u64),
        time_us=draw(u64),
        size_bytes=draw(u64),
        folds=draw(few(bases(frames))),
        moves=draw(few(st.builds(MoveEntry, patches, refs, u32))),
        ranges=draw(few(st.builds(RangeEntry, u64, u64))),
        bases=draw(few(bases(frames))),
        patches=draw(few(patches)),
        note=draw(notes),
    )


@st.composite
def roots(draw: st.DrawFn) -> Root:
    return Root(
        seq=draw(u64),
        epoch=draw(u64),
        digest=draw(st.binary(min_size=32, max_size=32)),
        volume=draw(uuids),
        lineage=draw(uuids),
        journal=draw(uuids),
        end=draw(u64),
        time_us=draw(u64),
        size_bytes=draw(u64),
        pages=draw(few(st.builds(PageRef, u64, u64, u32, u16, u32, u32, u32))),
        runs=draw(few(st.builds(PageRef, u64, u64, u32, u16, u32, u32, u32))),
        ranges=draw(few(st.tuples(u64, u64, u64))),
        containers=draw(few(st.builds(ContainerUse, refs, u64, u64, u64))),
        dead=draw(few(st.builds(DeadObject, u64, st.text(max_size=20)))),
        note=draw(notes),
    )


def flip(blob: bytes, bit: int) -> bytes:
    """`blob` with one bit (counted modulo its length) turned over."""
    damaged = bytearray(blob)
    bit %= len(blob) * 8
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def cut(blob: bytes, length: int) -> bytes:
    """The first bytes of `blob`, always fewer than all."""
    return blob[: length % len(blob)]


def compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=3)


def decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor()


def refusal(decode: Callable[[], object]) -> CorruptFormat | None:
    """The CorruptFormat that `decode` ends in, or None when it decodes; any other error is a bug and passes on."""
    try:
        decode()
    except CorruptFormat as error:
        return error
    return None
