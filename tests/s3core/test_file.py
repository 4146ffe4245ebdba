"""`file://` stores: like the memory store in all they answer, and whole after any crash."""

import errno
import gc
import os
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3core.errors import (
    Corrupt,
    Denied,
    Misconfigured,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
    Unsupported,
)
from s3core.file import FileStore
from s3core.memory import MemoryStore

KEYS = st.sampled_from(
    ["a", "a/b", "a/b/c", "a/", "a//b", "a-b", "a0", "ä/ö", "b/c/d", "k" * 85, "k" * 85 + "/x", "%2F"]
)
BODIES = st.binary(max_size=6)


class AgainstMemory(RuleBasedStateMachine):
    """The same calls on both stores; the same answers, ETags included (both hash the content)."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = FileStore(self.folder.name)
        self.memory = MemoryStore()

    def teardown(self) -> None:
        self.file.close()
        self.folder.cleanup()

    def both(self, ask: Callable[[Any], object]) -> None:
        answers: list[object] = []
        for store in (self.memory, self.file):
            try:
                answers.append(ask(store))
            except StoreError as error:
                answers.append((type(error), error.key))
        assert answers[0] == answers[1]

    @rule(key=KEYS, body=BODIES, metadata=st.sampled_from([None, {"m": "1"}]))
    def put(self, key: str, body: bytes, metadata: dict[str, str] | None) -> None:
        self.both(lambda store: store.put(key, body, metadata=metadata))

    @rule(key=KEYS, body=BODIES)
    def put_if_absent(self, key: str, body: bytes) -> None:
        self.both(lambda store: store.put_if_absent(key, body))

    @rule(key=KEYS, of=KEYS, body=BODIES)
    def put_if_match(self, key: str, of: str, body: bytes) -> None:
        try:
            etag = self.memory.head(of).etag
        except NotFound:
            etag = "no-such-version"
        self.both(lambda store: store.put_if_match(key, body, etag))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.both(lambda store: store.delete(key))

    @rule(keys=st.lists(KEYS, max_size=4))
    def delete_many(self, keys: list[str]) -> None:
        self.both(lambda store: store.delete_many(keys))

    @rule(source=KEYS, copy=KEYS)
    def copy(self, source: str, copy: str) -> None:
        self.both(lambda store: store.copy(source, copy))

    @rule(key=KEYS, offset=st.integers(0, 6), length=st.integers(1, 6))
    def get_range(self, key: str, offset: int, length: int) -> None:
        self.both(lambda store: store.get_range(key, offset, length))

    @rule(key=KEYS)
    def read(self, key: str) -> None:
        self.both(lambda store: store.get(key))
        self.both(lambda store: (store.head(key).size, store.head(key).etag, store.head(key).metadata))

    @rule(prefix=st.sampled_from(["", "a", "a/", "a/b", "k", "k" * 80, "ä/", "b/c/"]), after=KEYS)
    def listings(self, prefix: str, after: str) -> None:
        self.both(lambda store: [info.key for info in store.list(prefix, start_after=after)])
        self.both(lambda store: list(store.list_prefixes(prefix)))
        self.both(lambda store: list(store.list_prefixes(prefix, delimiter="b")))

    @rule()
    def reopen(self) -> None:
        self.file.close()
        self.file = FileStore(self.folder.name)

    @invariant()
    def same_objects(self) -> None:
        self.both(lambda store: [(info.key, info.size, info.etag) for info in store.list()])


TestAgainstMemory = AgainstMemory.TestCase
TestAgainstMemory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def child(action: Callable[[], object]) -> int:
    """Runs `action` in a fork; returns the signal that ended it, or minus its exit code (0: it returned)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def staged_files(path: Path) -> list[str]:
    return [file.name for file in (path / "staging").glob("*/*")]


def open_below(path: Path) -> list[str]:
    """What this process has open there."""
    names = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return [name for name in names if name.startswith(f"{path}/")]


CRASHES = [
    # (call in `os`, whether it is still carried out, is the new object there afterwards)
    ("writev", False, False),
    ("writev", True, False),
    ("fdatasync", True, False),
    ("mkdir", True, False),
    ("rename", False, False),
    ("rename", True, True),
    ("link", False, False),
    ("link", True, True),
]


