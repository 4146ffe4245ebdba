"""The page of a report in a real browser: what is seen, that nothing runs or is fetched, that it fits and can be read."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from integrity.record import timestamp
from integrity.reports.page import page
from tests.integrity.reports.test_page import pages
from tests.integrity.reports.worlds import T0, busy, document

pytestmark = pytest.mark.browser
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const parse = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = c => { const [r, g, b] = c.slice(0, 3).map(v => v / 255)
    .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const low = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest('svg')) continue;
    const r = ratio(parse(getComputedStyle(e).color), behind(e));
    if (r < 4.5) low.push(`${r.toFixed(2)} ${walk.currentNode.data.slice(0, 40)}`);
  }
  for (const e of document.querySelectorAll('svg rect[class^=k-]')) {
    const r = ratio(parse(getComputedStyle(e).fill), behind(e));
    if (r < 3) low.push(`${r.toFixed(2)} ${e.getAttribute('class')}`);
  }
  return [...new Set(low)];
}"""
OVERFLOW = """() => [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, nav, svg, .skip'))
  .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.tagName + '.' + e.className)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


class Seen:
    """A page that is open, with what it said and asked for."""

    def __init__(self, browser: Browser, path: Path, text: str, width: int, scheme: Any) -> None:
        path.write_text(text, encoding="utf-8")
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.refused: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.refused.append(f"{request.url} {request.failure}"))
        self.page.goto(path.as_uri())
        self.page.wait_for_load_state("networkidle")


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", pages())
def test_it_fits_can_be_read_and_runs_nothing(
    browser: Browser, tmp_path: Path, name: str, scheme: str, width: int
) -> None:
    path = tmp_path / "report.html"
    seen = Seen(browser, path, page(pages()[name], json_digest="ab" * 32), width, scheme)
    try:
        assert seen.said == []
        assert seen.asked == [path.as_uri()]
        assert seen.page.evaluate("typeof window.hit") == "undefined"
        assert seen.page.evaluate("document.scripts.length + document.images.length") == 0
        assert seen.page.evaluate("document.documentElement.scrollWidth") == width
        assert seen.page.evaluate(OVERFLOW) == []
        assert seen.page.evaluate(CONTRAST) == []
    finally:
        seen.context.close()


def test_the_policy_stops_what_would_get_past_the_quoting(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    planted = (
        "<script>window.hit=1</script><img src='http://127.0.0.1:9/x' onerror='window.hit=1'><p style='color:red'>"
    )
    seen = Seen(browser, path, page(document([])).replace("<main>", f"<main>{planted}"), 1280, "light")
    try:
        assert seen.page.evaluate("typeof window.hit") == "undefined"
        assert len(seen.said) >= 3, "the browser says what it has refused"
        assert seen.refused == ["http://127.0.0.1:9/x csp"]
    finally:
        seen.context.close()


def test_the_verdict_and_the_timeline_are_seen(browser: Browser, tmp_path: Path) -> None:
    finding = {"code": "GHOST", "key": "a", "said": "gone", "since": timestamp(T0 + 600), "until": timestamp(T0 + 6000)}
    made = document(busy(600), findings=[finding])
    seen = Seen(browser, tmp_path / "report.html", page(made), 1280, "light")
    try:
        assert seen.page.locator("#verdict").get_by_role("heading").inner_text() == "Anomalies"
        assert seen.page.locator("#verdict").is_visible()
        box = seen.page.locator("#verdict").bounding_box()
        assert box is not None
        assert box["y"] < 300, "on top"
        bars = seen.page.locator(".line g:not(.grid) rect")
        assert bars.count() == sum(1 for counts in made["timeline"]["bins"] for count in counts if count)
        assert seen.page.locator(".line .mark").count() == 1
        seen.page.get_by_role("link", name="Writers", exact=True).first.click()
        seen.page.wait_for_timeout(900)
        assert seen.page.locator("#writers").is_visible()
        assert seen.page.evaluate("location.hash") == "#writers"
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.tagName") in ("A", "DIV")
    finally:
        seen.context.close()


def test_it_prints(browser: Browser, tmp_path: Path) -> None:
    seen = Seen(browser, tmp_path / "report.html", page(document(busy(600), findings=[])), 1280, "dark")
    try:
        seen.page.emulate_media(media="print", color_scheme="light")
        assert not seen.page.locator("nav").is_visible()
        assert seen.page.evaluate(CONTRAST) == []
        assert len(seen.page.pdf()) > 10_000
    finally:
        seen.context.close()
