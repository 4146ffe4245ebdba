"""Enrolment, sealing and slots: who is a writer, what of it is sealed, and what is left by a crash."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from integrity.adopting import adopt
from integrity.enrolment import Applicant, Request, Roster, enrol, make_slots, parse_request, request_of, retire
from integrity.errors import Behind, LedgerError, Malformed, NotEnrolled, Rejected, SlotsTaken
from integrity.keys import Introduction as EpochNote
from integrity.keys import LedgerKey, SlotKeys, open_introduction, sign_introduction, sign_possession
from integrity.layout import checkpoint_key, tile_key
from integrity.log_reader import Altered
from integrity.place import Ledger, open_ledger
from integrity.seal import raise_altered, seal
from integrity.service import Service, listening, new_service, sweep
from integrity.slots import ledger_log, open_writer, slot_folder, try_lock, writers_here
from integrity.tlog.note import Signer
from integrity.tlog.tiles import entries_path
from integrity.verification.evidence import Evidence
from integrity.verification.full import full
from integrity.verification.pins import Pins
from s3core.settings import Config

ORIGIN = "example.com/ledger"
PUT = {"op": "put", "source": "client", "bucket": "b", "key": "k"}


def opened(folder: Path, *, writer: str = "h", slots: int = 3, vkey: str = "", **more: object) -> Ledger:
    table: dict[str, object] = {
        "url": f"file://{folder}/store",
        "origin": ORIGIN,
        "state_dir": str(folder / writer),
        "writer": writer,
    }
    table |= {"slots": slots, "vkey": vkey} | more
    return open_ledger("led", Config.model_validate({"ledger": {"led": table}}))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A ledger with one host of three slots, which is where the ledger key is."""
    key = LedgerKey.create(tmp_path / "h" / "ledger.key", ORIGIN)
    ledger = opened(tmp_path, vkey=key.signer.vkey, seal_s=1.0)
    make_slots(ledger, 3)
    take(ledger, request_of(ledger))
    return ledger


def take(ledger: Ledger, request: Request) -> list[str]:
    roster = Roster()
    with ledger_log(ledger, roster) as own:
        told = enrol(own, roster, ORIGIN, request)
        own.publish()
    return told.new


def test_slots_are_taken_one_after_another(ledger: Ledger) -> None:
    assert writers_here(ledger) == ["h.1", "h.2", "h.3"]
    taken = [open_writer(ledger) for _ in range(3)]
    assert [one.name for one in taken] == ["h.1", "h.2", "h.3"]
    with pytest.raises(SlotsTaken):
        open_writer(ledger)
    with pytest.raises(SlotsTaken):
        open_writer(ledger, "h.2")
    taken[1].close()
    with open_writer(ledger) as again:
        assert again.name == "h.2"
    for one in taken:
        one.close()


def test_ten_slots_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    make_slots(ledger, 11)
    assert writers_here(ledger)[-2:] == ["h.10", "h.11"]
    assert make_slots(ledger, 12) == ["h.12"]


def test_what_is_private_is(ledger: Ledger) -> None:
    with open_writer(ledger) as writer:
        writer.record(PUT)
    for path in ledger.state_dir.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_host_without_slots_is_no_writer(tmp_path: Path) -> None:
    with pytest.raises(NotEnrolled):
        open_writer(opened(tmp_path))


def test_another_host_asks_to_be_enrolled(ledger: Ledger, tmp_path: Path) -> None:
    other = opened(tmp_path, writer="pve2", vkey=ledger.vkey)
    make_slots(other, 2)
    request = parse_request(request_of(other).encode())
    assert take(ledger, request) == ["pve2.1", "pve2.2"]
    assert take(ledger, request) == []
    with open_writer(other) as writer:
        writer.record(PUT)
    sealed = seal(ledger)
    assert sealed.changed == ["pve2.1"]
    with pytest.raises(NotEnrolled):
        seal(other)


def test_requests_that_do_not_hold(ledger: Ledger) -> None:
    good = request_of(ledger).writers[0]
    other = Signer(f"{ORIGIN}/h.9", bytes(32))
    thief = Applicant("h.9", other.vkey, sign_possession(ORIGIN, "h.8", other))
    with pytest.raises(Rejected):
        take(ledger, Request(ORIGIN, (thief,)))
    with pytest.raises(Rejected):
        take(ledger, Request(ORIGIN, (replace(good, writer="h.9"),)))
    again = Signer(f"{ORIGIN}/h.1", bytes(32))
    with pytest.raises(LedgerError, match="another key"):
        take(ledger, Request(ORIGIN, (Applicant("h.1", again.vkey, sign_possession(ORIGIN, "h.1", again)),)))
    with pytest.raises(LedgerError, match="not for"):
        take(ledger, replace(request_of(ledger), origin="example.com/other"))
    for data in (b"", b"{}", b'{"v":2}', json.dumps({"v": 1, "ledger": ORIGIN, "writers": [{}]}).encode()):
        with pytest.raises(Malformed):
            parse_request(data)


