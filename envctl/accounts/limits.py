"""How often somebody may try: by address and by account, with waits that double.

One rule: an attempt is counted before it is looked at, so that a thousand at once are a thousand; who was right gets it back.
It is counted for accounts that there are not as well, so that the answer does not tell which there are.

An account waits five minutes at most: somebody who knows only a name must not lock its owner out for long.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import delete
from sqlalchemy.orm import Session

from envctl.database.models import Attempt
from envctl.errors import TooMany

FORGET_S: Final = 86400.0
"""Rows are swept after this."""


@dataclass(frozen=True, slots=True)
class Policy:
    free: int
    """Attempts without a wait."""
    quiet_s: float
    """After this without one the count begins anew."""
    first_wait_s: float
    wait_max_s: float


ADDRESS: Final = Policy(free=20, quiet_s=900.0, first_wait_s=2.0, wait_max_s=900.0)
"""People behind one address translator share it."""
ACCOUNT: Final = Policy(free=5, quiet_s=900.0, first_wait_s=2.0, wait_max_s=300.0)
SECOND_FACTOR: Final = Policy(free=5, quiet_s=3600.0, first_wait_s=15.0, wait_max_s=900.0)
"""A code has six digits: a day of guessing at this rate is right once in some three thousand days."""


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    policy: Policy


def address(text: str) -> Subject:
    """An IPv6 network counts as one: whoever has one address of it has all."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return Subject(f"address:{text[:64]}", ADDRESS)
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return Subject(f"address:{found.ipv4_mapped}", ADDRESS)
        return Subject(f"address:{ipaddress.ip_network((found, 64), strict=False)}", ADDRESS)
    return Subject(f"address:{found}", ADDRESS)


def account(name: str) -> Subject:
    return Subject(f"account:{name.strip().casefold()[:64]}", ACCOUNT)


def second_factor(user_id: str) -> Subject:
    return Subject(f"second:{user_id}", SECOND_FACTOR)


def begin(session: Session, subjects: Iterable[Subject], now_s: float) -> None:
    """Count an attempt of each. TooMany, where one of them must wait; then none is counted. `session`: a write."""
    rows = []
    for subject in subjects:
        row = session.get(Attempt, subject.name)
        if row is None:
            row = Attempt(subject=subject.name, count=0, since_at=now_s, blocked_until=0.0)
        elif row.blocked_until > now_s:
            wait = row.blocked_until - now_s
            raise TooMany("too many attempts", retry_after_s=wait, hint=f"try again in {int(wait) + 1} s")
        elif now_s > max(row.since_at, row.blocked_until) + subject.policy.quiet_s:
            row.count, row.since_at = 0, now_s
        rows.append((row, subject.policy))
    for row, policy in rows:
        row.count += 1
        row.blocked_until = now_s + wait_after(row.count, policy)
        session.add(row)


def wait_after(count: int, policy: Policy) -> float:
    """Seconds until the next attempt, after so many."""
    over = count - policy.free
    return 0.0 if over <= 0 else min(policy.first_wait_s * 2.0 ** min(over - 1, 30), policy.wait_max_s)


def succeeded(session: Session, subjects: Iterable[Subject]) -> None:
    """It was right: an account begins anew, an address gets this attempt back. `session`: a write."""
    for subject in subjects:
        row = session.get(Attempt, subject.name)
        if row is None:
            continue
        if subject.policy is ADDRESS and row.count > 1:
            # Else an attacker with one account of the own would wipe out the guesses at others'.
            row.count -= 1
            row.blocked_until = 0.0 if row.count <= ADDRESS.free else row.blocked_until
        else:
            session.delete(row)


def sweep(session: Session, now_s: float) -> None:
    """Forget what is old. `session`: a write."""
    session.execute(delete(Attempt).where(Attempt.since_at < now_s - FORGET_S, Attempt.blocked_until < now_s))
