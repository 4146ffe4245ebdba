"""Time and randomness as arguments, so that retries, leases and simulations run on any clock."""

import random
import time
from typing import Protocol

from s3core import waiting


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds that only go forward; comparable only with this clock's own readings."""
        ...

    def time(self) -> float:
        """Unix seconds, for people and records; never used to decide who may write."""
        ...

    def sleep(self, seconds: float) -> None: ...


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float) -> None:
        waiting.sleep(seconds)


def system_random() -> random.Random:
    """A randomness handle seeded by the operating system."""
    return random.Random(random.SystemRandom().getrandbits(64))
