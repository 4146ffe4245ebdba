"""The driver against the fake cluster over HTTP: each request is checked against Proxmox VE's own API description."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from envctl.drivers.build import build_drivers
from envctl.drivers.port import DONE, CloneSpec, EnvDriver, MachineRef, MachineSpec, TaskRef
from envctl.drivers.pve import words
from envctl.drivers.pve.driver import PveDriver
from envctl.drivers.pve.marks import smbios_of
from envctl.errors import DriverBusy, DriverFailed
from envctl.fake_pve.cluster import POOL, TEMPLATE, TOKEN, Durations, FakePve, small_cluster
from envctl.fake_pve.server import Served, serve, start, write_token
from envctl.identifiers import new_id, tag_of
from s3core.settings import ConfigError, EnvctlDriverSettings, EnvctlSettings

ENVIRONMENT = new_id(1_700_000_000.0, bytes(10))
OTHER = new_id(1_700_000_001.0, bytes(10))
T = TypeVar("T")
UUID = "0b4f4f9e-29cf-4c7b-8f0c-6f1c6a1d9a11"
SEED = "https://console.example/seed/abcdefghijklmnopqrstuvwxyz0123456789/"


def spec(vmid: int = 90_000, environment: str = ENVIRONMENT, generation: int = 1, **options: str) -> CloneSpec:
    return CloneSpec(
        environment_id=environment,
        generation=generation,
        name="alice-work",
        tag=tag_of(environment),
        source=str(TEMPLATE),
        options=options,
        vmid=vmid,
        description=f"Environment of alice.\nenvctl:{environment}:{generation}",
    )


MACHINE = MachineSpec(
    cores=4,
    memory_mib=4096,
    disk_gib=20,
    uuid=UUID,
    seed_url=SEED,
    tag=tag_of(ENVIRONMENT),
    description=f"Environment of alice.\nenvctl:{ENVIRONMENT}:1",
)


class Hands:
    """The fake cluster's clock: it stands still until a test moves it, so no test depends on how fast the machine is."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def __call__(self) -> float:
        return self.at


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def fake(hands: Hands) -> FakePve:
    return small_cluster(now=hands)


@pytest.fixture
def served(fake: FakePve) -> Iterator[Served]:
    with serve(fake) as running:
        yield running
    # Whatever a test did: our client asked for nothing that Proxmox VE does not have, and the fake answered as it would.
    assert fake.violations == []


@pytest.fixture
def settings(served: Served, tmp_path: Path) -> EnvctlDriverSettings:
    return EnvctlDriverSettings(url=served.url, token=write_token(tmp_path / "token"), pool=POOL)


@pytest.fixture
def driver(settings: EnvctlDriverSettings) -> PveDriver:
    return PveDriver("pve", settings)


def run(driver: EnvDriver, work: Callable[[], Awaitable[T]]) -> T:
    async def whole() -> T:
        try:
            return await work()
        finally:
            await driver.close()

    return asyncio.run(whole())


async def ended(driver: EnvDriver, task: TaskRef, seconds: float = 20.0) -> str:
    """Wait for the task; "" where it succeeded, else what it said."""
    end = time.monotonic() + seconds
    while (status := await driver.task(task)).state == "running":
        assert time.monotonic() < end, f"{task} still runs"
        await asyncio.sleep(0.01)
    return "" if status.state == "ok" else f"{status.state}: {status.message}"


async def made(driver: PveDriver, what: CloneSpec | None = None) -> MachineRef:
    what = what or spec()
    assert await ended(driver, await driver.clone(what)) == ""
    (found,) = await driver.find(what.tag)
    return found.machine


