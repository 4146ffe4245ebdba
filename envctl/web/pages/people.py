"""Pages for admins: users, groups, quotas."""

from typing import Final

from fastapi import Response

from envctl.errors import EnvctlError, NoSuchThing
from envctl.web.pages.visit import Page, Visit

ROLES: Final = (("user", "user"), ("operator", "operator"), ("admin", "admin"))
FIGURES: Final = (
    ("environments", "Environments"),
    ("running", "Running at once"),
    ("cores", "Cores"),
    ("memory_mib", "Memory, MiB"),
    ("disk_gib", "Disk, GiB"),
    ("home_gib", "Homes, GiB"),
)


def users(visit: Visit) -> Response:
    return users_of(visit)


def users_of(visit: Visit, problem: EnvctlError | None = None, told: object = None) -> Response:
    search = visit.query("search")
    return visit.page(
        "users.html",
        problem=problem,
        users=visit.ask("user.list", search=search or None),
        search=search,
        groups=[group.name for group in visit.ask("group.list")],
        roles=ROLES,
        told=told,
        typed={name: visit.field(name) for name in ("name", "display_name", "email", "role")},
        chosen_groups=visit.fields("group"),
    )


def add_user(visit: Visit) -> Response:
    try:
        answer = visit.ask(
            "user.add",
            name=visit.field("name"),
            role=visit.field("role", "user"),
            display_name=visit.field("display_name"),
            email=visit.field("email"),
            groups=visit.fields("group"),
        )
    except EnvctlError as problem:
        return users_of(visit, problem)
    return user_of(visit, user=answer.user.id, told=answer)


def user(visit: Visit) -> Response:
    return user_of(visit)


def user_of(visit: Visit, problem: EnvctlError | None = None, user: str = "", told: object = None) -> Response:
    found = visit.ask("user.show", user=user or visit.part("user"))
    return visit.page(
        "user.html",
        problem=problem,
        user=found,
        roles=ROLES,
        groups=[group.name for group in visit.ask("group.list")],
        quota=visit.ask("quota.show", user=found.name),
        tokens=[token for token in visit.ask("token.list", user=found.name) if token.revoked_at is None],
        told=told,
    )


def user_act(visit: Visit) -> Response:
    name, what = visit.part("user"), visit.part("act")
    try:
        if what == "update":
            visit.ask(
                "user.update",
                user=name,
                role=visit.field("role"),
                enabled=visit.checked("enabled"),
                display_name=visit.field("display_name"),
                email=visit.field("email"),
                groups=visit.fields("group"),
            )
        elif what == "password":
            return user_of(visit, told=visit.ask("user.password", user=name))
        elif what == "totp-off":
            visit.ask("user.totp_off", user=name)
        elif what == "logout":
            visit.ask("user.logout", user=name)
        elif what == "remove":
            visit.ask("user.remove", user=name)
            return visit.go("/admin/users", "user.remove")
        else:
            raise NoSuchThing("there is no such page")
    except NoSuchThing:
        raise
    except EnvctlError as problem:
        return user_of(visit, problem)
    return visit.go(f"/admin/users/{name}", "user.update")


def groups(visit: Visit) -> Response:
    return groups_of(visit)


def groups_of(visit: Visit, problem: EnvctlError | None = None, at: str = "") -> Response:
    return visit.page(
        "groups.html",
        problem=problem,
        at=at,
        groups=visit.ask("group.list"),
        roles=(("", "none"), *ROLES),
        typed={name: visit.field(name) for name in ("name", "oidc_value", "role")},
    )


def group_act(visit: Visit) -> Response:
    what, group = visit.part("act"), visit.field("group")
    members = visit.field("members").replace(",", " ").split()
    try:
        if what == "add":
            role, claim = visit.field("role") or None, visit.field("oidc_value") or None
            visit.ask("group.add", name=visit.field("name"), oidc_value=claim, role=role, members=members)
        elif what == "update":
            role, claim = visit.field("role") or "-", visit.field("oidc_value") or "-"
            visit.ask("group.update", group=group, oidc_value=claim, role=role, members=members)
        elif what == "remove":
            visit.ask("group.remove", group=group)
        else:
            raise NoSuchThing("there is no such page")
    except EnvctlError as problem:
        return groups_of(visit, problem, group or "add")
    return visit.go("/admin/groups", f"group.{what}")


def quotas(visit: Visit) -> Response:
    return quotas_of(visit)


def quotas_of(visit: Visit, problem: EnvctlError | None = None) -> Response:
    names = (*(name for name, _ in FIGURES), "kind", "subject")
    return visit.page(
        "quotas.html",
        problem=problem,
        quotas=visit.ask("quota.list"),
        figures=FIGURES,
        typed={name: visit.field(name) or visit.query(name) for name in names},
    )


def quota_act(visit: Visit) -> Response:
    kind, subject = visit.field("kind"), visit.field("subject") or "-"
    try:
        if visit.part("act") == "set":
            visit.ask("quota.set", kind=kind, subject=subject, **{name: visit.whole(name) for name, _ in FIGURES})
            return visit.go("/admin/quotas", "quota.set")
        visit.ask("quota.remove", kind=kind, subject=subject)
    except EnvctlError as problem:
        return quotas_of(visit, problem)
    return visit.go("/admin/quotas", "quota.remove")


PAGES: Final = (
    Page("GET", "/admin/users", users),
    Page("POST", "/admin/users", add_user),
    Page("GET", "/admin/users/{user}", user),
    Page("POST", "/admin/users/{user}/{act}", user_act),
    Page("GET", "/admin/groups", groups),
    Page("POST", "/admin/groups/{act}", group_act),
    Page("GET", "/admin/quotas", quotas),
    Page("POST", "/admin/quotas/{act}", quota_act),
)
