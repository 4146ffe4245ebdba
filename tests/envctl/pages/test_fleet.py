"""The page Fleet: all hosts with their ages, hostile words as words, nothing that waits for a store; for whom it is."""

import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from envctl.fleet import Fleet
from s3core.file import FileStore
from s3core.settings import parse_config
from s3core.status import HostStatus, Item, Money, encode
from s3core.status_collector import Look
from s3core.status_publishing import publish
from tests.envctl.pages.test_every_page import Seen
from tests.envctl.security.site import Site
from tests.envctl.world import make_world

ILL = Item(
    "volume",
    "<img src=x onerror=alert(1)>",
    "critical",
    "ready, portal, 1 session, RPO 20 s",
    'the store does not answer <script>alert("x")</script>',
    "runbook/store-unreachable.md",
    facts={"rpo_seconds": 20.0},
)
MONEY = Money("ceph", 12345, 1 << 20, 1 << 30, 0, "EUR", 1.5, 1 << 40, 5.6)


def site_with(tmp_path: Path, settings: str, looks: Callable[[], list[Look]] = list) -> Site:
    config = parse_config(f'[status]\nhost = "here"\nspending_dir = "{tmp_path}/spending"\n{settings}')
    world = make_world(tmp_path)
    fleet = Fleet(config, {"volume": lambda config: looks()})
    return Site(replace(world, context=replace(world.context, fleet=fleet)))


def page(site: Site, name: str = "ops", **headers: str) -> httpx.Response:
    answer: httpx.Response = site.signed_in(name).client.get("/admin/fleet", headers=headers)
    return answer


@pytest.fixture
def place(tmp_path: Path) -> FileStore:
    return FileStore(str(tmp_path / "fleet"))


def test_all_hosts_are_shown_and_what_they_say_is_words_alone(tmp_path: Path, place: FileStore) -> None:
    now = time.time()
    publish(place, HostStatus("ill", now, "0.1.0", (ILL,), "2026-11", (MONEY,)))
    publish(place, HostStatus("old", now - 90_000, "0.1.0", (Item("mirror", "m", "ok", "last run done"),)))
    place.put("hosts/liar.json", encode(HostStatus("ill", now, "1", ())))
    site = site_with(
        tmp_path,
        f'publish = "file://{tmp_path}/fleet"\nmanual = "https://docs.example/bw/"\n',
        lambda: [Look("volume", "vm9", lambda: Item("volume", "vm9", "ok", "not served on this host"))],
    )
    answer = page(site)
    assert answer.status_code == 200
    text = answer.text
    hosts = re.findall(r'<h2 id="host-\d+">([^<]+)</h2>', text)
    assert hosts == ["ill", "liar", "old", "here"], "the worst first"
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "Stale" in text
    assert "Was well" in text, "what a silent host said last is not how it is"
    assert "calls its host" in text
    assert "1.50 EUR" in text
    assert 'href="https://docs.example/bw/runbook/store-unreachable.html"' in text
    wrong = [one for one in Seen(text).check() if "leads elsewhere" not in one]
    assert wrong == []
    part = page(site, **{"HX-Request": "true"}).text
    assert part.lstrip().startswith('<div id="fleet"')
    assert "<html" not in part


def test_a_host_that_publishes_is_shown_as_it_did(tmp_path: Path, place: FileStore) -> None:
    """The console's user may see less than root, which publishes."""
    publish(place, HostStatus("here", time.time(), "0.1.0", (Item("volume", "vm1", "ok", "ready"),)))
    site = site_with(
        tmp_path,
        f'publish = "file://{tmp_path}/fleet"\n',
        lambda: [Look("volume", "vm1", lambda: Item("volume", "vm1", "unknown", "", "not yours"))],
    )
    text = page(site).text
    assert "not yours" not in text
    assert "ready" in text


def test_without_a_place_this_host_alone_is_shown(tmp_path: Path) -> None:
    text = page(site_with(tmp_path, "", lambda: [Look("volume", "vm1", lambda: ILL)])).text
    assert "This host alone is shown" in text
    assert "docs/runbook/store-unreachable.md" in text, "no manual is served: the page is named"


def test_a_place_that_never_answers_does_not_hold_the_page(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        site = site_with(
            tmp_path,
            'publish = "s3://hung/fleet"\ndeadline_s = 0.5\n[endpoint.hung]\ncredentials = "none"\n'
            f'url = "http://127.0.0.1:{server.getsockname()[1]}"\n',
        )
        began = time.monotonic()
        text = page(site).text
    assert time.monotonic() - began < 60
    assert "What hosts published cannot be read" in text


def test_it_is_for_operators_and_admins(tmp_path: Path) -> None:
    site = site_with(tmp_path, "")
    assert page(site, "alice").status_code in (403, 404)
    assert page(site, "root").status_code == 200
    refused = site.browser().client.get("/api/v1/admin/fleet", headers=site.token("alice"))
    assert refused.status_code == 403


def test_the_verb_tells_the_same(tmp_path: Path) -> None:
    site = site_with(tmp_path, "", lambda: [Look("volume", "vm1", lambda: ILL)])
    answer = site.browser().client.get("/api/v1/admin/fleet", headers=site.token("ops", "admin:read"))
    told = json.loads(answer.text)
    assert told["health"] == "critical"
    assert [thing["facts"] for thing in told["hosts"][0]["things"]] == [{"rpo_seconds": 20.0}]
    assert told["published"] is False


def test_who_asks_at_once_shares_a_look(tmp_path: Path) -> None:
    looked: list[float] = []

    def look() -> Item:
        looked.append(time.monotonic())
        return ILL

    site = site_with(tmp_path, "", lambda: [Look("volume", ILL.name, look)])
    began = time.monotonic()
    for _ in range(3):
        assert page(site).status_code == 200
    assert len(looked) <= 1 + (time.monotonic() - began) / 5
