"""The witness: every status of the specification, and that nothing but a continuation is ever cosigned."""

import random
from dataclasses import replace

import pytest

from integrity.errors import Malformed
from integrity.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from integrity.tlog.cosignature import COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44, CosignerKey, cosignatures
from integrity.tlog.note import Signature, Signer, add_signatures
from integrity.tlog.tiles import TileNodes
from integrity.tlog.tree import EMPTY_ROOT, Frontier, consistency_proof
from integrity.tlog.witness import SIZE_TYPE, Answer, State, Witness, parse_request, write_request
from tests.integrity.tlog.logs import Tiles, leaves
from tests.integrity.tlog.test_note import BEHIND, SOFA

ORIGIN = "example.com/log"
LOG = Signer(ORIGIN, bytes(range(32)))
KEYS = [
    CosignerKey("witness.example/w1", kind, bytes([kind]) * 32) for kind in (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)
]
WITNESS = Witness({ORIGIN: [LOG.verifier]}, KEYS)
LEAVES = leaves(500)
NODES = TileNodes(500, Tiles().grow(LEAVES).edge.root(), Tiles().grow(LEAVES).fetch)
NOW = 1_700_000_000


def root(size: int) -> bytes:
    return root_of(LEAVES, size)


def root_of(history: list[bytes], size: int) -> bytes:
    frontier = Frontier()
    frontier.extend(history[:size])
    return frontier.root()


def note(size: int, *, signer: Signer = LOG, origin: str = ORIGIN, of: bytes | None = None) -> bytes:
    return sign_checkpoint(Checkpoint(origin, size, root(size) if of is None else of), signer)


def ask(old: int, data: bytes, state: State | None, proof: list[bytes] | None = None) -> Answer:
    size = parse_request(write_request(0, [], data)).checkpoint.size
    found = consistency_proof(old, size, NODES) if proof is None and old <= size else proof or []
    return WITNESS.add(parse_request(write_request(old, found, data)), state, NOW)


def cosigned(size: int) -> State:
    state = ask(0, note(size), None).state
    assert state is not None
    return state


def test_the_request_of_the_specification() -> None:
    second = (
        "— example.com/behind-the-sofa "
        "opLqBQsREYCgu6xQkYQwJr9fo45a62DN9EdmHXnZdXNqlcVGlCum2Wks+49/V6267UEjw6QUXTS5Rovnzv++qbSzm9Q=\n"
    ).encode()
    body = (
        b"old 20852014\n"
        b"PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
        b"jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
        b"5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n"
        b"/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n"
        b"\n" + BEHIND + second
    )
    request = parse_request(body)
    assert (request.old_size, len(request.proof), request.note) == (20_852_014, 4, BEHIND + second)
    assert (request.checkpoint.origin, request.checkpoint.size) == (SOFA, 20_852_163)
    assert write_request(request.old_size, request.proof, request.note) == body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n" + note(5),
        b"old 00\n\n" + note(5),
        b"old -1\n\n" + note(5),
        b"new 0\n\n" + note(5),
        b"old 0\nAAAA\n\n" + note(5),
        b"old 0\n" + b"PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n" * 64 + b"\n" + note(5),
        b"old 0\n\nno note\n",
        b"old 0\n\n" + note(5)[:-1],
        b"old 0\n\n" + note(5).replace(b"5\n", b"05\n"),
        b"old \xff\n\n" + note(5),
        b"old 0\n\n" + bytes(256 << 10),
    ],
)
def test_what_is_no_request(body: bytes) -> None:
    with pytest.raises(Malformed, match="not a"):
        parse_request(body)


