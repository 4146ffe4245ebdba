"""Lines of a plan on a Dask cluster of real processes: the mirror is as after an apply here, whoever dies on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cowsync.apply.journal import journal_files
from cowsync.apply.pieces import Elsewhere
from cowsync.apply.run import Progress
from cowsync.changes import Op, Outcome
from cowsync.cli import app
from cowsync.errors import Refused
from cowsync.mirror import opened
from cowsync.scan.engine import Hold, InlineEngine
from cowsync.work import Applied, apply, apply_settings, make_plan
from integrity.recording import NotRecorded
from s3core.bucket import Bucket
from s3core.bucket_stack import open_bucket
from s3core.console import run
from s3core.exit_codes import ExitCode
from s3core.s3_control import S3Control
from s3core.settings import load_config
from tests.cowsync.test_dask import Cluster, cluster_of, engine_on
from tests.integrity.ledgers import adopted, join, ledger_settings, records
from tests.servers.moto_server import MotoServer
from tests.servers.processes import end

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OBJECTS = 240


@dataclass
class Site:
    """Mirrors `m` and `n` of one bucket, on one server."""

    config: Path
    source: Bucket

    def fill(self, mark: int, every: int = 1) -> None:
        with ThreadPoolExecutor(8) as pool:
            keys = [f"{number:04}" for number in range(0, OBJECTS, every)]
            list(pool.map(lambda key: self.source.put(key, f"{mark} {key}".encode() * 50), keys))

    def listed(self, name: str) -> dict[bytes, bytes]:
        with opened(load_config(self.config), name) as mirror:
            page = mirror.target.bucket.list_page()
        return dict(zip(page.keys, page.etags, strict=True))

    def expected(self) -> dict[bytes, bytes]:
        page = self.source.list_page()
        return dict(zip(page.keys, page.etags, strict=True))

    def run_on(self, cluster: Cluster, *, strike: Callable[[Any], bool] | None = None) -> tuple[Applied, int]:
        """Plan here, apply there; `strike` is tried at each report until it does. How often it did."""
        struck = 0

        def told(progress: Progress) -> None:
            nonlocal struck
            if strike is not None and not struck and 0 < progress.lines < progress.lines_total // 2:
                struck += strike(engine)

        with opened(load_config(self.config), "m") as mirror, engine_on(cluster) as engine:
            planned = make_plan(mirror, InlineEngine())
            applied = apply(mirror, planned.plan.digest, approve=planned.plan.digest, crew=engine, on_progress=told)
            assert make_plan(mirror, InlineEngine()).clean
        return applied, struck


@pytest.fixture
def site(tmp_path: Path, moto_server: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    mark = uuid4().hex[:8]
    control = S3Control(moto_server.endpoint())
    for name in ("source", "m", "n"):
        control.create_bucket(f"{name}-{mark}")
    control.close()
    config = tmp_path / "config.toml"
    config.touch(mode=0o600)
    mirrors = "".join(
        f'[mirror.{name}]\nsource = "s3://moto/source-{mark}"\ntarget = "s3://moto/{name}-{mark}"\n'
        f'state_dir = "{tmp_path / name}"\ncopiers = 2\nscanners = 1\n'
        for name in ("m", "n")
    )
    config.write_text(
        f'[endpoint.moto]\nurl = "{moto_server.url}"\nregion = "us-east-1"\naddressing = "path"\n'
        f'access_key = "testkey"\nsecret_key = "testsecret"\n{mirrors}'
    )
    # The command looks more often whether something is to be told.
    monkeypatch.setattr(
        "cowsync.work.apply_settings", lambda *of, **more: replace(apply_settings(*of, **more), progress_s=0.05)
    )
    source, _ = open_bucket(f"s3://moto/source-{mark}", load_config(config))
    site = Site(config, source)
    site.fill(1)
    yield site
    source.close()


@pytest.mark.parametrize("failures", [0, 3], ids=["the engine gives out again", "Dask gives out again"])
def test_a_worker_killed_in_the_middle_costs_time_alone(site: Site, tmp_path: Path, failures: int) -> None:
    with cluster_of(tmp_path, 2, failures) as cluster:
        applied, struck = site.run_on(cluster, strike=cluster.kill_a_busy_worker)
        assert struck == 1
        assert applied.result.workers_lost >= 1
        assert applied.result.counts == {Op.ADD: {Outcome.DONE: OBJECTS}}
        with opened(load_config(site.config), "n") as mirror:
            here = apply(mirror, make_plan(mirror, InlineEngine()).plan.digest)
        assert here.result.counts == applied.result.counts
        assert site.listed("m") == site.listed("n") == site.expected()


def test_a_worker_that_wakes_up_when_others_have_its_lines_goes_no_further(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood still in the middle of a piece, with time left for it; others did the piece. Then the mirror is emptied, so
    that whatever it writes can be seen."""
    monkeypatch.setattr("cowsync.work.Elsewhere", partial(Elsewhere, piece_s=600.0))
    with cluster_of(tmp_path, 2, failures=3, silent_s=5) as cluster:
        asleep: list[subprocess.Popen[bytes]] = []

        def freeze(engine: Any) -> bool:
            worker = cluster.freeze_a_busy_worker(engine)
            asleep.extend([worker] if worker else [])
            return bool(worker)

        try:
            applied, struck = site.run_on(cluster, strike=freeze)
            assert (struck, applied.result.complete) == (1, True), applied.result.failures
            assert applied.result.workers_lost >= 1
            assert site.listed("m") == site.expected()
            with opened(load_config(site.config), "m") as mirror:
                for key in site.listed("m"):
                    mirror.target.bucket.delete(key.decode())
            asleep[0].send_signal(signal.SIGCONT)
            time.sleep(4.0)
            # Each of its two threads may have had a request under way.
            assert len(site.listed("m")) <= 2
        finally:
            for worker in asleep:
                end(worker)


