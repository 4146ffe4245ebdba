"""Backups: look, read, compare, restore, keep.

One rule: a path that somebody gives is looked up in a snapshot, and never becomes a key or a name on this host. What a
person took out of a backup is in the audit, as what they changed.
"""

import base64
import posixpath
import stat
from collections.abc import Iterator
from itertools import chain
from typing import Final, Literal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from envctl.accounts import rights
from envctl.agent.tree import DIRECTORY, FIFO, FILE, SYMLINK, Row
from envctl.calling import Caller, Context
from envctl.database.models import Backup, Environment, GuestCommand, JobLine, User
from envctl.errors import NoSuchThing, Refused
from envctl.homes import requests
from envctl.homes.paths import path_of, text_of
from envctl.homes.reading import Change, Difference
from envctl.states import EnvironmentState
from envctl.verbs.backup_models import (
    BackupAsked,
    BackupDetail,
    BackupList,
    BackupView,
    BrowseBackup,
    ChangeList,
    ChangeView,
    CommandView,
    DiffBackups,
    FileList,
    FileView,
    GetArchive,
    GetFile,
    HealthList,
    HealthView,
    ListBackups,
    OneBackup,
    OneCommand,
    OneHome,
    PinBackup,
    RestoreBackup,
)
from envctl.verbs.verb import Nothing, Stream, Verb

LATE_INTERVALS: Final = 1.5
READ: Final = "backup:read"
WRITE: Final = "backup:write"

_Type = Literal["folder", "file", "link", "fifo"]
_TYPES: Final[dict[str, _Type]] = {DIRECTORY: "folder", FILE: "file", SYMLINK: "link", FIFO: "fifo"}
_MODES: Final = {DIRECTORY: stat.S_IFDIR, FILE: stat.S_IFREG, SYMLINK: stat.S_IFLNK, FIFO: stat.S_IFIFO}


# --- looking -----------------------------------------------------------------------------------------------


def backup_list(context: Context, caller: Caller, asked: ListBackups) -> BackupList:
    """Newest first."""
    rights.require(caller, READ)
    with context.database.read() as session:
        environment = rights.environment(session, caller, asked.environment)
        mine = Backup.environment_id == environment.id
        query = select(Backup).where(mine).order_by(Backup.number.desc()).limit(asked.limit + 1)
        if asked.before is not None:
            query = query.where(Backup.number < asked.before)
        if asked.pinned:
            query = query.where(Backup.pinned)
        rows = list(session.scalars(query))
        total = session.scalar(select(func.count()).where(mine)) or 0
        pinned = session.scalar(select(func.count()).where(mine, Backup.pinned)) or 0
    more = len(rows) > asked.limit
    rows = rows[: asked.limit]
    return BackupList(
        environment_id=environment.id,
        environment_name=environment.name,
        backups=[_view(row) for row in rows],
        next_before=rows[-1].number if more else None,
        total=total,
        pinned=pinned,
        last_backup_at=environment.last_backup_at,
        last_backup_error=environment.last_backup_error,
        rpo_s=_age(context, environment),
        stored_bytes=environment.stored_bytes,
    )


def backup_show(context: Context, caller: Caller, asked: OneBackup) -> BackupDetail:
    """NoSuchThing."""
    rights.require(caller, READ)
    with context.database.read() as session:
        environment = rights.environment(session, caller, asked.environment)
        row = _backup(session, environment, asked.number)
        previous = session.scalar(
            select(func.max(Backup.number)).where(Backup.environment_id == environment.id, Backup.number < asked.number)
        )
        following = session.scalar(
            select(func.min(Backup.number)).where(Backup.environment_id == environment.id, Backup.number > asked.number)
        )
    snapshot = context.homes.snapshot(environment.id, asked.number)
    return BackupDetail(
        environment_id=environment.id,
        environment_name=environment.name,
        backup=_view(row),
        previous=previous,
        next=following,
        fuzzy_paths=[text_of(path) for path in map(_decoded, snapshot.fuzzy_paths) if path],
        directories=[text_of(name.strip("/").encode()) for name in environment.directories],
    )


