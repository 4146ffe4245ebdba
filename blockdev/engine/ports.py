"""What the worker's coroutines are given: a way to block elsewhere, and time.

In production `ThreadExecution` runs blocking calls on threads and sleeps on the event loop; the simulation delays and runs
them inline, so that a crash can fall before, between and after them.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from blockdev.engine.lease import clock
from s3core import fibers

T = TypeVar("T")


class Execution(Protocol):
    def run(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        """Call `function(*args)` where it may block; many calls run side by side."""
        ...

    def converse(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        """The same for what does little but talk to the store: very many such calls run side by side. It waits for the
        store in the ways of `s3core.waiting` and for nothing else."""
        ...

    async def sleep(self, seconds: float) -> None: ...

    def monotonic(self) -> float:
        """Seconds on a clock that only goes forward; in production `lease.clock`."""
        ...

    def time(self) -> float:
        """Unix seconds, for records and people."""
        ...


class ThreadExecution:
    def __init__(self, threads: int, begin: Callable[[], None] | None = None) -> None:
        """`begin` is the first that each thread does. It may not raise."""
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="worker", initializer=begin)

    def run(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def converse(self, function: Callable[..., T], *args: Any) -> Awaitable[T]:
        return fibers.converse(function, *args)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def monotonic(self) -> float:
        return clock()

    def time(self) -> float:
        return time.time()

    def close(self, *, wait: bool = False) -> None:
        """`wait`: return when the calls under way have."""
        self._pool.shutdown(wait=wait, cancel_futures=True)
