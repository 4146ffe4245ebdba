"""Limits: which row holds, what counts, and that two requests never share the last place."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from envctl.accounts import quotas
from envctl.accounts.people import find_user
from envctl.accounts.quotas import Wanted
from envctl.database.models import Environment, Template
from envctl.errors import OverQuota
from envctl.states import EnvironmentState
from envctl.verbs import people as verbs
from envctl.verbs.people_models import AddGroup, SetQuota, ShowQuota
from tests.envctl.world import World, make_world


def set_quota(world: World, kind: str, subject: str, **figures: int) -> None:
    verbs.quota_set(
        world.context, world.caller("root"), SetQuota.model_validate({"kind": kind, "subject": subject, **figures})
    )


def limit(world: World, figure: str, user: str = "alice") -> int | None:
    answer = verbs.quota_show(world.context, world.caller("root"), ShowQuota(user=user))
    return answer.figure(figure).limit


def check(world: World, wanted: Wanted, template: Template | None = None, without: str | None = None) -> None:
    with world.database.write() as session:
        quotas.check(session, find_user(session, "alice"), template, wanted, without=without)


def test_the_nearest_row_holds_and_the_widest_of_several_groups(world: World) -> None:
    assert limit(world, "environments") is None
    set_quota(world, "default", "-", environments=2, cores=4)
    assert (limit(world, "environments"), limit(world, "cores")) == (2, 4)
    for group, count in (("small", 1), ("large", 5)):
        verbs.group_add(world.context, world.caller("root"), AddGroup(name=group, members=["alice"]))
        set_quota(world, "group", group, environments=count)
    assert (limit(world, "environments"), limit(world, "cores")) == (5, 4)
    set_quota(world, "user", "alice", environments=3)
    assert (limit(world, "environments"), limit(world, "cores")) == (3, 4)
    assert limit(world, "environments", "bob") == 2


def test_what_counts(world: World) -> None:
    template = world.add_template(cores=2, memory_mib=1024, disk_gib=10)
    gib = 1 << 30
    world.add_environment("alice", "on", template, EnvironmentState.READY, stored_bytes=gib)
    world.add_environment("alice", "coming", template, EnvironmentState.CLONING)
    world.add_environment("alice", "off", template, EnvironmentState.STOPPED, stored_bytes=1)
    world.add_environment("alice", "failed", template, EnvironmentState.FAILED)
    world.add_environment("alice", "failed-on", template, EnvironmentState.FAILED, running=True)
    world.add_environment("alice", "deleted", template, EnvironmentState.DELETED, stored_bytes=gib)
    world.add_environment("alice", "purged", template, EnvironmentState.PURGED, stored_bytes=gib)
    world.add_environment("bob", "bobs", template, EnvironmentState.READY)
    with world.database.read() as session:
        used = quotas.usage_of(session, find_user(session, "alice").id)
    assert used == quotas.Usage(environments=5, running=3, cores=6, memory_mib=3072, disk_gib=50, home_gib=3)


def test_the_message_says_which_how_much_and_what_was_asked(world: World) -> None:
    template = world.add_template(memory_mib=3072)
    one = world.add_environment("alice", "one", template)
    set_quota(world, "default", "-", memory_mib=4096)
    check(world, Wanted(memory_mib=1024))
    with pytest.raises(OverQuota) as caught:
        check(world, Wanted(memory_mib=1025))
    assert "memory" in str(caught.value)
    assert "3,072 of 4,096 MiB" in str(caught.value)
    assert "1,025 MiB" in str(caught.value)
    assert caught.value.details["quota"] == "memory_mib"
    check(world, Wanted(memory_mib=4096), without=one.id)
    check(world, Wanted(environments=1))


def test_a_template_has_limits_of_its_own(world: World) -> None:
    large, small = world.add_template("large"), world.add_template("small")
    set_quota(world, "template", "large", environments=1)
    world.add_environment("alice", "one", small)
    check(world, Wanted(environments=1), large)
    world.add_environment("alice", "two", large, EnvironmentState.STOPPED)
    with pytest.raises(OverQuota, match="template large"):
        check(world, Wanted(environments=1), large)
    check(world, Wanted(environments=1), small)
    left = verbs.quota_show(world.context, world.caller("alice"), ShowQuota(template="large"))
    assert left.figure("environments").left == 0


def test_a_home_that_is_too_large_takes_no_new_machine(world: World) -> None:
    world.add_environment("alice", "one", world.add_template(), EnvironmentState.STOPPED, stored_bytes=3 << 30)
    set_quota(world, "user", "alice", home_gib=3)
    check(world, Wanted(running=1))
    set_quota(world, "user", "alice", home_gib=2)
    with pytest.raises(OverQuota, match="stored homes"):
        check(world, Wanted(running=1))


def test_two_requests_never_share_the_last_place(database_url: str, tmp_path: Path) -> None:
    """On both databases: look and write are one."""
    world = make_world(tmp_path / "world", database_url=database_url)
    template = world.add_template()
    set_quota(world, "default", "-", environments=3)

    def create(number: int) -> bool:
        try:
            with world.database.write() as session:
                user = find_user(session, "alice")
                quotas.check(session, user, session.get_one(Template, template.id), Wanted(environments=1))
                row = Environment(
                    id=world.context.new_id(),
                    owner_id=user.id,
                    name=f"env-{number}",
                    template_id=template.id,
                    state=EnvironmentState.REQUESTED,
                    driver="fake",
                    cores=1,
                    memory_mib=1,
                    disk_gib=1,
                    directories=["/home"],
                    created_at=world.context.now(),
                )
                session.add(row)
        except OverQuota:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(16)))
    assert made.count(True) == 3
    world.close()
