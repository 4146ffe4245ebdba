"""Pages of templates: what there is and what its last check said, a new one, one to change."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, Invalid, NoSuchThing
from envctl.web.pages.visit import Page, Visit

SEEDS: Final = (("cloud-init", "cloud-init in the template"), ("agent", "our agent in the template"))
SIZES: Final = ("cores", "cores_max", "memory_mib", "memory_mib_max", "disk_gib", "disk_gib_max")
TEXTS: Final = (
    "name",
    "title",
    "description",
    "driver",
    "source",
    "login_user",
    "seed",
    "directories",
    "excludes",
    "options",
)


def templates(visit: Visit) -> Response:
    return templates_of(visit)


def templates_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    return visit.page(
        "templates.html",
        problem=problem,
        templates=visit.ask("template.list"),
        drivers=[(name, name) for name in sorted(visit.context.drivers)],
        seeds=SEEDS,
        groups=[group.name for group in visit.ask("group.list")],
        typed={name: visit.raw(name) for name in (*TEXTS, *SIZES)},
        chosen_groups=visit.fields("group"),
    )


def add(visit: Visit) -> Response:
    try:
        sizes = {name: size for name in SIZES if (size := visit.whole(name)) is not None}
        answer = visit.ask(
            "template.add",
            name=visit.field("name"),
            title=visit.field("title"),
            description=visit.field("description"),
            driver=visit.field("driver"),
            source=visit.field("source"),
            options=options_of(visit),
            directories=visit.lines("directories") or ["/home"],
            excludes=visit.lines("excludes"),
            login_user=visit.field("login_user") or "user",
            seed=visit.field("seed"),
            groups=visit.fields("group"),
            **sizes,
        )
    except EnvctlError as problem:
        return templates_of(visit, problem)
    return visit.go(f"/admin/templates/{answer.name}", "template.add")


def template(visit: Visit) -> Response:
    return template_of(visit)


def template_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    found = visit.ask("template.show", template=visit.part("template"))
    typed = {name: visit.raw(name) for name in (*TEXTS, *SIZES)}
    if problem is None or not visit.path.endswith("/update"):
        typed = {name: str(getattr(found, name)) for name in (*TEXTS, *SIZES)}
        typed["directories"], typed["excludes"] = "\n".join(found.directories), "\n".join(found.excludes)
        typed["options"] = "\n".join(f"{key}={value}" for key, value in sorted(found.options.items()))
    return visit.page(
        "template.html",
        problem=problem,
        template=found,
        seeds=SEEDS,
        groups=[group.name for group in visit.ask("group.list")],
        typed=typed,
    )


def act(visit: Visit) -> Response:
    name, what = visit.part("template"), visit.part("act")
    try:
        if what == "update":
            visit.ask(
                "template.update",
                template=name,
                title=visit.field("title"),
                description=visit.field("description"),
                source=visit.field("source"),
                options=options_of(visit),
                directories=visit.lines("directories"),
                excludes=visit.lines("excludes"),
                login_user=visit.field("login_user"),
                seed=visit.field("seed"),
                groups=visit.fields("group"),
                enabled=visit.checked("enabled"),
                **{size: visit.whole(size) for size in SIZES},
            )
        elif what == "check":
            visit.ask("template.check", template=name)
        elif what == "remove":
            visit.ask("template.remove", template=name)
            return visit.go("/admin/templates", "template.remove")
        else:
            raise NoSuchThing("there is no such page")
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return template_of(visit, problem)
    return visit.go(f"/admin/templates/{name}", f"template.{what}")


def options_of(visit: Visit) -> dict[str, str]:
    """`key=value`, one a line."""
    found = {}
    for line in visit.lines("options"):
        key, equals, value = line.partition("=")
        if not equals or not key.strip():
            raise Invalid(f"{line!r} is no option", details={"options": "key=value, one a line"})
        found[key.strip()] = value.strip()
    return found


PAGES: Final = (
    Page("GET", "/admin/templates", templates),
    Page("POST", "/admin/templates", add),
    Page("GET", "/admin/templates/{template}", template),
    Page("POST", "/admin/templates/{template}/{act}", act),
)
