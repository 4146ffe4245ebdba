"""Every page in a real browser, light and dark, at 360 and 1280 pixels: it fits, can be read, can be used with keys alone."""

import re
from collections.abc import Iterator
from itertools import pairwise

import pytest
from playwright.sync_api import Browser, Page

from envctl.web.pages.shown import duration
from tests.envctl.browser.windows import Window, chromium, window
from tests.envctl.pages.furnished import House, furnished
from tests.envctl.pages.test_every_page import addresses

pytestmark = pytest.mark.browser

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
    if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue;
    if (e.closest('svg, noscript, meter, progress, :disabled')) continue;
    const r = ratio(parse(getComputedStyle(e).color), behind(e));
    if (r < 4.5) low.push(`${r.toFixed(2)} ${walk.currentNode.data.trim().slice(0, 40)}`);
  }
  return [...new Set(low)];
}"""
CUT = """() => [...document.querySelectorAll('main *')]
  .filter(e => e.checkVisibility() && !e.closest('svg, thead, .unseen, .log, pre, .tabs, .screen'))
  .filter(e => { const box = e.getBoundingClientRect(); return box.right > innerWidth + 0.5 || box.left < -0.5; })
  .map(e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 30))"""
OVERLAPPED = """() => [...document.querySelectorAll('main button, main a.button, main input')].filter(e => e.checkVisibility()
    && e.type !== 'radio' && e.type !== 'checkbox')
  .filter(e => { e.scrollIntoView({block: 'center'}); const box = e.getBoundingClientRect(); if (!box.width) return false;
    return [[box.left + 3, box.top + 3], [box.right - 3, box.bottom - 3]].some(([x, y]) => {
      const top = document.elementFromPoint(x, y); return top && top !== e && !e.contains(top) && !top.contains(e); }); })
  .map(e => e.tagName + ' ' + (e.name || e.textContent.trim()))"""
NAMELESS = """() => [...document.querySelectorAll(
    'a[href], button, input:not([type=hidden]), select, textarea, meter, progress, summary')]
  .filter(e => e.checkVisibility())
  .filter(e => !(e.textContent.trim() || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
    || (e.labels && e.labels.length)))
  .map(e => e.outerHTML.slice(0, 100))"""
HEADINGS = "() => [...document.querySelectorAll('h1, h2, h3')].filter(e => e.closest('main')).map(e => +e.tagName[1])"
TALL = """() => [...document.querySelectorAll('main button, main a.button')].filter(e => e.checkVisibility())
  .filter(e => e.getBoundingClientRect().height > 90).map(e => e.textContent.trim())"""
SMALL = """() => [...document.querySelectorAll('main button, main a.button')].filter(e => e.checkVisibility())
  .filter(e => { const box = e.getBoundingClientRect(); return box.height < 24 && !e.classList.contains('link'); })
  .map(e => e.textContent.trim())"""
REACHED = """() => { const e = document.activeElement; const style = getComputedStyle(e);
  return {what: e.outerHTML.slice(0, 120), seen: e.checkVisibility() && style.outlineStyle !== 'none'
    && parseFloat(style.outlineWidth) >= 2, all: document.body === e}; }"""
FOCUSABLE = """() => document.querySelectorAll('a[href], button:not(:disabled), input:not([type=hidden], :disabled, [hidden]), '
  + 'select, textarea, summary, [tabindex="0"]').length"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with furnished(tmp_path_factory.mktemp("house")) as made:
        yield made


def pages(house: House) -> list[str]:
    """Whole pages that change nothing and need no machine."""
    found = [
        address
        for path, address in addresses(house).items()
        if not re.search("/(head|facts|download|zip|console)", path)
    ]
    thesis = house.environments["thesis"]
    found.append("/admin/environments?deleted=1")
    return [
        *found,
        f"/environments/{house.environments['broken']}",
        f"/environments/{thesis}/backups/60?path=home/alice",
        "/nowhere",
    ]


