"""The units as they are installed, in a guest with systemd as init: they begin, say so, live through a kill and a hang, and
stop with everything in the bucket. One boot serves all."""

import json
import re
import time
from collections.abc import Callable, Iterator

import pytest

from envctl.agent.main import VERSION
from s3core.s3 import S3Store
from s3core.s3_control import S3Control
from tests.architecture.tree import ROOT
from tests.guest.guest import HOST, Guest, GuestFailed, Hardware
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

pytestmark = [pytest.mark.initiator, pytest.mark.rgw]

START_S = 600.0
"""Under emulation on a busy host a start of Python alone takes half a minute."""

CONFIG = """
[s3block]
journal_bytes = "64M"
cache_bytes = "64M"

[volume.vm1]
url = "file:///srv/disks"
key = "systemd:vm1-key"
chap_user = "initiator"
chap_secret_file = "systemd:vm1-chap"
commit_interval_s = "1h"

[mirror.photos]
source = "s3://site/photos"
target = "s3://site/photos-mirror"
every_s = "5s"

[endpoint.site]
preset = "ceph"
url = "http://PLACE"
credentials = "systemd:site-keys"

[envctl]
listen = "127.0.0.1:8480"
homes = "file:///var/lib/bucketworks/envctl/homes"
metrics_token = "systemd:metrics"
"""

INSTALL = """
lib=/opt/bucketworks/lib/deploy/systemd
cp $lib/*.service $lib/*.socket $lib/*.timer /usr/lib/systemd/system/
mkdir -p /usr/lib/sysusers.d /usr/lib/tmpfiles.d
cp $lib/sysusers.d/* /usr/lib/sysusers.d/
cp $lib/tmpfiles.d/* /usr/lib/tmpfiles.d/
ln -sf /opt/bucketworks/bin/* /usr/local/bin/
systemd-sysusers bucketworks.conf
systemd-tmpfiles --create bucketworks.conf
mkdir -p /srv/disks
install -m 0600 /dev/null /etc/bucketworks/vm1.chap
printf 'a long enough secret' > /etc/bucketworks/vm1.chap
(umask 077; head -c 32 /dev/urandom > /etc/bucketworks/vm1.key; printf 'token for metrics' > /etc/bucketworks/metrics)
drop() { mkdir -p /etc/systemd/system/$1.d; cat > /etc/systemd/system/$1.d/credentials.conf; }
systemd-creds encrypt --with-key=host --name=vm1-key /etc/bucketworks/vm1.key /etc/bucketworks/vm1.key.cred
drop s3block@vm1.service <<'UNIT'
[Service]
LoadCredentialEncrypted=vm1-key:/etc/bucketworks/vm1.key.cred
LoadCredential=vm1-chap:/etc/bucketworks/vm1.chap
WatchdogSec=60
UNIT
drop s3block-check@vm1.service <<'UNIT'
[Service]
LoadCredentialEncrypted=vm1-key:/etc/bucketworks/vm1.key.cred
UNIT
drop cowsync@photos.service <<'UNIT'
[Service]
LoadCredential=site-keys:/etc/bucketworks/site-keys
UNIT
drop s3-envctl.service <<'UNIT'
[Service]
LoadCredential=metrics:/etc/bucketworks/metrics
UNIT
systemctl daemon-reload
s3block create vm1 --size 64M --key file:/etc/bucketworks/vm1.key
"""


def do(guest: Guest, script: str, seconds: float = START_S) -> str:
    done = guest.finish("bash", "-euo", "pipefail", "-c", script, seconds=seconds)
    if done.status:
        journal = guest.run("journalctl", "-b", "--no-pager", "-o", "cat", "-n", "80", check=False, seconds=120)
        raise GuestFailed(f"{script}\nended with {done.status}:\n{done.output}\n{journal}")
    return done.output


def show(guest: Guest, unit: str, what: str) -> str:
    return guest.run("systemctl", "show", "--value", "-p", what, unit, seconds=120).strip()


