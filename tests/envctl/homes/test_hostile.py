"""What somebody who is root in the own machine may send: bytes that say more of themselves than they are, figures that no row
can keep, requests without end."""

import hashlib
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest

from envctl.agent import tree
from envctl.agent.errors import Corrupt
from envctl.agent.tree import SEGMENT_ROWS_MAX, TreeReader, TreeWriter, hole
from envctl.errors import HomeDamaged, TooMany
from envctl.homes import requests
from envctl.homes.kept import Kept
from envctl.homes.reading import FRAME_BYTES_MAX
from envctl.homes.store import HomeStore
from envctl.homes.upkeep import upkeep
from envctl.web.guest import LIST_BYTES_MAX, POLLS_MAX, SHORT_BYTES, Turns
from s3core.errors import NotFound
from tests.envctl.homes.making import ENVIRONMENT, Bucket, Made, directory_row, file_row, link_row, make, save
from tests.envctl.homes.test_guest_api import FIRST, Site, code, site

__all__ = ["site"]


def segment(footer: bytes, frames: int, packs: int, between: bytes = b"") -> bytes:
    """A segment with a right checksum, whatever it says."""
    numbers = (1, 1, 0, frames, packs, len(footer))
    checksum = zlib.crc32(struct.pack("<QQQIII", *numbers), zlib.crc32(footer))
    trailer = struct.pack("<QQQIIII8s", *numbers, checksum, tree.MAGIC)
    return struct.pack("<8sI4x", tree.MAGIC, tree.VERSION) + between + footer + trailer


def frame(raw: bytes, rows: int, path: bytes) -> tuple[bytes, bytes]:
    """(stored, its entry in the footer), of a first frame."""
    stored = zlib.compress(raw, 9)
    entry = struct.pack("<QIIIIIHH", 16, len(stored), len(raw), rows, zlib.crc32(stored), 1, len(path), len(path))
    return stored, entry + path + path


@pytest.mark.parametrize(
    ("frames", "packs"), [(0, 2**32 - 1), (2**32 - 1, 0), (SEGMENT_ROWS_MAX + 1, 0), (5, 0), (0, 1), (2**31, 2**31)]
)
def test_a_segment_that_claims_more_than_it_has_costs_nothing(frames: int, packs: int) -> None:
    with pytest.raises(Corrupt, match="footer"):
        TreeReader(segment(b"", frames, packs))


def test_paths_of_a_footer_that_run_over_its_end_are_corrupt() -> None:
    entry = struct.pack("<QIIIIIHH", 16, 0, 0, 0, 0, 1, 60_000, 60_000)
    with pytest.raises(Corrupt, match="footer"):
        TreeReader(segment(entry * 2, 2, 0))


def test_a_commit_of_such_a_segment_is_refused(site: Site) -> None:
    guest = site.enrolled(site.environment())
    data = segment(b"", 0, 2**32 - 1)
    name = hashlib.sha256(data).hexdigest()
    bomb = replace(FIRST, trees=(name,), packs=(), objects={f"trees/{name}": data})
    guest.upload(bomb)
    # The guest's fault, and so no damage of a home: an agent does not repeat it for ever.
    assert code(guest.commit(bomb, None)) == (422, "invalid")
    assert guest.get("/guest/v1/state").json()["head"] is None


def test_the_console_unpacks_no_frame_of_hundreds_of_megabytes() -> None:
    stored, entry = frame(bytes(FRAME_BYTES_MAX + 1), 1, b"home/bomb")
    data = segment(entry, 1, 0, stored)
    assert len(data) < 100_000
    store = saved(data)
    with pytest.raises(HomeDamaged, match="too large"):
        store.rows(ENVIRONMENT, 1, b"home")
    with pytest.raises(HomeDamaged, match="too large"):
        next(store.tar_of(ENVIRONMENT, 1, b"home"))


def test_an_archive_holds_nothing_below_a_link() -> None:
    writer = TreeWriter()
    for row in (
        directory_row(b"home"),
        link_row(b"home/etc", b"/etc"),
        file_row(b"home/etc/passwd", [hole(5)]),
        file_row(b"home/etc2", [hole(5)]),
    ):
        writer.add(row)
    store = saved(writer.finish())
    for archive in (store.tar_of, store.zip_of):
        with pytest.raises(HomeDamaged, match="home/etc/passwd"):
            list(archive(ENVIRONMENT, 1, b"home"))
    assert list(store.tar_of(ENVIRONMENT, 1, b"home/etc2"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"stats": {"bytes": 2**70}},
        {"stats": {"new_bytes": 2**63}},
        {"stats": {"files": 2**31}},
        {"stats": {"changed_files_fraction": float("inf")}},
        {"at": float("nan")},
        {"fuzzy_paths": ["x" * 300_000]},
        {"trees": [FIRST.trees[0]] * 1000},
    ],
)
def test_figures_that_no_row_can_keep_never_reach_the_bucket(site: Site, wrong: dict[str, Any]) -> None:
    environment = site.environment()
    guest = site.enrolled(environment)
    guest.upload(FIRST)
    assert code(guest.commit(FIRST, None, **wrong)) == (422, "invalid")
    head = site.context.homes.head(environment.id)
    assert head is not None
    assert head.newest is None
    assert guest.commit(FIRST, None).status_code == 200
    assert upkeep(site.context, environment.id).pruned == ()


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"deep": -float("inf")}])
def test_a_status_is_told_to_others_so_it_is_plain_json(site: Site, value: object) -> None:
    guest = site.enrolled(site.environment())
    assert code(guest.post("/guest/v1/heartbeats", {"status": {"load": value}})) == (422, "invalid")


