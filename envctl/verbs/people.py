"""Verbs about users, groups, quotas and API tokens."""

from collections.abc import Iterable, Sequence
from typing import Final, cast

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from envctl.accounts import logins, passwords, people, quotas, tokens, totp
from envctl.accounts.rights import highest, require
from envctl.accounts.scopes import allows, check_scopes
from envctl.calling import Caller, Context, Role
from envctl.database.models import ApiToken, Environment, Group, Membership, Quota, Template, User
from envctl.errors import Forbidden, Invalid, NoSuchThing, Refused
from envctl.identifiers import check_name
from envctl.states import EnvironmentState
from envctl.verbs.people_models import (
    AddGroup,
    AddUser,
    CreateToken,
    GroupMember,
    GroupView,
    ListTokens,
    ListUsers,
    NewTokenAnswer,
    OneGroup,
    OneQuota,
    OneToken,
    OneUser,
    PasswordAnswer,
    QuotaFigure,
    QuotaKind,
    QuotaUsage,
    QuotaView,
    SetQuota,
    ShowQuota,
    TokenView,
    UpdateGroup,
    UpdateUser,
    UserView,
)
from envctl.verbs.verb import Done, Nothing, Verb

DAY_S: Final = 86400.0


# Users.


def user_list(context: Context, caller: Caller, request: ListUsers) -> list[UserView]:
    require(caller, "user:read", "operator")
    with context.database.read() as session:
        query = select(User).order_by(User.name)
        if request.search:
            columns = (User.name, User.display_name, User.email)
            query = query.where(or_(*(column.icontains(request.search, autoescape=True) for column in columns)))
        return user_views(session, session.scalars(query).all())


def user_show(context: Context, caller: Caller, request: OneUser) -> UserView:
    require(caller, "user:read", "operator")
    with context.database.read() as session:
        return user_view(session, people.find_user(session, request.user))


def user_add(context: Context, caller: Caller, request: AddUser) -> PasswordAnswer:
    """Without a password a one-time one is made; whoever has it sets the real one at the first sign-in."""
    refuse_early(context, caller, "user.add", "user:write", "admin", request.name)
    password = people.checked_credentials(request.name, request.password)
    hashed = passwords.hash_password(password)
    detail = {"role": request.role, "groups": request.groups}
    with context.audit.act(caller, "user.add", target=request.name, detail=detail) as act:
        require(caller, "user:write", "admin")
        made_up = request.password is None
        user = people.new_user(act.session, context, request.name, hashed, role=request.role, must_change=made_up)
        user.display_name, user.email = request.display_name, request.email
        _set_groups(act.session, user, request.groups)
        view = user_view(act.session, user)
    return PasswordAnswer(user=view, one_time_password=password if made_up else None)


def user_update(context: Context, caller: Caller, request: UpdateUser) -> UserView:
    detail = request.model_dump(exclude={"user"}, exclude_none=True)
    with context.audit.act(caller, "user.update", target=request.user, detail=detail) as act:
        require(caller, "user:write", "admin")
        user = people.find_user(act.session, request.user)
        act.target = user.name
        if request.role is not None:
            user.role = request.role
        if request.enabled is not None:
            user.enabled = request.enabled
            if not request.enabled:
                logins.end_all(act.session, user.id)
        if request.display_name is not None:
            user.display_name = request.display_name
        if request.email is not None:
            user.email = request.email
        if request.groups is not None:
            _set_groups(act.session, user, request.groups)
        people.require_an_admin(act.session)
        return user_view(act.session, user)


def user_password(context: Context, caller: Caller, request: OneUser) -> PasswordAnswer:
    """A one-time password; every sign-in of the user ends. Tokens stay."""
    refuse_early(context, caller, "user.password", "user:write", "admin", request.user)
    password = passwords.one_time_password()
    hashed = passwords.hash_password(password)
    with context.audit.act(caller, "user.password", target=request.user) as act:
        require(caller, "user:write", "admin")
        user = people.find_user(act.session, request.user)
        act.target = user.name
        if user.oidc_subject is not None:
            raise Refused(f"{user.name} signs in with the identity provider", hint="the password is changed there")
        user.password_hash, user.password_must_change = hashed, True
        logins.end_all(act.session, user.id)
        return PasswordAnswer(user=user_view(act.session, user), one_time_password=password)


