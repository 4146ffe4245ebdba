"""A front with everything around it in memory: files, worker, flush thread and loop, each moved by the test."""

import random
from collections.abc import Callable
from uuid import UUID

from blockdev.engine.cache import ReadCache
from blockdev.engine.cache_table import CacheLayout, encode_header
from blockdev.engine.front import Front
from blockdev.engine.syncer import SyncDone
from blockdev.errors import LocalDiskFailed
from blockdev.journal.journal import Journal
from blockdev.target import Buffer
from blockdev.units import KIB, MIB, Geometry
from tests.blockdev.memory_file import MemoryFile
from tests.blockdev.scripted_worker import Bucket, ScriptedWorker

VOLUME = UUID("1b4e28ba-2fa1-4d2f-883f-0016d3cca427")
JOURNAL = UUID("9f0c7c1e-7c55-4d43-9f5e-0f6b3c1d2e3f")
CACHE = UUID("5d1a3c4b-6f8e-4a70-b2c1-d3e4f5061728")
SMALL = Geometry(2 * MIB, frame_bytes=16 * KIB, extent_bytes=128 * KIB)


class DelayedSyncer:
    """A flush thread that works when the test says so."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.waiting: list[SyncDone] = []

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    def sync(self, done: SyncDone) -> None:
        self.waiting.append(done)

    def run(self) -> None:
        batch, self.waiting = self.waiting, []
        position, failure = self.journal.head, None
        try:
            self.journal.file.fdatasync()
        except OSError as error:
            failure = LocalDiskFailed(f"cannot sync: {error}")
        for done in batch:
            done(position, failure)

    def close(self) -> None:
        pass


class World:
    """`restart` and `power_cut` replace the front, the worker and whatever lived in their memory."""

    def __init__(
        self,
        geometry: Geometry = SMALL,
        *,
        ring_bytes: int = 256 * KIB,
        slots: int = 16,
        read_ahead_bytes: int = 0,
        flush_to: str = "local",
        attach: bool = True,
    ) -> None:
        self.geometry = geometry
        self.read_ahead_bytes = read_ahead_bytes
        self.flush_to = flush_to
        self.now = 0.0
        """What the front's clock shows."""
        self.journal_file = MemoryFile(name="journal")
        journal = Journal.create(
            self.journal_file,
            journal=JOURNAL,
            volume=VOLUME,
            ring_bytes=ring_bytes,
            sector_bytes=geometry.sector_bytes,
        )
        self.layout = CacheLayout(CACHE, VOLUME, geometry.frame_bytes, slots)
        self.content_file = MemoryFile(self.layout.content_bytes, name="cache")
        self.table_file = MemoryFile(self.layout.table_bytes, name="cache.table")
        self.table_file.pwritev([encode_header(self.layout)], 0)
        self.bucket = Bucket(geometry, journal.head)
        self.start(attach=attach)

    def start(self, *, attach: bool = True) -> None:
        self.posted: list[Callable[[], None]] = []
        self.soon: list[Callable[[], None]] = []
        self.stopped: list[Exception] = []
        self.journal = Journal.open(self.journal_file)
        self.cache = ReadCache(self.content_file, self.table_file, self.layout)
        self.worker = ScriptedWorker(self.bucket, self.journal_file, self.content_file)
        self.syncer = DelayedSyncer(self.journal)
        self.front = Front(
            name="vol",
            identity=VOLUME,
            geometry=self.geometry,
            journal=self.journal,
            cache=self.cache,
            link=self.worker,
            syncer=self.syncer,
            post=self.posted.append,
            soon=self.soon.append,
            read_ahead_bytes=self.read_ahead_bytes,
            flush_to="s3" if self.flush_to == "s3" else "local",
            clock=lambda: self.now,
        )
        self.front.on_stopped = self.stopped.append
        if attach:
            self.worker.attach()

    def restart(self) -> None:
        """The process dies; the kernel keeps what was written."""
        self.start()

    def power_cut(self, randomness: random.Random) -> None:
        self.journal_file = self.journal_file.power_cut(randomness)
        self.content_file = self.content_file.power_cut(randomness)
        self.table_file = self.table_file.power_cut(randomness)
        self.start()

    def run_posted(self) -> None:
        while self.posted:
            self.posted.pop(0)()

    def read(self, lba: int, count: int) -> bytes:
        """A read that must succeed, with the worker answering as often as it takes."""
        result = self.try_read(lba, count)
        if isinstance(result, Exception):
            raise result
        return result

    def try_read(self, lba: int, count: int) -> bytes | Exception:
        answers: list[list[Buffer] | Exception] = []
        local = self.front.read(lba, count, answers.append)
        if local is not None:
            return b"".join(local)
        self.run_posted()
        self.worker.serve()
        (answer,) = answers
        return answer if isinstance(answer, Exception) else b"".join(answer)

    def flush(self) -> Exception | None:
        answers: list[Exception | None] = []
        self.front.flush(answers.append)
        if not answers:
            self.syncer.run()
        (answer,) = answers
        return answer
