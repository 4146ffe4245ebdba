"""A store that hangs, refuses or is slow: status and errors come in time, what is here is used, nothing stale is shown."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.service_world import Node, ToldError, wait_until

ISO = "iso/a.iso"


@pytest.fixture(autouse=True)
def simple_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(bucket: Any, key: str, path: Path, *, facts: Any, progress: Any, stop: Any) -> Any:
        path.write_bytes(bucket.get(key, if_match=facts.etag))
        return facts

    monkeypatch.setattr("plugin.service.files.download", download)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """Two storages, `s3` and `well`; an ISO of the first is in the cache."""
    made = Node(tmp_path)
    for id in ("s3", "well"):
        made.add(id)
        made.bucket().put(f"{id}/template/iso/a.iso", b"one")
    made.start()
    made.ask("fetch", volname=ISO)
    assert made.names() == made.names("well") == [ISO]
    yield made
    made.stop()


SOON_S = 20.0
"""What a busy machine may take for an answer that waits for nothing. What would wait for the store would take PATIENT_MS."""
PATIENT_MS = 50_000


def seconds_of(node: Node, method: str, storage: str = "s3", **args: Any) -> float:
    began = time.monotonic()
    node.ask(method, storage, PATIENT_MS, **args)
    return time.monotonic() - began


@pytest.mark.parametrize("state", ["hung", "refusing", "slow", "denied"])
def test_status_is_answered_in_time_and_tells_the_truth(node: Node, state: str) -> None:
    node.gates["s3"].state = state
    # The promise is 2 s; what it takes on a quiet machine is measured elsewhere.
    assert seconds_of(node, "status") < SOON_S
    if state == "slow":
        assert node.ask("status")["active"] is True
        return
    wait_until(lambda: node.ask("status")["active"] is False)
    told = node.ask("status")
    assert told["used"] == 3, "the last known numbers stay"
    assert told["reason"]
    assert seconds_of(node, "status") < SOON_S
    assert node.ask("status", "well")["active"] is True
    node.gates["s3"].free()
    wait_until(lambda: node.ask("status")["active"] is True)


def test_a_storm_on_a_hung_storage_delays_nobody_else(node: Node) -> None:
    node.gates["s3"].state = "hung"
    node.forget()
    outcomes: list[str] = []

    def storm() -> None:
        try:
            node.ask("list", deadline_ms=3000)
            outcomes.append("ok")
        except ToldError as error:
            outcomes.append(error.code)

    threads = [threading.Thread(target=storm) for _ in range(100)]
    for one in threads:
        one.start()
    assert seconds_of(node, "status") < SOON_S
    assert seconds_of(node, "status", "well") < SOON_S
    assert node.names("well") == [ISO]
    for one in threads:
        one.join()
    assert len(outcomes) == 100
    assert set(outcomes) <= {"deadline", "busy"}


@pytest.mark.parametrize(("state", "code"), [("hung", "deadline"), ("refusing", "unavailable"), ("denied", "denied")])
def test_a_list_fails_in_time_and_shows_nothing_stale(node: Node, state: str, code: str) -> None:
    node.gates["s3"].state = state
    node.forget()
    began = time.monotonic()
    with pytest.raises(ToldError) as told:
        node.ask("list", deadline_ms=1000)
    assert told.value.code == code
    assert time.monotonic() - began < SOON_S
    node.gates["s3"].free()
    node.bucket().delete("s3/template/iso/a.iso")
    node.bucket().put("s3/template/iso/b.iso", b"2")
    assert node.names() == ["iso/b.iso"]


@pytest.mark.parametrize("state", ["hung", "refusing"])
def test_a_cached_file_serves_while_the_store_is_away(node: Node, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.service.files.LOOK_S", 0.5)
    node.gates["s3"].state = state
    cached = str(node.directory / "state/s3/cache/template/iso/a.iso")
    assert node.ask("path", volname=ISO) == {"path": cached}
    assert node.ask("fetch", volname=ISO) == {"path": cached}
    with pytest.raises(ToldError) as told:
        node.ask("fetch", volname="iso/b.iso")
    assert told.value.code in ("deadline", "unavailable")
    # It was replaced meanwhile: once the store answers, the new one is served.
    node.bucket().put("s3/template/iso/a.iso", b"other")
    node.gates["s3"].free()
    node.ask("fetch", volname=ISO)
    assert Path(cached).read_bytes() == b"other"


@pytest.mark.parametrize("state", ["hung", "refusing"])
def test_what_changes_something_fails_in_time(node: Node, state: str) -> None:
    node.gates["s3"].state = state
    for method in ("free", "size"):
        began = time.monotonic()
        with pytest.raises(ToldError) as told:
            node.ask(method, deadline_ms=800, volname=ISO)
        assert told.value.code in ("deadline", "unavailable")
        assert time.monotonic() - began < SOON_S
    node.gates["s3"].state = "refusing"
    node.gates["s3"].free()


def test_a_copy_is_given_before_the_callers_time_is_over(node: Node) -> None:
    node.gates["s3"].state = "hung"
    cached = str(node.directory / "state/s3/cache/template/iso/a.iso")
    assert node.ask("fetch", deadline_ms=4000, volname=ISO) == {"path": cached}


def test_what_was_done_after_the_caller_gave_up_is_seen(node: Node) -> None:
    node.gates["s3"].state = "hung"
    with pytest.raises(ToldError) as told:
        node.ask("free", deadline_ms=300, volname=ISO)
    assert told.value.code == "deadline"
    node.gates["s3"].free()
    wait_until(lambda: node.names() == [])
    assert not (node.directory / "state/s3/cache/template/iso/a.iso").exists()


def test_a_restart_has_everything(node: Node) -> None:
    node.stop()
    node.gates["s3"].state = "hung"
    node.settings["probe_s"] = "60s"
    node.start()
    told = node.ask("status")
    assert (told["used"], told["active"]) == (3, True), "the last probe was a moment ago"
    assert node.ask("path", volname=ISO)["path"].endswith("cache/template/iso/a.iso")
    assert node.attached().place.counters.ever()["get"].requests == 1


def test_a_catalogue_that_is_deleted_comes_back(node: Node) -> None:
    for path in (node.directory / "state/s3").glob("catalogue.sqlite*"):
        path.unlink()
    assert node.names() == [ISO]
    wait_until(lambda: node.ask("status")["used"] == 3)


def test_a_storage_cfg_that_cannot_be_read_changes_nothing(node: Node) -> None:
    path = node.directory / "etc/pve/storage.cfg"
    text = path.read_bytes()
    path.write_bytes(b"\xff\xfe broken")
    with pytest.raises(ToldError):
        node.ask("status", "unknown")
    assert node.names() == [ISO]
    path.write_bytes(text)


@pytest.mark.parametrize("key", ["iso/a.iso", "backup/vzdump-qemu-100-2026_11_22-10_00_00.vma"])
def test_a_delete_whose_answer_is_lost_is_looked_for(node: Node, key: str) -> None:
    bucket = node.bucket()
    bucket.put("s3/dump/vzdump-qemu-100-2026_11_22-10_00_00.vma", b"1")
    bucket.put("s3/dump/vzdump-qemu-100-2026_11_22-10_00_00.vma.notes", b"1")
    node.gates["s3"].lose = {"delete"}
    node.ask("free", volname=key)
    assert node.gates["s3"].lose == set()
    assert key not in node.names()
    left = [one.decode() for one in bucket.list_page(prefix="s3/dump/").keys]
    assert (left == []) == key.startswith("backup")


def test_notes_whose_answer_is_lost_are_looked_for(node: Node) -> None:
    name = "backup/vzdump-qemu-100-2026_11_22-10_00_00.vma"
    node.bucket().put(f"s3/dump/{name[7:]}", b"1")
    node.gates["s3"].lose = {"put"}
    node.ask("attribute_set", volname=name, name="notes", value="kept")
    assert node.gates["s3"].lose == set()
    assert node.ask("attribute_get", volname=name, name="notes") == {"value": "kept"}
    node.gates["s3"].lose = {"delete"}
    node.ask("attribute_set", volname=name, name="notes", value="")
    assert node.ask("attribute_get", volname=name, name="notes") == {"value": ""}
