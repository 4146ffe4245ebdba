"""A proof that one record is in a log, as a file that anybody can check offline (C2SP tlog-proof, `.tlog-proof`).

One rule: a proof is checked against keys and an origin that its reader had before. `extra` is nobody's word: what is in it
counts only where it hashes to the leaf.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from integrity.errors import Malformed
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, parse_number, peek_checkpoint
from integrity.tlog.cosignature import Cosignature, Cosigner, cosignatures
from integrity.tlog.note import NOTE_BYTES_MAX, NoteRejected, NoteVerifier, decode64, encode64
from integrity.tlog.tree import verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
HASHES_MAX = 63
PROOF_BYTES_MAX = 2 * NOTE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Proof:
    """Record number `index` is in the tree of the checkpoint; `hashes` is the way there (RFC 6962 section 2.1.1)."""

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    """The whole note, cosignatures and all."""
    extra: bytes | None = None
    """Whatever the writer of the file adds; we put the record there, so that the file is all one needs."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a proof that holds is against: the log's checkpoint, and what witnesses say of it."""

    checkpoint: Checkpoint
    cosignatures: tuple[Cosignature, ...]


def write_proof(proof: Proof) -> bytes:
    """The file. ValueError for a proof that cannot be written."""
    if not 0 <= proof.index < 1 << 63 or len(proof.hashes) > HASHES_MAX or any(len(one) != 32 for one in proof.hashes):
        raise ValueError(f"there is no proof for record {proof.index} of {len(proof.hashes)} hashes")
    lines = [HEADER]
    if proof.extra is not None:
        lines.append(f"extra {encode64(proof.extra)}")
    lines.append(f"index {proof.index}")
    lines += [encode64(one) for one in proof.hashes]
    return ("\n".join(lines) + "\n\n").encode() + proof.checkpoint


def parse_proof(data: bytes) -> Proof:
    """The proof in a file, nothing of it verified. Malformed for another form."""
    try:
        if len(data) > PROOF_BYTES_MAX:
            raise ValueError(f"it has {len(data):,} bytes, and {PROOF_BYTES_MAX:,} is the most")
        head, blank, checkpoint = data.partition(b"\n\n")
        if not blank:
            raise ValueError("it holds no checkpoint")
        lines = head.decode("ascii").split("\n")
        if lines.pop(0) != HEADER:
            raise ValueError(f"its first line is not {HEADER}")
        extra = None
        if lines and lines[0].startswith("extra "):
            extra = decode64(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise ValueError("it names no index")
        index = parse_number(lines.pop(0).removeprefix("index "))
        hashes = parse_hashes(lines)
        peek_checkpoint(checkpoint)
    except ValueError as error:
        raise Malformed(f"not a proof: {error}") from error
    return Proof(index, hashes, checkpoint, extra)


def parse_hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    """At most 63 hashes, one a line. ValueError for anything else."""
    if len(lines) > HASHES_MAX:
        raise ValueError(f"it has {len(lines)} hashes, and {HASHES_MAX} is the most")
    hashes = tuple(decode64(line) for line in lines)
    if any(len(one) != 32 for one in hashes):
        raise ValueError("a hash has 32 bytes")
    return hashes


def check_proof(
    proof: Proof,
    leaf: bytes,
    origin: str,
    verifiers: Sequence[NoteVerifier],
    *,
    cosigners: Sequence[Cosigner] = (),
    needed: int = 0,
) -> Checked:
    """Returns where the record whose `leaf_hash` is `leaf` is number `proof.index` of the log `origin`, by a checkpoint that
    one of `verifiers` signed and `needed` or more of `cosigners` cosigned; else NoteRejected, ProofRejected or Malformed."""
    checkpoint = open_checkpoint(proof.checkpoint, origin, verifiers)
    said = cosignatures(proof.checkpoint, cosigners)
    names = {one.name for one in said}
    if len(names) < needed:
        raise NoteRejected(f"{len(names)} of the known witnesses cosigned the checkpoint; {needed} are needed")
    verify_inclusion(leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root)
    return Checked(checkpoint, tuple(said))
