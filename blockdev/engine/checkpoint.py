"""Checkpoints: map pages that changed, then a root, then the head; and deleting what no root needs any more.

The order, and what a crash leaves:
1. PUT packs of pages and deltas (orphans: no root names them);
2. PUT the root (readable from now on; the head still names the older one, which works too);
3. PUT the head, a hint (attach looks at the listing of roots as well);
4. note it in the local map (a crash: the pages count as changed and are written once more).
Objects are deleted only after two further roots, so that a reader that started from an older root finds them.
"""

import json
import logging
from dataclasses import dataclass
from uuid import UUID

from crc32c import crc32c

from blockdev.engine.destager import Destager
from blockdev.engine.log import Persistence
from blockdev.engine.ports import Execution
from blockdev.extents.extent_map import DELTA_EXTENTS_MAX, DELTAS_MAX, ExtentMap
from blockdev.segments import paths, root
from blockdev.segments.root import PageRef, Root
from s3core.store import ObjectStore

log = logging.getLogger(__name__)

PACK_BYTES = 8 << 20
DELETES_MAX = 1000
"""Objects deleted at most after one checkpoint and one commit: one DeleteObjects request."""


@dataclass(frozen=True, slots=True)
class CheckpointSettings:
    records: int = 1000
    record_bytes: int = 64 << 20
    """Written to the log since the last root; recovery reads that much at most."""
    trim_age_s: float = 24 * 3600.0
    """Commit records stay at least so long after they are of no use."""


