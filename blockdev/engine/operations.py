"""What can be done to an attached volume as a whole: snapshots, rollback, resize, collection on demand.

One rule: each is one record of the log, written by the commit task between two commits, when everything announced before is
in the bucket. So an operation happened or did not, and whoever replays the log sees it where it happened.

| operation | what a crash leaves |
| --- | --- |
| snapshot | before the record: a root more; after: the snapshot |
| snapshot-delete | before the record: nothing; after: the name is gone, what only it needed is looked for again (`sweep`) |
| rollback | before the record: a root more; after: the volume as of the snapshot, and a snapshot of what it was before |
| resize | before the record: nothing; after: the new size, which every attach reads |
| reservations | before the record: those kept before; after: the new ones, which every attach reads |
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from blockdev.engine.checkpoint import Checkpointer
from blockdev.engine.destager import Destager
from blockdev.engine.log import Persistence
from blockdev.engine.orphans import OrphanSweeper
from blockdev.engine.ports import Execution
from blockdev.engine.sweep import RootReader, Sweeper
from blockdev.errors import Refused
from blockdev.extents import history
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.history import Snapshot
from blockdev.segments import paths
from blockdev.segments.record import RangeEntry
from blockdev.units import BLOCK_BYTES, Geometry

log = logging.getLogger(__name__)

SNAPSHOT_NAME_LENGTH_MAX = 128
SNAPSHOTS_MAX = 4096
NAMES = (
    "flush",
    "checkpoint",
    "snapshot",
    "snapshots",
    "snapshot-delete",
    "rollback",
    "resize",
    "gc",
)
"""For people. `RESERVATIONS` is the front's own."""
RESERVATIONS = "reservations"
"""Keep this `state` of the persistent reservations."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An operation that waits until the bucket has everything before `position`."""

    id: int
    name: str
    arguments: dict[str, Any]
    position: int


