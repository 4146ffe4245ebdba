"""Homes that are not as one expects: nothing of them may stop the agent, and no run may claim more than it saved."""

from __future__ import annotations

import base64
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from envctl.agent import attributes, content, enrolment, restore, scan, status
from envctl.agent.errors import Fenced, Incomplete
from tests.envctl.agent.console import FakeConsole
from tests.envctl.agent.machine import Machine
from tests.envctl.agent.test_backup_and_restore import obey, rebuilt, tree_of


@pytest.fixture
def console() -> Iterator[FakeConsole]:
    with FakeConsole() as made:
        yield made


@pytest.fixture
def machine(console: FakeConsole, tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "first", console)
    made.service().restore()
    return made


class _Closed:
    """An entry as `os.scandir` gives it, of a mount that root may not look at."""

    def __init__(self, entry: os.DirEntry[str], number: int) -> None:
        self.name = entry.name
        self._number = number

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        raise OSError(self._number, os.strerror(self._number))


class _Entries:
    def __init__(self, found: Any, closed: dict[str, int]) -> None:
        self._found, self._closed = found, closed

    def __enter__(self) -> Iterator[Any]:
        return (_Closed(each, self._closed[each.name]) if each.name in self._closed else each for each in self._found)

    def __exit__(self, *error: object) -> None:
        self._found.close()


def closed(patched: pytest.MonkeyPatch, **numbers: int) -> None:
    """Entries of these names answer stat with that error, wherever the walk meets them."""
    scandir = os.scandir
    patched.setattr(os, "scandir", lambda folder: _Entries(scandir(folder), numbers))


def paths_of(console: FakeConsole) -> set[bytes]:
    assert console.number is not None
    return {row.path for row in tree_of(console, console.number).rows()}


def test_a_mount_that_root_may_not_see_hides_nothing_beside_it(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "user" / "remote").mkdir(parents=True)
    (machine.home / "user" / "a").write_bytes(b"1")
    (machine.home / "user" / "z").mkdir()
    machine.service().backup("timer")
    with monkeypatch.context() as patched:
        closed(patched, remote=13)
        (machine.home / "user" / "b").write_bytes(b"2")
        (machine.home / "user" / "z" / "c").write_bytes(b"3")
        machine.service().backup("timer")
        assert {b"home/user/b", b"home/user/z/c", b"home/user/remote"} <= paths_of(console)
        assert machine.service().backup("timer").unchanged
    (machine.home / "user" / "remote").rmdir()
    machine.service().backup("timer")
    assert b"home/user/remote" not in paths_of(console)


def test_what_the_disk_does_not_give_is_told_and_no_backup_is_good_without_it(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "user").mkdir()
    (machine.home / "user" / "a").write_bytes(b"1")
    machine.service().backup("timer")
    good_at = machine.memory()["last_backup_at"]
    with monkeypatch.context() as patched:
        closed(patched, user=5)
        with pytest.raises(Incomplete):
            machine.service().backup("timer")
        (machine.home / "beside").write_bytes(b"2")
        with pytest.raises(Incomplete, match="backup 2 has not all"):
            machine.service().backup("timer")
    assert console.number == 2
    assert {b"home/user/a", b"home/beside"} <= paths_of(console)
    assert not any(each["unchanged"] for each in console.heartbeats)
    assert "home/user was not looked into" in console.heartbeats[-1]["status"]["last_error"]
    assert machine.memory()["last_backup_at"] == good_at
    machine.service().backup("timer")
    assert machine.memory()["last_error"] == ""
    assert machine.memory()["last_backup_at"] > good_at


def test_a_home_that_is_away_is_no_unchanged_home(console: FakeConsole, machine: Machine) -> None:
    (machine.home / "a").write_bytes(b"1")
    machine.service().backup("timer")
    machine.home.rename(machine.disk / "elsewhere")
    with pytest.raises(Incomplete, match="it is not there"):
        machine.service().backup("timer")
    assert not any(each["unchanged"] for each in console.heartbeats)
    assert console.number == 1


def test_a_volume_that_is_not_mounted_is_no_empty_home(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "a").write_bytes(b"1")
    with monkeypatch.context() as patched:
        patched.setattr(os.path, "ismount", lambda path: path.endswith(b"/home"))
        machine.service().backup("timer")
    (machine.home / "a").unlink()
    with pytest.raises(Incomplete, match="not mounted"):
        machine.service().backup("timer")
    assert console.number == 1


