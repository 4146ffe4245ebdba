"""The site: every link and anchor of it leads somewhere, nothing of it asks another host, and people can read it."""

import functools
import http.server
import re
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser

from tests.architecture.tree import ROOT
from tests.envctl.browser.test_looks import CONTRAST
from tests.envctl.browser.windows import Window, chromium, window

sys.path.append(str(ROOT / "deploy/site"))

from make_site import LANDING, PARTS, Page, SiteFailed, build, environment, navigation, pages, rewritten, stage

LOOKED_AT = ("/index.html", "/runbook/index.html", "/settings.html")


class Links(HTMLParser):
    """What a page points at, what it loads, and the anchors it has."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.anchors.add(str(given["id"]))
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        elif tag in ("script", "img", "iframe", "source", "video") and given.get("src"):
            self.loaded.append(str(given["src"]))
        elif tag == "link" and given.get("rel") not in ("canonical", "index", "search", "next", "prev"):
            self.loaded.append(str(given.get("href")))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("site") / "site"
    build(output)
    return output


@pytest.fixture(scope="module")
def read(site: Path) -> dict[Path, Links]:
    found = {}
    for path in sorted(site.rglob("*.html")):
        found[path] = Links()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
def test_every_page_is_there_and_can_be_reached(site: Path, read: dict[Path, Links]) -> None:
    for one in pages(ROOT).values():
        assert (site / one.name).with_suffix(".html").exists(), one
    reached, left = {site / "index.html"}, [site / "index.html"]
    while left:
        page = left.pop()
        for link in read[page].links:
            place = (page.parent / unquote(urlsplit(link).path)).resolve()
            if not urlsplit(link).scheme and place in read and place not in reached:
                reached.add(place)
                left.append(place)
    unreached = {str(path.relative_to(site)) for path in set(read) - reached}
    assert unreached <= {"genindex.html", "search.html"}, "Sphinx's own; a form leads to the search"


@pytest.mark.slow
def test_every_link_and_anchor_leads_somewhere(site: Path, read: dict[Path, Links]) -> None:
    lost, count = [], 0
    for page, found in read.items():
        for link in found.links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "mailto"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            count += 1
            found_there = target.is_relative_to(site) and target.exists()
            if found_there and parts.fragment and target.suffix == ".html":
                found_there = unquote(parts.fragment) in read[target].anchors
            if not found_there:
                lost.append(f"{page.relative_to(site)}: {link}")
    assert lost == []
    assert count > 5_000


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path, read: dict[Path, Links]) -> None:
    for page, found in read.items():
        for loaded in found.loaded:
            parts = urlsplit(loaded)
            assert (parts.scheme, parts.netloc) == ("", ""), f"{page}: {loaded}"
            assert (page.parent / unquote(parts.path)).exists(), f"{page}: {loaded}"
    for style in site.rglob("*.css"):
        outside = re.findall(r"(?:url\(|@import )['\"]?((?:https?:)?//[^'\")]+)", style.read_text(encoding="utf-8"))
        assert outside == [], style


@pytest.mark.slow
def test_no_page_shows_what_only_sphinx_should_see(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "{toctree}" not in text
        assert "\x00" not in text
    assert not (site / "_sources").exists()
    assert not list(site.rglob("*.doctree"))


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """A test's log is for what the test says."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read(address: str, browser: Browser, scheme: str, width: int) -> None:
    wrong = {}
    with window(browser, address, viewport={"width": width, "height": 800}, color_scheme=scheme) as seen:
        for path in LOOKED_AT:
            seen.go(path)
            seen.page.wait_for_load_state("networkidle")
            found = seen.page.evaluate(CONTRAST)
            wide = seen.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            if wide > 0:
                found.append(f"{wide} px too wide")
            if found:
                wrong[path] = found
    assert wrong == {}


def searched(seen: Window, words: str) -> list[str]:
    seen.go(f"/search.html?q={words}")
    seen.page.wait_for_selector("#search-results ul.search li a")
    seen.page.wait_for_function(
        "document.querySelector('#search-results p.search-summary').textContent.includes('found')"
    )
    return [link.get_attribute("href") or "" for link in seen.page.query_selector_all("#search-results ul.search li a")]


@pytest.mark.slow
@pytest.mark.browser
def test_search_finds_pages_without_a_network(address: str, site: Path, browser: Browser) -> None:
    for place in (address, site.as_uri()):
        with window(browser, place) as seen:
            assert any("journal-filling" in href for href in searched(seen, "journal+filling"))
            assert any("settings" in href for href in searched(seen, "commit_interval_s"))
            # `check` compares with the address; from a folder there is none but files.
            assert all(one.startswith((place, "data:")) for one in seen.asked)


