"""The catalogue: exact sums whoever changes it, listings that race with what this host does, and nothing that a damaged or
deleted file loses for good."""

import multiprocessing
import os
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plugin.catalogue import NAME, RECENT_S, Catalogue, Entry


def entry(key: str, size: int = 10, etag: str = "e1", modified: float = 1000.0) -> Entry:
    return Entry(key, size, size, etag, modified)


def by_key(entries: Iterable[Entry]) -> dict[str, Entry]:
    return {one.key: one for one in entries}


class Now:
    def __init__(self) -> None:
        self.time = 1_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def catalogue(tmp_path: Path, now: Now) -> Iterator[Catalogue]:
    made = Catalogue(tmp_path / "s" / NAME, now=now)
    yield made
    made.close()


def listed(catalogue: Catalogue, *entries: Entry) -> None:
    """A listing that nothing raced with."""
    listing = catalogue.begin_listing()
    doubt = catalogue.doubtful(listing, by_key(entries))
    found = by_key(entries)
    catalogue.finish_listing(listing, found, doubt, {key: found.get(key) for key in doubt.keys})


def assert_exact(catalogue: Catalogue) -> None:
    entries, usage = catalogue.entries(), catalogue.usage()
    sums = (len(entries), sum(one.size for one in entries), sum(one.stored for one in entries))
    assert (usage.objects, usage.size, usage.stored) == sums


def test_what_is_written_is_found_and_counted(catalogue: Catalogue) -> None:
    one = Entry("p/dump/a", 90, 100, "e", 5.5, "v1", "GLACIER", sealed=True)
    catalogue.written(one)
    catalogue.written(entry("p/iso/b", 7))
    assert catalogue.entry("p/dump/a") == one
    assert catalogue.entries("p/dump/") == [one]
    assert (catalogue.usage().objects, catalogue.usage().size, catalogue.usage().stored) == (2, 97, 107)
    assert catalogue.usage_below(["p/dump/", "p/none/"]) == {"p/dump/": (1, 100), "p/none/": (0, 0)}
    catalogue.deleted("p/dump/a")
    assert catalogue.entry("p/dump/a") is None
    assert_exact(catalogue)
    assert stat.S_IMODE(catalogue.path.stat().st_mode) == 0o600


def test_a_listing_is_taken_as_it_is(catalogue: Catalogue, now: Now) -> None:
    assert catalogue.usage().listed_at == 0.0
    listed(catalogue, entry("a"), entry("b"), entry("c"))
    before = catalogue.usage()
    assert before.listed_at == now.time
    listing = catalogue.begin_listing()
    found = by_key([entry("a"), entry("b", 11, "e2"), entry("d")])
    changes = catalogue.finish_listing(listing, found, catalogue.doubtful(listing, found), {})
    assert changes is not None
    assert (changes.came, changes.changed, changes.went) == (("d",), ("b",), ("c",))
    assert by_key(catalogue.entries()) == found
    assert catalogue.usage().generation > before.generation
    assert_exact(catalogue)


def test_the_same_listing_again_changes_nothing(catalogue: Catalogue) -> None:
    listed(catalogue, entry("a"), entry("b"))
    before = catalogue.usage().generation
    listed(catalogue, entry("a", modified=1000.7), entry("b"))
    assert catalogue.usage().generation == before


def test_a_plain_size_outlives_listings_of_the_same_object(catalogue: Catalogue) -> None:
    catalogue.written(Entry("a", 90, 100, "e", 5.0, "v1", sealed=True))
    listed(catalogue, Entry("a", 100, 100, "e", 5.0))
    assert catalogue.entry("a") == Entry("a", 90, 100, "e", 5.0, "v1", sealed=True)


def test_a_write_during_a_listing_stands(catalogue: Catalogue) -> None:
    listing = catalogue.begin_listing()
    doubt = catalogue.doubtful(listing, {})
    catalogue.written(entry("late"))
    catalogue.finish_listing(listing, {}, doubt, {})
    assert catalogue.entry("late") is not None


def test_a_delete_during_a_listing_stands(catalogue: Catalogue) -> None:
    listed(catalogue, entry("a"))
    listing = catalogue.begin_listing()
    found = by_key([entry("a")])
    doubt = catalogue.doubtful(listing, found)
    catalogue.deleted("a")
    catalogue.finish_listing(listing, found, doubt, {})
    assert catalogue.entry("a") is None


def test_what_differs_from_what_this_host_did_lately_is_doubtful(catalogue: Catalogue, now: Now) -> None:
    catalogue.written(entry("hidden"))
    catalogue.written(entry("replaced", etag="ours"))
    catalogue.written(entry("same"))
    catalogue.written(entry("deleted"))
    catalogue.deleted("deleted")
    now.time += RECENT_S / 2
    listing = catalogue.begin_listing()
    found = by_key([entry("replaced", etag="theirs"), entry("same"), entry("deleted")])
    doubt = catalogue.doubtful(listing, found)
    assert set(doubt.keys) == {"hidden", "replaced", "deleted"}
    with pytest.raises(ValueError, match="hidden"):
        catalogue.finish_listing(listing, found, doubt, {"replaced": None, "deleted": None})
    settled = {"hidden": entry("hidden"), "replaced": entry("replaced", etag="ours"), "deleted": None}
    catalogue.finish_listing(listing, found, doubt, settled)
    assert {one.key: one.etag for one in catalogue.entries()} == {"hidden": "e1", "replaced": "ours", "same": "e1"}


