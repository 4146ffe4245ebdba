"""How many commits an hour may cost: a bucket of tokens that age alone must ask and that every commit takes from.

One rule: only arithmetic on the clock readings it is given.

A commit that bytes, a flush, a filling journal or a detach demand is made whatever the budget says, and counted: the tokens
may go below zero. They never owe more than an hour, so that a volume that was busy is not left with old content for longer.
"""

HOUR_S = 3600.0
TOKEN_ERROR = 1e-6
"""Less is rounding: waiting for it could take no time at all, for ever."""


class CommitBudget:
    """At most `per_hour` commits for age alone in an hour, evenly spread; 0 for no budget. One may be saved up: a write
    after a quiet time is committed at its age."""

    def __init__(self, per_hour: int, now: float) -> None:
        self.per_hour = per_hour
        self._tokens = 1.0
        self._at = now

    def wait_s(self, now: float) -> float:
        """Seconds until a commit for age alone may be made; 0: now."""
        if not self.per_hour:
            return 0.0
        self._refill(now)
        missing = 1.0 - self._tokens
        return missing * HOUR_S / self.per_hour if missing > TOKEN_ERROR else 0.0

    def made(self, now: float) -> None:
        """A commit was made, for whatever reason."""
        if self.per_hour:
            self._refill(now)
            self._tokens = max(self._tokens - 1.0, -float(self.per_hour))

    def _refill(self, now: float) -> None:
        self._tokens = min(1.0, self._tokens + (now - self._at) * self.per_hour / HOUR_S)
        self._at = now
