"""A real browser, and what it may never do: say something on its console, ask anybody but the console, break the policy."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.envctl.world import PASSWORD

CHROMIUM: Final = shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Window:
    """One window, with what went wrong in it."""

    page: Page
    url: str
    said: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)
    expected: list[str] = field(default_factory=list)
    """Patterns of what the browser may say: a refusal that the test provokes."""

    def go(self, path: str) -> None:
        self.page.goto(self.url + path)

    def sign_in(self, name: str, password: str = PASSWORD) -> None:
        self.go("/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in", exact=True).click()
        self.page.wait_for_url("**/environments")

    def check(self) -> None:
        said = [one for one in self.said if not any(re.search(pattern, one) for pattern in self.expected)]
        assert not said, f"the browser's console is silent, the policy unbroken: {said}"
        own = (self.url + "/", self.url.replace("http", "ws", 1) + "/", "data:", "blob:")
        assert [one for one in self.asked if not one.startswith(own)] == [], "nobody but the console is asked"


@contextmanager
def window(browser: Browser, url: str, **options: Any) -> Iterator[Window]:
    context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
    page = context.new_page()
    page.set_default_timeout(60_000)
    made = Window(page, url)
    page.on("console", lambda message: made.said.append(f"{page.url}: {message.text}"))
    page.on("pageerror", lambda error: made.said.append(f"{page.url}: {error}"))
    page.on("request", lambda request: made.asked.add(request.url))
    page.on("websocket", lambda socket: made.asked.add(socket.url))
    try:
        yield made
        made.check()
    finally:
        context.close()
