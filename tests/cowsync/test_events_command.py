"""`--events` of plan, run and watch, as an operator calls them: answers, exit codes, and what is told."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cowsync.cli import app
from s3core.bucket import Bucket
from s3core.bucket_stack import open_bucket
from s3core.console import run
from s3core.exit_codes import ExitCode
from tests.cowsync.feed.notices import notice


@dataclass
class Site:
    folder: Path
    source: Bucket
    target: Bucket
    capture: pytest.CaptureFixture[str]

    @property
    def feed(self) -> Path:
        return self.folder / "events.jsonl"

    def tell(self, *keys: str, bucket: str = "") -> None:
        with self.feed.open("ab") as file:
            file.write(notice(*keys, bucket=bucket or self.source.properties.name))

    def cowsync(self, *words: str, expect: int = ExitCode.OK) -> tuple[Any, str]:
        code = run(app, "cowsync", [*words, "--config", str(self.folder / "config.toml"), "--json"])
        out, err = self.capture.readouterr()
        assert code == expect, (out, err)
        return json.loads(out) if out.startswith("{\n") or out.count("\n") == 1 else out, err


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    name = tmp_path.name.replace("_", "-").lower()
    (tmp_path / "config.toml").write_text(
        f'[mirror.m]\nsource = "memory:{name}-s/in"\ntarget = "memory:{name}-t"\nstate_dir = "{tmp_path}/state"\n'
        f'events = "{tmp_path}/events.jsonl"\nevents_every_s = "100ms"\nevents_keys_max = 50\nexclude = ["no/"]\n'
        'listen = "127.0.0.1:0"\n'
    )
    made = Site(tmp_path, open_bucket(f"memory:{name}-s")[0], open_bucket(f"memory:{name}-t")[0], capsys)
    for number in range(100):
        made.source.put(f"in/{number}", b"one")
    return made


def test_one_command_looks_at_what_events_name(site: Site) -> None:
    site.tell("in/1")
    _, err = site.cowsync("run", "m", "--events", str(site.feed), expect=ExitCode.REFUSED)
    assert "cowsync run m" in json.loads(err)["error"]["hint"], "there was no run yet"
    site.cowsync("run", "m")
    site.source.put("in/1", b"two")
    site.source.put("in/2", b"nobody told")
    site.tell("in/no/x", "elsewhere/y")
    site.tell("in/1", bucket="another")
    with site.feed.open("ab") as file:
        file.write(b"nonsense\n")
    plan, err = site.cowsync("plan", "m", "--events", str(site.feed), expect=ExitCode.FINDING)
    assert (plan["lines"], plan["scan"]["heads"], plan["scan"]["requests"]) == (1, 1, 1)
    counts = {name: plan["scan"]["events"][name] for name in ("keys", "hints", "foreign", "outside", "malformed")}
    assert counts == {"keys": 1, "hints": 1, "foreign": 1, "outside": 2, "malformed": 1}
    assert f"skipped: {site.feed}:4: is no JSON" in err
    done, _ = site.cowsync("run", "m", "--events", str(site.feed))
    assert (done["done"], done["lines"]) == (1, 1)
    assert site.target.get("1") == b"two"
    assert site.target.get("2") == b"one"
    assert site.cowsync("run", "m", "--events", str(site.feed))[0] == {"digest": "", "lines": 0}
    points = json.loads(site.cowsync("snapshot", "ls", "m")[0])
    assert [(point["run"], point["scope"]) for point in points] == [(2, "events"), (1, "all")]
    done, _ = site.cowsync("run", "m")
    assert done["lines"] == 1
    points = json.loads(site.cowsync("snapshot", "ls", "m")[0])
    assert [(point["run"], point["scope"]) for point in points] == [(2, "all"), (1, "all")]


def test_what_cannot_be_is_told(site: Site) -> None:
    site.cowsync("run", "m")
    site.cowsync("plan", "m", "--events", str(site.folder / "none"), expect=ExitCode.NOT_FOUND)
    site.tell("in/1")
    _, err = site.cowsync(
        "plan", "m", "--events", str(site.feed), "--cluster", "tcp://localhost:1", expect=ExitCode.USAGE
    )
    assert "give one of them" in err
    for number in range(30):
        site.source.delete(f"in/{number}")
        site.tell(f"in/{number}")
    site.cowsync("run", "m", "--events", str(site.feed), expect=ExitCode.REFUSED)
    held = json.loads(site.cowsync("plans", "m")[0])[0]
    assert held["decision"] == "hold"
    site.cowsync("apply", "m", "--approve", held["digest"])
    status, _ = site.cowsync("status", "m")
    assert status["vanished"] == 30


def test_a_flood_is_a_listing(site: Site) -> None:
    site.cowsync("run", "m")
    site.tell(*[f"in/{number}" for number in range(51)])
    plan, err = site.cowsync("plan", "m", "--events", str(site.feed))
    assert "more than 50 keys: the source is listed instead" in err
    assert (plan["scan"]["keys"], plan["scan"]["events"]) == (100, {})


def test_the_service_follows_and_lists_after_a_flood(site: Site) -> None:
    """In this process, since the buckets are in its memory; the signal ends it."""
    told: dict[str, Any] = {}

    def until(what: str, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < end, what
            time.sleep(0.05)

    def operate() -> None:
        try:
            until("the first listing", lambda: (site.folder / "state" / "feed.json").exists())
            site.source.put("in/1", b"two")
            site.source.delete("in/3")
            site.tell("in/1", "in/3", "in/4")
            until("events", lambda: site.target.get("1") == b"two")
            site.source.put("in/2", b"nobody told")
            site.tell(*[f"in/{number}" for number in range(51)])
            until("the listing after a flood", lambda: site.target.get("2") == b"nobody told")
            until(
                "its note",
                lambda: json.loads((site.folder / "state" / "feed.json").read_text())["counts"]["floods"] == 1,
            )
        except (AssertionError, OSError, ValueError, KeyError) as error:
            told["error"] = error
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    operator = threading.Thread(target=operate)
    operator.start()
    words = ["watch", "m", "--json", "--config", str(site.folder / "config.toml")]
    code = run(app, "cowsync", words)
    operator.join()
    out, err = site.capture.readouterr()
    assert "error" not in told, (told, out, err)
    assert code == ExitCode.OK, err
    records = [json.loads(line) for line in out.splitlines()]
    of_events = [record for record in records if "events" in record]
    assert [(record["lines"], record["done"]) for record in of_events if record["lines"]] == [(2, 2)]
    assert [record["events"]["flooded"] for record in of_events][-1] is True
    assert [record["ended"] for record in records if "events" not in record][:2] == ["done", "done"]
    assert "the source is listed instead" in err
    status, _ = site.cowsync("status", "m")
    assert status["last_listing"] > 0
    assert (status["events"]["lag_seconds"], status["events"]["floods"]) == (0.0, 1)
    assert status["vanished"] == 1


def test_a_mirror_of_all_versions_has_no_feed(site: Site) -> None:
    config = site.folder / "config.toml"
    config.write_text(config.read_text() + 'versions = "all"\n')
    _, err = site.cowsync("watch", "m", expect=ExitCode.REFUSED)
    assert "knows current objects alone" in err