def test_a_retired_name_is_never_used_again(ledger: Ledger) -> None:
    with open_writer(ledger, "h.2") as writer:
        writer.record(PUT)
    told = []
    seal(ledger, inside=lambda own, roster: told.append(retire(own, roster, "h.2")))
    seal(ledger, inside=lambda own, roster: told.append(retire(own, roster, "h.2")))
    assert told == [True, False]
    with pytest.raises(LedgerError, match="retired"):
        take(ledger, request_of(ledger, ["h.2"]))
    with pytest.raises(LedgerError, match="no writer"):
        seal(ledger, inside=lambda own, roster: told.append(retire(own, roster, "h.7")))


def test_heads_are_sealed_once(ledger: Ledger) -> None:
    with open_writer(ledger) as writer:
        writer.record(PUT)
        writer.change_key()
        writer.record(PUT)
    first = seal(ledger)
    assert first.changed == ["h.1"]
    head = first.members.by_name["h.1"].head
    assert head is not None
    assert head.epoch == 1
    second = seal(ledger)
    assert second.changed == []
    assert second.checkpoint.size > first.checkpoint.size
    assert second.members.sealed > first.members.sealed


def test_the_roster_survives_that_old_records_are_trimmed(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("integrity.wal.FILE_BYTES", 2_000)
    with open_writer(ledger) as writer:
        for _ in range(15):
            writer.record(PUT)
            writer.publish()
            seal(ledger, inside=lambda own, roster: own.record_all([{"op": "note", "source": "ledger"}] * 30))
    assert (slot_folder(ledger, "ledger") / "base.json").exists()
    sealed = seal(ledger)
    assert sorted(sealed.members.by_name) == ["h.1", "h.2", "h.3"]
    assert sealed.changed == ["h.1"]


@pytest.mark.parametrize("notes", [0, 300])
def test_another_host_goes_on_with_the_ledgers_own_log(ledger: Ledger, notes: int) -> None:
    with open_writer(ledger) as writer:
        writer.record(PUT)
    for _ in range(2):
        seal(ledger, inside=lambda own, roster: own.record_all([{"op": "note", "source": "ledger"}] * notes))
    with pytest.raises(LedgerError, match="already"):
        adopt(ledger)
    lost = slot_folder(ledger, "ledger")
    lost.rename(lost.with_name("kept"))
    with pytest.raises(Behind):
        seal(ledger)
    shutil.rmtree(lost)
    size = adopt(ledger).size
    with open_writer(ledger) as writer:
        writer.record(PUT)
    sealed = seal(ledger)
    assert sealed.checkpoint.size == size + 2
    assert sealed.changed == ["h.1"]
    assert sorted(sealed.members.by_name) == ["h.1", "h.2", "h.3"]
    evidence = Evidence(ledger.store, ORIGIN, ledger.vkey, Pins(ORIGIN, ledger.vkey), ledger.clock.time())
    assert full(evidence)[0].findings == []
    # The host that was there before knows that it is not the one any more.
    shutil.rmtree(lost)
    lost.with_name("kept").rename(lost)
    with pytest.raises(Behind):
        seal(ledger)


def test_a_slot_that_is_behind_stops_nobody_while_others_are_there(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    folder = slot_folder(ledger, "h.1")
    # A copy beside it is no slot: its log would be nobody's.
    shutil.copytree(folder, folder.with_name("h.0.bak"))
    assert writers_here(ledger) == ["h.1", "h.2", "h.3"]
    with open_writer(ledger) as writer:
        assert writer.name == "h.1"
        writer.record(PUT)
    shutil.rmtree(folder)
    folder.with_name("h.0.bak").rename(folder)
    with open_writer(ledger) as writer:
        assert writer.name == "h.2"
        writer.record(PUT)
    assert "h.1" in caplog.text
    with pytest.raises(Behind):
        open_writer(ledger, "h.1")
    taken = [open_writer(ledger), open_writer(ledger)]
    with pytest.raises(Behind):
        open_writer(ledger)
    for one in taken:
        one.close()


def test_a_slot_under_another_name_is_not_opened(ledger: Ledger) -> None:
    folder = slot_folder(ledger, "h.3")
    shutil.copytree(folder, folder.with_name("h.4"))
    with pytest.raises(LedgerError, match=r"the key in .* is of"):
        open_writer(ledger, "h.4")


def test_a_log_that_was_put_back_is_recorded_once_and_raised(ledger: Ledger) -> None:
    with open_writer(ledger) as writer:
        writer.record(PUT)
        writer.publish()
        old = ledger.store.get(checkpoint_key("h.1")).data
        writer.record(PUT)
    before = seal(ledger).members.by_name["h.1"].head
    ledger.store.put(checkpoint_key("h.1"), old)
    for _ in range(2):
        sealed = seal(ledger)
        with pytest.raises(Altered):
            raise_altered(sealed)
        assert sealed.members.by_name["h.1"].head == before
    roster = Roster()
    with ledger_log(ledger, roster) as own:
        data = [json.loads(one) for one in own._wal.records(0, own.status.size)]
    assert sum(one["op"] == "error" for one in data) == 1
    assert list(roster.refused) == ["h.1"]


def test_a_tile_that_was_changed_is_found_when_the_log_grows(ledger: Ledger) -> None:
    with open_writer(ledger) as writer:
        writer.record(PUT)
    seal(ledger)
    service = Service(ledger)
    ledger.store.put(checkpoint_key("h.1"), b"nonsense\n")
    service.round()
    assert service.health()[0] == 503
    assert "h.1" in str(service.health()[1]["why"])


def test_serve_brings_slots_in_order(ledger: Ledger) -> None:
    writer = open_writer(ledger, background=False)
    number = writer.intent(PUT)
    writer._stop_threads()
    writer._wal.close()
    writer.slot.release()
    service = Service(ledger)
    assert (slot_folder(ledger, "h.1") / "open").exists()
    service.round()
    assert service.state.swept == 1
    assert service.health()[0] == 200
    assert not (slot_folder(ledger, "h.1") / "open").exists()
    assert sweep(ledger) == []
    head = service.state.writers
    assert list(head) == ["h.1"]
    bundle = ledger.store.get(tile_key("h.1", entries_path(0, 4))).data
    assert b'"intent":%d' % number in bytes(bundle)
    assert b'"phase":"unknown"' in bytes(bundle)


def test_what_monitors_are_told(ledger: Ledger) -> None:
    import urllib.request

    service = Service(ledger)
    service.round()
    with listening(new_service(service), "127.0.0.1:0") as url:
        with urllib.request.urlopen(f"{url}/healthz") as answer:
            assert json.load(answer)["healthy"] is True
        with urllib.request.urlopen(f"{url}/metrics") as answer:
            text = answer.read().decode()
    assert 'bucketworks_ledger_slots{ledger="led"} 3.0' in text
    assert 'bucketworks_ledger_healthy{ledger="led"} 1.0' in text


def test_a_lock_is_given_back(ledger: Ledger) -> None:
    slot = try_lock(ledger, "h.1")
    assert slot is not None
    assert try_lock(ledger, "h.1") is None
    slot.release()
    writer = open_writer(ledger, "h.1")
    writer.close()
    writer.close()
    again = try_lock(ledger, "h.1")
    assert again is not None
    again.release()


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_change_of_keys_that_was_cut_off(tmp_path: Path) -> None:
    """At each step a copy of the folder as a crash would leave it: the key is the old one or the new one, never none."""
    path = tmp_path / "slot" / "key.json"
    keys = SlotKeys.create(path, "x/h.1", now=1.0)
    old = keys.signer.vkey
    new = keys.prepare().vkey
    assert SlotKeys.load(path).prepare().vkey == new
    # After link(2), before the new file has its name:
    (path.parent / "key.json.old").hardlink_to(path)
    loaded = SlotKeys.load(path)
    assert loaded.signer.vkey == old
    assert not (path.parent / "key.json.old").exists()
    # After the rename, before the old file is erased:
    shutil.copy(path, tmp_path / "kept")
    loaded.promote(7, 2.0)
    assert (loaded.epoch, loaded.since_size, loaded.since, loaded.signer.vkey) == (1, 7, 2.0, new)
    shutil.copy(tmp_path / "kept", path.parent / "key.json.old")
    with (path.parent / "key.json.old").open("rb") as still_open:
        loaded = SlotKeys.load(path)
        assert not still_open.read().strip(b"\0")
    assert loaded.signer.vkey == new
    assert loaded.next_signer is None
    # While the new file is written:
    shutil.copy(tmp_path / "kept", path.parent / "key.json.new")
    assert SlotKeys.load(path).signer.vkey == new
    assert [one.name for one in path.parent.iterdir()] == ["key.json"]


def test_an_epoch_is_introduced_by_the_key_before_it() -> None:
    old, new, thief = (Signer("x/h.1", bytes([n]) * 32) for n in range(3))
    note = EpochNote("x/h.1", 1, 10, bytes(32), new.vkey)
    assert open_introduction(sign_introduction(note, old, new), "x/h.1", 1, old.verifier) == note
    for bad, epoch in ((sign_introduction(note, thief, new), 1), (sign_introduction(note, old, thief), 1)):
        with pytest.raises(Rejected):
            open_introduction(bad, "x/h.1", epoch, old.verifier)
    with pytest.raises(Rejected):
        open_introduction(sign_introduction(note, old, new), "x/h.1", 2, old.verifier)
    with pytest.raises(Rejected):
        open_introduction(sign_introduction(note, old, new), "x/h.2", 1, old.verifier)


def test_a_key_that_others_may_read_is_refused(ledger: Ledger) -> None:
    from s3core.credentials import CredentialsError

    ledger.key_file.chmod(0o644)
    with pytest.raises(CredentialsError, match="chmod"):
        seal(ledger)
