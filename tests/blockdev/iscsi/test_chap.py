"""CHAP: who gets in, who does not, and that we prove ourselves only to those who may ask."""

import base64
import hashlib

import pytest

from blockdev.iscsi.chap import ChapTarget, Credentials, decode_binary, encode_binary, response
from blockdev.iscsi.errors import LoginRefused, LoginStatus, PeerError

SECRET, MUTUAL = b"a secret of 16 b", b"another secret!!"
ONE_WAY = Credentials("alice", SECRET)
BOTH_WAYS = Credentials("alice", SECRET, "array", MUTUAL)


def fixed_bytes(length: int) -> bytes:
    return bytes(range(100, 100 + length))


def challenged(credentials: Credentials = ONE_WAY, algorithms: str = "5") -> tuple[ChapTarget, dict[str, str]]:
    chap = ChapTarget(credentials, fixed_bytes)
    return chap, dict(chap.step({"CHAP_A": algorithms}))


def answer(question: dict[str, str], secret: bytes = SECRET, name: str = "alice") -> dict[str, str]:
    proof = response(
        int(question["CHAP_A"]), int(question["CHAP_I"]), secret, decode_binary("CHAP_C", question["CHAP_C"])
    )
    return {"CHAP_N": name, "CHAP_R": encode_binary(proof)}


@pytest.mark.parametrize(("offer", "chosen"), [("5", "5"), ("7,5", "7"), ("5,8", "8"), ("6,5", "5"), ("x,,5", "5")])
def test_best_common_algorithm(offer: str, chosen: str) -> None:
    chap, question = challenged(algorithms=offer)
    assert question["CHAP_A"] == chosen
    assert chap.step(answer(question)) == []
    assert chap.done


def test_md5_is_rfc_1994() -> None:
    assert response(5, 7, b"secret", b"challenge") == hashlib.md5(b"\x07secretchallenge").digest()


@pytest.mark.parametrize("offer", ["6", "", "99999", "MD5"])
def test_no_common_algorithm(offer: str) -> None:
    with pytest.raises(LoginRefused):
        challenged(algorithms=offer)


@pytest.mark.parametrize(("secret", "name"), [(b"wrong", "alice"), (SECRET, "bob"), (b"", "")])
def test_wrong_secret_or_name(secret: bytes, name: str) -> None:
    chap, question = challenged()
    with pytest.raises(LoginRefused) as caught:
        chap.step(answer(question, secret, name))
    assert caught.value.status is LoginStatus.AUTHENTICATION_FAILURE
    assert not chap.done


def test_mutual() -> None:
    chap, question = challenged(BOTH_WAYS)
    theirs = b"sixteen byte chg"
    proof = dict(chap.step(answer(question) | {"CHAP_I": "9", "CHAP_C": encode_binary(theirs)}))
    assert proof == {"CHAP_N": "array", "CHAP_R": encode_binary(response(5, 9, MUTUAL, theirs))}
    assert chap.done


def test_reflected_challenge_is_refused() -> None:
    chap, question = challenged(BOTH_WAYS)
    with pytest.raises(LoginRefused, match="sent back"):
        chap.step(answer(question) | {"CHAP_I": "9", "CHAP_C": question["CHAP_C"]})
    assert not chap.done


def test_no_proof_for_those_who_did_not_authenticate() -> None:
    chap, question = challenged(BOTH_WAYS)
    with pytest.raises(LoginRefused):
        chap.step(answer(question, b"wrong") | {"CHAP_I": "9", "CHAP_C": "0x0102"})


@pytest.mark.parametrize(
    "keys", [{"CHAP_I": "9"}, {"CHAP_C": "0x01"}, {"CHAP_I": "300", "CHAP_C": "0x01"}, {"CHAP_I": "9", "CHAP_C": "0x"}]
)
def test_mutual_needs_both_keys(keys: dict[str, str]) -> None:
    chap, question = challenged(BOTH_WAYS)
    with pytest.raises((LoginRefused, PeerError)):
        chap.step(answer(question) | keys)
    assert not chap.done


def test_mutual_without_a_secret_here() -> None:
    chap, question = challenged(ONE_WAY)
    with pytest.raises(LoginRefused, match="no secret"):
        chap.step(answer(question) | {"CHAP_I": "9", "CHAP_C": "0x0102"})


def test_binary_values() -> None:
    assert decode_binary("K", "0x0aFF") == b"\x0a\xff"
    assert decode_binary("K", "0X1") == b"\x01"
    assert decode_binary("K", "0b" + base64.b64encode(b"hello").decode()) == b"hello"


@pytest.mark.parametrize("value", ["", "1234", "0xzz", "0x 1", "0b!", "0x" + "0" * 2049])
def test_bad_binary_values(value: str) -> None:
    with pytest.raises(PeerError):
        decode_binary("K", value)


def test_secrets_stay_out_of_repr() -> None:
    assert "secret" not in repr(BOTH_WAYS).replace("_secret", "")
    assert SECRET.decode() not in repr(BOTH_WAYS)


@pytest.mark.parametrize("arguments", [("", SECRET), ("a", b""), ("a", SECRET, "b", b""), ("a", SECRET, "b", SECRET)])
def test_credentials_that_make_no_sense(arguments: tuple[str, bytes]) -> None:
    with pytest.raises(ValueError):
        Credentials(*arguments)
