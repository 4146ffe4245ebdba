"""Disks through the real code of Proxmox VE (PVE_SRC, `tests.plugin.pve.node`), on a real S3 server, with a real QEMU."""

import json
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from plugin.configuration import find_storage
from plugin.disks.place import place_of
from plugin.service.command import Core
from s3core.s3_control import S3Control
from s3core.settings import Config, PveSettings
from tests.plugin.disks import nodes
from tests.plugin.disks.nodes import qemu_io
from tests.plugin.pve.node import HERE, PERL_PACKAGES, Node, checkouts
from tests.servers.radosgw import ACCESS_KEY, SECRET_KEY, Radosgw

MIB = 1 << 20
STORAGE = "s3-Disks"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.rgw,
    pytest.mark.skipif(
        not checkouts(), reason=f"PVE_SRC names no checkouts of Proxmox VE; they also need {PERL_PACKAGES}"
    ),
    pytest.mark.skipif(
        shutil.which("qemu-io") is None, reason="qemu-io (qemu-utils, qemu-block-extra) is not installed"
    ),
]


class Storage:
    """A node with the storage on it."""

    def __init__(self, node: Node, core: Core) -> None:
        self.node = node
        self.core = core
        self._functions = subprocess.Popen(
            ["perl", "-T", str(HERE / "functions.pl")],
            env=node.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def stop(self) -> None:
        self._functions.communicate(timeout=60)

    def call(self, name: str, *arguments: Any) -> list[Any]:
        """`PVE::Storage::NAME(config, arguments)`. AssertionError with what it died of."""
        assert self._functions.stdin is not None
        assert self._functions.stdout is not None
        self._functions.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._functions.stdin.flush()
        told = json.loads(self._functions.stdout.readline())
        if "error" in told:
            raise AssertionError(told["error"])
        result: list[Any] = told["result"]
        return result

    def one(self, name: str, *arguments: Any) -> Any:
        return self.call(name, *arguments)[0]


@pytest.fixture(params=checkouts(), ids=lambda path: path.name)
def storage(request: pytest.FixtureRequest, radosgw: Radosgw, tmp_path: Path) -> Iterator[Storage]:
    bucket = f"disks-{uuid.uuid4().hex[:8]}"
    with closing(S3Control(radosgw.endpoint())) as control:
        control.create_bucket(bucket)
    # A socket's address is short.
    run_dir = Path(tempfile.mkdtemp(prefix="bw-"))
    config = Config(pve=PveSettings(state_dir=str(tmp_path / "state"), run_dir=str(run_dir)))
    node = Node(request.param, tmp_path / "node", {"BUCKETWORKS_PVE_SOCKET": str(run_dir / "pve.sock")})
    core = Core(lambda: config, node.root)
    core.start()
    storage = Storage(node, core)
    try:
        node.pvesm(
            *(
                "add",
                "bucketdisks",
                STORAGE,
                "--content",
                "images,rootdir",
                "--bw-bucket",
                bucket,
                "--bw-prefix",
                "pve",
            ),
            *(
                "--bw-preset",
                "ceph",
                "--bw-endpoint",
                f"http://127.0.0.1:{radosgw.http_port}",
                "--bw-region",
                "us-east-1",
            ),
            *("--bw-access-key", ACCESS_KEY, "--bw-secret-key", SECRET_KEY, "--bw-addressing", "path"),
            *("--bw-gateway-port", str(nodes.free_port()), "--bw-disk-cache", "1", "--bw-disk-journal", "1"),
        )
        yield storage
    finally:
        storage.stop()
        core.stop()
        if (node.root / "etc/pve/storage.cfg").exists():
            nodes.end_all(place_of(find_storage(STORAGE, node.root), config, node.root))
        shutil.rmtree(run_dir)


def test_a_guest_and_its_disks(storage: Storage) -> None:
    node = storage.node
    assert SECRET_KEY not in node.storage_cfg
    volid = f"{STORAGE}:vm-100-disk-0"
    assert volid in node.pvesm("alloc", STORAGE, "100", "", "8M")
    assert volid in node.pvesm("list", STORAGE)
    assert "bucketdisks" in node.pvesm("status")
    url = node.pvesm("path", volid).strip()
    assert url == storage.one("path", volid)

    storage.call("activate_volumes", [volid])
    qemu_io(url, "write -P 1 0 8M", "flush")
    storage.call("volume_snapshot", volid, "Before_1")
    qemu_io(url, "write -P 2 0 8M")
    storage.call("volume_resize", volid, 12 * MIB, 1)
    qemu_io(url, "write -P 3 8M 4M", "read -P 2 0 8M")
    assert storage.call("volume_size_info", volid, 10)[:2] == [12 * MIB, "raw"]
    assert list(storage.one("volume_snapshot_info", volid)) == ["Before_1"]
    storage.call("deactivate_volumes", [volid])
    assert storage.one("volume_rollback_is_possible", volid, "Before_1") == 1
    storage.call("volume_snapshot_rollback", volid, "Before_1")
    storage.call("activate_volumes", [volid])
    qemu_io(url, "read -P 1 0 8M")
    storage.call("activate_volumes", [volid], "Before_1")
    qemu_io(storage.one("path", volid, "Before_1"), "read -P 1 0 8M", read_only=True)
    storage.call("deactivate_volumes", [volid], "Before_1")
    storage.call("volume_snapshot_delete", volid, "Before_1")

    image = node.root / "copy.raw"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", url, str(image)], check=True, timeout=60)
    assert image.read_bytes() == b"\1" * (8 * MIB)

    base = storage.one("vdisk_create_base", volid)
    assert base == f"{STORAGE}:base-100-disk-0"
    assert storage.one("volume_has_feature", "clone", base) == 1
    assert storage.one("volume_has_feature", "rename", base) is None
    clone = storage.one("vdisk_clone", base, 101)
    assert clone == f"{STORAGE}:base-100-disk-0/vm-101-disk-0"
    storage.call("activate_volumes", [clone])
    qemu_io(storage.one("path", clone), "read -P 1 0 8M", "write -P 4 0 1M")
    storage.call("deactivate_volumes", [clone])
    with pytest.raises(AssertionError, match="in use by linked clones"):
        storage.call("vdisk_free", base)
    moved = storage.one("rename_volume", clone, 102)
    assert moved == f"{STORAGE}:base-100-disk-0/vm-102-disk-0"
    storage.call("activate_volumes", [moved])
    qemu_io(storage.one("path", moved), "read -P 4 0 1M", "read -P 1 1M 7M")
    if "qemu_blockdev_options" in dir_of(storage):
        options = storage.one("qemu_blockdev_options", moved, "pc-i440fx-9.2+pve1", {})
        assert options["driver"] == "iscsi"
        assert f"iscsi://{options['portal']}/{options['target']}/{options['lun']}" == storage.one("path", moved)
    node.pvesm("free", moved)
    node.pvesm("free", base)
    assert "disk" not in node.pvesm("list", STORAGE).replace(STORAGE, "")


def dir_of(storage: Storage) -> str:
    """What PVE::Storage of this release has, as text."""
    return (Path(storage.node.environment["PVE_SRC"]) / "pve-storage/src/PVE/Storage.pm").read_text()


def test_a_container_without_open_iscsi_is_told_what_is_missing(storage: Storage) -> None:
    if shutil.which("iscsiadm") is not None:
        pytest.skip("open-iscsi is installed here")
    volid = f"{STORAGE}:vm-100-disk-0"
    assert volid in storage.node.pvesm("alloc", STORAGE, "100", "", "1M")
    with pytest.raises(AssertionError, match="apt install open-iscsi"):
        storage.call("map_volume", volid)
