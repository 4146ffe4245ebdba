"""What every part of the run is given."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.peers.figures import Part
from bench.store import Client


@dataclass(frozen=True, slots=True)
class Context:
    """`directory`: the run's own, on a real disk, emptied by whoever made it. `store`: the one store that all meet.
    `latencies_ms`, `systems`: what was asked for; no systems are all of them. `repeats`: runs of each load."""

    directory: Path
    store: Client
    store_pid: int
    quick: bool
    latencies_ms: Sequence[int]
    systems: Sequence[str]
    repeats: int
    seconds: float
    """How long a load that is bounded by time lasts."""
    say: Callable[[str], None]
    give_up: float = math.inf
    """Of `time.monotonic`: what would begin after it is left out, and told as missing."""

    def no_time(self, what: str, missing: list[str]) -> bool:
        """Whether the part's time is over; what is left out for it goes to `missing`."""
        over = time.monotonic() > self.give_up
        if over:
            missing.append(f"{what}: no time left")
        return over


class Interrupted(KeyboardInterrupt):
    """A part was interrupted and gives what it has; whoever catches a KeyboardInterrupt catches this too."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part


CUT: str = "cut off: what comes after the last figure was not measured"


@contextmanager
def kept(found: Callable[[], Part]) -> Iterator[None]:
    """Whoever interrupts a part in here gets what it has `found` until then, as Interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        part = found()
        raise Interrupted(replace(part, missing=[*part.missing, CUT])) from None
