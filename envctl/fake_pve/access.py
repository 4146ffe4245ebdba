"""Who may do what in the fake: users, tokens with separated rights, ACLs, pools. Pure.

One rule: as `PVE::AccessControl` has it. A deeper ACL entry of a subject replaces the ones above; a machine in a pool has the
pool's rights too; a token with privilege separation has what both it and its user have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

ROOT: Final = "root@pam"


class Denied(Exception):
    """`403 Permission check failed (...)`."""


@dataclass
class Access:
    tokens: dict[str, str] = field(default_factory=dict)
    """`USER@REALM!NAME` to secret."""
    shared_rights: set[str] = field(default_factory=set)
    """Tokens without privilege separation: they have their user's rights."""
    grants: dict[str, dict[str, dict[str, bool]]] = field(default_factory=dict)
    """Subject to path to right to `propagate`. Changed by `grant` and `revoke` alone."""
    _known: dict[tuple[str, str, str | None], dict[str, bool]] = field(default_factory=dict, repr=False)

    def grant(self, subject: str, path: str, rights: Sequence[str], *, propagate: bool = True) -> None:
        """Give rights to a token, and to its user, without whom a token has none."""
        self._known.clear()
        for each in {subject, subject.partition("!")[0]}:
            self.grants.setdefault(each, {}).setdefault(path, {}).update(dict.fromkeys(rights, propagate))

    def revoke(self, subject: str, path: str, *rights: str) -> None:
        """Take these rights, or all at that path, from the subject alone."""
        self._known.clear()
        held = self.grants.get(subject, {}).get(path, {})
        for right in rights or tuple(held):
            held.pop(right, None)

    def rights(self, subject: str, path: str, pools: Mapping[str, str]) -> Mapping[str, bool]:
        """`pools`: path of a machine or storage to its pool."""
        if subject == ROOT:
            return {"Administrator": True}
        user, _, token = subject.partition("!")
        if not token:
            return self._own(user, path, pools)
        theirs = self._own(user, path, pools)
        if subject in self.shared_rights:
            return theirs
        return {right: spread for right, spread in self._own(subject, path, pools).items() if right in theirs}

    def _own(self, subject: str, path: str, pools: Mapping[str, str]) -> Mapping[str, bool]:
        key = (subject, path, pools.get(path))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._looked_up(subject, path, pools)
        return found

    def _looked_up(self, subject: str, path: str, pools: Mapping[str, str]) -> dict[str, bool]:
        entries = self.grants.get(subject, {})
        found: dict[str, bool] = {}
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1):
            here = "/" + "/".join(parts[:depth])
            if here in entries and (here == path or any(entries[here].values())):
                exact = here == path
                found = {right: spread for right, spread in entries[here].items() if exact or spread}
        pool = pools.get(path)
        if pool is not None:
            for right, spread in self._own(subject, f"/pool/{pool}", {}).items():
                found.setdefault(right, spread)
        return found

    def allows(self, subject: str, path: str, right: str, pools: Mapping[str, str]) -> bool:
        return subject == ROOT or right in self.rights(subject, path, pools)

    def require(
        self, subject: str, path: str, rights: Sequence[str], pools: Mapping[str, str], *, any_of: bool = False
    ) -> None:
        """Raises Denied in Proxmox VE's words."""
        held = [right for right in rights if self.allows(subject, path, right, pools)]
        if any_of and not held:
            raise Denied(f"Permission check failed ({path}, {'|'.join(rights)})")
        for right in rights:
            if not any_of and right not in held:
                raise Denied(f"Permission check failed ({path}, {right})")

    def check(
        self, subject: str, check: Sequence[Any], parameters: Mapping[str, str], pools: Mapping[str, str]
    ) -> None:
        """A `check` of the API description: `["perm", PATH, [RIGHTS], "any", 1]`, `["and", ...]`, `["or", ...]`."""
        if check[0] == "and":
            for each in check[1:]:
                self.check(subject, each, parameters, pools)
            return
        if check[0] == "or":
            failed: Denied | None = None
            for each in check[1:]:
                try:
                    self.check(subject, each, parameters, pools)
                except Denied as error:
                    failed = error
                else:
                    return
            raise failed or Denied("Permission check failed")
        if check[0] != "perm":
            raise AssertionError(f"the fake knows no check {check[0]!r}")
        options = dict(zip(check[3::2], check[4::2], strict=False))
        if "require_param" in options and options["require_param"] not in parameters:
            raise Denied("Permission check failed")
        path = check[1]
        for name, value in parameters.items():
            path = path.replace("{" + name + "}", value)
        self.require(subject, path, check[2], pools, any_of=bool(options.get("any")))