def test_a_first_checkpoint_and_one_that_continues_it() -> None:
    first = ask(0, note(7), None)
    assert (first.status, first.content_type) == (200, "text/plain; charset=utf-8")
    state = first.state
    assert state is not None
    assert (state.size, state.root) == (7, root(7))
    second = ask(7, note(300), state)
    assert second.status == 200
    assert second.state is not None
    # The answer is signature lines that make the submitted note a cosigned one; monitors get all of it.
    with_lines = note(300) + second.body
    assert second.state.note == with_lines
    said = cosignatures(with_lines, [key.cosigner for key in KEYS])
    assert [(one.key_id, one.unix_s) for one in said] == [(key.cosigner.key_id, NOW) for key in KEYS]
    assert open_checkpoint(with_lines, ORIGIN, [LOG.verifier]).size == 300


def test_404_for_a_log_that_is_not_known() -> None:
    answer = ask(0, note(7, origin="example.com/unknown"), None)
    assert (answer.status, answer.state) == (404, None)


def test_403_where_no_trusted_key_signed_or_one_did_not_sign_this() -> None:
    stranger = Signer(ORIGIN, bytes(32))
    assert ask(0, note(7, signer=stranger), None).status == 403
    good = ask(0, add_signatures(note(7), [Signature(stranger.name, stranger.key_id, bytes(64))]), None)
    assert good.status == 200
    assert good.state is not None
    assert b"A" * 60 not in good.state.note
    spoiled = add_signatures(note(7), [Signature(LOG.name, LOG.key_id, bytes(64))])
    assert ask(0, spoiled, None).status == 403


def test_400_where_the_old_size_is_beyond_the_checkpoint() -> None:
    assert ask(8, note(7), cosigned(8)).status == 400


def test_409_tells_the_size_that_was_cosigned() -> None:
    for old, state, told in ((0, cosigned(7), b"7\n"), (5, cosigned(7), b"7\n"), (5, None, b"0\n")):
        answer = ask(old, note(9), state)
        assert (answer.status, answer.content_type, answer.body, answer.state) == (409, SIZE_TYPE, told, None)


def test_422_where_the_log_does_not_continue() -> None:
    seven = cosigned(7)
    proof = consistency_proof(7, 9, NODES)
    for data, state, old, given in (
        (note(9, of=root(10)), seven, 7, proof),
        (note(9), replace(seven, root=root(6)), 7, proof),
        (note(9), seven, 7, proof[:-1]),
        (note(9), seven, 7, [*proof, root(3)]),
        (note(7, of=root(6)), seven, 7, []),
        (note(7), seven, 7, [root(3)]),
        (note(9), None, 0, proof),
        (note(0, of=root(5)), None, 0, []),
    ):
        answer = ask(old, data, state, given)
        assert (answer.status, answer.state) == (422, None), answer.said
    assert ask(0, note(0, of=EMPTY_ROOT), None).status == 200
    assert ask(7, note(7), seven).status == 200


def test_whatever_is_asked_what_is_cosigned_is_one_log() -> None:
    """Two histories that part at record 100, asked for in turn at random: the witness stays with the one it saw first."""
    forked = [*LEAVES[:100], *leaves(400, "forked")]
    histories = [
        (LEAVES, NODES),
        (forked, TileNodes(500, Tiles().grow(forked).edge.root(), Tiles().grow(forked).fetch)),
    ]
    for seed in range(20):
        dice = random.Random(seed)
        state: State | None = None
        chosen = set()
        for _ in range(12):
            which = dice.randrange(2)
            mine, nodes = histories[which]
            old = 0 if state is None else state.size
            size = dice.randrange(old, 500)
            proof = consistency_proof(old, size, nodes)
            request = parse_request(write_request(old, proof, note(size, of=root_of(mine, size))))
            state = WITNESS.add(request, state, NOW).state or state
            if state is not None and state.size > 100:
                chosen.add(state.root == root_of(forked, state.size))
        assert state is not None
        assert len(chosen) <= 1


def test_a_witness_is_told_at_its_start_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="a witness needs a key"):
        Witness({}, [])
    with pytest.raises(ValueError, match="at most 255 bytes"):
        Witness({"o" * 256: []}, KEYS)
