"""Passwords: what is taken, and what a check costs whoever asks."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from argon2 import extract_parameters

from envctl.accounts import passwords
from envctl.errors import Invalid, TooMany
from tests.envctl.world import CHEAP


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "elevenchars",
        "passwordpassword",
        "PasswordPassword",
        "aaaaaaaaaaaaaaaa",
        "alice-in-wonderland",
        "x" * 300,
    ],
)
def test_what_is_guessed_at_once_is_not_taken(password: str) -> None:
    with pytest.raises(Invalid) as caught:
        passwords.check_new(password, "alice-in-wonderland")
    assert caught.value.details["password"]


@pytest.mark.parametrize(
    "password", ["correct horse battery", "nur kleine buchstaben", "пароль из слов", "a b c d e f g"]
)
def test_length_alone_is_asked_for(password: str) -> None:
    passwords.check_new(password, "alice")


def test_hashes_have_the_parameters_of_rfc_9106() -> None:
    hashed = passwords.hash_password("correct horse battery")
    found = extract_parameters(hashed)
    assert (found.type.name, found.time_cost, found.memory_cost, found.parallelism) == ("ID", 3, 65536, 4)
    assert (found.salt_len, found.hash_len) == (16, 32)
    assert passwords.is_password("correct horse battery", hashed)
    assert not passwords.is_password("correct horse batterx", hashed)
    assert not passwords.is_outdated(hashed)
    assert passwords.is_outdated(CHEAP.hash("correct horse battery"))


def test_the_same_letters_typed_elsewhere_are_the_same_password() -> None:
    composed, parts = "grün wie gras\u00fc", "gru\u0308n wie grasu\u0308"
    assert passwords.is_password(parts, CHEAP.hash(composed))


def test_nobody_and_damaged_hashes_are_wrong_passwords_after_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []

    class Counting:
        def verify(self, stored: str, password: str) -> None:
            verified.append(stored)
            CHEAP.verify(stored, password)

        def hash(self, password: str) -> str:
            return CHEAP.hash(password)

    passwords._nobody.cache_clear()
    monkeypatch.setattr(passwords, "HASHER", Counting())
    known = CHEAP.hash("correct horse battery")
    for stored in (known, None, "no hash"):
        assert not passwords.is_password("wrong", stored)
    assert not passwords.is_password("x" * 100_000, known)
    passwords._nobody.cache_clear()
    assert len(verified) == 4
    assert verified[1] == verified[3] != known


def test_only_so_many_are_hashed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of sign-ins waits, and is told to come back; it does not take the host's memory."""
    at_once = 0
    most = 0
    lock = threading.Lock()
    full, go_on = threading.Event(), threading.Event()

    class Slow:
        def hash(self, password: str) -> str:
            nonlocal at_once, most
            with lock:
                at_once += 1
                most = max(most, at_once)
                if at_once == passwords.AT_ONCE:
                    full.set()
            go_on.wait(30)
            with lock:
                at_once -= 1
            return "hash"

    monkeypatch.setattr(passwords, "HASHER", Slow())
    monkeypatch.setattr(passwords, "WAIT_S", 0.2)
    with ThreadPoolExecutor(passwords.AT_ONCE) as pool:
        first = [pool.submit(passwords.hash_password, "x") for _ in range(passwords.AT_ONCE)]
        assert full.wait(30)
        with pytest.raises(TooMany) as caught:
            passwords.hash_password("one more")
        go_on.set()
        assert [one.result() for one in first] == ["hash"] * passwords.AT_ONCE
    assert caught.value.retry_after_s > 0
    assert most == passwords.AT_ONCE


def test_one_time_passwords_are_good_passwords() -> None:
    drawn = {passwords.one_time_password() for _ in range(50)}
    assert len(drawn) == 50
    for password in drawn:
        passwords.check_new(password, "admin")
