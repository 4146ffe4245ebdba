"""What the console asks of machines: their seeds, commands to their agents, and the end of their identities.

One rule: everything is a row that is written before anybody acts on it; asking again after a crash finds it.

| crash after | what is so | repaired by |
| --- | --- | --- |
| seed: row written, token not handed on | a token that nobody knows; it expires | the step seeds again, which replaces it |
| ask: row written | the agent gets the command at its next poll | whoever asked finds it by its id, or asks again |
| command taken, agent dies | a command without an answer | it is handed out again after REDELIVER_S |
| revoke: row written | the machine gets 412 from now on | nothing to repair |
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from envctl.calling import Context
from envctl.database.models import Environment, Guest, GuestCommand
from envctl.errors import NoSuchThing, Refused

SEED_LIFE_S: Final = 600.0
REDELIVER_S: Final = 120.0
GIVE_UP_S: Final = 86400.0
"""A command that nobody answered for so long has failed."""
CommandKind = Literal["backup", "restore", "status"]


@dataclass(frozen=True, slots=True)
class Answered:
    """`waiting`: no agent took it yet; `taken`: one is at it; then `done` or `failed`, with what the agent said: `number` of a
    backup, `message` of a failure."""

    state: Literal["waiting", "taken", "done", "failed"]
    answer: Mapping[str, object]
    created_at: float
    ended_at: float | None

    @property
    def over(self) -> bool:
        return self.state in ("done", "failed")


def hash_of(token: str) -> str:
    """What a row holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def console_url(context: Context) -> str:
    """Where guests find the console, without a slash at the end."""
    return (context.settings.guest_url or context.settings.url or f"http://{context.settings.listen}").rstrip("/")


def seed(context: Context, environment: Environment, generation: int, machine_uuid: str) -> tuple[str, str]:
    """A new one-time token for this machine and the address of its seed, with a slash at the end (`ds=nocloud;s=...`). Valid
    for SEED_LIFE_S; a token that was given before is void. Durable when it returns; not within a `write`.

    Refused where the machine of that generation has enrolled or was revoked already."""
    token = secrets.token_urlsafe(32)
    now = context.now()
    with context.database.write() as session:
        guest = session.get(Guest, (environment.id, generation))
        if guest is None:
            guest = Guest(environment_id=environment.id, generation=generation, seed_expires_at=0.0, machine_uuid="")
            session.add(guest)
        if guest.public_key is not None or guest.revoked_at is not None:
            raise Refused(f"{environment.name}: machine {generation} has its identity already", hint="make a new one")
        guest.machine_uuid = machine_uuid.lower()
        guest.seed_hash = hash_of(token)
        guest.seed_expires_at = now + SEED_LIFE_S
        guest.seed_address = None
    return token, f"{console_url(context)}/seed/{token}/"


def revoke(context: Context, environment_id: str, generation: int) -> None:
    """Machines of `generation` and before are strangers from now on: they are told `fenced`, their seeds are void and what
    was asked of them has failed. Repeatable; not within a `write`."""
    now = context.now()
    with context.database.write() as session:
        session.execute(
            update(Guest)
            .where(Guest.environment_id == environment_id, Guest.generation <= generation, Guest.revoked_at.is_(None))
            .values(revoked_at=now, seed_hash=None)
        )
        session.execute(
            update(GuestCommand)
            .where(
                GuestCommand.environment_id == environment_id,
                GuestCommand.generation <= generation,
                GuestCommand.ended_at.is_(None),
            )
            .values(ended_at=now, ok=False, answer={"message": "the machine is gone"})
        )


def ask(context: Context, environment_id: str, kind: CommandKind, parameters: Mapping[str, object]) -> str:
    """The id of a command for the agent of the environment's machine; `answer_of` tells how it goes. `backup`: `{kind}`.
    `restore`: `{number, paths: [base64] or null, into: "place" or a folder, from?}`. Not within a `write`.

    NoSuchThing; Refused where no agent has enrolled."""
    with context.database.write() as session:
        environment = session.get(Environment, environment_id)
        if environment is None:
            raise NoSuchThing("there is no such environment")
        return ask_in(session, context, environment, kind, parameters)


def ask_in(
    session: Session,
    context: Context,
    environment: Environment,
    kind: CommandKind,
    parameters: Mapping[str, object],
) -> str:
    """As `ask`, within a session that writes."""
    guest = session.get(Guest, (environment.id, environment.generation))
    if guest is None or guest.public_key is None or guest.revoked_at is not None:
        raise Refused(f"{environment.name}: no agent answers", hint="the machine has to run, and its agent to be there")
    made = GuestCommand(
        id=context.new_id(),
        environment_id=environment.id,
        generation=environment.generation,
        kind=kind,
        parameters=dict(parameters),
        created_at=context.now(),
    )
    session.add(made)
    session.flush()
    return made.id


def answer_of(context: Context, command_id: str) -> Answered:
    """NoSuchThing."""
    with context.database.read() as session:
        row = session.get(GuestCommand, command_id)
    if row is None:
        raise NoSuchThing("there is no such command")
    if row.ended_at is not None:
        return Answered("done" if row.ok else "failed", row.answer, row.created_at, row.ended_at)
    if context.now() - row.created_at > GIVE_UP_S:
        return Answered("failed", {"message": "the agent did not answer"}, row.created_at, None)
    return Answered("waiting" if row.taken_at is None else "taken", {}, row.created_at, None)


def open_commands(session: Session, environment_id: str, generation: int) -> list[GuestCommand]:
    """Those without an answer, oldest first."""
    wanted = (
        select(GuestCommand)
        .where(
            GuestCommand.environment_id == environment_id,
            GuestCommand.generation == generation,
            GuestCommand.ended_at.is_(None),
        )
        .order_by(GuestCommand.id)
    )
    return list(session.scalars(wanted))
