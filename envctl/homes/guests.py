"""What guests ask, each answered by one function; `envctl.web.guest` is their HTTP (docs/protocol/envctl-guest.md).

One rule: the bucket comes before the rows. A row that a crash left behind is put right by the next heartbeat or by `upkeep`; a
backup that is told as done is in the bucket.

| crash after | what is so | repaired by |
| --- | --- | --- |
| enrol: key written | the agent has no answer | it asks again with the same key and gets the same answer |
| commit: head put | the backup is there, its row is not | the same commit again, or `upkeep` |
| restored: row written | the agent has no answer | it says so again |
| heartbeat: head put | `last_backup_at` is that of the one before | the next heartbeat |
| command answered | the agent has no answer | it answers again, which changes nothing |
"""

import base64
import hmac
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.calling import Caller, Context
from envctl.database.models import Backup, Environment, Guest, GuestCommand, JobLine, Template, User
from envctl.errors import Fenced, Forbidden, Invalid, NoSuchThing, Refused
from envctl.homes import requests
from envctl.homes.agent_file import agent_sha256
from envctl.homes.documents import Commit, Kind, Snapshot, Stats
from envctl.homes.errors import NotRestored
from envctl.homes.identity import Identity
from envctl.homes.paths import text_of
from envctl.homes.presigning import SignedUrl
from envctl.seed import SeedFacts

HOOKS_TIMEOUT_S: Final = 300
UPLOAD_BYTES: Final = 8 * 2**20
STATUS_BYTES_MAX: Final = 16 * 1024
COUNT_MAX: Final = 2**31 - 1
SIZE_MAX: Final = 2**53
"""What a guest counts is kept in rows and added up over all homes: no sum of these leaves what a database or JSON can hold."""
FUZZY_MAX: Final = 100
LEFT_OUT_TOLD_MAX: Final = 5
PROBLEMS_MAX: Final = 20
PROBLEM_LENGTH_MAX: Final = 300
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_NO_SEED: Final = "there is no such seed"


class _Asked(BaseModel):
    """What is not known is left aside: an agent may be newer than the console."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


Name = Annotated[str, Field(max_length=80)]
FuzzyPath = Annotated[str, Field(max_length=8192)]
"""In base64."""


class Enrol(_Asked):
    token: str = Field(max_length=128)
    uuid: str = Field(max_length=64)
    public_key: str = Field(max_length=64)
    agent_version: str = Field(default="", max_length=200)


class Upload(_Asked):
    name: str = Field(max_length=80)
    size: int = Field(ge=1)
    sha256: str = Field(max_length=64)


class Uploads(_Asked):
    objects: list[Upload] = Field(max_length=500)


class Downloads(_Asked):
    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, allow_inf_nan=False)
    objects: list[str] = Field(max_length=500)
    source: str | None = Field(default=None, alias="from", max_length=26)


class CommitStats(_Asked):
    files: int = Field(default=0, ge=0, le=COUNT_MAX)
    bytes: int = Field(default=0, ge=0, le=SIZE_MAX)
    added: int = Field(default=0, ge=0, le=COUNT_MAX)
    changed: int = Field(default=0, ge=0, le=COUNT_MAX)
    removed: int = Field(default=0, ge=0, le=COUNT_MAX)
    new_bytes: int = Field(default=0, ge=0, le=SIZE_MAX)
    fuzzy: int = Field(default=0, ge=0, le=COUNT_MAX)
    changed_files_fraction: float = Field(0.0, ge=0)


class NewCommit(_Asked):
    parent: int | None = Field(default=None, ge=0, le=COUNT_MAX)
    trees: list[Name] = Field(max_length=200_000)
    packs: list[Name] = Field(max_length=200_000)
    kind: Kind
    at: float
    command: str | None = Field(default=None, max_length=26)
    stats: CommitStats = Field(default_factory=lambda: CommitStats.model_validate({}))
    fuzzy_paths: list[FuzzyPath] = Field(default_factory=list, max_length=FUZZY_MAX)


class Restored(_Asked):
    number: int | None = Field(default=None, ge=0, le=COUNT_MAX)
    files: int = Field(default=0, ge=0, le=COUNT_MAX)
    bytes: int = Field(default=0, ge=0, le=SIZE_MAX)
    seconds: float = Field(0.0, ge=0)
    left_out: list[FuzzyPath] = Field(default_factory=list, max_length=FUZZY_MAX)
    left_out_count: int = Field(default=0, ge=0, le=COUNT_MAX)


class Heartbeat(_Asked):
    number: int | None = Field(default=None, ge=0, le=COUNT_MAX)
    unchanged: bool = False
    status: dict[str, Any] = Field(default_factory=dict)


class CommandAnswer(_Asked):
    ok: bool
    answer: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a machine must restore before it may save. `number` None: nothing, the home is new. `source`: another
    environment's id."""

    number: int | None
    source: str | None
    trees: tuple[str, ...]
    done: bool

    def document(self) -> dict[str, object]:
        return {"number": self.number, "from": self.source, "trees": list(self.trees), "done": self.done}