def user_totp_off(context: Context, caller: Caller, request: OneUser) -> UserView:
    """For somebody who lost authenticator and recovery codes."""
    with context.audit.act(caller, "user.totp_off", target=request.user) as act:
        require(caller, "user:write", "admin")
        user = people.find_user(act.session, request.user)
        act.target = user.name
        totp.forget(act.session, user)
        logins.end_all(act.session, user.id)
        return user_view(act.session, user)


def user_logout(context: Context, caller: Caller, request: OneUser) -> Done:
    """End every sign-in of a user."""
    with context.audit.act(caller, "user.logout", target=request.user) as act:
        require(caller, "user:write", "admin")
        user = people.find_user(act.session, request.user)
        act.target = user.name
        ended = logins.end_all(act.session, user.id)
    return Done(message=f"{ended} sign-ins ended")


def user_remove(context: Context, caller: Caller, request: OneUser) -> Done:
    """With tokens and sign-ins. Refused while there are rows of environments: those are what the audit tells of."""
    with context.audit.act(caller, "user.remove", target=request.user) as act:
        require(caller, "user:write", "admin")
        user = people.find_user(act.session, request.user)
        act.target = user.name
        if user.id == caller.user_id:
            raise Refused("you cannot remove yourself", hint="another admin can")
        if act.session.scalar(select(Environment.id).where(Environment.owner_id == user.id).limit(1)) is not None:
            raise Refused(f"{user.name} has, or had, environments", hint="disable the user: user update --no-enabled")
        act.session.execute(delete(Quota).where(Quota.subject_kind == "user", Quota.subject_id == user.id))
        act.session.delete(user)
        people.require_an_admin(act.session)
    return Done(message=f"{request.user} is removed")


def user_view(session: Session, user: User) -> UserView:
    return user_views(session, [user])[0]


def user_views(session: Session, users: Sequence[User]) -> list[UserView]:
    """In the order of `users`; two queries however many there are."""
    ids = [user.id for user in users]
    groups: dict[str, list[Group]] = {}
    memberships = (
        select(Membership.user_id, Group)
        .join(Group, Group.id == Membership.group_id)
        .where(Membership.user_id.in_(ids))
        .order_by(Group.name)
    )
    for user_id, group in session.execute(memberships):
        groups.setdefault(user_id, []).append(group)
    living = (
        select(Environment.owner_id, func.count())
        .where(
            Environment.owner_id.in_(ids),
            Environment.state.not_in([str(EnvironmentState.DELETED), str(EnvironmentState.PURGED)]),
        )
        .group_by(Environment.owner_id)
    )
    counts = {row[0]: int(row[1]) for row in session.execute(living)}
    return [_user_view(user, groups.get(user.id, []), counts.get(user.id, 0)) for user in users]


def _user_view(user: User, groups: Sequence[Group], environments: int) -> UserView:
    return UserView(
        id=user.id,
        name=user.name,
        display_name=user.display_name or "",
        email=user.email or "",
        role=cast(Role, user.role),
        effective_role=highest(user.role, *(group.role for group in groups)),
        enabled=user.enabled,
        source="oidc" if user.oidc_subject is not None else "local",
        second_factor=user.totp_confirmed,
        password_must_change=user.password_must_change,
        groups=[group.name for group in groups],
        environments=environments,
        created_at=user.created_at,
        last_login_at=user.last_login_at,
    )


# Groups.


def group_list(context: Context, caller: Caller, request: Nothing) -> list[GroupView]:
    require(caller, "group:read", "operator")
    with context.database.read() as session:
        return [group_view(session, group) for group in session.scalars(select(Group).order_by(Group.name))]


