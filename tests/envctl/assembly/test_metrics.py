"""What monitors are told: figures from rows, and who may read them."""

from pathlib import Path

import httpx
import pytest

from envctl.database.models import Backup, Environment, Guest, Job, Orphan
from envctl.states import EnvironmentState, JobKind, JobState
from envctl.web.metrics import FIGURES, figures
from tests.envctl.assembly.running import running_console
from tests.envctl.world import World, make_world


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def read(world: World) -> dict[str, dict[tuple[str, ...], float]]:
    with world.database.read() as session:
        return figures(session, world.context.now(), 300.0)


def test_an_empty_console_has_no_backup_that_is_late(world: World) -> None:
    found = read(world)
    assert found["backup_age_seconds"] == {}
    assert found["backup_oldest_seconds"] == {}
    assert found["environments"][("ready",)] == 0
    assert ("purged",) not in found["environments"]
    assert set(found) <= {figure.name for figure in FIGURES}


def test_figures_are_of_the_rows(world: World) -> None:
    now = world.context.now()
    template = world.add_template()
    saved = world.add_environment("alice", "saved", template, last_backup_at=now - 100, stored_bytes=7, generation=2)
    never = world.add_environment("bob", "never", template, ready_at=now - 4000, last_backup_error="no room")
    world.add_environment("bob", "off", template, EnvironmentState.STOPPED, last_backup_at=now - 9999)
    world.add_environment("bob", "broken", template, EnvironmentState.FAILED, finding="two machines")
    with world.database.write() as session:
        for state, age in ((JobState.FAILED, 10), (JobState.FAILED, 7200), (JobState.SUCCEEDED, 10)):
            session.add(
                Job(
                    id=world.context.new_id(),
                    environment_id=saved.id,
                    kind=JobKind.STOP,
                    state=state,
                    steps=[],
                    created_by="alice",
                    created_at=now - age,
                    ended_at=now - age,
                )
            )
        session.add(
            Job(
                id=world.context.new_id(),
                environment_id=never.id,
                kind=JobKind.START,
                state=JobState.RUNNING,
                steps=[],
                created_by="bob",
                created_at=now - 50,
            )
        )
        # The older machine's guest counts for nothing; the newer one was heard of a moment ago.
        for generation, seen_at in ((1, now - 5000), (2, now - 5)):
            session.add(
                Guest(
                    environment_id=saved.id,
                    generation=generation,
                    machine_uuid="u",
                    seed_expires_at=now,
                    enrolled_at=now - 6000,
                    seen_at=seen_at,
                    public_key="00" * 32,
                )
            )
        session.add(Orphan(machine="pve1/1", driver="pve", first_seen_at=now, seen_at=now))
        session.add(Orphan(machine="pve1/2", driver="pve", first_seen_at=now, seen_at=now, kept=True))
        values = {"generation": 1, "kind": "timer", "files": 1, "bytes": 1, "added": 0, "changed": 0, "removed": 0}
        session.add(
            Backup(environment_id=saved.id, number=1, at=now - 60, new_bytes=0, fuzzy=0, alert="much", **values)
        )
        session.add(
            Backup(environment_id=saved.id, number=2, at=now - 2 * 86400, new_bytes=0, fuzzy=0, alert="old", **values)
        )
    found = read(world)
    assert found["backup_age_seconds"] == {
        (saved.id, "alice"): pytest.approx(100),
        (never.id, "bob"): pytest.approx(4000),
    }
    assert found["backup_oldest_seconds"] == {(): pytest.approx(4000)}
    assert found["backup_failing"] == {(): 1}
    assert found["stored_bytes"][(saved.id, "alice")] == 7
    assert found["jobs_failed_recently"] == {(): 1}
    assert found["jobs_ended_total"] == {("stop", "failed"): 2, ("stop", "succeeded"): 1}
    assert found["jobs"] == {("queued",): 0, ("running",): 1}
    assert found["job_oldest_seconds"] == {(): pytest.approx(50)}
    assert found["guests_seen"] == {(): 1}
    assert found["guests_silent"] == {(): 0}
    assert found["orphans"] == {("pve",): 1}
    assert found["mass_changes"] == {(): 1}
    assert found["findings"] == {(): 1}
    world.clock.now += 600
    assert read(world)["guests_silent"] == {(): 1}
    with world.database.write() as session:
        session.get_one(Environment, saved.id).state = EnvironmentState.DELETED
    assert (saved.id, "alice") not in read(world)["backup_age_seconds"]


def test_metrics_are_for_this_host_or_for_who_has_the_token(tmp_path: Path) -> None:
    with running_console(tmp_path / "open", role="web") as console, console.client() as client:
        answer = client.get("/metrics")
        assert answer.status_code == 200
        assert "\nbucketworks_envctl_running 0.0\n" in answer.text
        # Through a proxy on this host: whoever asks is elsewhere.
        assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 403
        assert client.get("/metrics", headers={"X-Forwarded-For": "127.0.0.1"}).status_code == 403
        # What agents are answered is counted, by this process.
        client.get("/guest/v1/state")
        assert 'bucketworks_envctl_guest_requests_total{status="401"} 1.0' in client.get("/metrics").text
    token = tmp_path / "metrics-token"
    token.touch(mode=0o600)
    token.write_text("scrape-me\n", encoding="ascii")
    text = f'metrics_token = "file:{token}"\n'
    with running_console(tmp_path / "token", text, role="web") as console, console.client() as client:
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
        good = client.get("/metrics", headers={"Authorization": "Bearer scrape-me", "X-Forwarded-For": "203.0.113.9"})
        assert good.status_code == 200
        assert client.get("/healthz").text == "ok\n"
        # Strangers are told whether it is ready, and not what it is made of.
        stranger = {"X-Forwarded-For": "203.0.113.9"}
        assert client.get("/readyz", headers=stranger).json() == {"ready": True}
        wrong = client.get("/readyz", headers=stranger | {"Authorization": "Bearer wrong"})
        assert wrong.json() == {"ready": True}
        known = client.get("/readyz", headers=stranger | {"Authorization": "Bearer scrape-me"})
        assert set(known.json()) == {"ready", "database", "store", "drivers"}
        assert set(client.get("/readyz").json()) == {"ready", "database", "store", "drivers"}


def test_not_ready_while_the_database_is_away(tmp_path: Path) -> None:
    with running_console(tmp_path, role="web") as console, console.client() as client:
        assert client.get("/readyz").json()["ready"] is True
        file = tmp_path / "state" / "envctl.sqlite3"
        with console.context.database.write() as session:
            session.connection().exec_driver_sql("UPDATE alembic_version SET version_num = 'of-another-program'")
        answer: httpx.Response = client.get("/readyz")
        assert answer.status_code == 503
        assert answer.json()["database"] == "away"
        assert str(file) not in answer.text
        assert client.get("/healthz").status_code == 200
