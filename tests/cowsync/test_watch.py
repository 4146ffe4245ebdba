"""`cowsync watch`: when rounds begin, how they end, what monitors are told; on a clock that moves when somebody waits."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fcntl import LOCK_EX, flock
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cowsync.base.head import Entry
from cowsync.catalogue import Phase, Run
from cowsync.errors import Busy, Held, Refused
from cowsync.feed.gathered import Counts
from cowsync.feed.source import FileFeed, status_of
from cowsync.mirror import Mirror
from cowsync.plan.plan_file import digests
from cowsync.scan.engine import Engine, InlineEngine
from cowsync.watch import (
    BUSY_RETRY_S,
    DAY_S,
    JITTER,
    End,
    Ended,
    forget_runs,
    kept,
    pause_after,
    remove_old_plans,
    run_round,
    watch,
)
from cowsync.watch_health import METRICS, Doing, Health, HealthServer, past_of
from cowsync.work import alone
from s3core.errors import Unavailable
from s3core.gauges import BUILD_INFO
from s3core.service_manager import ServiceManager
from s3core.settings import GuardSettings, MirrorSettings
from tests.cowsync.apply.faulty_bucket import Fault, Faults
from tests.cowsync.worlds import World

HOUR_S = 3600.0


@contextmanager
def inline(mirror: Mirror) -> Iterator[Engine]:
    yield InlineEngine()


def one_round(world: World, stop: threading.Event | None = None, told: Callable[[str], None] = lambda _: None) -> Ended:
    return run_round(world.mirror(), inline, now=world.clock.time, stop=stop or threading.Event(), told=told)


def filled(tmp_path: Path, keys: int = 20, **settings: object) -> World:
    world = World(tmp_path, **settings)  # type: ignore[arg-type]
    for number in range(keys):
        world.source.put(f"k/{number:03}", b"%d" % number)
    return world


def health_of(world: World, doing: Doing | None = None) -> Health:
    return Health("m", HOUR_S, world.mirror().catalogue().runs, doing or Doing(), world.clock.time)


# --- schedule --------------------------------------------------------------------------------------------------------


def test_rounds_are_counted_from_start_to_start() -> None:
    assert pause_after(End.DONE, 100.0, 130.0, HOUR_S, 0.5) == HOUR_S - 30
    assert pause_after(End.HELD, 0.0, HOUR_S + 1, HOUR_S, 0.5) == 0.0, "one that took longer is followed at once"
    assert pause_after(End.DONE, 0.0, 0.0, HOUR_S, 0.0) == HOUR_S * (1 - JITTER)
    assert pause_after(End.DONE, 0.0, 0.0, HOUR_S, 1.0) == HOUR_S * (1 + JITTER)
    assert pause_after(End.BUSY, 0.0, 0.0, HOUR_S, 0.5) == BUSY_RETRY_S
    assert pause_after(End.BUSY, 0.0, 0.0, 5.0, 0.5) == 5.0, "no less often than usual"


def test_a_day_of_rounds_of_which_one_is_long_and_none_overlap(tmp_path: Path) -> None:
    world = filled(tmp_path)
    begun: list[float] = []
    ends: list[tuple[End, float]] = []
    going = 0

    def round_() -> Ended:
        nonlocal going
        going += 1
        assert going == 1
        begun.append(world.clock.now)
        ended = one_round(world)
        world.clock.sleep(2.5 * HOUR_S if len(begun) == 3 else 60.0)
        going -= 1
        return ended

    def wait(seconds: float) -> bool:
        world.clock.sleep(seconds)
        return world.clock.now >= 1000.0 + DAY_S

    watch(
        round_,
        every_s=HOUR_S,
        monotonic=world.clock.monotonic,
        wait=wait,
        spread=lambda: 0.5,
        ended=lambda ended, pause: ends.append((ended.end, pause)),
    )
    between = [later - sooner for sooner, later in pairwise(begun)]
    assert between == [HOUR_S] * 2 + [2.5 * HOUR_S] + [HOUR_S] * (len(between) - 3)
    assert [end for end, _ in ends] == [End.DONE] + [End.CLEAN] * (len(ends) - 1)
    assert ends[2][1] == 0.0


def test_a_round_that_was_stopped_is_the_last() -> None:
    ended: list[End] = []
    watch(
        lambda: Ended(End.STOPPED),
        every_s=1.0,
        monotonic=lambda: 0.0,
        wait=lambda seconds: pytest.fail("nothing is waited for"),
        spread=lambda: 0.5,
        ended=lambda told, pause: ended.append(told.end),
    )
    assert ended == [End.STOPPED]


# --- how rounds end --------------------------------------------------------------------------------------------------


def test_what_the_guard_holds_is_told_and_not_applied_and_scanning_goes_on(tmp_path: Path) -> None:
    world = filled(tmp_path)
    assert one_round(world).end is End.DONE
    health = health_of(world)
    assert health.answer()[0] == 200
    for key in list(world.source.contents()):
        world.source.delete(key)
    first = one_round(world)
    assert first.end is End.HELD
    assert isinstance(first.error, Held)
    assert first.plan[:12] in first.message
    second = one_round(world)
    assert (second.end, second.plan) == (End.HELD, first.plan), "it was listed again, and is the same plan"
    assert len(world.mirrored()) == 20
    status, document = health.answer()
    assert (status, document["held"]) == (503, first.plan)
    assert f"--approve {first.plan[:12]}" in str(document["why"])
    # By hand, between two rounds.
    world.apply(world.plan())
    status, document = health.answer()
    assert (status, document["held"], document["why"]) == (200, "", "")


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.DENIED])
def test_a_store_that_is_away_is_tried_again_next_time(tmp_path: Path, fault: Fault) -> None:
    world = filled(tmp_path)
    world.faults.at = dict.fromkeys(range(1, 1000), fault)
    ended = one_round(world)
    assert ended.end is End.FAILED
    assert "injected" in ended.message
    assert "injected" in world.mirror().catalogue().runs(1)[0].message, "`cowsync status` has the reason"
    status, document = health_of(world, Doing(last=ended.text())).answer()
    assert status == 503
    assert "injected" in str(document["why"])
    world.faults.at = {}
    assert one_round(world).end is End.DONE
    assert health_of(world).answer()[0] == 200


def test_state_that_is_away_is_tried_again_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the catalogue knows of such a round; the service does."""
    world = filled(tmp_path)
    mirror = world.mirror()

    def away() -> object:
        raise Unavailable("the state is away")

    monkeypatch.setattr(type(mirror.state), "head", lambda state: away())
    ended = one_round(world)
    assert (ended.end, ended.message) == (End.FAILED, "the state is away")
    status, document = health_of(world, Doing(last=ended.text())).answer()
    assert status == 503
    assert "the state is away" in str(document["why"])