def until(guest: Guest, what: str, condition: Callable[[], bool], seconds: float = START_S) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            journal = guest.run("journalctl", "-b", "--no-pager", "-o", "cat", "-n", "80", check=False, seconds=120)
            raise GuestFailed(f"not within {seconds} s: {what}\n{journal}")
        time.sleep(1)


def active_again(guest: Guest, unit: str, restarts: int) -> None:
    until(
        guest,
        f"{unit} is started once more",
        lambda: int(show(guest, unit, "NRestarts")) > restarts and show(guest, unit, "ActiveState") == "active",
    )


def journal(guest: Guest, unit: str) -> str:
    return guest.run("journalctl", "-b", "--no-pager", "-o", "cat", "-u", unit, seconds=120)


@pytest.fixture(scope="module")
def site(radosgw: Radosgw) -> Iterator[dict[str, S3Store]]:
    """The two buckets of the mirror, on a real S3 server, by their names."""
    control = S3Control(radosgw.endpoint())
    for bucket in ("photos", "photos-mirror"):
        control.create_bucket(bucket)
    control.close()
    buckets = {name: S3Store(radosgw.endpoint(), name) for name in ("photos", "photos-mirror")}
    yield buckets
    for store in buckets.values():
        store.close()


def keys(store: S3Store) -> set[str]:
    return {one.key for one in store.list()}


@pytest.fixture(scope="module")
def guest(boot: Callable[[Hardware], Guest], radosgw: Radosgw, site: dict[str, S3Store]) -> Guest:
    guest = boot(Hardware(systemd=True))
    place = f"{HOST}:{radosgw.http_port}"
    guest.write("/etc/bucketworks/config.toml", CONFIG.replace("PLACE", place), mode=0o644)
    guest.write("/etc/bucketworks/site-keys", f'access_key = "{ACCESS_KEY}"\nsecret_key = "{SECRET_KEY}"\n')
    do(guest, INSTALL)
    return guest


def test_systemd_reads_them_without_a_word(guest: Guest) -> None:
    names = sorted(one.name.replace("@", "@vm1") for one in (ROOT / "deploy/systemd").glob("*.service"))
    ours = [name for name in names if not name.startswith("bucketworks-")]
    said = guest.run("systemd-analyze", "verify", "--man=no", *ours, seconds=300, check=False)
    assert not [line for line in said.splitlines() if re.search(r"s3|cowsync|bucketworks", line)], said


def test_a_volume_is_ready_when_it_listens_with_a_key_and_a_secret_from_credentials(guest: Guest) -> None:
    do(guest, "systemctl start s3block@vm1")
    assert "LISTEN" in guest.run("ss", "-Hltn", "sport = :3260"), "a start returns when initiators can log in"
    until(guest, "a status", lambda: show(guest, "s3block@vm1", "StatusText").startswith("serving vm1, 0 sessions"))
    refused = guest.finish("iscsiadm", "-m", "discovery", "-t", "st", "-p", "127.0.0.1:3260", seconds=120)
    assert refused.status == 0, refused.output
    pid = show(guest, "s3block@vm1", "MainPID")
    (worker,) = guest.run("cat", f"/proc/{pid}/task/{pid}/children").split()
    limits = guest.run("cat", f"/proc/{worker}/limits")
    assert re.search(r"Max nice priority +20 +20", limits), "the worker may come back from nice 19"
    assert re.search(r"Max core file size +0 +0", limits)
    assert guest.run("stat", "-c", "%a", "/var/lib/bucketworks").strip() == "711"
    assert guest.run("stat", "-c", "%a", "/var/lib/bucketworks/vm1").strip() == "700"
    assert "Seccomp:\t2" in guest.run("cat", f"/proc/{pid}/status")