class Operations:
    """Owned by the worker's commit task. `resized(size_bytes)` is told of a new size; `between` gives room for commits in
    the middle of something long."""

    def __init__(
        self,
        *,
        extent_map: ExtentMap,
        destager: Destager,
        checkpointer: Checkpointer,
        sweeper: Sweeper,
        orphans: OrphanSweeper,
        read_root: RootReader,
        persistence: Persistence,
        execution: Execution,
        between: Callable[[], Awaitable[None]],
        resized: Callable[[int], None],
    ) -> None:
        self._map = extent_map
        self._destager = destager
        self._checkpointer = checkpointer
        self._sweeper = sweeper
        self._orphans = orphans
        self._read_root = read_root
        self._persistence = persistence
        self._execution = execution
        self._between = between
        self._resized = resized

    async def perform(self, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """The operation's result. Raises Refused for what cannot be done as things are; then nothing was done."""
        try:
            match name:
                case "flush":
                    return self._where()
                case "checkpoint":
                    await self._checkpointer.write()
                    return self._where()
                case "snapshot":
                    return await self._snapshot(
                        str(arguments["name"]), int(arguments.get("expires_us", 0)), str(arguments.get("note", ""))
                    )
                case "snapshots":
                    return {"snapshots": [snapshot._asdict() for snapshot in self._map.history.snapshots]}
                case "snapshot-delete":
                    return await self._delete(str(arguments["name"]))
                case "rollback":
                    return await self._roll_back(str(arguments["to"]), str(arguments.get("keep_as", "")))
                case "resize":
                    return await self._resize(int(arguments["size_bytes"]), shrink=bool(arguments.get("shrink")))
                case "gc":
                    return await self._collect(orphans=bool(arguments.get("orphans")))
                case "reservations":
                    await self._destager.mark(history.reserved(arguments["state"]))
                    return {}
        except KeyError as error:
            raise Refused(f"{name} needs {error}") from error
        except (TypeError, ValueError) as error:
            raise Refused(f"{name}: {error}") from error
        raise Refused(f"there is no operation {name!r}; there are {', '.join(NAMES)}")

    def _where(self) -> dict[str, Any]:
        state = self._map.state
        assert state is not None
        return {"seq": state.seq, "digest": state.digest.hex(), "size_bytes": state.size_bytes}

    # --- snapshots -----------------------------------------------------------------------------------------------

    async def _snapshot(self, name: str, expires_us: int, note: str) -> dict[str, Any]:
        snapshot = await self._make(name, expires_us)
        more = {"comment": note} if note else {}
        await self._destager.mark(history.added(snapshot) | more)
        log.info("snapshot %s of commit %d", name, snapshot.seq)
        return snapshot._asdict()

    async def _make(self, name: str, expires_us: int = 0) -> Snapshot:
        """A root of this very moment, and the snapshot that is going to name it."""
        check_snapshot_name(name)
        if self._map.history.find(name) is not None:
            raise Refused(f"there is a snapshot {name} already", hint="choose another name, or delete that one first")
        if len(self._map.history.snapshots) >= SNAPSHOTS_MAX:
            raise Refused(f"there are {SNAPSHOTS_MAX} snapshots already", hint="delete some")
        await self._checkpointer.write()
        state = self._map.state
        assert state is not None
        return Snapshot(
            name, state.seq, state.root_epoch, state.digest.hex(), state.time_us, state.size_bytes, expires_us
        )

    async def _delete(self, name: str) -> dict[str, Any]:
        found = self._find(name)
        children = await self._sweeper.children(found)
        if children:
            raise Refused(
                f"snapshot {name} is needed by {', '.join(children)}",
                hint="delete these clones first",
            )
        await self._destager.mark(history.removed(name))
        return found._asdict()

    def _find(self, name: str) -> Snapshot:
        found = self._map.history.find(name)
        if found is None:
            names = ", ".join(snapshot.name for snapshot in self._map.history.snapshots)
            raise Refused(f"there is no snapshot {name!r}", hint=f"there are: {names}" if names else "there is none")
        return found

    def expired(self) -> list[str]:
        """Snapshots whose time is over."""
        now_us = self._execution.time() * 1e6
        return [s.name for s in self._map.history.snapshots if 0 < s.expires_us <= now_us]

    async def expire(self) -> list[str]:
        """Take the names of expired snapshots away, but for those that a clone needs; which they were."""
        names = []
        for name in self.expired():
            if not await self._sweeper.children(self._find(name)):
                names.append(name)
        if names:
            log.info("snapshots expired: %s", ", ".join(names))
            await self._destager.mark(history.removed(*names))
        return names

    async def _roll_back(self, name: str, keep_as: str) -> dict[str, Any]:
        found = self._find(name)
        root = await self._read_root(paths.root(found.seq, found.epoch))
        if root.digest.hex() != found.digest:
            raise Refused(f"the root of snapshot {name} is not the one it was taken of")
        now_us = int(self._execution.time() * 1e6)
        keep = keep_as or f"before-rollback-{now_us // 1_000_000}"
        before = await self._make(keep)
        note = history.added(before) | {"rollback": {"seq": found.seq, "epoch": found.epoch, "name": name}}
        await self._destager.mark(note, size_bytes=found.size_bytes, rolled=root)
        # The map's pages are those of the snapshot now; a root of its own makes attaching independent of this record.
        await self._checkpointer.write()
        self._resized(found.size_bytes)
        log.info("rolled back to snapshot %s; what was there before is snapshot %s", name, keep)
        return {"to": found._asdict(), "kept": before._asdict()} | self._where()

    # --- size ----------------------------------------------------------------------------------------------------

    async def _resize(self, size_bytes: int, *, shrink: bool) -> dict[str, Any]:
        state = self._map.state
        assert state is not None
        if size_bytes <= 0 or size_bytes % BLOCK_BYTES:
            raise Refused(f"a size must be a positive multiple of {BLOCK_BYTES} bytes, not {size_bytes}")
        geometry = self._destager.geometry
        Geometry(size_bytes, geometry.sector_bytes, geometry.frame_bytes, geometry.extent_bytes)
        if size_bytes == state.size_bytes:
            return self._where()
        ranges: list[RangeEntry] = []
        if size_bytes < state.size_bytes:
            if not shrink:
                raise Refused(
                    f"the volume has {state.size_bytes} bytes; {size_bytes} would cut off what lies behind",
                    hint="a file system must be shrunk first; then say --force",
                )
            if size_bytes % geometry.extent_bytes:
                raise Refused(f"a volume is cut at whole extents: a multiple of {geometry.extent_bytes} bytes")
            first = size_bytes // geometry.extent_bytes
            ranges.append(RangeEntry(first, -(-state.size_bytes // geometry.extent_bytes) - first))
        await self._destager.mark({"resized_from": state.size_bytes}, size_bytes=size_bytes, ranges=ranges)
        self._resized(size_bytes)
        return self._where()

    # --- collection ----------------------------------------------------------------------------------------------

    async def _collect(self, *, orphans: bool) -> dict[str, Any]:
        """Give back now what is not needed any more: what removed snapshots held, dead objects, and, when asked for,
        orphans. Two roots are written, since what an older root may still need stays."""
        before = self._checkpointer.deleted
        while await self._sweeper.slice():
            await self._between()
        while not await self._persistence.call("read map pages", self._map.purge):
            await self._between()
        for _ in range(2):
            await self._destager.mark({"purpose": "collection"})
            await self._checkpointer.write()
        while await self._checkpointer.delete_dead():
            await self._between()
        found = await self._orphans.sweep() if orphans else {}
        held = [snapshot.name for snapshot in self._map.history.removed]
        return {"deleted": self._checkpointer.deleted - before, "held": held} | found


def check_snapshot_name(name: str) -> str:
    """Returns `name`; raises Refused when no snapshot may be called that."""
    if (
        not name
        or len(name) > SNAPSHOT_NAME_LENGTH_MAX
        or not name.isprintable()
        or "/" in name
        or name != name.strip()
    ):
        raise Refused(
            f"{name!r} is no name for a snapshot",
            hint=f"at most {SNAPSHOT_NAME_LENGTH_MAX} printable characters, no '/'",
        )
    return name
