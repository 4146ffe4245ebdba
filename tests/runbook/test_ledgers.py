"""Pages about ledgers, played on a ledger in a bucket of a real S3 server.

Parsed only, and why: a writer with another history and a damaged local log (tests/integrity/test_writer.py makes both, where a
slot's keys can be copied on purpose), a full disk (it would be the machine's).
"""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runbook.world import World
from tests.servers.radosgw import Radosgw

pytestmark = [pytest.mark.slow, pytest.mark.rgw]
NOTE = """echo '{"op": "note", "detail": {"what": "moved"}, "who": {"user": "alice"}}' | s3integrity record archive"""


@pytest.fixture
def recorded(radosgw: Radosgw, tmp_path: Path) -> Iterator[World]:
    """Ledger `archive` in bucket `audit` has one note and is sealed."""
    world = World.make(tmp_path / "world", radosgw, buckets=("audit", "photos"))
    world.do("s3integrity init archive s3://ceph/audit --covers s3://ceph/photos --writer pve1")
    world.do(NOTE)
    world.do("s3integrity seal archive")
    yield world
    world.end()


def test_a_stale_ledger(recorded: World) -> None:
    with recorded.config.open("a") as file:
        file.write("silence_s = 1\n")
    give_up = time.monotonic() + 60
    while recorded.run("s3integrity verify archive").code == 0:
        assert time.monotonic() < give_up, recorded.story[-1]
    recorded.play("ledger-stale.md", "Check.", "Act.")
    recorded.reconfigure("silence_s = 1", "silence_s = 300")
    recorded.play("ledger-stale.md", "Confirm.")


def test_a_ledger_that_was_tampered_with(recorded: World) -> None:
    bucket = recorded.bucket("audit")
    changed = {key: bucket.get(key) for key in recorded.keys("log/", "audit") if b"alice" in bucket.get(key)}
    assert changed
    for key, data in changed.items():
        bucket.put(key, data.replace(b"alice", b"mallo"))
    recorded.play("tampered.md", "Check.")
    for key, data in changed.items():
        bucket.put(key, data)  # from a copy, as the page says
    recorded.play("tampered.md", "Confirm.")


def test_all_slots_are_in_use(recorded: World) -> None:
    recorded.configure("slots = 1")
    holder = subprocess.Popen(
        ["bash", "-c", recorded.here("exec s3integrity record archive")],
        stdin=subprocess.PIPE,
        env={
            "PATH": f"{recorded.directory}/bin:/usr/bin:/bin",
            "BUCKETWORKS_CONFIG": str(recorded.config),
            "HOME": str(recorded.directory / "home"),
        },
    )
    try:
        recorded.until("s3integrity slots archive", lambda told: "in use" in str(told) or "in_use" in str(told))
        heading = "`all 8 slots of this host in ledger archive are in use`"
        recorded.play("ledger-slots.md", "Check.", "Act.", "Confirm.", heading=heading)
    finally:
        holder.kill()
        holder.wait()


def test_a_host_that_is_no_writer(recorded: World) -> None:
    other = recorded.other("other")
    table = recorded.config.read_text()
    table = (
        table[table.index("[ledger.archive]") :].replace(str(recorded.state), str(other.state)).replace("pve1", "pve2")
    )
    other.configure(table)
    heading = "`this host is no writer of ledger archive`"
    other.play("ledger-slots.md", "Check.", heading=heading)
    other.play("ledger-slots.md", "Act.", heading=heading, without=["where the ledger key is"])
    request = (other.directory / "home/request.json").read_bytes()
    (recorded.directory / "home/request.json").write_bytes(request)
    recorded.play_marked("docs/runbook/ledger-slots.md", "where the ledger key is")
    other.play("ledger-slots.md", "Confirm.", heading=heading)
    other.end()