def test_it_is_written_and_a_stop_leaves_everything_in_the_bucket(guest: Guest) -> None:
    do(
        guest,
        """
        iscsiadm -m node -p 127.0.0.1:3260 -o update -n node.session.auth.authmethod -v CHAP
        iscsiadm -m node -p 127.0.0.1:3260 -o update -n node.session.auth.username -v initiator
        iscsiadm -m node -p 127.0.0.1:3260 -o update -n node.session.auth.password -v 'a long enough secret'
        iscsiadm -m node -p 127.0.0.1:3260 --login
        udevadm settle --timeout=60
        disk=$(ls /dev/disk/by-path/*bucketworks*vm1*)
        head -c 8M /dev/urandom > /root/written
        dd if=/root/written of=$disk bs=1M oflag=direct conv=fsync status=none
        """,
    )
    until(guest, "it is behind", lambda: "1 session, 8 MiB behind" in show(guest, "s3block@vm1", "StatusText"), 120)
    do(guest, "iscsiadm -m node -p 127.0.0.1:3260 --logout; systemctl stop s3block@vm1")
    assert "detached, the bucket has everything" in journal(guest, "s3block@vm1")
    assert show(guest, "s3block@vm1", "Result") == "success"
    do(
        guest,
        "s3block export vm1 /root/read --key file:/etc/bucketworks/vm1.key --format raw;"
        " cmp --bytes=$((8 << 20)) /root/written /root/read",
    )
    do(guest, "systemctl start s3block@vm1")


@pytest.mark.parametrize("which", ["front", "worker"])
def test_a_volume_that_is_killed_is_there_again(guest: Guest, which: str) -> None:
    before = int(show(guest, "s3block@vm1", "NRestarts"))
    pid = show(guest, "s3block@vm1", "MainPID")
    victim = pid if which == "front" else guest.run("cat", f"/proc/{pid}/task/{pid}/children").strip()
    guest.run("kill", "-KILL", victim)
    active_again(guest, "s3block@vm1", before)


@pytest.mark.parametrize("which", ["front", "worker"])
def test_a_volume_that_hangs_is_ended_and_begun_again(guest: Guest, which: str) -> None:
    """WatchdogSec= of this test's drop-in; a worker is missed after half of it."""
    until(guest, "it serves", lambda: show(guest, "s3block@vm1", "StatusText").startswith("serving"))
    before = int(show(guest, "s3block@vm1", "NRestarts"))
    pid = show(guest, "s3block@vm1", "MainPID")
    victim = pid if which == "front" else guest.run("cat", f"/proc/{pid}/task/{pid}/children").strip()
    guest.run("kill", "-STOP", victim)
    active_again(guest, "s3block@vm1", before)
    said = journal(guest, "s3block@vm1")
    assert "Watchdog timeout" in said
    if which == "worker":
        assert "its worker has not been heard of" in said
    assert guest.finish("test", "-e", f"/proc/{victim}").status != 0, "nothing of the hung one is left"


def test_a_mirror_does_its_rounds(guest: Guest, site: dict[str, S3Store]) -> None:
    site["photos"].put("first", b"one")
    do(guest, "systemctl start cowsync@photos")
    until(guest, "a copy", lambda: "first" in keys(site["photos-mirror"]))
    until(guest, "a status", lambda: "next run at" in show(guest, "cowsync@photos", "StatusText"))
    before = int(show(guest, "cowsync@photos", "NRestarts"))
    guest.run("kill", "-KILL", show(guest, "cowsync@photos", "MainPID"))
    site["photos"].put("second", b"two")
    until(guest, "the next round", lambda: "second" in keys(site["photos-mirror"]))
    assert int(show(guest, "cowsync@photos", "NRestarts")) > before
    do(guest, "systemctl stop cowsync@photos")
    assert show(guest, "cowsync@photos", "Result") == "success"


