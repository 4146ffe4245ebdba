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

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from crc32c import crc32c

from blockdev.engine.log import CommitLog, Persistence, sizes_from_entries
from blockdev.errors import AttachRefused, CorruptFormat, Fenced
from blockdev.extents.extent_map import ExtentMap, MapState
from blockdev.segments import paths, record, root, volume_file
from blockdev.segments.record import NO_DIGEST, Record, RecordKind
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import Corrupt, NotFound
from s3core.store import ObjectStore

log = logging.getLogger(__name__)


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

    async def catch_up(self, progress: Callable[[int], None] = lambda seq: None) -> MapState | None:
        """Bring the map to the log's end. None: the log is empty (a new volume). Raises CorruptFormat naming the object."""
        await self._settle_start()
        while True:
            state = self._map.state
            parsed_records = await self._log.read_forward(state.seq + 1 if state is not None else 1)
            if not parsed_records:
                break
            for parsed in parsed_records:
                self._map.apply(parsed.record, parsed.digest, parsed.inline_offset, sizes_from_entries(parsed))
                progress(parsed.record.seq)
        return self._map.state

    async def _settle_start(self) -> None:
        """Decide where replay starts: the local map if it lies on this log, else the newest readable root, else record 1."""
        state = self._map.state
        if state is not None and state.seq:
            try:
                parsed = await self._log.read(state.seq)
            except CorruptFormat as error:
                raise CorruptFormat(f"the record the local map stands on is damaged: {error}", what="log") from error
            if parsed is not None and parsed.digest == state.digest:
                return
            log.warning("the local extent map (commit %d) is not of this log; rebuilding it from the bucket", state.seq)
        for candidate in await self._roots():
            try:
                body = await self._persistence.call(f"read {candidate}", self._store.get, candidate)
                found = root.decode(body.data, what=candidate, volume=self._volume.identity)
                await self._persistence.call(f"load {candidate}", self._map.load, found, self._read_page)
            except (NotFound, Corrupt, CorruptFormat) as error:
                log.warning("root %s cannot be used (%s); trying an older one", candidate, error)
                continue
            return
        self._map.clear()

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
            raise CorruptFormat("map page checksum does not hold", what=key, offset=ref.offset)
        return root.decode_page(blob, what=key, offset=ref.offset)

    def may_attach(self, state: MapState | None, journal: UUID | None, noted: int, *, accept_loss: bool) -> bool:
        """True when the journal on this host continues the volume; False when a new one may be started (nothing
        acknowledged is missing from the bucket, or the loss is accepted). Raises AttachRefused.

        `noted` is the newest epoch this journal was about to be attached as: a journal restored from a copy has the
        right identity and an older note, and lacks what was acknowledged since."""
        if state is None or state.seq == 0:
            return False
        same = journal is not None and state.journal == str(journal)
        if same and noted >= state.epoch:
            return True
        if state.kind == RecordKind.DETACH:
            return False
        if accept_loss:
            return False
        missing = f"the journal here is an older copy (of epoch {noted})" if same else "its journal is not here"
        raise AttachRefused(
            f"the volume was last written in epoch {state.epoch} (commit {state.seq}) and {missing}; "
            "writes that were acknowledged and had not reached the bucket are only in that journal",
            hint="start it on the host that has the journal; or, if that is gone for good, attach with --accept-loss: "
            f"everything after commit {state.seq} is lost then",
        )

    async def fence(
        self,
        journal: UUID,
        *,
        continues: bool,
        accept_loss: bool,
        position: int,
        nonce: bytes,
        time_us: int,
        note: dict[str, Any],
    ) -> Attached:
        """Write the fence record. Raises Fenced when another host was faster."""
        state = self._map.state
        lineage = UUID(state.lineage) if state is not None else self._volume.lineage
        lost = state is not None and not continues and state.kind != RecordKind.DETACH
        if lost:
            assert accept_loss
            # Acknowledged writes may be gone: from here on this is another history, and its name says so.
            lineage = UUID(bytes=nonce, version=4)
            note = note | {"lost_after": state.seq if state is not None else 0}
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
        return Attached(fence.epoch, fence.seq, position, fence.size_bytes, lineage, journal)