def group_add(context: Context, caller: Caller, request: AddGroup) -> GroupView:
    with context.audit.act(caller, "group.add", target=request.name, detail=request.model_dump()) as act:
        require(caller, "group:write", "admin")
        try:
            check_name(request.name)
        except ValueError as error:
            raise Invalid(str(error), details={"name": str(error)}) from error
        if act.session.scalar(select(Group.id).where(Group.name == request.name)) is not None:
            raise Refused(f"the name {request.name} is taken")
        group = Group(id=context.new_id(), name=request.name, role=request.role, created_at=context.now())
        _set_claim(act.session, group, request.oidc_value)
        act.session.add(group)
        act.session.flush()
        _set_members(act.session, group, request.members)
        return group_view(act.session, group)


def group_update(context: Context, caller: Caller, request: UpdateGroup) -> GroupView:
    detail = request.model_dump(exclude={"group"}, exclude_none=True)
    with context.audit.act(caller, "group.update", target=request.group, detail=detail) as act:
        require(caller, "group:write", "admin")
        group = people.find_group(act.session, request.group)
        act.target = group.name
        if request.oidc_value is not None:
            _set_claim(act.session, group, None if request.oidc_value in ("", "-") else request.oidc_value)
        if request.role is not None:
            group.role = None if request.role == "-" else request.role
        if request.members is not None:
            _set_members(act.session, group, request.members)
        people.require_an_admin(act.session)
        return group_view(act.session, group)


def group_join(context: Context, caller: Caller, request: GroupMember) -> GroupView:
    with context.audit.act(caller, "group.join", target=request.group, detail={"user": request.user}) as act:
        require(caller, "group:write", "admin")
        group, user = people.find_group(act.session, request.group), people.find_user(act.session, request.user)
        act.target = group.name
        held = act.session.get(Membership, (user.id, group.id))
        if held is None:
            act.session.add(Membership(user_id=user.id, group_id=group.id))
        else:
            # An admin says so now: the identity provider no longer takes it away.
            held.from_oidc = False
        act.session.flush()
        return group_view(act.session, group)


def group_leave(context: Context, caller: Caller, request: GroupMember) -> GroupView:
    with context.audit.act(caller, "group.leave", target=request.group, detail={"user": request.user}) as act:
        require(caller, "group:write", "admin")
        group, user = people.find_group(act.session, request.group), people.find_user(act.session, request.user)
        act.target = group.name
        held = act.session.get(Membership, (user.id, group.id))
        if held is None:
            raise NoSuchThing(f"{user.name} is not in {group.name}")
        act.session.delete(held)
        people.require_an_admin(act.session)
        return group_view(act.session, group)


def group_remove(context: Context, caller: Caller, request: OneGroup) -> Done:
    """Refused while a template is for its members alone: else it would be for everybody."""
    with context.audit.act(caller, "group.remove", target=request.group) as act:
        require(caller, "group:write", "admin")
        group = people.find_group(act.session, request.group)
        act.target = group.name
        for template in act.session.scalars(select(Template)):
            if group.id in template.groups:
                raise Refused(
                    f"template {template.name} is for group {group.name}", hint="change the template's groups first"
                )
        act.session.execute(delete(Quota).where(Quota.subject_kind == "group", Quota.subject_id == group.id))
        act.session.delete(group)
        people.require_an_admin(act.session)
    return Done(message=f"{request.group} is removed")


def group_view(session: Session, group: Group) -> GroupView:
    members = session.scalars(
        select(User.name)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.group_id == group.id)
        .order_by(User.name)
    )
    return GroupView(
        id=group.id,
        name=group.name,
        oidc_value=group.oidc_value,
        role=cast(Role | None, group.role),
        members=list(members),
        created_at=group.created_at,
    )


# Quotas.


def quota_list(context: Context, caller: Caller, request: Nothing) -> list[QuotaView]:
    require(caller, "quota:read", "admin")
    with context.database.read() as session:
        rows = session.scalars(select(Quota).order_by(Quota.subject_kind, Quota.subject_id)).all()
        return [_quota_view(row, _subject_name(session, row.subject_kind, row.subject_id)) for row in rows]


