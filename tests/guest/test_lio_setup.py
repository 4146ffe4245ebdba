"""`s3block lio attach|detach` on a real kernel: idempotent, whole after a death at any step, alone in what it changes."""

import importlib
import io
import re
import tarfile
from collections.abc import Callable

import pytest

from tests.guest.doors import GuestDoor, Volume
from tests.guest.guest import Guest, Hardware
from tests.guest.inside import commands, lio, lio_setup


@pytest.fixture(scope="module")
def guest(boot: Callable[[Hardware], Guest]) -> Guest:
    return boot(Hardware(memory_mib=768))


def test_attach_loads_what_is_missing_and_twice_is_once(guest: Guest) -> None:
    assert guest.call(lio_setup.twice) == []


def test_a_death_at_any_step_is_repaired(guest: Guest) -> None:
    assert guest.call(lio_setup.died_at_every_step, seconds=300) == []
    assert guest.call(lio.left_behind) == []


def test_a_death_inside_a_step_is_repaired(guest: Guest) -> None:
    assert guest.call(lio_setup.half_made) == []


def test_what_is_restored_at_boot_is_what_was_attached(guest: Guest) -> None:
    said = guest.call(lio_setup.restored)
    # Values the device has already, which the kernel would tell a handler if there were one.
    nobody_listens = re.compile(r"Cannot set attribute (dev_config|dev_size|emulate_write_cache): .*No such process")
    rest = [line for line in said if not nobody_listens.search(line)]
    assert [line for line in rest if not line.startswith("save ")] == []


def test_discovery_asks_for_chap_where_the_settings_say_so(guest: Guest) -> None:
    assert guest.call(lio_setup.discovery) == []


def test_nothing_of_others_is_changed(guest: Guest) -> None:
    assert guest.call(lio_setup.beside_others) == []


def test_a_volume_whose_daemon_died_is_detached_without_waiting(guest: Guest) -> None:
    door = GuestDoor(guest, [Volume("vm1", 32, "vm1")])
    device = door.log_in("vm1")
    assert guest.call(lio_setup.handled, volume="vm1")
    door.kill()
    assert not guest.call(lio_setup.handled, volume="vm1")
    stuck = guest.start("dd", "if=/dev/zero", f"of={device}", "bs=64k", "count=1", "oflag=direct")
    said = guest.finish("s3block", "lio", "detach", "vm1")
    assert said.status == 7, said.output
    assert "iqn.2025-01.internal.bucketworks:guest" in said.output
    assert "PROBLEM  no daemon serves it: its initiators wait" in guest.run("s3block", "lio", "status", check=False)
    assert not stuck.ended()
    # Far less than the 120 s after which the kernel would end the command by itself.
    guest.run("s3block", "lio", "detach", "vm1", "--force", seconds=60)
    guest.run("iscsiadm", "-m", "node", "-u", check=False)
    stuck.wait(check=False)
    assert guest.call(lio.left_behind) == []
    assert not guest.call(commands.still_hung)


def test_the_same_with_rtslib_from_pypi(boot: Callable[[Hardware], Guest]) -> None:
    """In a guest of its own: it takes the place of Debian's, and the kernel must never have had a handler, for whose successor
    a restore (as at boot) would wait. Files stay where Debian's targetcli looks for them."""
    pytest.importorskip("rtslib_fb", reason="needs rtslib-fb on the host, to be copied into the guest")
    guest = boot(Hardware(memory_mib=768))
    bundle = io.BytesIO()
    with tarfile.open(fileobj=bundle, mode="w") as tar:
        for name in ("rtslib_fb", "pyudev"):
            (folder,) = importlib.import_module(name).__path__
            tar.add(folder, arcname=name)
    guest.write("/root/rtslib.tar", bundle.getvalue())
    guest.run("tar", "-xf", "/root/rtslib.tar", "-C", "/usr/local/lib/python3.11/dist-packages")
    guest.run("rm", "-f", "/etc/rtslib-fb-target/saveconfig.json")
    assert "/usr/local/" in guest.run("python3", "-c", "import rtslib_fb; print(rtslib_fb.__file__)")
    for check in (lio_setup.twice, lio_setup.half_made, lio_setup.discovery, lio_setup.beside_others):
        assert guest.call(check, seconds=240) == [], check
    assert guest.call(lio.left_behind) == []
    assert guest.finish("ls", "/etc/target/saveconfig.json").status, "saved where nobody looks"
