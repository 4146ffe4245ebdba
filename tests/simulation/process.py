"""One life of a volume's two processes, front and worker, on the simulated loop, disk and store.

One rule: the engine's own code runs here unchanged; only its ports are ours: execution (delays, then runs inline), link
(ordered, delayed), flush thread (begins and ends at different times), files (SimDisk), clock (virtual).
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from blockdev.engine import link
from blockdev.engine.cache import ReadCache
from blockdev.engine.cache_table import CacheLayout, encode_header
from blockdev.engine.destager import Records
from blockdev.engine.front import Front
from blockdev.engine.local_objects import MemoryObjects
from blockdev.engine.syncer import SyncDone
from blockdev.engine.worker import Worker, WorkerSettings
from blockdev.errors import LocalDiskFailed
from blockdev.extents.extent_map import ExtentMap
from blockdev.extents.memory_map import MemoryKeyValueStore
from blockdev.journal.format import RING_START
from blockdev.journal.journal import Journal
from blockdev.journal.reader import JournalReader, read_superblock
from blockdev.segments.cipher import Cipher
from blockdev.segments.volume_file import VolumeFile
from s3core.errors import StoreError
from s3core.store import ObjectStore
from tests.simulation.disk import SimDisk, SimHandle
from tests.simulation.loop import OWNER, SimLoop

T = TypeVar("T")
JOURNAL, CACHE, TABLE = "journal", "cache", "cache.table"
TIMER_S = 1e-6
"""No timer is finer: without this, a wait that rounds to nothing would never let time move."""
STORE_WRITES = frozenset({"put", "put_if_absent", "put_if_match", "delete", "delete_many"})


@dataclass(slots=True)
class Host:
    """What outlives a process on one host: disk, map, copies of objects."""

    disk: SimDisk
    map_store: MemoryKeyValueStore = field(default_factory=MemoryKeyValueStore)
    local: MemoryObjects = field(default_factory=lambda: MemoryObjects(0))


class SimClock:
    """Virtual time for the faulty store; its sleeps are handed to whoever runs the call, who then waits that long."""

    def __init__(self) -> None:
        self.loop: SimLoop | None = None
        self.slept = 0.0

    def monotonic(self) -> float:
        return self.loop.time() if self.loop is not None else 0.0

    def time(self) -> float:
        return 1_700_000_000.0 + self.monotonic()

    def sleep(self, seconds: float) -> None:
        self.slept += seconds

    def take_sleep(self) -> float:
        slept, self.slept = self.slept, 0.0
        return slept


class SimExecution:
    """A blocking call happens at one moment between its beginning and its end. `direct`: the store without its faults.
    `under_way`: store writes that were sent
    and have not arrived: at a crash each may arrive, may not, or may arrive later."""

    def __init__(
        self,
        loop: SimLoop,
        random: random.Random,
        store: ObjectStore,
        direct: ObjectStore,
        clock: SimClock,
        delay_s: float,
    ) -> None:
        self._loop = loop
        self._random = random
        self._store = store
        self._direct = direct
        self._clock = clock
        self._delay_s = delay_s
        self._number = 0
        self.under_way: dict[int, Callable[[], object]] = {}

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        is_store = getattr(function, "__self__", None) is self._store
        name = getattr(function, "__name__", "call")
        self._number += 1
        number = self._number
        if is_store and name in STORE_WRITES:
            inner = getattr(self._direct, name)
            self.under_way[number] = lambda: inner(*args)
        await asyncio.sleep(self._delay())
        self._loop.point(f"before {name}")
        self.under_way.pop(number, None)
        error: Exception | None = None
        try:
            result = function(*args)
        except Exception as raised:  # noqa: BLE001  # handed on below, later; a Crash passes at once
            error = raised
        self._loop.point(f"after {name}")
        await asyncio.sleep(self._delay() + self._clock.take_sleep())
        if error is not None:
            raise error
        return result

    async def converse(self, function: Callable[..., T], *args: Any) -> T:
        return await self.run(function, *args)

    def _delay(self) -> float:
        kind = self._random.random()
        if kind < 0.4:
            return 0.0
        # One in twenty is a straggler, which others overtake many times.
        return self._random.expovariate(1.0) * self._delay_s * (20.0 if kind > 0.95 else 1.0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, TIMER_S))

    def monotonic(self) -> float:
        return self._loop.time()

    def time(self) -> float:
        return self._clock.time()


class SimSyncer:
    """The flush thread: an fdatasync begins now and ends later; flushes that come meanwhile wait for the next one."""

    def __init__(
        self, loop: SimLoop, random: random.Random, journal: Journal, handle: SimHandle, delay_s: float
    ) -> None:
        self._loop = loop
        self._random = random
        self._journal = journal
        self._handle = handle
        self._delay_s = delay_s
        self._waiting: list[SyncDone] = []
        self._failure: LocalDiskFailed | None = None
        self.busy = False

    def sync(self, done: SyncDone) -> None:
        self._waiting.append(done)
        if not self.busy:
            self._begin()

    def _begin(self) -> None:
        self.busy = True
        batch, self._waiting = self._waiting, []
        position, covered = self._journal.head, self._handle.begin_sync()
        self._loop.call_later(
            self._random.expovariate(1.0) * self._delay_s, lambda: self._finish(batch, position, covered)
        )

    def _finish(self, batch: list[SyncDone], position: int, covered: int) -> None:
        if self._failure is None:
            try:
                self._handle.finish_sync(covered)
            except OSError as error:
                self._failure = LocalDiskFailed(f"cannot sync: {error}")
        self.busy = False
        for done in batch:
            done(position, self._failure)
        if self._waiting and not self.busy:
            self._begin()

    def close(self) -> None:
        """Nothing runs beside the loop."""


class SimQueue:
    """Messages in one direction: delayed, never reordered. Carries the front's posted callbacks as well."""

    def __init__(self, loop: SimLoop, random: random.Random, delay_s: float, deliver: Callable[[Any], object]) -> None:
        self._loop = loop
        self._random = random
        self._delay_s = delay_s
        self._deliver = deliver
        self._messages: deque[Any] = deque()
        self.held_until = 0.0
        """Messages sent before that time come at that time."""

    def send(self, message: Any) -> None:
        if isinstance(message, link.Happened):
            return  # for a ledger, of which there is none: what a seed brings stays what it was
        self._messages.append(message)
        held = max(0.0, self.held_until - self._loop.time())
        self._loop.call_later(held + self._random.expovariate(1.0) * self._delay_s, self._next)

    def _next(self) -> None:
        self._deliver(self._messages.popleft())


