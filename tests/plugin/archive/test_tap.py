"""Beside an upload: the index comes, or a lighter one, or none; the upload never fails and never waits long."""

import logging
import threading
from collections.abc import Iterator

import pytest

from plugin.archive.index import ArchiveIndex
from plugin.archive.indexer import Indexer
from plugin.archive.streams import BytesRanges
from plugin.archive.tap import QUEUE_PIECES, IndexTap
from tests.plugin.archive.test_machines import ARCHIVE


def test_the_index_of_what_was_fed() -> None:
    tap = IndexTap()
    for at in range(0, len(ARCHIVE), 3_000_000):
        tap.feed(ARCHIVE[at : at + 3_000_000])
    data = tap.finish("etag")
    assert data is not None
    facts = ArchiveIndex(BytesRanges(data)).facts
    assert (facts.complete, facts.etag, facts.size) == (True, "etag", len(ARCHIVE))


class Broken(Indexer):
    def feed(self, data: bytes | memoryview) -> None:
        raise ZeroDivisionError("an error of ours")


def test_an_indexer_that_fails_fails_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    tap = IndexTap(Broken())
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            tap.feed(b"x" * 100_000)
        assert tap.finish() is None
    assert "an error of ours" in caplog.text


class Slow(Indexer):
    """Feeds nothing until it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()

    def feed(self, data: bytes | memoryview) -> None:
        self.let.wait(60)
        super().feed(data)

    def lighten(self, why: str) -> None:
        super().lighten(why)
        self.let.set()


def test_one_that_is_behind_becomes_lighter() -> None:
    tap = IndexTap(Slow(), patience_s=0.05)
    for at in range(0, len(ARCHIVE), 100_000):
        tap.feed(ARCHIVE[at : at + 100_000])
    data = tap.finish()
    assert data is not None
    index = ArchiveIndex(BytesRanges(data))
    assert "keep up" in index.facts.note
    assert (index.facts.complete, index.facts.size, list(index.runs())) == (False, len(ARCHIVE), [])


class Stuck(Slow):
    def lighten(self, why: str) -> None:
        """Does not help."""


def test_one_that_is_stuck_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.archive.tap.LAST_S", 0.05)
    stuck = Stuck()
    tap = IndexTap(stuck, patience_s=0.05)
    for _ in range(QUEUE_PIECES + 30):
        tap.feed(b"x")
    assert tap.finish(wait_s=0.1) is None
    stuck.let.set()
    tap._thread.join(30)
    assert not tap._thread.is_alive()


@pytest.fixture
def behind() -> Iterator[tuple[IndexTap, Slow]]:
    slow = Slow()
    yield IndexTap(slow), slow
    slow.let.set()


def test_one_that_was_behind_and_caught_up_is_whole(behind: tuple[IndexTap, Slow]) -> None:
    tap, slow = behind
    threading.Timer(0.2, slow.let.set).start()
    for at in range(0, len(ARCHIVE), 100_000):
        tap.feed(ARCHIVE[at : at + 100_000])
    data = tap.finish()
    assert data is not None
    assert ArchiveIndex(BytesRanges(data)).facts.complete


def test_cancelled_it_ends(behind: tuple[IndexTap, Slow]) -> None:
    tap, slow = behind
    tap.feed(b"x")
    slow.let.set()
    tap.cancel()
    tap._thread.join(30)
    assert not tap._thread.is_alive()
