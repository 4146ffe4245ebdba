"""Pages about volumes, played: the symptom is made, Check shows what the page says, Act cures it, Confirm confirms.

Parsed only, and why: `port-in-use` Check (shows the whole machine's ports), `initiator-stuck` iscsiadm (a kernel's initiator;
the guest tests have one), `clock` timedatectl (it would set the machine's), `watchdog` kernel log, `upgrade-failed` dpkg
(tests/packages), `lifecycle` aws (objects come back by our own client), `envctl` and `pve-storage` (a console and a node:
tests/envctl and tests/plugin play the same faults through their own doors).
"""

import contextlib
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from s3core.s3_control import S3Control
from tests.runbook.world import FAST, VOLUME, World, find
from tests.servers.radosgw import Radosgw
from tests.servers.relay import Relay

pytestmark = [pytest.mark.slow, pytest.mark.rgw, pytest.mark.initiator]

HELD = ("read -P 0x41 0 4M",)
"""What the bucket must still have after any cure."""


def test_store_unreachable(radosgw: Radosgw, relay: Relay, tmp_path: Path) -> None:
    world = World.make(tmp_path / "world", radosgw, url=relay.url)
    try:
        world.make_volume(settings='commit_interval_s = "300ms"\nlease_s = "10m"\n')
        world.serve()
        world.write("write -P 0x41 0 4M", "flush")
        world.carry()
        relay.cut()
        world.write("write -P 0x42 4M 1M", "flush")
        world.until("s3block top --count 1", lambda told: told["volumes"][0]["store_reachable"] == 0)
        world.play("store-unreachable.md", "Check.")
        relay.mend()
        world.until("s3block top --count 1", lambda told: told["volumes"][0]["store_reachable"] == 1)
        world.play("store-unreachable.md", "Confirm.")
        assert "answers again after" in world.do("journalctl -u s3block@vm1")
        world.write("read -P 0x42 4M 1M", *HELD)
    finally:
        world.end()


def test_journal_filling(served: World) -> None:
    served.play("journal-filling.md", "Check.")
    served.reconfigure('journal_bytes = "64M"', 'journal_bytes = "96M"')
    served.play("journal-filling.md", "Act.", "Confirm.")
    served.write(*HELD)
    assert (served.state / "vm1/journal").stat().st_size > (served.state / "vm1/journal.old").stat().st_size


def test_attach_refused_and_the_last_host_is_up(served: World) -> None:
    other = served.other("other")
    other.configure(f'[volume.vm1]\nurl = "s3://ceph/bucket"\n{FAST}')
    served.write("write -P 0x42 4M 1M", "flush")
    served.do("systemctl kill -s KILL s3block@vm1")
    assert "its journal is not here" in other.do("s3block serve vm1", code=7)
    other.play("attach-refused.md", "Check.")
    served.play("attach-refused.md", "Act.", without=["on the new host"])
    other.play("attach-refused.md", "Act.", without=["on the last host"])
    other.play("attach-refused.md", "Confirm.")
    other.write("read -P 0x42 4M 1M", *HELD)
    other.end()


def test_attach_refused_and_the_disk_is_readable(served: World) -> None:
    served.write("write -P 0x42 4M 1M", "flush")
    served.do("systemctl kill -s KILL s3block@vm1")
    other = served.other("other")
    other.configure(f'[volume.vm1]\nurl = "s3://ceph/bucket"\n{FAST}')
    assert "its journal is not here" in other.do("s3block serve vm1", code=7)
    shutil.rmtree(other.state / "vm1", ignore_errors=True)
    shutil.copytree(
        served.state / "vm1", other.state / "vm1", ignore=lambda folder, names: [n for n in names if n == "control"]
    )
    other.play("attach-refused.md", "Act.", without=["on the last host"])
    other.play("attach-refused.md", "Confirm.")
    other.write("read -P 0x42 4M 1M", *HELD)
    other.end()


def test_take_over_and_the_old_host_is_fenced_out(served: World) -> None:
    """Two pages: one host is gone and its volume is taken over; then it comes back."""
    other = served.other("other")
    other.configure(f'[volume.vm1]\nurl = "s3://ceph/bucket"\n{FAST}')
    other.play("take-over.md", "Check.", "Act.", "Confirm.")
    other.write(*HELD)
    log = served.do("journalctl -u s3block@vm1")
    assert "volume vm1 was taken over: " in log
    served.story.clear()
    answer = served.run(f"s3block info {VOLUME}").text
    assert "epoch" in answer
    served.play("fenced-out.md", "Act.")
    other.end()


def test_grow(served: World) -> None:
    served.play("grow.md", "Check.", "Act.", "Confirm.")
    served.write(*HELD)
    assert "before-shrinking" in served.do(f"s3block snapshot list {VOLUME}")


