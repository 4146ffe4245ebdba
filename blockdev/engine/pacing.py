"""How fast a filling journal takes writes: the door is asked to hold answers back, so that it slows before it refuses.

One rule: only arithmetic on what it is given, clock readings included. It never delays anything itself, and below half a
journal nobody asks it.

    fill 0 to 1/2   no limit
    fill 1/2 to 1   drain + RING_SHARE * ring * (2 * (1 - fill))**2 bytes a second
    full            the write is refused (BUSY), which is not decided here

The second term alone never fills a journal: what is left of it shrinks as 1 / (2 + t / 2) with t in seconds. So it is the
first term, which keeps the rate above what drains, and the cap on each single wait that let it become full at last.
"""

from collections import deque

PACED_FILL = 0.5
RING_SHARE = 1 / 8
"""Of the ring, taken in a second on top of what drains, when the journal is half full."""
HOLD_S_MAX = 1.0
"""No answer is held longer for one receive: a host counts on answers within seconds, and BUSY says the rest."""
HOLD_S_MIN = 0.001
"""Shorter waits are owed, not waited: a timer is no finer."""
DRAIN_WINDOW_S = 10.0
DRAIN_SPAN_S_MIN = 1.0


def allowed_rate(fill: float, drain: float, ring_bytes: int) -> float:
    """Bytes a second to be taken in at this fill (0 to 1, from PACED_FILL on) while `drain` bytes a second leave."""
    left = min(1.0, (1.0 - fill) / (1.0 - PACED_FILL))
    return drain + RING_SHARE * ring_bytes * max(0.0, left) ** 2


class DrainMeter:
    """Bytes a second that became durable in the bucket, on average over the last DRAIN_WINDOW_S. Commits are lumps, some
    MiB each: a shorter window would see none or one."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def begin(self, now: float, position: int) -> None:
        """A backlog begins now: the time before, when there was nothing to carry, does not count."""
        self._seen.clear()
        self._seen.append((now, position))

    def note(self, now: float, position: int) -> None:
        """Everything before `position` is durable."""
        self._seen.append((now, position))
        self._forget(now)

    def rate(self, now: float) -> float:
        self._forget(now)
        if not self._seen:
            return 0.0
        (began, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(DRAIN_SPAN_S_MIN, min(now - began, DRAIN_WINDOW_S))

    def _forget(self, now: float) -> None:
        # One reading from before the window stays: it says where the position stood when the window began.
        while len(self._seen) > 1 and self._seen[1][0] <= now - DRAIN_WINDOW_S:
            self._seen.popleft()


class Pacer:
    """One volume's intake, all doors and connections together: what is taken at once is owed as time by those who come next."""

    def __init__(self, ring_bytes: int) -> None:
        self.drain = DrainMeter()
        self.held_s = 0.0
        """Seconds answers were held back in all."""
        self._ring_bytes = ring_bytes
        self._clear_at = 0.0

    def hold(self, taken: int, fill: float, now: float) -> float:
        """Seconds to hold back the answer to writes of `taken` bytes; 0 when the intake so far is within the rate."""
        owed = self._clear_at - now
        rate = allowed_rate(fill, self.drain.rate(now), self._ring_bytes)
        due = taken / rate if rate * HOLD_S_MAX > taken else HOLD_S_MAX
        self._clear_at = now + min(HOLD_S_MAX, max(0.0, owed) + due)
        if owed < HOLD_S_MIN:
            return 0.0
        self.held_s += owed
        return owed