def test_a_mirror_that_another_process_works_on_is_left_alone(tmp_path: Path) -> None:
    world = filled(tmp_path)
    world.source.requests.clear()
    with alone(world.mirror()):
        ended = one_round(world)
    assert ended.end is End.BUSY
    assert isinstance(ended.error, Busy)
    assert "another process works on mirror m" in ended.message
    assert not world.source.requests
    assert one_round(world).end is End.DONE


def test_a_stop_while_it_lists_leaves_nothing(tmp_path: Path) -> None:
    world = filled(tmp_path)
    stop = threading.Event()
    stop.set()
    assert one_round(world, stop).end is End.STOPPED
    assert world.mirror().catalogue().runs(1)[0].phase is Phase.INTERRUPTED
    assert (world.mirrored(), digests(world.mirror().plans)) == ({}, [])
    assert one_round(world).end is End.DONE


def test_a_stop_while_it_applies_is_gone_on_with_next_time(tmp_path: Path) -> None:
    world = filled(tmp_path, keys=200, copiers=1)
    stop = threading.Event()
    world.faults.meanwhile = dict.fromkeys(range(1, 400), lambda: stop.set() if len(world.mirrored()) >= 5 else None)
    ended = one_round(world, stop)
    assert ended.end is End.STOPPED
    copied = len(world.mirrored())
    assert 5 <= copied < 200
    assert ended.done == copied, "lines in flight are finished and noted"
    world.faults.meanwhile = {}
    world.target.requests.clear()
    again = one_round(world)
    assert again.end is End.DONE
    assert world.mirrored() == world.source.contents()
    assert world.target.requests["copy"] == 200 - copied, "nothing is copied twice"


def test_lines_that_a_person_should_look_at_are_told(tmp_path: Path) -> None:
    world = filled(tmp_path)
    one_round(world)
    world.source.put("k/003", b"new")
    world.target.put("k/003", b"by somebody else")
    ended = one_round(world)
    assert (ended.end, ended.failed) == (End.PARTIAL, 1)
    assert "drifted: modify k/003" in ended.message
    health = health_of(world)
    world.clock.sleep(2 * HOUR_S)
    one_round(world)
    world.clock.sleep(2 * HOUR_S)
    status, document = health.answer()
    assert (status, document["why"], document["drifted"]) == (200, "", 1), "the service does what it can"
    assert "such as k/003, and were left alone" in str(document["drift"])
    figures = health.figures()
    assert (figures["drifted_lines"], figures["failed_lines"], figures["last_run_failed"]) == (1, 0, 0)
    world.target.put("k/003", b"3")
    one_round(world)
    status, document = health.answer()
    assert (status, document["drifted"], document["drift"]) == (200, 0, "")


