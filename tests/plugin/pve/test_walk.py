"""The walk through Proxmox VE's own REST handlers and pvesm, on real code: what docs/plugin.md promises of a files storage.

Each test runs on each checkout of PVE_SRC (`tests.plugin.pve.node`), most of them twice: with the scripted core of
`tests.plugin.pve.core`, where what fails is the Perl, and with the real one, its mount and a real server."""

import hashlib
import http.server
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from plugin.errors import NotServed
from plugin.mount.control import call, socket_path
from s3core.bucket import Bucket
from s3core.s3_bucket import S3Bucket
from s3core.s3_control import S3Control
from tests.plugin.pve.core import ScriptedCore
from tests.plugin.pve.node import PERL_PACKAGES, Done, Node, PveError, checkouts
from tests.servers.processes import end, start
from tests.servers.radosgw import Radosgw

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not checkouts(), reason=f"PVE_SRC names no checkouts of Proxmox VE; they also need {PERL_PACKAGES}"
    ),
]
SECRET = "wJalrXUtnFEMI-TOPSECRET"
CONTENT = "backup,iso,vztmpl,snippets,import"


class Place:
    """A node with one storage, `storage`. `mount` and `state` are its directories; `put`, `read` and `objects` go past both:
    they are what another node would do."""

    def __init__(self, node: Node, storage: str, mount: Path, state: Path) -> None:
        self.node = node
        self.storage = storage
        self.mount = mount
        self.state = state

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def read(self, key: str) -> bytes:
        raise NotImplementedError

    def objects(self) -> set[str]:
        raise NotImplementedError

    @property
    def secrets(self) -> Path:
        return self.node.root / f"etc/pve/priv/storage/{self.storage}.bucketfiles"

    def backup(self, name: str, data: bytes = b"x") -> str:
        """Its volume id."""
        self.put(f"dump/{name}", data)
        return f"{self.storage}:backup/{name}"

    def ask(self, method: str, rest: str = "", /, **params: object) -> Done:
        return self.node.storage(method, self.storage, rest, **params)

    def volumes(self, **params: object) -> dict[str, dict[str, object]]:
        return {one["volid"]: one for one in self.ask("GET", "/content", **params).data}

    def listed(self, *volumes: str) -> None:
        """Wait until a listing has what another node put there: one may be ten seconds old."""
        give_up = time.monotonic() + 60
        while not set(volumes) <= set(self.volumes()):
            assert time.monotonic() < give_up, (volumes, self.volumes())
            time.sleep(0.2)

    def shown(self) -> dict[str, Any]:
        """As the node's list of storages has it."""
        found = self.node.api("GET", f"/nodes/{self.node.name}/storage").data
        return next(one for one in found if one["storage"] == self.storage)

    def upload(self, content: str, filename: str, data: bytes) -> str:
        """The task's log."""
        temporary = Path("/var/tmp") / f"pveupload-{uuid.uuid4().hex}"
        temporary.write_bytes(data)
        try:
            return self.ask("POST", "/upload", content=content, filename=filename, tmpfilename=str(temporary)).output
        finally:
            temporary.unlink(missing_ok=True)


class Scripted(Place):
    """The core is a script, the mount a directory, and that is the bucket."""

    def __init__(self, node: Node, core: ScriptedCore) -> None:
        super().__init__(node, "s3", core.mount, core.state / "s3")
        self.core = core

    def put(self, key: str, data: bytes) -> None:
        (self.mount / key).write_bytes(data)

    def read(self, key: str) -> bytes:
        return (self.mount / key).read_bytes()

    def objects(self) -> set[str]:
        return {str(path.relative_to(self.mount)) for path in self.mount.rglob("*") if path.is_file()}


class Real(Place):
    """Everything as on a node: `pve-s3 serve`, the FUSE mount that it starts, and a bucket on a real server."""

    def __init__(self, node: Node, storage: str, mount: Path, state: Path, bucket: Bucket) -> None:
        super().__init__(node, storage, mount, state)
        self._bucket = bucket

    def put(self, key: str, data: bytes) -> None:
        self._bucket.put(f"{self.storage}/{key}", data)

    def read(self, key: str) -> bytes:
        return self._bucket.get(f"{self.storage}/{key}")

    def objects(self) -> set[str]:
        page = self._bucket.list_page(prefix=f"{self.storage}/")
        found = {key.decode().removeprefix(f"{self.storage}/") for key in page.keys}
        return {key for key in found if not key.startswith(".bucketworks/")}