def test_a_ledger_is_sealed_verified_and_cosigned(guest: Guest) -> None:
    do(
        guest,
        """
        s3integrity init trail file:///srv/ledger --covers file:///srv/covered --writer guest
        s3integrity witness keygen /root/w1 --name witness.example.com/w1
        install -d -o bucketworks-witness -m 0700 /var/lib/bucketworks/witness /var/lib/bucketworks/witness/w1
        cp -r /root/w1/. /var/lib/bucketworks/witness/w1/
        chown -R bucketworks-witness: /var/lib/bucketworks/witness
        systemctl start s3integrity@trail s3integrity-witness@w1
        """,
    )
    until(guest, "a round", lambda: "records in the ledger" in show(guest, "s3integrity@trail", "StatusText"))
    do(guest, "systemctl start s3integrity-verify@trail.service")
    assert "VERIFIED" in journal(guest, "s3integrity-verify@trail")
    assert show(guest, "s3integrity-witness@w1", "StatusText") == "witness for 0 logs"
    health = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8466/healthz').read())"
    assert "ok" in guest.run("python3", "-c", health)
    before = int(show(guest, "s3integrity-witness@w1", "NRestarts"))
    guest.run("kill", "-KILL", show(guest, "s3integrity-witness@w1", "MainPID"))
    active_again(guest, "s3integrity-witness@w1", before)
    do(guest, "systemctl stop s3integrity@trail s3integrity-witness@w1")
    for unit in ("s3integrity@trail", "s3integrity-witness@w1"):
        assert show(guest, unit, "Result") == "success"


def test_the_console_serves_at_443_without_root_beside_the_others_state(guest: Guest) -> None:
    do(
        guest,
        """
        chmod 0600 /etc/bucketworks/config.toml
        s3-envctl init --json > /root/admin.json
        systemctl start s3-envctl.socket s3-envctl.service
        """,
    )
    assert json.loads(guest.read("/root/admin.json"))["name"] == "admin"
    ask = (
        "import sys, urllib.request as u\n"
        "r = u.Request('http://127.0.0.1:443' + sys.argv[1],"
        " headers={'Authorization': 'Bearer ' + sys.argv[2], 'X-Forwarded-For': '192.0.2.1'} if sys.argv[2:] else {})\n"
        "print(u.urlopen(r, timeout=120).read().decode())"
    )
    assert "ok" in guest.run("python3", "-c", ask, "/healthz", seconds=180)
    assert json.loads(guest.run("python3", "-c", ask, "/readyz", seconds=180))["database"] == "ok"
    assert "<form" in guest.run("python3", "-c", ask, "/login", seconds=180)
    fetch = "import urllib.request as u; u.urlretrieve('http://127.0.0.1:443/guest/v1/agent.pyz', '/root/agent.pyz')"
    guest.run("python3", "-c", fetch, seconds=180)
    # -I: without our modules from anywhere else.
    assert guest.run("python3", "-I", "/root/agent.pyz", "version", seconds=180).strip() == VERSION
    told = guest.run("python3", "-c", ask, "/metrics", "token for metrics", seconds=180)
    assert "bucketworks_envctl" in told, "its token came as a credential, to a user who is not root"
    pid = show(guest, "s3-envctl", "MainPID")
    status = guest.run("cat", f"/proc/{pid}/status")
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    assert not re.search(r"^Uid:\t0\t", status, re.MULTILINE)
    before = int(show(guest, "s3-envctl", "NRestarts"))
    guest.run("kill", "-KILL", pid)
    assert "ok" in guest.run("python3", "-c", ask, "/healthz", seconds=300), "visitors wait, and are not refused"
    active_again(guest, "s3-envctl", before)
    do(guest, "systemctl stop s3-envctl.socket s3-envctl.service")
    assert show(guest, "s3-envctl", "Result") == "success"


def test_a_volume_is_looked_through(guest: Guest) -> None:
    do(guest, "systemctl start s3block-check@vm1.service || (journalctl -u s3block-check@vm1 -o cat; false)")
    for timer in ("s3block-check@vm1.timer", "s3integrity-verify@trail.timer"):
        do(guest, f"systemctl enable --now {timer}")
        assert show(guest, timer, "NextElapseUSecRealtime"), "it is due some day"


def test_nothing_unexpected_was_said(guest: Guest) -> None:
    said = guest.run("journalctl", "-b", "--no-pager", "-o", "cat", "-p", "warning", seconds=120)
    ours = [
        line
        for line in said.splitlines()
        if re.search(r"s3block|cowsync|s3integrity|s3-envctl|bucketworks", line)
        and not re.search(r"Watchdog timeout|Killing process|Failed with result|Main process exited", line)
    ]
    assert not [line for line in ours if re.search(r"Unknown|deprecated|Traceback|Operation not permitted", line)], ours
