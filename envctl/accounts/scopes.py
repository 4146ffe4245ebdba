"""What an API token may do. Pure.

One rule: a scope is `NOUN:read` or `NOUN:write`, where NOUN is that of the verbs (`env.start` needs `env:write`); `write`
brings `read` along, and `*` is everything that its user may. A token never may more than its user.
"""

from collections.abc import Iterable
from typing import Final

NOUNS: Final[dict[str, str]] = {
    "env": "environments: create, start, stop, delete",
    "backup": "backups: read files, restore, pin",
    "console": "screens and terminals of machines",
    "job": "jobs: look, retry, cancel",
    "template": "templates",
    "profile": "the own account",
    "token": "API tokens; a token makes none that may more than itself",
    "user": "users",
    "group": "groups",
    "quota": "quotas",
    "admin": "orphans, audit, health of the installation",
    "settings": "settings that are kept in the console",
}
EVERYTHING: Final = "*"
SCOPES: Final[tuple[str, ...]] = (EVERYTHING, *(f"{noun}:{right}" for noun in NOUNS for right in ("read", "write")))
ACCOUNT_ONLY: Final = frozenset({"profile:write"})
"""What somebody may who must change the password, or set up a second factor, before anything else."""


def allows(scopes: Iterable[str] | None, wanted: str) -> bool:
    """Whether who has `scopes` may do what needs `wanted`; None: everything."""
    if scopes is None:
        return True
    held = frozenset(scopes)
    noun, _, right = wanted.partition(":")
    return EVERYTHING in held or wanted in held or (right == "read" and f"{noun}:write" in held)


def check_scopes(scopes: Iterable[str]) -> list[str]:
    """Sorted, once each. ValueError for one that there is not, or for none at all."""
    found = sorted(set(scopes))
    if not found:
        raise ValueError("a token needs a scope")
    for scope in found:
        if scope not in SCOPES:
            raise ValueError(f"{scope!r} is not a scope; there are {', '.join(SCOPES)}")
    return found
