"""Seeds: what people wrote arrives as they wrote it, never as structure; the bootstrap installs only the agent it names."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from envctl.agent import enrolment
from envctl.seed import (
    AGENT_FILE,
    SEED_FILE,
    SERIAL_PREFIX,
    SeedFacts,
    agent_json,
    meta_data,
    quoted,
    user_data,
    vendor_data,
)

AGENT = b"import pathlib, sys\npathlib.Path(sys.argv[0] + '.said').write_text(sys.argv[1])\n"
FACTS = SeedFacts(
    console="https://console.example:8443",
    token="T0-ken_",
    environment="01hzzzzzzzzzzzzzzzzzzzzzzz",
    generation=3,
    hostname="alice-dev",
    login_user="alice",
    agent_sha256=hashlib.sha256(AGENT).hexdigest(),
)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_quoted_scalar_is_read_back_as_it_was(text: str) -> None:
    assert yaml.safe_load(f"key: {quoted(text)}\n") == {"key": text}
    assert quoted(text).isascii()
    assert "\n" not in quoted(text)


def test_documents_say_what_the_facts_say() -> None:
    keys = ["ssh-ed25519 AAAA é \U0001f600 # {x}: - 'y' \"z\" \\", "%yaml: no, ssh-rsa BBBB"]
    pem = "-----BEGIN CERTIFICATE-----\nMIIB: #\n-----END CERTIFICATE-----\n"
    facts = replace(FACTS, ssh_keys=keys, ca_pem=pem)
    said = yaml.safe_load(user_data(facts))
    assert user_data(facts).startswith("#cloud-config\n")
    assert said["users"][0]["name"] == "alice"
    assert said["users"][0]["ssh_authorized_keys"] == keys
    assert said["users"][0]["lock_passwd"] is True
    assert said["ca_certs"]["trusted"] == [pem]
    assert said["write_files"][0]["content"] == "manual_cache_clean: true\n"
    [command] = said["bootcmd"]
    assert command[:2] == ["python3", "-c"]
    assert command[4:] == [AGENT_FILE, SEED_FILE]
    for_agent = json.loads(agent_json(facts))
    assert json.loads(command[3]) == for_agent
    assert for_agent["token"] == "T0-ken_"
    assert (for_agent["ssh_keys"], for_agent["ca_pem"], for_agent["generation"]) == (keys, pem, 3)
    assert "ca_pem" not in json.loads(agent_json(FACTS))
    assert yaml.safe_load(meta_data(facts)) == {
        "instance-id": "01hzzzzzzzzzzzzzzzzzzzzzzz.3",
        "local-hostname": "alice-dev",
    }
    assert yaml.safe_load(vendor_data(facts)) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"console": "https://console.example/"},
        {"console": "file:///etc/passwd"},
        {"console": "https://console.example\n"},
        {"hostname": "a b"},
        {"hostname": "a\nruncmd: [reboot]"},
        {"login_user": "root:x"},
        {"login_user": "../alice"},
        {"token": "a/../b"},
        {"agent_sha256": "00"},
        {"ssh_keys": ["ssh-ed25519 AAAA\nssh-rsa BBBB"]},
        {"ssh_keys": [""]},
    ],
)
def test_words_that_cannot_be_what_they_stand_for_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        replace(FACTS, **change)  # type: ignore[arg-type]  # wrong on purpose


class _Console(BaseHTTPRequestHandler):
    asked = 0
    given = AGENT

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(200 if self.path == "/guest/v1/agent.pyz" else 404)
        self.send_header("Content-Length", str(len(self.given)))
        self.end_headers()
        self.wfile.write(self.given)

    def log_message(self, format: str, *args: object) -> None:
        """Said by the assertions."""


@pytest.fixture
def console() -> Iterator[tuple[str, type[_Console]]]:
    handler = type("Handler", (_Console,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    thread.join()
    server.server_close()


def _bootstrap(facts: SeedFacts, directory: Path) -> "subprocess.CompletedProcess[str]":
    [command] = yaml.safe_load(user_data(facts))["bootcmd"]
    words = [*command[1:4], str(directory / "lib/agent.pyz"), str(directory / "etc/seed.json")]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, check=False)


def test_the_bootstrap_installs_the_agent_once(console: tuple[str, type[_Console]], tmp_path: Path) -> None:
    url, handler = console
    facts = replace(FACTS, console=url)
    first = _bootstrap(facts, tmp_path)
    assert first.returncode == 0, first.stderr
    assert (tmp_path / "lib/agent.pyz").read_bytes() == AGENT
    assert (tmp_path / "lib/agent.pyz.said").read_text() == "install"
    assert json.loads((tmp_path / "etc/seed.json").read_text())["token"] == FACTS.token
    assert (tmp_path / "etc/seed.json").stat().st_mode & 0o777 == 0o600
    assert _bootstrap(facts, tmp_path).returncode == 0
    assert handler.asked == 1, "at later boots there is nothing to do"
    assert _bootstrap(replace(facts, generation=4), tmp_path).returncode == 0
    assert handler.asked == 2, "another seed is another machine"


def test_the_bootstrap_installs_nothing_else(console: tuple[str, type[_Console]], tmp_path: Path) -> None:
    url, handler = console
    handler.given = b"print('not the agent')"
    done = _bootstrap(replace(FACTS, console=url), tmp_path)
    assert done.returncode != 0
    assert "nothing was installed" in done.stderr
    assert not (tmp_path / "lib/agent.pyz").exists()


@pytest.mark.parametrize("start", [SERIAL_PREFIX, "ds=nocloud;s=", "ds=nocloud-net;h=alice-dev;s="])
def test_the_agent_finds_the_address_in_the_serial_number(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serial = tmp_path / "product_serial"
    monkeypatch.setattr(enrolment, "SERIAL", str(serial))
    serial.write_text(f"{start}https://console.example:8443/seed/T0-ken_/\n")
    assert enrolment._seed_address() == "https://console.example:8443/seed/T0-ken_/"
    for other in ("", "VMware-56 4d", "ds=nocloud", "ds=ec2;s=https://elsewhere/"):
        serial.write_text(other)
        assert enrolment._seed_address() is None
