"""Hypervisors and rows differ: what is believed, what is followed, what is destroyed and what never."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import delete, select

from envctl.database.models import Environment, Node, Orphan
from envctl.drivers.port import EnvDriver, MachineFound
from envctl.errors import Refused
from envctl.identifiers import new_id, tag_of
from envctl.provision import reconciling
from envctl.provision.reconciler import Reconciler
from envctl.states import EnvironmentState, JobKind
from envctl.verbs import orphans
from envctl.verbs.environment_models import AdoptOrphan, OneOrphan
from envctl.verbs.verb import Nothing
from tests.envctl.provision.stage import Stage, stage

STRANGER = tag_of(new_id(1_600_000_000.0, bytes(10)))


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Stage]:
    with stage(tmp_path) as made:
        yield made


@pytest.fixture
def reconciler(on: Stage) -> Reconciler:
    return Reconciler(on.context, "worker")


def look(reconciler: Reconciler) -> reconciling.Found:
    return asyncio.run(reconciler.turn())


def put(on: Stage, ref: str, **values: Any) -> None:
    """A machine at the hypervisor."""
    with on.driver.state() as state:
        blank = {"name": "x", "tag": "", "vmid": int(ref.partition("/")[2]), "running": False, "locked": "", "uuid": ""}
        sizes = {"cores": 1, "memory_mib": 512, "disk_gib": 8, "seed_url": "", "description": ""}
        state["machines"][ref] = blank | sizes | values


def age_orphans(on: Stage) -> None:
    with on.context.database.write() as session:
        for row in session.query(Orphan):
            row.first_seen_at -= on.context.settings.orphan_grace_s


def test_an_orphan_goes_after_its_grace_and_not_before(on: Stage, reconciler: Reconciler) -> None:
    put(on, "pve1/150", tag=STRANGER, running=True)
    put(on, "pve1/151", tag="somebodys-own")
    assert look(reconciler).orphans == 1
    assert look(reconciler).orphans == 1
    assert "pve1/150" in on.driver.machines()
    shown = orphans.orphans(on.context, on.world.caller("ops"), Nothing())
    assert [(one.machine, one.kept, one.environment_id) for one in shown] == [("pve1/150", False, None)]
    age_orphans(on)
    found = look(reconciler)
    assert list(on.driver.machines()) == ["pve1/151"]
    assert (found.orphans, found.findings) == (0, ["orphan pve1/150 (x) was destroyed"])


def test_an_orphan_that_is_kept_stays_and_one_that_is_named_goes_at_once(on: Stage, reconciler: Reconciler) -> None:
    put(on, "pve1/150", tag=STRANGER)
    put(on, "pve1/151", tag=tag_of(new_id(1_600_000_001.0, bytes(10))))
    look(reconciler)
    operator = on.world.caller("ops")
    orphans.keep(on.context, operator, OneOrphan(machine="pve1/150"))
    orphans.destroy(on.context, operator, OneOrphan(machine="pve1/151"))
    age_orphans(on)
    look(reconciler)
    assert list(on.driver.machines()) == ["pve1/150"]


def test_many_orphans_at_once_are_not_believed(on: Stage, reconciler: Reconciler) -> None:
    """An old database was put back: the machines made since are not refuse."""
    for number in range(6):
        put(on, f"pve1/{150 + number}", tag=tag_of(new_id(1_600_000_000.0 + number, bytes(10))), running=True)
    look(reconciler)
    age_orphans(on)
    found = look(reconciler)
    assert len(on.driver.machines()) == 6
    assert "an old database" in found.findings[0]


def test_of_two_machines_the_current_one_is_never_the_one_that_goes(on: Stage, reconciler: Reconciler) -> None:
    one = on.ready()
    put(on, "pve2/150", tag=tag_of(one.id), running=True, uuid="another")
    look(reconciler)
    assert on.get(one).finding == "2 machines carry its tag: pve1/100, pve2/150"
    with on.context.database.read() as session:
        assert [row.machine for row in session.query(Orphan)] == ["pve2/150"]
    age_orphans(on)
    look(reconciler)
    assert list(on.driver.machines()) == ["pve1/100"]
    look(reconciler)
    assert (on.get(one).finding, on.get(one).state) == (None, EnvironmentState.READY)


def test_silence_proves_nothing(on: Stage, reconciler: Reconciler) -> None:
    one = on.ready()
    with on.driver.state() as state:
        state["down"] = True
    for _ in range(3):
        found = look(reconciler)
    assert found.errors == ["fake: the node does not answer"]
    assert (on.get(one).state, on.get(one).finding) == (EnvironmentState.READY, None)


def test_a_machine_that_is_gone_is_seen_twice_before_it_is_believed(on: Stage, reconciler: Reconciler) -> None:
    one = on.ready()
    with on.driver.state() as state:
        kept = state["machines"].pop("pve1/100")
    look(reconciler)
    assert on.get(one).state == EnvironmentState.READY
    with on.driver.state() as state:
        state["machines"]["pve1/100"] = kept
    look(reconciler)
    assert on.get(one).finding is None
    with on.driver.state() as state:
        del state["machines"]["pve1/100"]
    look(reconciler)
    assert look(reconciler).missing == 1
    gone = on.get(one)
    assert (gone.state, gone.running) == (EnvironmentState.FAILED, False)
    assert "gone from the hypervisor" in (gone.failed_reason or "")
    look(reconciler)
    assert on.get(one).finding == gone.finding
    assert on.do(one, JobKind.RESET).state == EnvironmentState.READY


def test_power_and_place_are_followed(on: Stage, reconciler: Reconciler) -> None:
    one = on.ready()
    with on.driver.state() as state:
        state["machines"]["pve2/100"] = state["machines"].pop("pve1/100") | {"running": False}
    look(reconciler)
    assert (on.get(one).machine, on.get(one).node, on.get(one).state) == ("pve2/100", "pve2", EnvironmentState.READY)
    look(reconciler)
    off = on.get(one)
    assert (off.state, off.running) == (EnvironmentState.STOPPED, False)
    assert "went off by itself" in (off.finding or "")
    with on.driver.state() as state:
        state["machines"]["pve2/100"]["running"] = True
    look(reconciler)
    assert on.get(one).state == EnvironmentState.STOPPED, "listings are some seconds old"
    since = on.context.now()
    while on.seen_at(one) < since:
        time.sleep(0.01)
    look(reconciler)
    assert (on.get(one).state, on.get(one).running) == (EnvironmentState.READY, True)
    with on.context.database.read() as session:
        assert session.get_one(Node, ("pve1", "fake")).storages[0]["name"] == "local"


def test_drift_is_a_finding_until_it_is_none(on: Stage, reconciler: Reconciler) -> None:
    one = on.do(on.ready(), JobKind.STOP)
    with on.driver.state() as state:
        state["machines"]["pve1/100"]["cores"] = 16
    look(reconciler)
    assert on.get(one).finding == "the machine has 16 cores instead of 1"
    with on.driver.state() as state:
        state["machines"]["pve1/100"]["cores"] = 1
    look(reconciler)
    assert on.get(one).finding is None


def test_what_a_job_is_at_is_left_to_it(on: Stage, reconciler: Reconciler) -> None:
    one = on.make()
    put(on, "pve1/100", tag=tag_of(one.id))
    assert look(reconciler).orphans == 0
    on.work()
    assert on.get(one).state == EnvironmentState.READY
    assert on.driver.calls("destroy") == 1, "what this job did not ask for is not taken for its clone"


def test_a_machine_is_given_back_to_its_environment(on: Stage, reconciler: Reconciler) -> None:
    one = on.do(on.ready(), JobKind.STOP)
    with on.context.database.write() as session:
        row = session.get_one(Environment, one.id)
        row.machine = row.node = row.vmid = None
    look(reconciler)
    operator = on.world.caller("ops")
    two = on.ready("two")
    with pytest.raises(Refused, match="carries the tag"):
        orphans.adopt(on.context, operator, AdoptOrphan(machine="pve1/100", environment=two.id))
    orphans.adopt(on.context, operator, AdoptOrphan(machine="pve1/100", environment=one.id))
    assert look(reconciler).orphans == 0
    started = on.do(one, JobKind.START)
    assert (started.state, started.machine, len(on.driver.machines())) == (EnvironmentState.READY, "pve1/100", 2)


def test_a_look_that_a_person_asks_for(on: Stage) -> None:
    reconciler = Reconciler(on.context, "worker", every_s=3600.0, poll_s=0.01)

    async def asked() -> Any:
        running = asyncio.create_task(reconciler.run())
        answer = await asyncio.to_thread(orphans.reconcile, on.context, on.world.caller("ops"), Nothing())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return answer

    on.ready()
    assert asyncio.run(asked()).machines == 1


def test_what_nobody_foresaw_at_one_hypervisor_keeps_none_from_the_others(
    on: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        name = "broken"

        async def inventory(self) -> list[MachineFound]:
            raise ValueError("not JSON")

    put(on, "pve1/150", tag=STRANGER, running=True)
    drivers = {"broken": cast(EnvDriver, Broken()), **on.context.drivers}
    reconciler = Reconciler(replace(on.context, drivers=drivers), "worker")
    found = look(reconciler)
    assert (found.machines, found.orphans) == (1, 1)
    assert found.errors == ["broken: ValueError (the log has more)"]
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["not JSON"]

    def fails(*arguments: object) -> list[Orphan]:
        raise OSError("disk")

    monkeypatch.setattr(reconciler, "_compare", fails)
    with on.context.database.write() as session:
        session.execute(delete(Node))
    assert len(look(reconciler).errors) == 2
    with on.context.database.read() as session:
        assert session.scalars(select(Node.name)).all(), "nodes are looked at though machines could not be"
