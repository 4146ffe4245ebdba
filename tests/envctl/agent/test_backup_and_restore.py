"""A home goes to the console and comes back to another machine, with everything that a file carries."""

from __future__ import annotations

import base64
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from envctl.agent import content, scan
from envctl.agent.errors import Fenced, Incomplete, NotRestored, Refused, Unavailable
from envctl.agent.tree import Tree, TreeReader
from tests.envctl.agent.console import FakeConsole
from tests.envctl.agent.machine import Machine, seen

CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
ACL_HEAD = struct.pack("<I", 2)


@pytest.fixture
def console() -> Iterator[FakeConsole]:
    with FakeConsole() as made:
        yield made


@pytest.fixture
def machine(console: FakeConsole, tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "first", console)
    made.service().restore()
    return made


def rebuilt(console: FakeConsole, folder: Path, number: int | None = None) -> Machine:
    console.want(number or console.number)
    made = Machine(folder, console)
    made.service().restore()
    return made


def tree_of(console: FakeConsole, number: int) -> Tree:
    return Tree(console.snapshots[number]["trees"], lambda name: TreeReader(console.objects[f"trees/{name}"]))


def acl(*entries: tuple[int, int, int]) -> bytes:
    return ACL_HEAD + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def fill(home: Path) -> None:
    user = home / "user"
    user.mkdir(mode=0o750)
    (user / "empty").mkdir()
    (user / "empty file").touch()
    (user / "small").write_bytes(b"hello\n")
    (user / "large").write_bytes(os.urandom(6_000_000))
    (user / "copy").write_bytes((user / "large").read_bytes())
    (user / os.fsdecode(b"not utf-8 \xff\n")).write_bytes(b"x")
    os.symlink("/nowhere/at all", user / "link")
    os.symlink(b"\xfe\xff", user / "odd link")
    os.link(user / "small", user / "another name")
    os.link(user / "small", home / "a name above")
    os.mkfifo(user / "fifo", 0o640)
    with open(user / "sparse", "wb") as file:
        file.seek(3_000_000)
        file.write(b"data in the middle")
        file.truncate(40_000_000)
    with open(user / "hole only", "wb") as file:
        file.truncate(5_000_000)
    (user / "setuid").write_bytes(b"#!")
    os.chown(user / "setuid", 1234, 4321)
    os.chmod(user / "setuid", 0o4755)
    (user / "capable").write_bytes(b"#!")
    os.setxattr(user / "capable", "security.capability", CAPABILITY)
    os.setxattr(user / "small", "user.note", b"\0binary\xff")
    shared = user / "shared"
    shared.mkdir()
    os.setxattr(
        shared,
        "system.posix_acl_access",
        acl((1, 7, 2**32 - 1), (2, 5, 1234), (4, 5, 2**32 - 1), (16, 5, 2**32 - 1), (32, 0, 2**32 - 1)),
    )
    os.setxattr(shared, "system.posix_acl_default", acl((1, 7, 2**32 - 1), (4, 5, 2**32 - 1), (32, 0, 2**32 - 1)))
    (shared / "below").write_bytes(b"inherits")
    os.lchown(user / "link", 77, 88)
    for number, path in enumerate(sorted(user.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + 7 * number + 1), follow_symlinks=False)
    os.utime(user, ns=(1, -5 * 10**9 + 3))
    os.utime(home, ns=(1, 123456789))


def test_everything_a_file_carries_comes_back(console: FakeConsole, machine: Machine, tmp_path: Path) -> None:
    fill(machine.home)
    server = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(machine.home)
    server.bind("socket")
    os.chdir(here)
    done = machine.service().backup("timer")
    server.close()
    os.unlink(machine.home / "socket")
    os.utime(machine.home, ns=(1, 123456789))
    assert done.problems == []
    assert console.puts, "nothing was uploaded"

    other = rebuilt(console, tmp_path / "second")
    os.utime(machine.home, ns=(1, 123456789))
    before, after = seen(machine.home), seen(other.home)
    row = tree_of(console, 1).find(b"home")
    assert row is not None
    after[b""] = (*after[b""][:4], before[b""][4], *after[b""][5:]) if row.mtime_ns != 123456789 else after[b""]
    assert after == before
    sparse = os.stat(other.home / "user" / "sparse")
    assert sparse.st_blocks * 512 < 1_000_000
    assert os.stat(other.home / "user" / "hole only").st_blocks == 0
    assert console.restored[-1]["files"] == done.stats["files"]
    assert not (other.home / os.fsdecode(scan.STAGING)).exists()