def test_what_this_host_did_long_ago_is_believed_no_more(catalogue: Catalogue, now: Now) -> None:
    catalogue.written(entry("gone"))
    catalogue.deleted("back")
    now.time += RECENT_S + 1
    listing = catalogue.begin_listing()
    found = by_key([entry("back")])
    assert catalogue.doubtful(listing, found).keys == ()
    listed(catalogue, entry("back"))
    assert [one.key for one in catalogue.entries()] == ["back"]


def test_an_older_listing_that_ends_later_is_dropped(catalogue: Catalogue) -> None:
    older = catalogue.begin_listing()
    listed(catalogue, entry("new"))
    found = by_key([entry("old")])
    assert catalogue.finish_listing(older, found, catalogue.doubtful(older, found), {}) is None
    assert [one.key for one in catalogue.entries()] == ["new"]


def test_texts_belong_to_an_etag(catalogue: Catalogue) -> None:
    catalogue.written(entry("a.notes", etag="n1"))
    assert catalogue.text("a.notes") is None
    catalogue.keep_text("a.notes", "n1", "hello")
    assert catalogue.text("a.notes") == "hello"
    assert catalogue.texts("a") == {"a.notes": "hello"}
    catalogue.written(entry("a.notes", etag="n2"))
    assert catalogue.text("a.notes") is None


def test_facts(catalogue: Catalogue) -> None:
    assert catalogue.fact("probe") is None
    catalogue.keep_fact("probe", {"ok": True})
    assert catalogue.fact("probe") == {"ok": True}


def test_another_one_sees_it_at_once(catalogue: Catalogue) -> None:
    other = Catalogue(catalogue.path)
    catalogue.written(entry("a"))
    assert other.usage().objects == 1
    other.close()


@pytest.mark.parametrize("harm", ["removed", "garbage", "torn"])
def test_a_file_that_is_lost_or_damaged_is_made_anew(catalogue: Catalogue, harm: str) -> None:
    for number in range(500):
        catalogue.written(entry(f"k{number}"))
    db = sqlite3.connect(catalogue.path)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    path = catalogue.path
    if harm == "removed":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(b"no database" * 1000)
    else:
        data = bytearray(path.read_bytes())
        data[4096 : len(data) - 4096] = bytes(len(data) - 8192)
        path.write_bytes(data)
    fresh = Catalogue(path)
    assert fresh.entries() == []
    listed(fresh, entry("back"))
    fresh.close()
    # Whoever had the old file open goes on with the new one.
    assert [one.key for one in catalogue.entries()] == ["back"]


def _write_for_ever(path: Path) -> None:
    catalogue = Catalogue(path)
    number = 0
    while True:
        catalogue.written(entry(f"{os.getpid()}-{number % 50}", number))
        if number % 3 == 0:
            catalogue.deleted(f"{os.getpid()}-{number % 50}")
        number += 1


def test_sums_are_exact_after_processes_were_killed(tmp_path: Path) -> None:
    path = tmp_path / NAME
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write_for_ever, args=(path,)) for _ in range(2)]
    for one in writers:
        one.start()
    catalogue = Catalogue(path)
    until = time.monotonic() + 60
    while catalogue.usage().generation < 100 and time.monotonic() < until:
        time.sleep(0.02)
    for one in writers:
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        one.join()
    assert catalogue.usage().generation >= 100
    assert_exact(catalogue)
    catalogue.close()


def test_threads_share_it(catalogue: Catalogue) -> None:
    def work(name: int) -> None:
        for number in range(20):
            catalogue.written(entry(f"{name}-{number}"))
            catalogue.usage()

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert catalogue.usage().objects == 80


KEYS = st.sampled_from(["a", "b", "c"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), KEYS, st.integers(0, 5)),
        st.tuples(st.just("delete"), KEYS, st.just(0)),
        st.tuples(st.just("foreign"), KEYS, st.integers(0, 5)),
        st.tuples(st.just("begin"), st.just(""), st.just(0)),
        st.tuples(st.just("end"), st.just(""), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_in_the_end_it_is_what_the_bucket_is(tmp_path: Path, steps: list[tuple[str, str, int]]) -> None:
    """Listings may show any state between their beginning and their end; whatever raced, one more brings the truth."""
    path = tmp_path / NAME
    path.unlink(missing_ok=True)
    catalogue = Catalogue(path, now=Now())
    truth: dict[str, Entry] = {}
    begun = None
    for number, (step, key, size) in enumerate(steps):
        if step in ("write", "foreign"):
            truth[key] = entry(key, size, f"e{number}")
            if step == "write":
                catalogue.written(truth[key])
        elif step == "delete":
            truth.pop(key, None)
            catalogue.deleted(key)
        elif step == "begin":
            begun = catalogue.begin_listing(), dict(truth)
        elif begun is not None:
            listing, seen = begun
            doubt = catalogue.doubtful(listing, seen)
            catalogue.finish_listing(listing, seen, doubt, {one: truth.get(one) for one in doubt.keys})
            begun = None
        assert_exact(catalogue)
    listing = catalogue.begin_listing()
    doubt = catalogue.doubtful(listing, truth)
    catalogue.finish_listing(listing, truth, doubt, {one: truth.get(one) for one in doubt.keys})
    assert by_key(catalogue.entries()) == truth
    catalogue.close()
