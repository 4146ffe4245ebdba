"""Signing in with an identity provider, and what happens when one lies or an answer is somebody else's."""

import base64
import hmac
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey
from sqlalchemy import select

from envctl.accounts.oidc import Provider, free_name
from envctl.accounts.people import find_user, groups_of
from envctl.database.models import AuditRow, User
from envctl.verbs import people
from envctl.verbs.people_models import AddGroup, GroupMember, UpdateUser
from tests.envctl.security.identity_provider import CLIENT, SECRET, Claims, IdentityProvider
from tests.envctl.security.site import Browser, Site
from tests.envctl.world import World

START = "/login/oidc"


class Setting:
    """A console that knows the provider."""

    def __init__(self, new_world: Callable[..., World], provider: IdentityProvider, **settings: Any) -> None:
        oidc = {"issuer": provider.issuer, "client_id": CLIENT, "title": "Example", **settings}
        self.world = new_world(oidc=oidc)
        provider._now = self.world.context.now
        callback = "https://console.example/login/oidc/callback"
        context = self.world.context
        self.console = Provider(context.settings.oidc, callback, context.clock, secret=SECRET)
        self.site = Site(self.world, provider=self.console)
        self.provider = provider

    def begin(self, browser: Browser, path: str = START) -> str:
        answer = browser.get(path)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    def sign_in(self, browser: Browser | None = None, path: str = START) -> Browser:
        """The whole way; the browser, whoever it is afterwards."""
        browser = browser or self.site.browser()
        self.last = browser.get(self.provider.sign_in(self.begin(browser, path)))
        return browser


@pytest.fixture
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as made:
        yield made


@pytest.fixture
def setting(new_world: Callable[..., World], provider: IdentityProvider) -> Setting:
    return Setting(new_world, provider)


def name_of(browser: Browser) -> str:
    answer = browser.get("/api/v1/profile")
    return str(answer.json()["user"]["name"]) if answer.status_code == 200 else ""


def test_somebody_signs_in_and_is_the_same_the_next_time(setting: Setting) -> None:
    browser = setting.sign_in(path=START + "?next=/profile")
    assert setting.last.headers["location"] == "/profile"
    assert name_of(browser) == "carol"
    (flags,) = [line for line in setting.last.headers.get_list("set-cookie") if line.startswith("__Host-envctl=")]
    assert "HttpOnly" in flags
    setting.provider.person = {"sub": "17", "preferred_username": "carol-married", "email": "c@example.org"}
    again = setting.sign_in()
    assert name_of(again) == "carol"
    with setting.world.database.read() as session:
        user = find_user(session, "carol")
        assert (user.email, user.password_hash, user.oidc_subject) == ("c@example.org", None, "17")


def test_a_name_that_is_taken_is_not_taken_over(setting: Setting) -> None:
    """An account is issuer and subject: whoever calls himself `root` there is not root here."""
    setting.provider.person = {"sub": "18", "preferred_username": "root", "email": "root@example.org"}
    browser = setting.sign_in()
    assert name_of(browser) == "root-2"
    assert browser.get("/api/v1/users").status_code == 403


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("Carol C.", "carol-c"),
        ("", "user"),
        ("../../etc", "etc"),
        ("42", "user-42"),
        ("Ünal", "nal"),
        ("x" * 100, "x" * 32),
    ],
)
def test_names_become_names_of_ours(world: World, told: str, name: str) -> None:
    with world.database.read() as session:
        assert free_name(session, told) == name


def test_groups_follow_the_claim_and_an_admins_word_stays(setting: Setting) -> None:
    root = setting.world.caller("root")
    context = setting.world.context
    for group, claim in (("staff", "example-staff"), ("ops", "example-ops"), ("mine", None)):
        people.group_add(
            context, root, AddGroup(name=group, oidc_value=claim, role="operator" if group == "ops" else None)
        )

    def groups() -> list[str]:
        with setting.world.database.read() as session:
            return [group.name for group in groups_of(session, find_user(session, "carol").id)]

    setting.provider.person["groups"] = ["example-staff", "example-ops", "unknown"]
    browser = setting.sign_in()
    assert groups() == ["ops", "staff"]
    assert browser.get("/api/v1/users").status_code == 200
    people.group_join(context, root, GroupMember(group="mine", user="carol"))
    setting.provider.person["groups"] = "example-staff"
    setting.sign_in()
    assert groups() == ["mine", "staff"]
    assert browser.get("/api/v1/users").status_code == 403
    del setting.provider.person["groups"]
    setting.sign_in()
    assert groups() == ["mine", "staff"]


