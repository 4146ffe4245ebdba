"""Every page, as each role sees it: it answers, it carries no inline code or style, and its parts have names."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import httpx
import pytest

from envctl.web.pages.routes import PAGES
from tests.envctl.pages.furnished import House


def addresses(house: House) -> dict[str, str]:
    """An address for each page that is asked for with GET, by its path."""
    thesis = house.environments["thesis"]
    parts = {
        "environment": thesis,
        "number": "40",
        "act": "delete",
        "kind": "terminal",
        "job": house.jobs["build-box"],
        "user": house.users["alice"],
        "template": "debian",
    }
    query = {
        "/environments/new": f"?from={thesis}&snapshot=40",
        "/environments/{environment}/backups/{number}/download": "?path=home/alice/notes.txt",
        "/environments/{environment}/backups/{number}/diff": "?from=20",
        "/admin/orphans/destroy": "?machine=pve2/10077",
    }
    return {page.path: page.path.format(**parts) + query.get(page.path, "") for page in PAGES if page.method == "GET"}


class Seen(HTMLParser):
    """What is wrong with a page, as far as its text tells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.ids: list[str] = []
        self.labels: set[str] = set()
        self.controls: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.label_depth = 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        for name in found:
            if name == "style" or (name.startswith("on") and len(name) > 2):
                self.wrong.append(f"<{tag} {name}=...>")
        if tag == "style" or (tag == "script" and "src" not in found):
            self.wrong.append(f"<{tag}> inline")
        for name in ("src", "href", "action", "formaction", "hx-get", "data-dialog"):
            address = found.get(name) or ""
            if re.match(r"[a-z]+:|//", address) and not address.startswith("data:image/"):
                self.wrong.append(f"<{tag} {name}={address}> leads elsewhere")
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag == "label":
            self.label_depth += 1
            self.labels.add(found.get("for") or "")
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(tag)
        if tag in ("input", "select", "textarea") and found.get("type") != "hidden" and "hidden" not in found:
            self.controls.append((tag, found | ({"inside": ""} if self.label_depth else {})))
        if tag == "img" and not found.get("alt"):
            self.wrong.append("<img> without words")

    def handle_endtag(self, tag: str) -> None:
        if tag == "label":
            self.label_depth -= 1

    def check(self) -> list[str]:
        wrong = list(self.wrong)
        wrong += [f"id {one} twice" for one in set(self.ids) if self.ids.count(one) > 1]
        for tag, found in self.controls:
            named = (
                "inside" in found
                or "aria-label" in found
                or "aria-labelledby" in found
                or found.get("id") in self.labels
            )
            if not named:
                wrong.append(f"<{tag} name={found.get('name')}> has no label")
        if self.headings.count("h1") != 1:
            wrong.append(f"{self.headings.count('h1')} headings of the first level")
        return wrong


@pytest.fixture(scope="module")
def root(house: House) -> Iterator[httpx.Client]:
    with house.browser("root") as client:
        yield client


@pytest.mark.parametrize("path", [page.path for page in PAGES if page.method == "GET"])
def test_an_admin_sees_it(house: House, root: httpx.Client, path: str) -> None:
    answer = root.get(addresses(house)[path])
    assert answer.status_code == 200, answer.text
    if answer.headers["content-type"].startswith("text/html"):
        seen = Seen(answer.text)
        # A part of a page has no frame of its own.
        assert [
            one
            for one in seen.check()
            if not (path.endswith(("/head", "/facts")) and "twice" not in one and "headings" in one)
        ] == []
        assert "Last good backup" in answer.text or "{environment}" not in path or "badge" in answer.text
