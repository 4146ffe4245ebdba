"""Bringing committed content back: map, then local copies, then coalesced ranged GETs, then checks and assembly.

One rule: what is returned is exactly the committed content of one map state, or an error; every frame and patch is
checked against volume, place and generation before a byte of it is used.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import zstandard

from blockdev.engine.local_objects import LocalObjects
from blockdev.engine.ports import Execution
from blockdev.errors import CorruptFormat
from blockdev.extents.extent_map import ExtentMap, MapState
from blockdev.extents.format import ExtentValue
from blockdev.segments import container, extent_object, frames, paths, record
from blockdev.segments.cipher import Cipher
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.root import PAGE_EXTENTS
from blockdev.units import Geometry
from s3core import waiting
from s3core.errors import Corrupt, NotFound, StoreError
from s3core.store import ObjectStore

GAP_BYTES = 64 * 1024
"""Two wanted ranges of one object no further apart than this are fetched by one GET: at 80 MB/s the gap costs
under a millisecond, a request 20."""
MERGED_BYTES_MAX = 8 << 20
WHOLE_PIECES = 8
"""A segment that so many pieces are wanted from is fetched whole (and kept): cheaper in requests."""
LOOKUPS_MAX = 3


@dataclass(frozen=True, slots=True)
class _Need:
    """One stored item of a frame: where it is and what it must turn out to be. `start`, `end`: the sectors of the
    extent it is wanted for."""

    key: str
    offset: int
    length: int
    extent: int
    gen: int
    start: int
    end: int


@dataclass(slots=True)
class FrameContent:
    """`data` is the frame's bytes, None for zeros; or `error` says why it cannot be had."""

    data: bytes | bytearray | None = None
    error: Exception | None = None


@dataclass(slots=True)
class FetchCounters:
    requests: int = 0
    bytes_down: int = 0
    local_hits: int = 0
    corrupt_local: int = 0
    corrupt_store: int = 0


@dataclass(slots=True)
class Blobs:
    """Bytes at hand, by object: (offset, data) runs. Objects never change, so what one try brought serves the next."""

    runs: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    errors: dict[str, StoreError] = field(default_factory=dict)
    local: set[str] = field(default_factory=set)

    def find(self, need: _Need) -> memoryview | None:
        for offset, data in self.runs.get(need.key, ()):
            if offset <= need.offset and need.offset + need.length <= offset + len(data):
                at = need.offset - offset
                return memoryview(data)[at : at + need.length]
        return None


@dataclass(slots=True)
class _Found:
    """One look at some frames: what they need, what is at hand, what must be requested; `contents` once they are done."""

    state: MapState
    needs: dict[int, list[_Need]]
    blobs: Blobs
    requests: list[tuple[str, int, int]]
    errors: dict[int, Exception]
    """Frames whose part of the map cannot be read."""
    contents: dict[int, FrameContent] | None = None