@dataclass
class World:
    """One node on the real core and store, for all tests of a checkout."""

    node: Node
    root: Path
    server: Radosgw
    bucket: Bucket
    name: str
    core: "subprocess.Popen[bytes] | None" = None

    def start_core(self) -> None:
        socket = self.root / "run/pve.sock"
        socket.unlink(missing_ok=True)
        self.core = start(
            [sys.executable, "-c", "from plugin.cli import main; main()", "serve"],
            self.root / "core.log",
            self.node.environment,
        )
        give_up = time.monotonic() + 60
        while not socket.exists():
            assert self.core.poll() is None, (self.root / "core.log").read_text()
            assert time.monotonic() < give_up, (self.root / "core.log").read_text()
            time.sleep(0.05)

    def stop_core(self, number: signal.Signals = signal.SIGTERM) -> None:
        if self.core is not None:
            end(self.core, number)
            self.core = None


@pytest.fixture(params=checkouts(), ids=lambda path: path.name, scope="module")
def checkout(request: pytest.FixtureRequest) -> Path:
    assert isinstance(request.param, Path)
    return request.param


@pytest.fixture
def scripted(checkout: Path, tmp_path: Path) -> Iterator[Scripted]:
    core = ScriptedCore(tmp_path)
    core.mounted_in(tmp_path / "node")
    node = Node(checkout, tmp_path / "node", core.environment)
    node.start()
    node.api(
        "POST",
        "/storage",
        storage="s3",
        type="bucketfiles",
        path=str(core.mount),
        bw_bucket="backups",
        bw_access_key="AKIA",
        bw_secret_key=SECRET,
        content=CONTENT,
        prune_backups="keep-last=1",
    )
    yield Scripted(node, core)
    node.stop()
    core.stop()


@pytest.fixture(scope="module")
def world(checkout: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    server: Radosgw = request.getfixturevalue("radosgw")
    # A short name: a Unix socket's path has 107 bytes at most.
    root = Path(tempfile.mkdtemp(prefix="pve-"))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, root, ignore_errors=True)
        stack.callback(
            lambda: [print(f"{log}:\n{log.read_text()}") for log in [root / "core.log", *root.glob("run/*.log")]]
        )
        name = f"pve-{uuid.uuid4().hex[:8]}"
        with closing(S3Control(server.endpoint())) as control:
            control.create_bucket(name)
        bucket = stack.enter_context(closing(S3Bucket(server.endpoint(), name)))
        config = root / "config.toml"
        config.write_text(f'[pve]\nstate_dir = "{root}/state"\nrun_dir = "{root}/run"\nprobe_s = 1.0\n')
        environment = {"BUCKETWORKS_CONFIG": str(config), "BUCKETWORKS_PVE_ROOT": str(root / "node")}
        node = Node(checkout, root / "node", environment)
        node.start()
        stack.callback(node.stop)
        made = World(node, root, server, bucket, name)
        stack.callback(made.stop_core)
        made.start_core()
        yield made


@pytest.fixture
def real(world: World) -> Iterator[Real]:
    storage = f"s3-{uuid.uuid4().hex[:6]}"
    mount = world.root / storage
    mount.mkdir()
    endpoint = world.server.endpoint()
    world.node.api(
        "POST",
        "/storage",
        storage=storage,
        type="bucketfiles",
        path=str(mount),
        bw_preset="ceph",
        bw_endpoint=endpoint.url,
        bw_bucket=world.name,
        bw_prefix=storage,
        bw_access_key=endpoint.credentials.access_key,
        bw_secret_key=endpoint.credentials.secret_key,
        content=CONTENT,
        prune_backups="keep-last=1",
    )
    place = Real(world.node, storage, mount, world.root / "state" / storage, world.bucket)
    give_up = time.monotonic() + 60
    while not os.path.ismount(mount):  # each look at the status has it mounted
        assert time.monotonic() < give_up, (world.root / "core.log").read_text()
        place.shown()
    yield place
    if storage in world.node.storage_cfg:
        world.node.api("DELETE", f"/storage/{storage}", storage=storage)
    assert not os.path.ismount(mount), "a storage that was removed leaves no mount"