def test_a_machine_is_cloned_configured_started_shut_down_and_destroyed(driver: PveDriver, fake: FakePve) -> None:
    async def work() -> None:
        task = await driver.clone(spec())
        assert task.startswith("UPID:pve1:")
        assert await ended(driver, task) == ""
        (found,) = await driver.find(tag_of(ENVIRONMENT))
        assert (found.vmid, found.running, found.name) == (90_000, False, "alice-work")
        machine = found.machine
        assert await ended(driver, await driver.configure(machine, MACHINE)) == ""
        config = fake.machines[90_000].config
        assert config["cores"] == "4"
        assert config["memory"] == "4096"
        assert "size=20G" in config["scsi0"]
        assert smbios_of(config["smbios1"]) == (UUID, f"ds=nocloud;dsmode=net;s={SEED}")
        assert config["tags"] == tag_of(ENVIRONMENT)
        assert fake.machines[90_000].pool == POOL
        before = len(fake.asked)
        assert await driver.configure(machine, MACHINE) == DONE
        assert [each.method for each in fake.asked[before:]] == ["GET"], "repeating it changes nothing"
        assert await ended(driver, await driver.start(machine)) == ""
        assert await driver.start(machine) == DONE
        status = await driver.status(machine)
        assert status.running
        assert status.address == "192.0.2.1"
        assert status.memory_bytes == 4096 << 20
        (listed,) = await driver.inventory()
        assert (listed.tag, listed.running, listed.cores, listed.memory_mib, listed.disk_gib) == (
            found.tag,
            True,
            4,
            4096,
            20,
        )
        with pytest.raises(DriverFailed, match="is running"):
            await driver.destroy(machine)
        assert await ended(driver, await driver.shutdown(machine, 30)) == ""
        assert await driver.stop(machine) == DONE
        assert await ended(driver, await driver.destroy(machine)) == ""
        assert await driver.destroy(machine) == DONE
        assert not (await driver.status(machine)).exists
        assert await driver.inventory() == []
        assert 90_000 not in fake.machines

    run(driver, work)


@pytest.mark.parametrize("kind", ["after", "drop"])
def test_a_clone_whose_answer_was_lost_is_found_and_not_made_twice(
    driver: PveDriver, fake: FakePve, hands: Hands, kind: str
) -> None:
    """The pool comes last: while it is under way, a token with rights on the pool cannot even see the new machine."""
    fake.durations = Durations(clone=60)
    fake.fault("/clone$", kind=kind)

    async def work() -> None:
        with pytest.raises(DriverBusy) as busy:
            await driver.clone(spec())
        assert not busy.value.nothing_done
        assert await driver.find(tag_of(ENVIRONMENT)) == []
        task = await driver.clone(spec())
        assert task.startswith("UPID:")
        hands.at += 40
        assert (await driver.task(task)).state == "running"
        assert await driver.clone(spec()) == task
        hands.at += 40
        assert await ended(driver, task) == ""
        assert await driver.clone(spec()) == DONE

    run(driver, work)
    assert sum(each.kind == "qmclone" for each in fake.tasks.values()) == 1
    assert [machine.vmid for machine in fake.machines.values() if machine.pool] == [90_000]


def test_a_clone_that_goes_on_after_a_596_meets_its_repetition(driver: PveDriver, fake: FakePve) -> None:
    """The first request is still on its way to the node when the second one comes: one machine, whoever is first."""
    fake.fault("/clone$", kind="later", delay_s=0.2)

    async def work() -> None:
        with pytest.raises(DriverBusy, match="596"):
            await driver.clone(spec())
        task = await driver.clone(spec())
        assert await ended(driver, task) == ""
        while sum(each.path.endswith("/clone") for each in fake.asked) < 2:
            await asyncio.sleep(0.01)
        (found,) = await driver.find(tag_of(ENVIRONMENT))
        assert found.vmid == 90_000

    run(driver, work)
    fake.wait_idle()
    assert sum(machine.pool == POOL for machine in fake.machines.values()) == 1


