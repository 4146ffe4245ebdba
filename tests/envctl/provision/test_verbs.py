"""The verbs of environments and jobs: who may, what is refused with which words, what is told."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select

from envctl.calling import Caller
from envctl.database.models import AuditRow, Backup, Environment, Job, JobLine, Quota
from envctl.errors import EnvctlError, Forbidden, Invalid, NoSuchThing, OverQuota, Refused
from envctl.states import STEPS, EnvironmentState, JobKind, JobState
from envctl.verbs import environments, jobs
from envctl.verbs.environment_models import (
    CreateEnvironment,
    DeleteEnvironment,
    EnvironmentView,
    ExtendEnvironment,
    FreezeEnvironment,
    JobLog,
    ListEnvironments,
    ListJobs,
    OneEnvironment,
    OneJob,
    ResizeEnvironment,
    RetryJob,
    Schedule,
    StopEnvironment,
    UpdateEnvironment,
)
from envctl.verbs.environment_views import offers, situation_of
from tests.envctl.world import World

E = EnvironmentState


@pytest.fixture
def alice(world: World) -> Caller:
    world.add_template()
    return world.caller("alice")


def ready(world: World, name: str = "one", state: EnvironmentState = E.READY, **columns: Any) -> Environment:
    return world.add_environment("alice", name, world.add_template(f"t-{name}"), state, **columns)


def one(name: str = "one") -> OneEnvironment:
    return OneEnvironment(environment=name)


def show(world: World, name: str = "one", who: str = "alice") -> EnvironmentView:
    return environments.show(world.context, world.caller(who), one(name))


def audit(world: World) -> list[tuple[str, str, str]]:
    with world.database.read() as session:
        return [(row.actor, row.verb, row.outcome) for row in session.scalars(select(AuditRow).order_by(AuditRow.id))]


def test_create_leaves_a_row_a_job_and_an_audit_row_and_wakes_the_worker(world: World, alice: Caller) -> None:
    answer = environments.create(
        world.context,
        alice,
        CreateEnvironment(
            name="work", template="debian", cores=2, schedule=Schedule(stop="* 20:00", timezone="Europe/Berlin")
        ),
    )
    assert answer.job is not None
    assert (answer.job.kind, answer.job.state, answer.job.step_number, answer.job.step_count) == (
        JobKind.CREATE,
        JobState.QUEUED,
        0,
        len(STEPS[JobKind.CREATE]),
    )
    shown = answer.environment
    assert (shown.name, shown.state, shown.cores, shown.memory_mib, shown.owner_name) == (
        "work",
        E.REQUESTED,
        2,
        512,
        "alice",
    )
    assert (shown.template_title, shown.rpo_badge, shown.rpo_s) == ("Debian", "none", None)
    assert shown.next_stop_at is not None
    assert world.woken == ["woken"]
    assert world.told == [shown.id]
    assert audit(world) == [("alice", "env.create", "ok")]


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        ({"name": "Work"}, Invalid, "is not a name"),
        ({"template": "arch"}, NoSuchThing, "no template 'arch'"),
        ({"cores": 99}, Invalid, "from 1 to 8"),
        ({"disk_gib": 1}, Invalid, "from 8 to 64"),
        ({"directories": ["/home/../etc"]}, Invalid, "an absolute path"),
        ({"directories": ["/proc/self"]}, Invalid, "the kernel"),
        ({"directories": []}, Invalid, "no directory"),
        ({"schedule": Schedule(start="daily")}, Invalid, "not a schedule"),
        ({"schedule": Schedule(start="* 08:00", timezone="Mars/Base")}, Invalid, "not a time zone"),
        ({"expires_at": 1.0}, Invalid, "in the past"),
        ({"owner": "bob"}, Forbidden, "operator"),
        ({"from_environment": "nothing"}, NoSuchThing, "no environment"),
        ({"from_snapshot": 3}, Invalid, "needs its environment"),
    ],
)
def test_what_cannot_be_made(
    world: World, alice: Caller, wanted: dict[str, Any], error: type[EnvctlError], words: str
) -> None:
    with pytest.raises(error, match=words):
        environments.create(
            world.context, alice, CreateEnvironment(**({"name": "work", "template": "debian"} | wanted))
        )
    assert audit(world) == [("alice", "env.create", error.code)]
    with world.database.read() as session:
        assert session.scalars(select(Environment)).all() == []


def test_quotas_count_a_create_a_start_and_a_resize(world: World, alice: Caller) -> None:
    with world.database.write() as session:
        session.add(Quota(id=world.context.new_id(), subject_kind="default", environments=3, running=1, cores=2))
    ready(world, "on")
    ready(world, "off", E.STOPPED)
    with pytest.raises(OverQuota, match="running environments: 1 of 1 used, 1 more asked for"):
        environments.create(world.context, alice, CreateEnvironment(name="work", template="debian"))
    with pytest.raises(OverQuota, match="running environments"):
        environments.start(world.context, alice, one("off"))
    with pytest.raises(OverQuota, match="cores"):
        environments.resize(world.context, alice, ResizeEnvironment(environment="on", cores=3))
    assert environments.resize(world.context, alice, ResizeEnvironment(environment="on", cores=2)).job is not None
    failed = ready(world, "failed", E.FAILED, running=False)
    with world.database.write() as session:
        job = Job(
            id=world.context.new_id(),
            environment_id=failed.id,
            kind=JobKind.CREATE,
            state=JobState.FAILED,
            step="boot",
            steps=["boot"],
            created_by="alice",
            created_at=0.0,
        )
        session.add(job)
    with pytest.raises(OverQuota, match="running environments"):
        jobs.retry(world.context, alice, RetryJob(job=job.id))


def test_what_is_not_theirs_does_not_exist(world: World, alice: Caller) -> None:
    row = ready(world)
    bob = world.caller("bob")
    environments.stop(world.context, alice, StopEnvironment(environment=row.id))
    with world.database.read() as session:
        job = session.scalars(select(Job)).one()
    for asked in (
        lambda: environments.show(world.context, bob, one(row.id)),
        lambda: environments.start(world.context, bob, one(row.id)),
        lambda: environments.delete(world.context, bob, DeleteEnvironment(environment="alice/one")),
        lambda: jobs.show(world.context, bob, OneJob(job=job.id)),
        lambda: jobs.log(world.context, bob, JobLog(job=job.id)),
        lambda: jobs.cancel(world.context, bob, OneJob(job=job.id)),
        lambda: jobs.retry(world.context, bob, RetryJob(job=job.id)),
    ):
        with pytest.raises(NoSuchThing):
            asked()
    assert environments.list_all(world.context, bob, ListEnvironments()) == []
    assert jobs.list_all(world.context, bob, ListJobs()) == []
    with pytest.raises(Forbidden):
        environments.list_all(world.context, bob, ListEnvironments(everybody=True))
    assert show(world, row.id, "ops").owner_name == "alice"
    assert show(world, "alice/one", "ops").id == row.id
    with pytest.raises(Forbidden, match="scope env:write"):
        environments.start(world.context, world.caller("alice", scopes=frozenset({"env:read"})), one(row.id))


def test_one_job_at_a_time_and_the_words_say_which(world: World, alice: Caller) -> None:
    ready(world)
    environments.stop(world.context, alice, StopEnvironment(environment="one"))
    with pytest.raises(Refused, match="one: stop is under way"):
        environments.delete(world.context, alice, DeleteEnvironment(environment="one"))
    shown = show(world)
    assert {offer.verb for offer in shown.offers if offer.possible} == {"job.cancel", "env.update", "env.extend"}
    delete = shown.offer("env.delete")
    assert delete is not None
    assert (delete.possible, delete.reason, delete.destructive) == (False, "stop is under way", True)


@pytest.mark.parametrize(
    ("state", "possible"),
    [
        (E.READY, {"env.stop", "env.restart", "env.reset", "env.resize", "env.delete", "env.open", "backup.now"}),
        (E.STOPPED, {"env.start", "env.reset", "env.resize", "env.delete"}),
        (E.FAILED, {"env.start", "env.stop", "env.reset", "env.delete"}),
        (E.DELETED, {"env.undelete"}),
    ],
)
def test_what_is_offered_is_what_is_taken(
    world: World, alice: Caller, state: EnvironmentState, possible: set[str]
) -> None:
    row = ready(world, state=state)
    offered = {offer.verb for offer in show(world, row.id).offers if offer.possible}
    assert offered - {"env.update", "env.extend"} == possible
    taken: dict[str, Callable[[], object]] = {
        "env.start": lambda: environments.start(world.context, alice, one(row.id)),
        "env.stop": lambda: environments.stop(world.context, alice, StopEnvironment(environment=row.id)),
        "env.undelete": lambda: environments.undelete(world.context, alice, one(row.id)),
        "env.delete": lambda: environments.delete(world.context, alice, DeleteEnvironment(environment=row.id)),
    }
    for verb in taken.keys() - possible:
        with pytest.raises(Refused, match=f"it is {state}"):
            taken[verb]()
    for verb in sorted(taken.keys() & possible)[:1]:
        assert taken[verb]()


def test_frozen_means_that_nobody_starts_it(world: World, alice: Caller) -> None:
    ready(world)
    operator = world.caller("ops")
    with pytest.raises(Forbidden):
        environments.freeze(world.context, alice, FreezeEnvironment(environment="one"))
    answer = environments.freeze(world.context, operator, FreezeEnvironment(environment="alice/one", reason="mining"))
    assert answer.job is not None
    assert (answer.job.kind, answer.environment.frozen) == (JobKind.STOP, True)
    ready(world, "two", E.STOPPED, frozen=True)
    with pytest.raises(Refused, match="frozen; an operator"):
        environments.start(world.context, alice, one("two"))
    environments.unfreeze(world.context, operator, one("alice/two"))
    assert environments.start(world.context, alice, one("two")).job is not None


def test_a_deleted_name_may_be_taken_and_then_undelete_says_so(world: World, alice: Caller) -> None:
    gone = ready(world, state=E.DELETED, delete_after=world.context.now() + 60)
    again = environments.create(world.context, alice, CreateEnvironment(name="one", template="debian"))
    with pytest.raises(Refused, match="alice has an environment one already"):
        environments.undelete(world.context, alice, one(gone.id))
    with pytest.raises(Refused, match="alice has an environment one already"):
        environments.create(world.context, alice, CreateEnvironment(name="one", template="debian"))
    with world.database.write() as session:
        session.get_one(Environment, again.environment.id).name = "other"
    world.clock.now += 61
    with pytest.raises(Refused, match="days are over"):
        environments.undelete(world.context, alice, one(gone.id))


def test_a_new_environment_from_a_backup_of_another(
    world: World, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ready(world, last_backup_number=4)
    figures = dict.fromkeys(("files", "bytes", "added", "changed", "removed", "new_bytes", "fuzzy"), 0)
    with world.database.write() as session:
        session.add(Backup(environment_id=source.id, number=4, at=1.0, generation=1, kind="timer", **figures))
    copy = CreateEnvironment(name="copy", template="debian", from_environment="one")
    with pytest.raises(Refused, match="backup 4 of one is not in the bucket"):
        environments.create(world.context, alice, copy)
    monkeypatch.setattr(world.context.homes, "snapshot", lambda environment, number: None)
    made = environments.create(world.context, alice, copy).environment
    assert (made.source_environment_id, made.source_snapshot) == (source.id, 4)
    with pytest.raises(NoSuchThing, match="no backup 9"):
        environments.create(
            world.context,
            alice,
            CreateEnvironment(name="copy2", template="debian", from_environment="one", from_snapshot=9),
        )


def test_how_old_the_last_good_backup_is(world: World, alice: Caller) -> None:
    now = world.context.now()
    ready(world, last_backup_at=now - 100, last_activity_at=now, ready_at=now, idle_stop_s=600)
    shown = show(world)
    assert (shown.rpo_s, shown.rpo_badge, shown.next_backup_at) == (100.0, "good", now + 200)
    assert shown.idle_stop_at == now + 600
    world.clock.now += 351
    assert show(world).rpo_badge == "late"
    ready(world, "off", E.STOPPED, last_backup_at=now - 100)
    assert (show(world, "off").rpo_badge, show(world, "off").next_backup_at) == ("stopped", None)


def test_users_set_ends_and_idle_stops_within_bounds(world: World, alice: Caller) -> None:
    ready(world)
    month = world.context.now() + 30 * 86400
    assert (
        environments.extend(
            world.context, alice, ExtendEnvironment(environment="one", expires_at=month)
        ).environment.expires_at
        == month
    )
    with pytest.raises(Invalid, match="at most 90 days"):
        environments.extend(world.context, alice, ExtendEnvironment(environment="one", expires_at=None))
    operator = world.caller("ops")
    environments.extend(world.context, operator, ExtendEnvironment(environment="alice/one", expires_at=None))
    assert show(world).expires_at is None
    changed = environments.update(
        world.context,
        alice,
        UpdateEnvironment(environment="one", idle_stop_s=60, schedule=Schedule(start="mon 08:00")),
    ).environment
    assert (changed.idle_stop_s, changed.schedule.start) == (60, "MON 08:00")


def test_the_log_goes_on_where_it_was_read_to(world: World, alice: Caller) -> None:
    row = ready(world)
    job = environments.stop(world.context, alice, StopEnvironment(environment="one")).job
    assert job is not None
    first = jobs.log(world.context, alice, JobLog(job=job.id))
    assert [line.text for line in first.lines] == ["Stop: asked for by alice."]
    with world.database.write() as session:
        session.add(JobLine(environment_id=row.id, job_id=job.id, at=1.0, text="more"))
        session.get_one(Job, job.id).state = JobState.SUCCEEDED
    second = jobs.log(world.context, alice, JobLog(job=job.id, after=first.last_id))
    assert ([line.text for line in second.lines], second.over, first.over) == (["more"], True, False)
    assert [step.state for step in jobs.show(world.context, alice, OneJob(job=job.id)).steps] == ["waiting", "waiting"]


def test_a_list_of_two_hundred_takes_a_handful_of_queries(
    new_world: Callable[..., World],
) -> None:
    world = new_world()
    template = world.add_template()
    for number in range(200):
        world.add_environment("alice", f"e{number}", template)
    alice = world.caller("alice")
    asked: list[str] = []

    def count(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        asked.append(statement)

    event.listen(world.database._reader, "before_cursor_execute", count)
    found = environments.list_all(world.context, alice, ListEnvironments())
    assert len(found) == 200
    assert len([one for one in asked if one.startswith("SELECT")]) <= 8


class Looked:
    """A row that writes down what is asked of it."""

    def __init__(self, row: object, seen: set[str]) -> None:
        self._row, self._seen = row, seen

    def __getattr__(self, name: str) -> Any:
        self._seen.add(name)
        return getattr(self._row, name)


def test_offers_look_at_nothing_that_is_not_in_the_situation() -> None:
    """A list makes the offers of each situation once: something more that they looked at would be another environment's."""
    of_offers: tuple[set[str], set[str]] = (set(), set())
    of_situation: tuple[set[str], set[str]] = (set(), set())
    jobs_there = [None] + [
        Job(kind=k, state=s, cancel_asked=c) for k in JobKind for s in JobState for c in (False, True)
    ]
    for state in EnvironmentState:
        for flag in (False, True):
            row = Environment(
                state=state,
                running=flag,
                frozen=not flag,
                machine="m" if flag else None,
                last_backup_number=3 if flag else None,
                delete_after=99.0 if flag else 101.0,
            )
            for job in jobs_there:
                looked: Any = [
                    (Looked(row, seen[0]), Looked(job, seen[1]) if job is not None else None)
                    for seen in (of_offers, of_situation)
                ]
                offers(looked[0][0], looked[0][1], 100.0, operator=True)
                situation_of(looked[1][0], looked[1][1], 100.0)
    assert of_offers[0] <= of_situation[0]
    assert of_offers[1] <= of_situation[1]
    assert "frozen" in of_offers[0]
    assert "cancel_asked" in of_offers[1]
