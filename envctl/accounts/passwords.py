"""Passwords: argon2id (RFC 9106), length in place of rules about characters.

One rule: no password is hashed in a write of the database, and never more than `AT_ONCE` at a time: a flood of sign-ins costs
time, not the host's memory.
"""

import secrets
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Final

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from envctl.errors import Invalid, TooMany

CHARACTERS_MIN: Final = 12
CHARACTERS_MAX: Final = 256
DISTINCT_MIN: Final = 5
AT_ONCE: Final = 2
"""64 MiB each, and four lanes."""
WAIT_S: Final = 10.0
HASHER: Final = PasswordHasher(
    time_cost=3, memory_cost=64 * 1024, parallelism=4, hash_len=32, salt_len=16, type=Type.ID
)
"""RFC 9106, section 4, second recommended option."""
WORST: Final = frozenset(
    {
        "123456789012",
        "1234567890123",
        "12345678901234",
        "1234567890ab",
        "1q2w3e4r5t6y",
        "1qaz2wsx3edc",
        "abcdefghijkl",
        "abcdefghijklm",
        "administrator",
        "adminadminadmin",
        "changemechangeme",
        "correcthorsebatterystaple",
        "iloveyouiloveyou",
        "letmeinletmein",
        "password1234",
        "password12345",
        "password123456",
        "passwordpassword",
        "passw0rdpassw0rd",
        "proxmoxproxmox",
        "proxmox12345",
        "qazwsxedcrfv",
        "qwerty123456",
        "qwertyqwerty",
        "qwertyuiop12",
        "qwertyuiop123",
        "qwertyuiopasdf",
        "qwertzuiopasdf",
        "secretsecret",
        "secretsecretsecret",
        "welcome12345",
        "welcome123456",
    }
)
"""Of those that are long enough, what everybody tries first."""
_slots: Final = threading.BoundedSemaphore(AT_ONCE)


def check_new(password: str, *names: str) -> None:
    """Invalid, with what to do, for one that is guessed at once. `names`: of the user, which it may not be."""
    text = _prepared(password)
    plain = text.casefold()
    problem = ""
    if len(text) < CHARACTERS_MIN:
        problem = f"a password has at least {CHARACTERS_MIN} characters"
    elif len(text) > CHARACTERS_MAX:
        problem = f"a password has at most {CHARACTERS_MAX} characters"
    elif plain in WORST or len(set(plain)) < DISTINCT_MIN:
        problem = "that password is among the first that anybody tries"
    elif any(name and plain == name.casefold() for name in names):
        problem = "the name is no password"
    if problem:
        raise Invalid(
            problem, hint="take four or five words that do not belong together", details={"password": problem}
        )


def hash_password(password: str) -> str:
    """For `User.password_hash`. It takes about a tenth of a second. TooMany, where too many wait for their turn."""
    with _slot():
        return HASHER.hash(_prepared(password))


def is_password(password: str, stored: str | None) -> bool:
    """Whether it is the one; False for somebody who has none, after the same work. TooMany as `hash_password`."""
    if len(password) > CHARACTERS_MAX:
        # Longer ones were never accepted; hashing them would let anybody choose the work.
        password, stored = "", None
    with _slot():
        try:
            HASHER.verify(stored or _nobody(), _prepared(password))
        except (VerificationError, InvalidHashError):
            return False
        return stored is not None


def is_outdated(stored: str) -> bool:
    """Whether it was made with other parameters than those of now: hash it anew at the next sign-in."""
    return HASHER.check_needs_rehash(stored)


def one_time_password() -> str:
    """For somebody to change at the first sign-in: 80 random bits in groups that can be read out."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"
    drawn = "".join(secrets.choice(letters) for _ in range(16))
    return "-".join(drawn[at : at + 4] for at in range(0, 16, 4))


@cache
def _nobody() -> str:
    """What is compared with where there is no such user."""
    return HASHER.hash(secrets.token_hex(16))


def _prepared(password: str) -> str:
    # One keyboard composes an accented letter, another sends its parts (RFC 8265, section 4.2.2).
    return unicodedata.normalize("NFC", password)


@contextmanager
def _slot() -> Iterator[None]:
    if not _slots.acquire(timeout=WAIT_S):
        raise TooMany("too many people sign in at once", retry_after_s=5.0, hint="try again in a few seconds")
    try:
        yield
    finally:
        _slots.release()