class Fetcher:
    """Reads committed frames. Safe to call for several reads at once. `volume_of` tells the UUID that frames of a
    generation are bound to (`ancestry`)."""

    def __init__(
        self,
        geometry: Geometry,
        volume_of: Callable[[int], bytes],
        extent_map: ExtentMap,
        store: ObjectStore,
        local: LocalObjects,
        execution: Execution,
        cipher: Cipher | None = None,
    ) -> None:
        self._geometry = geometry
        self._volume_of = volume_of
        self._map = extent_map
        self._store = store
        self._local = local
        self._execution = execution
        self._cipher = cipher
        self._threads = threading.local()
        # Of the stores only S3 waits as fibers may; a directory may be a network's.
        self._ask = execution.converse if store.properties.scheme == "s3" else execution.run
        self.counters = FetchCounters()

    async def frames(
        self, wanted: Sequence[int], at_hand: Blobs | None = None
    ) -> tuple[MapState, dict[int, FrameContent]]:
        """Contents of these frames (numbers over the whole volume), all as of the returned state.

        Temporary store errors come back per frame; nothing is retried here but a lookup whose object was replaced. Who tries
        again hands in the same `at_hand`: then only what is still missing is requested, and a store that answers half of the
        requests is read from in the end."""
        blobs = Blobs() if at_hand is None else at_hand
        last: tuple[MapState, dict[int, FrameContent]] | None = None
        for _ in range(LOOKUPS_MAX):
            # Each hand-over to a thread costs as much as a local read: one object's frames need a single one.
            found = await self._ask(self._look, wanted, blobs)
            contents = found.contents
            if contents is None:
                await self._fetch(found)
                contents = await self._execution.run(self._contents, found)
            last = found.state, contents
            suspects = [f for f, content in contents.items() if isinstance(content.error, NotFound | CorruptFormat)]
            if not suspects:
                return last
            moved = self._map.state is not None and self._map.state.seq != found.state.seq
            if not moved and not found.blobs.local:
                return last
            # An object that went while we looked (folded and collected), or a damaged local copy: look again.
        assert last is not None
        return last

    def _look(self, wanted: Sequence[int], blobs: Blobs) -> _Found:
        """Map and local copies; where one request or none is left, that request and the frames as well."""
        per = self._geometry.frames_per_extent
        unread = self._read_pages({frame // per for frame in wanted})
        extents = sorted({frame // per for frame in wanted if frame // per not in unread})
        state, values = self._map.lookup(extents)
        by_extent = dict(zip(extents, values, strict=True))
        needs = {frame: self._needs(frame, by_extent[frame // per]) for frame in wanted if frame // per in by_extent}
        errors = {frame: unread[frame // per] for frame in wanted if frame // per in unread}
        blobs.errors.clear()
        found = _Found(state, needs, blobs, [], errors)
        self._look_locally(found)
        if len(found.requests) <= 1:
            for request in found.requests:
                self._add(found, request, self._get(*request))
            found.contents = self._contents(found)
        return found

    def _read_pages(self, extents: set[int]) -> dict[int, Exception]:
        """Bring in the map's pages of these extents; the extents whose page cannot be had, and why."""
        unread: dict[int, Exception] = {}
        for page in self._map.unloaded(extents):
            self.counters.requests += 1
            try:
                self._map.fault([page])
            except (StoreError, CorruptFormat) as error:
                unread |= {extent: error for extent in extents if extent // PAGE_EXTENTS == page}
        return unread

    def _contents(self, found: _Found) -> dict[int, FrameContent]:
        contents = {frame: FrameContent(error=error) for frame, error in found.errors.items()}
        return contents | self._assemble_all(found.needs, found.blobs)

    async def container_extents(self, ref: ContainerRef) -> list[int]:
        """Extents with patches in a container, as it tells itself. A segment is kept: its patches are wanted next. Raises
        CorruptFormat and store errors."""
        return await self._execution.run(self._container_extents, ref)

    def _container_extents(self, ref: ContainerRef) -> list[int]:
        key = paths.container(ref)
        data = self._get(key, -1, 0)
        if isinstance(data, StoreError):
            raise data
        if ref.n == INLINE:
            patches = record.decode(data, what=key, seq=ref.gen).record.patches
            return sorted({patch.extent for patch in patches if patch.stored})
        container.parse_header(data, what=key)
        extents: set[int] = set()
        at = container.HEADER_BYTES
        while at < len(data):
            header = frames.parse_header(memoryview(data)[at:], what=key, offset=at)
            extents.add(header.extent)
            at += frames.HEADER_BYTES + header.stored
        return sorted(extents)

    def _needs(self, frame: int, value: ExtentValue) -> list[_Need]:
        geometry = self._geometry
        extent, index = divmod(frame, geometry.frames_per_extent)
        start = index * geometry.sectors_per_frame
        end = start + geometry.sectors_per_frame
        over = [patch for patch in value.patches if patch.start < end and patch.start + patch.sectors > start]
        needs: list[_Need] = []
        base = value.base
        if base is not None and base.lengths[index]:
            covered = sum(min(p.start + p.sectors, end) - max(p.start, start) for p in over)
            if covered < geometry.sectors_per_frame:
                offsets = extent_object.frame_offsets(geometry, base.lengths)
                key = paths.extent(extent, base.gen, base.epoch)
                length = offsets[index + 1] - offsets[index]
                needs.append(_Need(key, offsets[index], length, extent, base.gen, start, end))
        for patch in over:
            low, high = max(patch.start, start), min(patch.start + patch.sectors, end)
            if patch.stored:
                key = paths.container(patch.ref)
                needs.append(_Need(key, patch.offset, patch.stored, extent, patch.gen, low, high))
            else:
                needs.append(_Need("", 0, 0, extent, patch.gen, low, high))
        return needs

    def newest(self, frame: int, value: ExtentValue) -> int:
        """The youngest commit that may have changed the frame's content, 0 if the frame reads as zeros."""
        geometry = self._geometry
        index = frame % geometry.frames_per_extent
        start = index * geometry.sectors_per_frame
        end = start + geometry.sectors_per_frame
        gens = [patch.gen for patch in value.patches if patch.start < end and patch.start + patch.sectors > start]
        if value.base is not None and (gens or value.base.lengths[index]):
            gens.append(value.base.gen)
        return max(gens, default=0)

    def _look_locally(self, found: _Found) -> None:
        missing: dict[str, list[_Need]] = {}
        for items in found.needs.values():
            for need in items:
                if not need.key or found.blobs.find(need) is not None:
                    continue
                data = self._local.get_range(need.key, need.offset, need.length)
                if data is None:
                    missing.setdefault(need.key, []).append(need)
                else:
                    self.counters.local_hits += 1
                    found.blobs.local.add(need.key)
                    found.blobs.runs.setdefault(need.key, []).append((need.offset, data))
        found.requests = [request for key, items in missing.items() for request in self._requests(key, items)]

    async def _fetch(self, found: _Found) -> None:
        results = await asyncio.gather(*(self._ask(self._get, *request) for request in found.requests))
        for request, result in zip(found.requests, results, strict=True):
            self._add(found, request, result)

    @staticmethod
    def _add(found: _Found, request: tuple[str, int, int], result: bytes | StoreError) -> None:
        key, offset, _ = request
        if isinstance(result, StoreError):
            found.blobs.errors[key] = result
        else:
            found.blobs.runs.setdefault(key, []).append((max(offset, 0), result))

    def _requests(self, key: str, needs: list[_Need]) -> list[tuple[str, int, int]]:
        """(key, offset, length) of the GETs for one object; offset -1 asks for all of it."""
        if key.startswith("seg/") and len({need.offset for need in needs}) >= WHOLE_PIECES:
            return [(key, -1, 0)]
        merged: list[list[int]] = []
        for need in sorted(needs, key=lambda need: need.offset):
            end = need.offset + need.length
            if merged and need.offset - merged[-1][1] <= GAP_BYTES and end - merged[-1][0] <= MERGED_BYTES_MAX:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([need.offset, end])
        return [(key, start, end - start) for start, end in merged]

    def _get(self, key: str, offset: int, length: int) -> bytes | StoreError:
        self.counters.requests += 1
        try:
            if offset < 0:
                data = self._store.get(key).data
                # Megabytes: a disk that is busy may take its time, and a fiber's loop has none.
                waiting.in_thread(self._local.put, key, [data])
            else:
                data = self._store.get_range(key, offset, length).data
        except StoreError as error:
            return error
        self.counters.bytes_down += len(data)
        return data

    def _assemble_all(self, needs: dict[int, list[_Need]], blobs: Blobs) -> dict[int, FrameContent]:
        return {frame: self._assemble(frame, items, blobs) for frame, items in needs.items()}

    def _assemble(self, frame: int, needs: list[_Need], blobs: Blobs) -> FrameContent:
        geometry = self._geometry
        sector = geometry.sector_bytes
        first = frame % geometry.frames_per_extent * geometry.sectors_per_frame
        if all(not need.key for need in needs):
            return FrameContent()
        buffer: bytearray | None = None
        decompressor = getattr(self._threads, "decompressor", None)
        if decompressor is None:
            decompressor = self._threads.decompressor = zstandard.ZstdDecompressor()
        for need in needs:
            if not need.key:
                if buffer is None:
                    buffer = bytearray(geometry.frame_bytes)
                size = (need.end - need.start) * sector
                buffer[(need.start - first) * sector : (need.end - first) * sector] = bytes(size)
                continue
            blob = blobs.find(need)
            if blob is None:
                return FrameContent(error=self._trouble(need, blobs))
            try:
                start, raw = frames.decode(
                    self._volume_of(need.gen),
                    blob,
                    sector_bytes=sector,
                    extent=need.extent,
                    gen=need.gen,
                    what=need.key,
                    offset=need.offset,
                    decompressor=decompressor,
                    cipher=self._cipher,
                )
                if start > need.start or start + len(raw) // sector < need.end:
                    raise CorruptFormat("frame does not cover its place", what=need.key, offset=need.offset)
            except CorruptFormat as error:
                blobs.runs.pop(need.key, None)
                if need.key in blobs.local:
                    self.counters.corrupt_local += 1
                    self._local.drop(need.key)
                else:
                    self.counters.corrupt_store += 1
                return FrameContent(error=error)
            whole = need.end - need.start == geometry.sectors_per_frame and len(raw) == geometry.frame_bytes
            if whole and len(needs) == 1:
                return FrameContent(raw)
            if buffer is None:
                buffer = bytearray(geometry.frame_bytes)
            buffer[(need.start - first) * sector : (need.end - first) * sector] = memoryview(raw)[
                (need.start - start) * sector : (need.end - start) * sector
            ]
        return FrameContent(buffer)

    @staticmethod
    def _trouble(need: _Need, blobs: Blobs) -> Exception:
        error = blobs.errors.get(need.key)
        if isinstance(error, NotFound):
            return NotFound("the map names this object and it is not there", key=need.key)
        if isinstance(error, Corrupt):
            return CorruptFormat("object is shorter than the map says", what=need.key, offset=need.offset)
        return error if error is not None else CorruptFormat("nothing was fetched", what=need.key, offset=need.offset)

    async def extent(self, number: int) -> tuple[MapState, list[bytes | bytearray | None]]:
        """A whole extent's frames (None: zeros). Raises the first frame's error."""
        per = self._geometry.frames_per_extent
        wanted = range(number * per, (number + 1) * per)
        state, contents = await self.frames(wanted)
        for frame in wanted:
            error = contents[frame].error
            if error is not None:
                raise error
        return state, [contents[frame].data for frame in wanted]