def test_a_clone_that_meets_another_of_its_number_says_look(driver: PveDriver, fake: FakePve) -> None:
    """Both requests passed the first check before either had made the configuration."""
    fake.fault("qmclone/9000", kind="task", message="unable to create VM 90000: config file already exists")
    fake.fault("qmclone/9000", kind="task", message="clone failed: out of space")

    async def work() -> None:
        assert (await driver.task(await driver.clone(spec()))).state == "unknown"
        failed = await driver.task(await driver.clone(spec()))
        assert (failed.state, failed.retryable) == ("failed", False)

    run(driver, work)


def test_a_number_that_is_somebody_elses_is_said_to_exist(driver: PveDriver, fake: FakePve) -> None:
    fake.add_machine(90_000, "foreign")

    async def work() -> None:
        for what in (spec(), spec(generation=2)):
            with pytest.raises(DriverFailed) as failed:
                await driver.clone(what)
            assert words.reason(failed.value) == "exists"
        await made(driver, spec(90_001))
        with pytest.raises(DriverFailed) as failed:
            await driver.clone(spec(90_001, generation=2))
        assert words.reason(failed.value) == "exists", "an older generation's machine is not the one asked for"

    run(driver, work)


def test_a_machine_is_found_by_its_description_before_it_has_a_tag_and_a_template_tag_is_not_inherited(
    driver: PveDriver, fake: FakePve
) -> None:
    fake.machines[TEMPLATE].config |= {
        "tags": f"linux;{tag_of(OTHER)}",
        "protection": "1",
        "onboot": "1",
        "balloon": "8192",
        "vcpus": "1",
    }

    async def work() -> None:
        assert await ended(driver, await driver.clone(spec())) == ""
        assert await driver.inventory() != []
        fake.machines[90_000].config["tags"] = "linux"
        (found,) = await driver.find(tag_of(ENVIRONMENT))
        assert await ended(driver, await driver.configure(found.machine, MACHINE)) == ""
        config = fake.machines[90_000].config
        assert config["tags"] == f"{tag_of(ENVIRONMENT)};linux"
        assert (config["protection"], config["onboot"], config["balloon"]) == (
            "0",
            "0",
            "4096",
        )
        assert "vcpus" not in config
        assert await driver.find(tag_of(OTHER)) == []

    run(driver, work)


def test_locks_and_late_nodes_are_busy_and_what_cannot_be_is_failed(driver: PveDriver, fake: FakePve) -> None:
    async def work() -> None:
        machine = await made(driver)
        fake.machines[90_000].config["lock"] = "backup"
        with pytest.raises(DriverBusy, match=r"VM is locked \(backup\)") as busy:
            await driver.start(machine)
        assert busy.value.nothing_done
        with pytest.raises(DriverBusy):
            await driver.configure(machine, MACHINE)
        del fake.machines[90_000].config["lock"]
        fake.fault("/status/start$", status=595, message="No route to host")
        with pytest.raises(DriverBusy) as busy:
            await driver.start(machine)
        assert busy.value.nothing_done
        fake.fault("/status/start$", kind="after", status=596)
        with pytest.raises(DriverBusy) as busy:
            await driver.start(machine)
        assert not busy.value.nothing_done
        assert await driver.start(machine) == DONE or (await driver.status(machine)).running
        fake.fault("/status/current$", status=500, message="got no worker upid - start worker failed")
        with pytest.raises(DriverBusy):
            await driver.start(machine)
        with pytest.raises(DriverFailed, match="shrinking disks is not supported"):
            await driver._client.call(
                "PUT",
                "/nodes/{node}/qemu/{vmid}/resize",
                {"node": "pve1", "vmid": 90_000, "disk": "scsi0", "size": "1G"},
                timeout_s=5,
            )

    run(driver, work)


def test_parallel_clones_beyond_the_lock_fail_so_that_a_retry_helps(
    driver: PveDriver, fake: FakePve, hands: Hands
) -> None:
    fake.durations = Durations(clone=60)
    fake.clones_at_once = 1

    async def work() -> None:
        first = await driver.clone(spec(90_000))
        second = await driver.clone(spec(90_001, OTHER))
        status = await driver.task(second)
        assert status.state == "failed"
        assert status.retryable
        assert "got timeout" in status.message
        hands.at += 61
        assert await ended(driver, first) == ""
        again = await driver.clone(spec(90_001, OTHER))
        hands.at += 61
        assert await ended(driver, again) == ""

    run(driver, work)


