"""Every attack of docs/integrity/attacks.md, and what says so. The names of the tests stand in that table.

One rule: an attack is done as its attacker could do it: with the keys that the row says, on objects as they lie in the bucket,
and everything that those keys allow is made to fit.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from integrity.keys import Introduction, sign_introduction
from integrity.layout import checkpoint_key, epoch_key, kept_checkpoint_key, tile_key
from integrity.place import Ledger
from integrity.reconcile_commands import verified_logs
from integrity.record import START
from integrity.tlog.checkpoint import Checkpoint, sign_checkpoint
from integrity.tlog.cosignature import CosignerKey, parse_cosigner
from integrity.tlog.note import Signer
from integrity.tlog.tiles import ENTRIES, encode_bundle, split_bundle, tile_path, tiles_to_publish
from integrity.tlog.tree import complete_root, leaf_hash
from integrity.verification.findings import Kind, Outcome, Verdict
from integrity.verification.fsck import NAMES_MAX, fsck
from integrity.verification.full import full
from integrity.verification.quick import quick
from s3core.clock import SystemClock
from s3core.errors import NotFound
from s3core.settings import LedgerSettings
from tests.architecture.tree import ROOT
from tests.integrity.verification.forge import ORIGIN, T0, Forged, World

W = "pve1.1"


@pytest.fixture
def world() -> World:
    """A ledger with two writers that has been verified, and therefore pinned, and has grown since."""
    world = World()
    world.fill(600)
    return world


def pinned(world: World) -> World:
    outcome, world.pins = quick(world.evidence())
    assert outcome.verdict is Verdict.VERIFIED, outcome.findings
    return world


def grown(world: World) -> World:
    for log in world.logs.values():
        for number in range(40):
            log.add(key=f"later/{number}", who={"user": "backup", "host": "pve1"})
        log.publish()
    world.seal()
    return world


def full_of(world: World) -> Outcome:
    return full(world.evidence())[0]


def quick_of(world: World) -> Outcome:
    return quick(world.evidence())[0]


def tampered(outcome: Outcome, words: str, log: str = W) -> None:
    told = [one.what for one in outcome.of(Kind.TAMPERED)]
    assert outcome.verdict is Verdict.TAMPERED, outcome.findings
    assert any(words in one for one in told), told
    assert {one.log for one in outcome.of(Kind.TAMPERED)} == {log}


def edit_bundle(world: World, index: int, change: Callable[[list[bytes]], object]) -> str:
    """Change the records of a full bundle in the bucket; its name."""
    key = tile_key(W, tile_path(ENTRIES, index))
    records = split_bundle(world.store.get(key).data)
    change(records)
    world.store.put(key, encode_bundle(records))
    return key


# --- without a key -----------------------------------------------------------------------------------------------------


def test_a_world_that_nobody_touched_is_verified(world: World) -> None:
    for outcome in (quick_of(world), full_of(pinned(world)), full_of(grown(world)), quick_of(world)):
        assert outcome.verdict is Verdict.VERIFIED, outcome.findings
        assert outcome.exit_code == 0


def test_edit_a_record(world: World) -> None:
    def change(records: list[bytes]) -> None:
        records[44] = records[44].replace(b'"user":"backup"', b'"user":"nobody"')

    key = edit_bundle(world, 1, change)
    outcome = full_of(world)
    tampered(outcome, "the record was changed")
    # Not the record after it, whose chain is broken by this one.
    found = outcome.findings[0]
    assert "the record was changed" in found.what
    assert (found.first, found.last, found.where) == (300, 300, key)
    assert found.last_writer == f"backup@pve1 (log {W})"
    assert found.since < found.until
    assert found.known_good.startswith("151 records, by the checkpoint of ")
    assert outcome.exit_code == 12


def test_edit_one_of_the_newest_records(world: World) -> None:
    """A pin that is newer than the record may not have read it: the window begins with the record before, and ends now."""
    pinned(world)
    records = world.logs[W].records
    changed = len(records) - 3
    key = tile_key(W, tile_path(ENTRIES, changed // 256, len(records) % 256))
    bundle = split_bundle(world.store.get(key).data)
    bundle[changed % 256] = bundle[changed % 256].replace(b'"v":1', b'"v":2')
    world.store.put(key, encode_bundle(bundle))
    outcome = quick_of(world)
    tampered(outcome, "record")
    found = outcome.findings[0]
    assert found.first == changed
    assert found.since == orjson.loads(records[changed - 1])["at"]
    assert found.since < found.until


def test_edit_a_record_and_make_all_tiles_fit(world: World) -> None:
    log = world.logs[W]
    log.records[300] = log.records[300].replace(b'"user":"backup"', b'"user":"nobody"')
    rehash(log)
    log.put_tiles()
    outcome = full_of(world)
    assert outcome.verdict is Verdict.TAMPERED
    assert {one.log for one in outcome.of(Kind.TAMPERED)} == {W}


def rehash(log: Forged) -> None:
    log.hashes = [leaf_hash(record) for record in log.records]


def test_reorder_records(world: World) -> None:
    def change(records: list[bytes]) -> None:
        records[10], records[11] = records[11], records[10]

    edit_bundle(world, 1, change)
    tampered(full_of(world), "changed, exchanged or replaced")


def test_insert_a_record(world: World) -> None:
    def change(records: list[bytes]) -> None:
        records.insert(5, records[4])
        del records[-1]

    edit_bundle(world, 0, change)
    outcome = full_of(world)
    tampered(outcome, "changed, exchanged or replaced")
    assert "does not name" in str(outcome.findings) or "`after`" in str(outcome.findings)


def test_delete_a_record(world: World) -> None:
    edit_bundle(world, 0, lambda records: records.pop(5))
    tampered(full_of(world), "not a bundle of 256 records")


def test_replace_a_bundle(world: World) -> None:
    other = world.store.get(tile_key("pve1.2", tile_path(ENTRIES, 0))).data
    world.store.put(tile_key(W, tile_path(ENTRIES, 0)), other)
    tampered(full_of(world), "changed, exchanged or replaced")


def test_delete_a_bundle(world: World) -> None:
    world.store.delete(tile_key(W, tile_path(ENTRIES, 1)))
    outcome = full_of(world)
    tampered(outcome, "the bundle with 256 records is missing")
    assert [(one.first, one.last) for one in outcome.of(Kind.TAMPERED)] == [(256, 511)]


@pytest.mark.parametrize(
    ("path", "words"), [(tile_path(0, 1), "the tile was replaced"), (tile_path(1, 0, 2), "level 1")]
)
def test_replace_a_tile(world: World, path: str, words: str) -> None:
    data = bytearray(world.store.get(tile_key(W, path)).data)
    data[40] ^= 1
    world.store.put(tile_key(W, path), bytes(data))
    outcome = full_of(world)
    assert outcome.verdict is Verdict.TAMPERED
    assert any(words in one.what and path in one.where for one in outcome.findings), outcome.findings


@pytest.mark.parametrize("way", ["quick", "full"])
def test_cut_the_tail_of_a_writer(world: World, way: str) -> None:
    """Back to an earlier checkpoint that its writer did sign: the heads in the ledger's log tell, without any pin."""
    kept = world.store.get(kept_checkpoint_key(W, 302)).data
    world.store.put(checkpoint_key(W), kept)
    outcome = quick_of(world) if way == "quick" else full_of(world)
    tampered(outcome, "cut or rolled back")
    found = outcome.of(Kind.TAMPERED)[0]
    assert found.first == 302
    assert str(world.logs[W].published) in found.known_good


