"""Attach and detach on a model of LIO: what is made, what is refused, and what a crash at each step leaves to repair."""

from dataclasses import replace

import pytest

from blockdev.errors import Refused
from blockdev.lio import plan
from blockdev.lio.found import Device, Found, Group, Target
from blockdev.lio.setup import attach, detach
from blockdev.lio.wanted import Chap, Portal, Wanted, check
from tests.blockdev.lio.model import GROUP_DEFAULTS, Crash, Model

IQN = "iqn.2025-01.internal.bucketworks:vm1"
HOST = "iqn.2024-01.org.example:host1"
OTHER = "iqn.2024-01.org.example:host2"

OPEN = Wanted(
    volume="vm1",
    serial="0b9c7a3e-0000-4000-8000-000000000001",
    size_bytes=64 << 20,
    sector_bytes=512,
    iqn=IQN,
    lun=0,
    portals=(Portal("127.0.0.1", 3260), Portal("::1", 3261)),
)
CLOSED = replace(OPEN, initiators=(HOST, OTHER), chap=Chap("joe", "secretsecret", "target", "secretsecret2"), lun=3)
SECOND = replace(OPEN, volume="vm2", serial="0b9c7a3e-0000-4000-8000-000000000002", lun=1)
WANTED = pytest.mark.parametrize("wanted", [OPEN, CLOSED], ids=["anybody", "acls and chap"])


def attached(*wanted: Wanted) -> Model:
    model = Model()
    for item in wanted:
        attach(item, model, replace=False)
    model.steps.clear()
    return model


def remove(model: Model, volume: str, *, force: bool = False, served: bool = True) -> int:
    return detach(volume, model, iqn=IQN, force=force, served=served)


@WANTED
def test_attach_makes_everything_and_again_nothing(wanted: Wanted) -> None:
    model = Model()
    assert attach(wanted, model, replace=False) > 5
    device, group = model.device("vm1"), model.group(IQN)
    assert device.config == "bucketworks/vm1"
    assert device.serial == wanted.serial
    assert device.attributes["nl_reply_supported"] == "-1"
    assert device.attributes["hw_block_size"] == "512"
    assert group.enabled
    assert group.luns == {wanted.lun: "user_0/vm1"}
    assert set(group.portals) == set(wanted.portals)
    assert [acl.initiator for acl in group.acls] == list(wanted.initiators)
    assert all(acl.mapped == {wanted.lun: wanted.lun} and acl.chap == wanted.chap for acl in group.acls)
    assert group.attributes["generate_node_acls"] == ("0" if wanted.initiators else "1")
    assert "vm1" in model.saved
    before = model.found
    assert attach(wanted, model, replace=False) == 0
    assert model.found == before


def test_attach_opens_the_target_last_and_saves_after_that() -> None:
    model = Model()
    attach(CLOSED, model, replace=False)
    assert [type(step) for step in model.steps[-2:]] == [plan.Enable, plan.Save]


@WANTED
@pytest.mark.parametrize("half", [False, True], ids=["before", "half done"])
def test_attach_that_died_at_any_step_is_finished_by_the_next(wanted: Wanted, half: bool) -> None:
    complete = attached(wanted)
    count = len(plan.attach_steps(wanted, Found()))
    for fail_at in range(count):
        model = Model(fail_at=fail_at, half=half)
        with pytest.raises(Crash):
            attach(wanted, model, replace=False)
        model.fail_at = -1
        attach(wanted, model, replace=False)
        assert _shape(model) == _shape(complete), f"died at {model.steps[fail_at - 1]}"
        assert "vm1" in model.saved


@WANTED
@pytest.mark.parametrize("half", [False, True], ids=["before", "half done"])
def test_what_a_dead_attach_left_is_taken_away_by_detach(wanted: Wanted, half: bool) -> None:
    for fail_at in range(len(plan.attach_steps(wanted, Found()))):
        model = Model(fail_at=fail_at, half=half)
        with pytest.raises(Crash):
            attach(wanted, model, replace=False)
        model.fail_at = -1
        remove(model, "vm1")
        assert model.found == Found()
        assert model.saved == {}


