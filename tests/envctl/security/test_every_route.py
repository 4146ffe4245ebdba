"""What holds for each route that there is, so for those that come later too."""

import asyncio
import base64
import json
from collections.abc import Iterator

import pytest
from starlette.types import Message

from envctl.web.security import HEADERS, HSTS
from tests.envctl.security.site import ORIGIN, Site, filled, routes_of
from tests.envctl.world import World

PUBLIC = {
    ("GET", "/login"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/static/{path:path}"),
    ("GET", "/guest/v1/agent.pyz"),
    ("GET", "/api/openapi.json"),
}
"""What anybody may have. A route that is not here answers a stranger with nothing."""
MACHINES = ("/guest/", "/seed/")
UNSAFE = ("POST", "PUT", "PATCH", "DELETE")


def test_every_answer_has_the_headers(site: Site) -> None:
    stranger, alice = site.browser(), site.signed_in("alice")
    alice_token = site.csrf_of(alice)
    asked = 0
    for method, path in [*routes_of(site.app), ("GET", "/no/such/page"), ("GET", "/api/v1/none"), ("PUT", "/login")]:
        if method == "WEBSOCKET" or path.endswith("/events"):
            continue
        for browser, headers in ((stranger, {}), (alice, {"Origin": ORIGIN, "X-CSRF-Token": alice_token})):
            if (browser, path) == (alice, "/logout"):
                continue
            answer = browser.client.request(method, filled(path), headers=headers)
            for name, value in HEADERS.items():
                assert answer.headers.get_list(name) == [value], (method, path, name)
            assert answer.headers["Strict-Transport-Security"] == HSTS
            assert "server" not in answer.headers
            public = path.startswith(("/static/", "/guest/v1/agent.pyz"))
            assert public or answer.headers["Cache-Control"].startswith(("no-store", "no-cache")), (method, path)
            asked += 1
    assert asked > 150


def test_a_bug_is_told_with_the_headers_and_without_what_went_wrong(
    site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a secret thing")

    alice = site.signed_in("alice")
    monkeypatch.setattr(site.world.context.database, "read", fail)
    for path in ("/login", "/environments", "/api/v1/environments"):
        answer = alice.get(path)
        assert answer.status_code == 500, path
        assert "secret" not in answer.text
        assert "ZeroDivision" not in answer.text
        assert answer.headers["Content-Security-Policy"] == HEADERS["Content-Security-Policy"]
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("path", ["/login", "/guest/v1/enrol", "/guest/v1/commits", "/api/v1/environments"])
def test_who_leaves_in_the_middle_of_a_body_is_no_bug_and_half_a_form_is_none(
    site: Site, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    said: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"name=alice&passw", "more_body": True}, {"type": "http.disconnect"}]
    )
    sent: list[Message] = []

    async def receive() -> Message:
        return next(said)

    async def send(message: Message) -> None:
        sent.append(message)

    headers = {"host": "envctl.example", "origin": ORIGIN, "content-type": "application/x-www-form-urlencoded"}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("198.51.100.1", 40000),
        "server": ("envctl.example", 443),
        "scheme": "https",
        "http_version": "1.1",
        "asgi": {"version": "3.0"},
        "app": site.app,
    }
    asyncio.run(site.app(scope, receive, send))
    assert "failed" not in caplog.text
    assert all(message.get("status", 400) in range(400, 500) for message in sent)


def test_a_stranger_gets_nothing(site: Site) -> None:
    for method, path in routes_of(site.app):
        if (method, path) in PUBLIC or method == "WEBSOCKET":
            continue
        stranger = site.browser("198.51.100.1")
        answer = stranger.client.request(method, filled(path), json={} if method in UNSAFE else None)
        where = answer.headers.get("location", "")
        sent_away = answer.status_code == 303 and where.startswith(("/login", "/environments"))
        assert sent_away or answer.status_code in (400, 401, 403, 404, 405, 422), (method, path, answer.status_code)


def test_cookies_alone_change_nothing(site: Site) -> None:
    """CSRF: what a page of others can make a browser send. Each unsafe route, with the victim's cookie."""
    root = site.signed_in("root")
    token = site.csrf_of(root)
    attacks: list[dict[str, str]] = [
        {},
        {"Origin": ORIGIN},
        {"Origin": ORIGIN, "X-CSRF-Token": "x" * 43},
        {"X-CSRF-Token": token},
        {"Origin": "https://evil.example", "X-CSRF-Token": token},
        {"Origin": "null", "X-CSRF-Token": token},
        {"Origin": "https://console.example.evil.example", "X-CSRF-Token": token},
        {"Origin": "http://console.example", "X-CSRF-Token": token},
        {"Origin": "https://console.example:8443", "X-CSRF-Token": token},
        {"Sec-Fetch-Site": "cross-site", "X-CSRF-Token": token},
        {"Sec-Fetch-Site": "same-site", "X-CSRF-Token": token},
        {"Referer": "https://evil.example/?https://console.example/", "X-CSRF-Token": token},
        {"Origin": ORIGIN, "Authorization": "Basic eDp5"},
        {"Origin": "https://evil.example", "Authorization": "Bearer bwe_x_y"},
    ]
    tried = 0
    for method, path in routes_of(site.app):
        if method not in UNSAFE or path.startswith(MACHINES):
            continue
        for headers in attacks:
            answer = root.client.request(method, filled(path), headers=headers, json={})
            bearer = headers.get("Authorization", "").startswith("Bearer") and path.startswith("/api/")
            assert answer.status_code == (401 if bearer else 403), (method, path, headers, answer.text[:200])
            tried += 1
    assert tried > 500
    assert root.get("/environments").status_code == 200