def backup_browse(context: Context, caller: Caller, asked: BrowseBackup) -> FileList:
    """What lies in a folder, by name. NoSuchThing; Invalid for what is no folder."""
    rights.require(caller, READ)
    environment, row = _find(context, caller, asked)
    path = path_of(asked.path)
    found = context.homes.rows(environment.id, asked.number, path, after=path_of(asked.after), limit=asked.limit)
    parents = [posixpath.dirname(text_of(path))] if path else []
    while parents and parents[0]:
        parents.insert(0, posixpath.dirname(parents[0]))
    return FileList(
        environment_id=environment.id,
        environment_name=environment.name,
        number=asked.number,
        at=row.at,
        path=text_of(path),
        parents=parents,
        entries=[_file(one) for one in found.rows],
        next_after=text_of(found.next) or None,
    )


def backup_diff(context: Context, caller: Caller, asked: DiffBackups) -> ChangeList:
    """What one backup has otherwise than another, by path. NoSuchThing."""
    rights.require(caller, READ)
    environment, _ = _find(context, caller, asked)
    older = asked.older
    if older is None:
        with context.database.read() as session:
            older = session.scalar(
                select(func.max(Backup.number)).where(
                    Backup.environment_id == environment.id, Backup.number < asked.number
                )
            )
    if older:
        found = context.homes.difference(
            environment.id,
            older,
            asked.number,
            prefix=path_of(asked.path),
            after=path_of(asked.after),
            limit=asked.limit,
        )
    else:
        found = _everything(context, environment.id, asked)
    return ChangeList(
        environment_id=environment.id,
        environment_name=environment.name,
        older=older or 0,
        newer=asked.number,
        path=text_of(path_of(asked.path)),
        changes=[_change(one) for one in found.changes],
        next_after=text_of(found.next) or None,
    )


# --- taking out --------------------------------------------------------------------------------------------


def backup_get(context: Context, caller: Caller, asked: GetFile) -> Stream:
    """A file, or a part of one. NoSuchThing; Invalid for what is no regular file, or a range outside of it."""
    rights.require(caller, READ)
    environment, _ = _find(context, caller, asked)
    path = path_of(asked.path)
    length = -1 if asked.length is None else asked.length
    found = context.homes.open_file(environment.id, asked.number, path, offset=asked.offset, length=length)
    pieces = _begun(found.pieces)
    _taken_out(context, caller, "backup.get", environment, asked.number, path)
    return Stream(pieces, text_of(path.rpartition(b"/")[2]), size=found.length)


def backup_zip(context: Context, caller: Caller, asked: GetArchive) -> Stream:
    """A file or a folder with all that is in it, as an archive. NoSuchThing."""
    rights.require(caller, READ)
    environment, _ = _find(context, caller, asked)
    path = path_of(asked.path)
    archive = context.homes.zip_of if asked.form == "zip" else context.homes.tar_of
    pieces = _begun(archive(environment.id, asked.number, path))
    _taken_out(context, caller, "backup.zip", environment, asked.number, path)
    name = text_of(path.rpartition(b"/")[2]) or environment.name
    media_type = "application/zip" if asked.form == "zip" else "application/x-tar"
    return Stream(pieces, f"{name}-{asked.number}.{asked.form}", media_type)


# --- changing ----------------------------------------------------------------------------------------------


def backup_now(context: Context, caller: Caller, asked: OneHome) -> BackupAsked:
    """Ask the machine for a backup at once. Refused where no agent answers."""
    with context.audit.act(caller, "backup.now", target=asked.environment) as act:
        rights.require(caller, WRITE)
        environment = rights.environment(act.session, caller, asked.environment)
        act.target, act.environment_id = environment.name, environment.id
        _require_ready(environment)
        under_way = _open(act.session, environment, "backup")
        command = under_way or requests.ask_in(act.session, context, environment, "backup", {"kind": "asked"})
        environment.last_activity_at = context.now()
    context.told(environment.id)
    return BackupAsked(environment_id=environment.id, command=command, message="The machine makes a backup.")