class SimLink:
    """The front's end."""

    def __init__(self, to_worker: SimQueue) -> None:
        self.on_message: Callable[[link.ToFront], None] = lambda message: None
        self._to_worker = to_worker

    def send(self, message: link.ToWorker) -> None:
        self._to_worker.send(message)


class SimJournalFile:
    """The journal of one host as the worker manages it."""

    def __init__(self, host: Host, volume: VolumeFile, ring_bytes: int, fresh_uuid: Callable[[], UUID]) -> None:
        self._host = host
        self._volume = volume
        self._ring_bytes = ring_bytes
        self._fresh_uuid = fresh_uuid

    def identity(self) -> UUID | None:
        if JOURNAL not in self._host.disk.files:
            return None
        return read_superblock(self._host.disk.open(JOURNAL)).journal

    def create(self, position: int) -> UUID:
        disk = self._host.disk
        made = self._fresh_uuid()
        Journal.create(
            disk.create(f"{JOURNAL}.new", RING_START + self._ring_bytes),
            journal=made,
            volume=self._volume.identity,
            ring_bytes=self._ring_bytes,
            sector_bytes=self._volume.geometry.sector_bytes,
            start=position,
        )
        if JOURNAL in disk.files:
            disk.rename(JOURNAL, f"{JOURNAL}.aside")
        disk.rename(f"{JOURNAL}.new", JOURNAL)
        return made

    def fits(self) -> bool:
        return True

    def remove(self) -> None:
        raise AssertionError("it fits")

    def note_epoch(self, epoch: int) -> None:
        # A small file, synced and renamed: durable when this returns, so it lies beside the disk that tears writes.
        self._host.disk.notes[JOURNAL] = (self.identity(), epoch)

    def noted_epoch(self) -> int:
        journal, epoch = self._host.disk.notes.get(JOURNAL, (None, 0))
        return epoch if journal == self.identity() else 0

    def records(self) -> Records:
        return JournalReader(self._host.disk.open(JOURNAL)).records


class SimSlots:
    def __init__(self, handle: SimHandle, frame_bytes: int) -> None:
        self._handle = handle
        self._frame_bytes = frame_bytes

    def write(self, slot: int, data: bytes | bytearray | memoryview) -> None:
        self._handle.pwritev([data], slot * self._frame_bytes)


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    worker: WorkerSettings
    ring_bytes: int
    cache_slots: int
    read_ahead_bytes: int
    flush_to: str
    delay_s: float


