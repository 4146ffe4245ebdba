"""Scans on a Dask cluster of real processes: the same plan as here, whatever dies on the way."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from bench.lister import READY, Client
from bench.mirror import make_base
from bench.processes import wait_for_line
from cowsync.catalogue import Phase
from cowsync.changes import PlanLine
from cowsync.cli import app
from cowsync.errors import ClusterUnavailable, Refused
from cowsync.mirror import opened
from cowsync.plan.plan_file import find_plan
from cowsync.scan.dask_engine import DaskEngine, check_versions, versions
from cowsync.scan.engine import InlineEngine
from cowsync.scan.ranges import WHOLE
from cowsync.scan.run import ScanFacts
from cowsync.scan.shard import ShardTask
from cowsync.work import make_plan
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.s3_control import S3Control
from s3core.settings import ConfigError, load_config
from tests.servers.moto_server import MotoServer
from tests.servers.processes import end, free_port, start, wait_for_port

OBJECTS = 60_000
PER_THOUSAND = 2


@dataclass
class Site:
    """A mirror `m` of a bucket on a server of listings, its state in another server's bucket; some objects changed since
    its base."""

    config: Path

    def plan_here(self) -> list[PlanLine]:
        with opened(load_config(self.config), "m") as mirror:
            return list(make_plan(mirror, InlineEngine()).plan)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, moto_server: MotoServer) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    state = f"state-{uuid4().hex[:8]}"
    control = S3Control(moto_server.endpoint())
    control.create_bucket(state)
    control.close()
    server = start([sys.executable, "-m", "bench.lister", "1"], folder / "lister.log")
    try:
        lister = Client(int(wait_for_line(folder / "lister.log", READY, server).split()[-1]))
        config = folder / "config.toml"
        config.touch(mode=0o600)
        common = 'region = "us-east-1"\naddressing = "path"\naccess_key = "testkey"\nsecret_key = "testsecret"\n'
        config.write_text(
            f'[endpoint.lister]\nurl = "{lister.url}"\n{common}[endpoint.moto]\nurl = "{moto_server.url}"\n{common}'
            f'[mirror.m]\nsource = "s3://lister/source-{OBJECTS}"\ntarget = "s3://lister/mirror-{OBJECTS}"\n'
            f'state = "s3://moto/{state}/m"\nstate_dir = "{folder / "m"}"\nshard_keys = 1000\nlistings = 1\n'
        )
        with opened(load_config(config), "m") as mirror:
            make_base(mirror)
        # What the workers have of the base they must fetch.
        for path in (folder / "m" / "segments").iterdir():
            path.unlink()
        lister.plant(PER_THOUSAND)
        yield Site(config)
    finally:
        end(server)


class Cluster:
    """A scheduler and its workers, a process each, one thread each. A task is given up when more than `failures` workers
    died under it: with none, giving it out again is up to the engine. A worker that says nothing for `silent_s` is given
    up."""

    def __init__(self, folder: Path, workers: int, failures: int = 0, silent_s: int = 300) -> None:
        self.address = f"tcp://127.0.0.1:{free_port()}"
        environment = {
            **os.environ,
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(failures),
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": f"{silent_s}s",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "60s",
        }
        port = self.address.rpartition(":")[2]
        place = ["--host", "127.0.0.1", "--no-dashboard"]
        log = folder / "scheduler.log"
        words = ["-m", "distributed.cli.dask_scheduler", *place, "--port", port]
        self.scheduler = start([sys.executable, *words], log, environment)
        wait_for_port(int(port), self.scheduler, log)
        self.workers = {}
        for number in range(workers):
            words = ["-m", "distributed.cli.dask_worker", self.address, *place, "--no-nanny", "--nthreads", "1"]
            words += [
                "--name",
                f"worker-{number}",
                "--death-timeout",
                "60",
                "--local-directory",
                str(folder / f"worker-{number}"),
            ]
            self.workers[folder / f"worker-{number}.log"] = start(
                [sys.executable, *words], folder / f"worker-{number}.log", environment
            )
        for log, worker in self.workers.items():
            wait_for_line(log, "Registered to:", worker)

    def freeze_a_busy_worker(self, engine: DaskEngine) -> "subprocess.Popen[bytes] | None":
        """SIGSTOP to a worker that runs a piece; None where none is sure to. It is no longer among the workers then."""
        log, worker = list(self.workers.items())[-1]
        worker.send_signal(signal.SIGSTOP)
        time.sleep(0.3)  # what it had sent by then has arrived
        workers = engine._client.scheduler_info(n_workers=-1)["workers"]
        address = next(address for address, told in workers.items() if told["name"] == log.stem)
        if not engine._client.processing()[address]:
            worker.send_signal(signal.SIGCONT)
            return None
        del self.workers[log]
        return worker

    def kill_a_busy_worker(self, engine: DaskEngine) -> bool:
        """SIGKILL to a worker that runs a piece; False where none is sure to. It is stopped first, so that it cannot end
        the piece between the look and the kill."""
        worker = self.freeze_a_busy_worker(engine)
        if worker is None:
            return False
        end(worker)
        return True

    def stop(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            end(process)


@contextmanager
def cluster_of(folder: Path, workers: int, failures: int = 0, silent_s: int = 300) -> Iterator[Cluster]:
    cluster = Cluster(folder, workers, failures, silent_s)
    try:
        yield cluster
    finally:
        cluster.stop()


@contextmanager
def engine_on(cluster: Cluster, no_worker_s: float = 60.0) -> Iterator[DaskEngine]:
    engine = DaskEngine(cluster.address, no_worker_s=no_worker_s, look_s=0.2)
    try:
        yield engine
    finally:
        engine.close()


@pytest.mark.slow
def test_a_cluster_plans_what_one_process_plans(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(site.config)
    words = ["plan", "m", "--config", str(site.config), "--json"]
    with cluster_of(tmp_path, 2) as cluster:
        assert run(app, "cowsync", [*words, "--cluster", cluster.address]) == ExitCode.FINDING
        told = capsys.readouterr()
        # The command leaves the cluster as it was; the same workers serve the next.
        with engine_on(cluster) as engine, opened(config, "m") as mirror:
            assert engine.lanes == 2
            # What only this process has, neither scheduler nor worker can run.
            monkeypatch.syspath_prepend(tmp_path)
            (tmp_path / "only_here.py").write_text("def piece(task):\n    return task\n")
            piece = importlib.import_module("only_here").piece
            with pytest.raises(Refused, match="cannot run cowsync: No module named 'only_here'"):
                engine.submit(piece, 1).result(timeout=60)
            again = list(make_plan(mirror, engine).plan)
        # A worker whose configuration describes another mirror must not list anything.
        with engine_on(cluster) as engine, opened(config, "m") as mirror:
            written = site.config.read_text()
            site.config.write_text(written + 'exclude = ["*.new"]\n')
            try:
                with pytest.raises(Refused, match=r"worker tcp://.*exclude is \['\*.new'\] here"):
                    make_plan(mirror, engine)
            finally:
                site.config.write_text(written)
    with opened(config, "m") as mirror:
        first = list(find_plan(mirror.plans, json.loads(told.out)["digest"]))
        # Both workers fetched the base into one folder.
        assert {len(path.stem) for path in (mirror.folder / "segments").iterdir()} == {64}
    assert first == again == site.plan_here()
    assert len(first) == OBJECTS // 1000 * PER_THOUSAND


@pytest.mark.slow
def test_killed_workers_cost_time_alone_until_none_is_left(site: Site, tmp_path: Path) -> None:
    config = load_config(site.config)
    expected = site.plan_here()
    with cluster_of(tmp_path, 2) as cluster:
        struck: list[ScanFacts] = []

        def kill_one(engine: DaskEngine, facts: ScanFacts) -> None:
            """Once in each scan."""
            if not any(seen is facts for seen in struck) and cluster.kill_a_busy_worker(engine):
                struck.append(facts)

        with engine_on(cluster) as engine, opened(config, "m") as mirror:
            planned = make_plan(mirror, engine, progress=partial(kill_one, engine))
            assert len(cluster.workers) == 1
            assert planned.scan.workers_lost >= 1
            assert list(planned.plan) == expected
        with engine_on(cluster, no_worker_s=1.0) as engine, opened(config, "m") as mirror:
            before, plans = mirror.state.head(), sorted(mirror.plans.iterdir())
            with pytest.raises(ClusterUnavailable, match="it has no worker, for"):
                make_plan(mirror, engine, progress=partial(kill_one, engine))
            assert (mirror.state.head(), sorted(mirror.plans.iterdir())) == (before, plans)
        with pytest.raises(ClusterUnavailable, match="has no worker"), engine_on(cluster):
            pass


@pytest.mark.slow
def test_a_cluster_that_goes_away_changes_nothing(site: Site, tmp_path: Path) -> None:
    config = load_config(site.config)
    with cluster_of(tmp_path, 1) as cluster:

        def kill_scheduler(facts: ScanFacts) -> None:
            if facts.shards >= 5 and cluster.scheduler.poll() is None:
                end(cluster.scheduler)

        with engine_on(cluster) as engine, opened(config, "m") as mirror:
            before = mirror.state.head()
            with pytest.raises(ClusterUnavailable, match="is gone: the connection to its scheduler is lost"):
                make_plan(mirror, engine, progress=kill_scheduler)
            assert mirror.state.head() == before
            last = mirror.catalogue().runs(1)[0]
            assert (last.phase, cluster.address in last.message) == (Phase.FAILED, True)
            late = engine.submit(versions_of, "nothing").exception(timeout=5)
            assert isinstance(late, ClusterUnavailable)
    assert len(site.plan_here()) == OBJECTS // 1000 * PER_THOUSAND


def versions_of(_: str) -> dict[str, str]:
    return versions()


def test_a_worker_checks_that_its_mirror_is_the_same(site: Site) -> None:
    written = site.config.read_text()
    with opened(load_config(site.config), "m") as mirror:
        task = ShardTask(WHOLE, 2, where={**mirror.where, "base": ""})
        site.config.write_text(written.replace(f"source-{OBJECTS}", "source-7"))
        try:
            with pytest.raises(ConfigError, match="source is 's3://lister/source-7' here, and"):
                mirror.piece(task)
        finally:
            site.config.write_text(written)
        assert mirror.piece(replace(task, keys_max=1000)).keys == 1000


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (ModuleNotFoundError("No module named 'cowsync'"), "cannot run cowsync: No module named 'cowsync'"),
        (versions() | {"Python": "3.99"}, "runs another version: Python 3.99, not 3"),
        ({}, "bucketworks none, not"),
    ],
)
def test_a_worker_of_another_version_is_refused(there: object, told: str) -> None:
    fit = {"tcp://one:1": versions()}
    check_versions("tcp://host:1", versions(), fit)
    with pytest.raises(Refused, match=r"^tcp://two:2 of tcp://host:1") as refused:
        check_versions("tcp://host:1", versions(), {**fit, "tcp://two:2": there})
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("mirror", "cluster", "code", "told"),
    [
        ("m", "host:8786", ExitCode.USAGE, "tcp://HOST:PORT"),
        ("m", "tls://127.0.0.1:1", ExitCode.REFUSED, "needs a certificate"),
        ("m", "tcp://127.0.0.1:1", ExitCode.UNAVAILABLE, "no Dask scheduler answers at tcp://127.0.0.1:1"),
        ("here", "tcp://127.0.0.1:1", ExitCode.USAGE, "in the memory of this process alone"),
    ],
)
def test_what_cannot_run_on_a_cluster_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mirror: str,
    cluster: str,
    code: ExitCode,
    told: str,
) -> None:
    monkeypatch.setattr("cowsync.scan.dask_engine.CONNECT_S", 0.5)
    config = tmp_path / "config.toml"
    endpoint = '[endpoint.e]\nurl = "http://127.0.0.1:1"\naccess_key = "a"\nsecret_key = "b"\n'
    config.touch(mode=0o600)
    config.write_text(
        f'{endpoint}[mirror.m]\nsource = "s3://e/source"\ntarget = "s3://e/target"\nstate_dir = "{tmp_path}/m"\n'
        f'[mirror.here]\nsource = "memory:s"\ntarget = "memory:t"\nstate_dir = "{tmp_path}/here"\n'
    )
    assert run(app, "cowsync", ["plan", mirror, "--cluster", cluster, "--config", str(config)]) == code
    seen = capsys.readouterr().err
    assert told in seen
    assert ("on a shared file system" in seen) is (code is not ExitCode.USAGE)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(Refused, match="needs distributed, which is not installed") as refused:
        DaskEngine("tcp://127.0.0.1:1")
    assert "bucketworks[cluster]" in refused.value.hint
