"""Each kind of job from end to end, and what hypervisors do to it."""

from pathlib import Path

import pytest

from envctl.database.models import Guest, Vmid
from envctl.states import EnvironmentState, JobKind, JobState
from tests.envctl.provision.stage import Stage, stage

E = EnvironmentState


@pytest.fixture
def on(tmp_path: Path):
    with stage(tmp_path) as made:
        yield made


def test_a_life(on: Stage) -> None:
    """Create, stop, start, restart, resize, reset, delete, undelete: one machine at most, and a new generation for each."""
    one = on.ready()
    assert (one.generation, one.vmid, one.machine, one.running) == (1, 100, "pve1/100", True)
    assert one.address == "192.0.2.100"
    machine = on.driver.machines()["pve1/100"]
    assert machine["description"].endswith(f"\nenvctl:{one.id}:1")
    assert machine["uuid"] == one.machine_uuid

    one = on.do(one, JobKind.STOP)
    assert (one.state, one.running, on.guests.final_backups) == (E.STOPPED, False, 1)
    one = on.do(one, JobKind.START)
    assert (one.state, one.running, one.generation) == (E.READY, True, 1)
    assert on.do(one, JobKind.RESTART).state == E.READY
    assert on.guests.final_backups == 2
    one = on.do(one, JobKind.RESIZE, cores=4, memory_mib=1024)
    assert (one.state, one.cores, one.memory_mib, one.disk_gib) == (E.READY, 4, 1024, 8)
    assert on.driver.machines()["pve1/100"]["cores"] == 4
    uuid = one.machine_uuid
    one = on.do(one, JobKind.RESET)
    assert (one.state, one.generation) == (E.READY, 2)
    assert one.machine_uuid != uuid
    assert on.driver.calls("destroy") == 1
    one = on.do(one, JobKind.DELETE)
    assert (one.state, one.machine, one.vmid, one.running) == (E.DELETED, None, None, False)
    assert one.delete_after is not None and one.deleted_at is not None
    assert one.delete_after - one.deleted_at == pytest.approx(on.context.settings.keep_deleted_s)
    assert on.driver.machines() == {}
    one = on.do(one, JobKind.UNDELETE)
    assert (one.state, one.generation, one.delete_after) == (E.READY, 3, None)
    assert len(on.driver.machines()) == 1
    head = on.context.homes.head(one.id)
    assert head is not None and head.generation == 3
    with on.context.database.read() as session:
        assert [session.get_one(Guest, (one.id, n)).revoked_at is not None for n in (1, 2, 3)] == [True, True, False]
    assert "Done: it is ready." in on.log(one)