def test_an_unchanged_home_costs_a_heartbeat(console: FakeConsole, machine: Machine) -> None:
    fill(machine.home)
    service = machine.service()
    service.backup("timer")
    # What is younger than the clock's tick is read once more; only then the cache can speak for it.
    time.sleep(scan.RACY_NS / 1e9 + 0.1)
    service.backup("timer")
    before, puts = len(console.requests), len(console.puts)
    done = machine.service().backup("timer")
    assert (done.number, done.unchanged) == (1, True)
    assert len(console.puts) == puts
    assert [request for request in console.requests[before:] if "heartbeats" not in request] == []
    assert console.heartbeats[-1]["unchanged"] is True
    assert console.heartbeats[-1]["number"] == 1


def test_a_lost_cache_costs_reading_and_nothing_else(console: FakeConsole, machine: Machine) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    for damage in (b"", None, b"x" * 5000):
        path = Path(machine.places.cache)
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        for segment in Path(machine.places.trees).iterdir():
            segment.write_bytes(b"damaged")
        puts = len(console.puts)
        done = machine.service().backup("timer")
        assert (done.number, done.unchanged, len(console.puts)) == (1, True, puts)


def test_a_change_uploads_what_changed(console: FakeConsole, machine: Machine, tmp_path: Path) -> None:
    fill(machine.home)
    service = machine.service()
    service.backup("timer")
    user = machine.home / "user"
    with open(user / "large", "r+b") as file:
        file.seek(3_000_000)
        file.write(b"changed")
    (user / "copy").rename(user / "moved")
    (user / "empty file").unlink()
    (user / "empty").rmdir()
    (user / "empty").write_bytes(b"a file now")
    done = service.backup("timer")
    assert done.number == 2
    assert (done.stats["added"], done.stats["changed"], done.stats["removed"]) == (2, 1, 2)
    assert done.stats["new_bytes"] < 9_000_000
    other = rebuilt(console, tmp_path / "second")
    assert without_times_of_home(seen(other.home)) == without_times_of_home(seen(machine.home))
    earlier = rebuilt(console, tmp_path / "third", 1)
    assert (earlier.home / "user" / "copy").exists()
    assert (earlier.home / "user" / "empty").is_dir()


def without_times_of_home(found: dict[bytes, tuple[object, ...]]) -> dict[bytes, tuple[object, ...]]:
    return {path: what for path, what in found.items() if path}


NOT_A_CHANGE = (
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY),
    *(errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ENXIO),
)
"""A path through a file, a directory that is not empty, a link to itself: nothing changes then."""
names = st.binary(min_size=1, max_size=3).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b".."))
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["file", "directory", "symlink", "link", "fifo", "remove", "mode", "owner", "xattr", "move", "append"]
        ),
        st.lists(names, min_size=1, max_size=3),
        st.integers(0, 2**20),
    ),
    min_size=1,
    max_size=12,
)


@given(st.lists(steps, min_size=1, max_size=3))
@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would make and mend homes for minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_series_of_changes_comes_back(
    tmp_path_factory: pytest.TempPathFactory, series: list[list[tuple[str, list[bytes], int]]]
) -> None:
    folder = tmp_path_factory.mktemp("home")
    with FakeConsole() as console:
        machine = Machine(folder / "first", console)
        machine.service().restore()
        for changes in series:
            for change in changes:
                try:
                    make(os.fsencode(machine.home), *change)
                except OSError as error:
                    if error.errno not in NOT_A_CHANGE:
                        raise
            machine.service().backup("timer")
        other = rebuilt(console, folder / "second")
        expected, found = seen(machine.home), seen(other.home)
        assert found == expected
        assert other.service().backup("timer").unchanged


def make(home: bytes, kind: str, parts: list[bytes], value: int) -> None:
    path = b"/".join((home, *parts))
    other = home + b"/" + parts[0]
    if kind == "file":
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK | os.O_NOFOLLOW), "wb") as file:
            file.write(value.to_bytes(4, "big") * (value % 1000))
    elif kind == "append":
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOFOLLOW), "ab") as file:
            file.write(b"more")
    elif kind == "directory":
        os.makedirs(path)
    elif kind == "symlink":
        os.symlink(parts[-1], path)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        os.link(path, other + b"+", follow_symlinks=False)
    elif kind == "remove":
        os.rmdir(path) if stat.S_ISDIR(os.lstat(path).st_mode) else os.unlink(path)
    elif kind == "move":
        os.rename(path, other + b"-")
    elif kind == "owner":
        os.chown(path, value % 3000, value % 7, follow_symlinks=False)
    elif stat.S_ISLNK(os.lstat(path).st_mode):
        return
    elif kind == "mode":
        os.chmod(path, value % 0o10000)
    else:
        os.setxattr(path, "user.n", value.to_bytes(4, "big"))