def backup_restore(context: Context, caller: Caller, asked: RestoreBackup) -> BackupAsked:
    """Ask the machine to bring back files, or everything, of a backup. In place it saves what it has first. Refused where no
    agent answers, or another restore is under way; NoSuchThing for a backup or a path that is not there."""
    with context.database.read() as session:
        target = rights.environment(session, caller, asked.environment)
        source = rights.environment(session, caller, asked.source) if asked.source else target
    paths = [path_of(path) for path in asked.paths]
    into = text_of(path_of(asked.into))
    with context.audit.act(caller, "backup.restore", target=target.name, environment_id=target.id) as act:
        rights.require(caller, WRITE)
        environment = rights.environment(act.session, caller, target.id)
        act.detail |= {"number": asked.number, "paths": [text_of(path) for path in paths][:20], "into": into or "place"}
        if source.id != target.id:
            act.detail["from"] = source.id
        _backup(act.session, source, asked.number)
        _require_ready(environment)
        if _open(act.session, environment, "restore") is not None:
            raise Refused(f"{environment.name}: a restore is under way", hint="wait until it has ended")
        parameters: dict[str, object] = {
            "number": asked.number,
            "paths": [base64.b64encode(path).decode() for path in paths] or None,
            "into": "/" + into if into else "place",
        }
        if source.id != target.id:
            parameters["from"] = source.id
        command = requests.ask_in(act.session, context, environment, "restore", parameters)
        environment.last_activity_at = context.now()
        what = f"{len(paths)} paths" if paths else "everything"
        text = f"{caller.name} asked to restore {what} of backup {asked.number} into {'/' + into if into else 'place'}."
        act.session.add(JobLine(environment_id=environment.id, at=context.now(), level="info", text=text))
    context.told(target.id)
    return BackupAsked(environment_id=target.id, command=command, message="The machine brings it back.")


def backup_progress(context: Context, caller: Caller, asked: OneCommand) -> CommandView:
    """How a backup or a restore that was asked for goes. NoSuchThing."""
    rights.require(caller, READ)
    with context.database.read() as session:
        environment = rights.environment(session, caller, asked.environment)
        row = session.get(GuestCommand, asked.command)
        if row is None or row.environment_id != environment.id:
            raise NoSuchThing("there is no such command")
    found = requests.answer_of(context, asked.command)
    number = found.answer.get("number")
    return CommandView(
        state=found.state,
        created_at=found.created_at,
        ended_at=found.ended_at,
        number=number if isinstance(number, int) else None,
        message=str(found.answer.get("message", "")),
    )


def backup_pin(context: Context, caller: Caller, asked: PinBackup) -> BackupView:
    """Keep a backup for ever. NoSuchThing."""
    rights.require(caller, WRITE)
    environment, _ = _find(context, caller, asked)
    # The bucket first: what a row calls pinned is.
    context.homes.pin(environment.id, asked.number, asked.note, caller.name)
    with context.audit.act(caller, "backup.pin", target=environment.name, environment_id=environment.id) as act:
        act.detail["number"] = asked.number
        row = _backup(act.session, environment, asked.number)
        row.pinned, row.note = True, asked.note
    return _view(row)


def backup_unpin(context: Context, caller: Caller, asked: OneBackup) -> BackupView:
    """Let retention decide about it again. NoSuchThing."""
    rights.require(caller, WRITE)
    environment, _ = _find(context, caller, asked)
    with context.audit.act(caller, "backup.unpin", target=environment.name, environment_id=environment.id) as act:
        act.detail["number"] = asked.number
        row = _backup(act.session, environment, asked.number)
        row.pinned, row.note = False, ""
    context.homes.unpin(environment.id, asked.number)
    return _view(row)


