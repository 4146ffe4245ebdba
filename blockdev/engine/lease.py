"""The lease: how long a writer may go on acknowledging without having seen that nobody took the volume over.

One rule: clocks are compared only with themselves. A writer counts its lease from the *beginning* of the request that
showed it still was the writer; a successor counts from the *end* of the request that wrote its fence, and waits longer than
the lease its predecessor had. So the one has stopped before the other starts, whatever their clocks say.

The clock is CLOCK_BOOTTIME: it goes on while the host sleeps, and it is one for all processes of a host, so that front and
worker compare the same thing. It cannot know of a virtual machine that was paused from outside.
"""

import time
from collections.abc import Callable

LEASE_S = 600.0
"""Long enough that a store may be away for minutes and writes go on; a successor waits that long for a writer that does not
say that it has stopped."""
RENEW_S_MAX = 15.0
"""A writer looks whether it was taken over at least so often, so that it can say soon that it has stopped."""


def clock() -> float:
    """Seconds on CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def renew_interval_s(lease_s: float) -> float:
    """How often to look: three tries within a lease."""
    return min(lease_s / 3, RENEW_S_MAX)


def wait_s(lease_s: float) -> float:
    """How long a successor waits after its fence: the predecessor's lease, and room for two clocks that run at
    different speeds and for an answer that was just on its way."""
    return lease_s * 1.02 + 1.0


class Lease:
    """Owned by the worker. `granted(until)` is told of each renewal, on the clock."""

    def __init__(self, seconds: float, granted: Callable[[float], None]) -> None:
        self.seconds = seconds
        self.until = 0.0
        self._granted = granted

    def renewed(self, started: float) -> None:
        """A request that began at `started` showed that nobody had taken the volume over."""
        until = started + self.seconds
        if until > self.until:
            self.until = until
            self._granted(until)
