"""The parts on their own: the table of chunks, hooks, the rate, the command, commands of the console."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from envctl.agent import hooks, main, memory, merge, segments, service, status
from envctl.agent.client import Allowance, Console, World
from envctl.agent.codec import ZLIB
from envctl.agent.dedup import Dedup
from envctl.agent.errors import Refused, Unavailable
from envctl.agent.tree import FILE, SEGMENT_ROWS_MIN, Chunk, Row, Tree, TreeReader
from tests.envctl.agent.console import FakeConsole
from tests.envctl.agent.machine import Machine


@pytest.fixture
def console() -> Iterator[FakeConsole]:
    with FakeConsole() as made:
        yield made


def test_the_table_of_chunks_grows_and_keeps_the_first(tmp_path: Path) -> None:
    table = Dedup(str(tmp_path), slots=4)
    digests = [hashlib.sha256(b"%d" % number).digest() for number in range(500)]
    for number, digest in enumerate(digests):
        table.add(Chunk(hashlib.sha256(b"pack %d" % (number % 7)).digest(), digest, number, 5, 6))
    table.add(Chunk(bytes(31) + b"\1", digests[0], 99, 99, 99))
    for number, digest in enumerate(digests):
        found = table.find(digest)
        assert found is not None
        assert (found.offset, found.pack) == (number, hashlib.sha256(b"pack %d" % (number % 7)).digest())
    assert table.find(hashlib.sha256(b"unknown").digest()) is None
    table.close()
    assert list(tmp_path.iterdir()) == []


def program(folder: Path, name: str, text: str, mode: int = 0o755) -> None:
    (folder / name).write_text("#!/bin/sh\n" + text)
    (folder / name).chmod(mode)


def test_hooks_run_in_order_and_hold_up_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = tmp_path / "pre.d"
    folder.mkdir()
    program(folder, "20-second", f'echo "second $ENVCTL_KIND" >> {out}\n')
    program(folder, "10-first", f"echo first >> {out}\n")
    program(folder, "30-fails", "echo what went wrong >&2\nexit 3\n")
    program(folder, "40-hangs", "sleep 600 & wait\n")
    program(folder, "50-open", f"echo open >> {out}\n", mode=0o777)
    program(folder, "60-not-executable", f"echo not >> {out}\n", mode=0o644)
    began = time.monotonic()
    problems = hooks.run(str(folder), 1.0, {"ENVCTL_KIND": "timer"})
    assert time.monotonic() - began < 60
    assert out.read_text() == "first\nsecond timer\n"
    assert len(problems) == 3
    assert "ended with 3: what went wrong" in problems[0]
    assert "was ended after 1 s" in problems[1]
    assert "must belong to root" in problems[2]
    assert hooks.run(str(tmp_path / "none"), 1.0, {}) == []


def test_a_hook_that_leaves_a_service_or_leads_nowhere_holds_up_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pre.d"
    folder.mkdir()
    program(folder, "10-service", f"setsid sleep 30 & echo $! > {tmp_path / 'pid'}\nexit 0\n")
    (folder / "20-nowhere").symlink_to("/nowhere")
    began = time.monotonic()
    problems = hooks.run(str(folder), 20.0, {})
    assert time.monotonic() - began < 15
    assert len(problems) == 1
    assert "20-nowhere was not run" in problems[0]
    os.kill(int((tmp_path / "pid").read_text()), 9)


def test_a_clock_that_is_put_back_does_not_silence_the_agent(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "first", console)
    service = machine.service()
    service.restore()
    before = len(console.heartbeats)
    machine.now += 60
    service._has_progress("one", 0.1)
    machine.now -= 86400
    service._has_progress("two", 0.2)
    assert len(console.heartbeats) == before + 2
    assert machine.status()["message"] == "two"


def test_the_rate_is_kept_by_all_threads_together() -> None:
    now = [0.0]
    lock = threading.Lock()

    def sleep(seconds: float) -> None:
        with lock:
            now[0] += seconds

    rate = Allowance(1000, lambda: now[0], sleep)
    for _ in range(10):
        rate.take(500)
    assert 4.4 <= now[0] <= 5.0
    unlimited = Allowance(0, lambda: now[0], sleep)
    unlimited.take(10**12)
    assert now[0] <= 5.0


def test_a_console_that_is_away_is_asked_again_with_pauses() -> None:
    slept: list[float] = []
    world = World(lambda: 0.0, slept.append, lambda count: b"\x80" * count)
    with pytest.raises(Unavailable, match="does not answer"):
        Console("http://127.0.0.1:9", world).get("/guest/v1/state")
    assert len(slept) == 4
    assert slept == sorted(slept)


def row(number: int, size: int = 1) -> Row:
    return Row(b"home/%06d" % number, FILE, 0o644, 0, 0, b"", b"", number, size)


def test_a_small_change_in_a_large_tree_makes_one_segment_anew(console: FakeConsole, tmp_path: Path) -> None:
    """And after any changes the tree is what it would be if it were made at once, but for where segments end."""
    world = World(lambda: 0.0, lambda s: None, os.urandom)
    store = segments.Segments(str(tmp_path), Console(console.address, world))
    spool = merge.Spool(str(tmp_path))
    for number in range(20_000):
        spool.put(b"home/%06d" % number, row(number))
    first = merge.Merge([], store, ZLIB, lambda pack: pack).run(spool.read())
    assert (first.files, first.added) == (20_000, 20_000)
    assert 3 <= len(first.trees) <= 20
    spool = merge.Spool(str(tmp_path))
    spool.put(b"home/010000", row(10_000, 7))
    spool.drop(b"home/010001")
    second = merge.Merge(first.trees, store, ZLIB, lambda pack: pack).run(spool.read())
    assert (second.changed, second.removed, second.files, second.bytes) == (1, 1, 19_999, 20_005)
    assert len(set(second.trees) - set(first.trees)) <= 2
    spool = merge.Spool(str(tmp_path))
    third = merge.Merge(second.trees, store, ZLIB, lambda pack: pack).run(spool.read())
    assert third.trees == second.trees
    whole = store.tree(second.trees)
    assert [each.path for each in whole.rows()] == [b"home/%06d" % n for n in range(20_000) if n != 10_001]
    assert all(store.open(name).rows_total >= SEGMENT_ROWS_MIN for name in second.trees[:-1])


def test_the_service_takes_commands_and_ends_when_fenced(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path, console)
    machine.service().restore()
    (machine.home / "file").write_bytes(b"x")
    asked = console.ask("backup", kind="asked")
    unknown = console.ask("dance")

    def heard() -> Iterator[None]:
        while not {asked, unknown} <= console.answers.keys():
            yield

    def fence() -> None:
        until = time.monotonic() + 60
        for _ in heard():
            time.sleep(0.02)
            assert time.monotonic() < until
        console.fenced = True

    watcher = threading.Thread(target=fence)
    watcher.start()
    machine.service().run(lambda wait_s: nullcontext(True))
    watcher.join()
    assert console.answers[asked]["ok"] is True
    assert console.answers[asked]["answer"]["number"] == 1
    assert console.snapshots[1]["command"] == asked
    assert console.answers[unknown]["ok"] is False
    assert machine.memory()["fenced"]
    assert main.main(places(machine, "backup", "--now")) == main.DONE
    assert main.main(places(machine, "restore")) == main.DONE
    assert console.number == 1


def places(machine: Machine, *verb: str) -> list[str]:
    at = machine.places
    return [f"--etc={at.etc}", f"--state={at.state}", f"--run={at.run}", f"--base={machine.disk}", *verb]


def test_a_machine_that_was_replaced_before_its_home_came_lets_nobody_in(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path, console)
    known = memory.load(machine.places)
    known.fenced = "another machine has this home"
    memory.save(machine.places, known)
    assert main.main(places(machine, "restore")) == main.LOOK
    assert console.requests == []


def test_status_is_for_everybody(console: FakeConsole, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = Machine(tmp_path, console)
    assert main.main(places(machine, "status")) == main.LATER
    machine.service().restore()
    machine.service().backup("timer")
    capsys.readouterr()
    assert main.main(places(machine, "status")) == main.DONE
    assert "Last good backup: 2001-09-09" in capsys.readouterr().out
    assert main.main(places(machine, "status", "--json")) == main.DONE
    facts = json.loads(capsys.readouterr().out)
    assert facts["phase"] == "ready"
    assert not {"key", "token", "seed"} & facts.keys()
    assert os.stat(machine.places.identity).st_mode & 0o777 == 0o600
    assert os.stat(machine.places.state).st_mode & 0o777 == 0o700
    words = status.words({"fenced": "", "restored": False, "phase": "restoring"})
    assert "nothing is backed up" in words


def test_backups_wait_for_their_interval(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path, console)
    machine.service().restore()
    assert machine.service().is_due()
    machine.service().backup("timer")
    assert not machine.service().is_due()
    machine.now += 0.8 * 300
    assert not machine.service().is_due()
    machine.now += 0.4 * 300
    assert machine.service().is_due()


def test_a_home_that_is_restored_lets_people_in_without_the_console(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path, console)
    machine.service().restore()
    console.lose = lambda request: True
    assert machine.service().restore_until_done_or_later() is True
    console.lose = lambda request: False
    console.restore["done"] = False
    (machine.home / "file").write_bytes(b"x")
    assert machine.service().backup("timer").number == 1, "the console was told again"


def test_an_address_that_has_expired_is_asked_for_again(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path, console)
    machine.service().restore()
    (machine.home / "file").write_bytes(b"x" * 10)
    original = console._object
    left = [1]

    def expired(method: str, name: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if method == "PUT" and left[0]:
            left[0] -= 1
            return 403, b"expired"
        return original(method, name, headers, body)

    console._object = expired  # type: ignore[method-assign]  # the store behind the addresses
    assert machine.service().backup("timer").number == 1

    def denied(method: str, name: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        return (403, b"denied") if method == "PUT" else original(method, name, headers, body)

    console._object = denied  # type: ignore[method-assign]  # as above
    (machine.home / "file").write_bytes(b"y" * 10)
    with pytest.raises(Refused, match="403"):
        machine.service().backup("timer")
    assert "403" in machine.status()["last_error"]
    assert console.heartbeats[-1]["status"]["last_error"]
    console._object = original  # type: ignore[method-assign]  # as above
    assert machine.service().backup("timer").number == 2
    tree = Tree(console.snapshots[2]["trees"], lambda name: TreeReader(console.objects[f"trees/{name}"]))
    assert tree.find(b"home/file") is not None


def test_people_are_counted_not_their_managers(tmp_path: Path) -> None:
    for name, text in {
        "1": "CLASS=user\n",
        "c2": "CLASS=user-early\n",
        "3": "CLASS=manager\n",
        "1.ref": "CLASS=user\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert service._logins(str(tmp_path)) == 2
    assert service._logins(str(tmp_path / "none")) == 0
