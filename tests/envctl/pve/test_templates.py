"""The verbs of templates: what the hypervisor finds fault with is not offered."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from envctl.database.models import Group, Membership
from envctl.drivers.pve.driver import PveDriver
from envctl.errors import Forbidden, Invalid, NoSuchThing, Refused
from envctl.fake_pve.cluster import POOL, TEMPLATE, small_cluster
from envctl.fake_pve.server import Served, serve, write_token
from envctl.states import EnvironmentState
from envctl.verbs.template_models import AddTemplate, ListTemplates, OneTemplate, UpdateTemplate
from envctl.verbs.templates import (
    template_add,
    template_check,
    template_list,
    template_remove,
    template_show,
    template_update,
)
from s3core.settings import EnvctlDriverSettings
from tests.envctl.world import World, make_world


@pytest.fixture
def served() -> Iterator[Served]:
    with serve(small_cluster()) as running:
        yield running
    assert running.fake.violations == []


@pytest.fixture
def world(served: Served, tmp_path: Path) -> Iterator[World]:
    settings = EnvctlDriverSettings(url=served.url, token=write_token(tmp_path / "token"), pool=POOL)
    made = make_world(tmp_path / "state", drivers={"main": PveDriver("main", settings)})
    yield made
    made.close()


ADD = AddTemplate(name="debian", title="Debian 13", driver="main", source=str(TEMPLATE), cores=2, cores_max=4)


def test_a_template_is_added_checked_mended_and_removed(world: World, served: Served) -> None:
    context, root, alice = world.context, world.caller("root"), world.caller("alice")
    added = template_add(context, root, ADD)
    assert added.enabled
    assert added.usable
    assert (added.errors, added.memory_mib_max, added.cores_max) == (0, 2048, 4)
    assert [each.severity for each in added.findings] == ["ok"] * len(added.findings) != []
    (seen,) = template_list(context, alice, ListTemplates(usable=True))
    assert (seen.title, seen.source, seen.findings, seen.usable) == ("Debian 13", "", [], True)

    served.fake.machines[TEMPLATE].config["acpi"] = "0"
    checked = template_check(context, root, OneTemplate(template="debian"))
    assert (checked.enabled, checked.errors) == (False, 1)
    assert template_list(context, alice, ListTemplates()) == []
    with pytest.raises(NoSuchThing):
        template_show(context, alice, OneTemplate(template="debian"))
    with pytest.raises(Refused, match="ACPI is off"):
        template_update(context, root, UpdateTemplate(template="debian", enabled=True))

    del served.fake.machines[TEMPLATE].config["acpi"]
    assert template_check(context, root, OneTemplate(template="debian")).errors == 0
    assert template_update(context, root, UpdateTemplate(template="debian", enabled=True, memory_mib_max=8192)).usable
    moved = template_update(context, root, UpdateTemplate(template="debian", options={"full": "1"}))
    assert (moved.checked_at, moved.findings, moved.options) == (None, [], {"full": "1"})

    row = template_show(context, root, OneTemplate(template="debian"))
    world.add_environment("alice", "work", world.add_template("other"), EnvironmentState.READY, template_id=row.id)
    with pytest.raises(Refused, match="1 environments were made"):
        template_remove(context, root, OneTemplate(template="debian"))
    template_remove(context, root, OneTemplate(template="other"))
    assert [view.name for view in template_list(context, root, ListTemplates())] == ["debian"]


def test_a_template_with_an_error_is_added_switched_off_and_a_hypervisor_that_is_away_is_an_error(
    world: World, served: Served
) -> None:
    missing = template_add(world.context, world.caller("root"), ADD.model_copy(update={"source": "9999"}))
    assert (missing.enabled, missing.errors) == (False, 1)
    served.close()
    away = template_add(world.context, world.caller("root"), ADD.model_copy(update={"name": "later"}))
    assert (away.enabled, away.errors) == (False, 1)
    assert "no node can be reached" in away.findings[0].message
    unchecked = template_add(
        world.context, world.caller("root"), ADD.model_copy(update={"name": "blind", "check": False})
    )
    assert (unchecked.enabled, unchecked.checked_at) == (True, None)


def test_templates_of_groups_are_for_their_members(world: World) -> None:
    with world.database.write() as session:
        group = Group(id=world.context.new_id(), name="staff", created_at=0.0)
        session.add(group)
        session.flush()
        session.add(Membership(user_id=world.caller("bob").user_id, group_id=group.id))
    template_add(world.context, world.caller("root"), ADD.model_copy(update={"groups": ["staff"]}))
    assert template_list(world.context, world.caller("alice"), ListTemplates()) == []
    assert [view.usable for view in template_list(world.context, world.caller("bob"), ListTemplates())] == [True]
    (seen,) = template_list(world.context, world.caller("ops"), ListTemplates())
    assert seen.groups == ["staff"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "Not A Name"),
        ("driver", "nowhere"),
        ("cores_max", 1),
        ("directories", ["/"]),
        ("directories", ["home"]),
        ("directories", ["/home/../etc"]),
        ("directories", ["/proc/x"]),
        ("directories", []),
        ("excludes", [""]),
        ("login_user", "root"),
        ("login_user", "x; reboot"),
        ("options", {"Bad Key": "1"}),
        ("options", {"node": "a\nb"}),
    ],
)
def test_each_wrong_field_is_named(world: World, served: Served, field: str, value: object) -> None:
    with pytest.raises(Invalid) as invalid:
        template_add(world.context, world.caller("root"), ADD.model_copy(update={field: value}))
    assert list(invalid.value.details) == [field]
    assert served.fake.asked == [], "the hypervisor is not asked about what cannot be"


def test_only_admins_change_templates_and_nobody_else_makes_the_console_ask(world: World, served: Served) -> None:
    template_add(world.context, world.caller("root"), ADD.model_copy(update={"check": False}))
    for caller in (
        world.caller("alice"),
        world.caller("ops"),
        world.caller("root", scopes=frozenset({"template:read"})),
    ):
        with pytest.raises(Forbidden):
            template_add(world.context, caller, ADD.model_copy(update={"name": "mine"}))
        with pytest.raises(Forbidden):
            template_check(world.context, caller, OneTemplate(template="debian"))
        with pytest.raises(Forbidden):
            template_update(world.context, caller, UpdateTemplate(template="debian", title="x"))
        with pytest.raises(Forbidden):
            template_remove(world.context, caller, OneTemplate(template="debian"))
    assert served.fake.asked == []