class Checkpointer:
    """Owned by the worker's commit task; never runs beside a commit."""

    def __init__(
        self,
        *,
        volume: UUID,
        extent_map: ExtentMap,
        store: ObjectStore,
        destager: Destager,
        persistence: Persistence,
        execution: Execution,
        settings: CheckpointSettings,
    ) -> None:
        self._volume = volume
        self._map = extent_map
        self._store = store
        self._destager = destager
        self._persistence = persistence
        self._execution = execution
        self._settings = settings
        self._bytes = 0
        self.previous_root = 0
        """Number of the root before the newest one this epoch wrote; what died before it may be deleted."""
        self.deleted = 0
        self.trimmed = 0
        self._trim_due = False
        self.pages_written = 0

    def wrote(self, record_bytes: int) -> None:
        """A commit record of that size was written."""
        self._bytes += record_bytes

    def due(self) -> bool:
        state = self._map.state
        assert state is not None
        return state.seq - state.root_seq >= self._settings.records or self._bytes >= self._settings.record_bytes

    async def write(self) -> None:
        """Checkpoint the map as it stands. On return a bare host recovers from here. What it costs follows what changed
        since the last one: a page little of which changed is written as a delta over what the last root names."""
        state, ranges, containers, dead = await self._execution.run(self._map.snapshot_for_root)
        if state.root_seq == state.seq:
            return
        dirty = await self._execution.run(self._map.dirty)
        places = await self._execution.run(self._map.page_places)
        packs_before = {_pack(ref) for refs in places.values() for ref in refs}
        written = await self._write_pages(dirty, places, state.seq)
        places |= written
        made = Root(
            seq=state.seq,
            epoch=self._destager.epoch,
            digest=state.digest,
            volume=self._volume,
            lineage=UUID(state.lineage),
            journal=UUID(state.journal),
            end=state.end,
            time_us=state.time_us,
            size_bytes=state.size_bytes,
            pages=[places[page][0] for page in sorted(places) if places[page]],
            runs=[ref for page in sorted(places) for ref in places[page][1:]],
            ranges=ranges,
            containers=containers,
            dead=dead,
            note=await self._execution.run(self._map.root_note),
        )
        key = paths.root(made.seq, made.epoch)
        blob = await self._execution.run(root.encode, made)
        await self._destager.upload(key, [blob], keep=False)
        head = {"root": key, "seq": made.seq, "epoch": made.epoch, "volume": str(self._volume)}
        await self._destager.upload(paths.head(), [json.dumps(head, sort_keys=True).encode() + b"\n"], keep=False)
        packs_now = {_pack(ref) for refs in places.values() for ref in refs}
        obsolete = [paths.page_pack(*pack) for pack in sorted(packs_before - packs_now)]
        if state.root_seq:
            obsolete.append(paths.root(state.root_seq, state.root_epoch))
        await self._execution.run(self._map.checkpointed, made, written, obsolete)
        self.previous_root = state.root_seq
        self._bytes = 0
        self._trim_due = True
        self.pages_written += len(written)
        log.debug("checkpoint at commit %d: %d pages, %d changed", made.seq, len(places), len(written))

    async def _write_pages(
        self, dirty: dict[int, list[int]], places: dict[int, list[PageRef]], seq: int
    ) -> dict[int, list[PageRef]]:
        """Where the changed pages are from now on: each written anew, or a delta behind what there is."""
        epoch = self._destager.epoch
        written: dict[int, list[PageRef]] = {}
        pack: list[bytes] = []
        size = 0
        n = 0

        async def close() -> None:
            nonlocal pack, size, n
            if pack:
                await self._destager.upload(paths.page_pack(seq, epoch, n), pack, keep=False)
                pack, size, n = [], 0, n + 1

        for page, extents in sorted(dirty.items()):
            place = places.get(page, [])
            delta, blob = await self._execution.run(self._encode_page, page, extents, place)
            if blob is None:
                written[page] = []
                continue
            if size + len(blob) > PACK_BYTES:
                await close()
            ref = PageRef(page, seq, epoch, n, size, len(blob), crc32c(blob))
            written[page] = [*place, ref] if delta else [ref]
            pack.append(blob)
            size += len(blob)
        await close()
        return written

    def _encode_page(self, page: int, extents: list[int], place: list[PageRef]) -> tuple[bool, bytes | None]:
        """(is it a delta, bytes): None when nothing of the page is mapped any more."""
        if place and len(place) <= DELTAS_MAX and len(extents) <= DELTA_EXTENTS_MAX:
            return True, root.encode_page(self._map.delta_entries(page, extents))
        entries = self._map.page_entries(page)
        return False, root.encode_page(entries) if entries else None

    async def delete_dead(self) -> int:
        """Delete one batch of objects that died before the previous root; how many went. A key that cannot be deleted
        now is tried again later."""
        if not self.previous_root:
            return 0
        batch = await self._execution.run(self._map.dead, self.previous_root, DELETES_MAX)
        if not batch:
            return await self._trim() if self._trim_due else 0
        failed = await self._execution.run(self._store.delete_many, [item.key for item in batch])
        if failed:
            log.warning(
                "%d of %d dead objects could not be deleted: %s", len(failed), len(batch), next(iter(failed.values()))
            )
        gone = [item for item in batch if item.key not in failed]
        await self._execution.run(self._map.forget_dead, gone)
        self.deleted += len(gone)
        return len(gone)

    async def _trim(self) -> int:
        """Delete commit records that nobody reads any more: older than the previous root, without a patch that counts,
        and settled for `trim_age_s`.

        A number that is free again could be created by a writer that stalled for that long. Its record would lie below
        the newest root, where nobody reads, and the writer learns of it: see `CommitLog.append`."""
        oldest = int((self._execution.time() - self._settings.trim_age_s) * 1e6)
        seqs = await self._execution.run(self._map.old_records, self.previous_root, oldest, DELETES_MAX)
        if not seqs:
            self._trim_due = False
            return 0
        failed = await self._execution.run(self._store.delete_many, [paths.log(seq) for seq in seqs])
        if failed:
            log.warning("%d of %d old records could not be deleted", len(failed), len(seqs))
        gone = [seq for seq in seqs if paths.log(seq) not in failed]
        self._trim_due = not failed
        await self._execution.run(self._map.forget_records, gone)
        self.trimmed += len(gone)
        return len(gone)


def _pack(ref: PageRef) -> tuple[int, int, int]:
    return ref.seq, ref.epoch, ref.n