def test_a_disabled_account_stays_out(setting: Setting) -> None:
    setting.sign_in()
    people.user_update(setting.world.context, setting.world.caller("root"), UpdateUser(user="carol", enabled=False))
    browser = setting.sign_in()
    assert setting.last.status_code == 409
    assert name_of(browser) == ""


def test_accounts_are_made_only_where_that_is_allowed(
    new_world: Callable[..., World], provider: IdentityProvider
) -> None:
    setting = Setting(new_world, provider, create_users=False)
    browser = setting.sign_in()
    assert name_of(browser) == ""
    with setting.world.database.read() as session:
        assert session.scalar(select(User).where(User.oidc_subject.is_not(None))) is None
        assert session.scalars(select(AuditRow.outcome).order_by(AuditRow.id.desc())).first() == "refused"


def test_an_account_of_the_provider_has_no_password_here(setting: Setting) -> None:
    setting.sign_in()
    for password in ("", "x", "four words about nothing"):
        assert setting.site.browser().sign_in("carol", password).status_code == 401


# Somebody else's answer.


def test_an_answer_is_for_the_browser_that_began(setting: Setting) -> None:
    """An attacker's own answer, given to a victim, must not sign the victim in as the attacker."""
    attacker, victim = setting.site.browser(), setting.site.browser()
    callback = setting.provider.sign_in(setting.begin(attacker))
    assert victim.get(callback).status_code == 401
    assert name_of(victim) == ""
    setting.begin(victim)
    assert victim.get(callback).status_code == 401
    assert name_of(victim) == ""
    assert attacker.get(callback).status_code == 303


def test_an_answer_counts_once(setting: Setting) -> None:
    browser = setting.site.browser()
    callback = setting.provider.sign_in(setting.begin(browser))
    kept = browser.cookies["__Host-envctl-oidc"]
    assert browser.get(callback).status_code == 303
    thief = setting.site.browser()
    thief.client.cookies.set("__Host-envctl-oidc", kept, domain="console.example")
    assert thief.get(callback).status_code == 401
    assert name_of(thief) == ""


def test_a_state_counts_once_even_with_a_new_code(setting: Setting) -> None:
    """The provider lets one authorisation be redeemed twice: the console still takes the first answer alone."""
    browser = setting.site.browser()
    address = setting.begin(browser)
    first, second = setting.provider.sign_in(address), setting.provider.sign_in(address)
    kept = browser.cookies["__Host-envctl-oidc"]
    assert browser.get(first).status_code == 303
    thief = setting.site.browser()
    thief.client.cookies.set("__Host-envctl-oidc", kept, domain="console.example")
    assert thief.get(second).status_code == 401
    assert name_of(thief) == ""


def test_a_stolen_code_is_worth_nothing_in_another_sign_in(setting: Setting) -> None:
    victim, attacker = setting.site.browser(), setting.site.browser()
    code = setting.provider.sign_in(setting.begin(victim)).partition("code=")[2].partition("&")[0]
    callback = setting.provider.sign_in(setting.begin(attacker))
    own = callback.partition("code=")[2].partition("&")[0]
    answer = attacker.get(callback.replace(own, code))
    assert answer.status_code == 401
    assert name_of(attacker) == ""


def test_a_sign_in_that_took_too_long_is_begun_again(setting: Setting) -> None:
    browser = setting.site.browser()
    callback = setting.provider.sign_in(setting.begin(browser))
    setting.world.clock.now += 601
    assert browser.get(callback).status_code == 401


def test_another_issuers_answer_is_not_taken(setting: Setting) -> None:
    """RFC 9207: mix-up."""
    for told in ("https://evil.example", "", None):
        browser = setting.site.browser()
        callback = setting.provider.sign_in(setting.begin(browser))
        path, _, _ = callback.partition("&iss=")
        asked = len(setting.provider.asked)
        answer = browser.get(path if told is None else f"{path}&iss={told}")
        assert answer.status_code == 401
        assert not any("token" in path for path in setting.provider.asked[asked:])
        assert name_of(browser) == ""


def test_an_error_of_the_provider_is_told_without_its_words(setting: Setting) -> None:
    browser = setting.site.browser()
    callback = setting.provider.sign_in(setting.begin(browser))
    state = callback.partition("state=")[2].partition("&")[0]
    error = "error=access_denied&error_description=<script>alert(1)</script>"
    answer = browser.get(f"/login/oidc/callback?state={state}&iss={setting.provider.issuer}&{error}")
    assert answer.status_code == 401
    assert "<script>alert" not in answer.text
    assert "alert(1)" not in answer.text


# Tokens that are not good.


