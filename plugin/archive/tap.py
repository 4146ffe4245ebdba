"""An indexer beside an upload: on a thread of its own, behind a bounded queue.

One rule: the upload never fails and never waits more than `patience_s` in all because of its index; it has a lighter one
then, or none.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from plugin.archive.indexer import Indexer

QUEUE_PIECES = 16
"""Pieces that wait; those of a mount are 1 MiB at most, so 16 MiB of memory."""
PIECE_BYTES_MAX = 1 << 20
LAST_S = 5.0
"""How long it may take, in all, once it only hashes."""
_LOG = logging.getLogger(__name__)


class IndexTap:
    """`feed` every byte of the upload in order, then `finish` for the index object or None, or `cancel`. Bytes that were fed
    must not be changed afterwards. `clock` is monotonic seconds. One thread feeds."""

    def __init__(
        self,
        indexer: Indexer | None = None,
        *,
        patience_s: float = 20.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._indexer = indexer or Indexer()
        self._queue: queue.Queue[memoryview | None] = queue.Queue(QUEUE_PIECES)
        self._patience_s = patience_s
        self._last_s = LAST_S
        self._clock = clock
        self._failed = False
        self._thread = threading.Thread(target=self._work, name="archive-index", daemon=True)
        self._thread.start()

    @property
    def configs(self) -> tuple[tuple[str, bytes], ...]:
        return self._indexer.configs

    def feed(self, data: bytes | memoryview) -> None:
        """Never raises."""
        view = memoryview(data)
        for place in range(0, len(view), PIECE_BYTES_MAX):
            if self._failed:
                return
            self._put(view[place : place + PIECE_BYTES_MAX])

    def finish(self, etag: str = "", wait_s: float = 60.0) -> bytes | None:
        """The index object of all that was fed, or None where there is none; never raises. `etag` is the object's."""
        self._put(None)
        self._thread.join(wait_s)
        if self._thread.is_alive() or self._failed:
            _LOG.warning("no archive index was made; `pve-s3 archive index` makes one")
            self._failed = True
            return None
        try:
            return self._indexer.finish(etag)
        except Exception:  # noqa: BLE001  # the upload is done and must not fail because of its index
            _LOG.exception("no archive index was made; `pve-s3 archive index` makes one")
            return None

    def cancel(self) -> None:
        """Forget it: the upload failed."""
        self._failed = True
        with suppress(queue.Full):  # then the thread sees it when the queue is empty
            self._queue.put_nowait(None)

    def _put(self, piece: memoryview | None) -> None:
        try:
            self._queue.put_nowait(piece)
            return
        except queue.Full:
            begun = self._clock()
        try:
            self._queue.put(piece, timeout=max(0.0, self._patience_s))
            self._patience_s -= self._clock() - begun
            return
        except queue.Full:
            # Behind for too long. What it does beside hashing is what it can leave.
            self._indexer.lighten("the indexer could not keep up with the upload")
            self._patience_s, begun = 0.0, self._clock()
        try:
            self._queue.put(piece, timeout=max(0.0, self._last_s))
            self._last_s -= self._clock() - begun
        except queue.Full:
            # An index with a gap would lie, so there is none.
            self._failed = True

    def _work(self) -> None:
        while True:
            try:
                piece = self._queue.get(timeout=1.0)
            except queue.Empty:
                if self._failed:
                    return
                continue
            if piece is None:
                return
            if self._failed:
                continue
            try:
                self._indexer.feed(piece)
            except Exception:  # noqa: BLE001  # an upload must not fail because of its index
                _LOG.exception("the archive indexer failed; the upload goes on without an index")
                self._failed = True
