"""A new volume from the content of an image.

One rule: `vol.json` comes last. Until it is there nobody can attach, and `create` refuses the name; from then on the
volume is whole.

The order, and what a crash leaves:
1. a FENCE record of epoch 1 under `log/1`, conditionally: of two that make the same volume one goes on
   (a crash leaves remains: `s3block delete` removes them, then import again);
2. extent objects, and DATA records that name them (a crash: as 1);
3. a DETACH record, a root and the head (a crash: as 1);
4. `vol.json`, conditionally (a crash afterwards leaves the volume, whole);
5. a look whether somebody is deleting this, or did before there was a log (an encrypted volume's key slot is gone then):
   `delete` of remains takes the next number in the log first and removes vol.json last, so an import that is deleted while
   it runs never leaves a volume with holes.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from blockdev.engine.attach import Attacher, Standing
from blockdev.engine.checkpoint import Checkpointer, CheckpointSettings
from blockdev.engine.destager import CommitSettings, Destager
from blockdev.engine.local_objects import MemoryObjects
from blockdev.engine.log import CommitLog, Persistence
from blockdev.engine.plan import is_zero
from blockdev.engine.ports import Execution, ThreadExecution
from blockdev.errors import CorruptFormat, Fenced, Refused
from blockdev.extents.extent_map import ExtentMap
from blockdev.image_source import ImageSource
from blockdev.offline import temporary_map
from blockdev.place import volume_store
from blockdev.segments import paths, volume_file
from blockdev.segments.cipher import Cipher
from blockdev.segments.record import BaseEntry, Record, RecordKind
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import BLOCK_BYTES
from blockdev.volumes import create_volume, newest_record
from s3core.errors import NotFound, StoreError
from s3core.store import ObjectStore

COMMIT_EXTENTS = 4096
"""Extents that one record names. A crash leaves remains anyway: fewer records would only make larger ones."""
PATIENCE_S = 120.0
"""A store that does not answer for this long ends the import."""


class Patience(Persistence):
    """Store calls repeated as the worker's are, but not for ever: a command has somebody who waits for it."""

    def __init__(self, execution: Execution, patience_s: float) -> None:
        super().__init__(execution)
        self._patience_s = patience_s
        self._clock = execution.monotonic
        self._away_since: float | None = None

    def failed(self, what: str, error: StoreError) -> None:
        if self._away_since is None:
            self._away_since = self._clock()
        if not error.temporary or self._clock() - self._away_since >= self._patience_s:
            raise error
        super().failed(what, error)

    def worked(self) -> None:
        self._away_since = None
        super().worked()


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import came to. `puts` counts all objects that were made, `stored_bytes` what was sent for them, but
    for the fence record and vol.json."""

    commit: int
    extents: int
    puts: int
    stored_bytes: int


def import_image(
    store: ObjectStore,
    volume: VolumeFile,
    source: ImageSource,
    *,
    journal: UUID,
    nonce: Callable[[], bytes],
    note: dict[str, Any],
    cipher: Cipher | None = None,
    settings: CommitSettings | None = None,
    done: Callable[[int], None] = lambda extents: None,
) -> Imported:
    """Make `volume` in `store` with the content of `source`, zeros behind its end. On return it exists durably, detached.
    `cipher` is an encrypted volume's, `note` goes into the fence record; `done` hears of extents that were dealt with. In
    memory are at most as many extents as are uploaded at once, and two.

    Raises Refused when somebody else makes the same volume, Fenced when it is deleted meanwhile,
    ImageRefused and CorruptFormat for the image, store errors. What was sent by then is there as remains."""
    settings = settings or CommitSettings(compression=volume.compression)
    execution = ThreadExecution(settings.uploads + 2)
    try:
        with temporary_map(volume.geometry) as extent_map:
            work = _Import(store, volume, source, extent_map, execution, settings, nonce, cipher, done)
            return asyncio.run(work.run(journal, note))
    finally:
        execution.close()


class _Import:
    def __init__(
        self,
        store: ObjectStore,
        volume: VolumeFile,
        source: ImageSource,
        extent_map: ExtentMap,
        execution: Execution,
        settings: CommitSettings,
        nonce: Callable[[], bytes],
        cipher: Cipher | None,
        done: Callable[[int], None],
    ) -> None:
        self._place = store
        self._store = volume_store(store, volume.name)
        self._volume = volume
        self._source = source
        self._map = extent_map
        self._execution = execution
        self._settings = settings
        self._nonce = nonce
        self._cipher = cipher
        self._done = done
        self._persistence = Patience(execution, PATIENCE_S)
        self._log = CommitLog(self._store, volume.identity, execution, self._persistence)
        self._window = asyncio.Semaphore(settings.uploads + 2)

    async def run(self, journal: UUID, note: dict[str, Any]) -> Imported:
        attacher = Attacher(self._volume, self._store, self._map, self._log, self._persistence)
        try:
            attached = await attacher.fence(
                journal,
                standing=Standing.NEW,
                position=BLOCK_BYTES,
                nonce=self._nonce(),
                time_us=int(self._execution.time() * 1e6),
                note=note | {"purpose": "import"},
            )
        except CorruptFormat as error:
            # The record that is there is not ours and not of this volume: the name was free a moment ago.
            raise Refused(f"somebody else makes volume {self._volume.name} at the same moment ({error})") from error
        destager = Destager(
            geometry=self._volume.geometry,
            volume=self._volume.identity,
            epoch=attached.epoch,
            lineage=attached.lineage,
            journal=journal,
            records=lambda begin, end: (),
            extent_map=self._map,
            store=self._store,
            local=MemoryObjects(0),
            commit_log=self._log,
            persistence=self._persistence,
            execution=self._execution,
            settings=self._settings,
            nonce=self._nonce,
            cipher=self._cipher,
        )
        numbers = self._source.extents(self._volume.geometry.extent_bytes)
        while True:
            state = self._map.state
            assert state is not None
            bases, more = await self._upload(destager, numbers, state.seq + 1)
            if bases:
                made = Record(
                    seq=state.seq + 1,
                    epoch=destager.epoch,
                    kind=RecordKind.DATA,
                    nonce=self._nonce(),
                    parent=state.digest,
                    volume=self._volume.identity,
                    lineage=attached.lineage,
                    journal=journal,
                    begin=state.end,
                    end=state.end,
                    time_us=int(self._execution.time() * 1e6),
                    size_bytes=state.size_bytes,
                    bases=bases,
                )
                await destager.append(made, (), {})
            if not more:
                break
        await self._execution.run(self._source.verify)
        await destager.detach()
        checkpointer = Checkpointer(
            volume=self._volume.identity,
            extent_map=self._map,
            store=self._store,
            destager=destager,
            persistence=self._persistence,
            execution=self._execution,
            settings=CheckpointSettings(),
        )
        await checkpointer.write()
        await self._execution.run(create_volume, self._place, self._volume)
        state = self._map.state
        assert state is not None
        await self._look(state.seq)
        counters = destager.counters
        return Imported(state.seq, self._map.extents_mapped, counters.puts + 2, counters.bytes_up)

    async def _upload(self, destager: Destager, numbers: Iterator[int], gen: int) -> tuple[list[BaseEntry], bool]:
        """Up to COMMIT_EXTENTS of `numbers` as objects of commit `gen`; False when there are no more."""
        tasks: list[asyncio.Task[BaseEntry | None]] = []
        more = True
        try:
            for _ in range(COMMIT_EXTENTS):
                await self._window.acquire()
                number = await self._execution.run(next, numbers, None)
                if number is None:
                    self._window.release()
                    more = False
                    break
                tasks.append(asyncio.create_task(self._extent(destager, number, gen)))
                if any(task.done() and task.exception() is not None for task in tasks[-2 * self._settings.uploads :]):
                    break
            entries = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return [entry for entry in entries if entry is not None], more

    async def _extent(self, destager: Destager, number: int, gen: int) -> BaseEntry | None:
        """None: all zeros."""
        try:
            found = await self._execution.run(self._encode, destager, number, gen)
            if found is not None:
                parts, lengths, digest = found
                await destager.upload(paths.extent(number, gen, destager.epoch), parts, keep=False)
        finally:
            self._window.release()
        self._done(1)
        return None if found is None else BaseEntry(number, gen, destager.epoch, gen, digest, lengths)

    def _encode(self, destager: Destager, number: int, gen: int) -> tuple[list[bytes], bytes, int] | None:
        geometry = self._volume.geometry
        content = memoryview(self._source.read(number * geometry.extent_bytes, geometry.extent_bytes))
        frames: list[memoryview | None] = []
        for at in range(0, len(content), geometry.frame_bytes):
            frame = content[at : at + geometry.frame_bytes]
            frames.append(None if is_zero(frame) else frame)
        if not any(frame is not None for frame in frames):
            return None
        return destager.encoder.extent(number, gen, destager.epoch, frames)

    async def _look(self, seq: int) -> None:
        """Step 5. Raises Fenced."""
        if await self._execution.run(self._is_there, seq):
            return
        await self._execution.run(self._withdraw)
        raise Fenced(f"volume {self._volume.name} was deleted while it was imported")

    def _is_there(self, seq: int) -> bool:
        newest = newest_record(self._store, None)
        if newest is None:
            return False
        if newest.record.seq > seq:
            # Somebody has attached it already, or is deleting it.
            return newest.record.note.get("purpose") != "deletion"
        if self._volume.encryption is not None and not self._any(paths.key_prefix()):
            return False
        # A deletion that has come to the log removes this one first.
        return newest.record.seq == seq and self._any(paths.log(1))

    def _any(self, prefix: str) -> bool:
        return next(iter(self._store.list(prefix)), None) is not None

    def _withdraw(self) -> None:
        try:
            if self._store.get(paths.volume_file()).data == volume_file.encode(self._volume):
                self._store.delete(paths.volume_file())
        except NotFound as error:
            if not error.key:
                raise
