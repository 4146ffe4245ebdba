"""`s3block export|check|delete`: what they answer, refuse and leave behind."""

import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import pytest

from blockdev import volumes
from blockdev.errors import Refused
from blockdev.place import volume_store
from blockdev.segments import paths
from s3core.build import build_store
from s3core.errors import StoreError, Unavailable
from s3core.exit_codes import ExitCode
from s3core.memory import MemoryStore
from tests.blockdev.command import Command, command
from tests.blockdev.stored_volume import PATIENT, SIZE_BYTES, Stored, store_volume


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


@pytest.fixture
def place() -> str:
    return f"memory:{uuid.uuid4().hex}"


@pytest.fixture
def stored(place: str, tmp_path: Path) -> Stored:
    return store_volume(build_store(place), tmp_path / "host", rounds=5)


def base_key(stored: Stored) -> str:
    """An object the content needs."""
    with_base = [key for key in stored.listing() if key.startswith("ext/")]
    return max(with_base, key=lambda key: key.rpartition("/")[2])


def flip(stored: Stored, key: str, at: int) -> None:
    body = bytearray(stored.own.get(key).data)
    body[at] ^= 0x40
    stored.own.put(key, bytes(body))


# --- export ------------------------------------------------------------------------------------------------------


def test_export_from_a_directory(s3block: Command, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    stored = store_volume(build_store(url), tmp_path / "host", rounds=2)
    image = tmp_path / "image"
    said = s3block("export", f"{url}/vm1", image)
    assert said.code == 0
    assert image.read_bytes() == stored.content
    assert f"{image}: volume vm1 as of commit 4: 4 MiB, of which" in said.out
    assert "exporting vm1: done" in said.err
    assert sorted(file.name for file in tmp_path.iterdir()) == ["host", "image", "store"]


def test_export_is_sparse(s3block: Command, place: str, tmp_path: Path) -> None:
    assert s3block("create", f"{place}/vm9", "--size", "1T").code == 0
    told = s3block("export", f"{place}/vm9", tmp_path / "image", "--json").answer
    assert (told["size_bytes"], told["copied_bytes"], told["commit"]) == (1 << 40, 0, 0)
    found = os.stat(tmp_path / "image")
    assert (found.st_size, found.st_blocks) == (1 << 40, 0)


def test_export_of_an_older_commit(s3block: Command, place: str, tmp_path: Path) -> None:
    stored = store_volume(build_store(place), tmp_path / "host", rounds=4, settings=PATIENT)
    commit, content = sorted(stored.history.items())[1]
    assert s3block("export", f"{place}/vm1", tmp_path / "image", "--commit", commit).code == 0
    assert (tmp_path / "image").read_bytes() == content
    said = s3block("export", f"{place}/vm1", tmp_path / "later", "--commit", "999")
    assert said.code == ExitCode.NOT_FOUND
    assert "volume vm1 has no commit 999" in said.err
    assert s3block("export", f"{place}/vm1", tmp_path / "later", "--commit", "0").code == ExitCode.USAGE
    assert not (tmp_path / "later").exists()


def test_export_into_a_pipe(
    s3block: Command, place: str, stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Pipe(io.StringIO):
        buffer = io.BytesIO()

    monkeypatch.setattr("sys.stdout", Pipe())
    assert s3block("export", f"{place}/vm1", "-").code == 0
    assert Pipe.buffer.getvalue() == stored.content
    assert s3block("export", f"{place}/vm1", "-", "--json").code == ExitCode.USAGE


def test_export_does_not_replace_by_accident(s3block: Command, place: str, stored: Stored, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_text("precious")
    said = s3block("export", f"{place}/vm1", image)
    assert said.code == ExitCode.REFUSED
    assert "replace it with --force" in said.err
    assert image.read_text() == "precious"
    assert s3block("export", f"{place}/vm1", image, "--force").code == 0
    assert image.read_bytes() == stored.content
    assert s3block("export", f"{place}/vm1", tmp_path, "--force").code == ExitCode.REFUSED
    assert s3block("export", f"{place}/vm1", tmp_path / "no" / "image").code == ExitCode.REFUSED


def test_export_of_damaged_data_fails_and_names_the_place(
    s3block: Command, place: str, stored: Stored, tmp_path: Path
) -> None:
    key = base_key(stored)
    flip(stored, key, len(stored.own.get(key).data) // 2)
    said = s3block("export", f"{place}/vm1", tmp_path / "image")
    assert said.code == ExitCode.CORRUPT
    assert f"{key}: frame" in said.err
    assert " at offset " in said.err
    assert not (tmp_path / "image").exists()


def test_export_onto_a_full_disk_goes_on_later(
    s3block: Command, place: str, stored: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockdev.image.NOTE_BYTES", 1)
    monkeypatch.setattr("blockdev.offline.WINDOW_BYTES", 1)
    pwrite, room = os.pwrite, 600_000

    def full(file: int, data: bytes, offset: int) -> int:
        nonlocal room
        room -= len(data)
        if room < 0:
            raise OSError(28, "No space left on device")
        return pwrite(file, data, offset)

    monkeypatch.setattr("os.pwrite", full)
    said = s3block("export", f"{place}/vm1", tmp_path / "image")
    assert said.code == ExitCode.LOCAL
    assert f"{tmp_path}/image.part: No space left on device" in said.err
    assert "the same command goes on" in said.err
    monkeypatch.setattr("os.pwrite", pwrite)
    said = s3block("export", f"{place}/vm1", tmp_path / "image")
    assert said.code == 0
    assert "going on at" in said.err
    assert (tmp_path / "image").read_bytes() == stored.content


# --- check -------------------------------------------------------------------------------------------------------


def test_check_of_a_whole_volume(s3block: Command, place: str, stored: Stored) -> None:
    said = s3block("check", f"{place}/vm1")
    assert said.code == 0
    assert "nothing is wrong; --deep reads the data too" in said.out
    assert "log: done" in said.err
    told = s3block("check", f"{place}/vm1", "--deep", "--json").answer
    assert told["defects"] == []
    assert told["frames_read"] > 0
    assert told["commit"] == max(stored.history) + 1


def test_check_of_a_damaged_volume(s3block: Command, place: str, stored: Stored) -> None:
    key = base_key(stored)
    flip(stored, key, len(stored.own.get(key).data) // 2)
    assert s3block("check", f"{place}/vm1").code == 0
    said = s3block("check", f"{place}/vm1", "--deep")
    assert said.code == ExitCode.FINDING
    heading, row, *_ = said.out.splitlines()
    assert heading.split() == ["KEY", "OFFSET", "EXTENT", "SECTORS", "OF", "WHAT", "IS", "WRONG"]
    assert row.split()[0] == key
    assert int(row.split()[1]) > 0
    (defect,) = s3block("check", f"{place}/vm1", "--deep", "--json").answer["defects"]
    assert defect["key"] == key
    stored.own.delete(key)
    said = s3block("check", f"{place}/vm1")
    assert said.code == ExitCode.FINDING
    assert "is missing, and the map names it" in said.out


def test_check_counts_orphans(s3block: Command, place: str, stored: Stored) -> None:
    stored.own.put(paths.segment(900, 9, 0), b"left by a crash")
    said = s3block("check", f"{place}/vm1")
    assert said.code == 0
    assert "1 object of 15 B of no commit" in said.out


# --- delete ------------------------------------------------------------------------------------------------------


def test_delete(s3block: Command, place: str, stored: Stored, tmp_path: Path) -> None:
    store_volume(build_store(place), tmp_path / "other", name="vm1-b", rounds=1)
    others = [info.key for info in build_store(place).list("v1/vm1-b/")]
    objects = len(stored.listing())
    said = s3block("delete", f"{place}/vm1")
    assert said.code == ExitCode.USAGE
    assert "say --yes" in said.err
    said = s3block("delete", f"{place}/vm1", "--yes")
    assert said.code == 0
    # One more: the record that keeps writers away while it lasts.
    assert said.out == f"volume vm1 of 4 MiB deleted from {place}: {objects + 1} objects\n"
    assert [info.key for info in build_store(place).list()] == others
    assert s3block("create", f"{place}/vm1", "--size", "1M").code == 0


@pytest.mark.parametrize(("typed", "code"), [("y\n", 0), ("n\n", ExitCode.REFUSED)])
def test_delete_asks_on_a_terminal(
    s3block: Command, place: str, stored: Stored, monkeypatch: pytest.MonkeyPatch, typed: str, code: int
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal(typed))
    said = s3block("delete", f"{place}/vm1")
    assert said.code == code
    assert bool(stored.listing()) == bool(code)


def test_delete_of_a_volume_in_use(s3block: Command, place: str, tmp_path: Path) -> None:
    stored = store_volume(build_store(place), tmp_path / "host", rounds=1, detach=False)
    before = stored.listing()
    said = s3block("delete", f"{place}/vm1", "--yes")
    assert said.code == ExitCode.REFUSED
    assert "volume vm1 is attached, or its host stopped without detaching (epoch 1, commit 2)" in said.err
    assert "--force" in said.err
    assert stored.listing() == before
    assert s3block("delete", f"{place}/vm1", "--yes", "--force", "--json").answer["objects"] == len(before) + 1
    assert stored.listing() == []


def test_delete_of_a_damaged_volume(s3block: Command, place: str, stored: Stored) -> None:
    flip(stored, paths.volume_file(), 40)
    said = s3block("delete", f"{place}/vm1", "--yes")
    assert said.code == ExitCode.REFUSED
    assert "whether volume vm1 is in use cannot be told" in said.err
    assert s3block("delete", f"{place}/vm1", "--yes", "--force").code == 0
    assert stored.listing() == []


class Stubborn(MemoryStore):
    """Does not delete what begins with `kept`."""

    kept = "v1/vm1/ext/"

    def delete_many(self, keys: Iterable[str]) -> dict[str, StoreError]:
        wanted = list(keys)
        failed = {key: Unavailable("slow down", key=key) for key in wanted if self.kept and key.startswith(self.kept)}
        return failed | super().delete_many([key for key in wanted if key not in failed])


def test_a_deletion_that_stopped_is_finished_by_the_next(
    s3block: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Stubborn()
    monkeypatch.setattr("blockdev.place.build_store", lambda url, config: store)
    stored = store_volume(store, tmp_path / "host", rounds=4)
    said = s3block("delete", "memory:d/vm1", "--yes")
    assert said.code == ExitCode.UNAVAILABLE
    assert "the same command goes on" in said.err
    left = stored.listing()
    assert "vol.json" not in left
    assert any(key.startswith("log/") for key in left)  # the fence stays as long as anything does
    assert "deletion or import unfinished" in s3block("list", "memory:d").out
    assert s3block("info", "memory:d/vm1").code == ExitCode.NOT_FOUND
    said = s3block("create", "memory:d/vm1", "--size", "1M")
    assert said.code == ExitCode.REFUSED
    assert "holds remains of a deletion, a creation or an import" in said.err
    store.kept = ""
    said = s3block("delete", "memory:d/vm1", "--yes")
    assert said.code == 0
    assert said.out.startswith("the remains of volume vm1 deleted")
    assert stored.listing() == []


def test_a_host_that_attaches_meanwhile_wins(place: str, stored: Stored) -> None:
    store = build_store(place)
    doomed = volumes.prepare_deletion(store, "vm1", force=False, now=time.time())
    assert doomed.last is not None
    volume_store(store, "vm1").put(paths.log(doomed.last.record.seq + 1), b"the fence record of a host")
    before = stored.listing()
    with pytest.raises(Refused, match="at this very moment"):
        volumes.delete_volume(store, doomed, nonce=bytes(16), time_us=0, removed=lambda number: None)
    assert stored.listing() == before


def test_after_the_fence_a_deletion_may_be_given_up(place: str, stored: Stored, s3block: Command) -> None:
    """Killed right behind its first step: the volume is whole, clean, and may be attached anywhere."""
    store = build_store(place)
    doomed = volumes.prepare_deletion(store, "vm1", force=False, now=time.time())
    assert doomed.volume is not None
    volumes._fence_off(volume_store(store, "vm1"), doomed, bytes(16), 0)
    told = s3block("info", f"{place}/vm1", "--json").answer
    assert told["state"] == "detached: the bucket holds everything"
    assert told["epoch"] == 2
    assert s3block("check", f"{place}/vm1", "--deep").code == 0
    assert s3block("delete", f"{place}/vm1", "--yes").code == 0


def test_delete_with_what_this_host_keeps(s3block: Command, place: str, stored: Stored, tmp_path: Path) -> None:
    state = tmp_path / "state" / "vm1"
    (state / "cache").mkdir(parents=True)
    (state / "map").mkdir()
    (state / "cache" / "cache").write_text("x")
    shutil.copy(tmp_path / "host" / "journal", state / "journal")
    (state / "journal.0.aside").write_text("x")
    (state / "notes").write_text("somebody else's")
    told = s3block("delete", f"{place}/vm1", "--yes", "--local", "--state-dir", tmp_path / "state", "--json").answer
    assert told["local"] is True
    assert [file.name for file in state.iterdir()] == ["notes"]


def test_another_volumes_journal_is_not_removed(s3block: Command, place: str, tmp_path: Path) -> None:
    assert s3block("create", f"{place}/vm1", "--size", "1M").code == 0
    store_volume(MemoryStore(), tmp_path / "state" / "vm1", rounds=1)
    said = s3block("delete", f"{place}/vm1", "--yes", "--local", "--state-dir", tmp_path / "state")
    assert said.code == ExitCode.REFUSED
    assert "is the journal of another volume" in said.err
    assert (tmp_path / "state" / "vm1" / "journal").exists()
    assert s3block("info", f"{place}/vm1").code == 0


def test_an_error_in_json_names_the_key(s3block: Command, place: str, stored: Stored, tmp_path: Path) -> None:
    key = base_key(stored)
    stored.own.delete(key)
    said = s3block("export", f"{place}/vm1", tmp_path / "image", "--json")
    assert said.code == ExitCode.CORRUPT
    assert json.loads(said.err)["error"]["message"].startswith(f"{key}: the map names this object")
    assert len(stored.content) == SIZE_BYTES
