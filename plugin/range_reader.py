"""Reading an object by ranges, as a file is read: read-ahead, a bounded cache, pinned to one ETag.

    a first read, or one elsewhere     one block (1 MiB) in one request
    reading on                         2, 4, 8 blocks in one request, and more of them under way at once

One rule: all bytes of one reader are of one version of the object; a changed object is an error, never a mixture.
"""

import threading
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass

from s3core.bucket import Bucket, ObjectFacts
from s3core.clock import Clock, SystemClock
from s3core.errors import StoreError, Unavailable

BLOCK_BYTES = 1 << 20
RUN_BLOCKS_MAX = 8


@dataclass(eq=False, slots=True)
class _Run:
    """Neighbouring blocks that one request brings."""

    reader: "RangeReader"
    first: int
    count: int
    data: "Future[bytes]"
    read: bool = False
    """Somebody had something of it."""


class ReadPool:
    """Threads and cache that all readers of a storage share. `bucket` gives plain bytes (sealed ones opened:
    `plugin.bucket.readable`). `cache_bytes` bounds what all readers keep and have asked for, but for the blocks that a `read`
    waits for; `wait_s` bounds one `read`."""

    def __init__(
        self,
        bucket: Bucket,
        *,
        threads: int = 4,
        cache_bytes: int = 64 << 20,
        wait_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self.wait_s = wait_s
        self.clock = clock or SystemClock()
        self._bucket = bucket
        self._threads = threads
        self._blocks_max = max(2 * RUN_BLOCKS_MAX, cache_bytes // BLOCK_BYTES)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._lock = threading.Lock()
        self._runs: OrderedDict[_Run, None] = OrderedDict()  # least recently used first; under _lock
        self._blocks = 0  # in them; under _lock
        self._readers = 0  # open; under _lock

    @property
    def kept_bytes(self) -> int:
        """What is kept or under way now."""
        with self._lock:
            return self._blocks * BLOCK_BYTES

    def open(self, key: str, facts: ObjectFacts | None = None) -> "RangeReader":
        """A reader of what HEAD tells (asked where `facts` is None; its `size` is that of the plain bytes). NotFound."""
        facts = facts or self._bucket.head(key)
        with self._lock:
            self._readers += 1
        return RangeReader(self, key, facts.size, facts.etag, facts.version_id)

    def close(self) -> None:
        """Ends the threads once what they are at is answered."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # --- for the readers, under the lock ---------------------------------------------------------------------------

    def _ahead_blocks(self) -> int:
        """How far one of the readers may read ahead."""
        return min(self._threads * RUN_BLOCKS_MAX, self._blocks_max // (2 * max(1, self._readers)))

    def _make_room(self, blocks: int, *, unread: bool) -> bool:
        """Forget what was not used for longest: what was read, and with `unread` what was read ahead for nobody yet. What is
        under way stays."""
        for of_unread in (False, True) if unread else (False,):
            for run in list(self._runs):
                if self._blocks + blocks <= self._blocks_max:
                    return True
                if run.data.done() and (run.read or of_unread):
                    self._drop(run)
        return self._blocks + blocks <= self._blocks_max

    def _drop(self, run: _Run) -> None:
        if run in self._runs:
            del self._runs[run]
            self._blocks -= run.count
            run.reader._forget(run)

    def _fetch(self, reader: "RangeReader", first: int, count: int) -> _Run:
        offset = first * BLOCK_BYTES
        length = min(count * BLOCK_BYTES, reader.size - offset)

        def get() -> bytes:
            return self._bucket.get(
                reader.key, offset=offset, length=length, if_match=reader.etag, version_id=reader.version_id
            )

        run = _Run(reader, first, count, self._pool.submit(get))
        self._runs[run] = None
        self._blocks += count
        return run


class RangeReader:
    """For many threads. `size` and `etag` are fixed."""

    def __init__(self, pool: ReadPool, key: str, size: int, etag: str, version_id: str) -> None:
        self.key = key
        self.size = size
        self.etag = etag
        self.version_id = version_id
        self._pool = pool
        self._lock = pool._lock
        self._by_block: dict[int, _Run] = {}  # this and all below under _lock
        self._next = 0  # where reading on would begin
        self._run_blocks = 1
        self._closed = False

    def read(self, offset: int, length: int) -> bytes:
        """What a file would give: fewer bytes at the end, none beyond. PreconditionFailed or NotFound where the object
        is another one by now; Unavailable where the store does not answer within `wait_s`."""
        end = min(offset + length, self.size)
        if offset < 0 or length < 0:
            raise ValueError(f"not a range: {length} bytes from {offset}")
        if end <= offset:
            return b""
        with self._lock:
            if self._closed:
                raise ValueError(f"the reader of {self.key} is closed")
            on = abs(offset - self._next) <= BLOCK_BYTES
            self._run_blocks = min(2 * self._run_blocks, RUN_BLOCKS_MAX) if on and offset else 1
            self._next = end
            needed = self._needed(offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES)
            if self._run_blocks > 1:
                self._read_ahead((end - 1) // BLOCK_BYTES + 1)
        until = self._pool.clock.monotonic() + self._pool.wait_s
        pieces = []
        for run in needed:
            begin = run.first * BLOCK_BYTES
            data = memoryview(self._data(run, until))
            pieces.append(data[max(0, offset - begin) : end - begin])
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Forget what was read ahead."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._pool._readers -= 1
                for run in list(dict.fromkeys(self._by_block.values())):
                    run.data.cancel()
                    self._pool._drop(run)

    def _data(self, run: _Run, until: float) -> bytes:
        try:
            return run.data.result(max(0.0, until - self._pool.clock.monotonic()))
        except FutureTimeout:
            raise Unavailable(
                f"the store did not give the bytes within {self._pool.wait_s:g} s", key=self.key
            ) from None
        except CancelledError:
            raise ValueError(f"the reader of {self.key} was closed") from None
        except StoreError:
            with self._lock:
                self._pool._drop(run)  # whoever reads again asks again
            raise

    # --- under the lock --------------------------------------------------------------------------------------------

    def _needed(self, first: int, last: int) -> list[_Run]:
        runs: list[_Run] = []
        block = first
        while block <= last:
            run = self._by_block.get(block)
            if run is not None and _failed(run.data):
                self._pool._drop(run)  # it was read ahead: whoever wants it asks again
                run = None
            if run is None:
                count = self._free(block, max(self._run_blocks, min(last - block + 1, RUN_BLOCKS_MAX)))
                self._pool._make_room(count, unread=True)  # waited for, so asked for even where there is no room
                run = self._asked(block, count)
            else:
                self._pool._runs.move_to_end(run)
            run.read = True
            runs.append(run)
            block = run.first + run.count
        return runs

    def _read_ahead(self, block: int) -> None:
        stop = min(block + min(self._pool._ahead_blocks(), 4 * self._run_blocks), self._blocks)
        while block < stop:
            run = self._by_block.get(block)
            if run is None:
                count = self._free(block, self._run_blocks)
                if stop - block < count or not self._pool._make_room(count, unread=False):
                    return  # later, with a whole run
                run = self._asked(block, count)
            block = run.first + run.count

    @property
    def _blocks(self) -> int:
        return -(-self.size // BLOCK_BYTES)

    def _free(self, block: int, count: int) -> int:
        """How many blocks from `block` on, `count` at most, nobody has asked for."""
        count = min(count, self._blocks - block)
        return next((more for more in range(1, count) if block + more in self._by_block), count)

    def _asked(self, block: int, count: int) -> _Run:
        run = self._pool._fetch(self, block, count)
        for one in range(block, block + count):
            self._by_block[one] = run
        return run

    def _forget(self, run: _Run) -> None:
        for one in range(run.first, run.first + run.count):
            if self._by_block.get(one) is run:
                del self._by_block[one]


def _failed(data: "Future[bytes]") -> bool:
    return data.done() and (data.cancelled() or data.exception() is not None)
