"""Who looks waits a moment at most, whatever the store does."""

import threading
import time
from pathlib import Path

from plugin.catalogue import Catalogue
from plugin.mount.freshness import Freshness
from s3core.errors import Unavailable


def listed(catalogue: Catalogue) -> None:
    listing = catalogue.begin_listing()
    catalogue.finish_listing(listing, {}, catalogue.doubtful(listing, {}), {})


def test_it_refreshes_what_is_old_and_leaves_what_is_not(tmp_path: Path) -> None:
    catalogue = Catalogue(tmp_path / "c.sqlite")
    times: list[float] = []

    def refresh() -> None:
        times.append(time.monotonic())
        listed(catalogue)

    fresh = Freshness(catalogue, refresh, 60.0)
    assert not fresh.known
    for _ in range(3):
        fresh.ensure()
    assert fresh.known
    assert len(times) == 1


def test_a_store_that_hangs_costs_one_wait_for_all(tmp_path: Path) -> None:
    catalogue, free = Catalogue(tmp_path / "c.sqlite"), threading.Event()
    listed(catalogue)
    asked: list[int] = []

    def refresh() -> None:
        asked.append(1)
        free.wait(30)

    fresh = Freshness(catalogue, refresh, -1.0, wait_s=0.05, wait_first_s=0.1)
    begin = time.monotonic()
    for _ in range(50):
        fresh.ensure()
    assert time.monotonic() - begin < 20
    assert (len(asked), fresh.known) == (1, True)
    free.set()


def test_a_store_that_refuses_is_asked_again_after_a_while(tmp_path: Path) -> None:
    catalogue, now = Catalogue(tmp_path / "c.sqlite"), [0.0]
    asked: list[float] = []

    def refresh() -> None:
        asked.append(now[0])
        raise Unavailable("connection refused")

    fresh = Freshness(catalogue, refresh, 60.0, retry_s=10.0, monotonic=lambda: now[0])
    for moment in (0.0, 5.0, 11.0, 12.0, 25.0):
        now[0] = moment
        fresh.ensure()
    assert asked == [0.0, 11.0, 25.0]