def test_only_a_commit_has_a_long_body(site: Site) -> None:
    guest = site.enrolled(site.environment())
    for path, most in (
        ("/guest/v1/heartbeats", SHORT_BYTES),
        ("/guest/v1/restored", SHORT_BYTES),
        ("/guest/v1/commands/x", SHORT_BYTES),
        ("/guest/v1/uploads", LIST_BYTES_MAX),
        ("/guest/v1/downloads", LIST_BYTES_MAX),
    ):
        body = b'{"x":"' + b"a" * most + b'"}'
        answer = guest.http.post(path, content=body, headers=guest.headers("POST", path, body))
        assert code(answer) == (422, "invalid"), path
        assert "the body has more than" in answer.text
    body = b'{"x":"' + b"a" * LIST_BYTES_MAX + b'"}'
    answer = guest.http.post(
        "/guest/v1/commits", content=body, headers=guest.headers("POST", "/guest/v1/commits", body)
    )
    assert "the body has more than" not in answer.text


def test_one_machine_does_not_take_all_turns() -> None:
    turns = Turns(2)
    with turns.one("a"), turns.one("a"), turns.one("b"), pytest.raises(TooMany), turns.one("a"):
        raise AssertionError("a third")
    with turns.one("a"), turns.one("a"):
        pass


def test_a_machine_waits_for_commands_a_few_times_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait until they are given something, however slow this is."""
    monkeypatch.setattr("envctl.web.guest.WAIT_MAX_S", 86400.0)
    environment = site.environment()
    guest = site.enrolled(environment)
    path = "/guest/v1/commands?wait=86400"
    waiting = [guest.headers("GET", path, b"") for _ in range(POLLS_MAX)]
    refused: list[Any] = []
    with ThreadPoolExecutor(POLLS_MAX) as pool:
        held = [pool.submit(guest.http.get, path, headers=headers) for headers in waiting]
        try:
            # One more than may wait is refused, whichever of them comes last.
            end = time.monotonic() + 240.0
            while not refused and time.monotonic() < end:
                answer = guest.get("/guest/v1/commands?wait=0")
                answers = [answer, *(one.result() for one in held if one.done())]
                refused += [one for one in answers if one.status_code == 429]
        finally:
            while not all(one.done() for one in held):
                requests.ask(site.context, environment.id, "status", {})
                wait(held, timeout=0.2)
    assert code(refused[0]) == (429, "too-many")
    assert int(refused[0].headers["retry-after"]) >= 1
    assert sum(one.result().status_code == 200 for one in held) >= POLLS_MAX - 1, "those that waited are answered"
    assert guest.get("/guest/v1/commands?wait=0").status_code == 200


def test_what_is_kept_of_documents_is_bounded_by_bytes_and_not_by_their_number() -> None:
    read: list[str] = []

    def document(key: str) -> str:
        read.append(key)
        return key * 10

    kept = Kept(document, len, 100)
    for key in ("aaa", "bbb", "ccc", "aaa", "ddd"):
        assert kept(key) == key * 10
    assert (kept.bytes, len(kept), read) == (90, 3, ["aaa", "bbb", "ccc", "ddd"])
    kept("aaa")
    assert read[-1] == "ddd", "what was asked for last stays"
    kept("e" * 50)
    assert (kept.bytes, len(kept)) == (500, 1), "one that is too large for itself stays until the next"
    kept("f")
    assert (kept.bytes, len(kept)) == (10, 1)

    def gone(key: str) -> str:
        raise NotFound(key)

    for _ in range(2):
        with pytest.raises(NotFound):
            Kept(gone, len, 100)("a")


def test_snapshots_of_many_trees_are_read_and_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("envctl.homes.store.DOCUMENTS_BYTES", 4096)
    store = Bucket().store()
    store.fence(ENVIRONMENT, 1)
    for number in range(20):
        save(store, make({"home/a": b"%d" % number}))
    assert [one.number for one in store.snapshots(ENVIRONMENT)] == list(range(1, 21))
    assert store._document.bytes <= 4096
    assert len(store._document) < 4
    head = store.head(ENVIRONMENT)
    assert head is not None
    trees = {name for name in store.referred(head, {}) if name.startswith("trees/")}
    assert len(trees) == 20


def saved(data: bytes) -> HomeStore:
    """A home whose only backup has this segment."""
    store = Bucket().store()
    store.fence(ENVIRONMENT, 1)
    name = hashlib.sha256(data).hexdigest()
    save(store, Made((name,), (), {f"trees/{name}": data}, ()))
    return store
