"""The life of an environment in a real browser: a console with its runner, a cluster that is not there, and the real agent in
simulated machines. What is seen here has happened: homes are files of this host, and come back from the store.
"""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from envctl import serving
from envctl.calling import Context
from envctl.database.models import Backup, Environment
from envctl.fake_pve.cluster import Durations, small_cluster
from envctl.fake_pve.guest import SimulatedGuests
from envctl.fake_pve.server import serve, write_token
from s3core.settings import parse_config
from tests.envctl.assembly.running import Running, console_process, write_config
from tests.envctl.browser.windows import Window, chromium, window

pytestmark = pytest.mark.browser

OLD, NEW = "as it was ten minutes ago\n", "as it is now\n"
LONG_MS = 120_000


@dataclass
class Site:
    url: str
    context: Context
    guests: SimulatedGuests

    def home(self, name: str) -> Path:
        """The home of the machine that the environment has now, as its files."""
        return self.guests.guest(self.row(name).vmid or 0).root / "home" / "user"

    def row(self, name: str) -> Environment:
        with self.context.database.read() as session:
            return session.query(Environment).filter_by(name=name).one()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def fill(home: Path, name: str) -> None:
    (home / "work").mkdir(parents=True)
    (home / "work" / "report.txt").write_text(OLD)
    (home / "work" / "table.csv").write_text("1,2,3\n")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        guests = SimulatedGuests(tmp_path / "disks", fill=fill)
        stack.callback(guests.close)
        fake = small_cluster(on_start=guests, durations=Durations(clone=0.3, start=0.1))
        cluster = stack.enter_context(serve(fake))
        token = write_token(tmp_path / "token")
        driver = f'[envctl.driver.pve]\nurl = "{cluster.url}"\ntoken = "{token}"\npool = "envctl"\n'
        config_path = write_config(tmp_path, driver, listen=f"127.0.0.1:{free_port()}")
        _, url = stack.enter_context(console_process(config_path))
        config = parse_config(config_path.read_text(encoding="utf-8"), path=config_path)
        context = stack.enter_context(serving.open_context(config))
        running = Running(url, context, config)
        running.add_user("alice", "admin")
        with running.client(running.token("alice")) as client:
            sizes = {"cores": 1, "memory_mib": 512, "disk_gib": 40}
            asked = {"name": "debian", "title": "Debian 13", "driver": "pve", "source": "9000", **sizes}
            answer = client.post("/api/v1/templates", json=asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["enabled"], answer.text
        yield Site(url, context, guests)


def test_create_watch_restore_stop_delete_undelete(site: Site, browser: Browser) -> None:
    with window(browser, site.url) as seen:
        page = seen.page
        seen.sign_in("alice")
        page.get_by_role("link", name="Make the first one").click()
        page.get_by_role("radio", name="Debian 13").check()
        page.get_by_label("Name", exact=True).fill("thesis")
        page.get_by_role("button", name="Make it").click()

        # The live log, without a reload, to the end; the head follows by itself.
        log = page.get_by_role("list", name="Log of thesis")
        expect(page.locator("#log-state")).to_have_text("Following")
        expect(log).to_contain_text("Create")
        expect(page.locator("#head .badge").first).to_have_text("Ready", timeout=LONG_MS)
        lines = log.locator("li").all_inner_texts()
        assert len(lines) == len(set(lines)) or len(lines) > 3, "a line each, none twice"
        assert len(lines) >= 4, lines

        report = site.home("thesis") / "work" / "report.txt"
        assert report.read_text() == OLD
        mark = site.guests.guest(site.row("thesis").vmid or 0).root / "of-this-machine"
        mark.touch()
        backed_up(seen, site, 1)
        age(site, "thesis", 1, 620)
        report.write_text(NEW)
        backed_up(seen, site, 2)

        # The home as it was ten minutes ago: a file of it, into place.
        page.get_by_role("link", name="Backups", exact=True).click()
        then = datetime.fromtimestamp(time.time() - 600, UTC).strftime("%Y-%m-%dT%H:%M")
        page.get_by_label("Home as it was at (UTC)").fill(then)
        page.get_by_role("button", name="Show it").click()
        page.wait_for_url("**/backups/1")
        for folder in ("user/", "work/"):
            page.get_by_role("link", name=folder, exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download report.txt").click()
        assert Path(download.value.path()).read_text() == OLD
        page.get_by_role("link", name="Restore report.txt").click()
        page.get_by_role("radio", name="Into place").check()
        page.get_by_role("button", name="Restore", exact=True).click()
        page.wait_for_url("**/environments/*")
        until(lambda: report.read_text() == OLD, "the file is as it was")
        assert (report.parent / "table.csv").read_text() == "1,2,3\n"

        # Stop: the question is a dialog that says what happens.
        page.get_by_role("link", name="Stop", exact=True).click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("The home is saved")
        dialog.get_by_role("link", name="Leave it as it is").click()
        expect(dialog).to_have_count(0)
        page.get_by_role("link", name="Stop", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Stop").click()
        expect(page.locator("#head .badge").first).to_have_text("Stopped", timeout=LONG_MS)

        page.get_by_role("link", name="Delete", exact=True).click()
        expect(page.get_by_role("dialog")).to_contain_text("Kept for 30 d")
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        expect(page.locator("#head .badge").first).to_have_text("Deleted, home kept", timeout=LONG_MS)

        page.get_by_role("button", name="Undelete").click()
        expect(page.locator("#head .badge").first).to_have_text("Ready", timeout=LONG_MS)
        assert not mark.exists(), "another machine"
        assert (site.home("thesis") / "work" / "report.txt").read_text() == OLD, "and the same home"


def test_terminal_and_screen(site: Site, browser: Browser) -> None:
    """Both through the console, under the policy of its pages: xterm.js must not need inline styles, noVNC no evaluation."""
    with window(browser, site.url) as seen:
        page = seen.page
        seen.sign_in("alice")
        seen.go("/environments/new")
        page.get_by_label("Name", exact=True).fill("box")
        page.get_by_role("button", name="Make it").click()
        expect(page.locator("#head .badge").first).to_have_text("Ready", timeout=LONG_MS)
        page.get_by_role("link", name="Terminal").click()
        expect(page.locator("#console-state")).to_have_text("Connected")
        expect(page.locator(".xterm-rows")).to_contain_text("$")
        page.keyboard.type("status\n")
        expect(page.locator(".xterm-rows")).to_contain_text("address 198.51.100", timeout=LONG_MS)
        row = page.locator(".xterm-rows > div").first.bounding_box()
        assert row is not None
        assert 10 < row["height"] < 40, "its style sheets hold"
        page.get_by_role("link", name="Screen").click()
        expect(page.locator("#console-state")).to_have_text("Connected")
        expect(page.locator("#screen canvas")).to_be_visible()
        assert page.evaluate("document.querySelector('#screen canvas').width") > 100


def backed_up(seen: Window, site: Site, number: int) -> None:
    """Asked for with the button, until it is there."""
    page = seen.page
    page.get_by_role("link", name="Backups", exact=True).click()
    page.get_by_role("button", name="Back up now").click()
    page.wait_for_url("**/environments/*done=*")
    until(lambda: (site.row("thesis").last_backup_number or 0) >= number, f"backup {number}")


def age(site: Site, name: str, number: int, seconds: float) -> None:
    """As if it had been made that much earlier."""
    with site.context.database.write() as session:
        session.get_one(Backup, (site.row(name).id, number)).at -= seconds


def until(so: Callable[[], bool], what: str, longest_s: float = 120.0) -> None:
    end = time.monotonic() + longest_s
    while not so():
        assert time.monotonic() < end, what
        time.sleep(0.2)
