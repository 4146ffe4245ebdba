"""What every part of the run is given."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


class Interrupted(KeyboardInterrupt):
    """A part was interrupted and gives what it has; whoever catches a KeyboardInterrupt catches this too."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self.part = part