class Process:
    """Front and worker of one host. `start` returns once the volume serves; `observe` sees what the worker tells the
    front, when the front hears it."""

    def __init__(
        self,
        *,
        loop: SimLoop,
        random: random.Random,
        host: Host,
        volume: VolumeFile,
        store: ObjectStore,
        direct: ObjectStore,
        clock: SimClock,
        settings: ProcessSettings,
        observe: Callable[[link.ToFront], None],
        cipher: Cipher | None = None,
        worker_type: type[Worker] = Worker,
        front_type: type[Front] = Front,
    ) -> None:
        self._loop = loop
        self._random = random
        self.host = self._host = host
        self._volume = volume
        self._settings = settings
        self.store = store
        self.context = copy_context()
        """In which everything of this process runs."""
        self.context.run(OWNER.set, self)
        self._observe = observe
        self._front_type = front_type
        self.execution = SimExecution(loop, random, store, direct, clock, settings.delay_s)
        self.map = ExtentMap(host.map_store, volume.geometry)
        self._cache = self._open_cache()
        to_worker = SimQueue(loop, random, settings.delay_s / 10, self._to_worker)
        self._link = SimLink(to_worker)
        self.to_front = SimQueue(loop, random, settings.delay_s / 10, self._hear)
        self._posted = SimQueue(loop, random, 0.0, lambda callback: callback())
        self.worker = worker_type(
            volume=volume,
            store=store,
            extent_map=self.map,
            local=host.local,
            slots=SimSlots(host.disk.open(CACHE), volume.geometry.frame_bytes),
            journal=SimJournalFile(host, volume, settings.ring_bytes, self._fresh_uuid),
            execution=self.execution,
            settings=settings.worker,
            nonce=lambda: self._random.randbytes(16),
            cipher=cipher,
            send=self.to_front.send,
        )
        self._ready: asyncio.Future[None] = loop.create_future()
        self._front: Front | None = None
        self.journal: Journal | None = None
        self.failed: link.Failed | None = None
        self.stopped_by: Exception | None = None

    @property
    def front(self) -> Front:
        assert self._front is not None, "the volume does not serve yet"
        return self._front

    async def start(self) -> None:
        """Raises what Worker.start raises, and the front's reason not to serve."""
        await self.worker.start()
        self.work = self._loop.create_task(self.worker.run())
        await self._ready
        if self.stopped_by is not None:
            raise self.stopped_by
        self.ticking = self._loop.create_task(self._tick())

    def _fresh_uuid(self) -> UUID:
        return UUID(bytes=self._random.randbytes(16), version=4)

    def _open_cache(self) -> ReadCache:
        disk, geometry = self._host.disk, self._volume.geometry
        layout = CacheLayout(UUID(int=7), self._volume.identity, geometry.frame_bytes, self._settings.cache_slots)
        if CACHE not in disk.files:
            disk.create(CACHE, layout.content_bytes)
            disk.create(TABLE, layout.table_bytes).pwritev([encode_header(layout)], 0)
        return ReadCache(disk.open(CACHE), disk.open(TABLE), layout)

    def _to_worker(self, message: link.ToWorker) -> None:
        self.worker.receive(message)

    def _hear(self, message: link.ToFront) -> None:
        if isinstance(message, link.Ready):
            self._serve()
        if isinstance(message, link.Failed):
            self.failed = message
        self.front.on_message(message)
        self._observe(message)
        if not self._ready.done():
            self._ready.set_result(None)

    def _serve(self) -> None:
        handle = self._host.disk.open(JOURNAL)
        self.journal = Journal.open(handle)
        syncer = SimSyncer(self._loop, self._random, self.journal, handle, self._settings.delay_s)
        self._front = self._front_type(
            name=self._volume.name,
            identity=self._volume.identity,
            geometry=self._volume.geometry,
            journal=self.journal,
            cache=self._cache,
            link=self._link,
            syncer=syncer,
            post=self._posted.send,
            flush_to="s3" if self._settings.flush_to == "s3" else "local",
            read_ahead_bytes=self._settings.read_ahead_bytes,
            clock=self._loop.time,
        )
        self._front.on_stopped = self._note_stop

    def _note_stop(self, error: Exception) -> None:
        self.stopped_by = error

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.05 + self._random.random() * 0.05)
            self.front.tick(self._loop.time())


class Session(Process):
    """A process without a front, as `blockdev.session`: it carries what the journal holds to the bucket and operates."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._durable = 0
        self._detached = False
        self._number = 0
        self._news = asyncio.Event()
        self._answers: dict[int, link.Operated] = {}

    async def carry(self) -> None:
        """Everything in the journal is in the bucket. Raises what stopped the worker."""
        assert self.journal is not None
        head = self.journal.head
        self.worker.receive(link.Appended(head))
        self.worker.receive(link.CommitNow(head))
        await self._until(lambda: self._durable >= head)

    async def operate(self, name: str, /, **arguments: Any) -> link.Operated:
        self._number += 1
        number = self._number
        self.worker.receive(link.Operate(number, name, arguments))
        await self._until(lambda: number in self._answers)
        return self._answers.pop(number)

    async def detach(self) -> None:
        self.worker.receive(link.Detach())
        await self._until(lambda: self._detached)
        await self.work

    async def _until(self, test: Callable[[], bool]) -> None:
        while not test():
            if self.failed is not None:
                raise self.worker.failure if isinstance(self.worker.failure, Exception) else AssertionError(self.failed)
            self._news.clear()
            await self._news.wait()

    def _hear(self, message: link.ToFront) -> None:
        match message:
            case link.Ready():
                self.journal = Journal.open(self._host.disk.open(JOURNAL))
                try:
                    self.journal.take_up(message.position, message.epoch, lambda record: None)
                except LocalDiskFailed as error:
                    self.stopped_by = error
                self._durable = message.position
            case link.Durable(position):
                self._durable = position
            case link.Operated():
                self._answers[message.id] = message
            case link.Detached():
                self._detached = True
            case link.Failed():
                self.failed = message
        self._observe(message)
        self._news.set()
        if not self._ready.done():
            self._ready.set_result(None)

    async def _tick(self) -> None:
        """Nothing is served."""


def arrive(action: Callable[[], object]) -> None:
    """A request of a dead process reaches the store; nobody hears the answer."""
    try:
        action()
    except StoreError:
        return
