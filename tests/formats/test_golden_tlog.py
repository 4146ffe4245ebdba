"""Golden bytes of what a ledger's logs are made of: bundle, tile, edge, checkpoint, proof, witness request.

Keys are fixed, and Ed25519 signs the same text the same way, so today's code writes the same bytes again; ML-DSA does not, and
is only read.

One rule: a golden file, once committed, is kept for ever. `python -m tests.formats.test_golden_tlog` writes missing ones.
"""

from collections.abc import Callable
from pathlib import Path

from integrity.record import START, decode, encode
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.cosignature import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, CosignerKey, cosignatures
from integrity.tlog.note import Signer
from integrity.tlog.proof import Proof, check_proof, parse_proof, write_proof
from integrity.tlog.tiles import Edge, Tile, TileNodes, chained_bundle, encode_bundle, split_bundle
from integrity.tlog.tree import consistency_proof, inclusion_proof, leaf_hash, verify_consistency
from integrity.tlog.witness import parse_request, write_request

GOLDEN = Path(__file__).parent / "golden"
ORIGIN = "example.com/ledger/pve1.1"
SIGNER = Signer(ORIGIN, bytes(range(32)))
WITNESS = CosignerKey("witness.example.com/w1", COSIGNATURE_ED25519, bytes(range(1, 33)))
QUANTUM_WITNESS = CosignerKey("witness.example.com/w2", COSIGNATURE_ML_DSA_44, bytes(range(2, 34)))
AT = 1_790_000_000
SIZE, OLD = 300, 200


def _records() -> list[bytes]:
    found, after = [], START
    for n in range(SIZE):
        event = {
            "op": "put",
            "phase": "done",
            "source": "client",
            "bucket": "images",
            "key": f"vm-{n}/ü.qcow2",
            "size": n,
        }
        found.append(encode(event, writer="pve1.1", n=n, at="2026-11-22T06:00:00.000000Z", after=after))
        after = leaf_hash(found[-1])
    return found


RECORDS = _records()
EDGE = Edge()
TILES = dict(EDGE.extend(map(leaf_hash, RECORDS))) | dict(EDGE.partial())
CHECKPOINT = Checkpoint(ORIGIN, SIZE, EDGE.root())
NODES = TileNodes(SIZE, EDGE.root(), {tile.path: data for tile, data in TILES.items()}.__getitem__)
NOTE = sign_checkpoint(CHECKPOINT, SIGNER, WITNESS.at(AT))
PROOF = Proof(7, tuple(inclusion_proof(7, SIZE, NODES)), NOTE, RECORDS[7])


def old_root() -> bytes:
    edge = Edge()
    edge.extend(map(leaf_hash, RECORDS[:OLD]))
    return edge.root()


WRITTEN: dict[str, Callable[[], bytes]] = {
    "ledger-bundle.v1.bin": lambda: encode_bundle(RECORDS[256:]),
    "ledger-tile.v1.bin": lambda: TILES[Tile(0, 1, SIZE - 256)],
    "ledger-edge.v1.bin": EDGE.encode,
    "ledger-checkpoint.v1.note": lambda: NOTE,
    "ledger-proof.v1.tlog-proof": lambda: write_proof(PROOF),
    "witness-request.v1.txt": lambda: write_request(OLD, consistency_proof(OLD, SIZE, NODES), NOTE),
}
READ: dict[str, Callable[[], bytes]] = {
    "ledger-checkpoint-ml-dsa.v1.note": lambda: sign_checkpoint(CHECKPOINT, SIGNER, QUANTUM_WITNESS.at(AT))
}


def golden(name: str) -> bytes:
    return (GOLDEN / name).read_bytes()


def test_todays_code_writes_the_golden_files() -> None:
    for name, write in WRITTEN.items():
        assert write() == golden(name), name


def test_todays_code_reads_the_golden_files() -> None:
    entries = split_bundle(golden("ledger-bundle.v1.bin"))
    assert [decode(entry)["n"] for entry in entries] == list(range(256, SIZE))
    hashes, _ = chained_bundle(golden("ledger-bundle.v1.bin"), leaf_hash(RECORDS[255]))
    assert b"".join(hashes) == golden("ledger-tile.v1.bin")
    note = golden("ledger-checkpoint.v1.note")
    checkpoint = open_checkpoint(note, ORIGIN, [SIGNER.verifier])
    assert Edge.decode(SIZE, golden("ledger-edge.v1.bin")).root() == checkpoint.root
    for name, key in (("ledger-checkpoint.v1.note", WITNESS), ("ledger-checkpoint-ml-dsa.v1.note", QUANTUM_WITNESS)):
        assert open_checkpoint(golden(name), ORIGIN, [SIGNER.verifier]) == checkpoint
        assert [one.unix_s for one in cosignatures(golden(name), [key.cosigner])] == [AT]
    proof = parse_proof(golden("ledger-proof.v1.tlog-proof"))
    assert proof.extra is not None
    checked = check_proof(
        proof, leaf_hash(proof.extra), ORIGIN, [SIGNER.verifier], cosigners=[WITNESS.cosigner], needed=1
    )
    assert checked.checkpoint == checkpoint
    request = parse_request(golden("witness-request.v1.txt"))
    verify_consistency(request.old_size, old_root(), SIZE, checkpoint.root, request.proof)


def write_missing() -> None:
    for name, write in (WRITTEN | READ).items():
        if not (GOLDEN / name).exists():
            (GOLDEN / name).write_bytes(write())


if __name__ == "__main__":
    write_missing()
