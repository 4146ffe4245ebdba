"""Ten writers, killed at random over and over; then everything that was acknowledged must be there, and nothing open.

python -m tests.integrity.ledger_torture --seconds 60 --seed 1

Each writer is a process with a slot of its own that records intents, outcomes and other events, publishes, changes its key
and closes now and then. It notes what was acknowledged in a file of its own, after the call returned (one write(2) each, which
a SIGKILL does not tear). The killer kills one after another at random times, and starts another in its place.
"""

import argparse
import multiprocessing
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integrity.enrolment import Roster, enrol, make_slots, request_of
from integrity.keys import LedgerKey
from integrity.place import Ledger, open_ledger
from integrity.record import decode
from integrity.seal import raise_altered, seal
from integrity.service import sweep
from integrity.slots import ledger_log, open_writer, writers_here
from integrity.verification.evidence import Evidence
from integrity.verification.full import full
from integrity.verification.pins import Pins
from integrity.verification.quick import quick
from integrity.verification.trust import believed
from s3core.settings import Config

WRITERS = 10
LOOK_EVERY = 15
NAME = "torture"
ORIGIN = "example.com/torture"


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    kills: int = 0
    looks: int = 0
    acknowledged: int = 0
    records: int = 0
    intents: int = 0
    unknown: int = 0
    named: int = 0
    """Of those, how many full verification names."""
    epochs: int = 0
    problems: list[str] = field(default_factory=list)


def config_of(folder: Path) -> Config:
    table = {
        "url": f"file://{folder}/store",
        "origin": ORIGIN,
        "state_dir": str(folder / "state"),
        "writer": "h",
        "slots": WRITERS,
        "checkpoint_records": 40,
        "checkpoint_s": 0.2,
        "heartbeat_s": 0.5,
        "epoch_records": 300,
    }
    key = folder / "state" / "ledger.key"
    if key.exists():
        table["vkey"] = LedgerKey.load(key).signer.vkey
    return Config.model_validate({"ledger": {NAME: table}})


def prepare(folder: Path) -> None:
    with_key = folder / "state" / "ledger.key"
    LedgerKey.create(with_key, ORIGIN)
    ledger = open_ledger(NAME, config_of(folder))
    make_slots(ledger, WRITERS)
    roster = Roster()
    with ledger_log(ledger, roster) as own:
        enrol(own, roster, ORIGIN, request_of(ledger))
        own.publish()
    ledger.close()


def work(folder: Path, seed: int) -> None:
    """One writer's life; it ends by being killed, or by itself after a while."""
    chance = random.Random(seed)
    ledger = open_ledger(NAME, config_of(folder))
    notes = os.open(folder / "acknowledged" / str(seed), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    serial = 0

    def event() -> dict[str, Any]:
        nonlocal serial
        serial += 1
        return {"op": "put", "source": "client", "bucket": "b", "key": f"{seed}/{serial}", "size": chance.randrange(9)}

    def acknowledge(number: int, key: object) -> None:
        os.write(notes, f"{writer.name} {number} {key}\n".encode())

    for _ in range(chance.randrange(1, 4)):
        with open_writer(ledger) as writer:
            for _ in range(chance.randrange(400)):
                one = event()
                match chance.randrange(5):
                    case 0 | 1:
                        acknowledge(writer.record(one), one["key"])
                    case 2:
                        writer.record_all([event() for _ in range(chance.randrange(40))], wait=False)
                    case 3:
                        number = writer.intent(one)
                        acknowledge(number, one["key"])
                        time.sleep(chance.random() * 0.01)
                        if chance.random() < 0.9:
                            phase = chance.choice(("done", "not-done"))
                            acknowledge(writer.outcome(number, phase, one), one["key"])
                    case 4:
                        if chance.random() < 0.05:
                            writer.change_key()


def torture(folder: Path, *, seconds: float, seed: int) -> Outcome:
    """Run it and look at what is left."""
    prepare(folder)
    (folder / "acknowledged").mkdir()
    context = multiprocessing.get_context("fork")
    chance = random.Random(seed)
    outcome = Outcome()
    serial = seed * 1_000_000
    alive: list[Any] = []
    until = time.monotonic() + seconds
    # On a busy machine the time may be over before the first look, which is then taken all the same.
    while time.monotonic() < until or not outcome.looks:
        alive = [process for process in alive if process.is_alive() or process.join()]
        while len(alive) < WRITERS:
            serial += 1
            process = context.Process(target=work, args=(folder, serial), daemon=True)
            process.start()
            alive.append(process)
        time.sleep(chance.random() * 0.2)
        victim = alive.pop(chance.randrange(len(alive)))
        if victim.is_alive():
            outcome.kills += 1
            os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        if outcome.kills % LOOK_EVERY == 0 or time.monotonic() >= until:
            look_on(folder, outcome)
    for process in alive:
        process.kill()
        process.join()
        outcome.kills += 1
    ledger = open_ledger(NAME, config_of(folder))
    sweep(ledger)
    raise_altered(seal(ledger))
    look(ledger, folder, outcome)
    ledger.close()
    return outcome


def look_on(folder: Path, outcome: Outcome) -> None:
    """Seal and verify while the writers are at it: what they are halfway through is never taken for tampering."""
    ledger = open_ledger(NAME, config_of(folder))
    raise_altered(seal(ledger))
    pins = Pins(ledger.origin, ledger.vkey)
    for verification in (quick, full):
        verified, pins = verification(Evidence(ledger.store, ledger.origin, ledger.vkey, pins, ledger.clock.time()))
        outcome.problems += [" ".join(finding.sentences()) for finding in verified.findings]
        outcome.looks += 1
    ledger.close()


def look(ledger: Ledger, folder: Path, outcome: Outcome) -> None:
    """Verify the whole ledger, read all logs as a stranger with the ledger's public key would, and compare."""
    pins = Pins(ledger.origin, ledger.vkey)
    verified, _ = full(Evidence(ledger.store, ledger.origin, ledger.vkey, pins, ledger.clock.time()))
    outcome.problems += [" ".join(finding.sentences()) for finding in verified.findings]
    outcome.problems += [f"unfinished, and not said: {one}" for one in verified.unfinished if one["outcome"] == "none"]
    outcome.named = sum(one["outcome"] == "unknown" for one in verified.unfinished)
    found: dict[tuple[str, int], dict[str, Any]] = {}
    _, members, logs = believed(ledger.store, ledger.origin, ledger.vkey, {})
    read = set()
    for log in logs:
        read.add(log.writer)
        outcome.epochs += log.epoch
        for number, data in log.reader.records():
            found[log.writer, number] = decode(data)
        log.reader.close()
    if set(members.by_name) != set(writers_here(ledger)):
        outcome.problems.append("not all writers are enrolled")
    outcome.records = len(found)
    closed = {(writer, one["intent"]) for (writer, _), one in found.items() if "intent" in one}
    for place, one in found.items():
        if one["phase"] == "intent":
            outcome.intents += 1
            if place not in closed:
                outcome.problems.append(f"intent {place} has no outcome")
        outcome.unknown += one["phase"] == "unknown"
    for path in (folder / "acknowledged").iterdir():
        for line in path.read_text().splitlines():
            writer, place_in_log, key = line.split(" ")
            outcome.acknowledged += 1
            if found.get((writer, int(place_in_log)), {}).get("key") != key:
                outcome.problems.append(f"record {place_in_log} of {writer} ({key}) was acknowledged and is lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = torture(Path(folder), seconds=given.seconds, seed=given.seed)
    print(outcome)
    raise SystemExit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()