def test_cut_the_tails_of_a_writer_and_of_the_ledger(world: World) -> None:
    """With the pin, whoever verified before knows better."""
    before = world.kept()
    pinned(grown(world))
    world.put_back(before)
    outcome = quick_of(world)
    assert outcome.verdict is Verdict.TAMPERED
    assert {one.log for one in outcome.of(Kind.TAMPERED)} >= {"ledger"}


def test_roll_the_whole_bucket_back_with_a_pin(world: World) -> None:
    before = world.kept()
    pinned(grown(world))
    world.put_back(before)
    for outcome in (quick_of(world), full_of(world)):
        assert outcome.verdict is Verdict.TAMPERED
        assert any("the pin has" in one.what for one in outcome.findings)


def test_roll_the_whole_bucket_back_without_a_pin(world: World) -> None:
    """Every signature holds: only the age of the newest evidence tells, once it is older than silence_s."""
    before = world.kept()
    grown(world)
    now = world.evidence().now + 600
    world.put_back(before)
    outcome, _ = quick(world.evidence(now=now))
    assert outcome.verdict is Verdict.ANOMALIES
    assert all("stale" in one.what for one in outcome.findings)
    # Not detected: at once, by a verifier without a pin, when no witness is asked.
    assert quick_of(world).verdict is Verdict.VERIFIED


