"""A real process of the console, and the real command asking it."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from envctl import cli
from envctl.accounts import people, tokens
from envctl.serving import open_context
from s3core import console
from s3core.exit_codes import ExitCode
from s3core.settings import load_config
from tests.envctl.assembly.running import COMMAND, START_S, console_process, environment, write_config
from tests.servers.processes import free_port


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A process of its own."""
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment(**environ), timeout=START_S, check=False
    )


class Here:
    """Commands in this process, which takes a tenth of the time."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys, self._monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        for name in ("ENVCTL_URL", "ENVCTL_TOKEN"):
            self._monkeypatch.delenv(name, raising=False)
        for name, value in environ.items():
            self._monkeypatch.setenv(name, value)
        self._capsys.readouterr()
        code = console.run(cli.app, "s3-envctl", arguments)
        said = self._capsys.readouterr()
        return subprocess.CompletedProcess(arguments, int(code), said.out, said.err)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    monkeypatch.setenv("HOME", str(tmp_path))
    return Here(capsys, monkeypatch)


def admin_token(config: Path, *scopes: str) -> str:
    with open_context(load_config(config)) as context, context.database.write() as session:
        user = people.find_user(session, "admin")
        user.password_must_change = False
        return tokens.create(session, context, user, "test", list(scopes), None).text


def test_from_nothing_to_a_command_that_is_answered(tmp_path: Path, here: Here) -> None:
    config = write_config(tmp_path)
    made = run("init", "--json", "--config", str(config))
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["name"] == "admin"
    for name in ("key", "envctl.sqlite3"):
        assert stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) == 0o600
    again = here("init", "--config", str(config))
    assert again.returncode == ExitCode.REFUSED
    assert "there is an admin already" in again.stderr
    recovered = here("init", "admin", "--recover", "--json", "--config", str(config))
    assert json.loads(recovered.stdout)["password"] != json.loads(made.stdout)["password"]

    with console_process(config) as (process, url):
        assert httpx.get(f"{url}/healthz", trust_env=False).text == "ok\n"
        ready = httpx.get(f"{url}/readyz", trust_env=False).json()
        assert ready["ready"] is True
        assert ready["database"] == "ok"
        told = {"ENVCTL_URL": url, "ENVCTL_TOKEN": admin_token(config, "*")}
        listed = run("user", "list", "--json", **told)
        assert [user["name"] for user in json.loads(listed.stdout)] == ["admin"]
        plain = here("user", "list", **told)
        assert "admin" in plain.stdout
        assert here("settings", "set", "idle_stop_s", "--value", "1h", **told).returncode == 0
        kept = {one["key"]: one for one in json.loads(here("settings", "show", "--json", **told).stdout)}
        assert kept["idle_stop_s"]["value"] == 3600.0
        missing = here("env", "show", "nothing", "--json", **told)
        assert missing.returncode == ExitCode.NOT_FOUND
        assert json.loads(missing.stderr)["error"]["name"] == "not-found"
        reader = {"ENVCTL_URL": url, "ENVCTL_TOKEN": admin_token(config, "settings:read")}
        assert here("settings", "show", **reader).returncode == 0
        assert here("settings", "reset", "idle_stop_s", **reader).returncode == ExitCode.DENIED
        assert here("user", "list", **(told | {"ENVCTL_TOKEN": "bwe_x"})).returncode == ExitCode.DENIED
        assert here("user", "list").returncode == ExitCode.CONFIGURATION
        # A change is agreed to, where nobody can be asked it is refused.
        refused = here("env", "delete", "nothing", **told)
        assert refused.returncode == ExitCode.REFUSED
        assert "--yes" in refused.stderr

        copy = tmp_path / "copy.sqlite3"
        assert here("database", "backup", str(copy), "--config", str(config)).returncode == 0
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert here("database", "check", "--config", str(config)).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    gone = here("user", "list", **told)
    assert gone.returncode == ExitCode.UNAVAILABLE
    assert f"no console answers at {url}" in gone.stderr


def test_roles_are_processes_of_their_own(tmp_path: Path, here: Here) -> None:
    config = write_config(tmp_path)
    with console_process(config, "--role", "worker") as (_, url):
        assert httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
        assert "bucketworks_envctl_jobs" in httpx.get(f"{url}/metrics", trust_env=False).text
        for path in ("/login", "/environments", "/api/v1/environments", "/api/openapi.json", "/guest/v1/agent.pyz"):
            assert httpx.get(url + path, trust_env=False).status_code == 404, path
    with console_process(config, "--role", "web") as (_, url):
        assert httpx.get(f"{url}/login", trust_env=False).status_code == 200
        paths = httpx.get(f"{url}/api/openapi.json", trust_env=False).json()["paths"]
        assert "/api/v1/environments" in paths
    assert here("serve", "--role", "all-of-them", "--config", str(config)).returncode == ExitCode.USAGE


def test_the_service_manager_hears_of_it(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place))
        manager.settimeout(START_S)
        process = subprocess.Popen(
            [*COMMAND, "serve", "--config", str(config)],
            stderr=subprocess.DEVNULL,
            env=environment(NOTIFY_SOCKET=str(place), WATCHDOG_USEC="600000"),
        )
        try:
            seen: list[str] = []
            while seen.count("WATCHDOG=1") < 2:
                seen.append(manager.recv(4096).decode())
            assert seen[0] == "READY=1"
            assert "STATUS=serving (all)" in seen
            process.send_signal(signal.SIGTERM)
            while "STOPPING=1" not in seen:
                seen.append(manager.recv(4096).decode())
            assert process.wait(START_S) == 0
        finally:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()


def test_it_serves_at_the_socket_that_systemd_gives(tmp_path: Path) -> None:
    """s3-envctl.socket; the settings' own address is not used."""
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("needs systemd-socket-activate: apt-get install systemd")
    config = write_config(tmp_path, listen="127.0.0.1:1")
    port = free_port()
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [tool, f"--listen=127.0.0.1:{port}", *COMMAND, "serve", "--config", str(config)],
            stderr=log,
            env=environment(PYTHONPATH=os.pathsep.join(sys.path)),
        )
    try:
        deadline = time.monotonic() + START_S
        while "Listening on" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", trust_env=False, timeout=START_S)
        assert answer.text == "ok\n", (tmp_path / "log").read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ('[envctl]\nlisten = "127.0.0.1:0"\nstate_dir = "{dir}"\n', ExitCode.CONFIGURATION, "homes is not set"),
        (
            '[envctl]\nlisten = "192.0.2.1:1"\nstate_dir = "{dir}"\nhomes = "file://{dir}/h"\n',
            ExitCode.UNAVAILABLE,
            "listen on",
        ),
        ('[envctl]\nstate_dir = "/proc/nowhere"\nhomes = "file://{dir}/h"\n', ExitCode.CONFIGURATION, "/proc/nowhere"),
    ],
)
def test_what_cannot_work_ends_at_the_start(tmp_path: Path, text: str, code: ExitCode, said: str, here: Here) -> None:
    """systemd does not start it again: RestartPreventExitStatus in deploy/systemd/s3-envctl.service."""
    config = tmp_path / "config.toml"
    config.write_text(text.replace("{dir}", str(tmp_path)), encoding="utf-8")
    found = here("serve", "--config", str(config))
    assert found.returncode == code, found.stderr
    assert said in found.stderr


def test_the_agent_is_a_file_that_python_runs(tmp_path: Path, here: Here) -> None:
    path = tmp_path / "agent.pyz"
    made = here("agent-file", str(path))
    assert made.returncode == 0
    assert made.stdout.endswith(f"  {path}\n")
    assert os.access(path, os.X_OK)
    assert path.read_bytes().startswith(b"#!/usr/bin/env python3\nPK")


def test_doctor_looks_without_a_console(tmp_path: Path, here: Here) -> None:
    config = write_config(tmp_path)
    empty = here("doctor", "--json", "--config", str(config))
    assert empty.returncode == ExitCode.FINDING
    found = json.loads(empty.stdout)["findings"]
    assert any("s3-envctl init" in one["hint"] for one in found if one["part"] == "database")
    assert any(one["part"] == "store" and one["severity"] == "ok" for one in found)
    here("init", "--config", str(config))
    shown = here("doctor", "--part", "database", "--config", str(config))
    assert shown.returncode == 0
    assert shown.stdout.startswith("ok ")
    assert not list((tmp_path / "homes").rglob("doctor/*")), "the probe object goes again"