def test_a_file_that_was_away_while_it_was_read_is_saved_when_it_is_back(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "user" / "project").mkdir(parents=True)
    (machine.home / "user" / "project" / "thesis").write_bytes(b"years of work")
    of = content.Directories.of

    def of_nothing(self: content.Directories, put: Any) -> int:
        if put.path.endswith(b"/thesis"):
            raise content.Gone("its directory was away for a moment")
        return of(self, put)

    for each in (machine.home / "user" / "project" / "thesis", machine.home / "user" / "project"):
        os.utime(each, (1, 1))
    with monkeypatch.context() as patched:
        # As if the change were older than the tick of the clock.
        patched.setattr("envctl.agent.scan.RACY_NS", -(10**12))
        patched.setattr(content.Directories, "of", of_nothing)
        machine.service().backup("timer")
    assert b"home/user/project/thesis" not in paths_of(console)
    machine.service().backup("timer")
    assert b"home/user/project/thesis" in paths_of(console)


def test_times_of_later_centuries(console: FakeConsole, machine: Machine, tmp_path: Path) -> None:
    for name, at in (("late", 13_569_465_600), ("early", -2_000_000_000)):
        (machine.home / name).write_bytes(b"x")
        os.utime(machine.home / name, (at, at))
    if os.stat(machine.home / "late").st_mtime_ns <= attributes.TIME_NS_MAX:
        pytest.skip("this file system knows no time after 2262")
    machine.service().backup("timer")
    assert machine.service().backup("timer").unchanged
    second = rebuilt(console, tmp_path / "second")
    assert os.stat(second.home / "early").st_mtime == -2_000_000_000
    assert os.stat(second.home / "late").st_mtime_ns == attributes.TIME_NS_MAX
    shutil.rmtree(second.disk)


