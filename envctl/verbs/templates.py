"""Templates: what environments are made of.

One rule: a template that its hypervisor finds fault with is not offered. `add` and `check` ask the driver; an error among its
findings keeps the template switched off, and it cannot be switched on until a check finds none. The hypervisor is asked outside
of any transaction: it may take a minute.
"""

import asyncio
import posixpath
import re
from collections.abc import Mapping, Sequence
from typing import Final

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from envctl.accounts import people, rights
from envctl.calling import Caller, Context
from envctl.database.models import Environment, Group, Quota, Template
from envctl.drivers.port import DriverFinding, EnvDriver
from envctl.errors import EnvctlError, Invalid, Refused
from envctl.identifiers import check_name
from envctl.states import EnvironmentState
from envctl.verbs.template_models import (
    AddTemplate,
    ListTemplates,
    OneTemplate,
    TemplateFinding,
    TemplateView,
    UpdateTemplate,
)
from envctl.verbs.verb import Done, Verb

READ: Final = "template:read"
WRITE: Final = "template:write"
CHECK_S: Final = 60.0
NEVER_SAVED: Final = ("/dev", "/proc", "/sys", "/run")
_LOGIN = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_OPTION = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SIZES: Final = ("cores", "memory_mib", "disk_gib")


def template_list(context: Context, caller: Caller, asked: ListTemplates) -> list[TemplateView]:
    """By title. Those of groups that the caller is in none of, and those switched off, are an operator's alone to see."""
    rights.require(caller, READ)
    with context.database.read() as session:
        rows = [row for row in session.scalars(select(Template)) if rights.may_use(caller, row)]
        views = [
            _view(context, session, caller, row)
            for row in sorted(rows, key=lambda row: (row.title.casefold(), row.name))
        ]
    return [view for view in views if view.usable or not asked.usable]


def template_show(context: Context, caller: Caller, asked: OneTemplate) -> TemplateView:
    """NoSuchThing."""
    rights.require(caller, READ)
    with context.database.read() as session:
        return _view(context, session, caller, rights.template(session, caller, asked.template))


def template_add(context: Context, caller: Caller, asked: AddTemplate) -> TemplateView:
    """Invalid says which field. With `check` the findings of the hypervisor come along; an error switches it off."""
    given = asked.model_dump(exclude={"check", "groups"})
    for size in _SIZES:
        given[f"{size}_max"] = given[f"{size}_max"] or given[size]
    given["title"] = given["title"].strip() or asked.name
    findings: list[DriverFinding] | None = None
    if asked.check and _may_write(caller) and not _wrong(context, given) and not _wrong_name(asked.name):
        findings = _look(context.drivers[asked.driver], asked.source, asked.options)
    with context.audit.act(caller, "template.add", target=asked.name, detail=asked.model_dump()) as act:
        rights.require(caller, WRITE, "admin")
        wrong = {**_wrong_name(asked.name), **_wrong(context, given)}
        _refuse(wrong)
        if act.session.scalar(select(Template.id).where(Template.name == asked.name)) is not None:
            raise Refused(f"the name {asked.name} is taken", hint="s3-envctl template update changes one that is there")
        row = Template(
            **given,
            id=context.new_id(),
            groups=_group_ids(act.session, asked.groups),
            enabled=True,
            created_at=context.now(),
        )
        if findings is not None:
            _note(context, row, findings)
            row.enabled = not _errors(row)
        act.session.add(row)
        act.session.flush()
        return _view(context, act.session, caller, row)


def template_update(context: Context, caller: Caller, asked: UpdateTemplate) -> TemplateView:
    """Refused: to switch on what the last check found an error in. A new source or new options make the last check void."""
    changes = asked.model_dump(exclude={"template"}, exclude_none=True)
    with context.audit.act(caller, "template.update", target=asked.template, detail=changes) as act:
        rights.require(caller, WRITE, "admin")
        row = rights.template(act.session, caller, asked.template)
        act.target = row.name
        groups = changes.pop("groups", None)
        enabled = changes.pop("enabled", None)
        merged = {name: getattr(row, name) for name in _FIELDS} | changes
        _refuse(_wrong(context, merged))
        moved = any(changes.get(name, getattr(row, name)) != getattr(row, name) for name in ("source", "options"))
        for name, value in changes.items():
            setattr(row, name, value)
        if groups is not None:
            row.groups = _group_ids(act.session, groups)
        if moved:
            row.checked_at, row.findings = None, []
        if enabled and _errors(row):
            raise Refused(
                f"template {row.name}: the last check found an error: {_errors(row)[0]['message']}",
                hint=f"cure it, then: s3-envctl template check {row.name}",
            )
        if enabled is not None:
            row.enabled = enabled
        return _view(context, act.session, caller, row)


