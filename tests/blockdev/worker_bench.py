"""A volume's worker on a memory store with a real journal on disk: what the worker tests drive."""

import asyncio
import itertools
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID, uuid4

from blockdev.checksum import crc32c
from blockdev.engine import link
from blockdev.engine.destager import Records
from blockdev.engine.local_objects import MemoryObjects
from blockdev.engine.ports import ThreadExecution
from blockdev.engine.worker import Worker, WorkerSettings
from blockdev.extents.extent_map import ExtentMap, KeyValueStore
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.journal.file import PosixFile
from blockdev.journal.format import Kind
from blockdev.journal.journal import Journal, create_journal
from blockdev.journal.reader import JournalReader
from blockdev.segments.cipher import Cipher
from blockdev.segments.volume_file import VolumeFile
from blockdev.units import BLOCK_BYTES, GIB, MIB, Geometry
from s3core.memory import MemoryStore
from s3core.store import ObjectStore

VOLUME = UUID("0f0e0d0c-0b0a-4900-8807-060504030201")


def volume_file(size_bytes: int = GIB, **sizes: int) -> VolumeFile:
    return VolumeFile(
        name="v",
        identity=VOLUME,
        lineage=UUID(int=1),
        geometry=Geometry(size_bytes, **sizes),
        compression="zstd",
        created=0.0,
        creator="test",
    )


class MemorySlots:
    def __init__(self) -> None:
        self.slots: dict[int, bytes] = {}

    def write(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        self.slots[slot] = bytes(data)


class DirectoryJournal:
    """LocalJournal over a directory, small ring."""

    def __init__(self, path: Path, sector_bytes: int, ring_bytes: int = 32 * MIB) -> None:
        self._path = path / "journal"
        self._sector_bytes = sector_bytes
        self._ring_bytes = ring_bytes

    def identity(self) -> UUID | None:
        if not self._path.exists():
            return None
        return Journal.open(PosixFile(self._path)).superblock.journal

    def create(self, position: int) -> UUID:
        self._path.unlink(missing_ok=True)
        made = create_journal(
            self._path,
            journal=uuid4(),
            volume=VOLUME,
            ring_bytes=self._ring_bytes,
            sector_bytes=self._sector_bytes,
            start=position,
        )
        made.close()
        return made.superblock.journal

    def fits(self) -> bool:
        return True

    def remove(self) -> None:
        self._path.unlink()

    def note_epoch(self, epoch: int) -> None:
        self._path.with_name("epoch").write_text(f"{self.identity()} {epoch}")

    def noted_epoch(self) -> int:
        note = self._path.with_name("epoch")
        journal, epoch = note.read_text().split() if note.exists() else ("", "0")
        return int(epoch) if journal == str(self.identity()) else 0

    def records(self) -> Records:
        return JournalReader(PosixFile(self._path, writable=False)).records

    def open(self) -> Journal:
        return Journal.open(PosixFile(self._path))


class WorkerBench:
    """One worker and the journal it drains. Use as an async context manager; `crash=True` leaves without detaching."""

    def __init__(
        self,
        directory: Path,
        store: ObjectStore | None = None,
        kv: KeyValueStore | None = None,
        volume: VolumeFile | None = None,
        settings: WorkerSettings | None = None,
        cipher: Cipher | None = None,
    ) -> None:
        self.volume = volume or volume_file()
        self.geometry = self.volume.geometry
        self.store = store if store is not None else MemoryStore()
        self.map = ExtentMap(kv if kv is not None else MemoryKeyValueStore(), self.geometry)
        self.slots = MemorySlots()
        self.local_journal = DirectoryJournal(directory, self.geometry.sector_bytes)
        self.messages: list[link.ToFront] = []
        self.execution = ThreadExecution(8)
        self._ids = itertools.count(1)
        self._news = asyncio.Event()
        self.local = MemoryObjects(64 * MIB)
        self.worker = Worker(
            volume=self.volume,
            store=self.store,
            extent_map=self.map,
            local=self.local,
            slots=self.slots,
            journal=self.local_journal,
            execution=self.execution,
            settings=settings or WorkerSettings(lease_s=0.3),
            nonce=lambda: uuid4().bytes,
            cipher=cipher,
            send=self._receive,
        )
        self.task: asyncio.Task[None] | None = None

    def _receive(self, message: link.ToFront) -> None:
        self.messages.append(message)
        self._news.set()

    async def attach(self, *, run: bool = True) -> link.Ready:
        """Without `run` the worker does nothing by itself: its parts are driven by hand."""
        await self.worker.start()
        ready = next(m for m in reversed(self.messages) if isinstance(m, link.Ready))
        self.journal = self.local_journal.open()
        self.journal.recover(ready.position, lambda record: None)
        self.journal.epoch = ready.epoch
        if not run:
            return ready
        self.task = asyncio.create_task(self.worker.run())
        if self.journal.head > ready.position:
            self.worker.receive(link.Appended(self.journal.head))
        return ready

    def write(self, lba: int, data: bytes) -> None:
        sector = self.geometry.sector_bytes
        first = lba * sector
        crcs = []
        at = 0
        while at < len(data):
            size = min(BLOCK_BYTES - (first + at) % BLOCK_BYTES, len(data) - at)
            crcs.append(crc32c(data[at : at + size]))
            at += size
        self.journal.stage_write(lba, len(data) // sector, [data], len(data), crcs)
        self.journal.append()

    def unmap(self, lba: int, count: int) -> None:
        self.journal.stage_range(Kind.UNMAP, lba, count)
        self.journal.append()

    async def wait(self, kind: type[link.ToFront], test: object = None) -> link.ToFront:
        seen = 0
        while True:
            while seen < len(self.messages):
                message = self.messages[seen]
                seen += 1
                if isinstance(message, link.Failed):
                    raise AssertionError(message)
                if isinstance(message, kind) and (test is None or test(message)):  # type: ignore[operator]  # a predicate of that kind
                    return message
            self._news.clear()
            await asyncio.wait_for(self._news.wait(), 20)

    async def commit(self) -> None:
        head = self.journal.head
        self.worker.receive(link.Appended(head))
        self.worker.receive(link.CommitNow(head))
        await self.wait(link.Durable, lambda m: m.position >= head)

    async def read_frames(self, frames: Sequence[int]) -> dict[int, bytes]:
        id = next(self._ids)
        self.worker.receive(link.Fetch(id, tuple(link.FetchFrame(f, slot) for slot, f in enumerate(frames))))
        answer = await self.wait(link.Fetched, lambda m: m.id == id)
        assert isinstance(answer, link.Fetched)
        found = {}
        for item in answer.frames:
            assert item.state in ("data", "zero"), item
            zeros = bytes(self.geometry.frame_bytes)
            found[item.frame] = self.slots.slots[item.slot] if item.state == "data" else zeros
        return found

    async def read(self, lba: int, count: int) -> bytes:
        per = self.geometry.sectors_per_frame
        frames = range(lba // per, -(-(lba + count) // per))
        found = await self.read_frames(frames)
        sector = self.geometry.sector_bytes
        whole = b"".join(found[frame] for frame in frames)
        start = (lba - frames[0] * per) * sector
        return whole[start : start + count * sector]

    async def detach(self) -> None:
        self.worker.receive(link.Appended(self.journal.head))
        self.worker.receive(link.Detach())
        await self.wait(link.Detached)
        assert self.task is not None
        await self.task
        self.close()

    async def crash(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.close()

    def close(self) -> None:
        self.journal.close()
        self.execution.close()