def test_a_shutdown_that_the_guest_ignores_fails_and_a_stop_overrules_it(
    driver: PveDriver, fake: FakePve, hands: Hands
) -> None:
    fake.durations = Durations(shutdown=1e9)

    async def work() -> None:
        machine = await made(driver)
        await ended(driver, await driver.start(machine))
        ignored = await driver.shutdown(machine, 180)
        hands.at += 181
        assert await ended(driver, ignored) == "failed: VM quit/powerdown failed - got timeout"
        assert (await driver.status(machine)).running, "it is not forced"
        waiting = await driver.shutdown(machine, 3600)
        assert await ended(driver, await driver.stop(machine)) == ""
        assert (await driver.task(waiting)).state == "failed"
        assert not (await driver.status(machine)).running

    run(driver, work)


def test_a_node_that_is_away_never_looks_empty(driver: PveDriver, fake: FakePve) -> None:
    async def work() -> None:
        machine = await made(driver, spec(target="pve2"))
        assert machine == "pve2/90000"
        await ended(driver, await driver.configure(machine, MACHINE))
        await made(driver, spec(90_001, OTHER, target="pve1"))
        fake.crash_node("pve2")
        with pytest.raises(DriverBusy, match="pve2 is offline"):
            await driver.inventory()
        (found,) = await driver.find(tag_of(ENVIRONMENT))
        assert found.locked == "node pve2 is offline"
        assert not found.running
        assert len(await driver.find(tag_of(OTHER))) == 1, "others go on"
        with pytest.raises(DriverBusy):
            await driver.status(machine)
        with pytest.raises(DriverBusy):
            await driver.destroy(machine)
        fake.crash_node("pve3")
        with pytest.raises(DriverBusy, match="1 of 3 nodes"):
            await driver.find(tag_of(new_id(5.0, bytes(10))))

    run(driver, work)


def test_a_clone_that_broke_off_with_its_node_is_taken_and_said_so(driver: PveDriver, fake: FakePve) -> None:
    fake.durations = Durations(clone=3600)

    async def work() -> None:
        task = await driver.clone(spec())
        fake.crash_node("pve1")
        fake.nodes["pve1"].online = True
        assert (await driver.task(task)).state == "unknown"
        with pytest.raises(DriverFailed) as failed:
            await driver.clone(spec())
        assert words.reason(failed.value) == "exists"
        with pytest.raises(DriverBusy, match="may not see"):
            await driver.destroy(MachineRef("pve1/90000"))

    run(driver, work)


def test_a_machine_that_was_moved_is_found_where_it_is(driver: PveDriver, fake: FakePve) -> None:
    async def work() -> None:
        machine = await made(driver)
        fake.machines[90_000].node = "pve3"
        assert (await driver.status(machine)).exists
        (found,) = await driver.find(tag_of(ENVIRONMENT))
        assert found.machine == "pve3/90000"
        assert await ended(driver, await driver.destroy(machine)) == ""
        assert 90_000 not in fake.machines

    run(driver, work)


def test_what_carries_no_mark_is_never_destroyed(driver: PveDriver, fake: FakePve) -> None:
    fake.add_machine(90_005, "hand-made", pool=POOL)

    async def work() -> None:
        for vmid in (TEMPLATE, 90_005):
            with pytest.raises(DriverFailed, match="carries no mark"):
                await driver.destroy(MachineRef(f"pve1/{vmid}"))
        with pytest.raises(DriverBusy, match="may not see"):
            await driver.destroy(MachineRef("pve1/100"))

    run(driver, work)
    assert {TEMPLATE, 90_005, 100} <= set(fake.machines)


