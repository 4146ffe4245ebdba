"""An encrypted mirror from its first run to the day when nothing is left of it but its objects and the key."""

import io
import json
import os
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from cowsync.apply.copy_line import Place, lies_there, trash_key
from cowsync.apply.transfer import Sealing, Subject, Tally, Transfer, TransferSettings, UploadLog
from cowsync.changes import Outcome
from cowsync.cli import app
from cowsync.errors import Refused
from cowsync.mirror import opened_bucket
from cowsync.sealing.format import DataKey, NotOpened, sealed_bytes
from cowsync.sealing.keys import Keyring
from s3core.bucket import Attributes, Bucket, BucketProperties, CopySource, ObjectFacts, Written
from s3core.bucket_stack import MEMORY, open_bucket
from s3core.console import run
from s3core.errors import StoreError
from s3core.exit_codes import ExitCode
from s3core.key_slot import Secret
from s3core.memory import MemoryStore
from tests.cowsync.apply.faulty_bucket import Crash, Fault, put_in_parts
from tests.cowsync.worlds import World

SECRET = Secret("key", bytes(range(40)))
QUICK = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
MIB = 1024**2
PLAIN = b"what nobody else may read "


def world(folder: Path, **options: Any) -> World:
    return World(folder, secret=SECRET, **options)


@pytest.mark.parametrize("versioned", [False, True])
@pytest.mark.parametrize("near", [False, True])
def test_what_is_on_the_mirror_is_sealed_and_the_next_plan_is_empty(
    tmp_path: Path, versioned: bool, near: bool
) -> None:
    mirrored = world(tmp_path, versioned=versioned, one_endpoint=near)
    attributes = Attributes({"content-type": "image/jpeg"}, {"who": "somebody"}, {"secret-tag": "x"})
    mirrored.source.put("a", PLAIN, attributes=attributes)
    mirrored.source.put("empty", b"")
    done = mirrored.run().result
    assert (done.complete, done.bytes_copied, done.bytes_moved) == (True, 0, len(PLAIN))
    held = mirrored.target.contents()
    assert {key.split("/")[0] for key in held} == {"a", "empty", ".cowsync"}
    for data in held.values():
        assert PLAIN[:8] not in data
    facts = mirrored.target.head("a")
    assert dict(facts.attributes.headers) == {"content-type": "application/octet-stream"}
    assert (dict(facts.attributes.metadata), facts.tag_count) == ({}, 0)
    assert mirrored.mirrored() == {"a": PLAIN, "empty": b""}
    inside = opened_bucket(Place(mirrored.target), mirrored.keyring())
    assert inside.head("a").attributes.headers["content-type"] == "image/jpeg"
    assert inside.tags("a") == {"secret-tag": "x"}
    assert mirrored.plan().clean


