"""`s3block` and encrypted volumes: making, opening, checking and exporting one, and changing who may."""

import io
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from blockdev import daemon, keys
from blockdev.daemon import ServedVolume
from blockdev.errors import KeyRefused
from blockdev.offline import open_offline
from blockdev.place import VolumePlace, volume_store
from blockdev.segments import frames, key_slot, paths, volume_file
from blockdev.segments.key_slot import Secret
from blockdev.session import Session
from s3core.build import build_store
from s3core.errors import NotFound
from s3core.exit_codes import ExitCode
from s3core.memory import MemoryStore
from s3core.secret_source import read_secret
from s3core.settings import Config, VolumeSettings
from s3core.store import ObjectStore
from tests.blockdev.command import Command, command
from tests.blockdev.stored_volume import Stored, store_volume

WORDS = "correct horse battery staple"


@pytest.fixture
def s3block(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("BUCKETWORKS_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return command(capsys)


@pytest.fixture
def url() -> str:
    return f"memory:{uuid.uuid4().hex}"


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[[str], str]:
    def make(name: str, content: bytes = b"") -> str:
        path = tmp_path / name
        path.write_bytes(content or os.urandom(32))
        path.chmod(0o600)
        return f"file:{path}"

    return make


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Somebody at a terminal who types these lines; returns what was asked."""

    def at(*lines: str) -> list[str]:
        asked: list[str] = []
        left = list(lines)

        class Tty(io.StringIO):
            def isatty(self) -> bool:
                return True

        def answer(question: str) -> str:
            asked.append(question)
            return left.pop(0)

        monkeypatch.setattr("sys.stdin", Tty())
        monkeypatch.setattr("getpass.getpass", answer)
        return asked

    return at


def own(url: str, name: str = "vm1") -> ObjectStore:
    return volume_store(build_store(url), name)


def slot_ids(url: str) -> list[str]:
    return [info.key.removeprefix("key/") for info in own(url).list("key/")]


def test_create_encrypted_then_info(s3block: Command, url: str, key_file: Callable[[str], str]) -> None:
    source = key_file("one")
    said = s3block("create", f"{url}/vm1", "--size", "1M", "--encrypt", "--key", source)
    assert said.code == 0
    assert said.out == f"encrypted volume vm1 of 1 MiB created at {url}\n"
    assert f"next: s3block serve {url}/vm1 --key {source}\n" in said.err
    assert "keep a copy of its key" in said.err
    (slot,) = slot_ids(url)
    told = s3block("info", f"{url}/vm1", "--json").answer
    assert (told["encryption"], told["features"]) == ("aes-256-gcm", ["encryption"])
    assert (told["key_slots"], told["key_opens"]) == ([slot], None)
    told = s3block("info", f"{url}/vm1", "--key", source, "--json").answer
    assert told["key_opens"] == slot
    assert f"key slots       {slot}" in s3block("info", f"{url}/vm1").out.splitlines()
    said = s3block("info", f"{url}/vm1", "--key", key_file("two"))
    assert said.code == ExitCode.REFUSED
    assert "this key file opens no slot of volume vm1" in said.err


def test_a_configured_key_is_enough(s3block: Command, tmp_path: Path, url: str, key_file: Callable[[str], str]) -> None:
    (tmp_path / "config.toml").write_text(
        f'volume.mail = {{ url = "{url}", size_bytes = "1M", key = "{key_file("one")}" }}\n'
    )
    said = s3block("create", "mail", "--compression", "zstd-19")
    assert said.code == 0
    assert "next: s3block serve mail\n" in said.err
    told = s3block("info", "mail", "--json").answer
    assert (told["encryption"], told["compression"]) == ("aes-256-gcm", "zstd-19")
    assert s3block("export", "mail", tmp_path / "image").code == 0


def test_a_plain_volume_says_so(s3block: Command, url: str) -> None:
    assert s3block("create", f"{url}/vm1", "--size", "1M").code == 0
    assert s3block("info", f"{url}/vm1", "--json").answer["encryption"] is None
    assert "encryption      none" in s3block("info", f"{url}/vm1").out.splitlines()
    for command_ in ("list", "add", "rotate"):
        extra = [] if command_ == "list" else ["--key", "passphrase-file:x", "--new-key", "passphrase-file:x"]
        said = s3block("key", command_, f"{url}/vm1", *extra)
        assert said.code != 0
    assert "volume vm1 is not encrypted: it has no keys" in s3block("key", "list", f"{url}/vm1").err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--encrypt"], "--encrypt needs a key"),
        (["--key", "rot13:x"], "a key must be file:PATH, systemd:NAME, passphrase-file:PATH or passphrase"),
        (["--key", "passphrase"], "no terminal to ask at"),
        (["--key", "file:SHORT"], "has 5 bytes; a key file has 32 random bytes or more"),
        (["--key", "file:OPEN"], "make it private: chmod 600"),
        (["--key", "file:NONE"], "No such file"),
        (["--key", "systemd:vm1"], "CREDENTIALS_DIRECTORY is not set"),
        (["--key", "passphrase-file:WEAK"], "at least 12 characters"),
        (["--compression", "zstd-20"], "zstd-1 to zstd-19 or none"),
    ],
    ids=str,
)
def test_bad_input_costs_a_message_and_makes_nothing(
    s3block: Command, url: str, tmp_path: Path, key_file: Callable[..., str], arguments: list[str], reason: str
) -> None:
    key_file("SHORT", b"short")
    key_file("OPEN")
    key_file("WEAK", b"password\n")
    (tmp_path / "OPEN").chmod(0o644)
    for word in ("SHORT", "OPEN", "NONE", "WEAK"):
        arguments = [argument.replace(f":{word}", f":{tmp_path}/{word}") for argument in arguments]
    said = s3block("create", f"{url}/vm1", "--size", "1M", *arguments)
    assert said.code in (ExitCode.USAGE, ExitCode.CONFIGURATION)
    assert reason in " ".join(said.err.replace("│", " ").split())
    assert list(build_store(url).list()) == []


def test_a_passphrase_at_the_terminal(
    s3block: Command, url: str, tmp_path: Path, terminal: Callable[..., list[str]]
) -> None:
    asked = terminal(WORDS, WORDS)
    assert s3block("create", f"{url}/vm1", "--size", "1M", "--key", "passphrase").code == 0
    assert asked == ["passphrase of volume vm1: ", "once more: "]
    asked = terminal(WORDS)
    assert s3block("export", f"{url}/vm1", tmp_path / "image", "--key", "passphrase").code == 0
    assert asked == ["passphrase of volume vm1: "]
    terminal("something else")
    said = s3block("export", f"{url}/vm1", tmp_path / "image", "--key", "passphrase")
    assert (said.code, "this passphrase opens no slot" in said.err) == (ExitCode.REFUSED, True)
    terminal(WORDS, "correct horse battery stapler")
    said = s3block("create", f"{url}/vm2", "--size", "1M", "--key", "passphrase")
    assert (said.code, "the two passphrases differ" in said.err) == (ExitCode.USAGE, True)
    terminal("")
    assert s3block("create", f"{url}/vm2", "--size", "1M", "--key", "passphrase").code == ExitCode.USAGE


def test_a_passphrase_is_the_same_whichever_way_its_accents_are_typed(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9 correct horse", "cafe\u0301 correct horse"
    found = []
    for words in (composed, decomposed):
        path = tmp_path / "words"
        path.write_text(words + "\n")
        path.chmod(0o600)
        found.append(read_secret(f"passphrase-file:{path}", "volume vm1", ask=lambda q: "", environ={}))
    assert found[0] == found[1] is not None


def test_a_systemd_credential(s3block: Command, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    credential = tmp_path / "vm1-key"
    credential.write_bytes(os.urandom(32))
    credential.chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert s3block("create", f"{url}/vm1", "--size", "1M", "--key", "systemd:vm1-key").code == 0
    assert s3block("info", f"{url}/vm1", "--key", f"file:{credential}").code == 0
    said = s3block("info", f"{url}/vm1", "--key", "systemd:../vm1-key")
    assert "a name has no slash" in said.err


def test_somebody_faster_leaves_one_volume_and_its_slot(
    s3block: Command, url: str, key_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = key_file("one")
    put = MemoryStore.put_if_absent

    def slow(self: MemoryStore, key: str, data: bytes, **more: Any) -> str:
        if key.endswith("vol.json"):
            put(self, key, data + b"\n")  # the other one's
        return put(self, key, data, **more)

    monkeypatch.setattr(MemoryStore, "put_if_absent", slow)
    said = s3block("create", f"{url}/vm1", "--size", "1M", "--key", source)
    assert said.code == ExitCode.REFUSED
    assert "created by somebody else at the same moment" in said.err
    assert slot_ids(url) == []


def test_a_slot_that_goes_while_the_volume_is_made_is_put_back(
    s3block: Command, url: str, key_file: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = key_file("one")
    put = MemoryStore.put_if_absent

    def swept(self: MemoryStore, key: str, data: bytes, **more: Any) -> str:
        if key.endswith("vol.json"):
            for info in list(self.list("v1/vm1/key/")):
                self.delete(info.key)
        return put(self, key, data, **more)

    monkeypatch.setattr(MemoryStore, "put_if_absent", swept)
    assert s3block("create", f"{url}/vm1", "--size", "1M", "--key", source).code == 0
    assert s3block("info", f"{url}/vm1", "--key", source).code == 0


# --- content -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(url: str, tmp_path: Path, key_file: Callable[..., str]) -> Stored:
    key_file("one", bytes(range(40)))
    return store_volume(build_store(url), tmp_path / "host", rounds=5, secret=Secret("key", bytes(range(40))))


def test_export_needs_the_key(
    s3block: Command, url: str, tmp_path: Path, stored: Stored, key_file: Callable[..., str]
) -> None:
    image = tmp_path / "image"
    said = s3block("export", f"{url}/vm1", image)
    assert said.code == ExitCode.REFUSED
    assert "volume vm1 is encrypted, and no key was given\n  say where it is with --key" in said.err
    said = s3block("export", f"{url}/vm1", image, "--key", key_file("two"))
    assert said.code == ExitCode.REFUSED
    assert not image.exists()
    assert s3block("export", f"{url}/vm1", image, "--key", f"file:{tmp_path}/one").code == 0
    assert image.read_bytes() == stored.content


def test_check_without_the_key_and_with_it(s3block: Command, url: str, tmp_path: Path, stored: Stored) -> None:
    one = f"file:{tmp_path}/one"
    for arguments in ([], ["--deep"], ["--key", one], ["--deep", "--key", one]):
        said = s3block("check", f"{url}/vm1", *arguments)
        assert (said.code, "nothing is wrong" in said.out) == (0, True), said
        assert ("contents were not decrypted" in said.out) == (arguments == ["--deep"])
    told = s3block("check", f"{url}/vm1", "--deep", "--json").answer
    assert (told["encrypted"], told["decrypted"]) == (True, False)
    assert told["frames_read"] > 0
    told = s3block("check", f"{url}/vm1", "--deep", "--key", one, "--json").answer
    assert (told["encrypted"], told["decrypted"]) == (True, True)
    (tmp_path / "three").write_bytes(os.urandom(32))
    (tmp_path / "three").chmod(0o600)
    assert s3block("check", f"{url}/vm1", "--deep", "--key", f"file:{tmp_path}/three").code == ExitCode.REFUSED


def test_check_finds_damage_without_the_key(s3block: Command, url: str, stored: Stored) -> None:
    key = max(key for key in stored.listing() if key.startswith("ext/"))
    blob = bytearray(stored.own.get(key).data)
    blob[-100] ^= 1
    stored.own.put(key, bytes(blob))
    said = s3block("check", f"{url}/vm1", "--deep")
    assert said.code == ExitCode.FINDING
    assert key in said.out


def test_check_finds_what_was_sealed_with_another_key_only_with_the_key(
    s3block: Command, url: str, tmp_path: Path, stored: Stored
) -> None:
    """Whoever can write to the bucket can make checksums hold."""
    one = f"file:{tmp_path}/one"
    found = volume_file.decode(stored.own.get("vol.json").data, what="")
    record_key = ""
    for key in stored.listing():
        blob = stored.own.get(key).data
        at = blob.find(b"BWWF")
        if key.startswith("seg/") and at >= 0:
            record_key = key
            head = frames.parse_header(blob[at:], what=key)
            payload = bytearray(blob[at + frames.HEADER_BYTES : at + frames.HEADER_BYTES + head.stored])
            payload[20] ^= 1
            start = blob[at : at + frames.HEAD_BYTES]
            crc = crc32c(bytes(payload), crc32c(start, crc32c(found.identity.bytes)))
            frame = start + crc.to_bytes(4, "little") + bytes(payload)
            stored.own.put(key, blob[:at] + frame + blob[at + len(frame) :])
            break
    assert record_key
    assert s3block("check", f"{url}/vm1", "--deep").code == 0
    said = s3block("check", f"{url}/vm1", "--deep", "--key", one)
    assert said.code == ExitCode.FINDING
    assert record_key in said.out


def test_check_tells_of_slots(s3block: Command, url: str, stored: Stored) -> None:
    (slot,) = slot_ids(url)
    blob = stored.own.get(f"key/{slot}").data
    stored.own.put("key/00000000", blob)
    said = s3block("check", f"{url}/vm1")
    assert said.code == ExitCode.FINDING
    assert "key/00000000" in said.out
    stored.own.delete("key/00000000")
    stored.own.delete(f"key/{slot}")
    said = s3block("check", f"{url}/vm1")
    assert said.code == ExitCode.FINDING
    assert "nobody can open the volume" in " ".join(said.out.split())


def test_import_encrypted(s3block: Command, url: str, tmp_path: Path, key_file: Callable[[str], str]) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(os.urandom(300_000).ljust(2 << 20, b"\0"))
    source = key_file("one")
    assert s3block("import", image, f"{url}/vm1", "--key", source).code == 0
    whole = b"".join(own(url).get(info.key).data for info in own(url).list())
    assert image.read_bytes()[:64] not in whole
    assert s3block("check", f"{url}/vm1", "--deep", "--key", source).code == 0
    assert s3block("export", f"{url}/vm1", tmp_path / "back", "--key", source).code == 0
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


def test_serve_refuses_before_it_attaches(
    s3block: Command, url: str, tmp_path: Path, stored: Stored, key_file: Callable[[str], str]
) -> None:
    before = stored.listing()
    plain = store_volume(build_store(url), tmp_path / "plain", name="vm2", rounds=1)
    for name, arguments, reason in (
        ("vm1", [], "is encrypted, and no key was given"),
        ("vm1", ["--key", key_file("two")], "opens no slot of volume vm1"),
        ("vm2", ["--key", f"file:{tmp_path}/one"], "is not encrypted, and a key was given"),
    ):
        said = s3block("serve", f"{url}/{name}", "--state-dir", tmp_path / "state", *arguments)
        assert said.code == ExitCode.REFUSED
        assert reason in said.err
    assert stored.listing() == before
    assert plain.own.get("vol.json").data


def test_the_data_key_goes_to_the_worker_and_is_not_shown(
    url: str, tmp_path: Path, stored: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[ServedVolume] = []

    class Stop(Exception):
        pass

    def record(config: Config, volumes: list[ServedVolume], **more: object) -> None:
        given.extend(volumes)
        raise Stop

    monkeypatch.setattr(daemon, "Daemon", record)
    secret = Secret("key", bytes(range(40)))
    settings = Config().with_defaults("vm1", VolumeSettings(url=url))
    served = ServedVolume("vm1", url, settings, tmp_path / "state", secret)
    with pytest.raises(Stop):
        daemon.serve(Config(), [served], accept_loss=False)
    found = volume_file.decode(stored.own.get("vol.json").data, what="")
    assert volume_file.is_data_key(found, given[0].data_key)
    assert given[0].data_key.hex() not in repr(given[0])
    assert repr(given[0].data_key) not in repr(given[0])


def test_a_session_opens_an_encrypted_volume(url: str, tmp_path: Path, stored: Stored) -> None:
    def at(key: str) -> VolumePlace:
        settings = Config().with_defaults("vm1", VolumeSettings(url=url, state_dir=str(tmp_path / "state"), key=key))
        return VolumePlace("vm1", url, "vm1", settings)

    with Session(at(f"file:{tmp_path}/one"), Config()) as session:
        assert session.volume.encryption is not None
    with pytest.raises(KeyRefused, match="no key was given"), Session(at(""), Config()):
        pytest.fail("it attached")
    secret = Secret("key", bytes(range(40)))
    with open_offline(stored.own, "vm1", unlock=lambda made: keys.unlock(stored.own, made, secret)) as found:
        read = b"".join(bytes(data or bytes(16384)) for data in found.frames(range(256)).values())
    assert any(read)
    assert read == stored.content
    with open_offline(stored.own, "vm1") as found, pytest.raises(KeyRefused, match="opened without its key"):
        found.frames([0])


# --- slots -----------------------------------------------------------------------------------------------------------


def test_add_list_remove(
    s3block: Command, url: str, tmp_path: Path, stored: Stored, key_file: Callable[..., str]
) -> None:
    one, words = f"file:{tmp_path}/one", key_file("words", WORDS.encode()).replace("file:", "passphrase-file:")
    (first,) = slot_ids(url)
    said = s3block("key", "add", f"{url}/vm1", "--key", one, "--new-key", words)
    assert said.code == 0
    assert "opened by the new passphrase" in said.out
    rows = s3block("key", "list", f"{url}/vm1", "--json").answer
    assert {(row["id"] == first, row["opened_by"], row["kdf"]) for row in rows} == {
        (True, "key file", "hkdf-sha256"),
        (False, "passphrase", "argon2id"),
    }
    assert "OPENED BY" in s3block("key", "list", f"{url}/vm1").out
    for source in (one, words):
        assert s3block("check", f"{url}/vm1", "--deep", "--key", source).code == 0
    assert s3block("key", "remove", f"{url}/vm1", first).code == 0
    said = s3block("export", f"{url}/vm1", tmp_path / "image", "--key", one)
    assert said.code == ExitCode.REFUSED
    assert "no slot of volume vm1 is opened by a key file\n  its slots are for: passphrase" in said.err
    assert s3block("export", f"{url}/vm1", tmp_path / "image", "--key", words).code == 0
    assert (tmp_path / "image").read_bytes() == stored.content


def test_the_last_slot_stays_unless_forced(s3block: Command, url: str, tmp_path: Path, stored: Stored) -> None:
    (only,) = slot_ids(url)
    stored.own.put("key/garbage", b"{}")
    said = s3block("key", "remove", f"{url}/vm1", only)
    assert said.code == ExitCode.REFUSED
    assert "is the last one of volume vm1" in said.err
    assert s3block("key", "remove", f"{url}/vm1", "garbage").code == 0
    assert s3block("key", "remove", f"{url}/vm1", "garbage").code == ExitCode.NOT_FOUND
    assert slot_ids(url) == [only]
    assert s3block("key", "remove", f"{url}/vm1", only, "--force").code == 0
    said = s3block("export", f"{url}/vm1", tmp_path / "image", "--key", f"file:{tmp_path}/one")
    assert said.code == ExitCode.REFUSED
    assert "volume vm1 has no key slot" in said.err
    assert "nobody can open the volume" in s3block("key", "list", f"{url}/vm1").err


def test_two_that_remove_two_slots_at_once_leave_one(
    s3block: Command,
    url: str,
    tmp_path: Path,
    stored: Stored,
    key_file: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert s3block("key", "add", f"{url}/vm1", "--key", f"file:{tmp_path}/one", "--new-key", key_file("two")).code == 0
    first, second = slot_ids(url)
    delete = MemoryStore.delete

    def both(self: MemoryStore, key: str) -> None:
        delete(self, f"v1/vm1/key/{second}")
        delete(self, key)

    monkeypatch.setattr(MemoryStore, "delete", both)
    said = s3block("key", "remove", f"{url}/vm1", first)
    assert said.code == ExitCode.REFUSED
    assert "somebody removed the others" in said.err
    assert slot_ids(url) == [first]


def test_rotate(s3block: Command, url: str, tmp_path: Path, stored: Stored, key_file: Callable[[str], str]) -> None:
    one, two = f"file:{tmp_path}/one", key_file("two")
    (before,) = slot_ids(url)
    said = s3block("key", "rotate", f"{url}/vm1", "--key", one, "--new-key", one)
    assert (said.code, slot_ids(url)) == (ExitCode.USAGE, [before])
    told = s3block("key", "rotate", f"{url}/vm1", "--key", one, "--new-key", two, "--json").answer
    assert told["removed"] == before
    assert slot_ids(url) == [told["id"]]
    assert s3block("check", f"{url}/vm1", "--deep", "--key", one).code == ExitCode.REFUSED
    assert s3block("check", f"{url}/vm1", "--deep", "--key", two).code == 0
    said = s3block("key", "rotate", f"{url}/vm1", "--key", one, "--new-key", two)
    assert said.code == ExitCode.REFUSED


@pytest.mark.parametrize("step", ["put", "delete"])
def test_a_rotation_that_is_stopped_leaves_a_volume_that_opens(
    s3block: Command,
    url: str,
    tmp_path: Path,
    stored: Stored,
    key_file: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    one, two = f"file:{tmp_path}/one", key_file("two")

    def die(self: MemoryStore, *arguments: object) -> None:
        raise KeyboardInterrupt

    name = {"put": "put_if_absent", "delete": "delete"}[step]
    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, name, die)
        assert s3block("key", "rotate", f"{url}/vm1", "--key", one, "--new-key", two).code != 0
    assert s3block("export", f"{url}/vm1", tmp_path / "image", "--key", one).code == 0
    found = s3block("export", f"{url}/vm1", tmp_path / "image", "--key", two, "--force")
    assert found.code == (0 if step == "delete" else ExitCode.REFUSED)
    assert len(slot_ids(url)) == (2 if step == "delete" else 1)


def test_a_store_that_changes_the_new_slot_costs_nothing(
    s3block: Command,
    url: str,
    tmp_path: Path,
    stored: Stored,
    key_file: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = MemoryStore.put_if_absent

    def lossy(self: MemoryStore, key: str, data: bytes, **more: Any) -> str:
        return put(self, key, data[:-4], **more)

    with monkeypatch.context() as patched:
        patched.setattr(MemoryStore, "put_if_absent", lossy)
        said = s3block("key", "rotate", f"{url}/vm1", "--key", f"file:{tmp_path}/one", "--new-key", key_file("two"))
    assert said.code == ExitCode.CORRUPT
    assert "gives back something else than was put" in said.err
    assert s3block("export", f"{url}/vm1", tmp_path / "image", "--key", f"file:{tmp_path}/one").code == 0


def test_a_slot_with_another_data_key_is_refused(s3block: Command, url: str, tmp_path: Path, stored: Stored) -> None:
    """A slot put there by somebody who can write to the bucket and knows the secret, but not the data key."""
    (only,) = slot_ids(url)
    found = volume_file.decode(stored.own.get("vol.json").data, what="")
    secret = Secret("key", bytes(range(40)))
    forged = key_slot.wrap(bytes(32), secret, volume=found.identity, random=os.urandom, created=0.0, creator="")
    stored.own.delete(f"key/{only}")
    stored.own.put(paths.key_slot(forged.id), key_slot.encode(forged))
    said = s3block("export", f"{url}/vm1", tmp_path / "image", "--key", f"file:{tmp_path}/one")
    assert said.code == ExitCode.REFUSED
    assert "holds a key that is not the volume's" in said.err


def test_a_clone_gets_a_slot_for_its_ancestors_data_key(url: str, stored: Stored) -> None:
    parent = volume_file.decode(stored.own.get("vol.json").data, what="")
    data_key, _ = keys.open_slot(stored.own, parent, Secret("key", bytes(range(40))))
    plain = replace(parent, identity=uuid.uuid4(), features=frozenset(), encryption=None)
    child, slot, again = keys.sealed(plain, Secret("key", bytes(50)), random=os.urandom, data_key=data_key)
    assert again == data_key
    assert child.encryption != parent.encryption
    with keys.slot_in_place(own(url, "vm2"), slot):
        own(url, "vm2").put_if_absent("vol.json", volume_file.encode(child))
    assert keys.unlock(own(url, "vm2"), child, Secret("key", bytes(50))) == data_key
    with pytest.raises(NotFound):
        keys.remove_slot(own(url, "vm2"), child, "none", force=False)