def template_check(context: Context, caller: Caller, asked: OneTemplate) -> TemplateView:
    """Ask the hypervisor now. An error switches the template off; nothing else does, and nothing here switches it on."""
    if not _may_write(caller):
        with context.audit.act(caller, "template.check", target=asked.template):
            rights.require(caller, WRITE, "admin")
    with context.database.read() as session:
        row = rights.template(session, caller, asked.template)
        name, driver, source, options = row.name, row.driver, row.source, dict(row.options)
    if driver not in context.drivers:
        findings = [DriverFinding("error", f"its driver {driver} is not configured", f"add [envctl.driver.{driver}]")]
    else:
        findings = _look(context.drivers[driver], source, options)
    with context.audit.act(caller, "template.check", target=name) as act:
        row = rights.template(act.session, caller, asked.template)
        if (row.source, dict(row.options)) != (source, options):
            raise Refused(f"template {row.name} was changed while it was looked at", hint="check it again")
        _note(context, row, findings)
        if _errors(row):
            row.enabled = False
        act.detail["errors"] = len(_errors(row))
        return _view(context, act.session, caller, row)


def template_remove(context: Context, caller: Caller, asked: OneTemplate) -> Done:
    """The template at the hypervisor stays. Refused while an environment was made of it: a reset or an undelete would need
    it."""
    with context.audit.act(caller, "template.remove", target=asked.template) as act:
        rights.require(caller, WRITE, "admin")
        row = rights.template(act.session, caller, asked.template)
        act.target = row.name
        living = _count(act.session, row)
        if living:
            raise Refused(
                f"{living} environments were made of template {row.name}",
                hint=f"switch it off instead: s3-envctl template update {row.name} --no-enabled",
            )
        if act.session.scalar(select(Environment.id).where(Environment.template_id == row.id).limit(1)) is not None:
            raise Refused(
                f"the audit tells of environments made of template {row.name}",
                hint=f"switch it off instead: s3-envctl template update {row.name} --no-enabled",
            )
        act.session.execute(delete(Quota).where(Quota.subject_kind == "template", Quota.subject_id == row.id))
        act.session.delete(row)
        return Done(message=f"template {row.name} is removed; what is at the hypervisor stays")


_FIELDS: Final = (
    "driver",
    "source",
    "options",
    "cores",
    "cores_max",
    "memory_mib",
    "memory_mib_max",
    "disk_gib",
    "disk_gib_max",
    "directories",
    "excludes",
    "login_user",
)


def _may_write(caller: Caller) -> bool:
    try:
        rights.require(caller, WRITE, "admin")
    except EnvctlError:
        return False  # said again, with its row in the audit, where the verb begins
    return True


def _wrong_name(name: str) -> dict[str, str]:
    try:
        check_name(name)
    except ValueError as error:
        return {"name": str(error)}
    return {}


def _wrong(context: Context, given: Mapping[str, object]) -> dict[str, str]:
    """What is wrong with each field; empty: nothing."""
    wrong: dict[str, str] = {}
    if given["driver"] not in context.drivers:
        known = ", ".join(sorted(context.drivers)) or "none is configured"
        wrong["driver"] = f"there is no driver {given['driver']!r}; there is: {known}"
    for size in _SIZES:
        if _number(given[size]) > _number(given[f"{size}_max"]):
            wrong[f"{size}_max"] = "less than what a new environment gets"
    options = given["options"]
    assert isinstance(options, Mapping)
    for name, value in options.items():
        if not _OPTION.fullmatch(str(name)) or len(str(value)) > 1024 or not str(value).isprintable():
            wrong["options"] = f"{name!r} is not the name and value of an option"
    reasons = [(path, _wrong_directory(path)) for path in _texts(given["directories"])]
    bad = [f"{path!r}: {reason}" for path, reason in reasons if reason]
    if bad or not reasons:
        wrong["directories"] = "; ".join(bad) or "name at least one, such as /home"
    for pattern in _texts(given["excludes"]):
        if not pattern or len(pattern) > 255 or not pattern.isprintable():
            wrong["excludes"] = f"{pattern!r} is not a pattern: printable characters alone, at most 255"
    if not _LOGIN.fullmatch(str(given["login_user"])) or given["login_user"] == "root":
        wrong["login_user"] = "an account that is not root: a-z, 0-9, '_' and '-', at most 32 characters"
    return wrong