def quota_show(context: Context, caller: Caller, request: ShowQuota) -> QuotaUsage:
    """What is used and what is left; without a user one's own."""
    require(caller, "quota:read")
    with context.database.read() as session:
        if request.user is None:
            user = session.get_one(User, caller.user_id)
        else:
            require(caller, "quota:read", "operator")
            user = people.find_user(session, request.user)
        limits = quotas.limits_of(session, user.id)
        used = quotas.usage_of(session, user.id)
        figures = {name: (getattr(used, name), getattr(limits, name)) for name in quotas.FIGURES}
        if request.template is not None:
            figures = _stricter(session, user, request.template, figures)
        return QuotaUsage(
            user=user.name,
            figures=[
                QuotaFigure(
                    name=name,
                    title=quotas.WORDS[name][0],
                    unit=quotas.WORDS[name][1].strip(),
                    used=has,
                    limit=limit,
                    left=None if limit is None else max(0, limit - has),
                )
                for name, (has, limit) in figures.items()
            ],
        )


def quota_set(context: Context, caller: Caller, request: SetQuota) -> QuotaView:
    """Replaces the row. What is used already stays: limits hold for what is asked from now on."""
    detail = request.model_dump(exclude_none=True)
    with context.audit.act(caller, "quota.set", target=f"{request.kind} {request.subject}", detail=detail) as act:
        require(caller, "quota:write", "admin")
        subject_id, name = _subject(act.session, request.kind, request.subject)
        row = _quota(act.session, request.kind, subject_id)
        if row is None:
            row = Quota(id=context.new_id(), subject_kind=request.kind, subject_id=subject_id)
            act.session.add(row)
        for figure in quotas.FIGURES:
            setattr(row, figure, getattr(request, figure))
        act.session.flush()
        return _quota_view(row, name)


def quota_remove(context: Context, caller: Caller, request: OneQuota) -> Done:
    with context.audit.act(caller, "quota.remove", target=f"{request.kind} {request.subject}") as act:
        require(caller, "quota:write", "admin")
        subject_id, _ = _subject(act.session, request.kind, request.subject)
        row = _quota(act.session, request.kind, subject_id)
        if row is None:
            raise NoSuchThing(f"there is no quota of {request.kind} {request.subject}")
        act.session.delete(row)
    return Done(message="the quota is removed")


# Tokens.


def token_list(context: Context, caller: Caller, request: ListTokens) -> list[TokenView]:
    require(caller, "token:read")
    with context.database.read() as session:
        user_id = caller.user_id
        if request.user is not None:
            require(caller, "token:read", "admin")
            user_id = people.find_user(session, request.user).id
        rows = session.scalars(select(ApiToken).where(ApiToken.user_id == user_id).order_by(ApiToken.id))
        return [_token_view(session, row, context.now()) for row in rows]


def token_create(context: Context, caller: Caller, request: CreateToken) -> NewTokenAnswer:
    """The answer has the token; it is told this once. A token makes none that may more than itself. Refused
    where there are too many."""
    detail = {"scopes": request.scopes, "days": request.days}
    with context.audit.act(caller, "token.create", target=request.name, detail=detail) as act:
        require(caller, "token:write")
        try:
            scopes = check_scopes(request.scopes)
        except ValueError as error:
            raise Invalid(str(error), details={"scopes": str(error)}) from error
        for scope in scopes:
            if not allows(caller.scopes, scope):
                raise Forbidden(f"this token may not make one with the scope {scope}", hint="sign in to make it")
        if caller.scopes is not None and caller.via != "browser" and request.days is None:
            raise Forbidden("a token may not make one that never expires", hint="say for how many days, or sign in")
        user = act.session.get_one(User, caller.user_id)
        expires_at = None if request.days is None else context.now() + request.days * DAY_S
        made = tokens.create(act.session, context, user, request.name, scopes, expires_at)
        act.detail["id"] = made.row.id
        return NewTokenAnswer(token=_token_view(act.session, made.row, context.now()), secret=made.text)


