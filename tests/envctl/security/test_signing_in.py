"""Signing in: cookies, rotation, expiry, the second factor, and what a stranger learns."""

import logging
import re
from collections.abc import Callable

import httpx
import pyotp
import pytest
from sqlalchemy import select
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from envctl.accounts import limits, passwords, totp
from envctl.accounts.people import find_user
from envctl.database.models import Attempt, AuditRow, Login
from envctl.web.security import Security
from tests.envctl.security.site import ORIGIN, Browser, Site
from tests.envctl.world import CHEAP, PASSWORD, World

COOKIE = "__Host-envctl"


def set_cookies(answer: object) -> list[str]:
    headers = answer.headers  # type: ignore[attr-defined]  # a response
    return [line for line in headers.get_list("set-cookie") if "Max-Age=0" not in line]


def is_in(browser: Browser) -> bool:
    return browser.get("/environments").status_code == 200


def give_second_factor(world: World, name: str) -> tuple[str, list[str]]:
    """The secret, and recovery codes."""
    with world.database.write() as session:
        user = find_user(session, name)
        secret = totp.new_secret(world.context.random)
        user.totp_secret = totp.seal_secret(world.context.secrets, user.id, secret)
        user.totp_confirmed = True
        return secret, totp.new_recovery_codes(session, world.context, user)


# Cookies.


def test_cookies_have_their_flags(site: Site) -> None:
    browser = site.browser()
    answers = [browser.get("/login"), browser.sign_in("alice")]
    for answer, name in zip(answers, ("__Host-envctl-visit", COOKIE), strict=True):
        (cookie,) = set_cookies(answer)
        flags = {part.strip().lower() for part in cookie.split(";")[1:]}
        assert cookie.startswith(f"{name}=")
        assert {"secure", "httponly", "samesite=lax", "path=/"} <= flags
        assert not any(flag.startswith("domain") for flag in flags)
        value = cookie.partition("=")[2].partition(";")[0]
        assert len(value) >= 43
    assert answers[1].headers["location"] == "/environments"
    assert is_in(browser)


def test_over_plain_http_only_this_host_signs_in(new_site: Callable[..., Site]) -> None:
    site = new_site(url="", listen="127.0.0.1:8480")
    near = site.browser("127.0.0.1", "http://127.0.0.1:8480")
    answer = near.sign_in("alice")
    (cookie,) = set_cookies(answer)
    assert cookie.startswith("envctl=")
    assert "secure" not in cookie.lower()
    assert "httponly" in cookie.lower()
    assert is_in(near)
    far = site.browser("192.0.2.1", "http://console.example:8480")
    page = far.get("/login")
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found
    answer = far.client.post(
        "/login",
        data={"name": "alice", "password": PASSWORD, "csrf": found[1]},
        headers={"Origin": "http://console.example:8480"},
    )
    assert answer.status_code == 403
    assert set_cookies(answer) == []


def test_a_cookie_from_before_is_worth_nothing_after(site: Site) -> None:
    """Session fixation: whoever planted a value must not be signed in by the victim."""
    browser = site.browser()
    browser.client.cookies.set(COOKIE, "planted" * 7, domain="console.example")
    browser.sign_in("alice")
    planted = site.browser()
    planted.client.cookies.set(COOKIE, "planted" * 7, domain="console.example")
    assert not is_in(planted)
    first = browser.cookies[COOKIE]
    token = site.csrf_of(browser)
    browser.client.cookies.delete(COOKIE)
    browser.sign_in("alice")
    assert browser.cookies[COOKIE] != first
    assert site.csrf_of(browser) != token


def test_signing_in_ends_the_sign_in_of_before(site: Site, world: World) -> None:
    secret, _ = give_second_factor(world, "alice")
    browser = site.browser()
    browser.sign_in("alice")
    half = browser.cookies[COOKIE]
    code = pyotp.TOTP(secret).at(int(world.context.now()))
    browser.post("/login/second-factor", {"code": code}, csrf=browser.csrf("/login/second-factor"))
    assert is_in(browser)
    assert browser.cookies[COOKIE] != half
    with world.database.read() as session:
        assert [row.stage for row in session.scalars(select(Login))] == ["full"]
    thief = site.browser()
    thief.client.cookies.set(COOKIE, half, domain="console.example")
    assert not is_in(thief)


