"""`s3block snapshot|clone|rollback|diff|gc|resize|promote` on volumes that nothing serves, through the command itself."""

import io
import random
from pathlib import Path
from typing import Any

import pytest

from blockdev.place import open_store, resolve, volume_store
from blockdev.session import Session
from s3core.exit_codes import ExitCode
from s3core.settings import Config
from tests.blockdev.command import Command, command
from tests.blockdev.stored_volume import SIZE_BYTES, store_volume

MIB = 1 << 20


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


class Place:
    """A store in a directory, with a volume of known content that was detached in order."""

    def __init__(self, s3block: Command, directory: Path) -> None:
        self.url = f"file://{directory}/store"
        self.vm1 = f"{self.url}/vm1"
        self._s3block = s3block
        self._directory = directory
        image = directory / "first.raw"
        image.write_bytes(self.first)
        assert s3block("import", image, self.vm1, "--extent-size", "128K", "--frame-size", "16K").code == 0

    @property
    def first(self) -> bytes:
        return random.Random(1).randbytes(MIB) + bytes(3 * MIB)

    def content(self, volume: str, *options: str) -> bytes:
        target = self._directory / "out.raw"
        said = self._s3block("export", f"{self.url}/{volume}", target, "--force", *options)
        assert said.code == 0, said.err
        return target.read_bytes()

    def answer(self, *arguments: object) -> Any:
        said = self._s3block(*arguments, "--json")
        assert said.code == 0, said.err
        return said.answer


@pytest.fixture
def place(s3block: Command, tmp_path: Path) -> Place:
    return Place(s3block, tmp_path)


def test_snapshots_are_made_listed_exported_and_let_go(s3block: Command, place: Place) -> None:
    said = s3block("snapshot", "create", place.vm1, "monday", "--expires", "7d", "--note", "before the upgrade")
    assert said.code == 0, said.err
    assert said.out.startswith("snapshot monday of volume vm1: commit ")
    (listed,) = place.answer("snapshot", "list", place.vm1)
    assert (listed["name"], listed["size_bytes"], listed["clones"]) == ("monday", 4 * MIB, [])
    assert 0 < listed["expires"] - listed["created"] <= 7 * 86400 + 600
    heading, row = s3block("snapshot", "list", place.vm1).out.splitlines()
    assert heading.split() == ["NAME", "CREATED", "SIZE", "COMMIT", "EXPIRES", "CLONES"]
    assert row.startswith("monday ")
    assert place.content("vm1", "--snapshot", "monday") == place.first
    assert [item["name"] for item in place.answer("info", place.vm1)["snapshots"]] == ["monday"]
    assert "snapshots       monday" in s3block("info", place.vm1).out

    again = s3block("snapshot", "create", place.vm1, "monday")
    assert again.code == ExitCode.REFUSED
    assert "there is a snapshot monday already" in again.err
    assert s3block("snapshot", "delete", place.vm1, "monday").out == "snapshot monday of volume vm1 deleted\n"
    gone = s3block("export", place.vm1, "-", "--snapshot", "monday")
    assert gone.code == ExitCode.NOT_FOUND
    assert "has no snapshot monday" in gone.err
    assert s3block("snapshot", "delete", place.vm1, "monday").code == ExitCode.REFUSED
    assert "has no snapshots" in s3block("snapshot", "list", place.vm1).err


def test_a_snapshot_without_a_name_is_called_after_the_time(place: Place) -> None:
    made = place.answer("snapshot", "create", place.vm1)
    assert made["name"][:2] == "20"
    assert made["volume"] == place.vm1


@pytest.mark.parametrize("name", ["now", "a/b", " a", "x" * 129])
def test_what_a_snapshot_cannot_be_called(s3block: Command, place: Place, name: str) -> None:
    assert s3block("snapshot", "create", place.vm1, name).code in (ExitCode.USAGE, ExitCode.REFUSED)


