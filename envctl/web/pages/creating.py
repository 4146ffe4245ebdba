"""The page for a new environment: what it is made from, its size, what is saved of it, what is left of the quota."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, Invalid
from envctl.web.pages.environments import IDLE_CHOICES
from envctl.web.pages.visit import Page, Visit

FIELDS: Final = (
    "name",
    "template",
    "cores",
    "memory_mib",
    "disk_gib",
    "directories",
    "idle_stop_s",
    "owner",
    "from",
    "snapshot",
)


def form(visit: Visit) -> Response:
    return form_of(visit)


def form_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    source, snapshot = visit.field("from") or visit.query("from"), visit.field("snapshot") or visit.query("snapshot")
    origin = visit.ask("env.show", environment=source) if source else None
    templates = visit.ask("template.list", usable=True)
    wanted = visit.field("template") or visit.query("template") or (origin.template_name if origin else "")
    chosen = next(
        (one for one in templates if wanted in (one.name, one.id)), templates[0] if len(templates) == 1 else None
    )
    typed = {name: visit.raw(name) for name in FIELDS}
    if chosen is not None and problem is None:
        sizes = origin or chosen
        typed |= {name: str(getattr(sizes, name)) for name in ("cores", "memory_mib", "disk_gib")}
        typed["directories"] = "\n".join(sizes.directories)
    return visit.page(
        "environment_new.html",
        problem=problem,
        templates=templates,
        chosen=chosen,
        typed=typed,
        origin=origin,
        snapshot=snapshot,
        quota=visit.ask("quota.show"),
        idle_choices=(("", "as the console has it"), *IDLE_CHOICES),
        may_give=visit.may("admin.nodes"),
    )


def create(visit: Visit) -> Response:
    try:
        if not visit.field("template"):
            raise Invalid("a template is needed", details={"template": "choose what it is made from"})
        answer = visit.ask(
            "env.create",
            name=visit.field("name"),
            template=visit.field("template"),
            cores=visit.whole("cores"),
            memory_mib=visit.whole("memory_mib"),
            disk_gib=visit.whole("disk_gib"),
            directories=visit.lines("directories") or None,
            idle_stop_s=visit.whole("idle_stop_s"),
            from_environment=visit.field("from") or None,
            from_snapshot=visit.whole("snapshot"),
            owner=visit.field("owner") or None,
        )
    except EnvctlError as problem:
        return form_of(visit, problem)
    return visit.go(f"/environments/{answer.environment.id}", "env.create")


PAGES: Final = (
    Page("GET", "/environments/new", form),
    Page("POST", "/environments/new", create),
)
