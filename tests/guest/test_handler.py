"""The handler's edges with the real kernel: writers that wait for an answer, strangers, second devices, removal.

Devices are made as targetcli makes them, without word that nobody is to wait: the writer sleeps until the handler answers.
"""

import signal
from collections.abc import Callable

import pytest

from tests.guest.guest import Guest, GuestFailed, Hardware, Running
from tests.guest.inside import commands, devices
from tests.guest.inside.control import ask

VOLUME = "vm1"
STATE = "/root/state"
SIZE = 64 << 20


@pytest.fixture(scope="module")
def guest(boot: Callable[[Hardware], Guest]) -> Guest:
    guest = boot(Hardware(memory_mib=1024))
    guest.run("s3block", "create", f"file:///root/store/{VOLUME}", "--size", str(SIZE))
    guest.call(devices.prepare)
    return guest


def serve(guest: Guest) -> Running:
    daemon = guest.start(
        *("s3block", "serve", f"file:///root/store/{VOLUME}", "--door", "lio", "--state-dir", STATE),
        *("--journal-size", "16M", "--cache-size", "16M"),
    )
    daemon.wait_for(f"serving {VOLUME} behind LIO", seconds=120)
    return daemon


@pytest.fixture(scope="module")
def daemon(guest: Guest) -> Running:
    return serve(guest)


def device_of(guest: Guest) -> str:
    told = guest.call(ask, state_dir=f"{STATE}/{VOLUME}", what="status")
    return str(told["lio"]["device"])


def test_a_device_comes_and_goes_while_it_serves(guest: Guest, daemon: Running) -> None:
    """The writer of `enable` is answered: it returns, and the device is served by then."""
    made = guest.call(devices.make, name="one", config=f"bucketworks/{VOLUME}", size=SIZE, seconds=20)
    assert device_of(guest) == made
    guest.call(devices.remove, name="one", seconds=20)
    assert device_of(guest) == ""
    assert not guest.call(commands.still_hung)


def test_a_second_device_of_a_volume_is_refused(guest: Guest, daemon: Running) -> None:
    first = guest.call(devices.make, name="one", config=f"bucketworks/{VOLUME}", size=SIZE, seconds=20)
    with pytest.raises(GuestFailed, match="busy"):
        guest.call(devices.make, name="two", config=f"bucketworks/{VOLUME}", size=SIZE, seconds=20)
    assert device_of(guest) == first
    guest.call(devices.remove, name="one", seconds=20)


def test_a_device_that_nobody_serves_is_refused(guest: Guest, daemon: Running) -> None:
    with pytest.raises(GuestFailed, match="No such device"):
        guest.call(devices.make, name="lost", config="bucketworks/nobody", size=SIZE, seconds=20)
    assert not guest.call(commands.still_hung)


def test_a_new_size_and_another_volume(guest: Guest, daemon: Running) -> None:
    """The volume says how large it is; and a device that is served stays that volume's."""
    guest.call(devices.make, name="one", config=f"bucketworks/{VOLUME}", size=SIZE, seconds=20)
    guest.call(devices.set_attribute, name="one", attribute="dev_size", value=str(2 * SIZE), seconds=20)
    same = f"bucketworks/{VOLUME}"  # as targetctl restores it
    guest.call(devices.set_attribute, name="one", attribute="dev_config", value=same, seconds=20)
    with pytest.raises(GuestFailed, match="Invalid argument"):
        guest.call(devices.set_attribute, name="one", attribute="dev_config", value="bucketworks/other", seconds=20)
    guest.call(devices.remove, name="one", seconds=20)
    assert not guest.call(commands.still_hung)


def test_a_writer_that_a_dead_handler_left_is_released(guest: Guest, daemon: Running) -> None:
    """Killed with a device to come: the kernel waits for a word nobody is there to say, until the next daemon says it."""
    daemon.signal(signal.SIGKILL)
    daemon.wait(check=False)
    writer = guest.begin(devices.make, name="one", config=f"bucketworks/{VOLUME}", size=SIZE)
    guest.call(devices.wait_for_writer, seconds=30)
    second = serve(guest)
    writer.wait(30)
    assert not guest.call(commands.still_hung)
    assert device_of(guest)
    guest.call(devices.remove, name="one", seconds=20)
    second.signal(signal.SIGTERM)
    assert second.wait(120, check=False).status == 0, second.output
