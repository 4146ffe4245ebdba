"""What counting costs: a loop of puts of 4 KiB into memory, with and without a tally, by turns.

python -m bench.spending
"""

import statistics
import sys
import time
from random import Random

from s3core.build import stack
from s3core.clock import SystemClock
from s3core.memory import MemoryStore
from s3core.retry import RetryPolicy
from s3core.spending_book import Tally

PUTS = 2000
ROUNDS = 15


def microseconds_per_put(tally: Tally | None, puts: int = PUTS) -> float:
    """CPU time of this process for one put through the whole stack."""
    clock = SystemClock()
    store = stack(MemoryStore("", clock=clock), clock, Random(1), RetryPolicy(), tally=tally)
    body = bytes(4096)
    began = time.process_time()
    for number in range(puts):
        store.put(f"k{number % 64}", body)
    return (time.process_time() - began) / puts * 1e6


def compared(rounds: int = ROUNDS, puts: int = PUTS) -> tuple[float, float]:
    """The least of several rounds without and with, in microseconds for a put: what others do on the machine only adds."""
    without, counted = [], []
    for _ in range(rounds):
        without.append(microseconds_per_put(None, puts))
        counted.append(microseconds_per_put(Tally(), puts))
    print(f"spread without: {statistics.pstdev(without):.2f} us", file=sys.stderr)
    return min(without), min(counted)


def main() -> None:
    without, counted = compared()
    print(f"put of 4 KiB: {without:.2f} us without, {counted:.2f} us counted, {counted - without:+.2f} us")


if __name__ == "__main__":
    main()