def token_revoke(context: Context, caller: Caller, request: OneToken) -> Done:
    """At once. Admins revoke anybody's."""
    with context.audit.act(caller, "token.revoke", target=request.token) as act:
        require(caller, "token:write")
        row = act.session.get(ApiToken, request.token)
        if row is None or (row.user_id != caller.user_id and caller.role != "admin"):
            raise NoSuchThing(f"there is no token {request.token!r}", hint="s3-envctl token list shows yours")
        row.revoked_at = row.revoked_at or context.now()
    return Done(message="the token is revoked")


# Parts.


def refuse_early(context: Context, caller: Caller, verb: str, scope: str, role: Role, target: str) -> None:
    """Before a password is hashed: who may not do it must not make us work. Leaves its row in the audit."""
    try:
        require(caller, scope, role)
    except Forbidden:
        with context.audit.act(caller, verb, target=target):
            raise


def _set_groups(session: Session, user: User, names: Iterable[str]) -> None:
    wanted = {people.find_group(session, name).id for name in names}
    held = set(session.scalars(select(Membership.group_id).where(Membership.user_id == user.id)))
    session.execute(
        delete(Membership).where(Membership.user_id == user.id, Membership.group_id.in_(sorted(held - wanted)))
    )
    session.add_all(Membership(user_id=user.id, group_id=group_id) for group_id in sorted(wanted - held))
    session.flush()


def _set_members(session: Session, group: Group, names: Iterable[str]) -> None:
    wanted = {people.find_user(session, name).id for name in names}
    held = set(session.scalars(select(Membership.user_id).where(Membership.group_id == group.id)))
    session.execute(
        delete(Membership).where(Membership.group_id == group.id, Membership.user_id.in_(sorted(held - wanted)))
    )
    session.add_all(Membership(user_id=user_id, group_id=group.id) for user_id in sorted(wanted - held))
    session.flush()


def _set_claim(session: Session, group: Group, value: str | None) -> None:
    if value is not None:
        other = session.scalar(select(Group).where(Group.oidc_value == value))
        if other is not None and other.id != group.id:
            raise Refused(f"group {other.name} has that value of the claim already")
    group.oidc_value = value


def _subject(session: Session, kind: QuotaKind, name: str) -> tuple[str, str]:
    """Id and name."""
    if kind == "default":
        if name not in ("", "-"):
            raise Invalid("the default has no subject", details={"subject": "`-` for the default"})
        return "", ""
    if kind == "user":
        user = people.find_user(session, name)
        return user.id, user.name
    if kind == "group":
        group = people.find_group(session, name)
        return group.id, group.name
    template = session.get(Template, name) or session.scalar(select(Template).where(Template.name == name))
    if template is None:
        raise NoSuchThing(f"there is no template {name!r}")
    return template.id, template.name


def _subject_name(session: Session, kind: str, subject_id: str) -> str:
    row: User | Group | Template | None = None
    if kind == "user":
        row = session.get(User, subject_id)
    elif kind == "group":
        row = session.get(Group, subject_id)
    elif kind == "template":
        row = session.get(Template, subject_id)
    return row.name if row is not None else subject_id


def _quota(session: Session, kind: str, subject_id: str) -> Quota | None:
    return session.scalar(select(Quota).where(Quota.subject_kind == kind, Quota.subject_id == subject_id))


def _quota_view(row: Quota, subject: str) -> QuotaView:
    figures = {name: getattr(row, name) for name in quotas.FIGURES}
    return QuotaView(kind=cast(QuotaKind, row.subject_kind), subject=subject, **figures)


def _stricter(
    session: Session, user: User, template_name: str, figures: dict[str, tuple[int, int | None]]
) -> dict[str, tuple[int, int | None]]:
    """Each figure by whichever row leaves less: that of all, or that of the template."""
    template_id, _ = _subject(session, "template", template_name)
    row = _quota(session, "template", template_id)
    if row is None:
        return figures
    used = quotas.usage_of(session, user.id, template_id=template_id)

    def left(figure: tuple[int, int | None]) -> float:
        return float("inf") if figure[1] is None else figure[1] - figure[0]

    return {
        name: min(of_all, (getattr(used, name), cast(int | None, getattr(row, name))), key=left)
        for name, of_all in figures.items()
    }


