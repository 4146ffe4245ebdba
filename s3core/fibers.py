"""Blocking store calls side by side on one event loop: each on a stack of its own (greenlet), giving way where it waits.

A thread for each request costs a wake-up at every wait and at every release of the interpreter's lock. Where requests are
many and short that is most of their CPU time, and what it takes from others is worse: figures in docs/benchmarks.md.

One rule: what runs in a fiber waits in `s3core.waiting` alone. Anything else it waited for would hold up all that is on
the loop. Reading and writing small local files counts as not waiting.
"""

import asyncio
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from greenlet import greenlet

from s3core.waiting import here

T = TypeVar("T")

#: For what waits elsewhere: connections to a server that does not answer take all their time, and not six at a time, as on
#: the loop's own threads; nor may they wait for threads that wait for what a fiber holds.
_threads = ThreadPoolExecutor(32, thread_name_prefix="fibers")


async def converse(function: Callable[..., T], *args: Any) -> T:
    """Carry out a blocking call as a fiber of the running loop. A cancellation is raised where the call waits."""
    result: T = await _Fiber(asyncio.get_running_loop(), function).run(args)
    return result


class _Fiber:
    """One call. Between two switches it runs on the loop's thread like any callback."""

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[..., Any]) -> None:
        self._loop = loop
        self._stack = greenlet(function)

    async def run(self, args: tuple[Any, ...]) -> Any:
        stack = self._stack
        passed = self._go(stack.switch, *args)
        while not stack.dead:
            try:
                came = await passed
            except BaseException as error:  # noqa: BLE001 - whatever it is, cancellation included, is the call's
                passed = self._go(stack.throw, error)
            else:
                passed = self._go(stack.switch, came)
        return passed

    def _go(self, switch: Callable[..., Any], *args: Any) -> Any:
        before, here.waiter = here.waiter, self
        try:
            return switch(*args)
        finally:
            here.waiter = before

    def _wait(self, awaitable: Any) -> Any:
        loop_side = self._stack.parent
        assert loop_side is not None
        return loop_side.switch(awaitable)

    # --- the waiter ----------------------------------------------------------------------------------------------

    def sleep(self, seconds: float) -> None:
        self._wait(asyncio.sleep(seconds))

    def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        result: T = self._wait(self._loop.run_in_executor(_threads, function, *args))
        return result

    def receive(self, sock: Any, buffer: memoryview, timeout_s: float | None) -> int:
        sock.settimeout(0)
        while True:
            try:
                return int(sock.recv_into(buffer))
            except (BlockingIOError, ssl.SSLWantReadError):
                self._ready(sock.fileno(), timeout_s, self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                self._ready(sock.fileno(), timeout_s, self._loop.add_writer, self._loop.remove_writer)

    def signal(self) -> "_Signal":
        return _Signal(self._loop, self._wait)

    def _ready(
        self, descriptor: int, timeout_s: float | None, watch: Callable[..., Any], forget: Callable[[int], Any]
    ) -> None:
        ready: asyncio.Future[bool] = self._loop.create_future()
        watch(descriptor, _settle, ready, True)
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, _settle, ready, False)
        try:
            if not self._wait(ready):
                raise TimeoutError("timed out")
        finally:
            if timer is not None:
                timer.cancel()
            forget(descriptor)


class _Signal:
    def __init__(self, loop: asyncio.AbstractEventLoop, wait: Callable[[Any], Any]) -> None:
        self._loop = loop
        self._wait = wait
        self._came: asyncio.Future[bool] = loop.create_future()

    def set(self) -> None:
        self._loop.call_soon_threadsafe(_settle, self._came, True)

    def wait(self) -> object:
        return self._wait(self._came)


def _settle(future: "asyncio.Future[bool]", value: bool) -> None:
    if not future.done():
        future.set_result(value)
