#!/usr/bin/env python3
"""Pictures of every page of a running console: light and dark, wide and narrow. For looking at them, and for the documentation.

    deploy/envctl_screenshots.py --url http://127.0.0.1:8480 --name root DIRECTORY

The password comes from the variable ENVCTL_PASSWORD. Pages are found by following the links of the menu and of each page below
it, so that none is forgotten; of pages that differ only in a name or a number one is taken. Nothing is changed: forms are not
sent.

One rule: a page that says something on the browser's console, asks anybody but the console, or is wider than the window, makes
the exit status 1.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS: Final = {"wide": 1280, "narrow": 390}
SCHEMES: Final[tuple[Any, ...]] = ("light", "dark")
PAGES_MAX: Final = 120
OF_A_KIND_MAX: Final = 8
"""Addresses of one kind that are opened to find the one with most on it."""
NEVER: Final = ("/logout", "/static/", "/api/", "/download", "/zip", "/console/")
"""Not pages, or such as need a machine."""
ID: Final = re.compile(r"(?<=/)(?:[0-7][0-9a-hjkmnp-tv-z]{25}|\d+)(?=/|$)")
OVERFLOW: Final = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass
class Look:
    """What was found in one browser window."""

    url: str
    wrong: list[str] = field(default_factory=list)

    def watch(self, page: Page) -> None:
        page.on("console", lambda message: self.wrong.append(f"{page.url}: console: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"{page.url}: error: {error}"))
        page.on("request", lambda request: self.asked(page.url, request.url))

    def asked(self, where: str, address: str) -> None:
        if not address.startswith((self.url + "/", "data:", "blob:")):
            self.wrong.append(f"{where}: asks {address}")


def kind_of(path: str) -> str:
    """Pages of one kind have one picture: names, numbers and queries are left out."""
    split = urlsplit(path)
    query = "?" + "&".join(sorted(part.partition("=")[0] for part in split.query.split("&"))) if split.query else ""
    bare = ID.sub("ID", split.path)
    bare = re.sub(r"(?<=/admin/templates/)[^/]+", "ID", bare)
    return bare + query


def file_name(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", kind.lower().replace("/id", "-one")).strip("-") or "front"


def found_pages(page: Page, url: str) -> dict[str, str]:
    """One address of each kind, by kind: of a few that were seen, the one with most on it."""
    found: dict[str, str] = {}
    most: dict[str, int] = {}
    seen: dict[str, set[str]] = {}
    waiting = ["/environments", "/profile"]
    while waiting and len(found) < PAGES_MAX:
        path = waiting.pop(0)
        kind = kind_of(path)
        if path in seen.setdefault(kind, set()) or len(seen[kind]) >= OF_A_KIND_MAX:
            continue
        seen[kind].add(path)
        answer = page.goto(url + path)
        if answer is None or not answer.headers.get("content-type", "").startswith("text/html"):
            continue
        if (length := len(page.content())) > most.get(kind, 0):
            found[kind], most[kind] = path, length
        for link in page.eval_on_selector_all("a[href]", "links => links.map(link => link.getAttribute('href'))"):
            if link.startswith("/") and not any(part in link for part in NEVER):
                waiting.append(link.partition("#")[0])
    return found


@contextmanager
def signed_in(browser: Browser, url: str, name: str, password: str, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    try:
        page = context.new_page()
        page.goto(url + "/login")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in", exact=True).click()
        page.wait_for_url(re.compile(r"/(environments|profile|login/second-factor)"))
        if "/login" in page.url:
            raise SystemExit("this account has a second factor; take one without")
        yield page
    finally:
        context.close()


def take(browser: Browser, url: str, name: str, password: str, directory: Path) -> list[str]:
    """All pictures; what was wrong with pages."""
    wrong: list[str] = []
    with signed_in(browser, url, name, password) as page:
        pages = found_pages(page, url)
    for scheme in SCHEMES:
        for width_name, width in WIDTHS.items():
            look = Look(url)
            options = {"viewport": {"width": width, "height": 860}, "color_scheme": scheme}
            target = directory / f"{scheme}-{width_name}"
            target.mkdir(parents=True, exist_ok=True)
            context = browser.new_context(**options)
            stranger = context.new_page()
            look.watch(stranger)
            for stranger_path in ("/login",):
                stranger.goto(url + stranger_path)
                stranger.screenshot(path=target / f"{file_name(stranger_path)}.png", full_page=True)
            context.close()
            with signed_in(browser, url, name, password, **options) as page:
                look.watch(page)
                for kind, path in pages.items():
                    page.goto(url + path)
                    page.wait_for_timeout(100)
                    wide = page.evaluate(OVERFLOW)
                    if wide > 0:
                        look.wrong.append(f"{path}: {wide} px wider than {width}")
                    page.screenshot(path=target / f"{file_name(kind)}.png", full_page=True)
            wrong += [f"{scheme} {width_name}: {one}" for one in look.wrong]
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", required=True, help="address of the console")
    parser.add_argument(
        "--name", default="root", help="an admin without a second factor; ENVCTL_PASSWORD has the password"
    )
    parser.add_argument("directory", type=Path)
    chosen = parser.parse_args()
    password = os.environ.get("ENVCTL_PASSWORD")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not password or chromium is None:
        sys.stderr.write("error: needs ENVCTL_PASSWORD and chromium (apt-get install chromium)\n")
        return 2
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        wrong = take(browser, chosen.url.rstrip("/"), chosen.name, password, chosen.directory)
        browser.close()
    for one in wrong:
        sys.stderr.write(f"{one}\n")
    count = len(list(chosen.directory.rglob("*.png")))
    sys.stderr.write(f"{count} pictures in {chosen.directory}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
