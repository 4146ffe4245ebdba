"""How long commands take, as front doors see them: from the receive that brought the command to its answer being ready.

One rule: counting must cost next to nothing. A latency is put in a bucket by the bit length of its nanoseconds, a list index
and an addition; everything else is for who reads.
"""

from collections.abc import Sequence

READ, WRITE, FLUSH, OTHER = range(4)
KINDS = ("read", "write", "flush", "other")
"""`write` is everything that brings data; `other` all the rest, such as UNMAP and INQUIRY."""
BUCKETS = 64


class Latency:
    """Of one volume, since it was attached, whatever its sessions. `counts[kind][n]` is how many commands took less than
    2**n nanoseconds, but not less than 2**(n-1); `nanoseconds[kind]` is their sum."""

    __slots__ = ("counts", "nanoseconds")

    def __init__(self) -> None:
        self.counts = tuple([0] * BUCKETS for _ in KINDS)
        self.nanoseconds = [0] * len(KINDS)

    def record(self, kind: int, nanoseconds: int, commands: int = 1) -> None:
        self.counts[kind][nanoseconds.bit_length()] += commands
        self.nanoseconds[kind] += nanoseconds * commands

    def snapshot(self) -> dict[str, dict[str, list[int] | int]]:
        """Copies, by the names in KINDS: `counts` up to the last bucket in use, and `nanoseconds`."""
        found: dict[str, dict[str, list[int] | int]] = {}
        for name, counts, total in zip(KINDS, self.counts, self.nanoseconds, strict=True):
            used = max((n for n, count in enumerate(counts) if count), default=-1) + 1
            found[name] = {"counts": counts[:used], "nanoseconds": total}
        return found


def quantile(counts: Sequence[float], share: float) -> float | None:
    """Seconds that `share` (0 to 1) of the commands took at most, interpolated within a bucket; None without any."""
    total = sum(counts)
    if total <= 0:
        return None
    left = share * total
    for n, count in enumerate(counts):
        if count and left <= count:
            low, high = (2.0 ** (n - 1) if n else 0.0), 2.0**n
            return (low + (high - low) * left / count) / 1e9
        left -= count
    return 2.0 ** (len(counts) - 1) / 1e9