# --- seeds and enrolment -----------------------------------------------------------------------------------


def seed_facts(context: Context, token: str, address: str, console: str) -> SeedFacts:
    """For the documents of a seed. The first address that fetches it is the only one that it is given to. NoSuchThing for a
    token that is unknown, used up, expired or another machine's: nobody can tell which."""
    now = context.now()
    with context.database.write() as session:
        guest = _seeded(session, token, now)
        if guest.public_key is not None or guest.seed_address not in (None, address):
            raise NoSuchThing(_NO_SEED)
        guest.seed_address = address[:64]
        environment = session.get_one(Environment, guest.environment_id)
        template = session.get_one(Template, environment.template_id)
        owner = session.get_one(User, environment.owner_id)
        generation = guest.generation
    return SeedFacts(
        console=console,
        token=token,
        environment=environment.id,
        generation=generation,
        hostname=environment.name,
        login_user=template.login_user,
        agent_sha256=agent_sha256(),
        ssh_keys=tuple(owner.ssh_keys),
        ca_pem=_authorities(context),
    )


def enrol(context: Context, asked: Enrol, address: str) -> dict[str, object]:
    """The machine's key is written down and its token used up. The same key again is answered the same, within the token's
    time. NoSuchThing for a wrong token, machine or address: nobody can tell which."""
    if not _KEY.fullmatch(asked.public_key):
        raise Invalid("public_key: 64 hexadecimal digits of an Ed25519 key")
    now = context.now()
    with context.database.write() as session:
        guest = _seeded(session, asked.token, now)
        same_machine = hmac.compare_digest(_uuid(guest.machine_uuid), _uuid(asked.uuid))
        same_address = guest.seed_address in (None, address)
        same_key = guest.public_key in (None, asked.public_key)
        environment = session.get_one(Environment, guest.environment_id)
        if not (same_machine and same_address and same_key) or environment.generation != guest.generation:
            raise NoSuchThing(_NO_SEED)
        first = guest.public_key is None
        guest.public_key = asked.public_key
        guest.agent_version = asked.agent_version[:32]
        guest.enrolled_at = guest.enrolled_at or now
        guest.seen_at = now
        if first:
            _say(session, context, environment.id, "The agent has enrolled.")
        settings = settings_of(session, context, environment)
        identity = Identity(environment.id, guest.generation)
    if first:
        context.audit.row(_console(identity), "guest.enrol", target=environment.name, environment_id=environment.id)
    context.wake()
    context.told(environment.id)
    return {
        "environment": identity.environment_id,
        "generation": identity.generation,
        "settings": settings,
        "restore": _wanted_or_nothing(context, identity),
    }


def _wanted_or_nothing(context: Context, identity: Identity) -> dict[str, object] | None:
    """None where it is gone: the machine enrols all the same, is told why when it asks for its state, and says so."""
    try:
        return wanted(context, identity).document()
    except (NoSuchThing, Refused):
        return None


def settings_of(session: Session, context: Context, environment: Environment) -> dict[str, object]:
    """What the agent works by."""
    template = session.get_one(Template, environment.template_id)
    return {
        "directories": list(environment.directories),
        "excludes": list(template.excludes),
        "interval_s": context.settings.backup_interval_s,
        "bandwidth_bytes_per_s": context.settings.bandwidth_bytes_per_s,
        "hooks_timeout_s": HOOKS_TIMEOUT_S,
        "upload_bytes": UPLOAD_BYTES,
    }


# --- state, restore ----------------------------------------------------------------------------------------


def state(context: Context, identity: Identity) -> dict[str, object]:
    head = context.homes.head(identity.environment_id)
    with context.database.read() as session:
        settings = settings_of(session, context, session.get_one(Environment, identity.environment_id))
    newest = head.newest if head else None
    return {
        "generation": identity.generation,
        "settings": settings,
        "restore": wanted(context, identity).document(),
        "head": {"number": newest.number, "trees": list(newest.trees)} if newest else None,
    }