def test_a_clone_holds_what_the_snapshot_held_and_pins_it(s3block: Command, place: Place) -> None:
    place.answer("snapshot", "create", place.vm1, "base")
    said = s3block("clone", place.vm1, "base", "vm2")
    assert said.code == 0, said.err
    assert said.out == "volume vm2 of 4 MiB is a clone of vm1, snapshot base\n"
    assert said.err == f"next: s3block serve {place.url}/vm2\n"
    assert place.content("vm2") == place.first
    assert s3block("check", f"{place.url}/vm2", "--deep").code == 0
    told = place.answer("info", f"{place.url}/vm2")
    assert [step["volume"] for step in told["origin"]] == ["vm1"]
    assert told["uuid"] != place.answer("info", place.vm1)["uuid"]
    assert told["features"] == ["clone"]
    assert told["snapshots"] == []
    assert place.answer("snapshot", "list", place.vm1)[0]["clones"] == ["vm2"]

    refused = s3block("snapshot", "delete", place.vm1, "base")
    assert refused.code == ExitCode.REFUSED
    assert "is needed by vm2" in refused.err
    refused = s3block("delete", place.vm1, "--yes")
    assert refused.code == ExitCode.REFUSED
    assert "vm2 (of snapshot base)" in refused.err
    assert s3block("clone", place.vm1, "base", "vm2").code == ExitCode.REFUSED, "the name is taken"
    assert s3block("clone", place.vm1, "none", "vm3").code == ExitCode.NOT_FOUND
    elsewhere = s3block("clone", place.vm1, "base", "file:///elsewhere/vm3")
    assert elsewhere.code == ExitCode.USAGE

    # A clone of the clone, and the way back.
    place.answer("snapshot", "create", f"{place.url}/vm2", "mine")
    assert s3block("clone", f"{place.url}/vm2", "mine", "vm3").code == 0
    assert place.content("vm3") == place.first
    assert s3block("delete", f"{place.url}/vm2", "--yes").code == ExitCode.REFUSED
    store = open_store(Config(), place.url)
    base = next(info.key for info in store.list("v1/vm1/ext/"))
    kept = store.get(base).data
    store.delete(base)
    lost = s3block("check", f"{place.url}/vm3")
    assert lost.code == ExitCode.FINDING
    assert "is missing, and the map names it" in lost.out
    store.put(base, kept)
    for name in ("vm3", "vm2", "vm1"):
        assert s3block("delete", f"{place.url}/{name}", "--yes").code == 0
    assert list(open_store(Config(), place.url).list()) == []