def test_empty_the_bucket_with_a_pin(world: World) -> None:
    pinned(world)
    world.put_back({})
    outcome = quick_of(world)
    tampered(outcome, "the whole log is gone", log="ledger")


def test_delete_two_checkpoints_in_a_row(world: World) -> None:
    for size in (302, 453):
        world.store.delete(kept_checkpoint_key(W, size))
    for outcome in (full_of(world), quick_of(world)):
        tampered(outcome, "is missing")
    missing = [one.where for one in full_of(world).of(Kind.TAMPERED)]
    assert missing == [kept_checkpoint_key(W, 302), kept_checkpoint_key(W, 453)]


def test_swap_two_writers_logs(world: World) -> None:
    kept = world.kept()
    for key, data in kept.items():
        if key.startswith(f"log/{W}/"):
            world.store.put(key.replace(W, "pve1.2"), data)
        elif key.startswith("log/pve1.2/"):
            world.store.put(key.replace("pve1.2", W), data)
    outcome = quick_of(world)
    assert outcome.verdict is Verdict.TAMPERED
    assert {one.log for one in outcome.of(Kind.TAMPERED)} == {W, "pve1.2"}


def test_enrol_a_writer_without_the_ledger_key(world: World) -> None:
    """The record and its tiles can be put; the checkpoint over them cannot be signed."""
    stranger = world.log("evil.1")
    stranger.add(key="x")
    stranger.publish()
    forged = world.ledger.copy(world.store)
    forged.seeds = [bytes(32)]
    forged.add(op="enrol", phase="done", source="ledger", detail={"writer": "evil.1", "vkey": stranger.signer.vkey})
    forged.publish()
    tampered(quick_of(world), "not a checkpoint of", log="ledger")


def test_put_a_log_of_nobody_beside_the_others(world: World) -> None:
    stranger = world.log("evil.1")
    stranger.add(key="x")
    stranger.publish()
    outcome = full_of(world)
    assert outcome.verdict is Verdict.ANOMALIES
    assert [one.where for one in outcome.findings] == ["log/evil.1/"]


def test_replace_the_key_in_ledger_json(world: World) -> None:
    """It is for people: a whole false ledger under another key is refused by the key in the settings."""
    thief = Signer(ORIGIN, bytes(32))
    world.store.put("ledger.json", f'{{"v":1,"origin":"{ORIGIN}","vkey":"{thief.vkey}"}}'.encode())
    assert full_of(world).verdict is Verdict.VERIFIED
    world.ledger.seeds = [bytes(32)]
    note = Checkpoint(ORIGIN, world.ledger.published, world.ledger.root(world.ledger.published))
    world.store.put(checkpoint_key("ledger"), sign_checkpoint(note, thief))
    outcome, _ = quick(world.evidence(vkey=Signer(ORIGIN, b"ledger".ljust(31, b".") + b"\0").vkey))
    tampered(outcome, "not a checkpoint of", log="ledger")


# --- with a key --------------------------------------------------------------------------------------------------------


def rewritten(world: World, *, at: int = 300) -> Forged:
    """The writer's history with one record changed, all behind it chained anew, and put with every tile and checkpoint that the
    keys of the log can sign."""
    log = world.logs[W]
    forged = log.copy(world.store)
    forged.cut(0)
    forged.published = 0
    forged.epoch = 0
    rotations = 0
    for number, data in enumerate(log.records):
        record = orjson.loads(data)
        when = record["at"]
        event = {name: value for name, value in record.items() if name not in ("after", "at", "n", "v", "writer")}
        if number == at:
            event["who"] = {"user": "nobody"}
        if event["op"] == "checkpoint":
            size = forged.published
            event["detail"] = {"size": size, "root": forged.root(size).hex()} if size else {}
        forged.take(event, when)
        if event["op"] == "checkpoint":
            forged.put()
        rotations += event["op"] == "key"
    forged.epoch = log.epoch
    return forged


def test_steal_the_current_key_and_rewrite_history_seen_by_the_heads(world: World) -> None:
    rewritten(world)
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "another history")


def test_fork_seen_by_the_pin(world: World) -> None:
    """The heads were made to fit too: the ledger key is stolen as well. The pin tells."""
    pinned(world)
    ledger = world.ledger.copy(world.store)
    forged = rewritten(world)
    ledger.cut(0)
    world.ledger = ledger
    world.logs[W] = forged
    for name, log in world.logs.items():
        ledger.add(op="enrol", phase="done", source="ledger", detail={"writer": name, "vkey": log.signer.vkey})
    world.seal()
    world.ledger.put(everything=True)
    outcome = quick_of(world)
    assert outcome.verdict is Verdict.TAMPERED
    # Not detected: by somebody without a pin or witness, when every key is stolen.
    world.pins = replace(world.pins, logs={}, members={})
    assert full_of(world).verdict is Verdict.VERIFIED


