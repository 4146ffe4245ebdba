"""Who runs the pieces of a scan or of an apply: this process, processes of this machine, or a Dask cluster.

One rule: a piece is a function and a value, both fit to be sent elsewhere, and running it twice does no harm: a piece whose
worker died is run again by whoever is left, and only an answer that arrived counts.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import connection, resource_tracker
from typing import Any, Generic, Protocol, TypeVar

Task = TypeVar("Task")
Answer = TypeVar("Answer")

SPENDING_THREAD = "spending"
"""As `s3core.spending_book` calls it."""

TRIES = 4
"""How often a piece is given out when workers die under it, before the run gives up."""


COLLECTED_AT = (50_000, 20, 100)


def collect_seldom() -> None:
    """Look for cycles of dead objects seldom, and never among what is there now. A page of a listing is thousands of tuples
    that die with it, by themselves: looked through again and again, as is usual, together with all that was imported, they
    cost more than reading and comparing them. In a fork what is there now stays in pages that are shared."""
    gc.freeze()
    gc.set_threshold(*COLLECTED_AT)


class WorkerLost(Exception):
    """The process or host that ran the piece is gone; the piece may have run, in part or wholly."""


class Engine(Protocol):
    @property
    def lanes(self) -> int:
        """How many pieces run at once."""
        ...

    def submit(self, function: Callable[[Task], Answer], task: Task) -> "Future[Answer]":
        """The future's error is WorkerLost where the worker died, else what the function raised."""
        ...

    def close(self) -> None:
        """Wait for nothing: pieces not begun are dropped."""
        ...


class Hold(Protocol):
    """A piece with effects, seen from where it runs. Such a piece may run twice, one run after the other or both at once:
    its worker was lost, or only seemed to be."""

    @property
    def name(self) -> str:
        """Of whoever runs it, for messages."""
        ...

    def begin(self) -> bool:
        """Before the first effect. Whether another run of the piece may have had effects. Raises WorkerLost as `keep`."""
        ...

    def keep(self) -> None:
        """WorkerLost where nobody waits for this run's answer any more: another worker has the piece, or it was dropped,
        or whoever gave it out is gone."""
        ...

    def tell(self, *words: str) -> None:
        """Something that whoever gave the piece out should know even if this worker dies: there in a moment, in order.
        Never waits, and may be lost with the worker in that moment."""
        ...


Told = Callable[[tuple[str, ...]], None]
"""What a run tells of its piece, in another thread; not called once the piece is answered."""


class Crew(Engine, Protocol):
    """An engine for pieces that change something outside."""

    def submit_held(self, function: Callable[[Task, Hold], Answer], task: Task, told: Told) -> "Future[Answer]":
        """As `submit`; the function is given what holds the piece where it runs."""
        ...


class InlineEngine:
    """Runs a piece where it is submitted, at once: for tests, small buckets and stores of this process."""

    lanes = 1

    def submit(self, function: Callable[[Task], Answer], task: Task) -> "Future[Answer]":
        future: Future[Answer] = Future()
        try:
            future.set_result(function(task))
        except Exception as error:  # noqa: BLE001 - handed to whoever asks for the result
            future.set_exception(error)
        return future

    def close(self) -> None:
        """Nothing is kept."""