def test_the_plan_knows_what_it_costs(tmp_path: Path) -> None:
    plain, sealed = World(tmp_path / "p"), world(tmp_path / "s")
    for one in (plain, sealed):
        one.folder.mkdir()
        one.source.put("a", PLAIN)
    costs = [one.plan().plan.summary()["summary"]["bytes"] for one in (plain, sealed)]  # type: ignore[index]
    assert costs[0] == {"streamed": 0, "copied": len(PLAIN), "growth": len(PLAIN)}
    assert costs[1] == {"streamed": len(PLAIN), "copied": 0, "growth": len(PLAIN) + 336}


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB, 5 * MIB + 1, 11 * MIB, 16 * MIB - 400])
@pytest.mark.parametrize("part", [0, 5 * MIB, 6 * MIB - 7])
def test_sizes_around_the_edges_of_frames_and_parts(tmp_path: Path, size: int, part: int) -> None:
    mirrored = world(tmp_path, one_endpoint=False, part_bytes=5 * MIB)
    data = os.urandom(size)
    if part and size:
        etag = put_in_parts(mirrored.source, "k", data, part)
    else:
        etag = mirrored.source.put("k", data).etag
    assert mirrored.run().result.complete
    assert mirrored.mirrored() == {"k": data}
    assert mirrored.target.uploads() == {}
    # What comes back is as it was at the source, parts and ETag included.
    inside = opened_bucket(Place(mirrored.target), mirrored.keyring())
    first = inside.head("k", part_number=1)
    if "-" in etag:
        assert (first.parts, first.size) == (-(-size // part), min(part, size))
    else:
        assert (first.parts, first.size) == (0, size)


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST_REPLY, Fault.CRASH_AFTER])
def test_a_fault_at_any_call_of_an_upload_in_parts(fault: Fault) -> None:
    calls, at = 1, -1
    while at < calls:
        at += 1
        folder = TemporaryDirectory(dir=QUICK)
        mirrored = world(Path(folder.name), one_endpoint=False)
        mirrored.settings = mirrored.settings.model_copy(update={"part_bytes": 700_001})
        mirrored.target._service.part_bytes_min = 1
        data = os.urandom(1000) * 1500
        mirrored.source.put("k", data)
        mirrored.faults.at = {at: fault}
        try:
            mirrored.run()
        except (Crash, Refused):
            pass
        except Exception as error:
            if "injected" not in str(error):
                raise
        calls = max(calls, mirrored.faults.calls)
        mirrored.faults.at, mirrored.faults.crashed = {}, False
        assert mirrored.run().result.complete
        assert mirrored.mirrored() == {"k": data}
        assert mirrored.plan().clean
        if mirrored.faults.trace[at - 1 : at] != ["begin_upload"]:
            # That one nobody heard of: the bucket's lifecycle rule takes it.
            assert mirrored.target.uploads() == {}
        folder.cleanup()
    assert calls >= 12


def test_memory_is_one_part_twice() -> None:
    """And parts are of one size, whatever the frames."""
    size, part = 60 * MIB + 5, 8 * MIB
    sizes: list[int] = []

    def send(key: str, upload_id: str, number: int, data: list[bytes]) -> str:
        sizes.append(sum(map(len, data)))
        return "0" * 32

    source = SimpleNamespace(
        properties=BucketProperties("memory:one", "s", False),
        head=lambda key, **_: ObjectFacts(key, size, "e", 0.0),
        get=lambda key, *, length, **_: bytes(length),
    )
    target = SimpleNamespace(
        properties=BucketProperties("memory:two", "t", False),
        begin_upload=lambda key, **_: "id",
        upload_part=send,
        complete_upload=lambda *_: Written("e"),
    )
    uploads = SimpleNamespace(upload_begun=lambda *_: None, upload_over=lambda *_: None)
    key = DataKey(UUID(int=1), bytes(32))
    transfer = Transfer(TransferSettings(part_bytes=part), cast(UploadLog, uploads))
    subject = Subject(cast(Bucket, source), "k", size, "e")
    tracemalloc.start()
    try:
        sealing = Sealing(Keyring(key, {key.id: key}, os.urandom), "k")
        transfer.copy(subject, cast(Bucket, target), "k", Tally(), sealing=sealing)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) == sealed_bytes(size)
    assert set(sizes[:-1]) == {part}
    assert peak < 2.3 * part


def test_no_salt_is_used_twice(tmp_path: Path) -> None:
    """Whatever fails and is tried again: one salt, one content."""
    mirrored = world(tmp_path, versioned=True, one_endpoint=False)
    for number in range(6):
        mirrored.source.put("k", b"%d" % number)
        mirrored.faults.calls, mirrored.faults.at = 0, {4 + number: Fault.LOST_REPLY}
        with suppress(StoreError):
            mirrored.run()
        mirrored.faults.at = {}
        mirrored.run()
    bodies: dict[bytes, bytes] = {}
    for version in mirrored.target.list_versions().versions:
        if version.key == "k":
            body = mirrored.target.get("k", version_id=version.version_id)
            assert bodies.setdefault(body[32:64], body) == body
    assert len(bodies) >= 6


