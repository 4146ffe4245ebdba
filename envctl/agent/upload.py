"""Packs and segments on their way to the bucket, a few at a time.

One rule: at most WORKERS packs are in memory beside the one being filled; a failed upload ends the run at the next object.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final

from envctl.agent.client import Console
from envctl.agent.errors import Refused, Unavailable
from envctl.agent.segments import Segments

WORKERS: Final = 3
BATCH: Final = 200
_EXPIRED: Final = 403


class Uploads:
    """Ships objects. After `finish` all of them are in the bucket."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="upload")
        self._places = threading.BoundedSemaphore(WORKERS)
        self._under_way: list[Future[None]] = []
        self.shipped: set[str] = set()
        """Packs of this run, by name."""

    def __enter__(self) -> Uploads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)

    def ship(self, name: str, data: bytes) -> None:
        """A pack. Waits while WORKERS others are under way."""
        self._settle(wait=False)
        self._places.acquire()
        self.shipped.add(name)
        self._under_way.append(self._pool.submit(self._put_freeing, f"packs/{name}", data))

    def _put_freeing(self, name: str, data: bytes) -> None:
        try:
            self._put(name, data)
        finally:
            self._places.release()

    def _put(self, name: str, data: bytes) -> None:
        for attempt in (1, 2):
            url = self._console.urls("/guest/v1/uploads", {"objects": [_entry(name, data)]}).get(name)
            if url is None:
                return
            try:
                self._console.upload(url, data)
                return
            except Refused as error:
                if error.status != _EXPIRED or attempt == 2:
                    raise

    def ship_trees(self, names: Sequence[str], segments: Segments) -> None:
        """Segments, whose addresses are asked for many at a time."""
        for place in range(0, len(names), BATCH):
            entries = [_entry(f"trees/{name}", segments.data(name)) for name in names[place : place + BATCH]]
            for name, url in self._console.urls("/guest/v1/uploads", {"objects": entries}).items():
                if url is not None:
                    self._settle(wait=False)
                    self._places.acquire()
                    data = segments.data(name.split("/")[1])
                    self._under_way.append(self._pool.submit(self._put_at, url, name, data))

    def _put_at(self, url: Any, name: str, data: bytes) -> None:
        try:
            self._console.upload(url, data)
        except Refused as error:
            if error.status != _EXPIRED:
                raise
            self._put(name, data)
        finally:
            self._places.release()

    def finish(self) -> None:
        self._settle(wait=True)

    def _settle(self, *, wait: bool) -> None:
        left = []
        for future in self._under_way:
            if wait or future.done():
                try:
                    future.result()
                except KeyError as error:
                    raise Unavailable(f"the console's answer lacks {error}") from error
            else:
                left.append(future)
        self._under_way = left


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"name": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
