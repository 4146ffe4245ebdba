"""`s3block create|list|info|serve`: answers, next steps, and what bad input costs: a message and an exit code."""

import io
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

from blockdev import daemon
from blockdev.daemon import ServedVolume
from blockdev.place import volume_store
from blockdev.segments import paths, volume_file
from s3core.build import build_store
from s3core.errors import OutcomeUnknown
from s3core.exit_codes import ExitCode
from s3core.memory import MemoryStore
from s3core.settings import Config
from s3core.store import Buffer
from tests.blockdev.command import Command, command
from tests.blockdev.stored_volume import store_volume


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory:{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/store"


def keys(url: str) -> list[str]:
    return [info.key for info in build_store(url).list()]


def test_create_then_list_then_info(s3block: Command, url: str) -> None:
    said = s3block("create", f"{url}/vm1", "--size", "10G", "--sector-size", "4096", "--compression", "none")
    assert said.code == 0
    assert said.out == f"volume vm1 of 10 GiB created at {url}\n"
    assert said.err == f"next: s3block serve {url}/vm1\n"
    assert keys(url) == ["v1/vm1/vol.json"]

    said = s3block("list", url)
    assert said.code == 0
    heading, row = said.out.splitlines()
    assert heading.split() == ["NAME", "SIZE", "SECTOR", "CREATED", "UUID", "STATE", "STORE"]
    assert row.split()[:4] == ["vm1", "10", "GiB", "4096"]

    told = s3block("info", f"{url}/vm1", "--json").answer
    assert (told["name"], told["size_bytes"], told["sector_bytes"]) == ("vm1", 10 << 30, 4096)
    assert (told["compression"], told["commit"], told["epoch"], told["mapped_extents"]) == ("none", 0, 0, 0)
    assert told["state"] == "new, never attached"
    lines = s3block("info", f"{url}/vm1").out.splitlines()
    assert "size            10 GiB" in lines
    assert "newest root     none yet" in lines


def test_create_answers_in_json(s3block: Command, url: str) -> None:
    said = s3block("create", f"{url}/vm1", "--size", "1M", "--extent-size", "128K", "--frame-size", "16K", "--json")
    told = said.answer
    assert told["url"] == f"{url}/vm1"
    assert told["fenced"] is True
    assert (told["extent_bytes"], told["frame_bytes"], told["size_bytes"]) == (128 << 10, 16 << 10, 1 << 20)
    assert s3block("list", url, "--json").answer[0]["uuid"] == told["uuid"]


def test_a_configured_volume(s3block: Command, tmp_path: Path, url: str) -> None:
    (tmp_path / "config.toml").write_text(
        f'volume.mail = {{ url = "{url}", size_bytes = "2G", frame_bytes = "32K" }}\n'
    )
    assert s3block("list", "--json").answer == [{"name": "mail", "store_url": url, "state": "no such volume"}]
    assert s3block("list").code == ExitCode.NOT_FOUND
    said = s3block("create", "mail")
    assert said.code == 0
    assert said.err == "next: s3block serve mail\n"
    told = s3block("info", f"{url}/mail", "--json").answer
    assert (told["size_bytes"], told["frame_bytes"]) == (2 << 30, 32 << 10)
    (row,) = s3block("list", "--json").answer
    assert (row["name"], row["state"], row["size_bytes"]) == ("mail", "ok", 2 << 30)


def test_info_of_a_volume_with_a_past(s3block: Command, tmp_path: Path) -> None:
    url = f"memory:{uuid.uuid4().hex}"
    stored = store_volume(build_store(url), tmp_path / "host", rounds=3)
    told = s3block("info", f"{url}/vm1", "--json").answer
    assert told["commit"] == told["log_records"] == max(stored.history) + 1
    assert told["epoch"] == 1
    assert told["state"] == "detached: the bucket holds everything"
    assert told["root"].startswith("root/")
    assert 0 < told["mapped_extents"] <= 32
    assert told["lineage"] == told["first_lineage"]
    store_volume(build_store(url), tmp_path / "other", name="vm2", rounds=1, detach=False)
    told = s3block("info", f"{url}/vm2", "--json").answer
    assert told["state"] == "attached, or its host stopped without detaching"


def test_what_cannot_be_read_does_not_hide_the_rest_of_a_list(s3block: Command, url: str) -> None:
    for name in ("vm1", "vm2"):
        assert s3block("create", f"{url}/{name}", "--size", "1M").code == 0
    store = build_store(url)
    blob = bytearray(store.get("v1/vm1/vol.json").data)
    blob[blob.index(b": 1048576,") + 2] ^= 3
    store.put("v1/vm1/vol.json", bytes(blob))
    store.put("v1/vm0/log/0000000000000001", b"left")
    said = s3block("list", url)
    assert said.code == ExitCode.CORRUPT
    assert [line.split()[0] for line in said.out.splitlines()] == ["NAME", "vm0", "vm1", "vm2"]
    assert "deletion or import unfinished" in said.out
    assert "damaged" in said.out
    assert "v1/vm1/vol.json: the checksum does not hold" in said.err
    told = s3block("info", f"{url}/vm1")
    assert told.code == ExitCode.CORRUPT
    assert "v1/vm1/vol.json" in told.err


def test_empty_lists(s3block: Command, url: str, tmp_path: Path) -> None:
    said = s3block("list", url)
    assert (said.code, said.out) == (0, "")
    assert "s3block create makes one" in said.err
    assert s3block("list", url, "--json").answer == []
    said = s3block("list")
    assert said.code == 0
    assert "s3block list STORE-URL looks into a store" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["create"], ExitCode.USAGE, "Missing argument 'VOLUME'"),
        (["create", "URL/vm1"], ExitCode.USAGE, "such as --size 10G"),
        (["create", "URL/vm1", "--size", "ten"], ExitCode.USAGE, "'ten' is not a size"),
        (["create", "URL/vm1", "--size", "-1"], ExitCode.USAGE, "is not a size"),
        (["create", "URL/vm1", "--size", "512K"], ExitCode.USAGE, "at least 1 MiB"),
        (["create", "URL/vm1", "--size", "1048577"], ExitCode.USAGE, "multiple of 4096"),
        (["create", "URL/vm1", "--size", "2000T"], ExitCode.USAGE, "at most 1 PiB"),
        (["create", "URL/vm1", "--size", "1M", "--sector-size", "520"], ExitCode.USAGE, "512 or 4096"),
        (["create", "URL/vm1", "--size", "1M", "--extent-size", "3M"], ExitCode.USAGE, "extent size must be"),
        (["create", "URL/vm1", "--size", "1M", "--frame-size", "8K"], ExitCode.USAGE, "frame size must be"),
        (["create", "URL/vm1", "--size", "1M", "--compression", "lz4"], ExitCode.USAGE, "zstd-1 to zstd-19 or none"),
        (["create", "URL/vm1", "--size", "1M", "--colour"], ExitCode.USAGE, "No such option: --colour"),
        (["create", "URL/VM1", "--size", "1M"], ExitCode.USAGE, "is no name for a volume"),
        (["create", "s3://site/vm1", "--size", "1M"], ExitCode.USAGE, "names no volume in a store"),
        (["create", "s3://nobody/bucket/vm1", "--size", "1M"], ExitCode.CONFIGURATION, "no [endpoint.nobody]"),
        (["create", "vm1", "--size", "1M"], ExitCode.CONFIGURATION, "no [volume.vm1]"),
        (["info", "URL/vm1"], ExitCode.NOT_FOUND, "there is no volume vm1 at"),
        (["check", "URL/vm1"], ExitCode.NOT_FOUND, "there is no volume vm1 at"),
        (["export", "URL/vm1", "image"], ExitCode.NOT_FOUND, "there is no volume vm1 at"),
        (["export", "URL/vm1"], ExitCode.USAGE, "Missing argument 'FILE'"),
        (["delete", "URL/vm1", "--yes"], ExitCode.NOT_FOUND, "there is no volume vm1 at"),
        (["list", "/srv/store"], ExitCode.USAGE, "must be s3://"),
        (["serve"], ExitCode.USAGE, "Missing argument 'VOLUME"),
        (["serve", "URL/vm1", "--listen", "3260"], ExitCode.USAGE, "--listen: '3260' is not HOST:PORT"),
        (["serve", "URL/vm1", "--journal-size", "1K"], ExitCode.USAGE, "--journal-size: "),
        (["serve", "URL/vm1", "--commit-interval", "0"], ExitCode.USAGE, "--commit-interval: "),
        (["serve", "URL/vm1", "--commit-interval", "soon"], ExitCode.USAGE, "'soon' is not a duration"),
        (["serve", "URL/vm1", "--flush", "disk"], ExitCode.USAGE, "--flush: "),
        (["serve", "URL/vm1", "--chap-user", "me"], ExitCode.USAGE, "--chap-secret-file belong together"),
        (["serve", "URL/vm1", "memory:other/vm1"], ExitCode.USAGE, "two volumes called vm1"),
        (["attach", "URL/vm1"], ExitCode.USAGE, "No such command"),
        (["mount", "URL/vm1"], ExitCode.USAGE, "say where"),
        (["mount", "URL/vm1", "/a/../b"], ExitCode.USAGE, "no place to mount at"),
        (["mount", "URL/vm1", "/srv/data", "--mkfs", "vfat"], ExitCode.USAGE, "--mkfs makes ext4 or xfs"),
    ],
)
def test_bad_input_costs_a_message(
    s3block: Command, tmp_path: Path, arguments: Sequence[str], code: int, said: str
) -> None:
    url = f"memory:{uuid.uuid4().hex}"
    answer = s3block(*[argument.replace("URL", url) for argument in arguments])
    assert (answer.code, answer.out) == (code, "")
    assert said in answer.err
    assert keys(url) == []
    assert not list(tmp_path.iterdir())


