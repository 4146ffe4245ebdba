"""Pages of environments: the list, one with its live log, the questions before something is destroyed, its settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

from fastapi import Response

from envctl.errors import EnvctlError, Invalid, NoSuchThing
from envctl.states import EnvironmentState
from envctl.verbs.environment_models import EnvironmentView
from envctl.web import events
from envctl.web.pages import shown
from envctl.web.pages.visit import Page, Visit

LINES_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class Act:
    """A button of an environment, and how it is asked before."""

    name: str
    title: str
    asks: bool = False
    stops: bool = False
    """What runs stops: the question offers what to do when it does not."""
    destroys: bool = False
    main: bool = False
    always: bool = False
    """Shown with its reason where it is not possible."""


ACTS: Final[Mapping[str, Act]] = {
    "env.start": Act("start", "Start", main=True),
    "job.retry": Act("retry", "Retry", main=True),
    "env.stop": Act("stop", "Stop", asks=True, stops=True),
    "env.restart": Act("restart", "Restart", asks=True, stops=True),
    "env.reset": Act("reset", "Reset", asks=True, stops=True, destroys=True),
    "env.undelete": Act("undelete", "Undelete", main=True),
    "env.delete": Act("delete", "Delete", asks=True, stops=True, destroys=True),
}
QUICK: Final = {"env.start": "start", "env.undelete": "undelete"}
"""Also in the list."""
IDLE_CHOICES: Final = tuple(
    (str(seconds), "never" if not seconds else shown.duration(seconds))
    for seconds in (0, 900, 1800, 3600, 7200, 14400, 28800, 86400)
)


def environment_of(visit: Visit) -> EnvironmentView:
    found: EnvironmentView = visit.ask("env.show", environment=visit.part("environment"))
    return found


def listing(visit: Visit) -> Response:
    return _listing(visit, "My environments", everybody=False)


def listing_of_all(visit: Visit) -> Response:
    return _listing(visit, "All environments", everybody=True)


def _listing(visit: Visit, title: str, *, everybody: bool) -> Response:
    deleted = visit.query("deleted") == "1" or visit.query("state") == EnvironmentState.DELETED
    found = visit.ask(
        "env.list",
        everybody=everybody,
        deleted=deleted,
        state=visit.query("state") or None,
        owner=visit.query("owner") or None,
        search=visit.query("search") or None,
    )
    return visit.page(
        "environments_rows.html" if visit.partial else "environments.html",
        title=title,
        everybody=everybody,
        environments=found,
        deleted=deleted,
        states=list(EnvironmentState),
        state=visit.query("state"),
        owner=visit.query("owner"),
        search=visit.query("search"),
        quick=QUICK,
        here=visit.here(),
    )


def overview(visit: Visit) -> Response:
    return overview_of(visit)


def overview_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    found = environment_of(visit)
    with visit.context.database.read() as session:
        lines = events.last_lines(session, found.id, LINES_SHOWN)
    return visit.page(
        "environment.html",
        problem=problem,
        env=found,
        acts=ACTS,
        lines=lines,
        tab_now="overview",
        **way_in(visit, found),
    )


def facts(visit: Visit) -> Response:
    """What is beside the log, for who watches."""
    found = environment_of(visit)
    return visit.page("environment_facts.html", env=found, **way_in(visit, found))


def way_in(visit: Visit, found: EnvironmentView) -> dict[str, Any]:
    """How to connect, where the machine is ready and its address known. Not asked of `env.open`: that counts as use, and a
    page that is left open must not keep a machine from its idle stop."""
    shown_way = None
    if found.running and found.address and found.state is EnvironmentState.READY:
        lines = f"Host {found.name}\n    HostName {found.address}\n    User {found.login_user}"
        shown_way = SimpleNamespace(ssh_command=f"ssh {found.login_user}@{found.address}", ssh_config=lines)
    return {"open": shown_way, "has_keys": bool(visit.user.ssh_keys)}


def head(visit: Visit) -> Response:
    """The head alone, for who watches."""
    return visit.page(
        "environment_head.html", env=environment_of(visit), acts=ACTS, tab_now=visit.query("tab", "overview")
    )


def ask(visit: Visit, problem: EnvctlError | None = None) -> Response:
    """The question before something stops or is thrown away."""
    act = next((one for one in ACTS.values() if one.name == visit.part("act")), None)
    if act is None:
        raise NoSuchThing("there is no such page")
    return visit.page(
        "environment_ask.html",
        problem=problem,
        env=environment_of(visit),
        ask=act,
        keep_s=visit.context.settings.keep_deleted_s,
        partial=visit.partial,
    )


def asked(visit: Visit) -> Response:
    return ask(visit)


def act(visit: Visit) -> Response:
    """Do it, and show the log; refused: the same question with the reason."""
    environment, name = visit.part("environment"), visit.part("act")
    try:
        if name in ("retry", "cancel"):
            visit.ask(f"job.{name}", job=visit.field("job") or job_of(visit))
            return visit.go(f"/environments/{environment}", f"job.{name}")
        if f"env.{name}" not in ACTS:
            raise NoSuchThing("there is no such page")
        wanted: dict[str, object] = {"environment": environment}
        if ACTS[f"env.{name}"].stops:
            wanted |= {"accept_loss": visit.checked("accept_loss"), "force": visit.checked("force")}
        if name == "reset":
            wanted["snapshot"] = visit.whole("snapshot")
        visit.ask(f"env.{name}", **wanted)
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        if name != "cancel" and name != "retry" and ACTS[f"env.{name}"].asks:
            return ask(visit, problem)
        return overview_of(visit, problem)
    return visit.go(f"/environments/{environment}", f"env.{name}")


def job_of(visit: Visit) -> str:
    found = environment_of(visit)
    if found.job is None:
        raise Invalid("there is no job")
    return found.job.id


def settings(visit: Visit) -> Response:
    return settings_of(visit)


def settings_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    found = environment_of(visit)
    typed = None
    if problem is not None and visit.path.endswith("/update"):
        typed = SimpleNamespace(**{name: visit.field(name) for name in ("idle_stop_s", "start", "stop", "timezone")})
    choices: Sequence[tuple[str, str]] = IDLE_CHOICES
    if str(found.idle_stop_s) not in dict(IDLE_CHOICES):
        choices = (*IDLE_CHOICES, (str(found.idle_stop_s), shown.duration(found.idle_stop_s)))
    return visit.page(
        "environment_settings.html",
        problem=problem,
        env=found,
        acts=ACTS,
        typed=typed,
        idle_choices=choices,
        may_freeze=visit.may("env.freeze"),
        tab_now="settings",
    )


def set_settings(visit: Visit) -> Response:
    environment, what = visit.part("environment"), visit.part("what")
    try:
        if what == "update":
            schedule = {
                "start": visit.field("start"),
                "stop": visit.field("stop"),
                "timezone": visit.field("timezone") or "UTC",
            }
            visit.ask("env.update", environment=environment, idle_stop_s=visit.whole("idle_stop_s"), schedule=schedule)
        elif what == "extend":
            visit.ask("env.extend", environment=environment, expires_at=moment(visit, "until"))
        elif what == "resize":
            sizes = {name: visit.whole(name) for name in ("cores", "memory_mib", "disk_gib")}
            visit.ask("env.resize", environment=environment, **sizes)
        elif what == "freeze":
            visit.ask("env.freeze", environment=environment, reason=visit.field("reason"))
        elif what == "unfreeze":
            visit.ask("env.unfreeze", environment=environment)
        else:
            raise NoSuchThing("there is no such page")
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return settings_of(visit, problem)
    return visit.go(f"/environments/{environment}/settings", f"env.{what}")


def moment(visit: Visit, name: str) -> float | None:
    """A moment that was typed (UTC), None for an empty field."""
    text = visit.field(name)
    if not text:
        return None
    try:
        return shown.moment_of(text[:16])
    except ValueError as error:
        raise Invalid(
            f"{text!r} is not a moment", details={name: "year-month-day and hour:minute are needed"}
        ) from error


PAGES: Final = (
    Page("GET", "/environments", listing),
    Page("GET", "/admin/environments", listing_of_all),
    Page("GET", "/environments/{environment}", overview),
    Page("GET", "/environments/{environment}/head", head),
    Page("GET", "/environments/{environment}/facts", facts),
    Page("GET", "/environments/{environment}/act/{act}", asked),
    Page("POST", "/environments/{environment}/act/{act}", act),
    Page("GET", "/environments/{environment}/settings", settings),
    Page("POST", "/environments/{environment}/settings/{what}", set_settings),
)
