"""How many files and archives one user takes out at a time.

One rule: a turn ends with its answer, however that ends: sent, broken off, or never begun because whoever asked has left.
A download holds a thread while a piece is made, and memory for a chunk and a few segments; four of each user are bearable.
"""

import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Final

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from envctl.errors import TooMany

DOWNLOADS_MAX: Final = 4
"""A user and process of the console."""
RETRY_S: Final = 5.0


class Turn:
    """One download under way. Ending it again changes nothing."""

    def __init__(self, of: "Downloads", user_id: str) -> None:
        self._of, self._user_id = of, user_id
        self._ended = False

    def end(self) -> None:
        if not self._ended:
            self._ended = True
            self._of._end(self._user_id)


class Downloads:
    """Safe for many threads."""

    def __init__(self, most: int = DOWNLOADS_MAX) -> None:
        self._most = most
        # Turns that nobody ended end when they are collected, which may be anywhere: also where this thread has the lock.
        self._lock = threading.RLock()
        self._open: Counter[str] = Counter()

    def begin(self, user_id: str) -> Turn:
        """TooMany."""
        with self._lock:
            if self._open[user_id] >= self._most:
                # Retry-After has the next whole second.
                raise TooMany(
                    f"{self._most} downloads of yours are under way",
                    retry_after_s=RETRY_S - 1,
                    hint="wait until one has ended",
                )
            self._open[user_id] += 1
        return Turn(self, user_id)

    def open(self, user_id: str) -> int:
        with self._lock:
            return self._open.get(user_id, 0)

    def _end(self, user_id: str) -> None:
        with self._lock:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]


class Download(StreamingResponse):
    """An answer in pieces that ends its turn when it has ended; one that was never sent, when it is thrown away."""

    def __init__(self, pieces: Iterator[bytes], turn: Turn, headers: dict[str, str]) -> None:
        super().__init__(pieces, media_type="application/octet-stream", headers=headers)
        self._turn = turn
        weakref.finalize(self, turn.end)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._turn.end()
