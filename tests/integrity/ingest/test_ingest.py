"""`s3integrity ingest`: each event once, whatever is read again, and nothing that is not understood is lost."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard

from integrity.ingest.cursor import Cursors, Mark, Place, recover
from integrity.ingest.events import Options, identity_of
from integrity.ingest.feeds import FEEDS
from integrity.ingest.intake import Intake, Own, own_place
from integrity.ingest.sources import Batch, read_sources
from integrity.place import opened_ledger
from integrity.slots import open_writer
from s3core.bucket_stack import open_bucket
from s3core.settings import load_config
from tests.integrity.ingest.samples import access, audit, aws, lines, ops, trail
from tests.integrity.ledgers import join, ledger_settings, records


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(ledger_settings(tmp_path))
    path.chmod(0o600)
    join(path)
    return path


def s3integrity(config: Path, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "BUCKETWORKS_CONFIG": str(config)}
    command = [sys.executable, "-m", "integrity", *arguments]
    return subprocess.run(command, env=environment, input=given, capture_output=True, check=False, timeout=120)


def told(config: Path, *arguments: str, code: int = 0, given: bytes = b"") -> dict[str, Any]:
    done = s3integrity(config, "ingest", "audit", *arguments, "--json", given=given)
    assert done.returncode == code, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def notices(*numbers: int) -> bytes:
    found = b""
    for number in numbers:
        record = aws(key=f"k{number}")
        record["responseElements"]["x-amz-request-id"] = f"R{number}"
        found += json.dumps({"Records": [record]}).encode() + b"\n"
    return found


def keys(config: Path) -> list[str]:
    return sorted(record["key"] for writer in ("here.1",) for record in records(config, writer))


def test_a_file_that_grows_is_read_once(config: Path, tmp_path: Path) -> None:
    feed = tmp_path / "events.jsonl"
    feed.write_bytes(notices(1, 2, 1))
    assert told(config, "notifications", str(feed))["recorded"] == 2
    with feed.open("ab") as file:
        file.write(notices(3, 2) + b"{broken\n" + notices(4).rstrip(b"\n"))
    answer = told(config, "notifications", str(feed), code=11)
    assert (answer["entries"], answer["recorded"], answer["repeated"], answer["malformed"]) == (4, 2, 1, 1)
    assert answer["complaints"] == [f"{feed}:6: is no JSON"]
    kept = [json.loads(line) for line in Path(answer["quarantine"]).read_bytes().splitlines()]
    assert [(one["feed"], one["where"], one["text"]) for one in kept] == [("notifications", f"{feed}:6", "{broken")]
    assert Path(answer["quarantine"]).stat().st_mode & 0o777 == 0o600
    feed.rename(tmp_path / "events.jsonl.1")
    feed.write_bytes(notices(5))
    assert told(config, "notifications", str(feed))["recorded"] == 1
    assert keys(config) == ["k1", "k2", "k3", "k4", "k5"]


def test_packed_files_folders_patterns_and_standard_input(config: Path, tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "2026"
    logs.mkdir(parents=True)
    (logs / "a.json.gz").write_bytes(gzip.compress(json.dumps({"Records": [trail()]}).encode()))
    (logs / "b.json").write_text(json.dumps({"Records": [trail("DeleteObject", requestID="R2")]}))
    (logs / "cut.json.gz").write_bytes(gzip.compress(b"x" * 100_000)[:-20])
    damaged = bytearray(gzip.compress(b"hello world\n" * 100_000))
    damaged[20:60] = bytes(one ^ 0x55 for one in damaged[20:60])
    (logs / "damaged.json.gz").write_bytes(damaged)
    answer = told(config, "cloudtrail", str(tmp_path / "logs"), "--endpoint", "", code=11)
    assert (answer["recorded"], answer["malformed"]) == (2, 2)
    (logs / "cut.json.gz").unlink()
    (logs / "damaged.json.gz").unlink()
    again = told(config, "cloudtrail", str(logs / "*.json*"))
    assert (again["recorded"], again["files_known"]) == (0, 2)
    packed = tmp_path / "audit.zst"
    packed.write_bytes(zstandard.compress(b"\n".join(lines()["minio-audit"])))
    answer = told(config, "minio-audit", str(packed))
    assert (answer["recorded"], answer["left"]) == (4, 3)
    answer = told(config, "access-logs", "-", given=access())
    assert answer["recorded"] == 1
    reads = told(
        config, "rgw-ops-log", "-", "--reads", given=json.dumps(ops("get_obj", "GET /photos/k HTTP/1.1")).encode()
    )
    assert reads["recorded"] == 1
    assert s3integrity(config, "ingest", "audit", "access-logs", str(tmp_path / "none")).returncode == 4
    assert s3integrity(config, "ingest", "audit", "tea-leaves", "-").returncode == 2


def test_a_process_that_is_killed_between_ledger_and_cursor(config: Path, tmp_path: Path) -> None:
    """The records are in the local log, their identities and the place are not remembered: nothing is recorded twice."""
    feed = tmp_path / "events.jsonl"
    feed.write_bytes(notices(*range(50)))
    script = (
        "import os, sys\n"
        "from integrity.ingest.cursor import Cursors\n"
        "before = Cursors.commit\n"
        "def commit(self, identities=(), places=None, mark=None):\n"
        "    if identities: os._exit(9)\n"
        "    before(self, identities, places, mark)\n"
        "Cursors.commit = commit\n"
        "from integrity.cli import main\n"
        f"sys.argv = ['s3integrity', 'ingest', 'audit', 'notifications', {str(feed)!r}]\n"
        "main()\n"
    )
    environment = {**os.environ, "BUCKETWORKS_CONFIG": str(config)}
    assert subprocess.run([sys.executable, "-c", script], env=environment, check=False, timeout=60).returncode == 9
    answer = told(config, "notifications", str(feed))
    assert (answer["recorded"], answer["repeated"]) == (0, 50)
    assert keys(config) == sorted(f"k{number}" for number in range(50))


def test_a_feed_is_followed(config: Path, tmp_path: Path) -> None:
    feed = tmp_path / "events.jsonl"
    environment = {**os.environ, "BUCKETWORKS_CONFIG": str(config)}
    command = [sys.executable, "-m", "integrity", "ingest", "audit", "notifications", str(feed), "--follow", "--json"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        try:
            database = tmp_path / "ledger-state" / "feeds" / "feeds.sqlite"
            _until(database.exists)
            feed.write_bytes(notices(1, 2) + notices(3)[:-5])
            _until(lambda: _place(config, feed).line == 2)
            with feed.open("ab") as file:
                file.write(notices(3)[-5:] + notices(1))
            _until(lambda: _place(config, feed).line == 4)
        finally:
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    answer = json.loads(out)
    assert (answer["recorded"], answer["repeated"], answer["malformed"]) == (3, 1, 0)
    assert keys(config) == ["k1", "k2", "k3"]


def _place(config: Path, feed: Path) -> Place:
    with opened_ledger("audit", load_config(config)) as ledger:
        cursors = Cursors(ledger.state_dir / "feeds")
        try:
            return cursors.place("notifications", str(feed))
        finally:
            cursors.close()


def _until(holds: Any) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_the_window_is_bounded(tmp_path: Path) -> None:
    cursors = Cursors(tmp_path / "feeds", window=100)
    every = [number.to_bytes(16, "big") for number in range(1000)]
    for identity in every:
        cursors.commit([identity])
        assert cursors.known([identity]) == {identity}
    known = cursors.known(every)
    assert 50 <= len(known) <= 100
    assert known == set(every[-len(known) :])
    cursors.commit(places={("feed", "f"): Place(3, True, "s")}, mark=Mark("w", 7))
    cursors.close()
    again = Cursors(tmp_path / "feeds", window=100)
    assert again.place("feed", "f") == Place(3, True, "s")
    assert again.place("feed", "g") == Place()
    assert again.marks() == [Mark("w", 7)]
    again.close()


def test_what_cannot_be_a_record_is_refused_and_the_rest_is_taken(config: Path) -> None:
    options = Options()
    good = [FEEDS["minio-audit"].parse(json.dumps(audit(object=f"k{n}")).encode(), options).events[0] for n in range(2)]
    bad = {**good[0], "key": "other", "detail": {"fraction": 0.5}}
    with opened_ledger("audit", load_config(config)) as ledger:
        cursors = Cursors(ledger.state_dir / "feeds")
        with open_writer(ledger) as writer:
            taken = Intake(writer, cursors, writer.status.size).take([good[0], bad, good[1], good[0]])
        assert (taken.recorded, taken.repeated, len(taken.refused)) == (2, 1, 1)
        assert cursors.known([identity_of(bad)]) == set()
        assert recover(cursors, ledger.slots) == 0
        cursors.close()
    assert keys(config) == ["k0", "k1"]


def test_what_the_ledger_puts_in_its_own_place_is_not_recorded_for_ever(config: Path) -> None:
    assert own_place("s3://ceph/audit/led") == Own("audit", "led/")
    assert own_place("s3://ceph/audit") == Own("audit", "")
    assert own_place("file:///srv/audit") == Own()
    sample = FEEDS["minio-audit"].parse(json.dumps(audit()).encode(), Options()).events[0]
    put = {**sample, "op": "put", "bucket": "audit", "key": "led/log/pve1.1/checkpoint"}
    others = [
        {**put, "op": "delete", "request": "R1"},
        {**put, "phase": "not-done", "request": "R2"},
        {**put, "key": "ledger", "request": "R3"},
        {**put, "bucket": "photos", "request": "R4"},
    ]
    with opened_ledger("audit", load_config(config)) as ledger:
        cursors = Cursors(ledger.state_dir / "feeds")
        with open_writer(ledger) as writer:
            taken = Intake(writer, cursors, writer.status.size, Own("audit", "led/")).take([put, *others, put])
        assert (taken.recorded, taken.repeated, taken.own) == (4, 0, 2)
        cursors.close()


def test_log_objects_in_a_bucket_are_read_once_each(tmp_path: Path) -> None:
    bucket, _ = open_bucket("memory:logs")
    bucket.put("AWSLogs/2026/01.gz", gzip.compress(json.dumps({"Records": [trail()]}).encode()))
    bucket.put("AWSLogs/2026/02", json.dumps({"Records": [trail(requestID="R2")]}).encode())
    bucket.put("AWSLogs/2026/empty", b"")
    bucket.put("other/03", b"not looked at")
    cursors, feed = Cursors(tmp_path / "feeds"), FEEDS["cloudtrail"]

    def read() -> list[Batch]:
        batches = list(read_sources(["s3://aws/logs/AWSLogs/"], feed, cursors, lambda url: (bucket, "AWSLogs/")))
        for batch in batches:
            cursors.commit(places=batch.places)
        return batches

    first = [piece for batch in read() for piece in batch.pieces]
    assert [piece.where for piece in first] == [f"s3://aws/logs/AWSLogs/2026/{name}" for name in ("01.gz", "02")]
    assert [len(feed.parse(piece.data or b"", Options()).events) for piece in first] == [1, 1]
    bucket.put("AWSLogs/2026/02", json.dumps({"Records": []}).encode())
    again = read()
    assert [piece.where for batch in again for piece in batch.pieces] == ["s3://aws/logs/AWSLogs/2026/02"]
    assert sum(batch.known for batch in again) == 1
    cursors.close()
