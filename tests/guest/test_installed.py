"""The Debian package and README's three commands, in a guest with systemd that has nothing else of ours: from nothing to a file
system on a bucket, which is there after a reboot and a power cut, and away without a trace when it was taken back."""

import compileall
import py_compile
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from s3core.s3_control import S3Control
from tests.architecture.tree import ROOT
from tests.guest.guest import HOST, Guest, GuestFailed, Hardware
from tests.guest.image import GUEST_PYTHON, GuestImage, make_file_system
from tests.guest.inside import pressure
from tests.packages.built import SUITE, built
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

pytestmark = [pytest.mark.rgw, pytest.mark.initiator]

BOOT_S = 420.0
FILE = "/srv/data/file"
DATA = ("/etc/bucketworks", "/var/lib/bucketworks")
"""Where what was in use may stay: keys, journals, caches."""
OTHERS = ("/etc/iscsi/", "/etc/rtslib-fb-target/", "/etc/.pwd.lock")
"""What open-iscsi, rtslib and useradd keep for themselves."""

LISTED = (
    r"find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /mnt -o -path /root"
    # Logs, and what systemd, dpkg and caches keep for themselves.
    " -o -path /var/log -o -path /var/tmp -o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /var/cache"
    r" \) -prune -o -printf '%p %y %m\n' | sort"
)
"""Every file, with its kind and mode."""
SUMS = "find /etc -type f -exec sha256sum {} + | sort -k2"


