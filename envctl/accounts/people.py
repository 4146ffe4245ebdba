"""Users, as everything below a verb needs them: found, with their groups and role, and the first one."""

from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from envctl.accounts import passwords
from envctl.accounts.rights import RANK, highest
from envctl.calling import Caller, Context, Role, Via
from envctl.database.models import Group, Membership, User
from envctl.errors import Invalid, NoSuchThing, Refused
from envctl.identifiers import check_name


@dataclass(frozen=True, slots=True)
class FirstAdmin:
    user_id: str
    name: str
    one_time_password: str | None
    """To be shown once; it must be changed at the first sign-in. None: the password was given."""


def first_admin(context: Context, name: str = "admin", password: str | None = None) -> FirstAdmin:
    """An admin in an installation that has none. Without `password` one is made up. Refused, where there is an admin:
    who lost the password of the only one makes another with `recover_admin`."""
    caller = Caller(user_id="", name="console", role="admin", via="console")
    given = checked_credentials(name, password)
    hashed = passwords.hash_password(given)
    with context.audit.act(caller, "user.add", target=name, detail={"role": "admin", "first": True}) as act:
        if act.session.scalar(select(func.count()).select_from(User).where(User.role == "admin")):
            raise Refused("there is an admin already", hint="s3-envctl init NAME --recover gives one a new password")
        user = new_user(act.session, context, name, hashed, role="admin", must_change=password is None)
    return FirstAdmin(user.id, name, given if password is None else None)


def recover_admin(context: Context, name: str) -> FirstAdmin:
    """Make `name` an enabled admin with a one-time password and no second factor, from the host itself; all sign-ins of it
    end. NoSuchThing."""
    from envctl.accounts import logins, totp

    caller = Caller(user_id="", name="console", role="admin", via="console")
    given = passwords.one_time_password()
    hashed = passwords.hash_password(given)
    with context.audit.act(caller, "user.recover", target=name) as act:
        user = find_user(act.session, name)
        user.role, user.enabled = "admin", True
        user.password_hash, user.password_must_change = hashed, True
        totp.forget(act.session, user)
        logins.end_all(act.session, user.id)
    return FirstAdmin(user.id, name, given)


def new_user(
    session: Session, context: Context, name: str, password_hash: str | None, *, role: Role, must_change: bool
) -> User:
    """Added to `session`, a write. Refused, where the name is taken."""
    if session.scalar(select(User.id).where(User.name == name)) is not None:
        raise Refused(f"the name {name} is taken")
    user = User(
        id=context.new_id(),
        name=name,
        role=role,
        password_hash=password_hash,
        password_must_change=must_change,
        created_at=context.now(),
    )
    session.add(user)
    session.flush()
    return user


def checked_credentials(name: str, password: str | None) -> str:
    """The password to take: `password`, or one that is made up. Invalid for a name or a password that cannot be."""
    try:
        check_name(name)
    except ValueError as error:
        raise Invalid(str(error), details={"name": str(error)}) from error
    if password is None:
        return passwords.one_time_password()
    passwords.check_new(password, name)
    return password


def find_user(session: Session, name: str) -> User:
    """By id or name. NoSuchThing."""
    found = session.get(User, name) or session.scalar(select(User).where(User.name == name))
    if found is None:
        raise NoSuchThing(f"there is no user {name!r}")
    return found


def find_group(session: Session, name: str) -> Group:
    """By id or name. NoSuchThing."""
    found = session.get(Group, name) or session.scalar(select(Group).where(Group.name == name))
    if found is None:
        raise NoSuchThing(f"there is no group {name!r}")
    return found


def groups_of(session: Session, user_id: str) -> list[Group]:
    return list(
        session.scalars(
            select(Group)
            .join(Membership, Membership.group_id == Group.id)
            .where(Membership.user_id == user_id)
            .order_by(Group.name)
        )
    )


def role_of(session: Session, user: User) -> Role:
    """The own one or that of a group, whichever may more."""
    return highest(user.role, *(group.role for group in groups_of(session, user.id)))


def caller_of(
    session: Session,
    user: User,
    via: Via,
    *,
    address: str = "",
    scopes: frozenset[str] | None = None,
    login_hash: str = "",
) -> Caller:
    groups = groups_of(session, user.id)
    return Caller(
        user_id=user.id,
        name=user.name,
        role=highest(user.role, *(group.role for group in groups)),
        via=via,
        address=address,
        scopes=scopes,
        login_hash=login_hash,
        groups=frozenset(group.id for group in groups),
    )


def require_an_admin(session: Session) -> None:
    """Refused, where the change under way leaves no enabled admin. Call it after the change, before the commit."""
    session.flush()
    enabled = session.scalars(select(User).where(User.enabled)).all()
    if not any(RANK[role_of(session, user)] == RANK["admin"] for user in enabled):
        raise Refused("that would leave no admin", hint="make somebody else an admin first")
