"""The worker's end of the link, played by a test: a bucket that is a bytearray, and every delay in the test's hands."""

from collections import deque
from collections.abc import Callable

from blockdev.checksum import crc32c
from blockdev.engine.link import (
    Allocated,
    Appended,
    AskAllocated,
    CommitNow,
    Detach,
    Detached,
    Durable,
    Fetch,
    Fetched,
    FetchedFrame,
    FetchFrame,
    Ready,
    ToFront,
    ToWorker,
)
from blockdev.journal.file import DurableFile
from blockdev.journal.format import Kind
from blockdev.journal.reader import JournalReader
from blockdev.units import BLOCK_BYTES, MIB, Geometry


class Bucket:
    """The committed volume: outlives every worker."""

    def __init__(self, geometry: Geometry, position: int) -> None:
        self.geometry = geometry
        self.content = bytearray(min(geometry.size_bytes, 256 * MIB))  # a larger volume is not filled by a test
        self.position = position
        self.sequence = 1
        self.epoch = 0
        self.changed: dict[int, int] = {}
        """frame -> number of the commit that last touched it; absent: unwritten"""

    def apply(self, journal: DurableFile, end: int) -> None:
        """One commit: everything in the journal up to `end`."""
        size = self.geometry.sector_bytes
        self.sequence += 1
        for record, data in JournalReader(journal).records(self.position, end):
            start, length = record.lba * size, record.sectors * size
            self.content[start : start + length] = data if record.kind == Kind.WRITE else bytes(length)
            frame_bytes = self.geometry.frame_bytes
            for frame in range(start // frame_bytes, (start + length - 1) // frame_bytes + 1):
                self.changed[frame] = self.sequence
        self.position = end


class ScriptedWorker:
    """Also the front's link. Messages wait in `inbox` until the test lets the worker act."""

    def __init__(self, bucket: Bucket, journal: DurableFile, content: DurableFile) -> None:
        self.bucket = bucket
        self.journal = journal
        self.content = content
        self.on_message: Callable[[ToFront], None] = _nobody_listens
        self.sent: list[ToWorker] = []
        self.appended = bucket.position
        self.fetches: deque[Fetch] = deque()
        self.found: deque[tuple[Fetch, Fetched, dict[int, bytes]]] = deque()
        self.answers: list[ToFront] = []
        self.unreachable = False
        self.corrupt: set[int] = set()
        self.use_as_of = True

    def send(self, message: ToWorker) -> None:
        self.sent.append(message)
        if isinstance(message, Appended):
            self.appended = message.position
        elif isinstance(message, Fetch):
            self.fetches.append(message)
        elif isinstance(message, AskAllocated):
            frame_sectors = self.bucket.geometry.sectors_per_frame
            runs = []
            at, end = message.lba, message.lba + message.count
            while at < end:
                stop = min(end, (at // frame_sectors + 1) * frame_sectors)
                runs.append((at, stop - at, at // frame_sectors in self.bucket.changed))
                at = stop
            self.answers.append(Allocated(message.id, tuple(runs)))
        elif isinstance(message, Detach):
            self.answers.append(Detached())
        else:
            assert isinstance(message, CommitNow)

    def attach(self) -> None:
        self.bucket.epoch += 1
        self.on_message(
            Ready(self.bucket.position, self.bucket.sequence, self.bucket.epoch, self.bucket.geometry.size_bytes)
        )

    def commit(self, end: int | None = None) -> None:
        """Carry the journal up to `end` (all that was announced) to the bucket and say so."""
        end = self.appended if end is None else end
        if end > self.bucket.position:
            self.bucket.apply(self.journal, end)
            self.on_message(Durable(end, self.bucket.sequence, 0.0))

    def boundaries(self) -> list[int]:
        """Positions a commit may end at."""
        return [record.end for record, _ in JournalReader(self.journal).records(self.bucket.position, self.appended)]

    def look_up(self) -> bool:
        """Take one fetch and look its frames up in the map as it is now; they arrive with `deliver`."""
        if not self.fetches:
            return False
        fetch = self.fetches.popleft()
        contents: dict[int, bytes] = {}
        outcomes = tuple(self._outcome(wanted, contents) for wanted in fetch.frames)
        self.found.append((fetch, Fetched(fetch.id, self.bucket.position, outcomes), contents))
        return True

    def _outcome(self, wanted: FetchFrame, contents: dict[int, bytes]) -> FetchedFrame:
        bucket, frame = self.bucket, wanted.frame
        if self.unreachable:
            return FetchedFrame(frame, wanted.slot, "unreachable", error="the store is away")
        if frame in self.corrupt:
            return FetchedFrame(frame, wanted.slot, "corrupt", error="ext/5 at offset 12")
        if frame not in bucket.changed:
            return FetchedFrame(frame, wanted.slot, "zero", as_of=bucket.sequence)
        if self.use_as_of and wanted.as_of >= bucket.changed[frame]:
            return FetchedFrame(frame, wanted.slot, "kept", as_of=bucket.sequence)
        size = bucket.geometry.frame_bytes
        data = bytes(bucket.content[frame * size : (frame + 1) * size]).ljust(size, b"\0")
        contents[wanted.slot] = data
        sums = tuple(crc32c(data[at : at + BLOCK_BYTES]) for at in range(0, size, BLOCK_BYTES))
        return FetchedFrame(frame, wanted.slot, "data", sums, bucket.sequence)

    def deliver(self) -> bool:
        """Write the oldest looked-up frames into their slots and tell the front."""
        if not self.found:
            return False
        _, message, contents = self.found.popleft()
        for slot, data in contents.items():
            self.content.pwritev([data], slot * len(data))
        self.on_message(message)
        return True

    def serve(self, limit: int = 1000) -> None:
        """Answer everything that waits."""
        for _ in range(limit):
            if self.look_up() or self.deliver():
                continue
            if not self.answers:
                return
            self.on_message(self.answers.pop(0))
        raise AssertionError(f"still busy after {limit} answers")


def _nobody_listens(message: ToFront) -> None:
    raise AssertionError(f"nobody listens to {message}")