def with_claims(**changed: Any) -> Callable[[Claims], Claims]:
    return lambda claims: {name: value for name, value in (claims | changed).items() if value is not None}


NOT_OURS: tuple[dict[str, Any], ...] = (
    {"iss": "https://evil.example"},
    {"iss": None},
    {"aud": "another"},
    {"aud": None},
    {"aud": ["console", "another"]},
    {"aud": ["console", "another"], "azp": "another"},
    {"azp": "another"},
    {"nonce": "x"},
    {"nonce": None},
    {"sub": None},
    {"sub": ""},
    {"sub": "x" * 256},
    {"exp": 1_600_000_000},
    {"exp": None},
    {"nbf": 4_000_000_000},
    {"iat": None},
)


def test_claims_that_are_not_ours_sign_nobody_in(setting: Setting) -> None:
    for change in NOT_OURS:
        setting.provider.change = with_claims(**change)
        browser = setting.sign_in()
        assert setting.last.status_code == 401, change
        assert name_of(browser) == "", change
        assert "__Host-envctl" not in browser.cookies
    setting.provider.change = with_claims(aud=["console", "another"], azp="console", nbf=1_600_000_000)
    assert name_of(setting.sign_in()) == "carol"


def test_signatures_that_are_not_the_providers_sign_nobody_in(setting: Setting) -> None:
    other = RSAKey.generate_key(2048, parameters={"kid": "one"})
    public = setting.provider.key.as_pem(private=False)

    def part(value: Any) -> str:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    def unsigned(claims: Claims) -> str:
        return f"{part({'alg': 'none'})}.{part(claims)}."

    def hmac_with_the_public_key(claims: Claims) -> str:
        text = f"{part({'alg': 'HS256', 'kid': 'one'})}.{part(claims)}"
        return f"{text}.{part(hmac.digest(public, text.encode(), 'sha256'))}"

    def changed_after(claims: Claims) -> str:
        head, _, signature = setting.provider._signed(claims).split(".")
        return f"{head}.{part(claims | {'sub': '1'})}.{signature}"

    liars: list[Callable[[Claims], str]] = [
        lambda claims: jwt.encode({"alg": "RS256", "kid": "one"}, claims, other),
        lambda claims: jwt.encode({"alg": "RS256", "kid": "two"}, claims, other),
        unsigned,
        hmac_with_the_public_key,
        changed_after,
        lambda claims: "no.token.at-all",
        lambda claims: "",
    ]
    for sign in liars:
        setting.provider.sign = sign
        browser = setting.sign_in()
        assert setting.last.status_code in (401, 502), sign
        assert name_of(browser) == ""


def test_new_keys_of_the_provider_are_fetched_but_not_for_every_token(setting: Setting) -> None:
    setting.sign_in()
    new = RSAKey.generate_key(2048, parameters={"kid": "two"})
    setting.provider.published = KeySet([new])
    setting.provider.sign = lambda claims: jwt.encode({"alg": "RS256", "kid": "two"}, claims, new)
    for _ in range(3):
        setting.sign_in()
        assert setting.last.status_code == 401
    assert setting.provider.asked.count("/realm/keys") == 1
    setting.world.clock.now += 61
    assert name_of(setting.sign_in()) == "carol"
    assert setting.provider.asked.count("/realm/keys") == 2


# Providers that cannot be trusted, or asked.


def test_a_provider_that_calls_itself_otherwise_is_not_asked(setting: Setting) -> None:
    setting.provider.names_itself = "https://evil.example"
    answer = setting.site.browser().get(START)
    assert answer.status_code == 502
    assert "location" not in answer.headers


def test_a_provider_over_plain_http_elsewhere_is_not_asked(new_world: Callable[..., World]) -> None:
    world = new_world(oidc={"issuer": "http://id.example", "client_id": CLIENT})
    provider = Provider(world.context.settings.oidc, "https://console.example/x", world.context.clock)
    answer = Site(world, provider=provider).browser().get(START)
    assert answer.status_code == 502
    assert "https" in answer.text


def test_a_provider_that_is_away_is_told(new_world: Callable[..., World]) -> None:
    with IdentityProvider() as gone:
        setting = Setting(new_world, gone)
    answer = setting.site.browser().get(START)
    assert answer.status_code == 502
    assert "does not answer" in answer.text


def test_without_a_provider_there_is_no_door(site: Site) -> None:
    assert site.browser().get(START).headers["location"] == "/login"
    assert site.browser().get("/login/oidc/callback?code=x&state=y").headers["location"] == "/login"
    assert "Single sign-on" not in site.browser().get("/login").text
