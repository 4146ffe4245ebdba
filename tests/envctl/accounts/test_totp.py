"""The second factor: RFC 6238's own values, and a code that counts once."""

import base64
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyotp
import pytest

from envctl.accounts import people, totp
from envctl.accounts.people import find_user
from envctl.database.models import User
from tests.envctl.world import World, make_world

RFC_SECRET = base64.b32encode(b"12345678901234567890").decode()


@pytest.mark.parametrize(
    ("at", "code"), [(59, "287082"), (1111111109, "081804"), (1234567890, "005924"), (2000000000, "279037")]
)
def test_codes_are_those_of_rfc_6238(at: int, code: str) -> None:
    """Appendix B, SHA-1, the last six of eight digits."""
    assert totp.matching_step(RFC_SECRET, code, at, 0) == at // 30
    assert totp.matching_step(RFC_SECRET, f"{code[:3]} {code[3:]}", at + 30, 0) == at // 30
    assert totp.matching_step(RFC_SECRET, code, at + 60, 0) is None
    assert totp.matching_step(RFC_SECRET, code, at, at // 30) is None


@pytest.mark.parametrize("code", ["", "28708", "2870820", "abcdef", "２８７０８２", "-87082"])  # noqa: RUF001  # other digits are no digits
def test_what_is_no_code_is_none(code: str) -> None:
    assert totp.matching_step(RFC_SECRET, code, 59, 0) is None


def prepared(world: World) -> User:
    with world.database.write() as session:
        user = find_user(session, "alice")
        user.totp_secret = totp.seal_secret(world.context.secrets, user.id, RFC_SECRET)
        user.totp_confirmed = True
    return user


def code_at(world: World, steps: int = 0) -> str:
    return pyotp.TOTP(RFC_SECRET).generate_otp(int(world.context.now() // totp.STEP_S) + steps)


def use(world: World, code: str) -> bool:
    with world.database.write() as session:
        return totp.use_code(session, world.context, people.find_user(session, "alice"), code)


def test_a_code_counts_once_and_none_before_it_counts_again(world: World) -> None:
    prepared(world)
    assert use(world, code_at(world, -1))
    assert not use(world, code_at(world, -1))
    assert use(world, code_at(world))
    assert not use(world, code_at(world, -1))
    assert use(world, code_at(world, 1))
    assert not use(world, code_at(world))


def test_a_secret_is_sealed_for_its_user(world: World) -> None:
    alice = prepared(world)
    assert RFC_SECRET not in str(alice.totp_secret)
    with world.database.write() as session:
        bob = find_user(session, "bob")
        bob.totp_secret, bob.totp_confirmed = alice.totp_secret, True
    with world.database.write() as session:
        assert not totp.use_code(session, world.context, find_user(session, "bob"), code_at(world))


def test_recovery_codes_count_once_for_their_user_until_there_are_new_ones(new_world: Callable[..., World]) -> None:
    world = new_world()
    with world.database.write() as session:
        alice, bob = find_user(session, "alice"), find_user(session, "bob")
        codes = totp.new_recovery_codes(session, world.context, alice)
        assert len(set(codes)) == totp.RECOVERY_CODES
        assert not totp.use_recovery_code(session, world.context, bob, codes[0])
        assert totp.use_recovery_code(session, world.context, alice, codes[0].upper().replace("-", " "))
        assert not totp.use_recovery_code(session, world.context, alice, codes[0])
        assert totp.recovery_codes_left(session, alice.id) == totp.RECOVERY_CODES - 1
        totp.new_recovery_codes(session, world.context, alice)
        assert not totp.use_recovery_code(session, world.context, alice, codes[1])


def test_of_several_at_once_one_counts(database_url: str, tmp_path: Path) -> None:
    """On both databases: a code that was looked over somebody's shoulder and sent in the same moment."""
    world = make_world(tmp_path / "world", database_url=database_url)
    user = prepared(world)
    with world.database.write() as session:
        codes = totp.new_recovery_codes(session, world.context, find_user(session, "alice"))

    def use_recovery(_: int) -> bool:
        with world.database.write() as session:
            return totp.use_recovery_code(session, world.context, session.get_one(User, user.id), codes[0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: use(world, code_at(world)), range(8))).count(True) == 1
        assert list(pool.map(use_recovery, range(8))).count(True) == 1
    world.close()
