"""Content, byte by byte: each object that a state needs is read once, and every frame in it decoded.

One rule: a damaged frame is told with the bytes of the disk it holds and the states that read it; the rest of the object
is looked at all the same.
"""

from dataclasses import replace

import zstandard

from blockdev.engine.ancestry import Ancestry
from blockdev.errors import CorruptFormat
from blockdev.extents.format import ExtentValue, Patch
from blockdev.inspection.books import Books
from blockdev.inspection.findings import Defect, as_defect
from blockdev.inspection.points import States
from blockdev.segments import container, extent_object, frames, paths, record
from blockdev.segments.cipher import Cipher
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore

Found = tuple[list[Defect], int]
"""Defects, without `hits`, and frames that were read."""


class DeepReader:
    """`read_extent` and `read_container` run on any thread; `with_hits` on the one that owns the map."""

    def __init__(
        self, store: ObjectStore, volume: VolumeFile, states: States, books: Books, cipher: Cipher | None
    ) -> None:
        self._store = store
        self._ancestry = Ancestry(volume)
        self._geometry = volume.geometry
        self._states = states
        self._books = books
        self._cipher = cipher
        self._sealed = volume.encryption is not None

    def with_hits(self, defect: Defect) -> Defect:
        """The defect with the states that read those bytes from that object; without a place where none does."""
        extent = defect.extent
        if extent is None or defect.start is None:
            return defect
        sector_bytes = self._geometry.sector_bytes
        first = (defect.start - extent * self._geometry.extent_bytes) // sector_bytes
        end = first + defect.length // sector_bytes
        hits = self._states.hits(extent, lambda value: _shows(value, extent, defect.key, first, end))
        return replace(defect, hits=hits) if hits else replace(defect, start=None, length=0)

    # --- extent objects ------------------------------------------------------------------------------------------

    def read_extent(self, item: tuple[int, ExtentValue]) -> Found:
        extent, value = item
        base = value.base
        assert base is not None
        key = paths.extent(extent, base.gen, base.epoch)
        geometry = self._geometry
        whole = Defect(key, "", None, extent, extent * geometry.extent_bytes, geometry.extent_bytes)
        defects: list[Defect] = []
        try:
            blob = self._store.get(key).data
            head = extent_object.parse_header(geometry, blob, what=key)
        except (CorruptFormat, NotFound, Corrupt) as error:
            return [_placed(as_defect(key, error), whole)], 0
        if head != (self._ancestry.volume_of(base.gen), extent, base.gen, base.epoch, base.lengths):
            said = "is the object of another place, generation or volume"
            return [replace(whole, said=said, offset=0)], 0
        offsets = extent_object.frame_offsets(geometry, base.lengths)
        count = 0
        for index, code in enumerate(base.lengths):
            if not code:
                continue
            count += 1
            part = memoryview(blob)[offsets[index] : offsets[index + 1]]
            try:
                start, sectors = self._decode(part, extent, base.gen, key, offsets[index])
                if start != index * geometry.sectors_per_frame or sectors != geometry.sectors_per_frame:
                    raise CorruptFormat("frame is not the one that belongs here", what=key, offset=offsets[index])
            except CorruptFormat as error:
                at = extent * geometry.extent_bytes + index * geometry.frame_bytes
                defects.append(replace(as_defect(key, error, extent), start=at, length=geometry.frame_bytes))
        if not defects and extent_object.digest([blob]) != base.digest:
            defects.append(replace(whole, said="its digest is not the one in the map"))
        return defects, count

    # --- containers ----------------------------------------------------------------------------------------------

    def read_container(self, item: tuple[ContainerRef, list[tuple[int, Patch]]]) -> Found:
        """Every frame in the container, dead ones too, and whether the live ones are where the map says."""
        ref, live = item
        key = paths.container(ref)
        try:
            blob = self._store.get(key).data
            if ref.n == INLINE:
                at = record.decode(blob, what=key).inline_offset
            else:
                at = container.HEADER_BYTES
                if container.parse_header(blob, what=key) != (self._ancestry.volume_of(ref.gen), *ref):
                    raise CorruptFormat("is the segment of another commit or volume", what=key, offset=0)
        except (CorruptFormat, NotFound, Corrupt) as error:
            bad = as_defect(key, error)
            return [self._at(bad, extent, patch) for extent, patch in live] or [bad], 0
        bad_frames: dict[int, Defect] = {}
        good: dict[int, tuple[int, int, int, int]] = {}
        try:
            while at < len(blob):
                head = frames.parse_header(memoryview(blob)[at:], what=key, offset=at)
                following = at + frames.HEADER_BYTES + head.stored
                try:
                    start, sectors = self._decode(memoryview(blob)[at:following], head.extent, head.gen, key, at)
                    good[at] = (head.extent, head.gen, start, start + sectors)
                except CorruptFormat as error:
                    bad_frames[at] = as_defect(key, error, head.extent)
                at = following
        except CorruptFormat as error:
            # Behind a damaged header nobody knows where the next frame begins; the map does, below.
            bad_frames[at] = as_defect(key, error)
        defects: list[Defect] = []
        told: set[int] = set()
        for extent, patch in live:
            wrong = bad_frames.get(patch.offset) or self._misplaced(key, blob, extent, patch, good)
            if wrong is not None:
                told.add(patch.offset)
                defects.append(self._at(wrong, extent, patch))
        defects += [bad for at, bad in bad_frames.items() if at not in told]
        return sorted(defects, key=lambda defect: defect.offset or 0), len(good)

    def _misplaced(
        self, key: str, blob: bytes, extent: int, patch: Patch, good: dict[int, tuple[int, int, int, int]]
    ) -> Defect | None:
        found = good.get(patch.offset)
        if found is None:
            part = memoryview(blob)[patch.offset : patch.offset + patch.stored]
            try:
                start, sectors = self._decode(part, extent, patch.gen, key, patch.offset)
            except CorruptFormat as error:
                return as_defect(key, error, extent)
            found = good[patch.offset] = (extent, patch.gen, start, start + sectors)
        if found[:2] != (extent, patch.gen) or found[2] > patch.start or found[3] < patch.start + patch.sectors:
            said = f"a frame of extent {found[0]}, generation {found[1]} where the map wants another"
            return Defect(key, said, patch.offset)
        return None

    def _at(self, defect: Defect, extent: int, patch: Patch) -> Defect:
        """The defect, where the patch lies on the disk."""
        start = extent * self._geometry.extent_bytes + patch.start * self._geometry.sector_bytes
        return replace(defect, extent=extent, start=start, length=patch.sectors * self._geometry.sector_bytes)

    def _decode(self, part: memoryview, extent: int, gen: int, key: str, offset: int) -> tuple[int, int]:
        """(first sector within the extent, sectors) of a frame that is as it must be."""
        volume = self._ancestry.volume_of(gen)
        if self._sealed and self._cipher is None:
            header = frames.verify(volume, part, extent=extent, gen=gen, what=key, offset=offset)
            frames.require_sealed(header, True, what=key, offset=offset)
            return header.start, header.sectors
        start, raw = frames.decode(
            volume,
            part,
            sector_bytes=self._geometry.sector_bytes,
            extent=extent,
            gen=gen,
            what=key,
            offset=offset,
            decompressor=zstandard.ZstdDecompressor(),
            cipher=self._cipher,
        )
        return start, len(raw) // self._geometry.sector_bytes


def _placed(defect: Defect, place: Defect) -> Defect:
    return replace(defect, extent=place.extent, start=place.start, length=place.length)


def _shows(value: ExtentValue, extent: int, key: str, first: int, end: int) -> bool:
    """Whether sectors of [first, end) are read from that object."""
    base = value.base
    if base is not None and paths.extent(extent, base.gen, base.epoch) == key:
        covered = sum(
            max(0, min(end, patch.start + patch.sectors) - max(first, patch.start)) for patch in value.patches
        )
        return covered < end - first
    return any(
        patch.stored and paths.container(patch.ref) == key and patch.start < end and patch.start + patch.sectors > first
        for patch in value.patches
    )
