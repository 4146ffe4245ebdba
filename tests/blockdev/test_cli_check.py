"""`s3block check [--deep] [--repair]`: each kind of damage, on a volume with snapshots, on its clone and encrypted."""

import io
import random
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockdev.checksum import crc32c
from blockdev.engine.ancestry import VolumePart
from blockdev.engine.state_directory import StateDirectory
from blockdev.inspection.inspector import inspect_volume
from blockdev.offline import open_offline
from blockdev.place import open_store, resolve, volume_store
from blockdev.segments import paths, root
from blockdev.segments import reference as references
from blockdev.session import Session
from s3core.exit_codes import ExitCode
from s3core.settings import Config
from s3core.store import Body, ObjectStore
from tests.blockdev.command import Command, Said, command
from tests.blockdev.test_inspection import no_stage

CONFIG = Config()
MIB = 1 << 20
EXTENT = 128 << 10
FRAME = 16 << 10


class Volume:
    """vm1 in a store in a directory: 1 MiB of noise, snapshot one, then a little more, snapshot two."""

    def __init__(self, s3block: Command, directory: Path, *options: str) -> None:
        self.s3block = s3block
        self.directory = directory
        self.url = f"file://{directory}/store"
        image = directory / "first.raw"
        self.content = bytearray(random.Random(1).randbytes(MIB) + bytes(3 * MIB))
        image.write_bytes(self.content)
        said = s3block("import", image, f"{self.url}/vm1", "--extent-size", "128K", "--frame-size", "16K", *options)
        assert said.code == 0, said.err
        self.options = options

    def own(self, name: str = "vm1") -> ObjectStore:
        return volume_store(open_store(CONFIG, self.url), name)

    def run(self, *arguments: object) -> Said:
        said = self.s3block(*arguments)
        assert said.code == 0, said.err
        return said

    def write(self, offset: int, data: bytes, name: str = "vm1") -> None:
        """As a host would, up to the bucket."""
        place = resolve(CONFIG, f"{self.url}/{name}")
        with Session(place, CONFIG) as session:
            journal = session._journal
            assert journal is not None
            crcs = [crc32c(data[at : at + 4096]) for at in range(0, len(data), 4096)]
            journal.stage_write(offset // 512, len(data) // 512, [data], len(data), crcs)
            journal.append()
            journal.sync()
            session._wait(session._carry(), 60, "carried")
        self.content[offset : offset + len(data)] = data

    def snapshot(self, name: str) -> None:
        self.run("snapshot", "create", f"{self.url}/vm1", name)

    def check(self, *options: str, name: str = "vm1") -> Any:
        """The answer of the command, with `code`."""
        said = self.s3block("check", f"{self.url}/{name}", *options, "--json")
        assert said.code in (0, ExitCode.FINDING), said.err
        found = said.answer
        assert bool(found["defects"]) == (said.code == ExitCode.FINDING)
        return found

    def base(self, extent: int, name: str = "vm1") -> str:
        with open_offline(self.own(name), name) as opened:
            value = dict(opened.extents())[extent]
        assert value.base is not None
        return paths.extent(extent, value.base.gen, value.base.epoch)

    def exported(self, *options: str) -> bytes:
        target = self.directory / "out.raw"
        self.run("export", f"{self.url}/vm1", target, "--force", *options)
        return target.read_bytes()


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


@pytest.fixture
def volume(s3block: Command, tmp_path: Path) -> Volume:
    made = Volume(s3block, tmp_path)
    made.snapshot("one")
    made.write(0, bytes([7]) * 4096)
    made.snapshot("two")
    made.write(3 * EXTENT, bytes([8]) * EXTENT)
    return made


def flip(store: ObjectStore, key: str, at: int) -> bytes:
    """Damage one byte; the object as it was."""
    body = store.get(key).data
    damaged = bytearray(body)
    damaged[at] ^= 1
    store.put(key, bytes(damaged))
    return body


def roots(volume: Volume) -> list[str]:
    return [info.key for info in volume.own().list("root/")]


def last_pack(volume: Volume) -> str:
    newest = roots(volume)[-1]
    made = root.decode(volume.own().get(newest).data, what=newest)
    ref = (*made.pages, *made.runs)[-1]
    return paths.page_pack(ref.seq, ref.epoch, ref.n)


# --- content -------------------------------------------------------------------------------------------------------


def test_a_whole_volume_with_snapshots(volume: Volume) -> None:
    found = volume.check("--deep", "--rate", "100M")
    assert found["defects"] == []
    assert found["snapshots"] == ["one", "two"]
    # Eight extents of noise, one of them written anew since, and one patch: what states share is read once.
    assert found["frames_read"] == 9 * EXTENT // FRAME + 1


def test_damage_is_told_with_its_sectors_and_states(volume: Volume) -> None:
    shared, replaced = volume.base(5), paths.extent(3, *(1, 1))
    replaced = next(info.key for info in volume.own().list("ext/") if "/0000000003/" in info.key)
    at = len(volume.own().get(shared).data) - 100
    flip(volume.own(), shared, at)
    flip(volume.own(), replaced, at)
    found = volume.check("--deep")
    told = {defect["key"]: defect for defect in found["defects"]}
    assert set(told) == {shared, replaced}
    assert told[shared]["hits"] == ["volume", "snapshot one", "snapshot two"]
    assert (told[shared]["start"], told[shared]["length"]) == (6 * EXTENT - FRAME, FRAME)
    assert told[replaced]["hits"] == ["snapshot one", "snapshot two"], "written anew since"
    said = volume.s3block("check", f"{volume.url}/vm1", "--deep", "--repair").out
    first = (6 * EXTENT - FRAME) // 512
    assert f"sectors {first} to {first + 31} (bytes {6 * EXTENT - FRAME} to {6 * EXTENT - 1}) cannot be read" in said
    assert "or delete the snapshot" in said
    assert "would " not in said


def test_a_missing_object_of_a_snapshot_alone(volume: Volume) -> None:
    key = next(info.key for info in volume.own().list("ext/") if "/0000000003/" in info.key)
    volume.own().delete(key)
    (defect,) = volume.check()["defects"]
    assert (defect["key"], defect["extent"], defect["hits"]) == (key, 3, ["snapshot one", "snapshot two"])
    assert "is missing" in defect["said"]


def test_a_write_over_damage_heals_it(volume: Volume) -> None:
    """A frame that is written anew can be read again; with the whole extent written anew the check is content too."""
    volume.run("snapshot", "delete", f"{volume.url}/vm1", "one")
    volume.run("snapshot", "delete", f"{volume.url}/vm1", "two")
    key = volume.base(5)
    flip(volume.own(), key, len(volume.own().get(key).data) - 100)
    assert volume.s3block("export", f"{volume.url}/vm1", volume.directory / "x.raw").code == ExitCode.CORRUPT
    volume.write(6 * EXTENT - FRAME, bytes([1]) * FRAME)
    assert volume.exported() == volume.content
    (defect,) = volume.check("--deep")["defects"]
    assert (defect["key"], defect["hits"]) == (key, [])
    volume.write(5 * EXTENT, bytes([2]) * EXTENT)
    assert volume.exported() == volume.content
    assert volume.check("--deep")["defects"] == []


# --- roots, pages, snapshots' roots -----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("what", ["root", "page", "head"])
def test_what_describes_is_written_anew(volume: Volume, what: str, local: bool, gone: bool) -> None:
    """Damaged or missing, with the host's own map there or not."""
    key = {"root": roots(volume)[-1], "page": last_pack(volume), "head": "head"}[what]
    if gone:
        volume.own().delete(key)
    else:
        flip(volume.own(), key, len(volume.own().get(key).data) // 2)
    if not local:
        (volume.directory / "state").rename(volume.directory / "elsewhere")
    if what == "head" and gone:
        assert volume.check()["defects"] == [], "a hint"
        return
    found = volume.check("--repair")
    if what == "root" and gone:
        # Nothing tells of a root that is not there but the head.
        assert [defect["key"] for defect in found["defects"]] == ["head"]
    else:
        assert key in {defect["key"] for defect in found["defects"]}
    assert any("fresh root" in step for step in found["steps"]), found
    assert volume.check()["defects"], "nothing was done"
    found = volume.check("--deep", "--repair", "--yes")
    assert [item for item in found["defects"] if key not in item["key"]] == []
    volume.write(2 * EXTENT, bytes([9]) * 4096)
    # The damaged one is an older root by now, on its way out.
    volume.run("gc", f"{volume.url}/vm1", "--orphans")
    assert volume.check("--deep")["defects"] == []
    (volume.directory / "state").rename(volume.directory / "away")
    volume.write(2 * EXTENT, bytes([3]) * 4096)
    assert volume.exported() == volume.content


def test_a_snapshots_root(volume: Volume) -> None:
    with open_offline(volume.own(), "vm1") as opened:
        one = opened.map.history.snapshots[0]
    key = paths.root(one.seq, one.epoch)
    flip(volume.own(), key, 200)
    found = volume.check("--repair")
    assert all(defect["key"] == key for defect in found["defects"])
    assert any(defect["hits"] == ["snapshot one"] for defect in found["defects"])
    assert any("of snapshot one cannot be read" in line for line in found["advice"])


def test_snapshots_that_share_pages_cost_no_reading(volume: Volume) -> None:
    class Counting(VolumePart):
        pages = 0

        def get_range(self, key: str, offset: int, length: int) -> Body:
            self.pages += key.startswith("page/")
            return super().get_range(key, offset, length)

    def pages_read() -> int:
        own = Counting(open_store(CONFIG, volume.url), "vm1")
        assert inspect_volume(own, "vm1", deep=False, stage=no_stage).defects == []
        return own.pages

    volume.snapshot("three")
    before = pages_read()
    for number in range(6):
        volume.snapshot(f"again-{number}")
    assert 0 < pages_read() <= before


def test_what_is_done_while_a_daemon_serves_the_volume(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockdev.inspection.repair.is_served", lambda directory: True)
    root_key, pack = roots(volume)[-1], last_pack(volume)
    whole = flip(volume.own(), root_key, 300)
    assert volume.check("--repair")["steps"] == [
        "let the daemon that serves the volume write a fresh root and the head"
    ]
    volume.own().put(root_key, whole)
    flip(volume.own(), pack, 5)
    assert volume.check("--repair")["steps"] == []
    said = volume.s3block("check", f"{volume.url}/vm1", "--repair")
    assert "stop that first" in said.err


def test_a_log_that_is_damaged_is_not_mended(volume: Volume) -> None:
    """And nothing is deleted, orphans neither."""
    newest = [info.key for info in volume.own().list("log/")][-1]
    flip(volume.own(), newest, 100)
    volume.own().put(paths.extent(3, 2, 99), b"left by a crash")
    before = {info.key: volume.own().get(info.key).data for info in volume.own().list()}
    found = volume.check("--repair", "--yes")
    assert newest in {defect["key"] for defect in found["defects"]}
    assert found["steps"] == found["repaired"] == []
    assert {info.key: volume.own().get(info.key).data for info in volume.own().list()} == before


# --- orphans, references, clones --------------------------------------------------------------------------------------


def test_orphans_are_collected(volume: Volume) -> None:
    stray = paths.extent(3, 2, 99)
    volume.own().put(stray, b"left by a crash")
    found = volume.check("--repair")
    assert found["orphans"] == 1
    assert found["steps"] == ["delete objects that no commit names"]
    found = volume.check("--repair", "--yes")
    assert found["orphans"] == 0
    assert stray not in [info.key for info in volume.own().list()]
    assert volume.exported() == volume.content
    assert len(volume.exported("--snapshot", "one")) == 4 * MIB


def test_a_clone(volume: Volume) -> None:
    volume.run("clone", f"{volume.url}/vm1", "one", "vm2")
    assert volume.check("--deep", name="vm2")["defects"] == []
    volume.write(0, bytes([5]) * 4096, "vm2")
    volume.content[:4096] = bytes([7]) * 4096
    assert volume.check("--deep", name="vm2")["defects"] == []
    key = volume.base(5)
    body = flip(volume.own(), key, 5000)
    (defect,) = volume.check("--deep", name="vm2")["defects"]
    assert (defect["key"], defect["hits"]) == (key, ["volume"])
    volume.own().delete(key)
    (defect,) = volume.check(name="vm2")["defects"]
    assert (defect["key"], defect["extent"]) == (key, 5)
    volume.own().put(key, body)

    (reference,) = [info.key for info in volume.own().list("ref/")]
    word = volume.own().get(reference).data
    volume.own().delete(reference)
    (defect,) = volume.check(name="vm2")["defects"]
    assert defect["key"] == f"v1/vm1/{reference}"
    volume.own().put(reference, word)
    assert volume.check(name="vm2")["defects"] == []

    hold = references.decode(word, what=reference)
    volume.own().put(reference, references.encode(replace(hold, child="vm3")))
    found = volume.check()
    assert found["defects"] == []
    assert "clone vm3, which is not there" in found["remarks"][0]["said"]


def test_an_encrypted_volume(s3block: Command, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("correct horse battery staple\n")
    (tmp_path / "word").chmod(0o600)
    source = f"passphrase-file:{tmp_path}/word"
    volume = Volume(s3block, tmp_path, "--key", source)
    volume.run("snapshot", "create", f"{volume.url}/vm1", "one", "--key", source)
    for key in ([], ["--key", source]):
        assert volume.check("--deep", *key)["defects"] == []
    flip(volume.own(), volume.base(5), 5000)
    for key in ([], ["--key", source]):
        (defect,) = volume.check("--deep", *key)["defects"]
        assert defect["hits"] == ["volume", "snapshot one"]
    flip(volume.own(), roots(volume)[-1], 300)
    found = volume.check("--repair", "--yes", "--key", source)
    assert not any(defect["key"].startswith("page/") for defect in found["defects"])


# --- beside a writer --------------------------------------------------------------------------------------------------


def test_a_volume_that_is_being_written_to(volume: Volume) -> None:
    """Whatever a writer, its checkpoints and its collector do meanwhile is no finding."""
    stop = threading.Event()
    rounds = 0

    def write() -> None:
        nonlocal rounds
        rng = random.Random(2)
        place = resolve(CONFIG, f"{volume.url}/vm1")
        with Session(place, CONFIG) as session:
            journal = session._journal
            assert journal is not None
            while not stop.is_set():
                data = rng.randbytes(EXTENT)
                crcs = [crc32c(data[at : at + 4096]) for at in range(0, len(data), 4096)]
                journal.reclaim(session._durable)
                journal.stage_write(rng.randrange(8) * 256, 256, [data], len(data), crcs)
                journal.append()
                journal.sync()
                session._wait(session._carry(), 60, "carried")
                session.operate("gc", orphans=True)
                rounds += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        deadline = time.monotonic() + 300
        while rounds < 8 and time.monotonic() < deadline:
            found = inspect_volume(volume.own(), "vm1", deep=True, stage=no_stage)
            assert found.defects == []
    finally:
        stop.set()
        writer.join()
    assert rounds >= 8


def test_the_state_directory_is_in_use(volume: Volume) -> None:
    flip(volume.own(), last_pack(volume), 5)
    directory = StateDirectory(resolve(CONFIG, f"{volume.url}/vm1").state_dir)
    lock = directory.lock()
    try:
        said = volume.s3block("check", f"{volume.url}/vm1", "--repair", "--yes")
        assert said.code == ExitCode.REFUSED
        assert "is in use" in said.err
    finally:
        import os

        os.close(lock)