def test_a_program_needs_its_token_alone(site: Site) -> None:
    headers = site.token("alice", "profile:write")
    answer = site.browser().client.patch("/api/v1/profile", json={"theme": "dark"}, headers=headers)
    assert answer.status_code == 200, answer.text
    evil = {**headers, "Origin": "https://evil.example"}
    assert site.browser().client.get("/api/v1/profile", headers=evil).status_code == 200
    assert "access-control-allow-origin" not in site.browser().client.get("/api/v1/profile", headers=evil).headers


def test_a_token_in_place_of_a_sign_in_opens_no_page(site: Site) -> None:
    answer = site.browser().get("/environments", headers=site.token("root"))
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")


def test_a_token_that_is_not_good_is_not_made_good_by_a_cookie(site: Site) -> None:
    root = site.signed_in("root")
    assert root.get("/api/v1/profile").status_code == 200
    answer = root.get("/api/v1/profile", headers={"Authorization": "Bearer bwe_x_y"})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")


def test_pages_of_others_read_nothing_in_the_background(site: Site) -> None:
    alice = site.signed_in("alice")
    for site_header in ("cross-site", "same-site"):
        headers = {"Sec-Fetch-Site": site_header, "Sec-Fetch-Mode": "no-cors"}
        assert alice.get("/api/v1/profile", headers=headers).status_code == 401
        assert alice.get("/profile", headers=headers).status_code == 303
    followed = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert alice.get("/profile", headers=followed).status_code == 200


def test_bodies_are_bounded_however_they_come(site: Site) -> None:
    alice = site.signed_in("alice")
    headers = {"Origin": ORIGIN, "X-CSRF-Token": site.csrf_of(alice), "Content-Type": "application/json"}
    large = b'{"display_name": "' + b"x" * (2 << 20) + b'"}'
    assert alice.client.patch("/api/v1/profile", content=large, headers=headers).status_code == 413
    pieces = (large[at : at + 65536] for at in range(0, len(large), 65536))
    assert alice.client.patch("/api/v1/profile", content=pieces, headers=headers).status_code == 413
    form = {"Origin": ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
    assert alice.client.post("/profile/theme", content=b"csrf=" + b"x" * (2 << 20), headers=form).status_code == 413


def test_uploads_are_not_taken(site: Site) -> None:
    alice = site.signed_in("alice")
    answer = alice.client.post(
        "/profile/theme", files={"csrf": (None, site.csrf_of(alice)), "file": ("x", b"x")}, headers={"Origin": ORIGIN}
    )
    assert answer.status_code == 403


def test_a_websocket_is_opened_by_pages_of_ours_alone(site: Site, world: World) -> None:
    from starlette.websockets import WebSocketDisconnect

    environment = world.add_environment("alice", "one", world.add_template())
    alice = site.signed_in("alice")
    url = f"wss://console.example/console/{environment.id}/ws?ticket=x"
    for headers in ({}, {"Origin": "https://evil.example"}, {"Origin": "null"}):
        with pytest.raises(WebSocketDisconnect) as caught, alice.client.websocket_connect(url, headers=headers):
            pass
        assert caught.value.code == 1008


def test_two_cookies_of_the_name_are_none(site: Site) -> None:
    """A neighbour host below the same domain may plant a second one; which is ours cannot be told."""
    alice, bob = site.signed_in("alice"), site.signed_in("bob")
    name = "__Host-envctl"
    header = f"{name}={bob.cookies[name]}; {name}={alice.cookies[name]}"
    assert site.browser().get("/environments", headers={"Cookie": header}).status_code == 303
    one = f"{name}={alice.cookies[name]}"
    assert site.browser().get("/environments", headers={"Cookie": one}).status_code == 200


@pytest.mark.parametrize(
    "cookie", ["", "x", "x" * 10_000, '"', "a=b", "é".encode().decode("latin-1"), "%00", "../../x"]
)
def test_cookies_that_are_rubbish_are_nobody(site: Site, cookie: str) -> None:
    header = f"__Host-envctl={cookie}".encode("latin-1")
    answer = site.browser().get("/environments", headers={b"Cookie": header})
    assert answer.status_code == 303


def test_the_api_documents_itself_without_anybody_elses_server(site: Site) -> None:
    document = site.browser().get("/api/openapi.json")
    assert document.status_code == 200
    assert "http" not in json.dumps(document.json().get("servers", []))
    assert site.signed_in("root").get("/docs").status_code == 404


def test_what_a_request_says_of_the_host_gets_into_no_answer(site: Site) -> None:
    evil = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"}
    for path in ("/login", "/environments", "/", "/api/v1/profile", "/login/oidc"):
        answer = site.browser().get(path, headers=evil)
        assert "evil.example" not in answer.text + str(answer.headers), path


def test_basic_passwords_are_not_asked_for(site: Site) -> None:
    header = "Basic " + base64.b64encode(b"root:four words about nothing").decode()
    assert site.browser().get("/api/v1/profile", headers={"Authorization": header}).status_code == 401