def _token_view(session: Session, row: ApiToken, now_s: float) -> TokenView:
    user = session.get_one(User, row.user_id)
    expired = row.expires_at is not None and row.expires_at <= now_s
    return TokenView(
        id=row.id,
        name=row.name,
        user=user.name,
        scopes=row.scopes,
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        last_used_from=row.last_used_from or "",
        revoked_at=row.revoked_at,
        usable=row.revoked_at is None and not expired and user.enabled,
    )


VERBS: Final = (
    Verb("user.list", "GET", "/users", "user:read", user_list, ListUsers, list[UserView], "List users", "operator"),
    Verb("user.add", "POST", "/users", "user:write", user_add, AddUser, PasswordAnswer, "Add a user", "admin"),
    Verb("user.show", "GET", "/users/{user}", "user:read", user_show, OneUser, UserView, "Show a user", "operator"),
    Verb(
        "user.update", "PATCH", "/users/{user}", "user:write", user_update, UpdateUser, UserView,
        "Change a user's role, groups, or whether they may sign in", "admin",
    ),
    Verb(
        "user.password", "POST", "/users/{user}/password", "user:write", user_password, OneUser, PasswordAnswer,
        "Give a user a one-time password and end their sign-ins", "admin", destructive=True,
    ),
    Verb(
        "user.totp_off", "POST", "/users/{user}/totp-off", "user:write", user_totp_off, OneUser, UserView,
        "Take a user's lost second factor away", "admin", destructive=True,
    ),
    Verb(
        "user.logout", "POST", "/users/{user}/logout", "user:write", user_logout, OneUser, Done,
        "End every sign-in of a user", "admin", destructive=True,
    ),
    Verb(
        "user.remove", "DELETE", "/users/{user}", "user:write", user_remove, OneUser, Done,
        "Remove a user who never had an environment", "admin", destructive=True,
    ),
    Verb("group.list", "GET", "/groups", "group:read", group_list, Nothing, list[GroupView], "List groups", "operator"),
    Verb("group.add", "POST", "/groups", "group:write", group_add, AddGroup, GroupView, "Add a group", "admin"),
    Verb(
        "group.update", "PATCH", "/groups/{group}", "group:write", group_update, UpdateGroup, GroupView,
        "Change a group's role, claim or members", "admin",
    ),
    Verb(
        "group.join", "PUT", "/groups/{group}/members/{user}", "group:write", group_join, GroupMember, GroupView,
        "Put a user into a group", "admin",
    ),
    Verb(
        "group.leave", "DELETE", "/groups/{group}/members/{user}", "group:write", group_leave, GroupMember, GroupView,
        "Take a user out of a group", "admin",
    ),
    Verb(
        "group.remove", "DELETE", "/groups/{group}", "group:write", group_remove, OneGroup, Done, "Remove a group",
        "admin", destructive=True,
    ),
    Verb("quota.list", "GET", "/quotas", "quota:read", quota_list, Nothing, list[QuotaView], "List quotas", "admin"),
    Verb(
        "quota.show", "GET", "/quota", "quota:read", quota_show, ShowQuota, QuotaUsage, "Show what is used and what is left"
    ),
    Verb(
        "quota.set", "PUT", "/quotas/{kind}/{subject}", "quota:write", quota_set, SetQuota, QuotaView,
        "Set the limits of a user, a group, a template, or the default", "admin",
    ),
    Verb(
        "quota.remove", "DELETE", "/quotas/{kind}/{subject}", "quota:write", quota_remove, OneQuota, Done,
        "Remove a row of limits", "admin", destructive=True,
    ),
    Verb("token.list", "GET", "/tokens", "token:read", token_list, ListTokens, list[TokenView], "List API tokens"),
    Verb("token.create", "POST", "/tokens", "token:write", token_create, CreateToken, NewTokenAnswer, "Make an API token"),
    Verb(
        "token.revoke", "DELETE", "/tokens/{token}", "token:write", token_revoke, OneToken, Done, "Revoke an API token",
        destructive=True,
    ),
)  # fmt: skip