def test_corrupt_object(served: World) -> None:
    """An object of the bucket is damaged; the host that wrote it has a copy, which is put back."""
    served.do("dd if=/dev/urandom of=noise bs=1M count=1 status=none")
    served.write(f"write -s {served.directory}/home/noise 8M 1M", "flush")
    served.carry()
    served.do("systemctl stop s3block@vm1")
    bucket = served.bucket()
    key = max(served.keys("v1/vm1/ext/"), key=lambda one: len(bucket.get(one)))
    good = bucket.get(key)
    assert len(good) > 1_000_000
    bucket.put(key, good[:600_000] + bytes(1000) + good[601_000:])
    served.play("corrupt.md", "Check.")
    served.play("corrupt.md", "Act.")
    copy = served.state / "vm1/objects" / key.removeprefix("v1/vm1/").replace("/", "~")
    if copy.exists():
        assert copy.read_bytes() == good
    bucket.put(key, good)
    served.play("corrupt.md", "Confirm.")
    served.serve()
    served.write(*HELD)


def test_extent_map(served: World) -> None:
    served.play("extent-map.md", "Check.", "Act.", "Confirm.")
    served.write(*HELD)


def write_or_error(world: World, line: str) -> str:
    """What the initiator says of a write and a flush, done or not."""
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-t", "none", "-c", line, "-c", "flush", world.target],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


def test_quota(world: World) -> None:
    world.make_volume(settings=FAST + 'quota_bytes = "4M"\n')
    world.serve()
    world.write("write -P 0x41 0 4M", "flush")
    said = ""
    for number in range(8, 40):
        said = write_or_error(world, f"write -P 0x42 {number}M 64k")
        if "No space left" in said:
            break
        # What counts is late by one commit, so the first ones may still find room.
        world.carry()
    assert "No space left" in said
    world.play("quota.md", "Check.", "Act.", "Confirm.")
    world.write("write -P 0x42 8M 1M", *HELD)


def test_port_in_use(world: World) -> None:
    world.table["127.0.0.1:3261"] = f"127.0.0.1:{world.other('spare').port}"
    world.make_volume()
    with socket.create_server(("127.0.0.1", world.port)):
        assert "cannot listen on 127.0.0.1:3260: " in world.do("s3block serve vm1", code=7)
        world.play("port-in-use.md", "Act.", "Confirm.")


def test_key_refused(world: World) -> None:
    key, copy = world.directory / "etc/vm1.key", world.directory / "etc/vm1.key.copy"
    for path in (key, copy):
        path.write_bytes(b"k" * 32)
        path.chmod(0o600)
    world.make_volume(settings=FAST + f'key = "file:{key}"\n')
    key.write_bytes(b"x" * 32)
    assert "opens no slot of volume vm1" in world.do("s3block serve vm1", code=7)
    world.play("key-refused.md", "Check.", "Act.", "Confirm.")


def test_race_probe_fails(world: World) -> None:
    control = world.control()
    control.create_bucket("versioned")
    control.set_versioning("versioned", True)
    control.close()
    refused = world.do("s3block create s3://ceph/versioned/vm1 --size 64M", code=7)
    assert "cannot keep two hosts from writing to a volume at once" in refused
    world.play("race-probe-fails.md", "Check.", "Act.", "Confirm.")


def test_versioning_switched_on_under_a_volume(served: World) -> None:
    control = served.control()
    control.create_bucket("plain")
    control.set_versioning("bucket", True)
    control.close()
    served.play("versioning.md", "Check.", "Act.", "Confirm.")
    served.write(*HELD)


def test_snapshots(served: World) -> None:
    served.do("s3block snapshot create vm1 before-upgrade")
    served.write("write -P 0x55 0 1M", "flush")
    served.carry()
    served.play("snapshots.md", "Check.", "Act.", "Confirm.", "Then.")
    served.write(*HELD)


@pytest.mark.parametrize("case", ["lost", "full", "failing"])
def test_state_directory(served: World, case: str) -> None:
    served.do("systemctl stop s3block@vm1")
    served.play("state-directory.md", "Check.")
    if case == "lost":
        shutil.rmtree(served.state / "vm1")
    served.play("state-directory.md", "Act.", without=sorted({"lost", "full", "failing"} - {case}))
    served.play("state-directory.md", "Confirm.")
    served.write(*HELD)


def test_slow_disk(served: World) -> None:
    served.play("slow-disk.md", "Check.", "Act.", "Confirm.")
    served.write(*HELD)


def test_the_clock_is_wrong(world: World) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("needs faketime: apt-get install faketime")
    refused = world.do("faketime '+20 minutes' s3block list s3://ceph/bucket", code=3)
    (check,) = [block for block in find("clock.md").blocks["Check."] if not block.not_run]
    looked = world.do(f"faketime '+20 minutes' {check.text}", code=1)
    for told in (refused, looked):
        assert re.search(r"clock is 1,2\d\d seconds ahead of the server's", told), told
    world.play("clock.md", "Confirm.")


