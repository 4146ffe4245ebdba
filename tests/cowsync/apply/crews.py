"""Crews of this process: what runs a piece may go wrong as on a cluster."""

import pickle
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from cowsync.scan.engine import Hold, InlineEngine, Told, WorkerLost

Task = TypeVar("Task")
Answer = TypeVar("Answer")


class Held:
    """`again`: another run came before. `kept`: what happens when the run asks whether it is still waited for."""

    def __init__(self, *, again: bool = False, kept: Callable[[], None] = lambda: None) -> None:
        self.name = "a worker"
        self.again = again
        self.keep = kept
        self.tell: Callable[..., None] = lambda *words: None

    def begin(self) -> bool:
        return self.again


class Crew(InlineEngine):
    """Pieces and answers go through pickle. `befalls` takes what runs the piece under a hold and answers or raises for it."""

    def __init__(self, lanes: int = 2, befalls: Callable[[Callable[[Held], object]], object] | None = None) -> None:
        self.lanes = lanes
        self.befalls = befalls or (lambda run: run(Held()))

    def submit_held(self, function: Callable[[Task, Hold], Answer], task: Task, told: Told) -> "Future[Answer]":
        sent = pickle.dumps(task)
        return self.submit(lambda _: self._answered(function, sent, told), task)

    def _answered(self, function: Callable[[Task, Hold], Answer], sent: bytes, told: Told) -> Answer:
        def run(hold: Held) -> object:
            hold.tell = lambda *words: told(words)
            return pickle.loads(pickle.dumps(function(pickle.loads(sent), hold)))

        answer: Answer = self.befalls(run)  # type: ignore[assignment]
        return answer


def lost(run: Callable[[Held], object]) -> object:
    """The worker dies before it begins."""
    raise WorkerLost("injected")


def unheard(run: Callable[[Held], object]) -> object:
    """Everything is done, and the answer is lost."""
    run(Held())
    raise WorkerLost("injected")


def twice(run: Callable[[Held], object]) -> object:
    """The engine gives the piece out again by itself."""
    run(Held())
    return run(Held(again=True))


def whole(run: Callable[[Held], object]) -> object:
    return run(Held())