def _wrong_directory(path: str) -> str:
    if not path.startswith("/") or path == "/" or posixpath.normpath(path) != path:
        return "an absolute path is wanted, such as /home"
    if any(path == never or path.startswith(f"{never}/") for never in NEVER_SAVED):
        return "the kernel makes what is there"
    return "" if path.isprintable() and len(path) <= 255 else "printable characters alone, at most 255"


def _refuse(wrong: Mapping[str, str]) -> None:
    if wrong:
        raise Invalid("; ".join(f"{name}: {reason}" for name, reason in wrong.items()), details=wrong)


def _texts(value: object) -> list[str]:
    assert isinstance(value, list)
    return [str(each) for each in value]


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value


def _group_ids(session: Session, names: Sequence[str]) -> list[str]:
    return sorted({people.find_group(session, name).id for name in names})


def _look(driver: EnvDriver, source: str, options: Mapping[str, str]) -> list[DriverFinding]:
    """The driver's findings; one that does not answer is a finding too."""

    async def asked() -> list[DriverFinding]:
        try:
            async with asyncio.timeout(CHECK_S):
                return list(await driver.check_template(source, options))
        except TimeoutError:
            return [
                DriverFinding("error", f"no answer within {CHECK_S:.0f} s", "is the hypervisor up? check again then")
            ]
        except EnvctlError as error:
            return [DriverFinding("error", str(error.args[0]), error.hint)]
        finally:
            # Connections belong to this event loop, which ends with the question.
            await driver.close()

    return asyncio.run(asked())


def _note(context: Context, row: Template, findings: Sequence[DriverFinding]) -> None:
    row.checked_at = context.now()
    row.findings = [{"severity": each.severity, "message": each.message, "hint": each.hint} for each in findings]


def _errors(row: Template) -> list[dict[str, str]]:
    return [each for each in row.findings or [] if each.get("severity") == "error"]


def _count(session: Session, row: Template) -> int:
    gone = [str(EnvironmentState.PURGED)]
    query = select(func.count()).select_from(Environment)
    return session.scalar(query.where(Environment.template_id == row.id, Environment.state.not_in(gone))) or 0


def _view(context: Context, session: Session, caller: Caller, row: Template) -> TemplateView:
    inside = rights.sees_all(caller)
    names: dict[str, str] = {}
    if row.groups:
        names = {group.id: group.name for group in session.scalars(select(Group).where(Group.id.in_(row.groups)))}
    mine = not row.groups or bool(caller.groups & set(row.groups)) or inside
    findings = [TemplateFinding.model_validate(each) for each in row.findings or []]
    return TemplateView(
        id=row.id,
        name=row.name,
        title=row.title,
        description=row.description,
        driver=row.driver,
        source=row.source if inside else "",
        options=dict(row.options) if inside else {},
        cores=row.cores,
        cores_max=row.cores_max,
        memory_mib=row.memory_mib,
        memory_mib_max=row.memory_mib_max,
        disk_gib=row.disk_gib,
        disk_gib_max=row.disk_gib_max,
        directories=list(row.directories),
        excludes=list(row.excludes),
        login_user=row.login_user,
        seed=row.seed,
        groups=sorted(names.get(each, each) for each in row.groups) if inside else [],
        enabled=row.enabled,
        usable=row.enabled and mine and row.driver in context.drivers,
        environments=_count(session, row) if inside else 0,
        created_at=row.created_at,
        checked_at=row.checked_at,
        findings=findings if inside else [],
        errors=len(_errors(row)) if inside else 0,
    )


VERBS: Final = (
    Verb(
        "template.list", "GET", "/templates", READ, template_list, ListTemplates, list[TemplateView],
        "List what environments can be made of",
    ),
    Verb("template.show", "GET", "/templates/{template}", READ, template_show, OneTemplate, TemplateView, "Show a template"),
    Verb(
        "template.add", "POST", "/templates", WRITE, template_add, AddTemplate, TemplateView,
        "Offer a template of the hypervisor", "admin",
    ),
    Verb(
        "template.check", "POST", "/templates/{template}/check", WRITE, template_check, OneTemplate, TemplateView,
        "Look at a template at its hypervisor", "admin",
    ),
    Verb(
        "template.update", "PATCH", "/templates/{template}", WRITE, template_update, UpdateTemplate, TemplateView,
        "Change a template, or switch it on or off", "admin",
    ),
    Verb(
        "template.remove", "DELETE", "/templates/{template}", WRITE, template_remove, OneTemplate, Done,
        "Take a template from the offer", "admin", destructive=True,
    ),
)  # fmt: skip
