"""From the journal to the bucket: one commit after the other, each a contiguous piece of the journal.

The order of a commit, and what a crash leaves behind:
1. read the records, plan (nothing written);
2. PUT extent objects and segments (a crash leaves orphans: objects of a generation no record names);
3. PUT the commit record with If-None-Match (a crash before: as 2; after: the record counts and recovery applies it);
4. apply the record to the map (a crash leaves the map behind the log; recovery replays the record);
5. tell the front (a crash leaves the journal longer than needed; the replayed map says from where it counts).

While more is waiting than a commit takes, steps 1 and 2 of the next one begin during those of this one, for the extents that
it is sure to write whole: so the way to the bucket is not idle while records are waited for. Its own record still comes after
this one's, and after every object that it names.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from blockdev.engine import plan as planning
from blockdev.engine.encoder import Encoder
from blockdev.engine.local_objects import LocalObjects
from blockdev.engine.log import CommitLog, Persistence
from blockdev.engine.plan import Batch, CommitPlan
from blockdev.engine.ports import Execution
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.format import EMPTY, ExtentValue
from blockdev.journal.format import Record as JournalRecord
from blockdev.segments import container, paths, record
from blockdev.segments.cipher import Cipher
from blockdev.segments.paths import INLINE, ContainerRef
from blockdev.segments.record import BaseEntry, MoveEntry, PatchEntry, RangeEntry, Record, RecordKind
from blockdev.segments.root import Root
from blockdev.units import Geometry
from s3core.errors import StoreError
from s3core.store import Buffer, ObjectStore

BACKLOG_COMMITS = 8
"""A backlog is large when it would fill so many commits of `commit_bytes`."""
PAGE_READERS = 16
"""Map pages read at once before a commit."""

Records = Callable[[int, int], Iterable[tuple[JournalRecord, memoryview]]]
"""(begin, end) -> the journal's records with their data; see `JournalReader.records`."""


@dataclass(frozen=True, slots=True)
class CommitSettings:
    """See docs/design/0003-commit-and-fold.md for where the numbers come from. All in bytes unless said."""

    commit_bytes: int = 8 << 20
    interval_s: float = 5.0
    per_hour_max: int = 0
    """Commits for age alone; see `budget`."""
    inline_bytes_max: int = 1 << 20
    segment_bytes: int = 8 << 20
    uploads: int = 16
    """PUTs in flight; each holds an object of 1 MiB at most, or a segment. So many fill a link of 300 MiB/s at 50 ms."""
    backlog_bytes_max: int = 32 << 20
    """A commit takes a quarter of a large backlog, up to this: each costs the time of a request that nothing else can share.
    Two such pieces of the journal are in memory at once."""
    compression: str = "zstd"


@dataclass(slots=True)
class Extras:
    """What the collector adds to a record: it rides with the next commit."""

    folds: list[BaseEntry]
    moves: list[MoveEntry]
    sizes: dict[ContainerRef, int]

    def __bool__(self) -> bool:
        return bool(self.folds or self.moves)


Collect = Callable[[Callable[[int], bool]], Awaitable[Extras | None]]
"""The collector's next slice; the argument says which extents it must leave alone."""


@dataclass(slots=True)
class CommitCounters:
    commits: int = 0
    records: int = 0
    host_bytes: int = 0
    puts: int = 0
    bytes_up: int = 0
    extents: int = 0
    patches: int = 0


@dataclass(slots=True)
class _Ahead:
    """What the next commit will carry, its whole extents on their way."""

    seq: int
    batch: Batch
    wholes: dict[int, "asyncio.Task[BaseEntry]"]


