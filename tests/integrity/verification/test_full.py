"""Full verification of larger logs, in processes, of one that grows, and with parts that cannot be read; proofs by few GETs."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from integrity.layout import checkpoint_key, epoch_key, kept_checkpoint_key, tile_key
from integrity.log_reader import LogReader
from integrity.record import START
from integrity.tlog.checkpoint import Checkpoint, sign_checkpoint
from integrity.tlog.tiles import ENTRIES, encode_bundle, split_bundle, tile_path
from integrity.verification import lanes
from integrity.verification.findings import FINDINGS_MAX, Finding, Kind, Outcome, Verdict
from integrity.verification.full import full
from integrity.verification.prove import check, prove
from integrity.verification.quick import quick
from integrity.verification.walk import Walked, stretches
from s3core.errors import Corrupt, Unavailable
from s3core.file import FileStore
from s3core.memory import MemoryStore
from s3core.store import Body
from tests.integrity.verification.forge import Forged, World

W = "pve1.1"
BIG = 70_000


@pytest.fixture(scope="module")
def big() -> Forged:
    """A log with three levels of tiles; tests leave it as it is."""
    log = World((W,)).logs[W]
    for number in range(BIG):
        log.add(key=f"k{number}")
        if number % 10_000 == 0:
            log.publish()
    log.publish()
    return log


def test_a_proof_takes_at_most_five_gets(big: Forged) -> None:
    gets: list[str] = []

    class Counted(MemoryStore):
        def get(self, key: str) -> Body:
            body = big.store.get(key)
            gets.append(key)
            return body

    for number in (0, 12_345, 65_535, 65_536, BIG):
        gets.clear()
        reader = LogReader(Counted(), W, big.origin, [big.signer.verifier])
        record, proof = prove(reader, number)
        assert record == big.records[number]
        assert check(proof, None, big.signer.vkey).index == number
        assert len(gets) <= 5, gets


def test_a_log_of_several_levels_in_processes(big: Forged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a folder that every process opens for itself; an edit, a tile and a bundle that is gone are all told in one pass."""
    monkeypatch.setattr(lanes, "SPAWN_RECORDS", 1000)
    world = World((W,), FileStore(str(tmp_path)))
    for one in big.store.list():
        if one.key.startswith(f"log/{W}/"):
            world.store.put(one.key, big.store.get(one.key).data)
    log = world.logs[W] = big.copy(world.store)
    world.seal()
    evidence = world.evidence(url=f"file://{tmp_path}")
    told: list[int] = []
    outcome, pins = full(evidence, lanes=2, advance=told.append)
    assert outcome.verdict is Verdict.VERIFIED, outcome.findings
    assert sum(told) == log.published + world.ledger.published
    assert pins.logs[W].size == log.published
    row = next(one for one in outcome.results if one.log == W)
    assert (row.hashed, row.skipped, row.checkpoints) == (log.published, 0, 8)
    assert 0 < row.parsed < row.hashed

    key = tile_key(W, tile_path(ENTRIES, 100))
    records = split_bundle(world.store.get(key).data)
    records[7] = records[7].replace(b"put", b"get")
    world.store.put(key, encode_bundle(records))
    world.store.delete(tile_key(W, tile_path(ENTRIES, 200)))
    world.store.put(tile_key(W, tile_path(1, 0)), bytes(8192))
    outcome, pins = full(evidence, lanes=2)
    found = {(one.where, one.first, one.last) for one in outcome.of(Kind.TAMPERED)}
    assert (tile_key(W, tile_path(ENTRIES, 200)), 51_200, 51_455) in found
    assert any(where == key and first <= 25_607 <= last for where, first, last in found if first is not None and last)
    assert W not in pins.logs


def test_what_cannot_be_read_is_told_and_the_rest_verified(big: Forged) -> None:
    class Away(MemoryStore):
        def get(self, key: str) -> Body:
            if key == tile_key(W, tile_path(ENTRIES, 100)):
                raise Unavailable("no answer", key=key)
            return world.store.get(key)

    world = World((W,), big.store)
    world.logs[W] = big
    world.seal()
    outcome, pins = full(replace(world.evidence(), store=Away()))
    assert outcome.verdict is Verdict.INCOMPLETE
    assert outcome.exit_code == 11
    assert [(one.first, one.last) for one in outcome.of(Kind.UNREAD)] == [(64 * 256, 128 * 256 - 1)]
    row = next(one for one in outcome.results if one.log == W)
    assert (row.skipped, row.hashed) == (64 * 256, big.published - 64 * 256)
    assert W not in pins.logs


def test_intents_without_an_outcome_are_named() -> None:
    world = World((W,))
    log = world.logs[W]
    numbers = [log.add(phase="intent", key=f"k{number}", bucket="b") for number in range(300)]
    for number in numbers:
        if number not in (5, 299):
            log.add(phase="done", intent=number, key=f"k{number}", bucket="b")
    # Text that looks like a member is none.
    log.add(op="note", key='x","phase":"intent', detail={"intent": 7, "phase": "intent"})
    log.publish()
    world.seal()
    outcome, _ = full(world.evidence())
    assert outcome.verdict is Verdict.VERIFIED, outcome.findings
    assert [(one["n"], one["key"], one["outcome"]) for one in outcome.unfinished] == [
        (5, "k5", "none"),
        (299, "k299", "none"),
    ]
    said = log.add(phase="unknown", intent=5, key="k5", bucket="b")
    log.publish()
    world.seal()
    outcome, _ = full(world.evidence())
    assert [(one["n"], one["outcome"]) for one in outcome.unfinished] == [(299, "none"), (said, "unknown")]
    assert json.dumps(outcome.json())


