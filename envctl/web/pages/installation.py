"""Pages about the installation: settings that are kept in the console, the doctor, the audit."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, NoSuchThing
from envctl.web.pages.visit import Page, Visit
from s3core.console import program_version

AUDIT_ROWS: Final = 100


def settings(visit: Visit) -> Response:
    return settings_of(visit)


def settings_of(visit: Visit, problem: EnvctlError | None = None, key: str = "") -> Response:
    return visit.page("settings.html", problem=problem, settings=visit.ask("settings.show"), wrong=key, typed=visit.field("value"))


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
    asked = visit.query("look") == "1"
    found = visit.ask("admin.doctor", part=visit.query("part", "all")) if asked else None
    return visit.page("doctor.html", diagnosis=found, version=program_version(), database=visit.context.database.kind)


def audit(visit: Visit) -> Response:
    wanted = {name: visit.query(name) for name in ("actor", "verb", "target", "outcome", "before")}
    asked: dict[str, object] = {name: value for name, value in wanted.items() if value}
    found = visit.ask("admin.audit", limit=AUDIT_ROWS, **asked)
    rows = getattr(found, "rows", found)
    return visit.page(
        "audit.html",
        rows=rows,
        older=visit.here(before=str(rows[-1].id)) if len(rows) == AUDIT_ROWS else "",
        **wanted,
    )


PAGES: Final = (
    Page("GET", "/admin/settings", settings),
    Page("POST", "/admin/settings", set_setting),
    Page("GET", "/admin/doctor", doctor),
    Page("GET", "/admin/audit", audit),
)