@pytest.fixture(params=["scripted", pytest.param("real", marks=pytest.mark.rgw)])
def place(request: pytest.FixtureRequest, checkout: Path) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def test_a_secret_never_reaches_storage_cfg_and_survives_updates(scripted: Scripted) -> None:
    node, kept = scripted.node, scripted.node.root / "etc/pve/priv/storage/s3.bucketfiles"
    assert SECRET not in node.storage_cfg
    assert re.search(r"^bucketfiles: s3$", node.storage_cfg, re.MULTILINE)
    assert kept.read_text() == f"bw-secret-key {SECRET}\n"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert SECRET not in str(node.api("GET", "/storage/s3", storage="s3").data)
    node.api("PUT", "/storage/s3", storage="s3", bw_region="eu-1")
    assert kept.read_text() == f"bw-secret-key {SECRET}\n"
    assert scripted.core.requests[-1].args["secrets"] == {"bw-secret-key": SECRET}
    node.api("PUT", "/storage/s3", storage="s3", bw_secret_key="new", bw_session_token="t")
    assert kept.read_text() == "bw-secret-key new\nbw-session-token t\n"
    node.pvesm("set", "s3", "--delete", "bw-session-token,bw-region")
    assert kept.read_text() == "bw-secret-key new\n"
    assert "bw-region" not in node.storage_cfg
    with pytest.raises(PveError, match="bw-bucket: property is not defined"):
        node.api("PUT", "/storage/s3", storage="s3", bw_bucket="other")
    node.api("DELETE", "/storage/s3", storage="s3")
    assert not kept.exists()
    assert "s3" not in node.storage_cfg


def test_a_storage_that_the_store_refuses_is_not_added(scripted: Scripted) -> None:
    def refused(_: object) -> dict[str, object]:
        raise NotServed("403 InvalidAccessKeyId", hint="check bw-access-key")

    scripted.core.answers["check"] = refused
    with pytest.raises(PveError, match=r"create storage failed: storage 'bad': 403 InvalidAccessKeyId \(check bw-acc"):
        scripted.node.api("POST", "/storage", storage="bad", type="bucketfiles", bw_bucket="backups", bw_secret_key="x")
    assert "bad" not in scripted.node.storage_cfg
    assert not (scripted.node.root / "etc/pve/priv/storage/bad.bucketfiles").exists()
    scripted.node.api("POST", "/storage", storage="bad", type="bucketfiles", bw_bucket="backups", disable=1)
    assert "path /mnt/pve/bad" in scripted.node.storage_cfg


def test_status(place: Place) -> None:
    place.listed(place.backup("vzdump-qemu-100-2026_01_02-03_04_05.vma.zst", b"x" * 5000))
    give_up = time.monotonic() + 30
    while not (found := place.shown())["active"] or found["used"] < 5000:
        assert time.monotonic() < give_up, found
        time.sleep(0.2)
    assert found["shared"] == 1
    assert found["used"] < 6000
    assert found["total"] >= 1 << 40
    assert re.search(rf"{place.storage} +bucketfiles +active", place.node.pvesm("status"))


def test_an_upload_is_there_when_its_task_is_green(place: Place) -> None:
    image = os.urandom(300_000)
    assert "finished file import successfully" in place.upload("iso", "debian.iso", image)
    assert place.read("template/iso/debian.iso") == image
    assert place.volumes()[f"{place.storage}:iso/debian.iso"]["size"] == len(image)
    path = Path(place.node.pvesm("path", f"{place.storage}:iso/debian.iso").strip())
    assert path == place.state / "cache/template/iso/debian.iso"
    replaced = os.urandom(200_000)
    place.upload("iso", "debian.iso", replaced)
    assert place.read("template/iso/debian.iso") == replaced


