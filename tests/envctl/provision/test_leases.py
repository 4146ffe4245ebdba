"""Several workers on one database: each job has one at a time, and a job whose worker is gone finds another."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from envctl.database.access import Database
from envctl.database.models import Environment, Job, JobStep, Node, Setting
from envctl.provision import points, reconciling, requests
from envctl.provision.runner import Runner
from envctl.provision.worker import Worker
from envctl.states import STEPS, EnvironmentState, JobKind, JobState
from tests.envctl.provision.scripted_driver import ScriptedDriver
from tests.envctl.provision.stage import FAST, Stage, stage
from tests.envctl.provision.test_kills import begin_worker, end_worker, site


@pytest.fixture
def on(tmp_path: Path, database_url: str) -> Iterator[Stage]:
    with stage(tmp_path, database_url=database_url) as made:
        yield made


def test_two_processes_share_the_jobs_and_never_one_job(tmp_path: Path) -> None:
    with site(tmp_path) as on:
        second = begin_worker(on.world, tmp_path, on.url)
        try:
            rows = [
                on.world.add_environment("alice", f"env-{n}", on.template, EnvironmentState.REQUESTED, running=False)
                for n in range(4)
            ]
            for row in rows:
                with on.world.database.write() as session:
                    requests.begin(
                        session, on.world.context, session.get_one(Environment, row.id), JobKind.CREATE, "alice"
                    )
            for worker in (on.worker, second):
                assert worker.stdin is not None
                worker.stdin.write("[]\n")
                worker.stdin.flush()
            for worker in (on.worker, second):
                assert worker.stdout is not None
                assert json.loads(worker.stdout.readline()) is None
        finally:
            end_worker(second)
        for row in rows:
            on.check(row, JobKind.CREATE, alone=False)
        with on.world.database.read() as session:
            steps = session.scalars(select(JobStep)).all()
            assert len({(one.job_id, one.name) for one in steps}) == len(steps) == 4 * len(STEPS[JobKind.CREATE])
        clones = [
            one for one in on.fake.asked if one.method == "POST" and one.path.endswith("/clone") and one.status == 200
        ]
        assert len({one.parameters["newid"] for one in clones}) == 4


def test_two_workers_with_databases_of_their_own(on: Stage, database_url: str) -> None:
    made = [on.make(f"env-{n}") for n in range(6)]
    other = Database(database_url)
    context = replace(on.context, database=other)

    async def both() -> None:
        await asyncio.gather(
            Runner(on.context, "left", pace=FAST).run_until_idle(), Runner(context, "right", pace=FAST).run_until_idle()
        )

    asyncio.run(both())
    other.close()
    assert [on.get(one).state for one in made] == [EnvironmentState.READY] * 6
    assert (len(on.driver.machines()), on.driver.calls("clone")) == (6, 6)
    with on.context.database.read() as session:
        steps = session.scalars(select(JobStep)).all()
    assert len({(one.job_id, one.name) for one in steps}) == len(steps)


def test_a_worker_that_lost_its_lease_touches_nothing_more(on: Stage) -> None:
    """Stopped for a minute between the clone and its row; another has the job when it wakes."""
    one = on.make()

    def taken(name: str) -> None:
        if name == "create.clone.after-act":
            points.set_hook(None)
            with on.context.database.write() as session:
                job = session.get_one(Job, on.job(one).id)
                job.lease_owner, job.lease_until = "another", on.context.now() + 60

    points.set_hook(taken)
    try:
        on.work()
    finally:
        points.set_hook(None)
    job = on.job(one)
    assert (job.state, job.step, job.lease_owner) == (JobState.RUNNING, "clone", "another")
    assert on.driver.calls("configure") == 0
    with on.context.database.write() as session:
        session.get_one(Job, job.id).lease_until = 0.0
    on.work()
    assert on.get(one).state == EnvironmentState.READY
    assert (len(on.driver.machines()), on.driver.calls("clone")) == (1, 1)


def test_a_lease_is_waited_for(on: Stage) -> None:
    one = on.make()
    with on.context.database.write() as session:
        job = session.get_one(Job, on.job(one).id)
        job.state, job.lease_owner, job.lease_until = JobState.RUNNING, "dead", on.context.now() + 3600
    on.work()
    assert on.driver.calls("clone") == 0
    assert on.job(one).lease_owner == "dead"


def test_a_worker_that_is_told_to_stop_gives_its_jobs_back(on: Stage) -> None:
    on.guests.mute = True
    one = on.make()

    async def life() -> None:
        runner = on.runner()
        running = asyncio.create_task(runner.run())
        while on.get(one).state != EnvironmentState.BOOTING:
            await asyncio.sleep(0.01)
        runner.stop()
        await running

    asyncio.run(life())
    job = on.job(one)
    assert (job.state, job.lease_owner, job.lease_until) == (JobState.RUNNING, None, 0.0)
    on.guests.mute = False
    on.work()
    assert on.get(one).state == EnvironmentState.READY


def test_one_leads(on: Stage) -> None:
    assert reconciling.lead(on.context, "upkeep", "left", 60.0)
    assert not reconciling.lead(on.context, "upkeep", "right", 60.0)
    assert reconciling.lead(on.context, "upkeep", "left", 60.0)
    reconciling.retire(on.context, "upkeep", "right")
    assert not reconciling.lead(on.context, "upkeep", "right", 60.0)
    reconciling.retire(on.context, "upkeep", "left")
    assert reconciling.lead(on.context, "upkeep", "right", -1.0)
    assert reconciling.lead(on.context, "upkeep", "left", 60.0), "the time of the one before is over"


def test_a_life_on_either_database(on: Stage) -> None:
    one = on.ready()
    for kind in (JobKind.STOP, JobKind.START, JobKind.RESET, JobKind.DELETE, JobKind.UNDELETE):
        one = on.do(one, kind)
        assert on.job(one).state == JobState.SUCCEEDED, one.failed_reason
    assert isinstance(on.driver, ScriptedDriver)
    assert len(on.driver.machines()) == 1


def test_a_worker_does_jobs_looks_at_hypervisors_and_leaves_in_order(on: Stage) -> None:
    one = on.make()

    async def life() -> None:
        worker = Worker(on.context, pace=FAST, reconcile_s=0.02, schedule_s=0.02)
        running = asyncio.create_task(worker.run())
        while on.get(one).state != EnvironmentState.READY or _nodes(on) == []:
            assert not running.done()
            await asyncio.sleep(0.01)
        worker.stop()
        await running

    asyncio.run(life())
    with on.context.database.read() as session:
        assert [row.key for row in session.scalars(select(Setting)) if row.key.startswith("_lead.")] == []


def _nodes(on: Stage) -> list[str]:
    with on.context.database.read() as session:
        return list(session.scalars(select(Node.name)))
