"""The verbs on a store in a directory, with real `s3block` processes and, where it is installed, a real QEMU."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from plugin.disks import serving, verbs
from plugin.disks.verbs import Disks
from plugin.errors import Exists, NoSuchVolume, PluginError, Refused
from tests.plugin.disks import nodes
from tests.plugin.disks.nodes import qemu_io, soon

MIB = 1 << 20

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("qemu-io") is None, reason="qemu-io (qemu-utils, qemu-block-extra) is not installed"
    ),
]


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    with nodes.node(tmp_path, 1, f"file://{tmp_path}/store", nodes.free_port()) as made:
        yield made


def test_a_disk_from_its_beginning_to_its_end(disks: Disks) -> None:
    name = disks.alloc(100, "", 5 * MIB + 1, "raw", until=soon())
    assert name == "vm-100-disk-0"
    assert disks.alloc(100, "vm-100-state-Snap_1", MIB, "raw", until=soon()) == "vm-100-state-Snap_1"
    with pytest.raises(Exists):
        disks.alloc(100, name, MIB, "raw", until=soon())
    listed = {item["volname"]: item["size"] for item in disks.listing(100, until=soon())}
    assert listed == {name: 5 * MIB + 4096, "vm-100-state-Snap_1": MIB}
    assert disks.listing(101, until=soon()) == []

    url = disks.activate(name, "", kernel_device=False, until=soon())["url"]
    assert url == disks.url(name)
    qemu_io(url, "write -P 1 0 1M", "flush")
    disks.snapshot(name, "one", until=soon())
    qemu_io(url, "write -P 2 0 1M", "read -P 2 0 1M")
    assert disks.resize(name, 8 * MIB, until=soon()) == 8 * MIB
    qemu_io(url, "write -P 3 7M 1M")
    assert disks.size(name, until=soon())["size"] == 8 * MIB
    assert [item["name"] for item in disks.snapshots(name, until=soon())] == ["one"]

    view = disks.activate(name, "one", kernel_device=False, until=soon())["url"]
    qemu_io(view, "read -P 1 0 1M", read_only=True)
    disks.deactivate(name, "one", until=soon())

    disks.rollback(name, "one", until=soon())
    assert disks.size(name, until=soon())["size"] == 5 * MIB + 4096
    disks.activate(name, "", kernel_device=False, until=soon())
    qemu_io(url, "read -P 1 0 1M")
    disks.snapshot_delete(name, "one", until=soon())
    disks.snapshot_delete(name, "one", until=soon())
    assert disks.snapshots(name, until=soon()) == []

    disks.free(name, until=soon())
    with pytest.raises(NoSuchVolume):
        disks.size(name, until=soon())
    assert disks.unnamed(until=soon()) == []
    assert [item["volname"] for item in disks.listing(None, until=soon())] == ["vm-100-state-Snap_1"]


def test_a_template_and_its_clones(disks: Disks) -> None:
    name = disks.alloc(100, "", 4 * MIB, "raw", until=soon())
    qemu_io(disks.activate(name, "", kernel_device=False, until=soon())["url"], "write -P 7 0 2M")
    base = disks.base(name, until=soon())
    assert base == "base-100-disk-0"
    clone = disks.clone(base, "", 101, until=soon())
    assert clone == "base-100-disk-0/vm-101-disk-0"
    qemu_io(disks.activate(clone, "", kernel_device=False, until=soon())["url"], "read -P 7 0 2M", "write -P 8 0 1M")
    with pytest.raises(Refused, match="vm-101-disk-0"):
        disks.free(base, until=soon())
    qemu_io(disks.activate(base, "", kernel_device=False, until=soon())["url"], "read -P 7 0 2M", read_only=True)
    disks.deactivate(clone, until=soon())
    assert disks.size(clone, until=soon())["parent"] == base
    moved = disks.rename(clone, 102, "", until=soon())
    assert moved == "base-100-disk-0/vm-102-disk-0"
    assert {item["volname"]: item["parent"] for item in disks.listing(None, until=soon())} == {base: "", moved: base}
    qemu_io(disks.activate(moved, "", kernel_device=False, until=soon())["url"], "read -P 8 0 1M", "read -P 7 1M 1M")
    disks.free(moved, until=soon())
    disks.free(base, until=soon())
    assert disks.listing(None, until=soon()) == []


def test_a_disk_in_use_is_not_taken_away(disks: Disks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs, "LEAVING_PATIENCE_S", 0.3)
    name = disks.alloc(100, "", 4 * MIB, "raw", until=soon())
    url = disks.activate(name, "", kernel_device=False, until=soon())["url"]
    guest = subprocess.Popen(
        ["qemu-io", "-f", "raw", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert guest.stdin is not None
    path = next(disks.place.run_dir.glob("*.json"))
    while not serving.initiators(path):
        assert guest.poll() is None
        time.sleep(0.05)
    for verb in (
        lambda: disks.free(name, until=soon()),
        lambda: disks.deactivate(name, until=soon()),
        lambda: disks.base(name, until=soon()),
    ):
        with pytest.raises(Refused, match="in use"):
            verb()
    guest.communicate(b"write -P 5 0 1M\nflush\nquit\n", timeout=60)
    disks.deactivate(name, until=soon())
    assert serving.look(disks.place.volume_dir(path.stem)) is None


def test_a_process_that_was_killed_is_started_by_the_next_login(disks: Disks) -> None:
    name = disks.alloc(100, "", 4 * MIB, "raw", until=soon())
    url = disks.activate(name, "", kernel_device=False, until=soon())["url"]
    qemu_io(url, "write -P 9 0 1M", "flush")
    volume = next(disks.place.run_dir.glob("*.json")).stem
    here = serving.look(disks.place.volume_dir(volume))
    assert here is not None
    nodes.kill(here.pid)
    qemu_io(url, "read -P 9 0 1M")
    gateway = nodes.gateway_pids(disks.place)
    assert len(gateway) == 1
    nodes.kill(gateway[0])
    disks.activate(name, "", kernel_device=False, until=soon())
    qemu_io(url, "read -P 9 0 1M")


def test_time_that_is_over_ends_in_an_error(disks: Disks) -> None:
    with pytest.raises(PluginError) as raised:
        disks.alloc(100, "", MIB, "raw", until=time.monotonic() + 0.3)
    assert raised.value.code == "deadline"


def test_a_name_that_is_given_again_leads_to_the_disk_that_has_it(disks: Disks) -> None:
    first = disks.alloc(100, "", MIB, "raw", until=soon())
    url = disks.activate(first, "", kernel_device=False, until=soon())["url"]
    qemu_io(url, "write -P 1 0 1M", "flush")
    moved = disks.rename(first, 101, "", until=soon())
    moved_url = disks.activate(moved, "", kernel_device=False, until=soon())["url"]
    qemu_io(moved_url, "read -P 1 0 1M")
    # As another node's renaming leaves it: active here by its old name.
    path, activation = next(serving.activations(disks.place.run_dir.parent))
    replace(activation, target=disks.target(first)).write(path)
    assert disks.alloc(100, "", MIB, "raw", until=soon()) == first
    disks.activate(first, "", kernel_device=False, until=soon())
    assert [one.name for _, one in serving.activations(disks.place.run_dir.parent)] == [first]
    qemu_io(url, "read -P 0 0 1M")


def test_a_process_that_was_killed_leaves_nothing_behind_after_deactivation(disks: Disks, tmp_path: Path) -> None:
    name = disks.alloc(100, "", MIB, "raw", until=soon())
    url = disks.activate(name, "", kernel_device=False, until=soon())["url"]
    qemu_io(url, "write -P 9 0 1M", "flush")
    here = serving.look(disks.place.volume_dir(next(disks.place.run_dir.glob("*.json")).stem))
    assert here is not None
    nodes.kill(here.pid)
    disks.deactivate(name, until=soon())
    with nodes.node(tmp_path, 2, disks.place.store_url, disks.place.port) as other:
        qemu_io(other.activate(name, "", kernel_device=False, until=soon())["url"], "read -P 9 0 1M")


def test_a_view_that_a_backup_left_goes_with_its_disk(disks: Disks) -> None:
    name = disks.alloc(100, "", MIB, "raw", until=soon())
    disks.snapshot(name, "one", until=soon())
    disks.activate(name, "one", kernel_device=False, until=soon())
    disks.free(name, until=soon())
    assert disks.sweep() == []
    assert disks.unnamed(until=soon()) == []
    assert list(serving.activations(disks.place.run_dir.parent)) == []


def test_a_disk_whose_snapshot_has_a_clone_becomes_no_template(disks: Disks) -> None:
    name = disks.alloc(100, "", MIB, "raw", until=soon())
    disks.snapshot(name, "one", until=soon())
    clone = disks.clone(name, "one", 101, until=soon())
    with pytest.raises(Refused, match=clone):
        disks.base(name, until=soon())
    assert {item["volname"] for item in disks.listing(None, until=soon())} == {name, clone}