class Destager:
    """Writes commits. One at a time; owned by the worker's commit task."""

    def __init__(
        self,
        *,
        geometry: Geometry,
        volume: UUID,
        epoch: int,
        lineage: UUID,
        journal: UUID,
        records: Records,
        extent_map: ExtentMap,
        store: ObjectStore,
        local: LocalObjects,
        commit_log: CommitLog,
        persistence: Persistence,
        execution: Execution,
        settings: CommitSettings,
        nonce: Callable[[], bytes],
        cipher: Cipher | None = None,
    ) -> None:
        self.geometry = geometry
        self.epoch = epoch
        self.encoder = Encoder(geometry, volume.bytes, settings.compression, cipher)
        self._volume = volume
        self._lineage = lineage
        self._journal = journal
        self._records = records
        self._map = extent_map
        self._store = store
        self._local = local
        self._log = commit_log
        self._persistence = persistence
        self._execution = execution
        self._settings = settings
        self._nonce = nonce
        self._uploads = asyncio.Semaphore(settings.uploads)
        self._ahead: asyncio.Task[_Ahead] | None = None
        self.counters = CommitCounters()
        self.last_record_bytes = 0
        self.flushed_from: int | None = None
        """With flushes to the bucket: the journal position from which that is all anybody was promised; None when the log
        says so already, or where flushes are local."""

    async def commit(self, head: int, collect: Collect | None = None) -> Record | None:
        """Carry records up to `head` (a record boundary), at most about `commit_bytes` of them, and what `collect`
        proposes for extents that this commit leaves alone; None when there is nothing to carry.
        Raises Fenced, CorruptJournal."""
        state = self._map.state
        assert state is not None
        seq = state.seq + 1
        ahead = await self._take_ahead(seq)
        if ahead is not None:
            batch, head = ahead.batch, max(head, ahead.batch.end)
        else:
            batch = await self._execution.run(self._gather, state.end, head)
        await self._load_pages(batch)
        plan = await self._persistence.call("read map pages", self._decide, batch)
        # A fold and a whole write of one extent in one commit would have the same key, and a discard could not tell
        # the fold's content from younger content: so no extent is in both halves of a record.
        extras = await collect(batch.touches) if collect is not None else None
        if head <= state.end and not extras:
            return None
        early = ahead.wholes if ahead is not None else {}
        wholes = [early.get(extent) or asyncio.ensure_future(self._whole(extent, batch, seq)) for extent in plan.wholes]
        if head - batch.end >= self._settings.commit_bytes:
            self._ahead = asyncio.ensure_future(self._go_ahead(batch.end, head, seq + 1))
        bases = await asyncio.gather(*wholes)
        patches, inline, sizes = await self._patches(plan, seq)
        made = Record(
            seq=seq,
            epoch=self.epoch,
            kind=RecordKind.DATA,
            nonce=self._nonce(),
            parent=state.digest,
            volume=self._volume,
            lineage=self._lineage,
            journal=self._journal,
            begin=state.end,
            end=max(batch.end, state.end),
            time_us=int(self._execution.time() * 1e6),
            size_bytes=state.size_bytes,
            folds=extras.folds if extras else (),
            moves=extras.moves if extras else (),
            ranges=[RangeEntry(*item) for item in plan.discards],
            bases=bases,
            patches=patches,
            note=self._flush_note(max(batch.end, state.end)),
        )
        if extras:
            sizes |= extras.sizes
        await self.append(made, inline, sizes)
        self.counters.records += batch.records
        self.counters.host_bytes += batch.written_bytes
        self.counters.extents += len(bases)
        self.counters.patches += len(patches)
        return made

    async def _go_ahead(self, begin: int, head: int, seq: int) -> _Ahead:
        """Begin to carry what commit `seq` will. What an extent held before does not matter where all of it is written."""
        batch = await self._execution.run(self._gather, begin, head)
        size = self.geometry.sectors_per_extent
        wholes = {
            extent: asyncio.ensure_future(self._whole(extent, batch, seq))
            for extent, overlay in batch.extents.items()
            if overlay.covered() == size
        }
        return _Ahead(seq, batch, wholes)

    async def _take_ahead(self, seq: int) -> _Ahead | None:
        """What was begun for commit `seq`. Once begun it must be that commit's: another content under the same keys could be
        overtaken by it. Where another record has taken its number, its objects can be named by none, and go."""
        task, self._ahead = self._ahead, None
        if task is None:
            return None
        ahead = await task
        if ahead.seq == seq:
            return ahead
        for entry in await asyncio.gather(*ahead.wholes.values()):
            if any(entry.lengths):
                with contextlib.suppress(StoreError):  # it stays an orphan, for `OrphanSweeper`
                    await self._execution.run(self._store.delete, paths.extent(entry.extent, entry.gen, self.epoch))
        return None

    def abandon(self) -> None:
        """No commit will follow: what was begun for it and is not on its way yet stays here."""
        task, self._ahead = self._ahead, None
        if task is None:
            return
        if not task.done():
            task.cancel()
        elif not task.cancelled() and task.exception() is None:
            for whole in task.result().wholes.values():
                whole.cancel()

    def _flush_note(self, end: int) -> dict[str, Any]:
        """Once everything that an earlier writer may have promised from its journal alone is in the bucket, the log says so:
        from there on a flush means the bucket, and the journal is nothing that a successor must wait for."""
        if self.flushed_from is None or end < self.flushed_from:
            return {}
        self.flushed_from = None
        return {"flush": "s3"}

    async def mark(
        self,
        note: dict[str, Any],
        *,
        kind: RecordKind = RecordKind.DATA,
        size_bytes: int | None = None,
        ranges: Sequence[RangeEntry] = (),
        rolled: Root | None = None,
    ) -> Record:
        """A record without data: snapshots, another size, a rollback (to the root `rolled`), the end of an epoch."""
        state = self._map.state
        assert state is not None
        made = Record(
            seq=state.seq + 1,
            epoch=self.epoch,
            kind=kind,
            nonce=self._nonce(),
            parent=state.digest,
            volume=self._volume,
            lineage=self._lineage,
            journal=self._journal,
            begin=state.end,
            end=state.end,
            time_us=int(self._execution.time() * 1e6),
            size_bytes=state.size_bytes if size_bytes is None else size_bytes,
            ranges=ranges,
            note=note,
        )
        await self.append(made, (), {}, rolled)
        if size_bytes is not None:
            self.geometry = replace(self.geometry, size_bytes=size_bytes)
        return made

    async def append(
        self, made: Record, inline: Sequence[Buffer], sizes: dict[ContainerRef, int], rolled: Root | None = None
    ) -> None:
        """Steps 3 and 4 for any record."""
        parts, digest, inline_offset = await self._execution.run(record.encode, made, inline)
        await self._log.append(made.seq, parts, made.nonce)
        self._sent(parts)
        self.last_record_bytes = sum(len(part) for part in parts)
        self.counters.commits += 1
        if inline:
            self._local.put(paths.log(made.seq), parts)
        # The pages it touches are here since the plan was made, or come in now; nothing changes before they have.
        await self._persistence.call("apply", self._map.apply, made, digest, inline_offset, sizes, rolled)

    async def detach(self) -> None:
        """The last record of an epoch: everything acknowledged is in the bucket."""
        await self.mark({}, kind=RecordKind.DETACH)

    async def upload(self, key: str, parts: Sequence[Buffer], *, keep: bool = True) -> None:
        """PUT an object whose name only we can have chosen: repeating it is harmless."""
        async with self._uploads:
            await self._persistence.call(f"put {key}", self._store.put, key, parts)
        self._sent(parts)
        if keep:
            await self._execution.run(self._local.put, key, parts)

    def _sent(self, parts: Sequence[Buffer]) -> None:
        self.counters.puts += 1
        self.counters.bytes_up += sum(len(part) for part in parts)

    async def _load_pages(self, batch: Batch) -> None:
        """Bring in what the plan is going to look up, several pages at a time: one by one, each costs a request's time."""
        pages = self._map.unloaded(batch.extents)
        await asyncio.gather(
            *(
                self._persistence.call("read map pages", self._map.fault, pages[start::PAGE_READERS])
                for start in range(min(PAGE_READERS, len(pages)))
            )
        )

    def _gather(self, begin: int, head: int) -> Batch:
        records = self._records(begin, head) if head > begin else ()
        limit = self._settings.commit_bytes
        if head - begin >= BACKLOG_COMMITS * limit:
            limit = max(limit, min(self._settings.backlog_bytes_max, (head - begin) // 4))
        batch = planning.gather(records, self.geometry, begin, limit)
        if not batch.records:
            # Nothing but padding at the ring's end, whose next record a crash took: it is carried by being passed.
            batch.end = head
        return batch

    def _decide(self, batch: Batch) -> CommitPlan:
        extents = list(batch.extents)
        values: dict[int, ExtentValue] = {}
        if extents:
            _, found = self._map.lookup(extents)
            values = dict(zip(extents, found, strict=True))
        return planning.decide(batch, self.geometry, {e: values.get(e, EMPTY) for e in extents})

    async def _whole(self, extent: int, batch: Batch, seq: int) -> BaseEntry:
        async with self._uploads:
            parts, lengths, digest = await self._execution.run(self._encode_whole, extent, batch, seq)
            if any(lengths):
                key = paths.extent(extent, seq, self.epoch)
                await self._persistence.call(f"put {key}", self._store.put, key, parts)
                self._sent(parts)
                await self._execution.run(self._local.put, key, parts)
        return BaseEntry(extent, seq, self.epoch, seq, digest, lengths)

    def _encode_whole(self, extent: int, batch: Batch, seq: int) -> tuple[list[bytes], bytes, int]:
        contents = planning.whole_contents(batch.extents[extent], self.geometry)
        return self.encoder.extent(extent, seq, self.epoch, contents)

    async def _patches(
        self, plan: CommitPlan, seq: int
    ) -> tuple[list[PatchEntry], list[Buffer], dict[ContainerRef, int]]:
        """Encode the pieces; small commits keep them inside the record, larger ones in segments."""
        stored = [piece for piece in plan.pieces if piece.parts]
        blobs = await self._execution.run(self.encoder.patches, stored, seq)
        ready = dict(zip(map(id, stored), blobs, strict=True))
        zero_ref = ContainerRef(seq, self.epoch, INLINE)
        entries: list[PatchEntry] = []
        if sum(map(len, blobs)) <= self._settings.inline_bytes_max:
            offset = 0
            for piece in plan.pieces:
                blob = ready.get(id(piece), b"")
                entries.append(
                    PatchEntry(piece.extent, piece.start, piece.end - piece.start, offset, len(blob), zero_ref)
                )
                offset += len(blob)
            sizes = {zero_ref: offset} if offset else {}
            return entries, list(blobs), sizes
        builder = SegmentBuilder(self, seq, 0)
        for piece in plan.pieces:
            found = ready.get(id(piece))
            if found is None:
                entries.append(PatchEntry(piece.extent, piece.start, piece.end - piece.start, 0, 0, zero_ref))
            else:
                ref, offset = builder.add(found)
                entries.append(PatchEntry(piece.extent, piece.start, piece.end - piece.start, offset, len(found), ref))
        return entries, [], await builder.finish()

    @property
    def segment_bytes(self) -> int:
        return self._settings.segment_bytes


COLLECTOR_FIRST = 0x8000
"""Segment numbers of a commit from here on are the collector's."""


class SegmentBuilder:
    """Packs encoded patches into segments of about `segment_bytes`, uploaded together by `finish`."""

    def __init__(self, destager: Destager, seq: int, first: int) -> None:
        self._destager = destager
        self._seq = seq
        self._n = first
        self._blobs: list[bytes] = []
        self._bytes = container.HEADER_BYTES
        self._full: list[tuple[int, list[bytes], int]] = []

    def add(self, blob: bytes) -> tuple[ContainerRef, int]:
        """Where the blob will lie."""
        if self._blobs and self._bytes + len(blob) > self._destager.segment_bytes:
            self._close()
        offset = self._bytes
        self._blobs.append(blob)
        self._bytes += len(blob)
        return ContainerRef(self._seq, self._destager.epoch, self._n), offset

    def _close(self) -> None:
        self._full.append((self._n, self._blobs, self._bytes))
        self._n += 1
        self._blobs = []
        self._bytes = container.HEADER_BYTES

    async def finish(self) -> dict[ContainerRef, int]:
        """Upload all of them; their sizes."""
        if self._blobs:
            self._close()
        epoch, volume = self._destager.epoch, self._destager.encoder.volume
        await asyncio.gather(
            *(
                self._destager.upload(
                    paths.segment(self._seq, epoch, n),
                    [container.header(volume, self._seq, epoch, n, len(blobs)), *blobs],
                )
                for n, blobs, _ in self._full
            )
        )
        return {ContainerRef(self._seq, epoch, n): size for n, _, size in self._full}
