"""The audit: a row for every change that was asked for, refused ones too; and a record in the ledger, where one is configured.

One rule: what changed and the row that says so are one transaction, and with a ledger its record comes first.

    what is so when the process dies         the database     the ledger             who repairs it
    before the record of the intent          as before        nothing                nobody needs to
    after it, before the commit              as before        an intent, no outcome  a named unknown: the audit has no row of it
    after the commit, before the outcome     changed, a row   an intent, no outcome  the same: the audit has the row

A ledger that cannot take the intent refuses the change. An outcome or a refusal that it cannot take is counted (`lost`) and
logged: what it tells of was decided.
"""

import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy.orm import Session

from envctl.calling import Caller
from envctl.database.access import Database
from envctl.database.models import AuditRow
from envctl.errors import EnvctlError, Refused
from integrity.recording import FAILURES, NotRecorded, Records
from s3core.clock import Clock

log = logging.getLogger(__name__)

OK: Final = "ok"
HIDDEN: Final = frozenset(
    {
        "password",
        "new_password",
        "old_password",
        "current_password",
        "secret",
        "token",
        "code",
        "csrf",
        "cookie",
        "recovery_codes",
    }
)
"""Names in `detail` whose values are never written down."""
TEXT_CHARACTERS_MAX: Final = 500


@dataclass(slots=True)
class Act:
    """A change under way. Who makes it fills in what is known only then, before it ends."""

    session: Session
    target: str = ""
    environment_id: str | None = None
    detail: dict[str, object] = field(default_factory=dict)


