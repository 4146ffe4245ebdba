"""What counting costs: loops of puts of 4 KiB, with and without a tally, by turns; into memory, and onto a disk.

python -m bench.spending [DIRECTORY]
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from s3core.build import stack
from s3core.clock import SystemClock
from s3core.file import FileStore
from s3core.memory import MemoryStore
from s3core.retry import RetryPolicy
from s3core.spending_book import Tally
from s3core.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Compared:
    """Microseconds for a put, the median of the rounds of each; `spread` is the standard deviation of those without."""

    without: float
    counted: float
    spread: float

    def __str__(self) -> str:
        change = self.counted - self.without
        return (
            f"{self.without:8.2f} us without, {self.counted:8.2f} us counted, {change:+7.2f} us;"
            f" rounds without differ by {self.spread:.2f} us"
        )


def microseconds_per_put(adapter: ObjectStore, puts: int, seconds: Callable[[], float], tally: Tally | None) -> float:
    """One put through the whole stack, by that clock."""
    store = stack(adapter, SystemClock(), Random(1), RetryPolicy(), tally=tally)
    body = bytes(4096)
    began = seconds()
    for number in range(puts):
        store.put(f"k{number % 64}", body)
    return (seconds() - began) / puts * 1e6


def compared(adapter: ObjectStore, rounds: int, puts: int, seconds: Callable[[], float]) -> Compared:
    without, counted = [], []
    for _ in range(rounds):
        without.append(microseconds_per_put(adapter, puts, seconds, None))
        counted.append(microseconds_per_put(adapter, puts, seconds, Tally()))
    return Compared(statistics.median(without), statistics.median(counted), statistics.pstdev(without))


def main() -> None:
    memory = MemoryStore("", clock=SystemClock())
    print("memory, CPU time:", compared(memory, 15, 2000, time.process_time))
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        print("disk, elapsed:   ", compared(FileStore(directory), 15, 200, time.monotonic))


if __name__ == "__main__":
    main()