def backup_health(context: Context, caller: Caller, asked: Nothing) -> HealthList:
    """Of every home: how old its last good backup is, and what is wrong."""
    rights.require(caller, READ, "operator")
    with context.database.read() as session:
        counts = {
            row[0]: (int(row[1]), int(row[2] or 0), int(row[3]))
            for row in session.execute(
                select(
                    Backup.environment_id,
                    func.count(),
                    func.count().filter(Backup.pinned),
                    func.count(Backup.alert),
                ).group_by(Backup.environment_id)
            )
        }
        rows = session.execute(
            select(Environment, User.name)
            .join(User, User.id == Environment.owner_id)
            .where(Environment.state != EnvironmentState.PURGED)
        ).all()
    found = [_health(context, row[0], row[1], counts.get(row[0].id, (0, 0, 0))) for row in rows]
    order = {"failing": 0, "none": 1, "late": 2, "good": 3, "off": 4}
    found.sort(key=lambda one: (order[one.health], -(one.rpo_s or 0), one.environment_name))

    def count(health: str) -> int:
        return sum(one.health == health for one in found)

    return HealthList(
        environments=found,
        good=count("good"),
        late=count("late"),
        failing=count("failing"),
        none=count("none"),
        off=count("off"),
        stored_bytes=sum(one.stored_bytes for one in found),
    )


# --- parts -------------------------------------------------------------------------------------------------


def _find(context: Context, caller: Caller, asked: OneBackup) -> tuple[Environment, Backup]:
    with context.database.read() as session:
        environment = rights.environment(session, caller, asked.environment)
        return environment, _backup(session, environment, asked.number)


def _backup(session: Session, environment: Environment, number: int) -> Backup:
    row = session.get(Backup, (environment.id, number))
    if row is None:
        raise NoSuchThing(f"{environment.name} has no backup {number}", hint="retention may have removed it")
    return row


def _require_ready(environment: Environment) -> None:
    if environment.state != EnvironmentState.READY:
        raise Refused(
            f"{environment.name} is {environment.state}",
            hint="start it first; reset brings back a whole home while it is off",
        )


def _open(session: Session, environment: Environment, kind: str) -> str | None:
    commands = requests.open_commands(session, environment.id, environment.generation)
    return next((one.id for one in commands if one.kind == kind), None)


def _age(context: Context, environment: Environment) -> float | None:
    return None if environment.last_backup_at is None else max(0.0, context.now() - environment.last_backup_at)


def _health(context: Context, environment: Environment, owner: str, counts: tuple[int, int, int]) -> HealthView:
    age = _age(context, environment)
    health: Literal["good", "late", "failing", "none", "off"]
    if not environment.running:
        health = "off"
    elif environment.last_backup_error:
        health = "failing"
    elif age is None:
        health = "none"
    else:
        health = "late" if age > LATE_INTERVALS * context.settings.backup_interval_s else "good"
    return HealthView(
        environment_id=environment.id,
        environment_name=environment.name,
        owner_name=owner,
        state=environment.state,
        health=health,
        last_backup_at=environment.last_backup_at,
        last_backup_number=environment.last_backup_number,
        last_backup_error=environment.last_backup_error,
        rpo_s=age,
        backups=counts[0],
        pinned=counts[1],
        alerts=counts[2],
        stored_bytes=environment.stored_bytes,
    )


def _view(row: Backup) -> BackupView:
    return BackupView(
        number=row.number,
        at=row.at,
        generation=row.generation,
        kind=row.kind,
        files=row.files,
        bytes=row.bytes,
        added=row.added,
        changed=row.changed,
        removed=row.removed,
        new_bytes=row.new_bytes,
        fuzzy=row.fuzzy,
        pinned=row.pinned,
        note=row.note,
        alert=row.alert,
    )


