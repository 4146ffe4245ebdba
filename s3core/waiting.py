"""The places where a request to a store waits: for a socket, a connection, a pause, its turn.

A thread waits there itself. A fiber (`s3core.fibers`) gives way instead, so that its event loop carries out others.

One rule: whoever waits for the store waits here, and holds no lock meanwhile.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

TURN_S = 0.001
"""How often a fiber looks whether a connection is free."""


class Signal(Protocol):
    """One wait of one caller. `set` may be called by any thread, before the wait too; see `threading.Event`."""

    def set(self) -> None: ...

    def wait(self) -> object: ...


class Waiter(Protocol):
    """How the call that is carried out now waits, where that is not by blocking its thread."""

    def sleep(self, seconds: float) -> None: ...

    def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns, which waits by itself."""
        ...

    def receive(self, sock: Any, buffer: memoryview, timeout_s: float | None) -> int: ...

    def signal(self) -> Signal: ...


class _Here(threading.local):
    waiter: Waiter | None = None


here = _Here()


def sleep(seconds: float) -> None:
    waiter = here.waiter
    if waiter is None:
        time.sleep(seconds)
    else:
        waiter.sleep(seconds)


def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call what waits elsewhere than here."""
    waiter = here.waiter
    return function(*args) if waiter is None else waiter.in_thread(function, *args)


def receive(sock: Any, buffer: memoryview, timeout_s: float | None) -> int:
    """`sock.recv_into(buffer)` on a socket whose timeout is `timeout_s`; a fiber leaves it without one."""
    waiter = here.waiter
    return int(sock.recv_into(buffer)) if waiter is None else waiter.receive(sock, buffer, timeout_s)


class Turns(AbstractContextManager[None]):
    """So many may be at it at once, threads and fibers together; who came first is first."""

    def __init__(self, places: int) -> None:
        self._free = places  # more than 0 only while nobody waits
        self._lock = threading.Lock()
        self._queue: deque[Signal] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            waiter = here.waiter
            mine = threading.Event() if waiter is None else waiter.signal()
            self._queue.append(mine)
        try:
            mine.wait()
        except BaseException:
            with self._lock:
                given = mine not in self._queue
                if not given:
                    self._queue.remove(mine)
            if given:
                self._give_on()
            raise

    def __exit__(self, *_: object) -> None:
        self._give_on()

    def _give_on(self) -> None:
        with self._lock:
            if not self._queue:
                self._free += 1
                return
            following = self._queue.popleft()
        following.set()
