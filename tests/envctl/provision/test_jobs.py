"""Each kind of job from end to end, and what hypervisors do to it."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from envctl.accounts import quotas
from envctl.database.models import Environment, Guest, Job, Vmid
from envctl.errors import Refused
from envctl.provision import points, requests
from envctl.states import EnvironmentState, JobKind, JobState
from envctl.verbs import environments
from envctl.verbs.environment_models import OneEnvironment
from tests.envctl.provision.scripted_driver import ScriptedDriver
from tests.envctl.provision.stage import FAST, Stage, stage

E = EnvironmentState


@pytest.fixture
def on(tmp_path: Path) -> Iterator[Stage]:
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
    assert one.delete_after is not None
    assert one.deleted_at is not None
    assert one.delete_after - one.deleted_at == pytest.approx(on.context.settings.keep_deleted_s)
    assert on.driver.machines() == {}
    one = on.do(one, JobKind.UNDELETE)
    assert (one.state, one.generation, one.delete_after) == (E.READY, 3, None)
    assert len(on.driver.machines()) == 1
    head = on.context.homes.head(one.id)
    assert head is not None
    assert head.generation == 3
    with on.context.database.read() as session:
        assert [session.get_one(Guest, (one.id, n)).revoked_at is not None for n in (1, 2, 3)] == [True, True, False]
    assert "Done: it is ready." in on.log(one)


def test_a_clone_whose_answer_was_lost_is_found_and_not_made_twice(on: Stage) -> None:
    on.driver.script(("clone", "lost"))
    one = on.ready()
    assert on.driver.calls("clone") == 1
    assert list(on.driver.machines()) == [one.machine]
    assert "the answer was lost" in on.log(one)


def test_a_clone_that_was_never_begun_is_begun_again(on: Stage) -> None:
    on.driver.script(("clone", "never"), ("clone", "busy"), ("clone", "task-lock"))
    one = on.ready()
    assert on.driver.calls("clone") == 4
    assert list(on.driver.machines()) == [one.machine]


def test_a_number_that_is_somebody_elses_is_never_asked_for_again(on: Stage) -> None:
    on.driver.script(("clone", "exists"))
    one = on.ready()
    assert one.vmid == 101
    with on.context.database.read() as session:
        assert session.get_one(Vmid, 100).state == "foreign"
        assert session.get_one(Vmid, 101).environment_id == one.id
    on.do(one, JobKind.DELETE)
    assert list(on.driver.machines()) == ["pve1/100"], "the stranger's machine is not ours to touch"
    assert on.ready("two").vmid == 101


def test_lost_answers_of_every_other_call(on: Stage) -> None:
    on.driver.script(("configure", "lost"), ("start", "lost"), ("shutdown", "lost"), ("destroy", "lost"))
    one = on.ready()
    assert on.driver.calls("start") == 1
    one = on.do(one, JobKind.DELETE)
    assert one.state == E.DELETED
    assert (on.driver.calls("destroy"), on.driver.machines()) == (1, {})


def test_what_a_failed_clone_leaves_is_removed_before_the_next(on: Stage) -> None:
    on.driver.script(("clone", "half"))
    one = on.make()
    on.work()
    one = on.get(one)
    assert (one.state, one.failed_step) == (E.FAILED, "clone")
    assert "clone failed" in (one.failed_reason or "")
    assert list(on.driver.machines()) == ["pve1/100"]
    one = on.retry(one)
    assert one.state == E.READY
    assert (on.driver.calls("clone"), on.driver.calls("destroy"), len(on.driver.machines())) == (2, 1, 1)
    assert (on.job(one).attempt, on.job(one).state) == (2, JobState.SUCCEEDED)


def test_what_a_failed_clone_leaves_is_not_started_by_another_job(on: Stage) -> None:
    on.driver.script(("clone", "half"))
    one = on.make()
    on.work()
    one = on.do(one, JobKind.STOP)
    assert (one.state, one.machine) == (E.STOPPED, None)
    one = on.do(one, JobKind.START)
    assert (one.state, on.driver.calls("clone"), len(on.driver.machines())) == (E.READY, 2, 1)


def test_a_create_that_failed_offers_retry_stop_delete_and_frees_everything(on: Stage) -> None:
    on.driver.script(("start", "refused"))
    one = on.make()
    on.work()
    one = on.get(one)
    assert (one.state, one.failed_step, one.running) == (E.FAILED, "start", False)
    shown = environments.show(on.context, on.world.caller("alice"), OneEnvironment(environment="one"))
    possible = {offer.verb for offer in shown.offers if offer.possible}
    assert {"job.retry", "env.stop", "env.delete"} <= possible
    assert shown.failed_reason == "permission denied"
    with on.context.database.read() as session:
        assert quotas.usage_of(session, one.owner_id).running == 0
    one = on.do(one, JobKind.DELETE)
    assert (one.state, on.driver.machines()) == (E.DELETED, {})
    with on.context.database.read() as session:
        assert session.scalars(select(Vmid)).all() == []


def test_a_machine_that_never_reports_fails_and_a_retry_gives_it_a_new_seed(on: Stage) -> None:
    on.guests.mute = True
    on.set(boot_s=0.3)
    one = on.make()
    on.work()
    one = on.get(one)
    assert (one.state, one.failed_step, one.running) == (E.FAILED, "boot", True)
    assert "its agent did not report" in (one.failed_reason or "")
    first = on.driver.machines()["pve1/100"]["seed_url"]
    on.guests.mute = False
    on.set(boot_s=60.0)
    one = on.retry(one)
    assert one.state == E.READY
    assert on.driver.machines()["pve1/100"]["seed_url"] != first
    assert on.driver.calls("clone") == 1


@pytest.mark.parametrize("kind", [JobKind.STOP, JobKind.RESTART, JobKind.RESET, JobKind.DELETE])
def test_nothing_goes_off_unsaved_unless_a_person_accepts_it(on: Stage, kind: JobKind) -> None:
    one = on.ready()
    on.guests.backups_fail = True
    failed = on.do(one, kind)
    assert (failed.state, failed.failed_step, failed.running) == (E.FAILED, "backup", True)
    assert "the bucket does not answer" in (failed.failed_reason or "")
    assert "accept that the last changes are lost" in (failed.failed_reason or "")
    assert on.driver.calls("shutdown") == on.driver.calls("destroy") == 0
    done = on.retry(failed, accept_loss=True)
    assert done.state in (E.STOPPED, E.READY, E.DELETED)
    assert "may be lost" in on.log(one)


def test_a_silent_agent_is_not_waited_for_for_ever(on: Stage) -> None:
    one = on.ready()
    on.guests.mute = True
    on.pace = replace(FAST, command_taken_s=0.3)
    failed = on.do(one, JobKind.STOP)
    assert "the agent did not answer" in (failed.failed_reason or "")
    on.guests.mute = False
    on.pace = FAST
    assert on.retry(failed).state == E.STOPPED
    assert on.guests.final_backups == 1, "the order that nobody took was withdrawn"


def test_a_machine_that_went_off_unsaved_is_not_destroyed(on: Stage) -> None:
    one = on.ready()
    with on.driver.state() as state:
        state["machines"]["pve1/100"]["running"] = False
    failed = on.do(one, JobKind.DELETE)
    assert (failed.state, failed.failed_step) == (E.FAILED, "backup")
    assert "never saved" in (failed.failed_reason or "")
    assert list(on.driver.machines()) == ["pve1/100"]
    assert on.do(failed, JobKind.START).state == E.READY
    deleted = on.do(one, JobKind.DELETE)
    assert (deleted.state, on.guests.final_backups) == (E.DELETED, 1)


def test_a_stopped_environment_is_deleted_without_another_backup(on: Stage) -> None:
    one = on.do(on.ready(), JobKind.STOP)
    assert on.do(one, JobKind.DELETE).state == E.DELETED
    assert on.guests.final_backups == 1


def test_a_stop_of_a_machine_that_was_off_saves_nothing_and_says_nothing_else_later(on: Stage) -> None:
    one = on.ready()
    with on.driver.state() as state:
        state["machines"]["pve1/100"]["running"] = False
    stopped = on.do(one, JobKind.STOP)
    assert stopped.state == E.STOPPED
    failed = on.do(stopped, JobKind.RESET)
    assert (failed.state, failed.failed_step) == (E.FAILED, "backup")
    assert list(on.driver.machines()) == ["pve1/100"], "what it did not save is on its disk alone"


def test_a_stopped_machine_that_ran_once_more_without_us_is_not_destroyed_unasked(on: Stage) -> None:
    one = on.do(on.ready(), JobKind.STOP)
    with on.context.database.write() as session:
        session.get_one(Environment, one.id).stopped_at = on.context.now() + 7200
    failed = on.do(one, JobKind.RESET)
    assert (failed.state, failed.failed_step) == (E.FAILED, "backup")


def test_a_machine_that_does_not_shut_down_is_powered_off_only_when_told(on: Stage) -> None:
    one = on.ready()
    on.driver.script(("shutdown", "task-failed"))
    failed = on.do(one, JobKind.STOP)
    assert (failed.state, failed.failed_step, failed.running) == (E.FAILED, "shutdown", True)
    assert on.driver.calls("stop") == 0
    on.driver.script(("shutdown", "task-failed"))
    assert on.retry(failed, force=True).state == E.STOPPED
    assert on.driver.calls("stop") == 1
    assert on.guests.final_backups == 2, "saved again before it goes off"


def test_a_machine_that_is_gone_is_made_anew_by_reset(on: Stage) -> None:
    one = on.ready()
    with on.driver.state() as state:
        state["machines"].clear()
    one = on.do(one, JobKind.RESET)
    assert (one.state, one.generation, len(on.driver.machines())) == (E.READY, 2, 1)


def test_cancel(on: Stage) -> None:
    """Queued: as before. Running: at the next place where nothing is half done."""
    one = on.ready()
    job = on.begin(one, JobKind.STOP)
    with on.context.database.write() as session:
        requests.cancel(session, on.context, session.get_one(Job, job.id), "alice")
    assert (on.get(one).state, on.job(one).state) == (E.READY, JobState.CANCELLED)

    on.guests.mute = True
    two = on.make("two")

    async def cancel_while_it_boots() -> None:
        running = asyncio.create_task(on.runner().run_until_idle())
        while on.get(two).state != E.BOOTING:
            await asyncio.sleep(0.01)
        with on.context.database.write() as session:
            requests.cancel(session, on.context, session.get_one(Job, on.job(two).id), "alice")
        await running

    asyncio.run(cancel_while_it_boots())
    assert (on.get(two).state, on.job(two).state) == (E.FAILED, JobState.CANCELLED)
    on.guests.mute = False
    assert on.retry(two).state == E.READY


def test_a_purge_deletes_the_home_after_its_days_and_not_before(on: Stage) -> None:
    one = on.do(on.ready(), JobKind.DELETE)
    assert on.do(one, JobKind.PURGE).state == E.DELETED
    assert on.context.homes.head(one.id) is not None
    with on.context.database.write() as session:
        session.get_one(Environment, one.id).delete_after = on.context.now() - 1
    with pytest.raises(Refused, match="days are over"):
        on.begin(one, JobKind.UNDELETE)
    assert on.do(one, JobKind.PURGE).state == E.PURGED
    assert on.context.homes.head(one.id) is None


def test_clones_of_one_template_wait_for_each_other(tmp_path: Path) -> None:
    with stage(tmp_path) as on:
        slow = ScriptedDriver(tmp_path / "hypervisor.json", task_s=0.05, at_once=1)
        on.context.drivers["fake"] = slow  # type: ignore[index]  # the world's mapping is a dict
        most = 0

        def watch(name: str) -> None:
            nonlocal most
            if name == "create.clone.during-wait":
                most = max(most, sum(1 for one in slow.machines().values() if one["locked"] == "clone"))

        points.set_hook(watch)
        try:
            made = [on.make(name) for name in ("one", "two", "three")]
            on.work()
        finally:
            points.set_hook(None)
        assert [on.get(one).state for one in made] == [E.READY] * 3
        assert most == 1


def test_the_hypervisor_is_away_for_a_while(on: Stage) -> None:
    one = on.ready()
    on.begin(one, JobKind.STOP)
    with on.driver.state() as state:
        state["down"] = True

    async def comes_back() -> None:
        running = asyncio.create_task(on.runner().run_until_idle())
        while "does not answer" not in on.log(one):
            await asyncio.sleep(0.01)
        with on.driver.state() as state:
            state["down"] = False
        await running

    asyncio.run(comes_back())
    assert on.get(one).state == E.STOPPED