def _file(row: Row) -> FileView:
    return FileView(
        name=text_of(row.path.rpartition(b"/")[2]),
        path=text_of(row.path),
        type=_TYPES[row.type],
        size=row.size if row.type == FILE else 0,
        mode=stat.filemode(_MODES[row.type] | row.mode),
        owner=text_of(row.user) or str(row.uid),
        group=text_of(row.group) or str(row.gid),
        modified_at=row.mtime_ns / 10**9,
        target=text_of(row.target),
        hard_link=text_of(row.link),
        fuzzy=row.fuzzy,
    )


def _change(one: Change) -> ChangeView:
    row = one.after or one.before
    if row is None:
        raise AssertionError("a change has a row before or after")
    return ChangeView(
        what=one.what,
        path=text_of(one.path),
        type=_TYPES[row.type],
        size_before=one.before.size if one.before else None,
        size_after=one.after.size if one.after else None,
        modified_at=one.after.mtime_ns / 10**9 if one.after else None,
        content=one.content,
    )


def _everything(context: Context, environment_id: str, asked: DiffBackups) -> Difference:
    """The difference to nothing: there is no backup before."""
    return context.homes.contents(
        environment_id, asked.number, prefix=path_of(asked.path), after=path_of(asked.after), limit=asked.limit
    )


def _decoded(path: str) -> bytes:
    try:
        return base64.b64decode(path, validate=True)
    except ValueError:
        return b""


def _begun(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """With the first piece made: what goes wrong at once is an answer, and not a broken download."""
    first = next(pieces, b"")
    return chain([first], pieces)


def _taken_out(context: Context, caller: Caller, verb: str, environment: Environment, number: int, path: bytes) -> None:
    detail: dict[str, object] = {"number": number, "path": text_of(path)}
    context.audit.row(caller, verb, target=environment.name, environment_id=environment.id, detail=detail)


_HOME: Final = "/environments/{environment}/backups"
_ONE: Final = _HOME + "/{number}"

VERBS: Final = (
    Verb("backup.list", "GET", _HOME, READ, backup_list, ListBackups, BackupList, "List backups, newest first"),
    Verb("backup.now", "POST", _HOME, WRITE, backup_now, OneHome, BackupAsked, "Make a backup now"),
    Verb(
        "backup.progress",
        "GET",
        "/environments/{environment}/commands/{command}",
        READ,
        backup_progress,
        OneCommand,
        CommandView,
        "Show how a backup or restore that was asked for goes",
    ),
    Verb("backup.show", "GET", _ONE, READ, backup_show, OneBackup, BackupDetail, "Show a backup"),
    Verb("backup.diff", "GET", _ONE + "/diff", READ, backup_diff, DiffBackups, ChangeList, "Compare two backups"),
    Verb(
        "backup.browse",
        "GET",
        _ONE + "/browse",
        READ,
        backup_browse,
        BrowseBackup,
        FileList,
        "List a folder of a backup",
    ),
    Verb("backup.get", "GET", _ONE + "/file", READ, backup_get, GetFile, Stream, "Download a file of a backup"),
    Verb(
        "backup.zip", "GET", _ONE + "/archive", READ, backup_zip, GetArchive, Stream, "Download a folder as zip or tar"
    ),
    Verb(
        "backup.restore",
        "POST",
        _ONE + "/restore",
        WRITE,
        backup_restore,
        RestoreBackup,
        BackupAsked,
        "Bring back files of a backup in the running machine",
        destructive=True,
    ),
    Verb("backup.pin", "POST", _ONE + "/pin", WRITE, backup_pin, PinBackup, BackupView, "Keep a backup for ever"),
    Verb(
        "backup.unpin",
        "DELETE",
        _ONE + "/pin",
        WRITE,
        backup_unpin,
        OneBackup,
        BackupView,
        "Let retention decide again",
    ),
    Verb(
        "backup.health",
        "GET",
        "/admin/backups",
        READ,
        backup_health,
        Nothing,
        HealthList,
        "Show how old the last good backup of every home is",
        role="operator",
    ),
)
