"""Pages of a home's backups: the timeline, one of them as folders, what changed, taking out, bringing back."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, Invalid, NoSuchThing
from envctl.verbs.backup_models import BackupView
from envctl.web.pages import shown, timeline
from envctl.web.pages.environments import ACTS, environment_of
from envctl.web.pages.visit import Page, Visit

LISTED: Final = 20
PAGE_OF_BACKUPS: Final = 2000


def all_backups(visit: Visit, environment: str) -> list[BackupView]:
    """Newest first. Retention leaves some hundreds: all of them fit on a timeline."""
    found: list[BackupView] = []
    before: int | None = None
    while True:
        page = visit.ask("backup.list", environment=environment, before=before, limit=PAGE_OF_BACKUPS)
        found += page.backups
        before = page.next_before
        if before is None:
            return found


def backups(visit: Visit) -> Response:
    return backups_of(visit)


def backups_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    env = environment_of(visit)
    found = all_backups(visit, env.id)
    if visit.query("at") and problem is None:
        return at_moment(visit, env.id, found)
    chosen = None
    if visit.query("day") and visit.query("hour").isdecimal():
        chosen = (visit.query("day"), int(visit.query("hour")))
    days = timeline.days_of(found, chosen=chosen)
    kept = (
        days
        if visit.query("days") == "all"
        or (chosen and chosen[0] not in {day.date for day in days[: timeline.DAYS_SHOWN]})
        else days[: timeline.DAYS_SHOWN]
    )
    return visit.page(
        "backups.html",
        problem=problem,
        env=env,
        acts=ACTS,
        backups=found,
        total=len(found),
        days=kept,
        more_days=len(days) - len(kept),
        chosen=chosen,
        listed=timeline.within(found, chosen) if chosen else found[:LISTED],
        tab_now="backups",
    )


def at_moment(visit: Visit, environment: str, found: list[BackupView]) -> Response:
    """The home as it was at the minute that was asked for: the end of that minute counts."""
    try:
        moment = shown.moment_of(visit.query("at")[:16]) + 59.999
    except ValueError:
        return backups_of(visit, Invalid("that is not a moment", hint="year-month-day and hour:minute are needed"))
    one = timeline.as_of(found, moment)
    if one is None:
        problem = NoSuchThing(
            f"there is no backup from {shown.exact(moment)} or before", hint="the timeline shows what there is"
        )
        return backups_of(visit, problem)
    return visit.go(f"/environments/{environment}/backups/{one.number}")


def number_of(visit: Visit) -> int:
    text = visit.part("number")
    if not text.isdecimal() or len(text) > 9:
        raise NoSuchThing("there is no such backup")
    return int(text)


def backup(visit: Visit) -> Response:
    return backup_of(visit)


def backup_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    env, number = environment_of(visit), number_of(visit)
    detail = visit.ask("backup.show", environment=env.id, number=number)
    top = detail.directories[0] if len(detail.directories) == 1 else ""
    path = visit.query("path", top)
    listing = visit.ask("backup.browse", environment=env.id, number=number, path=path, after=visit.query("after"))
    return visit.page(
        "backup.html",
        problem=problem,
        env=env,
        acts=ACTS,
        one=detail.backup,
        previous=detail.previous,
        following=detail.next,
        fuzzy_paths=detail.fuzzy_paths,
        top=top,
        listing=listing,
        parts=[(folder, folder.rpartition("/")[2] or "/") for folder in (*listing.parents, listing.path)],
        tab_now="backups",
    )


def difference(visit: Visit) -> Response:
    env, number = environment_of(visit), number_of(visit)
    older = visit.query("from")
    found = visit.ask(
        "backup.diff",
        environment=env.id,
        number=number,
        older=int(older) if older.isdecimal() and len(older) < 10 else None,
        path=visit.query("prefix"),
        after=visit.query("after"),
    )
    return visit.page(
        "backup_diff.html",
        env=env,
        acts=ACTS,
        found=found,
        prefix=visit.query("prefix"),
        more=visit.here(after=found.next_after) if found.next_after else "",
        tab_now="backups",
    )


def download(visit: Visit) -> Response:
    return visit.file(
        "backup.get", environment=visit.part("environment"), number=number_of(visit), path=visit.query("path")
    )


def archive(visit: Visit) -> Response:
    form = "tar" if visit.query("form") == "tar" else "zip"
    path = visit.query("path")
    return visit.file(
        "backup.zip", environment=visit.part("environment"), number=number_of(visit), path=path, form=form
    )


def restore_question(visit: Visit) -> Response:
    return restore_of(visit, visit.request.query_params.getlist("path"))


def restore_of(visit: Visit, paths: list[str], problem: EnvctlError | None = None) -> Response:
    env, number = environment_of(visit), number_of(visit)
    detail = visit.ask("backup.show", environment=env.id, number=number)
    beside = f"{env.directories[0].rstrip('/')}/restored-{number}" if env.directories else f"/restored-{number}"
    return visit.page(
        "backup_restore.html",
        problem=problem,
        env=env,
        acts=ACTS,
        one=detail.backup,
        paths=paths,
        into=visit.field("into", "place"),
        directory=visit.field("directory", beside),
        tab_now="backups",
    )


def restore(visit: Visit) -> Response:
    environment, paths = visit.part("environment"), visit.fields("path")
    try:
        into = visit.field("directory") if visit.field("into") == "directory" else ""
        if visit.field("into") == "directory" and not into:
            raise Invalid("a directory is needed", details={"directory": "where shall the files go?"})
        visit.ask("backup.restore", environment=environment, number=number_of(visit), paths=paths, into=into)
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return restore_of(visit, paths, problem)
    return visit.go(f"/environments/{environment}", "backup.restore")


def now(visit: Visit) -> Response:
    environment = visit.part("environment")
    try:
        visit.ask("backup.now", environment=environment)
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return backups_of(visit, problem)
    return visit.go(f"/environments/{environment}", "backup.now")


def pin(visit: Visit) -> Response:
    return _pin(visit, "backup.pin", note=visit.field("note"))


def unpin(visit: Visit) -> Response:
    return _pin(visit, "backup.unpin")


def _pin(visit: Visit, name: str, **fields: object) -> Response:
    environment, number = visit.part("environment"), number_of(visit)
    try:
        visit.ask(name, environment=environment, number=number, **fields)
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return backup_of(visit, problem)
    return visit.go(f"/environments/{environment}/backups/{number}", name)


_ALL: Final = "/environments/{environment}/backups"
_ONE: Final = "/environments/{environment}/backups/{number}"

PAGES: Final = (
    Page("GET", _ALL, backups),
    Page("POST", _ALL + "/now", now),
    Page("GET", _ONE, backup),
    Page("GET", _ONE + "/diff", difference),
    Page("GET", _ONE + "/download", download),
    Page("GET", _ONE + "/zip", archive),
    Page("GET", _ONE + "/restore", restore_question),
    Page("POST", _ONE + "/restore", restore),
    Page("POST", _ONE + "/pin", pin),
    Page("POST", _ONE + "/unpin", unpin),
)