def test_lines_that_fail_are_ill_health_when_it_lasts(tmp_path: Path) -> None:
    world = filled(tmp_path)
    one_round(world)
    world.source.put("k/003", b"new")
    health = health_of(world)
    world.clock.sleep(2 * HOUR_S)
    world.faults = Faults(dict.fromkeys(range(3, 200), Fault.DENIED))
    ended = one_round(world)
    assert (ended.end, ended.failed) == (End.PARTIAL, 1), ended.text()
    assert health.answer()[0] == 200, "the one before is young enough"
    world.clock.sleep(HOUR_S)
    status, document = health.answer()
    assert status == 503
    assert "the last run is partial: 1 lines failed" in str(document["why"])
    figures = health.figures()
    assert (figures["drifted_lines"], figures["failed_lines"], figures["last_run_failed"]) == (0, 1, 1)


def test_what_only_the_service_knows_is_told(tmp_path: Path) -> None:
    world = filled(tmp_path)
    one_round(world)
    doing = Doing()
    health = health_of(world, doing)
    for end, lock_held, failed in ((End.BUSY, 1, 0), (End.FAILED, 0, 1), (End.CLEAN, 0, 0)):
        doing.end = end
        figures = health.figures()
        assert (figures["lock_held"], figures["last_run_failed"]) == (lock_held, failed)
    assert figures["every_seconds"] == HOUR_S


# --- tidying ---------------------------------------------------------------------------------------------------------


def test_restore_points_are_pruned_once_a_day(tmp_path: Path) -> None:
    world = filled(tmp_path, snapshots_kept=2)
    for number in range(5):
        world.source.put("k/000", b"%d" % number)
        assert one_round(world).untidy == ""
    assert len(world.mirror().state.head().entries) == 5, "the first round pruned when there was one"
    world.clock.sleep(DAY_S - 1)
    one_round(world)
    assert len(world.mirror().state.head().entries) == 6
    world.clock.sleep(1)
    one_round(world)
    assert len(world.mirror().state.head().entries) == 2


def test_old_runs_are_forgotten_with_them_but_never_one_whose_plan_may_be_applied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cowsync.catalogue.RUNS_MIN", 2)
    monkeypatch.setattr("cowsync.catalogue.RUNS_MAX", 4)
    world = filled(tmp_path)
    catalogue = world.mirror().catalogue()
    one_round(world)
    first = catalogue.runs(1)[0]
    for _ in range(6):
        one_round(world)
        world.clock.sleep(DAY_S / 4)
    runs = catalogue.runs()
    assert len(runs) > 4, "plans of all rounds are on this host"
    mirror = world.mirror()
    assert remove_old_plans(mirror, keep=2) > 0
    assert forget_runs(mirror, world.clock.time()) > 0
    left = {run.plan for run in catalogue.runs()}
    assert set(digests(mirror.plans)) <= left
    assert first.plan in left, "the newest that copied anything"
    assert runs[-2].plan not in left
    assert len(left) < len(runs)


def test_what_cannot_be_tidied_is_told_and_the_run_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = filled(tmp_path)

    def fails(*args: object) -> None:
        raise Unavailable("no listing today")

    monkeypatch.setattr(type(world.mirror().state), "prune", fails)
    ended = one_round(world)
    assert ended.end is End.DONE
    assert "no listing today" in ended.untidy
    assert "no listing today" in ended.text()
    monkeypatch.undo()
    assert one_round(world).untidy == ""


def test_vanished_objects_become_due_although_restore_points_are_pruned(tmp_path: Path) -> None:
    """Their ages are told by restore points; hourly runs keep 90 of them for less than four days."""
    world = filled(tmp_path, vanished="remove", vanished_s=2 * DAY_S, snapshots_kept=3)
    one_round(world)
    world.source.delete("k/003")
    gone = world.clock.now
    while "k/003" in world.mirrored():
        world.clock.sleep(4 * HOUR_S)
        assert one_round(world).end in (End.DONE, End.CLEAN)
        assert world.clock.now < gone + 3 * DAY_S
        assert len(world.mirror().state.head().entries) < 25
    assert world.clock.now >= gone + 2 * DAY_S