def wrong_with(page: Page) -> list[str]:
    found = []
    for name, script in (
        ("low contrast", CONTRAST),
        ("cut off", CUT),
        ("overlapped", OVERLAPPED),
        ("without a name", NAMELESS),
        ("squeezed", TALL),
        ("too small", SMALL),
    ):
        found += [f"{name}: {one}" for one in page.evaluate(script)]
    if (wide := page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")) > 0:
        found.append(f"{wide} px too wide")
    levels = page.evaluate(HEADINGS)
    if levels[:1] != [1] or any(after - before > 1 for before, after in pairwise(levels)):
        found.append(f"headings {levels}")
    return found


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_and_can_be_read(house: House, browser: Browser, scheme: str, width: int) -> None:
    wrong = {}
    with window(browser, house.url, viewport={"width": width, "height": 800}, color_scheme=scheme) as seen:
        seen.expected.append(r"/nowhere: Failed to load resource")
        seen.go("/login")
        if found := wrong_with(seen.page):
            wrong["/login"] = found
        seen.sign_in("root")
        for path in pages(house):
            seen.go(path)
            if found := wrong_with(seen.page):
                wrong[path] = found
    assert wrong == {}


def test_the_chosen_theme_counts(house: House, browser: Browser) -> None:
    """Over what the system says."""
    with window(browser, house.url, color_scheme="light") as seen:
        seen.sign_in("bob")
        ground = "getComputedStyle(document.documentElement).backgroundColor"
        assert seen.page.evaluate(ground) == "rgb(244, 246, 248)"
        seen.go("/profile")
        seen.page.get_by_label("Look of these pages").select_option("dark")
        seen.page.locator("form[action='/profile/theme'] button").click()
        seen.page.wait_for_url("**/profile?done=*")
        assert seen.page.evaluate(ground) == "rgb(17, 21, 26)"


def test_keys_reach_everything_and_show_where_they_are(house: House, browser: Browser) -> None:
    with window(browser, house.url) as seen:
        seen.sign_in("alice")
        for path in ("/environments", f"/environments/{house.environments['thesis']}", "/environments/new"):
            seen.go(path)
            assert tabbed(seen) == [], path
        # The first stop leads past the menu.
        seen.go("/environments")
        seen.page.keyboard.press("Tab")
        assert seen.page.evaluate("document.activeElement.textContent") == "Skip to the content"
        # A question opens with keys, holds them, closes with Escape, and gives them back.
        seen.go(f"/environments/{house.environments['thesis']}")
        seen.page.get_by_role("link", name="Stop", exact=True).focus()
        seen.page.keyboard.press("Enter")
        dialog = seen.page.get_by_role("dialog")
        dialog.wait_for()
        assert dialog.get_attribute("aria-labelledby") == "dialog-title"
        assert seen.page.evaluate("document.querySelector('dialog').contains(document.activeElement)")
        seen.page.keyboard.press("Escape")
        dialog.wait_for(state="detached")
        assert seen.page.evaluate("document.activeElement.textContent") == "Stop"


def tabbed(seen: Window) -> list[str]:
    """What is reached with Tab without being seen to be; nothing may hold the keys."""
    hidden, reached = [], set()
    for _ in range(seen.page.evaluate(FOCUSABLE) + 5):
        seen.page.keyboard.press("Tab")
        found = seen.page.evaluate(REACHED)
        if found["all"]:
            break
        reached.add(found["what"])
        if not found["seen"]:
            hidden.append(found["what"])
    assert len(reached) > 8, reached
    return hidden


def test_without_javascript(house: House, browser: Browser) -> None:
    """Questions are pages, forms are forms."""
    with window(browser, house.url, java_script_enabled=False) as seen:
        seen.sign_in("bob")
        seen.page.get_by_role("link", name="shared", exact=True).click()
        seen.page.get_by_role("link", name="Restart", exact=True).click()
        seen.page.get_by_role("heading", name="Restart shared?").wait_for()
        seen.page.get_by_role("link", name="Leave it as it is").click()
        seen.page.get_by_role("heading", name="Live log").wait_for()
        seen.page.get_by_role("link", name="Settings").click()
        seen.page.get_by_label("Start at").fill("MON-FRI 08:00")
        seen.page.get_by_role("button", name="Save").click()
        seen.page.get_by_text("Next start in").wait_for()


def test_times_are_the_same_words_on_both_sides(house: House, browser: Browser) -> None:
    """The script keeps relative times true; it must write them as the server does."""
    seconds = [0, 1, 59.9, 60, 3599, 3600, 3660, 36_000, 86_399, 86_400, 90_000, 864_000, 31_536_000, 40_000_000]
    with window(browser, house.url) as seen:
        seen.sign_in("alice")
        assert seen.page.evaluate("list => list.map(duration)", seconds) == [duration(one) for one in seconds]