def known(*names: str) -> dict[PurePosixPath, Page]:
    return {PurePosixPath(name): Page(PurePosixPath(name), PurePosixPath(name).relative_to("docs")) for name in names}


def test_a_page_that_stands_nowhere_is_refused() -> None:
    with pytest.raises(SiteFailed, match=r"docs/new\.md stands nowhere"):
        navigation(known(LANDING, "docs/settings.md", "docs/new.md"))


def test_pages_of_a_folder_follow_its_head() -> None:
    made = navigation(
        known(LANDING, "docs/plugin.md", "docs/plugin/disks.md", "docs/runbook/README.md", "docs/runbook/a.md")
    )
    assert {str(head): [str(one) for one in inner] for head, inner in made.items()} == {
        "docs/plugin.md": ["docs/plugin/disks.md"],
        "docs/runbook/README.md": ["docs/runbook/a.md"],
    }


def test_every_page_of_this_tree_stands_somewhere_once() -> None:
    found = pages(ROOT)
    placed = [pattern for _, patterns in PARTS for pattern in patterns]
    assert len(placed) == len(set(placed))
    navigation(found)


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("[settings.md](settings.md)", "[Settings](settings.md)"),
        ("[here](../README.md#try-it)", "[here](overview.md#try-it)"),
        ("[runbook/](runbook/README.md)", "[runbook/](runbook/index.md)"),
        ("[a](https://example.com/x.md)", "[a](https://example.com/x.md)"),
        ("[unit](../deploy/systemd/s3block@.service)", "[unit](tree/deploy/systemd/s3block@.service.md)"),
        ("[bytes](../tests/formats/golden/journal.v1.bin)", "`bytes`"),
        ("`[settings.md](settings.md)`", "`[settings.md](settings.md)`"),
        ("```\n[settings.md](settings.md)\n```", "```\n[settings.md](settings.md)\n```"),
        ("[`serve`](settings.md#a) and `x` [b](#c)", "[`serve`](settings.md#a) and `x` [b](#c)"),
    ],
)
def test_links_become_those_of_the_site(text: str, becomes: str) -> None:
    found = pages(ROOT)
    page = found[PurePosixPath("docs/README.md")]
    assert rewritten(text, page, found, ROOT, {}) == becomes


def test_pictures_come_along(tmp_path: Path) -> None:
    (tmp_path / "docs/peers").mkdir(parents=True)
    drawn = b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    (tmp_path / "docs/peers/plot.svg").write_bytes(drawn)
    text = "# D\n![a plot](plot.svg) and [the file](plot.svg)"
    for name, content in (
        ("README.md", "# A"),
        ("CHANGELOG.md", "# B"),
        ("docs/README.md", "# C"),
        ("docs/peers/README.md", text),
    ):
        (tmp_path / name).write_text(content, encoding="utf-8")
    stage(tmp_path, tmp_path / "staged")
    written = (tmp_path / "staged/peers/index.md").read_text(encoding="utf-8")
    assert "![a plot](../tree/docs/peers/plot.svg) and `the file`" in written
    assert (tmp_path / "staged/tree/docs/peers/plot.svg").read_bytes() == drawn
    (tmp_path / "docs/peers/plot.svg").unlink()
    with pytest.raises(SiteFailed, match=r"link to plot\.svg"):
        stage(tmp_path, tmp_path / "staged")


def test_a_link_to_what_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name, text in (("README.md", "# A"), ("CHANGELOG.md", "# B"), ("docs/README.md", "# C\n[x](lost.md)")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(SiteFailed, match=r"docs/README\.md: link to lost\.md"):
        stage(tmp_path, tmp_path / "staged")


@pytest.mark.slow
def test_sphinx_refuses_an_anchor_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "docs").mkdir(parents=True)
    for name, text in (
        ("README.md", "# A"),
        ("CHANGELOG.md", "# B"),
        ("docs/README.md", "# C\n"),
        ("docs/settings.md", "# D\n"),
    ):
        (tree / name).write_text(text, encoding="utf-8")
    (tree / "docs/durability.md").write_text("# E\n\n[x](settings.md#no-such-heading)\n", encoding="utf-8")
    python = environment()
    monkeypatch.setattr("make_site.ROOT", tree)
    monkeypatch.setattr("make_site.environment", lambda: python)
    with pytest.raises(SiteFailed, match="no-such-heading"):
        build(tmp_path / "site")
    assert not (tmp_path / "site").exists()
