"""Pages for operators: jobs, orphans, nodes with the headroom of storages, all hosts, the health of all backups."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, NoSuchThing
from envctl.states import JobState
from envctl.web.pages.visit import Page, Visit


def jobs(visit: Visit) -> Response:
    return jobs_of(visit)


def jobs_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    state = visit.query("state")
    found = visit.ask("job.list", everybody=visit.may("admin.nodes"), state=state or None, limit=200)
    return visit.page(
        "jobs_rows.html" if visit.partial else "jobs.html",
        problem=problem,
        jobs=found,
        states=list(JobState),
        state=state,
        here=visit.here(),
    )


def job(visit: Visit) -> Response:
    return job_of(visit)


def job_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    answer = visit.ask("job.show", job=visit.part("job"))
    told = visit.ask("job.log", job=visit.part("job"), limit=2000)
    return visit.page("job.html", problem=problem, job=answer, lines=told.lines)


def job_act(visit: Visit) -> Response:
    what = visit.part("act")
    if what not in ("retry", "cancel"):
        raise NoSuchThing("there is no such page")
    try:
        visit.ask(f"job.{what}", job=visit.part("job"))
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return job_of(visit, problem)
    return visit.go(f"/admin/jobs/{visit.part('job')}", f"job.{what}")


def orphans(visit: Visit) -> Response:
    return orphans_of(visit)


def orphans_of(visit: Visit, problem: EnvctlError | None = None, reconciled: object = None) -> Response:
    return visit.page("orphans.html", problem=problem, orphans=visit.ask("admin.orphans"), reconciled=reconciled)


def orphan_act(visit: Visit) -> Response:
    """Keep, destroy or adopt a machine that no environment has; or look at the hypervisors now."""
    what = visit.part("act")
    try:
        if what == "reconcile":
            return orphans_of(visit, reconciled=visit.ask("admin.reconcile"))
        if what == "adopt":
            visit.ask("admin.orphan_adopt", machine=visit.field("machine"), environment=visit.field("environment"))
        elif what in ("keep", "destroy"):
            visit.ask(f"admin.orphan_{what}", machine=visit.field("machine"))
        else:
            raise NoSuchThing("there is no such page")
    except EnvctlError as problem:
        return orphans_of(visit, problem)
    return visit.go("/admin/orphans", f"admin.orphan_{what}")


def orphan_ask(visit: Visit) -> Response:
    """The question before a machine is destroyed."""
    found = next((one for one in visit.ask("admin.orphans") if one.machine == visit.query("machine")), None)
    if found is None:
        raise NoSuchThing("that machine is no longer among the orphans")
    return visit.page("orphan_ask.html", orphan=found, partial=visit.partial)


def nodes(visit: Visit) -> Response:
    return visit.page("nodes.html", nodes=visit.ask("admin.nodes"))


def fleet(visit: Visit) -> Response:
    """How everything on every host is; the part below the heading refreshes itself."""
    return visit.page(
        "fleet_hosts.html" if visit.partial else "fleet.html",
        fleet=visit.ask("admin.fleet"),
        manual=visit.context.fleet.manual,
    )


def backup_health(visit: Visit) -> Response:
    """Every environment with its last good backup, the worst first."""
    return visit.page("backup_health.html", health=visit.ask("backup.health"))


PAGES: Final = (
    Page("GET", "/admin/fleet", fleet),
    Page("GET", "/admin/jobs", jobs),
    Page("GET", "/admin/jobs/{job}", job),
    Page("POST", "/admin/jobs/{job}/{act}", job_act),
    Page("GET", "/admin/orphans", orphans),
    Page("GET", "/admin/orphans/destroy", orphan_ask),
    Page("POST", "/admin/orphans/{act}", orphan_act),
    Page("GET", "/admin/nodes", nodes),
    Page("GET", "/admin/backups", backup_health),
)
