"""Proofs as files: the specification's form, a log's proof checked offline, and proofs that are refused."""

from dataclasses import replace

import pytest

from bench.ledger import GETS_AIM, prove
from integrity.errors import Malformed
from integrity.tlog.checkpoint import Checkpoint, sign_checkpoint
from integrity.tlog.cosignature import COSIGNATURE_ED25519, CosignerKey
from integrity.tlog.note import NoteRejected, Signer, decode64
from integrity.tlog.proof import Proof, check_proof, parse_proof, write_proof
from integrity.tlog.tiles import TileNodes
from integrity.tlog.tree import ProofRejected, inclusion_proof, leaf_hash
from tests.integrity.tlog.logs import Tiles
from tests.integrity.tlog.test_note import BEHIND

ORIGIN = "example.com/fancylog"
SIGNER = Signer(ORIGIN, bytes(range(32)))
WITNESSES = [CosignerKey(f"witness{n}.example", COSIGNATURE_ED25519, bytes([n]) * 32) for n in range(3)]
RECORDS = [f"record {number}".encode() for number in range(1000)]
LOG = Tiles().grow([leaf_hash(one) for one in RECORDS])
HEAD = Checkpoint(ORIGIN, 1000, LOG.edge.root())
NOTE = sign_checkpoint(HEAD, SIGNER, *(key.at(1_700_000_000) for key in WITNESSES[:2]))
HASHES = tuple(inclusion_proof(738, 1000, TileNodes(1000, HEAD.root, LOG.fetch)))
PROOF = Proof(738, HASHES, NOTE, RECORDS[738])


def test_the_form_of_the_specification() -> None:
    extra = "YWdlLXYxLjIuMS1kYXJ3aW4tYXJtNjQudGFyLmd6kYXJ3aW4tYXJ"
    lines = (
        "c2sp.org/tlog-proof@v1\n"
        f"extra {extra[:52]}\n"
        "index 73894\n"
        "gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=\n"
        "B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=\n"
        "EKNzoDWG8LGC0Yp9o+sv3qllpMP9uHQ9B20KNL+Q1zs=\n"
        "RoopEkOdqkYqMB4MJXrbt/hMjOxsVn0IrWjpz1ZMMes=\n"
        "AHCioX9nLjsrse6YhjRRmk1WUEirVOLLRoOQ6vfO5vk=\n"
        "\n"
    ).encode() + BEHIND
    found = parse_proof(lines)
    assert (found.index, len(found.hashes), found.checkpoint) == (73_894, 5, BEHIND)
    assert found.extra == decode64(extra[:52])
    assert write_proof(found) == lines


def test_a_proof_is_checked_without_the_log() -> None:
    parsed = parse_proof(write_proof(PROOF))
    assert parsed == PROOF
    checked = check_proof(
        parsed,
        leaf_hash(RECORDS[738]),
        ORIGIN,
        [SIGNER.verifier],
        cosigners=[key.cosigner for key in WITNESSES],
        needed=2,
    )
    assert checked.checkpoint == HEAD
    assert [one.name for one in checked.cosignatures] == ["witness0.example", "witness1.example"]


def test_a_proof_needs_as_many_witnesses_as_its_reader_does() -> None:
    cosigners = [key.cosigner for key in WITNESSES]
    with pytest.raises(NoteRejected, match="2 of the known witnesses cosigned the checkpoint; 3 are needed"):
        check_proof(PROOF, leaf_hash(RECORDS[738]), ORIGIN, [SIGNER.verifier], cosigners=cosigners, needed=3)
    twice = [cosigners[0], cosigners[0]]
    with pytest.raises(NoteRejected, match="1 of the known witnesses"):
        check_proof(PROOF, leaf_hash(RECORDS[738]), ORIGIN, [SIGNER.verifier], cosigners=twice, needed=2)


def test_a_proof_is_of_its_record_log_and_place_alone() -> None:
    leaf = leaf_hash(RECORDS[738])
    with pytest.raises(ProofRejected):
        check_proof(PROOF, leaf_hash(RECORDS[739]), ORIGIN, [SIGNER.verifier])
    with pytest.raises(ProofRejected):
        check_proof(replace(PROOF, index=739), leaf, ORIGIN, [SIGNER.verifier])
    with pytest.raises(ProofRejected):
        check_proof(replace(PROOF, hashes=HASHES[1:]), leaf, ORIGIN, [SIGNER.verifier])
    with pytest.raises(NoteRejected, match="of the log"):
        check_proof(PROOF, leaf, "example.com/other", [SIGNER.verifier])
    with pytest.raises(NoteRejected, match="not by"):
        check_proof(PROOF, leaf, ORIGIN, [Signer(ORIGIN, bytes(32)).verifier])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"c2sp.org/tlog-proof@v1\n", b"c2sp.org/tlog-proof@v2\n"),
        (b"index 738\n", b""),
        (b"index 738\n", b"index 0738\n"),
        (b"index 738\n", b"index -1\n"),
        (b"index 738\n", b"index 738\n\xff\n"),
        (b"index 738\n", b"index 738\nAAAA\n"),
        (b"index 738\n", b"index 738\n" + b"B95lDa8R83lS8n0eG+o0buTxRKQTYFi//1U8anccXmA=\n" * 64),
        (b"extra ", b"extra *"),
        (b"\n\n", b"\n"),
        (NOTE, b"no note\n"),
        (NOTE, bytes(3 << 20)),
    ],
)
def test_what_is_no_proof(old: bytes, new: bytes) -> None:
    data = write_proof(PROOF)
    assert old in data
    with pytest.raises(Malformed, match="not a"):
        parse_proof(data.replace(old, new))


def test_proofs_that_cannot_be_written() -> None:
    for wrong in (replace(PROOF, index=-1), replace(PROOF, hashes=(b"short",)), replace(PROOF, hashes=HASHES * 9)):
        with pytest.raises(ValueError, match="there is no proof"):
            write_proof(wrong)


@pytest.mark.parametrize("size", [1, 255, 1_000_003, 100_000_000, 100_000_007, 4_294_967_295])
def test_a_proof_out_of_a_large_log_takes_five_gets(size: int) -> None:
    """Checkpoint, edge, the record's bundle, and a full tile a level from 1 to 2: all that is read, and all from scratch."""
    found = prove(size, with_edge=True)
    assert len(found.gets) <= GETS_AIM, found.gets
    assert len(prove(size, with_edge=False).gets) <= 8