def test_a_copy_that_an_admin_made_by_hand_is_left_alone(driver: PveDriver, fake: FakePve) -> None:
    """Proxmox VE copies tags and description; the number and the pool say that it is not the console's."""
    fake.access.grant(TOKEN, "/vms", ("VM.Audit", "VM.Allocate"))

    async def work() -> None:
        machine = await made(driver)
        await ended(driver, await driver.configure(machine, MACHINE))
        copied = {key: value for key, value in fake.machines[90_000].config.items() if key != "name"}
        fake.add_machine(500, "copy-of-alice-work", node="pve2").config |= copied
        assert [found.vmid for found in await driver.find(tag_of(ENVIRONMENT))] == [90_000]
        assert [found.vmid for found in await driver.inventory()] == [90_000]
        with pytest.raises(DriverFailed, match="no machine of ours"):
            await driver.destroy(MachineRef("pve2/500"))
        fake.machines[500].pool = POOL
        assert {found.vmid for found in await driver.inventory()} == {500, 90_000}, "what is in the pool is ours"

    run(driver, work)
    assert 500 in fake.machines


def test_old_statistics_do_not_decide_whether_a_machine_runs(driver: PveDriver, fake: FakePve) -> None:
    fake.durations = Durations(statistics=3600)

    async def work() -> None:
        machine = await made(driver)
        await driver.inventory()
        await ended(driver, await driver.start(machine))
        (found,) = await driver.find(tag_of(ENVIRONMENT))
        assert found.running
        assert found.uuid

    run(driver, work)


def test_clones_of_a_shared_template_spread_and_those_of_a_local_one_stay(driver: PveDriver, fake: FakePve) -> None:
    fake.add_template(9001, "local", node="pve2", storage="local-lvm")
    fake.access.grant(TOKEN, "/vms/9001", ("VM.Audit", "VM.Clone"))
    fake.access.grant(TOKEN, "/storage/local-lvm", ("Datastore.AllocateSpace", "Datastore.Audit"))

    async def work() -> None:
        nodes = set()
        for number in range(3):
            environment = new_id(float(number), bytes(10))
            nodes.add((await made(driver, spec(90_000 + number, environment))).partition("/")[0])
        assert nodes == {"pve1", "pve2", "pve3"}
        local = replace(spec(90_010, OTHER), source="9001")
        assert (await made(driver, local)).startswith("pve2/")
        full = await made(driver, spec(90_011, new_id(9.0, bytes(10)), full="1", storage="ceph"))
        assert fake.machines[90_011].config["scsi0"].startswith("ceph:vm-90011-")
        assert full

    run(driver, work)


def test_each_missing_right_and_each_right_too_many_is_named(driver: PveDriver, fake: FakePve) -> None:
    async def found() -> list[str]:
        return [f"{each.severity}: {each.message}" for each in await driver.check_access()]

    async def work() -> None:
        first = await found()
        assert not [line for line in first if line.startswith("error")], first
        assert "ok: pve: the token has the rights it needs, and no other" in first
        fake.access.revoke(TOKEN, f"/pool/{POOL}", "VM.PowerMgmt", "VM.GuestAgent.Audit")
        fake.access.revoke(TOKEN, "/sdn/zones/localnetwork/vmbr0")
        fake.access.grant(TOKEN, "/", ("Sys.Modify", "Permissions.Modify"))
        fake.access.grant(TOKEN, "/vms/100", ("VM.Console",))
        second = await found()
        assert f"error: right VM.PowerMgmt is missing at /pool/{POOL}: start, shut down and stop" in second
        assert any(line.startswith("warning: right VM.GuestAgent.Audit is missing") for line in second)
        assert any(
            line.startswith("error: right SDN.Use is missing at /sdn/zones/localnetwork/vmbr0") for line in second
        )
        assert "error: more rights than needed at /: Permissions.Modify, Sys.Modify" in second
        fake.pools.clear()
        assert any("pool 'envctl' does not exist" in line for line in await found())
        fake.add_pool(POOL)
        assert "warning: more rights than needed at /vms/100: VM.Console" in second
        with pytest.raises(
            DriverFailed, match=r"403 Permission check failed \(/sdn/zones/localnetwork/vmbr0, SDN.Use\)"
        ) as denied:
            await driver.clone(spec())
        assert words.reason(denied.value) == "denied"

    run(driver, work)


