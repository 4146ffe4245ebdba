"""What is asked and answered about people: users, groups, quotas, tokens, the own account, the audit. Values alone.

One rule: no answer holds a secret, but those that are told once (`NewTokenAnswer`, `PasswordAnswer`, `TotpBegun`,
`RecoveryCodes`).
"""

from typing import Literal

from pydantic import Field

from envctl.calling import Role
from envctl.verbs.verb import Answer, Request

QuotaKind = Literal["default", "user", "group", "template"]


# What is asked.


class OneUser(Request):
    user: str = Field(max_length=64, description="name or id of a user")


class ListUsers(Request):
    search: str | None = Field(default=None, max_length=64, description="part of name, display name or e-mail address")


class AddUser(Request):
    name: str = Field(description="a-z, 0-9 and '-'; it cannot be changed")
    role: Role = Field(default="user", description="user, operator or admin")
    display_name: str = Field(default="", max_length=128, description="as people call them")
    email: str = Field(default="", max_length=254, description="e-mail address")
    password: str | None = Field(
        default=None, max_length=256, description="empty: a one-time password is made and told once"
    )
    groups: list[str] = Field(default_factory=list, description="names of groups")


class UpdateUser(OneUser):
    """What is not named stays as it is."""

    role: Role | None = Field(default=None, description="user, operator or admin")
    enabled: bool | None = Field(
        default=None, description="off: every sign-in ends, tokens do nothing; environments stay"
    )
    display_name: str | None = Field(default=None, max_length=128, description="as people call them")
    email: str | None = Field(default=None, max_length=254, description="e-mail address")
    groups: list[str] | None = Field(default=None, description="names of all groups that the user shall be in")


class OneGroup(Request):
    group: str = Field(max_length=64, description="name or id of a group")


class AddGroup(Request):
    name: str = Field(description="a-z, 0-9 and '-'")
    oidc_value: str | None = Field(
        default=None, max_length=256, description="whoever has this value in the groups claim is a member"
    )
    role: Role | None = Field(default=None, description="members have at least this role")
    members: list[str] = Field(default_factory=list, description="names of users")


class UpdateGroup(OneGroup):
    """What is not named stays as it is."""

    oidc_value: str | None = Field(default=None, max_length=256, description="value of the groups claim; `-`: none")
    role: Literal["user", "operator", "admin", "-"] | None = Field(
        default=None, description="members have at least this role; `-`: none"
    )
    members: list[str] | None = Field(default=None, description="names of all users that shall be members")


class GroupMember(OneGroup):
    user: str = Field(max_length=64, description="name or id of a user")


class ShowQuota(Request):
    user: str | None = Field(default=None, max_length=64, description="of this user (admins); empty: your own")
    template: str | None = Field(
        default=None, max_length=64, description="what is left for environments of this template"
    )


class OneQuota(Request):
    kind: QuotaKind = Field(description="default, user, group or template")
    subject: str = Field(max_length=64, description="name of the user, group or template; `-` for the default")


class SetQuota(OneQuota):
    """Replaces the whole row: what is empty has no limit in it."""

    environments: int | None = Field(default=None, ge=0, description="that are not deleted")
    running: int | None = Field(default=None, ge=0, description="environments that run at once")
    cores: int | None = Field(default=None, ge=0, description="of running environments together")
    memory_mib: int | None = Field(default=None, ge=0, description="of running environments together")
    disk_gib: int | None = Field(default=None, ge=0, description="of all that are not deleted")
    home_gib: int | None = Field(default=None, ge=0, description="of all homes, as stored")


class CreateToken(Request):
    name: str = Field(min_length=1, max_length=64, description="what it is for")
    scopes: list[str] = Field(
        min_length=1, max_length=64, description="such as env:read, env:write, backup:read; *: everything"
    )
    days: int | None = Field(default=90, ge=1, le=3650, description="until it expires; empty: never")


class ListTokens(Request):
    user: str | None = Field(default=None, max_length=64, description="of this user (admins); empty: your own")


class OneToken(Request):
    token: str = Field(max_length=64, description="id of the token, as `token list` shows it")