def test_which_restore_points_are_kept() -> None:
    settings = MirrorSettings(source="memory:s", target="memory:t", snapshots_kept=3)
    entries = [Entry(f"s{run}", run, f"2026-01-{run:02}T00:00:00+00:00") for run in range(28, 0, -1)]
    now = 1_769_558_400.0  # 28 January 2026
    assert kept(entries, settings, now) == ["s28", "s27", "s26"]
    assert len(kept(entries, settings.model_copy(update={"snapshots_kept": 0}), now)) == 28
    removing = settings.model_copy(update={"vanished": "remove"})
    assert set(kept(entries, removing, now)) == {f"s{run}" for run in range(21, 29)}, "down to one a week old"
    assert kept([], removing, now) == []


def test_old_plans_go_but_never_the_newest_nor_one_with_journals(tmp_path: Path) -> None:
    world = filled(tmp_path)
    made: list[str] = []
    for number in range(6):
        world.source.put("k/000", b"%d" % number)
        made.append(world.plan().plan.digest)
        world.clock.sleep(1)
    mirror = world.mirror()
    mirror.journals(made[1]).mkdir(parents=True)
    assert remove_old_plans(mirror, keep=2) == 3
    assert digests(mirror.plans) == sorted([made[1], made[4], made[5]])
    assert remove_old_plans(mirror, keep=0) == 1
    assert digests(mirror.plans) == sorted([made[1], made[5]])
    assert sorted(path.name for path in mirror.plans.iterdir()) == digests(mirror.plans), "nothing else is left"


# --- what monitors are told ------------------------------------------------------------------------------------------


def test_health_ages(tmp_path: Path) -> None:
    world = filled(tmp_path)
    health = health_of(world)
    assert health.answer() == (
        503,
        {
            "mirror": "m",
            "healthy": False,
            "why": "no complete run is known",
            "held": "",
            "drifted": 0,
            "drift": "",
            "last_complete": None,
            "age_seconds": None,
            "every_seconds": HOUR_S,
            "doing": "starting",
            "next_at": None,
        },
    )
    one_round(world)
    world.clock.sleep(3 * HOUR_S - 1)
    assert health.answer()[0] == 200
    world.clock.sleep(1)
    status, document = health.answer()
    assert (status, document["why"]) == (503, "the last complete run ended 3 h ago, and one is due every 1 h")


def test_a_complete_run_is_not_forgotten_behind_many_that_failed() -> None:
    good = Run(1, 1, Phase.CLEAN, 100.0, 110.0, plan="p")
    runs = [good]
    health = Health("m", HOUR_S, lambda limit: runs[:limit], Doing(), lambda: 120.0)
    assert health.past().complete is good
    runs[:] = [Run(number, 2, Phase.FAILED, 111.0, 112.0) for number in range(1000, 2, -1)] + [good]
    assert health.past().complete is good


def test_what_the_source_changed_meanwhile_is_no_failure() -> None:
    run = Run(1, 1, Phase.PARTIAL, 1.0, 2.0, facts={"applied": {"counts": {"modify": {"moved": 2, "done": 1}}}})
    assert past_of([run]).complete is run
    failed = replace(run, facts={"applied": {"counts": {"modify": {"moved": 2, "failed": 1}}}})
    assert past_of([failed]).complete is None
    going = Run(2, 2, Phase.APPLYING, 3.0, plan="p")
    assert past_of([going, run]).last is run


