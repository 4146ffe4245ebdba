"""The menu: what a caller may open. Data first; a page whose verb they may not call is not shown."""

from dataclasses import dataclass
from typing import Final

from envctl.calling import Caller, Role

ROLES: Final[tuple[Role, ...]] = ("user", "operator", "admin")


@dataclass(frozen=True, slots=True)
class Entry:
    title: str
    path: str
    role: Role = "user"
    """The least role."""
    current: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    title: str
    entries: tuple[Entry, ...]


MENU: Final = (
    Section(
        "",
        (
            Entry("My environments", "/environments"),
            Entry("New environment", "/environments/new"),
            Entry("Profile", "/profile"),
        ),
    ),
    Section(
        "Operations",
        (
            Entry("Fleet", "/admin/fleet", "operator"),
            Entry("All environments", "/admin/environments", "operator"),
            Entry("Jobs", "/admin/jobs", "operator"),
            Entry("Backup health", "/admin/backups", "operator"),
            Entry("Nodes", "/admin/nodes", "operator"),
            Entry("Orphans", "/admin/orphans", "operator"),
        ),
    ),
    Section(
        "Administration",
        (
            Entry("Users", "/admin/users", "admin"),
            Entry("Groups", "/admin/groups", "admin"),
            Entry("Quotas", "/admin/quotas", "admin"),
            Entry("Templates", "/admin/templates", "admin"),
            Entry("Audit", "/admin/audit", "admin"),
            Entry("Settings", "/admin/settings", "admin"),
            Entry("Doctor", "/admin/doctor", "admin"),
        ),
    ),
)


def menu_of(caller: Caller, path: str) -> list[Section]:
    """What `caller` may open; the entry of `path`, or the one it lies below, is current."""
    level = ROLES.index(caller.role)
    paths = [entry.path for section in MENU for entry in section.entries]
    here = max((one for one in paths if path == one or path.startswith(one + "/")), key=len, default="")
    made = []
    for section in MENU:
        entries = tuple(
            Entry(entry.title, entry.path, entry.role, entry.path == here)
            for entry in section.entries
            if ROLES.index(entry.role) <= level
        )
        if entries:
            made.append(Section(section.title, entries))
    return made
