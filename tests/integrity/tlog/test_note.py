"""Notes and checkpoints: the specifications' examples, what is refused, and whose signature counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from integrity.errors import Malformed
from integrity.tlog.checkpoint import (
    Checkpoint,
    open_checkpoint,
    parse_checkpoint,
    peek_checkpoint,
    sign_checkpoint,
)
from integrity.tlog.note import (
    NoteRejected,
    Signature,
    Signer,
    Verifier,
    add_signatures,
    open_note,
    parse_vkey,
    sign_note,
    split_note,
)

VKEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
TEXT = "This is an example message.\n"
LINE = (
    "— example.com/foo Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)
NOTE = f"{TEXT}\n{LINE}".encode()
BEHIND = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "— example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
).encode()
SOFA = "example.com/behind-the-sofa"
ROOT = bytes.fromhex("0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62")
SIGNER = Signer("example.com/log", bytes(range(32)))
OTHER = Signer("example.com/other", bytes(range(1, 33)))


def test_the_example_of_the_specification() -> None:
    key = parse_vkey(VKEY)
    assert (key.name, key.key_id, key.vkey) == ("example.com/foo", 0x530D903A, VKEY)
    opened = open_note(NOTE, [key])
    assert opened.text == TEXT
    assert [one.line for one in opened.signatures] == [LINE]
    assert opened.unknown == ()


def test_a_note_whose_text_has_blank_lines() -> None:
    text = "Ognuno sta solo sul cuor della terra\n\ned è subito sera.\n"
    opened = open_note(sign_note(text, SIGNER), [SIGNER.verifier])
    assert opened.text == text


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        VKEY.replace("530d903a", "530d903b"),
        VKEY.replace("530d903a", "530D903A"),
        VKEY.replace("example.com", "example com"),
        VKEY.replace("foo", "fo"),
        VKEY[:-4],
        VKEY + "=",
        "+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k",
    ],
)
def test_verifier_keys_that_are_none(vkey: str) -> None:
    with pytest.raises(Malformed, match="is no verifier key"):
        parse_vkey(vkey)


def test_a_key_of_another_type_signs_no_notes() -> None:
    cosigner = Verifier("example.com/w", SIGNER.verifier.public, kind=4)
    with pytest.raises(Malformed, match="is of type 4"):
        parse_vkey(cosigner.vkey)


@given(st.integers(0, len(NOTE) - 1), st.integers(1, 255))
def test_no_byte_of_a_note_may_change(at: int, by: int) -> None:
    changed = bytearray(NOTE)
    changed[at] ^= by
    with pytest.raises((Malformed, NoteRejected)):
        open_note(bytes(changed), [parse_vkey(VKEY)])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        TEXT.encode(),
        TEXT.encode() + b"\n",
        NOTE[:-1],
        NOTE + b"\n",
        NOTE.replace(b"This", b"Th\tis"),
        NOTE.replace(b"This", b"Th\xffis"),
        NOTE.replace("— ".encode(), b"- "),
        NOTE.replace(b"Uw2Q", b"Uw2*"),
        (f"{TEXT}\n" + LINE * 65).encode(),
        (f"{TEXT}\n{LINE}— example.com/foo Uw2QOg==\n").encode(),
        b"\n\n" + b"x" * (1 << 20),
    ],
)
def test_what_is_no_note(data: bytes) -> None:
    with pytest.raises(Malformed, match="not a signed note"):
        open_note(data, [parse_vkey(VKEY)])


def test_signatures_of_unknown_keys_are_left_aside() -> None:
    note = sign_note(TEXT, OTHER, SIGNER)
    opened = open_note(note, [SIGNER.verifier])
    assert [one.name for one in opened.signatures] == ["example.com/log"]
    assert [one.name for one in opened.unknown] == ["example.com/other"]
    with pytest.raises(NoteRejected, match=r"signed by example.com/other .* not by example.com/log"):
        open_note(sign_note(TEXT, OTHER), [SIGNER.verifier])
    with pytest.raises(NoteRejected, match="no key was given"):
        open_note(note, [])


def test_one_signature_that_does_not_hold_spoils_the_note() -> None:
    bad = Signature(OTHER.name, OTHER.key_id, bytes(64))
    note = add_signatures(sign_note(TEXT, SIGNER), [bad])
    with pytest.raises(NoteRejected, match=r"the signature of example.com/other \([0-9a-f]{8}\) does not hold"):
        open_note(note, [SIGNER.verifier, OTHER.verifier])
    assert open_note(note, [SIGNER.verifier]).text == TEXT


def test_a_name_alone_is_not_a_key() -> None:
    namesake = Signer(SIGNER.name, bytes(32))
    assert open_note(sign_note(TEXT, namesake, SIGNER), [SIGNER.verifier]).unknown[0].name == SIGNER.name


def test_a_key_that_signed_twice_counts_once_and_a_new_signature_takes_the_place_of_the_old() -> None:
    twice = sign_note(TEXT, SIGNER, SIGNER)
    assert len(open_note(twice, [SIGNER.verifier]).signatures) == 1
    note = sign_note(TEXT, SIGNER, OTHER)
    newer = Signature(SIGNER.name, SIGNER.key_id, bytes(64))
    _, signatures = split_note(add_signatures(note, [newer]))
    assert [one.name for one in signatures] == [SIGNER.name, OTHER.name]
    assert signatures[0].signature == bytes(64)


def test_texts_that_no_note_has() -> None:
    for text in ("no newline", "a\rb\n", ""):
        with pytest.raises(ValueError, match="a note"):
            sign_note(text, SIGNER)
    with pytest.raises(ValueError, match="is no key's name"):
        Signer("two words", bytes(32))


def test_the_checkpoint_of_the_specification() -> None:
    assert peek_checkpoint(BEHIND) == Checkpoint(SOFA, 20_852_163, ROOT)
    text, (signature,) = split_note(BEHIND)
    assert Checkpoint(SOFA, 20_852_163, ROOT).text() == text
    assert (signature.name, f"{signature.key_id:08x}") == (SOFA, "033de0ae")


@pytest.mark.parametrize(
    "text",
    [
        "o\n5\n",
        "\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "o\n05\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "o\n-5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "o\n\u0665\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "o\n9223372036854775808\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n",
        "o\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I\n",
        "o\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxqw==\n",
        "o\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n",
        "o\n5\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
    ],
)
def test_texts_that_are_no_checkpoint(text: str) -> None:
    with pytest.raises(Malformed, match="not a checkpoint"):
        parse_checkpoint(text)


def test_a_checkpoint_is_of_the_log_that_was_expected() -> None:
    note = sign_checkpoint(Checkpoint("example.com/log", 7, ROOT, ("more",)), SIGNER)
    assert open_checkpoint(note, "example.com/log", [SIGNER.verifier]).extensions == ("more",)
    with pytest.raises(NoteRejected, match=r"of the log 'example.com/log', not of 'example.com/log/pve1'"):
        open_checkpoint(note, "example.com/log/pve1", [SIGNER.verifier])
    for wrong in (Checkpoint("two\nlines", 7, ROOT), Checkpoint("", 7, ROOT), Checkpoint("o", -1, ROOT)):
        with pytest.raises(ValueError):
            sign_checkpoint(wrong, SIGNER)
