"""What workers tell each other about upkeep, in rows: who does it, when a look was asked for, what the last one found.

One rule: `settings` rows whose keys begin with `_` are the console's own; no person sets them.
"""

from dataclasses import asdict, dataclass, field
from typing import Final

from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.models import Setting

_ASKED: Final = "_reconcile.asked"
_LAST: Final = "_reconcile.last"


@dataclass(frozen=True, slots=True)
class Found:
    """Of one look at all hypervisors. `errors`: those that did not answer, from whose silence nothing was concluded."""

    at: float
    machines: int = 0
    orphans: int = 0
    missing: int = 0
    findings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def ask(session: Session, now: float) -> float:
    """A look that begins at or after the moment that is returned is wanted soon."""
    _put(session, _ASKED, now)
    return now


def asked(session: Session) -> float:
    row = session.get(Setting, _ASKED)
    return float(row.value) if row is not None and isinstance(row.value, int | float) else 0.0


def last(session: Session) -> Found | None:
    row = session.get(Setting, _LAST)
    return Found(**row.value) if row is not None and isinstance(row.value, dict) else None


def put_last(session: Session, found: Found) -> None:
    _put(session, _LAST, asdict(found))


def lead(context: Context, what: str, worker: str, for_s: float) -> bool:
    """Whether this worker does `what` (`reconciler`, `scheduler`) for the next `for_s`: one of them all does. A leader that
    dies is followed by another when its time is over."""
    key = f"_lead.{what}"
    now = context.now()
    with context.database.write() as session:
        row = session.get(Setting, key)
        held = row.value if row is not None and isinstance(row.value, dict) else {}
        until = held.get("until")
        if held.get("worker") != worker and isinstance(until, int | float) and now < until <= now + 10 * for_s:
            return False
        _put(session, key, {"worker": worker, "until": now + for_s})
        return True


def retire(context: Context, what: str, worker: str) -> None:
    """Give the lead back, so that another takes it at once."""
    with context.database.write() as session:
        row = session.get(Setting, f"_lead.{what}")
        if row is not None and isinstance(row.value, dict) and row.value.get("worker") == worker:
            session.delete(row)


def _put(session: Session, key: str, value: object) -> None:
    row = session.get(Setting, key)
    if row is None:
        session.add(Setting(key=key, value=value))
    else:
        row.value = value