class ProcessEngine:
    """Processes of this machine. They end with this process however it ends, and do not hear a Ctrl-C, which is this
    one's to answer.

    They are forked, at once, where this process has no thread that minds: then they begin in no time, and share what was
    imported. So it is made before connections and progress bars are. Connections that there are nevertheless are not used by
    them: each opens the mirror anew. Elsewhere, and in place of those that died, they are spawned with the first piece: a
    fork would copy the locks that other threads hold."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._open: set[Future[Any]] = set()
        self._spawning = not may_fork()
        if self._spawning:
            self._pool = self._new_pool("spawn")
        else:
            with _deaf_to_interrupts(spawning=False):
                self._pool = self._new_pool("fork")
                # With the first thing to do it starts all of them.
                self._pool.submit(os.getpid)

    def _new_pool(self, method: str) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.lanes, mp_context=multiprocessing.get_context(method), initializer=_begin)

    def submit(self, function: Callable[[Task], Answer], task: Task) -> "Future[Answer]":
        outer: Future[Answer] = Future()
        with _deaf_to_interrupts(spawning=self._spawning):
            try:
                inner = self._pool.submit(function, task)
            except BrokenProcessPool:
                # One dead process breaks the whole pool, which takes nothing any more. By now it has threads here.
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._spawning = True
                self._pool = self._new_pool("spawn")
                inner = self._pool.submit(function, task)
        self._open.add(inner)
        inner.add_done_callback(self._open.discard)
        inner.add_done_callback(lambda done: _pass_on(done, outer))
        return outer

    def close(self) -> None:
        if self._open:
            # Nobody waits for what they are at. Before Python 3.14 there is no other way to the pool's processes.
            for process in list((self._pool._processes or {}).values()):
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)


def may_fork() -> bool:
    """Whether this process has no threads but such as leave nothing locked in a fork: the one that writes down what is spent,
    which sees to that itself."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if threading.current_thread() is not threading.main_thread() or any(one.name != SPENDING_THREAD for one in others):
        return False
    try:
        return len(os.listdir("/proc/self/task")) == 1 + len(
            others
        )  # libraries have threads that Python knows nothing of
    except OSError:
        return False


@contextmanager
def _deaf_to_interrupts(*, spawning: bool) -> Iterator[None]:
    """What is started meanwhile never hears SIGINT: a terminal sends it to all processes of a command at once. Here it is
    heard afterwards."""
    if spawning:
        # Its own start would end the deafness too early.
        resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """In a process of the pool: it ends with its parent, and its threads share one heap."""
    # A fork has the command's way to end in order, which is not its own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    collect_seldom()
    _one_heap()
    _end_with_parent()


def _one_heap() -> None:
    """Tell glibc to keep what threads free in one place. A heap for each thread keeps what that one needed at most, some
    ten MiB for each process of a scan; and threads of Python hardly ever allocate at once."""
    with suppress(OSError, AttributeError):  # another libc has no mallopt: more memory, not wrong
        ctypes.CDLL(None).mallopt(-8, 1)  # M_ARENA_MAX of <malloc.h>


def _end_with_parent() -> None:
    """It would else wait for ever for pieces of a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _pass_on(inner: "Future[Any]", outer: "Future[Any]") -> None:
    if inner.cancelled():
        outer.set_exception(WorkerLost("the piece was dropped"))
        return
    error = inner.exception()
    if isinstance(error, BrokenProcessPool):
        outer.set_exception(WorkerLost("a process of this machine died"))
    elif error is not None:
        outer.set_exception(error)
    else:
        outer.set_result(inner.result())


class Pieces(Generic[Task, Answer]):
    """Pieces given to an engine, at most so many at once, and given again when their worker dies.

    `add` while iterating adds work; iteration ends when nothing is waiting and nothing runs. An error of a piece
    ends it; so does a piece whose worker died TRIES times. `first_here`: the first piece runs in this process. What
    waits are tasks, not answers."""

    def __init__(self, engine: Engine, function: Callable[[Task], Answer], *, first_here: bool = False) -> None:
        self._engine = engine
        self._here: Engine | None = InlineEngine() if first_here else None
        self._function = function
        self._waiting: list[tuple[Task, int]] = []
        self._running: dict[Future[Answer], tuple[Task, int]] = {}
        self.lost = 0
        """How many workers died under a piece."""

    def add(self, task: Task) -> None:
        self._waiting.append((task, 1))

    @property
    def idle(self) -> int:
        """Lanes that have nothing to do now."""
        return max(0, self._engine.lanes - len(self._running) - len(self._waiting))

    def __iter__(self) -> Iterator[tuple[Task, Answer]]:
        while self._waiting or self._running:
            # One more than there are lanes: a lane that is done finds its next piece at once.
            while self._waiting and len(self._running) <= self._engine.lanes:
                task, tries = self._waiting.pop()
                engine, self._here = self._here or self._engine, None
                self._running[engine.submit(self._function, task)] = (task, tries)
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in done:
                task, tries = self._running.pop(future)
                try:
                    answer = future.result()
                except WorkerLost:
                    self.lost += 1
                    if tries >= TRIES:
                        raise
                    self._waiting.append((task, tries + 1))
                    continue
                yield task, answer
