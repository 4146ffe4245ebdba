"""`serve` with `listen`, and `webhook`: what is pushed is in the ledger; who is killed leaves what was acknowledged."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integrity.ingest.samples import ceph
from tests.integrity.ledgers import join, ledger_settings, records
from tests.servers.processes import free_port

pytestmark = pytest.mark.slow


@contextmanager
def running(config: Path, url: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "BUCKETWORKS_CONFIG": str(config)}
    process = subprocess.Popen([sys.executable, "-m", "integrity", *command], env=environment)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{url}/healthz"):
                    break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.1)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def push(url: str, number: int, token: str = "") -> int:
    record = ceph(key=f"k{number}")
    record["responseElements"]["x-amz-request-id"] = f"2daad2b2-fbe4.4105.{number}"
    body = json.dumps({"Records": [record]}).encode()
    request = urllib.request.Request(f"{url}/feeds/notifications{token}", body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("command", ["serve", "webhook"])
def test_what_was_acknowledged_is_there(tmp_path: Path, command: str) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    config, token = tmp_path / "config.toml", tmp_path / "token"
    token.write_text("t0ken\n")
    token.chmod(0o600)
    config.write_text(ledger_settings(tmp_path, more=f'listen = "127.0.0.1:{port}"\nwebhook_token_file = "{token}"'))
    config.chmod(0o600)
    join(config)
    with running(config, url, command, "audit") as process:
        assert push(url, 0) == 401
        assert [push(url, number, "/t0ken") for number in range(5)] == [200] * 5
        process.kill()
        process.wait(60)
    with running(config, url, command, "audit"):
        assert [push(url, number, "/t0ken") for number in range(3, 8)] == [200] * 5
    found = [record["key"] for writer in ("here.1",) for record in records(config, writer)]
    assert sorted(found) == [f"k{number}" for number in range(8)]
