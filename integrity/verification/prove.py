"""Proofs that one record is in the ledger, made and checked.

A proof is a file as C2SP tlog-proof has it, with the record in it as `extra` and beside it as a file of its own. Whoever checks
it needs the file and the log's public key: no store, no configuration, no network.

One rule: what `check` answers follows from the key that its user gave and nothing else in the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from integrity.errors import Malformed, Rejected
from integrity.log_reader import LogReader
from integrity.tlog.checkpoint import peek_checkpoint
from integrity.tlog.cosignature import Cosigner
from integrity.tlog.note import parse_vkey
from integrity.tlog.proof import Proof, check_proof, parse_proof, write_proof
from integrity.tlog.tree import inclusion_proof, leaf_hash


@dataclass(frozen=True, slots=True)
class Proven:
    """A proof that held: the record, where it is, and against what."""

    record: bytes
    index: int
    origin: str
    size: int
    root: str
    cosigned: tuple[str, ...] = ()


def prove(reader: LogReader, number: int) -> tuple[bytes, bytes]:
    """The record, and the file that proves it under the reader's checkpoint. Behind the checkpoint: the bundle and at most one
    tile a level. ValueError where the log has no such record; Altered where the store does not hold what was signed."""
    size = reader.checkpoint().size
    if not 0 <= number < size:
        raise ValueError(f"{reader.writer} has records 0 to {size - 1:,}; there is no record {number:,}")
    record = reader.alone(number)
    hashes = reader.proved(lambda: inclusion_proof(number, size, reader.nodes))
    return record, write_proof(Proof(number, tuple(hashes), reader.note, record))


def check(
    proof: bytes, record: bytes | None, vkey: str, *, cosigners: Sequence[Cosigner] = (), needed: int = 0
) -> Proven:
    """Returns where the proof holds for the record (None: the one that is in the file). The key's name must be the log's
    origin. Rejected where it does not hold, Malformed for what is no proof, key or record."""
    verifier = parse_vkey(vkey)
    parsed = parse_proof(proof)
    told = peek_checkpoint(parsed.checkpoint)
    if told.origin != verifier.name:
        raise Rejected(f"the proof is of the log {told.origin}, and the key is of {verifier.name}")
    data = parsed.extra if record is None else record
    if data is None:
        raise Malformed("the proof holds no record, and none was given")
    checked = check_proof(parsed, leaf_hash(data), verifier.name, [verifier], cosigners=cosigners, needed=needed)
    return Proven(
        data,
        parsed.index,
        checked.checkpoint.origin,
        checked.checkpoint.size,
        checked.checkpoint.root.hex(),
        tuple(one.name for one in checked.cosignatures),
    )