def test_a_network_of_a_zone_of_its_own_is_looked_for_where_the_acl_names_it(driver: PveDriver, fake: FakePve) -> None:
    fake.machines[TEMPLATE].config["net0"] = "virtio=BC:24:11:00:00:01,bridge=tenants"
    fake.access.revoke(TOKEN, "/sdn/zones/localnetwork/vmbr0")
    fake.access.grant(TOKEN, "/sdn/zones/campus/tenants", ("SDN.Use",))

    async def work() -> None:
        assert (await driver.check_access())[-1].severity == "ok"
        fake.access.revoke(TOKEN, "/sdn/zones/campus/tenants")
        missing = [each.message for each in await driver.check_access() if each.severity == "error"]
        assert missing == [
            "right SDN.Use is missing at /sdn/zones/localnetwork/tenants: attach the clone's network card"
        ]

    run(driver, work)


def test_every_right_in_the_table_is_really_needed(driver: PveDriver, fake: FakePve) -> None:
    """Take each right alone away: the life of a machine must fail, or the right would be too many."""
    from envctl.drivers.pve import rights

    async def life(vmid: int) -> None:
        environment = new_id(float(vmid), bytes(10))
        machine = await made(driver, spec(vmid, environment))
        wanted = replace(MACHINE, tag=tag_of(environment), description=f"x\nenvctl:{environment}:1")
        assert await ended(driver, await driver.configure(machine, wanted)) == ""
        assert await ended(driver, await driver.start(machine)) == ""
        assert (await driver.status(machine)).address
        assert "error" not in {finding.severity for finding in await driver.check_access()}
        await driver.console(machine, "vnc")
        await driver.console(machine, "terminal")
        assert "ceph" in {name for node in await driver.headroom() for name, _, _ in node.storages}
        assert {found.tag for found in await driver.inventory()} >= {tag_of(environment)}
        assert await ended(driver, await driver.stop(machine)) == ""
        assert await ended(driver, await driver.destroy(machine)) == ""

    async def work() -> None:
        await life(90_100)
        table = list(rights.needed(POOL, [TEMPLATE], ["ceph"], ["/sdn/zones/localnetwork/vmbr0"]))
        survivors = []
        vmid = 90_101
        for each in table:
            for right in each.rights:
                fake.access.revoke(TOKEN, each.path, right)
                try:
                    await life(vmid)
                    survivors.append(right)
                except (DriverFailed, AssertionError, ValueError):
                    pass
                finally:
                    fake.access.grant(TOKEN, each.path, [right])
                vmid += 1
        assert survivors == []

    run(driver, work)


