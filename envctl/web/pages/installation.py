"""Pages about the installation: settings that are kept in the console, the doctor, the audit."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, Forbidden, NoSuchThing
from envctl.web.pages.visit import Page, Visit
from s3core.console import program_version

AUDIT_ROWS: Final = 100


def settings(visit: Visit) -> Response:
    return settings_of(visit)


def settings_of(visit: Visit, problem: EnvctlError | None = None, key: str = "") -> Response:
    return visit.page(
        "settings.html", problem=problem, settings=visit.ask("settings.show"), wrong=key, typed=visit.field("value")
    )


def set_setting(visit: Visit) -> Response:
    key = visit.field("key")
    try:
        if visit.checked("reset"):
            visit.ask("settings.reset", key=key)
        else:
            visit.ask("settings.set", key=key, value=visit.field("value"))
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return settings_of(visit, problem, key)
    return visit.go("/admin/settings", "settings.set")


def doctor(visit: Visit) -> Response:
    """A look takes seconds: it happens when somebody asks, not with each load of the page."""
    if not visit.may("admin.doctor"):
        raise Forbidden("admin.doctor needs the role admin")
    asked = visit.query("look") == "1"
    found = visit.ask("admin.doctor", part=visit.query("part", "all")) if asked else None
    return visit.page("doctor.html", diagnosis=found, version=program_version(), database=visit.context.database.kind)


def audit(visit: Visit) -> Response:
    """Who did what. A target is found by the environment's id, or among what is shown."""
    before = visit.query("before")
    wanted = {name: visit.query(name) or None for name in ("actor", "verb", "environment", "outcome")}
    found = visit.ask(
        "admin.audit",
        limit=AUDIT_ROWS,
        before=int(before) if before.isdecimal() and len(before) < 19 else None,
        **wanted,
    )
    older = visit.here(before=str(found.before)) if found.before is not None else ""
    return visit.page(
        "audit.html", rows=found.rows, older=older, wanted={name: text or "" for name, text in wanted.items()}
    )


PAGES: Final = (
    Page("GET", "/admin/settings", settings),
    Page("POST", "/admin/settings", set_setting),
    Page("GET", "/admin/doctor", doctor),
    Page("GET", "/admin/audit", audit),
)
