"""What a bucket does to itself: expiry by the age of objects and of versions that were replaced.

One rule: a rule explains only what it can have done. It has to be in force, cover the key, and its time has to have run
out; whether it did it nobody can say, so what it explains is told as explained and never left out.

Source: S3 User Guide, "Lifecycle configuration elements". A rule counts in whole days from midnight, and servers are late
rather than early.
"""

from collections.abc import Sequence

from s3core.s3_control import LifecycleRule

DAY_S = 86_400.0


def expired(rules: Sequence[LifecycleRule], key: str, written: float, now: float) -> str:
    """The rule by which a current object written at `written` may be deleted by `now`; "" where none."""
    return _named(rules, key, "expire_days", now - written) if written else ""


def expired_noncurrent(rules: Sequence[LifecycleRule], key: str, replaced: float, now: float) -> str:
    """As `expired`, for a version that another one replaced at `replaced`."""
    return _named(rules, key, "expire_noncurrent_days", now - replaced) if replaced else ""


def aborted(rules: Sequence[LifecycleRule], key: str, begun: float, now: float) -> str:
    """As `expired`, for an upload in parts that nobody completed."""
    return _named(rules, key, "abort_uploads_days", now - begun) if begun else ""


def possible(rules: Sequence[LifecycleRule], key: str, written: float, now: float) -> bool:
    """Whether any rule may have deleted anything of a key whose oldest write that is known of was at `written` (0.0: none)."""
    if not written:
        return any(rule.enabled and key.startswith(rule.prefix) for rule in rules)
    days = ("expire_days", "expire_noncurrent_days", "abort_uploads_days")
    return any(_named(rules, key, one, now - written) for one in days)


def _named(rules: Sequence[LifecycleRule], key: str, days: str, age_s: float) -> str:
    for rule in rules:
        limit = getattr(rule, days)
        if rule.enabled and limit and key.startswith(rule.prefix) and age_s >= limit * DAY_S:
            return rule.name or f"{days.replace('_', ' ')} {limit}"
    return ""
