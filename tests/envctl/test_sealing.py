"""The key file: what is sealed opens with the same key for the same purpose alone."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envctl.sealing import NotOurs, SecretBox
from s3core.credentials import CredentialsError

BOX = SecretBox(bytes(range(32)))


@given(st.binary(max_size=200), st.text(max_size=40))
def test_what_was_sealed_opens(plain: bytes, purpose: str) -> None:
    sealed = BOX.seal(plain, purpose)
    assert BOX.open(sealed, purpose) == plain
    assert BOX.seal(plain, purpose) != sealed


@given(st.binary(max_size=40), st.data())
def test_what_was_changed_or_is_for_another_purpose_does_not_open(plain: bytes, data: st.DataObject) -> None:
    sealed = BOX.seal(plain, "totp:alice")
    with pytest.raises(NotOurs):
        BOX.open(sealed, "totp:bob")
    with pytest.raises(NotOurs):
        SecretBox(bytes(32)).open(sealed, "totp:alice")
    at = data.draw(st.integers(0, len(sealed) - 2))
    other = data.draw(st.sampled_from("ABCxyz019-_").filter(lambda letter: letter != sealed[at]))
    with pytest.raises(NotOurs):
        BOX.open(sealed[:at] + other + sealed[at + 1 :], "totp:alice")


@given(st.text(max_size=60))
def test_what_nobody_sealed_does_not_open(text: str) -> None:
    with pytest.raises(NotOurs):
        BOX.open(text, "totp:alice")


def test_a_mac_holds_for_its_message_and_purpose() -> None:
    mac = BOX.mac(b"message", "csrf")
    assert BOX.mac(b"message", "csrf") == mac
    assert BOX.mac(b"message", "other") != mac
    assert BOX.mac(b"massage", "csrf") != mac


def test_a_key_file_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "key"
    with ThreadPoolExecutor(8) as pool:
        boxes = list(pool.map(lambda _: SecretBox.open_file(path), range(8)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) == 32
    assert [file.name for file in path.parent.iterdir()] == ["key"]
    sealed = boxes[0].seal(b"x", "p")
    assert {box.open(sealed, "p") for box in boxes} == {b"x"}
    path.chmod(0o640)
    with pytest.raises(CredentialsError, match="chmod 600"):
        SecretBox.open_file(path)
    with pytest.raises(CredentialsError):
        SecretBox.open_file(tmp_path / "none", create=False)
