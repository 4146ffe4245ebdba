"""What happens by the clock, on a clock that tests move."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from envctl.database.access import Database, sqlite_url
from envctl.database.models import Environment, Guest, Job, JobLine, Login, Nonce, Quota, Ticket, User
from envctl.homes.opening import open_homes
from envctl.provision import schedules
from envctl.provision.scheduler import EXPIRY_GRACE_S, SAVES_KEPT, Scheduler
from envctl.states import EnvironmentState, JobKind, JobState
from tests.envctl.world import World

E = EnvironmentState
HOUR = 3600.0


@pytest.fixture
def world(new_world: Callable[..., World], tmp_path: Path) -> World:
    (tmp_path / "homes").mkdir()
    return new_world(homes=open_homes(f"file://{tmp_path}/homes", secret=b"s" * 32), idle_stop_s=HOUR)


@pytest.fixture
def scheduler(world: World) -> Scheduler:
    return Scheduler(world.context, "worker")


def at(world: World, text: str, zone: str = "UTC") -> float:
    """Move the clock to a local moment; Unix seconds."""
    moment = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()
    world.clock.now += moment - world.context.now()
    return moment


def add(world: World, state: EnvironmentState = E.READY, name: str = "one", **columns: Any) -> Environment:
    template = world.add_template(f"t-{name}")
    return world.add_environment("alice", name, template, state, **columns)


def open_jobs(world: World) -> list[tuple[str, str]]:
    with world.database.read() as session:
        return [(job.kind, job.created_by) for job in session.scalars(select(Job).where(Job.state == JobState.QUEUED))]


def test_idle_machines_are_stopped_and_used_ones_are_not(world: World, scheduler: Scheduler) -> None:
    now = world.context.now()
    add(world, name="idle", last_activity_at=now)
    add(world, name="fresh", last_activity_at=now + 0.5 * HOUR)
    add(world, name="never", idle_stop_s=0, last_activity_at=now)
    used = add(world, name="used", last_activity_at=now, generation=1)
    with world.database.write() as session:
        session.add(
            Guest(
                environment_id=used.id,
                generation=1,
                machine_uuid="u",
                seed_expires_at=0.0,
                seen_at=now + HOUR,
                status={"logins": ["alice"]},
            )
        )
    assert scheduler.turn() == []
    world.clock.now += HOUR
    assert scheduler.turn() == ["stop idle (idle)"]
    assert scheduler.turn() == []
    assert open_jobs(world) == [(JobKind.STOP, "idle")]
    assert world.woken == ["woken"]
    with world.database.read() as session:
        assert session.get_one(Environment, used.id).last_activity_at == now + HOUR


def test_a_schedule_in_a_time_zone(world: World, scheduler: Scheduler) -> None:
    schedule = {"start": "MON-FRI 08:00", "stop": "* 20:00", "timezone": "Europe/Berlin"}
    at(world, "2026-01-09T19:00", "Europe/Berlin")  # a Friday
    stopped = add(world, E.STOPPED, name="off", schedule=schedule, stopped_at=world.context.now())
    ready = add(world, name="on", schedule=schedule, ready_at=world.context.now(), idle_stop_s=0)
    assert scheduler.turn() == []
    at(world, "2026-01-09T20:00:30", "Europe/Berlin")
    assert scheduler.turn() == ["stop on (schedule)"]
    at(world, "2026-01-10T08:00:30", "Europe/Berlin")
    assert scheduler.turn() == [], "a Saturday"
    at(world, "2026-01-12T08:00:30", "Europe/Berlin")
    assert scheduler.turn() == ["start off (schedule)"]
    with world.database.read() as session:
        assert session.get_one(Environment, stopped.id).state == E.BOOTING
        assert session.get_one(Environment, ready.id).state == E.STOPPING


def test_who_starts_a_machine_after_its_stop_keeps_it(world: World, scheduler: Scheduler) -> None:
    schedule = {"start": "", "stop": "* 20:00", "timezone": "UTC"}
    add(world, schedule=schedule, ready_at=at(world, "2026-01-09T20:05"), idle_stop_s=0)
    world.clock.now += 60
    assert scheduler.turn() == []


def test_a_console_that_was_down_does_not_catch_up_with_yesterday(world: World, scheduler: Scheduler) -> None:
    at(world, "2026-01-09T07:00")
    add(world, E.STOPPED, schedule={"start": "* 08:00", "stop": "", "timezone": "UTC"}, stopped_at=world.context.now())
    at(world, "2026-01-09T12:00")
    assert scheduler.turn() == []


def test_a_start_over_quota_is_told_once_and_a_frozen_one_is_not_started(world: World, scheduler: Scheduler) -> None:
    schedule = {"start": "* 08:00", "stop": "", "timezone": "UTC"}
    at(world, "2026-01-09T07:00")
    one = add(world, E.STOPPED, schedule=schedule, stopped_at=world.context.now())
    add(world, E.STOPPED, name="cold", schedule=schedule, stopped_at=world.context.now(), frozen=True)
    with world.database.write() as session:
        session.add(Quota(id=world.context.new_id(), subject_kind="default", running=0))
    at(world, "2026-01-09T08:00:30")
    assert scheduler.turn() == scheduler.turn() == []
    with world.database.read() as session:
        lines = session.scalars(select(JobLine).where(JobLine.environment_id == one.id)).all()
        assert len(lines) == 1
        assert lines[0].text.startswith("Not started by its schedule: over the quota of running environments")
        assert session.get_one(Environment, one.id).state == E.STOPPED


def test_expiry_stops_then_deletes_and_purges_only_when_the_days_are_over(world: World, scheduler: Scheduler) -> None:
    end = world.context.now() + 60
    ready = add(world, expires_at=end, idle_stop_s=0)
    add(world, E.STOPPED, name="off", expires_at=end - EXPIRY_GRACE_S)
    add(world, E.FAILED, name="broken", expires_at=end - EXPIRY_GRACE_S)
    add(world, E.DELETED, name="gone", delete_after=end)
    assert scheduler.turn() == []
    world.clock.now += 60
    assert sorted(scheduler.turn()) == [
        "delete broken (expiry)",
        "delete off (expiry)",
        "purge gone (expiry)",
        "stop one (expiry)",
    ]
    with world.database.write() as session:
        for job in session.scalars(select(Job)):
            job.state, job.ended_at = JobState.FAILED, world.context.now()
        for row in session.scalars(select(Environment)):
            row.state = E.DELETED if row.name == "gone" else E.FAILED
        session.get_one(Environment, ready.id).state = E.STOPPED
    assert scheduler.turn() == [], "what failed is not tried again at once"
    world.clock.now += EXPIRY_GRACE_S
    assert "delete one (expiry)" in scheduler.turn()


def test_rows_that_ran_out_are_cleared(world: World, scheduler: Scheduler) -> None:
    now = world.context.now()
    one = add(world, idle_stop_s=0)
    with world.database.write() as session:
        user = session.scalars(select(User).where(User.name == "alice")).one()
        for name, ends in (("old", now - 1), ("new", now + 60)):
            session.add(Nonce(value=name, expires_at=ends))
            session.add(Ticket(token_hash=name, user_id=user.id, environment_id=one.id, kind="vnc", expires_at=ends))
            session.add(
                Login(
                    id_hash=name,
                    user_id=user.id,
                    csrf_token="c",
                    stage="full",
                    created_at=now,
                    seen_at=now,
                    expires_at=ends,
                    address="",
                )
            )
    scheduler.turn()
    with world.database.read() as session:
        assert session.scalars(select(Nonce.value)).all() == ["new"]
        assert session.scalars(select(Ticket.token_hash)).all() == ["new"]
        assert session.scalars(select(Login.id_hash)).all() == ["new"]


def test_the_database_is_saved_once_a_day_and_opens_again(world: World, scheduler: Scheduler, tmp_path: Path) -> None:
    objects = world.context.homes.objects
    at(world, "2026-01-09T12:00")
    assert scheduler.save() == "console/2026-01-09.sqlite3"
    assert scheduler.save() is None
    for _ in range(SAVES_KEPT + 2):
        world.clock.now += 24 * HOUR
        scheduler.turn()
    keys = [entry.key for entry in objects.list("console/")]
    assert (len(keys), keys[-1]) == (SAVES_KEPT, "console/2026-01-25.sqlite3")
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "envctl.sqlite3").write_bytes(bytes(objects.get(keys[-1]).data))
    database = Database(sqlite_url(copy))
    with database.read() as session:
        assert "alice" in session.scalars(select(User.name)).all()
    database.close()


@pytest.mark.parametrize("error", [OSError("disk"), ValueError("bad"), DBAPIError("x", None, Exception("lost"))])
def test_a_part_that_fails_keeps_the_others_from_nothing(
    world: World,
    scheduler: Scheduler,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    at(world, "2026-01-09T12:00")
    for name in ("first", "second"):
        row = add(world, name=name, last_backup_number=1, last_activity_at=world.context.now())
        world.context.homes.fence(row.id, 1)
    world.clock.now += HOUR
    looked_at: list[str] = []

    def broken(context: Any, environment_id: str) -> None:
        looked_at.append(environment_id)
        raise error

    monkeypatch.setattr("envctl.provision.scheduler.upkeep", broken)
    monkeypatch.setattr(Scheduler, "clear", lambda self: broken(None, "clear"))
    scheduler.thin()  # spreads the homes over the hour that comes
    looked_at.clear()
    world.clock.now += HOUR
    assert set(scheduler.turn()) == {"stop first (idle)", "stop second (idle)"}
    assert len(looked_at) == 3, "the rows, and each home by itself"
    assert [entry.key for entry in world.context.homes.objects.list("console/")] == ["console/2026-01-09.sqlite3"]
    traces = [record for record in caplog.records if record.exc_info and record.exc_info[1] is error]
    assert len(traces) >= 3
    # One environment that cannot be looked at keeps no other from its turn.
    add(world, name="third")
    add(world, name="fourth")
    monkeypatch.setattr(Scheduler, "_wanted", lambda self, session, row: broken(None, row.id))
    looked_at.clear()
    assert scheduler.begin_due() == []
    assert len(looked_at) == 2


def test_homes_are_thinned_each_hour_spread_over_it(world: World, scheduler: Scheduler) -> None:
    for number in range(12):
        row = add(world, name=f"e{number}", last_backup_number=1, idle_stop_s=0)
        world.context.homes.fence(row.id, 1)
    done: list[str] = []
    most = 0
    # The last of an hour begins when it is over.
    for _ in range(61):
        turn = scheduler.thin()
        most = max(most, len(turn))
        done += turn
        world.clock.now += 60
    assert len(set(done)) == 12
    assert most < 6


@pytest.mark.parametrize(
    ("text", "now", "before", "after"),
    [
        ("MON-FRI 08:00", "2026-01-10T09:00", "2026-01-09T08:00", "2026-01-12T08:00"),
        ("SAT-MON 23:59", "2026-01-13T00:00", "2026-01-12T23:59", "2026-01-17T23:59"),
        ("* 00:00", "2026-01-13T00:00", "2026-01-13T00:00", "2026-01-14T00:00"),
        ("wed,fri 12:30", "2026-01-14T12:29", "2026-01-09T12:30", "2026-01-14T12:30"),
    ],
)
def test_moments_of_a_rule(text: str, now: str, before: str, after: str) -> None:
    def moment(text: str) -> float:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()

    rule = schedules.parse(text)
    assert schedules.last_before(rule, UTC, moment(now)) == moment(before)
    assert schedules.next_after(rule, UTC, moment(now)) == moment(after)


def test_where_clocks_are_changed() -> None:
    """Berlin, 2026: forward on 29 March at 2:00, back on 25 October at 3:00."""
    berlin = schedules.zone("Europe/Berlin")
    rule = schedules.parse("* 02:30")
    spring = datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(schedules.next_after(rule, berlin, spring), UTC) == datetime(
        2026, 3, 29, 1, 30, tzinfo=UTC
    )
    autumn = datetime(2026, 10, 24, 12, tzinfo=UTC).timestamp()
    first = schedules.next_after(rule, berlin, autumn)
    assert datetime.fromtimestamp(first, UTC) == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert schedules.next_after(rule, berlin, first) - first == 25 * HOUR


@pytest.mark.parametrize("text", ["", "08:00", "MON 8:00", "MON 24:00", "MO 08:00", "MON-XYZ 08:00", "MON 08:00 UTC"])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        schedules.parse(text)
