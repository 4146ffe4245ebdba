"""The kernel's target with our daemon behind it: the daemon is killed and stopped under load, and the kernel bears it."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.guest.conformance import LONG, run_all, unexplained
from tests.guest.doors import GuestDoor, Volume
from tests.guest.guest import Guest, Hardware, answer_of
from tests.guest.inside import commands, fio, initiator, multipath
from tests.protocol import conformance_run

PATIENCE_S = 180


@pytest.fixture(scope="module")
def door(boot: Callable[[Hardware], Guest]) -> Iterator[GuestDoor]:
    guest = boot(Hardware(memory_mib=2048, processors=2, forwards=[3260]))
    volumes = [Volume("disk", 128, "disk"), Volume("suite", 128, "suite")]
    served = GuestDoor(guest, volumes, listen=["0.0.0.0:3260"])
    served.portals = ["127.0.0.1:3260"]
    yield served
    served.stop()


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_io_goes_on_when_the_daemon_is_gone_for_a_while(door: GuestDoor, how: str) -> None:
    """No error reaches fio, what it wrote is there, and no task hangs, neither then nor meanwhile for ever."""
    guest = door.guest
    device = door.log_in("disk")
    guest.call(initiator.be_patient, device=device, limit_s=PATIENCE_S)
    running = guest.begin(fio.verify, devices=[device], size_mib=40, rate_mib=4, seconds=PATIENCE_S + 120)
    guest.call(multipath.wait_for_io, paths=[device])
    if how == "killed":
        door.kill()
    else:
        door.end()
    time.sleep(1.0)
    assert not running.ended(), "it was over before the daemon was gone"
    door.serve()
    assert answer_of(running.wait(PATIENCE_S + 120)) == [{"write_mib": 40, "errors": 0}]
    assert guest.call(initiator.attribute, device=device, name="device/state") == "running"
    assert not guest.call(commands.still_hung)
    assert "I/O error" not in guest.console
    door.log_out("disk")


@pytest.mark.initiator
def test_libiscsis_suite_finds_what_is_known(door: GuestDoor) -> None:
    """From the host, through the kernel's target: every failure has its reason in docs/protocol/iscsi-test-cu-lio.md, which was
    drawn from all families; the long ones are left out here."""
    if conformance_run.missing():
        pytest.skip(conformance_run.missing())
    results = run_all(door.guest.forwarded[3260], door.volumes["suite"].iqn, left_out=LONG)
    assert unexplained(conformance_run.outcomes(results)) == []
    assert sum(family.count("passed") for family in results) >= 70
    assert not door.guest.call(commands.still_hung)
