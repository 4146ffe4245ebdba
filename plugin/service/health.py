"""When a storage counts as active: pure, from what its probes brought.

One rule: a storage is inactive when the store has refused it for good (credentials, no such bucket, a setting), or when MISSES
probes in a row brought nothing. A probe that hangs is one that brought nothing, for as long as it hangs.
"""

from dataclasses import dataclass, replace

MISSES = 3


@dataclass(frozen=True, slots=True)
class Health:
    """Times in Unix seconds, 0.0 for never. `began`: of the probe that is under way. `answered`: the last one that brought an
    answer, good or bad; `well`: the last good one."""

    well: float = 0.0
    answered: float = 0.0
    misses: int = 0
    refused: bool = False
    reason: str = ""
    began: float = 0.0


def begun(health: Health, now: float) -> Health:
    return replace(health, began=now)


def was_well(now: float) -> Health:
    return Health(well=now, answered=now)


def has_failed(health: Health, now: float, reason: str, *, for_good: bool) -> Health:
    """`for_good`: trying again will bring the same until somebody changes something."""
    return replace(health, answered=now, misses=health.misses + 1, refused=for_good, reason=reason, began=0.0)


def active(health: Health, now: float, probe_s: float) -> tuple[bool, str]:
    """Whether it counts as active, and if not why not, in a line. A storage of which nothing is known yet is not."""
    hangs = max(now - health.began, 0.0) if health.began else 0.0
    misses = health.misses + int(hangs / probe_s)
    if health.refused:
        return False, health.reason
    if misses >= MISSES:
        silent = f"the store has not answered for {hangs:.0f} s"
        return False, health.reason or silent
    if not health.well:
        return False, health.reason or "the store has not answered yet"
    if now - health.well > (MISSES + 1) * probe_s + hangs:
        return False, health.reason or f"the store was last seen {now - health.well:.0f} s ago"
    return True, ""
