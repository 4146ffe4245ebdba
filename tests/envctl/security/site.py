"""The whole application in this process, and browsers that use it as people's do.

    site = Site(world)
    browser = site.browser()
    browser.sign_in("alice")

One rule: a browser sends what a real one would (cookies, Origin, the form's token); a test that attacks leaves out or changes
one thing at a time.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import httpx

with warnings.catch_warnings():
    # It will want another package; requests and answers are the same.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

from envctl.accounts import logins, tokens
from envctl.accounts.people import find_user
from envctl.web.app import create_app
from tests.envctl.world import PASSWORD, World

ORIGIN = "https://console.example"
_TOKEN = re.compile(r'name="csrf" value="([^"]+)"')


class Browser:
    """A client with cookies of its own."""

    def __init__(self, app: Any, address: str, origin: str = ORIGIN) -> None:
        self.origin = origin
        self.client = TestClient(
            app, base_url=origin, raise_server_exceptions=False, follow_redirects=False, client=(address, 4321)
        )

    @property
    def cookies(self) -> dict[str, str]:
        return {cookie.name: cookie.value or "" for cookie in self.client.cookies.jar}

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        answer: httpx.Response = self.client.get(path, **arguments)
        return answer

    def csrf(self, path: str = "/login") -> str:
        """The token in the form of that page."""
        page = self.get(path)
        found = _TOKEN.search(page.text)
        assert found, f"{path} has no form: {page.status_code} {page.text[:200]}"
        return found[1]

    def post(
        self, path: str, form: Mapping[str, str] | None = None, *, csrf: str | None = None, **headers: str
    ) -> httpx.Response:
        """As a form of a page of ours is sent."""
        token = self.csrf() if csrf is None else csrf
        told = {"Origin": self.origin, **{name.replace("_", "-"): value for name, value in headers.items()}}
        answer: httpx.Response = self.client.post(path, data={**(form or {}), "csrf": token}, headers=told)
        return answer

    def sign_in(self, name: str, password: str = PASSWORD, **form: str) -> httpx.Response:
        return self.post("/login", {"name": name, "password": password, **form})


class Site:
    def __init__(self, world: World, **arguments: Any) -> None:
        self.world = world
        self.app = create_app(world.context, **arguments)

    def browser(self, address: str = "192.0.2.1", origin: str = ORIGIN) -> Browser:
        return Browser(self.app, address, origin)

    def signed_in(self, name: str, address: str = "192.0.2.1") -> Browser:
        """A browser in which somebody has signed in, without the work for a password."""
        browser = self.browser(address)
        with self.world.database.write() as session:
            user = find_user(session, name)
            made = logins.create(session, self.world.context, user, "full", address=address)
        browser.client.cookies.set("__Host-envctl", made.cookie, domain="console.example")
        return browser

    def csrf_of(self, browser: Browser) -> str:
        found = logins.find(self.world.context, browser.cookies["__Host-envctl"])
        assert found is not None
        return found.csrf

    def token(self, name: str, *scopes: str) -> dict[str, str]:
        """Headers of a program that acts for somebody."""
        with self.world.database.write() as session:
            user = find_user(session, name)
            made = tokens.create(session, self.world.context, user, "test", list(scopes) or ["*"], None)
        return {"Authorization": f"Bearer {made.text}"}


def routes_of(app: Any) -> Iterator[tuple[str, str]]:
    """Method and path of every route; `WEBSOCKET` for those."""
    for route in _flat(app.routes):
        if not hasattr(route, "methods"):
            yield "WEBSOCKET", route.path
        for method in sorted(getattr(route, "methods", None) or ()):
            if method != "HEAD":
                yield method, route.path


def _flat(routes: Iterable[Any]) -> Iterator[Any]:
    for route in routes:
        below = getattr(route, "original_router", None)
        if below is not None:
            yield from _flat(below.routes)
        else:
            yield route


def filled(path: str, values: Mapping[str, str] | None = None) -> str:
    """`path` with something in each place."""
    known = {"number": "1", "path:path": "console.css", **(values or {})}
    return re.sub(r"{([^}]+)}", lambda found: known.get(found[1], known.get(found[1].partition(":")[0], "x")), path)
