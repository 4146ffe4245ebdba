"""The commit log in the bucket: reading it forward, and the one conditional PUT that decides who writes.

One rule: nothing is the volume's state unless it is in the log. An answer lost on the way is settled by reading the record
back and comparing the nonce, never by assuming.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

from blockdev.engine.lease import Lease
from blockdev.engine.ports import Execution
from blockdev.errors import CorruptFormat, Fenced
from blockdev.segments import paths, record
from blockdev.segments.record import Parsed
from s3core.errors import Corrupt, NotFound, PreconditionFailed, StoreError
from s3core.store import Buffer, ObjectStore

T = TypeVar("T")

log = logging.getLogger(__name__)

WINDOW = 32
"""Records asked for at once when the log is read forward: at 20 ms a request, 1,000 records take under a second."""
BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 10.0
REMIND_S = 30.0


class Persistence:
    """Store calls repeated until they are answered, with growing pauses; only what repeating cannot cure is raised.

    The volume lives on through a blackout of any length: writes go to the journal meanwhile. An outage is logged when it
    begins, once every REMIND_S while it lasts, and when it ends, however many calls wait in it. `changed` is called after
    each failure and when the store answers again: whoever waits in a call has no other moment to say how it stands."""

    def __init__(self, execution: Execution, changed: Callable[[], None] = lambda: None) -> None:
        self._execution = execution
        self._changed = changed
        self.failures = 0
        self.last_error = ""
        self._since = 0.0
        self._reminded = 0.0

    def failed(self, what: str, error: StoreError) -> None:
        """Note a failed call, for the log and for `Status`."""
        now = self._execution.monotonic()
        self.failures += 1
        if not self.last_error:
            self._since = now
            self._reminded = now - REMIND_S
        self.last_error = str(error)
        if now - self._reminded >= REMIND_S:
            self._reminded = now
            log.warning("store: %s: %s; trying again until it works (for %.0f s now)", what, error, now - self._since)
        self._changed()

    def worked(self) -> None:
        """Note that the store answered."""
        if self.last_error:
            log.warning("store: answers again after %.0f s", self._execution.monotonic() - self._since)
            self.last_error = ""
            self._changed()

    async def call(self, what: str, function: Callable[..., T], *args: Any) -> T:
        pause = BACKOFF_S_MIN
        while True:
            try:
                result = await self._execution.run(function, *args)
            except (PreconditionFailed, NotFound, Corrupt):
                raise
            except StoreError as error:
                self.failed(what, error)
                await self._execution.sleep(pause)
                pause = min(pause * 2, BACKOFF_S_MAX)
            else:
                self.worked()
                return result


class CommitLog:
    """The log of one volume."""

    def __init__(
        self,
        store: ObjectStore,
        volume: UUID,
        execution: Execution,
        persistence: Persistence,
        lease: Lease | None = None,
    ) -> None:
        self._store = store
        self._volume = volume
        self._execution = execution
        self._persistence = persistence
        self._lease = lease

    async def append(self, seq: int, parts: Sequence[Buffer], nonce: bytes) -> None:
        """Create record `seq`. On return it is durable and ours, and the lease is renewed. Raises Fenced when another
        writer's record is there, or a root that is younger.

        crash before the PUT is applied: nothing happened; after: the record counts, and recovery replays it."""
        key = paths.log(seq)
        pause = BACKOFF_S_MIN
        while True:
            started = self._execution.monotonic()
            try:
                await self._execution.run(self._store.put_if_absent, key, parts)
                self._persistence.worked()
                if self._lease is not None:
                    await self._refuse_trimmed(seq)
                    self._lease.renewed(started)
                return
            except PreconditionFailed:
                # Either another writer, or an earlier try of ours whose answer was lost.
                theirs = await self.read(seq)
                if theirs is None:
                    raise Fenced(f"{key} exists and cannot be read: somebody is deleting records") from None
                if theirs.record.nonce == nonce:
                    if self._lease is not None:
                        await self._refuse_trimmed(seq)
                    return
                raise Fenced(
                    f"record {seq} was written by epoch {theirs.record.epoch} on {theirs.record.note.get('host', '?')}",
                    hint="the volume is attached elsewhere; stop one of the two",
                ) from None
            except StoreError as error:
                self._persistence.failed(f"commit {seq}", error)
            await self._execution.sleep(pause)
            pause = min(pause * 2, BACKOFF_S_MAX)

    async def _refuse_trimmed(self, seq: int, epoch: int = -1) -> bool:
        """Record `seq` was not there. While the lease holds, nobody else can have written and deleted it. Without one (it
        ran out, or this is the fence) a successor may have attached, gone on and trimmed its log, so that the number
        was free again. Then the successor's newest root, of a younger epoch than `epoch`, is at `seq` or behind it: raises
        Fenced. False: we have written that record ourselves meanwhile."""
        assert self._lease is not None
        if self._execution.monotonic() < self._lease.until:
            return True

        def behind() -> list[str]:
            return [info.key for info in self._store.list(paths.root_prefix()) if paths.birth(info.key) >= seq]

        try:
            keys = await self._persistence.call("list roots", behind)
        except Corrupt as error:
            if self._lease.until:
                raise
            # An attach, which has read the log to its end a moment ago: a damaged root must not keep it out.
            log.warning("roots cannot be listed (%s); nobody is taken to have trimmed the log meanwhile", error)
            return True
        if any(paths.epoch_of_root(key) > epoch for key in keys):
            raise Fenced(
                f"record {seq} was written after a root of another writer",
                hint="the volume is attached elsewhere; stop one of the two",
            )
        return not keys

    async def renew(self, seq: int, epoch: int) -> None:
        """Renew the lease if nobody wrote record `seq`, the next one. Ours, written this very moment, renews it by itself.
        Raises Fenced when a younger epoch wrote it, and store errors."""
        assert self._lease is not None
        started = self._execution.monotonic()
        try:
            await self._execution.run(self._store.head, paths.log(seq))
        except NotFound as error:
            if not error.key:
                raise
            self._persistence.worked()
            if await self._refuse_trimmed(seq, epoch):
                self._lease.renewed(started)
            return
        theirs = await self.read(seq)
        if theirs is not None and theirs.record.epoch > epoch:
            raise Fenced(
                f"record {seq} was written by epoch {theirs.record.epoch} on {theirs.record.note.get('host', '?')}",
                hint="the volume is attached elsewhere; stop one of the two",
            )

    async def read(self, seq: int) -> Parsed | None:
        """Record `seq`, None when there is none. Raises CorruptFormat when it reads as damaged twice."""
        key = paths.log(seq)
        for attempt in range(2):
            try:
                body = await self._persistence.call(f"read {key}", self._store.get, key)
            except NotFound:
                return None
            try:
                return record.decode(body.data, what=key, seq=seq, volume=self._volume)
            except CorruptFormat as error:
                if attempt:
                    raise
                log.warning("%s; reading it once more, in case it was the way and not the object", error)
        raise AssertionError("unreachable")

    async def read_forward(self, seq: int) -> list[Parsed]:
        """Up to WINDOW records from `seq` on, ending before the first gap; empty at the log's end."""
        window = await asyncio.gather(*(self.read(seq + index) for index in range(WINDOW)))
        found: list[Parsed] = []
        for parsed in window:
            if parsed is None:
                break
            found.append(parsed)
        return found


def sizes_from_entries(parsed: Parsed) -> dict[paths.ContainerRef, int]:
    """Stored size of each container a record creates, for the collector's books: the sum of what its entries point at."""
    sizes: dict[paths.ContainerRef, int] = {}
    entries = [*parsed.record.patches, *(move.patch for move in parsed.record.moves)]
    for entry in entries:
        if entry.stored and entry.ref.gen == parsed.record.seq:
            sizes[entry.ref] = sizes.get(entry.ref, 0) + entry.stored
    return sizes