def test_a_name_that_is_no_utf_8_is_told_of(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(130):
        Path(os.fsdecode(os.fsencode(machine.home) + b"/caf\xe9 %03d" % number)).write_bytes(b"x")
    with monkeypatch.context() as patched:
        patched.setattr("envctl.agent.service.PROGRESS_S", 0.0)
        service = machine.service()
        service._has_progress(os.fsdecode(b"/home/caf\xe9"), 0.5)
        assert "\\udce9" in Path(machine.places.run, "status.txt").read_text()
        service.backup("timer")
        service._has_progress(os.fsdecode(b"/home/caf\xe9"), 0.5)
        service._heartbeat(service._enrolled())
    assert console.heartbeats[-1]["status"]["message"] == "/home/caf?"
    assert len(list(rebuilt(console, tmp_path / "second").home.iterdir())) == 130


def test_a_restore_that_fails_for_good_leaves_an_agent_that_works(console: FakeConsole, machine: Machine) -> None:
    (machine.home / "user").mkdir()
    (machine.home / "user" / "large").write_bytes(os.urandom(100_000))
    machine.service().backup("timer")
    (machine.home / "user" / "large").write_bytes(os.urandom(100_000))
    machine.service().backup("timer")
    snapshot = console.snapshots[1]
    lost = {name: console.objects.pop(name) for name in [f"packs/{pack}" for pack in snapshot["packs"]]}
    for paths in (None, [base64.b64encode(b"home/user/large").decode()]):
        answer = obey(machine, console, number=1, trees=snapshot["trees"], paths=paths, into="place")
        assert not answer["ok"]
        assert machine.memory()["restoring"] == {}
        (machine.home / "user" / "later").write_text(str(paths))
        assert not machine.service().backup("timer").unchanged
        machine.service().restore()
    assert not (machine.home / ".envctl-staging").exists()
    console.objects.update(lost)
    answer = obey(machine, console, number=1, trees=snapshot["trees"], paths=None, into="place")
    assert answer["ok"], answer
    assert not (machine.home / "user" / "later").exists()


def test_a_rollback_whose_end_the_console_did_not_hear_of_is_confirmed_later(
    console: FakeConsole, machine: Machine, tmp_path: Path
) -> None:
    for text in ("one", "two"):
        (machine.home / "file").write_text(text)
        machine.service().backup("timer")
    console.want(1)
    second = Machine(tmp_path / "second", console)

    def dies(point: str) -> None:
        if point == "sentinel":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        second.service(dies).restore()
    second.service().restore()
    assert [each["number"] for each in console.restored] == [None, 1]
    second.service().backup("timer")
    assert console.snapshots[3]["parent"] == 2
    assert (second.home / "file").read_text() == "one"


def test_a_disk_that_was_put_back_to_an_earlier_day_is_saved_as_it_is(
    console: FakeConsole, machine: Machine, tmp_path: Path
) -> None:
    (machine.home / "file").write_text("one")
    os.utime(machine.home, (1, 1))
    machine.service().backup("timer")
    shutil.copytree(machine.places.state, tmp_path / "state")
    (machine.home / "second").write_text("two")
    machine.service().backup("timer")
    (machine.home / "second").unlink()
    os.utime(machine.home, (1, 1))
    shutil.rmtree(machine.places.state)
    shutil.copytree(tmp_path / "state", machine.places.state)
    machine.service().backup("timer")
    machine.service().backup("timer")
    assert console.number == 3
    assert b"home/second" not in paths_of(console)


def test_a_state_that_cannot_be_written_is_told_to_the_console(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "file").write_text("one")

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    monkeypatch.setattr("envctl.agent.memory.save", full)
    with pytest.raises(OSError, match="No space"):
        machine.service().backup("timer")
    assert "No space left" in console.heartbeats[-1]["status"]["last_error"]


def test_a_home_deeper_than_the_stack_is_restored_and_its_rest_removed(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.chdir(machine.home)
        for _ in range(1000):
            os.mkdir("d")
            os.chdir("d")
    machine.service().backup("timer")
    answer = obey(machine, console, number=1, trees=console.snapshots[1]["trees"], paths=None, into="place")
    assert answer["ok"], answer
    assert os.listdir(machine.home) == ["d"]
    assert len(paths_of(console)) == 1001
    restore._remove(os.fsencode(machine.home))


ENROLLED, COPIED = "7c9e6679-7425-40de-944b-e07fc1f90ae7", "0b3e8c55-1fb4-4c0b-9a52-55a36d6f28d1"


def test_a_copy_of_a_machine_is_fenced_and_the_machine_is_not(
    console: FakeConsole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enrolment, "machine_uuid", lambda: ENROLLED)
    machine = Machine(tmp_path / "first", console)
    machine.service().restore()
    (machine.home / "a").write_bytes(b"1")
    machine.service().backup("timer")
    shutil.copytree(machine.folder, tmp_path / "copy", symlinks=True)
    copy = Machine(tmp_path / "copy", console)
    (copy.home / "a").write_bytes(b"2")
    for read in ("", ENROLLED.upper(), "79669e7c-2574-de40-944b-e07fc1f90ae7"):
        monkeypatch.setattr(enrolment, "machine_uuid", lambda read=read: read)
        machine.service().backup("timer")
    asked = len(console.requests)
    monkeypatch.setattr(enrolment, "machine_uuid", lambda: COPIED)
    for _ in range(2):
        with pytest.raises(Fenced, match="is a copy"):
            copy.service().backup("timer")
    copy.service().run(lambda wait_s: nullcontext(True))
    assert len(console.requests) == asked
    assert console.number == 1
    assert COPIED in copy.memory()["fenced"]
    assert "resets the environment" in status.words(copy.status())
    monkeypatch.setattr(enrolment, "machine_uuid", lambda: ENROLLED)
    (machine.home / "a").write_bytes(b"3")
    assert machine.service().backup("timer").number == 2


def test_settings_are_not_written_over_what_another_run_wrote(machine: Machine) -> None:
    listening = machine.service()
    listening._lock = lambda wait_s: nullcontext(False)
    listening._enrolled()
    (machine.home / "a").write_bytes(b"1")
    machine.service().backup("timer")
    listening._take_settings({"interval_s": 60})
    assert machine.memory()["number"] == 1
    assert machine.memory()["settings"]["interval_s"] == 300
    listening._lock = lambda wait_s: nullcontext(True)
    listening._take_settings({"interval_s": 60})
    assert (machine.memory()["number"], machine.memory()["settings"]["interval_s"]) == (1, 60)


class _Elsewhere:
    """An entry as `os.scandir` gives it, of another file system."""

    def __init__(self, entry: os.DirEntry[str]) -> None:
        self.name = entry.name
        self._entry = entry

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        found = self._entry.stat(follow_symlinks=follow_symlinks)
        return os.stat_result((found[0], found[1], found[2] + 1, *found[3:]), {"st_mtime_ns": 1, "st_ctime_ns": 1})


class _Mounted(_Entries):
    def __enter__(self) -> Iterator[Any]:
        return (_Elsewhere(each) if each.name in self._closed else each for each in self._found)


def test_a_file_system_that_is_not_saved_is_told_until_it_is_excluded(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "alice").mkdir()
    (machine.home / "alice" / "thesis").write_bytes(b"years of work")
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: _Mounted(scandir(folder), {"alice": 0}))
    for unchanged in (False, True):
        done = machine.service().backup("timer")
        assert (done.unchanged, len(done.problems)) == (unchanged, 1)
        assert "/home/alice is a file system of its own and is not saved" in machine.memory()["problems"][0]
    assert b"home/alice/thesis" not in paths_of(console)
    assert console.heartbeats[-1]["status"]["problems"] == machine.memory()["problems"]
    assert "/home/alice is a file system" in status.words(machine.status())
    console.settings["excludes"] = ["/home/alice"]
    listening = machine.service()
    listening._take_settings(listening._heartbeat(listening._enrolled()))
    machine.service().backup("timer")
    assert machine.memory()["problems"] == []


@pytest.mark.parametrize("how", ["truncate", "write", "own"])
def test_a_file_that_cannot_be_here_keeps_nobody_from_the_home(
    console: FakeConsole, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    (machine.home / "user").mkdir()
    (machine.home / "user" / "disk.img").write_bytes(b"7" * 77_777)
    os.link(machine.home / "user" / "disk.img", machine.home / "user" / "same.img")
    (machine.home / "user" / "thesis").write_bytes(b"years of work")
    machine.service().backup("timer")
    refused = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    truncate, write, apply = os.ftruncate, os.pwrite, attributes.apply

    def truncating(descriptor: int, size: int) -> None:
        if how == "truncate" and size == 77_777:
            raise refused
        truncate(descriptor, size)

    def writing(descriptor: int, data: bytes, place: int) -> int:
        if how == "write" and len(data) == 77_777:
            raise refused
        return write(descriptor, data, place)

    def applying(row: Any, directory: int, name: bytes, names: attributes.Names) -> list[str]:
        if how == "own" and row.path.endswith(b"disk.img"):
            raise refused
        return apply(row, directory, name, names)

    with monkeypatch.context() as patched:
        patched.setattr(os, "ftruncate", truncating)
        patched.setattr(os, "pwrite", writing)
        patched.setattr(attributes, "apply", applying)
        second = rebuilt(console, tmp_path / "second")
    assert (second.home / "user" / "thesis").read_bytes() == b"years of work"
    assert (second.home / "user" / "disk.img").exists() == (how == "own")
    missing = [b"home/user/disk.img"] if how == "own" else [b"home/user/disk.img", b"home/user/same.img"]
    said = console.restored[-1]
    assert [base64.b64decode(each) for each in said["left_out"]] == missing
    assert said["left_out_count"] == len(missing)
    done = second.service().backup("timer")
    assert done.stats.get("removed", 0) == 0
    assert "/home/user/disk.img" in console.heartbeats[-1]["status"]["problems"][0]
    assert {b"home/user/disk.img", b"home/user/same.img"} <= paths_of(console)


def test_a_disk_that_is_full_is_no_matter_of_one_file(
    console: FakeConsole, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "a").write_bytes(b"1")
    machine.service().backup("timer")
    console.want(1)
    second = Machine(tmp_path / "second", console)

    def full(descriptor: int, data: bytes, place: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        assert not second.service().restore_until_done_or_later()
    assert "No space left" in console.heartbeats[-1]["status"]["last_error"]
    assert second.service().restore_until_done_or_later()
    assert (second.home / "a").read_bytes() == b"1"


def test_a_mount_whose_server_may_hang_is_not_even_looked_at(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine.home / "user" / "far away").mkdir(parents=True)
    (machine.home / "user" / "far away" / "below").write_bytes(b"0")
    machine.service().backup("timer")
    point = os.fsencode(machine.home / "user" / "far away").replace(b" ", b"\\040")
    line = b"36 25 0:32 / %s rw,nosuid shared:1 - fuse.sshfs host: rw\n" % point
    monkeypatch.setattr(scan, "_mountinfo", lambda: b"25 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + line)
    looked: set[str] = set()
    scandir = os.scandir

    class Watched(_Entries):
        def __enter__(self) -> Iterator[Any]:
            return (_Looked(each, looked) for each in self._found)

    monkeypatch.setattr(os, "scandir", lambda folder: Watched(scandir(folder), {}))
    (machine.home / "user" / "a").write_bytes(b"1")
    machine.service().backup("timer")
    done = machine.service().backup("timer")
    assert done.unchanged
    assert any("far away is a file system of its own" in each for each in done.problems)
    assert {"user", "a"} <= looked
    assert not {"far away", "below"} & looked
    assert {b"home/user/a", b"home/user/far away/below"} <= paths_of(console)


class _Looked:
    """An entry as `os.scandir` gives it, that tells of each look at it."""

    def __init__(self, entry: os.DirEntry[str], looked: set[str]) -> None:
        self.name = entry.name
        self._entry, self._looked = entry, looked

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        self._looked.add(self.name)
        return self._entry.stat(follow_symlinks=follow_symlinks)