def test_the_database_has_no_cookie(site: Site, world: World) -> None:
    browser = site.browser()
    browser.sign_in("alice")
    content = b"".join(file.read_bytes() for file in world.directory.glob("envctl.sqlite3*"))
    assert browser.cookies[COOKIE].encode() not in content
    assert PASSWORD.encode() not in content


# Expiry.


def test_a_sign_in_ends_when_nobody_uses_it(site: Site, world: World) -> None:
    browser = site.browser()
    browser.sign_in("alice")
    idle = world.context.settings.session_idle_s
    for _ in range(3):
        world.clock.now += idle - 120
        assert is_in(browser)
    world.clock.now += idle + 1
    assert not is_in(browser)


def test_a_sign_in_ends_at_the_latest_however_busy(site: Site, world: World) -> None:
    browser = site.browser()
    browser.sign_in("alice")
    end = world.context.now() + world.context.settings.session_s
    step = world.context.settings.session_idle_s - 60
    while world.context.now() + step < end:
        world.clock.now += step
        assert is_in(browser)
    world.clock.now = world.clock.now + (end - world.context.now())
    assert not is_in(browser)


def test_signing_out_ends_it_at_the_console_too(site: Site) -> None:
    browser = site.browser()
    browser.sign_in("alice")
    kept = browser.cookies[COOKIE]
    answer = browser.post("/logout", csrf=site.csrf_of(browser))
    assert answer.headers["location"] == "/login"
    assert COOKIE not in browser.cookies
    browser.client.cookies.set(COOKIE, kept, domain="console.example")
    assert not is_in(browser)


def test_signing_out_everywhere_leaves_the_one_that_asks(site: Site) -> None:
    here, there, bob = site.signed_in("alice"), site.signed_in("alice"), site.signed_in("bob")
    headers = {"Origin": ORIGIN, "X-CSRF-Token": site.csrf_of(here)}
    assert here.client.post("/api/v1/profile/logout-everywhere", headers=headers).status_code == 200
    assert [is_in(one) for one in (here, there, bob)] == [True, False, True]


# What a stranger learns.