def test_the_token_is_in_no_message_and_a_wrong_one_is_said_plainly(
    settings: EnvctlDriverSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    path = tmp_path / "wrong"
    path.touch(mode=0o600)
    path.write_text("envctl@pve!console=00000000-dead-beef-0000-000000000000\n")
    driver = PveDriver("pve", settings.model_copy(update={"token": f"file:{path}"}))

    async def work() -> None:
        with pytest.raises(DriverFailed) as failed:
            await driver.inventory()
        assert words.reason(failed.value) == "token"
        assert "401" in str(failed.value)
        assert "dead-beef" not in str(failed.value)
        assert "dead-beef" not in caplog.text
        assert "dead-beef" not in repr(driver._client.token())
        path.chmod(0o644)
        with pytest.raises(DriverFailed, match="chmod 600"):
            await driver.inventory()
        path.write_text("nonsense-dead-beef\n")
        path.chmod(0o600)
        with pytest.raises(DriverFailed) as failed:
            await driver.inventory()
        assert "dead-beef" not in str(failed.value)

    run(driver, work)


def test_another_node_answers_when_one_is_away_and_a_write_is_never_sent_twice(
    fake: FakePve, served: Served, settings: EnvctlDriverSettings
) -> None:
    second = start(fake, via="pve2")
    try:
        both = PveDriver("pve", settings.model_copy(update={"url": f"{served.url},{second.url}"}))

        async def work() -> None:
            machine = await made(both)
            fake.fault("/cluster/resources$", kind="drop")
            assert len(await both.inventory()) == 1, "a read goes to the next node"
            fake.fault("/status/start$", kind="drop")
            before = sum(each.path.endswith("/status/start") for each in fake.asked)
            with pytest.raises(DriverBusy):
                await both.start(machine)
            assert sum(each.path.endswith("/status/start") for each in fake.asked) == before + 1
            served.close()
            assert (await both.status(machine)).running
            assert {each.via for each in fake.asked[-2:]} == {"pve2"}

        run(both, work)
    finally:
        second.close()


def test_nobody_there_is_busy_with_nothing_done(settings: EnvctlDriverSettings, served: Served) -> None:
    served.close()
    driver = PveDriver("pve", settings)

    async def work() -> None:
        with pytest.raises(DriverBusy, match="no node can be reached") as busy:
            await driver.clone(spec())
        assert busy.value.nothing_done
        findings = await driver.check_access()
        assert findings[-1].severity == "error"
        assert "no node can be reached" in findings[-1].message

    run(driver, work)


def test_two_event_loops_use_one_driver(driver: PveDriver, fake: FakePve) -> None:
    errors: list[BaseException] = []

    def one() -> None:
        try:
            for _ in range(3):
                run(driver, driver.inventory)
        except (DriverFailed, RuntimeError, OSError) as error:
            errors.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_template_is_judged(driver: PveDriver, fake: FakePve) -> None:
    async def said(options: dict[str, str]) -> list[str]:
        return [f"{each.severity}: {each.message}" for each in await driver.check_template(str(TEMPLATE), options)]

    async def work() -> None:
        good = await said({})
        assert not [line for line in good if not line.startswith("ok")], good
        config = fake.machines[TEMPLATE].config
        config |= {
            "ide2": "ceph:vm-9000-cloudinit,media=cdrom",
            "acpi": "0",
            "tags": tag_of(OTHER),
            "hostpci0": "0000:01:00",
        }
        del config["serial0"], config["agent"], config["net0"], config["template"]
        bad = await said({"storage": "ceph"})
        for part in (
            "cloud-init drive",
            "ACPI is off",
            "tag of an environment",
            "passed through",
            "no network card",
            "not a template",
        ):
            assert any(line.startswith("error:") and part in line for line in bad), (part, bad)
        for part in ("no serial port", "guest agent is off", "no effect on linked clones"):
            assert any(line.startswith("warning:") and part in line for line in bad), (part, bad)
        (missing,) = await driver.check_template("9999", {})
        assert missing.severity == "error"

    run(driver, work)


def test_settings_that_cannot_be_are_refused_when_drivers_are_built(settings: EnvctlDriverSettings) -> None:
    built = build_drivers(EnvctlSettings(driver={"main": settings}))
    assert built["main"].name == "main"
    assert built["main"].vmid_range == (90_000, 98_999)
    assert built["main"].clones_at_once == 2
    for wrong in (
        {"url": ""},
        {"url": "http://pve.example:8006"},
        {"url": "https://pve/x?y"},
        {"fingerprint": "AA:BB"},
        {"vmid_last": 100},
    ):
        with pytest.raises(ConfigError, match=r"envctl\.driver\.main"):
            build_drivers(EnvctlSettings(driver={"main": settings.model_copy(update=wrong)}))
