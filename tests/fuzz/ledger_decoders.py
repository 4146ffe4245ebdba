"""The decoders of a ledger. Its objects lie in a bucket where others may write, and witnesses and proofs come from strangers:
they are parsed or refused by name."""

import contextlib

from integrity import record
from integrity.errors import Malformed, Rejected, Tampered
from integrity.tlog import checkpoint, cosignature, note, proof, tiles, tree, witness
from integrity.tlog.cosignature import Cosigner
from integrity.tlog.note import Verifier
from s3core.errors import NotFound
from tests.formats.test_golden_tlog import (
    CHECKPOINT,
    EDGE,
    NODES,
    NOTE,
    OLD,
    ORIGIN,
    PROOF,
    QUANTUM_WITNESS,
    RECORDS,
    SIGNER,
    SIZE,
    TILES,
    WITNESS,
    golden,
    old_root,
)

_KEYS: list[Verifier | Cosigner] = [SIGNER.verifier, WITNESS.cosigner, QUANTUM_WITNESS.cosigner]
_SERVED = witness.Witness({ORIGIN: [SIGNER.verifier]}, [WITNESS])
_PATHS = [tile.path for tile in TILES]
NOTE_SEEDS = (NOTE, golden("ledger-checkpoint-ml-dsa.v1.note"), b"text\n\n" + NOTE.partition(b"\n\n")[2])
VKEY_SEEDS = tuple(one.vkey.encode() for one in _KEYS)
BUNDLE_SEEDS = (tiles.encode_bundle(RECORDS[:3]), tiles.encode_bundle([b"", b"x" * 80]))
PROOF_SEEDS = (proof.write_proof(PROOF),)
REQUEST_SEEDS = (
    golden("witness-request.v1.txt"),
    witness.write_request(0, [], checkpoint.sign_checkpoint(CHECKPOINT, SIGNER)),
)
RECORD_SEEDS = (RECORDS[0], RECORDS[1])
TILE_SEEDS = (*(bytes((number,)) + data for number, data in enumerate(TILES.values())), b"\x00" + EDGE.encode())


def signed(data: bytes) -> None:
    """A note: opened, added to, and told as a checkpoint. What opens is what was signed."""
    try:
        text, signatures = note.split_note(data)
    except Malformed:
        return
    assert note.split_note(note.add_signatures(data, signatures))[0] == text
    with contextlib.suppress(Rejected):
        opened = note.open_note(data, _KEYS)
        assert opened.text == text
        assert opened.text == CHECKPOINT.text()
    with contextlib.suppress(Rejected, Malformed):
        assert checkpoint.open_checkpoint(data, ORIGIN, _KEYS) == CHECKPOINT
    with contextlib.suppress(Rejected):
        cosignature.cosignatures(data, [WITNESS.cosigner, QUANTUM_WITNESS.cosigner])
    with contextlib.suppress(Malformed):
        found = checkpoint.peek_checkpoint(data)
        assert found.text() == text
        with contextlib.suppress(ValueError):
            cosignature.cosigned_message(text, "w", cosignature.COSIGNATURE_ML_DSA_44, 1)


def vkey(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    with contextlib.suppress(Malformed):
        name, kind, public = note.split_vkey(text)
        assert note.vkey_of(name, kind, public) == text.strip()
    for parse in (note.parse_vkey, cosignature.parse_cosigner):
        with contextlib.suppress(Malformed):
            key = parse(text)
            assert not key.holds(CHECKPOINT.text(), data)
            assert not key.holds(text, data[:72])


def bundle(data: bytes) -> None:
    """Two ways to take a bundle apart that must agree; what splits is written back the same."""
    try:
        entries = tiles.split_bundle(data)
    except Malformed:
        entries = None
    if entries is not None:
        assert tiles.encode_bundle(entries) == data
    with contextlib.suppress(Malformed, tiles.ChainBroken):
        tiles.chained_bundle(data, bytes(range(32)))
    try:
        after = record.after_of(entries[0]) if entries else record.START
        hashes, last = tiles.chained_bundle(data, after)
    except (Malformed, Tampered):
        return
    assert entries is not None
    assert hashes == [tree.leaf_hash(entry) for entry in entries]
    assert last == (hashes[-1] if hashes else after)


def one_record(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        record.after_of(data)
    with contextlib.suppress(Malformed):
        found = record.decode(data)
        assert record.after_of(data).hex() == found["after"]


def tile(data: bytes) -> None:
    """Whatever lies where a tile should be, or is offered for one: the right one is believed, another does no harm."""
    which, content = data[:1], data[1:]
    for width in (0, 1, 44, 256):
        with contextlib.suppress(Malformed):
            assert len(tiles.split_tile(content, width)) == width
    with contextlib.suppress(Malformed):
        assert tiles.Edge.decode(SIZE, content).encode() == content
    place = _PATHS[(which[0] if which else 0) % len(_PATHS)]

    def fetch(path: str) -> bytes:
        if path == place:
            return content
        for tile, held in TILES.items():
            if tile.path == path:
                return held
        raise NotFound(path)

    nodes = tiles.TileNodes(SIZE, CHECKPOINT.root, fetch, edge=content)
    with contextlib.suppress(Malformed):
        nodes.offer(0, 0, tiles.split_tile(content, 256))
    wanted = [(0, 3), (0, 299), (8, 0)]
    with contextlib.suppress(Tampered):
        assert nodes(wanted) == NODES(wanted)


def proved(data: bytes) -> None:
    try:
        found = proof.parse_proof(data)
    except Malformed:
        return
    assert proof.parse_proof(proof.write_proof(found)) == found
    with contextlib.suppress(Rejected, Malformed):
        leaf = tree.leaf_hash(found.extra or b"")
        checked = proof.check_proof(found, leaf, ORIGIN, [SIGNER.verifier], cosigners=[WITNESS.cosigner])
        assert checked.checkpoint == CHECKPOINT
        assert found.extra == RECORDS[found.index]
    with contextlib.suppress(Rejected):
        tree.verify_inclusion(CHECKPOINT.root, found.index, SIZE, found.hashes, CHECKPOINT.root)


def request(data: bytes) -> None:
    """A witness at a state of 200 records, and one that is new: nothing but the log itself is cosigned."""
    try:
        found = witness.parse_request(data)
    except Malformed:
        return
    assert witness.parse_request(witness.write_request(found.old_size, found.proof, found.note)) == found
    for state in (None, witness.State(OLD, old_root(), b"")):
        answer = _SERVED.add(found, state, 1)
        assert answer.status in (200, 400, 403, 404, 409, 422)
        assert (answer.status == 200) == (answer.state is not None)
        if answer.state is not None:
            assert (answer.state.size, answer.state.root) == (SIZE, CHECKPOINT.root)