def test_a_clone_of_an_encrypted_volume_is_opened_by_the_same_key(
    s3block: Command, place: Place, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    key.chmod(0o600)
    with_key = ("--key", f"file:{key}")
    secret = f"{place.url}/secret"
    assert s3block("import", tmp_path / "first.raw", secret, *with_key).code == 0
    assert s3block("snapshot", "create", secret, "base", *with_key).code == 0
    assert s3block("clone", secret, "base", "copy").code != 0, "without the key"
    said = s3block("clone", secret, "base", "copy", *with_key)
    assert said.code == 0, said.err
    assert place.content("copy", *with_key) == place.first
    assert s3block("export", f"{place.url}/copy", tmp_path / "no.raw").code != 0


def test_rollback_asks_keeps_what_was_and_can_be_taken_back(s3block: Command, place: Place) -> None:
    place.answer("snapshot", "create", place.vm1, "full")
    assert s3block("resize", place.vm1, "1M", "--force", "--yes").code == 0
    assert place.content("vm1") == place.first[:MIB]
    asked = s3block("rollback", place.vm1, "full")
    assert asked.code == ExitCode.USAGE
    assert "say --yes" in asked.err
    said = s3block("rollback", place.vm1, "full", "--yes")
    assert said.code == 0, said.err
    assert place.content("vm1") == place.first
    before = next(item["name"] for item in place.answer("snapshot", "list", place.vm1) if item["name"] != "full")
    assert before.startswith("before-rollback-2")
    assert s3block("check", place.vm1, "--deep").code == 0
    assert s3block("rollback", place.vm1, before, "--yes", "--no-keep").code == 0
    assert place.content("vm1") == place.first[:MIB]
    assert {item["name"] for item in place.answer("snapshot", "list", place.vm1)} == {"full", before}
    assert s3block("rollback", place.vm1, "nothing", "--yes").code == ExitCode.NOT_FOUND


def test_diff_lists_ranges(s3block: Command, place: Place) -> None:
    place.answer("snapshot", "create", place.vm1, "one")
    assert place.answer("diff", place.vm1, "one")["ranges"] == []
    assert s3block("resize", place.vm1, "512K", "--force", "--yes").code == ExitCode.USAGE, "under 1 MiB"
    assert s3block("resize", place.vm1, "1M", "--force", "--yes").code == 0
    assert place.answer("diff", place.vm1, "one")["ranges"] == [], "only zeros were cut off"
    said = s3block("diff", place.vm1, "now", "one", "--fast")
    assert said.code == 0, said.err
    assert "0 ranges" in said.err
    assert s3block("diff", place.vm1, "none").code == ExitCode.NOT_FOUND


def test_resize(s3block: Command, place: Place) -> None:
    said = s3block("resize", place.vm1, "8M")
    assert said.code == 0, said.err
    assert said.out == "volume vm1 has 8 MiB now, 4 MiB before\n"
    assert place.content("vm1") == place.first + bytes(4 * MIB)
    assert s3block("resize", place.vm1, "8M").out == "volume vm1 has 8 MiB already\n"
    refused = s3block("resize", place.vm1, "2M")
    assert refused.code == ExitCode.REFUSED
    assert "the last 6 MiB of volume vm1 would be lost" in refused.err
    assert s3block("resize", place.vm1, "2M", "--force").code == ExitCode.USAGE, "nobody to ask"
    assert s3block("resize", place.vm1, "2M", "--force", "--yes").code == 0
    assert place.content("vm1") == place.first[: 2 * MIB]
    assert s3block("resize", place.vm1, "4M").code == 0
    assert place.content("vm1") == place.first, "what was cut off and comes back is zeros"
    assert s3block("resize", place.vm1, "5000000").code == ExitCode.USAGE


def test_gc_gives_back_what_a_snapshot_alone_needed(s3block: Command, place: Place) -> None:
    own = volume_store(open_store(Config(), place.url), "vm1")
    place.answer("snapshot", "create", place.vm1, "full")
    assert s3block("resize", place.vm1, "1M", "--force", "--yes").code == 0
    assert s3block("rollback", place.vm1, "full", "--yes").code == 0
    for item in place.answer("snapshot", "list", place.vm1):
        place.answer("snapshot", "delete", place.vm1, item["name"])
    told = place.answer("gc", place.vm1, "--orphans")
    assert told["references_removed"] == 0
    assert told["held"] == []
    assert place.content("vm1") == place.first
    assert s3block("check", place.vm1, "--deep").code == 0
    assert any(info.key.startswith("ext/") for info in own.list())
    assert "deleted: " in s3block("gc", place.vm1).out


def test_promote_tells_what_is_given_up_and_does_it_only_when_told(s3block: Command, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/store"
    store = open_store(Config(), url)
    stored = store_volume(store, tmp_path / "gone", rounds=3, detach=False)
    said = s3block("promote", f"{url}/vm1")
    assert said.code == ExitCode.REFUSED
    for words in ("last commit", "last writer", "lineage before", "lineage after   a new one"):
        assert words in said.out
    assert "nothing was done" in said.err
    before = s3block("info", f"{url}/vm1", "--json").answer
    assert s3block("snapshot", "create", f"{url}/vm1", "x").code == ExitCode.REFUSED

    done = s3block("promote", f"{url}/vm1", "--accept-loss", "--host-is-off", "--json")
    assert done.code == 0, done.err
    told = done.answer
    assert told["done"]
    assert told["given_up"]["last_commit"] == before["commit"] == max(stored.history)
    assert told["given_up"]["lineage_before"] == before["lineage"] != told["lineage_after"]
    after = s3block("info", f"{url}/vm1", "--json").answer
    assert after["lineage"] == told["lineage_after"]
    assert after["state"].startswith("detached")
    again = s3block("promote", f"{url}/vm1", "--accept-loss")
    assert (again.code, again.out) == (0, "volume vm1 was left in order: nothing is missing, any host may serve it\n")
    image = tmp_path / "out.raw"
    assert s3block("export", f"{url}/vm1", image).code == 0
    assert image.read_bytes() == stored.content
    assert len(stored.content) == SIZE_BYTES


def test_promote_where_the_journal_is_gives_nothing_up(s3block: Command, place: Place) -> None:
    found = resolve(Config(), place.vm1)
    session = Session(found, Config())
    session.__enter__()
    session._close()
    said = s3block("promote", place.vm1, "--accept-loss")
    assert said.code == ExitCode.REFUSED
    assert "is on this host" in said.err
    assert s3block("gc", place.vm1).code == 0
    assert s3block("promote", place.vm1, "--accept-loss", "--json").answer["given_up"] is None