@pytest.mark.parametrize(("call", "carried_out", "there"), CRASHES)
def test_killed_in_the_middle_of_a_put(tmp_path: Path, call: str, carried_out: bool, there: bool) -> None:
    """Whatever the step, the object is whole or not there, and the next writer sweeps what was left."""
    before = FileStore(tmp_path)
    before.put("old/object", b"old")
    before.close()

    def crash() -> None:
        store = FileStore(tmp_path)
        store.put("warm/up", b"")
        real = getattr(os, call)

        def deadly(*args: object, **named: object) -> object:
            if carried_out:
                real(*args, **named)
            os.kill(os.getpid(), signal.SIGKILL)
            return None

        setattr(os, call, deadly)
        (store.put_if_absent if call == "link" else store.put)("new/folder/object", b"n" * 100_000)

    assert child(crash) == signal.SIGKILL
    store = FileStore(tmp_path)
    left = staged_files(tmp_path)
    assert [info.key for info in store.list()] == (["new/folder/object"] if there else []) + ["old/object", "warm/up"]
    assert list(store.list_prefixes()) == (["new/"] if there else []) + ["old/", "warm/"]
    if there:
        assert store.get("new/folder/object").data == b"n" * 100_000
    assert (left == []) == (call == "rename" and carried_out)
    store.put("next", b"")
    assert staged_files(tmp_path) == []
    assert store.put("new/folder/object", b"again") == store.head("new/folder/object").etag
    store.close()


def test_replacement_killed_before_the_rename_leaves_the_old(tmp_path: Path) -> None:
    FileStore(tmp_path).put("k", b"old")

    def crash() -> None:
        os.rename = lambda *args, **named: os.kill(os.getpid(), signal.SIGKILL)
        FileStore(tmp_path).put("k", b"new")

    assert child(crash) == signal.SIGKILL
    assert FileStore(tmp_path).get("k").data == b"old"


def test_sweeping_spares_writers_that_live(tmp_path: Path) -> None:
    first, second = FileStore(tmp_path), FileStore(tmp_path)
    upload = first.multipart("k")
    upload.part(1, b"part")
    second.put("other", b"")
    assert upload.complete()
    assert second.get("k").data == b"part"


def test_close_leaves_no_staging_directory(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put("k", b"")
    store.close()
    assert list((tmp_path / "staging").iterdir()) == []


def test_a_store_that_is_let_go_of_keeps_no_descriptor(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    store.put("a", b"1")
    assert open_below(tmp_path)
    del store
    gc.collect()
    assert open_below(tmp_path) == []
    other = FileStore(tmp_path)
    other.put("b", b"2")
    assert len(list((tmp_path / "staging").iterdir())) == 1  # what the first one held was swept
    other.close()


def test_a_staging_directory_removed_by_hand_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FileStore(tmp_path)
    store.put("k", b"1")
    for path in (tmp_path / "staging").iterdir():
        path.rmdir()
    store.put("k", b"2")
    assert store.get("k").data == b"2"
    assert "making another" in caplog.text


def test_processes_race_for_one_object(tmp_path: Path) -> None:
    """Conditional writes hold between processes: of four, one creates each of ten objects."""
    tally = tmp_path / "tally"
    tally.mkdir()

    def race(racer: int) -> None:
        store = FileStore(tmp_path / "store")
        for number in range(10):
            try:
                store.put_if_absent(f"deep/folder/{number}", b"%d" % racer)
            except PreconditionFailed:
                continue
            (tally / f"{number}-{racer}").touch()

    pids = []
    for racer in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                race(racer)
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    store = FileStore(tmp_path / "store")
    expected = sorted(f"{number}-{store.get(f'deep/folder/{number}').data.decode()}" for number in range(10))
    assert sorted(path.name for path in tally.iterdir()) == expected


def test_a_counter_shared_by_processes_loses_nothing(tmp_path: Path) -> None:
    FileStore(tmp_path).put("n", b"0")

    def count() -> None:
        store = FileStore(tmp_path)
        for _ in range(20):
            while True:
                body = store.get("n")
                try:
                    store.put_if_match("n", b"%d" % (int(body.data) + 1), body.etag)
                except PreconditionFailed:
                    continue
                break

    pids = []
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            try:
                count()
            finally:
                os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert FileStore(tmp_path).get("n").data == b"60"


def test_folders_come_and_go_under_writers(tmp_path: Path) -> None:
    """Deletes remove emptied folders while others put objects into them: nothing is lost, nothing fails."""
    store = FileStore(tmp_path)
    failures: list[Exception] = []

    def churn(name: str) -> None:
        try:
            for number in range(40):
                store.put(f"a/b/c/{name}", b"%d" % number)
                assert store.get(f"a/b/c/{name}").data == b"%d" % number
                store.delete(f"a/b/c/{name}")
        except Exception as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=churn, args=(str(number),)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert list((tmp_path / "objects").iterdir()) == []


def test_a_store_that_is_not_there_reads_as_empty_and_makes_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "not" / "yet")
    assert list(store.list()) == []
    assert list(store.list_prefixes()) == []
    with pytest.raises(NotFound):
        store.get("k")
    store.delete("k")
    with pytest.raises(NotFound):
        store.put_if_match("k", b"", "x")
    assert list(tmp_path.iterdir()) == []
    store.put("k", b"")
    assert store.get("k").data == b""


def test_a_path_that_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Misconfigured, match="not a directory"):
        FileStore(tmp_path / "file")


