"""`bucketworks status` beside everything it tells of, each as a process of its own: a served volume, a mirror with runs, a
ledger, the core of a Proxmox VE node, an endpoint that never answers."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from s3core.exit_codes import ExitCode
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from s3core.status_collector import GROUP, installed_providers
from tests.plugin.service_world import wait_until
from tests.plugin.test_service_process import Core
from tests.servers.moto_server import MotoServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
MAINS = {
    "bucketworks": "s3core.cli",
    "s3block": "blockdev.cli",
    "cowsync": "cowsync.cli",
    "s3integrity": "integrity.cli",
}


class Host:
    """One configuration, and the commands that read it."""

    def __init__(self, directory: Path, server: MotoServer) -> None:
        self.directory = directory
        self.core = Core(directory, server)
        self.silent = socket.create_server(("127.0.0.1", 0))
        self.config = directory / "config.toml"
        self.running: list[subprocess.Popen[bytes]] = []
        mark = uuid4().hex[:8]
        self.source, self.target = f"source-{mark}", f"target-{mark}"
        keys = server.endpoint().credentials
        (directory / "keys").write_text(f'access_key = "{keys.access_key}"\nsecret_key = "{keys.secret_key}"\n')
        (directory / "keys").chmod(0o600)
        with closing(S3Control(server.endpoint())) as control:
            control.create_bucket(self.source)
            control.create_bucket(self.target)
        with closing(S3Bucket(server.endpoint(), self.source)) as bucket:
            for number in range(20):
                bucket.put(f"photos/{number}.jpg", b"x" * 100)
        with self.config.open("a") as file:
            file.write(
                f'cache_bytes = "16M"\n\n[endpoint.lab]\nurl = "{server.url}"\nregion = "us-east-1"\naddressing = "path"\n'
                f'credentials = "file:{directory}/keys"\n[endpoint.lab.prices]\nper_1000_put = 5.0\nper_gib_month = 1.0\n\n'
                f'[endpoint.hung]\nurl = "http://127.0.0.1:{self.silent.getsockname()[1]}"\ncredentials = "none"\n\n'
                f'[s3block]\nlisten = "127.0.0.1:0"\nstate_dir = "{directory}/volumes"\ncache_bytes = "16M"\n'
                f'journal_bytes = "16M"\n\n'
                f'[volume.vm1]\nurl = "s3://lab/{self.target}/disks"\nunfenced = true\n\n'
                f'[volume.away]\nurl = "s3://hung/b/disks"\n\n'
                f'[mirror.m]\nsource = "s3://lab/{self.source}"\ntarget = "s3://lab/{self.target}/copy"\n'
                f'state_dir = "{directory}/mirror"\nscanners = 1\n\n'
                f'[envctl]\nstate_dir = "{directory}/no-console"\n\n'
                f'[status]\nhost = "here"\ndeadline_s = 20\nspending_dir = "{directory}/spending"\n'
                f'publish = "file://{directory}/fleet"\n'
            )
        self.config.chmod(0o600)

    @property
    def environ(self) -> dict[str, str]:
        return {
            **os.environ,
            "BUCKETWORKS_CONFIG": str(self.config),
            "BUCKETWORKS_PVE_ROOT": str(self.directory),
            "PYTHONPATH": str(ROOT),
        }

    def words(self, program: str, *words: str) -> list[str]:
        return [sys.executable, "-c", f"from {MAINS[program]} import main; main()", *words]

    def run(self, program: str, *words: str, expect: int | None = 0) -> str:
        done = subprocess.run(
            self.words(program, *words), env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert expect is None or done.returncode == expect, (words, done.returncode, done.stdout, done.stderr[-4000:])
        return done.stdout

    def start(self, program: str, *words: str) -> "subprocess.Popen[bytes]":
        with (self.directory / f"{program}.log").open("ab") as log:
            process = subprocess.Popen(self.words(program, *words), env=self.environ, cwd=ROOT, stdout=log, stderr=log)
        self.running.append(process)
        return process

    def status(self, *words: str) -> tuple[dict[tuple[str, str], dict[str, Any]], dict[str, Any]]:
        told = json.loads(self.run("bucketworks", "status", "--json", *words, expect=None))
        return {(one["kind"], one["name"]): one for one in told["items"]}, told

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait(60)
        self.core.close()
        self.silent.close()


@pytest.fixture
def host(tmp_path: Path, moto_server: MotoServer) -> Iterator[Host]:
    made = Host(tmp_path, moto_server)
    yield made
    made.close()


def test_every_package_tells_of_its_own() -> None:
    """Entry points are part of what is installed: `pip install -e .` anew where this fails after a change of pyproject.toml."""
    assert set(installed_providers()) == {"endpoint", "volume", "mirror", "ledger", "storage", "console"}, GROUP


def test_one_look_at_everything(host: Host) -> None:
    host.core.start()
    host.run("s3block", "create", "vm1", "--size", "64M", "--unfenced")
    serving = host.start("s3block", "serve", "vm1")
    host.run("cowsync", "run", "m")
    ledger = [f"file://{host.directory}/ledger", "--state-dir", f"{host.directory}/ledger-state", "--writer", "here"]
    host.run("s3integrity", "init", "trail", *ledger)
    host.run("s3integrity", "seal", "trail")
    host.run("s3integrity", "verify", "trail")

    def served() -> bool:
        said = (host.directory / "s3block.log").read_text()
        assert serving.poll() is None, said
        return "\nserving " in f"\n{said}"

    wait_until(served, 240)
    began = time.monotonic()
    found, told = host.status()
    assert time.monotonic() - began < 120
    assert told["host"] == "here"
    assert found["endpoint", "lab"]["facts"]["reachable"] is True
    assert found["endpoint", "lab"]["facts"]["latency_seconds"] > 0
    assert found["endpoint", "hung"]["health"] in ("critical", "unknown")
    volume = found["volume", "vm1"]
    assert volume["health"] == "ok", volume
    assert volume["facts"]["door"] == "portal"
    assert volume["facts"]["sessions"] == 0
    assert {"rpo_seconds", "rpo_bytes", "journal_fill_ratio"} <= volume["facts"].keys()
    assert volume["facts"]["state"] == "ready"
    assert found["volume", "away"]["summary"] == "not served on this host"
    # From here on it refuses: each look at what hangs takes as long as a look may.
    host.silent.close()
    mirror = found["mirror", "m"]
    assert mirror["health"] == "ok", mirror
    assert mirror["facts"]["last_phase"] == "done"
    assert mirror["facts"]["stored_bytes"] == 2000
    ledger_told = found["ledger", "trail"]
    assert ledger_told["health"] == "ok", ledger_told
    assert ledger_told["facts"]["verified_at"] > 0
    assert ledger_told["facts"]["slots"] > 0
    storage = found["storage", "s3"]
    assert storage["health"] == "ok", storage
    assert storage["facts"]["active"] is True

    # Everything that was asked of the endpoint was counted, by three processes that have ended or go on.
    money = {one["endpoint"]: one for one in told["spending"]["endpoints"]}
    assert money["lab"]["requests"] >= 20
    assert money["lab"]["currency"] == "USD"
    assert money["lab"]["stored_bytes"] >= 2000
    assert any(name.startswith("pve-s3-") for name in money), "the storage's own counters"

    table = host.run("bucketworks", "status", expect=None)
    assert "RPO" in table
    assert "docs/runbook/store-unreachable.md" in table

    # A daemon that is killed is told as that; and a mirror, a ledger and a storage go on being well.
    serving.kill()
    serving.wait(60)
    found, _ = host.status()
    assert found["volume", "vm1"]["health"] == "critical"
    assert "without an orderly stop" in found["volume", "vm1"]["reason"]
    host.core.end(signal.SIGKILL)
    found, _ = host.status()
    assert found["storage", "s3"]["health"] == "critical"

    host.run("bucketworks", "status", "--publish")
    everywhere = json.loads(host.run("bucketworks", "status", "--all", "--json", expect=None))
    (one,) = everywhere["hosts"]
    assert one["host"] == "here"
    assert one["health"] == "critical"
    spent = json.loads(host.run("bucketworks", "spending", "--json"))
    assert {one["endpoint"] for one in spent["endpoints"]} >= {"lab"}


def test_a_daemon_that_never_answers_delays_nothing(host: Host) -> None:
    """The control socket takes the connection, and that is all."""
    state = host.directory / "volumes" / "stuck"
    state.mkdir(parents=True)
    (state / "lock").touch()
    (state / "journal").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(state / "control"))
        listener.listen()
        host.config.write_text(host.config.read_text().replace("deadline_s = 20", "deadline_s = 2"))
        found, _ = host.status()
        stuck = found["volume", "stuck"]
        assert stuck["health"] == "unknown"
        assert "no answer" in stuck["reason"]
    with suppress(KeyError):
        assert found["volume", "away"]["health"] == "ok"


def test_what_is_well_ends_with_zero_and_trouble_with_its_code(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[s3block]\nstate_dir = "{tmp_path}/none"\n[envctl]\nstate_dir = "{tmp_path}/none"\n'
        f'[status]\nhost = "here"\ndeadline_s = 60\nspending_dir = "{tmp_path}/spending"\n'
    )
    environ = {**os.environ, "BUCKETWORKS_PVE_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from s3core.cli import main; main()", "status", "--config", str(config)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Nothing is configured on this host" in done.stdout
    state = tmp_path / "mirror"
    state.mkdir()
    (state / "catalogue.sqlite").write_bytes(b"no database" * 100)
    with config.open("a") as file:
        file.write(f'[mirror.m]\nsource = "file:///a"\ntarget = "file:///b"\nstate_dir = "{state}"\n')
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == ExitCode.CORRUPT, done.stdout


def test_watching_looks_again_until_it_is_interrupted(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(
        f'[s3block]\nstate_dir = "{tmp_path}/none"\n[envctl]\nstate_dir = "{tmp_path}/none"\n'
        f'[status]\nhost = "here"\ndeadline_s = 60\nspending_dir = "{tmp_path}/spending"\n'
    )
    environ = {**os.environ, "BUCKETWORKS_PVE_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "from s3core.cli import main; main()", "status", "--config", str(config)]
    watching = subprocess.Popen(
        [*command, "--watch", "--interval", "500ms", "--json"], env=environ, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert watching.stdout is not None
    looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
    watching.send_signal(signal.SIGINT)
    watching.stdout.read()
    watching.stdout.close()
    assert watching.wait(60) == 0, "Ctrl-C is how one leaves, and all is well"
    assert [one["health"] for one in looks] == ["ok"] * 3
    assert looks[0]["at"] < looks[1]["at"] < looks[2]["at"]
