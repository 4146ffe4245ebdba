"""The guest itself: it comes up, runs our commands, talks, and dies when it is told to."""

import signal
from collections.abc import Callable

import pytest

from tests.guest.guest import Guest, GuestFailed, Hardware
from tests.guest.inside import trees


@pytest.fixture(scope="module")
def guest(boot: Callable[[Hardware], Guest]) -> Guest:
    return boot(Hardware(memory_mib=512))


def test_our_commands_work_in_it(guest: Guest) -> None:
    assert "s3block" in guest.run("s3block", "--version")
    assert "Usage: bucketworks" in guest.run("bucketworks", "--help")


def test_a_command_reports_output_and_status_and_can_be_killed(guest: Guest) -> None:
    finished = guest.finish("sh", "-c", "echo to stdout; echo to stderr >&2; exit 7")
    assert (finished.status, finished.output) == (7, "to stdout\nto stderr\n")
    with pytest.raises(GuestFailed, match="exit 3"):
        guest.run("sh", "-c", "echo exit 3; exit 3")
    running = guest.start("sh", "-c", "echo begun; sleep 1000")
    running.wait_for("begun")
    running.signal(signal.SIGKILL)
    assert running.wait(check=False).status == -signal.SIGKILL
    with pytest.raises(GuestFailed, match="no sign of the end after"):
        guest.run("sleep", "1000", seconds=0.5)


def test_a_failure_tells_that_the_disk_of_the_host_is_full(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.guest.guest.ROOM_MIB", 1 << 40)
    with pytest.raises(GuestFailed, match=r"THE HOST'S DISK IS FULL: .* set TMPDIR"):
        guest.run("false")


def test_functions_and_files_travel(guest: Guest) -> None:
    written = guest.call(trees.write, root="/root/tree", seed=1, files=5)
    assert len(written) == 5
    assert written == guest.call(trees.sums, root="/root/tree")
    guest.write("/root/a/new/file", bytes(range(256)), mode=0o640)
    assert guest.read("/root/a/new/file") == bytes(range(256))
    with pytest.raises(GuestFailed, match="No such file"):
        guest.read("/root/absent")


def test_what_was_killed_is_gone_and_another_begins_anew(guest: Guest, boot: Callable[[Hardware], Guest]) -> None:
    other = boot(Hardware(memory_mib=512))
    other.write("/root/here", b"x")
    other.kill()
    assert not other.alive()
    with pytest.raises(GuestFailed):
        other.run("true")
    assert guest.run("ls", "/root/here", check=False).startswith("ls: cannot access")


def test_systemd_boots_it_and_it_survives_a_reset(boot: Callable[[Hardware], Guest]) -> None:
    guest = boot(Hardware(systemd=True))
    state = guest.run("systemctl", "is-system-running", "--wait", check=False).strip()
    assert state == "running", guest.run("systemctl", "--failed", "--no-pager")
    guest.run("sh", "-c", "echo kept > /root/file; sync")
    guest.power_cycle()
    assert guest.read("/root/file") == b"kept\n"