def test_a_command_that_is_killed_goes_on_with_or_without_the_cluster(site: Site, tmp_path: Path) -> None:
    words = ["m", "--config", str(site.config)]
    assert run(app, "cowsync", ["plan", *words]) == ExitCode.FINDING
    with cluster_of(tmp_path, 2) as cluster:
        command = [sys.executable, "-m", "cowsync", "apply", *words, "--cluster", cluster.address]
        for _ in range(2):
            before = len(site.listed("m"))
            started = subprocess.Popen(command, env={**os.environ})
            try:
                while len(site.listed("m")) < before + 20 and started.poll() is None:
                    time.sleep(0.05)
            finally:
                end(started)
            assert before < len(site.listed("m")) < OBJECTS, "in the middle"
            assert journal_files(next((tmp_path / "m" / "applies").iterdir()))
        assert run(app, "cowsync", ["apply", *words]) == ExitCode.OK
        assert site.listed("m") == site.expected()
        site.fill(2, every=30)
        assert run(app, "cowsync", ["run", *words, "--cluster", cluster.address]) == ExitCode.OK
        assert site.listed("m") == site.expected()


def tells(task: str, hold: Hold) -> tuple[bool, str]:
    """Runs on a worker."""
    again = hold.begin()
    hold.tell("begun", "key", "id")
    hold.tell("over", "key", "id")
    time.sleep(1.0)
    hold.keep()
    return again, task


def test_a_worker_with_another_target_touches_nothing(site: Site, tmp_path: Path) -> None:
    with cluster_of(tmp_path, 1) as cluster, opened(load_config(site.config), "m") as mirror:
        planned = make_plan(mirror, InlineEngine())
        written = site.config.read_text()
        site.config.write_text(written.replace('target = "s3://moto/m-', 'target = "s3://moto/other-'))
        try:
            with (
                engine_on(cluster) as engine,
                pytest.raises(Refused, match=r"worker tcp://.*target is 's3://moto/other-"),
            ):
                apply(mirror, planned.plan.digest, crew=engine)
        finally:
            site.config.write_text(written)
        assert not site.listed("m")
        with engine_on(cluster) as engine:
            heard: list[tuple[str, ...]] = []
            assert engine.submit_held(tells, "piece", heard.append).result(timeout=60) == (False, "piece")
            assert heard == [("begun", "key", "id"), ("over", "key", "id")]
            assert apply(mirror, planned.plan.digest, crew=engine).result.complete
        assert site.listed("m") == site.expected()


# --- a ledger ---------------------------------------------------------------------------------------------------------


def test_each_worker_records_in_a_slot_of_its_host_and_one_that_is_killed_leaves_named_unknowns(
    site: Site, tmp_path: Path
) -> None:
    target = load_config(site.config).mirror("m").target
    site.config.write_text(site.config.read_text() + ledger_settings(tmp_path, target))
    with cluster_of(tmp_path, 2, 3) as cluster:
        with opened(load_config(site.config), "m") as mirror, engine_on(cluster) as engine:
            planned = make_plan(mirror, InlineEngine())
            with pytest.raises(NotRecorded, match="this host is no writer of ledger audit"):
                apply(mirror, planned.plan.digest, approve=planned.plan.digest, crew=engine)
        assert site.listed("m") == {}
        join(site.config, writers=6)
        applied, struck = site.run_on(cluster, strike=cluster.kill_a_busy_worker)
        assert struck == 1
        assert applied.result.counts == {Op.ADD: {Outcome.DONE: OBJECTS}}
    writers = adopted(site.config)
    assert len(writers) >= 2, "the workers', in slots of their own"
    done: dict[bytes, set[bytes]] = {}
    unknown = set()
    for writer in writers:
        found = records(site.config, writer)
        intents = {one["n"]: one["key"] for one in found if one["phase"] == "intent"}
        outcomes = [one for one in found if one["phase"] != "intent"]
        assert sorted(one["intent"] for one in outcomes) == sorted(intents)
        for one in outcomes:
            if one["phase"] == "done":
                done.setdefault(one["key"].encode(), set()).add(one["etag"].encode())
            elif one["phase"] == "unknown":
                unknown.add(one["key"].encode())
    assert all(etag in done.get(key, ()) or key in unknown for key, etag in site.listed("m").items())
    assert len(unknown) <= 4, "what was under way on the worker that was killed"


def test_a_worker_whose_host_cannot_record_ends_the_apply(site: Site, tmp_path: Path) -> None:
    target = load_config(site.config).mirror("m").target
    site.config.write_text(site.config.read_text() + ledger_settings(tmp_path, target))
    join(site.config, writers=1)  # the command's
    with (
        cluster_of(tmp_path, 2, 3) as cluster,
        opened(load_config(site.config), "m") as mirror,
        engine_on(cluster) as engine,
    ):
        planned = make_plan(mirror, InlineEngine())
        applied = apply(mirror, planned.plan.digest, approve=planned.plan.digest, crew=engine)
    assert "nothing was sent: ledger audit cannot record" in applied.result.stopped
    assert "all 1 slots of this host in ledger audit are in use" in applied.result.stopped
    assert site.listed("m") == {}
