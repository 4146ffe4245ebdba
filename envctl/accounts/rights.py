"""Who may do what to what.

One rule: what is not theirs does not exist. A user finds the own environments alone, by the same question that finds them: an
id of somebody else's and one that never was get the same answer.

    role        sees and does
    user        the own environments, backups, jobs, tokens, profile; templates of the own groups
    operator    all environments, backups, jobs; nodes, orphans; no people, no settings. Reads people and audit
    admin       everything
"""

from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from envctl.accounts.scopes import allows
from envctl.calling import Caller, Role
from envctl.database.models import TERMINAL_STATES, Environment, Template, User
from envctl.errors import Forbidden, NoSuchThing
from envctl.states import EnvironmentState

RANK: Final[dict[str, int]] = {"user": 0, "operator": 1, "admin": 2}


def require(caller: Caller, scope: str, role: Role = "user") -> None:
    """Forbidden, unless the caller has at least the role, and a token the scope."""
    if RANK[caller.role] < RANK[role]:
        raise Forbidden(f"that needs the role {role}", hint="ask an admin")
    if not allows(caller.scopes, scope):
        if caller.via == "browser":
            raise Forbidden(
                "finish your account first", hint="open your profile: a new password or a second factor is needed"
            )
        raise Forbidden(f"this token may not do that: it needs the scope {scope}", hint="make a token with that scope")


def sees_all(caller: Caller) -> bool:
    """Operators and admins: environments, backups and jobs of everybody."""
    return RANK[caller.role] >= RANK["operator"]


def highest(*roles: str | None) -> Role:
    """The one that may most; `user` where there is none."""
    found = max((role for role in roles if role in RANK), key=lambda role: RANK[role], default="user")
    return "admin" if found == "admin" else "operator" if found == "operator" else "user"


def environment(session: Session, caller: Caller, name: str) -> Environment:
    """By id, by name among one's own living ones, or as OWNER/NAME. NoSuchThing, also for one that the caller may not see.
    The living come first: a name may belong to one that lives and to several that are deleted, which ids alone tell apart."""
    found = session.get(Environment, name)
    if found is None:
        owner, slash, own_name = name.rpartition("/")
        query = (
            select(Environment)
            .join(User, User.id == Environment.owner_id)
            .where(Environment.name == own_name, Environment.state.not_in([str(state) for state in TERMINAL_STATES]))
        )
        query = query.where(User.name == owner) if slash else query.where(User.id == caller.user_id)
        found = session.scalar(query)
    if found is None or not may_see(caller, found) or found.state == EnvironmentState.PURGED:
        raise NoSuchThing(f"there is no environment {name!r}", hint="s3-envctl env list shows yours")
    return found


def may_see(caller: Caller, environment: Environment) -> bool:
    return environment.owner_id == caller.user_id or sees_all(caller)


def template(session: Session, caller: Caller, name: str) -> Template:
    """By id or name. NoSuchThing, also for one of groups that the caller is in none of, or that is switched off."""
    found = session.get(Template, name) or session.scalar(select(Template).where(Template.name == name))
    if found is None or not may_use(caller, found):
        raise NoSuchThing(f"there is no template {name!r}", hint="s3-envctl template list shows what there is")
    return found


def may_use(caller: Caller, template: Template) -> bool:
    """Operators see all, that they can look after them."""
    return sees_all(caller) or (
        template.enabled and (not template.groups or bool(caller.groups & set(template.groups)))
    )