def test_a_stranger_learns_nothing_about_accounts(site: Site, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown, disabled, without a password, wrong password: one answer, and one hash is compared for each."""
    world.add_user("gone", enabled=False)
    world.add_user("sso", password_hash=None, oidc_issuer="https://id.example", oidc_subject="1")
    compared: list[str] = []

    class Counting:
        def verify(self, stored: str, password: str) -> bool:
            compared.append(stored)
            return CHEAP.verify(stored, password)

        hash = staticmethod(CHEAP.hash)
        check_needs_rehash = staticmethod(CHEAP.check_needs_rehash)

    monkeypatch.setattr(passwords, "HASHER", Counting())
    answers = []
    for number, name in enumerate(("alice", "nobody", "gone", "sso", "", "' OR 1=1 --", "x" * 5000)):
        # Wrong for alice, right for `gone`.
        password = PASSWORD if name == "gone" else "wrong password x"
        answer = site.browser(f"198.51.100.{number}").sign_in(name, password)
        shown = re.sub(r'value="[^"]*"', "", answer.text)
        answers.append((answer.status_code, shown, sorted(answer.headers)))
        assert set_cookies(answer) == []
    assert len(compared) == len(answers)
    assert {status for status, _, _ in answers} == {401}
    assert len({shown for _, shown, _ in answers}) == 1
    assert len({tuple(headers) for _, _, headers in answers}) == 1


def test_limits_tell_nothing_about_accounts_either(site: Site) -> None:
    def statuses(name: str) -> list[int]:
        return [site.browser(f"198.51.100.{n}").sign_in(name, "wrong password x").status_code for n in range(8)]

    assert statuses("alice") == statuses("nobody")


def test_guessing_at_an_account_waits_from_wherever_it_comes(site: Site, world: World) -> None:
    for number in range(limits.ACCOUNT.free + 1):
        assert site.browser(f"198.51.100.{number}").sign_in("alice", "wrong password x").status_code == 401
    answer = site.browser("203.0.113.9").sign_in("alice")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    world.clock.now += float(answer.headers["retry-after"])
    assert site.browser("203.0.113.9").sign_in("alice").status_code == 303
    with world.database.read() as session:
        assert session.get(Attempt, "account:alice") is None


def test_guessing_from_an_address_waits_whatever_the_account(site: Site, world: World) -> None:
    browser = site.browser("198.51.100.77")
    csrf = browser.csrf()
    for number in range(limits.ADDRESS.free + 1):
        answer = browser.post("/login", {"name": f"user-{number}", "password": "wrong password x"}, csrf=csrf)
        assert answer.status_code == 401
    assert browser.post("/login", {"name": "bob", "password": PASSWORD}, csrf=csrf).status_code == 429
    assert site.browser("203.0.113.9").sign_in("bob").status_code == 303


def test_an_address_cannot_be_made_up(new_site: Callable[..., Site]) -> None:
    """X-Forwarded-For counts from a proxy of ours alone, and there its last address that is none."""
    site = new_site(proxies=["10.0.0.0/8"])

    def told(peer: str, forwarded: str) -> str:
        answer = site.browser(peer)
        csrf = answer.csrf()
        answer.post("/login", {"name": "x", "password": "x"}, csrf=csrf, X_Forwarded_For=forwarded)
        with site.world.database.read() as session:
            return session.scalars(select(AuditRow.address).order_by(AuditRow.id.desc())).first() or ""

    assert told("198.51.100.1", "203.0.113.5") == "198.51.100.1"
    assert told("10.0.0.1", "203.0.113.5") == "203.0.113.5"
    assert told("10.0.0.1", "6.6.6.6, 203.0.113.5, 10.0.0.2") == "203.0.113.5"
    assert told("10.0.0.1", "rubbish") == "rubbish"


def test_what_lies_below_sees_the_same_address(new_world: Callable[..., World]) -> None:
    """A guest's seed is bound to the address that fetched it: to the guest's, not to the proxy's."""
    world = new_world(proxies=["10.0.0.1"])
    seen: list[object] = []

    async def below(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"][0])
        await PlainTextResponse("")(scope, receive, send)

    guarded = Security(below, lambda: world.context)
    for peer in ("10.0.0.1", "198.51.100.1"):
        Browser(guarded, peer).get("/seed/x/meta-data", headers={"X-Forwarded-For": "203.0.113.5"})
    assert seen == ["203.0.113.5", "198.51.100.1"]


# The second factor.


def test_the_password_alone_opens_nothing(site: Site, world: World) -> None:
    give_second_factor(world, "alice")
    browser = site.browser()
    answer = browser.sign_in("alice", next="/profile")
    assert answer.headers["location"] == "/login/second-factor?next=%2Fprofile"
    for path in ("/environments", "/profile", "/api/v1/profile"):
        assert browser.get(path).status_code in (303, 401)
    headers = {"Origin": ORIGIN, "X-CSRF-Token": browser.csrf("/login/second-factor")}
    answer = browser.client.post("/api/v1/profile/totp/off", json={"current_password": PASSWORD}, headers=headers)
    assert answer.status_code == 401
    world.clock.now += 301
    assert browser.get("/login/second-factor").headers["location"].startswith("/login")


def test_a_code_counts_once_in_any_browser(site: Site, world: World) -> None:
    secret, codes = give_second_factor(world, "alice")
    code = pyotp.TOTP(secret).at(int(world.context.now()))
    for given, statuses in ((code, [303, 401]), (codes[0], [303, 401])):
        got = []
        for _ in statuses:
            browser = site.browser()
            browser.sign_in("alice")
            form = {"code": given, "next": "/profile"}
            answer = browser.post("/login/second-factor", form, csrf=browser.csrf("/login/second-factor"))
            got.append(answer.status_code)
            assert is_in(browser) == (answer.status_code == 303)
        assert got == statuses


def test_guessing_codes_ends_the_sign_in_and_waits(site: Site, world: World) -> None:
    secret, _ = give_second_factor(world, "alice")
    browser = site.browser()
    browser.sign_in("alice")
    csrf = browser.csrf("/login/second-factor")
    got = [browser.post("/login/second-factor", {"code": "000000"}, csrf=csrf) for _ in range(6)]
    assert [answer.status_code for answer in got] == [401] * limits.SECOND_FACTOR.free + [303]
    assert COOKIE not in browser.cookies
    again = site.browser("203.0.113.9")
    again.sign_in("alice")
    code = pyotp.TOTP(secret).at(int(world.context.now()))
    answer = again.post("/login/second-factor", {"code": code}, csrf=again.csrf("/login/second-factor"))
    assert answer.status_code == 429


def test_a_second_factor_that_is_demanded_comes_before_all_else(new_site: Callable[..., Site]) -> None:
    site = new_site(require_totp="admins")
    root, alice = site.signed_in("root"), site.signed_in("alice")
    assert root.get("/api/v1/users").status_code == 403
    assert root.get("/api/v1/environments").status_code == 403
    assert root.get("/api/v1/profile").json()["must"] == "totp"
    assert alice.get("/api/v1/environments").status_code == 200


def test_a_one_time_password_must_be_changed_first(site: Site, world: World) -> None:
    with world.database.write() as session:
        find_user(session, "alice").password_must_change = True
    alice = site.signed_in("alice")
    assert alice.get("/api/v1/environments").status_code == 403
    headers = {"Origin": ORIGIN, "X-CSRF-Token": site.csrf_of(alice)}
    body = {"current_password": PASSWORD, "new_password": "another four words"}
    assert alice.client.post("/api/v1/profile/password", json=body, headers=headers).status_code == 200
    assert alice.get("/api/v1/environments").status_code == 200


# Where to go afterwards.


ELSEWHERE = (
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example/",
    "\\\\evil.example",
    "/%5cevil.example/../..//x",
    "javascript:alert(1)",
    "http:evil.example",
    "/\t/evil.example",
    "/\r\nSet-Cookie: x=y",
    "evil.example",
    " //evil.example",
    "///evil.example",
    "/..//evil.example",
)


def test_nobody_is_sent_elsewhere(site: Site) -> None:
    alice = site.signed_in("alice")
    for wanted in ELSEWHERE:
        browser = site.browser()
        answer = browser.sign_in("alice", next=wanted)
        assert answer.status_code == 303
        again = alice.get("/login", params={"next": wanted})
        for place in (answer.headers["location"], again.headers["location"]):
            assert place.startswith("/"), wanted
            assert not place.startswith(("//", "/\\")), wanted
            assert "Set-Cookie" not in place
            # As a browser understands it.
            assert httpx.URL(ORIGIN).join(place).host == "console.example", wanted
        assert len(answer.headers.get_list("set-cookie")) == 2
    assert site.browser().sign_in("alice", next="/profile?x=1").headers["location"] == "/profile?x=1"


# Logs.


def test_secrets_are_in_no_log_and_no_audit(site: Site, world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret, codes = give_second_factor(world, "alice")
    browser = site.browser()
    browser.sign_in("alice", "a wrong password 1")
    browser.sign_in("a password typed as the name", "x")
    browser.sign_in("alice")
    half = browser.cookies[COOKIE]
    browser.post("/login/second-factor", {"code": codes[3]}, csrf=browser.csrf("/login/second-factor"))
    headers = {"Origin": ORIGIN, "X-CSRF-Token": site.csrf_of(browser)}
    made = browser.client.post("/api/v1/tokens", json={"name": "cli", "scopes": ["env:read"]}, headers=headers)
    body = {"current_password": PASSWORD, "new_password": "another four words"}
    assert browser.client.post("/api/v1/profile/password", json=body, headers=headers).status_code == 200
    site.browser().get("/api/v1/profile", headers={"Authorization": f"Bearer {made.json()['secret']}"})
    with world.database.read() as session:
        rows = [f"{row.actor} {row.target} {row.detail}" for row in session.scalars(select(AuditRow))]
    assert len(rows) >= 6
    told = caplog.text + "\n".join(rows)
    for hidden in (
        PASSWORD,
        "a wrong password 1",
        "a password typed as the name",
        "another four words",
        secret,
        codes[3],
        half,
        browser.cookies[COOKIE],
        site.csrf_of(browser),
        made.json()["secret"].split("_")[2],
    ):
        assert hidden not in told