def test_fork_seen_by_the_witness(world: World) -> None:
    """Every key but the witness's is stolen, and nothing was pinned."""
    witness = CosignerKey("example.com/witness", 4, bytes([7]) * 32)
    cosigner = parse_cosigner(witness.vkey)
    checkpoint = Checkpoint(ORIGIN, world.ledger.published, world.ledger.root(world.ledger.published))
    note = sign_checkpoint(checkpoint, world.ledger.signer, witness.at(int(T0)))
    world.store.put(checkpoint_key("ledger"), note)
    seen = world.evidence(cosigners=[cosigner], cosignatures_needed=1)
    assert quick(seen)[0].verdict is Verdict.VERIFIED
    world.store.put(checkpoint_key("ledger"), sign_checkpoint(checkpoint, world.ledger.signer))
    outcome, _ = quick(seen)
    assert outcome.verdict is Verdict.ANOMALIES
    assert "0 witnesses cosigned" in outcome.findings[0].what


def signed_by(world: World, *made: Callable[[bytes, int], bytes]) -> World:
    """Whoever has the writer's key appends whatever bytes he likes, given `after` in hex and the number; heads are sealed."""
    log = world.logs[W]
    for one in made:
        log.records.append(one(log.hashes[-1].hex().encode(), len(log.records)))
        log.hashes.append(leaf_hash(log.records[-1]))
    for number in range(3):
        log.add(key=f"behind/{number}")
    log.publish()
    world.seal()
    return world


