"""Attaching: find the volume's newest state, replay the log, and fence every earlier writer.

Recovery has no code of its own: the log's tail goes through `ExtentMap.apply` like a live commit. Same host, same map:
only the records written since are read. Bare host: head (a hint) -> root -> map pages -> the log from there.

The order, and what a crash leaves:
1. read vol.json, root, pages, log (nothing written; a crash costs the time);
2. create the journal file if there is none to continue (a crash leaves a journal that no record names: reused or replaced);
3. note the coming epoch beside the journal (a crash leaves a note that is too high, which is harmless);
4. put the fence record with If-None-Match (a crash after it leaves an epoch that acknowledged nothing: the next
   attach on this host finds its own journal named, and goes on).
"""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any
from uuid import UUID

from crc32c import crc32c

from blockdev.engine.destager import PAGE_READERS
from blockdev.engine.log import CommitLog, Persistence, sizes_from_entries
from blockdev.engine.whereabouts import AFTER, whereabouts
from blockdev.errors import AttachRefused, CorruptFormat, Fenced
from blockdev.extents.extent_map import ExtentMap, MapState, touched_extents
from blockdev.segments import paths, record, root, volume_file
from blockdev.segments.record import NO_DIGEST, Parsed, Record, RecordKind
from blockdev.segments.root import Root
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore

log = logging.getLogger(__name__)

CATCH_UPS = 3
"""Attempts to read map and log while somebody else is still writing them."""


@dataclass(frozen=True, slots=True)
class Attached:
    """What fencing brought: this epoch may write, and the journal continues at `position`."""

    epoch: int
    seq: int
    position: int
    size_bytes: int
    lineage: UUID
    journal: UUID


def open_volume_file(store: ObjectStore, name: str) -> VolumeFile:
    """vol.json of a volume (`store` is the volume's own prefix). Raises NotFound when there is no such volume."""
    try:
        body = store.get(paths.volume_file())
    except NotFound as error:
        raise NotFound(
            f"there is no volume {name} in {store.url}" + ("" if error.key else " (the bucket itself does not exist)"),
            hint="`s3block list` shows what is there, `s3block create` makes one",
        ) from error
    return volume_file.decode(body.data, what=f"{store.url}/{paths.volume_file()}")


class Standing(Enum):
    """How a host that attaches stands to the last writer."""

    NEW = "new"
    """Nothing was ever committed."""
    CONTINUES = "continues"
    """The last writer's journal is here."""
    CLEAN = "clean"
    """The last writer left in order."""
    FLUSHED = "flushed"
    """The last writer's journal is elsewhere, and nothing in it was promised to anybody: flushes went to the bucket."""
    ELSEWHERE = "elsewhere"
    """The last writer's journal, with acknowledged writes perhaps, is not here."""
    OLDER_COPY = "older copy"
    """An older copy of the last writer's journal is here."""

    @property
    def loses(self) -> bool:
        return self in (Standing.ELSEWHERE, Standing.OLDER_COPY)

    @property
    def takes_over(self) -> bool:
        """Whether the last writer may be alive."""
        return self.loses or self == Standing.FLUSHED


