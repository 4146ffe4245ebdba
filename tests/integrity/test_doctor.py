"""`s3integrity doctor`: what it finds of a ledger on this host, and that nothing it does stays."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from integrity.cli import app
from integrity.doctor import (
    Diagnosis,
    FeedLag,
    Surroundings,
    covered_versioning,
    diagnose,
    feeds_here,
    ledger_judges,
)
from integrity.keys import LedgerKey, SlotKeys
from integrity.layout import tile_key
from integrity.place import Ledger
from integrity.record import START, encode, timestamp
from integrity.slots import try_lock
from integrity.tlog.cosignature import COSIGNATURE_ED25519, CosignerKey
from integrity.tlog.tiles import ENTRIES, tile_path
from integrity.verification.pins import load_pins, save_pins
from integrity.verification.quick import quick
from integrity.wal import Wal
from s3core.console import run
from s3core.endpoint import Endpoint
from s3core.errors import Denied, Unavailable
from s3core.exit_codes import ExitCode
from s3core.file import FileStore
from s3core.findings import Finding
from s3core.memory import MemoryStore
from s3core.s3_control import ObjectLock
from s3core.settings import LedgerSettings
from s3core.store import Body, Buffer, ObjectStore
from tests.integrity.verification.forge import ORIGIN, World
from tests.s3core.fakes import FakeClock


class Host:
    """A host with a ledger in memory: a writer `pve1.1` that is enrolled, and what the test makes of it."""

    def __init__(self, folder: Path, store: ObjectStore | None = None, **settings: Any) -> None:
        self.world = World(("pve1.1",))
        self.world.fill(20)
        self.folder = folder
        given = {"url": "memory:x", "origin": ORIGIN, "vkey": self.world.vkey, "writer": "pve1", **settings}
        self.clock = FakeClock(self.world.ledger.now + 5 - 1_700_000_000.0)
        self.ledger = Ledger(
            "archive", LedgerSettings(**given), store or self.world.store, ORIGIN, folder / "state", self.clock
        )

    def slot(self, writer: str = "pve1.1") -> None:
        SlotKeys.create(self.ledger.slots / writer / "key.json", f"{ORIGIN}/{writer}", now=0.0)

    def pin(self) -> None:
        evidence = self.world.evidence(pins=load_pins(self.folder / "state/pins.json", ORIGIN, self.world.vkey))
        _, pins = quick(evidence)
        save_pins(self.folder / "state/pins.json", pins)

    def wal(self, count: int, *, age_s: float, writer: str = "pve1.1") -> None:
        first = len(self.world.logs[writer].records)
        event = {"op": "put", "phase": "done", "source": "client"}
        wal = Wal.open(self.ledger.slots / writer / "wal", first)
        at = timestamp(self.clock.time() - age_s)
        # A log that begins late is named by its first record.
        wal.append([encode(event, writer=writer, n=first + n, at=at, after=START) for n in range(count)])
        wal.close()

    def examined(self, around: Surroundings | None = None, *, probing: bool = True) -> Diagnosis:
        return diagnose(self.ledger, around or Surroundings(), probing=probing)

    def found(self, around: Surroundings | None = None) -> dict[str, Finding]:
        return {finding.check: finding for finding in self.examined(around).findings}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_ledger_that_is_well(host: Host) -> None:
    host.slot()
    host.pin()
    diagnosis = host.examined()
    verdicts = {finding.check: finding.verdict for finding in diagnosis.findings}
    for check in ("writing", "pins", "evidence", "ledger key", "slots", "enrolment", "local log"):
        assert verdicts[check] == "ok", diagnosis.findings
    assert diagnosis.exit_code is ExitCode.OK
    assert not [info.key for info in host.world.store.list("reports/")]
    for finding in diagnosis.findings:
        assert finding.verdict == "ok" or finding.cure, finding


def test_without_pins_a_cut_cannot_be_seen(host: Host) -> None:
    assert host.found()["pins"].verdict == "warning"


def test_old_pins_are_told(host: Host) -> None:
    host.pin()
    host.clock.sleep(8 * 86_400)
    assert host.found()["pins"].verdict == "warning"
    assert host.found()["evidence"].verdict == "warning", "and so is evidence that nobody sealed anew"


def test_tampering_is_a_fault_with_its_own_code(host: Host) -> None:
    host.pin()
    key = tile_key("pve1.1", tile_path(ENTRIES, 0, len(host.world.logs["pve1.1"].records)))
    host.world.store.put(key, host.world.store.get(key).data.replace(b"data", b"DATA"))
    diagnosis = host.examined()
    assert diagnosis.exit_code is ExitCode.TAMPERED
    assert "tampered.md" in next(f.cure for f in diagnosis.findings if f.check == "evidence")


def test_no_ledger_there_is_not_tampering(tmp_path: Path) -> None:
    host = Host(tmp_path, MemoryStore())
    assert host.examined().exit_code is ExitCode.NOT_FOUND


def test_no_key_in_the_settings(tmp_path: Path) -> None:
    host = Host(tmp_path, vkey="")
    assert host.found()["trust"].code is ExitCode.CONFIGURATION


class Refusing(MemoryStore):
    """A store that refuses one operation."""

    def __init__(self, world: World, refused: str) -> None:
        super().__init__()
        self.refused = refused
        for key, data in world.kept().items():
            super().put(key, data)

    def put_if_absent(self, key: str, data: Buffer | Any, *, metadata: dict[str, str] | None = None) -> str:
        self._ask("put", key)
        return super().put_if_absent(key, data, metadata=metadata)

    def delete(self, key: str) -> None:
        self._ask("delete", key)
        super().delete(key)

    def get(self, key: str) -> Body:
        if self.refused == "everything":
            raise Unavailable("no answer", key=key)
        return super().get(key)

    def _ask(self, operation: str, key: str) -> None:
        if operation == self.refused:
            raise Denied(f"{operation} is refused", key=key)


def test_a_key_that_may_not_delete_is_well(tmp_path: Path) -> None:
    store = Refusing(Host(tmp_path).world, "delete")
    for _ in range(2):
        found = Host(tmp_path, store).found()
        assert (found["writing"].verdict, found["deleting"].verdict) == ("ok", "ok")
    assert [info.key for info in store.list("reports/")] == ["reports/doctor.pve1"]


def test_a_key_that_may_not_write_is_a_fault(tmp_path: Path) -> None:
    found = Host(tmp_path, Refusing(Host(tmp_path).world, "put")).found()
    assert (found["writing"].verdict, found["writing"].code) == ("fault", ExitCode.DENIED)
    assert "deleting" not in found


def test_nothing_is_written_where_that_is_not_wanted(host: Host) -> None:
    assert "writing" not in {finding.check for finding in host.examined(probing=False).findings}


def test_a_store_that_is_away_is_unreachable_and_nothing_else(tmp_path: Path) -> None:
    host = Host(tmp_path, Refusing(Host(tmp_path).world, "everything"))
    diagnosis = host.examined(probing=False)
    assert diagnosis.exit_code is ExitCode.UNAVAILABLE
    away = Surroundings(lambda: [Finding("connection", "fault", "no answer", "", ExitCode.UNAVAILABLE)])
    assert host.examined(away).exit_code is ExitCode.UNAVAILABLE


def test_the_ledger_key_beside_writers_is_a_warning(host: Host) -> None:
    seed = host.world.ledger.seeds[0]
    LedgerKey.create(host.ledger.key_file, ORIGIN, random=lambda _: seed)
    assert host.found()["ledger key"].verdict == "ok"
    host.slot()
    assert host.found()["ledger key"].verdict == "warning"
    host.ledger.key_file.chmod(0o644)
    assert host.found()["ledger key"].verdict == "fault"


def test_another_ledger_key_is_a_fault(host: Host) -> None:
    LedgerKey.create(host.ledger.key_file, ORIGIN, random=lambda _: b"y" * 32)
    assert "not the one that `vkey` names" in host.found()["ledger key"].said


def test_slots_taken_and_left_open(host: Host) -> None:
    host.slot()
    slot = try_lock(host.ledger, "pve1.1")
    assert slot is not None
    slot.mark()
    found = host.found()
    assert "all 1 in use" in found["slots"].said
    assert "slots left open" not in found
    slot.release()
    assert "pve1.1" in host.found()["slots left open"].said


def test_slots_that_nobody_enrolled_or_that_were_retired(host: Host) -> None:
    host.slot("pve1.9")
    assert host.found()["enrolment"].verdict == "fault"
    (host.ledger.slots / "pve1.9/key.json").unlink()
    host.slot()
    host.world.ledger.add(op="retire", phase="done", source="ledger", detail={"writer": "pve1.1"})
    host.world.seal()
    assert "retired" in host.found()["enrolment"].said


@pytest.mark.parametrize(("age_s", "verdict"), [(1.0, "ok"), (1000.0, "warning")])
def test_records_that_wait_too_long(host: Host, age_s: float, verdict: str) -> None:
    host.slot()
    host.wal(7, age_s=age_s)
    found = host.found()["local log"]
    assert found.verdict == verdict
    assert "7 records not published" in found.said


def test_a_damaged_local_log_is_told(host: Host) -> None:
    host.slot()
    host.wal(3, age_s=1.0)
    path = next((host.ledger.slots / "pve1.1/wal").iterdir())
    path.write_bytes(b"x" * 100)
    assert host.found()["local log pve1.1"].verdict == "warning"


def _away(url: str) -> int:
    raise Unavailable(f"{url}: no answer")


@pytest.mark.parametrize(
    ("witness", "verdict"), [(lambda url: 200, "ok"), (lambda url: 404, "note"), (_away, "warning")]
)
def test_witnesses(tmp_path: Path, witness: Callable[[str], int], verdict: str) -> None:
    vkey = CosignerKey("w.example.com", COSIGNATURE_ED25519, b"w" * 32).vkey
    host = Host(tmp_path, witnesses=(f"https://w.example.com {vkey}",))
    assert host.found(Surroundings(witness=witness))["witness https://w.example.com"].verdict == verdict


def test_no_witness_is_a_note(host: Host) -> None:
    assert host.found()["witnesses"].verdict == "note"


def test_feeds_and_covers(host: Host) -> None:
    feeds = [FeedLag("a", None), FeedLag("b", 5.0, 70), FeedLag("c", 90_000.0)]
    found = host.found(Surroundings(feeds=lambda: feeds, shares_bucket=["s3://ceph/archive/data"]))
    assert [found[name].verdict for name in ("a", "b", "c", "b quarantine")] == ["note", "ok", "warning", "warning"]
    assert found["covers"].verdict == "warning"


def test_feeds_of_this_host(tmp_path: Path) -> None:
    assert feeds_here(tmp_path / "none", 0.0) == []
    (tmp_path / "feeds.sqlite").write_bytes(b"")
    (tmp_path / "quarantine.jsonl").write_bytes(b"{}\n")
    os.utime(tmp_path / "feeds.sqlite", (100.0, 100.0))
    assert feeds_here(tmp_path, 160.0) == [FeedLag("feeds", 60.0, 3)]


@pytest.mark.parametrize(
    ("lock", "retain_s", "verdict"),
    [
        (ObjectLock(False), 0.0, "warning"),
        (ObjectLock(True), 0.0, "warning"),
        (ObjectLock(True), 86400.0, "ok"),
        (ObjectLock(True, "GOVERNANCE", 30), 0.0, "note"),
        (ObjectLock(True, "COMPLIANCE", 30), 0.0, "ok"),
        (ObjectLock(False), 86400.0, "warning"),
    ],
)
def test_what_object_lock_means(lock: ObjectLock, retain_s: float, verdict: str) -> None:
    assert ledger_judges(retain_s).object_lock(lock).verdict == verdict


def test_what_versions_mean() -> None:
    endpoint = Endpoint("e", "https://s3.example.com")
    assert ledger_judges(0.0).versioning("Enabled", endpoint).verdict == "ok"
    assert ledger_judges(0.0).versioning("", endpoint).verdict == "warning"
    assert covered_versioning("s3://ceph/photos", "Enabled").verdict == "ok"
    assert covered_versioning("s3://ceph/photos", "Suspended").verdict == "note"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    host = Host(tmp_path)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[ledger.archive]\nurl = "file://{tmp_path}/store"\norigin = "{ORIGIN}"\nvkey = "{host.world.vkey}"\n'
        f'state_dir = "{tmp_path}/state"\nsilence_s = 1000000000\ncovers = ["file://{tmp_path}/data"]\n'
    )
    store = FileStore(str(tmp_path / "store"))
    for key, data in host.world.kept().items():
        store.put(key, data)
    assert run(app, "s3integrity", ["doctor", "archive", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "yes" in out.splitlines()[-1]
    assert "a directory" in out
    assert run(app, "s3integrity", ["doctor", "archive", "--json", "--config", str(config)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["figures"]["records"] > 20
    assert not (tmp_path / "store/reports").exists() or not list((tmp_path / "store/reports").iterdir())
