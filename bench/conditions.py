"""What lies between a client and the benchmark's store: latency, bandwidth, faults and blackouts.

One rule: nothing here waits or reads a clock. Every method is told the time and says at which time something is over, so
that the server sleeps once and a test counts. Heads are free; bodies are what takes time on a link.
"""

import enum
import random
from dataclasses import dataclass, field
from typing import Final

MIB: Final = 1024 * 1024
PIECE_BYTES_MAX: Final = 256 * 1024
PIECE_BYTES_MIN: Final = 16 * 1024
PIECE_S: Final = 0.005


@dataclass(slots=True)
class Link:
    """One direction of a line: bodies go over it one after the other. `bytes_per_s` 0: no limit."""

    bytes_per_s: float = 0.0
    free_at: float = 0.0

    def take(self, begin: float, size: int) -> float:
        """Sends `size` bytes that are ready at `begin`; gives the time at which the last of them is over."""
        if not self.bytes_per_s:
            return begin
        self.free_at = max(self.free_at, begin) + size / self.bytes_per_s
        return self.free_at


class Fate(enum.Enum):
    """What becomes of a request."""

    DONE = "done"
    REFUSED = "refused"
    """Nothing is done; the answer is an error."""
    LOST = "lost"
    """It is done; the answer is a 500."""
    CUT = "cut"
    """It is done; the connection is reset in place of an answer."""


@dataclass(slots=True)
class Faults:
    """Which requests fail: the same ones for the same seed and the same order of requests.

    `share` of the requests (of `method`, if that is not empty) fail. Of these a share of `lost` is done and not told: half of
    them are answered with 500, half with a reset. The others are not done and are answered with `status`."""

    share: float = 0.0
    status: int = 503
    lost: float = 0.0
    method: str = ""
    retry_after_s: int = 0
    """Sent as Retry-After, unless it is 0: Amazon S3 sends none with SlowDown."""
    seed: int = 0
    _chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def fate(self, method: str) -> Fate:
        if not self.share or (self.method and method != self.method):
            return Fate.DONE
        # Always as many draws, so that `lost` does not change which requests fail.
        fails, is_lost, is_cut = self._chance.random(), self._chance.random(), self._chance.random()
        if fails >= self.share:
            return Fate.DONE
        if is_lost >= self.lost:
            return Fate.REFUSED
        return Fate.CUT if is_cut < 0.5 else Fate.LOST


@dataclass(slots=True)
class Conditions:
    """All of it, for the whole server. A connection brings links of its own, made by `own_link`."""

    latency_s: float = 0.0
    per_connection_bytes_per_s: float = 0.0
    up: Link = field(default_factory=Link)
    down: Link = field(default_factory=Link)
    faults: Faults = field(default_factory=Faults)
    silent_until: float = 0.0
    """No request that arrives before then is done or answered."""

    def set_bandwidth(self, mib_s: float, per_connection_mib_s: float) -> None:
        self.up, self.down = Link(mib_s * MIB), Link(mib_s * MIB)
        self.per_connection_bytes_per_s = per_connection_mib_s * MIB

    def own_link(self) -> Link:
        return Link(self.per_connection_bytes_per_s)

    @property
    def limited(self) -> bool:
        return bool(self.up.bytes_per_s or self.per_connection_bytes_per_s)

    def arrived(self, own: Link, begin: float, size: int) -> float:
        """When an upload is over whose first byte came at `begin`: after what both links need for it."""
        return max(begin, self.up.take(begin, size), own.take(begin, size))

    def delivered(self, own: Link, begin: float, size: int) -> float:
        """When the last of `size` bytes of an answer is with the client."""
        return max(begin, self.down.take(begin, size), own.take(begin, size))

    def piece_bytes(self) -> int:
        """How much of an answer to send at a time: some milliseconds of the slowest link, so that connections share it."""
        rates = [rate for rate in (self.down.bytes_per_s, self.per_connection_bytes_per_s) if rate]
        return min(PIECE_BYTES_MAX, max(PIECE_BYTES_MIN, int(min(rates) * PIECE_S))) if rates else PIECE_BYTES_MAX