def test_download_url(place: Place) -> None:
    image = os.urandom(200_000)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(image)))
            self.end_headers()
            self.wfile.write(image)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        asked = {
            "content": "iso",
            "url": f"http://127.0.0.1:{server.server_address[1]}/d.iso",
            "checksum_algorithm": "sha256",
        }
        right, wrong = hashlib.sha256(image).hexdigest(), "0" * 64
        done = place.ask("POST", "/download-url", filename="d.iso", checksum=right, **asked)
        assert "OK, checksum verified" in done.output
        assert "finished" in done.output
        assert place.read("template/iso/d.iso") == image
        assert (
            "checksum mismatch" in place.ask("POST", "/download-url", filename="e.iso", checksum=wrong, **asked).output
        )
        assert set(place.volumes(content="iso")) == {f"{place.storage}:iso/d.iso"}
        assert place.objects() == {"template/iso/d.iso"}
    finally:
        server.shutdown()
        server.server_close()


def test_what_vzdump_does(place: Place) -> None:
    """Its sequence of file operations, without a guest: a temporary name, the rename, a look at the size, notes, log."""
    place.volumes()  # vzdump activates the storage first
    directory, name = place.mount / "dump", "vzdump-qemu-100-2026_01_02-03_04_05.vma"
    data = b"VMA\0" + os.urandom(100_000)
    writing = directory / "vzdump-qemu-100-2026_01_02-03_04_05.dat"
    with writing.open("wb") as file:
        file.write(data)
    assert f"dump/{name}" not in place.objects()
    writing.rename(directory / name)
    assert place.read(f"dump/{name}") == data
    assert (directory / name).stat().st_size == len(data)
    (directory / "vzdump-qemu-100-2026_01_02-03_04_05.log").write_text("done")
    volume = f"{place.storage}:backup/{name}"
    place.ask("PUT", f"/content/{volume}", volume=volume, notes="web")
    assert place.volumes()[volume]["notes"] == "web"
    assert {"dump/vzdump-qemu-100-2026_01_02-03_04_05.log", f"dump/{name}.notes"} <= place.objects()


def test_backups_listed_with_guest_notes_and_protection(place: Place) -> None:
    volume = place.backup("vzdump-lxc-101-2026_01_02-03_04_05.tar.zst")
    other = place.backup("vzdump-qemu-102-2026_01_02-03_04_05.vma.zst")
    place.listed(volume, other)
    place.ask("PUT", f"/content/{volume}", volume=volume, notes="café\nsecond line", protected=1)
    listed = place.volumes(vmid=101)
    assert list(listed) == [volume]
    assert listed[volume]["vmid"] == 101
    assert listed[volume]["subtype"] == "lxc"
    assert listed[volume]["notes"] == "café"
    assert listed[volume]["protected"] == 1
    shown = place.ask("GET", f"/content/{volume}", volume=volume).data
    assert shown["notes"] == "café\nsecond line"
    assert shown["protected"]
    assert shown["path"] == str(place.mount / "dump/vzdump-lxc-101-2026_01_02-03_04_05.tar.zst")
    assert set(place.volumes(content="backup")) == {volume, other}
    assert volume not in place.node.pvesm("list", place.storage, "--vmid", "102")


def test_a_protected_volume_stays_and_another_is_really_deleted(place: Place) -> None:
    volume = place.backup("vzdump-qemu-100-2026_01_02-03_04_05.vma.zst")
    place.put("dump/vzdump-qemu-100-2026_01_02-03_04_05.log", b"log")
    place.ask("PUT", f"/content/{volume}", volume=volume, protected=1)
    assert "is protected" in place.ask("DELETE", f"/content/{volume}", volume=volume).output
    assert volume in place.volumes()
    place.ask("PUT", f"/content/{volume}", volume=volume, protected=0, notes="n")
    place.ask("DELETE", f"/content/{volume}", volume=volume)
    assert place.objects() == set()
    assert place.volumes() == {}


