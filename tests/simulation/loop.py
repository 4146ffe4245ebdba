"""An asyncio event loop on virtual time whose schedule is a function of a seed.

One rule: exactly one callback runs per step, chosen by the seed among all that are ready; time moves only when nothing is
ready, and then straight to the next timer. So a run is a sequence of numbered steps, and "crash at step N" is one integer.

asyncio promises that callbacks run in the order of `call_soon`; here they do not. Code that needs an order must bring a
queue of its own, as everything between two processes must anyway.

It uses private names of asyncio (`Handle._run`, `Handle._context`, `_timer_handle_cancelled`, `_set_running_loop`,
`tasks._enter_task`, `tasks._leave_task`);
`test_loop.py` guards them over Python upgrades.
"""

import asyncio
import heapq
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


OWNER: ContextVar[object] = ContextVar("owner", default=None)
"""The process whose callback runs."""


class Deadlock(AssertionError):
    """Nothing is ready, no timer is armed, and somebody still waits."""


class Endless(AssertionError):
    """More steps than any episode should need."""


class Crash(SystemExit):
    """The simulated process ends here. A SystemExit, since that is what neither a task nor a callback swallows."""


class SimLoop(asyncio.AbstractEventLoop):
    """`steps` counts callbacks and calls of `point`, `points` the latter alone: moments within a callback when it touches
    disk or store. `crash_at`, `crash_at_point`: the number of the step, or of the point, that raises Crash instead of
    going on; -1 for none. `steps_max` ends runs that never finish."""

    def __init__(self, random: random.Random, *, now: float = 0.0, steps_max: int = 200_000) -> None:
        self._random = random
        self._now = now
        self._ready: list[asyncio.Handle] = []
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self._running = False
        self._closed = False
        self._main: asyncio.Task[Any] | None = None
        """Held, so that a crash leaves it to `abandon`."""
        self.steps = 0
        self.points = 0
        self.steps_max = steps_max
        self.crash_at = -1
        self.crash_at_point = -1
        self.trace: list[tuple[int, str]] | None = None
        """Set it to a list to record what ran, for the test of determinism."""
        self._frozen: set[object] = set()
        self._stopped: set[object] = set()
        """Stopped in the middle of a callback: `stop_here` alone lets them go on."""
        self._held: list[asyncio.Handle] = []
        self.failures: list[BaseException] = []
        """Exceptions that reached no awaiter: bugs, unless the world expects them."""

    # --- running -------------------------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run until the coroutine is done. Raises Crash, Deadlock, Endless and what the coroutine raises."""
        task = self.create_task(coroutine)
        self._main = task
        self._running = True
        asyncio._set_running_loop(self)
        try:
            while not task.done():
                self._step()
        finally:
            asyncio._set_running_loop(None)
            self._running = False
        return task.result()

    def _step(self) -> None:
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[2])
        if not self._ready:
            while self._timers and self._timers[0][2].cancelled():
                heapq.heappop(self._timers)
            if not self._timers:
                raise Deadlock(f"nothing can happen any more at {self._now:.3f} s, after {self.steps} steps")
            self._now = max(self._now, self._timers[0][0])
            return
        index = self._random.randrange(len(self._ready))
        self._ready[index], self._ready[-1] = self._ready[-1], self._ready[index]
        handle = self._ready[-1]
        if handle.cancelled():
            self._ready.pop()
            return
        if (self._frozen or self._stopped) and _owner(handle) in self._frozen | self._stopped:
            self._held.append(self._ready.pop())
            return
        self._count_step(handle)  # may raise Crash: what did not run is still there to be abandoned
        self._ready.pop()
        handle._run()

    def point(self, what: str) -> None:
        """A moment within a callback where a crash may fall: disk and store call it before they do something."""
        self.points += 1
        if self.points == self.crash_at_point:
            raise Crash(f"crash at point {self.points}, {what}")
        self._count_step(what)

    # --- SIGSTOP -------------------------------------------------------------------------------------------------

    def freeze(self, owner: object) -> None:
        """Nothing of that process runs until `thaw`; its timers fire late."""
        self._frozen.add(owner)

    def thaw(self, owner: object) -> None:
        self._frozen.discard(owner)
        self._let_go()

    def _let_go(self) -> None:
        held, self._held = self._held, []
        self._ready += held  # whoever is frozen still is held again at its turn

    def stop_here(self, owner: object, seconds: float) -> None:
        """The process whose callback runs now is stopped in the middle of it for so long; all others go on."""
        task = asyncio.current_task(self)
        if task is not None:
            asyncio.tasks._leave_task(self, task)
        self._stopped.add(owner)
        until = self._now + seconds
        self.call_at(until, lambda: None, context=Context())
        try:
            while self._now < until:
                self._step()
        finally:
            self._stopped.discard(owner)
            self._let_go()
            if task is not None:
                asyncio.tasks._enter_task(self, task)

    def _count_step(self, what: object) -> None:
        self.steps += 1
        if self.trace is not None:
            self.trace.append((self.steps, _name(what)))
        if self.steps == self.crash_at:
            raise Crash(f"crash at step {self.steps}")
        if self.steps > self.steps_max:
            raise Endless(f"still running after {self.steps} steps, at {self._now:.3f} s")

    def abandon(self) -> None:
        """Forget everything that was to run, as a dead process does.

        Python runs the clean-up of coroutines that are dropped; it is run here and now, with the loop closed, and
        what it does to disk or store must be refused by these (they know that the process is dead)."""
        self._closed = True
        # Held before what keeps them alive goes: one that never began and is dropped unclosed is warned of, wherever the
        # garbage collector happens to find it.
        tasks = asyncio.all_tasks(self)
        self._ready.clear()
        self._held.clear()
        self._timers.clear()
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio has no public way to say so
            with suppress(Exception):
                task.get_coro().close()

    # --- what asyncio asks of a loop -----------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._closed:
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if not self._closed:
            self._count += 1
            heapq.heappush(self._timers, (when, self._count, handle))
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers stay in the heap until their time."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # the base class declares less than asyncio uses
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: Context | None = None
    ) -> "asyncio.Task[T]":
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(error if error is not None else AssertionError(str(context.get("message"))))

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def run_in_executor(self, executor: object, func: Callable[[*Ts], T], *args: *Ts) -> "asyncio.Future[T]":
        raise AssertionError("a simulated component must block through its execution port, not through a thread")


def _owner(handle: asyncio.Handle) -> object:
    context: Context = handle._context  # type: ignore[attr-defined]  # whose callback it is
    return context.get(OWNER)


def new_loop(random: random.Random, *, now: float = 0.0, steps_max: int = 200_000) -> SimLoop:
    return SimLoop(random, now=now, steps_max=steps_max)  # type: ignore[abstract]  # no sockets, signals or processes


def _name(what: object) -> str:
    """What a step ran, without addresses."""
    if isinstance(what, asyncio.Handle):
        callback = what._callback  # type: ignore[attr-defined]  # for traces only
        owner = getattr(callback, "__self__", None)
        if isinstance(owner, asyncio.Task):
            return f"task {getattr(owner.get_coro(), '__qualname__', '?')}"
        return getattr(callback, "__qualname__", type(callback).__name__)
    return str(what)
