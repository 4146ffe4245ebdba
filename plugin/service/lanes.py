"""Work on a store, in threads of its own: so much at once, and nobody waits longer than his deadline.

One rule: a thread that hangs in a store holds a place in its own lane and nothing else. Its caller has his answer at his
deadline; the thread ends by the time limits of the store's client, and its result is dropped.
"""

import math
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from plugin.errors import Busy, DeadlineOver

T = TypeVar("T")


class Outcome(Generic[T]):
    """Of work that was begun."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, at the latest after so many seconds."""
        return self._ended.wait(None if math.isinf(seconds) else max(seconds, 0.0))

    def result(self) -> T:
        """Of work that has ended; raises what it raised."""
        assert self._ended.is_set()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def carry_out(self, work: Callable[[], T]) -> None:
        try:
            self._result.append(work())
        except BaseException as error:  # noqa: BLE001  # it is raised again in the thread that asked
            self._error = error
        finally:
            self._ended.set()


class Lane:
    """`places` threads at once. `what` names it in messages: `storage s3`."""

    def __init__(self, what: str, places: int) -> None:
        self.what = what
        self._places = threading.BoundedSemaphore(places)
        self._count = places
        self._busy = 0
        self._lock = threading.Lock()

    @property
    def busy(self) -> int:
        """Places that are taken."""
        with self._lock:
            return self._busy

    def begin(self, work: Callable[[], T], deadline: float) -> Outcome[T]:
        """Have `work` done in a thread. Busy where no place comes free before `deadline` (monotonic; infinite: waits)."""
        seconds = deadline - time.monotonic()
        if not self._places.acquire(timeout=-1 if math.isinf(seconds) else max(seconds, 0.0)):
            raise Busy(
                f"{self.what}: {self._count} calls are under way and none has ended",
                hint="the store does not answer, or is slow",
            )
        with self._lock:
            self._busy += 1
        outcome: Outcome[T] = Outcome()

        def run() -> None:
            try:
                outcome.carry_out(work)
            finally:
                with self._lock:
                    self._busy -= 1
                self._places.release()

        threading.Thread(target=run, name=self.what, daemon=True).start()
        return outcome

    def run(self, work: Callable[[], T], deadline: float) -> T:
        """The result of `work`. DeadlineOver where it has not ended by then: it goes on alone."""
        outcome = self.begin(work, deadline)
        if not outcome.wait(deadline - time.monotonic()):
            raise DeadlineOver(f"{self.what}: the store did not answer in time")
        return outcome.result()