def test_prune_marks_and_deletes(place: Place) -> None:
    volumes = [place.backup(f"vzdump-qemu-100-2026_01_0{day}-00_00_00.vma.zst") for day in range(1, 5)]
    other = place.backup("vzdump-qemu-200-2026_01_01-00_00_00.vma.zst")
    renamed = place.backup("vzdump-qemu-100-renamed.vma.zst")
    place.listed(*volumes, other, renamed)
    place.ask("PUT", f"/content/{volumes[0]}", volume=volumes[0], protected=1)
    marks = {one["volid"]: one["mark"] for one in place.ask("GET", "/prunebackups").data}
    expected = dict(zip(volumes, ("protected", "remove", "remove", "keep"), strict=True))
    assert marks == expected | {other: "keep", renamed: "renamed"}
    assert len(place.volumes()) == 6
    output = place.ask("DELETE", "/prunebackups", vmid=100).output
    assert f"removing backup '{volumes[1]}'" in output
    assert set(place.volumes()) == {volumes[0], volumes[3], other, renamed}
    kept = {f"dump/{volume.partition('/')[2]}" for volume in (volumes[0], volumes[3], other, renamed)}
    assert {key for key in place.objects() if not key.endswith(".protected")} == kept


def test_the_guest_configuration_in_a_backup(place: Place) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        text = b"arch: amd64\nhostname: web\n"
        member = tarfile.TarInfo("./etc/vzdump/pct.conf")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    volume = place.backup("vzdump-lxc-101-2026_01_02-03_04_05.tar", packed.getvalue())
    assert "hostname: web" in place.node.pvesm("extractconfig", volume)


def test_export_and_import(place: Place, tmp_path: Path) -> None:
    image = os.urandom(64 * 1024)
    place.put("template/iso/a.iso", image)
    place.node.pvesm("export", f"{place.storage}:iso/a.iso", "raw+size", str(tmp_path / "stream"))
    assert (tmp_path / "stream").read_bytes()[8:] == image
    place.node.pvesm("import", f"{place.storage}:iso/b.iso", "raw+size", str(tmp_path / "stream"))
    assert place.read("template/iso/b.iso") == image