ODD: dict[str, tuple[bytes, str]] = {
    "a list": (b'["aaaaaaa%b",{"source":"ledger"}]', "is not a JSON object"),
    "no JSON": (b'{"after":"%b" no "phase":"intent" }', "not a record"),
    "an endless number": (b'{"after":"%b","intent":' + b"9" * 6000 + b',"n":1}', "not a record"),
    "another kind of detail": (b'{"after":"%b","detail":[1],"op":"key","source":"ledger"}', "not a record"),
    "the 13th month": (
        b'{"after":"%b","at":"2026-13-01T00:00:00.000000Z","n":605,"op":"note","phase":"done","source":"ledger","v":1,'
        b'"writer":"pve1.1"}',
        "is not a time",
    ),
    "a thousand objects in one another": (
        b'{"after":"%b","at":"2026-01-01T00:00:00.000000Z","detail":' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b","
        b'"n":605,"op":"note","phase":"done","source":"ledger","v":1,"writer":"pve1.1"}',
        "within one another",
    ),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("every", [1, 10**6])
def test_steal_the_current_key_and_sign_what_is_no_record(
    world: World, odd: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("integrity.verification.full.PARSE_ALL_RECORDS", 10)
    monkeypatch.setattr("integrity.verification.full.PARSE_EVERY", every)
    data, words = ODD[odd]
    signed_by(world, lambda after, number: data.replace(b"%b", after))
    tampered(full_of(world), words)


def test_steal_the_current_key_and_name_a_checkpoint_that_cannot_be(world: World) -> None:
    detail = {"size": 2**50, "root": "00" * 32}
    world.logs[W].add(op="checkpoint", phase="done", source="ledger", detail=detail)
    world.logs[W].put()
    signed_by(world)
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "which would be after it")


def test_steal_the_current_key_and_sign_any_size(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A right edge of made up hashes over the true ones, so that the heads are continued; there are no bundles below."""
    monkeypatch.setattr("integrity.verification.full.LOST_STRETCHES_MAX", 2)
    log = world.logs[W]
    size = 2**40
    rows: dict[tuple[int, int], list[bytes]] = {}
    first = [*log.hashes[512:], *[START] * 256][:256]
    rows[0, 2] = first
    row = [complete_root(log.hashes[:256]), complete_root(log.hashes[256:512]), complete_root(first)]
    for level in range(1, 5):
        rows[level, 0] = [*row, *[START] * 256][:256]
        row = [complete_root(rows[level, 0])]
    for (level, index), tile in rows.items():
        world.store.put(tile_key(W, tile_path(level, index)), b"".join(tile))
    note = sign_checkpoint(Checkpoint(log.origin, size, row[0]), log.signer)
    world.store.put(checkpoint_key(W), note)
    world.store.put(kept_checkpoint_key(W, size), note)
    outcome = full_of(world)
    assert outcome.verdict is Verdict.TAMPERED
    assert any("were not asked for" in one.what for one in outcome.of(Kind.TAMPERED)), outcome.findings
    note = sign_checkpoint(Checkpoint(log.origin, 2**63 - 1, START), log.signer)
    world.store.put(checkpoint_key(W), note)
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "below 2^53")


def test_steal_the_ledger_key_and_seal_a_smaller_head(world: World) -> None:
    """The writer's log is cut back to a checkpoint of its own, and the ledger's log goes on and says that this is right."""
    kept = World()
    kept.fill(300)
    world.store.delete_many([one.key for one in world.store.list(f"log/{W}/")])
    for one in kept.store.list(f"log/{W}/"):
        world.store.put(one.key, kept.store.get(one.key).data)
    world.logs[W] = kept.logs[W].copy(world.store)
    world.seal()
    for outcome in (quick_of(world), full_of(world)):
        assert outcome.verdict is Verdict.TAMPERED
        assert any("goes back" in one.what for one in outcome.of(Kind.TAMPERED, "ledger"))


def test_steal_the_key_of_a_retired_writer_that_never_wrote() -> None:
    world = World(("pve1.1", "old.1"))
    old = world.logs.pop("old.1")
    world.fill(10)
    world.ledger.add(op="retire", phase="done", source="ledger", detail={"writer": "old.1", "size": 0})
    world.ledger.publish()
    old.now = world.ledger.now
    old.add(key="stolen")
    old.publish()
    for outcome in (quick_of(world), full_of(world)):
        assert outcome.verdict is Verdict.ANOMALIES
        assert ["2 records after the last" in one.what for one in outcome.of(Kind.ANOMALY, "old.1")] == [True]


@pytest.mark.parametrize("wrote", [0, 10])
def test_a_retired_writer_has_no_later_word(wrote: int, tmp_path: Path) -> None:
    """What reconcile reads of it ends where it was sealed, whatever its key signs later."""
    world = World(("pve1.1", "old.1"))
    old = world.logs["old.1"]
    for number in range(wrote):
        old.add(key=f"k/{number}")
    if wrote:
        old.publish()
    sealed = old.published
    world.seal()
    world.ledger.add(op="retire", phase="done", source="ledger", detail={"writer": "old.1", "size": sealed})
    world.ledger.publish()
    old.now = world.ledger.now
    old.add(key="stolen")
    old.publish()
    settings = LedgerSettings(url="memory:ledger", vkey=world.vkey)
    ledger = Ledger("books", settings, world.store, ORIGIN, tmp_path, SystemClock())
    told = {name: [orjson.loads(data) for _, data in read(0, size)] for name, size, read in verified_logs(ledger)}
    assert [one["key"] for one in told["old.1"] if "key" in one] == [f"k/{number}" for number in range(wrote)]


def test_hide_a_change_behind_many_others() -> None:
    """So many findings about one log that those about the next are not kept: its row and its pin still tell."""
    world = World()
    world.fill(300 * 256, each=50_000)

    def change(records: list[bytes]) -> None:
        records[:] = [one.replace(b'"user":"backup"', b'"user":"nobody"') for one in records]

    for index in range(290):
        edit_bundle(world, index, change)
    key = tile_key("pve1.2", tile_path(ENTRIES, 3))
    records = split_bundle(world.store.get(key).data)
    change(records)
    world.store.put(key, encode_bundle(records))
    outcome, pins = full(world.evidence())
    assert outcome.left_out
    assert {one.log: one.state for one in outcome.results} == {
        "ledger": "verified",
        "pve1.1": "TAMPERED",
        "pve1.2": "TAMPERED",
    }
    assert set(pins.logs) == {"ledger"}


def test_put_a_checkpoint_of_any_size_for_fsck(world: World) -> None:
    """It asks for no key, so nobody signed for the size that it reads."""
    note = sign_checkpoint(Checkpoint(world.logs[W].origin, 2**63 - 1, START), world.logs[W].signer)
    world.store.put(checkpoint_key(W), note)
    found = {one.log: one for one in fsck(world.store)}
    assert len(found[W].missing) == NAMES_MAX
    assert found["ledger"].sound


def test_two_histories_by_the_right_key_side_by_side(world: World) -> None:
    """A kept checkpoint of another history, signed by the log's own key, was left or put there."""
    log = world.logs[W]
    note = sign_checkpoint(Checkpoint(log.origin, 302, START), log.signer)
    world.store.put(kept_checkpoint_key(W, 302), note)
    tampered(full_of(world), "of another history")


def rotated() -> World:
    world = World()
    world.fill(200)
    world.logs[W].rotate()
    world.fill(200)
    return world


def test_keys_that_change_are_followed() -> None:
    world = rotated()
    for outcome in (quick_of(pinned(world)), full_of(world)):
        assert outcome.verdict is Verdict.VERIFIED, outcome.findings
        assert [one.epoch for one in outcome.results if one.log == W] == [1]
    world.logs[W].rotate()
    world.fill(10)
    assert quick_of(world).verdict is Verdict.VERIFIED


def test_steal_an_old_epochs_key_and_sign_a_new_checkpoint() -> None:
    world = rotated()
    forged = world.logs[W].copy(world.store)
    forged.epoch = 0
    forged.add(key="forged")
    forged.publish()
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "has an old key")


def test_steal_an_old_epochs_key_and_rewrite_its_history() -> None:
    """It signs checkpoints and the note of another next key; the heads tell, and the pinned keys."""
    world = rotated()
    end = next(n for n, record in enumerate(world.logs[W].records) if b'"op":"key"' in record)
    forged = world.logs[W].copy(world.store)
    forged.cut(end)
    forged.epoch = 0
    forged.published = 0
    forged.seeds = [forged.seeds[0], bytes(32)]
    forged.records[50] = forged.records[50].replace(b'"user":"backup"', b'"user":"nobody"')
    rehash(forged)
    forged.rotate()
    for number in range(300):
        forged.add(key=f"f{number}")
    forged.put(everything=True)
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "not the one that the ledger's log names")