def test_certificate(radosgw: Radosgw, tmp_path: Path) -> None:
    world = World.make(tmp_path / "world", radosgw, url=f"https://127.0.0.1:{radosgw.tls_port}")
    text = world.config.read_text()
    world.config.write_text(text.replace('preset = "ceph"', f'preset = "ceph"\nfingerprint = "{"ab" * 32}"', 1))
    world.play("certificate.md", "Check.", "Act.", "Confirm.")
    assert radosgw.certificate.fingerprint.replace(":", "").lower() in world.config.read_text().replace(":", "").lower()


def test_store_keys(served: World) -> None:
    """The secret is rotated: the user gets a second key, and the first one is withdrawn."""
    keys = served.directory / "etc/ceph.keys"
    keys.with_suffix(".keys.new").write_text(keys.read_text())
    keys.write_text(keys.read_text().replace(served.secret_key, "SKwithdrawn"))
    assert "does not belong to access key" in served.do(f"s3block info {VOLUME}", code=5)
    served.play("store-keys.md", "Check.", "Act.", "Confirm.")
    served.write(*HELD)


def test_bucket_full(served: World) -> None:
    """A real quota of the server's: not one object more, then a few, as a collection needs."""
    served.do("s3block snapshot create vm1 old")
    served.write("write -P 0x42 0 4M", "write -P 0x41 0 4M", "flush")
    served.carry()
    served.limit_objects(len(served.keys("")))
    served.write("write -P 0x42 8M 1M", "flush")
    served.until_logged("s3block@vm1", "the bucket's quota is full: make room or raise the quota")
    served.play("bucket-full.md", "Check.")
    served.limit_objects(len(served.keys("")) + 20)
    served.play("bucket-full.md", "Act.", "Confirm.")
    served.carry()
    served.write("read -P 0x42 8M 1M", *HELD)


def test_a_lifecycle_rule_deletes_our_objects(served: World) -> None:
    served.do("dd if=/dev/urandom of=noise bs=1M count=1 status=none")
    served.write(f"write -s {served.directory}/home/noise 8M 1M", "flush")
    served.carry()
    served.do("systemctl stop s3block@vm1")
    control, bucket = served.control(), served.bucket()
    expire_everything(control)
    gone = {key: bucket.get(key) for key in served.keys("v1/vm1/ext/")}
    for key in gone:
        bucket.delete(key)  # what the rule does, a day later
    served.play("lifecycle.md", "Check.")
    clear_rules(control)
    for key, data in gone.items():
        bucket.put(key, data)
    control.close()
    served.play("lifecycle.md", "Confirm.")


def expire_everything(control: S3Control) -> None:
    rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}
    control._call(
        "PutBucketLifecycleConfiguration",
        "s3:PutLifecycleConfiguration",
        "bucket",
        LifecycleConfiguration={"Rules": [rule]},
    )


def clear_rules(control: S3Control) -> None:
    control._call("DeleteBucketLifecycle", "s3:PutLifecycleConfiguration", "bucket")


def test_an_initiator_is_cut_off(served: World) -> None:
    """A connection that was cut off leaves nothing at the target that holds up the next one."""
    with socket.create_connection(("127.0.0.1", served.port)):
        served.play("initiator-stuck.md", "Check.", "Act.")
        served.write(*HELD)


def test_the_configuration_is_refused(served: World) -> None:
    served.do("systemctl stop s3block@vm1")
    served.reconfigure("commit_interval_s", "commit_intervall_s")
    served.do("systemctl start s3block@vm1", code=1)
    served.play("config-error.md", "Check.", "Act.", "Confirm.")


def test_the_bill(served: World) -> None:
    served.do("s3block snapshot create vm1 old")
    served.write("write -P 0x42 4M 4M", "flush")
    served.carry()
    served.play("bill.md", "Check.", "Act.", "Confirm.")
    assert "old" not in served.do("s3block snapshot list vm1")


def test_an_upgrade_is_finished(served: World) -> None:
    served.play("upgrade-failed.md", "Check.", "Act.", "Confirm.")
    served.write(*HELD)


def test_everything_that_was_started_is_ended(served: World) -> None:
    session = int((served.directory / "services/s3block@vm1.pid").read_text())
    assert len(alive(session)) > 1, "a daemon and its engines"
    served.end()
    give_up = time.monotonic() + 60
    while left := alive(session):
        assert time.monotonic() < give_up, left
        time.sleep(0.05)


def alive(session: int) -> list[int]:
    """Processes of a session that have not ended: one that nobody has waited for yet has."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of, *_ = stat.read_text().rpartition(")")[2].split()
            if int(of) == session and state != "Z":
                found.append(int(stat.parent.name))
    return found
