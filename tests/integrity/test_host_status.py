"""What a host knows of a ledger, for `bucketworks status`."""

import fcntl
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from integrity.host_status import Seen, SlotSeen, judge, look_at, report
from s3core.exit_codes import ExitCode
from s3core.settings import LedgerSettings, parse_config

NOW = 1_795_000_000.0
SETTINGS = LedgerSettings(url="file:///srv/ledger")
FREE = SlotSeen("here.1", False, False, 100)


@pytest.mark.parametrize(
    ("seen", "health", "said", "code"),
    [
        (Seen((FREE,), NOW - 60, 5), "ok", "", ExitCode.UNAVAILABLE),
        (Seen((FREE, SlotSeen("here.2", True, False, 9))), "warning", "here.2: left by a crash", ExitCode.UNAVAILABLE),
        (Seen((FREE, SlotSeen("here.2", True, True, 2 * 10**9))), "warning", "takes less", ExitCode.UNAVAILABLE),
        (Seen((SlotSeen("here.1", True, True, 9),)), "warning", "all slots are in use", ExitCode.UNAVAILABLE),
        (Seen((FREE,), problems=("pins.json: not a file of pins",)), "critical", "pins", ExitCode.LOCAL),
        (Seen((FREE,), silent="it does not answer"), "critical", "does not answer", ExitCode.UNAVAILABLE),
        (
            Seen((FREE,), service={"healthy": False, "why": "not sealed for 900 s"}),
            "critical",
            "not sealed",
            ExitCode.UNAVAILABLE,
        ),
        (
            Seen((FREE,), service={"healthy": False, "why": "the log of a does not hold: root differs"}),
            "critical",
            "does not hold",
            ExitCode.TAMPERED,
        ),
        (
            Seen((FREE,), service={"healthy": True, "sealed": NOW - 5, "unread": {"a": "away"}}),
            "warning",
            "1 writers could not be read",
            ExitCode.UNAVAILABLE,
        ),
    ],
)
def test_what_is_seen_is_judged(seen: Seen, health: str, said: str, code: ExitCode) -> None:
    item = judge("trail", SETTINGS, seen, NOW)
    assert (item.health, item.code) == (health, code)
    assert said in item.reason
    assert bool(item.runbook) == (health != "ok")


def configured(folder: Path, listen: str = "") -> Any:
    return parse_config(
        f'[ledger.trail]\nurl = "file://{folder}/ledger"\nstate_dir = "{folder}/state"\nlisten = "{listen}"\n'
        "[status]\ndeadline_s = 5\n"
    )


def test_a_ledger_that_is_kept_elsewhere_is_well_and_nothing_is_made_here(tmp_path: Path) -> None:
    (look,) = report(configured(tmp_path))
    assert look.ask().summary == "not recorded on this host"
    assert list(tmp_path.iterdir()) == []


def test_slots_are_seen_with_their_locks_and_marks(tmp_path: Path) -> None:
    slots = tmp_path / "state" / "slots"
    for name in ("here.1", "here.2", "here.3"):
        (slots / name / "wal").mkdir(parents=True)
    (slots / "here.1" / "wal" / "0.wal").write_bytes(b"x" * 50)
    for name in ("here.1", "here.2"):
        (slots / name / "open").touch()
        (slots / name / "lock").touch()
    with (slots / "here.1" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (look,) = report(configured(tmp_path))
        told = look.ask()
    assert told.facts["slots"] == 3
    assert told.facts["slots_in_use"] == 1
    assert told.facts["slots_left"] == 1
    assert told.facts["local_bytes"] == 50
    assert not (slots / "here.3" / "lock").exists(), "it only looks"


@pytest.fixture
def service() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"healthy": True, "sealed": 1.0, "unread": {}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_service_that_seals_is_asked(tmp_path: Path, service: str) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "ledger.key").touch()
    told = look_at("trail", configured(tmp_path, service).ledger("trail"), 60.0)
    assert told.facts["sealed_at"] == 1.0
    told = look_at("trail", configured(tmp_path, "127.0.0.1:1").ledger("trail"), 60.0)
    assert told.health == "critical"
    assert "does not answer at 127.0.0.1:1" in told.reason
