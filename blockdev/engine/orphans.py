"""Orphans: objects that no commit named, left by a crash between an upload and its record, or by a failed delete.

One rule: an orphan is an object of a commit that is long past, which neither the live map, nor a snapshot's, nor the list of
the dead names. An object's key says for which commit it was written, and it can be named by no other: so what commit n did
not name when n is over stays unnamed for ever. Whatever is in doubt stays.

Keys are listed and judged some thousands at a time, with room for commits between.
"""

import logging
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any

from blockdev.engine.log import Persistence
from blockdev.engine.ports import Execution
from blockdev.engine.sweep import RootReader, packs_of, places_of
from blockdev.errors import CorruptFormat
from blockdev.extents import format as mapformat
from blockdev.extents.extent_map import ExtentMap, merged_page
from blockdev.segments import paths
from blockdev.segments.paths import ContainerRef
from blockdev.segments.root import PAGE_EXTENTS, PageRef, Root
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectInfo, ObjectStore

log = logging.getLogger(__name__)

_Placed = tuple[Root, dict[int, list[PageRef]]]
"""A snapshot's root, and where its pages are."""

KEYS_AT_ONCE = 4000
DELETES_MAX = 1000


class OrphanSweeper:
    """Owned by the worker's commit task; nothing is committed while it judges a batch. `between` is awaited after each."""

    def __init__(
        self,
        *,
        extent_map: ExtentMap,
        store: ObjectStore,
        persistence: Persistence,
        execution: Execution,
        read_root: RootReader,
        between: Callable[[], Awaitable[None]],
    ) -> None:
        self._map = extent_map
        self._store = store
        self._persistence = persistence
        self._execution = execution
        self._read_root = read_root
        self._between = between
        self.deleted = 0
        self._found = 0
        self._bytes = 0

    async def sweep(self) -> dict[str, Any]:
        """Find and delete them all; how many and how large. Objects that cannot be judged stay and are counted."""
        state = self._map.state
        assert state is not None
        self._found = self._bytes = 0
        unclear = 0
        roots: list[Root] = []
        history = self._map.history
        for snapshot in (*history.snapshots, *history.removed):
            try:
                roots.append(await self._read_root(paths.root(snapshot.seq, snapshot.epoch)))
            except (NotFound, Corrupt, CorruptFormat) as error:
                log.warning("no orphans are looked for: the root of snapshot %s: %s", snapshot.name, error)
                return {"orphans": 0, "orphan_bytes": 0, "unclear": 1}
        snapshots = [(root, places_of(root)) for root in roots]
        for prefix in (paths.extent_prefix(), paths.segment_prefix(), paths.page_prefix()):
            after = ""
            while listed := await self._persistence.call("list objects", self._list, prefix, after):
                after = listed[-1].key
                old = [info for info in listed if self._is_old(info.key, state.seq)]
                try:
                    named = await self._named(prefix, old, snapshots)
                except (NotFound, Corrupt, CorruptFormat) as error:
                    log.warning("%s is not looked through further: %s", prefix, error)
                    unclear += len(old)
                    break
                await self._delete(await self._execution.run(self._unnamed, old, named))
                await self._between()
                if history != self._map.history:
                    log.warning("the snapshots changed; orphans are looked for again another time")
                    return {"orphans": self._found, "orphan_bytes": self._bytes, "unclear": unclear}
        newest = self._map.state
        assert newest is not None
        kept = {paths.root(root.seq, root.epoch) for root in roots} | {paths.root(newest.root_seq, newest.root_epoch)}
        listed = await self._persistence.call("list roots", self._list, paths.root_prefix(), "")
        # Roots at or behind our newest one stay: `head` may name another one of the same commit.
        old = [info for info in listed if self._is_old(info.key, newest.root_seq) and info.key not in kept]
        dying = {item.key for item in await self._execution.run(self._map.dead)}
        await self._delete([info for info in old if info.key not in dying])
        await self._release_records(roots, state.root_seq)
        return {"orphans": self._found, "orphan_bytes": self._bytes, "unclear": unclear}

    async def _release_records(self, roots: list[Root], before: int) -> None:
        """Commit records that were kept for a snapshot which, after a rollback, never needed their patches: nobody would
        look at them again. From now on they go the way of all old records."""
        refs = set(self._map.containers)
        for root in roots:
            refs |= {use.ref for use in root.containers}
        named = {paths.container(ref) for ref in refs}
        after = ""
        while listed := await self._persistence.call("list records", self._list, paths.log_prefix(), after):
            after = listed[-1].key
            waiting = await self._execution.run(self._map.old_records, 1 << 62, 1 << 62, 1 << 62)
            kept = named.union(map(paths.log, waiting))
            free = [info.key for info in listed if self._is_old(info.key, before) and info.key not in kept]
            if free:
                log.info("%d commit records are not needed by any snapshot", len(free))
                await self._execution.run(self._map.bury, free)

    def _list(self, prefix: str, after: str) -> list[ObjectInfo]:
        return list(islice(self._store.list(prefix, start_after=after), KEYS_AT_ONCE))

    @staticmethod
    def _is_old(key: str, seq: int) -> bool:
        number = paths.number_of(key)
        return number is not None and number < seq

    async def _named(self, prefix: str, old: list[ObjectInfo], snapshots: list[_Placed]) -> set[str]:
        """Those of the prefix that somebody needs; of extents, on the pages of `old` alone."""
        if prefix == paths.page_prefix():
            packs = packs_of(await self._execution.run(self._map.page_places))
            for _, places in snapshots:
                packs |= packs_of(places)
            return {paths.page_pack(*pack) for pack in packs}
        if prefix == paths.segment_prefix():
            refs: set[ContainerRef] = set(self._map.containers)
            for root, _ in snapshots:
                refs |= {use.ref for use in root.containers}
            return {paths.container(ref) for ref in refs}
        return await self._named_extents(sorted({_extent_of(info.key) for info in old}), snapshots)

    def _unnamed(self, old: list[ObjectInfo], named: set[str]) -> list[ObjectInfo]:
        unnamed = [info for info in old if info.key not in named]
        # After the look at what is named: what dies meanwhile is found here.
        dying = {item.key for item in self._map.dead()} if unnamed else set()
        return [info for info in unnamed if info.key not in dying]

    async def _named_extents(self, extents: list[int], snapshots: list[_Placed]) -> set[str]:
        pages: dict[int, list[int]] = {}
        for extent in extents:
            pages.setdefault(extent // PAGE_EXTENTS, []).append(extent)
        named: set[str] = set()
        for page, members in pages.items():
            # Each read is tried again by itself: a store that answers nine of ten requests lets the look come to its end.
            named |= await self._persistence.call("look for orphans", self._named_live, page, members)
            for place in dict.fromkeys(tuple(places.get(page, ())) for _, places in snapshots):
                if place:
                    named |= await self._persistence.call("look for orphans", self._named_at, page, place)
        return named

    def _named_live(self, page: int, members: list[int]) -> set[str]:
        self._map.fault(self._map.unloaded(members))
        first = page * PAGE_EXTENTS
        bases = self._map.raw_bases(first, first + PAGE_EXTENTS)
        return {paths.extent(extent, gen, epoch) for extent, (gen, epoch) in bases.items()}

    def _named_at(self, page: int, place: tuple[PageRef, ...]) -> set[str]:
        named = set()
        for index, blob in merged_page(place, self._map.read_page).items():
            extent = page * PAGE_EXTENTS + index
            base = mapformat.decode(extent, blob).base
            if base is not None:
                named.add(paths.extent(extent, base.gen, base.epoch))
        return named

    async def _delete(self, gone: list[ObjectInfo]) -> None:
        for start in range(0, len(gone), DELETES_MAX):
            batch = gone[start : start + DELETES_MAX]
            failed = await self._execution.run(self._store.delete_many, [info.key for info in batch])
            removed = [info for info in batch if info.key not in failed]
            self._found += len(removed)
            self._bytes += sum(info.size for info in removed)
            self.deleted += len(removed)
            if failed:
                log.warning("%d orphans could not be deleted: %s", len(failed), next(iter(failed.values())))


def _extent_of(key: str) -> int:
    return int(key.split("/")[2], 16)