def test_a_retired_writer_that_goes_on_is_told() -> None:
    world = World()
    world.fill(10)
    world.ledger.add(op="retire", phase="done", source="ledger", detail={"writer": W})
    world.ledger.publish()
    assert quick(world.evidence())[0].verdict is Verdict.VERIFIED
    world.logs[W].add(key="x")
    world.logs[W].publish()
    outcome, _ = quick(world.evidence())
    assert outcome.verdict is Verdict.ANOMALIES
    assert "when it was retired" in outcome.findings[0].what


def test_a_log_that_was_closed_does_not_go_stale() -> None:
    world = World()
    world.fill(10)
    world.logs[W].add(op="control", phase="done", source="ledger", detail={"what": "close"})
    world.logs[W].publish()
    world.logs["pve1.2"].now += 1000
    world.logs["pve1.2"].add(key="x")
    world.logs["pve1.2"].publish()
    world.seal()
    outcome, _ = quick(world.evidence())
    assert outcome.verdict is Verdict.VERIFIED, outcome.findings
    assert next(one.note for one in outcome.results if one.log == W).startswith("closed")
    world.logs["pve1.2"].now += 1000
    outcome, _ = quick(world.evidence())
    assert {one.log for one in outcome.findings} == {"ledger", "pve1.2"}


def test_findings_beyond_the_most_are_counted_and_the_verdict_stays_right() -> None:
    outcome = Outcome("full")
    outcome.add(*(Finding(Kind.ANOMALY, "a", str(number)) for number in range(FINDINGS_MAX + 5)))
    assert (len(outcome.findings), outcome.left_out) == (FINDINGS_MAX, 5)
    outcome.add(Finding(Kind.TAMPERED, "a", "worse"))
    assert outcome.verdict is Verdict.TAMPERED


def test_what_a_log_tells_of_the_store_is_told_once_to_each_verifier() -> None:
    """The store was right again when we looked; what was seen in between stands in the logs."""
    world = World()
    world.fill(10)
    error = {"code": "head-refused", "message": "cut or rolled back"}
    world.ledger.add(op="error", source="ledger", error=error, detail={"writer": W, "found": "x"})
    world.logs[W].add(op="error", source="ledger", detail={"found": 3, "published": 9})
    world.logs[W].publish()
    world.seal()
    outcome, _ = quick(world.evidence())
    assert [one.what.partition(": ")[2] for one in outcome.findings] == [f"{W}: cut or rolled back"]
    outcome, world.pins = full(world.evidence())
    assert outcome.verdict is Verdict.ANOMALIES
    assert [(one.log, one.first) for one in outcome.findings] == [("ledger", 4), (W, 11)]
    assert "the store held 3 of 9" in outcome.findings[1].what
    assert full(world.evidence())[0].verdict is Verdict.VERIFIED
    assert quick(world.evidence())[0].verdict is Verdict.VERIFIED


def test_a_process_that_dies_costs_a_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "SPAWN_RECORDS", 1)
    world = World((W,), FileStore(str(tmp_path)))
    world.fill(600)
    with lanes.Lanes(world.store, count=2, url=f"file://{tmp_path}") as crew:
        size = world.logs[W].published
        wanted = list(stretches(W, world.logs[W].origin, size, [], bundles=1))
        answers = crew.walk(iter(wanted), size)
        first = next(answers)
        assert crew._pool is not None
        for process in list(crew._pool._processes.values()):
            process.kill()
        rest = list(answers)
    assert [one for one, _ in [first, *rest]] == wanted
    assert sum(one.records for _, one in [first, *rest] if isinstance(one, Walked)) == size


def test_checkpoints_beyond_the_newest_are_told_once_they_are_old(tmp_path: Path) -> None:
    """A writer puts the kept one first; after a cut they stay."""
    world = World((W,), FileStore(str(tmp_path)))
    world.fill(100, each=50)
    log = world.logs[W]
    now = time.time()
    note = sign_checkpoint(Checkpoint(log.origin, 5000, START), log.signer)
    world.store.put(kept_checkpoint_key(W, 5000), note)
    outcome, _ = full(world.evidence(now=now, silence_s=1e12))
    assert outcome.verdict is Verdict.VERIFIED, outcome.findings
    outcome, _ = full(world.evidence(now=now + 1000, silence_s=900.0))
    assert [one.where for one in outcome.findings if "more records" in one.what] == [kept_checkpoint_key(W, 5000)]


def test_what_the_store_itself_calls_damaged_is_altered_not_unread(tmp_path: Path) -> None:
    world = World((W,), FileStore(str(tmp_path)))
    world.fill(600)
    world.logs[W].rotate()
    world.fill(10)
    assert full(world.evidence())[0].findings == []
    damaged = 0
    for key in (
        checkpoint_key("ledger"),
        checkpoint_key(W),
        kept_checkpoint_key(W, 151),
        epoch_key(W, 1),
        tile_key(W, tile_path(ENTRIES, 0)),
        tile_key(W, tile_path(0, 1)),
    ):
        there = [one for one in tmp_path.rglob("*") if one.is_file() and f"/objects/{key}" in str(one)]
        path = min(there, key=lambda one: len(str(one)))
        data = path.read_bytes()
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
        with pytest.raises(Corrupt):
            world.store.get(key)
        outcome, _ = full(world.evidence())
        path.write_bytes(data)
        assert outcome.verdict is Verdict.TAMPERED, (key, outcome.findings)
        damaged += 1
    assert damaged == 6
    assert full(world.evidence())[0].findings == []
