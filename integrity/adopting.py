"""The ledger's own log taken over by another host, or found again by one that lost its local state, from the store.

One rule: what is taken over was signed by the ledger key, which must be here, and holds from its first record on. A store that
was rolled back is told only by a pin or a witness, so `verify` comes first, and what this host has pinned is asked too.

Crash within: the slot has no base yet, or a whole one; doing it again is fine.
"""

from pathlib import Path

from integrity.enrolment import Roster
from integrity.errors import LedgerError
from integrity.keys import LedgerKey
from integrity.layout import LEDGER_WRITER
from integrity.log_reader import LogReader
from integrity.place import Ledger
from integrity.record import START, decode
from integrity.slots import try_lock
from integrity.tlog.checkpoint import Checkpoint
from integrity.tlog.tiles import WIDTH, Edge
from integrity.tlog.tree import EMPTY_ROOT, leaf_hash
from integrity.verification.pins import load_pins, pins_path
from integrity.verification.trust import goes_on
from integrity.wal import Wal
from integrity.writer import write_base


def adopt(ledger: Ledger, *, key: Path | None = None) -> Checkpoint:
    """Make the local state of the ledger's own log from the store; its checkpoint. LedgerError where this host has such a
    state already; NotEnrolled without the ledger key; Altered where the log does not hold; NotFound where there is none."""
    signer = LedgerKey.load(key or ledger.key_file).signer
    if signer.vkey != ledger.vkey:
        raise LedgerError(
            f"{key or ledger.key_file} is not the key that the configuration has for ledger {ledger.name}"
        )
    slot = try_lock(ledger, LEDGER_WRITER)
    if slot is None:
        raise LedgerError(f"the log of ledger {ledger.name} itself is being written by another process")
    try:
        if (slot.folder / "base.json").exists() or any(slot.folder.glob("wal/*.wal")):
            raise LedgerError(
                f"{slot.folder} holds a state of the ledger's own log already",
                hint="if another host went on with it since: move that folder away first, and keep it",
            )
        return _adopt(ledger, slot.folder, LogReader(ledger.store, LEDGER_WRITER, ledger.origin, [signer.verifier]))
    finally:
        slot.release()


def _adopt(ledger: Ledger, folder: Path, reader: LogReader) -> Checkpoint:
    with reader:
        checkpoint = reader.checkpoint()
        pin = load_pins(pins_path(ledger), ledger.origin, ledger.vkey).logs.get(LEDGER_WRITER)
        if pin is not None:
            goes_on(reader, pin.size, pin.root, "the pin", pin.at)
        aligned = checkpoint.size // WIDTH * WIDTH
        roster, edge = Roster(), Edge()
        rest: list[bytes] = []
        after, newest = START, (0, EMPTY_ROOT)
        for number, data in reader.records():
            record = decode(data)
            if number >= aligned:
                rest.append(data)
                continue
            after = leaf_hash(data)
            edge.extend([after])
            roster.apply(record)
            if record["op"] == "checkpoint":
                newest = (number + 1, edge.root() if number + 1 == aligned else b"")
        if newest[0] and not newest[1]:
            newest = (newest[0], reader.root_at(newest[0]))
        if aligned:
            write_base(folder, aligned, after, edge, newest, checkpoint.size, {}, roster.to_json())
        wal = Wal.open(folder / "wal", aligned)
        wal.append(rest)
        wal.close()
        return checkpoint