def wanted(context: Context, identity: Identity) -> Wanted:
    """What this machine must restore: the snapshot that was asked for, else the newest of its own home, else what it was
    made from. NoSuchThing where that snapshot is gone; Refused where the home that it was made from is: an empty one
    must not pass for it."""
    with context.database.read() as session:
        environment = session.get_one(Environment, identity.environment_id)
        guest = session.get_one(Guest, (identity.environment_id, identity.generation))
    done = guest.restored_at is not None
    if environment.restore_snapshot is not None:
        return _from(context, environment.id, environment.restore_snapshot, None, done)
    head = context.homes.head(environment.id)
    if head is not None and head.newest is not None:
        return Wanted(head.newest.number, None, head.newest.trees, done)
    source = environment.source_environment_id
    if source is None:
        return Wanted(None, None, (), done)
    number = environment.source_snapshot
    try:
        if number is None:
            other = context.homes.head(source)
            number = other.newest.number if other is not None and other.newest is not None else 0
        return _from(context, source, number, source, done)
    except NoSuchThing as error:
        if done:
            # It has what it needs, and the other home may go.
            return Wanted(None, None, (), done)
        which = f"backup {number}" if number else "the home"
        raise Refused(
            f"{which} of {source}, which this environment was made from, is gone: there is nothing to restore",
            hint="delete the environment, and make one from a backup that is there, or a new one",
        ) from error


def restored(context: Context, identity: Identity, asked: Restored) -> dict[str, object]:
    """From here on the machine may save its home. Refused where it has restored something else than what it must: an empty
    home must never replace a full one. A snapshot of which the machine had to leave something out is pinned before that."""
    must = wanted(context, identity)
    pinned = _pin_for_left_out(context, identity, must, asked)
    now = context.now()
    with context.database.write() as session:
        environment, guest = _machine(session, identity)
        if guest.restored_at is not None:
            return {}
        if (asked.number or None) != must.number and (must.source is None or not asked.number):
            raise Refused(f"backup {must.number} must be restored, not {asked.number}", hint="ask for the state again")
        guest.restored_at = now
        if environment.restore_snapshot is not None:
            environment.restore_snapshot = None
        what = f"{asked.files} files of backup {asked.number}" if asked.number else "nothing to restore"
        _say(session, context, environment.id, f"The home is there: {what}, {asked.seconds:.0f} s.")
        if asked.left_out_count:
            _say(session, context, environment.id, _told_left_out(asked), level="warning")
        if pinned is not None:
            remember(session, must.source or environment.id, [pinned])
    context.audit.row(
        _console(identity),
        "guest.restored",
        environment_id=identity.environment_id,
        detail={
            "number": asked.number,
            "files": asked.files,
            "bytes": asked.bytes,
            "left_out": asked.left_out_count,
        },
    )
    context.wake()
    context.told(identity.environment_id)
    return {}


def _pin_for_left_out(context: Context, identity: Identity, must: Wanted, asked: Restored) -> Snapshot | None:
    """The backups of this machine will not have what it could not make: the one that has it must not be thinned out. None:
    nothing was left out, or the snapshot is pinned already, or gone."""
    if not asked.left_out_count or not asked.number or must.done:
        return None
    home = must.source or identity.environment_id
    try:
        if context.homes.snapshot(home, asked.number).pinned:
            return None
        note = f"{asked.left_out_count} of it could not be restored to a machine"
        return context.homes.pin(home, asked.number, note, "guard")
    except NoSuchThing:
        return None


def _told_left_out(asked: Restored) -> str:
    names = []
    for path in asked.left_out[:LEFT_OUT_TOLD_MAX]:
        try:
            names.append("/" + text_of(base64.b64decode(path, validate=True))[:200])
        except ValueError:
            continue  # the count says that there is one more
    return (
        f"{asked.left_out_count} files or directories of backup {asked.number} cannot be on this machine as they were: "
        f"{', '.join(names)}. The backup that has them is pinned."
    )


# --- objects -----------------------------------------------------------------------------------------------


def uploads(context: Context, identity: Identity, asked: Uploads) -> Mapping[str, SignedUrl | None]:
    """NotRestored before the home is there; as `HomeStore.upload_urls`."""
    _require_restored(context, identity)
    return context.homes.upload_urls(
        identity.environment_id, [(one.name, one.size, one.sha256) for one in asked.objects]
    )