def test_an_appliance_shows_what_it_would_become(place: Place) -> None:
    description = (Path(__file__).parent / "appliance.ovf").read_bytes()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in (("web.ovf", description), ("disk.vmdk", b"\0" * 1024)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    place.put("import/web.ova", packed.getvalue())
    shown = place.ask("GET", "/import-metadata", volume="import/web.ova").data
    assert shown["create-args"]["name"] == "web"
    assert next(iter(shown["disks"].values()))["volid"] == f"{place.storage}:import/web.ova/disk.vmdk"
    assert not (place.state / "cache/import").exists(), "gigabytes were fetched to read a page of XML"


@pytest.mark.rgw
def test_a_hook_script_can_be_run_where_proxmox_ve_looks_for_it(real: Real) -> None:
    """PVE takes its path without activating it, and asks with `-x`."""
    real.put("snippets/hook.sh", b"#!/bin/sh\necho $1\n")
    path = real.node.pvesm("path", f"{real.storage}:snippets/hook.sh").strip()
    assert subprocess.run([path, "pre-start"], capture_output=True, check=True).stdout == b"pre-start\n"
    real.put("snippets/hook.sh", b"#!/bin/sh\necho changed\n")
    assert real.node.pvesm("path", f"{real.storage}:snippets/hook.sh").strip() == path
    assert subprocess.run([path], capture_output=True, check=True).stdout == b"changed\n"


def test_identity(place: Place) -> None:
    if "identity" not in str(place.ask("GET").data):
        pytest.skip("this release knows no identity of a storage (API 14)")
    assert re.search(r"[0-9a-f]{8}-[0-9a-f-]{27}", str(place.ask("GET", "/identity").data))


def test_disks_are_refused_in_one_line(scripted: Scripted) -> None:
    with pytest.raises(AssertionError, match=r"not available|files, not disks"):
        scripted.node.pvesm("alloc", "s3", "100", "vm-100-disk-0.raw", "1G")


def test_a_hung_core_hangs_nothing(scripted: Scripted) -> None:
    scripted.backup("vzdump-qemu-100-2026_01_02-03_04_05.vma.zst")
    scripted.node.storage("GET", "s3", "/status")
    for method in ("ping", "activate", "status", "list", "fetch", "size"):
        scripted.core.answers[method] = None
    begin = time.monotonic()
    found = scripted.shown()
    took = time.monotonic() - begin
    assert not found["active"]
    assert took < 4, "check_connection, activate_storage and status together wait less than 2 s"
    with pytest.raises(PveError, match=r"storage 's3': the Bucketworks service did not answer 'list' within 10 s"):
        scripted.volumes()


def test_without_core_and_mount_a_local_image_still_starts_and_nothing_is_written_beside(scripted: Scripted) -> None:
    scripted.upload("iso", "a.iso", b"x" * 4096)
    scripted.node.pvesm("export", "s3:iso/a.iso", "raw+size", "/dev/null")
    scripted.core.stop()
    scripted.core.mounted_in(scripted.node.root, there=False)
    exported = scripted.node.root / "exported"
    scripted.node.pvesm("export", "s3:iso/a.iso", "raw+size", str(exported))
    assert exported.read_bytes()[8:] == b"x" * 4096
    with pytest.raises(PveError, match="mnt-is-not-mounted"):
        scripted.upload("iso", "b.iso", b"y" * 4096)
    assert not (scripted.mount / "template/iso/b.iso").exists()
    assert not scripted.shown()["active"]


def list_for_ever(place: Place, give_up: float) -> None:
    """A listing that is less than ten seconds old still serves."""
    while time.monotonic() < give_up:
        place.volumes()
        time.sleep(0.2)


@pytest.mark.rgw
def test_a_store_that_hangs(real: Real, world: World) -> None:
    real.upload("iso", "a.iso", b"x" * 4096)
    volume = f"{real.storage}:iso/a.iso"
    real.node.pvesm("export", volume, "raw+size", "/dev/null")
    world.server.pause_gateway()
    try:
        give_up = time.monotonic() + 90
        while True:
            begin = time.monotonic()
            found = real.shown()
            assert time.monotonic() - begin < 4, "what pvestatd asks waits less than 2 s"
            if not found["active"]:
                break
            assert time.monotonic() < give_up, "it must become inactive"
            time.sleep(0.5)
        with pytest.raises(PveError, match=rf"\Astorage '{real.storage}': .*\n\Z"):
            list_for_ever(real, give_up + 30)
        exported = real.state / "exported"
        said = real.node.pvesm("export", volume, "raw+size", str(exported))
        assert "iso/a.iso: the store does not answer" in said
        assert "the local copy is used as it is" in said
        assert exported.read_bytes()[8:] == b"x" * 4096
    finally:
        world.server.resume_gateway()
    give_up = time.monotonic() + 90
    while not real.shown()["active"]:
        assert time.monotonic() < give_up, "it must become active again"
        time.sleep(0.5)
    real.listed(volume)


@pytest.mark.rgw
def test_a_core_that_was_killed(real: Real, world: World) -> None:
    world.stop_core(signal.SIGKILL)
    try:
        begin = time.monotonic()
        assert not real.shown()["active"]
        assert time.monotonic() - begin < 4
        with pytest.raises(PveError, match="the Bucketworks service does not run on this node"):
            real.volumes()
        assert "finished file import successfully" in real.upload("iso", "a.iso", b"x" * 4096)
        assert real.read("template/iso/a.iso") == b"x" * 4096
    finally:
        world.start_core()
    real.listed(f"{real.storage}:iso/a.iso")


def answers(world: World, storage: str) -> bool:
    try:
        call(socket_path(world.root / "run", storage), "status", timeout_s=10)
    except NotServed:
        return False
    return True


def write_through(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)
    os.fsync(descriptor)


@pytest.mark.rgw
def test_a_mount_that_was_killed_in_the_middle_of_a_backup(real: Real, world: World) -> None:
    before = b"VMA\0" + os.urandom(1 << 20)
    path = real.mount / "dump/vzdump-qemu-100-2026_01_02-03_04_05.dat"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(descriptor, before)
        told = call(socket_path(world.root / "run", real.storage), "status", timeout_s=10)
        os.kill(told["pid"], signal.SIGKILL)
        with pytest.raises(OSError, match=r"connect|Input/output"):
            write_through(descriptor, before)
    finally:
        with suppress(OSError):
            os.close(descriptor)
    assert real.objects() == set()
    give_up = time.monotonic() + 60
    while not answers(world, real.storage):
        assert time.monotonic() < give_up, (world.root / "core.log").read_text()
        real.shown()
        time.sleep(0.2)
    assert real.volumes() == {}
    assert "finished file import successfully" in real.upload("iso", "a.iso", before)
    assert real.objects() == {"template/iso/a.iso"}