def fetched(url: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_the_server_tells_health_and_every_metric_of_the_table(tmp_path: Path) -> None:
    world = filled(tmp_path, guard=GuardSettings(floor_keys=100))
    feed = tmp_path / "events"
    health = Health(
        "m",
        HOUR_S,
        world.mirror().catalogue().recent,
        Doing(),
        world.clock.time,
        feed=lambda now: status_of(str(feed), tmp_path, now),
    )
    FileFeed(feed, tmp_path).handled(None, Counts(lines=7, malformed=2, floods=1), world.clock.time())
    server = HealthServer("127.0.0.1:0", health)
    try:
        status, kind, body = fetched(server.url + "/healthz")
        assert (status, kind, json.loads(body)["healthy"]) == (503, "application/json", False)
        assert "bucketworks_mirror_lag_seconds{" not in fetched(server.url + "/metrics")[2]
        one_round(world)
        world.clock.sleep(50)
        status, _, body = fetched(server.url + "/healthz?verbose")
        assert (status, json.loads(body)["age_seconds"]) == (200, 50)
        status, kind, body = fetched(server.url + "/metrics")
        assert status == 200
        assert kind.startswith("text/plain")
        told = {
            sample.name: (sample.labels, sample.value)
            for family in text_string_to_metric_families(body)
            for sample in family.samples
            if sample.name != BUILD_INFO
        }
        assert set(told) == {metric.name for metric in METRICS}
        assert all(labels == {"mirror": "m"} for labels, _ in told.values())
        figures = {name.removeprefix("bucketworks_mirror_"): value for name, (_, value) in told.items()}
        assert (figures["healthy"], figures["held"], figures["failed_lines"]) == (1, 0, 0)
        assert (figures["keys"], figures["bytes"], figures["changes"]) == (20, 30, 20)
        assert figures["lag_seconds"] >= 50
        assert (figures["events_lines"], figures["events_malformed_lines"], figures["events_floods"]) == (7, 2, 1)
        assert figures["events_lag_seconds"] == 0
        feed.write_bytes(b"{}\n")
        os.utime(feed, (world.clock.time() - 30, world.clock.time() - 30))
        assert json.loads(fetched(server.url + "/healthz")[2])["events"]["lag_seconds"] == 30
        assert fetched(server.url + "/")[0] == 404
        with pytest.raises(Refused, match="cannot listen"):
            HealthServer(server.url.removeprefix("http://"), health_of(world))
    finally:
        server.close()


def test_names_of_metrics_follow_the_rules_of_prometheus() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"bucketworks_mirror_[a-z_]+", metric.name)
        assert metric.name.endswith("_seconds") == (metric.unit == "seconds"), metric.name


# --- the service manager and the command -----------------------------------------------------------------------------


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.settimeout(10)
        environ = {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
        manager = ServiceManager(environ)
        assert manager.watchdog_s == 3.0
        manager.ready()
        manager.status("two\nlines")
        manager.alive()
        manager.stopping()
        assert [listening.recv(99) for _ in range(4)] == [
            b"READY=1",
            b"STATUS=two lines",
            b"WATCHDOG=1",
            b"STOPPING=1",
        ]
        assert ServiceManager(environ | {"WATCHDOG_PID": "1"}).watchdog_s == 0.0, "meant for another process"
    manager.ready()  # nobody listens any more
    assert ServiceManager({}).watchdog_s == 0.0


def configured(tmp_path: Path, settings: str) -> dict[str, str]:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[mirror.m]\nsource = "memory:s"\ntarget = "memory:t"\nstate_dir = "{tmp_path / "state"}"\n{settings}'
    )
    return {**os.environ, "BUCKETWORKS_CONFIG": str(config)}


def test_the_command_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    environ = configured(tmp_path, 'every_s = "1s"\nlisten = "127.0.0.1:0"\nlog_format = "json"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.settimeout(60)
        environ |= {"NOTIFY_SOCKET": str(tmp_path / "n"), "WATCHDOG_USEC": "600000"}
        command = [sys.executable, "-m", "cowsync", "watch", "m", "--json"]
        with subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as served:
            try:
                assert served.stderr is not None
                assert listening.recv(999) == b"READY=1"
                first = json.loads(served.stderr.readline())
                found = re.search(r"(http://\S+)/healthz", first["message"])
                assert found, first
                heard: list[str] = []
                while not any("next run at" in told for told in heard) or "WATCHDOG=1" not in heard:
                    heard.append(listening.recv(999).decode())
                assert any(re.fullmatch("STATUS=clean; next run at .* UTC", told) for told in heard)
                # Late on a loaded machine, where a run takes three periods of a second.
                body = json.loads(fetched(found[1] + "/healthz")[2])
                assert (body["mirror"], body["held"]) == ("m", "")
                assert body["last_complete"] > 0
                served.send_signal(signal.SIGTERM)
                out, err = served.communicate(timeout=60)
            finally:
                served.kill()
    assert served.returncode == 0, err
    assert "stopped" in json.loads(err.splitlines()[-1])["message"]
    first_end, *later = [json.loads(line)["ended"] for line in out.splitlines()]
    assert first_end == "clean"
    assert set(later) <= {"clean", "stopped"}, "the signal may come in the middle of one"


def test_one_round_for_a_timer(tmp_path: Path) -> None:
    environ = configured(tmp_path, "")
    command = [sys.executable, "-m", "cowsync", "watch", "m", "--once", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    told = json.loads(done.stdout)
    assert (told["ended"], done.returncode) == ("clean", 0), done.stderr
    with (tmp_path / "state" / "lock").open() as lock:
        flock(lock, LOCK_EX)
        busy = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert (json.loads(busy.stdout)["ended"], busy.returncode) == ("busy", 7)
    assert "another process works on mirror m" in json.loads(busy.stderr)["error"]["message"]