@WANTED
@pytest.mark.parametrize("half", [False, True], ids=["before", "half done"])
def test_detach_that_died_at_any_step_is_finished_by_the_next(wanted: Wanted, half: bool) -> None:
    second = replace(wanted, volume="vm2", serial=SECOND.serial, lun=7)
    for volumes in ((wanted,), (wanted, second)):
        count = len(plan.detach_steps("vm1", attached(*volumes).found, force=False, served=False, iqn=IQN))
        for fail_at in range(count):
            model = attached(*volumes)
            model.fail_at, model.half = fail_at, half
            with pytest.raises(Crash):
                remove(model, "vm1", served=False)
            model.fail_at = -1
            remove(model, "vm1", served=False)
            assert _shape(model) == _shape(attached(*volumes[1:]))
            assert sorted(model.saved) == [item.volume for item in volumes[1:]]


def test_detach_that_died_is_undone_by_attach() -> None:
    for fail_at in range(len(plan.detach_steps("vm1", attached(CLOSED).found, force=False, served=False, iqn=IQN))):
        model = attached(CLOSED)
        model.fail_at = fail_at
        with pytest.raises(Crash):
            remove(model, "vm1", served=False)
        model.fail_at = -1
        attach(CLOSED, model, replace=False)
        assert _shape(model) == _shape(attached(CLOSED))


def _shape(model: Model) -> object:
    """The whole of it, without where the kernel put devices."""
    devices = sorted(
        (item.name, item.serial, sorted(item.attributes.items()), item.blocked) for item in model.found.devices
    )
    targets = [
        (
            target.iqn,
            group.enabled,
            sorted(group.attributes.items()),
            group.chap,
            sorted((lun, str(leads).rpartition("/")[2]) for lun, leads in group.luns.items()),
            sorted(group.portals),
            sorted((acl.initiator, acl.chap, sorted(acl.mapped.items())) for acl in group.acls),
        )
        for target in model.found.targets
        for group in target.groups
    ]
    return devices, targets


def test_two_volumes_share_a_target_and_go_one_by_one() -> None:
    model = attached(OPEN, SECOND)
    assert sorted(model.group(IQN).luns) == [0, 1]
    remove(model, "vm1")
    assert model.group(IQN).luns == {1: "user_1/vm2"}
    assert model.group(IQN).enabled
    remove(model, "vm2")
    assert model.found == Found()


def test_a_new_size_is_brought_along_without_being_asked_for() -> None:
    model = attached(OPEN)
    assert attach(replace(OPEN, size_bytes=96 << 20), model, replace=False) == 2
    assert model.device("vm1").size_bytes == 96 << 20


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"portals": (Portal("127.0.0.1", 3260),)}, "listens on [::1]:3261, too"),
        ({"initiators": (HOST,)}, f"{OTHER} may log in, too"),
        ({"initiators": ()}, f"{HOST} may log in, too"),
        ({"chap": Chap("joe", "anothersecret")}, f"CHAP for {HOST} is not as in the settings"),
        ({"chap": Chap()}, "authentication is 1, not 0"),
        ({"serial": SECOND.serial}, "its serial number is"),
        ({"sector_bytes": 4096}, "hw_block_size is 512, not 4096"),
        ({"lun": 4}, "is LUN 3 of target"),
        ({"iqn": f"{IQN}-new"}, "is LUN 3 of target"),
    ],
)
def test_a_difference_is_reported_and_mended_only_on_demand(change: dict[str, object], told: str) -> None:
    model = attached(CLOSED)
    before = model.found
    wanted = replace(CLOSED, **change)  # type: ignore[arg-type]
    with pytest.raises(Refused, match="--replace") as refused:
        attach(wanted, model, replace=False)
    assert told in str(refused.value)
    assert model.found == before
    assert attach(wanted, model, replace=True) > 0
    assert not plan.differences(wanted, model.found)
    assert _shape(model) == _shape(attached(wanted))
    assert attach(wanted, model, replace=False) == 0


def test_discovery_is_the_hosts_and_changed_only_where_the_settings_speak_of_it() -> None:
    model = attached(OPEN)
    theirs, ours = Chap("them", "secretsecret3"), Chap("us", "secretsecret4", "target", "secretsecret5")
    attach(replace(OPEN, discovery=ours), model, replace=False)
    assert model.found.discovery == ours
    attach(OPEN, model, replace=False)
    assert model.found.discovery == ours
    model.perform(plan.SetDiscovery(theirs))
    with pytest.raises(Refused, match="for all targets of this host"):
        attach(replace(OPEN, discovery=ours), model, replace=False)
    attach(replace(OPEN, discovery=ours), model, replace=True)
    assert model.found.discovery == ours
    remove(model, "vm1")
    assert model.found == Found(discovery=ours)


