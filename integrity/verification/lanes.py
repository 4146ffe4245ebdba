"""Stretches of logs, walked here or in processes of this machine.

One rule: a stretch is a value and its answer one, so that it does not matter where it is walked; a process that dies costs
the stretches under way another try; three times, and the verification ends.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from pathlib import Path
from types import TracebackType

from integrity.errors import LedgerError
from integrity.verification.walk import Stretch, Walked, readers, walk
from s3core.build import build_store
from s3core.errors import StoreError
from s3core.settings import load_config
from s3core.store import ObjectStore

SPAWN_RECORDS = 200_000
"""Below so many records, processes take longer to start than the work."""


TRIES = 3


class Lanes:
    """Walks stretches. `count` 1: in this process, over `store`. Else over `url`, which every process opens for itself,
    with the configuration at `config_path`. Processes start with the first stretch. A context manager."""

    def __init__(self, store: ObjectStore, *, count: int = 1, url: str = "", config_path: str = "") -> None:
        self.count = 1 if not url or url.startswith("memory:") else max(1, count)
        self._store = store
        self._url = url
        self._config_path = config_path
        self._pool: ProcessPoolExecutor | None = None
        self._threads = readers(store)

    def __enter__(self) -> "Lanes":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)
        if self._pool is not None:
            if kind is not None:
                # Nobody waits for what they are at. Before Python 3.14 there is no other way to the pool's processes.
                for process in list((self._pool._processes or {}).values()):
                    process.terminate()
            self._pool.shutdown(wait=True, cancel_futures=True)

    def walk(self, wanted: Iterable[Stretch], size: int) -> Iterator[tuple[Stretch, Walked | StoreError]]:
        """The answers in the order of the stretches; the store's error where one could not be read."""
        if self.count == 1 or size < SPAWN_RECORDS:
            for stretch in wanted:
                try:
                    yield stretch, walk(self._store, stretch, self._threads)
                except StoreError as error:
                    yield stretch, error
            return
        waiting: deque[tuple[Stretch, Future[Walked]]] = deque()
        rest = iter(wanted)
        for stretch in rest:
            waiting.append((stretch, self._submit(stretch)))
            if len(waiting) > 2 * self.count:
                yield self._first(waiting)
        while waiting:
            yield self._first(waiting)

    def _first(self, waiting: deque[tuple[Stretch, "Future[Walked]"]]) -> tuple[Stretch, Walked | StoreError]:
        """The answer to the stretch that waits longest; where a process died, all that wait are given out again."""
        for attempt in range(TRIES):
            stretch, future = waiting[0]
            try:
                answer: Walked | StoreError = future.result()
            except StoreError as error:
                answer = error
            except BrokenProcessPool as error:
                # One dead process breaks the whole pool, which takes nothing any more.
                if attempt == TRIES - 1:
                    raise LedgerError(
                        "processes of the verification die again and again", hint="is there memory? try --processes 1"
                    ) from error
                self._drop_pool()
                again = [(one, self._submit(one)) for one, _ in waiting]
                waiting.clear()
                waiting.extend(again)
                continue
            waiting.popleft()
            return stretch, answer
        raise AssertionError("unreachable")

    def _submit(self, stretch: Stretch) -> "Future[Walked]":
        try:
            return self._processes().submit(_walk_here, stretch)
        except BrokenProcessPool:
            self._drop_pool()
            return self._processes().submit(_walk_here, stretch)

    def _drop_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def _processes(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.count, mp_context=context, initializer=_begin, initargs=(self._url, self._config_path)
            )
        return self._pool


_opened: dict[str, ObjectStore] = {}


def _begin(url: str, config_path: str) -> None:
    """In a process of the pool: Ctrl-C is the parent's to answer, and it ends with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
    config = load_config(Path(config_path) if config_path else None) if url.startswith("s3:") else None
    _opened["store"] = build_store(url, config=config)


def _walk_here(stretch: Stretch) -> Walked:
    return walk(_opened["store"], stretch)