class UpdateProfile(Request):
    """What is not named stays as it is."""

    theme: Literal["system", "light", "dark"] | None = Field(default=None, description="of the pages")
    display_name: str | None = Field(default=None, max_length=128, description="as people call you")
    email: str | None = Field(default=None, max_length=254, description="e-mail address")


class ChangePassword(Request):
    current_password: str = Field(max_length=256, description="the one of now")
    new_password: str = Field(max_length=256, description="at least 12 characters")


class Proof(Request):
    current_password: str = Field(
        default="", max_length=256, description="your password, as a proof; empty for accounts without one"
    )


class ConfirmTotp(Request):
    code: str = Field(max_length=16, description="six digits that the authenticator shows")


class SetKeys(Request):
    keys: list[str] = Field(max_length=32, description="public SSH keys, all of them")


class EndLogin(Request):
    login: str = Field(max_length=64, description="as `profile logins` shows it")


class AskAudit(Request):
    before: int | None = Field(default=None, ge=1, description="rows with a smaller number, for the next page")
    limit: int = Field(default=100, ge=1, le=1000, description="at most so many, the newest first")
    actor: str | None = Field(default=None, max_length=64, description="by this user")
    verb: str | None = Field(default=None, max_length=48, description="this verb, or all of a noun: env")
    environment: str | None = Field(default=None, max_length=64, description="id of an environment")
    outcome: str | None = Field(default=None, max_length=16, description="ok, or the code of an error")
    since: float | None = Field(default=None, description="Unix seconds")
    until: float | None = Field(default=None, description="Unix seconds")


# What is answered.


class UserView(Answer):
    id: str
    name: str
    display_name: str
    email: str
    role: Role
    effective_role: Role
    """With what groups give."""
    enabled: bool
    source: Literal["local", "oidc"]
    second_factor: bool
    password_must_change: bool
    groups: list[str]
    environments: int
    created_at: float
    last_login_at: float | None


class PasswordAnswer(Answer):
    user: UserView
    one_time_password: str | None
    """Told once; it must be changed at the next sign-in. None: the password was given."""


class GroupView(Answer):
    id: str
    name: str
    oidc_value: str | None
    role: Role | None
    members: list[str]
    created_at: float


class QuotaView(Answer):
    kind: QuotaKind
    subject: str
    """Name; empty for the default."""
    environments: int | None
    running: int | None
    cores: int | None
    memory_mib: int | None
    disk_gib: int | None
    home_gib: int | None


class QuotaFigure(Answer):
    name: str
    title: str
    unit: str
    used: int
    limit: int | None
    left: int | None


class QuotaUsage(Answer):
    user: str
    figures: list[QuotaFigure]

    def figure(self, name: str) -> QuotaFigure:
        return next(figure for figure in self.figures if figure.name == name)


class TokenView(Answer):
    id: str
    name: str
    user: str
    scopes: list[str]
    created_at: float
    expires_at: float | None
    last_used_at: float | None
    last_used_from: str
    revoked_at: float | None
    usable: bool


class NewTokenAnswer(Answer):
    token: TokenView
    secret: str
    """The token itself: `Authorization: Bearer ...`. Told once."""


class ProfileView(Answer):
    user: UserView
    theme: str
    ssh_keys: list[str]
    recovery_codes_left: int
    must: Literal["", "password", "totp"]
    """What has to be done before anything else."""
    has_password: bool


class TotpBegun(Answer):
    secret: str
    """Base 32, to type in."""
    uri: str
    qr_png: str
    """The same as an image: a `data:` address."""


class RecoveryCodes(Answer):
    codes: list[str]
    """Each works once. Told once."""


class LoginView(Answer):
    id: str
    this: bool
    """The one that asks."""
    created_at: float
    seen_at: float
    expires_at: float
    address: str
    agent: str


class AuditView(Answer):
    id: int
    at: float
    actor: str
    via: str
    address: str
    verb: str
    target: str
    environment_id: str | None
    outcome: str
    detail: dict[str, object]


class AuditPage(Answer):
    rows: list[AuditView]
    before: int | None
    """For the next page; None: this is the last."""