class Attacher:
    """Brings one volume's map up to the log's end and writes the fence record."""

    def __init__(
        self,
        volume: VolumeFile,
        store: ObjectStore,
        extent_map: ExtentMap,
        commit_log: CommitLog,
        persistence: Persistence,
    ) -> None:
        self._volume = volume
        self._store = store
        self._map = extent_map
        self._log = commit_log
        self._persistence = persistence
        self._origin = volume.origin[-1] if volume.origin else None
        extent_map.read_page = self._read_page
        extent_map.own_from = self._origin.seq + 1 if self._origin is not None else 0

    async def catch_up(self, progress: Callable[[int], None] = lambda seq: None) -> MapState | None:
        """Bring the map to the log's end. None: the log is empty (a new volume). Raises CorruptFormat naming the object."""
        for _ in range(CATCH_UPS - 1):
            try:
                return await self._catch_up(progress)
            except NotFound as error:
                # The writer that still has the volume has made newer roots and deleted what older ones need.
                log.warning("%s went while the log was read; beginning again at the newest root", error.key)
                self._map.clear()
        return await self._catch_up(progress)

    async def _catch_up(self, progress: Callable[[int], None]) -> MapState | None:
        await self._settle_start()
        while True:
            state = self._map.state
            parsed_records = await self._log.read_forward(state.seq + 1 if state is not None else 1)
            if not parsed_records:
                break
            await self._load_pages(parsed_records)
            for parsed in parsed_records:
                rolled = await self._rolled(parsed.record)
                self._map.apply(parsed.record, parsed.digest, parsed.inline_offset, sizes_from_entries(parsed), rolled)
                progress(parsed.record.seq)
        return self._map.state

    async def _load_pages(self, parsed_records: Sequence[Parsed]) -> None:
        """What `apply` would otherwise bring in one by one."""
        extents: set[int] = set()
        for parsed in parsed_records:
            if "rollback" in parsed.record.note:
                break  # the pages behind it are other ones
            extents |= touched_extents(parsed.record)
        pages = self._map.unloaded(extents)
        await asyncio.gather(
            *(
                self._persistence.call("read map pages", self._map.fault, pages[start::PAGE_READERS])
                for start in range(min(PAGE_READERS, len(pages)))
            )
        )

    async def _rolled(self, made: Record) -> Root | None:
        """The root that a record rolls back to. It is a snapshot's: the log below it may be gone, the root may not."""
        target = made.note.get("rollback")
        if target is None:
            return None
        return await self.read_root(paths.root(int(target["seq"]), int(target["epoch"])))

    async def read_root(self, key: str) -> Root:
        """Raises NotFound, CorruptFormat."""
        body = await self._persistence.call(f"read {key}", self._store.get, key)
        return root.decode(body.data, what=key)

    async def _settle_start(self) -> None:
        """Decide where replay starts: the local map if it lies on this log, else the newest readable root, else the root
        the volume was cloned from, else record 1."""
        state = self._map.state
        if state is not None and state.seq:
            if await self._on_this_log(state):
                newest = await self._newest_root()
                # Below a root that is younger than the map, records may have been deleted: the log seems to end there.
                if newest <= (state.root_seq if self._map.pages_waiting else state.seq):
                    return
                log.info("another host wrote a newer root; the local extent map may lack what was deleted since")
            else:
                log.warning(
                    "the local extent map (commit %d) is not of this log; rebuilding it from the bucket", state.seq
                )
        roots = await self._roots()
        gone: NotFound | None = None
        for candidate in roots:
            try:
                found = await self.read_root(candidate)
                if found.volume != self._volume.identity:
                    raise CorruptFormat("root of another volume", what=candidate, offset=0)
                await self._execute_load(found, None)
            except (NotFound, Corrupt, CorruptFormat) as error:
                log.warning("root %s cannot be used (%s); trying an older one", candidate, error)
                gone = error if isinstance(error, NotFound) else gone
                continue
            return
        origin = self._origin
        try:
            await self._refuse_cut_log(1 if origin is None else origin.seq + 1, roots)
        except CorruptFormat:
            if gone is None and await self._roots() != roots:
                gone = NotFound(
                    "a root came, and old records went, since the roots were listed", key=paths.root_prefix()
                )
            if gone is not None:
                raise gone from None  # the writer that has the volume made newer ones since the listing
            raise
        if origin is None:
            self._map.clear()
            return
        found = await self.read_root(origin.root)
        if found.digest != origin.digest or found.volume != origin.identity:
            raise CorruptFormat("is not the root this volume was cloned from", what=origin.root)
        await self._execute_load(found, (str(self._volume.lineage), origin.seq + 1))

    async def _on_this_log(self, state: MapState) -> bool:
        """Whether the map stands on a record that the log has, or on the origin's."""
        if self._origin is not None and state.seq == self._origin.seq:
            return state.digest == self._origin.digest
        try:
            parsed = await self._log.read(state.seq)
        except CorruptFormat as error:
            raise CorruptFormat(f"the record the local map stands on is damaged: {error}", what="log") from error
        return parsed is not None and parsed.digest == state.digest

    async def _newest_root(self) -> int:
        """Its commit, 0 when there is none."""
        return max((paths.number_of(key) or 0 for key in await self._roots()), default=0)

    async def _refuse_cut_log(self, first: int, roots: Sequence[str]) -> None:
        """Old records are deleted once a root holds what they said: without a root, a log with gaps is no history."""

        def gap() -> int | None:
            expected = first
            for info in self._store.list(paths.log_prefix()):
                if paths.number_of(info.key) != expected:
                    return expected
                expected += 1
            newest = max((paths.number_of(key) or 0 for key in roots), default=0)
            return expected if expected <= newest else None

        missing = await self._persistence.call("list log", gap)
        if missing is not None:
            raise CorruptFormat(
                f"no root can be read, and the log does not go back to its beginning: record {missing} is not there",
                what=paths.root_prefix(),
                hint="keep every object as it is; `s3block check` tells what is damaged",
            )

    async def _execute_load(self, found: Root, clone: tuple[str, int] | None) -> None:
        def load() -> None:
            self._map.load(found, self._read_page, clone=clone)

        await self._persistence.call("load root", load)

    async def _roots(self) -> list[str]:
        """Root keys, newest first: the one the head names, then all others from a listing."""
        hinted = None
        try:
            body = await self._persistence.call("read head", self._store.get, paths.head())
            hinted = str(json.loads(body.data)["root"])
        except NotFound:
            pass
        except (ValueError, KeyError, TypeError, Corrupt) as error:
            log.warning("head does not parse (%s); looking for roots by listing", error)

        def listing() -> list[str]:
            return sorted((info.key for info in self._store.list(paths.root_prefix())), reverse=True)

        try:
            listed = await self._persistence.call("list roots", listing)
        except Corrupt as error:
            log.warning("roots cannot be listed (%s); trusting the head, else replaying the whole log", error)
            return [hinted] if hinted else []
        # A stale head (written by a fenced writer, or rolled back) names an older root: the listing's newest wins.
        return sorted({*listed, *([hinted] if hinted and hinted in listed else [])}, reverse=True)

    def _read_page(self, ref: root.PageRef) -> Iterator[tuple[int, bytes]]:
        key = paths.page_pack(ref.seq, ref.epoch, ref.n)
        blob = self._store.get_range(key, ref.offset, ref.length).data
        if crc32c(blob) != ref.crc:
            log.warning("%s: map page checksum does not hold; reading it once more, in case it was the way", key)
            blob = self._store.get_range(key, ref.offset, ref.length).data
        if crc32c(blob) != ref.crc:
            first = ref.page * root.PAGE_EXTENTS
            raise CorruptFormat(
                f"map page checksum does not hold (extents {first} to {first + root.PAGE_EXTENTS - 1})",
                what=key,
                offset=ref.offset,
            )
        return root.decode_page(blob, what=key, offset=ref.offset)

    def standing(self, state: MapState | None, journal: UUID | None, noted: int) -> Standing:
        """How this host stands to the volume's last writer, whose state is `state`.

        `journal` is the one on this host; `noted` is the newest epoch it was about to be attached as: a journal restored
        from a copy has the right identity and an older note, and lacks what was acknowledged since."""
        if state is None or state.seq == 0:
            return Standing.NEW
        same = journal is not None and state.journal == str(journal)
        if same and noted >= state.epoch:
            return Standing.CONTINUES
        if state.kind == RecordKind.DETACH:
            return Standing.CLEAN
        if state.flush == "s3":
            return Standing.FLUSHED
        return Standing.OLDER_COPY if same else Standing.ELSEWHERE

    def refuse_loss(self, standing: Standing, state: MapState | None, noted: int, *, accept_loss: bool) -> None:
        """Raises AttachRefused where acknowledged writes would be given up and nobody said that they may be."""
        if not standing.loses or accept_loss:
            return
        assert state is not None
        missing = "its journal is not here"
        if standing == Standing.OLDER_COPY:
            missing = f"the journal here is an older copy (of epoch {noted})"
        host = state.fence.get("host")
        raise AttachRefused(
            f"the volume was last written in epoch {state.epoch} (commit {state.seq})"
            f"{f' on {host}' if host else ''} and {missing}; "
            "writes that were acknowledged and had not reached the bucket are only in that journal",
            hint="start it on the host that has the journal; or, if that is gone for good, attach with --accept-loss: "
            f"everything after commit {state.seq} is lost then",
        )

    @staticmethod
    def waits_for(standing: Standing, state: MapState | None) -> float:
        """Seconds the last writer may go on acknowledging after our fence, if it lives and does not know of us."""
        if state is None:
            return 0.0
        lease_s = float(state.fence.get("lease_s", 0.0))
        if standing.takes_over:
            return lease_s
        # We took over before, and died before anything came of it: the one before us may be there still.
        unfinished = standing == Standing.CONTINUES and state.kind == RecordKind.FENCE
        return lease_s if unfinished and state.fence.get("took_over") else 0.0

    async def fence(
        self,
        journal: UUID,
        *,
        standing: Standing,
        position: int,
        nonce: bytes,
        time_us: int,
        note: dict[str, Any],
        waits: float = 0.0,
    ) -> Attached:
        """Write the fence record. `waits`: the lease that is going to be waited for, 0 for none. Raises AttachRefused when
        another host was faster."""
        state = self._map.state
        lineage = UUID(state.lineage) if state is not None else self._volume.lineage
        if standing.loses:
            # Acknowledged writes may be gone: from here on this is another history, and its name says so.
            lineage = UUID(bytes=nonce, version=4)
            note = note | {"lost_after": state.seq if state is not None else 0}
        if waits and state is not None:
            # Whoever comes after us, while we wait, has to wait for both of us. When this host begins again in the middle,
            # it is still the one before us that counts.
            former = state.fence if standing.takes_over else state.fence.get(AFTER, {})
            note = note | {
                "took_over": True,
                "lease_s": max(float(note.get("lease_s", 0.0)), waits),
                AFTER: whereabouts(former),
            }
        fence = Record(
            seq=(state.seq if state is not None else 0) + 1,
            epoch=(state.epoch if state is not None else 0) + 1,
            kind=RecordKind.FENCE,
            nonce=nonce,
            parent=state.digest if state is not None else NO_DIGEST,
            volume=self._volume.identity,
            lineage=lineage,
            journal=journal,
            begin=position,
            end=position,
            time_us=time_us,
            size_bytes=state.size_bytes if state is not None else self._volume.geometry.size_bytes,
            note=note,
        )
        parts, digest, inline_offset = record.encode(fence)
        try:
            await self._log.append(fence.seq, parts, nonce)
        except Fenced as error:
            raise AttachRefused(
                f"another host attached the volume at the same moment: {error}", hint="one of the two must stop"
            ) from error
        self._map.apply(fence, digest, inline_offset, {})
        made = self._map.state
        if standing.takes_over and made is not None and await self._newest_root() > made.root_seq:
            # The writer that is fenced now made a root since ours was read, and may have deleted pages that ours names.
            log.info("the former writer wrote a newer root meanwhile; beginning again from there")
            self._map.clear()
            await self.catch_up()
        return Attached(fence.epoch, fence.seq, position, fence.size_bytes, lineage, journal)