def test_another_key_is_refused_before_anything_moves(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    mirrored.source.put("a", b"1")
    mirrored.run()
    mirrored.source.put("a", b"2")
    before = mirrored.target.contents()
    for wrong in (Secret("key", bytes(40)), Secret("passphrase", b"correct horse battery")):
        mirrored.secret = wrong
        with pytest.raises(Refused, match="opens none of its slots"):
            mirrored.run()
    assert mirrored.target.contents() == before
    mirrored.secret = SECRET
    assert mirrored.run().result.complete


def test_a_mirror_is_encrypted_from_its_beginning_or_not_at_all(tmp_path: Path) -> None:
    plain = World(tmp_path / "plain")
    sealed = world(tmp_path / "sealed")
    for one in (plain, sealed):
        one.folder.mkdir()
        one.source.put("a", b"1")
        one.run()
    plain.secret, sealed.secret = SECRET, None
    for one, told in ((plain, "was begun without encryption"), (sealed, "no key is configured")):
        with pytest.raises(Refused, match=told):
            one.plan()
    # With the state gone, too: what is on the mirror tells.
    for one in (plain, sealed):
        one.objects.__init__()  # type: ignore[misc]
    with pytest.raises(Refused, match="holds objects already"):
        plain.run(new_host=True)
    with pytest.raises(Refused, match="is an encrypted mirror"):
        sealed.run(new_host=True)


def test_a_lost_name_of_the_key_is_found_again(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    mirrored.source.put("a", b"1")
    mirrored.run()
    store = MemoryStore(bucket=mirrored.objects)
    named = store.get("KEY").data
    store.delete("KEY")
    ring = mirrored.vault(Place(mirrored.target)).opening(begun=True)
    assert ring is not None
    assert str(ring.current.id) in named.decode()
    mirrored.source.put("b", b"2")
    assert mirrored.run().result.complete
    assert store.get("KEY").data == named
    assert mirrored.mirrored() == {"a": b"1", "b": b"2"}


def test_without_its_key_nothing_plain_goes_to_an_encrypted_mirror(cowsync: Any) -> None:
    source, _ = open_bucket(f"memory:{cowsync.name}-s")
    source.put("one", PLAIN)
    cowsync("run", "a")
    source.put("one", PLAIN * 2)
    digest = cowsync("plan", "a", expect=1)["digest"]
    config = cowsync.folder / "config.toml"
    config.write_text("".join(line for line in config.read_text().splitlines(True) if not line.startswith("key")))
    for words in (
        ("plan", "a"),
        ("apply", "a", digest),
        ("run", "a"),
        ("verify", "a"),
        ("export", "a", "--format", "rclone", "--out", str(cowsync.folder / "x")),
        ("snapshot", "restore", "a", "run:1"),
    ):
        assert "no key is configured" in cowsync(*words, expect=7)["error"]["message"], words


def test_a_lost_state_costs_no_data(tmp_path: Path) -> None:
    mirrored = world(tmp_path, one_endpoint=False)
    for number in range(3):
        mirrored.source.put(f"k{number}", b"%d" % number)
    mirrored.run()
    before = mirrored.target.contents()
    mirrored.objects.__init__()  # type: ignore[misc]
    mirrored.source.put("k2", b"changed")
    again = mirrored.run(new_host=True).result
    assert again.counts == {"add": {Outcome.DONE: 2, Outcome.DRIFTED: 1}}, "what was ours is known, the rest left alone"
    assert mirrored.target.contents() == before
    mirrored.target.delete("k2")
    assert mirrored.run().result.complete
    assert mirrored.mirrored() == {"k0": b"0", "k1": b"1", "k2": b"changed"}


def test_slots_that_one_place_has_lost_come_from_the_other(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    mirrored.source.put("a", b"1")
    mirrored.run()
    (slot,) = [key for key in mirrored.target.contents() if key.startswith(".cowsync/keys/")]
    blob = mirrored.target.get(slot)
    mirrored.target.delete(slot)
    mirrored.source.put("b", b"2")
    mirrored.run()
    assert mirrored.target.get(slot) == blob
    mirrored.target.put(slot, blob[:-9])
    mirrored.source.put("c", b"3")
    mirrored.run()
    assert mirrored.target.get(slot) == blob


def test_two_hosts_that_begin_at_once_have_one_key(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    first, second = (mirrored.vault(Place(mirrored.target)) for _ in range(2))
    found: list[Any] = []
    put = mirrored.target.put

    def meanwhile(key: str, *args: Any, **named: Any) -> Any:
        mirrored.target.put = put  # type: ignore[method-assign]
        made = put(key, *args, **named)
        mirrored.target.delete(key)  # as if the other one had not seen it yet
        found.append(second.keyring(begun=False))
        put(key, *args, **named)
        return made

    mirrored.target.put = meanwhile  # type: ignore[method-assign]
    found.append(first.keyring(begun=False))
    assert found[0].current == found[1].current
    left = [key for key in mirrored.target.contents() if key.startswith(".cowsync/keys/")]
    assert len(left) == 1


def test_an_object_under_another_name_is_not_taken_for_it(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    mirrored.source.put("a", b"1")
    mirrored.source.put("b", b"2")
    mirrored.run()
    mirrored.target.put("a", mirrored.target.get("b"))
    inside = opened_bucket(Place(mirrored.target), mirrored.keyring())
    with pytest.raises(NotOpened, match="put under 'b'"):
        inside.get("a")


@pytest.mark.parametrize("key", ["k", "a/b", "x" * 1010, ".long-1"])
def test_names_in_the_trash(key: str) -> None:
    assert lies_there(key, key)
    assert lies_there(key, trash_key(12, key, "p/"))
    assert not lies_there(key, trash_key(12, key + "x", "p/"))
    assert not lies_there(key, f".cowsync/probe/1/{key}")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cowsync(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    name = tmp_path.name.replace("_", "-")
    for letter in "ab":
        (tmp_path / f"{letter}.key").write_bytes(os.urandom(32))
        (tmp_path / f"{letter}.key").chmod(0o600)
    config = tmp_path / "config.toml"
    config.write_text(
        "".join(
            f'[mirror.{letter}]\nsource = "memory:{name}-s"\ntarget = "memory:{name}-{letter}/copy"\n'
            f'state_dir = "{tmp_path}/{letter}"\nkey = "file:{tmp_path}/{letter}.key"\n'
            for letter in "ab"
        )
    )

    def call(*words: str, expect: int = 0) -> Any:
        capsys.readouterr()
        code = run(app, "cowsync", [*words, "--json", "--config", str(config)])
        told = capsys.readouterr()
        assert code == expect, told.err
        return json.loads(told.out) if told.out else json.loads(told.err)

    call.folder, call.name = tmp_path, name  # type: ignore[attr-defined]
    return call


def test_two_mirrors_with_keys_of_their_own(cowsync: Any) -> None:
    folder, name = cowsync.folder, cowsync.name
    source, _ = open_bucket(f"memory:{name}-s")
    attributes = Attributes({"content-type": "text/x"}, {"m": "é"}, {"t": "1"})
    source.put("one", PLAIN, attributes=attributes)
    source.put("two", b"2")
    etag = put_in_parts(MEMORY.bucket(f"{name}-s"), "parts", b"p" * (6 * MIB), 5 * MIB)
    for mirror in "ab":
        assert cowsync("run", mirror)["done"] == 3
        read = cowsync("verify", mirror, "--full")
        assert (read["listing"]["intact"], read["bytes"]["intact"]) == (3, 3)
    targets = {mirror: MEMORY.bucket(f"{name}-{mirror}") for mirror in "ab"}
    assert targets["a"].get("copy/one") != targets["b"].get("copy/one")
    # One mirror's object on the other one: it does not open there.
    targets["a"].put("copy/two", targets["b"].get("copy/two"))
    drift = cowsync("verify", "a", "--full", expect=1)
    assert drift["listing"]["counts"] == {"changed": 1}
    # The source moves on: the seal says what the ETag cannot.
    source.put("parts", b"other")
    source.delete("one")
    read = cowsync("verify", "b", "--full")
    assert (read["bytes"]["intact"], read["bytes"]["by_seal"]) == (1, 2)
    source.put("one", b"overwritten")
    back = cowsync("snapshot", "restore", "b", "run:1", "--overwrite", "--go")
    assert back["result"]["done"] == 2
    facts = source.head("one")
    assert source.get("one") == PLAIN
    assert (facts.attributes.metadata, source.tags("one")) == ({"m": "é"}, {"t": "1"})
    assert source.head("parts").etag == etag
    # The key of the other one opens nothing.
    (folder / "b.key").write_bytes((folder / "a.key").read_bytes())
    assert "opens none of its slots" in cowsync("run", "b", expect=7)["error"]["message"]
    cowsync("snapshot", "restore", "b", "run:1", expect=7)
    cowsync("verify", "b", "--full", expect=7)


def test_the_doctor_tries_the_key_and_puts_nothing_plain_there(cowsync: Any) -> None:
    source, _ = open_bucket(f"memory:{cowsync.name}-s")
    source.put("one", PLAIN)
    target = MEMORY.bucket(f"{cowsync.name}-a")
    target.set_versioning("Enabled")

    def told(expect: int) -> dict[str, str]:
        found = cowsync("doctor", "a", expect=expect)["findings"]
        return {one["check"]: one["said"] for one in found if one["check"] in ("key", "copy")}

    assert "nothing is sealed yet" in told(0)["key"]
    cowsync("run", "a")
    assert "opens a key slot" in told(0)["key"]
    assert "is encrypted" in told(0)["copy"]
    for version in target.list_versions(max_keys=1000).versions:
        if not version.delete_marker:
            assert PLAIN not in target.get(version.key, version_id=version.version_id)
    (cowsync.folder / "a.key").write_bytes(bytes(32))
    assert "opens none of its slots" in told(7)["key"]


def test_what_would_put_plain_bytes_there_is_refused(cowsync: Any) -> None:
    source, _ = open_bucket(f"memory:{cowsync.name}-s")
    source.put("one", b"1")
    planned = cowsync("plan", "a", expect=1)
    for form in ("rclone", "s3-batch", "s5cmd", "datasync"):
        refused = cowsync("export", "a", "--format", form, "--out", str(cowsync.folder / "x"), expect=7)
        assert "is encrypted" in refused["error"]["message"]
    cowsync("export", "a", "--format", "jsonl", "--out", str(cowsync.folder / "x"))
    report = cowsync.folder / "report.csv"
    report.write_text("")
    refused = cowsync("import-results", "a", planned["digest"], str(report), expect=7)
    assert "not sealed" in refused["error"]["message"]
    for command in ("apply", "run"):
        refused = cowsync(command, "a", "--cluster", "tcp://127.0.0.1:9", expect=7)
        assert "the key goes to no other" in refused["error"]["message"]
    assert MEMORY.bucket(f"{cowsync.name}-a").contents() == {}


def test_removed_objects_are_in_the_trash_sealed_and_come_back(cowsync: Any) -> None:
    config = cowsync.folder / "config.toml"
    removing = 'vanished = "remove"\nvanished_runs = 1\nvanished_s = 0\n'
    guard = "[mirror.a.guard]\nvanished_percent = 100\nprefix_vanished_percent = 100\nshrink_percent = 100\n"
    config.write_text(config.read_text().split("[mirror.b]")[0] + removing + guard)
    source, _ = open_bucket(f"memory:{cowsync.name}-s")
    for number in range(4):
        source.put(f"k{number}", PLAIN)
    source.put("x" * 1010, b"long")
    cowsync("run", "a")
    source.delete("k1")
    source.delete("x" * 1010)
    cowsync("run", "a")
    cowsync("run", "a")
    target = MEMORY.bucket(f"{cowsync.name}-a")
    trash = [key for key in target.contents() if "/trash/" in key]
    assert len(trash) == 2
    assert not any(PLAIN in data for data in target.contents().values())
    back = cowsync("snapshot", "restore", "a", "run:1", "--go")
    assert back["from_trash"] == 2
    assert (source.get("k1"), source.get("x" * 1010)) == (PLAIN, b"long")


def test_who_may_open_it_changes(cowsync: Any) -> None:
    folder = cowsync.folder
    source, _ = open_bucket(f"memory:{cowsync.name}-s")
    source.put("one", PLAIN)
    assert cowsync("key", "list", "a") == []
    assert "its first run" in cowsync("key", "add", "a", "--new-key", f"file:{folder}/b.key", expect=7)["error"]["hint"]
    cowsync("run", "a")
    (first,) = cowsync("key", "list", "a")
    assert (first["opened_by"], first["places"]) == ("key file", "state and mirror")
    assert "the last one" in cowsync("key", "remove", "a", first["id"], expect=7)["error"]["message"]
    (folder / "words").write_text("correct horse battery\n")
    (folder / "words").chmod(0o600)
    added = cowsync("key", "add", "a", "--new-key", f"passphrase-file:{folder}/words")
    assert added["opened_by"] == "passphrase"
    config = folder / "config.toml"
    config.write_text(config.read_text().replace(f"file:{folder}/a.key", f"passphrase-file:{folder}/words"))
    cowsync("key", "remove", "a", first["id"])
    assert [slot["id"] for slot in cowsync("key", "list", "a")] == [added["id"]]
    source.put("two", b"2")
    assert cowsync("run", "a")["done"] == 1
    assert cowsync("verify", "a", "--full")["bytes"]["intact"] == 2
    assert [slot["id"] for slot in cowsync("key", "list", "a")] == [added["id"]], "nothing gives it back"
    cowsync("key", "remove", "a", "nope", expect=4)
    config.write_text(config.read_text().replace(f"passphrase-file:{folder}/words", f"file:{folder}/a.key"))
    cowsync("run", "a", expect=7)
    cowsync("key", "add", "a", "--new-key", f"file:{folder}/b.key", expect=7)


def test_all_versions_sealed(cowsync: Any) -> None:
    config = cowsync.folder / "config.toml"
    config.write_text(config.read_text().split("[mirror.b]")[0] + 'versions = "all"\n')
    source = MEMORY.bucket(f"{cowsync.name}-s", versioned=True)
    target = MEMORY.bucket(f"{cowsync.name}-a", versioned=True)
    etag = put_in_parts(source, "k", b"1" * (6 * MIB), 5 * MIB)
    source.put("k", PLAIN, attributes=Attributes({}, {"m": "2"}))
    cowsync("run", "a")
    source.delete("k")
    source.put("k", b"3")
    cowsync("run", "a")
    held = [one for one in target.list_versions(prefix="copy/k").versions if not one.delete_marker]
    assert len(held) == 3
    assert not any(PLAIN in target.get(one.key, version_id=one.version_id) for one in held)
    read = cowsync("verify", "a", "--full")
    assert (read["listing"]["clean"], read["bytes"]["intact"]) == (True, 3)
    # An older version in the place of a newer one opens, and is not what is known of it.
    cowsync("snapshot", "restore", "a", "run:1", "--overwrite", "--go")
    assert source.get("k") == PLAIN
    assert source.head("k").attributes.metadata == {"m": "2"}
    assert etag.endswith("-2")


def test_out_with_nothing_but_objects_and_key(cowsync: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, name = cowsync.folder, cowsync.name
    source, _ = open_bucket(f"memory:{name}-s")
    attributes = Attributes({"content-type": "text/x"}, {"m": "é"}, {"t": "1"})
    large = os.urandom(64 << 10) * 40
    source.put("dir/one", large, attributes=attributes)
    source.put("two", b"")
    cowsync("run", "a")
    target = MEMORY.bucket(f"{name}-a")
    key = f"file:{folder}/a.key"
    (slot,) = [one for one in target.contents() if "/keys/" in one]
    (folder / "slot").write_bytes(target.get(slot))
    sealed = target.get("copy/dir/one")
    (folder / "sealed").write_bytes(sealed)
    words = ["decrypt", "--key", key, "--slot", str(folder / "slot")]
    assert run(app, "cowsync", [*words, str(folder / "sealed"), "--out", str(folder / "plain")]) == ExitCode.OK
    assert (folder / "plain").read_bytes() == large
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(sealed)))
    text = io.TextIOWrapper(out)
    monkeypatch.setattr(sys, "stdout", text)
    assert run(app, "cowsync", words) == ExitCode.OK
    monkeypatch.undo()
    assert out.getvalue() == large
    for damaged in (sealed[:-1], sealed + b"x", sealed[:70] + b"?" + sealed[71:], b"no sealed object" * 9):
        (folder / "sealed").write_bytes(damaged)
        code = run(app, "cowsync", [*words, str(folder / "sealed"), "--out", str(folder / "damaged")])
        assert code == ExitCode.CORRUPT
        assert not (folder / "damaged").exists()
    wrong = ["decrypt", "--key", f"file:{folder}/b.key", "--slot", str(folder / "slot"), str(folder / "sealed")]
    assert run(app, "cowsync", wrong) == ExitCode.REFUSED
    # All of it, into another bucket.
    got = ["--from", f"memory:{name}-a/copy", "--to", f"memory:{name}-out/back", "--key", key]
    assert run(app, "cowsync", ["decrypt", *got]) == ExitCode.OK
    back, _ = open_bucket(f"memory:{name}-out")
    assert back.get("back/dir/one") == large
    assert back.get("back/two") == b""
    facts = back.head("back/dir/one")
    assert (facts.attributes.headers["content-type"], facts.attributes.metadata) == ("text/x", {"m": "é"})
    assert back.tags("back/dir/one") == {"t": "1"}
    assert run(app, "cowsync", ["decrypt", *got]) == ExitCode.OK, "called again it finds everything there"


def test_what_is_not_sealed_never_leaves(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    mirrored.source.put("a", PLAIN)
    mirrored.run()
    before = mirrored.target.contents()
    bucket = mirrored.mirror().target.bucket
    upload = bucket.begin_upload("b")
    for write in (
        lambda: bucket.put("b", PLAIN),
        lambda: bucket.put("b", [b"BW", PLAIN]),
        lambda: bucket.put(".cowsync/trash/1/b", PLAIN),
        lambda: bucket.upload_part("b", upload, 1, PLAIN),
        lambda: bucket.copy(CopySource("source", "a"), ".cowsync/probe/b"),
        lambda: bucket.copy_part("b", upload, 1, CopySource("source", "a"), offset=0, length=4),
    ):
        with pytest.raises(RuntimeError, match="without being sealed"):
            write()
    assert mirrored.target.contents() == before
    bucket.copy(CopySource("target", "a"), ".cowsync/trash/1/a")


def test_reading_never_writes(tmp_path: Path) -> None:
    mirrored = world(tmp_path)
    mirrored.source.put("a", b"1")
    mirrored.run()
    inside = opened_bucket(Place(mirrored.target), mirrored.keyring())
    before = mirrored.target.contents()
    for write in (
        lambda: inside.put("a", b"plain"),
        lambda: inside.copy(CopySource("target", "a"), "b"),
        lambda: inside.begin_upload("a"),
        lambda: inside.delete("a"),
    ):
        with pytest.raises(Exception, match="only read this way"):
            write()
    assert mirrored.target.contents() == before
