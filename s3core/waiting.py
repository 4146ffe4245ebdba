"""The places where a request to a store waits: for a socket, a connection, a pause, its turn.

A thread waits there itself. A fiber (`s3core.fibers`) gives way instead, so that its event loop carries out others.

One rule: whoever waits for the store waits here, and holds no lock meanwhile.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

TURN_S = 0.001
"""How often a fiber looks whether it is its turn."""


class Waiter(Protocol):
    """How the call that is carried out now waits, where that is not by blocking its thread."""

    def sleep(self, seconds: float) -> None: ...

    def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        """What `function` returns, which waits by itself."""
        ...

    def receive(self, sock: Any, buffer: memoryview, timeout_s: float | None) -> int: ...


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
    """So many may be at it at once, threads and fibers together."""

    def __init__(self, places: int) -> None:
        self._places = threading.BoundedSemaphore(places)

    def __enter__(self) -> None:
        waiter = here.waiter
        if waiter is None:
            self._places.acquire()
            return
        # What frees a place may be this very thread's next step, so it must not block.
        while not self._places.acquire(blocking=False):
            waiter.sleep(TURN_S)

    def __exit__(self, *_: object) -> None:
        self._places.release()