def test_strangers_among_the_objects_are_ignored_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = FileStore(tmp_path)
    store.put("k", b"")
    (tmp_path / "objects" / "README").write_text("hello")
    (tmp_path / "objects" / "%FF=").write_text("not UTF-8")
    assert [info.key for info in store.list()] == ["k"]
    assert "README" in caplog.text
    assert "%FF=" in caplog.text


@pytest.mark.parametrize("cut", [1, 44, 50])
def test_a_file_cut_short_is_corrupt(tmp_path: Path, cut: int) -> None:
    store = FileStore(tmp_path)
    store.put("folder/k", b"0123456789")
    path = tmp_path / "objects" / "folder" / "k="
    path.write_bytes(path.read_bytes()[:-cut])
    for ask in (store.get, store.head, lambda key: store.get_range(key, 0, 1)):
        with pytest.raises(Corrupt, match="folder/k"):
            ask("folder/k")
    with pytest.raises(Corrupt):
        list(store.list())
    store.delete("folder/k")
    assert list(store.list()) == []


FAILURES = [
    ("writev", errno.ENOSPC, Unavailable, "free some space"),
    ("fdatasync", errno.ENOSPC, Unavailable, "free some space"),
    ("fdatasync", errno.EIO, Unavailable, "kernel's log"),
    ("rename", errno.EACCES, Denied, "belong to the user"),
    ("rename", errno.EDQUOT, Unavailable, "quota"),
    ("mkdir", errno.EROFS, Denied, "read-only"),
    ("mkdir", errno.ENOSPC, Unavailable, "free some space"),
    ("writev", errno.EINVAL, Unavailable, ""),
]


@pytest.mark.parametrize(("call", "code", "kind", "hint"), FAILURES)
def test_failures_of_the_file_system_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, kind: type[StoreError], hint: str
) -> None:
    store = FileStore(tmp_path)
    store.put("k", b"old")

    def fail(*args: object, **named: object) -> object:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(kind) as caught:
            store.put("folder/k", b"new")
    assert caught.value.key == "folder/k"
    assert hint in caught.value.hint
    assert [info.key for info in store.list()] == ["k"]
    assert staged_files(tmp_path) == []
    store.put("folder/k", b"new")


def test_a_directory_that_cannot_be_synced_leaves_the_outcome_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)
    store.put("k", b"old")

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "injected")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutcomeUnknown):
            store.put("k", b"new")
        with pytest.raises(OutcomeUnknown):
            store.delete("k")


def test_a_file_system_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path)

    def fail(*args: object, **named: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "injected")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(Unsupported, match="hard links"):
        store.put_if_absent("k", b"")


def test_a_full_disk_in_the_middle_of_a_write_goes_on_with_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """writev may write less than it was given: the rest follows."""
    real = os.writev
    monkeypatch.setattr(os, "writev", lambda fd, parts: real(fd, [memoryview(parts[0])[:3]]))
    store = FileStore(tmp_path)
    store.put("k", [b"01234", b"", b"56789"])
    assert store.get("k").data == b"0123456789"


def test_copying_where_the_kernel_cannot_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> int:
        raise OSError(errno.EXDEV, "injected")

    monkeypatch.setattr(os, "copy_file_range", fail)
    store = FileStore(tmp_path)
    store.put("k", b"0123456789" * 1000, metadata={"m": "1"})
    store.copy("k", "l")
    assert store.get("l") == store.get("k")
    assert store.head("l").metadata == {"m": "1"}


def test_what_is_written_is_synced_before_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order a power loss tests: data, then the name, then the folders above it from the top down."""
    store = FileStore(tmp_path)
    store.put("warm", b"")
    steps: list[str] = []
    for name in ("fdatasync", "rename", "fsync", "mkdir"):
        real = getattr(os, name)

        def record(*args: Any, name: str = name, real: Callable[..., object] = real, **named: Any) -> object:
            place = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else args[0]
            steps.append(f"{name} {os.path.relpath(place, tmp_path) if name == 'fsync' else ''}".strip())
            return real(*args, **named)

        monkeypatch.setattr(os, name, record)
    store.put("a/b/k", b"x")
    assert steps == [
        "fdatasync",
        "mkdir",
        "fsync objects",
        "mkdir",
        "fsync objects/a",
        "rename",
        "fsync objects/a/b",
    ]
    steps.clear()
    store.put("a/b/l", b"x")
    assert steps == ["fdatasync", "rename", "fsync objects/a/b"]


def test_permissions_are_the_owners_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.put("folder/k", b"secret")
    for path in [tmp_path / "store", *(tmp_path / "store").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_url_is_quoted(tmp_path: Path) -> None:
    assert FileStore(tmp_path / "a b#c").url == f"file://{tmp_path}/a%20b%23c"
