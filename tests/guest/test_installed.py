"""README's three commands in a guest with systemd: from nothing to a file system on a bucket that is there again after a reboot
and after a power cut, and away without a trace when it was taken back."""

import re
import time
from collections.abc import Callable

import pytest

from s3core.s3_control import S3Control
from tests.architecture.tree import ROOT
from tests.guest.guest import HOST, Guest, GuestFailed, Hardware
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

pytestmark = [pytest.mark.rgw, pytest.mark.initiator]

BOOT_S = 420.0
FILE = "/srv/data/file"


def three_commands() -> list[str]:
    """As README has them."""
    section = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Three commands\n")[2].partition("\n## ")[0]
    )
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    return [line for line in block.splitlines() if line]


def state(guest: Guest) -> str:
    """What there is to know when something did not come up."""
    look = (
        "systemctl --no-pager status srv-data.mount 's3block*' iscsid open-iscsi; systemctl list-jobs;"
        " iscsiadm -m session -P 3; cat /etc/bucketworks/config.toml;"
        " journalctl -b --no-pager -o short-monotonic -u 's3block*' -u srv-data.mount -u iscsid -u open-iscsi | tail -100;"
        " dmesg | tail -60"
    )
    return guest.run("bash", "-c", look, check=False, seconds=120) + guest.console


def do(guest: Guest, *lines: str, seconds: float = 600.0) -> str:
    """Run lines as root's shell does, up to the first that fails; what they printed."""
    done = guest.finish("bash", "-euo", "pipefail", "-c", "\n".join(lines), seconds=seconds)
    if done.status:
        raise GuestFailed(f"{lines}\nended with {done.status}:\n{done.output}\n{state(guest)}")
    return done.output


def until(guest: Guest, command: str, answer: str) -> None:
    """Until `command` prints `answer`, as it does some time after a boot."""
    give_up = time.monotonic() + BOOT_S
    while True:
        found = guest.finish("bash", "-c", command)
        if found.output == answer:
            return
        if time.monotonic() > give_up:
            raise GuestFailed(f"{command} never said {answer!r}, but {found.output!r}\n{state(guest)}")
        time.sleep(2)


def reboot(guest: Guest) -> None:
    before = guest.hellos()
    guest.start("systemctl", "reboot")
    guest.wait_for_agent(before + 1, seconds=BOOT_S)


@pytest.fixture(scope="module")
def guest(boot: Callable[[Hardware], Guest], radosgw: Radosgw) -> Guest:
    """A host on which the three commands were typed."""
    control = S3Control(radosgw.endpoint())
    control.create_bucket("bucket")
    control.close()
    guest = boot(Hardware(systemd=True))
    do(
        guest,
        "cp /opt/bucketworks/lib/deploy/systemd/s3block*@.service /etc/systemd/system/; systemctl daemon-reload",
        "ln -sf /opt/bucketworks/bin/s3block /opt/bucketworks/bin/bucketworks /usr/local/bin/",
        # The guest's own disk is small.
        "mkdir -p /etc/bucketworks",
        'printf \'[s3block]\\njournal_bytes = "256M"\\ncache_bytes = "128M"\\n\' > /etc/bucketworks/config.toml',
    )
    place = f"http://{HOST}:{radosgw.http_port}"
    commands = [
        line.replace("https://rgw.example.com", place).replace("AKEXAMPLE", ACCESS_KEY) for line in three_commands()
    ]
    # What the first one asks for at a terminal.
    said = do(guest, f"export BUCKETWORKS_CEPH_SECRET_KEY={SECRET_KEY}", *commands)
    assert "volume vm1 is mounted at /srv/data" in said
    do(guest, f"echo 'here to stay' > {FILE}; sync")
    return guest


def test_doing_it_again_changes_nothing(guest: Guest) -> None:
    said = do(guest, *three_commands()[2:])
    assert "was mounted already" in said
    assert do(guest, f"cat {FILE}") == "here to stay\n"
    print(
        do(guest, "systemd-analyze verify /etc/systemd/system/srv-data.mount 2>&1; s3block mount; s3block mount --json")
    )
    print(state(guest))


def test_it_is_there_after_a_reboot(guest: Guest) -> None:
    reboot(guest)
    until(guest, f"cat {FILE}", "here to stay\n")
    log = guest.run("journalctl", "-b", "-1", "--no-pager", "-o", "cat", "-u", "s3block@vm1")
    assert "detached, the bucket has everything" in log
    kernel = guest.run("journalctl", "-b", "-1", "-k", "--no-pager", "-o", "cat")
    assert not re.search(r"I/O error|blocked for more than|EXT4-fs error", kernel), kernel[-3000:]


def test_it_is_there_after_a_power_cut(guest: Guest) -> None:
    do(guest, f"echo 'and to stay' >> {FILE}; sync")
    guest.power_cycle()
    until(guest, f"cat {FILE}", "here to stay\nand to stay\n")


def test_it_is_taken_back(guest: Guest) -> None:
    said = do(guest, "s3block umount vm1")
    assert "what stays: the volume at s3://ceph/bucket/vm1" in said
    print(said)