def downloads(context: Context, identity: Identity, asked: Downloads) -> Mapping[str, SignedUrl]:
    """Of the own home, or of one that this machine was told to restore from. Forbidden."""
    source = asked.source or identity.environment_id
    if source != identity.environment_id:
        with context.database.read() as session:
            environment, guest = _machine(session, identity)
            granted = environment.source_environment_id == source and guest.restored_at is None
            now = context.now()
            # A machine that never answers must not read on for ever: what nobody believes in any more grants nothing.
            granted = granted or any(
                one.kind == "restore"
                and one.parameters.get("from") == source
                and now - one.created_at <= requests.GIVE_UP_S
                for one in requests.open_commands(session, identity.environment_id, identity.generation)
            )
        if not granted:
            raise Forbidden("this machine was not told to restore from there")
    return context.homes.download_urls(source, asked.objects)


# --- commits and heartbeats --------------------------------------------------------------------------------


def commit(context: Context, identity: Identity, asked: NewCommit) -> Snapshot:
    """As `HomeStore.commit`, and the rows that tell of it. NotRestored."""
    _require_restored(context, identity)
    made = context.homes.commit(
        identity.environment_id,
        identity.generation,
        Commit(
            parent=asked.parent or None,
            trees=tuple(asked.trees),
            packs=tuple(pack.removeprefix("packs/") for pack in asked.packs),
            kind=asked.kind,
            at=asked.at,
            stats=Stats(**asked.stats.model_dump()),
            fuzzy_paths=tuple(asked.fuzzy_paths),
        ),
    )
    with context.database.write() as session:
        environment, _ = _machine(session, identity)
        known = session.get(Backup, (environment.id, made.number)) is not None
        remember(session, environment.id, [made])
        environment.last_backup_at = made.at
        environment.last_backup_number = made.number
        environment.last_backup_error = None
        environment.last_attempt_at = made.at
        if not known:
            environment.stored_bytes += made.stats.new_bytes
            if made.alert:
                text = f"Backup {made.number}: {made.alert}. The backup before it is pinned."
                _say(session, context, environment.id, text, level="warning")
    context.told(identity.environment_id)
    return made


def heartbeat(context: Context, identity: Identity, asked: Heartbeat) -> dict[str, object]:
    """What the agent says of itself; with `unchanged`, that its home is that of `number` still. As `HomeStore.heartbeat`."""
    now = context.now()
    status = _checked_status(asked.status)
    if asked.unchanged:
        _require_restored(context, identity)
        context.homes.heartbeat(identity.environment_id, identity.generation, asked.number or 0)
    with context.database.write() as session:
        environment, guest = _machine(session, identity)
        guest.status = status
        guest.seen_at = now
        error = status.get("last_error")
        environment.last_backup_error = str(error)[:1000] if error else None
        if asked.unchanged and asked.number:
            environment.last_backup_at = now
            environment.last_attempt_at = now
        elif error:
            environment.last_attempt_at = now
        logins = status.get("logins")
        if isinstance(logins, int) and logins > 0:
            environment.last_activity_at = now
        settings = settings_of(session, context, environment)
    context.told(identity.environment_id)
    return {"settings": settings}


def remember(session: Session, environment_id: str, snapshots: Sequence[Snapshot]) -> None:
    """Rows of these snapshots, as the bucket has them; rows that are there are brought up to date."""
    for one in snapshots:
        row = session.get(Backup, (environment_id, one.number))
        if row is None:
            row = Backup(environment_id=environment_id, number=one.number)
            session.add(row)
        row.at, row.generation, row.kind = one.at, one.generation, one.kind
        row.files, row.bytes = one.stats.files, one.stats.bytes
        row.added, row.changed, row.removed = one.stats.added, one.stats.changed, one.stats.removed
        row.new_bytes, row.fuzzy = one.stats.new_bytes, one.stats.fuzzy
        row.pinned, row.note, row.alert = one.pinned, one.note[:200], one.alert or None


# --- commands ----------------------------------------------------------------------------------------------


def take_commands(context: Context, identity: Identity) -> list[dict[str, object]]:
    """Commands for this machine that nobody has, or that somebody took long ago and never answered. An agent leaves aside
    those that it is at. `restore` carries the trees of its snapshot."""
    now = context.now()
    with context.database.read() as session:
        waiting = [one.id for one in _due(requests.open_commands(session, *_pair(identity)), now)]
    if not waiting:
        return []
    taken = []
    with context.database.write() as session:
        for one in _due(requests.open_commands(session, *_pair(identity)), now):
            one.taken_at = now
            taken.append(one)
    return [document for one in taken if (document := _command(context, identity, one)) is not None]


