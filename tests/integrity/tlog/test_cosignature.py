"""Cosignatures: the specification's example, both kinds there and back, and what does not hold."""

import pytest

from integrity.errors import Malformed
from integrity.tlog.checkpoint import Checkpoint, sign_checkpoint
from integrity.tlog.cosignature import (
    COSIGNATURE_ED25519,
    COSIGNATURE_ML_DSA_44,
    Cosignature,
    Cosigner,
    CosignerKey,
    cosignatures,
    cosigned_message,
    parse_cosigner,
    unix_of,
)
from integrity.tlog.note import (
    NoteRejected,
    Signature,
    Signer,
    add_signatures,
    decode64,
    parse_signature,
    parse_vkey,
    sign_note,
    split_note,
)

CHECKPOINT = Checkpoint(
    "example.com/behind-the-sofa", 20_852_163, decode64("CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=")
)
LOG = Signer(CHECKPOINT.origin, bytes(range(32)))
NAME = "witness.example.com/w1"
KEYS = [CosignerKey(NAME, kind, bytes(range(2, 34))) for kind in (COSIGNATURE_ED25519, COSIGNATURE_ML_DSA_44)]
NOW = 1_679_315_147


def test_the_example_of_the_specification() -> None:
    line = (
        "— witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe"
        "+mbIUBkBIfZ+qnA=="
    )
    cosignature = parse_signature(line)
    assert (cosignature.name, cosignature.key_id, unix_of(cosignature.signature)) == (NAME, 0x8D66CF3F, NOW)
    assert len(cosignature.signature) == 8 + 64
    assert cosigned_message(CHECKPOINT.text(), NAME, COSIGNATURE_ED25519, NOW) == (
        b"cosignature/v1\ntime 1679315147\nexample.com/behind-the-sofa\n20852163\n"
        b"CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    )


def test_the_message_under_ml_dsa_is_the_structure_of_the_specification() -> None:
    message = cosigned_message(CHECKPOINT.text(), NAME, COSIGNATURE_ML_DSA_44, NOW)
    assert message == b"".join(
        (
            b"subtree/v1\n\0",
            b"\x16" + NAME.encode(),
            NOW.to_bytes(8, "big"),
            b"\x1b" + CHECKPOINT.origin.encode(),
            bytes(8),
            (20_852_163).to_bytes(8, "big"),
            CHECKPOINT.root,
        )
    )
    more = Checkpoint(CHECKPOINT.origin, CHECKPOINT.size, CHECKPOINT.root, ("an extension",))
    assert cosigned_message(more.text(), NAME, COSIGNATURE_ML_DSA_44, NOW) == message


@pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ml-dsa-44"])
def test_there_and_back(key: CosignerKey) -> None:
    cosigner = parse_cosigner(key.vkey)
    assert cosigner == key.cosigner
    note = sign_checkpoint(CHECKPOINT, LOG, key.at(NOW))
    assert cosignatures(note, [cosigner]) == [Cosignature(NAME, cosigner.key_id, NOW)]
    assert cosignatures(note, []) == []
    with pytest.raises(Malformed, match="a key that signs notes is of type 1"):
        parse_vkey(key.vkey)


@pytest.mark.parametrize("key", KEYS, ids=["ed25519", "ml-dsa-44"])
def test_what_does_not_hold(key: CosignerKey) -> None:
    text = CHECKPOINT.text()
    signature = key.at(NOW).sign(text)
    cosigner = key.cosigner
    assert cosigner.holds(text, signature)
    later = (NOW + 1).to_bytes(8, "big") + signature[8:]
    bigger = Checkpoint(CHECKPOINT.origin, CHECKPOINT.size + 1, CHECKPOINT.root).text()
    for other_text, other in (
        (text, later),
        (text, signature[:-1]),
        (text, signature + b"\0"),
        (text, b""),
        (text, signature[:-1] + bytes([signature[-1] ^ 1])),
        (text, b"\xff" * 8 + signature[8:]),
        (bigger, signature),
        ("not a checkpoint\n", signature),
    ):
        assert not cosigner.holds(other_text, other)
    assert not Cosigner("witness.example.com/w2", cosigner.kind, KEYS[0].cosigner.public).holds(text, signature[:-1])
    spoiled = add_signatures(sign_checkpoint(CHECKPOINT, LOG), [Signature(NAME, cosigner.key_id, later)])
    with pytest.raises(NoteRejected, match="does not hold"):
        cosignatures(spoiled, [cosigner])


def test_ml_dsa_commits_to_the_name_of_the_witness() -> None:
    signature = KEYS[1].at(NOW).sign(CHECKPOINT.text())
    renamed = Cosigner("witness.example.com/w2", COSIGNATURE_ML_DSA_44, KEYS[1].cosigner.public)
    assert not renamed.holds(CHECKPOINT.text(), signature)


def test_two_signatures_of_a_key_are_one_cosignature() -> None:
    note = sign_note(CHECKPOINT.text(), LOG, KEYS[0].at(NOW), KEYS[0].at(NOW + 5), KEYS[1].at(NOW))
    assert len(split_note(note)[1]) == 4
    said = cosignatures(note, [key.cosigner for key in KEYS])
    assert [(one.key_id, one.unix_s) for one in said] == [(key.cosigner.key_id, NOW) for key in KEYS]


def test_keys_that_are_no_witness_s() -> None:
    with pytest.raises(Malformed, match="is of type 1; a witness's is of type"):
        parse_cosigner(LOG.vkey)
    with pytest.raises(ValueError, match="no witness signs with keys of type 1"):
        CosignerKey(NAME, 1, bytes(32))
    with pytest.raises(ValueError, match="not a checkpoint"):
        KEYS[1].sign("some text\n", NOW)
    with pytest.raises(ValueError, match="1 to 255"):
        KEYS[1].sign(Checkpoint("o" * 256, 1, bytes(32)).text(), NOW)
    with pytest.raises(ValueError, match="no time"):
        KEYS[0].sign(CHECKPOINT.text(), -1)