class Audit:
    """Threads share it. `records`: an open writer of a ledger (`integrity.recording.open_writer`); who gives it closes it."""

    def __init__(self, database: Database, records: Records | None, clock: Clock, *, host: str = "") -> None:
        self._database = database
        self._records = records
        self._clock = clock
        self._host = host or socket.gethostname()
        self._lost_lock = threading.Lock()
        self.lost = 0
        """Outcomes and refusals that are missing in the ledger."""

    @contextmanager
    def act(
        self,
        caller: Caller,
        verb: str,
        *,
        target: str = "",
        environment_id: str | None = None,
        detail: Mapping[str, object] | None = None,
    ) -> Iterator[Act]:
        """A write of the database that leaves a row of what it did.

            with context.audit.act(caller, "env.create") as act:
                act.session.add(environment)
                act.target, act.environment_id = environment.name, environment.id

        On leaving, changes and row are committed together. What raises undoes the changes; a row with the error's code is
        written by itself and the error goes on. Rights are checked inside, so that what was refused is seen. Refused where a
        ledger is configured and cannot take the record: nothing was changed."""
        seen = Act(None, target, environment_id, dict(detail or {}))  # type: ignore[arg-type]  # the session comes next
        intent: tuple[int, dict[str, object]] | None = None
        try:
            with self._database.write() as session:
                seen.session = session
                yield seen
                session.add(self._row(caller, verb, seen, OK))
                session.flush()
                if self._records is not None:
                    intent = self._intent(caller, verb, seen)
        except BaseException as error:
            outcome = error.code if isinstance(error, EnvctlError) else "interrupted" if _interrupts(error) else "bug"
            if intent is not None:
                # The commit failed or its answer was lost: the ledger keeps a named unknown.
                self._outcome(intent, "unknown", outcome)
            self._refusal(caller, verb, seen, outcome, error, in_ledger=intent is None)
            raise
        if intent is not None:
            self._outcome(intent, "done", OK)

    def row(
        self,
        caller: Caller,
        verb: str,
        *,
        target: str = "",
        outcome: str = OK,
        environment_id: str | None = None,
        detail: Mapping[str, object] | None = None,
    ) -> None:
        """Tell of something that has happened already (a download, a sign-in that failed), in a transaction of its own. Not
        within a `write` of the same thread. Errors of the database."""
        seen = Act(None, target, environment_id, dict(detail or {}))  # type: ignore[arg-type]  # it has no session
        with self._database.write() as session:
            session.add(self._row(caller, verb, seen, outcome))
        self._tell_ledger(self._event(caller, verb, seen, "done" if outcome == OK else "not-done", outcome))

    def _refusal(
        self, caller: Caller, verb: str, seen: Act, outcome: str, error: BaseException, *, in_ledger: bool
    ) -> None:
        if not isinstance(error, EnvctlError):
            seen.detail["error"] = type(error).__name__
        try:
            with self._database.write() as session:
                session.add(self._row(caller, verb, seen, outcome))
        except EnvctlError as failure:
            # The first error is what the caller must hear.
            log.error("audit: no row of %s by %s (%s): %s", verb, caller.name, outcome, failure)
        if in_ledger:
            self._tell_ledger(self._event(caller, verb, seen, "not-done", outcome))

    def _row(self, caller: Caller, verb: str, seen: Act, outcome: str) -> AuditRow:
        return AuditRow(
            at=self._clock.time(),
            actor=caller.name[:64],
            via=caller.via,
            address=caller.address[:64],
            verb=verb,
            target=seen.target[:160],
            environment_id=seen.environment_id,
            outcome=outcome[:16],
            detail=shown(seen.detail),
        )

    def _event(self, caller: Caller, verb: str, seen: Act, phase: str, outcome: str) -> dict[str, object]:
        detail: dict[str, object] = {"verb": verb, "outcome": outcome, "via": caller.via}
        if seen.target:
            detail["target"] = seen.target[:160]
        if seen.environment_id:
            detail["environment"] = seen.environment_id
        more = shown(seen.detail)
        if more:
            detail["detail"] = more
        who = {"kind": "user", "name": caller.name, "ip": caller.address, "host": self._host}
        return {
            "op": "control",
            "source": "client",
            "phase": phase,
            "who": {name: value for name, value in who.items() if value},
            "detail": detail,
        }

    def _intent(self, caller: Caller, verb: str, seen: Act) -> tuple[int, dict[str, object]]:
        assert self._records is not None
        event = self._event(caller, verb, seen, "intent", OK)
        try:
            return self._records.record(event), event
        except (*FAILURES, NotRecorded) as error:
            raise Refused(
                f"nothing was done: the ledger cannot record {verb}: {error}",
                hint="see what is wrong: s3integrity status",
            ) from error

    def _outcome(self, intent: tuple[int, dict[str, object]], phase: str, outcome: str) -> None:
        number, event = intent
        known: Any = event["detail"]
        self._tell_ledger(event | {"phase": phase, "intent": number, "detail": known | {"outcome": outcome}})

    def _tell_ledger(self, event: Mapping[str, object]) -> None:
        if self._records is None:
            return
        try:
            self._records.record(event, wait=False)
        except (*FAILURES, NotRecorded) as error:
            with self._lost_lock:
                self.lost += 1
            log.error("audit: the ledger has no record of %s: %s", event["detail"], error)


def shown(detail: Mapping[str, object]) -> dict[str, object]:
    """`detail` as audit and ledger hold it: without secrets, without fractions, with names and values of bounded length."""
    return {_name(name): "hidden" if name.lower() in HIDDEN else _plain(value) for name, value in detail.items()}


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, Mapping):
        return shown({str(name): below for name, below in value.items()})
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(below) for below in (sorted(value, key=str) if isinstance(value, (set, frozenset)) else value)]
    return str(value).encode("utf-8", "replace").decode()[:TEXT_CHARACTERS_MAX]


def _name(name: str) -> str:
    clean = "".join(
        letter if letter.isascii() and (letter.isalnum() or letter in "_.:-") else "_" for letter in name[:64]
    )
    return clean if clean[:1].isalnum() else "x" + clean


def _interrupts(error: BaseException) -> bool:
    return not isinstance(error, Exception)
