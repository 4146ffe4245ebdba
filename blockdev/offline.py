"""The offline reader: a volume's content out of the bucket alone, without journal, lease or fence.

One rule: it only reads. Every call passes `ReadingStore`, which refuses anything that could change the bucket, so a volume
may be looked at while a host is writing to it; what is seen is the state after one commit.

The map is built by attach's own code (`Attacher.catch_up`): there is no second way to understand a volume. A past commit
is had by hiding everything younger from that code.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from blockdev.engine.ancestry import Ancestry, with_ancestors
from blockdev.engine.attach import Attacher
from blockdev.engine.fetch import Fetcher
from blockdev.engine.local_objects import MemoryObjects
from blockdev.engine.log import CommitLog, Persistence
from blockdev.engine.ports import Execution, ThreadExecution
from blockdev.errors import CorruptFormat, KeyRefused
from blockdev.extents.extent_map import ExtentMap, KeyValueStore, MapState
from blockdev.extents.format import ExtentValue
from blockdev.extents.history import Snapshot
from blockdev.extents.lmdb_map import LmdbKeyValueStore
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.segments import paths, volume_file
from blockdev.segments.cipher import Cipher
from blockdev.segments.volume_file import VolumeFile, cipher_of
from blockdev.units import MIB, Geometry
from s3core.errors import NotFound
from s3core.store import Body, ObjectInfo, ObjectStore
from s3core.wrapper import READS, Call, StoreWrapper

T = TypeVar("T")

THREADS = 16
MEMORY_EXTENTS_MAX = 1 << 18
"""A volume with more extents than this has its map in LMDB, in a temporary directory, not in memory."""
LOCAL_BYTES_MAX = 64 * MIB
"""Segments and records kept for the pieces that are wanted of them later."""
WINDOW_BYTES = 16 * MIB
"""Content read at once; two windows are in memory."""


class ReadingStore(StoreWrapper):
    """Passes on reads and nothing else."""

    def _perform(self, call: Call, action: Callable[[], T]) -> T:
        if call.operation not in READS:
            raise AssertionError(f"the offline reader was about to {call.operation} {call.key}")
        return action()


class PastStore(StoreWrapper):
    """A volume's store as it was after `commit`, for attach: younger records and roots are not there."""

    def __init__(self, inner: ObjectStore, commit: int) -> None:
        super().__init__(inner)
        self._last_record = paths.log(commit)
        # Any epoch of that commit's root sorts before this.
        self._last_root = paths.root(commit + 1, 0)

    def get(self, key: str) -> Body:
        if key.startswith(paths.log_prefix()) and key > self._last_record:
            raise NotFound("younger than the commit asked for", key=key)
        return super().get(key)

    def list(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        for info in super().list(prefix, start_after=start_after):
            if not info.key.startswith(paths.root_prefix()) or info.key < self._last_root:
                yield info


class Once(Persistence):
    """Store calls made once: a command that cannot reach the store says so. (The store's own retries are below.)"""

    def __init__(self, execution: Execution) -> None:
        super().__init__(execution)
        self._once = execution

    async def call(self, what: str, function: Callable[..., T], *args: Any) -> T:
        return await self._once.run(function, *args)


class Sink(Protocol):
    """Where content goes. Calls come with rising offsets; what is not written is zeros."""

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...


def read_volume_file(store: ObjectStore, name: str) -> VolumeFile:
    """vol.json of the volume whose own part `store` is. Raises NotFound when there is no such volume, CorruptFormat."""
    try:
        body = store.get(paths.volume_file())
    except NotFound as error:
        if not error.key:
            raise
        raise NotFound(
            f"there is no volume {name} at {store.url}",
            hint="`s3block list` shows what is there, `s3block create` makes one",
        ) from error
    return volume_file.decode(body.data, what=f"{store.url}/{paths.volume_file()}")


@contextmanager
def temporary_map(geometry: Geometry) -> Iterator[ExtentMap]:
    """An empty map that is gone afterwards: in memory, or on disk (in TMPDIR) for a large volume."""
    kv: KeyValueStore
    if geometry.extent_count <= MEMORY_EXTENTS_MAX:
        yield ExtentMap(MemoryKeyValueStore(), geometry)
        return
    directory = Path(tempfile.mkdtemp(prefix="s3block-map-"))
    try:
        kv = LmdbKeyValueStore(directory)
        try:
            yield ExtentMap(kv, geometry)
        finally:
            kv.close()
    finally:
        shutil.rmtree(directory)


def settle(extent_map: ExtentMap) -> None:
    """Work unfinished discards into the map, so that counts in it are of what can be read."""
    while extent_map.state is not None and not extent_map.purge():
        pass


class OfflineVolume:
    """One volume as of one commit. Made by `open_offline`."""

    def __init__(
        self,
        volume: VolumeFile,
        store: ObjectStore,
        extent_map: ExtentMap,
        execution: Execution,
        state: MapState | None,
        cipher: Cipher | None = None,
    ) -> None:
        self.volume = volume
        self.store = store
        self.map = extent_map
        self.state = state
        """None: nothing was ever committed; every sector is zero."""
        self._execution = execution
        self._cipher = cipher
        geometry = volume.geometry
        self.size_bytes = state.size_bytes if state is not None else geometry.size_bytes
        local = MemoryObjects(LOCAL_BYTES_MAX)
        self._fetcher = Fetcher(geometry, Ancestry(volume).volume_of, extent_map, store, local, execution, cipher)

    @property
    def snapshots(self) -> tuple[Snapshot, ...]:
        """The volume's own, by commit; the ones of a clone's ancestors are not among them."""
        return self.map.history.snapshots if self.state is not None else ()

    def snapshot(self, name: str) -> Snapshot:
        """Raises NotFound, naming those that are there."""
        for snapshot in self.snapshots:
            if snapshot.name == name:
                return snapshot
        there = ", ".join(snapshot.name for snapshot in self.snapshots) or "it has none"
        raise NotFound(f"volume {self.volume.name} has no snapshot {name}", hint=f"its snapshots: {there}")

    @property
    def fence(self) -> Mapping[str, Any]:
        """What the last writer's FENCE record says of it: host, lease_s, journal_bytes and so on; may be empty."""
        return self.state.fence if self.state is not None else {}

    @property
    def root_key(self) -> str | None:
        """The checkpoint the map was built from; None: from the log's beginning."""
        state = self.state
        return paths.root(state.root_seq, state.root_epoch) if state is not None and state.root_seq else None

    @property
    def mapped_extents(self) -> int:
        """Extents that hold something."""
        return self.map.extents_mapped if self.state is not None else 0

    def copy(
        self,
        sink: Sink,
        *,
        start: int = 0,
        done: Callable[[int], None] = lambda extent: None,
    ) -> None:
        """Write the content from extent `start` on to `sink`, zeros left out, and tell `done` of every extent that
        is written. Raises CorruptFormat with key and offset before a wrong byte is written; KeyRefused for an encrypted
        volume that was opened without its key; store errors."""
        self._require_key()
        if self.state is not None:
            _run(self._copy(sink, start, done))

    def _require_key(self) -> None:
        if self.volume.encryption is not None and self._cipher is None:
            raise KeyRefused(f"volume {self.volume.name} is encrypted, and was opened without its key")

    async def _copy(self, sink: Sink, start: int, done: Callable[[int], None]) -> None:
        pending: asyncio.Task[list[tuple[int, list[bytes | bytearray | None]]]] | None = None
        try:
            for batch in self._batches(start):
                task = asyncio.create_task(self._read(batch))
                if pending is not None:
                    await self._write(sink, await pending, done)
                pending = task
            if pending is not None:
                await self._write(sink, await pending, done)
                pending = None
        finally:
            if pending is not None:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)

    def _batches(self, start: int) -> Iterator[list[int]]:
        most = max(1, WINDOW_BYTES // self.volume.geometry.extent_bytes)
        batch: list[int] = []
        for extent, _ in self.map.extents(start, -(-self.size_bytes // self.volume.geometry.extent_bytes)):
            batch.append(extent)
            if len(batch) == most:
                yield batch
                batch = []
        if batch:
            yield batch

    def extents(self) -> Iterator[tuple[int, ExtentValue]]:
        """Every extent that holds something, with its place, ascending."""
        return self.map.extents() if self.state is not None else iter(())

    def frames(self, wanted: Sequence[int]) -> dict[int, bytes | bytearray | None]:
        """The content of these frames (numbers over the whole volume), None for zeros. Raises KeyRefused as `copy`
        does, CorruptFormat, store errors."""
        self._require_key()
        if self.state is None:
            return dict.fromkeys(wanted)
        return _run(self._frames(wanted))

    async def _read(self, extents: Sequence[int]) -> list[tuple[int, list[bytes | bytearray | None]]]:
        per = self.volume.geometry.frames_per_extent
        found = await self._frames([frame for extent in extents for frame in range(extent * per, (extent + 1) * per)])
        return [(extent, [found[extent * per + index] for index in range(per)]) for extent in extents]

    async def _frames(self, wanted: Sequence[int]) -> dict[int, bytes | bytearray | None]:
        _, contents = await self._fetcher.frames(wanted)
        for frame in wanted:
            error = contents[frame].error
            if isinstance(error, NotFound):
                raise CorruptFormat(
                    "the map names this object and it is not there",
                    what=error.key,
                    hint="if a host is writing to the volume, try again: its collector may have been faster",
                ) from error
            if error is not None:
                raise error
        return {frame: contents[frame].data for frame in wanted}

    async def _write(
        self, sink: Sink, content: list[tuple[int, list[bytes | bytearray | None]]], done: Callable[[int], None]
    ) -> None:
        def write() -> None:
            frame_bytes = self.volume.geometry.frame_bytes
            for extent, frames in content:
                for index, data in enumerate(frames):
                    offset = extent * self.volume.geometry.extent_bytes + index * frame_bytes
                    size = min(frame_bytes, self.size_bytes - offset)
                    if data is not None and size > 0 and data.count(0) < len(data):
                        sink.write(offset, memoryview(data)[:size])
                done(extent)

        await self._execution.run(write)


@contextmanager
def open_offline(
    store: ObjectStore,
    name: str,
    *,
    commit: int | None = None,
    progress: Callable[[int], None] = lambda seq: None,
    unlock: Callable[[VolumeFile], bytes] | None = None,
) -> Iterator[OfflineVolume]:
    """The volume whose own part `store` is, after its newest commit or after `commit`. `progress` hears the number of
    every record that is replayed. `unlock` gives the data key before anything but vol.json and key slots is read; without
    it an encrypted volume can be described and not copied. Raises NotFound (no such volume, no such commit), KeyRefused,
    CorruptFormat, store errors."""
    volume = read_volume_file(ReadingStore(store), name)
    cipher = cipher_of(volume, unlock(volume), os.urandom) if unlock is not None else None
    reading = ReadingStore(with_ancestors(store, volume))
    seen: ObjectStore = reading if commit is None else PastStore(reading, commit)
    execution = ThreadExecution(THREADS)
    try:
        with temporary_map(volume.geometry) as extent_map:
            persistence = Once(execution)
            log = CommitLog(seen, volume.identity, execution, persistence)
            attacher = Attacher(volume, seen, extent_map, log, persistence)
            state = _run(attacher.catch_up(progress))
            if commit is not None and (state is None or state.seq != commit):
                newest = f"the newest is {state.seq}" if state is not None else "nothing was ever committed"
                raise NotFound(
                    f"volume {name} has no commit {commit}; {newest}", hint="`s3block info` shows the newest"
                )
            settle(extent_map)
            yield OfflineVolume(volume, reading, extent_map, execution, state, cipher)
    finally:
        execution.close()


def commit_of(store: ObjectStore, name: str, snapshot: str) -> int:
    """The commit that a snapshot names. Raises NotFound, and what `open_offline` raises."""
    with open_offline(store, name) as found:
        return found.snapshot(snapshot).seq


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)
