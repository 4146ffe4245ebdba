"""Tickets for screens and terminals: each opens one connection, once, within a minute (`envctl.web.bridge`)."""

import base64
import hashlib
from typing import Final, Literal

from pydantic import Field
from sqlalchemy import delete, func, select

from envctl.accounts import rights
from envctl.calling import Caller, Context
from envctl.database.models import Ticket
from envctl.errors import Refused, TooMany
from envctl.verbs.verb import Answer, Request, Verb

LIFE_S: Final = 60.0
TICKETS_MAX: Final = 20
"""Of a user, not used and not expired."""


class AskTicket(Request):
    environment: str = Field(description="id, or name among one's own, or OWNER/NAME")
    kind: Literal["vnc", "terminal"] = Field(default="vnc", description="the screen, or a serial terminal")


class ConsoleTicket(Answer):
    environment_id: str
    kind: Literal["vnc", "terminal"]
    ticket: str
    """Good once."""
    path: str
    """Of the websocket, at this console; the ticket is in it."""
    expires_at: float


def ticket(context: Context, caller: Caller, request: AskTicket) -> ConsoleTicket:
    """Refused where the machine does not run, TooMany where many wait to be used. What the ticket opens is bound to
    the caller, and to the sign-in it came with."""
    now = context.now()
    secret = base64.urlsafe_b64encode(context.random(32)).decode().rstrip("=")
    with context.audit.act(caller, "console.ticket", target=request.environment, detail={"kind": request.kind}) as act:
        found = rights.environment(act.session, caller, request.environment)
        act.environment_id, act.target = found.id, found.name
        if not caller.login_hash:
            raise Refused(
                "a ticket is for the browser that is signed in, and a token is none",
                hint=f"s3-envctl env open {found.name} tells the address of the page",
            )
        if not found.running or not found.machine:
            raise Refused(f"{found.name} does not run, so it has no screen", hint=f"s3-envctl env start {found.name}")
        act.session.execute(delete(Ticket).where(Ticket.expires_at <= now))
        unused = select(func.count()).select_from(Ticket).where(Ticket.user_id == caller.user_id)
        if act.session.scalars(unused).one() >= TICKETS_MAX:
            raise TooMany(
                f"{TICKETS_MAX} tickets of yours were not used yet",
                retry_after_s=LIFE_S,
                hint=f"use them, or wait {LIFE_S:.0f} s: then they are void",
            )
        act.session.add(
            Ticket(
                token_hash=hash_of(secret, caller.login_hash),
                user_id=caller.user_id,
                environment_id=found.id,
                kind=request.kind,
                expires_at=now + LIFE_S,
            )
        )
        found.last_activity_at = now
    path = f"/console/{found.id}/ws?ticket={secret}"
    return ConsoleTicket(environment_id=found.id, kind=request.kind, ticket=secret, path=path, expires_at=now + LIFE_S)


def hash_of(secret: str, login_hash: str) -> str:
    """With the sign-in in it: in another browser the same ticket is another one, and unknown."""
    return hashlib.sha256(f"{login_hash}\n{secret}".encode("utf-8", "surrogateescape")).hexdigest()


VERBS: Final = (
    Verb(
        name="console.ticket",
        method="POST",
        path="/environments/{environment}/console",
        scope="console:write",
        function=ticket,
        request=AskTicket,
        answer=ConsoleTicket,
        summary="Make a ticket that opens a screen or a terminal, once, within a minute",
    ),
)