def answer_command(context: Context, identity: Identity, command_id: str, asked: CommandAnswer) -> None:
    """Once; a second answer changes nothing. NoSuchThing for a command that is not this machine's."""
    with context.database.write() as session:
        row = session.get(GuestCommand, command_id)
        if row is None or (row.environment_id, row.generation) != _pair(identity):
            raise NoSuchThing("there is no such command")
        if row.ended_at is not None:
            return
        row.ended_at = context.now()
        row.taken_at = row.taken_at or row.ended_at
        row.ok = asked.ok
        row.answer = _checked_status(asked.answer)
        if row.kind == "restore":
            said = "The restore is done." if asked.ok else f"The restore failed: {asked.answer.get('message', '')}"
            _say(session, context, row.environment_id, said[:500], level="info" if asked.ok else "error")
    context.wake()
    context.told(identity.environment_id)


# --- parts -------------------------------------------------------------------------------------------------


def _due(commands: Sequence[GuestCommand], now: float) -> list[GuestCommand]:
    return [
        one
        for one in commands
        if now - one.created_at <= requests.GIVE_UP_S
        and (one.taken_at is None or now - one.taken_at >= requests.REDELIVER_S)
    ]


def _command(context: Context, identity: Identity, row: GuestCommand) -> dict[str, object] | None:
    parameters = dict(row.parameters)
    number = parameters.get("number")
    if row.kind == "restore" and isinstance(number, int):
        source = str(parameters.get("from") or identity.environment_id)
        try:
            parameters["trees"] = list(context.homes.snapshot(source, number).trees)
        except NoSuchThing:
            gone = CommandAnswer(ok=False, answer={"message": f"backup {number} is gone"})
            answer_command(context, identity, row.id, gone)
            return None
    return {"id": row.id, "kind": row.kind, "parameters": parameters}


def _from(context: Context, environment_id: str, number: int, source: str | None, done: bool) -> Wanted:
    return Wanted(number, source, context.homes.snapshot(environment_id, number).trees, done)


def _pair(identity: Identity) -> tuple[str, int]:
    return identity.environment_id, identity.generation


def _machine(session: Session, identity: Identity) -> tuple[Environment, Guest]:
    """The rows, where this machine still is the environment's. Fenced."""
    environment = session.get(Environment, identity.environment_id)
    guest = session.get(Guest, _pair(identity))
    if environment is None or guest is None or guest.revoked_at is not None:
        raise Fenced("this machine has no home any more", hint="it must stop saving it")
    return environment, guest


def _require_restored(context: Context, identity: Identity) -> None:
    with context.database.read() as session:
        _, guest = _machine(session, identity)
    if guest.restored_at is None:
        raise NotRestored("this machine has not got its home back yet", hint="restore first, then say so")


def _seeded(session: Session, token: str, now: float) -> Guest:
    guest = session.scalar(select(Guest).where(Guest.seed_hash == requests.hash_of(token)))
    if guest is None or guest.revoked_at is not None or now > guest.seed_expires_at:
        raise NoSuchThing(_NO_SEED)
    return guest


def _uuid(text: str) -> str:
    """One form of it; what is none is compared as it is."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        return text.lower()


def _checked_status(status: dict[str, Any]) -> dict[str, object]:
    """Small enough for a row, and only of plain values."""
    plain: dict[str, object] = {
        str(name)[:64]: value if not isinstance(value, str) else value[:2000]
        for name, value in list(status.items())[:64]
        if isinstance(value, str | int | float | bool | list | dict | None)
    }
    if "problems" in plain:
        said = plain["problems"]
        every = said if isinstance(said, list) else []
        plain["problems"] = [one[:PROBLEM_LENGTH_MAX] for one in every if isinstance(one, str)][:PROBLEMS_MAX]
    try:
        size = len(json.dumps(plain, allow_nan=False, ensure_ascii=False))
    except ValueError as error:
        # It goes out again as JSON, to people and to PostgreSQL, where there is no NaN.
        raise Invalid("a status has no number that is none") from error
    if size > STATUS_BYTES_MAX:
        raise Invalid(f"a status has at most {STATUS_BYTES_MAX} bytes")
    return plain


def _authorities(context: Context) -> str:
    """The console's own certificate, which a guest would not trust by itself."""
    if not context.settings.certificate:
        return ""
    with open(context.settings.certificate, encoding="ascii") as file:
        return file.read()


def _say(
    session: Session,
    context: Context,
    environment_id: str,
    text: str,
    level: Literal["info", "warning", "error"] = "info",
) -> None:
    session.add(JobLine(environment_id=environment_id, at=context.now(), level=level, text=text))


def _console(identity: Identity) -> Caller:
    """Who the audit says it was."""
    return Caller("", f"guest {identity.environment_id}.{identity.generation}", "user", "guest")
