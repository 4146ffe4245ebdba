"""Group commit of flushes: one fdatasync for all that wait.

One rule: a flush is answered only by an fdatasync that began after the flush was asked for. The thread touches nothing
of the front's but the file's `fdatasync` and one integer (`head`, read before the call); the outcome goes back through
`post` and is applied on the front's thread.
"""

import threading
from collections.abc import Callable
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

from blockdev.errors import LocalDiskFailed
from blockdev.journal.journal import Journal

SyncDone = Callable[[int, LocalDiskFailed | None], None]
"""Called on the front's thread with the position up to which the journal is durable, or the error that ends it."""
Post = Callable[[Callable[[], None]], object]
"""Runs a callable on the front's thread, soon; may be called from any thread (loop.call_soon_threadsafe)."""


class Syncer(Protocol):
    """What the front needs: `sync(done)` calls `done` later, once; `busy` says whether one is under way."""

    @property
    def busy(self) -> bool: ...

    def sync(self, done: SyncDone) -> None: ...

    def close(self) -> None: ...


class InlineSyncer:
    """fdatasync on the caller's thread, before `sync` returns: for tools, and for one lone connection."""

    busy = False

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def sync(self, done: SyncDone) -> None:
        try:
            self._journal.sync()
        except LocalDiskFailed as error:
            done(self._journal.synced, error)
        else:
            done(self._journal.synced, None)

    def close(self) -> None:
        pass


class ThreadSyncer:
    """One flush thread for one journal."""

    def __init__(self, journal: Journal, post: Post) -> None:
        self._journal = journal
        self._post = post
        self._queue: SimpleQueue[SyncDone | None] = SimpleQueue()
        self._waiting = 0  # front's thread only
        self._thread = threading.Thread(target=self._run, name="journal-flush", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    def sync(self, done: SyncDone) -> None:
        self._waiting += 1
        self._queue.put(done)

    def close(self) -> None:
        """Finish what is queued and end the thread; its answers are still posted."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        failure: LocalDiskFailed | None = None
        stop = False
        while not stop:
            batch = self._take()
            stop = None in batch
            waiting = [done for done in batch if done is not None]
            if not waiting:
                continue
            position = self._journal.head  # before the call: what is appended during it may not be covered
            if failure is None:  # a failed fdatasync is never tried again
                try:
                    self._journal.file.fdatasync()
                except OSError as error:
                    name = self._journal.file.name
                    failure = LocalDiskFailed(f"cannot sync journal {name}: {error.strerror or error}")
            self._post(partial(self._finish, waiting, position, failure))

    def _take(self) -> list[SyncDone | None]:
        """Wait for one, then take all that wait."""
        batch = [self._queue.get()]
        while True:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                return batch

    def _finish(self, batch: list[SyncDone], position: int, failure: LocalDiskFailed | None) -> None:
        self._waiting -= len(batch)
        for done in batch:
            done(position, failure)