def test_nothing_is_made_anew_under_a_session() -> None:
    model = attached(CLOSED)
    model.log_in(IQN, HOST)
    with pytest.raises(Refused, match=HOST):
        attach(replace(CLOSED, sector_bytes=4096), model, replace=True)
    assert attach(replace(CLOSED, portals=(Portal("127.0.0.1", 3260),)), model, replace=True) == 2


def test_a_device_that_would_wait_for_a_handler_is_cured_first() -> None:
    """Every other change of it could hang."""
    model = attached(OPEN)
    model.perform(plan.SetDevice("vm1", "nl_reply_supported", "0"))
    model.steps.clear()
    attach(OPEN, model, replace=False)
    assert model.steps[0] == plan.SetDevice("vm1", "nl_reply_supported", "-1")
    assert [type(step) for step in model.steps] == [plan.SetDevice, plan.Save]


def test_detach_refuses_while_somebody_is_logged_in_and_names_him() -> None:
    model = attached(OPEN)
    model.log_in(IQN, HOST)
    with pytest.raises(Refused, match=HOST):
        remove(model, "vm1")
    assert not model.steps
    remove(model, "vm1", force=True)
    assert model.found == Found()


def test_detach_of_what_is_not_there_changes_nothing() -> None:
    assert remove(Model(), "vm1") == 0


def test_detach_ends_what_waits_where_no_handler_lives() -> None:
    model = attached(OPEN)
    remove(model, "vm1", served=False)
    assert model.steps[0] == plan.EndCommands("vm1")
    model = attached(OPEN)
    remove(model, "vm1", served=True)
    assert plan.EndCommands("vm1") not in model.steps
    model = attached(OPEN)
    model.handler = True  # a daemon whose control socket is elsewhere
    remove(model, "vm1", served=False)
    assert plan.EndCommands("vm1") not in model.steps


# --- others' things --------------------------------------------------------------------------------------------------


def foreign(config: str = "rbd/pool/vm1", name: str = "vm1", luns: dict[int, str | None] | None = None) -> Model:
    device = Device("user_0", name, True, "x", {"dev_config": config, "dev_size": "1"})
    group = Group(1, True, GROUP_DEFAULTS | {"authentication": "0"}, luns=luns or {})
    return Model(Found(devices=(device,), targets=(Target(IQN, (group,)),)))


def test_a_device_of_somebody_else_is_left_alone() -> None:
    model = foreign()
    with pytest.raises(Refused, match="rbd/pool/vm1"):
        attach(OPEN, model, replace=True)
    with pytest.raises(Refused, match="rbd/pool/vm1"):
        remove(model, "vm1", force=True)
    assert not model.steps


def test_a_target_of_somebody_else_is_left_alone() -> None:
    model = foreign(name="disk", luns={5: "user_0/disk"})
    with pytest.raises(Refused, match="somebody else"):
        attach(OPEN, model, replace=True)
    assert remove(model, "vm1", force=True) == 0
    assert model.found.target(IQN) is not None


def test_a_lun_that_another_volume_has_is_refused() -> None:
    with pytest.raises(Refused, match=r"LUN 0 .* is volume vm1"):
        attach(replace(SECOND, lun=0), attached(OPEN), replace=True)


def test_another_volumes_device_with_our_prefix_is_not_ours_to_take() -> None:
    model = foreign(config="bucketworks/other")
    with pytest.raises(Refused, match="bucketworks/other"):
        attach(OPEN, model, replace=True)
    with pytest.raises(Refused, match="bucketworks/other"):
        remove(model, "vm1", force=True)


# --- what LIO does not take ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"iqn": "iqn.2024-01.test:vm1"},
        {"iqn": "iqn.2024-01.org.example:with_underscore"},
        {"iqn": "naa.6001405000000001"},
        {"initiators": ("naa.6001405000000001",)},
        {"portals": ()},
        {"chap": Chap("joe", "s" * 256)},
        {"chap": Chap("NULL", "secretsecret")},
    ],
)
def test_what_lio_does_not_take_is_refused_first(change: dict[str, object]) -> None:
    with pytest.raises(Refused):
        check(replace(OPEN, **change))  # type: ignore[arg-type]


def test_secrets_are_in_no_message() -> None:
    texts = [repr(CLOSED), *(f"{step} {step!r}" for step in plan.attach_steps(CLOSED, Found()))]
    assert not [text for text in texts if "secretsecret" in text]
