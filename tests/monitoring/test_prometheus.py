"""A real Prometheus scrapes real services of every kind with our rules, and every panel is asked for its data."""

import json
import shutil
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_rules import RULES, alerts
from grafana.panels import DASHBOARDS

from cowsync.feed.gathered import Counts
from cowsync.feed.source import FileFeed, status_of
from cowsync.watch_health import Doing, Health, HealthServer
from envctl.database.models import Orphan
from integrity.enrolment import make_slots, request_of
from integrity.keys import LedgerKey
from integrity.service import Service, listening, new_service
from s3core.settings import GuardSettings
from tests.cowsync.test_watch import HOUR_S, filled, one_round
from tests.envctl.assembly.running import running_console
from tests.envctl.world import World as ConsoleWorld
from tests.integrity.test_enrolment import ORIGIN, opened, take
from tests.monitoring.test_dashboards import without_variables
from tests.plugin.service_world import Node, wait_until
from tests.s3core.fakes import FakeClock
from tests.servers.processes import end, free_port, start, wait_for_port
from tests.system.machine import Server, create

PATIENCE_S = 150.0
SILENT = {
    "overview: Alerts that fire": "none does",
    "volumes: Quota": "the volume here has none",
    "volumes: Write amplification": "nothing was written",
    "ledgers: Writers, and the age of the oldest head": "no writer has recorded anything",
    "ledgers: Cosignatures": "the ledger here has no witness",
    "Proxmox VE storages: Bytes": "nothing was carried",
    "console: Certificate ends in": "the console here has no TLS",
    "console: Hypervisors": "none is configured",
    "console: Nodes that are up": "none is configured",
    "console: Jobs that ended": "none was begun",
    "console: Oldest job": "none is under way",
}
"""Panels that show nothing in this world, and why."""


@contextmanager
def volume(directory: Path) -> Iterator[str]:
    place = f"file://{directory}/store/vm1"
    create(place)
    address = f"127.0.0.1:{free_port()}"
    with Server(directory, place, "--metrics-listen", address, "--commit-interval", "200ms") as server:
        server.start()
        yield address


@contextmanager
def mirror(directory: Path) -> Iterator[str]:
    world = filled(directory, guard=GuardSettings(floor_keys=100))
    feed = directory / "events"
    FileFeed(feed, directory).handled(None, Counts(lines=7), world.clock.time())
    runs = world.mirror().catalogue().recent
    health = Health("m", HOUR_S, runs, Doing(), world.clock.time, feed=lambda now: status_of(str(feed), directory, now))
    one_round(world)
    server = HealthServer("127.0.0.1:0", health)
    try:
        yield server.url.removeprefix("http://")
    finally:
        server.close()


@contextmanager
def ledger(directory: Path) -> Iterator[str]:
    key = LedgerKey.create(directory / "h" / "ledger.key", ORIGIN)
    made = opened(directory, vkey=key.signer.vkey, seal_s=1.0)
    make_slots(made, 3)
    take(made, request_of(made))
    service = Service(made, key=directory / "h" / "ledger.key")
    stop = threading.Event()

    def rounds() -> None:
        while not stop.wait(0.5):
            service.round()

    thread = threading.Thread(target=rounds, name="rounds")
    service.round()
    thread.start()
    try:
        with listening(new_service(service), "127.0.0.1:0") as url:
            yield url.removeprefix("http://")
    finally:
        stop.set()
        thread.join()


@contextmanager
def storage(directory: Path) -> Iterator[str]:
    node = Node(directory)
    node.settings |= {"metrics_listen": "127.0.0.1:0", "probe_s": "1s"}
    node.add("s3", bw_quota=1, bw_budget_requests=1000)
    node.bucket().put("s3/dump/vzdump-qemu-100-2026_11_22-10_00_00.vma", b"12345")
    node.start()
    try:
        node.names()
        assert node.core is not None
        wait_until(lambda: node.ask("status")["active"] is True and node.ask("status")["used"] == 5)
        yield node.core.metrics_url.removeprefix("http://").removesuffix("/metrics")
    finally:
        node.stop()


@contextmanager
def console(directory: Path) -> Iterator[str]:
    with running_console(directory, role="web") as running, running.client() as client:
        running.add_user("alice")
        world = ConsoleWorld(running.context, FakeClock(), directory)
        world.add_environment("alice", "desk", world.add_template(), last_backup_at=time.time(), stored_bytes=7)
        with running.context.database.write() as session:
            session.add(Orphan(machine="x/1", driver="x", first_seen_at=time.time(), seen_at=time.time()))
        client.get("/guest/v1/state")
        yield running.url.removeprefix("http://")


JOBS = {"s3block": volume, "cowsync": mirror, "s3integrity": ledger, "pve-s3": storage, "s3-envctl": console}


@contextmanager
def prometheus(directory: Path, targets: dict[str, str]) -> Iterator[str]:
    """Its address."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [address]}]} for job, address in targets.items()
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    log = directory / "prometheus.log"
    options = [f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb"]
    process = start(["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"], log)
    try:
        wait_for_port(port, process, log)
        wait_until(lambda: _is_ready(f"http://127.0.0.1:{port}/-/ready"))
        yield f"http://127.0.0.1:{port}"
    finally:
        end(process)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def asked(url: str, path: str, **parameters: str) -> Any:
    with urllib.request.urlopen(f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=60) as answer:
        told = json.load(answer)
    assert told["status"] == "success"
    return told["data"]


def without_data(url: str) -> dict[str, str]:
    """Panels of which some query is answered with nothing, and that query."""
    found = {}
    for board in DASHBOARDS:
        for panel in board.panels:
            name = f"{board.title.removeprefix('Bucketworks: ')}: {panel.title}"
            for query in panel.queries:
                expression = without_variables(query.expression, board)
                if not asked(url, "query", query=expression)["result"] and name not in SILENT:
                    found[name] = expression
    return found


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus: apt-get install --no-install-recommends prometheus"
)
def test_every_panel_has_data_and_no_alert_fires_that_should_not(tmp_path: Path) -> None:
    with ExitStack() as stack:
        targets = {}
        for job, serve in JOBS.items():
            (tmp_path / job).mkdir()
            targets[job] = stack.enter_context(serve(tmp_path / job))
        url = stack.enter_context(prometheus(tmp_path, targets))
        give_up = time.monotonic() + PATIENCE_S
        while (missing := without_data(url)) and time.monotonic() < give_up:
            time.sleep(2)
        assert missing == {}
        up = {one["metric"]["job"]: one["value"][1] for one in asked(url, "query", query="up")["result"]}
        assert up == dict.fromkeys(JOBS, "1")
        programs = asked(url, "query", query="bucketworks_build_info")["result"]
        assert {one["metric"]["tool"] for one in programs} == set(JOBS)
        assert len({one["metric"]["version"] for one in programs}) == 1
        rules = [rule for group in asked(url, "rules")["groups"] for rule in group["rules"]]
        assert {rule["name"] for rule in rules} == {alert.name for alert in alerts()}
        assert {rule["lastError"] for rule in rules if "lastError" in rule} == set()
        firing = {rule["name"] for rule in rules if rule["state"] == "firing"}
        assert firing == {"BucketworksWatchdog"}