# What must not happen


def test_no_backup_before_the_restore_is_done(console: FakeConsole, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "first", console)
    with pytest.raises(NotRestored):
        machine.service().backup("timer")
    assert machine.service().is_due() is False
    assert console.number is None


def test_a_fenced_machine_stops_for_good_and_says_so(console: FakeConsole, machine: Machine) -> None:
    (machine.home / "file").write_bytes(b"x")
    service = machine.service()
    service.backup("timer")
    console.fenced = True
    (machine.home / "file").write_bytes(b"y")
    with pytest.raises(Fenced):
        service.backup("timer")
    console.fenced = False
    asked = len(console.requests)
    with pytest.raises(Fenced):
        machine.service().backup("timer")
    assert len(console.requests) == asked, "it asked again"
    assert machine.service().is_due() is False
    assert machine.status()["phase"] == "fenced"
    text = Path(machine.places.run, "status.txt").read_text()
    assert "another one has this home" in text
    assert stat.S_IMODE(os.stat(Path(machine.places.run, "status.json")).st_mode) == 0o644


@pytest.mark.parametrize("request_lost", ["POST /guest/v1/commits", "PUT", "POST /guest/v1/heartbeats"])
def test_a_lost_answer_is_asked_for_again(console: FakeConsole, machine: Machine, request_lost: str) -> None:
    (machine.home / "file").write_bytes(b"x")
    left = [1]

    def lose(request: str) -> bool:
        if request.startswith(request_lost) and left[0]:
            left[0] -= 1
            return True
        return False

    console.lose = lose
    service = machine.service()
    assert service.backup("timer").number == 1
    service.backup("timer")
    assert left == [0]
    assert (console.number, machine.memory()["number"]) == (1, 1)


def test_a_commit_that_is_never_answered_is_found_at_the_next_run(console: FakeConsole, machine: Machine) -> None:
    (machine.home / "file").write_bytes(b"x")
    service = machine.service()
    service.backup("timer")
    (machine.home / "file").write_bytes(b"second")
    console.lose = lambda request: request.endswith("/commits")
    with pytest.raises(Unavailable):
        service.backup("timer")
    console.lose = lambda request: False
    assert (console.number, machine.memory()["number"]) == (2, 1)
    assert machine.service().backup("timer").number == 2
    assert (console.number, machine.memory()["number"]) == (2, 2)
    # And where the home has changed meanwhile, the next snapshot has the lost one as its parent.
    (machine.home / "file").write_bytes(b"third")
    console.lose = lambda request: request.endswith("/commits")
    with pytest.raises(Unavailable):
        service.backup("timer")
    console.lose = lambda request: False
    (machine.home / "file").write_bytes(b"fourth!")
    assert machine.service().backup("timer").number == 4
    assert console.snapshots[4]["parent"] == 3


def test_a_clock_that_is_wrong_is_put_right_by_the_console(console: FakeConsole, machine: Machine) -> None:
    (machine.home / "file").write_bytes(b"x")
    console.clock_off_ms = 86_400_000
    assert machine.service().backup("timer").number == 1


