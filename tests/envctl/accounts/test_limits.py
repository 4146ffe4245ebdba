"""How often somebody may try."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from envctl.accounts import limits
from envctl.errors import TooMany
from tests.envctl.world import World, make_world


def attempt(world: World, *subjects: limits.Subject) -> float:
    """Seconds to wait; 0: it was counted."""
    try:
        with world.database.write() as session:
            limits.begin(session, subjects, world.context.now())
    except TooMany as error:
        return error.retry_after_s
    return 0.0


def test_waits_double_up_to_a_bound(world: World) -> None:
    for _ in range(limits.ACCOUNT.free):
        assert attempt(world, limits.account("alice")) == 0.0
    waits = []
    for _ in range(12):
        assert attempt(world, limits.account("alice")) == 0.0
        waits.append(attempt(world, limits.account("alice")))
        world.clock.now += waits[-1]
    assert waits[:5] == [2.0, 4.0, 8.0, 16.0, 32.0]
    assert waits[-1] == limits.ACCOUNT.wait_max_s


def test_a_wait_counts_for_nobody_else(world: World) -> None:
    for _ in range(limits.ACCOUNT.free + 1):
        attempt(world, limits.account("alice"))
    assert attempt(world, limits.account("Alice ")) > 0
    assert attempt(world, limits.account("bob")) == 0.0
    assert attempt(world, limits.address("192.0.2.1")) == 0.0


def test_one_that_must_wait_counts_none(world: World) -> None:
    """Else somebody who must wait would bring others to wait too."""
    for _ in range(limits.ACCOUNT.free + 1):
        attempt(world, limits.account("alice"))
    for _ in range(100):
        assert attempt(world, limits.address("192.0.2.1"), limits.account("alice")) > 0
    assert attempt(world, limits.address("192.0.2.1")) == 0.0


def test_quiet_begins_anew(world: World) -> None:
    for _ in range(limits.ACCOUNT.free):
        attempt(world, limits.account("alice"))
    world.clock.now += limits.ACCOUNT.quiet_s + 1
    for _ in range(limits.ACCOUNT.free):
        assert attempt(world, limits.account("alice")) == 0.0


def test_a_right_answer_frees_the_account_but_not_the_address(world: World) -> None:
    """Somebody with one account of the own must not wipe out the guesses at others'."""
    here, alice = limits.address("192.0.2.1"), limits.account("alice")
    for number in range(limits.ADDRESS.free - 1):
        assert attempt(world, here, limits.account(f"other-{number}")) == 0.0
    assert attempt(world, here, alice) == 0.0
    with world.database.write() as session:
        limits.succeeded(session, [here, alice])
    assert attempt(world, here, limits.account("next")) == 0.0
    assert attempt(world, here, limits.account("after")) == 0.0
    assert attempt(world, here, limits.account("last")) > 0


def test_an_ipv6_network_is_one_address() -> None:
    assert limits.address("2001:db8::1") == limits.address("2001:db8::ffff:2")
    assert limits.address("2001:db8::1") != limits.address("2001:db8:0:1::1")
    assert limits.address("::ffff:192.0.2.1") == limits.address("192.0.2.1")
    assert len(limits.address("x" * 1000).name) < 160


def test_old_counts_are_swept(world: World) -> None:
    for _ in range(limits.ACCOUNT.free + 3):
        attempt(world, limits.account("alice"))
    world.clock.now += limits.FORGET_S + 1
    with world.database.write() as session:
        limits.sweep(session, world.context.now())
    for _ in range(limits.ACCOUNT.free):
        assert attempt(world, limits.account("alice")) == 0.0


def test_a_thousand_at_once_are_a_thousand(database_url: str, tmp_path: Path) -> None:
    """On both databases: those that come in the same moment do not all see a count of none."""
    world = make_world(tmp_path / "world", database_url=database_url)
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: attempt(world, limits.account("alice")), range(24)))
    assert waits.count(0.0) == limits.ACCOUNT.free + 1
    world.close()
