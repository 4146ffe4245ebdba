"""docs/lio.md, line by line in a guest with systemd: from nothing to a file system that is there again after a reboot, after a
power loss, and after the daemon was restarted or killed under it."""

import re
import time
from collections.abc import Callable

import pytest

from tests.architecture.tree import ROOT
from tests.guest.guest import Guest, GuestFailed, Hardware

PAGE = ROOT / "docs/lio.md"
SOURCE = "/opt/bucketworks/lib"
"""Where the guest has the working tree: what `git clone` and `cd` stand for."""
NEEDS_NETWORK = ("apt-get ", "git clone ", "python3 -m venv ", "/opt/bucketworks/bin/pip ")
"""Lines that the guest's image has done already."""
FILE = "/mnt/vm1/file"
BOOT_S = 420.0


def blocks() -> dict[str, list[str]]:
    """The page's commands, by heading."""
    found: dict[str, list[str]] = {}
    heading = ""
    for part in re.split(r"^(## .*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        if part.startswith("## "):
            heading = part.removeprefix("## ")
        found.setdefault(heading, []).extend(re.findall(r"^```sh\n(.*?)^```$", part, flags=re.MULTILINE | re.DOTALL))
    return {name: commands for name, commands in found.items() if commands}


COMMANDS = blocks()


def do(guest: Guest, commands: str, seconds: float = 600.0) -> str:
    """Run a block as a script that stops at the first failure; what it printed."""
    lines = [line for line in commands.splitlines() if not line.startswith(NEEDS_NETWORK)]
    script = "\n".join([f"cd {SOURCE}", *lines])
    done = guest.finish("bash", "-euo", "pipefail", "-c", script, seconds=seconds)
    if done.status:
        raise GuestFailed(f"{script}\nended with {done.status}:\n{done.output}\n{state(guest)}")
    return done.output


def state(guest: Guest) -> str:
    """What there is to know when something did not come up."""
    look = (
        "systemctl --no-pager status mnt-vm1.mount open-iscsi rtslib-fb-targetctl; systemctl list-jobs;"
        " journalctl -b --no-pager -o cat -u 's3block*' -u open-iscsi | tail -80; s3block lio status; dmesg | tail -60"
    )
    return guest.run("bash", "-c", look, check=False, seconds=120) + guest.console


def mounted(guest: Guest) -> str:
    """What the file holds, once it is there after a boot."""
    give_up = time.monotonic() + BOOT_S
    while True:
        found = guest.finish("cat", FILE)
        if not found.status:
            return found.output
        if time.monotonic() > give_up:
            raise GuestFailed(f"{FILE} did not come back: {found.output}\n{state(guest)}")
        time.sleep(2)


@pytest.fixture(scope="module")
def guest(boot: Callable[[Hardware], Guest]) -> Guest:
    """A host on which the page was followed up to the reboot."""
    guest = boot(Hardware(systemd=True))
    for heading in ("Install", "A volume", "Serve and attach", "At the initiator"):
        for commands in COMMANDS[heading]:
            do(guest, commands)
    return guest


def test_the_page_has_no_commands_that_are_not_run() -> None:
    assert list(COMMANDS) == ["Install", "A volume", "Serve and attach", "At the initiator", "It comes back", "Later"]


def test_units_are_well_formed(guest: Guest) -> None:
    said = guest.run("systemd-analyze", "verify", "s3block@vm1.service", "s3block-lio@vm1.service", seconds=120)
    assert "s3block" not in said, said


def test_it_comes_back_after_a_reboot(guest: Guest) -> None:
    reboot, afterwards = COMMANDS["It comes back"]
    before = guest.hellos()
    guest.start("bash", "-c", reboot)
    guest.wait_for_agent(before + 1, seconds=BOOT_S)
    assert mounted(guest) == "here to stay\n"
    said = do(guest, afterwards)
    assert "PROBLEM" not in said, said
    # Orderly: mount, session, LIO, daemon ended in that order, so nothing had to be recovered.
    log = guest.run("journalctl", "-b", "-1", "--no-pager", "-o", "cat", "-u", "s3block@vm1", "-u", "s3block-lio@vm1")
    assert log.index("volume vm1 is detached from LIO") < log.index("detached, the bucket has everything")
    kernel = guest.run("journalctl", "-b", "-1", "-k", "--no-pager", "-o", "cat")
    assert not re.search(r"I/O error|blocked for more than|Buffer I/O|EXT4-fs error", kernel), kernel[-3000:]


def test_it_comes_back_after_a_power_loss(guest: Guest) -> None:
    guest.run("bash", "-c", f"echo 'and to stay' >> {FILE}; sync")
    guest.power_cycle()
    assert mounted(guest) == "here to stay\nand to stay\n"
    said = guest.run("s3block", "lio", "status", "vm1", seconds=120)
    assert "PROBLEM" not in said, said


def test_later_it_grows_and_the_daemon_is_restarted_under_it(guest: Guest) -> None:
    sessions = guest.run("iscsiadm", "-m", "session")
    (commands,) = COMMANDS["Later"]
    said = do(guest, commands)
    assert int(said.splitlines()[-1].split()[1]) > 540_000
    assert guest.run("iscsiadm", "-m", "session") == sessions
    assert guest.run("cat", FILE).startswith("here to stay")


def test_a_killed_daemon_is_back_and_nobody_noticed(guest: Guest) -> None:
    writing = guest.start(
        "bash",
        "-c",
        "for i in $(seq 20); do dd if=/dev/urandom of=/mnt/vm1/load bs=1M count=4 conv=fsync status=none; done",
    )
    guest.run("systemctl", "kill", "--signal=KILL", "--kill-whom=all", "s3block@vm1")
    written = writing.wait(seconds=300, check=False)
    assert written.status == 0, f"{written.output}\n{state(guest)}"
    assert guest.run("cat", FILE).startswith("here to stay")
    active = guest.run("systemctl", "is-active", "s3block@vm1", "s3block-lio@vm1")
    assert active.split() == ["active", "active"]


def test_a_restart_of_the_distributions_own_service_brings_it_back(guest: Guest) -> None:
    """It clears LIO and restores what is saved; sessions break, and are made anew by the initiator."""
    guest.run("systemctl", "restart", "rtslib-fb-targetctl", seconds=300)
    guest.run("bash", "-c", f"echo 3 > /proc/sys/vm/drop_caches; grep -q 'here to stay' {FILE}", seconds=240)
    said = guest.run("s3block", "lio", "status", "vm1", seconds=120)
    assert "PROBLEM" not in said, said


def test_targetcli_shows_what_initiators_see(guest: Guest) -> None:
    shown = guest.run("targetcli", "/iscsi", "ls", check=False, seconds=120)
    for word in ("iqn.2025-01.internal.bucketworks:vm1", "user/vm1", "127.0.0.1:3260", "auth per-acl"):
        assert word in shown, shown


def test_a_stop_takes_it_out_of_the_kernel_and_of_what_is_saved(guest: Guest) -> None:
    guest.run("bash", "-c", "umount /mnt/vm1 && iscsiadm -m node -u")
    guest.run("systemctl", "disable", "--now", "s3block-lio@vm1", "s3block@vm1", seconds=300)
    active = guest.run("systemctl", "is-active", "s3block@vm1", "s3block-lio@vm1", check=False)
    assert active.split() == ["inactive", "inactive"]
    assert "vm1" not in guest.read("/etc/rtslib-fb-target/saveconfig.json").decode()
    assert guest.run("sh", "-c", "ls -d /sys/kernel/config/target/core/user_*/vm1", check=False).startswith(
        "ls: cannot"
    )