def test_steal_the_current_key_and_let_the_next_epoch_begin_in_the_past() -> None:
    world = rotated()
    log = world.logs[W]
    new = Signer(log.origin, log.seeds[2])
    note = sign_introduction(Introduction(log.origin, 2, 100, log.root(100), new.vkey), log.signer, new)
    world.store.put(epoch_key(W, 2), note)
    log.epoch = 2
    log.add(key="more")
    log.put()
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "epoch 2 begins at 100 records")


def test_delete_the_note_of_an_epoch() -> None:
    world = rotated()
    world.store.delete(epoch_key(W, 1))
    for outcome in (quick_of(world), full_of(world)):
        tampered(outcome, "the note that introduces the key of epoch 1 is missing")


def test_no_object_can_be_changed_or_deleted_unseen() -> None:
    """Every object there is, one after another. Nobody depends on edges, nor on the partial tiles of earlier sizes."""
    world = rotated()
    world.fill(100)
    assert full_of(world).verdict is Verdict.VERIFIED
    needed = set()
    for log in (world.ledger, *world.logs.values()):
        tiles = tiles_to_publish(0, log.published)
        needed |= {tile_key(log.writer, tile.path) for tile in tiles}
    unseen = []
    for key, data in world.kept().items():
        optional = "/edges/" in key or (".p/" in key and key not in needed)
        for attack in ("deleted", "changed", "cut"):
            match attack:
                case "deleted":
                    world.store.delete(key)
                case "changed":
                    world.store.put(
                        key, data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
                    )
                case "cut":
                    world.store.put(key, data[:-1])
            try:
                if full_of(world).verdict is not Verdict.TAMPERED and not optional:
                    unseen.append((attack, key))
            except NotFound:
                assert (attack, key) == ("deleted", checkpoint_key("ledger"))
            world.store.put(key, data)
    assert unseen == []


# --- the table -----------------------------------------------------------------------------------------------------------


def test_the_table_names_tests_that_are_there() -> None:
    text = (ROOT / "docs" / "integrity" / "attacks.md").read_text()
    named = re.findall(r"`(test_\w+)`", text)
    there = {
        match
        for path in (ROOT / "tests" / "integrity").rglob("test_*.py")
        for match in re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }
    assert set(named) <= there, set(named) - there
    here = set(re.findall(r"^def (test_\w+)\(", (ROOT / "tests/integrity/test_attacks.py").read_text(), re.MULTILINE))
    apart = {
        "test_a_world_that_nobody_touched_is_verified",
        "test_keys_that_change_are_followed",
        "test_the_table_names_tests_that_are_there",
    }
    assert here - apart <= set(named), here - apart - set(named)