def three_commands() -> list[str]:
    """As README has them, in the block that names this file."""
    marked = r"^<!-- [^\n]*tests/guest/test_installed\.py[^\n]* -->\n```sh\n(.*?)^```$"
    (block,) = re.findall(marked, (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [line for line in block.splitlines() if line]


def state(guest: Guest) -> str:
    """What there is to know when something did not come up."""
    look = (
        "systemctl --no-pager status srv-data.mount 's3block*' iscsid open-iscsi; systemctl list-jobs;"
        " iscsiadm -m session -P 3; grep -v secret_key /etc/bucketworks/config.toml;"
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
        found = guest.finish("bash", "-c", command, seconds=BOOT_S)
        if found.output == answer:
            return
        if time.monotonic() > give_up:
            raise GuestFailed(f"{command} never said {answer!r}, but {found.output!r}\n{state(guest)}")
        time.sleep(2)


def compiled(package: Path, folder: Path) -> None:
    """What the package's own script makes of it, in `folder`: the build that processes run from, compiled. Under emulation that
    takes ten minutes, and a build that is there is left as it is. Nothing where the tests run on another Python."""
    if sys.version_info[:2] != GUEST_PYTHON:
        return
    subprocess.run(["dpkg-deb", "-x", package, folder], check=True)
    home = folder / "usr/lib/bucketworks"
    build = home / "builds" / (home / "shipped/BUILD").read_text().strip()
    build.parent.mkdir()
    (home / "shipped").rename(build)
    python = f"python{GUEST_PYTHON[0]}.{GUEST_PYTHON[1]}"
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    for tree in (build / "python3", build / python):
        compileall.compile_dir(tree, quiet=2, workers=2, invalidation_mode=unchecked, stripdir=folder, prependdir="/")
    (build / f".{python}").touch()


@pytest.fixture(scope="module")
def clean(guest_image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A Debian without anything of ours but the agent that tests talk to; the package is on a disk that it may mount."""
    folder = tmp_path_factory.mktemp("installed")
    caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests/guest", folder / "program/lib/tests/guest", ignore=caches)
    (folder / "program/lib/tests/__init__.py").touch()
    (folder / "nothing").mkdir()
    (folder / "package").mkdir()
    shutil.copyfile(built()[SUITE], folder / "package/bucketworks.deb")
    compiled(built()[SUITE], folder / "package/compiled")
    image = {name: folder / f"{name}.img" for name in ("program", "nothing", "package")}
    for name, file in image.items():
        make_file_system(file, folder / name, 1 << 30)
    hardware = Hardware(systemd=True, disks=[image["package"]])
    guest = Guest(replace(guest_image, packages=image["nothing"]), image["program"], folder / "machine", hardware)
    yield guest
    guest.kill()


@pytest.fixture(scope="module")
def guest(clean: Guest, radosgw: Radosgw) -> Guest:
    """The package is installed, the three commands were typed."""
    control = S3Control(radosgw.endpoint())
    control.create_bucket("bucket")
    control.close()
    guest = clean
    assert guest.finish("python3", "-c", "import s3core").status, "the guest has our modules already"
    do(guest, f"{LISTED} > /root/before", f"{SUMS} > /root/before-etc")
    do(
        guest,
        "mount -o ro /dev/nvme0n4 /mnt/a",
        "if [ -d /mnt/a/compiled ]; then cp -a /mnt/a/compiled/usr/lib/bucketworks /usr/lib/; fi",
        "dpkg -i /mnt/a/bucketworks.deb",
        "umount /mnt/a",
        seconds=1500,
    )
    # The guest's own disk is small.
    do(guest, 'printf \'[s3block]\\njournal_bytes = "256M"\\ncache_bytes = "128M"\\n\' > /etc/bucketworks/config.toml')
    place = f"http://{HOST}:{radosgw.http_port}"
    typed = [
        line.replace("https://rgw.example.com", place).replace("AKEXAMPLE", ACCESS_KEY) for line in three_commands()
    ]
    # What the first one asks for at a terminal.
    said = do(guest, f"export BUCKETWORKS_CEPH_SECRET_KEY={SECRET_KEY}", *typed, seconds=900)
    assert "volume vm1 is mounted at /srv/data" in said
    do(guest, f"echo 'here to stay' > {FILE}; sync")
    return guest


def test_doing_it_again_changes_nothing(guest: Guest) -> None:
    assert "was mounted already" in do(guest, *three_commands()[2:])
    assert do(guest, f"cat {FILE}; stat -f -c %T /srv/data") == "here to stay\next2/ext3\n"
    assert re.search(r"vm1 +/srv/data +yes +ext4", do(guest, "s3block mount"))
    # Requests wait for a daemon that is away, however long.
    assert do(guest, "cat /sys/class/iscsi_session/session*/recovery_tmo") == "off\n"
    assert do(guest, "systemd-analyze verify /etc/systemd/system/srv-data.mount 2>&1") == ""


def test_secrets_are_roots_alone(guest: Guest) -> None:
    modes = do(guest, "stat -c %a /etc/bucketworks/vm1.chap* /etc/bucketworks/config.toml /etc/iscsi/nodes/*/*")
    assert set(modes.split()) == {"600"}
    # Whoever has no secret is shown the door, on loopback too.
    unknown = (
        "import socket; s = socket.create_connection(('127.0.0.1', 860)); text = b'InitiatorName=iqn.2000-01.x:y\\0"
        "SessionType=Normal\\0TargetName=iqn.2025-01.internal.bucketworks:vm1\\0AuthMethod=None\\0';"
        "head = bytes([0x43, 0x81, 0, 0, 0]) + len(text).to_bytes(3, 'big') + bytes(40);"
        "s.sendall(head + text + bytes(-len(text) % 4)); answer = s.recv(48); print(answer[0] & 0x3f, answer[36:38].hex())"
    )
    # RFC 7143 section 11.13.5: 0x0201, the initiator could not be authenticated.
    assert do(guest, f'python3 -c "{unknown}"') == "35 0201\n"


def test_the_daemon_does_not_wait_for_the_memory_that_it_frees(guest: Guest) -> None:
    """PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE on every thread of front and worker; and a host without free memory writes."""
    threads: dict[str, Any] = guest.call(pressure.flags, unit="s3block@vm1.service")
    assert len(threads) > 2
    assert all(flags & 0x180000 == 0x180000 for flags in threads.values()), threads
    answer = guest.call(pressure.write, path="/srv/data/load", size=96 << 20, leave=80 << 20, seconds=600)
    assert answer["free"] < 160 << 20, answer
    assert do(guest, "stat -c %s /srv/data/load; rm /srv/data/load") == f"{96 << 20}\n"


def test_a_daemon_that_is_killed_is_back_and_nobody_noticed(guest: Guest) -> None:
    writing = guest.start(
        "bash", "-c", "for i in $(seq 30); do dd if=/dev/urandom of=/srv/data/x bs=64k count=4 conv=fsync; done"
    )
    guest.run("systemctl", "kill", "--signal=KILL", "--kill-whom=all", "s3block@vm1", seconds=120)
    written = writing.wait(seconds=600, check=False)
    assert written.status == 0, f"{written.output}\n{state(guest)}"
    do(guest, "rm /srv/data/x; sync")


def test_a_package_in_use_is_not_removed(guest: Guest) -> None:
    said = guest.finish("dpkg", "--remove", "bucketworks", seconds=300)
    assert said.status, said.output
    assert "volumes are served" in said.output
    assert do(guest, f"cat {FILE}") == "here to stay\n"


def test_it_is_there_after_a_reboot(guest: Guest) -> None:
    before = guest.hellos()
    guest.start("systemctl", "reboot")
    guest.wait_for_agent(before + 1, seconds=BOOT_S)
    until(guest, f"cat {FILE}", "here to stay\n")
    # Orderly: unmounted, logged out, carried to the bucket.
    log = guest.run("journalctl", "-b", "-1", "--no-pager", "-o", "cat", "-u", "s3block*", "-u", "srv-data.mount")
    words = ("Unmounted srv-data.mount", "is logged out of volume vm1", "detached, the bucket has everything")
    assert [log.find(word) for word in words] == sorted(log.find(word) for word in words), log
    assert all(word in log for word in words), log
    kernel = guest.run("journalctl", "-b", "-1", "-k", "--no-pager", "-o", "cat")
    assert not re.search(r"I/O error|blocked for more than|EXT4-fs error", kernel), kernel[-3000:]


def test_it_is_there_after_a_power_cut(guest: Guest) -> None:
    do(guest, f"echo 'and to stay' >> {FILE}; sync")
    guest.power_cycle()
    until(guest, f"cat {FILE}", "here to stay\nand to stay\n")


def test_it_is_taken_back_and_mounted_through_the_kernels_target(guest: Guest) -> None:
    said = do(guest, "s3block umount vm1", seconds=900)
    assert "what stays: the volume at s3://ceph/bucket/vm1" in said
    assert do(guest, "ls /srv/data; systemctl list-units --plain --no-legend 's3block*@*' srv-data.mount") == ""
    do(guest, "sed -i '/^\\[volume.vm1\\]/a door = \"lio\"' /etc/bucketworks/config.toml")
    do(guest, "s3block mount vm1 /srv/data", seconds=900)
    assert do(guest, f"cat {FILE}") == "here to stay\nand to stay\n"
    assert "CHAP mutual" in do(guest, "s3block lio status vm1")
    do(guest, "s3block umount /srv/data", seconds=900)


def test_nothing_but_data_is_left(guest: Guest) -> None:
    do(guest, "dpkg --remove bucketworks", "dpkg --purge bucketworks", seconds=600)
    do(guest, f"{LISTED} > /root/after", f"{SUMS} > /root/after-etc")
    there, here = (set(do(guest, f"cat /root/{name}").splitlines()) for name in ("before", "after"))
    left = sorted(line for line in here - there if not line.startswith((*DATA, *OTHERS)))
    # The directory that was typed.
    assert left == ["/srv/data d 755"], left
    assert there - here == set()
    etc = do(guest, "diff /root/before-etc /root/after-etc || true")
    # Copies that useradd and userdel keep.
    changed = [line.split()[-1] for line in etc.splitlines() if line[0] in "<>"]
    assert [name for name in changed if not name.endswith("-") and not name.startswith((*DATA, *OTHERS))] == [], etc