def test_an_error_in_json(s3block: Command, url: str) -> None:
    error = json.loads(s3block("info", f"{url}/vm1", "--json").err)["error"]
    assert (error["name"], error["code"]) == ("not-found", 4)
    assert "s3block create" in error["hint"]


def test_a_volume_is_not_created_twice(s3block: Command, url: str) -> None:
    assert s3block("create", f"{url}/vm1", "--size", "1M").code == 0
    before = build_store(url).get("v1/vm1/vol.json").data
    said = s3block("create", f"{url}/vm1", "--size", "2M")
    assert said.code == ExitCode.REFUSED
    assert f"volume vm1 exists already at {url}" in said.err
    assert build_store(url).get("v1/vm1/vol.json").data == before


class Forgetful(MemoryStore):
    """A store that takes If-None-Match and does not mind."""

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        return self.put(key, data, metadata=metadata)


def test_a_store_that_fails_the_race_is_refused(s3block: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Forgetful()
    monkeypatch.setattr("blockdev.place.build_store", lambda url, config: store)
    said = s3block("create", "memory:f/vm1", "--size", "1M")
    assert said.code == ExitCode.REFUSED
    assert "memory:f cannot keep two hosts from writing to a volume at once: 8 of 8 racing writers" in said.err
    assert "use an unversioned bucket on a server that honours If-None-Match" in said.err
    assert [info.key for info in store.list()] == []

    said = s3block("create", "memory:f/vm1", "--size", "1M", "--unfenced")
    assert said.code == 0
    assert "UNFENCED" in said.err
    assert "next: s3block serve memory:f/vm1 --unfenced" in said.err
    assert [info.key for info in store.list()] == ["v1/vm1/vol.json"]


class LosesAnswers(MemoryStore):
    """Applies the conditional write of vol.json, or does not, and loses the answer."""

    applied = True

    def put_if_absent(
        self, key: str, data: Buffer | Sequence[Buffer], *, metadata: dict[str, str] | None = None
    ) -> str:
        if not key.endswith(paths.volume_file()):
            return super().put_if_absent(key, data, metadata=metadata)
        if self.applied:
            super().put_if_absent(key, data, metadata=metadata)
        raise OutcomeUnknown("the connection broke", key=key)


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_is_looked_up(s3block: Command, monkeypatch: pytest.MonkeyPatch, applied: bool) -> None:
    store = LosesAnswers()
    store.applied = applied
    monkeypatch.setattr("blockdev.place.build_store", lambda url, config: store)
    said = s3block("create", "memory:f/vm1", "--size", "1M")
    assert said.code == (0 if applied else ExitCode.UNKNOWN_OUTCOME)
    if applied:
        body = volume_store(store, "vm1").get(paths.volume_file()).data
        assert volume_file.decode(body, what="vol.json").name == "vm1"
    else:
        assert "look with `s3block info` before trying again" in said.err


# --- serve -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, list[ServedVolume], bool]]:
    calls: list[tuple[Config, list[ServedVolume], bool]] = []

    def serve(config: Config, volumes: list[ServedVolume], *, accept_loss: bool, host_is_off: bool) -> None:
        calls.append((config, volumes, accept_loss))

    monkeypatch.setattr(daemon, "serve", serve)
    return calls


def test_serve_takes_the_command_line_over_the_file(
    s3block: Command, tmp_path: Path, served: list[tuple[Config, list[ServedVolume], bool]]
) -> None:
    (tmp_path / "config.toml").write_text(
        f"""
s3block.state_dir = "{tmp_path}/state"
[volume.mail]
url = "memory:m"
commit_bytes = "1M"
commit_interval_s = 2.0
"""
    )
    said = s3block(
        *["serve", "mail", "memory:n/vm1", "--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--journal-size", "64M"],
        *["--advertise", "a.example.com:1", "--advertise", "b.example.com:2"],
        *["--commit-interval", "500ms", "--chap-user", "me", "--chap-secret-file", "/secret", "--read-only"],
    )
    assert said.code == 0
    ((_, (mail, other), accept_loss),) = served
    assert not accept_loss
    assert (mail.name, mail.store_url, mail.state_dir) == ("mail", "memory:m", tmp_path / "state/mail")
    assert (other.name, other.store_url, other.state_dir) == ("vm1", "memory:n", tmp_path / "state/vm1")
    assert (mail.settings.commit_bytes, other.settings.commit_bytes) == (1 << 20, 8 << 20)
    for settings in (mail.settings, other.settings):
        assert settings.listen == ("127.0.0.1:0", "[::1]:0")
        assert settings.advertise == ("a.example.com:1", "b.example.com:2")
        assert (settings.journal_bytes, settings.commit_interval_s) == (64 << 20, 0.5)
        assert (settings.chap_user, settings.chap_secret_file, settings.read_only) == ("me", "/secret", True)
        assert settings.cache_bytes == 4 << 30
    assert mail.settings.iqn == "iqn.2025-01.internal.bucketworks:mail"


def test_serve_in_a_state_directory_and_with_a_loss(
    s3block: Command, tmp_path: Path, served: list[tuple[Config, list[ServedVolume], bool]]
) -> None:
    assert s3block("serve", "memory:n/vm1", "--state-dir", tmp_path, "--accept-loss", "--unfenced").code == 0
    ((_, (volume,), accept_loss),) = served
    assert (volume.state_dir, accept_loss, volume.settings.unfenced) == (tmp_path / "vm1", True, True)
    assert volume.settings.state_dir == str(tmp_path / "vm1")


def test_help_and_version(s3block: Command) -> None:
    said = s3block("--help")
    assert all(name in said.out for name in ("create", "list", "info", "serve", "check", "export", "delete"))
    assert s3block("--version").out.startswith("s3block 0")
    assert "[8M]" in s3block("serve", "--help").out