def test_a_file_that_never_keeps_still_keeps_its_version(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = machine.home / "busy"
    path.write_bytes(b"quiet")
    (machine.home / "other").write_bytes(b"x")
    service = machine.service()
    service.backup("timer")
    path.write_bytes(b"written now")
    (machine.home / "other").write_bytes(b"y")
    reads = []
    chunks = content.Reader._chunks

    def writing(self: content.Reader, descriptor: int, status: os.stat_result, known: dict) -> Iterator:  # type: ignore[type-arg]
        if os.path.samestat(status, os.stat(path)):
            reads.append(1)
            with open(path, "ab") as file:
                file.write(b"!")
        return chunks(self, descriptor, status, known)

    with monkeypatch.context() as patched:
        patched.setattr(content.Reader, "_chunks", writing)
        done = service.backup("timer")
    assert len(reads) == content.READS
    assert done.stats["fuzzy"] == 1
    row = tree_of(console, 2).find(b"home/busy")
    assert row is not None
    assert (row.fuzzy, row.size) == (True, 5)
    assert console.snapshots[2]["fuzzy_paths"] == [base64.b64encode(b"home/busy").decode()]
    done = machine.service().backup("timer")
    row = tree_of(console, done.number or 0).find(b"home/busy")
    assert row is not None
    assert (row.fuzzy, row.size) == (False, len(b"written now!!!"))


def test_a_directory_that_is_a_link_by_now_leads_nowhere(
    console: FakeConsole, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "shadow").write_bytes(b"root's")
    folder = machine.home / "folder"
    folder.mkdir()
    (folder / "shadow").write_bytes(b"own")
    original = content.Directories.of

    def swapped(self: content.Directories, put: scan.Put) -> int:
        if put.path == b"home/folder/shadow" and not folder.is_symlink():
            folder.rename(machine.home / "away")
            folder.symlink_to(secret)
        return original(self, put)

    monkeypatch.setattr(content.Directories, "of", swapped)
    machine.service().backup("timer")
    assert all(b"root's" not in data for name, data in console.objects.items() if name.startswith("packs/"))
    assert tree_of(console, 1).find(b"home/folder/shadow") is None


def test_a_directory_that_is_not_there_takes_nothing_away(console: FakeConsole, tmp_path: Path) -> None:
    console.settings["directories"] = ["/home", "/srv"]
    machine = Machine(tmp_path / "first", console)
    (machine.disk / "srv").mkdir()
    machine.service().restore()
    (machine.disk / "srv" / "kept").write_bytes(b"x")
    (machine.home / "file").write_bytes(b"x")
    machine.service().backup("timer")
    (machine.disk / "srv").rename(machine.disk / "elsewhere")
    for text in ("y", "z"):
        (machine.home / "file").write_text(text)
        with pytest.raises(Incomplete, match="is not there"):
            machine.service().backup("timer")
        assert tree_of(console, console.number or 0).find(b"srv/kept") is not None
        Path(machine.places.cache).unlink()


def test_excluded_names_are_neither_saved_nor_touched(console: FakeConsole, tmp_path: Path) -> None:
    console.settings["excludes"] = ["*.tmp", "/home/*/cache", "/home/u/deep/**/x"]
    machine = Machine(tmp_path / "first", console)
    machine.service().restore()
    for name in ("u/a.tmp", "u/cache/c", "u/sub/cache/kept", "u/deep/1/2/x", "u/deep/1/2/y", "lost+found/z"):
        (machine.home / name).parent.mkdir(parents=True, exist_ok=True)
        (machine.home / name).write_bytes(b"x")
    machine.service().backup("timer")
    saved = {row.path for row in tree_of(console, 1).rows() if row.type == "f"}
    assert saved == {b"home/u/sub/cache/kept", b"home/u/deep/1/2/y"}
    console.want(1)
    other = Machine(tmp_path / "second", console)
    (other.home / "lost+found").mkdir()
    (other.home / "skeleton").write_bytes(b"of the template")
    other.service().restore()
    assert sorted(os.listdir(other.home)) == ["lost+found", "u"]


def test_what_the_bucket_lost_is_saved_anew(console: FakeConsole, machine: Machine, tmp_path: Path) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    for name in [each for each in console.objects if each.startswith("packs/")]:
        del console.objects[name]
    (machine.home / "new").write_bytes(b"x")
    assert machine.service().backup("timer").number == 2
    assert console.snapshots[2]["parent"] == 1
    other = rebuilt(console, tmp_path / "second")
    assert without_times_of_home(seen(other.home)) == without_times_of_home(seen(machine.home))


def test_a_backup_that_is_called_malformed_is_made_anew_once(console: FakeConsole, machine: Machine) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    (machine.home / "new").write_bytes(b"x")
    bad = [True]
    console.malformed = lambda commit: bool(bad) and bad.pop()
    assert machine.service().backup("timer").number == 2
    assert console.commits == 3
    assert machine.memory()["last_error"] == ""


def test_what_stays_malformed_waits_for_the_next_interval(console: FakeConsole, machine: Machine) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    (machine.home / "new").write_bytes(b"x")
    machine.now += 400
    console.malformed = lambda commit: True
    for refused in (3, 4):
        assert machine.service().is_due() is True
        with pytest.raises(Refused):
            machine.service().backup("timer")
        assert console.commits == refused, "once with what it knows, once without, and then once an interval"
        assert console.heartbeats[-1]["status"]["last_error"] == "POST /guest/v1/commits: no: invalid"
        machine.now += 100
        assert machine.service().is_due() is False
        machine.now += 300
    console.malformed = lambda commit: False
    assert machine.service().backup("timer").number == 2
    assert machine.memory()["last_error"] == ""


# Restores that are asked for


def obey(machine: Machine, console: FakeConsole, **parameters: object) -> dict[str, object]:
    name = console.ask("restore", **parameters)
    service = machine.service()
    taken = console.commands
    console.commands = []
    service._obey(service._enrolled(), taken[0])
    answer: dict[str, object] = console.answers[name]
    return answer


def encoded(path: bytes) -> str:
    return base64.b64encode(path).decode()


def test_chosen_files_come_back_in_place_after_a_safety_snapshot(console: FakeConsole, machine: Machine) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    user = machine.home / "user"
    want = seen(user / "shared"), (user / "small").read_bytes()
    (user / "small").write_bytes(b"spoiled")
    (user / "shared" / "below").unlink()
    (user / "shared").rmdir()
    (user / "new").write_bytes(b"of today")
    trees = console.snapshots[1]["trees"]
    answer = obey(
        machine,
        console,
        number=1,
        trees=trees,
        paths=[encoded(b"home/user/shared"), encoded(b"home/user/another name")],
        into="place",
    )
    assert answer["ok"], answer
    assert console.snapshots[2]["kind"] == "safety"
    assert tree_of(console, 2).find(b"home/user/new") is not None
    assert seen(user / "shared") == want[0]
    assert (user / "another name").read_bytes() == want[1]
    assert (user / "small").read_bytes() == b"spoiled"
    assert (user / "new").read_bytes() == b"of today"
    assert not (machine.home / os.fsdecode(scan.STAGING)).exists()


def test_everything_comes_back_in_place(console: FakeConsole, machine: Machine) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    want = without_times_of_home(seen(machine.home))
    (machine.home / "user").rename(machine.home / "gone")
    answer = obey(machine, console, number=1, trees=console.snapshots[1]["trees"], paths=None, into="place")
    assert answer["ok"], answer
    assert without_times_of_home(seen(machine.home)) == want
    assert machine.memory()["restored"] is True
    assert machine.service().backup("timer").number == 3
    assert console.snapshots[3]["parent"] == 2


def test_a_restore_into_a_folder_and_never_through_a_link(
    console: FakeConsole, machine: Machine, tmp_path: Path
) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    trees = console.snapshots[1]["trees"]
    answer = obey(machine, console, number=1, trees=trees, paths=[encoded(b"home/user/small")], into="/home/back/again")
    assert answer["ok"], answer
    assert (machine.home / "back" / "again" / "small").read_bytes() == b"hello\n"
    outside = tmp_path / "outside"
    outside.mkdir()
    (machine.home / "trap").symlink_to(outside)
    answer = obey(machine, console, number=1, trees=trees, paths=[encoded(b"home/user/small")], into="/home/trap")
    assert answer["ok"] is False
    assert list(outside.iterdir()) == []
    for path in (b"../etc/passwd", b"home/../../etc", b"", b"etc/shadow"):
        answer = obey(machine, console, number=1, trees=trees, paths=[encoded(path)], into="place")
        assert answer["ok"] is False, path


def test_another_home_is_saved_anew(console: FakeConsole, machine: Machine, tmp_path: Path) -> None:
    fill(machine.home)
    machine.service().backup("timer")
    trees = console.snapshots[1]["trees"]
    console.number, console.snapshots = None, {}
    console.restore = {"number": 1, "from": "other", "trees": trees, "done": False}
    console.key = None
    other = Machine(tmp_path / "second", console)
    other.service().restore()
    kept = {name: data for name, data in console.objects.items() if name.startswith("trees/")}
    console.objects = {}
    assert other.service().backup("timer").number == 1
    assert console.snapshots[1]["parent"] is None
    assert set(console.snapshots[1]["packs"]) == {name[6:] for name in console.objects if name.startswith("packs/")}
    assert kept


def test_a_row_that_was_damaged_on_its_way_stops_the_restore(
    console: FakeConsole, machine: Machine, tmp_path: Path
) -> None:
    (machine.home / "file").write_bytes(b"x" * 1000)
    machine.service().backup("timer")
    name = next(each for each in console.objects if each.startswith("packs/"))
    bad = bytearray(console.objects[name])
    bad[25] ^= 1
    good, console.objects[name] = console.objects[name], bytes(bad)
    console.want(1)
    other = Machine(tmp_path / "second", console)
    (other.home / "skeleton").write_bytes(b"of the template")
    service = other.service()
    assert service.restore_until_done_or_later() is False
    assert (other.home / "skeleton").exists()
    assert other.memory()["restored"] is False
    assert "chunk" in other.status()["last_error"]
    console.objects[name] = good
    assert other.service().restore_until_done_or_later() is True
    assert (other.home / "file").read_bytes() == b"x" * 1000
