"""What the service manager is told, and what it gives: sd_notify(3), sd_listen_fds(3), credentials."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from s3core.credentials import CredentialsError, read_secret, secret_path
from s3core.service_manager import ServiceManager, take_sockets
from tests.servers.processes import free_port

ANSWER = """
import os
from s3core.service_manager import take_sockets
given = take_sockets(os.environ)
assert not [name for name in os.environ if name.startswith("LISTEN_")], "no child takes them for its own"
assert not os.get_inheritable(given[0].fileno())
print("ready", flush=True)
connection, _ = given[0].accept()
connection.sendall(b"served by what was given")
connection.close()
"""


def test_it_is_told_of_reloads_and_of_stops_that_go_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "n"))
        listening.settimeout(10)
        manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "n")})
        manager.reloading()
        kind, stamp = listening.recv(999).decode().split("\n")
        assert kind == "RELOADING=1"
        assert int(stamp.removeprefix("MONOTONIC_USEC=")) > 0
        manager.more_time(2.5)
        assert listening.recv(999) == b"EXTEND_TIMEOUT_USEC=2500000"


def test_sockets_of_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "KEPT": "yes"}
    assert take_sockets(environ) == []
    assert environ == {"KEPT": "yes"}
    assert take_sockets({}) == []


def test_a_socket_that_systemd_opened_is_served() -> None:
    tool = shutil.which("systemd-socket-activate")
    if tool is None:
        pytest.skip("needs systemd-socket-activate: apt-get install systemd")
    port = free_port()
    waiting = subprocess.Popen(
        [
            tool,
            f"--listen=127.0.0.1:{port}",
            f"--setenv=PYTHONPATH={os.pathsep.join(sys.path)}",
            sys.executable,
            "-c",
            ANSWER,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert waiting.stderr is not None
        assert b"Listening on" in waiting.stderr.readline()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            assert client.recv(99) == b"served by what was given"
        assert waiting.wait(60) == 0
    finally:
        waiting.kill()
        waiting.communicate()


def test_a_secret_in_a_file_may_be_a_credential(tmp_path: Path) -> None:
    (tmp_path / "chap").write_text("a long secret\n")
    (tmp_path / "chap").chmod(0o400)
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert read_secret(secret_path("systemd:chap", environ)) == "a long secret"
    assert read_secret(secret_path(str(tmp_path / "chap"), environ)) == "a long secret"
    with pytest.raises(CredentialsError, match="LoadCredential=chap:"):
        secret_path("systemd:chap", {})
    with pytest.raises(CredentialsError, match="no slash"):
        secret_path("systemd:../chap", environ)
