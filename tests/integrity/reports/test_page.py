"""The page of a report, by its structure: what is in it, and that nothing in it runs or loads."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from integrity.record import timestamp
from integrity.reports.document import Part, Problem
from integrity.reports.page import FINDINGS_SHOWN, page
from integrity.reports.page_style import STYLE
from tests.integrity.reports.worlds import HOSTILE, T0, busy, document, hostile, record

VOID = {"meta", "br", "rect", "path", "circle", "link"}
ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "a", "header", "main", "footer", "nav", "section", "div", "p"),
    *("h1", "h2", "h3", "ul", "ol", "li", "dl", "dt", "dd", "b", "bdi", "strong", "span", "code", "pre", "time", "br"),
    *("table", "thead", "tbody", "tr", "th", "td", "figure", "svg", "g", "rect", "path", "circle"),
}
ATTRIBUTES = {
    *(
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "href",
        "id",
        "aria-label",
        "aria-labelledby",
        "role",
    ),
    *(
        "aria-hidden",
        "tabindex",
        "scope",
        "datetime",
        "viewbox",
        "preserveaspectratio",
        "x",
        "y",
        "width",
        "height",
        "rx",
    ),
    *("d", "cx", "cy", "r"),
}


class Tree(HTMLParser):
    """Elements and attributes as they come; every element must be closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.seen.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, self.open

    def handle_data(self, data: str) -> None:
        self.text.append(data)


FINDINGS = [
    {
        **dict.fromkeys(("code", "bucket", "key", "version", "said", "last_writer", "advice"), text),
        "records": [text, text],
        "candidates": [text, text],
        "since": timestamp(T0 - 100),
        "until": timestamp(T0 + 1000 * i),
    }
    for i, text in enumerate(HOSTILE)
]
PROBLEMS = [Problem("tampered", text, text, text) for text in HOSTILE]
PARTS = [Part(f"w.{i}", None, text, 0, 0, text, text, text) for i, text in enumerate(HOSTILE)]


def pages() -> dict[str, dict[str, Any]]:
    return {
        "empty": document([]),
        "busy": document(busy(400), findings=[]),
        "one moment": document([record(0, key="a")]),
        "hostile": document(hostile(), findings=FINDINGS, problems=PROBLEMS, parts=PARTS),
        "ages apart": document([record(0, at=0.0), record(1, at=253_402_300_799.0)]),
        "unreachable": document([], problems=[Problem("unread", "s3://ceph/ledger", "no answer")], parts=[]),
    }


@pytest.mark.parametrize("name", pages())
def test_nothing_but_harmless_elements_closed_in_order(name: str) -> None:
    tree = Tree(page(pages()[name], json_digest="0" * 64))
    assert not tree.open
    assert {tag for tag, _ in tree.seen} <= ALLOWED
    assert {attribute for _, given in tree.seen for attribute in given} <= ATTRIBUTES
    assert len(tree.ids) == len(set(tree.ids))
    links = [given["href"] for tag, given in tree.seen if tag == "a"]
    assert all(link.startswith("#") and link[1:] in tree.ids for link in links), links
    referred = [given["aria-labelledby"] for _, given in tree.seen if "aria-labelledby" in given]
    assert set(referred) <= set(tree.ids)


def test_the_policy_allows_this_style_sheet_and_nothing_else() -> None:
    text = page(document([]))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert policy is not None
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert policy[1] == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not re.search(r"url\(|@import|expression|https?:", STYLE)


def test_what_was_found_is_on_the_page() -> None:
    finding = {
        "code": "UNLOGGED_DELETE",
        "bucket": "photos",
        "key": "a.jpg",
        "said": "It is gone.",
        "last_writer": "eve@nas",
    }
    made = document(busy(400), findings=[finding, {**finding, "explained": "lifecycle rule tmp"}])
    tree = Tree(page(made))
    text = " ".join(" ".join(tree.text).split())
    for expected in ("Anomalies", "1 finding", "UNLOGGED_DELETE", "photos/a.jpg", "eve@nas", "lifecycle rule tmp"):
        assert expected in text
    assert {"verdict", "timeline", "findings", "unfinished", "coverage", "writers", "finding-1", "open-1"} <= set(
        tree.ids
    )
    for row in made["unfinished"]:
        assert f"{row['writer']}#{row['n']}" in text


def test_invisible_characters_are_spelled_out() -> None:
    text = page(pages()["hostile"])
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert "photo\\u202egpj.exe" in text


def test_ten_thousand_findings_stay_a_page() -> None:
    many = [{"code": "GHOST", "key": f"{i}/{'k' * 900}", "said": "x"} for i in range(10_000)]
    text = page(document([], findings=many))
    assert text.count('class="card open"') == FINDINGS_SHOWN
    assert f"{10_000 - FINDINGS_SHOWN:,} more" in text
    assert len(text) < 2_000_000
