"""Checkpoints: map pages that changed, then a root, then the head; and deleting what no root needs any more.

The order, and what a crash leaves:
1. PUT page packs (orphans: no root names them);
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
from blockdev.extents.extent_map import ExtentMap
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

    def wrote(self, record_bytes: int) -> None:
        """A commit record of that size was written."""
        self._bytes += record_bytes

    def due(self) -> bool:
        state = self._map.state
        assert state is not None
        return state.seq - state.root_seq >= self._settings.records or self._bytes >= self._settings.record_bytes

    async def write(self) -> None:
        """Checkpoint the map as it stands. On return a bare host recovers from here."""
        state, ranges, containers, dead = await self._execution.run(self._map.snapshot_for_root)
        if state.root_seq == state.seq:
            return
        dirty = await self._execution.run(self._map.dirty_pages)
        old = {ref.page: ref for ref in await self._execution.run(self._map.page_refs)}
        fresh = await self._write_pages(dirty, state.seq)
        pages = {page: ref for page, ref in old.items() if page not in set(dirty)} | fresh
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
            pages=[pages[page] for page in sorted(pages)],
            ranges=ranges,
            containers=containers,
            dead=dead,
            note={"kind": state.kind, "record_epoch": state.epoch},
        )
        key = paths.root(made.seq, made.epoch)
        blob = await self._execution.run(root.encode, made)
        await self._destager.upload(key, [blob], keep=False)
        head = {"root": key, "seq": made.seq, "epoch": made.epoch, "volume": str(self._volume)}
        await self._destager.upload(paths.head(), [json.dumps(head, sort_keys=True).encode() + b"\n"], keep=False)
        packs_before = {(ref.seq, ref.epoch, ref.n) for ref in old.values()}
        packs_now = {(ref.seq, ref.epoch, ref.n) for ref in pages.values()}
        obsolete = [paths.page_pack(*pack) for pack in sorted(packs_before - packs_now)]
        if state.root_seq:
            obsolete.append(paths.root(state.root_seq, state.root_epoch))
        await self._execution.run(self._map.checkpointed, made, dirty, obsolete)
        self.previous_root = state.root_seq
        self._bytes = 0
        log.debug("checkpoint at commit %d: %d pages, %d changed", made.seq, len(pages), len(dirty))

    async def _write_pages(self, dirty: list[int], seq: int) -> dict[int, PageRef]:
        epoch = self._destager.epoch
        refs: dict[int, PageRef] = {}
        pack: list[bytes] = []
        size = 0
        n = 0

        async def close() -> None:
            nonlocal pack, size, n
            if pack:
                await self._destager.upload(paths.page_pack(seq, epoch, n), pack, keep=False)
                pack, size, n = [], 0, n + 1

        for page in dirty:
            blob = await self._execution.run(self._encode_page, page)
            if blob is None:
                continue
            if size + len(blob) > PACK_BYTES:
                await close()
            refs[page] = PageRef(page, seq, epoch, n, size, len(blob), crc32c(blob))
            pack.append(blob)
            size += len(blob)
        await close()
        return refs

    def _encode_page(self, page: int) -> bytes | None:
        entries = self._map.page_entries(page)
        return root.encode_page(entries) if entries else None

    async def delete_dead(self) -> int:
        """Delete one batch of objects that died before the previous root; how many went. A key that cannot be deleted
        now is tried again later."""
        if not self.previous_root:
            return 0
        dead = await self._execution.run(self._map.dead, self.previous_root)
        batch = dead[:DELETES_MAX]
        if not batch:
            return 0
        failed = await self._execution.run(self._store.delete_many, [item.key for item in batch])
        if failed:
            log.warning(
                "%d of %d dead objects could not be deleted: %s", len(failed), len(batch), next(iter(failed.values()))
            )
        gone = [item for item in batch if item.key not in failed]
        await self._execution.run(self._map.forget_dead, gone)
        self.deleted += len(gone)
        return len(gone)
