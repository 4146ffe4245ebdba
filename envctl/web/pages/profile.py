"""The own account: password, second factor, recovery codes, API tokens, SSH keys, sign-ins, theme, quota."""

from collections.abc import Callable, Mapping
from typing import Final

from fastapi import Response

from envctl.accounts.scopes import NOUNS, SCOPES
from envctl.errors import EnvctlError, NoSuchThing
from envctl.web.pages.visit import Page, Visit

THEMES: Final = (("system", "as the system"), ("light", "light"), ("dark", "dark"))
TOKEN_DAYS: Final = (("30", "30 days"), ("90", "90 days"), ("365", "a year"), ("", "never"))


def profile(visit: Visit) -> Response:
    return profile_of(visit)


def profile_of(visit: Visit, problem: EnvctlError | None = None, at: str = "", **told: object) -> Response:
    """`at`: the form that `problem` belongs to. `told`: secrets that are shown once, now."""
    must = visit.must
    return visit.page(
        "profile.html",
        problem=problem,
        at=at,
        profile=visit.ask("profile.show"),
        must=must,
        themes=THEMES,
        token_days=TOKEN_DAYS,
        scopes=[scope for scope in SCOPES if scope != "*"],
        nouns=NOUNS,
        # Whoever has to see to the account first may not ask for these.
        tokens=[] if must else [token for token in visit.ask("token.list") if token.revoked_at is None],
        logins=visit.ask("profile.logins"),
        quota=None if must else visit.ask("quota.show"),
        typed={name: visit.field(name) for name in ("token_name", "days")},
        chosen_scopes=visit.fields("scope"),
        keys=visit.raw("keys") if at == "keys" else "",
        totp=told.get("totp"),
        codes=told.get("codes"),
        new_token=told.get("new_token"),
    )


def theme(visit: Visit) -> None:
    visit.ask(
        "profile.update",
        theme=visit.field("theme"),
        display_name=visit.field("display_name"),
        email=visit.field("email"),
    )


def password(visit: Visit) -> None:
    visit.ask(
        "profile.password", current_password=visit.raw("current_password"), new_password=visit.raw("new_password")
    )


def totp_off(visit: Visit) -> None:
    visit.ask("profile.totp_off", current_password=visit.raw("current_password"))


def keys(visit: Visit) -> None:
    visit.ask("profile.keys", keys=visit.lines("keys"))


def logout(visit: Visit) -> None:
    visit.ask("profile.logout", login=visit.field("login"))


def logout_everywhere(visit: Visit) -> None:
    visit.ask("profile.logout_everywhere")


def revoke(visit: Visit) -> None:
    visit.ask("token.revoke", token=visit.field("token"))


FORMS: Final[Mapping[str, tuple[Callable[[Visit], None], str]]] = {
    "theme": (theme, "profile.theme"),
    "password": (password, "profile.password"),
    "totp-off": (totp_off, "profile.totp_off"),
    "keys": (keys, "profile.keys"),
    "logout": (logout, "profile.logout"),
    "logout-everywhere": (logout_everywhere, "profile.logout"),
    "revoke": (revoke, "token.revoke"),
}
"""Each form by the last part of its address, with what is said afterwards."""


def change(visit: Visit) -> Response:
    name = visit.part("form")
    if name in TOLD_ONCE:
        return told_once(visit, name)
    if name not in FORMS:
        raise NoSuchThing("there is no such page")
    function, done = FORMS[name]
    try:
        function(visit)
    except EnvctlError as problem:
        return profile_of(visit, problem, name)
    return visit.go("/profile", done)


TOLD_ONCE: Final = ("totp-begin", "totp-confirm", "codes", "token")


def told_once(visit: Visit, name: str) -> Response:
    """What is drawn at once, because it is told once: after a redirect it would be gone."""
    try:
        if name == "totp-begin":
            return profile_of(
                visit, totp=visit.ask("profile.totp_begin", current_password=visit.raw("current_password"))
            )
        if name == "totp-confirm":
            return profile_of(visit, codes=visit.ask("profile.totp_confirm", code=visit.field("code")).codes)
        if name == "codes":
            answer = visit.ask("profile.recovery_codes", current_password=visit.raw("current_password"))
            return profile_of(visit, codes=answer.codes)
        scopes = ["*"] if visit.checked("everything") else visit.fields("scope")
        answer = visit.ask("token.create", name=visit.field("token_name"), scopes=scopes, days=visit.whole("days"))
        return profile_of(visit, new_token=answer)
    except EnvctlError as problem:
        return profile_of(visit, problem, name)


PAGES: Final = (
    Page("GET", "/profile", profile),
    Page("POST", "/profile/{form}", change),
)
